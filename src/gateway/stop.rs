//! Requests to stop a task, and what is logged about it.

use super::Gateway;
use crate::proto::control;
use crate::proto::http::Response;
use crate::service::results::{StopOutcome, StoppedBy};
use crate::session::SessionId;
use crate::session::respond::Question;
use log::info;
use uuid::Uuid;

/// The answer when Redis is away and the gateway does not know the task.
const REDIS_AWAY: &str = "Redis is away, and this gateway does not know the task";

impl Gateway {
    /// Answers a request to stop a task; `None` if Redis has to be asked first.
    pub(super) fn stop_task(&mut self, key: usize, question: &Question) -> Option<Response> {
        let task = match control::task_to_stop(&question.body) {
            Ok(task) => task,
            Err(why) => return Some(Response::error(400, why)),
        };
        let outcome = self.cx.results.request_stop(self.cx.now, task.uuid());
        if outcome.is_none() {
            let id = self.sessions.get(key)?.who().id();
            self.stops.push((task.uuid(), id, question.asked.clone()));
        }
        outcome.map(response)
    }

    /// Redis has said whether it knows the task, or cannot be asked any more (`task` is `None`).
    pub(super) fn handle_stop_outcome(&mut self, task: Option<Uuid>, outcome: StopOutcome) {
        let stops = std::mem::take(&mut self.stops);
        let is_meant = |of: &Uuid| task.is_none_or(|task| task == *of);
        let (answered, rest): (Vec<_>, Vec<_>) =
            stops.into_iter().partition(|(of, ..)| is_meant(of));
        self.stops = rest;
        for (_, id, asked) in answered {
            if let Some(session) = self.sessions.get_mut(id.key as usize)
                && session.who().id() == id
                && session.is_awaiting_answer()
            {
                session.answer(asked, response(outcome), &mut self.cx);
                self.drive(id.key as usize);
            }
        }
    }

    pub(super) fn note_stopped(
        &mut self,
        task: Uuid,
        by: StoppedBy,
        (clients, results): (usize, usize),
    ) {
        self.cx.stats.tasks_stopped += 1;
        let by = by.word();
        info!(target: "output", "task stopped by={by} clients={clients} results_dropped={results} task={task}");
    }
}

/// Requests that wait for Redis: the task, who asks, and what is needed for the answer.
pub(super) type Stops = Vec<(Uuid, SessionId, crate::session::respond::Asked)>;

fn response(outcome: StopOutcome) -> Response {
    match outcome {
        StopOutcome::Stopped => Response::json(200, r#"{"ok":true}"#.to_owned()),
        StopOutcome::Unknown => Response::error(404, "No such task"),
        StopOutcome::RedisAway => Response::error(503, REDIS_AWAY),
    }
}
