//! The listener and a thread for each of its connections.

use super::answers::Studio;
use super::upload::{Answer, Upload};
use super::{IO_TIMEOUT, TEXT_BYTES_MAX, VISITORS_MAX};
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

/// How often a silent connection is looked at.
const TICK: Duration = Duration::from_secs(30);

/// The largest message that is answered in words; a larger one is closed with 1009.
const MESSAGE_BYTES_MAX: usize = 4 * TEXT_BYTES_MAX;

/// Read after a Close frame of ours, to let it arrive.
const FAREWELL_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The stack of a connection's thread.
const STACK_BYTES: usize = 256 * 1024;

/// What the threads share.
pub struct House {
    visitors: AtomicUsize,
    is_stopping: AtomicBool,
    idle_timeout: Duration,
    studio: Option<Studio>,
}

impl House {
    pub fn new(studio: Option<Studio>, idle_timeout: Duration) -> House {
        House {
            visitors: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            idle_timeout,
            studio,
        }
    }

    /// The next connection ends the listening.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    /// Removes the sound files.
    pub fn clear(&self) {
        if let Some(studio) = &self.studio {
            studio.clear();
        }
    }

    /// Lets clients in until it is told to stop.
    pub fn open_door(self: &Arc<House>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.is_stopping.load(Ordering::SeqCst) {
                return;
            }
            let admitted = stream.and_then(|stream| {
                let Some(visitor) = Visitor::enter(self) else { return refuse(stream) };
                let thread =
                    thread::Builder::new().name("demo visitor".into()).stack_size(STACK_BYTES);
                thread.spawn(move || visitor.stay(stream)).map(drop)
            });
            if let Err(error) = admitted {
                debug!(target: "demo", "cannot take a client: {error}");
                // Out of descriptors or of threads: others may give some back.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Says that there is no room. The request is read first: a socket closed with unread bytes sends RST, which eats the answer.
fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let _ = stream.read(&mut [0; 16 * 1024])?;
    stream.write_all(
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
}

/// One connection, counted for as long as it lives.
struct Visitor {
    house: Arc<House>,
    upload: Upload,
}

impl Visitor {
    fn enter(house: &Arc<House>) -> Option<Visitor> {
        let visitor =
            Visitor { house: Arc::clone(house), upload: Upload::new(&Uuid::new_v4().to_string()) };
        (house.visitors.fetch_add(1, Ordering::SeqCst) < VISITORS_MAX).then_some(visitor)
    }

    /// From the handshake to the end.
    fn stay(mut self, stream: TcpStream) {
        let outcome = self.talk(stream);
        match &outcome {
            Ok(()) => debug!(target: "demo", "task {} left", self.upload.task_id),
            Err(error) => debug!(target: "demo", "task {} left: {error}", self.upload.task_id),
        }
    }

    fn talk(&mut self, stream: TcpStream) -> Result<(), Box<dyn std::error::Error>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let limits = WebSocketConfig::default()
            .read_buffer_size(4096)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let mut socket = tungstenite::accept_with_config(stream, Some(limits))
            .map_err(|error| error.to_string())?;
        socket.get_ref().set_read_timeout(Some(TICK.min(self.house.idle_timeout)))?;
        socket.send(Message::text(self.upload.greeting()))?;

        let mut message_at = SystemTime::now();
        loop {
            let answer = match socket.read() {
                Ok(Message::Text(text)) => self.upload.handle_text(&text),
                Ok(Message::Binary(bytes)) => self.upload.handle_bytes(&bytes),
                // Pings and Close frames are answered by the next read.
                Ok(_) => Answer::None,
                Err(tungstenite::Error::Io(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    Answer::None
                }
                Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
                Err(error) => {
                    if let Some(code) = fault_code(&error) {
                        part(socket, code, &error.to_string());
                    }
                    return Err(error.into());
                }
            };
            match answer {
                Answer::None
                    if message_at.elapsed().unwrap_or_default() >= self.house.idle_timeout =>
                {
                    part(socket, CloseCode::Normal, "idle timeout");
                    return Ok(());
                }
                Answer::None => continue,
                Answer::Heard => {}
                Answer::Say(text) => socket.send(Message::text(text))?,
                Answer::Queue { reply, text } => {
                    socket.send(Message::text(reply))?;
                    self.answer(&text);
                }
            }
            message_at = SystemTime::now();
        }
    }

    /// Thinks, then publishes. What goes wrong is the log's business: the client has been told that its text was taken.
    fn answer(&self, text: &str) {
        let task_id = &self.upload.task_id;
        let Some(studio) = &self.house.studio else { return };
        thread::sleep(studio.thinking_time);
        match studio.answer(task_id, text) {
            Ok(()) => info!(target: "demo", "task {task_id} answered text={}B", text.len()),
            Err(error) => warn!(target: "demo", "task {task_id} not answered: {error}"),
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.house.visitors.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The close code for what a client did wrong; `None` where no frame will reach it any more.
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

/// Closes from our side, and reads on for a moment so that the Close frame is not lost to an RST.
fn part(mut socket: WebSocket<TcpStream>, code: CloseCode, reason: &str) {
    let reason: String = reason.chars().take(40).collect();
    let _ = socket
        .close(Some(CloseFrame { code, reason: reason.into() }))
        .and_then(|()| socket.flush());
    let stream = socket.get_ref();
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    let _ = io::copy(&mut stream.take(FAREWELL_BYTES_MAX), &mut io::sink());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::answers::FILES_MAX;
    use crate::demo::upload::tests::{COMPLETE, announcement};
    use crate::demo::voice::wav;
    use crate::demo::{Demo, IDLE_TIMEOUT};
    use serde_json::{Value, json};
    use std::fs;
    use std::path::PathBuf;
    use std::sync::mpsc;

    /// No wait in these tests lasts so long unless something is broken.
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
        socket.send(Message::text(COMPLETE)).unwrap();
    }

    /// A stand-in whose answers arrive at the receiver at once, with sound files in a new folder.
    fn with_studio(name: &str) -> (Demo, mpsc::Receiver<(String, Value)>, PathBuf) {
        let (sender, published) = mpsc::channel();
        let audio_root =
            std::env::temp_dir().join(format!("aivtuber-demo-{name}-{}", std::process::id()));
        let publish = move |task_id: &str, json: &str| {
            let _ = sender.send((task_id.to_owned(), serde_json::from_str(json)?));
            Ok(())
        };
        let studio = Studio::new(Box::new(publish), audio_root.clone(), Duration::ZERO);
        (Demo::open(Some(studio), Arc::default(), IDLE_TIMEOUT).unwrap(), published, audio_root)
    }

    fn without_studio() -> Demo {
        Demo::open(None, Arc::default(), IDLE_TIMEOUT).unwrap()
    }

    fn wait_until_empty(demo: &Demo) {
        let begun = SystemTime::now();
        while demo.house.visitors.load(Ordering::SeqCst) > 0 {
            assert!(begun.elapsed().unwrap_or_default() < PATIENCE, "somebody stays for ever");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_upload_is_queued_under_the_id_that_was_assigned() {
        let demo = without_studio();
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
    fn each_connection_has_a_task_of_its_own() {
        let demo = without_studio();
        let (mut one, mut other) = (connect(&demo), connect(&demo));
        assert_ne!(read(&mut one)["task_id"], read(&mut other)["task_id"]);
    }

    #[test]
    fn a_huge_message_ends_its_own_connection_alone() {
        let demo = without_studio();
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
    fn who_says_nothing_is_closed_and_who_vanishes_is_forgotten() {
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
    fn one_visitor_too_many_is_told_so_and_takes_no_seat() {
        let demo = without_studio();
        let mut visitors: Vec<_> = (0..VISITORS_MAX).map(|_| connect(&demo)).collect();
        visitors.iter_mut().for_each(|visitor| drop(read(visitor)));
        let mut stream = TcpStream::connect(demo.address()).unwrap();
        stream.write_all(b"GET /ws/input HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        drop(visitors);
        wait_until_empty(&demo);
        read(&mut connect(&demo));
    }

    #[test]
    fn an_answer_is_published_with_a_sound_file_that_goes_when_the_demo_ends() {
        let (demo, published, audio_root) = with_studio("answer");
        let mut socket = connect(&demo);
        let task_id = read(&mut socket)["task_id"].as_str().unwrap().to_owned();
        upload(&mut socket, &["こんにちは".as_bytes()]);
        assert_eq!(read(&mut socket)["status"], "queued");
        let (task, result) = published.recv_timeout(PATIENCE).unwrap();
        assert_eq!(task, task_id);
        assert!(result["text"].as_str().unwrap().contains("こんにちは"), "{result}");
        let file = audio_root.join(result["audio_file"].as_str().unwrap());
        assert_eq!(fs::read(&file).unwrap(), wav("こんにちは"));
        drop(demo);
        assert!(!file.exists());
        fs::remove_dir(&audio_root).unwrap();
    }

    #[test]
    fn sound_files_do_not_pile_up() {
        let (demo, _published, audio_root) = with_studio("pile");
        let studio = demo.house.studio.as_ref().unwrap();
        let path = |index: usize| audio_root.join(format!("{index}.wav"));
        for index in 0..FILES_MAX + 3 {
            studio.keep(path(index), b"wav").unwrap();
        }
        assert!(!path(2).exists() && path(3).exists());
        assert_eq!(fs::read_dir(&audio_root).unwrap().count(), FILES_MAX);
        studio.clear();
        assert!(studio.keep(path(0), b"wav").is_err(), "nobody would remove it");
        fs::remove_dir(&audio_root).unwrap();
    }
}
