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

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]
#![expect(clippy::indexing_slicing, reason = "slots come from the table itself")]

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
    /// When it was stored: microseconds of Redis' clock; or `KeptResult::NOT_PUBLISHED`.
    pub at: u64,
    /// What the worker published.
    pub payload: Vec<u8>,
}

impl KeptResult {
    /// The time of what a worker has set and nobody has heard yet: later than all others.
    const NOT_PUBLISHED: u64 = 9_999_999_999_999_999;
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
#[expect(missing_docs, reason = "the variants explain themselves")]
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
    #[expect(clippy::too_many_lines, reason = "one walk along both lists, explained line by line")]
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
mod tests;
