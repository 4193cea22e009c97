//! Which results go, and when: by age, or the oldest first where there is no room.

use std::collections::VecDeque;

use uuid::Uuid;

use super::known::KnownResults;
use super::{REMEMBERED_MAX, RESULT_COST, Retained, Tasks};
use crate::base::moment::Moment;

/// Results that are removed in a row because they are too old.
const TRIMMED_MAX: usize = 1024;

/// Why a retained result goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    Expired,
    Evicted,
}

impl Tasks {
    /// Removes what is too old or too much, at most `TRIMMED_MAX` of what is too old; the
    /// deadline is due at once if there is more. Cheap when nothing is. A result of a task that
    /// `is_due` stays: clients are about to be given it.
    pub fn trim(&mut self, now: Moment, is_due: impl Fn(Uuid) -> bool) {
        for trimmed in 0.. {
            let Some(&one) = self.retained.front() else { break };
            let is_over = self.retained_bytes > self.settings.max_retained;
            let is_old = match self.settings.retain {
                Some(retain) => now >= one.at + retain,
                // Only what a client is about to get is retained.
                None => !self.tasks[one.task].owes(one.number),
            };
            let removal = match (is_old, is_over) {
                (true, true) => Removal::Expired,
                (true, false) if trimmed < TRIMMED_MAX => Removal::Expired,
                (false, true) => Removal::Evicted,
                (true | false, false) => break,
            };
            if is_due(self.tasks.id(one.task)) {
                break;
            }
            self.retained.pop_front();
            self.remove(now, one, removal);
        }
        let retain = self.settings.retain.unwrap_or_default();
        for trimmed in 0.. {
            let is_over = self.remembered.len() > REMEMBERED_MAX;
            let Some(&(at, slot)) = self.remembered.front() else { break };
            if !is_over && (now < at + retain || trimmed == TRIMMED_MAX) {
                break;
            }
            self.remembered.pop_front();
            let known = &mut self.tasks[slot];
            known.remembered -= 1;
            if known.remembered == 0 {
                (known.end, known.is_incomplete, known.is_stopped) = (None, false, false);
                self.forget_if_idle(slot);
            }
        }
        if self.tasks.is_empty() && self.retained.capacity().max(self.remembered.capacity()) > 1024
        {
            self.retained = VecDeque::new();
            self.remembered = VecDeque::new();
        }
    }

    /// Lets the oldest results go until the rest takes at most `bytes`, or a result of a task that
    /// `is_due` is the oldest.
    pub fn evict_to(&mut self, now: Moment, bytes: usize, is_due: impl Fn(Uuid) -> bool) {
        while self.retained_bytes > bytes
            && let Some(&one) = self.retained.front()
            && !is_due(self.tasks.id(one.task))
        {
            self.retained.pop_front();
            self.remove(now, one, Removal::Evicted);
        }
    }

    /// When [`Tasks::trim`] has something to do at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let retain = self.settings.retain?;
        let result = self.retained.front().map(|one| one.at);
        let remembered = self.remembered.front().map(|(at, _)| *at);
        Some(result.into_iter().chain(remembered).min()? + retain)
    }

    fn remove(&mut self, now: Moment, Retained { task, number, .. }: Retained, removal: Removal) {
        let known = &mut self.tasks[task];
        let one = known.results.oldest(number).expect("a retained result is known");
        let payload = one.payload.take().expect("a retained result has its bytes");
        let cost = RESULT_COST + payload.len();
        known.bytes -= cost;
        self.retained_bytes -= cost;
        let is_last = known.results.present().next().is_none() && !known.has_clients();
        if is_last {
            known.results = KnownResults::default();
        }
        if removal == Removal::Evicted {
            self.evicted += 1;
            if is_last {
                self.forgotten.push_back(self.tasks.id(task));
            }
            self.note_loss(now, task);
        }
        self.forget_if_idle(task);
    }
}
