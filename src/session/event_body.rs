//! Events as the content of a response: `GET /events` and `/events/frames`, Server-Sent Events.
//!
//! ```text
//!   what is there: head of a chunk, the event, end of line ─► the next one ─► … ─► last chunk
//! ```
//!
//! What is sent comes from [`Watch`](crate::service::watch::Watch), one snapshot at a time, or from
//! [`Taps`](crate::service::taps::Taps), as many lines at a time as wait. Where frames are rare, a
//! comment now and then keeps proxies from closing the stream, and shows a watcher that is gone.

#![expect(clippy::indexing_slicing, reason = "positions are checked against the same buffer")]

use super::content::{Framing, SendError, Sent, Unsent};
use super::{Context, Identity, tap};
use crate::base::moment::Moment;
use crate::net::Conn;
use crate::service::taps::TapFilter;
use crate::service::watch::SentSnapshot;
use std::time::Duration;

/// Sent first: how soon a browser that lost the connection tries again.
const PREAMBLE: &[u8] = b"retry: 1000\n\n";

/// A comment, which every reader of events skips.
const HEARTBEAT: &[u8] = b":\n\n";

/// Sent when nothing else was for this long.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

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
    /// Bytes in front of the event.
    front: Unsent,
    /// The event that is being sent, and how much of it has been.
    event: Option<(SentSnapshot, usize)>,
    /// Bytes of the framing behind the event that have to be sent.
    behind: &'static [u8],
    /// The number of the last snapshot.
    seen: u64,
    /// When frames, or a comment in their place, were last sent.
    sent_at: Moment,
    /// When the comment is due, or has to be thought of again.
    beat_at: Moment,
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
                tap::set_payload(cx.shows_payload());
            }
        }
        let mut front = framing.chunk_head(PREAMBLE.len() as u64);
        front.extend_from_slice(PREAMBLE);
        front.extend_from_slice(framing.chunk_end());
        let front = Unsent::new(front);
        EventBody {
            is_tap,
            framing,
            front,
            event: None,
            behind: b"",
            seen: 0,
            sent_at: cx.now,
            beat_at: cx.now + HEARTBEAT_INTERVAL,
            is_ending: false,
        }
    }

    /// When it goes on even if nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        (self.is_tap && !self.is_ending).then_some(self.beat_at)
    }

    /// It watches no longer.
    pub fn release(&self, who: &Identity, cx: &mut Context) {
        if !self.is_tap {
            return cx.watch.leave(who.id());
        }
        cx.taps.leave(who.id());
        tap::set_payload(cx.shows_payload());
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
        self.front.own_bytes()
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
            if !self.front.is_empty() {
                return self.front.send(downstream, most).map(Some);
            }
            if let Some((event, sent)) = &mut self.event {
                let rest = &event.bytes()[*sent..];
                if rest.is_empty() {
                    self.event = None;
                    self.behind = self.framing.chunk_end();
                    continue;
                }
                let outcome = Sent::by(downstream.write(&rest[..rest.len().min(most)]))?;
                *sent += outcome.bytes();
                return Ok(Some(outcome));
            }
            if !self.behind.is_empty() {
                let part = &self.behind[..self.behind.len().min(most)];
                let sent = Sent::by(downstream.write(part))?;
                self.behind = &self.behind[sent.bytes()..];
                return Ok(Some(sent));
            }
            if self.is_gone(downstream, cx) {
                return Err(SendError::Client);
            }
            if !self.take_next(who, cx) {
                return Ok((!self.is_ending).then_some(Sent::Waiting));
            }
        }
    }

    /// Whether the watcher's host has acknowledged nothing of what was sent last for
    /// `write_timeout`. No comment is sent to one that still owes that.
    fn is_gone(&mut self, downstream: &Conn, cx: &Context) -> bool {
        if !self.is_tap || cx.now < self.beat_at {
            return false;
        }
        if downstream.unacknowledged().is_none_or(|bytes| bytes == 0) {
            return false;
        }
        self.beat_at = cx.now + HEARTBEAT_INTERVAL;
        cx.settings.write_timeout.is_some_and(|timeout| self.sent_at + timeout <= cx.now)
    }

    /// Goes on with the next event, or with the end. False: there is neither, or all was sent.
    fn take_next(&mut self, who: &Identity, cx: &mut Context) -> bool {
        if self.is_ending {
            return false;
        }
        if cx.watch.is_over() {
            self.is_ending = true;
            self.behind = self.framing.last_chunk();
            return true;
        }
        if self.is_tap {
            let lines = match cx.taps.take(who.id()) {
                Some(lines) => lines,
                None if self.beat_at <= cx.now => HEARTBEAT.to_vec(),
                None => return false,
            };
            self.sent_at = cx.now;
            self.beat_at = cx.now + HEARTBEAT_INTERVAL;
            let mut bytes = self.framing.chunk_head(lines.len() as u64);
            bytes.extend(lines);
            bytes.extend_from_slice(self.framing.chunk_end());
            self.front = Unsent::new(bytes);
            return true;
        }
        let Some(event) = cx.watch.newer_than(self.seen) else { return false };
        self.seen = event.number();
        self.front = Unsent::new(self.framing.chunk_head(event.bytes().len() as u64));
        self.event = Some((event, 0));
        true
    }
}
