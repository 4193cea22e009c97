//! Audio that still grows, as the content of a response (RFC 9112 §7.1).
//!
//! ```text
//!   what is there: head of a chunk, bytes of the file, end of line ─► more ─► … ─► last chunk
//!                                    └── it stalls, is changed: the connection breaks off
//! ```
//!
//! A client of HTTP/1.0 knows no chunks: it gets the bytes, and the connection ends behind them.

use super::content::{Framing, SendError, Sent, Unsent};
use super::file_body::{FileAge, FileBody};
use super::{Context, Identity};
use crate::net::files::FileBytes;
use crate::net::{Conn, OpenFile};
use crate::service::streams::{StreamFailure, StreamId, StreamVerdict};
use std::io;

/// A stream that is being sent, from its first byte on.
pub struct StreamBody {
    stream: StreamId,
    framing: Framing,
    /// Bytes of the framing that are sent next.
    frame: Unsent,
    /// The bytes of the file behind those.
    part: FileBody,
    /// Bytes of the stream up to the end of that part.
    end: u64,
    state: PartState,
    waits_since: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartState {
    /// Nothing of it is being sent.
    Between,
    InPart,
    /// Only the end of the framing is left.
    Ending,
}

impl StreamBody {
    /// All of a stream. Counts as one of its readers until [`StreamBody::release`].
    pub fn begin(
        stream: StreamId,
        file: OpenFile,
        framing: Framing,
        cx: &mut Context,
    ) -> StreamBody {
        cx.streams.enter(stream);
        StreamBody {
            stream,
            framing,
            frame: Unsent::default(),
            part: FileBody::new(file, 0..0, FileAge::Growing),
            end: 0,
            state: PartState::Between,
            waits_since: None,
        }
    }

    /// It is not sent any further.
    pub fn release(&self, cx: &mut Context) {
        cx.streams.leave(self.stream);
    }

    /// Bytes of its own memory, those that a background thread is reading included.
    pub fn own_bytes(&self) -> usize {
        self.frame.own_bytes() + self.part.own_bytes()
    }

    /// A background thread has read. Acted on by the next [`StreamBody::send`].
    pub fn handle_read(&mut self, read: io::Result<FileBytes>) {
        self.part.handle_read(read);
    }

    /// Sends at most `most` bytes; `None` once everything has been sent.
    ///
    /// # Errors
    /// If the rest cannot be sent, or there is none although the stream is not complete.
    pub fn send(
        &mut self,
        downstream: &mut Conn,
        most: usize,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<Option<Sent>, SendError> {
        loop {
            if let Some(sent) = self.send_frame(downstream, most)? {
                return Ok(Some(sent));
            }
            match self.state {
                PartState::InPart if !self.part.is_over() => {
                    return self.part.send(downstream, most, who, cx).map(Some);
                }
                PartState::InPart => {
                    self.state = PartState::Between;
                    self.frame = Unsent::new(self.framing.chunk_end().to_vec());
                }
                PartState::Between => {
                    if !self.begin_part(who, cx)? {
                        return Ok(Some(Sent::Waiting));
                    }
                }
                PartState::Ending => return Ok(None),
            }
        }
    }

    /// Goes on with what has come of the stream, or with its end. False: there is neither.
    fn begin_part(&mut self, who: &Identity, cx: &mut Context) -> Result<bool, SendError> {
        let rules = cx.stream_rules();
        // Its task was stopped.
        let stream = cx.streams.stream(self.stream).ok_or(SendError::Stopped)?;
        let length = stream.chunks().length();
        if length > self.end {
            self.part = FileBody::new(stream.file().clone(), self.end..length, FileAge::Growing);
            self.frame = Unsent::new(self.framing.chunk_head(length - self.end));
            (self.end, self.state) = (length, PartState::InPart);
            return Ok(true);
        }
        match stream.verdict(cx.now, &rules) {
            StreamVerdict::Wait => {
                let (id, since) = (self.stream, self.waits_since);
                self.waits_since = cx.streams.wait(cx.now, id, who.id(), since, &rules);
                Ok(false)
            }
            StreamVerdict::Complete => {
                self.frame = Unsent::new(self.framing.last_chunk().to_vec());
                self.state = PartState::Ending;
                Ok(true)
            }
            StreamVerdict::Failed(StreamFailure::Unreadable) => Err(SendError::Unreadable),
            StreamVerdict::Failed(StreamFailure::Changed) => Err(SendError::Changed),
            StreamVerdict::Failed(failure) => Err(SendError::Incomplete(failure.words())),
        }
    }

    /// Sends what is left of the framing. `None`: nothing is.
    fn send_frame(
        &mut self,
        downstream: &mut Conn,
        most: usize,
    ) -> Result<Option<Sent>, SendError> {
        if self.frame.is_empty() {
            return Ok(None);
        }
        // The head of a chunk travels with its first bytes.
        match self.state {
            PartState::InPart => self.frame.send_with_next(downstream, most),
            PartState::Between | PartState::Ending => self.frame.send(downstream, most),
        }
        .map(Some)
    }
}
