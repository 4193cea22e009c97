//! A world of plain HTTP: clients that send requests, one behind the other or several at once, and
//! backends that answer, or break off at any byte.
//!
//! The judge knows every request and every response. What a backend has received must be the
//! beginning of what its client sent, and what a client has received must be the responses to its
//! requests, in order: those of the backend that it was led to, whole or visibly cut, or the
//! gateway's own errors where a backend failed. A request that may not be repeated reaches one
//! backend at most.

use crate::exchanges::{self, Received, Request, Response};
use crate::kernel::{Action, Dialer, End, Host, Kernel, LinkId, Shared, near_socket, take};
use crate::simulation::{Simulation, draw_nature, kernel, turn_limits};
use crate::world::{draw_settings, records_of};
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::net::{Side, Source};
use aivtuber_gateway::service::route::{HttpLimits, RouteSettings, TargetSettings};
use aivtuber_gateway::service::url::{BackendUrl, Template};
use aivtuber_gateway::session;
use aivtuber_gateway::session::jobs::{Job, JobAnswer};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// Plans from here on are answers to lookups of names; those before are clients.
const ANSWERS: usize = 1 << 20;

const BACKENDS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

/// Bytes that the gateway may hold for one session: a read and a head each way.
const HELD_MAX: usize = 256 * 1024;

/// Nobody stays longer.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct ForwardWorld {
    kernel: Shared,
    gateway: Gateway,
    requests: Vec<Request>,
    clients: Vec<Client>,
    backends: HashMap<LinkId, Backend>,
    waiting: VecDeque<LinkId>,
    /// What names lead to, and what of that has come since the last turn.
    planned_answers: Vec<Option<JobAnswer>>,
    answers: Vec<JobAnswer>,
    slots: HashMap<usize, LinkId>,
    chance: fastrand::Rng,
    /// Every backend answers as it should, and every client is prompt.
    is_kind: bool,
    body_max: usize,
    drain_at: Option<Moment>,
    is_drained: bool,
}

/// How a peer reads and writes.
#[derive(Debug, Clone)]
struct Manner {
    bite: usize,
    pace: Duration,
    /// After how many bytes sent it ends its side, and how.
    cut: Option<(u64, End)>,
    reads_most: usize,
    leaves_at: Moment,
}

struct Client {
    link: LinkId,
    requests: Vec<usize>,
    /// How many may be sent before the first is answered.
    ahead: usize,
    begun: usize,
    out: VecDeque<u8>,
    inbox: Vec<u8>,
    manner: Manner,
    line: Line,
}

struct Backend {
    client: Option<LinkId>,
    inbox: Vec<u8>,
    /// The request, once its head is here, and what is answered.
    answered: Option<(usize, Response)>,
    /// The requests before it on this connection, with their responses.
    earlier: Vec<(usize, Response)>,
    /// Bytes of all responses up to the end of this one.
    queued: u64,
    /// It answers before the request is complete.
    is_early: bool,
    /// It never answers.
    is_mute: bool,
    /// The request has come whole.
    is_whole: bool,
    out: VecDeque<u8>,
    is_queued: bool,
    manner: Manner,
    line: Line,
}

/// What has passed on a link.
#[derive(Default)]
struct Line {
    sent: u64,
    read: usize,
    act_at: Option<Moment>,
    ended: Option<End>,
    saw_end: Option<End>,
    is_over: bool,
}

impl Line {
    /// Reads what has come. True: there may be more later.
    fn read(&mut self, link: LinkId, manner: &Manner, kernel: &mut Kernel) -> Vec<u8> {
        let most = manner.bite.min(manner.reads_most.saturating_sub(self.read));
        if most == 0 || self.is_over {
            return Vec::new();
        }
        let bytes = kernel.receive(link, most);
        self.read += bytes.len();
        if !bytes.is_empty() && kernel.is_to_receive(link) {
            kernel.after(manner.pace, Action::Peer(link));
        }
        if self.saw_end.is_none() {
            self.saw_end = kernel.received_end(link);
            if self.saw_end.is_some() {
                kernel.after(10 * MS, Action::Peer(link));
            }
        }
        bytes
    }

    /// Writes what there is room for, one bite at a time.
    fn write(
        &mut self,
        link: LinkId,
        out: &mut VecDeque<u8>,
        manner: &Manner,
        kernel: &mut Kernel,
    ) {
        if self.ended.is_some() || self.is_over || self.act_at.is_some_and(|at| at > kernel.now) {
            return;
        }
        let mut n = manner.bite.min(out.len()).min(kernel.window(link));
        if let Some((at, _)) = manner.cut {
            n = n.min((at - self.sent) as usize);
        }
        if n > 0 {
            let bytes = take(out, n);
            kernel.send(link, &bytes);
            self.sent += n as u64;
            let wait = kernel.some(manner.pace);
            self.act_at = Some(kernel.now + wait);
            kernel.after(wait, Action::Peer(link));
        }
        if let Some((at, end)) = manner.cut
            && at == self.sent
        {
            self.end(link, end, kernel);
        }
    }

    fn end(&mut self, link: LinkId, end: End, kernel: &mut Kernel) {
        if self.ended.is_none() {
            kernel.note(|| format!("peer {link} ends {end:?}"));
            self.ended = Some(end);
            kernel.end(link, end);
            self.is_over |= end == End::Reset;
        }
    }

    fn leave(&mut self, link: LinkId, kernel: &mut Kernel) {
        if !self.is_over {
            kernel.note(|| format!("peer {link} leaves"));
            self.is_over = true;
            let end = kernel.close(link);
            self.ended = self.ended.max(end);
        }
    }
}

impl Client {
    /// The responses so far, one for each request at most.
    fn responses(&self, requests: &[Request]) -> Result<Vec<Received>, String> {
        let (mut responses, mut at) = (Vec::new(), 0);
        for &number in &self.requests[..self.begun] {
            let has_body = requests[number].method != "HEAD";
            let Some(received) = exchanges::read(&self.inbox[at..], has_body)? else { break };
            let length = received.length;
            responses.push(received);
            let Some(length) = length else { break };
            at += length;
        }
        Ok(responses)
    }

    fn tick(&mut self, requests: &[Request], kernel: &mut Kernel) -> Result<(), String> {
        let bytes = self.line.read(self.link, &self.manner, kernel);
        self.inbox.extend(bytes);
        let responses = self.responses(requests)?;
        let whole = responses.iter().filter(|response| response.length.is_some()).count();
        let is_last = responses.iter().any(|response| response.head.contains("Connection: close"));
        while self.begun < self.requests.len() && self.begun < whole + self.ahead && !is_last {
            self.out.extend(&requests[self.requests[self.begun]].bytes);
            self.begun += 1;
        }
        self.line.write(self.link, &mut self.out, &self.manner, kernel);
        let is_done = whole == self.requests.len() || self.line.saw_end.is_some();
        if is_done || kernel.now >= self.manner.leaves_at {
            self.line.leave(self.link, kernel);
        }
        Ok(())
    }
}

impl Backend {
    fn tick(
        &mut self,
        link: LinkId,
        requests: &[Request],
        body_max: usize,
        kernel: &mut Kernel,
    ) -> Result<(), String> {
        let bytes = self.line.read(link, &self.manner, kernel);
        self.inbox.extend(bytes);
        if let Some(received) = exchanges::read(&self.inbox, true)? {
            let (number, is_whole) = self.check(&received, requests)?;
            self.is_whole = is_whole;
            if self.answered.is_none() {
                let chance = &mut fastrand::Rng::with_seed(kernel.chance.u64(..));
                let response = Response::draw(&requests[number], body_max, chance);
                self.answered = Some((number, response));
            }
            if (is_whole || self.is_early) && !self.is_mute && !self.is_queued {
                self.is_queued = true;
                let (_, response) = self.answered.as_ref().ok_or("it has been drawn")?;
                self.queued += response.bytes.len() as u64;
                self.out.extend(&response.bytes);
            }
            let is_over = is_whole && self.is_queued && self.out.is_empty();
            if let Some(length) = received.length.filter(|_| is_over)
                && self.inbox.len() > length
            {
                self.inbox.drain(..length);
                self.earlier.extend(self.answered.take());
                (self.is_queued, self.is_whole) = (false, false);
                kernel.after(Duration::ZERO, Action::Peer(link));
            }
        }
        self.line.write(link, &mut self.out, &self.manner, kernel);
        let ends = matches!(&self.answered, Some((_, response)) if response.ends_with_connection);
        if self.is_queued && self.out.is_empty() && ends {
            self.line.end(link, End::Fin, kernel);
        }
        if self.line.saw_end.is_some() || kernel.now >= self.manner.leaves_at {
            self.line.leave(link, kernel);
        }
        Ok(())
    }

    /// Which request it is, and whether it is complete.
    fn check(&self, received: &Received, requests: &[Request]) -> Result<(usize, bool), String> {
        let head = &received.head;
        if self.client.is_none() && head.contains(" (probe)\r\n") {
            return Ok((0, true));
        }
        let number = head.split(['/', '?']).nth(1).and_then(|number| number.parse().ok());
        let number: usize = number.ok_or_else(|| format!("a request for what? {head:?}"))?;
        let request = requests.get(number).ok_or("a request that nobody sent")?;
        let first = format!("{} /{number}?q={number} HTTP/1.1\r\nHost: a\r\n", request.method);
        for needed in [&*first, "X-Forwarded-For: 192.0.2.", "Via: 1.1 aivtuber-gateway\r\n"] {
            if !head.contains(needed) {
                return Err(format!("no {needed:?} in {head:?}"));
            }
        }
        if !request.body.starts_with(&received.content) {
            return Err(format!("another body than that of request {number}"));
        }
        let is_whole = received.length.is_some();
        if is_whole && received.content != request.body {
            return Err(format!("a part of the body of request {number} counts as all of it"));
        }
        if received.length.is_some_and(|length| self.inbox.len() > length && !self.out.is_empty()) {
            return Err("another request before the response".into());
        }
        Ok((number, is_whole))
    }
}

impl Simulation for ForwardWorld {
    fn new(seed: u64, is_traced: bool) -> ForwardWorld {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0xf0f0u64.rotate_left(40));
        let is_tiny = chance.u8(..8) == 0;
        let body_max = if is_tiny { 100 } else { [300, 5000, 100_000][chance.usize(..3)] };
        let sizes: &[usize] = match body_max {
            100 => &[1, 7, 30],
            100_000 => &[4096, 65_536],
            _ => &[300, 4096, 65_536],
        };
        let mut nature = draw_nature(&mut chance, sizes);
        nature.records = records_of(seed);
        let kernel = kernel(seed, nature, is_traced);
        let settings = settings(&mut chance);
        let mut gateway = Gateway::new(
            settings,
            Box::new(Dialer(Rc::clone(&kernel))),
            fastrand::Rng::with_seed(seed ^ 0xca5e),
            kernel.borrow().now,
            UNIX_EPOCH,
        )
        .expect("its settings are good");
        gateway.limit_turns(turn_limits(seed));
        let is_kind = chance.bool();
        let now = kernel.borrow().now;
        let drain_at = (chance.u8(..8) == 0).then(|| now + 2 * S * chance.u32(..1000) / 1000);
        let mut world = ForwardWorld {
            kernel,
            gateway,
            requests: Vec::new(),
            clients: Vec::new(),
            backends: HashMap::new(),
            waiting: VecDeque::new(),
            planned_answers: Vec::new(),
            answers: Vec::new(),
            slots: HashMap::new(),
            chance: chance.fork(),
            is_kind,
            body_max,
            drain_at,
            is_drained: false,
        };
        world.plan_hosts();
        for _ in 0..chance.usize(1..4) {
            world.plan_client();
        }
        world
    }

    fn run(&mut self) -> Result<(), String> {
        self.advance(None)?;
        let kernel = self.kernel.borrow();
        if self.gateway.session_count() > 0 {
            return Err(format!("{} sessions never end", self.gateway.session_count()));
        }
        if self.gateway.backlog_bytes() > 0 {
            return Err("bytes are still held back".into());
        }
        let charged = self.gateway.memory().0 - self.gateway.ledger_bytes();
        if charged > 0 {
            return Err(format!("{charged} bytes are still charged to the memory budget"));
        }
        if let Some(link) = kernel.links.iter().position(|link| !link.is_dropped) {
            return Err(format!("link {link} is still open"));
        }
        drop(kernel);
        self.judge_repeats()?;
        self.clients.iter().try_for_each(|client| {
            self.judge_client(client).map_err(|why| format!("client {}: {why}", client.link))
        })
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }

    fn tick(&mut self, link: LinkId) -> Result<(), String> {
        let kernel = &mut *self.kernel.borrow_mut();
        let ticked = match self.backends.get_mut(&link) {
            Some(backend) => backend.tick(link, &self.requests, self.body_max, kernel),
            None => match self.clients.iter_mut().find(|client| client.link == link) {
                Some(client) => client.tick(&self.requests, kernel),
                None => Ok(()),
            },
        };
        ticked.map_err(|why| format!("peer {link}: {why}"))
    }

    fn carry_out(&mut self, plan: usize) {
        if let Some(answer) = plan.checked_sub(ANSWERS) {
            return self.answers.extend(self.planned_answers[answer].take());
        }
        let link = self.kernel.borrow_mut().open();
        self.clients[plan].link = link;
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.at(self.clients[plan].manner.leaves_at, Action::Peer(link));
        kernel.wake_peer(link);
        self.waiting.push_back(link);
    }

    fn greet(&mut self) {
        loop {
            let Some(link) = self.kernel.borrow_mut().established.pop_front() else { return };
            let source = self.kernel.borrow().links[link].source;
            let client = match source {
                Source::Session(key, Side::Upstream) => Some(self.slots[&key]),
                _ => None,
            };
            let manner = self.draw_manner(self.body_max as u64 * 2);
            let (is_early, is_mute) = match self.is_kind {
                true => (false, false),
                false => (self.chance.u8(..4) == 0, self.chance.u8(..12) == 0),
            };
            let kernel = &mut *self.kernel.borrow_mut();
            kernel.note(|| format!("backend {link} of {client:?} is {manner:?}"));
            kernel.at(manner.leaves_at, Action::Peer(link));
            kernel.wake_peer(link);
            let backend = Backend {
                client,
                inbox: Vec::new(),
                answered: None,
                earlier: Vec::new(),
                queued: 0,
                is_early,
                is_mute,
                is_whole: false,
                out: VecDeque::new(),
                is_queued: false,
                manner,
                line: Line::default(),
            };
            self.backends.insert(link, backend);
        }
    }

    fn is_due(&self, now: Moment) -> bool {
        let can_accept = !self.waiting.is_empty() && (self.gateway.can_admit() || self.is_drained);
        let drains = !self.is_drained && self.drain_at.is_some_and(|at| at <= now);
        can_accept
            || drains
            || !self.answers.is_empty()
            || self.next_turn().is_some_and(|at| at <= now)
    }

    fn next_turn(&self) -> Option<Moment> {
        let is_over = self.gateway.session_count() == 0
            && self.gateway.probe_count() == 0
            && self.waiting.is_empty()
            && (!self.is_drained || self.gateway.is_stopped())
            && self.kernel.borrow().next_action().is_none();
        if is_over { None } else { self.gateway.next_turn() }
    }

    fn turn(&mut self) -> Result<(), String> {
        let (now, events) = {
            let kernel = &mut *self.kernel.borrow_mut();
            (kernel.now, kernel.take_events())
        };
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
        if !self.is_drained && self.drain_at.is_some_and(|at| at <= now) {
            self.is_drained = true;
            self.gateway.drain();
        }
        self.gateway.finish_turn();
        self.gateway.shrink_to_fit();
        self.look_up();
        self.greet();
        let (held, count) = (self.gateway.backlog_bytes(), self.gateway.session_count());
        match held > HELD_MAX * count {
            true => Err(format!("{held} bytes are held back for {count} sessions")),
            false => Ok(()),
        }
    }

    fn check_quiet(&mut self) -> Result<(), String> {
        let kernel = &*self.kernel.borrow();
        if let Some(link) = (0..kernel.links.len()).find(|&link| kernel.is_output_forgotten(link)) {
            return Err(format!("link {link} holds output back, and has room"));
        }
        let is_anyone_full = (0..kernel.links.len()).any(|link| kernel.is_full(link));
        if self.gateway.backlog_bytes() > 0 && !is_anyone_full {
            return Err("bytes are held back, and every peer has room".into());
        }
        for (&link, backend) in &self.backends {
            let Some(client) = backend.client else { continue };
            let is_tls = kernel.links[link].layer.is_some();
            if kernel.is_unread(link)
                && !kernel.is_full(client)
                && !(is_tls && kernel.is_full(link))
            {
                return Err(format!("backend {link} is not read from, and {client} has room"));
            }
            let is_uploading = !kernel.links[link].is_dropped && !kernel.is_full(link);
            if is_uploading
                && !backend.is_whole
                && backend.line.ended.is_none()
                && !backend.line.is_over
                && kernel.is_unread(client)
                && !(is_tls && kernel.is_full(client))
                && !kernel.is_to_receive(link)
            {
                return Err(format!("client {client} is not read from, and {link} has room"));
            }
        }
        Ok(())
    }
}

impl ForwardWorld {
    fn draw_manner(&mut self, sent_most: u64) -> Manner {
        let now = self.kernel.borrow().now;
        let is_tiny = self.body_max <= 100;
        let chance = &mut self.chance;
        // Each bite is read again with all that came before it.
        let bites = if is_tiny { [1, 5, 1000] } else { [self.body_max / 30, 3000, 1_000_000] };
        let bite = bites[chance.usize(..3)];
        let pace = [Duration::ZERO, MS / 10, MS][chance.usize(..3)];
        let mut manner =
            Manner { bite, pace, cut: None, reads_most: usize::MAX, leaves_at: now + PATIENCE };
        if !self.is_kind {
            let end = if chance.bool() { End::Fin } else { End::Reset };
            match chance.u8(..8) {
                0 => manner.cut = Some((chance.u64(..=sent_most), end)),
                1 => manner.cut = Some((chance.u64(..=200), end)),
                2 => manner.reads_most = chance.usize(..=sent_most as usize),
                3 => manner.leaves_at = now + S * chance.u32(..1000) / 1000,
                _ => {}
            }
        }
        manner
    }

    fn plan_hosts(&mut self) {
        for address in BACKENDS {
            let host = match self.chance.u8(..8) {
                0 if !self.is_kind => Host::Refusing(20 * MS),
                1 if !self.is_kind => Host::Swallowing,
                2 => Host::Up(200 * MS),
                _ => Host::Up(Duration::ZERO),
            };
            let address: SocketAddr = address.parse().expect("an address");
            self.kernel.borrow_mut().hosts.insert(address, host);
        }
    }

    fn plan_client(&mut self) {
        let version = if self.chance.u8(..6) == 0 { 0 } else { 1 };
        let count = self.chance.usize(1..5);
        let mut numbers = Vec::new();
        for _ in 0..count {
            let number = self.requests.len();
            let request = Request::draw(number, version, self.body_max, &mut self.chance);
            let is_last = !request.keeps_alive();
            self.requests.push(request);
            numbers.push(number);
            if is_last {
                break;
            }
        }
        let at = S * self.chance.u32(..1000) / 1000;
        let ahead = if self.chance.bool() { 1 } else { self.chance.usize(2..5) };
        let mut manner = self.draw_manner(self.body_max as u64 * 2);
        manner.leaves_at += at;
        self.clients.push(Client {
            link: LinkId::MAX,
            requests: numbers,
            ahead,
            begun: 0,
            out: VecDeque::new(),
            inbox: Vec::new(),
            manner,
            line: Line::default(),
        });
        let plan = Action::Plan(self.clients.len() - 1);
        self.kernel.borrow_mut().after(at, plan);
    }

    /// Names lead to the first backend, after a while.
    fn look_up(&mut self) {
        while let Some(job) = self.gateway.poll_job() {
            if let Job::LookUp { owner, .. } = job {
                let found = Ok(vec![BACKENDS[0].parse().expect("an address")]);
                let wait = self.kernel.borrow_mut().some(300 * MS);
                let plan = Action::Plan(ANSWERS + self.planned_answers.len());
                self.planned_answers.push(Some(JobAnswer::LookedUp { owner, found }));
                self.kernel.borrow_mut().after(wait, plan);
            }
        }
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
            let from = SocketAddr::from(([192, 0, 2, 1], 1000 + link as u16));
            self.gateway.admit(near_socket(&self.kernel, link), from);
            self.greet();
        }
    }

    /// Responses of backends that have received anything of a request, and whether all of it was
    /// sent.
    fn attempts(&self, number: usize) -> impl Iterator<Item = (&Backend, &Response, bool)> {
        let of_clients = self.backends.values().filter(|backend| backend.client.is_some());
        let all = of_clients.flat_map(|backend| {
            let is_sent = backend.is_queued && backend.line.sent >= backend.queued;
            let earlier = backend.earlier.iter().map(move |answered| (backend, answered, true));
            earlier.chain(backend.answered.iter().map(move |answered| (backend, answered, is_sent)))
        });
        let it = all.filter(move |(_, (it, _), _)| *it == number);
        it.map(|(backend, (_, response), is_sent)| (backend, response, is_sent))
    }

    fn judge_repeats(&self) -> Result<(), String> {
        for request in &self.requests {
            let attempts = self.attempts(request.number).count();
            if attempts > 1 && !request.may_repeat() {
                return Err(format!("request {} reached {attempts} backends", request.number));
            }
        }
        Ok(())
    }

    fn judge_client(&self, client: &Client) -> Result<(), String> {
        let responses = client.responses(&self.requests)?;
        for (&number, response) in client.requests.iter().zip(&responses) {
            self.judge_response(client, number, response)
                .map_err(|why| format!("request {number}: {why}"))?;
        }
        if !self.is_kind || self.drain_at.is_some() {
            return Ok(());
        }
        let whole = responses
            .iter()
            .filter(|response| response.length.is_some() || response.ends_with_connection);
        let is_last = responses.last().is_some_and(|it| it.head.contains("Connection: close"));
        match whole.count() {
            count if is_last && count == responses.len() => Ok(()),
            count if count < client.begun => Err(format!("{count} of {} answers", client.begun)),
            _ if client.begun < client.requests.len() && client.line.saw_end.is_none() => {
                Err("it did not get to its last request".into())
            }
            _ => Ok(()),
        }
    }

    fn judge_response(
        &self,
        client: &Client,
        number: usize,
        response: &Received,
    ) -> Result<(), String> {
        let status = response.head.get(9..12).unwrap_or_default();
        let is_own = !response.head.contains("Server: sim\r\n");
        if is_own {
            let is_right = match status {
                "502" | "504" => !self.is_kind,
                "408" => !self.is_kind,
                "503" => self.is_drained || !self.is_kind,
                _ => false,
            };
            return if is_right {
                Ok(())
            } else {
                Err(format!("for no reason: {:?}", response.head))
            };
        }
        // Ended by the end of the connection: a reset shows that it was cut.
        let is_whole = response.length.is_some()
            || response.ends_with_connection
                && client.line.saw_end == Some(End::Fin)
                && client.line.ended.is_none();
        let fits = |(backend, sent, was_sent): &(&Backend, &Response, bool)| {
            // Nothing shows that it was cut.
            let may_end = sent.ends_with_connection && backend.line.ended == Some(End::Fin);
            sent.status.to_string() == status
                && sent.body.starts_with(&response.content)
                && (!is_whole || may_end || sent.body == response.content && *was_sent)
        };
        match self.attempts(number).find(fits) {
            Some(_) => Ok(()),
            None => Err(format!("no backend sent this (whole: {is_whole}): {:?}", response.head)),
        }
    }
}

fn settings(chance: &mut fastrand::Rng) -> gateway::Settings {
    let mut settings = draw_settings(chance);
    settings.session = session::Settings::default();
    settings.limits.max_connections = 1000;
    settings.limits.max_connections_per_ip = 0;
    let count = chance.usize(1..=BACKENDS.len());
    let hosts = match chance.u8(..4) {
        0 => &["backend.example:80"][..],
        _ => &BACKENDS[..count],
    };
    let url = |at: &&str| BackendUrl::parse(&format!("http://{at}/{{x}}")).expect("a URL");
    settings.routes = vec![RouteSettings {
        name: "api".into(),
        path: Template::parse("/api/{x}").expect("a path"),
        target: TargetSettings::Http {
            urls: hosts.iter().map(url).collect(),
            host: None,
            limits: HttpLimits::default(),
        },
    }];
    settings
}
