//! The poll loop: one thread, one `mio::Poll`, every socket registered once.
//!
//! A turn waits for events, reads the clock once, and passes everything on to the [`Gateway`],
//! whose module describes the order of a turn. What belongs to the reactor alone: waiting, the
//! clock, accepting, signals and background threads.
//!
//! Nothing in a turn may block: what might is done by the threads of `background`, and log lines
//! go to a buffer; where writing them might block, a thread of its own does it.

#![expect(clippy::disallowed_methods, reason = "the reactor owns threads and the wall clock")]
#![expect(
    clippy::disallowed_types,
    reason = "the reactor owns the poll and what is registered with it"
)]

mod alarm;
mod background;
pub mod clock;
pub mod descriptors;
pub mod listeners;
mod names;
pub mod passed;
pub mod signals;
pub mod supervisor;

use crate::base::moment::Moment;
use crate::gateway::{self, Gateway};
use crate::net::tcp::TcpNetwork;
use crate::net::{Ready, Source};
use crate::service::stats::TURNS_PER_SAMPLE;
use alarm::Alarm;
use background::{Background, BackgroundEvent, ReadConfig};
use clock::Clock;
use descriptors::Descriptors;
use listeners::{ListenOn, ListenerKind, Listeners};
use log::{info, warn};
use mio::event::Event;
use mio::{Events, Poll, Waker};
use passed::{PassedSocket, PassedSockets};
use signals::{Signal, Signals};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use supervisor::Supervisor;

/// Events taken from the kernel at once; the others come with the next turn.
const EVENTS_PER_TURN: usize = 1024;

/// How often the time of day is read: the system's clock may be set, or have gone on while the
/// machine was suspended.
const WALL_CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Where the gateway listens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Settings {
    pub listen: Vec<ListenOn>,
    /// Further addresses, for operators.
    pub admin: Vec<ListenOn>,
    /// Where workers publish to the embedded inbox; nowhere if empty.
    pub inbox: Vec<ListenOn>,
    /// Other processes may listen for clients on the same addresses: the kernel deals connections
    /// out among them.
    pub reuse_port: bool,
}

/// What the reactor asks of the program around it. `C` is the configuration as it was read, good or
/// bad.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Hooks<C> {
    /// Reads the configuration. Runs on a background thread, since a file or a name in it may be
    /// slow.
    pub read_config: ReadConfig<C>,
    /// Applies what was read to the log, and returns what the gateway is to apply; `None` if it is
    /// bad, which has been logged.
    pub apply_config: Box<dyn FnMut(C) -> Option<gateway::Settings>>,
    pub reopen_log: Box<dyn FnMut()>,
    /// Writes the log lines that are due, as far as that cannot wait.
    pub log_turn: Box<dyn Fn(Moment) -> LogState>,
}

/// The state of the log at the end of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogState {
    /// When lines are due that the loop is to write.
    pub due_at: Option<Moment>,
    /// Lines that were never written, since the start.
    pub lines_lost: u64,
    /// The system's number of the error for which the file cannot be written at present, or 0.
    pub error_code: i32,
}

/// Why the reactor could not start.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum StartError {
    /// This place cannot be listened on.
    Listen(ListenOn, io::Error),
    /// The service manager passed a socket for which the configuration has no use.
    Passed(PassedSocket),
    /// The system allows no more threads.
    Threads(io::Error),
    Other(io::Error),
}

/// The loop and all that is registered with it.
pub struct Reactor<C> {
    clock: Clock,
    alarm: Alarm,
    poll: Poll,
    events: Events,
    gateway: Gateway,
    listeners: Listeners,
    signals: Signals,
    background: Background<C>,
    hooks: ReactorHooks<C>,
    log_due_at: Option<Moment>,
    /// The moment at which the alarm was set to end the wait.
    due_at: Option<Moment>,
    turns: u32,
    /// When the gateway is next given the time of day.
    wall_due_at: Moment,
    supervisor: Supervisor,
}

/// What the service manager that started this process has given it.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Service {
    pub supervisor: Supervisor,
    pub sockets: PassedSockets,
}

/// The hooks that run in the loop.
struct ReactorHooks<C> {
    apply_config: Box<dyn FnMut(C) -> Option<gateway::Settings>>,
    reopen_log: Box<dyn FnMut()>,
    log_turn: Box<dyn Fn(Moment) -> LogState>,
}

impl<C: Send + 'static> Reactor<C> {
    /// Opens the listeners and starts the background threads. From here on clients can connect,
    /// though no client is served before [`Reactor::run`].
    ///
    /// # Errors
    /// When the system refuses an address, a thread or a descriptor that is needed.
    pub fn new(
        settings: &Settings,
        gateway: gateway::Settings,
        hooks: Hooks<C>,
        service: Service,
    ) -> Result<Reactor<C>, StartError> {
        let Service { supervisor, sockets } = service;
        let Hooks { read_config, apply_config, reopen_log, log_turn } = hooks;
        let clock = Clock::start();
        let descriptors = Descriptors::raise_limit();
        descriptors.warn_if_short_for(gateway.limits.max_connections);
        let poll = Poll::new()?;
        let registry = poll.registry();
        let waker = Waker::new(registry, Source::Waker.into())?;
        let background = Background::start(waker, read_config).map_err(StartError::Threads)?;
        let network = Box::new(TcpNetwork::new(registry.try_clone()?));
        let chance = fastrand::Rng::new();
        let mut gateway = Gateway::new(gateway, network, chance, clock.now(), SystemTime::now())
            .map_err(|why| StartError::Other(io::Error::other(why)))?;
        gateway.results().limit_speech_files(descriptors.speech_files());
        let clients = settings.listen.iter().map(|at| (at.kind(), at.clone()));
        let admins = settings.admin.iter().map(|at| (ListenerKind::Admins, at.clone()));
        let inbox = settings.inbox.iter().map(|at| (ListenerKind::Inbox, at.clone()));
        let doors = clients.chain(admins).chain(inbox);
        let listeners =
            Listeners::open(doors, sockets, settings.reuse_port, descriptors, registry)?;
        let signals = Signals::register(registry)?;
        let alarm = Alarm::register(registry)?;
        Ok(Reactor {
            clock,
            alarm,
            gateway,
            events: Events::with_capacity(EVENTS_PER_TURN),
            background,
            poll,
            listeners,
            signals,
            log_due_at: None,
            due_at: None,
            turns: 0,
            wall_due_at: clock.now() + WALL_CLOCK_INTERVAL,
            hooks: ReactorHooks { apply_config, reopen_log, log_turn },
            supervisor,
        })
    }

    /// Where clients are listened for, with the ports that the kernel chose, in the order of the
    /// settings.
    pub fn addresses(&self) -> Vec<ListenOn> {
        self.listeners.for_clients().cloned().collect()
    }

    /// Where workers publish by TCP, if the inbox is embedded.
    pub fn inbox_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.addresses(ListenerKind::Inbox).filter_map(ListenOn::address).collect()
    }

    /// Serves until a signal has ended it.
    ///
    /// # Errors
    /// Only what makes the loop itself impossible.
    pub fn run(mut self) -> io::Result<()> {
        for address in self.addresses() {
            info!(target: "gateway", "listening address={address}");
        }
        for address in self.listeners.addresses(ListenerKind::Admins) {
            info!(target: "gateway", "listening address={address} for=admins");
        }
        for on in self.listeners.addresses(ListenerKind::Inbox) {
            info!(target: "inbox", "listening address={on}");
        }
        for address in self.inbox_addresses() {
            if !address.ip().is_loopback() && !self.gateway.has_inbox_password() {
                warn!(
                    target: "inbox",
                    "anyone who can reach {address} can publish results: set redis.password_file, or listen on 127.0.0.1"
                );
            }
        }
        self.supervisor.ready(&self.status());
        // The first turn may wait long for its first event.
        log::logger().flush();
        while !self.gateway.is_stopped() {
            self.turn()?;
        }
        info!(target: "gateway", "stopped");
        log::logger().flush();
        Ok(())
    }

    /// One turn. What the gateway does in it, and in which order, is described in
    /// [`crate::gateway`].
    fn turn(&mut self) -> io::Result<()> {
        let wait = self.wait()?;
        match self.poll.poll(&mut self.events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => self.events.clear(),
            other => other?,
        }
        let now = self.clock.now();
        self.gateway.begin_turn(now);
        self.note_lag(now);
        if self.supervisor.due_at().is_some_and(|due_at| due_at <= now) {
            let status = self.status();
            self.supervisor.feed(now, &status);
        }
        if self.wall_due_at <= now {
            self.wall_due_at = now + WALL_CLOCK_INTERVAL;
            self.gateway.set_wall_clock(SystemTime::now());
        }
        let mut is_signalled = false;
        let mut is_woken = self.background.has_news();
        for event in &self.events {
            match Source::from(event.token()) {
                source @ (Source::Session(..)
                | Source::Link(_)
                | Source::Probe(_)
                | Source::Files) => self.gateway.ready(source, ready(event)),
                Source::Listener(index) => self.listeners.handle_ready(index),
                Source::Signal(_) => is_signalled = true,
                Source::Waker => is_woken = true,
                Source::Alarm => self.alarm.handle_fired(),
            }
        }
        let mut config = None;
        if is_woken {
            config = self.handle_news(now);
        }
        self.gateway.settle();
        self.listeners.accept(&mut self.gateway, self.poll.registry(), now);
        if is_signalled {
            self.handle_signals();
        }
        if let Some(config) = config {
            self.apply_config(config);
        }
        self.gateway.finish_turn();
        while let Some(job) = self.gateway.poll_job() {
            self.background.submit(job, now);
        }
        let log = (self.hooks.log_turn)(now);
        self.log_due_at = log.due_at;
        self.gateway.stats().log_lines_lost = log.lines_lost;
        self.gateway.stats().log_error_code = log.error_code;
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(TURNS_PER_SAMPLE) {
            let time = self.clock.now() - now;
            self.gateway.stats().time().turn.observe(time);
        }
        Ok(())
    }

    /// Counts how late the turn began, if it had to begin at a certain moment.
    #[inline]
    fn note_lag(&mut self, now: Moment) {
        if let Some(due_at) = self.due_at.take()
            && due_at <= now
        {
            self.gateway.note_lag(now - due_at);
        }
    }

    /// How long the next turn waits for events: not at all, or until the alarm fires at the latest.
    fn wait(&mut self) -> io::Result<Option<Duration>> {
        let now = self.gateway.now();
        let next = [
            self.gateway.next_turn(),
            self.listeners.next_turn(&self.gateway),
            self.log_due_at,
            self.supervisor.due_at(),
        ];
        match Moment::earliest(next) {
            _ if self.background.has_news() => Ok(Some(Duration::ZERO)),
            // Counted from the moment of the turn: reading the clock again would cost more than the
            // turn's length matters.
            Some(at) if at <= now => Ok(Some(Duration::ZERO)),
            Some(at) => {
                self.due_at = Some(at);
                self.alarm.set(at, now).map(|()| None)
            }
            None => Ok(None),
        }
    }

    /// Passes on what the background threads have finished. Returns the configuration if it was
    /// read, the latest if more than once.
    fn handle_news(&mut self, now: Moment) -> Option<C> {
        let mut latest = None;
        while let Some(event) = self.background.poll_event(now) {
            match event {
                BackgroundEvent::Answer(answer) => self.gateway.handle_answer(answer),
                BackgroundEvent::Config(config) => latest = Some(config),
            }
        }
        latest
    }

    /// Takes a configuration that was read again into use, unless it is bad.
    fn apply_config(&mut self, config: C) {
        let settings = (self.hooks.apply_config)(config);
        let is_good = settings.is_some();
        self.gateway.stats().count_reload(is_good);
        if let Some(settings) = settings {
            self.gateway.reload(settings);
        }
        // The last of several reloads ends them all.
        if !self.background.is_reading_config() && !self.listeners.is_closed() {
            let status = self.status();
            let kept = if is_good { "" } else { "; the new configuration is wrong, see the log" };
            self.supervisor.ready(&format!("{status}{kept}"));
        }
    }

    /// What the service manager shows of the gateway.
    fn status(&self) -> String {
        let doing = if self.listeners.is_closed() { "Draining" } else { "Serving" };
        format!("{doing}, connections: {}", self.gateway.session_count())
    }

    fn handle_signals(&mut self) {
        while let Some(signal) = self.signals.poll_signal() {
            info!(target: "gateway", "signal {signal}");
            match signal {
                Signal::Terminate if self.listeners.is_closed() => self.gateway.stop(),
                Signal::Terminate => {
                    self.listeners.close();
                    self.gateway.drain();
                    self.supervisor.stopping(&self.status());
                }
                Signal::Reload => {
                    self.supervisor.reloading();
                    self.background.read_config();
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
            StartError::Listen(on, error) if error.kind() == ErrorKind::AddrInUse => {
                write!(f, "cannot listen on {on}: ")?;
                match on.address() {
                    Some(at) => write!(f, "port {} is taken by another program", at.port()),
                    None => f.write_str("another program listens there"),
                }
            }
            StartError::Listen(on, error) => write!(f, "cannot listen on {on}: {error}"),
            StartError::Passed(socket) => socket.fmt(f),
            StartError::Threads(error) => write!(f, "cannot start the background threads: {error}"),
            StartError::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}
