//! The sockets that the link to Redis commands: dialed, written, read, closed as it says.
//!
//! The link knows the protocol and the time; here is only the kernel's side of it. A name is looked up by the resolver's
//! thread like any other, and its addresses are tried in turn.

use super::resolver::{Resolver, Subject};
use crate::base::moment::Moment;
use crate::net::{self, Conn, Io, Ready, Source, tcp};
use crate::service::link::{Action, Address, Link, REDIS_ROLES, RedisRole};
use crate::service::results::Results;
use mio::Registry;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

/// Reads from Redis in one turn: a flood on the channels must not starve the relays.
const READS_PER_TURN: usize = 8;

/// One read.
const READ_BYTES: usize = 64 * 1024;

/// Both lines' sockets.
#[derive(Default)]
pub struct RedisSockets {
    sockets: [Socket; 2],
    scratch: Vec<u8>,
}

#[derive(Default)]
enum Socket {
    #[default]
    Closed,
    /// The name is being looked up.
    Looking,
    /// `later`: addresses to try if this one does not answer.
    Dialing {
        conn: Conn,
        later: VecDeque<SocketAddr>,
    },
    Open {
        conn: Conn,
    },
}

impl RedisSockets {
    pub fn handle_ready(&mut self, role: RedisRole, ready: Ready) {
        if let Socket::Dialing { conn, .. } | Socket::Open { conn } =
            &mut self.sockets[role as usize]
        {
            conn.handle_ready(ready);
        }
    }

    /// The addresses of the server's name.
    pub fn handle_addresses(
        &mut self,
        role: RedisRole,
        found: Result<Vec<SocketAddr>, String>,
        link: &mut Link,
        registry: &Registry,
        now: Moment,
    ) {
        if !matches!(self.sockets[role as usize], Socket::Looking) {
            return;
        }
        match found {
            Ok(addresses) => {
                self.dial(role, addresses.into(), "its name has no address", link, registry, now)
            }
            Err(why) => self.lose(role, &format!("its name was not found: {why}"), link, now),
        }
    }

    /// Does what the link wants, and reads what has come. True: there is more to read, in the next turn.
    pub fn turn(
        &mut self,
        results: &mut Results<u32>,
        resolver: &mut Resolver,
        registry: &Registry,
        now: Moment,
    ) -> io::Result<bool> {
        let mut more = false;
        self.obey(results, resolver, registry, now)?;
        for role in REDIS_ROLES {
            more |= self.serve(role, results, registry, now);
        }
        results.settle(now);
        self.obey(results, resolver, registry, now)?;
        Ok(more)
    }

    /// Sends what the link has to say: after the turn's deliveries, because keeping a result can wait and a client should not. And
    /// does what it has come to want meanwhile: nothing else would end the wait before that.
    pub fn flush(
        &mut self,
        results: &mut Results<u32>,
        resolver: &mut Resolver,
        registry: &Registry,
        now: Moment,
    ) -> io::Result<()> {
        self.obey(results, resolver, registry, now)?;
        for role in REDIS_ROLES {
            if let Some(link) = results.link() {
                self.write(role, link, now);
            }
        }
        Ok(())
    }

    fn obey(
        &mut self,
        results: &mut Results<u32>,
        resolver: &mut Resolver,
        registry: &Registry,
        now: Moment,
    ) -> io::Result<()> {
        let Some(link) = results.link() else { return Ok(()) };
        while let Some(action) = link.poll_action() {
            match action {
                Action::Close { role } => self.sockets[role as usize] = Socket::Closed,
                Action::Dial { role, address: Address::Unix(path) } => {
                    match tcp::connect_unix(&path, Source::Link(role as usize), registry) {
                        Ok(socket) => self.begin(role, socket, VecDeque::new()),
                        Err(error) => self.lose(role, &error.to_string(), link, now),
                    }
                }
                Action::Dial { role, address: Address::Tcp { host, port } } => match host.parse() {
                    Ok(ip) => self.dial(
                        role,
                        [SocketAddr::new(ip, port)].into(),
                        "no address",
                        link,
                        registry,
                        now,
                    ),
                    Err(_) => {
                        self.sockets[role as usize] = Socket::Looking;
                        resolver.ask(Subject::Redis(role), host, port)?;
                    }
                },
            }
        }
        Ok(())
    }

    /// Begins to connect to the first of `addresses` that the kernel accepts.
    fn dial(
        &mut self,
        role: RedisRole,
        mut addresses: VecDeque<SocketAddr>,
        otherwise: &str,
        link: &mut Link,
        registry: &Registry,
        now: Moment,
    ) {
        let mut why = otherwise.to_owned();
        while let Some(address) = addresses.pop_front() {
            match tcp::connect(address, Source::Link(role as usize), registry) {
                Ok(socket) => return self.begin(role, socket, addresses),
                Err(error) => why = error.to_string(),
            }
        }
        self.lose(role, &why, link, now);
    }

    fn begin(&mut self, role: RedisRole, socket: net::Socket, later: VecDeque<SocketAddr>) {
        // Whether it stands is told by the first event.
        self.sockets[role as usize] = Socket::Dialing { conn: Conn::connecting(socket), later };
    }

    fn lose(&mut self, role: RedisRole, why: &str, link: &mut Link, now: Moment) {
        self.sockets[role as usize] = Socket::Closed;
        link.handle_closed(role, why, now);
    }

    fn serve(
        &mut self,
        role: RedisRole,
        results: &mut Results<u32>,
        registry: &Registry,
        now: Moment,
    ) -> bool {
        let Some(link) = results.link() else { return false };
        if let Socket::Dialing { conn, later } = &mut self.sockets[role as usize] {
            if !conn.is_writable() {
                return false;
            }
            if let Err(error) = conn.connect_outcome() {
                let later = std::mem::take(later);
                self.dial(role, later, &error.to_string(), link, registry, now);
                return false;
            }
            if let Socket::Dialing { conn, .. } = std::mem::take(&mut self.sockets[role as usize]) {
                self.sockets[role as usize] = Socket::Open { conn };
            }
            link.handle_connected(role, now);
        }
        self.read(role, results, now)
    }

    fn write(&mut self, role: RedisRole, link: &mut Link, now: Moment) {
        loop {
            let Socket::Open { conn } = &mut self.sockets[role as usize] else { return };
            let bytes = link.poll_output(role, now);
            if bytes.is_empty() {
                return;
            }
            match conn.write(bytes) {
                Ok(Io::Moved(n)) => link.handle_written(role, n),
                Ok(_) => return,
                Err(error) => return self.lose(role, &error.to_string(), link, now),
            }
        }
    }

    fn read(&mut self, role: RedisRole, results: &mut Results<u32>, now: Moment) -> bool {
        self.scratch.resize(READ_BYTES, 0);
        for _ in 0..READS_PER_TURN {
            if results.is_full() {
                return true; // deliveries go first
            }
            let Some(link) = results.link() else { return false };
            let Socket::Open { conn } = &mut self.sockets[role as usize] else { return false };
            match conn.read(&mut self.scratch) {
                Ok(Io::Moved(n)) => link.handle_bytes(role, &self.scratch[..n], now),
                Ok(Io::Blocked) => return false,
                Ok(Io::Ended) => {
                    self.lose(role, "it closed the connection", link, now);
                    return false;
                }
                Err(error) => {
                    self.lose(role, &error.to_string(), link, now);
                    return false;
                }
            }
            results.settle(now);
        }
        true
    }
}
