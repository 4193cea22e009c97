//! `GET /audio/{task_id}`: the audio of a kept result, as a file.
//!
//! The result is looked for among those that this gateway keeps. Where Redis may keep others of the
//! task, it is asked first (see [`Results::recall`]). The file is opened as for a client that waits
//! for it (see `Opener`); [`Respond`] sends it. One that still grows is the stream that those
//! clients get, from its beginning.
//!
//! [`Results::recall`]: crate::service::results::Results::recall

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
use crate::service::results::RecallOutcome;
use crate::service::streams::{NewStream, SeenFile, StreamId, StreamSource, StreamState};
use crate::service::tasks::ResultContent;
use std::ops::Range;
use std::path::Path;
use std::time::UNIX_EPOCH;
use uuid::Uuid;

/// The media type of audio that is not recognised.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// The error where there is no audio.
const NOT_KEPT: &str = "No audio is kept for this task";

/// The errors where there may be some.
const REDIS_AWAY: &str = "Redis is away, and this gateway keeps no audio of this task";
const REDIS_SILENT: &str = "Redis does not answer, and this gateway keeps no audio of this task";

/// What a page of another origin may read besides the usual headers, for ranges.
const EXPOSED: &str = "Accept-Ranges, Content-Range, ETag";

/// Audio that is being looked for, to be the response to a request.
pub struct Download {
    request: AudioRequest,
    progress: Progress,
    has_to_leave: bool,
}

enum Progress {
    /// Redis is being asked what it keeps of the task.
    Recalling,
    Recalled(RecallOutcome),
    /// The file is being opened.
    Opening(WantedAudio),
}

/// What is asked for, and how.
struct AudioRequest {
    task: TaskId,
    /// The `result_id`; `None`: the first result that has audio.
    number: Option<u32>,
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
        let wanted = if !cx.limits.is_allowed(origin, own_host) {
            Err(Response::error(403, "Origin not allowed"))
        } else if cx.budget.refuses(0) {
            cx.stats.count_refused("over_budget");
            Err(Response::error(503, "Out of memory budget"))
        } else {
            read(value)
        };
        let (task, number) = match wanted {
            Ok(wanted) => wanted,
            Err(response) => return Step::Next(Respond::answer(asked, response, who, cx)),
        };
        let request = AudioRequest { task, number, asked, conditions: Conditions::read(head) };
        match cx.results.recall(cx.now, &request.task, who.id()) {
            Some(outcome) => request.begin(outcome, who, cx),
            None => Step::Wait(Download::phase(request, Progress::Recalling)),
        }
    }

    /// No answer of Redis is waited for any more.
    fn end_recall(&self, who: &Identity, cx: &mut Context) {
        if matches!(self.progress, Progress::Recalling) {
            cx.results.end_recall(self.request.task.uuid(), who.id());
        }
    }

    fn phase(request: AudioRequest, progress: Progress) -> Phase {
        Phase::Download(Box::new(Download { request, progress, has_to_leave: false }))
    }

    /// What came of asking Redis. Acted on by the next step.
    pub(super) fn handle_recalled(&mut self, outcome: RecallOutcome) {
        self.progress = Progress::Recalled(outcome);
    }

    /// A background thread has tried to open the file. Acted on by the next step.
    pub(super) fn handle_opened(&mut self, opened: Result<OpenFile, OpenError>) {
        if let Progress::Opening(audio) = &mut self.progress {
            audio.opener.handle_opened(opened);
        }
    }

    /// Opens the file.
    fn open(mut self: Box<Self>, mut audio: WantedAudio, who: &Identity, cx: &mut Context) -> Step {
        match audio.opener.poll(&self.request.task, who, cx) {
            None => {
                self.progress = Progress::Opening(audio);
                Step::Wait(Phase::Download(self))
            }
            Some(Ok(file)) => self.request.respond_with_opened(audio, file, who, cx),
            Some(Err(error)) => {
                let words = audio.opener.report_failure(error, &self.request.task, who, cx);
                let response = Response::error(status(error), words);
                Step::Next(Respond::answer(self.request.asked, response, who, cx))
            }
        }
    }
}

impl AudioRequest {
    /// Everything is known of the task that can be found out: looks for its audio.
    fn begin(self, outcome: RecallOutcome, who: &Identity, cx: &mut Context) -> Step {
        match find(self.task.uuid(), self.number, cx) {
            Some(AudioSource::Stream(stream)) => self.respond_with(stream, who, cx),
            Some(AudioSource::File(audio)) => {
                Step::Next(Download::phase(self, Progress::Opening(audio)))
            }
            None => {
                let (status, words) = match outcome {
                    RecallOutcome::Complete => (404, NOT_KEPT),
                    RecallOutcome::RedisAway => (503, REDIS_AWAY),
                    RecallOutcome::TimedOut => (504, REDIS_SILENT),
                };
                let response = Response::error(status, words);
                Step::Next(Respond::answer(self.asked, response, who, cx))
            }
        }
    }

    /// The file is open: chooses what of it the client gets.
    fn respond_with_opened(
        self,
        audio: WantedAudio,
        mut file: OpenFile,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let WantedAudio { id, is_growing, name, opener } = audio;
        let task = self.task.uuid();
        if let Some(stream) = stream_of(task, id, cx) {
            // A client has begun it meanwhile.
            return self.respond_with(stream, who, cx);
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
            return self.respond_with(stream, who, cx);
        }
        let age = match opener.is_young(&file, cx) && !is_growing {
            true => FileAge::Young,
            false => FileAge::Finished,
        };
        let content_type = audio_type.unwrap_or(UNKNOWN_TYPE).into();
        self.respond_with_file(
            OpenedAudio { file, state, age, is_own: false, content_type },
            who,
            cx,
        )
    }

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
        let age = match stream.state() {
            StreamState::Ended => FileAge::Finished,
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

/// The task and the number that the end of a path names.
fn read(value: &str) -> Result<(TaskId, Option<u32>), Response> {
    let (task, number) = match value.split_once('/') {
        Some((task, number)) => (task, Some(number)),
        None => (value, None),
    };
    let Some(task) = TaskId::read(task) else { return Err(Response::error(400, BAD_TASK_ID)) };
    match number.map(str::parse::<u32>).transpose() {
        Ok(number) => Ok((task, number)),
        Err(_) => Err(Response::error(400, "Invalid result_id format")),
    }
}

/// The audio of a task, or of one of its results, if there is any.
fn find(task: Uuid, number: Option<u32>, cx: &mut Context) -> Option<AudioSource> {
    let mut work = 0;
    let results = cx.results.tasks().results(task);
    let mut wanted = results.filter(|one| number.is_none_or(|number| one.id == number));
    let source = wanted.find_map(|one| {
        let stream = stream_of(task, one.id, cx).map(AudioSource::Stream);
        let ResultContent::Published(payload) = one.content else { return stream };
        work += payload.len();
        let result = TaskResult::read(&payload);
        let (opener, name) = (Opener::new(&result, cx)?, result.audio_file()?.into());
        let wanted = WantedAudio { id: one.id, is_growing: result.is_growing(), name, opener };
        stream.or(Some(AudioSource::File(wanted)))
    });
    cx.work += work;
    source
}

/// The stream that is the audio of a result. Not one of a young file, which is opened anew: there
/// may be another one of its name by now, and what it was for the last client is over.
fn stream_of(task: Uuid, result_id: u32, cx: &Context) -> Option<StreamId> {
    let stream = cx.streams.stream(cx.streams.find(task, result_id)?)?;
    (stream.source() != StreamSource::YoungFile).then(|| stream.id())
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
            self.end_recall(who, cx);
            return Step::End(Ended::http(CloseReason::Draining));
        }
        match std::mem::replace(&mut self.progress, Progress::Recalling) {
            Progress::Recalling => Step::Wait(Phase::Download(self)),
            Progress::Recalled(outcome) => self.request.begin(outcome, who, cx),
            Progress::Opening(audio) => self.open(audio, who, cx),
        }
    }

    fn deadline(&self) -> Option<Moment> {
        match &self.progress {
            // The results have a timeout for that.
            Progress::Recalling | Progress::Recalled(_) => None,
            Progress::Opening(audio) => audio.opener.deadline(),
        }
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
        let names = match &self.progress {
            Progress::Recalling | Progress::Recalled(_) => 0,
            Progress::Opening(audio) => audio.opener.own_bytes(),
        };
        size_of::<Download>() + names + self.request.asked.rest.capacity()
    }

    fn release(self: Box<Self>, who: &Identity, cx: &mut Context) -> Box<Ended> {
        self.end_recall(who, cx);
        Ended::http(CloseReason::Stopped)
    }
}
