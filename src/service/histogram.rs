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

    /// What was counted since an `earlier` state of it.
    pub fn since(&self, earlier: &Histogram) -> Spread {
        let mut counts = self.counts;
        counts.iter_mut().zip(&earlier.counts).for_each(|(now, then)| *now -= then);
        Spread { counts, count: self.count - earlier.count }
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

/// Durations of a while, in buckets.
#[derive(Debug)]
pub struct Spread {
    counts: [u64; BOUNDS.len()],
    count: u64,
}

impl Spread {
    /// About how long the fastest `share` of them took at most; `None` if there were none. Within
    /// a bucket, durations count as evenly spread.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let wanted = self.count as f64 * share;
        let (mut before, mut lower) = (0.0, 0.0);
        for ((bound, _), count) in BOUNDS.iter().zip(&self.counts) {
            let (count, upper) = (*count as f64, *bound as f64);
            if count > 0.0 && before + count >= wanted {
                let nanos = lower + (upper - lower) * ((wanted - before) / count).clamp(0.0, 1.0);
                return Some(Duration::from_nanos(nanos as u64));
            }
            (before, lower) = (before + count, upper);
        }
        Some(Duration::from_nanos(lower as u64))
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
    fn quantiles_lie_within_their_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.since(&Histogram::default()).quantile(0.5), None);
        histogram.observe(Duration::from_secs(100));
        let before = histogram.clone();
        for _ in 0..99 {
            histogram.observe(Duration::from_micros(700));
        }
        histogram.observe(Duration::from_millis(2000));
        let spread = histogram.since(&before);
        let [p50, p99, p100] = [0.5, 0.99, 1.0].map(|share| spread.quantile(share).unwrap());
        assert!((500..=1000).contains(&p50.as_micros()), "{p50:?}");
        assert!((900..=1000).contains(&p99.as_micros()), "{p99:?}");
        assert_eq!(p100, Duration::from_millis(2500));
        histogram.observe(Duration::from_secs(1000));
        let last = histogram.since(&before).quantile(1.0);
        assert_eq!(last, Some(Duration::from_secs(300)), "the last bound is all that is known");
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
