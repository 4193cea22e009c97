//! The one clock. The reactor reads it once a turn and passes the moment on.

#![expect(clippy::disallowed_methods, reason = "this is the clock")]

use crate::base::moment::Moment;
use std::time::Instant;

/// A clock that began at [`Moment::START`].
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at this moment.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Reads the clock.
    pub fn now(&self) -> Moment {
        Moment::START + self.0.elapsed()
    }
}
