//! Tasks whose results wait for an answer of Redis.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use crate::base::moment::Moment;
use crate::base::queue;

/// How long the results of a task are held in all: as long as a silent connection takes to be
/// noticed, and `HOLD_MAX`.
pub(super) const TASK_HOLD_MAX: Duration = Duration::from_secs(6);

/// Tasks whose results are held until Redis has answered a look-up.
#[derive(Default)]
pub(super) struct Holds {
    /// Whether the hold of a task has expired. It stays here until Redis has answered.
    tasks: HashMap<Uuid, HoldState>,
    /// Ends of holds, the first in front. Some are of tasks that are held no longer.
    ends: VecDeque<(Moment, Uuid)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HoldState {
    Until(Moment),
    Expired,
}

impl Holds {
    /// The results of `task` cannot go out yet.
    pub(super) fn begin(&mut self, now: Moment, task: Uuid) {
        self.tasks.entry(task).or_insert_with(|| {
            let end = now + TASK_HOLD_MAX;
            self.ends.push_back((end, task));
            HoldState::Until(end)
        });
    }

    /// Redis has answered, or no client is left.
    pub(super) fn end(&mut self, task: Uuid) {
        self.tasks.remove(&task);
        if self.tasks.is_empty() {
            *self = Holds::default();
        }
    }

    pub(super) fn has_expired(&self, task: Uuid) -> bool {
        self.tasks.get(&task) == Some(&HoldState::Expired)
    }

    /// The next task whose hold has expired.
    pub(super) fn poll_expired(&mut self, now: Moment) -> Option<Uuid> {
        while let Some(&(end, task)) = self.ends.front().filter(|(end, _)| *end <= now) {
            queue::take_first(&mut self.ends);
            if let Some(state) = self.tasks.get_mut(&task)
                && *state == HoldState::Until(end)
            {
                *state = HoldState::Expired;
                return Some(task);
            }
        }
        None
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        self.ends.front().map(|(end, _)| *end)
    }

    /// The tasks whose results are held, in the order in which that began. Some may come twice.
    pub(super) fn tasks(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.ends.iter().map(|(_, task)| *task).filter(|task| self.tasks.contains_key(task))
    }
}
