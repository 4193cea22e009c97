//! The world around speech that workers push: workers with connections that break, tasks that are
//! stopped or left, and clients that come early, late and again.
//!
//! - A client gets every chunk once and in order, with its fields, whatever breaks: its own
//!   connection, or the worker's.
//! - It is closed once the final stream has been sent, and told when one has stalled.
//! - A worker gets no error for a message that it may send. One whose connection never breaks is
//!   notified of a STOP once, and of each client that is away for longer than a second (LEFT) and
//!   returns (BACK).
//! - Descriptors that have run out for a moment delay speech, and cost none of it.
//! - A process that stands still for longer than any timeout costs nobody anything.
//! - A drain lets a stream that has begun come to its end, as long as its worker speaks in time.
//!   Then, or when the time is over, everybody is closed with 1012.
//! - In the end no session, no result and no stream is left.

use crate::kernel::{Action, End, LinkId, Nature, Shared};
use crate::peers::head_length;
use crate::process::{Arrival, Process};
use crate::simulation::{MS, S, STANDSTILL_MAX, Simulation, draw_nature, kernel, turn_limits};
use crate::wire::{BINARY, CLOSE, Frame, FrameKind, PING, PONG, TEXT, read_head};
use crate::world::records_of;
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway;
use aivtuber_gateway::service::limits;
use aivtuber_gateway::service::link;
use aivtuber_gateway::service::route::{Access, RouteSettings, TargetSettings};
use aivtuber_gateway::service::tasks;
use aivtuber_gateway::service::token::Token;
use aivtuber_gateway::service::url::Template;
use aivtuber_gateway::session;
use data_encoding::BASE64;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

const MASK: [u8; 4] = [9, 8, 7, 6];

/// How long a stream may be silent, and how long a client waits for a result.
const STALL: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(60);

/// By then every worker has said everything, and every client has left.
const OVER_AFTER: Duration = Duration::from_secs(300);

/// How long a process may stand still in all, before the last time that it does.
const STANDSTILLS: Duration = Duration::from_secs(100);

/// How long the last bytes of a stream may take, once they have been sent.
const LAG: Duration = Duration::from_secs(10);

/// The receive window of some clients.
const SMALL_WINDOW: usize = 100;

/// A client that is away for this long has left, however late the gateway notices what.
const AWAY: Duration = Duration::from_millis(1500);

/// A task: what is said for it, and what becomes of it.
struct Task {
    id: String,
    /// The lengths of the chunks of each stream. The last stream is the final one.
    streams: Vec<Vec<usize>>,
    fate: Fate,
    /// How many STOPs, LEFTs and BACKs its worker received.
    stops: u32,
    lefts: u32,
    backs: u32,
    /// How often it was without a client for so long that its worker must know.
    absences: u32,
    /// Its worker may have lost its connection for good.
    may_stall: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Spoken,
    /// A client stops it.
    Stopped,
    /// The worker falls silent within the last stream.
    Abandoned,
}

/// A message of a worker: one frame, or two.
struct Message {
    bytes: Vec<u8>,
    task: usize,
    stream: usize,
    is_end: bool,
    is_final: bool,
    sent_at: Option<Moment>,
}

/// A worker with one connection at a time.
struct Worker {
    link: Option<LinkId>,
    script: Vec<Message>,
    /// The message that is sent next, and those that this connection began with.
    next: usize,
    first: usize,
    /// Bytes of the request, before the first message.
    request_bytes: usize,
    pace: Duration,
    send_at: Moment,
    /// Messages after which each connection breaks.
    breaks: Vec<usize>,
    is_steady: bool,
    is_broken: bool,
    held: Vec<u8>,
}

/// A client of a task.
struct Client {
    link: Option<LinkId>,
    task: usize,
    held: Vec<u8>,
    is_open: bool,
    /// Whole streams that it has, and the bytes and chunks of the current one.
    streams: usize,
    bytes: usize,
    chunks: usize,
    /// The chunk whose bytes come next.
    announced: Option<usize>,
    has_control_end: bool,
    has_stalled: bool,
    read_bite: usize,
    /// Bytes after which its connections break; it comes back.
    breaks: Vec<usize>,
    received: usize,
    stop_after: Option<usize>,
    /// It has got audio.
    has_received: bool,
    /// It has stopped the task while the worker was sending.
    is_stopped: bool,
    close: Option<u16>,
    /// Since when it has been away, if its worker must know.
    away_since: Option<Moment>,
    has_small_window: bool,
    /// It came when the process was ending, or was left without a Close frame then.
    is_turned_away: bool,
    /// The stream of which it had a part when the drain began.
    drained_in: Option<usize>,
}

enum Plan {
    Connect(usize),
    Come(usize),
    Drain,
}

pub struct SpeechWorld {
    kernel: Shared,
    settings: gateway::Settings,
    process: Process,
    tasks: Vec<Task>,
    workers: Vec<Worker>,
    clients: Vec<Client>,
    plans: Vec<Plan>,
    by_link: HashMap<LinkId, Far>,
    drained_at: Option<Moment>,
    chance: fastrand::Rng,
}

#[derive(Clone, Copy)]
enum Far {
    Worker(usize),
    Client(usize),
}

/// The folder for the speech of this run.
fn spool() -> &'static std::path::Path {
    static FOLDER: OnceLock<std::path::PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("sim-spool-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        folder
    })
}

/// Byte `at` of stream `stream` of task `task`.
fn pattern(task: usize, stream: usize, at: usize) -> u8 {
    (at * 7 + at / 251 + stream * 31 + task * 101) as u8
}

fn audio(task: usize, stream: usize, from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| pattern(task, stream, at)).collect()
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    Frame::new(FrameKind::plain(opcode, Some(MASK)), payload).bytes
}

fn upgrade(target: &str, more: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
    .into_bytes()
}

impl Simulation for SpeechWorld {
    fn new(seed: u64, is_traced: bool) -> SpeechWorld {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0x5bee_c400);
        let nature = draw_nature(&mut chance, &[1000, 4096, 65_536]);
        let nature = Nature { records: records_of(seed), ..nature };
        let kernel = kernel(seed, nature, is_traced);
        kernel.borrow_mut().stands_still = seed % 4 == 1;
        kernel.borrow_mut().standstills_left = STANDSTILLS;
        let mut settings = settings(&mut chance);
        // Draws that other seeds' worlds do not depend on.
        let mut own_chance = fastrand::Rng::with_seed(seed ^ 0xd4a1);
        settings.drain_timeout = [None, Some(2 * S), Some(30 * S)][own_chance.usize(..3)];
        let drain_at = (seed % 7 == 3).then(|| some(&mut own_chance, 30 * S));
        let mut process = Process::new(&kernel, settings.clone(), seed);
        process.gateway.limit_turns(turn_limits(seed));
        process.lacks_descriptors = chance.u8(..4) == 0;
        let tasks = draw_tasks(&mut chance);
        let workers = draw_workers(&mut chance, &tasks, kernel.borrow().now);
        let mut clients = draw_clients(&mut chance, &tasks);
        if matches!(seed % 11, 4..7) {
            clients.iter_mut().for_each(|client| client.has_small_window = own_chance.bool());
        }
        let mut world = SpeechWorld {
            kernel,
            settings,
            process,
            tasks,
            workers,
            clients,
            plans: Vec::new(),
            by_link: HashMap::new(),
            drained_at: None,
            chance: chance.fork(),
        };
        if let Some(wait) = drain_at {
            world.plan(wait, Plan::Drain);
        }
        for worker in 0..world.workers.len() {
            let wait = S + some(&mut chance, S);
            world.plan(wait, Plan::Connect(worker));
        }
        for client in 0..world.clients.len() {
            // Most come before anything is said.
            let most = if world.tasks[world.clients[client].task].fate == Fate::Spoken {
                [S, 20 * S][chance.usize(..2)]
            } else {
                S / 2
            };
            let wait = some(&mut chance, most);
            world.plan(wait, Plan::Come(client));
        }
        world
    }

    fn run(&mut self) -> Result<(), String> {
        let start = self.kernel.borrow().start;
        let has_stood_still = self.kernel.borrow().stands_still;
        let standstills =
            if has_stood_still { STANDSTILLS + STANDSTILL_MAX } else { Duration::ZERO };
        let over = start + OVER_AFTER + standstills;
        self.advance(Some(over))?;
        for (at, client) in self.clients.iter().enumerate() {
            self.judge(client).map_err(|why| format!("client {at}: {why}"))?;
        }
        for at in 0..self.tasks.len() {
            self.judge_notices(at, has_stood_still)?;
        }
        if self.drained_at.is_some() {
            return match self.process.gateway.is_stopped() {
                true => Ok(()),
                false => Err("it was drained, and does not stop".into()),
            };
        }
        let sessions = self.process.gateway.session_count();
        if sessions > 0 {
            return Err(format!("{sessions} sessions are left"));
        }
        let retain = self.settings.tasks.retain.unwrap_or_default();
        self.advance(Some(over + retain + TIMEOUT))?;
        let tasks = self.process.gateway.results().tasks();
        let left = (tasks.len(), tasks.retained_bytes(), tasks.spooled_bytes());
        if left != (0, 0, 0) {
            return Err(format!("tasks, bytes in memory and in the spool are left: {left:?}"));
        }
        match self.process.gateway.stream_count() {
            0 => Ok(()),
            streams => Err(format!("{streams} streams are left")),
        }
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }

    fn tick(&mut self, link: LinkId) -> Result<(), String> {
        match self.by_link.get(&link) {
            Some(&Far::Worker(at)) => {
                self.tick_worker(at, link).map_err(|why| format!("worker {at}: {why}"))
            }
            Some(&Far::Client(at)) => {
                self.tick_client(at, link).map_err(|why| format!("client {at}: {why}"))
            }
            None => Ok(()),
        }
    }

    fn carry_out(&mut self, plan: usize) {
        match self.plans[plan] {
            Plan::Connect(worker) => self.connect(worker),
            Plan::Come(client) => self.come(client),
            Plan::Drain => self.drain(),
        }
    }

    fn greet(&mut self) {}

    fn is_due(&self, now: Moment) -> bool {
        !self.process.gateway.is_stopped() && self.process.is_due(now)
    }

    fn next_turn(&self) -> Option<Moment> {
        if self.process.gateway.is_stopped() { None } else { self.process.next_turn() }
    }

    fn turn(&mut self) -> Result<(), String> {
        let events = self.kernel.borrow_mut().take_events();
        if self.process.gateway.is_stopped() {
            return Ok(());
        }
        self.process.turn(events).map(drop)
    }

    fn check_quiet(&mut self) -> Result<(), String> {
        self.process.check_quiet()
    }
}

impl SpeechWorld {
    fn plan(&mut self, wait: Duration, plan: Plan) {
        self.plans.push(plan);
        self.kernel.borrow_mut().after(wait, Action::Plan(self.plans.len() - 1));
    }

    fn open(&mut self, far: Far, request: &[u8]) -> LinkId {
        let link = self.kernel.borrow_mut().open();
        self.by_link.insert(link, far);
        self.process.arrivals.push_back(Arrival::Client(link));
        self.kernel.borrow_mut().send(link, request);
        link
    }

    fn drain(&mut self) {
        self.drained_at = Some(self.kernel.borrow().now);
        self.tasks.iter_mut().for_each(|task| task.may_stall = true);
        for client in &mut self.clients {
            let has_part = client.link.is_some() && client.chunks > 0;
            client.drained_in = has_part.then_some(client.streams);
        }
        self.process.drain();
    }

    /// Whether the time for the drain is over, by now or by a moment.
    fn is_drain_over(&self, at: Moment) -> bool {
        match (self.drained_at, self.settings.drain_timeout) {
            (Some(since), Some(timeout)) => at >= since + timeout,
            _ => false,
        }
    }

    // ---- workers

    fn connect(&mut self, at: usize) {
        if self.drained_at.is_some() {
            return;
        }
        let request = upgrade("/ws/ingest", "Authorization: Bearer open\r\n");
        let link = self.open(Far::Worker(at), &request);
        let now = self.kernel.borrow().now;
        let worker = &mut self.workers[at];
        (worker.link, worker.first, worker.request_bytes) =
            (Some(link), worker.next, request.len());
        (worker.is_broken, worker.send_at) = (false, now);
        worker.held.clear();
        self.kernel.borrow_mut().after(Duration::ZERO, Action::Peer(link));
    }

    fn tick_worker(&mut self, at: usize, link: LinkId) -> Result<(), String> {
        if self.workers[at].link != Some(link) {
            return Ok(());
        }
        let bytes = self.kernel.borrow_mut().receive(link, usize::MAX / 2);
        self.workers[at].held.extend(bytes);
        self.hear(at)?;
        if self.workers[at].link.is_none() {
            return Ok(());
        }
        let is_drained = self.drained_at.is_some();
        let worker = &mut self.workers[at];
        let kernel = &mut *self.kernel.borrow_mut();
        if is_drained && kernel.received_end(link).is_some() {
            kernel.close(link);
            worker.link = None;
            return Ok(());
        }
        if worker.is_broken {
            if !kernel.links[link].is_dropped {
                kernel.after(10 * MS, Action::Peer(link));
                return Ok(());
            }
            // What the gateway has not read whole is sent again, and a little more.
            let mut taken = kernel.links[link].taken as usize;
            taken = taken.saturating_sub(worker.request_bytes);
            worker.next = worker.first;
            while let Some(message) = worker.script.get(worker.next)
                && message.bytes.len() <= taken
            {
                taken -= message.bytes.len();
                worker.next += 1;
            }
            for _ in 0..self.chance.usize(..3) {
                let Some(before) = worker.next.checked_sub(1) else { break };
                if worker.script[before].is_end {
                    break;
                }
                worker.next = before;
            }
            worker.link = None;
            self.plans.push(Plan::Connect(at));
            kernel.after(some(&mut self.chance, S), Action::Plan(self.plans.len() - 1));
            return Ok(());
        }
        while worker.next < worker.script.len() {
            if kernel.now < worker.send_at {
                kernel.at(worker.send_at, Action::Peer(link));
                return Ok(());
            }
            kernel.send(link, &worker.script[worker.next].bytes);
            worker.script[worker.next].sent_at = Some(kernel.now);
            worker.next += 1;
            worker.send_at = kernel.now + worker.pace;
            if worker.breaks.last().is_some_and(|after| worker.next - worker.first >= *after) {
                worker.breaks.pop();
                kernel.end(link, End::Reset);
                worker.is_broken = true;
                kernel.after(10 * MS, Action::Peer(link));
                return Ok(());
            }
        }
        if kernel.links[link].taken as usize >= worker.request_bytes
            && kernel.is_all_taken(link)
            && worker.send_at + 60 * S <= kernel.now
        {
            kernel.close(link);
            worker.link = None;
        } else {
            kernel.after(10 * S, Action::Peer(link));
        }
        Ok(())
    }

    /// What the gateway says to a worker.
    fn hear(&mut self, at: usize) -> Result<(), String> {
        let worker = &mut self.workers[at];
        if worker.held.starts_with(b"HTTP") {
            let Some(length) = head_length(&worker.held) else { return Ok(()) };
            if !worker.held.starts_with(b"HTTP/1.1 101") {
                return judge_refusal(&worker.held, self.drained_at);
            }
            worker.held.drain(..length);
        }
        while let Some((opcode, payload)) = next_frame(&mut worker.held) {
            if opcode == PING {
                let link = worker.link.ok_or("a ping without a connection")?;
                self.kernel.borrow_mut().send(link, &frame(PONG, &payload));
                continue;
            }
            if opcode == CLOSE && self.drained_at.is_some() {
                let link = worker.link.take().ok_or("a Close frame without a connection")?;
                self.kernel.borrow_mut().send(link, &Frame::close(1012, "", Some(MASK)).bytes);
                self.kernel.borrow_mut().close(link);
                return match payload.first_chunk() == Some(&1012u16.to_be_bytes()) {
                    true => Ok(()),
                    false => Err(format!("closed with {payload:?}")),
                };
            }
            if opcode != TEXT {
                return Err(format!("a frame with opcode {opcode}"));
            }
            let message: Value = serde_json::from_slice(&payload).map_err(|it| it.to_string())?;
            let session = message["sessionId"].as_str().unwrap_or_default();
            let task = self.tasks.iter_mut().find(|task| task.id == session);
            let task = task.ok_or_else(|| format!("for no task: {message}"))?;
            match (message["type"].as_str(), message["action"].as_str()) {
                (Some("CONTROL"), Some("STOP")) => task.stops += 1,
                (Some("CONTROL"), Some("LEFT")) => task.lefts += 1,
                (Some("CONTROL"), Some("BACK")) => task.backs += 1,
                (Some("error"), _) => {
                    let is_stalled = message["error"] == "Audio stalled";
                    if !is_stalled || task.fate != Fate::Abandoned {
                        return Err(format!("{message}"));
                    }
                }
                _ => return Err(format!("what is {message}?")),
            }
        }
        Ok(())
    }

    // ---- clients

    fn come(&mut self, at: usize) {
        if self.drained_at.is_some() {
            self.clients[at].is_turned_away = true;
            return;
        }
        let now = self.kernel.borrow().now;
        let is_still_missed = self.is_missed(at);
        let client = &mut self.clients[at];
        let away_since = client.away_since.take();
        if is_still_missed && away_since.is_some_and(|since| now >= since + AWAY) {
            self.tasks[client.task].absences += 1;
        }
        let task = &self.tasks[client.task];
        let (stream, chunks, bytes) = (client.streams, client.chunks, client.bytes);
        let resume = match self.chance.bool() {
            _ if stream == 0 && bytes == 0 => String::new(),
            true => format!("?from_result={stream}&from_chunk={chunks}"),
            false => format!("?from_result={stream}&from_byte={bytes}"),
        };
        let target = format!("/ws/output/{}{resume}", task.id);
        client.held.clear();
        (client.is_open, client.announced, client.received) = (false, None, 0);
        client.has_control_end = false;
        let has_small_window = client.has_small_window;
        let link = self.open(Far::Client(at), &upgrade(&target, ""));
        if has_small_window {
            self.kernel.borrow_mut().narrow(link, SMALL_WINDOW);
        }
        self.clients[at].link = Some(link);
    }

    fn tick_client(&mut self, at: usize, link: LinkId) -> Result<(), String> {
        if self.clients[at].link != Some(link) {
            return Ok(());
        }
        loop {
            let client = &mut self.clients[at];
            let bytes = self.kernel.borrow_mut().receive(link, client.read_bite);
            if bytes.is_empty() {
                break;
            }
            client.received += bytes.len();
            client.held.extend(bytes);
            self.read(at)?;
            let client = &mut self.clients[at];
            if client.close.is_none()
                && client.breaks.last().is_some_and(|after| client.received >= *after)
            {
                client.breaks.pop();
                self.kernel.borrow_mut().end(link, End::Reset);
                client.link = None;
                let away_since = self.is_missed(at).then(|| self.kernel.borrow().now);
                self.clients[at].away_since = away_since;
                let most = [S, 5 * S][self.chance.usize(..2)];
                let wait = some(&mut self.chance, most);
                self.plan(wait, Plan::Come(at));
                return Ok(());
            }
            if client.stop_after.is_some_and(|after| client.received >= after)
                && client.close.is_none()
            {
                client.stop_after = None;
                let stop = frame(TEXT, br#"{"type":"control","action":"STOP"}"#);
                self.kernel.borrow_mut().send(link, &stop);
            }
        }
        let is_drain_over = self.is_drain_over(self.kernel.borrow().now);
        let is_drained = self.drained_at.is_some();
        let client = &mut self.clients[at];
        let kernel = &mut *self.kernel.borrow_mut();
        if let Some(code) = client.close {
            kernel.send(link, &Frame::close(code, "", Some(MASK)).bytes);
            kernel.close(link);
            client.link = None;
        } else if kernel.received_end(link).is_some()
            && (is_drain_over || is_drained && !client.is_open)
        {
            client.is_turned_away = true;
            kernel.close(link);
            client.link = None;
        } else if kernel.received_end(link).is_some() {
            return Err("its connection ends without a Close frame".into());
        }
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<(), String> {
        let client = &mut self.clients[at];
        if !client.is_open {
            let Some(length) = head_length(&client.held) else { return Ok(()) };
            if !client.held.starts_with(b"HTTP/1.1 101") {
                return judge_refusal(&client.held, self.drained_at);
            }
            client.held.drain(..length);
            client.is_open = true;
        }
        while let Some((opcode, payload)) = next_frame(&mut self.clients[at].held) {
            let client = &mut self.clients[at];
            match opcode {
                BINARY => client.take_chunk(&payload, &self.tasks)?,
                TEXT => {
                    let message: Value =
                        serde_json::from_slice(&payload).map_err(|it| it.to_string())?;
                    client.take_message(&message, &self.tasks)?;
                    if message["action"] == "STOP_ACK" {
                        self.clients[at].is_stopped = self.is_missed(at);
                    }
                }
                CLOSE => {
                    let code = payload.first_chunk().map_or(0, |code| u16::from_be_bytes(*code));
                    client.close = Some(code);
                }
                PING => {
                    let link = client.link.ok_or("a ping without a connection")?;
                    self.kernel.borrow_mut().send(link, &frame(PONG, &payload));
                }
                _ => return Err(format!("a frame with opcode {opcode}")),
            }
        }
        Ok(())
    }

    /// The worker of a task, if its connection never breaks.
    fn steady_worker(&self, task: usize) -> Option<&Worker> {
        let is_its = |worker: &&Worker| worker.script.iter().any(|message| message.task == task);
        self.workers.iter().find(is_its).filter(|worker| worker.is_steady)
    }

    /// Whether the worker of a client's task must hear of what the client does: no other one waits
    /// for the task, and the worker has sent something for it, and not all.
    fn is_missed(&self, at: usize) -> bool {
        let task = self.clients[at].task;
        let Some(worker) = self.steady_worker(task) else { return false };
        let is_alone = self.clients.iter().filter(|client| client.task == task).count() == 1;
        let sent = &worker.script[..worker.next];
        let mut sent = sent.iter().filter(|message| message.task == task).peekable();
        is_alone && self.clients[at].has_received && sent.all(|message| !message.is_final)
    }

    /// What the worker of a task was notified of.
    fn judge_notices(&self, at: usize, has_stood_still: bool) -> Result<(), String> {
        let task = &self.tasks[at];
        let mut clients = self.clients.iter().filter(|client| client.task == at);
        let is_stopped = clients.any(|client| client.is_stopped);
        let fault = |what: &str, count: u32| {
            Err(format!("the worker of task {at} received {count} {what}"))
        };
        let is_steady = self.steady_worker(at).is_some();
        if task.stops > u32::from(task.fate == Fate::Stopped)
            || is_steady && is_stopped && task.stops == 0
        {
            return fault("STOPs", task.stops);
        }
        // While the process stands still, a client may be gone and back. A worker that has finished
        // while nobody waited needs no BACK.
        let is_told = task.absences <= task.backs || has_stood_still || self.drained_at.is_some();
        if is_steady && task.fate == Fate::Spoken && !(is_told && task.backs <= task.lefts) {
            let what = format!("BACKs and {} LEFTs for {} absences", task.lefts, task.absences);
            return fault(&what, task.backs);
        }
        Ok(())
    }

    /// What a client had begun to get when a drain began came to its end, if its worker spoke in
    /// time.
    fn judge_drained(&self, client: &Client) -> Result<(), String> {
        let (Some(since), Some(stream)) = (self.drained_at, client.drained_in) else {
            return Ok(());
        };
        let worker = self.steady_worker(client.task).filter(|_| {
            let is_spoken = self.tasks[client.task].fate == Fate::Spoken;
            let stays = client.breaks.is_empty() && !client.is_turned_away;
            is_spoken && stays && !self.kernel.borrow().stands_still
        });
        let Some(worker) = worker else { return Ok(()) };
        let mut script = worker.script.iter();
        let is_its_end =
            |one: &&Message| one.task == client.task && one.stream == stream && one.is_end;
        let is_in_time = script.find(is_its_end).and_then(|end| end.sent_at).is_some_and(|at| {
            self.settings.drain_timeout.is_none_or(|timeout| at + LAG < since + timeout)
        });
        match is_in_time && client.streams <= stream {
            true => Err(format!("the drain cut stream {stream} off, which its worker has ended")),
            false => Ok(()),
        }
    }

    fn judge(&self, client: &Client) -> Result<(), String> {
        let task = &self.tasks[client.task];
        let has_all = client.streams == task.streams.len() && client.bytes == 0;
        self.judge_drained(client)?;
        match (task.fate, client.close) {
            (Fate::Spoken, Some(1000)) if has_all => Ok(()),
            (_, Some(1012)) if self.drained_at.is_some() => Ok(()),
            (_, None) if client.is_turned_away => Ok(()),
            (Fate::Spoken, Some(4008)) if task.may_stall && client.has_stalled => Ok(()),
            (Fate::Stopped, Some(1000)) => Ok(()),
            // It came when everything had been said, or was left waiting.
            (Fate::Stopped, Some(4008)) => Ok(()),
            (Fate::Abandoned, Some(4008)) if client.has_stalled => Ok(()),
            (_, close) => Err(format!(
                "it has {} streams of {} and {} bytes, and was closed with {close:?}",
                client.streams,
                task.streams.len(),
                client.bytes,
            )),
        }
    }
}

impl Client {
    fn take_message(&mut self, message: &Value, tasks: &[Task]) -> Result<(), String> {
        let task = &tasks[self.task];
        let (kind, action) = (message["type"].as_str(), message["action"].as_str());
        if message["task_id"] != task.id.as_str()
            || self.announced.is_some() && kind != Some("control")
        {
            return Err(format!("out of place: {message}"));
        }
        match (kind, action) {
            (Some("audio_chunk"), _) => {
                let number = message["chunk_id"].as_u64().unwrap_or(u64::MAX) as usize;
                let offset = message["offset"].as_u64().unwrap_or(u64::MAX) as usize;
                let viseme = json!([self.streams, number]);
                if offset != self.bytes || message["viseme"] != viseme {
                    return Err(format!("at {} bytes of {viseme}: {message}", self.bytes));
                }
                self.announced = Some(number);
            }
            (Some("control"), Some("END")) => self.has_control_end = true,
            (Some("audio_complete"), _) if self.has_control_end => {
                let whole: usize = task.streams[self.streams].iter().sum();
                if self.bytes != whole {
                    return Err(format!("{} bytes are complete, of {whole}", self.bytes));
                }
                self.has_control_end = false;
                (self.streams, self.bytes, self.chunks) = (self.streams + 1, 0, 0);
            }
            (Some("control"), Some("STOP_ACK")) if task.fate == Fate::Stopped => {
                self.announced = None;
            }
            _ if message["error"] == "Audio stalled"
                && (task.fate == Fate::Abandoned || task.may_stall) =>
            {
                self.has_stalled = true;
            }
            _ if message["error"] == "Processing timeout" => {}
            _ => return Err(format!("unexpected: {message}")),
        }
        Ok(())
    }

    fn take_chunk(&mut self, payload: &[u8], tasks: &[Task]) -> Result<(), String> {
        let number = self.announced.take().ok_or("bytes without an announcement")?;
        self.has_received = true;
        let lengths = &tasks[self.task].streams[self.streams];
        let start: usize = lengths[..number].iter().sum();
        let end = start + lengths[number];
        if payload != audio(self.task, self.streams, self.bytes, end - self.bytes) {
            return Err(format!("chunk {number} of stream {} is wrong", self.streams));
        }
        (self.bytes, self.chunks) = (end, number + 1);
        Ok(())
    }
}

/// Only a drain refuses a client or a worker: one that was accepted before it began, and whose
/// request was read after. The response stays in `held`, as its body may come later than its head.
fn judge_refusal(held: &[u8], drained_at: Option<Moment>) -> Result<(), String> {
    match drained_at {
        Some(_) if held.starts_with(b"HTTP/1.1 503") => Ok(()),
        _ => Err("it was refused".into()),
    }
}

/// Takes a whole frame off the front.
fn next_frame(held: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (opcode, head_bytes, length, _) = read_head(held)?;
    let end = head_bytes + length as usize;
    let payload = held.get(head_bytes..end)?.to_vec();
    held.drain(..end);
    Some((opcode, payload))
}

// ---- drawing

fn some(chance: &mut fastrand::Rng, most: Duration) -> Duration {
    most * chance.u32(..1000) / 1000
}

fn settings(chance: &mut fastrand::Rng) -> gateway::Settings {
    let pings = [(None, None), (Some(20 * S), Some(20 * S)), (Some(7 * S), Some(5 * S))];
    let (ping_interval, ping_timeout) = pings[chance.usize(..pings.len())];
    let spool = if chance.bool() { spool().to_path_buf() } else { Default::default() };
    let output = session::output::Settings {
        timeout: Some(TIMEOUT),
        chunk_size: 4000,
        audio_stall: Some(STALL),
        spool,
        ..Default::default()
    };
    let session = session::Settings {
        ping_interval,
        ping_timeout,
        write_timeout: Some(30 * S),
        output,
        ..session::Settings::default()
    };
    let route = |name: &str, path: &str, target| RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a path"),
        target,
    };
    let token = Some(Token::parse("open").expect("a token"));
    let access = Access { token, token_file: String::new() };
    gateway::Settings {
        session,
        routes: vec![
            route("output", "/ws/output/{task_id}", TargetSettings::Output),
            route("ingest", "/ws/ingest", TargetSettings::Ingest(access)),
        ],
        tasks: tasks::Settings { retain: Some(60 * S), ..Default::default() },
        link: link::Settings { urls: vec!["embedded://127.0.0.1:1".into()], ..Default::default() },
        limits: limits::Settings {
            max_connections: 1000,
            max_connections_per_ip: 0,
            allowed_origins: Vec::new(),
        },
        trust: Default::default(),
        drain_timeout: None,
        upstreams: Default::default(),
        tls: Default::default(),
    }
}

fn draw_tasks(chance: &mut fastrand::Rng) -> Vec<Task> {
    let draw = |number: usize, chance: &mut fastrand::Rng| {
        let streams = (0..chance.usize(1..4))
            .map(|_| {
                let usual = [40, 960, 4000][chance.usize(..3)];
                (0..chance.usize(1..12))
                    .map(|_| if chance.u8(..4) == 0 { chance.usize(..=4000) } else { usual })
                    .collect()
            })
            .collect();
        let fate = match chance.u8(..8) {
            0 => Fate::Stopped,
            1 => Fate::Abandoned,
            _ => Fate::Spoken,
        };
        let id = format!("00000000-0000-0000-0000-{number:012x}");
        Task { id, streams, fate, stops: 0, lefts: 0, backs: 0, absences: 0, may_stall: false }
    };
    (0..chance.usize(1..8)).map(|number| draw(number, chance)).collect()
}

fn draw_workers(chance: &mut fastrand::Rng, tasks: &[Task], now: Moment) -> Vec<Worker> {
    let count = chance.usize(1..=tasks.len());
    let mut workers = Vec::new();
    for at in 0..count {
        let own: Vec<usize> = (at..tasks.len()).step_by(count).collect();
        let mut scripts: Vec<Vec<Message>> =
            own.iter().map(|task| script(chance, *task, &tasks[*task])).collect();
        scripts.iter_mut().for_each(|script| script.reverse());
        // Its tasks take turns by chance.
        let mut script = Vec::new();
        while !scripts.is_empty() {
            let one = chance.usize(..scripts.len());
            match scripts[one].pop() {
                Some(message) => script.push(message),
                None => drop(scripts.remove(one)),
            }
        }
        let breaks: Vec<usize> = (0..chance.usize(..4)).map(|_| chance.usize(..20)).collect();
        workers.push(Worker {
            is_steady: breaks.is_empty(),
            link: None,
            script,
            next: 0,
            first: 0,
            request_bytes: 0,
            pace: [Duration::ZERO, MS, 20 * MS, 300 * MS][chance.usize(..4)],
            send_at: now,
            breaks,
            is_broken: false,
            held: Vec::new(),
        });
    }
    workers
}

/// Everything that is said for a task.
fn script(chance: &mut fastrand::Rng, number: usize, task: &Task) -> Vec<Message> {
    let mut messages = Vec::new();
    for (stream, lengths) in task.streams.iter().enumerate() {
        let mut from = 0;
        for (seq, &length) in lengths.iter().enumerate() {
            let bytes = audio(number, stream, from, length);
            from += length;
            let mut message = json!({
                "type": "SPEECH_CHUNK",
                "sessionId": task.id,
                "seq": seq,
                "viseme": [stream, seq],
            });
            let bytes = if chance.bool() {
                message["pcm"] = BASE64.encode(&bytes).into();
                frame(TEXT, message.to_string().as_bytes())
            } else {
                message["bytes"] = length.into();
                [frame(TEXT, message.to_string().as_bytes()), frame(BINARY, &bytes)].concat()
            };
            messages.push(Message {
                bytes,
                task: number,
                stream,
                is_end: false,
                is_final: false,
                sent_at: None,
            });
        }
        let is_final = stream + 1 == task.streams.len();
        if is_final && task.fate == Fate::Abandoned {
            break;
        }
        let end = json!({
            "type": "CONTROL", "action": "END", "sessionId": task.id, "final": is_final,
        });
        let bytes = frame(TEXT, end.to_string().as_bytes());
        messages.push(Message {
            bytes,
            task: number,
            stream,
            is_end: true,
            is_final,
            sent_at: None,
        });
    }
    messages
}

fn draw_clients(chance: &mut fastrand::Rng, tasks: &[Task]) -> Vec<Client> {
    let mut clients = Vec::new();
    for (task, what) in tasks.iter().enumerate() {
        let count = if what.fate == Fate::Stopped { 1 } else { chance.usize(1..4) };
        for _ in 0..count {
            let breaks = match what.fate {
                Fate::Spoken => (0..chance.usize(..4)).map(|_| chance.usize(200..5000)).collect(),
                Fate::Stopped | Fate::Abandoned => Vec::new(),
            };
            clients.push(Client {
                link: None,
                task,
                held: Vec::new(),
                is_open: false,
                streams: 0,
                bytes: 0,
                chunks: 0,
                announced: None,
                has_control_end: false,
                has_stalled: false,
                read_bite: [17, 300, 100_000][chance.usize(..3)],
                breaks,
                received: 0,
                stop_after: (what.fate == Fate::Stopped).then(|| chance.usize(200..6000)),
                has_received: false,
                is_stopped: false,
                close: None,
                away_since: None,
                has_small_window: false,
                is_turned_away: false,
                drained_in: None,
            });
        }
    }
    clients
}
