//! The user-space copy loop: a file goes out as result delivery's frames, read into a buffer and
//! written from it.
//!
//! Any message from a client requests the file once more. As many chunks as fit the buffer, with
//! their heads, leave in one `send`: no copy loop needs fewer calls.

use crate::Fault;
use crate::load::results;
use crate::net::{self, Io, Poll};
use crate::wire;
use rustix::event::epoll::EventFlags;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const LISTENER: u64 = u64::MAX;
/// Space for the text messages and frame heads of one `send`.
const HEADS_ROOM: usize = 64 * 1024;

#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub file: PathBuf,
    /// Payload bytes per `send`; at least one chunk.
    pub buffer: usize,
    /// Payload bytes of one binary frame.
    pub chunk: usize,
}

/// Serves until the process ends.
pub fn run(settings: &Settings) -> Result<(), Fault> {
    net::raise_descriptor_limit();
    let shown = settings.file.display();
    let file =
        File::open(&settings.file).map_err(|error| format!("cannot open {shown}: {error}"))?;
    let length = file.metadata().map_err(|error| format!("cannot read {shown}: {error}"))?.len();
    let listener =
        net::listen(settings.listen).map_err(|error| format!("cannot listen: {error}"))?;
    let mut poll = Poll::new(256).map_err(|error| error.to_string())?;
    poll.add(&listener, LISTENER, EventFlags::IN).map_err(|error| error.to_string())?;
    let room = settings.buffer + settings.chunk + HEADS_ROOM;
    let mut source = Source {
        file,
        length,
        chunk: settings.chunk,
        buffer: settings.buffer,
        out: vec![0; room].into_boxed_slice(),
        filled: 0,
        head: Vec::new(),
    };
    let mut clients: Vec<Option<Client>> = Vec::new();
    loop {
        let count = poll.wait(None).map_err(|error| error.to_string())?;
        for index in 0..count {
            let (token, flags) = poll.event(index);
            if token == LISTENER {
                while let Some(socket) =
                    net::accept(&listener).map_err(|error| error.to_string())?
                {
                    let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                    poll.add(&socket, clients.len() as u64, both)
                        .map_err(|error| error.to_string())?;
                    clients.push(Some(Client {
                        socket,
                        task: String::new(),
                        wanted: 0,
                        next: 0,
                        id: 0,
                        backlog: Vec::new(),
                    }));
                }
                continue;
            }
            let slot = token as usize;
            let alive = match clients[slot].as_mut() {
                Some(client) => {
                    (!flags.contains(EventFlags::IN) || client.listen())
                        && client.serve(&mut source).is_ok()
                }
                None => true,
            };
            if !alive {
                clients[slot] = None;
            }
        }
    }
}

struct Source {
    file: File,
    length: u64,
    chunk: usize,
    buffer: usize,
    /// Never cleared: that would be a second pass over the memory.
    out: Box<[u8]>,
    filled: usize,
    head: Vec<u8>,
}

impl Source {
    fn push_text(&mut self, text: &str) {
        self.head.clear();
        wire::push_frame(&mut self.head, wire::TEXT, text.as_bytes(), None);
        self.push_head();
    }

    fn push_head(&mut self) {
        self.out[self.filled..self.filled + self.head.len()].copy_from_slice(&self.head);
        self.filled += self.head.len();
    }
}

struct Client {
    socket: OwnedFd,
    /// Empty until the upgrade.
    task: String,
    /// Files left to send, including the current one.
    wanted: u64,
    /// The next piece: 0 is the text, then one per chunk, then the end.
    next: u64,
    /// The `result_id` of the next result.
    id: u32,
    backlog: Vec<u8>,
}

impl Client {
    /// Handles input from the client; false when it has left.
    fn listen(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match net::recv(&self.socket, &mut buffer) {
                Ok(Io::Moved(count)) if self.task.is_empty() => {
                    let Ok(Some(request)) = wire::parse_request(&buffer[..count]) else {
                        return false;
                    };
                    self.task = request.target.rsplit('/').next().unwrap_or_default().to_owned();
                    self.backlog = wire::upgrade_answer(&request.key);
                }
                Ok(Io::Moved(_)) => self.wanted += 1,
                Ok(Io::Blocked) => return true,
                Ok(Io::Ended) | Err(_) => return false,
            }
        }
    }

    fn serve(&mut self, source: &mut Source) -> std::io::Result<()> {
        loop {
            if !self.backlog.is_empty() {
                match net::send(&self.socket, &self.backlog)? {
                    Io::Moved(count) => drop(self.backlog.drain(..count)),
                    _ => return Ok(()),
                }
                continue;
            }
            if self.wanted == 0 {
                return Ok(());
            }
            source.filled = 0;
            while source.filled < source.buffer && self.wanted > 0 {
                self.push_next(source)?;
            }
            let sent = match net::send(&self.socket, &source.out[..source.filled])? {
                Io::Moved(count) => count,
                _ => 0,
            };
            self.backlog.extend_from_slice(&source.out[sent..source.filled]);
        }
    }

    fn push_next(&mut self, source: &mut Source) -> std::io::Result<()> {
        let chunks = source.length.div_ceil(source.chunk as u64);
        if self.next == 0 {
            source.push_text(&results::text_message(&self.task, self.id, true, false));
        } else if self.next <= chunks {
            let at = (self.next - 1) * source.chunk as u64;
            let size = (source.length - at).min(source.chunk as u64) as usize;
            source.push_text(&results::chunk_message(&self.task, self.next - 1, chunks));
            source.head.clear();
            wire::push_frame_head(&mut source.head, wire::BINARY, size, None);
            source.push_head();
            let (start, end) = (source.filled, source.filled + size);
            source.file.read_exact_at(&mut source.out[start..end], at)?;
            source.filled = end;
        } else {
            source.push_text(&results::complete_message(&self.task));
            self.next = 0;
            self.id += 1;
            self.wanted -= 1;
            return Ok(());
        }
        self.next += 1;
        Ok(())
    }
}
