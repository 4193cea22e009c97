//! Sends an HTTP response, then takes the next request or ends the connection.
//!
//! A response is a head, made for this client, and content that may be shared with other clients.
//! At most `STEP_BYTES_MAX` of it are written in one step, so that a long response delays other
//! sessions only little.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::stall::Stall;
use super::transcript::{Event, note};
use super::{Awaited, CloseReason, Context, Drain, Ended, Identity, Last, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::http::{self, Form, Response, Shared, Wire};
use crate::service::endpoints::Endpoint;
use crate::service::report::Viewer;

/// Bytes written in one step; then it is other sessions' turn.
const STEP_BYTES_MAX: usize = 128 * 1024;

/// What of a request is still needed when its response is known.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Asked {
    pub form: Form,
    /// Headers for JSON: which web pages may read it.
    pub cors: Vec<(&'static str, String)>,
    /// `If-None-Match`: what the client has already.
    pub if_none_match: Option<Vec<u8>>,
    /// Whether an admin asks.
    pub viewer: Viewer,
    /// Bytes that came behind the request: the beginning of the next one.
    pub rest: Vec<u8>,
}

/// A request for one of the gateway's endpoints.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Question {
    pub endpoint: &'static Endpoint,
    /// The segment that the `{name}` in the endpoint's path matched, as the client wrote it.
    pub value: Box<str>,
    /// The request's body; empty where none is taken.
    pub body: Vec<u8>,
    pub asked: Asked,
}

/// Sending a response.
pub struct Respond {
    first: Vec<u8>,
    rest: Shared,
    /// The part that is being sent: 0 for `first`, n for the n-th piece of `rest`.
    part: usize,
    /// Bytes of that part that have gone out.
    sent: usize,
    then: Then,
    stall: Stall,
    wake_at: Option<Moment>,
}

enum Then {
    NextRequest {
        rest: Vec<u8>,
    },
    Close,
    /// The response is not known yet: `Session::answer` puts another [`Respond`] in the place of
    /// this one.
    Await,
}

impl Respond {
    /// The response to a request that was understood.
    pub fn answer(asked: Asked, response: Response, who: &Identity, cx: &mut Context) -> Phase {
        let response = response.unless_known(asked.if_none_match.as_deref());
        note(who, || Event::Answer { status: response.status });
        cx.stats.count_http(response.status);
        let response = match response.content_type {
            http::JSON => {
                let headers = asked.cors.into_iter();
                headers.fold(response, |response, (name, value)| response.with(name, value))
            }
            _ => response,
        };
        let keep_alive = asked.form.keep_alive && !cx.is_draining;
        let wire = response.into_wire(Form { keep_alive, ..asked.form });
        let then = if keep_alive { Then::NextRequest { rest: asked.rest } } else { Then::Close };
        Respond::phase(wire, then, cx)
    }

    /// Waits for a response that only the gateway can make.
    pub fn awaiting(cx: &Context) -> Phase {
        Respond::phase(Wire { first: Vec::new(), rest: Shared::default() }, Then::Await, cx)
    }

    /// Whether the response is not known yet.
    pub fn is_awaiting(&self) -> bool {
        matches!(self.then, Then::Await)
    }

    fn phase(wire: Wire, then: Then, cx: &Context) -> Phase {
        let Wire { first, rest } = wire;
        let stall = Stall::new(cx.now);
        Phase::Respond(Box::new(Respond {
            first,
            rest,
            part: 0,
            sent: 0,
            then,
            stall,
            wake_at: None,
        }))
    }

    /// The part that is being sent; `None` once all have gone out.
    fn part(&self) -> Option<&[u8]> {
        match self.part.checked_sub(1) {
            None => Some(&self.first),
            Some(index) => self.rest.pieces().get(index).map(|piece| &piece[..]),
        }
    }
}

impl State for Respond {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let mut budget = STEP_BYTES_MAX;
        while let Some(part) = self.part() {
            if self.sent == part.len() {
                (self.part, self.sent) = (self.part + 1, 0);
                continue;
            }
            if budget == 0 {
                return Step::Yield(Phase::Respond(self));
            }
            let end = part.len().min(self.sent + budget);
            match downstream.write(&part[self.sent..end]) {
                Ok(Io::Moved(n)) => {
                    self.sent += n;
                    budget -= n;
                    cx.work += n;
                    self.stall.note_progress(cx.now);
                }
                Ok(_) if self.stall.is_over(downstream, cx.settings.write_timeout, cx.now) => {
                    let ended = Ended::http(CloseReason::ClientStalled);
                    return Step::End(ended.with_last(Last::Dropped));
                }
                Ok(_) => {
                    self.wake_at = self.stall.deadline(cx.settings.write_timeout);
                    return Step::Wait(Phase::Respond(self));
                }
                Err(_) => return Step::End(Ended::http(CloseReason::ClientVanished)),
            }
        }
        match self.then {
            Then::Await => Step::Wait(Phase::Respond(self)),
            Then::NextRequest { rest } => Step::NextRequest(rest),
            Then::Close => {
                let ended = Ended::http(CloseReason::Done);
                Step::End(ended.with_last(Last::Fin(Awaited::Fin)))
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        // A response that is not known yet will be the last one, because it is made during the
        // drain.
        if !self.is_awaiting() {
            self.then = Then::Close;
        }
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    /// Shared content is counted by the part of the gateway that keeps it, once.
    fn held_bytes(&self) -> usize {
        self.first.capacity()
    }

    fn own_bytes(&self) -> usize {
        let rest = match &self.then {
            Then::NextRequest { rest } => rest.capacity(),
            Then::Close | Then::Await => 0,
        };
        self.first.capacity() + rest
    }

    fn charged_bytes(&self) -> usize {
        self.rest.part_bytes()
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}
