//! The configuration: flags, environment and `config.toml` in, the parts' own settings out.
//!
//! Keys are data: [`SECTIONS`] holds each with its section, its bounds and how it is read and shown. The reader, `--print-config`,
//! the comparison on a reload and the documentation test all walk that one table, so a key cannot be read and yet be forgotten
//! elsewhere. Routes are the exception: they are a list, so [`ROUTE_KEYS`] names their keys and `Reader::read_route` reads them.
//!
//! Surprising: a file is read to its end even when something in it is wrong, and everything that is wrong is told at once, each
//! with file, line and key. What does come out of [`load`] has been checked as a whole.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;
use redis::IntoConnectionInfo;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::service::limits::{self, OriginRule};
use crate::service::link::Subscribe;
use crate::service::route::{self, BackendUrl, RouteSettings, Target, Template};
use crate::session::OnBackendFailure;
use crate::{gateway, logging, reactor};

/// Where a file is looked for when no flag names one.
pub const SEARCHED: [&str; 2] = ["config.toml", "/etc/aivtuber-gateway/config.toml"];

/// The longest time a timeout may have, in words and as a duration.
const LONGEST: (&str, Duration) = ("720h", Duration::from_secs(720 * 3600));

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub reactor: reactor::Settings,
    pub gateway: gateway::Settings,
    pub log: logging::Settings,
}

impl Default for Config {
    fn default() -> Self {
        let gateway = gateway::Settings {
            session: Default::default(),
            limits: limits::Settings {
                max_connections: 10_000,
                max_connections_per_ip: 0,
                allowed_origins: Vec::new(),
            },
            routes: default_routes(),
            drain_timeout: Some(Duration::from_secs(30)),
            tasks: Default::default(),
            link: Default::default(),
        };
        Config {
            reactor: reactor::Settings {
                listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8000))],
                inbox: Vec::new(),
                reuse_port: false,
            },
            gateway,
            log: Default::default(),
        }
    }
}

/// What the command line says about settings. Kept for reloads: a flag wins each time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// The file to read, in place of [`SEARCHED`].
    pub config: Option<PathBuf>,
    /// In place of `server.listen`, unless empty.
    pub listen: Vec<String>,
    /// In place of `redis.url`, unless empty.
    pub redis: Vec<String>,
    pub log_level: Option<String>,
    pub log_file: Option<String>,
}

/// A configuration that can be used, and where it came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// What is odd but does no harm: to be logged.
    pub warnings: Vec<String>,
    /// The file that was read, if there was one.
    pub path: Option<PathBuf>,
}

/// An environment variable that is listened to.
pub struct Variable {
    pub name: &'static str,
    pub doc: &'static str,
    apply: fn(&mut Config, &str, Lookup) -> Result<(), Fault>,
}

/// Answers with the value of a variable that is set to something.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment, in the order in which it is taken.
pub const ENVIRONMENT: &[Variable] = &[
    Variable {
        name: "INPUT_HANDLER_URL",
        doc: "where the route `input` is relayed to, in place of its `backend`",
        apply: |config, url, _| relay(config, "input", url),
    },
    Variable {
        name: "OUTPUT_HANDLER_URL",
        doc: "where the route `output` is relayed to, in place of its `backend` or `serve`",
        apply: |config, url, _| relay(config, "output", url),
    },
    Variable {
        name: "REDIS_HOST",
        doc: "the host of `redis.url`; the port is REDIS_PORT or 6379",
        apply: |config, host, env| redis_at(config, host, env),
    },
    Variable {
        name: "REDIS_PORT",
        doc: "the port of `redis.url`; the host is REDIS_HOST or localhost",
        apply: |config, port, env| match env("REDIS_HOST") {
            _ if is_kubernetes(port) => Err(Fault::Warning(format!(
                "`{port}` is how Kubernetes points to a service called `redis`, not a port"
            ))),
            // It was taken together with the host.
            Some(_) => Ok(()),
            None => redis_at(config, "localhost", env),
        },
    },
    Variable {
        name: "REDIS_URL",
        doc: "`redis.url`; wins over REDIS_HOST and REDIS_PORT",
        apply: |config, url, _| {
            set_redis(config, &[url.into()]).map_err(|(_, why)| Fault::Error(why))
        },
    },
    Variable {
        name: "AIVTUBER_GATEWAY_LOG",
        doc: "`log.level`",
        apply: |config, level, _| {
            config.log.level = parse_level(level).map_err(Fault::Error)?;
            Ok(())
        },
    },
];

/// Reads flags, environment, file and defaults, in this precedence.
///
/// `env` answers with a variable's value. On a reload the same call is made again with the same flags.
pub fn load(flags: &Flags, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Loaded, Problems> {
    let (path, text) = match &flags.config {
        Some(path) => (Some(path.clone()), read(path)?),
        None => search(&SEARCHED)?,
    };
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut config = match &path {
        Some(path) => Reader::read_file(path, &text, &mut problems),
        None => Config::default(),
    };
    apply_environment(&mut config, env, &mut problems, &mut warnings);
    apply_flags(&mut config, flags, &mut problems);
    // The routes of a file that is wrong are not what its author meant: what the whole looks like says nothing then.
    if problems.is_empty()
        && let Err(why) = route::check(&config.gateway.routes)
    {
        problems.push(Problem { place: "the environment".into(), key: None, why });
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    Ok(Loaded { config, warnings, path })
}

/// Reads the text of a file alone, without flags and environment. `path` is for the messages.
pub fn parse(path: &Path, text: &str) -> Result<Config, Problems> {
    let mut problems = Vec::new();
    let config = Reader::read_file(path, text, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

impl Config {
    /// The whole configuration as a file that [`load`] reads as the same, apart from passwords in Redis URLs: they are `***`,
    /// because what is printed ends in chats and bug reports.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        if self.gateway.routes.is_empty() {
            // Without it, the default routes would be read back.
            text.push_str("route = []\n\n");
        }
        for section in SECTIONS {
            if section.name == "output" {
                for route in &self.gateway.routes {
                    show_route(&mut text, route);
                }
            }
            let _ = writeln!(text, "[{}]", section.name);
            for key in section.keys {
                let value = key.kind.show(self);
                if value.contains("***") {
                    text.push_str("# *** stands for a password that is not shown\n");
                }
                let _ = writeln!(text, "{} = {value}", key.name);
            }
            text.push('\n');
        }
        text.pop();
        text
    }

    /// What the first line of the log says about it: where it listens, its routes, and where results come from (`disabled` where no
    /// route serves any), without passwords.
    pub fn summary(&self) -> String {
        let listed =
            |words: Vec<String>| if words.is_empty() { "none".to_owned() } else { words.join(",") };
        let listen = self.reactor.listen.iter().map(ToString::to_string).collect();
        let routes = &self.gateway.routes;
        let redis = match routes.iter().any(|route| route.target == Target::Output) {
            true => {
                listed(self.gateway.link.urls.iter().map(|url| without_password(url)).collect())
            }
            false => "disabled".to_owned(),
        };
        let routes = routes.iter().map(|route| route.name.clone()).collect();
        format!("listen={} routes={} redis={redis}", listed(listen), listed(routes))
    }

    /// Makes a newly loaded configuration one that the running gateway can take: keys that only a restart takes into use keep the
    /// value that `running` has. Gives those that would have changed, such as `server.listen`, for a warning.
    pub fn keep_until_restart(&mut self, running: &Config) -> Vec<String> {
        let mut kept = Vec::new();
        for section in SECTIONS {
            for key in section.keys.iter().filter(|key| key.needs_restart) {
                if key.kind.differs(running, self) {
                    key.kind.copy(running, self);
                    kept.push(format!("{}.{}", section.name, key.name));
                }
            }
        }
        kept
    }
}

/// The URL as it may be shown: a password in it is `***`.
pub fn without_password(url: &str) -> String {
    let mut shown = url.to_owned();
    if let Some(scheme) = url.find("://") {
        let begin = scheme + 3;
        // The last `@`, because people forget to encode those in a password.
        if let Some(at) = url[begin..].rfind('@').map(|at| begin + at)
            && let Some(colon) = url[begin..at].find(':').map(|colon| begin + colon)
        {
            shown.replace_range(colon + 1..at, "***");
        }
    }
    // `unix:///path?pass=…`
    for name in ["?pass=", "&pass="] {
        if let Some(begin) = shown.find(name).map(|at| at + name.len()) {
            let end = shown[begin..].find('&').map_or(shown.len(), |end| begin + end);
            shown.replace_range(begin..end, "***");
        }
    }
    shown
}

/// All that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `config.toml:12`, `--listen` or `REDIS_URL`.
    pub place: String,
    /// `server.listen`.
    pub key: Option<String>,
    /// What is wrong and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.why)
    }
}

/// The word among `known` that was probably meant, if one is close.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| {
            // A part of the right name (`origins`) is as good as two slips of the finger.
            let is_part =
                word.len() >= 4 && (candidate.contains(&word) || word.contains(candidate));
            (if is_part { 2 } else { distance(&word, candidate) }, is_part, candidate)
        })
        .filter(|(distance, is_part, _)| *is_part || *distance <= allowed)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., candidate)| candidate)
}

/// Single-character changes, and swaps of neighbours, from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i.max(j)
            } else {
                let changed = usize::from(from[i - 1] != to[j - 1]);
                let mut least =
                    (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[from.len()][to.len()]
}

/// ", did you mean …?" or nothing.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or(String::new(), |name| format!(", did you mean `{name}`?"))
}

/// A table of the file.
pub struct Section {
    pub name: &'static str,
    pub keys: &'static [Key],
}

/// A key of the file.
pub struct Key {
    pub name: &'static str,
    kind: Kind,
    needs_restart: bool,
}

impl Key {
    /// Whether a reload goes on with the old value, and says so.
    pub fn needs_restart(&self) -> bool {
        self.needs_restart
    }
}

/// The keys of a `[[route]]`.
pub const ROUTE_KEYS: [&str; 5] = ["name", "path", "backend", "host", "serve"];

/// What a key takes, and where its value lives.
enum Kind {
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

/// Words with a meaning.
type Words<T> = &'static [(&'static str, T)];

const ON_BACKEND_FAILURE: Words<OnBackendFailure> =
    &[("close", OnBackendFailure::Close), ("http", OnBackendFailure::Http)];
const SUBSCRIBE: Words<Subscribe> = &[("pattern", Subscribe::Pattern), ("task", Subscribe::Task)];
const FORMAT: Words<logging::Format> =
    &[("text", logging::Format::Text), ("json", logging::Format::Json)];
const LEVELS: Words<LevelFilter> = &[
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn word_of<T: Copy + PartialEq>(words: Words<T>, meaning: T) -> &'static str {
    words.iter().find(|(_, known)| *known == meaning).expect("every meaning has its word").0
}

fn meaning_of<T: Copy>(words: Words<T>, word: &str) -> Result<T, String> {
    match words.iter().find(|(known, _)| *known == word) {
        Some((_, meaning)) => Ok(*meaning),
        None => {
            let known = || words.iter().map(|(known, _)| *known);
            let list = known().map(|known| format!("{known:?}")).collect::<Vec<_>>();
            let (last, first) = list.split_last().expect("there are words");
            let hint = did_you_mean(word, known());
            Err(format!("{word:?} is none of {} and {last}{hint}", first.join(", ")))
        }
    }
}

fn parse_level(word: &str) -> Result<LevelFilter, String> {
    meaning_of(LEVELS, &word.trim().to_ascii_lowercase())
}

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

    fn show(&self, config: &Config) -> String {
        match self {
            Kind::Time { get, .. } => quoted(&get(config).map_or("0s".into(), show_time)),
            Kind::Size { get, .. } => quoted(&show_size(get(config))),
            Kind::Count { get, .. } => get(config).to_string(),
            Kind::Flag { get, .. } => get(config).to_string(),
            Kind::Text { get, .. } => quoted(&get(config)),
            Kind::List { get, .. } => show_list(&get(config)),
        }
    }

    fn differs(&self, old: &Config, new: &Config) -> bool {
        match self {
            // Compared as they are: shown, two passwords look the same.
            Kind::List { get, .. } => get(old) != get(new),
            _ => self.show(old) != self.show(new),
        }
    }

    fn copy(&self, from: &Config, to: &mut Config) {
        match self {
            Kind::Time { get, set } => set(to, get(from)),
            Kind::Size { get, set, .. } | Kind::Count { get, set, .. } => set(to, get(from)),
            Kind::Flag { get, set } => set(to, get(from)),
            Kind::Text { get, set } => set(to, &get(from)).expect("a value in use is right"),
            Kind::List { get, set } => set(to, &get(from)).expect("a value in use is right"),
        }
    }

    fn read(
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

/// A string, or all strings of a list, each with its place.
fn strings(value: &Spanned<DeValue<'_>>) -> Option<(Vec<String>, Vec<Range<usize>>)> {
    match value.get_ref() {
        DeValue::String(text) => Some((vec![text.to_string()], vec![value.span()])),
        DeValue::Array(items) => items
            .iter()
            .map(|item| Some((item.get_ref().as_str()?.to_owned(), item.span())))
            .collect::<Option<_>>(),
        _ => None,
    }
}

fn whole(number: &toml::de::DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn a_type(value: &Spanned<DeValue<'_>>) -> &'static str {
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

/// `None` is zero: switched off.
fn parse_time(text: &str) -> Result<Option<Duration>, String> {
    let (number, unit) = number_and_unit(text);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration"))?;
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

fn show_time(time: Duration) -> String {
    let milliseconds = time.as_millis();
    // The largest unit that leaves no rest.
    match [(3_600_000, "h"), (60_000, "m"), (1000, "s")]
        .into_iter()
        .find(|(unit, _)| milliseconds.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", milliseconds / unit),
        None => format!("{milliseconds}ms"),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size"))?;
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

fn show_size(bytes: u64) -> String {
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

/// A TOML basic string.
fn quoted(text: &str) -> String {
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

fn show_list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(&without_password(text))).collect();
    format!("[{}]", texts.join(", "))
}

fn show_route(text: &mut String, route: &RouteSettings) {
    let _ = writeln!(
        text,
        "[[route]]\nname = {}\npath = {}",
        quoted(&route.name),
        quoted(&route.path.to_string())
    );
    match &route.target {
        Target::Output => text.push_str("serve = \"output\"\n"),
        Target::Backend { urls, host } => {
            let urls: Vec<_> = urls.iter().map(|url| quoted(&url.to_string())).collect();
            let _ = writeln!(text, "backend = [{}]", urls.join(", "));
            if let Some(host) = host {
                let _ = writeln!(text, "host = {}", quoted(host));
            }
        }
    }
    text.push('\n');
}

fn default_routes() -> Vec<RouteSettings> {
    let route = |name: &str, path, target| RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a default path is right"),
        target,
    };
    let relayed = |url| Target::Backend {
        urls: vec![BackendUrl::parse(url).expect("a default URL is right")],
        host: None,
    };
    vec![
        route("input", "/ws/input", relayed("ws://localhost:8001/ws/input")),
        route("output", "/ws/output/{task_id}", Target::Output),
    ]
}

fn read(path: &Path) -> Result<String, Problems> {
    let failed =
        |why| Problems(vec![Problem { place: path.display().to_string(), key: None, why }]);
    let bytes = std::fs::read(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = line_at(error.as_bytes(), error.utf8_error().valid_up_to());
        failed(format!("line {line} is not UTF-8"))
    })
}

fn search(paths: &[&str]) -> Result<(Option<PathBuf>, String), Problems> {
    for path in paths.iter().map(Path::new) {
        match path.metadata() {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // Whatever else is in the way: the reading says it.
            _ => return Ok((Some(path.to_owned()), read(path)?)),
        }
    }
    Ok((None, String::new()))
}

/// The line that byte `at` is on, from 1.
fn line_at(text: &[u8], at: usize) -> usize {
    1 + text[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// Reads one file.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    problems: Vec<(Range<usize>, Option<String>, String)>,
}

impl<'a> Reader<'a> {
    /// What the file says over what is the default, as far as it can be read.
    fn read_file(path: &'a Path, text: &'a str, problems: &mut Vec<Problem>) -> Config {
        let mut reader = Reader { path, text, problems: Vec::new() };
        let mut config = Config::default();
        match DeTable::parse(text) {
            Ok(table) => reader.read_top(&mut config, table.get_ref()),
            Err(error) => reader.refuse(
                error.span().unwrap_or(0..0),
                None,
                format!("not TOML: {}", error.message()),
            ),
        }
        // As they stand in the file, not as the tables were walked.
        reader.problems.sort_by_key(|(span, ..)| span.start);
        for (span, key, why) in std::mem::take(&mut reader.problems) {
            let place = format!(
                "{}:{}",
                reader.path.display(),
                line_at(reader.text.as_bytes(), span.start)
            );
            problems.push(Problem { place, key, why });
        }
        config
    }

    fn refuse(&mut self, span: Range<usize>, key: Option<&str>, why: String) {
        self.problems.push((span, key.map(Into::into), why));
    }

    fn read_top(&mut self, config: &mut Config, top: &DeTable<'_>) {
        for (name, value) in top {
            let (span, name) = (name.span(), name.get_ref().as_ref());
            if name == "route" {
                self.read_routes(config, value);
            } else if let Some(section) = SECTIONS.iter().find(|section| section.name == name) {
                match value.get_ref() {
                    DeValue::Table(table) => self.read_section(config, section, table),
                    _ => self.refuse(
                        value.span(),
                        Some(name),
                        format!("a table is needed: write `[{name}]`"),
                    ),
                }
            } else {
                let tables = SECTIONS.iter().map(|section| section.name).chain(["route"]);
                let hint = home_of(name).unwrap_or_else(|| did_you_mean(name, tables));
                self.refuse(span, Some(name), format!("unknown key{hint}"));
            }
        }
    }

    fn read_section(&mut self, config: &mut Config, section: &Section, table: &DeTable<'_>) {
        for (name, value) in table {
            let (span, name) = (name.span(), name.get_ref().as_ref());
            let path = format!("{}.{name}", section.name);
            match section.keys.iter().find(|key| key.name == name) {
                Some(key) => {
                    if let Err((span, why)) = key.kind.read(config, value) {
                        self.refuse(span, Some(&path), why);
                    }
                }
                None => {
                    let hint = match did_you_mean(name, section.keys.iter().map(|key| key.name)) {
                        hint if hint.is_empty() => home_of(name).unwrap_or_default(),
                        hint => hint,
                    };
                    self.refuse(span, Some(&path), format!("unknown key{hint}"));
                }
            }
        }
    }

    fn read_routes(&mut self, config: &mut Config, value: &Spanned<DeValue<'_>>) {
        let wanted = "routes are a list of tables: write `[[route]]`".to_owned();
        let DeValue::Array(items) = value.get_ref() else {
            return self.refuse(value.span(), Some("route"), wanted);
        };
        let mut routes = Vec::new();
        for item in items.iter() {
            let DeValue::Table(table) = item.get_ref() else {
                return self.refuse(item.span(), Some("route"), wanted);
            };
            let before = self.problems.len();
            if let Some(route) = self.read_route(table, item.span()) {
                routes.push(route);
                // Each with those before it: so a clash is told at the later one.
                if let Err(why) = route::check(&routes) {
                    self.refuse(item.span(), None, why);
                }
            }
            if self.problems.len() > before {
                routes.pop();
            }
        }
        config.gateway.routes = routes;
    }

    fn read_route(&mut self, table: &DeTable<'_>, span: Range<usize>) -> Option<RouteSettings> {
        let before = self.problems.len();
        for (name, _) in table {
            if !ROUTE_KEYS.contains(&name.get_ref().as_ref()) {
                let hint = did_you_mean(name.get_ref(), ROUTE_KEYS);
                self.refuse(
                    name.span(),
                    Some(&format!("route.{}", name.get_ref())),
                    format!("unknown key{hint}"),
                );
            }
        }
        let name = self.route_text(table, "name");
        let path = self.route_text(table, "path");
        let host = self.route_text(table, "host").map(|(host, _)| host);
        let serve = self.route_text(table, "serve");
        let urls = match table.get("backend") {
            Some(value) => self.read_backend(value),
            None => None,
        };
        let is_served = serve.is_some();
        if let Some((serve, span)) = serve
            && serve != "output"
        {
            let hint = did_you_mean(&serve, ["output"]);
            self.refuse(
                span,
                Some("route.serve"),
                format!("{serve:?} is not \"output\", which is all that can be served{hint}"),
            );
        }
        match (table.contains_key("backend"), is_served) {
            (true, true) => {
                self.refuse(
                    span.clone(),
                    Some("route"),
                    "a route has `backend` or `serve`, not both".into(),
                );
            }
            (false, false) if !table.contains_key("serve") => {
                self.refuse(
                    span.clone(),
                    Some("route"),
                    "a route needs `backend` or `serve`".into(),
                );
            }
            (false, _) if host.is_some() => {
                self.refuse(
                    span.clone(),
                    Some("route.host"),
                    "it is sent to a backend, and this route has none".into(),
                );
            }
            _ => {}
        }
        for (name, is_there) in
            [("name", table.contains_key("name")), ("path", table.contains_key("path"))]
        {
            if !is_there {
                self.refuse(
                    span.clone(),
                    Some(&format!("route.{name}")),
                    "it is missing, every route needs one".into(),
                );
            }
        }
        let path = match path {
            Some((path, span)) => match Template::parse(&path) {
                Ok(path) => Some(path),
                Err(why) => {
                    self.refuse(span, Some("route.path"), why);
                    None
                }
            },
            None => None,
        };
        if self.problems.len() > before {
            return None;
        }
        let target = if is_served { Target::Output } else { Target::Backend { urls: urls?, host } };
        Some(RouteSettings { name: name?.0, path: path?, target })
    }

    fn route_text(&mut self, table: &DeTable<'_>, name: &str) -> Option<(String, Range<usize>)> {
        let value = table.get(name)?;
        match value.get_ref().as_str() {
            Some(text) => Some((text.to_owned(), value.span())),
            None => {
                let why = format!("it is {}, what is allowed is a string", a_type(value));
                self.refuse(value.span(), Some(&format!("route.{name}")), why);
                None
            }
        }
    }

    fn read_backend(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Vec<BackendUrl>> {
        let key = Some("route.backend");
        let Some((texts, spans)) = strings(value) else {
            let why = format!(
                "it is {}, what is allowed is a string, or a list of strings",
                a_type(value)
            );
            self.refuse(value.span(), key, why);
            return None;
        };
        match each(&texts, BackendUrl::parse) {
            Ok(urls) => Some(urls),
            Err((index, why)) => {
                self.refuse(spans[index].clone(), key, why);
                None
            }
        }
    }
}

/// Where a key that stands in the wrong table belongs.
fn home_of(name: &str) -> Option<String> {
    let section =
        SECTIONS.iter().find(|section| section.keys.iter().any(|key| key.name == name))?;
    Some(format!(", it belongs in `[{}]`", section.name))
}

/// Every text read, or the first that cannot be, with its index.
fn each<T>(
    texts: &[String],
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, (usize, String)> {
    texts.iter().enumerate().map(|(index, text)| read(text).map_err(|why| (index, why))).collect()
}

fn set_listen(config: &mut Config, texts: &[String]) -> Result<(), (usize, String)> {
    if texts.is_empty() {
        return Err((0, "at least one address is needed, such as \"0.0.0.0:8000\"".into()));
    }
    let mut listen: Vec<SocketAddr> = Vec::new();
    for (index, addresses) in each(texts, resolve_listen)?.into_iter().enumerate() {
        for address in addresses {
            // Port 0 is a port of the kernel's choice: another one each time.
            if address.port() != 0 && listen.contains(&address) {
                return Err((index, format!("{address} is listed twice")));
            }
            listen.push(address);
        }
    }
    config.reactor.listen = listen;
    Ok(())
}

/// `0.0.0.0:8000`, `[::]:8000`, `localhost:8000`, or `:8000` for every IPv4 address.
fn resolve_listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let text = text.trim();
    if let Ok(address) = SocketAddr::from_str(text) {
        return Ok(vec![address]);
    }
    let allowed =
        "what is allowed is \"0.0.0.0:8000\", \"[::]:8000\", \"localhost:8000\" or \":8000\"";
    let parts =
        text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts else {
        return Err(format!("{text:?} is no address with a port; {allowed}"));
    };
    if host.is_empty() {
        return Ok(vec![SocketAddr::from(([0, 0, 0, 0], port))]);
    }
    if host.contains([':', '/', '[', ']']) {
        return Err(format!("{text:?} is no address with a port; {allowed}"));
    }
    let mut all: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("{host:?} has no address: {error}"))?
        .collect();
    all.sort();
    all.dedup();
    // `localhost` is `::1` too in /etc/hosts, also on machines without IPv6.
    let ours: Vec<_> =
        all.iter().copied().filter(|address| UdpSocket::bind((address.ip(), 0)).is_ok()).collect();
    match (ours.is_empty(), all.is_empty()) {
        (false, _) => Ok(ours),
        (true, false) => {
            Err(format!("{host:?} is {}, which is no address of this machine", all[0].ip()))
        }
        (true, true) => Err(format!("{host:?} has no address")),
    }
}

fn set_redis(config: &mut Config, urls: &[String]) -> Result<(), (usize, String)> {
    if urls.is_empty() {
        return Err((0, "at least one URL is needed".into()));
    }
    each(urls, check_redis)?;
    if let Some(index) = urls.iter().position(|url| url.starts_with("embedded://"))
        && urls.len() > 1
    {
        return Err((
            index,
            "an embedded:// URL stands alone: the gateway itself is the inbox then".into(),
        ));
    }
    config.gateway.link.urls = urls.to_vec();
    config.reactor.inbox = match urls[0].strip_prefix("embedded://") {
        Some(address) => resolve_listen(address.trim_end_matches('/')).map_err(|why| (0, why))?,
        None => Vec::new(),
    };
    Ok(())
}

/// The sentence names the URL without its password.
fn check_redis(url: &str) -> Result<(), String> {
    let shown = without_password(url);
    let allowed = "what is allowed is redis://user:password@host:port/db, unix:///path or embedded://127.0.0.1:6379";
    match url.split_once("://") {
        Some(("embedded", address)) => match resolve_listen(address.trim_end_matches('/')) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("`{shown}`: {why}")),
        },
        Some(("rediss", _)) => Err(format!("`{shown}`: TLS to Redis is not supported; {allowed}")),
        Some(("redis" | "unix", _)) => match url.into_connection_info() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!(
                "`{shown}` cannot be read: {}; {allowed}",
                error.detail().unwrap_or("not a Redis URL")
            )),
        },
        _ => Err(format!("`{shown}` is no Redis URL; {allowed}")),
    }
}

fn check_prefix(prefix: &str) -> Result<String, String> {
    let allowed = "1 to 200 characters, none of them a control character or one of `*?[]^\\`, which Redis reads as a pattern";
    let is_good = |c: char| !c.is_control() && !matches!(c, '*' | '?' | '[' | ']' | '^' | '\\');
    if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(is_good) {
        return Err(format!("{prefix:?} cannot be used; what is allowed is {allowed}"));
    }
    Ok(prefix.into())
}

/// What the environment's value came to.
enum Fault {
    /// It is wrong, and nothing is started.
    Error(String),
    /// It has no effect; somebody should know.
    Warning(String),
}

fn apply_environment(
    config: &mut Config,
    env: &dyn Fn(&str) -> Option<OsString>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    // Set to nothing is not set: how a compose file passes on what its own environment lacks.
    let text = |name: &str| {
        env(name)
            .map(|value| value.to_string_lossy().trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    for variable in ENVIRONMENT {
        let Some(value) = text(variable.name) else { continue };
        match (variable.apply)(config, &value, &text) {
            Ok(()) => {}
            Err(Fault::Error(why)) => {
                problems.push(Problem { place: variable.name.into(), key: None, why })
            }
            Err(Fault::Warning(why)) => {
                warnings.push(format!("{} is ignored: {why}", variable.name))
            }
        }
    }
}

/// Relays the route of this name to `urls`, which stand between commas.
fn relay(config: &mut Config, name: &str, urls: &str) -> Result<(), Fault> {
    let Some(route) = config.gateway.routes.iter_mut().find(|route| route.name == name) else {
        return Err(Fault::Warning(format!("no route is called `{name}`")));
    };
    let urls = urls
        .split(',')
        .map(|url| with_route_path(url.trim(), &route.path))
        .collect::<Result<_, _>>();
    let urls = urls.map_err(Fault::Error)?;
    let host = match &route.target {
        Target::Backend { host, .. } => host.clone(),
        Target::Output => None,
    };
    route.target = Target::Backend { urls, host };
    Ok(())
}

/// The URL, with what the route's path has and a variable's author takes for granted: the whole path where there is none, and
/// the names at its end (`ws://host:8002/ws/output` for tasks of their own paths).
fn with_route_path(url: &str, path: &Template) -> Result<BackendUrl, String> {
    let parsed = BackendUrl::parse(url)?;
    if url.contains('?') || parsed.names().next().is_some() {
        return Ok(parsed);
    }
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let bare = url.trim_end_matches('/');
    let is_pathless = !bare[after_scheme..].contains('/');
    if is_pathless {
        return BackendUrl::parse(&format!("{bare}{path}"));
    }
    let names: Vec<_> = path.names().map(|name| format!("/{{{name}}}")).collect();
    if names.is_empty() {
        Ok(parsed)
    } else {
        BackendUrl::parse(&format!("{bare}{}", names.concat()))
    }
}

/// Kubernetes sets REDIS_PORT=tcp://10.0.0.7:6379 for a service called `redis`.
fn is_kubernetes(port: &str) -> bool {
    port.starts_with("tcp://")
}

fn redis_at(config: &mut Config, host: &str, env: Lookup) -> Result<(), Fault> {
    if env("REDIS_URL").is_some() {
        return Ok(());
    }
    let port = env("REDIS_PORT").filter(|port| !is_kubernetes(port)).unwrap_or("6379".into());
    match port.parse::<u16>() {
        Ok(port) if port > 0 => {}
        _ => {
            return Err(Fault::Error(format!(
                "REDIS_PORT is {port:?}, what is allowed is 1 to 65535"
            )));
        }
    }
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.into()
    };
    set_redis(config, &[format!("redis://{host}:{port}")]).map_err(|(_, why)| Fault::Error(why))
}

fn apply_flags(config: &mut Config, flags: &Flags, problems: &mut Vec<Problem>) {
    let mut note = |flag: &str, outcome: Result<(), String>| {
        if let Err(why) = outcome {
            problems.push(Problem { place: flag.into(), key: None, why });
        }
    };
    if !flags.listen.is_empty() {
        note("--listen", set_listen(config, &flags.listen).map_err(|(_, why)| why));
    }
    if !flags.redis.is_empty() {
        note("--redis", set_redis(config, &flags.redis).map_err(|(_, why)| why));
    }
    if let Some(level) = &flags.log_level {
        note("--log-level", parse_level(level).map(|level| config.log.level = level));
    }
    if let Some(file) = &flags.log_file {
        config.log.file = (!file.is_empty()).then(|| file.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Config {
        parse(Path::new("x.toml"), text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// What is said about a wrong file, one line each.
    fn said(text: &str) -> String {
        parse(Path::new("x.toml"), text).expect_err("it is wrong").to_string()
    }

    fn load_with(env: &[(&str, &str)], flags: Flags) -> Result<Loaded, Problems> {
        let env: Vec<_> =
            env.iter().map(|(name, value)| (name.to_string(), OsString::from(value))).collect();
        let env = move |name: &str| {
            env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        load(&flags, &env)
    }

    fn targets(config: &Config) -> Vec<String> {
        let shown = |route: &RouteSettings| match &route.target {
            Target::Backend { urls, .. } => {
                urls.iter().map(BackendUrl::to_string).collect::<Vec<_>>().join(" ")
            }
            Target::Output => "output".into(),
        };
        config.gateway.routes.iter().map(shown).collect()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = parsed("");
        assert_eq!(config, Config::default());
        assert_eq!(config.reactor.listen, ["0.0.0.0:8000".parse().unwrap()]);
        assert_eq!(config.gateway.limits.max_connections, 10_000);
        assert_eq!(config.gateway.session.ping_interval, Some(Duration::from_secs(20)));
        assert_eq!(config.gateway.session.idle_timeout, None);
        assert_eq!(config.gateway.session.output.chunk_size, 65_536);
        assert_eq!(config.gateway.tasks.retain, Some(Duration::from_secs(300)));
        assert_eq!(route::check(&config.gateway.routes), Ok(()));
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let config = parsed(
            r#"
            [server]
            listen = ["127.0.0.1:0", "[::1]:9000"]
            max_connections = 7
            max_connections_per_ip = 3
            header_timeout = "1500ms"
            keep_alive = "0s"
            drain_timeout = "2h"
            allowed_origins = ["https://app.example", "*.example"]
            [proxy]
            ping_interval = "90s"
            max_message = 1000
            on_backend_failure = "http"
            [[route]]
            name = "a"
            path = "/a/{x}"
            backend = ["ws://one:1/{x}?k={x}", "ws://[::1]:2/"]
            host = "back\u002eexample"
            [[route]]
            name = "b"
            path = "/b"
            backend = "ws://b"
            [output]
            chunk_size = "16MiB"
            audio_root = "/with \"quotes\" and \\"
            max_audio = 5
            max_retained = 0
            retain = "0s"
            [redis]
            url = ["redis://one:1/2", "unix:///run/redis.sock"]
            channel_prefix = "p:"
            subscribe = "task"
            grace = "0s"
            [log]
            level = "TRACE"
            file = "x.log"
            format = "json"
            max_size = "10MB"
            keep = 0
            "#,
        );
        let text = config.to_toml();
        assert_eq!(parsed(&text), config, "{text}");
        assert!(text.contains("max_size = \"10000000\""), "{text}");
        assert!(text.contains("header_timeout = \"1500ms\""), "{text}");
        assert_eq!(parsed(&parsed("route = []").to_toml()).gateway.routes, []);
    }

    #[test]
    fn each_key_is_read_shown_and_compared() {
        let other = |key: &Key| match (key.name, &key.kind) {
            (_, Kind::Time { .. }) => "\"17s\"",
            (_, Kind::Size { .. }) => "\"17KiB\"",
            (_, Kind::Count { .. }) => "17",
            (_, Kind::Flag { .. }) => "true",
            ("listen", _) => "[\"127.0.0.1:17\"]",
            ("allowed_origins", _) => "[\"https://17.example\"]",
            ("url", _) => "[\"redis://seventeen\"]",
            ("on_backend_failure", _) => "\"http\"",
            ("subscribe", _) => "\"task\"",
            ("level", _) => "\"debug\"",
            ("format", _) => "\"json\"",
            _ => "\"seventeen\"",
        };
        for section in SECTIONS {
            for key in section.keys {
                let line = format!("{} = {}", key.name, other(key));
                let mut changed = parsed(&format!("[{}]\n{line}\n", section.name));
                assert_ne!(changed, Config::default(), "{line}");
                assert!(
                    changed.to_toml().lines().any(|shown| shown == line),
                    "{line} in {}",
                    changed.to_toml()
                );
                assert_eq!(parsed(&changed.to_toml()), changed, "{line}");
                let kept = changed.keep_until_restart(&Config::default());
                if key.needs_restart {
                    assert_eq!(kept, [format!("{}.{}", section.name, key.name)]);
                    assert_eq!(changed, Config::default());
                } else {
                    assert!(kept.is_empty() && changed != Config::default(), "{line}");
                }
            }
        }
    }

    #[test]
    fn wrong_keys_are_told_with_line_key_and_nearest_name() {
        for (text, expected) in [
            ("[server]\nlistn = []", "x.toml:2: server.listn: unknown key, did you mean `listen`?"),
            (
                "[server]\norigins = []",
                "x.toml:2: server.origins: unknown key, did you mean `allowed_origins`?",
            ),
            (
                "[server]\nchunk_size = 1",
                "x.toml:2: server.chunk_size: unknown key, it belongs in `[output]`",
            ),
            ("max_audio = 1", "x.toml:1: max_audio: unknown key, it belongs in `[output]`"),
            ("\n[sever]\n", "x.toml:2: sever: unknown key, did you mean `server`?"),
            ("zzz = 1", "x.toml:1: zzz: unknown key"),
            ("server = 1", "x.toml:1: server: a table is needed: write `[server]`"),
            (
                "[route]\nname = \"x\"",
                "x.toml:1: route: routes are a list of tables: write `[[route]]`",
            ),
        ] {
            assert_eq!(said(text), expected);
        }
    }

    #[test]
    fn wrong_values_are_told_with_what_is_allowed() {
        let duration = "what is allowed is a duration such as \"500ms\", \"10s\", \"5m\" or \"1h\", at most \"720h\", or \"0s\"";
        let chunk = "what is allowed is a size such as \"64KiB\", \"16MiB\" or a number of bytes, from 1KiB to 16MiB";
        for (text, expected) in [
            ("[server]\nheader_timeout = 10", format!("server.header_timeout: it is a number, {duration}")),
            ("[server]\nheader_timeout = \"10\"", format!("server.header_timeout: \"10\" has no unit; {duration}")),
            ("[server]\nheader_timeout = \"1 day\"", format!("server.header_timeout: \"1 day\" has an unknown unit; {duration}")),
            ("[server]\nheader_timeout = \"-1s\"", format!("server.header_timeout: \"-1s\" is no duration; {duration}")),
            ("[server]\nheader_timeout = \"721h\"", format!("server.header_timeout: \"721h\" is too long; {duration}")),
            (
                "[server]\nmax_connections = 0",
                "server.max_connections: 0 is out of range; what is allowed is a whole number from 1 to 1000000".into(),
            ),
            (
                "[server]\nmax_connections = -1",
                "server.max_connections: -1 is out of range; what is allowed is a whole number from 1 to 1000000".into(),
            ),
            (
                "[server]\nmax_connections = \"9\"",
                "server.max_connections: it is a string, what is allowed is a whole number from 1 to 1000000".into(),
            ),
            ("[output]\nchunk_size = 1023", format!("output.chunk_size: 1023 is out of range; {chunk}")),
            ("[output]\nchunk_size = \"17MiB\"", format!("output.chunk_size: 17MiB is out of range; {chunk}")),
            ("[output]\nchunk_size = \"0\"", format!("output.chunk_size: 0 is out of range; {chunk}")),
            ("[output]\nchunk_size = \"64 potatoes\"", format!("output.chunk_size: \"64 potatoes\" has an unknown unit; {chunk}")),
            ("[output]\nchunk_size = 1.5", format!("output.chunk_size: it is a number with a decimal point, {chunk}")),
            (
                "[proxy]\non_backend_failure = \"htpp\"",
                "proxy.on_backend_failure: \"htpp\" is none of \"close\" and \"http\", did you mean `http`?".into(),
            ),
            (
                "[log]\nlevel = \"warning\"",
                "log.level: \"warning\" is none of \"off\", \"error\", \"warn\", \"info\", \"debug\" and \"trace\", did you mean `warn`?".into(),
            ),
            ("[log]\nfile = true", "log.file: it is true or false, what is allowed is a string".into()),
            ("[server]\nlisten = []", "server.listen: at least one address is needed, such as \"0.0.0.0:8000\"".into()),
            (
                "[server]\nlisten = [8000]",
                "server.listen: it is a list, what is allowed is a string, or a list of strings".into(),
            ),
            (
                "[server]\nlisten = \"8000\"",
                "server.listen: \"8000\" is no address with a port; what is allowed is \"0.0.0.0:8000\", \"[::]:8000\", \"localhost:8000\" or \":8000\"".into(),
            ),
            (
                "[redis]\nchannel_prefix = \"a*\"",
                "redis.channel_prefix: \"a*\" cannot be used; what is allowed is 1 to 200 characters, none of them a control character or one of `*?[]^\\`, which Redis reads as a pattern".into(),
            ),
        ] {
            assert_eq!(said(text), format!("x.toml:2: {expected}"));
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once_in_file_order() {
        let text =
            "[server]\nlistn = 1\nmax_connections = 0\n[log]\nlevel = 3\n[[route]]\nname = \"x\"\n";
        let lines: Vec<_> = said(text)
            .lines()
            .map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "x.toml:2 server.listn",
                "x.toml:3 server.max_connections",
                "x.toml:5 log.level",
                "x.toml:6 route",
                "x.toml:6 route.path",
            ]
        );
    }

    #[test]
    fn a_wrong_entry_of_a_list_is_told_at_its_own_line() {
        let text = "[server]\nlisten = [\n  \"127.0.0.1:1\",\n  \"127.0.0.1:1\",\n]\n";
        assert_eq!(said(text), "x.toml:4: server.listen: 127.0.0.1:1 is listed twice");
        let text = "[server]\nallowed_origins = [\n  \"https://a.example\",\n  \"a.example\",\n]\n";
        assert!(
            said(text).starts_with("x.toml:4: server.allowed_origins: `a.example` is no origin"),
            "{}",
            said(text)
        );
    }

    #[test]
    fn no_toml_is_told_with_its_line() {
        assert!(
            said("[server]\nlisten = [\"a\"\n[log]\n").starts_with("x.toml:3: not TOML: "),
            "{}",
            said("[server]\nlisten = [\"a\"\n[log]\n")
        );
        assert!(
            said("a = 1\na = 2\n").starts_with("x.toml:2: not TOML: duplicate key"),
            "{}",
            said("a = 1\na = 2\n")
        );
    }

    #[test]
    fn routes_of_a_file_replace_the_default_ones() {
        let config = parsed(
            "[[route]]\nname = \"one\"\npath = \"/one/{x}\"\nbackend = [\"ws://a/{x}\", \"ws://b/{x}\"]\n",
        );
        assert_eq!(targets(&config), ["ws://a/{x} ws://b/{x}"]);
    }

    #[test]
    fn wrong_routes_are_told() {
        let with = |keys: &str| said(&format!("[[route]]\nname = \"r\"\npath = \"/r\"\n{keys}"));
        assert_eq!(with(""), "x.toml:1: route: a route needs `backend` or `serve`");
        assert_eq!(
            with("bakend = 1").lines().last(),
            Some("x.toml:4: route.bakend: unknown key, did you mean `backend`?")
        );
        assert_eq!(
            with("backend = 7"),
            "x.toml:4: route.backend: it is a number, what is allowed is a string, or a list of strings"
        );
        assert_eq!(
            with("backend = \"http://a\""),
            "x.toml:4: route.backend: `http://a` begins with `http://`, only `ws://` is allowed"
        );
        assert_eq!(
            with("backend = [\n\"ws://a\",\n\"ws://a:0\"]"),
            "x.toml:6: route.backend: `ws://a:0`: its port `0` must be 1 to 65535"
        );
        assert_eq!(with("backend = []"), "x.toml:1: route `r`: it needs at least one backend URL");
        assert_eq!(
            with("serve = \"input\"").lines().next(),
            Some(
                "x.toml:4: route.serve: \"input\" is not \"output\", which is all that can be served"
            )
        );
        assert!(
            with("backend = \"ws://a\"\nserve = \"output\"")
                .contains("a route has `backend` or `serve`, not both")
        );
        let twice = "[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"ws://a\"\n";
        assert!(
            said(&format!("{twice}{twice}"))
                .starts_with("x.toml:5: route `a`: another route has this name")
        );
    }

    #[test]
    fn a_route_can_be_served() {
        let text =
            "[[route]]\nname = \"output\"\npath = \"/ws/output/{task_id}\"\nserve = \"output\"\n";
        assert_eq!(targets(&parsed(text)), ["output"]);
    }

    #[test]
    fn times_and_sizes() {
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

    #[test]
    fn addresses_to_listen_on() {
        let listen = |text: &str| {
            resolve_listen(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(listen("0.0.0.0:8000"), Ok(vec!["0.0.0.0:8000".into()]));
        assert_eq!(listen("[::]:8000"), Ok(vec!["[::]:8000".into()]));
        assert_eq!(listen(":8000"), Ok(vec!["0.0.0.0:8000".into()]));
        assert!(listen("localhost:8000").unwrap().contains(&"127.0.0.1:8000".to_string()));
        for text in ["", "8000", "localhost", "::1:80:x", "host:70000", "http://a:80", "[::1]"] {
            assert!(listen(text).is_err(), "{text}");
        }
        assert_eq!(
            listen("192.0.2.1:80"),
            Ok(vec!["192.0.2.1:80".into()]),
            "an address is taken as it is"
        );
    }

    #[test]
    fn the_environment_wins_over_the_file_and_flags_over_both() {
        let folder = std::env::temp_dir().join(format!("gateway-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("precedence.toml");
        std::fs::write(&file, "[log]\nlevel = \"error\"\n[redis]\nurl = \"redis://file\"\n")
            .unwrap();
        let flags = Flags { config: Some(file.clone()), ..Flags::default() };
        let env = [
            ("AIVTUBER_GATEWAY_LOG", "DEBUG"),
            ("REDIS_URL", "redis://environment"),
            ("REDIS_HOST", "no"),
        ];

        let loaded = load_with(&[], flags.clone()).unwrap();
        assert_eq!(
            (loaded.config.log.level, loaded.path.as_ref()),
            (LevelFilter::Error, Some(&file))
        );
        assert_eq!(loaded.config.gateway.link.urls, ["redis://file"]);
        let loaded = load_with(&env, flags.clone()).unwrap();
        assert_eq!(loaded.config.log.level, LevelFilter::Debug);
        assert_eq!(loaded.config.gateway.link.urls, ["redis://environment"]);
        let flags = Flags {
            redis: vec!["redis://flag".into(), "redis://other".into()],
            log_level: Some("trace".into()),
            log_file: Some("l".into()),
            listen: vec![":1".into()],
            ..flags
        };
        let loaded = load_with(&env, flags).unwrap();
        assert_eq!(
            loaded.config.log,
            logging::Settings {
                level: LevelFilter::Trace,
                file: Some("l".into()),
                ..Default::default()
            }
        );
        assert_eq!(loaded.config.gateway.link.urls, ["redis://flag", "redis://other"]);
        assert_eq!(loaded.config.reactor.listen, ["0.0.0.0:1".parse().unwrap()]);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// `load` without a file, as if none were in the folder.
    fn from_environment(env: &[(&str, &str)]) -> (Config, Vec<String>, Vec<String>) {
        let env: Vec<_> =
            env.iter().map(|(name, value)| (name.to_string(), OsString::from(value))).collect();
        let env = move |name: &str| {
            env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        let (mut config, mut problems, mut warnings) = (Config::default(), Vec::new(), Vec::new());
        apply_environment(&mut config, &env, &mut problems, &mut warnings);
        (config, problems.iter().map(ToString::to_string).collect(), warnings)
    }

    #[test]
    fn backends_from_the_environment() {
        let output =
            |url: &str| targets(&from_environment(&[("OUTPUT_HANDLER_URL", url)]).0)[1].clone();
        assert_eq!(output("ws://o:2"), "ws://o:2/ws/output/{task_id}");
        assert_eq!(output("ws://o:2/"), "ws://o:2/ws/output/{task_id}");
        assert_eq!(output("ws://o:2/results"), "ws://o:2/results/{task_id}");
        assert_eq!(output("ws://o:2/r/{task_id}/x"), "ws://o:2/r/{task_id}/x");
        assert_eq!(output("ws://o:2/r?id={task_id}"), "ws://o:2/r?id={task_id}");
        assert_eq!(
            output("ws://a:1, ws://b:2"),
            "ws://a:1/ws/output/{task_id} ws://b:2/ws/output/{task_id}"
        );
        assert_eq!(output("  "), targets(&Config::default())[1], "set to nothing is not set");
        let input =
            |url: &str| targets(&from_environment(&[("INPUT_HANDLER_URL", url)]).0)[0].clone();
        assert_eq!(input("ws://i:1"), "ws://i:1/ws/input");
        assert_eq!(input("ws://i:1/other"), "ws://i:1/other");
        let (_, problems, _) = from_environment(&[("INPUT_HANDLER_URL", "http://i")]);
        assert_eq!(
            problems,
            ["INPUT_HANDLER_URL: `http://i` begins with `http://`, only `ws://` is allowed"]
        );
    }

    #[test]
    fn a_variable_for_a_route_that_is_not_there_is_a_warning() {
        let mut config = parsed("route = []");
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let env = |name: &str| (name == "INPUT_HANDLER_URL").then(|| "ws://a".into());
        apply_environment(&mut config, &env, &mut problems, &mut warnings);
        assert!(problems.is_empty());
        assert_eq!(warnings, ["INPUT_HANDLER_URL is ignored: no route is called `input`"]);
    }

    #[test]
    fn redis_from_the_environment() {
        let urls = |env: &[(&str, &str)]| from_environment(env).0.gateway.link.urls;
        assert_eq!(urls(&[("REDIS_HOST", "r")]), ["redis://r:6379"]);
        assert_eq!(urls(&[("REDIS_PORT", "7")]), ["redis://localhost:7"]);
        assert_eq!(urls(&[("REDIS_HOST", "r"), ("REDIS_PORT", "7")]), ["redis://r:7"]);
        assert_eq!(urls(&[("REDIS_HOST", "::1"), ("REDIS_PORT", "7")]), ["redis://[::1]:7"]);
        let (config, problems, warnings) =
            from_environment(&[("REDIS_PORT", "tcp://10.0.0.7:6379")]);
        assert_eq!(
            (config.gateway.link.urls[0].as_str(), problems.len(), warnings.len()),
            ("redis://localhost:6379", 0, 1)
        );
        let (config, problems, warnings) =
            from_environment(&[("REDIS_HOST", "r"), ("REDIS_PORT", "tcp://10.0.0.7:6379")]);
        assert_eq!(
            (config.gateway.link.urls[0].as_str(), problems.len(), warnings.len()),
            ("redis://r:6379", 0, 1)
        );
        assert_eq!(from_environment(&[("REDIS_PORT", "x")]).1.len(), 1);
        assert_eq!(
            urls(&[("REDIS_URL", "redis://u"), ("REDIS_HOST", "r"), ("REDIS_PORT", "x")]),
            ["redis://u"]
        );
    }

    #[test]
    fn redis_urls() {
        for url in [
            "redis://localhost",
            "redis://user:pass@host:1/2",
            "redis://:pass@[::1]:6379",
            "unix:///run/redis.sock",
            "embedded://127.0.0.1:6379",
            "embedded://:6379",
        ] {
            assert_eq!(check_redis(url), Ok(()), "{url}");
        }
        for url in [
            "",
            "localhost:6379",
            "rediss://host",
            "http://host",
            "redis://host:port",
            "embedded://host",
            "embedded://",
            "redis://u:secret@h/notadb",
        ] {
            let why = check_redis(url).expect_err(url);
            assert!(!why.contains("secret"), "{why}");
        }
        assert!(said("[redis]\nurl = [\"redis://a\", \"embedded://:1\"]").contains("stands alone"));
    }

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("redis://localhost:6379", "redis://localhost:6379"),
            ("redis://user:secret@host:1/2", "redis://user:***@host:1/2"),
            ("redis://:sec@ret@host", "redis://:***@host"),
            ("redis://user@host", "redis://user@host"),
            (
                "unix:///run/r.sock?db=1&pass=secret&user=u",
                "unix:///run/r.sock?db=1&pass=***&user=u",
            ),
        ] {
            assert_eq!(without_password(url), shown);
        }
        let text = parsed("[redis]\nurl = \"redis://u:secret@h\"").to_toml();
        assert!(
            text.contains(
                "# *** stands for a password that is not shown\nurl = [\"redis://u:***@h\"]\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn the_summary_names_listen_routes_and_redis_without_its_password() {
        assert_eq!(
            Config::default().summary(),
            "listen=0.0.0.0:8000 routes=input,output redis=redis://localhost:6379"
        );
        let urls = r#"["redis://u:secret@h", "unix:///r.sock"]"#;
        let text =
            format!("[server]\nlisten = [\"127.0.0.1:1\", \"[::1]:2\"]\n[redis]\nurl = {urls}");
        let summary = parsed(&text).summary();
        assert_eq!(
            summary,
            "listen=127.0.0.1:1,[::1]:2 routes=input,output redis=redis://u:***@h,unix:///r.sock"
        );
        let relay = parsed("[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"ws://b/\"");
        assert!(relay.summary().ends_with("routes=a redis=disabled"), "{}", relay.summary());
    }

    #[test]
    fn a_new_password_is_a_change() {
        let old = parsed("[redis]\nurl = \"redis://u:one@h\"");
        let mut new = parsed("[redis]\nurl = \"redis://u:two@h\"");
        assert_eq!(new.keep_until_restart(&old), ["redis.url"]);
    }

    #[test]
    fn files_that_cannot_be_read_are_told() {
        let flags = |path: &str| Flags { config: Some(path.into()), ..Flags::default() };
        let why = load_with(&[], flags("/nowhere/x.toml")).unwrap_err().to_string();
        assert!(why.starts_with("/nowhere/x.toml: cannot be read: No such file"), "{why}");
        assert_eq!(search(&["/nowhere/a.toml", "/nowhere/b.toml"]).unwrap(), (None, String::new()));
        assert!(
            search(&["/nowhere/a.toml", "/"])
                .unwrap_err()
                .to_string()
                .starts_with("/: cannot be read")
        );
    }

    #[test]
    fn nearest_names() {
        assert_eq!(nearest("listne", ["listen", "level"]), Some("listen"));
        assert_eq!(nearest("timeout", ["level", "header_timeout"]), Some("header_timeout"));
        assert_eq!(nearest("pingtimeout", ["ping_interval", "ping_timeout"]), Some("ping_timeout"));
        assert_eq!(nearest("banana", ["listen", "level"]), None);
        assert_eq!(
            (distance("ab", "ba"), distance("", "abc"), distance("kitten", "sitting")),
            (1, 3, 3)
        );
    }
}
