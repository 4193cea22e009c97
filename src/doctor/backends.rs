//! A whole WebSocket handshake with every backend, or a request for a head in plain HTTP.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]
#![expect(clippy::disallowed_methods, reason = "a command of its own, which may wait")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime};

use socket2::{SockAddr, Socket, Type};

use super::{CheckRow, Findings, OtherClock};
use crate::config::Config;
use crate::net::tls::{ByteStream, Layer, Verify, is_untrusted};
use crate::proto::http::{ResponseHead, empty_slots, reason_phrase};
use crate::proto::{forward, upgrade, ws};
use crate::service::attempt::AttemptError;
use crate::service::url::{BackendProtocol, BackendSecurity, BackendUrl, probe_target};

/// Where no timeout is configured.
const NO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a backend may take to close once it was asked to.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a connection to a backend leads, and the backend's answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// One backend of a route.
pub struct Backend<'c> {
    route: &'c str,
    url: &'c BackendUrl,
    /// What clients' `Host` is replaced by.
    host: Option<&'c str>,
}

/// Why a backend cannot serve clients.
struct BackendFailure {
    why: String,
    advice: String,
}

/// What a backend answered.
struct BackendAnswer {
    /// 101 once it has upgraded.
    status: u16,
    date: Option<SystemTime>,
}

/// Every backend of every route.
pub fn all(config: &Config) -> Vec<Backend<'_>> {
    let mut all = Vec::new();
    for route in &config.gateway.routes {
        let (name, host) = (&*route.name, route.target.host());
        all.extend(route.target.urls().iter().map(|url| Backend { route: name, url, host }));
    }
    all
}

/// Tries one backend: its name, a connection, TLS, and the handshake.
pub fn check(backend: &Backend<'_>, config: &Config, layer: &Layer) -> Findings {
    let name = format!("backend {}", backend.route);
    let url = backend.url.public_text();
    let begun = Instant::now();
    let (address, answer) = match backend.ask(config, layer) {
        Ok(answer) => answer,
        Err(BackendFailure { why, advice }) => {
            return vec![CheckRow::fail(name, format!("{url}: {why}"), advice)].into();
        }
    };
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    let answers =
        |status| format!("{url}: {address} answers, with {status} {}", reason_phrase(status));
    let row = match (answer.status, backend.url.protocol()) {
        (101, BackendProtocol::WebSocket) => {
            CheckRow::ok(name, format!("{url}: {address} has upgraded in {took:.1} ms"))
        }
        // The path itself need not be there: any answer shows a backend that can serve clients.
        (200..=499, BackendProtocol::Http) => {
            CheckRow::ok(name, format!("{} in {took:.1} ms", answers(answer.status)))
        }
        (status, BackendProtocol::Http) => {
            CheckRow::warn(name, answers(status), "look into the backend's own log")
        }
        (status @ (401 | 403), _) => CheckRow::warn(
            name,
            answers(status),
            "nothing, if clients bring credentials of their own",
        ),
        (status, _) if backend.url.names().next().is_some() && status < 429 => CheckRow::warn(
            name,
            answers(status),
            "nothing, if it knows no task with the nil UUID, which was asked for",
        ),
        (status, _) => CheckRow::fail(
            name,
            answers(status),
            match status {
                429 | 502..=504 => "look into the backend's own log: it cannot serve at the moment",
                _ => "check the path in `backend`: no WebSocket is served there",
            },
        ),
    };
    let clock = answer.date.map(|theirs| OtherClock {
        whose: format!("backend {url}"),
        theirs,
        ours: SystemTime::now(),
    });
    Findings { rows: vec![row], clocks: clock.into_iter().collect() }
}

impl Backend<'_> {
    /// Where it is, in words and for the kernel.
    fn places(&self) -> Result<Vec<(String, SockAddr)>, BackendFailure> {
        if let Some(path) = self.url.unix_path() {
            let shown = path.display().to_string();
            let place = SockAddr::unix(path).map_err(|error| self.failure(Some(&shown), &error))?;
            return Ok(vec![(shown, place)]);
        }
        let (host, port) = (self.url.host(), self.url.port());
        let addresses = match self.url.name().known_addresses() {
            Some(known) => known,
            None => match (host, port).to_socket_addrs() {
                Ok(found) => found.collect(),
                Err(error) => {
                    return Err(BackendFailure {
                        why: format!("the name {host} is not found: {error}"),
                        advice: "correct the name in `backend`, or this machine's name server"
                            .into(),
                    });
                }
            },
        };
        Ok(addresses.into_iter().map(|address| (address.to_string(), address.into())).collect())
    }

    fn ask(
        &self,
        config: &Config,
        layer: &Layer,
    ) -> Result<(String, BackendAnswer), BackendFailure> {
        let settings = &config.gateway.session;
        let until = Instant::now() + settings.connect_timeout.unwrap_or(NO_TIMEOUT);
        let mut last = (None, io::Error::from(ErrorKind::AddrNotAvailable));
        for (shown, place) in self.places()? {
            let left = left_until(until).map_err(|error| self.failure(None, &error))?;
            match connect(&place, left) {
                Ok(socket) => {
                    let limit = settings.handshake_timeout.unwrap_or(NO_TIMEOUT);
                    return match self.shake_hands(socket, Instant::now() + limit, layer) {
                        Ok(answer) => Ok((shown, answer)),
                        Err(error) => Err(self.failure(Some(&shown), &error)),
                    };
                }
                Err(error) => last = (Some(shown), error),
            }
        }
        let (shown, error) = last;
        Err(self.failure(shown.as_deref(), &error))
    }

    fn failure(&self, place: Option<&str>, error: &io::Error) -> BackendFailure {
        let at = place.map_or(String::new(), |place| format!(" ({place})"));
        let is_tls = self.url.security() != BackendSecurity::Plain;
        let (why, advice) = match error.kind() {
            _ if is_untrusted(error) => (
                format!("its certificate is not trusted: {error}"),
                "put its root into `[tls] ca`, and dial it by a name in the certificate",
            ),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => (
                "it has not answered in time".into(),
                "see whether it hangs, and whether a firewall drops what is sent to it",
            ),
            ErrorKind::InvalidData if is_tls => {
                (format!("TLS failed: {error}"), "is it `ws://` in place of `wss://`?")
            }
            ErrorKind::InvalidData if self.url.protocol() == BackendProtocol::Http => {
                (error.to_string(), "is it an HTTP server at all?")
            }
            ErrorKind::InvalidData => (error.to_string(), "is it a WebSocket server at all?"),
            ErrorKind::UnexpectedEof => (
                "it has closed the connection without an answer".into(),
                "look into the backend's own log",
            ),
            ErrorKind::ConnectionRefused => (
                AttemptError::Refused.to_string(),
                "start the backend, or correct host and port in `backend`",
            ),
            _ => {
                (error.to_string(), "check host and port in `backend`, and the network in between")
            }
        };
        BackendFailure { why: format!("{why}{at}"), advice: advice.into() }
    }

    fn shake_hands(
        &self,
        socket: Socket,
        until: Instant,
        layer: &Layer,
    ) -> io::Result<BackendAnswer> {
        let mut stream: Box<dyn ByteStream> = match self.url.security() {
            BackendSecurity::Plain => Box::new(socket.try_clone()?),
            security => {
                let verify = match security {
                    BackendSecurity::UnverifiedTls => Verify::No,
                    _ => Verify::Yes,
                };
                layer.connect(socket.try_clone()?, self.url.host(), verify)?
            }
        };
        let key = data_encoding::BASE64.encode(&fastrand::u128(..).to_be_bytes());
        let authority = self.host.map_or_else(|| self.url.authority(), str::to_owned);
        let (target, mut request) = (probe_target(self.url), Vec::new());
        match self.url.protocol() {
            BackendProtocol::WebSocket => {
                upgrade::write_probe_request(&target, &authority, &key, &mut request)
            }
            BackendProtocol::Http => {
                forward::write_probe_request(&target, &authority, &mut request)
            }
        }
        socket.set_write_timeout(Some(left_until(until)?))?;
        socket.set_read_timeout(Some(left_until(until)?))?;
        stream.write_all(&request)?;
        let mut bytes = Vec::new();
        loop {
            let mut slots = empty_slots();
            let malformed = |why: &str| io::Error::new(ErrorKind::InvalidData, why.to_owned());
            match ResponseHead::parse(&bytes, &mut slots) {
                Err(bad) => return Err(malformed(bad.why)),
                Ok(Some((head, length))) if head.is_interim() => {
                    bytes.drain(..length);
                    continue;
                }
                Ok(Some((head, _))) => {
                    let date = head.headers.first("date").and_then(read_date);
                    if head.status != 101 || self.url.protocol() == BackendProtocol::Http {
                        return Ok(BackendAnswer { status: head.status, date });
                    }
                    upgrade::check_response(&head, &key).map_err(malformed)?;
                    close(&socket, &mut *stream);
                    return Ok(BackendAnswer { status: head.status, date });
                }
                Ok(None) => {}
            }
            socket.set_read_timeout(Some(left_until(until)?))?;
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                _ if bytes.len() > ANSWER_BYTES_MAX => return Err(malformed("too long a head")),
                n => bytes.extend_from_slice(&buffer[..n]),
            }
        }
    }
}

fn connect(place: &SockAddr, limit: Duration) -> io::Result<Socket> {
    let socket = Socket::new(place.domain(), Type::STREAM, None)?;
    socket.connect_timeout(place, limit)?;
    Ok(socket)
}

fn read_date(value: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(str::from_utf8(value).ok()?).ok()
}

fn left_until(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Ends the WebSocket politely, so that the backend logs no error. Whether that works does not
/// matter.
fn close(socket: &Socket, stream: &mut dyn ByteStream) {
    let frame = ws::close_frame(1000, "probe", Some(fastrand::u32(..).to_be_bytes()));
    let until = Instant::now() + CLOSE_TIMEOUT;
    let _ = stream.write_all(&frame);
    let _ = socket.shutdown(Shutdown::Write);
    let mut buffer = [0; 4096];
    while let Ok(left) = left_until(until) {
        let _ = socket.set_read_timeout(Some(left));
        if !matches!(stream.read(&mut buffer), Ok(1..)) {
            return;
        }
    }
}
