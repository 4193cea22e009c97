//! Every counter of the gateway, as plain numbers. One thread counts, so nothing here is atomic.
//!
//! Frames and bytes of a session are added here when it ends. Until then they are counted in its
//! flows, because a relayed message must not touch another cache line; a report adds the counts of
//! open sessions to those here (`report::Snapshot::add_live`). A session must move from one to the
//! other at once, or a counter would run backwards.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Frames and bytes in one direction. Bytes are counted on the wire after the handshake, frame
/// heads included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
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

/// Frames and bytes in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
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

/// All counters since the start. Plain ones are public and counted where it happens:
/// `stats.pings_sent += 1`.
#[derive(Debug, Default)]
pub struct Stats {
    /// Client connections accepted.
    pub connections_accepted: u64,
    /// Those that have not ended. The only number here that also decreases.
    pub connections_open: u64,
    /// Pings sent to idle peers.
    pub pings_sent: u64,
    /// Pongs that answered these pings and were not relayed.
    pub pongs_swallowed: u64,
    /// Messages larger than `max_message`. Each ended its connection.
    pub messages_too_big: u64,
    /// Times accepting paused because connections or file descriptors ran out.
    pub accept_pauses: u64,
    /// Results delivered to clients.
    pub results_delivered: u64,
    /// Kept results evicted before they expired, for lack of memory.
    pub results_evicted: u64,
    /// Times the connections to Redis were established.
    pub redis_connects: u64,
    /// Bytes of audio sent to clients.
    pub audio_bytes: u64,
    /// Log lines that could not be written.
    pub log_lines_lost: u64,
    refused: BTreeMap<&'static str, u64>,
    http: BTreeMap<u16, u64>,
    routes: BTreeMap<Box<str>, RouteStats>,
    backends: BTreeMap<Box<str>, DialStats>,
}

/// The counters of one route.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RouteStats {
    /// WebSockets opened, that is, answered with 101.
    pub upgrades: u64,
    /// Those that ended, by the name of their `CloseReason`.
    pub closed: BTreeMap<&'static str, u64>,
    /// Traffic of those that ended.
    pub traffic: BothWays,
}

/// The counters of one backend.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct DialStats {
    pub ok: u64,
    pub failed: u64,
}

impl Stats {
    /// All at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a refused connection. `reason` is a label such as `Refusal::word`.
    pub fn count_refused(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// Counts an HTTP response, 101 included.
    pub fn count_http(&mut self, status: u16) {
        *self.http.entry(status).or_default() += 1;
    }

    /// Counts a WebSocket that was opened on `route`.
    pub fn count_upgrade(&mut self, route: &str) {
        entry(&mut self.routes, route).upgrades += 1;
    }

    /// Counts a WebSocket on `route` that ended for `reason` after carrying `traffic`.
    pub fn count_closed(&mut self, route: &str, reason: &'static str, traffic: BothWays) {
        let route = entry(&mut self.routes, route);
        *route.closed.entry(reason).or_default() += 1;
        route.traffic += traffic;
    }

    /// Counts a finished attempt to reach `backend`, given by the public text of its URL.
    pub fn count_dial(&mut self, backend: &str, is_ok: bool) {
        let dials = entry(&mut self.backends, backend);
        if is_ok {
            dials.ok += 1;
        } else {
            dials.failed += 1;
        }
    }

    /// Refused connections by reason.
    pub fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// HTTP responses by status.
    pub fn http(&self) -> &BTreeMap<u16, u64> {
        &self.http
    }

    /// Counters by route name, those of routes that a reload removed included.
    pub fn routes(&self) -> &BTreeMap<Box<str>, RouteStats> {
        &self.routes
    }

    /// Counters by backend.
    pub fn backends(&self) -> &BTreeMap<Box<str>, DialStats> {
        &self.backends
    }
}

/// Like `map.entry(key).or_default()`, but allocates only for a new key.
fn entry<'m, V: Default>(map: &'m mut BTreeMap<Box<str>, V>, key: &str) -> &'m mut V {
    if !map.contains_key(key) {
        map.insert(key.into(), V::default());
    }
    map.get_mut(key).expect("the key was just inserted")
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
    fn refusals_and_responses_are_counted_by_kind() {
        let mut stats = Stats::new();
        for status in [200, 404, 200] {
            stats.count_http(status);
        }
        stats.count_refused("full");
        assert_eq!(*stats.http(), BTreeMap::from([(200, 2), (404, 1)]));
        assert_eq!(*stats.refused(), BTreeMap::from([("full", 1)]));
    }
}
