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
//! assert!(!budget.refuses(300) && budget.refuses(600));
//! charge.set(1100);
//! assert_eq!(budget.take_shortage(), 100);
//! drop(charge);
//! assert_eq!(budget.held(), 0);
//! ```

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;

/// Work of this many bytes or more is large.
const LARGE_BYTES_MIN: usize = 16 * 1024;

/// Bytes that are held, and the limit. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Budget(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    held: Cell<usize>,
    /// `None`: no limit.
    limit: Cell<Option<usize>>,
    /// What was missing for work that was refused since the last [`Budget::take_shortage`].
    missing: Cell<usize>,
}

impl Budget {
    /// A budget of `limit` bytes; `None`: no limit.
    pub fn new(limit: Option<usize>) -> Budget {
        let budget = Budget::default();
        budget.set_limit(limit);
        budget
    }

    /// Changes the limit. What is held stays; see [`Budget::take_shortage`].
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

    /// Whether work that needs `bytes` must be refused: so little is left that less than a
    /// sixteenth of the limit would be, or an eighth for large work, which leaves room for all the
    /// small. Remembers it, so that the largest holder makes room; see [`Budget::take_shortage`].
    pub fn refuses(&self, bytes: usize) -> bool {
        let Some(limit) = self.limit() else { return false };
        let reserve = if bytes < LARGE_BYTES_MIN { limit / 16 } else { limit / 8 };
        let missing = self.held().saturating_add(bytes).saturating_sub(limit - reserve);
        // What could hardly ever fit must not cost everyone else their connections.
        if bytes <= limit / 2 {
            self.0.missing.set(self.0.missing.get().max(missing));
        }
        missing > 0
    }

    /// Whether bytes have to be freed: more than the limit are held, or work was refused.
    pub fn is_short(&self) -> bool {
        self.0.missing.get() > 0 || self.limit().is_some_and(|limit| self.held() > limit)
    }

    /// Bytes that have to be freed: those beyond the limit and, if work was refused since the last
    /// call, what is missing for it to be taken.
    pub fn take_shortage(&self) -> usize {
        let Some(limit) = self.limit() else { return 0 };
        self.0.missing.take().max(self.held().saturating_sub(limit))
    }

    /// Replaces one amount by another, for an owner that remembers its amount itself. It must give
    /// it back in the end.
    pub fn recount(&self, before: usize, after: usize) {
        self.0.held.set(self.held() - before + after);
    }

    /// Charges `bytes` until the returned value is dropped. Never fails: limits are enforced by the
    /// caller, before it takes on work ([`Budget::refuses`]) or between turns
    /// ([`Budget::take_shortage`]).
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Charge {
        let mut charge = Charge { budget: self.clone(), bytes: 0 };
        charge.set(bytes);
        charge
    }
}

/// A value that is charged for as long as it lives. Behind an `Rc` it is charged once, however many
/// share it.
#[derive(Debug)]
pub struct Charged<T> {
    value: T,
    charge: Charge,
}

impl<T> Charged<T> {
    /// Charges `bytes` for `value`.
    pub fn new(value: T, bytes: usize, budget: &Budget) -> Charged<T> {
        Charged { value, charge: budget.charge(bytes) }
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }
}

impl<T> Deref for Charged<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Equal values, whatever they are charged to.
impl<T: PartialEq> PartialEq for Charged<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Charged<T> {}

/// Bytes that one buffer holds. Dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Charge {
    /// The buffer now holds `bytes`.
    pub fn set(&mut self, bytes: usize) {
        self.budget.recount(self.bytes, bytes);
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
    fn a_shared_value_is_charged_once() {
        let budget = Budget::new(None);
        let value = Rc::new(Charged::new("value", 100, &budget));
        let others = vec![Rc::clone(&value); 10];
        assert_eq!((budget.held(), value.bytes(), &**value), (100, 100, &"value"));
        drop(value);
        assert_eq!(budget.held(), 100);
        drop(others);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_limit_is_reported_and_may_change() {
        const KIB: usize = 1024;
        let budget = Budget::new(Some(160 * KIB));
        let _charge = budget.charge(152 * KIB);
        assert_eq!((budget.is_short(), budget.take_shortage()), (false, 0));
        assert_eq!((budget.refuses(0), budget.is_short()), (true, true), "a sixteenth is 10 KiB");
        assert_eq!((budget.take_shortage(), budget.is_short()), (2 * KIB, false), "once");
        budget.set_limit(Some(1600 * KIB));
        assert_eq!((budget.refuses(1248 * KIB), budget.refuses(1249 * KIB)), (false, true));
        assert_eq!(
            budget.take_shortage(),
            0,
            "what takes most of the limit makes no room for itself"
        );
        budget.set_limit(Some(100 * KIB));
        assert_eq!((budget.is_short(), budget.refuses(KIB)), (true, true));
        assert_eq!(budget.take_shortage(), 152 * KIB + KIB - (100 * KIB - 100 * KIB / 16));
        budget.set_limit(None);
        assert_eq!((budget.refuses(usize::MAX), budget.take_shortage()), (false, 0));
    }

    #[test]
    fn large_work_is_refused_before_small() {
        let budget = Budget::new(Some(1 << 20));
        let _charge = budget.charge((1 << 20) - (1 << 20) / 8);
        assert!(budget.refuses(LARGE_BYTES_MIN) && !budget.refuses(LARGE_BYTES_MIN - 1));
        assert_eq!(budget.take_shortage(), LARGE_BYTES_MIN);
    }
}
