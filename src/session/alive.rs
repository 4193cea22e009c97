//! Whether the peer of a WebSocket is still there: when to ping it, and when to give it up.
//!
//! Any byte from the peer proves it alive. So does a byte that its full socket takes. A ping that
//! could not be sent yet proves nothing, which is why a peer whose socket is full may be given up
//! without one.

use super::transcript::{Event, Subject, note_step};
use super::{Context, Settings};
use crate::base::moment::Moment;

/// What is known of one peer.
#[derive(Debug, Clone, Copy)]
pub struct Alive {
    /// When the peer last proved alive, or was pinged, whichever came later.
    pub heard_at: Moment,
    /// The later one was the ping.
    pub is_pinged: bool,
    /// The peer's socket is full, so it cannot be pinged.
    pub is_blocked: bool,
}

/// What to do about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Fine,
    /// Send a ping at the next frame boundary.
    Ping,
    /// Give it up.
    Gone,
}

impl Alive {
    /// What to do about the peer at `now`.
    pub fn verdict(&self, settings: &Settings, now: Moment) -> Verdict {
        let Some(interval) = settings.ping_interval else { return Verdict::Fine };
        // From here on the peer owes an answer: since the ping, or, where none could be sent, since
        // it was due.
        let asked_at = if self.is_pinged { self.heard_at } else { self.heard_at + interval };
        if asked_at > now {
            return Verdict::Fine;
        }
        if !self.is_pinged && !self.is_blocked {
            return Verdict::Ping;
        }
        match settings.ping_timeout {
            Some(timeout) if asked_at + timeout <= now => Verdict::Gone,
            _ => Verdict::Fine,
        }
    }

    /// When to ask for the verdict again: maybe early, never late.
    pub fn deadline(&self, settings: &Settings, now: Moment) -> Option<Moment> {
        let interval = settings.ping_interval?;
        let timeout = settings.ping_timeout;
        if self.is_pinged {
            // The answer may come now, and the next ping is then due an interval later. The
            // deadline is not computed again for it: that would cost something on every relayed
            // frame.
            let next_ping_at = now + interval;
            return Some(
                timeout.map_or(next_ping_at, |timeout| next_ping_at.min(self.heard_at + timeout)),
            );
        }
        let ping_at = self.heard_at + interval;
        if ping_at > now {
            Some(ping_at)
        } else if self.is_blocked {
            timeout.map(|timeout| (ping_at + timeout).max(now))
        } else {
            // The ping is due and waits for a frame boundary; once it has left there is a new
            // deadline.
            None
        }
    }
}

/// The pings of the gateway to a peer whose WebSocket ends here, and their answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pings {
    /// Nothing was heard since the last one.
    pub is_unanswered: bool,
    sent: u16,
    answered: u16,
}

impl Pings {
    /// One is sent now.
    pub fn note_sent(&mut self, who: Subject<'_>, cx: &mut Context) {
        (self.sent, self.is_unanswered) = (self.sent.saturating_add(1), true);
        cx.stats.pings_sent += 1;
        note_step(who, cx.now, || Event::Ping);
    }

    /// The peer has sent pongs. Several may answer one ping.
    pub fn note_pongs(&mut self) {
        self.answered = self.sent.min(self.answered.saturating_add(1));
    }

    /// Pings that were sent, and how many of them were answered.
    pub fn counts(&self) -> (u16, u16) {
        (self.sent, self.answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn seconds(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    fn settings(interval: Option<Duration>, timeout: Option<Duration>) -> Settings {
        Settings { ping_interval: interval, ping_timeout: timeout, ..Settings::default() }
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "two columns of the table of cases")]
    /// A peer that was heard, or pinged, at 100 s.
    fn peer(is_pinged: bool, is_blocked: bool) -> (Moment, Alive) {
        let zero = Moment::START;
        (zero, Alive { heard_at: zero + Duration::from_secs(100), is_pinged, is_blocked })
    }

    /// With a ping interval of 20 s and a ping timeout of 30 s.
    #[test]
    fn silent_peer_is_pinged_then_given_up() {
        use Verdict::{Fine, Gone, Ping};
        #[rustfmt::skip]
        let cases = [
            // pinged, blocked, now: verdict, next look
            (false, false, 100, Fine, Some(120)),
            (false, false, 119, Fine, Some(120)),
            (false, false, 120, Ping, None),
            (false, false, 500, Ping, None),
            (true,  false, 100, Fine, Some(120)),
            (true,  false, 115, Fine, Some(130)),
            (true,  false, 129, Fine, Some(130)),
            (true,  false, 130, Gone, Some(130)),
            // A full socket cannot be pinged: the interval and the timeout count together.
            (false, true,  119, Fine, Some(120)),
            (false, true,  120, Fine, Some(150)),
            (false, true,  149, Fine, Some(150)),
            (false, true,  150, Gone, Some(150)),
            (true,  true,  129, Fine, Some(130)),
            (true,  true,  130, Gone, Some(130)),
        ];
        let settings = settings(seconds(20), seconds(30));
        for (is_pinged, is_blocked, now, verdict, next) in cases {
            let (zero, alive) = peer(is_pinged, is_blocked);
            let now = zero + Duration::from_secs(now);
            let next = next.map(|at| zero + Duration::from_secs(at));
            assert_eq!(alive.verdict(&settings, now), verdict, "{alive:?} at {now:?}");
            assert_eq!(alive.deadline(&settings, now), next, "{alive:?} at {now:?}");
        }
    }

    #[test]
    fn without_an_interval_nobody_is_pinged_or_given_up() {
        let settings = settings(None, seconds(30));
        for (is_pinged, is_blocked) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let (zero, alive) = peer(is_pinged, is_blocked);
            let now = zero + Duration::from_secs(100_000);
            assert_eq!(alive.verdict(&settings, now), Verdict::Fine);
            assert_eq!(alive.deadline(&settings, now), None);
        }
    }

    #[test]
    fn without_a_timeout_nobody_is_given_up() {
        let settings = settings(seconds(20), None);
        for (is_pinged, is_blocked) in [(true, false), (false, true), (true, true)] {
            let (zero, alive) = peer(is_pinged, is_blocked);
            let now = zero + Duration::from_secs(100_000);
            assert_eq!(alive.verdict(&settings, now), Verdict::Fine);
        }
    }
}
