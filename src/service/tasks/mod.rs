//! What is known of each task: its results while they are retained, and how far its clients are.
//!
//! A task is known from its first result or client until no client waits for it, nothing of it is
//! retained, and its end is `retain` ago. Every result is retained, delivered or not, because a
//! client may return for the rest of it. The oldest result goes first, by age or because
//! `max_retained` is reached. What a result costs apart from its bytes counts too, so that
//! `max_retained` is what the process really grows by; so does a task of which nothing is left but
//! its end, or that something of it was lost.
//!
//! A task may hold at most half of `max_retained`. This is checked before a result is retained, so
//! one task cannot evict the results of all others. A result beyond it is given to the clients that
//! wait and is gone then. A client that comes later gets an error that something is missing
//! ([`Tasks::is_incomplete`]).
//!
//! Publications carry no number. Two of them may be equal to the last byte and still be two
//! results, and one result may reach the gateway in several ways: published on the channel, kept by
//! Redis (whichever gateway kept it), set by the worker. So equal results are counted. During one
//! uninterrupted [`Subscription`], the n-th equal publication that this gateway hears is the n-th
//! one that any gateway heard since, so two gateways agree on it without talking to each other. A
//! result that a worker has `SET` is about to be published, perhaps only after a retry, so its
//! publication is recognised during any subscription (`ResultOrigin::Set`). `docs/kept-results.md`
//! explains this with an example.
//!
//! Clients see each result with its `result_id`: 0, 1, 2 and so on in the order of publication.
//! Redis keeps these numbers with the results, so that they are the same after a restart and on
//! every gateway. Numbers only grow: a gateway that missed earlier results has counted too few.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]
#![expect(clippy::indexing_slicing, reason = "slots come from the table itself")]

mod ends;
mod finished;
mod known;
mod merge;
mod removal;
mod result;
mod speech;
mod status;
mod task;
mod timeline;

use crate::base::moment::Moment;
use crate::base::queue;
use crate::base::sequence::Sequence;
use crate::base::table::{Slot, Table};
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use log::debug;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use ends::AudioEnd;
pub use result::ResultContent;
use result::{GoneResult, KnownResult, ResultOrigin};
use speech::KeptSpeeches;
pub use speech::{Renumbered, SpeechKey, SpeechStore};
pub use status::Status;
use task::{LastHeard, Task};
pub use timeline::{Milestones, TaskEvent};

pub use ends::EndRules;

/// What a retained result costs besides its own bytes: its task, its share of a table and of the
/// queue, an allocation. In bytes, measured while results came and went: 165 to 190 in use, the
/// rest unused between them. Once it is gone, a task that is remembered costs the same.
pub const RESULT_COST: usize = 256;
/// Ends and losses of tasks that are remembered, whatever the settings are.
const REMEMBERED_MAX: usize = 65_536;
/// As many are remembered at least, and cost nothing.
const REMEMBERED_MIN: usize = 1024;
/// Losses of one task are remembered at most once in this time.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);

/// How long results are retained, and how many bytes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a result is retained and the end of a task is known. `None`: nothing is retained.
    pub retain: Option<Duration>,
    /// Bytes of memory for all retained results. One task may have half of it.
    pub max_retained: usize,
    /// Bytes of speech in the spool folder. One task may have half of it.
    pub max_spool: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            retain: Some(Duration::from_secs(300)),
            max_retained: 16 * 1024 * 1024,
            max_spool: 1024 * 1024 * 1024,
        }
    }
}

impl Settings {
    /// Ends and losses of tasks that are remembered: they take a quarter of the room at most.
    fn remembered_max(&self) -> usize {
        (self.max_retained / 4 / RESULT_COST).clamp(REMEMBERED_MIN, REMEMBERED_MAX)
    }

    /// Bytes that the results of one task may take.
    pub fn task_bytes_max(&self) -> usize {
        self.max_retained / 2
    }
}

/// An uninterrupted subscription to a task's channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Tells one subscription from the next. Never 0, except in [`Subscription::UNKNOWN`].
    pub number: u32,
    /// A moment before it began: microseconds of Redis' clock.
    pub since: u64,
}

impl Subscription {
    /// For what is heard without a confirmed subscription, or without Redis.
    pub const UNKNOWN: Subscription = Subscription { number: 0, since: 0 };
}

/// A result that Redis keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptResult {
    /// When it was stored: microseconds of Redis' clock, or `KeptResult::NOT_PUBLISHED`.
    pub stored_at: u64,
    /// Its `result_id`.
    pub id: u32,
    /// What the worker published.
    pub payload: Vec<u8>,
}

impl KeptResult {
    /// The time of a result that a worker has set and not published yet: later than all others.
    pub(crate) const NOT_PUBLISHED: u64 = 9_999_999_999_999_999;
}

/// What tells a result from equal ones of its task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// Hash of the content.
    pub hash: u64,
    /// It is the n-th equal result that its subscription heard, from 1. 0: a worker has set it, and
    /// it was not received.
    pub nth: u32,
    /// Hash and number of the result that its subscription heard before it on this task.
    pub before: Option<(u64, u32)>,
    /// Its `result_id` as far as it is known here. Others may know of more results before it.
    pub id: u32,
}

/// What a client of a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientState {
    /// It waits for a result.
    Waiting,
    /// A result is being sent to it.
    Sending,
}

/// How a task ended for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// The final result was sent completely.
    Completed,
    /// The worker reported a failure, its result was malformed, or the delivery broke.
    Failed,
    /// No result came in time.
    TimedOut,
}

/// All tasks.
#[derive(Debug)]
pub struct Tasks {
    settings: Settings,
    tasks: Table<Task>,
    /// Retained results that may go, the oldest in front. Their tasks are known.
    retained: Sequence<Retained>,
    retained_bytes: usize,
    /// Bytes of results that are not retained and wait for a client.
    passing_bytes: usize,
    /// Ends and losses, the oldest in front. A task's latest one counts, and the task is known
    /// until that is `retain` ago.
    remembered: VecDeque<(Moment, Slot)>,
    /// Results whose audio grows, by task and `result_id`: their numbers.
    held: HashMap<(Uuid, u32), u32>,
    /// Files that are complete. Few tasks have any, so they are not among what every task has.
    ends: HashMap<Uuid, Vec<AudioEnd>>,
    end_rules: EndRules,
    /// Tasks that have ended, by how.
    completed: u64,
    failed: u64,
    evicted: u64,
    not_kept: u64,
    forgotten: VecDeque<Uuid>,
    speeches: KeptSpeeches,
}

/// A retained result among all others.
#[derive(Clone, Copy, Debug)]
struct Retained {
    at: Moment,
    task: Slot,
    number: u32,
}

/// A result as clients are to get it.
#[derive(Clone, Debug)]
pub struct Deliverable {
    /// Its `result_id`.
    pub id: u32,
    /// What they get of it.
    pub content: ResultContent,
    /// It is kept for later clients, and not only until it has been dispatched.
    pub is_kept: bool,
}

impl Deliverable {
    fn of(known: &KnownResult) -> Option<Deliverable> {
        Some(Deliverable { id: known.id, content: known.content()?, is_kept: !known.is_passing })
    }
}

impl Tasks {
    /// No task yet.
    pub fn new(settings: Settings) -> Tasks {
        Tasks {
            settings,
            tasks: Table::new(),
            retained: Sequence::new(),
            retained_bytes: 0,
            passing_bytes: 0,
            remembered: VecDeque::new(),
            held: HashMap::new(),
            ends: HashMap::new(),
            end_rules: EndRules::default(),
            completed: 0,
            failed: 0,
            evicted: 0,
            not_kept: 0,
            forgotten: VecDeque::new(),
            speeches: KeptSpeeches::default(),
        }
    }

    /// Tasks that were completed, and tasks that failed or timed out, since the start.
    pub fn ended_counts(&self) -> (u64, u64) {
        (self.completed, self.failed)
    }

    /// Takes other limits; [`Tasks::trim`] applies them.
    pub fn reload(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// The limits in effect.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// A publication was heard. [`Tasks::results`] has it then; call [`Tasks::trim`] afterwards.
    pub fn handle_published(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        payload: Rc<[u8]>,
    ) -> Occurrence {
        let hash = xxh3_64(&payload);
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let origin = ResultOrigin::Published(subscription.number);
        let known = &mut self.tasks[slot];
        let (nth, set) = known.results.hear(hash, subscription.number);
        let last =
            known.last_heard.replace(LastHeard { hash, subscription: subscription.number, nth });
        let before = last
            .filter(|last| last.subscription == subscription.number)
            .map(|last| (last.hash, last.nth.get()));
        let id = match set {
            Some(id) => id,
            None => self.add(now, slot, origin, subscription.since, hash, payload),
        };
        self.forget_if_idle(slot);
        Occurrence { hash, nth: nth.get(), before, id }
    }

    /// Redis answered what it keeps of a task (`kept`, in order, and the `result_id` of the next
    /// one), and what the worker has set there; `subscription` has heard everything that was
    /// published before that answer. What was not known joins the results in Redis' order. Returns
    /// the set results that were not received yet, to be kept like publications.
    pub fn handle_looked_up(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        (kept, next_id): (Vec<KeptResult>, u32),
        set: Vec<Vec<u8>>,
    ) -> Vec<(Occurrence, Rc<[u8]>)> {
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let speech_ids = self.speech_ids(task);
        let known = &mut self.tasks[slot];
        known.settled = NonZeroU32::new(subscription.number);
        let payloads = merge::merge(known, subscription, kept, next_id);
        self.note_renumbered(task, speech_ids);
        for (number, payload) in payloads {
            self.retain(now, slot, number, payload.into());
        }
        self.match_ends_again(task);
        let mut not_heard = Vec::new();
        for payload in set {
            let hash = xxh3_64(&payload);
            // A worker sets one result at a time, so an equal one that is known is this one. If it
            // were added, its publication would be delivered as a second result.
            if self.tasks[slot].results.iter().all(|one| one.hash != hash) {
                let payload: Rc<[u8]> = payload.into();
                let copy = Rc::clone(&payload);
                let id = self.add(now, slot, ResultOrigin::Set, subscription.since, hash, copy);
                not_heard.push((Occurrence { hash, nth: 0, before: None, id }, payload));
            }
        }
        // A look-up that found nothing leaves no task behind.
        self.forget_if_idle(slot);
        not_heard
    }

    /// A client has had results of the task with numbers below `below`, here or elsewhere. Counts
    /// once [`Tasks::apply_seen`] is called.
    pub fn note_seen(&mut self, task: Uuid, below: u32) {
        if let Some(known) = self.tasks.entry_mut(task) {
            known.seen = known.seen.max(below);
        }
    }

    /// Everything is known that can be known of a task. If clients have seen greater numbers, those
    /// results are gone and the count goes on behind them. Without this, a client would take what
    /// it has not had for something that it has.
    pub fn apply_seen(&mut self, task: Uuid) {
        let Some(known) = self.tasks.entry_mut(task) else { return };
        let seen = std::mem::take(&mut known.seen);
        if known.next_id >= seen {
            return;
        }
        let speech_ids = self.speech_ids(task);
        let Some(known) = self.tasks.entry_mut(task) else { return };
        known.next_id = seen;
        for one in known.results.tail() {
            one.id = known.next_id;
            known.next_id = known.next_id.saturating_add(1);
        }
        self.note_renumbered(task, speech_ids);
    }

    /// Notes what happens to a task that is known.
    pub fn note(&mut self, now: Moment, task: Uuid, event: TaskEvent) -> Milestones {
        let known = self.tasks.entry_mut(task);
        known.map_or(Milestones::default(), |task| task.timeline.note(event, now))
    }

    /// What has happened to a task, with the time since it was first known.
    pub fn timeline(&self, task: Uuid) -> Vec<(&'static str, Duration)> {
        self.tasks.entry(task).map_or(Vec::new(), |task| task.timeline.events())
    }

    /// Whether anything is known of a task.
    pub fn is_known(&self, task: Uuid) -> bool {
        self.tasks.find(task).is_some()
    }

    /// Whether a task was stopped and no client has connected since.
    pub fn is_stopped(&self, task: Uuid) -> bool {
        self.tasks.entry(task).is_some_and(|task| task.is_stopped)
    }

    /// Drops what is kept of a task, and what comes until [`Tasks::resume`]. Returns the number of
    /// results that are gone by it.
    pub fn stop(&mut self, now: Moment, task: Uuid) -> usize {
        let dropped = self.drop_kept(task);
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let known = &mut self.tasks[slot];
        known.forget_end();
        known.is_stopped = true;
        self.ends.remove(&task);
        self.remember(now, slot);
        dropped
    }

    /// A client has connected to a task. Returns whether it was stopped.
    pub fn resume(&mut self, task: Uuid) -> bool {
        let known = self.tasks.entry_mut(task);
        known.is_some_and(|task| std::mem::take(&mut task.is_stopped))
    }

    /// Drops what is kept of a task. Returns the number of results.
    pub fn drop_kept(&mut self, task: Uuid) -> usize {
        let Some(slot) = self.tasks.find(task) else { return 0 };
        let known = &mut self.tasks[slot];
        let mut list = known.results.take();
        list.iter_mut().for_each(|one| one.is_dispatched = true);
        let gone: Vec<GoneResult> = list.iter_mut().filter_map(GoneResult::take).collect();
        known.results.set(list);
        for one in &gone {
            let cost = one.cost() + self.forget_speech(task, one);
            if one.is_passing {
                self.passing_bytes -= cost;
            } else {
                self.tasks[slot].bytes -= cost;
                self.retained_bytes -= cost;
            }
            if let Some(ticket) = one.ticket {
                self.retained.remove(ticket);
            }
            if one.is_held {
                self.held.remove(&(task, one.id));
            }
        }
        let dropped = gone.len();
        self.forget_if_idle(slot);
        dropped
    }

    /// Some result of the task is gone, here or in Redis, that a new client would have been given.
    pub fn mark_incomplete(&mut self, now: Moment, task: Uuid) {
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        self.note_loss(now, slot);
        self.forget_if_idle(slot);
    }

    /// Whether a client that comes now misses a result that went before its time.
    pub fn is_incomplete(&self, task: Uuid) -> bool {
        self.tasks.entry(task).is_some_and(|task| task.is_incomplete)
    }

    /// Whether Redis has answered what it keeps of `task`, apart from what `subscription` hears.
    pub fn is_settled(&self, task: Uuid, subscription: Subscription) -> bool {
        let settled = self.tasks.entry(task).and_then(|task| task.settled);
        settled.is_some_and(|settled| settled.get() == subscription.number)
    }

    /// Whether a result of `task` has not been given to the clients that wait.
    pub fn has_undelivered(&self, task: Uuid) -> bool {
        self.tasks.entry(task).is_some_and(|task| task.results.undispatched().next().is_some())
    }

    /// The results of a task that are here, in order.
    pub fn results(&self, task: Uuid) -> impl Iterator<Item = Deliverable> {
        let results = self.tasks.entry(task).map(|task| task.results.present());
        results.into_iter().flatten().filter_map(Deliverable::of)
    }

    /// The next result of a task that is not dispatched. From now on it is; the clients that wait
    /// are to be given it. Call [`Tasks::mark_dispatched`] when there is no further one and every
    /// client has all of them.
    pub fn poll_undispatched(&mut self, task: Uuid) -> Option<Deliverable> {
        Deliverable::of(self.tasks.entry_mut(task)?.results.dispatch_next()?)
    }

    /// Every client that waits for the task has been given all of its results.
    pub fn mark_dispatched(&mut self, now: Moment, task: Uuid) {
        let Some(slot) = self.tasks.find(task) else { return };
        while self.tasks[slot].results.dispatch_next().is_some() {}
        self.drop_passing(now, slot);
    }

    /// Whether a result of this many bytes would be here until it is dispatched.
    pub fn has_room(&self, task: Uuid, bytes: usize) -> bool {
        let cost = RESULT_COST + bytes;
        let held = self.tasks.entry(task).map_or(0, |task| task.bytes);
        held + cost <= self.settings.task_bytes_max() || self.can_pass(cost)
    }

    /// A client joined (`from` is `None`), changed its state or left (`to` is `None`). `end`: how
    /// the task ended for it.
    pub fn handle_client(
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
            if known.end != Some(end) {
                match end {
                    TaskEnd::Completed => self.completed += 1,
                    TaskEnd::Failed | TaskEnd::TimedOut => self.failed += 1,
                }
            }
            known.end = Some(end);
            self.remember(now, slot);
        }
        if !self.tasks[slot].has_clients() {
            self.drop_passing(now, slot);
        }
        self.forget_if_idle(slot);
    }

    /// The state of a task, and whether a client is connected for it.
    pub fn status(&self, task: Uuid) -> (Status, bool) {
        let Some(task) = self.tasks.entry(task) else { return (Status::NotFound, false) };
        let [waiting, sending] = task.clients;
        let status = match task.end {
            _ if task.is_stopped => Status::Stopped,
            _ if sending > 0 => Status::Sending,
            _ if waiting > 0 => Status::Waiting,
            _ if task.results.undispatched().next().is_some() => Status::Ready,
            Some(TaskEnd::Completed) => Status::Completed,
            Some(TaskEnd::Failed) => Status::Failed,
            Some(TaskEnd::TimedOut) => Status::TimedOut,
            None if task.results.present().next().is_some() => Status::Ready,
            None => Status::NotFound,
        };
        (status, task.has_clients())
    }

    /// The next task of which everything was evicted: Redis need not keep it either.
    pub fn poll_forgotten(&mut self) -> Option<Uuid> {
        queue::take_first(&mut self.forgotten)
    }

    /// Bytes of memory that results take, retained or about to be given to a client.
    pub fn retained_bytes(&self) -> usize {
        self.retained_bytes + self.passing_bytes
    }

    /// Bytes of memory that all tasks take: results, and what is remembered of tasks without any.
    pub fn held_bytes(&self) -> usize {
        self.retained_bytes() + self.remembered_bytes()
    }

    /// Bytes that what is remembered takes of the room for results.
    fn remembered_bytes(&self) -> usize {
        self.remembered.len().saturating_sub(REMEMBERED_MIN) * RESULT_COST
    }

    /// Retained results.
    pub fn retained(&self) -> usize {
        self.retained.len() + self.held.len()
    }

    /// Results that were removed early because `max_retained` was reached, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Results that were not retained because their task had its share already, since the start.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// Tasks of which anything is known.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether nothing is known of any task.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    fn can_pass(&self, cost: usize) -> bool {
        self.passing_bytes + cost <= self.settings.max_retained.max(cost)
    }

    /// Adds a result behind the others. Returns its `result_id`.
    fn add(
        &mut self,
        now: Moment,
        task: Slot,
        origin: ResultOrigin,
        since: u64,
        hash: u64,
        payload: Rc<[u8]>,
    ) -> u32 {
        let known = &mut self.tasks[task];
        known.last_number = known.last_number.wrapping_add(1);
        let number = known.last_number;
        let id = known.next_id;
        known.next_id = id.saturating_add(1);
        known.results.push(KnownResult::new(number, id, hash, origin, since));
        self.match_ends(now, task, number, &payload);
        self.retain(now, task, number, payload);
        self.tasks[task].bound_recognised();
        id
    }

    /// Retains the payload of a known result, if the task has room for it. If not, it is only given
    /// to the clients that wait.
    fn retain(&mut self, now: Moment, task: Slot, number: u32, payload: Rc<[u8]>) {
        let cost = RESULT_COST + payload.len();
        let can_pass = self.can_pass(cost);
        let known = &mut self.tasks[task];
        // Checked before the result is taken in. Afterwards the oldest results would have to go,
        // and they belong to other tasks.
        let has_room = known.bytes + cost <= self.settings.task_bytes_max();
        let can_pass = known.has_clients() && can_pass;
        let Some(one) = known.results.numbered(number) else { return };
        if has_room {
            one.payload = Some(payload);
            known.bytes += cost;
            self.retained_bytes += cost;
            one.ticket = Some(self.retained.push(Retained { at: now, task, number }));
            let (result, bytes) = (one.id, cost - RESULT_COST);
            debug!(target: "output", "result kept result={result} len={bytes} task={}", self.tasks.id(task));
            return;
        }
        if self.settings.retain.is_some() {
            self.not_kept += 1;
        }
        if can_pass {
            one.payload = Some(payload);
            known.results.mark_passing(number);
            self.passing_bytes += cost;
        } else {
            self.note_loss(now, task);
        }
    }

    /// Drops results that were not retained: they are dispatched, or no client is left.
    fn drop_passing(&mut self, now: Moment, task: Slot) {
        let bytes = self.tasks[task].results.drop_passing();
        if bytes > 0 {
            self.passing_bytes -= bytes;
            self.note_loss(now, task);
        }
    }

    fn note_loss(&mut self, now: Moment, task: Slot) {
        if self.settings.retain.is_none() {
            return;
        }
        self.tasks[task].is_incomplete = true;
        // A flood of losses needs one entry a second.
        let last = self.remembered.back();
        if last.is_none_or(|&(at, slot)| slot != task || at + LOSS_INTERVAL <= now) {
            self.remember(now, task);
        }
    }

    /// Keeps the task known for `retain`.
    fn remember(&mut self, now: Moment, task: Slot) {
        self.tasks[task].remembered += 1;
        self.remembered.push_back((now, task));
    }

    fn forget_if_idle(&mut self, task: Slot) {
        if self.tasks[task].is_idle() {
            if !self.ends.is_empty() {
                self.ends.remove(&self.tasks.id(task));
            }
            self.tasks.remove(task);
        }
    }
}

#[cfg(test)]
mod tests;
