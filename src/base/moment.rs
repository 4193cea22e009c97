//! Points in time for everything below the reactor: eight bytes, without a `now`.
//!
//! `std::time::Instant` takes sixteen bytes, and a session holds a dozen moments. There is no
//! `now`, so that code gets the time only as an argument: that keeps it testable without a clock.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::time::{Duration, SystemTime};

/// A moment, in nanoseconds since the process began, plus one so that `Option<Moment>` needs no
/// more room. Lasts for 584 years.
///
/// ```
/// use aivtuber_gateway::base::moment::Moment;
/// use std::time::Duration;
///
/// let later = Moment::START + Duration::from_secs(3);
/// assert_eq!(later - Moment::START, Duration::from_secs(3));
/// assert_eq!(Moment::START - later, Duration::ZERO);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// The moment at which the process began.
    pub const START: Moment = Moment(NonZeroU64::MIN);

    /// The earliest of those that are set.
    #[inline]
    pub fn earliest<const N: usize>(moments: [Option<Moment>; N]) -> Option<Moment> {
        // `None` is 0, and one less is the largest number. So it takes no branch to leave it out.
        let rank = |moment: Option<Moment>| moment.map_or(0, |it| it.0.get()).wrapping_sub(1);
        let earliest = moments.into_iter().map(rank).fold(u64::MAX, u64::min);
        NonZeroU64::new(earliest.wrapping_add(1)).map(Moment)
    }

    /// The moment that is `nanos` nanoseconds after [`Moment::START`].
    #[inline]
    pub fn after_start(nanos: u64) -> Moment {
        Moment(NonZeroU64::MIN.saturating_add(nanos))
    }

    /// This moment, to a millisecond.
    #[inline]
    pub const fn coarse(self) -> CoarseMoment {
        CoarseMoment((self.0.get() >> COARSE_BITS) as u32)
    }

    /// The time since [`Moment::START`].
    fn since_start(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

/// Nanoseconds that a [`CoarseMoment`] does not tell apart, as a power of two.
const COARSE_BITS: u32 = 20;

/// A moment to a millisecond, in four bytes, for ages up to 52 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoarseMoment(u32);

impl CoarseMoment {
    /// The time since then.
    pub fn age(self, now: Moment) -> Duration {
        Duration::from_nanos(u64::from(now.coarse().0.wrapping_sub(self.0)) << COARSE_BITS)
    }
}

/// A later moment. Saturates at the last one that can be represented.
impl Add<Duration> for Moment {
    type Output = Moment;

    #[inline]
    fn add(self, wait: Duration) -> Moment {
        let nanos =
            wait.as_secs().saturating_mul(1_000_000_000).saturating_add(wait.subsec_nanos().into());
        Moment(self.0.saturating_add(nanos))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, wait: Duration) {
        *self = *self + wait;
    }
}

/// The time since an earlier moment; zero if that one is later.
impl Sub for Moment {
    type Output = Duration;

    #[inline]
    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

/// The time of day, without a way to read it: what it was at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    moment: Moment,
    time: SystemTime,
}

impl WallClock {
    /// It is `time` at `moment`.
    pub fn new(moment: Moment, time: SystemTime) -> WallClock {
        WallClock { moment, time }
    }

    /// The time at `moment`.
    pub fn at(&self, moment: Moment) -> SystemTime {
        self.time + (moment - self.moment) - (self.moment - moment)
    }
}

/// A duration as the log prints it: `1.234s`, truncated to milliseconds. Printed with integers,
/// which takes a tenth of the time that a float takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0.as_secs(), self.0.subsec_millis())
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:?}", self.since_start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_what_was_added() {
        let wait = Duration::new(3, 141_592_653);
        let later = Moment::START + wait;
        assert_eq!((later - Moment::START, later.since_start()), (wait, wait));
        assert_eq!(Moment::START - later, Duration::ZERO);
        assert!(later > Moment::START);
        assert_eq!(format!("{later:?}"), "+3.141592653s");
    }

    #[test]
    fn the_earliest_is_found_among_none() {
        let at = |nanos| Some(Moment::START + Duration::from_nanos(nanos));
        assert_eq!(Moment::earliest([]), None);
        assert_eq!(Moment::earliest([None, None]), None);
        assert_eq!(Moment::earliest([None, at(3), None, at(2), at(5)]), at(2));
        assert_eq!(Moment::earliest([at(1), None]), at(1));
    }

    #[test]
    fn seconds_have_three_places() {
        let text = |nanos: u64| Seconds(Duration::from_nanos(nanos)).to_string();
        assert_eq!(
            (text(0).as_str(), text(1_002_999_999).as_str(), text(61_500_000_000).as_str()),
            ("0.000s", "1.002s", "61.500s")
        );
    }

    #[test]
    fn addition_saturates() {
        let end = Moment::START + Duration::MAX;
        assert_eq!(end + Duration::from_secs(1), end);
        assert!(end > Moment::START + Duration::from_secs(500 * 365 * 24 * 60 * 60));
    }

    #[test]
    fn a_moment_takes_eight_bytes() {
        assert!(size_of::<Moment>() <= 8 && size_of::<Option<Moment>>() <= 8);
    }
}
