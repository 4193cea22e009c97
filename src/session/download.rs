//! `GET /audio/{task_id}`: the audio of a kept result, as a file.
//!
//! The result is looked for once, among those that this gateway keeps. Its file is opened as for a
//! client that waits for it (see [`Opener`]); [`Respond`] sends it.

use super::file_body::{Age, FileBody};
use super::output::Opener;
use super::respond::{Asked, Respond};
use super::transcript::{Event, note};
use super::{CloseReason, Context, Drain, Ended, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::files::{FileState, OpenError};
use crate::net::{Conn, OpenFile};
use crate::proto::http::conditional::{Conditions, Selected, Validators, last_modified};
use crate::proto::http::{RequestHead, Response};
use crate::proto::media;
use crate::proto::message::{BAD_TASK_ID, TaskId, TaskResult};
use crate::service::streams::{StreamId, StreamState};
use crate::service::tasks::Content;
use std::ops::Range;
use std::time::UNIX_EPOCH;

/// The media type of audio that is not recognised.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// What a page of another origin may read besides the usual headers, for ranges.
const EXPOSED: &str = "Accept-Ranges, Content-Range, ETag";

/// A file that is being opened to be the response to a request.
pub struct Download {
    task: TaskId,
    asked: Asked,
    conditions: Conditions,
    opener: Opener,
    has_to_leave: bool,
}

impl Download {
    /// Answers a request for the audio that `value`, the end of its path, names: the id of a task,
    /// or with a `result_id` behind it.
    pub fn begin(
        head: &RequestHead,
        value: &str,
        asked: Asked,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let origin = head.headers.first("origin");
        let own_host = cx.trust.own_host(head, who.proxied().is_some());
        let found = if !cx.limits.is_allowed(origin, own_host) {
            Err(Response::error(403, "Origin not allowed"))
        } else if cx.budget.refuses(0) {
            cx.stats.count_refused("over_budget");
            Err(Response::error(503, "Out of memory budget"))
        } else {
            find(value, cx)
        };
        match found {
            Ok((task, Source::Speech(stream))) => {
                send_speech(stream, task, &Conditions::read(head), asked, who, cx)
            }
            Ok((task, Source::File(opener))) => {
                let conditions = Conditions::read(head);
                let download = Download { task, asked, conditions, opener, has_to_leave: false };
                Step::Next(Phase::Download(Box::new(download)))
            }
            Err(response) => Step::Next(Respond::answer(asked, response, who, cx)),
        }
    }

    /// A background thread has tried to open the file. Acted on by the next step.
    pub(super) fn handle_opened(&mut self, opened: Result<OpenFile, OpenError>) {
        self.opener.handle_opened(opened);
    }

    /// The file is open: chooses what of it the client gets.
    fn respond(mut self, file: OpenFile, who: &Identity, cx: &mut Context) -> Step {
        let content_type = media::by_name(self.opener.name())
            .or_else(|| media::by_first_bytes(file.first_bytes()))
            .unwrap_or(UNKNOWN_TYPE);
        let age = if self.opener.is_young(&file, cx) { Age::Young } else { Age::Finished };
        let (response, range) = select(file.state(), age, content_type, &self.conditions);
        let response =
            with_cors(response.with("Cache-Control", "private, no-cache"), &mut self.asked);
        let body = FileBody::new(file, range, age);
        note(who, || Event::Answer { status: response.status });
        Step::Next(Respond::answer_with_file(self.asked, response, body, self.task, cx))
    }
}

/// Where the audio is.
enum Source {
    /// In a file that is to be opened.
    File(Opener),
    /// In a file of the gateway's own.
    Speech(StreamId),
}

/// The audio that is asked for; or why there is none.
fn find(value: &str, cx: &mut Context) -> Result<(TaskId, Source), Response> {
    let (task, number) = match value.split_once('/') {
        Some((task, number)) => (task, Some(number)),
        None => (value, None),
    };
    let Some(task) = TaskId::read(task) else { return Err(Response::error(400, BAD_TASK_ID)) };
    let number = match number.map(str::parse::<u32>) {
        None => None,
        Some(Ok(number)) => Some(number),
        Some(Err(_)) => return Err(Response::error(400, "Invalid result_id format")),
    };
    let mut work = 0;
    let results = cx.results.tasks().results(task.uuid());
    let mut wanted = results.filter(|one| number.is_none_or(|number| one.id == number));
    let source = wanted.find_map(|one| match one.content {
        Content::Published(payload) => {
            work += payload.len();
            Opener::new(&TaskResult::read(&payload), cx).map(Source::File)
        }
        Content::Speech => cx.streams.find(task.uuid(), one.id).map(Source::Speech),
    });
    cx.work += work;
    let source = source.ok_or_else(|| Response::error(404, "No audio is kept for this task"))?;
    Ok((task, source))
}

/// Sends what there is of speech that the gateway received.
fn send_speech(
    stream: StreamId,
    task: TaskId,
    conditions: &Conditions,
    mut asked: Asked,
    who: &mut Identity,
    cx: &mut Context,
) -> Step {
    let Some(stream) = cx.streams.stream(stream) else {
        let response = Response::error(404, "No audio is kept for this task");
        return Step::Next(Respond::answer(asked, response, who, cx));
    };
    // Only the gateway writes to it, and nothing more once it has ended.
    let modified = stream.file().state_now().map_or(UNIX_EPOCH, |state| state.modified);
    let state = FileState { length: stream.chunks().length(), modified };
    let age = if stream.state() == StreamState::Open { Age::Young } else { Age::Finished };
    let (response, range) = select(state, age, UNKNOWN_TYPE, conditions);
    let body = FileBody::new(stream.file().clone(), range, Age::Young);
    let audio_type = stream.speech_type().unwrap_or(UNKNOWN_TYPE);
    let response = match response.status {
        200 | 206 | 304 => response.with("Content-Type", audio_type),
        _ => response,
    };
    let response = with_cors(response.with("Cache-Control", "private, no-cache"), &mut asked);
    note(&*who, || Event::Answer { status: response.status });
    Step::Next(Respond::answer_with_file(asked, response, body, task, cx))
}

/// The response to a request with these conditions, for a file in this state; the bytes of the file
/// that it has.
fn select(
    state: FileState,
    age: Age,
    content_type: &'static str,
    conditions: &Conditions,
) -> (Response, Range<u64>) {
    let length = state.length;
    if age == Age::Young {
        // What it is now says nothing about what it will be.
        return (Response::file(200, content_type, length), 0..length);
    }
    let etag = etag(state);
    let validators = Validators { etag: &etag, modified: state.modified, length };
    let selected = conditions.select(validators);
    let (response, range) = match selected {
        Selected::Failed => {
            return (
                Response::error(412, "It is not what If-Match or If-Unmodified-Since names"),
                0..0,
            );
        }
        Selected::Unsatisfiable => {
            let response = Response::error(416, "The range is beyond the end")
                .with("Content-Range", format!("bytes */{length}"));
            return (response, 0..0);
        }
        Selected::NotModified => (Response::new(304, content_type, Vec::new()), 0..0),
        Selected::Whole => (Response::file(200, content_type, length), 0..length),
        Selected::Part(range) => {
            let value = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            let response = Response::file(206, content_type, range.end - range.start);
            (response.with("Content-Range", value), range)
        }
    };
    let response = response.with("Accept-Ranges", "bytes").with("ETag", etag);
    (response.with("Last-Modified", last_modified(state.modified)), range)
}

/// A strong entity tag: a finished file is not written to any more without a new time.
fn etag(state: FileState) -> String {
    let modified = state.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("\"{:x}-{:x}\"", modified.as_nanos(), state.length)
}

/// The response with the headers that let pages of other origins read it, those for ranges too.
fn with_cors(response: Response, asked: &mut Asked) -> Response {
    let cors = std::mem::take(&mut asked.cors);
    let is_allowed = cors.iter().any(|(name, _)| *name == "Access-Control-Allow-Origin");
    let headers = cors.into_iter();
    let response = headers.fold(response, |response, (name, value)| response.with(name, value));
    if is_allowed { response.with("Access-Control-Expose-Headers", EXPOSED) } else { response }
}

/// The status for a file that cannot be opened.
fn status(error: OpenError) -> u16 {
    match error {
        OpenError::NotFound
        | OpenError::NoRoot(_)
        | OpenError::Forbidden
        | OpenError::NotRegular
        | OpenError::TooLarge => 404,
        OpenError::Shortage(_) => 503,
        OpenError::WouldWait | OpenError::Unreadable(_) => 500,
    }
}

impl State for Download {
    fn step(mut self: Box<Self>, _: &mut Conn, who: &mut Identity, cx: &mut Context) -> Step {
        if self.has_to_leave {
            return Step::End(Ended::http(CloseReason::Draining));
        }
        match self.opener.poll(&self.task, who, cx) {
            None => Step::Wait(Phase::Download(self)),
            Some(Ok(file)) => self.respond(file, who, cx),
            Some(Err(error)) => {
                let words = self.opener.report_failure(error, &self.task, who, cx);
                let response = Response::error(status(error), words);
                Step::Next(Respond::answer(self.asked, response, who, cx))
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.opener.deadline()
    }

    /// A request that has begun still gets its response.
    fn drain(&mut self, drain: Drain, _: &Identity, _: &mut Context) {
        self.has_to_leave = drain == Drain::Leave;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn own_bytes(&self) -> usize {
        size_of::<Download>() + self.opener.own_bytes() + self.asked.rest.capacity()
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}
