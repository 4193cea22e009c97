//! Requests to stop a task, and the messages and log lines that follow.

use super::Gateway;
use crate::proto::control::{self, ControlAction};
use crate::proto::http::Response;
use crate::service::feeds::WorkerNotice;
use crate::service::results::{StopOutcome, StoppedBy};
use crate::session::SessionId;
use crate::session::respond::{Asked, Question};
use log::info;
use std::collections::BTreeMap;
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
            self.stops.entry(task.uuid()).or_default().push((id, question.asked.clone()));
        }
        outcome.map(response)
    }

    /// Redis has said whether it knows the task, or cannot be asked any more (`task` is `None`).
    pub(super) fn handle_stop_outcome(&mut self, task: Option<Uuid>, outcome: StopOutcome) {
        let answered = match task {
            Some(task) => self.stops.remove(&task).unwrap_or_default(),
            None => std::mem::take(&mut self.stops).into_values().flatten().collect(),
        };
        for (id, asked) in answered {
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
        self.cx.streams.remove_task(task);
        self.cx.speech.stop(task);
        self.cx.feeds.notify(task, WorkerNotice::Control(ControlAction::Stop));
        self.cx.feeds.forget(task);
        // A worker's own publication has reached the others.
        if by != StoppedBy::Channel {
            self.tell_workers(task, ControlAction::Stop);
        }
        let by = by.word();
        info!(target: "output", "task stopped by={by} clients={clients} results_dropped={results} task={task}");
    }

    /// Tells workers that the clients of their tasks have left or are back, as many as there is
    /// room for: thousands of clients may leave in one moment.
    pub(super) fn tell_absences(&mut self) {
        for _ in 0..self.turn.deliveries {
            if self.cx.channels.is_full() {
                return;
            }
            let streams = &self.cx.streams;
            let said = self.cx.results.poll_absence(self.cx.now, |task| streams.is_speaking(task));
            let Some((task, action)) = said else { return };
            self.tell_workers(task, action);
            self.cx.feeds.notify(task, WorkerNotice::Control(action));
            match action {
                ControlAction::Left => info!(target: "output", "clients left task={task}"),
                ControlAction::Back => info!(target: "output", "client is back task={task}"),
                ControlAction::Stop => {}
            }
        }
    }

    /// Tells the workers of a task that are connected to this gateway. Those at Redis know it: the
    /// link has published it.
    fn tell_workers(&mut self, task: Uuid, action: ControlAction) {
        if self.is_inbox {
            let channel = format!("{}{task}", self.cx.control_prefix);
            self.cx.channels.publish(channel.as_bytes(), action.payload());
        }
    }
}

/// Requests that wait for Redis: the task, the session that asked, and how to answer it.
pub(super) type Stops = BTreeMap<Uuid, Vec<(SessionId, Asked)>>;

fn response(outcome: StopOutcome) -> Response {
    match outcome {
        StopOutcome::Stopped => Response::json(200, r#"{"ok":true}"#.to_owned()),
        StopOutcome::Unknown => Response::error(404, "No such task"),
        StopOutcome::RedisAway => Response::error(503, REDIS_AWAY),
    }
}

#[cfg(test)]
mod tests {
    use crate::base::moment::Moment;
    use crate::gateway::tests::{client, socket_of, turn, with_waiting_clients};
    use crate::net::{Ready, Side, Source};
    use std::net::SocketAddr;
    use std::time::Duration;

    const TASK: &str = "00000000-0000-0000-0000-000000000000";
    const READABLE: Ready = Ready { readable: true, writable: false, read_closed: false };

    /// A worker of `gateway` that has sent `commands`; what it receives.
    macro_rules! worker {
        ($gateway:expr, $commands:expr) => {{
            let key = $gateway.next_key();
            let (socket, received) = socket_of($commands.as_bytes());
            $gateway.admit_worker(socket, SocketAddr::from(([192, 0, 2, 2], 6000)));
            $gateway.ready(Source::Session(key, Side::Downstream), READABLE);
            turn(&mut $gateway, Moment::START);
            received
        }};
    }

    fn message(kind: &str) -> String {
        let channel = format!("$49\r\ntask_control:{TASK}\r\n");
        format!("{kind}{channel}$17\r\n{{\"action\":\"STOP\"}}\r\n")
    }

    #[test]
    fn stop_by_a_request_reaches_subscribers_of_the_inbox_once() {
        let mut gateway = with_waiting_clients(1);
        let one = worker!(gateway, format!("SUBSCRIBE task_control:{TASK}\r\n"));
        let other = worker!(gateway, "PSUBSCRIBE task_control:*\r\n");
        let unrelated = worker!(gateway, "SUBSCRIBE task_control:else\r\n");
        let all = [&one, &other, &unrelated];
        all.iter().for_each(|it| it.borrow_mut().clear());
        let body = format!("{{\"task_id\":\"{TASK}\"}}");
        let length = body.len();
        for _ in 0..2 {
            let head = "POST /control/stop HTTP/1.1\r\nHost: a\r\nContent-Length: ";
            let answer = client(&mut gateway, format!("{head}{length}\r\n\r\n{body}").as_bytes());
            turn(&mut gateway, Moment::START);
            assert!(answer.borrow().starts_with(b"HTTP/1.1 200"));
        }
        let received = all.map(|it| String::from_utf8(it.borrow().clone()).unwrap());
        let pattern = "*4\r\n$8\r\npmessage\r\n$14\r\ntask_control:*\r\n";
        assert_eq!(received, [message("*3\r\n$7\r\nmessage\r\n"), message(pattern), String::new()]);
    }

    #[test]
    fn stop_that_a_worker_publishes_in_the_inbox_stops_the_task_and_reaches_other_workers() {
        let mut gateway = with_waiting_clients(1);
        let listener = worker!(gateway, format!("SUBSCRIBE task_control:{TASK}\r\n"));
        listener.borrow_mut().clear();
        let publish = format!("PUBLISH task_control:{TASK} '{{\"action\":\"STOP\"}}'\r\n");
        let reply = worker!(gateway, publish);
        turn(&mut gateway, Moment::START);
        assert_eq!(*reply.borrow(), b":2\r\n");
        let received = String::from_utf8(listener.borrow().clone()).unwrap();
        assert_eq!(received, message("*3\r\n$7\r\nmessage\r\n"));
        assert_eq!(gateway.stats().tasks_stopped, 1);
    }

    #[test]
    fn workers_hear_of_thousands_of_clients_that_leave_at_once_in_several_turns() {
        const CLIENTS: usize = 1000;
        let mut gateway = with_waiting_clients(CLIENTS);
        let listener = worker!(gateway, "PSUBSCRIBE task_control:*\r\n");
        listener.borrow_mut().clear();
        let mut turns = 0;
        // They answer no ping.
        for second in 0..120 {
            let now = Moment::START + Duration::from_secs(second);
            turn(&mut gateway, now);
            while gateway.next_turn().is_some_and(|at| at <= now) {
                turn(&mut gateway, now);
                turns += 1;
                assert!(gateway.cx.channels.queued() <= 64, "after {turns} turns");
            }
        }
        let received = String::from_utf8(listener.borrow().clone()).unwrap();
        assert_eq!(received.matches(r#"{"action":"LEFT"}"#).count(), CLIENTS);
        assert!(turns > CLIENTS / 64, "{turns} turns");
    }
}
