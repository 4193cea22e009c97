//! One task: its results, its clients, and how it ended.

use std::num::NonZeroU32;

use super::TaskEnd;
use super::known::KnownResults;
use super::timeline::TaskTimeline;

/// Results of one task that are recognised although their payloads are gone.
pub(super) const RECOGNISED_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Task {
    pub(super) results: KnownResults,
    /// Bytes of those that are retained, with their cost.
    pub(super) bytes: usize,
    /// The number that was given last.
    pub(super) last_number: u32,
    /// The `result_id` of the next result.
    pub(super) next_id: u32,
    /// A client has had the results with numbers below this.
    pub(super) seen: u32,
    /// Clients by their `ClientState`.
    pub(super) clients: [u32; 2],
    pub(super) end: Option<TaskEnd>,
    /// A client was given a result after which no other follows.
    pub(super) has_final: bool,
    /// It was stopped, and no client has connected since: results that come are dropped.
    pub(super) is_stopped: bool,
    /// A result that a new client would have been given is gone.
    pub(super) is_incomplete: bool,
    /// Its entries in the queue of what is remembered.
    pub(super) remembered: u32,
    /// The subscription during which Redis has answered what it keeps.
    pub(super) settled: Option<NonZeroU32>,
    pub(super) last_heard: Option<LastHeard>,
    pub(super) timeline: TaskTimeline,
}

/// What was heard last, and by which subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastHeard {
    pub(super) hash: u64,
    pub(super) subscription: u32,
    pub(super) nth: NonZeroU32,
}

impl Task {
    pub(super) fn has_clients(&self) -> bool {
        self.clients != [0; 2]
    }

    /// It is as if it had not ended, and nothing had been lost.
    pub(super) fn forget_end(&mut self) {
        (self.end, self.has_final) = (None, false);
        (self.is_incomplete, self.is_stopped) = (false, false);
    }

    /// Whether nothing of it is worth remembering.
    pub(super) fn is_idle(&self) -> bool {
        !self.has_clients() && self.remembered == 0 && self.results.present().next().is_none()
    }

    /// Whether a client waits that has not been given the result.
    pub(super) fn owes(&self, number: u32) -> bool {
        self.has_clients() && self.results.undispatched().any(|one| one.number == number)
    }

    /// Forgets the oldest results whose payloads are gone, but for [`RECOGNISED_MAX`]. A task that
    /// goes on for hours would otherwise grow forever.
    pub(super) fn bound_recognised(&mut self) {
        // Not each time, as it goes through all of them.
        if self.results.len() < 2 * RECOGNISED_MAX || !self.results.len().is_multiple_of(512) {
            return;
        }
        let gone = self.results.iter().filter(|one| one.payload.is_none()).count();
        let mut surplus = gone.saturating_sub(RECOGNISED_MAX);
        let mut list = self.results.take();
        list.retain(|one| {
            let goes = surplus > 0 && one.payload.is_none();
            surplus -= usize::from(goes);
            !goes
        });
        self.results.set(list);
    }
}
