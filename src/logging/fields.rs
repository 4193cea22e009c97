//! What a line says, taken apart: an event, which is one fixed word, and fields with names and
//! types. Lines in JSON are made with it, and `explain` reads text with it.
//!
//! The gateway's own lines have one shape: the connection's id if there is one, words, then pairs
//! `key=value`. A value from outside is quoted, so it cannot look like a further pair. What is not
//! listed here stays in the message alone. `docs/log.schema.json` describes the result.

use serde_json::Value;

/// The type of a field, and how the text has it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FieldKind {
    Text,
    /// A number; `none` and `?` are null.
    Number,
    /// `true` or `false`.
    Flag,
    /// `1.234s`, also in other units, as seconds.
    Seconds,
    /// `512B`, as a number; `none` is null.
    Bytes,
}

/// The keys of pairs, the names that fields have, and their types.
const FIELDS: &[(&str, &str, FieldKind)] = &[
    ("task", "task", FieldKind::Text),
    ("client", "client", FieldKind::Text),
    ("proxy", "proxy", FieldKind::Text),
    ("user_agent", "user_agent", FieldKind::Text),
    ("origin", "origin", FieldKind::Text),
    ("backend", "backend", FieldKind::Text),
    ("address", "address", FieldKind::Text),
    ("request_id", "request_id", FieldKind::Text),
    ("reason", "reason", FieldKind::Text),
    ("phrase", "phrase", FieldKind::Text),
    ("code", "code", FieldKind::Number),
    ("status", "status", FieldKind::Number),
    ("ended_by", "ended_by", FieldKind::Text),
    ("phase", "phase", FieldKind::Text),
    ("duration", "duration_seconds", FieldKind::Seconds),
    ("before_end", "before_end_seconds", FieldKind::Seconds),
    ("from_client_frames", "from_client_frames", FieldKind::Number),
    ("from_client_bytes", "from_client_bytes", FieldKind::Number),
    ("to_client_frames", "to_client_frames", FieldKind::Number),
    ("to_client_bytes", "to_client_bytes", FieldKind::Number),
    ("method", "method", FieldKind::Text),
    ("head_after", "head_after_seconds", FieldKind::Seconds),
    ("request_bytes", "request_bytes", FieldKind::Number),
    ("response_bytes", "response_bytes", FieldKind::Number),
    ("direction", "direction", FieldKind::Text),
    ("opcode", "opcode", FieldKind::Text),
    ("side", "side", FieldKind::Text),
    ("len", "length", FieldKind::Number),
    ("fin", "fin", FieldKind::Flag),
    ("chunk", "chunk", FieldKind::Number),
    ("chunks", "chunks", FieldKind::Number),
    ("sentence", "sentence", FieldKind::Text),
    ("why", "why", FieldKind::Text),
    ("what", "what", FieldKind::Text),
    ("error", "error", FieldKind::Text),
    ("cause", "cause", FieldKind::Text),
    ("file", "file", FieldKind::Text),
    ("root", "root", FieldKind::Text),
    ("folder", "folder", FieldKind::Text),
    ("result", "result_id", FieldKind::Number),
    ("results", "results", FieldKind::Number),
    ("results_dropped", "results_dropped", FieldKind::Number),
    ("clients", "clients", FieldKind::Number),
    ("audio", "audio_bytes", FieldKind::Bytes),
    ("text", "text_bytes", FieldKind::Bytes),
    ("from", "from_chunk", FieldKind::Number),
    ("growing", "growing", FieldKind::Flag),
    ("failure", "failure", FieldKind::Flag),
    ("final", "final", FieldKind::Flag),
    ("seq", "seq", FieldKind::Number),
    ("by", "by", FieldKind::Text),
    ("arguments", "arguments", FieldKind::Number),
    ("published", "published", FieldKind::Number),
    ("errors", "errors", FieldKind::Number),
    ("events", "events", FieldKind::Number),
    ("stories", "stories", FieldKind::Number),
    ("connections", "connections", FieldKind::Number),
    ("timeout", "timeout", FieldKind::Text),
    ("memory", "memory_bytes", FieldKind::Bytes),
    ("held", "held_bytes", FieldKind::Bytes),
    ("limit", "limit_bytes", FieldKind::Bytes),
    ("version", "version", FieldKind::Text),
    ("config", "config", FieldKind::Text),
    ("demo", "demo", FieldKind::Flag),
    ("listen", "listen", FieldKind::Text),
    ("routes", "routes", FieldKind::Text),
    ("redis", "redis", FieldKind::Text),
    ("path", "path", FieldKind::Text),
    ("to", "to", FieldKind::Text),
];

/// How messages begin, behind the id, and the event that they are. The first that fits counts.
const EVENTS: &[(&str, &str)] = &[
    ("opened", "opened"),
    ("closed ", "closed"),
    ("failed ", "failed"),
    ("delivers", "delivered"),
    ("= no audio", "audio_missing"),
    ("= audio lost", "audio_lost"),
    ("= audio file shrank", "audio_lost"),
    ("= audio delayed", "audio_delayed"),
    ("= no file", "file_missing"),
    ("= file lost", "file_lost"),
    ("= the worker's result is malformed", "result_malformed"),
    ("= refused a result", "result_refused"),
    ("= bad answer from the backend", "backend_answer_bad"),
    ("= no TLS with the backend", "backend_tls_failed"),
    ("= task learned", "task_learned"),
    ("= TLS is established", "tls_established"),
    ("= PROXY header", "proxy_header"),
    ("= connecting to backend", "connecting"),
    ("= connected to backend", "connected"),
    ("= attempt failed", "attempt_failed"),
    ("= request over", "request_over"),
    ("= backend answered our ping", "ponged"),
    ("= client answered our ping", "ponged"),
    ("= backend sent close", "close"),
    ("= client sent close", "close"),
    ("= backend has not answered", "silent"),
    ("= client has not answered", "silent"),
    ("= backend takes nothing", "stalled"),
    ("= client takes nothing", "stalled"),
    ("= backend ", "backend_failed"),
    ("= sent close to", "close_sent"),
    ("= pinged", "pinged"),
    ("= published to a channel", "not_a_task"),
    ("= published", "published"),
    ("is closed: out of memory", "shed"),
    ("result heard", "result_heard"),
    ("result kept", "result_kept"),
    ("result forgotten", "result_forgotten"),
    ("task stopped", "task_stopped"),
    ("clients left", "clients_left"),
    ("client is back", "client_back"),
    ("stream complete", "stream_complete"),
    ("stream lost", "stream_lost"),
    ("speech complete", "speech_complete"),
    ("speech lost", "speech_lost"),
    ("no file for speech", "speech_lost"),
    ("no memory for speech", "speech_lost"),
    ("kept results evicted", "results_evicted"),
    ("results not kept", "results_not_kept"),
    ("stories left out", "stories_left_out"),
    ("connected address", "redis_connected"),
    ("lost why", "redis_lost"),
    ("trouble why", "redis_trouble"),
    ("away for longer", "redis_away"),
    ("starting ", "starting"),
    ("listening ", "listening"),
    ("route ", "route"),
    ("accepting pauses", "accepting_pauses"),
    ("max_connections=", "few_descriptors"),
    ("draining", "draining"),
    ("drain time is over", "drain_over"),
    ("stopped", "stopped"),
    ("signal ", "signal"),
    ("read again", "reloaded"),
];

/// Events that are found by the form of a message.
#[cfg(test)]
pub(crate) const OTHER_EVENTS: [&str; 10] = [
    "frame",
    "request",
    "answer",
    "upgrade_request",
    "backend_answer",
    "command",
    "speech_chunk",
    "speech_end",
    "speech_error",
    "control",
];

/// The event of a message that is none of those.
pub(crate) const PLAIN: &str = "message";

/// A message, taken apart.
#[derive(Debug)]
pub(crate) struct Parts<'m> {
    /// The connection, as `input_1`.
    pub(crate) id: Option<&'m str>,
    pub(crate) event: &'static str,
    /// By name, each once.
    pub(crate) fields: Vec<(&'static str, Value)>,
}

impl<'m> Parts<'m> {
    /// Takes a message of the gateway's own apart.
    pub(crate) fn of(message: &'m str) -> Parts<'m> {
        let (id, rest) = split_id(message);
        let mut parts = Parts { id, event: PLAIN, fields: Vec::new() };
        // A step of a connection's story, written when it has ended.
        let rest = match rest.strip_prefix("~ ").and_then(|rest| rest.split_once(' ')) {
            Some((at, step)) => {
                parts.put_pairs(at);
                step
            }
            None => rest,
        };
        parts.put_event(rest);
        parts
    }

    /// A field as text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.value(name)?.as_str()
    }

    /// A field.
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find_map(|(known, value)| (*known == name).then_some(value))
    }

    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        if self.fields.iter().all(|(known, _)| *known != name) {
            self.fields.push((name, value.into()));
        }
    }

    fn put_event(&mut self, rest: &str) {
        if self.put_frame(rest) || self.put_of_worker(rest) {
            return;
        }
        let found = EVENTS.iter().find(|(prefix, _)| rest.starts_with(prefix));
        self.event = found.map_or(PLAIN, |(_, event)| event);
        let mut words = rest.split_whitespace().skip(1);
        match self.event {
            "connecting" => {
                if let (Some(backend), Some(address)) = (words.nth(3), words.nth(1)) {
                    self.put("backend", backend);
                    self.put("address", address);
                }
            }
            "backend_failed" => {
                if let Some(backend) = words.nth(1) {
                    self.put("backend", backend);
                }
            }
            "ponged" | "close" | "silent" | "stalled" => {
                if let Some(side) = words.next() {
                    self.put("side", side);
                }
            }
            "pinged" | "close_sent" => {
                if let Some(side) = words.find(|word| matches!(*word, "client" | "backend")) {
                    self.put("side", side);
                }
            }
            _ => {}
        }
        self.put_pairs(rest);
    }

    /// `client>backend text len=5 fin=true`, `> text len=5`, `< ping len=0 fin=true`.
    fn put_frame(&mut self, rest: &str) -> bool {
        let Some((way, rest)) = rest.split_once(' ') else { return false };
        let direction = match way {
            ">" | "backend>client" | "gateway>client" => "to_client",
            "<" | "client>backend" | "client>gateway" => "from_client",
            "gateway>backend" => "to_backend",
            "backend>gateway" => "from_backend",
            _ => return false,
        };
        let (word, pairs) = rest.split_once(' ').unwrap_or((rest, ""));
        let is_opcode =
            matches!(word, "continuation" | "text" | "binary" | "close" | "ping" | "pong")
                || word.starts_with("reserved-");
        let is_own = way == ">" || way == "<";
        self.event = match (word, way) {
            ("close", ">") => "close_sent",
            ("close", "<") if pairs.starts_with("code=") => "close",
            _ if is_opcode => "frame",
            _ if is_own => return false,
            (_, "client>gateway") => "request",
            (_, "gateway>client") => "answer",
            (_, "gateway>backend") => "upgrade_request",
            _ => "backend_answer",
        };
        self.put("direction", direction);
        match self.event {
            "frame" => self.put("opcode", word),
            "close" | "close_sent" => self.put("side", "client"),
            "answer" | "backend_answer" => {
                self.put("status", word.parse::<u16>().map_or(Value::Null, Value::from));
            }
            _ => {}
        }
        match (self.event, way) {
            // What follows is a backend's own words.
            ("backend_answer", _) => {}
            ("close_sent", ">") => {
                for (key, value) in Pairs(pairs) {
                    // Here it is the phrase in the frame, not the word of the table.
                    self.put_pair(if key == "reason" { "phrase" } else { key }, &value);
                }
            }
            _ => self.put_pairs(pairs),
        }
        true
    }

    /// What a worker sends and is sent: `< PUBLISH arguments=2`, `< chunk task=…`, `> STOP task=…`.
    fn put_of_worker(&mut self, rest: &str) -> bool {
        let Some((way @ ("<" | ">"), rest)) = rest.split_once(' ') else { return false };
        let (word, pairs) = rest.split_once(' ').unwrap_or((rest, ""));
        self.event = match (way, word) {
            ("<", "chunk") => "speech_chunk",
            ("<", "end") => "speech_end",
            (">", "error") => "speech_error",
            (">", _) => "control",
            _ => "command",
        };
        self.put("direction", if way == "<" { "from_client" } else { "to_client" });
        self.put_pairs(pairs);
        true
    }

    fn put_pairs(&mut self, text: &str) {
        for (key, value) in Pairs(text) {
            self.put_pair(key, &value);
        }
    }

    fn put_pair(&mut self, key: &str, value: &str) {
        let Some((_, name, kind)) = FIELDS.iter().find(|(known, ..)| *known == key) else { return };
        // `chunk=3/5`: which one, and of how many.
        if key == "chunk"
            && let Some((chunk, chunks)) = value.split_once('/')
        {
            self.put("chunk", typed(FieldKind::Number, chunk));
            self.put("chunks", typed(FieldKind::Number, chunks));
            return;
        }
        self.put(name, typed(*kind, value));
    }
}

/// Every event, for the schema and its test.
#[cfg(test)]
pub(crate) fn events() -> impl Iterator<Item = &'static str> {
    EVENTS.iter().map(|(_, event)| *event).chain(OTHER_EVENTS).chain([PLAIN])
}

fn typed(kind: FieldKind, text: &str) -> Value {
    let number = |text: &str| text.parse::<u64>().map_or(Value::Null, Value::from);
    match kind {
        FieldKind::Text => text.into(),
        FieldKind::Number => number(text),
        FieldKind::Flag => (text == "true").into(),
        FieldKind::Bytes => number(text.trim_end_matches('B')),
        FieldKind::Seconds => seconds(text).map_or(Value::Null, Value::from),
    }
}

/// `1.5s`, `20ms`, `3µs` or `7ns` in seconds.
fn seconds(text: &str) -> Option<f64> {
    let units = [("ns", 1e9), ("µs", 1e6), ("ms", 1e3), ("s", 1.0)];
    let (unit, per_second) = units.into_iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: f64 = text.trim_end_matches(unit).parse().ok()?;
    Some(number / per_second)
}

/// The id that a message begins with: a route's name, `_`, and a number.
fn split_id(message: &str) -> (Option<&str>, &str) {
    let is_id = |word: &str| {
        word.rsplit_once('_').is_some_and(|(route, number)| {
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            !route.is_empty() && !word.contains('=') && is_number
        })
    };
    match message.split_once(' ') {
        Some((word, rest)) if is_id(word) => (Some(word), rest),
        _ => (None, message),
    }
}

/// The pairs `key=value` in a text, in order. A value without quotes ends before the next pair.
struct Pairs<'t>(&'t str);

impl<'t> Iterator for Pairs<'t> {
    type Item = (&'t str, String);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let text = self.0.trim_start();
            let word = text.split(' ').next().filter(|word| !word.is_empty())?;
            let Some(key) = key_of(word) else {
                self.0 = text.get(word.len()..).unwrap_or_default();
                continue;
            };
            let value = text.get(key.len() + 1..).unwrap_or_default();
            if let Some(quoted) = value.strip_prefix('"') {
                let (value, rest) = unquoted(quoted);
                self.0 = rest;
                return Some((key, value));
            }
            let mut end = 0;
            for word in value.split_inclusive(' ') {
                if end > 0 && key_of(word).is_some() {
                    break;
                }
                end += word.len();
            }
            let (value, rest) = value.split_at_checked(end)?;
            self.0 = rest;
            return Some((key, value.trim_end().to_owned()));
        }
    }
}

/// The key that a word begins with.
fn key_of(word: &str) -> Option<&str> {
    let (key, _) = word.split_once('=')?;
    let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (!key.is_empty() && is_key(key)).then_some(key)
}

/// The value whose opening quote has been passed, and what follows its closing quote.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => match signs.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                // The log's own escape for a control character.
                Some((_, other)) => value.extend(['\\', other]),
                None => {}
            },
            sign => value.push(sign),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn object(message: &str) -> Value {
        let parts = Parts::of(message);
        let mut object = serde_json::Map::new();
        object.extend(parts.id.map(|id| ("id".to_owned(), id.into())));
        object.insert("event".into(), parts.event.into());
        object.extend(parts.fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        object.into()
    }

    #[test]
    fn lines_have_their_event_and_typed_fields() {
        #[rustfmt::skip]
        let cases = [
            ("input_1 opened client=192.0.2.7:5000 user_agent=\"curl/8 \\\"x\\\"\"",
             json!({"id": "input_1", "event": "opened", "client": "192.0.2.7:5000",
                    "user_agent": "curl/8 \"x\""})),
            ("input_1 closed reason=client_closed code=none duration=0.413s to_client_frames=3 sentence=\"It ended. reason=x\"",
             json!({"id": "input_1", "event": "closed", "reason": "client_closed", "code": null,
                    "duration_seconds": 0.413, "to_client_frames": 3,
                    "sentence": "It ended. reason=x"})),
            ("input_1 client>backend text len=5 fin=false",
             json!({"id": "input_1", "event": "frame", "direction": "from_client",
                    "opcode": "text", "length": 5, "fin": false})),
            ("output_2 > binary len=9 chunk=1/2 task=t",
             json!({"id": "output_2", "event": "frame", "direction": "to_client",
                    "opcode": "binary", "length": 9, "chunk": 1, "chunks": 2, "task": "t"})),
            ("output_2 > binary len=9 chunk=1/?",
             json!({"id": "output_2", "event": "frame", "direction": "to_client",
                    "opcode": "binary", "length": 9, "chunk": 1, "chunks": null})),
            ("output_2 > close code=1000 reason=\"done\"",
             json!({"id": "output_2", "event": "close_sent", "direction": "to_client",
                    "side": "client", "code": 1000, "phrase": "done"})),
            ("output_2 < close code=none",
             json!({"id": "output_2", "event": "close", "direction": "from_client",
                    "side": "client", "code": null})),
            ("input_1 = connecting to backend ws://b/ at 192.0.2.1:1",
             json!({"id": "input_1", "event": "connecting", "backend": "ws://b/",
                    "address": "192.0.2.1:1"})),
            ("input_1 = backend ws://b/ failed what=\"connection refused\"",
             json!({"id": "input_1", "event": "backend_failed", "backend": "ws://b/",
                    "what": "connection refused"})),
            ("input_1 backend>gateway 503 No reason=done",
             json!({"id": "input_1", "event": "backend_answer", "direction": "from_backend",
                    "status": 503})),
            ("input_1 = sent close to client code=1011 reason=backend_vanished",
             json!({"id": "input_1", "event": "close_sent", "side": "client", "code": 1011,
                    "reason": "backend_vanished"})),
            ("output_2 delivers task=t audio=230444B chunks=4 from=0",
             json!({"id": "output_2", "event": "delivered", "task": "t", "audio_bytes": 230_444,
                    "chunks": 4, "from_chunk": 0})),
            ("output_2 delivers task=t audio=none failure=true",
             json!({"id": "output_2", "event": "delivered", "task": "t", "audio_bytes": null,
                    "failure": true})),
            ("input_1 ~ before_end=1.500s client>backend ping len=0 fin=true",
             json!({"id": "input_1", "event": "frame", "before_end_seconds": 1.5,
                    "direction": "from_client", "opcode": "ping", "length": 0, "fin": true})),
            ("inbox_3 < PUBLISH arguments=2",
             json!({"id": "inbox_3", "event": "command", "direction": "from_client",
                    "arguments": 2})),
            ("route output path=/ws/output/{task_id} to=built in",
             json!({"event": "route", "path": "/ws/output/{task_id}", "to": "built in"})),
            ("lost why=\"connection refused\"",
             json!({"event": "redis_lost", "why": "connection refused"})),
            ("what nobody has listed", json!({"event": "message"})),
        ];
        for (message, expected) in cases {
            assert_eq!(object(message), expected, "{message}");
        }
    }

    /// A value in quotes forges nothing, and no key comes twice.
    #[test]
    fn values_from_outside_stay_values() {
        let message = "input_1 opened origin=\"https://a\\\" task=forged\" task=real task=second";
        let expected = json!({"id": "input_1", "event": "opened",
                              "origin": "https://a\" task=forged", "task": "real"});
        assert_eq!(object(message), expected);
        assert_eq!(
            object("input_1 opened origin=\"no end"),
            json!({
                "id": "input_1", "event": "opened", "origin": "no end"
            })
        );
    }

    #[test]
    fn durations_are_seconds_in_every_unit() {
        for (text, expected) in
            [("1.5s", Some(1.5)), ("20ms", Some(0.02)), ("3µs", Some(3e-6)), ("x", None)]
        {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn schema_has_every_field_and_event() {
        let schema: Value =
            serde_json::from_str(include_str!("../../docs/log.schema.json")).expect("it is JSON");
        let known: BTreeSet<&str> =
            schema["properties"].as_object().expect("fields").keys().map(String::as_str).collect();
        let basic = ["time", "level", "target", "event", "message", "id"];
        let fields: BTreeSet<&str> = FIELDS.iter().map(|(_, name, _)| *name).chain(basic).collect();
        assert_eq!(known, fields);
        let listed = schema["properties"]["event"]["enum"].as_array().expect("events");
        let listed: BTreeSet<&str> = listed.iter().filter_map(Value::as_str).collect();
        assert_eq!(listed, events().collect());
        for &(_, name, kind) in FIELDS {
            let expected = match kind {
                FieldKind::Text => json!("string"),
                FieldKind::Flag => json!("boolean"),
                FieldKind::Number | FieldKind::Bytes => json!(["integer", "null"]),
                FieldKind::Seconds => json!(["number", "null"]),
            };
            assert_eq!(schema["properties"][name]["type"], expected, "{name}");
        }
    }
}
