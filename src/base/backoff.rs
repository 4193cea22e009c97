//! Exponential backoff: the wait after a failure doubles up to a limit and starts over after a
//! success.
//!
//! Nothing here waits. The caller adds the returned duration to the moment it was given.
//!
//! Jitter is optional. A thousand gateways that lost the same Redis must not reconnect in step, so
//! that wait is jittered. How long a failed backend rests concerns one gateway only and stays
//! exact.
//!
//! ```
//! use aivtuber_gateway::base::backoff::Backoff;
//! use std::time::Duration;
//!
//! let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
//! assert_eq!(backoff.next_wait(), Duration::from_secs(1));
//! assert_eq!(backoff.next_wait(), Duration::from_secs(2));
//! backoff.reset();
//! assert_eq!(backoff.next_wait(), Duration::from_secs(1));
//! ```

use std::time::Duration;

/// Waits that double from a first one to a longest one.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// The first wait is `first`; none is longer than `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The wait after the failure that just happened. The next one will be twice as long.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next.min(self.most);
        self.next = wait.saturating_mul(2).min(self.most);
        wait
    }

    /// The same, reduced at random by up to a half, so that many that failed together do not retry
    /// together. Never longer than [`Backoff::next_wait`] would be.
    pub fn next_wait_jittered(&mut self, chance: &mut fastrand::Rng) -> Duration {
        let wait = self.next_wait();
        wait.mul_f64(0.5 + chance.f64() / 2.0)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn doubles_to_its_limit_and_starts_over() {
        let mut backoff = Backoff::new(MS(1000), MS(30_000));
        let waits: Vec<_> = (0..7).map(|_| backoff.next_wait().as_millis()).collect();
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.next_wait(), MS(1000));
    }

    #[test]
    fn a_first_wait_beyond_the_limit_is_cut() {
        assert_eq!(Backoff::new(MS(10), MS(5)).next_wait(), MS(5));
    }

    #[test]
    fn the_longest_duration_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX);
        assert_eq!(backoff.next_wait(), Duration::MAX);
        assert_eq!(backoff.next_wait(), Duration::MAX);
    }

    #[test]
    fn jitter_varies_between_half_and_whole() {
        let mut chance = fastrand::Rng::with_seed(7);
        let mut backoff = Backoff::new(MS(100), MS(5000));
        let mut seen = std::collections::HashSet::new();
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = backoff.next_wait_jittered(&mut chance);
            assert!(wait >= MS(whole) / 2 && wait <= MS(whole), "{wait:?} of {whole} ms");
            seen.insert(wait);
        }
        assert_eq!(seen.len(), 8);
    }
}
