//! New settings for a running gateway: each part gets its own, by its `reload`.
//!
//! [`Gateway::in_effect`] reads the settings back from the parts, so that a test can compare a
//! reloaded gateway with one that was started with the same settings. A part that keeps settings
//! belongs in both: `tests/reload.rs` fails for every live key whose part is missing in either.

use std::time::Duration;

use log::{info, warn};

use super::files::check_audio_root;
use super::sweeps::Errand;
use super::{Gateway, Settings};
use crate::base::quoted::Quoted;
use crate::net::tls;
use crate::service::limits;
use crate::service::link::{self, Link, Password};
use crate::service::route::{RouteSettings, RouteTarget, TargetSettings};
use crate::service::tasks::{self, EndRules};
use crate::service::trust;
use crate::service::upstreams;
use crate::session::{self, Admission, Context};

/// The settings that the parts of a gateway work with, read from each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InEffect {
    /// Of all sessions.
    pub session: session::Settings,
    /// Of the connection limits.
    pub limits: limits::Settings,
    /// Of the judgement on requesters.
    pub trust: trust::Settings,
    /// In file order.
    pub routes: Vec<RouteSettings>,
    /// Of the next drain.
    pub drain_timeout: Option<Duration>,
    /// For results in memory.
    pub retention: tasks::Settings,
    /// For ends of audio files.
    pub end_rules: EndRules,
    /// Of the link to Redis, and for the results that Redis keeps; `None` without a link.
    pub redis: Option<(link::Settings, tasks::Settings)>,
    /// Of the backends' names.
    pub upstreams: upstreams::Settings,
    /// Certificates and roots.
    pub tls: tls::Settings,
    /// Bytes that the memory budget allows.
    pub memory_limit: Option<usize>,
    /// Of the embedded inbox.
    pub inbox_password: Option<Password>,
}

impl Gateway {
    /// Takes other settings. Open connections stay, with the routes that they came by. What needs a
    /// restart must be the same as before, see `Config::keep_until_restart`.
    pub fn reload(&mut self, settings: Settings) {
        let Settings { session, limits, trust, routes, drain_timeout, tasks, link, upstreams, tls } =
            settings;
        let clients = self
            .sessions
            .iter()
            .filter(|(_, session)| session.who().admission == Admission::Client);
        self.cx.limits.reload(limits, clients.filter_map(|(_, session)| session.who().counted()));
        self.cx.results.reload(&link, tasks);
        self.cx.inbox_password = link.inbox_password();
        if wants_redis(&routes, &link) && self.cx.results.link().is_none() {
            // The first route that serves results has come with this reload.
            match Link::new(&link, tasks, self.cx.now, self.cx.chance.u64(..)) {
                Ok(link) => self.cx.results.begin_link(link),
                Err(why) => warn!(target: "redis", "no link to Redis why={}", Quoted(why)),
            }
        }
        self.cx.routes.reload(routes, &mut self.cx.upstreams);
        self.reload_upstreams(upstreams);
        self.cx.budget.set_limit(session.memory_limit.bytes());
        self.cx.results.set_end_rules(end_rules(&session));
        self.cx.settings = session;
        self.cx.trust = trust;
        if let Err(why) = self.cx.tls.reload(tls) {
            warn!(target: "tls", "the certificates stay as they are why={}", Quoted(&why));
        }
        self.drain_timeout = drain_timeout;
        log_routes(&self.cx);
        check_audio_root(&mut self.cx);
        self.sweep(Errand::Reload);
    }

    /// Has every backend's name looked up again, also if no setting has changed.
    fn reload_upstreams(&mut self, settings: upstreams::Settings) {
        self.cx.upstreams.reload(settings, self.cx.now);
        for backend in self.cx.upstreams.ids().collect::<Vec<_>>() {
            session::connector::begin_lookup(backend, &mut self.cx);
        }
    }

    /// Some route serves results.
    pub fn serves_results(&self) -> bool {
        self.cx.routes.iter().any(|route| matches!(route.target, RouteTarget::Output))
    }

    /// The settings that the parts work with.
    pub fn in_effect(&mut self) -> InEffect {
        let cx = &mut self.cx;
        InEffect {
            session: cx.settings.clone(),
            limits: cx.limits.settings().clone(),
            trust: cx.trust.clone(),
            routes: cx.routes.settings(&cx.upstreams),
            drain_timeout: self.drain_timeout,
            retention: cx.results.tasks().settings(),
            end_rules: cx.results.tasks().end_rules().clone(),
            upstreams: cx.upstreams.settings().clone(),
            tls: cx.tls.settings().clone(),
            memory_limit: cx.budget.limit(),
            inbox_password: cx.inbox_password.clone(),
            redis: cx.results.link().map(|link| (link.settings().clone(), link.retention())),
        }
    }
}

/// What results have to know to tell which audio files are complete.
pub(super) fn end_rules(session: &session::Settings) -> EndRules {
    let session::output::Settings { path_map, audio_wait, .. } = &session.output;
    EndRules { path_map: path_map.clone(), wait: *audio_wait }
}

/// Some route serves results, and they come from Redis.
pub(super) fn wants_redis(routes: &[RouteSettings], link: &link::Settings) -> bool {
    !link.is_embedded() && routes.iter().any(|route| route.target == TargetSettings::Output)
}

pub(super) fn log_routes(cx: &Context) {
    for route in cx.routes.iter() {
        info!(target: "gateway", "route {} path={} to={}", route.name, route.path, route.target_text(&cx.upstreams));
    }
}
