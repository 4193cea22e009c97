//! Those that watch the gateway by `GET /events`: a snapshot a second, made once for all of them.
//!
//! The snapshot needs something of every session, so it is made by a census, a slice a turn. Then
//! every watcher is driven as sessions are that have more to do: none of them is waited for, and
//! one that has not sent the last snapshot to its end goes on with that.

use super::Gateway;
use crate::base::moment::Moment;
use crate::service::report::{Moving, Snapshot};
use crate::service::report::{SnapshotParts, TaskCounts, event_snapshot};
use std::time::Duration;

impl Gateway {
    /// How late the loop was for a deadline.
    pub fn note_lag(&mut self, lag: Duration) {
        self.cx.stats.time().loop_lag.observe(lag);
        self.loop_lag = self.loop_lag.max(lag);
    }

    /// When [`Gateway::is_snapshot_due`] is next true.
    pub(super) fn snapshot_due_at(&self) -> Option<Moment> {
        self.cx.watch.due_at()
    }

    /// Whether the next census is for watchers too.
    pub(super) fn is_snapshot_due(&self) -> bool {
        self.snapshot_due_at().is_some_and(|at| at <= self.cx.now)
    }

    /// The snapshot as watchers get it.
    pub(super) fn describe(
        &self,
        snapshot: &Snapshot,
        tasks: TaskCounts,
        moving: &mut Moving,
    ) -> String {
        let parts = SnapshotParts {
            time: self.cx.wall.at(self.cx.now),
            now: self.cx.now,
            tasks,
            loop_lag: self.loop_lag,
            times: self.cx.stats.times(),
            ledger: &self.cx.ledger,
        };
        event_snapshot(snapshot, &parts, moving)
    }

    /// Gives it to those that watch.
    pub(super) fn publish_snapshot(&mut self, data: &str) {
        self.loop_lag = Duration::ZERO;
        self.cx.watch.publish(data, &self.cx.budget);
        self.wake_watchers();
    }

    /// No session is left but watchers: they leave too.
    pub(super) fn dismiss_watchers(&mut self) {
        if !self.cx.watch.is_over() {
            self.cx.watch.end();
            self.wake_watchers();
            self.wake_followers();
        }
    }

    fn wake_watchers(&mut self) {
        for id in self.cx.watch.watchers().to_vec() {
            if self.session(id).is_some() {
                self.go_on_later(id.key as usize);
            }
        }
    }
}
