//! Routes: which one answers a request path, and the check of those that are configured.
//!
//! The gateway's own endpoints come before all routes, apart from `/`, which a route may claim.
//! Then the first route in file order that fits is taken.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]
#![expect(clippy::indexing_slicing, reason = "positions come from a search in the same text")]

use std::rc::Rc;
use std::time::Duration;

use super::assets::Files;
use super::endpoints::{ENDPOINTS, Endpoint};
use super::stats::FrameCounts;
use super::token::Token;
use super::upstreams::{UpstreamId, Upstreams};
use super::url::{BackendProtocol, BackendUrl, Params, Template, split_authority};

/// The longest route name in bytes. It becomes part of ids, log lines and metric labels.
const NAME_BYTES_MAX: usize = 64;

/// The endpoint that a route may take over; the status page is also elsewhere.
const CLAIMABLE: &str = "/";

/// The name in the path of a route that serves results which holds the task's id.
pub const TASK_ID: &str = "task_id";

/// A route in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct RouteSettings {
    /// 1 to 64 of `[a-z0-9_-]`.
    pub name: String,
    pub path: Template,
    pub target: TargetSettings,
}

/// What answers a route in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum TargetSettings {
    /// It is relayed to one of `urls`, with `host` in place of the client's `Host`. The task's id
    /// is read from the field `learn_task` of the backend's messages.
    Backend { urls: Vec<BackendUrl>, host: Option<String>, learn_task: Option<String> },
    /// Its requests are passed on to one of `urls`, with `host` in place of the client's `Host`.
    Http { urls: Vec<BackendUrl>, host: Option<String>, limits: HttpLimits },
    /// The gateway itself delivers results.
    Output,
    /// Workers send speech to the gateway itself.
    Ingest(Access),
    /// The gateway itself sends files of a folder.
    Files(Files),
}

impl TargetSettings {
    /// The URLs of its backends; none if the gateway itself answers it.
    pub fn urls(&self) -> &[BackendUrl] {
        match self {
            TargetSettings::Backend { urls, .. } | TargetSettings::Http { urls, .. } => urls,
            TargetSettings::Output | TargetSettings::Ingest(_) | TargetSettings::Files(_) => &[],
        }
    }

    /// What its backends get in place of the client's `Host`.
    pub fn host(&self) -> Option<&str> {
        match self {
            TargetSettings::Backend { host, .. } | TargetSettings::Http { host, .. } => {
                host.as_deref()
            }
            TargetSettings::Output | TargetSettings::Ingest(_) | TargetSettings::Files(_) => None,
        }
    }
}

/// What a route for plain HTTP has in place of what `[proxy]` says; the outer `None`: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of the largest body of a request; the inner `None`: no limit.
    pub max_body: Option<Option<u64>>,
    /// Timeout for the head of a backend's response; the inner `None`: none.
    pub response_timeout: Option<Option<Duration>>,
}

/// Which workers may connect to a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// What they have to send; `None`: they must be admins.
    pub token: Option<Token>,
    /// The file that the token was read from; empty: it is in the configuration itself.
    pub token_file: String,
}

/// Checks that routes can be used.
///
/// # Errors
/// A sentence that begins with the name of the route that is wrong.
pub fn check(routes: &[RouteSettings]) -> Result<(), String> {
    for (index, route) in routes.iter().enumerate() {
        check_alone(route)
            .map_err(|why| format!("route `{}`: {why}", route.name.escape_debug()))?;
        if routes[..index].iter().any(|earlier| earlier.name == route.name) {
            return Err(format!(
                "route `{}`: another route has this name already, names must differ",
                route.name
            ));
        }
    }
    Ok(())
}

/// What can never be reached, one sentence each: routes of which an endpoint or an earlier route
/// takes every path.
pub fn shadowed(routes: &[RouteSettings]) -> Vec<String> {
    let shadow_of = |(index, route): (usize, &RouteSettings)| {
        let hiding = ENDPOINTS.iter().map(|endpoint| endpoint.path).find(|path| {
            let template = Template::parse(path).expect("endpoint paths are well formed");
            *path != CLAIMABLE && template.covers(&route.path)
        });
        let why = match hiding {
            Some(path) => format!("the gateway itself answers `{path}`"),
            None => {
                let earlier =
                    routes[..index].iter().find(|earlier| earlier.path.covers(&route.path))?;
                let advice = match route.path.covers(&earlier.path) {
                    true => "the same path can only be routed once",
                    false => "put the narrower path first",
                };
                format!("route `{}` before it takes `{}`: {advice}", earlier.name, earlier.path)
            }
        };
        Some(format!(
            "route `{}`: its path `{}` is never reached, because {why}",
            route.name, route.path
        ))
    };
    routes.iter().enumerate().filter_map(shadow_of).collect()
}

fn check_alone(route: &RouteSettings) -> Result<(), String> {
    let is_good = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    if route.name.is_empty()
        || route.name.len() > NAME_BYTES_MAX
        || !route.name.bytes().all(is_good)
    {
        return Err(format!(
            "a name is 1 to {NAME_BYTES_MAX} of the characters a-z, 0-9, `_` and `-`"
        ));
    }
    match &route.target {
        TargetSettings::Output => {
            let is_segment = route.path.rest_name() != Some(TASK_ID);
            if !is_segment || !route.path.names().any(|name| name == TASK_ID) {
                return Err(format!(
                    "its path `{}` must hold `{{{TASK_ID}}}` to serve results",
                    route.path
                ));
            }
        }
        TargetSettings::Ingest(_) => {}
        TargetSettings::Files(files) => {
            if route.path.rest_name().is_none() {
                return Err(format!(
                    "its path `{}` must end with a name for the rest, such as `/{{file...}}`, to \
                     serve files",
                    route.path
                ));
            }
            files.check()?;
        }
        TargetSettings::Backend { urls, host, .. } | TargetSettings::Http { urls, host, .. } => {
            let is_http = matches!(route.target, TargetSettings::Http { .. });
            if urls.iter().any(|url| (url.protocol() == BackendProtocol::Http) != is_http) {
                return Err("its backends are all for WebSockets or all for plain HTTP".into());
            }
            if urls.is_empty() {
                return Err("it needs at least one backend URL".into());
            }
            for (index, url) in urls.iter().enumerate() {
                if urls[..index].contains(url) {
                    return Err(format!("the backend `{url}` is listed twice"));
                }
                if let Some(name) =
                    url.names().find(|name| !route.path.names().any(|known| known == *name))
                {
                    return Err(format!(
                        "the backend `{url}` uses `{{{name}}}`, which its path `{}` does not have",
                        route.path
                    ));
                }
            }
            if let Some(host) = host {
                split_authority(host)
                    .map_err(|why| format!("`host = {host:?}` is no host header: {why}"))?;
            }
        }
    }
    Ok(())
}

/// A route in use. A session keeps the route that it began with, also when a reload replaces it.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Route {
    pub name: Rc<str>,
    pub path: Template,
    pub target: RouteTarget,
    /// Shared with the routes of the same name before and after a reload.
    pub frames: Rc<FrameCounts>,
}

/// What answers a route in use.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields and variants explain themselves")]
pub enum RouteTarget {
    Relay { upstreams: Vec<UpstreamId>, host: Option<String>, learn_task: Option<String> },
    Http { upstreams: Vec<UpstreamId>, host: Option<String>, limits: HttpLimits },
    Output,
    Ingest(Access),
    Files(Files),
}

impl Route {
    /// The backends that it may relay to; none if the gateway itself answers it.
    pub fn upstreams(&self) -> &[UpstreamId] {
        match &self.target {
            RouteTarget::Relay { upstreams, .. } | RouteTarget::Http { upstreams, .. } => upstreams,
            RouteTarget::Output | RouteTarget::Ingest(_) | RouteTarget::Files(_) => &[],
        }
    }

    /// Whether a backend might read its path as another one once these values are in it.
    pub fn is_misled_by(&self, params: &Params<'_>, upstreams: &Upstreams) -> bool {
        self.upstreams().iter().any(|id| upstreams.url(*id).is_misled_by(params))
    }

    /// The field of its backends' messages that has the task's id, if the gateway reads it.
    pub fn learn_task(&self) -> Option<&str> {
        match &self.target {
            RouteTarget::Relay { learn_task, .. } => learn_task.as_deref(),
            RouteTarget::Http { .. }
            | RouteTarget::Output
            | RouteTarget::Ingest(_)
            | RouteTarget::Files(_) => None,
        }
    }

    /// Whether it passes plain HTTP on.
    pub fn is_http(&self) -> bool {
        matches!(self.target, RouteTarget::Http { .. })
    }

    /// What answers it, for `/health`, the status page and the log: its URLs, separated by `, `,
    /// `built in`, or `files in` with the folder.
    pub fn target_text(&self, upstreams: &Upstreams) -> String {
        match &self.target {
            RouteTarget::Relay { upstreams: ids, .. }
            | RouteTarget::Http { upstreams: ids, .. } => {
                ids.iter().map(|id| upstreams.url(*id).public_text()).collect::<Vec<_>>().join(", ")
            }
            RouteTarget::Output | RouteTarget::Ingest(_) => "built in".into(),
            RouteTarget::Files(files) => format!("files in {}", files.folder.display()),
        }
    }
}

/// The routes in file order, and those of earlier configurations that sessions still use.
#[derive(Debug)]
pub struct Routes {
    current: Vec<Rc<Route>>,
    replaced: Vec<Rc<Route>>,
}

impl Routes {
    /// Takes routes that have passed [`check`]. Each of their backends gets an entry in
    /// `upstreams`.
    pub fn new(settings: Vec<RouteSettings>, upstreams: &mut Upstreams) -> Self {
        Self {
            current: settings.into_iter().map(|route| Rc::new(in_use(route, upstreams))).collect(),
            replaced: Vec::new(),
        }
    }

    /// Takes other settings. Sessions keep the routes they have; the backends of those stay known
    /// until the last of the sessions has ended.
    pub fn reload(&mut self, settings: Vec<RouteSettings>, upstreams: &mut Upstreams) {
        let mut current = Self::new(settings, upstreams).current;
        for route in current.iter_mut().filter_map(Rc::get_mut) {
            let known = self.current.iter().chain(&self.replaced);
            if let Some(old) = known.into_iter().find(|old| old.name == route.name) {
                route.frames = Rc::clone(&old.frames);
            }
        }
        self.replaced.append(&mut std::mem::replace(&mut self.current, current));
        self.release_unused(upstreams);
    }

    /// Forgets replaced routes that no session uses any more, and their backends. To be called
    /// after sessions have ended; costs nothing while no route is replaced.
    pub fn release_unused(&mut self, upstreams: &mut Upstreams) {
        if self.replaced.is_empty() {
            return;
        }
        let before = self.replaced.len();
        self.replaced.retain(|route| Rc::strong_count(route) > 1);
        if self.replaced.len() < before {
            let kept = self.current.iter().chain(&self.replaced);
            let used: Vec<UpstreamId> = kept.flat_map(|route| route.upstreams()).copied().collect();
            upstreams.retain(|id| used.contains(&id));
        }
    }

    /// The first route in file order that matches `path`, without its query; none where the
    /// gateway itself has `endpoint`.
    pub fn find<'p>(
        &self,
        path: &'p str,
        endpoint: Option<&Endpoint>,
    ) -> Option<(&Rc<Route>, Params<'p>)> {
        if endpoint.is_some_and(|endpoint| endpoint.path != CLAIMABLE) {
            return None;
        }
        self.current.iter().find_map(|route| Some((route, route.path.match_path(path)?)))
    }

    /// The current routes as the configuration has them.
    pub fn settings(&self, upstreams: &Upstreams) -> Vec<RouteSettings> {
        let settings = self.current.iter().map(|route| {
            let target = match &route.target {
                RouteTarget::Relay { upstreams: ids, host, learn_task } => {
                    TargetSettings::Backend {
                        urls: ids.iter().map(|&id| upstreams.url(id).clone()).collect(),
                        host: host.clone(),
                        learn_task: learn_task.clone(),
                    }
                }
                RouteTarget::Http { upstreams: ids, host, limits } => TargetSettings::Http {
                    urls: ids.iter().map(|&id| upstreams.url(id).clone()).collect(),
                    host: host.clone(),
                    limits: *limits,
                },
                RouteTarget::Output => TargetSettings::Output,
                RouteTarget::Ingest(access) => TargetSettings::Ingest(access.clone()),
                RouteTarget::Files(files) => TargetSettings::Files(files.clone()),
            };
            RouteSettings { name: route.name.to_string(), path: route.path.clone(), target }
        });
        settings.collect()
    }

    /// The current routes in file order.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<Route>> {
        self.current.iter()
    }
}

fn in_use(settings: RouteSettings, upstreams: &mut Upstreams) -> Route {
    let target = match settings.target {
        TargetSettings::Backend { urls, host, learn_task } => RouteTarget::Relay {
            upstreams: urls.iter().map(|url| upstreams.intern(url)).collect(),
            host,
            learn_task,
        },
        TargetSettings::Http { urls, host, limits } => RouteTarget::Http {
            upstreams: urls.iter().map(|url| upstreams.intern(url)).collect(),
            host,
            limits,
        },
        TargetSettings::Output => RouteTarget::Output,
        TargetSettings::Ingest(access) => RouteTarget::Ingest(access),
        TargetSettings::Files(files) => RouteTarget::Files(files),
    };
    let frames = Rc::default();
    Route { name: settings.name.into(), path: settings.path, target, frames }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    fn relayed(name: &str, path: &str, urls: &[&str]) -> RouteSettings {
        let urls = urls.iter().map(|url| BackendUrl::parse(url).unwrap()).collect();
        RouteSettings {
            name: name.into(),
            path: template(path),
            target: TargetSettings::Backend { urls, host: None, learn_task: None },
        }
    }

    fn served(name: &str, path: &str) -> RouteSettings {
        RouteSettings { name: name.into(), path: template(path), target: TargetSettings::Output }
    }

    #[test]
    fn routes_that_can_work_together_pass() {
        check(&[
            relayed(
                "input",
                "/ws/input",
                &["ws://localhost:8001/ws/input", "ws://localhost:8003/ws/input"],
            ),
            served("output", "/ws/output/{task_id}"),
            relayed("one", "/ws/chat/lobby", &["ws://a/"]),
            relayed("all-others_2", "/ws/chat/{room}", &["ws://a/{room}?room={room}"]),
            relayed("deep", "/{a}/x/y/z", &["ws://a/"]),
            relayed("api", "/api/{rest...}", &["ws://a/{rest}"]),
            relayed("root", "/", &["ws://a/"]),
            relayed("hidden", "/health", &["ws://a/"]),
            relayed("again", "/ws/chat/lobby", &["ws://a/"]),
        ])
        .unwrap();
        check(&[]).unwrap();
    }

    #[test]
    fn routes_that_cannot_work_are_refused_with_a_reason() {
        let backend = &["ws://a/"][..];
        let mut with_host = relayed("a", "/ws/a", backend);
        with_host.target = TargetSettings::Backend {
            urls: vec![BackendUrl::parse("ws://a").unwrap()],
            host: Some("x y".into()),
            learn_task: None,
        };
        for (routes, why) in [
            (vec![relayed("", "/ws/a", backend)], "a name is 1 to 64"),
            (vec![relayed("A", "/ws/a", backend)], "route `A`: a name is"),
            (
                vec![relayed("a", "/ws/a", backend), relayed("a", "/ws/b", backend)],
                "names must differ",
            ),
            (vec![relayed("a", "/ws/a", &["ws://a/{task}"])], "uses `{task}`"),
            (vec![relayed("a", "/ws/{t}", &["ws://a/?x={task}"])], "uses `{task}`"),
            (vec![relayed("a", "/ws/a", &["ws://a/", "ws://a/"])], "listed twice"),
            (vec![relayed("a", "/ws/a", &[])], "at least one backend"),
            (vec![served("a", "/ws/{task}")], "must hold `{task_id}`"),
            (vec![served("a", "/ws/{task_id...}")], "must hold `{task_id}`"),
            (vec![with_host], "is no host header"),
        ] {
            let error = check(&routes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_can_never_be_reached_is_named_with_the_reason() {
        let shadows = |paths: &[&str]| {
            let name = |index: usize| ["a", "b", "c"][index];
            let routes = paths.iter().enumerate();
            let routes: Vec<_> =
                routes.map(|(index, path)| relayed(name(index), path, &["ws://x/"])).collect();
            shadowed(&routes)
        };
        for paths in [
            &["/", "/{file...}"][..],
            &["/{x}", "/{x}/{y}"],
            &["/ws/a", "/ws/{x}", "/ws/{rest...}"],
            &["/api/{rest...}", "/api", "/{file...}"],
            &["/{a}/x", "/x/{b}"],
        ] {
            assert_eq!(shadows(paths), [""; 0], "{paths:?}");
        }
        for (paths, name, why) in [
            (&["/health"][..], "a", "because the gateway itself answers `/health`"),
            (&["/status/x"], "a", "because the gateway itself answers `/status/{task_id}`"),
            (&["/audio/{x}/{y}"], "a", "the gateway itself answers `/audio/{task_id}/{result_id}`"),
            (&["/", "/"], "b", "route `a` before it takes `/`: the same path can only be"),
            (
                &["/ws/{x}", "/ws/{y}"],
                "b",
                "takes `/ws/{x}`: the same path can only be routed once",
            ),
            (&["/ws/{x}", "/ws/b"], "b", "put the narrower path first"),
            (&["/{file...}", "/"], "b", "takes `/{file...}`: put the narrower path first"),
            (&["/x", "/{file...}", "/api/{rest...}"], "c", "route `b` before it"),
        ] {
            let found = shadows(paths);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("route `{name}`: its path")), "{found:?}");
            assert!(found[0].contains(why), "{found:?}");
        }
    }

    #[test]
    fn endpoints_come_before_routes_and_the_root_may_be_claimed() {
        let mut upstreams = Upstreams::default();
        let routes = Routes::new(vec![relayed("all", "/{file...}", &["ws://a/"])], &mut upstreams);
        for (path, is_route) in [
            ("/", true),
            ("/x", true),
            ("/gateway", false),
            ("/health", false),
            ("/status/x", false),
            ("/status/x/y", true),
            ("/status/", true),
        ] {
            let endpoint = Endpoint::find(path).map(|(endpoint, _)| endpoint);
            assert_eq!(routes.find(path, endpoint).is_some(), is_route, "{path}");
        }
    }

    #[test]
    fn the_first_route_in_file_order_wins() {
        let mut upstreams = Upstreams::default();
        let settings = vec![
            relayed("one", "/ws/lobby", &["ws://a/"]),
            relayed("any", "/ws/{room}", &["ws://b/{room}"]),
        ];
        let routes = Routes::new(settings, &mut upstreams);
        assert_eq!(&*routes.find("/ws/lobby", None).unwrap().0.name, "one");
        let (route, params) = routes.find("/ws/hall", None).unwrap();
        assert_eq!((&*route.name, params.value("room")), ("any", Some("hall")));
        assert!(routes.find("/ws", None).is_none());
        assert_eq!(route.target_text(&upstreams), "ws://b/{room}");
    }

    #[test]
    fn a_reload_keeps_the_backends_of_routes_in_use() {
        let mut upstreams = Upstreams::default();
        let mut routes =
            Routes::new(vec![relayed("a", "/ws/a", &["ws://old/", "ws://both/"])], &mut upstreams);
        let held = Rc::clone(routes.find("/ws/a", None).unwrap().0);
        let (old, both) = (held.upstreams()[0], held.upstreams()[1]);

        routes.reload(vec![relayed("a", "/ws/a", &["ws://both/", "ws://new/"])], &mut upstreams);
        let now = routes.find("/ws/a", None).unwrap().0.upstreams().to_vec();
        assert_eq!(now[0], both, "the same URL is the same backend");
        assert_eq!(upstreams.url(old).host(), "old");

        drop(held);
        routes.release_unused(&mut upstreams);
        assert!(!upstreams.is_known(old));
        assert!(upstreams.is_known(both) && upstreams.is_known(now[1]));
    }
}
