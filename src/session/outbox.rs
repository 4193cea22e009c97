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
use std::io::{self, ErrorKind};

/// See the top of this file. Owns no memory while it is empty.
#[derive(Debug, Default)]
pub struct Outbox {
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
        let last = if self.chunk_left > 0 { &mut self.after } else { &mut self.before };
        last.extend_from_slice(frames);
    }

    /// Appends the head of a frame and, as its payload, a range of the file.
    ///
    /// # Panics
    /// When another chunk is in the outbox.
    pub fn push_chunk(&mut self, head: &[u8], offset: u64, length: u32) {
        assert!(self.chunk_left == 0, "one chunk at a time");
        self.before.extend_from_slice(head);
        (self.chunk_offset, self.chunk_left) = (offset, length);
    }

    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.chunk_left == 0 && self.after.is_empty()
    }

    /// Bytes in memory.
    pub fn held_bytes(&self) -> usize {
        self.before.len() - self.sent + self.after.len()
    }

    /// Sends as much as the socket takes. `file` is where the chunk comes from.
    pub fn flush(&mut self, sink: &mut Conn, file: Option<&AudioFile>) -> Result<Flushed, Lost> {
        let mut moved = 0;
        loop {
            let wrote = if self.sent < self.before.len() {
                let bytes = &self.before[self.sent..];
                let io = if self.chunk_left > 0 { sink.write_more(bytes) } else { sink.write(bytes) };
                self.note_sent(io.map_err(|_| Lost::Client)?)
            } else if self.chunk_left > 0 {
                let Some(file) = file else { return Err(Lost::File) };
                self.note_chunk(sink.send_file(file, self.chunk_offset, self.chunk_left as usize))?
            } else if !self.after.is_empty() {
                self.before = std::mem::take(&mut self.after);
                continue;
            } else {
                return Ok(Flushed { is_blocked: false, moved });
            };
            match wrote {
                Some(n) => moved += n,
                None => return Ok(Flushed { is_blocked: true, moved }),
            }
        }
    }

    fn note_sent(&mut self, io: Io) -> Option<usize> {
        let Io::Moved(n) = io else { return None };
        self.sent += n;
        if self.sent == self.before.len() {
            (self.before, self.sent) = (Vec::new(), 0);
        }
        Some(n)
    }

    fn note_chunk(&mut self, io: io::Result<Io>) -> Result<Option<usize>, Lost> {
        match io {
            Ok(Io::Moved(n)) => {
                self.chunk_offset += n as u64;
                self.chunk_left -= n as u32;
                Ok(Some(n))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(Lost::File),
            Err(_) => Err(Lost::Client),
        }
    }
}
