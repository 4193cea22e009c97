//! Which clients wait for which task, and the results that are queued for them.
//!
//! A publication ends in this queue, and the gateway takes deliveries from it, so no session is
//! entered from another one's step.
//!
//! The bus never drops a result for a client that still waits. When too many deliveries are queued,
//! [`Bus::is_full`] reports it: tasks whose clients miss something become *due* and wait
//! for room, and publishers are not read; Redis and the kernel hold the rest.
//!
//! A task may have thousands of clients, and all of them may leave in one moment. So no event costs
//! a walk over them, apart from a publication, which queues one delivery each: a client is found in
//! a sorted set, and those that miss a result are kept apart from those that have had all. What is
//! queued for a client that leaves stays queued; the caller skips it, because `K` is never used for
//! a second client.

#![expect(clippy::indexing_slicing, reason = "slots come from the table itself")]
#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use crate::base::budget::Charged;
use crate::base::queue;
use crate::base::table::Table;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use uuid::Uuid;

use crate::proto::message::TaskId;

/// The number of queued deliveries at which the bus is full, if nothing else is set.
const DELIVERIES_MAX: usize = 4096;

/// The bus. `K` identifies a client: no two clients have the same, ever, and it sorts clients in
/// the order in which they came.
#[derive(Debug)]
pub struct Bus<K> {
    waiting: Table<TaskWaiters<K>>,
    /// Tasks whose channels may have changed, each at most once.
    changed: VecDeque<Uuid>,
    deliveries: VecDeque<Delivery<K>>,
    deliveries_max: usize,
    /// Tasks whose clients miss something that there was no room for, each at most once.
    due: VecDeque<Uuid>,
    /// How many deliveries are queued for each client.
    queued: BTreeMap<K, usize>,
}

/// What is on its way to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Parcel {
    /// A result as the worker published it, which other clients share, with its `result_id` unless
    /// it is a progress message.
    Result {
        id: Option<u32>,
        payload: Rc<[u8]>,
        /// Of a payload that is not kept: counted for as long as it is queued for any client.
        charge: Option<Rc<Charged<()>>>,
    },
    /// Speech that the gateway received, which has no text.
    Speech {
        /// Its `result_id`.
        id: u32,
    },
    /// Results of the task are gone that the client would have been given.
    Missing,
    /// The task was stopped.
    Stop(StoppedBy),
}

/// Who asked to stop a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// A client of the task.
    Client,
    /// A request for `/control/stop`.
    Http,
    /// A publication on its control channel.
    Channel,
}

impl StoppedBy {
    /// The word for the log.
    pub fn word(self) -> &'static str {
        match self {
            StoppedBy::Client => "client",
            StoppedBy::Http => "http",
            StoppedBy::Channel => "channel",
        }
    }
}

/// A parcel and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<K> {
    /// The client, which may have left.
    pub client: K,
    /// The task that it waits for.
    pub task: Uuid,
    /// What it gets.
    pub parcel: Parcel,
}

/// The clients of a task that get a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// Those that have had everything before it.
    CaughtUp,
    /// Those and the newcomers, which have had nothing yet.
    All,
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
    is_due: bool,
}

/// Clients, apart by whether they have had all that was published, or nothing yet: see
/// [`Bus::catch_up`].
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
            deliveries_max: DELIVERIES_MAX,
            due: VecDeque::new(),
            queued: BTreeMap::new(),
        }
    }

    /// From now on, this many queued deliveries fill it.
    pub fn limit(&mut self, deliveries_max: usize) {
        self.deliveries_max = deliveries_max;
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

    /// Queues a result for clients of its task, and returns how many these are.
    pub fn publish(&mut self, task: Uuid, recipients: Recipients, result: &Parcel) -> usize {
        let Some(waiting) = self.waiting.entry(task) else { return 0 };
        let newcomers = (recipients == Recipients::All).then(|| waiting.waiters.newcomers());
        let before = self.deliveries.len();
        for client in waiting.waiters.caught_up().chain(newcomers.into_iter().flatten()) {
            *self.queued.entry(client).or_default() += 1;
            let parcel = result.clone();
            self.deliveries.push_back(Delivery { client, task, parcel });
        }
        self.deliveries.len() - before
    }

    /// Queues `parcels`, all there is for `task`, for the first client that has had nothing yet. It
    /// has caught up then. False: there is no such client.
    pub fn catch_up(&mut self, task: Uuid, parcels: impl Iterator<Item = Parcel>) -> bool {
        let waiting = self.waiting.entry_mut(task);
        let Some(client) = waiting.and_then(|waiting| waiting.waiters.catch_up()) else {
            return false;
        };
        let before = self.deliveries.len();
        self.deliveries.extend(parcels.map(|parcel| Delivery { client, task, parcel }));
        let count = self.deliveries.len() - before;
        if count > 0 {
            *self.queued.entry(client).or_default() += count;
        }
        true
    }

    /// Drops what is queued for the clients of `task`, and queues [`Parcel::Stop`] for each, in
    /// front of everything else. Returns how many these are.
    pub fn stop(&mut self, task: Uuid, by: StoppedBy) -> usize {
        let Some(waiting) = self.waiting.entry(task) else { return 0 };
        let queued = &mut self.queued;
        // Nearly always nothing is queued, and then the others' deliveries are not walked through.
        if waiting.waiters.iter().any(|client| queued.contains_key(&client)) {
            self.deliveries.retain(|one| {
                if one.task == task {
                    queued.remove(&one.client);
                }
                one.task != task
            });
        }
        let clients: Vec<K> = waiting.waiters.iter().collect();
        for &client in &clients {
            queued.insert(client, 1);
            self.deliveries.push_front(Delivery { client, task, parcel: Parcel::Stop(by) });
        }
        clients.len()
    }

    /// Clients of `task` miss something, and there is no room for it now.
    pub fn mark_due(&mut self, task: Uuid) {
        if let Some(waiting) = self.waiting.entry_mut(task)
            && !std::mem::replace(&mut waiting.is_due, true)
        {
            self.due.push_back(task);
        }
    }

    /// Whether clients of `task` miss something that there was no room for.
    pub fn is_due(&self, task: Uuid) -> bool {
        !self.due.is_empty() && self.waiting.entry(task).is_some_and(|waiting| waiting.is_due)
    }

    /// The next task whose clients miss something. It is due no longer.
    pub fn poll_due(&mut self) -> Option<Uuid> {
        let task = queue::take_first(&mut self.due)?;
        if let Some(waiting) = self.waiting.entry_mut(task) {
            waiting.is_due = false;
        }
        if self.due.is_empty() {
            self.due = VecDeque::new();
        }
        Some(task)
    }

    /// Whether some client of `task` has had nothing yet.
    pub fn has_newcomers(&self, task: Uuid) -> bool {
        self.waiting.entry(task).is_some_and(|waiting| waiting.waiters.newcomers().next().is_some())
    }

    /// Whether this client of `task` has had nothing yet.
    pub fn is_newcomer(&self, task: Uuid, client: K) -> bool {
        self.waiting.entry(task).is_some_and(|waiting| waiting.waiters.is_newcomer(client))
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
            queue::take_first(&mut self.changed);
        }
        None
    }

    /// The next delivery, and the number of further ones that are queued for its client.
    pub fn poll_delivery(&mut self) -> Option<(Delivery<K>, usize)> {
        let delivery = queue::take_first(&mut self.deliveries)?;
        let queued = self.queued.remove(&delivery.client).unwrap_or(1);
        if queued > 1 {
            self.queued.insert(delivery.client, queued - 1);
        }
        Some((delivery, queued - 1))
    }

    /// Whether deliveries should be taken before more is queued.
    pub fn is_full(&self) -> bool {
        self.deliveries.len() >= self.deliveries_max
    }

    /// Queued deliveries.
    #[cfg(test)]
    pub fn queued(&self) -> usize {
        self.deliveries.len()
    }

    /// Whether deliveries are queued.
    pub fn has_deliveries(&self) -> bool {
        !self.deliveries.is_empty()
    }

    /// Whether any task is due.
    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether a client waits for `task`.
    pub fn is_waited_for(&self, task: Uuid) -> bool {
        self.waiting.entry(task).is_some_and(|waiting| !waiting.waiters.is_empty())
    }

    /// The first place from `place` on whose task a client waits for, and that task. A walk over
    /// all tasks can pause between two places.
    pub fn waited_for_from(&self, place: usize) -> Option<(usize, Uuid)> {
        let mut tasks = self.waiting.iter_from(place);
        let (place, task, _) = tasks.find(|(_, _, waiting)| !waiting.waiters.is_empty())?;
        Some((place, task))
    }

    /// Whether results are queued for this client.
    pub fn has_queued(&self, client: K) -> bool {
        self.queued.contains_key(&client)
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

    fn is_newcomer(&self, client: K) -> bool {
        match self {
            Waiters::Newcomer(key) => *key == client,
            Waiters::Many(crowd) => crowd.newcomers.contains(&client),
            Waiters::None | Waiters::CaughtUp(_) => false,
        }
    }

    /// The first newcomer, which is none from now on.
    fn catch_up(&mut self) -> Option<K> {
        match self {
            Waiters::Newcomer(key) => {
                let key = *key;
                *self = Waiters::CaughtUp(key);
                Some(key)
            }
            Waiters::Many(crowd) => {
                let key = crowd.newcomers.pop_first()?;
                crowd.caught_up.insert(key);
                Some(key)
            }
            Waiters::None | Waiters::CaughtUp(_) => None,
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
            is_due: false,
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
    use std::cell::Cell;
    use std::cmp::Ordering;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn task() -> TaskId {
        TaskId::read(ID).unwrap()
    }

    fn upper_case() -> TaskId {
        TaskId::read(&ID.to_uppercase()).unwrap()
    }

    fn result(text: &str) -> Parcel {
        Parcel::Result { id: Some(7), payload: text.as_bytes().into(), charge: None }
    }

    /// Every newcomer gets these results.
    fn catch_up(bus: &mut Bus<u32>, results: &[&Parcel]) {
        let parcels = || results.iter().copied().cloned();
        while bus.catch_up(task().uuid(), parcels()) {}
    }

    fn deliveries(bus: &mut Bus<u32>) -> Vec<(u32, Parcel)> {
        let of = |(delivery, _): (Delivery<u32>, usize)| (delivery.client, delivery.parcel);
        std::iter::from_fn(|| bus.poll_delivery()).map(of).collect()
    }

    fn changes(bus: &mut Bus<u32>) -> Vec<(bool, String)> {
        let change = |change| match change {
            Change::Listen { spelling, task: uuid } => (uuid == task().uuid(), spelling),
            Change::Unlisten { spelling, .. } => (false, spelling),
        };
        std::iter::from_fn(|| bus.poll_change()).map(change).collect()
    }

    #[test]
    fn stop_comes_before_everything_and_in_place_of_what_was_queued() {
        let mut bus = Bus::new();
        let other = TaskId::from(Uuid::nil());
        bus.subscribe(&task(), 1);
        bus.subscribe(&task(), 2);
        bus.subscribe(&other, 3);
        while bus.catch_up(task().uuid(), [].into_iter()) {}
        while bus.catch_up(other.uuid(), [].into_iter()) {}
        bus.publish(other.uuid(), Recipients::CaughtUp, &result("a"));
        bus.publish(task().uuid(), Recipients::CaughtUp, &result("b"));
        let by = StoppedBy::Client;
        assert_eq!((bus.stop(task().uuid(), by), bus.queued()), (2, 3));
        let mut got = deliveries(&mut bus);
        got[..2].sort_by_key(|(client, _)| *client);
        assert_eq!(got, [(1, Parcel::Stop(by)), (2, Parcel::Stop(by)), (3, result("a"))]);
        assert!(!bus.has_queued(1) && bus.stop(Uuid::from_u128(99), by) == 0);
    }

    #[test]
    fn every_waiter_gets_every_result_in_order() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&upper_case(), 2);
        bus.subscribe(&TaskId::from(Uuid::from_u128(7)), 3);
        let (a, b) = (result("a"), result("b"));
        assert_eq!(bus.publish(task().uuid(), Recipients::All, &a), 2);
        assert_eq!(bus.publish(task().uuid(), Recipients::All, &b), 2);
        assert_eq!(bus.publish(Uuid::from_u128(8), Recipients::All, &b), 0, "no client waits");
        assert_eq!(deliveries(&mut bus), [(1, a.clone()), (2, a), (1, b.clone()), (2, b)]);
        assert_eq!(bus.poll_delivery(), None);
    }

    #[test]
    fn client_that_left_gets_nothing_more() {
        let mut bus = Bus::new();
        bus.subscribe(&task(), 1);
        bus.subscribe(&task(), 2);
        bus.publish(task().uuid(), Recipients::All, &result("a"));
        assert!(bus.unsubscribe(task().uuid(), 1));
        assert!(!bus.unsubscribe(task().uuid(), 1));
        assert!(!bus.unsubscribe(Uuid::from_u128(7), 2));
        assert_eq!(deliveries(&mut bus).len(), 2, "what was queued stays, for the caller to skip");
        bus.publish(task().uuid(), Recipients::All, &result("a"));
        assert_eq!(deliveries(&mut bus).len(), 1);
        assert!(bus.unsubscribe(task().uuid(), 2));
        assert_eq!(bus.publish(task().uuid(), Recipients::All, &result("b")), 0);
        assert!(!bus.is_waited_for(task().uuid()));
        assert_eq!(bus.waited_for_from(0), None);
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
        let [a, b, c] = ["a", "b", "c"].map(result);
        bus.subscribe(&task(), 1);
        assert_eq!(bus.publish(uuid, Recipients::CaughtUp, &a), 0);
        catch_up(&mut bus, &[&a]);
        bus.subscribe(&task(), 2);
        bus.subscribe(&task(), 3);
        bus.subscribe(&task(), 4);
        bus.unsubscribe(uuid, 3);
        assert!(bus.is_newcomer(uuid, 4) && !bus.is_newcomer(uuid, 1));
        assert_eq!(bus.publish(uuid, Recipients::CaughtUp, &b), 1);
        catch_up(&mut bus, &[&a, &b]);
        bus.unsubscribe(uuid, 1);
        assert_eq!(bus.publish(uuid, Recipients::CaughtUp, &c), 2);
        let expected = [
            (1, a.clone()),
            (1, b.clone()),
            (2, a.clone()),
            (2, b.clone()),
            (4, a),
            (4, b),
            (2, c.clone()),
            (4, c),
        ];
        assert_eq!(deliveries(&mut bus), expected);
        assert!(!bus.catch_up(uuid, [].into_iter()), "no client lacks anything");
    }

    #[test]
    fn a_task_is_due_once_until_it_is_polled() {
        let mut bus = Bus::new();
        let uuid = task().uuid();
        bus.mark_due(uuid);
        assert!(!bus.has_due(), "no client waits");
        bus.subscribe(&task(), 1);
        (0..3).for_each(|_| bus.mark_due(uuid));
        assert!(bus.is_due(uuid));
        assert_eq!((bus.poll_due(), bus.poll_due()), (Some(uuid), None));
        assert!(!bus.is_due(uuid));
    }

    #[test]
    fn a_walk_over_the_tasks_can_pause() {
        let mut bus = Bus::new();
        for number in 0..10_u32 {
            bus.subscribe(&TaskId::from(Uuid::from_u128(u128::from(number))), number);
        }
        bus.unsubscribe(Uuid::from_u128(3), 3);
        let (mut place, mut seen) = (0, Vec::new());
        while let Some((at, task)) = bus.waited_for_from(place) {
            seen.push(task.as_u128());
            place = at + 1;
        }
        assert_eq!(seen, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
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
            assert!(bus.catch_up(uuid, [Parcel::Missing].into_iter()), "only the newcomer");
        }
        bus.publish(uuid, Recipients::All, &result("new"));
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
        bus.publish(task().uuid(), Recipients::All, &result("a"));
        bus.subscribe(&task(), 2);
        for _ in 0..2 {
            bus.publish(task().uuid(), Recipients::All, &result("b"));
        }
        let behind = |bus: &mut Bus<u32>| {
            std::iter::from_fn(|| bus.poll_delivery())
                .map(|(delivery, behind)| (delivery.client, behind))
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
            published += bus.publish(task().uuid(), Recipients::All, &result("a"));
        }
        assert!(published < DELIVERIES_MAX + 50);
        assert_eq!(deliveries(&mut bus).len(), published);
        assert!(!bus.is_full());
    }
}
