//! Reads the body of a request for one of the gateway's endpoints.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::ended::last_response;
use super::respond::Question;
use super::{CloseReason, Context, Drain, Ended, Identity, Last, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::http::{self, RequestHead};

/// A request whose body has not come whole. Its length is limited by the endpoint.
pub struct RequestBody {
    question: Box<Question>,
    length: usize,
    /// What is still to be sent before the client sends the body.
    interim: &'static [u8],
    deadline: Option<Moment>,
}

/// Whether a client waits for an interim response before it sends a body (RFC 9110 §10.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Expectation {
    Nothing,
    Continue,
}

impl Expectation {
    /// Other expectations are ignored, and so is one in HTTP/1.0, as the RFC asks.
    pub fn of(head: &RequestHead) -> Expectation {
        match head.minor_version > 0 && head.headers.has_token("expect", "100-continue") {
            true => Expectation::Continue,
            false => Expectation::Nothing,
        }
    }
}

impl RequestBody {
    /// Takes the body of `length` bytes from what followed the head, and from the connection if
    /// that is not all of it.
    pub fn read(
        mut question: Box<Question>,
        length: usize,
        expectation: Expectation,
        cx: &Context,
    ) -> Step {
        let rest = &mut question.asked.rest;
        if rest.len() >= length {
            let behind = rest.split_off(length);
            question.body = std::mem::replace(rest, behind);
            return Step::Ask(question);
        }
        question.body = std::mem::take(rest);
        let deadline = cx.after(cx.settings.header_timeout);
        let interim: &[u8] = match expectation {
            // A client that has begun to send does not wait.
            Expectation::Continue if question.body.is_empty() => http::CONTINUE,
            Expectation::Continue | Expectation::Nothing => b"",
        };
        Step::Next(Phase::Body(Box::new(RequestBody { question, length, interim, deadline })))
    }

    /// Sends the interim response, or what there is room for. False: the client is gone.
    fn send_interim(&mut self, downstream: &mut Conn) -> bool {
        while !self.interim.is_empty() {
            match downstream.write(self.interim) {
                Ok(Io::Moved(n)) => self.interim = &self.interim[n..],
                Ok(Io::Blocked) => return true,
                Ok(Io::Ended) | Err(_) => return false,
            }
        }
        true
    }
}

impl State for RequestBody {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if !self.send_interim(downstream) {
            return Step::End(Ended::http(CloseReason::Done));
        }
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
