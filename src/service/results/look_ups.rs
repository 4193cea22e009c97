//! When tasks are looked up in Redis.
//!
//! A gateway that has just subscribed has not heard what was published a moment before. Another
//! gateway has, and Redis keeps the result once that one has stored it, which takes it some time.
//! A look-up in between would find nothing, and the client would wait for a result that it can
//! never get, or be given a later one and be closed. So tasks are looked up
//! [`STORING_TIME`] after the subscription to all tasks has begun, and nothing of them goes out
//! before. A subscription to a single task begins with each client, which is not made to wait: its
//! task is looked up at once, and a second time then. All are looked up once more
//! [`STORING_TIME_MAX`] after that, for gateways that are slower; by then nothing waits for it.

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::Results;
use crate::base::moment::Moment;
use crate::base::queue;

/// How long another gateway may take to store what it has heard.
pub(super) const STORING_TIME: Duration = Duration::from_millis(250);

/// How long it may take on a busy machine.
const STORING_TIME_MAX: Duration = Duration::from_secs(3);

/// The look-ups that are due.
#[derive(Default)]
pub(super) struct LookUps {
    /// After a reconnect: when tasks have to be looked up.
    begin_at: Option<Moment>,
    /// When settled ones have to be looked up as well.
    repeat_at: Option<Moment>,
    /// Then: the place in the bus from which on they are still to be looked up.
    from: Option<usize>,
    is_repeated: bool,
    /// Tasks that have to be looked up a second and last time, and when.
    again: VecDeque<(Moment, Uuid)>,
    last: VecDeque<(Moment, Uuid)>,
}

impl LookUps {
    /// The link is down.
    pub(super) fn cancel(&mut self) {
        *self = LookUps::default();
    }

    /// Whether tasks are looked up only later.
    pub(super) fn is_postponed(&self) -> bool {
        self.begin_at.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let first = |queue: &VecDeque<(Moment, Uuid)>| queue.front().map(|(at, _)| *at);
        Moment::earliest([self.begin_at, self.repeat_at, first(&self.again), first(&self.last)])
    }
}

impl<K: Copy + Ord> Results<K> {
    /// The link is up.
    pub(super) fn begin_look_ups(&mut self, now: Moment) {
        let subscribed_at = self.link.as_ref().and_then(|link| link.subscribed_at());
        let begin_at = subscribed_at.map_or(now, |at| at + STORING_TIME);
        self.look_ups.begin_at = Some(begin_at).filter(|at| *at > now);
        self.look_ups.from = self.look_ups.begin_at.is_none().then_some(0);
        self.look_ups.is_repeated = false;
        match self.look_ups.begin_at {
            Some(begin_at) => self.look_ups.repeat_at = Some(begin_at + STORING_TIME_MAX),
            None => self.look_up_all_recalled(),
        }
    }

    /// The subscription to one task has begun.
    pub(super) fn look_up_subscribed(&mut self, now: Moment, task: Uuid) {
        self.look_up(task);
        self.look_ups.again.push_back((now + STORING_TIME, task));
    }

    /// Whether tasks are looked up only later, and what is heard of them waits.
    pub fn has_postponed_look_ups(&self) -> bool {
        self.look_ups.is_postponed()
    }

    /// Does what is due.
    pub(super) fn settle_look_ups(&mut self, now: Moment) {
        if self.look_ups.begin_at.is_some_and(|at| at <= now) {
            self.look_ups.begin_at = None;
            self.look_ups.from = Some(0);
            self.look_up_all_recalled();
        }
        if self.look_ups.repeat_at.is_some_and(|at| at <= now) {
            self.look_ups.repeat_at = None;
            (self.look_ups.from, self.look_ups.is_repeated) = (Some(0), true);
        }
        while let Some(&(_, task)) = self.look_ups.again.front().filter(|(at, _)| *at <= now) {
            queue::take_first(&mut self.look_ups.again);
            self.look_ups.last.push_back((now + STORING_TIME_MAX, task));
            if self.bus.is_waited_for(task) {
                self.look_up(task);
            }
        }
        while let Some(&(_, task)) = self.look_ups.last.front().filter(|(at, _)| *at <= now) {
            queue::take_first(&mut self.look_ups.last);
            if self.bus.is_waited_for(task) {
                self.look_up(task);
            }
        }
    }

    /// Whether [`Results::go_on`] has more to do in the next turn.
    pub fn has_more_work(&self) -> bool {
        self.look_ups.from.is_some()
    }

    /// Looks up some of the tasks that are left after a reconnect. To be called once a turn.
    pub fn go_on(&mut self, look_ups_max: usize) {
        for _ in 0..look_ups_max {
            let Some(place) = self.look_ups.from else { return };
            let next = self.bus.waited_for_from(place);
            self.look_ups.from = next.map(|(place, _)| place + 1);
            if let Some((_, task)) = next
                && (self.look_ups.is_repeated || !self.is_settled(task))
            {
                self.look_up(task);
            }
        }
    }

    /// Asks Redis what it keeps of a task, unless that is done later for all tasks.
    pub(super) fn look_up(&mut self, task: Uuid) {
        if let Some(link) = &mut self.link
            && link.is_up()
            && link.subscription(task).is_some()
            && !self.look_ups.is_postponed()
        {
            link.look_up(task, self.bus.spellings(task));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connect, deliveries, task, unanswered};
    use super::*;
    use crate::service::link::RedisRole;

    /// A look-up begins with this command; the script that stores has its name in it, too.
    const LOOK_UP: &str = "$5\r\nHMGET\r\n";

    /// What the gateway says to Redis on the connection that stores.
    fn said(results: &mut Results<u32>, now: Moment) -> String {
        let link = results.link().unwrap();
        let said = String::from_utf8_lossy(link.poll_output(RedisRole::Store, now)).into_owned();
        link.handle_written(RedisRole::Store, said.len());
        said
    }

    fn turn(results: &mut Results<u32>, now: Moment) -> String {
        results.settle(now);
        results.go_on(10);
        said(results, now)
    }

    #[test]
    fn what_another_gateway_may_not_have_stored_yet_is_waited_for() {
        let (mut results, now) = unanswered();
        results.join(now, &task(), 1, 0);
        connect(&mut results, now);
        assert!(!turn(&mut results, now).contains(LOOK_UP));
        results.join(now, &task(), 2, 0);
        // It has heard this one, and not the one before.
        let channel = format!("task_response:{}", task().uuid());
        let heard = format!(
            "*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n${}\r\n{channel}\r\n$1\r\nb\r\n",
            channel.len()
        );
        results.link().unwrap().handle_bytes(RedisRole::Subscriber, heard.as_bytes(), now);
        let before = now + (STORING_TIME - Duration::from_millis(1));
        assert!(!turn(&mut results, before).contains(LOOK_UP));
        assert_eq!(deliveries(&mut results), [], "it waits for the look-up");
        // Redis takes the script that stores it.
        let loaded = format!("$40\r\n{}\r\n", "0".repeat(40));
        results.link().unwrap().handle_bytes(RedisRole::Store, loaded.as_bytes(), before);
        assert_eq!(results.deadline(), Some(now + STORING_TIME));
        assert_eq!(turn(&mut results, now + STORING_TIME).matches(LOOK_UP).count(), 1);
        assert_eq!(turn(&mut results, now + Duration::from_secs(2)).matches(LOOK_UP).count(), 0);
        let last = now + STORING_TIME + STORING_TIME_MAX;
        assert_eq!(turn(&mut results, last).matches(LOOK_UP).count(), 1, "once more");
        // Once the subscription is that old, nothing waits.
        let other = crate::proto::message::TaskId::from(Uuid::from_u128(2));
        results.join(last, &other, 3, 0);
        assert!(said(&mut results, last).contains(LOOK_UP));
    }

    #[test]
    fn a_store_connection_that_comes_back_alone_makes_nobody_wait() {
        let (mut results, now) = unanswered();
        connect(&mut results, now);
        turn(&mut results, now);
        let later = now + 4 * STORING_TIME;
        turn(&mut results, later);
        results.link().unwrap().handle_closed(RedisRole::Store, "closed", later);
        results.settle(later);
        connect(&mut results, later);
        results.join(later, &task(), 1, 0);
        assert!(turn(&mut results, later).contains(LOOK_UP));
    }
}
