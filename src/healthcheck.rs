//! `aivtuber-gateway healthcheck`: asks a running gateway's `/health`, for containers and scripts.
//!
//! A degraded gateway passes. It runs and answers, and a restart, which is what a container gets
//! for failing, would not bring its backend or its Redis back. Its status is printed.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]
#![expect(clippy::disallowed_methods, reason = "a command of its own, which may wait")]
#![expect(clippy::disallowed_types, reason = "a command of its own, which may wait")]

use crate::net::tls::{self, ByteStream};
use crate::proto::proxy_header;
use crate::reactor;
use crate::reactor::listeners::ListenOn;
use crate::service::trust;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// For everything, from the connection to the last byte of the answer.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The most that is read of an answer. A gateway's is a few hundred bytes.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Where a running gateway can be asked.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address that it listens on.
    pub listen: ListenOn,
    /// Decides whether a connection begins with a PROXY header; `None`: an address for admins,
    /// where none does.
    trust: Option<trust::Settings>,
}

impl Place {
    /// The places where a gateway with these settings listens, those for admins first.
    pub fn all(
        settings: &reactor::Settings,
        trust: &trust::Settings,
    ) -> impl Iterator<Item = Place> {
        let of = |listen: &ListenOn, trust| Place { listen: listen.clone(), trust };
        let admins = settings.admin.iter().map(move |listen| of(listen, None));
        let clients = settings.listen.iter();
        admins.chain(clients.map(move |listen| of(listen, Some(trust.clone()))))
    }

    /// Where to ask: at a place for admins if there is one, since `listen` may be full; then on a
    /// Unix socket, then without TLS.
    pub fn first(settings: &reactor::Settings, trust: &trust::Settings) -> Option<Place> {
        Place::all(settings, trust).min_by_key(|place| match &place.listen {
            _ if place.trust.is_none() => 0,
            ListenOn::Unix(_) => 1,
            ListenOn::Tcp(_) => 2,
            ListenOn::Tls(_) => 3,
        })
    }
}

/// Asks the gateway there and gives its `status`, `ok` or `degraded`. The error is a sentence.
pub fn ask(place: &Place) -> Result<String, String> {
    ask_within(place, TIME_LIMIT)
}

fn ask_within(place: &Place, limit: Duration) -> Result<String, String> {
    let health = health(place, limit)?;
    Ok(health["status"].as_str().unwrap_or_default().to_owned())
}

/// Asks the gateway there for its `/health`. The error is a sentence.
pub fn health(place: &Place, limit: Duration) -> Result<serde_json::Value, String> {
    let listen = &place.listen;
    if listen.address().is_some_and(|address| address.port() == 0) {
        return Err(
            "the gateway listens on a port of the kernel's choice (port 0): name it with --listen"
                .into(),
        );
    }
    let at = match listen {
        ListenOn::Tcp(address) | ListenOn::Tls(address) => reachable(*address).to_string(),
        ListenOn::Unix(path) => path.path().display().to_string(),
    };
    let (sender, answer) = mpsc::channel();
    // On a thread, so that one limit holds for the whole exchange, however slowly bytes arrive.
    let place = place.clone();
    let ask = move || exchange(&place, limit).map_err(|error| error.to_string());
    thread::spawn(move || sender.send(ask()));
    let bytes = match answer.recv_timeout(limit) {
        Ok(bytes) => bytes.map_err(|why| format!("no gateway answers at {at}: {why}"))?,
        Err(_) => return Err(format!("no answer from {at} within {} s", limit.as_secs_f32())),
    };
    read_answer(&bytes).map_err(|why| format!("{at} answers, but {why}"))
}

/// The address to connect to for one that is listened on: `0.0.0.0` and `[::]` become loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Connects to the gateway there. Returns what it is called in `Host` too.
///
/// # Errors
/// What the system reports.
pub fn connect(
    place: &Place,
    read_timeout: Option<Duration>,
) -> std::io::Result<(String, Box<dyn ByteStream>)> {
    let connect = |listen: SocketAddr| {
        let address = reachable(listen);
        let mut stream = TcpStream::connect_timeout(&address, TIME_LIMIT)?;
        stream.set_read_timeout(read_timeout)?;
        let own = stream.local_addr()?;
        if place.trust.as_ref().is_some_and(|trust| trust.expects_header(own.into())) {
            stream.write_all(proxy_header::LOCAL)?;
        }
        std::io::Result::Ok((address, stream))
    };
    Ok(match &place.listen {
        ListenOn::Tcp(address) => {
            let (address, stream) = connect(*address)?;
            (address.to_string(), Box::new(stream))
        }
        // Its certificate names what clients call it, which is hardly ever this address.
        ListenOn::Tls(address) => {
            let (address, stream) = connect(*address)?;
            (address.to_string(), tls::unverified(stream, &address.ip().to_string())?)
        }
        ListenOn::Unix(path) => {
            let stream = UnixStream::connect(path.path())?;
            stream.set_read_timeout(read_timeout)?;
            ("localhost".to_owned(), Box::new(stream))
        }
    })
}

fn exchange(place: &Place, limit: Duration) -> std::io::Result<Vec<u8>> {
    let (host, mut stream) = connect(place, Some(limit))?;
    write!(
        stream,
        "GET /health HTTP/1.1\r\nHost: {host}\r\nUser-Agent: healthcheck\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

fn read_answer(bytes: &[u8]) -> Result<serde_json::Value, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        _ => return Err("not in HTTP".into()),
    };
    match head.code {
        Some(200) => {}
        code => return Err(format!("with HTTP {}", code.unwrap_or_default())),
    }
    let health: serde_json::Value =
        serde_json::from_slice(&bytes[length..]).map_err(|_| "not as a gateway does: no JSON")?;
    match (health["gateway"].as_str(), health["status"].as_str()) {
        (Some(_), Some(_)) => Ok(health),
        _ => Err("not as a gateway does: no `gateway` and `status`".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn place(address: SocketAddr) -> Place {
        Place { listen: ListenOn::Tcp(address), trust: None }
    }

    fn ask(address: SocketAddr) -> Result<String, String> {
        super::ask(&place(address))
    }

    /// A server that reads one request, sends `answer` and closes.
    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn a_running_gateway_passes_with_its_status() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
        let ok = Box::leak(
            format!("{head}{{\"status\":\"ok\",\"gateway\":\"running\"}}").into_boxed_str(),
        );
        assert_eq!(ask(answering(ok)), Ok("ok".into()));
        let degraded = Box::leak(
            format!("{head}{{\"status\":\"degraded\",\"gateway\":\"running\"}}").into_boxed_str(),
        );
        assert_eq!(ask(answering(degraded)), Ok("degraded".into()));
    }

    #[test]
    fn anything_else_fails_with_a_sentence() {
        for (answer, why) in [
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "with HTTP 503"),
            ("HTTP/1.1 200 OK\r\n\r\nhello", "not as a gateway does: no JSON"),
            (
                "HTTP/1.1 200 OK\r\n\r\n{\"status\":\"ok\"}",
                "not as a gateway does: no `gateway` and `status`",
            ),
            ("+PONG\r\n", "not in HTTP"),
            ("", "not in HTTP"),
        ] {
            let address = answering(answer);
            assert_eq!(ask(address), Err(format!("{address} answers, but {why}")));
        }
    }

    #[test]
    fn a_closed_port_and_port_0_fail() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let why = ask(address).unwrap_err();
        assert!(why.starts_with(&format!("no gateway answers at {address}: ")), "{why}");
        assert!(ask("0.0.0.0:0".parse().unwrap()).unwrap_err().contains("port 0"));
    }

    #[test]
    fn a_silent_gateway_fails_after_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(ask_within(&place(address), Duration::from_millis(50)).is_err());
    }

    #[test]
    fn every_address_is_this_machine() {
        assert_eq!(reachable("0.0.0.0:1".parse().unwrap()), "127.0.0.1:1".parse().unwrap());
        assert_eq!(reachable("[::]:1".parse().unwrap()), "[::1]:1".parse().unwrap());
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()), "10.0.0.1:1".parse().unwrap());
    }
}
