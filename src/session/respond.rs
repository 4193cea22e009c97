//! Sends an HTTP response, then takes the next request or ends the connection.
//!
//! A response is a head, made for this client, and content: shared with other clients, a range of a
//! file that goes from the page cache to the socket, or audio that still grows. At most
//! `STEP_BYTES_MAX` of it are written in one step, or `FILE_STEP_BYTES_MAX` of a file, so that a
//! long response delays other sessions only little.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::content::{Framing, SendError, Sent};
use super::event_body::{EventBody, Followed};
use super::file_body::FileBody;
use super::output::NOT_READABLE;
use super::stall::Stall;
use super::stream_body::StreamBody;
use super::transcript::{Event, note};
use super::{Awaited, CloseReason, Context, Drain, Ended, Identity, Last, Phase, State, Step};
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::net::Conn;
use crate::net::files::FileBytes;
use crate::proto::http::{self, Form, Response, Shared, Wire};
use crate::proto::message::TaskId;
use crate::service::endpoints::Endpoint;
use crate::service::report::{Language, Viewer};
use log::warn;
use std::io;

/// Bytes written in one step; then it is other sessions' turn.
const STEP_BYTES_MAX: usize = 128 * 1024;

/// The same for a file, whose bytes are not copied.
const FILE_STEP_BYTES_MAX: usize = 1024 * 1024;

/// The media type of Server-Sent Events.
const EVENT_STREAM: &str = "text/event-stream";

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
    /// What people want to read.
    pub language: Language,
    /// Bytes that came behind the request: the beginning of the next one.
    pub rest: Vec<u8>,
}

/// A request for one of the gateway's endpoints.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Question {
    pub endpoint: &'static Endpoint,
    /// The segments that the names in the endpoint's path matched, as the client wrote them.
    pub value: Box<str>,
    /// What follows the `?` of its target; `""` if nothing does.
    pub query: Box<str>,
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
    /// What follows all parts.
    tail: Option<Box<Tail>>,
    then: Then,
    stall: Stall,
    wake_at: Option<Moment>,
}

/// Content that is not in memory when the response begins.
enum Tail {
    /// Audio of a task.
    Audio {
        body: AudioBody,
        task: TaskId,
    },
    /// A part of a file of a route.
    File {
        body: FileBody,
        name: Box<str>,
    },
    Events(EventBody),
}

/// Audio as the content of a response.
pub enum AudioBody {
    /// A range of a file that is there.
    File(FileBody),
    /// It still grows.
    Stream(Box<StreamBody>),
}

impl Tail {
    fn release(&self, who: &Identity, cx: &mut Context) {
        match self {
            Tail::Audio { body, .. } => body.release(cx),
            Tail::File { .. } => {}
            Tail::Events(body) => body.release(who, cx),
        }
    }
}

impl AudioBody {
    fn handle_read(&mut self, read: io::Result<FileBytes>) {
        match self {
            AudioBody::File(body) => body.handle_read(read),
            AudioBody::Stream(body) => body.handle_read(read),
        }
    }

    fn own_bytes(&self) -> usize {
        match self {
            AudioBody::File(body) => body.own_bytes(),
            AudioBody::Stream(body) => body.own_bytes(),
        }
    }

    fn send(
        &mut self,
        downstream: &mut Conn,
        most: usize,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<Option<Sent>, SendError> {
        match self {
            AudioBody::File(body) if body.is_over() => Ok(None),
            AudioBody::File(body) => body.send(downstream, most, who, cx).map(Some),
            AudioBody::Stream(body) => body.send(downstream, most, who, cx),
        }
    }

    fn release(&self, cx: &mut Context) {
        if let AudioBody::Stream(body) = self {
            body.release(cx);
        }
    }
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
    pub fn answer(mut asked: Asked, response: Response, who: &Identity, cx: &mut Context) -> Phase {
        let response = response.unless_known(asked.if_none_match.as_deref());
        note(who, || Event::Answer { status: response.status });
        cx.stats.count_http(response.status);
        let response = match response.content_type {
            http::JSON => {
                let headers = std::mem::take(&mut asked.cors).into_iter();
                headers.fold(response, |response, (name, value)| response.with(name, value))
            }
            _ => response,
        };
        Respond::send(asked, response, None, who, cx)
    }

    /// A response that goes on for as long as the client watches, unless too many do already.
    pub fn answer_with_events(
        asked: Asked,
        followed: Followed,
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        let has_room = match followed {
            Followed::Snapshots => cx.watch.has_room(),
            Followed::Frames(_) => cx.taps.has_room(),
        };
        if !has_room {
            return Respond::answer(asked, Response::error(503, "Too many watchers"), who, cx);
        }
        // A proxy must not wait for more.
        let response = Response::stream(EVENT_STREAM).with("X-Accel-Buffering", "no");
        note(who, || Event::Answer { status: response.status });
        cx.stats.count_http(response.status);
        let framing = Framing::of(asked.form);
        let body = EventBody::begin(followed, framing, who, cx);
        Respond::send(asked, response, Some(Box::new(Tail::Events(body))), who, cx)
    }

    /// A response whose content, if it goes out at all, is the audio of a task.
    pub fn answer_with_file(
        asked: Asked,
        response: Response,
        body: AudioBody,
        task: TaskId,
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        cx.stats.count_http(response.status);
        Respond::send(asked, response, Some(Box::new(Tail::Audio { body, task })), who, cx)
    }

    /// A response whose content, if it is not in it, is a part of a file of a route.
    pub fn answer_with_asset(
        asked: Asked,
        response: Response,
        body: Option<(FileBody, Box<str>)>,
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        cx.stats.count_http(response.status);
        let tail = body.map(|(body, name)| Box::new(Tail::File { body, name }));
        Respond::send(asked, response, tail, who, cx)
    }

    fn send(
        asked: Asked,
        response: Response,
        tail: Option<Box<Tail>>,
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        let keep_alive = asked.form.keep_alive && !cx.is_draining;
        let keep_alive = keep_alive && !response.ends_with_connection(asked.form);
        let wire = response.into_wire(Form { keep_alive, ..asked.form });
        let then = if keep_alive { Then::NextRequest { rest: asked.rest } } else { Then::Close };
        let has_content = wire.file_bytes.is_none_or(|bytes| bytes > 0);
        if let Some(tail) = tail.as_ref().filter(|_| !has_content) {
            tail.release(who, cx);
        }
        Respond::phase(wire, tail.filter(|_| has_content), then, cx)
    }

    /// Waits for a response that only the gateway can make.
    pub fn awaiting(cx: &Context) -> Phase {
        let wire = Wire { first: Vec::new(), rest: Shared::default(), file_bytes: Some(0) };
        Respond::phase(wire, None, Then::Await, cx)
    }

    /// Whether the response is not known yet.
    pub fn is_awaiting(&self) -> bool {
        matches!(self.then, Then::Await)
    }

    /// A background thread has read from the file. Acted on by the next step.
    pub(super) fn handle_read(&mut self, read: io::Result<FileBytes>) {
        match self.tail.as_deref_mut() {
            Some(Tail::Audio { body, .. }) => body.handle_read(read),
            Some(Tail::File { body, .. }) => body.handle_read(read),
            Some(Tail::Events(_)) | None => {}
        }
    }

    fn phase(wire: Wire, tail: Option<Box<Tail>>, then: Then, cx: &Context) -> Phase {
        let Wire { first, rest, .. } = wire;
        let stall = Stall::new(cx.now);
        Phase::Respond(Box::new(Respond {
            first,
            rest,
            part: 0,
            sent: 0,
            tail,
            then,
            stall,
            wake_at: None,
        }))
    }

    /// Writes at most `most` bytes of what is next; `None` once everything has been sent.
    fn send_next(
        &mut self,
        downstream: &mut Conn,
        most: usize,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<Option<Sent>, SendError> {
        while self.part().is_some_and(|part| self.sent == part.len()) {
            (self.part, self.sent) = (self.part + 1, 0);
        }
        if let Some(part) = self.part() {
            let bytes = &part[self.sent..part.len().min(self.sent + most)];
            // The head travels with the first bytes of the file.
            let written = match self.tail {
                Some(_) => downstream.write_more(bytes),
                None => downstream.write(bytes),
            };
            let sent = Sent::by(written)?;
            self.sent += sent.bytes();
            return Ok(Some(sent));
        }
        match self.tail.as_deref_mut() {
            None => Ok(None),
            Some(Tail::Audio { body, .. }) => {
                let sent = body.send(downstream, most, who, cx)?;
                if let Some(Sent::Moved(n)) = sent {
                    cx.stats.audio_bytes += n as u64;
                }
                Ok(sent)
            }
            Some(Tail::File { body, .. }) if body.is_over() => Ok(None),
            Some(Tail::File { body, .. }) => body.send(downstream, most, who, cx).map(Some),
            Some(Tail::Events(body)) => body.send(downstream, most, who, cx),
        }
    }

    /// What follows is not sent any further.
    fn release_tail(&mut self, who: &Identity, cx: &mut Context) {
        if let Some(tail) = self.tail.take() {
            tail.release(who, cx);
        }
    }

    /// The rest cannot be sent. The client sees that less came than the head had announced.
    fn fail(&mut self, lost: SendError, who: &Identity, cx: &mut Context) -> Step {
        let task = match self.tail.as_deref() {
            Some(Tail::Audio { task, .. }) => Some(task.clone()),
            Some(Tail::File { name, .. }) => {
                let why = match lost {
                    SendError::Client | SendError::Stopped | SendError::Incomplete(_) => None,
                    SendError::Changed => Some("File changed"),
                    SendError::Unreadable => Some("File not readable"),
                };
                if let Some(why) = why {
                    let (why, name) = (Quoted(why), Quoted(name));
                    warn!(target: "http", "{who} = file lost why={why} file={name}");
                }
                // The end of an HTTP connection has no line of its own.
                return Step::End(Ended::http(CloseReason::Done).with_last(Last::Dropped));
            }
            // Watchers leave when they like.
            Some(Tail::Events(_)) => {
                self.release_tail(who, cx);
                return Step::End(Ended::http(CloseReason::Done));
            }
            None => None,
        };
        self.release_tail(who, cx);
        let (why, label) = match lost {
            SendError::Client => return Step::End(Ended::http(CloseReason::ClientVanished)),
            SendError::Stopped => {
                let ended = Ended::http(CloseReason::TaskStopped);
                return Step::End(ended.with_last(Last::Dropped));
            }
            // The stream has counted that.
            SendError::Incomplete(why) => (why, None),
            SendError::Changed => ("Audio file changed", Some("changed")),
            SendError::Unreadable => (NOT_READABLE, Some("unreadable")),
        };
        if let Some(task) = task {
            warn!(target: "output", "{who} = audio lost why={} task={task}", Quoted(why));
        }
        if let Some(label) = label {
            cx.stats.count_audio_failed(label);
        }
        Step::End(Ended::http(CloseReason::AudioLost).with_last(Last::Dropped))
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
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let mut budget = match self.tail.as_deref() {
            Some(Tail::Audio { .. } | Tail::File { .. }) => FILE_STEP_BYTES_MAX,
            Some(Tail::Events(_)) | None => STEP_BYTES_MAX,
        };
        loop {
            if budget == 0 {
                return Step::Yield(Phase::Respond(self));
            }
            match self.send_next(downstream, budget, who, cx) {
                Ok(None) => break,
                Ok(Some(Sent::Moved(n))) => {
                    budget -= n;
                    cx.work += n;
                    self.stall.note_progress(cx.now);
                }
                // Nothing waits for the client meanwhile.
                Ok(Some(Sent::Reading | Sent::Waiting)) => {
                    self.stall.note_progress(cx.now);
                    self.wake_at = match self.tail.as_deref() {
                        Some(Tail::Events(body)) => body.deadline(),
                        Some(Tail::Audio { .. } | Tail::File { .. }) | None => None,
                    };
                    return Step::Wait(Phase::Respond(self));
                }
                Ok(Some(Sent::Blocked))
                    if self.stall.check_timeout(downstream, cx.settings.write_timeout, cx.now) =>
                {
                    self.release_tail(who, cx);
                    let ended = Ended::http(CloseReason::ClientStalled);
                    return Step::End(ended.with_last(Last::Dropped));
                }
                Ok(Some(Sent::Blocked)) => {
                    self.wake_at = self.stall.deadline(cx.settings.write_timeout);
                    return Step::Wait(Phase::Respond(self));
                }
                Err(lost) => return self.fail(lost, who, cx),
            }
        }
        self.release_tail(who, cx);
        match self.then {
            Then::Await => Step::Wait(Phase::Respond(self)),
            Then::NextRequest { rest } => Step::NextRequest(rest, None),
            Then::Close => {
                let ended = Ended::http(CloseReason::Done);
                Step::End(ended.with_last(Last::Fin(Awaited::Fin)))
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    fn drain(&mut self, drain: Drain, _: &Identity, _: &mut Context) {
        if let (Drain::Leave, Some(Tail::Events(body))) = (drain, self.tail.as_deref_mut()) {
            body.end();
        }
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
        let tail = match self.tail.as_deref() {
            Some(Tail::Audio { body, .. }) => body.own_bytes(),
            Some(Tail::File { body, .. }) => body.own_bytes(),
            Some(Tail::Events(body)) => body.own_bytes(),
            None => 0,
        };
        self.first.capacity() + rest + tail
    }

    fn charged_bytes(&self) -> usize {
        self.rest.part_bytes()
    }

    fn release(mut self: Box<Self>, who: &Identity, cx: &mut Context) -> Box<Ended> {
        self.release_tail(who, cx);
        Ended::http(CloseReason::Stopped)
    }
}
