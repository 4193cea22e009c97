//! The life of the Redis connections: dial, log in, subscribe, stay alive, come back.
//!
//! There are two for the whole process, whatever the number of clients. The **ear** listens to publications; the **hand** keeps
//! results in Redis and looks them up. Each lives by itself, because losing the hand must not make the ear deaf:
//!
//! ```text
//!                       retry_at                    connected
//!            ┌────────┐ ───────► ┌─────────────────┐ ───────► ┌────────────────────┐  all answered, and    ┌──────────────┐
//!   start ─► │  Down  │          │     Dialing     │          │      Greeting      │ ────────────────────► │      Up      │
//!            │retry_at│ ◄─────── │   give_up_at    │          │     give_up_at     │ the pattern confirmed │   ping_at    │
//!            └────────┘  failed, └─────────────────┘          │ HELLO/AUTH, SELECT │                       │ silent for   │
//!                 ▲      too long                             │ CLIENT SETNAME …   │                       │ 5 s: lost    │
//!                 │                                           └────────────────────┘                       └──────────────┘
//!                 └──── closed, refused, too long, not the Redis protocol, no answer ──────────┴───────────────────┘
//! ```
//!
//! Bytes go in ([`Link::handle_bytes`]), bytes come out ([`Link::poll_output`]), the reactor does what [`Link::poll_action`] says,
//! and what was learned comes out of [`Link::poll_event`]. Time is an argument. The link is *up* while both lines are.
//!
//! The pause before a dial is 100 ms at first and doubles to 5 s, shortened by chance; a line that was up for a while is dialled
//! again at once, since every moment without an ear may lose a result. Of several URLs the next one is tried after each failure, but
//! both lines go to the same server.
//!
//! # Kept in Redis
//! So that a restarted gateway, or another one, can deliver results in order, each once, every gateway that hears a result keeps it
//! in the hash `task_response_kept:{task_id}` (derived from the channel's prefix). `index` there lists the results in order, each with
//! the hash of its content and the time it was stored; the other fields hold the payloads. One short script (`keep.lua`), which Redis
//! runs atomically, adds a result unless it is there. The surprising part is what "there" means when publications have no number:
//!
//! - *Every gateway hears the same one.* A gateway says: this is the n-th result of this content that I heard since S. S is a moment
//!   of Redis' clock just before it subscribed. If n results of that content were stored since S, it is there. So two equal
//!   publications stay two, and ten gateways that hear both keep two.
//! - *A gateway was away.* It counts from its new S. What was stored before that cannot be what it hears now; what it missed does not
//!   shift its count against the others', who have stored what they heard in between before S.
//! - *Order.* The first one to store decides. Only a gateway that subscribed a moment ago can be first with the second result of a
//!   pair it heard half of; the other gateway then appends the first behind the second, and says the second. Each therefore names the
//!   result it heard before on that task, and a result that stands before its predecessor is moved to right behind it. What a
//!   gateway that heard everything has said is then in order, and no other one's saying disturbs that, for it can only move results
//!   that this gateway has not said yet.
//! - *Sent twice.* A store that was not answered before the connection broke is sent again on the next, and is there by then or not.
//!
//! A look-up is answered when the ear has caught up with it, too: another gateway may have stored what is on its way to us, and in
//! an order that is about to be put right.
//!
//! What a worker has set itself (`SET task_response:{task_id}`) is looked up together with what is kept, and kept as well if it is
//! not there. Nobody can say when it will be published, so it has no time until then: whoever hears it, however long it has
//! listened, finds it there and gives it one. Whoever looks it up before that knows that its publication is still to come.
//!
//! Kept results expire `retain` after the last one of their task. A task keeps at most [`KEPT_MAX`] results of together
//! `max_retained` bytes, and tasks that had to go from memory for lack of room go from Redis too. Results are stored up to
//! [`BATCH_MAX`] at a time, so that a flood that nobody waits for costs a fraction of a command each.
//!
//! Not solved: of *equal* results in one task, if one was heard by one gateway only and another by another only, one is lost; and if a
//! gateway subscribed between them while another had not stored the first yet, their order among the others may be wrong. Different
//! ones are never lost nor out of order for it. Nobody hears what is published while no gateway is subscribed; for that there is
//! the worker's `SET`.

use crate::base::moment::Moment;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion, Value};
use uuid::Uuid;

use crate::base::backoff::Backoff;
use crate::proto::resp::{self, BadReply, Decoder, Sorted};
use crate::service::tasks::{self, Ear, Heard, Kept};

/// A dial, and the greeting after it, may take so long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A line is pinged so often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A line that owes an answer and has sent nothing for so long is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between dials.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A line that was up for so long is dialled again without a pause.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Results of one task that Redis keeps.
pub const KEPT_MAX: usize = 1024;
/// Results in one command.
pub const BATCH_MAX: usize = 64;
/// Bytes of payload in one command, but for the last result.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Bytes on their way to Redis before more commands are packed.
const OUTPUT_MAX: usize = 512 * 1024;
/// Commands that wait for Redis.
const JOBS_MAX: usize = 65_536;
/// Largest publication, bytes; a larger one ends the connection. Kept results, which come in one answer, may be twice what is kept.
const VALUE_MAX: usize = 64 * 1024 * 1024;
/// What Redis shows in `CLIENT LIST`.
const NAME: &str = "aivtuber-gateway";

const SCRIPT: &str = include_str!("keep.lua");

/// Where Redis is and how it is listened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `redis://user:password@host:port/db` or `unix:///path?db=0`, tried in turn.
    pub urls: Vec<String>,
    /// Channels are this and a task id.
    pub channel_prefix: String,
    pub subscribe: Subscribe,
    /// Waiting clients are told when Redis is away for longer. `None`: never.
    pub grace: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            urls: vec!["redis://localhost:6379".to_owned()],
            channel_prefix: "task_response:".to_owned(),
            subscribe: Subscribe::Pattern,
            grace: Some(Duration::from_secs(10)),
        }
    }
}

impl Settings {
    /// The gateway is the inbox itself: there is no Redis to link to.
    pub fn is_embedded(&self) -> bool {
        self.urls.iter().any(|url| url.starts_with("embedded://"))
    }
}

/// How results are listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribe {
    /// One `PSUBSCRIBE` for all tasks: results are heard even before somebody waits for them.
    Pattern,
    /// One `SUBSCRIBE` for each task that is waited for.
    Task,
}

/// One of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Line {
    /// Listens to publications.
    Ear,
    /// Keeps results and looks them up.
    Hand,
}

/// Both, for loops.
pub const LINES: [Line; 2] = [Line::Ear, Line::Hand];

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// What the reactor is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect, then say [`Link::handle_connected`] or [`Link::handle_closed`].
    Dial { line: Line, address: Address },
    /// Close the socket, if there is one. Nothing is to be said.
    Close { line: Line },
}

/// What was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both lines stand: look up everything that is waited for.
    Up { address: String },
    /// The link was up and is not any more.
    Down { why: String },
    /// Something went wrong that a person should know of. The same is said once until the link is up again.
    Trouble { why: String },
    /// Redis has been away for longer than the grace: tell those who wait.
    GraceOver,
    /// A worker published.
    Heard { task: Uuid, ear: Ear, payload: Vec<u8> },
    /// The subscription for one task counts from here on: look the task up. Not sent for patterns.
    Listening { task: Uuid },
    /// The answer to [`Link::look_up`]. Everything that was published before it was given has been heard.
    LookedUp { task: Uuid, kept: Vec<Kept>, set: Vec<Vec<u8>> },
}

/// A server out of the settings.
#[derive(Clone, Debug)]
pub struct Target {
    address: Address,
    user: Option<String>,
    password: Option<String>,
    database: i64,
    speaks_resp3: bool,
}

impl Target {
    /// Reads a URL. The error says what is wrong, without any part of the URL (it may hold a password).
    pub fn read(url: &str) -> Result<Target, String> {
        const ALLOWED: &str = "allowed are redis://[user:password@]host[:port][/db] and unix:///path[?db=…&user=…&pass=…]";
        if ["rediss:", "valkeys:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(format!("TLS to Redis is not supported; {ALLOWED}"));
        }
        let connection =
            url.into_connection_info().map_err(|_| format!("not a Redis URL; {ALLOWED}"))?;
        let address = match connection.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp { host: host.clone(), port: *port },
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(format!("not a Redis URL; {ALLOWED}")),
        };
        let settings = connection.redis_settings();
        Ok(Target {
            address,
            user: settings.username().map(String::from),
            password: settings.password().map(String::from),
            database: settings.db(),
            speaks_resp3: settings.protocol() == ProtocolVersion::RESP3,
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

/// The link to Redis.
pub struct Link {
    targets: Vec<Target>,
    /// The target that is dialled next, unless the other line stands somewhere.
    current: usize,
    prefix: String,
    kept_prefix: String,
    subscribe: Subscribe,
    grace: Option<Duration>,
    retention: tasks::Settings,
    ear: Connection,
    hand: Connection,
    /// Redis' clock (microseconds) at a moment of ours; late by the way the answer took, which is the safe side.
    clock: Option<(u64, Moment)>,
    last_ear: u32,
    pattern_ear: Option<Ear>,
    /// Which channels are to be subscribed to one by one, under the spelling of the task's id.
    wanted: HashMap<String, Wanted>,
    /// Numbers of (un)subscriptions that are not confirmed, in the order of asking.
    unconfirmed: VecDeque<u64>,
    last_request: u64,
    script: Script,
    jobs: VecDeque<Job>,
    job_bytes: usize,
    dropped: u64,
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
    away_since: Option<Moment>,
    is_lost: bool,
    told: Vec<String>,
    chance: fastrand::Rng,
}

#[derive(Debug)]
struct Wanted {
    task: Uuid,
    /// The number of the latest request for it.
    request: u64,
    /// Redis' clock before that request.
    since: u64,
    ear: Option<Ear>,
}

struct Connection {
    state: State,
    target: usize,
    backoff: Backoff,
    output: Vec<u8>,
    written: usize,
    expected: VecDeque<Expected>,
    /// When the last byte came, or the oldest open question was asked, whichever is later.
    alive_at: Moment,
}

enum State {
    Down { retry_at: Moment },
    Dialing { give_up_at: Moment },
    Greeting { give_up_at: Moment, decoder: Box<Decoder> },
    Up { since: Moment, ping_at: Moment, decoder: Box<Decoder> },
}

/// What the next reply will be about.
enum Expected {
    /// An answer that has to be a good one.
    Login,
    /// An answer that does not matter.
    Any,
    Clock,
    /// The end of the greeting.
    Ready,
    Script,
    Stored(Vec<Store>),
    Kept,
    /// With what the reply before it said is kept.
    Set(Uuid, Vec<Kept>),
    /// On the ear: it has heard everything that was published before these were looked up.
    Caught(Uuid, Vec<Kept>, Vec<Vec<u8>>),
    Forgotten,
}

enum Job {
    Store(Store),
    LookUp { task: Uuid, spellings: Vec<Box<str>> },
    Forget(Uuid),
}

struct Store {
    task: Uuid,
    since: u64,
    heard: Heard,
    payload: Rc<[u8]>,
}

#[derive(PartialEq)]
enum Script {
    /// Not asked for on this connection.
    Unknown,
    Loading,
    Loaded(Vec<u8>),
    /// Redis will not have it; nothing is kept there until the next connection.
    Refused,
}

impl Link {
    /// A link that begins to dial at once. `seed` feeds the jitter. The error names the URL by its place in the list.
    pub fn new(
        settings: &Settings,
        retention: tasks::Settings,
        now: Moment,
        seed: u64,
    ) -> Result<Link, String> {
        let mut targets = Vec::new();
        for (i, url) in settings.urls.iter().enumerate() {
            targets.push(
                Target::read(url)
                    .map_err(|why| format!("URL {} of {}: {why}", i + 1, settings.urls.len()))?,
            );
        }
        if targets.is_empty() {
            return Err("no URL".into());
        }
        let kept_prefix = match settings.channel_prefix.strip_suffix(':') {
            Some(name) => format!("{name}_kept:"),
            None => format!("{}_kept:", settings.channel_prefix),
        };
        let mut link = Link {
            targets,
            current: 0,
            prefix: settings.channel_prefix.clone(),
            kept_prefix,
            subscribe: settings.subscribe,
            grace: settings.grace,
            retention,
            ear: Connection::new(now),
            hand: Connection::new(now),
            clock: None,
            last_ear: 0,
            pattern_ear: None,
            wanted: HashMap::new(),
            unconfirmed: VecDeque::new(),
            last_request: 0,
            script: Script::Unknown,
            jobs: VecDeque::new(),
            job_bytes: 0,
            dropped: 0,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            away_since: Some(now),
            is_lost: false,
            told: Vec::new(),
            chance: fastrand::Rng::with_seed(seed),
        };
        link.handle_time(now);
        Ok(link)
    }

    /// Both lines stand and, with a pattern, the subscription is confirmed.
    pub fn is_up(&self) -> bool {
        LINES.iter().all(|line| self.connection(*line).is_up())
    }

    /// Redis has been away for longer than the grace.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Since when the link is not up; `None` while it is.
    pub fn away_since(&self) -> Option<Moment> {
        self.away_since
    }

    /// Where both lines stand, or are about to be dialled.
    pub fn address(&self) -> &Address {
        &self.targets[self.current].address
    }

    /// The ear that hears results of `task`, if one does at this moment.
    pub fn ear(&self, task: Uuid) -> Option<Ear> {
        match self.subscribe {
            Subscribe::Pattern => self.pattern_ear,
            Subscribe::Task => {
                self.wanted
                    .get(task.hyphenated().encode_lower(&mut Uuid::encode_buffer()) as &str)?
                    .ear
            }
        }
    }

    /// Makes sure that [`Link::is_idle`] comes after everything that was published before now has been heard.
    pub fn catch_up(&mut self, now: Moment) {
        if self.ear.is_up() {
            self.ear.ask(now, Expected::Any, &[b"PING"]);
        }
    }

    /// Everything that was to be kept or asked is answered. A gateway that stops waits for this, shortly.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && LINES.iter().all(|line| self.connection(*line).expected.is_empty())
    }

    /// Results that were not kept in Redis for want of room here, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The dial has succeeded.
    pub fn handle_connected(&mut self, line: Line, now: Moment) {
        if matches!(self.connection(line).state, State::Dialing { .. }) {
            self.greet(line, now);
        }
    }

    /// The dial failed or the connection is gone; `why` is for the log.
    pub fn handle_closed(&mut self, line: Line, why: &str, now: Moment) {
        if !matches!(self.connection(line).state, State::Down { .. }) {
            self.fail(line, why, now);
        }
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, line: Line, bytes: &[u8], now: Moment) {
        let mut input = bytes;
        self.connection_mut(line).alive_at = now;
        loop {
            let decoder = match &mut self.connection_mut(line).state {
                State::Greeting { decoder, .. } | State::Up { decoder, .. } => decoder,
                State::Down { .. } | State::Dialing { .. } => return,
            };
            match decoder.decode(&mut input) {
                Ok(Some(value)) => self.handle_value(line, value, now),
                Ok(None) => return,
                Err(BadReply(why)) => return self.fail(line, &format!("it sent {why}"), now),
            }
        }
    }

    /// Time passed; see [`Link::deadline`].
    pub fn handle_time(&mut self, now: Moment) {
        for line in LINES {
            let connection = self.connection_mut(line);
            let is_owing = !connection.expected.is_empty();
            match &mut connection.state {
                State::Down { retry_at } if *retry_at <= now => self.dial(line, now),
                State::Dialing { give_up_at } if *give_up_at <= now => {
                    self.fail(line, "no connection within 5 s", now)
                }
                State::Greeting { give_up_at, .. } if *give_up_at <= now => {
                    self.fail(line, "no answer within 5 s", now)
                }
                State::Up { .. } if is_owing && connection.alive_at + ANSWER_TIMEOUT <= now => {
                    self.fail(line, "silent for 5 s", now);
                }
                State::Up { ping_at, .. } if *ping_at <= now => {
                    *ping_at = now + PING_INTERVAL;
                    connection.ask(now, Expected::Any, &[b"PING"]);
                }
                _ => {}
            }
        }
        if let (Some(since), Some(grace)) = (self.away_since, self.grace)
            && !self.is_lost
            && since + grace <= now
        {
            self.is_lost = true;
            self.events.push_back(Event::GraceOver);
        }
    }

    /// When [`Link::handle_time`] has to be called at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        let grace =
            self.away_since.filter(|_| !self.is_lost).and_then(|since| Some(since + self.grace?));
        LINES.iter().map(|line| self.connection(*line).deadline()).chain(grace).min()
    }

    /// Listens to a task under one spelling of its id. Nothing to do with a pattern.
    pub fn listen(&mut self, task: Uuid, spelling: &str, now: Moment) {
        if self.subscribe == Subscribe::Task {
            self.wanted.insert(spelling.into(), Wanted { task, request: 0, since: 0, ear: None });
            self.request(now, &[spelling.into()]);
        }
    }

    /// Ends what [`Link::listen`] began.
    pub fn unlisten(&mut self, spelling: &str) {
        if self.wanted.remove(spelling).is_some() && self.ear.is_up() {
            self.last_request += 1;
            self.unconfirmed.push_back(self.last_request);
            let channel = format!("{}{spelling}", self.prefix);
            self.ear.say(&[b"UNSUBSCRIBE", channel.as_bytes()]);
        }
    }

    /// Asks what is kept of a task and what the worker has set; the answer is [`Event::LookedUp`]. None comes when the link is not
    /// up or goes down: [`Event::Up`] is the sign to ask again.
    pub fn look_up(&mut self, task: Uuid, spellings: &[Box<str>]) {
        if self.hand.is_up() {
            self.jobs.push_back(Job::LookUp { task, spellings: spellings.to_vec() });
        }
    }

    /// Keeps a result in Redis, as soon as that is possible. When too much waits for it, the oldest is dropped and counted.
    pub fn keep(&mut self, task: Uuid, ear: Ear, heard: Heard, payload: Rc<[u8]>) {
        if self.retention.retain.is_none() {
            return;
        }
        if self.script == Script::Refused || payload.len() > self.retention.max_retained {
            self.dropped += 1;
            return;
        }
        self.job_bytes += payload.len();
        self.jobs.push_back(Job::Store(Store { task, since: ear.since, heard, payload }));
        self.bound_jobs();
    }

    /// Lets Redis forget what it keeps of a task.
    pub fn forget(&mut self, task: Uuid) {
        if self.retention.retain.is_some() && self.hand.is_up() {
            self.jobs.push_back(Job::Forget(task));
        }
    }

    /// The next thing for the reactor to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next thing that was learned.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes for the line's socket, empty if there are none. Say how many went with [`Link::handle_written`] and ask again.
    pub fn poll_output(&mut self, line: Line, now: Moment) -> &[u8] {
        if line == Line::Hand && self.hand.is_up() {
            self.pack_jobs(now);
        }
        let connection = self.connection(line);
        &connection.output[connection.written..]
    }

    /// So many bytes of [`Link::poll_output`] were written.
    pub fn handle_written(&mut self, line: Line, n: usize) {
        let connection = self.connection_mut(line);
        connection.written += n;
        if connection.written == connection.output.len() {
            connection.output = Vec::new();
            connection.written = 0;
        } else if connection.written >= OUTPUT_MAX {
            // While Redis is the slower one there is always more: what is out must not pile up in front of it.
            connection.output.drain(..std::mem::take(&mut connection.written));
        }
    }

    fn connection(&self, line: Line) -> &Connection {
        match line {
            Line::Ear => &self.ear,
            Line::Hand => &self.hand,
        }
    }

    fn connection_mut(&mut self, line: Line) -> &mut Connection {
        match line {
            Line::Ear => &mut self.ear,
            Line::Hand => &mut self.hand,
        }
    }

    /// Where the other line stands, if it does.
    fn other(&self, line: Line) -> Option<usize> {
        let other = self.connection(if line == Line::Ear { Line::Hand } else { Line::Ear });
        other.is_up().then_some(other.target)
    }

    fn dial(&mut self, line: Line, now: Moment) {
        let target = self.other(line).unwrap_or(self.current);
        let connection = self.connection_mut(line);
        connection.target = target;
        connection.state = State::Dialing { give_up_at: now + DIAL_TIMEOUT };
        self.actions
            .push_back(Action::Dial { line, address: self.targets[target].address.clone() });
    }

    fn greet(&mut self, line: Line, now: Moment) {
        let target = self.targets[self.connection(line).target].clone();
        let pattern = resp::pattern_for_prefix(&self.prefix);
        let subscribe = self.subscribe;
        let value_max = VALUE_MAX.max(self.retention.max_retained.saturating_mul(2));
        let connection = self.connection_mut(line);
        let state = State::Greeting {
            give_up_at: now + DIAL_TIMEOUT,
            decoder: Box::new(Decoder::new(value_max)),
        };
        connection.state = state;
        connection.alive_at = now;
        let user = target.user.as_deref().unwrap_or("default");
        let password = target.password.as_deref();
        if target.speaks_resp3 {
            let mut hello = vec![&b"HELLO"[..], b"3"];
            if let Some(password) = password {
                hello.extend([&b"AUTH"[..], user.as_bytes(), password.as_bytes()]);
            }
            connection.ask(now, Expected::Login, &hello);
        } else if let Some(password) = password {
            // Without a user name in the way that servers older than 6 know as well.
            let auth = [&b"AUTH"[..], user.as_bytes(), password.as_bytes()];
            let auth = if target.user.is_some() { &auth[..] } else { &[auth[0], auth[2]] };
            connection.ask(now, Expected::Login, auth);
        }
        connection.ask(now, Expected::Any, &[b"CLIENT", b"SETNAME", NAME.as_bytes()]);
        match line {
            Line::Ear => {
                // Before the subscription: what is stored from here on may be what we are going to hear.
                connection.ask(now, Expected::Clock, &[b"TIME"]);
                match subscribe {
                    Subscribe::Pattern => connection.say(&[b"PSUBSCRIBE", pattern.as_bytes()]),
                    Subscribe::Task => connection.ask(now, Expected::Ready, &[b"PING"]),
                }
            }
            Line::Hand => {
                if target.database != 0 {
                    let database = target.database.to_string();
                    connection.ask(now, Expected::Login, &[b"SELECT", database.as_bytes()]);
                }
                connection.ask(now, Expected::Ready, &[b"PING"]);
            }
        }
    }

    fn handle_value(&mut self, line: Line, value: Value, now: Moment) {
        match resp::sort(value, line == Line::Ear) {
            Sorted::Message { channel, payload } => {
                let spelling = channel
                    .strip_prefix(self.prefix.as_bytes())
                    .and_then(|rest| str::from_utf8(rest).ok());
                // Other people's channels may begin with our prefix, too.
                if let Some(spelling) = spelling
                    && let Ok(task) = Uuid::try_parse(spelling)
                {
                    let ear = match self.subscribe {
                        Subscribe::Pattern => self.pattern_ear,
                        Subscribe::Task => self.wanted.get(spelling).and_then(|wanted| wanted.ear),
                    };
                    self.events.push_back(Event::Heard {
                        task,
                        ear: ear.unwrap_or(Ear::LOOSE),
                        payload,
                    });
                }
            }
            Sorted::Subscribed { name } => match self.subscribe {
                Subscribe::Pattern => {
                    let since = self.clock.map_or(0, |(clock, _)| clock);
                    self.pattern_ear = Some(self.open_ear(since));
                    self.come_up(line, now);
                }
                Subscribe::Task => self.confirm(&name),
            },
            Sorted::Unsubscribed { .. } => {
                self.unconfirmed.pop_front();
            }
            Sorted::Reply(reply) => self.handle_reply(line, reply, now),
            Sorted::Unasked => {}
        }
    }

    fn handle_reply(&mut self, line: Line, reply: Value, now: Moment) {
        let expected = self.connection_mut(line).expected.pop_front();
        let refusal = match &reply {
            Value::ServerError(error) => {
                Some((error.code().to_owned(), error.details().unwrap_or("").to_owned()))
            }
            _ => None,
        };
        match (expected, refusal) {
            // Subscribing has no reply but a refusal.
            (Some(Expected::Login) | None, Some((code, details))) => {
                self.fail(line, &format!("it refused us: {code} {details}"), now);
            }
            (Some(Expected::Ready), Some((code, details))) if code != "NOPERM" => {
                self.fail(line, &format!("it refused us: {code} {details}"), now);
            }
            (Some(Expected::Ready), _) => self.come_up(line, now),
            (Some(Expected::Clock), None) => self.clock = clock(reply).map(|clock| (clock, now)),
            (Some(Expected::Clock), Some(_)) => self.clock = None,
            (Some(Expected::Script), None) => {
                self.script = resp::bytes(Some(reply)).map_or(Script::Refused, Script::Loaded);
            }
            (Some(Expected::Script), Some((code, details))) => {
                self.script = Script::Refused;
                self.drop_stores();
                self.tell(format!(
                    "results are not kept in Redis, it does not take the script: {code} {details}"
                ));
            }
            (Some(Expected::Stored(stores)), Some((code, _))) if code == "NOSCRIPT" => {
                self.store_again(stores);
                if matches!(self.script, Script::Loaded(_)) {
                    self.script = Script::Unknown;
                }
            }
            (Some(Expected::Stored(stores)), Some((code, details))) => {
                self.dropped += stores.len() as u64;
                self.tell(format!("results are not kept in Redis: {code} {details}"));
            }
            (Some(Expected::Stored(_)), None) => {
                if let Value::Int(refused @ 1..) = reply {
                    self.dropped += refused as u64;
                    self.tell("some results are not kept in Redis: their task has too many or too large ones".into());
                }
            }
            (Some(Expected::Kept), None) => {
                let kept = kept(reply);
                if let Some(Expected::Set(_, slot)) = self.connection_mut(line).expected.front_mut()
                {
                    *slot = kept;
                }
            }
            (Some(Expected::Kept), Some((code, details))) => {
                self.tell(format!("kept results cannot be read from Redis: {code} {details}"));
            }
            (Some(Expected::Set(task, kept)), refusal) => {
                if let Some((code, details)) = refusal {
                    self.tell(format!(
                        "results that workers set cannot be read from Redis: {code} {details}"
                    ));
                }
                let set = match reply {
                    Value::Array(items) => {
                        items.into_iter().filter_map(|item| resp::bytes(Some(item))).collect()
                    }
                    _ => Vec::new(),
                };
                // Another gateway may have stored what is still on its way to our ear. What is kept is told once we have heard as
                // much, so that nothing overtakes anything.
                if self.ear.is_up() && !(kept.is_empty() && set.is_empty()) {
                    self.ear.ask(now, Expected::Caught(task, kept, set), &[b"PING"]);
                } else {
                    self.events.push_back(Event::LookedUp { task, kept, set });
                }
            }
            (Some(Expected::Caught(task, kept, set)), _) => {
                self.events.push_back(Event::LookedUp { task, kept, set });
            }
            (Some(Expected::Login | Expected::Any | Expected::Forgotten) | None, _) => {}
        }
    }

    fn come_up(&mut self, line: Line, now: Moment) {
        let target = self.connection(line).target;
        if self.other(line).is_some_and(|other| other != target) {
            // The other line got up elsewhere meanwhile. What is heard on one server is not kept on another.
            self.lose(line, State::Down { retry_at: now });
            return self.dial(line, now);
        }
        let connection = self.connection_mut(line);
        let state = std::mem::replace(&mut connection.state, State::Down { retry_at: now });
        connection.state = match state {
            State::Greeting { decoder, .. } => {
                State::Up { since: now, ping_at: now + PING_INTERVAL, decoder }
            }
            state => state,
        };
        connection.backoff.reset();
        self.current = target;
        // The server is there again: what the ear hears from now on is to be kept now, not when the hand's pause is over.
        let other = self.connection_mut(if line == Line::Ear { Line::Hand } else { Line::Ear });
        if let State::Down { retry_at } = &mut other.state {
            *retry_at = (*retry_at).min(now);
        }
        if line == Line::Ear && self.subscribe == Subscribe::Task {
            let spellings: Vec<String> = self.wanted.keys().cloned().collect();
            self.request(now, &spellings);
        }
        if self.is_up() {
            self.away_since = None;
            self.is_lost = false;
            self.told.clear();
            self.events.push_back(Event::Up { address: self.address().to_string() });
        }
    }

    /// The line is lost, or never stood. Everything about it but what it wanted is forgotten.
    fn fail(&mut self, line: Line, why: &str, now: Moment) {
        let was_link_up = self.is_up();
        let other = self.other(line);
        let count = self.targets.len();
        let (current, mut chance) = (self.current, self.chance.fork());
        let connection = self.connection_mut(line);
        let target = connection.target;
        let was_stable =
            matches!(connection.state, State::Up { since, .. } if since + STABLE_AFTER <= now);
        let was_up = connection.is_up();
        let pause = if was_stable {
            Duration::ZERO
        } else {
            connection.backoff.next_wait_jittered(&mut chance)
        };
        self.lose(line, State::Down { retry_at: now + pause });
        // Both lines fail on the same target; it counts once.
        if !was_up && other.is_none() && target == current {
            self.current = (target + 1) % count;
        }
        let why = format!("{}: {why}", self.targets[target].address);
        if was_link_up {
            self.away_since = Some(now);
            self.told.push(why.clone());
            self.events.push_back(Event::Down { why });
        } else {
            self.tell(why);
        }
    }

    /// Lets go of the socket and of everything that was under way on it. Results that Redis has not confirmed go back to the queue.
    fn lose(&mut self, line: Line, state: State) {
        let expected = self.connection_mut(line).reset(state);
        match line {
            Line::Ear => {
                self.pattern_ear = None;
                self.unconfirmed.clear();
                self.wanted.values_mut().for_each(|wanted| wanted.ear = None);
            }
            Line::Hand => {
                self.script = Script::Unknown;
                // Asked again when the link is up.
                self.jobs.retain(|job| !matches!(job, Job::LookUp { .. }));
                for expected in expected.into_iter().rev() {
                    if let Expected::Stored(stores) = expected {
                        self.store_again(stores);
                    }
                }
            }
        }
        // A dial that nobody has begun yet need not begin.
        self.actions.retain(
            |action| !matches!(action, Action::Dial { line: dialled, .. } if *dialled == line),
        );
        self.actions.push_back(Action::Close { line });
    }

    fn tell(&mut self, why: String) {
        const TOLD_MAX: usize = 32;
        let why: String = why.trim_end().chars().take(300).collect();
        if !self.told.contains(&why) && self.told.len() < TOLD_MAX {
            self.told.push(why.clone());
            self.events.push_back(Event::Trouble { why });
        }
    }

    fn open_ear(&mut self, since: u64) -> Ear {
        self.last_ear += 1;
        Ear { number: self.last_ear, since }
    }

    /// Subscribes to tasks one by one, in as few commands as will do.
    fn request(&mut self, now: Moment, spellings: &[String]) {
        if !self.ear.is_up() {
            return;
        }
        let since = self.clock.map_or(0, |(clock, at)| clock + (now - at).as_micros() as u64);
        for some in spellings.chunks(1000) {
            let channels: Vec<String> =
                some.iter().map(|spelling| format!("{}{spelling}", self.prefix)).collect();
            for spelling in some {
                self.last_request += 1;
                self.unconfirmed.push_back(self.last_request);
                if let Some(wanted) = self.wanted.get_mut(spelling) {
                    (wanted.request, wanted.since) = (self.last_request, since);
                }
            }
            let mut command = vec![&b"SUBSCRIBE"[..]];
            command.extend(channels.iter().map(|channel| channel.as_bytes()));
            self.ear.say(&command);
        }
    }

    /// A subscription to one task is confirmed. It counts if it was the latest request for it.
    fn confirm(&mut self, channel: &[u8]) {
        let request = self.unconfirmed.pop_front();
        let spelling =
            channel.strip_prefix(self.prefix.as_bytes()).and_then(|rest| str::from_utf8(rest).ok());
        let number = self.last_ear + 1;
        if let Some(wanted) = spelling.and_then(|spelling| self.wanted.get_mut(spelling))
            && Some(wanted.request) == request
        {
            self.last_ear = number;
            wanted.ear = Some(Ear { number, since: wanted.since });
            self.events.push_back(Event::Listening { task: wanted.task });
        }
    }

    fn store_again(&mut self, stores: Vec<Store>) {
        for store in stores.into_iter().rev() {
            self.job_bytes += store.payload.len();
            self.jobs.push_front(Job::Store(store));
        }
        self.bound_jobs();
    }

    fn drop_stores(&mut self) {
        let before = self.jobs.len();
        self.jobs.retain(|job| !matches!(job, Job::Store(_)));
        self.dropped += (before - self.jobs.len()) as u64;
        self.job_bytes = 0;
    }

    fn bound_jobs(&mut self) {
        while self.jobs.len() > JOBS_MAX || self.job_bytes > self.retention.max_retained {
            let oldest = self.jobs.iter().position(|job| matches!(job, Job::Store(_)));
            let Some(Job::Store(store)) = oldest.and_then(|at| self.jobs.remove(at)) else {
                return;
            };
            self.job_bytes -= store.payload.len();
            self.dropped += 1;
        }
    }

    /// Turns jobs into commands, in their order, as long as Redis keeps up.
    fn pack_jobs(&mut self, now: Moment) {
        while self.hand.output.len() - self.hand.written < OUTPUT_MAX {
            match self.jobs.front() {
                None => {
                    self.jobs.shrink_to(1024);
                    return;
                }
                Some(Job::Store(_)) => {
                    let sha = match &self.script {
                        Script::Loaded(sha) => sha.clone(),
                        Script::Refused => {
                            self.drop_stores();
                            continue;
                        }
                        Script::Unknown => {
                            self.script = Script::Loading;
                            return self.hand.ask(
                                now,
                                Expected::Script,
                                &[b"SCRIPT", b"LOAD", SCRIPT.as_bytes()],
                            );
                        }
                        Script::Loading => return,
                    };
                    self.pack_stores(now, &sha);
                }
                Some(Job::LookUp { .. }) => {
                    if let Some(Job::LookUp { task, spellings }) = self.jobs.pop_front() {
                        self.pack_look_up(now, task, &spellings);
                    }
                }
                Some(Job::Forget(_)) => {
                    let mut keys = Vec::new();
                    while let Some(Job::Forget(task)) = self.jobs.front()
                        && keys.len() < BATCH_MAX
                    {
                        keys.push(format!("{}{task}", self.kept_prefix));
                        self.jobs.pop_front();
                    }
                    let mut command = vec![&b"UNLINK"[..]];
                    command.extend(keys.iter().map(|key| key.as_bytes()));
                    self.hand.ask(now, Expected::Forgotten, &command);
                }
            }
        }
    }

    fn pack_stores(&mut self, now: Moment, sha: &[u8]) {
        let mut stores: Vec<Store> = Vec::new();
        let mut bytes = 0;
        while stores.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && let Some(Job::Store(_)) = self.jobs.front()
            && let Some(Job::Store(store)) = self.jobs.pop_front()
        {
            bytes += store.payload.len();
            stores.push(store);
        }
        self.job_bytes -= bytes;
        let mut command = redis::Cmd::new();
        command.arg("EVALSHA").arg(sha).arg(stores.len());
        for store in &stores {
            command.arg(format!("{}{}", self.kept_prefix, store.task));
        }
        let retain = self.retention.retain.unwrap_or_default().as_millis().max(1);
        command.arg(retain as u64).arg(self.retention.max_retained).arg(KEPT_MAX);
        for Store { since, heard, payload, .. } in &stores {
            command.arg(format!("{since:016}")).arg(format!("{:016x}", heard.hash)).arg(heard.nth);
            match heard.before {
                Some((hash, nth)) => command.arg(format!("{hash:016x}")).arg(nth),
                None => command.arg("").arg(0),
            };
            command.arg(&payload[..]);
        }
        command.write_packed_command(&mut self.hand.output);
        self.hand.expect(now, Expected::Stored(stores));
    }

    fn pack_look_up(&mut self, now: Moment, task: Uuid, spellings: &[Box<str>]) {
        if self.retention.retain.is_some() {
            let key = format!("{}{task}", self.kept_prefix);
            self.hand.ask(now, Expected::Kept, &[b"HGETALL", key.as_bytes()]);
        }
        let mut keys = vec![format!("{}{task}", self.prefix)];
        keys.extend(spellings.iter().map(|spelling| format!("{}{spelling}", self.prefix)));
        let mut command = vec![&b"MGET"[..]];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        self.hand.ask(now, Expected::Set(task, Vec::new()), &command);
    }
}

impl Connection {
    fn new(now: Moment) -> Connection {
        Connection {
            state: State::Down { retry_at: now },
            target: 0,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            output: Vec::new(),
            written: 0,
            expected: VecDeque::new(),
            alive_at: now,
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Sends a command that is answered with one reply.
    fn ask(&mut self, now: Moment, expected: Expected, command: &[&[u8]]) {
        self.say(command);
        self.expect(now, expected);
    }

    /// Sends a command that is not answered with a reply.
    fn say(&mut self, command: &[&[u8]]) {
        resp::pack(&mut self.output, command);
    }

    fn expect(&mut self, now: Moment, expected: Expected) {
        if self.expected.is_empty() {
            self.alive_at = now;
        }
        self.expected.push_back(expected);
    }

    /// Forgets the socket and all that was under way on it, which it answers.
    fn reset(&mut self, state: State) -> VecDeque<Expected> {
        self.state = state;
        self.output = Vec::new();
        self.written = 0;
        std::mem::take(&mut self.expected)
    }

    fn deadline(&self) -> Moment {
        match &self.state {
            State::Down { retry_at } => *retry_at,
            State::Dialing { give_up_at } | State::Greeting { give_up_at, .. } => *give_up_at,
            State::Up { ping_at, .. } if self.expected.is_empty() => *ping_at,
            State::Up { ping_at, .. } => (*ping_at).min(self.alive_at + ANSWER_TIMEOUT),
        }
    }
}

/// The answer to `TIME` in microseconds.
fn clock(reply: Value) -> Option<u64> {
    let Value::Array(parts) = reply else { return None };
    let mut parts = parts
        .into_iter()
        .map(|part| String::from_utf8(resp::bytes(Some(part))?).ok()?.parse::<u64>().ok());
    Some(parts.next()?? * 1_000_000 + parts.next()??)
}

/// A task's hash, in the order of its index. Whatever does not look as the script writes it is left out.
fn kept(reply: Value) -> Vec<Kept> {
    let pairs: Vec<(Value, Value)> = match reply {
        Value::Map(pairs) => pairs,
        Value::Array(items) => {
            let mut items = items.into_iter();
            std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
        }
        _ => return Vec::new(),
    };
    let mut fields: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for (name, value) in pairs {
        if let (Some(name), Some(value)) = (resp::bytes(Some(name)), resp::bytes(Some(value))) {
            fields.insert(name, value);
        }
    }
    let index = fields.remove(&b"index"[..]).unwrap_or_default();
    let entries = index.get(12..).unwrap_or_default().chunks_exact(36);
    let kept = entries.filter_map(|entry| {
        let at = str::from_utf8(&entry[16..32]).ok()?.parse().ok()?;
        Some(Kept { at, payload: fields.remove(&entry[32..36])? })
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::resp::Requests;

    const SECOND: Duration = Duration::from_secs(1);
    const TASK: Uuid = Uuid::from_u128(0x0f8fad5b_d9cb_469f_a165_70867728950e);
    const SPELLED: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    /// A link, and a Redis that answers what it is told to.
    struct World {
        link: Link,
        now: Moment,
        /// What each line has said and the server has not looked at yet.
        said: [Vec<Vec<String>>; 2],
        readers: [Requests; 2],
    }

    fn settings(urls: &[&str], subscribe: Subscribe) -> Settings {
        let urls = urls.iter().map(|url| url.to_string()).collect();
        Settings {
            urls,
            channel_prefix: "task_response:".into(),
            subscribe,
            grace: Some(10 * SECOND),
        }
    }

    fn retention() -> tasks::Settings {
        tasks::Settings { retain: Some(300 * SECOND), max_retained: 1 << 20 }
    }

    impl World {
        fn new(urls: &[&str], subscribe: Subscribe) -> World {
            let now = Moment::START;
            let link = Link::new(&settings(urls, subscribe), retention(), now, 7).unwrap();
            World {
                link,
                now,
                said: Default::default(),
                readers: [Requests::new(1 << 20), Requests::new(1 << 20)],
            }
        }

        /// One that is up.
        fn up(subscribe: Subscribe) -> World {
            let mut world = World::new(&["redis://one"], subscribe);
            world.connect();
            assert_eq!(world.events(), [Event::Up { address: "one:6379".into() }]);
            world
        }

        fn connect(&mut self) {
            self.link.handle_time(self.now);
            for line in self.dials() {
                self.link.handle_connected(line, self.now);
                self.greet(line);
            }
        }

        /// Answers whatever the greeting asks.
        fn greet(&mut self, line: Line) {
            for command in self.commands(line) {
                let answer = match command[0].as_str() {
                    "TIME" => "*2\r\n$4\r\n1000\r\n$2\r\n17\r\n".to_owned(),
                    "PING" => "+PONG\r\n".to_owned(),
                    "HELLO" => "%1\r\n+server\r\n+redis\r\n".to_owned(),
                    name @ ("PSUBSCRIBE" | "SUBSCRIBE") => {
                        let name = name.to_lowercase();
                        let channels = &command[1..];
                        let lines = channels.iter().map(|channel| {
                            format!(
                                "*3\r\n${}\r\n{name}\r\n${}\r\n{channel}\r\n:1\r\n",
                                name.len(),
                                channel.len()
                            )
                        });
                        lines.collect()
                    }
                    _ => "+OK\r\n".to_owned(),
                };
                self.say(line, &answer);
            }
        }

        fn actions(&mut self) -> Vec<Action> {
            std::iter::from_fn(|| self.link.poll_action()).collect()
        }

        fn dials(&mut self) -> Vec<Line> {
            let dial = |action| match action {
                Action::Dial { line, .. } => Some(line),
                Action::Close { .. } => None,
            };
            self.actions().into_iter().filter_map(dial).collect()
        }

        fn events(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.link.poll_event()).collect()
        }

        /// What the line has said since the last look.
        fn commands(&mut self, line: Line) -> Vec<Vec<String>> {
            let i = line as usize;
            loop {
                let bytes = self.link.poll_output(line, self.now).to_vec();
                if bytes.is_empty() {
                    return std::mem::take(&mut self.said[i]);
                }
                let mut input = &bytes[..];
                while let Some(command) = self.readers[i].decode(&mut input).unwrap() {
                    let text = |argument: Vec<u8>| String::from_utf8(argument).unwrap();
                    self.said[i].push(command.into_iter().map(text).collect());
                }
                self.link.handle_written(line, bytes.len());
            }
        }

        fn say(&mut self, line: Line, answer: &str) {
            self.link.handle_bytes(line, answer.as_bytes(), self.now);
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.link.handle_time(self.now);
        }

        fn keep(&mut self, nth: u32, text: &str) {
            let heard = Heard { hash: 0xab, nth, before: (nth > 1).then_some((0xcd, 1)) };
            self.link.keep(
                TASK,
                Ear { number: 1, since: 1_000_000_017 },
                heard,
                text.as_bytes().into(),
            );
        }

        fn load_script(&mut self) {
            assert_eq!(self.commands(Line::Hand)[0][..2], ["SCRIPT", "LOAD"]);
            self.say(Line::Hand, "$3\r\nsha\r\n");
        }
    }

    #[test]
    fn both_lines_log_in_and_the_pattern_makes_it_up() {
        let mut world = World::new(&["redis://ann:s%20cret@one:7000/3"], Subscribe::Pattern);
        let address = Address::Tcp { host: "one".into(), port: 7000 };
        let dial = |line| Action::Dial { line, address: address.clone() };
        assert_eq!(world.actions(), [dial(Line::Ear), dial(Line::Hand)]);
        for line in LINES {
            world.link.handle_connected(line, world.now);
        }
        let name = ["CLIENT", "SETNAME", "aivtuber-gateway"];
        let ear = world.commands(Line::Ear);
        assert_eq!(
            ear,
            [&["AUTH", "ann", "s cret"][..], &name, &["TIME"], &["PSUBSCRIBE", "task_response:*"]]
        );
        let hand = world.commands(Line::Hand);
        assert_eq!(hand, [&["AUTH", "ann", "s cret"][..], &name, &["SELECT", "3"], &["PING"]]);
        world.say(Line::Hand, "+OK\r\n+OK\r\n+OK\r\n+PONG\r\n");
        assert!(!world.link.is_up());
        let greeting = "+OK\r\n-ERR unknown subcommand\r\n*2\r\n$4\r\n1000\r\n$2\r\n17\r\n*3\r\n$10\r\npsubscribe\r\n$15\r\ntask_response:*\r\n:1\r\n";
        for (i, byte) in greeting.bytes().enumerate() {
            assert!(!world.link.is_up(), "too early at {i}");
            world.link.handle_bytes(Line::Ear, &[byte], world.now);
        }
        assert!(world.link.is_up());
        assert_eq!(world.link.ear(TASK), Some(Ear { number: 1, since: 1_000_000_017 }));
        assert_eq!(world.events(), [Event::Up { address: "one:7000".into() }]);
    }

    #[test]
    fn publications_are_heard_in_either_protocol() {
        let ear = Ear { number: 1, since: 1_000_000_017 };
        let mut world = World::up(Subscribe::Pattern);
        let heard = Event::Heard { task: TASK, ear, payload: b"{}".to_vec() };
        for channel in [
            format!("task_response:{SPELLED}"),
            format!("task_response:{}", SPELLED.to_uppercase()),
        ] {
            let message = format!("${}\r\n{channel}\r\n$2\r\n{{}}\r\n", channel.len());
            world.say(
                Line::Ear,
                &format!("*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n{message}"),
            );
            world.say(
                Line::Ear,
                &format!(">4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n{message}"),
            );
            assert_eq!(world.events(), [heard.clone(), heard.clone()]);
        }
        world
            .say(Line::Ear, "*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n$15\r\ntask_response:x\r\n$2\r\n{}\r\n");
        assert_eq!(world.events(), []);
        world.link.handle_closed(Line::Ear, "closed", world.now);
        assert_eq!(world.link.ear(TASK), None);
    }

    #[test]
    fn resp3_is_spoken_where_the_url_says_so() {
        let mut world = World::new(&["redis://:secret@one?protocol=resp3"], Subscribe::Pattern);
        for line in world.dials() {
            world.link.handle_connected(line, world.now);
            let commands = world.commands(line);
            assert_eq!(commands[0], ["HELLO", "3", "AUTH", "default", "secret"]);
            world.said[line as usize] = commands;
            world.greet(line);
        }
        assert!(world.link.is_up());
    }

    #[test]
    fn dials_are_given_up_and_repeated_with_growing_pauses() {
        let mut world = World::new(&["redis://one"], Subscribe::Pattern);
        assert_eq!(world.dials(), LINES);
        assert_eq!(world.link.deadline(), Some(world.now + 5 * SECOND));
        world.pass(5 * SECOND);
        assert_eq!(
            world.events(),
            [Event::Trouble { why: "one:6379: no connection within 5 s".into() }]
        );
        assert_eq!(
            world.actions(),
            [Action::Close { line: Line::Ear }, Action::Close { line: Line::Hand }]
        );
        let mut pause = Duration::from_millis(200);
        for _ in 0..10 {
            let from = world.now;
            while world.dials().is_empty() {
                world.now = world.link.deadline().unwrap();
                world.link.handle_time(world.now);
            }
            world.pass(pause);
            world.dials();
            for line in LINES {
                world.link.handle_closed(line, "refused", world.now);
            }
            assert!(world.now - from <= 2 * pause, "{:?}", world.now - from);
            pause = (2 * pause).min(5 * SECOND);
        }
        let deadline = world.link.deadline().unwrap();
        assert!(deadline - world.now >= LONGEST_PAUSE / 2 && deadline - world.now <= LONGEST_PAUSE);
    }

    #[test]
    fn a_greeting_without_answer_is_given_up() {
        let mut world = World::new(&["redis://one"], Subscribe::Pattern);
        world.dials();
        world.link.handle_connected(Line::Ear, world.now + SECOND);
        world.link.handle_bytes(Line::Ear, b"+OK\r\n", world.now + 2 * SECOND);
        world.pass(6 * SECOND);
        assert!(
            world
                .events()
                .contains(&Event::Trouble { why: "one:6379: no answer within 5 s".into() })
        );
        world.say(Line::Ear, "+late\r\n");
        assert!(!world.link.is_up());
    }

    #[test]
    fn a_wrong_password_is_said_once_and_tried_again() {
        let mut world = World::new(&["redis://:wrong@one"], Subscribe::Pattern);
        let refusal = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        let mut told = Vec::new();
        for _ in 0..3 {
            for line in world.dials() {
                world.link.handle_connected(line, world.now);
                world.say(line, &format!("{refusal}-NOAUTH Authentication required.\r\n"));
            }
            world.pass(5 * SECOND);
            told.append(&mut world.events());
        }
        let why = "one:6379: it refused us: WRONGPASS invalid username-password pair or user is disabled.";
        assert_eq!(told, [Event::Trouble { why: why.into() }, Event::GraceOver]);
        world.connect();
        assert!(world.link.is_up());
    }

    #[test]
    fn a_password_that_is_missing_is_told() {
        let mut world = World::new(&["redis://one"], Subscribe::Pattern);
        for line in world.dials() {
            world.link.handle_connected(line, world.now);
            world.say(line, &"-NOAUTH Authentication required.\r\n".repeat(4));
        }
        let why = "one:6379: it refused us: NOAUTH Authentication required.";
        assert_eq!(world.events(), [Event::Trouble { why: why.into() }]);
    }

    #[test]
    fn silence_is_noticed_and_the_line_dialled_again_at_once() {
        let mut world = World::up(Subscribe::Pattern);
        world.pass(10 * SECOND);
        for line in LINES {
            assert_eq!(world.commands(line), [["PING"]]);
        }
        world.say(Line::Ear, "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
        assert_eq!(world.link.deadline(), Some(world.now + 5 * SECOND));
        world.pass(5 * SECOND);
        assert_eq!(world.events(), [Event::Down { why: "one:6379: silent for 5 s".into() }]);
        assert_eq!(world.actions(), [Action::Close { line: Line::Hand }]);
        assert!(world.link.ear(TASK).is_some(), "the ear heard on");
        world.pass(Duration::ZERO);
        world.connect();
        assert_eq!(world.events(), [Event::Up { address: "one:6379".into() }]);
    }

    #[test]
    fn anything_that_comes_proves_life() {
        let mut world = World::up(Subscribe::Pattern);
        world.pass(10 * SECOND);
        world.commands(Line::Ear);
        world.say(Line::Hand, "+PONG\r\n");
        for _ in 0..9 {
            world.pass(SECOND);
            world.say(
                Line::Ear,
                "*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n$15\r\ntask_response:x\r\n$2\r\n{}\r\n",
            );
        }
        assert!(world.link.is_up());
    }

    #[test]
    fn a_line_that_falls_at_once_is_not_dialled_in_a_loop() {
        let mut world = World::up(Subscribe::Pattern);
        world.link.handle_closed(Line::Ear, "closed", world.now);
        world.link.handle_time(world.now);
        assert_eq!(world.dials(), []);
        assert!(world.link.deadline().unwrap() >= world.now + FIRST_PAUSE / 2);
    }

    #[test]
    fn nonsense_ends_a_line() {
        let mut world = World::up(Subscribe::Pattern);
        world.say(Line::Hand, "HTTP/1.1 400\r\n");
        assert_eq!(
            world.events(),
            [Event::Down { why: "one:6379: it sent not the Redis protocol".into() }]
        );
        assert_eq!(world.actions(), [Action::Close { line: Line::Hand }]);
    }

    #[test]
    fn grace_ends_once() {
        let mut world = World::up(Subscribe::Pattern);
        world.pass(SECOND);
        world.link.handle_closed(Line::Ear, "closed", world.now);
        world.events();
        for _ in 0..9 {
            world.pass(SECOND);
        }
        assert!(!world.link.is_lost());
        world.pass(SECOND);
        assert!(world.link.is_lost() && world.events().contains(&Event::GraceOver));
        world.pass(20 * SECOND);
        assert!(!world.events().contains(&Event::GraceOver));
        world.pass(5 * SECOND);
        world.connect();
        assert!(!world.link.is_lost() && world.link.is_up());
    }

    #[test]
    fn when_one_line_stands_the_other_does_not_wait() {
        let mut world = World::up(Subscribe::Pattern);
        for line in LINES {
            world.link.handle_closed(line, "closed", world.now);
        }
        world.link.handle_time(world.now);
        world.dials();
        world.pass(SECOND);
        world.dials();
        world.link.handle_closed(Line::Hand, "refused", world.now);
        world.link.handle_connected(Line::Ear, world.now);
        world.greet(Line::Ear);
        world.link.handle_time(world.now);
        assert_eq!(world.dials(), [Line::Hand]);
    }

    #[test]
    fn urls_are_tried_in_turn_by_both_lines_together() {
        let mut world = World::new(
            &["redis://one", "redis://two", "unix:///run/redis.sock?pass=x"],
            Subscribe::Pattern,
        );
        let mut tried = Vec::new();
        for _ in 0..4 {
            let dials: Vec<(Line, String)> = world
                .actions()
                .into_iter()
                .filter_map(|action| match action {
                    Action::Dial { line, address } => Some((line, address.to_string())),
                    Action::Close { .. } => None,
                })
                .collect();
            assert_eq!(dials[0].1, dials[1].1);
            tried.push(dials[0].1.clone());
            for (line, _) in dials {
                world.link.handle_closed(line, "refused", world.now);
            }
            world.pass(5 * SECOND);
        }
        assert_eq!(tried, ["one:6379", "two:6379", "/run/redis.sock", "one:6379"]);
    }

    #[test]
    fn the_lines_meet_on_one_server() {
        let mut world = World::new(&["redis://one", "redis://two"], Subscribe::Pattern);
        world.dials();
        world.link.handle_closed(Line::Ear, "refused", world.now);
        world.pass(SECOND);
        assert_eq!(world.dials(), [Line::Ear]);
        // The ear is dialling "two" when the hand gets through to "one".
        world.link.handle_connected(Line::Hand, world.now);
        world.greet(Line::Hand);
        world.link.handle_connected(Line::Ear, world.now);
        world.greet(Line::Ear);
        let one = Address::Tcp { host: "one".into(), port: 6379 };
        assert_eq!(
            world.actions(),
            [Action::Close { line: Line::Ear }, Action::Dial { line: Line::Ear, address: one }]
        );
        assert_eq!(world.link.ear(TASK), None);
        world.link.handle_connected(Line::Ear, world.now);
        world.greet(Line::Ear);
        assert!(world.link.is_up());
    }

    #[test]
    fn results_are_kept_in_batches() {
        let mut world = World::up(Subscribe::Pattern);
        world.keep(1, "a");
        world.load_script();
        assert_eq!(
            world.commands(Line::Hand),
            [[
                "EVALSHA",
                "sha",
                "1",
                &format!("task_response_kept:{SPELLED}"),
                "300000",
                "1048576",
                "1024",
                "0000001000000017",
                "00000000000000ab",
                "1",
                "",
                "0",
                "a"
            ]]
        );
        for nth in 2..=200 {
            world.keep(nth, "b");
        }
        let commands = world.commands(Line::Hand);
        assert_eq!(
            commands.iter().map(|command| command[2].as_str()).collect::<Vec<_>>(),
            ["64", "64", "64", "7"]
        );
        assert_eq!(
            commands[0][3 + 64 + 3..][..6],
            ["0000001000000017", "00000000000000ab", "2", "00000000000000cd", "1", "b"]
        );
        world.say(Line::Hand, ":0\r\n:0\r\n:0\r\n:0\r\n:3\r\n");
        assert_eq!(world.link.dropped(), 3);
        for task in 0..70 {
            world.link.forget(Uuid::from_u128(task));
        }
        assert_eq!(world.commands(Line::Hand).iter().map(Vec::len).collect::<Vec<_>>(), [65, 7]);
    }

    #[test]
    fn what_was_not_confirmed_is_kept_again() {
        let mut world = World::up(Subscribe::Pattern);
        world.keep(1, "a");
        world.load_script();
        world.commands(Line::Hand);
        world.say(Line::Hand, ":0\r\n");
        for text in ["b", "c"] {
            world.keep(2, text);
            assert_eq!(world.commands(Line::Hand).len(), 1);
        }
        world.keep(2, "d");
        world.link.look_up(TASK, &[]);
        world.link.handle_closed(Line::Hand, "closed", world.now);
        world.keep(2, "e");
        world.pass(SECOND);
        world.connect();
        assert!(world.link.is_up());
        world.load_script();
        let commands = world.commands(Line::Hand);
        assert_eq!(commands.len(), 1, "{commands:?}");
        let payloads: Vec<&str> =
            (0..4).map(|i| commands[0][3 + 4 + 3 + 6 * i + 5].as_str()).collect();
        assert_eq!(payloads, ["b", "c", "d", "e"]);
    }

    #[test]
    fn a_script_that_was_flushed_is_loaded_again() {
        let mut world = World::up(Subscribe::Pattern);
        world.keep(1, "a");
        world.load_script();
        world.keep(2, "b");
        assert_eq!(world.commands(Line::Hand).len(), 1);
        world.keep(2, "c");
        assert_eq!(world.commands(Line::Hand).len(), 1);
        world.say(Line::Hand, "-NOSCRIPT No matching script.\r\n-NOSCRIPT No matching script.\r\n");
        world.load_script();
        let commands = world.commands(Line::Hand);
        assert_eq!(commands.len(), 1);
        assert_eq!(commands[0][2], "3");
        assert_eq!(world.events(), []);
    }

    #[test]
    fn a_redis_without_scripts_keeps_nothing_but_works() {
        let mut world = World::up(Subscribe::Pattern);
        world.keep(1, "a");
        world.commands(Line::Hand);
        world.say(
            Line::Hand,
            "-NOPERM this user has no permissions to run the 'script|load' command\r\n",
        );
        let [Event::Trouble { why }] = &world.events()[..] else { panic!() };
        assert!(why.contains("NOPERM"), "{why}");
        world.keep(2, "b");
        assert_eq!(world.commands(Line::Hand), Vec::<Vec<String>>::new());
        assert_eq!(world.link.dropped(), 2);
        world.link.look_up(TASK, &[]);
        assert_eq!(world.commands(Line::Hand).len(), 2);
        assert!(world.link.is_up());
    }

    #[test]
    fn a_full_redis_is_told_once() {
        let mut world = World::up(Subscribe::Pattern);
        world.keep(1, "a");
        world.load_script();
        for nth in 2..5 {
            world.keep(nth, "b");
            world.commands(Line::Hand);
        }
        world.say(
            Line::Hand,
            &"-OOM command not allowed when used memory > 'maxmemory'.\r\n".repeat(3),
        );
        assert_eq!(world.events().len(), 1);
        assert!(world.link.is_up() && world.link.dropped() == 4);
    }

    #[test]
    fn what_is_kept_and_what_was_set_come_together() {
        let mut world = World::up(Subscribe::Pattern);
        world.link.look_up(TASK, &[SPELLED.to_uppercase().into()]);
        world.link.look_up(Uuid::nil(), &[]);
        let commands = world.commands(Line::Hand);
        assert_eq!(commands[0], ["HGETALL".into(), format!("task_response_kept:{SPELLED}")]);
        let keys = [
            format!("task_response:{SPELLED}"),
            format!("task_response:{}", SPELLED.to_uppercase()),
        ];
        assert_eq!(commands[1], ["MGET", &keys[0], &keys[1]]);
        let index = format!("000000000003{:016x}{:016}0001{:016x}{:016}0000", 1, 20, 2, 30);
        let mut rest = String::new();
        for text in ["0000", "b", "0001", "a", "index", &index, "9999", "left over"] {
            rest += &format!("${}\r\n{text}\r\n", text.len());
        }
        world.link.handle_closed(Line::Hand, "start over", world.now);
        world.events();
        world.pass(SECOND);
        world.connect();
        world.link.look_up(TASK, &[]);
        world.link.look_up(Uuid::nil(), &[]);
        world.commands(Line::Hand);
        world.say(Line::Hand, &format!("*8\r\n{rest}*2\r\n$-1\r\n$1\r\ns\r\n%0\r\n*1\r\n$-1\r\n"));
        assert_eq!(world.commands(Line::Ear), [["PING"]]);
        let kept =
            vec![Kept { at: 20, payload: b"a".to_vec() }, Kept { at: 30, payload: b"b".to_vec() }];
        assert_eq!(
            world.events()[1..],
            [Event::LookedUp { task: Uuid::nil(), kept: vec![], set: vec![] }]
        );
        world.say(Line::Ear, "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
        assert_eq!(
            world.events(),
            [Event::LookedUp { task: TASK, kept, set: vec![b"s".to_vec()] }]
        );
    }

    #[test]
    fn broken_keys_of_others_do_no_harm() {
        let mut world = World::up(Subscribe::Pattern);
        world.link.look_up(TASK, &[]);
        world.commands(Line::Hand);
        world
            .say(Line::Hand, "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n*1\r\n$1\r\ns\r\n");
        world.commands(Line::Ear);
        world.say(Line::Ear, "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
        let events = world.events();
        assert!(matches!(&events[0], Event::Trouble { why } if why.contains("WRONGTYPE")));
        assert_eq!(
            events[1],
            Event::LookedUp { task: TASK, kept: vec![], set: vec![b"s".to_vec()] }
        );
        let entry = |index: &str| {
            kept(Value::Array(
                ["index", index, "0000", "a"].map(|text| Value::BulkString(text.into())).into(),
            ))
        };
        for index in [
            "",
            "0",
            "000000000000",
            "000000000000short",
            &"x".repeat(48),
            &format!("{}\u{3042}", "0".repeat(45)),
        ] {
            assert_eq!(entry(index), [], "{index}");
        }
    }

    #[test]
    fn tasks_are_subscribed_to_one_by_one() {
        let mut world = World::up(Subscribe::Task);
        world.link.listen(TASK, SPELLED, world.now);
        assert_eq!(world.link.ear(TASK), None);
        world.now += SECOND;
        world.said[0] = world.commands(Line::Ear);
        assert_eq!(world.said[0], [["SUBSCRIBE", &format!("task_response:{SPELLED}")]]);
        world.greet(Line::Ear);
        assert_eq!(world.events(), [Event::Listening { task: TASK }]);
        let ear = world.link.ear(TASK).unwrap();
        assert_eq!(ear.since, 1_000_000_017);
        world.link.unlisten(SPELLED);
        assert_eq!(
            world.commands(Line::Ear),
            [["UNSUBSCRIBE", &format!("task_response:{SPELLED}")]]
        );
        assert_eq!(world.link.ear(TASK), None);
    }

    #[test]
    fn only_the_latest_subscription_counts() {
        let mut world = World::up(Subscribe::Task);
        world.link.listen(TASK, SPELLED, world.now);
        world.link.unlisten(SPELLED);
        world.link.listen(TASK, SPELLED, world.now);
        assert_eq!(world.commands(Line::Ear).len(), 3);
        let channel = format!("task_response:{SPELLED}");
        let confirm =
            |kind: &str| format!("*3\r\n${}\r\n{kind}\r\n$50\r\n{channel}\r\n:1\r\n", kind.len());
        world.say(Line::Ear, &confirm("subscribe"));
        world.say(Line::Ear, &confirm("unsubscribe"));
        assert_eq!((world.events(), world.link.ear(TASK)), (vec![], None));
        world.say(Line::Ear, &confirm("subscribe"));
        assert_eq!(world.events(), [Event::Listening { task: TASK }]);
    }

    #[test]
    fn after_a_reconnect_all_tasks_are_subscribed_to_again() {
        let mut world = World::up(Subscribe::Task);
        for task in 0..2500 {
            world.link.listen(Uuid::from_u128(task), &Uuid::from_u128(task).to_string(), world.now);
        }
        world.greet(Line::Ear);
        assert_eq!(world.events().len(), 2500);
        let first = world.link.ear(Uuid::from_u128(7)).unwrap();
        world.pass(SECOND);
        world.link.handle_closed(Line::Ear, "closed", world.now);
        world.events();
        assert_eq!(world.link.ear(Uuid::from_u128(7)), None);
        world.connect();
        assert_eq!(world.events().len(), 1);
        world.said[0] = world.commands(Line::Ear);
        assert_eq!(world.said[0].len(), 3);
        world.greet(Line::Ear);
        assert_eq!(world.events().len(), 2500);
        assert!(world.link.ear(Uuid::from_u128(7)).unwrap().number > first.number);
    }

    #[test]
    fn what_waits_for_redis_is_bounded() {
        let mut world = World::new(&["redis://one"], Subscribe::Pattern);
        for _ in 0..JOBS_MAX + 10 {
            world.keep(1, "");
        }
        assert_eq!((world.link.jobs.len(), world.link.dropped()), (JOBS_MAX, 10));
        let large = "x".repeat(1 << 19);
        for _ in 0..4 {
            world.keep(1, &large);
        }
        assert_eq!(world.link.job_bytes, 1 << 20);
        world.keep(1, &"x".repeat((1 << 20) + 1));
        assert_eq!(world.link.job_bytes, 1 << 20);
        // A server that takes nothing is not packed for without end.
        world.connect();
        world.load_script();
        let before = world.link.jobs.len();
        world.link.poll_output(Line::Hand, world.now);
        let packed = world.link.hand.output.len();
        assert!(packed > OUTPUT_MAX && packed < 2 * OUTPUT_MAX + BATCH_BYTES_MAX, "{packed}");
        assert!(world.link.jobs.len() < before);
        // Nor is what it has taken held, when it never takes all.
        for _ in 0..100 {
            (0..8).for_each(|_| world.keep(1, &large[..1 << 16]));
            let waiting = world.link.poll_output(Line::Hand, world.now).len();
            world.link.handle_written(Line::Hand, waiting - 1000);
        }
        assert!(world.link.hand.output.len() < 3 * OUTPUT_MAX, "{}", world.link.hand.output.len());
    }

    #[test]
    fn urls_are_read_and_refused_without_being_quoted() {
        for (url, address) in [
            ("redis://localhost:6379", "localhost:6379"),
            ("redis://user:p@one/2", "one:6379"),
            ("redis://[::1]:7000", "[::1]:7000"),
            ("unix:///run/redis.sock", "/run/redis.sock"),
            ("redis+unix:///run/redis.sock?db=1", "/run/redis.sock"),
        ] {
            assert_eq!(Target::read(url).unwrap().address().to_string(), address);
        }
        for url in [
            "",
            "one:6379",
            "http://one",
            "rediss://:secret@one",
            "redis://:secret@one/x",
            "redis://:secret@",
            "embedded://127.0.0.1:1",
        ] {
            let why = Target::read(url).unwrap_err();
            assert!(!why.contains("secret") && why.contains("redis://["), "{why}");
        }
        let settings = settings(&["redis://one", "nonsense"], Subscribe::Pattern);
        let why = Link::new(&settings, retention(), Moment::START, 1).err().unwrap();
        assert!(why.starts_with("URL 2 of 2: not a Redis URL"), "{why}");
    }

    #[test]
    fn kept_keys_follow_the_prefix() {
        for (prefix, expected) in
            [("task_response:", "task_response_kept:"), ("a/", "a/_kept:"), ("", "_kept:")]
        {
            let settings = Settings {
                channel_prefix: prefix.into(),
                ..settings(&["redis://one"], Subscribe::Pattern)
            };
            assert_eq!(
                Link::new(&settings, retention(), Moment::START, 1).unwrap().kept_prefix,
                expected
            );
        }
    }
}
