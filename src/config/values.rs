//! How values are written in the file: durations, sizes, words, strings and lists of strings.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use log::LevelFilter;
use toml::Spanned;
use toml::de::DeValue;

use super::nearest::did_you_mean;
use super::problems::BadItem;

/// The longest duration that any key takes, as text and as a value.
pub(super) const LONGEST: (&str, Duration) = ("720h", Duration::from_secs(720 * 3600));

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
pub(super) const GIB: u64 = 1024 * MIB;
pub(super) const TIB: u64 = 1024 * GIB;

/// The words that a key takes, each with its value.
pub(super) type Words<T> = &'static [(&'static str, T)];

const LEVELS: Words<LevelFilter> = &[
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

/// The word for a value.
pub(super) fn word_of<T: Copy + PartialEq>(words: Words<T>, value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).expect("every value has a word").0
}

/// The value of a word. The error lists the words.
pub(super) fn value_of<T: Copy>(words: Words<T>, word: &str) -> Result<T, String> {
    match words.iter().find(|(known, _)| *known == word) {
        Some((_, value)) => Ok(*value),
        None => {
            let known = || words.iter().map(|(known, _)| *known);
            let list = known().map(|known| format!("{known:?}")).collect::<Vec<_>>();
            let hint = did_you_mean(word, known());
            Err(format!("{word:?} is unknown, expected one of {}{hint}", list.join(", ")))
        }
    }
}

/// The words for log levels, the quietest first.
pub fn log_levels() -> impl Iterator<Item = &'static str> {
    LEVELS.iter().map(|(word, _)| *word)
}

/// Reads a log level, whatever its case.
pub(super) fn parse_level(word: &str) -> Result<LevelFilter, String> {
    value_of(LEVELS, &word.trim().to_ascii_lowercase())
}

/// The strings of a list, or a single string, each with its place; `None` for anything else.
pub(super) fn strings(value: &Spanned<DeValue<'_>>) -> Option<(Vec<String>, Vec<Range<usize>>)> {
    match value.get_ref() {
        DeValue::String(text) => Some((vec![text.to_string()], vec![value.span()])),
        DeValue::Array(items) => items
            .iter()
            .map(|item| Some((item.get_ref().as_str()?.to_owned(), item.span())))
            .collect::<Option<_>>(),
        _ => None,
    }
}

/// A key and its string.
pub(super) type Pair = (String, String);

/// The strings of a table with their keys, each with the place of its value; `None` for anything
/// else.
pub(super) fn pairs(value: &Spanned<DeValue<'_>>) -> Option<(Vec<Pair>, Vec<Range<usize>>)> {
    let DeValue::Table(table) = value.get_ref() else { return None };
    let pair = |(key, item): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        Some(((key.to_string(), item.get_ref().as_str()?.to_owned()), item.span()))
    };
    table.iter().map(pair).collect()
}

/// A TOML integer that is not negative, in any of its notations.
pub(super) fn whole(number: &toml::de::DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// What a value of the wrong type is called in messages.
pub(super) fn type_name(value: &Spanned<DeValue<'_>>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a decimal point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Reads `"500ms"`; zero is `None`, which means switched off.
pub(super) fn parse_time(text: &str) -> Result<Option<Duration>, String> {
    let (number, unit) = number_and_unit(text);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a duration"))?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" if number == 0 => 0,
        "" => return Err(format!("{text:?} has no unit")),
        _ => return Err(format!("{text:?} has an unknown unit")),
    };
    match number.checked_mul(milliseconds).map(Duration::from_millis) {
        Some(Duration::ZERO) => Ok(None),
        Some(time) if time <= LONGEST.1 => Ok(Some(time)),
        _ => Err(format!("{text:?} is too long")),
    }
}

/// Writes a duration so that it reads back as the same.
pub(super) fn show_time(time: Duration) -> String {
    let milliseconds = time.as_millis();
    // The largest unit that divides it.
    match [(3_600_000, "h"), (60_000, "m"), (1000, "s")]
        .into_iter()
        .find(|(unit, _)| milliseconds.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", milliseconds / unit),
        None => format!("{milliseconds}ms"),
    }
}

/// Reads `"64KiB"`: bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a size"))?;
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => KIB,
        "mib" => MIB,
        "gib" => GIB,
        "tib" => TIB,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        _ => return Err(format!("{text:?} has an unknown unit")),
    };
    number.checked_mul(bytes).ok_or_else(|| format!("{text:?} is too large"))
}

/// The size in a string or an integer; `None` for anything else.
pub(super) fn size(value: &Spanned<DeValue<'_>>) -> Option<Result<u64, String>> {
    match value.get_ref() {
        DeValue::String(text) => Some(parse_size(text)),
        DeValue::Integer(number) => Some(
            whole(number).ok_or_else(|| format!("{} is not a number of bytes", number.as_str())),
        ),
        _ => None,
    }
}

/// Writes a number of bytes so that it reads back as the same.
pub(super) fn show_size(bytes: u64) -> String {
    match [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit))
    {
        Some((unit, name)) if bytes > 0 => format!("{}{name}", bytes / unit),
        _ => bytes.to_string(),
    }
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (number, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    (number, unit.trim_start())
}

/// The text as a TOML basic string.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads every text with `read`; the error is about the first that it refuses.
pub(super) fn each<T>(
    texts: &[String],
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, BadItem> {
    let indexed = texts.iter().enumerate();
    indexed.map(|(index, text)| read(text).map_err(|why| BadItem::new(index, why))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("2 s", 2000)]
        {
            assert_eq!(parse_time(text), Ok(Some(Duration::from_millis(milliseconds))), "{text}");
        }
        for text in ["0s", "0ms", "0h", "0"] {
            assert_eq!(parse_time(text), Ok(None), "{text}");
        }
        for text in
            ["", "s", "1.5s", "1h30m", "+1s", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(parse_time(text).is_err(), "{text}");
        }
        for (text, bytes) in [
            ("0", 0),
            ("7", 7),
            ("7B", 7),
            ("64KiB", 65_536),
            ("64kib", 65_536),
            ("2MiB", 2 << 20),
            ("1GiB", 1 << 30),
            ("10MB", 10_000_000),
            ("3 kB", 3000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5MiB", "1K", "99999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
