//! Which requests are passed on, and how; what answers the others.

use super::ending::answer;
use super::kept::KeptBackend;
use super::pump::{Pump, PumpFraming};
use super::{Forward, ForwardStage, RESTARTING, TOO_LARGE, TOO_LATE, bad_body};
use crate::net::{Side, Source};
use crate::proto::forward;
use crate::proto::http::framing::BodyFraming;
use crate::proto::http::{BadHead, RequestHead, Response};
use crate::proto::upgrade;
use crate::service::route::RouteTarget;
use crate::session::connector::{Connector, Retry};
use crate::session::exchange;
use crate::session::respond::Asked;
use crate::session::{CloseReason, Context, Detail, Ended, Identity, Limit, Phase, Step};

impl Forward {
    /// Begins for a `request` whose route is that of `who`. `asked.rest` is what followed its head.
    pub fn begin(
        request: &RequestHead,
        mut asked: Asked,
        kept: Option<Box<KeptBackend>>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let Some(RouteTarget::Http { host, upstreams, limits }) =
            who.route.as_ref().map(|route| &route.target)
        else {
            unreachable!("only routes for plain HTTP forward requests");
        };
        let body_max = limits.max_body.unwrap_or(cx.settings.max_body);
        let framing = BodyFraming::of_request(request);
        if let Some((bad, ended)) = refusal(request, framing, body_max, cx) {
            let is_body_read = matches!(framing, BodyFraming::Empty | BodyFraming::Length(0));
            let response = Response::error(bad.status, bad.why);
            return answer(asked, is_body_read, response, ended, who, cx);
        }
        let new_framing = match framing {
            BodyFraming::Chunked => PumpFraming::Chunked,
            _ => PumpFraming::Plain,
        };
        let early = std::mem::take(&mut asked.rest);
        let mut upload = match Pump::new(Vec::new(), framing, new_framing, body_max, &early) {
            Ok(upload) => upload,
            Err(error) => {
                let bad = bad_body(error).unwrap_or(TOO_LATE);
                let response = Response::error(bad.status, bad.why);
                return answer(asked, false, response, Ended::bad_request(bad), who, cx);
            }
        };
        asked.rest = upload.take_surplus();
        let request_id = exchange::request_id(request, cx);
        let mut headers = Vec::new();
        let forwarding = exchange::forwarding(host.as_deref(), &request_id, who, cx);
        forward::write_request_headers(request, &forwarding, asked.form, &mut headers);
        let retry = match is_idempotent(request.method) && upload.is_done() {
            true => Retry::Request,
            false => Retry::Never,
        };
        let connector = connector(retry, who, cx);
        let is_of_route = |kept: &KeptBackend| upstreams.contains(&kept.backend);
        let kept =
            kept.filter(|kept| is_of_route(kept) && !cx.upstreams.is_resting(kept.backend, cx.now));
        let mut forward = Forward {
            asked,
            method: request.method.into(),
            path: request.path().into(),
            query: request.query().map(Into::into),
            headers,
            request_id,
            upload,
            is_upload_lost: false,
            awaits_continue: forward::expects_continue(request) && early.is_empty(),
            interim: b"",
            connector,
            retry,
            is_resumed: false,
            stage: ForwardStage::Connect,
            began_at: cx.now,
            answered: None,
            drain: None,
            write_timeout: cx.settings.write_timeout,
        };
        if let Some(kept) = kept {
            forward.resume(*kept, who, cx);
        }
        Step::Next(Phase::Forward(Box::new(forward)))
    }

    /// Sends the request over a connection that was kept.
    fn resume(&mut self, kept: KeptBackend, who: &Identity, cx: &mut Context) {
        self.is_resumed = true;
        self.connector.resume(kept.backend, kept.address, cx);
        self.stage = ForwardStage::Ask(self.exchange(kept.conn, kept.backend, who, cx));
    }

    /// A connector for another attempt; `None`: the backend may have acted on the request.
    pub(super) fn connect_anew(&self, who: &Identity, cx: &Context) -> Option<Connector> {
        (self.retry == Retry::Request).then(|| connector(self.retry, who, cx))
    }
}

/// A connector for a request of `who`.
fn connector(retry: Retry, who: &Identity, cx: &Context) -> Connector {
    let source = Source::Session(who.key as usize, Side::Upstream);
    let Some(RouteTarget::Http { upstreams, limits, .. }) =
        who.route.as_ref().map(|route| &route.target)
    else {
        unreachable!("only routes for plain HTTP forward requests");
    };
    let timeout = limits.response_timeout.unwrap_or(cx.settings.response_timeout);
    Connector::for_request(upstreams, source, retry, timeout, cx)
}

/// Why a request is not passed on at all, and how its connection ends if it has to.
fn refusal(
    request: &RequestHead,
    framing: BodyFraming,
    body_max: Option<u64>,
    cx: &Context,
) -> Option<(BadHead, Box<Ended>)> {
    let is_too_large =
        matches!((framing, body_max), (BodyFraming::Length(n), Some(most)) if n > most);
    let bad = if cx.is_draining {
        return Some((RESTARTING, Ended::http(CloseReason::Draining)));
    } else if cx.budget.refuses(0) {
        let detail = Detail::Refused(Limit::Memory);
        let bad = BadHead { status: 503, why: "Out of memory budget" };
        return Some((bad, Ended::new(CloseReason::Refused, detail)));
    } else if upgrade::is_upgrade(request) {
        BadHead { status: 400, why: "no WebSocket is served on this path" }
    } else if upgrade::is_loop(request) {
        BadHead { status: 508, why: "backend unavailable: request loop" }
    } else if is_too_large {
        TOO_LARGE
    } else {
        return None;
    };
    Some((bad, Ended::bad_request(bad)))
}

/// Methods that may be repeated (RFC 9110 §9.2.2).
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}
