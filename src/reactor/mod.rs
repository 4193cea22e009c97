//! The poll loop: one thread, one `mio::Poll`, every socket registered once.
//!
//! A turn waits for events, reads the clock once, passes everything on to the [`Gateway`], accepts, reaps, and writes the
//! log. Nothing in it may block: names are looked up by a helper thread, and lines of the log go to a buffer until the end of
//! the turn.

mod alarm;
pub mod clock;
pub mod listeners;
mod redis;
mod resolver;
mod signals;

use crate::base::moment::Moment;
use crate::gateway::{self, Gateway};
use crate::net::tcp::TcpNetwork;
use crate::net::{self, Ready, Source};
use crate::service::link::REDIS_ROLES;
use alarm::Alarm;
use clock::Clock;
use listeners::{Door, Listeners};
use log::info;
use mio::event::Event;
use mio::{Events, Poll, Waker};
use redis::RedisSockets;
use resolver::{Resolver, Subject};
use signals::{Signal, Signals};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Events taken from the kernel at once; the others come with the next turn.
const EVENTS_PER_TURN: usize = 1024;

/// Where the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: Vec<SocketAddr>,
    /// Where workers publish to the embedded inbox; nowhere if empty.
    pub inbox: Vec<SocketAddr>,
    /// Other processes may listen for clients on the same addresses: the kernel deals connections out among them.
    pub reuse_port: bool,
}

/// What the front door does when the reactor is told to.
pub struct Hooks {
    /// Reads the configuration again and reopens the log; `None` when it is bad, which has been said.
    pub reload: Box<dyn FnMut() -> Option<gateway::Settings>>,
    pub reopen_log: Box<dyn FnMut()>,
    /// Writes the log's lines that are due.
    pub log_turn: Box<dyn Fn(Moment) -> LogState>,
}

/// How the log stands at the end of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogState {
    /// When the lines that wait are due, if any wait.
    pub due_at: Option<Moment>,
    /// Lines that were never written, since the start.
    pub lines_lost: u64,
}

/// Why the reactor could not start.
#[derive(Debug)]
pub enum StartError {
    /// This address cannot be listened on.
    Listen(SocketAddr, io::Error),
    Other(io::Error),
}

/// The loop and all that is registered with it.
pub struct Reactor {
    clock: Clock,
    alarm: Alarm,
    poll: Poll,
    events: Events,
    gateway: Gateway,
    redis: RedisSockets,
    redis_has_more: bool,
    listeners: Listeners,
    signals: Signals,
    resolver: Resolver,
    hooks: Hooks,
    log_due_at: Option<Moment>,
}

impl Reactor {
    /// Opens the listeners. From here on clients can connect, though nobody is served before [`Reactor::run`].
    pub fn new(
        settings: &Settings,
        gateway: gateway::Settings,
        hooks: Hooks,
    ) -> Result<Reactor, StartError> {
        let clock = Clock::start();
        listeners::raise_descriptor_limit();
        let poll = Poll::new()?;
        let registry = poll.registry();
        let waker = Arc::new(Waker::new(registry, Source::Waker.into())?);
        let network = Box::new(TcpNetwork::new(registry.try_clone()?));
        let chance = fastrand::Rng::new();
        let gateway = Gateway::new(gateway, network, chance, clock.now(), SystemTime::now())
            .map_err(|why| StartError::Other(io::Error::other(why)))?;
        let clients = settings.listen.iter().map(|&at| (Door::Clients, at));
        let doors = clients.chain(settings.inbox.iter().map(|&at| (Door::Inbox, at)));
        let listeners = Listeners::open(doors, settings.reuse_port, registry)?;
        let signals = Signals::register(registry)?;
        let alarm = Alarm::register(registry)?;
        Ok(Reactor {
            clock,
            alarm,
            gateway,
            redis: RedisSockets::default(),
            redis_has_more: false,
            events: Events::with_capacity(EVENTS_PER_TURN),
            resolver: Resolver::new(waker),
            poll,
            listeners,
            signals,
            hooks,
            log_due_at: None,
        })
    }

    /// The addresses that are listened on, with the ports that the kernel chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.addresses(Door::Clients).collect()
    }

    /// Where workers publish, if the inbox is embedded.
    pub fn inbox_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.addresses(Door::Inbox).collect()
    }

    /// Serves until a signal has ended it.
    ///
    /// # Errors
    /// Only what makes the loop itself impossible.
    pub fn run(mut self) -> io::Result<()> {
        for address in self.addresses() {
            info!(target: "gateway", "listening address={address}");
        }
        for address in self.inbox_addresses() {
            info!(target: "inbox", "listening address={address}");
        }
        log::logger().flush();
        // The link's first dial is due, and no event will come before it that would end the first wait.
        self.redis_has_more = self.redis.turn(
            self.gateway.results(),
            &mut self.resolver,
            self.poll.registry(),
            self.clock.now(),
        )?;
        while !self.gateway.is_stopped() {
            self.turn()?;
        }
        info!(target: "gateway", "stopped");
        log::logger().flush();
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let wait = self.wait()?;
        match self.poll.poll(&mut self.events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => self.events.clear(),
            other => other?,
        }
        let now = self.clock.now();
        self.gateway.begin_turn(now);
        let mut is_signalled = false;
        let mut is_woken = false;
        let mut has_redis_moved = self.redis_has_more;
        for event in &self.events {
            match Source::from(event.token()) {
                Source::Session(key, side) => self.gateway.ready(key, side, ready(event)),
                Source::Listener(index) => self.listeners.handle_ready(index),
                Source::Signal(_) => is_signalled = true,
                Source::Waker => is_woken = true,
                Source::Alarm => self.alarm.handle_ring(),
                Source::Link(role) => {
                    self.redis.handle_ready(REDIS_ROLES[role], ready(event));
                    has_redis_moved = true;
                }
            }
        }
        if is_woken {
            self.handle_answers(now);
        }
        // What is due by time alone is settled by the gateway, and done by the flush.
        if has_redis_moved || is_woken {
            self.redis_has_more = self.redis.turn(
                self.gateway.results(),
                &mut self.resolver,
                self.poll.registry(),
                now,
            )?;
        }
        self.gateway.settle();
        self.redis.flush(self.gateway.results(), &mut self.resolver, self.poll.registry(), now)?;
        self.listeners.accept(&mut self.gateway, self.poll.registry(), now);
        while let Some(lookup) = self.gateway.poll_lookup() {
            self.resolver.ask(Subject::Backend(lookup.upstream), lookup.host, lookup.port)?;
        }
        if is_signalled {
            self.handle_signals();
            self.redis.flush(
                self.gateway.results(),
                &mut self.resolver,
                self.poll.registry(),
                now,
            )?;
        }
        self.gateway.reap();
        if self.gateway.has_thinned_out() {
            net::give_memory_back();
        }
        let log = (self.hooks.log_turn)(now);
        self.log_due_at = log.due_at;
        self.gateway.stats().log_lines_lost = log.lines_lost;
        Ok(())
    }

    /// How long the next turn waits for events: not at all, or until the alarm rings at the latest.
    fn wait(&mut self) -> io::Result<Option<Duration>> {
        let now = self.gateway.now();
        let next =
            [self.gateway.next_turn(), self.listeners.next_turn(&self.gateway), self.log_due_at];
        let next = next.into_iter().flatten().min();
        match next {
            _ if self.redis_has_more => Ok(Some(Duration::ZERO)),
            // From the moment of the turn: a second look at the clock would cost more than the turn's length is worth.
            Some(at) if at <= now => Ok(Some(Duration::ZERO)),
            Some(at) => self.alarm.set(at, now).map(|()| None),
            None => Ok(None),
        }
    }

    fn handle_answers(&mut self, now: Moment) {
        while let Some((subject, answer)) = self.resolver.poll_answer() {
            match subject {
                Subject::Backend(upstream) => self.gateway.resolved(upstream, answer),
                Subject::Redis(role) => {
                    if let Some(link) = self.gateway.results().link() {
                        self.redis.handle_addresses(role, answer, link, self.poll.registry(), now);
                    }
                }
            }
        }
    }

    fn handle_signals(&mut self) {
        while let Some(signal) = self.signals.poll_signal() {
            info!(target: "gateway", "signal {signal}");
            match signal {
                Signal::Terminate if self.listeners.is_closed() => self.gateway.stop(),
                Signal::Terminate => {
                    self.listeners.close();
                    self.gateway.drain();
                }
                Signal::Reload => {
                    if let Some(settings) = (self.hooks.reload)() {
                        self.gateway.adopt(settings);
                    }
                }
                Signal::Reopen => (self.hooks.reopen_log)(),
            }
        }
    }
}

fn ready(event: &Event) -> Ready {
    Ready {
        readable: event.is_readable(),
        writable: event.is_writable() || event.is_error(),
        read_closed: event.is_read_closed() || event.is_error(),
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        StartError::Other(error)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen(address, error) if error.kind() == ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: port {} is taken by another program",
                    address.port()
                )
            }
            StartError::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            StartError::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}
