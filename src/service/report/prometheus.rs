//! `/metrics`, in Prometheus' text format.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::super::histogram::Histogram;
use super::super::upstreams::BackendState;
use super::{BackendView, Lifecycle, ProcessView, Snapshot, put};
use crate::proto::http::Response;

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const PREFIX: &str = "aivtuber_gateway_";

/// `/metrics`: every counter and gauge in Prometheus' text format.
pub fn metrics(snapshot: &Snapshot) -> Response {
    let mut out = Exposition::default();
    let stats = snapshot.stats;

    out.gauge("build_info", "The running version; always 1.")
        .labelled(&[("version", snapshot.version)], 1);
    out.gauge("uptime_seconds", "Time since the start.").plain(snapshot.uptime.as_secs());
    out.gauge("draining", "1 while the gateway is shutting down.")
        .plain((snapshot.lifecycle == Lifecycle::Draining).into());
    if snapshot.results_wanted {
        out.gauge("redis_connected", "1 while results can arrive.")
            .plain((!snapshot.lacks_redis()).into());
    }

    out.counter("connections_accepted_total", "Client connections accepted.")
        .plain(stats.connections_accepted);
    out.gauge("connections_open", "Client connections that have not ended.")
        .plain(stats.connections_open);
    let mut family = out.counter("connections_refused_total", "Connections refused, by limit.");
    for (limit, count) in stats.refused() {
        family.labelled(&[("reason", "refused"), ("limit", limit)], *count);
    }
    ended_metrics(snapshot, &mut out);
    out.counter(
        "accept_pauses_total",
        "Times accepting paused because connections or file descriptors ran out.",
    )
    .plain(stats.accept_pauses);
    out.counter("tls_handshakes_total", "TLS handshakes of clients that were completed.")
        .plain(stats.tls_handshakes);
    out.counter(
        "tls_handshakes_failed_total",
        "TLS handshakes of clients that failed or were given up.",
    )
    .plain(stats.tls_handshakes_failed);
    http_metrics(snapshot, &mut out);
    route_metrics(snapshot, &mut out);
    backend_metrics(snapshot, &mut out);

    if snapshot.results_wanted {
        result_metrics(snapshot, &mut out);
    }

    out.counter("pings_sent_total", "Pings sent to idle peers.").plain(stats.pings_sent);
    out.counter(
        "pongs_swallowed_total",
        "Pongs that answered the gateway's own pings and were not relayed.",
    )
    .plain(stats.pongs_swallowed);
    out.counter("messages_too_big_total", "Messages larger than max_message.")
        .plain(stats.messages_too_big);
    out.gauge(
        "memory_held_bytes",
        "Memory held for connections and what is kept, socket buffers included.",
    )
    .plain(snapshot.memory_held);
    out.gauge("memory_limit_bytes", "The limit for it; 0 is none.").plain(snapshot.memory_limit);
    out.counter("sessions_shed_total", "Sessions ended because memory was short.")
        .plain(stats.sessions_shed);
    out.counter("log_lines_lost_total", "Log lines that could not be written.")
        .plain(stats.log_lines_lost);

    time_metrics(snapshot, &mut out);
    let reloads = stats.reloads();
    let mut family = out.counter("config_reloads_total", "Configurations read on HUP, by result.");
    family.labelled(&[("result", "ok")], reloads.ok);
    family.labelled(&[("result", "failed")], reloads.failed);
    out.gauge("config_last_reload_successful", "0 if the last configuration that was read is bad.")
        .plain((!reloads.has_last_failed).into());
    if let Some(process) = &snapshot.process {
        process_metrics(process, &mut out);
    }

    Response::new(200, METRICS_TYPE, out.text.into_bytes())
}

fn http_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let stats = snapshot.stats;
    let mut family =
        out.counter("http_responses_total", "HTTP responses by status, upgrades included.");
    for (status, count) in stats.http() {
        family.labelled(&[("status", &status.to_string())], *count);
    }

    let mut family = out.counter(
        "http_requests_total",
        "Requests on routes for plain HTTP, by class of the answer's status.",
    );
    for (route, classes) in stats.requests() {
        for (class, count) in classes {
            family.labelled(&[("route", route), ("class", class)], *count);
        }
    }
}

fn time_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let times = snapshot.stats.times();
    out.histogram("dial_seconds", "Time to establish a connection to a backend.", &times.dial);
    out.histogram(
        "handshake_seconds",
        "Time from then to the backend's answer to the upgrade.",
        &times.handshake,
    );
    out.histogram(
        "turn_seconds",
        "Time of a turn of the loop; one in 64 is measured.",
        &times.turn,
    );
    out.histogram("loop_lag_seconds", "How late the loop was for a deadline.", &times.loop_lag);
    if snapshot.results_wanted {
        out.histogram(
            "publish_to_text_seconds",
            "Time from a task's first result to the first text sent to a client.",
            &times.publish_to_text,
        );
        out.histogram(
            "publish_to_first_audio_seconds",
            "Time from a task's first result to the first audio sent to a client.",
            &times.publish_to_first_audio,
        );
        out.histogram(
            "connect_to_result_seconds",
            "Time from a task's first client to the first text sent to one.",
            &times.connect_to_result,
        );
    }
}

/// By the names that Prometheus' client libraries use.
fn process_metrics(process: &ProcessView, out: &mut Exposition) {
    let mut gauge = |name, help, kind, value: String| out.process(name, help, kind, &value);
    gauge(
        "process_cpu_seconds_total",
        "User and system processor time.",
        "counter",
        format!("{:.2}", process.cpu_seconds),
    );
    gauge("process_open_fds", "Open file descriptors.", "gauge", process.open_fds.to_string());
    if let Some(max) = process.max_fds {
        gauge("process_max_fds", "How many there may be.", "gauge", max.to_string());
    }
    gauge(
        "process_resident_memory_bytes",
        "Resident memory.",
        "gauge",
        process.resident_bytes.to_string(),
    );
    gauge(
        "process_virtual_memory_bytes",
        "Address space.",
        "gauge",
        process.virtual_bytes.to_string(),
    );
    let started = process.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    gauge(
        "process_start_time_seconds",
        "When the process was started, in seconds since 1970.",
        "gauge",
        format!("{:.3}", started.as_secs_f64()),
    );
}

fn ended_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let stats = snapshot.stats;
    let mut family = out.counter(
        "connections_closed_total",
        "Connections that ended, by reason and by who ended them. Answered HTTP is not counted.",
    );
    for (route, reasons) in stats.ended() {
        for ((reason, by, is_failure), count) in reasons {
            let failure = if *is_failure { "true" } else { "false" };
            let labels =
                [("route", &**route), ("reason", reason), ("ended_by", by), ("failure", failure)];
            family.labelled(&labels, *count);
        }
    }
    let mut family = out.counter(
        "close_codes_total",
        "Close codes that passed between the gateway and a side when a connection ended.",
    );
    for ((side, code), count) in stats.close_codes() {
        let code = code.map_or("other".to_owned(), |code| code.to_string());
        family.labelled(&[("side", side), ("code", &code)], *count);
    }
}

fn route_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let stats = snapshot.stats.routes();
    // A route that was never used reports 0, and one that a reload removed keeps its counts.
    let mut names: BTreeSet<&str> = snapshot.routes.iter().map(|route| route.name).collect();
    names.extend(stats.keys().map(|name| &**name));

    let mut family = out.gauge("websockets_open", "Open WebSockets.");
    for &name in &names {
        family.labelled(&[("route", name)], stats.get(name).map_or(0, |route| route.open));
    }
    let mut family = out.counter("websocket_upgrades_total", "WebSockets opened.");
    for &name in &names {
        family.labelled(&[("route", name)], stats.get(name).map_or(0, |route| route.upgrades));
    }
    let mut family = out.counter("websocket_closes_total", "WebSockets ended, by reason.");
    for &name in &names {
        for (reason, count) in stats.get(name).iter().flat_map(|route| &route.closed) {
            family.labelled(&[("route", name), ("reason", reason)], *count);
        }
    }
    let mut family = out.counter(
        "websocket_handshakes_failed_total",
        "Clients that did not get what they connected for, by reason.",
    );
    for (name, reasons) in snapshot.stats.handshakes_failed() {
        for (reason, count) in reasons {
            family.labelled(&[("route", name), ("reason", reason)], *count);
        }
    }
    let traffic = |name: &str| {
        let ended = stats.get(name).map(|route| route.traffic).unwrap_or_default();
        let traffic = snapshot.live.with_ended(name, ended);
        [("from_client", traffic.from_client), ("to_client", traffic.to_client)]
    };
    let mut family =
        out.counter("frames_total", "WebSocket frames carried, control frames included.");
    for &name in &names {
        for (direction, traffic) in traffic(name) {
            family.labelled(&[("route", name), ("direction", direction)], traffic.frames);
        }
    }
    let mut family = out.counter(
        "messages_total",
        "Frames that have begun, by opcode; a message is a text or binary frame and those that continue it.",
    );
    for route in &snapshot.routes {
        for (direction, opcode, count) in route.frames.iter().flat_map(|frames| frames.counts()) {
            let labels = [("route", route.name), ("direction", direction), ("opcode", opcode)];
            family.labelled(&labels, count);
        }
    }
    let mut family = out.counter("frame_bytes_total", "Bytes of these frames, heads included.");
    for &name in &names {
        for (direction, traffic) in traffic(name) {
            family.labelled(&[("route", name), ("direction", direction)], traffic.bytes);
        }
    }
}

fn backend_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    // Two routes may share a backend, but a series may occur only once.
    let backends: BTreeMap<&str, &BackendView> = snapshot
        .routes
        .iter()
        .flat_map(|route| &route.backends)
        .map(|backend| (backend.url, backend))
        .collect();
    let mut family = out.counter("backend_dials_total", "Dials to backends that ended, by result.");
    for (url, dials) in snapshot.stats.backends() {
        family.labelled(&[("backend", url), ("result", "ok")], dials.ok);
        family.labelled(&[("backend", url), ("result", "failed")], dials.failed);
    }
    let mut family = out.gauge("backend_connections", "Connections to a backend, dials included.");
    for (url, backend) in &backends {
        family.labelled(&[("backend", url)], backend.active as u64);
    }
    let mut family = out.gauge("backend_resting", "1 while a backend rests after a failure.");
    for (url, backend) in &backends {
        family.labelled(&[("backend", url)], backend.resting.into());
    }
    let mut family = out.gauge("backend_state", "1 for the state that a backend is in.");
    for (url, backend) in &backends {
        let is = match backend.state {
            BackendState::Untried => "untried",
            BackendState::Ok => "ok",
            BackendState::Failed { .. } => "failed",
        };
        for state in ["untried", "ok", "failed"] {
            family.labelled(&[("backend", url), ("state", state)], (state == is).into());
        }
    }
    let mut family =
        out.gauge("backend_last_dial_failed", "1 if the last dial to a backend failed.");
    for (url, backend) in &backends {
        family.labelled(&[("backend", url)], backend.has_failed().into());
    }
}

fn result_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let (stats, results) = (snapshot.stats, snapshot.results);
    out.gauge("results_waiting_clients", "Clients waiting for a result.").plain(results.waiting);
    out.counter("results_delivered_total", "Results delivered to clients.")
        .plain(stats.results_delivered);
    out.counter("audio_bytes_total", "Bytes of audio sent to clients.").plain(stats.audio_bytes);
    out.counter("speech_chunks_total", "Chunks of speech taken from workers.")
        .plain(stats.speech_chunks);
    out.counter("speech_bytes_total", "Bytes of speech taken from workers.")
        .plain(stats.speech_bytes);
    out.counter("speech_errors_total", "Messages of workers on ingest routes that were refused.")
        .plain(stats.speech_errors);
    let mut family =
        out.counter("audio_failed_total", "Audio files not sent, or not to their end, by reason.");
    for (reason, count) in stats.audio_failed() {
        family.labelled(&[("reason", reason)], *count);
    }
    out.counter(
        "results_without_audio_total",
        "Results delivered without the audio that they name.",
    )
    .plain(stats.results_without_audio);
    out.gauge("results_retained", "Results kept in memory.").plain(results.retained);
    out.gauge("results_retained_bytes", "Memory used by kept results.")
        .plain(results.retained_bytes);
    out.counter(
        "results_evicted_total",
        "Kept results evicted before they expired, for lack of memory.",
    )
    .plain(stats.results_evicted);
    out.counter(
        "results_not_kept_total",
        "Results that were not kept because their task held half of the room.",
    )
    .plain(stats.results_not_kept);
    out.counter("tasks_stopped_total", "Tasks that were stopped.").plain(stats.tasks_stopped);
    out.counter(
        "results_after_stop_total",
        "Results that were dropped because their task had been stopped.",
    )
    .plain(stats.results_after_stop);
    out.counter("redis_connects_total", "Times the connections to Redis were established.")
        .plain(stats.redis_connects);
}

/// Text in Prometheus' exposition format 0.0.4.
#[derive(Default)]
struct Exposition {
    text: String,
}

impl Exposition {
    fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "counter")
    }

    fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, help, "gauge")
    }

    fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        self.family(name, help, "histogram");
        for (bound, count) in histogram.buckets() {
            let bucket = format_args!("{PREFIX}{name}_bucket{{le=\"{bound}\"}} {count}\n");
            put(&mut self.text, bucket);
        }
        let (sum, count) = (histogram.sum().as_secs_f64(), histogram.count());
        put(
            &mut self.text,
            format_args!(
                "{PREFIX}{name}_bucket{{le=\"+Inf\"}} {count}\n{PREFIX}{name}_sum {sum}\n{PREFIX}{name}_count {count}\n"
            ),
        );
    }

    /// A metric of every process, whose name has no prefix.
    fn process(&mut self, name: &str, help: &str, kind: &str, value: &str) {
        let lines = format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        put(&mut self.text, lines);
    }

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        put(
            &mut self.text,
            format_args!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"),
        );
        Family { text: &mut self.text, name }
    }
}

struct Family<'e> {
    text: &'e mut String,
    name: &'static str,
}

impl Family<'_> {
    fn plain(&mut self, value: u64) {
        put(self.text, format_args!("{PREFIX}{} {value}\n", self.name));
    }

    fn labelled(&mut self, labels: &[(&str, &str)], value: u64) {
        put(self.text, format_args!("{PREFIX}{}", self.name));
        for (index, (label, text)) in labels.iter().enumerate() {
            put(self.text, format_args!("{}{label}=\"", if index == 0 { '{' } else { ',' }));
            for sign in text.chars() {
                match sign {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    _ => self.text.push(sign),
                }
            }
            self.text.push('"');
        }
        put(self.text, format_args!("}} {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::ResultsView;
    use super::super::tests::{BOTH, empty, failed, relayed, text, well};
    use super::*;
    use crate::service::stats::Stats;

    #[test]
    fn traffic_of_open_and_closed_connections_is_added_up() {
        let mut stats = Stats::new();
        stats.connections_accepted = 9;
        (stats.pings_sent, stats.pongs_swallowed) = (4, 3);
        (stats.accept_pauses, stats.messages_too_big, stats.log_lines_lost) = (2, 5, 6);
        (stats.tls_handshakes, stats.tls_handshakes_failed) = (7, 8);
        for status in [200, 204, 700] {
            stats.count_request("api", status);
        }
        stats.count_http(101);
        stats.count_refused("full");
        stats.count_upgrade("input");
        stats.count_open("input");
        stats.count_closed("gone", "done", BOTH, 0);
        stats.count_closed("input", "client_gone", BOTH, 0);
        stats.count_dial("ws://a/", false);
        let mut snapshot = empty(&stats);
        snapshot.live.add("input", BOTH);
        snapshot.routes = vec![
            relayed(
                "input",
                vec![BackendView { resting: true, state: failed(), ..well("ws://a/") }],
            ),
            relayed("same", vec![well("ws://a/"), well("ws://\"\\\n/")]),
            relayed(
                "sick",
                vec![BackendView { resting: true, state: failed(), ..well("ws://c/") }],
            ),
        ];
        let response = metrics(&snapshot);
        assert_eq!(response.content_type, "text/plain; version=0.0.4; charset=utf-8");
        let lines: Vec<&str> = text(&response).lines().collect();
        for line in [
            r#"build_info{version="1.2.3"} 1"#,
            "uptime_seconds 93784",
            "draining 0",
            "connections_accepted_total 9",
            "connections_open 0",
            r#"connections_refused_total{reason="refused",limit="full"} 1"#,
            r#"http_responses_total{status="101"} 1"#,
            r#"http_requests_total{route="api",class="2xx"} 2"#,
            r#"http_requests_total{route="api",class="other"} 1"#,
            r#"websockets_open{route="input"} 1"#,
            r#"websockets_open{route="same"} 0"#,
            r#"websocket_upgrades_total{route="input"} 1"#,
            r#"websocket_closes_total{route="input",reason="client_gone"} 1"#,
            r#"frames_total{route="input",direction="from_client"} 4"#,
            r#"frame_bytes_total{route="input",direction="to_client"} 600000"#,
            r#"frame_bytes_total{route="gone",direction="to_client"} 300000"#,
            r#"frame_bytes_total{route="same",direction="to_client"} 0"#,
            r#"backend_dials_total{backend="ws://a/",result="failed"} 1"#,
            r#"backend_connections{backend="ws://\"\\\n/"} 1"#,
            r#"backend_resting{backend="ws://c/"} 1"#,
            r#"backend_last_dial_failed{backend="ws://c/"} 1"#,
            "pings_sent_total 4",
            "pongs_swallowed_total 3",
            "accept_pauses_total 2",
            "tls_handshakes_total 7",
            "tls_handshakes_failed_total 8",
            "messages_too_big_total 5",
            "log_lines_lost_total 6",
        ] {
            assert!(
                lines.contains(&format!("aivtuber_gateway_{line}").as_str()),
                "{line} in\n{}",
                text(&response)
            );
        }
        assert!(!text(&response).contains("redis"), "without results there is no Redis to report");
        assert!(!text(&response).contains("results"));
    }

    #[test]
    fn metrics_of_results_exist_where_they_are_served() {
        let mut stats = Stats::new();
        (stats.results_delivered, stats.results_evicted, stats.results_not_kept) = (7, 6, 5);
        (stats.tasks_stopped, stats.results_after_stop) = (4, 3);
        (stats.audio_bytes, stats.redis_connects) = (5_000, 4);
        (stats.speech_chunks, stats.speech_bytes, stats.speech_errors) = (9, 8_640, 2);
        let mut snapshot = empty(&stats);
        snapshot.results_wanted = true;
        snapshot.results =
            ResultsView { waiting: 3, retained: 2, retained_bytes: 1024, ..Default::default() };
        let response = metrics(&snapshot);
        let lines: Vec<&str> = text(&response).lines().collect();
        for line in [
            "results_waiting_clients 3",
            "results_delivered_total 7",
            "results_retained 2",
            "results_retained_bytes 1024",
            "results_evicted_total 6",
            "results_not_kept_total 5",
            "tasks_stopped_total 4",
            "results_after_stop_total 3",
            "audio_bytes_total 5000",
            "speech_chunks_total 9",
            "speech_bytes_total 8640",
            "speech_errors_total 2",
            "redis_connects_total 4",
            "redis_connected 1",
        ] {
            assert!(
                lines.contains(&format!("aivtuber_gateway_{line}").as_str()),
                "{line} in\n{}",
                text(&response)
            );
        }
    }

    /// The rules of the text format that a scraper enforces.
    #[test]
    fn metrics_follow_the_text_format() {
        let mut stats = Stats::new();
        stats.count_upgrade("input");
        let mut snapshot = empty(&stats);
        snapshot.results_wanted = true;
        snapshot.routes =
            vec![relayed("input", vec![well("ws://a/")]), relayed("same", vec![well("ws://a/")])];
        snapshot.process = Some(ProcessView {
            resident_bytes: 1,
            virtual_bytes: 2,
            open_fds: 3,
            max_fds: Some(4),
            cpu_seconds: 0.5,
            started: SystemTime::UNIX_EPOCH,
        });
        let response = metrics(&snapshot);
        assert!(text(&response).ends_with('\n'));
        assert!(text(&response).contains("\nprocess_cpu_seconds_total 0.50\n"));
        let mut families = BTreeSet::new();
        let mut series = BTreeSet::new();
        let mut family = "";
        for line in text(&response).lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split_once(' ').expect("a help text").0;
                assert!(families.insert(family), "{family} occurs once");
                let prefixes = ["aivtuber_gateway_", "process_"];
                assert!(prefixes.iter().any(|prefix| family.starts_with(prefix)), "{family}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", family.ends_with("_total"), "{family} is a {kind}");
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let base = name.split('{').next().unwrap();
                let parts = ["_bucket", "_sum", "_count"];
                let whole = parts.iter().find_map(|part| base.strip_suffix(part));
                assert!(base == family || whole == Some(family), "{name} in {family}");
                assert!(series.insert(name), "{name} occurs once");
                value.parse::<f64>().unwrap();
            }
        }
        assert!(families.len() > 15);
    }
}
