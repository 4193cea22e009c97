//! The listener and a thread for each of its connections.

use super::answers::{Outcome, Responder};
use super::upload::{Input, Reaction, Upload};
use super::voice::NOTES;
use super::{CONNECTIONS_MAX, IO_TIMEOUT, TEXT_BYTES_MAX};
use log::{debug, info, warn};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Message, WebSocket};
use uuid::Uuid;

/// How often the idle timeout is checked.
const TICK: Duration = Duration::from_secs(30);

/// The largest message that gets an error in reply; a larger one closes the connection with 1009.
const MESSAGE_BYTES_MAX: usize = 4 * TEXT_BYTES_MAX;

/// Bytes that are read after a Close frame was sent, so that it arrives.
const DRAIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The stack of a connection's thread.
const STACK_BYTES: usize = 256 * 1024;

/// What the threads share.
pub struct DemoServer {
    connections: AtomicUsize,
    is_stopping: AtomicBool,
    idle_timeout: Duration,
    responder: Option<Responder>,
}

impl DemoServer {
    pub fn new(responder: Option<Responder>, idle_timeout: Duration) -> DemoServer {
        DemoServer {
            connections: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            idle_timeout,
            responder,
        }
    }

    /// Listening ends with the next connection.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    /// Removes the sound files.
    pub fn clear(&self) {
        if let Some(responder) = &self.responder {
            responder.clear();
        }
    }

    /// Accepts clients until [`DemoServer::stop`].
    pub fn accept_all(self: &Arc<DemoServer>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.is_stopping.load(Ordering::SeqCst) {
                return;
            }
            let admitted = stream.and_then(|stream| {
                let Some(connection) = DemoConnection::admit(self) else { return refuse(stream) };
                let thread =
                    thread::Builder::new().name("demo connection".into()).stack_size(STACK_BYTES);
                thread.spawn(move || connection.run(stream)).map(drop)
            });
            if let Err(error) = admitted {
                debug!(target: "demo", "cannot take a client: {error}");
                // Out of descriptors or threads: other connections may free some.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Answers that there are too many connections. The request is read first: closing a socket with
/// unread bytes sends RST, which destroys the answer.
fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let _ = stream.read(&mut [0; 16 * 1024])?;
    stream.write_all(
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
}

/// The server, for one connection, which counts until nothing has this any more.
struct CountedConnection(Arc<DemoServer>);

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One connection.
struct DemoConnection {
    place: Arc<CountedConnection>,
    upload: Upload,
}

impl DemoConnection {
    /// Counts a new connection; `None` if there are too many.
    fn admit(server: &Arc<DemoServer>) -> Option<DemoConnection> {
        let place = Arc::new(CountedConnection(Arc::clone(server)));
        let connection = DemoConnection { place, upload: Upload::new(&Uuid::new_v4().to_string()) };
        (server.connections.fetch_add(1, Ordering::SeqCst) < CONNECTIONS_MAX).then_some(connection)
    }

    /// From the handshake to the end.
    fn run(mut self, stream: TcpStream) {
        let outcome = self.serve(stream);
        match &outcome {
            Ok(()) => debug!(target: "demo", "task {} left", self.upload.task_id),
            Err(error) => debug!(target: "demo", "task {} left: {error}", self.upload.task_id),
        }
    }

    fn serve(&mut self, stream: TcpStream) -> Result<(), Box<dyn std::error::Error>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let limits = WebSocketConfig::default()
            .read_buffer_size(4096)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let mut socket = tungstenite::accept_with_config(stream, Some(limits))
            .map_err(|error| error.to_string())?;
        let idle_timeout = self.place.0.idle_timeout;
        socket.get_ref().set_read_timeout(Some(TICK.min(idle_timeout)))?;
        socket.send(Message::text(self.upload.greeting()))?;

        let mut message_at = SystemTime::now();
        loop {
            let reaction = match socket.read() {
                Ok(Message::Text(text)) => self.upload.handle_text(&text),
                Ok(Message::Binary(bytes)) => self.upload.handle_bytes(&bytes),
                // Pings and Close frames are answered by the next read.
                Ok(_) => Reaction::None,
                Err(tungstenite::Error::Io(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    Reaction::None
                }
                Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
                Err(error) => {
                    if let Some(code) = fault_code(&error) {
                        close(socket, code, &error.to_string());
                    }
                    return Err(error.into());
                }
            };
            match reaction {
                Reaction::None if message_at.elapsed().unwrap_or_default() >= idle_timeout => {
                    close(socket, CloseCode::Normal, "idle timeout");
                    return Ok(());
                }
                Reaction::None => continue,
                Reaction::Accept => {}
                Reaction::Reply(text) => socket.send(Message::text(text))?,
                Reaction::Queue { reply, input } => {
                    socket.send(Message::text(reply))?;
                    // The connection may end while its answer is being made.
                    let (place, task_id) = (Arc::clone(&self.place), self.upload.task_id.clone());
                    let thread =
                        thread::Builder::new().name("demo answer".into()).stack_size(STACK_BYTES);
                    thread.spawn(move || place.answer(&task_id, &input))?;
                }
            }
            message_at = SystemTime::now();
        }
    }
}

impl CountedConnection {
    /// Answers, which takes as long as the answer is being made. Failures are only logged: the
    /// client already knows that its upload is queued.
    fn answer(&self, task_id: &str, input: &Input) {
        let Some(responder) = &self.0.responder else { return };
        let (kind, bytes) = match input {
            Input::Text(text) => ("text", text.len()),
            Input::Recording(recording) => ("recording", recording.len()),
        };
        match responder.answer(task_id, input) {
            Ok(Outcome::Complete) => {
                info!(target: "demo", "task {task_id} answered {kind}={bytes}B");
            }
            Ok(Outcome::Stopped { notes }) => {
                info!(target: "demo", "task {task_id} stopped {kind}={bytes}B notes={notes}/{NOTES}");
            }
            Err(error) => warn!(target: "demo", "task {task_id} not answered: {error}"),
        }
        log::logger().flush();
    }
}

/// The close code for a client's fault; `None` where no frame can reach the client any more.
fn fault_code(error: &tungstenite::Error) -> Option<CloseCode> {
    match error {
        tungstenite::Error::Capacity(_) => Some(CloseCode::Size),
        tungstenite::Error::Utf8(_) => Some(CloseCode::Invalid),
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => None,
        tungstenite::Error::Protocol(_) => Some(CloseCode::Protocol),
        _ => None,
    }
}

/// Sends a Close frame and reads on for a moment, so that an RST does not destroy it.
fn close(mut socket: WebSocket<TcpStream>, code: CloseCode, reason: &str) {
    let reason: String = reason.chars().take(40).collect();
    let _ = socket
        .close(Some(CloseFrame { code, reason: reason.into() }))
        .and_then(|()| socket.flush());
    let stream = socket.get_ref();
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = io::copy(&mut stream.take(DRAIN_BYTES_MAX), &mut io::sink());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::answers::{FILES_MAX, TaskControl};
    use crate::demo::upload::tests::{UPLOAD_COMPLETE, announcement};
    use crate::demo::voice::tests::wav;
    use crate::demo::{Demo, IDLE_TIMEOUT};
    use serde_json::{Value, json};
    use std::fs;
    use std::path::PathBuf;
    use std::sync::{Mutex, mpsc};

    /// No wait in these tests takes this long unless something is broken.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn connect(demo: &Demo) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(demo.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        tungstenite::client(demo.url(), stream).unwrap().0
    }

    fn read(socket: &mut WebSocket<TcpStream>) -> Value {
        loop {
            if let Message::Text(text) = socket.read().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    fn upload(socket: &mut WebSocket<TcpStream>, pieces: &[&[u8]]) {
        for (index, piece) in pieces.iter().enumerate() {
            socket.send(Message::text(announcement(index as u32))).unwrap();
            socket.send(Message::binary(piece.to_vec())).unwrap();
        }
        socket.send(Message::text(UPLOAD_COMPLETE)).unwrap();
    }

    /// A demo whose answers arrive at the receiver at once, with sound files in a new folder.
    fn with_answers(name: &str) -> (Demo, mpsc::Receiver<(String, Value)>, PathBuf) {
        let (sender, published) = mpsc::channel();
        let audio_root =
            std::env::temp_dir().join(format!("aivtuber-demo-{name}-{}", std::process::id()));
        let publish = move |task_id: &str, json: &str| {
            let _ = sender.send((task_id.to_owned(), serde_json::from_str(json)?));
            Ok(())
        };
        let responder = Responder {
            publish: Box::new(publish),
            listen: Box::new(|_| TaskControl::NONE),
            audio_root: audio_root.clone(),
            pause: Duration::ZERO,
            files: Mutex::default(),
        };
        (Demo::open(Some(responder), Arc::default(), IDLE_TIMEOUT).unwrap(), published, audio_root)
    }

    fn without_answers() -> Demo {
        Demo::open(None, Arc::default(), IDLE_TIMEOUT).unwrap()
    }

    fn wait_until_empty(demo: &Demo) {
        let begun = SystemTime::now();
        while demo.server.connections.load(Ordering::SeqCst) > 0 {
            assert!(begun.elapsed().unwrap_or_default() < PATIENCE, "a connection never ends");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_upload_is_queued_under_its_assigned_id() {
        let demo = without_answers();
        let mut socket = connect(&demo);
        let greeting = read(&mut socket);
        let task_id = greeting["task_id"].as_str().unwrap();
        assert!(Uuid::parse_str(task_id).is_ok());
        assert_eq!(
            greeting,
            json!({"type": "system", "action": "task_id_assigned", "task_id": task_id})
        );
        // A character may be cut in two by the end of a piece.
        upload(&mut socket, &[b"Hello \xe4\xb8", b"\x96\xe7\x95\x8c"]);
        let reply = json!({"type": "system", "action": "upload_processed", "status": "queued", "task_id": task_id});
        assert_eq!(read(&mut socket), reply);
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    }

    #[test]
    fn each_connection_has_its_own_task() {
        let demo = without_answers();
        let (mut one, mut other) = (connect(&demo), connect(&demo));
        assert_ne!(read(&mut one)["task_id"], read(&mut other)["task_id"]);
    }

    #[test]
    fn a_huge_message_ends_only_its_own_connection() {
        let demo = without_answers();
        let (mut greedy, mut modest) = (connect(&demo), connect(&demo));
        read(&mut greedy);
        read(&mut modest);
        greedy.send(Message::binary(vec![0; MESSAGE_BYTES_MAX + 1])).unwrap();
        let Message::Close(Some(close)) = greedy.read().unwrap() else { panic!("no Close frame") };
        assert_eq!(close.code, CloseCode::Size);
        upload(&mut modest, &[b"hi"]);
        assert_eq!(read(&mut modest)["status"], "queued");
    }

    #[test]
    fn a_silent_client_is_closed_and_a_vanished_one_is_not_counted() {
        let demo = Demo::open(None, Arc::default(), Duration::from_millis(20)).unwrap();
        let mut silent = connect(&demo);
        read(&mut silent);
        let Message::Close(Some(close)) = silent.read().unwrap() else { panic!("no Close frame") };
        assert_eq!((close.code, close.reason.as_str()), (CloseCode::Normal, "idle timeout"));
        // No handshake at all.
        drop(TcpStream::connect(demo.address()).unwrap());
        drop(silent);
        wait_until_empty(&demo);
    }

    #[test]
    fn a_connection_beyond_the_limit_gets_503_and_is_not_counted() {
        let demo = without_answers();
        let mut connections: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(&demo)).collect();
        connections.iter_mut().for_each(|connection| drop(read(connection)));
        let mut stream = TcpStream::connect(demo.address()).unwrap();
        stream.write_all(b"GET /ws/input HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        drop(connections);
        wait_until_empty(&demo);
        read(&mut connect(&demo));
    }

    #[test]
    fn an_answer_is_published_with_a_sound_file_that_is_removed_at_the_end() {
        let (demo, published, audio_root) = with_answers("answer");
        let mut socket = connect(&demo);
        let task_id = read(&mut socket)["task_id"].as_str().unwrap().to_owned();
        upload(&mut socket, &["こんにちは".as_bytes()]);
        assert_eq!(read(&mut socket)["status"], "queued");
        let (task, result) = published.recv_timeout(PATIENCE).unwrap();
        assert_eq!(task, task_id);
        assert!(result["text"].as_str().unwrap().contains("こんにちは"), "{result}");
        assert_eq!(result["audio_growing"], true);
        let file = audio_root.join(result["audio_file"].as_str().unwrap());
        let end = published.recv_timeout(PATIENCE).unwrap();
        assert_eq!(end, (task_id, json!({"audio_end": result["audio_file"]})));
        assert_eq!(fs::read(&file).unwrap(), wav("こんにちは"));
        drop(demo);
        assert!(!file.exists());
        fs::remove_dir(&audio_root).unwrap();
    }

    #[test]
    fn the_oldest_sound_file_is_removed_for_a_new_one() {
        let (demo, _published, audio_root) = with_answers("pile");
        let responder = demo.server.responder.as_ref().unwrap();
        let path = |index: usize| audio_root.join(format!("{index}.wav"));
        for index in 0..FILES_MAX + 3 {
            responder.create(path(index)).unwrap();
        }
        assert!(!path(2).exists() && path(3).exists());
        assert_eq!(fs::read_dir(&audio_root).unwrap().count(), FILES_MAX);
        responder.clear();
        assert!(responder.create(path(0)).is_err(), "it would never be removed");
        fs::remove_dir(&audio_root).unwrap();
    }
}
