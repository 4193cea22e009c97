//! The last bytes, then FIN, then the wait for the client to have them.
//!
//! ```text
//!   last bytes ──► FIN ──► everything is acknowledged, and the client has sent FIN or its Close ──► done
//!       └──────────┴────── no byte taken or acknowledged for the timeout ──► gone
//! ```
//!
//! Closing at once could destroy what was just sent. A socket that is closed with unread input, or that
//! gets some later, answers with RST, and with an RST the kernel drops what it has not sent yet. So
//! everything that the client still sends is read and discarded until it has ended its side.
//!
//! The session counts as ended only here: what a client has not received has not been delivered.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::ended::{Awaited, Detail, Ended, Last};
use super::stall::Stall;
use super::{CloseReason, Context, Drain, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::conduit::{Conduit, Received};
use crate::proto::message::TaskId;
use crate::service::stats::BothWays;
use std::time::Duration;

/// Timeout for the next sign that the client takes what it was sent, where `write_timeout` is off.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);

/// The same while the gateway drains, and for a connection beyond a limit: a client that takes its last
/// bytes is still waited for, one that only fails to close is not.
const BRIEF_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads of bytes that are discarded, in one step; then other sessions have their turn.
const READS_PER_STEP: usize = 16;

/// A session whose last bytes are on their way.
pub struct Linger {
    ended: Box<Ended>,
    last: Vec<u8>,
    sent: usize,
    is_fin_sent: bool,
    /// The client has sent FIN or its Close frame.
    has_answered: bool,
    /// Finds the client's Close frame, where its frames have been followed from the start.
    conduit: Option<Box<Conduit>>,
    stall: Stall,
    is_brief: bool,
    wake_at: Option<Moment>,
}

impl Linger {
    /// Sends the last bytes of a session that has ended, then FIN.
    pub fn phase(mut ended: Box<Ended>, cx: &Context) -> Phase {
        let (last, has_answered, conduit) = match std::mem::replace(&mut ended.last, Last::Dropped)
        {
            Last::Nothing | Last::Dropped => (Vec::new(), true, None),
            Last::Frames(bytes) | Last::Answer(bytes) => (bytes, false, None),
            Last::Fin(Awaited::Fin) => (Vec::new(), false, None),
            Last::Fin(Awaited::Close(conduit)) => (Vec::new(), false, Some(conduit)),
            Last::Fin(Awaited::Nothing) => (Vec::new(), true, None),
        };
        let is_brief = cx.is_draining || matches!(ended.detail, Detail::Refused(_));
        Phase::Linger(Box::new(Linger {
            ended,
            last,
            sent: 0,
            is_fin_sent: false,
            has_answered,
            conduit,
            stall: Stall::new(cx.now),
            is_brief,
            wake_at: None,
        }))
    }

    /// Sends what is left, and FIN behind it. `Err`: the connection is lost.
    fn send(&mut self, downstream: &mut Conn, cx: &Context) -> Result<(), ()> {
        while self.sent < self.last.len() {
            match downstream.write(&self.last[self.sent..]) {
                Ok(Io::Moved(n)) => self.sent += n,
                Ok(_) => return Ok(()),
                Err(_) => return Err(()),
            }
            self.stall.note_progress(cx.now);
        }
        if !self.is_fin_sent && downstream.shutdown_write() {
            self.is_fin_sent = true;
            self.stall.note_progress(cx.now);
        }
        Ok(())
    }

    /// Reads and discards. True: there may be more. `Err`: the connection is lost.
    fn discard(&mut self, downstream: &mut Conn, cx: &mut Context) -> Result<bool, ()> {
        for _ in 0..READS_PER_STEP {
            let had_answered = self.has_answered;
            let read = cx.with_scratch(|scratch, _| {
                let read = downstream.read(scratch);
                if let Ok(Io::Moved(n)) = read {
                    self.follow(&scratch[..n]);
                }
                read
            });
            match read {
                // Its Close frame is the last that matters; an error behind it is not met any more.
                Ok(Io::Moved(_)) if self.has_answered && !had_answered => return Ok(true),
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return Ok(false),
                Ok(Io::Ended) => {
                    self.has_answered = true;
                    return Ok(false);
                }
                Err(_) => return Err(()),
            }
        }
        Ok(true)
    }

    /// Looks for a Close frame in what is discarded.
    fn follow(&mut self, bytes: &[u8]) {
        let Some(conduit) = &mut self.conduit else { return };
        match conduit.handle_bytes(bytes, &mut Vec::new()) {
            Received::Nothing => {}
            Received::Close(_) => {
                self.has_answered = true;
                self.conduit = None;
            }
            // Broken frames: only FIN shows the end.
            Received::Fault(_) => self.conduit = None,
        }
    }

    fn timeout(&self, cx: &Context) -> Option<Duration> {
        let timeout = linger_timeout(cx);
        if self.is_brief { timeout.map(|timeout| timeout.min(BRIEF_TIMEOUT)) } else { timeout }
    }

    /// The client may not have received everything.
    fn fail(mut self, reason: CloseReason) -> Step {
        self.ended.fail_delivery(reason);
        Step::Over(self.ended)
    }
}

/// Timeout for the next sign that a peer takes its last bytes.
pub(super) fn linger_timeout(cx: &Context) -> Option<Duration> {
    Some(cx.settings.write_timeout.unwrap_or(LINGER_TIMEOUT))
}

impl State for Linger {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let sent = self.send(downstream, cx);
        let Ok(has_more) = sent.and_then(|()| self.discard(downstream, cx)) else {
            return self.fail(CloseReason::ClientVanished);
        };
        // A Close frame may have crossed the last bytes, and a client may end its side before it reads.
        if self.is_fin_sent
            && self.has_answered
            && downstream.unacknowledged().is_none_or(|bytes| bytes == 0)
        {
            return Step::Over(self.ended);
        }
        let timeout = self.timeout(cx);
        if self.stall.is_over(downstream, timeout, cx.now) {
            return self.fail(CloseReason::ClientStalled);
        }
        self.wake_at = self.stall.deadline(timeout);
        if has_more { Step::Yield(Phase::Linger(self)) } else { Step::Wait(Phase::Linger(self)) }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        self.is_brief = true;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "closing"
    }

    fn held_bytes(&self) -> usize {
        self.last.len() - self.sent
    }

    fn release(mut self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        self.ended.fail_delivery(CloseReason::Stopped);
        self.ended
    }

    /// The counts join those of ended sessions only when this phase is over.
    fn traffic(&self) -> Option<BothWays> {
        self.ended.task().map(|_| self.ended.traffic)
    }

    fn task(&self) -> Option<&TaskId> {
        self.ended.task()
    }
}
