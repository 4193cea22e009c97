//! Reports about the gateway: the status page, `/health`, `/ready`, `/connections`, `/metrics` and
//! the snapshots of `/events`.
//!
//! The gateway fills a [`Snapshot`] with plain data, and each function here turns one into a
//! response; none looks anything up.
//!
//! What needs a look at every session is gathered over several turns ([`Live`],
//! [`ConnectionList`]), so that thousands of connections delay no other.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

mod closed;
mod events;
mod json;
mod page;
mod prometheus;

pub use closed::closed;
pub use events::{Moving, SnapshotParts, TaskCounts, event_snapshot};
pub use json::{ConnectionList, connections, health, ready};
pub use page::{Language, page};
pub use prometheus::metrics;

use crate::base::moment::{Moment, WallClock};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::macros::format_description;

use super::route::Route;
use super::stats::{BothWays, FrameCounts, Stats};
use super::trust::Client;
use super::upstreams::{BackendState, Upstreams};

/// The gateway at one moment.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Snapshot<'a> {
    pub version: &'a str,
    pub uptime: Duration,
    pub lifecycle: Lifecycle,
    /// Current routes in file order.
    pub routes: Vec<RouteView<'a>>,
    pub redis: RedisView,
    /// A route serves results, so the gateway needs a source of results to be ready.
    pub results_wanted: bool,
    pub results: ResultsView,
    /// Bytes of memory held by sessions, results and responses, socket buffers included.
    pub memory_held: u64,
    /// Their limit in bytes; 0: no limit.
    pub memory_limit: u64,
    pub stats: &'a Stats,
    /// Where Redis is; only of use for admins.
    pub redis_address: Option<String>,
    /// Why results cannot be had, if that is so.
    pub redis_problem: Option<String>,
    /// Why the folder of audio files cannot be opened, if results are served from it and it cannot.
    pub audio_root_problem: Option<String>,
    /// Why the log cannot be written.
    pub log_problem: Option<String>,
    pub viewer: Viewer,
    /// Traffic of open WebSockets, for [`metrics`].
    pub live: Live,
    /// What the process takes, for [`metrics`].
    pub process: Option<ProcessView>,
}

/// What the process takes of the machine.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct ProcessView {
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_fds: u64,
    /// `None`: no limit.
    pub max_fds: Option<u64>,
    pub cpu_seconds: f64,
    /// When it was started.
    pub started: SystemTime,
}

/// Who reads a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// Sees everything.
    Admin,
    /// Sees nothing that names a task, an address or a backend.
    Stranger,
}

/// Something for each viewer.
#[derive(Debug, Clone)]
pub struct ByViewer<T> {
    /// For admins.
    pub admin: T,
    /// For everyone else.
    pub stranger: T,
}

impl<T> ByViewer<T> {
    /// What `viewer` gets.
    pub fn of(&self, viewer: Viewer) -> &T {
        match viewer {
            Viewer::Admin => &self.admin,
            Viewer::Stranger => &self.stranger,
        }
    }
}

/// Whether new clients should be sent here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Lifecycle {
    Serving,
    Draining,
}

/// Where results come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum RedisView {
    Connected,
    Disconnected,
    /// From workers that publish to the gateway itself.
    Embedded,
    /// From nowhere: no route serves results.
    Disabled,
}

/// Clients that wait for results, and results that are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResultsView {
    /// Clients that wait for a result; a client that is being sent one is not counted.
    pub waiting: u64,
    /// Number of results kept in memory.
    pub retained: u64,
    /// Memory that these take, in bytes.
    pub retained_bytes: u64,
    /// Tasks that were completed since the start.
    pub completed: u64,
    /// Tasks that failed or timed out since the start.
    pub failed: u64,
}

/// One route.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct RouteView<'a> {
    pub name: &'a str,
    pub path: String,
    /// What it leads to, as text; see [`Route::target_text`].
    pub target: String,
    /// Frames by opcode.
    pub frames: Option<&'a FrameCounts>,
    /// Empty where the gateway serves the route itself.
    pub backends: Vec<BackendView<'a>>,
}

/// One backend of a route.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct BackendView<'a> {
    pub url: &'a str,
    /// Open connections and connection attempts, over all routes.
    pub active: usize,
    pub resting: bool,
    pub state: BackendState,
    /// When it failed, if it has.
    pub failed_since: Option<SystemTime>,
}

impl BackendView<'_> {
    fn has_failed(&self) -> bool {
        matches!(self.state, BackendState::Failed { .. })
    }
}

/// One open WebSocket.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct ConnectionView<'a> {
    /// The connection id, such as `input_1`.
    pub id: String,
    pub route: &'a str,
    pub state: &'static str,
    pub client: Client,
    pub backend: Option<String>,
    pub task_id: Option<String>,
    pub opened: SystemTime,
    /// Time since the last message in either direction.
    pub idle: Duration,
    pub traffic: BothWays,
}

/// Traffic of open WebSockets, to be added to that of those that have ended.
#[derive(Debug, Default)]
pub struct Live {
    /// By route, as it was when each was visited.
    visited: BTreeMap<Box<str>, BothWays>,
    /// Of those that have ended since their visit, and are among the ended ones too.
    ended: BTreeMap<Box<str>, BothWays>,
}

impl Live {
    /// Adds a WebSocket. Its `route` may have been removed by a reload.
    pub fn add(&mut self, route: &str, traffic: BothWays) {
        if let Some(sum) = self.visited.get_mut(route) {
            *sum += traffic;
        } else {
            self.visited.insert(route.into(), traffic);
        }
    }

    /// `ended`, by route, was counted for WebSockets that ended after they were added here.
    pub fn except(&mut self, ended: BTreeMap<Box<str>, BothWays>) {
        self.ended = ended;
    }

    /// All traffic of `route`, of which `ended` was counted for WebSockets that have ended.
    fn with_ended(&self, route: &str, mut ended: BothWays) -> BothWays {
        if let Some(traffic) = self.ended.get(route) {
            ended -= *traffic;
        }
        ended += self.visited.get(route).copied().unwrap_or_default();
        ended
    }
}

impl<'a> Snapshot<'a> {
    /// A snapshot without routes, connections and Redis, to be filled in.
    pub fn new(version: &'a str, uptime: Duration, lifecycle: Lifecycle, stats: &'a Stats) -> Self {
        Self {
            version,
            uptime,
            lifecycle,
            routes: Vec::new(),
            redis: RedisView::Disabled,
            results_wanted: false,
            results: ResultsView::default(),
            memory_held: 0,
            memory_limit: 0,
            stats,
            redis_address: None,
            redis_problem: None,
            audio_root_problem: None,
            log_problem: None,
            viewer: Viewer::Stranger,
            live: Live::default(),
            process: None,
        }
    }

    /// Number of open WebSockets.
    pub fn active_connections(&self) -> u64 {
        self.stats.routes().values().map(|route| route.open).sum()
    }

    fn lacks_redis(&self) -> bool {
        self.results_wanted && self.redis == RedisView::Disconnected
    }

    fn is_degraded(&self) -> bool {
        self.lacks_redis()
            || self.redis_problem.is_some()
            || self.routes.iter().flat_map(|route| &route.backends).any(BackendView::has_failed)
    }
}

impl<'a> RouteView<'a> {
    /// The view of `route` at `now`.
    pub fn new(route: &'a Route, upstreams: &'a Upstreams, now: Moment, wall: &WallClock) -> Self {
        let backends = route.upstreams().iter().map(|id| BackendView {
            url: upstreams.url(*id).public_text(),
            active: upstreams.active(*id),
            resting: upstreams.is_resting(*id, now),
            state: upstreams.state(*id),
            failed_since: match upstreams.state(*id) {
                BackendState::Failed { since, .. } => Some(wall.at(since)),
                BackendState::Ok | BackendState::Untried => None,
            },
        });
        Self {
            name: &route.name,
            path: route.path.to_string(),
            target: route.target_text(upstreams),
            frames: Some(&route.frames),
            backends: backends.collect(),
        }
    }
}

impl RouteView<'_> {
    /// Its backends in one word: `failed` if one has failed, `ok` if one is known to work, else
    /// `untried`.
    fn state_word(&self) -> &'static str {
        let is_any = |is: fn(&BackendView) -> bool| self.backends.iter().any(is);
        if is_any(|backend| backend.has_failed()) {
            "failed"
        } else if is_any(|backend| backend.state == BackendState::Ok) {
            "ok"
        } else {
            "untried"
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

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(at: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    // `From` panics beyond the year 9999.
    OffsetDateTime::from(at).format(format).expect("every component is there")
}

fn put(text: &mut String, what: fmt::Arguments) {
    text.write_fmt(what).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::super::stats::Traffic;
    use super::*;
    use crate::proto::http::{Content, Response};
    use crate::service::attempt::AttemptError;
    use crate::service::route::{RouteSettings, Routes, TargetSettings};
    use crate::service::upstreams::{AttemptOutcome, Purpose};
    use crate::service::url::{BackendUrl, Template};

    pub const BOTH: BothWays = BothWays {
        from_client: Traffic { frames: 2, bytes: 20 },
        to_client: Traffic { frames: 3, bytes: 300_000 },
    };

    pub fn empty(stats: &Stats) -> Snapshot<'_> {
        let uptime = Duration::from_millis(93_784_900);
        let mut snapshot = Snapshot::new("1.2.3", uptime, Lifecycle::Serving, stats);
        snapshot.viewer = Viewer::Admin;
        snapshot
    }

    pub fn relayed<'a>(name: &'a str, backends: Vec<BackendView<'a>>) -> RouteView<'a> {
        let target = backends.iter().map(|backend| backend.url).collect::<Vec<_>>().join(", ");
        RouteView { name, path: format!("/ws/{name}"), target, frames: None, backends }
    }

    pub fn failed() -> BackendState {
        BackendState::Failed { since: Moment::START, error: AttemptError::Unanswered }
    }

    pub fn well(url: &str) -> BackendView<'_> {
        BackendView { url, active: 1, resting: false, state: BackendState::Ok, failed_since: None }
    }

    pub fn connection(id: &str) -> ConnectionView<'static> {
        ConnectionView {
            id: id.into(),
            route: "input",
            state: "open",
            client: Client::Peer("[::1]:5000".parse::<std::net::SocketAddr>().unwrap().into()),
            backend: Some("ws://a/".into()),
            task_id: None,
            opened: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_007),
            idle: Duration::from_micros(1_500_900),
            traffic: BOTH,
        }
    }

    pub fn text(response: &Response) -> &str {
        match &response.content {
            Content::Bytes(bytes) => std::str::from_utf8(bytes).unwrap(),
            Content::Shared(shared) => String::from_utf8(shared.pieces().concat()).unwrap().leak(),
            Content::File(_) | Content::Stream => panic!("no report is a file"),
        }
    }

    #[test]
    fn a_route_view_tells_what_is_known_of_its_backends() {
        let mut upstreams = Upstreams::default();
        let urls = ["ws://a/{x}?token=secret", "ws://b/"]
            .map(|url| BackendUrl::parse(url).unwrap())
            .to_vec();
        let path = Template::parse("/ws/{x}").unwrap();
        let settings = RouteSettings {
            name: "a".into(),
            path,
            target: TargetSettings::Backend { urls, host: None, learn_task: None },
        };
        let routes = Routes::new(vec![settings], &mut upstreams);
        let route = routes.iter().next().unwrap();
        let now = Moment::START;
        let [well, failed] = *route.upstreams() else { panic!("two backends") };
        upstreams.connecting(well, Purpose::Client);
        upstreams.connecting(failed, Purpose::Client);
        upstreams.ended(
            failed,
            Purpose::Client,
            AttemptOutcome::Failed(AttemptError::Refused),
            now,
        );
        let view =
            RouteView::new(route, &upstreams, now, &WallClock::new(now, SystemTime::UNIX_EPOCH));
        assert_eq!(
            (view.name, &*view.path, &*view.target),
            ("a", "/ws/{x}", "ws://a/{x}?…, ws://b/")
        );
        let told: Vec<_> =
            view.backends.iter().map(|b| (b.url, b.active, b.resting, b.has_failed())).collect();
        assert_eq!(told, [("ws://a/{x}?…", 1, false, false), ("ws://b/", 0, true, true)]);
    }
}
