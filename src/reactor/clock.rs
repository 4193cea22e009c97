//! The one clock. The reactor reads it once a turn and passes the moment on.

use crate::base::moment::Moment;
use crate::net::monotonic_nanos;

/// A clock that began at [`Moment::START`].
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// What the system's clock said then, in nanoseconds.
    started: u64,
}

impl Clock {
    /// Starts at this moment.
    pub fn start() -> Clock {
        Clock { started: monotonic_nanos() }
    }

    /// Reads the clock.
    #[inline]
    pub fn now(&self) -> Moment {
        Moment::after_start(monotonic_nanos().saturating_sub(self.started))
    }
}
