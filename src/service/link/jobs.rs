//! What is to be said to the server that keeps results, in order.
//!
//! While that server is away, tens of thousands of results may wait here, and those of one task may
//! be dropped, or the oldest ones. Nothing here walks over all of them.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::pending::StoreRequest;
use crate::proto::control::ControlAction;
use crate::service::tasks::Subscription;

/// Something other than a result to be stored.
pub(super) enum StoreJob {
    LookUp {
        task: Uuid,
        subscription: Option<Subscription>,
        spellings: Vec<Box<str>>,
    },
    /// Continues the look-up of this number.
    Page(u64),
    Forget(Uuid),
    /// Removes these keys.
    Delete(Vec<String>),
    /// Publishes on the control channel of a task.
    Publish(Uuid, ControlAction),
    AskKnown(Uuid),
}

/// Which kind of job is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextJob {
    Store,
    Forget,
    Other,
}

/// All jobs. Places grow from the front of the queue to its back.
#[derive(Default)]
pub(super) struct JobQueue {
    stores: BTreeMap<i64, StoreRequest>,
    others: BTreeMap<i64, StoreJob>,
    /// The places of the results of each task.
    of_tasks: BTreeSet<(Uuid, i64)>,
    /// Bytes of payload.
    bytes: usize,
    /// The place of the next job at the front, and of the next one at the back.
    front: i64,
    back: i64,
}

impl JobQueue {
    pub(super) fn len(&self) -> usize {
        self.stores.len() + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stores.is_empty() && self.others.is_empty()
    }

    /// Bytes of payload.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, job: StoreJob) {
        let place = self.place_at_back();
        self.others.insert(place, job);
    }

    pub(super) fn push_front(&mut self, job: StoreJob) {
        let place = self.place_at_front();
        self.others.insert(place, job);
    }

    pub(super) fn push_store(&mut self, request: StoreRequest) {
        let place = self.place_at_back();
        self.insert_store(place, request);
    }

    pub(super) fn push_store_front(&mut self, request: StoreRequest) {
        let place = self.place_at_front();
        self.insert_store(place, request);
    }

    /// The kind of the first job.
    pub(super) fn next(&self) -> Option<NextJob> {
        let store = self.stores.first_key_value().map(|(place, _)| *place);
        let other = self.others.first_key_value().map(|(place, _)| *place);
        match (store, other) {
            (Some(store), other) if other.is_none_or(|other| store < other) => Some(NextJob::Store),
            _ => self.next_other(),
        }
    }

    /// The kind of the first job that stores nothing.
    pub(super) fn next_other(&self) -> Option<NextJob> {
        self.others.first_key_value().map(|(_, job)| match job {
            StoreJob::Forget(_) => NextJob::Forget,
            _ => NextJob::Other,
        })
    }

    /// Takes the first result, whatever is in front of it.
    pub(super) fn take_store(&mut self) -> Option<StoreRequest> {
        let (place, request) = self.stores.pop_first()?;
        self.of_tasks.remove(&(request.task, place));
        self.bytes -= request.payload.len();
        Some(request)
    }

    /// Takes the first job that stores nothing.
    pub(super) fn take_other(&mut self) -> Option<StoreJob> {
        self.others.pop_first().map(|(_, job)| job)
    }

    /// Drops all results. Returns how many there were.
    pub(super) fn drop_stores(&mut self) -> usize {
        self.of_tasks.clear();
        self.bytes = 0;
        std::mem::take(&mut self.stores).len()
    }

    /// Drops the results of a task. Returns how many there were.
    pub(super) fn drop_stores_of(&mut self, task: Uuid) -> usize {
        let mut dropped = 0;
        while let Some(&(of, place)) = self.of_tasks.range((task, i64::MIN)..).next()
            && of == task
        {
            self.of_tasks.remove(&(of, place));
            let request = self.stores.remove(&place);
            self.bytes -= request.map_or(0, |request| request.payload.len());
            dropped += 1;
        }
        dropped
    }

    /// Drops the jobs that store nothing and are not meant to stay.
    pub(super) fn retain_others(&mut self, stays: impl Fn(&StoreJob) -> bool) {
        self.others.retain(|_, job| stays(job));
    }

    fn insert_store(&mut self, place: i64, request: StoreRequest) {
        self.bytes += request.payload.len();
        self.of_tasks.insert((request.task, place));
        self.stores.insert(place, request);
    }

    fn place_at_back(&mut self) -> i64 {
        self.back += 1;
        self.back
    }

    fn place_at_front(&mut self) -> i64 {
        self.front -= 1;
        self.front
    }
}

#[cfg(test)]
mod tests {
    use super::super::pending::StoreWhat;
    use super::*;

    fn request(task: u128, payload: &str) -> StoreRequest {
        let (task, payload) = (Uuid::from_u128(task), payload.as_bytes().into());
        StoreRequest { task, since: 0, what: StoreWhat::AudioEnd, payload }
    }

    fn take(queue: &mut JobQueue) -> Option<String> {
        Some(match queue.next()? {
            NextJob::Store => String::from_utf8(queue.take_store()?.payload.to_vec()).ok()?,
            NextJob::Forget | NextJob::Other => match queue.take_other()? {
                StoreJob::Page(number) => number.to_string(),
                _ => "forget".to_owned(),
            },
        })
    }

    #[test]
    fn jobs_come_in_order_and_those_at_the_front_first() {
        let mut queue = JobQueue::default();
        queue.push_store(request(1, "a"));
        queue.push(StoreJob::Page(2));
        queue.push_store(request(1, "c"));
        queue.push(StoreJob::Forget(Uuid::nil()));
        queue.push_store_front(request(2, "d"));
        queue.push_front(StoreJob::Page(5));
        assert_eq!((queue.len(), queue.bytes()), (6, 3));
        assert_eq!(queue.next_other(), Some(NextJob::Other));
        let all: Vec<String> = std::iter::from_fn(|| take(&mut queue)).collect();
        assert_eq!(all, ["5", "d", "a", "2", "c", "forget"]);
        assert!(queue.is_empty() && queue.bytes() == 0 && queue.of_tasks.is_empty());
    }

    #[test]
    fn results_of_one_task_are_dropped_and_no_others() {
        let mut queue = JobQueue::default();
        for task in [1, 2, 3, 2, 1, 2] {
            queue.push_store(request(task, &format!("{task}")));
        }
        queue.push(StoreJob::Page(7));
        assert_eq!(queue.drop_stores_of(Uuid::from_u128(2)), 3);
        assert_eq!(queue.drop_stores_of(Uuid::from_u128(9)), 0);
        assert_eq!((queue.len(), queue.bytes()), (4, 3));
        assert_eq!(queue.take_store().map(|one| one.payload), Some(b"1".as_slice().into()));
        assert_eq!(queue.drop_stores(), 2);
        queue.retain_others(|job| !matches!(job, StoreJob::Page(_)));
        assert!(queue.is_empty() && queue.bytes() == 0 && queue.of_tasks.is_empty());
    }
}
