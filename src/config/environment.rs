//! The environment variables that override the file, and what each does.
//!
//! They come from the deployments that this gateway replaces: containers that name their handlers
//! and Redis in the environment.

use std::ffi::OsString;

use super::addresses::set_redis;
use super::problems::{BadItem, Problem};
use super::settings::Config;
use super::values::parse_level;
use crate::service::route::TargetSettings;
use crate::service::url::{BackendProtocol, BackendUrl, Template};

/// An environment variable that sets something.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Variable {
    pub name: &'static str,
    /// For `--help`.
    pub doc: &'static str,
    apply: fn(&mut Config, &str, VariableLookup) -> Result<(), VariableFault>,
}

/// Looks up another variable; `None` if it is unset or empty.
type VariableLookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables, in the order in which they are applied.
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
            _ if is_kubernetes(port) => Err(VariableFault::Warning(format!(
                "`{port}` is not a port: Kubernetes sets it so for a service called `redis`"
            ))),
            // Applied together with the host.
            Some(_) => Ok(()),
            None => redis_at(config, "localhost", env),
        },
    },
    Variable {
        name: "REDIS_URL",
        doc: "`redis.url`; overrides REDIS_HOST and REDIS_PORT",
        apply: |config, url, _| set_redis(config, &[url.into()]).map_err(VariableFault::from),
    },
    Variable {
        name: "AIVTUBER_GATEWAY_LOG",
        doc: "`log.level`",
        apply: |config, level, _| {
            config.log.level = parse_level(level).map_err(VariableFault::Error)?;
            Ok(())
        },
    },
];

/// Why a variable was not applied.
enum VariableFault {
    /// Its value cannot be used: the gateway does not start.
    Error(String),
    /// It has no effect, which is worth a warning.
    Warning(String),
}

impl From<BadItem> for VariableFault {
    fn from(bad: BadItem) -> Self {
        VariableFault::Error(bad.why)
    }
}

/// Applies every variable that `env` has a value for.
pub(super) fn apply_environment(
    config: &mut Config,
    env: &dyn Fn(&str) -> Option<OsString>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) {
    // Empty counts as unset: Compose passes on an unset variable of its own as an empty one.
    let text = |name: &str| {
        env(name)
            .map(|value| value.to_string_lossy().trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    for variable in ENVIRONMENT {
        let Some(value) = text(variable.name) else { continue };
        match (variable.apply)(config, &value, &text) {
            Ok(()) => {}
            Err(VariableFault::Error(why)) => {
                problems.push(Problem { place: variable.name.into(), key: None, why })
            }
            Err(VariableFault::Warning(why)) => {
                warnings.push(format!("{} is ignored: {why}", variable.name))
            }
        }
    }
}

/// Makes the route `name` a relayed one, to `urls`, which are separated by commas.
fn relay(config: &mut Config, name: &str, urls: &str) -> Result<(), VariableFault> {
    let Some(route) = config.gateway.routes.iter_mut().find(|route| route.name == name) else {
        return Err(VariableFault::Warning(format!("no route is called `{name}`")));
    };
    let urls = urls
        .split(',')
        .map(|url| with_route_path(url.trim(), &route.path))
        .collect::<Result<_, _>>();
    let urls = urls.map_err(VariableFault::Error)?;
    let (host, learn_task) = match &route.target {
        TargetSettings::Backend { host, learn_task, .. } => (host.clone(), learn_task.clone()),
        TargetSettings::Http { host, .. } => (host.clone(), None),
        TargetSettings::Output | TargetSettings::Ingest(_) | TargetSettings::Files(_) => {
            (None, None)
        }
    };
    route.target = TargetSettings::Backend { urls, host, learn_task };
    Ok(())
}

/// Completes a URL from a variable, whose author expects the route's path to be appended: the whole
/// path to a URL without one, else the names in it (`ws://host:8002/ws/output` gets `/{task_id}`).
/// A URL with a query, or with names of its own, is complete.
fn with_route_path(url: &str, path: &Template) -> Result<BackendUrl, String> {
    let parsed = BackendUrl::parse(url)?;
    if parsed.protocol() == BackendProtocol::Http {
        return Err(format!("`{url}` is for plain HTTP, and the route is for WebSockets"));
    }
    if parsed.unix_path().is_some() && !url.ends_with('/') {
        // A path may follow the socket's, after a colon.
        let has_path = url.matches(':').count() > 1;
        return if has_path { Ok(parsed) } else { BackendUrl::parse(&format!("{url}:{path}")) };
    }
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

/// Whether `port` is what Kubernetes sets for a service called `redis`: `tcp://10.0.0.7:6379`.
fn is_kubernetes(port: &str) -> bool {
    port.starts_with("tcp://")
}

/// Sets `redis.url` from a host and `REDIS_PORT`, unless `REDIS_URL` is set, which overrides both.
fn redis_at(config: &mut Config, host: &str, env: VariableLookup) -> Result<(), VariableFault> {
    if env("REDIS_URL").is_some() {
        return Ok(());
    }
    let port = env("REDIS_PORT").filter(|port| !is_kubernetes(port)).unwrap_or("6379".into());
    match port.parse::<u16>() {
        Ok(port) if port > 0 => {}
        _ => {
            return Err(VariableFault::Error(format!(
                "REDIS_PORT is {port:?}, expected 1 to 65535"
            )));
        }
    }
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.into()
    };
    set_redis(config, &[format!("redis://{host}:{port}")]).map_err(VariableFault::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{parsed, targets};

    /// The defaults with `env` applied, the problems and the warnings.
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
    fn backend_variables_complete_their_urls() {
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
        assert_eq!(output("  "), targets(&Config::default())[1], "empty counts as unset");
        let input =
            |url: &str| targets(&from_environment(&[("INPUT_HANDLER_URL", url)]).0)[0].clone();
        assert_eq!(input("ws://i:1"), "ws://i:1/ws/input");
        assert_eq!(input("ws://i:1/other"), "ws://i:1/other");
        assert_eq!(input("ws+unix:///run/i.sock"), "ws+unix:///run/i.sock:/ws/input");
        assert_eq!(input("ws+unix:///run/i.sock:/x"), "ws+unix:///run/i.sock:/x");
        let (_, problems, _) = from_environment(&[("INPUT_HANDLER_URL", "http://i")]);
        assert_eq!(
            problems,
            ["INPUT_HANDLER_URL: `http://i` is for plain HTTP, and the route is for WebSockets"]
        );
    }

    #[test]
    fn a_variable_for_a_missing_route_is_a_warning() {
        let mut config = parsed("route = []");
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let env = |name: &str| (name == "INPUT_HANDLER_URL").then(|| "ws://a".into());
        apply_environment(&mut config, &env, &mut problems, &mut warnings);
        assert!(problems.is_empty());
        assert_eq!(warnings, ["INPUT_HANDLER_URL is ignored: no route is called `input`"]);
    }

    #[test]
    fn redis_variables_set_the_url() {
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
}
