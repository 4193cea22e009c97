//! Which channels are subscribed to, and since when.

use redis::Value;
use uuid::Uuid;

use super::{Event, Link, Subscribe};
use crate::base::moment::Moment;
use crate::proto::resp;
use crate::service::tasks::Subscription;

#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) task: Uuid,
    /// The number of the latest request for it.
    pub(super) request: u64,
    /// Redis' clock before that request.
    pub(super) since: u64,
    pub(super) subscription: Option<Subscription>,
}

impl Link {
    /// The ear that hears results of `task`, if one does at this moment.
    pub fn subscription(&self, task: Uuid) -> Option<Subscription> {
        match self.subscribe {
            Subscribe::Pattern => self.pattern_subscription,
            Subscribe::Task => {
                self.wanted
                    .get(task.hyphenated().encode_lower(&mut Uuid::encode_buffer()) as &str)?
                    .subscription
            }
        }
    }

    /// Listens to a task under one spelling of its id. Nothing to do with a pattern.
    pub fn listen(&mut self, task: Uuid, spelling: &str, now: Moment) {
        if self.subscribe == Subscribe::Task {
            self.wanted
                .insert(spelling.into(), Wanted { task, request: 0, since: 0, subscription: None });
            self.request(now, &[spelling.into()]);
        }
    }

    /// Ends what [`Link::listen`] began.
    pub fn unlisten(&mut self, spelling: &str) {
        if self.wanted.remove(spelling).is_some() && self.subscriber.is_up() {
            self.last_request += 1;
            self.unconfirmed.push_back(self.last_request);
            let channel = format!("{}{spelling}", self.prefix);
            self.subscriber.say(&[b"UNSUBSCRIBE", channel.as_bytes()]);
        }
    }

    pub(super) fn new_subscription(&mut self, since: u64) -> Subscription {
        self.last_subscription += 1;
        Subscription { number: self.last_subscription, since }
    }

    /// Subscribes to tasks one by one, in as few commands as will do.
    pub(super) fn request(&mut self, now: Moment, spellings: &[String]) {
        if !self.subscriber.is_up() {
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
            self.subscriber.say(&command);
        }
    }

    /// A subscription to one task is confirmed. It counts if it was the latest request for it.
    pub(super) fn confirm(&mut self, channel: &[u8]) {
        let request = self.unconfirmed.pop_front();
        let spelling =
            channel.strip_prefix(self.prefix.as_bytes()).and_then(|rest| str::from_utf8(rest).ok());
        let number = self.last_subscription + 1;
        if let Some(wanted) = spelling.and_then(|spelling| self.wanted.get_mut(spelling))
            && Some(wanted.request) == request
        {
            self.last_subscription = number;
            wanted.subscription = Some(Subscription { number, since: wanted.since });
            self.events.push_back(Event::Subscribed { task: wanted.task });
        }
    }
}

/// The answer to `TIME` in microseconds.
pub(super) fn clock(reply: Value) -> Option<u64> {
    let Value::Array(parts) = reply else { return None };
    let mut parts = parts
        .into_iter()
        .map(|part| String::from_utf8(resp::bytes(Some(part))?).ok()?.parse::<u64>().ok());
    Some(parts.next()?? * 1_000_000 + parts.next()??)
}
