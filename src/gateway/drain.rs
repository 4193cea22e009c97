//! The end of the process: no new work, what is in flight finishes, and then everything closes.
//!
//! ```text
//! Serving ── SIGTERM ──► Draining ── nothing in flight ──────────────────────► Stopped
//!                           ├── only Redis has more to store ──► Storing ───────► ▲
//!                           └── the drain time is over: sessions are closed ─► LastCall
//! ```

use super::Gateway;
use super::sweeps::Errand;
use crate::base::moment::Moment;
use crate::base::timers::Timers;
use crate::session::Drain;
use log::info;
use std::time::Duration;

/// The time for the last frames to leave once the drain time is over.
const LAST_CALL: Duration = Duration::from_millis(500);

/// How long Redis may store none of the last results, before the rest is given up. It may pause for
/// a second where it shares a core, or writes its snapshot.
const STORING_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunState {
    Serving,
    /// No new work; what is in flight may finish.
    Draining {
        until: Option<Moment>,
    },
    /// No session is left, but Redis has more to store. That may take as long as it goes on, and no
    /// longer than the drain.
    Storing {
        left: usize,
        give_up_at: Moment,
        until: Option<Moment>,
    },
    /// Everything has been asked to leave at once.
    LastCall {
        until: Moment,
    },
    Stopped,
}

impl Gateway {
    /// Begins to stop: no new work, what is in flight may finish within the drain time.
    pub fn drain(&mut self) {
        if self.run_state != RunState::Serving {
            return;
        }
        let until = self.cx.after(self.drain_timeout);
        let timeout =
            self.drain_timeout.map_or_else(|| "none".to_owned(), |timeout| format!("{timeout:?}"));
        info!(target: "gateway", "draining connections={} timeout={timeout}", self.sessions.len());
        self.run_state = RunState::Draining { until };
        self.cx.is_draining = true;
        self.probes.stop(&mut self.cx);
        self.cx.results.finish(self.cx.now);
        self.sweep(Errand::Drain(Drain::Finish));
        self.check_drain();
    }

    /// A drain has ended: nothing is left to be done.
    pub fn is_stopped(&self) -> bool {
        self.run_state == RunState::Stopped
    }

    /// When [`Gateway::check_drain`] is next due.
    pub(super) fn drain_deadline(&self) -> Option<Moment> {
        match self.run_state {
            RunState::Draining { until } => until,
            RunState::LastCall { until } => Some(until),
            RunState::Storing { give_up_at, until, .. } => {
                Some(until.map_or(give_up_at, |until| until.min(give_up_at)))
            }
            RunState::Serving | RunState::Stopped => None,
        }
    }

    /// Goes on with the end of the process, if it has begun and something has changed.
    pub(super) fn check_drain(&mut self) {
        let is_due = |until: Option<Moment>| until.is_some_and(|until| until <= self.cx.now);
        match self.run_state {
            RunState::Serving | RunState::Stopped => {}
            // Workers do not count: they stay connected.
            _ if self.sessions.len() == self.closed.len() + self.workers
                && self.cx.results.is_at_rest() =>
            {
                self.stop()
            }
            RunState::Draining { .. } if self.is_only_watched() => self.dismiss_watchers(),
            // No session is left, but Redis has not stored everything yet: another gateway is to
            // deliver it.
            RunState::Draining { until }
                if self.sessions.len() == self.closed.len() + self.workers =>
            {
                self.begin_storing(until);
            }
            RunState::Storing { left, until, .. } if self.cx.results.unstored() < left => {
                self.begin_storing(until);
            }
            RunState::Storing { give_up_at, until, .. }
                if is_due(Some(give_up_at)) || is_due(until) =>
            {
                self.stop()
            }
            RunState::Draining { until } if is_due(until) => {
                info!(target: "gateway", "drain time is over connections={}", self.sessions.len());
                self.run_state = RunState::LastCall { until: self.cx.now + LAST_CALL };
                self.sweep(Errand::Drain(Drain::Leave));
            }
            RunState::LastCall { until } if is_due(Some(until)) && self.sweeps.is_empty() => {
                self.stop()
            }
            RunState::Draining { .. } | RunState::Storing { .. } | RunState::LastCall { .. } => {}
        }
    }

    /// Whether no session is left but those that watch the others, and workers.
    fn is_only_watched(&self) -> bool {
        let watchers = self.cx.watch.watchers().len() + self.cx.taps.followers().count();
        watchers > 0 && self.sessions.len() == self.closed.len() + self.workers + watchers
    }

    fn begin_storing(&mut self, until: Option<Moment>) {
        let (left, give_up_at) = (self.cx.results.unstored(), self.cx.now + STORING_TIMEOUT);
        self.run_state = RunState::Storing { left, give_up_at, until };
    }

    /// Every session has been asked to leave at once.
    pub(super) fn note_asked_to_leave(&mut self) {
        // The last frames get their time from the last session's visit on.
        if let RunState::LastCall { until } = &mut self.run_state {
            *until = self.cx.now + LAST_CALL;
        }
    }

    /// Ends all sessions at once.
    pub fn stop(&mut self) {
        self.run_state = RunState::Stopped;
        for session in std::mem::take(&mut self.sessions)
            .into_iter()
            .map(|(_, session)| session)
            .collect::<Vec<_>>()
        {
            self.release(session);
        }
        self.closed.clear();
        self.yielded.clear();
        self.sweeps.clear();
        self.timers = Timers::new();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{client, gateway, socket, turn};
    use super::*;
    use std::net::SocketAddr;

    /// With a drain timeout of 5 s.
    #[test]
    fn drain_waits_for_what_is_in_flight_and_no_longer() {
        struct Case {
            name: &'static str,
            open: fn(&mut Gateway),
            stopped_at: u64,
        }
        let cases = [
            Case { name: "nothing", open: |_| {}, stopped_at: 0 },
            Case {
                name: "an idle connection",
                open: |gateway| drop(client(gateway, b"")),
                stopped_at: 0,
            },
            Case {
                name: "half a request head",
                open: |gateway| drop(client(gateway, b"GET / HTTP/1.1\r\n")),
                stopped_at: 5500,
            },
            Case {
                name: "a worker",
                open: |gateway| {
                    let from = SocketAddr::from(([192, 0, 2, 2], 6000));
                    gateway.admit_worker(socket(b""), from);
                },
                stopped_at: 0,
            },
        ];
        for Case { name, open, stopped_at } in cases {
            let mut gateway = gateway(10);
            open(&mut gateway);
            gateway.drain();
            for milliseconds in (0..=6000).step_by(500) {
                turn(&mut gateway, Moment::START + Duration::from_millis(milliseconds));
                let is_due = milliseconds >= stopped_at;
                assert_eq!(gateway.is_stopped(), is_due, "{name} after {milliseconds} ms");
            }
        }
    }
}
