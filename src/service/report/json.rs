//! `/health`, `/ready` and `/connections`.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::rc::Rc;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::super::stats::Traffic;
use super::super::upstreams::BackendState;
use super::{ByViewer, ConnectionView, Lifecycle, RouteView, Snapshot, Viewer, rfc3339};
use crate::base::budget::Budget;
use crate::proto::http::{JSON, Response, Shared};
use crate::service::trust::Client;

/// `/health`: always 200. The status is `degraded` when the last dial to a backend failed, or when
/// results are served and Redis is away.
pub fn health(snapshot: &Snapshot) -> Response {
    json(&HealthJson::new(snapshot))
}

/// The content of `/health`.
#[derive(Serialize)]
pub(super) struct HealthJson<'a> {
    status: &'static str,
    gateway: &'static str,
    version: &'a str,
    uptime_seconds: u64,
    active_connections: u64,
    /// What each route leads to; null for strangers.
    backend_services: serde_json::Map<String, Value>,
    /// The state of each relayed route.
    backends: serde_json::Map<String, Value>,
    /// That of each of its backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_states: Option<serde_json::Map<String, Value>>,
    redis: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    redis_address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problems: Option<Vec<String>>,
}

impl<'a> HealthJson<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> HealthJson<'a> {
        let is_admin = snapshot.viewer == Viewer::Admin;
        let services = snapshot.routes.iter().map(|route| {
            let target = if is_admin { route.target.clone().into() } else { Value::Null };
            (route.name.to_owned(), target)
        });
        let relayed = || snapshot.routes.iter().filter(|route| !route.backends.is_empty());
        let backends = relayed().map(|route| (route.name.to_owned(), route.state_word().into()));
        let states = || relayed().map(|route| (route.name.to_owned(), backend_states(route)));
        HealthJson {
            status: if snapshot.is_degraded() { "degraded" } else { "ok" },
            gateway: "running",
            version: snapshot.version,
            uptime_seconds: snapshot.uptime.as_secs(),
            active_connections: snapshot.active_connections(),
            backend_services: services.collect(),
            backends: backends.collect(),
            backend_states: is_admin.then(|| states().collect()),
            redis: snapshot.redis.word(),
            redis_address: snapshot.redis_address.as_deref().filter(|_| is_admin),
            problems: is_admin.then(|| problems(snapshot)),
        }
    }
}

/// What is known of each backend of a route, by its URL.
fn backend_states(route: &RouteView) -> Value {
    let states = route.backends.iter().map(|backend| {
        let state = match (backend.state, backend.failed_since) {
            (BackendState::Ok, _) => serde_json::json!({"state": "ok"}),
            (BackendState::Untried, _) => serde_json::json!({"state": "untried"}),
            (BackendState::Failed { error, .. }, since) => serde_json::json!({
                "state": "failed", "since": since.map(rfc3339), "error": error.to_string(),
            }),
        };
        (backend.url.to_owned(), state)
    });
    Value::Object(states.collect())
}

/// What is wrong, one sentence each: `input: ws://…: connection refused`.
fn problems(snapshot: &Snapshot) -> Vec<String> {
    let mut problems = Vec::new();
    for route in &snapshot.routes {
        for backend in &route.backends {
            if let BackendState::Failed { error, .. } = backend.state {
                problems.push(format!("{}: {}: {error}", route.name, backend.url));
            }
        }
    }
    if snapshot.lacks_redis() || snapshot.redis_problem.is_some() {
        let why = snapshot.redis_problem.as_deref().unwrap_or("not connected");
        problems.push(format!("redis: {why}"));
    }
    if let Some(why) = &snapshot.audio_root_problem {
        problems.push(format!("audio_root: {why}"));
    }
    if let Some(why) = &snapshot.log_problem {
        problems.push(format!("log: {why}"));
    }
    problems
}

/// `/ready`: 200; 503 while draining, or while results are served and Redis is away.
pub fn ready(snapshot: &Snapshot) -> Response {
    #[derive(Serialize)]
    struct ReadyJson {
        status: &'static str,
    }
    match snapshot.lifecycle {
        Lifecycle::Draining => Response::error(503, "the gateway is shutting down"),
        Lifecycle::Serving if snapshot.lacks_redis() => {
            Response::error(503, "Redis connection not available")
        }
        Lifecycle::Serving => json(&ReadyJson { status: "ready" }),
    }
}

/// `/connections`: the ids of all open WebSockets, then their details.
pub fn connections(content: Shared) -> Response {
    Response::shared(JSON, content)
}

/// The content of `/connections`, written one connection at a time.
///
/// The number of connections and all ids come before the first detail, so nothing can be sent
/// before the last connection is known. Both lists are kept as text in pieces.
#[derive(Debug)]
pub struct ConnectionList {
    count: usize,
    ids: PiecedText,
    /// `None` if only strangers asked.
    details: Option<PiecedText>,
}

/// Text in pieces of about [`PIECE_BYTES`].
#[derive(Debug, Default)]
struct PiecedText {
    full: Vec<Rc<[u8]>>,
    last: Vec<u8>,
}

/// Length of a piece from which on the next one begins, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

impl ConnectionList {
    /// An empty list for `viewer`; that for an admin is also for strangers.
    pub fn new(viewer: Viewer) -> ConnectionList {
        let details = (viewer == Viewer::Admin).then(PiecedText::default);
        ConnectionList { count: 0, ids: PiecedText::default(), details }
    }

    /// Appends one connection.
    pub fn push(&mut self, connection: &ConnectionView) {
        self.count += 1;
        self.ids.push(&connection.id);
        if let Some(details) = &mut self.details {
            details.push(&DetailJson::new(connection));
        }
    }

    /// The whole, for each viewer, charged to `budget` until the last copy is gone.
    pub fn finish(self, budget: &Budget) -> ByViewer<Shared> {
        let begin = format!(r#"{{"total_connections":{},"connections":["#, self.count);
        let text = |text: &[u8]| std::iter::once(Rc::from(text));
        let ids: Vec<Rc<[u8]>> = text(begin.as_bytes()).chain(self.ids.finish()).collect();
        let for_strangers = ids.iter().cloned().chain(text(b"]}"));
        let stranger = Shared::new(for_strangers.collect(), budget);
        let admin = self.details.map(|details| {
            let for_admins = ids.into_iter().chain(text(br#"],"details":["#));
            Shared::new(for_admins.chain(details.finish()).chain(text(b"]}")).collect(), budget)
        });
        ByViewer { admin: admin.unwrap_or_else(|| stranger.clone()), stranger }
    }
}

impl PiecedText {
    /// Appends a value of a JSON array, with the comma before it.
    fn push(&mut self, value: &impl Serialize) {
        if !self.full.is_empty() || !self.last.is_empty() {
            self.last.push(b',');
        }
        serde_json::to_writer(&mut self.last, value).expect("plain data is always JSON");
        if self.last.len() >= PIECE_BYTES {
            self.full.push(self.last.as_slice().into());
            self.last.clear();
        }
    }

    fn finish(self) -> impl Iterator<Item = Rc<[u8]>> {
        self.full.into_iter().chain(std::iter::once(self.last.into()))
    }
}

/// Serializes what is displayed as text.
fn as_text<S: Serializer>(value: &Client, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[derive(Serialize)]
struct DetailJson<'a> {
    id: &'a str,
    route: &'a str,
    state: &'static str,
    #[serde(serialize_with = "as_text")]
    client: Client,
    backend: Option<&'a str>,
    task_id: Option<&'a str>,
    opened: String,
    idle_seconds: f64,
    from_client: Count,
    to_client: Count,
}

/// Frames and bytes in one direction.
#[derive(Serialize)]
pub(super) struct Count {
    frames: u64,
    bytes: u64,
}

impl Count {
    pub(super) fn of(traffic: Traffic) -> Count {
        Count { frames: traffic.frames, bytes: traffic.bytes }
    }
}

impl<'a> DetailJson<'a> {
    fn new(connection: &'a ConnectionView<'a>) -> DetailJson<'a> {
        DetailJson {
            id: &connection.id,
            route: connection.route,
            state: connection.state,
            client: connection.client,
            backend: connection.backend.as_deref(),
            task_id: connection.task_id.as_deref(),
            opened: rfc3339(connection.opened),
            idle_seconds: connection.idle.as_millis() as f64 / 1000.0,
            from_client: Count::of(connection.traffic.from_client),
            to_client: Count::of(connection.traffic.to_client),
        }
    }
}

fn json(body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).expect("plain data with text keys is always JSON");
    Response::json(200, body)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connection, empty, failed, relayed, text, well};
    use super::super::{BackendView, ConnectionView, Language, RedisView};
    use super::*;
    use crate::proto::http::Content;
    use crate::service::stats::Stats;
    use serde_json::{Value, json};

    #[test]
    fn health_has_every_field_in_order() {
        let mut stats = Stats::new();
        stats.count_open("input");
        let mut snapshot = empty(&stats);
        snapshot.routes = vec![
            relayed("output", vec![well("ws://b/")]),
            relayed("input", vec![well("ws://a/"), well("ws://c/")]),
            RouteView {
                name: "served",
                path: "/s/{task_id}".into(),
                target: "built in".into(),
                frames: None,
                backends: vec![],
            },
        ];
        let response = health(&snapshot);
        let expected = concat!(
            r#"{"status":"ok","gateway":"running","version":"1.2.3","uptime_seconds":93784,"active_connections":1,"#,
            r#""backend_services":{"output":"ws://b/","input":"ws://a/, ws://c/","served":"built in"},"#,
            r#""backends":{"output":"ok","input":"ok"},"#,
            r#""backend_states":{"output":{"ws://b/":{"state":"ok"}},"#,
            r#""input":{"ws://a/":{"state":"ok"},"ws://c/":{"state":"ok"}}},"#,
            r#""redis":"disabled","problems":[]}"#,
        );
        assert_eq!((response.status, text(&response)), (200, expected));
    }

    #[test]
    fn health_says_since_when_a_backend_has_failed_and_why() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        let since = Some(std::time::SystemTime::UNIX_EPOCH);
        let sick = BackendView { state: failed(), failed_since: since, ..well("ws://a/") };
        let new = BackendView { state: BackendState::Untried, ..well("ws://b/") };
        snapshot.routes = vec![relayed("input", vec![sick, new])];
        let seen: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
        let sick = json!({
            "state": "failed", "since": "1970-01-01T00:00:00.000Z",
            "error": "it closed the connection without an answer",
        });
        let states = json!({"input": {"ws://a/": sick, "ws://b/": {"state": "untried"}}});
        assert_eq!(seen["backend_states"], states);
    }

    #[test]
    fn strangers_learn_no_backend_address_and_task() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        snapshot.viewer = Viewer::Stranger;
        snapshot.results_wanted = true;
        snapshot.redis = RedisView::Disconnected;
        snapshot.redis_address = Some("redis.internal:6379".into());
        snapshot.redis_problem = Some("redis.internal:6379: Connection refused".into());
        snapshot.audio_root_problem = Some("/voices: Permission denied".into());
        snapshot.routes = vec![
            relayed("input", vec![BackendView { state: failed(), ..well("ws://secret/") }]),
            relayed(
                "new",
                vec![BackendView { state: BackendState::Untried, ..well("ws://secret/") }],
            ),
            relayed(
                "mixed",
                vec![well("ws://secret/"), BackendView { state: failed(), ..well("ws://secret/") }],
            ),
        ];
        let mut list = ConnectionList::new(Viewer::Admin);
        list.push(&connection("input_1"));
        let list = list.finish(&Budget::new(None));
        for (name, response) in [
            ("health", health(&snapshot)),
            ("connections", connections(list.of(Viewer::Stranger).clone())),
            ("page", super::super::page(&snapshot, Language::English)),
        ] {
            let text = text(&response);
            for secret in ["ws://secret", "redis.internal", "[::1]:5000", "ws://a/"] {
                assert!(!text.contains(secret), "{name} has {secret}:\n{text}");
            }
        }
        let seen: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
        assert_eq!(seen["backend_services"], json!({"input": null, "new": null, "mixed": null}));
        assert_eq!(
            seen["backends"],
            json!({"input": "failed", "new": "untried", "mixed": "failed"})
        );
        assert_eq!((&seen["problems"], &seen["redis_address"]), (&Value::Null, &Value::Null));

        snapshot.viewer = Viewer::Admin;
        let seen: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
        assert_eq!(seen["redis_address"], "redis.internal:6379");
        assert_eq!(
            seen["problems"][0],
            "input: ws://secret/: it closed the connection without an answer"
        );
        assert_eq!(seen["problems"][2], "redis: redis.internal:6379: Connection refused");
        assert_eq!(seen["problems"][3], "audio_root: /voices: Permission denied");
        assert_eq!(seen["problems"][4], Value::Null);
        snapshot.log_problem = Some("No space left on device".into());
        let seen: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
        assert_eq!(seen["problems"][4], "log: No space left on device");
    }

    #[test]
    fn admins_read_why_redis_is_away_or_does_not_keep_results() {
        let stats = Stats::new();
        let away = "redis.internal:6379: Connection refused";
        let keeps_nothing = "MISCONF Redis is configured to save RDB snapshots";
        for (redis, word, why, problem) in [
            (RedisView::Disconnected, "disconnected", Some(away), format!("redis: {away}")),
            (RedisView::Disconnected, "disconnected", None, "redis: not connected".into()),
            (
                RedisView::Connected,
                "connected",
                Some(keeps_nothing),
                format!("redis: {keeps_nothing}"),
            ),
        ] {
            let mut snapshot = empty(&stats);
            (snapshot.redis, snapshot.results_wanted) = (redis, true);
            snapshot.redis_problem = why.map(str::to_owned);
            let seen: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
            assert_eq!((&seen["status"], &seen["redis"]), (&"degraded".into(), &word.into()));
            assert_eq!(seen["problems"], json!([problem]));
            snapshot.viewer = Viewer::Stranger;
            let seen: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
            assert_eq!((&seen["status"], &seen["redis"]), (&"degraded".into(), &word.into()));
            assert_eq!(seen["problems"], Value::Null);
        }
    }

    #[test]
    fn health_is_degraded_by_redis_or_a_backend() {
        let stats = Stats::new();
        let status = |snapshot: &Snapshot| {
            let response = health(snapshot);
            assert_eq!(response.status, 200);
            serde_json::from_slice::<Value>(text(&response).as_bytes()).unwrap()["status"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let mut snapshot = empty(&stats);
        snapshot.routes = vec![relayed(
            "a",
            vec![well("ws://a/"), BackendView { state: failed(), ..well("ws://b/") }],
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
    fn health_of_a_route_is_that_of_its_worst_tried_backend() {
        use BackendState::{Ok, Untried};
        let failed = failed();
        let stats = Stats::new();
        for (backends, word) in [
            (&[Untried, Untried][..], "untried"),
            (&[Untried, Ok], "ok"),
            (&[Ok, failed], "failed"),
            (&[Untried, failed], "failed"),
        ] {
            let views = backends.iter().map(|&state| BackendView { state, ..well("ws://a/") });
            let mut snapshot = empty(&stats);
            snapshot.routes = vec![relayed("input", views.collect())];
            let body: Value = serde_json::from_str(text(&health(&snapshot))).unwrap();
            assert_eq!(body["backends"], json!({ "input": word }), "{backends:?}");
        }
    }

    #[test]
    fn ready_unless_draining_or_without_needed_redis() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        let response = ready(&snapshot);
        assert_eq!((response.status, text(&response)), (200, r#"{"status":"ready"}"#));
        (snapshot.redis, snapshot.results_wanted) = (RedisView::Disconnected, true);
        let response = ready(&snapshot);
        assert_eq!(
            (response.status, text(&response)),
            (503, r#"{"status":"error","error":"Redis connection not available"}"#)
        );
        (snapshot.redis, snapshot.lifecycle) = (RedisView::Connected, Lifecycle::Draining);
        assert_eq!(ready(&snapshot).status, 503);
    }

    fn listed(views: &[ConnectionView]) -> (Response, Value) {
        let mut list = ConnectionList::new(Viewer::Admin);
        views.iter().for_each(|view| list.push(view));
        let response = connections(list.finish(&Budget::new(None)).of(Viewer::Admin).clone());
        let body = serde_json::from_slice(text(&response).as_bytes()).unwrap();
        (response, body)
    }

    #[test]
    fn connections_have_every_field_in_order() {
        let (response, _) = listed(&[]);
        assert_eq!(text(&response), r#"{"total_connections":0,"connections":[],"details":[]}"#);
        let other =
            ConnectionView { backend: None, task_id: Some("7\"".into()), ..connection("output_2") };
        let (response, body) = listed(&[connection("input_1"), other]);
        assert!(
            text(&response).starts_with(
                r#"{"total_connections":2,"connections":["input_1","output_2"],"details":[{"id":"input_1","#
            )
        );
        assert_eq!(
            body["details"][0],
            json!({
                "id": "input_1", "route": "input", "state": "open", "client": "[::1]:5000",
                "backend": "ws://a/", "task_id": null, "opened": "2026-09-21T14:13:20.007Z",
                "idle_seconds": 1.5, "from_client": {"frames": 2, "bytes": 20},
                "to_client": {"frames": 3, "bytes": 300000},
            })
        );
        assert_eq!(body["details"][1]["task_id"], "7\"");
    }

    #[test]
    fn connections_of_a_full_gateway_are_valid_json_in_pieces() {
        let views: Vec<_> =
            (0..10_000).map(|number| connection(&format!("input_{number}"))).collect();
        let (response, body) = listed(&views);
        assert_eq!(body["total_connections"], 10_000);
        assert_eq!(body["connections"][9999], "input_9999");
        assert_eq!(body["details"].as_array().unwrap().len(), 10_000);
        let Content::Shared(content) = &response.content else { panic!("{response:?}") };
        let longest = content.pieces().iter().map(|piece| piece.len()).max();
        assert!(longest < Some(2 * PIECE_BYTES), "{longest:?} bytes in one piece");
    }
}
