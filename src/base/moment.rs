//! Moments as everything below the reactor knows them: eight bytes, and no way to ask what time it is.
//!
//! `std::time::Instant` is sixteen, and `Option<Instant>` too; a session remembers a dozen of them. The surprising thing is
//! what the type does not have: a `now`. Who holds a `Moment` was handed it, which is how time stays an argument.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Nanoseconds since the process began, and one more, so that `Option<Moment>` is no larger. Enough for 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(NonZeroU64);

impl Moment {
    /// Before all others.
    pub const START: Moment = Moment(NonZeroU64::MIN);

    /// How long after [`Moment::START`].
    pub fn since_start(self) -> Duration {
        Duration::from_nanos(self.0.get() - 1)
    }
}

/// So much later; what is too late to be told is the last moment there is.
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

/// The time from an earlier moment to this one; none where it is later.
impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }
}

/// A time as the log has it: `1.234s`, thousandths cut off. Whole numbers, because a fraction takes ten times as long to write.
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
    fn what_is_added_is_what_lies_between() {
        let wait = Duration::new(3, 141_592_653);
        let later = Moment::START + wait;
        assert_eq!((later - Moment::START, later.since_start()), (wait, wait));
        assert_eq!(Moment::START - later, Duration::ZERO);
        assert!(later > Moment::START);
        assert_eq!(format!("{later:?}"), "+3.141592653s");
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
    fn the_end_of_time_is_not_passed() {
        let end = Moment::START + Duration::MAX;
        assert_eq!(end + Duration::from_secs(1), end);
        assert!(end > Moment::START + Duration::from_secs(500 * 365 * 24 * 60 * 60));
    }

    #[test]
    fn it_is_half_an_instant() {
        assert_eq!((size_of::<Moment>(), size_of::<Option<Moment>>()), (8, 8));
    }
}
