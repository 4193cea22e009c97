//! Deadlines of many owners, at most one each.
//!
//! The invariant, signed *early, never late* wherever it is relied on: an owner may be called before its deadline, never
//! after it. So an owner whose deadline moved back leaves its entry alone and looks at the clock when it is called: a
//! relayed message, which moves an idle deadline, never touches this queue.

use crate::base::moment::Moment;
use std::collections::BTreeSet;

/// When an owner's entry stands in the queue; kept by the owner, written by [`Timers`] alone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Armed(Option<Moment>);

/// The queue. `K` names an owner.
#[derive(Debug)]
pub struct Timers<K> {
    entries: BTreeSet<(Moment, K)>,
}

impl<K: Ord + Copy> Timers<K> {
    pub const fn new() -> Timers<K> {
        Timers { entries: BTreeSet::new() }
    }

    /// Sees to it that `key` comes out of [`Timers::pop_due`] at `at` or before. Costs nothing when it will anyway.
    pub fn arm(&mut self, key: K, armed: &mut Armed, at: Moment) {
        match armed.0 {
            Some(earlier) if earlier <= at => return,
            Some(later) => {
                self.entries.remove(&(later, key));
            }
            None => {}
        }
        self.entries.insert((at, key));
        armed.0 = Some(at);
    }

    /// Takes the owner's entry out.
    pub fn disarm(&mut self, key: K, armed: &mut Armed) {
        if let Some(at) = armed.0.take() {
            self.entries.remove(&(at, key));
        }
    }

    /// The next owner whose time has come. The caller resets its [`Armed`] with [`Armed::fired`].
    pub fn pop_due(&mut self, now: Moment) -> Option<K> {
        let &(at, key) = self.entries.first()?;
        if at > now {
            return None;
        }
        self.entries.pop_first();
        Some(key)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Moment> {
        self.entries.first().map(|&(at, _)| at)
    }
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Timers::new()
    }
}

impl Armed {
    /// The entry has come out of the queue.
    pub fn fired(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(start: Moment, ms: u64) -> Moment {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn owners_come_out_in_the_order_of_their_deadlines() {
        let start = Moment::START;
        let mut timers = Timers::new();
        let mut armed = [Armed::default(); 3];
        for (key, ms) in [(0, 30), (1, 10), (2, 20)] {
            timers.arm(key, &mut armed[key], at(start, ms));
        }
        assert_eq!(timers.next(), Some(at(start, 10)));
        assert_eq!(timers.pop_due(at(start, 9)), None);
        assert_eq!(timers.pop_due(at(start, 20)), Some(1));
        assert_eq!(timers.pop_due(at(start, 20)), Some(2));
        assert_eq!(timers.pop_due(at(start, 20)), None);
    }

    #[test]
    fn a_later_deadline_leaves_the_entry_and_an_earlier_one_moves_it() {
        let start = Moment::START;
        let mut timers = Timers::new();
        let mut armed = Armed::default();
        timers.arm(1, &mut armed, at(start, 20));
        timers.arm(1, &mut armed, at(start, 90));
        assert_eq!(timers.next(), Some(at(start, 20)), "early, never late");
        timers.arm(1, &mut armed, at(start, 5));
        assert_eq!(timers.pop_due(at(start, 99)), Some(1));
        assert_eq!(timers.pop_due(at(start, 99)), None, "one entry an owner");
    }

    #[test]
    fn a_disarmed_owner_is_gone() {
        let start = Moment::START;
        let mut timers = Timers::new();
        let mut armed = Armed::default();
        timers.arm(1, &mut armed, start);
        timers.disarm(1, &mut armed);
        timers.disarm(1, &mut armed);
        assert_eq!(timers.pop_due(at(start, 1)), None);
        assert_eq!(timers.next(), None);
    }
}
