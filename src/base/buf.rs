//! A bounded byte queue that owns no memory while it is empty.
//!
//! It exists for the moments when a peer is slow. Nearly all of the time it is empty, and then it is one null pointer: the
//! allocation is given back with the last byte, not kept for the next stall.

/// Bytes that wait to be written, at most `LIMIT` of them.
#[derive(Debug, Default)]
pub struct Buf<const LIMIT: usize>(Option<Box<Held>>);

/// What is queued, which is something.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    start: usize,
}

/// The bytes did not fit; none of them was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl<const LIMIT: usize> Buf<LIMIT> {
    pub const fn new() -> Self {
        Buf(None)
    }

    /// Appends all of `bytes`, or none of them.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.room() {
            return Err(Full);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let held = self.0.get_or_insert_default();
        if held.start > 0 && held.bytes.len() + bytes.len() > held.bytes.capacity() {
            // Moving what is left to the front is cheaper than a larger allocation, and keeps capacity near the limit.
            held.bytes.drain(..held.start);
            held.start = 0;
        }
        held.bytes.reserve_exact(bytes.len());
        held.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// What is queued, oldest first.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |held| &held.bytes[held.start..])
    }

    /// Forgets the oldest `n` bytes.
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

    /// Forgets everything and frees the memory.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Nothing is queued (and no memory is held).
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        LIMIT - self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_pushed_in_order() {
        let mut buf = Buf::<8>::new();
        buf.push(b"abc").unwrap();
        buf.push(b"de").unwrap();
        buf.consume(2);
        assert_eq!(buf.as_slice(), b"cde");
        buf.push(b"fghij").unwrap();
        assert_eq!(buf.as_slice(), b"cdefghij");
        assert_eq!(buf.room(), 0);
    }

    #[test]
    fn push_is_all_or_nothing() {
        let mut buf = Buf::<4>::new();
        buf.push(b"abc").unwrap();
        assert_eq!(buf.push(b"de"), Err(Full));
        assert_eq!(buf.as_slice(), b"abc");
        buf.push(b"d").unwrap();
        buf.consume(4);
        buf.push(b"").unwrap();
        assert!(buf.is_empty(), "nothing holds no memory");
    }

    #[test]
    fn owns_no_memory_when_empty() {
        let mut buf = Buf::<1024>::new();
        buf.push(&[7; 1000]).unwrap();
        buf.consume(1000);
        assert!(buf.is_empty());
        assert!(buf.0.is_none());
        assert_eq!(size_of_val(&buf), size_of::<usize>());
    }

    #[test]
    fn never_allocates_past_its_limit() {
        let mut buf = Buf::<1000>::new();
        for round in 0..5000u32 {
            let n = (round * 37 % 400) as usize;
            if buf.push(&vec![round as u8; n]).is_err() {
                buf.consume(buf.len() / 2 + 1);
            }
            assert!(buf.0.as_ref().is_none_or(|held| held.bytes.capacity() <= 1000));
        }
    }
}
