//! Events as the content of a response: `GET /events` and `/events/frames`, Server-Sent Events.
//!
//! ```text
//!   what is there: head of a chunk, the event, end of line ─► the next one ─► … ─► last chunk
//! ```
//!
//! What is sent comes from [`Watch`](crate::service::watch::Watch), one snapshot at a time, or from
//! [`Taps`](crate::service::taps::Taps), as many lines at a time as wait.

#![expect(clippy::indexing_slicing, reason = "positions are checked against the same buffer")]

use super::file_body::{SendError, Sent};
use super::stream_body::Framing;
use super::{Context, Identity, tap};
use crate::net::{Conn, Io};
use crate::service::taps::TapFilter;
use crate::service::watch::SentSnapshot;

/// Sent first: how soon a browser that lost the connection tries again.
const PREAMBLE: &[u8] = b"retry: 1000\n\n";

/// What is sent.
pub enum Followed {
    /// The gateway as a whole.
    Snapshots,
    /// Frames and steps of these connections.
    Frames(TapFilter),
}

/// A watcher of the gateway.
pub struct EventBody {
    is_tap: bool,
    framing: Framing,
    /// Bytes in front of the event, and how many of them have been sent.
    front: (Vec<u8>, usize),
    /// The event that is being sent, and how much of it has been.
    event: Option<(SentSnapshot, usize)>,
    /// Bytes of the framing behind the event that have to be sent.
    behind: &'static [u8],
    /// The number of the last snapshot.
    seen: u64,
    is_ending: bool,
}

impl EventBody {
    /// Counts as a watcher until [`EventBody::release`].
    pub fn begin(
        followed: Followed,
        framing: Framing,
        who: &Identity,
        cx: &mut Context,
    ) -> EventBody {
        let is_tap = matches!(followed, Followed::Frames(_));
        match followed {
            Followed::Snapshots => cx.watch.enter(who.id()),
            Followed::Frames(filter) => {
                cx.taps.enter(who.id(), filter);
                tap::begin();
            }
        }
        let mut body = EventBody {
            is_tap,
            framing,
            front: (Vec::new(), 0),
            event: None,
            behind: b"",
            seen: 0,
            is_ending: false,
        };
        body.front.0.extend(body.chunk_head(PREAMBLE.len()));
        body.front.0.extend_from_slice(PREAMBLE);
        body.front.0.extend_from_slice(body.chunk_end());
        body
    }

    /// It watches no longer.
    pub fn release(&self, who: &Identity, cx: &mut Context) {
        if !self.is_tap {
            return cx.watch.leave(who.id());
        }
        cx.taps.leave(who.id());
        if cx.taps.is_empty() {
            tap::end();
        }
    }

    /// No event follows the one that is being sent.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// Bytes of its own memory.
    pub fn own_bytes(&self) -> usize {
        self.front.0.capacity()
    }

    fn chunk_head(&self, length: usize) -> Vec<u8> {
        match self.framing {
            Framing::Chunked => format!("{length:x}\r\n").into_bytes(),
            Framing::UntilEnd => Vec::new(),
        }
    }

    fn chunk_end(&self) -> &'static [u8] {
        if self.framing == Framing::Chunked { b"\r\n" } else { b"" }
    }

    /// Sends at most `most` bytes; `None` once everything has been sent.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn send(
        &mut self,
        downstream: &mut Conn,
        most: usize,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<Option<Sent>, SendError> {
        loop {
            let (bytes, sent) = &mut self.front;
            if *sent < bytes.len() {
                let n = written(downstream, &bytes[*sent..], most)?;
                *sent += n.unwrap_or_default();
                return Ok(Some(n.map_or(Sent::Blocked, Sent::Moved)));
            }
            if let Some((event, sent)) = &mut self.event {
                let rest = &event.bytes()[*sent..];
                if rest.is_empty() {
                    self.event = None;
                    self.behind = self.chunk_end();
                    continue;
                }
                let n = written(downstream, rest, most)?;
                *sent += n.unwrap_or_default();
                return Ok(Some(n.map_or(Sent::Blocked, Sent::Moved)));
            }
            if !self.behind.is_empty() {
                let n = written(downstream, self.behind, most)?;
                self.behind = &self.behind[n.unwrap_or_default()..];
                return Ok(Some(n.map_or(Sent::Blocked, Sent::Moved)));
            }
            if !self.take_next(who, cx) {
                return Ok((!self.is_ending).then_some(Sent::Waiting));
            }
        }
    }

    /// Goes on with the next event, or with the end. False: there is neither, or all was sent.
    fn take_next(&mut self, who: &Identity, cx: &mut Context) -> bool {
        if self.is_ending {
            return false;
        }
        if cx.watch.is_over() {
            self.is_ending = true;
            self.behind = if self.framing == Framing::Chunked { b"0\r\n\r\n" } else { b"" };
            return true;
        }
        if self.is_tap {
            let Some(lines) = cx.taps.take(who.id()) else { return false };
            let mut bytes = self.chunk_head(lines.len());
            bytes.extend(lines);
            bytes.extend_from_slice(self.chunk_end());
            self.front = (bytes, 0);
            return true;
        }
        let Some(event) = cx.watch.newer_than(self.seen) else { return false };
        self.seen = event.number();
        self.front = (self.chunk_head(event.bytes().len()), 0);
        self.event = Some((event, 0));
        true
    }
}

/// Writes; `None`: the socket takes nothing.
fn written(downstream: &mut Conn, bytes: &[u8], most: usize) -> Result<Option<usize>, SendError> {
    match downstream.write(&bytes[..bytes.len().min(most)]) {
        Ok(Io::Moved(n)) => Ok(Some(n)),
        Ok(_) => Ok(None),
        Err(_) => Err(SendError::Client),
    }
}
