//! The table of keys, in the order of `config.toml`: each with its section, its type and bounds.
//!
//! Reading, `--print-config`, reloading and the documentation test all use this one table. A new
//! key is one line here and its field in the settings of the part that it is for.

use super::addresses::{check_prefix, set_admin_listen, set_listen, set_password_file, set_redis};
use super::kind::KeyKind;
use super::problems::BadItem;
use super::settings::Config;
use super::values::{GIB, KIB, MIB, TIB, Words, each, log_levels, parse_level, value_of, word_of};
use crate::logging;
use crate::proto::http;
use crate::reactor::listeners::ListenOn;
use crate::service::audio_names::Mapping;
use crate::service::link::Subscribe;
use crate::service::origin::OriginRule;
use crate::service::trust::{PeerRule, parse_server_name};
use crate::session::{Failures, OnBackendFailure};

/// A table of the file.
pub struct Section {
    /// As in `[server]`.
    pub name: &'static str,
    /// In the order of `config.toml`.
    pub keys: &'static [Key],
}

/// A key of the file.
pub struct Key {
    /// Without its section.
    pub name: &'static str,
    pub(super) kind: KeyKind,
    needs_restart: bool,
}

impl Key {
    /// Whether a reload keeps the old value, with a warning, until the next start.
    pub fn needs_restart(&self) -> bool {
        self.needs_restart
    }

    /// A valid value, as the file has it, that is not the default: for tests that try every key.
    pub fn example(&self) -> &'static str {
        self.kind.example()
    }
}

/// A duration.
macro_rules! time {
    ($($field:ident).+) => {
        KeyKind::Time { get: |c| c.$($field).+, set: |c, value| c.$($field).+ = value }
    };
}

/// A size in bytes, within a range.
macro_rules! size {
    ($($field:ident).+, $range:expr) => { size!(@ $($field).+, $range, false) };
    ($($field:ident).+, 0 or $range:expr) => { size!(@ $($field).+, $range, true) };
    (@ $($field:ident).+, $range:expr, $allows_zero:expr) => {
        KeyKind::Size {
            get: |c| c.$($field).+ as u64,
            set: |c, value| c.$($field).+ = value as _,
            allows_zero: $allows_zero,
            range: $range,
        }
    };
}

/// A size in bytes that is `None` when it is 0.
macro_rules! limit {
    ($($field:ident).+, $range:expr) => {
        KeyKind::Size {
            get: |c| c.$($field).+.unwrap_or(0),
            set: |c, value| c.$($field).+ = (value > 0).then_some(value),
            allows_zero: true,
            range: $range,
        }
    };
}

/// A whole number, within a range.
macro_rules! count {
    ($($field:ident).+, $range:expr) => {
        KeyKind::Count {
            get: |c| c.$($field).+ as u64,
            set: |c, value| c.$($field).+ = value as _,
            range: $range,
        }
    };
}

/// `true` or `false`.
macro_rules! flag {
    ($($field:ident).+) => {
        KeyKind::Flag { get: |c| c.$($field).+, set: |c, value| c.$($field).+ = value }
    };
}

/// One of several words.
macro_rules! word {
    ($($field:ident).+, $words:expr, $example:literal) => {
        KeyKind::Word {
            words: || $words.iter().map(|(word, _)| *word).collect(),
            get: |c| word_of($words, c.$($field).+).into(),
            set: |c, word| {
                c.$($field).+ = value_of($words, word)?;
                Ok(())
            },
            example: concat!("\"", $example, "\""),
        }
    };
}

/// Addresses, networks and `unix`.
macro_rules! peers {
    ($($field:ident).+) => {
        KeyKind::List {
            get: |c| c.$($field).+.iter().map(PeerRule::to_string).collect(),
            set: |c, rules| {
                c.$($field).+ = each(rules, PeerRule::parse)?;
                Ok(())
            },
            example: "[\"10.17.0.0/16\"]",
        }
    };
}

/// Names of files; a string that is empty is none.
macro_rules! files {
    ($($field:ident).+, $example:literal) => {
        KeyKind::List {
            get: |c| c.$($field).+.clone(),
            set: |c, files| {
                c.$($field).+ = files.iter().filter(|file| !file.is_empty()).cloned().collect();
                Ok(())
            },
            example: $example,
        }
    };
}

/// A key that a reload takes into use.
const fn live(name: &'static str, kind: KeyKind) -> Key {
    Key { name, kind, needs_restart: false }
}

/// A key that only a restart takes into use.
const fn at_start(name: &'static str, kind: KeyKind) -> Key {
    Key { name, kind, needs_restart: true }
}

const ON_BACKEND_FAILURE: Words<OnBackendFailure> =
    &[("close", OnBackendFailure::Close), ("http", OnBackendFailure::Http)];
const SUBSCRIBE: Words<Subscribe> = &[("pattern", Subscribe::Pattern), ("task", Subscribe::Task)];
const FAILURES: Words<Failures> =
    &[("debug", Failures::Everything), ("info", Failures::Steps), ("", Failures::Nothing)];

const FORMAT: Words<logging::Format> =
    &[("text", logging::Format::Text), ("json", logging::Format::Json)];

/// Every section with its keys. In `config.toml`, the routes come before `[output]`.
pub const SECTIONS: &[Section] = &[
    Section {
        name: "server",
        keys: &[
            at_start(
                "listen",
                KeyKind::List {
                    get: |c| c.reactor.listen.iter().map(ListenOn::to_string).collect(),
                    set: |c, addresses| set_listen(c, addresses),
                    example: "[\"127.0.0.1:17\"]",
                },
            ),
            at_start("reuse_port", flag!(reactor.reuse_port)),
            live("max_connections", count!(gateway.limits.max_connections, 1..=1_000_000)),
            live(
                "max_connections_per_ip",
                count!(gateway.limits.max_connections_per_ip, 0..=1_000_000),
            ),
            live(
                "memory_limit",
                KeyKind::Memory {
                    get: |c| c.gateway.session.memory_limit,
                    set: |c, limit| c.gateway.session.memory_limit = limit,
                    range: 8 * MIB..=64 * TIB,
                },
            ),
            live("header_timeout", time!(gateway.session.header_timeout)),
            live("max_head", size!(gateway.session.max_head, KIB..=http::HEAD_BYTES_LIMIT as u64)),
            live("keep_alive", time!(gateway.session.keep_alive)),
            live("write_timeout", time!(gateway.session.write_timeout)),
            live("drain_timeout", time!(gateway.drain_timeout)),
            live(
                "allowed_origins",
                KeyKind::List {
                    get: |c| {
                        c.gateway.limits.allowed_origins.iter().map(OriginRule::to_string).collect()
                    },
                    set: |c, rules| {
                        c.gateway.limits.allowed_origins = each(rules, OriginRule::parse)?;
                        Ok(())
                    },
                    example: "[\"https://17.example\"]",
                },
            ),
            live("admin_from", peers!(gateway.trust.admin_from)),
            at_start(
                "admin_listen",
                KeyKind::List {
                    get: |c| c.reactor.admin.iter().map(ListenOn::to_string).collect(),
                    set: |c, addresses| set_admin_listen(c, addresses),
                    example: "[\"127.0.0.1:17\"]",
                },
            ),
            live(
                "server_names",
                KeyKind::List {
                    get: |c| c.gateway.trust.server_names.clone(),
                    set: |c, names| {
                        c.gateway.trust.server_names = each(names, parse_server_name)?;
                        Ok(())
                    },
                    example: "[\"seventeen.example\"]",
                },
            ),
            live("trusted_proxies", peers!(gateway.trust.trusted_proxies)),
            live("allow_tap_payload", flag!(gateway.session.allow_tap_payload)),
            live(
                "redirect_http",
                KeyKind::FlagOrPort {
                    get: |c| c.gateway.session.redirect_http,
                    set: |c, redirect| c.gateway.session.redirect_http = redirect,
                },
            ),
            live("proxy_protocol", flag!(gateway.trust.proxy_protocol)),
        ],
    },
    Section {
        name: "tls",
        keys: &[
            live("certificate", files!(gateway.tls.certificate, "[\"seventeen.pem\"]")),
            live("key", files!(gateway.tls.key, "[\"seventeen.key\"]")),
            live(
                "ca",
                KeyKind::Text {
                    get: |c| c.gateway.tls.ca.clone(),
                    set: |c, path| {
                        c.gateway.tls.ca = path.into();
                        Ok(())
                    },
                    example: "\"seventeen.pem\"",
                },
            ),
        ],
    },
    Section {
        name: "proxy",
        keys: &[
            live("connect_timeout", time!(gateway.session.connect_timeout)),
            live("attempt_timeout", time!(gateway.session.attempt_timeout)),
            live("handshake_timeout", time!(gateway.session.handshake_timeout)),
            live("resolve_interval", time!(gateway.upstreams.resolve_interval)),
            live("ping_interval", time!(gateway.session.ping_interval)),
            live("ping_timeout", time!(gateway.session.ping_timeout)),
            live("idle_timeout", time!(gateway.session.idle_timeout)),
            live("max_message", limit!(gateway.session.max_message, 1..=TIB)),
            live(
                "on_backend_failure",
                word!(gateway.session.on_backend_failure, ON_BACKEND_FAILURE, "http"),
            ),
            live("response_timeout", time!(gateway.session.response_timeout)),
            live("max_body", limit!(gateway.session.max_body, 1..=TIB)),
        ],
    },
    Section {
        name: "output",
        keys: &[
            live("timeout", time!(gateway.session.output.timeout)),
            live("chunk_size", size!(gateway.session.output.chunk_size, KIB..=16 * MIB)),
            live(
                "audio_root",
                KeyKind::Text {
                    get: |c| c.gateway.session.output.audio_root.to_string_lossy().into_owned(),
                    set: |c, path| {
                        if path.is_empty() {
                            return Err("the name of a folder is missing".into());
                        }
                        c.gateway.session.output.audio_root = path.into();
                        Ok(())
                    },
                    example: "\"/seventeen\"",
                },
            ),
            live(
                "path_map",
                KeyKind::Map {
                    get: |c| {
                        let map = c.gateway.session.output.path_map.iter();
                        map.map(|mapping| (mapping.from.clone(), mapping.to.clone())).collect()
                    },
                    set: |c, pairs| set_path_map(c, pairs),
                    example: "{ \"/seventeen\" = \"/17\" }",
                },
            ),
            live("max_audio", size!(gateway.session.output.max_audio, 1..=TIB)),
            live("audio_wait", time!(gateway.session.output.audio_wait)),
            live("audio_stall", time!(gateway.session.output.audio_stall)),
            live(
                "spool",
                KeyKind::Text {
                    get: |c| c.gateway.session.output.spool.to_string_lossy().into_owned(),
                    set: |c, path| {
                        c.gateway.session.output.spool = path.into();
                        Ok(())
                    },
                    example: "\"/seventeen\"",
                },
            ),
            live("max_spool", size!(gateway.tasks.max_spool, KIB..=TIB)),
            live("retain", time!(gateway.tasks.retain)),
            live("max_retained", size!(gateway.tasks.max_retained, 0 or 1..=64 * GIB)),
        ],
    },
    Section {
        name: "redis",
        keys: &[
            at_start(
                "url",
                KeyKind::List {
                    get: |c| c.gateway.link.urls.clone(),
                    set: |c, urls| set_redis(c, urls),
                    example: "[\"redis://seventeen\"]",
                },
            ),
            live(
                "password_file",
                KeyKind::Text {
                    get: |c| c.gateway.link.password_file.clone(),
                    set: |c, path| set_password_file(c, path),
                    example: "\"Cargo.toml\"",
                },
            ),
            at_start(
                "channel_prefix",
                KeyKind::Text {
                    get: |c| c.gateway.link.channel_prefix.clone(),
                    set: |c, prefix| {
                        c.gateway.link.channel_prefix = check_prefix(prefix)?;
                        Ok(())
                    },
                    example: "\"seventeen:\"",
                },
            ),
            at_start(
                "control_prefix",
                KeyKind::Text {
                    get: |c| c.gateway.link.control_prefix.clone(),
                    set: |c, prefix| {
                        c.gateway.link.control_prefix = check_prefix(prefix)?;
                        Ok(())
                    },
                    example: "\"eighteen:\"",
                },
            ),
            at_start("subscribe", word!(gateway.link.subscribe, SUBSCRIBE, "task")),
            live("grace", time!(gateway.link.grace)),
        ],
    },
    Section {
        name: "log",
        keys: &[
            live(
                "level",
                KeyKind::Word {
                    words: || log_levels().collect(),
                    get: |c| c.log.level.to_string().to_lowercase(),
                    set: |c, level| {
                        c.log.level = parse_level(level)?;
                        Ok(())
                    },
                    example: "\"debug\"",
                },
            ),
            live(
                "file",
                KeyKind::Text {
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
                    example: "\"seventeen.log\"",
                },
            ),
            live("format", word!(log.format, FORMAT, "json")),
            live("max_size", limit!(log.max_size, 4 * KIB..=TIB)),
            live("keep", count!(log.keep, 0..=1000)),
            live("failures", word!(gateway.session.failures, FAILURES, "info")),
        ],
    },
];

fn set_path_map(config: &mut Config, pairs: &[(String, String)]) -> Result<(), BadItem> {
    let map = pairs.iter().enumerate().map(|(index, (from, to))| {
        if from.is_empty() || to.is_empty() {
            return Err(BadItem::new(index, "a prefix and its replacement must not be empty"));
        }
        Ok(Mapping { from: from.clone(), to: to.clone() })
    });
    config.gateway.session.output.path_map = map.collect::<Result<_, _>>()?;
    Ok(())
}
