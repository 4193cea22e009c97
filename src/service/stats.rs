//! Every counter of the gateway, as plain numbers. One thread counts, so nothing here is atomic.
//!
//! Frames and bytes of a session are added here when it ends. Until then they are counted in its
//! flows, because a relayed message must not touch another cache line; a report adds the counts of
//! open sessions to those here (`report::Live`). A session must move from one to the other at once,
//! or a counter would run backwards. A walk over all open sessions takes several turns, so sessions
//! may end after they were visited; what was added for those meanwhile is kept in a [`Walk`].

use super::histogram::Histogram;
use super::tasks::Milestones;
use crate::proto::ws::Opcode;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

/// Close codes that are counted one by one: those of RFC 6455, section 7.4.1, those that IANA has
/// registered since, and the gateway's own. A peer may send any other, and labels must be bounded.
const KNOWN_CODES: [u16; 16] = [
    1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3003, 4004, 4008,
];

/// Of this many turns of the loop one is measured: reading the clock once more costs something.
pub const TURNS_PER_SAMPLE: u32 = 64;

/// Frames and bytes in one direction. Frames are whole frames, Close frames included. Bytes are
/// counted on the wire after the handshake, frame heads included.
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

impl SubAssign for Traffic {
    fn sub_assign(&mut self, other: Self) {
        self.frames -= other.frames;
        self.bytes -= other.bytes;
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

impl SubAssign for BothWays {
    fn sub_assign(&mut self, other: Self) {
        self.from_client -= other.from_client;
        self.to_client -= other.to_client;
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
    /// TLS handshakes of clients that were completed.
    pub tls_handshakes: u64,
    /// Those that failed or were given up.
    pub tls_handshakes_failed: u64,
    /// Results delivered to clients.
    pub results_delivered: u64,
    /// Kept results evicted before they expired, for lack of memory.
    pub results_evicted: u64,
    /// Results that were not kept because their task held half of `max_retained` already.
    pub results_not_kept: u64,
    /// Tasks that were stopped.
    pub tasks_stopped: u64,
    /// Results that came after their task had been stopped.
    pub results_after_stop: u64,
    /// Sessions that were ended because memory was short.
    pub sessions_shed: u64,
    /// Times the connections to Redis were established.
    pub redis_connects: u64,
    /// Chunks of speech taken from workers.
    pub speech_chunks: u64,
    /// Bytes of those chunks.
    pub speech_bytes: u64,
    /// Messages of workers that could not be used.
    pub speech_errors: u64,
    /// Bytes of audio sent to clients.
    pub audio_bytes: u64,
    /// Log lines that could not be written.
    pub log_lines_lost: u64,
    /// The system's number of the error for which the log cannot be written at present, or 0.
    pub log_error_code: i32,
    /// Results that were delivered without the audio that they name.
    pub results_without_audio: u64,
    times: Times,
    reloads: Reloads,
    refused: BTreeMap<&'static str, u64>,
    ended: BTreeMap<Box<str>, BTreeMap<EndedAs, u64>>,
    close_codes: BTreeMap<(&'static str, Option<u16>), u64>,
    handshakes_failed: BTreeMap<Box<str>, BTreeMap<&'static str, u64>>,
    audio_failed: BTreeMap<&'static str, u64>,
    http: BTreeMap<u16, u64>,
    requests: BTreeMap<Box<str>, BTreeMap<&'static str, u64>>,
    routes: BTreeMap<Box<str>, RouteStats>,
    backends: BTreeMap<Box<str>, DialStats>,
    walk: Option<Walk>,
}

/// Reason, party, and whether it is a failure.
type EndedAs = (&'static str, &'static str, bool);

/// How long things took.
#[derive(Debug, Default)]
pub struct Times {
    /// To establish a connection to a backend.
    pub dial: Histogram,
    /// From then to the backend's 101.
    pub handshake: Histogram,
    /// A turn of the loop; one in [`TURNS_PER_SAMPLE`] is measured.
    pub turn: Histogram,
    /// How late the loop was for a deadline.
    pub loop_lag: Histogram,
    /// From a task's first result to the first text that a client was sent.
    pub publish_to_text: Histogram,
    /// The same to the first chunk of audio.
    pub publish_to_first_audio: Histogram,
    /// From a task's first client to the first text that it was sent.
    pub connect_to_result: Histogram,
}

/// Configurations that were read again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reloads {
    /// Taken into use.
    pub ok: u64,
    /// Of no use.
    pub failed: u64,
    /// The last one was of no use.
    pub has_last_failed: bool,
}

/// Frames of a route that have begun, by opcode. Sessions count here, because only the route is
/// shared by all of them and known to each; a relay counts many frames at once.
#[derive(Debug, Default)]
pub struct FrameCounts {
    from_client: [Cell<u64>; OPCODES.len()],
    to_client: [Cell<u64>; OPCODES.len()],
}

/// The labels of opcodes, in the order of [`FrameCounts`].
const OPCODES: [&str; 7] = ["continuation", "text", "binary", "close", "ping", "pong", "reserved"];

impl FrameCounts {
    /// Counts frames of a client.
    pub fn count_from_client(&self, opcode: Opcode, n: u64) {
        count_opcode(&self.from_client, opcode, n);
    }

    /// Counts frames to a client.
    pub fn count_to_client(&self, opcode: Opcode, n: u64) {
        count_opcode(&self.to_client, opcode, n);
    }

    /// Every count: direction, opcode, frames.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let directions = [("from_client", &self.from_client), ("to_client", &self.to_client)];
        directions.into_iter().flat_map(|(direction, counts)| {
            let counts = OPCODES.iter().zip(counts);
            counts.map(move |(opcode, count)| (direction, *opcode, count.get()))
        })
    }
}

fn count_opcode(counts: &[Cell<u64>; OPCODES.len()], opcode: Opcode, n: u64) {
    if let Some(count) = counts.get(usize::from(opcode.class())) {
        count.set(count.get() + n);
    }
}

/// How a connection ended, as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct EndedCount<'e> {
    /// Its route, `http` or `inbox`.
    pub route: &'e str,
    /// The word of its `CloseReason`.
    pub reason: &'static str,
    /// The word of the `Party` that ended it.
    pub by: &'static str,
    /// Something went wrong.
    pub is_failure: bool,
    /// The code in the Close frame that the client saw or sent, if one passed.
    pub client_code: Option<u16>,
    /// The same of the backend.
    pub backend_code: Option<u16>,
}

/// A walk over the slots of all sessions that is under way.
#[derive(Debug, Default)]
pub struct Walk {
    /// Slots before this one have been visited.
    reached: usize,
    /// Traffic, by route, of sessions that ended after their visit.
    ended: BTreeMap<Box<str>, BothWays>,
}

/// The counters of one route.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RouteStats {
    /// WebSockets opened, that is, answered with 101.
    pub upgrades: u64,
    /// WebSockets that have not ended, those whose backend has not answered yet included.
    pub open: u64,
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

    /// Counts what a milestone of a task has completed.
    pub fn observe_task(&mut self, milestones: Milestones) {
        let times = [
            (milestones.publish_to_text, &mut self.times.publish_to_text),
            (milestones.publish_to_first_audio, &mut self.times.publish_to_first_audio),
            (milestones.connect_to_result, &mut self.times.connect_to_result),
        ];
        for (time, histogram) in times {
            if let Some(time) = time {
                histogram.observe(time);
            }
        }
    }

    /// Counts a configuration that was read again.
    pub fn count_reload(&mut self, is_ok: bool) {
        let Reloads { ok, failed, has_last_failed } = &mut self.reloads;
        *(if is_ok { ok } else { failed }) += 1;
        *has_last_failed = !is_ok;
    }

    /// How long things took, to be added to.
    pub fn time(&mut self) -> &mut Times {
        &mut self.times
    }

    /// How long things took.
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Configurations that were read again.
    pub fn reloads(&self) -> Reloads {
        self.reloads
    }

    /// Counts a connection beyond a `limit`, named in one word.
    pub fn count_refused(&mut self, limit: &'static str) {
        *self.refused.entry(limit).or_default() += 1;
    }

    /// Counts a connection of any kind that ended, apart from HTTP connections that were answered.
    pub fn count_ended(&mut self, ended: &EndedCount<'_>) {
        count(&mut self.ended, ended.route, |reasons| {
            *reasons.entry((ended.reason, ended.by, ended.is_failure)).or_default() += 1;
        });
        for (side, code) in [("client", ended.client_code), ("backend", ended.backend_code)] {
            if let Some(code) = code {
                let code = KNOWN_CODES.contains(&code).then_some(code);
                *self.close_codes.entry((side, code)).or_default() += 1;
            }
        }
    }

    /// Counts an audio file that was not sent, or not to its end.
    pub fn count_audio_failed(&mut self, reason: &'static str) {
        *self.audio_failed.entry(reason).or_default() += 1;
    }

    /// Counts a client on `route` that did not get what it connected for: a backend, or results.
    pub fn count_handshake_failed(&mut self, route: &str, reason: &'static str) {
        count(&mut self.handshakes_failed, route, |reasons| {
            *reasons.entry(reason).or_default() += 1;
        });
    }

    /// Counts an HTTP response, 101 included.
    pub fn count_http(&mut self, status: u16) {
        *self.http.entry(status).or_default() += 1;
    }

    /// Counts a request that was answered with `status` on `route`, which is for plain HTTP.
    pub fn count_request(&mut self, route: &str, status: u16) {
        let class = match status {
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "other",
        };
        count(&mut self.requests, route, |classes| *classes.entry(class).or_default() += 1);
    }

    /// Requests on routes for plain HTTP, by route and by class of their answers' statuses.
    pub fn requests(&self) -> &BTreeMap<Box<str>, BTreeMap<&'static str, u64>> {
        &self.requests
    }

    /// Counts a WebSocket that was opened on `route`.
    pub fn count_upgrade(&mut self, route: &str) {
        count(&mut self.routes, route, |route| route.upgrades += 1);
    }

    /// Counts a client that is to have a WebSocket on `route`, as open.
    pub fn count_open(&mut self, route: &str) {
        count(&mut self.routes, route, |route| route.open += 1);
    }

    /// The opposite of [`Stats::count_open`].
    pub fn count_not_open(&mut self, route: &str) {
        count(&mut self.routes, route, |route| route.open -= 1);
    }

    /// Counts a WebSocket on `route`, in `slot`, that ended for `reason` after carrying `traffic`.
    pub fn count_closed(
        &mut self,
        route: &str,
        reason: &'static str,
        traffic: BothWays,
        slot: usize,
    ) {
        if let Some(walk) = &mut self.walk
            && slot < walk.reached
        {
            count(&mut walk.ended, route, |ended| *ended += traffic);
        }
        count(&mut self.routes, route, |route| {
            *route.closed.entry(reason).or_default() += 1;
            route.traffic += traffic;
        });
    }

    /// A walk over all sessions begins, with slot 0.
    pub fn begin_walk(&mut self) {
        self.walk = Some(Walk::default());
    }

    /// The walk has visited all slots before `slot`.
    pub fn walked_to(&mut self, slot: usize) {
        self.walk.get_or_insert_default().reached = slot;
    }

    /// The walk is over. Returns the traffic, by route, that was added here for sessions after the
    /// walk had visited them.
    pub fn end_walk(&mut self) -> BTreeMap<Box<str>, BothWays> {
        self.walk.take().unwrap_or_default().ended
    }

    /// Counts a finished attempt to reach `backend`, given by the public text of its URL.
    pub fn count_dial(&mut self, backend: &str, is_ok: bool) {
        count(&mut self.backends, backend, |dials| match is_ok {
            true => dials.ok += 1,
            false => dials.failed += 1,
        });
    }

    /// Connections that ended, by route, and by how they did.
    pub fn ended(&self) -> &BTreeMap<Box<str>, BTreeMap<EndedAs, u64>> {
        &self.ended
    }

    /// Close codes that passed between the gateway and a side, by side and code; `None`: one that
    /// is not known. Connections whose Close frame had no code are not among them.
    pub fn close_codes(&self) -> &BTreeMap<(&'static str, Option<u16>), u64> {
        &self.close_codes
    }

    /// Refused connections by limit.
    pub fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// Clients that did not get what they connected for, by route and reason.
    pub fn handshakes_failed(&self) -> &BTreeMap<Box<str>, BTreeMap<&'static str, u64>> {
        &self.handshakes_failed
    }

    /// Audio files that were not sent, or not to their end, by reason.
    pub fn audio_failed(&self) -> &BTreeMap<&'static str, u64> {
        &self.audio_failed
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

/// Counts something at `key`. Allocates only for a new one.
fn count<V: Default>(map: &mut BTreeMap<Box<str>, V>, key: &str, count: impl FnOnce(&mut V)) {
    match map.get_mut(key) {
        Some(value) => count(value),
        None => count(map.entry(key.into()).or_default()),
    }
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
        stats.count_closed("input", "done", once, 0);
        stats.count_closed("input", "done", once, 0);
        stats.count_closed("input", "lost", BothWays::default(), 0);
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
    fn walk_remembers_what_ended_behind_it() {
        let bytes =
            |bytes| BothWays { from_client: Traffic { frames: 1, bytes }, ..BothWays::default() };
        let mut stats = Stats::new();
        stats.count_closed("input", "done", bytes(1), 0);
        stats.begin_walk();
        stats.count_closed("input", "done", bytes(2), 0);
        stats.walked_to(10);
        stats.count_closed("input", "done", bytes(4), 10);
        stats.count_closed("input", "done", bytes(8), 9);
        assert_eq!(stats.end_walk(), BTreeMap::from([("input".into(), bytes(8))]));
        stats.count_closed("input", "done", bytes(16), 9);
        assert_eq!(stats.end_walk(), BTreeMap::new());
        assert_eq!(stats.routes()["input"].traffic.from_client.bytes, 31);
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
