//! Results from wherever they come to whoever waits: bus, tasks and link as one.
//!
//! A result comes in by [`Results::publish`] (the embedded inbox) or out of the link's events ([`Results::settle`]); it goes out by
//! [`Results::poll_delivery`]. In between it is retained, kept in Redis, and given to everybody who waits, once.
//!
//! The surprising thing: a result that was just heard may have to wait for one that was published before it. After a (re)connect to
//! Redis, and when a task's first client comes, Redis is asked what it keeps; until it has answered, nothing of that task goes out,
//! so that the second sentence never overtakes the first. Redis answers in about a millisecond. When it does not, because its
//! connection is gone as well, everything goes out after `HOLD_MAX`: late order is better than no result.

use crate::base::moment::Moment;
use std::rc::Rc;
use std::time::Duration;

use uuid::Uuid;

use crate::proto::message::{TaskId, TaskResult};
use crate::service::bus::{Bus, Change};
use crate::service::link::{self, Event, Link, LookUpAnswer};
use crate::service::tasks::{self, ClientState, Occurrence, Status, Subscription, TaskEnd, Tasks};

/// A heard result waits no longer for what Redis may keep while the link is down.
const HOLD_MAX: Duration = Duration::from_secs(1);
/// Results let go for lack of room are told of no more often.
const EVICTION_NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// What a person, or every waiting session, should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Notice {
    /// Redis is there (again).
    Up { address: String },
    /// Redis is lost.
    Down { why: String },
    /// Something about Redis is not as it should be.
    Problem { why: String },
    /// Redis has been away for longer than its grace: tell [`Results::waiters`].
    GraceOver,
    /// So many results went before their time since the last notice, because `max_retained` is reached.
    Evicted { results: u64 },
}

/// Everything about results. `K` identifies a client; see [`Bus`].
pub struct Results<K> {
    bus: Bus<K>,
    tasks: Tasks,
    link: Option<Link>,
    notices: std::collections::VecDeque<Notice>,
    /// Results are held no longer although the link is down.
    hold_has_expired: bool,
    evicted_reported: u64,
    evicted_reported_at: Option<Moment>,
}

impl<K: Copy + Ord> Results<K> {
    /// With a link to Redis, or without one: then results come from the embedded inbox, or not at all.
    pub fn new(tasks: Tasks, link: Option<Link>) -> Results<K> {
        Results {
            bus: Bus::new(),
            tasks,
            link,
            notices: Default::default(),
            hold_has_expired: false,
            evicted_reported: 0,
            evicted_reported_at: None,
        }
    }

    /// `key` waits for `task` from now on. What is retained for it is among the next deliveries.
    pub fn join(&mut self, now: Moment, task: &TaskId, key: K) {
        let uuid = task.uuid();
        self.bus.subscribe(task, key);
        self.tasks.client(now, uuid, None, Some(ClientState::Waiting), None);
        self.follow_changes(now);
        self.look_up(uuid);
        self.dispatch(now, uuid);
    }

    /// `key`, which waits for `task`, goes from one stage to the next.
    pub fn stage(&mut self, now: Moment, task: Uuid, from: ClientState, to: ClientState) {
        self.tasks.client(now, task, Some(from), Some(to), None);
    }

    /// `key`, which joined `task`, takes no further results.
    pub fn unsubscribe(&mut self, task: Uuid, key: K) {
        self.bus.unsubscribe(task, key);
    }

    /// A client that joined `task` and takes no further results has left. `state` is what it was last,
    /// `end` how the task ended for it, if it did.
    pub fn leave(&mut self, now: Moment, task: Uuid, state: ClientState, end: Option<TaskEnd>) {
        self.tasks.client(now, task, Some(state), None, end);
        self.follow_changes(now);
        self.trim(now);
    }

    /// A worker published to the embedded inbox.
    pub fn publish(&mut self, now: Moment, task: Uuid, payload: &[u8]) {
        self.handle_published(now, task, Subscription::UNKNOWN, payload.into());
        self.trim(now);
    }

    /// The next result and its client, which may have left.
    pub fn poll_delivery(&mut self) -> Option<(K, Rc<TaskResult>)> {
        self.bus.poll_delivery()
    }

    /// Whether deliveries are queued.
    pub fn has_deliveries(&self) -> bool {
        self.bus.has_deliveries()
    }

    /// Whether nothing more should be read from publishers before deliveries are taken.
    pub fn is_full(&self) -> bool {
        self.bus.is_full()
    }

    /// The next notice.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// Listens to Redis from now on.
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

    /// Where Redis is expected; `None` without a link.
    pub fn redis_address(&self) -> Option<String> {
        self.link.as_ref().map(|link| link.address().to_string())
    }

    /// The last reason why Redis cannot be used, while it cannot.
    pub fn redis_problem(&self) -> Option<&str> {
        self.link.as_ref().and_then(Link::problem)
    }

    /// The link, for whoever has the sockets. Call [`Results::settle`] after giving it bytes or time.
    pub fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    /// Takes in what the link has learned, and lets go what is too old or too much. Once a turn, and at [`Results::deadline`].
    pub fn settle(&mut self, now: Moment) {
        if let Some(link) = &mut self.link {
            link.handle_time(now);
        }
        while let Some(event) = self.link.as_mut().and_then(Link::poll_event) {
            self.handle_event(now, event);
        }
        if !self.hold_has_expired && self.hold_ends_at().is_some_and(|at| at <= now) {
            self.hold_has_expired = true;
            self.dispatch_all(now);
        }
        self.trim(now);
    }

    /// When [`Results::settle`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let link = self.link.as_ref().and_then(Link::deadline);
        let hold = self.hold_ends_at().filter(|_| !self.hold_has_expired);
        let notice =
            self.evicted_reported_at.filter(|_| self.evicted_reported < self.tasks.evicted());
        let notice = notice.map(|at| at + EVICTION_NOTICE_INTERVAL);
        [link, hold, notice, self.tasks.deadline()].into_iter().flatten().min()
    }

    /// How a task stands, and whether a client is connected for it. A client waits once its results can be heard; before that, and
    /// while Redis is away, it is only connected.
    pub fn status(&self, task: Uuid) -> (Status, bool) {
        match self.tasks.status(task) {
            (Status::Waiting, _) if !self.is_subscribed(task) => (Status::Connected, true),
            status => status,
        }
    }

    /// Whether results can be had now. Always, without a link.
    pub fn is_up(&self) -> bool {
        self.link.as_ref().is_none_or(Link::is_up)
    }

    /// The gateway is about to stop: what was published up to now is still to be heard and kept.
    pub fn finish(&mut self, now: Moment) {
        if let Some(link) = &mut self.link {
            link.catch_up(now);
        }
    }

    /// Nothing is on its origin to Redis or from there, or it cannot be.
    pub fn is_at_rest(&self) -> bool {
        self.link.as_ref().is_none_or(|link| !link.is_up() || link.is_idle())
    }

    /// Redis has been away for longer than its grace.
    pub fn is_redis_lost(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_past_grace)
    }

    /// Every session that waits, in no order.
    pub fn waiters(&self) -> impl Iterator<Item = K> + '_ {
        self.bus.waiters()
    }

    /// What is retained, for counters.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn handle_event(&mut self, now: Moment, event: Event) {
        match event {
            Event::Up { address } => {
                self.hold_has_expired = false;
                let waited_for: Vec<Uuid> = self.bus.waited_for().collect();
                waited_for.into_iter().for_each(|task| self.look_up(task));
                self.notices.push_back(Notice::Up { address });
            }
            Event::Down { why } => {
                self.dispatch_all(now);
                self.notices.push_back(Notice::Down { why });
            }
            Event::Problem { why } => self.notices.push_back(Notice::Problem { why }),
            Event::GraceOver => self.notices.push_back(Notice::GraceOver),
            Event::Published { task, subscription, payload } => {
                self.handle_published(now, task, subscription, payload.into())
            }
            Event::Subscribed { task } => self.look_up(task),
            Event::LookedUp(LookUpAnswer { task, kept, set }) => {
                if self.bus.is_waited_for(task) {
                    let subscription = self
                        .link
                        .as_ref()
                        .and_then(|link| link.subscription(task))
                        .unwrap_or(Subscription::UNKNOWN);
                    for (occurrence, payload) in
                        self.tasks.handle_looked_up(now, task, subscription, kept, set)
                    {
                        self.keep(task, subscription, occurrence, payload);
                    }
                    self.dispatch(now, task);
                }
            }
        }
    }

    fn handle_published(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        payload: Rc<[u8]>,
    ) {
        let occurrence = self.tasks.handle_published(now, task, subscription, Rc::clone(&payload));
        // What was known because a worker had set it is kept already, but not yet as heard.
        self.keep(task, subscription, occurrence, payload);
        self.dispatch(now, task);
        // Within a turn as well: a flood must not pile up first and be trimmed afterwards.
        self.tasks.trim(now);
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

    fn look_up(&mut self, task: Uuid) {
        if let Some(link) = &mut self.link
            && link.is_up()
            && link.subscription(task).is_some()
        {
            link.look_up(task, self.bus.spellings(task));
        }
    }

    /// Gives everybody who waits for `task` what they have not had yet, if it may go out.
    fn dispatch(&mut self, now: Moment, task: Uuid) {
        if !self.bus.is_waited_for(task) || !self.may_go_out(now, task) {
            return;
        }
        for (is_dispatched, payload) in self.tasks.results(task) {
            self.bus.publish(task, is_dispatched, || Rc::new(TaskResult::read(payload)));
        }
        self.tasks.mark_dispatched(task);
        self.bus.mark_caught_up(task);
    }

    fn dispatch_all(&mut self, now: Moment) {
        let waited_for: Vec<Uuid> = self.bus.waited_for().collect();
        waited_for.into_iter().for_each(|task| self.dispatch(now, task));
    }

    fn may_go_out(&self, now: Moment, task: Uuid) -> bool {
        let Some(link) = &self.link else { return true };
        // Deaf, subscribing or just listening again: Redis may keep what came before all that was heard here.
        let is_settled = link
            .subscription(task)
            .is_some_and(|subscription| self.tasks.is_settled(task, subscription));
        is_settled || self.hold_ends_at().is_some_and(|at| at <= now)
    }

    fn is_subscribed(&self, task: Uuid) -> bool {
        match &self.link {
            Some(link) => {
                link.is_up()
                    && link
                        .subscription(task)
                        .is_some_and(|subscription| self.tasks.is_settled(task, subscription))
            }
            None => true,
        }
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

    fn trim(&mut self, now: Moment) {
        self.tasks.trim(now);
        while let Some(task) = self.tasks.poll_forgotten() {
            if let Some(link) = &mut self.link {
                link.forget(task);
            }
        }
        let evicted = self.tasks.evicted();
        let is_time =
            self.evicted_reported_at.is_none_or(|at| at + EVICTION_NOTICE_INTERVAL <= now);
        if evicted > self.evicted_reported && is_time {
            self.notices.push_back(Notice::Evicted { results: evicted - self.evicted_reported });
            self.evicted_reported = evicted;
            self.evicted_reported_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tasks::Settings;

    const SECOND: Duration = Duration::from_secs(1);

    fn task() -> TaskId {
        TaskId::from(Uuid::from_u128(1))
    }

    fn results(max_retained: usize) -> (Results<u32>, Moment) {
        (
            Results::new(Tasks::new(Settings { retain: Some(300 * SECOND), max_retained }), None),
            Moment::START,
        )
    }

    fn deliveries(results: &mut Results<u32>) -> Vec<(u32, String)> {
        let told = |result: Rc<TaskResult>| {
            let message: serde_json::Value =
                serde_json::from_str(&result.message(&task(), false)).unwrap();
            message["content"].as_str().unwrap_or("?").to_owned()
        };
        std::iter::from_fn(|| results.poll_delivery())
            .map(|(key, result)| (key, told(result)))
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
        results.join(now, &task(), 1);
        publish(&mut results, now, "a");
        results.join(now, &task(), 2);
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
            results.join(now, &task(), 1);
            assert_eq!(deliveries(&mut results), [(1, "a".into())]);
            results.unsubscribe(task().uuid(), 1);
            results.leave(now, task().uuid(), ClientState::Waiting, None);
        }
        let at = results.deadline().unwrap();
        assert_eq!(at, now + 300 * SECOND);
        results.settle(at);
        results.join(at, &task(), 1);
        assert_eq!(deliveries(&mut results), []);
        assert_eq!(results.status(task().uuid()), (Status::Waiting, true));
        results.unsubscribe(task().uuid(), 1);
        results.leave(at, task().uuid(), ClientState::Waiting, Some(TaskEnd::TimedOut));
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
    fn result_too_large_to_keep_is_delivered() {
        let (mut results, now) = results(1000);
        results.join(now, &task(), 1);
        publish(&mut results, now, &"x".repeat(5000));
        assert_eq!(deliveries(&mut results).len(), 1);
        assert_eq!(results.tasks().retained_bytes(), 0);
    }
}
