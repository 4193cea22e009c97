//! The life of the connections to Redis: dial, log in, subscribe, stay alive, come back.
//!
//! There are two connections for the whole process, whatever the number of clients. The
//! **subscriber** receives publications; the **store** connection keeps results in Redis and looks
//! them up. Each has a life of its own, because losing the store connection must not interrupt the
//! subscription:
//!
//! ```text
//!                 retry_at            connected           all answered, and the
//!          ┌──────┐ ─────► ┌─────────┐ ───────► ┌──────────┐ pattern confirmed ┌────┐
//! start ─► │ Down │        │ Dialing │          │ Greeting │ ────────────────► │ Up │
//!          └──────┘        └─────────┘          └──────────┘                   └────┘
//!             ▲                 │                    │                            │
//!             └─────────────────┴────────────────────┴────────────────────────────┘
//!               failed, closed, refused, timed out, silent, not the Redis protocol
//! ```
//!
//! Bytes go in by [`Link::handle_bytes`] and come out by [`Link::poll_output`]. The reactor does
//! what [`Link::poll_action`] says, and [`Link::poll_event`] gives what was learned. Time is an
//! argument. The link is *up* while both connections are.
//!
//! The pause before a dial is 100 ms at first and doubles to 5 s, with jitter. A connection that
//! was up for a second is dialled again at once, because each moment without a subscription may
//! lose a result. Of several servers the next one is tried after each failure, but both connections
//! go to the same server: what is heard on one server is not kept on another.
//!
//! How results are kept in Redis, told apart and kept in order is explained in
//! `docs/kept-results.md`.

#![expect(
    clippy::indexing_slicing,
    reason = "roles index a pair, and lengths come from the buffer itself"
)]

mod connection;
mod control;
mod failover;
mod index;
mod jobs;
mod keep;
mod look_up;
mod pending;
mod server;
mod settings;
mod subscribe;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use redis::Value;
use uuid::Uuid;

use crate::base::moment::Moment;
use crate::base::queue;
use crate::proto::control::ControlAction;
use crate::proto::resp::{self, Incoming};
use crate::service::tasks::{self, KeptResult, Occurrence, Subscription};
use connection::{Connection, Due};
use control::ControlChannels;
pub use keep::BATCH_MAX;
use keep::{ErrorKind, ErrorReply, Keeper, StoreOutcome};
use pending::{PendingReply, StoreReply};
pub use server::{Address, Password, Server, embedded, has_tls};
pub use settings::{Settings, Subscribe};
use subscribe::{Confirmed, Subscriptions};

/// Timeout for a dial, and for the greeting after it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that owes a reply and has been silent for this long is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest publication, in bytes; a larger one ends the connection. A page of kept results may
/// have `max_retained`.
const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Different problems that are reported before the link is up again.
const REPORTED_MAX: usize = 32;
/// The longest report, in characters.
const REPORT_CHARS_MAX: usize = 300;

/// One of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedisRole {
    /// Receives publications.
    Subscriber,
    /// Keeps results and looks them up.
    Store,
}

/// Both roles, for loops.
pub const REDIS_ROLES: [RedisRole; 2] = [RedisRole::Subscriber, RedisRole::Store];

impl RedisRole {
    fn other(self) -> RedisRole {
        match self {
            RedisRole::Subscriber => RedisRole::Store,
            RedisRole::Store => RedisRole::Subscriber,
        }
    }
}

/// What the reactor is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum LinkAction {
    /// Connect, then call [`Link::handle_connected`] or [`Link::handle_closed`].
    Dial { role: RedisRole, address: Address },
    /// Close the socket, if there is one. No call follows.
    Close { role: RedisRole },
}

/// What was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum LinkEvent {
    /// Both connections are up: look up everything that is waited for.
    Up { address: String },
    /// The link was up and no longer is.
    Down { why: String },
    /// A problem that a person should know of. Each text comes once until the link is up again.
    Problem { why: String },
    /// Redis has been away for longer than `grace`.
    GraceOver,
    /// A worker published a result.
    Published { task: Uuid, subscription: Subscription, payload: Vec<u8> },
    /// The subscription to one task has begun: look the task up. Not sent for patterns.
    Subscribed { task: Uuid },
    /// The answer to [`Link::look_up`].
    LookedUp(LookUpAnswer),
    /// Another gateway, or a worker, published this on a task's control channel.
    Control { task: Uuid, action: ControlAction },
    /// The answer to [`Link::ask_known`].
    Known { task: Uuid, is_known: bool },
}

/// What Redis has of a task. Everything that was published before the answer was given has been
/// heard.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct LookUpAnswer {
    pub task: Uuid,
    /// The subscription by which the task was heard when Redis was asked.
    pub subscription: Option<Subscription>,
    /// What gateways have stored, in order.
    pub kept: Vec<KeptResult>,
    pub next_id: u32,
    /// What the worker has set, and ends of audio files.
    pub set: Vec<Vec<u8>>,
    /// Redis refused to keep a result of this task, or could not be read.
    pub is_incomplete: bool,
}

/// The state of the link, for people.
#[expect(missing_docs, reason = "the fields explain themselves")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisState {
    /// Results arrive and are kept.
    Up,
    /// Results arrive, and are not kept for this reason.
    NotKeeping { why: String },
    /// No results arrive. There is no reason while the first dial is under way.
    Away { why: Option<String> },
}

impl RedisState {
    /// Why Redis cannot be used in full.
    pub fn why(&self) -> Option<&str> {
        match self {
            RedisState::Up => None,
            RedisState::NotKeeping { why } => Some(why),
            RedisState::Away { why } => why.as_deref(),
        }
    }
}

/// The link to Redis.
pub struct Link {
    settings: Settings,
    servers: Vec<Server>,
    /// The server that is dialled next, unless the other connection is up elsewhere.
    current: usize,
    subscriber: Connection,
    store: Connection,
    subscriptions: Subscriptions,
    control: ControlChannels,
    keeper: Keeper,
    actions: VecDeque<LinkAction>,
    events: VecDeque<LinkEvent>,
    away_since: Option<Moment>,
    is_past_grace: bool,
    /// Why the link is not up.
    away_why: Option<String>,
    /// Replicas in place of masters that were met in a row.
    replicas_met: u32,
    /// Problems that have been reported since the link was last up.
    reported: Vec<String>,
    rng: fastrand::Rng,
}

impl Link {
    /// A link that dials at once. `seed` feeds the jitter.
    ///
    /// # Errors
    /// A sentence that names the URL by its place in the list, since it may hold a password.
    pub fn new(
        settings: &Settings,
        retention: tasks::Settings,
        now: Moment,
        seed: u64,
    ) -> Result<Link, String> {
        let mut servers = Vec::new();
        for (i, url) in settings.urls.iter().enumerate() {
            let place = || format!("URL {} of {}", i + 1, settings.urls.len());
            servers.push(Server::parse(url).map_err(|why| format!("{}: {why}", place()))?);
        }
        if servers.is_empty() {
            return Err("no URL".into());
        }
        let mut link = Link {
            settings: settings.clone(),
            servers,
            current: 0,
            subscriber: Connection::new(now),
            store: Connection::new(now),
            subscriptions: Subscriptions::new(settings.subscribe, &settings.channel_prefix),
            control: ControlChannels::new(&settings.control_prefix),
            keeper: Keeper::new(settings, retention),
            actions: VecDeque::new(),
            events: VecDeque::new(),
            away_since: Some(now),
            is_past_grace: false,
            away_why: None,
            replicas_met: 0,
            reported: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        link.handle_time(now);
        Ok(link)
    }

    /// Takes other settings. `grace` and retention apply at once, a password with the next login.
    /// The URLs, the prefix and the way of subscribing are those of the start.
    pub fn reload(&mut self, settings: &Settings, retention: tasks::Settings) {
        self.settings.grace = settings.grace;
        self.settings.password_file = settings.password_file.clone();
        self.settings.password = settings.password.clone();
        self.keeper.reload(retention);
    }

    /// The settings in effect.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The limits in effect for what Redis keeps.
    pub fn retention(&self) -> tasks::Settings {
        self.keeper.retention()
    }

    /// Whether both connections are up and, with a pattern, the subscription is confirmed.
    pub fn is_up(&self) -> bool {
        self.subscriber.is_up() && self.store.is_up()
    }

    /// Whether Redis has been away for longer than `grace`.
    pub fn is_past_grace(&self) -> bool {
        self.is_past_grace
    }

    /// Since when the link is not up; `None` while it is.
    pub fn away_since(&self) -> Option<Moment> {
        self.away_since
    }

    /// The state of the link, with the reason if something does not work.
    pub fn state(&self) -> RedisState {
        match self.keeper.trouble() {
            _ if !self.is_up() => RedisState::Away { why: self.away_why.clone() },
            Some(why) => RedisState::NotKeeping { why: why.to_owned() },
            None => RedisState::Up,
        }
    }

    /// The server that is connected to, or dialled next.
    pub fn address(&self) -> &Address {
        &self.servers[self.current].address
    }

    /// The subscription by which results of `task` are heard now.
    pub fn subscription(&self, task: Uuid) -> Option<Subscription> {
        self.subscriptions.current(task)
    }

    /// Delays [`Link::is_idle`] until everything that was published before now has been heard.
    pub fn catch_up(&mut self, now: Moment) {
        if self.subscriber.is_up() {
            self.subscriber.send(now, PendingReply::Ignored, &[b"PING"]);
        }
    }

    /// Whether every result is stored and every reply has come. A gateway that stops waits for
    /// this, for a short time.
    pub fn is_idle(&self) -> bool {
        self.keeper.is_idle() && self.subscriber.pending.is_empty() && self.store.pending.is_empty()
    }

    /// Results that were not kept in Redis, since the start.
    pub fn dropped(&self) -> u64 {
        self.keeper.dropped()
    }

    /// The dial has succeeded.
    pub fn handle_connected(&mut self, role: RedisRole, now: Moment) {
        if matches!(self.connection(role).state, connection::ConnectionState::Dialing { .. }) {
            self.greet(role, now);
        }
    }

    /// The dial failed or the connection is gone; `why` is for the log.
    pub fn handle_closed(&mut self, role: RedisRole, why: &str, now: Moment) {
        if !self.connection(role).is_down() {
            self.fail(role, why, now);
        }
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, role: RedisRole, bytes: &[u8], now: Moment) {
        let mut input = bytes;
        loop {
            let Some(decoder) = self.connection_mut(role).decoder(now) else { return };
            match decoder.decode(&mut input) {
                Ok(Some(value)) => self.handle_value(role, value, now),
                Ok(None) => return,
                Err(error) => return self.fail(role, &format!("it sent {error}"), now),
            }
        }
    }

    /// Time passed; see [`Link::deadline`].
    pub fn handle_time(&mut self, now: Moment) {
        for role in REDIS_ROLES {
            match self.connection_mut(role).handle_time(now) {
                Due::Nothing => {}
                Due::Dial => self.dial(role, now),
                Due::Failed(why) => self.fail(role, why, now),
            }
        }
        self.keeper.handle_time(now);
        if self.grace_ends_at().is_some_and(|at| at <= now) {
            self.is_past_grace = true;
            self.events.push_back(LinkEvent::GraceOver);
        }
    }

    /// When [`Link::handle_time`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let connections = [self.subscriber.deadline(), self.store.deadline()];
        connections.into_iter().chain(self.grace_ends_at()).chain(self.keeper.deadline()).min()
    }

    /// Subscribes to a task under one spelling of its id. Nothing to do with a pattern.
    pub fn listen(&mut self, task: Uuid, spelling: &str, now: Moment) {
        if self.subscriptions.mode() == Subscribe::Task {
            self.subscriptions.add(task, spelling, &mut self.subscriber, now);
        }
    }

    /// Ends what [`Link::listen`] began.
    pub fn unlisten(&mut self, spelling: &str) {
        self.subscriptions.remove(spelling, &mut self.subscriber);
    }

    /// Asks what is kept of a task and what the worker has set; [`LinkEvent::LookedUp`] answers. No
    /// answer comes when the link is not up or goes down: ask again after [`LinkEvent::Up`].
    pub fn look_up(&mut self, task: Uuid, spellings: &[Box<str>]) {
        if self.store.is_up() {
            self.keeper.look_up(task, self.subscriptions.current(task), spellings);
        }
    }

    /// Keeps a result in Redis, as soon as that is possible. When too much waits for Redis, the
    /// oldest is dropped and counted.
    pub fn keep(
        &mut self,
        task: Uuid,
        subscription: Subscription,
        occurrence: Occurrence,
        payload: Rc<[u8]>,
    ) {
        self.keeper.store(task, subscription, occurrence, payload);
    }

    /// Keeps in Redis that an audio file of a task is complete.
    pub fn keep_end(&mut self, task: Uuid, payload: Rc<[u8]>) {
        self.keeper.store_end(task, payload);
    }

    /// Removes from Redis what it keeps of a task.
    pub fn forget(&mut self, task: Uuid) {
        if self.store.is_up() {
            self.keeper.forget(task);
        }
    }

    /// The next thing for the reactor to do.
    pub fn poll_action(&mut self) -> Option<LinkAction> {
        queue::take_first(&mut self.actions)
    }

    /// The next thing that was learned.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        queue::take_first(&mut self.events)
    }

    /// Bytes for a connection's socket, empty if there are none. Pass the number that was written
    /// to [`Link::handle_written`] and ask again.
    pub fn poll_output(&mut self, role: RedisRole, now: Moment) -> &[u8] {
        if role == RedisRole::Store && self.store.is_up() {
            self.keeper.pack(&mut self.store, now);
        }
        self.connection(role).output()
    }

    /// Bytes in memory on their way to Redis or from there: results to store, output, and values
    /// that have not come whole.
    pub fn held_bytes(&self) -> usize {
        self.keeper.jobs.bytes() + self.subscriber.held_bytes() + self.store.held_bytes()
    }

    /// `n` bytes of [`Link::poll_output`] were written.
    pub fn handle_written(&mut self, role: RedisRole, n: usize) {
        self.connection_mut(role).handle_written(n);
    }

    fn connection(&self, role: RedisRole) -> &Connection {
        match role {
            RedisRole::Subscriber => &self.subscriber,
            RedisRole::Store => &self.store,
        }
    }

    fn connection_mut(&mut self, role: RedisRole) -> &mut Connection {
        match role {
            RedisRole::Subscriber => &mut self.subscriber,
            RedisRole::Store => &mut self.store,
        }
    }

    /// The server of the other connection, if that one is up.
    fn server_of_other(&self, role: RedisRole) -> Option<usize> {
        let other = self.connection(role.other());
        other.is_up().then_some(other.server)
    }

    fn grace_ends_at(&self) -> Option<Moment> {
        let since = self.away_since.filter(|_| !self.is_past_grace)?;
        Some(since + self.settings.grace?)
    }

    fn dial(&mut self, role: RedisRole, now: Moment) {
        let server = self.server_of_other(role).unwrap_or(self.current);
        self.connection_mut(role).dial(server, now);
        let address = self.servers[server].address.clone();
        self.actions.push_back(LinkAction::Dial { role, address });
    }

    fn greet(&mut self, role: RedisRole, now: Moment) {
        let mut server = self.servers[self.connection(role).server].clone();
        if let Some(password) = &self.settings.password {
            server.password = Some(password.text().to_owned());
        }
        let value_bytes_max =
            VALUE_BYTES_MAX.max(self.keeper.retention().max_retained.saturating_mul(2));
        let connection = self.connection_mut(role);
        connection.begin_greeting(role, &server, value_bytes_max, now);
        if role == RedisRole::Subscriber {
            // Before the subscription: what is stored from here on may be what is about to be
            // heard.
            connection.send(now, PendingReply::Clock, &[b"TIME"]);
            if self.subscriptions.mode() == Subscribe::Pattern {
                // Its confirmation is what ends the greeting.
                return self.subscriptions.send_pattern(&mut self.subscriber);
            }
        }
        if role == RedisRole::Store {
            self.ask_role(now);
        }
        self.connection_mut(role).send(now, PendingReply::Ready, &[b"PING"]);
    }

    fn handle_value(&mut self, role: RedisRole, value: Value, now: Moment) {
        match resp::classify(value, role == RedisRole::Subscriber) {
            Incoming::Message { channel, payload } => {
                if let Some((task, subscription)) = self.subscriptions.task_of(&channel) {
                    self.events.push_back(LinkEvent::Published { task, subscription, payload });
                } else if let Some(task) = self.control.task_of(&channel)
                    && let Some(action) = ControlAction::read(&payload)
                    && self.control.hear(task, action)
                {
                    self.events.push_back(LinkEvent::Control { task, action });
                }
            }
            Incoming::Subscribed { name } if self.control.is_pattern(&name) => {
                // Confirmations come in the order of the commands, among the replies.
                let pending = &mut self.connection_mut(role).pending;
                if matches!(pending.front(), Some(PendingReply::Control)) {
                    pending.pop_front();
                }
            }
            Incoming::Subscribed { name } => match self.subscriptions.handle_subscribed(&name, now)
            {
                Confirmed::Pattern => self.come_up(role, now),
                Confirmed::Task(task) => self.events.push_back(LinkEvent::Subscribed { task }),
                Confirmed::Outdated => {}
            },
            Incoming::Unsubscribed { .. } => self.subscriptions.handle_unsubscribed(),
            Incoming::Reply(reply) => self.handle_reply(role, reply, now),
            Incoming::Other => {}
        }
    }

    /// A reply answers the oldest command that has none yet, so `pending` says what it is about.
    fn handle_reply(&mut self, role: RedisRole, reply: Value, now: Moment) {
        let error = ErrorReply::of(&reply);
        if let Some(error) = &error
            && error.kind() == ErrorKind::Login
        {
            // Also in the middle: the password was changed. Whatever the command was, it is still
            // pending when the connection fails, so a result that has not been stored is not lost.
            return self.fail(role, &format!("it refused us: {error}"), now);
        }
        let pending = queue::take_first(&mut self.connection_mut(role).pending);
        match (pending, error) {
            // A subscription is confirmed by a message and refused by a reply, so an error that no
            // command awaits refuses a subscription. Without one the gateway would wait for results
            // that it cannot hear.
            (Some(PendingReply::Login) | None, Some(error)) => {
                self.fail(role, &format!("it refused us: {error}"), now);
            }
            (Some(PendingReply::Ready), Some(error)) => match (error.code.as_str(), error.kind()) {
                // A user who may not send PING can still do all the rest.
                ("NOPERM", _) => self.come_up(role, now),
                // A server that cannot save its data refuses PING like a write, and publishes on.
                ("MISCONF", _) => {
                    self.come_up(role, now);
                    let outcome = self.keeper.handle_ping(Some(&error));
                    self.handle_store_outcome(outcome, now);
                }
                _ => self.fail(role, &format!("it refused us: {error}"), now),
            },
            (Some(PendingReply::Ready), None) => self.come_up(role, now),
            (Some(PendingReply::Clock), _) => self.subscriptions.handle_clock(&reply, now),
            (Some(PendingReply::Store(about)), error) => {
                if error.is_none() && matches!(about, StoreReply::Stored(_)) {
                    self.replicas_met = 0;
                }
                let outcome = self.keeper.handle_reply(about, reply, now);
                self.handle_store_outcome(outcome, now);
            }
            (Some(PendingReply::Control), Some(error)) => {
                self.handle_control_refused("PSUBSCRIBE", &error);
            }
            (Some(PendingReply::Barrier(answer)), _) => {
                self.events.push_back(LinkEvent::LookedUp(*answer));
            }
            (Some(PendingReply::Role), None) => self.handle_server_role(&reply, now),
            (Some(PendingReply::Ping), error) if role == RedisRole::Store => {
                self.ask_role(now);
                let outcome = self.keeper.handle_ping(error.as_ref());
                self.handle_store_outcome(outcome, now);
            }
            // Without the permission to ask, the role shows when a result is stored.
            (Some(PendingReply::Role), Some(_)) => {}
            (
                Some(
                    PendingReply::Login
                    | PendingReply::Ignored
                    | PendingReply::Ping
                    | PendingReply::Control,
                )
                | None,
                _,
            ) => {}
        }
    }

    fn handle_store_outcome(&mut self, outcome: StoreOutcome, now: Moment) {
        match outcome {
            StoreOutcome::Nothing => {}
            StoreOutcome::Problem(why) => self.report(why),
            StoreOutcome::Replica(why) => self.leave_replica(why, now),
            StoreOutcome::Known(task, is_known) => {
                self.events.push_back(LinkEvent::Known { task, is_known });
            }
            StoreOutcome::NotPublished(task, action, error) => {
                self.control.forget_echo(task, action);
                self.handle_control_refused("PUBLISH", &error);
            }
            StoreOutcome::LookedUp(answer, problem) => {
                problem.into_iter().for_each(|why| self.report(why));
                // Another gateway may have stored what is still under way to our subscriber
                // connection, and in an order that is about to be corrected. So the answer waits
                // for a PING there: what comes before its reply was published before the look-up.
                // Without this a later result could be delivered before an earlier one.
                let has_results = !(answer.kept.is_empty() && answer.set.is_empty());
                if self.subscriber.is_up() && has_results {
                    let barrier = PendingReply::Barrier(Box::new(answer));
                    self.subscriber.send(now, barrier, &[b"PING"]);
                } else {
                    self.events.push_back(LinkEvent::LookedUp(answer));
                }
            }
        }
    }

    fn come_up(&mut self, role: RedisRole, now: Moment) {
        let server = self.connection(role).server;
        if self.server_of_other(role).is_some_and(|other| other != server) {
            // The other connection came up on another server meanwhile.
            self.reset(role, now);
            return self.dial(role, now);
        }
        self.connection_mut(role).come_up(now);
        self.current = server;
        // The server is back: what the subscriber hears from now on must be kept now, not when the
        // pause of the store connection is over.
        self.connection_mut(role.other()).dial_sooner(now);
        if role == RedisRole::Subscriber && self.subscriptions.mode() == Subscribe::Task {
            self.subscriptions.send_channels(&mut self.subscriber, now);
        }
        if role == RedisRole::Subscriber {
            self.subscribe_to_control(now);
        }
        if self.is_up() {
            self.away_since = None;
            self.is_past_grace = false;
            self.away_why = None;
            self.reported.clear();
            self.events.push_back(LinkEvent::Up { address: self.address().to_string() });
        }
    }

    /// The connection is lost, or could not be made.
    fn fail(&mut self, role: RedisRole, why: &str, now: Moment) {
        let other = self.server_of_other(role);
        let (server, was_up) = (self.connection(role).server, self.connection(role).is_up());
        // Both connections fail on the same server, and only the first failure moves on to the
        // next.
        if !was_up && other.is_none() && server == self.current {
            self.current = (server + 1) % self.servers.len();
        }
        self.lose(role, why, now);
    }

    /// There is no connection any more. It is dialled again after a pause.
    fn lose(&mut self, role: RedisRole, why: &str, now: Moment) {
        let was_link_up = self.is_up();
        let mut rng = self.rng.fork();
        let connection = self.connection_mut(role);
        let (server, pause) = (connection.server, connection.next_pause(now, &mut rng));
        self.reset(role, now + pause);
        let why = format!("{}: {why}", self.servers[server].address);
        self.go_down(why, was_link_up, now);
    }

    /// Reports why the link is not up.
    fn go_down(&mut self, why: String, was_link_up: bool, now: Moment) {
        self.away_why = Some(why.clone());
        if was_link_up {
            self.away_since = Some(now);
            self.reported.push(why.clone());
            self.events.push_back(LinkEvent::Down { why });
        } else {
            self.report(why);
        }
    }

    /// Drops the socket and what was under way on it. Results that Redis has not confirmed go back
    /// to the queue.
    fn reset(&mut self, role: RedisRole, retry_at: Moment) {
        let pending = self.connection_mut(role).reset(retry_at);
        self.control.reset();
        match role {
            RedisRole::Subscriber => self.subscriptions.reset(),
            RedisRole::Store => self.keeper.reset(pending),
        }
        // A dial that the reactor has not begun is not needed any more.
        self.actions.retain(
            |action| !matches!(action, LinkAction::Dial { role: dialled, .. } if *dialled == role),
        );
        self.actions.push_back(LinkAction::Close { role });
    }

    fn report(&mut self, why: String) {
        let why: String = why.trim_end().chars().take(REPORT_CHARS_MAX).collect();
        if !self.reported.contains(&why) && self.reported.len() < REPORTED_MAX {
            self.reported.push(why.clone());
            self.events.push_back(LinkEvent::Problem { why });
        }
    }
}

#[cfg(test)]
mod tests;
