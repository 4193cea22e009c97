//! The last bytes go out, then FIN, then a short wait for the other end's.
//!
//! The wait is not politeness: a socket that is closed while bytes of the peer lie unread answers with RST, and an RST
//! destroys the very Close frame or error page that was just sent. So what comes is read and thrown away until FIN.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::{CloseReason, Context, Drain, Ended, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use std::time::Duration;

/// How long the peer may take to read our last bytes and to close its side.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads of what nobody wants in one step; then the others have their turn.
const READS_PER_STEP: usize = 16;

/// On the way out.
pub struct Linger {
    last: Vec<u8>,
    sent: usize,
    is_shut: bool,
    deadline: Moment,
}

impl Linger {
    /// Sends `last`, then FIN.
    pub fn phase(last: Vec<u8>, cx: &Context) -> Phase {
        let deadline = cx.now + LINGER_TIMEOUT;
        Phase::Linger(Box::new(Linger { last, sent: 0, is_shut: false, deadline }))
    }
}

impl State for Linger {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let closed = Step::Next(Phase::Closed);
        while self.sent < self.last.len() {
            match downstream.write(&self.last[self.sent..]) {
                Ok(Io::Moved(n)) => self.sent += n,
                Ok(_) => break,
                Err(_) => return closed,
            }
        }
        if self.sent == self.last.len() && !self.is_shut {
            self.is_shut = downstream.shutdown_write();
        }
        if cx.now >= self.deadline {
            return closed;
        }
        for _ in 0..READS_PER_STEP {
            match cx.with_scratch(|scratch, _| downstream.read(scratch)) {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return Step::Wait(Phase::Linger(self)),
                Ok(Io::Ended) if self.is_shut => return closed,
                // Half-closed: its FIN came before our last bytes were out; they may still be wanted.
                Ok(Io::Ended) => return Step::Wait(Phase::Linger(self)),
                Err(_) => return closed,
            }
        }
        Step::Yield(Phase::Linger(self))
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.deadline)
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {}

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "closing"
    }

    fn held_bytes(&self) -> usize {
        self.last.len() - self.sent
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}
