//! Sessions, timers, backends and limits as one whole; no clock and no real socket.
//!
//! The reactor, or a simulated world, says what happened and when: [`Gateway::begin_turn`], then any number of
//! [`Gateway::admit`] and [`Gateway::ready`], then [`Gateway::settle`] and [`Gateway::reap`]. Two invariants hold it together:
//!
//! - *One door*: `Gateway::drive` is the only caller of [`Session::drive`], and brings timers and lists up to date after it.
//! - *Slots are freed last*: a session that ended in this turn keeps its slot until [`Gateway::reap`], so that a late event of
//!   this turn reaches nobody else.

mod snapshot;

use crate::base::moment::Moment;
use crate::base::table::FIRST_BYTES;
use crate::base::timers::Timers;
use crate::net::{Conn, Network, Ready, Side, Socket};
use crate::proto::http::Reply;
use crate::service::limits::{self, Limits};
use crate::service::link::{self, Link};
use crate::service::results::{Notice, Results};
use crate::service::route::{RouteSettings, RouteTarget, Routes, Target};
use crate::service::stats::Stats;
use crate::service::tasks::{self, Tasks};
use crate::service::upstreams::UpstreamId;
use crate::session::{self, Admission, Context, Driven, Identity, Phase, Session};
use log::{info, warn};
use slab::Slab;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// Connections that are being told that there is no room, at once. While so many are, no further one is accepted.
const REFUSALS_MAX: usize = 100;

/// Workers that are connected to the embedded inbox at once.
const WORKERS_MAX: usize = 1000;

/// What is left for last frames to leave when the drain time is over, and for Redis to keep the last results.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Of a crowd of so many or more it is noticed when half of it has left.
const CROWD_MIN: usize = 64;

/// How the gateway behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub session: session::Settings,
    pub limits: limits::Settings,
    pub routes: Vec<RouteSettings>,
    /// How long a drain may take; `None`: as long as it takes.
    pub drain_timeout: Option<Duration>,
    /// How results are kept, and heard of.
    pub tasks: tasks::Settings,
    pub link: link::Settings,
}

/// A backend's name that has to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    pub upstream: UpstreamId,
    pub host: String,
    pub port: u16,
}

/// Everything between accepted sockets and backends.
pub struct Gateway {
    sessions: Slab<Session>,
    timers: Timers,
    yielded: Vec<usize>,
    closed: Vec<usize>,
    /// The most sessions at a time since [`Gateway::has_thinned_out`] was last true.
    crowd: usize,
    refusals: usize,
    /// Open connections of workers.
    workers: usize,
    /// The gateway itself is where workers publish.
    is_inbox: bool,
    serials: u64,
    lifecycle: Lifecycle,
    drain_timeout: Option<Duration>,
    started: Moment,
    started_wall: SystemTime,
    cx: Context,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifecycle {
    Serving,
    Draining { until: Option<Moment> },
    LastCall { until: Moment },
    Stopped,
}

impl Gateway {
    /// A gateway that starts at `now`, which a wall clock calls `wall`.
    ///
    /// # Errors
    /// When the URL of Redis cannot be used.
    pub fn new(
        settings: Settings,
        network: Box<dyn Network>,
        mut chance: fastrand::Rng,
        now: Moment,
        wall: SystemTime,
    ) -> Result<Gateway, String> {
        let Settings { session, limits, routes, drain_timeout, tasks, link } = settings;
        let is_inbox = link.is_embedded();
        let redis = match wants_redis(&routes, &link) {
            true => Some(
                Link::new(&link, tasks, now, chance.u64(..))
                    .map_err(|why| format!("redis.url: {why}"))?,
            ),
            false => None,
        };
        let results = Results::new(Tasks::new(tasks), redis);
        let mut cx = Context::new(now, session, network, Limits::new(limits), results, chance);
        cx.routes = Routes::new(routes, &mut cx.upstreams);
        cx.channel_prefix = link.channel_prefix;
        log_routes(&cx);
        Ok(Gateway {
            sessions: Slab::with_capacity(FIRST_BYTES / size_of::<Session>()),
            timers: Timers::new(),
            yielded: Vec::new(),
            closed: Vec::new(),
            crowd: 0,
            refusals: 0,
            workers: 0,
            is_inbox,
            serials: 0,
            lifecycle: Lifecycle::Serving,
            drain_timeout,
            started: now,
            started_wall: wall,
            cx,
        })
    }

    /// Everything that follows happens at `now`.
    pub fn begin_turn(&mut self, now: Moment) {
        self.cx.now = now;
    }

    /// The moment of this turn.
    pub fn now(&self) -> Moment {
        self.cx.now
    }

    /// The slot that the next admitted connection will have, for its registration.
    pub fn next_key(&self) -> usize {
        self.sessions.vacant_key()
    }

    /// One more connection can be taken, if only to be told that there is no room.
    pub fn can_admit(&self) -> bool {
        !self.cx.is_draining && (!self.cx.limits.is_full() || self.refusals < REFUSALS_MAX)
    }

    /// Takes a connection that was accepted from `client` and registered for [`Gateway::next_key`].
    pub fn admit(&mut self, socket: Socket, client: SocketAddr) {
        let who = self.identity(client, Admission::Client);
        let downstream = Conn::accepted(socket);
        let session = match self.cx.limits.admit(client.ip()) {
            Ok(()) => {
                self.cx.stats.connections_accepted += 1;
                Session::accepted(who, downstream, &self.cx)
            }
            Err(refusal) => {
                warn!(target: "gateway", "{who} refused why=\"{}\" client={client}", refusal.why());
                self.cx.stats.count_refused(refusal.word());
                if self.refusals >= REFUSALS_MAX {
                    return; // Not even told: one address must not hold more than that.
                }
                self.refusals += 1;
                let who = Identity { admission: Admission::Refused, ..who };
                Session::refused(who, downstream, &Reply::error(503, refusal.why()), &mut self.cx)
            }
        };
        let key = self.sessions.insert(session);
        self.drive(key);
    }

    /// One more worker can be taken.
    pub fn can_admit_worker(&self) -> bool {
        self.workers < WORKERS_MAX
    }

    /// Takes a worker's connection to the embedded inbox, registered for [`Gateway::next_key`].
    pub fn admit_worker(&mut self, socket: Socket, client: SocketAddr) {
        let who = self.identity(client, Admission::Inbox);
        info!(target: "inbox", "{who} opened client={client}");
        self.workers += 1;
        let key = self.sessions.insert(Session::inbox(who, Conn::accepted(socket)));
        self.drive(key);
    }

    fn identity(&mut self, client: SocketAddr, admission: Admission) -> Identity {
        self.serials += 1;
        Identity {
            serial: self.serials,
            opened: self.cx.now,
            route: None,
            task_id: None,
            key: self.sessions.vacant_key() as u32,
            ip: client.ip(),
            port: client.port(),
            admission,
        }
    }

    /// Something happened at one socket of a session.
    pub fn ready(&mut self, key: usize, side: Side, ready: Ready) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.handle_ready(side, ready);
            self.drive(key);
        }
    }

    /// After all events of a turn: those who had more to do, and those whose time has come.
    pub fn settle(&mut self) {
        for key in std::mem::take(&mut self.yielded) {
            if let Some(session) = self.sessions.get_mut(key)
                && std::mem::take(&mut session.is_yielded)
            {
                self.drive(key);
            }
        }
        let due: Vec<usize> = std::iter::from_fn(|| self.timers.pop_due(self.cx.now)).collect();
        due.into_iter().for_each(|key| self.drive(key));
        self.settle_results();
        self.check_drain();
    }

    /// Hands out what was published, and tells what became of Redis.
    fn settle_results(&mut self) {
        self.cx.results.settle(self.cx.now);
        while let Some(notice) = self.cx.results.poll_notice() {
            self.handle_notice(notice);
        }
        while let Some((key, result)) = self.cx.results.poll_delivery() {
            if let Some(session) = self.sessions.get_mut(key as usize) {
                session.handle_result(result);
                self.drive(key as usize);
            }
        }
    }

    fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Up { address } => {
                self.cx.stats.redis_connects += 1;
                info!(target: "redis", "connected address={address}");
            }
            Notice::Down { why } => warn!(target: "redis", "lost why=\"{why}\""),
            Notice::Problem { why } => warn!(target: "redis", "trouble why=\"{why}\""),
            Notice::Evicted { results } => {
                self.cx.stats.results_evicted += results;
                warn!(target: "output", "kept results let go for lack of room results={results}");
            }
            Notice::GraceOver => {
                warn!(target: "redis", "away for longer than the grace: waiting clients are told");
                let waiters: Vec<usize> =
                    self.cx.results.waiters().map(|key| key as usize).collect();
                for key in waiters {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.handle_redis_lost(&mut self.cx);
                        self.drive(key);
                    }
                }
            }
        }
    }

    /// Results, for whoever has the sockets of the link to Redis.
    pub fn results(&mut self) -> &mut Results<u32> {
        &mut self.cx.results
    }

    /// Some route serves results.
    pub fn serves_results(&self) -> bool {
        self.cx.routes.iter().any(|route| matches!(route.target, RouteTarget::Output))
    }

    /// Frees what ended in this turn. *Slots are freed last.*
    pub fn reap(&mut self) {
        if self.closed.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.closed) {
            self.timers.disarm(key);
            let session = self.sessions.remove(key);
            self.release(session);
        }
        self.cx.routes.release_unused(&mut self.cx.upstreams);
    }

    /// Half of a crowd has left: what it needed in memory is worth giving back. True once for each half.
    pub fn has_thinned_out(&mut self) -> bool {
        self.crowd = self.crowd.max(self.sessions.len());
        let has_thinned_out = self.crowd >= CROWD_MIN && self.sessions.len() <= self.crowd / 2;
        if has_thinned_out {
            self.crowd = self.sessions.len();
            self.shrink_to_fit();
        }
        has_thinned_out
    }

    /// Gives back the slots behind the last one that is in use. The lowest are taken first from then on.
    pub fn shrink_to_fit(&mut self) {
        self.sessions.shrink_to_fit();
        self.timers.shrink_to_fit();
    }

    /// When the next turn must begin even if nothing happens; a moment in the past: at once.
    pub fn next_turn(&self) -> Option<Moment> {
        if !self.yielded.is_empty() {
            return Some(self.cx.now);
        }
        let drained = match self.lifecycle {
            Lifecycle::Draining { until } => until,
            Lifecycle::LastCall { until } => Some(until),
            Lifecycle::Serving | Lifecycle::Stopped => None,
        };
        [self.timers.next(), drained, self.cx.results.deadline()].into_iter().flatten().min()
    }

    /// The next backend's name to be looked up; [`Gateway::resolved`] brings the answer.
    pub fn poll_lookup(&mut self) -> Option<Lookup> {
        let upstream = self.cx.lookups.pop()?;
        let url = self.cx.upstreams.url(upstream);
        Some(Lookup { upstream, host: url.host().to_owned(), port: url.port() })
    }

    /// What looking up a name gave: addresses in the order to try them, or why there are none.
    pub fn resolved(&mut self, upstream: UpstreamId, answer: Result<Vec<SocketAddr>, String>) {
        if let Err(why) = &answer
            && self.cx.upstreams.is_known(upstream)
        {
            warn!(target: "dial", "name not found backend={} why=\"{why}\"", self.cx.upstreams.url(upstream).public_text());
        }
        self.cx.upstreams.resolved(upstream, answer);
        let waiting: Vec<usize> = self
            .sessions
            .iter()
            .filter(
                |(_, session)| matches!(session.phase(), Phase::Dial(dial) if dial.is_looking_up()),
            )
            .map(|(key, _)| key)
            .collect();
        waiting.into_iter().for_each(|key| self.drive(key));
    }

    /// Begins to stop: no new work, what is in flight may finish within the drain time.
    pub fn drain(&mut self) {
        if self.lifecycle != Lifecycle::Serving {
            return;
        }
        let until = self.cx.after(self.drain_timeout);
        let timeout =
            self.drain_timeout.map_or_else(|| "none".to_owned(), |timeout| format!("{timeout:?}"));
        info!(target: "gateway", "draining connections={} timeout={timeout}", self.sessions.len());
        self.lifecycle = Lifecycle::Draining { until };
        self.cx.is_draining = true;
        self.cx.results.finish(self.cx.now);
        self.drain_sessions(false);
        self.check_drain();
    }

    /// Takes other settings. Open connections stay, with the route they came by.
    pub fn adopt(&mut self, settings: Settings) {
        let Settings { session, limits, routes, drain_timeout, tasks, link } = settings;
        let clients = self
            .sessions
            .iter()
            .filter(|(_, session)| session.who().admission == Admission::Client);
        self.cx.limits.reload(limits, clients.map(|(_, session)| session.who().ip));
        if wants_redis(&routes, &link) && self.cx.results.link().is_none() {
            match Link::new(&link, tasks, self.cx.now, self.cx.chance.u64(..)) {
                Ok(link) => self.cx.results.begin_link(link),
                Err(why) => warn!(target: "redis", "no link to Redis why=\"{why}\""),
            }
        }
        self.cx.routes.reload(routes, &mut self.cx.upstreams);
        self.cx.settings = session;
        self.cx.results.reload(tasks);
        self.drain_timeout = drain_timeout;
        log_routes(&self.cx);
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.sessions[key].handle_settings(self.cx.now);
            self.drive(key);
        }
    }

    /// A drain has ended: nothing is left to be done.
    pub fn is_stopped(&self) -> bool {
        self.lifecycle == Lifecycle::Stopped
    }

    /// Connections of every kind.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes held back for slow peers, over all sessions.
    pub fn backlog_bytes(&self) -> usize {
        let held = self.sessions.iter().map(|(_, session)| match session.phase() {
            Phase::Relay(relay) => relay.backlog_bytes(),
            Phase::Output(output) => output.held_bytes(),
            _ => 0,
        });
        held.sum()
    }

    pub fn stats(&mut self) -> &mut Stats {
        &mut self.cx.stats
    }

    /// The one door: lets a session do all it can, then sees what it wants.
    fn drive(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_closed() {
            return;
        }
        let is_yielding = match session.drive(&mut self.cx) {
            Driven::Wait => false,
            Driven::Yield => true,
            Driven::Ask(question) => {
                let reply = self.report(&question);
                self.sessions[key].answer(question.asked, reply, &mut self.cx);
                // A client that pipelines questions gets one answer a turn.
                true
            }
            Driven::Closed => {
                if session.who().admission == Admission::Inbox {
                    self.workers -= 1; // now, for it stands among the closed ones from here on
                }
                return self.closed.push(key);
            }
        };
        let session = &mut self.sessions[key];
        if is_yielding && !std::mem::replace(&mut session.is_yielded, true) {
            self.yielded.push(key);
        }
        if let Some(at) = session.deadline() {
            self.timers.arm(key, at);
        }
    }

    fn release(&mut self, mut session: Session) {
        match session.who().admission {
            Admission::Client | Admission::Inbox => {}
            Admission::Refused => self.refusals -= 1,
        }
        session.release(&mut self.cx);
    }

    fn drain_sessions(&mut self, is_last_call: bool) {
        let keys: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.sessions[key].drain(is_last_call, &mut self.cx);
            self.drive(key);
        }
    }

    fn check_drain(&mut self) {
        let is_due = |until: Option<Moment>| until.is_some_and(|until| until <= self.cx.now);
        match self.lifecycle {
            Lifecycle::Serving | Lifecycle::Stopped => {}
            // Workers do not keep it: they would never leave.
            _ if self.sessions.len() == self.closed.len() + self.workers
                && self.cx.results.is_at_rest() =>
            {
                self.stop()
            }
            // Redis is given what was heard, within a last call's time, for the next gateway to deliver.
            Lifecycle::Draining { .. }
                if self.sessions.len() == self.closed.len() + self.workers =>
            {
                self.lifecycle = Lifecycle::LastCall { until: self.cx.now + LAST_CALL };
            }
            Lifecycle::Draining { until } if is_due(until) => {
                info!(target: "gateway", "drain time is over connections={}", self.sessions.len());
                self.lifecycle = Lifecycle::LastCall { until: self.cx.now + LAST_CALL };
                self.drain_sessions(true);
            }
            Lifecycle::LastCall { until } if is_due(Some(until)) => self.stop(),
            Lifecycle::Draining { .. } | Lifecycle::LastCall { .. } => {}
        }
    }

    /// Ends what is left, now.
    pub fn stop(&mut self) {
        self.lifecycle = Lifecycle::Stopped;
        for session in std::mem::take(&mut self.sessions)
            .into_iter()
            .map(|(_, session)| session)
            .collect::<Vec<_>>()
        {
            self.release(session);
        }
        self.closed.clear();
        self.yielded.clear();
        self.timers = Timers::new();
    }
}

/// Results come from Redis, and some route serves them.
fn wants_redis(routes: &[RouteSettings], link: &link::Settings) -> bool {
    !link.is_embedded() && routes.iter().any(|route| route.target == Target::Output)
}

fn log_routes(cx: &Context) {
    for route in cx.routes.iter() {
        info!(target: "gateway", "route {} path={} to={}", route.name, route.path, route.target_text(&cx.upstreams));
    }
}
