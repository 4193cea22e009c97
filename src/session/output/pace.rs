//! How much of what is sent may wait in a client's socket.
//!
//! What has been given to the kernel cannot be taken back. So that STOP drops what the client has
//! not heard, the socket keeps unsent at most what the client took in the last [`UNSENT_TIME`], or
//! little more. A fast client gets a large buffer soon, because a small one costs more wake-ups.

use crate::base::moment::Moment;
use crate::net::Conn;
use std::time::Duration;

/// How long unsent bytes may take to leave.
const UNSENT_TIME: Duration = Duration::from_millis(130);

/// The least that may wait unsent, also before any rate is known.
const UNSENT_BYTES_MIN: usize = 16 * 1024;

/// The most: what all sockets may hold.
const UNSENT_BYTES_MAX: usize = 512 * 1024;

/// The rate at which a client takes bytes, measured from one full socket to a later one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When the measurement began, and how many bytes had been sent by then.
    began: Option<(Moment, u64)>,
}

/// Bytes that a client takes in [`UNSENT_TIME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It has taken them, and the time is not over. Never more than it took: a client that takes
    /// little in one moment, as after a pause, would otherwise pass for a fast one.
    AtLeast(usize),
    /// By a measurement that took this long or longer.
    About(usize),
}

/// Sets the first limit, before anything is sent.
pub(super) fn begin_to_limit(conn: &mut Conn) {
    if conn.unsent_limit().is_none() {
        conn.limit_unsent(UNSENT_BYTES_MIN);
    }
}

/// Takes another limit into use, unless the one in effect is near it. `bytes_max`: while memory is
/// short.
pub(super) fn follow(taken: Taken, bytes_max: Option<usize>, conn: &mut Conn) {
    let most = bytes_max.unwrap_or(UNSENT_BYTES_MAX);
    let limit = conn.unsent_limit().unwrap_or(1);
    let (bytes, may_lower) = match taken {
        Taken::AtLeast(bytes) => (bytes.max(limit), most < limit),
        Taken::About(bytes) => (bytes, true),
    };
    let wanted = bytes.min(most).clamp(UNSENT_BYTES_MIN, UNSENT_BYTES_MAX);
    // Raised as soon as it is twice as much, lowered only if it is less than half: a rate that
    // wavers costs no calls.
    if wanted >= 2 * limit || may_lower && 2 * wanted < limit {
        conn.limit_unsent(wanted);
    }
}

impl Pace {
    /// The socket is full and has taken `sent` bytes in all. Returns what is known of the rate.
    pub(super) fn handle_full(&mut self, now: Moment, sent: u64) -> Option<Taken> {
        let Some((at, before)) = self.began else {
            self.began = Some((now, sent));
            return None;
        };
        let (elapsed, bytes) = (now - at, sent - before);
        let bounded = |bytes: u128| usize::try_from(bytes).unwrap_or(usize::MAX);
        if elapsed < UNSENT_TIME {
            return Some(Taken::AtLeast(bounded(bytes.into())));
        }
        self.began = Some((now, sent));
        let bytes = u128::from(bytes) * UNSENT_TIME.as_micros() / elapsed.as_micros();
        Some(Taken::About(bounded(bytes)))
    }

    /// There is nothing to send for now: a pause says nothing about the client.
    pub(super) fn pause(&mut self) {
        self.began = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Socket, Transport};
    use std::io::{self, ErrorKind, Read, Write};
    use std::sync::mpsc;

    const MS: Duration = Duration::from_millis(1);

    /// A socket that reports the limits that it is given.
    struct LimitedSocket(mpsc::Sender<usize>);

    impl Read for LimitedSocket {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    impl Write for LimitedSocket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for LimitedSocket {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn limit_unsent(&mut self, bytes: usize) -> io::Result<()> {
            self.0.send(bytes).map_err(io::Error::other)
        }
    }

    #[test]
    fn limit_follows_the_rate_up_and_down_and_stays_within_its_bounds() {
        let (limits, set) = mpsc::channel();
        let mut conn = Conn::accepted(Socket::Other(Box::new(LimitedSocket(limits))));
        let (mut pace, mut now, mut sent) = (Pace::default(), Moment::START, 0);
        begin_to_limit(&mut conn);
        begin_to_limit(&mut conn);
        let mut take = |bytes: u64, time: Duration, bytes_max: Option<usize>| {
            (now, sent) = (now + time, sent + bytes);
            if let Some(taken) = pace.handle_full(now, sent) {
                follow(taken, bytes_max, &mut conn);
            }
            set.try_iter().collect::<Vec<usize>>()
        };
        assert_eq!(take(16 * 1024, MS, None), [16 * 1024], "set once; no rate is known yet");
        // 1 Mbit/s: 16 KiB in 130 ms.
        assert_eq!(take(16_250, 130 * MS, None), [0; 0]);
        // 4 Mbit/s.
        assert_eq!(take(65_000, 130 * MS, None), [32 * 1024]);
        // A local client: as soon as it has taken as much.
        assert_eq!(take(100_000, MS, None), [64 * 1024]);
        assert_eq!(take(100_000, MS, None), [128 * 1024]);
        assert_eq!(take(1_000_000, MS, None), [512 * 1024]);
        assert_eq!(take(1_000_000, 127 * MS, None), [0; 0], "it is near enough");
        assert_eq!(take(1, MS, None), [0; 0], "a moment is not enough to be slow");
        assert_eq!(take(100_000, 130 * MS, None), [64 * 1024]);
        assert_eq!(take(1, 130 * MS, None), [16 * 1024]);
        assert_eq!(take(1 << 20, MS, Some(64 * 1024)), [64 * 1024], "while memory is short");
        assert_eq!(take(0, MS, Some(16 * 1024)), [16 * 1024], "it is even shorter");
    }

    #[test]
    fn slow_client_that_takes_a_lot_in_one_moment_is_still_slow() {
        let (limits, set) = mpsc::channel();
        let mut conn = Conn::accepted(Socket::Other(Box::new(LimitedSocket(limits))));
        let mut pace = Pace::default();
        begin_to_limit(&mut conn);
        let (mut now, mut sent) = (Moment::START, 0);
        // 1 Mbit/s, in pieces: nothing for 100 ms, then 12 KB at once.
        for _ in 0..20 {
            for (time, bytes) in [(100 * MS, 0), (MS / 10, 8000), (MS / 10, 4500)] {
                (now, sent) = (now + time, sent + bytes);
                if let Some(taken) = pace.handle_full(now, sent) {
                    follow(taken, None, &mut conn);
                }
            }
        }
        assert_eq!(set.try_iter().collect::<Vec<_>>(), [16 * 1024]);
    }

    #[test]
    fn pause_is_no_slowness() {
        let mut pace = Pace::default();
        assert_eq!(pace.handle_full(Moment::START, 100), None);
        pace.pause();
        assert_eq!(pace.handle_full(Moment::START + 1000 * MS, 200), None);
        let taken = pace.handle_full(Moment::START + 1130 * MS, 1200);
        assert_eq!(taken, Some(Taken::About(1000)));
    }
}
