//! `GET /audio/{task_id}`: the audio of a kept result, as a file.
//!
//! The result is looked for once, among those that this gateway keeps. Its file is opened as for a
//! client that waits for it (see `Opener`); [`Respond`] sends it. One that still grows is the
//! stream that those clients get, from its beginning.

use super::content::Framing;
use super::file_body::{FileAge, FileBody};
use super::output::Opener;
use super::respond::{Asked, AudioBody, Respond};
use super::stream_body::StreamBody;
use super::transcript::{Event, note};
use super::{CloseReason, Context, Drain, Ended, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::files::{FileState, OpenError};
use crate::net::{Conn, OpenFile};
use crate::proto::http::conditional::{Conditions, Selected, Validators, last_modified};
use crate::proto::http::{RequestHead, Response};
use crate::proto::media;
use crate::proto::message::{BAD_TASK_ID, TaskId, TaskResult};
use crate::service::streams::{NewStream, SeenFile, StreamId, StreamSource, StreamState};
use crate::service::tasks::ResultContent;
use std::ops::Range;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The media type of audio that is not recognised.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// The error where there is no audio.
const NOT_KEPT: &str = "No audio is kept for this task";

/// What a page of another origin may read besides the usual headers, for ranges.
const EXPOSED: &str = "Accept-Ranges, Content-Range, ETag";

/// A file that is being opened to be the response to a request.
pub struct Download {
    request: AudioRequest,
    result: WantedAudio,
    has_to_leave: bool,
}

/// What is asked for, and how.
struct AudioRequest {
    task: TaskId,
    asked: Asked,
    conditions: Conditions,
}

/// The result whose audio is asked for, where that is in a file of its worker.
struct WantedAudio {
    id: u32,
    is_growing: bool,
    /// The file, as the worker named it.
    name: Box<Path>,
    opener: Opener,
}

/// Audio whose length is known.
struct OpenedAudio {
    file: OpenFile,
    state: FileState,
    age: FileAge,
    /// Whether only the gateway writes to it.
    is_own: bool,
    content_type: Box<str>,
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
        let own_host = cx.trust.own_host(head, who.is_forwarded(&cx.trust));
        let found = if !cx.limits.is_allowed(origin, own_host) {
            Err(Response::error(403, "Origin not allowed"))
        } else if cx.budget.refuses(0) {
            cx.stats.count_refused("over_budget");
            Err(Response::error(503, "Out of memory budget"))
        } else {
            find(value, cx)
        };
        let (task, source) = match found {
            Ok(found) => found,
            Err(response) => return Step::Next(Respond::answer(asked, response, who, cx)),
        };
        let request = AudioRequest { task, asked, conditions: Conditions::read(head) };
        match source {
            AudioSource::Stream(stream) => request.respond_with(stream, who, cx),
            AudioSource::File(result) => {
                let download = Download { request, result, has_to_leave: false };
                Step::Next(Phase::Download(Box::new(download)))
            }
        }
    }

    /// A background thread has tried to open the file. Acted on by the next step.
    pub(super) fn handle_opened(&mut self, opened: Result<OpenFile, OpenError>) {
        self.result.opener.handle_opened(opened);
    }

    /// The file is open: chooses what of it the client gets.
    fn respond(self, mut file: OpenFile, who: &Identity, cx: &mut Context) -> Step {
        let Download { request, result: WantedAudio { id, is_growing, name, opener }, .. } = self;
        let task = request.task.uuid();
        if let Some(stream) = cx.streams.find(task, id) {
            // A client has begun it meanwhile.
            return request.respond_with(stream, who, cx);
        }
        let audio_type =
            media::by_name(opener.name()).or_else(|| media::by_first_bytes(file.first_bytes()));
        let state = file.state();
        if is_growing && !cx.results.tasks().is_audio_ended(task, id, &name) {
            // Only a loss of bytes shows that it is another one.
            file.forget_tail();
            let (source, name) = (StreamSource::GrowingFile, &*name);
            let is_second = false;
            let new = NewStream { task, result_id: id, source, file, name, audio_type, is_second };
            let stream = cx.begin_stream(new, state);
            return request.respond_with(stream, who, cx);
        }
        let age = match opener.is_young(&file, cx) && !is_growing {
            true => FileAge::Young,
            false => FileAge::Finished,
        };
        let content_type = audio_type.unwrap_or(UNKNOWN_TYPE).into();
        request.respond_with_file(
            OpenedAudio { file, state, age, is_own: false, content_type },
            who,
            cx,
        )
    }
}

impl AudioRequest {
    /// The audio is a stream: it is sent while it grows, and as a file once it is complete.
    fn respond_with(self, id: StreamId, who: &Identity, cx: &mut Context) -> Step {
        let Some(stream) = cx.streams.stream(id) else {
            let response = Response::error(404, NOT_KEPT);
            return Step::Next(Respond::answer(self.asked, response, who, cx));
        };
        let content_type = stream.speech_type().or(stream.audio_type()).unwrap_or(UNKNOWN_TYPE);
        let content_type = content_type.into();
        let SeenFile { length, mut modified } = stream.seen();
        let is_own = stream.source() == StreamSource::Speech;
        if is_own {
            // Nobody has looked at it.
            modified = stream.file().state_now().map_or(UNIX_EPOCH, |state| state.modified);
        }
        let state = FileState { length, modified };
        let file = stream.file().clone().in_state(state);
        let age = match (stream.state(), stream.source()) {
            (StreamState::Ended, _) => FileAge::Finished,
            (_, StreamSource::YoungFile) => FileAge::Young,
            _ => return self.follow(id, file, content_type, who, cx),
        };
        self.respond_with_file(OpenedAudio { file, state, age, is_own, content_type }, who, cx)
    }

    /// Sends a stream to its end.
    fn follow(
        mut self,
        id: StreamId,
        file: OpenFile,
        content_type: Box<str>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let is_chunked = self.asked.form.minor_version > 0;
        let framing = if is_chunked { Framing::Chunked } else { Framing::UntilEnd };
        let body = AudioBody::Stream(Box::new(StreamBody::begin(id, file, framing, cx)));
        let response =
            Response::stream(UNKNOWN_TYPE).with("Content-Type", content_type.into_string());
        let response = with_cors(response, &mut self.asked);
        note(who, || Event::Answer { status: response.status });
        Step::Next(Respond::answer_with_file(self.asked, response, body, self.task, who, cx))
    }

    /// Chooses what of a file the client gets.
    fn respond_with_file(mut self, audio: OpenedAudio, who: &Identity, cx: &mut Context) -> Step {
        let OpenedAudio { file, state, age, is_own, content_type } = audio;
        let (response, range) = match age {
            // What it is now says nothing about what it will be.
            FileAge::Young => (Response::file(200, UNKNOWN_TYPE, state.length), 0..state.length),
            FileAge::Growing | FileAge::Finished => select(state, "", &self.conditions),
        };
        let response = match response.status {
            200 | 206 => response.with("Content-Type", content_type.into_string()),
            _ => response,
        };
        let response =
            with_cors(response.with("Cache-Control", "private, no-cache"), &mut self.asked);
        // Nobody changes the gateway's own.
        let body = FileBody::new(file, range, if is_own { FileAge::Growing } else { age });
        note(who, || Event::Answer { status: response.status });
        let body = AudioBody::File(body);
        Step::Next(Respond::answer_with_file(self.asked, response, body, self.task, who, cx))
    }
}

/// Where the audio is.
enum AudioSource {
    /// In a file that has to be opened.
    File(WantedAudio),
    /// In that of a stream.
    Stream(StreamId),
}

/// The audio that is asked for; or why there is none.
fn find(value: &str, cx: &mut Context) -> Result<(TaskId, AudioSource), Response> {
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
    let source = wanted.find_map(|one| {
        let stream = cx.streams.find(task.uuid(), one.id).map(AudioSource::Stream);
        let ResultContent::Published(payload) = one.content else { return stream };
        work += payload.len();
        let result = TaskResult::read(&payload);
        let (opener, name) = (Opener::new(&result, cx)?, result.audio_file()?.into());
        let wanted = WantedAudio { id: one.id, is_growing: result.is_growing(), name, opener };
        stream.or(Some(AudioSource::File(wanted)))
    });
    cx.work += work;
    let source = source.ok_or_else(|| Response::error(404, NOT_KEPT))?;
    Ok((task, source))
}

/// The response to a request with these conditions, for a finished file in this state, without its
/// media type; the bytes of the file that it has. The entity tag ends with `variant`, unless that
/// is empty.
pub(super) fn select(
    state: FileState,
    variant: &str,
    conditions: &Conditions,
) -> (Response, Range<u64>) {
    let length = state.length;
    let etag = etag(state, variant);
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
        Selected::NotModified => (Response::new(304, UNKNOWN_TYPE, Vec::new()), 0..0),
        Selected::Whole => (Response::file(200, UNKNOWN_TYPE, length), 0..length),
        Selected::Part(range) => {
            let value = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            let response = Response::file(206, UNKNOWN_TYPE, range.end - range.start);
            (response.with("Content-Range", value), range)
        }
    };
    let response = response.with("Accept-Ranges", "bytes").with("ETag", etag);
    (response.with("Last-Modified", last_modified(state.modified)), range)
}

/// A strong entity tag: a finished file is not written to any more without a new time.
fn etag(state: FileState, variant: &str) -> String {
    let modified = state.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    let hyphen = if variant.is_empty() { "" } else { "-" };
    format!("\"{:x}-{:x}{hyphen}{variant}\"", modified.as_nanos(), state.length)
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
        match self.result.opener.poll(&self.request.task, who, cx) {
            None => Step::Wait(Phase::Download(self)),
            Some(Ok(file)) => self.respond(file, who, cx),
            Some(Err(error)) => {
                let words = self.result.opener.report_failure(error, &self.request.task, who, cx);
                let response = Response::error(status(error), words);
                Step::Next(Respond::answer(self.request.asked, response, who, cx))
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.result.opener.deadline()
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
        size_of::<Download>() + self.result.opener.own_bytes() + self.request.asked.rest.capacity()
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}
