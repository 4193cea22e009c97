//! The ground floor: bounded queues, moments, deadlines, waiting longer each time. Pure: no clock, no socket.

pub mod backoff;
pub mod buf;
pub mod moment;
pub mod timers;
