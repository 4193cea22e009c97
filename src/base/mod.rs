//! The ground floor: bounded queues, moments, deadlines, tables, waiting longer each time. Pure: no clock, no socket.

pub mod backoff;
pub mod buf;
pub mod moment;
pub mod table;
pub mod timers;
