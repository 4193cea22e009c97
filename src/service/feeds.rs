//! Which worker speaks for which task, and the messages that wait for it.
//!
//! STOP, LEFT and BACK go to the connection that last sent something for the task.

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use crate::proto::control::ControlAction;
use crate::proto::message::TaskId;

/// Tasks that are remembered for one connection. The one that it spoke for first is forgotten
/// first.
const TASKS_MAX: usize = 4096;

/// The workers. `K` identifies a connection: no two have the same, ever.
#[derive(Debug)]
pub struct Feeds<K> {
    by_task: HashMap<Uuid, Feed<K>>,
    by_worker: BTreeMap<K, VecDeque<Uuid>>,
    notices: VecDeque<PendingNotice<K>>,
}

#[derive(Debug)]
struct Feed<K> {
    worker: K,
    /// As the worker wrote it.
    task: TaskId,
}

/// A notice for a worker, which may have left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingNotice<K> {
    /// Its connection.
    pub worker: K,
    /// The task, as the worker wrote it.
    pub task: TaskId,
    /// What it says.
    pub notice: WorkerNotice,
}

/// What a worker is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerNotice {
    /// What has become of its clients.
    Control(ControlAction),
    /// Something that it sent earlier could not be used.
    Error(&'static str),
}

impl<K> Default for Feeds<K> {
    fn default() -> Self {
        Feeds { by_task: HashMap::new(), by_worker: BTreeMap::new(), notices: VecDeque::new() }
    }
}

impl<K: Copy + Ord> Feeds<K> {
    /// A worker has sent something for a task.
    pub fn note(&mut self, worker: K, task: &TaskId) {
        let uuid = task.uuid();
        match self.by_task.get_mut(&uuid) {
            Some(feed) if feed.worker == worker => return,
            Some(feed) => {
                let before = std::mem::replace(&mut feed.worker, worker);
                feed.task = task.clone();
                self.forget_of(before, uuid);
            }
            None => drop(self.by_task.insert(uuid, Feed { worker, task: task.clone() })),
        }
        let tasks = self.by_worker.entry(worker).or_insert_with(|| VecDeque::with_capacity(1));
        tasks.push_back(uuid);
        if tasks.len() > TASKS_MAX
            && let Some(oldest) = tasks.pop_front()
        {
            self.by_task.remove(&oldest);
        }
    }

    /// No worker gets notices about a task until one sends something for it.
    pub fn forget(&mut self, task: Uuid) {
        if let Some(feed) = self.by_task.remove(&task) {
            self.forget_of(feed.worker, task);
        }
    }

    /// A connection has ended.
    pub fn leave(&mut self, worker: K) {
        for task in self.by_worker.remove(&worker).unwrap_or_default() {
            self.by_task.remove(&task);
        }
    }

    /// The tasks that a worker speaks for.
    pub fn tasks_of(&self, worker: K) -> impl Iterator<Item = Uuid> + '_ {
        self.by_worker.get(&worker).into_iter().flatten().copied()
    }

    /// Queues a notice for the worker of a task, if it has one.
    pub fn notify(&mut self, task: Uuid, notice: WorkerNotice) {
        if let Some(feed) = self.by_task.get(&task) {
            let (worker, task) = (feed.worker, feed.task.clone());
            self.notices.push_back(PendingNotice { worker, task, notice });
        }
    }

    /// The next notice.
    pub fn poll_notice(&mut self) -> Option<PendingNotice<K>> {
        self.notices.pop_front()
    }

    /// Whether notices wait.
    pub fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    fn forget_of(&mut self, worker: K, task: Uuid) {
        if let Some(tasks) = self.by_worker.get_mut(&worker) {
            tasks.retain(|known| *known != task);
            if tasks.is_empty() {
                self.by_worker.remove(&worker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u128) -> TaskId {
        TaskId::from(Uuid::from_u128(number))
    }

    fn notified(feeds: &mut Feeds<u8>) -> Vec<(u8, u128)> {
        std::iter::from_fn(|| feeds.poll_notice())
            .map(|pending| (pending.worker, pending.task.uuid().as_u128()))
            .collect()
    }

    #[test]
    fn the_connection_that_spoke_last_for_a_task_is_notified() {
        let mut feeds = Feeds::default();
        let stop = WorkerNotice::Control(ControlAction::Stop);
        feeds.notify(task(1).uuid(), stop);
        feeds.note(1, &task(1));
        feeds.note(1, &task(2));
        feeds.note(2, &task(1));
        feeds.note(2, &task(1));
        (1..=3).for_each(|number| feeds.notify(task(number).uuid(), stop));
        assert!(feeds.has_notices());
        assert_eq!(notified(&mut feeds), [(2, 1), (1, 2)]);
        assert_eq!(feeds.tasks_of(1).collect::<Vec<_>>(), [task(2).uuid()]);
        feeds.leave(2);
        feeds.forget(task(2).uuid());
        (1..=2).for_each(|number| feeds.notify(task(number).uuid(), stop));
        assert_eq!(notified(&mut feeds), []);
        assert!(feeds.by_task.is_empty() && feeds.by_worker.is_empty());
    }

    #[test]
    fn a_connection_is_remembered_for_a_bounded_number_of_tasks() {
        let mut feeds = Feeds::default();
        for number in 0..=TASKS_MAX as u128 {
            feeds.note(1, &task(number));
        }
        assert_eq!((feeds.by_task.len(), feeds.by_worker[&1].len()), (TASKS_MAX, TASKS_MAX));
        assert_eq!(feeds.tasks_of(1).next(), Some(task(1).uuid()));
    }
}
