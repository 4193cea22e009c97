//! The world around results: workers, a Redis or the embedded inbox, one gateway or several, and
//! clients that wait.
//!
//! What a gateway owes its clients follows from what it has read, to the byte: a publication counts
//! as heard once the gateway has read its last byte, and what Redis keeps counts as known once the
//! answer has been read. From there on:
//!
//! - No client gets anything that was not published, or anything twice, or a message in the wrong
//!   place.
//! - Results come in the order of their publication, as long as Redis was not away meanwhile.
//! - A prompt client that stays gets everything that its gateway knows, and then the right Close
//!   frame. No client is closed without a reason.
//! - What a gateway heard is kept in Redis in the end, each once, and other gateways deliver it,
//!   also those that subscribed a moment after its publication.
//! - Workers that listen hear STOP, LEFT and BACK (`controls.rs`).
//! - In the end no session is left, and after `retain` no result.

use crate::answers::{AUDIO_MAX, Board, Sound, Task, audio_bytes, folder};
use crate::controls::{Controls, Listener, TaskFacts};
use crate::kernel::{Action, End, Host, LinkId, Nature, Records, Shared, take};
use crate::peers;
use crate::process::{Arrival, Process, is_left_unread};
use crate::redis::{self, Redis, Told};
use crate::simulation::{MS, S, STANDSTILL_MAX, Simulation, draw_nature, kernel, turn_limits};
use crate::waiter::{Hearing, Leaving, Say, Start, Waiter, Ways};
use crate::world::records_of;
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway;
use aivtuber_gateway::net::Source;
use aivtuber_gateway::service::limits;
use aivtuber_gateway::service::link::{self, Subscribe};
use aivtuber_gateway::service::route::{RouteSettings, TargetSettings};
use aivtuber_gateway::service::tasks;
use aivtuber_gateway::service::url::Template;
use aivtuber_gateway::session;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;
use uuid::Uuid;

/// By then faults are over and gateways run; then a client comes for every task, at every port.
const INSPECTED_AFTER: Duration = Duration::from_secs(75);

/// The receive window of some clients.
const SMALL_WINDOW: usize = 100;

const REDIS: &str = "10.0.0.9:6379";

/// The same, by a name that has to be looked up.
const REDIS_NAME: &str = "redis.example:6379";
const PASSWORD: &str = "open";

/// How long the gateways of a world may stand still in all, before the last time that they do.
const STANDSTILLS: Duration = Duration::from_secs(100);

/// Whether the gateways of this world stand still at times.
fn stands_still(seed: u64) -> bool {
    seed % 4 == 1
}

/// Nothing is late that is late by this.
fn standstills_max(standstills: Duration) -> Duration {
    if standstills.is_zero() { Duration::ZERO } else { standstills + STANDSTILL_MAX }
}

/// What is planned from outside.
enum Plan {
    Come(Box<Visit>),
    /// A worker that publishes to the inbox connects.
    Publish(Box<Errand>),
    /// A worker that listens at the inbox connects.
    Listen,
    /// A worker's next step towards Redis.
    Work(usize),
    /// The worker of this answer appends the next part of its file, or says that it is complete.
    Grow {
        answer: usize,
        step: usize,
    },
    Redis(RedisFault),
    Thaw,
    Host(Host),
    Drain(usize),
    Kill(usize),
    Start(usize),
}

struct Visit {
    port: usize,
    task: usize,
    kind: VisitKind,
    /// It has had as many results, or more than there are yet.
    from_result: u64,
    start: Start,
    ways: Ways,
    comebacks: u32,
}

/// What a visitor asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VisitKind {
    Task,
    BadId,
    BadChunk,
}

/// What a worker has to publish to the inbox, and how.
struct Errand {
    answers: Vec<usize>,
    greets: bool,
    write_bite: usize,
    write_pace: Duration,
    read_pace: Duration,
    end: Option<End>,
    cut: bool,
}

#[derive(Debug, Clone, Copy)]
enum RedisFault {
    /// Connections end, all or one, after `after` further bytes.
    Drop {
        is_all: bool,
        end: End,
        after: usize,
    },
    Freeze(Duration),
    /// It is away for some time, and reads its data for some time.
    Restart {
        is_empty: bool,
        away: Duration,
        loads: Duration,
    },
    FlushScripts,
}

/// A worker that publishes to Redis.
struct Worker {
    answers: VecDeque<usize>,
    pace: Duration,
    sets: bool,
    /// The first of `answers` has been set.
    has_set: bool,
}

/// A worker at the embedded inbox.
struct Publisher {
    link: LinkId,
    errand: Errand,
    out: VecDeque<u8>,
    expected: VecDeque<u8>,
    marks: VecDeque<(u64, usize)>,
    write_at: Moment,
    read_at: Moment,
    is_over: bool,
}

/// How a gateway learned of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tell {
    turn: u64,
    at: Moment,
    is_heard: bool,
    /// By the first look-up of the task since the ear began to listen.
    is_first: bool,
}

/// A gateway, and what is known of it from outside.
struct Place {
    /// `None`: it has been stopped or killed.
    process: Option<Process>,
    /// Since when it drains, or when it was killed.
    ended_at: Option<Moment>,
    port: usize,
    /// What it learned, by result.
    told: HashMap<usize, Tell>,
    heard: HashMap<(LinkId, Vec<u8>), usize>,
    looked_up: HashSet<(LinkId, String)>,
    /// Whether the link was up, and since when.
    ups: Vec<(Moment, bool)>,
    turn: u64,
}

/// A waiting client, and what is known of it from outside.
struct Visitor {
    waiter: Waiter,
    place: usize,
    visit: Visit,
    joined: Option<(Moment, u64)>,
    /// Bytes written to it in all, the turn, the moment, and whether its socket was full before.
    writes: Vec<(u64, u64, Moment, bool)>,
    was_full: bool,
    is_done: bool,
}

impl Visitor {
    /// It has never waited for its task: all that it was sent says why not.
    fn was_refused(&self) -> bool {
        let is_at_once = match (self.writes.first(), self.writes.last()) {
            (Some(first), Some(last)) => last.2 < first.2 + S,
            _ => false,
        };
        let is_refusal = matches!(self.waiter.goodbye, Some((Some(4004 | 1013), ..)));
        self.waiter.status != Some(101) || is_refusal && is_at_once
    }
}

pub struct ResultsWorld {
    pub kernel: Shared,
    seed: u64,
    settings: gateway::Settings,
    board: Board,
    by_payload: HashMap<Vec<u8>, Vec<usize>>,
    places: Vec<Place>,
    /// Which place is behind each port.
    ports: Vec<Option<usize>>,
    owners: HashMap<LinkId, usize>,
    visitors: Vec<Visitor>,
    by_link: HashMap<LinkId, Far>,
    publishers: Vec<Publisher>,
    workers: Vec<Worker>,
    /// The worker that listens at the inbox, and what was said there.
    listener: Option<(LinkId, Listener)>,
    controls: Controls,
    redis: Option<Redis>,
    /// Redis stood still for some time, and gateways could not store in time.
    has_frozen: bool,
    host: Host,
    cuts: HashMap<LinkId, (usize, End)>,
    plans: Vec<Option<Plan>>,
    chance: fastrand::Rng,
    margin: Duration,
}

/// Who lives at the far end of a link.
#[derive(Clone, Copy)]
enum Far {
    Visitor(usize),
    Publisher(usize),
    Listener,
    Redis,
}

impl Simulation for ResultsWorld {
    fn new(seed: u64, is_traced: bool) -> ResultsWorld {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x7e5u64.rotate_left(40));
        let has_redis = chance.u8(..3) > 0;
        let is_tiny = !has_redis && chance.u8(..6) == 0;
        let sizes: &[usize] = match (is_tiny, has_redis) {
            (true, _) => &[1, 2, 20],
            (false, true) => &[1000, 4096, 65_536],
            (false, false) => &[100, 4096, 65_536],
        };
        let nature = Nature { records: records_of(seed), ..draw_nature(&mut chance, sizes) };
        let kernel = kernel(seed, nature, is_traced);
        kernel.borrow_mut().takes = (!has_redis).then(Vec::new);
        let standstills = if stands_still(seed) { STANDSTILLS } else { Duration::ZERO };
        kernel.borrow_mut().stands_still = !standstills.is_zero();
        kernel.borrow_mut().standstills_left = standstills;
        let chunk_size = if is_tiny { 16 } else { [16, 100, 5000][chance.usize(..3)] };
        let mut settings = draw_settings(&mut chance, has_redis, chunk_size);
        let has_stalls = chance.u8(..4) == 0;
        settings.session.output.audio_stall = Some(if has_stalls { S } else { 60 * S });
        let now = kernel.borrow().now;
        kernel.borrow_mut().note(|| format!("{settings:?}"));
        let redis = has_redis.then(|| {
            let password = settings.link.urls[0].contains(PASSWORD).then_some(PASSWORD);
            Redis::new(now, redis::Nature { password, refuses_scripts: chance.u8(..8) == 0 })
        });
        let ports = if has_redis { [1, 1, 1, 2, 3][chance.usize(..5)] } else { 1 };
        let mut world = ResultsWorld {
            kernel,
            seed,
            settings,
            board: Board { chunk_size, has_growth: !has_redis, has_stalls, ..Board::default() },
            by_payload: HashMap::new(),
            places: Vec::new(),
            ports: vec![None; ports],
            owners: HashMap::new(),
            visitors: Vec::new(),
            by_link: HashMap::new(),
            publishers: Vec::new(),
            workers: Vec::new(),
            listener: None,
            controls: Controls::default(),
            redis,
            has_frozen: false,
            host: Host::Up(Duration::ZERO),
            cuts: HashMap::new(),
            plans: Vec::new(),
            chance: chance.fork(),
            margin: if is_tiny { 60 * S } else { 20 * S } + standstills_max(standstills),
        };
        world.plan_redis(&mut chance);
        (0..ports).for_each(|port| world.start(port));
        world.plan_work(&mut chance);
        world.plan_visits(&mut chance, is_tiny);
        world.plan_restarts(&mut chance);
        if world.redis.is_none() {
            world.plan(Duration::ZERO, Plan::Listen);
        }
        world
    }

    /// Runs until every peer has left, then checks what is left.
    fn run(&mut self) -> Result<(), String> {
        let start = self.kernel.borrow().start;
        self.advance(Some(start + INSPECTED_AFTER))?;
        self.check_kept()?;
        let stay = 2 * self.margin + 10 * S;
        self.advance(Some(start + INSPECTED_AFTER + stay + 300 * S))?;
        // Everybody has left, and the last ones have been missed.
        self.judge_controls()?;
        self.dismiss_listener();
        self.advance(Some(start + INSPECTED_AFTER + stay + 400 * S))?;
        self.judge()?;
        // Ends are known for as long as results.
        let now = self.kernel.borrow().now;
        self.advance(Some(now + self.settings.tasks.retain.unwrap_or_default() + S))?;
        self.check_nothing_left()
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }

    fn pass(&mut self, now: Moment) {
        if let Some(redis) = &mut self.redis {
            redis.pass(now);
        }
    }

    fn tick(&mut self, link: LinkId) -> Result<(), String> {
        match self.by_link.get(&link) {
            Some(&Far::Visitor(at)) => self.tick_visitor(at),
            Some(&Far::Publisher(at)) => self.tick_publisher(at),
            Some(Far::Listener) => self.tick_listener(link),
            Some(Far::Redis) => self.tick_redis(link),
            None => Ok(()),
        }
    }

    fn carry_out(&mut self, plan: usize) {
        if let Some(plan) = self.plans[plan].take() {
            self.obey_plan(plan);
        }
    }

    /// Connections to Redis that stand.
    fn greet(&mut self) {
        loop {
            let Some(link) = self.kernel.borrow_mut().established.pop_front() else { return };
            if let Some(redis) = &mut self.redis {
                redis.conns.insert(link, redis::Conn::default());
                self.by_link.insert(link, Far::Redis);
                self.kernel.borrow_mut().wake_peer(link);
            }
        }
    }

    fn is_due(&self, now: Moment) -> bool {
        self.places.iter().any(|place| place.process.as_ref().is_some_and(|it| it.is_due(now)))
    }

    fn next_turn(&self) -> Option<Moment> {
        self.places.iter().filter_map(|place| place.process.as_ref()?.next_turn()).min()
    }

    fn turn(&mut self) -> Result<(), String> {
        let now = self.kernel.borrow().now;
        let mut events: HashMap<usize, Vec<_>> = HashMap::new();
        let taken = self.kernel.borrow_mut().take_events();
        for event in taken {
            if let Some(&owner) = self.owners.get(&event.0) {
                events.entry(owner).or_default().push(event);
            }
        }
        for at in 0..self.places.len() {
            let events = events.remove(&at).unwrap_or_default();
            let Some(process) = &mut self.places[at].process else { continue };
            if events.is_empty() && !process.is_due(now) {
                continue;
            }
            self.turn_of(at, events)?;
        }
        Ok(())
    }

    fn check_quiet(&mut self) -> Result<(), String> {
        for (at, place) in self.places.iter_mut().enumerate() {
            let Some(process) = &mut place.process else { continue };
            process.check_quiet().map_err(|why| format!("place {at}: {why}"))?;
            let held = process.gateway.backlog_bytes();
            let kernel = self.kernel.borrow();
            let mut links = self.owners.iter().filter(|(_, owner)| **owner == at);
            if held > 0 && !links.any(|(link, _)| kernel.is_full(*link)) {
                return Err(format!(
                    "place {at}: {held} bytes are held back, and every peer has room"
                ));
            }
            if held > 40_000 * (1 + process.gateway.session_count()) {
                return Err(format!("place {at}: {held} bytes are held"));
            }
            if let Some((link, _)) = self
                .owners
                .iter()
                .find(|(link, owner)| **owner == at && is_left_unread(&kernel, **link))
            {
                return Err(format!("link {link} is not read from"));
            }
        }
        Ok(())
    }
}

impl ResultsWorld {
    fn plan(&mut self, wait: Duration, plan: Plan) {
        self.plans.push(Some(plan));
        self.kernel.borrow_mut().after(wait, Action::Plan(self.plans.len() - 1));
    }

    fn plan_redis(&mut self, chance: &mut fastrand::Rng) {
        if self.redis.is_none() {
            return;
        }
        let address: SocketAddr = REDIS.parse().expect("an address");
        if chance.u8(..6) == 0 {
            self.host = [Host::Refusing(Duration::ZERO), Host::Swallowing][chance.usize(..2)];
            let back = some(chance, 20 * S);
            self.plan(back, Plan::Host(Host::Up(Duration::ZERO)));
        } else {
            self.host = Host::Up([Duration::ZERO, 200 * MS][chance.usize(..2)]);
        }
        self.kernel.borrow_mut().hosts.insert(address, self.host);
        if chance.u8(..4) == 0 {
            return;
        }
        for _ in 0..[1, 2, 5, 10][chance.usize(..4)] {
            let end = [End::Fin, End::Reset][chance.usize(..2)];
            let fault = match chance.u8(..10) {
                0..5 => RedisFault::Drop {
                    is_all: chance.bool(),
                    end,
                    after: if chance.bool() { 0 } else { chance.usize(..300) },
                },
                5..7 => RedisFault::Freeze([MS * 100, 3 * S, 7 * S, 14 * S][chance.usize(..4)]),
                7..9 => RedisFault::Restart {
                    is_empty: chance.bool(),
                    away: [Duration::ZERO, 300 * MS, 3 * S, 15 * S][chance.usize(..4)],
                    loads: [Duration::ZERO, 500 * MS, 4 * S][chance.usize(..3)],
                },
                _ => RedisFault::FlushScripts,
            };
            let at = some(chance, 35 * S);
            self.plan(at, Plan::Redis(fault));
        }
    }

    fn plan_work(&mut self, chance: &mut fastrand::Rng) {
        let tasks = [1, 1, 2, 4][chance.usize(..4)];
        let has_equals = self.ports.len() == 1 && chance.u8(..4) == 0;
        for task in 0..tasks {
            let uuid =
                Uuid::from_u128(u128::from(self.seed) << 64 | 0xabcd_ef00_0000_0000 | task as u128);
            self.board.tasks.push(Task { uuid, out: Vec::new(), is_ahead: false, may_stop: false });
            let count = [0, 1, 1, 2, 5, 12][chance.usize(..6)];
            let ends = chance.u8(..4) > 0;
            let answers: Vec<usize> = (0..count)
                .map(|i| {
                    let is_final = ends && i + 1 == count;
                    let is_equal = has_equals && !is_final && chance.bool();
                    self.board.add(chance, task, is_final, is_equal, self.seed)
                })
                .collect();
            for &answer in &answers {
                self.by_payload
                    .entry(self.board.answers[answer].payload.clone())
                    .or_default()
                    .push(answer);
                if let Sound::Shrinks { .. } = self.board.answers[answer].sound {
                    let at = some(chance, 40 * S);
                    self.plan(at, Plan::Work(usize::MAX - answer));
                }
            }
            let at = if chance.bool() { some(chance, 100 * MS) } else { some(chance, 30 * S) };
            if self.redis.is_some() {
                let pace = [Duration::ZERO, 5 * MS, S, 6 * S][chance.usize(..4)];
                let sets = !has_equals && chance.u8(..3) == 0;
                self.workers.push(Worker { answers: answers.into(), pace, sets, has_set: false });
                self.plan(at, Plan::Work(self.workers.len() - 1));
            } else {
                self.plan_errands(chance, at, answers);
            }
        }
    }

    fn plan_errands(
        &mut self,
        chance: &mut fastrand::Rng,
        mut at: Duration,
        mut answers: Vec<usize>,
    ) {
        while !answers.is_empty() {
            let rest = answers.split_off(chance.usize(1..=answers.len()));
            let errand = Errand {
                answers: std::mem::replace(&mut answers, rest),
                greets: chance.bool(),
                write_bite: [1, 7, usize::MAX, usize::MAX][chance.usize(..4)],
                write_pace: [Duration::ZERO, MS, 50 * MS][chance.usize(..3)],
                read_pace: [Duration::ZERO, 20 * MS, S][chance.usize(..3)],
                end: [Some(End::Fin), Some(End::Reset), None][chance.usize(..3)],
                cut: chance.u8(..4) == 0,
            };
            self.plan(at, Plan::Publish(Box::new(self.hurry(errand))));
            at += 20 * S;
        }
    }

    /// The same errand, done within the time that the world has.
    fn hurry(&self, mut errand: Errand) -> Errand {
        let length = |&answer: &usize| self.board.answers[answer].payload.len() + 100;
        let bytes: usize = errand.answers.iter().map(length).sum();
        let writes = bytes / errand.write_bite.min(bytes).max(1);
        errand.write_pace = errand.write_pace.min(200 * S / writes.max(1) as u32);
        // Sockets may hold a single byte, so each byte of the replies may be a read.
        let replies = 300 + 30 * errand.answers.len() as u32;
        errand.read_pace = errand.read_pace.min(200 * S / replies);
        errand
    }

    fn plan_visits(&mut self, chance: &mut fastrand::Rng, is_tiny: bool) {
        for _ in 0..[1, 2, 4, 8][chance.usize(..4)] {
            let visit = Visit {
                port: chance.usize(..self.ports.len()),
                task: chance.usize(..self.board.tasks.len()),
                kind: match chance.u8(..16) {
                    0 => VisitKind::BadId,
                    1 => VisitKind::BadChunk,
                    _ => VisitKind::Task,
                },
                from_result: if chance.u8(..4) == 0 { chance.u64(..5) } else { 0 },
                start: match chance.u8(..8) {
                    0..2 => Start::Chunk(chance.usize(..5)),
                    2 => Start::Byte(chance.usize(..4 * self.board.chunk_size)),
                    _ => Start::BEGINNING,
                },
                ways: draw_ways(chance, self.settings.session.ping_interval.is_some(), is_tiny),
                comebacks: chance.u32(..3),
            };
            let at = if chance.bool() { some(chance, 200 * MS) } else { some(chance, 35 * S) };
            self.plan(at, Plan::Come(Box::new(visit)));
        }
        self.plan_stops(chance);
        let stay = 2 * self.margin + 10 * S;
        for port in 0..self.ports.len() {
            for task in 0..self.board.tasks.len() {
                let ways = Ways { leaves_after: stay, ..prompt() };
                let visit = Visit {
                    port,
                    task,
                    kind: VisitKind::Task,
                    from_result: 0,
                    start: Start::BEGINNING,
                    ways,
                    comebacks: 0,
                };
                self.plan(INSPECTED_AFTER, Plan::Come(Box::new(visit)));
            }
        }
    }

    /// In some worlds clients stop their tasks, some of them more than once.
    fn plan_stops(&mut self, chance: &mut fastrand::Rng) {
        if chance.u8(..4) > 0 {
            return;
        }
        for plan in self.plans.iter_mut().flatten() {
            if let Plan::Come(visit) = plan
                && visit.kind == VisitKind::Task
                && chance.bool()
            {
                let at = if chance.bool() { Duration::ZERO } else { some(chance, 20 * S) };
                visit.ways.says.push((at, Say::Stop));
                visit.ways.says.sort_by_key(|(at, _)| *at);
                self.board.tasks[visit.task].may_stop = true;
            }
        }
    }

    fn plan_restarts(&mut self, chance: &mut fastrand::Rng) {
        for port in 0..self.ports.len() {
            if chance.u8(..4) == 0 {
                let at = some(chance, 30 * S);
                let plan = if chance.bool() { Plan::Drain(port) } else { Plan::Kill(port) };
                self.plan(at, plan);
            }
        }
    }

    fn tick_visitor(&mut self, at: usize) -> Result<(), String> {
        let visitor = &mut self.visitors[at];
        let link = visitor.waiter.link;
        visitor
            .waiter
            .tick(&mut self.kernel.borrow_mut(), &self.board)
            .map_err(|why| format!("waiter {link}: {why}"))?;
        let is_over = visitor.waiter.is_over || visitor.waiter.saw_end.is_some();
        if !is_over || std::mem::replace(&mut visitor.is_done, true) || visitor.visit.comebacks == 0
        {
            return Ok(());
        }
        let has_all = visitor.waiter.seen.iter().any(|seen| seen.is_final);
        if !has_all && visitor.visit.kind == VisitKind::Task {
            let is_in_audio = visitor.waiter.hearing != Hearing::Rest;
            let numbers = self.chance.bool();
            let last = visitor.waiter.seen.last().filter(|_| numbers);
            let visit = Visit {
                port: self.chance.usize(..self.ports.len()),
                task: visitor.visit.task,
                kind: VisitKind::Task,
                from_result: last.map_or(0, |last| last.number + u64::from(!is_in_audio)),
                start: match (last.is_none() || is_in_audio, self.chance.bool()) {
                    (true, true) => Start::Byte(visitor.waiter.bytes),
                    (true, false) => Start::Chunk(visitor.waiter.chunks),
                    (false, _) => Start::BEGINNING,
                },
                ways: Ways {
                    says: Vec::new(),
                    leaves_after: visitor.waiter.ways.leaves_after.min(60 * S),
                    ..visitor.waiter.ways.clone()
                },
                comebacks: visitor.visit.comebacks - 1,
            };
            let wait = some(&mut self.chance, 2 * S);
            self.plan(wait, Plan::Come(Box::new(visit)));
        }
        Ok(())
    }

    fn tick_redis(&mut self, link: LinkId) -> Result<(), String> {
        let Some(redis) = &mut self.redis else { return Ok(()) };
        let kernel = &mut *self.kernel.borrow_mut();
        if redis.frozen_until.is_some() || redis.conns.get(&link).is_none_or(redis::Conn::is_closed)
        {
            return Ok(());
        }
        let bytes = kernel.receive(link, usize::MAX);
        redis.take(link, &bytes).map_err(|why| format!("Redis does not understand: {why}"))?;
        if kernel.received_end(link).is_some() {
            kernel.close(link);
            redis.conns.get_mut(&link).expect("it is connected").close();
            return Ok(());
        }
        let conn = redis.conns.get_mut(&link).expect("it is connected");
        let mut n = conn.out.len().min(kernel.window(link));
        let cut = self.cuts.get_mut(&link);
        if let Some((left, _)) = &cut {
            n = n.min(*left);
        }
        if n > 0 {
            let bytes = take(&mut conn.out, n);
            kernel.send(link, &bytes);
        }
        if let Some((left, end)) = cut {
            *left -= n;
            if *left == 0 {
                let end = *end;
                kernel.note(|| format!("Redis drops link {link} {end:?}"));
                kernel.end(link, end);
                kernel.links[link].is_far_gone = true;
                conn.close();
            }
        }
        Ok(())
    }

    fn tick_all_redis(&mut self) {
        let links: Vec<LinkId> = self.redis.iter().flat_map(Redis::links).collect();
        links.into_iter().for_each(|link| self.kernel.borrow_mut().wake_peer(link));
    }

    fn tick_publisher(&mut self, at: usize) -> Result<(), String> {
        let kernel = &mut *self.kernel.borrow_mut();
        let publisher = &mut self.publishers[at];
        let link = publisher.link;
        if publisher.is_over {
            return Ok(());
        }
        while kernel.is_to_receive(link) {
            if kernel.now < publisher.read_at {
                kernel.at(publisher.read_at, Action::Peer(link));
                break;
            }
            publisher.read_at = kernel.now + publisher.errand.read_pace;
            for byte in kernel.receive(link, 64) {
                // `#` is any number.
                if publisher.expected.front() == Some(&b'#') {
                    if byte.is_ascii_digit() {
                        continue;
                    }
                    publisher.expected.pop_front();
                }
                if publisher.expected.pop_front() != Some(byte) {
                    return Err(format!("publisher {link} gets a wrong answer"));
                }
            }
        }
        while !publisher.out.is_empty() {
            if kernel.now < publisher.write_at {
                kernel.at(publisher.write_at, Action::Peer(link));
                break;
            }
            let n = publisher.errand.write_bite.min(publisher.out.len()).min(kernel.window(link));
            if n == 0 {
                break;
            }
            let bytes = take(&mut publisher.out, n);
            kernel.send(link, &bytes);
            publisher.write_at = kernel.now + publisher.errand.write_pace;
        }
        if publisher.out.is_empty()
            && let Some(end) = publisher.errand.end
        {
            kernel.end(link, end);
            publisher.errand.end = None;
            publisher.is_over = end == End::Reset;
            // It reads on, for a while.
            kernel.after(20 * S, Action::Peer(link));
            publisher.errand.cut = true;
        } else if publisher.out.is_empty() && publisher.expected.is_empty()
            || kernel.received_end(link).is_some()
        {
            let process = self.owners.get(&link).and_then(|at| self.places[*at].process.as_ref());
            let is_served = process.is_some_and(|process| !process.is_drained);
            if !publisher.expected.is_empty() && !publisher.errand.cut && is_served {
                return Err(format!(
                    "publisher {link} lacks {} bytes of answers",
                    publisher.expected.len()
                ));
            }
            kernel.close(link);
            publisher.is_over = true;
        }
        Ok(())
    }

    fn obey_plan(&mut self, plan: Plan) {
        match plan {
            Plan::Come(visit) => self.come(*visit),
            Plan::Publish(errand) => self.publish_to_inbox(*errand),
            Plan::Listen => self.listen_at_inbox(),
            Plan::Work(worker) if worker > usize::MAX / 2 => self.shrink(usize::MAX - worker),
            Plan::Work(worker) => self.work(worker),
            Plan::Grow { answer, step } => self.grow(answer, step),
            Plan::Redis(fault) => self.strike(fault),
            Plan::Thaw => self.tick_all_redis(),
            Plan::Host(host) => {
                let address: SocketAddr = REDIS.parse().expect("an address");
                self.kernel.borrow_mut().note(|| format!("Redis is {host:?}"));
                self.host = host;
                self.kernel.borrow_mut().hosts.insert(address, host);
            }
            Plan::Drain(port) => {
                let place = self.ports[port].map(|at| &mut self.places[at]);
                if let Some(Place { process: Some(process), ended_at, .. }) = place {
                    let kernel = &mut *self.kernel.borrow_mut();
                    kernel.note(|| format!("drain port {port}"));
                    ended_at.get_or_insert(kernel.now);
                    process.drain();
                }
            }
            Plan::Kill(port) => {
                if let Some(at) = self.ports[port].take() {
                    self.kernel.borrow_mut().note(|| format!("kill port {port}"));
                    self.close(at);
                }
            }
            Plan::Start(port) => self.start(port),
        }
    }

    fn start(&mut self, port: usize) {
        let at = self.places.len();
        self.kernel.borrow_mut().note(|| format!("place {at} opens port {port}"));
        let mut process = Process::new(&self.kernel, self.settings.clone(), self.seed ^ at as u64);
        process.gateway.limit_turns(turn_limits(self.seed));
        let now = self.kernel.borrow().now;
        let place = Place {
            process: Some(process),
            ended_at: None,
            port,
            told: HashMap::new(),
            heard: HashMap::new(),
            looked_up: HashSet::new(),
            ups: vec![(now, false)],
            turn: 0,
        };
        self.places.push(place);
        self.ports[port] = Some(at);
        self.own_redis_links(at);
    }

    fn own_redis_links(&mut self, at: usize) {
        if let Some(process) = &self.places[at].process {
            process.redis_links().into_iter().flatten().for_each(|link| {
                self.owners.insert(link, at);
            });
        }
    }

    /// A gateway has stopped or been killed. It comes back.
    fn close(&mut self, at: usize) {
        let port = self.places[at].port;
        let process = self.places[at].process.take();
        self.places[at].ended_at.get_or_insert(self.kernel.borrow().now);
        for arrival in process.iter().flat_map(|process| &process.arrivals) {
            let (Arrival::Client(link) | Arrival::Worker(link)) = *arrival;
            self.kernel.borrow_mut().refuse(link);
        }
        drop(process);
        self.ports[port] = None;
        let wait = some(&mut self.chance, 3 * S);
        self.plan(wait, Plan::Start(port));
    }

    fn come(&mut self, visit: Visit) {
        let uuid = self.board.tasks[visit.task].uuid;
        // Nobody has had what was not published yet.
        let out = self.board.tasks[visit.task].out.len() as u64;
        let visit = match visit.from_result {
            0 => visit,
            number if number < out => visit,
            _ => Visit { from_result: out, start: Start::BEGINNING, ..visit },
        };
        let Some(place) = self.ports[visit.port] else {
            // No gateway runs there: again in a while.
            self.plan(S, Plan::Come(Box::new(visit)));
            return;
        };
        let usual = uuid.hyphenated().to_string();
        let (segment, id) = match self.chance.u8(..8) {
            0 => (usual.to_uppercase(), usual.to_uppercase()),
            1 => (uuid.simple().to_string(), uuid.simple().to_string()),
            2 => (format!("%7B{usual}%7d"), format!("{{{usual}}}")),
            _ => (usual.clone(), usual),
        };
        let (path, id, task) = match visit.kind {
            VisitKind::BadId => ("/ws/output/7".to_owned(), String::new(), None),
            VisitKind::BadChunk => (format!("/ws/output/{segment}?from_chunk=x"), id, None),
            VisitKind::Task if visit.from_result > 0 => {
                let query = format!("from_result={}&{}", visit.from_result, visit.start.query());
                (format!("/ws/output/{segment}?{query}"), id, Some(visit.task))
            }
            VisitKind::Task if visit.start != Start::BEGINNING => {
                (format!("/ws/output/{segment}?{}", visit.start.query()), id, Some(visit.task))
            }
            VisitKind::Task => (format!("/ws/output/{segment}"), id, Some(visit.task)),
        };
        let request = peers::upgrade_request(&path, "");
        let kernel = &mut *self.kernel.borrow_mut();
        let link = kernel.open();
        kernel.note(|| {
            format!("waiter {link} comes to port {} for {path} {:?}", visit.port, visit.ways)
        });
        if visit.ways.has_small_window {
            kernel.narrow(link, SMALL_WINDOW);
        }
        let about = (id, visit.from_result, visit.start);
        let ways = visit.ways.clone();
        let mut waiter = Waiter::new(kernel, link, task, about, ways, &request);
        waiter.place = place;
        self.by_link.insert(link, Far::Visitor(self.visitors.len()));
        self.owners.insert(link, place);
        self.visitors.push(Visitor {
            waiter,
            place,
            visit,
            joined: None,
            writes: Vec::new(),
            was_full: false,
            is_done: false,
        });
        if let Some(process) = &mut self.places[place].process {
            process.arrivals.push_back(Arrival::Client(link));
        }
    }

    fn publish_to_inbox(&mut self, errand: Errand) {
        let Some(place) = self.ports[0] else {
            self.plan(S, Plan::Publish(Box::new(errand)));
            return;
        };
        let kernel = &mut *self.kernel.borrow_mut();
        let link = kernel.open();
        let (mut out, mut expected, mut marks) =
            (VecDeque::new(), VecDeque::new(), VecDeque::new());
        if errand.greets {
            out.extend(b"*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\nPING\r\n");
            let map = "*14\r\n$6\r\nserver\r\n$16\r\naivtuber-gateway\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:#\r\n\
                       $4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n+PONG\r\n";
            expected.extend(map.bytes());
        }
        let is_transaction = errand.greets && !errand.cut && errand.answers.len() > 1;
        if is_transaction {
            out.extend(b"MULTI\r\n");
            expected.extend(b"+OK\r\n");
        }
        for &answer in &errand.answers {
            let answered = &self.board.answers[answer];
            let channel = format!("task_response:{}", self.board.tasks[answered.task].uuid);
            let payload = &answered.payload;
            out.extend(
                format!(
                    "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n",
                    channel.len(),
                    payload.len()
                )
                .bytes(),
            );
            out.extend(payload);
            out.extend(b"\r\n");
            marks.push_back((out.len() as u64, answer));
            expected.extend(if is_transaction { &b"+QUEUED\r\n"[..] } else { b":1\r\n" });
        }
        if is_transaction {
            // Nothing is published before this.
            out.extend(b"EXEC\r\n");
            let end = out.len() as u64;
            marks.iter_mut().for_each(|(at, _)| *at = end);
            expected.extend(format!("*{}\r\n", errand.answers.len()).bytes());
            errand.answers.iter().for_each(|_| expected.extend(b":1\r\n"));
        }
        if errand.cut && errand.end.is_some() {
            // It dies in the middle of the last one.
            let keep = out.len() - kernel.chance.usize(..30);
            out.truncate(keep);
        }
        kernel.note(|| format!("publisher {link} has {} answers", errand.answers.len()));
        let now = kernel.now;
        kernel.wake_peer(link);
        kernel.after(120 * S, Action::Peer(link));
        self.by_link.insert(link, Far::Publisher(self.publishers.len()));
        self.owners.insert(link, place);
        let publisher = Publisher {
            link,
            errand,
            out,
            expected,
            marks,
            write_at: now,
            read_at: now,
            is_over: false,
        };
        self.publishers.push(publisher);
        if let Some(process) = &mut self.places[place].process {
            process.arrivals.push_back(Arrival::Worker(link));
        }
    }

    fn listen_at_inbox(&mut self) {
        let Some(place) = self.ports[0] else { return self.plan(S, Plan::Listen) };
        let kernel = &mut *self.kernel.borrow_mut();
        let link = kernel.open();
        kernel.note(|| format!("listener {link} connects"));
        kernel.send(link, Listener::COMMAND);
        kernel.wake_peer(link);
        self.by_link.insert(link, Far::Listener);
        self.owners.insert(link, place);
        self.listener = Some((link, Listener::new()));
        if let Some(process) = &mut self.places[place].process {
            process.arrivals.push_back(Arrival::Worker(link));
        }
    }

    fn tick_listener(&mut self, link: LinkId) -> Result<(), String> {
        let Some((_, listener)) = self.listener.as_mut().filter(|(at, _)| *at == link) else {
            return Ok(());
        };
        let (bytes, now, end) = {
            let kernel = &mut *self.kernel.borrow_mut();
            (kernel.receive(link, usize::MAX), kernel.now, kernel.received_end(link))
        };
        listener.take(&bytes, now, &mut self.controls)?;
        if end.is_some() {
            // Its gateway is gone: it connects to the next one.
            self.kernel.borrow_mut().close(link);
            self.listener = None;
            self.plan(100 * MS, Plan::Listen);
        }
        Ok(())
    }

    fn dismiss_listener(&mut self) {
        if let Some((link, _)) = self.listener.take() {
            self.kernel.borrow_mut().close(link);
        }
    }

    /// A worker's next step: `SET`, then `PUBLISH`.
    fn work(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let Some(&answer) = worker.answers.front() else { return };
        let is_usable = matches!(self.host, Host::Up(_));
        let Some(redis) = self.redis.as_mut().filter(|redis| is_usable && redis.is_usable()) else {
            self.plan(100 * MS, Plan::Work(index));
            return;
        };
        let now = self.kernel.borrow().now;
        let name =
            format!("task_response:{}", self.board.tasks[self.board.answers[answer].task].uuid);
        let payload = &self.board.answers[answer].payload;
        let wait = if worker.sets && !worker.has_set {
            self.kernel.borrow_mut().note(|| format!("worker sets {answer}"));
            redis.set(&name, payload, self.settings.tasks.retain.unwrap_or(300 * S));
            worker.has_set = true;
            self.board.put_out(answer, false, now);
            [Duration::ZERO, MS, 2 * S][self.chance.usize(..3)]
        } else {
            let heard = redis.publish(&name, payload);
            self.kernel.borrow_mut().note(|| format!("worker publishes {answer} to {heard}"));
            worker.has_set = false;
            worker.answers.pop_front();
            self.board.put_out(answer, true, now);
            worker.pace
        };
        self.plan(wait, Plan::Work(index));
        self.tick_all_redis();
    }

    fn shrink(&mut self, answer: usize) {
        if let Sound::Shrinks { name, cut, .. } = &self.board.answers[answer].sound {
            self.kernel.borrow_mut().note(|| format!("{name} shrinks to {cut}"));
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(folder().join(name))
                .expect("the file");
            file.set_len(*cut as u64).expect("a shorter file");
        }
    }

    /// A worker goes on with a growing file that it has published.
    fn grow(&mut self, answer: usize, step: usize) {
        let planned = &self.board.answers[answer];
        let Sound::Grows { name, first, steps, is_completed } = &planned.sound else { return };
        let processes = self.places.iter_mut().filter_map(|place| place.process.as_mut());
        match steps.get(step) {
            Some(&count) => {
                let at = first + steps[..step].iter().sum::<usize>();
                self.kernel.borrow_mut().note(|| format!("{name} grows by {count} at {at}"));
                let path = folder().join(name);
                let mut file =
                    std::fs::OpenOptions::new().append(true).open(path).expect("the file");
                file.write_all(&audio_bytes(at, count)).expect("a longer file");
                processes.for_each(Process::note_written);
                let wait = some(&mut self.chance, 400 * MS);
                self.plan(wait, Plan::Grow { answer, step: step + 1 });
            }
            None if *is_completed => {
                self.kernel.borrow_mut().note(|| format!("{name} is complete"));
                let payload = format!(r#"{{"audio_end":"{name}"}}"#);
                let task = self.board.tasks[planned.task].uuid;
                processes.for_each(|process| process.publish(task, payload.as_bytes()));
            }
            None => {}
        }
    }

    fn strike(&mut self, fault: RedisFault) {
        self.kernel.borrow_mut().note(|| format!("Redis: {fault:?}"));
        let Some(redis) = &mut self.redis else { return };
        let now = self.kernel.borrow().now;
        let links: Vec<LinkId> = redis.links().collect();
        match fault {
            RedisFault::Drop { is_all, end, after } => {
                let only = self.chance.usize(..links.len().max(1));
                for (i, link) in links.into_iter().enumerate() {
                    if is_all || i == only {
                        self.cuts.entry(link).or_insert((after, end));
                    }
                }
            }
            RedisFault::Freeze(time) => {
                redis.frozen_until = redis.frozen_until.max(Some(now + time));
                self.has_frozen = true;
                self.plan(time, Plan::Thaw);
            }
            RedisFault::Restart { is_empty, away, loads } => {
                for link in links {
                    let end = if self.chance.bool() { End::Fin } else { End::Reset };
                    self.kernel.borrow_mut().end(link, end);
                    self.kernel.borrow_mut().links[link].is_far_gone = true;
                }
                redis.restart(is_empty);
                if away > Duration::ZERO {
                    self.plan(Duration::ZERO, Plan::Host(Host::Refusing(Duration::ZERO)));
                    self.plan(away, Plan::Host(Host::Up(Duration::ZERO)));
                }
                redis_loads(&mut self.redis, now + away + loads);
            }
            RedisFault::FlushScripts => redis.flush_scripts(),
        }
        self.tick_all_redis();
    }

    // ---- turns

    fn turn_of(
        &mut self,
        at: usize,
        events: Vec<(LinkId, Source, aivtuber_gateway::net::Ready)>,
    ) -> Result<(), String> {
        for visitor in self.visitors.iter_mut().filter(|visitor| visitor.place == at) {
            visitor.was_full = self.kernel.borrow().is_full(visitor.waiter.link);
        }
        let place = &mut self.places[at];
        place.turn += 1;
        let before = place.process.as_ref().map(Process::redis_links).unwrap_or_default();
        let Some(process) = &mut place.process else { return Ok(()) };
        process.turn(events).map_err(|why| format!("place {at}: {why}"))?;
        self.own_redis_links(at);
        self.greet();
        let after = self.places[at].process.as_ref().map(Process::redis_links).unwrap_or_default();
        let ear = before[0];
        for link in before.into_iter().chain(after).flatten() {
            self.tell(at, ear, link);
        }
        self.tell_inbox(at);
        self.note_writes(at);
        let now = self.kernel.borrow().now;
        let place = &mut self.places[at];
        let Some(process) = &mut place.process else { return Ok(()) };
        let is_up = process.gateway.results().is_up();
        if place.ups.last().is_none_or(|last| last.1 != is_up) {
            place.ups.push((now, is_up));
        }
        if process.gateway.is_stopped() {
            self.kernel.borrow_mut().note(|| format!("place {at} has stopped"));
            self.close(at);
        }
        Ok(())
    }

    /// Takes down what the gateway has read on one of its links to Redis.
    fn tell(&mut self, at: usize, ear: Option<LinkId>, link: LinkId) {
        let (now, taken) = (self.kernel.borrow().now, self.kernel.borrow().links[link].taken);
        let Some(conn) = self.redis.as_mut().and_then(|redis| redis.conns.get_mut(&link)) else {
            return;
        };
        let place = &mut self.places[at];
        while conn.marks.front().is_some_and(|mark| mark.at <= taken)
            && let Some(mark) = conn.marks.pop_front()
        {
            match mark.what {
                Told::Heard { payload } => {
                    let nth = place.heard.entry((link, payload.clone())).or_default();
                    let answer = self.by_payload[&payload].get(*nth).copied();
                    *nth += 1;
                    let tell = Tell { turn: place.turn, at: now, is_heard: true, is_first: false };
                    if let Some(answer) = answer {
                        place
                            .told
                            .entry(answer)
                            .and_modify(|old| old.is_heard |= true)
                            .or_insert(tell);
                    }
                }
                Told::LookedUp { key, payloads } => {
                    let is_first = ear.is_some_and(|ear| place.looked_up.insert((ear, key)));
                    let mut counts: HashMap<Vec<u8>, usize> = HashMap::new();
                    for payload in payloads {
                        let nth = counts.entry(payload.clone()).or_default();
                        let answer =
                            self.by_payload.get(&payload).and_then(|answers| answers.get(*nth));
                        *nth += 1;
                        let tell = Tell { turn: place.turn, at: now, is_heard: false, is_first };
                        if let Some(&answer) = answer {
                            place.told.entry(answer).or_insert(tell);
                        }
                    }
                }
            }
        }
    }

    fn tell_inbox(&mut self, at: usize) {
        let now = self.kernel.borrow().now;
        let mut growing = Vec::new();
        // Of several workers that are read in one turn the first one publishes first.
        let takes = self.kernel.borrow_mut().takes.as_mut().map(std::mem::take);
        for (link, taken) in takes.into_iter().flatten() {
            let Some(&Far::Publisher(publisher)) = self.by_link.get(&link) else { continue };
            let publisher = &mut self.publishers[publisher];
            while publisher.marks.front().is_some_and(|(end, _)| *end <= taken)
                && let Some((_, answer)) = publisher.marks.pop_front()
            {
                self.board.put_out(answer, true, now);
                if let Sound::Grows { .. } = self.board.answers[answer].sound {
                    growing.push(answer);
                }
                let place = &mut self.places[at];
                place.told.insert(
                    answer,
                    Tell { turn: place.turn, at: now, is_heard: true, is_first: false },
                );
            }
        }
        for answer in growing {
            let wait = some(&mut self.chance, 400 * MS);
            self.plan(wait, Plan::Grow { answer, step: 0 });
        }
    }

    fn note_writes(&mut self, at: usize) {
        let now = self.kernel.borrow().now;
        let turn = self.places[at].turn;
        for visitor in self.visitors.iter_mut().filter(|visitor| visitor.place == at) {
            let written = self.kernel.borrow().links[visitor.waiter.link].written;
            if visitor.writes.last().map_or(0, |last| last.0) < written {
                visitor.joined.get_or_insert((now, turn));
                visitor.writes.push((written, turn, now, visitor.was_full));
            }
        }
    }

    // ---- in the end

    /// What was heard is kept by Redis.
    fn check_kept(&self) -> Result<(), String> {
        let Some(redis) = &self.redis else { return Ok(()) };
        let now = self.kernel.borrow().now;
        let retain = self.settings.tasks.retain.unwrap_or_default();
        for task in &self.board.tasks {
            let kept = redis.kept(&format!("task_response_kept:{}", task.uuid));
            for payload in &kept {
                let answers = &self.by_payload[*payload];
                let out = answers.iter().filter(|answer| task.out.contains(answer)).count();
                let count = kept.iter().filter(|other| *other == payload).count();
                if count > out {
                    return Err(format!("answer {answers:?} is kept {count} times"));
                }
            }
        }
        if redis.nature.refuses_scripts || self.is_tight() {
            return Ok(());
        }
        for (at, place) in self.places.iter().enumerate() {
            let is_well = place.process.is_some()
                && place.ups.last().is_some_and(|up| up.1 && up.0 + self.margin < now);
            for (&answer, tell) in place.told.iter().filter(|(_, tell)| tell.is_heard && is_well) {
                let task = &self.board.tasks[self.board.answers[answer].task];
                let is_due = !task.may_stop
                    && tell.at + self.margin < now
                    && tell.at + retain > now + 10 * S
                    && redis.lost_at.is_none_or(|at| at < tell.at);
                let task = &self.board.tasks[self.board.answers[answer].task];
                let kept = redis.kept(&format!("task_response_kept:{}", task.uuid));
                if is_due && !kept.contains(&&self.board.answers[answer].payload) {
                    return Err(format!(
                        "answer {answer}, which place {at} has heard, is not kept"
                    ));
                }
            }
        }
        Ok(())
    }

    fn is_tight(&self) -> bool {
        self.settings.tasks.max_retained < 1 << 20
    }

    fn judge(&mut self) -> Result<(), String> {
        for (at, place) in self.places.iter_mut().enumerate() {
            let Some(process) = &mut place.process else { continue };
            if process.gateway.session_count() > 0 {
                return Err(format!(
                    "place {at}: {} sessions never end",
                    process.gateway.session_count()
                ));
            }
            if process.gateway.backlog_bytes() > 0 {
                return Err(format!(
                    "place {at}: {} bytes are still held",
                    process.gateway.backlog_bytes()
                ));
            }
            if process.is_drained {
                return Err(format!("place {at} was drained, and does not stop"));
            }
        }
        for visitor in &self.visitors {
            let link = visitor.waiter.link;
            if !self.kernel.borrow().links[link].is_dropped {
                return Err(format!("link {link} is still open"));
            }
            self.judge_visitor(visitor).map_err(|why| format!("waiter {link}: {why}"))?;
        }
        Ok(())
    }

    fn judge_controls(&self) -> Result<(), String> {
        let now = self.kernel.borrow().now;
        let facts = |(index, task): (usize, &Task)| {
            let visitors = self.visitors.iter().filter(|it| it.waiter.task == Some(index));
            let waits = visitors.filter(|it| !it.was_refused()).filter_map(|it| {
                let (joined, _) = it.joined.filter(|_| it.waiter.ways.is_prompt)?;
                Some((joined, it.waiter.listened_until(now)))
            });
            let waits: Vec<_> = waits.collect();
            let is_finished = task.out.iter().any(|&answer| self.board.answers[answer].is_final);
            // LEFT follows after a while, and once a gateway drains, it says nothing.
            let of_task = self.visitors.iter().filter(|it| it.waiter.task == Some(index));
            let stayed = of_task.filter(|it| it.joined.is_some() && !it.was_refused());
            let last = stayed.max_by_key(|it| it.waiter.listened_until(now));
            let has_no_time = last.is_some_and(|it| {
                let by = it.waiter.listened_until(now) + self.margin;
                self.places[it.place].ended_at.is_some_and(|at| at < by)
            });
            TaskFacts {
                uuid: task.uuid,
                may_stop: task.may_stop,
                is_unfinished: !is_finished && !waits.is_empty() && !has_no_time,
                waits,
            }
        };
        let tasks: Vec<TaskFacts> = self.board.tasks.iter().enumerate().map(facts).collect();
        // What is to be said while Redis is away is said late, and heard as if another gateway had.
        let start = self.kernel.borrow().start;
        let has_come_up = |place: &Place| {
            let mut ups = place.ups.iter().filter(|up| up.1);
            ups.next().is_some_and(|up| up.0 <= start + S) && ups.next().is_none()
        };
        let stays_up = |place: &Place| place.ups.last().is_some_and(|up| up.1);
        let is_calm = self.places.len() == 1
            && self.places.iter().all(|place| has_come_up(place) && stays_up(place));
        let controls = self.redis.as_ref().map_or(&self.controls, |redis| &redis.controls);
        let lag = if self.redis.is_some() { Duration::ZERO } else { self.margin };
        controls.judge(&tasks, is_calm.then_some(lag))
    }

    fn judge_visitor(&self, visitor: &Visitor) -> Result<(), String> {
        let waiter = &visitor.waiter;
        if self.has_late_head(waiter) {
            return Ok(());
        }
        if waiter.misses_results && !self.is_tight() {
            return Err("it got the error that results are gone, and there was room for all".into());
        }
        waiter.judge_goodbye()?;
        self.judge_early_close(visitor)?;
        self.judge_reason(visitor)?;
        let is_held_back =
            |offset| !self.kernel.borrow().links[waiter.link].left_before_file(offset);
        if let Some(seen) = waiter.seen.iter().find(|seen| is_held_back(seen.offset)) {
            return Err(format!("a text was held back while its audio was read: {}", seen.view));
        }
        let place = &self.places[visitor.place];
        let was_killed = place.process.is_none();
        let is_strict = waiter.ways.is_prompt && !waiter.left_first;
        if is_strict && !was_killed && waiter.has_faulted.is_none() {
            if waiter.status != Some(101) {
                return Err(format!("it was answered {:?}", waiter.status));
            }
            let may_break = matches!(waiter.hearing, Hearing::Chunk { .. } | Hearing::Audio { .. })
                && waiter.hears_what_shrinks(&self.board);
            if waiter.goodbye.is_none() && waiter.saw_end.is_some() && !may_break {
                return Err("an end without a Close frame".into());
            }
            if self.kernel.borrow().links[waiter.link].lost > 0 {
                return Err("an RST destroyed what was on its way to it".into());
            }
        }
        let is_answered = waiter.has_closed.is_some_and(|own| {
            waiter
                .goodbye
                .as_ref()
                .is_some_and(|(code, reason, _)| *code == own && reason != "done")
        });
        if is_answered && !waiter.pings.is_empty() && waiter.hearing == Hearing::Rest && !was_killed
        {
            return Err(format!("{} pings were not answered", waiter.pings.len()));
        }
        if waiter.ways.is_prompt && waiter.status == Some(101) {
            self.judge_order(visitor)?;
            self.judge_owed(visitor)?;
            self.judge_found(visitor)?;
            self.judge_waiting(visitor)?;
        }
        Ok(())
    }

    /// A client that gets nothing but a Close frame with 1000 has had the final result.
    fn judge_early_close(&self, visitor: &Visitor) -> Result<(), String> {
        let waiter = &visitor.waiter;
        let Some((Some(1000), reason, at)) = &waiter.goodbye else { return Ok(()) };
        let Some(task) = waiter.task.filter(|_| waiter.seen.is_empty() && reason == "done") else {
            return Ok(());
        };
        let out = &self.board.tasks[task].out;
        let has_had_all = out.iter().take(waiter.from_result as usize);
        let mut has_had_all = has_had_all.map(|&answer| &self.board.answers[answer]);
        match has_had_all.any(|answer| answer.is_final) {
            false if self.is_numbered_by_place(task, *at) => {
                Err("it was closed without having had the final result".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether there was a reason for the Close frame.
    fn judge_reason(&self, visitor: &Visitor) -> Result<(), String> {
        let waiter = &visitor.waiter;
        let Some((code, _, at)) = &waiter.goodbye else { return Ok(()) };
        let Some((joined, _)) = visitor.joined else { return Ok(()) };
        let place = &self.places[visitor.place];
        let settings = &self.settings;
        match code {
            Some(4008) => {
                let timeout =
                    settings.session.output.timeout.ok_or("a timeout, and there is none")?;
                let last = waiter.seen.last().and_then(|seen| self.write_of(visitor, seen.offset));
                // With TLS, the answer to the upgrade waits until the handshake's last bytes have
                // left, and the timeout does not.
                let slack = match self.kernel.borrow().nature.records {
                    Records::Tls => self.margin,
                    Records::None | Records::Simulated => Duration::ZERO,
                };
                if *at + slack < last.map_or(joined, |(_, at, _)| at) + timeout {
                    return Err("it was closed too early".into());
                }
            }
            Some(1013) => {
                let grace = settings.link.grace.ok_or("Redis is away, and there is no grace")?;
                let away = place
                    .ups
                    .iter()
                    .zip(place.ups.iter().map(|up| up.0).skip(1).chain([*at]))
                    .any(|(up, until)| !up.1 && up.0 + grace <= until.min(*at));
                if self.redis.is_none() || !away {
                    return Err("Redis was not away".into());
                }
            }
            Some(1012) if place.process.is_some() => return Err("it was not drained".into()),
            _ => {}
        }
        Ok(())
    }

    /// When the byte at `offset` was written: turn, moment, and whether the socket had been full.
    fn write_of(&self, visitor: &Visitor, offset: u64) -> Option<(u64, Moment, bool)> {
        let write = visitor.writes.iter().find(|write| write.0 > offset)?;
        Some((write.1, write.2, write.3))
    }

    fn is_up_between(&self, place: &Place, from: Moment, to: Moment) -> bool {
        let mut state = false;
        for &(at, is_up) in &place.ups {
            if at <= from {
                state = is_up;
            } else if at <= to {
                state &= is_up;
            }
        }
        state
    }

    /// A handshake of TLS that comes byte by byte may leave no time for the head of a request.
    fn has_late_head(&self, waiter: &Waiter) -> bool {
        let timeout = self.settings.session.header_timeout.unwrap_or(Duration::MAX);
        waiter.status == Some(408)
            && self.kernel.borrow().nature.records == Records::Tls
            && waiter.saw_end.is_some_and(|(_, at)| at - waiter.came_at >= timeout)
    }

    fn judge_order(&self, visitor: &Visitor) -> Result<(), String> {
        let (Some(task), Some((joined, _))) = (visitor.waiter.task, visitor.joined) else {
            return Ok(());
        };
        let until = visitor.waiter.listened_until(self.kernel.borrow().now);
        let out = &self.board.tasks[task].out;
        let Some(first_out) = out.first().and_then(|&first| self.board.answers[first].out_at)
        else {
            return Ok(());
        };
        // What several gateways keep is in order while none of them is kept from keeping it. One
        // that stands still before it looks again may have passed on what came later.
        let is_alone = self.ports.len() == 1;
        let are_calm = self.places.iter().all(|place| self.is_calm(place, first_out, until));
        let is_in_order = is_alone || !self.is_tight() && are_calm && !stands_still(self.seed);
        if !is_in_order || !self.is_up_between(&self.places[visitor.place], joined, until) {
            return Ok(());
        }
        if self.is_numbered_by_place(task, until) {
            for seen in &visitor.waiter.seen {
                let answer = out.get(seen.number as usize);
                if answer.is_none_or(|&answer| self.board.answers[answer].view != seen.view) {
                    return Err(format!("{} has the number {}", seen.view, seen.number));
                }
            }
        }
        let mut out = out.iter();
        for seen in &visitor.waiter.seen {
            if !out.any(|&answer| self.board.answers[answer].view == seen.view) {
                let views: Vec<&str> = visitor
                    .waiter
                    .seen
                    .iter()
                    .map(|seen| &seen.view[..seen.view.len().min(20)])
                    .collect();
                return Err(format!("out of order: {views:?}"));
            }
        }
        Ok(())
    }

    /// Whether the link of a gateway was up from then on, or from its start on.
    fn is_calm(&self, place: &Place, from: Moment, until: Moment) -> bool {
        match place.ups[0].0 <= from {
            true => self.is_up_between(place, from, until),
            false => place.ups.iter().filter(|up| up.0 <= until).skip(1).all(|up| up.1),
        }
    }

    /// Whether the number of each result of a task can only be its place among all that were
    /// published: no gateway missed one or was restarted, and nothing that was kept has gone.
    fn is_numbered_by_place(&self, task: usize, until: Moment) -> bool {
        let first = self.board.tasks[task].out.first();
        let Some(first_out) = first.and_then(|&first| self.board.answers[first].out_at) else {
            return false;
        };
        let is_heard = |place: &Place| match self.redis {
            Some(_) => place.ups.iter().any(|up| up.1 && up.0 <= first_out),
            None => true,
        };
        let is_kept = self
            .redis
            .as_ref()
            .is_none_or(|redis| !redis.nature.refuses_scripts && redis.lost_at.is_none());
        let keeps_all = !self.is_tight() && !self.board.tasks[task].may_stop;
        let retains = self.settings.tasks.retain == Some(300 * S) && keeps_all;
        let is_steady = |place: &Place| {
            place.process.is_some() && is_heard(place) && self.is_calm(place, first_out, until)
        };
        let subscribes_to_all = self.settings.link.subscribe == Subscribe::Pattern;
        retains
            && is_kept
            && (subscribes_to_all || self.redis.is_none())
            && self.places.len() == self.ports.len()
            && self.places.iter().all(is_steady)
    }

    fn judge_owed(&self, visitor: &Visitor) -> Result<(), String> {
        let waiter = &visitor.waiter;
        let (Some(task), Some((joined, join_turn))) = (waiter.task, visitor.joined) else {
            return Ok(());
        };
        // With numbers that only gateways know, nobody can say here what a client has had.
        let resumes = visitor.visit.from_result > 0;
        let until = waiter.listened_until(self.kernel.borrow().now);
        if self.is_tight() || self.board.tasks[task].may_stop {
            return Ok(());
        }
        if resumes && !self.is_numbered_by_place(task, until) {
            return Ok(());
        }
        let place = &self.places[visitor.place];
        let retain = self.settings.tasks.retain.unwrap_or_default();
        let now = self.kernel.borrow().now;
        let until = waiter.listened_until(now);
        let out = &self.board.tasks[task].out;
        let last = waiter.seen.iter().find(|seen| seen.is_final);
        let last_at = last
            .and_then(|seen| out.iter().position(|&at| self.board.answers[at].view == seen.view));
        let last_write = last.and_then(|seen| self.write_of(visitor, seen.offset));
        let mut owed: HashMap<&str, usize> = HashMap::new();
        for (at, answer) in out.iter().enumerate().skip(visitor.visit.from_result as usize) {
            let Some(tell) = place.told.get(answer) else { continue };
            let is_there = match tell.is_heard {
                true => tell.at >= joined || tell.at + retain > joined + self.margin,
                false => tell.turn >= join_turn,
            };
            let since = tell.at.max(joined);
            let is_owed = match (last_at, last_write) {
                (Some(last_at), Some((turn, write_at, was_full))) => {
                    let before = tell.turn < turn || tell.turn == turn && !was_full;
                    let is_certain = tell.is_heard
                        || tell.is_first && self.is_up_between(place, joined, write_at);
                    at < last_at && before && is_certain
                }
                _ => {
                    let by = since + self.margin;
                    until >= by && (tell.is_heard || self.is_up_between(place, since, by))
                }
            };
            if is_there && is_owed && waiter.has_faulted.is_none() {
                let view = self.board.answers[*answer].view.as_str();
                let count = owed.entry(view).or_default();
                *count += 1;
                if waiter.seen.iter().filter(|seen| seen.view == view).count() < *count {
                    let after = tell.at - self.kernel.borrow().start;
                    return Err(format!(
                        "answer {answer} is lost, which its gateway learned of after {after:?}: {tell:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What another gateway heard just before this one subscribed is found in Redis: that one has
    /// stored it by the time when it is looked for.
    fn judge_found(&self, visitor: &Visitor) -> Result<(), String> {
        let waiter = &visitor.waiter;
        let place = &self.places[visitor.place];
        let (Some(task), Some((joined, _)), None) =
            (waiter.task, visitor.joined, waiter.has_faulted)
        else {
            return Ok(());
        };
        let redis = self.redis.as_ref();
        let keeps_all = redis.is_some_and(|it| !it.nature.refuses_scripts && it.lost_at.is_none())
            && self.settings.tasks.retain == Some(300 * S)
            && self.settings.link.subscribe == Subscribe::Pattern
            && !self.has_frozen
            && !self.kernel.borrow().stands_still
            && !self.is_tight()
            && !self.board.tasks[task].may_stop
            && visitor.visit.from_result == 0;
        let until = waiter.listened_until(self.kernel.borrow().now);
        let out = &self.board.tasks[task].out;
        let last = waiter.seen.iter().find(|seen| seen.is_final);
        let last_at = last
            .and_then(|seen| out.iter().position(|&at| self.board.answers[at].view == seen.view));
        for (at, answer) in out.iter().enumerate().filter(|_| keeps_all) {
            let (answer, number) = (&self.board.answers[*answer], *answer);
            let Some(out_at) = answer.out_at else { continue };
            let Some(up) = place.ups.iter().rfind(|up| up.1 && up.0 <= until) else { continue };
            let is_in_time = |other: &Place| {
                let heard = other.told.get(&number).filter(|tell| tell.is_heard);
                heard.is_some_and(|tell| {
                    tell.at <= up.0 + 50 * MS && self.is_up_between(other, out_at, tell.at + 2 * S)
                }) && other.process.is_some()
            };
            let is_due = match last_at {
                Some(last_at) => at < last_at,
                None => until >= joined.max(up.0) + self.margin,
            };
            if out_at <= up.0
                && is_due
                && self.is_up_between(place, up.0, until)
                && self.places.iter().any(is_in_time)
                && !waiter.seen.iter().any(|seen| seen.view == answer.view)
            {
                return Err(format!("answer {number} is lost, which another gateway had heard"));
            }
        }
        Ok(())
    }

    /// A client that can get no result is closed in time.
    fn judge_waiting(&self, visitor: &Visitor) -> Result<(), String> {
        let waiter = &visitor.waiter;
        let (Some(_), Some((joined, _)), None) = (waiter.task, visitor.joined, waiter.has_faulted)
        else {
            return Ok(());
        };
        let place = &self.places[visitor.place];
        let until = waiter.listened_until(self.kernel.borrow().now);
        if waiter.goodbye.is_some() || place.process.is_none() {
            return Ok(());
        }
        let last = visitor.writes.last().map_or(joined, |write| write.2);
        if waiter.stopped_at.is_some_and(|at| until > at + self.margin) {
            return Err("it asked to stop its task, and nothing happens".into());
        }
        if let Some(timeout) = self.settings.session.output.timeout
            && waiter.seen.is_empty()
            && until > joined + timeout + self.margin
        {
            return Err("it waits for too long".into());
        }
        if let Some(grace) = self.settings.link.grace
            && self.redis.is_some()
            && waiter.hearing == Hearing::Rest
        {
            let ends = place.ups.iter().map(|up| up.0).skip(1).chain([until]);
            for (up, end) in place.ups.iter().zip(ends) {
                if !up.1 && end.min(until) > up.0.max(last) + grace + self.margin && up.0 > joined {
                    return Err("Redis is away, and it is not closed".into());
                }
            }
        }
        Ok(())
    }

    fn check_nothing_left(&mut self) -> Result<(), String> {
        for (at, place) in self.places.iter_mut().enumerate() {
            let Some(process) = &mut place.process else { continue };
            let results = process.gateway.results();
            let (retained, bytes) = (results.tasks().retained(), results.tasks().retained_bytes());
            if retained > 0 || bytes > 0 || !results.tasks().is_empty() {
                let tasks = results.tasks().len();
                return Err(format!(
                    "place {at}: {retained} results of {bytes} bytes, {tasks} tasks are left"
                ));
            }
        }
        Ok(())
    }
}

impl Drop for ResultsWorld {
    fn drop(&mut self) {
        for answer in &self.board.answers {
            if let Sound::Shrinks { name, .. } | Sound::Grows { name, .. } = &answer.sound {
                let _ = std::fs::remove_file(folder().join(name));
            }
        }
    }
}

fn redis_loads(redis: &mut Option<Redis>, until: Moment) {
    if let Some(redis) = redis {
        redis.loads_until = Some(until);
    }
}

// ---- drawing

fn some(chance: &mut fastrand::Rng, most: Duration) -> Duration {
    most * chance.u32(..1000) / 1000
}

fn draw_settings(
    chance: &mut fastrand::Rng,
    has_redis: bool,
    chunk_size: usize,
) -> gateway::Settings {
    let pings = [(None, None), (Some(20 * S), Some(20 * S)), (Some(2 * S), Some(10 * S))];
    let (ping_interval, ping_timeout) = pings[chance.usize(..pings.len())];
    let output = session::output::Settings {
        timeout: [None, Some(2 * S), Some(20 * S), Some(300 * S)][chance.usize(..4)],
        chunk_size,
        audio_root: folder().to_path_buf(),
        path_map: Vec::new(),
        max_audio: AUDIO_MAX,
        audio_wait: Some(Duration::from_millis(20)),
        audio_stall: Some(S),
        ..Default::default()
    };
    let session =
        session::Settings { ping_interval, ping_timeout, output, ..session::Settings::default() };
    let routes = vec![RouteSettings {
        name: "output".into(),
        path: Template::parse("/ws/output/{task_id}").expect("a path"),
        target: TargetSettings::Output,
    }];
    let retain = match chance.u8(..10) {
        0 => None,
        1 => Some(3 * S),
        _ => Some(300 * S),
    };
    let max_retained = if chance.u8(..10) == 0 { 3000 } else { 16 << 20 };
    let login = ["", "", ":open@", "me:open@"][chance.usize(..4)];
    let protocol = if chance.u8(..3) == 0 { "?protocol=resp3" } else { "" };
    let server = if chance.u8(..3) == 0 { REDIS_NAME } else { REDIS };
    let url = if has_redis {
        format!("redis://{login}{server}/{protocol}")
    } else {
        "embedded://127.0.0.1:1".into()
    };
    gateway::Settings {
        trust: Default::default(),
        session,
        limits: limits::Settings {
            max_connections: 1000,
            max_connections_per_ip: 0,
            allowed_origins: Vec::new(),
        },
        routes,
        drain_timeout: Some([S / 10, 2 * S, 30 * S][chance.usize(..3)]),
        tasks: tasks::Settings { retain, max_retained, ..Default::default() },
        link: link::Settings {
            urls: vec![url],
            subscribe: if chance.u8(..3) == 0 { Subscribe::Task } else { Subscribe::Pattern },
            grace: [None, Some(2 * S), Some(10 * S), Some(10 * S)][chance.usize(..4)],
            ..link::Settings::default()
        },
        upstreams: Default::default(),
        tls: Default::default(),
    }
}

fn prompt() -> Ways {
    Ways {
        is_prompt: true,
        read_bite: usize::MAX,
        read_pace: Duration::ZERO,
        reads_most: usize::MAX,
        write_bite: usize::MAX,
        write_pace: Duration::ZERO,
        pong_after: Some(Duration::ZERO),
        has_small_window: false,
        says: Vec::new(),
        leaves_after: 60 * S,
        leaving: Leaving::Close,
    }
}

fn draw_ways(chance: &mut fastrand::Rng, has_pings: bool, is_tiny: bool) -> Ways {
    let mut says = Vec::new();
    for _ in 0..[0, 0, 1, 3, 20][chance.usize(..5)] {
        let say = match chance.u8(..30) {
            0 if !is_tiny => Say::TooBig,
            1 => Say::BadText,
            2 => Say::BadFrame,
            3..18 => Say::Ping([0, 1, 8, 125][chance.usize(..4)]),
            18..24 => Say::Pieces,
            _ => Say::Text,
        };
        let at = if chance.bool() { Duration::ZERO } else { some(chance, 20 * S) };
        says.push((at, say));
    }
    says.sort_by_key(|(at, _)| *at);
    let leaving = match chance.u8(..8) {
        0 if has_pings => Leaving::Silent,
        1 => Leaving::Fin,
        2..4 => Leaving::Reset,
        _ => Leaving::Close,
    };
    let leaves_after =
        [some(chance, 300 * MS), some(chance, 20 * S), 60 * S, 200 * S][chance.usize(..4)];
    let has_small_window = chance.u8(..6) == 0;
    let base = Ways { says, leaving, leaves_after, has_small_window, ..prompt() };
    if chance.u8(..3) > 0 {
        return base;
    }
    let bites = [1, 100, usize::MAX];
    Ways {
        is_prompt: false,
        read_bite: bites[chance.usize(..3)],
        read_pace: [Duration::ZERO, MS, 20 * MS, 3 * S][chance.usize(..4)],
        reads_most: if chance.u8(..3) == 0 { chance.usize(..2000) } else { usize::MAX },
        write_bite: bites[chance.usize(..3)],
        write_pace: [Duration::ZERO, MS, 100 * MS][chance.usize(..3)],
        pong_after: [None, Some(Duration::ZERO), Some(900 * MS), Some(5 * S)][chance.usize(..4)],
        ..base
    }
}
