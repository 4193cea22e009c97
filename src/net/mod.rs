//! Sockets without rules: nonblocking transports, remembered readiness, tokens.
//!
//! [`Transport`] and [`Network`] are the seam between the gateway and the kernel. Behind it stands TCP ([`tcp`]) or, in
//! `tests/sim.rs`, a simulated world; everything above it only knows these two traits.

pub mod conn;
pub mod files;
pub mod pipe;
mod sys;
pub mod tcp;
pub mod token;

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

pub use conn::{Conn, Io, Ready};
pub use files::OpenFile;
pub use pipe::{Pipe, Pipes};
pub use sys::give_memory_back;
pub use token::{Side, Source};

/// A nonblocking byte stream, registered for edge-triggered events in both directions.
///
/// `read` and `write` answer [`io::ErrorKind::WouldBlock`] when there is nothing to do now; an event follows when there is.
pub trait Transport: Read + Write {
    /// Sends FIN behind everything that was written: the peer reads to the end, and may still answer.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Whether a connection that was begun stands, once an event has come.
    fn connect_outcome(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes what more follows at once: the kernel may wait for it to fill a packet.
    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    /// While it is held, only full packets leave; what is short of one waits for more, or for the release (`tcp(7)`, `TCP_CORK`).
    fn hold(&mut self, _is_held: bool) -> io::Result<()> {
        Ok(())
    }

    /// Writes at most `count` bytes of `file` from `offset` on; 0 when the file ends there.
    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        let most = count.min(bytes.len());
        match file.read_at(&mut bytes[..most], offset)? {
            0 => Ok(0),
            n => self.write(&bytes[..n]),
        }
    }

    /// Whether bytes can pass through a [`Pipe`], unseen by this process: the three calls below work.
    fn can_splice(&self) -> bool {
        false
    }

    /// Reads from the byte at `offset` on, counted from the next one, without taking. `WouldBlock`: it has not come, or the
    /// transport can only look at offset 0.
    fn peek(&mut self, _offset: u32, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Moves at most `most` bytes into `pipe`; 0 at the peer's FIN.
    fn splice_into(&mut self, _pipe: &mut Pipe, _most: usize) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Writes what `pipe` holds, as far as there is room.
    fn splice_from(&mut self, _pipe: &mut Pipe) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// A socket of one kind or another. TCP is known by its name: a session has two of them, and nothing else to point to.
pub enum Socket {
    Tcp(tcp::Tcp),
    Other(Box<dyn Transport>),
}

/// Where a connection can be made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAddress {
    Tcp(SocketAddr),
    /// A Unix socket in the file system.
    Unix(PathBuf),
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        PeerAddress::Tcp(address)
    }
}

/// Where new connections come from.
pub trait Network {
    /// Begins to connect to `to`, registered as `source`. The connection need not be established yet: a first write says
    /// `WouldBlock` until it is, and fails when it cannot be.
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket>;
}
