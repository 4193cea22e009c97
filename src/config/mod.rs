//! The configuration: flags, environment and `config.toml` in, the settings of each part out.
//!
//! Keys are data: [`SECTIONS`] holds each key with its section, its bounds and how it is read and
//! shown. The reader, `--print-config`, the comparison on a reload and the documentation test all
//! use that one table, so a key that can be read cannot be missing elsewhere. Routes are the
//! exception: they are a list of tables, so [`ROUTE_KEYS`] names their keys and `routes.rs` reads
//! them.
//!
//! A file is read to its end even when something in it is wrong, and all problems are reported
//! together, each with file, line and key. What [`load`] returns has been checked as a whole.
//!
//! ```
//! use std::path::Path;
//! use aivtuber_gateway::config;
//!
//! let problems = config::parse(Path::new("config.toml"), "[server]\nlistn = 1").unwrap_err();
//! assert_eq!(
//!     problems.to_string(),
//!     "config.toml:2: server.listn: unknown key, did you mean `listen`?"
//! );
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "configuration is read at start and by a background thread"
)]

mod addresses;
mod environment;
mod file;
mod keys;
mod kind;
mod machine;
mod nearest;
mod own_address;
mod problems;
mod reader;
mod reference;
mod routes;
mod schema;
mod settings;
mod tls;
mod values;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::reactor::listeners::ListenOn;
use crate::service::route::{self, TargetSettings};

pub use addresses::without_password;
pub use environment::{ENVIRONMENT, Variable};
pub use keys::{Key, SECTIONS, Section};
pub use nearest::{did_you_mean, nearest};
pub use problems::{Problem, Problems};
pub use reference::{Entry, entries};
pub use routes::ROUTE_KEYS;
pub use schema::schema;
pub use settings::Config;
pub use values::{log_levels, quoted};

/// The files that are tried when no flag names one. The first that exists is read.
pub const SEARCHED: [&str; 2] = ["config.toml", "/etc/aivtuber-gateway/config.toml"];

/// Settings from the command line. Kept for reloads, where they override the file again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// The file to read, in place of [`SEARCHED`].
    pub config: Option<PathBuf>,
    /// In place of `server.listen`, unless empty.
    pub listen: Vec<String>,
    /// In place of `redis.url`, unless empty.
    pub redis: Vec<String>,
    /// In place of `log.level`.
    pub log_level: Option<String>,
    /// In place of `log.file`.
    pub log_file: Option<String>,
    /// In place of `tls.certificate` and `tls.key`: a file that holds both. Browsers that come
    /// without TLS are then sent to the first `tls://` address with a port.
    pub tls_file: Option<String>,
}

/// A valid configuration, and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The whole configuration.
    pub config: Config,
    /// What has no effect although it was set, or is missing, one sentence each: to be logged.
    pub warnings: Vec<String>,
    /// The file that was read, if any.
    pub path: Option<PathBuf>,
}

/// Reads flags, environment, file and defaults; the earlier of these override the later.
///
/// `env` looks up a variable. A reload makes the same call again, with the same flags. `listening`
/// are the addresses of a running gateway, which the file may not name any more: no backend may be
/// one of them.
///
/// # Errors
/// Everything that is wrong, if anything is: then nothing of the configuration can be used.
pub fn load(
    flags: &Flags,
    env: &dyn Fn(&str) -> Option<OsString>,
    listening: Option<&[ListenOn]>,
) -> Result<Loaded, Problems> {
    let (path, text) = match &flags.config {
        Some(path) => (Some(path.clone()), read(path)?),
        None => search(&SEARCHED)?,
    };
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut config = match &path {
        Some(path) => reader::read_file(path, &text, &mut problems),
        None => Config::default(),
    };
    environment::apply_environment(&mut config, env, &mut problems, &mut warnings);
    apply_flags(&mut config, flags, &mut problems);
    // With problems in the file, routes are missing here, and complaints about the rest would
    // mislead.
    if problems.is_empty()
        && let Err(why) = route::check(&config.gateway.routes)
    {
        problems.push(Problem { place: "the environment".into(), key: None, why });
    }
    if problems.is_empty()
        && let Err(why) = own_address::check(&config, listening.unwrap_or(&config.reactor.listen))
    {
        let place = path.as_ref().map_or("the configuration".into(), |p| p.display().to_string());
        problems.push(Problem { place, key: None, why });
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    warnings.extend(route::shadowed(&config.gateway.routes));
    Ok(Loaded { config, warnings, path })
}

/// Reads the text of a file alone, without flags and environment. `path` is for messages only.
///
/// # Errors
/// Everything that is wrong with the text.
pub fn parse(path: &Path, text: &str) -> Result<Config, Problems> {
    let mut problems = Vec::new();
    let config = reader::read_file(path, text, &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

impl Config {
    /// The whole configuration as the text of a file. [`parse`] reads it back as the same, except
    /// for passwords in Redis URLs: they are `***`, because what is printed ends up in bug reports.
    pub fn to_toml(&self) -> String {
        self.write_toml(|_| true, true)
    }

    /// Only what differs from the defaults, as the text of a file that means the same.
    pub fn changes_to_toml(&self) -> String {
        let defaults = Config::default();
        let has_other_routes = self.gateway.routes != defaults.gateway.routes;
        let text = self.write_toml(|key| key.kind.differs(&defaults, self), has_other_routes);
        if text.is_empty() { "# Nothing differs from the defaults.\n".into() } else { text }
    }

    /// The keys that `is_wanted` picks, and the routes if `has_routes`, as the text of a file.
    fn write_toml(&self, is_wanted: impl Fn(&Key) -> bool, has_routes: bool) -> String {
        let mut text = String::new();
        if has_routes && self.gateway.routes.is_empty() {
            // Without this line, the default routes would be read back.
            text.push_str("route = []\n\n");
        }
        for section in SECTIONS {
            if has_routes && section.name == "output" {
                for route in &self.gateway.routes {
                    routes::show_route(&mut text, route);
                }
            }
            let mut keys = section.keys.iter().filter(|key| is_wanted(key)).peekable();
            if keys.peek().is_none() {
                continue;
            }
            let _ = writeln!(text, "[{}]", section.name);
            for key in keys {
                let value = key.kind.show(self);
                if value.contains("***") {
                    text.push_str("# *** replaces a password\n");
                }
                let _ = writeln!(text, "{} = {value}", key.name);
            }
            text.push('\n');
        }
        text.pop();
        text
    }

    /// For the first line of the log: addresses, names of routes, and where results come from
    /// (`disabled` if no route serves any), without passwords.
    pub fn summary(&self) -> String {
        let listed =
            |words: Vec<String>| if words.is_empty() { "none".to_owned() } else { words.join(",") };
        let listen = self.reactor.listen.iter().map(ToString::to_string).collect();
        let routes = &self.gateway.routes;
        let redis = match routes.iter().any(|route| route.target == TargetSettings::Output) {
            true => {
                listed(self.gateway.link.urls.iter().map(|url| without_password(url)).collect())
            }
            false => "disabled".to_owned(),
        };
        let routes = routes.iter().map(|route| route.name.clone()).collect();
        format!("listen={} routes={} redis={redis}", listed(listen), listed(routes))
    }

    /// Makes a newly loaded configuration one that the running gateway can take: keys that need a
    /// restart are set to their value in `running`. Returns those that had another value, such as
    /// `server.listen`, for a warning.
    pub fn keep_until_restart(&mut self, running: &Config) -> Vec<String> {
        let mut kept = Vec::new();
        for section in SECTIONS {
            for key in section.keys.iter().filter(|key| key.needs_restart()) {
                if key.kind.differs(running, self) {
                    key.kind.copy(running, self);
                    kept.push(format!("{}.{}", section.name, key.name));
                }
            }
        }
        tls::note_port(self);
        kept
    }
}

fn read(path: &Path) -> Result<String, Problems> {
    let failed =
        |why| Problems(vec![Problem { place: path.display().to_string(), key: None, why }]);
    let bytes = file::read(path).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let line = problems::line_at(error.as_bytes(), error.utf8_error().valid_up_to());
        failed(format!("line {line} is not UTF-8"))
    })
}

fn search(paths: &[&str]) -> Result<(Option<PathBuf>, String), Problems> {
    for path in paths.iter().map(Path::new) {
        match path.metadata() {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // It exists, or something is wrong with it, which reading will report.
            _ => return Ok((Some(path.to_owned()), read(path)?)),
        }
    }
    Ok((None, String::new()))
}

fn apply_flags(config: &mut Config, flags: &Flags, problems: &mut Vec<Problem>) {
    let mut note = |flag: &str, outcome: Result<(), String>| {
        if let Err(why) = outcome {
            problems.push(Problem { place: flag.into(), key: None, why });
        }
    };
    if !flags.listen.is_empty() {
        note("--listen", addresses::set_listen(config, &flags.listen).map_err(|bad| bad.why));
    }
    if !flags.redis.is_empty() {
        note("--redis", addresses::set_redis(config, &flags.redis).map_err(|bad| bad.why));
    }
    if let Some(level) = &flags.log_level {
        note("--log-level", values::parse_level(level).map(|level| config.log.level = level));
    }
    if let Some(file) = &flags.log_file {
        config.log.file = (!file.is_empty()).then(|| file.into());
    }
    if let Some(file) = &flags.tls_file {
        tls::use_file(config, file);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use log::LevelFilter;

    use super::*;
    use crate::base::testing::TestFolder;
    use crate::logging;
    use crate::service::assets::Files;
    use crate::service::route::{HttpLimits, RouteSettings};
    use crate::service::url::BackendUrl;

    pub(super) fn parsed(text: &str) -> Config {
        parse(Path::new("x.toml"), text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The problems of a text, one line each.
    pub(super) fn problems_of(text: &str) -> String {
        parse(Path::new("x.toml"), text).expect_err("the text has a problem").to_string()
    }

    fn load_with(env: &[(&str, &str)], flags: Flags) -> Result<Loaded, Problems> {
        let env: Vec<_> =
            env.iter().map(|(name, value)| (name.to_string(), OsString::from(value))).collect();
        let env = move |name: &str| {
            env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        load(&flags, &env, None)
    }

    fn listen(config: &Config) -> Vec<String> {
        config.reactor.listen.iter().map(ListenOn::to_string).collect()
    }

    pub(super) fn targets(config: &Config) -> Vec<String> {
        let shown = |route: &RouteSettings| match &route.target {
            TargetSettings::Backend { urls, .. } | TargetSettings::Http { urls, .. } => {
                urls.iter().map(BackendUrl::to_string).collect::<Vec<_>>().join(" ")
            }
            TargetSettings::Output => "output".into(),
            TargetSettings::Ingest(_) => "ingest".into(),
            TargetSettings::Files(_) => "files".into(),
        };
        config.gateway.routes.iter().map(shown).collect()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = parsed("");
        assert_eq!(config, Config::default());
        assert_eq!(listen(&config), ["0.0.0.0:8000"]);
        assert_eq!(config.gateway.limits.max_connections, 10_000);
        assert_eq!(config.gateway.session.ping_interval, Some(Duration::from_secs(20)));
        assert_eq!(config.gateway.session.idle_timeout, None);
        assert_eq!(config.gateway.session.output.chunk_size, 65_536);
        assert_eq!(config.gateway.tasks.retain, Some(Duration::from_secs(300)));
        assert_eq!(route::check(&config.gateway.routes), Ok(()));
    }

    #[test]
    fn printed_configuration_reads_back_as_the_same() {
        let config = parsed(
            r#"
            [server]
            listen = ["127.0.0.1:0", "[::1]:9000", "tls://127.0.0.1:9443"]
            redirect_http = true
            max_connections = 7
            max_connections_per_ip = 3
            header_timeout = "1500ms"
            keep_alive = "0s"
            drain_timeout = "2h"
            allowed_origins = ["https://app.example", "*.example"]
            [tls]
            certificate = ["a.pem", "b.pem"]
            key = ["a.key", "b.key"]
            ca = "roots.pem"
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
    fn every_key_is_read_shown_and_compared() {
        for section in SECTIONS {
            for key in section.keys {
                let line = format!("{} = {}", key.name, key.example());
                let mut changed = parsed(&format!("[{}]\n{line}\n", section.name));
                assert_ne!(changed, Config::default(), "{line}");
                assert!(
                    changed.to_toml().lines().any(|shown| shown == line),
                    "{line} in {}",
                    changed.to_toml()
                );
                assert_eq!(parsed(&changed.to_toml()), changed, "{line}");
                let kept = changed.keep_until_restart(&Config::default());
                if key.needs_restart() {
                    assert_eq!(kept, [format!("{}.{}", section.name, key.name)]);
                    assert_eq!(changed, Config::default());
                } else {
                    assert!(kept.is_empty() && changed != Config::default(), "{line}");
                }
            }
        }
    }

    #[test]
    fn unknown_keys_are_reported_with_line_key_and_nearest_name() {
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
            ("server = 1", "x.toml:1: server: must be a table: write `[server]`"),
            (
                "[route]\nname = \"x\"",
                "x.toml:1: route: routes are a list of tables: write `[[route]]`",
            ),
        ] {
            assert_eq!(problems_of(text), expected);
        }
    }

    #[test]
    fn bad_values_are_reported_with_what_is_expected() {
        let duration = "expected a duration such as \"500ms\", \"10s\", \"5m\" or \"1h\", at most \"720h\", or \"0s\"";
        let chunk =
            "expected a size such as \"64KiB\", \"16MiB\" or a number of bytes, from 1KiB to 16MiB";
        for (text, expected) in [
            ("[server]\nheader_timeout = 10", format!("server.header_timeout: found a number, {duration}")),
            ("[server]\nheader_timeout = \"10\"", format!("server.header_timeout: \"10\" has no unit; {duration}")),
            ("[server]\nheader_timeout = \"1 day\"", format!("server.header_timeout: \"1 day\" has an unknown unit; {duration}")),
            ("[server]\nheader_timeout = \"-1s\"", format!("server.header_timeout: \"-1s\" is not a duration; {duration}")),
            ("[server]\nheader_timeout = \"721h\"", format!("server.header_timeout: \"721h\" is too long; {duration}")),
            (
                "[server]\nmax_connections = 0",
                "server.max_connections: 0 is out of range; expected a whole number from 1 to 1000000".into(),
            ),
            (
                "[server]\nmax_connections = -1",
                "server.max_connections: -1 is out of range; expected a whole number from 1 to 1000000".into(),
            ),
            (
                "[server]\nmax_connections = \"9\"",
                "server.max_connections: found a string, expected a whole number from 1 to 1000000".into(),
            ),
            ("[output]\nchunk_size = 1023", format!("output.chunk_size: 1023 is out of range; {chunk}")),
            ("[output]\nchunk_size = \"17MiB\"", format!("output.chunk_size: 17MiB is out of range; {chunk}")),
            ("[output]\nchunk_size = \"0\"", format!("output.chunk_size: 0 is out of range; {chunk}")),
            ("[output]\nchunk_size = \"64 potatoes\"", format!("output.chunk_size: \"64 potatoes\" has an unknown unit; {chunk}")),
            ("[output]\nchunk_size = 1.5", format!("output.chunk_size: found a number with a decimal point, {chunk}")),
            (
                "[proxy]\non_backend_failure = \"htpp\"",
                "proxy.on_backend_failure: \"htpp\" is unknown, expected one of \"close\", \"http\", did you mean `http`?".into(),
            ),
            (
                "[log]\nlevel = \"warning\"",
                "log.level: \"warning\" is unknown, expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", did you mean `warn`?".into(),
            ),
            ("[log]\nfile = true", "log.file: found true or false, expected a string".into()),
            ("[server]\nlisten = []", "server.listen: at least one address is needed, such as \"0.0.0.0:8000\"".into()),
            (
                "[server]\nlisten = [8000]",
                "server.listen: found a list, expected a string, or a list of strings".into(),
            ),
            (
                "[server]\nlisten = \"8000\"",
                "server.listen: \"8000\" is not an address with a port; expected \"0.0.0.0:8000\", \"[::]:8000\", \"localhost:8000\" or \":8000\"".into(),
            ),
            (
                "[redis]\nchannel_prefix = \"a*\"",
                "redis.channel_prefix: \"a*\" cannot be used; expected 1 to 200 characters, none of them a control character or one of `*?[]^\\`, which Redis reads as a pattern".into(),
            ),
        ] {
            assert_eq!(problems_of(text), format!("x.toml:2: {expected}"));
        }
    }

    #[test]
    fn all_problems_are_reported_in_file_order() {
        let text =
            "[server]\nlistn = 1\nmax_connections = 0\n[log]\nlevel = 3\n[[route]]\nname = \"x\"\n";
        let lines: Vec<_> = problems_of(text)
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
    fn a_bad_entry_of_a_list_is_reported_at_its_own_line() {
        let text = "[server]\nlisten = [\n  \"127.0.0.1:1\",\n  \"127.0.0.1:1\",\n]\n";
        assert_eq!(problems_of(text), "x.toml:4: server.listen: 127.0.0.1:1 is listed twice");
        let text = "[server]\nallowed_origins = [\n  \"https://a.example\",\n  \"a.example\",\n]\n";
        assert!(
            problems_of(text)
                .starts_with("x.toml:4: server.allowed_origins: `a.example` is not an origin"),
            "{}",
            problems_of(text)
        );
    }

    #[test]
    fn invalid_toml_is_reported_with_its_line() {
        assert!(
            problems_of("[server]\nlisten = [\"a\"\n[log]\n").starts_with("x.toml:3: not TOML: "),
            "{}",
            problems_of("[server]\nlisten = [\"a\"\n[log]\n")
        );
        assert!(
            problems_of("a = 1\na = 2\n").starts_with("x.toml:2: not TOML: duplicate key"),
            "{}",
            problems_of("a = 1\na = 2\n")
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
    fn bad_routes_are_reported() {
        let with =
            |keys: &str| problems_of(&format!("[[route]]\nname = \"r\"\npath = \"/r\"\n{keys}"));
        assert_eq!(with(""), "x.toml:1: route: a route needs `backend`, `serve` or `files`");
        assert_eq!(
            with("bakend = 1").lines().last(),
            Some("x.toml:4: route.bakend: unknown key, did you mean `backend`?")
        );
        assert_eq!(
            with("backend = 7"),
            "x.toml:4: route.backend: found a number, expected a string, or a list of strings"
        );
        assert_eq!(
            with("backend = \"ftp://a\""),
            "x.toml:4: route.backend: `ftp://a` begins with `ftp://`, and not with `ws://`, `wss://`, `ws+unix://`, `http://`, `https://` or `http+unix://`"
        );
        assert_eq!(
            with("backend = [\"ws://a\", \"http://a\"]"),
            "x.toml:1: route `r`: its backends are all for WebSockets or all for plain HTTP"
        );
        assert_eq!(
            with("backend = \"ws://a\"\nmax_body = \"1KiB\""),
            "x.toml:1: route.max_body: is for routes with `http://` or `https://` backends"
        );
        assert_eq!(
            with("backend = \"http://a\"\nresponse_timeout = 5"),
            "x.toml:5: route.response_timeout: a duration is expected"
        );
        assert_eq!(
            with("backend = \"http://a\"\nlearn_task = \"id\""),
            "x.toml:1: route.learn_task: is read from WebSockets, and this route is for plain HTTP"
        );
        assert_eq!(
            with("backend = [\n\"ws://a\",\n\"ws://a:0\"]"),
            "x.toml:6: route.backend: `ws://a:0`: its port `0` must be 1 to 65535"
        );
        assert_eq!(with("backend = []"), "x.toml:1: route `r`: it needs at least one backend URL");
        assert_eq!(
            with("serve = \"input\"").lines().next(),
            Some(
                "x.toml:4: route.serve: \"input\" cannot be served, only \"output\" and \"ingest\" can"
            )
        );
        assert!(
            with("backend = \"ws://a\"\nserve = \"output\"")
                .contains("a route has one of `backend`, `serve` and `files`")
        );
        let twice = "[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"ws://a\"\n";
        assert!(
            problems_of(&format!("{twice}{twice}"))
                .starts_with("x.toml:5: route `a`: another route has this name")
        );
    }

    #[test]
    fn a_route_for_plain_http_has_limits_of_its_own() {
        let text = "[[route]]\nname = \"api\"\npath = \"/api\"\nbackend = [\"http://a/b\"]\n\
                    max_body = \"1MiB\"\nresponse_timeout = \"5s\"\n";
        let limits = |text: &str| match &parsed(text).gateway.routes[0].target {
            TargetSettings::Http { limits, .. } => *limits,
            other => panic!("{other:?}"),
        };
        let (max_body, time) = (Some(Some(1024 * 1024)), Some(Some(Duration::from_secs(5))));
        assert_eq!(limits(text), HttpLimits { max_body, response_timeout: time });
        let off = text.replace("1MiB", "0").replace("5s", "0s");
        let (max_body, response_timeout) = (Some(None), Some(None));
        assert_eq!(limits(&off), HttpLimits { max_body, response_timeout });
        for text in [text, &off] {
            let config = parsed(text);
            assert_eq!(parsed(&config.to_toml()), config, "it is shown as it is read");
        }
    }

    #[test]
    fn a_route_can_be_served() {
        let text =
            "[[route]]\nname = \"output\"\npath = \"/ws/output/{task_id}\"\nserve = \"output\"\n";
        assert_eq!(targets(&parsed(text)), ["output"]);
    }

    #[test]
    fn a_route_can_have_files() {
        let route = |path: &str, keys: &str| {
            format!("[[route]]\nname = \"app\"\npath = \"{path}\"\n{keys}\n")
        };
        let text = route("/{file...}", "files = \"/srv/dist\"\nfallback = \"index.html\"");
        let config = parsed(&text);
        let expected =
            Files { folder: Path::new("/srv/dist").into(), fallback: Some("index.html".into()) };
        assert_eq!(config.gateway.routes[0].target, TargetSettings::Files(expected));
        assert_eq!(parsed(&config.to_toml()), config);
        let config = parsed(&route("/app/{x...}", "files = \"dist\"\nfallback = \"\""));
        assert_eq!(parsed(&config.to_toml()), config);
        assert_eq!(targets(&config), ["files"]);

        for (path, keys, why) in [
            ("/app", "files = \"dist\"", "its path `/app` must end with a name for the rest"),
            ("/{x}", "files = \"dist\"", "must end with a name for the rest"),
            ("/{x...}", "files = \"\"", "`files` must name a folder"),
            ("/{x...}", "files = 7", "route.files: found a number, expected a string"),
            ("/{x...}", "files = \"dist\"\nserve = \"ingest\"", "one of `backend`, `serve` and"),
            ("/{x...}", "files = \"dist\"\nbackend = \"ws://a\"", "one of `backend`, `serve` and"),
            ("/{x...}", "files = \"dist\"\nhost = \"a\"", "route.host: is sent to a backend"),
            ("/{x...}", "files = \"dist\"\nmax_body = \"1KiB\"", "route.max_body: is for routes"),
            ("/{x...}", "backend = \"ws://a\"\nfallback = \"a\"", "route.fallback: is for routes"),
            ("/{x...}", "files = \"dist\"\nfallback = \"../a\"", "must be a file in the folder"),
            ("/{x...}", "files = \"dist\"\nfallback = \"sub/\"", "must be a file in the folder"),
            ("/{x...}", "files = \"dist\"\nfallback = \"/a\"", "must be a file in the folder"),
            ("/{x...}", "files = \"dist\"\nfallback = \".env\"", "must be a file in the folder"),
        ] {
            let problems = problems_of(&route(path, keys));
            assert!(problems.contains(why), "{keys}: {problems}");
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_flags_over_both() {
        let folder = TestFolder::make();
        let text = "[log]\nlevel = \"error\"\n[redis]\nurl = \"redis://file\"\n";
        let file = folder.write("precedence.toml", text);
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
        assert_eq!(listen(&loaded.config), ["0.0.0.0:1"]);
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
            text.contains("# *** replaces a password\nurl = [\"redis://u:***@h\"]\n"),
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
    fn another_password_is_a_change() {
        let old = parsed("[redis]\nurl = \"redis://u:one@h\"");
        let mut new = parsed("[redis]\nurl = \"redis://u:two@h\"");
        assert_eq!(new.keep_until_restart(&old), ["redis.url"]);
    }

    #[test]
    fn a_backend_that_is_the_gateway_is_refused_wherever_its_url_is_from() {
        let env = [("INPUT_HANDLER_URL", "ws://localhost:8123/ws/input")];
        let flags = Flags { listen: vec!["127.0.0.1:8123".into()], ..Flags::default() };
        let why = load_with(&env, flags).unwrap_err().to_string();
        assert!(why.contains("is the gateway itself, which listens on 127.0.0.1:8123"), "{why}");
        let flags = Flags { listen: vec!["127.0.0.1:8124".into()], ..Flags::default() };
        load_with(&env, flags).unwrap();
    }

    #[test]
    fn unreadable_files_are_reported() {
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
}
