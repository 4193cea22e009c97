//! One gateway process of the simulated world: the gateway, its sockets to Redis, and its loop.
//!
//! A turn does what the reactor's does, in the same order, and [`Sockets`] plays the part of the reactor's own.

use crate::kernel::{Dialer, Kernel, LinkId, Near, Shared};
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::net::{Conn, Io, Network, Ready, Side, Source};
use aivtuber_gateway::service::link::{Action, Address, Link, REDIS_ROLES, RedisRole};
use aivtuber_gateway::service::results::Results;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

/// Reads from Redis in one turn.
const READS_PER_TURN: usize = 8;

/// Somebody who wants to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    Client(LinkId),
    Worker(LinkId),
}

pub struct House {
    pub gateway: Gateway,
    pub sockets: Sockets,
    kernel: Shared,
    pub knocks: VecDeque<Knock>,
    pub is_drained: bool,
    wants_drain: bool,
    has_more: bool,
    idle_in_a_row: u32,
    idle_in_second: u32,
    second: u64,
    turned_at: Moment,
}

/// The two connections to Redis.
#[derive(Default)]
pub struct Sockets {
    sockets: [Socket; 2],
    /// The latest link of each role, whatever became of it.
    pub links: [Option<LinkId>; 2],
    scratch: Vec<u8>,
}

#[derive(Default)]
enum Socket {
    #[default]
    Closed,
    Dialing(Conn),
    Open(Conn),
}

impl House {
    pub fn new(kernel: &Shared, settings: gateway::Settings, seed: u64) -> House {
        let now = kernel.borrow().now;
        let network = Box::new(Dialer(Rc::clone(kernel)));
        let chance = fastrand::Rng::with_seed(seed);
        let gateway = Gateway::new(settings, network, chance, now, UNIX_EPOCH)
            .expect("its settings are good");
        let sockets = Sockets { scratch: vec![0; 64 * 1024], ..Sockets::default() };
        let mut house = House {
            gateway,
            sockets,
            kernel: Rc::clone(kernel),
            knocks: VecDeque::new(),
            is_drained: false,
            wants_drain: false,
            has_more: false,
            idle_in_a_row: 0,
            idle_in_second: 0,
            second: 0,
            turned_at: now,
        };
        house.has_more = house.sockets.turn(house.gateway.results(), kernel, now);
        house
    }

    pub fn drain(&mut self) {
        self.wants_drain = true;
    }

    /// A turn would begin now, were there no event.
    pub fn is_due(&self, now: Moment) -> bool {
        let can_enter = |knock: &Knock| match knock {
            Knock::Client(_) => self.gateway.can_admit() || self.is_drained,
            Knock::Worker(_) => self.gateway.can_admit_worker(),
        };
        self.has_more
            || self.wants_drain
            || self.knocks.front().is_some_and(can_enter)
            || self.gateway.next_turn().is_some_and(|at| at <= now)
    }

    /// One turn of the loop. Answers the links of those who were let in.
    pub fn turn(&mut self, events: Vec<(LinkId, Source, Ready)>) -> Result<Vec<LinkId>, String> {
        let (now, moves) = (self.kernel.borrow().now, self.kernel.borrow().moves);
        let is_told = !events.is_empty() || self.wants_drain;
        self.gateway.begin_turn(now);
        let mut has_redis_moved = self.has_more;
        for (_, source, ready) in events {
            self.kernel.borrow_mut().note(|| format!("event {source:?} {ready:?}"));
            match source {
                Source::Session(key, side) => self.gateway.ready(key, side, ready),
                Source::Link(role) => {
                    self.sockets.handle_ready(REDIS_ROLES[role], ready);
                    has_redis_moved = true;
                }
                _ => unreachable!("nothing else is registered"),
            }
        }
        let kernel = Rc::clone(&self.kernel);
        if has_redis_moved {
            self.has_more = self.sockets.turn(self.gateway.results(), &kernel, now);
        }
        self.gateway.settle();
        self.sockets.flush(self.gateway.results(), &kernel, now);
        let entered = self.accept();
        if std::mem::take(&mut self.wants_drain) {
            self.is_drained = true;
            self.gateway.drain();
            self.sockets.flush(self.gateway.results(), &kernel, now);
        }
        self.gateway.reap();
        let is_idle = !is_told && moves == self.kernel.borrow().moves;
        self.count_idle(is_idle)?;
        Ok(entered)
    }

    fn accept(&mut self) -> Vec<LinkId> {
        let mut entered = Vec::new();
        while let Some(&knock) = self.knocks.front() {
            let (Knock::Client(link) | Knock::Worker(link)) = knock;
            let is_worker = matches!(knock, Knock::Worker(_));
            if !is_worker && self.is_drained {
                self.kernel.borrow_mut().refuse(link);
            } else if is_worker && self.gateway.can_admit_worker()
                || !is_worker && self.gateway.can_admit()
            {
                let key = self.gateway.next_key();
                self.kernel.borrow_mut().note(|| format!("{knock:?} accepted slot={key}"));
                self.kernel.borrow_mut().register(link, Source::Session(key, Side::Downstream));
                let near = aivtuber_gateway::net::Socket::Other(Box::new(Near {
                    kernel: Rc::clone(&self.kernel),
                    link,
                }));
                let from = SocketAddr::from(([192, 0, 2, 1], 1000 + link as u16));
                match is_worker {
                    true => self.gateway.admit_worker(near, from),
                    false => self.gateway.admit(near, from),
                }
                entered.push(link);
            } else {
                break;
            }
            self.knocks.pop_front();
        }
        entered
    }

    fn count_idle(&mut self, is_idle: bool) -> Result<(), String> {
        let second = (self.kernel.borrow().now - self.kernel.borrow().start).as_secs();
        if std::mem::replace(&mut self.second, second) != second {
            self.idle_in_second = 0;
        }
        let now = self.kernel.borrow().now;
        let has_paused =
            now > std::mem::replace(&mut self.turned_at, now) + Duration::from_millis(1);
        if !is_idle || has_paused {
            self.idle_in_a_row = 0;
            return Ok(());
        }
        self.idle_in_a_row += 1;
        self.idle_in_second += 1;
        let count = 3 + self.gateway.session_count() as u32;
        if self.idle_in_a_row > 8 * count || self.idle_in_second > 50 * count {
            let next = self.gateway.next_turn().map(|at| at - self.kernel.borrow().now);
            return Err(format!(
                "it spins: {} turns did nothing, the next is due in {next:?}",
                self.idle_in_a_row
            ));
        }
        Ok(())
    }

    /// Nothing will happen before time passes: is anything left undone?
    pub fn check_quiet(&mut self) -> Result<(), String> {
        let now = self.kernel.borrow().now;
        let results = self.gateway.results();
        if results.poll_delivery().is_some() {
            return Err("a result is not handed out".into());
        }
        if results.poll_notice().is_some() {
            return Err("a notice is not told".into());
        }
        let Some(link) = results.link() else { return Ok(()) };
        if let Some(event) = link.poll_event() {
            return Err(format!("{event:?} is not taken in"));
        }
        if let Some(action) = link.poll_action() {
            return Err(format!("{action:?} is not done"));
        }
        for role in REDIS_ROLES {
            let waits = link.poll_output(role, now).len();
            if waits > 0
                && let (Socket::Open(_), Some(id)) =
                    (&self.sockets.sockets[role as usize], self.sockets.links[role as usize])
                && !self.kernel.borrow().is_full(id)
            {
                return Err(format!("{waits} bytes for Redis are not sent, and there is room"));
            }
        }
        Ok(())
    }
}

impl Sockets {
    fn handle_ready(&mut self, role: RedisRole, ready: Ready) {
        if let Socket::Dialing(conn) | Socket::Open(conn) = &mut self.sockets[role as usize] {
            conn.handle_ready(ready);
        }
    }

    /// True: there is more to read, in the next turn.
    fn turn(&mut self, results: &mut Results<u32>, kernel: &Shared, now: Moment) -> bool {
        self.obey(results, kernel, now);
        let mut more = false;
        for role in REDIS_ROLES {
            more |= self.serve(role, results, now);
        }
        results.settle(now);
        self.obey(results, kernel, now);
        more
    }

    fn flush(&mut self, results: &mut Results<u32>, kernel: &Shared, now: Moment) {
        self.obey(results, kernel, now);
        for role in REDIS_ROLES {
            if let Some(link) = results.link() {
                self.write(role, link, now);
            }
        }
    }

    fn obey(&mut self, results: &mut Results<u32>, kernel: &Shared, now: Moment) {
        let Some(link) = results.link() else { return };
        while let Some(action) = link.poll_action() {
            match action {
                Action::Close { role } => self.sockets[role as usize] = Socket::Closed,
                Action::Dial { role, address: Address::Tcp { host, port } } => {
                    let to = SocketAddr::new(host.parse().expect("an address"), port);
                    match Dialer(Rc::clone(kernel)).connect(to, Source::Link(role as usize)) {
                        Ok(transport) => {
                            self.links[role as usize] = Some(kernel.borrow().links.len() - 1);
                            self.sockets[role as usize] =
                                Socket::Dialing(Conn::connecting(transport));
                        }
                        Err(error) => self.lose(role, &error.to_string(), link, now),
                    }
                }
                Action::Dial { address: Address::Unix(_), .. } => {
                    unreachable!("no such address was given")
                }
            }
        }
    }

    fn lose(&mut self, role: RedisRole, why: &str, link: &mut Link, now: Moment) {
        self.sockets[role as usize] = Socket::Closed;
        link.handle_closed(role, why, now);
    }

    fn serve(&mut self, role: RedisRole, results: &mut Results<u32>, now: Moment) -> bool {
        let Some(link) = results.link() else { return false };
        if let Socket::Dialing(conn) = &mut self.sockets[role as usize] {
            if !conn.is_writable() {
                return false;
            }
            if let Err(error) = conn.connect_outcome() {
                self.lose(role, &error.to_string(), link, now);
                return false;
            }
            if let Socket::Dialing(conn) = std::mem::take(&mut self.sockets[role as usize]) {
                self.sockets[role as usize] = Socket::Open(conn);
            }
            link.handle_connected(role, now);
        }
        self.read(role, results, now)
    }

    fn write(&mut self, role: RedisRole, link: &mut Link, now: Moment) {
        loop {
            let Socket::Open(conn) = &mut self.sockets[role as usize] else { return };
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
        for _ in 0..READS_PER_TURN {
            if results.is_full() {
                return true;
            }
            let Some(link) = results.link() else { return false };
            let Socket::Open(conn) = &mut self.sockets[role as usize] else { return false };
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

/// Whether the gateway leaves anything lying in a socket of its own that it should have taken.
pub fn is_neglected(kernel: &Kernel, link: LinkId) -> bool {
    kernel.is_unread(link) && kernel.links[link].source != Source::Waker && !kernel.is_full(link)
}
