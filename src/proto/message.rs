//! Results in, JSON out: what an AI worker publishes for a task, and everything the gateway says to the client that waits for it.
//!
//! The surprising thing: a result is taken apart no further than the contract needs. Fields that are passed on, and the answer's
//! text itself, keep the very characters the worker wrote (`1e400`, `12345678901234567890.0`, `"\ud800"` reach the client
//! untouched), because decoding them into numbers and strings of ours could only change them. So reading never fails: what is no
//! JSON object, or has a known field of the wrong type, becomes the result that says so to the client.
//!
//! Text of a worker's own `error` field is delivered, for that is what it is for. Nothing else that describes a fault (a parser's
//! complaint, a path on this server) ever enters a message.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Told to a client whose task id is no UUID; close 4004 follows.
pub const BAD_TASK_ID: &str = "Invalid task_id format";
/// Told to a client whose `from_chunk` is no number; close 4004 follows.
pub const BAD_FROM_CHUNK: &str = "Invalid from_chunk format";
/// Told to a client in place of a result that is no JSON object or has a known field of the wrong type.
const BAD_RESULT: &str = "Invalid response format";
/// Told to a client that waited its whole `timeout`; close 4008 follows.
pub const TIMED_OUT: &str = "Processing timeout";
/// Told to waiting clients when Redis was away for longer than its grace; close 1013 follows.
pub const REDIS_AWAY: &str = "Redis connection not available";
/// The text of a failure that a worker reported without any words.
const FAILED: &str = "Processing failed";

/// Names of the messages' own fields: a worker's field of that name is not passed on.
const OUR_NAMES: [&str; 9] = [
    "status",
    "error",
    "task_id",
    "content",
    "audio_present",
    "final",
    "type",
    "chunk_id",
    "total_chunks",
];

/// Which task a client waits for: compared as a UUID, spoken as the client wrote it. That is letters, digits and `{}-:`, so that
/// between two quotes it is a JSON string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskId {
    uuid: Uuid,
    /// Only where it is not the usual form: lower case with hyphens. Behind two pointers, for most clients write that.
    written: Option<Box<Box<str>>>,
}

impl TaskId {
    /// Reads a path segment: `%`-escapes are decoded once, then any form that the `uuid` crate reads will do (hyphenated, simple,
    /// braced, URN; either case). `None` for anything else.
    pub fn read(segment: &str) -> Option<TaskId> {
        let decoded = percent_decoded(segment)?;
        let uuid = Uuid::try_parse(&decoded).ok()?;
        Some(TaskId {
            uuid,
            written: (usual_form(&uuid) != decoded).then(|| Box::new(decoded.into())),
        })
    }

    /// What tasks are compared by.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The client's own spelling, where it differs from lower case with hyphens.
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

/// One result of a task, ready to be told to any number of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskResult {
    kind: Kind,
    /// `,"name":value` for every field that is passed on, in the worker's order and spelling.
    extras: Box<str>,
    is_final: bool,
    fault: Option<&'static str>,
}

/// JSON strings here are JSON text, quotes and escapes included.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Answer { content: Box<str>, audio: Option<PathBuf> },
    Failure { error: Box<str> },
}

impl TaskResult {
    /// Reads what a worker published. Never fails: a malformed result is the failure `Invalid response format`, see
    /// [`TaskResult::fault`].
    pub fn read(payload: &[u8]) -> TaskResult {
        let fields = match std::str::from_utf8(payload) {
            Err(_) => Err("not UTF-8"),
            Ok(text) => serde_json::from_str::<Fields>(text).map_err(|_| "not a JSON object"),
        };
        fields.and_then(TaskResult::from_fields).unwrap_or_else(|fault| TaskResult {
            kind: Kind::Failure { error: json_string(BAD_RESULT) },
            extras: "".into(),
            is_final: true,
            fault: Some(fault),
        })
    }

    /// Whether the task ends with this result. Failures always end it.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// Memory that it takes, roughly.
    pub fn bytes(&self) -> usize {
        let words = match &self.kind {
            Kind::Answer { content, .. } => content.len(),
            Kind::Failure { error } => error.len(),
        };
        size_of::<Self>() + words + self.extras.len()
    }

    /// Whether the worker reported a failure, or the result was malformed.
    pub fn is_failure(&self) -> bool {
        matches!(self.kind, Kind::Failure { .. })
    }

    /// What was wrong with a malformed result, for the log only.
    pub fn fault(&self) -> Option<&'static str> {
        self.fault
    }

    /// The file to send after the text, as the worker named it. Never for a failure.
    pub fn audio_file(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Answer { audio, .. } => audio.as_deref(),
            Kind::Failure { .. } => None,
        }
    }

    /// The text message that opens the delivery: the answer, or the error message of a failure. `audio_present` is true once the
    /// audio file is open; a failure does not mention it.
    pub fn message(&self, task: &TaskId, audio_present: bool) -> String {
        let extras = &self.extras;
        match &self.kind {
            Kind::Answer { content, .. } => {
                let more = if self.is_final { "" } else { r#","final":false"# };
                format!(
                    r#"{{"status":"success","task_id":"{task}","content":{content},"audio_present":{audio_present}{more}{extras}}}"#
                )
            }
            Kind::Failure { error } => {
                format!(r#"{{"status":"error","error":{error},"task_id":"{task}"{extras}}}"#)
            }
        }
    }

    fn from_fields(fields: Fields<'_>) -> Result<TaskResult, &'static str> {
        let mut text = string_or_null(fields.text, "`text` is not a string")?;
        let mut extras = String::new();
        // `reply` and `content` are read only where there is no `text`. Otherwise `reply` is a field like any other, and `content`
        // is a name of ours.
        if text.is_none() {
            text = string_or_null(fields.reply, "`reply` is not a string")?;
            if text.is_none() {
                text = string_or_null(fields.content, "`content` is not a string")?;
            }
        } else if let Some(reply) = fields.reply {
            extras.push_str(r#","reply":"#);
            extras.push_str(reply);
        }
        let audio = match string_or_null(fields.audio_file, "`audio_file` is not a string")? {
            None | Some(r#""""#) => None,
            Some(json) => Some(path(json)?),
        };
        let is_success = match fields.status {
            None => true,
            Some(json) if json.starts_with('"') => serde_json::from_str::<String>(json)
                .is_ok_and(|status| status.eq_ignore_ascii_case("success")),
            Some(_) => return Err("`status` is not a string"),
        };
        let (has_error, error) = match fields.error {
            None | Some("null" | "false" | r#""""#) => (false, None),
            Some("true") => (true, None),
            Some(json) if json.starts_with('"') => (true, Some(json)),
            Some(_) => return Err("`error` is neither a string nor a bool"),
        };
        let is_final = match fields.is_final {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => return Err("`final` is not a bool"),
        };
        for (name, value) in fields.others {
            extras.extend([",", name, ":", value]);
        }
        let kind = if is_success && !has_error {
            Kind::Answer { content: text.unwrap_or(r#""""#).into(), audio }
        } else {
            let error = error.or(text.filter(|json| *json != r#""""#));
            Kind::Failure { error: error.map_or_else(|| json_string(FAILED), Box::from) }
        };
        let is_final = is_final || matches!(kind, Kind::Failure { .. });
        Ok(TaskResult { kind, extras: extras.into(), is_final, fault: None })
    }
}

/// `{"status":"error","error":"…"}`, with the task where it is known. `error` is one of ours: a constant of this file or an audio
/// fault's words.
pub fn error_message(error: &str, task: Option<&TaskId>) -> String {
    let error = json_string(error);
    match task {
        Some(task) => format!(r#"{{"status":"error","error":{error},"task_id":"{task}"}}"#),
        None => format!(r#"{{"status":"error","error":{error}}}"#),
    }
}

/// Announces the binary message that follows: chunk `chunk_id`, counted from 0, of `total_chunks`.
pub fn audio_chunk(task: &TaskId, chunk_id: u64, offset: u64, total_chunks: Option<u64>) -> String {
    let Some(total_chunks) = total_chunks else {
        return format!(
            r#"{{"type":"audio_chunk","task_id":"{task}","chunk_id":{chunk_id},"total_chunks":null,"offset":{offset}}}"#
        );
    };
    format!(
        r#"{{"type":"audio_chunk","task_id":"{task}","chunk_id":{chunk_id},"total_chunks":{total_chunks}}}"#
    )
}

/// Says that the last chunk is out.
pub fn audio_complete(task: &TaskId) -> String {
    format!(r#"{{"type":"audio_complete","task_id":"{task}"}}"#)
}

/// The top level of a result as JSON text, piece by piece, borrowed from the payload. Of a name given twice the last one counts, as
/// in every JSON reader that workers and browsers use.
#[derive(Default)]
struct Fields<'a> {
    text: Option<&'a str>,
    reply: Option<&'a str>,
    content: Option<&'a str>,
    audio_file: Option<&'a str>,
    status: Option<&'a str>,
    error: Option<&'a str>,
    is_final: Option<&'a str>,
    others: Vec<(&'a str, &'a str)>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                // Names are taken raw too: one that holds half a surrogate pair is no string of Rust's, and still passes.
                while let Some(name) = map.next_key::<&RawValue>()? {
                    let (name, value) = (name.get(), map.next_value::<&RawValue>()?.get());
                    let unescaped;
                    let plain = if name.contains('\\') {
                        unescaped = serde_json::from_str::<String>(name).unwrap_or_default();
                        unescaped.as_str()
                    } else {
                        &name[1..name.len() - 1]
                    };
                    match plain {
                        "text" => fields.text = Some(value),
                        "reply" => fields.reply = Some(value),
                        "content" => fields.content = Some(value),
                        "audio_file" => fields.audio_file = Some(value),
                        "status" => fields.status = Some(value),
                        "error" => fields.error = Some(value),
                        "final" => fields.is_final = Some(value),
                        ours if OUR_NAMES.contains(&ours) => {}
                        _ => fields.others.push((name, value)),
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// JSON text of a string, `None` for null or an absent field.
fn string_or_null<'a>(
    json: Option<&'a str>,
    fault: &'static str,
) -> Result<Option<&'a str>, &'static str> {
    match json {
        None | Some("null") => Ok(None),
        Some(text) if text.starts_with('"') => Ok(Some(text)),
        Some(_) => Err(fault),
    }
}

/// A file name is bytes. Half a surrogate pair becomes bytes that no file is called by.
fn path(json: &str) -> Result<PathBuf, &'static str> {
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
    let Bytes(bytes) = serde_json::from_str(json).map_err(|_| "`audio_file` is not a string")?;
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// JSON text for a string of ours.
fn json_string(text: &str) -> Box<str> {
    serde_json::to_string(text).expect("a string is always JSON").into()
}

fn usual_form(uuid: &Uuid) -> String {
    uuid.hyphenated().to_string()
}

/// `%xx` decoded once; `None` where an escape is broken or the outcome is not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
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
        TaskResult::read(payload.as_bytes()).message(&task(), false)
    }

    fn invalid() -> String {
        format!(r#"{{"status":"error","error":"Invalid response format","task_id":"{ID}"}}"#)
    }

    #[test]
    fn an_answer_is_told_as_the_contract_writes_it() {
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
        assert_eq!(result.message(&task(), true), expected.replace("false", "true"));
        assert!(result.is_final() && !result.is_failure());
    }

    #[test]
    fn content_comes_from_text_then_reply_then_content() {
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
    fn reply_is_passed_on_where_it_is_not_read() {
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
    fn text_keeps_every_character() {
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
    fn other_fields_go_through_unchanged_and_in_order() {
        let payload = r#"{"zeta":1e400,"alpha":12345678901234567890.0,"text":"t","n":-0.0,"big":123456789012345678901234567890,
            "deep":{"b":[1, {"a":null}],"a":1.10},"emotion":"\u559c","half":"\udfff","h\udfff":1,"n":2,"transcript":["x"]}"#;
        let message = told(payload);
        assert!(message.ends_with(
            r#""audio_present":false,"zeta":1e400,"alpha":12345678901234567890.0,"n":-0.0,"big":123456789012345678901234567890,"deep":{"b":[1, {"a":null}],"a":1.10},"emotion":"\u559c","half":"\udfff","h\udfff":1,"n":2,"transcript":["x"]}"#
        ), "{message}");
    }

    #[test]
    fn depth_is_no_reason_to_lose_a_result() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(
            told(&format!(r#"{{"text":"t","deep":{deep}}}"#))
                .ends_with(&format!(r#","deep":{deep}}}"#))
        );
    }

    #[test]
    fn our_names_are_ours_however_they_are_spelled() {
        let payload = r#"{"text":"t","task_id":"x","audio_present":true,"type":"y","chunk_id":5,"total_chunks":[],"content":7,
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
    fn failures_carry_the_workers_words() {
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
            let message: Value = serde_json::from_str(&result.message(&task(), true)).unwrap();
            assert_eq!(
                message,
                json!({"status": "error", "error": error, "task_id": ID}),
                "{payload}"
            );
        }
    }

    #[test]
    fn failures_are_final_have_no_audio_and_pass_fields_on() {
        let result = TaskResult::read(
            br#"{"error":"x","final":false,"audio_file":"a.wav","stats":{"s":1.50},"chunk_id":1}"#,
        );
        assert!(result.is_final());
        assert_eq!(result.audio_file(), None);
        let expected =
            format!(r#"{{"status":"error","error":"x","task_id":"{ID}","stats":{{"s":1.50}}}}"#);
        assert_eq!(result.message(&task(), false), expected);
    }

    #[test]
    fn malformed_results_are_told_so_and_no_more() {
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
            r#"{"x":NaN}"#,
            r#"{"x":Infinity}"#,
            r#"{"x":01}"#,
            r#"{"x":"\x"}"#,
            "{\"text\":\"a\nb\"}",
            r#"{"text":5}"#,
            r#"{"text":["t"]}"#,
            r#"{"text":false}"#,
            r#"{"reply":5}"#,
            r#"{"content":{}}"#,
            r#"{"audio_file":5}"#,
            r#"{"audio_file":false}"#,
            r#"{"audio_file":["a"]}"#,
            r#"{"status":null}"#,
            r#"{"status":0}"#,
            r#"{"status":true}"#,
            r#"{"error":1}"#,
            r#"{"error":{"why":"x"}}"#,
            r#"{"error":[]}"#,
            r#"{"final":null}"#,
            r#"{"final":"false"}"#,
            r#"{"final":0}"#,
            r#"{"text":5,"error":"x"}"#,
            r#"{"error":"x","audio_file":5}"#,
        ] {
            let result = TaskResult::read(payload.as_bytes());
            assert_eq!(result.message(&task(), true), invalid(), "{payload}");
            assert!(
                result.is_final() && result.is_failure() && result.fault().is_some(),
                "{payload}"
            );
        }
        assert_eq!(TaskResult::read(b"{\"text\":\"\xff\"}").message(&task(), true), invalid());
        assert_eq!(TaskResult::read(b"\xef\xbb\xbf{}").message(&task(), true), invalid());
    }

    #[test]
    fn of_a_name_given_twice_the_last_counts() {
        assert!(
            told(r#"{"text":5,"text":"t","final":true,"final":false}"#)
                .contains(r#""content":"t","audio_present":false,"final":false}"#)
        );
    }

    #[test]
    fn audio_files_are_named_in_bytes() {
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
    fn every_message_is_json_and_echoes_the_id_as_written() {
        let odd = TaskId::read("%7B0F8FAD5B-D9CB-469F-A165-70867728950E%7D").unwrap();
        assert_eq!(odd.to_string(), "{0F8FAD5B-D9CB-469F-A165-70867728950E}");
        for (message, expected) in [
            (
                audio_chunk(&odd, 0, 0, Some(5)),
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
            audio_chunk(&task(), 4, 40, Some(5)),
            format!(r#"{{"type":"audio_chunk","task_id":"{ID}","chunk_id":4,"total_chunks":5}}"#)
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
