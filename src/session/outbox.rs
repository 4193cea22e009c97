//! What is about to be said on a WebSocket of ours: frames, and at most one chunk of a file between them.
//!
//! ```text
//!   before: bytes ──► chunk: a range of the file ──► after: bytes
//! ```
//!
//! *Wire order is queue order.* `after` holds what came up while a chunk was under way (a pong, a goodbye): it waits for the
//! chunk's end, because a chunk is the payload of a frame whose head is in `before`. The head leaves with `MSG_MORE`, so that
//! it travels with the first bytes of its payload.

use crate::net::{Conn, Io, OpenFile};
use crate::proto::ws::{FrameHead, Opcode};
use std::io::ErrorKind;

/// Room for frames that is kept from one chunk to the next: enough for what announces a chunk, not for a long answer.
const KEPT_BYTES: usize = 1024;

/// See the top of this file.
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
        if !frames.is_empty() {
            self.last().extend_from_slice(frames);
        }
    }

    /// Appends a text message.
    pub fn push_text(&mut self, text: &str) {
        let last = self.last();
        FrameHead::of_message(Opcode::Text, text.len() as u64).write(last);
        last.extend_from_slice(text.as_bytes());
    }

    /// Appends a binary message: a range of the file.
    ///
    /// # Panics
    /// When another chunk is in the outbox.
    pub fn push_chunk(&mut self, offset: u64, length: u32) {
        assert!(self.chunk_left == 0, "one chunk at a time");
        FrameHead::of_message(Opcode::Binary, u64::from(length)).write(&mut self.before);
        (self.chunk_offset, self.chunk_left) = (offset, length);
    }

    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.chunk_left == 0 && self.after.is_empty()
    }

    /// Some of a chunk is still to be sent.
    pub fn has_chunk(&self) -> bool {
        self.chunk_left > 0
    }

    /// Bytes in memory.
    pub fn held_bytes(&self) -> usize {
        self.before.len() - self.sent + self.after.len()
    }

    /// Sends as much as the socket takes. `file` is where the chunk comes from.
    pub fn flush(&mut self, sink: &mut Conn, file: Option<&OpenFile>) -> Result<Flushed, Lost> {
        let mut moved = 0;
        while !self.is_empty() {
            match self.send(sink, file)? {
                Some(n) => moved += n,
                None => return Ok(Flushed { is_blocked: true, moved }),
            }
        }
        Ok(Flushed { is_blocked: false, moved })
    }

    /// Where the next frame goes.
    fn last(&mut self) -> &mut Vec<u8> {
        if self.chunk_left > 0 { &mut self.after } else { &mut self.before }
    }

    /// One call; it is not empty. `None`: the socket is full.
    fn send(&mut self, sink: &mut Conn, file: Option<&OpenFile>) -> Result<Option<usize>, Lost> {
        if self.before.is_empty() && self.chunk_left == 0 {
            std::mem::swap(&mut self.before, &mut self.after);
        }
        if self.sent < self.before.len() {
            let bytes = &self.before[self.sent..];
            let io = if self.chunk_left > 0 { sink.write_more(bytes) } else { sink.write(bytes) };
            let Io::Moved(n) = io.map_err(|_| Lost::Client)? else { return Ok(None) };
            self.sent += n;
            if self.sent == self.before.len() {
                self.before.clear();
                self.before.shrink_to(KEPT_BYTES);
                self.sent = 0;
            }
            return Ok(Some(n));
        }
        let Some(file) = file else { return Err(Lost::File) };
        match sink.send_file(file, self.chunk_offset, self.chunk_left as usize) {
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
