//! One connection to Redis: its state, what it has to send, and the replies that are awaited.

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::keep::StoreRequest;
use super::{ANSWER_TIMEOUT, DIAL_TIMEOUT, Link, RedisRole, Subscribe, VALUE_MAX};
use crate::base::backoff::Backoff;
use crate::base::moment::Moment;
use crate::proto::resp::{self, Decoder};
use crate::service::tasks::KeptResult;

/// Pauses between dials.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// What Redis shows in `CLIENT LIST`.
const NAME: &str = "aivtuber-gateway";

pub(super) struct Connection {
    pub(super) state: ConnectionState,
    pub(super) target: usize,
    pub(super) backoff: Backoff,
    pub(super) output: Vec<u8>,
    pub(super) written: usize,
    pub(super) expected: VecDeque<PendingReply>,
    /// When the last byte came, or the oldest open question was asked, whichever is later.
    pub(super) alive_at: Moment,
}

pub(super) enum ConnectionState {
    Down { retry_at: Moment },
    Dialing { give_up_at: Moment },
    Greeting { give_up_at: Moment, decoder: Box<Decoder> },
    Up { since: Moment, ping_at: Moment, decoder: Box<Decoder> },
}

/// What the next reply will be about.
pub(super) enum PendingReply {
    /// An answer that has to be a good one.
    Login,
    /// An answer that does not matter.
    Any,
    Clock,
    /// The end of the greeting.
    Ready,
    Script,
    Stored(Vec<StoreRequest>),
    Kept,
    /// With what the reply before it said is kept.
    Set(Uuid, Vec<KeptResult>),
    /// On the subscription: it has heard everything that was published before these were looked up.
    Barrier(Uuid, Vec<KeptResult>, Vec<Vec<u8>>),
    Forgotten,
}

impl Connection {
    pub(super) fn new(now: Moment) -> Connection {
        Connection {
            state: ConnectionState::Down { retry_at: now },
            target: 0,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            output: Vec::new(),
            written: 0,
            expected: VecDeque::new(),
            alive_at: now,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, ConnectionState::Up { .. })
    }

    /// Sends a command that is answered with one reply.
    pub(super) fn ask(&mut self, now: Moment, expected: PendingReply, command: &[&[u8]]) {
        self.say(command);
        self.expect(now, expected);
    }

    /// Sends a command that is not answered with a reply.
    pub(super) fn say(&mut self, command: &[&[u8]]) {
        resp::pack(&mut self.output, command);
    }

    pub(super) fn expect(&mut self, now: Moment, expected: PendingReply) {
        if self.expected.is_empty() {
            self.alive_at = now;
        }
        self.expected.push_back(expected);
    }

    /// Forgets the socket and all that was under origin on it, which it answers.
    pub(super) fn reset(&mut self, state: ConnectionState) -> VecDeque<PendingReply> {
        self.state = state;
        self.output = Vec::new();
        self.written = 0;
        std::mem::take(&mut self.expected)
    }

    pub(super) fn deadline(&self) -> Moment {
        match &self.state {
            ConnectionState::Down { retry_at } => *retry_at,
            ConnectionState::Dialing { give_up_at }
            | ConnectionState::Greeting { give_up_at, .. } => *give_up_at,
            ConnectionState::Up { ping_at, .. } if self.expected.is_empty() => *ping_at,
            ConnectionState::Up { ping_at, .. } => (*ping_at).min(self.alive_at + ANSWER_TIMEOUT),
        }
    }
}

impl Link {
    pub(super) fn greet(&mut self, role: RedisRole, now: Moment) {
        let target = self.targets[self.connection(role).target].clone();
        let pattern = resp::pattern_for_prefix(&self.prefix);
        let subscribe = self.subscribe;
        let value_max = VALUE_MAX.max(self.retention.max_retained.saturating_mul(2));
        let connection = self.connection_mut(role);
        let state = ConnectionState::Greeting {
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
            connection.ask(now, PendingReply::Login, &hello);
        } else if let Some(password) = password {
            // Without a user name in the origin that servers older than 6 know as well.
            let auth = [&b"AUTH"[..], user.as_bytes(), password.as_bytes()];
            let auth = if target.user.is_some() { &auth[..] } else { &[auth[0], auth[2]] };
            connection.ask(now, PendingReply::Login, auth);
        }
        connection.ask(now, PendingReply::Any, &[b"CLIENT", b"SETNAME", NAME.as_bytes()]);
        match role {
            RedisRole::Subscriber => {
                // Before the subscription: what is stored from here on may be what we are going to hear.
                connection.ask(now, PendingReply::Clock, &[b"TIME"]);
                match subscribe {
                    Subscribe::Pattern => connection.say(&[b"PSUBSCRIBE", pattern.as_bytes()]),
                    Subscribe::Task => connection.ask(now, PendingReply::Ready, &[b"PING"]),
                }
            }
            RedisRole::Store => {
                if target.database != 0 {
                    let database = target.database.to_string();
                    connection.ask(now, PendingReply::Login, &[b"SELECT", database.as_bytes()]);
                }
                connection.ask(now, PendingReply::Ready, &[b"PING"]);
            }
        }
    }
}
