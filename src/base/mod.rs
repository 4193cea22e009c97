//! The ground floor: bounded queues, deadlines, waiting longer each time. Pure: no clock, no socket.

pub mod backoff;
pub mod buf;
pub mod timers;
