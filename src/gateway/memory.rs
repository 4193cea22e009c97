//! Holds the memory budget: counts socket buffers, and ends the largest holders when it is
//! exceeded.
//!
//! Buffers in this process are charged where they grow. What the kernel holds for a socket is not
//! known without asking, so sockets are asked in turn, a few at a time, in turns that happen
//! anyway. New work is refused while little is left (`Budget::refuses`). At the end of a turn in
//! which that happened, or when the limit is exceeded all the same, the largest holders make room.
//!
//! All that a turn without news costs here is two comparisons.

use log::warn;

use super::Gateway;
use crate::base::moment::Moment;
use crate::session::{Session, SessionId};
use std::time::Duration;

/// Sockets are counted at most this often.
const COUNT_INTERVAL: Duration = Duration::from_millis(10);

/// Slots of sessions looked at each time; fewer while most of the budget is free.
const SLOTS_PER_COUNT: usize = 64;
const SLOTS_PER_COUNT_AT_EASE: usize = 16;

/// The largest holders are looked for among all sessions at most this often, unless all that were
/// found are gone.
const SEARCH_INTERVAL: Duration = Duration::from_millis(50);

/// Holders that are remembered from one search, the largest ones.
const HOLDERS_MAX: usize = 256;

/// What one socket buffer may take, whatever the budget.
const BUFFER_BYTES_MIN: usize = 16 * 1024;
const BUFFER_BYTES_MAX: usize = 512 * 1024;

/// Socket buffers that may be full at the same time within a quarter of the budget.
const FULL_BUFFERS: usize = 256;

/// Sessions that hold less than this are not ended for it.
const HOLDER_BYTES_MIN: usize = 16 * 1024;

/// Sessions ended in one turn.
const ENDED_PER_TURN: usize = 64;

/// When the budget is looked after next, and where the count of socket buffers is.
#[derive(Debug)]
pub(super) struct BudgetWatch {
    next_slot: usize,
    count_at: Moment,
    /// The last search found too little to free: the next one is not before this.
    shed_at: Moment,
    searched_at: Moment,
    /// The largest sessions when they were last looked for, the largest one last.
    holders: Vec<SessionId>,
}

impl BudgetWatch {
    pub(super) fn new(now: Moment) -> BudgetWatch {
        BudgetWatch {
            next_slot: 0,
            count_at: now,
            shed_at: now,
            searched_at: now,
            holders: Vec::new(),
        }
    }
}

impl Gateway {
    /// Memory held by sessions, results and responses, socket buffers included, and the limit;
    /// bytes.
    pub fn memory(&self) -> (usize, Option<usize>) {
        (self.cx.budget.held(), self.cx.budget.limit())
    }

    /// The part of that memory which connections take that have ended, in `/connections/closed`.
    pub fn ledger_bytes(&self) -> usize {
        self.cx.ledger.bytes()
    }

    /// Bytes that wait for slow peers, over all sessions.
    pub fn backlog_bytes(&self) -> usize {
        self.sessions.iter().map(|(_, session)| session.held_bytes()).sum()
    }

    /// The end of a turn: counts some socket buffers, and ends the largest holders over the limit.
    #[inline]
    pub(super) fn keep_budget(&mut self) {
        if self.cx.now >= self.budget_watch.count_at {
            self.count_memory();
        }
        if self.cx.budget.is_short() && self.cx.now >= self.budget_watch.shed_at {
            self.shed();
        }
    }

    fn count_memory(&mut self) {
        self.budget_watch.count_at = self.cx.now + COUNT_INTERVAL;
        let Some(limit) = self.cx.budget.limit() else { return };
        self.cx.results.count_memory();
        let bytes_max = buffer_bytes_max(self.cx.budget.held(), limit);
        self.cx.socket_buffers = (bytes_max < BUFFER_BYTES_MAX).then_some(bytes_max);
        let is_at_ease = self.cx.budget.held() < limit / 4;
        let count = if is_at_ease { SLOTS_PER_COUNT_AT_EASE } else { SLOTS_PER_COUNT };
        let slots = self.sessions.capacity();
        let last = slots.min(self.budget_watch.next_slot + count);
        for key in self.budget_watch.next_slot..last {
            if let Some(session) = self.sessions.get_mut(key) {
                session.count_sockets(bytes_max, &self.cx);
            }
        }
        self.budget_watch.next_slot = if last < slots { last } else { 0 };
    }

    /// Frees bytes where most are held: ends sessions, or evicts kept results.
    fn shed(&mut self) {
        let now = self.cx.now;
        let enough = self.cx.budget.held().saturating_sub(self.cx.budget.take_shortage());
        if self.budget_watch.holders.is_empty()
            || self.budget_watch.searched_at + SEARCH_INTERVAL <= now
        {
            self.search_holders();
        }
        for _ in 0..ENDED_PER_TURN {
            let kept = self.cx.results.tasks().retained_bytes();
            let excess = self.cx.budget.held().saturating_sub(enough);
            if excess == 0 {
                return;
            }
            let holder = self.budget_watch.holders.pop();
            let memory = holder.and_then(|id| self.session(id)).map_or(0, Session::memory);
            if holder.is_some() && memory < HOLDER_BYTES_MIN {
                continue; // it holds less than when it was found
            }
            if memory < kept {
                // Results that clients are about to be given stay.
                self.cx.results.evict_to(now, kept.saturating_sub(excess));
                if self.cx.budget.held() <= enough {
                    self.budget_watch.holders.extend(holder);
                    return;
                }
            }
            let Some(id) = holder else {
                self.budget_watch.shed_at = now + SEARCH_INTERVAL;
                return;
            };
            self.shed_session(id, memory);
        }
    }

    /// Looks through all sessions for the largest ones.
    fn search_holders(&mut self) {
        let mut found: Vec<(usize, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_closed())
            .map(|(_, session)| (session.memory(), session.who().id()))
            .filter(|(memory, _)| *memory >= HOLDER_BYTES_MIN)
            .collect();
        found.sort_unstable();
        let others = found.len().saturating_sub(HOLDERS_MAX);
        self.budget_watch.holders = found.split_off(others).into_iter().map(|(_, id)| id).collect();
        self.budget_watch.searched_at = self.cx.now;
    }

    fn shed_session(&mut self, id: SessionId, memory: usize) {
        let key = id.key as usize;
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (held, limit) = (self.cx.budget.held(), self.cx.budget.limit().unwrap_or_default());
        warn!(
            target: "gateway",
            "{} is closed: out of memory budget memory={memory}B held={held}B limit={limit}B",
            session.who(),
        );
        self.cx.stats.sessions_shed += 1;
        session.shed(&mut self.cx);
        match session.is_closed() {
            true => self.note_closed(key),
            false => self.drive(key),
        }
    }
}

/// What one socket buffer may take: less, the smaller the budget and the more of it is held.
fn buffer_bytes_max(held: usize, limit: usize) -> usize {
    let left = limit.saturating_sub(held);
    (left / (4 * FULL_BUFFERS)).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_buffers_shrink_with_the_budget_and_with_what_is_left_of_it() {
        const KIB: usize = 1 << 10;
        const MIB: usize = 1 << 20;
        for (held, limit, bytes_max) in [
            (0, 1 << 40, 512 * KIB),
            (0, 512 * MIB, 512 * KIB),
            (0, 256 * MIB, 256 * KIB),
            (192 * MIB, 256 * MIB, 64 * KIB),
            (0, 64 * MIB, 64 * KIB),
            (32 * MIB, 64 * MIB, 32 * KIB),
            (48 * MIB, 64 * MIB, 16 * KIB),
            (64 * MIB, 64 * MIB, 16 * KIB),
            (65 * MIB, 64 * MIB, 16 * KIB),
            (0, 0, 16 * KIB),
        ] {
            assert_eq!(buffer_bytes_max(held, limit), bytes_max, "{held} of {limit}");
        }
        // While it is above the least, all that may be full fit into a quarter of what is left.
        for left in (16 * MIB..512 * MIB).step_by(MIB / 2 + 1) {
            assert!(buffer_bytes_max(MIB, MIB + left) * FULL_BUFFERS <= left / 4, "{left}");
        }
    }
}
