//! `aivtuber-gateway`: one port in front of an AI-VTuber back end.
//!
//! The binary only calls this library, so that tests can drive everything over sockets or in a
//! simulated world. Modules are layers, and a layer imports only from layers below it:
//!
//! ```text
//! main, cli, config, logging, cert, demo, doctor, tap
//!                 flags and files in, settings out
//! reactor         the poll loop: owns every registration, reads the clock once a turn
//! gateway         sessions, timers, limits as one whole: no clock, no real socket
//! session         one accepted connection, phase by phase
//! service | net   rules without sockets | sockets without rules
//! proto           wire formats, pure
//! base            queues and deadlines, pure
//! ```
//!
//! `docs/architecture.md` walks through it; `tests/tidy.rs` holds the rules.

#![warn(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::too_many_lines,
    clippy::unwrap_used
)]

pub mod base;
pub mod cert;
pub mod cli;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod gateway;
pub mod healthcheck;
pub mod logging;
pub mod net;
pub mod proto;
pub mod reactor;
pub mod service;
pub mod session;
pub mod tap;
