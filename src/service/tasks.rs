//! What is known of each task: its results while they are retained, and how far its clients are.
//!
//! A task is known from its first result or its first client on, until nobody waits for it, nothing of it is retained and its end is
//! `retain` ago. Every result is retained, delivered or not, because a client may come back for the rest of it; the oldest goes
//! first, by age or because `max_retained` is reached. What a result costs apart from its bytes is counted too, so that
//! `max_retained` is what the process really grows by.
//!
//! Results carry no number. Two of them may be equal to the last byte and still be two results, and the same one may reach the
//! gateway in several ways: published on the channel, kept by Redis (whichever gateway kept it), set by the worker. So equal results
//! are counted. During one uninterrupted [`Subscription`], the n-th equal publication that this gateway hears is the n-th one that
//! any gateway heard since, so two gateways agree on it without talking to each other. A result that a worker has `SET` is about to
//! be published, perhaps only after a retry, so its publication is recognised during any subscription (`Origin::Set`).

use crate::base::moment::Moment;
use crate::base::table::{Slot, Table};
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

/// What a retained result costs besides its own bytes: its task, its shares of a table and of the queue, an allocation. Bytes, measured
/// where results come and go: 165 to 190 of their own, the rest is what they leave unused between them.
const RESULT_COST: usize = 256;
/// Results that are remembered of one task, retained or not.
const RESULTS_MAX: usize = 4096;
/// Ended tasks that are remembered beyond their results.
const ENDED_MAX: usize = 65_536;

/// How long and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a result is kept, and how long the end of a task is known. `None`: nothing is kept.
    pub retain: Option<Duration>,
    /// Bytes of memory for kept results, in all.
    pub max_retained: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { retain: Some(Duration::from_secs(300)), max_retained: 16 * 1024 * 1024 }
    }
}

/// One unbroken time of listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Tells one ear from the next. Never 0, except in [`Subscription::UNKNOWN`].
    pub number: u32,
    /// A moment at which it did not listen yet: microseconds of Redis' clock.
    pub since: u64,
}

impl Subscription {
    /// For what is heard when nothing is known about the listening.
    pub const UNKNOWN: Subscription = Subscription { number: 0, since: 0 };
}

/// A result that Redis keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptResult {
    /// When it was stored: microseconds of Redis' clock; or [`KeptResult::NOT_PUBLISHED`].
    pub at: u64,
    /// What the worker published.
    pub payload: Vec<u8>,
}

impl KeptResult {
    /// The time of what a worker has set and nobody has heard yet: later than all others.
    pub const NOT_PUBLISHED: u64 = 9_999_999_999_999_999;
}

/// A result among the others of its task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// Equal results have equal numbers.
    pub hash: u64,
    /// It is the so-manieth equal one that this ear heard, from 1. 0: it was not heard, a worker has set it.
    pub nth: u32,
    /// Hash and count of what the ear heard before it on this task.
    pub before: Option<(u64, u32)>,
}

/// How far one client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// It waits for a result.
    Waiting,
    /// A result is on its origin to it.
    Sending,
}

/// How a task ended for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// The final result went out whole.
    Completed,
    /// The worker reported a failure or something malformed, or the delivery broke.
    Failed,
    /// No result came in time.
    TimedOut,
}

/// How a task stands, over all its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    NotFound,
    /// A client is there, but its results cannot be listened to yet; see `Results::status`.
    Connected,
    Waiting,
    Sending,
    Completed,
    Ready,
    Failed,
    TimedOut,
}

impl Status {
    /// As `/status/{task_id}` says it.
    pub fn word(self) -> &'static str {
        match self {
            Status::NotFound => "not_found",
            Status::Connected => "connected",
            Status::Waiting => "waiting",
            Status::Sending => "sending",
            Status::Completed => "completed",
            Status::Ready => "ready",
            Status::Failed => "failed",
            Status::TimedOut => "timeout",
        }
    }
}

/// All tasks.
#[derive(Debug)]
pub struct Tasks {
    settings: Settings,
    tasks: Table<Task>,
    /// Retained results, the oldest in front. Their tasks are known.
    retained: VecDeque<Retained>,
    retained_bytes: usize,
    /// Ends, the oldest in front. Only a task's latest end counts, and until that is over the task is known.
    ended: VecDeque<(Moment, Slot)>,
    evicted: u64,
    forgotten: VecDeque<Uuid>,
}

#[derive(Debug, Default)]
struct Task {
    /// In the order in which they were published, as far as that is known. Most tasks have one.
    results: SmallVec<[KnownResult; 1]>,
    /// The number of the result that came last.
    last_number: u32,
    /// How many clients there are at each stage.
    clients: [u32; 2],
    end: Option<TaskEnd>,
    /// How many ends of it stand among all ends.
    ends: u32,
    /// The ear for which Redis was asked what it keeps, and answered.
    settled: Option<NonZeroU32>,
    last_heard: Option<LastHeard>,
}

/// What was heard last, and by which subscription.
#[derive(Clone, Copy, Debug)]
struct LastHeard {
    hash: u64,
    subscription: u32,
    nth: NonZeroU32,
}

/// One result.
#[derive(Debug)]
struct KnownResult {
    hash: u64,
    /// What Redis stored before this moment is older: microseconds of its clock.
    since: u64,
    /// `None` once it is no longer retained. The rest stays as long as the task, so that the result is recognised.
    payload: Option<Rc<[u8]>>,
    origin: Origin,
    /// Tells it from the others of its task. Numbers come round once all of the first ones have long been forgotten.
    number: u32,
    is_dispatched: bool,
}

/// A retained result among all others.
#[derive(Clone, Copy, Debug)]
struct Retained {
    at: Moment,
    task: Slot,
    number: u32,
}

/// One that Redis keeps, and that was not known.
struct NewResult {
    /// It belongs before the known one at this waiter.
    place: usize,
    /// And not behind this one, which follows it in Redis.
    before: Option<usize>,
    at: u64,
    hash: u64,
    origin: Origin,
    payload: Vec<u8>,
}

/// How we came to know a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The ear of this number heard it.
    Published(u32),
    /// Redis keeps it, and no ear of ours heard it.
    Kept,
    /// The worker has set it, and has not published it yet.
    Set,
}

impl Tasks {
    /// No task yet.
    pub fn new(settings: Settings) -> Tasks {
        Tasks {
            settings,
            tasks: Table::new(),
            retained: VecDeque::new(),
            retained_bytes: 0,
            ended: VecDeque::new(),
            evicted: 0,
            forgotten: VecDeque::new(),
        }
    }

    /// Other limits from now on; [`Tasks::trim`] applies them.
    pub fn reload(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The limits in effect.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Bytes of memory for kept results, in all.
    pub fn max_retained(&self) -> usize {
        self.settings.max_retained
    }

    /// A publication was heard. Whoever waits gets it through [`Tasks::results`]; call [`Tasks::trim`] afterwards.
    pub fn handle_published(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        payload: Rc<[u8]>,
    ) -> Occurrence {
        let hash = xxh3_64(&payload);
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let known = &mut self.tasks[slot];
        let like = known
            .results
            .iter()
            .filter(|one| one.hash == hash && one.origin == Origin::Published(subscription.number))
            .count();
        let nth = NonZeroU32::MIN.saturating_add(like as u32);
        let last =
            known.last_heard.replace(LastHeard { hash, subscription: subscription.number, nth });
        let before = last
            .filter(|last| last.subscription == subscription.number)
            .map(|last| (last.hash, last.nth.get()));
        let claimed =
            known.results.iter_mut().find(|one| one.hash == hash && one.origin == Origin::Set);
        match claimed {
            Some(one) => one.origin = Origin::Published(subscription.number),
            None => self.add(
                now,
                slot,
                Origin::Published(subscription.number),
                subscription.since,
                hash,
                payload,
            ),
        }
        Occurrence { hash, nth: nth.get(), before }
    }

    /// Redis answered what it keeps of a task (`kept`, in order), and what the worker has set there; and `ear` has heard everything
    /// that was published before that answer. What was not known joins the results, in Redis' order; what was heard stays in the
    /// order in which it was heard. Answers those of the worker's that nobody has heard yet, to be kept like publications.
    pub fn handle_looked_up(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        kept: Vec<KeptResult>,
        set: Vec<Vec<u8>>,
    ) -> Vec<(Occurrence, Rc<[u8]>)> {
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let known = &mut self.tasks[slot];
        known.settled = NonZeroU32::new(subscription.number);
        let results = &known.results;
        let mut is_matched = vec![false; results.len()];
        let mut refill = Vec::new();
        let mut unknown: Vec<NewResult> = Vec::new();
        let mut behind = 0;
        for one in kept {
            let hash = xxh3_64(&one.payload);
            let like = |fits: fn(Origin, Origin) -> bool| {
                let is_it = |(at, two): (usize, &KnownResult)| {
                    !is_matched[at]
                        && two.hash == hash
                        && fits(two.origin, Origin::Published(subscription.number))
                };
                results.iter().enumerate().position(is_it)
            };
            let is_set = |origin, _| origin == Origin::Set;
            // A recent one may also be what an earlier ear of ours heard and stored late. An old one is never the present ear's.
            let at = match one.at >= subscription.since {
                true => like(|origin, heard| origin == heard)
                    .or_else(|| like(is_set))
                    .or_else(|| like(|_, _| true)),
                false => like(|origin, heard| origin != heard && origin != Origin::Set)
                    .or_else(|| like(is_set)),
            };
            let Some(at) = at else {
                let origin =
                    if one.at == KeptResult::NOT_PUBLISHED { Origin::Set } else { Origin::Kept };
                unknown.push(NewResult {
                    place: behind,
                    before: None,
                    at: one.at,
                    hash,
                    origin,
                    payload: one.payload,
                });
                continue;
            };
            is_matched[at] = true;
            behind = behind.max(at + 1);
            unknown
                .iter_mut()
                .filter(|one| one.before.is_none())
                .for_each(|one| one.before = Some(at));
            if results[at].payload.is_none() && !results[at].is_dispatched {
                refill.push((results[at].number, one.payload));
            }
        }
        for one in &mut unknown {
            let before = one.before.unwrap_or(results.len());
            one.place = one.place.min(before);
            // Behind what Redis does not know, if that is older: what the present ear heard is not, or it would have heard this as well.
            let is_older = |at: usize| {
                let known = &results[at];
                !is_matched[at]
                    && known.origin != Origin::Published(subscription.number)
                    && known.since <= one.at
            };
            while one.place < before && is_older(one.place) {
                one.place += 1;
            }
        }
        unknown.sort_by_key(|one| one.place);
        let mut merged = SmallVec::with_capacity(results.len() + unknown.len());
        let mut unknown = unknown.into_iter().peekable();
        for (at, two) in
            std::mem::take(&mut known.results).into_iter().map(Some).chain([None]).enumerate()
        {
            while let Some(NewResult { at: kept_at, hash, origin, payload, .. }) =
                unknown.next_if(|one| one.place <= at)
            {
                let since = if origin == Origin::Set { subscription.since } else { kept_at };
                known.last_number = known.last_number.wrapping_add(1);
                refill.push((known.last_number, payload));
                merged.push(KnownResult {
                    number: known.last_number,
                    hash,
                    origin,
                    since,
                    is_dispatched: false,
                    payload: None,
                });
            }
            merged.extend(two);
        }
        known.results = merged;
        for (number, payload) in refill {
            self.retain(now, slot, number, payload.into());
        }
        let mut published_by_us = Vec::new();
        for payload in set {
            let hash = xxh3_64(&payload);
            if self.tasks[slot].results.iter().all(|one| one.hash != hash) {
                let payload: Rc<[u8]> = payload.into();
                self.add(now, slot, Origin::Set, subscription.since, hash, Rc::clone(&payload));
                published_by_us.push((Occurrence { hash, nth: 0, before: None }, payload));
            }
        }
        self.forget_if_idle(slot);
        published_by_us
    }

    /// Whether Redis has answered what it keeps of `task`, as far as `ear` has not heard it.
    pub fn is_settled(&self, task: Uuid, subscription: Subscription) -> bool {
        let settled = self.tasks.entry(task).and_then(|task| task.settled);
        settled.is_some_and(|settled| settled.get() == subscription.number)
    }

    /// The retained results of a task in order, and whether each was there when [`Tasks::mark_dispatched`] was called: for `Bus::publish`.
    pub fn results(&self, task: Uuid) -> impl Iterator<Item = (bool, &Rc<[u8]>)> {
        let results = self.tasks.entry(task).map_or(&[][..], |task| &task.results);
        results.iter().filter_map(|one| Some((one.is_dispatched, one.payload.as_ref()?)))
    }

    /// Everything of the task was handed to everybody who waits for it.
    pub fn mark_dispatched(&mut self, task: Uuid) {
        if let Some(task) = self.tasks.entry_mut(task) {
            task.results.iter_mut().for_each(|one| one.is_dispatched = true);
        }
    }

    /// A client came, moved on (`from` its former stage) or left (`to` is `None`), with the end its task had for it.
    pub fn client(
        &mut self,
        now: Moment,
        task: Uuid,
        from: Option<ClientState>,
        to: Option<ClientState>,
        end: Option<TaskEnd>,
    ) {
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let known = &mut self.tasks[slot];
        if let Some(from) = from {
            known.clients[from as usize] -= 1;
        }
        if let Some(to) = to {
            known.clients[to as usize] += 1;
        }
        if let (Some(end), Some(_)) = (end, self.settings.retain) {
            known.end = Some(end);
            known.ends += 1;
            self.ended.push_back((now, slot));
        }
        self.forget_if_idle(slot);
    }

    /// How the task stands, and whether a client is connected for it.
    pub fn status(&self, task: Uuid) -> (Status, bool) {
        let Some(task) = self.tasks.entry(task) else { return (Status::NotFound, false) };
        let [waiting, sending] = task.clients;
        let is_kept = |with_dispatched: bool| {
            task.results
                .iter()
                .any(|one| one.payload.is_some() && one.is_dispatched <= with_dispatched)
        };
        let status = match task.end {
            _ if sending > 0 => Status::Sending,
            _ if waiting > 0 => Status::Waiting,
            _ if is_kept(false) => Status::Ready,
            Some(TaskEnd::Completed) => Status::Completed,
            Some(TaskEnd::Failed) => Status::Failed,
            Some(TaskEnd::TimedOut) => Status::TimedOut,
            None if is_kept(true) => Status::Ready,
            None => Status::NotFound,
        };
        (status, task.has_clients())
    }

    /// Lets go what is too old or too much. Cheap when nothing is.
    pub fn trim(&mut self, now: Moment) {
        while let Some(&one) = self.retained.front() {
            let is_over = self.retained_bytes > self.settings.max_retained;
            let is_old = match self.settings.retain {
                Some(retain) => now >= one.at + retain,
                // Nothing is kept, but what a client is about to get.
                None => !self.tasks[one.task].owes(one.number),
            };
            if !is_over && !is_old {
                break;
            }
            self.retained.pop_front();
            self.drop_payload(one, !is_old);
        }
        let retain = self.settings.retain.unwrap_or_default();
        while let Some(&(at, slot)) = self.ended.front()
            && (now >= at + retain || self.ended.len() > ENDED_MAX)
        {
            self.ended.pop_front();
            let known = &mut self.tasks[slot];
            known.ends -= 1;
            if known.ends == 0 {
                known.end = None;
                self.forget_if_idle(slot);
            }
        }
        if self.tasks.is_empty() && self.retained.capacity().max(self.ended.capacity()) > 1024 {
            self.retained = VecDeque::new();
            self.ended = VecDeque::new();
        }
    }

    /// When [`Tasks::trim`] has something to do at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let retain = self.settings.retain?;
        let result = self.retained.front().map(|one| one.at);
        let end = self.ended.front().map(|(at, _)| *at);
        Some(result.into_iter().chain(end).min()? + retain)
    }

    /// The next task of which nothing is retained any more because there was too much: Redis need not keep it either.
    pub fn poll_forgotten(&mut self) -> Option<Uuid> {
        self.forgotten.pop_front()
    }

    /// Memory that retained results take, bytes.
    pub fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// Retained results.
    pub fn retained(&self) -> usize {
        self.retained.len()
    }

    /// Results that were let go before their time because there was too much, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Tasks of which anything is known.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether nothing is known of any task.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn add(
        &mut self,
        now: Moment,
        task: Slot,
        origin: Origin,
        since: u64,
        hash: u64,
        payload: Rc<[u8]>,
    ) {
        let known = &mut self.tasks[task];
        known.last_number = known.last_number.wrapping_add(1);
        let number = known.last_number;
        known.results.push(KnownResult {
            number,
            hash,
            origin,
            since,
            is_dispatched: false,
            payload: None,
        });
        self.retain(now, task, number, payload);
        let known = &mut self.tasks[task];
        if known.results.len() > RESULTS_MAX {
            let mut oldest = Vec::new();
            for one in known.results.drain(..RESULTS_MAX / 4) {
                if let Some(payload) = one.payload {
                    self.retained_bytes -= RESULT_COST + payload.len();
                    self.evicted += 1;
                    oldest.push(one.number);
                }
            }
            oldest.sort_unstable();
            self.retained
                .retain(|one| one.task != task || oldest.binary_search(&one.number).is_err());
        }
    }

    fn retain(&mut self, now: Moment, task: Slot, number: u32, payload: Rc<[u8]>) {
        // Nearly always the last one.
        if let Some(one) =
            self.tasks[task].results.iter_mut().rev().find(|one| one.number == number)
        {
            self.retained_bytes += RESULT_COST + payload.len();
            one.payload = Some(payload);
            self.retained.push_back(Retained { at: now, task, number });
        }
    }

    fn drop_payload(&mut self, Retained { task, number, .. }: Retained, is_evicted: bool) {
        let known = &mut self.tasks[task];
        let one = known
            .results
            .iter_mut()
            .find(|one| one.number == number)
            .expect("a retained result is known");
        let payload = one.payload.take().expect("a retained result has its bytes");
        self.retained_bytes -= RESULT_COST + payload.len();
        self.evicted += u64::from(is_evicted);
        if known.results.iter().all(|one| one.payload.is_none()) && !known.has_clients() {
            known.results = SmallVec::new();
            if is_evicted {
                self.forgotten.push_back(self.tasks.id(task));
            }
            self.forget_if_idle(task);
        }
    }

    fn forget_if_idle(&mut self, task: Slot) {
        if self.tasks[task].is_idle() {
            self.tasks.remove(task);
        }
    }
}

impl Task {
    fn has_clients(&self) -> bool {
        self.clients != [0; 2]
    }

    /// Nothing makes it worth remembering.
    fn is_idle(&self) -> bool {
        !self.has_clients()
            && self.end.is_none()
            && self.results.iter().all(|one| one.payload.is_none())
    }

    /// Whether a client waits that has not been given this result.
    fn owes(&self, number: u32) -> bool {
        self.has_clients()
            && self.results.iter().any(|one| one.number == number && !one.is_dispatched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Uuid = Uuid::from_u128(1);
    const EAR: Subscription = Subscription { number: 1, since: 1000 };
    const SECOND: Duration = Duration::from_secs(1);

    fn tasks() -> Tasks {
        Tasks::new(Settings { retain: Some(300 * SECOND), max_retained: 1 << 20 })
    }

    fn kept(items: &[(u64, &str)]) -> Vec<KeptResult> {
        items
            .iter()
            .map(|(at, text)| KeptResult { at: *at, payload: text.as_bytes().to_vec() })
            .collect()
    }

    fn texts(tasks: &Tasks) -> Vec<String> {
        tasks
            .results(TASK)
            .map(|(_, payload)| String::from_utf8(payload.to_vec()).unwrap())
            .collect()
    }

    struct World {
        tasks: Tasks,
        now: Moment,
        subscription: Subscription,
    }

    impl World {
        fn new(tasks: Tasks) -> World {
            World { tasks, now: Moment::START, subscription: EAR }
        }

        fn hear(&mut self, text: &str) -> Occurrence {
            self.hear_on(TASK, text)
        }

        /// Hears, and says whether that was new.
        fn is_new(&mut self, text: &str) -> bool {
            let before = texts(&self.tasks).len();
            self.hear(text);
            texts(&self.tasks).len() > before
        }

        fn hear_on(&mut self, task: Uuid, text: &str) -> Occurrence {
            self.tasks.handle_published(self.now, task, self.subscription, text.as_bytes().into())
        }

        fn look_up(&mut self, items: &[(u64, &str)], set: &[&str]) -> usize {
            let set = set.iter().map(|text| text.as_bytes().to_vec()).collect();
            self.tasks.handle_looked_up(self.now, TASK, self.subscription, kept(items), set).len()
        }

        fn client(
            &mut self,
            from: Option<ClientState>,
            to: Option<ClientState>,
            end: Option<TaskEnd>,
        ) {
            self.tasks.client(self.now, TASK, from, to, end);
        }

        fn status(&self) -> (&'static str, bool) {
            let (status, is_connected) = self.tasks.status(TASK);
            (status.word(), is_connected)
        }
    }

    /// A task with one result and that one's bytes are all there is of it, but for four bytes and a little in a table.
    #[test]
    fn a_task_is_small() {
        assert_eq!(
            (size_of::<KnownResult>(), size_of::<(Uuid, Task)>(), size_of::<Retained>()),
            (48, 112, 16)
        );
    }

    #[test]
    fn results_are_ordered_and_equal_ones_counted() {
        let mut world = World::new(tasks());
        let heard: Vec<Occurrence> = ["a", "b", "a", "a"].map(|text| world.hear(text)).into();
        assert_eq!(texts(&world.tasks), ["a", "b", "a", "a"]);
        assert_eq!(heard.iter().map(|occurrence| occurrence.nth).collect::<Vec<_>>(), [1, 1, 2, 3]);
        assert_eq!(
            heard.iter().map(|occurrence| occurrence.before).collect::<Vec<_>>(),
            [None, Some((heard[0].hash, 1)), Some((heard[1].hash, 1)), Some((heard[0].hash, 2))]
        );
        assert!(heard[0].hash == heard[2].hash && heard[0].hash != heard[1].hash);
    }

    #[test]
    fn new_subscription_counts_from_one() {
        let mut world = World::new(tasks());
        world.hear("a");
        world.subscription = Subscription { number: 2, since: 5000 };
        let occurrence = world.hear("a");
        assert_eq!((occurrence.nth, occurrence.before), (1, None));
        assert_eq!(texts(&world.tasks), ["a", "a"]);
    }

    #[test]
    fn results_from_redis_are_merged_in_order_and_once() {
        let mut world = World::new(tasks());
        world.client(None, Some(ClientState::Waiting), None);
        world.hear("c");
        assert!(!world.tasks.is_settled(TASK, EAR));
        // "a" is from before we listened, "b" was stored late by another gateway; "c" is ours.
        world.look_up(&[(500, "a"), (2000, "b"), (2001, "c")], &[]);
        assert!(
            world.tasks.is_settled(TASK, EAR)
                && !world.tasks.is_settled(TASK, Subscription { number: 2, since: 0 })
        );
        assert_eq!(texts(&world.tasks), ["a", "b", "c"]);
        assert!(world.is_new("b"));
        assert!(world.is_new("a"));
        assert_eq!(texts(&world.tasks), ["a", "b", "c", "b", "a"]);
        world.look_up(&[(500, "a"), (2000, "b"), (2001, "c"), (2002, "b"), (2003, "a")], &[]);
        assert_eq!(texts(&world.tasks), ["a", "b", "c", "b", "a"]);
    }

    #[test]
    fn missed_results_are_inserted_in_order() {
        for (known, kept, expected) in [
            ("", "abc", "abc"),
            ("abc", "", "abc"),
            ("bc", "abc", "abc"),
            ("ac", "abc", "abc"),
            ("ab", "abc", "abc"),
            ("abd", "abc", "abcd"),
            ("ab", "xyaz", "xyazb"),
            // Redis has lost "a"; it knows a wrong order for the moment.
            ("ab", "b", "ab"),
            ("ab", "bc", "abc"),
            ("abc", "ca", "abc"),
            ("abc", "xcya", "xyabc"),
        ] {
            let mut world = World::new(tasks());
            for text in known.chars() {
                world.hear(&text.to_string());
            }
            let kept: Vec<String> = kept.chars().map(String::from).collect();
            let kept: Vec<(u64, &str)> = kept.iter().map(|text| (2000, text.as_str())).collect();
            world.look_up(&kept, &[]);
            assert_eq!(texts(&world.tasks).concat(), expected, "{known} with {kept:?}");
            world.look_up(&kept, &[]);
            assert_eq!(texts(&world.tasks).concat(), expected, "{known} with {kept:?} again");
        }
    }

    #[test]
    fn results_that_redis_lost_stay_before_later_ones() {
        let mut world = World::new(tasks());
        world.hear("a");
        world.look_up(&[(900, "x"), (2000, "a")], &[]);
        world.subscription = Subscription { number: 2, since: 5000 };
        world.hear("d");
        // Redis came back empty; another gateway was there before us.
        world.look_up(&[(4000, "b"), (4001, "c")], &[]);
        assert_eq!(texts(&world.tasks), ["x", "a", "b", "c", "d"]);
    }

    #[test]
    fn result_found_late_is_not_dispatched_yet() {
        let mut world = World::new(tasks());
        world.client(None, Some(ClientState::Waiting), None);
        world.hear("b");
        world.tasks.mark_dispatched(TASK);
        world.look_up(&[(1, "a"), (2000, "b")], &[]);
        assert_eq!(
            world.tasks.results(TASK).map(|(is_dispatched, _)| is_dispatched).collect::<Vec<_>>(),
            [false, true]
        );
    }

    #[test]
    fn equal_results_before_and_after_an_absence_stay_two() {
        let mut world = World::new(tasks());
        world.hear("a");
        world.subscription = Subscription { number: 2, since: 5000 };
        // Ours from before, and one more that another gateway heard, as did we.
        world.hear("a");
        world.look_up(&[(2000, "a"), (6000, "a")], &[]);
        assert_eq!(texts(&world.tasks), ["a", "a"]);
        // Heard first, kept by another gateway as well, plus one that we missed.
        let mut world = World::new(tasks());
        world.hear("a");
        world.look_up(&[(900, "a"), (2000, "a")], &[]);
        assert_eq!(texts(&world.tasks), ["a", "a"]);
        assert!(world.is_new("a"));
    }

    #[test]
    fn result_stored_late_is_recognised() {
        let mut world = World::new(tasks());
        world.hear("a");
        world.subscription = Subscription { number: 2, since: 5000 };
        world.look_up(&[(6000, "a")], &[]);
        assert_eq!(texts(&world.tasks), ["a"]);
        assert!(world.is_new("a"));
    }

    #[test]
    fn redis_that_lost_its_data_removes_nothing() {
        let mut world = World::new(tasks());
        world.hear("a");
        world.hear("b");
        world.look_up(&[], &[]);
        assert_eq!(texts(&world.tasks), ["a", "b"]);
    }

    #[test]
    fn set_result_is_recognised_when_it_is_published() {
        let mut world = World::new(tasks());
        assert_eq!(world.look_up(&[], &["a"]), 1);
        assert_eq!(texts(&world.tasks), ["a"]);
        assert_eq!(world.look_up(&[], &["a"]), 0);
        assert!(!world.is_new("a"));
        assert!(world.is_new("a"));
        assert_eq!(texts(&world.tasks), ["a", "a"]);
        assert_eq!(world.look_up(&[(2000, "a"), (2001, "a")], &["a"]), 0);
        assert_eq!(world.look_up(&[(2000, "a"), (2001, "a")], &["c", "c"]), 1);
        assert_eq!(texts(&world.tasks), ["a", "a", "c"]);
    }

    #[test]
    fn set_result_is_recognised_during_a_later_subscription() {
        let mut world = World::new(tasks());
        world.look_up(&[], &["a"]);
        world.subscription = Subscription { number: 2, since: 5000 };
        assert_eq!(world.look_up(&[(KeptResult::NOT_PUBLISHED, "a")], &["a"]), 0);
        assert!(!world.is_new("a"));
        assert!(world.is_new("a"));
    }

    #[test]
    fn result_that_another_gateway_found_set_is_recognised_when_it_is_published() {
        let mut world = World::new(tasks());
        assert_eq!(world.look_up(&[(2000, "a"), (KeptResult::NOT_PUBLISHED, "b")], &["b"]), 0);
        assert!(!world.is_new("b"));
        assert!(world.is_new("b"));
        assert!(world.is_new("a"));
    }

    #[test]
    fn result_heard_by_another_gateway_before_an_absence_is_not_duplicated() {
        let mut world = World::new(tasks());
        world.look_up(&[(2000, "a")], &[]);
        world.subscription = Subscription { number: 2, since: 5000 };
        world.look_up(&[(2000, "a")], &[]);
        assert_eq!(texts(&world.tasks), ["a"]);
        assert!(world.is_new("a"));
    }

    #[test]
    fn empty_look_up_leaves_no_task() {
        let mut world = World::new(tasks());
        world.look_up(&[], &[]);
        assert!(world.tasks.is_empty());
    }

    #[test]
    fn results_expire_after_retain() {
        let mut world = World::new(tasks());
        world.hear("a");
        world.now += 200 * SECOND;
        world.hear("b");
        let deadline = world.tasks.deadline().unwrap();
        world.tasks.trim(world.now + (deadline - world.now - Duration::from_nanos(1)));
        assert_eq!(texts(&world.tasks), ["a", "b"]);
        world.tasks.trim(deadline);
        assert_eq!(texts(&world.tasks), ["b"]);
        // Gone, but recognised as long as the task is known.
        assert_eq!(world.hear("a").nth, 2);
        world.now += 400 * SECOND;
        world.tasks.trim(world.now);
        assert!(world.tasks.is_empty() && world.tasks.deadline().is_none());
        assert_eq!(
            (world.tasks.retained_bytes(), world.tasks.retained(), world.tasks.evicted()),
            (0, 0, 0)
        );
        assert_eq!(world.tasks.poll_forgotten(), None);
    }

    #[test]
    fn oldest_result_is_evicted_first() {
        let settings =
            Settings { retain: Some(300 * SECOND), max_retained: 10 * (RESULT_COST + 1) };
        let mut world = World::new(Tasks::new(settings));
        for task in 0..25 {
            world.hear_on(Uuid::from_u128(task), "x");
            world.tasks.trim(world.now);
        }
        assert_eq!(
            (world.tasks.retained(), world.tasks.evicted(), world.tasks.len()),
            (10, 15, 10)
        );
        assert_eq!(world.tasks.retained_bytes(), 10 * (RESULT_COST + 1));
        assert_eq!(
            std::iter::from_fn(|| world.tasks.poll_forgotten()).collect::<Vec<_>>(),
            (0..15).map(Uuid::from_u128).collect::<Vec<_>>()
        );
        assert_eq!(world.tasks.results(Uuid::from_u128(15)).count(), 1);
        world.hear_on(TASK, &"y".repeat(5000));
        world.tasks.trim(world.now);
        assert!(world.tasks.is_empty());
    }

    #[test]
    fn task_with_a_client_is_not_removed() {
        let mut world =
            World::new(Tasks::new(Settings { retain: Some(SECOND), max_retained: 100 }));
        world.client(None, Some(ClientState::Waiting), None);
        world.hear("a");
        world.tasks.mark_dispatched(TASK);
        world.tasks.trim(world.now);
        assert_eq!(world.tasks.retained(), 0);
        assert_eq!(world.tasks.poll_forgotten(), None);
        // Let go here, still kept there: given already, so it is not taken in again.
        world.look_up(&[(2000, "a")], &[]);
        assert_eq!(texts(&world.tasks), Vec::<String>::new());
        world.client(Some(ClientState::Waiting), None, None);
        assert!(world.tasks.is_empty());
    }

    #[test]
    fn evicted_result_without_delivery_is_taken_from_redis_again() {
        let mut world =
            World::new(Tasks::new(Settings { retain: Some(SECOND), max_retained: 100 }));
        world.client(None, Some(ClientState::Waiting), None);
        world.hear("a");
        world.tasks.trim(world.now);
        assert_eq!(texts(&world.tasks), Vec::<String>::new());
        world.look_up(&[(2000, "a")], &[]);
        assert_eq!(texts(&world.tasks), ["a"]);
    }

    #[test]
    fn without_retention_only_undelivered_results_stay() {
        let mut world = World::new(Tasks::new(Settings { retain: None, max_retained: 1 << 20 }));
        world.hear("a");
        world.tasks.trim(world.now);
        assert!(world.tasks.is_empty());
        world.client(None, Some(ClientState::Waiting), None);
        world.hear("b");
        world.tasks.trim(world.now);
        assert_eq!(texts(&world.tasks), ["b"]);
        world.tasks.mark_dispatched(TASK);
        world.tasks.trim(world.now);
        assert_eq!(texts(&world.tasks), Vec::<String>::new());
        world.client(Some(ClientState::Waiting), None, Some(TaskEnd::Completed));
        assert!(world.tasks.is_empty() && world.tasks.deadline().is_none());
    }

    #[test]
    fn status_follows_clients_and_results() {
        let mut world = World::new(tasks());
        assert_eq!(world.status(), ("not_found", false));
        world.client(None, Some(ClientState::Waiting), None);
        assert_eq!(world.status(), ("waiting", true));
        world.client(None, Some(ClientState::Sending), None);
        assert_eq!(world.status(), ("sending", true));
        world.client(Some(ClientState::Sending), None, None);
        assert_eq!(world.status(), ("waiting", true));
        world.client(Some(ClientState::Waiting), None, None);
        assert_eq!(world.status(), ("not_found", false));
        assert!(world.tasks.is_empty());
        world.hear("a");
        assert_eq!(world.status(), ("ready", false));
        world.client(None, Some(ClientState::Waiting), None);
        world.client(Some(ClientState::Waiting), Some(ClientState::Sending), None);
        world.tasks.mark_dispatched(TASK);
        assert_eq!(world.status(), ("sending", true));
        world.client(Some(ClientState::Sending), None, None);
        assert_eq!(world.status(), ("ready", false), "it left midway and may come back");
        world.client(None, Some(ClientState::Sending), None);
        world.client(Some(ClientState::Sending), None, Some(TaskEnd::Completed));
        assert_eq!(world.status(), ("completed", false));
        world.hear("b");
        assert_eq!(world.status(), ("ready", false), "there is more than was delivered");
        world.tasks.mark_dispatched(TASK);
        world.client(None, Some(ClientState::Sending), None);
        world.client(Some(ClientState::Sending), None, Some(TaskEnd::Failed));
        assert_eq!(world.status(), ("failed", false));
    }

    #[test]
    fn end_of_a_task_is_known_for_retain() {
        let mut world = World::new(tasks());
        world.client(None, Some(ClientState::Waiting), None);
        world.client(Some(ClientState::Waiting), None, Some(TaskEnd::TimedOut));
        assert_eq!(world.status(), ("timeout", false));
        world.now += 200 * SECOND;
        world.client(None, Some(ClientState::Waiting), None);
        assert_eq!(world.status(), ("waiting", true));
        world.client(Some(ClientState::Waiting), None, Some(TaskEnd::Completed));
        world.tasks.trim(world.now + 150 * SECOND);
        assert_eq!(world.status(), ("completed", false), "the first end is not the last");
        world.tasks.trim(world.now + 300 * SECOND);
        assert_eq!(world.status(), ("not_found", false));
        assert!(world.tasks.is_empty());
    }

    #[test]
    fn remembered_ends_are_bounded() {
        let mut world = World::new(tasks());
        for task in 0..ENDED_MAX as u128 + 10 {
            world.tasks.client(
                world.now,
                Uuid::from_u128(task),
                None,
                Some(ClientState::Waiting),
                None,
            );
            world.tasks.client(
                world.now,
                Uuid::from_u128(task),
                Some(ClientState::Waiting),
                None,
                Some(TaskEnd::TimedOut),
            );
            world.tasks.trim(world.now);
        }
        assert_eq!(world.tasks.len(), ENDED_MAX);
    }

    #[test]
    fn results_of_one_task_are_bounded() {
        let mut world = World::new(tasks());
        for _ in 0..3 * RESULTS_MAX {
            world.hear("x");
        }
        let known = world.tasks.results(TASK).count();
        assert!((RESULTS_MAX / 2..=RESULTS_MAX).contains(&known));
        assert_eq!(world.tasks.retained(), known);
        assert_eq!(world.tasks.retained_bytes(), known * (RESULT_COST + 1));
        world.tasks.trim(world.now + 300 * SECOND);
        assert!(world.tasks.is_empty() && world.tasks.retained_bytes() == 0);
    }
}
