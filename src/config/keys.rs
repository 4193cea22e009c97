//! The table of keys: each with its section, its bounds, and how it is read and shown.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::addresses::{check_prefix, set_listen, set_redis, without_password};
use super::settings::Config;
use super::values::{
    FORMAT, GIB, KIB, LONGEST, MIB, ON_BACKEND_FAILURE, SUBSCRIBE, TIB, a_type, each, meaning_of,
    parse_level, parse_size, parse_time, quoted, show_size, show_time, strings, whole, word_of,
};
use crate::service::limits::OriginRule;

/// A table of the file.
pub struct Section {
    pub name: &'static str,
    pub keys: &'static [Key],
}

/// A key of the file.
pub struct Key {
    pub name: &'static str,
    pub(super) kind: Kind,
    needs_restart: bool,
}

impl Key {
    /// Whether a reload goes on with the old value, and says so.
    pub fn needs_restart(&self) -> bool {
        self.needs_restart
    }
}

/// What a key takes, and where its value lives.
pub(super) enum Kind {
    /// `"500ms"`; `"0s"` is `None`.
    Time { get: fn(&Config) -> Option<Duration>, set: fn(&mut Config, Option<Duration>) },
    /// `"64KiB"` or bytes. Where zero is allowed, it means off or nothing, whatever `range` says.
    Size {
        get: fn(&Config) -> u64,
        set: fn(&mut Config, u64),
        allows_zero: bool,
        range: RangeInclusive<u64>,
    },
    /// A whole number, both ends allowed.
    Count { get: fn(&Config) -> u64, set: fn(&mut Config, u64), least: u64, most: u64 },
    /// `true` or `false`.
    Flag { get: fn(&Config) -> bool, set: fn(&mut Config, bool) },
    /// A string.
    Text { get: fn(&Config) -> String, set: fn(&mut Config, &str) -> Result<(), String> },
    /// A string or a list of them. The error says which.
    List { get: fn(&Config) -> Vec<String>, set: SetList },
}

type SetList = fn(&mut Config, &[String]) -> Result<(), (usize, String)>;

macro_rules! time {
    ($($field:ident).+) => { Kind::Time { get: |c| c.$($field).+, set: |c, value| c.$($field).+ = value } };
}

macro_rules! size {
    ($($field:ident).+, $allows_zero:expr, $range:expr) => {
        Kind::Size {
            get: |c| c.$($field).+ as u64,
            set: |c, value| c.$($field).+ = value as _,
            allows_zero: $allows_zero,
            range: $range,
        }
    };
}

/// A size whose zero is `None`.
macro_rules! limit {
    ($($field:ident).+, $range:expr) => {
        Kind::Size {
            get: |c| c.$($field).+.unwrap_or(0),
            set: |c, value| c.$($field).+ = (value > 0).then_some(value),
            allows_zero: true,
            range: $range,
        }
    };
}

const fn live(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, needs_restart: false }
}

const fn at_start(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, needs_restart: true }
}

/// Every table and key, in the order of `config.toml`. The routes stand before `[output]`.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "server",
        keys: &[
            at_start(
                "listen",
                Kind::List {
                    get: |c| c.reactor.listen.iter().map(SocketAddr::to_string).collect(),
                    set: |c, addresses| set_listen(c, addresses),
                },
            ),
            at_start(
                "reuse_port",
                Kind::Flag {
                    get: |c| c.reactor.reuse_port,
                    set: |c, value| c.reactor.reuse_port = value,
                },
            ),
            live(
                "max_connections",
                Kind::Count {
                    get: |c| c.gateway.limits.max_connections as u64,
                    set: |c, value| c.gateway.limits.max_connections = value as usize,
                    least: 1,
                    most: 1_000_000,
                },
            ),
            live(
                "max_connections_per_ip",
                Kind::Count {
                    get: |c| c.gateway.limits.max_connections_per_ip as u64,
                    set: |c, value| c.gateway.limits.max_connections_per_ip = value as usize,
                    least: 0,
                    most: 1_000_000,
                },
            ),
            live("header_timeout", time!(gateway.session.header_timeout)),
            live("keep_alive", time!(gateway.session.keep_alive)),
            live("drain_timeout", time!(gateway.drain_timeout)),
            live(
                "allowed_origins",
                Kind::List {
                    get: |c| {
                        c.gateway.limits.allowed_origins.iter().map(OriginRule::to_string).collect()
                    },
                    set: |c, rules| {
                        c.gateway.limits.allowed_origins = each(rules, OriginRule::parse)?;
                        Ok(())
                    },
                },
            ),
        ],
    },
    Section {
        name: "proxy",
        keys: &[
            live("connect_timeout", time!(gateway.session.connect_timeout)),
            live("handshake_timeout", time!(gateway.session.handshake_timeout)),
            live("ping_interval", time!(gateway.session.ping_interval)),
            live("ping_timeout", time!(gateway.session.ping_timeout)),
            live("idle_timeout", time!(gateway.session.idle_timeout)),
            live("max_message", limit!(gateway.session.max_message, 1..=TIB)),
            live(
                "on_backend_failure",
                Kind::Text {
                    get: |c| {
                        word_of(ON_BACKEND_FAILURE, c.gateway.session.on_backend_failure).into()
                    },
                    set: |c, word| {
                        c.gateway.session.on_backend_failure =
                            meaning_of(ON_BACKEND_FAILURE, word)?;
                        Ok(())
                    },
                },
            ),
        ],
    },
    Section {
        name: "output",
        keys: &[
            live("timeout", time!(gateway.session.output.timeout)),
            live("chunk_size", size!(gateway.session.output.chunk_size, false, KIB..=16 * MIB)),
            live(
                "audio_root",
                Kind::Text {
                    get: |c| c.gateway.session.output.audio_root.to_string_lossy().into_owned(),
                    set: |c, path| {
                        if path.is_empty() {
                            return Err("a folder must be named".into());
                        }
                        c.gateway.session.output.audio_root = path.into();
                        Ok(())
                    },
                },
            ),
            live("max_audio", size!(gateway.session.output.max_audio, false, 1..=TIB)),
            live("retain", time!(gateway.tasks.retain)),
            live("max_retained", size!(gateway.tasks.max_retained, true, 1..=64 * GIB)),
        ],
    },
    Section {
        name: "redis",
        keys: &[
            at_start(
                "url",
                Kind::List {
                    get: |c| c.gateway.link.urls.clone(),
                    set: |c, urls| set_redis(c, urls),
                },
            ),
            at_start(
                "channel_prefix",
                Kind::Text {
                    get: |c| c.gateway.link.channel_prefix.clone(),
                    set: |c, prefix| {
                        c.gateway.link.channel_prefix = check_prefix(prefix)?;
                        Ok(())
                    },
                },
            ),
            at_start(
                "subscribe",
                Kind::Text {
                    get: |c| word_of(SUBSCRIBE, c.gateway.link.subscribe).into(),
                    set: |c, word| {
                        c.gateway.link.subscribe = meaning_of(SUBSCRIBE, word)?;
                        Ok(())
                    },
                },
            ),
            live("grace", time!(gateway.link.grace)),
        ],
    },
    Section {
        name: "log",
        keys: &[
            live(
                "level",
                Kind::Text {
                    get: |c| c.log.level.to_string().to_lowercase(),
                    set: |c, level| {
                        c.log.level = parse_level(level)?;
                        Ok(())
                    },
                },
            ),
            live(
                "file",
                Kind::Text {
                    get: |c| {
                        c.log
                            .file
                            .as_deref()
                            .map_or(String::new(), |path| path.to_string_lossy().into_owned())
                    },
                    set: |c, path| {
                        c.log.file = (!path.is_empty()).then(|| path.into());
                        Ok(())
                    },
                },
            ),
            live(
                "format",
                Kind::Text {
                    get: |c| word_of(FORMAT, c.log.format).into(),
                    set: |c, word| {
                        c.log.format = meaning_of(FORMAT, word)?;
                        Ok(())
                    },
                },
            ),
            live("max_size", limit!(log.max_size, 4 * KIB..=TIB)),
            live(
                "keep",
                Kind::Count {
                    get: |c| c.log.keep.into(),
                    set: |c, value| c.log.keep = value as u32,
                    least: 0,
                    most: 1000,
                },
            ),
        ],
    },
];

impl Kind {
    /// What it takes, to end a sentence.
    fn allowed(&self) -> String {
        match self {
            Kind::Time { .. } => {
                format!(
                    "a duration such as \"500ms\", \"10s\", \"5m\" or \"1h\", at most \"{}\", or \"0s\"",
                    LONGEST.0
                )
            }
            Kind::Size { allows_zero, range, .. } => format!(
                "a size such as \"64KiB\", \"16MiB\" or a number of bytes, from {} to {}{}",
                show_size(*range.start()),
                show_size(*range.end()),
                if *allows_zero { ", or \"0\"" } else { "" }
            ),
            Kind::Count { least, most, .. } => format!("a whole number from {least} to {most}"),
            Kind::Flag { .. } => "true or false".into(),
            Kind::Text { .. } => "a string".into(),
            Kind::List { .. } => "a string, or a list of strings".into(),
        }
    }

    pub(super) fn show(&self, config: &Config) -> String {
        match self {
            Kind::Time { get, .. } => quoted(&get(config).map_or("0s".into(), show_time)),
            Kind::Size { get, .. } => quoted(&show_size(get(config))),
            Kind::Count { get, .. } => get(config).to_string(),
            Kind::Flag { get, .. } => get(config).to_string(),
            Kind::Text { get, .. } => quoted(&get(config)),
            Kind::List { get, .. } => show_list(&get(config)),
        }
    }

    pub(super) fn differs(&self, old: &Config, new: &Config) -> bool {
        match self {
            // Compared as they are: shown, two passwords look the same.
            Kind::List { get, .. } => get(old) != get(new),
            _ => self.show(old) != self.show(new),
        }
    }

    pub(super) fn copy(&self, from: &Config, to: &mut Config) {
        match self {
            Kind::Time { get, set } => set(to, get(from)),
            Kind::Size { get, set, .. } | Kind::Count { get, set, .. } => set(to, get(from)),
            Kind::Flag { get, set } => set(to, get(from)),
            Kind::Text { get, set } => set(to, &get(from)).expect("a value in use is right"),
            Kind::List { get, set } => set(to, &get(from)).expect("a value in use is right"),
        }
    }

    pub(super) fn read(
        &self,
        config: &mut Config,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), (Range<usize>, String)> {
        let at = |why| (value.span(), why);
        let wrong_type =
            || at(format!("it is {}, what is allowed is {}", a_type(value), self.allowed()));
        let refused = |why| at(format!("{why}; what is allowed is {}", self.allowed()));
        match self {
            Kind::Time { set, .. } => {
                let text = value.get_ref().as_str().ok_or_else(wrong_type)?;
                set(config, parse_time(text).map_err(refused)?);
            }
            Kind::Size { set, allows_zero, range, .. } => {
                let bytes = match value.get_ref() {
                    DeValue::String(text) => parse_size(text),
                    DeValue::Integer(number) => whole(number)
                        .ok_or_else(|| format!("{} is no number of bytes", number.as_str())),
                    _ => return Err(wrong_type()),
                }
                .map_err(refused)?;
                if !(range.contains(&bytes) || bytes == 0 && *allows_zero) {
                    return Err(refused(format!("{} is out of range", show_size(bytes))));
                }
                set(config, bytes);
            }
            Kind::Count { set, least, most, .. } => {
                let DeValue::Integer(number) = value.get_ref() else { return Err(wrong_type()) };
                match whole(number) {
                    Some(count) if (*least..=*most).contains(&count) => set(config, count),
                    _ => return Err(refused(format!("{} is out of range", number.as_str()))),
                }
            }
            Kind::Flag { set, .. } => {
                let DeValue::Boolean(value) = value.get_ref() else { return Err(wrong_type()) };
                set(config, *value);
            }
            Kind::Text { set, .. } => {
                let text = value.get_ref().as_str().ok_or_else(wrong_type)?;
                set(config, text).map_err(at)?;
            }
            Kind::List { set, .. } => {
                let (texts, spans) = strings(value).ok_or_else(wrong_type)?;
                set(config, &texts).map_err(|(index, why)| {
                    (spans.get(index).cloned().unwrap_or(value.span()), why)
                })?;
            }
        }
        Ok(())
    }
}

fn show_list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(&without_password(text))).collect();
    format!("[{}]", texts.join(", "))
}
