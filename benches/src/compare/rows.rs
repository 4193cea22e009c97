//! The rows of the comparison: the work, the figures, and the gateway's goals.

use super::beside::{self, Beside, Pressure, WATCHING};
use super::division::{self, Division, Part};
use super::http;
use super::process::{Awake, Process};
use super::run::{Run, Sample};
use super::speech::{self, Feed};
use super::targets::{AUDIO, AUDIO_SMALL, DEAF_PREFIX, Need, Twin};
use crate::Fault;
use crate::load::Way;
use crate::load::results::{fresh_task, published};
use crate::load::work::{self, Echo, Flood, Limits, Observe, Order};
use crate::tls::Handshake;
use std::sync::Arc;

/// A figure of a row.
pub struct Metric {
    pub key: &'static str,
    pub title: &'static str,
    pub digits: usize,
}

/// A goal for one target.
pub struct Goal {
    pub who: &'static str,
    pub metric: &'static str,
    pub limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// At most this many times the best of these targets.
    Times(f64, &'static [&'static str]),
    /// At least this many times that target.
    TimesAtLeast(f64, &'static str),
    /// At most this much more than that target.
    Above(f64, &'static str),
    AtMost(f64),
    AtLeast(f64),
}

pub struct Row {
    pub id: &'static str,
    pub title: &'static str,
    /// What a reader must know to understand the figures.
    pub note: &'static str,
    pub need: Need,
    pub targets: &'static [&'static str],
    /// Whether each round needs a freshly started target.
    pub fresh: bool,
    pub rounds_max: usize,
    pub metrics: &'static [Metric],
    pub goals: &'static [Goal],
    /// Whether system calls are counted in a separate pass.
    pub counts_calls: bool,
    pub run: fn(&mut Run<'_>) -> Result<Sample, Fault>,
}

const RELAYS: &[&str] = &[
    "pipe",
    "splice",
    "haproxy",
    "haproxy-splice",
    "haproxy-64k",
    "nginx",
    "nginx-64k",
    "caddy",
    "gateway",
    "gateway-info",
    "versus",
];
/// For rows that take long or where the peers are of no interest.
const FEW_RELAYS: &[&str] =
    &["pipe", "haproxy", "nginx", "caddy", "gateway", "gateway-info", "versus"];
/// Those whose clients use TLS.
const SECURE: &[&str] = &["haproxy-tls", "nginx-tls", "nginx-64k-tls", "gateway-tls", "versus-tls"];
/// Those that serve files.
const FILES: &[&str] = &["nginx-file", "gateway-http", "versus-http"];
/// Those that pass on requests in plain HTTP.
const PASSED_ON: &[&str] = &[
    "pipe",
    "splice",
    "haproxy",
    "haproxy-splice",
    "nginx",
    "caddy",
    "gateway-http",
    "versus-http",
];
/// The targets of a quick run.
pub const QUICK_TARGETS: &[&str] = &[
    "pipe",
    "splice",
    "haproxy",
    "haproxy-splice",
    "subscriber",
    "copy-64k",
    "copy-256k",
    "nginx-file",
    "gateway",
    "gateway-http",
    "gateway-unix",
    "pipe-unix",
    "haproxy-unix",
    "nginx-unix",
    "haproxy-tls",
    "nginx-tls",
    "gateway-tls",
    "gateway-inbox",
    "gateway-spool",
    "speech",
    "speech-spool",
    "speech-files",
    "uvicorn",
    "gateway-info",
    "gateway-two",
    "gateway-two-here",
    "versus",
    "versus-http",
    "versus-unix",
    "versus-tls",
    "versus-inbox",
    "versus-spool",
];

/// Rows that a quick run skips unless they are named.
pub const NOT_QUICK: &[&str] = &["side-by-side"];

/// In a sample: the share of the time in which the load generator did not have its core.
pub const DISTURBANCE: &str = "disturbance";

const ALWAYS: usize = usize::MAX;
const MIB: f64 = (1 << 20) as f64;
/// Idle pairs in the rows that have them.
const IDLE_PAIRS: u64 = 5000;
/// Enough to judge the balance: by chance the fuller of two has more than 0.6 of them about once in
/// a thousand runs.
const DEALT_CONNECTIONS: u64 = 256;
/// Messages per second beside streams and floods: few, so that these get most of the load
/// generator's core.
const BESIDE_RATE: f64 = 1000.0;
/// Results per second in the flood, and the text of each.
const FLOOD_RATE: f64 = 20_000.0;
const FLOOD_TEXT_BYTES: usize = 400;

macro_rules! metrics {
    ($($key:literal $title:literal $digits:literal),* $(,)?) => {
        &[$(Metric { key: $key, title: $title, digits: $digits }),*]
    };
}

macro_rules! goals {
    ($($who:literal $metric:literal $limit:expr),* $(,)?) => {
        &[$(Goal { who: $who, metric: $metric, limit: $limit }),*]
    };
}

/// Every row, in the order of a full run.
pub const ROWS: &[Row] = &[
    Row {
        id: "echo-64",
        title: "Echo 64 B, 64 connections, one message in flight on each",
        note: "A message is one round trip: two relayed frames. Times are round trips under full load.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/message" 2, "p50" "p50 µs" 0, "p99" "p99 µs" 0, "rate" "messages/s" 0],
        goals: goals![
            "gateway" "cpu" Limit::Times(1.05, &["pipe"]),
            "gateway" "cpu" Limit::Times(0.95, &["haproxy"]),
            "gateway-info" "cpu" LOGGED,
        ],
        counts_calls: true,
        run: |run| echo(run, Echo::new(64, 64)),
    },
    Row {
        id: "echo-1k",
        title: "Echo 1 KiB, 64 connections, one message in flight on each",
        note: "As above.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/message" 2, "p50" "p50 µs" 0, "p99" "p99 µs" 0, "rate" "messages/s" 0],
        goals: goals!["gateway-info" "cpu" LOGGED],
        counts_calls: false,
        run: |run| echo(run, Echo::new(1024, 64)),
    },
    Row {
        id: "echo-64-idle",
        title: "Echo 64 B with and without 5,000 further idle pairs",
        note: "Growth is the cost with them over the cost without, in the same round.",
        need: Need::Relay,
        targets: FEW_RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/message" 2, "cpu_idle" "with idle pairs" 2, "growth" "growth" 3],
        goals: goals!["gateway" "growth" Limit::AtMost(1.05), "gateway-info" "cpu_idle" LOGGED],
        counts_calls: false,
        run: echo_beside_idle,
    },
    Row {
        id: "mixed",
        title: "Echo 64 B, 1,000 messages/s, while four other pairs stream 1 MiB frames down",
        note: "Kept is the streams' rate beside the messages over their rate alone, in the same round.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics![
            "p50" "p50 µs" 0, "p99" "p99 µs" 0, "stream" "streams MB/s" 0, "kept" "kept" 3, "cpu_gb" "CPU s/GB" 3
        ],
        goals: goals![
            "gateway" "p99" Limit::Times(1.0, &["haproxy"]),
            "gateway" "kept" Limit::AtLeast(0.9),
            "gateway-info" "cpu_gb" LOGGED,
        ],
        counts_calls: false,
        run: mixed,
    },
    Row {
        id: "paced",
        title: "4,000 messages/s in all over 1,000 mostly idle connections",
        note: "A message is one round trip of 64 B. The load generator does not sleep; the target does.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/message" 2, "p50" "p50 µs" 1, "p99" "p99 µs" 1],
        goals: goals![
            "gateway" "cpu" Limit::Times(1.10, &["pipe"]),
            "gateway" "cpu" Limit::Times(0.80, &["haproxy"]),
            "gateway" "p50" Limit::Above(10.0, "pipe"),
            "gateway-info" "cpu" LOGGED,
        ],
        counts_calls: true,
        run: |run| echo(run, Echo { rate: Some(4000.0), ..Echo::new(64, 1000) }),
    },
    Row {
        id: "down-64k",
        title: "Stream 64 KiB frames down, 4 pairs",
        note: "GB are 10^9 bytes that passed.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: STREAM_GOALS,
        counts_calls: true,
        run: |run| stream(run, 64 << 10, Way::Down),
    },
    Row {
        id: "down-1m",
        title: "Stream 1 MiB frames down, 4 pairs",
        note: "GB are 10^9 bytes that passed.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: STREAM_GOALS,
        counts_calls: true,
        run: |run| stream(run, 1 << 20, Way::Down),
    },
    Row {
        id: "up-64k",
        title: "Stream 64 KiB frames up, 4 pairs",
        note: "GB are 10^9 bytes that passed.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: STREAM_GOALS,
        counts_calls: true,
        run: |run| stream(run, 64 << 10, Way::Up),
    },
    Row {
        id: "up-1m",
        title: "Stream 1 MiB frames up, 4 pairs",
        note: "GB are 10^9 bytes that passed.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: STREAM_GOALS,
        counts_calls: true,
        run: |run| stream(run, 1 << 20, Way::Up),
    },
    Row {
        id: "echo-64k",
        title: "Echo 64 KiB, 8 connections, one message in flight on each",
        note: "GB count both ways of a message.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: LARGE_METRICS,
        goals: goals!["gateway" "cpu_gb" Limit::Times(0.6, &["haproxy"]), "gateway-info" "cpu_gb" LOGGED],
        counts_calls: true,
        run: |run| echo(run, Echo::new(64 << 10, 8)),
    },
    Row {
        id: "echo-1m",
        title: "Echo 1 MiB, 4 connections, one message in flight on each",
        note: "GB count both ways of a message.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: LARGE_METRICS,
        goals: goals!["gateway" "cpu_gb" Limit::Times(0.6, &["haproxy"]), "gateway-info" "cpu_gb" LOGGED],
        counts_calls: true,
        run: |run| echo(run, Echo::new(1 << 20, 4)),
    },
    Row {
        id: "handshake",
        title: "Connect, upgrade, one message of 64 B, close; 32 at once",
        note: "A handshake is all of that, with the Close frames both ways and the end of the connection.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/handshake" 1, "rate" "handshakes/s" 0],
        goals: goals!["gateway" "cpu" Limit::Times(0.85, &["haproxy"]), "gateway-info" "cpu" LOGGED],
        counts_calls: true,
        run: |run| handshakes(run, Handshake::Full),
    },
    Row {
        id: "idle-memory",
        title: "User-space memory of an idle relayed pair (5,000 pairs)",
        note: "Growth of PSS since the start, over the number of pairs; every round on a target just started.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: true,
        rounds_max: 3,
        metrics: metrics!["memory" "B/pair" 0],
        goals: goals!["gateway" "memory" Limit::AtMost(400.0), "gateway-info" "memory" LOGGED],
        counts_calls: false,
        run: idle_memory,
    },
    Row {
        id: "come-and-go",
        title: "Memory after 10,000 connections came and went",
        note: "PSS over that of the start: two waves of 5,000 open at once, a message on each, all closed.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: true,
        rounds_max: 3,
        metrics: metrics!["growth" "MiB more" 2],
        goals: goals!["gateway" "growth" Limit::AtMost(1.0), "gateway-info" "growth" Limit::AtMost(1.0)],
        counts_calls: false,
        run: come_and_go,
    },
    Row {
        id: "start",
        title: "Binary, start, memory at start",
        note: "The binary alone, without shared libraries. The start runs from the spawn to the first connection taken.",
        need: Need::Relay,
        targets: RELAYS,
        fresh: true,
        rounds_max: ALWAYS,
        metrics: metrics!["binary" "binary MiB" 2, "start" "start ms" 2, "memory" "PSS MiB" 2],
        goals: goals![
            "gateway" "binary" Limit::AtMost(3.6),
            "gateway" "start" Limit::AtMost(10.0),
            "gateway" "memory" Limit::AtMost(3.5),
            "gateway-info" "start" Limit::AtMost(10.0),
            "gateway-info" "memory" Limit::AtMost(3.5),
        ],
        counts_calls: false,
        run: start,
    },
    Row {
        id: "audio",
        title: "Audio out, 64 KiB chunks from a cached file of 8 MiB, 8 clients",
        note: "The copy loops send the same frames; nginx sends the same file over plain HTTP.",
        need: Need::Audio,
        targets: &[
            "copy-64k",
            "copy-256k",
            "nginx-file",
            "gateway",
            "gateway-info",
            "gateway-inbox",
            "versus",
        ],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: goals![
            "gateway" "cpu_gb" Limit::Times(0.6, &["copy-64k", "copy-256k"]),
            "gateway" "cpu_gb" Limit::Times(1.2, &["nginx-file"]),
            "gateway-info" "cpu_gb" LOGGED,
        ],
        counts_calls: true,
        run: audio,
    },
    Row {
        id: "waiting-memory",
        title: "User-space memory of a client that waits for results, before and after 1 MB of audio",
        note: "Growth of PSS since the start, over 2,000 clients.",
        need: Need::Results,
        targets: &["gateway", "gateway-info", "gateway-inbox", "versus"],
        fresh: true,
        rounds_max: 3,
        metrics: metrics!["waiting" "B/client waiting" 0, "served" "B/client after audio" 0],
        goals: goals![
            "gateway" "waiting" Limit::AtMost(500.0),
            "gateway" "served" Limit::AtMost(700.0),
            "gateway-info" "waiting" LOGGED,
            "gateway-info" "served" LOGGED,
        ],
        counts_calls: false,
        run: waiting_memory,
    },
    Row {
        id: "publish",
        title: "From PUBLISH to the client's text frame, 500 results/s",
        note: "Every client gets its result and is closed. Redis and the load generator share a core. No core is ever halted: \
               a loop that gives way to everything else keeps it awake.",
        need: Need::Results,
        targets: &["subscriber", "gateway", "gateway-info", "gateway-inbox", "versus"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["p50" "p50 µs" 1, "p99" "p99 µs" 1, "cpu" "CPU µs/result" 1],
        goals: goals![
            "gateway" "p50" Limit::Above(30.0, "subscriber"),
            "gateway" "p99" Limit::Above(30.0, "subscriber"),
            "gateway-info" "p50" LOGGED,
        ],
        counts_calls: false,
        run: publish,
    },
    Row {
        id: "flood",
        title: "20,000 results/s for clients that never come, echo 64 B beside it at 1,000 messages/s",
        note: "CPU per result is what the flood adds. The run without it publishes as much on channels without subscribers, so \
               that Redis takes as much of the load generator's core, where it gives way to it (nice 19); the embedded inbox is \
               compared with silence.",
        need: Need::Results,
        targets: &["subscriber", "gateway", "gateway-info", "gateway-inbox", "versus"],
        fresh: true,
        rounds_max: 4,
        metrics: metrics![
            "cpu" "CPU µs/result" 2, "memory" "MiB more" 1, "p99_without" "echo p99 µs without" 0, "p99" "with" 0,
            "growth" "growth" 2
        ],
        goals: goals![
            "gateway" "cpu" Limit::AtMost(8.0),
            "gateway" "memory" Limit::AtMost(16.0),
            "gateway" "growth" Limit::AtMost(1.2),
            "gateway-info" "cpu" LOGGED,
            "gateway-inbox" "cpu" Limit::AtMost(8.0),
            "gateway-inbox" "memory" Limit::AtMost(16.0),
            "gateway-inbox" "growth" Limit::AtMost(1.2),
        ],
        counts_calls: false,
        run: flood,
    },
    Row {
        id: "download",
        title: "GET of a cached file of 8 MiB, 8 connections",
        note: "Plain HTTP from both: nginx with sendfile and tcp_nopush, the gateway as GET /audio/{task_id}.",
        need: Need::Audio,
        targets: &["nginx-file", "gateway-inbox", "versus-inbox"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: goals!["gateway-inbox" "cpu_gb" Limit::Times(1.05, &["nginx-file"])],
        counts_calls: true,
        run: download,
    },
    Row {
        id: "ingest",
        title: "Speech pushed as base64, chunks of 64 KiB, 8 workers with a client each",
        note: "GB of audio, decoded. The pipe and the plain gateway relay the same messages to a backend.",
        need: Need::Results,
        targets: &["pipe", "gateway", "gateway-inbox", "versus-inbox", "uvicorn"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: goals![
            "gateway-inbox" "cpu_gb" Limit::Times(3.0, &["pipe"]),
            "gateway-inbox" "cpu_gb" Limit::Times(0.5, &["uvicorn"]),
        ],
        counts_calls: true,
        run: speech::ingest,
    },
    Row {
        id: "growing-streams",
        title: "1,000 files that grow by 20 ms of 24 kHz 16-bit speech 50 times a second",
        note: "A client a file. Several appends may reach it as one chunk.",
        need: Need::Results,
        targets: &["speech-files", "gateway-inbox", "versus-inbox"],
        fresh: true,
        rounds_max: ALWAYS,
        metrics: SPEECH_METRICS,
        goals: goals![
            "gateway-inbox" "cpu" Limit::Times(1.3, &["speech-files"]),
            "gateway-inbox" "memory" Limit::AtMost(2048.0),
        ],
        counts_calls: true,
        run: |run| speech::streams(run, Feed::Files),
    },
    Row {
        id: "ingest-streams",
        title: "1,000 streams of 24 kHz 16-bit speech pushed in 20 ms chunks, kept in files of a folder",
        note: "Binary messages, a worker's connection and a client a stream.",
        need: Need::Results,
        targets: &["speech-spool", "gateway-spool", "versus-spool"],
        fresh: true,
        rounds_max: ALWAYS,
        metrics: SPEECH_METRICS,
        goals: goals![
            "gateway-spool" "cpu" Limit::Times(1.3, &["speech-spool"]),
            "gateway-spool" "memory" Limit::AtMost(2048.0),
        ],
        counts_calls: true,
        run: |run| speech::streams(run, Feed::Ingest),
    },
    Row {
        id: "growing-latency",
        title: "From an append to a file to its client's bytes, 500 a second",
        note: "20 ms of 24 kHz 16-bit speech, ten files. No core is ever halted.",
        need: Need::Results,
        targets: &["speech-files", "gateway-inbox", "versus-inbox"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["p50" "p50 µs" 1, "p99" "p99 µs" 1],
        goals: goals![
            "gateway-inbox" "p50" Limit::Above(30.0, "speech-files"),
            "gateway-inbox" "p99" Limit::Above(300.0, "speech-files"),
        ],
        counts_calls: false,
        run: |run| speech::latency(run, Feed::Files),
    },
    Row {
        id: "ingest-latency",
        title: "From a pushed chunk of speech to its client's bytes, 500 a second",
        note: "20 ms of 24 kHz 16-bit speech in a binary message, ten streams. No core is ever halted.",
        need: Need::Results,
        targets: &["speech", "gateway-inbox", "versus-inbox"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["p50" "p50 µs" 1, "p99" "p99 µs" 1],
        goals: goals![
            "gateway-inbox" "p50" Limit::Above(30.0, "speech"),
            "gateway-inbox" "p99" Limit::Above(300.0, "speech"),
        ],
        counts_calls: false,
        run: |run| speech::latency(run, Feed::Ingest),
    },
    Row {
        id: "unix-echo",
        title: "Echo 64 B as above, to a backend behind a Unix socket",
        note: "Clients come over TCP. `gateway` has its backend behind TCP, in the same rounds.",
        need: Need::Relay,
        targets: &[
            "pipe-unix",
            "haproxy-unix",
            "nginx-unix",
            "gateway-unix",
            "gateway",
            "versus-unix",
        ],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/message" 2, "p50" "p50 µs" 0, "p99" "p99 µs" 0, "rate" "messages/s" 0],
        goals: goals![
            "gateway-unix" "cpu" Limit::Times(0.80, &["gateway"]),
            "gateway-unix" "cpu" Limit::Times(0.85, &["haproxy-unix"]),
            "gateway-unix" "cpu" Limit::Times(0.85, &["nginx-unix"]),
        ],
        counts_calls: true,
        run: |run| echo(run, Echo::new(64, 64)),
    },
    Row {
        id: "files-1k",
        title: "A cached file of 1 KiB, 64 connections, one request in flight on each",
        note: "A file route of the gateway; nginx with `sendfile on`. Connections are kept alive.",
        need: Need::Relay,
        targets: FILES,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: REQUEST_METRICS,
        goals: goals!["gateway-http" "cpu" Limit::Times(1.05, &["nginx-file"])],
        counts_calls: true,
        run: http::small_file,
    },
    Row {
        id: "files-8m",
        title: "A cached file of 8 MiB, 8 connections, one request in flight on each",
        note: "As above. GB are 10^9 bytes of content.",
        need: Need::Relay,
        targets: FILES,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: goals!["gateway-http" "cpu_gb" Limit::Times(1.05, &["nginx-file"])],
        counts_calls: true,
        run: http::large_file,
    },
    Row {
        id: "http-json",
        title: "POST of 1 KiB of JSON, answered with as much, 64 connections, one request in flight on each",
        note: "An HTTP route of the gateway. All targets keep their connections to the backend; nginx does not buffer requests.",
        need: Need::Relay,
        targets: PASSED_ON,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: REQUEST_METRICS,
        goals: goals!["gateway-http" "cpu" Limit::Times(1.0, &["haproxy"])],
        counts_calls: true,
        run: http::json,
    },
    Row {
        id: "http-up",
        title: "POST of 64 MiB, 4 connections, one request in flight on each",
        note: "GB are 10^9 bytes of content. Growth is PSS in the middle of the run over that of the start.",
        need: Need::Relay,
        targets: PASSED_ON,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: LONG_METRICS,
        goals: LONG_GOALS,
        counts_calls: true,
        run: |run| http::long(run, http::Way::Up),
    },
    Row {
        id: "http-down",
        title: "GET of 64 MiB, 4 connections, one request in flight on each",
        note: "As above.",
        need: Need::Relay,
        targets: PASSED_ON,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: LONG_METRICS,
        goals: LONG_GOALS,
        counts_calls: true,
        run: |run| http::long(run, http::Way::Down),
    },
    Row {
        id: "tls-echo-64",
        title: "Echo 64 B with TLS, 64 connections, one message in flight on each",
        note: TLS_NOTE,
        need: Need::Relay,
        targets: SECURE,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/message" 2, "p50" "p50 µs" 0, "p99" "p99 µs" 0, "rate" "messages/s" 0],
        goals: goals![
            "gateway-tls" "cpu" Limit::Times(1.0, &["haproxy-tls"]),
            "gateway-tls" "cpu" Limit::Times(1.0, &["nginx-tls"]),
        ],
        counts_calls: true,
        run: |run| echo(run, Echo::new(64, 64)),
    },
    Row {
        id: "tls-down",
        title: "Stream 64 KiB frames down with TLS, 4 pairs",
        note: TLS_NOTE,
        need: Need::Relay,
        targets: SECURE,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: SECURE_STREAM_GOALS,
        counts_calls: true,
        run: |run| stream(run, 64 << 10, Way::Down),
    },
    Row {
        id: "tls-up",
        title: "Stream 64 KiB frames up with TLS, 4 pairs",
        note: TLS_NOTE,
        need: Need::Relay,
        targets: SECURE,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: STREAM_METRICS,
        goals: SECURE_STREAM_GOALS,
        counts_calls: true,
        run: |run| stream(run, 64 << 10, Way::Up),
    },
    Row {
        id: "tls-handshake",
        title: "Connect, TLS, upgrade, one message of 64 B, close; 32 at once",
        note: "Full handshakes. All of a connection is counted, as without TLS.",
        need: Need::Relay,
        targets: SECURE,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/handshake" 1, "rate" "handshakes/s" 0],
        goals: SECURE_HANDSHAKE_GOALS,
        counts_calls: true,
        run: |run| handshakes(run, Handshake::Full),
    },
    Row {
        id: "tls-resumed",
        title: "The same, resumed by a ticket",
        note: "A run in which a handshake was not resumed has no figures.",
        need: Need::Relay,
        targets: SECURE,
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics!["cpu" "CPU µs/handshake" 1, "rate" "handshakes/s" 0],
        goals: SECURE_HANDSHAKE_GOALS,
        counts_calls: true,
        run: |run| handshakes(run, Handshake::Resumed),
    },
    Row {
        id: "tls-idle",
        title: "User-space memory of an idle relayed pair whose client uses TLS (5,000 pairs)",
        note: "Growth of PSS since the start, over the number of pairs; every round on a target just started.",
        need: Need::Relay,
        targets: SECURE,
        fresh: true,
        rounds_max: 3,
        metrics: metrics!["memory" "B/pair" 0],
        goals: goals!["gateway-tls" "memory" Limit::AtMost(12288.0)],
        counts_calls: false,
        run: idle_memory,
    },
    Row {
        id: "beside-connections",
        title: "Echo 64 B, 1,000 messages/s, while 20 clients ask for /connections with 5,000 sockets open",
        note: "The pipe serves no reports: its figures are those of the messages beside the idle pairs. Done are answers.",
        need: Need::Results,
        targets: &["pipe", "gateway-inbox"],
        fresh: true,
        rounds_max: 4,
        metrics: BESIDE_METRICS,
        goals: goals!["gateway-inbox" "p99" Limit::AtMost(5000.0)],
        counts_calls: false,
        run: |run| beside(run, Pressure::Reports),
    },
    Row {
        id: "beside-publications",
        title: "Echo 64 B, 1,000 messages/s, while 4 workers publish to the inbox as fast as it reads",
        note: "The pipe has no inbox: its figures are those of the messages alone. Done are publications.",
        need: Need::Results,
        targets: &["pipe", "gateway-inbox"],
        fresh: true,
        rounds_max: 4,
        metrics: BESIDE_METRICS,
        goals: goals!["gateway-inbox" "p99" Limit::AtMost(5000.0)],
        counts_calls: false,
        run: |run| beside(run, Pressure::Publications),
    },
    Row {
        id: "beside-crowd",
        title: "Echo 64 B, 1,000 messages/s, while 6,000 clients come for one task with 200 results, again and again",
        note: "The pipe delivers nothing: its figures are those of the messages alone. Done are clients that came, and results that they got.",
        need: Need::Results,
        targets: &["pipe", "gateway-inbox"],
        fresh: true,
        rounds_max: 4,
        metrics: BESIDE_METRICS,
        goals: goals!["gateway-inbox" "p99" Limit::AtMost(5000.0)],
        counts_calls: false,
        run: |run| beside(run, Pressure::Crowd),
    },
    Row {
        id: "watchers",
        title: "Echo 64 B, 64 connections, with and without 100 watchers of /events",
        note: "Growth is the cost with them over the mean of the cost without, before and after, in the same round. Done \
               are snapshots, one a second for each watcher.",
        need: Need::Relay,
        targets: &["gateway"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics![
            "cpu" "CPU µs/message" 2, "cpu_watched" "with watchers" 2, "growth" "growth" 3, "done" "snapshots/s" 0
        ],
        goals: goals!["gateway" "growth" Limit::AtMost(1.03)],
        counts_calls: false,
        run: echo_beside_watchers,
    },
    Row {
        id: "beside-followers",
        title: "Echo 64 B, 1,000 messages/s, while 100 followers of all frames read nothing",
        note: "The pipe has no followers: its figures are those of the messages alone. Done are lines that followers lost.",
        need: Need::Relay,
        targets: &["pipe", "gateway"],
        fresh: true,
        rounds_max: 4,
        metrics: BESIDE_METRICS,
        goals: goals!["gateway" "p99" Limit::AtMost(5000.0)],
        counts_calls: false,
        run: |run| beside(run, Pressure::SlowFollowers),
    },
    Row {
        id: "side-by-side",
        title: "Echo 64 B, 256 connections, one message in flight on each: one process, and two on the same address",
        note: "Of two processes, one on each core, the second shares its core with the load generator, whose messages wake \
               it one by one: those sleeps are in its cost. The load generator also bounds the throughput of two cores: \
               CPU a message shows what they can take, messages/s do not. At how many messages/s in all a core is full is \
               reckoned, not run: as the connections are dealt out, at the cost of the process that has its core to \
               itself while both work. What it costs to be two, and nothing else, is CPU a message of both on the \
               targets' core. Fullest: the share of the connections that one process has; 0.5 is even.",
        need: Need::Relay,
        targets: &["gateway", "gateway-two", "gateway-two-here"],
        fresh: false,
        rounds_max: ALWAYS,
        metrics: metrics![
            "cpu" "CPU µs/message" 2, "own" "on its own core" 2, "shared" "on the load's core" 2,
            "sleeps" "sleeps/message" 3, "full" "messages/s until a core is full" 0, "fullest" "fullest" 3,
            "rate" "messages/s" 0
        ],
        goals: goals![
            "gateway-two" "full" Limit::TimesAtLeast(1.6, "gateway"),
            "gateway-two" "fullest" Limit::AtMost(0.65),
            "gateway-two-here" "cpu" Limit::Times(1.05, &["gateway"]),
            "gateway-two-here" "fullest" Limit::AtMost(0.65),
        ],
        counts_calls: true,
        run: side_by_side,
    },
];

const BESIDE_METRICS: &[Metric] =
    metrics!["p50" "p50 µs" 0, "p99" "p99 µs" 0, "max" "max µs" 0, "done" "done/s" 0];
/// The allowed cost of the log and of reading the metrics, in all rows.
const LOGGED: Limit = Limit::Times(1.03, &["gateway"]);
const SPEECH_METRICS: &[Metric] =
    metrics!["cpu" "CPU µs/chunk" 2, "busy" "busy" 2, "memory" "B/stream" 0];
const STREAM_METRICS: &[Metric] = metrics!["cpu_gb" "CPU s/GB" 3, "rate" "MB/s" 0];
const TLS_NOTE: &str =
    "TLS 1.3, AES-128-GCM, X25519, a key on P-256: clients offer nothing else. Backends are plain.";
const SECURE_STREAM_GOALS: &[Goal] = goals![
    "gateway-tls" "cpu_gb" Limit::Times(1.0, &["haproxy-tls"]),
    "gateway-tls" "cpu_gb" Limit::Times(1.0, &["nginx-tls"]),
];
const SECURE_HANDSHAKE_GOALS: &[Goal] = goals![
    "gateway-tls" "cpu" Limit::Times(1.0, &["haproxy-tls"]),
    "gateway-tls" "cpu" Limit::Times(1.0, &["nginx-tls"]),
];
const REQUEST_METRICS: &[Metric] =
    metrics!["cpu" "CPU µs/request" 2, "p50" "p50 µs" 0, "p99" "p99 µs" 0, "rate" "requests/s" 0];
const LONG_METRICS: &[Metric] =
    metrics!["cpu_gb" "CPU s/GB" 3, "rate" "MB/s" 0, "growth" "MiB more" 2];
const LONG_GOALS: &[Goal] = goals![
    "gateway-http" "cpu_gb" Limit::Times(1.0, &["haproxy"]),
    "gateway-http" "growth" Limit::AtMost(1.0),
];
const LARGE_METRICS: &[Metric] =
    metrics!["cpu_gb" "CPU s/GB" 3, "p50" "p50 µs" 0, "p99" "p99 µs" 0, "rate" "messages/s" 0];
const STREAM_GOALS: &[Goal] = goals![
    "gateway" "cpu_gb" Limit::Times(1.1, &["splice"]),
    "gateway" "cpu_gb" Limit::Times(1.0, &["haproxy-splice"]),
    "gateway" "cpu_gb" Limit::Times(0.4, &["haproxy"]),
    "gateway-info" "cpu_gb" LOGGED,
];

/// Both are notified; the second one sees nothing of what the first one begins and ends.
struct Around<'o>(&'o mut dyn Observe, &'o mut dyn Observe);

impl Observe for Around<'_> {
    fn begin(&mut self) -> Result<(), Fault> {
        self.0.begin()?;
        self.1.begin()
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.1.end()?;
        self.0.end()
    }
}

fn echo_beside_watchers(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let alone = |run: &mut Run<'_>| Ok::<_, Fault>(echo(run, Echo::new(64, 64))?["cpu"]);
    let before = alone(run)?;
    let address = run.instance.address;
    let place = beside::Place { address, inbox: None, channel_prefix: run.channel_prefix() };
    let mut watchers = Beside::new(Some((Pressure::Watchers, place)));
    let (mut world, mut watch) = (run.world()?, run.watch());
    let mut both = Around(&mut watchers, &mut watch);
    let outcome = work::echo(&mut world, &Echo::new(64, 64), run.limits(), &mut both)?;
    drop(world);
    let watched = watch.nanos as f64 / 1e3 / outcome.count as f64;
    let snapshots = watchers.done as f64 / outcome.seconds;
    if snapshots < 0.5 * WATCHING as f64 {
        return Err(format!("{WATCHING} watchers got {snapshots:.0} snapshots a second"));
    }
    let without = (before + alone(run)?) / 2.0;
    Ok(Sample::from([
        ("cpu", without),
        ("cpu_watched", watched),
        ("growth", watched / without),
        ("done", snapshots),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn echo(run: &mut Run<'_>, echo: Echo) -> Result<Sample, Fault> {
    let (mut world, mut watch) = (run.world()?, run.watch());
    let mut outcome = work::echo(&mut world, &echo, run.limits(), &mut watch)?;
    drop(world);
    let (messages, bytes) = (outcome.count as f64, outcome.count as f64 * 2.0 * echo.size as f64);
    if echo.size < 64 << 10 {
        run.keep_calls(&mut watch, 2.0 * messages, "relayed frame");
    } else {
        run.keep_calls(&mut watch, bytes / MIB, "MiB");
    }
    Ok(Sample::from([
        ("cpu", watch.nanos as f64 / 1e3 / messages),
        ("cpu_gb", watch.nanos as f64 / bytes),
        ("p50", outcome.latencies.percentile(50.0).unwrap_or_default()),
        ("p99", outcome.latencies.percentile(99.0).unwrap_or_default()),
        ("rate", messages / outcome.seconds),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn echo_beside_idle(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let without = echo(run, Echo::new(64, 64))?["cpu"];
    let with = echo(run, Echo { idle: IDLE_PAIRS, ..Echo::new(64, 64) })?["cpu"];
    Ok(Sample::from([("cpu", without), ("cpu_idle", with), ("growth", with / without)]))
}

fn mixed(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let mut world = run.world()?;
    world.share_with_messages();
    let alone = work::stream(&mut world, 4, 1 << 20, Way::Down, run.limits(), &mut ())?.stream_rate;
    drop(world);
    let (mut world, mut watch) = (run.world()?, run.watch());
    let echo = Echo { rate: Some(BESIDE_RATE), streams: 4, ..Echo::new(64, 64) };
    let mut outcome = work::echo(&mut world, &echo, run.limits(), &mut watch)?;
    Ok(Sample::from([
        ("p50", outcome.latencies.percentile(50.0).unwrap_or_default()),
        ("p99", outcome.latencies.percentile(99.0).unwrap_or_default()),
        ("stream", outcome.stream_rate / 1e6),
        ("kept", outcome.stream_rate / alone),
        ("cpu_gb", watch.nanos as f64 / outcome.bytes as f64),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn stream(run: &mut Run<'_>, size: usize, way: Way) -> Result<Sample, Fault> {
    let (mut world, mut watch) = (run.world()?, run.watch());
    let outcome = work::stream(&mut world, 4, size, way, run.limits(), &mut watch)?;
    run.keep_calls(&mut watch, outcome.bytes as f64 / MIB, "MiB");
    Ok(Sample::from([
        ("cpu_gb", watch.nanos as f64 / outcome.bytes as f64),
        ("rate", outcome.stream_rate / 1e6),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn handshakes(run: &mut Run<'_>, handshake: Handshake) -> Result<Sample, Fault> {
    let (mut world, mut watch) = (run.world()?, run.watch());
    if handshake == Handshake::Resumed {
        world.use_tls(run.place.certificate.client(handshake)?);
    }
    let outcome = work::handshakes(&mut world, 32, run.limits(), &mut watch)?;
    let resumed = if handshake == Handshake::Resumed { outcome.count } else { 0 };
    if outcome.resumed != resumed {
        return Err(format!("{} of {} handshakes were resumed", outcome.resumed, outcome.count));
    }
    run.keep_calls(&mut watch, outcome.count as f64, "handshake");
    let count = outcome.count as f64;
    Ok(Sample::from([
        ("cpu", watch.nanos as f64 / 1e3 / count),
        ("rate", count / outcome.seconds),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn side_by_side(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let mut division = Division::new(run.watch(), run.instance.processes());
    let mut world = run.world()?;
    let outcome =
        work::echo(&mut world, &Echo::new(64, DEALT_CONNECTIONS), run.limits(), &mut division)?;
    drop(world);
    let Division { watch, parts, .. } = &mut division;
    let counted: u64 = parts.iter().map(|part| part.messages).sum();
    if counted != outcome.count {
        return Err(format!(
            "{} messages came back, the processes counted {counted}",
            outcome.count
        ));
    }
    let messages = outcome.count as f64;
    run.keep_calls(watch, 2.0 * messages, "relayed frame");
    let fullest = division::fullest(parts).ok_or("no process has a connection")?;
    let mut sample = Sample::from([
        ("cpu", watch.nanos as f64 / 1e3 / messages),
        ("fullest", fullest),
        ("sleeps", parts.iter().map(|part| part.sleeps).sum::<u64>() as f64 / messages),
        ("rate", messages / outcome.seconds),
    ]);
    let cost = |part: &Part| part.nanos as f64 / 1e3 / part.messages as f64;
    let twin = run.instance.target.twin();
    // Two processes on one core have no core of their own.
    if let (Some(first), None | Some(Twin::LoadCore)) = (parts.first(), twin)
        && first.messages > 0
    {
        sample.extend([("own", cost(first)), ("full", 1e6 / (cost(first) * fullest))]);
    }
    match (twin, parts.get(1)) {
        (Some(Twin::LoadCore), Some(second)) if second.messages > 0 => {
            sample.insert("shared", cost(second));
        }
        // The second process's share of the load generator's core is no disturbance.
        (Some(Twin::LoadCore), _) => {}
        _ => {
            sample.insert(DISTURBANCE, watch.disturbance);
        }
    }
    Ok(sample)
}

fn idle_memory(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let mut world = run.world()?;
    work::hold(&mut world, IDLE_PAIRS, run.limits(), &mut ())?;
    let grown = run.instance.memory()? as f64 - run.instance.start_memory as f64;
    Ok(Sample::from([("memory", grown / IDLE_PAIRS as f64)]))
}

fn come_and_go(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let mut world = run.world()?;
    work::come_and_go(&mut world, 5000, 2, run.limits())?;
    drop(world);
    let grown = run.instance.memory()? as f64 - run.instance.start_memory as f64;
    Ok(Sample::from([("growth", grown / MIB)]))
}

fn start(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let program = run.instance.target.program(run.place)?;
    let binary = std::fs::metadata(&program)
        .map_err(|error| format!("{}: {error}", program.display()))?
        .len();
    Ok(Sample::from([
        ("binary", binary as f64 / MIB),
        ("start", run.instance.process.started_in.as_secs_f64() * 1e3),
        ("memory", run.instance.start_memory as f64 / MIB),
    ]))
}

fn audio(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let (mut world, mut watch) = (run.world()?, run.watch());
    world.audio = Arc::clone(run.audio);
    let path = format!("/audio/{AUDIO}");
    let target = run.instance.target;
    let order = if target.is_file_server() {
        Order::Get(&path)
    } else if target.is_copy_loop() {
        Order::Message
    } else {
        Order::Publish { at: run.publish_at()?, channel_prefix: run.channel_prefix(), file: AUDIO }
    };
    let outcome = work::audio(&mut world, order, 8, run.limits(), &mut watch)?;
    run.keep_calls(&mut watch, outcome.bytes as f64 / MIB, "MiB");
    Ok(Sample::from([
        ("cpu_gb", watch.nanos as f64 / outcome.bytes as f64),
        ("rate", outcome.stream_rate / 1e6),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn download(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let (mut world, mut watch) = (run.world()?, run.watch());
    world.audio = Arc::clone(run.audio);
    let path = if run.instance.target.is_file_server() {
        format!("/audio/{AUDIO}")
    } else {
        let task = fresh_task();
        let publisher = world.open_publisher(run.publish_at()?)?;
        let channel = format!("{}{task}", run.channel_prefix());
        world.publish(publisher, &channel, &published(Some(AUDIO), true), None)?;
        world.run_until(run.limits().patience, "the result", |world| world.tally.published == 1)?;
        format!("/audio/{task}")
    };
    let outcome = work::audio(&mut world, Order::Get(&path), 8, run.limits(), &mut watch)?;
    run.keep_calls(&mut watch, outcome.bytes as f64 / MIB, "MiB");
    Ok(Sample::from([
        ("cpu_gb", watch.nanos as f64 / outcome.bytes as f64),
        ("rate", outcome.stream_rate / 1e6),
        (DISTURBANCE, watch.disturbance),
    ]))
}

fn waiting_memory(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let mut world = run.world()?;
    world.audio = Arc::clone(run.audio_small);
    let clients = if run.quick { 1000 } else { 2000 };
    let (mut waiting, mut served) = (0.0, 0.0);
    let start = run.instance.start_memory as f64;
    let weigh = |into: &mut f64| -> Result<(), Fault> {
        *into = (run.instance.memory()? as f64 - start) / clients as f64;
        Ok(())
    };
    let order = Order::Publish {
        at: run.publish_at()?,
        channel_prefix: run.channel_prefix(),
        file: AUDIO_SMALL,
    };
    let limits = run.limits();
    work::wait_and_serve(
        &mut world,
        order,
        clients,
        limits,
        || weigh(&mut waiting),
        || weigh(&mut served),
    )?;
    Ok(Sample::from([("waiting", waiting), ("served", served)]))
}

fn publish(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let _awake = Awake::keep(run.place.cores)?;
    let (mut world, mut watch) = (run.world()?, run.watch());
    // Three seconds each: 1 % of 500 results are only five.
    let tasks = ((run.seconds * 3.0 * 500.0) as u64).max(100);
    let (at, prefix, shape) = (run.publish_at()?, run.channel_prefix(), run.shape());
    let to = work::Delivery { publish_at: at, channel_prefix: prefix, shape, tasks, rate: 500.0 };
    let mut outcome = work::deliver(&mut world, &to, run.limits(), &mut watch)?;
    Ok(Sample::from([
        ("p50", outcome.latencies.percentile(50.0).unwrap_or_default()),
        ("p99", outcome.latencies.percentile(99.0).unwrap_or_default()),
        ("cpu", watch.nanos as f64 / 1e3 / outcome.count as f64),
    ]))
}

fn beside(run: &mut Run<'_>, pressure: Pressure) -> Result<Sample, Fault> {
    let is_floor = run.instance.target.id == "pipe";
    let (address, inbox) = (run.instance.address, run.instance.publish_at);
    let place = beside::Place { address, inbox, channel_prefix: run.channel_prefix() };
    let mut load = Beside::new((!is_floor).then_some((pressure, place)));
    let idle = if pressure == Pressure::Reports { IDLE_PAIRS } else { 0 };
    let echo = Echo { rate: Some(BESIDE_RATE), idle, ..Echo::new(64, 16) };
    let limits = Limits::seconds(if run.quick { 3.0 } else { 6.0 });
    let mut world = run.world()?;
    let mut outcome = work::echo(&mut world, &echo, limits, &mut load)?;
    Ok(Sample::from([
        ("p50", outcome.latencies.percentile(50.0).unwrap_or_default()),
        ("p99", outcome.latencies.percentile(99.0).unwrap_or_default()),
        ("max", outcome.latencies.percentile(100.0).unwrap_or_default()),
        ("done", load.done as f64 / outcome.seconds),
    ]))
}

fn flood(run: &mut Run<'_>) -> Result<Sample, Fault> {
    // The bare subscriber relays nothing.
    let connections = if run.instance.target.copies_results() { 0 } else { 64 };
    let echo = Echo { rate: Some(BESIDE_RATE), ..Echo::new(64, connections) };
    let publish_at = run.publish_at()?;
    let text = "x".repeat(FLOOD_TEXT_BYTES);
    let json = format!(r#"{{"text":"{text}","audio_file":null,"emotion":"happy"}}"#);
    // Long enough to publish more than is retained.
    let limits = Limits::seconds(if run.quick { 2.5 } else { 4.0 });
    let is_inbox = run.instance.target.id == "gateway-inbox";
    // Redis shares the clients' core only for lack of cores; the row should not time that.
    run.instance.redis.as_ref().map_or(Ok(()), Process::yield_to_others)?;
    let unheard = Flood { publish_at, channel_prefix: DEAF_PREFIX, rate: FLOOD_RATE, json: &json };
    let (mut world, mut watch) = (run.world()?, run.watch());
    let mut without =
        work::flood(&mut world, &echo, (!is_inbox).then_some(unheard), limits, &mut watch)?;
    let before = watch.nanos as f64 / without.seconds;
    drop(world);
    let memory = run.instance.memory()? as f64;
    let heard = Flood { channel_prefix: run.channel_prefix(), ..unheard };
    let (mut world, mut watch) = (run.world()?, run.watch());
    let mut with = work::flood(&mut world, &echo, Some(heard), limits, &mut watch)?;
    drop(world);
    let mut sample = Sample::from([
        ("cpu", (watch.nanos as f64 - before * with.seconds) / 1e3 / with.published as f64),
        ("memory", (run.instance.memory()? as f64 - memory) / MIB),
    ]);
    if let (Some(p99_without), Some(p99)) =
        (without.latencies.percentile(99.0), with.latencies.percentile(99.0))
    {
        sample.extend([("p99_without", p99_without), ("p99", p99), ("growth", p99 / p99_without)]);
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::super::targets::target;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_and_goals_name_what_exists() {
        let mut ids = HashSet::new();
        for row in ROWS {
            assert!(ids.insert(row.id), "{} twice", row.id);
            for name in row.targets {
                assert!(target(name).is_some(), "{}: no target {name}", row.id);
            }
            for goal in row.goals {
                assert!(
                    row.metrics.iter().any(|metric| metric.key == goal.metric),
                    "{}: {}",
                    row.id,
                    goal.metric
                );
                let others: &[&str] = match &goal.limit {
                    Limit::Times(_, of) => of,
                    Limit::Above(_, of) | Limit::TimesAtLeast(_, of) => std::slice::from_ref(of),
                    _ => &[],
                };
                for name in others.iter().chain([&goal.who]) {
                    assert!(row.targets.contains(name), "{}: the goal names {name}", row.id);
                }
            }
        }
        for name in QUICK_TARGETS {
            assert!(target(name).is_some(), "no target {name}");
        }
        for name in NOT_QUICK {
            assert!(ids.contains(name), "no row {name}");
        }
    }
}
