//! Errands that concern every session: a drain, a reload, the loss of Redis, a name that was looked
//! up.
//!
//! With thousands of sessions, one walk over all would delay every other client. So a [`Sweep`]
//! visits slots until the work of the turn is done, and goes on in the next turn. Until it has come
//! to a session, that session goes on as before. One that was opened after the beginning needs no
//! visit: it knows what has changed from the `Context`.

use std::collections::VecDeque;

use super::Gateway;
use crate::service::upstreams::UpstreamId;
use crate::session::{Drain, Phase};

/// The work of looking at a slot; see [`Context::work`](crate::session::Context::work).
const WORK_OF_A_SLOT: usize = 32;

/// The work of an errand to one session, which may write a frame and close sockets: about 15 µs.
const WORK_OF_AN_ERRAND: usize = 16 * 1024;

/// Why sessions are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// The gateway is about to stop.
    Drain(Drain),
    /// The settings have changed.
    Reload,
    /// Redis has been away for longer than its grace.
    RedisLost,
    /// The name of this backend has been looked up.
    LookedUp(UpstreamId),
}

impl Errand {
    /// Whether a new errand takes the place of this one.
    fn is_replaced_by(self, new: Errand) -> bool {
        match (self, new) {
            (Errand::Drain(_), Errand::Drain(_)) => true,
            _ => self == new,
        }
    }
}

/// A walk over all sessions that is under way.
#[derive(Debug)]
struct Sweep {
    errand: Errand,
    /// The slot to visit next.
    next: usize,
}

/// The walks under way. They take turns in the order in which they began.
#[derive(Debug, Default)]
pub(super) struct Sweeps(VecDeque<Sweep>);

impl Sweeps {
    /// Whether no session is left to be visited.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives up all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn begin(&mut self, errand: Errand) {
        self.0.retain(|sweep| !sweep.errand.is_replaced_by(errand));
        self.0.push_back(Sweep { errand, next: 0 });
    }
}

impl Gateway {
    /// Begins to visit every session for `errand`, and does what the work of this turn leaves room
    /// for.
    pub(super) fn sweep(&mut self, errand: Errand) {
        self.sweeps.begin(errand);
        self.go_on_sweeping();
    }

    /// Visits further sessions until the work of this turn is done; at least one slot, so that a
    /// sweep always comes to its end.
    pub(super) fn go_on_sweeping(&mut self) {
        while let Some(mut sweep) = self.sweeps.0.pop_front() {
            while sweep.next < self.sessions.capacity() && !self.sessions.is_empty() {
                let key = sweep.next;
                sweep.next += 1;
                self.cx.work += WORK_OF_A_SLOT;
                if self.run_errand(key, sweep.errand) {
                    self.cx.work += WORK_OF_AN_ERRAND;
                    self.drive(key);
                }
                if self.cx.work >= self.turn.work {
                    return self.sweeps.0.push_front(sweep);
                }
            }
            if sweep.errand == Errand::Drain(Drain::Leave) {
                self.note_asked_to_leave();
            }
        }
    }

    /// Brings the errand to the session in this slot. True: it has to be driven.
    fn run_errand(&mut self, key: usize, errand: Errand) -> bool {
        let Gateway { sessions, cx, .. } = self;
        let Some(session) = sessions.get_mut(key) else { return false };
        let id = session.who().id();
        let is_owed = session.awaited_task().is_some_and(|task| cx.results.is_owed(task, id));
        match errand {
            // A result that came before the drain is delivered, not answered with a Close; then the
            // session ends by itself.
            Errand::Drain(Drain::Finish) if is_owed => return false,
            Errand::Drain(drain) => session.drain(drain, cx),
            Errand::Reload => {
                session.forget_recent(cx);
                session.reload(cx.now);
            }
            // The same holds here. And Redis may have come back since the sweep began.
            Errand::RedisLost if !cx.results.is_redis_lost() => return false,
            Errand::RedisLost if is_owed => return false,
            Errand::RedisLost => {
                session.handle_redis_lost(cx);
                return matches!(session.phase(), Phase::Output(_));
            }
            Errand::LookedUp(backend) => {
                return session.is_looking_up() && session.backend() == Some(backend);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{turn, with_waiting_clients};
    use super::*;
    use crate::base::moment::Moment;

    const CLIENTS: usize = 1000;

    /// A gateway with clients that wait for results, one task each.
    fn crowded() -> Gateway {
        let mut gateway = with_waiting_clients(CLIENTS);
        gateway.begin_turn(Moment::START);
        gateway
    }

    /// Turns until no session is left to be visited, and the most work in one of them.
    fn turns(gateway: &mut Gateway) -> (usize, usize) {
        let (mut turns, mut work_max) = (0, gateway.cx.work);
        while !gateway.sweeps.is_empty() {
            assert_eq!(gateway.next_turn(), Some(gateway.now()), "the rest is due at once");
            turn(gateway, Moment::START);
            (turns, work_max) = (turns + 1, work_max.max(gateway.cx.work));
        }
        (turns, work_max)
    }

    #[test]
    fn errands_to_a_thousand_sessions_share_several_turns() {
        for errand in [Errand::Drain(Drain::Finish), Errand::Reload] {
            let mut gateway = crowded();
            gateway.sweep(errand);
            let (turns, work_max) = turns(&mut gateway);
            let work = gateway.turn.work;
            assert!(turns >= CLIENTS * WORK_OF_AN_ERRAND / work - 1, "{errand:?}: {turns} turns");
            assert!(work_max < 2 * work, "{errand:?}: {work_max} in one turn");
        }
    }

    #[test]
    fn a_drain_reaches_every_session_and_leaves_none() {
        let mut gateway = crowded();
        gateway.drain();
        assert!(gateway.session_count() > 0 && !gateway.is_stopped());
        turns(&mut gateway);
        let waiting = gateway.sessions.iter().filter(|(_, session)| session.state() == "waiting");
        assert_eq!(waiting.count(), 0);
    }

    /// The clients' results are queued, so they are about to get them.
    #[test]
    fn a_result_that_came_before_the_drain_is_delivered() {
        let mut gateway = crowded();
        for number in 0..CLIENTS {
            let task = uuid::Uuid::from_u128(number as u128);
            gateway.cx.results.publish(Moment::START, task, br#"{"text":"a"}"#);
        }
        gateway.drain();
        for _ in 0..CLIENTS {
            turn(&mut gateway, Moment::START);
        }
        assert_eq!(gateway.stats().results_delivered, CLIENTS as u64);
    }

    #[test]
    fn a_new_drain_takes_the_place_of_the_old_one() {
        let mut sweeps = Sweeps::default();
        for errand in [
            Errand::Drain(Drain::Finish),
            Errand::Reload,
            Errand::Reload,
            Errand::Drain(Drain::Leave),
        ] {
            sweeps.begin(errand);
        }
        let errands: Vec<Errand> = sweeps.0.iter().map(|sweep| sweep.errand).collect();
        assert_eq!(errands, [Errand::Reload, Errand::Drain(Drain::Leave)]);
    }
}
