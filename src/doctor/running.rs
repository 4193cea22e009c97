//! The gateway that runs with this configuration, if there is one, and the ports that it needs.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use serde_json::Value;
use socket2::{SockAddr, Socket, Type};

use super::CheckRow;
use crate::config::Config;
use crate::healthcheck::{self, Place};
use crate::net::{tcp, unix};
use crate::proto::resp;
use crate::reactor::listeners::ListenOn;

/// For a gateway or an inbox to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Each address that is listened on: it is free, or held by a gateway of this configuration.
pub fn check(config: &Config) -> Vec<CheckRow> {
    let mut rows = Vec::new();
    let mut health = None;
    for place in Place::all(&config.reactor, &config.gateway.trust) {
        let at = &place.listen;
        let name = named(at);
        let row = match is_free(at) {
            Ok(true) => CheckRow::ok(name, format!("{at} is free")),
            Ok(false) => match ask(&place, config) {
                Ok(answer) => {
                    health.get_or_insert(answer);
                    CheckRow::ok(name, format!("{at} is held by the running gateway"))
                }
                Err(why) => CheckRow::fail(
                    name,
                    format!("{at} is held by another program: {why}"),
                    format!(
                        "stop it (`{}` names it), or change the address",
                        match at.address() {
                            Some(address) => format!("ss -ltnp 'sport = :{}'", address.port()),
                            None => "ss -lxp".to_owned(),
                        }
                    ),
                ),
            },
            Err((detail, advice)) => CheckRow::fail(name, format!("{at}: {detail}"), advice),
        };
        rows.push(row);
    }
    for at in &config.reactor.inbox {
        rows.push(check_inbox(at, config));
    }
    rows.push(judge(health));
    rows
}

fn named(at: &ListenOn) -> String {
    at.address().map_or("socket".to_owned(), |address| format!("port {}", address.port()))
}

/// Whether the gateway could listen there. The error is what is wrong, and what to do.
fn is_free(at: &ListenOn) -> Result<bool, (String, &'static str)> {
    let free = match at {
        ListenOn::Tcp(address) | ListenOn::Tls(address) => tcp::listen(*address, false).map(drop),
        ListenOn::Unix(path) => unix::look(path),
    };
    match free {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::AddrInUse => Ok(false),
            _ if at.address().is_none() => {
                Err((error.to_string(), "check the path in `listen`, and its folder"))
            }
            ErrorKind::PermissionDenied => Err((
                error.to_string(),
                "give the program CAP_NET_BIND_SERVICE, or take a port from 1024 up",
            )),
            ErrorKind::AddrNotAvailable => {
                Err((error.to_string(), "take an address of this machine, or 0.0.0.0 for all"))
            }
            _ => Err((error.to_string(), "check the address in `listen`")),
        },
    }
}

/// The `/health` of a gateway with the same routes.
fn ask(place: &Place, config: &Config) -> Result<Value, String> {
    let health = healthcheck::health(place, TIMEOUT)?;
    let services = health.get("backend_services").and_then(Value::as_object);
    let theirs = services.into_iter().flat_map(|routes| routes.keys().map(String::as_str));
    let ours = config.gateway.routes.iter().map(|route| &*route.name);
    match theirs.eq(ours) {
        true => Ok(health),
        false => Err("a gateway with other routes".into()),
    }
}

/// What the running gateway says about itself.
fn judge(health: Option<Value>) -> CheckRow {
    let name = "gateway";
    let Some(health) = health else {
        return CheckRow::ok(name, "none is running with this configuration");
    };
    let word = |key: &str| health.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let version = word("version");
    let open = health.get("active_connections").and_then(Value::as_u64).unwrap_or_default();
    let Some(problems) = health.get("problems").and_then(Value::as_array) else {
        return CheckRow::warn(
            name,
            format!(
                "version {version} is {}, but takes this command for a stranger",
                word("status")
            ),
            "set `admin_listen = [\"127.0.0.1:8009\"]` in `[server]`, so that its details can be \
             asked for",
        );
    };
    let problems: Vec<_> = problems.iter().filter_map(Value::as_str).collect();
    match problems.is_empty() {
        true if version == env!("CARGO_PKG_VERSION") => {
            CheckRow::ok(name, format!("version {version} is running, {open} WebSockets are open"))
        }
        true => CheckRow::warn(
            name,
            format!("version {version} is running, this program is another one"),
            "restart the gateway to take the new version into use",
        ),
        false => CheckRow::warn(
            name,
            format!("version {version} is degraded: {}", problems.join("; ")),
            "the rows below show whether that lasts",
        ),
    }
}

/// The embedded inbox: its place is free, or it takes what is published.
fn check_inbox(at: &ListenOn, config: &Config) -> CheckRow {
    let name = at.address().map_or("inbox".into(), |address| format!("inbox {}", address.port()));
    match is_free(at) {
        Ok(true) => return CheckRow::ok(name, format!("{at} is free")),
        Err((detail, advice)) => return CheckRow::fail(name, format!("{at}: {detail}"), advice),
        Ok(false) => {}
    }
    match publish(at, config) {
        Ok(()) => CheckRow::ok(name, format!("{at} took a message that was published to it")),
        Err(why) => CheckRow::fail(
            name,
            format!("{at} is held by something that is not the gateway's inbox: {why}"),
            "stop it, or change the address in `redis.url`",
        ),
    }
}

fn publish(at: &ListenOn, config: &Config) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let address = match at {
        ListenOn::Tcp(address) | ListenOn::Tls(address) => SockAddr::from(*address),
        ListenOn::Unix(path) => SockAddr::unix(path.path()).map_err(text)?,
    };
    let mut stream = Socket::new(address.domain(), Type::STREAM, None).map_err(text)?;
    stream.connect_timeout(&address, TIMEOUT).map_err(text)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(text)?;
    let mut request = Vec::new();
    if let Some(password) = config.gateway.link.inbox_password() {
        resp::pack(&mut request, &[b"AUTH", password.text().as_bytes()]);
    }
    // What nobody waits for and nothing keeps.
    let channel = super::redis::canary_channel(&config.gateway.link.channel_prefix);
    resp::pack(&mut request, &[b"PUBLISH", channel.as_bytes(), super::redis::CANARY]);
    resp::pack(&mut request, &[b"QUIT"]);
    stream.write_all(&request).map_err(text)?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).map_err(text)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.lines().find(|line| line.starts_with('-')) {
        Some(error) => Err(error.trim_start_matches('-').to_owned()),
        None if answer.contains(":1") => Ok(()),
        None => Err("it does not speak the Redis protocol".into()),
    }
}
