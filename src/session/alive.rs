//! Whether the far end of a WebSocket is still there: pings for who is silent, an end for who is dead to everything.
//!
//! Any byte is a sign of life, and so is a slow socket that takes one. What is not: a ping of ours that could not be sent yet.

use super::Context;
use crate::base::moment::Moment;

/// What is known of one end.
#[derive(Debug, Clone, Copy)]
pub struct Alive {
    /// The last sign of life, or the last ping of ours, if that was later.
    pub heard_at: Moment,
    /// It was the ping.
    pub is_pinged: bool,
    /// Its socket takes nothing at the moment, so it cannot be pinged.
    pub is_blocked: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// Send a ping as soon as there is a place for it.
    Ping,
    Gone,
}

impl Alive {
    pub fn verdict(&self, cx: &Context) -> Verdict {
        let Some(interval) = cx.settings.ping_interval else { return Verdict::Fine };
        let asked_at = if self.is_pinged { self.heard_at } else { self.heard_at + interval };
        if asked_at > cx.now {
            return Verdict::Fine;
        }
        if !self.is_pinged && !self.is_blocked {
            return Verdict::Ping;
        }
        match cx.settings.ping_timeout {
            Some(timeout) if asked_at + timeout <= cx.now => Verdict::Gone,
            _ => Verdict::Fine,
        }
    }

    /// When to ask for the verdict again: early, never late.
    pub fn deadline(&self, cx: &Context) -> Option<Moment> {
        let interval = cx.settings.ping_interval?;
        let timeout = cx.settings.ping_timeout;
        if self.is_pinged {
            // Once it is heard again, the next ping is due an interval after that.
            let next_ping_at = cx.now + interval;
            return Some(
                timeout.map_or(next_ping_at, |timeout| next_ping_at.min(self.heard_at + timeout)),
            );
        }
        let ping_at = self.heard_at + interval;
        if ping_at > cx.now {
            Some(ping_at)
        } else if self.is_blocked {
            timeout.map(|timeout| (ping_at + timeout).max(cx.now))
        } else {
            // The ping waits for its place; once it is out there is a new deadline.
            None
        }
    }
}
