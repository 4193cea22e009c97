//! Unfinished tasks without a client: LEFT and BACK.
//!
//! ```text
//!  a client waits ── the last one leaves ──► Leaving ── ABSENCE_MIN later: LEFT ──► Left
//!        ▲                                      │                                    │
//!        └── one comes: nothing to say ─────────┴── one comes: BACK ─────────────────┘
//! ```
//!
//! A client that reconnects within [`ABSENCE_MIN`] was never away: its worker gets neither message.
//! Gateways on one Redis hear each other: a task whose client left another gateway is Left here as
//! well, so that BACK is sent by whichever gateway the client returns to.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use uuid::Uuid;

use super::{HasMore, Results};
use crate::base::moment::Moment;
use crate::proto::control::ControlAction;
use crate::proto::message::SharedResult;

/// How long a task has no client before its worker gets LEFT.
const ABSENCE_MIN: Duration = Duration::from_secs(1);
/// How long a task that was left is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Tasks that were left and are remembered.
const REMEMBERED_MAX: usize = 65_536;

/// The tasks without clients.
#[derive(Default)]
pub(super) struct Absences {
    tasks: HashMap<Uuid, Absence>,
    /// Tasks that are Leaving, and until when. Some have a client again.
    leaving: VecDeque<(Moment, Uuid)>,
    /// Tasks that are Left, and until when they are remembered. Some have a client again.
    left: VecDeque<(Moment, Uuid)>,
    /// Tasks whose workers have to get BACK, and since when.
    back: VecDeque<(Moment, Uuid)>,
    /// The gateway is about to end: its clients go to another one, or return to the next process.
    is_draining: bool,
}

/// The moments tell an absence from later ones of the same task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absence {
    Leaving { until: Moment },
    Left { until: Moment },
}

impl Absences {
    /// The last client of an unfinished task has left.
    fn begin(&mut self, now: Moment, task: Uuid) {
        if self.is_draining {
            return;
        }
        let until = now + ABSENCE_MIN;
        self.tasks.insert(task, Absence::Leaving { until });
        self.leaving.push_back((until, task));
    }

    /// A client has come. Whether the workers know of its absence.
    fn end(&mut self, now: Moment, task: Uuid) -> bool {
        match self.tasks.remove(&task) {
            Some(Absence::Left { until }) => until > now,
            Some(Absence::Leaving { .. }) | None => false,
        }
    }

    fn say_back(&mut self, now: Moment, task: Uuid) {
        self.back.push_back((now, task));
    }

    /// Workers know that the task has no client.
    fn remember(&mut self, now: Moment, task: Uuid) {
        let until = now + REMEMBERED;
        self.tasks.insert(task, Absence::Left { until });
        self.left.push_back((until, task));
        while let Some(&(until, task)) = self.left.front()
            && (until <= now || self.left.len() > REMEMBERED_MAX)
        {
            self.left.pop_front();
            if self.tasks.get(&task) == Some(&Absence::Left { until }) {
                self.tasks.remove(&task);
            }
        }
    }

    /// The next task that has had no client for long enough.
    fn poll_leaving(&mut self, now: Moment) -> Option<Uuid> {
        while let Some(&(until, task)) = self.leaving.front().filter(|(until, _)| *until <= now) {
            self.leaving.pop_front();
            if self.tasks.get(&task) == Some(&Absence::Leaving { until }) {
                self.tasks.remove(&task);
                return Some(task);
            }
        }
        if self.leaving.is_empty() && self.leaving.capacity() > 64 {
            self.leaving = VecDeque::new();
            self.tasks.shrink_to_fit();
        }
        None
    }

    /// From now on, no LEFT is sent.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
        self.leaving.clear();
    }

    /// Whether the task has no client and is not finished, as far as that is remembered.
    pub(super) fn has(&self, task: Uuid) -> bool {
        self.tasks.contains_key(&task)
    }

    fn is_leaving(&self, task: Uuid) -> bool {
        matches!(self.tasks.get(&task), Some(Absence::Leaving { .. }))
    }

    /// The task is stopped, or has a client somewhere.
    pub(super) fn forget(&mut self, task: Uuid) {
        self.tasks.remove(&task);
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let first = |queue: &VecDeque<(Moment, Uuid)>| queue.front().map(|(at, _)| *at);
        Moment::earliest([first(&self.back), first(&self.leaving)])
    }
}

impl<K: Copy + Ord> Results<K> {
    /// The result for a client of `task`, behind which it `has_more`. Notes whether it is the final
    /// one.
    pub(super) fn read_for(
        &mut self,
        task: Uuid,
        payload: Rc<[u8]>,
        id: Option<u32>,
        has_more: HasMore,
    ) -> SharedResult {
        let result = self.read(payload, id);
        // A malformed result cannot say whether others follow it.
        if result.is_final() && !(has_more && result.fault().is_some()) {
            self.tasks.note_final(task);
        }
        result
    }

    /// Whether its only client is about to leave a task whose worker is not done. To be asked
    /// before, as the task may be forgotten then.
    pub(super) fn is_last_of_unfinished(&self, task: Uuid, is_speaking: bool) -> bool {
        self.tasks.is_last_client(task)
            && !self.tasks.is_stopped(task)
            && (is_speaking || !self.tasks.is_finished(task))
    }

    /// A client has joined `task`.
    pub(super) fn end_absence(&mut self, now: Moment, task: Uuid) {
        if self.absences.end(now, task) {
            self.absences.say_back(now, task);
        }
    }

    /// The last client of `task`, which was unfinished, has left.
    pub(super) fn begin_absence(&mut self, now: Moment, task: Uuid) {
        self.absences.begin(now, task);
    }

    /// Another gateway, or a worker, has published this about `task`.
    pub(super) fn hear_absence(&mut self, now: Moment, task: Uuid, action: ControlAction) {
        match action {
            ControlAction::Left if self.bus.is_waited_for(task) => {
                self.absences.say_back(now, task)
            }
            ControlAction::Left if !self.absences.has(task) => self.absences.remember(now, task),
            ControlAction::Back if !self.absences.is_leaving(task) => self.absences.forget(task),
            ControlAction::Left | ControlAction::Back | ControlAction::Stop => {}
        }
    }

    /// The next message for the workers of a task: its clients have left, or one is back. Redis has
    /// it already. While Redis is away, it waits. `is_speaking`: whether the worker of a task is
    /// still making audio.
    pub fn poll_absence(
        &mut self,
        now: Moment,
        is_speaking: impl Fn(Uuid) -> bool,
    ) -> Option<(Uuid, ControlAction)> {
        if !self.is_up() {
            return None;
        }
        // One that has been stopped meanwhile has heard STOP already.
        let back = std::iter::from_fn(|| self.absences.back.pop_front());
        let said = match { back }.find(|(_, task)| !self.tasks.is_stopped(*task)) {
            Some((_, task)) => (task, ControlAction::Back),
            None => loop {
                let task = self.absences.poll_leaving(now)?;
                if is_speaking(task) || !self.tasks.is_finished(task) {
                    self.absences.remember(now, task);
                    break (task, ControlAction::Left);
                }
            },
        };
        if let Some(link) = &mut self.link {
            link.publish_control(said.0, said.1);
        }
        Some(said)
    }

    /// When [`Results::poll_absence`] has something to say.
    pub(super) fn absence_deadline(&self) -> Option<Moment> {
        self.absences.deadline().filter(|_| self.is_up())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connect, deliveries, results, task, unanswered};
    use super::*;
    use crate::service::link::RedisRole;
    use crate::service::results::{StopOutcome, StoppedBy};
    use crate::service::tasks::{self, ClientState, TaskEnd, Tasks};

    const SECOND: Duration = Duration::from_secs(1);

    fn join(results: &mut Results<u32>, now: Moment, key: u32) {
        results.join(now, &task(), key, 0);
    }

    fn leave(results: &mut Results<u32>, now: Moment, key: u32, end: Option<TaskEnd>) {
        results.unsubscribe(task().uuid(), key);
        results.leave(now, task().uuid(), ClientState::Waiting, end, false);
    }

    fn publish(results: &mut Results<u32>, payload: &str) {
        results.publish(Moment::START, task().uuid(), payload.as_bytes());
    }

    /// Every message that workers get at `now`.
    fn said(results: &mut Results<u32>, now: Moment) -> Vec<ControlAction> {
        let said = std::iter::from_fn(|| results.poll_absence(now, |_| false));
        said.inspect(|(of, _)| assert_eq!(*of, task().uuid())).map(|(_, action)| action).collect()
    }

    fn hear(results: &mut Results<u32>, now: Moment, action: ControlAction) {
        results.hear_absence(now, task().uuid(), action);
    }

    #[test]
    fn workers_are_told_when_the_last_client_has_been_gone_for_a_second() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        join(&mut results, now, 2);
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + 9 * SECOND), [], "one is still there");
        let later = now + 9 * SECOND;
        leave(&mut results, later, 2, None);
        assert_eq!(results.deadline(), Some(later + SECOND));
        assert_eq!(said(&mut results, later + SECOND / 2), []);
        assert_eq!(said(&mut results, later + SECOND), [ControlAction::Left]);
        assert_eq!(said(&mut results, later + 60 * SECOND), []);
        join(&mut results, later + 60 * SECOND, 3);
        join(&mut results, later + 60 * SECOND, 4);
        assert!(results.deadline().is_some_and(|at| at <= later + 60 * SECOND));
        assert_eq!(said(&mut results, later + 60 * SECOND), [ControlAction::Back]);
    }

    #[test]
    fn client_that_is_back_within_a_second_was_never_away() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        leave(&mut results, now, 1, None);
        let later = now + SECOND / 2;
        join(&mut results, later, 2);
        assert_eq!(said(&mut results, now + SECOND), []);
        // The second of an earlier absence does not count for this one.
        leave(&mut results, later, 2, None);
        assert_eq!(said(&mut results, now + SECOND), []);
        assert_eq!(said(&mut results, later + SECOND), [ControlAction::Left]);
    }

    #[test]
    fn nothing_is_said_of_a_task_that_has_its_final_result() {
        for payload in [r#"{"text":"a"}"#, r#"{"error":"failed"}"#, "nonsense"] {
            let (mut results, now) = results(1 << 20);
            join(&mut results, now, 1);
            publish(&mut results, payload);
            deliveries(&mut results);
            leave(&mut results, now, 1, None);
            assert_eq!(said(&mut results, now + SECOND), [], "{payload} was delivered");
        }
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        leave(&mut results, now, 1, None);
        publish(&mut results, r#"{"text":"a","final":false}"#);
        publish(&mut results, r#"{"text":"b"}"#);
        assert_eq!(said(&mut results, now + SECOND), [], "it came while nobody was there");
    }

    #[test]
    fn task_is_unfinished_while_its_worker_speaks() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        publish(&mut results, r#"{"text":"a"}"#);
        deliveries(&mut results);
        results.unsubscribe(task().uuid(), 1);
        results.leave(now, task().uuid(), ClientState::Waiting, None, true);
        let left = results.poll_absence(now + SECOND, |_| true);
        assert_eq!(left, Some((task().uuid(), ControlAction::Left)));
        join(&mut results, now + SECOND, 2);
        assert_eq!(said(&mut results, now + SECOND), [ControlAction::Back]);
        // It ends within the second.
        results.unsubscribe(task().uuid(), 2);
        results.leave(now + SECOND, task().uuid(), ClientState::Waiting, None, true);
        assert_eq!(said(&mut results, now + 9 * SECOND), []);
    }

    #[test]
    fn malformed_result_does_not_finish_a_task_if_others_follow_it() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        publish(&mut results, "nonsense");
        publish(&mut results, r#"{"text":"a","final":false}"#);
        deliveries(&mut results);
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + SECOND), [ControlAction::Left]);
    }

    #[test]
    fn another_gateway_that_has_lost_its_clients_is_contradicted_at_once() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        hear(&mut results, now, ControlAction::Left);
        assert_eq!(said(&mut results, now), [ControlAction::Back]);
        hear(&mut results, now, ControlAction::Back);
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + SECOND), [ControlAction::Left]);
    }

    #[test]
    fn client_that_another_gateway_has_lost_is_back_wherever_it_comes() {
        let (mut results, now) = results(1 << 20);
        hear(&mut results, now, ControlAction::Left);
        assert_eq!(said(&mut results, now), []);
        join(&mut results, now, 1);
        assert_eq!(said(&mut results, now), [ControlAction::Back]);
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + SECOND), [ControlAction::Left]);
        hear(&mut results, now + SECOND, ControlAction::Back);
        join(&mut results, now + SECOND, 2);
        assert_eq!(said(&mut results, now + SECOND), [], "the other gateway has said it");
    }

    #[test]
    fn what_other_gateways_say_does_not_end_an_absence_of_its_own() {
        for heard in [ControlAction::Left, ControlAction::Back] {
            let (mut results, now) = results(1 << 20);
            join(&mut results, now, 1);
            leave(&mut results, now, 1, None);
            hear(&mut results, now, heard);
            assert_eq!(said(&mut results, now + SECOND), [ControlAction::Left], "after {heard:?}");
        }
    }

    #[test]
    fn nothing_is_said_while_redis_is_away() {
        let (mut results, now) = unanswered();
        join(&mut results, now, 1);
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + SECOND), []);
        connect(&mut results, now + 2 * SECOND);
        results.settle(now + 2 * SECOND);
        let due = results.absence_deadline();
        assert!(due.is_some_and(|at| at <= now + 2 * SECOND));
        assert_eq!(said(&mut results, now + 2 * SECOND), [ControlAction::Left]);
        let link = results.link().unwrap();
        let published = link.poll_output(RedisRole::Store, now + 2 * SECOND);
        assert!(String::from_utf8_lossy(published).contains(r#"{"action":"LEFT"}"#));
        join(&mut results, now + 3 * SECOND, 2);
        let link = results.link().unwrap();
        link.handle_closed(RedisRole::Store, "closed", now + 3 * SECOND);
        assert_eq!(said(&mut results, now + 3 * SECOND), [], "BACK waits, too");
    }

    #[test]
    fn nothing_follows_a_stop_and_a_task_that_was_left_can_be_stopped() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        results.stop(now, task().uuid(), StoppedBy::Http);
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + SECOND), []);
        join(&mut results, now + SECOND, 2);
        leave(&mut results, now + SECOND, 2, None);
        let outcome = results.request_stop(now + SECOND, task().uuid());
        assert_eq!(outcome, Some(StopOutcome::Stopped));
        assert_eq!(said(&mut results, now + 9 * SECOND), []);
        join(&mut results, now + 9 * SECOND, 3);
        assert_eq!(said(&mut results, now + 9 * SECOND), [], "no LEFT was published");
    }

    #[test]
    fn nothing_follows_a_stop_where_no_result_is_kept() {
        let tasks = Tasks::new(tasks::Settings { retain: None, ..Default::default() });
        let (mut results, now) = (Results::new(tasks, None), Moment::START);
        hear(&mut results, now, ControlAction::Left);
        join(&mut results, now, 1);
        results.stop(now, task().uuid(), StoppedBy::Client);
        results.trim(now);
        assert_eq!(said(&mut results, now), [], "no BACK");
        leave(&mut results, now, 1, None);
        assert_eq!(said(&mut results, now + SECOND), [], "no LEFT");
    }

    #[test]
    fn nobody_is_reported_as_gone_during_a_drain() {
        let (mut results, now) = results(1 << 20);
        join(&mut results, now, 1);
        leave(&mut results, now, 1, None);
        results.finish(now);
        join(&mut results, now, 2);
        hear(&mut results, now, ControlAction::Left);
        assert_eq!(
            said(&mut results, now + SECOND),
            [ControlAction::Back],
            "it still has a client"
        );
        leave(&mut results, now, 2, None);
        assert_eq!(said(&mut results, now + 9 * SECOND), []);
    }

    #[test]
    fn tasks_that_were_left_are_remembered_for_an_hour_and_bounded() {
        let (mut results, now) = results(1 << 20);
        hear(&mut results, now, ControlAction::Left);
        for number in 0..REMEMBERED_MAX as u128 {
            results.hear_absence(now, Uuid::from_u128(number + 10), ControlAction::Left);
        }
        assert_eq!(
            (results.absences.tasks.len(), results.absences.left.len()),
            (REMEMBERED_MAX, REMEMBERED_MAX)
        );
        join(&mut results, now, 1);
        assert_eq!(said(&mut results, now), [], "it was the oldest");
        let last = Uuid::from_u128(REMEMBERED_MAX as u128);
        results.join(now + REMEMBERED, &last.into(), 2, 0);
        assert_eq!(results.poll_absence(now + REMEMBERED, |_| false), None);
        results.hear_absence(now + REMEMBERED, Uuid::from_u128(5), ControlAction::Left);
        assert_eq!(results.absences.left.len(), 1);
    }
}
