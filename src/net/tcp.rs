//! The real network: TCP through `mio`.

use super::{Network, OpenFile, PeerAddress, Pipe, Socket, Source, Transport, sys};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry};
use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{Domain, Protocol, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;

/// How many bytes the kernel keeps unsent for one socket before it says "full".
///
/// Without it a slow reader's send buffer grows to `tcp_wmem`'s maximum, 4 MB and more; with much less, a stream is stopped and
/// woken more often and costs a tenth more a byte.
const UNSENT_BYTES_MAX: u32 = 512 * 1024;

/// The congestion control of sockets to this machine's own programs, on a host that is set to BBR, by how that one's name begins.
///
/// BBR paces what is sent by timers. Between two programs on one machine there is nothing to pace for, and the timers cost more
/// than all the rest of a stream. Reno is in every kernel, and everybody may choose it. It has to be chosen before the
/// connection stands, because the pacing stays: so at a listener only where all clients are local ones.
const UNPACED: &[u8] = b"reno";
const PACED: &[u8] = b"bbr";

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

    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
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

/// Dials over TCP and Unix sockets and registers with the reactor's poll.
pub struct TcpNetwork {
    registry: Registry,
    /// What this host sends is paced, if nothing else is chosen.
    is_paced: bool,
}

impl TcpNetwork {
    pub fn new(registry: Registry) -> TcpNetwork {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
        TcpNetwork { registry, is_paced: socket.is_ok_and(|socket| is_paced(&socket)) }
    }
}

impl Network for TcpNetwork {
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket> {
        match to {
            PeerAddress::Tcp(to) => {
                connect(*to, source, self.is_paced && to.ip().is_loopback(), &self.registry)
            }
            PeerAddress::Unix(path) => connect_unix(path, source, &self.registry),
        }
    }
}

/// Registers an accepted socket. Its options come from the listener.
pub fn accepted(mut stream: TcpStream, source: Source, registry: &Registry) -> io::Result<Socket> {
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Tcp(Tcp(stream)))
}

fn connect(
    to: SocketAddr,
    source: Source,
    is_unpaced: bool,
    registry: &Registry,
) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new_raw(Domain::for_address(to), kind, Some(Protocol::TCP))?;
    set_options(&socket, is_unpaced)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
            return Err(error);
        }
        _ => {}
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Tcp(Tcp(stream)))
}

fn connect_unix(path: &Path, source: Source, registry: &Registry) -> io::Result<Socket> {
    let mut stream = UnixStream::connect(path)?;
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Other(Box::new(Unix(stream))))
}

/// Opens a nonblocking listener; with `reuse_port` beside those of other processes that do the same.
///
/// # Errors
/// Whatever the kernel says; the caller names the address.
pub fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<mio::net::TcpListener> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` can then be listened on side by side, and an address in a log is what the client used.
        socket.set_only_v6(true)?;
    }
    set_options(&socket, address.ip().is_loopback() && is_paced(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(mio::net::TcpListener::from_std(TcpListener::from(socket)))
}

/// What every socket of ours wants; accepted ones inherit it from their listener.
fn set_options(socket: &socket2::Socket, is_unpaced: bool) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    if is_unpaced {
        // A wish: a container's rules may forbid it.
        let _ = socket.set_tcp_congestion(UNPACED);
    }
    Ok(())
}

fn is_paced(socket: &socket2::Socket) -> bool {
    socket.tcp_congestion().is_ok_and(|name| name.starts_with(PACED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> socket2::Socket {
        socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
    }

    #[test]
    fn what_stays_on_this_machine_is_not_paced() {
        let socket = socket();
        set_options(&socket, true).unwrap();
        assert!(socket.tcp_congestion().unwrap().starts_with(UNPACED));
        assert!(!is_paced(&socket));
        let listener = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let name = socket2::SockRef::from(&listener).tcp_congestion().unwrap();
        assert!(!name.starts_with(PACED));
    }

    #[test]
    fn other_sockets_stay_as_the_host_wants_them() {
        let (usual, ours) = (socket(), socket());
        set_options(&ours, false).unwrap();
        assert_eq!(ours.tcp_congestion().unwrap(), usual.tcp_congestion().unwrap());
        let listener = listen("0.0.0.0:0".parse().unwrap(), false).unwrap();
        assert_eq!(
            socket2::SockRef::from(&listener).tcp_congestion().unwrap(),
            usual.tcp_congestion().unwrap()
        );
    }
}
