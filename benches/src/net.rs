//! Nonblocking sockets and epoll, thin over `rustix`: shared by the load generator and the floors.
//!
//! Deliberately without costly abstractions: a slow floor would flatter the gateway.

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::process::{Resource, Rlimit};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The listen backlog.
const LISTEN_BACKLOG: i32 = 4096;

/// Wanted descriptors: 10,000 pairs take 20,000 in the target and as many in the load generator.
const DESCRIPTORS_WANTED: u64 = 65_536;

/// What one nonblocking call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Moved(usize),
    Blocked,
    Ended,
}

/// Where a backend is: `127.0.0.1:8001` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Endpoint, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Endpoint::Unix(path.into())),
            None => text.parse().map(Endpoint::Tcp),
        }
    }
}

/// An epoll set and space for its events.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    /// `events_max`: how many events one wait reports at most.
    pub fn new(events_max: usize) -> io::Result<Poll> {
        Ok(Poll {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(events_max),
        })
    }

    pub fn add(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    pub fn modify(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    /// Waits for events, without a timeout until there is one; returns their number for `event`.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(count) => Ok(count),
            Err(Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Token and flags of one of the events that `wait` counted.
    pub fn event(&self, index: usize) -> (u64, EventFlags) {
        let event = self.events[index];
        (event.data.u64(), event.flags)
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Listens on an address of IPv4, nonblocking, with `TCP_NODELAY` for those it will accept.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = socket(AddressFamily::INET)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, LISTEN_BACKLOG)?;
    Ok(TcpListener::from(fd))
}

/// Listens on a Unix socket, nonblocking.
pub fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::UNIX)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&fd, LISTEN_BACKLOG)?;
    Ok(fd)
}

/// The next waiting connection, nonblocking; `None` when there is none.
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Begins to connect; the first `send` that is not `Blocked` says how it went.
pub fn dial(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(AddressFamily::INET)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    match rustix::net::connect(&fd, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// The same, to a backend.
pub fn dial_backend(backend: &Endpoint) -> io::Result<OwnedFd> {
    match backend {
        Endpoint::Tcp(address) => dial(*address),
        Endpoint::Unix(path) => {
            let fd = socket(AddressFamily::UNIX)?;
            rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
            Ok(fd)
        }
    }
}

pub fn recv(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Io> {
    match rustix::net::recv(fd, buffer, RecvFlags::empty()) {
        Ok((0, _)) => Ok(Io::Ended),
        Ok((count, _)) => Ok(Io::Moved(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Io::Blocked),
        Err(error) => Err(error.into()),
    }
}

/// Never `Ended`. `Blocked` while the connection is being established.
pub fn send(fd: impl AsFd, bytes: &[u8]) -> io::Result<Io> {
    match rustix::net::send(fd, bytes, SendFlags::NOSIGNAL) {
        Ok(count) => Ok(Io::Moved(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Io::Blocked),
        Err(error) => Err(error.into()),
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Raises the limit of open descriptors as far as allowed; returns the new limit.
pub fn raise_descriptor_limit() -> u64 {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(DESCRIPTORS_WANTED);
    for limit in [hard.max(DESCRIPTORS_WANTED), hard] {
        let wanted = Rlimit { current: Some(limit), maximum: Some(limit) };
        if rustix::process::setrlimit(Resource::Nofile, wanted).is_ok() {
            return limit;
        }
    }
    now.current.unwrap_or(hard)
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}
