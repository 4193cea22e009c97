//! One line of the log: time, level, target, message; escaped, so that no value can forge another
//! line.

use super::Format;
use log::Level;
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
    let target = match target.strip_prefix("aivtuber_gateway::") {
        Some(path) => path.rsplit("::").next().unwrap_or(path),
        None => target,
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
            let (target, message) =
                (serde_json::Value::from(target), serde_json::Value::from(message.to_string()));
            line.push_str(r#"{"time":""#);
            push_time(line, at);
            let _ = write!(line, r#"","level":"{level}","target":{target},"message":{message}}}"#);
        }
    }
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
        assert_eq!(value.as_object().unwrap().len(), 4);
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
