//! The lowest layer: bounded queues, memory budget, moments, deadlines, tables, backoff. Pure: no
//! clock and no socket.

pub mod backoff;
pub mod budget;
pub mod buf;
pub mod moment;
pub mod queue;
pub mod quoted;
pub mod sequence;
pub mod table;
#[cfg(test)]
pub mod testing;
pub mod timers;
pub mod touched;
