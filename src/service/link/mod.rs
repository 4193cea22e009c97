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
//! The pause before a dial is 100 ms at first and doubles to 5 s, shortened by chance; a role that was up for a while is dialled
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

mod connection;
mod keep;
mod subscribe;
mod target;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use redis::Value;
use uuid::Uuid;

use crate::base::moment::Moment;
use crate::proto::resp::{self, BadReply, Incoming};
use crate::service::tasks::{self, KeptResult, Subscription};
use connection::{Connection, ConnectionState, PendingReply};
use keep::{Job, Script, kept};
use subscribe::{Wanted, clock};
pub use target::{Address, Server};

/// A dial, and the greeting after it, may take so long.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A role is pinged so often.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A role that owes an answer and has sent nothing for so long is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A role that was up for so long is dialled again without a pause.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Results of one task that Redis keeps.
pub const KEPT_MAX: usize = 1024;
/// Bytes on their origin to Redis before more commands are packed.
const OUTPUT_MAX: usize = 512 * 1024;
/// Commands that wait for Redis.
const JOBS_MAX: usize = 65_536;
/// Largest publication, bytes; a larger one ends the connection. Kept results, which come in one answer, may be twice what is kept.
const VALUE_MAX: usize = 64 * 1024 * 1024;
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
pub enum RedisRole {
    /// Receives publications.
    Subscriber,
    /// Keeps results and looks them up.
    Store,
}

/// Both, for loops.
pub const REDIS_ROLES: [RedisRole; 2] = [RedisRole::Subscriber, RedisRole::Store];

/// What the reactor is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect, then say [`Link::handle_connected`] or [`Link::handle_closed`].
    Dial { role: RedisRole, address: Address },
    /// Close the socket, if there is one. Nothing is to be said.
    Close { role: RedisRole },
}

/// What was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both lines stand: look up everything that is waited for.
    Up { address: String },
    /// The link was up and is not any more.
    Down { why: String },
    /// Something went wrong that a person should know of. The same is said once until the link is up again.
    Problem { why: String },
    /// Redis has been away for longer than the grace: tell those who wait.
    GraceOver,
    /// A worker published.
    Published { task: Uuid, subscription: Subscription, payload: Vec<u8> },
    /// The subscription for one task counts from here on: look the task up. Not sent for patterns.
    Subscribed { task: Uuid },
    /// The answer to [`Link::look_up`]. Everything that was published before it was given has been heard.
    LookedUp { task: Uuid, kept: Vec<KeptResult>, set: Vec<Vec<u8>> },
}

/// The link to Redis.
pub struct Link {
    targets: Vec<Server>,
    /// The target that is dialled next, unless the other role stands somewhere.
    current: usize,
    prefix: String,
    kept_prefix: String,
    subscribe: Subscribe,
    grace: Option<Duration>,
    retention: tasks::Settings,
    subscriber: Connection,
    store: Connection,
    /// Redis' clock (microseconds) at a moment of ours; late by the origin the answer took, which is the safe side.
    clock: Option<(u64, Moment)>,
    last_subscription: u32,
    pattern_subscription: Option<Subscription>,
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
    reported: Vec<String>,
    chance: fastrand::Rng,
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
                Server::parse(url)
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
            subscriber: Connection::new(now),
            store: Connection::new(now),
            clock: None,
            last_subscription: 0,
            pattern_subscription: None,
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
            reported: Vec::new(),
            chance: fastrand::Rng::with_seed(seed),
        };
        link.handle_time(now);
        Ok(link)
    }

    /// Both lines stand and, with a pattern, the subscription is confirmed.
    pub fn is_up(&self) -> bool {
        REDIS_ROLES.iter().all(|role| self.connection(*role).is_up())
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

    /// Makes sure that [`Link::is_idle`] comes after everything that was published before now has been heard.
    pub fn catch_up(&mut self, now: Moment) {
        if self.subscriber.is_up() {
            self.subscriber.ask(now, PendingReply::Any, &[b"PING"]);
        }
    }

    /// Everything that was to be kept or asked is answered. A gateway that stops waits for this, shortly.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
            && REDIS_ROLES.iter().all(|role| self.connection(*role).expected.is_empty())
    }

    /// Results that were not kept in Redis for want of room here, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The dial has succeeded.
    pub fn handle_connected(&mut self, role: RedisRole, now: Moment) {
        if matches!(self.connection(role).state, ConnectionState::Dialing { .. }) {
            self.greet(role, now);
        }
    }

    /// The dial failed or the connection is gone; `why` is for the log.
    pub fn handle_closed(&mut self, role: RedisRole, why: &str, now: Moment) {
        if !matches!(self.connection(role).state, ConnectionState::Down { .. }) {
            self.fail(role, why, now);
        }
    }

    /// Bytes came.
    pub fn handle_bytes(&mut self, role: RedisRole, bytes: &[u8], now: Moment) {
        let mut input = bytes;
        self.connection_mut(role).alive_at = now;
        loop {
            let decoder = match &mut self.connection_mut(role).state {
                ConnectionState::Greeting { decoder, .. } | ConnectionState::Up { decoder, .. } => {
                    decoder
                }
                ConnectionState::Down { .. } | ConnectionState::Dialing { .. } => return,
            };
            match decoder.decode(&mut input) {
                Ok(Some(value)) => self.handle_value(role, value, now),
                Ok(None) => return,
                Err(BadReply(why)) => return self.fail(role, &format!("it sent {why}"), now),
            }
        }
    }

    /// Time passed; see [`Link::deadline`].
    pub fn handle_time(&mut self, now: Moment) {
        for role in REDIS_ROLES {
            let connection = self.connection_mut(role);
            let awaits_reply = !connection.expected.is_empty();
            match &mut connection.state {
                ConnectionState::Down { retry_at } if *retry_at <= now => self.dial(role, now),
                ConnectionState::Dialing { give_up_at } if *give_up_at <= now => {
                    self.fail(role, "no connection within 5 s", now)
                }
                ConnectionState::Greeting { give_up_at, .. } if *give_up_at <= now => {
                    self.fail(role, "no answer within 5 s", now)
                }
                ConnectionState::Up { .. }
                    if awaits_reply && connection.alive_at + ANSWER_TIMEOUT <= now =>
                {
                    self.fail(role, "silent for 5 s", now);
                }
                ConnectionState::Up { ping_at, .. } if *ping_at <= now => {
                    *ping_at = now + PING_INTERVAL;
                    connection.ask(now, PendingReply::Any, &[b"PING"]);
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
        REDIS_ROLES.iter().map(|role| self.connection(*role).deadline()).chain(grace).min()
    }

    /// The next thing for the reactor to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next thing that was learned.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes for the role's socket, empty if there are none. Say how many went with [`Link::handle_written`] and ask again.
    pub fn poll_output(&mut self, role: RedisRole, now: Moment) -> &[u8] {
        if role == RedisRole::Store && self.store.is_up() {
            self.pack_jobs(now);
        }
        let connection = self.connection(role);
        &connection.output[connection.written..]
    }

    /// So many bytes of [`Link::poll_output`] were written.
    pub fn handle_written(&mut self, role: RedisRole, n: usize) {
        let connection = self.connection_mut(role);
        connection.written += n;
        if connection.written == connection.output.len() {
            connection.output = Vec::new();
            connection.written = 0;
        } else if connection.written >= OUTPUT_MAX {
            // While Redis is the slower one there is always more: what is out must not pile up in front of it.
            connection.output.drain(..std::mem::take(&mut connection.written));
        }
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

    /// Where the other role stands, if it does.
    fn other(&self, role: RedisRole) -> Option<usize> {
        let other = self.connection(if role == RedisRole::Subscriber {
            RedisRole::Store
        } else {
            RedisRole::Subscriber
        });
        other.is_up().then_some(other.target)
    }

    fn dial(&mut self, role: RedisRole, now: Moment) {
        let target = self.other(role).unwrap_or(self.current);
        let connection = self.connection_mut(role);
        connection.target = target;
        connection.state = ConnectionState::Dialing { give_up_at: now + DIAL_TIMEOUT };
        self.actions
            .push_back(Action::Dial { role, address: self.targets[target].address.clone() });
    }

    fn handle_value(&mut self, role: RedisRole, value: Value, now: Moment) {
        match resp::classify(value, role == RedisRole::Subscriber) {
            Incoming::Message { channel, payload } => {
                let spelling = channel
                    .strip_prefix(self.prefix.as_bytes())
                    .and_then(|rest| str::from_utf8(rest).ok());
                // Other people's channels may begin with our prefix, too.
                if let Some(spelling) = spelling
                    && let Ok(task) = Uuid::try_parse(spelling)
                {
                    let subscription = match self.subscribe {
                        Subscribe::Pattern => self.pattern_subscription,
                        Subscribe::Task => {
                            self.wanted.get(spelling).and_then(|wanted| wanted.subscription)
                        }
                    };
                    self.events.push_back(Event::Published {
                        task,
                        subscription: subscription.unwrap_or(Subscription::UNKNOWN),
                        payload,
                    });
                }
            }
            Incoming::Subscribed { name } => match self.subscribe {
                Subscribe::Pattern => {
                    let since = self.clock.map_or(0, |(clock, _)| clock);
                    self.pattern_subscription = Some(self.new_subscription(since));
                    self.come_up(role, now);
                }
                Subscribe::Task => self.confirm(&name),
            },
            Incoming::Unsubscribed { .. } => {
                self.unconfirmed.pop_front();
            }
            Incoming::Reply(reply) => self.handle_reply(role, reply, now),
            Incoming::Other => {}
        }
    }

    fn handle_reply(&mut self, role: RedisRole, reply: Value, now: Moment) {
        let expected = self.connection_mut(role).expected.pop_front();
        let refusal = match &reply {
            Value::ServerError(error) => {
                Some((error.code().to_owned(), error.details().unwrap_or("").to_owned()))
            }
            _ => None,
        };
        match (expected, refusal) {
            // Subscribing has no reply but a refusal.
            (Some(PendingReply::Login) | None, Some((code, details))) => {
                self.fail(role, &format!("it refused us: {code} {details}"), now);
            }
            (Some(PendingReply::Ready), Some((code, details))) if code != "NOPERM" => {
                self.fail(role, &format!("it refused us: {code} {details}"), now);
            }
            (Some(PendingReply::Ready), _) => self.come_up(role, now),
            (Some(PendingReply::Clock), None) => {
                self.clock = clock(reply).map(|clock| (clock, now))
            }
            (Some(PendingReply::Clock), Some(_)) => self.clock = None,
            (Some(PendingReply::Script), None) => {
                self.script = resp::bytes(Some(reply)).map_or(Script::Refused, Script::Loaded);
            }
            (Some(PendingReply::Script), Some((code, details))) => {
                self.script = Script::Refused;
                self.drop_stores();
                self.report(format!(
                    "results are not kept in Redis, it does not take the script: {code} {details}"
                ));
            }
            (Some(PendingReply::Stored(stores)), Some((code, _))) if code == "NOSCRIPT" => {
                self.store_again(stores);
                if matches!(self.script, Script::Loaded(_)) {
                    self.script = Script::Unknown;
                }
            }
            (Some(PendingReply::Stored(stores)), Some((code, details))) => {
                self.dropped += stores.len() as u64;
                self.report(format!("results are not kept in Redis: {code} {details}"));
            }
            (Some(PendingReply::Stored(_)), None) => {
                if let Value::Int(refused @ 1..) = reply {
                    self.dropped += refused as u64;
                    self.report("some results are not kept in Redis: their task has too many or too large ones".into());
                }
            }
            (Some(PendingReply::Kept), None) => {
                let kept = kept(reply);
                if let Some(PendingReply::Set(_, slot)) =
                    self.connection_mut(role).expected.front_mut()
                {
                    *slot = kept;
                }
            }
            (Some(PendingReply::Kept), Some((code, details))) => {
                self.report(format!("kept results cannot be read from Redis: {code} {details}"));
            }
            (Some(PendingReply::Set(task, kept)), refusal) => {
                if let Some((code, details)) = refusal {
                    self.report(format!(
                        "results that workers set cannot be read from Redis: {code} {details}"
                    ));
                }
                let set = match reply {
                    Value::Array(items) => {
                        items.into_iter().filter_map(|item| resp::bytes(Some(item))).collect()
                    }
                    _ => Vec::new(),
                };
                // Another gateway may have stored what is still on its way to our subscription. What is kept is told once we have heard as
                // much, so that nothing overtakes anything.
                if self.subscriber.is_up() && !(kept.is_empty() && set.is_empty()) {
                    self.subscriber.ask(now, PendingReply::Barrier(task, kept, set), &[b"PING"]);
                } else {
                    self.events.push_back(Event::LookedUp { task, kept, set });
                }
            }
            (Some(PendingReply::Barrier(task, kept, set)), _) => {
                self.events.push_back(Event::LookedUp { task, kept, set });
            }
            (Some(PendingReply::Login | PendingReply::Any | PendingReply::Forgotten) | None, _) => {
            }
        }
    }

    fn come_up(&mut self, role: RedisRole, now: Moment) {
        let target = self.connection(role).target;
        if self.other(role).is_some_and(|other| other != target) {
            // The other role got up elsewhere meanwhile. What is heard on one server is not kept on another.
            self.lose(role, ConnectionState::Down { retry_at: now });
            return self.dial(role, now);
        }
        let connection = self.connection_mut(role);
        let state =
            std::mem::replace(&mut connection.state, ConnectionState::Down { retry_at: now });
        connection.state = match state {
            ConnectionState::Greeting { decoder, .. } => {
                ConnectionState::Up { since: now, ping_at: now + PING_INTERVAL, decoder }
            }
            state => state,
        };
        connection.backoff.reset();
        self.current = target;
        // The server is there again: what the ear hears from now on is to be kept now, not when the hand's pause is over.
        let other = self.connection_mut(if role == RedisRole::Subscriber {
            RedisRole::Store
        } else {
            RedisRole::Subscriber
        });
        if let ConnectionState::Down { retry_at } = &mut other.state {
            *retry_at = (*retry_at).min(now);
        }
        if role == RedisRole::Subscriber && self.subscribe == Subscribe::Task {
            let spellings: Vec<String> = self.wanted.keys().cloned().collect();
            self.request(now, &spellings);
        }
        if self.is_up() {
            self.away_since = None;
            self.is_lost = false;
            self.reported.clear();
            self.events.push_back(Event::Up { address: self.address().to_string() });
        }
    }

    /// The role is lost, or never stood. Everything about it but what it wanted is forgotten.
    fn fail(&mut self, role: RedisRole, why: &str, now: Moment) {
        let was_link_up = self.is_up();
        let other = self.other(role);
        let count = self.targets.len();
        let (current, mut chance) = (self.current, self.chance.fork());
        let connection = self.connection_mut(role);
        let target = connection.target;
        let was_stable = matches!(connection.state, ConnectionState::Up { since, .. } if since + STABLE_AFTER <= now);
        let was_up = connection.is_up();
        let pause = if was_stable {
            Duration::ZERO
        } else {
            connection.backoff.next_wait_jittered(&mut chance)
        };
        self.lose(role, ConnectionState::Down { retry_at: now + pause });
        // Both lines fail on the same target; it counts once.
        if !was_up && other.is_none() && target == current {
            self.current = (target + 1) % count;
        }
        let why = format!("{}: {why}", self.targets[target].address);
        if was_link_up {
            self.away_since = Some(now);
            self.reported.push(why.clone());
            self.events.push_back(Event::Down { why });
        } else {
            self.report(why);
        }
    }

    /// Lets go of the socket and of everything that was under origin on it. Results that Redis has not confirmed go back to the queue.
    fn lose(&mut self, role: RedisRole, state: ConnectionState) {
        let expected = self.connection_mut(role).reset(state);
        match role {
            RedisRole::Subscriber => {
                self.pattern_subscription = None;
                self.unconfirmed.clear();
                self.wanted.values_mut().for_each(|wanted| wanted.subscription = None);
            }
            RedisRole::Store => {
                self.script = Script::Unknown;
                // Asked again when the link is up.
                self.jobs.retain(|job| !matches!(job, Job::LookUp { .. }));
                for expected in expected.into_iter().rev() {
                    if let PendingReply::Stored(stores) = expected {
                        self.store_again(stores);
                    }
                }
            }
        }
        // A dial that nobody has begun yet need not begin.
        self.actions.retain(
            |action| !matches!(action, Action::Dial { role: dialled, .. } if *dialled == role),
        );
        self.actions.push_back(Action::Close { role });
    }

    fn report(&mut self, why: String) {
        const REPORTED_MAX: usize = 32;
        let why: String = why.trim_end().chars().take(300).collect();
        if !self.reported.contains(&why) && self.reported.len() < REPORTED_MAX {
            self.reported.push(why.clone());
            self.events.push_back(Event::Problem { why });
        }
    }
}

#[cfg(test)]
mod tests;
