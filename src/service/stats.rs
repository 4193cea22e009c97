//! Every counter of the gateway, in one place, as plain numbers: one thread counts, so nothing here is atomic.
//!
//! The surprising thing: frames and bytes are added when a session ENDS. While it lives its flows carry its counts, since a
//! relayed message must not reach for a second cache line; a report adds those of the living to the ones here
//! (`report::RouteView::live`). A session must leave the living and be added here in one go, or a counter would run backwards.

use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Frames and bytes one way. Bytes are those on the wire behind the handshake, frame heads included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub frames: u64,
    pub bytes: u64,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

/// Frames and bytes both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BothWays {
    pub from_client: Traffic,
    pub to_client: Traffic,
}

impl AddAssign for BothWays {
    fn add_assign(&mut self, other: Self) {
        self.from_client += other.from_client;
        self.to_client += other.to_client;
    }
}

/// All counters since the start. Simple ones are counted where it happens (`stats.pings_sent += 1`).
#[derive(Debug, Default)]
pub struct Stats {
    /// Client connections that were let in.
    pub connections_accepted: u64,
    /// Of these, the ones that have not ended; the only number here that also goes down.
    pub connections_open: u64,
    /// Pings that the gateway sent to silent sides.
    pub pings_sent: u64,
    /// Answers to them, which are not relayed.
    pub pongs_swallowed: u64,
    /// Messages over `max_message`, each of which ended its connection.
    pub messages_too_big: u64,
    /// How often accepting was paused for want of connections or descriptors.
    pub accept_pauses: u64,
    /// Results that were told to a client.
    pub results_delivered: u64,
    /// Results that were let go before their time, for lack of room.
    pub results_evicted: u64,
    /// How often the link to Redis came up.
    pub redis_connects: u64,
    /// Bytes of audio that were sent.
    pub audio_bytes: u64,
    /// Lines that the log could not take.
    pub log_lines_lost: u64,
    refused: BTreeMap<&'static str, u64>,
    http: BTreeMap<u16, u64>,
    routes: BTreeMap<Box<str>, RouteStats>,
    backends: BTreeMap<Box<str>, DialStats>,
}

/// The counters of one route.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RouteStats {
    /// WebSockets that were opened, as answered with 101.
    pub upgrades: u64,
    /// Those that ended, by the word of their `CloseReason`.
    pub closed: BTreeMap<&'static str, u64>,
    /// What the ended ones carried.
    pub traffic: BothWays,
}

/// The counters of one backend.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DialStats {
    pub ok: u64,
    pub failed: u64,
}

impl Stats {
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection, or a WebSocket, was refused; `reason` is a word such as `Refusal::word`.
    pub fn count_refused(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// A request was answered with `status`, 101 included.
    pub fn count_http(&mut self, status: u16) {
        *self.http.entry(status).or_default() += 1;
    }

    /// A WebSocket was opened on `route`.
    pub fn count_upgrade(&mut self, route: &str) {
        entry(&mut self.routes, route).upgrades += 1;
    }

    /// A WebSocket on `route` has ended for `reason`, having carried `traffic`.
    pub fn count_closed(&mut self, route: &str, reason: &'static str, traffic: BothWays) {
        let route = entry(&mut self.routes, route);
        *route.closed.entry(reason).or_default() += 1;
        route.traffic += traffic;
    }

    /// A dial to `backend` (its public text) ended.
    pub fn count_dial(&mut self, backend: &str, is_ok: bool) {
        let dials = entry(&mut self.backends, backend);
        if is_ok {
            dials.ok += 1;
        } else {
            dials.failed += 1;
        }
    }

    /// Refusals by reason.
    pub fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// Answers by HTTP status.
    pub fn http(&self) -> &BTreeMap<u16, u64> {
        &self.http
    }

    /// Counters by route name, also of routes that a reload took away.
    pub fn routes(&self) -> &BTreeMap<Box<str>, RouteStats> {
        &self.routes
    }

    /// Counters by backend.
    pub fn backends(&self) -> &BTreeMap<Box<str>, DialStats> {
        &self.backends
    }
}

/// Like `map.entry(key).or_default()`, allocating only for a key that is new.
fn entry<'m, V: Default>(map: &'m mut BTreeMap<Box<str>, V>, key: &str) -> &'m mut V {
    if !map.contains_key(key) {
        map.insert(key.into(), V::default());
    }
    map.get_mut(key).expect("it was just put there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_backends_are_counted_by_name() {
        let mut stats = Stats::new();
        let once = BothWays {
            from_client: Traffic { frames: 1, bytes: 10 },
            to_client: Traffic { frames: 2, bytes: 300 },
        };
        stats.count_upgrade("input");
        stats.count_upgrade("input");
        stats.count_closed("input", "done", once);
        stats.count_closed("input", "done", once);
        stats.count_closed("input", "lost", BothWays::default());
        stats.count_upgrade("output");
        let input = &stats.routes()["input"];
        assert_eq!(input.upgrades, 2);
        assert_eq!(input.closed, BTreeMap::from([("done", 2), ("lost", 1)]));
        assert_eq!(input.traffic.from_client, Traffic { frames: 2, bytes: 20 });
        assert_eq!(input.traffic.to_client, Traffic { frames: 4, bytes: 600 });
        assert_eq!(stats.routes()["output"], RouteStats { upgrades: 1, ..RouteStats::default() });

        stats.count_dial("ws://a/", true);
        stats.count_dial("ws://a/", false);
        stats.count_dial("ws://a/", false);
        assert_eq!(stats.backends()["ws://a/"], DialStats { ok: 1, failed: 2 });
    }

    #[test]
    fn refusals_and_answers_are_counted_by_kind() {
        let mut stats = Stats::new();
        for status in [200, 404, 200] {
            stats.count_http(status);
        }
        stats.count_refused("full");
        assert_eq!(*stats.http(), BTreeMap::from([(200, 2), (404, 1)]));
        assert_eq!(*stats.refused(), BTreeMap::from([("full", 1)]));
    }
}
