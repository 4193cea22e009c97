//! Sockets without rules: nonblocking transports, remembered readiness, tokens.
//!
//! [`Transport`] and [`Network`] are the seam between the gateway and the kernel. Behind it stands TCP ([`tcp`]) or, in
//! `tests/sim.rs`, a simulated world; everything above it only knows these two traits.

pub mod conn;
pub mod tcp;
pub mod token;

use std::io::{self, Read, Write};
use std::net::SocketAddr;

pub use conn::{Conn, Io, Ready};
pub use token::{Side, Source};

/// A nonblocking byte stream, registered for edge-triggered events in both directions.
///
/// `read` and `write` answer [`io::ErrorKind::WouldBlock`] when there is nothing to do now; an event follows when there is.
pub trait Transport: Read + Write {
    /// Sends FIN behind everything that was written: the peer reads to the end, and may still answer.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// Where new connections come from.
pub trait Network {
    /// Begins to connect to `to`, registered as `source`. The connection need not stand yet: a first write says
    /// `WouldBlock` until it does and fails when it cannot.
    fn connect(&mut self, to: SocketAddr, source: Source) -> io::Result<Box<dyn Transport>>;
}
