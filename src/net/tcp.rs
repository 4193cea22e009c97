//! The real network: TCP through `mio`.

#![expect(clippy::disallowed_types, reason = "sockets and files live here")]

use super::stream_socket::{SocketKind, StreamSocket};
use super::unix::{self, BACKLOG, BOTH};
use super::watch::Watches;
use super::{Network, OpenFile, PeerAddress, Socket, Source};
use mio::Registry;
use mio::net::TcpStream;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// How many unsent bytes the kernel keeps for one socket before it reports it as full.
///
/// Without this limit a slow reader's send buffer grows to the maximum of `tcp_wmem`, 4 MB and
/// more. With a much smaller one a stream is stopped and woken more often, and a byte costs a tenth
/// more.
const UNSENT_BYTES_MAX: u32 = 512 * 1024;

/// The congestion control for sockets between programs on this machine when the host's default
/// begins with [`PACED`].
///
/// BBR paces what is sent by timers. On one machine there is nothing to pace for, and the timers
/// cost more than the rest of a stream. Every kernel has Reno, and any user may choose it. The
/// choice has to come before the connection is established, because the pacing stays. So a listener
/// gets it only if all its clients are local.
const UNPACED: &[u8] = b"reno";
const PACED: &[u8] = b"bbr";

/// A registered TCP socket.
pub type Tcp = StreamSocket<TcpStream>;

impl SocketKind for TcpStream {
    fn limit_buffers(&self, bytes_max: usize) -> io::Result<()> {
        self.limit_unsent(bytes_max)?;
        // The kernel doubles it, for what it needs itself. With less, it cannot announce a window
        // that keeps a stream going. A window that was announced is still honoured.
        SockRef::from(self).set_recv_buffer_size(bytes_max * 2)
    }

    fn limit_unsent(&self, bytes: usize) -> io::Result<()> {
        SockRef::from(self).set_tcp_notsent_lowat((bytes as u32).min(UNSENT_BYTES_MAX))
    }

    fn set_corked(&self, is_corked: bool) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_tcp_cork(self, is_corked)?)
    }
}

/// Connects over TCP and Unix sockets and registers with the reactor's poll.
pub struct TcpNetwork {
    registry: Registry,
    /// This host's default congestion control is a pacing one.
    is_paced: bool,
    watches: Watches,
}

impl TcpNetwork {
    /// Connections are registered with `registry`.
    pub fn new(registry: Registry) -> TcpNetwork {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
        let is_paced = socket.is_ok_and(|socket| is_paced(&socket));
        TcpNetwork { registry, is_paced, watches: Watches::default() }
    }
}

impl Network for TcpNetwork {
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket> {
        match to {
            PeerAddress::Tcp(to) => {
                connect(*to, source, self.is_paced && to.ip().is_loopback(), &self.registry)
            }
            PeerAddress::Unix(path) => unix::connect(path, source, &self.registry),
        }
    }

    fn watch(&mut self, file: &OpenFile, owner: u64) -> io::Result<()> {
        self.watches.add(file, owner, &self.registry)
    }

    fn unwatch(&mut self, owner: u64) {
        self.watches.remove(owner);
    }

    fn poll_written(&mut self) -> Option<u64> {
        self.watches.poll()
    }
}

/// Makes the kernel probe the peers of accepted sockets that are silent, so that one that vanished
/// without a word is noticed within two minutes. For protocols that have no pings.
pub fn keep_alive(listener: &mio::net::TcpListener) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    SockRef::from(listener).set_tcp_keepalive(&probes)
}

/// Registers an accepted socket. Its options come from the listener.
pub fn accepted(mut stream: TcpStream, source: Source, registry: &Registry) -> io::Result<Socket> {
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Tcp(StreamSocket(stream)))
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
    Ok(Socket::Tcp(StreamSocket(stream)))
}

/// Opens a nonblocking listener. With `reuse_port`, other processes that set it too may listen on
/// the same address.
///
/// # Errors
/// Whatever the kernel says; the caller adds the address.
pub fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<mio::net::TcpListener> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // So `[::]` and `0.0.0.0` can be listened on side by side, and IPv4 clients appear in the
        // log with an IPv4 address.
        socket.set_only_v6(true)?;
    }
    set_options(&socket, address.ip().is_loopback() && is_paced(&socket))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(mio::net::TcpListener::from_std(TcpListener::from(socket)))
}

/// Prepares a listening socket that another program has opened.
pub fn adopt_listener(listener: TcpListener) -> io::Result<mio::net::TcpListener> {
    let is_local = listener.local_addr()?.ip().is_loopback();
    let socket = socket2::Socket::from(listener);
    set_options(&socket, is_local && is_paced(&socket))?;
    socket.set_nonblocking(true)?;
    Ok(mio::net::TcpListener::from_std(TcpListener::from(socket)))
}

/// Sets what all TCP sockets need. Accepted ones inherit it from their listener.
fn set_options(socket: &socket2::Socket, is_unpaced: bool) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    if is_unpaced {
        // Only an optimisation: a container's rules may forbid it.
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
    use crate::net::Transport;
    use std::io::Write;

    fn socket() -> socket2::Socket {
        socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
    }

    #[test]
    fn local_sockets_are_not_paced() {
        let socket = socket();
        set_options(&socket, true).unwrap();
        assert!(socket.tcp_congestion().unwrap().starts_with(UNPACED));
        assert!(!is_paced(&socket));
        let listener = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let name = socket2::SockRef::from(&listener).tcp_congestion().unwrap();
        assert!(!name.starts_with(PACED));
    }

    #[test]
    fn other_sockets_keep_the_default_of_the_host() {
        let (usual, set) = (socket(), socket());
        set_options(&set, false).unwrap();
        assert_eq!(set.tcp_congestion().unwrap(), usual.tcp_congestion().unwrap());
        let listener = listen("0.0.0.0:0".parse().unwrap(), false).unwrap();
        assert_eq!(
            socket2::SockRef::from(&listener).tcp_congestion().unwrap(),
            usual.tcp_congestion().unwrap()
        );
    }

    /// A socket and its peer, which reads nothing.
    fn pair() -> (Tcp, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        set_options(&socket2::Socket::from(stream.try_clone().unwrap()), false).unwrap();
        (StreamSocket(TcpStream::from_std(stream)), peer)
    }

    #[test]
    fn a_socket_is_full_sooner_with_a_smaller_limit_of_unsent_bytes() {
        let filled = |limit: Option<usize>| {
            let (mut tcp, peer) = pair();
            // What the peer's kernel takes is sent, and does not count.
            SockRef::from(&peer).set_recv_buffer_size(16 * 1024).unwrap();
            if let Some(limit) = limit {
                tcp.limit_unsent(limit).unwrap();
            }
            let mut written = 0;
            while let Ok(n) = tcp.write(&[0; 4096]) {
                written += n;
            }
            drop(peer);
            written
        };
        let (usual, small) = (filled(None), filled(Some(16 * 1024)));
        assert!(usual >= UNSENT_BYTES_MAX as usize, "{usual}");
        assert!(small + 256 * 1024 < usual, "{small} and {usual}");
    }

    #[test]
    fn a_slow_peer_costs_what_the_buffers_are_limited_to() {
        let filled = |bytes_max: Option<usize>| {
            let (mut tcp, peer) = pair();
            if let Some(bytes_max) = bytes_max {
                tcp.limit_buffers(bytes_max).unwrap();
            }
            assert_eq!(tcp.kernel_bytes(), 0);
            while tcp.write(&[0; 16 * 1024]).is_ok() {}
            let bytes = tcp.kernel_bytes();
            tcp.discard_on_close().unwrap();
            drop((tcp, peer));
            bytes
        };
        let (usual, small) = (filled(None), filled(Some(16 * 1024)));
        assert!(usual > UNSENT_BYTES_MAX as usize, "{usual}");
        assert!(small > 0 && small < usual / 4, "{small} and {usual}");
    }
}
