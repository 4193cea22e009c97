//! The snapshots of `GET /events`.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::super::stats::{BothWays, Times, Traffic};
use super::closed::ClosedJson;
use super::json::HealthJson;
use super::{Lifecycle, Snapshot, rfc3339};
use crate::base::moment::Moment;
use crate::service::histogram::{Histogram, Spread};
use crate::service::ledger::Ledger;

/// Endings that a snapshot has.
const CLOSED_MAX: usize = 10;

/// Rates are not made over more than this.
const RATE_WINDOW_MAX: Duration = Duration::from_secs(10);

/// The time over which latencies are summed up, and how often they are noted meanwhile.
const LATENCY_WINDOW: Duration = Duration::from_secs(300);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// What a snapshot is made of, besides the view of the gateway.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct SnapshotParts<'p> {
    pub time: SystemTime,
    pub now: Moment,
    pub tasks: TaskCounts,
    /// How late the loop was since the last snapshot, at most.
    pub loop_lag: Duration,
    pub times: &'p Times,
    pub ledger: &'p Ledger,
}

/// Clients of tasks that a census has counted.
#[derive(Debug, Default, Clone, Copy)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct TaskCounts {
    pub waiting: u64,
    pub sending: u64,
}

/// What is compared with the present: traffic a second ago, latencies five minutes ago.
#[derive(Debug, Default)]
pub struct Moving {
    traffic: Option<(Moment, Totals)>,
    /// The oldest in front.
    latencies: VecDeque<(Moment, Latencies)>,
}

/// Latencies since the start.
#[derive(Debug, Clone, Default)]
struct Latencies {
    text: Histogram,
    first_audio: Histogram,
}

/// Sums over all routes.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    all: BothWays,
    /// Of routes that are relayed.
    relayed: BothWays,
}

#[derive(Serialize)]
struct Rate {
    frames: f64,
    bytes: f64,
}

#[derive(Serialize)]
struct RatesJson {
    from_client: Rate,
    to_client: Rate,
    from_backend: Rate,
    to_backend: Rate,
}

#[derive(Serialize)]
struct Percentiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

#[derive(Serialize)]
struct LatencyJson {
    publish_to_text: Percentiles,
    publish_to_first_audio: Percentiles,
}

impl Moving {
    /// Notes the latencies, if it is time. Called about every second.
    pub fn note(&mut self, now: Moment, times: &Times) {
        if self.latencies.is_empty() {
            // Nothing had happened at the start.
            self.latencies.push_back((now, Latencies::default()));
        }
        let is_due = |(at, _): &(Moment, Latencies)| *at + SAMPLE_INTERVAL <= now;
        if self.latencies.back().is_none_or(is_due) {
            self.latencies.push_back((now, Latencies::of(times)));
            while self.latencies.front().is_some_and(|(at, _)| *at + LATENCY_WINDOW < now) {
                self.latencies.pop_front();
            }
        }
    }

    /// The rates since the last call, a second.
    fn rates(&mut self, now: Moment, totals: Totals) -> RatesJson {
        let last = self.traffic.replace((now, totals));
        // Nobody has watched for a while.
        let last = last.filter(|(at, _)| now <= *at + RATE_WINDOW_MAX);
        let (since, before) = last.unwrap_or((now, totals));
        let seconds = (now - since).as_secs_f64();
        let a_second = |n: u64| match seconds > 0.0 {
            true => (n as f64 / seconds * 10.0).round() / 10.0,
            false => 0.0,
        };
        // A reload may have turned a relayed route into another one.
        let rate = |now: Traffic, before: Traffic| Rate {
            frames: a_second(now.frames.saturating_sub(before.frames)),
            bytes: a_second(now.bytes.saturating_sub(before.bytes)),
        };
        RatesJson {
            from_client: rate(totals.all.from_client, before.all.from_client),
            to_client: rate(totals.all.to_client, before.all.to_client),
            from_backend: rate(totals.relayed.to_client, before.relayed.to_client),
            to_backend: rate(totals.relayed.from_client, before.relayed.from_client),
        }
    }

    fn latency(&self, times: &Times) -> LatencyJson {
        let none = Latencies::default();
        let before = self.latencies.front().map_or(&none, |(_, latencies)| latencies);
        let of = |now: &Histogram, before: &Histogram| {
            let spread = now.since(before);
            Percentiles { p50: milliseconds(&spread, 0.5), p99: milliseconds(&spread, 0.99) }
        };
        LatencyJson {
            publish_to_text: of(&times.publish_to_text, &before.text),
            publish_to_first_audio: of(&times.publish_to_first_audio, &before.first_audio),
        }
    }
}

fn milliseconds(spread: &Spread, share: f64) -> Option<f64> {
    Some((spread.quantile(share)?.as_secs_f64() * 1_000_000.0).round() / 1000.0)
}

impl Latencies {
    fn of(times: &Times) -> Latencies {
        Latencies {
            text: times.publish_to_text.clone(),
            first_audio: times.publish_to_first_audio.clone(),
        }
    }
}

impl Totals {
    fn of(snapshot: &Snapshot) -> Totals {
        let mut totals = Totals::default();
        for (name, route) in snapshot.stats.routes() {
            let traffic = snapshot.live.with_ended(name, route.traffic);
            totals.all += traffic;
            let is_relayed = snapshot
                .routes
                .iter()
                .any(|view| *view.name == **name && !view.backends.is_empty());
            if is_relayed {
                totals.relayed += traffic;
            }
        }
        totals
    }
}

#[derive(Serialize)]
struct ConnectionsJson<'s> {
    open: u64,
    opened_total: u64,
    by_route: BTreeMap<&'s str, u64>,
}

impl<'s> ConnectionsJson<'s> {
    fn new(snapshot: &Snapshot<'s>) -> ConnectionsJson<'s> {
        let routes = snapshot.stats.routes();
        let open = |name| routes.get(name).map_or(0, |route| route.open);
        ConnectionsJson {
            open: snapshot.active_connections(),
            opened_total: routes.values().map(|route| route.upgrades).sum(),
            by_route: snapshot.routes.iter().map(|view| (view.name, open(view.name))).collect(),
        }
    }
}

#[derive(Serialize)]
struct TasksJson {
    waiting: u64,
    sending: u64,
    completed: u64,
    failed: u64,
}

#[derive(Serialize)]
struct ProcessJson {
    memory_bytes: u64,
    open_fds: u64,
    loop_lag_ms: f64,
}

#[derive(Serialize)]
struct SnapshotJson<'s> {
    time: String,
    uptime_seconds: u64,
    draining: bool,
    health: HealthJson<'s>,
    connections: ConnectionsJson<'s>,
    rates: RatesJson,
    tasks: TasksJson,
    latency: LatencyJson,
    closed: Vec<ClosedJson<'s>>,
    process: ProcessJson,
}

/// One snapshot as JSON in one line. `snapshot` is an admin's, with live traffic and process.
pub fn event_snapshot(
    snapshot: &Snapshot,
    parts: &SnapshotParts<'_>,
    moving: &mut Moving,
) -> String {
    let process = snapshot.process;
    let body = SnapshotJson {
        time: rfc3339(parts.time),
        uptime_seconds: snapshot.uptime.as_secs(),
        draining: snapshot.lifecycle == Lifecycle::Draining,
        health: HealthJson::new(snapshot),
        connections: ConnectionsJson::new(snapshot),
        rates: moving.rates(parts.now, Totals::of(snapshot)),
        tasks: TasksJson {
            waiting: parts.tasks.waiting,
            sending: parts.tasks.sending,
            completed: snapshot.results.completed,
            failed: snapshot.results.failed,
        },
        latency: moving.latency(parts.times),
        closed: parts.ledger.newest_first().take(CLOSED_MAX).map(ClosedJson::new).collect(),
        process: ProcessJson {
            memory_bytes: process.map_or(0, |process| process.resident_bytes),
            open_fds: process.map_or(0, |process| process.open_fds),
            loop_lag_ms: (parts.loop_lag.as_micros() as f64 / 10.0).round() / 100.0,
        },
    };
    serde_json::to_string(&body).expect("plain data with text keys is always JSON")
}

#[cfg(test)]
mod tests {
    use super::super::super::stats::Stats;
    use super::super::tests::{BOTH, empty, relayed, well};
    use super::*;
    use crate::base::budget::Budget;
    use crate::service::ledger::tests::closed;
    use serde_json::{Value, json};

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    fn made(stats: &Stats, now: Moment, moving: &mut Moving, live: u64) -> Value {
        let mut ledger = Ledger::new(&Budget::default());
        (0..20).for_each(|serial| ledger.push(closed(serial)));
        let mut view = empty(stats);
        view.routes = vec![relayed("input", vec![well("ws://a/")])];
        (0..live).for_each(|_| view.live.add("input", BOTH));
        view.live.add("output", BOTH);
        let parts = SnapshotParts {
            time: SystemTime::UNIX_EPOCH,
            now,
            tasks: TaskCounts { waiting: 1, sending: 2 },
            loop_lag: Duration::from_micros(300),
            times: stats.times(),
            ledger: &ledger,
        };
        let text = event_snapshot(&view, &parts, moving);
        assert!(!text.contains('\n'));
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn every_field_is_there() {
        let mut stats = Stats::new();
        stats.count_upgrade("input");
        stats.count_open("input");
        let snapshot = made(&stats, at(0), &mut Moving::default(), 1);
        let names: Vec<_> = snapshot.as_object().unwrap().keys().collect();
        assert_eq!(
            names,
            [
                "time",
                "uptime_seconds",
                "draining",
                "health",
                "connections",
                "rates",
                "tasks",
                "latency",
                "closed",
                "process"
            ]
        );
        let connections = json!({"open": 1, "opened_total": 1, "by_route": {"input": 1}});
        assert_eq!(snapshot["connections"], connections);
        let tasks = json!({"waiting": 1, "sending": 2, "completed": 0, "failed": 0});
        assert_eq!(snapshot["tasks"], tasks);
        assert_eq!(snapshot["health"]["backend_states"]["input"]["ws://a/"]["state"], "ok");
        assert_eq!(snapshot["closed"].as_array().unwrap().len(), 10);
        assert_eq!(snapshot["closed"][0]["id"], "input_19");
        assert_eq!(snapshot["process"]["loop_lag_ms"], 0.3);
        assert_eq!(snapshot["latency"]["publish_to_text"], json!({"p50": null, "p99": null}));
    }

    #[test]
    fn rates_are_those_between_two_snapshots() {
        let mut stats = Stats::new();
        ["input", "output"].into_iter().for_each(|route| stats.count_upgrade(route));
        let mut moving = Moving::default();
        let none = json!({"frames": 0.0, "bytes": 0.0});
        assert_eq!(made(&stats, at(0), &mut moving, 1)["rates"]["from_client"], none);
        let rates = made(&stats, at(2), &mut moving, 3)["rates"].clone();
        assert_eq!(rates["from_client"], json!({"frames": 2.0, "bytes": 20.0}));
        assert_eq!(rates["to_client"], json!({"frames": 3.0, "bytes": 300_000.0}));
        assert_eq!(rates["to_backend"], rates["from_client"], "output is not relayed, and idle");
        let after_a_pause = made(&stats, at(60), &mut moving, 50);
        assert_eq!(after_a_pause["rates"]["from_client"], none);
    }

    #[test]
    fn latencies_are_those_of_the_last_five_minutes() {
        let mut stats = Stats::new();
        let mut moving = Moving::default();
        stats.time().publish_to_text.observe(Duration::from_secs(200));
        moving.note(at(0), stats.times());
        let latency = made(&stats, at(1), &mut moving, 0)["latency"].clone();
        assert!(latency["publish_to_text"]["p50"].as_f64().unwrap() > 60_000.0, "{latency}");
        for seconds in 1..=320 {
            stats.time().publish_to_text.observe(Duration::from_millis(1));
            moving.note(at(seconds), stats.times());
        }
        let latency = made(&stats, at(320), &mut moving, 0)["latency"].clone();
        assert!(latency["publish_to_text"]["p99"].as_f64().unwrap() <= 1.0, "{latency}");
        assert_eq!(latency["publish_to_first_audio"]["p50"], Value::Null);
        assert!(moving.latencies.len() < 40);
    }
}
