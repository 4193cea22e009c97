//! A request on a route for plain HTTP: passed on to a backend, and its response to the client.
//!
//! ```text
//!   Connect ──► Ask ── the head of the response ──► Transfer ── complete ──► the next request
//!    ▲  │        │                                     └── cut, stalled ───► the end
//!    │  │        └── none: something may be tried again ──┐
//!    └──│─────────────────────────────────────────────────┤
//!       └── nothing may be tried ─────────────────────────┴── 502, 503, 504
//! ```
//!
//! The [`Connector`] chooses what is tried. If connecting fails, the next backend gets the request,
//! whatever its method. Once a connection is established, only a request that may be repeated
//! (RFC 9110 §9.2.2) and has no body gets another attempt.
//!
//! A connection whose response has ended is kept for the next request of the same client
//! ([`kept`]).
//!
//! The body of the request is sent as soon as its head has left, and goes on while the
//! response comes back: one `Pump` for each direction. Neither body is ever held as a whole.

mod begin;
mod ending;
pub mod kept;
mod pump;

use super::connector::{Connector, Polled, Retry};
use super::exchange::{Asking, Exchange};
use super::respond::Asked;
use super::{CloseReason, Context, Drain, Ended, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Ready};
use crate::proto::forward::{self, ResponseFraming};
use crate::proto::http::framing::BodyFraming;
use crate::proto::http::{self, BadHead, ResponseHead};
use crate::service::attempt::AttemptError;
use crate::service::upstreams::UpstreamId;
use crate::service::url::upstream_target;
use pump::{Pump, PumpError, PumpFraming, Pumped};
use std::net::SocketAddr;
use std::time::Duration;

/// A request that is being passed on.
pub struct Forward {
    /// How the client is answered, and what came behind its request.
    asked: Asked,
    method: Box<str>,
    /// As the client sent them: each backend's request line is made from them.
    path: Box<str>,
    query: Option<Box<str>>,
    /// What every backend gets behind the request line.
    headers: Vec<u8>,
    request_id: String,
    /// The body of the request.
    upload: Pump,
    /// The backend takes no more of it, but may have answered before.
    is_upload_lost: bool,
    /// The client waits for an interim response.
    awaits_continue: bool,
    /// What is left of that response.
    interim: &'static [u8],
    connector: Connector,
    /// Whether it may be sent a second time.
    retry: Retry,
    /// The request has been sent over a connection that was kept.
    is_resumed: bool,
    stage: ForwardStage,
    began_at: Moment,
    /// Of the response, with the moment of its head.
    answered: Option<(u16, Moment)>,
    drain: Option<Drain>,
    write_timeout: Option<Duration>,
}

enum ForwardStage {
    /// The connector is to begin a connection, or waits for a name to be looked up.
    Connect,
    /// The request is being sent, or its answer awaited.
    Ask(Exchange),
    /// The response is being passed on.
    Transfer(Transfer),
}

struct Transfer {
    conn: Conn,
    backend: UpstreamId,
    download: Pump,
    framing: ResponseFraming,
    /// Where the connection leads, if the backend takes another request on it.
    reusable: Option<SocketAddr>,
}

/// A backend's response as it is passed on, and how much of it is here.
struct ForwardedResponse {
    status: u16,
    keep_alive: bool,
    download: Pump,
    framing: ResponseFraming,
    /// The backend takes another request on this connection.
    is_reusable: bool,
}

/// What follows a look at one stage.
enum ForwardProgress {
    /// Another stage has been entered.
    Again,
    Wait,
    Yield,
    Over(ForwardOutcome),
}

/// How a request ends.
enum ForwardOutcome {
    /// The client has been sent the whole response.
    Complete,
    /// No backend has answered.
    NoBackend(AttemptError),
    /// The request is not passed on any further.
    Refused(BadHead),
    ClientLeft,
    ClientStalled,
    BackendStalled,
    /// The response ended too early, or cannot be understood any further.
    ResponseCut(&'static str),
    /// The gateway is about to stop.
    Draining,
}

/// Bytes of a body that are copied behind its head.
const BODY_WITH_HEAD_MAX: usize = 16 * 1024;

const TOO_LARGE: BadHead = BadHead { status: 413, why: "the request body is larger than allowed" };

const TOO_LATE: BadHead = BadHead { status: 408, why: "The request body did not arrive in time" };

const RESTARTING: BadHead = BadHead { status: 503, why: "Gateway restarting" };

impl Forward {
    fn advance(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        self.write_timeout = cx.settings.write_timeout;
        if self.drain == Some(Drain::Leave) {
            return self.end(ForwardOutcome::Draining, downstream, who, cx);
        }
        loop {
            let progress = match std::mem::replace(&mut self.stage, ForwardStage::Connect) {
                ForwardStage::Connect => self.connect(downstream, who, cx),
                ForwardStage::Ask(exchange) => self.ask(exchange, downstream, who, cx),
                ForwardStage::Transfer(mut transfer) => {
                    let progress = self.transfer(&mut transfer, downstream, cx);
                    self.stage = ForwardStage::Transfer(transfer);
                    progress
                }
            };
            return match progress {
                ForwardProgress::Again => continue,
                ForwardProgress::Wait => Step::Wait(Phase::Forward(self)),
                ForwardProgress::Yield => Step::Yield(Phase::Forward(self)),
                ForwardProgress::Over(outcome) => self.end(outcome, downstream, who, cx),
            };
        }
    }

    fn connect(
        &mut self,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> ForwardProgress {
        match self.connector.poll(who.into(), cx) {
            Polled::Wait if self.upload.is_read() && self.is_client_gone(downstream, cx) => {
                ForwardProgress::Over(ForwardOutcome::ClientLeft)
            }
            Polled::Wait => ForwardProgress::Wait,
            Polled::Begun(conn, backend) => {
                self.stage = ForwardStage::Ask(self.exchange(conn, backend, who, cx));
                ForwardProgress::Again
            }
            Polled::Exhausted(error) => ForwardProgress::Over(ForwardOutcome::NoBackend(error)),
        }
    }

    /// Sends the head of the request as `backend` is to get it, and the body that has come with it,
    /// if that is short.
    fn exchange(&self, conn: Conn, backend: UpstreamId, who: &Identity, cx: &Context) -> Exchange {
        let params = who.route.as_ref().and_then(|route| route.path.match_path(&self.path));
        let params = params.unwrap_or_else(|| unreachable!("the route was found by this path"));
        let target = upstream_target(cx.upstreams.url(backend), &params, self.query.as_deref());
        let body = Some(self.upload.waiting()).filter(|body| body.len() <= BODY_WITH_HEAD_MAX);
        let body = body.unwrap_or_default();
        let mut head = Vec::with_capacity(target.len() + self.headers.len() + 32 + body.len());
        forward::write_request_line(&self.method, &target, &mut head);
        head.extend_from_slice(&self.headers);
        let asking = Asking::Request(self.request_id.clone());
        Exchange::new(conn, head, asking).with_body(body)
    }

    /// Sends the request, and looks for the head of the response, which may come before all of the
    /// body has been sent.
    fn ask(
        &mut self,
        mut exchange: Exchange,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> ForwardProgress {
        let is_sent = match exchange.send(&mut self.connector, who.into(), cx) {
            Ok(is_sent) => is_sent,
            Err(_) if exchange.is_head_sent() => {
                // It may have answered before: what it has sent is still read.
                self.is_upload_lost = true;
                true
            }
            Err(error) => return self.attempt_failed(error, who, cx),
        };
        self.upload.skip(exchange.take_body_sent());
        let uploaded = match is_sent {
            true => match self.upload(downstream, exchange.conn_mut(), cx) {
                Ok(uploaded) => uploaded,
                Err(outcome) => return ForwardProgress::Over(outcome),
            },
            false => Pumped::Starved,
        };
        if exchange.is_head_sent() {
            let may_keep = self.may_keep_alive(cx);
            let read = |head: &ResponseHead, rest: &[u8]| self.judge(head, rest, may_keep);
            match exchange.read_answer(who.into(), cx, read) {
                Ok(None) => {}
                Ok(Some(Ok(answer))) => {
                    self.begin_transfer(exchange.into_conn(), answer, who, cx);
                    return ForwardProgress::Again;
                }
                Ok(Some(Err(why))) => {
                    return self.attempt_failed(AttemptError::Malformed(why), who, cx);
                }
                Err(error) => return self.attempt_failed(error, who, cx),
            }
        }
        if exchange.take_wants_body() && std::mem::take(&mut self.awaits_continue) {
            self.interim = http::CONTINUE;
        }
        if !self.send_interim(downstream)
            || self.upload.is_read() && self.is_client_gone(downstream, cx)
        {
            return ForwardProgress::Over(ForwardOutcome::ClientLeft);
        }
        if self.upload.check_stall(exchange.conn_mut(), cx.settings.write_timeout, cx.now) {
            return self.attempt_failed(AttemptError::ResponseTimedOut, who, cx);
        }
        if let Some(error) = self.connector.timed_out(cx.now) {
            let awaits_client = is_sent && uploaded == Pumped::Starved && !self.is_upload_lost;
            return match awaits_client {
                true => ForwardProgress::Over(ForwardOutcome::Refused(TOO_LATE)),
                false => self.attempt_failed(error, who, cx),
            };
        }
        self.stage = ForwardStage::Ask(exchange);
        if uploaded == Pumped::Busy { ForwardProgress::Yield } else { ForwardProgress::Wait }
    }

    /// Sends what there is of the request's body.
    fn upload(
        &mut self,
        downstream: &mut Conn,
        upstream: &mut Conn,
        cx: &mut Context,
    ) -> Result<Pumped, ForwardOutcome> {
        if self.is_upload_lost {
            return Ok(Pumped::Done);
        }
        let before = (self.upload.content_bytes(), self.upload.waiting_bytes());
        let pumped = self.upload.pump(downstream, upstream, cx);
        self.asked.rest.append(&mut self.upload.take_surplus());
        if (self.upload.content_bytes(), self.upload.waiting_bytes()) != before {
            self.connector.note_progress(cx);
        }
        match pumped {
            Ok(pumped) => Ok(pumped),
            Err(PumpError::Sink) => {
                // It may have answered before: what it has sent is still read.
                self.is_upload_lost = true;
                Ok(Pumped::Done)
            }
            Err(error) => {
                Err(bad_body(error).map_or(ForwardOutcome::ClientLeft, ForwardOutcome::Refused))
            }
        }
    }

    /// The attempt has failed: another one follows if it may.
    fn attempt_failed(
        &mut self,
        error: AttemptError,
        who: &Identity,
        cx: &mut Context,
    ) -> ForwardProgress {
        if self.is_resumed && error != AttemptError::ResponseTimedOut {
            return self.resumed_in_vain(error, who, cx);
        }
        if error == AttemptError::ResponseTimedOut {
            // No time is left for another one.
            self.connector.fail_for_good(error, who.into(), cx);
            return ForwardProgress::Over(ForwardOutcome::NoBackend(error));
        }
        self.connector.fail(error, who.into(), cx);
        ForwardProgress::Again
    }

    /// The connection that was kept is of no use. The backend may have closed it when the request
    /// was on its way, which says nothing about the backend.
    fn resumed_in_vain(
        &mut self,
        error: AttemptError,
        who: &Identity,
        cx: &mut Context,
    ) -> ForwardProgress {
        self.is_resumed = false;
        self.connector.abandon(cx);
        match self.connect_anew(who, cx) {
            Some(connector) => {
                self.connector = connector;
                ForwardProgress::Again
            }
            None => ForwardProgress::Over(ForwardOutcome::NoBackend(error)),
        }
    }

    /// Whether another request may follow a response whose head is written now.
    fn may_keep_alive(&self, cx: &Context) -> bool {
        let is_last = self.drain.is_some() || cx.is_draining;
        self.asked.form.keep_alive && !is_last && self.upload.is_read()
    }

    /// Makes a backend's final answer into a response for the client. `rest` is what has come
    /// behind its head.
    ///
    /// # Errors
    /// A phrase, when it is not passed on.
    fn judge(
        &self,
        head: &ResponseHead,
        rest: &[u8],
        may_keep: bool,
    ) -> Result<ForwardedResponse, &'static str> {
        if head.status == 101 {
            return Err("it upgraded without being asked to");
        }
        let source = BodyFraming::of_response(head, &self.method)?;
        let framing = ResponseFraming::of(source, self.asked.form);
        let keep_alive = may_keep && framing != ResponseFraming::UntilClose;
        let mut front = self.interim.to_vec();
        let form = http::Form { keep_alive, ..self.asked.form };
        forward::write_response_head(head, framing, form, &mut front);
        let new_framing = match framing {
            ResponseFraming::Chunked => PumpFraming::Chunked,
            _ => PumpFraming::Plain,
        };
        let is_reusable = source != BodyFraming::UntilClose
            && head.minor_version > 0
            && !head.headers.has_token("connection", "close");
        match Pump::new(front, source, new_framing, None, rest) {
            Ok(download) => Ok(ForwardedResponse {
                status: head.status,
                keep_alive,
                download: download.reading_beyond(),
                framing,
                is_reusable,
            }),
            Err(PumpError::Malformed(why)) => Err(why),
            Err(_) => Err("it cannot be read"),
        }
    }

    fn begin_transfer(
        &mut self,
        conn: Conn,
        answer: ForwardedResponse,
        who: &Identity,
        cx: &mut Context,
    ) {
        let address = self.connector.address();
        let Some(backend) = self.connector.succeed(cx) else {
            unreachable!("a backend has answered");
        };
        let ForwardedResponse { status, keep_alive, download, framing, is_reusable } = answer;
        let reusable = address.filter(|_| is_reusable);
        cx.stats.count_http(status);
        cx.stats.count_request(who.route_name(), status);
        self.answered = Some((status, cx.now));
        self.asked.form.keep_alive = keep_alive;
        // It is in front of the response's head now.
        self.interim = b"";
        self.stage =
            ForwardStage::Transfer(Transfer { conn, backend, download, framing, reusable });
    }

    /// Passes on what there is of the response, and of what is left of the request.
    fn transfer(
        &mut self,
        transfer: &mut Transfer,
        downstream: &mut Conn,
        cx: &mut Context,
    ) -> ForwardProgress {
        let uploaded = match self.upload(downstream, &mut transfer.conn, cx) {
            Ok(uploaded) => uploaded,
            Err(outcome) => return ForwardProgress::Over(outcome),
        };
        let outcome = match transfer.download.pump(&mut transfer.conn, downstream, cx) {
            Ok(Pumped::Done) => ForwardOutcome::Complete,
            Err(PumpError::Sink) => ForwardOutcome::ClientLeft,
            Err(PumpError::Malformed(why)) => ForwardOutcome::ResponseCut(why),
            Err(PumpError::Cut | PumpError::TooLarge) => {
                ForwardOutcome::ResponseCut("the backend closed the connection")
            }
            Ok(downloaded) => {
                let timeout = cx.settings.write_timeout;
                if self.upload.is_read() && self.is_client_gone(downstream, cx) {
                    ForwardOutcome::ClientLeft
                } else if transfer.download.check_stall(downstream, timeout, cx.now) {
                    ForwardOutcome::ClientStalled
                } else if self.upload.check_stall(&transfer.conn, timeout, cx.now) {
                    ForwardOutcome::BackendStalled
                } else if downloaded == Pumped::Busy || uploaded == Pumped::Busy {
                    return ForwardProgress::Yield;
                } else {
                    return ForwardProgress::Wait;
                }
            }
        };
        ForwardProgress::Over(outcome)
    }

    /// Sends the interim response, or what there is room for. False: the client is gone.
    fn send_interim(&mut self, downstream: &mut Conn) -> bool {
        while !self.interim.is_empty() {
            match downstream.write(self.interim) {
                Ok(Io::Moved(n)) => self.interim = self.interim.get(n..).unwrap_or_default(),
                Ok(Io::Blocked) => return true,
                Ok(Io::Ended) | Err(_) => return false,
            }
        }
        true
    }

    /// Whether the client has left, which only reading shows. It has not if it sent another request
    /// before it ended its side.
    fn is_client_gone(&mut self, downstream: &mut Conn, cx: &mut Context) -> bool {
        let rest = &mut self.asked.rest;
        while rest.len() < cx.settings.max_head {
            let room = cx.settings.max_head - rest.len();
            let read = cx.with_scratch(|scratch, _| {
                let most = room.min(scratch.len());
                let bytes = scratch.get_mut(..most).unwrap_or_default();
                let read = downstream.read(bytes);
                if let Ok(Io::Moved(n)) = read {
                    rest.extend(bytes.iter().take(n));
                }
                read
            });
            match read {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return false,
                Ok(Io::Ended) => return rest.is_empty(),
                Err(_) => return true,
            }
        }
        false
    }
}

impl State for Forward {
    fn step(self: Box<Self>, downstream: &mut Conn, who: &mut Identity, cx: &mut Context) -> Step {
        self.advance(downstream, who, cx)
    }

    fn deadline(&self) -> Option<Moment> {
        let upload = self.upload.deadline(self.write_timeout);
        let other = match &self.stage {
            ForwardStage::Connect | ForwardStage::Ask(_) => self.connector.deadline(),
            ForwardStage::Transfer(transfer) => transfer.download.deadline(self.write_timeout),
        };
        Moment::earliest([upload, other])
    }

    /// A request that is under way is answered; none follows it.
    fn drain(&mut self, drain: Drain, _: &Identity, _: &mut Context) {
        self.drain = Some(drain);
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    fn held_bytes(&self) -> usize {
        match &self.stage {
            // What waits for a connection waits for no peer.
            ForwardStage::Connect => 0,
            ForwardStage::Ask(_) => self.upload.waiting_bytes(),
            ForwardStage::Transfer(transfer) => {
                self.upload.waiting_bytes() + transfer.download.waiting_bytes()
            }
        }
    }

    fn own_bytes(&self) -> usize {
        let stage = match &self.stage {
            ForwardStage::Connect => 0,
            ForwardStage::Ask(exchange) => exchange.held_bytes(),
            ForwardStage::Transfer(transfer) => transfer.download.held_bytes(),
        };
        let request = self.headers.capacity() + self.upload.held_bytes();
        size_of::<Forward>() + request + self.asked.rest.capacity() + stage
    }

    fn upstream(&mut self) -> Option<&mut Conn> {
        match &mut self.stage {
            ForwardStage::Connect => None,
            ForwardStage::Ask(exchange) => Some(exchange.conn_mut()),
            ForwardStage::Transfer(transfer) => Some(&mut transfer.conn),
        }
    }

    fn release(self: Box<Self>, who: &Identity, cx: &mut Context) -> Box<Ended> {
        self.ended(CloseReason::Stopped, None, who, cx)
    }

    fn is_looking_up(&self) -> bool {
        self.connector.is_looking_up()
    }

    fn backend(&self) -> Option<UpstreamId> {
        match &self.stage {
            ForwardStage::Transfer(transfer) => Some(transfer.backend),
            ForwardStage::Connect | ForwardStage::Ask(_) => self.connector.backend(),
        }
    }

    fn handle_ready(&mut self, ready: Ready) {
        match &mut self.stage {
            ForwardStage::Connect => {}
            ForwardStage::Ask(exchange) => exchange.handle_ready(ready),
            ForwardStage::Transfer(transfer) => transfer.conn.handle_ready(ready),
        }
    }
}

/// The answer to a body that is not passed on any further; `None`: the client has left.
fn bad_body(error: PumpError) -> Option<BadHead> {
    match error {
        PumpError::Malformed(why) => Some(BadHead { status: 400, why }),
        PumpError::TooLarge => Some(TOO_LARGE),
        PumpError::Cut | PumpError::Sink => None,
    }
}
