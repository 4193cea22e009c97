//! Which results go, and when: by age, or the oldest first where there is no room.

use std::collections::VecDeque;

use log::debug;
use uuid::Uuid;

use super::known::KnownResults;
use super::result::GoneResult;
use super::{Retained, Tasks};
use crate::base::moment::Moment;

/// Results that are removed in a row because they are too old.
const TRIMMED_MAX: usize = 1024;

/// Why a retained result goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Expired,
    Evicted,
}

impl Removal {
    /// The word in the log.
    fn word(self) -> &'static str {
        match self {
            Removal::Expired => "expired",
            Removal::Evicted => "evicted",
        }
    }
}

impl Tasks {
    /// The audio of a result grows: it is kept until [`Tasks::release`], and `retain` longer. Until
    /// then it is not in the queue of those that may go.
    pub fn hold(&mut self, task: Uuid, result_id: u32) {
        let known = self.tasks.entry_mut(task);
        let Some(one) = known.and_then(|known| known.results.by_id_mut(result_id)) else { return };
        if let Some(ticket) = one.ticket.take() {
            self.retained.remove(ticket);
            one.is_held = true;
            self.held.insert((task, result_id), one.number);
        }
    }

    /// The audio of a result grows no longer.
    pub fn release(&mut self, now: Moment, task: Uuid, result_id: u32) {
        // Redis may have given it another id meanwhile.
        let Some(number) = self.held.remove(&(task, result_id)) else { return };
        let Some(slot) = self.tasks.find(task) else { return };
        if let Some(one) = self.tasks[slot].results.numbered(number).filter(|one| one.is_held) {
            one.is_held = false;
            one.ticket = Some(self.retained.push(Retained { at: now, task: slot, number }));
        }
    }

    /// Whether a result is here.
    pub fn is_kept(&self, task: Uuid, result_id: u32) -> bool {
        let known = self.tasks.entry(task).and_then(|known| known.results.by_id(result_id));
        known.is_some_and(|one| one.payload.is_some())
    }

    /// Removes what is too old or too much, at most `TRIMMED_MAX` of what is too old; the
    /// deadline is due at once if there is more. Cheap when nothing is. A result of a task that
    /// `is_due` stays: clients are about to be given it.
    pub fn trim(&mut self, now: Moment, is_due: impl Fn(Uuid) -> bool) {
        for trimmed in 0.. {
            let Some((ticket, &one)) = self.retained.first() else { break };
            let taken = self.retained_bytes + self.remembered_bytes();
            let is_over = taken > self.settings.max_retained;
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
            self.retained.remove(ticket);
            self.remove(now, one, removal);
        }
        self.trim_remembered(now);
        if self.tasks.is_empty() && self.remembered.capacity() > 1024 {
            self.remembered = VecDeque::new();
        }
    }

    fn trim_remembered(&mut self, now: Moment) {
        let retain = self.settings.retain.unwrap_or_default();
        let remembered_max = self.settings.remembered_max();
        for trimmed in 0.. {
            let is_over = self.remembered.len() > remembered_max;
            let Some(&(at, slot)) = self.remembered.front() else { break };
            if !is_over && (now < at + retain || trimmed == TRIMMED_MAX) {
                break;
            }
            self.remembered.pop_front();
            let known = &mut self.tasks[slot];
            known.remembered -= 1;
            if known.remembered == 0 {
                // With the clients that a stop has closed, it is remembered until they have left.
                let is_stopped = known.is_stopped && known.has_clients();
                known.forget_end();
                known.is_stopped = is_stopped;
                self.forget_if_idle(slot);
            }
        }
    }

    /// Lets the oldest results go until the rest takes at most `bytes`, or a result of a task that
    /// `is_due` is the oldest.
    pub fn evict_to(&mut self, now: Moment, bytes: usize, is_due: impl Fn(Uuid) -> bool) {
        while self.retained_bytes > bytes
            && let Some((ticket, &one)) = self.retained.first()
            && !is_due(self.tasks.id(one.task))
        {
            self.retained.remove(ticket);
            self.remove(now, one, Removal::Evicted);
        }
    }

    /// When [`Tasks::trim`] has something to do at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let retain = self.settings.retain?;
        let result = self.retained.first().map(|(_, one)| one.at);
        let remembered = self.remembered.front().map(|(at, _)| *at);
        Some(result.into_iter().chain(remembered).min()? + retain)
    }

    /// A result goes that is not in the queue any more.
    pub(super) fn remove(
        &mut self,
        now: Moment,
        Retained { task, number, .. }: Retained,
        removal: Removal,
    ) {
        let id = self.tasks.id(task);
        let known = &mut self.tasks[task];
        let one = known.results.numbered(number).expect("a retained result is known");
        let one = GoneResult::take(one).expect("a retained result has its bytes");
        known.results.skip_gone();
        let result = one.id;
        debug!(target: "output", "result forgotten result={result} why={} task={id}", removal.word());
        let cost = one.cost() + self.forget_speech(id, &one);
        let known = &mut self.tasks[task];
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
