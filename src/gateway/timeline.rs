//! The gateway's time: it runs with the reactor's clock, except while the process stands still.
//!
//! A process may not run for a while: `SIGSTOP`, a debugger, a frozen container, a stolen CPU. What
//! its peers sent meanwhile waits in the sockets, and what it would have sent itself (a ping, a
//! look-up, a command to Redis) has not left. Judging deadlines by the clock would then close
//! healthy connections. So a standstill does not count: every deadline moves by it, because all of
//! them are moments of this time.
//!
//! How it is noticed: between two turns the gateway knows when the next one is due. A turn that
//! begins much later was held up. A long wait without a deadline is no standstill.

use crate::base::moment::Moment;
use std::cell::Cell;
use std::time::Duration;

/// A turn that begins this much later than it was due means a standstill. A busy machine delays
/// turns too, by less.
const LATE_MIN: Duration = Duration::from_millis(500);

/// What every deadline has left after a standstill, at the least: time to read all sockets, to
/// connect to Redis again, to look up what was published meanwhile.
const GRACE: Duration = Duration::from_secs(1);

/// Turns moments of the clock, which is the reactor's, into those of the gateway.
pub struct Timeline {
    /// All standstills so far.
    skipped: Duration,
    turned_at: Moment,
    /// When the next turn is due, by the clock; `None` without any deadline.
    due_at: Cell<Option<Moment>>,
    /// The last turn followed a standstill.
    was_late: bool,
}

impl Timeline {
    pub fn new(clock: Moment) -> Timeline {
        Timeline {
            skipped: Duration::ZERO,
            turned_at: clock,
            due_at: Cell::default(),
            was_late: false,
        }
    }

    /// A turn begins. Returns the gateway's moment, and the standstill that it followed, if any.
    #[inline]
    pub fn begin_turn(&mut self, clock: Moment) -> (Moment, Option<Duration>) {
        let due_at = self.due_at.take().map_or(clock, |due_at| due_at.max(self.turned_at));
        let standstill = (due_at + LATE_MIN <= clock).then(|| self.skip(due_at, clock));
        (self.was_late, self.turned_at) = (standstill.is_some(), clock);
        (self.now(clock), standstill)
    }

    /// Takes a standstill out of time: the turn that was due at `due_at` began at `clock`. Returns
    /// its length.
    #[cold]
    fn skip(&mut self, due_at: Moment, clock: Moment) -> Duration {
        let late = clock - due_at;
        // If every turn is late, each must advance time a little, or nothing would ever be due.
        let grace = if self.was_late { Duration::ZERO } else { GRACE };
        self.skipped += late + grace.min(due_at - self.turned_at);
        late
    }

    /// The next turn is due at `next`, a moment of the gateway. Returns it by the clock.
    #[inline]
    pub fn note_next(&self, next: Option<Moment>) -> Option<Moment> {
        let due_at = next.map(|at| self.clock(at));
        self.due_at.set(due_at);
        due_at
    }

    /// A moment of the gateway, by the clock.
    #[inline]
    pub fn clock(&self, at: Moment) -> Moment {
        if self.skipped.is_zero() { at } else { at + self.skipped }
    }

    /// All standstills so far.
    pub fn skipped(&self) -> Duration {
        self.skipped
    }

    #[inline]
    fn now(&self, clock: Moment) -> Moment {
        if self.skipped.is_zero() {
            return clock;
        }
        Moment::START + (clock - Moment::START).saturating_sub(self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::START + Duration::from_millis(milliseconds)
    }

    /// The turn before began at 1 s.
    #[test]
    fn only_a_late_turn_stops_the_time() {
        #[rustfmt::skip]
        let cases = [
            // due, begun: the gateway's moment
            ("an event in time",              Some(20_000), 1_500, 1_500),
            ("the deadline in time",          Some(20_000), 20_000, 20_000),
            ("a busy machine",                Some(20_000), 20_499, 20_499),
            ("stopped for 40 s",              Some(20_000), 60_000, 19_000),
            ("due at once, in time",          Some(1_000),  1_001,  1_001),
            ("due at once, and stopped",      Some(1_000),  9_000,  1_000),
            ("overdue before, and stopped",   Some(500),    9_000,  1_000),
            ("stopped with less than the grace to go", Some(1_300), 9_000, 1_000),
            ("an hour without a deadline",    None,         3_600_000, 3_600_000),
        ];
        for (name, due, begun, now) in cases {
            let mut timeline = Timeline::new(at(0));
            timeline.begin_turn(at(1_000));
            timeline.note_next(due.map(at));
            assert_eq!(timeline.begin_turn(at(begun)).0, at(now), "{name}");
        }
    }

    #[test]
    fn time_goes_on_even_if_every_turn_is_late() {
        let mut timeline = Timeline::new(at(0));
        let mut clock = at(0);
        let mut now = timeline.begin_turn(clock).0;
        for _ in 0..100 {
            timeline.note_next(Some(now + Duration::from_millis(100)));
            clock += Duration::from_millis(800);
            now = timeline.begin_turn(clock).0;
        }
        assert!(now >= at(9_000), "{now:?}");
        assert_eq!(timeline.clock(now), clock);
    }

    #[test]
    fn time_never_runs_backwards() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut timeline = Timeline::new(at(0));
        let (mut clock, mut now) = (at(0), at(0));
        for _ in 0..10_000 {
            let next =
                (chance.u8(..) > 0).then(|| now + Duration::from_millis(chance.u64(..30_000)));
            timeline.note_next(next);
            clock += Duration::from_millis(chance.u64(..60_000));
            let later = timeline.begin_turn(clock).0;
            assert!(later >= now && later <= clock);
            now = later;
        }
    }
}
