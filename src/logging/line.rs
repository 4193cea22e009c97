//! One line of the log: time, level, target, message; escaped, so that no value can forge another
//! line.

use super::Format;
use super::fields::{PLAIN, Parts};
use log::Level;
use serde_json::Value;
use std::fmt::{self, Write as _};
use time::OffsetDateTime;

/// Appends one line, without its newline and without any other control character.
pub(super) fn write_line(
    line: &mut String,
    format: Format,
    at: OffsetDateTime,
    level: Level,
    target: &str,
    message: fmt::Arguments<'_>,
) {
    let (target, is_own) = match target.strip_prefix("aivtuber_gateway::") {
        Some(path) => (path.rsplit("::").next().unwrap_or(path), true),
        None => (target, !target.contains("::")),
    };
    match format {
        Format::Text => {
            push_time(line, at);
            line.push(' ');
            line.push_str(level.as_str());
            line.push_str(&"      "[level.as_str().len()..]);
            let start = line.len();
            line.push_str(target);
            line.push(' ');
            let _ = line.write_fmt(message);
            // Checked as a whole, because a message is formatted in dozens of pieces.
            if !is_plain(&line[start..]) {
                let raw = line.split_off(start);
                escape_into(line, &raw);
            }
        }
        Format::Json => {
            line.push_str(r#"{"time":""#);
            push_time(line, at);
            let _ = write!(line, r#"","level":"{level}","target":{}"#, Value::from(target));
            push_message(line, message.to_string(), is_own);
        }
    }
}

/// The rest of a line in JSON: the message, and what it says as fields. Lines of other crates have
/// no fields.
fn push_message(line: &mut String, message: String, is_own: bool) {
    let parts = is_own.then(|| Parts::of(&message));
    let event = parts.as_ref().map_or(PLAIN, |parts| parts.event);
    let _ = write!(line, r#","event":"{event}""#);
    for parts in parts.iter() {
        if let Some(id) = parts.id {
            let _ = write!(line, r#","id":{}"#, Value::from(id));
        }
        for (name, value) in &parts.fields {
            let _ = write!(line, r#","{name}":{value}"#);
        }
    }
    drop(parts);
    let _ = write!(line, r#","message":{}}}"#, Value::from(message));
}

/// `2026-11-22T10:00:00.123Z`. Not through `write!`: its padded numbers cost as much as the rest of
/// a line.
fn push_time(line: &mut String, at: OffsetDateTime) {
    let (hour, minute, second, milli) = at.to_hms_milli();
    push_digits::<4>(line, at.year().unsigned_abs());
    let pairs =
        [('-', u8::from(at.month())), ('-', at.day()), ('T', hour), (':', minute), (':', second)];
    for (before, number) in pairs {
        line.push(before);
        push_digits::<2>(line, number.into());
    }
    line.push('.');
    push_digits::<3>(line, milli.into());
    line.push('Z');
}

/// The last `N` decimal digits of `number`.
fn push_digits<const N: usize>(line: &mut String, mut number: u32) {
    let mut digits = [0; N];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line.extend(digits.map(char::from));
}

/// Whether nothing has to be escaped, as in nearly every line. There is no early return, so that
/// the compiler checks many bytes at once.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

fn escape_into(line: &mut String, text: &str) {
    for c in text.chars() {
        // U+2028 and U+2029 are no control characters, but some readers end a line there.
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(1_795_341_600_123_456_789).unwrap()
    }

    fn line(
        format: Format,
        at: OffsetDateTime,
        level: Level,
        target: &str,
        message: &str,
    ) -> String {
        let mut line = String::new();
        write_line(&mut line, format, at, level, target, format_args!("{message}"));
        line
    }

    #[test]
    fn text_line() {
        let line = line(
            Format::Text,
            at(),
            Level::Info,
            "aivtuber_gateway::session::relay",
            "input_1 opened code=1000",
        );
        assert_eq!(line, "2026-11-22T10:00:00.123Z INFO  relay input_1 opened code=1000");
    }

    #[test]
    fn json_line() {
        let line = line(Format::Json, at(), Level::Error, "demo", "say \"hi\"\n\u{1b}[1m");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(value["time"], "2026-11-22T10:00:00.123Z");
        assert_eq!(value["level"], "ERROR");
        assert_eq!(value["target"], "demo");
        assert_eq!(value["message"], "say \"hi\"\n\u{1b}[1m");
        assert_eq!(value["event"], "message");
        assert_eq!(value.as_object().unwrap().len(), 5);
    }

    #[test]
    fn json_line_has_a_field_for_each_key() {
        let message = "input_1 opened client=192.0.2.7:5000 user_agent=\"a \\\"b\"";
        let line = line(Format::Json, at(), Level::Info, "relay", message);
        assert_eq!(
            line,
            r#"{"time":"2026-11-22T10:00:00.123Z","level":"INFO","target":"relay","event":"opened","id":"input_1","client":"192.0.2.7:5000","user_agent":"a \"b","message":"input_1 opened client=192.0.2.7:5000 user_agent=\"a \\\"b\""}"#
        );
    }

    #[test]
    fn lines_of_other_crates_have_no_fields() {
        let line = line(Format::Json, at(), Level::Warn, "mio::poll", "input_1 closed code=1000");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value.get("id"), value.get("code")), (None, None));
        assert_eq!(value["event"], "message");
    }

    #[test]
    fn control_characters_are_escaped() {
        let line = line(
            Format::Text,
            at(),
            Level::Warn,
            "x",
            "a\r\n2026 INFO forged\u{1b}[31m\u{85}\u{2028}é\\",
        );
        assert!(
            line.ends_with("x a\\r\\n2026 INFO forged\\u{1b}[31m\\u{85}\\u{2028}é\\"),
            "{line}"
        );
    }
}
