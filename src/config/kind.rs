//! What a key takes: how its value is read from the file, shown, compared and copied.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::addresses::without_password;
use super::problems::{BadItem, BadValue};
use super::settings::Config;
use super::values::{
    LONGEST, Pair, pairs, parse_time, quoted, show_size, show_time, size, strings, type_name, whole,
};
use crate::session::{MemoryLimit, RedirectHttp};

/// The type of a key's value, its bounds, and where in [`Config`] it is.
pub(super) enum KeyKind {
    /// `"500ms"`; `"0s"` is `None`.
    Time { get: fn(&Config) -> Option<Duration>, set: fn(&mut Config, Option<Duration>) },
    /// `"64KiB"` or a number of bytes. Zero may be allowed besides `range`: it means off, or
    /// nothing.
    Size {
        get: fn(&Config) -> u64,
        set: fn(&mut Config, u64),
        allows_zero: bool,
        range: RangeInclusive<u64>,
    },
    /// `"auto"`, a size, or 0 for no limit.
    Memory {
        get: fn(&Config) -> MemoryLimit,
        set: fn(&mut Config, MemoryLimit),
        range: RangeInclusive<u64>,
    },
    /// A whole number.
    Count { get: fn(&Config) -> u64, set: fn(&mut Config, u64), range: RangeInclusive<u64> },
    /// `true` or `false`.
    Flag { get: fn(&Config) -> bool, set: fn(&mut Config, bool) },
    /// `true`, `false` or a port.
    FlagOrPort { get: fn(&Config) -> RedirectHttp, set: fn(&mut Config, RedirectHttp) },
    /// A string.
    Text {
        get: fn(&Config) -> String,
        set: fn(&mut Config, &str) -> Result<(), String>,
        /// Another value than the default, as the file has it.
        example: &'static str,
    },
    /// One of several words.
    Word {
        words: fn() -> Vec<&'static str>,
        get: fn(&Config) -> String,
        set: fn(&mut Config, &str) -> Result<(), String>,
        /// Another value than the default, as the file has it.
        example: &'static str,
    },
    /// A table of strings.
    Map {
        get: fn(&Config) -> Vec<Pair>,
        set: SetMap,
        /// Another value than the default, as the file has it.
        example: &'static str,
    },
    /// A string or a list of strings.
    List {
        get: fn(&Config) -> Vec<String>,
        set: SetList,
        /// Another value than the default, as the file has it.
        example: &'static str,
    },
}

type SetMap = fn(&mut Config, &[Pair]) -> Result<(), BadItem>;
type SetList = fn(&mut Config, &[String]) -> Result<(), BadItem>;

impl KeyKind {
    /// What the key takes, to follow the word "expected".
    fn expected(&self) -> String {
        match self {
            KeyKind::Time { .. } => {
                format!(
                    "a duration such as \"500ms\", \"10s\", \"5m\" or \"1h\", at most \"{}\", or \"0s\"",
                    LONGEST.0
                )
            }
            KeyKind::Size { allows_zero, range, .. } => format!(
                "a size such as \"64KiB\", \"16MiB\" or a number of bytes, from {} to {}{}",
                show_size(*range.start()),
                show_size(*range.end()),
                if *allows_zero { ", or \"0\"" } else { "" }
            ),
            KeyKind::Memory { range, .. } => format!(
                "\"auto\", a size such as \"512MiB\" or a number of bytes, from {} to {}, or \"0\"",
                show_size(*range.start()),
                show_size(*range.end()),
            ),
            KeyKind::Count { range, .. } => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            KeyKind::Flag { .. } => "true or false".into(),
            KeyKind::FlagOrPort { .. } => "true, false or a port".into(),
            KeyKind::Text { .. } | KeyKind::Word { .. } => "a string".into(),
            KeyKind::Map { .. } => "a table of strings such as { \"a\" = \"b\" }".into(),
            KeyKind::List { .. } => "a string, or a list of strings".into(),
        }
    }

    /// A valid value, as the file has it, that is not the default.
    pub(super) fn example(&self) -> &'static str {
        match self {
            KeyKind::Time { .. } => "\"17s\"",
            KeyKind::Size { .. } => "\"17KiB\"",
            KeyKind::Memory { .. } => "\"17GiB\"",
            KeyKind::Count { .. } => "17",
            KeyKind::Flag { .. } => "true",
            KeyKind::FlagOrPort { .. } => "17",
            KeyKind::Text { example, .. }
            | KeyKind::Word { example, .. }
            | KeyKind::Map { example, .. }
            | KeyKind::List { example, .. } => example,
        }
    }

    /// The value as the file has it, without passwords.
    pub(super) fn show(&self, config: &Config) -> String {
        match self {
            KeyKind::Time { get, .. } => quoted(&get(config).map_or("0s".into(), show_time)),
            KeyKind::Size { get, .. } => quoted(&show_size(get(config))),
            KeyKind::Memory { get, .. } => quoted(&match get(config) {
                MemoryLimit::Auto => "auto".into(),
                MemoryLimit::Bytes(bytes) => show_size(bytes),
                MemoryLimit::Unlimited => "0".into(),
            }),
            KeyKind::Count { get, .. } => get(config).to_string(),
            KeyKind::Flag { get, .. } => get(config).to_string(),
            KeyKind::FlagOrPort { get, .. } => match get(config) {
                RedirectHttp::No => "false".into(),
                RedirectHttp::ToListener => "true".into(),
                RedirectHttp::ToPort(port) => port.to_string(),
            },
            KeyKind::Text { get, .. } | KeyKind::Word { get, .. } => quoted(&get(config)),
            KeyKind::Map { get, .. } => show_map(&get(config)),
            KeyKind::List { get, .. } => show_list(&get(config)),
        }
    }

    /// Whether the two have different values.
    pub(super) fn differs(&self, old: &Config, new: &Config) -> bool {
        match self {
            // Not as they are shown, where all passwords look the same.
            KeyKind::List { get, .. } => get(old) != get(new),
            _ => self.show(old) != self.show(new),
        }
    }

    /// Sets the value in `to` to that in `from`.
    pub(super) fn copy(&self, from: &Config, to: &mut Config) {
        match self {
            KeyKind::Time { get, set } => set(to, get(from)),
            KeyKind::Size { get, set, .. } | KeyKind::Count { get, set, .. } => set(to, get(from)),
            KeyKind::Memory { get, set, .. } => set(to, get(from)),
            KeyKind::Flag { get, set } => set(to, get(from)),
            KeyKind::FlagOrPort { get, set } => set(to, get(from)),
            KeyKind::Text { get, set, .. } | KeyKind::Word { get, set, .. } => {
                set(to, &get(from)).expect("a value in use is valid");
            }
            KeyKind::Map { get, set, .. } => set(to, &get(from)).expect("a value in use is valid"),
            KeyKind::List { get, set, .. } => set(to, &get(from)).expect("a value in use is valid"),
        }
    }

    /// Sets the value in `config` to that in the file.
    pub(super) fn read(
        &self,
        config: &mut Config,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), BadValue> {
        let at = |why| BadValue { span: value.span(), why };
        let wrong_type = || at(format!("found {}, expected {}", type_name(value), self.expected()));
        let refused = |why| at(format!("{why}; expected {}", self.expected()));
        match self {
            KeyKind::Time { set, .. } => {
                let text = value.get_ref().as_str().ok_or_else(wrong_type)?;
                set(config, parse_time(text).map_err(refused)?);
            }
            KeyKind::Size { set, allows_zero, range, .. } => {
                let bytes = size(value).ok_or_else(wrong_type)?.map_err(refused)?;
                if !(range.contains(&bytes) || bytes == 0 && *allows_zero) {
                    return Err(refused(format!("{} is out of range", show_size(bytes))));
                }
                set(config, bytes);
            }
            KeyKind::Memory { set, .. } if value.get_ref().as_str() == Some("auto") => {
                set(config, MemoryLimit::Auto);
            }
            KeyKind::Memory { set, range, .. } => {
                match size(value).ok_or_else(wrong_type)?.map_err(refused)? {
                    0 => set(config, MemoryLimit::Unlimited),
                    bytes if range.contains(&bytes) => set(config, MemoryLimit::Bytes(bytes)),
                    bytes => return Err(refused(format!("{} is out of range", show_size(bytes)))),
                }
            }
            KeyKind::Count { set, range, .. } => {
                let DeValue::Integer(number) = value.get_ref() else { return Err(wrong_type()) };
                match whole(number) {
                    Some(count) if range.contains(&count) => set(config, count),
                    _ => return Err(refused(format!("{} is out of range", number.as_str()))),
                }
            }
            KeyKind::Flag { set, .. } => {
                let DeValue::Boolean(value) = value.get_ref() else { return Err(wrong_type()) };
                set(config, *value);
            }
            KeyKind::FlagOrPort { set, .. } => match value.get_ref() {
                DeValue::Boolean(false) => set(config, RedirectHttp::No),
                DeValue::Boolean(true) => set(config, RedirectHttp::ToListener),
                DeValue::Integer(number) => {
                    let port = whole(number).and_then(|port| u16::try_from(port).ok());
                    let port = port.filter(|port| *port > 0);
                    let out_of_range = || refused(format!("{} is no port", number.as_str()));
                    set(config, RedirectHttp::ToPort(port.ok_or_else(out_of_range)?));
                }
                _ => return Err(wrong_type()),
            },
            KeyKind::Text { set, .. } | KeyKind::Word { set, .. } => {
                let text = value.get_ref().as_str().ok_or_else(wrong_type)?;
                set(config, text).map_err(at)?;
            }
            KeyKind::Map { set, .. } => {
                let (pairs, spans) = pairs(value).ok_or_else(wrong_type)?;
                set(config, &pairs).map_err(|BadItem { index, why }| BadValue {
                    span: spans.get(index).cloned().unwrap_or(value.span()),
                    why,
                })?;
            }
            KeyKind::List { set, .. } => {
                let (texts, spans) = strings(value).ok_or_else(wrong_type)?;
                set(config, &texts).map_err(|BadItem { index, why }| BadValue {
                    span: spans.get(index).cloned().unwrap_or(value.span()),
                    why,
                })?;
            }
        }
        Ok(())
    }
}

fn show_map(pairs: &[Pair]) -> String {
    if pairs.is_empty() {
        return "{}".into();
    }
    let pairs: Vec<_> =
        pairs.iter().map(|(from, to)| format!("{} = {}", quoted(from), quoted(to))).collect();
    format!("{{ {} }}", pairs.join(", "))
}

fn show_list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(&without_password(text))).collect();
    format!("[{}]", texts.join(", "))
}
