//! How a request ends: with the whole response, with an answer of the gateway's own, or in the
//! middle.

use super::kept::KeptBackend;
use super::{Forward, ForwardOutcome, ForwardStage, RESTARTING, Transfer};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::forward::ResponseFraming;
use crate::proto::http::{self, BadHead, Response};
use crate::service::attempt::AttemptError;
use crate::session::ended::last_response;
use crate::session::respond::{Asked, Respond};
use crate::session::transcript::{Event, Forwarded, note};
use crate::session::{Awaited, CloseReason, Context, Detail, Ended, Identity, Last, Step};

impl Forward {
    pub(super) fn end(
        mut self: Box<Self>,
        outcome: ForwardOutcome,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let failed = |reason, what| (reason, Some(what));
        let (reason, what) = match outcome {
            ForwardOutcome::Complete => return self.complete(who, cx),
            ForwardOutcome::NoBackend(error) => return self.fail(error, who, cx),
            ForwardOutcome::Refused(bad) if self.answered.is_none() => {
                return self.answer_instead(bad, Ended::bad_request(bad), who, cx);
            }
            ForwardOutcome::Draining if self.answered.is_none() => {
                let ended = Ended::http(CloseReason::Draining);
                return self.answer_instead(RESTARTING, ended, who, cx);
            }
            // Streams have no other end.
            ForwardOutcome::ClientLeft if self.is_stream() => {
                self.give_back(who, cx);
                return Step::End(Ended::http(CloseReason::Done));
            }
            ForwardOutcome::ClientLeft => (CloseReason::ClientLeft, None),
            ForwardOutcome::ClientStalled => (CloseReason::ClientStalled, None),
            ForwardOutcome::BackendStalled => (CloseReason::BackendStalled, None),
            ForwardOutcome::ResponseCut(why) => failed(CloseReason::ResponseCut, why),
            ForwardOutcome::Refused(bad) => failed(CloseReason::BadRequest, bad.why),
            ForwardOutcome::Draining => (CloseReason::Draining, None),
        };
        if let ForwardStage::Transfer(Transfer { framing: ResponseFraming::UntilClose, .. }) =
            self.stage
        {
            // Nothing but a reset shows that this is not the end of the response.
            downstream.discard_on_close();
        }
        Step::End(self.ended(reason, what, who, cx).with_last(Last::Dropped))
    }

    /// The client has the whole response.
    fn complete(mut self, who: &Identity, cx: &mut Context) -> Step {
        self.give_back(who, cx);
        if self.asked.form.keep_alive && self.drain.is_none() {
            let kept = self.keep_backend(cx.now);
            return Step::NextRequest(self.asked.rest, kept);
        }
        let ended = Ended::http(CloseReason::Done);
        Step::End(ended.with_last(Last::Fin(Awaited::Fin)))
    }

    /// The connection to the backend, if another request may be sent on it.
    fn keep_backend(&mut self, now: Moment) -> Option<Box<KeptBackend>> {
        let stage = std::mem::replace(&mut self.stage, ForwardStage::Connect);
        let ForwardStage::Transfer(mut transfer) = stage else { return None };
        let address = transfer.reusable?;
        let is_whole = self.upload.is_done() && !self.is_upload_lost;
        if !is_whole || !transfer.download.take_surplus().is_empty() {
            return None;
        }
        // With TLS, only a read that blocks proves that the backend has sent nothing more.
        let is_idle = !transfer.conn.is_readable()
            || matches!(transfer.conn.read(&mut [0; 1]), Ok(Io::Blocked));
        let kept = KeptBackend::new(transfer.conn, transfer.backend, address, now);
        is_idle.then(|| Box::new(kept))
    }

    /// No backend has answered.
    fn fail(self, error: AttemptError, who: &Identity, cx: &mut Context) -> Step {
        let (reason, status) = match error {
            AttemptError::Local { .. } => (CloseReason::OutOfResources, 503),
            error if error.is_timeout() => (CloseReason::BackendUnavailable, 504),
            _ => (CloseReason::BackendUnavailable, 502),
        };
        cx.stats.count_handshake_failed(who.route_name(), reason.word());
        let why = match reason {
            CloseReason::OutOfResources => reason.phrase().to_owned(),
            _ => format!("backend unavailable: {error}"),
        };
        self.answer_with(status, &why, Ended::http(reason), who, cx)
    }

    fn answer_instead(
        self,
        bad: BadHead,
        ended: Box<Ended>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        self.answer_with(bad.status, bad.why, ended, who, cx)
    }

    /// Answers in place of a backend.
    fn answer_with(
        mut self,
        status: u16,
        why: &str,
        ended: Box<Ended>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        self.answered = Some((status, cx.now));
        self.give_back(who, cx);
        if !self.interim.is_empty() && self.interim.len() < http::CONTINUE.len() {
            // Half of an interim response is out.
            return Step::End(ended.with_last(Last::Dropped));
        }
        let is_body_read = self.upload.is_read();
        answer(self.asked, is_body_read, Response::error(status, why), ended, who, cx)
    }

    /// Whether the client reads a response whose length nothing says.
    fn is_stream(&self) -> bool {
        match &self.stage {
            ForwardStage::Transfer(Transfer { framing, .. }) => {
                matches!(framing, ResponseFraming::Chunked | ResponseFraming::UntilClose)
            }
            ForwardStage::Connect | ForwardStage::Ask(_) => false,
        }
    }

    /// The backend is free, and the request has its line in the log.
    fn give_back(&mut self, who: &Identity, cx: &mut Context) {
        match &self.stage {
            ForwardStage::Transfer(transfer) => cx.upstreams.left(transfer.backend),
            ForwardStage::Connect | ForwardStage::Ask(_) => self.connector.abandon(cx),
        }
        note(who, || Event::Forwarded(self.summary(cx.now)));
    }

    fn summary(&self, now: Moment) -> Forwarded<'_> {
        let response_bytes = match &self.stage {
            ForwardStage::Transfer(transfer) => transfer.download.content_bytes(),
            ForwardStage::Connect | ForwardStage::Ask(_) => 0,
        };
        Forwarded {
            method: &self.method,
            status: self.answered.map(|(status, _)| status),
            head_after: self.answered.map(|(_, at)| at - self.began_at),
            duration: now - self.began_at,
            request_bytes: self.upload.content_bytes(),
            response_bytes,
        }
    }

    /// The end of a connection in the middle of a request.
    pub(super) fn ended(
        mut self,
        reason: CloseReason,
        what: Option<&'static str>,
        who: &Identity,
        cx: &mut Context,
    ) -> Box<Ended> {
        let summary = self.summary(cx.now);
        let detail = Detail::Forward {
            method: self.method.clone(),
            status: summary.status,
            what,
            request_bytes: summary.request_bytes,
            response_bytes: summary.response_bytes,
        };
        let mut ended = Ended::new(reason, detail);
        ended.activity.is_unfinished = self.answered.is_some();
        ended.backend = match &self.stage {
            ForwardStage::Transfer(transfer) => Some(transfer.backend),
            ForwardStage::Connect | ForwardStage::Ask(_) => self.connector.last_backend(),
        };
        self.give_back(who, cx);
        ended
    }
}

/// Sends a response of the gateway's own. While a part of the request's body is still to come, it
/// is unknown where the next request would begin, so the connection ends.
pub(super) fn answer(
    asked: Asked,
    is_body_read: bool,
    response: Response,
    ended: Box<Ended>,
    who: &Identity,
    cx: &mut Context,
) -> Step {
    cx.stats.count_request(who.route_name(), response.status);
    if is_body_read {
        return Step::Next(Respond::answer(asked, response, who, cx));
    }
    note(who, || Event::Answer { status: response.status });
    Step::End(ended.with_last(Last::Answer(last_response(response, cx))))
}
