//! Reads a request head and chooses what the connection becomes.
//!
//! Heads are parsed in the shared scratch buffer; only one that came in pieces is kept by the session, which otherwise owns
//! nothing while it waits.

use super::dial::Dial;
use super::linger::Linger;
use super::output::Output;
use super::reply::{Asked, Question, Reply};
use super::{CloseReason, Context, Identity, Phase, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Side};
use crate::proto::http::{self, BadHead, HEAD_BYTES_MAX, RequestHead, empty_slots};
use crate::proto::{upgrade, ws};
use crate::service::endpoints::Endpoint;
use crate::service::route::{Route, RouteTarget, TASK_ID};
use log::{debug, info, warn};
use std::rc::Rc;

/// Waiting for a request, or for the rest of one.
pub struct Request {
    held: Vec<u8>,
    deadline: Option<Moment>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing of this head has come, and nothing is owed: the connection was kept alive.
    Idle,
    /// A head is due by the deadline.
    Due,
    /// `held` has not been looked at yet.
    Pipelined,
    /// No further request is taken.
    Draining,
}

impl Request {
    /// The first request of a connection.
    pub fn first(cx: &Context) -> Phase {
        let deadline = cx.after(cx.settings.header_timeout);
        Phase::Request(Box::new(Request { held: Vec::new(), deadline, state: State::Due }))
    }

    /// The next one, of which `held` has come already.
    pub fn following(held: Vec<u8>, cx: &Context) -> Phase {
        let (state, timeout) = match held.is_empty() {
            true => (State::Idle, cx.settings.keep_alive),
            false => (State::Pipelined, cx.settings.header_timeout),
        };
        Phase::Request(Box::new(Request { held, deadline: cx.after(timeout), state }))
    }

    pub(super) fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.state == State::Draining {
            return Step::Next(Phase::Closed(CloseReason::Draining));
        }
        cx.with_scratch(|scratch, cx| {
            let mut length = self.held.len();
            scratch[..length].copy_from_slice(&self.held);
            loop {
                if length > self.held.len() || self.state == State::Pipelined {
                    let mut slots = empty_slots();
                    match RequestHead::parse(&scratch[..length], &mut slots) {
                        Ok(Some((head, head_bytes))) => {
                            return choose(&head, &scratch[head_bytes..length], who, cx);
                        }
                        Ok(None) => {}
                        Err(bad) => return refuse(bad, CloseReason::BadRequest, who, cx),
                    }
                }
                match downstream.read(&mut scratch[length..HEAD_BYTES_MAX]) {
                    Ok(Io::Moved(n)) => length += n,
                    Ok(Io::Blocked) => break,
                    Ok(Io::Ended) | Err(_) => return Step::Next(Phase::Closed(CloseReason::Done)),
                }
            }
            if length > 0 && self.state == State::Idle {
                self.deadline = cx.after(cx.settings.header_timeout);
                self.state = State::Due;
            }
            if self.deadline.is_some_and(|at| at <= cx.now) {
                return match self.state {
                    State::Idle => Step::Next(Phase::Closed(CloseReason::Done)),
                    _ => {
                        let bad =
                            BadHead { status: 408, why: "The request head did not arrive in time" };
                        refuse(bad, CloseReason::HeaderTimeout, who, cx)
                    }
                };
            }
            if length > self.held.len() {
                self.held = scratch[..length].to_vec();
            }
            if self.state == State::Pipelined {
                self.state = State::Due;
            }
            Step::Wait(Phase::Request(self))
        })
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    /// A request that has begun still gets its answer.
    pub(super) fn drain(&mut self) {
        if self.held.is_empty() {
            self.state = State::Draining;
        }
    }
}

/// What the request asks for decides what the connection becomes. `rest`: what came behind the head.
fn choose(head: &RequestHead, rest: &[u8], who: &mut Identity, cx: &mut Context) -> Step {
    let path = head.path();
    let endpoint = Endpoint::find(path);
    let body_bytes_max = endpoint.map_or(0, |(endpoint, _)| endpoint.body_bytes_max);
    if head.body_bytes() > body_bytes_max {
        let bad = BadHead { status: 413, why: "request bodies are not taken" };
        return refuse(bad, CloseReason::BadRequest, who, cx);
    }
    let asked = || Asked {
        minor_version: head.minor_version,
        head_only: head.is_head(),
        keep_alive: head.is_keep_alive(),
        origin: head.headers.first("origin").map(<[u8]>::to_vec),
        rest: rest.to_vec(),
    };
    if let Some((route, params)) = cx.routes.find(path) {
        let route = Rc::clone(route);
        return match upgrade::check_request(head) {
            Ok(handshake) => {
                who.task_id = params.value(TASK_ID).map(|task_id| Box::new(task_id.into()));
                open(head, rest, &handshake, route, who, cx)
            }
            Err(bad) if bad.status == 400 => refuse(bad, CloseReason::BadRequest, who, cx),
            Err(bad) => {
                log_request(head, who);
                answer(asked(), bad.into_reply(), who, cx)
            }
        };
    }
    log_request(head, who);
    match endpoint {
        Some((endpoint, _)) if !endpoint.takes_method(head.method) => {
            let reply = http::Reply::error(405, "Method not allowed");
            answer(asked(), reply.with("Allow", endpoint.allow()), who, cx)
        }
        Some((endpoint, value)) => {
            Step::Ask(Box::new(Question { endpoint, value: value.into(), asked: asked() }))
        }
        None => answer(asked(), http::Reply::error(404, "Not found"), who, cx),
    }
}

/// A good upgrade request on a WebSocket route.
fn open(
    head: &RequestHead,
    rest: &[u8],
    handshake: &upgrade::Handshake,
    route: Rc<Route>,
    who: &mut Identity,
    cx: &mut Context,
) -> Step {
    if cx.is_draining {
        return Step::Next(Reply::last(
            &http::Reply::error(503, "Gateway restarting"),
            CloseReason::Draining,
            cx,
        ));
    }
    who.route = Some(route);
    log_request(head, who);
    let origin = head.headers.first("origin");
    if !cx.limits.is_allowed(origin) {
        let reason = CloseReason::OriginNotAllowed;
        let origin = origin.map(String::from_utf8_lossy).unwrap_or_default();
        warn!(target: "http", "{who} closed reason={reason} origin=\"{origin}\" client={}", who.client());
        cx.stats.count_closed(who.route_name(), reason.word(), Default::default());
        cx.stats.count_http(101);
        let mut last = Vec::new();
        upgrade::write_accept(handshake, &mut last);
        last.extend(ws::close_frame(reason.close_code(Side::Downstream), reason.phrase(), None));
        return Step::Next(Linger::phase(last, reason, cx));
    }
    match who.route.as_ref().map(|route| &route.target) {
        Some(RouteTarget::Output) => {
            let task = who.task_id.take().unwrap_or_default();
            Step::Next(Output::phase(handshake, &task, head.query(), rest, who, cx))
        }
        _ => Step::Next(Dial::phase(head, handshake, rest, who, cx)),
    }
}

fn answer(asked: Asked, reply: http::Reply, who: &Identity, cx: &mut Context) -> Step {
    Step::Next(Reply::answer(asked, reply, who, cx))
}

/// An answer to a head that was not understood: nobody knows where the next one would begin.
fn refuse(bad: BadHead, reason: CloseReason, who: &Identity, cx: &mut Context) -> Step {
    info!(target: "http", "{who} closed reason={reason} status={} why=\"{}\" client={}", bad.status, bad.why, who.client());
    Step::Next(Reply::last(&bad.into_reply(), reason, cx))
}

/// The path alone: query values may be secrets.
fn log_request(head: &RequestHead, who: &Identity) {
    let query = if head.query().is_some() { "?…" } else { "" };
    debug!(target: "http", "{who} client>gateway {} {}{query} client={}", head.method, head.path(), who.client());
}
