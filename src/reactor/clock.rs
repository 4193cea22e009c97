//! The one clock. It stands in the reactor, which reads it once a turn and hands the moment on.

use crate::base::moment::Moment;
use std::time::Instant;

/// A clock that began at [`Moment::START`].
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    pub fn now(&self) -> Moment {
        Moment::START + self.0.elapsed()
    }
}
