//! Which worker listens to which control channel of the embedded inbox, and what was published
//! there.
//!
//! A publication ends in this queue with the list of those that hear it, and the gateway hands it
//! out, so that no session is entered from another one's step. Workers are not read while the queue
//! is full.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use crate::proto::resp::matches_glob;

/// Channels and patterns of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 1024;
/// Patterns of one connection: every publication is compared with each.
const PATTERNS_MAX: usize = 64;
/// Bytes of all names of one connection.
pub const NAME_BYTES_MAX: usize = 64 * 1024;
/// Queued publications at which workers are no longer read.
const PUBLICATIONS_MAX: usize = 64;
/// The cost of a subscription besides its name, in bytes.
const SUBSCRIPTION_COST: usize = 128;

/// What a subscription is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum SubscriptionKind {
    Channel,
    Pattern,
}

/// The channels. `K` identifies a connection: no two connections have the same, ever.
pub struct Channels<K> {
    channels: SubscribersByName<K>,
    patterns: SubscribersByName<K>,
    subscribers: BTreeMap<K, Subscriber>,
    publications: VecDeque<Publication<K>>,
}

/// The subscribers of each name.
type SubscribersByName<K> = BTreeMap<Rc<[u8]>, BTreeSet<K>>;

/// The subscriptions of one connection.
#[derive(Default)]
struct Subscriber {
    channels: BTreeSet<Rc<[u8]>>,
    patterns: BTreeSet<Rc<[u8]>>,
    name_bytes: usize,
}

/// A message on its way to subscribers.
#[derive(Debug, PartialEq, Eq)]
pub struct Publication<K> {
    /// Where it was published.
    pub channel: Rc<[u8]>,
    /// What was published.
    pub payload: Rc<[u8]>,
    /// Those that hear it, which may have left, each with the pattern that matched, if it was one.
    pub receivers: Vec<(K, Option<Rc<[u8]>>)>,
}

impl<K> Default for Channels<K> {
    fn default() -> Channels<K> {
        Channels {
            channels: SubscribersByName::new(),
            patterns: SubscribersByName::new(),
            subscribers: BTreeMap::new(),
            publications: VecDeque::new(),
        }
    }
}

impl<K: Copy + Ord> Channels<K> {
    /// Whether `key` may have these besides what it has.
    pub fn has_room(&self, key: K, kind: SubscriptionKind, names: &[Vec<u8>]) -> bool {
        let none = Subscriber::default();
        let subscriber = self.subscribers.get(&key).unwrap_or(&none);
        let own = subscriber.names(kind);
        let new = || names.iter().filter(|name| !own.contains(name.as_slice()));
        let count = new().count();
        let bytes: usize = new().map(Vec::len).sum();
        subscriber.count() + count <= SUBSCRIPTIONS_MAX
            && subscriber.name_bytes.saturating_add(bytes) <= NAME_BYTES_MAX
            && (kind == SubscriptionKind::Channel || own.len() + count <= PATTERNS_MAX)
    }

    /// `key` hears what is published there from now on. Returns how many subscriptions it has.
    pub fn subscribe(&mut self, key: K, kind: SubscriptionKind, name: &[u8]) -> usize {
        let all = match kind {
            SubscriptionKind::Channel => &mut self.channels,
            SubscriptionKind::Pattern => &mut self.patterns,
        };
        let name = all.get_key_value(name).map_or_else(|| name.into(), |(name, _)| Rc::clone(name));
        all.entry(Rc::clone(&name)).or_default().insert(key);
        let subscriber = self.subscribers.entry(key).or_default();
        let bytes = name.len();
        if subscriber.names_mut(kind).insert(name) {
            subscriber.name_bytes += bytes;
        }
        subscriber.count()
    }

    /// `key` hears it no longer, if it did. Returns how many subscriptions it has left.
    pub fn unsubscribe(&mut self, key: K, kind: SubscriptionKind, name: &[u8]) -> usize {
        let Some(subscriber) = self.subscribers.get_mut(&key) else { return 0 };
        if subscriber.names_mut(kind).remove(name) {
            subscriber.name_bytes -= name.len();
            let all = match kind {
                SubscriptionKind::Channel => &mut self.channels,
                SubscriptionKind::Pattern => &mut self.patterns,
            };
            forget(all, key, name);
        }
        let count = subscriber.count();
        if count == 0 {
            self.subscribers.remove(&key);
        }
        count
    }

    /// `key` is gone, or starts over.
    pub fn leave(&mut self, key: K) {
        let Some(subscriber) = self.subscribers.remove(&key) else { return };
        subscriber.channels.iter().for_each(|name| forget(&mut self.channels, key, name));
        subscriber.patterns.iter().for_each(|name| forget(&mut self.patterns, key, name));
    }

    /// What `key` is subscribed to, in the order of the names.
    pub fn names(&self, key: K, kind: SubscriptionKind) -> Vec<Rc<[u8]>> {
        let subscriber = self.subscribers.get(&key);
        subscriber.map_or_else(Vec::new, |it| it.names(kind).iter().cloned().collect())
    }

    /// Bytes of the subscriptions of `key` in memory.
    pub fn held_bytes(&self, key: K) -> usize {
        let subscriber = self.subscribers.get(&key);
        subscriber.map_or(0, |it| it.name_bytes + it.count() * SUBSCRIPTION_COST)
    }

    /// Queues a message for the subscribers of a channel. Returns how many times it is heard: once
    /// for the channel and once for each pattern that matches.
    pub fn publish(&mut self, channel: &[u8], payload: &[u8]) -> usize {
        let of_channel = self.channels.get(channel).into_iter().flatten().map(|key| (*key, None));
        let mut receivers: Vec<_> = of_channel.collect();
        for (pattern, keys) in &self.patterns {
            if matches_glob(pattern, channel) {
                receivers.extend(keys.iter().map(|key| (*key, Some(Rc::clone(pattern)))));
            }
        }
        let count = receivers.len();
        if count > 0 {
            let (channel, payload) = (channel.into(), payload.into());
            self.publications.push_back(Publication { channel, payload, receivers });
        }
        count
    }

    /// The next message. Its receivers may have unsubscribed since.
    pub fn poll_publication(&mut self) -> Option<Publication<K>> {
        self.publications.pop_front()
    }

    /// Whether `key` is still subscribed to the channel, or to the pattern if there is one.
    pub fn is_subscribed(&self, key: K, channel: &[u8], pattern: Option<&[u8]>) -> bool {
        self.subscribers.get(&key).is_some_and(|subscriber| match pattern {
            Some(pattern) => subscriber.patterns.contains(pattern),
            None => subscriber.channels.contains(channel),
        })
    }

    /// Messages that are queued.
    pub fn queued(&self) -> usize {
        self.publications.len()
    }

    /// Whether messages should be taken before more are queued.
    pub fn is_full(&self) -> bool {
        self.publications.len() >= PUBLICATIONS_MAX
    }
}

impl Subscriber {
    fn count(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    fn names(&self, kind: SubscriptionKind) -> &BTreeSet<Rc<[u8]>> {
        match kind {
            SubscriptionKind::Channel => &self.channels,
            SubscriptionKind::Pattern => &self.patterns,
        }
    }

    fn names_mut(&mut self, kind: SubscriptionKind) -> &mut BTreeSet<Rc<[u8]>> {
        match kind {
            SubscriptionKind::Channel => &mut self.channels,
            SubscriptionKind::Pattern => &mut self.patterns,
        }
    }
}

fn forget<K: Copy + Ord>(all: &mut SubscribersByName<K>, key: K, name: &[u8]) {
    if let Some(keys) = all.get_mut(name) {
        keys.remove(&key);
        if keys.is_empty() {
            all.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(channels: &mut Channels<u8>, channel: &str) -> Vec<(u8, Option<String>)> {
        let count = channels.publish(channel.as_bytes(), b"x");
        let receivers = channels.poll_publication().map_or_else(Vec::new, |it| it.receivers);
        assert_eq!(receivers.len(), count);
        let text = |it: Rc<[u8]>| String::from_utf8(it.to_vec()).unwrap();
        receivers.into_iter().map(|(key, pattern)| (key, pattern.map(text))).collect()
    }

    #[test]
    fn publications_reach_channels_and_each_pattern_that_matches() {
        let mut channels = Channels::default();
        assert_eq!(channels.subscribe(1, SubscriptionKind::Channel, b"c:1"), 1);
        assert_eq!(
            channels.subscribe(1, SubscriptionKind::Channel, b"c:1"),
            1,
            "it has that already"
        );
        assert_eq!(channels.subscribe(1, SubscriptionKind::Pattern, b"c:*"), 2);
        assert_eq!(channels.subscribe(2, SubscriptionKind::Pattern, b"c:?"), 1);
        let (star, mark) = (Some("c:*".to_owned()), Some("c:?".to_owned()));
        assert_eq!(heard(&mut channels, "c:1"), [(1, None), (1, star.clone()), (2, mark)]);
        assert_eq!(heard(&mut channels, "c:22"), [(1, star)]);
        assert_eq!(heard(&mut channels, "d"), []);
        assert_eq!(channels.unsubscribe(1, SubscriptionKind::Pattern, b"c:*"), 1);
        assert_eq!(
            channels.unsubscribe(1, SubscriptionKind::Pattern, b"c:1"),
            1,
            "it is a channel"
        );
        assert!(channels.is_subscribed(1, b"c:1", None));
        assert!(!channels.is_subscribed(1, b"c:1", Some(b"c:*")));
    }

    #[test]
    fn nothing_is_left_of_a_connection_that_leaves() {
        let mut channels = Channels::default();
        channels.subscribe(1, SubscriptionKind::Channel, b"c:1");
        channels.subscribe(1, SubscriptionKind::Pattern, b"c:*");
        assert!(channels.held_bytes(1) > 0);
        channels.leave(1);
        channels.subscribe(2, SubscriptionKind::Channel, b"c:1");
        assert_eq!(channels.unsubscribe(2, SubscriptionKind::Channel, b"c:1"), 0);
        assert_eq!((channels.held_bytes(1), channels.publish(b"c:1", b"x")), (0, 0));
        assert!(channels.channels.is_empty() && channels.patterns.is_empty());
        assert!(channels.subscribers.is_empty() && channels.queued() == 0);
    }

    #[test]
    fn subscriptions_of_a_connection_are_bounded() {
        let names = |count: usize, length: usize| -> Vec<Vec<u8>> {
            (0..count).map(|number| format!("{number:0length$}").into_bytes()).collect()
        };
        let mut channels = Channels::default();
        for (kind, count, length, has_room) in [
            (SubscriptionKind::Channel, SUBSCRIPTIONS_MAX, 4, true),
            (SubscriptionKind::Channel, SUBSCRIPTIONS_MAX + 1, 4, false),
            (SubscriptionKind::Pattern, PATTERNS_MAX, 4, true),
            (SubscriptionKind::Pattern, PATTERNS_MAX + 1, 4, false),
            (SubscriptionKind::Channel, 4, NAME_BYTES_MAX / 4, true),
            (SubscriptionKind::Channel, 4, NAME_BYTES_MAX / 4 + 1, false),
        ] {
            assert_eq!(channels.has_room(1, kind, &names(count, length)), has_room, "{count}");
        }
        for name in names(SUBSCRIPTIONS_MAX, 4) {
            channels.subscribe(1, SubscriptionKind::Channel, &name);
        }
        assert!(
            channels.has_room(1, SubscriptionKind::Channel, &names(1, 4)),
            "it has that already"
        );
        assert!(!channels.has_room(1, SubscriptionKind::Pattern, &names(1, 4)));
        assert!(
            channels.has_room(2, SubscriptionKind::Pattern, &names(1, 4)),
            "another connection"
        );
    }
}
