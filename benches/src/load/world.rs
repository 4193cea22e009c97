//! The event loop and the state of each connection.
//!
//! Every connection has a `Job`. Any received byte that the job does not expect ends the run with
//! an error: a target that is fast but wrong gets no figures.
//!
//! Streams are in a nested epoll set and get one event per turn: a message that waits behind
//! a megabyte in the load generator would count against the target.

use super::results::{Delivery, Shape};
use super::socket::Socket;
use crate::Fault;
use crate::net::{self, Io, Poll};
use crate::resp::{self, Value};
use crate::stats::Latencies;
use crate::tls::Client;
use crate::wire;
use rustix::event::epoll::EventFlags;
use rustix::net::sockopt;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Random bytes that payloads are cut from.
const POOL_BYTES: usize = 3 << 20;
/// Number of offsets in the pool at which payloads start.
const POOL_PLACES: u64 = 8191;
/// Bytes per read or write of a stream while messages are timed beside it.
const BULK_BYTES_SHARED: usize = 128 * 1024;
/// Bytes per read or write of a stream while nothing else runs.
const BULK_BYTES_ALONE: usize = 1 << 20;
/// Room for one read where no message size is known.
const READ_BYTES: usize = 16 * 1024;
/// Frames of a stream before it repeats; each has its own payload and mask.
const PATTERN_BYTES: usize = 4 << 20;

const LISTENER: u64 = u64::MAX;
const BULK: u64 = u64::MAX - 1;

/// The role of a pair of connections, or of a client without a backend connection.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Opens and stays.
    Rest,
    /// Sends messages of this many bytes, gets them back.
    Echo { size: usize },
    /// Frames one way, as fast as possible.
    Stream { pattern: Arc<Pattern>, way: Way },
    /// A client that waits for the results of a task.
    Task(Box<Delivery>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the backend to the client.
    Down,
    /// From the client to the backend.
    Up,
}

/// Where results are published: Redis, or a target's inbox. An index of a connection.
pub type Publisher = u32;

/// The wire image of a stream: a sequence of frames that repeats.
#[derive(Debug)]
pub struct Pattern {
    wire: Vec<u8>,
    frame_bytes: usize,
}

/// What was counted since the last `World::reset_tally`.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Clients whose upgrade was answered, and those of them that resumed a TLS session.
    pub opened: u64,
    pub resumed: u64,
    /// Messages that came back.
    pub echoed: u64,
    /// Clients that completed the Close handshake and saw the end of the connection.
    pub left: u64,
    /// Stream bytes sent and received, heads of frames included.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Text messages of results, whole results, and audio payload bytes.
    pub texts: u64,
    pub results: u64,
    pub audio_bytes: u64,
    /// PUBLISH commands that were answered, and the receivers that the answers counted.
    pub published: u64,
    pub receivers: u64,
    /// Files fetched over plain HTTP.
    pub fetched: u64,
    /// From a message to its echo, or from PUBLISH to the text message.
    pub latencies: Latencies,
}

/// What a client does when its message has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Sends the next one while `World::messages_left` lasts.
    Again,
    /// Waits for `World::send_message`.
    Pause,
    /// Closes; the connection ends.
    Leave,
}

/// What a waiting client does once a result is complete.
#[derive(Clone, Debug)]
pub enum Refill {
    Nothing,
    /// Requests the next with a message.
    Message,
    /// Publishes the next for its task.
    Publish {
        through: Publisher,
        prefix: String,
        json: String,
    },
}

pub struct World {
    poll: Poll,
    bulk: Poll,
    listener: OwnedFd,
    target: SocketAddr,
    /// Puts TLS on the clients.
    tls: Option<Client>,
    host: String,
    /// The `World` that a backend connection belongs to; connections of an earlier one are dropped.
    generation: u32,
    slots: Vec<Option<Conn>>,
    free: Vec<u32>,
    dead: Vec<u32>,
    pool: Vec<u8>,
    frame: Vec<u8>,
    scratch: Vec<u8>,
    bulk_bytes: usize,
    senders: u32,
    /// What is compared with audio that arrives.
    pub audio: Arc<Vec<u8>>,
    pub after_echo: After,
    pub messages_left: u64,
    pub after_result: Refill,
    /// Whether streams go on.
    pub streaming: bool,
    pub tally: Tally,
    /// Clients whose message has returned since their last `World::send_message` (with
    /// `After::Pause`).
    pub paused: VecDeque<u32>,
}

struct Conn {
    socket: Socket,
    job: Job,
    /// What comes after the handshake; taken by the backend end, then by the client end.
    plan: Option<Plan>,
    key: String,
    inbox: Vec<u8>,
    /// Unsent output, from `out_at` on.
    out: Vec<u8>,
    out_at: usize,
    wants_write: bool,
    in_bulk: bool,
    sent_at: Option<Instant>,
}

enum Job {
    /// A client that has asked for its upgrade.
    Ask,
    /// A backend connection whose request has not come.
    Greet,
    Rest,
    Echo {
        size: usize,
        sequence: u64,
    },
    Answer,
    /// A client that has sent its Close, and whether it has seen the other one.
    Leave {
        answered: bool,
    },
    Send {
        pattern: Arc<Pattern>,
        at: usize,
        active: bool,
    },
    Receive {
        pattern: Arc<Pattern>,
        at: usize,
    },
    Task(Box<Delivery>),
    Publish,
    Fetch {
        left: Option<u64>,
        got: usize,
        wanted: u64,
    },
}

impl World {
    /// A world around a target; `listener` is the target's backend.
    pub fn new(target: SocketAddr, listener: impl Into<OwnedFd>) -> Result<World, Fault> {
        let listener = listener.into();
        static GENERATION: AtomicU32 = AtomicU32::new(0);
        let broken = |error: std::io::Error| format!("cannot poll: {error}");
        while net::accept(&listener).map_err(broken)?.is_some() {}
        let (poll, bulk) = (Poll::new(256).map_err(broken)?, Poll::new(1).map_err(broken)?);
        poll.add(&listener, LISTENER, EventFlags::IN).map_err(broken)?;
        poll.add(&bulk, BULK, EventFlags::IN).map_err(broken)?;
        let mut pool = vec![0; POOL_BYTES];
        fastrand::fill(&mut pool);
        Ok(World {
            poll,
            bulk,
            listener,
            target,
            tls: None,
            host: target.to_string(),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            slots: Vec::new(),
            free: Vec::new(),
            dead: Vec::new(),
            pool,
            frame: Vec::new(),
            scratch: vec![0; BULK_BYTES_ALONE],
            bulk_bytes: BULK_BYTES_ALONE,
            senders: 0,
            audio: Arc::default(),
            after_echo: After::Pause,
            messages_left: 0,
            after_result: Refill::Nothing,
            streaming: false,
            tally: Tally::default(),
            paused: VecDeque::new(),
        })
    }

    /// Clients use TLS from now on.
    pub fn use_tls(&mut self, client: Client) {
        self.tls = Some(client);
    }

    pub fn reset_tally(&mut self) {
        self.tally = Tally::default();
    }

    /// Frames of `size` payload bytes, masked as a client's on the way up.
    pub fn pattern(&self, size: usize, way: Way) -> Arc<Pattern> {
        assert!(size <= POOL_BYTES / 2, "a stream's frame is cut from the pool");
        let frames = (PATTERN_BYTES / size.max(1)).clamp(2, 64);
        let mut wire = Vec::with_capacity(frames * (size + 14));
        for frame in 0..frames {
            let start = frame * 4099;
            let mask = (way == Way::Up).then(|| fastrand::u32(..).to_ne_bytes());
            wire::push_frame(&mut wire, wire::BINARY, &self.pool[start..start + size], mask);
        }
        Arc::new(Pattern { frame_bytes: wire.len() / frames, wire })
    }

    /// Streams use smaller reads and writes from now on, because messages are timed beside them.
    pub fn share_with_messages(&mut self) {
        self.bulk_bytes = BULK_BYTES_SHARED;
    }

    /// Begins to open a client at a path of the target; `Tally::opened` counts it once the target
    /// has answered.
    pub fn open(&mut self, path: &str, plan: Plan) -> Result<u32, Fault> {
        let fault = |error: std::io::Error| format!("cannot connect to the target: {error}");
        let fd = net::dial(self.target).map_err(fault)?;
        let socket = match &self.tls {
            Some(client) => Socket::tls(fd, client).map_err(fault)?,
            None => Socket::plain(fd),
        };
        let id = self.admit(socket, Job::Ask)?;
        let key = wire::fresh_key();
        let target = match &plan {
            Plan::Task(_) => path.to_owned(),
            _ => format!("{path}?n={id}&w={}", self.generation),
        };
        let request = wire::upgrade_request(&target, &self.host, &key);
        let conn = self.conn(id);
        conn.plan = Some(plan);
        conn.key = key;
        self.send(id, &request)?;
        Ok(id)
    }

    /// Connects to where results are published.
    pub fn open_publisher(&mut self, address: SocketAddr) -> Result<Publisher, Fault> {
        let socket =
            net::dial(address).map_err(|error| format!("cannot connect to publish: {error}"))?;
        self.admit(Socket::plain(socket), Job::Publish)
    }

    /// Connects for `fetch`.
    pub fn open_fetcher(&mut self) -> Result<u32, Fault> {
        let socket = net::dial(self.target)
            .map_err(|error| format!("cannot connect to the target: {error}"))?;
        self.admit(Socket::plain(socket), Job::Fetch { left: None, got: 0, wanted: 0 })
    }

    /// Sends the next message of an echo client; its echo is timed from here.
    pub fn send_message(&mut self, id: u32) -> Result<(), Fault> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        let Job::Echo { size, sequence } =
            &mut self.slots[id as usize].as_mut().ok_or("no such client")?.job
        else {
            return Err("only an echo client has messages to send".into());
        };
        *sequence += 1;
        let (size, sequence) = (*size, *sequence);
        let key = fastrand::u32(..).to_ne_bytes();
        wire::push_frame_head(&mut frame, wire::BINARY, size, Some(key));
        let start = frame.len();
        let place = place_of(sequence);
        frame.extend_from_slice(&self.pool[place..place + size]);
        stamp(&mut frame[start..], sequence);
        wire::apply_mask(&mut frame[start..], key);
        self.conn(id).sent_at = Some(Instant::now());
        let sent = self.send(id, &frame);
        self.frame = frame;
        sent
    }

    /// Publishes; a client of that task is timed from here.
    pub fn publish(
        &mut self,
        through: Publisher,
        channel: &str,
        json: &str,
        client: Option<u32>,
    ) -> Result<(), Fault> {
        let mut command = Vec::with_capacity(channel.len() + json.len() + 64);
        resp::push_command(&mut command, &[b"PUBLISH", channel.as_bytes(), json.as_bytes()]);
        if let Some(client) = client {
            self.conn(client).sent_at = Some(Instant::now());
        }
        self.send(through, &command)
    }

    /// Publishes one text for many channels, in one write.
    pub fn publish_all(
        &mut self,
        through: Publisher,
        channels: &[String],
        json: &str,
    ) -> Result<(), Fault> {
        let mut commands = Vec::with_capacity(channels.len() * (json.len() + 128));
        for channel in channels {
            resp::push_command(&mut commands, &[b"PUBLISH", channel.as_bytes(), json.as_bytes()]);
        }
        self.send(through, &commands)
    }

    /// A small text message from a waiting client, which makes the copy loop send the file.
    pub fn nudge(&mut self, id: u32) -> Result<(), Fault> {
        let mut frame = Vec::new();
        wire::push_frame(&mut frame, wire::TEXT, b"next", Some(fastrand::u32(..).to_ne_bytes()));
        self.send(id, &frame)
    }

    /// Requests a file `times` times, one after the other.
    pub fn fetch(&mut self, id: u32, path: &str, times: u64) -> Result<(), Fault> {
        if let Job::Fetch { wanted, .. } = &mut self.conn(id).job {
            *wanted = times;
        }
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host).into_bytes();
        self.conn(id).key = path.to_owned();
        self.send(id, &request)
    }

    /// Starts every stream; they go on until `streaming` is false and end at a frame boundary.
    pub fn start_streams(&mut self) -> Result<(), Fault> {
        self.streaming = true;
        for id in 0..self.slots.len() as u32 {
            let Some(conn) = self.slots[id as usize].as_mut() else { continue };
            if let Job::Send { active: active @ false, .. } = &mut conn.job {
                *active = true;
                self.senders += 1;
                self.want_write(id, true)?;
            }
        }
        Ok(())
    }

    /// Whether all that was streamed has arrived.
    pub fn streams_are_over(&self) -> bool {
        self.senders == 0 && self.tally.sent_bytes == self.tally.received_bytes
    }

    /// One turn: waits up to `timeout` (without one, until there is an event) and handles the
    /// events.
    pub fn turn(&mut self, timeout: Option<Duration>) -> Result<(), Fault> {
        crate::interrupt::check()?;
        let broken = |error: std::io::Error| format!("cannot poll: {error}");
        let count = self.poll.wait(timeout).map_err(broken)?;
        let mut bulk = false;
        for index in 0..count {
            match self.poll.event(index) {
                (LISTENER, _) => self.accept()?,
                (BULK, _) => bulk = true,
                (id, flags) => self.ready(id as u32, flags)?,
            }
        }
        if bulk && self.bulk.wait(Some(Duration::ZERO)).map_err(broken)? > 0 {
            let (id, flags) = self.bulk.event(0);
            self.ready(id as u32, flags)?;
        }
        // Slots are freed last, so that a late event of this turn reaches no new connection.
        for id in self.dead.drain(..) {
            self.slots[id as usize] = None;
            self.free.push(id);
        }
        Ok(())
    }

    /// Runs turns until `done` returns true.
    pub fn run_until(
        &mut self,
        within: Duration,
        what: &str,
        done: impl Fn(&World) -> bool,
    ) -> Result<(), Fault> {
        let deadline = Instant::now() + within;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!(
                    "timed out after {} s: {what}; so far {}",
                    within.as_secs(),
                    self.progress()
                ));
            }
            self.turn(Some(left))?;
        }
        Ok(())
    }

    fn progress(&self) -> String {
        let tally = &self.tally;
        format!(
            "{} opened, {} echoed, {} left, {} of {} stream bytes, {} texts, {} results, {} published",
            tally.opened,
            tally.echoed,
            tally.left,
            tally.received_bytes,
            tally.sent_bytes,
            tally.texts,
            tally.results,
            tally.published
        )
    }

    fn conn(&mut self, id: u32) -> &mut Conn {
        self.slots[id as usize].as_mut().expect("an id stays good until its connection is reaped")
    }

    fn admit(&mut self, socket: Socket, job: Job) -> Result<u32, Fault> {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.poll
            .add(&socket, u64::from(id), EventFlags::IN)
            .map_err(|error| format!("cannot poll: {error}"))?;
        self.slots[id as usize] = Some(Conn {
            socket,
            job,
            plan: None,
            key: String::new(),
            inbox: Vec::new(),
            out: Vec::new(),
            out_at: 0,
            wants_write: false,
            in_bulk: false,
            sent_at: None,
        });
        Ok(id)
    }

    fn accept(&mut self) -> Result<(), Fault> {
        while let Some(socket) =
            net::accept(&self.listener).map_err(|error| format!("cannot accept: {error}"))?
        {
            self.admit(Socket::plain(socket), Job::Greet)?;
        }
        Ok(())
    }

    fn ready(&mut self, id: u32, flags: EventFlags) -> Result<(), Fault> {
        let Some(conn) = self.slots[id as usize].as_mut() else { return Ok(()) };
        if flags.contains(EventFlags::OUT) {
            if !conn.out.is_empty() || conn.socket.is_output_held() {
                self.flush(id)?;
            }
            self.stream_on(id)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
            || self.dead.contains(&id)
        {
            return Ok(());
        }
        loop {
            let goes_on = match &self.conn(id).job {
                Job::Receive { .. } => self.receive(id)?,
                Job::Task(_) => {
                    self.observe(id)?;
                    false
                }
                Job::Fetch { .. } => {
                    self.read_file(id)?;
                    false
                }
                _ => self.read(id)?,
            };
            // Without TLS, the next event reports what is left.
            if !goes_on || !self.conn(id).socket.is_buffering() || self.dead.contains(&id) {
                return Ok(());
            }
        }
    }

    /// Reads once into the connection's buffer and handles what is complete. Whether there may be
    /// more.
    fn read(&mut self, id: u32) -> Result<bool, Fault> {
        let conn = self.conn(id);
        // One read can then take a whole message where its size is known.
        let wanted = if let Job::Echo { size, .. } = &conn.job { size + 64 } else { READ_BYTES };
        if conn.inbox.capacity() < wanted {
            conn.inbox.reserve_exact(wanted - conn.inbox.len());
        } else if conn.inbox.capacity() == conn.inbox.len() {
            conn.inbox.reserve(READ_BYTES);
        }
        match conn.socket.recv_behind(&mut conn.inbox) {
            Ok(Io::Moved(_)) => self.take(id).map(|()| true),
            Ok(Io::Blocked) => Ok(false),
            Ok(Io::Ended) => self.ended(id, "ended the connection").map(|()| false),
            Err(error) => {
                self.ended(id, &format!("broke the connection ({error})")).map(|()| false)
            }
        }
    }

    fn take(&mut self, id: u32) -> Result<(), Fault> {
        let mut inbox = std::mem::take(&mut self.conn(id).inbox);
        let mut used = 0;
        while used < inbox.len() {
            let count = match &self.conn(id).job {
                Job::Ask => self.take_answer(id, &inbox[used..])?,
                Job::Greet => self.take_request(id, &inbox[used..])?,
                Job::Publish => self.take_reply(&inbox[used..])?,
                _ => self.take_frame(id, &inbox[used..])?,
            };
            if count == 0 {
                break;
            }
            used += count;
            if self.dead.contains(&id) {
                return Ok(());
            }
        }
        inbox.drain(..used);
        if let Some(head) =
            wire::parse_frame_head(&inbox).filter(|_| matches!(self.conn(id).job, Job::Answer))
        {
            // Makes room for the rest of a large message in one go.
            let size =
                usize::try_from(head.payload).unwrap_or(usize::MAX).min(POOL_BYTES) + head.size;
            inbox.reserve(size.saturating_sub(inbox.len()));
        }
        let conn = self.conn(id);
        if !(inbox.is_empty() && matches!(conn.job, Job::Rest | Job::Task(_) | Job::Receive { .. }))
        {
            conn.inbox = inbox;
        }
        Ok(())
    }

    /// The target's answer to the client's upgrade.
    fn take_answer(&mut self, id: u32, bytes: &[u8]) -> Result<usize, Fault> {
        let Some(answer) = wire::parse_answer(bytes)? else { return Ok(0) };
        let conn = self.conn(id);
        if answer.status != 101 || answer.accept != wire::accept_for(&conn.key) {
            let said = String::from_utf8_lossy(bytes);
            return Err(format!("the upgrade was answered with {}: {said}", answer.status));
        }
        conn.key = String::new();
        let (plan, rest) = (conn.plan.take(), &bytes[answer.size..]);
        conn.job = match plan.ok_or("a client without a plan")? {
            Plan::Rest => Job::Rest,
            Plan::Echo { size } => Job::Echo { size, sequence: fastrand::u64(..1 << 40) },
            Plan::Stream { pattern, way: Way::Up } => Job::Send { pattern, at: 0, active: false },
            Plan::Stream { pattern, way: Way::Down } => Job::Receive { pattern, at: 0 },
            Plan::Task(delivery) => Job::Task(delivery),
        };
        self.tally.opened += 1;
        self.tally.resumed += u64::from(self.conn(id).socket.is_resumed());
        match &self.conn(id).job {
            Job::Echo { .. } => self.paused.push_back(id),
            Job::Send { .. } | Job::Receive { .. } => self.make_bulk(id)?,
            _ => {}
        }
        if !rest.is_empty() && matches!(self.conn(id).job, Job::Receive { .. } | Job::Task(_)) {
            return Err("bytes came behind the 101 before any were sent".into());
        }
        Ok(answer.size)
    }

    /// The request that the target passed on.
    fn take_request(&mut self, id: u32, bytes: &[u8]) -> Result<usize, Fault> {
        let Some(request) = wire::parse_request(bytes)? else { return Ok(0) };
        let (client, generation) = parse_query(&request.target).ok_or_else(|| {
            format!("the backend was asked for {:?}: the query is lost", request.target)
        })?;
        if generation != self.generation {
            self.dead.push(id);
            return Ok(request.size);
        }
        let plan = match self.slots.get(client as usize) {
            Some(Some(conn)) if conn.key == request.key => conn.plan.clone(),
            _ => {
                return Err(format!(
                    "the backend was asked for {:?} with an unknown key",
                    request.target
                ));
            }
        };
        self.conn(id).job = match plan {
            Some(Plan::Echo { .. }) => Job::Answer,
            Some(Plan::Stream { pattern, way: Way::Down }) => {
                Job::Send { pattern, at: 0, active: false }
            }
            Some(Plan::Stream { pattern, way: Way::Up }) => Job::Receive { pattern, at: 0 },
            _ => Job::Rest,
        };
        if matches!(self.conn(id).job, Job::Send { .. } | Job::Receive { .. }) {
            self.make_bulk(id)?;
        }
        self.send(id, &wire::upgrade_answer(&request.key))?;
        Ok(request.size)
    }

    fn take_frame(&mut self, id: u32, bytes: &[u8]) -> Result<usize, Fault> {
        let Some(head) = wire::parse_frame_head(bytes) else { return Ok(0) };
        let end = head.size
            + usize::try_from(head.payload).map_err(|_| "a frame larger than any that was sent")?;
        let Some(payload) = bytes.get(head.size..end) else { return Ok(0) };
        match (head.first, &mut self.conn(id).job) {
            (wire::BINARY, Job::Echo { size, sequence }) => {
                let (size, sequence) = (*size, *sequence);
                self.check_echo(id, head, payload, size, sequence)?;
            }
            (wire::BINARY, Job::Answer) => {
                let key = head.mask.ok_or("an unmasked frame came from the client's side")?;
                let mut frame = std::mem::take(&mut self.frame);
                frame.clear();
                wire::push_frame(&mut frame, wire::BINARY, payload, None);
                let start = frame.len() - payload.len();
                wire::apply_mask(&mut frame[start..], key);
                let sent = self.send(id, &frame);
                self.frame = frame;
                sent?;
            }
            (wire::CLOSE, Job::Answer) => {
                let mut code = payload.to_vec();
                wire::apply_mask(
                    &mut code,
                    head.mask.ok_or("an unmasked Close came from the client's side")?,
                );
                if code != 1000u16.to_be_bytes() {
                    return Err(format!("the backend was sent Close {code:?}"));
                }
                let mut frame = Vec::new();
                wire::push_frame(&mut frame, wire::CLOSE, &code, None);
                self.send(id, &frame)?;
                self.dead.push(id);
            }
            (wire::CLOSE, Job::Leave { answered }) if payload == 1000u16.to_be_bytes() => {
                *answered = true
            }
            // No answer fits inside a frame, and runs are shorter than any ping timeout.
            (wire::PING, Job::Send { .. }) => {}
            (wire::PING, _) => {
                let mut pong = payload.to_vec();
                wire::apply_mask(&mut pong, head.mask.unwrap_or_default());
                let mut frame = Vec::new();
                let key = head.mask.is_none().then(|| fastrand::u32(..).to_ne_bytes());
                wire::push_frame(&mut frame, wire::PONG, &pong, key);
                self.send(id, &frame)?;
            }
            (first, _) => {
                return Err(format!("unexpected frame {first:#x} of {} bytes", head.payload));
            }
        }
        Ok(end)
    }

    fn check_echo(
        &mut self,
        id: u32,
        head: wire::FrameHead,
        payload: &[u8],
        size: usize,
        sequence: u64,
    ) -> Result<(), Fault> {
        let place = place_of(sequence);
        let stamped = size.min(8);
        if head.mask.is_some()
            || payload.len() != size
            || payload[..stamped] != sequence.to_le_bytes()[..stamped]
            || payload[stamped..] != self.pool[place + stamped..place + size]
        {
            return Err(format!("message {sequence} of {size} bytes was changed"));
        }
        let sent_at = self.conn(id).sent_at.take().ok_or("an echo came twice")?;
        self.tally.latencies.push(sent_at.elapsed().as_nanos());
        self.tally.echoed += 1;
        match self.after_echo {
            After::Again if self.messages_left > 0 => {
                self.messages_left -= 1;
                self.send_message(id)
            }
            After::Again | After::Pause => {
                self.paused.push_back(id);
                Ok(())
            }
            After::Leave => self.leave(id),
        }
    }

    fn leave(&mut self, id: u32) -> Result<(), Fault> {
        let mut frame = Vec::new();
        wire::push_frame(
            &mut frame,
            wire::CLOSE,
            &1000u16.to_be_bytes(),
            Some(fastrand::u32(..).to_ne_bytes()),
        );
        self.conn(id).job = Job::Leave { answered: false };
        self.send(id, &frame)
    }

    /// The end of a connection: expected by some jobs, an error for the others.
    fn ended(&mut self, id: u32, how: &str) -> Result<(), Fault> {
        match &self.conn(id).job {
            Job::Leave { answered: true } => {
                self.tally.left += 1;
                self.dead.push(id);
                Ok(())
            }
            // Not an error: a client of an earlier world, or an end that the client's side reports.
            Job::Greet => {
                self.dead.push(id);
                Ok(())
            }
            job => Err(format!("the target {how} of {}", job.word())),
        }
    }

    fn make_bulk(&mut self, id: u32) -> Result<(), Fault> {
        let conn = self.slots[id as usize].as_mut().ok_or("no such stream")?;
        let flags = interest(conn.wants_write);
        rustix::event::epoll::delete(&self.poll, &conn.socket)
            .map_err(|error| error.to_string())?;
        self.bulk.add(&conn.socket, u64::from(id), flags).map_err(|error| error.to_string())?;
        conn.in_bulk = true;
        Ok(())
    }

    /// Writes the next piece of a stream.
    fn stream_on(&mut self, id: u32) -> Result<(), Fault> {
        let (streaming, bulk_bytes) = (self.streaming, self.bulk_bytes);
        let conn = self.conn(id);
        let Job::Send { pattern, at, active } = &mut conn.job else { return Ok(()) };
        if !*active || !conn.out.is_empty() || conn.socket.is_output_held() {
            return Ok(());
        }
        if !streaming && *at % pattern.frame_bytes == 0 {
            *active = false;
            self.senders -= 1;
            return self.want_write(id, false);
        }
        let frame_end = (*at / pattern.frame_bytes + 1) * pattern.frame_bytes;
        let end = frame_end.min(*at + bulk_bytes);
        match conn.socket.send(&pattern.wire[*at..end]) {
            Ok(Io::Moved(count)) => {
                *at = (*at + count) % pattern.wire.len();
                self.tally.sent_bytes += count as u64;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the target broke a stream ({error})")),
        }
    }

    /// Whether there may be more to receive.
    fn receive(&mut self, id: u32) -> Result<bool, Fault> {
        let conn = self.slots[id as usize].as_mut().ok_or("no such stream")?;
        let Job::Receive { pattern, at } = &mut conn.job else { return Ok(false) };
        let count = match conn.socket.recv(&mut self.scratch[..self.bulk_bytes]) {
            Ok(Io::Moved(count)) => count,
            Ok(Io::Blocked) => return Ok(false),
            Ok(Io::Ended) => return Err("the target ended a stream".into()),
            Err(error) => return Err(format!("the target broke a stream ({error})")),
        };
        let mut got = &self.scratch[..count];
        while !got.is_empty() {
            let piece = got.len().min(pattern.wire.len() - *at);
            if got[..piece] != pattern.wire[*at..*at + piece] {
                let far = self.tally.received_bytes;
                return Err(format!("a stream was changed, somewhere after {far} received bytes"));
            }
            *at = (*at + piece) % pattern.wire.len();
            got = &got[piece..];
        }
        self.tally.received_bytes += count as u64;
        Ok(true)
    }

    /// A waiting client's input.
    fn observe(&mut self, id: u32) -> Result<(), Fault> {
        let conn = self.slots[id as usize].as_mut().ok_or("no such client")?;
        let Job::Task(delivery) = &mut conn.job else { return Ok(()) };
        let count = match conn.socket.recv(&mut self.scratch) {
            Ok(Io::Moved(count)) => count,
            Ok(Io::Blocked) => return Ok(()),
            Ok(Io::Ended) | Err(_) if delivery.is_over() => {
                self.tally.left += 1;
                self.dead.push(id);
                return Ok(());
            }
            Ok(Io::Ended) => {
                return Err(format!(
                    "the target ended a waiting client's connection: {delivery:?}"
                ));
            }
            Err(error) => {
                return Err(format!("the target broke a waiting client's connection ({error})"));
            }
        };
        let heard_at = Instant::now();
        let progress = delivery.observe(&self.scratch[..count], &self.audio)?;
        if progress.texts > 0
            && let Some(sent_at) = conn.sent_at.take()
        {
            self.tally.latencies.push((heard_at - sent_at).as_nanos());
        }
        self.tally.texts += u64::from(progress.texts);
        self.tally.results += u64::from(progress.results);
        self.tally.audio_bytes += progress.audio_bytes;
        let mut frame = Vec::new();
        for _ in 0..progress.pings {
            wire::push_frame(&mut frame, wire::PONG, b"", Some(fastrand::u32(..).to_ne_bytes()));
        }
        if progress.closed {
            wire::push_frame(
                &mut frame,
                wire::CLOSE,
                &1000u16.to_be_bytes(),
                Some(fastrand::u32(..).to_ne_bytes()),
            );
        }
        if !frame.is_empty() {
            // It may disconnect right after its Close; then our answer is lost, which is fine.
            let sent = self.send(id, &frame);
            if !progress.closed {
                sent?;
            }
        }
        for _ in 0..progress.results {
            self.refill(id)?;
        }
        Ok(())
    }

    fn refill(&mut self, id: u32) -> Result<(), Fault> {
        match self.after_result.clone() {
            Refill::Nothing => Ok(()),
            Refill::Message => self.nudge(id),
            Refill::Publish { through, prefix, json } => {
                let Job::Task(delivery) = &self.conn(id).job else { return Ok(()) };
                let channel = format!("{prefix}{}", delivery.task);
                self.publish(through, &channel, &json, None)
            }
        }
    }

    fn take_reply(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match resp::parse(bytes)? {
            None => Ok(0),
            Some((Value::Integer(receivers), length)) => {
                self.tally.published += 1;
                self.tally.receivers += receivers.max(0) as u64;
                Ok(length)
            }
            Some((other, _)) => Err(format!("PUBLISH was answered with {other:?}")),
        }
    }

    /// A file over plain HTTP.
    fn read_file(&mut self, id: u32) -> Result<(), Fault> {
        let conn = self.slots[id as usize].as_mut().ok_or("no such client")?;
        let Job::Fetch { left, got, wanted } = &mut conn.job else { return Ok(()) };
        let count = match conn.socket.recv(&mut self.scratch) {
            Ok(Io::Moved(count)) => count,
            Ok(Io::Blocked) => return Ok(()),
            Ok(Io::Ended) => return Err("the target ended a download".into()),
            Err(error) => return Err(format!("the target broke a download ({error})")),
        };
        let mut body = &self.scratch[..count];
        if left.is_none() {
            conn.inbox.extend_from_slice(body);
            let Some(answer) = wire::parse_answer(&conn.inbox)? else { return Ok(()) };
            if answer.status != 200 || answer.content_length != Some(self.audio.len() as u64) {
                return Err(format!(
                    "the file was answered with {}",
                    String::from_utf8_lossy(&conn.inbox[..answer.size])
                ));
            }
            body = &body[body.len() - (conn.inbox.len() - answer.size)..];
            conn.inbox.clear();
            (*left, *got) = (answer.content_length, 0);
        }
        if self.audio.get(*got..*got + body.len()) != Some(body) {
            return Err(format!("the file's bytes from {got} on were changed"));
        }
        *got += body.len();
        self.tally.audio_bytes += body.len() as u64;
        if *got < self.audio.len() {
            return Ok(());
        }
        (*left, *wanted) = (None, *wanted - 1);
        self.tally.fetched += 1;
        if *wanted == 0 {
            return Ok(());
        }
        let (path, times) = (conn.key.clone(), *wanted);
        self.fetch(id, &path, times)
    }

    /// Sends, and buffers what the socket does not take.
    fn send(&mut self, id: u32, bytes: &[u8]) -> Result<(), Fault> {
        let conn = self.conn(id);
        let sent = match conn.out.is_empty() {
            true => match conn.socket.send(bytes) {
                Ok(Io::Moved(count)) => count,
                Ok(_) => 0,
                Err(error) => {
                    return Err(format!(
                        "the target broke the connection of {} ({error})",
                        conn.job.word()
                    ));
                }
            },
            false => 0,
        };
        conn.out.extend_from_slice(&bytes[sent..]);
        let is_held = sent < bytes.len() || conn.socket.is_output_held();
        if is_held { self.want_write(id, true) } else { Ok(()) }
    }

    fn flush(&mut self, id: u32) -> Result<(), Fault> {
        let conn = self.conn(id);
        let sent = match conn.out.is_empty() {
            true => conn.socket.flush().map(|()| Io::Blocked),
            false => conn.socket.send(&conn.out[conn.out_at..]),
        };
        match sent {
            Ok(Io::Moved(count)) => conn.out_at += count,
            Ok(_) => {}
            Err(error) => {
                return Err(format!(
                    "the target broke the connection of {} ({error})",
                    conn.job.word()
                ));
            }
        }
        if conn.out_at == conn.out.len() {
            conn.out.clear();
            conn.out_at = 0;
        }
        let is_held = !conn.out.is_empty() || conn.socket.is_output_held();
        let more = is_held || matches!(conn.job, Job::Send { active: true, .. });
        self.want_write(id, more)
    }

    fn want_write(&mut self, id: u32, wanted: bool) -> Result<(), Fault> {
        let conn = self.slots[id as usize].as_mut().ok_or("no such connection")?;
        if conn.wants_write != wanted {
            conn.wants_write = wanted;
            let poll = if conn.in_bulk { &self.bulk } else { &self.poll };
            let changed = poll.modify(&conn.socket, u64::from(id), interest(wanted));
            changed.map_err(|error| format!("cannot poll: {error}"))?;
        }
        Ok(())
    }
}

impl Drop for World {
    /// Resets what is still open: thousands of connections would otherwise leave their ports in
    /// TIME_WAIT.
    fn drop(&mut self) {
        for conn in self.slots.iter().flatten() {
            let _ = sockopt::set_socket_linger(conn.socket.as_fd(), Some(Duration::ZERO));
        }
    }
}

impl Job {
    fn word(&self) -> &'static str {
        match self {
            Job::Ask => "a client that asked for its upgrade",
            Job::Greet => "a backend connection",
            Job::Rest => "an idle pair",
            Job::Echo { .. } => "an echo client",
            Job::Answer => "an echoing backend",
            Job::Leave { .. } => "a client that is leaving",
            Job::Send { .. } | Job::Receive { .. } => "a stream",
            Job::Task(_) => "a waiting client",
            Job::Publish => "a publisher",
            Job::Fetch { .. } => "a download",
        }
    }
}

fn interest(write: bool) -> EventFlags {
    if write { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
}

/// Where in the pool the payload of a message begins.
fn place_of(sequence: u64) -> usize {
    (sequence % POOL_PLACES) as usize * 127
}

/// Puts the sequence number into the payload, as far as it fits.
fn stamp(payload: &mut [u8], sequence: u64) {
    let count = payload.len().min(8);
    payload[..count].copy_from_slice(&sequence.to_le_bytes()[..count]);
}

/// Connection and generation from `…?n=12&w=3`.
fn parse_query(target: &str) -> Option<(u32, u32)> {
    let (_, query) = target.split_once("?n=")?;
    let (client, generation) = query.split_once("&w=")?;
    Some((client.parse().ok()?, generation.parse().ok()?))
}

/// A delivery as the protocol promises it, for `World::open`.
pub fn waiting(task: String, shape: Shape, last: bool, audio: Option<u64>) -> Plan {
    Plan::Task(Box::new(Delivery::new(task, shape, last, audio)))
}
