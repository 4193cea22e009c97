//! Who watches the gateway by `GET /events`, and the newest snapshot for all of them.
//!
//! A snapshot is made once and shared. A watcher sends one to its end and then takes the newest
//! there is: one that is slow misses some, and never has more than one in memory.

use std::rc::Rc;
use std::time::Duration;

use crate::base::budget::{Budget, Charge};
use crate::base::moment::Moment;

/// How often a snapshot is made while there are watchers.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);

/// Event streams that may be open at once.
const WATCHERS_MAX: usize = 256;

/// A snapshot as it goes out to every watcher.
#[derive(Debug, Clone)]
pub struct SentSnapshot(Rc<SnapshotBytes>);

#[derive(Debug)]
struct SnapshotBytes {
    number: u64,
    bytes: Vec<u8>,
    _charge: Charge,
}

impl SentSnapshot {
    /// Counts snapshots from 1.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// The whole event.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// The watchers, known by `W`.
#[derive(Debug)]
pub struct Watch<W> {
    watchers: Vec<W>,
    newest: Option<SentSnapshot>,
    /// When that was made.
    made_at: Option<Moment>,
    made: u64,
    /// No snapshot follows.
    is_over: bool,
}

impl<W: Copy + PartialEq> Watch<W> {
    /// Nobody watches.
    pub fn new() -> Watch<W> {
        Watch { watchers: Vec::new(), newest: None, made_at: None, made: 0, is_over: false }
    }

    /// Whether one more may watch.
    pub fn has_room(&self) -> bool {
        self.watchers.len() < WATCHERS_MAX
    }

    /// One more watches.
    pub fn enter(&mut self, who: W) {
        self.watchers.push(who);
    }

    /// It watches no longer.
    pub fn leave(&mut self, who: W) {
        self.watchers.retain(|watcher| *watcher != who);
        if self.watchers.is_empty() {
            self.newest = None;
        }
    }

    /// Those that watch.
    pub fn watchers(&self) -> &[W] {
        &self.watchers
    }

    /// When the next snapshot is due; `None` while nobody watches.
    pub fn due_at(&self) -> Option<Moment> {
        if self.watchers.is_empty() || self.is_over {
            return None;
        }
        Some(self.made_at.map_or(Moment::START, |at| at + SNAPSHOT_INTERVAL))
    }

    /// A snapshot is being made; the next one is due an interval later.
    pub fn begin(&mut self, now: Moment) {
        self.made_at = Some(now);
    }

    /// It has been made: `data`, one line.
    pub fn publish(&mut self, data: &str, budget: &Budget) {
        self.made += 1;
        let bytes = format!("event: snapshot\ndata: {data}\n\n").into_bytes();
        let charge = budget.charge(bytes.capacity());
        let charged = SnapshotBytes { number: self.made, bytes, _charge: charge };
        self.newest = Some(SentSnapshot(Rc::new(charged)));
    }

    /// The newest snapshot, if it is newer than the one of this number.
    pub fn newer_than(&self, number: u64) -> Option<SentSnapshot> {
        self.newest.clone().filter(|newest| newest.number() > number)
    }

    /// No snapshot follows: watchers are to leave.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// Whether none follows.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}

impl<W: Copy + PartialEq> Default for Watch<W> {
    fn default() -> Self {
        Watch::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_due_at_once_and_then_every_interval() {
        let mut watch = Watch::new();
        assert_eq!(watch.due_at(), None);
        watch.enter(1);
        assert_eq!(watch.due_at(), Some(Moment::START));
        let now = Moment::START + Duration::from_secs(7);
        watch.begin(now);
        assert_eq!(watch.due_at(), Some(now + SNAPSHOT_INTERVAL));
        watch.end();
        assert_eq!(watch.due_at(), None);
    }

    #[test]
    fn slow_watcher_misses_snapshots_and_holds_one() {
        let budget = Budget::default();
        let mut watch = Watch::new();
        watch.enter(1);
        watch.publish("{\"a\":1}", &budget);
        let held = watch.newer_than(0).unwrap();
        assert_eq!(held.bytes(), b"event: snapshot\ndata: {\"a\":1}\n\n");
        let one = budget.held();
        for _ in 0..5 {
            watch.publish("{\"a\":2}", &budget);
        }
        assert_eq!(budget.held(), 2 * one, "the one that is being sent, and the newest");
        assert_eq!(watch.newer_than(held.number()).unwrap().number(), 6);
        assert!(watch.newer_than(6).is_none());
        drop(held);
        watch.leave(1);
        assert_eq!(budget.held(), 0, "nobody watches, nothing is kept");
    }

    #[test]
    fn watchers_are_bounded() {
        let mut watch = Watch::new();
        for who in 0..WATCHERS_MAX {
            assert!(watch.has_room());
            watch.enter(who);
        }
        assert!(!watch.has_room());
        watch.leave(3);
        assert!(watch.has_room() && !watch.watchers().contains(&3));
    }
}
