//! The sockets of the two Redis connections: dialed, read, written and closed as
//! [`Link`](crate::service::link::Link) asks.
//!
//! `Link` knows the protocol and the deadlines; this file knows sockets. Once a turn:
//!
//! 1. [`RedisSockets::read`], if a socket had an event: reads, with a limit per connection, and
//!    hands the bytes to the link.
//! 2. The gateway delivers what was published.
//! 3. [`RedisSockets::flush`]: opens and closes connections, then sends what the link wants to
//!    send. This comes after the deliveries, because a client waits for its result, and nothing
//!    waits for it to be stored.
//!
//! A server's name is looked up by the background threads, and its addresses are tried one after
//! the other.

#![expect(clippy::indexing_slicing, reason = "keys come from the slab, roles index a pair")]

use crate::net::{Conn, Io, PeerAddress, Ready, Source, tls};
use crate::service::attempt::{AttemptError, AttemptFault};
use crate::service::link::{Address, LinkAction, REDIS_ROLES, RedisRole};
use crate::service::name::{LookUpError, Name};
use crate::session::Context;
use crate::session::jobs::{Job, NameOwner};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Reads per connection and turn, so that a flood of publications does not starve the relays.
const READS_PER_TURN: usize = 8;

/// Bytes of one read, which may hold some hundred publications.
const READ_BYTES_MAX: usize = 16 * 1024;

/// Work that a byte from Redis causes, in bytes written: see [`Context::work`].
const WORK_PER_BYTE: usize = 32;

/// The sockets of both connections.
pub(super) struct RedisSockets {
    sockets: [RedisSocket; 2],
    /// [`RedisSockets::read`] has something to do: an event came, or the last turn left bytes
    /// unread.
    has_news: bool,
}

#[derive(Default)]
enum RedisSocket {
    #[default]
    Closed,
    /// The server's name is being looked up.
    LookingUp {
        has_tls: Option<TlsName>,
    },
    /// TCP, then TLS if there is any. `later`: the addresses to try if this one fails.
    Dialing {
        conn: Conn,
        later: VecDeque<PeerAddress>,
        has_tls: Option<TlsName>,
    },
    Open {
        conn: Conn,
    },
}

/// The name that the server's certificate must be for, where TLS is spoken.
type TlsName = Box<str>;

impl RedisSockets {
    /// Without a connection. The first turn is due at once: it dials.
    pub fn new() -> RedisSockets {
        RedisSockets { sockets: Default::default(), has_news: true }
    }

    /// Whether a turn is due even without an event.
    pub fn has_news(&self) -> bool {
        self.has_news
    }

    /// An event of one connection.
    pub fn handle_ready(&mut self, role: RedisRole, ready: Ready) {
        if let RedisSocket::Dialing { conn, .. } | RedisSocket::Open { conn } =
            &mut self.sockets[role as usize]
        {
            conn.handle_ready(ready);
            self.has_news = true;
        }
    }

    /// The addresses of the server's name, or why there are none.
    pub fn handle_addresses(
        &mut self,
        role: RedisRole,
        found: Result<Vec<SocketAddr>, LookUpError>,
        cx: &mut Context,
    ) {
        let RedisSocket::LookingUp { has_tls } = &mut self.sockets[role as usize] else {
            return; // The link gave up waiting and closed the connection.
        };
        let has_tls = has_tls.take();
        self.has_news = true;
        match found {
            Ok(found) => {
                let addresses = found.into_iter().map(PeerAddress::Tcp).collect();
                self.dial(role, addresses, has_tls, "its name has no address", cx);
            }
            Err(LookUpError::NotFound(why)) => {
                self.fail(role, &format!("its name was not found: {why}"), cx);
            }
            Err(error @ LookUpError::Shortage { .. }) => {
                self.note_shortage(role, &error.to_string(), cx);
            }
        }
    }

    /// Reads what has come, if anything has, until the turn has done `work_max`; at least once.
    pub fn read(&mut self, cx: &mut Context, work_max: usize) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        self.follow_actions(cx);
        for role in REDIS_ROLES {
            if self.ensure_open(role, cx) {
                self.has_news |= self.read_role(role, cx, work_max);
            }
        }
        cx.results.settle(cx.now);
    }

    /// Opens and closes connections as the link wants, and sends what it has to say.
    pub fn flush(&mut self, cx: &mut Context) {
        self.follow_actions(cx);
        for role in REDIS_ROLES {
            self.write(role, cx);
        }
    }

    fn follow_actions(&mut self, cx: &mut Context) {
        while let Some(action) = cx.results.link().and_then(|link| link.poll_action()) {
            match action {
                LinkAction::Close { role } => self.sockets[role as usize] = RedisSocket::Closed,
                LinkAction::Dial { role, address: Address::Unix(path) } => {
                    self.dial(role, [PeerAddress::Unix(path)].into(), None, "no address", cx);
                }
                LinkAction::Dial { role, address: Address::Tcp { host, port } } => {
                    self.find(role, Name { host, port }, None, cx);
                }
                LinkAction::Dial { role, address: Address::Tls { host, port } } => {
                    let has_tls = Some(host.as_str().into());
                    self.find(role, Name { host, port }, has_tls, cx);
                }
            }
        }
    }

    /// Dials the addresses of `name`, once they are known.
    fn find(&mut self, role: RedisRole, name: Name, has_tls: Option<TlsName>, cx: &mut Context) {
        match name.known_addresses() {
            Some(known) => {
                let addresses = known.into_iter().map(PeerAddress::Tcp).collect();
                self.dial(role, addresses, has_tls, "no address", cx);
            }
            None => {
                self.sockets[role as usize] = RedisSocket::LookingUp { has_tls };
                cx.jobs.push_back(Job::LookUp { name, owner: NameOwner::Redis(role) });
            }
        }
    }

    /// Begins to connect to the first of `addresses` that the kernel accepts; `otherwise` is the
    /// failure if there is none.
    fn dial(
        &mut self,
        role: RedisRole,
        mut addresses: VecDeque<PeerAddress>,
        has_tls: Option<TlsName>,
        otherwise: &str,
        cx: &mut Context,
    ) {
        let mut why = otherwise.to_owned();
        while let Some(address) = addresses.pop_front() {
            let connected = cx.network.connect(&address, Source::Link(role as usize));
            let connected = connected.and_then(|socket| match &has_tls {
                None => Ok(socket),
                Some(name) => cx.tls.dial_redis(socket, name),
            });
            match connected {
                Ok(socket) => {
                    // The outcome comes with the first event.
                    let (conn, later) = (Conn::connecting(socket), addresses);
                    self.sockets[role as usize] = RedisSocket::Dialing { conn, later, has_tls };
                    return;
                }
                Err(error)
                    if AttemptError::of_connecting(&error).fault() == AttemptFault::Local =>
                {
                    return self.note_shortage(role, &error.to_string(), cx);
                }
                Err(error) => why = error.to_string(),
            }
        }
        self.fail(role, &why, cx);
    }

    /// This machine lacks what a connection needs.
    fn note_shortage(&mut self, role: RedisRole, why: &str, cx: &mut Context) {
        self.sockets[role as usize] = RedisSocket::Closed;
        let now = cx.now;
        if let Some(link) = cx.results.link() {
            link.handle_shortage(role, why, now);
        }
    }

    fn fail(&mut self, role: RedisRole, why: &str, cx: &mut Context) {
        self.sockets[role as usize] = RedisSocket::Closed;
        let now = cx.now;
        if let Some(link) = cx.results.link() {
            link.handle_closed(role, why, now);
        }
    }

    /// Finishes a dial whose outcome has come. Returns whether the connection is established.
    fn ensure_open(&mut self, role: RedisRole, cx: &mut Context) -> bool {
        match std::mem::take(&mut self.sockets[role as usize]) {
            RedisSocket::Dialing { mut conn, later, has_tls } if conn.is_writable() => {
                match conn.connect_outcome().and_then(|()| conn.handshake()) {
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        self.sockets[role as usize] = RedisSocket::Dialing { conn, later, has_tls };
                        return false;
                    }
                    Err(error) => {
                        let why = match tls::is_untrusted(&error) {
                            true => format!("its certificate is not accepted: {error}"),
                            false => error.to_string(),
                        };
                        self.dial(role, later, has_tls, &why, cx);
                        return false;
                    }
                }
                self.sockets[role as usize] = RedisSocket::Open { conn };
                let now = cx.now;
                if let Some(link) = cx.results.link() {
                    link.handle_connected(role, now);
                }
                true
            }
            socket => {
                let is_open = matches!(socket, RedisSocket::Open { .. });
                self.sockets[role as usize] = socket;
                is_open
            }
        }
    }

    fn write(&mut self, role: RedisRole, cx: &mut Context) {
        let Some(link) = cx.results.link() else { return };
        let outcome = loop {
            let RedisSocket::Open { conn } = &mut self.sockets[role as usize] else { return };
            let bytes = link.poll_output(role, cx.now);
            if bytes.is_empty() {
                return;
            }
            match conn.write(bytes) {
                Ok(Io::Moved(n)) => link.handle_written(role, n),
                Ok(_) => return,
                Err(error) => break error,
            }
        };
        self.fail(role, &outcome.to_string(), cx);
    }

    /// True: there may be more to read, in the next turn.
    fn read_role(&mut self, role: RedisRole, cx: &mut Context, work_max: usize) -> bool {
        for reads in 0..READS_PER_TURN {
            if cx.results.is_full() || (reads > 0 && cx.work >= work_max) {
                return true; // Clients take their deliveries first.
            }
            let RedisSocket::Open { conn } = &mut self.sockets[role as usize] else { return false };
            let outcome = cx.with_scratch(|scratch, cx| {
                let outcome = conn.read(&mut scratch[..READ_BYTES_MAX])?;
                if let (Io::Moved(n), Some(link)) = (outcome, cx.results.link()) {
                    cx.work += WORK_PER_BYTE * n;
                    link.handle_bytes(role, &scratch[..n], cx.now);
                }
                std::io::Result::Ok(outcome)
            });
            match outcome {
                Ok(Io::Moved(_)) => cx.results.settle(cx.now),
                Ok(Io::Blocked) => return false,
                Ok(Io::Ended) => {
                    self.fail(role, "it closed the connection", cx);
                    return false;
                }
                Err(error) => {
                    self.fail(role, &error.to_string(), cx);
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "the test looks at what was dialed")]
mod tests {
    use super::*;
    use crate::base::moment::Moment;
    use crate::net::{Network, Socket, Transport};
    use crate::service::limits::{self, Limits};
    use crate::service::link::{self, Link};
    use crate::service::results::Results;
    use crate::service::tasks::{self, Tasks};
    use crate::session;
    use std::cell::RefCell;
    use std::io::{self, ErrorKind, Read, Write};
    use std::rc::Rc;

    /// Connections that fail as the test says, and a list of what was dialed.
    #[derive(Clone, Default)]
    struct Dials(Rc<RefCell<Vec<String>>>);

    /// A connection attempt that succeeds or fails, as the test says.
    struct Scripted {
        fails: bool,
    }

    impl Network for Dials {
        fn connect(&mut self, to: &PeerAddress, _: Source) -> io::Result<Socket> {
            let (text, fails) = match to {
                PeerAddress::Tcp(to) if to.port() == 1 => (to.to_string(), true),
                PeerAddress::Tcp(to) => (to.to_string(), false),
                PeerAddress::Unix(path) => (path.display().to_string(), false),
            };
            self.0.borrow_mut().push(text);
            if matches!(to, PeerAddress::Tcp(to) if to.port() == 2) {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            Ok(Socket::Other(Box::new(Scripted { fails })))
        }
    }

    impl Read for Scripted {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for Scripted {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn connect_outcome(&mut self) -> io::Result<()> {
            if self.fails { Err(ErrorKind::ConnectionRefused.into()) } else { Ok(()) }
        }
    }

    fn begin(url: &str) -> (RedisSockets, Context, Dials) {
        let settings = link::Settings { urls: vec![url.into()], ..Default::default() };
        let link = Link::new(&settings, tasks::Settings::default(), Moment::START, 1).unwrap();
        let results = Results::new(Tasks::new(tasks::Settings::default()), Some(link));
        let limits = Limits::new(limits::Settings {
            max_connections: 1,
            max_connections_per_ip: 0,
            allowed_origins: Vec::new(),
        });
        let dials = Dials::default();
        let cx = Context::new(
            Moment::START,
            session::Settings::default(),
            Box::new(dials.clone()),
            limits,
            results,
            fastrand::Rng::with_seed(1),
        );
        (RedisSockets::new(), cx, dials)
    }

    /// The names that have to be looked up.
    fn jobs(cx: &mut Context) -> Vec<(String, NameOwner)> {
        let asked = |job| match job {
            Job::LookUp { name, owner } => Some((name.host, owner)),
            Job::File(_) => None,
        };
        std::mem::take(&mut cx.jobs).into_iter().filter_map(asked).collect()
    }

    const WRITABLE: Ready = Ready { readable: false, writable: true, read_closed: false };

    #[test]
    fn the_addresses_of_a_name_are_tried_in_turn() {
        let (mut sockets, mut cx, dials) = begin("redis://redis.example:7");
        sockets.read(&mut cx, usize::MAX);
        let owners = [RedisRole::Subscriber, RedisRole::Store].map(NameOwner::Redis);
        assert_eq!(jobs(&mut cx), owners.map(|owner| ("redis.example".to_owned(), owner)));
        let found = ["192.0.2.1:1", "192.0.2.2:7"].map(|address| address.parse().unwrap());
        sockets.handle_addresses(RedisRole::Store, Ok(found.to_vec()), &mut cx);
        assert!(sockets.has_news());
        assert_eq!(*dials.0.borrow(), ["192.0.2.1:1"]);
        sockets.handle_ready(RedisRole::Store, WRITABLE);
        sockets.read(&mut cx, usize::MAX);
        assert_eq!(*dials.0.borrow(), ["192.0.2.1:1", "192.0.2.2:7"]);
        assert!(matches!(sockets.sockets[1], RedisSocket::Dialing { .. }));
        sockets.handle_ready(RedisRole::Store, WRITABLE);
        sockets.read(&mut cx, usize::MAX);
        assert!(matches!(sockets.sockets[1], RedisSocket::Open { .. }));
    }

    #[test]
    fn a_shortage_of_this_machine_is_not_tried_on_the_next_address_or_server() {
        let (mut sockets, mut cx, dials) = begin("redis://192.0.2.1:2");
        let settings = link::Settings {
            urls: vec!["redis://redis.example:2".into(), "redis://192.0.2.9:7".into()],
            ..Default::default()
        };
        let link = Link::new(&settings, tasks::Settings::default(), cx.now, 1).unwrap();
        cx.results.begin_link(link);
        let found = ["192.0.2.1:2", "192.0.2.2:7"].map(|address| address.parse().unwrap());
        for _ in 0..3 {
            sockets.read(&mut cx, usize::MAX);
            sockets.flush(&mut cx);
            jobs(&mut cx);
            for role in REDIS_ROLES {
                sockets.handle_addresses(role, Ok(found.to_vec()), &mut cx);
            }
            cx.now = cx.results.deadline().unwrap();
            cx.results.settle(cx.now);
        }
        let dials = dials.0.borrow();
        assert!(dials.len() >= 4 && dials.iter().all(|at| at == "192.0.2.1:2"), "{dials:?}");
        let (state, _) = cx.results.redis_state().unwrap();
        assert!(state.why().is_some_and(|why| why.contains("Too many open files")), "{state:?}");
    }

    #[test]
    fn a_name_that_is_not_found_is_asked_for_again_after_a_pause() {
        let (mut sockets, mut cx, dials) = begin("redis://redis.example:7");
        sockets.read(&mut cx, usize::MAX);
        jobs(&mut cx);
        sockets.handle_addresses(
            RedisRole::Store,
            Err(LookUpError::NotFound("no such name".into())),
            &mut cx,
        );
        sockets.flush(&mut cx);
        assert_eq!(jobs(&mut cx), []);
        let retry_at = cx.results.deadline().unwrap();
        assert!(retry_at > cx.now);
        cx.now = retry_at;
        cx.results.settle(cx.now);
        sockets.flush(&mut cx);
        assert_eq!(
            jobs(&mut cx),
            [("redis.example".to_owned(), NameOwner::Redis(RedisRole::Store))]
        );
        assert!(dials.0.borrow().is_empty());
    }

    #[test]
    fn an_answer_that_comes_after_the_dial_was_given_up_is_ignored() {
        let (mut sockets, mut cx, dials) = begin("redis://redis.example:7");
        sockets.read(&mut cx, usize::MAX);
        sockets.sockets[1] = RedisSocket::Closed;
        let found = vec!["192.0.2.1:7".parse().unwrap()];
        sockets.handle_addresses(RedisRole::Store, Ok(found), &mut cx);
        assert!(dials.0.borrow().is_empty());
    }

    #[test]
    fn localhost_and_unix_sockets_are_dialed_without_a_look_up() {
        for (url, address) in [
            ("redis://localhost:7", "[::1]:7"),
            ("redis://192.0.2.1:7", "192.0.2.1:7"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
        ] {
            let (mut sockets, mut cx, dials) = begin(url);
            sockets.read(&mut cx, usize::MAX);
            assert_eq!(jobs(&mut cx), []);
            assert_eq!(*dials.0.borrow(), [address, address]);
        }
    }
}
