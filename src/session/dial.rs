//! From a client's upgrade request to a relay: asks backends to upgrade until one does, and passes
//! its answer on.
//!
//! ```text
//!   Connect ──► Ask ── 101 ──► Relay
//!    ▲  │        │ └── another answer ──► Refused (its body, for "http") ──► the end
//!    │  │        └── none, a bad one, 502, 503, 504 or 429 ──┐
//!    └──│────────────────── something is left to try ────────┤
//!       └── nothing is left to try ──────────────────────────┴─────────────► the end
//! ```
//!
//! The [`Connector`] chooses what is tried, and for how long; this file knows what a WebSocket
//! handshake is. Nothing of the client's frames is sent before the 101, so every attempt sends the
//! same request.

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from the parser of the same bytes, and backends from their own list"
)]

use super::connector::{Connector, Polled};
use super::exchange::{self, Asking, Exchange};
use super::relay::{Early, Relay};
use super::transcript::{Event, Subject, note};
use super::visitor::Visitor;
use super::{
    Answered, CloseReason, Context, Detail, Drain, Ended, Identity, Last, LastFrames,
    OnBackendFailure, Phase, State, Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Ready, Side, Source};
use crate::proto::body::{Body, BodyScanner};
use crate::proto::http::{Form, HEAD_BYTES_MAX, RequestHead, Response, ResponseHead};
use crate::proto::upgrade::{self, Handshake};
use crate::proto::ws;
use crate::service::attempt::AttemptError;
use crate::service::route::RouteTarget;
use crate::service::stats::BothWays;
use crate::service::upstreams::{Purpose, UpstreamId};
use crate::service::url::upstream_target;
use log::info;
use std::io;

/// Bytes that a client may send behind its request before the backend has answered. More waits in
/// its socket.
const EARLY_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// The largest body of a backend's refusal that is passed on.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// What is known of the backend where the gateway gives up a client for a reason of its own.
const NOT_ANSWERED: &str = "no backend had answered yet";

/// A client on its way to a backend.
pub struct Dial {
    /// Path and query as the client sent them: each backend's request line is made from them.
    path: Box<str>,
    query: Option<Box<str>>,
    /// What every backend gets behind the request line.
    headers: Vec<u8>,
    /// The client's side of the handshake.
    key: Box<str>,
    protocol: Option<Box<str>>,
    /// What the client has sent behind its request.
    early: Vec<u8>,
    request_id: String,
    connector: Connector,
    stage: DialStage,
    /// Why no backend is asked, or no further one.
    stopped: Option<DialFailure>,
}

enum DialStage {
    /// The connector is to begin a connection, or waits for a name to be looked up.
    Connect,
    /// The request is being sent, or its answer awaited.
    Ask(Exchange),
    /// The backend has refused, and the body of its answer is being read.
    Refused { conn: Conn, refused: RefusedUpgrade },
}

/// What a backend answered.
enum UpgradeAnswer {
    Upgraded {
        /// The 101 as the client gets it.
        reply: Vec<u8>,
        from_backend: Vec<u8>,
    },
    /// A 101 that does not fit the request.
    Mismatch(&'static str),
    /// Any other status, with the answer as the client is to get it, if it is.
    Refused { status: u16, answer: Option<(Vec<u8>, BodyScanner)> },
}

/// A backend's own answer, as far as it has arrived.
struct RefusedUpgrade {
    status: u16,
    answer: Vec<u8>,
    body: BodyScanner,
}

/// Why no backend takes the client.
#[derive(Debug, Clone)]
struct DialFailure {
    reason: CloseReason,
    what: String,
    /// The status for `on_backend_failure = "http"`, where there is no answer of a backend's.
    status: u16,
}

impl Dial {
    /// Begins for a good upgrade `request`, whose `handshake` was checked, with `early` bytes
    /// behind it.
    pub fn phase(
        request: &RequestHead,
        handshake: &Handshake,
        early: &[u8],
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        let Some(RouteTarget::Relay { host, upstreams, .. }) =
            who.route.as_ref().map(|route| &route.target)
        else {
            unreachable!("only relayed routes dial");
        };
        let request_id = exchange::request_id(request, cx);
        let mut headers = Vec::new();
        let forwarding = exchange::forwarding(host.as_deref(), &request_id, who, cx);
        upgrade::write_forwarded_headers(request, &forwarding, &mut headers);
        let source = Source::Session(who.key as usize, Side::Upstream);
        who.begin_recent(cx);
        Phase::Dial(Box::new(Dial {
            path: request.path().into(),
            query: request.query().map(Into::into),
            headers,
            key: handshake.key.into(),
            protocol: handshake.protocol.map(Into::into),
            early: early.to_vec(),
            request_id,
            connector: Connector::new(upstreams, source, Purpose::Client, cx),
            stage: DialStage::Connect,
            stopped: upgrade::is_loop(request).then(DialFailure::request_loop),
        }))
    }

    /// Keeps what the client sends meanwhile. False: the client is gone.
    fn read_early(&mut self, downstream: &mut Conn, cx: &mut Context) -> bool {
        while self.early.len() < EARLY_BYTES_MAX {
            let room = EARLY_BYTES_MAX - self.early.len();
            match cx.with_scratch(|scratch, _| {
                let read = downstream.read(&mut scratch[..room])?;
                if let Io::Moved(n) = read {
                    self.early.extend_from_slice(&scratch[..n]);
                }
                io::Result::Ok(read)
            }) {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return true,
                Ok(Io::Ended) | Err(_) => return false,
            }
        }
        true
    }

    /// The backend has refused. `None`: another one is tried, or the body of its answer comes
    /// first.
    fn refused(
        &mut self,
        conn: Conn,
        status: u16,
        answer: Option<(Vec<u8>, BodyScanner)>,
        who: &Identity,
        cx: &mut Context,
    ) -> Option<DialFailure> {
        if is_failure(status) && self.connector.has_more() {
            self.connector.fail(AttemptError::Status(status), who.into(), cx);
            return None;
        }
        match answer {
            Some((answer, body)) => {
                self.stage =
                    DialStage::Refused { conn, refused: RefusedUpgrade { status, answer, body } };
                None
            }
            None => Some(self.end_refused(status, who, cx)),
        }
    }

    /// The backend has refused, and nothing else is tried.
    fn end_refused(&mut self, status: u16, who: &Identity, cx: &mut Context) -> DialFailure {
        let error = AttemptError::Status(status);
        if is_failure(status) {
            self.connector.fail_for_good(error, who.into(), cx);
        } else {
            self.connector.answered(cx);
        }
        error.into()
    }

    fn establish(
        mut self: Box<Self>,
        conn: Conn,
        reply: &[u8],
        from_backend: &[u8],
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let Some(backend) = self.connector.succeed(cx) else {
            unreachable!("a backend has answered");
        };
        note(who, || Event::Upgraded);
        info!(
            target: "relay",
            "{who} opened client={} backend={} request_id={}{}{}",
            who.client(),
            cx.upstreams.url(backend).public_text(),
            self.request_id,
            Visitor::in_lines(&self.headers),
            Subject::from(who).task_field(),
        );
        cx.stats.count_http(101);
        cx.stats.count_upgrade(who.route_name());
        let early = Early { reply, from_client: &self.early, from_backend };
        Step::Next(Relay::phase(conn, backend, early, downstream, who, cx))
    }

    /// Ends the session: no backend takes the client. `answer` is a backend's own, where it is
    /// passed on.
    fn fail(
        self: Box<Self>,
        failure: DialFailure,
        answer: Option<Vec<u8>>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let DialFailure { reason, what, status } = failure;
        let sentence = match reason {
            CloseReason::Draining | CloseReason::OutOfResources => reason.phrase().to_owned(),
            _ => format!("backend unavailable: {what}"),
        };
        let answered = match cx.settings.on_backend_failure {
            OnBackendFailure::Http => Answered::Http,
            OnBackendFailure::Close => Answered::WebSocket,
        };
        let mut ended = Ended::new(reason, Detail::NoBackend { what, answered });
        ended.backend = self.connector.last_backend();
        cx.stats.count_handshake_failed(who.route_name(), reason.word());
        Step::End(match cx.settings.on_backend_failure {
            OnBackendFailure::Http => ended.with_last(Last::Answer(answer.unwrap_or_else(|| {
                cx.stats.count_http(status);
                Response::error(status, &sentence).into_bytes(Form::LAST)
            }))),
            OnBackendFailure::Close => {
                let mut frames = Vec::new();
                let protocol = self.protocol.as_deref();
                upgrade::write_accept(&Handshake { key: &self.key, protocol }, &mut frames);
                cx.stats.count_http(101);
                cx.stats.count_upgrade(who.route_name());
                let answer_bytes = frames.len();
                let code = reason.close_code(Side::Downstream);
                frames.extend(ws::close_frame(code, &sentence, None));
                let last = LastFrames::behind_answer(frames, answer_bytes, 1, &self.early);
                ended.with_close_code().with_last(Last::Frames(last))
            }
        })
    }

    /// The request as `backend` is to get it.
    fn request(&self, backend: UpstreamId, who: &Identity, cx: &Context) -> Vec<u8> {
        let params = who.route.as_ref().and_then(|route| route.path.match_path(&self.path));
        let params = params.unwrap_or_else(|| unreachable!("the route was found by this path"));
        let target = upstream_target(cx.upstreams.url(backend), &params, self.query.as_deref());
        let mut request = Vec::with_capacity(target.len() + self.headers.len() + 16);
        upgrade::write_request_line(&target, &mut request);
        request.extend_from_slice(&self.headers);
        request
    }

    fn advance(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        if !self.read_early(downstream, cx) {
            self.connector.abandon(cx);
            let mut ended = Ended::new(CloseReason::ClientVanished, Detail::LeftWhileDialing);
            ended.backend = self.connector.last_backend();
            cx.stats.count_handshake_failed(who.route_name(), ended.reason.word());
            return Step::End(ended);
        }
        if let Some(failure) = self.stopped.take() {
            self.connector.abandon(cx);
            return self.fail(failure, None, who, cx);
        }
        loop {
            match std::mem::replace(&mut self.stage, DialStage::Connect) {
                DialStage::Connect => match self.connector.poll(who.into(), cx) {
                    Polled::Wait => return Step::Wait(Phase::Dial(self)),
                    Polled::Begun(conn, backend) => {
                        let request = self.request(backend, who, cx);
                        let asking = Asking::Upgrade(self.request_id.clone());
                        self.stage = DialStage::Ask(Exchange::new(conn, request, asking));
                    }
                    Polled::Exhausted(error) => return self.fail(error.into(), None, who, cx),
                },
                DialStage::Ask(mut exchange) => {
                    let (key, mode) = (&*self.key, cx.settings.on_backend_failure);
                    let judge = |head: &ResponseHead, rest: &[u8]| judge(head, rest, key, mode);
                    match exchange.poll(&mut self.connector, who.into(), cx, judge) {
                        Ok(None) => {
                            self.stage = DialStage::Ask(exchange);
                            return Step::Wait(Phase::Dial(self));
                        }
                        Ok(Some(UpgradeAnswer::Upgraded { reply, from_backend })) => {
                            let conn = exchange.into_conn();
                            return self.establish(
                                conn,
                                &reply,
                                &from_backend,
                                downstream,
                                who,
                                cx,
                            );
                        }
                        Ok(Some(UpgradeAnswer::Refused { status, answer })) => {
                            let conn = exchange.into_conn();
                            if let Some(failure) = self.refused(conn, status, answer, who, cx) {
                                return self.fail(failure, None, who, cx);
                            }
                        }
                        Ok(Some(UpgradeAnswer::Mismatch(why))) => {
                            self.connector.fail(AttemptError::NotUpgraded(why), who.into(), cx);
                        }
                        Err(error) => self.connector.fail(error, who.into(), cx),
                    }
                }
                DialStage::Refused { mut conn, mut refused } => {
                    match refused.read(&mut conn, self.connector.deadline(), cx) {
                        None => {
                            self.stage = DialStage::Refused { conn, refused };
                            return Step::Wait(Phase::Dial(self));
                        }
                        Some(is_whole) => {
                            let failure = self.end_refused(refused.status, who, cx);
                            return self.fail(failure, is_whole.then_some(refused.answer), who, cx);
                        }
                    }
                }
            }
        }
    }
}

impl State for Dial {
    fn step(self: Box<Self>, downstream: &mut Conn, who: &mut Identity, cx: &mut Context) -> Step {
        let step = self.advance(downstream, who, cx);
        if let Step::Next(Phase::Relay(_)) = step {
            // The line `opened` says all of it.
            who.forget_recent(cx);
        }
        step
    }

    fn deadline(&self) -> Option<Moment> {
        self.connector.deadline()
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        self.stopped = Some(DialFailure {
            reason: CloseReason::Draining,
            what: NOT_ANSWERED.to_owned(),
            status: 503,
        });
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "connecting"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn own_bytes(&self) -> usize {
        let stage = match &self.stage {
            DialStage::Connect => 0,
            DialStage::Ask(exchange) => exchange.held_bytes(),
            DialStage::Refused { refused, .. } => refused.answer.capacity(),
        };
        size_of::<Dial>() + self.headers.capacity() + self.early.capacity() + stage
    }

    fn release(mut self: Box<Self>, _: &Identity, cx: &mut Context) -> Box<Ended> {
        self.connector.abandon(cx);
        let what = NOT_ANSWERED.to_owned();
        let detail = Detail::NoBackend { what, answered: Answered::Http };
        let mut ended = Ended::new(CloseReason::Stopped, detail);
        ended.backend = self.connector.last_backend();
        ended
    }

    fn traffic(&self) -> Option<BothWays> {
        Some(BothWays::default())
    }

    fn is_looking_up(&self) -> bool {
        self.connector.is_looking_up()
    }

    /// The backend that is being tried.
    fn backend(&self) -> Option<UpstreamId> {
        self.connector.backend()
    }

    fn handle_ready(&mut self, ready: Ready) {
        match &mut self.stage {
            DialStage::Connect => {}
            DialStage::Ask(exchange) => exchange.handle_ready(ready),
            DialStage::Refused { conn, .. } => conn.handle_ready(ready),
        }
    }
}

/// Reads a backend's final answer. `key` is what the client sent; `mode` says whether a refusal is
/// to be passed on.
fn judge(head: &ResponseHead, rest: &[u8], key: &str, mode: OnBackendFailure) -> UpgradeAnswer {
    if head.status == 101 {
        return match upgrade::check_response(head, key) {
            Ok(()) => {
                let mut reply = Vec::new();
                upgrade::write_forwarded_response(head, &mut reply);
                UpgradeAnswer::Upgraded { reply, from_backend: rest.to_vec() }
            }
            Err(why) => UpgradeAnswer::Mismatch(why),
        };
    }
    let mut answer = None;
    if mode == OnBackendFailure::Http
        && let Ok(body) = Body::of_response(head)
    {
        let mut bytes = Vec::new();
        upgrade::write_forwarded_refusal(head, &mut bytes);
        let mut body = BodyScanner::new(body);
        if let Ok(length) = body.advance(rest) {
            bytes.extend_from_slice(&rest[..length]);
            answer = Some((bytes, body));
        }
    }
    UpgradeAnswer::Refused { status: head.status, answer }
}

/// Whether an answer says that the backend cannot serve anyone at the moment, so that the next is
/// tried.
pub(super) fn is_failure(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

impl RefusedUpgrade {
    /// Reads the body. `Some`: done; true if the answer is whole, and can be passed on.
    fn read(
        &mut self,
        conn: &mut Conn,
        give_up_at: Option<Moment>,
        cx: &mut Context,
    ) -> Option<bool> {
        while !self.body.is_done() && self.answer.len() <= REFUSAL_BYTES_MAX {
            let read = cx.with_scratch(|scratch, _| {
                let read = conn.read(scratch)?;
                if let Io::Moved(n) = read {
                    let length = self.body.advance(&scratch[..n]).map_err(io::Error::other)?;
                    self.answer.extend_from_slice(&scratch[..length]);
                }
                io::Result::Ok(read)
            });
            match read {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Ended) => return Some(self.body.may_end()),
                Ok(Io::Blocked) if give_up_at.is_none_or(|at| at > cx.now) => return None,
                Ok(Io::Blocked) | Err(_) => return Some(false),
            }
        }
        Some(self.body.is_done())
    }
}

impl DialFailure {
    fn request_loop() -> DialFailure {
        DialFailure {
            reason: CloseReason::BackendUnavailable,
            what: "request loop".to_owned(),
            status: 508,
        }
    }
}

impl From<AttemptError> for DialFailure {
    fn from(error: AttemptError) -> DialFailure {
        let (reason, status) = match error {
            AttemptError::Status(429 | 503) => (CloseReason::BackendOverloaded, 502),
            AttemptError::Local { .. } => (CloseReason::OutOfResources, 503),
            error if error.is_timeout() => (CloseReason::BackendUnavailable, 504),
            _ => (CloseReason::BackendUnavailable, 502),
        };
        DialFailure { reason, what: error.to_string(), status }
    }
}
