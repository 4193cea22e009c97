//! When what happened to a task: see [`crate::service::tasks`].

use uuid::Uuid;

use super::Results;
use crate::base::moment::Moment;
use crate::service::tasks::{Milestones, TaskEnd, TaskEvent};

impl<K: Copy + Ord> Results<K> {
    /// Something of the task was given to a client. Returns what that has completed.
    pub fn note_sent(&mut self, now: Moment, task: Uuid, event: TaskEvent) -> Milestones {
        self.tasks.note(now, task, event)
    }

    /// A client has left, for which the task ended like this.
    pub(super) fn note_end(&mut self, now: Moment, task: Uuid, end: Option<TaskEnd>) {
        match end {
            Some(TaskEnd::Completed | TaskEnd::Failed) => {
                self.tasks.note(now, task, TaskEvent::Completed);
            }
            Some(TaskEnd::TimedOut) => {
                self.tasks.note(now, task, TaskEvent::Timeout);
            }
            None => {}
        }
    }
}
