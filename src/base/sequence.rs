//! A queue whose items can be removed anywhere.
//!
//! Each item has a [`Ticket`], by which it is found. Nothing here walks over the items, so no call
//! costs more because there are many of them.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

/// Items in the order in which they were pushed.
///
/// ```
/// use aivtuber_gateway::base::sequence::Sequence;
///
/// let mut queue = Sequence::new();
/// let [_, b, c] = ["a", "b", "c"].map(|item| queue.push(item));
/// assert_eq!(queue.remove(b), Some("b"));
/// assert_eq!(queue.first().map(|(_, item)| *item), Some("a"));
/// assert_eq!((queue.remove(b), queue.remove(c), queue.len()), (None, Some("c"), 1));
/// ```
#[derive(Debug)]
pub struct Sequence<T> {
    items: BTreeMap<Ticket, T>,
    last: u64,
    /// Items that were looked at, for tests of how much work that is.
    #[cfg(test)]
    looked_at: std::cell::Cell<usize>,
}

/// Finds an item. No two items of a sequence ever have the same ticket, and later ones have greater
/// ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(NonZeroU64);

impl<T> Sequence<T> {
    /// Without items.
    pub fn new() -> Sequence<T> {
        Sequence {
            items: BTreeMap::new(),
            last: 0,
            #[cfg(test)]
            looked_at: Default::default(),
        }
    }

    /// The number of items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds the last item.
    pub fn push(&mut self, item: T) -> Ticket {
        self.last += 1;
        let ticket = Ticket(NonZeroU64::MIN.saturating_add(self.last - 1));
        self.items.insert(ticket, item);
        ticket
    }

    /// The first item.
    pub fn first(&self) -> Option<(Ticket, &T)> {
        self.note_look();
        self.items.first_key_value().map(|(ticket, item)| (*ticket, item))
    }

    /// Removes an item, if it is there.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        self.note_look();
        self.items.remove(&ticket)
    }

    /// An item, if it is there.
    pub fn item(&self, ticket: Ticket) -> Option<&T> {
        self.note_look();
        self.items.get(&ticket)
    }

    fn note_look(&self) {
        #[cfg(test)]
        self.looked_at.set(self.looked_at.get() + 1);
    }

    /// Items that were looked at so far.
    #[cfg(test)]
    pub fn looked_at(&self) -> usize {
        self.looked_at.get()
    }
}

impl<T> Default for Sequence<T> {
    fn default() -> Self {
        Sequence::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_keep_their_order_whichever_are_removed() {
        let mut chance = fastrand::Rng::with_seed(7);
        let (mut sequence, mut expected) = (Sequence::new(), Vec::new());
        for number in 0..2000 {
            expected.push((sequence.push(number), number));
            if chance.u8(..3) > 0 {
                let (ticket, item) = expected.remove(chance.usize(..expected.len()));
                assert_eq!(sequence.item(ticket), Some(&item));
                assert_eq!((sequence.remove(ticket), sequence.remove(ticket)), (Some(item), None));
            }
            assert_eq!(sequence.len(), expected.len());
            assert_eq!(sequence.is_empty(), expected.is_empty());
        }
        for (ticket, item) in expected {
            assert_eq!(sequence.first(), Some((ticket, &item)));
            sequence.remove(ticket);
        }
        assert!(sequence.is_empty());
    }
}
