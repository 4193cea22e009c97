//! How a client's session ends: with which reason, which Close frame, and which counts.

use super::Output;
use crate::base::moment::Moment;
use crate::net::Side;
use crate::proto::message::{self, ResultFault};
use crate::proto::ws;
use crate::service::stats::BothWays;
use crate::service::tasks::{ClientState, TaskEnd};
use crate::session::close::{CloseReason, Closing, Party};
use crate::session::transcript::{Event, Subject, note_step};
use crate::session::{Activity, Awaited, Context, Detail, Ended, Identity, Last};

/// How the session is about to end: its last frame is in the outbox.
#[derive(Clone, Copy)]
pub(super) struct OutputEnding {
    pub(super) reason: CloseReason,
    pub(super) closing: Closing,
    pub(super) end: Option<TaskEnd>,
    /// It was stopped by its worker.
    pub(super) by_worker: bool,
}

/// What was wrong with a result, in the order of importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum OutputFault {
    /// Its text was delivered, its audio was not, for this reason.
    Audio(&'static str),
    /// The worker reported that the task failed.
    Worker,
    /// It was no JSON object, or the like.
    Malformed(ResultFault),
}

impl Output {
    /// Takes no further results. Returns how it ended.
    pub(super) fn end(
        mut self,
        leaving: OutputEnding,
        last: Last,
        who: &Identity,
        cx: &mut Context,
    ) -> Box<Ended> {
        let audio = self.underway.as_mut().and_then(|underway| underway.audio.take());
        Output::release_audio(audio, cx);
        let OutputEnding { reason, closing, end, by_worker } = leaving;
        cx.results.unsubscribe(self.task.uuid(), who.id());
        let traffic = self.counted();
        let activity = self.activity(cx.now);
        let fault = self.underway.as_ref().and_then(|underway| underway.fault);
        let fault = fault.filter(|fault| fault.reason() == reason);
        let fault = fault.and_then(OutputFault::what);
        let detail = Detail::Output { task: self.task, state: self.stage, end, fault };
        let mut ended = Ended::new(reason, detail).with_last(last);
        (ended.client_close, ended.traffic, ended.activity) = (closing, traffic, activity);
        if by_worker {
            ended.by = Party::Worker;
        }
        ended
    }

    /// What has been received and sent whole.
    pub(super) fn counted(&self) -> BothWays {
        let mut traffic = self.traffic;
        if let Some(underway) = &self.underway {
            traffic.to_client.frames -= underway.outbox.unsent_frames();
            let is_half = underway.reader.as_ref().is_some_and(|reader| reader.is_in_payload());
            traffic.from_client.frames -= u64::from(is_half);
        }
        traffic
    }

    pub(super) fn activity(&self, now: Moment) -> Activity {
        let is_unfinished = self.stage == ClientState::Sending
            || self.underway.as_ref().is_some_and(|it| !it.results.is_empty());
        let (pings_sent, pongs_received) = self.pings.counts();
        Activity {
            client_idle: Some(now - self.heard_at),
            backend_idle: None,
            is_unfinished,
            pings_sent,
            pongs_received,
        }
    }

    /// Everything up to the Close frame has been written: what shows that the client has it.
    pub(super) fn awaited(&mut self, reason: CloseReason) -> Awaited {
        match reason {
            CloseReason::ClientClosed => Awaited::Nothing,
            // What follows broken frames cannot be read.
            CloseReason::ProtocolFault
            | CloseReason::NotUtf8
            | CloseReason::ClientMessageTooBig => Awaited::Fin,
            _ => Awaited::Close(self.underway().reader.take().unwrap_or_default()),
        }
    }

    /// Something is wrong with a result: the worst of it is why the session ends.
    pub(super) fn note_fault(&mut self, fault: OutputFault) {
        let known = &mut self.underway().fault;
        *known = (*known).max(Some(fault));
    }

    /// Sends an error message, then a Close frame.
    pub(super) fn leave_with_error(
        &mut self,
        error: &str,
        reason: CloseReason,
        end: Option<TaskEnd>,
        who: &Identity,
        cx: &mut Context,
    ) {
        if self.leaving().is_none() {
            let text = message::error_message(error, Some(&self.task));
            self.push_text(&text, who, cx);
            self.leave(reason, end, who, cx);
        }
    }

    /// Sends a Close frame behind what is in the outbox.
    pub(super) fn leave(
        &mut self,
        reason: CloseReason,
        end: Option<TaskEnd>,
        who: &Identity,
        cx: &mut Context,
    ) {
        if self.leaving().is_some() {
            return;
        }
        let code = reason.close_code(Side::Downstream);
        note_step(Subject::Task(who, &self.task), cx.now, || Event::Close {
            code,
            phrase: reason.phrase(),
        });
        self.push_frames(&ws::close_frame(code, reason.phrase(), None), who, cx);
        let closing = Closing::Received(Some(code));
        self.underway().leaving =
            Some(OutputEnding { closing, end, ..OutputEnding::abrupt(reason) });
        self.wake_at = Some(cx.now);
    }
}

impl OutputEnding {
    /// An end without a Close frame.
    pub(super) fn abrupt(reason: CloseReason) -> OutputEnding {
        OutputEnding { reason, closing: Closing::None, end: None, by_worker: false }
    }

    /// The same, of a client that is gone before it had the Close frame.
    pub(super) fn unseen(self) -> OutputEnding {
        OutputEnding { closing: self.closing.unseen(), ..self }
    }
}

impl OutputFault {
    /// Why a session ends whose last result has been delivered.
    pub(super) fn reason(self) -> CloseReason {
        match self {
            OutputFault::Audio(_) => CloseReason::AudioMissing,
            OutputFault::Worker => CloseReason::WorkerFailed,
            OutputFault::Malformed(_) => CloseReason::MalformedResult,
        }
    }

    fn what(self) -> Option<String> {
        match self {
            OutputFault::Audio(what) => Some(what.to_owned()),
            OutputFault::Malformed(fault) => Some(fault.to_string()),
            OutputFault::Worker => None,
        }
    }
}
