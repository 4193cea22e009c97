//! A world of relays: which peers connect, what goes wrong, and what everyone must have received in
//! the end.
//!
//! The loop does what the reactor does, in the same order, with simulated time. Whenever nothing is
//! left to do, it checks what no test over real sockets can see: no bytes are unread while the
//! other side has room (a lost wake-up), nothing is held back for a side that is not slow, no
//! record layer holds output that would fit the socket, and no turn was requested that did nothing.

use crate::kernel::{
    Action, Dialer, End, Host, LinkId, Nature, Records, Shared, near_socket, secured,
};
use crate::peers::{self, BackendAnswer, Behavior, Body, Ending, Peer, PeerStage, Role};
use crate::simulation::{MS, S, Simulation, draw_nature, kernel, turn_limits};
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::net::{Side, Source};
use aivtuber_gateway::service::limits;
use aivtuber_gateway::service::name::LookUpError;
use aivtuber_gateway::service::route::{RouteSettings, TargetSettings};
use aivtuber_gateway::service::trust::{self, PeerRule};
use aivtuber_gateway::service::url::{BackendUrl, Template};
use aivtuber_gateway::session::jobs::{self, Job};
use aivtuber_gateway::session::{self, MemoryLimit, OnBackendFailure};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

#[path = "failover.rs"]
pub mod failover;
#[path = "proxied.rs"]
mod proxied;

/// Bytes that one flow may hold back: a read and a handshake, or a pipe.
const HELD_MAX: usize = 512 * 1024;

/// Idle turns allowed in a row, and in one simulated second, for each connection.
const IDLE_TURNS_MAX: u32 = 8;
const IDLE_TURNS_PER_SECOND: u32 = 50;

/// More connections than any world has.
const CONNECTIONS_MANY: usize = 1000;

/// The reason of the Close frame where memory is short.
pub const OUT_OF_MEMORY: &str = "out of memory budget";

/// An event that is planned from outside the gateway.
enum Plan {
    Arrive(Box<(Role, Behavior, Vec<u8>)>),
    Host(SocketAddr, Host),
    Answer(jobs::JobAnswer),
    Drain,
    Reload(Box<gateway::Settings>),
}

pub struct World {
    pub kernel: Shared,
    gateway: Gateway,
    pub peers: Vec<Option<Peer>>,
    by_link: HashMap<LinkId, usize>,
    /// Connections that have not been accepted.
    waiting: VecDeque<LinkId>,
    /// The client in each slot of the gateway.
    slots: HashMap<usize, LinkId>,
    /// The backend of each client, and the client of each backend.
    pairs: HashMap<LinkId, LinkId>,
    plans: Vec<Option<Plan>>,
    answers: Vec<jobs::JobAnswer>,
    orders: Vec<Plan>,
    settings: gateway::Settings,
    backends: Backends,
    is_drained: bool,
    is_reloaded: bool,
    turns: Turns,
}

/// What backends are like in this world.
struct Backends {
    chance: fastrand::Rng,
    is_kind: bool,
    /// One that always answers as it should, beside others that do not.
    good: Option<SocketAddr>,
    scale: Scale,
}

/// How much peers send, and how much sockets hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// Byte by byte.
    Tiny,
    Common,
    /// Streams that fill every buffer.
    Large,
}

#[derive(Default)]
struct Turns {
    in_a_row: u32,
    in_second: u32,
    second: u64,
}

impl Simulation for World {
    fn new(seed: u64, is_traced: bool) -> World {
        let mut chance = fastrand::Rng::with_seed(seed);
        let scale = match chance.u8(..32) {
            0..3 => Scale::Tiny,
            3..6 => Scale::Large,
            _ => Scale::Common,
        };
        let splices = scale == Scale::Large && chance.u8(..3) > 0;
        let sizes: &[usize] = match (scale, splices) {
            (Scale::Tiny, _) => &[1, 2, 20],
            (Scale::Common, _) => &[100, 4096, 65_536],
            (Scale::Large, true) => &[64 * 1024, 200_000, 600_000],
            (Scale::Large, false) => &[5000, 65_536, 300_000],
        };
        let nature = Nature {
            receive_max: sizes[chance.usize(..sizes.len())],
            send_max: sizes[chance.usize(..sizes.len())],
            latency: match scale {
                Scale::Large => [Duration::ZERO, Duration::ZERO, MS / 10][chance.usize(..3)],
                _ => [Duration::ZERO, MS / 10, 5 * MS][chance.usize(..3)],
            },
            cuts: chance.u8(..4) > 0,
            has_quirks: chance.bool(),
            splices,
            peeks_ahead: chance.bool(),
            records: records_of(seed),
        };
        let kernel = kernel(seed, nature, is_traced);
        kernel.borrow_mut().stands_still = seed % 4 == 1;
        let mut settings = draw_settings(&mut chance);
        if proxied::is_proxied(seed, records_of(seed)) {
            proxied::expect_headers(&mut settings, records_of(seed));
        }
        settings.session.memory_limit = draw_memory_limit(seed, scale);
        kernel.borrow_mut().counts_buffers =
            settings.session.memory_limit != MemoryLimit::Unlimited;
        let start = kernel.borrow().now;
        let gateway = Gateway::new(
            settings.clone(),
            Box::new(Dialer(Rc::clone(&kernel))),
            fastrand::Rng::with_seed(seed ^ 0xca5e),
            start,
            UNIX_EPOCH,
        );
        let mut gateway = gateway.expect("its settings are good");
        gateway.limit_turns(turn_limits(seed));
        let backends =
            Backends { is_kind: chance.bool(), good: None, scale, chance: chance.fork() };
        let mut world = World::around(kernel, gateway, settings, backends);
        world.plan_hosts(&mut chance);
        world.plan_clients(&mut chance);
        world.plan_orders(&mut chance);
        world
    }

    /// Runs until nothing more will happen, then asks the gateway what it still holds.
    fn run(&mut self) -> Result<(), String> {
        self.advance(None)?;
        self.judge()?;
        if self.gateway.is_stopped() { Ok(()) } else { self.inspect() }
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }

    fn tick(&mut self, link: LinkId) -> Result<(), String> {
        let Some(&index) = self.by_link.get(&link) else { return Ok(()) };
        let Some(mut peer) = self.peers[index].take() else { return Ok(()) };
        let other =
            self.pairs.get(&link).and_then(|other| self.peers[self.by_link[other]].as_ref());
        let sent = other.map_or(&[][..], |other| &other.frames);
        let ticked = peer.tick(&mut self.kernel.borrow_mut(), sent);
        self.peers[index] = Some(peer);
        ticked.map_err(|why| format!("peer {link}: {why}"))
    }

    fn carry_out(&mut self, plan: usize) {
        if let Some(plan) = self.plans[plan].take() {
            self.obey_plan(plan);
        }
    }

    /// Gives each established connection its backend.
    fn greet(&mut self) {
        loop {
            let Some(link) = self.kernel.borrow_mut().established.pop_front() else { return };
            let source = self.kernel.borrow().links[link].source;
            match source {
                Source::Session(key, Side::Upstream) => {
                    let client = self.slots[&key];
                    self.pairs.insert(client, link);
                    self.pairs.insert(link, client);
                }
                Source::Probe(_) => {}
                _ => unreachable!("the gateway dials for sessions and probes"),
            }
            let to = self.kernel.borrow().links[link].to;
            let chance = &mut self.backends.chance;
            let is_good = self.backends.good.is_some() && self.backends.good == to;
            let answer = if self.backends.is_kind || is_good {
                BackendAnswer::Upgrade { interim: false }
            } else if self.backends.good.is_some() {
                failover::draw_sick_answer(chance)
            } else {
                draw_answer(chance)
            };
            let answer_after = match self.backends.is_kind || is_good {
                true => Duration::ZERO,
                false => [Duration::ZERO, Duration::ZERO, 100 * MS, 20 * S][chance.usize(..4)],
            };
            let has_pings = self.settings.session.ping_interval.is_some();
            let behavior = match is_good {
                true => Behavior { leaves_after: 3600 * S, ..prompt() },
                false => draw_behavior(chance, has_pings, self.backends.scale),
            };
            self.join(link, Role::Backend { answer, answer_after }, behavior, &[]);
        }
    }

    fn is_due(&self, now: Moment) -> bool {
        let can_accept = !self.waiting.is_empty() && (self.gateway.can_admit() || self.is_drained);
        can_accept
            || !self.answers.is_empty()
            || !self.orders.is_empty()
            || self.next_turn().is_some_and(|at| at <= now)
    }

    fn next_turn(&self) -> Option<Moment> {
        // A backend that stays failed is probed forever: the world ends between two probes.
        let is_over = self.gateway.session_count() == 0
            && self.gateway.probe_count() == 0
            && self.waiting.is_empty()
            && (!self.is_drained || self.gateway.is_stopped())
            && self.kernel.borrow().next_action().is_none();
        if is_over { None } else { self.gateway.next_turn() }
    }

    /// One turn of the loop, as the reactor has it.
    fn turn(&mut self) -> Result<(), String> {
        let (now, moves) = (self.kernel.borrow().now, self.kernel.borrow().moves);
        let events = self.kernel.borrow_mut().take_events();
        let is_told = !events.is_empty() || !self.answers.is_empty() || !self.orders.is_empty();
        self.gateway.begin_turn(now);
        for (_, source, ready) in events {
            self.kernel.borrow_mut().note(|| format!("event {source:?} {ready:?}"));
            self.gateway.ready(source, ready);
        }
        for answer in std::mem::take(&mut self.answers) {
            self.gateway.handle_answer(answer);
        }
        self.gateway.settle();
        self.accept();
        for order in std::mem::take(&mut self.orders) {
            self.obey(order);
        }
        self.gateway.finish_turn();
        self.gateway.shrink_to_fit();
        while let Some(job) = self.gateway.poll_job() {
            // No world of this kind serves files.
            if let Job::LookUp { name, owner } = job {
                let (wait, found) = self.look_up(&name.host, name.port);
                self.plan(wait, Plan::Answer(jobs::JobAnswer::LookedUp { owner, found }));
            }
        }
        self.greet();
        let is_idle = !is_told && moves == self.kernel.borrow().moves;
        self.check_turn(is_idle)
    }

    fn check_quiet(&mut self) -> Result<(), String> {
        let kernel = &*self.kernel.borrow();
        let is_anyone_full = (0..kernel.links.len()).any(|link| kernel.is_full(link));
        if let Some(link) = (0..kernel.links.len()).find(|&link| kernel.is_output_forgotten(link)) {
            return Err(format!("link {link} holds output back, and has room"));
        }
        let held = self.gateway.backlog_bytes();
        if held > 0 && !is_anyone_full {
            return Err(format!("{held} bytes are held back, and every peer has room"));
        }
        for backend in self.peers.iter().flatten() {
            let Some(&client) = self.pairs.get(&backend.link) else { continue };
            let has_answered = backend.has_shaken_hands() && kernel.is_all_taken(backend.link);
            if matches!(backend.role, Role::Backend { .. })
                && has_answered
                && backend.stage == PeerStage::Frames
            {
                // With TLS, it waits until the last bytes of the handshake have left.
                let is_full = kernel.is_full(client);
                let client = &kernel.links[client];
                if client.written == 0 && !is_full && !client.is_dropped && !client.is_far_gone {
                    return Err(format!("the 101 of backend {} is not passed on", backend.link));
                }
            }
        }
        for peer in self.peers.iter().flatten() {
            let link = peer.link;
            if !kernel.is_unread(link) || kernel.links[link].source == Source::Waker {
                continue;
            }
            let other = self.pairs.get(&link).copied();
            let is_finished = other.is_some_and(|other| kernel.links[other].near_fin);
            if self.has_pings() && peer.is_unresponsive() && is_finished {
                continue; // It may have been given up, and that is final.
            }
            if kernel.nature.records == Records::Tls && kernel.is_full(link) {
                continue; // TLS may have to write before it can read.
            }
            let sink = match &peer.role {
                Role::Asker { .. } => Some(link),
                // What comes early waits in the socket, beyond what the gateway keeps.
                Role::Client { .. } if peer.status.is_none() && peer.stream_bytes() > 10_000 => {
                    continue;
                }
                Role::Client { .. } => match other {
                    Some(other) if self.is_relayed(link) && !kernel.links[other].is_dropped => {
                        Some(other)
                    }
                    _ => Some(link),
                },
                Role::Backend { .. } => other,
            };
            if !sink.is_some_and(|sink| kernel.is_full(sink)) {
                return Err(format!("peer {link} is not read from, and {sink:?} has room"));
            }
        }
        Ok(())
    }
}

impl World {
    fn around(
        kernel: Shared,
        gateway: Gateway,
        settings: gateway::Settings,
        backends: Backends,
    ) -> World {
        World {
            kernel,
            gateway,
            peers: Vec::new(),
            by_link: HashMap::new(),
            waiting: VecDeque::new(),
            slots: HashMap::new(),
            pairs: HashMap::new(),
            plans: Vec::new(),
            answers: Vec::new(),
            orders: Vec::new(),
            settings,
            backends,
            is_drained: false,
            is_reloaded: false,
            turns: Turns::default(),
        }
    }

    fn plan_hosts(&mut self, chance: &mut fastrand::Rng) {
        for address in HOSTS {
            let mut host = draw_host(chance);
            self.kernel.borrow_mut().hosts.insert(address.parse().expect("an address"), host);
            let mut at = Duration::ZERO;
            while chance.u8(..3) == 0 {
                at += 10 * MS + 5 * S * chance.u32(..1000) / 1000;
                host = if host == Host::Up(Duration::ZERO) {
                    draw_host(chance)
                } else {
                    Host::Up(Duration::ZERO)
                };
                self.plan(at, Plan::Host(address.parse().expect("an address"), host));
            }
        }
    }

    fn plan_clients(&mut self, chance: &mut fastrand::Rng) {
        for _ in 0..[1, 1, 2, 3, 6][chance.usize(..5)] {
            let at = if chance.bool() { Duration::ZERO } else { 3 * S * chance.u32(..1000) / 1000 };
            let behavior = draw_behavior(chance, self.has_pings(), self.backends.scale);
            let (role, head) =
                if chance.u8(..4) == 0 { draw_asker(chance) } else { draw_client(chance) };
            self.plan(at, Plan::Arrive(Box::new((role, behavior, head))));
        }
    }

    fn plan_orders(&mut self, chance: &mut fastrand::Rng) {
        if chance.u8(..6) == 0 {
            let at = 4 * S * chance.u32(..1000) / 1000;
            let mut settings = draw_settings(chance);
            // What peers may rely on must hold for all of them.
            settings.session.ping_interval = self.settings.session.ping_interval;
            settings.session.ping_timeout = self.settings.session.ping_timeout;
            settings.session.max_message = self.settings.session.max_message;
            settings.session.idle_timeout = self.settings.session.idle_timeout;
            settings.session.memory_limit = self.settings.session.memory_limit;
            settings.trust = self.settings.trust.clone();
            settings.tls = self.settings.tls.clone();
            if chance.bool() {
                settings.routes.pop();
            }
            self.plan(at, Plan::Reload(Box::new(settings)));
        }
        if chance.u8(..6) == 0 {
            let at = 6 * S * chance.u32(..1000) / 1000;
            self.plan(at, Plan::Drain);
        }
    }

    fn plan(&mut self, wait: Duration, plan: Plan) {
        self.plans.push(Some(plan));
        self.kernel.borrow_mut().after(wait, Action::Plan(self.plans.len() - 1));
    }

    fn has_pings(&self) -> bool {
        self.settings.session.ping_interval.is_some()
    }

    fn obey_plan(&mut self, plan: Plan) {
        match plan {
            Plan::Arrive(visitor) => {
                let (role, behavior, head) = *visitor;
                let link = match self.settings.trust.proxy_protocol {
                    true => self.kernel.borrow_mut().open_with(proxied::draw_header),
                    false => self.kernel.borrow_mut().open(),
                };
                self.join(link, role, behavior, &head);
                self.waiting.push_back(link);
            }
            Plan::Host(address, host) => {
                self.kernel.borrow_mut().note(|| format!("{address} is {host:?}"));
                self.kernel.borrow_mut().hosts.insert(address, host);
            }
            Plan::Answer(answer) => self.answers.push(answer),
            order @ (Plan::Drain | Plan::Reload(_)) => self.orders.push(order),
        }
    }

    fn join(&mut self, link: LinkId, role: Role, behavior: Behavior, head: &[u8]) {
        let max_message = self.settings.session.max_message;
        let to = self.kernel.borrow().links[link].to;
        self.kernel.borrow_mut().note(|| format!("peer {link} at {to:?} is {role:?} {behavior:?}"));
        let peer =
            Peer::new(&mut self.kernel.borrow_mut(), link, role, behavior, max_message, head);
        self.by_link.insert(link, self.peers.len());
        self.peers.push(Some(peer));
    }

    fn accept(&mut self) {
        if self.is_drained {
            let waiting = std::mem::take(&mut self.waiting);
            waiting.into_iter().for_each(|link| self.kernel.borrow_mut().refuse(link));
        }
        while self.gateway.can_admit()
            && let Some(link) = self.waiting.pop_front()
        {
            let key = self.gateway.next_key();
            self.slots.insert(key, link);
            self.kernel.borrow_mut().note(|| format!("link {link} accepted slot={key}"));
            self.kernel.borrow_mut().register(link, Source::Session(key, Side::Downstream));
            let host = link as u8 % 3 + 1;
            let from = SocketAddr::from(([192, 0, 2, host], 1000 + link as u16));
            match self.settings.trust.proxy_protocol {
                true => proxied::admit(&mut self.gateway, &self.kernel, link, from),
                false => self.gateway.admit(near_socket(&self.kernel, link), from),
            }
            self.greet();
        }
    }

    fn look_up(
        &mut self,
        host: &str,
        port: u16,
    ) -> (Duration, Result<Vec<SocketAddr>, LookUpError>) {
        let kernel = &mut *self.kernel.borrow_mut();
        let wait = kernel.some(300 * MS);
        if let Some(addresses) = failover::addresses_of(host) {
            return (wait, Ok(addresses));
        }
        let answer = match kernel.chance.u8(..8) {
            0 => Err(LookUpError::NotFound("no such name".into())),
            1 => Ok(Vec::new()),
            _ => Ok(vec![
                SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)),
                SocketAddr::from(([127, 0, 0, 1], port)),
            ]),
        };
        kernel.note(|| format!("{host} will be {answer:?}"));
        (wait, answer)
    }

    fn obey(&mut self, order: Plan) {
        match order {
            Plan::Drain => {
                self.kernel.borrow_mut().note(|| "drain".into());
                self.is_drained = true;
                self.gateway.drain();
            }
            Plan::Reload(settings) => {
                self.kernel.borrow_mut().note(|| "reload".into());
                self.is_reloaded = true;
                self.settings = (*settings).clone();
                self.gateway.reload(*settings);
            }
            _ => unreachable!("no order"),
        }
    }

    // ---- after every turn

    fn check_turn(&mut self, is_idle: bool) -> Result<(), String> {
        let count = self.gateway.session_count();
        let held = self.gateway.backlog_bytes();
        if held > 2 * HELD_MAX * count {
            return Err(format!("{held} bytes are held back for {count} sessions"));
        }
        let (now, start) = (self.kernel.borrow().now, self.kernel.borrow().start);
        let second = (now - start).as_secs();
        if std::mem::replace(&mut self.turns.second, second) != second {
            self.turns.in_second = 0;
        }
        if !is_idle {
            self.turns.in_a_row = 0;
            return Ok(());
        }
        self.turns.in_a_row += 1;
        self.turns.in_second += 1;
        let per_second = IDLE_TURNS_PER_SECOND * (1 + count as u32);
        if self.turns.in_a_row > IDLE_TURNS_MAX * (1 + count as u32)
            || self.turns.in_second > per_second
        {
            return Err(format!("it spins: {} turns did nothing", self.turns.in_a_row));
        }
        Ok(())
    }

    fn peer(&self, link: LinkId) -> Option<&Peer> {
        self.peers[*self.by_link.get(&link)?].as_ref()
    }

    /// The backend has sent this client a 101.
    fn is_relayed(&self, client: LinkId) -> bool {
        let backend = self.pairs.get(&client).and_then(|link| self.peer(*link));
        backend.is_some_and(|backend| {
            backend.stage != PeerStage::Head
                && matches!(
                    backend.role,
                    Role::Backend { answer: BackendAnswer::Upgrade { .. }, .. }
                )
        })
    }

    // ---- in the end

    /// Everyone has left and has received what was promised.
    fn judge(&mut self) -> Result<(), String> {
        let count = self.gateway.session_count();
        if count > 0 {
            return Err(format!("{count} sessions never end"));
        }
        if self.is_drained && !self.gateway.is_stopped() {
            return Err("it was drained, and does not stop".into());
        }
        let held = self.gateway.backlog_bytes();
        if held > 0 {
            return Err(format!("{held} bytes are still held back"));
        }
        let charged = self.gateway.memory().0 - self.gateway.ledger_bytes();
        if charged > 0 {
            return Err(format!("{charged} bytes are still charged to the memory budget"));
        }
        for (link, end) in self.kernel.borrow().links.iter().enumerate() {
            if !end.is_dropped {
                return Err(format!("link {link} is still open"));
            }
        }
        self.judge_counts()?;
        self.judge_silence()?;
        self.judge_peers()
    }

    /// Everyone got what was promised, apart from the clients that were closed because memory was
    /// short, and their backends.
    fn judge_peers(&mut self) -> Result<(), String> {
        let shed = self.gateway.stats().sessions_shed as usize;
        let client_of = |peer: &Peer| match peer.role {
            Role::Backend { .. } => self.pairs.get(&peer.link).copied().unwrap_or(peer.link),
            Role::Client { .. } | Role::Asker { .. } => peer.link,
        };
        let has_heard = |peer: &&Peer| {
            peer.judge.goodbye.as_ref().is_some_and(|goodbye| goodbye.reason == OUT_OF_MEMORY)
        };
        let peers = || self.peers.iter().flatten();
        let mut closed: HashSet<LinkId> = peers().filter(has_heard).map(client_of).collect();
        for peer in peers() {
            let Err(why) = self.judge_peer(peer) else { continue };
            let why = format!("peer {}: {why}", peer.link);
            closed.insert(client_of(peer));
            if closed.len() > shed {
                return Err(why);
            }
            self.kernel.borrow_mut().note(|| format!("closed for want of memory: {why}"));
        }
        match closed.len() > shed {
            true => Err(format!("{} are out of memory, and {shed} were closed", closed.len())),
            false => Ok(()),
        }
    }

    /// Every WebSocket that was opened has ended, and is counted once.
    fn judge_counts(&mut self) -> Result<(), String> {
        for (name, route) in self.gateway.stats().routes() {
            let closes: u64 = route.closed.values().sum();
            if (route.upgrades, route.open) != (closes, 0) {
                let (upgrades, open) = (route.upgrades, route.open);
                return Err(format!("{name}: {upgrades} upgrades, {closes} closes, {open} open"));
            }
        }
        Ok(())
    }

    /// Where every peer answers pings at once, no peer is given up as silent, not even after a
    /// standstill that was longer than any timeout.
    fn judge_silence(&mut self) -> Result<(), String> {
        let answers = |peer: &Peer| {
            peer.behavior.is_prompt
                && peer.behavior.ending != Ending::Silent
                && peer.behavior.pong_after == Some(Duration::ZERO)
        };
        if !self.peers.iter().flatten().all(answers) {
            return Ok(());
        }
        let routes = self.gateway.stats().routes();
        let mut reasons = routes.values().flat_map(|route| route.closed.keys());
        match reasons.find(|reason| reason.ends_with("_silent")) {
            Some(reason) => Err(format!("{reason}, though every peer answers")),
            None => Ok(()),
        }
    }

    fn judge_peer(&self, peer: &Peer) -> Result<(), String> {
        match &peer.role {
            Role::Asker { questions, .. } => self.judge_asker(peer, questions),
            Role::Client { .. } => {
                let waited = peer.behavior.is_prompt && peer.saw_end.is_some() && !peer.ended_first;
                if peer.status.is_none()
                    && waited
                    && !self.is_drained
                    && peer.behavior.ending != Ending::Silent
                {
                    return Err("no answer at all".into());
                }
                if peer.status == Some(101) { self.judge_stream(peer) } else { Ok(()) }
            }
            Role::Backend { .. } if peer.has_shaken_hands() => self.judge_stream(peer),
            Role::Backend { .. } => Ok(()),
        }
    }

    fn judge_asker(&self, peer: &Peer, questions: &[(bool, u16)]) -> Result<(), String> {
        let heads: Vec<bool> = questions.iter().map(|(is_head, _)| *is_head).collect();
        let answers = peers::answers(&peer.inbox, &heads)?;
        // Beyond the limit there is one answer: 503, or that of an endpoint that is always
        // answered.
        let has_memory = self.settings.session.memory_limit == MemoryLimit::Unlimited;
        let is_limited = answers.first().is_some_and(|(status, _)| *status == 503)
            || !has_memory && answers.iter().any(|(status, _)| *status == 503)
            || answers.len() == 1 && self.settings.limits.max_connections < CONNECTIONS_MANY;
        if is_limited || self.is_drained || self.is_reloaded || peer.is_unresponsive() {
            return Ok(());
        }
        for (index, ((status, _), (_, expected))) in answers.iter().zip(questions).enumerate() {
            if *expected != 0 && status != expected {
                return Err(format!("question {index} was answered {status}, not {expected}"));
            }
        }
        let is_cut =
            peer.ended == Some(End::Reset) || self.kernel.borrow().links[peer.link].lost > 0;
        let is_last =
            answers.last().is_some_and(|(status, _)| matches!(status, 400 | 408 | 413 | 414 | 431));
        if answers.len() < questions.len() && !is_last && !is_cut && peer.saw_end.is_some() {
            return Err(format!(
                "{} of {} questions were answered",
                answers.len(),
                questions.len()
            ));
        }
        Ok(())
    }

    /// Checks what `peer`, one end of a relay, has received.
    fn judge_stream(&self, peer: &Peer) -> Result<(), String> {
        let other = self.pairs.get(&peer.link).and_then(|link| self.peer(*link));
        let is_client = matches!(peer.role, Role::Client { .. });
        if let Some(goodbye) = &peer.judge.goodbye
            && goodbye.is_gateways
        {
            let code = goodbye.code.unwrap_or_default();
            self.judge_goodbye(peer, other, is_client, code, &goodbye.reason)?;
        }
        let client = if is_client { Some(peer) } else { other };
        let (Some(other), Some(client)) = (other, client) else { return Ok(()) };
        // It reads, says nothing that would end it, and is there to the end.
        let backend = if is_client { other } else { peer };
        let is_owed = client.is_relayed
            && self.pairs.get(&client.link) == Some(&backend.link)
            && !peer.is_unresponsive()
            && !peer.ended_first
            && !peer.has_closed()
            && peer.saw_end.is_some();
        if !is_owed {
            return Ok(());
        }
        let is_big = peer.has_said_too_much() || other.has_said_too_much();
        let is_disturbed = self.is_drained
            || self.settings.session.idle_timeout.is_some()
            || is_big
            || other.is_unresponsive();
        match &peer.judge.goodbye {
            None if peer.judge.is_at_boundary() => {
                return Err("an end without a Close frame".into());
            }
            None if !other.ended_first && !is_disturbed => {
                return Err("an end within a frame".into());
            }
            Some(goodbye) if !goodbye.is_gateways => return Ok(()),
            _ if is_disturbed => return Ok(()),
            _ => {}
        }
        if self.kernel.borrow().links[peer.link].lost > 0 {
            return Err("an RST destroyed what was on its way to it".into());
        }
        // Its host answers what came after it had closed with RST, and what was not read is lost.
        if other.ended == Some(End::Fin)
            && other.ended_first
            && !self.kernel.borrow().links[other.link].has_reset
            && let Some(missing) = peer.judge.missing(&other.frames, other.stream_bytes())
        {
            return Err(format!("bytes were lost: {missing}"));
        }
        Ok(())
    }

    /// Checks that the gateway had a reason for its Close frame.
    fn judge_goodbye(
        &self,
        peer: &Peer,
        other: Option<&Peer>,
        is_client: bool,
        code: u16,
        reason: &str,
    ) -> Result<(), String> {
        let is_gone = other.is_some_and(|other| other.ended.is_some());
        let is_dead = other.is_some_and(Peer::is_unresponsive);
        let has_said_too_much = |peer: &Peer| peer.has_said_too_much();
        let is_big = has_said_too_much(peer) || other.is_some_and(has_said_too_much);
        let is_idle = self.settings.session.idle_timeout.is_some();
        let is_right = match (is_client, code, reason) {
            (true, 1011, "backend connection lost") => is_gone || is_dead,
            (false, 1001, "client connection lost") => is_gone,
            (false, 1001, "client not responding") => is_dead,
            (true, 1011 | 1013, reason) if reason.starts_with("backend unavailable: ") => {
                !peer.is_relayed
            }
            (true, 1013, "gateway out of resources") => !peer.is_relayed,
            (true, 1009, "message too big") => is_big,
            (false, 1009, "message too big") => has_said_too_much(peer),
            (false, 1001, "message too big") => other.is_some_and(has_said_too_much),
            (true, 1012, "gateway restarting") | (false, 1001, "gateway restarting") => {
                self.is_drained
            }
            (false, 1000, "probe") => other.is_none(),
            (true, 1000, "idle timeout") | (false, 1001, "idle timeout") => is_idle,
            (true, 1013, OUT_OF_MEMORY) | (false, 1001, OUT_OF_MEMORY) => {
                self.settings.session.memory_limit != MemoryLimit::Unlimited
            }
            _ => false,
        };
        if is_right {
            Ok(())
        } else {
            Err(format!("a Close frame {code} {reason:?} for no reason"))
        }
    }

    /// A last client asks the gateway what it still holds.
    fn inspect(&mut self) -> Result<(), String> {
        let questions = ["/connections", "/health", "/metrics"];
        let head: String =
            questions.map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).concat();
        let questions = questions.map(|_| (false, 200)).to_vec();
        let behavior = Behavior { leaves_after: 100 * S, ..prompt() };
        let visitor = (Role::Asker { questions, closes: true }, behavior, head.into_bytes());
        if self.settings.session.memory_limit != MemoryLimit::Unlimited {
            // It may be too low for the answers.
            self.settings.session.memory_limit = MemoryLimit::Unlimited;
            self.gateway.reload(self.settings.clone());
        }
        {
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.stands_still = false;
            // `/metrics` is long, and would take too long through a socket for a few bytes.
            kernel.nature.send_max = kernel.nature.send_max.max(4096);
            kernel.nature.receive_max = kernel.nature.receive_max.max(4096);
        }
        self.plan(Duration::ZERO, Plan::Arrive(Box::new(visitor)));
        self.advance(None)?;
        let visitor = self
            .peers
            .iter()
            .flatten()
            .rfind(|peer| matches!(peer.role, Role::Asker { .. }))
            .ok_or("no peer came to inspect")?;
        let answers = peers::answers(&visitor.inbox, &[])?;
        let text = |index: usize| {
            let (_, body) = answers
                .get(index)
                .ok_or_else(|| format!("only {index} answers at the inspection"))?;
            String::from_utf8(body.clone()).map_err(|_| "not UTF-8".to_owned())
        };
        let connections = text(0)?;
        if !connections.starts_with(r#"{"total_connections":0,"connections":[],"#) {
            return Err(format!("connections are left: {connections}"));
        }
        if !text(1)?.contains(r#""active_connections":0"#) {
            return Err(format!("not healthy: {}", text(1)?));
        }
        let metrics = text(2)?;
        for line in metrics.lines() {
            let is_right = match line.split(['{', ' ']).next().unwrap_or_default() {
                "aivtuber_gateway_connections_open" => line.ends_with(" 1"),
                "aivtuber_gateway_websockets_open" | "aivtuber_gateway_backend_connections" => {
                    line.ends_with(" 0")
                }
                _ => true,
            };
            if !is_right {
                return Err(format!("something is left: {line}"));
            }
        }
        self.judge()
    }
}

// ---- drawing

const HOSTS: [&str; 5] =
    ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "[::1]:9000", "127.0.0.1:9000"];

/// The record layer of the transports of this world. A fifth of all seeds have one: every other of
/// these a simulated one, which is awkward on purpose, the others TLS.
pub fn records_of(seed: u64) -> Records {
    match seed % 10 {
        4 => Records::Simulated,
        9 => Records::Tls,
        _ => Records::None,
    }
}

pub fn route(name: &str, path: &str, urls: &[&str]) -> RouteSettings {
    let urls = urls.iter().map(|url| BackendUrl::parse(url).expect("a URL")).collect();
    RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a path"),
        target: TargetSettings::Backend { urls, host: None, learn_task: None },
    }
}

pub fn draw_settings(chance: &mut fastrand::Rng) -> gateway::Settings {
    let pings = [
        (None, None),
        (Some(20 * S), Some(20 * S)),
        (Some(S), Some(S)),
        (Some(2 * S), Some(10 * S)),
    ];
    let (ping_interval, ping_timeout) = pings[chance.usize(..pings.len())];
    let session = session::Settings {
        header_timeout: Some(10 * S),
        keep_alive: Some([S, 30 * S][chance.usize(..2)]),
        connect_timeout: Some([100 * MS, 5 * S][chance.usize(..2)]),
        handshake_timeout: Some([100 * MS, 10 * S][chance.usize(..2)]),
        ping_interval,
        ping_timeout,
        idle_timeout: if chance.u8(..5) == 0 {
            Some([200 * MS, 3 * S][chance.usize(..2)])
        } else {
            None
        },
        max_message: if chance.u8(..4) == 0 {
            Some([0, 100, 20_000][chance.usize(..3)])
        } else {
            None
        },
        on_backend_failure: if chance.bool() {
            OnBackendFailure::Close
        } else {
            OnBackendFailure::Http
        },
        ..session::Settings::default()
    };
    let limits = limits::Settings {
        max_connections: if chance.u8(..8) == 0 { chance.usize(1..4) } else { CONNECTIONS_MANY },
        max_connections_per_ip: if chance.u8(..8) == 0 { chance.usize(1..3) } else { 0 },
        allowed_origins: Vec::new(),
    };
    let routes = vec![
        route("input", "/ws/input", &["ws://10.0.0.1/ws/input"]),
        route(
            "output",
            "/ws/output/{task_id}",
            &["ws://10.0.0.2/out/{task_id}", "ws://10.0.0.3/out/{task_id}?a=b"],
        ),
        route("named", "/ws/named", &["ws://name.example:9000/"]),
    ];
    gateway::Settings {
        // Every client is an admin's.
        trust: trust::Settings {
            admin_from: vec![
                PeerRule::parse("0.0.0.0/0").expect("it is a network"),
                PeerRule::parse("::/0").expect("it is a network"),
            ],
            server_names: vec!["a".into()],
            ..Default::default()
        },
        session,
        limits,
        routes,
        drain_timeout: Some([S / 10, 2 * S, 30 * S][chance.usize(..3)]),
        tasks: Default::default(),
        link: Default::default(),
        upstreams: Default::default(),
        tls: Default::default(),
    }
}

/// In an eighth of the worlds so little memory that some clients are refused or closed for it.
fn draw_memory_limit(seed: u64, scale: Scale) -> MemoryLimit {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x3e3u64.rotate_left(30));
    if chance.u8(..8) > 0 {
        return MemoryLimit::Unlimited;
    }
    let kib: [u64; 3] = match scale {
        Scale::Tiny | Scale::Common => [20, 40, 100],
        Scale::Large => [100, 400, 1600],
    };
    MemoryLimit::Bytes(kib[chance.usize(..3)] << 10)
}

fn draw_host(chance: &mut fastrand::Rng) -> Host {
    match chance.u8(..12) {
        0 => Host::Refusing(Duration::ZERO),
        1 => Host::Refusing(300 * MS),
        2 => Host::Swallowing,
        3 => Host::Failing(
            [ErrorKind::OutOfMemory, ErrorKind::NetworkUnreachable][chance.usize(..2)],
        ),
        4..7 => Host::Up(200 * MS),
        _ => Host::Up(Duration::ZERO),
    }
}

fn prompt() -> Behavior {
    Behavior {
        is_prompt: true,
        read_bite: usize::MAX,
        read_pace: Duration::ZERO,
        reads_most: usize::MAX,
        write_bite: usize::MAX,
        write_pace: Duration::ZERO,
        pong_after: Some(Duration::ZERO),
        replies_close: true,
        messages: 0,
        payload_max: 200,
        ending: Ending::Stay,
        cuts: false,
        leaves_after: 60 * S,
    }
}

fn draw_behavior(chance: &mut fastrand::Rng, has_pings: bool, scale: Scale) -> Behavior {
    let ending = match chance.u8(..10) {
        0..4 => Ending::Close,
        4..6 => Ending::Fin,
        6 => Ending::Reset,
        7 if has_pings => Ending::Silent,
        _ => Ending::Stay,
    };
    let (messages, payload_max) = match scale {
        Scale::Tiny => (chance.u32(..4), [5, 30][chance.usize(..2)]),
        Scale::Common => ([0, 1, 3, 10, 30][chance.usize(..5)], [10, 300, 3000][chance.usize(..3)]),
        // A crowd of small ones, whose heads stand everywhere in what is read.
        Scale::Large if chance.u8(..3) == 0 => (3000, [30, 300][chance.usize(..2)]),
        Scale::Large => (chance.u32(..6), [70_000, 300_000, 1_000_000][chance.usize(..3)]),
    };
    let base = Behavior {
        messages,
        payload_max,
        ending,
        cuts: chance.bool(),
        write_pace: [Duration::ZERO, MS, 50 * MS]
            [chance.usize(if scale == Scale::Large { 0..2 } else { 0..3 })],
        leaves_after: S + 60 * S * chance.u32(..1000) / 1000,
        ..prompt()
    };
    if chance.u8(..5) < 3 {
        return base;
    }
    let bites =
        if scale == Scale::Large { [5000, 60_000, usize::MAX] } else { [1, 100, usize::MAX] };
    Behavior {
        is_prompt: false,
        read_bite: bites[chance.usize(..3)],
        read_pace: [Duration::ZERO, MS, 20 * MS, 3 * S][chance.usize(..4)],
        reads_most: if chance.u8(..4) == 0 { chance.usize(..2000) } else { usize::MAX },
        write_bite: bites[chance.usize(..3)],
        write_pace: [Duration::ZERO, MS, 100 * MS, 2 * S][chance.usize(..4)],
        pong_after: [None, Some(Duration::ZERO), Some(900 * MS), Some(5 * S)][chance.usize(..4)],
        replies_close: chance.bool(),
        ..base
    }
}

fn draw_client(chance: &mut fastrand::Rng) -> (Role, Vec<u8>) {
    let path = match chance.u8(..8) {
        0..4 => "/ws/input",
        4..6 => "/ws/output/7d1c?x=y",
        _ => "/ws/named",
    };
    // A plain question before it on the same connection, now and then.
    (Role::Client { is_early: chance.u8(..3) == 0 }, peers::upgrade_request(path, ""))
}

fn draw_asker(chance: &mut fastrand::Rng) -> (Role, Vec<u8>) {
    let known: [(&str, bool, u16); 12] = [
        ("GET /health HTTP/1.1\r\nHost: a\r\n\r\n", false, 200),
        ("HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n", true, 200),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, 200),
        ("GET /ready HTTP/1.1\r\nHost: a\r\n\r\n", false, 200),
        ("GET /connections HTTP/1.1\r\nHost: a\r\n\r\n", false, 200),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", false, 200),
        ("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", false, 404),
        ("POST /health HTTP/1.1\r\nHost: a\r\n\r\n", false, 405),
        ("GET /ws/input HTTP/1.1\r\nHost: a\r\n\r\n", false, 426),
        ("GET /status/7 HTTP/1.1\r\nHost: a\r\n\r\n", false, 400),
        ("GET / HTTP/1.1\r\n\r\n", false, 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", false, 413),
    ];
    let mut head = Vec::new();
    let mut questions = Vec::new();
    for _ in 0..chance.usize(1..30) {
        let is_wild = chance.u8(..30) == 0;
        let (text, is_head, status) = known[chance.usize(if is_wild { 10..12 } else { 0..10 })];
        head.extend(text.as_bytes());
        questions.push((is_head, status));
        if is_wild {
            break;
        }
    }
    (Role::Asker { questions, closes: chance.bool() }, head)
}

fn draw_answer(chance: &mut fastrand::Rng) -> BackendAnswer {
    match chance.u8(..16) {
        0 => BackendAnswer::Status(403, draw_body(chance)),
        1 => BackendAnswer::Status(503, draw_body(chance)),
        2 => BackendAnswer::Garbage,
        3 => BackendAnswer::WrongKey,
        4 => BackendAnswer::Nothing,
        5 => BackendAnswer::Fin,
        6 => BackendAnswer::Reset,
        7..10 => BackendAnswer::Upgrade { interim: true },
        _ => BackendAnswer::Upgrade { interim: false },
    }
}

fn draw_body(chance: &mut fastrand::Rng) -> Body {
    [Body::Length, Body::Chunked, Body::UntilClose, Body::Cut][chance.usize(..4)]
}
