//! Answers requests for the gateway's own endpoints, from a snapshot of the gateway.

use super::Gateway;
use crate::net::process;
use crate::proto::http::Response;
use crate::proto::message::{self, TaskId};
use crate::service::client_library;
use crate::service::endpoints::Answer;
use crate::service::report::{
    self, ConnectionView, ProcessView, RedisView, ResultsView, RouteView, Snapshot, Viewer,
};
use crate::service::stats::BothWays;
use crate::service::tasks::Status;
use crate::session::Session;
use crate::session::respond::Question;
use std::time::Duration;

impl Gateway {
    /// Answers a request for one of the gateway's endpoints; `None` if that needs a census.
    pub(super) fn report(&self, question: &Question) -> Option<Response> {
        match question.endpoint.answer {
            Answer::Health => Some(report::health(&self.snapshot(question.asked.viewer))),
            Answer::Ready => Some(report::ready(&self.snapshot(question.asked.viewer))),
            Answer::Status => Some(self.status(&question.value)),
            Answer::Closed => Some(report::closed(&self.cx.ledger, &question.query)),
            Answer::Client => Some(client_library::response()),
            Answer::Page => {
                Some(report::page(&self.snapshot(question.asked.viewer), question.asked.language))
            }
            // Some are answered by their own sessions and never asked here.
            Answer::Metrics
            | Answer::Connections
            | Answer::Stop
            | Answer::Audio
            | Answer::Events
            | Answer::Frames => None,
        }
    }

    fn status(&self, segment: &str) -> Response {
        let Some(task) = TaskId::read(segment) else {
            return Response::error(400, message::BAD_TASK_ID);
        };
        let (status, is_connected) = self.cx.results.status(task.uuid());
        let mut body = serde_json::json!({
            "task_id": task.to_string(), "status": status.word(), "connected": is_connected,
        });
        let timeline = self.cx.results.tasks().timeline(task.uuid());
        if status != Status::NotFound && !timeline.is_empty() {
            let milliseconds =
                |(name, time): (&str, Duration)| (name.to_owned(), milliseconds(time).into());
            let timeline: serde_json::Map<String, serde_json::Value> =
                timeline.into_iter().map(milliseconds).collect();
            body["timeline"] = timeline.into();
        }
        Response::json(200, body.to_string())
    }

    /// The gateway at this moment, without what only a census can tell.
    pub(super) fn snapshot(&self, viewer: Viewer) -> Snapshot<'_> {
        let cx = &self.cx;
        let lifecycle =
            if cx.is_draining { report::Lifecycle::Draining } else { report::Lifecycle::Serving };
        let mut snapshot = Snapshot::new(
            env!("CARGO_PKG_VERSION"),
            self.now() - self.started,
            lifecycle,
            &cx.stats,
        );
        snapshot.routes = cx
            .routes
            .iter()
            .map(|route| RouteView::new(route, &cx.upstreams, cx.now, &cx.wall))
            .collect();
        snapshot.viewer = viewer;
        if let Some((state, address)) = cx.results.redis_state() {
            snapshot.redis_address = Some(address.to_string());
            snapshot.redis_problem = state.why().map(str::to_owned);
        }
        let log_error = Some(cx.stats.log_error_code).filter(|code| *code != 0);
        snapshot.log_problem =
            log_error.map(|code| std::io::Error::from_raw_os_error(code).to_string());
        snapshot.audio_root_problem = cx.audio.root_problem(&cx.settings.output.audio_root);
        snapshot.results_wanted = self.serves_results();
        snapshot.redis = match (snapshot.results_wanted, self.is_inbox) {
            (false, _) => RedisView::Disabled,
            (true, true) => RedisView::Embedded,
            (true, false) if self.cx.results.is_up() => RedisView::Connected,
            (true, false) => RedisView::Disconnected,
        };
        let tasks = cx.results.tasks();
        let (completed, failed) = tasks.ended_counts();
        snapshot.results = ResultsView {
            waiting: 0,
            retained: tasks.retained() as u64,
            retained_bytes: tasks.retained_bytes() as u64,
            completed,
            failed,
        };
        let (held, limit) = self.memory();
        snapshot.memory_held = held as u64;
        snapshot.memory_limit = limit.unwrap_or(0) as u64;
        snapshot
    }

    /// What the process takes of the machine.
    pub(super) fn process_view(&self) -> ProcessView {
        let usage = process::usage();
        ProcessView {
            resident_bytes: usage.resident_bytes,
            virtual_bytes: usage.virtual_bytes,
            open_fds: usage.open_fds,
            max_fds: usage.max_fds,
            cpu_seconds: usage.cpu_seconds,
            started: self.started_wall,
        }
    }

    /// What reports show of one session.
    pub(super) fn connection_view<'s>(
        &'s self,
        session: &'s Session,
        traffic: BothWays,
    ) -> ConnectionView<'s> {
        let who = session.who();
        ConnectionView {
            id: who.to_string(),
            route: who.route_name(),
            state: session.state(),
            client: who.client(),
            backend: session.backend().map(|id| self.cx.upstreams.url(id).public_text().to_owned()),
            task_id: session.task_id(),
            // Standstills count as if they all had come before: wrong for connections that are
            // older.
            opened: self.started_wall + self.timeline.skipped() + (who.opened - self.started),
            idle: self.cx.now - session.active_at(),
            traffic,
        }
    }
}

/// To a tenth of one.
fn milliseconds(time: Duration) -> f64 {
    (time.as_micros() / 100) as f64 / 10.0
}
