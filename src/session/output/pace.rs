//! How much of what is sent may wait in a client's socket.
//!
//! What has been given to the kernel cannot be taken back. So that STOP drops what the client has
//! not heard, the socket keeps unsent at most what the client takes in [`UNSENT_TIME`] by the rate
//! at which it took bytes so far. A fast client gets a large buffer soon, because a small one costs
//! more wake-ups.

use crate::base::moment::Moment;
use crate::net::Conn;
use std::time::Duration;

/// How long unsent bytes may take to leave.
const UNSENT_TIME: Duration = Duration::from_millis(130);

/// The least that may wait unsent, also before any rate is known.
const UNSENT_BYTES_MIN: usize = 16 * 1024;

/// The most: what all sockets may hold.
const UNSENT_BYTES_MAX: usize = 512 * 1024;

/// The shortest time between two measurements. All that happens in a turn has one moment.
const ELAPSED_MIN: Duration = Duration::from_micros(50);

/// The rate at which a client takes bytes: what went out from one full socket to the next.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When the socket was last full, and how many bytes had been sent to it by then.
    full: Option<(Moment, u64)>,
}

/// Sets the first limit, before anything is sent.
pub(super) fn begin_to_limit(conn: &mut Conn) {
    if conn.unsent_limit().is_none() {
        conn.limit_unsent(UNSENT_BYTES_MIN);
    }
}

/// Takes a limit of about `bytes` into use, unless the one in effect is near it. `bytes_max`: while
/// memory is short.
pub(super) fn follow(bytes: usize, bytes_max: Option<usize>, conn: &mut Conn) {
    let most = bytes_max.unwrap_or(UNSENT_BYTES_MAX);
    let wanted = bytes.min(most).clamp(UNSENT_BYTES_MIN, UNSENT_BYTES_MAX);
    let limit = conn.unsent_limit().unwrap_or(1);
    // Raised as soon as it is twice as much, lowered only if it is less than half: a rate that
    // wavers costs no calls.
    if wanted >= 2 * limit || 2 * wanted < limit {
        conn.limit_unsent(wanted);
    }
}

impl Pace {
    /// The socket is full and has taken `sent` bytes in all. Returns how many may wait unsent by
    /// the rate since it was last full.
    pub(super) fn handle_full(&mut self, now: Moment, sent: u64) -> Option<usize> {
        let (at, before) = self.full.replace((now, sent))?;
        let elapsed = (now - at).max(ELAPSED_MIN).as_micros();
        let bytes = u128::from(sent - before) * UNSENT_TIME.as_micros() / elapsed;
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// There is nothing to send for now: a pause says nothing about the client.
    pub(super) fn pause(&mut self) {
        self.full = None;
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
            if let Some(bytes) = pace.handle_full(now, sent) {
                follow(bytes, bytes_max, &mut conn);
            }
            set.try_iter().collect::<Vec<usize>>()
        };
        assert_eq!(take(16 * 1024, MS, None), [16 * 1024], "set once; no rate is known yet");
        // 1 Mbit/s: 16 KiB in 130 ms.
        assert_eq!(take(12_500, 100 * MS, None), [0; 0]);
        // 4 Mbit/s, then a local client.
        assert_eq!(take(50_000, 100 * MS, None), [32 * 1024]);
        assert_eq!(take(32 * 1024, Duration::ZERO, None), [512 * 1024]);
        assert_eq!(take(1_000_000, 100 * MS, None), [0; 0], "it is near enough");
        assert_eq!(take(100_000, 100 * MS, None), [64 * 1024]);
        assert_eq!(take(1, 100 * MS, None), [16 * 1024]);
        assert_eq!(take(1 << 20, MS, Some(64 * 1024)), [64 * 1024], "while memory is short");
    }

    #[test]
    fn pause_is_no_slowness() {
        let mut pace = Pace::default();
        assert_eq!(pace.handle_full(Moment::START, 100), None);
        pace.pause();
        assert_eq!(pace.handle_full(Moment::START + 1000 * MS, 200), None);
        assert_eq!(pace.handle_full(Moment::START + 1130 * MS, 1200), Some(1000));
    }
}
