//! The gateway that runs with this configuration, if there is one, and the ports that it needs.

#![expect(clippy::disallowed_types, reason = "a command of its own, which may wait")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::Row;
use crate::config::Config;
use crate::healthcheck;
use crate::net::tcp;
use crate::proto::resp;
use crate::reactor::listeners::ListenOn;

/// For a gateway or an inbox to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Each address that is listened on: it is free, or held by a gateway of this configuration.
pub fn check(config: &Config) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut health = None;
    let admin = config.reactor.admin.iter().map(|&address| ListenOn { address, has_tls: false });
    for at in admin.chain(config.reactor.listen.iter().copied()) {
        let name = format!("port {}", at.address.port());
        let row = match is_free(at.address) {
            Ok(true) => Row::ok(name, format!("{at} is free")),
            Ok(false) => match ask(at, config) {
                Ok(answer) => {
                    health.get_or_insert(answer);
                    Row::ok(name, format!("{at} is held by the running gateway"))
                }
                Err(why) => Row::fail(
                    name,
                    format!("{at} is held by another program: {why}"),
                    format!(
                        "stop it (`ss -ltnp 'sport = :{}'` names it), or change the address",
                        at.address.port()
                    ),
                ),
            },
            Err((detail, advice)) => Row::fail(name, format!("{at}: {detail}"), advice),
        };
        rows.push(row);
    }
    for &address in &config.reactor.inbox {
        rows.push(check_inbox(address, config));
    }
    rows.push(judge(health));
    rows
}

/// Whether the gateway could listen there. The error is what is wrong, and what to do.
fn is_free(address: SocketAddr) -> Result<bool, (String, &'static str)> {
    match tcp::listen(address, false) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::AddrInUse => Ok(false),
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
fn ask(at: ListenOn, config: &Config) -> Result<Value, String> {
    let health = healthcheck::health(at, TIMEOUT)?;
    let services = health.get("backend_services").and_then(Value::as_object);
    let theirs = services.into_iter().flat_map(|routes| routes.keys().map(String::as_str));
    let ours = config.gateway.routes.iter().map(|route| &*route.name);
    match theirs.eq(ours) {
        true => Ok(health),
        false => Err("a gateway with other routes".into()),
    }
}

/// What the running gateway says about itself.
fn judge(health: Option<Value>) -> Row {
    let name = "gateway";
    let Some(health) = health else {
        return Row::ok(name, "none is running with this configuration");
    };
    let word = |key: &str| health.get(key).and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let version = word("version");
    let open = health.get("active_connections").and_then(Value::as_u64).unwrap_or_default();
    let Some(problems) = health.get("problems").and_then(Value::as_array) else {
        return Row::warn(
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
            Row::ok(name, format!("version {version} is running, {open} WebSockets are open"))
        }
        true => Row::warn(
            name,
            format!("version {version} is running, this program is another one"),
            "restart the gateway to take the new version into use",
        ),
        false => Row::warn(
            name,
            format!("version {version} is degraded: {}", problems.join("; ")),
            "the rows below show whether that lasts",
        ),
    }
}

/// The embedded inbox: its port is free, or it takes what is published.
fn check_inbox(address: SocketAddr, config: &Config) -> Row {
    let name = format!("inbox {}", address.port());
    match is_free(address) {
        Ok(true) => return Row::ok(name, format!("{address} is free")),
        Err((detail, advice)) => return Row::fail(name, format!("{address}: {detail}"), advice),
        Ok(false) => {}
    }
    match publish(address, config) {
        Ok(()) => Row::ok(name, format!("{address} took a message that was published to it")),
        Err(why) => Row::fail(
            name,
            format!("{address} is held by something that is not the gateway's inbox: {why}"),
            "stop it, or change the address in `redis.url`",
        ),
    }
}

fn publish(address: SocketAddr, config: &Config) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(text)?;
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
