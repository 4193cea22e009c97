//! Reads the body of a request for one of the gateway's endpoints.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::ended::last_response;
use super::respond::Question;
use super::{CloseReason, Context, Drain, Ended, Identity, Last, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::http;

/// A request whose body has not come whole. Its length is limited by the endpoint.
pub struct Body {
    question: Box<Question>,
    length: usize,
    deadline: Option<Moment>,
}

impl Body {
    /// Takes the body of `length` bytes from what followed the head, and from the connection if
    /// that is not all of it.
    pub fn read(mut question: Box<Question>, length: usize, cx: &Context) -> Step {
        let rest = &mut question.asked.rest;
        if rest.len() >= length {
            let behind = rest.split_off(length);
            question.body = std::mem::replace(rest, behind);
            return Step::Ask(question);
        }
        question.body = std::mem::take(rest);
        let deadline = cx.after(cx.settings.header_timeout);
        Step::Next(Phase::Body(Box::new(Body { question, length, deadline })))
    }
}

impl State for Body {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        loop {
            let missing = self.length - self.question.body.len();
            if missing == 0 {
                return Step::Ask(self.question);
            }
            let body = &mut self.question.body;
            let read = cx.with_scratch(|scratch, _| {
                let most = scratch.len().min(missing);
                let read = downstream.read(&mut scratch[..most]);
                if let Ok(Io::Moved(n)) = read {
                    body.extend_from_slice(&scratch[..n]);
                }
                read
            });
            match read {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => break,
                Ok(Io::Ended) | Err(_) => return Step::End(Ended::http(CloseReason::Done)),
            }
        }
        if self.deadline.is_some_and(|at| at <= cx.now) {
            let response = http::Response::error(408, "The request body did not arrive in time");
            let answer = last_response(response, cx);
            let ended = Ended::http(CloseReason::HeaderTimeout);
            return Step::End(ended.with_last(Last::Answer(answer)));
        }
        Step::Wait(Phase::Body(self))
    }

    fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    /// A request that has begun still gets its answer.
    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {}

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn own_bytes(&self) -> usize {
        self.question.body.capacity()
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}
