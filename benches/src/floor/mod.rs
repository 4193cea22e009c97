//! Floor programs: the kernel's part of the work, without any of a program's own.
//!
//! - `pipe`: bytes from one socket to the other, nothing parsed; with `splice`, through a kernel
//!   pipe while a direction streams.
//! - `subscribe`: one Redis subscription, one WebSocket text frame for each result.
//! - `speech`: what workers send is written to a file and sent to its client from there.
//! - `copy`: a file sent as WebSocket frames by reading it and writing it.
//!
//! They are not proxies to use: no limits, timeouts, logs or error responses.

pub mod copy;
pub mod pipe;
pub mod speech;
pub mod subscribe;
