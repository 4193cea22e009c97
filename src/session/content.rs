//! What the contents of responses have in common: how the client learns where one ends
//! (RFC 9112 §7.1), and what came of sending a part of it.

#![expect(clippy::indexing_slicing, reason = "`sent` never exceeds the length")]

use crate::net::{Conn, Io};
use crate::proto::http::Form;
use std::io;

/// How the client learns where the content ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    UntilEnd,
}

/// What came of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The socket took this many bytes.
    Moved(usize),
    /// The socket is full.
    Blocked,
    /// A background thread is reading.
    Reading,
    /// There is no more for now.
    Waiting,
}

/// Why the rest cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The client is gone.
    Client,
    /// The file has become shorter, or was written to though it was finished.
    Changed,
    /// The file cannot be read.
    Unreadable,
    /// Audio that grew does not grow any more, though it is not complete, for this reason.
    Incomplete(&'static str),
    /// Its task was stopped.
    Stopped,
}

/// Bytes of which a part has been sent.
#[derive(Debug, Default)]
pub struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Framing {
    /// That of a response in this form: HTTP/1.0 knows no chunks.
    pub fn of(form: Form) -> Framing {
        if form.minor_version > 0 { Framing::Chunked } else { Framing::UntilEnd }
    }

    /// What goes in front of a chunk of `length` bytes.
    pub fn chunk_head(self, length: u64) -> Vec<u8> {
        match self {
            Framing::Chunked => format!("{length:x}\r\n").into_bytes(),
            Framing::UntilEnd => Vec::new(),
        }
    }

    /// What follows each chunk.
    pub fn chunk_end(self) -> &'static [u8] {
        if self == Framing::Chunked { b"\r\n" } else { b"" }
    }

    /// What follows the last chunk.
    pub fn last_chunk(self) -> &'static [u8] {
        if self == Framing::Chunked { b"0\r\n\r\n" } else { b"" }
    }
}

impl Sent {
    /// The outcome of a write.
    ///
    /// # Errors
    /// The client is gone.
    pub fn by(write: io::Result<Io>) -> Result<Sent, SendError> {
        match write {
            Ok(Io::Moved(n)) => Ok(Sent::Moved(n)),
            Ok(_) => Ok(Sent::Blocked),
            Err(_) => Err(SendError::Client),
        }
    }

    /// How many bytes the socket took.
    pub fn bytes(self) -> usize {
        if let Sent::Moved(n) = self { n } else { 0 }
    }
}

impl Unsent {
    /// All of `bytes` is still to be sent.
    pub fn new(bytes: Vec<u8>) -> Unsent {
        Unsent { bytes, sent: 0 }
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Sends at most `most` bytes.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send(&mut self, downstream: &mut Conn, most: usize) -> Result<Sent, SendError> {
        let write = downstream.write(self.next(most));
        self.note(write)
    }

    /// Sends at most `most` bytes, which may wait for those that are written next.
    ///
    /// # Errors
    /// The client is gone.
    pub fn send_with_next(
        &mut self,
        downstream: &mut Conn,
        most: usize,
    ) -> Result<Sent, SendError> {
        let write = downstream.write_more(self.next(most));
        self.note(write)
    }

    fn next(&self, most: usize) -> &[u8] {
        &self.bytes[self.sent..self.bytes.len().min(self.sent.saturating_add(most))]
    }

    fn note(&mut self, write: io::Result<Io>) -> Result<Sent, SendError> {
        let sent = Sent::by(write)?;
        self.sent += sent.bytes();
        Ok(sent)
    }

    /// Bytes of memory.
    pub fn own_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Ready;
    use crate::net::testing::SlowSocket;

    #[test]
    fn no_more_is_sent_than_asked_for() {
        let bytes = (0..100).collect::<Vec<u8>>();
        for (room, most) in [(1000, 7), (5, 7), (7, 7), (1000, 1000), (1000, usize::MAX)] {
            let (socket, taken) = SlowSocket::open(room);
            let mut conn = Conn::accepted(socket);
            let mut unsent = Unsent::new(bytes.clone());
            while !unsent.is_empty() {
                let is_last = unsent.next(most).len() < most;
                let sent = match is_last {
                    true => unsent.send(&mut conn, most),
                    false => unsent.send_with_next(&mut conn, most),
                };
                assert!(sent.unwrap().bytes() <= room.min(most), "{room} {most}");
                conn.handle_ready(Ready { writable: true, ..Ready::default() });
            }
            assert_eq!(*taken.borrow(), bytes, "{room} {most}");
        }
    }

    #[test]
    fn chunks_are_framed_for_clients_that_know_them() {
        let framed = |framing: Framing| {
            let (head, end) = (framing.chunk_head(26), framing.chunk_end());
            [&head[..], b"(26)", end, framing.last_chunk()].concat()
        };
        assert_eq!(framed(Framing::Chunked), b"1a\r\n(26)\r\n0\r\n\r\n");
        assert_eq!(framed(Framing::UntilEnd), b"(26)");
    }
}
