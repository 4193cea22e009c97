//! Sockets without rules: nonblocking transports, remembered readiness, tokens.
//!
//! [`Transport`] and [`Network`] are the seam between the gateway and the kernel. Behind them is
//! TCP ([`tcp`]), with or without TLS on it ([`tls`]), or, in `tests/sim.rs`, a simulated world.
//! Everything above knows only these two traits.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

pub mod conn;
pub mod files;
pub mod memory;
pub mod pipe;
pub mod process;
mod stream_socket;
mod sys;
pub mod tcp;
#[cfg(test)]
pub mod testing;
pub mod tls;
pub mod token;
pub mod unix;
mod watch;

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

pub use conn::{Conn, Io, Ready};
pub use files::OpenFile;
pub use pipe::{Pipe, Pipes};
pub use sys::{give_memory_back, monotonic_nanos, own_addresses, return_large_blocks, take_passed};
pub use token::{Side, Source};

/// A nonblocking byte stream over one socket, registered for edge-triggered events both ways.
///
/// # Contract
///
/// `epoll` reports an edge once, so [`Conn`] remembers it until a call proves it stale. What counts
/// as proof depends on the transport. A *plain* one hands each call to the socket (TCP). A
/// *buffering* one ([`Transport::is_buffering`]) has a record layer between the caller and the
/// socket (TLS).
///
/// 1. **`WouldBlock` means that an event will follow.** A call may fail with it only after the
///    socket itself refused what the call needed: to be read, or to be written.
/// 2. **Drained.** With a plain transport, a read that does not fill its buffer has emptied the
///    socket, unless the peer's FIN was announced. A buffering one may hold further plaintext
///    although the socket is empty, because one event can bring several reads' worth. There only
///    `WouldBlock` proves that a read brings nothing. The same holds for full: a buffering
///    transport may take one record of a long write while the socket has room.
/// 3. **Either event may serve either call.** TLS has to write in order to read (a handshake, a key
///    update) and to read in order to write. With a buffering transport `Conn` takes each event for
///    both directions. A read may find that the socket brought no plaintext, and block.
/// 4. **A call may serve the other direction.** What a write took out of the socket raises no
///    further event. [`Transport::is_read_pending`] and [`Transport::is_write_pending`] report what
///    such a call has made possible.
/// 5. **Output may be held back.** A write has succeeded when its bytes were taken, even if the
///    records that carry them did not fit into the socket. While such output is held, further
///    writes block, so that it never exceeds what one write takes. `Conn` calls `flush` after each
///    event.
/// 6. **The end comes last.** `shutdown_write` blocks while output is held, and is called again.
///    Dropping the transport loses what is held ([`Transport::is_output_held`]).
/// 7. **Errors are final for their direction.** After a failed write no output is held, and reading
///    on meets what the peer still sent, then the end or an error.
///
/// [`Transport::peek`] and the two `splice` calls bypass any record layer, so that only a plain
/// transport can offer them.
pub trait Transport: Read + Write {
    /// Sends FIN behind everything that was written: the peer reads to the end, and may still
    /// answer.
    ///
    /// # Errors
    /// `WouldBlock`: output is held back; call again after the next event. Anything else: the peer
    /// is gone.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Goes on with the handshake of an accepted connection that has one, and says what was agreed.
    ///
    /// # Errors
    /// `WouldBlock`: the client has not sent its part; call again after the next event. Anything
    /// else: there will be no connection.
    fn handshake(&mut self) -> io::Result<Security> {
        Ok(Security::Plain)
    }

    /// The end that [`Transport::shutdown_write`] will send is in the middle of a frame. A
    /// transport that can tell a complete stream from a cut one is to let it look cut.
    fn omit_close(&mut self) {}

    /// An event of the socket. Passed on to buffering transports only.
    fn note_ready(&mut self, _: Ready) {}

    /// Whether a record layer holds bytes between the caller and the socket, either way.
    fn is_buffering(&self) -> bool {
        false
    }

    /// A read would bring something without a further event. Asked of buffering transports only.
    fn is_read_pending(&self) -> bool {
        false
    }

    /// A write would take something without a further event, although the last one blocked. Asked
    /// of buffering transports only.
    fn is_write_pending(&self) -> bool {
        false
    }

    /// Output that was taken has not left for the socket. Asked of buffering transports only.
    fn is_output_held(&self) -> bool {
        false
    }

    /// Bytes that were written and that the peer has not acknowledged, a FIN among them counted as
    /// one (`tcp(7)`, `SIOCOUTQ`); `None` where that is unknown. After an RST from the peer it is
    /// 0.
    fn unacknowledged(&self) -> Option<usize> {
        None
    }

    /// Bytes of kernel memory in this socket's buffers, both ways, and those of a record layer; 0
    /// where that is not known.
    fn kernel_bytes(&self) -> usize {
        0
    }

    /// Keeps the send buffer from growing beyond about this many bytes, and the
    /// other one beyond a small multiple.
    ///
    /// # Errors
    /// When the kernel refuses, which costs memory and nothing else.
    fn limit_buffers(&mut self, _bytes_max: usize) -> io::Result<()> {
        Ok(())
    }

    /// Makes the socket count as full once about this many bytes wait unsent. What is on its way
    /// does not count.
    ///
    /// # Errors
    /// When the kernel refuses, which costs memory and nothing else.
    fn limit_unsent(&mut self, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    /// When it is dropped, unsent bytes are discarded, and the peer gets RST.
    ///
    /// # Errors
    /// When the kernel refuses, which costs memory and nothing else.
    fn discard_on_close(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// After the first event of a dialed socket: whether the connection was established.
    ///
    /// # Errors
    /// Why it was not.
    fn connect_outcome(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes bytes that more will follow at once. The kernel may wait for those to fill a packet.
    ///
    /// # Errors
    /// As for `write`.
    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    /// Switches corking on or off. While it is on, only full packets leave; a partial one waits for
    /// more bytes or for the release (`tcp(7)`, `TCP_CORK`).
    ///
    /// # Errors
    /// When the kernel refuses, which changes when bytes leave but not which.
    fn set_corked(&mut self, _is_corked: bool) -> io::Result<()> {
        Ok(())
    }

    /// Writes at most `count` bytes of `file` from `offset` on; 0 when the file ends there.
    ///
    /// # Errors
    /// As for `write`, and those of reading the file.
    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        let most = count.min(bytes.len());
        match file.read_at(&mut bytes[..most], offset)? {
            0 => Ok(0),
            n => self.write(&bytes[..n]),
        }
    }

    /// Whether bytes can pass through a [`Pipe`] without entering this process, so that the three
    /// calls below work.
    fn can_splice(&self) -> bool {
        false
    }

    /// Reads from `offset` on, counted from the next unread byte, and leaves the bytes unread.
    ///
    /// # Errors
    /// `WouldBlock`: that byte has not come, or the transport can only look at offset 0.
    fn peek(&mut self, _offset: u32, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Moves at most `most` bytes into `pipe`; 0 at the peer's FIN.
    ///
    /// # Errors
    /// `WouldBlock`: nothing to read, or the pipe is full.
    fn splice_into(&mut self, _pipe: &mut Pipe, _most: usize) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Writes what `pipe` holds, as far as there is room.
    ///
    /// # Errors
    /// As for `write`.
    fn splice_from(&mut self, _pipe: &mut Pipe) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    #[default]
    Plain,
    /// By TLS.
    Tls,
    /// Not at all, although it came in where TLS is expected.
    PlainOnTls,
}

/// A socket of any kind. TCP has a variant of its own, because a session has two of them and would
/// otherwise need a heap allocation for each.
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Socket {
    Tcp(tcp::Tcp),
    Other(Box<dyn Transport>),
}

/// Where a connection can be made to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
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
    /// Begins to connect to `to`, registered as `source`. The connection need not be established
    /// yet: until it is, a write says `WouldBlock`; when it cannot be, a write fails.
    ///
    /// # Errors
    /// What the kernel says at once, such as a lack of descriptors or ports.
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket>;

    /// Reports from now on when `file` is written to: an event of [`Source::Files`] comes, and
    /// [`Network::poll_written`] returns `owner`, which has no other watch. What another machine
    /// writes may go unreported.
    ///
    /// # Errors
    /// When nothing will be reported.
    fn watch(&mut self, _file: &OpenFile, _owner: u64) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    /// Reports it no longer.
    fn unwatch(&mut self, _owner: u64) {}

    /// The owner of a file that has been written to. The same one may come several times.
    fn poll_written(&mut self) -> Option<u64> {
        None
    }
}
