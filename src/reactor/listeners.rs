//! Accepting: at most 64 connections per listener and turn, and none while there is no room.
//!
//! A listener's event comes once, so it is remembered until `accept` finds the queue empty. While
//! all connections or descriptors are in use accepting pauses: clients wait in the kernel's queue,
//! and the loop does not spin.

#![expect(
    clippy::disallowed_types,
    reason = "the reactor owns the poll and what is registered with it"
)]

use super::StartError;
use super::descriptors::{Descriptors, Supply};
use super::passed::PassedSockets;
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::gateway::Gateway;
use crate::net::unix::{self, UnixPath};
use crate::net::{Side, Socket, Source, tcp};
use crate::service::limits::Refusal;
use crate::service::trust::Peer;
use log::{info, warn};
use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Interest, Registry};
use rustix::io::Errno;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// Connections accepted from one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Why accepting pauses while half of the reserve of descriptors is in use.
const NO_DESCRIPTOR: &str = "no file descriptors left";

/// Pause after running out of descriptors. By then other processes may have closed some, for which
/// there is no event.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(200);

/// All listeners, and whether accepting pauses.
pub struct Listeners {
    listeners: Vec<Listener>,
    /// Connections may wait in the queue of some listener.
    is_any_ready: bool,
    addresses: Vec<(ListenerKind, ListenOn)>,
    descriptors: Descriptors,
    pauses: Pauses,
    is_closed: bool,
}

/// Whether accepting pauses, and why.
#[derive(Default)]
struct Pauses {
    /// Set while there are too few descriptors.
    until: Option<Moment>,
    /// The gateway has no room for clients.
    is_full: bool,
}

struct Listener {
    /// The number that its events carry.
    index: usize,
    socket: ListenSocket,
    kind: ListenerKind,
    is_ready: bool,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// Browsers and other clients.
    Clients,
    /// The same, with TLS.
    TlsClients,
    /// Operators.
    Admins,
    /// Workers that publish to the embedded inbox.
    Inbox,
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum ListenOn {
    Tcp(SocketAddr),
    /// TLS on TCP.
    Tls(SocketAddr),
    Unix(UnixPath),
}

impl ListenOn {
    /// The address, unless it is a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            ListenOn::Tcp(address) | ListenOn::Tls(address) => Some(*address),
            ListenOn::Unix(_) => None,
        }
    }

    /// Whether TLS is spoken there.
    pub fn has_tls(&self) -> bool {
        matches!(self, ListenOn::Tls(_))
    }

    /// What a listener for clients is there.
    pub(super) fn kind(&self) -> ListenerKind {
        if self.has_tls() { ListenerKind::TlsClients } else { ListenerKind::Clients }
    }
}

/// As in the configuration: `tls://0.0.0.0:8443`, `0.0.0.0:8000`, or `unix:/run/gateway.sock`.
impl fmt::Display for ListenOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenOn::Tcp(address) => address.fmt(f),
            ListenOn::Tls(address) => write!(f, "tls://{address}"),
            ListenOn::Unix(path) => path.fmt(f),
        }
    }
}

enum ListenSocket {
    Tcp(TcpListener),
    Unix(unix::UnixListenSocket),
}

/// A connection that was taken from a listener's queue.
enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl ListenSocket {
    fn accept(&self) -> io::Result<Accepted> {
        match self {
            ListenSocket::Tcp(listener) => {
                listener.accept().map(|(stream, client)| Accepted::Tcp(stream, client))
            }
            ListenSocket::Unix(listener) => listener.accept().map(Accepted::Unix),
        }
    }
}

impl Accepted {
    fn descriptor(&self) -> RawFd {
        match self {
            Accepted::Tcp(stream, _) => stream.as_raw_fd(),
            Accepted::Unix(stream) => stream.as_raw_fd(),
        }
    }

    fn peer(&self) -> Peer {
        match self {
            Accepted::Tcp(_, client) => Peer::Ip(*client),
            Accepted::Unix(_) => Peer::Unix,
        }
    }

    fn register(self, source: Source, registry: &Registry) -> io::Result<Socket> {
        match self {
            Accepted::Tcp(stream, _) => tcp::accepted(stream, source, registry),
            Accepted::Unix(stream) => unix::accepted(stream, source, registry),
        }
    }
}

impl ListenerKind {
    fn is_for_clients(self) -> bool {
        matches!(self, ListenerKind::Clients | ListenerKind::TlsClients)
    }
}

impl Listeners {
    /// Listens on all of `places`. A passed socket takes the place of the one that would be opened
    /// for its address.
    ///
    /// # Errors
    /// The first address that cannot be listened on, or a passed socket that has none of the
    /// addresses; the others are closed again.
    pub fn open(
        places: impl Iterator<Item = (ListenerKind, ListenOn)>,
        mut passed: PassedSockets,
        reuse_port: bool,
        descriptors: Descriptors,
        registry: &Registry,
    ) -> Result<Listeners, StartError> {
        let mut listeners = Vec::new();
        let mut opened = Vec::new();
        for (index, (kind, on)) in places.enumerate() {
            let source = Source::Listener(index);
            let mut open = || {
                let address = match &on {
                    ListenOn::Tcp(address) | ListenOn::Tls(address) => *address,
                    ListenOn::Unix(path) => {
                        let mut socket = unix::listen(path)?;
                        socket.register(registry, source)?;
                        return io::Result::Ok((on.clone(), ListenSocket::Unix(socket)));
                    }
                };
                let mut socket = match passed.take(address) {
                    Some(listener) => {
                        info!(target: "gateway", "socket passed address={address}");
                        tcp::adopt_listener(listener)?
                    }
                    None => tcp::listen(address, reuse_port && kind.is_for_clients())?,
                };
                if kind == ListenerKind::Inbox {
                    tcp::keep_alive(&socket)?;
                }
                registry.register(&mut socket, source.into(), Interest::READABLE)?;
                let local = socket.local_addr()?;
                let local = if on.has_tls() { ListenOn::Tls(local) } else { ListenOn::Tcp(local) };
                Ok((local, ListenSocket::Tcp(socket)))
            };
            let (local, socket) = match open() {
                Ok(opened) => opened,
                Err(error) => return Err(StartError::Listen(on, error)),
            };
            opened.push((kind, local));
            listeners.push(Listener { index, socket, kind, is_ready: false });
        }
        if let Some(socket) = passed.rest() {
            return Err(StartError::Passed(socket));
        }
        Ok(Listeners {
            listeners,
            is_any_ready: false,
            addresses: opened,
            descriptors,
            pauses: Pauses::default(),
            is_closed: false,
        })
    }

    /// Where is listened, with the ports that the kernel chose for port 0.
    pub fn addresses(&self, kind: ListenerKind) -> impl Iterator<Item = &ListenOn> + '_ {
        self.addresses.iter().filter(move |(at, _)| *at == kind).map(|(_, on)| on)
    }

    /// The places for clients among them.
    pub fn for_clients(&self) -> impl Iterator<Item = &ListenOn> + '_ {
        self.addresses.iter().filter(|(kind, _)| kind.is_for_clients()).map(|(_, on)| on)
    }

    /// An event: connections wait in a listener's queue.
    pub fn handle_ready(&mut self, index: usize) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.index == index) {
            listener.is_ready = true;
            self.is_any_ready = true;
        }
    }

    /// Accepts what waits, as long as there is room.
    #[inline]
    pub fn accept(&mut self, gateway: &mut Gateway, registry: &Registry, now: Moment) {
        if self.is_any_ready {
            self.accept_ready(gateway, registry, now);
            self.is_any_ready = self.listeners.iter().any(|listener| listener.is_ready);
        }
    }

    fn accept_ready(&mut self, gateway: &mut Gateway, registry: &Registry, now: Moment) {
        for listener in &mut self.listeners {
            for _ in 0..ACCEPTS_PER_TURN {
                if !listener.is_ready || !self.pauses.check_room(listener.kind, gateway) {
                    break;
                }
                match listener.socket.accept() {
                    Ok(accepted) => match self.descriptors.supply(accepted.descriptor()) {
                        Supply::Exhausted => return self.pauses.begin(NO_DESCRIPTOR, gateway, now),
                        supply => {
                            self.pauses.until = None;
                            enter(accepted, listener.kind, supply, gateway, registry);
                        }
                    },
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        listener.is_ready = false;
                    }
                    Err(error) if concerns_one_client(&error) => {}
                    // Out of descriptors or memory, or something unknown that must not spin.
                    Err(error) => return self.pauses.begin(&error.to_string(), gateway, now),
                }
            }
        }
    }

    /// When a turn is due for accepting although no event comes; a moment in the past: at once.
    #[inline]
    pub fn next_turn(&self, gateway: &Gateway) -> Option<Moment> {
        if self.is_any_ready { self.next_accept(gateway) } else { None }
    }

    fn next_accept(&self, gateway: &Gateway) -> Option<Moment> {
        let can_accept = |listener: &Listener| match listener.kind {
            ListenerKind::Clients | ListenerKind::TlsClients => gateway.can_admit(),
            ListenerKind::Admins => gateway.can_admit_admin(),
            ListenerKind::Inbox => gateway.can_admit_worker(),
        };
        if !self.listeners.iter().any(|listener| listener.is_ready && can_accept(listener)) {
            return None;
        }
        Some(self.pauses.until.unwrap_or(Moment::START))
    }

    /// Stops listening for clients. Workers may still publish results that clients wait for, and
    /// operators may watch.
    pub fn close(&mut self) {
        self.listeners.retain(|listener| !listener.kind.is_for_clients());
        self.is_closed = true;
    }

    /// Whether clients are listened for no longer.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }
}

impl Pauses {
    /// Returns whether the gateway has room for one more. Reports when clients have to wait.
    fn check_room(&mut self, kind: ListenerKind, gateway: &mut Gateway) -> bool {
        match kind {
            ListenerKind::Admins => gateway.can_admit_admin(),
            ListenerKind::Inbox => gateway.can_admit_worker(),
            ListenerKind::Clients | ListenerKind::TlsClients => {
                let was_full = std::mem::replace(&mut self.is_full, !gateway.can_admit());
                if self.is_full && !was_full {
                    gateway.stats().accept_pauses += 1;
                    warn!(target: "gateway", "accepting pauses why=\"too many connections\"");
                }
                !self.is_full
            }
        }
    }

    fn begin(&mut self, why: &str, gateway: &mut Gateway, now: Moment) {
        if self.until.is_none() {
            gateway.stats().accept_pauses += 1;
            warn!(target: "gateway", "accepting pauses why={}", Quoted(why));
        }
        self.until = Some(now + DESCRIPTOR_PAUSE);
    }
}

/// Hands an accepted connection to the gateway.
fn enter(
    accepted: Accepted,
    kind: ListenerKind,
    supply: Supply,
    gateway: &mut Gateway,
    registry: &Registry,
) {
    let source = Source::Session(gateway.next_key(), Side::Downstream);
    let client = accepted.peer();
    match accepted.register(source, registry) {
        Ok(socket) if kind == ListenerKind::Inbox => gateway.admit_worker(socket, client),
        Ok(socket) if kind == ListenerKind::Admins => gateway.admit_admin(socket, client),
        Ok(socket) if supply == Supply::Low => match kind {
            ListenerKind::TlsClients => gateway.refuse_tls(socket, client, Refusal::Descriptors),
            _ => gateway.refuse(socket, client, Refusal::Descriptors),
        },
        Ok(socket) if kind == ListenerKind::TlsClients => gateway.admit_tls(socket, client),
        Ok(socket) => gateway.admit(socket, client),
        Err(error) => warn!(target: "gateway", "cannot register {client}: {error}"),
    }
}

/// Whether the connection at the head of the queue failed, and nothing else: the client is gone
/// already, or the kernel passes a network error on (`accept(2)`, "Error handling").
fn concerns_one_client(error: &io::Error) -> bool {
    let codes = [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::PERM,
        Errno::NETDOWN,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
        Errno::TIMEDOUT,
    ];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_connect_are_probed_by_tcp() {
        let poll = mio::Poll::new().unwrap();
        for passes_socket in [false, true] {
            for kind in [ListenerKind::Clients, ListenerKind::Inbox] {
                let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let address = at.local_addr().unwrap();
                let passed = match passes_socket {
                    true => PassedSockets::of(at),
                    false => {
                        drop(at);
                        PassedSockets::default()
                    }
                };
                let place = [(kind, ListenOn::Tcp(address))];
                let descriptors = Descriptors::raise_limit();
                let listeners =
                    Listeners::open(place.into_iter(), passed, false, descriptors, poll.registry())
                        .unwrap();
                let _worker = std::net::TcpStream::connect(address).unwrap();
                let Ok(Accepted::Tcp(stream, _)) = listeners.listeners[0].socket.accept() else {
                    panic!("a connection was made")
                };
                let socket = socket2::SockRef::from(&stream);
                assert_eq!(socket.keepalive().unwrap(), kind == ListenerKind::Inbox, "{kind:?}");
                if kind == ListenerKind::Inbox {
                    // One that vanished is noticed within two minutes.
                    let probes = socket.tcp_keepalive_interval().unwrap()
                        * socket.tcp_keepalive_retries().unwrap();
                    let noticed_after = socket.tcp_keepalive_time().unwrap() + probes;
                    assert_eq!(noticed_after, Duration::from_secs(120));
                }
            }
        }
    }

    #[test]
    fn only_errors_of_one_client_are_skipped() {
        let concerns = |errno: Errno| concerns_one_client(&errno.into());
        assert!(concerns(Errno::CONNABORTED) && concerns(Errno::PROTO));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::BADF] {
            assert!(!concerns(errno), "{errno}");
        }
    }
}
