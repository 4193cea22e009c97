//! Reports about all sessions, made a slice a turn.
//!
//! `/connections`, `/metrics` and the snapshots of `/events` need something of every session. With
//! thousands of them, one walk over all would delay every other client, and a walk for each request
//! would do so again and again. So a request for one of these waits for a [`Census`]: it visits a
//! bounded number of sessions a turn, and its result answers everyone who had asked before it
//! began. A request that comes meanwhile waits for the next census, so that no answer shows a state
//! from before its request.
//!
//! Traffic must be counted once, although sessions end while the census goes on. Until a session
//! ends, its flows have its counts; then [`Stats`](crate::service::stats::Stats) has them. A
//! session that ends before its visit is only in `Stats`. One that ends after its visit is in both,
//! and `Stats` remembers what it added for those ([`Walk`](crate::service::stats::Walk)), to be
//! taken off.

use super::Gateway;
use crate::base::budget::Budget;
use crate::proto::http::{Content, Response, Shared};
use crate::service::endpoints::Answer;
use crate::service::report::{self, ConnectionList, Live, TaskCounts, Viewer};
use crate::session::respond::Question;
use crate::session::{Phase, SessionId};

/// An empty slot. The work of a census has a limit of its own in each turn, in these units.
const COST_OF_SLOT: usize = 1;

/// A session that is only counted.
const COST_OF_COUNT: usize = 8;

/// A session that is described in `/connections`.
const COST_OF_VIEW: usize = 64;

/// A walk over all sessions that is under way.
pub(super) struct Census {
    /// The slot to visit next.
    next: usize,
    /// What `/connections` lists; `None` if it was not asked for.
    list: Option<ConnectionList>,
    live: Live,
    /// Clients that wait for a result, and those that are being sent one.
    tasks: TaskCounts,
    /// It is also for those that watch the gateway.
    is_for_watchers: bool,
    /// Requests that this census answers.
    questions: Vec<(SessionId, Box<Question>)>,
}

impl Census {
    fn new(questions: Vec<(SessionId, Box<Question>)>, is_for_watchers: bool) -> Census {
        let asking = |(_, question): &&(SessionId, Box<Question>)| {
            question.endpoint.answer == Answer::Connections
        };
        let is_for_admin =
            |(_, question): &(SessionId, Box<Question>)| question.asked.viewer == Viewer::Admin;
        let mut asking = questions.iter().filter(asking).peekable();
        let is_wanted = asking.peek().is_some();
        let viewer = if asking.any(is_for_admin) { Viewer::Admin } else { Viewer::Stranger };
        let list = is_wanted.then(|| ConnectionList::new(viewer));
        let (live, tasks) = (Live::default(), TaskCounts::default());
        Census { next: 0, list, live, tasks, is_for_watchers, questions }
    }
}

impl Gateway {
    /// Takes a request that needs a census. Its session waits until [`Gateway::take_census`]
    /// answers.
    pub(super) fn ask(&mut self, key: usize, question: Box<Question>) {
        let session = &mut self.sessions[key];
        session.await_answer(&self.cx);
        self.questions.push((session.who().id(), question));
    }

    /// Whether a census is under way or wanted.
    #[inline]
    pub(super) fn is_census_due(&self) -> bool {
        self.census.is_some() || !self.questions.is_empty() || self.is_snapshot_due()
    }

    /// Goes on with the census, if there is one or one is wanted. Called once a turn.
    #[inline]
    pub(super) fn take_census(&mut self) {
        if self.is_census_due() {
            self.go_on_with_census();
        }
    }

    #[cold]
    fn go_on_with_census(&mut self) {
        let mut census = match self.census.take() {
            Some(census) => census,
            None => {
                self.cx.stats.begin_walk();
                let is_for_watchers = self.is_snapshot_due();
                if is_for_watchers {
                    self.cx.watch.begin(self.cx.now);
                }
                Census::new(std::mem::take(&mut self.questions), is_for_watchers)
            }
        };
        let mut work = self.turn.census;
        while work > 0 && census.next < self.sessions.capacity() {
            work = work.saturating_sub(self.visit(&mut census));
            census.next += 1;
        }
        if census.next < self.sessions.capacity() {
            self.cx.stats.walked_to(census.next);
            self.census = Some(census);
        } else {
            self.answer_all(census);
        }
    }

    /// Takes the next slot into account. Returns what that cost.
    fn visit(&self, census: &mut Census) -> usize {
        let Some(session) = self.sessions.get(census.next) else { return COST_OF_SLOT };
        if let Phase::Output(output) = session.phase() {
            match output.is_waiting() {
                true => census.tasks.waiting += 1,
                false => census.tasks.sending += 1,
            }
        }
        session.who().count_recent();
        let Some(traffic) = session.traffic() else { return COST_OF_COUNT };
        census.live.add(session.who().route_name(), traffic);
        match &mut census.list {
            Some(list) => {
                list.push(&self.connection_view(session, traffic));
                COST_OF_VIEW
            }
            None => COST_OF_COUNT,
        }
    }

    /// Makes each kind of report that was asked for once, and gives it to everyone who asked for
    /// it.
    fn answer_all(&mut self, census: Census) {
        let Census { list, mut live, tasks, is_for_watchers, questions, .. } = census;
        live.except(self.cx.stats.end_walk());
        let mut moving = std::mem::take(&mut self.moving);
        let mut snapshot = self.snapshot(Viewer::Stranger);
        snapshot.live = live;
        snapshot.results.waiting = tasks.waiting;
        snapshot.process = Some(self.process_view());
        let asks =
            |answer| questions.iter().any(|(_, question)| question.endpoint.answer == answer);
        let metrics =
            asks(Answer::Metrics).then(|| share(report::metrics(&snapshot), &self.cx.budget));
        let watched = is_for_watchers.then(|| {
            snapshot.viewer = Viewer::Admin;
            self.describe(&snapshot, tasks, &mut moving)
        });
        self.moving = moving;
        if let Some(data) = watched {
            self.publish_snapshot(&data);
        }
        let list = list.map(|list| list.finish(&self.cx.budget));
        for (id, question) in questions {
            let response = match question.endpoint.answer {
                Answer::Connections => list
                    .as_ref()
                    .map(|list| report::connections(list.of(question.asked.viewer).clone())),
                Answer::Metrics => metrics.clone(),
                Answer::Page
                | Answer::Events
                | Answer::Frames
                | Answer::Health
                | Answer::Ready
                | Answer::Status
                | Answer::Closed
                | Answer::Client
                | Answer::Stop
                | Answer::Audio => None,
            };
            if let (Some(response), Some(session)) = (response, self.session_mut(id))
                && session.is_awaiting_answer()
            {
                let Question { asked, .. } = *question;
                let Gateway { sessions, cx, .. } = self;
                sessions[id.key as usize].answer(asked, response, cx);
                self.go_on_later(id.key as usize);
            }
        }
    }
}

/// The same response, with content that its clones share.
fn share(response: Response, budget: &Budget) -> Response {
    match response.content {
        Content::Bytes(bytes) => {
            let content = Content::Shared(Shared::new(vec![bytes.into()], budget));
            Response { content, ..response }
        }
        Content::Shared(_) | Content::File(_) | Content::Stream => response,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_types, reason = "a test reads what its peer received")]

    use super::super::tests::{client, turn, with_waiting_clients};
    use super::*;
    use crate::base::moment::Moment;
    use serde_json::Value;
    use std::cell::RefCell;
    use std::rc::Rc;

    const CLIENTS: usize = 3000;

    fn get(gateway: &mut Gateway, path: &str) -> Rc<RefCell<Vec<u8>>> {
        client(gateway, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
    }

    fn until_answered(gateway: &mut Gateway, received: &Rc<RefCell<Vec<u8>>>) -> (usize, String) {
        let mut turns = 0;
        while received.borrow().is_empty() || gateway.next_turn() == Some(gateway.now()) {
            turn(gateway, Moment::START);
            turns += 1;
            assert!(turns < 1000, "no answer");
        }
        let text = String::from_utf8(received.borrow().clone()).unwrap();
        (turns, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[test]
    fn connections_are_listed_a_slice_a_turn() {
        let mut gateway = with_waiting_clients(CLIENTS);
        let received = get(&mut gateway, "/connections");
        turn(&mut gateway, Moment::START);
        let visited = gateway.census.as_ref().expect("it takes more than a turn").next;
        assert!(visited <= gateway.turn.census / COST_OF_VIEW, "{visited} sessions in one turn");
        assert_eq!(gateway.next_turn(), Some(gateway.now()));
        let (_, body) = until_answered(&mut gateway, &received);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["total_connections"], CLIENTS);
        assert_eq!(body["details"].as_array().unwrap().len(), CLIENTS);
        assert!(!gateway.is_census_due());
        assert_eq!(gateway.cx.budget.held(), 0, "the list is gone once it is sent");
    }

    #[test]
    fn those_who_ask_together_share_one_list() {
        let mut gateway = with_waiting_clients(CLIENTS);
        let all: Vec<_> = (0..50).map(|_| get(&mut gateway, "/connections")).collect();
        let mut held_max = 0;
        while gateway.next_turn() == Some(gateway.now()) {
            turn(&mut gateway, Moment::START);
            held_max = held_max.max(gateway.cx.budget.held());
        }
        let length = all[0].borrow().len();
        assert!(length > 100 * CLIENTS);
        assert!(all.iter().all(|received| received.borrow().len() == length));
        assert!(held_max < 2 * length, "{held_max} bytes for 50 lists of {length}");
    }

    #[test]
    fn who_asks_during_a_census_waits_for_the_next_one() {
        let mut gateway = with_waiting_clients(CLIENTS);
        let first = get(&mut gateway, "/connections");
        turn(&mut gateway, Moment::START);
        let second = get(&mut gateway, "/connections");
        assert!(gateway.census.is_some() && gateway.questions.len() == 1);
        let total = |received: &Rc<RefCell<Vec<u8>>>, gateway: &mut Gateway| {
            let (_, body) = until_answered(gateway, received);
            serde_json::from_str::<Value>(&body).unwrap()["total_connections"].clone()
        };
        assert_eq!(total(&first, &mut gateway), CLIENTS);
        assert_eq!(total(&second, &mut gateway), CLIENTS);
    }

    #[test]
    fn metrics_count_each_byte_once_although_sessions_end_during_the_census() {
        let sum = |gateway: &mut Gateway| {
            let received = get(gateway, "/metrics");
            let (_, body) = until_answered(gateway, &received);
            let name =
                "aivtuber_gateway_frame_bytes_total{route=\"output\",direction=\"to_client\"} ";
            let line = body.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.parse::<u64>().unwrap()
        };
        let mut gateway = with_waiting_clients(CLIENTS);
        for number in 0..CLIENTS {
            let task = uuid::Uuid::from_u128(number as u128);
            gateway.cx.results.publish(Moment::START, task, br#"{"text":"a","final":false}"#);
        }
        while gateway.next_turn() == Some(gateway.now()) {
            turn(&mut gateway, Moment::START);
        }
        let before = sum(&mut gateway);
        assert!(before > 0);
        let received = get(&mut gateway, "/metrics");
        gateway.take_census();
        let reached = gateway.census.as_ref().map_or(0, |census| census.next);
        drop(received);
        // Some end behind the walk, some before it.
        for key in [0, reached / 2, reached + 1, CLIENTS - 1] {
            let Gateway { sessions, cx, .. } = &mut gateway;
            sessions[key].release(cx);
        }
        assert_eq!(sum(&mut gateway), before);
    }
}
