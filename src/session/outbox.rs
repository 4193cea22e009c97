//! What is about to be said on a WebSocket of ours: frames, and at most one chunk of a file between them.
//!
//! ```text
//!   before: bytes ──► chunk: a range of the file ──► after: bytes
//! ```
//!
//! *Wire order is queue order.* `after` holds what came up while a chunk was under way (a pong, a goodbye): it waits for the
//! chunk's end, because a chunk is the payload of a frame whose head is in `before`. The head leaves with `MSG_MORE`, so that
//! it travels with the first bytes of its payload.

use crate::net::{AudioFile, Conn, Io};
use std::io::ErrorKind;

/// See the top of this file. Owns no memory while it is empty.
#[derive(Debug, Default)]
pub struct Outbox(Option<Box<Load>>);

#[derive(Debug, Default)]
struct Load {
    before: Vec<u8>,
    sent: usize,
    chunk_offset: u64,
    chunk_left: u32,
    after: Vec<u8>,
}

/// What a flush did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// The socket is full, and something is left; else the outbox is empty.
    pub is_blocked: bool,
    pub moved: usize,
}

/// Who is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    Client,
    /// The file has fewer bytes than it had.
    File,
}

impl Outbox {
    /// Appends whole frames, or nothing.
    pub fn push(&mut self, frames: &[u8]) {
        if frames.is_empty() {
            return;
        }
        let load = self.0.get_or_insert_default();
        let last = if load.chunk_left > 0 { &mut load.after } else { &mut load.before };
        last.extend_from_slice(frames);
    }

    /// Appends the head of a frame and, as its payload, a range of the file.
    ///
    /// # Panics
    /// When another chunk is in the outbox.
    pub fn push_chunk(&mut self, head: &[u8], offset: u64, length: u32) {
        let load = self.0.get_or_insert_default();
        assert!(load.chunk_left == 0, "one chunk at a time");
        load.before.extend_from_slice(head);
        (load.chunk_offset, load.chunk_left) = (offset, length);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes in memory.
    pub fn held_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |load| load.before.len() - load.sent + load.after.len())
    }

    /// Sends as much as the socket takes. `file` is where the chunk comes from.
    pub fn flush(&mut self, sink: &mut Conn, file: Option<&AudioFile>) -> Result<Flushed, Lost> {
        let mut moved = 0;
        while let Some(load) = &mut self.0 {
            match load.send(sink, file)? {
                Sent::Some(n) => moved += n,
                Sent::Blocked => return Ok(Flushed { is_blocked: true, moved }),
                Sent::All => self.0 = None,
            }
        }
        Ok(Flushed { is_blocked: false, moved })
    }
}

/// What one call did.
enum Sent {
    Some(usize),
    Blocked,
    /// There was nothing left.
    All,
}

impl Load {
    fn send(&mut self, sink: &mut Conn, file: Option<&AudioFile>) -> Result<Sent, Lost> {
        if self.sent == self.before.len() && self.chunk_left == 0 {
            (self.before, self.sent) = (std::mem::take(&mut self.after), 0);
        }
        if self.sent < self.before.len() {
            let bytes = &self.before[self.sent..];
            let io = if self.chunk_left > 0 { sink.write_more(bytes) } else { sink.write(bytes) };
            let Io::Moved(n) = io.map_err(|_| Lost::Client)? else { return Ok(Sent::Blocked) };
            self.sent += n;
            return Ok(Sent::Some(n));
        }
        if self.chunk_left == 0 {
            return Ok(Sent::All);
        }
        let Some(file) = file else { return Err(Lost::File) };
        match sink.send_file(file, self.chunk_offset, self.chunk_left as usize) {
            Ok(Io::Moved(n)) => {
                self.chunk_offset += n as u64;
                self.chunk_left -= n as u32;
                Ok(Sent::Some(n))
            }
            Ok(_) => Ok(Sent::Blocked),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(Lost::File),
            Err(_) => Err(Lost::Client),
        }
    }
}
