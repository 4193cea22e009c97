//! A peer that has bytes to take: how long it has taken none.
//!
//! What the gateway's own writes show is not enough. The kernel reports a full socket as writable
//! only once a good part of it is free, so a slow peer may take bytes for minutes without an event.
//! So the socket is asked from time to time how much the peer has not acknowledged.
//!
//! Bytes that the peer sends do not count: a peer that talks but never reads is as lost as a silent
//! one.

use crate::base::moment::Moment;
use crate::net::Conn;
use std::time::Duration;

/// The socket is asked this many times within a timeout.
const LOOKS: u32 = 16;

/// Bytes wait for a peer.
#[derive(Debug, Clone, Copy)]
pub struct Stall {
    /// When the peer last took a byte, or, at first, when it began to owe one.
    progress_at: Moment,
    looked_at: Moment,
    /// The peer was seen to acknowledge bytes.
    has_moved: bool,
    /// What the peer had not acknowledged when the socket was last asked.
    unacknowledged: Option<usize>,
}

impl Stall {
    /// From now on, bytes wait for the peer.
    pub fn new(now: Moment) -> Stall {
        Stall { progress_at: now, looked_at: now, has_moved: false, unacknowledged: None }
    }

    /// The peer's socket took a byte, or was given one.
    pub fn note_progress(&mut self, now: Moment) {
        *self = Stall::new(now);
    }

    /// Asks the socket, if it is time to. Returns whether the peer has taken no byte for `timeout`.
    pub fn check_timeout(&mut self, conn: &Conn, timeout: Option<Duration>, now: Moment) -> bool {
        let Some(timeout) = timeout else { return false };
        if self.looked_at + timeout / LOOKS <= now {
            self.look(conn, now);
        }
        self.progress_at + timeout <= now
    }

    /// When the peer last took a byte, if it was seen to.
    pub fn progress_at(&self) -> Option<Moment> {
        self.has_moved.then_some(self.progress_at)
    }

    /// When [`Stall::check_timeout`] has to be called again.
    pub fn deadline(&self, timeout: Option<Duration>) -> Option<Moment> {
        let timeout = timeout?;
        Some((self.looked_at + timeout / LOOKS).min(self.progress_at + timeout))
    }

    fn look(&mut self, conn: &Conn, now: Moment) {
        self.looked_at = now;
        let before = std::mem::replace(&mut self.unacknowledged, conn.unacknowledged());
        // The first look has nothing to compare with.
        if let (Some(before), Some(after)) = (before, self.unacknowledged)
            && after < before
        {
            (self.progress_at, self.has_moved) = (now, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Socket, Transport};
    use std::cell::Cell;
    use std::io::{self, ErrorKind, Read, Write};
    use std::rc::Rc;

    /// A full socket whose peer has not acknowledged a number of bytes.
    struct FullSocket(Rc<Cell<Option<usize>>>);

    impl Read for FullSocket {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    impl Write for FullSocket {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for FullSocket {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn unacknowledged(&self) -> Option<usize> {
            self.0.get()
        }
    }

    /// With a timeout of 16 s, so that the socket is asked every second.
    #[test]
    fn only_acknowledged_bytes_put_the_end_off() {
        type Unacknowledged = fn(u64) -> Option<usize>;
        let timeout = Some(Duration::from_secs(16));
        #[rustfmt::skip]
        let cases: [(&str, Unacknowledged, u64); 5] = [
            ("takes nothing", |_| Some(5000), 16),
            ("takes a byte a second for 10 s", |second| Some(5000 - second.min(10) as usize), 26),
            ("takes some in the 15th second", |second| Some(if second < 15 { 5000 } else { 1 }), 31),
            ("has taken everything after 3 s", |second| Some(3u64.saturating_sub(second) as usize), 19),
            ("a transport that does not know", |_| None, 16),
        ];
        for (name, unacknowledged, gone_at) in cases {
            let bytes = Rc::new(Cell::new(unacknowledged(0)));
            let conn = Conn::accepted(Socket::Other(Box::new(FullSocket(Rc::clone(&bytes)))));
            let mut stall = Stall::new(Moment::START);
            let mut at = Moment::START;
            while !stall.check_timeout(&conn, timeout, at) {
                at = stall.deadline(timeout).expect("there is a timeout");
                bytes.set(unacknowledged((at - Moment::START).as_secs()));
            }
            assert_eq!(at - Moment::START, Duration::from_secs(gone_at), "{name}");
        }
    }

    #[test]
    fn without_a_timeout_it_is_never_over() {
        let conn = Conn::accepted(Socket::Other(Box::new(FullSocket(Rc::default()))));
        let mut stall = Stall::new(Moment::START);
        assert!(!stall.check_timeout(&conn, None, Moment::START + Duration::from_secs(1_000_000)));
        assert_eq!(stall.deadline(None), None);
    }
}
