//! What the gateway tells about itself: the status page, `/health`, `/ready`, `/connections` and `/metrics`.
//!
//! The gateway fills a [`Snapshot`] of plain data, and each function here makes an answer of it; none looks anything up. The
//! surprising thing: a snapshot counts every open WebSocket with [`Snapshot::add_live`], but lists them in `connections` only
//! for the answers that show them, so that a scrape of 10,000 connections writes none of their addresses.

use crate::base::moment::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::route::Route;
use super::stats::{BothWays, Stats, Traffic};
use super::upstreams::Upstreams;
use crate::proto::http::Reply;

/// The status page lists so many connections; `/connections` has all.
pub const PAGE_CONNECTIONS_MAX: usize = 100;

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page is whole in itself; this holds a browser to it, whatever a value may smuggle in. What is added where the page has
/// the form to talk: its one script, known by its hash, WebSockets of this gateway, and the sounds that came over them.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const TALK_POLICY: &str = "script-src 'sha256-2UC0tY5K1rzTrZZILyoks+Kis4rB5zX/oAODANSNFG0='; connect-src 'self'; media-src blob:";

/// The client that `docs/protocol.md` shows, and the form that uses it.
const TALK_SCRIPT: &str = include_str!("talk.js");

/// The gateway at one moment.
#[derive(Debug)]
pub struct Snapshot<'a> {
    pub version: &'a str,
    pub uptime: Duration,
    pub lifecycle: Lifecycle,
    /// Current routes in file order.
    pub routes: Vec<RouteView<'a>>,
    /// Open WebSockets, for [`connections`] (all of them) and [`page`] (the first [`PAGE_CONNECTIONS_MAX`] do); others leave it
    /// empty.
    pub connections: Vec<ConnectionView<'a>>,
    pub redis: RedisView,
    /// Whether a route serves results, so that the gateway is no use without Redis.
    pub results_wanted: bool,
    pub results: ResultsView,
    pub stats: &'a Stats,
    live: BTreeMap<&'a str, Live>,
}

/// Whether new connections are welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    Serving,
    Draining,
}

/// Where results come from, and whether they can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisView {
    Connected,
    Disconnected,
    /// The gateway's own inbox.
    Embedded,
    /// No route serves results.
    Disabled,
}

/// Who waits for results, and which are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResultsView {
    /// Clients that wait; those that are being sent one do not.
    pub waiting: u64,
    /// Results that are kept in memory.
    pub retained: u64,
    /// Bytes of memory that they take.
    pub retained_bytes: u64,
}

/// One route.
#[derive(Debug)]
pub struct RouteView<'a> {
    pub name: &'a str,
    pub path: String,
    /// In words; see [`Route::target_text`].
    pub target: String,
    /// None where the gateway serves the route itself.
    pub backends: Vec<BackendView<'a>>,
}

/// One backend of a route.
#[derive(Debug)]
pub struct BackendView<'a> {
    pub url: &'a str,
    /// Connections over all routes, dials included.
    pub active: usize,
    pub resting: bool,
    pub last_dial_failed: bool,
}

/// One open WebSocket.
#[derive(Debug)]
pub struct ConnectionView<'a> {
    /// Such as `input_1`.
    pub id: String,
    pub route: &'a str,
    pub state: &'static str,
    pub client: SocketAddr,
    pub backend: Option<String>,
    pub task_id: Option<String>,
    pub opened: SystemTime,
    /// Since the last byte either way.
    pub idle: Duration,
    pub traffic: BothWays,
}

#[derive(Debug, Default, Clone, Copy)]
struct Live {
    open: u64,
    traffic: BothWays,
}

impl<'a> Snapshot<'a> {
    /// A gateway without routes, connections and Redis, to be filled.
    pub fn new(version: &'a str, uptime: Duration, lifecycle: Lifecycle, stats: &'a Stats) -> Self {
        Self {
            version,
            uptime,
            lifecycle,
            routes: Vec::new(),
            connections: Vec::new(),
            redis: RedisView::Disabled,
            results_wanted: false,
            results: ResultsView::default(),
            stats,
            live: BTreeMap::new(),
        }
    }

    /// Counts one open WebSocket and what it has carried so far; to be called for each of them. `route` may be one that a
    /// reload took away.
    pub fn add_live(&mut self, route: &'a str, traffic: BothWays) {
        let live = self.live.entry(route).or_default();
        live.open += 1;
        live.traffic += traffic;
    }

    /// How many WebSockets are open.
    pub fn active_connections(&self) -> u64 {
        self.live.values().map(|live| live.open).sum()
    }

    fn lacks_redis(&self) -> bool {
        self.results_wanted && self.redis == RedisView::Disconnected
    }

    fn is_degraded(&self) -> bool {
        self.lacks_redis()
            || self
                .routes
                .iter()
                .flat_map(|route| &route.backends)
                .any(|backend| backend.last_dial_failed)
    }
}

impl<'a> RouteView<'a> {
    /// The view of `route` at `now`.
    pub fn new(route: &'a Route, upstreams: &'a Upstreams, now: Moment) -> Self {
        let backends = route.upstreams().iter().map(|id| BackendView {
            url: upstreams.url(*id).public_text(),
            active: upstreams.active(*id),
            resting: upstreams.is_resting(*id, now),
            last_dial_failed: upstreams.last_dial_failed(*id),
        });
        Self {
            name: &route.name,
            path: route.path.to_string(),
            target: route.target_text(upstreams),
            backends: backends.collect(),
        }
    }
}

impl RedisView {
    /// The word in `/health`.
    pub fn word(self) -> &'static str {
        match self {
            RedisView::Connected => "connected",
            RedisView::Disconnected => "disconnected",
            RedisView::Embedded => "embedded",
            RedisView::Disabled => "disabled",
        }
    }
}

/// `/health`: always 200; `degraded` when Redis is wanted and away or a backend's last dial failed.
pub fn health(snapshot: &Snapshot) -> Reply {
    #[derive(Serialize)]
    struct Health<'a> {
        status: &'static str,
        gateway: &'static str,
        version: &'a str,
        uptime_seconds: u64,
        active_connections: u64,
        backend_services: serde_json::Map<String, serde_json::Value>,
        redis: &'static str,
    }
    let services =
        snapshot.routes.iter().map(|route| (route.name.to_owned(), route.target.clone().into()));
    json(&Health {
        status: if snapshot.is_degraded() { "degraded" } else { "ok" },
        gateway: "running",
        version: snapshot.version,
        uptime_seconds: snapshot.uptime.as_secs(),
        active_connections: snapshot.active_connections(),
        backend_services: services.collect(),
        redis: snapshot.redis.word(),
    })
}

/// `/ready`: 200, or 503 while draining or while results are wanted and Redis is away.
pub fn ready(snapshot: &Snapshot) -> Reply {
    #[derive(Serialize)]
    struct Ready {
        status: &'static str,
    }
    match snapshot.lifecycle {
        Lifecycle::Draining => uncached(Reply::error(503, "the gateway is shutting down")),
        Lifecycle::Serving if snapshot.lacks_redis() => {
            uncached(Reply::error(503, "Redis connection not available"))
        }
        Lifecycle::Serving => json(&Ready { status: "ready" }),
    }
}

/// `/connections`: every open WebSocket, first by id, then in detail.
pub fn connections(snapshot: &Snapshot) -> Reply {
    #[derive(Serialize)]
    struct Connections<'a> {
        total_connections: usize,
        connections: Vec<&'a str>,
        details: Vec<Detail<'a>>,
    }
    #[derive(Serialize)]
    struct Detail<'a> {
        id: &'a str,
        route: &'a str,
        state: &'static str,
        client: String,
        backend: Option<&'a str>,
        task_id: Option<&'a str>,
        opened: String,
        idle_seconds: f64,
        from_client: Count,
        to_client: Count,
    }
    #[derive(Serialize)]
    struct Count {
        frames: u64,
        bytes: u64,
    }
    let count = |traffic: Traffic| Count { frames: traffic.frames, bytes: traffic.bytes };
    let details = snapshot.connections.iter().map(|connection| Detail {
        id: &connection.id,
        route: connection.route,
        state: connection.state,
        client: connection.client.to_string(),
        backend: connection.backend.as_deref(),
        task_id: connection.task_id.as_deref(),
        opened: rfc3339(connection.opened),
        idle_seconds: connection.idle.as_millis() as f64 / 1000.0,
        from_client: count(connection.traffic.from_client),
        to_client: count(connection.traffic.to_client),
    });
    json(&Connections {
        total_connections: snapshot.connections.len(),
        connections: snapshot.connections.iter().map(|connection| connection.id.as_str()).collect(),
        details: details.collect(),
    })
}

/// `/metrics`: every counter and gauge in Prometheus' text format.
pub fn metrics(snapshot: &Snapshot) -> Reply {
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

    out.counter("connections_accepted_total", "Client connections let in.")
        .plain(stats.connections_accepted);
    out.gauge("connections_open", "Client connections that have not ended.")
        .plain(stats.connections_open);
    let mut family = out.counter("connections_refused_total", "Connections not let in, by reason.");
    for (reason, count) in stats.refused() {
        family.labelled(&[("reason", reason)], *count);
    }
    out.counter(
        "accept_pauses_total",
        "Times accepting was paused for want of connections or descriptors.",
    )
    .plain(stats.accept_pauses);
    let mut family =
        out.counter("http_responses_total", "HTTP answers, upgrades included, by status.");
    for (status, count) in stats.http() {
        family.labelled(&[("status", &status.to_string())], *count);
    }

    route_metrics(snapshot, &mut out);
    backend_metrics(snapshot, &mut out);

    if snapshot.results_wanted {
        result_metrics(snapshot, &mut out);
    }

    out.counter("pings_sent_total", "Pings sent to silent sides.").plain(stats.pings_sent);
    out.counter(
        "pongs_swallowed_total",
        "Answers to the gateway's own pings, which are not relayed.",
    )
    .plain(stats.pongs_swallowed);
    out.counter("messages_too_big_total", "Messages over max_message.")
        .plain(stats.messages_too_big);
    out.counter("log_lines_lost_total", "Log lines that could not be written.")
        .plain(stats.log_lines_lost);

    uncached(Reply {
        status: 200,
        content_type: METRICS_TYPE,
        headers: Vec::new(),
        body: out.text.into_bytes(),
    })
}

/// `/`: the status page.
pub fn page(snapshot: &Snapshot) -> Reply {
    let (state, state_class) = match snapshot.lifecycle {
        Lifecycle::Draining => ("Shutting down", "warn"),
        Lifecycle::Serving if snapshot.is_degraded() => ("Degraded", "bad"),
        Lifecycle::Serving => ("Serving", "good"),
    };
    let can_talk = can_talk(snapshot);
    let body = fill(include_str!("page.html"), |name, out| match name {
        "title" => out.push_str(&format!("{state} · aivtuber-gateway")),
        "state" => out.push_str(state),
        "state_class" => out.push_str(state_class),
        "figures" => push_figures(out, snapshot),
        "routes" => snapshot.routes.iter().for_each(|route| push_route(out, route, snapshot)),
        "connections" => push_connections(out, snapshot),
        "talk" if can_talk => {
            out.push_str(include_str!("talk.html"));
            put(out, format_args!("<script>{TALK_SCRIPT}</script>\n"));
        }
        "talk" => {}
        _ => unreachable!("page.html asks for {name}"),
    });
    let policy =
        if can_talk { format!("{PAGE_POLICY}; {TALK_POLICY}") } else { PAGE_POLICY.to_owned() };
    uncached(Reply::html(200, body)).with("Content-Security-Policy", policy)
}

/// Both paths that the form to talk needs have a route.
fn can_talk(snapshot: &Snapshot) -> bool {
    let has = |fits: fn(&str) -> bool| snapshot.routes.iter().any(|route| fits(&route.path));
    has(|path| path == "/ws/input")
        && has(|path| {
            let name = path.strip_prefix("/ws/output/{").and_then(|rest| rest.strip_suffix('}'));
            name.is_some_and(|name| !name.contains('/'))
        })
}

fn json(body: &impl Serialize) -> Reply {
    let body = serde_json::to_string(body).expect("plain data with text keys is always JSON");
    uncached(Reply::json(200, body))
}

/// All of this is true for a moment only.
fn uncached(reply: Reply) -> Reply {
    reply.with("Cache-Control", "no-store")
}

/// RFC 3339 in UTC with milliseconds.
fn rfc3339(at: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    // `From` panics only beyond the year 9999, which no clock of ours shows.
    OffsetDateTime::from(at).format(format).expect("every component is there")
}

// ---- Prometheus

fn route_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let stats = snapshot.stats.routes();
    // A route that was never used says 0, and one that was taken away keeps its counts.
    let mut names: BTreeSet<&str> = snapshot.routes.iter().map(|route| route.name).collect();
    names.extend(stats.keys().map(|name| &**name));
    names.extend(snapshot.live.keys());

    let mut family = out.gauge("websockets_open", "Open WebSockets.");
    for &name in &names {
        family.labelled(&[("route", name)], snapshot.live.get(name).map_or(0, |live| live.open));
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
    let traffic = |name: &str| {
        let mut traffic = stats.get(name).map(|route| route.traffic).unwrap_or_default();
        traffic += snapshot.live.get(name).map(|live| live.traffic).unwrap_or_default();
        [("from_client", traffic.from_client), ("to_client", traffic.to_client)]
    };
    let mut family =
        out.counter("frames_total", "WebSocket frames carried, control frames included.");
    for &name in &names {
        for (direction, traffic) in traffic(name) {
            family.labelled(&[("route", name), ("direction", direction)], traffic.frames);
        }
    }
    let mut family =
        out.counter("frame_bytes_total", "Bytes of the WebSocket frames carried, heads included.");
    for &name in &names {
        for (direction, traffic) in traffic(name) {
            family.labelled(&[("route", name), ("direction", direction)], traffic.bytes);
        }
    }
}

fn backend_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    // Two routes may share a backend, but a series may stand here only once.
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
    let mut family = out.gauge("backend_resting", "1 while a backend that failed is left alone.");
    for (url, backend) in &backends {
        family.labelled(&[("backend", url)], backend.resting.into());
    }
    let mut family =
        out.gauge("backend_last_dial_failed", "1 if the last dial to a backend failed.");
    for (url, backend) in &backends {
        family.labelled(&[("backend", url)], backend.last_dial_failed.into());
    }
}

fn result_metrics(snapshot: &Snapshot, out: &mut Exposition) {
    let (stats, results) = (snapshot.stats, snapshot.results);
    out.gauge("results_waiting_clients", "Clients that wait for a result.").plain(results.waiting);
    out.counter("results_delivered_total", "Results told to a client.")
        .plain(stats.results_delivered);
    out.counter("audio_bytes_total", "Bytes of audio sent to clients.").plain(stats.audio_bytes);
    out.gauge("results_retained", "Results kept in memory.").plain(results.retained);
    out.gauge("results_retained_bytes", "Memory that kept results take.")
        .plain(results.retained_bytes);
    out.counter(
        "results_evicted_total",
        "Kept results let go before their time, for lack of room.",
    )
    .plain(stats.results_evicted);
    out.counter("redis_connects_total", "Times the connections to Redis came up.")
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

    fn family(&mut self, name: &'static str, help: &str, kind: &str) -> Family<'_> {
        put(
            &mut self.text,
            format_args!("# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"),
        );
        Family { text: &mut self.text, name }
    }
}

const PREFIX: &str = "aivtuber_gateway_";

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

fn put(text: &mut String, what: fmt::Arguments) {
    text.write_fmt(what).expect("a String takes everything");
}

// ---- the page

/// `template` with each `{{name}}` replaced by what `push` writes for it. What was written is not searched again, so a value
/// that looks like a place to fill stays as it is.
fn fill(template: &str, mut push: impl FnMut(&str, &mut String)) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut parts = template.split("{{");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("page.html closes every place");
        push(name, &mut out);
        out.push_str(rest);
    }
    out
}

fn push_figures(out: &mut String, snapshot: &Snapshot) {
    let refused: u64 = snapshot.stats.refused().values().sum();
    let mut figures = vec![
        ("WebSockets", snapshot.active_connections().to_string()),
        ("Accepted", snapshot.stats.connections_accepted.to_string()),
        ("Refused", refused.to_string()),
        ("Redis", snapshot.redis.word().to_owned()),
    ];
    if snapshot.results_wanted {
        let ResultsView { waiting, retained, retained_bytes } = snapshot.results;
        figures.push(("Clients waiting", waiting.to_string()));
        figures.push(("Results delivered", snapshot.stats.results_delivered.to_string()));
        figures.push(("Results kept", format!("{retained} ({})", human_bytes(retained_bytes))));
    }
    figures.push(("Up for", human_duration(snapshot.uptime)));
    figures.push(("Version", snapshot.version.to_owned()));
    for (name, value) in figures {
        put(out, format_args!("\n    <div><dt>{name}</dt><dd>{}</dd></div>", Html(&value)));
    }
}

fn push_route(out: &mut String, route: &RouteView, snapshot: &Snapshot) {
    let open = snapshot.live.get(route.name).map_or(0, |live| live.open);
    let opened = snapshot.stats.routes().get(route.name).map_or(0, |stats| stats.upgrades);
    put(
        out,
        format_args!(
            "\n      <tr><td>{}</td><td><code>{}</code></td><td>",
            Html(route.name),
            Html(&route.path)
        ),
    );
    if route.backends.is_empty() {
        put(out, format_args!("{}", Html(&route.target)));
    }
    for (index, backend) in route.backends.iter().enumerate() {
        let (class, word) = match (backend.last_dial_failed, backend.resting) {
            (false, _) => ("good", "ok"),
            (true, true) => ("bad", "failed, resting"),
            (true, false) => ("bad", "failed, next client tries"),
        };
        let new_line = if index > 0 { "<br>" } else { "" };
        put(
            out,
            format_args!(
                "{new_line}<code>{}</code> <span class=\"state {class}\">{word}</span>",
                Html(backend.url)
            ),
        );
    }
    put(out, format_args!("</td><td class=\"n\">{open}</td><td class=\"n\">{opened}</td></tr>"));
}

fn push_connections(out: &mut String, snapshot: &Snapshot) {
    let shown = snapshot.connections.len().min(PAGE_CONNECTIONS_MAX);
    if shown == 0 {
        out.push_str("  <p>None is open.</p>");
        return;
    }
    out.push_str(
        "  <div class=\"wide\" tabindex=\"0\">\n  <table>\n    <thead><tr><th>Id</th><th>State</th><th>Client</th><th>Task, backend</th>\
         <th class=\"n\">From client</th><th class=\"n\">To client</th><th class=\"n\">Idle</th><th>Opened (UTC)</th></tr></thead>\n    <tbody>",
    );
    for connection in &snapshot.connections[..shown] {
        put(
            out,
            format_args!(
                "\n      <tr><td><code>{}</code></td><td>{}</td><td><code>{}</code></td><td>",
                Html(&connection.id),
                Html(connection.state),
                connection.client
            ),
        );
        for (index, text) in
            [&connection.task_id, &connection.backend].into_iter().flatten().enumerate()
        {
            put(
                out,
                format_args!("{}<code>{}</code>", if index > 0 { "<br>" } else { "" }, Html(text)),
            );
        }
        out.push_str("</td>");
        for traffic in [connection.traffic.from_client, connection.traffic.to_client] {
            put(
                out,
                format_args!(
                    "<td class=\"n\">{} <span class=\"soft\">in {}</span></td>",
                    human_bytes(traffic.bytes),
                    plural(traffic.frames, "frame")
                ),
            );
        }
        let opened = rfc3339(connection.opened);
        put(
            out,
            format_args!(
                "<td class=\"n\">{}</td><td class=\"t\"><time datetime=\"{opened}\" title=\"{opened}\">{}</time></td></tr>",
                human_duration(connection.idle),
                &opened[5..19].replace('T', " ")
            ),
        );
    }
    out.push_str("\n    </tbody>\n  </table>\n  </div>");
    let all = snapshot.active_connections();
    if all > shown as u64 {
        put(
            out,
            format_args!(
                "\n  <p>The first {shown} of {all}; <a href=\"/connections\">all of them</a>.</p>"
            ),
        );
    }
}

/// Text that can stand between tags and in quoted attributes.
struct Html<'t>(&'t str);

impl fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sign in self.0.chars() {
            match sign {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(sign)?,
            }
        }
        Ok(())
    }
}

/// The two largest units that matter: `3 d 4 h`, `2 min 5 s`, `0 s`.
fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024.0 belongs to the next unit.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::route::{BackendUrl, RouteSettings, Routes, Target, Template};
    use serde_json::{Value, json};

    const BOTH: BothWays = BothWays {
        from_client: Traffic { frames: 2, bytes: 20 },
        to_client: Traffic { frames: 3, bytes: 300_000 },
    };

    fn empty(stats: &Stats) -> Snapshot<'_> {
        Snapshot::new("1.2.3", Duration::from_millis(93_784_900), Lifecycle::Serving, stats)
    }

    fn relayed<'a>(name: &'a str, backends: Vec<BackendView<'a>>) -> RouteView<'a> {
        let target = backends.iter().map(|backend| backend.url).collect::<Vec<_>>().join(", ");
        RouteView { name, path: format!("/ws/{name}"), target, backends }
    }

    fn well(url: &str) -> BackendView<'_> {
        BackendView { url, active: 1, resting: false, last_dial_failed: false }
    }

    fn connection(id: &str) -> ConnectionView<'static> {
        ConnectionView {
            id: id.into(),
            route: "input",
            state: "open",
            client: "[::1]:5000".parse().unwrap(),
            backend: Some("ws://a/".into()),
            task_id: None,
            opened: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_007),
            idle: Duration::from_micros(1_500_900),
            traffic: BOTH,
        }
    }

    fn text(reply: &Reply) -> &str {
        std::str::from_utf8(&reply.body).unwrap()
    }

    #[test]
    fn health_is_as_the_contract_has_it() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        snapshot.routes = vec![
            relayed("output", vec![well("ws://b/")]),
            relayed("input", vec![well("ws://a/"), well("ws://c/")]),
            RouteView {
                name: "served",
                path: "/s/{task_id}".into(),
                target: "built in".into(),
                backends: vec![],
            },
        ];
        snapshot.add_live("input", BOTH);
        let reply = health(&snapshot);
        let expected = concat!(
            r#"{"status":"ok","gateway":"running","version":"1.2.3","uptime_seconds":93784,"active_connections":1,"#,
            r#""backend_services":{"output":"ws://b/","input":"ws://a/, ws://c/","served":"built in"},"redis":"disabled"}"#,
        );
        assert_eq!((reply.status, text(&reply)), (200, expected));
    }

    #[test]
    fn health_is_degraded_by_redis_or_a_backend() {
        let stats = Stats::new();
        let status = |snapshot: &Snapshot| {
            let reply = health(snapshot);
            assert_eq!(reply.status, 200);
            serde_json::from_slice::<Value>(&reply.body).unwrap()["status"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let mut snapshot = empty(&stats);
        snapshot.routes = vec![relayed(
            "a",
            vec![well("ws://a/"), BackendView { last_dial_failed: true, ..well("ws://b/") }],
        )];
        assert_eq!(status(&snapshot), "degraded");

        for (redis, results_wanted, expected) in [
            (RedisView::Disconnected, true, "degraded"),
            (RedisView::Disconnected, false, "ok"),
            (RedisView::Connected, true, "ok"),
            (RedisView::Embedded, true, "ok"),
            (RedisView::Disabled, false, "ok"),
        ] {
            let mut snapshot = empty(&stats);
            (snapshot.redis, snapshot.results_wanted) = (redis, results_wanted);
            assert_eq!(status(&snapshot), expected, "{redis:?}");
        }
    }

    #[test]
    fn ready_unless_draining_or_without_wanted_redis() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        let reply = ready(&snapshot);
        assert_eq!((reply.status, text(&reply)), (200, r#"{"status":"ready"}"#));
        (snapshot.redis, snapshot.results_wanted) = (RedisView::Disconnected, true);
        let reply = ready(&snapshot);
        assert_eq!(
            (reply.status, text(&reply)),
            (503, r#"{"status":"error","error":"Redis connection not available"}"#)
        );
        (snapshot.redis, snapshot.lifecycle) = (RedisView::Connected, Lifecycle::Draining);
        assert_eq!(ready(&snapshot).status, 503);
    }

    #[test]
    fn connections_are_as_the_contract_has_them() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        assert_eq!(
            text(&connections(&snapshot)),
            r#"{"total_connections":0,"connections":[],"details":[]}"#
        );
        snapshot.connections.push(connection("input_1"));
        snapshot.connections.push(ConnectionView {
            backend: None,
            task_id: Some("7\"".into()),
            ..connection("output_2")
        });
        let reply = connections(&snapshot);
        assert!(
            text(&reply).starts_with(
                r#"{"total_connections":2,"connections":["input_1","output_2"],"details":[{"id":"input_1","#
            )
        );
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(
            body["details"][0],
            json!({
                "id": "input_1", "route": "input", "state": "open", "client": "[::1]:5000", "backend": "ws://a/",
                "task_id": null, "opened": "2026-09-21T14:13:20.007Z", "idle_seconds": 1.5,
                "from_client": {"frames": 2, "bytes": 20}, "to_client": {"frames": 3, "bytes": 300000},
            })
        );
        assert_eq!(body["details"][1]["task_id"], "7\"");
    }

    #[test]
    fn metrics_add_the_living_to_the_ended() {
        let mut stats = Stats::new();
        stats.connections_accepted = 9;
        stats.pings_sent = 4;
        stats.count_http(101);
        stats.count_refused("full");
        stats.count_upgrade("input");
        stats.count_closed("gone", "done", BOTH);
        stats.count_closed("input", "client_gone", BOTH);
        stats.count_dial("ws://a/", false);
        let mut snapshot = empty(&stats);
        snapshot.add_live("input", BOTH);
        snapshot.routes = vec![
            relayed(
                "input",
                vec![BackendView { resting: true, last_dial_failed: true, ..well("ws://a/") }],
            ),
            relayed("same", vec![well("ws://a/"), well("ws://\"\\\n/")]),
        ];
        let reply = metrics(&snapshot);
        assert_eq!(reply.content_type, "text/plain; version=0.0.4; charset=utf-8");
        let lines: Vec<&str> = text(&reply).lines().collect();
        for line in [
            r#"build_info{version="1.2.3"} 1"#,
            "uptime_seconds 93784",
            "draining 0",
            "connections_accepted_total 9",
            "connections_open 0",
            r#"connections_refused_total{reason="full"} 1"#,
            r#"http_responses_total{status="101"} 1"#,
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
            "pings_sent_total 4",
        ] {
            assert!(
                lines.contains(&format!("aivtuber_gateway_{line}").as_str()),
                "{line} in\n{}",
                text(&reply)
            );
        }
        assert!(!text(&reply).contains("redis"), "without results there is no Redis to be away");
        assert!(!text(&reply).contains("results"));
    }

    #[test]
    fn metrics_tell_of_results_where_they_are_served() {
        let mut stats = Stats::new();
        (stats.results_delivered, stats.results_evicted) = (7, 6);
        (stats.audio_bytes, stats.redis_connects) = (5_000, 4);
        let mut snapshot = empty(&stats);
        snapshot.results_wanted = true;
        snapshot.results = ResultsView { waiting: 3, retained: 2, retained_bytes: 1024 };
        let reply = metrics(&snapshot);
        let lines: Vec<&str> = text(&reply).lines().collect();
        for line in [
            "results_waiting_clients 3",
            "results_delivered_total 7",
            "results_retained 2",
            "results_retained_bytes 1024",
            "results_evicted_total 6",
            "audio_bytes_total 5000",
            "redis_connects_total 4",
            "redis_connected 1",
        ] {
            assert!(
                lines.contains(&format!("aivtuber_gateway_{line}").as_str()),
                "{line} in\n{}",
                text(&reply)
            );
        }
        assert!(text(&page(&snapshot)).contains("<dt>Results kept</dt><dd>2 (1.0 KiB)</dd>"));
    }

    /// The rules of the text format that a scraper holds a page to.
    #[test]
    fn metrics_are_well_formed() {
        let mut stats = Stats::new();
        stats.count_upgrade("input");
        let mut snapshot = empty(&stats);
        snapshot.results_wanted = true;
        snapshot.routes =
            vec![relayed("input", vec![well("ws://a/")]), relayed("same", vec![well("ws://a/")])];
        let reply = metrics(&snapshot);
        assert!(text(&reply).ends_with('\n'));
        let mut families = BTreeSet::new();
        let mut series = BTreeSet::new();
        let mut family = "";
        for line in text(&reply).lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split_once(' ').expect("a help text").0;
                assert!(families.insert(family), "{family} stands here once");
                assert!(family.starts_with("aivtuber_gateway_"));
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", family.ends_with("_total"), "{family} is a {kind}");
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next().unwrap(), family);
                assert!(series.insert(name), "{name} stands here once");
                value.parse::<u64>().unwrap();
            }
        }
        assert!(families.len() > 15);
    }

    #[test]
    fn the_page_escapes_everything_and_lists_a_hundred() {
        let mut stats = Stats::new();
        stats.count_refused("full");
        let mut snapshot = empty(&stats);
        let evil = "<b a='1' c=\"2\">&{{state}}";
        snapshot.version = evil;
        snapshot.routes = vec![RouteView { path: evil.into(), ..relayed(evil, vec![well(evil)]) }];
        snapshot.routes.push(RouteView { target: evil.into(), ..relayed("served", vec![]) });
        for number in 0..150 {
            let connection = connection(&format!("{evil}_{number}"));
            snapshot.connections.push(ConnectionView {
                task_id: Some(evil.into()),
                backend: Some(evil.into()),
                ..connection
            });
            snapshot.add_live("input", BOTH);
        }
        let reply = page(&snapshot);
        let html = text(&reply);
        assert!(!html.contains("<b a="));
        assert_eq!(
            html.matches("&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;{{state}}").count(),
            1 + 3 + 1 + 3 * 100
        );
        assert!(html.contains("_99</code>") && !html.contains("_100</code>"));
        assert!(html.contains("The first 100 of 150"));
        assert!(html.contains("Serving"));
        assert!(
            reply.headers.iter().any(|(name, value)| *name == "Content-Security-Policy" && value.contains("'none'"))
        );
    }

    #[test]
    fn the_page_says_how_things_are() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        assert!(text(&page(&snapshot)).contains("None is open."));
        snapshot.routes = vec![relayed(
            "a",
            vec![BackendView { resting: true, last_dial_failed: true, ..well("ws://a/") }],
        )];
        assert!(text(&page(&snapshot)).contains("Degraded"));
        assert!(text(&page(&snapshot)).contains("failed, resting"));
        snapshot.lifecycle = Lifecycle::Draining;
        assert!(text(&page(&snapshot)).contains("Shutting down"));
    }

    #[test]
    fn the_page_offers_to_talk_where_both_paths_lead_somewhere() {
        let stats = Stats::new();
        let view = |path: &str| RouteView { path: path.into(), ..relayed("any", vec![]) };
        for (paths, can_talk) in [
            (&["/ws/input", "/ws/output/{task_id}"][..], true),
            (&["/ws/output/{id}", "/other", "/ws/input"], true),
            (&[], false),
            (&["/ws/input"], false),
            (&["/ws/output/{task_id}"], false),
            (&["/ws/input", "/ws/output/{a}/{b}"], false),
            (&["/ws/input/{room}", "/ws/output/{task_id}"], false),
        ] {
            let mut snapshot = empty(&stats);
            snapshot.routes = paths.iter().map(|path| view(path)).collect();
            let reply = page(&snapshot);
            let policy = &reply
                .headers
                .iter()
                .find(|(name, _)| *name == "Content-Security-Policy")
                .unwrap()
                .1;
            assert_eq!(text(&reply).contains("<script>"), can_talk, "{paths:?}");
            assert_eq!(policy.contains("script-src"), can_talk, "{policy}");
            assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        }
    }

    #[test]
    fn the_policy_names_the_script_that_is_there() {
        use data_encoding::BASE64;
        use sha2::{Digest, Sha256};
        let hash = BASE64.encode(&Sha256::digest(TALK_SCRIPT));
        assert!(
            TALK_POLICY.contains(&format!("'sha256-{hash}'")),
            "talk.js has changed: TALK_POLICY needs sha256-{hash}"
        );
        assert!(
            !TALK_SCRIPT.contains("</") && !TALK_SCRIPT.contains("<!--"),
            "these would end the script, or hide its end"
        );
    }

    #[test]
    fn a_route_view_tells_what_is_known_of_its_backends() {
        let mut upstreams = Upstreams::new();
        let urls = ["ws://a/{x}?token=secret", "ws://b/"]
            .map(|url| BackendUrl::parse(url).unwrap())
            .to_vec();
        let path = Template::parse("/ws/{x}").unwrap();
        let settings =
            RouteSettings { name: "a".into(), path, target: Target::Backend { urls, host: None } };
        let routes = Routes::new(vec![settings], &mut upstreams);
        let route = routes.iter().next().unwrap();
        let now = Moment::START;
        upstreams.connecting(route.upstreams()[0]);
        upstreams.connecting(route.upstreams()[1]);
        upstreams.failed(route.upstreams()[1], now);
        let view = RouteView::new(route, &upstreams, now);
        assert_eq!(
            (view.name, &*view.path, &*view.target),
            ("a", "/ws/{x}", "ws://a/{x}?…, ws://b/")
        );
        let told: Vec<_> = view
            .backends
            .iter()
            .map(|b| (b.url, b.active, b.resting, b.last_dial_failed))
            .collect();
        assert_eq!(told, [("ws://a/{x}?…", 1, false, false), ("ws://b/", 0, true, true)]);
    }

    #[test]
    fn durations_and_sizes_are_for_people() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (125, "2 min 5 s"),
            (7260, "2 h 1 min"),
            (273_600, "3 d 4 h"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), words);
        }
        for (bytes, words) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(human_bytes(bytes), words);
        }
    }

    #[test]
    fn a_large_list_is_made_in_one_pass() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        snapshot.connections =
            (0..10_000).map(|number| connection(&format!("input_{number}"))).collect();
        let reply = connections(&snapshot);
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(body["total_connections"], 10_000);
        assert_eq!(body["connections"][9999], "input_9999");
        assert_eq!(body["details"].as_array().unwrap().len(), 10_000);
    }
}
