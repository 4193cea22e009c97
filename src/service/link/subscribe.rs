//! Which channels the gateway is subscribed to, and since when.
//!
//! With [`Subscribe::Pattern`] there is one subscription for all tasks. With [`Subscribe::Task`]
//! each task that a client waits for has a channel of its own, one for each spelling of its id.

use std::collections::{HashMap, VecDeque};

use redis::Value;
use uuid::Uuid;

use super::connection::Connection;
use super::{Link, Subscribe};
use crate::base::moment::Moment;
use crate::base::queue;
use crate::proto::resp;
use crate::service::tasks::Subscription;

/// Channels in one `SUBSCRIBE` command.
const CHANNELS_MAX: usize = 1000;

pub(super) struct Subscriptions {
    mode: Subscribe,
    /// What channels begin with.
    prefix: String,
    /// Redis' clock in microseconds, and the moment at which it was read. It is late by the time
    /// that the answer took, which is the safe side: see `Subscription::since`.
    clock: Option<(u64, Moment)>,
    last_number: u32,
    pattern: Option<Subscription>,
    /// When that was confirmed.
    pattern_at: Option<Moment>,
    /// The channels of single tasks, by the spelling of the task's id.
    channels: HashMap<String, Channel>,
    /// Numbers of the requests that Redis has not confirmed, in the order of sending.
    unconfirmed: VecDeque<u64>,
    last_request: u64,
}

struct Channel {
    task: Uuid,
    /// The number of the latest request to subscribe to it.
    request: u64,
    /// Redis' clock before that request.
    since: u64,
    subscription: Option<Subscription>,
}

/// What a confirmation from Redis means.
pub(super) enum Confirmed {
    /// All tasks can be heard.
    Pattern,
    /// This task can be heard.
    Task(Uuid),
    /// A later request for the same channel is still unconfirmed.
    Outdated,
}

impl Subscriptions {
    pub(super) fn new(mode: Subscribe, prefix: &str) -> Subscriptions {
        Subscriptions {
            mode,
            prefix: prefix.to_owned(),
            clock: None,
            last_number: 0,
            pattern: None,
            pattern_at: None,
            channels: HashMap::new(),
            unconfirmed: VecDeque::new(),
            last_request: 0,
        }
    }

    pub(super) fn mode(&self) -> Subscribe {
        self.mode
    }

    /// The subscription by which results of `task` are heard now.
    pub(super) fn current(&self, task: Uuid) -> Option<Subscription> {
        match self.mode {
            Subscribe::Pattern => self.pattern,
            Subscribe::Task => {
                let mut buffer = Uuid::encode_buffer();
                let spelling: &str = task.hyphenated().encode_lower(&mut buffer);
                self.channels.get(spelling)?.subscription
            }
        }
    }

    /// The task whose channel this is, and the subscription by which the message came. Channels of
    /// other programs may begin with the same prefix.
    pub(super) fn task_of(&self, channel: &[u8]) -> Option<(Uuid, Subscription)> {
        let spelling = self.spelling_of(channel)?;
        let task = Uuid::try_parse(spelling).ok()?;
        let subscription = match self.mode {
            Subscribe::Pattern => self.pattern,
            Subscribe::Task => self.channels.get(spelling).and_then(|channel| channel.subscription),
        };
        Some((task, subscription.unwrap_or(Subscription::UNKNOWN)))
    }

    /// The reply to `TIME`, or to the error that came in its place.
    pub(super) fn handle_clock(&mut self, reply: &Value, now: Moment) {
        self.clock = clock(reply).map(|clock| (clock, now));
    }

    /// Subscribes to everything, with a pattern.
    pub(super) fn send_pattern(&self, connection: &mut Connection) {
        let pattern = resp::pattern_for_prefix(&self.prefix);
        connection.send_unanswered(&[b"PSUBSCRIBE", pattern.as_bytes()]);
    }

    /// Subscribes to the channels of all tasks that are waited for.
    pub(super) fn send_channels(&mut self, connection: &mut Connection, now: Moment) {
        let spellings: Vec<String> = self.channels.keys().cloned().collect();
        self.send(connection, now, &spellings);
    }

    /// Subscribes to a task's channel under one spelling of its id.
    pub(super) fn add(
        &mut self,
        task: Uuid,
        spelling: &str,
        connection: &mut Connection,
        now: Moment,
    ) {
        let channel = Channel { task, request: 0, since: 0, subscription: None };
        self.channels.insert(spelling.into(), channel);
        self.send(connection, now, &[spelling.into()]);
    }

    /// Ends what [`Subscriptions::add`] began.
    pub(super) fn remove(&mut self, spelling: &str, connection: &mut Connection) {
        if self.channels.remove(spelling).is_some() && connection.is_up() {
            self.last_request += 1;
            self.unconfirmed.push_back(self.last_request);
            let channel = format!("{}{spelling}", self.prefix);
            connection.send_unanswered(&[b"UNSUBSCRIBE", channel.as_bytes()]);
        }
    }

    /// Redis confirmed a subscription. `name` is the channel or the pattern.
    pub(super) fn handle_subscribed(&mut self, name: &[u8], now: Moment) -> Confirmed {
        if self.mode == Subscribe::Pattern {
            self.last_number += 1;
            let since = self.clock.map_or(0, |(clock, _)| clock);
            self.pattern = Some(Subscription { number: self.last_number, since });
            self.pattern_at = Some(now);
            return Confirmed::Pattern;
        }
        let request = queue::take_first(&mut self.unconfirmed);
        let number = self.last_number + 1;
        let spelling = spelling_of(name, &self.prefix);
        let channel = spelling.and_then(|spelling| self.channels.get_mut(spelling));
        // A client that left and returned leaves three requests under way. The first confirmation
        // does not count, because the unsubscription behind it interrupts what it confirms.
        match channel.filter(|channel| Some(channel.request) == request) {
            Some(channel) => {
                self.last_number = number;
                channel.subscription = Some(Subscription { number, since: channel.since });
                Confirmed::Task(channel.task)
            }
            None => Confirmed::Outdated,
        }
    }

    /// Redis confirmed the end of a subscription.
    pub(super) fn handle_unsubscribed(&mut self) {
        queue::take_first(&mut self.unconfirmed);
    }

    /// The connection is lost, and all subscriptions with it.
    pub(super) fn reset(&mut self) {
        (self.pattern, self.pattern_at) = (None, None);
        self.unconfirmed.clear();
        self.channels.values_mut().for_each(|channel| channel.subscription = None);
    }

    /// Subscribes to single channels, in as few commands as possible.
    fn send(&mut self, connection: &mut Connection, now: Moment, spellings: &[String]) {
        if !connection.is_up() {
            return;
        }
        let since = self.clock.map_or(0, |(clock, at)| clock + (now - at).as_micros() as u64);
        for some in spellings.chunks(CHANNELS_MAX) {
            let mut names = Vec::with_capacity(some.len());
            for spelling in some {
                self.last_request += 1;
                self.unconfirmed.push_back(self.last_request);
                if let Some(channel) = self.channels.get_mut(spelling) {
                    (channel.request, channel.since) = (self.last_request, since);
                }
                names.push(format!("{}{spelling}", self.prefix));
            }
            let mut command = vec![&b"SUBSCRIBE"[..]];
            command.extend(names.iter().map(|name| name.as_bytes()));
            connection.send_unanswered(&command);
        }
    }

    fn spelling_of<'a>(&self, channel: &'a [u8]) -> Option<&'a str> {
        spelling_of(channel, &self.prefix)
    }
}

impl Link {
    /// When the subscription to all tasks began; `None` where each has one of its own.
    pub fn subscribed_at(&self) -> Option<Moment> {
        self.subscriptions.pattern_at
    }
}

fn spelling_of<'a>(channel: &'a [u8], prefix: &str) -> Option<&'a str> {
    str::from_utf8(channel.strip_prefix(prefix.as_bytes())?).ok()
}

/// The reply to `TIME` (seconds and microseconds) in microseconds.
fn clock(reply: &Value) -> Option<u64> {
    let Value::Array(parts) = reply else { return None };
    let mut parts = parts
        .iter()
        .map(|part| String::from_utf8(resp::bytes(Some(part.clone()))?).ok()?.parse::<u64>().ok());
    Some(parts.next()?? * 1_000_000 + parts.next()??)
}
