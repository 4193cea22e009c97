//! Who waits for which task, and what is on its way to whom. Only queues: nothing here calls anybody.
//!
//! A publication descends from Redis and ends in this queue; a delivery descends from the gateway and begins with it. Two descents
//! joined by one queue, so no session is ever entered from inside another one's turn.
//!
//! The surprising thing: the bus never drops a delivery. When more wait than it likes, [`Bus::is_full`] says so, and whoever reads
//! from Redis stops reading; Redis and the kernel hold the rest.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::rc::Rc;

use uuid::Uuid;

use crate::proto::message::{TaskId, TaskResult};

/// Deliveries that may wait before the bus calls itself full.
const DELIVERIES_MAX: usize = 4096;

/// The bus. `K` names a session.
#[derive(Debug)]
pub struct Bus<K> {
    /// Boxed, because a table of them is never full, and twice as large while it grows.
    waiting: HashMap<Uuid, Box<Waiting<K>>>,
    /// Tasks whose listeners may have changed, each at most once.
    changed: VecDeque<Uuid>,
    deliveries: VecDeque<(K, Rc<TaskResult>)>,
}

/// What should be listened to from now on, or no longer. Only of interest where every task has a channel of its own to subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Somebody waits for results under this spelling of the task's id.
    Listen { task: Uuid, spelling: String },
    /// Nobody waits for them any more.
    Unlisten { task: Uuid, spelling: String },
}

#[derive(Debug)]
struct Waiting<K> {
    places: Vec<Place<K>>,
    /// How clients wrote the id, apart from the usual form.
    spellings: Vec<Box<str>>,
    /// Spellings that were given out by `poll_change`, the usual form being the first.
    announced: usize,
    is_queued: bool,
}

#[derive(Debug)]
struct Place<K> {
    key: K,
    /// The highest serial number of what was delivered to this session.
    seen: u64,
}

impl<K: Copy + Eq + Hash> Bus<K> {
    /// Nobody waits.
    pub fn new() -> Bus<K> {
        Bus { waiting: HashMap::new(), changed: VecDeque::new(), deliveries: VecDeque::new() }
    }

    /// `key` waits for `task` from now on. It must not wait for any task yet.
    pub fn subscribe(&mut self, task: &TaskId, key: K) {
        let uuid = task.uuid();
        let waiting = self.waiting.entry(uuid).or_insert_with(|| {
            Box::new(Waiting { places: Vec::with_capacity(1), spellings: Vec::new(), announced: 0, is_queued: false })
        });
        waiting.places.push(Place { key, seen: 0 });
        if let Some(written) = task.written()
            && !waiting.spellings.iter().any(|known| **known == *written)
        {
            waiting.spellings.push(written.into());
        }
        if waiting.announced <= waiting.spellings.len() && !waiting.is_queued {
            waiting.is_queued = true;
            self.changed.push_back(uuid);
        }
    }

    /// `key`, which waited for `task`, is gone, and what was on its way to it. False: it did not wait for that.
    pub fn forget(&mut self, task: Uuid, key: K) -> bool {
        let Some(waiting) = self.waiting.get_mut(&task) else { return false };
        let Some(at) = waiting.places.iter().position(|place| place.key == key) else { return false };
        waiting.places.remove(at);
        self.deliveries.retain(|(to, _)| *to != key);
        if waiting.places.is_empty() {
            if waiting.announced == 0 && !waiting.is_queued {
                self.waiting.remove(&task);
            } else if !waiting.is_queued {
                waiting.is_queued = true;
                self.changed.push_back(task);
            }
        }
        true
    }

    /// Queues the result with the number `serial` for those who have not had that one yet; how many that are. `result` is called
    /// at most once. Serial numbers only grow; what is found late gets a late number. Call [`Bus::have_seen`] when all is published.
    pub fn publish(&mut self, task: Uuid, serial: u64, result: impl FnOnce() -> Rc<TaskResult>) -> usize {
        let Some(waiting) = self.waiting.get(&task) else { return 0 };
        let mut missing = waiting.places.iter().filter(|place| place.seen < serial).peekable();
        if missing.peek().is_none() {
            return 0;
        }
        let (result, before) = (result(), self.deliveries.len());
        self.deliveries.extend(missing.map(|place| (place.key, Rc::clone(&result))));
        self.deliveries.len() - before
    }

    /// Everybody who waits for `task` has had everything up to the number `serial`.
    pub fn have_seen(&mut self, task: Uuid, serial: u64) {
        for place in self.waiting.get_mut(&task).map_or(&mut [][..], |waiting| &mut waiting.places) {
            place.seen = place.seen.max(serial);
        }
    }

    /// The lowest number that everybody who waits for `task` has had; `None` where nobody waits.
    pub fn seen_by_all(&self, task: Uuid) -> Option<u64> {
        self.waiting.get(&task)?.places.iter().map(|place| place.seen).min()
    }

    /// The next change in what should be listened to. A task that was waited for and left in between does not appear.
    pub fn poll_change(&mut self) -> Option<Change> {
        while let Some(&task) = self.changed.front() {
            let waiting = self.waiting.get_mut(&task).expect("a queued task is kept");
            let spelling = |waiting: &Waiting<K>, i: usize| match i.checked_sub(1) {
                Some(i) => waiting.spellings[i].to_string(),
                None => task.hyphenated().to_string(),
            };
            if waiting.places.is_empty() {
                if let Some(last) = waiting.announced.checked_sub(1) {
                    waiting.announced = last;
                    return Some(Change::Unlisten { task, spelling: spelling(waiting, last) });
                }
                self.waiting.remove(&task);
            } else if waiting.announced <= waiting.spellings.len() {
                waiting.announced += 1;
                return Some(Change::Listen { task, spelling: spelling(waiting, waiting.announced - 1) });
            } else {
                waiting.is_queued = false;
            }
            self.changed.pop_front();
        }
        None
    }

    /// The next result and whom it is for.
    pub fn poll_delivery(&mut self) -> Option<(K, Rc<TaskResult>)> {
        let delivery = self.deliveries.pop_front();
        if self.deliveries.is_empty() && self.deliveries.capacity() > 64 {
            self.deliveries = VecDeque::new();
        }
        delivery
    }

    /// Whether so many deliveries wait that nothing more should be published before they are taken.
    pub fn is_full(&self) -> bool {
        self.deliveries.len() >= DELIVERIES_MAX
    }

    /// Whether somebody waits for `task`.
    pub fn is_waited_for(&self, task: Uuid) -> bool {
        self.waiting.get(&task).is_some_and(|waiting| !waiting.places.is_empty())
    }

    /// Every task that somebody waits for.
    pub fn waited_for(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.waiting.iter().filter(|(_, waiting)| !waiting.places.is_empty()).map(|(task, _)| *task)
    }

    /// Every session that waits, in no order.
    pub fn waiters(&self) -> impl Iterator<Item = K> + '_ {
        self.waiting.values().flat_map(|waiting| &waiting.places).map(|place| place.key)
    }

    /// How clients that wait for `task` wrote its id, apart from lower case with hyphens.
    pub fn spellings(&self, task: Uuid) -> &[Box<str>] {
        self.waiting.get(&task).map_or(&[], |waiting| &waiting.spellings)
    }
}

impl<K: Copy + Eq + Hash> Default for Bus<K> {
    fn default() -> Self {
        Bus::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn task() -> TaskId {
        TaskId::read(ID).unwrap()
    }

    fn shouted() -> TaskId {
        TaskId::read(&ID.to_uppercase()).unwrap()
    }

    fn result(text: &str) -> Rc<TaskResult> {
        Rc::new(TaskResult::read(format!(r#"{{"text":"{text}"}}"#).as_bytes()))
    }

    fn deliveries(bus: &mut Bus<u32>) -> Vec<(u32, Rc<TaskResult>)> {
        std::iter::from_fn(|| bus.poll_delivery()).collect()
    }

    fn changes(bus: &mut Bus<u32>) -> Vec<(bool, String)> {
        let change = |change| match change {
            Change::Listen { spelling, task: uuid } => (uuid == task().uuid(), spelling),
            Change::Unlisten { spelling, .. } => (false, spelling),
        };
        std::iter::from_fn(|| bus.poll_change()).map(change).collect()
    }

    #[test]
    fn everybody_who_waits_gets_everything_in_order() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&shouted(), 2);
        bus.subscribe(&TaskId::from(Uuid::from_u128(7)), 3);
        let (a, b) = (result("a"), result("b"));
        assert_eq!(bus.publish(task().uuid(), 1, || a.clone()), 2);
        assert_eq!(bus.publish(task().uuid(), 2, || b.clone()), 2);
        assert_eq!(bus.publish(Uuid::from_u128(8), 3, || unreachable!("nobody waits")), 0);
        assert_eq!(deliveries(&mut bus), [(1, a.clone()), (2, a), (1, b.clone()), (2, b)]);
        assert_eq!(bus.poll_delivery(), None);
    }

    #[test]
    fn who_left_gets_nothing_even_of_what_was_under_way() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&task(), 2);
        bus.publish(task().uuid(), 1, || result("a"));
        assert!(bus.forget(task().uuid(), 1));
        assert!(!bus.forget(task().uuid(), 1));
        assert!(!bus.forget(Uuid::from_u128(7), 2));
        assert_eq!(deliveries(&mut bus).len(), 1);
        assert!(bus.forget(task().uuid(), 2));
        assert_eq!(bus.publish(task().uuid(), 2, || result("b")), 0);
        assert!(!bus.is_waited_for(task().uuid()));
        assert_eq!(bus.waited_for().count() + bus.waiters().count(), 0);
    }

    #[test]
    fn nothing_is_left_behind() {
        let mut bus = Bus::new();
        for key in 0..1000 {
            bus.subscribe(&TaskId::from(Uuid::from_u128(u128::from(key))), key);
        }
        assert_eq!(changes(&mut bus).len(), 1000);
        for key in 0..1000 {
            bus.forget(Uuid::from_u128(u128::from(key)), key);
        }
        assert_eq!(changes(&mut bus).len(), 1000);
        assert!(bus.waiting.is_empty() && bus.changed.is_empty());
    }

    #[test]
    fn changes_are_told_once_for_each_spelling() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&task(), 2);
        assert_eq!(changes(&mut bus), [(true, ID.into())]);
        bus.subscribe(&shouted(), 3);
        bus.subscribe(&shouted(), 4);
        assert_eq!(changes(&mut bus), [(true, ID.to_uppercase())]);
        assert_eq!(bus.spellings(task().uuid()), [ID.to_uppercase().into_boxed_str()]);
        for key in [3, 1, 4] {
            bus.forget(task().uuid(), key);
        }
        assert_eq!(changes(&mut bus), []);
        bus.forget(task().uuid(), 2);
        assert_eq!(changes(&mut bus), [(false, ID.to_uppercase()), (false, ID.into())]);
        bus.subscribe(&task(), 5);
        assert_eq!(changes(&mut bus), [(true, ID.into())]);
    }

    #[test]
    fn coming_and_going_between_two_looks_is_no_change() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.forget(task().uuid(), 1);
        assert_eq!(changes(&mut bus), []);
        bus.subscribe(&task(), 1);
        assert_eq!(changes(&mut bus), [(true, ID.into())]);
        bus.forget(task().uuid(), 1);
        bus.subscribe(&task(), 2);
        assert_eq!(changes(&mut bus), []);
        for _ in 0..1000 {
            bus.forget(task().uuid(), 2);
            bus.subscribe(&task(), 2);
        }
        assert_eq!(bus.changed.len(), 1);
    }

    #[test]
    fn each_number_is_had_once() {
        let mut bus = Bus::new();
        let uuid = task().uuid();
        let publish = |bus: &mut Bus<u32>, serial| bus.publish(uuid, serial, || result("x"));
        bus.subscribe(&task(), 1);
        assert_eq!(publish(&mut bus, 4), 1);
        assert_eq!(publish(&mut bus, 2), 1);
        bus.have_seen(uuid, 4);
        bus.subscribe(&task(), 2);
        assert_eq!(bus.seen_by_all(uuid), Some(0));
        assert_eq!(publish(&mut bus, 4), 1);
        assert_eq!(publish(&mut bus, 5), 2);
        bus.have_seen(uuid, 5);
        assert_eq!(bus.seen_by_all(uuid), Some(5));
        assert_eq!(bus.publish(uuid, 5, || unreachable!("nobody misses it")), 0);
        assert_eq!(deliveries(&mut bus).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [1, 1, 2, 1, 2]);
    }

    #[test]
    fn a_full_bus_says_so_and_loses_nothing() {
        let mut bus = Bus::new();
        (0..50).for_each(|key| bus.subscribe(&task(), key));
        let mut published = 0;
        while !bus.is_full() {
            published += bus.publish(task().uuid(), 1, || result("a"));
        }
        assert!(published < DELIVERIES_MAX + 50);
        assert_eq!(deliveries(&mut bus).len(), published);
        assert!(!bus.is_full());
    }
}
