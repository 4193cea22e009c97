//! One of the two connections to Redis: its state, what it has to send, and the replies it awaits.

#![expect(
    clippy::indexing_slicing,
    reason = "roles index a pair, and lengths come from the buffer itself"
)]

use std::collections::VecDeque;
use std::time::Duration;

use super::pending::PendingReply;
use super::server::Server;
use super::{ANSWER_TIMEOUT, DIAL_TIMEOUT, RedisRole};
use crate::base::backoff::Backoff;
use crate::base::moment::Moment;
use crate::proto::resp::{self, Decoder};

/// The pause before the second dial. It doubles with each further one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two dials.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that was up for this long is dialled again without a pause.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// The interval of the pings.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Sent bytes that may stay at the front of the output while more is appended.
const SENT_MAX: usize = 512 * 1024;
/// The name of the connection in Redis' `CLIENT LIST`.
const NAME: &str = "aivtuber-gateway";

pub(super) struct Connection {
    pub(super) state: ConnectionState,
    /// The place of its server among the link's servers.
    pub(super) server: usize,
    backoff: Backoff,
    output: Vec<u8>,
    sent: usize,
    /// What the replies to come are about, in the order of the commands.
    pub(super) pending: VecDeque<PendingReply>,
    /// When the last byte came, or when the oldest unanswered command was sent if that was later.
    active_at: Moment,
}

pub(super) enum ConnectionState {
    Down { retry_at: Moment },
    Dialing { timeout_at: Moment },
    Greeting { timeout_at: Moment, decoder: Box<Decoder> },
    Up { since: Moment, ping_at: Moment, decoder: Box<Decoder> },
}

/// What [`Connection::handle_time`] found to be due.
pub(super) enum Due {
    Nothing,
    Dial,
    Failed(&'static str),
}

impl Connection {
    /// Bytes in memory: output, and a value that has not come whole.
    pub(super) fn held_bytes(&self) -> usize {
        let unfinished = match &self.state {
            ConnectionState::Greeting { decoder, .. } | ConnectionState::Up { decoder, .. } => {
                decoder.held_bytes()
            }
            ConnectionState::Down { .. } | ConnectionState::Dialing { .. } => 0,
        };
        self.output.capacity() + unfinished
    }

    pub(super) fn new(now: Moment) -> Connection {
        Connection {
            state: ConnectionState::Down { retry_at: now },
            server: 0,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            output: Vec::new(),
            sent: 0,
            pending: VecDeque::new(),
            active_at: now,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, ConnectionState::Up { .. })
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, ConnectionState::Down { .. })
    }

    /// The decoder of its replies, while a socket is open. The bytes that are about to be decoded
    /// prove that the server is alive.
    pub(super) fn decoder(&mut self, now: Moment) -> Option<&mut Decoder> {
        self.active_at = now;
        match &mut self.state {
            ConnectionState::Greeting { decoder, .. } | ConnectionState::Up { decoder, .. } => {
                Some(decoder)
            }
            ConnectionState::Down { .. } | ConnectionState::Dialing { .. } => None,
        }
    }

    /// Begins to dial `server`.
    pub(super) fn dial(&mut self, server: usize, now: Moment) {
        self.server = server;
        self.state = ConnectionState::Dialing { timeout_at: now + DIAL_TIMEOUT };
    }

    /// The socket is open: logs in. Subscriptions follow.
    pub(super) fn begin_greeting(
        &mut self,
        role: RedisRole,
        server: &Server,
        value_bytes_max: usize,
        now: Moment,
    ) {
        self.state = ConnectionState::Greeting {
            timeout_at: now + DIAL_TIMEOUT,
            decoder: Box::new(Decoder::new(value_bytes_max)),
        };
        self.active_at = now;
        let user = server.user.as_deref().unwrap_or("default");
        let password = server.password.as_deref();
        if server.uses_resp3 {
            let mut hello = vec![&b"HELLO"[..], b"3"];
            if let Some(password) = password {
                hello.extend([&b"AUTH"[..], user.as_bytes(), password.as_bytes()]);
            }
            self.send(now, PendingReply::Login, &hello);
        } else if let Some(password) = password {
            // Without a user name in the form that servers before version 6 know as well.
            let auth = [&b"AUTH"[..], user.as_bytes(), password.as_bytes()];
            let auth = if server.user.is_some() { &auth[..] } else { &[auth[0], auth[2]] };
            self.send(now, PendingReply::Login, auth);
        }
        self.send(now, PendingReply::Ignored, &[b"CLIENT", b"SETNAME", NAME.as_bytes()]);
        // Channels belong to no database.
        if role == RedisRole::Store && server.database != 0 {
            let database = server.database.to_string();
            self.send(now, PendingReply::Login, &[b"SELECT", database.as_bytes()]);
        }
    }

    /// The greeting is complete.
    pub(super) fn come_up(&mut self, now: Moment) {
        let state = std::mem::replace(&mut self.state, ConnectionState::Down { retry_at: now });
        self.state = match state {
            ConnectionState::Greeting { decoder, .. } => {
                ConnectionState::Up { since: now, ping_at: now + PING_INTERVAL, decoder }
            }
            state => state,
        };
        self.backoff.reset();
    }

    /// Dials at `now` at the latest, if it waits for its next dial.
    pub(super) fn dial_sooner(&mut self, now: Moment) {
        if let ConnectionState::Down { retry_at } = &mut self.state {
            *retry_at = (*retry_at).min(now);
        }
    }

    /// The pause before the next dial.
    pub(super) fn next_pause(&mut self, now: Moment, rng: &mut fastrand::Rng) -> Duration {
        match self.state {
            // Each moment without a subscription may lose a result.
            ConnectionState::Up { since, .. } if since + STABLE_AFTER <= now => Duration::ZERO,
            _ => self.backoff.next_wait_jittered(rng),
        }
    }

    /// Forgets the socket and everything under way on it. Returns the replies that will not come.
    pub(super) fn reset(&mut self, retry_at: Moment) -> VecDeque<PendingReply> {
        self.state = ConnectionState::Down { retry_at };
        self.output = Vec::new();
        self.sent = 0;
        std::mem::take(&mut self.pending)
    }

    pub(super) fn handle_time(&mut self, now: Moment) -> Due {
        let silent_since = self.pending.front().map(|_| self.active_at);
        match &mut self.state {
            ConnectionState::Down { retry_at } if *retry_at <= now => return Due::Dial,
            ConnectionState::Dialing { timeout_at } if *timeout_at <= now => {
                return Due::Failed("no connection within 5 s");
            }
            ConnectionState::Greeting { timeout_at, .. } if *timeout_at <= now => {
                return Due::Failed("no answer within 5 s");
            }
            ConnectionState::Up { .. }
                if silent_since.is_some_and(|since| since + ANSWER_TIMEOUT <= now) =>
            {
                return Due::Failed("silent for 5 s");
            }
            ConnectionState::Up { ping_at, .. } if *ping_at <= now => {
                *ping_at = now + PING_INTERVAL;
                self.send(now, PendingReply::Ping, &[b"PING"]);
            }
            _ => {}
        }
        Due::Nothing
    }

    /// When [`Connection::handle_time`] has something to do.
    pub(super) fn deadline(&self) -> Moment {
        match &self.state {
            ConnectionState::Down { retry_at } => *retry_at,
            ConnectionState::Dialing { timeout_at }
            | ConnectionState::Greeting { timeout_at, .. } => *timeout_at,
            ConnectionState::Up { ping_at, .. } if self.pending.is_empty() => *ping_at,
            ConnectionState::Up { ping_at, .. } => (*ping_at).min(self.active_at + ANSWER_TIMEOUT),
        }
    }

    /// Sends a command that gets one reply.
    pub(super) fn send(&mut self, now: Moment, pending: PendingReply, command: &[&[u8]]) {
        self.send_unanswered(command);
        self.expect(now, pending);
    }

    /// Sends a command that gets no reply: subscriptions are confirmed by messages.
    pub(super) fn send_unanswered(&mut self, command: &[&[u8]]) {
        resp::pack(&mut self.output, command);
    }

    /// Sends a command of many arguments.
    pub(super) fn send_packed(&mut self, now: Moment, pending: PendingReply, command: &redis::Cmd) {
        command.write_packed_command(&mut self.output);
        self.expect(now, pending);
    }

    fn expect(&mut self, now: Moment, pending: PendingReply) {
        if self.pending.is_empty() {
            self.active_at = now;
        }
        self.pending.push_back(pending);
    }

    /// Bytes for the socket.
    pub(super) fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// `n` bytes of the output have been written.
    pub(super) fn handle_written(&mut self, n: usize) {
        self.sent += n;
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        } else if self.sent >= SENT_MAX {
            // While Redis is slower than the gateway the output never becomes empty, so the sent
            // part has to be removed before it is all.
            self.output.drain(..std::mem::take(&mut self.sent));
        }
    }
}
