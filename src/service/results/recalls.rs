//! Recalling what Redis keeps of a task for requests that do not wait for its results.
//!
//! A download may ask for a task that this gateway has not heard, or not from its beginning: the
//! result was published before a restart, or while only another gateway ran. Redis is asked as for
//! the first client of the task, and what it keeps joins the results that are known here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::{Results, holds};
use crate::base::moment::Moment;
use crate::base::queue;
use crate::proto::message::TaskId;

/// Timeout for an answer. A link that is silent for a little less is lost.
const RECALL_TIMEOUT: Duration = holds::TASK_HOLD_MAX;

/// What came of asking Redis. Whatever it is, what is known here can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecallOutcome {
    /// Everything is known that Redis keeps.
    Complete,
    /// Redis is away.
    RedisAway,
    /// Redis did not answer in time.
    TimedOut,
}

/// Requests that wait for an answer of Redis.
pub(super) struct Recalls<K> {
    tasks: BTreeMap<Uuid, Recall<K>>,
    /// When each request has waited long enough, the first in front. Some wait no longer.
    ends: VecDeque<(Moment, Uuid, K)>,
    answered: VecDeque<(K, RecallOutcome)>,
}

/// The requests for one task.
struct Recall<K> {
    waiting: BTreeSet<K>,
    /// How the first one spells the id, if that is not the usual form.
    spelling: Option<Box<str>>,
}

impl<K: Copy + Ord> Recalls<K> {
    fn begin(&mut self, now: Moment, task: &TaskId, key: K) {
        let (uuid, spelling) = (task.uuid(), task.written().map(Into::into));
        let new = || Recall { waiting: BTreeSet::new(), spelling };
        self.tasks.entry(uuid).or_insert_with(new).waiting.insert(key);
        self.ends.push_back((now + RECALL_TIMEOUT, uuid, key));
    }

    /// The request needs no answer any more.
    fn end(&mut self, task: Uuid, key: K) -> bool {
        let Some(recall) = self.tasks.get_mut(&task) else { return false };
        let was_waiting = recall.waiting.remove(&key);
        if recall.waiting.is_empty() {
            self.tasks.remove(&task);
        }
        if self.tasks.is_empty() {
            self.ends = VecDeque::new();
        }
        was_waiting
    }

    /// Whether a request waits for what Redis keeps of `task`.
    pub(super) fn has(&self, task: Uuid) -> bool {
        self.tasks.contains_key(&task)
    }

    /// All requests for a task have their answer.
    pub(super) fn answer(&mut self, task: Uuid, outcome: RecallOutcome) {
        if let Some(recall) = self.tasks.remove(&task) {
            self.answered.extend(recall.waiting.into_iter().map(|key| (key, outcome)));
        }
        if self.tasks.is_empty() {
            self.ends = VecDeque::new();
        }
    }

    /// All requests have this answer.
    pub(super) fn answer_all(&mut self, outcome: RecallOutcome) {
        while let Some((task, _)) = self.tasks.first_key_value() {
            self.answer(*task, outcome);
        }
    }

    /// Ends what has waited long enough.
    pub(super) fn handle_time(&mut self, now: Moment) {
        while let Some(&(_, task, key)) = self.ends.front().filter(|(end, ..)| *end <= now) {
            queue::take_first(&mut self.ends);
            if self.end(task, key) {
                self.answered.push_back((key, RecallOutcome::TimedOut));
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        self.ends.front().map(|(end, ..)| *end)
    }

    pub(super) fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// The next request with its answer.
    pub(super) fn poll_answered(&mut self) -> Option<(K, RecallOutcome)> {
        queue::take_first(&mut self.answered)
    }
}

impl<K> Default for Recalls<K> {
    fn default() -> Recalls<K> {
        Recalls { tasks: BTreeMap::new(), ends: VecDeque::new(), answered: VecDeque::new() }
    }
}

impl<K: Copy + Ord> Results<K> {
    /// Makes everything of `task` known here that Redis keeps, for the request `key`, which waits
    /// for nothing else. `None`: [`super::Delivered::Recalled`] follows, unless
    /// [`Results::end_recall`] comes before.
    pub fn recall(&mut self, now: Moment, task: &TaskId, key: K) -> Option<RecallOutcome> {
        let uuid = task.uuid();
        if self.link.is_none() || self.tasks.is_stopped(uuid) || self.is_settled(uuid) {
            return Some(RecallOutcome::Complete);
        }
        if self.hold_ends_at().is_some_and(|at| at <= now) {
            return Some(RecallOutcome::RedisAway);
        }
        let is_first = !self.recalls.has(uuid);
        self.recalls.begin(now, task, key);
        if is_first {
            self.look_up_recalled(uuid);
        }
        None
    }

    /// The request `key` for `task` is over.
    pub fn end_recall(&mut self, task: Uuid, key: K) {
        self.recalls.end(task, key);
    }

    /// Asks Redis about a task that is recalled, if it can be asked now.
    pub(super) fn look_up_recalled(&mut self, task: Uuid) {
        let Some(recall) = self.recalls.tasks.get(&task) else { return };
        if let Some(link) = &mut self.link
            && link.is_up()
            && !self.look_ups.is_postponed()
        {
            let mut spellings = self.bus.spellings(task).to_vec();
            spellings.extend(recall.spelling.clone().filter(|one| !spellings.contains(one)));
            link.look_up(task, &spellings);
        }
    }

    /// Redis can be asked now about everything that is recalled.
    pub(super) fn look_up_all_recalled(&mut self) {
        let tasks: Vec<Uuid> = self.recalls.tasks.keys().copied().collect();
        tasks.into_iter().for_each(|task| self.look_up_recalled(task));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connect, task, unanswered};
    use super::super::{Delivered, LookUpAnswer};
    use super::*;
    use crate::proto::control::ControlAction;
    use crate::service::link::{LinkEvent, RedisRole};
    use crate::service::results::StoppedBy;
    use crate::service::tasks::KeptResult;

    const SECOND: Duration = Duration::from_secs(1);

    fn outcomes(results: &mut Results<u32>, now: Moment) -> Vec<(u32, RecallOutcome)> {
        results.settle(now);
        let outcome = |what| match what {
            Delivered::Recalled(outcome) => outcome,
            Delivered::Result(..) | Delivered::Stop(_) => panic!("{what:?}"),
        };
        std::iter::from_fn(|| results.poll_delivery(now))
            .map(|delivery| (delivery.client, outcome(delivery.what)))
            .collect()
    }

    /// The tasks that Redis is asked about.
    fn asked(results: &mut Results<u32>, now: Moment) -> usize {
        let link = results.link().unwrap();
        let said = String::from_utf8_lossy(link.poll_output(RedisRole::Store, now)).into_owned();
        link.handle_written(RedisRole::Store, said.len());
        said.matches("$5\r\nHMGET\r\n").count()
    }

    fn answer(results: &mut Results<u32>, now: Moment) {
        let link = results.link().unwrap();
        let subscription = link.subscription(task().uuid());
        let payload = br#"{"text":"a","final":false}"#.to_vec();
        let kept = vec![KeptResult { stored_at: 1, id: 0, payload }];
        let (task, set) = (task().uuid(), Vec::new());
        let answer =
            LookUpAnswer { task, subscription, kept, next_id: 1, set, is_incomplete: false };
        results.handle_event(now, LinkEvent::LookedUp(answer));
    }

    #[test]
    fn requests_for_one_task_share_a_look_up_that_waits_for_other_gateways_to_store() {
        let (mut results, now) = unanswered();
        assert_eq!(results.recall(now, &task(), 1), None);
        connect(&mut results, now);
        assert_eq!((outcomes(&mut results, now), asked(&mut results, now)), (vec![], 0));
        let stored = results.deadline().unwrap();
        assert_eq!((outcomes(&mut results, stored), asked(&mut results, stored)), (vec![], 1));
        assert_eq!(results.recall(stored, &task(), 2), None);
        assert_eq!(asked(&mut results, stored), 0);
        answer(&mut results, stored);
        assert!(results.has_deliveries());
        let expected = [1, 2].map(|key| (key, RecallOutcome::Complete));
        assert_eq!(outcomes(&mut results, stored), expected);
        assert_eq!(results.tasks().results(task().uuid()).count(), 1);
        // All that is published from now on is heard.
        assert_eq!(results.recall(stored, &task(), 3), Some(RecallOutcome::Complete));
    }

    #[test]
    fn a_request_waits_for_a_second_while_redis_is_away_and_for_six_while_it_is_silent() {
        let (mut results, now) = unanswered();
        assert_eq!(results.recall(now, &task(), 1), None);
        assert_eq!(outcomes(&mut results, now + SECOND / 2), []);
        let away = now + SECOND;
        assert_eq!(outcomes(&mut results, away), [(1, RecallOutcome::RedisAway)]);
        assert_eq!(results.recall(away, &task(), 2), Some(RecallOutcome::RedisAway));
        connect(&mut results, away);
        assert_eq!(outcomes(&mut results, away), []);
        assert_eq!(results.recall(away, &task(), 3), None);
        results.end_recall(task().uuid(), 3);
        assert_eq!(results.recall(away, &task(), 4), None);
        let (almost, end) = (away + (RECALL_TIMEOUT - SECOND), away + RECALL_TIMEOUT);
        // It stays up: something else is heard.
        let link = results.link().unwrap();
        for role in [RedisRole::Subscriber, RedisRole::Store] {
            link.handle_bytes(role, b"+PONG\r\n", almost);
        }
        assert_eq!(outcomes(&mut results, almost), []);
        assert_eq!(outcomes(&mut results, end), [(4, RecallOutcome::TimedOut)]);
        assert!(results.recalls.tasks.is_empty() && results.recalls.ends.is_empty());
    }

    #[test]
    fn what_is_dropped_by_a_stop_does_not_come_back_with_an_answer() {
        let (mut results, now) = unanswered();
        connect(&mut results, now);
        results.settle(now);
        assert_eq!(results.recall(now, &task(), 1), None);
        let action = ControlAction::Stop;
        results.handle_event(now, LinkEvent::Control { task: task().uuid(), action });
        answer(&mut results, now);
        assert_eq!(outcomes(&mut results, now), [(1, RecallOutcome::Complete)]);
        assert_eq!(results.tasks().results(task().uuid()).count(), 0);
        assert_eq!(results.recall(now, &task(), 2), Some(RecallOutcome::Complete));
        results.stop(now, task().uuid(), StoppedBy::Http);
    }

    /// It may lack what was published before the present subscription began.
    #[test]
    fn an_answer_from_before_the_subscription_is_asked_for_again() {
        let (mut results, now) = unanswered();
        connect(&mut results, now);
        results.settle(now);
        let later = now + SECOND;
        results.settle(later);
        asked(&mut results, later);
        assert_eq!(results.recall(later, &task(), 1), None);
        assert_eq!(asked(&mut results, later), 1);
        let (task, kept, set) = (task().uuid(), Vec::new(), Vec::new());
        let answer =
            LookUpAnswer { task, subscription: None, kept, next_id: 0, set, is_incomplete: false };
        results.handle_event(later, LinkEvent::LookedUp(answer));
        assert_eq!((outcomes(&mut results, later), asked(&mut results, later)), (vec![], 1));
    }
}
