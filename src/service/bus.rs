//! Which clients wait for which task, and the results that are queued for them.
//!
//! A publication ends in this queue, and the gateway takes deliveries from it, so no session is
//! entered from another one's step.
//!
//! The bus never drops a result for a client that still waits. When more deliveries are queued than
//! it likes, [`Bus::is_full`] reports it and publishers are not read; Redis and the kernel hold the
//! rest.
//!
//! A task may have thousands of clients, and all of them may leave in one moment. So no event costs
//! a walk over them, apart from a publication, which queues one delivery each: a client is found in
//! a sorted set, and those that miss a result are kept apart from those that have had all. What is
//! queued for a client that leaves stays queued; the caller skips it, because `K` is never used for
//! a second client.

#![expect(clippy::indexing_slicing, reason = "slots come from the table itself")]
#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use crate::base::table::Table;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use uuid::Uuid;

use crate::proto::message::{SharedResult, TaskId};

/// The number of queued deliveries from which on the bus is full.
const DELIVERIES_MAX: usize = 4096;

/// The bus. `K` identifies a client: no two clients have the same, ever, and it sorts clients in
/// the order in which they came.
#[derive(Debug)]
pub struct Bus<K> {
    waiting: Table<TaskWaiters<K>>,
    /// Tasks whose channels may have changed, each at most once.
    changed: VecDeque<Uuid>,
    deliveries: VecDeque<(K, SharedResult)>,
    /// How many deliveries are queued for each client.
    queued: BTreeMap<K, usize>,
}

/// A result on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<K> {
    /// The client, which may have left.
    pub client: K,
    /// The result, which other clients may share.
    pub result: SharedResult,
    /// The number of further results that are queued for this client now.
    pub behind: usize,
}

/// A channel to subscribe to, or to unsubscribe from, if each task has one of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Change {
    /// A client waits for results under this spelling of the task's id.
    Listen { task: Uuid, spelling: String },
    /// No client waits for them any more.
    Unlisten { task: Uuid, spelling: String },
}

/// The clients that wait for one task. Nearly always there is one client, so this is small.
#[derive(Debug)]
struct TaskWaiters<K> {
    waiters: Waiters<K>,
    /// Spellings that were given out by `poll_change`, the usual form being the first.
    announced: u32,
    spellings: Spellings,
    is_queued: bool,
}

/// Clients, apart by whether they have had all that came until [`Bus::mark_caught_up`] was last
/// called.
#[derive(Debug)]
enum Waiters<K> {
    None,
    CaughtUp(K),
    Newcomer(K),
    Many(Box<Crowd<K>>),
}

#[derive(Debug)]
struct Crowd<K> {
    caught_up: BTreeSet<K>,
    newcomers: BTreeSet<K>,
}

/// Spellings of the id other than the usual form. Owns no memory while there are none.
#[derive(Debug, Default)]
struct Spellings(Option<Box<Written>>);

#[derive(Debug, Default)]
struct Written {
    forms: Vec<Box<str>>,
}

impl<K: Copy + Ord> Bus<K> {
    /// Without clients.
    pub fn new() -> Bus<K> {
        Bus {
            waiting: Table::new(),
            changed: VecDeque::new(),
            deliveries: VecDeque::new(),
            queued: BTreeMap::new(),
        }
    }

    /// `key`, which waits for no task yet, waits for `task` from now on.
    pub fn subscribe(&mut self, task: &TaskId, key: K) {
        let uuid = task.uuid();
        let slot = self.waiting.find_or_insert_with(uuid, TaskWaiters::default);
        let waiting = &mut self.waiting[slot];
        waiting.waiters.insert(key);
        if let Some(written) = task.written() {
            waiting.spellings.add(written);
        }
        if waiting.is_unannounced() && !waiting.is_queued {
            waiting.is_queued = true;
            self.changed.push_back(uuid);
        }
    }

    /// `key`, which waited for `task`, is gone. Returns false if it did not wait for that.
    pub fn unsubscribe(&mut self, task: Uuid, key: K) -> bool {
        let Some(slot) = self.waiting.find(task) else { return false };
        let waiting = &mut self.waiting[slot];
        if !waiting.waiters.remove(key) {
            return false;
        }
        if waiting.waiters.is_empty() {
            if waiting.announced == 0 && !waiting.is_queued {
                self.waiting.remove(slot);
            } else if !waiting.is_queued {
                waiting.is_queued = true;
                self.changed.push_back(task);
            }
        }
        true
    }

    /// Queues a result for the clients that have not had it, and returns how many these are.
    /// `is_dispatched`: [`Bus::mark_caught_up`] was called since the result came, so only those
    /// that came after that call miss it. `result` is called at most once.
    pub fn publish(
        &mut self,
        task: Uuid,
        is_dispatched: bool,
        result: impl FnOnce() -> SharedResult,
    ) -> usize {
        let Some(waiting) = self.waiting.entry(task) else { return 0 };
        let caught_up = (!is_dispatched).then(|| waiting.waiters.caught_up()).into_iter().flatten();
        let mut missing = caught_up.chain(waiting.waiters.newcomers()).peekable();
        if missing.peek().is_none() {
            return 0;
        }
        let (result, before) = (result(), self.deliveries.len());
        for key in missing {
            *self.queued.entry(key).or_default() += 1;
            self.deliveries.push_back((key, Rc::clone(&result)));
        }
        self.deliveries.len() - before
    }

    /// Every client that waits for `task` now has had all that came for it.
    pub fn mark_caught_up(&mut self, task: Uuid) {
        if let Some(waiting) = self.waiting.entry_mut(task) {
            waiting.waiters.mark_caught_up();
        }
    }

    /// Whether some client of `task` may miss results that others have had.
    pub fn has_newcomers(&self, task: Uuid) -> bool {
        self.waiting.entry(task).is_some_and(|waiting| waiting.waiters.newcomers().next().is_some())
    }

    /// The next change of channels. A task that gained and lost its clients since the last call
    /// does not appear.
    pub fn poll_change(&mut self) -> Option<Change> {
        while let Some(&task) = self.changed.front() {
            let slot = self.waiting.find(task).expect("a queued task is kept");
            let waiting = &mut self.waiting[slot];
            let spelling = |waiting: &TaskWaiters<K>, number: u32| match number.checked_sub(1) {
                Some(number) => waiting.spellings.all()[number as usize].to_string(),
                None => task.hyphenated().to_string(),
            };
            if waiting.waiters.is_empty() {
                if let Some(last) = waiting.announced.checked_sub(1) {
                    waiting.announced = last;
                    return Some(Change::Unlisten { task, spelling: spelling(waiting, last) });
                }
                self.waiting.remove(slot);
            } else if waiting.is_unannounced() {
                waiting.announced += 1;
                return Some(Change::Listen {
                    task,
                    spelling: spelling(waiting, waiting.announced - 1),
                });
            } else {
                waiting.is_queued = false;
            }
            self.changed.pop_front();
        }
        None
    }

    /// The next result and its client, which may have left.
    pub fn poll_delivery(&mut self) -> Option<Delivery<K>> {
        let (client, result) = self.deliveries.pop_front()?;
        let queued = self.queued.remove(&client).unwrap_or(1);
        if queued > 1 {
            self.queued.insert(client, queued - 1);
        }
        if self.deliveries.is_empty() && self.deliveries.capacity() > 64 {
            self.deliveries = VecDeque::new();
        }
        Some(Delivery { client, result, behind: queued - 1 })
    }

    /// Whether no more should be published before deliveries are taken.
    pub fn is_full(&self) -> bool {
        self.deliveries.len() >= DELIVERIES_MAX
    }

    /// Whether deliveries are queued.
    pub fn has_deliveries(&self) -> bool {
        !self.deliveries.is_empty()
    }

    /// Whether a client waits for `task`.
    pub fn is_waited_for(&self, task: Uuid) -> bool {
        self.waiting.entry(task).is_some_and(|waiting| !waiting.waiters.is_empty())
    }

    /// Every task that a client waits for.
    pub fn waited_for(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.waiting.iter().filter(|(_, waiting)| !waiting.waiters.is_empty()).map(|(task, _)| task)
    }

    /// Every session that waits, in no order.
    pub fn waiters(&self) -> impl Iterator<Item = K> + '_ {
        self.waiting.iter().flat_map(|(_, waiting)| waiting.waiters.iter())
    }

    /// The spellings of the id by clients of `task`, other than lower case with hyphens.
    pub fn spellings(&self, task: Uuid) -> &[Box<str>] {
        self.waiting.entry(task).map_or(&[], |waiting| waiting.spellings.all())
    }
}

impl<K: Copy + Ord> Waiters<K> {
    fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.caught_up().chain(self.newcomers())
    }

    fn caught_up(&self) -> impl Iterator<Item = K> + '_ {
        let (one, many) = match self {
            Waiters::CaughtUp(key) => (Some(*key), None),
            Waiters::Many(crowd) => (None, Some(crowd.caught_up.iter().copied())),
            Waiters::None | Waiters::Newcomer(_) => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn newcomers(&self) -> impl Iterator<Item = K> + '_ {
        let (one, many) = match self {
            Waiters::Newcomer(key) => (Some(*key), None),
            Waiters::Many(crowd) => (None, Some(crowd.newcomers.iter().copied())),
            Waiters::None | Waiters::CaughtUp(_) => (None, None),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn insert(&mut self, key: K) {
        if let Waiters::None = self {
            *self = Waiters::Newcomer(key);
            return;
        }
        self.crowd().newcomers.insert(key);
    }

    fn remove(&mut self, key: K) -> bool {
        match self {
            Waiters::None => false,
            Waiters::CaughtUp(one) | Waiters::Newcomer(one) if *one == key => {
                *self = Waiters::None;
                true
            }
            Waiters::CaughtUp(_) | Waiters::Newcomer(_) => false,
            Waiters::Many(crowd) => {
                let is_removed = crowd.caught_up.remove(&key) || crowd.newcomers.remove(&key);
                if crowd.caught_up.is_empty() && crowd.newcomers.is_empty() {
                    *self = Waiters::None;
                }
                is_removed
            }
        }
    }

    fn mark_caught_up(&mut self) {
        match self {
            Waiters::Newcomer(key) => *self = Waiters::CaughtUp(*key),
            Waiters::Many(crowd) => {
                while let Some(key) = crowd.newcomers.pop_first() {
                    crowd.caught_up.insert(key);
                }
            }
            Waiters::None | Waiters::CaughtUp(_) => {}
        }
    }

    fn crowd(&mut self) -> &mut Crowd<K> {
        if !matches!(self, Waiters::Many(_)) {
            let caught_up = self.caught_up().collect();
            let newcomers = self.newcomers().collect();
            *self = Waiters::Many(Box::new(Crowd { caught_up, newcomers }));
        }
        match self {
            Waiters::Many(crowd) => crowd,
            Waiters::None | Waiters::CaughtUp(_) | Waiters::Newcomer(_) => {
                unreachable!("it was just made a crowd")
            }
        }
    }
}

impl<K> TaskWaiters<K> {
    /// Whether `poll_change` has not returned a spelling yet, the usual form included.
    fn is_unannounced(&self) -> bool {
        self.announced as usize <= self.spellings.all().len()
    }
}

impl<K> Default for TaskWaiters<K> {
    fn default() -> Self {
        TaskWaiters {
            waiters: Waiters::None,
            announced: 0,
            spellings: Spellings::default(),
            is_queued: false,
        }
    }
}

impl Spellings {
    fn all(&self) -> &[Box<str>] {
        self.0.as_deref().map_or(&[], |written| &written.forms)
    }

    fn add(&mut self, written: &str) {
        if self.all().iter().all(|known| **known != *written) {
            self.0.get_or_insert_default().forms.push(written.into());
        }
    }
}

impl<K: Copy + Ord> Default for Bus<K> {
    fn default() -> Self {
        Bus::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::budget::Budget;
    use crate::proto::message::TaskResult;
    use std::cell::Cell;
    use std::cmp::Ordering;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn task() -> TaskId {
        TaskId::read(ID).unwrap()
    }

    fn upper_case() -> TaskId {
        TaskId::read(&ID.to_uppercase()).unwrap()
    }

    fn result(text: &str) -> SharedResult {
        TaskResult::read(format!(r#"{{"text":"{text}"}}"#).as_bytes()).shared(&Budget::default())
    }

    fn deliveries(bus: &mut Bus<u32>) -> Vec<(u32, SharedResult)> {
        std::iter::from_fn(|| bus.poll_delivery())
            .map(|delivery| (delivery.client, delivery.result))
            .collect()
    }

    fn changes(bus: &mut Bus<u32>) -> Vec<(bool, String)> {
        let change = |change| match change {
            Change::Listen { spelling, task: uuid } => (uuid == task().uuid(), spelling),
            Change::Unlisten { spelling, .. } => (false, spelling),
        };
        std::iter::from_fn(|| bus.poll_change()).map(change).collect()
    }

    #[test]
    fn every_waiter_gets_every_result_in_order() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&upper_case(), 2);
        bus.subscribe(&TaskId::from(Uuid::from_u128(7)), 3);
        let (a, b) = (result("a"), result("b"));
        assert_eq!(bus.publish(task().uuid(), false, || a.clone()), 2);
        assert_eq!(bus.publish(task().uuid(), false, || b.clone()), 2);
        assert_eq!(bus.publish(Uuid::from_u128(8), false, || unreachable!("no client waits")), 0);
        assert_eq!(deliveries(&mut bus), [(1, a.clone()), (2, a), (1, b.clone()), (2, b)]);
        assert_eq!(bus.poll_delivery(), None);
    }

    #[test]
    fn client_that_left_gets_nothing_more() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&task(), 2);
        bus.publish(task().uuid(), false, || result("a"));
        assert!(bus.unsubscribe(task().uuid(), 1));
        assert!(!bus.unsubscribe(task().uuid(), 1));
        assert!(!bus.unsubscribe(Uuid::from_u128(7), 2));
        assert_eq!(deliveries(&mut bus).len(), 2, "what was queued stays, for the caller to skip");
        bus.publish(task().uuid(), false, || result("a"));
        assert_eq!(deliveries(&mut bus).len(), 1);
        assert!(bus.unsubscribe(task().uuid(), 2));
        assert_eq!(bus.publish(task().uuid(), false, || result("b")), 0);
        assert!(!bus.is_waited_for(task().uuid()));
        assert_eq!(bus.waited_for().count() + bus.waiters().count(), 0);
    }

    #[test]
    fn no_memory_of_tasks_that_were_left() {
        let mut bus = Bus::new();
        for key in 0..1000 {
            bus.subscribe(&TaskId::from(Uuid::from_u128(u128::from(key))), key);
        }
        assert_eq!(changes(&mut bus).len(), 1000);
        for key in 0..1000 {
            bus.unsubscribe(Uuid::from_u128(u128::from(key)), key);
        }
        assert_eq!(changes(&mut bus).len(), 1000);
        assert!(bus.waiting.is_empty() && bus.changed.is_empty());
    }

    #[test]
    fn each_spelling_is_announced_once() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&task(), 2);
        assert_eq!(changes(&mut bus), [(true, ID.into())]);
        bus.subscribe(&upper_case(), 3);
        bus.subscribe(&upper_case(), 4);
        assert_eq!(changes(&mut bus), [(true, ID.to_uppercase())]);
        assert_eq!(bus.spellings(task().uuid()), [ID.to_uppercase().into_boxed_str()]);
        for key in [3, 1, 4] {
            bus.unsubscribe(task().uuid(), key);
        }
        assert_eq!(changes(&mut bus), []);
        bus.unsubscribe(task().uuid(), 2);
        assert_eq!(changes(&mut bus), [(false, ID.to_uppercase()), (false, ID.into())]);
        bus.subscribe(&task(), 5);
        assert_eq!(changes(&mut bus), [(true, ID.into())]);
    }

    #[test]
    fn arrival_and_departure_between_polls_is_no_change() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.unsubscribe(task().uuid(), 1);
        assert_eq!(changes(&mut bus), []);
        bus.subscribe(&task(), 1);
        assert_eq!(changes(&mut bus), [(true, ID.into())]);
        bus.unsubscribe(task().uuid(), 1);
        bus.subscribe(&task(), 2);
        assert_eq!(changes(&mut bus), []);
        for _ in 0..1000 {
            bus.unsubscribe(task().uuid(), 2);
            bus.subscribe(&task(), 2);
        }
        assert_eq!(bus.changed.len(), 1);
    }

    #[test]
    fn each_waiter_gets_each_result_once() {
        let mut bus = Bus::new();
        let uuid = task().uuid();
        let publish =
            |bus: &mut Bus<u32>, is_dispatched| bus.publish(uuid, is_dispatched, || result("x"));
        bus.subscribe(&task(), 1);
        assert_eq!(publish(&mut bus, false), 1);
        bus.mark_caught_up(uuid);
        bus.subscribe(&task(), 2);
        assert_eq!(publish(&mut bus, true), 1);
        assert_eq!(publish(&mut bus, false), 2);
        bus.mark_caught_up(uuid);
        assert_eq!(bus.publish(uuid, true, || unreachable!("no client lacks it")), 0);
        bus.subscribe(&task(), 3);
        bus.subscribe(&task(), 4);
        bus.unsubscribe(uuid, 1);
        bus.unsubscribe(uuid, 3);
        assert_eq!(publish(&mut bus, true), 1);
        assert_eq!(
            deliveries(&mut bus).into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
            [1, 2, 1, 2, 4]
        );
        bus.subscribe(&task(), 5);
        assert_eq!(publish(&mut bus, false), 3);
        assert_eq!(
            deliveries(&mut bus).into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
            [2, 4, 5]
        );
    }

    #[test]
    fn waiter_is_small() {
        assert!(size_of::<(Uuid, TaskWaiters<(u32, u32)>)>() <= 56);
    }

    /// A key that counts how often any of them is compared.
    #[derive(Debug, Clone, Copy)]
    struct Counted(u32, &'static Cell<usize>);

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }

    impl Eq for Counted {}

    #[test]
    fn work_of_a_crowd_that_comes_and_leaves_grows_with_its_size_and_not_its_square() {
        const CLIENTS: u32 = 5000;
        let comparisons: &'static Cell<usize> = Box::leak(Box::default());
        let uuid = task().uuid();
        let mut bus = Bus::new();
        for number in 0..CLIENTS {
            bus.subscribe(&task(), Counted(number, comparisons));
            assert_eq!(bus.publish(uuid, true, || result("kept")), 1, "only the newcomer");
            bus.mark_caught_up(uuid);
        }
        bus.publish(uuid, false, || result("new"));
        for number in 0..CLIENTS {
            assert!(bus.unsubscribe(uuid, Counted(number, comparisons)));
        }
        let per_client = comparisons.get() / CLIENTS as usize;
        assert!(per_client < 200, "{per_client} comparisons a client");
    }

    #[test]
    fn delivery_has_the_number_of_those_behind_it() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.publish(task().uuid(), false, || result("a"));
        bus.subscribe(&task(), 2);
        for _ in 0..2 {
            bus.publish(task().uuid(), false, || result("b"));
        }
        let behind = |bus: &mut Bus<u32>| {
            std::iter::from_fn(|| bus.poll_delivery())
                .map(|it| (it.client, it.behind))
                .collect::<Vec<_>>()
        };
        assert_eq!(behind(&mut bus), [(1, 2), (1, 1), (2, 1), (1, 0), (2, 0)]);
        assert!(bus.queued.is_empty());
    }

    #[test]
    fn full_bus_reports_it_and_loses_nothing() {
        let mut bus = Bus::new();
        (0..50).for_each(|key| bus.subscribe(&task(), key));
        let mut published = 0;
        while !bus.is_full() {
            published += bus.publish(task().uuid(), false, || result("a"));
        }
        assert!(published < DELIVERIES_MAX + 50);
        assert_eq!(deliveries(&mut bus).len(), published);
        assert!(!bus.is_full());
    }
}
