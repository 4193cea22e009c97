//! What an AI worker publishes for a task, and what the gateway sends to the client that waits for
//! it.
//!
//! A result is taken apart no further than the contract needs. Fields that are passed on, and the
//! text itself, keep the characters that the worker wrote: `1e400`, `12345678901234567890.0` and
//! `"\ud800"` reach the client unchanged, as decoding them could only change them. So reading never
//! fails. What is not a JSON object, or has a known field of the wrong type, becomes a result that
//! tells the client so. A field that is only passed on and is not JSON (`NaN`, bytes that are not
//! UTF-8) becomes null; see `members`.
//!
//! The text of a worker's own `error` field is delivered. Nothing else that describes a fault, such
//! as a parser's message or a path on this server, ever enters a message.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use super::members::{Members, members, read_members};
use crate::base::budget::{Budget, Charged};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The error for a task id that is not a UUID; close 4004 follows.
pub const BAD_TASK_ID: &str = "Invalid task_id format";
/// The error for a `from_result` that is not a number; close 4004 follows.
pub const BAD_FROM_RESULT: &str = "Invalid from_result format";
/// The error for a `from_chunk` that is not a number; close 4004 follows.
pub const BAD_FROM_CHUNK: &str = "Invalid from_chunk format";
/// The error for a `from_byte` that is not a number; close 4004 follows.
pub const BAD_FROM_BYTE: &str = "Invalid from_byte format";
/// The error in place of a result that is not a JSON object or has a known field of the wrong type.
const BAD_RESULT: &str = "Invalid response format";
/// The error after `timeout` without a result; close 4008 follows.
pub const TIMED_OUT: &str = "Processing timeout";
/// The error when Redis has been away for longer than `grace`; close 1013 follows.
pub const REDIS_AWAY: &str = "Redis connection not available";
/// The error of a failure that a worker reported without a text.
const FAILED: &str = "Processing failed";
/// The error for a client whose task had results that are gone before their time. Others may
/// follow.
const MISSING: &str = "Some results are no longer available";

/// Names that messages use themselves: a worker's field of that name is not passed on.
const OUR_NAMES: [&str; 13] = [
    "status",
    "error",
    "task_id",
    "content",
    "audio_present",
    "result_id",
    "audio_type",
    "audio_growing",
    "audio_end",
    "final",
    "type",
    "chunk_id",
    "total_chunks",
];

/// The task that a client waits for: compared as a UUID, echoed as the client wrote it. That is
/// letters, digits and `{}-:`, so between two quotes it is a JSON string.
///
/// ```
/// use aivtuber_gateway::proto::message::TaskId;
///
/// let usual = TaskId::read("7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111").unwrap();
/// let braced = TaskId::read("%7B7D2B1A52-93A2-4C44-9A94-6A2A4A6CF111%7D").unwrap();
/// assert_eq!(usual.uuid(), braced.uuid());
/// assert_eq!(braced.to_string(), "{7D2B1A52-93A2-4C44-9A94-6A2A4A6CF111}");
/// assert!(TaskId::read("nonsense").is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskId {
    uuid: Uuid,
    /// Only if it is not the usual form, which is lower case with hyphens. Behind two pointers, to
    /// cost little in the usual case.
    written: Option<Box<Box<str>>>,
}

impl TaskId {
    /// Reads a path segment: `%`-escapes are decoded once, then any form is taken that the `uuid`
    /// crate reads (hyphenated, simple, braced, URN; either case). `None` for anything else.
    pub fn read(segment: &str) -> Option<TaskId> {
        TaskId::parse(&percent_decoded(segment)?)
    }

    /// Reads an id in any form that the `uuid` crate reads. `None` for anything else.
    pub fn parse(text: &str) -> Option<TaskId> {
        let uuid = Uuid::try_parse(text).ok()?;
        let written = (usual_form(&uuid) != text).then(|| Box::new(text.into()));
        Some(TaskId { uuid, written })
    }

    /// The id that tasks are compared by.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The client's spelling, if it is not lower case with hyphens.
    pub fn written(&self) -> Option<&str> {
        self.written.as_deref().map(|written| &**written)
    }
}

impl From<Uuid> for TaskId {
    fn from(uuid: Uuid) -> TaskId {
        TaskId { uuid, written: None }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.written {
            Some(written) => f.write_str(written),
            None => self.uuid.hyphenated().fmt(f),
        }
    }
}

/// One result of a task, ready for any number of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskResult {
    kind: ResultKind,
    /// `,"name":value` for every field that is passed on, in the worker's order and spelling.
    extras: Box<str>,
    is_final: bool,
    fault: Option<ResultFault>,
    /// Its number within the task; `None` for what is not kept.
    id: Option<u32>,
}

/// What the message that opens a delivery says about audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AudioPresence {
    /// None follows.
    Absent,
    /// The file is open and follows. Its media type, where that is known.
    Follows(Option<&'static str>),
}

/// JSON strings here are JSON text, with quotes and escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ResultKind {
    Answer { content: Box<str>, audio: Option<AudioFile> },
    Failure { error: Box<str> },
    Progress { content: Box<str> },
    Speech,
}

/// The audio of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AudioFile {
    /// As the worker named it.
    name: PathBuf,
    /// The worker is still writing it.
    is_growing: bool,
}

/// What is wrong with a malformed result. For the log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResultFault {
    /// Not a JSON object, or not UTF-8 outside of the fields that are only passed on.
    NotAnObject,
    /// A known field, by its name, has a type that the contract does not allow.
    WrongType(&'static str),
}

impl fmt::Display for ResultFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResultFault::NotAnObject => f.write_str("not a JSON object"),
            ResultFault::WrongType(name @ "error") => {
                write!(f, "`{name}` is neither a string nor a bool nor an object")
            }
            ResultFault::WrongType(name @ ("final" | "audio_growing")) => {
                write!(f, "`{name}` is not a bool")
            }
            ResultFault::WrongType(name) => write!(f, "`{name}` is not a string"),
        }
    }
}

/// What a worker's `status` means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StatusKind {
    Success,
    Progress,
    Failure,
}

/// A result that all its clients share. It is charged once.
pub type SharedResult = Rc<Charged<TaskResult>>;

/// A field of a result that is passed on as it is, as JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The answer's text or the failure's error: a string, with its quotes.
    Text,
    /// Every further field: `,"name":value` each.
    Extras,
}

impl TaskResult {
    /// Makes it a value that clients share.
    pub fn shared(self, budget: &Budget) -> SharedResult {
        let bytes = self.bytes();
        Rc::new(Charged::new(self, bytes, budget))
    }

    /// A field that is passed on, which may be long.
    pub fn field(&self, field: Field) -> &str {
        match (field, &self.kind) {
            (
                Field::Text,
                ResultKind::Answer { content, .. } | ResultKind::Progress { content },
            ) => content,
            (Field::Text, ResultKind::Failure { error }) => error,
            (Field::Text, ResultKind::Speech) => r#""""#,
            (Field::Extras, _) => &self.extras,
        }
    }

    /// Reads what a worker published. Never fails: a malformed result becomes the failure
    /// `Invalid response format`; see [`TaskResult::fault`].
    pub fn read(payload: &[u8]) -> TaskResult {
        let fields = ResultFields::read(payload).ok_or(ResultFault::NotAnObject);
        fields.and_then(TaskResult::from_fields).unwrap_or_else(|fault| TaskResult {
            kind: ResultKind::Failure { error: json_string(BAD_RESULT) },
            extras: "".into(),
            is_final: true,
            fault: Some(fault),
            id: None,
        })
    }

    /// The message for a client some of whose results were evicted. Others may follow.
    pub fn missing() -> TaskResult {
        TaskResult {
            kind: ResultKind::Failure { error: json_string(MISSING) },
            extras: "".into(),
            is_final: false,
            fault: None,
            id: None,
        }
    }

    /// Speech that the gateway received. It has no text of its own, and what follows is not known.
    pub fn speech() -> TaskResult {
        TaskResult {
            kind: ResultKind::Speech,
            extras: "".into(),
            is_final: false,
            fault: None,
            id: None,
        }
    }

    /// Whether it is [`TaskResult::speech`].
    pub fn is_speech(&self) -> bool {
        self.kind == ResultKind::Speech
    }

    /// The same result with this `result_id`.
    pub fn numbered(self, id: Option<u32>) -> TaskResult {
        TaskResult { id, ..self }
    }

    /// Its `result_id`.
    pub fn id(&self) -> Option<u32> {
        self.id
    }

    /// Whether a payload is a progress message, which is passed on and never kept.
    pub fn is_progress_message(payload: &[u8]) -> bool {
        // Most results have no `status`, and need no parsing to see it. A name may be escaped.
        let may_have_status = memchr::memmem::find(payload, b"status").is_some()
            || memchr::memmem::find(payload, b"\\u").is_some();
        may_have_status && TaskResult::read(payload).is_progress()
    }

    /// Whether the task ends with this result.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// The same result, after which others follow. For a malformed one that is not the last one: it
    /// cannot say so itself.
    pub fn continued(&self) -> TaskResult {
        TaskResult { is_final: false, ..self.clone() }
    }

    /// Bytes of memory that it takes, roughly.
    pub fn bytes(&self) -> usize {
        let text = match &self.kind {
            ResultKind::Answer { content, .. } | ResultKind::Progress { content } => content.len(),
            ResultKind::Failure { error } => error.len(),
            ResultKind::Speech => 0,
        };
        size_of::<Self>() + text + self.extras.len()
    }

    /// Whether the worker reported a failure, or the result was malformed.
    pub fn is_failure(&self) -> bool {
        matches!(self.kind, ResultKind::Failure { .. })
    }

    /// Whether it only says that the worker is at work.
    fn is_progress(&self) -> bool {
        matches!(self.kind, ResultKind::Progress { .. })
    }

    /// What was wrong with a malformed result, for the log only.
    pub fn fault(&self) -> Option<ResultFault> {
        self.fault
    }

    /// The file to send after the text, as the worker named it.
    pub fn audio_file(&self) -> Option<&Path> {
        match &self.kind {
            ResultKind::Answer { audio, .. } => audio.as_ref().map(|audio| audio.name.as_path()),
            ResultKind::Failure { .. } | ResultKind::Progress { .. } | ResultKind::Speech => None,
        }
    }

    /// Whether the worker was still writing that file when it published.
    pub fn is_growing(&self) -> bool {
        matches!(&self.kind, ResultKind::Answer { audio: Some(audio), .. } if audio.is_growing)
    }

    /// The text message that opens the delivery: the answer, an error message, or a progress
    /// message. An error message does not mention audio.
    pub fn message(&self, task: &TaskId, audio: AudioPresence) -> String {
        let (before, between) = self.message_around(task, audio);
        [&before, self.field(Field::Text), &between, self.field(Field::Extras), "}"].concat()
    }

    /// The parts of [`TaskResult::message`] that are written for one client: what is before
    /// [`Field::Text`], and what is between that and [`Field::Extras`]. Behind those is only `}`.
    pub fn message_around(&self, task: &TaskId, audio: AudioPresence) -> (String, String) {
        let more = if self.is_final { "" } else { r#","final":false"# };
        let id = self.id.map(|id| format!(r#","result_id":{id}"#)).unwrap_or_default();
        let content = |status: &str, audio: AudioPresence| {
            let (audio_present, audio_type) = match audio {
                AudioPresence::Absent => (false, None),
                AudioPresence::Follows(media_type) => (true, media_type),
            };
            let audio_type = audio_type.map(|name| format!(r#","audio_type":"{name}""#));
            let audio_type = audio_type.unwrap_or_default();
            (
                format!(r#"{{"status":"{status}","task_id":"{task}","content":"#),
                format!(r#","audio_present":{audio_present}{id}{audio_type}{more}"#),
            )
        };
        match &self.kind {
            ResultKind::Answer { .. } | ResultKind::Speech => content("success", audio),
            ResultKind::Progress { .. } => content("progress", AudioPresence::Absent),
            ResultKind::Failure { .. } => {
                let between = format!(r#","task_id":"{task}"{id}{more}"#);
                (r#"{"status":"error","error":"#.into(), between)
            }
        }
    }

    fn from_fields(fields: ResultFields<'_>) -> Result<TaskResult, ResultFault> {
        let mut text = string_or_null(fields.text, "text")?;
        let mut extras = String::new();
        // `reply` and `content` are read only where there is no `text`. Otherwise `reply` is a
        // field like any other, and `content` is a name of the message itself.
        if text.is_none() {
            text = string_or_null(fields.reply, "reply")?;
            if text.is_none() {
                text = string_or_null(fields.content, "content")?;
            }
        } else if let Some(reply) = fields.reply {
            extras.push_str(r#","reply":"#);
            extras.push_str(reply);
        }
        let is_growing = bool_or_null(fields.audio_growing, "audio_growing")?.unwrap_or(false);
        let audio = match string_or_null(fields.audio_file, "audio_file")? {
            None | Some(r#""""#) => None,
            Some(json) => Some(AudioFile { name: path(json, "audio_file")?, is_growing }),
        };
        let status = status_kind(fields.status)?;
        let (has_error, error) = error_text(fields.error)?;
        let is_final = bool_or_null(fields.is_final, "final")?.unwrap_or(true);
        for (name, value) in fields.others {
            extras.extend([",", name, ":", value]);
        }
        let kind = match status {
            StatusKind::Success if !has_error => {
                ResultKind::Answer { content: text.unwrap_or(r#""""#).into(), audio }
            }
            StatusKind::Progress if !has_error => {
                ResultKind::Progress { content: text.unwrap_or(r#""""#).into() }
            }
            _ => {
                let text = text.filter(|json| *json != r#""""#).map(Box::from);
                ResultKind::Failure { error: error.or(text).unwrap_or_else(|| json_string(FAILED)) }
            }
        };
        let is_final = is_final && !matches!(kind, ResultKind::Progress { .. });
        Ok(TaskResult { kind, extras: extras.into(), is_final, fault: None, id: None })
    }
}

fn status_kind(json: Option<&str>) -> Result<StatusKind, ResultFault> {
    const SUCCESS: [&str; 4] = ["success", "ok", "completed", "done"];
    const PROGRESS: [&str; 5] = ["progress", "processing", "pending", "queued", "started"];
    let Some(json) = string_or_null(json, "status")? else { return Ok(StatusKind::Success) };
    let Ok(status) = serde_json::from_str::<String>(json) else { return Ok(StatusKind::Failure) };
    let is_one_of = |words: &[&str]| words.iter().any(|word| status.eq_ignore_ascii_case(word));
    Ok(match () {
        () if is_one_of(&SUCCESS) => StatusKind::Success,
        () if is_one_of(&PROGRESS) => StatusKind::Progress,
        () => StatusKind::Failure,
    })
}

/// Whether `error` reports a failure, and the text that it gives as JSON.
fn error_text(json: Option<&str>) -> Result<(bool, Option<Box<str>>), ResultFault> {
    match json {
        None | Some("null" | "false" | r#""""#) => Ok((false, None)),
        Some("true") => Ok((true, None)),
        Some(json) if json.starts_with('"') => Ok((true, Some(json.into()))),
        Some(json) if json.starts_with('{') => {
            // As exceptions of many libraries are written: {"code": …, "message": …}.
            let message = serde_json::from_str::<ErrorObject>(json).ok();
            let message = message.and_then(|object| object.message).map(RawValue::get);
            let message = message.filter(|json| json.starts_with('"') && *json != r#""""#);
            Ok((true, message.map(Box::from)))
        }
        Some(_) => Err(ResultFault::WrongType("error")),
    }
}

#[derive(serde::Deserialize)]
struct ErrorObject<'a> {
    #[serde(borrow)]
    message: Option<&'a RawValue>,
}

/// `{"status":"error","error":"…"}`, with the task where it is known. `error` is a constant of this
/// file, or describes a fault of an audio file.
pub fn error_message(error: &str, task: Option<&TaskId>) -> String {
    let error = json_string(error);
    match task {
        Some(task) => format!(r#"{{"status":"error","error":{error},"task_id":"{task}"}}"#),
        None => format!(r#"{{"status":"error","error":{error}}}"#),
    }
}

/// Announces the binary message that follows: chunk `chunk_id`, counted from 0, of `total_chunks`,
/// which is not known while the audio grows. `offset`: the bytes before it, for clients that need
/// them. `fields`: JSON text, a comma in front of each name, or nothing.
pub fn audio_chunk(
    task: &TaskId,
    chunk_id: u64,
    total_chunks: Option<u64>,
    offset: Option<u64>,
    fields: &str,
) -> String {
    let total = total_chunks.map_or_else(|| "null".to_owned(), |total| total.to_string());
    let offset = offset.map(|offset| format!(r#","offset":{offset}"#)).unwrap_or_default();
    format!(
        r#"{{"type":"audio_chunk","task_id":"{task}","chunk_id":{chunk_id},"total_chunks":{total}{offset}{fields}}}"#
    )
}

/// The file that a worker has completed, if that is what it published; it is no result then.
pub fn audio_end(payload: &[u8]) -> Option<PathBuf> {
    // Most publications are results, which need no parsing to see it.
    memchr::memmem::find(payload, b"audio_end")?;
    let json = ResultFields::read(payload)?.audio_end?;
    let is_name = json.starts_with('"') && json != r#""""#;
    is_name.then(|| path(json, "audio_end").ok()).flatten()
}

/// The same as a worker would publish it, in one line; `None` for a name that JSON cannot hold.
pub fn audio_end_line(name: &Path) -> Option<Vec<u8>> {
    let name = json_string(name.to_str()?);
    Some(format!("{{\"audio_end\":{name}}}\n").into_bytes())
}

/// The file that a worker was still writing when it published this result; `None` if there is none.
pub fn growing_file(payload: &[u8]) -> Option<PathBuf> {
    memchr::memmem::find(payload, b"audio_growing")?;
    let result = TaskResult::read(payload);
    result.audio_file().filter(|_| result.is_growing()).map(Path::to_path_buf)
}

/// The message behind the last chunk.
pub fn audio_complete(task: &TaskId) -> String {
    format!(r#"{{"type":"audio_complete","task_id":"{task}"}}"#)
}

/// The top level of a result, as JSON text borrowed from the payload. If a name occurs twice, the
/// last one counts, as in the JSON readers of workers and browsers.
#[derive(Default)]
struct ResultFields<'a> {
    text: Option<&'a str>,
    reply: Option<&'a str>,
    content: Option<&'a str>,
    audio_file: Option<&'a str>,
    audio_growing: Option<&'a str>,
    audio_end: Option<&'a str>,
    status: Option<&'a str>,
    error: Option<&'a str>,
    is_final: Option<&'a str>,
    others: Vec<(&'a str, &'a str)>,
}

impl<'a> Members<'a> for ResultFields<'a> {
    fn insert(&mut self, name: &'a str, value: &'a str) {
        let unescaped;
        let plain = if name.contains('\\') {
            unescaped = serde_json::from_str::<String>(name).unwrap_or_default();
            unescaped.as_str()
        } else {
            &name[1..name.len() - 1]
        };
        match plain {
            "text" => self.text = Some(value),
            "reply" => self.reply = Some(value),
            "content" => self.content = Some(value),
            "audio_file" => self.audio_file = Some(value),
            "audio_growing" => self.audio_growing = Some(value),
            "audio_end" => self.audio_end = Some(value),
            "status" => self.status = Some(value),
            "error" => self.error = Some(value),
            "final" => self.is_final = Some(value),
            own if OUR_NAMES.contains(&own) => {}
            _ => self.others.push((name, value)),
        }
    }
}

impl<'a> ResultFields<'a> {
    /// Reads what a worker published; `None` if it is not an object.
    fn read(payload: &'a [u8]) -> Option<ResultFields<'a>> {
        // Windows tools put a byte-order mark in front.
        let payload = payload.strip_prefix(b"\xef\xbb\xbf").unwrap_or(payload);
        let text = str::from_utf8(payload).ok();
        text.and_then(|text| read_members::<ResultFields>(text).ok())
            .or_else(|| ResultFields::read_leniently(payload))
    }

    /// Reads an object some of whose members are not JSON. Such a member becomes null if it is only
    /// passed on, and makes the result malformed if its name is known.
    fn read_leniently(payload: &'a [u8]) -> Option<ResultFields<'a>> {
        let mut fields = ResultFields::default();
        let (mut is_reply_bad, mut is_content_bad) = (false, false);
        for (name, value) in members(payload)? {
            // Without a name there is nothing to pass on.
            let Some(name) = json_text(name) else { continue };
            let known = fields.others.len();
            match json_text(value) {
                Some(value) => fields.insert(name, value),
                None => {
                    fields.insert(name, "null");
                    // The name is known unless it was added to the others.
                    if fields.others.len() == known {
                        match field_use(name) {
                            FieldUse::Read => return None,
                            FieldUse::Reply => is_reply_bad = true,
                            FieldUse::Content => is_content_bad = true,
                            FieldUse::None => {}
                        }
                    }
                }
            }
        }
        // The order in which the text is looked for.
        let is_given = |text: Option<&str>| text.is_some_and(|text| text != "null");
        let is_text_good =
            is_given(fields.text) || !is_reply_bad && (is_given(fields.reply) || !is_content_bad);
        is_text_good.then_some(fields)
    }
}

/// What a field with a name that is known here is for.
enum FieldUse {
    Read,
    /// Read where there is no `text`.
    Reply,
    /// Read where there is neither.
    Content,
    /// It is neither read nor passed on.
    None,
}

fn field_use(name: &str) -> FieldUse {
    match serde_json::from_str::<String>(name).as_deref() {
        Ok("reply") => FieldUse::Reply,
        Ok("content") => FieldUse::Content,
        Ok(
            "text" | "audio_file" | "audio_growing" | "audio_end" | "status" | "error" | "final",
        ) => FieldUse::Read,
        _ => FieldUse::None,
    }
}

/// JSON text; `None` if it is none.
pub(super) fn json_text(bytes: &[u8]) -> Option<&str> {
    let text = str::from_utf8(bytes).ok()?;
    serde_json::from_str::<&RawValue>(text).ok().map(RawValue::get)
}

/// JSON text of a string; `None` for null or an absent field.
fn string_or_null<'a>(
    json: Option<&'a str>,
    name: &'static str,
) -> Result<Option<&'a str>, ResultFault> {
    match json {
        None | Some("null") => Ok(None),
        Some(text) if text.starts_with('"') => Ok(Some(text)),
        Some(_) => Err(ResultFault::WrongType(name)),
    }
}

/// The value of a field that is `true`, `false`, null or absent.
fn bool_or_null(json: Option<&str>, name: &'static str) -> Result<Option<bool>, ResultFault> {
    match json {
        None | Some("null") => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(ResultFault::WrongType(name)),
    }
}

/// A file name is bytes. Half a surrogate pair becomes bytes that no file has as its name.
fn path(json: &str, name: &'static str) -> Result<PathBuf, ResultFault> {
    struct Bytes(Vec<u8>);
    impl<'de> Deserialize<'de> for Bytes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Unescaped;
            impl Visitor<'_> for Unescaped {
                type Value = Bytes;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a string")
                }

                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                    Ok(Bytes(bytes.to_vec()))
                }
            }
            deserializer.deserialize_bytes(Unescaped)
        }
    }
    let Bytes(bytes) = serde_json::from_str(json).map_err(|_| ResultFault::WrongType(name))?;
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// JSON text for a string.
fn json_string(text: &str) -> Box<str> {
    serde_json::to_string(text).expect("a string is always JSON").into()
}

fn usual_form(uuid: &Uuid) -> String {
    uuid.hyphenated().to_string()
}

/// `%xx` decoded once; `None` where an escape is broken or the outcome is not UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let (high, low) = (
                    char::from(rest.next()?).to_digit(16)?,
                    char::from(rest.next()?).to_digit(16)?,
                );
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn task() -> TaskId {
        TaskId::read(ID).unwrap()
    }

    fn told(payload: &str) -> String {
        TaskResult::read(payload.as_bytes()).message(&task(), AudioPresence::Absent)
    }

    fn invalid() -> String {
        format!(r#"{{"status":"error","error":"Invalid response format","task_id":"{ID}"}}"#)
    }

    #[test]
    fn growing_files_and_their_ends_are_read() {
        let file = |payload: &str| growing_file(payload.as_bytes());
        let end = |payload: &str| audio_end(payload.as_bytes());
        let named = || Some(PathBuf::from("a b.wav"));
        let growing = r#"{"text":"x","audio_file":"a b.wav","audio_growing":true,"y":1}"#;
        assert_eq!((file(growing), end(growing)), (named(), None));
        assert!(told(growing).ends_with(r#""audio_present":false,"y":1}"#), "{}", told(growing));
        for payload in [
            r#"{"audio_file":"a b.wav","audio_growing":false}"#,
            r#"{"audio_file":"a b.wav","audio_growing":null}"#,
            r#"{"audio_file":"a b.wav"}"#,
            r#"{"audio_file":"","audio_growing":true}"#,
            r#"{"text":"audio_growing"}"#,
        ] {
            assert_eq!(file(payload), None, "{payload}");
        }
        assert_eq!(told(r#"{"audio_file":"a","audio_growing":"yes"}"#), invalid());
        for payload in [r#"{"audio_end":"a b.wav"}"#, r#"{"x":NaN,"audio_end":"a\u0020b.wav"}"#] {
            assert_eq!((end(payload), file(payload)), (named(), None), "{payload}");
        }
        let line = audio_end_line(Path::new("a \"\n\\b.wav")).unwrap();
        assert_eq!(audio_end(&line), Some("a \"\n\\b.wav".into()));
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        for payload in [
            r#"{"text":"audio_end"}"#,
            r#"{"text":"x","audio_end":null}"#,
            r#"{"text":"x","audio_end":""}"#,
            r#"{"text":"x","audio_end":5}"#,
            "audio_end",
        ] {
            assert_eq!(end(payload), None, "{payload}");
        }
        assert!(!told(r#"{"text":"x","audio_end":null}"#).contains("audio_end"));
    }

    #[test]
    fn answer_message_is_as_the_contract_says() {
        let expected = format!(
            r#"{{"status":"success","task_id":"{ID}","content":"hello","audio_present":false}}"#
        );
        assert_eq!(told(r#"{"text":"hello"}"#), expected);
        assert_eq!(
            told(
                r#" { "text" : "hello" , "audio_file" : null, "status":"SUCCESS", "error":false, "final":true } "#
            ),
            expected
        );
        let result = TaskResult::read(br#"{"text":"hello","audio_file":"a b.wav"}"#);
        assert_eq!(result.audio_file(), Some(Path::new("a b.wav")));
        assert_eq!(
            result.message(&task(), AudioPresence::Follows(None)),
            expected.replace("false", "true")
        );
        assert!(result.is_final() && !result.is_failure());
    }

    #[test]
    fn number_and_audio_type_follow_what_old_clients_know() {
        let about = format!(r#""task_id":"{ID}""#);
        let message = |payload: &str, audio| {
            TaskResult::read(payload.as_bytes()).numbered(Some(7)).message(&task(), audio)
        };
        let payload = r#"{"text":"t","final":false,"n":1}"#;
        assert_eq!(
            message(payload, AudioPresence::Absent),
            format!(
                r#"{{"status":"success",{about},"content":"t","audio_present":false,"result_id":7,"final":false,"n":1}}"#
            )
        );
        assert_eq!(
            message(payload, AudioPresence::Follows(Some("audio/wav"))),
            format!(
                r#"{{"status":"success",{about},"content":"t","audio_present":true,"result_id":7,"audio_type":"audio/wav","final":false,"n":1}}"#
            )
        );
        assert_eq!(
            message(payload, AudioPresence::Follows(None)),
            format!(
                r#"{{"status":"success",{about},"content":"t","audio_present":true,"result_id":7,"final":false,"n":1}}"#
            )
        );
        assert_eq!(
            message(r#"{"error":"x","n":1}"#, AudioPresence::Absent),
            format!(r#"{{"status":"error","error":"x",{about},"result_id":7,"n":1}}"#)
        );
    }

    #[test]
    fn content_is_text_or_reply_or_content() {
        for (payload, content) in [
            (r#"{"text":"a","reply":"b","content":"c"}"#, "a"),
            (r#"{"text":null,"reply":"b","content":"c"}"#, "b"),
            (r#"{"reply":"b"}"#, "b"),
            (r#"{"reply":null,"content":"c"}"#, "c"),
            (r#"{"content":"c"}"#, "c"),
            (r#"{"text":"","reply":"b"}"#, ""),
            (r#"{"text":null,"content":null}"#, ""),
            ("{}", ""),
        ] {
            let message: Value = serde_json::from_str(&told(payload)).unwrap();
            assert_eq!(message["content"], content, "{payload}");
            assert_eq!(message["status"], "success", "{payload}");
        }
    }

    #[test]
    fn reply_is_passed_on_unless_it_is_the_content() {
        assert!(
            told(r#"{"text":"a","reply":{"b":1}}"#)
                .ends_with(r#""audio_present":false,"reply":{"b":1}}"#)
        );
        assert!(told(r#"{"reply":"b"}"#).ends_with(r#""content":"b","audio_present":false}"#));
        assert!(
            told(r#"{"text":"a","content":"c"}"#)
                .ends_with(r#""content":"a","audio_present":false}"#)
        );
    }

    #[test]
    fn text_is_passed_on_unchanged() {
        for text in [
            r#""\u3053\u3093""#,
            r#""こん🎤""#,
            r#""\ud83c\udfa4""#,
            r#""\ud800 half""#,
            r#""a\"b\\c\n\u0000""#,
        ] {
            assert!(
                told(&format!(r#"{{"text":{text}}}"#)).contains(&format!(r#""content":{text},"#)),
                "{text}"
            );
        }
    }

    #[test]
    fn other_fields_are_passed_on_unchanged_and_in_order() {
        let payload = r#"{"zeta":1e400,"alpha":12345678901234567890.0,"text":"t","n":-0.0,"big":123456789012345678901234567890,
            "deep":{"b":[1, {"a":null}],"a":1.10},"emotion":"\u559c","half":"\udfff","h\udfff":1,"n":2,"transcript":["x"]}"#;
        let message = told(payload);
        assert!(message.ends_with(
            r#""audio_present":false,"zeta":1e400,"alpha":12345678901234567890.0,"n":-0.0,"big":123456789012345678901234567890,"deep":{"b":[1, {"a":null}],"a":1.10},"emotion":"\u559c","half":"\udfff","h\udfff":1,"n":2,"transcript":["x"]}"#
        ), "{message}");
    }

    #[test]
    fn deep_nesting_loses_nothing() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(
            told(&format!(r#"{{"text":"t","deep":{deep}}}"#))
                .ends_with(&format!(r#","deep":{deep}}}"#))
        );
    }

    #[test]
    fn names_of_the_message_are_not_passed_on() {
        let payload = r#"{"text":"t","task_id":"x","audio_present":true,"type":"y","chunk_id":5,"total_chunks":[],"content":7,"result_id":9,"audio_type":"x",
            "t\u0061sk_id":"z","final":false,"audio_file":"/srv/secret.wav","status":"success","error":null,"e":1}"#;
        assert_eq!(
            told(payload),
            format!(
                r#"{{"status":"success","task_id":"{ID}","content":"t","audio_present":false,"final":false,"e":1}}"#
            )
        );
        assert!(told(r#"{"t\u0065xt":"t"}"#).contains(r#""content":"t""#));
    }

    #[test]
    fn failures_have_the_workers_text() {
        for (payload, error) in [
            (r#"{"error":"no GPU"}"#, "no GPU"),
            (r#"{"error":"no GPU","text":"sorry"}"#, "no GPU"),
            (r#"{"error":true,"text":"sorry"}"#, "sorry"),
            (r#"{"error":true,"reply":"sorry"}"#, "sorry"),
            (r#"{"error":true}"#, FAILED),
            (r#"{"error":true,"text":""}"#, FAILED),
            (r#"{"status":"failed"}"#, FAILED),
            (r#"{"status":"","text":"sorry"}"#, "sorry"),
            (r#"{"status":"error","error":null}"#, FAILED),
            (r#"{"status":"error","error":"","text":"sorry"}"#, "sorry"),
            (r#"{"status":"success","error":"no GPU"}"#, "no GPU"),
            (r#"{"status":"\ud800","text":"sorry"}"#, "sorry"),
        ] {
            let result = TaskResult::read(payload.as_bytes());
            assert!(
                result.is_failure() && result.is_final() && result.fault().is_none(),
                "{payload}"
            );
            let message: Value =
                serde_json::from_str(&result.message(&task(), AudioPresence::Follows(None)))
                    .unwrap();
            assert_eq!(
                message,
                json!({"status": "error", "error": error, "task_id": ID}),
                "{payload}"
            );
        }
    }

    #[test]
    fn failures_have_no_audio_and_pass_fields_on() {
        let result = TaskResult::read(
            br#"{"error":"x","audio_file":"a.wav","stats":{"s":1.50},"chunk_id":1}"#,
        );
        assert!(result.is_final());
        assert_eq!(result.audio_file(), None);
        let expected =
            format!(r#"{{"status":"error","error":"x","task_id":"{ID}","stats":{{"s":1.50}}}}"#);
        assert_eq!(result.message(&task(), AudioPresence::Absent), expected);
    }

    #[test]
    fn failure_with_final_false_does_not_end_the_task() {
        let result = TaskResult::read(br#"{"error":"x","final":false}"#);
        assert!(result.is_failure() && !result.is_final());
        let expected =
            format!(r#"{{"status":"error","error":"x","task_id":"{ID}","final":false}}"#);
        assert_eq!(result.message(&task(), AudioPresence::Absent), expected);
    }

    #[test]
    fn status_words_of_other_libraries_are_understood() {
        for status in ["success", "ok", "OK", "Completed", "done"] {
            let told = told(&format!(r#"{{"status":"{status}","text":"t"}}"#));
            assert!(told.starts_with(r#"{"status":"success""#), "{told}");
        }
        for status in ["progress", "Processing", "PENDING", "queued", "started"] {
            let payload = format!(r#"{{"status":"{status}","text":"t","percent":5}}"#);
            let result = TaskResult::read(payload.as_bytes());
            assert!(result.is_progress() && !result.is_final() && !result.is_failure());
            assert!(TaskResult::is_progress_message(payload.as_bytes()));
            assert_eq!(
                told(&payload),
                format!(
                    r#"{{"status":"progress","task_id":"{ID}","content":"t","audio_present":false,"final":false,"percent":5}}"#
                )
            );
        }
        for (payload, is_progress) in [
            (r#"{"st\u0061tus":"queued"}"#, true),
            (r#"{"status":"queued","final":true,"audio_file":"a.wav"}"#, true),
            (r#"{"status":"queued","error":"x"}"#, false),
            (r#"{"status":null,"text":"queued"}"#, false),
            (r#"{"text":"the status is processing"}"#, false),
        ] {
            assert_eq!(
                TaskResult::is_progress_message(payload.as_bytes()),
                is_progress,
                "{payload}"
            );
        }
        assert!(told(r#"{"status":"waiting","text":"t"}"#).contains(r#""error":"t""#));
    }

    #[test]
    fn error_objects_keep_their_message() {
        for (payload, error) in [
            (r#"{"error":{"code":7,"message":"no GPU"}}"#, "no GPU"),
            (r#"{"error":{"message":"no GPU"},"text":"sorry"}"#, "no GPU"),
            (r#"{"error":{"message":""},"text":"sorry"}"#, "sorry"),
            (r#"{"error":{"message":5},"text":"sorry"}"#, "sorry"),
            (r#"{"error":{"why":"x"}}"#, FAILED),
            (r#"{"error":{}}"#, FAILED),
        ] {
            let result = TaskResult::read(payload.as_bytes());
            assert!(result.is_failure() && result.fault().is_none(), "{payload}");
            let message: Value =
                serde_json::from_str(&result.message(&task(), AudioPresence::Follows(None)))
                    .unwrap();
            assert_eq!(message["error"], error, "{payload}");
        }
    }

    #[test]
    fn bad_values_cost_their_field_and_not_the_text() {
        for value in [
            &b"NaN"[..],
            b"-Infinity",
            b"{\"deep\":[1,Infinity,{\"a\":\"},]\"}]}",
            b"\"\xff\xfe\"",
            b"01",
            b"undefined",
            b"\"\\x\"",
            b"\"a\nb\"",
        ] {
            let mut payload = b"{ \"text\" : \"t\" , \"x\": ".to_vec();
            payload.extend(value);
            payload.extend(b" , \"y\":[1, 2],\"audio_present\":NaN}");
            let expected = format!(
                r#"{{"status":"success","task_id":"{ID}","content":"t","audio_present":false,"x":null,"y":[1, 2]}}"#
            );
            let shown = payload.escape_ascii().to_string();
            assert_eq!(
                TaskResult::read(&payload).message(&task(), AudioPresence::Absent),
                expected,
                "{shown}"
            );
        }
        // A name that is no text has no field.
        let told = TaskResult::read(b"{\"\xff\":1,\"text\":\"t\"}")
            .message(&task(), AudioPresence::Absent);
        assert!(told.ends_with(r#""content":"t","audio_present":false}"#), "{told}");
        // What is read only where there is no text costs nothing beside one.
        for (payload, end) in [
            (r#"{"text":"t","reply":NaN}"#, r#","reply":null}"#),
            (r#"{"reply":[NaN],"text":"t","content":Infinity}"#, r#","reply":null}"#),
            (r#"{"content":NaN,"text":"t"}"#, "}"),
            (r#"{"content":NaN,"reply":"t"}"#, "}"),
        ] {
            let told = TaskResult::read(payload.as_bytes());
            let told = told.message(&task(), AudioPresence::Absent);
            let expected = format!(r#""content":"t","audio_present":false{end}"#);
            assert!(told.ends_with(&expected), "{told}");
        }
        // What is read stays strict.
        for payload in [
            &b"{\"text\":\"\xff\"}"[..],
            b"{\"final\":NaN,\"text\":\"t\"}",
            b"{\"content\":NaN}",
            b"{\"reply\":NaN,\"text\":null,\"content\":\"t\"}",
            b"{\"audio_file\":NaN,\"text\":\"t\"}",
        ] {
            assert_eq!(TaskResult::read(payload).fault(), Some(ResultFault::NotAnObject));
        }
    }

    #[test]
    fn byte_order_mark_is_skipped() {
        let result = TaskResult::read(b"\xef\xbb\xbf{\"text\":\"t\"}");
        assert!(result.message(&task(), AudioPresence::Absent).contains(r#""content":"t""#));
    }

    #[test]
    fn malformed_result_is_not_final_when_others_follow() {
        let result = TaskResult::read(b"x");
        assert!(result.is_final());
        let expected = invalid().replace('}', r#","final":false}"#);
        assert_eq!(result.continued().message(&task(), AudioPresence::Absent), expected);
    }

    #[test]
    fn malformed_results_give_one_error_without_details() {
        for payload in [
            "",
            " ",
            "x",
            "nul",
            "null",
            "true",
            "1",
            r#""text""#,
            "[]",
            r#"[{"text":"t"}]"#,
            "{",
            r#"{"text":"t""#,
            r#"{"text":"t"}}"#,
            r#"{"text":"t",}"#,
            r#"{text:"t"}"#,
            r#"{'text':'t'}"#,
            r#"{"text":NaN}"#,
            r#"{"text":"\x"}"#,
            r#"{"x":[}"#,
            r#"{"x":]1}"#,
            r#"{"x":,"text":"t"}"#,
            r#"{"x":NaN,}"#,
            r#"{"x":NaN "text":"t"}"#,
            r#"{"x" NaN}"#,
            r#"{x:NaN}"#,
            r#"{"x":NaN"#,
            r#"{"final":NaN}"#,
            "{\"text\":\"a\nb\"}",
            r#"{"text":5}"#,
            r#"{"text":["t"]}"#,
            r#"{"text":false}"#,
            r#"{"reply":5}"#,
            r#"{"content":{}}"#,
            r#"{"audio_file":5}"#,
            r#"{"audio_file":false}"#,
            r#"{"audio_file":["a"]}"#,
            r#"{"status":0}"#,
            r#"{"status":true}"#,
            r#"{"error":1}"#,
            r#"{"error":[]}"#,
            r#"{"final":"false"}"#,
            r#"{"final":0}"#,
            r#"{"text":5,"error":"x"}"#,
            r#"{"error":"x","audio_file":5}"#,
        ] {
            let result = TaskResult::read(payload.as_bytes());
            assert_eq!(
                result.message(&task(), AudioPresence::Follows(None)),
                invalid(),
                "{payload}"
            );
            assert!(
                result.is_final() && result.is_failure() && result.fault().is_some(),
                "{payload}"
            );
        }
        assert_eq!(
            TaskResult::read(b"{\"text\":\"\xff\"}").message(&task(), AudioPresence::Follows(None)),
            invalid()
        );
    }

    #[test]
    fn of_equal_names_the_last_one_counts() {
        assert!(
            told(r#"{"text":5,"text":"t","final":true,"final":false}"#)
                .contains(r#""content":"t","audio_present":false,"final":false}"#)
        );
    }

    #[test]
    fn audio_file_names_are_bytes() {
        let named = |json: &str| {
            TaskResult::read(format!(r#"{{"audio_file":{json}}}"#).as_bytes())
                .audio_file()
                .map(Path::to_path_buf)
        };
        assert_eq!(named(r#""""#), None);
        assert_eq!(named("null"), None);
        assert_eq!(named(r#""\u3042/\"b\".wav""#), Some("あ/\"b\".wav".into()));
        assert!(named(r#""a\ud800""#).is_some_and(|path| path.to_str().is_none()));
    }

    #[test]
    fn messages_are_json_and_echo_the_id_as_written() {
        let odd = TaskId::read("%7B0F8FAD5B-D9CB-469F-A165-70867728950E%7D").unwrap();
        assert_eq!(odd.to_string(), "{0F8FAD5B-D9CB-469F-A165-70867728950E}");
        for (message, expected) in [
            (
                audio_chunk(&odd, 0, Some(5), None, ""),
                json!({"type": "audio_chunk", "task_id": odd.to_string(), "chunk_id": 0, "total_chunks": 5}),
            ),
            (audio_complete(&odd), json!({"type": "audio_complete", "task_id": odd.to_string()})),
            (
                error_message(TIMED_OUT, None),
                json!({"status": "error", "error": "Processing timeout"}),
            ),
            (
                error_message("a \"b\"", Some(&odd)),
                json!({"status": "error", "error": "a \"b\"", "task_id": odd.to_string()}),
            ),
        ] {
            assert_eq!(serde_json::from_str::<Value>(&message).unwrap(), expected);
        }
        assert_eq!(
            audio_chunk(&task(), 4, Some(5), None, ""),
            format!(r#"{{"type":"audio_chunk","task_id":"{ID}","chunk_id":4,"total_chunks":5}}"#)
        );
        assert_eq!(
            audio_chunk(&task(), 4, None, Some(40), ""),
            format!(
                r#"{{"type":"audio_chunk","task_id":"{ID}","chunk_id":4,"total_chunks":null,"offset":40}}"#
            )
        );
        assert_eq!(
            audio_complete(&task()),
            format!(r#"{{"type":"audio_complete","task_id":"{ID}"}}"#)
        );
    }

    #[test]
    fn task_ids_are_compared_as_uuids() {
        let uuid = task().uuid();
        assert_eq!(task().written(), None);
        for form in [
            "0F8FAD5B-D9CB-469F-A165-70867728950E",
            "0f8fad5bd9cb469fa16570867728950e",
            "{0f8fad5b-d9cb-469f-a165-70867728950e}",
            "urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e",
            "0f8fad5b%2Dd9cb%2d469f-a165-70867728950e",
        ] {
            assert_eq!(TaskId::read(form).map(|id| id.uuid()), Some(uuid), "{form}");
        }
        for form in [
            "",
            "x",
            "0f8fad5b",
            "0f8fad5b%252Dd9cb-469f-a165-70867728950e",
            "0f8fad5b%2",
            "%zz",
            "%ff",
            "%+1",
            "0f8fad5b-d9cb-469f-a165-70867728950e ",
            "0f8fad5b-d9cb-469f-a165-70867728950g",
        ] {
            assert_eq!(TaskId::read(form), None, "{form}");
        }
    }
}
