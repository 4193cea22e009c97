//! Plain HTTP: clients with one request in flight on each connection, and the backend.
//!
//! Both ends of each message are checked: heads for their status, method, path and length, content
//! byte by byte. Content is a block of bytes, repeated, so that a long one needs no memory.

use super::work::{Limits, Observe, Outcome};
use crate::Fault;
use crate::net::{self, Io, Poll};
use crate::wire;
use rustix::event::epoll::EventFlags;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes per read or write.
const IO_BYTES: usize = 256 * 1024;
const LISTENER: u64 = u64::MAX;
/// Of the measured time, before it.
const WARM_UP_SHARE: f64 = 0.15;

/// Content of a known length: a block that repeats.
#[derive(Clone, Debug, Default)]
pub struct Content {
    block: Arc<Vec<u8>>,
    length: u64,
}

/// The request that every client sends again and again, and its response.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub path: String,
    /// `None`: it is a GET.
    pub upload: Option<Content>,
    pub download: Content,
    /// The media type of content, where the backend sends some.
    pub media_type: &'static str,
}

impl Content {
    /// These bytes.
    pub fn of(bytes: Arc<Vec<u8>>) -> Content {
        Content { length: bytes.len() as u64, block: bytes }
    }

    /// `length` bytes at random. They repeat, but at no multiple of a page or a buffer.
    pub fn random(length: u64) -> Content {
        let mut block = vec![0; length.min((1 << 20) - 13) as usize];
        fastrand::fill(&mut block);
        Content { block: Arc::new(block), length }
    }

    /// A JSON text of `length` bytes.
    pub fn json(length: usize) -> Content {
        let letters = || char::from(fastrand::alphanumeric() as u8);
        let text: String = (0..length.saturating_sub(11)).map(|_| letters()).collect();
        Content::of(Arc::new(format!("{{\"text\":\"{text}\"}}").into_bytes()))
    }

    /// The next piece from `at` on.
    fn piece(&self, at: u64) -> &[u8] {
        let start = (at % self.block.len().max(1) as u64) as usize;
        let left = usize::try_from(self.length - at).unwrap_or(usize::MAX);
        &self.block[start..self.block.len().min(start + left.min(IO_BYTES))]
    }

    /// Whether `bytes` are those from `at` on.
    fn has(&self, mut at: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if at >= self.length {
                return false;
            }
            let piece = self.piece(at);
            let count = piece.len().min(bytes.len());
            if piece[..count] != bytes[..count] {
                return false;
            }
            (at, bytes) = (at + count as u64, &bytes[count..]);
        }
        true
    }
}

/// Plays `clients` of the target at `address`, and the backend behind `listener`.
pub fn run(
    address: SocketAddr,
    listener: &TcpListener,
    exchange: &Exchange,
    clients: usize,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let mut play = Play::new(address, listener, exchange)?;
    for _ in 0..clients {
        play.open()?;
    }
    play.exchange_for(limits.seconds * WARM_UP_SHARE, limits, &mut ())?;
    play.outcome = Outcome::default();
    observe.begin()?;
    let start = Instant::now();
    play.exchange_for(limits.seconds, limits, observe)?;
    play.outcome.seconds = start.elapsed().as_secs_f64();
    observe.end()?;
    play.outcome.stream_rate = play.outcome.bytes as f64 / play.outcome.seconds;
    Ok(play.outcome)
}

struct Play<'a> {
    poll: Poll,
    listener: &'a TcpListener,
    address: SocketAddr,
    exchange: &'a Exchange,
    request_head: Vec<u8>,
    response_head: Vec<u8>,
    conns: Vec<Option<Conn>>,
    /// Clients that wait for their next request to begin.
    idle: Vec<usize>,
    buffer: Vec<u8>,
    outcome: Outcome,
}

struct Conn {
    socket: OwnedFd,
    end: End,
    /// Bytes that were sent of the message that is being sent; `None`: none is.
    sent: Option<u64>,
    /// A head that has arrived in part.
    held: Vec<u8>,
    /// Bytes of content that have arrived; `None` before a head.
    received: Option<u64>,
    wants_write: bool,
    began_at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Client,
    Backend,
}

impl<'a> Play<'a> {
    fn new(
        address: SocketAddr,
        listener: &'a TcpListener,
        exchange: &'a Exchange,
    ) -> Result<Play<'a>, Fault> {
        // Connections of the target before this one.
        while net::accept(listener).map_err(|error| error.to_string())?.is_some() {}
        let poll = Poll::new(256).map_err(|error| error.to_string())?;
        poll.add(listener, LISTENER, EventFlags::IN).map_err(|error| error.to_string())?;
        let length = |content: &Content| {
            format!(
                "Content-Type: {}\r\nContent-Length: {}\r\n",
                exchange.media_type, content.length
            )
        };
        let (method, upload) = match &exchange.upload {
            Some(content) => ("POST", length(content)),
            None => ("GET", String::new()),
        };
        let request_head = format!(
            "{method} {} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) bench\r\n\
             Accept: */*\r\nAccept-Language: en\r\n{upload}\r\n",
            exchange.path
        );
        let response_head = format!("HTTP/1.1 200 OK\r\n{}\r\n", length(&exchange.download));
        Ok(Play {
            poll,
            listener,
            address,
            exchange,
            request_head: request_head.into_bytes(),
            response_head: response_head.into_bytes(),
            conns: Vec::new(),
            idle: Vec::new(),
            buffer: vec![0; IO_BYTES],
            outcome: Outcome::default(),
        })
    }

    fn open(&mut self) -> Result<(), Fault> {
        let socket = net::dial(self.address)
            .map_err(|error| format!("cannot connect to the target: {error}"))?;
        let id = self.admit(socket, End::Client)?;
        self.idle.push(id);
        Ok(())
    }

    fn admit(&mut self, socket: OwnedFd, end: End) -> Result<usize, Fault> {
        let free = self.conns.iter().position(Option::is_none);
        let id = free.unwrap_or_else(|| {
            self.conns.push(None);
            self.conns.len() - 1
        });
        self.poll
            .add(&socket, id as u64, EventFlags::IN)
            .map_err(|error| format!("cannot poll: {error}"))?;
        self.conns[id] = Some(Conn {
            socket,
            end,
            sent: None,
            held: Vec::new(),
            received: None,
            wants_write: false,
            began_at: Instant::now(),
        });
        Ok(id)
    }

    /// Sends requests for so long, then waits for the last responses.
    fn exchange_for(
        &mut self,
        seconds: f64,
        limits: Limits,
        observe: &mut dyn Observe,
    ) -> Result<(), Fault> {
        let start = Instant::now();
        let clients = self.idle.len();
        let mut is_midway = false;
        loop {
            crate::interrupt::check()?;
            let elapsed = start.elapsed().as_secs_f64();
            let is_over = elapsed >= seconds || self.outcome.count >= limits.count;
            if !is_midway && elapsed >= seconds / 2.0 {
                is_midway = true;
                observe.midway()?;
            }
            while !is_over && let Some(id) = self.idle.pop() {
                self.begin(id)?;
            }
            if is_over && self.idle.len() == clients {
                return Ok(());
            }
            if elapsed > seconds + limits.patience.as_secs_f64() {
                return Err(format!(
                    "timed out: {} of {clients} clients have no response",
                    clients - self.idle.len()
                ));
            }
            self.turn(Duration::from_millis(20))?;
        }
    }

    fn begin(&mut self, id: usize) -> Result<(), Fault> {
        let conn = self.conn(id)?;
        (conn.sent, conn.began_at) = (Some(0), Instant::now());
        self.send(id)
    }

    fn turn(&mut self, timeout: Duration) -> Result<(), Fault> {
        let count =
            self.poll.wait(Some(timeout)).map_err(|error| format!("cannot poll: {error}"))?;
        let mut ended = Vec::new();
        for index in 0..count {
            let (token, flags) = self.poll.event(index);
            if token == LISTENER {
                while let Some(socket) =
                    net::accept(self.listener).map_err(|error| format!("cannot accept: {error}"))?
                {
                    self.admit(socket, End::Backend)?;
                }
                continue;
            }
            let id = token as usize;
            if flags.contains(EventFlags::OUT) {
                self.send(id)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
                && !self.receive(id)?
            {
                ended.push(id);
            }
        }
        // Last, so that a late event of this turn reaches no new connection.
        for id in ended {
            self.conns[id] = None;
        }
        Ok(())
    }

    fn conn(&mut self, id: usize) -> Result<&mut Conn, Fault> {
        self.conns[id].as_mut().ok_or_else(|| "no such connection".into())
    }

    /// Sends what there is room for of the message that is being sent.
    fn send(&mut self, id: usize) -> Result<(), Fault> {
        let conn = self.conns[id].as_mut().ok_or("no such connection")?;
        let none = Content::default();
        let (head, content) = match conn.end {
            End::Client => (&self.request_head, self.exchange.upload.as_ref().unwrap_or(&none)),
            End::Backend => (&self.response_head, &self.exchange.download),
        };
        let (head_bytes, total) = (head.len() as u64, head.len() as u64 + content.length);
        while let Some(sent) = conn.sent {
            let whole;
            let bytes = match sent.checked_sub(head_bytes) {
                // A short message leaves in one piece, as most programs send it.
                None if total <= 16 * 1024 => {
                    whole = [head, content.piece(0)].concat();
                    &whole[sent as usize..]
                }
                None => &head[sent as usize..],
                Some(at) => content.piece(at),
            };
            match net::send(&conn.socket, bytes) {
                Ok(Io::Moved(count)) => {
                    let sent = sent + count as u64;
                    conn.sent = (sent < total).then_some(sent);
                    if count < bytes.len() {
                        break;
                    }
                }
                Ok(_) => break,
                Err(error) => return Err(format!("the target broke a connection ({error})")),
            }
        }
        let wanted = conn.sent.is_some();
        if conn.wants_write != wanted {
            conn.wants_write = wanted;
            let flags = if wanted { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let changed = self.poll.modify(&conn.socket, id as u64, flags);
            changed.map_err(|error| format!("cannot poll: {error}"))?;
        }
        Ok(())
    }

    /// Reads once. False: the connection has ended, as connections of a backend may.
    fn receive(&mut self, id: usize) -> Result<bool, Fault> {
        let conn = self.conns[id].as_mut().ok_or("no such connection")?;
        let count = match net::recv(&conn.socket, &mut self.buffer) {
            Ok(Io::Moved(count)) => count,
            Ok(Io::Blocked) => return Ok(true),
            Ok(Io::Ended) | Err(_) if conn.end == End::Backend && conn.received.is_none() => {
                return Ok(false);
            }
            Ok(Io::Ended) => return Err("the target ended a connection".into()),
            Err(error) => return Err(format!("the target broke a connection ({error})")),
        };
        let mut bytes = &self.buffer[..count];
        if conn.received.is_none() {
            conn.held.extend_from_slice(bytes);
            let Some(size) = read_head(conn.end, &conn.held, self.exchange)? else {
                return Ok(true);
            };
            let behind = conn.held.len() - size;
            bytes = &bytes[bytes.len() - behind..];
            conn.held.clear();
            conn.received = Some(0);
        }
        let expected = match conn.end {
            End::Client => Some(&self.exchange.download),
            End::Backend => self.exchange.upload.as_ref(),
        };
        let at = conn.received.unwrap_or_default();
        if expected.map_or(!bytes.is_empty(), |content| !content.has(at, bytes)) {
            return Err(format!("content was changed, somewhere after {at} bytes"));
        }
        let now_at = at + bytes.len() as u64;
        conn.received = Some(now_at);
        if now_at < expected.map_or(0, |content| content.length) {
            return Ok(true);
        }
        conn.received = None;
        match conn.end {
            End::Backend => {
                conn.sent = Some(0);
                self.send(id)?;
            }
            End::Client => {
                if conn.sent.is_some() {
                    return Err("a response came before all of the request was sent".into());
                }
                self.outcome.latencies.push(conn.began_at.elapsed().as_nanos());
                self.outcome.count += 1;
                let upload = self.exchange.upload.as_ref().map_or(0, |content| content.length);
                self.outcome.bytes += upload + self.exchange.download.length;
                self.idle.push(id);
            }
        }
        Ok(true)
    }
}

/// Checks the head at the beginning of `bytes`; gives its size, once it is there.
fn read_head(end: End, bytes: &[u8], exchange: &Exchange) -> Result<Option<usize>, Fault> {
    let text = |size| String::from_utf8_lossy(&bytes[..size]).into_owned();
    match end {
        End::Client => {
            let Some(answer) = wire::parse_answer(bytes)? else { return Ok(None) };
            if answer.status != 200 || answer.content_length != Some(exchange.download.length) {
                return Err(format!("the client was answered {}", text(answer.size)));
            }
            Ok(Some(answer.size))
        }
        End::Backend => {
            let Some(request) = wire::parse_plain_request(bytes)? else { return Ok(None) };
            let upload = exchange.upload.as_ref();
            let is_same = request.target == exchange.path
                && request.method == if upload.is_some() { "POST" } else { "GET" }
                && request.content_length.unwrap_or(0)
                    == upload.map_or(0, |content| content.length);
            if !is_same {
                return Err(format!("the backend was asked {}", text(request.size)));
            }
            Ok(Some(request.size))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::pipe;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn exchange(upload: Option<u64>, download: u64) -> Exchange {
        Exchange {
            path: "/api/x".into(),
            upload: upload.map(Content::random),
            download: Content::random(download),
            media_type: "application/octet-stream",
        }
    }

    /// Through a byte pipe, which ends with the test process.
    fn through_a_pipe(exchange: &Exchange, limits: Limits) -> Result<Outcome, Fault> {
        let backend = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let settings = pipe::Settings {
            listen: address,
            backend: net::Endpoint::Tcp(backend.local_addr().unwrap()),
            splice: false,
            buffer: 64 * 1024,
        };
        std::thread::spawn(move || pipe::serve(settings, &listener));
        run(address, &backend, exchange, 3, limits, &mut ())
    }

    #[test]
    fn exchanges_of_any_size_are_counted() {
        for (upload, download) in
            [(None, 1), (Some(0), 0), (Some(1024), 1024), (Some(5 << 20), 3), (None, 5 << 20)]
        {
            let limits = Limits { seconds: 10.0, ..Limits::count(10) };
            let outcome = through_a_pipe(&exchange(upload, download), limits).unwrap();
            assert!(outcome.count >= 10, "{upload:?} {download}");
            let bytes = outcome.count * (upload.unwrap_or(0) + download);
            assert_eq!(outcome.bytes, bytes);
        }
    }

    #[test]
    fn a_changed_byte_is_a_fault() {
        let exchange = exchange(None, 100_000);
        let Content { block, .. } = exchange.download.clone();
        for place in [0, 1, 70_000, 99_999] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut content = block[..100_000].to_vec();
            content[place] ^= 1;
            std::thread::spawn(move || {
                let (mut client, _): (TcpStream, _) = listener.accept().unwrap();
                let _ = client.read(&mut [0; 4096]).unwrap();
                client
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    .and_then(|()| client.write_all(&content))
                    .unwrap();
                let _ = client.read(&mut [0; 1]);
            });
            let unused = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
            let fault = run(address, &unused, &exchange, 1, Limits::count(1), &mut ()).unwrap_err();
            assert!(fault.contains("content was changed"), "{place}: {fault}");
        }
    }

    #[test]
    fn json_has_its_length() {
        let content = Content::json(1024);
        assert_eq!(content.length, 1024);
        serde_json::from_slice::<serde_json::Value>(&content.block).unwrap();
    }
}
