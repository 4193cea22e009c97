//! What a worker and the gateway say to each other on an ingest connection.
//!
//! A chunk of audio comes as base64 in a JSON message, or as a JSON message that announces it and a
//! binary message with its bytes. The base64 is searched once for the end of its string and decoded
//! once; `serde_json`, which would look at each of its characters, gets the message without it. The
//! fields that go on to the client keep the characters that the worker wrote.

use super::base64;
use super::control::ControlAction;
use super::members::{Members, members, read_members};
use super::message::{BAD_TASK_ID, TaskId, json_text};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// The longest media type that a worker may name, in bytes.
const AUDIO_TYPE_BYTES_MAX: usize = 127;

/// From this length on a message is read without its audio. Of a shorter one, `serde_json` reads
/// all of it sooner.
const LONG_BYTES_MIN: usize = 512;

/// Names that the gateway uses in the message of a chunk: a worker's field of that name is not
/// passed on.
const OUR_NAMES: [&str; 4] = ["task_id", "chunk_id", "total_chunks", "offset"];

/// A text message of a worker.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Audio, or its announcement.
    Chunk(SpeechChunk<'a>),
    /// The audio of the task is complete.
    End {
        /// The task, as the worker wrote it.
        task: TaskId,
        /// Whether the task ends with it.
        is_final: bool,
    },
    /// An acknowledgement, which needs no answer.
    Acknowledgement,
}

/// A chunk of audio.
#[derive(Debug, PartialEq, Eq)]
pub struct SpeechChunk<'a> {
    /// The task, as the worker wrote it.
    pub task: TaskId,
    /// Its number within its stream, from 0; `None`: the next one.
    pub seq: Option<u64>,
    /// Its bytes, or how many there are.
    pub audio: ChunkAudio<'a>,
    /// The media type of the stream, as the worker named it.
    pub audio_type: Option<Box<str>>,
    /// Every further field, for the client: `,"name":value` each.
    pub fields: Box<str>,
}

/// Where the bytes of a chunk are.
#[derive(Debug, PartialEq, Eq)]
pub enum ChunkAudio<'a> {
    /// In the message.
    Inline(Base64<'a>),
    /// In a binary message of this length, which comes next.
    Follows(u64),
}

/// Audio as base64 (RFC 4648, section 4).
#[derive(Debug, PartialEq, Eq)]
pub struct Base64<'a>(Cow<'a, str>);

/// Why a text message cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// The task that it is about, if it says so.
    pub task: Option<TaskId>,
    /// What is wrong with it.
    pub fault: SpeechFault,
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeechFault {
    /// Not a JSON object.
    NotAnObject,
    /// `type` is neither `SPEECH_CHUNK` nor `CONTROL` nor `STOP_ACK`.
    UnknownType,
    /// `action` is neither `END` nor `STOP_ACK`.
    UnknownAction,
    /// `sessionId` is missing or not a UUID.
    NoTask,
    /// A field has another type than this.
    WrongType(&'static str, &'static str),
    /// There is neither `pcm` nor `bytes`.
    NoAudio,
    /// There are both.
    TwiceAudio,
    /// `pcm` is not base64.
    NotBase64,
    /// `audio_type` cannot be a media type.
    BadAudioType,
}

impl fmt::Display for SpeechFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpeechFault::NotAnObject => "The message is not a JSON object",
            SpeechFault::UnknownType => "The type is neither SPEECH_CHUNK nor CONTROL",
            SpeechFault::UnknownAction => "The action is neither END nor STOP_ACK",
            SpeechFault::NoTask => BAD_TASK_ID,
            SpeechFault::WrongType(name, expected) => return write!(f, "{name} is not {expected}"),
            SpeechFault::NoAudio => "The chunk has neither pcm nor bytes",
            SpeechFault::TwiceAudio => "The chunk has both pcm and bytes",
            SpeechFault::NotBase64 => "pcm is not base64",
            SpeechFault::BadAudioType => "audio_type is not a media type",
        })
    }
}

impl<'a> Message<'a> {
    /// Reads a text message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(text: &'a str) -> Result<Message<'a>, BadMessage> {
        if let Some(read) = Message::read_around_audio(text) {
            return read;
        }
        let without_task = |fault| BadMessage { task: None, fault };
        let fields = match read_members::<SpeechFields<'_>>(text) {
            Ok(fields) => fields,
            // `NaN` in a field that is only passed on costs that field.
            Err(_) => {
                SpeechFields::read_leniently(text).ok_or(without_task(SpeechFault::NotAnObject))?
            }
        };
        let pcm = fields.pcm;
        fields.into_message(pcm.map(string))
    }

    /// Reads a long message without the characters of its audio. `None`: it has to be read whole,
    /// because it is short, or something else than usual.
    fn read_around_audio(text: &'a str) -> Option<Result<Message<'a>, BadMessage>> {
        let audio = find_audio(text)?;
        let rest = [text.get(..audio.start)?, text.get(audio.end..)?].concat();
        let fields = read_members::<SpeechFields<'_>>(&rest).ok()?;
        // What was cut out may have been part of another field, or one of two of that name.
        let quotes = rest.get(audio.start - 1..=audio.start)?;
        let is_audio = fields.pcm.is_some_and(|pcm| std::ptr::eq(pcm, quotes));
        let audio = Cow::Borrowed(text.get(audio)?);
        is_audio.then(|| fields.into_message(Some(Some(audio))))
    }
}

/// Where the characters are of what may be the audio of a long message. They have no escapes.
fn find_audio(text: &str) -> Option<Range<usize>> {
    const NAME: &[u8] = br#""pcm":"#;
    let bytes = Some(text.as_bytes()).filter(|bytes| bytes.len() >= LONG_BYTES_MIN)?;
    let value = memchr::memmem::find(bytes, NAME)? + NAME.len();
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = value + bytes.get(value..)?.iter().take_while(is_space).count() + 1;
    bytes.get(start - 1).filter(|quote| **quote == b'"')?;
    let length = memchr::memchr2(b'"', b'\\', bytes.get(start..)?)?;
    bytes.get(start + length).filter(|quote| **quote == b'"')?;
    Some(start..start + length)
}

impl Base64<'_> {
    /// Decodes into the front of `buffer`, which is made longer if it is too short. Returns the
    /// number of decoded bytes.
    ///
    /// # Errors
    /// It is not base64.
    pub fn decode(&self, buffer: &mut Vec<u8>) -> Result<usize, SpeechFault> {
        base64::decode(self.0.as_bytes(), buffer).ok_or(SpeechFault::NotBase64)
    }

    /// The number of bytes that it decodes to, provided that it is valid base64.
    pub fn decoded_bytes(&self) -> usize {
        let digits = self.0.trim_end_matches('=').len();
        digits / 4 * 3 + digits % 4 * 3 / 4
    }
}

/// The top level of a message, as JSON text borrowed from it. Of a name that is given twice the
/// last one counts.
#[derive(Default)]
struct SpeechFields<'a> {
    kind: Option<&'a str>,
    action: Option<&'a str>,
    session_id: Option<&'a str>,
    seq: Option<&'a str>,
    pcm: Option<&'a str>,
    bytes: Option<&'a str>,
    is_final: Option<&'a str>,
    audio_type: Option<&'a str>,
    others: String,
}

impl<'a> Members<'a> for SpeechFields<'a> {
    fn insert(&mut self, name: &'a str, value: &'a str) {
        let plain = string(name).unwrap_or_default();
        let known = match &*plain {
            "type" => &mut self.kind,
            "action" => &mut self.action,
            "sessionId" => &mut self.session_id,
            "seq" => &mut self.seq,
            "pcm" => &mut self.pcm,
            "bytes" => &mut self.bytes,
            "final" => &mut self.is_final,
            own if OUR_NAMES.contains(&own) => return,
            other => {
                if other == "audio_type" {
                    self.audio_type = Some(value);
                }
                return self.others.extend([",", name, ":", value]);
            }
        };
        *known = (value != "null").then_some(value);
    }
}

impl<'a> SpeechFields<'a> {
    fn read_leniently(text: &'a str) -> Option<SpeechFields<'a>> {
        let mut fields = SpeechFields::default();
        for (name, value) in members(text.as_bytes())? {
            let name = json_text(name)?;
            match json_text(value) {
                Some(value) => fields.insert(name, value),
                None => {
                    let before = fields.others.len();
                    fields.insert(name, "null");
                    let is_passed_on = fields.others.len() > before;
                    is_passed_on.then_some(())?;
                }
            }
        }
        Some(fields)
    }

    /// The message, with `pcm` as its audio. `Some(None)`: there is a `pcm`, and it is no string.
    fn into_message<'t>(
        self,
        pcm: Option<Option<Cow<'t, str>>>,
    ) -> Result<Message<'t>, BadMessage> {
        let task = self.session_id.and_then(string).and_then(|id| TaskId::parse(&id));
        let message = self.into_message_of(task.clone(), pcm);
        message.map_err(|fault| BadMessage { task, fault })
    }

    fn into_message_of<'t>(
        self,
        task: Option<TaskId>,
        pcm: Option<Option<Cow<'t, str>>>,
    ) -> Result<Message<'t>, SpeechFault> {
        let kind = self.kind.and_then(string).ok_or(SpeechFault::UnknownType)?;
        let action = self.action.and_then(string);
        match (&*kind, action.as_deref()) {
            ("SPEECH_CHUNK", _) => {
                self.into_chunk(task.ok_or(SpeechFault::NoTask)?, pcm).map(Message::Chunk)
            }
            ("STOP_ACK", _) | ("CONTROL", Some("STOP_ACK")) => Ok(Message::Acknowledgement),
            ("CONTROL", Some("END")) => {
                let is_final = match self.is_final {
                    None | Some("false") => false,
                    Some("true") => true,
                    Some(_) => return Err(SpeechFault::WrongType("final", "true or false")),
                };
                Ok(Message::End { task: task.ok_or(SpeechFault::NoTask)?, is_final })
            }
            ("CONTROL", _) => Err(SpeechFault::UnknownAction),
            _ => Err(SpeechFault::UnknownType),
        }
    }

    fn into_chunk<'t>(
        self,
        task: TaskId,
        pcm: Option<Option<Cow<'t, str>>>,
    ) -> Result<SpeechChunk<'t>, SpeechFault> {
        let number = |name: &'static str, text: Option<&str>| {
            let wrong = SpeechFault::WrongType(name, "a whole number from 0");
            text.map(|text| text.parse::<u64>().map_err(|_| wrong)).transpose()
        };
        let seq = number("seq", self.seq)?;
        let audio = match (pcm, number("bytes", self.bytes)?) {
            (Some(pcm), None) => {
                let pcm = pcm.ok_or(SpeechFault::WrongType("pcm", "a string"))?;
                ChunkAudio::Inline(Base64(pcm))
            }
            (None, Some(bytes)) => ChunkAudio::Follows(bytes),
            (None, None) => return Err(SpeechFault::NoAudio),
            (Some(_), Some(_)) => return Err(SpeechFault::TwiceAudio),
        };
        let audio_type = self.audio_type.filter(|text| *text != "null").map(media_type);
        let (audio_type, fields) = (audio_type.transpose()?, self.others.into());
        Ok(SpeechChunk { task, seq, audio, audio_type, fields })
    }
}

/// The characters of a JSON string; `None` for another value, and for half a surrogate pair. Copied
/// only if it has escapes, such as the `\/` that some encoders write.
fn string(json: &str) -> Option<Cow<'_, str>> {
    let between = json.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', between.as_bytes()).is_none() {
        return Some(Cow::Borrowed(between));
    }
    serde_json::from_str::<String>(json).ok().map(Cow::Owned)
}

/// A media type with or without parameters. It becomes part of JSON messages and of a header, so it
/// may hold only what both take as it is.
fn media_type(json: &str) -> Result<Box<str>, SpeechFault> {
    let text = string(json).ok_or(SpeechFault::BadAudioType)?;
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/;= ,".contains(&byte);
    let (name, _) = text.split_once(';').unwrap_or((&text, ""));
    let has_two_parts = name.trim().split_once('/').is_some_and(|(first, second)| {
        !first.is_empty() && !second.is_empty() && !second.contains(['/', ' '])
    });
    match has_two_parts && text.len() <= AUDIO_TYPE_BYTES_MAX && text.bytes().all(is_sound) {
        true => Ok(text.into()),
        false => Err(SpeechFault::BadAudioType),
    }
}

/// The message that tells a worker what has become of its task.
pub fn control_message(action: ControlAction, task: &TaskId) -> String {
    let action = action.word();
    format!(r#"{{"type":"CONTROL","action":"{action}","sessionId":"{task}"}}"#)
}

/// The message to a worker whose message could not be used.
pub fn error_message(error: &str, task: Option<&TaskId>) -> String {
    let error = serde_json::Value::from(error);
    match task {
        Some(task) => format!(r#"{{"type":"error","error":{error},"sessionId":"{task}"}}"#),
        None => format!(r#"{{"type":"error","error":{error}}}"#),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::BASE64;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn task() -> TaskId {
        TaskId::parse(ID).unwrap()
    }

    fn chunk(rest: &str) -> Result<Message<'static>, SpeechFault> {
        let text = format!(r#"{{"type":"SPEECH_CHUNK","sessionId":"{ID}"{rest}}}"#);
        Message::read(Box::leak(text.into_boxed_str())).map_err(|bad| {
            assert_eq!(bad.task, Some(task()), "{rest}");
            bad.fault
        })
    }

    fn expected(seq: Option<u64>, audio: ChunkAudio<'static>, fields: &str) -> Message<'static> {
        Message::Chunk(SpeechChunk {
            task: task(),
            seq,
            audio,
            audio_type: None,
            fields: fields.into(),
        })
    }

    fn inline(text: &str) -> ChunkAudio<'static> {
        ChunkAudio::Inline(Base64(text.to_owned().into()))
    }

    #[test]
    fn chunks_are_read_with_their_further_fields() {
        for (rest, message) in [
            (r#","seq":0,"pcm":"AAEC""#, expected(Some(0), inline("AAEC"), "")),
            (r#","pcm":"""#, expected(None, inline(""), "")),
            (r#","seq":null,"pcm":"AA\/\u0042""#, expected(None, inline("AA/B"), "")),
            (r#","seq":7,"bytes":960"#, expected(Some(7), ChunkAudio::Follows(960), "")),
            (
                r#","pcm":"AAEC","viseme":{"a":1e400},"final":true,"x\u0079":"\ud800""#,
                expected(None, inline("AAEC"), r#","viseme":{"a":1e400},"x\u0079":"\ud800""#),
            ),
            (
                r#","pcm":"AAEC","offset":5,"task_id":1,"chunk_id":2,"total_chunks":3,"a":1"#,
                expected(None, inline("AAEC"), r#","a":1"#),
            ),
            // As Python's json.dumps writes it.
            (
                r#","pcm":"AAEC","viseme":[NaN],"level":-Infinity,"a":1"#,
                expected(None, inline("AAEC"), r#","viseme":null,"level":null,"a":1"#),
            ),
            (r#","pcm":"AAEC","pcm":"AAAA""#, expected(None, inline("AAAA"), "")),
        ] {
            assert_eq!(chunk(rest), Ok(message), "{rest}");
        }
    }

    /// A message that is read without its audio says the same as one that is read whole.
    #[test]
    fn long_audio_is_found_wherever_it_is() {
        let (long, other) = ("AAEC".repeat(LONG_BYTES_MIN), "CAAE".repeat(LONG_BYTES_MIN));
        let escaped = format!(r"\/\u0042{long}");
        for (rest, audio, fields) in [
            (format!(r#","seq":7,"pcm":"{long}""#), &*long, ""),
            (format!(r#","pcm" : "{long}","a":1,"seq":7"#), &*long, r#","a":1"#),
            (format!(",\"pcm\":\n\t \"{long}\",\"seq\":7"), &*long, ""),
            (format!(r#","seq":7,"pcm":"{escaped}""#), &*format!("/B{long}"), ""),
            // Of two the last one counts, and of a field that is passed on nothing is cut out.
            (format!(r#","seq":7,"pcm":"{other}","pcm":"{long}""#), &*long, ""),
            (format!(r#","seq":7,"pcm":"{other}","pcm":"AAEC""#), "AAEC", ""),
            (
                format!(r#","a":{{"pcm":"{other}"}},"seq":7,"pcm":"{long}""#),
                &*long,
                &*format!(r#","a":{{"pcm":"{other}"}}"#),
            ),
            (
                format!(r#","a":"\"pcm\":\"{other}\"","seq":7,"pcm":"{long}""#),
                &*long,
                &*format!(r#","a":"\"pcm\":\"{other}\"""#),
            ),
            (
                format!(r#","x\"pcm":"{other}","seq":7,"pcm":"{long}""#),
                &*long,
                &*format!(r#","x\"pcm":"{other}""#),
            ),
            (format!(r#","seq":7,"p\u0063m":"{long}""#), &*long, ""),
            (format!(r#","seq":7,"level":NaN,"pcm":"{long}""#), &*long, r#","level":null"#),
        ] {
            assert_eq!(chunk(&rest), Ok(expected(Some(7), inline(audio), fields)), "{rest}");
        }
        for (rest, fault) in [
            (format!(r#","pcm":"{long}","bytes":7"#), SpeechFault::TwiceAudio),
            (format!(r#","pcm":["pcm","{long}"]"#), SpeechFault::WrongType("pcm", "a string")),
            (format!(r#","pcm":"{long}","pcm":7"#), SpeechFault::WrongType("pcm", "a string")),
            (format!(r#","pcm":"{long}","pcm":null"#), SpeechFault::NoAudio),
        ] {
            assert_eq!(chunk(&rest), Err(fault), "{rest}");
        }
        let whole = format!(r#"{{"type":"SPEECH_CHUNK","sessionId":"{ID}","pcm":"{long}"}}"#);
        for cut in [1, 2, 3, LONG_BYTES_MIN, whole.len() - 80] {
            let bad = Message::read(&whole[..whole.len() - cut]).unwrap_err();
            assert_eq!((bad.task, bad.fault), (None, SpeechFault::NotAnObject), "without {cut}");
        }
    }

    #[test]
    fn a_worker_may_name_the_media_type() {
        for good in ["audio/wav", "audio/L16;rate=24000", "audio/ogg; codecs=opus", "x/y"] {
            let rest = format!(r#","pcm":"","audio_type":"{good}""#);
            let Ok(Message::Chunk(chunk)) = chunk(&rest) else { panic!("{good}") };
            assert_eq!(chunk.audio_type.as_deref(), Some(good));
            assert_eq!(&*chunk.fields, format!(r#","audio_type":"{good}""#));
        }
        let long = format!(r#""audio/{}""#, "x".repeat(AUDIO_TYPE_BYTES_MAX));
        for bad in [
            r#""""#,
            "7",
            r#""audio""#,
            r#""audio/""#,
            r#""/x""#,
            r#""a/b\r\nX: y""#,
            r#""a/\"""#,
            r#""a/b/c""#,
            r#""a/é""#,
            &long,
        ] {
            let rest = format!(r#","pcm":"","audio_type":{bad}"#);
            assert_eq!(chunk(&rest), Err(SpeechFault::BadAudioType), "{bad}");
        }
    }

    #[test]
    fn faults_of_chunks_are_named() {
        let number = |name| SpeechFault::WrongType(name, "a whole number from 0");
        for (rest, fault) in [
            ("", SpeechFault::NoAudio),
            (r#","pcm":null"#, SpeechFault::NoAudio),
            (r#","pcm":"AAEC","bytes":3"#, SpeechFault::TwiceAudio),
            (r#","pcm":7"#, SpeechFault::WrongType("pcm", "a string")),
            (r#","pcm":{}"#, SpeechFault::WrongType("pcm", "a string")),
            (r#","pcm":"\ud800""#, SpeechFault::WrongType("pcm", "a string")),
            (r#","bytes":-1"#, number("bytes")),
            (r#","bytes":1.5"#, number("bytes")),
            (r#","bytes":"7""#, number("bytes")),
            (r#","pcm":"","seq":-1"#, number("seq")),
            (r#","pcm":"","seq":18446744073709551616"#, number("seq")),
            (r#","pcm":"","seq":[0]"#, number("seq")),
        ] {
            assert_eq!(chunk(rest), Err(fault), "{rest}");
            assert!(fault.to_string().len() > 10);
        }
    }

    #[test]
    fn control_messages_are_read() {
        let end = |is_final| Ok(Message::End { task: task(), is_final });
        let id = format!(r#""sessionId":"{ID}""#);
        for (text, message) in [
            (format!(r#"{{"type":"CONTROL","action":"END",{id}}}"#), end(false)),
            (format!(r#"{{"type":"CONTROL","action":"END",{id},"final":true}}"#), end(true)),
            (format!(r#"{{"type":"CONTROL","action":"END",{id},"final":null}}"#), end(false)),
            (
                format!(r#"{{"type":"CONTROL","action":"END",{id},"final":1}}"#),
                Err(SpeechFault::WrongType("final", "true or false")),
            ),
            (r#"{"type":"CONTROL","action":"END"}"#.into(), Err(SpeechFault::NoTask)),
            (r#"{"type":"CONTROL","action":"END","sessionId":7}"#.into(), Err(SpeechFault::NoTask)),
            (r#"{"type":"CONTROL","action":"STOP_ACK"}"#.into(), Ok(Message::Acknowledgement)),
            (format!(r#"{{"type":"STOP_ACK",{id}}}"#), Ok(Message::Acknowledgement)),
            (format!(r#"{{"type":"CONTROL",{id}}}"#), Err(SpeechFault::UnknownAction)),
            (
                format!(r#"{{"type":"CONTROL","action":"end",{id}}}"#),
                Err(SpeechFault::UnknownAction),
            ),
            (format!(r#"{{"type":"speech_chunk",{id}}}"#), Err(SpeechFault::UnknownType)),
            (format!("{{{id}}}"), Err(SpeechFault::UnknownType)),
            ("{}".into(), Err(SpeechFault::UnknownType)),
        ] {
            assert_eq!(Message::read(&text).map_err(|bad| bad.fault), message, "{text}");
        }
    }

    #[test]
    fn nothing_that_is_not_an_object_passes_or_panics() {
        let whole = format!(
            r#"{{"type":"SPEECH_CHUNK","sessionId":"{ID}","seq":1,"pcm":"AA\/A","viseme":{{"a":[1]}}}}"#
        );
        for cut in 0..whole.len() {
            let bad = Message::read(&whole[..cut]).expect_err("a part of an object is none");
            assert_eq!((bad.task, bad.fault), (None, SpeechFault::NotAnObject), "cut at {cut}");
        }
        for text in ["", "[]", "null", "7", "\"x\"", "{]", "{\"a\"}", "{\"a\":}", "{}{}", "\u{0}"] {
            assert_eq!(
                Message::read(text).map_err(|bad| bad.fault),
                Err(SpeechFault::NotAnObject),
                "{text}"
            );
        }
        // Any byte of a good message replaced by any of these: never a panic.
        for at in 0..whole.len() {
            for by in ['"', '\\', '{', '}', ',', ':', '0', 'é'] {
                let mut text: String = whole[..at].into();
                text.push(by);
                text.push_str(&whole[at + 1..]);
                let _ = Message::read(&text);
            }
        }
        let deep = format!(r#"{{"type":"SPEECH_CHUNK","v":{}}}"#, "[".repeat(100_000));
        assert!(Message::read(&deep).is_err());
    }

    #[test]
    fn base64_of_every_length_is_decoded_with_and_without_padding() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for length in (0..40).chain([999, 1000]) {
            let padded = BASE64.encode(&bytes[..length]);
            for text in [padded.as_str(), padded.trim_end_matches('=')] {
                let base64 = Base64(text.into());
                let mut decoded = b"before".to_vec();
                assert_eq!(base64.decode(&mut decoded), Ok(length), "{text}");
                assert_eq!(decoded[..length], bytes[..length], "{text}");
                assert_eq!(base64.decoded_bytes(), length, "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for bad in
            ["A", "AAAAA", "AA=", "A===", "====", "AA-_", "AA A", "AAA\n", "é", "AB==", "AAEC\0"]
        {
            let decoded = Base64(bad.into()).decode(&mut Vec::new());
            assert_eq!(decoded, Err(SpeechFault::NotBase64), "{bad:?}");
        }
    }

    #[test]
    fn messages_to_workers_are_json_with_the_task_as_the_worker_wrote_it() {
        let task = TaskId::parse(&ID.to_uppercase()).unwrap();
        let id = ID.to_uppercase();
        for action in [ControlAction::Stop, ControlAction::Left, ControlAction::Back] {
            let word = action.word();
            let message = format!(r#"{{"type":"CONTROL","action":"{word}","sessionId":"{id}"}}"#);
            assert_eq!(control_message(action, &task), message);
        }
        assert_eq!(error_message("a \"b\"", None), r#"{"type":"error","error":"a \"b\""}"#);
        let with_task = format!(r#"{{"type":"error","error":"x","sessionId":"{id}"}}"#);
        assert_eq!(error_message("x", Some(&task)), with_task);
    }
}
