//! Queues that are long only for moments: after a reconnect, when thousands of clients come at
//! once.

use std::collections::VecDeque;

/// Capacity, in items, that an empty queue keeps.
const KEPT_ITEMS: usize = 64;

/// Takes the first item. The queue frees its memory with the last one, unless that is little.
///
/// A `VecDeque` never shrinks by itself: what one burst took would stay for good.
#[inline]
pub fn take_first<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front()?;
    if queue.is_empty() && queue.capacity() > KEPT_ITEMS {
        *queue = VecDeque::new();
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_order_and_memory_goes_with_the_last_one() {
        let mut queue: VecDeque<_> = (0..1000).collect();
        let taken: Vec<_> = std::iter::from_fn(|| take_first(&mut queue)).collect();
        assert_eq!(taken, (0..1000).collect::<Vec<_>>());
        assert_eq!(queue.capacity(), 0);
    }

    #[test]
    fn a_short_queue_keeps_its_memory() {
        let mut queue = VecDeque::with_capacity(8);
        let capacity = queue.capacity();
        queue.push_back(1);
        assert_eq!((take_first(&mut queue), take_first(&mut queue)), (Some(1), None));
        assert_eq!(queue.capacity(), capacity);
    }
}
