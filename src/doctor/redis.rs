//! A canary through Redis: subscribed to, published, and received, with the rights that the gateway
//! needs to keep results.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]
#![expect(clippy::disallowed_types, reason = "a command of its own, which may wait")]
#![expect(clippy::disallowed_methods, reason = "a command of its own, which may wait")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use redis::Value;

use super::{CheckRow, Findings, OtherClock};
use crate::config::{Config, without_password};
use crate::net::tls::{ByteStream, Layer};
use crate::proto::resp::{self, Decoder, Incoming};
use crate::service::link::{Address, Server, Settings, Subscribe};
use crate::service::route::TargetSettings;

/// For each connection and each reply.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest reply.
const REPLY_BYTES_MAX: usize = 1024 * 1024;

/// A progress message: a gateway that hears it passes it to whoever waits for the task, which is
/// nobody, and keeps nothing.
pub const CANARY: &[u8] = br#"{"status":"progress","text":"a canary of aivtuber-gateway doctor"}"#;

/// No action that a gateway or a worker knows.
const CONTROL_CANARY: &[u8] = br#"{"action":"CANARY"}"#;

/// A channel of a task that is nobody's.
pub fn canary_channel(prefix: &str) -> String {
    format!("{prefix}{}", new_task())
}

fn new_task() -> uuid::Uuid {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid()
}

/// Tries every configured server; only the first one has to work.
pub fn check(config: &Config, layer: &Layer) -> Findings {
    let settings = &config.gateway.link;
    let is_served = |target: &TargetSettings| *target == TargetSettings::Output;
    if !config.gateway.routes.iter().any(|route| is_served(&route.target)) {
        return vec![CheckRow::ok("redis", "not used: no route serves results")].into();
    }
    if settings.is_embedded() {
        return vec![CheckRow::ok("redis", "not used: workers publish to the gateway itself")]
            .into();
    }
    let mut found = Findings::default();
    for url in &settings.urls {
        check_server(url, settings, layer, &mut found);
    }
    found
}

fn check_server(url: &str, settings: &Settings, layer: &Layer, found: &mut Findings) {
    let shown = without_password(url);
    let server = match Server::parse(url) {
        Ok(server) => server,
        Err(why) => {
            let advice = "correct `redis.url`";
            return found.rows.push(CheckRow::fail("redis", format!("{shown}: {why}"), advice));
        }
    };
    let dial = || RedisClient::dial(&server, settings, layer);
    let dialed = dial().and_then(|publisher| Ok((publisher, dial()?)));
    let (mut publisher, mut subscriber) = match dialed {
        Ok(clients) => clients,
        Err(why) => {
            let advice = advice_on(&why, "start Redis, or correct `redis.url`");
            return found.rows.push(CheckRow::fail("redis", format!("{shown}: {why}"), advice));
        }
    };
    let begun = Instant::now();
    let prefix = &settings.channel_prefix;
    match pass(&mut publisher, &mut subscriber, prefix, settings.subscribe, CANARY) {
        Ok(()) => {
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            let detail = format!("{shown}: a canary came through in {took:.1} ms");
            found.rows.push(CheckRow::ok("redis", detail));
        }
        Err(why) => {
            let detail = format!("{shown}: a canary did not come through: {why}");
            let advice = advice_on(&why, "look into the log of Redis");
            found.rows.push(CheckRow::fail("redis", detail, advice));
        }
    }
    found.rows.push(match keep(&mut publisher, prefix) {
        Ok(()) => {
            CheckRow::ok("redis keeps", format!("{shown}: a value was stored, read and removed"))
        }
        Err(why) => CheckRow::fail(
            "redis keeps",
            format!("{shown}: results cannot be kept: {why}"),
            advice_on(&why, "look into the log of Redis"),
        ),
    });
    let control = &settings.control_prefix;
    let subscribe = settings.subscribe;
    found.rows.push(
        match pass(&mut publisher, &mut subscriber, control, subscribe, CONTROL_CANARY) {
            Ok(()) => {
                CheckRow::ok("redis control", format!("{shown}: STOP reaches other gateways"))
            }
            Err(why) => CheckRow::warn(
                "redis control",
                format!("{shown}: STOP, LEFT and BACK stay within one gateway: {why}"),
                format!("allow the user `&{control}*`, `+psubscribe`, `+subscribe` and `+publish`"),
            ),
        },
    );
    let ours = SystemTime::now();
    if let Ok(theirs) = publisher.time() {
        found.clocks.push(OtherClock { whose: format!("redis {shown}"), theirs, ours });
    }
}

/// What to do about an error of Redis, by its code.
fn advice_on(why: &str, otherwise: &str) -> String {
    let code = why.split([' ', ':']).next().unwrap_or_default();
    match code {
        "NOAUTH" | "WRONGPASS" => "set user and password in `redis.url`, or `redis.password_file`",
        "NOPERM" => "give the user the rights that docs/operations.md lists (ACL SETUSER)",
        "OOM" => "raise `maxmemory` of Redis, or let it evict (`maxmemory-policy volatile-ttl`)",
        "READONLY" => "this is a replica: let `redis.url` lead to the server that is written to",
        "MISCONF" => "Redis cannot save to its disk: see to that, or `stop-writes-on-bgsave-error`",
        "LOADING" => "wait: Redis is still reading its data",
        _ => otherwise,
    }
    .to_owned()
}

/// Publishes to a channel with this prefix, and waits until that has come back.
fn pass(
    publisher: &mut RedisClient,
    subscriber: &mut RedisClient,
    prefix: &str,
    subscribe: Subscribe,
    payload: &[u8],
) -> Result<(), String> {
    let channel = canary_channel(prefix);
    let pattern = resp::pattern_for_prefix(prefix);
    match subscribe {
        Subscribe::Pattern => subscriber.send(&[b"PSUBSCRIBE", pattern.as_bytes()])?,
        Subscribe::Task => subscriber.send(&[b"SUBSCRIBE", channel.as_bytes()])?,
    }
    while !matches!(subscriber.receive()?, Incoming::Subscribed { .. }) {}
    publisher.call(&[b"PUBLISH", channel.as_bytes(), payload])?;
    loop {
        // Others publish too.
        match subscriber.receive()? {
            Incoming::Message { channel: from, payload: got }
                if from == channel.as_bytes() && got == payload =>
            {
                return Ok(());
            }
            _ => {}
        }
    }
}

/// Does to a key what the gateway does to those of results.
fn keep(client: &mut RedisClient, prefix: &str) -> Result<(), String> {
    let key = format!("{}_kept:{}", prefix.strip_suffix(':').unwrap_or(prefix), new_task());
    let key = key.as_bytes();
    client.call(&[b"HSET", key, b"doctor", b"1"])?;
    client.call(&[b"PEXPIRE", key, b"10000"])?;
    let kept = client.call(&[b"HGET", key, b"doctor"]);
    client.call(&[b"UNLINK", key])?;
    client.call(&[b"SCRIPT", b"LOAD", b"return 1"])?;
    match resp::bytes(Some(kept?)).as_deref() {
        Some(b"1") => Ok(()),
        _ => Err("what was stored is not there".into()),
    }
}

/// Connects to the first address of a name that answers.
fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let found = (host, port).to_socket_addrs();
    let addresses = found.map_err(|error| format!("the name {host} is not found: {error}"))?;
    let mut last = format!("the name {host} has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(last)
}

/// A connection that blocks.
struct RedisClient {
    stream: Box<dyn ByteStream>,
    decoder: Decoder,
    /// Bytes that were read and not decoded.
    rest: Vec<u8>,
    until: Instant,
}

impl RedisClient {
    fn dial(server: &Server, settings: &Settings, layer: &Layer) -> Result<RedisClient, String> {
        let text = |error: std::io::Error| error.to_string();
        let stream: Box<dyn ByteStream> = match server.address() {
            Address::Tcp { host, port } => Box::new(connect(host, *port)?),
            Address::Tls { host, port } => {
                layer.connect_redis(connect(host, *port)?, host).map_err(text)?
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(text)?;
                stream.set_read_timeout(Some(TIMEOUT)).map_err(text)?;
                Box::new(stream)
            }
        };
        let decoder = Decoder::new(REPLY_BYTES_MAX);
        let until = Instant::now() + TIMEOUT;
        let mut client = RedisClient { stream, decoder, rest: Vec::new(), until };
        let (user, password) = server.credentials(settings.password.as_ref());
        match (user, password) {
            (Some(user), Some(password)) => {
                client.call(&[b"AUTH", user.as_bytes(), password.as_bytes()])?;
            }
            (None, Some(password)) => drop(client.call(&[b"AUTH", password.as_bytes()])?),
            (_, None) => {}
        }
        client.call(&[b"PING"])?;
        Ok(client)
    }

    fn send(&mut self, command: &[&[u8]]) -> Result<(), String> {
        let mut bytes = Vec::new();
        resp::pack(&mut bytes, command);
        self.until = Instant::now() + TIMEOUT;
        self.stream.write_all(&bytes).map_err(|error| error.to_string())
    }

    /// The next thing that comes; an error reply is an error.
    fn receive(&mut self) -> Result<Incoming, String> {
        loop {
            let mut input = &self.rest[..];
            let decoded = self.decoder.decode(&mut input);
            let left = input.len();
            self.rest.drain(..self.rest.len() - left);
            match decoded {
                Err(_) => return Err("it does not speak the Redis protocol".into()),
                Ok(Some(Value::ServerError(error))) => {
                    return Err(format!("{} {}", error.code(), error.details().unwrap_or("")));
                }
                Ok(Some(value)) => return Ok(resp::classify(value, true)),
                Ok(None) => {}
            }
            if self.until <= Instant::now() {
                return Err("no answer in time".into());
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("it has closed the connection".into()),
                Ok(n) => self.rest.extend_from_slice(&buffer[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => {
                    return Err("no answer in time".into());
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn call(&mut self, command: &[&[u8]]) -> Result<Value, String> {
        self.send(command)?;
        loop {
            if let Incoming::Reply(value) = self.receive()? {
                return Ok(value);
            }
        }
    }

    fn time(&mut self) -> Result<SystemTime, String> {
        let Value::Array(parts) = self.call(&[b"TIME"])? else {
            return Err("not a time".into());
        };
        let mut parts = parts.into_iter().map(|part| {
            let text = String::from_utf8(resp::bytes(Some(part)).unwrap_or_default());
            text.ok().and_then(|text| text.parse::<u64>().ok())
        });
        let (seconds, micros) = (parts.next().flatten(), parts.next().flatten());
        let seconds = seconds.ok_or("not a time")?;
        let since = Duration::from_secs(seconds) + Duration::from_micros(micros.unwrap_or(0));
        Ok(SystemTime::UNIX_EPOCH + since)
    }
}
