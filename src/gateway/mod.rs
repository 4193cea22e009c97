//! Sessions, timers, Redis sockets, backends and limits as one whole; no clock and no real socket.
//!
//! The reactor, or a simulated world, reports what happened and when. The order of a turn is fixed
//! here, and is the same for both:
//!
//! 1. [`Gateway::begin_turn`] sets the moment of the turn.
//! 2. [`Gateway::ready`] for each event, [`Gateway::handle_answer`] for each finished background
//!    job.
//! 3. [`Gateway::settle`]: Redis is read, sessions that yielded go on, results are delivered, and
//!    only then deadlines are judged.
//! 4. [`Gateway::admit`] for each accepted connection; [`Gateway::drain`], [`Gateway::stop`],
//!    [`Gateway::reload`] on a signal.
//! 5. [`Gateway::finish_turn`]: Redis is written, sessions that ended are freed.
//! 6. [`Gateway::poll_job`] until there is none: the turn's work for the background threads.
//!
//! Two invariants hold it together:
//!
//! - *One door*: `Gateway::drive` is the only caller of [`Session::drive`], and brings timers and
//!   lists up to date after it.
//! - *Slots are freed last*: a session that ended in this turn keeps its slot until
//!   [`Gateway::finish_turn`], so that a late event of this turn cannot reach another session.

#![expect(clippy::indexing_slicing, reason = "keys come from the slab, roles index a pair")]

mod admission;
mod census;
mod drain;
mod events;
mod files;
mod handshakes;
mod memory;
mod probes;
mod redis;
mod refusals;
mod reload;
mod snapshot;
mod stop;
mod streams;
mod sweeps;
mod taps;
mod timeline;
mod workers;

use files::check_audio_root;
pub use reload::InEffect;
use reload::{end_rules, log_routes, wants_redis};

use crate::base::moment::{Moment, WallClock};
use crate::base::queue;
use crate::base::quoted::Quoted;
use crate::base::table::first_capacity;
use crate::base::timers::Timers;
use crate::net::{self, Network, Ready, Source, tls};
use crate::service::endpoints::Answer;
use crate::service::limits::{self, Limits};
use crate::service::link::{self, Link, REDIS_ROLES};
use crate::service::name::LookUpError;
use crate::service::report::Moving;
use crate::service::results::{Delivered, Notice, Results};
use crate::service::route::{RouteSettings, Routes};
use crate::service::stats::Stats;
use crate::service::tasks::{self, Tasks};
use crate::service::trust;
use crate::service::upstreams::{self, UpstreamId, Upstreams};
use crate::session::jobs::{Job, JobAnswer, NameOwner};
use crate::session::respond::Question;
use crate::session::{self, Admission, Context, Driven, Phase, Session, SessionId};
use census::Census;
use drain::RunState;
use handshakes::Handshakes;
use log::{info, warn};
use probes::Probes;
use redis::RedisSockets;
use refusals::Refusals;
use slab::Slab;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};
use stop::Stops;
use sweeps::{Errand, Sweeps};
use timeline::Timeline;

/// Work of a step after which a session still has more to do, whatever it did.
const WORK_OF_A_STEP: usize = 64 * 1024;

/// How much is done in one turn; what is left is done in the next ones. By default about a
/// millisecond's worth. The simulation has smaller turns, in which a few sessions get as much in
/// each other's way as thousands do in large ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnLimits {
    /// Work after which sessions that have more to do wait for the next turn, in bytes written or
    /// what takes as long. See [`Context::work`].
    pub work: usize,
    /// Work of a census, see `gateway/census.rs`.
    pub census: usize,
    /// Deadlines that are judged.
    pub deadlines: usize,
    /// Results handed to clients.
    pub deliveries: usize,
    /// Tasks that are looked up after Redis came back.
    pub look_ups: usize,
    /// Results that may wait to be handed to clients, over all turns.
    pub queued: usize,
}

impl Default for TurnLimits {
    fn default() -> TurnLimits {
        TurnLimits {
            work: 1 << 20,
            census: 16 * 1024,
            deadlines: 256,
            deliveries: 64,
            look_ups: 256,
            queued: 4096,
        }
    }
}

/// Unused slots are released once the number of sessions has halved, from this number up.
const RELEASE_FROM: usize = 64;

/// How the gateway behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Settings {
    pub session: session::Settings,
    pub limits: limits::Settings,
    pub trust: trust::Settings,
    pub routes: Vec<RouteSettings>,
    /// Timeout for a drain; `None`: no limit.
    pub drain_timeout: Option<Duration>,
    /// How results are kept.
    pub tasks: tasks::Settings,
    /// How results arrive: from Redis, or through the embedded inbox.
    pub link: link::Settings,
    /// How backends are found.
    pub upstreams: upstreams::Settings,
    /// Certificates and roots.
    pub tls: tls::Settings,
}

/// Everything between accepted sockets and backends.
pub struct Gateway {
    sessions: Slab<Session>,
    timers: Timers,
    /// Sessions that had more to do than their budget.
    yielded: VecDeque<usize>,
    /// Sessions that have ended and still have their slots.
    closed: Vec<usize>,
    redis: RedisSockets,
    /// When results are due to be settled although nothing touched them.
    results_due_at: Option<Moment>,
    /// The walk over all sessions that is under way.
    census: Option<Census>,
    /// Requests that wait for the next one.
    questions: Vec<(SessionId, Box<Question>)>,
    /// Live frames are followed.
    is_tapped: bool,
    /// What snapshots for watchers are compared with.
    moving: Moving,
    /// The longest delay of a turn since the last snapshot.
    loop_lag: Duration,
    /// Requests to stop a task that wait for an answer of Redis.
    stops: Stops,
    /// The walks over all sessions that change them.
    sweeps: Sweeps,
    probes: Probes,
    /// Files that are watched were written to.
    has_written_files: bool,
    forget_streams_at: Moment,
    /// The largest number of sessions since unused slots were last released.
    sessions_peak: usize,
    refusals: Refusals,
    handshakes: Handshakes,
    /// Open connections of workers.
    workers: usize,
    /// Open connections to the addresses for admins.
    admins: usize,
    /// Connections of workers that are being rejected for lack of room.
    refused_workers: usize,
    /// The gateway itself is where workers publish.
    is_inbox: bool,
    /// Connections of every kind since the start.
    serials: u64,
    budget_watch: memory::BudgetWatch,
    run_state: RunState,
    drain_timeout: Option<Duration>,
    turn: TurnLimits,
    timeline: Timeline,
    started: Moment,
    started_wall: SystemTime,
    cx: Context,
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
        let Settings { session, limits, trust, routes, drain_timeout, tasks, link, upstreams, tls } =
            settings;
        let is_inbox = link.is_embedded();
        let redis = match wants_redis(&routes, &link) {
            true => Some(
                Link::new(&link, tasks, now, chance.u64(..))
                    .map_err(|why| format!("redis.url: {why}"))?,
            ),
            false => None,
        };
        let turn = TurnLimits::default();
        let mut results = Results::new(Tasks::new(tasks), redis);
        results.limit_queue(turn.queued);
        let mut cx = Context::new(now, session, network, Limits::new(limits), results, chance);
        cx.upstreams = Upstreams::new(upstreams);
        cx.routes = Routes::new(routes, &mut cx.upstreams);
        cx.inbox_password = link.inbox_password();
        cx.channel_prefix = link.channel_prefix;
        cx.control_prefix = link.control_prefix;
        cx.trust = trust;
        cx.results.set_end_rules(end_rules(&cx.settings));
        cx.tls = tls::Layer::new(tls)?;
        cx.wall = WallClock::new(now, wall);
        log_routes(&cx);
        check_audio_root(&mut cx);
        Ok(Gateway {
            sessions: Slab::with_capacity(first_capacity::<Session>()),
            timers: Timers::new(),
            yielded: VecDeque::new(),
            closed: Vec::new(),
            redis: RedisSockets::new(),
            results_due_at: None,
            census: None,
            questions: Vec::new(),
            is_tapped: false,
            moving: Moving::default(),
            loop_lag: Duration::ZERO,
            stops: Stops::new(),
            sweeps: Sweeps::default(),
            probes: Probes::default(),
            has_written_files: false,
            forget_streams_at: now,
            sessions_peak: 0,
            refusals: Refusals::default(),
            handshakes: Handshakes::default(),
            workers: 0,
            admins: 0,
            refused_workers: 0,
            is_inbox,
            serials: 0,
            budget_watch: memory::BudgetWatch::new(now),
            run_state: RunState::Serving,
            drain_timeout,
            turn,
            timeline: Timeline::new(now),
            started: now,
            started_wall: wall,
            cx,
        })
    }

    /// Does at most this much in a turn from now on.
    pub fn limit_turns(&mut self, turn: TurnLimits) {
        self.turn = turn;
        self.cx.results.limit_queue(turn.queued);
    }

    /// Everything that follows happens at `clock`, a moment of the caller's clock.
    pub fn begin_turn(&mut self, clock: Moment) {
        let (now, standstill) = self.timeline.begin_turn(clock);
        self.cx.now = now;
        self.cx.work = 0;
        if let Some(standstill) = standstill {
            warn!(target: "gateway", "the process did not run, every deadline moves duration={standstill:.3?}");
        }
    }

    /// The moment of this turn, by the caller's clock.
    pub fn now(&self) -> Moment {
        self.timeline.clock(self.cx.now)
    }

    /// The slot that the next admitted connection will have, for its registration.
    pub fn next_key(&self) -> usize {
        self.sessions.vacant_key()
    }

    /// An event of a socket that the gateway owns. Events of other sources are none of its business
    /// and are ignored.
    #[inline]
    pub fn ready(&mut self, source: Source, ready: Ready) {
        match source {
            Source::Session(key, side) => {
                if let Some(session) = self.sessions.get_mut(key) {
                    session.handle_ready(side, ready);
                    // A message never waits behind reports and results that are being written: a
                    // relay costs the same in a turn whose work is done.
                    if self.cx.work < self.turn.work || matches!(session.phase(), Phase::Relay(_)) {
                        self.drive(key);
                    } else {
                        self.go_on_later(key);
                    }
                }
            }
            Source::Link(role) => self.redis.handle_ready(REDIS_ROLES[role], ready),
            Source::Probe(key) => self.probes.handle_ready(key, ready, &mut self.cx),
            Source::Files => self.has_written_files = true,
            Source::Listener(_) | Source::Signal(_) | Source::Waker | Source::Alarm => {}
        }
    }

    /// The outcome of a background job.
    pub fn handle_answer(&mut self, answer: JobAnswer) {
        match answer {
            JobAnswer::LookedUp { owner: NameOwner::Backend(upstream), found } => {
                self.handle_backend_addresses(upstream, found)
            }
            JobAnswer::LookedUp { owner: NameOwner::Redis(role), found } => {
                self.redis.handle_addresses(role, found, &mut self.cx)
            }
            JobAnswer::File(answer) => self.handle_file(answer),
        }
    }

    /// After all events of the turn: reads Redis, goes on with sessions that had more to do,
    /// delivers what was published, and then judges deadlines. In this order, what came in time is
    /// never judged late.
    pub fn settle(&mut self) {
        self.redis.read(&mut self.cx, self.turn.work);
        if self.cx.results.has_more_work() {
            self.cx.results.go_on(self.turn.look_ups);
        }
        self.go_on();
        self.settle_results();
        if self.streams_due_at().is_some_and(|at| at <= self.cx.now) {
            self.settle_streams();
        }
        if self.timers.next().is_some_and(|at| at <= self.cx.now) {
            self.judge_deadlines();
        }
        self.probes.settle(&mut self.cx);
        self.take_census();
        if !self.sweeps.is_empty() {
            self.go_on_sweeping();
        }
        if self.cx.channels.queued() > 0 {
            self.hand_out_publications();
        }
        self.go_on_with_speech();
        self.cx.asset_folder.close();
        self.check_drain();
    }

    fn judge_deadlines(&mut self) {
        self.cx.has_unread_results =
            self.redis.has_news() || self.cx.results.has_deliveries() || self.has_unread_workers();
        let due = std::iter::from_fn(|| self.timers.pop_due(self.cx.now));
        let due: Vec<usize> = due.take(self.turn.deadlines).collect();
        due.into_iter().for_each(|key| self.drive(key));
        self.settle_results();
    }

    /// A worker's connection has yielded: it may have published more than was read.
    fn has_unread_workers(&self) -> bool {
        if self.workers == 0 {
            return false;
        }
        let mut yielded = self.yielded.iter().filter_map(|&key| self.sessions.get(key));
        yielded.any(|session| session.who().admission == Admission::Inbox)
    }

    /// Lets sessions go on that had more to do, in the order in which they came to that, until the
    /// work of this turn is done; at least one of them, so that none waits forever.
    fn go_on(&mut self) {
        for _ in 0..self.yielded.len() {
            let Some(key) = self.yielded.pop_front() else { return };
            if let Some(session) = self.sessions.get_mut(key)
                && std::mem::take(&mut session.is_yielded)
            {
                self.drive(key);
                if self.cx.work >= self.turn.work {
                    return;
                }
            }
        }
    }

    /// The session has something to do in the next turn, or in one soon after.
    fn go_on_later(&mut self, key: usize) {
        if !std::mem::replace(&mut self.sessions[key].is_yielded, true) {
            self.yielded.push_back(key);
        }
    }

    /// Delivers what was published, and reports what happened to Redis.
    #[inline]
    fn settle_results(&mut self) {
        let is_due = self.results_due_at.is_some_and(|at| at <= self.cx.now);
        if is_due || self.cx.results.is_touched() || self.cx.results.has_deliveries() {
            self.settle_results_now();
        }
    }

    fn settle_results_now(&mut self) {
        self.cx.results.settle(self.cx.now);
        while let Some(notice) = self.cx.results.poll_notice() {
            self.handle_notice(notice);
        }
        self.tell_absences();
        self.deliver();
    }

    /// Hands out some of the queued results; the rest has its turn later.
    fn deliver(&mut self) {
        for _ in 0..self.turn.deliveries {
            let Some(delivery) = self.cx.results.poll_delivery(self.cx.now) else { return };
            // Not by `session_mut`, which would lend the context as well.
            let key = delivery.client.key as usize;
            let session = self.sessions.get_mut(key);
            if let Some(session) = session.filter(|session| session.who().id() == delivery.client) {
                match delivery.what {
                    Delivered::Result(result, has_more) => session.handle_result(result, has_more),
                    Delivered::Stop(by) => session.handle_stop(by, &mut self.cx),
                    Delivered::Recalled(outcome) => session.handle_recalled(outcome),
                }
                self.drive(delivery.client.key as usize);
            }
        }
    }

    fn handle_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Up { address } => {
                self.cx.stats.redis_connects += 1;
                info!(target: "redis", "connected address={address}");
            }
            Notice::Stopped { task, by, clients, results } => {
                self.note_stopped(task, by, (clients, results));
            }
            Notice::AudioEnd { task, name } => self.handle_audio_end(task, &name),
            Notice::SpeechRenumbered(renumbered) => self.renumber_speech(renumbered),
            Notice::SpeechGone(key) => self.forget_speech(key),
            Notice::DroppedAfterStop { results } => self.cx.stats.results_after_stop += results,
            Notice::StopAnswered { task, outcome } => self.handle_stop_outcome(task, outcome),
            Notice::Down { why } => warn!(target: "redis", "lost why={}", Quoted(why)),
            Notice::Problem { why } => warn!(target: "redis", "trouble why={}", Quoted(why)),
            Notice::Evicted { results } => {
                self.cx.stats.results_evicted += results;
                warn!(target: "output", "kept results evicted for lack of room results={results}");
            }
            Notice::NotKept { results } => {
                self.cx.stats.results_not_kept += results;
                warn!(target: "output", "results not kept, their task holds half of max_retained results={results}");
            }
            Notice::GraceOver => {
                warn!(target: "redis", "away for longer than the grace: waiting clients are closed");
                self.sweep(Errand::RedisLost);
            }
        }
    }

    /// The session, unless it has ended and its slot is free or another one's.
    fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(id.key as usize).filter(|session| session.who().id() == id)
    }

    /// The same, to be changed.
    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(id.key as usize).filter(|session| session.who().id() == id)
    }

    /// What is known of results, and the link to Redis.
    pub fn results(&mut self) -> &mut Results<SessionId> {
        &mut self.cx.results
    }

    /// The end of a turn: sends what Redis is to get, and frees what ended. *Slots are freed last.*
    pub fn finish_turn(&mut self) {
        // Only what touched the results can have left something to send.
        if self.cx.results.is_touched() {
            self.redis.flush(&mut self.cx);
            self.cx.results.finish_turn();
            self.results_due_at = self.cx.results.deadline();
            self.cx.results.clear_touched();
        }
        if self.cx.speech.can_write() {
            self.cx.jobs.extend(self.cx.speech.begin_write().map(Job::File));
        }
        self.keep_budget();
        if !self.cx.taps.is_empty() {
            self.hand_out_noted();
        } else if self.is_tapped {
            self.is_tapped = false;
        }
        if !self.closed.is_empty() {
            self.reap();
        }
    }

    fn reap(&mut self) {
        // Sessions are added all the time and removed only here.
        self.sessions_peak = self.sessions_peak.max(self.sessions.len());
        for key in std::mem::take(&mut self.closed) {
            self.timers.disarm(key);
            let session = self.sessions.remove(key);
            self.release(session);
        }
        self.cx.routes.release_unused(&mut self.cx.upstreams);
        if self.sessions_peak >= RELEASE_FROM && self.sessions.len() <= self.sessions_peak / 2 {
            self.sessions_peak = self.sessions.len();
            self.shrink_to_fit();
            net::give_memory_back();
        }
    }

    /// Releases the slots behind the last one in use. The lowest ones are used first from then on.
    pub fn shrink_to_fit(&mut self) {
        self.sessions.shrink_to_fit();
        self.timers.shrink_to_fit();
    }

    /// When the next turn must begin even if nothing happens, by the caller's clock; a moment in
    /// the past: at once.
    pub fn next_turn(&self) -> Option<Moment> {
        self.timeline.note_next(self.next_deadline())
    }

    fn next_deadline(&self) -> Option<Moment> {
        if !self.yielded.is_empty()
            || self.redis.has_news()
            || self.cx.results.has_deliveries()
            || self.cx.results.has_notices()
            || self.cx.results.has_more_work()
            || self.cx.channels.queued() > 0
            || self.cx.feeds.has_notices()
            || self.is_census_due()
            || !self.sweeps.is_empty()
        {
            return Some(self.cx.now);
        }
        let results = match self.cx.results.is_touched() {
            true => self.cx.results.deadline(),
            false => self.results_due_at,
        };
        let probes = self.probes.deadline(&self.cx);
        let due = [self.streams_due_at(), self.snapshot_due_at()];
        let due = Moment::earliest(due);
        Moment::earliest([self.timers.next(), self.drain_deadline(), results, probes, due])
    }

    /// The next job for the background threads; [`Gateway::handle_answer`] takes the outcome.
    pub fn poll_job(&mut self) -> Option<Job> {
        queue::take_first(&mut self.cx.jobs)
    }

    fn handle_backend_addresses(
        &mut self,
        upstream: UpstreamId,
        answer: Result<Vec<SocketAddr>, LookUpError>,
    ) {
        if let Err(why) = &answer
            && self.cx.upstreams.is_known(upstream)
        {
            let what = match why {
                LookUpError::NotFound(_) => "name not found",
                LookUpError::Shortage { .. } => "name not looked up",
            };
            let url = self.cx.upstreams.url(upstream).public_text();
            warn!(target: "dial", "{what} backend={url} why={}", Quoted(why));
        }
        self.cx.upstreams.resolved(upstream, answer, self.cx.now);
        self.probes.handle_addresses(&mut self.cx);
        self.sweep(Errand::LookedUp(upstream));
    }

    /// Open connections of every kind, clients and workers.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Every counter.
    pub fn stats(&mut self) -> &mut Stats {
        &mut self.cx.stats
    }

    /// A session has ended: its slot is freed at the end of the turn.
    fn note_closed(&mut self, key: usize) {
        let who = self.sessions[key].who();
        if who.admission == Admission::Inbox {
            self.workers -= 1; // `check_drain` counts it among the closed ones from now on
            self.cx.channels.leave(who.id());
        }
        self.closed.push(key);
    }

    /// *One door*: lets a session do all it can, then updates the timers and lists that it is in.
    fn drive(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.is_closed() {
            return;
        }
        let is_yielding = match session.drive(&mut self.cx) {
            Driven::Wait => false,
            Driven::Yield => true,
            Driven::Ask(question) => {
                self.cx.stats.connections_open = self.cx.limits.open() as u64;
                let is_stop = question.endpoint.answer == Answer::Stop;
                let response = match is_stop {
                    true => self.stop_task(key, &question),
                    false => self.report(&question),
                };
                match response {
                    Some(response) => {
                        self.sessions[key].answer(question.asked, response, &mut self.cx);
                        // A client that pipelines requests gets one answer a turn.
                        true
                    }
                    None if is_stop => {
                        self.sessions[key].await_answer(&self.cx);
                        false
                    }
                    None => {
                        self.ask(key, question);
                        false
                    }
                }
            }
            Driven::Closed => return self.note_closed(key),
        };
        if is_yielding {
            self.cx.work += WORK_OF_A_STEP;
            self.go_on_later(key);
        }
        if let Some(at) = self.sessions[key].deadline() {
            self.timers.arm(key, at);
        }
    }

    fn release(&mut self, mut session: Session) {
        match session.who().admission {
            Admission::Client | Admission::Inbox => {}
            Admission::Refused(_) => self.refusals.remove(),
            Admission::Admin => self.admins -= 1,
            Admission::RefusedWorker => self.refused_workers -= 1,
        }
        session.release(&mut self.cx);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_types, reason = "a test reads what its peer received")]

    use super::*;
    use crate::net::testing::NoNetwork;
    use crate::net::{Side, Socket, Transport};
    use crate::service::route::TargetSettings;
    use crate::service::url::Template;
    use std::cell::RefCell;
    use std::io::{self, ErrorKind, Read, Write};
    use std::rc::Rc;

    /// A peer that has sent some bytes, takes everything and never closes.
    struct ScriptedPeer {
        sent: Vec<u8>,
        received: Rc<RefCell<Vec<u8>>>,
    }

    impl Read for ScriptedPeer {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.sent.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let n = buf.len().min(self.sent.len());
            buf[..n].copy_from_slice(&self.sent[..n]);
            self.sent.drain(..n);
            Ok(n)
        }
    }

    impl Write for ScriptedPeer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.received.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for ScriptedPeer {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const READABLE: Ready = Ready { readable: true, writable: false, read_closed: false };

    pub fn gateway(max_connections: usize) -> Gateway {
        with_routes(max_connections, Vec::new())
    }

    /// With the embedded inbox, if a route serves results.
    pub fn with_routes(max_connections: usize, routes: Vec<RouteSettings>) -> Gateway {
        let settings = Settings {
            // Every client is an admin's.
            trust: trust::Settings {
                admin_from: vec![trust::PeerRule::parse("0.0.0.0/0").expect("it is a network")],
                server_names: vec!["a".into()],
                ..Default::default()
            },
            session: session::Settings::default(),
            limits: limits::Settings {
                max_connections,
                max_connections_per_ip: 0,
                allowed_origins: Vec::new(),
            },
            routes,
            drain_timeout: Some(Duration::from_secs(5)),
            tasks: tasks::Settings::default(),
            link: link::Settings {
                urls: vec!["embedded://127.0.0.1:0".into()],
                ..link::Settings::default()
            },
            upstreams: Default::default(),
            tls: Default::default(),
        };
        let chance = fastrand::Rng::with_seed(1);
        let (now, wall) = (Moment::START, SystemTime::UNIX_EPOCH);
        Gateway::new(settings, Box::new(NoNetwork), chance, now, wall).expect("no Redis is wanted")
    }

    /// With this many clients that wait for results, one task each.
    pub fn with_waiting_clients(count: usize) -> Gateway {
        let path = Template::parse("/ws/output/{task_id}").unwrap();
        let route = RouteSettings { name: "output".into(), path, target: TargetSettings::Output };
        let mut gateway = with_routes(10_000, vec![route]);
        for number in 0..count {
            let request = format!(
                "GET /ws/output/{number:032x} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            client(&mut gateway, request.as_bytes());
        }
        turn(&mut gateway, Moment::START);
        gateway
    }

    /// A socket whose peer has sent these bytes; what that receives.
    pub fn socket_of(sent: &[u8]) -> (Socket, Rc<RefCell<Vec<u8>>>) {
        let received = Rc::default();
        let peer = ScriptedPeer { sent: sent.to_vec(), received: Rc::clone(&received) };
        (Socket::Other(Box::new(peer)), received)
    }

    pub fn socket(sent: &[u8]) -> Socket {
        Socket::Other(Box::new(ScriptedPeer { sent: sent.to_vec(), received: Rc::default() }))
    }

    /// A client that has sent these bytes; what it receives.
    pub fn client(gateway: &mut Gateway, sent: &[u8]) -> Rc<RefCell<Vec<u8>>> {
        let key = gateway.next_key();
        let received = Rc::default();
        let peer = ScriptedPeer { sent: sent.to_vec(), received: Rc::clone(&received) };
        let socket = Socket::Other(Box::new(peer));
        gateway.admit(socket, SocketAddr::from(([192, 0, 2, 1], 5000)));
        gateway.ready(Source::Session(key, Side::Downstream), READABLE);
        received
    }

    pub fn turn(gateway: &mut Gateway, now: Moment) {
        gateway.begin_turn(now);
        gateway.settle();
        gateway.finish_turn();
    }

    /// Bytes under way to one end of a connection.
    type Bytes = Rc<RefCell<Vec<u8>>>;

    /// A peer whose bytes may come later.
    struct TestWire {
        incoming: Bytes,
        outgoing: Bytes,
    }

    impl Read for TestWire {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let mut incoming = self.incoming.borrow_mut();
            let n = buf.len().min(incoming.len());
            buf[..n].copy_from_slice(&incoming[..n]);
            incoming.drain(..n);
            if n == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(n) }
        }
    }

    impl Write for TestWire {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.outgoing.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for TestWire {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn connect_outcome(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Every address is this backend.
    struct OneBackend(Bytes, Bytes);

    impl Network for OneBackend {
        fn connect(&mut self, _: &net::PeerAddress, _: Source) -> io::Result<Socket> {
            let wire = TestWire { incoming: Rc::clone(&self.0), outgoing: Rc::clone(&self.1) };
            Ok(Socket::Other(Box::new(wire)))
        }
    }

    #[test]
    fn relays_are_driven_even_when_the_work_of_a_turn_is_done() {
        let url = crate::service::url::BackendUrl::parse("ws://192.0.2.9/").unwrap();
        let target = TargetSettings::Backend { urls: vec![url], host: None, learn_task: None };
        let path = Template::parse("/ws").unwrap();
        let mut gateway =
            with_routes(10, vec![RouteSettings { name: "input".into(), path, target }]);
        let [from_client, to_client, from_backend, to_backend]: [Bytes; 4] = Default::default();
        let backend = OneBackend(Rc::clone(&from_backend), Rc::clone(&to_backend));
        gateway.cx.network = Box::new(backend);
        let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        from_client.borrow_mut().extend_from_slice(request.as_bytes());
        let key = gateway.next_key();
        let wire = TestWire { incoming: Rc::clone(&from_client), outgoing: Rc::clone(&to_client) };
        let address = SocketAddr::from(([192, 0, 2, 1], 5000));
        gateway.admit(Socket::Other(Box::new(wire)), address);
        let both = Ready { readable: true, writable: true, read_closed: false };
        gateway.ready(Source::Session(key, Side::Downstream), both);
        from_backend.borrow_mut().extend_from_slice(answer.as_bytes());
        gateway.ready(Source::Session(key, Side::Upstream), both);
        turn(&mut gateway, Moment::START);
        assert!(to_client.borrow().starts_with(b"HTTP/1.1 101 "));

        let waiting = gateway.next_key();
        gateway.admit(socket(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"), address);
        gateway.begin_turn(Moment::START);
        gateway.cx.work = gateway.turn.work;
        gateway.ready(Source::Session(waiting, Side::Downstream), READABLE);
        assert!(gateway.sessions[waiting].is_yielded, "others wait for the next turn");
        for (incoming, side, outgoing, frame) in [
            (&from_client, Side::Downstream, &to_backend, b"\x81\x82\0\0\0\0hi".as_slice()),
            (&from_backend, Side::Upstream, &to_client, b"\x81\x02hi".as_slice()),
        ] {
            incoming.borrow_mut().extend_from_slice(frame);
            gateway.ready(Source::Session(key, side), READABLE);
            assert!(outgoing.borrow().ends_with(frame), "{side:?}");
        }
    }

    #[test]
    fn workers_are_bounded() {
        let mut gateway = gateway(1);
        for _ in 0..workers::WORKERS_MAX {
            assert!(gateway.can_admit_worker());
            gateway.admit_worker(socket(b""), SocketAddr::from(([192, 0, 2, 2], 6000)));
        }
        for refused in 0..workers::REFUSED_WORKERS_MAX {
            assert!(gateway.can_admit_worker(), "{refused} have been refused");
            gateway.admit_worker(socket(b""), SocketAddr::from(([192, 0, 2, 2], 6000)));
        }
        assert!(!gateway.can_admit_worker());
        assert_eq!(
            (gateway.workers, gateway.refused_workers),
            (workers::WORKERS_MAX, workers::REFUSED_WORKERS_MAX)
        );
    }

    #[test]
    fn a_session_that_has_more_to_do_makes_the_next_turn_due_at_once() {
        let mut gateway = gateway(10);
        client(&mut gateway, b"");
        turn(&mut gateway, Moment::START);
        assert!(gateway.next_turn().is_some_and(|at| at > gateway.now()), "header_timeout");
        // Two requests in a row: each gets its answer in a turn of its own.
        client(&mut gateway, &b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2));
        assert_eq!(gateway.next_turn(), Some(gateway.now()));
    }

    #[test]
    fn workers_that_flood_the_inbox_share_a_bounded_turn() {
        let mut gateway = gateway(10);
        let publish = b"*3\r\n$7\r\nPUBLISH\r\n$50\r\n\
            task_response:00000000-0000-0000-0000-000000000001\r\n$2\r\n{}\r\n";
        const WORKERS: usize = 8;
        for _ in 0..WORKERS {
            let key = gateway.next_key();
            let from = SocketAddr::from(([192, 0, 2, 2], 6000));
            gateway.admit_worker(socket(&publish.repeat(500)), from);
            gateway.ready(Source::Session(key, Side::Downstream), READABLE);
        }
        let mut turns = 0;
        while gateway.next_turn() == Some(gateway.now()) {
            turn(&mut gateway, Moment::START);
            let work = gateway.cx.work;
            assert!(work < 2 * gateway.turn.work, "{work} in one turn");
            turns += 1;
        }
        assert_eq!(gateway.cx.results.tasks().retained(), WORKERS * 500, "all is heard in the end");
        assert!(turns > WORKERS, "{turns} turns");
    }

    #[test]
    fn sessions_whose_deadlines_come_together_share_several_turns() {
        let mut gateway = gateway(10_000);
        for _ in 0..4 * TurnLimits::default().deadlines {
            client(&mut gateway, b"");
        }
        let late = Moment::START + Duration::from_secs(60);
        turn(&mut gateway, late);
        assert_eq!(gateway.next_turn().map(|at| at <= late), Some(true), "more are due");
        for _ in 0..10 {
            turn(&mut gateway, late);
        }
        assert!(gateway.stats().http()[&408] as usize == 4 * TurnLimits::default().deadlines);
    }
}
