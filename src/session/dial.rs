//! From a client's upgrade request to a relay: find a backend, connect, ask it to upgrade, pass its answer on.
//!
//! ```text
//!   Choose ──► Lookup ──► Connect ──► Handshake ── 101 ──► Relay
//!      ▲ ▲        │          │            └── another answer ──► Refusal (its body, for "http") ──► the client is told
//!      │ └── name not found ─┤            └── none, or a bad one ─────────────────────────────────► the client is told
//!      └── the next address, the next backend; none left ─────────────────────────────────────────► the client is told
//! ```
//!
//! All attempts share one `connect_timeout`: a client waits no longer because there are more backends. While addresses
//! remain to be tried, each gets an even share of what is left, so that one that swallows packets does not use it all up.

use super::jobs::{Job, NameOwner};
use super::relay::{Early, Relay};
use super::reply::Reply;
use super::transcript::{Event, note};
use super::{
    CloseReason, Context, Detail, Drain, Ended, Identity, Last, OnBackendFailure, Phase, State,
    Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Ready, Side, Source};
use crate::proto::body::{Body, BodyScanner};
use crate::proto::http::{self, HEAD_BYTES_MAX, RequestHead, ResponseHead, empty_slots};
use crate::proto::upgrade::{self, Forwarding, Handshake};
use crate::proto::ws;
use crate::service::name::Name;
use crate::service::route::RouteTarget;
use crate::service::url::upstream_target;
use crate::service::stats::BothWays;
use crate::service::upstreams::{Addresses, UpstreamId};
use log::{info, warn};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;

/// What a client may send behind its request before the backend has answered; more waits in its socket.
const EARLY_BYTES_MAX: usize = HEAD_BYTES_MAX;

/// Room for what is said about the client behind its own headers.
const ADDED_ROOM: usize = 192;

/// The largest body that comes with a backend's refusal and is passed on.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// A client on its way to a backend.
pub struct Dial {
    /// The path as the client sent it, and the query: what each backend is asked for is made from them.
    path: Box<str>,
    query: Option<Box<str>>,
    /// What every backend gets behind the first line.
    headers: Vec<u8>,
    /// The client's side of the handshake.
    key: Box<str>,
    protocol: Option<Box<str>>,
    early: Vec<u8>,
    request_id: String,
    tried: Vec<UpstreamId>,
    current: Option<Current>,
    stage: Stage,
    connect_by: Option<Moment>,
    /// Why the last attempt failed.
    failure: Failure,
    is_draining: bool,
}

/// The backend that is being tried.
struct Current {
    backend: UpstreamId,
    addresses: Rc<[SocketAddr]>,
    next: usize,
    /// It has accepted a connection, which ends its being tried.
    is_connected: bool,
}

enum Stage {
    Choose,
    Lookup,
    Connect { conn: Conn, request: Vec<u8>, sent: usize, give_up_at: Option<Moment> },
    Handshake { conn: Conn, held: Vec<u8>, give_up_at: Option<Moment> },
    Refusal { conn: Conn, refusal: Refusal, give_up_at: Option<Moment> },
}

/// A backend's own answer, as far as it has come.
struct Refusal {
    failure: Failure,
    answer: Vec<u8>,
    body: BodyScanner,
}

/// What happened, for the client and the log.
#[derive(Clone)]
struct Failure {
    what: String,
    /// The answer for `on_backend_failure = "http"`, where the backend gave none.
    status: u16,
    reason: CloseReason,
}

/// What a stage came to.
enum Outcome {
    Wait(Stage),
    Go(Stage),
    /// The attempt failed: the next address or backend.
    Retry(Failure),
    /// No further attempt.
    Fail(Failure, Option<Vec<u8>>),
    Relay(Box<Established>),
}

struct Established {
    conn: Conn,
    reply: Vec<u8>,
    from_backend: Vec<u8>,
}

impl Dial {
    /// Begins for a good upgrade `request`, whose `handshake` was checked, with `early` bytes behind it.
    pub fn phase(
        request: &RequestHead,
        handshake: &Handshake,
        early: &[u8],
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        let request_id = match upgrade::request_id(request) {
            Some(theirs) => theirs.to_owned(),
            None => uuid::Builder::from_random_bytes(cx.chance.u128(..).to_be_bytes())
                .into_uuid()
                .to_string(),
        };
        let host = match who.route.as_ref().map(|route| &route.target) {
            Some(RouteTarget::Relay { host, .. }) => host.as_deref(),
            _ => unreachable!("only relayed routes dial"),
        };
        let theirs: usize =
            request.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let mut headers = Vec::with_capacity(theirs + ADDED_ROOM);
        let forwarding = Forwarding { host, client: who.ip, request_id: &request_id };
        upgrade::write_forwarded_headers(request, &forwarding, &mut headers);
        Phase::Dial(Box::new(Dial {
            path: request.path().into(),
            query: request.query().map(Into::into),
            headers,
            key: handshake.key.into(),
            protocol: handshake.protocol.map(Into::into),
            early: early.to_vec(),
            request_id,
            tried: Vec::new(),
            current: None,
            stage: Stage::Choose,
            connect_by: cx.after(cx.settings.connect_timeout),
            failure: Failure::new("no backend is configured", 502),
            is_draining: false,
        }))
    }

    /// It waits for a backend's name to be looked up.
    pub fn is_looking_up(&self) -> bool {
        matches!(self.stage, Stage::Lookup)
    }

    /// Leaves the backend that was being tried, through no fault of its own.
    fn leave_backend(&self, cx: &mut Context) {
        match &self.current {
            Some(current) if current.is_connected => cx.upstreams.left(current.backend),
            Some(current) => cx.upstreams.abandoned(current.backend),
            None => {}
        }
    }

    /// Keeps what the client already says. False: it is gone.
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

    /// The next address of the current backend, else the next backend.
    fn choose(&mut self, who: &Identity, cx: &mut Context) -> Outcome {
        if let Some(current) = &mut self.current {
            if let Some(&address) = current.addresses.get(current.next) {
                current.next += 1;
                return self.dial(address, who, cx);
            }
            let backend = current.backend;
            self.give_up(backend, who, cx);
        }
        let upstreams = who.route.as_ref().map_or(&[][..], |route| route.upstreams());
        if self.is_late(cx) {
            return Outcome::Fail(self.failure.clone(), None);
        }
        let Some(backend) = cx.upstreams.choose(upstreams, &self.tried, cx.now) else {
            return Outcome::Fail(self.failure.clone(), None);
        };
        cx.upstreams.connecting(backend);
        self.current =
            Some(Current { backend, addresses: [].into(), next: 0, is_connected: false });
        match cx.upstreams.addresses(backend) {
            Addresses::Known(addresses) => {
                self.set_addresses(addresses);
                Outcome::Go(Stage::Choose)
            }
            Addresses::Looking => Outcome::Wait(Stage::Lookup),
            Addresses::Unknown => {
                self.ask_lookup(backend, cx);
                Outcome::Wait(Stage::Lookup)
            }
        }
    }

    fn look_up(&mut self, cx: &mut Context) -> Outcome {
        let Some(backend) = self.backend() else { return Outcome::Go(Stage::Choose) };
        match cx.upstreams.addresses(backend) {
            Addresses::Known(addresses) => {
                self.set_addresses(addresses);
                Outcome::Go(Stage::Choose)
            }
            _ if self.is_late(cx) => {
                Outcome::Retry(Failure::new("its name could not be looked up in time", 504))
            }
            Addresses::Looking => Outcome::Wait(Stage::Lookup),
            Addresses::Unknown => match cx.upstreams.lookup_error(backend) {
                Some(_) => Outcome::Retry(Failure::new("its name was not found", 502)),
                None => {
                    // The answer came, and was forgotten again because another client's dial failed with it.
                    self.ask_lookup(backend, cx);
                    Outcome::Wait(Stage::Lookup)
                }
            },
        }
    }

    fn ask_lookup(&self, backend: UpstreamId, cx: &mut Context) {
        cx.upstreams.looking(backend);
        let url = cx.upstreams.url(backend);
        let name = Name { host: url.host().to_owned(), port: url.port() };
        cx.jobs.push_back(Job::LookUp { name, owner: NameOwner::Backend(backend) });
    }

    fn set_addresses(&mut self, addresses: Rc<[SocketAddr]>) {
        if let Some(current) = &mut self.current {
            current.addresses = addresses;
            current.next = 0;
        }
    }

    /// Begins to connect. The request is written at once: where the connection stands already, that saves a turn.
    fn dial(&mut self, address: SocketAddr, who: &Identity, cx: &mut Context) -> Outcome {
        if let Some(backend) = self.backend() {
            let url = cx.upstreams.url(backend).public_text();
            note(who, || Event::Connecting { backend: url, address: &address });
        }
        if self.is_late(cx) {
            return Outcome::Retry(Failure::new("connecting timed out", 504));
        }
        match cx.network.connect(&address.into(), Source::Session(who.key as usize, Side::Upstream))
        {
            Ok(socket) => {
                let give_up_at = self.attempt_deadline(cx);
                let request = self.request(who, cx);
                Outcome::Go(Stage::Connect {
                    conn: Conn::dialed(socket),
                    request,
                    sent: 0,
                    give_up_at,
                })
            }
            Err(error) => Outcome::Retry(Failure::connecting(&error)),
        }
    }

    fn connect(
        &mut self,
        mut conn: Conn,
        request: Vec<u8>,
        mut sent: usize,
        give_up_at: Option<Moment>,
        who: &Identity,
        cx: &mut Context,
    ) -> Outcome {
        while sent < request.len() {
            match conn.write(&request[sent..]) {
                Ok(Io::Moved(n)) => {
                    sent += n;
                    self.note_connected(who, cx);
                }
                Ok(_) if give_up_at.is_some_and(|at| at <= cx.now) => {
                    return Outcome::Retry(Failure::new("connecting timed out", 504));
                }
                Ok(_) => return Outcome::Wait(Stage::Connect { conn, request, sent, give_up_at }),
                Err(error) => return Outcome::Retry(Failure::connecting(&error)),
            }
        }
        note(who, || Event::UpgradeRequest { request_id: &self.request_id });
        let give_up_at = cx.after(cx.settings.handshake_timeout);
        Outcome::Go(Stage::Handshake { conn, held: Vec::new(), give_up_at })
    }

    fn note_connected(&mut self, who: &Identity, cx: &mut Context) {
        if let Some(current) = &mut self.current
            && !current.is_connected
        {
            current.is_connected = true;
            cx.upstreams.connected(current.backend);
            let url = cx.upstreams.url(current.backend).public_text();
            cx.stats.count_dial(url, true);
            note(who, || Event::Connected);
        }
    }

    fn shake_hands(
        &mut self,
        mut conn: Conn,
        mut held: Vec<u8>,
        give_up_at: Option<Moment>,
        who: &Identity,
        cx: &mut Context,
    ) -> Outcome {
        loop {
            let mut slots = empty_slots();
            match ResponseHead::parse(&held, &mut slots) {
                Ok(Some((head, length))) => {
                    note(who, || Event::BackendAnswer { status: head.status, reason: head.reason });
                    if head.is_interim() {
                        // What the backend says next may be here already, with no further event.
                        held.drain(..length);
                        continue;
                    }
                    return self.answered(conn, &head, &held[length..], give_up_at, who, cx);
                }
                Ok(None) => {}
                Err(bad) => {
                    warn!(target: "dial", "{who} = bad answer from the backend why=\"{bad}\"");
                    return Outcome::Fail(Failure::new("its answer was not understood", 502), None);
                }
            }
            let room = HEAD_BYTES_MAX - held.len();
            let read = cx.with_scratch(|scratch, _| {
                let read = conn.read(&mut scratch[..room])?;
                if let Io::Moved(n) = read {
                    held.extend_from_slice(&scratch[..n]);
                }
                io::Result::Ok(read)
            });
            match read {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) if give_up_at.is_some_and(|at| at <= cx.now) => {
                    return Outcome::Fail(
                        Failure::new("no answer to the upgrade in time", 504),
                        None,
                    );
                }
                Ok(Io::Blocked) => {
                    return Outcome::Wait(Stage::Handshake { conn, held, give_up_at });
                }
                Ok(Io::Ended) | Err(_) => {
                    return Outcome::Fail(
                        Failure::new("it closed the connection without an answer", 502),
                        None,
                    );
                }
            }
        }
    }

    /// The backend's final answer, and what came behind it.
    fn answered(
        &mut self,
        conn: Conn,
        head: &ResponseHead,
        rest: &[u8],
        give_up_at: Option<Moment>,
        who: &Identity,
        cx: &Context,
    ) -> Outcome {
        if head.status != 101 {
            return self.refused(conn, head, rest, give_up_at, cx);
        }
        if let Err(why) = upgrade::check_response(head, &self.key) {
            warn!(target: "dial", "{who} = bad answer from the backend why=\"{why}\"");
            return Outcome::Fail(
                Failure::new("its answer was not a WebSocket upgrade", 502),
                None,
            );
        }
        let mut reply = Vec::new();
        upgrade::write_forwarded_response(head, &mut reply);
        Outcome::Relay(Box::new(Established { conn, reply, from_backend: rest.to_vec() }))
    }

    /// The backend answered, and not with 101.
    fn refused(
        &mut self,
        conn: Conn,
        head: &ResponseHead,
        rest: &[u8],
        give_up_at: Option<Moment>,
        cx: &Context,
    ) -> Outcome {
        let reason = match head.status {
            429 | 503 => CloseReason::BackendOverloaded,
            _ => CloseReason::BackendUnavailable,
        };
        let phrase = http::reason_phrase(head.status);
        let what = format!("it answered {} {phrase}", head.status).trim_end().to_owned();
        let failure = Failure { reason, ..Failure::new(&what, 502) };
        if cx.settings.on_backend_failure == OnBackendFailure::Close {
            return Outcome::Fail(failure, None);
        }
        let mut answer = Vec::new();
        upgrade::write_forwarded_refusal(head, &mut answer);
        let Ok(body) = Body::of_response(head) else { return Outcome::Fail(failure, None) };
        let mut refusal = Refusal { failure, answer, body: BodyScanner::new(body) };
        match refusal.push(rest) {
            Ok(()) => Outcome::Go(Stage::Refusal { conn, refusal, give_up_at }),
            Err(_) => Outcome::Fail(refusal.failure, None),
        }
    }

    fn establish(
        mut self: Box<Self>,
        established: Established,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let Established { conn, reply, from_backend } = established;
        let Some(current) = self.current.take() else { unreachable!("a backend has answered") };
        note(who, || Event::Upgraded);
        info!(
            target: "relay",
            "{who} opened client={} backend={} request_id={}",
            who.client(), cx.upstreams.url(current.backend).public_text(), self.request_id,
        );
        cx.stats.count_http(101);
        cx.stats.count_upgrade(who.route_name());
        let early = Early { reply: &reply, from_client: &self.early, from_backend: &from_backend };
        Step::Next(Relay::phase(conn, current.backend, early, downstream, who, cx))
    }

    /// The current backend could not be connected to at any address.
    fn give_up(&mut self, backend: UpstreamId, who: &Identity, cx: &mut Context) {
        let is_connected = self.current.take().is_some_and(|current| current.is_connected);
        let url = cx.upstreams.url(backend).public_text();
        warn!(target: "dial", "{who} = backend {url} failed what=\"{}\"", self.failure.what);
        if is_connected {
            cx.upstreams.left(backend);
        } else {
            cx.stats.count_dial(url, false);
            cx.upstreams.failed(backend, cx.now);
        }
        self.tried.push(backend);
    }

    /// Tells the client.
    fn fail(
        mut self: Box<Self>,
        failure: Failure,
        answer: Option<Vec<u8>>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        if let Some(backend) = self.backend() {
            if failure.reason == CloseReason::Draining {
                self.leave_backend(cx);
                self.current = None;
            } else {
                self.failure = failure.clone();
                self.give_up(backend, who, cx);
            }
        }
        let Failure { what, status, reason } = failure;
        if cx.settings.on_backend_failure == OnBackendFailure::Http {
            let answer = answer.unwrap_or_else(|| {
                let error = format!("backend unavailable: {what}");
                Reply::last(http::Response::error(status, &error), cx)
            });
            let ended = Ended::new(reason, Detail::NoBackend { what });
            return Step::End(ended.with_last(Last::Answer(answer)));
        }
        let mut last = Vec::new();
        upgrade::write_accept(
            &Handshake { key: &self.key, protocol: self.protocol.as_deref() },
            &mut last,
        );
        cx.stats.count_http(101);
        let phrase = match reason {
            CloseReason::Draining => reason.phrase().to_owned(),
            _ => format!("backend unavailable: {what}"),
        };
        last.extend(ws::close_frame(reason.close_code(Side::Downstream), &phrase, None));
        let ended = Ended::new(reason, Detail::NoBackend { what });
        Step::End(ended.with_last(Last::Frames(last)))
    }

    /// The request as the current backend is to get it.
    fn request(&self, who: &Identity, cx: &Context) -> Vec<u8> {
        let (Some(backend), Some(route)) = (self.backend(), who.route.as_ref()) else {
            unreachable!("a backend is dialed for a route");
        };
        let params = route.path.match_path(&self.path).expect("the route was found by it");
        let target = upstream_target(cx.upstreams.url(backend), &params, self.query.as_deref());
        let mut request = Vec::with_capacity(target.len() + self.headers.len() + 16);
        upgrade::write_request_line(&target, &mut request);
        request.extend_from_slice(&self.headers);
        request
    }

    fn is_late(&self, cx: &Context) -> bool {
        self.connect_by.is_some_and(|at| at <= cx.now)
    }

    /// This attempt's even share of the time that is left for all.
    fn attempt_deadline(&self, cx: &Context) -> Option<Moment> {
        let left = self.connect_by? - cx.now;
        let attempts =
            self.current.as_ref().map_or(1, |current| 1 + current.addresses.len() - current.next);
        Some(cx.now + left / attempts as u32)
    }
}

impl State for Dial {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if !self.read_early(downstream, cx) {
            self.leave_backend(cx);
            return Step::End(Ended::new(CloseReason::ClientVanished, Detail::LeftWhileDialing));
        }
        if self.is_draining {
            let failure = Failure {
                reason: CloseReason::Draining,
                ..Failure::new("gateway restarting", 503)
            };
            return self.fail(failure, None, who, cx);
        }
        loop {
            let stage = std::mem::replace(&mut self.stage, Stage::Choose);
            let outcome = match stage {
                Stage::Choose => self.choose(who, cx),
                Stage::Lookup => self.look_up(cx),
                Stage::Connect { conn, request, sent, give_up_at } => {
                    self.connect(conn, request, sent, give_up_at, who, cx)
                }
                Stage::Handshake { conn, held, give_up_at } => {
                    self.shake_hands(conn, held, give_up_at, who, cx)
                }
                Stage::Refusal { conn, refusal, give_up_at } => {
                    read_refusal(conn, refusal, give_up_at, cx)
                }
            };
            match outcome {
                Outcome::Go(stage) => self.stage = stage,
                Outcome::Wait(stage) => {
                    self.stage = stage;
                    return Step::Wait(Phase::Dial(self));
                }
                Outcome::Retry(failure) => {
                    note(who, || Event::AttemptFailed { what: &failure.what });
                    self.failure = failure;
                }
                Outcome::Fail(failure, answer) => return self.fail(failure, answer, who, cx),
                Outcome::Relay(established) => {
                    return self.establish(*established, downstream, who, cx);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        match &self.stage {
            Stage::Choose | Stage::Lookup => self.connect_by,
            Stage::Connect { give_up_at, .. }
            | Stage::Handshake { give_up_at, .. }
            | Stage::Refusal { give_up_at, .. } => *give_up_at,
        }
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        self.is_draining = true;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "connecting"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn release(self: Box<Self>, _: &Identity, cx: &mut Context) -> Box<Ended> {
        self.leave_backend(cx);
        Ended::http(CloseReason::Stopped)
    }

    fn traffic(&self) -> Option<BothWays> {
        Some(BothWays::default())
    }

    /// The backend that is being tried.
    fn backend(&self) -> Option<UpstreamId> {
        self.current.as_ref().map(|current| current.backend)
    }

    fn handle_ready(&mut self, ready: Ready) {
        match &mut self.stage {
            Stage::Connect { conn, .. }
            | Stage::Handshake { conn, .. }
            | Stage::Refusal { conn, .. } => {
                conn.handle_ready(ready);
            }
            Stage::Choose | Stage::Lookup => {}
        }
    }
}

/// Reads the body that belongs to a backend's refusal. One that does not come whole is not passed on at all.
fn read_refusal(
    mut conn: Conn,
    mut refusal: Refusal,
    give_up_at: Option<Moment>,
    cx: &mut Context,
) -> Outcome {
    while !refusal.body.is_done() && refusal.answer.len() <= REFUSAL_BYTES_MAX {
        let read = cx.with_scratch(|scratch, _| {
            let read = conn.read(scratch)?;
            if let Io::Moved(n) = read {
                refusal.push(&scratch[..n]).map_err(io::Error::other)?;
            }
            io::Result::Ok(read)
        });
        match read {
            Ok(Io::Moved(_)) => {}
            Ok(Io::Ended) if refusal.body.may_end() => {
                return Outcome::Fail(refusal.failure, Some(refusal.answer));
            }
            Ok(Io::Blocked) if give_up_at.is_none_or(|at| at > cx.now) => {
                return Outcome::Wait(Stage::Refusal { conn, refusal, give_up_at });
            }
            Ok(Io::Blocked | Io::Ended) | Err(_) => return Outcome::Fail(refusal.failure, None),
        }
    }
    let is_whole = refusal.body.is_done();
    Outcome::Fail(refusal.failure, is_whole.then_some(refusal.answer))
}

impl Refusal {
    fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let length = self.body.advance(bytes)?;
        self.answer.extend_from_slice(&bytes[..length]);
        Ok(())
    }
}

impl Failure {
    fn new(what: &str, status: u16) -> Failure {
        Failure { what: what.to_owned(), status, reason: CloseReason::BackendUnavailable }
    }

    /// The kernel's word, without addresses: the client reads it.
    fn connecting(error: &io::Error) -> Failure {
        match error.kind() {
            ErrorKind::ConnectionRefused => Failure::new("connection refused", 502),
            ErrorKind::TimedOut => Failure::new("connecting timed out", 504),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Failure::new("no route to it", 502)
            }
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                Failure::new("connection reset", 502)
            }
            _ => Failure::new("could not connect", 502),
        }
    }
}
