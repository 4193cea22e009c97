//! Stopping a task: what is dropped, and which clients and workers are notified.

use uuid::Uuid;

use super::{Notice, RecallOutcome, Results, StoppedBy};
use crate::base::moment::Moment;
use crate::proto::control::ControlAction;
use crate::service::tasks::{self, Status};

/// What became of a request to stop a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// It is stopped, or was over.
    Stopped,
    /// Neither this gateway nor Redis knows it.
    Unknown,
    /// This gateway does not know it, and Redis cannot be asked.
    RedisAway,
}

impl<K: Copy + Ord> Results<K> {
    /// Stops a task: drops what has not left for its clients and what is kept, and says so to its
    /// worker and to other gateways, unless they have said it. Does nothing to a task that is over.
    pub fn stop(&mut self, now: Moment, task: Uuid, by: StoppedBy) {
        let status = self.tasks.status(task).0;
        if status == Status::Stopped {
            return;
        }
        // An answer that is under way may have what is dropped now.
        self.recalls.answer(task, RecallOutcome::Complete);
        let spellings = self.bus.spellings(task).to_vec();
        if let Some(link) = &mut self.link {
            link.drop_task(task, &spellings);
        }
        if status == Status::Completed {
            self.tasks.drop_kept(task);
            return self.recharge();
        }
        let clients = self.bus.stop(task, by);
        let results = self.tasks.stop(now, task);
        self.tasks.note(now, task, tasks::TaskEvent::Stopped);
        self.holds.end(task);
        self.absences.forget(task);
        if by != StoppedBy::Channel
            && let Some(link) = &mut self.link
        {
            link.publish_control(task, ControlAction::Stop);
        }
        self.notices.push_back(Notice::Stopped { task, by, clients, results });
        self.recharge();
    }

    /// A request to stop a task that may be unknown. `None`: Redis is asked, and
    /// [`Notice::StopAnswered`] follows.
    pub fn request_stop(&mut self, now: Moment, task: Uuid) -> Option<StopOutcome> {
        // A page that is being closed may send the request after its WebSocket has gone.
        if self.tasks.is_known(task) || self.absences.has(task) {
            self.stop(now, task, StoppedBy::Http);
            return Some(StopOutcome::Stopped);
        }
        match &mut self.link {
            None => Some(StopOutcome::Unknown),
            Some(link) if !link.is_up() => Some(StopOutcome::RedisAway),
            Some(link) => {
                link.ask_known(task);
                None
            }
        }
    }

    /// Redis has answered whether it keeps something of a task that has to be stopped.
    pub(super) fn handle_known(&mut self, now: Moment, task: Uuid, is_known: bool) {
        let outcome = match is_known || self.tasks.is_known(task) {
            true => StopOutcome::Stopped,
            false => StopOutcome::Unknown,
        };
        if outcome == StopOutcome::Stopped {
            self.stop(now, task, StoppedBy::Http);
        } else if let Some(link) = &mut self.link {
            // A client of it may be connected to another gateway, which knows it then.
            link.publish_control(task, ControlAction::Stop);
        }
        self.notices.push_back(Notice::StopAnswered { task: Some(task), outcome });
    }
}
