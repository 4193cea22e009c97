//! The sockets of the two Redis connections: dialed, read, written and closed as [`Link`] asks.
//!
//! `Link` knows the protocol and the deadlines; this file knows sockets. Once a turn:
//!
//! 1. [`RedisSockets::read`], if a socket had an event: reads, with a limit per connection, and
//!    hands the bytes to the link.
//! 2. The gateway delivers what was published.
//! 3. [`RedisSockets::flush`]: opens and closes connections, then sends what the link wants to
//!    send. This comes after the deliveries, because a client waits for its result and nobody waits
//!    for it to be stored.
//!
//! A server's name is looked up by the background threads, and its addresses are tried one after
//! the other.

use crate::net::{Conn, Io, PeerAddress, Ready, Source};
use crate::service::link::{Action, Address, REDIS_ROLES, RedisRole};
use crate::service::name::Name;
use crate::session::Context;
use crate::session::jobs::{Job, NameOwner};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Reads per connection and turn, so that a flood of publications does not starve the relays.
const READS_PER_TURN: usize = 8;

/// The sockets of both connections.
pub(super) struct RedisSockets {
    sockets: [Socket; 2],
    /// [`RedisSockets::read`] has something to do: an event came, or the last turn left bytes
    /// unread.
    has_news: bool,
}

#[derive(Default)]
enum Socket {
    #[default]
    Closed,
    /// The server's name is being looked up.
    LookingUp,
    /// `later`: the addresses to try if this one fails.
    Dialing {
        conn: Conn,
        later: VecDeque<PeerAddress>,
    },
    Open {
        conn: Conn,
    },
}

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
        if let Socket::Dialing { conn, .. } | Socket::Open { conn } =
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
        found: Result<Vec<SocketAddr>, String>,
        cx: &mut Context,
    ) {
        if !matches!(self.sockets[role as usize], Socket::LookingUp) {
            return; // The link gave up waiting and closed the connection.
        }
        self.has_news = true;
        match found {
            Ok(found) => {
                let addresses = found.into_iter().map(PeerAddress::Tcp).collect();
                self.dial(role, addresses, "its name has no address", cx);
            }
            Err(why) => self.fail(role, &format!("its name was not found: {why}"), cx),
        }
    }

    /// Reads what has come, if anything has.
    pub fn read(&mut self, cx: &mut Context) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        self.follow_actions(cx);
        for role in REDIS_ROLES {
            if self.is_open(role, cx) {
                self.has_news |= self.read_role(role, cx);
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
                Action::Close { role } => self.sockets[role as usize] = Socket::Closed,
                Action::Dial { role, address: Address::Unix(path) } => {
                    self.dial(role, [PeerAddress::Unix(path)].into(), "no address", cx);
                }
                Action::Dial { role, address: Address::Tcp { host, port } } => {
                    let name = Name { host, port };
                    match name.known_addresses() {
                        Some(known) => {
                            let addresses = known.into_iter().map(PeerAddress::Tcp).collect();
                            self.dial(role, addresses, "no address", cx);
                        }
                        None => {
                            self.sockets[role as usize] = Socket::LookingUp;
                            cx.jobs.push_back(Job::LookUp { name, owner: NameOwner::Redis(role) });
                        }
                    }
                }
            }
        }
    }

    /// Begins to connect to the first of `addresses` that the kernel accepts; `otherwise` is the
    /// failure if there is none.
    fn dial(
        &mut self,
        role: RedisRole,
        mut addresses: VecDeque<PeerAddress>,
        otherwise: &str,
        cx: &mut Context,
    ) {
        let mut why = otherwise.to_owned();
        while let Some(address) = addresses.pop_front() {
            match cx.network.connect(&address, Source::Link(role as usize)) {
                Ok(socket) => {
                    // The outcome comes with the first event.
                    let conn = Conn::connecting(socket);
                    self.sockets[role as usize] = Socket::Dialing { conn, later: addresses };
                    return;
                }
                Err(error) => why = error.to_string(),
            }
        }
        self.fail(role, &why, cx);
    }

    fn fail(&mut self, role: RedisRole, why: &str, cx: &mut Context) {
        self.sockets[role as usize] = Socket::Closed;
        let now = cx.now;
        if let Some(link) = cx.results.link() {
            link.handle_closed(role, why, now);
        }
    }

    /// Whether the connection is established. Finishes a dial whose outcome has come.
    fn is_open(&mut self, role: RedisRole, cx: &mut Context) -> bool {
        match std::mem::take(&mut self.sockets[role as usize]) {
            Socket::Dialing { mut conn, later } if conn.is_writable() => {
                if let Err(error) = conn.connect_outcome() {
                    self.dial(role, later, &error.to_string(), cx);
                    return false;
                }
                self.sockets[role as usize] = Socket::Open { conn };
                let now = cx.now;
                if let Some(link) = cx.results.link() {
                    link.handle_connected(role, now);
                }
                true
            }
            socket => {
                let is_open = matches!(socket, Socket::Open { .. });
                self.sockets[role as usize] = socket;
                is_open
            }
        }
    }

    fn write(&mut self, role: RedisRole, cx: &mut Context) {
        let Some(link) = cx.results.link() else { return };
        let outcome = loop {
            let Socket::Open { conn } = &mut self.sockets[role as usize] else { return };
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
    fn read_role(&mut self, role: RedisRole, cx: &mut Context) -> bool {
        for _ in 0..READS_PER_TURN {
            if cx.results.is_full() {
                return true; // Clients take their deliveries first.
            }
            let Socket::Open { conn } = &mut self.sockets[role as usize] else { return false };
            let outcome = cx.with_scratch(|scratch, cx| {
                let outcome = conn.read(scratch)?;
                if let (Io::Moved(n), Some(link)) = (outcome, cx.results.link()) {
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
