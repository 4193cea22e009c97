//! Deadlines of many owners, at most one each, as a tournament tree.
//!
//! ```text
//!                      3                       the final: the earliest deadline of all
//!           3                     5            each the earliest of the eight below it
//!   [ 7 3 9 · · 8 4 · ]   [ · 5 · · 6 · · · ]  one place for each owner, `·` without a deadline
//! ```
//!
//! Owners are small numbers that are reused, such as the keys of a slab. So a place is found
//! without a search, and costs nine bytes including its share of the upper rounds.
//!
//! The invariant is named *early, never late* wherever code relies on it: an owner may be called
//! before its deadline, never after it. So an owner whose deadline moved back leaves its place
//! alone and compares with the time when it is called. A relayed message moves an idle deadline
//! back, and therefore only reads here.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]
#![expect(clippy::indexing_slicing, reason = "slots and positions come from the structure itself")]

use super::moment::Moment;

/// Entries that compete for one entry of the round above.
const MATCH: usize = 8;

/// The queue; see the top of this file.
#[derive(Debug, Default)]
pub struct Timers {
    /// The owners' places first, the final last. Each round has one entry for [`MATCH`] of the
    /// round before it.
    rounds: Vec<Vec<Option<Moment>>>,
}

impl Timers {
    /// No deadlines yet.
    pub const fn new() -> Timers {
        Timers { rounds: Vec::new() }
    }

    /// Makes sure that [`Timers::pop_due`] returns `owner` at `at` or earlier. Changes nothing when
    /// it will anyway.
    #[inline]
    pub fn arm(&mut self, owner: usize, at: Moment) {
        match self.rounds.first().and_then(|places| places.get(owner)) {
            Some(&Some(earlier)) if earlier <= at => {}
            _ => self.move_up(owner, at),
        }
    }

    /// Removes the owner's deadline, if it has one.
    pub fn disarm(&mut self, owner: usize) {
        let mut index = owner;
        let mut winner = None;
        for round in &mut self.rounds {
            let Some(entry) = round.get_mut(index) else { return };
            if *entry == winner {
                return;
            }
            *entry = winner;
            let from = index - index % MATCH;
            let to = round.len().min(from + MATCH);
            winner = winner_of(&round[from..to]);
            index /= MATCH;
        }
    }

    /// The next owner whose deadline has come. Removes that deadline.
    pub fn pop_due(&mut self, now: Moment) -> Option<usize> {
        let first = self.next().filter(|&at| at <= now);
        first?;
        let mut owner = 0;
        for round in self.rounds.iter().rev() {
            let from = owner * MATCH;
            owner = from
                + round[from..]
                    .iter()
                    .position(|&entry| entry == first)
                    .expect("a winner has played below");
        }
        self.disarm(owner);
        Some(owner)
    }

    /// The earliest deadline.
    pub fn next(&self) -> Option<Moment> {
        *self.rounds.last()?.first()?
    }

    /// Frees the memory of places behind the last one in use.
    pub fn shrink_to_fit(&mut self) {
        for round in &mut self.rounds {
            let used = round.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            round.truncate(used);
            round.shrink_to_fit();
        }
        let used = self
            .rounds
            .iter()
            .position(|round| round.len() <= 1)
            .map_or(self.rounds.len(), |last| last + 1);
        self.rounds.truncate(used);
    }

    /// Gives `owner` an earlier deadline than it has, and updates every round in which that is now
    /// the earliest.
    fn move_up(&mut self, owner: usize, at: Moment) {
        let mut index = owner;
        for depth in 0.. {
            if depth == self.rounds.len() {
                // A new round: until now the round below had one entry, the final.
                let first_match =
                    depth.checked_sub(1).and_then(|below| self.rounds[below].chunks(MATCH).next());
                self.rounds.push(vec![first_match.and_then(winner_of)]);
            }
            let round = &mut self.rounds[depth];
            if index >= round.len() {
                round.resize(index + 1, None);
            }
            if round[index].is_some_and(|winner| winner <= at) {
                return;
            }
            round[index] = Some(at);
            if round.len() == 1 {
                return;
            }
            index /= MATCH;
        }
    }
}

fn winner_of(entries: &[Option<Moment>]) -> Option<Moment> {
    entries.iter().flatten().min().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn at(ms: u64) -> Moment {
        Moment::START + Duration::from_millis(ms)
    }

    #[test]
    fn owners_are_popped_in_the_order_of_their_deadlines() {
        let mut timers = Timers::new();
        for (owner, ms) in [(0, 30), (1, 10), (2, 20)] {
            timers.arm(owner, at(ms));
        }
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(20)), Some(1));
        assert_eq!(timers.pop_due(at(20)), Some(2));
        assert_eq!(timers.pop_due(at(20)), None);
    }

    #[test]
    fn only_an_earlier_deadline_replaces_the_one_it_has() {
        let mut timers = Timers::new();
        timers.arm(1, at(20));
        timers.arm(1, at(90));
        assert_eq!(timers.next(), Some(at(20)), "early, never late");
        timers.arm(1, at(5));
        assert_eq!(timers.pop_due(at(99)), Some(1));
        assert_eq!(timers.pop_due(at(99)), None, "at most one deadline for each owner");
    }

    #[test]
    fn a_disarmed_owner_is_not_popped() {
        let mut timers = Timers::new();
        timers.disarm(7);
        timers.arm(1, at(0));
        timers.disarm(1);
        timers.disarm(1);
        timers.disarm(1000);
        assert_eq!(timers.pop_due(at(1)), None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn behaves_like_a_sorted_list() {
        for seed in 0..300 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let owners = [1, 7, 8, 9, 64, 65, 600][seed as usize % 7];
            let (mut timers, mut list, mut now) = (Timers::new(), BTreeMap::new(), 0);
            for _ in 0..1000 {
                let owner = chance.usize(..owners);
                match chance.u32(..10) {
                    0 => {
                        timers.disarm(owner);
                        list.remove(&owner);
                    }
                    1 => timers.shrink_to_fit(),
                    2 => now += chance.u64(..20),
                    3 => {
                        while let Some(owner) = timers.pop_due(at(now)) {
                            let due = list.remove(&owner);
                            assert!(
                                due.is_some_and(|due| due <= now),
                                "seed {seed}: {owner} {due:?} at {now}"
                            );
                        }
                    }
                    _ => {
                        let ms = now + chance.u64(..50);
                        timers.arm(owner, at(ms));
                        list.entry(owner).and_modify(|due| *due = ms.min(*due)).or_insert(ms);
                    }
                }
                assert_eq!(timers.next(), list.values().min().map(|&ms| at(ms)), "seed {seed}");
            }
        }
    }

    #[test]
    fn an_owner_costs_little_more_than_nine_bytes() {
        let mut timers = Timers::new();
        (0..10_000).for_each(|owner| timers.arm(owner, at(owner as u64)));
        let entries: usize = timers.rounds.iter().map(Vec::len).sum();
        assert!(entries * size_of::<Option<Moment>>() < 10_000 * 93 / 10);
        (1..10_000).for_each(|owner| timers.disarm(owner));
        timers.shrink_to_fit();
        let entries: usize = timers.rounds.iter().map(Vec::capacity).sum();
        assert_eq!((entries, timers.next()), (1, Some(at(0))));
    }
}
