//! How long things took, counted in buckets.

use std::time::Duration;

/// Upper bounds of the buckets: nanoseconds, and seconds as the metrics have them.
const BOUNDS: [(u64, &str); 17] = [
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
    (60_000_000_000, "60"),
    (300_000_000_000, "300"),
];

/// A histogram of durations.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// By bucket, each counted once.
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < nanos);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.sum += time;
    }

    /// How many took at most as long as each bound.
    pub fn buckets(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let mut sum = 0;
        BOUNDS.iter().zip(&self.counts).map(move |((_, bound), count)| {
            sum += count;
            (*bound, sum)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long they took together.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_have_their_bounds_in_them() {
        let mut histogram = Histogram::default();
        for micros in [0, 50, 51, 1000, 1001, 300_000_000, 301_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let at = |bound| histogram.buckets().find(|(one, _)| *one == bound).map(|(_, n)| n);
        assert_eq!(
            ["0.00005", "0.0001", "0.001", "0.005", "60", "300"].map(at),
            [Some(2), Some(3), Some(4), Some(5), Some(5), Some(6)]
        );
        assert_eq!(histogram.count(), 7);
        assert_eq!(histogram.sum(), Duration::from_micros(601_002_102));
    }

    #[test]
    fn bounds_are_written_as_they_are() {
        for (nanos, seconds) in BOUNDS {
            let written: f64 = seconds.parse().expect("a number");
            assert!((written * 1e9 - nanos as f64).abs() < 1.0, "{seconds}");
        }
        assert!(BOUNDS.is_sorted());
    }
}
