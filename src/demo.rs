//! The stand-in for the AI behind `/ws/input`, so that `aivtuber-gateway demo` works on a machine that has nothing else.
//!
//! It speaks the input protocol that front ends already use, as a backend like any other: a listener on a port of the kernel's
//! choice, reached over a socket and relayed to by the gateway. Nothing else in the house knows that it is there.
//!
//! ```text
//!   ◄ {"type":"system","action":"task_id_assigned","task_id":"<uuid>"}
//!   ► {"type":"text","chunk_id":0,"action":"data_chunk"}      the next message is a piece of the text
//!   ► (binary) the piece, in UTF-8                            as many such pairs as it takes
//!   ► {"action":"upload_complete"}
//!   ◄ {"type":"system","action":"upload_processed","status":"queued","task_id":"<uuid>"}
//! ```
//!
//! With an inbox for results, an answer is published [`THINKING_TIME`] later: a text, and a WAV of a few notes that the words
//! were turned into.
//!
//! Surprising: this is the one place with a blocking thread for each connection. It is the plainest way to write a backend, and
//! [`VISITORS_MAX`] of them are no burden; the loop of the gateway never waits for any of them.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use log::{debug, info, warn};
use serde_json::{Value, json};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Message, WebSocket};
use uuid::Uuid;

/// Where the stand-in expects its clients, as a path.
pub const PATH: &str = "/ws/input";

/// Connections at a time; one more is answered 503.
pub const VISITORS_MAX: usize = 64;

/// Bytes of one upload's text, all pieces together.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// How long the stand-in takes for an answer.
pub const THINKING_TIME: Duration = Duration::from_secs(1);

/// Who sends no message for so long is closed with 1000.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Every piece of a handshake, and every write, must get through in this time.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a silent connection is looked at.
const TICK: Duration = Duration::from_secs(30);

/// The largest message that is answered in words; a larger one is closed with 1009.
const MESSAGE_BYTES_MAX: usize = 4 * TEXT_BYTES_MAX;

/// Read after a Close frame of ours, to let it arrive.
const FAREWELL_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Sound files that lie on the disk at a time; the oldest goes first.
const FILES_MAX: usize = 64;

/// The stack of a connection's thread.
const STACK_BYTES: usize = 256 * 1024;

/// What the stand-in does with an upload.
#[derive(Debug, Clone)]
pub struct Options {
    /// What a task's channel begins with.
    pub channel_prefix: String,
    /// The folder for sound files; made if it is not there.
    pub audio_root: PathBuf,
}

/// Hands a result to who waits for its task: task id, JSON object.
type Publish = dyn Fn(&str, &str) -> io::Result<()> + Send + Sync;

/// The running stand-in. Dropping it stops it, and removes the sound files that it made.
pub struct Demo {
    address: SocketAddr,
    inbox: Arc<OnceLock<SocketAddr>>,
    house: Arc<House>,
    doorman: Option<JoinHandle<()>>,
}

/// What the threads share.
struct House {
    visitors: AtomicUsize,
    is_stopping: AtomicBool,
    idle_timeout: Duration,
    studio: Option<Studio>,
}

impl Demo {
    /// Listens on a port of the kernel's choice, on this machine only.
    ///
    /// # Errors
    /// When that, or the thread, is refused.
    pub fn start(options: Options) -> io::Result<Demo> {
        let Options { channel_prefix, audio_root } = options;
        let inbox: Arc<OnceLock<SocketAddr>> = Arc::default();
        let publish_at = Arc::clone(&inbox);
        let studio = Studio {
            publish: Box::new(move |task_id, json| match publish_at.get() {
                Some(&inbox) => publish(inbox, &format!("{channel_prefix}{task_id}"), json),
                None => Err(io::Error::other("there is no inbox to publish in")),
            }),
            audio_root,
            thinking_time: THINKING_TIME,
            files: Mutex::default(),
        };
        Demo::open(Some(studio), inbox, IDLE_TIMEOUT)
    }

    /// From now on answers are published at `inbox`, in the Redis protocol.
    pub fn publish_at(&self, inbox: SocketAddr) {
        let _ = self.inbox.set(inbox);
    }

    fn open(
        studio: Option<Studio>,
        inbox: Arc<OnceLock<SocketAddr>>,
        idle_timeout: Duration,
    ) -> io::Result<Demo> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let house = Arc::new(House {
            visitors: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            idle_timeout,
            studio,
        });
        let doorman = {
            let house = Arc::clone(&house);
            thread::Builder::new().name("demo".into()).spawn(move || house.open_door(&listener))?
        };
        Ok(Demo { address, inbox, house, doorman: Some(doorman) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a backend's URL.
    pub fn url(&self) -> String {
        format!("ws://{}{PATH}", self.address)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.house.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the listener, which looks at the flag.
        let _ = TcpStream::connect_timeout(&self.address, IO_TIMEOUT);
        if let Some(doorman) = self.doorman.take() {
            let _ = doorman.join();
        }
        if let Some(studio) = &self.house.studio {
            studio.clear();
        }
    }
}

/// What to open and what to try, for a gateway that listens at `gateway`.
pub fn welcome(gateway: SocketAddr) -> String {
    let host = match gateway.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST => {
            "localhost".to_owned()
        }
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let at = format!("{host}:{}", gateway.port());
    format!(
        "\n\
         The demo is running: the gateway, and a stand-in for the AI behind {PATH}.\n\
         \n\
         \x20 open   http://{at}/                type something, see the answer and hear it\n\
         \x20 ask    curl http://{at}/health\n\
         \x20 try    python3 -m websockets ws://{at}{PATH}\n\
         \x20        (pip install websockets) and you are told the id of your task\n\
         \n\
         docs/protocol.md has a client to copy and paste. Ctrl-C ends the demo.\n\n"
    )
}

impl House {
    /// Lets clients in until it is told to stop.
    fn open_door(self: &Arc<House>, listener: &TcpListener) {
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

// ---- the input protocol, without its socket

/// One client's upload.
struct Upload {
    task_id: String,
    expects: Expects,
    text: Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Announcement,
    Bytes,
    /// The text was taken; a connection has one task.
    Nothing,
}

/// The pieces so far.
enum Text {
    Growing(Vec<u8>),
    /// It became too long, and its pieces are thrown away until it ends.
    Spoiled,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// No message came.
    None,
    /// Understood, and nothing to say.
    Heard,
    Say(String),
    Queue {
        reply: String,
        text: String,
    },
}

impl Upload {
    fn new(task_id: &str) -> Upload {
        Upload {
            task_id: task_id.to_owned(),
            expects: Expects::Announcement,
            text: Text::Growing(Vec::new()),
        }
    }

    /// The first thing a client is told.
    fn greeting(&self) -> String {
        json!({"type": "system", "action": "task_id_assigned", "task_id": self.task_id}).to_string()
    }

    /// A text message. One that is refused changes nothing.
    fn handle_text(&mut self, message: &str) -> Answer {
        let message: Value = match serde_json::from_str(message) {
            Ok(message) => message,
            Err(why) => return self.refuse(&format!("this is not JSON: {why}")),
        };
        match message.get("action").and_then(Value::as_str) {
            _ if self.expects == Expects::Nothing => self
                .refuse("the text of this task is complete: open a new connection for another one"),
            Some("data_chunk" | "upload_complete") if self.expects == Expects::Bytes => {
                self.refuse("the piece that was announced is due first, as a binary message")
            }
            Some("data_chunk") => self.handle_announcement(&message),
            Some("upload_complete") => self.complete(),
            _ => self.refuse("`action` must be \"data_chunk\" or \"upload_complete\""),
        }
    }

    /// A binary message: the piece that was announced.
    fn handle_bytes(&mut self, piece: &[u8]) -> Answer {
        match self.expects {
            Expects::Bytes => self.expects = Expects::Announcement,
            Expects::Announcement => {
                let wanted = json!({"type": "text", "chunk_id": 0, "action": "data_chunk"});
                return self.refuse(&format!("a binary message must be announced by {wanted}"));
            }
            Expects::Nothing => {
                return self.refuse(
                    "the text of this task is complete: open a new connection for another one",
                );
            }
        }
        match &mut self.text {
            Text::Growing(text) if text.len() + piece.len() <= TEXT_BYTES_MAX => {
                text.extend_from_slice(piece);
                Answer::Heard
            }
            Text::Growing(_) => {
                self.text = Text::Spoiled;
                self.refuse(&format!("the text is longer than {TEXT_BYTES_MAX} bytes"))
            }
            Text::Spoiled => Answer::Heard,
        }
    }

    /// The pieces come in their order, so `chunk_id` is only looked at for what it is.
    fn handle_announcement(&mut self, message: &Value) -> Answer {
        if message.get("type").and_then(Value::as_str) != Some("text") {
            return self.refuse("`type` must be \"text\": this stand-in only reads");
        }
        if message.get("chunk_id").and_then(Value::as_u64).is_none() {
            return self.refuse("`chunk_id` must be a whole number from 0");
        }
        self.expects = Expects::Bytes;
        Answer::Heard
    }

    fn complete(&mut self) -> Answer {
        match std::mem::replace(&mut self.text, Text::Growing(Vec::new())) {
            Text::Spoiled => self.refuse("the text was too long: upload a shorter one"),
            Text::Growing(text) => match String::from_utf8(text) {
                Ok(text) if text.is_empty() => self.refuse("nothing was uploaded"),
                Err(_) => self.refuse("the text is not UTF-8: upload it again"),
                Ok(text) => {
                    self.expects = Expects::Nothing;
                    let task_id = &self.task_id;
                    let reply = json!({"type": "system", "action": "upload_processed", "status": "queued", "task_id": task_id});
                    Answer::Queue { reply: reply.to_string(), text }
                }
            },
        }
    }

    fn refuse(&self, why: &str) -> Answer {
        Answer::Say(json!({"status": "error", "error": why, "task_id": self.task_id}).to_string())
    }
}

// ---- answers

/// Makes answers and publishes them.
struct Studio {
    publish: Box<Publish>,
    audio_root: PathBuf,
    thinking_time: Duration,
    files: Mutex<Files>,
}

/// Sound files that lie on the disk.
#[derive(Default)]
struct Files {
    oldest_first: VecDeque<PathBuf>,
    /// The demo has ended: none may be added.
    is_closed: bool,
}

impl Studio {
    fn answer(&self, task_id: &str, text: &str) -> io::Result<()> {
        let name = format!("demo-{task_id}.wav");
        self.keep(self.audio_root.join(&name), &wav(text))?;
        (self.publish)(task_id, &json!({"text": reply_to(text), "audio_file": name}).to_string())
    }

    /// Writes a new file. The file of an answer that was given long ago makes room for it.
    fn keep(&self, path: PathBuf, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.audio_root)?;
        let mut files = self.files();
        if files.is_closed {
            return Err(io::Error::other("the demo has ended"));
        }
        while files.oldest_first.len() >= FILES_MAX {
            if let Some(oldest) = files.oldest_first.pop_front() {
                remove(&oldest);
            }
        }
        // `create_new`: in a folder that everybody may write to, nobody's link is followed.
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        files.oldest_first.push_back(path);
        file.write_all(bytes)
    }

    fn clear(&self) {
        let mut files = self.files();
        files.is_closed = true;
        files.oldest_first.drain(..).for_each(|path| remove(&path));
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        debug!(target: "demo", "cannot remove {}: {error}", path.display());
    }
}

fn reply_to(text: &str) -> String {
    const SHOWN_CHARS: usize = 200;
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!(
        "You said: “{shown}” I am the demo's stand-in for an AI, so all I can do is hum your words."
    )
}

/// Publishes on a channel of whatever speaks the Redis protocol at `inbox`.
///
/// # Errors
/// When it cannot be reached in [`IO_TIMEOUT`], or refuses.
fn publish(inbox: SocketAddr, channel: &str, json: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&inbox, IO_TIMEOUT)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    stream.write_all(&redis::cmd("PUBLISH").arg(channel).arg(json).get_packed_command())?;
    match redis::Parser::new().parse_value(&mut stream) {
        Ok(redis::Value::Int(_)) => Ok(()),
        Ok(redis::Value::ServerError(refusal)) => {
            Err(io::Error::other(format!("the inbox refused it: {refusal}")))
        }
        Ok(_) => Err(io::Error::other("the inbox gave an answer that PUBLISH has not")),
        Err(error) => Err(io::Error::other(error)),
    }
}

// ---- the voice

const SAMPLES_PER_SECOND: u32 = 24_000;
const NOTES: usize = 12;
const SAMPLES_PER_NOTE: usize = SAMPLES_PER_SECOND as usize * 2 / 5;

/// Five notes of one octave that sound well in any order, in semitones.
const SCALE: [i32; 5] = [0, 2, 4, 7, 9];

/// A tune made of the text, as a WAV file: 16 bits, mono, [`NOTES`] notes of 0.4 s, about 225 KiB.
fn wav(text: &str) -> Vec<u8> {
    const BYTES_PER_SAMPLE: u32 = 2;
    let notes = tune(text);
    let data_bytes = (NOTES * SAMPLES_PER_NOTE) as u32 * BYTES_PER_SAMPLE;
    let mut wav = Vec::with_capacity(44 + data_bytes as usize);
    wav.extend_from_slice(b"RIFF");
    wav.extend_from_slice(&(36 + data_bytes).to_le_bytes());
    wav.extend_from_slice(b"WAVEfmt ");
    wav.extend_from_slice(&16u32.to_le_bytes());
    wav.extend_from_slice(&1u16.to_le_bytes()); // PCM
    wav.extend_from_slice(&1u16.to_le_bytes()); // one channel
    wav.extend_from_slice(&SAMPLES_PER_SECOND.to_le_bytes());
    wav.extend_from_slice(&(SAMPLES_PER_SECOND * BYTES_PER_SAMPLE).to_le_bytes());
    wav.extend_from_slice(&(BYTES_PER_SAMPLE as u16).to_le_bytes());
    wav.extend_from_slice(&16u16.to_le_bytes()); // bits
    wav.extend_from_slice(b"data");
    wav.extend_from_slice(&data_bytes.to_le_bytes());
    for semitones in notes {
        let hertz = 261.63 * (semitones as f32 / 12.0).exp2();
        for index in 0..SAMPLES_PER_NOTE {
            let seconds = index as f32 / SAMPLES_PER_SECOND as f32;
            // Rises in 10 ms and rings off, so that no note begins or ends with a click.
            let left = 1.0 - index as f32 / SAMPLES_PER_NOTE as f32;
            let loudness = (seconds / 0.01).min(1.0) * left * left;
            let phase = std::f32::consts::TAU * hertz * seconds;
            let sample = loudness * (0.5 * phase.sin() + 0.15 * (2.0 * phase).sin());
            wav.extend_from_slice(&((sample * f32::from(i16::MAX)) as i16).to_le_bytes());
        }
    }
    wav
}

/// Semitones above middle C. Each note is chosen by the part of the text that stands where it is sung.
fn tune(text: &str) -> [i32; NOTES] {
    let chars: Vec<u32> = text.chars().map(u32::from).collect();
    std::array::from_fn(|note| {
        let part = chars.iter().skip(note * chars.len() / NOTES).take(chars.len() / NOTES + 1);
        let sum = part.fold(note as u32, |sum, char| sum.wrapping_mul(31).wrapping_add(*char));
        let step = (sum % (2 * SCALE.len() as u32)) as usize;
        SCALE[step % SCALE.len()] + 12 * (step / SCALE.len()) as i32
    })
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn announcement(chunk_id: u32) -> String {
        json!({"type": "text", "chunk_id": chunk_id, "action": "data_chunk"}).to_string()
    }

    const COMPLETE: &str = r#"{"action":"upload_complete"}"#;

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
        let studio = Studio {
            publish: Box::new(publish),
            audio_root: audio_root.clone(),
            thinking_time: Duration::ZERO,
            files: Mutex::default(),
        };
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
    fn bad_input_is_told_what_is_wrong_and_the_upload_can_go_on() {
        let mut upload = Upload::new("t");
        let refused = |answer: Answer, why: &str| {
            let Answer::Say(text) = answer else { panic!("{answer:?} in place of {why}") };
            let error: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&error["status"], &error["task_id"]), (&json!("error"), &json!("t")));
            assert!(error["error"].as_str().unwrap().contains(why), "{error} lacks {why}");
        };
        refused(upload.handle_text("hello"), "not JSON");
        for message in ["[]", "17", "null", "{}", r#"{"action":"dance"}"#, r#"{"action":7}"#] {
            refused(upload.handle_text(message), "`action` must be");
        }
        for message in [
            r#"{"action":"data_chunk","chunk_id":0}"#,
            r#"{"type":"audio","action":"data_chunk","chunk_id":0}"#,
        ] {
            refused(upload.handle_text(message), "`type` must be");
        }
        for chunk_id in ["-1", "1.5", r#""0""#, "null"] {
            let message =
                format!(r#"{{"type":"text","action":"data_chunk","chunk_id":{chunk_id}}}"#);
            refused(upload.handle_text(&message), "`chunk_id` must be");
        }
        refused(upload.handle_bytes(b"out of the blue"), "must be announced");
        refused(upload.handle_text(COMPLETE), "nothing was uploaded");

        assert_eq!(upload.handle_text(&announcement(0)), Answer::Heard);
        refused(upload.handle_text(&announcement(1)), "is due first");
        refused(upload.handle_text(COMPLETE), "is due first");
        assert_eq!(upload.handle_bytes(b"\xff"), Answer::Heard);
        refused(upload.handle_text(COMPLETE), "not UTF-8");

        assert_eq!(upload.handle_text(&announcement(0)), Answer::Heard);
        assert_eq!(upload.handle_bytes(b"good"), Answer::Heard);
        assert!(
            matches!(upload.handle_text(COMPLETE), Answer::Queue { text, .. } if text == "good")
        );

        refused(upload.handle_text(&announcement(0)), "is complete");
        refused(upload.handle_bytes(b"more"), "is complete");
    }

    #[test]
    fn a_text_may_have_its_limit_and_not_a_byte_more() {
        let piece = vec![b'a'; TEXT_BYTES_MAX / 2];
        let mut upload = Upload::new("t");
        for _ in 0..2 {
            upload.handle_text(&announcement(0));
            assert_eq!(upload.handle_bytes(&piece), Answer::Heard);
        }
        upload.handle_text(&announcement(2));
        assert!(
            matches!(upload.handle_bytes(b"a"), Answer::Say(text) if text.contains("longer than 65536 bytes"))
        );
        upload.handle_text(&announcement(3));
        assert_eq!(upload.handle_bytes(b"the rest"), Answer::Heard, "said once");
        assert!(
            matches!(upload.handle_text(COMPLETE), Answer::Say(text) if text.contains("too long"))
        );
        for _ in 0..2 {
            upload.handle_text(&announcement(0));
            upload.handle_bytes(&piece);
        }
        assert!(
            matches!(upload.handle_text(COMPLETE), Answer::Queue { text, .. } if text.len() == TEXT_BYTES_MAX)
        );
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

    /// Takes one connection, answers `answer`, and gives what was asked.
    fn inbox(answer: &'static [u8], asked_bytes: usize) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut asked = vec![0; asked_bytes];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(answer).unwrap();
            asked
        });
        (address, thread)
    }

    #[test]
    fn publishing_speaks_the_redis_protocol() {
        let asked = b"*3\r\n$7\r\nPUBLISH\r\n$17\r\ntask_response:a-b\r\n$11\r\n{\"a\":\"\xe5\xa3\xb0\"}\r\n";
        let (address, thread) = inbox(b":1\r\n", asked.len());
        publish(address, "task_response:a-b", "{\"a\":\"声\"}").unwrap();
        assert_eq!(thread.join().unwrap(), asked);
    }

    #[test]
    fn a_refusal_of_the_inbox_is_an_error_in_words() {
        for (answer, why) in [
            (&b"-ERR unknown command\r\n"[..], "unknown command"),
            (b"+OK\r\n", "an answer that PUBLISH has not"),
            (b"", ""),
        ] {
            let (address, thread) = inbox(answer, 1);
            let error = publish(address, "c", "{}").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            thread.join().unwrap();
        }
    }

    #[test]
    fn the_tune_is_a_whole_wav_of_at_least_three_chunks() {
        for text in ["", "a", "Hello", "こんにちは、世界", &"long ".repeat(10_000)] {
            let wav = wav(text);
            let word = |at: usize| u32::from_le_bytes(wav[at..at + 4].try_into().unwrap()) as usize;
            assert_eq!(
                (&wav[..4], &wav[8..16], &wav[36..40]),
                (&b"RIFF"[..], &b"WAVEfmt "[..], &b"data"[..])
            );
            assert_eq!(
                (word(4), word(24), word(28), word(40)),
                (wav.len() - 8, 24_000, 48_000, wav.len() - 44)
            );
            assert!(wav.len() > 2 * 65_536, "{} bytes", wav.len());
            let samples = wav[44..]
                .chunks_exact(2)
                .map(|pair| i16::from_le_bytes([pair[0], pair[1]]).unsigned_abs());
            let loudest = samples.max().unwrap();
            assert!((5_000..32_000).contains(&loudest), "{loudest}");
        }
        assert_eq!(wav("same"), wav("same"));
        assert_ne!(tune("Hello"), tune("World"));
    }

    #[test]
    fn the_welcome_names_an_address_that_can_be_opened() {
        for (listen, shown) in [
            ("0.0.0.0:8000", "http://localhost:8000/ "),
            ("127.0.0.1:81", "http://localhost:81/ "),
            ("192.0.2.7:8000", "http://192.0.2.7:8000/ "),
            ("[::]:8000", "http://[::1]:8000/ "),
            ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000/ "),
        ] {
            let text = welcome(listen.parse().unwrap());
            assert!(text.contains(shown), "{text}");
        }
    }
}
