//! The bare way of speech: what a worker sends for a task, or appends to a file, goes to the client
//! of that task from a file.
//!
//! The same calls as any such program must make: `recv` and a write, or inotify and `fstat`; the
//! head of the client's frames with `MSG_MORE`; `sendfile`. A worker's announcement is searched for
//! the task and nothing else, and a client that does not keep up ends the program: that leaves out
//! what a real service must do, and so it is a floor.

use crate::Fault;
use crate::net::{self, Io, Poll};
use crate::wire;
use rustix::event::epoll::EventFlags;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::HashMap;
use std::io::Write;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

const LISTENER: u64 = u64::MAX;
const NOTIFIER: u64 = u64::MAX - 1;
const READ_BYTES: usize = 256 * 1024;
const NOTES_BYTES: usize = 16 * 1024;
/// How every announcement of the load generator begins, and what follows it.
pub const BEFORE_TASK: &str = r#"{"type":"SPEECH_CHUNK","sessionId":""#;
const TASK_BYTES: usize = 36;

/// What it serves, and from where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect, and workers.
    pub listen: SocketAddr,
    /// Where the audio is.
    pub source: Source,
}

/// Where the audio is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Workers send it; it is kept in memory.
    Memory,
    /// Workers send it; it is kept in unlinked files of this folder.
    Spool(PathBuf),
    /// Workers append it to files of this folder, which have the names of their tasks.
    Files(PathBuf),
}

/// Serves until the process ends.
pub fn run(settings: &Settings) -> Result<(), Fault> {
    let listener =
        net::listen(settings.listen).map_err(|error| format!("cannot listen: {error}"))?;
    serve(settings.source.clone(), &listener)
}

/// Serves on a socket that listens, until the process ends.
pub fn serve(source: Source, listener: &TcpListener) -> Result<(), Fault> {
    net::raise_descriptor_limit();
    let broken = |error: std::io::Error| error.to_string();
    let mut poll = Poll::new(256).map_err(broken)?;
    poll.add(listener, LISTENER, EventFlags::IN).map_err(broken)?;
    let notifier = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
        .map_err(|error| format!("no inotify: {error}"))?;
    poll.add(&notifier, NOTIFIER, EventFlags::IN).map_err(broken)?;
    let mut service = Service {
        source,
        notifier,
        buffer: vec![0; READ_BYTES],
        head: Vec::new(),
        peers: Vec::new(),
        by_task: HashMap::new(),
        by_watch: HashMap::new(),
    };
    loop {
        let count = poll.wait(None).map_err(broken)?;
        for index in 0..count {
            match poll.event(index) {
                (LISTENER, _) => service.accept(listener, &poll)?,
                (NOTIFIER, _) => service.read_notes()?,
                (slot, _) => service.read(slot as usize)?,
            }
        }
    }
}

struct Service {
    source: Source,
    notifier: OwnedFd,
    buffer: Vec<u8>,
    head: Vec<u8>,
    peers: Vec<Option<Peer>>,
    /// The clients' slots.
    by_task: HashMap<Box<[u8]>, usize>,
    by_watch: HashMap<i32, usize>,
}

struct Peer {
    socket: OwnedFd,
    is_open: bool,
    /// The beginning of a message.
    held: Vec<u8>,
    /// What a client hears.
    speech: Option<Speech>,
}

struct Speech {
    task: String,
    file: OwnedFd,
    chunks: u64,
    /// Bytes that were sent.
    sent: u64,
}

impl Service {
    fn accept(&mut self, listener: &TcpListener, poll: &Poll) -> Result<(), Fault> {
        while let Some(socket) = net::accept(listener).map_err(|error| error.to_string())? {
            poll.add(&socket, self.peers.len() as u64, EventFlags::IN)
                .map_err(|error| error.to_string())?;
            let (held, speech) = (Vec::new(), None);
            self.peers.push(Some(Peer { socket, is_open: false, held, speech }));
        }
        Ok(())
    }

    fn read(&mut self, slot: usize) -> Result<(), Fault> {
        let Some(peer) = self.peers[slot].as_mut() else { return Ok(()) };
        let count = match net::recv(&peer.socket, &mut self.buffer) {
            Ok(Io::Moved(count)) => count,
            Ok(Io::Blocked) => return Ok(()),
            Ok(Io::Ended) | Err(_) => {
                self.peers[slot] = None;
                return Ok(());
            }
        };
        if !peer.is_open {
            return self.open(slot, count);
        }
        let mut held = std::mem::take(&mut peer.held);
        if held.is_empty() {
            let mut buffer = std::mem::take(&mut self.buffer);
            let used = self.pass_on(&mut buffer[..count])?;
            held.extend_from_slice(&buffer[used..count]);
            self.buffer = buffer;
        } else {
            held.extend_from_slice(&self.buffer[..count]);
            let used = self.pass_on(&mut held)?;
            held.drain(..used);
        }
        if let Some(peer) = self.peers[slot].as_mut() {
            peer.held = held;
        }
        Ok(())
    }

    /// Answers the request of a client or a worker.
    fn open(&mut self, slot: usize, count: usize) -> Result<(), Fault> {
        // Over loopback a request arrives in one piece.
        let request = wire::parse_request(&self.buffer[..count])?.ok_or("half a request")?;
        let speech = match request.target.strip_prefix("/ws/output/") {
            Some(task) => Some(self.begin(slot, task)?),
            None => None,
        };
        let Some(peer) = self.peers[slot].as_mut() else { return Ok(()) };
        (peer.is_open, peer.speech) = (true, speech);
        let answer = wire::upgrade_answer(&request.key);
        net::send(&peer.socket, &answer).map(drop).map_err(|error| error.to_string())
    }

    fn begin(&mut self, slot: usize, task: &str) -> Result<Speech, Fault> {
        let broken = |error: Errno| format!("no file: {error}");
        let file = match &self.source {
            Source::Memory => rustix::fs::memfd_create("speech", MemfdFlags::CLOEXEC),
            Source::Spool(folder) => {
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
            }
            Source::Files(folder) => {
                let path = folder.join(task);
                let watch = inotify::add_watch(&self.notifier, &path, WatchFlags::MODIFY)
                    .map_err(broken)?;
                self.by_watch.insert(watch, slot);
                rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            }
        };
        self.by_task.insert(task.as_bytes().into(), slot);
        Ok(Speech { task: task.to_owned(), file: file.map_err(broken)?, chunks: 0, sent: 0 })
    }

    fn read_notes(&mut self) -> Result<(), Fault> {
        let mut space = [const { MaybeUninit::uninit() }; NOTES_BYTES];
        let mut grown = Vec::new();
        let mut notes = Reader::new(self.notifier.as_fd(), &mut space);
        loop {
            match notes.next() {
                Ok(note) => grown.extend(self.by_watch.get(&note.wd()).copied()),
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(format!("no inotify: {error}")),
            }
            if notes.is_buffer_empty() {
                break;
            }
        }
        for slot in grown {
            let Some(peer) = self.peers[slot].as_mut() else { continue };
            let Some(speech) = &peer.speech else { continue };
            let state = rustix::fs::fstat(&speech.file).map_err(|error| error.to_string())?;
            if state.st_size as u64 > speech.sent {
                peer.send_until(state.st_size as u64, &mut self.head)?;
            }
        }
        Ok(())
    }

    /// Passes on every announcement whose binary message is here too; gives the bytes used.
    fn pass_on(&mut self, bytes: &mut [u8]) -> Result<usize, Fault> {
        let mut used = 0;
        loop {
            let rest = &mut bytes[used..];
            let Some(text) = wire::parse_frame_head(rest) else { return Ok(used) };
            let text_end = text.size + text.payload as usize;
            if text.first != wire::TEXT || rest.len() < text_end {
                return Ok(used);
            }
            let Some(binary) = wire::parse_frame_head(&rest[text_end..]) else { return Ok(used) };
            if binary.first != wire::BINARY {
                // The end of a stream, and the next one of the task.
                used += text_end;
                continue;
            }
            let (from, length) = (text_end + binary.size, binary.payload as usize);
            if rest.len() < from + length {
                return Ok(used);
            }
            wire::apply_mask(&mut rest[text.size..text_end], text.mask.unwrap_or_default());
            wire::apply_mask(&mut rest[from..from + length], binary.mask.unwrap_or_default());
            let (announcement, audio) = (&rest[text.size..text_end], &rest[from..from + length]);
            self.take(announcement, audio)?;
            used += from + length;
        }
    }

    fn take(&mut self, announcement: &[u8], audio: &[u8]) -> Result<(), Fault> {
        let task = announcement.strip_prefix(BEFORE_TASK.as_bytes());
        let task = task.and_then(|rest| rest.get(..TASK_BYTES)).ok_or("no task")?;
        let slot = *self.by_task.get(task).ok_or("no client")?;
        let peer = self.peers[slot].as_mut().ok_or("the client has left")?;
        let speech = peer.speech.as_ref().ok_or("a client without speech")?;
        rustix::io::pwrite(&speech.file, audio, speech.sent).map_err(|error| error.to_string())?;
        let end = speech.sent + audio.len() as u64;
        peer.send_until(end, &mut self.head)
    }
}

impl Peer {
    /// Sends what is in the file up to this byte as one chunk.
    fn send_until(&mut self, end: u64, head: &mut Vec<u8>) -> Result<(), Fault> {
        const TOO_SLOW: &str = "the client is too slow for the floor";
        let speech = self.speech.as_mut().ok_or("a client without speech")?;
        let length = (end - speech.sent) as usize;
        // Room for the head of a short text frame, whose length is known only afterwards.
        head.clear();
        head.extend_from_slice(&[0; 4]);
        write!(
            head,
            r#"{{"type":"audio_chunk","task_id":"{}","chunk_id":{},"total_chunks":null,"offset":{}}}"#,
            speech.task, speech.chunks, speech.sent,
        )
        .map_err(|error| error.to_string())?;
        let text = head.len() - 4;
        let start = if text < 126 {
            head[2..4].copy_from_slice(&[wire::TEXT, text as u8]);
            2
        } else {
            head[..2].copy_from_slice(&[wire::TEXT, 126]);
            head[2..4].copy_from_slice(&(text as u16).to_be_bytes());
            0
        };
        wire::push_frame_head(head, wire::BINARY, length, None);
        let head = &head[start..];
        let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
        if rustix::net::send(&self.socket, head, flags).ok() != Some(head.len()) {
            return Err(TOO_SLOW.into());
        }
        let mut offset = speech.sent;
        let sent = rustix::fs::sendfile(&self.socket, &speech.file, Some(&mut offset), length);
        if sent.ok() != Some(length) {
            return Err(TOO_SLOW.into());
        }
        (speech.sent, speech.chunks) = (end, speech.chunks + 1);
        Ok(())
    }
}
