//! A bounded byte queue that owns no memory while it is empty.
//!
//! It is needed while a peer is slow. Nearly all of the time it is empty, and then it is one null
//! pointer: its memory is freed with the last byte, not kept for the next stall. What it owns is
//! charged to a [`Budget`].

#![expect(clippy::indexing_slicing, reason = "the range is checked against the length before")]

use super::budget::{Budget, Charge};

/// Bytes that wait to be written, at most `LIMIT`.
#[derive(Debug, Default)]
pub struct Buf<const LIMIT: usize>(Option<Box<QueuedBytes>>);

/// What is queued; never empty.
#[derive(Debug)]
struct QueuedBytes {
    bytes: Vec<u8>,
    start: usize,
    charge: Charge,
}

/// The bytes did not fit. None of them was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl<const LIMIT: usize> Buf<LIMIT> {
    /// An empty queue.
    pub const fn new() -> Self {
        Buf(None)
    }

    /// Appends all of `bytes`, or none of them.
    ///
    /// # Errors
    /// They do not fit.
    pub fn push(&mut self, bytes: &[u8], budget: &Budget) -> Result<(), Full> {
        if bytes.len() > self.room() {
            return Err(Full);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let held = self.0.get_or_insert_with(|| {
            Box::new(QueuedBytes { bytes: Vec::new(), start: 0, charge: budget.charge(0) })
        });
        if held.start > 0 && held.bytes.len() + bytes.len() > held.bytes.capacity() {
            // Cheaper than a larger allocation, and it keeps the capacity near the limit.
            held.bytes.drain(..held.start);
            held.start = 0;
        }
        held.bytes.reserve_exact(bytes.len());
        held.bytes.extend_from_slice(bytes);
        held.charge.set(held.bytes.capacity());
        Ok(())
    }

    /// What is queued, oldest first.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |held| &held.bytes[held.start..])
    }

    /// Removes the oldest `n` bytes.
    ///
    /// # Panics
    /// When fewer than `n` are queued.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "consumed {n} of {} queued bytes", self.len());
        if n == self.len() {
            self.clear();
        } else if let Some(held) = &mut self.0 {
            held.start += n;
        }
    }

    /// Removes everything and frees the memory.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// The number of bytes queued.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether nothing is queued, and so no memory is owned.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes of memory that it owns.
    pub fn held_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.charge.bytes())
    }

    /// The number of bytes that still fit.
    pub fn room(&self) -> usize {
        LIMIT - self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let budget = Budget::default();
        let mut buf = Buf::<8>::new();
        buf.push(b"abc", &budget).unwrap();
        buf.push(b"de", &budget).unwrap();
        buf.consume(2);
        assert_eq!(buf.as_slice(), b"cde");
        buf.push(b"fghij", &budget).unwrap();
        assert_eq!(buf.as_slice(), b"cdefghij");
        assert_eq!(buf.room(), 0);
    }

    #[test]
    fn push_is_all_or_nothing() {
        let budget = Budget::default();
        let mut buf = Buf::<4>::new();
        buf.push(b"abc", &budget).unwrap();
        assert_eq!(buf.push(b"de", &budget), Err(Full));
        assert_eq!(buf.as_slice(), b"abc");
        buf.push(b"d", &budget).unwrap();
        buf.consume(4);
        buf.push(b"", &budget).unwrap();
        assert!(buf.is_empty(), "an empty push allocates nothing");
    }

    #[test]
    fn owns_no_memory_when_empty() {
        let budget = Budget::default();
        let mut buf = Buf::<1024>::new();
        buf.push(&[7; 1000], &budget).unwrap();
        assert!(budget.held() >= 1000 && budget.held() == buf.held_bytes());
        buf.consume(1000);
        assert_eq!((budget.held(), buf.held_bytes()), (0, 0));
        assert!(buf.is_empty());
        assert!(buf.0.is_none());
        assert!(size_of_val(&buf) <= size_of::<usize>());
    }

    #[test]
    fn never_allocates_past_its_limit() {
        let budget = Budget::default();
        let mut buf = Buf::<1000>::new();
        for round in 0..5000u32 {
            let n = (round * 37 % 400) as usize;
            if buf.push(&vec![round as u8; n], &budget).is_err() {
                buf.consume(buf.len() / 2 + 1);
            }
            assert!(buf.0.as_ref().is_none_or(|held| held.bytes.capacity() <= 1000));
            assert_eq!(budget.held(), buf.held_bytes());
        }
    }
}
