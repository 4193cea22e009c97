//! The real network: TCP through `mio`.

use super::{AudioFile, Network, Pipe, Socket, Source, Transport, sys};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry};
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockRef, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;

/// How many bytes the kernel keeps unsent for one socket before it says "full".
///
/// Without it a slow reader's send buffer grows to `tcp_wmem`'s maximum, 4 MB and more; with much less, a stream is stopped and
/// woken more often and costs a tenth more a byte.
const UNSENT_BYTES_MAX: u32 = 512 * 1024;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 4096;

/// Both directions, once, for as long as the socket lives: readiness is remembered in `Conn`, so `epoll_ctl` is never
/// called again.
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// A registered TCP socket.
pub struct Tcp(TcpStream);

impl Read for Tcp {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Tcp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Tcp {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        self.0.take_error()?.map_or(Ok(()), Err)
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::MORE | SendFlags::NOSIGNAL)?)
    }

    fn hold(&mut self, is_held: bool) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_tcp_cork(&self.0, is_held)?)
    }

    fn send_file(&mut self, file: &AudioFile, offset: u64, count: usize) -> io::Result<usize> {
        file.send_to(&self.0, offset, count)
    }

    fn can_splice(&self) -> bool {
        true
    }

    fn peek(&mut self, offset: u32, buf: &mut [u8]) -> io::Result<usize> {
        if !sys::set_peek_offset(&self.0, offset) && offset > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.0.peek(buf)
    }

    fn splice_into(&mut self, pipe: &mut Pipe, most: usize) -> io::Result<usize> {
        pipe.fill_from(&self.0, most)
    }

    fn splice_from(&mut self, pipe: &mut Pipe) -> io::Result<usize> {
        pipe.drain_into(&self.0)
    }
}

/// A registered Unix socket.
struct Unix(UnixStream);

impl Read for Unix {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Unix {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Unix {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        self.0.take_error()?.map_or(Ok(()), Err)
    }
}

/// Dials over TCP and registers with the reactor's poll.
pub struct TcpNetwork {
    registry: Registry,
}

impl TcpNetwork {
    pub fn new(registry: Registry) -> TcpNetwork {
        TcpNetwork { registry }
    }
}

impl Network for TcpNetwork {
    fn connect(&mut self, to: SocketAddr, source: Source) -> io::Result<Socket> {
        connect(to, source, &self.registry)
    }
}

/// Registers an accepted socket. Its options come from the listener.
pub fn accepted(mut stream: TcpStream, source: Source, registry: &Registry) -> io::Result<Socket> {
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Tcp(Tcp(stream)))
}

/// Begins to connect to `to`, registered as `source`.
pub fn connect(to: SocketAddr, source: Source, registry: &Registry) -> io::Result<Socket> {
    let mut stream = TcpStream::connect(to)?;
    set_options(SockRef::from(&stream))?;
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Tcp(Tcp(stream)))
}

/// Connects to the socket at `path`, registered as `source`.
pub fn connect_unix(path: &Path, source: Source, registry: &Registry) -> io::Result<Socket> {
    let mut stream = UnixStream::connect(path)?;
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Other(Box::new(Unix(stream))))
}

/// Opens a nonblocking listener; with `reuse_port` beside those of other processes that do the same.
///
/// # Errors
/// Whatever the kernel says; the caller names the address.
pub fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<mio::net::TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` can then be listened on side by side, and an address in a log is what the client used.
        socket.set_only_v6(true)?;
    }
    set_options(SockRef::from(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(mio::net::TcpListener::from_std(TcpListener::from(socket)))
}

/// What every socket of ours wants; accepted ones inherit it from their listener.
fn set_options(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}
