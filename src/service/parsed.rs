//! Long results that clients still hold in memory, so that one that connects later shares them.

use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use crate::base::budget::{Budget, Charged};
use crate::proto::message::{SharedResult, TaskResult};

/// A payload of fewer bytes is parsed again for each client that connects.
const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Results that are remembered.
const RESULTS_MAX: usize = 64;

/// The latest long results, the newest in front.
#[derive(Debug, Default)]
pub struct ParsedResults(VecDeque<ParsedResult>);

#[derive(Debug)]
struct ParsedResult {
    payload: Weak<[u8]>,
    result: Weak<Charged<TaskResult>>,
}

impl ParsedResults {
    /// The result in `payload` with its `result_id`, shared with those that already have it.
    /// Progress messages have no number.
    pub fn share(&mut self, payload: &Rc<[u8]>, id: Option<u32>, budget: &Budget) -> SharedResult {
        let read = || TaskResult::read(payload).numbered(id).shared(budget);
        if payload.len() < SHARED_BYTES_MIN {
            return read();
        }
        self.forget_unused();
        let address = Rc::as_ptr(payload);
        let same = self.0.iter().find(|one| std::ptr::addr_eq(one.payload.as_ptr(), address));
        let same = same.and_then(|one| one.result.upgrade());
        // Redis may have given it another number meanwhile.
        if let Some(result) = same.filter(|result| result.id() == id) {
            return result;
        }
        let result = read();
        let (payload, weak) = (Rc::downgrade(payload), Rc::downgrade(&result));
        self.0.truncate(RESULTS_MAX - 1);
        self.0.push_front(ParsedResult { payload, result: weak });
        result
    }

    /// Forgets results that no client holds any more. To be called once a turn: a weak reference to
    /// a payload keeps all its memory.
    #[inline]
    pub fn forget_unused(&mut self) {
        if !self.0.is_empty() {
            self.0.retain(|one| one.payload.strong_count() > 0 && one.result.strong_count() > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(text_bytes: usize) -> Rc<[u8]> {
        format!(r#"{{"text":"{}"}}"#, "x".repeat(text_bytes)).into_bytes().into()
    }

    #[test]
    fn a_long_result_is_shared_while_a_client_holds_it() {
        let (mut parsed, budget) = (ParsedResults::default(), Budget::default());
        let (long, equal) = (payload(100_000), payload(100_000));
        let first = parsed.share(&long, Some(1), &budget);
        assert!(Rc::ptr_eq(&first, &parsed.share(&long, Some(1), &budget)));
        assert!(
            !Rc::ptr_eq(&first, &parsed.share(&equal, Some(1), &budget)),
            "another publication"
        );
        assert_eq!(parsed.share(&long, Some(2), &budget).id(), Some(2));
        drop(first);
        assert_eq!(budget.held(), 0);
        let result = parsed.share(&long, Some(1), &budget);
        assert_eq!(parsed.0.len(), 1, "nothing piles up");
        drop(long);
        parsed.forget_unused();
        assert!(parsed.0.is_empty(), "the payload is gone, though the result is still being sent");
        drop(result);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_short_result_is_parsed_again() {
        let (mut parsed, budget) = (ParsedResults::default(), Budget::default());
        let short = payload(100);
        assert!(!Rc::ptr_eq(
            &parsed.share(&short, Some(1), &budget),
            &parsed.share(&short, Some(1), &budget)
        ));
        assert!(parsed.0.is_empty());
    }
}
