//! Reads a request head and chooses what the connection becomes.
//!
//! Heads are parsed in the shared scratch buffer. A session keeps only a head that arrived in part,
//! and owns nothing else while it waits.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::body::{Expectation, RequestBody};
use super::dial::Dial;
use super::download::Download;
use super::ended::last_response;
use super::event_body::Followed;
use super::files::Files;
use super::forward::Forward;
use super::forward::kept::KeptBackend;
use super::ingest::Ingest;
use super::output::Output;
use super::respond::{Asked, Question, Respond};
use super::transcript::{Event, Query, note};
use super::{
    Admission, Awaited, CloseReason, Context, Detail, Drain, Ended, Identity, Last, LastFrames,
    Limit, Phase, State, Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Ready, Security, Side};
use crate::proto::http::{self, BadHead, Form, RequestHead, empty_slots};
use crate::proto::path::is_misleading;
use crate::proto::{proxy_header, upgrade, ws};
use crate::service::endpoints::{ADMINS_ONLY, Answer, Audience, Endpoint};
use crate::service::limits::{Pages, Refusal};
use crate::service::origin::is_same_host;
use crate::service::report::{Language, Viewer};
use crate::service::route::{Route, RouteTarget, TASK_ID};
use crate::service::taps::TapFilter;
use crate::service::trust::AcceptedOn;
use crate::service::url::Params;
use std::rc::Rc;
use std::time::Duration;

/// Timeout for the request head of a connection that is refused unless it asks for the right
/// endpoint. An orchestrator's request is there at once.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);

/// Headers that a page of another origin may send when it fetches a file.
const CONDITIONS: &str = "Range, If-Range, If-Match, If-None-Match, If-Modified-Since, \
     If-Unmodified-Since";

/// Whether browsers that come without TLS are sent to where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectHttp {
    /// They are served.
    No,
    /// To the first listener with TLS.
    ToListener,
    /// To this port, as it is seen from outside.
    ToPort(u16),
}

/// The answer to an admin who asks for payloads.
const NO_PAYLOAD: &str = "payloads are shown only with allow_tap_payload = true in [server]";

/// The answer to a worker without the right token.
const TOKEN_MISSING: &str = "The token of this route is missing or wrong";

/// The answer to a worker from elsewhere, where no token is set.
const WORKERS_ONLY: &str =
    "Without a token, this route is for admins: set token in the route, or admin_from";

/// Waiting for a request, or for the rest of one.
pub struct Request {
    held: Vec<u8>,
    deadline: Option<Moment>,
    awaited: HeadWait,
    /// The connection to a backend that answered the last request.
    kept: Option<Box<KeptBackend>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HeadWait {
    /// The first byte of a further request, on a connection that was kept alive. It need not come.
    Idle,
    /// A whole head, by the deadline.
    Due,
    /// A whole head, of which `held` is the beginning and has not been parsed yet.
    Pipelined,
    /// Nothing: no further request is taken.
    Draining,
    /// The connection is refused at once, to make room for another one that is refused.
    Evicted,
}

impl Request {
    /// The first request of a connection.
    pub fn first(cx: &Context) -> Phase {
        Request::first_after(Vec::new(), cx)
    }

    /// The same, where `held` has arrived already.
    pub fn first_after(held: Vec<u8>, cx: &Context) -> Phase {
        Request::due(held, cx.after(cx.settings.header_timeout))
    }

    /// The request of a connection that will be refused.
    pub fn refused(cx: &Context) -> Phase {
        Request::refused_after(Vec::new(), cx)
    }

    /// The same, where `held` has arrived already.
    pub fn refused_after(held: Vec<u8>, cx: &Context) -> Phase {
        let timeout = cx.settings.header_timeout.unwrap_or(Duration::MAX).min(REFUSED_TIMEOUT);
        Request::due(held, Some(cx.now + timeout))
    }

    fn due(held: Vec<u8>, deadline: Option<Moment>) -> Phase {
        let awaited = if held.is_empty() { HeadWait::Due } else { HeadWait::Pipelined };
        Phase::Request(Box::new(Request { held, deadline, awaited, kept: None }))
    }

    /// The next request, of which `held` has arrived already.
    pub fn following(held: Vec<u8>, kept: Option<Box<KeptBackend>>, cx: &Context) -> Phase {
        let (awaited, timeout) = match held.is_empty() {
            true => (HeadWait::Idle, cx.settings.keep_alive),
            false => (HeadWait::Pipelined, cx.settings.header_timeout),
        };
        Phase::Request(Box::new(Request { held, deadline: cx.after(timeout), awaited, kept }))
    }
}

impl State for Request {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.kept.as_ref().is_some_and(|kept| kept.is_over(cx.now)) {
            self.kept = None;
        }
        if self.awaited == HeadWait::Draining {
            let last = after_responses(downstream);
            return Step::End(Ended::http(CloseReason::Draining).with_last(last));
        }
        if let (HeadWait::Evicted, Admission::Refused(refusal)) = (self.awaited, who.admission) {
            let answer = last_response(http::Response::error(503, refusal.why()), cx);
            // Not waited for its FIN: at most part of a head has come, so hardly ever are there
            // unread bytes that would turn the close into a reset.
            let _ = downstream.write(&answer);
            let detail = Detail::Refused(Limit::Clients(refusal));
            return Step::End(Ended::new(CloseReason::Refused, detail));
        }
        cx.with_scratch(|scratch, cx| {
            let mut length = self.held.len();
            let max_head = cx.settings.max_head;
            scratch[..length].copy_from_slice(&self.held);
            loop {
                if length > self.held.len() || self.awaited == HeadWait::Pipelined {
                    let mut slots = empty_slots();
                    match RequestHead::parse_within(&scratch[..length], max_head, &mut slots) {
                        Ok(Some((head, head_bytes))) => {
                            return match without_tls(&head, who, cx) {
                                Some(step) => step,
                                None => {
                                    let behind = (&scratch[head_bytes..length], self.kept.take());
                                    choose(&head, behind, who, cx)
                                }
                            };
                        }
                        Ok(None) => {}
                        Err(bad) => return refuse_head(&scratch[..length], bad, cx),
                    }
                }
                // After a reload, more may have come than the limit is now.
                match downstream.read(&mut scratch[length..max_head.max(length + 1)]) {
                    Ok(Io::Moved(n)) => length += n,
                    Ok(Io::Blocked) => break,
                    Ok(Io::Ended) | Err(_) => return Step::End(Ended::http(CloseReason::Done)),
                }
            }
            if length > 0 && self.awaited == HeadWait::Idle {
                self.deadline = cx.after(cx.settings.header_timeout);
                self.awaited = HeadWait::Due;
            }
            if self.deadline.is_some_and(|at| at <= cx.now) {
                if let Admission::Refused(refusal) = who.admission {
                    return reject(refusal, cx);
                }
                return match self.awaited {
                    HeadWait::Idle => {
                        let last = after_responses(downstream);
                        Step::End(Ended::http(CloseReason::Done).with_last(last))
                    }
                    _ => {
                        let bad =
                            BadHead { status: 408, why: "The request head did not arrive in time" };
                        refuse(bad, CloseReason::HeaderTimeout, cx)
                    }
                };
            }
            if length > self.held.len() {
                self.held = scratch[..length].to_vec();
            }
            if self.awaited == HeadWait::Pipelined {
                self.awaited = HeadWait::Due;
            }
            Step::Wait(Phase::Request(self))
        })
    }

    fn deadline(&self) -> Option<Moment> {
        Moment::earliest([self.deadline, self.kept.as_ref().map(|kept| kept.until())])
    }

    /// A request that has begun still gets its answer.
    fn evict(&mut self) {
        self.awaited = HeadWait::Evicted;
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        if self.held.is_empty() {
            self.awaited = HeadWait::Draining;
        }
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn own_bytes(&self) -> usize {
        self.held.capacity() + self.kept.as_ref().map_or(0, |_| size_of::<KeptBackend>())
    }

    fn upstream(&mut self) -> Option<&mut Conn> {
        self.kept.as_mut().map(|kept| kept.conn_mut())
    }

    fn handle_ready(&mut self, ready: Ready) {
        if let Some(kept) = &mut self.kept {
            kept.handle_ready(ready);
        }
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}

/// How a connection ends on which no further request is awaited. A slow client may not have all of
/// the last response yet, and would lose the rest if it sent anything after a plain close.
fn after_responses(downstream: &Conn) -> Last {
    match downstream.unacknowledged() {
        None | Some(0) => Last::Nothing,
        Some(_) => Last::Fin(Awaited::Fin),
    }
}

/// What followed a head, and the connection to a backend that was kept for it.
type Behind<'r> = (&'r [u8], Option<Box<KeptBackend>>);

/// Chooses what the connection becomes.
fn choose(head: &RequestHead, behind: Behind, who: &mut Identity, cx: &mut Context) -> Step {
    let (rest, kept) = behind;
    let path = head.path();
    let client = cx.trust.client(head, who.peer());
    if let Err(refusal) = who.note_client(client, &mut cx.limits) {
        return reject(refusal, cx);
    }
    let is_misleading = is_misleading(path);
    let endpoint = Endpoint::find(path).filter(|_| !is_misleading);
    if let Some(refusal) = refusal(head, endpoint.map(|(endpoint, _)| endpoint), who) {
        return reject(refusal, cx);
    }
    let found = if is_misleading { None } else { find_route(path, endpoint, who, cx) };
    let is_forwarded = found.as_ref().is_some_and(|(route, _)| route.is_http());
    let body_max = endpoint.map_or(0, |(endpoint, _)| endpoint.body_bytes_max);
    if !is_forwarded && head.body_bytes() > body_max {
        let bad = BadHead { status: 413, why: "request bodies are not taken" };
        return refuse(bad, CloseReason::BadRequest, cx);
    }
    let pages = endpoint.map_or(Pages::Allowed, |(endpoint, _)| endpoint.pages);
    let is_admin = || cx.trust.is_admin(head, client, who.peer(), who.accepted_on());
    let asked = || Asked {
        form: form_of(head, who.admission),
        cors: cx.limits.cors_headers(head.headers.first("origin"), pages),
        if_none_match: head.headers.first("if-none-match").map(<[u8]>::to_vec),
        viewer: if is_admin() { Viewer::Admin } else { Viewer::Stranger },
        language: Language::of(head.headers.first("accept-language")),
        rest: rest.to_vec(),
    };
    if let Some((route, params)) = found {
        let route = Rc::clone(route);
        if let Some(response) = without_access(&route, &params, head, is_admin, who, cx) {
            log_request(head, who);
            let mut asked = asked();
            // Where a body is not read, it is unknown where the next request would begin.
            asked.form.keep_alive &= head.body_bytes() == 0;
            return answer(asked, response, who, cx);
        }
        if is_forwarded {
            let asked = asked();
            who.route = Some(route);
            log_request(head, who);
            return Forward::begin(head, asked, kept, who, cx);
        }
        if let RouteTarget::Files(files) = &route.target {
            log_request(head, who);
            return Files::begin(head, params.rest(), files, asked(), who, cx);
        }
        return match upgrade::check_request(head) {
            Ok(handshake) => {
                who.note_task_id(params.value(TASK_ID));
                open(head, rest, &handshake, route, who, cx)
            }
            Err(bad) if bad.status == 400 => refuse(bad, CloseReason::BadRequest, cx),
            Err(bad) => {
                log_request(head, who);
                answer(asked(), bad.into_response(), who, cx)
            }
        };
    }
    log_request(head, who);
    match endpoint {
        Some((endpoint, _)) if !endpoint.takes_method(head.method) => {
            answer(asked(), wrong_method(endpoint), who, cx)
        }
        Some((endpoint, _)) if endpoint.audience == Audience::Admins && !is_admin() => {
            answer(asked(), http::Response::error(403, ADMINS_ONLY), who, cx)
        }
        Some((endpoint, _)) if head.method == "OPTIONS" => {
            answer(asked(), preflight(endpoint), who, cx)
        }
        Some(_) if head.method == "POST" && !is_from_allowed_page(head, who, cx) => {
            // The connection ends: the body is not read, so no request can follow it.
            let bad = BadHead { status: 403, why: "this Origin is not allowed" };
            refuse(bad, CloseReason::OriginNotAllowed, cx)
        }
        Some(found) => begin_answer(head, found, asked(), who, cx),
        None => answer(asked(), http::Response::error(404, "Not found"), who, cx),
    }
}

/// The route that takes a path, where routes are served and no endpoint comes before them.
fn find_route<'c, 'p>(
    path: &'p str,
    endpoint: Option<(&Endpoint, &str)>,
    who: &Identity,
    cx: &'c Context,
) -> Option<(&'c Rc<Route>, Params<'p>)> {
    let is_client = who.accepted_on() == AcceptedOn::Clients;
    is_client.then(|| cx.routes.find(path, endpoint.map(|(endpoint, _)| endpoint))).flatten()
}

fn wrong_method(endpoint: &Endpoint) -> http::Response {
    http::Response::error(405, "Method not allowed").with("Allow", endpoint.allow())
}

/// Why a connection beyond a limit gets nothing but that answer; `None`: it is within all limits,
/// or asks for an endpoint that answers all the same.
fn refusal(head: &RequestHead, endpoint: Option<&Endpoint>, who: &Identity) -> Option<Refusal> {
    let is_for_full =
        |endpoint: &Endpoint| endpoint.is_answered_when_full && endpoint.takes_method(head.method);
    match who.admission {
        Admission::Refused(Refusal::Full | Refusal::Descriptors)
            if endpoint.is_some_and(is_for_full) =>
        {
            None
        }
        Admission::Refused(refusal) => Some(refusal),
        Admission::Client | Admission::Admin | Admission::Inbox | Admission::RefusedWorker => None,
    }
}

/// The form of the answer. A refused connection gets one and makes room for the next.
fn form_of(head: &RequestHead, admission: Admission) -> Form {
    let is_refused = matches!(admission, Admission::Refused(_));
    Form {
        minor_version: head.minor_version,
        head_only: head.is_head(),
        keep_alive: head.is_keep_alive() && !is_refused,
    }
}

/// Answers a request that an endpoint takes; `found` has the end of the path too.
fn begin_answer(
    head: &RequestHead,
    found: (&'static Endpoint, &str),
    asked: Asked,
    who: &mut Identity,
    cx: &mut Context,
) -> Step {
    let (endpoint, value) = found;
    if endpoint.answer == Answer::Audio {
        return Download::begin(head, value, asked, who, cx);
    }
    let followed = match endpoint.answer {
        Answer::Events => Some(Ok(Followed::Snapshots)),
        Answer::Frames => {
            Some(TapFilter::read(head.query().unwrap_or_default()).map(Followed::Frames))
        }
        _ => None,
    };
    match followed {
        Some(Ok(Followed::Frames(filter))) if filter.payload && !cx.settings.allow_tap_payload => {
            return answer(asked, http::Response::error(403, NO_PAYLOAD), who, cx);
        }
        Some(Ok(followed)) => {
            return Step::Next(Respond::answer_with_events(asked, followed, who, cx));
        }
        Some(Err(why)) => return answer(asked, http::Response::error(400, why), who, cx),
        None => {}
    }
    let (value, query) = (value.into(), head.query().unwrap_or_default().into());
    let question = Question { endpoint, value, query, body: Vec::new(), asked };
    RequestBody::read(Box::new(question), head.body_bytes() as usize, Expectation::of(head), cx)
}

/// The answer to a client whose path a backend might misread, or to a worker that may not connect
/// to a route; `None`: it may.
fn without_access(
    route: &Route,
    params: &Params,
    head: &RequestHead,
    is_admin: impl Fn() -> bool,
    who: &Identity,
    cx: &Context,
) -> Option<http::Response> {
    if route.is_misled_by(params, &cx.upstreams) {
        return Some(http::Response::error(404, "Not found"));
    }
    let RouteTarget::Ingest(access) = &route.target else { return None };
    match &access.token {
        Some(token) if token.is_given(head.headers.first("authorization")) => None,
        Some(_) => {
            let response = http::Response::error(401, TOKEN_MISSING);
            Some(response.with("WWW-Authenticate", "Bearer".to_owned()))
        }
        // Any page in an admin's browser can open a WebSocket there, and would be an admin.
        None if is_admin() && is_from_own_page(head, who, cx) => None,
        None => Some(http::Response::error(403, WORKERS_ONLY)),
    }
}

/// Whether a request comes from a page of the gateway's own, or from no page at all.
fn is_from_own_page(head: &RequestHead, who: &Identity, cx: &Context) -> bool {
    let own_host = cx.trust.own_host(head, who.is_forwarded(&cx.trust));
    match (head.headers.first("origin"), own_host) {
        (None, _) => true,
        (Some(origin), Some(host)) => is_same_host(origin, host),
        (Some(_), None) => false,
    }
}

/// The answer to a browser that asks whether a page may send a request. Which pages may is in the
/// headers that every JSON answer gets.
fn preflight(endpoint: &Endpoint) -> http::Response {
    let headers = if endpoint.takes_method("GET") { CONDITIONS } else { "Content-Type" };
    http::Response::json(200, "{}")
        .with("Access-Control-Allow-Methods", endpoint.allow())
        .with("Access-Control-Allow-Headers", headers)
        .with("Access-Control-Max-Age", "600")
}

/// What a request gets that came without TLS where TLS is wanted; `None`: it is served.
fn without_tls(head: &RequestHead, who: &Identity, cx: &mut Context) -> Option<Step> {
    let is_expected = who.security() == Security::PlainOnTls;
    if let Some(location) = secure_location(head, who, cx) {
        log_request(head, who);
        let response = http::Response::error(308, "use HTTPS").with("Location", location);
        cx.stats.count_http(response.status);
        let form = Form { head_only: head.is_head(), ..Form::LAST };
        let last = Last::Answer(response.into_bytes(form));
        return Some(Step::End(Ended::http(CloseReason::Done).with_last(last)));
    }
    is_expected.then(|| {
        let bad = BadHead { status: 400, why: "this port speaks HTTPS: use https:// or wss://" };
        refuse(bad, CloseReason::BadRequest, cx)
    })
}

/// The same page by way of TLS, for a browser that is redirected there.
fn secure_location(head: &RequestHead, who: &Identity, cx: &Context) -> Option<String> {
    let is_expected = who.security() == Security::PlainOnTls;
    let port = match cx.settings.redirect_http {
        _ if who.security() == Security::Tls || who.accepted_on() == AcceptedOn::Admins => None,
        RedirectHttp::No => None,
        RedirectHttp::ToListener => cx.settings.tls_port,
        RedirectHttp::ToPort(port) => Some(port),
    }?;
    // What orchestrators and collectors ask for is answered where they ask.
    let is_probe = Endpoint::find(head.path())
        .is_some_and(|(endpoint, _)| endpoint.is_answered_when_full && !is_expected);
    let is_page = matches!(head.method, "GET" | "HEAD") && !upgrade::is_upgrade(head);
    if !is_page || is_probe || cx.trust.came_by_https(head, who.is_forwarded(&cx.trust)) {
        return None;
    }
    let host = head.host()?;
    // Brackets of an IPv6 address hold colons too.
    let name_end = host.rfind(']').map_or(0, |at| at + 1);
    let name = host[name_end..].find(':').map_or(host, |at| &host[..name_end + at]);
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let query = head.query().map_or(String::new(), |query| format!("?{query}"));
    Some(format!("https://{name}{port}{}{query}", head.path()))
}

/// Whether a request comes from a page that may open WebSockets, or from no page at all.
fn is_from_allowed_page(head: &RequestHead, who: &Identity, cx: &Context) -> bool {
    cx.limits.is_allowed(head.headers.first("origin"), own_host(head, who, cx))
}

/// The host whose pages are the gateway's own, if the `Origin` can be one of them: with TLS, only a
/// page that came by TLS can.
fn own_host<'b>(head: &RequestHead<'_, 'b>, who: &Identity, cx: &Context) -> Option<&'b str> {
    let is_secure = |origin: &[u8]| {
        origin.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https://"))
    };
    let can_be_own =
        who.security() != Security::Tls || head.headers.first("origin").is_some_and(is_secure);
    let host = || cx.trust.own_host(head, who.is_forwarded(&cx.trust));
    can_be_own.then(host).flatten()
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
        let answer = last_response(http::Response::error(503, "Gateway restarting"), cx);
        return Step::End(Ended::http(CloseReason::Draining).with_last(Last::Answer(answer)));
    }
    if cx.budget.refuses(0) {
        log_request(head, who);
        let answer = last_response(http::Response::error(503, "Out of memory budget"), cx);
        let ended = Ended::new(CloseReason::Refused, Detail::Refused(Limit::Memory));
        return Step::End(ended.with_last(Last::Answer(answer)));
    }
    who.route = Some(route);
    log_request(head, who);
    if !is_from_allowed_page(head, who, cx) {
        let reason = CloseReason::OriginNotAllowed;
        let origin = head.headers.first("origin").unwrap_or_default();
        let origin = String::from_utf8_lossy(origin).into_owned();
        cx.stats.count_http(101);
        cx.stats.count_upgrade(who.route_name());
        cx.stats.count_handshake_failed(who.route_name(), reason.word());
        let mut last = Vec::new();
        upgrade::write_accept(handshake, &mut last);
        let answer_bytes = last.len();
        last.extend(ws::close_frame(reason.close_code(Side::Downstream), reason.phrase(), None));
        let last = LastFrames::behind_answer(last, answer_bytes, 1, rest);
        let ended = Ended::new(reason, Detail::OriginNotAllowed { origin }).with_close_code();
        return Step::End(ended.with_last(Last::Frames(last)));
    }
    match who.route.as_ref().map(|route| &route.target) {
        Some(RouteTarget::Ingest(_)) => Ingest::begin(handshake, head, rest, who, cx),
        Some(RouteTarget::Output) => {
            let task = who.take_task_id().unwrap_or_default();
            Output::begin(handshake, &task, head, rest, who, cx)
        }
        _ => {
            cx.stats.count_open(who.route_name());
            Step::Next(Dial::phase(head, handshake, rest, who, cx))
        }
    }
}

fn answer(asked: Asked, response: http::Response, who: &Identity, cx: &mut Context) -> Step {
    Step::Next(Respond::answer(asked, response, who, cx))
}

/// Refuses a connection beyond a limit.
fn reject(refusal: Refusal, cx: &mut Context) -> Step {
    let answer = last_response(http::Response::error(503, refusal.why()), cx);
    let detail = Detail::Refused(Limit::Clients(refusal));
    let ended = Ended::new(CloseReason::Refused, detail);
    Step::End(ended.with_last(Last::Answer(answer)))
}

/// Refuses what is no request head. A PROXY header is named, because then it is not the client that
/// has to be mended.
fn refuse_head(bytes: &[u8], bad: BadHead, cx: &mut Context) -> Step {
    if !proxy_header::is_begun(bytes) {
        return refuse(bad, CloseReason::BadRequest, cx);
    }
    let why = match cx.trust.proxy_protocol {
        true => "a PROXY header from an address outside trusted_proxies",
        false => "a PROXY header, but proxy_protocol is not set",
    };
    refuse(BadHead { status: 400, why }, CloseReason::BadProxyHeader, cx)
}

/// The error for a head that was not understood. The connection ends, since it is unknown where the
/// next request would begin.
fn refuse(bad: BadHead, reason: CloseReason, cx: &mut Context) -> Step {
    let detail = Detail::BadRequest { status: bad.status, why: bad.why };
    let answer = last_response(bad.into_response(), cx);
    Step::End(Ended::new(reason, detail).with_last(Last::Answer(answer)))
}

/// Logs the path without the query, whose values may be secrets.
fn log_request(head: &RequestHead, who: &Identity) {
    let query = if head.query().is_some() { Query::Present } else { Query::Absent };
    note(who, || Event::Request {
        method: head.method,
        path: head.path(),
        query,
        client: who.client(),
    });
}
