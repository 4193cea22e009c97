//! Which worker speaks for which task, and the messages that wait for it.
//!
//! STOP, LEFT and BACK go to the connection that last sent something for the task.

use std::collections::{BTreeMap, HashMap, VecDeque};

use uuid::Uuid;

use crate::proto::control::Action;
use crate::proto::message::TaskId;

/// Tasks that are remembered for one connection. The one that it spoke for first is forgotten
/// first.
const TASKS_MAX: usize = 4096;

/// The workers. `K` identifies a connection: no two have the same, ever.
#[derive(Debug)]
pub struct Feeds<K> {
    by_task: HashMap<Uuid, Feed<K>>,
    by_worker: BTreeMap<K, VecDeque<Uuid>>,
    letters: VecDeque<Letter<K>>,
}

#[derive(Debug)]
struct Feed<K> {
    worker: K,
    /// As the worker wrote it.
    task: TaskId,
}

/// What is to be said to a worker, which may have left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter<K> {
    /// Its connection.
    pub worker: K,
    /// The task, as the worker wrote it.
    pub task: TaskId,
    /// The news.
    pub news: News,
}

/// What a worker learns about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// What has become of its clients.
    Control(Action),
    /// Something that it sent earlier could not be used.
    Error(&'static str),
}

impl<K> Default for Feeds<K> {
    fn default() -> Self {
        Feeds { by_task: HashMap::new(), by_worker: BTreeMap::new(), letters: VecDeque::new() }
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
        let tasks = self.by_worker.entry(worker).or_default();
        tasks.push_back(uuid);
        if tasks.len() > TASKS_MAX
            && let Some(oldest) = tasks.pop_front()
        {
            self.by_task.remove(&oldest);
        }
    }

    /// Nothing more is to be said about a task, until a worker sends something for it.
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

    /// Has the worker of a task told, if there is one.
    pub fn tell(&mut self, task: Uuid, news: News) {
        if let Some(feed) = self.by_task.get(&task) {
            let (worker, task) = (feed.worker, feed.task.clone());
            self.letters.push_back(Letter { worker, task, news });
        }
    }

    /// The next thing to be said.
    pub fn poll_letter(&mut self) -> Option<Letter<K>> {
        self.letters.pop_front()
    }

    /// Whether something is to be said.
    pub fn has_letters(&self) -> bool {
        !self.letters.is_empty()
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

    fn told(feeds: &mut Feeds<u8>) -> Vec<(u8, u128)> {
        std::iter::from_fn(|| feeds.poll_letter())
            .map(|letter| (letter.worker, letter.task.uuid().as_u128()))
            .collect()
    }

    #[test]
    fn the_connection_that_spoke_last_for_a_task_is_told() {
        let mut feeds = Feeds::default();
        let stop = News::Control(Action::Stop);
        feeds.tell(task(1).uuid(), stop);
        feeds.note(1, &task(1));
        feeds.note(1, &task(2));
        feeds.note(2, &task(1));
        feeds.note(2, &task(1));
        (1..=3).for_each(|number| feeds.tell(task(number).uuid(), stop));
        assert!(feeds.has_letters());
        assert_eq!(told(&mut feeds), [(2, 1), (1, 2)]);
        assert_eq!(feeds.tasks_of(1).collect::<Vec<_>>(), [task(2).uuid()]);
        feeds.leave(2);
        feeds.forget(task(2).uuid());
        (1..=2).for_each(|number| feeds.tell(task(number).uuid(), stop));
        assert_eq!(told(&mut feeds), []);
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
