//! Results on their way from publishers to clients: bus, tasks and link behind one interface.
//!
//! A result comes in by [`Results::publish`] (the embedded inbox) or out of the link's events
//! ([`Results::settle`]), and goes out by [`Results::poll_delivery`]. In between it is retained,
//! kept in Redis, and given once to every client that waits.
//!
//! A result that was just heard may have to wait for one that was published before it. After a
//! connection to Redis came up, and when a task's first client comes, Redis is asked what it keeps.
//! Until it has answered, nothing of that task goes out, so that a later result never overtakes an
//! earlier one. Redis answers in about a millisecond; after a reconnect it is asked a moment later,
//! when other gateways have stored what they heard. Results are held for at most
//! `HOLD_MAX` while the link is down, and for at most `TASK_HOLD_MAX` in all, however often the
//! link comes and goes: results in the wrong order are better than none.
//!
//! No call costs a walk over all tasks or all clients. What the clients of a task miss is queued
//! until the bus is full; then the task is *due*, and goes on when there is room. After a
//! reconnect, tasks are looked up a slice a turn ([`Results::go_on`]).

mod absence;
mod holds;
mod look_ups;
mod recalls;
mod speech;
mod stop;
mod timeline;

pub use super::bus::StoppedBy;
use absence::Absences;
use holds::Holds;
use look_ups::LookUps;
pub use recalls::RecallOutcome;
use recalls::Recalls;
pub use stop::StopOutcome;

use crate::base::moment::Moment;
use crate::base::queue;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use uuid::Uuid;

use crate::base::budget::{Budget, Charge, Charged};
use crate::proto::control::ControlAction;
use crate::proto::message::{SharedResult, TaskId, TaskResult, audio_end, audio_end_line};
use crate::service::bus::{Bus, Change, Delivery, Parcel, Recipients};
use crate::service::link::{self, Address, Link, LinkEvent, LookUpAnswer, RedisState};
use crate::service::parsed::ParsedResults;
use crate::service::tasks::{
    self, ClientState, Deliverable, EndRules, Occurrence, Renumbered, ResultContent, SpeechKey,
    Status, Subscription, TaskEnd, Tasks,
};

/// How long results are held while the link is down.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Losses of results are reported at most once in this time.
const LOSS_NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// What goes to the log, or concerns every waiting session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Notice {
    /// The link to Redis is up.
    Up { address: String },
    /// The link to Redis is lost.
    Down { why: String },
    /// Something about Redis is not as it should be.
    Problem { why: String },
    /// Redis has been away for longer than `grace`: the clients that wait have to be closed.
    GraceOver,
    /// Results were evicted since the last notice, because `max_retained` is reached.
    Evicted { results: u64 },
    /// Results were not kept since the last notice, because their task has its share already.
    NotKept { results: u64 },
    /// A stream has another `result_id` than before.
    SpeechRenumbered(Renumbered),
    /// A stream is not kept any more.
    SpeechGone(SpeechKey),
    /// A task was stopped: how many clients it had, and how many of its results were dropped.
    Stopped { task: Uuid, by: StoppedBy, clients: usize, results: usize },
    /// A worker has said that this growing file of a task is complete.
    AudioEnd { task: Uuid, name: PathBuf },
    /// Results of stopped tasks came and were dropped.
    DroppedAfterStop { results: u64 },
    /// The answer to [`Results::request_stop`], for all tasks if `task` is `None`.
    StopAnswered { task: Option<Uuid>, outcome: StopOutcome },
}

/// Everything about results. `K` identifies a client; see [`Bus`].
pub struct Results<K> {
    bus: Bus<K>,
    tasks: Tasks,
    link: Option<Link>,
    notices: VecDeque<Notice>,
    /// The link is down, and results are no longer held for it.
    hold_has_expired: bool,
    holds: Holds,
    absences: Absences,
    look_ups: LookUps,
    recalls: Recalls<K>,
    /// The result that was delivered last, which many clients may get in a row.
    last_read: Option<(Rc<[u8]>, SharedResult)>,
    evicted_reported: u64,
    not_kept_reported: u64,
    losses_reported_at: Option<Moment>,
    parsed: ParsedResults,
    budget: Budget,
    /// For what tasks retain, and what the link buffered when that was last counted.
    charge: Charge,
    link_bytes: usize,
}

/// What a client gets.
#[derive(Clone, Debug)]
pub struct ResultDelivery<K> {
    /// The client, which may have left.
    pub client: K,
    /// What it gets.
    pub what: Delivered,
}

/// What a client is handed.
#[derive(Clone, Debug)]
pub enum Delivered {
    /// A result, which other clients may share. It may be known that further ones follow.
    Result(SharedResult, HasMore),
    /// Its task was stopped.
    Stop(StoppedBy),
    /// What it asked for with [`Results::recall`].
    Recalled(RecallOutcome),
}

/// Whether further results follow for a client.
pub type HasMore = bool;

impl<K: Copy + Ord> Results<K> {
    /// With a link to Redis, or without one: then results come from the embedded inbox, or not at
    /// all.
    pub fn new(tasks: Tasks, link: Option<Link>) -> Results<K> {
        Results {
            bus: Bus::new(),
            tasks,
            link,
            notices: VecDeque::new(),
            hold_has_expired: false,
            holds: Holds::default(),
            absences: Absences::default(),
            look_ups: LookUps::default(),
            recalls: Recalls::default(),
            last_read: None,
            evicted_reported: 0,
            not_kept_reported: 0,
            losses_reported_at: None,
            parsed: ParsedResults::default(),
            charge: Budget::default().charge(0),
            link_bytes: 0,
            budget: Budget::default(),
        }
    }

    /// Charges results to `budget` from now on.
    pub fn charge_to(&mut self, budget: &Budget) {
        self.budget = budget.clone();
        self.charge = budget.charge(0);
        self.count_memory();
    }

    /// Lets the oldest kept results go until they take at most `bytes`, as far as no client is
    /// about to be given them.
    pub fn evict_to(&mut self, now: Moment, bytes: usize) {
        self.tasks.evict_to(now, bytes, |task| self.bus.is_due(task));
        self.trim(now);
    }

    /// The end of a turn.
    pub fn finish_turn(&mut self) {
        self.parsed.forget_unused();
    }

    /// Charges what the link buffers now. What is retained is charged whenever it changes.
    pub fn count_memory(&mut self) {
        self.link_bytes = self.link.as_ref().map_or(0, Link::held_bytes);
        self.recharge();
    }

    fn recharge(&mut self) {
        let bytes = self.tasks.held_bytes() + self.link_bytes;
        if bytes != self.charge.bytes() {
            self.charge.set(bytes);
        }
    }

    /// How names of audio files are compared, and how long the end of one waits for its result.
    pub fn set_end_rules(&mut self, rules: EndRules) {
        self.tasks.set_end_rules(rules);
    }

    /// The audio of a result grows from now on: the result is not evicted until
    /// [`Results::release`].
    pub fn hold(&mut self, task: Uuid, result_id: u32) {
        self.tasks.hold(task, result_id);
    }

    /// The audio of a result grows no longer.
    pub fn release(&mut self, now: Moment, task: Uuid, result_id: u32) {
        self.tasks.release(now, task, result_id);
    }

    /// `key` waits for `task` from now on. What is retained for it is among the next deliveries. It
    /// has had the results whose number is below `seen`.
    pub fn join(&mut self, now: Moment, task: &TaskId, key: K, seen: u32) {
        let uuid = task.uuid();
        self.bus.subscribe(task, key);
        self.tasks.handle_client(now, uuid, None, Some(ClientState::Waiting), None);
        self.tasks.note(now, uuid, tasks::TaskEvent::Connected);
        self.tasks.note_seen(uuid, seen);
        self.follow_changes(now);
        if self.tasks.resume(uuid)
            && let Some(link) = &mut self.link
        {
            // What the worker set before now is not for this client.
            link.drop_set(uuid, self.bus.spellings(uuid));
        }
        self.end_absence(now, uuid);
        self.look_up(uuid);
        self.dispatch(now, uuid);
    }

    /// A client that waits for `task` changes its state.
    pub fn change_state(&mut self, now: Moment, task: Uuid, from: ClientState, to: ClientState) {
        self.tasks.handle_client(now, task, Some(from), Some(to), None);
    }

    /// `key`, which joined `task`, takes no further results.
    pub fn unsubscribe(&mut self, task: Uuid, key: K) {
        self.bus.unsubscribe(task, key);
        if !self.bus.is_waited_for(task) {
            self.holds.end(task);
        }
    }

    /// A client that joined `task` and takes no further results has left. `state` is what it was
    /// last, `end` how the task ended for it, if it did. `is_speaking`: the worker is still making
    /// audio.
    pub fn leave(
        &mut self,
        now: Moment,
        task: Uuid,
        state: ClientState,
        end: Option<TaskEnd>,
        is_speaking: bool,
    ) {
        let is_unfinished = self.is_last_of_unfinished(task, is_speaking);
        self.note_end(now, task, end);
        self.tasks.handle_client(now, task, Some(state), None, end);
        if is_unfinished {
            self.begin_absence(now, task);
        }
        self.follow_changes(now);
        self.trim(now);
    }

    /// A worker published to the embedded inbox.
    pub fn publish(&mut self, now: Moment, task: Uuid, payload: &[u8]) {
        self.handle_published(now, task, Subscription::UNKNOWN, payload.into());
        self.trim(now);
    }

    /// The next result and its client, which may have left.
    pub fn poll_delivery(&mut self, now: Moment) -> Option<ResultDelivery<K>> {
        if let Some((client, outcome)) = self.recalls.poll_answered() {
            return Some(ResultDelivery { client, what: Delivered::Recalled(outcome) });
        }
        self.dispatch_due(now);
        let Some((Delivery { client, task, parcel }, queued)) = self.bus.poll_delivery() else {
            self.last_read = None;
            return None;
        };
        let has_more = queued > 0 || (self.bus.is_due(task) && self.tasks.has_undelivered(task));
        let result = match parcel {
            Parcel::Result { id, payload, .. } => self.read_for(task, payload, id, has_more),
            Parcel::Speech { id } => TaskResult::speech().numbered(Some(id)).shared(&self.budget),
            Parcel::Missing => TaskResult::missing().shared(&self.budget),
            Parcel::Stop(by) => return Some(ResultDelivery { client, what: Delivered::Stop(by) }),
        };
        Some(ResultDelivery { client, what: Delivered::Result(result, has_more) })
    }

    /// The result in a payload. Read only now, because thousands may be queued.
    fn read(&mut self, payload: Rc<[u8]>, id: Option<u32>) -> SharedResult {
        if let Some((last, result)) = &self.last_read
            && Rc::ptr_eq(last, &payload)
            && result.id() == id
        {
            return Rc::clone(result);
        }
        let result = self.parsed.share(&payload, id, &self.budget);
        self.last_read = Some((payload, Rc::clone(&result)));
        result
    }

    /// Whether deliveries are queued, or to be queued.
    pub fn has_deliveries(&self) -> bool {
        self.bus.has_deliveries() || self.bus.has_due() || self.recalls.has_answered()
    }

    /// Whether deliveries have to be taken before more is read from publishers.
    pub fn is_full(&self) -> bool {
        self.bus.is_full() || self.bus.has_due()
    }

    /// The next notice.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        queue::take_first(&mut self.notices)
    }

    /// Whether there are notices.
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// Queues no more than about this many deliveries.
    pub fn limit_queue(&mut self, deliveries_max: usize) {
        self.bus.limit(deliveries_max);
    }

    /// Uses this link from now on.
    pub fn begin_link(&mut self, link: Link) {
        self.link = Some(link);
    }

    /// Takes other settings. Results that exceed them go with the next [`Results::settle`].
    pub fn reload(&mut self, link: &link::Settings, retention: tasks::Settings) {
        self.tasks.reload(retention);
        if let Some(own) = &mut self.link {
            own.reload(link, retention);
        }
    }

    /// The link, for the owner of its sockets. Call [`Results::settle`] after giving it bytes or
    /// time.
    pub fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    /// Takes in what the link has learned, and removes what is too old or too much. To be called
    /// once a turn, and at [`Results::deadline`].
    pub fn settle(&mut self, now: Moment) {
        if let Some(link) = &mut self.link {
            link.handle_time(now);
        }
        let mut has_news = false;
        while let Some(event) = self.link.as_mut().and_then(Link::poll_event) {
            has_news = true;
            self.handle_event(now, event);
        }
        if has_news {
            self.count_memory();
        }
        self.settle_look_ups(now);
        if !self.hold_has_expired && self.hold_ends_at().is_some_and(|at| at <= now) {
            self.hold_has_expired = true;
            self.recalls.answer_all(RecallOutcome::RedisAway);
            self.holds.tasks().for_each(|task| self.bus.mark_due(task));
            self.dispatch_due(now);
        }
        while let Some(task) = self.holds.poll_expired(now) {
            self.dispatch(now, task);
        }
        self.recalls.handle_time(now);
        self.trim(now);
    }

    /// When [`Results::settle`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let link = self.link.as_ref().and_then(Link::deadline);
        let hold = self.hold_ends_at().filter(|_| !self.hold_has_expired);
        let notice = self.losses_reported_at.filter(|_| self.has_unreported_losses());
        let notice = notice.map(|at| at + LOSS_NOTICE_INTERVAL);
        let absence = self.absence_deadline();
        let look_ups = self.look_ups.deadline();
        let waits = Moment::earliest([self.holds.deadline(), self.recalls.deadline(), look_ups]);
        Moment::earliest([link, hold, waits, notice, self.tasks.deadline(), absence])
    }

    /// The state of a task, and whether a client is connected for it. A client waits once its
    /// results can be heard; before that, and while Redis is away, it is only connected.
    pub fn status(&self, task: Uuid) -> (Status, bool) {
        match self.tasks.status(task) {
            (Status::Waiting, _) if !self.is_subscribed(task) => (Status::Connected, true),
            status => status,
        }
    }

    /// Whether results can arrive now. Always, without a link.
    pub fn is_up(&self) -> bool {
        self.link.as_ref().is_none_or(Link::is_up)
    }

    /// The gateway is about to stop: what was published before now is still to be heard and kept.
    pub fn finish(&mut self, now: Moment) {
        self.absences.drain();
        if let Some(link) = &mut self.link {
            link.catch_up(now);
        }
    }

    /// Whether nothing is under way to Redis or from there, or cannot be.
    pub fn is_at_rest(&self) -> bool {
        self.link.as_ref().is_none_or(|link| !link.is_up() || link.is_idle())
    }

    /// Commands that Redis has not answered yet, those included that have not been sent.
    pub fn unstored(&self) -> usize {
        self.link.as_ref().map_or(0, Link::unfinished)
    }

    /// The state of the link to Redis and the server's address; `None` without a link.
    pub fn redis_state(&self) -> Option<(RedisState, &Address)> {
        self.link.as_ref().map(|link| (link.state(), link.address()))
    }

    /// Whether Redis has been away for longer than `grace`.
    pub fn is_redis_lost(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_past_grace)
    }

    /// Whether this client, which waits for `task`, is about to be given a result.
    pub fn is_owed(&self, task: Uuid, client: K) -> bool {
        let has_kept =
            || self.tasks.is_incomplete(task) || self.tasks.results(task).next().is_some();
        let is_missing = || {
            self.tasks.has_undelivered(task) || (self.bus.is_newcomer(task, client) && has_kept())
        };
        self.bus.has_queued(client) || (self.bus.is_due(task) && is_missing())
    }

    /// What is retained, for counters.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn handle_event(&mut self, now: Moment, event: LinkEvent) {
        match event {
            LinkEvent::Up { address } => {
                self.hold_has_expired = false;
                self.begin_look_ups(now);
                self.notices.push_back(Notice::Up { address });
            }
            LinkEvent::Down { why } => {
                self.look_ups.cancel();
                let outcome = StopOutcome::RedisAway;
                self.notices.push_back(Notice::StopAnswered { task: None, outcome });
                self.notices.push_back(Notice::Down { why });
            }
            LinkEvent::Problem { why } => self.notices.push_back(Notice::Problem { why }),
            LinkEvent::GraceOver => self.notices.push_back(Notice::GraceOver),
            LinkEvent::Published { task, subscription, payload } => {
                self.handle_published(now, task, subscription, payload.into());
            }
            LinkEvent::Subscribed { task } => self.look_up_subscribed(now, task),
            LinkEvent::LookedUp(answer) => self.handle_looked_up(now, answer),
            LinkEvent::Control { task, action: ControlAction::Stop } => {
                self.stop(now, task, StoppedBy::Channel);
            }
            LinkEvent::Control { task, action } => self.hear_absence(now, task, action),
            LinkEvent::Known { task, is_known } => self.handle_known(now, task, is_known),
        }
    }

    fn handle_looked_up(&mut self, now: Moment, answer: LookUpAnswer) {
        let LookUpAnswer { task, subscription, kept, next_id, set, is_incomplete } = answer;
        if !self.bus.is_waited_for(task) && !self.recalls.has(task) {
            return;
        }
        if subscription != self.link.as_ref().and_then(|link| link.subscription(task)) {
            // Results may have been published between the answer and the beginning of the present
            // subscription. Clients have had their task looked up again since.
            return self.look_up_recalled(task);
        }
        let subscription = subscription.unwrap_or(Subscription::UNKNOWN);
        if is_incomplete {
            self.tasks.mark_incomplete(now, task);
        }
        // The state of a task that is not done, which its result will overwrite.
        let set = set.into_iter().filter(|payload| !TaskResult::is_progress_message(payload));
        let (ends, set): (Vec<_>, Vec<_>) = set.partition(|payload| audio_end(payload).is_some());
        let kept = (kept, next_id);
        for (occurrence, payload) in self.tasks.handle_looked_up(now, task, subscription, kept, set)
        {
            self.keep(task, subscription, occurrence, payload);
        }
        for name in ends.iter().filter_map(|payload| audio_end(payload)) {
            self.handle_audio_end(now, task, name);
        }
        self.tasks.apply_seen(task);
        self.recalls.answer(task, RecallOutcome::Complete);
        self.dispatch(now, task);
    }

    fn handle_published(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        payload: Rc<[u8]>,
    ) {
        if self.tasks.is_stopped(task) {
            log::debug!(target: "output", "result forgotten why=stopped task={task}");
            return self.note_dropped();
        }
        if let Some(name) = audio_end(&payload) {
            if let (Some(link), Some(line)) = (&mut self.link, audio_end_line(&name)) {
                link.keep_end(task, line.into());
            }
            return self.handle_audio_end(now, task, name);
        }
        log::debug!(target: "output", "result heard len={} task={task}", payload.len());
        if TaskResult::is_progress_message(&payload) {
            // For the clients of this moment: it neither waits for a look-up nor for a later
            // client.
            let charge = Some(charge(&payload, &self.budget));
            let parcel = Parcel::Result { id: None, payload, charge };
            self.bus.publish(task, Recipients::All, &parcel);
            return;
        }
        if self.bus.is_due(task) && !self.tasks.has_room(task, payload.len()) {
            // What came before has to make room, or a client would miss this one.
            self.dispatch_all_of(now, task);
        }
        let occurrence = self.tasks.handle_published(now, task, subscription, Rc::clone(&payload));
        self.tasks.note(now, task, tasks::TaskEvent::Published);
        // A result that was known because the worker had set it is kept already, but without a
        // time.
        self.keep(task, subscription, occurrence, payload);
        self.dispatch(now, task);
        // Not only at the end of the turn: a flood would pile up first.
        self.trim_tasks(now);
    }

    fn handle_audio_end(&mut self, now: Moment, task: Uuid, name: PathBuf) {
        self.tasks.handle_audio_end(now, task, name.clone());
        self.notices.push_back(Notice::AudioEnd { task, name });
    }

    fn keep(
        &mut self,
        task: Uuid,
        subscription: Subscription,
        occurrence: Occurrence,
        payload: Rc<[u8]>,
    ) {
        if let Some(link) = &mut self.link {
            link.keep(task, subscription, occurrence, payload);
        }
    }

    /// Gives every client that waits for `task` what it has not been given yet, if that may go out.
    fn dispatch(&mut self, now: Moment, task: Uuid) {
        if !self.bus.is_waited_for(task) {
            return;
        }
        if !self.release_hold(now, task) {
            let is_missing = self.tasks.has_undelivered(task)
                || (self.bus.has_newcomers(task) && self.tasks.results(task).next().is_some());
            if is_missing {
                self.holds.begin(now, task);
            }
            return;
        }
        if !self.is_settled(task) {
            // Nothing more can be found out, or not in time.
            self.tasks.apply_seen(task);
        }
        while !self.bus.is_full() {
            if !self.dispatch_one(task) {
                return self.tasks.mark_dispatched(now, task);
            }
        }
        self.bus.mark_due(task);
    }

    /// Queues one result for the clients that have had all before it, or all results for one client
    /// that has had none. False: no client misses anything.
    fn dispatch_one(&mut self, task: Uuid) -> bool {
        let budget = &self.budget;
        let parcel = |Deliverable { id, content, is_kept }| match content {
            ResultContent::Published(payload) => {
                let charge = (!is_kept).then(|| charge(&payload, budget));
                Parcel::Result { id: Some(id), payload, charge }
            }
            ResultContent::Speech => Parcel::Speech { id },
        };
        if let Some(next) = self.tasks.poll_undispatched(task) {
            self.bus.publish(task, Recipients::CaughtUp, &parcel(next));
            return true;
        }
        // Only to clients that came since it was lost: the others had it.
        let missing = self.tasks.is_incomplete(task).then_some(Parcel::Missing);
        let results = self.tasks.results(task).map(parcel);
        self.bus.catch_up(task, missing.into_iter().chain(results))
    }

    /// Goes on with tasks for which there was no room.
    fn dispatch_due(&mut self, now: Moment) {
        while !self.bus.is_full() {
            let Some(task) = self.bus.poll_due() else { return };
            self.dispatch(now, task);
        }
    }

    /// The same for one task, however full the bus is.
    fn dispatch_all_of(&mut self, now: Moment, task: Uuid) {
        while self.dispatch_one(task) {}
        self.tasks.mark_dispatched(now, task);
    }

    /// Returns whether results of a task may go out now. Ends the hold of a task that is settled.
    fn release_hold(&mut self, now: Moment, task: Uuid) -> bool {
        if self.link.is_none() {
            return true;
        }
        if self.is_settled(task) {
            self.holds.end(task);
            return true;
        }
        self.holds.has_expired(task) || self.hold_ends_at().is_some_and(|at| at <= now)
    }

    fn is_subscribed(&self, task: Uuid) -> bool {
        self.is_up() && (self.link.is_none() || self.is_settled(task))
    }

    /// Whether Redis has said what it keeps of a task. Without an answer since the subscription
    /// began, it may keep results from before it.
    fn is_settled(&self, task: Uuid) -> bool {
        let subscription = self.link.as_ref().and_then(|link| link.subscription(task));
        subscription.is_some_and(|it| self.tasks.is_settled(task, it))
    }

    fn hold_ends_at(&self) -> Option<Moment> {
        Some(self.link.as_ref()?.away_since()? + HOLD_MAX)
    }

    fn follow_changes(&mut self, now: Moment) {
        while let Some(change) = self.bus.poll_change() {
            match (&mut self.link, change) {
                (Some(link), Change::Listen { task, spelling }) => {
                    link.listen(task, &spelling, now)
                }
                (Some(link), Change::Unlisten { spelling, .. }) => link.unlisten(&spelling),
                (None, _) => {}
            }
        }
    }

    fn trim_tasks(&mut self, now: Moment) {
        self.tasks.trim(now, |task| self.bus.is_due(task));
    }

    fn trim(&mut self, now: Moment) {
        self.trim_tasks(now);
        self.follow_speech();
        while let Some(task) = self.tasks.poll_forgotten() {
            if let Some(link) = &mut self.link {
                link.forget(task);
            }
        }
        self.recharge();
        let is_time = self.losses_reported_at.is_none_or(|at| at + LOSS_NOTICE_INTERVAL <= now);
        if is_time && self.has_unreported_losses() {
            self.report_losses(now);
        }
    }

    fn has_unreported_losses(&self) -> bool {
        self.tasks.evicted() > self.evicted_reported
            || self.tasks.not_kept() > self.not_kept_reported
    }

    fn report_losses(&mut self, now: Moment) {
        let evicted = self.tasks.evicted() - self.evicted_reported;
        let not_kept = self.tasks.not_kept() - self.not_kept_reported;
        if evicted > 0 {
            self.notices.push_back(Notice::Evicted { results: evicted });
        }
        if not_kept > 0 {
            self.notices.push_back(Notice::NotKept { results: not_kept });
        }
        self.evicted_reported = self.tasks.evicted();
        self.not_kept_reported = self.tasks.not_kept();
        self.losses_reported_at = Some(now);
    }
}

/// Counts a payload that nothing else counts while it is queued.
fn charge(payload: &Rc<[u8]>, budget: &Budget) -> Rc<Charged<()>> {
    Rc::new(Charged::new((), payload.len(), budget))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::message::AudioPresence;
    use crate::service::link::{LinkAction, RedisRole};
    use crate::service::tasks::Settings;

    const SECOND: Duration = Duration::from_secs(1);

    pub(super) fn task() -> TaskId {
        TaskId::from(Uuid::from_u128(1))
    }

    /// Progress messages, and what a full task does not keep.
    #[test]
    fn payloads_that_are_queued_and_not_kept_are_counted() {
        let (retain, max_retained) = (Some(300 * SECOND), 4000);
        let tasks = Tasks::new(Settings { retain, max_retained, ..Default::default() });
        let (mut results, budget) = (Results::<u32>::new(tasks, None), Budget::default());
        results.charge_to(&budget);
        for client in 0..3 {
            results.join(Moment::START, &task(), client, 0);
        }
        let text = "x".repeat(3000);
        let progress = format!(r#"{{"status":"processing","text":"{text}"}}"#);
        let large = format!(r#"{{"text":"{text}","final":false}}"#);
        for payload in [progress, large] {
            results.publish(Moment::START, task().uuid(), payload.as_bytes());
            results.settle(Moment::START);
            let left: Vec<usize> = std::iter::from_fn(|| {
                let held = budget.held();
                results.poll_delivery(Moment::START).map(|_| held)
            })
            .collect();
            assert_eq!(left.len(), 3);
            assert!(left.iter().all(|held| *held >= payload.len()), "{left:?}");
            let held = budget.held();
            assert!(held < payload.len(), "{held} are left");
        }
    }

    pub(super) fn results(max_retained: usize) -> (Results<u32>, Moment) {
        (
            Results::new(
                Tasks::new(Settings {
                    retain: Some(300 * SECOND),
                    max_retained,
                    ..Default::default()
                }),
                None,
            ),
            Moment::START,
        )
    }

    pub(super) fn deliveries(results: &mut Results<u32>) -> Vec<(u32, String)> {
        let told = |result: SharedResult| {
            let message: serde_json::Value =
                serde_json::from_str(&result.message(&task(), AudioPresence::Absent)).unwrap();
            message["content"].as_str().unwrap_or("?").to_owned()
        };
        std::iter::from_fn(|| results.poll_delivery(Moment::START))
            .map(|delivery| match delivery.what {
                Delivered::Result(result, _) => (delivery.client, told(result)),
                Delivered::Stop(_) => (delivery.client, "STOP".to_owned()),
                Delivered::Recalled(_) => panic!("nothing was recalled"),
            })
            .collect()
    }

    fn publish(results: &mut Results<u32>, now: Moment, text: &str) {
        results.publish(
            now,
            task().uuid(),
            format!(r#"{{"text":"{text}","final":false}}"#).as_bytes(),
        );
    }

    #[test]
    fn results_before_and_after_the_client_arrive_once_and_in_order() {
        let (mut results, now) = results(1 << 20);
        publish(&mut results, now, "a");
        publish(&mut results, now, "b");
        results.join(now, &task(), 1, 0);
        publish(&mut results, now, "a");
        results.join(now, &task(), 2, 0);
        publish(&mut results, now, "c");
        let all = deliveries(&mut results);
        for key in [1, 2] {
            let texts: Vec<&str> =
                all.iter().filter(|one| one.0 == key).map(|one| one.1.as_str()).collect();
            assert_eq!(texts, ["a", "b", "a", "c"]);
        }
        assert_eq!(all.len(), 8);
    }

    #[test]
    fn returning_client_gets_kept_results_again() {
        let (mut results, now) = results(1 << 20);
        publish(&mut results, now, "a");
        for _ in 0..2 {
            results.join(now, &task(), 1, 0);
            assert_eq!(deliveries(&mut results), [(1, "a".into())]);
            results.unsubscribe(task().uuid(), 1);
            results.leave(now, task().uuid(), ClientState::Waiting, None, false);
        }
        while results.poll_absence(now + SECOND, |_| false).is_some() {}
        let at = results.deadline().unwrap();
        assert_eq!(at, now + 300 * SECOND);
        results.settle(at);
        results.join(at, &task(), 1, 0);
        assert_eq!(deliveries(&mut results), []);
        assert_eq!(results.status(task().uuid()), (Status::Waiting, true));
        results.unsubscribe(task().uuid(), 1);
        let timed_out = Some(TaskEnd::TimedOut);
        results.leave(at, task().uuid(), ClientState::Waiting, timed_out, false);
        assert_eq!(results.status(task().uuid()), (Status::TimedOut, false));
    }

    #[test]
    fn evictions_are_reported_once_a_second() {
        let (mut results, now) = results(1000);
        for i in 0..100 {
            results.publish(now, Uuid::from_u128(i), b"{}");
        }
        let first = results.poll_notice();
        assert!(matches!(first, Some(Notice::Evicted { results: 1 })), "{first:?}");
        assert_eq!(results.poll_notice(), None);
        assert_eq!(results.deadline(), Some(now + SECOND));
        results.settle(now + SECOND);
        assert_eq!(
            results.poll_notice(),
            Some(Notice::Evicted { results: results.tasks().evicted() - 1 })
        );
        assert!(results.tasks().retained_bytes() <= 1000);
    }

    #[test]
    fn a_crowd_gets_everything_in_order_while_little_is_queued() {
        let (mut results, now) = results(1 << 20);
        results.limit_queue(50);
        (0..20).for_each(|number| publish(&mut results, now, &number.to_string()));
        let mut received = vec![Vec::new(); 100];
        let mut published = 20;
        for client in 0..100 {
            results.join(now, &task(), client, 0);
        }
        while let Some(delivery) = results.poll_delivery(now) {
            let queued = results.bus.queued();
            assert!(queued < 50 + 100, "{queued} queued");
            // Results that come meanwhile are not lost, and not given twice.
            if published < 25 {
                assert!(results.is_full() && results.is_owed(task().uuid(), 99));
                publish(&mut results, now, &published.to_string());
                published += 1;
            }
            let list: &mut Vec<String> = &mut received[delivery.client as usize];
            let Delivered::Result(result, has_more) = delivery.what else { panic!("a stop") };
            let message = result.message(&task(), AudioPresence::Absent);
            let message: serde_json::Value = serde_json::from_str(&message).unwrap();
            list.push(message["content"].as_str().unwrap().to_owned());
            assert_eq!(has_more, list.len() < 25, "{list:?}");
        }
        let expected: Vec<String> = (0..25).map(|number| number.to_string()).collect();
        assert!(received.iter().all(|list| *list == expected));
        assert!(!results.has_deliveries() && !results.is_owed(task().uuid(), 99));
    }

    #[test]
    fn results_that_wait_for_room_in_the_queue_are_not_evicted() {
        let (mut results, now) = results(4 * 1024);
        results.limit_queue(2);
        for client in 0..3 {
            results.join(now, &task(), client, 0);
        }
        for number in 0..50 {
            publish(&mut results, now, &number.to_string());
        }
        results.evict_to(now, 0);
        assert_eq!(deliveries(&mut results).len(), 3 * 50);
        results.settle(now);
        assert!(results.tasks().retained_bytes() <= 4 * 1024);
        results.evict_to(now, 0);
        assert_eq!(results.tasks().retained(), 0);
    }

    /// With a link to a server that never answers.
    pub(super) fn unanswered() -> (Results<u32>, Moment) {
        let settings =
            Settings { retain: Some(300 * SECOND), max_retained: 1 << 20, ..Default::default() };
        let link = link::Settings { grace: None, ..link::Settings::default() };
        let link = Link::new(&link, settings, Moment::START, 1).unwrap();
        (Results::new(Tasks::new(settings), Some(link)), Moment::START)
    }

    #[test]
    fn results_are_held_for_redis_for_a_second_while_it_is_away() {
        let (mut results, now) = unanswered();
        results.join(now, &task(), 1, 0);
        publish(&mut results, now, "a");
        assert!(results.deadline().is_some_and(|at| at <= now + HOLD_MAX));
        results.settle(now + HOLD_MAX / 2);
        assert_eq!(deliveries(&mut results), []);
        results.settle(now + HOLD_MAX);
        assert_eq!(deliveries(&mut results), [(1, "a".into())]);
        // Later ones are not held, as long as Redis is away.
        publish(&mut results, now + HOLD_MAX, "b");
        assert_eq!(deliveries(&mut results), [(1, "b".into())]);
    }

    #[test]
    fn a_look_up_that_is_never_answered_holds_results_for_six_seconds_in_all() {
        let (mut results, now) = unanswered();
        results.join(now, &task(), 1, 0);
        publish(&mut results, now, "a");
        // The link comes and goes, and Redis is asked anew each time.
        for second in [0, 2, 4] {
            let at = now + second * SECOND;
            connect(&mut results, at);
            results.settle(at);
            assert!(results.is_up());
            assert_eq!(deliveries(&mut results), [], "after {second} s");
            let link = results.link().unwrap();
            link.handle_closed(RedisRole::Store, "closed", at + SECOND / 2);
            results.settle(at + SECOND);
        }
        connect(&mut results, now + 5 * SECOND);
        results.settle(now + 5 * SECOND);
        results.settle(now + 5 * SECOND + SECOND / 2);
        assert_eq!(deliveries(&mut results), []);
        let end = results.deadline().unwrap();
        assert_eq!(end, now + holds::TASK_HOLD_MAX);
        results.settle(end);
        assert_eq!(deliveries(&mut results), [(1, "a".into())]);
        publish(&mut results, end, "b");
        assert_eq!(deliveries(&mut results), [(1, "b".into())], "it is not held again");
    }

    /// Redis accepts the connections that are not up, and answers the greeting.
    pub(super) fn connect(results: &mut Results<u32>, now: Moment) {
        let link = results.link().unwrap();
        link.handle_time(now);
        let greetings = [
            "+OK\r\n*2\r\n$4\r\n1000\r\n$2\r\n17\r\n\
             *3\r\n$10\r\npsubscribe\r\n$15\r\ntask_response:*\r\n:1\r\n",
            "+OK\r\n*1\r\n$6\r\nmaster\r\n+PONG\r\n",
        ];
        let dialled: Vec<RedisRole> = std::iter::from_fn(|| link.poll_action())
            .filter_map(|action| match action {
                LinkAction::Dial { role, .. } => Some(role),
                LinkAction::Close { .. } => None,
            })
            .collect();
        for role in dialled {
            link.handle_connected(role, now);
            link.handle_bytes(role, greetings[role as usize].as_bytes(), now);
        }
    }

    #[test]
    fn after_a_reconnect_tasks_are_looked_up_a_slice_at_a_time() {
        let (mut results, now) = results(1 << 20);
        for number in 0..25 {
            results.join(now, &TaskId::from(Uuid::from_u128(number)), number as u32, 0);
        }
        results.handle_event(now, LinkEvent::Up { address: "redis".into() });
        let mut turns = 0;
        while results.has_more_work() {
            results.go_on(10);
            turns += 1;
        }
        assert_eq!(turns, 3);
    }

    #[test]
    fn result_too_large_to_keep_is_delivered() {
        let (mut results, now) = results(1000);
        results.join(now, &task(), 1, 0);
        publish(&mut results, now, &"x".repeat(5000));
        assert_eq!(deliveries(&mut results).len(), 1);
        assert_eq!(results.tasks().retained_bytes(), 0);
    }
}
