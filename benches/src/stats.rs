//! Medians, percentiles and spreads.
//!
//! Other programs can only add cost, so the minimum is kept beside the median: it is what
//! an idle machine would show.

/// The figures of one metric of one target over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
    pub rounds: usize,
}

impl Summary {
    /// `None` without figures.
    pub fn of(figures: &[f64]) -> Option<Summary> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&least, &greatest) = (sorted.first()?, sorted.last()?);
        Some(Summary { median: median_of_sorted(&sorted), least, greatest, rounds: sorted.len() })
    }

    /// The distance between the extremes as a share of the median (0.1 is 10 %); 0 where the median
    /// is 0.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.greatest - self.least) / self.median.abs() }
    }
}

/// The median of unordered figures; `None` where there are none.
pub fn median(figures: &[f64]) -> Option<f64> {
    Summary::of(figures).map(|summary| summary.median)
}

fn median_of_sorted(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Round-trip times of one run, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    /// Records one; longer than 4.29 s is recorded as 4.29 s.
    pub fn push(&mut self, nanoseconds: u128) {
        self.0.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time in microseconds that `percent` per cent did not exceed (nearest rank); `None` when
    /// nothing was recorded.
    pub fn percentile(&mut self, percent: f64) -> Option<f64> {
        let rank = ((percent / 100.0 * self.0.len() as f64).ceil() as usize)
            .clamp(1, self.0.len().max(1))
            - 1;
        if self.0.is_empty() {
            return None;
        }
        let (_, &mut value, _) = self.0.select_nth_unstable(rank);
        Some(f64::from(value) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 5.0, 7.0]), Some(6.0));
    }

    #[test]
    fn a_summary_keeps_the_extremes() {
        let summary = Summary::of(&[4.0, 2.0, 8.0]).unwrap();
        assert_eq!(summary, Summary { median: 4.0, least: 2.0, greatest: 8.0, rounds: 3 });
        assert_eq!(summary.spread(), 1.5);
        assert_eq!(Summary::of(&[0.0, 0.0]).unwrap().spread(), 0.0);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50.0), None);
        for microseconds in (1..=100u128).rev() {
            latencies.push(microseconds * 1000);
        }
        assert_eq!(latencies.percentile(50.0), Some(50.0));
        assert_eq!(latencies.percentile(99.0), Some(99.0));
        assert_eq!(latencies.percentile(100.0), Some(100.0));
        assert_eq!(latencies.percentile(0.0), Some(1.0));
        latencies.push(u128::MAX);
        assert_eq!(latencies.percentile(100.0), Some(f64::from(u32::MAX) / 1000.0));
    }
}
