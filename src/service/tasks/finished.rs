//! Whether a task has its final result, and whether anybody waits for more.

use std::rc::Rc;

use uuid::Uuid;

use super::Tasks;
use super::result::{KnownResult, ResultContent};
use crate::proto::message::TaskResult;

/// Results that nobody was given yet and that are searched for a final one, the newest first.
const FINAL_SOUGHT_MAX: usize = 16;

impl Tasks {
    /// A client of the task was given a result after which no other follows.
    pub fn note_final(&mut self, task: Uuid) {
        if let Some(known) = self.tasks.entry_mut(task) {
            known.has_final = true;
        }
    }

    /// Whether a final result is known, whether or not a client was given it. A task of which
    /// nothing is known is not finished.
    pub fn is_finished(&self, task: Uuid) -> bool {
        let Some(known) = self.tasks.entry(task) else { return false };
        let is_final = |payload: &Rc<[u8]>| {
            let result = TaskResult::read(payload);
            result.is_final() && !result.is_growing()
        };
        // The final result is the last one, or nearly.
        let newest = || known.results.undispatched().rev().take(FINAL_SOUGHT_MAX);
        // Speech is noted when it turns out to be the last.
        let published = |one: &KnownResult| match one.content() {
            Some(ResultContent::Published(payload)) => Some(payload),
            Some(ResultContent::Speech) | None => None,
        };
        known.has_final || newest().filter_map(published).any(|payload| is_final(&payload))
    }

    /// Whether the task has one client, which waits or is being sent something.
    pub fn is_last_client(&self, task: Uuid) -> bool {
        self.tasks.entry(task).is_some_and(|task| task.clients.iter().sum::<u32>() == 1)
    }
}
