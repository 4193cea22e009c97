//! Memory that buffers hold, counted against one limit.
//!
//! Whatever grows with what peers do is charged here: a buffer owns a [`Charge`] of its size, set
//! where the buffer is created or grown, and given back when the buffer is dropped. So a phase that
//! ends, however it ends, cannot leave a count behind. A buffer that does not exist has no charge,
//! so that a relayed message that is not held up never comes here.
//!
//! A [`Budget`] is a shared counter: clones count together. It is the one exception to "what is
//! shared is lent": a charge has to find its budget when it is dropped, in the middle of anything.
//! Shared data, such as a result that many clients wait for, is charged once, by the value that is
//! shared.
//!
//! ```
//! use aivtuber_gateway::base::budget::Budget;
//!
//! let budget = Budget::new(Some(1000));
//! let mut charge = budget.charge(600);
//! assert!(budget.has_room(400) && !budget.has_room(401));
//! charge.set(1100);
//! assert_eq!(budget.excess(), 100);
//! drop(charge);
//! assert_eq!(budget.held(), 0);
//! ```

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that are held, and the limit. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Budget(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    held: Cell<usize>,
    /// `None`: no limit.
    limit: Cell<Option<usize>>,
}

impl Budget {
    /// A budget of `limit` bytes; `None`: no limit.
    pub fn new(limit: Option<usize>) -> Budget {
        let budget = Budget::default();
        budget.set_limit(limit);
        budget
    }

    /// Changes the limit. What is held stays; see [`Budget::excess`].
    pub fn set_limit(&self, limit: Option<usize>) {
        self.0.limit.set(limit);
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<usize> {
        self.0.limit.get()
    }

    /// Bytes charged at the moment.
    pub fn held(&self) -> usize {
        self.0.held.get()
    }

    /// Whether `bytes` more would stay within the limit.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.limit().is_none_or(|limit| self.held().saturating_add(bytes) <= limit)
    }

    /// Bytes charged beyond the limit.
    pub fn excess(&self) -> usize {
        self.limit().map_or(0, |limit| self.held().saturating_sub(limit))
    }

    /// Charges `bytes` until the returned value is dropped. Never fails: limits are enforced by the
    /// caller, before it takes on work ([`Budget::has_room`]) or between turns
    /// ([`Budget::excess`]).
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Charge {
        let mut charge = Charge { budget: self.clone(), bytes: 0 };
        charge.set(bytes);
        charge
    }
}

/// Bytes that one buffer holds. Dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Charge {
    /// The buffer now holds `bytes`.
    pub fn set(&mut self, bytes: usize) {
        let held = &self.budget.0.held;
        held.set(held.get() - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_follow_their_buffers_and_are_given_back() {
        let budget = Budget::new(None);
        let mut first = budget.charge(10);
        let second = budget.clone().charge(5);
        assert_eq!(budget.held(), 15);
        first.set(3);
        assert_eq!((budget.held(), first.bytes()), (8, 3));
        drop(first);
        drop(second);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_limit_is_reported_and_may_change() {
        let budget = Budget::new(Some(100));
        let _charge = budget.charge(90);
        assert_eq!((budget.has_room(10), budget.has_room(11), budget.excess()), (true, false, 0));
        budget.set_limit(Some(50));
        assert_eq!((budget.has_room(0), budget.excess()), (false, 40));
        budget.set_limit(None);
        assert_eq!((budget.has_room(usize::MAX), budget.excess()), (true, 0));
    }
}
