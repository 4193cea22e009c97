//! Floor programs: what the kernel charges for a piece of work when the program does nothing of its own.
//!
//! - `pipe`: bytes from one socket to the other, nothing parsed; with `splice`, through a kernel pipe while a direction
//!   streams.
//! - `subscribe`: one Redis subscription, one WebSocket text frame for each result.
//! - `copy`: a file sent as WebSocket frames by reading it and writing it.
//!
//! They are not proxies to use: no limit, no time-out, no log, no answer to a fault.

pub mod copy;
pub mod pipe;
pub mod subscribe;
