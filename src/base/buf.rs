//! A bounded byte queue that owns no memory while it is empty.
//!
//! It exists for the moments when a peer is slow. Nearly all of the time it is empty, and then it costs its 32 bytes and
//! nothing else: the allocation is given back with the last byte, not kept for the next stall.

/// Bytes that wait to be written, at most `limit` of them.
#[derive(Debug)]
pub struct Buf {
    bytes: Vec<u8>,
    start: u32,
    limit: u32,
}

/// The bytes did not fit; none of them was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Buf {
    /// An empty queue for at most `limit` bytes.
    pub const fn with_limit(limit: u32) -> Buf {
        Buf { bytes: Vec::new(), start: 0, limit }
    }

    /// Appends all of `bytes`, or none of them.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.room() {
            return Err(Full);
        }
        if self.start > 0 && self.bytes.len() + bytes.len() > self.bytes.capacity() {
            // Moving what is left to the front is cheaper than a larger allocation, and keeps capacity near the limit.
            self.bytes.drain(..self.start as usize);
            self.start = 0;
        }
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// What is queued, oldest first.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start as usize..]
    }

    /// Forgets the oldest `n` bytes.
    ///
    /// # Panics
    /// When fewer than `n` are queued.
    pub fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "consumed {n} of {} queued bytes", self.len());
        self.start += n as u32;
        if self.start as usize == self.bytes.len() {
            self.clear();
        }
    }

    /// Forgets everything and frees the memory.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
        self.start = 0;
    }

    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start as usize
    }

    /// Nothing is queued (and no memory is held).
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.limit as usize - self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_pushed_in_order() {
        let mut buf = Buf::with_limit(8);
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
        let mut buf = Buf::with_limit(4);
        buf.push(b"abc").unwrap();
        assert_eq!(buf.push(b"de"), Err(Full));
        assert_eq!(buf.as_slice(), b"abc");
        buf.push(b"d").unwrap();
    }

    #[test]
    fn owns_no_memory_when_empty() {
        let mut buf = Buf::with_limit(1024);
        buf.push(&[7; 1000]).unwrap();
        buf.consume(1000);
        assert!(buf.is_empty());
        assert_eq!(buf.bytes.capacity(), 0);
        assert_eq!(size_of::<Buf>(), 32);
    }

    #[test]
    fn never_allocates_past_its_limit() {
        let mut buf = Buf::with_limit(1000);
        for round in 0..5000u32 {
            let n = (round * 37 % 400) as usize;
            if buf.push(&vec![round as u8; n]).is_err() {
                buf.consume(buf.len() / 2 + 1);
            }
            assert!(buf.bytes.capacity() <= 1000);
        }
    }
}
