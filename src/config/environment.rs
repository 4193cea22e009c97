//! Environment variables that set something.

use std::ffi::OsString;

use super::addresses::set_redis;
use super::problems::Problem;
use super::settings::Config;
use super::values::parse_level;
use crate::service::route::{BackendUrl, Target, Template};

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

/// What the environment's value came to.
enum Fault {
    /// It is wrong, and nothing is started.
    Error(String),
    /// It has no effect; somebody should know.
    Warning(String),
}

pub(super) fn apply_environment(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{parsed, targets};

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
}
