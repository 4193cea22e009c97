//! Plain HTTP as clients and backends of a world speak it: requests and responses that are drawn,
//! and readers that find out what has come.

/// A request of a client.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its place in the world; the path has it.
    pub number: usize,
    pub method: &'static str,
    pub version: u8,
    pub body: Vec<u8>,
    pub bytes: Vec<u8>,
}

/// A response of a backend.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
    pub bytes: Vec<u8>,
    /// Only the end of the connection ends it.
    pub ends_with_connection: bool,
}

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framed {
    Not,
    Length,
    Chunked,
    UntilEnd,
}

/// A message as far as it has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    pub head: String,
    pub content: Vec<u8>,
    /// Bytes up to its end; `None`: it is not complete.
    pub length: Option<usize>,
    /// Only the end of the connection ends it.
    pub ends_with_connection: bool,
}

impl Request {
    pub fn draw(
        number: usize,
        version: u8,
        body_max: usize,
        chance: &mut fastrand::Rng,
    ) -> Request {
        let method = ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"][chance.usize(..7)];
        let framed = match method {
            "GET" | "HEAD" | "DELETE" => {
                [Framed::Not, Framed::Not, Framed::Length][chance.usize(..3)]
            }
            _ if version == 0 => Framed::Length,
            _ => [Framed::Not, Framed::Length, Framed::Chunked][chance.usize(..3)],
        };
        let body = if framed == Framed::Not { Vec::new() } else { draw_body(body_max, chance) };
        let mut head = format!("{method} /api/{number}?q={number} HTTP/1.{version}\r\nHost: a\r\n");
        if version == 0 && chance.bool() {
            head += "Connection: keep-alive\r\n";
        }
        if framed == Framed::Length && version > 0 && chance.u8(..8) == 0 {
            head += "Expect: 100-continue\r\n";
        }
        let (head, body_bytes) = framed_as(head, &body, framed, chance);
        let bytes = [head.as_bytes(), &body_bytes].concat();
        Request { number, method, version, body, bytes }
    }

    /// It may be sent to several backends.
    pub fn may_repeat(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "PUT" | "DELETE") && self.body.is_empty()
    }

    pub fn keeps_alive(&self) -> bool {
        self.version > 0 || self.bytes.windows(10).any(|text| text == b"keep-alive")
    }
}

impl Response {
    pub fn draw(request: &Request, body_max: usize, chance: &mut fastrand::Rng) -> Response {
        let status = [200, 200, 201, 204, 304, 404, 503][chance.usize(..7)];
        let version = chance.u8(..4).min(1);
        let framed = match version {
            0 => [Framed::Length, Framed::UntilEnd][chance.usize(..2)],
            _ => [Framed::Length, Framed::Chunked, Framed::UntilEnd][chance.usize(..3)],
        };
        let has_body = request.method != "HEAD" && !matches!(status, 204 | 304);
        let body = draw_body(body_max, chance);
        let interim = match chance.u8(..4) {
            0 => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            1 => "HTTP/1.1 100 Continue\r\n\r\n",
            _ => "",
        };
        let head = format!("{interim}HTTP/1.{version} {status} Sim\r\nServer: sim\r\n");
        let (mut bytes, framed_body) = framed_as(head, &body, framed, chance);
        let body = if has_body { body } else { Vec::new() };
        if has_body {
            let bytes = [bytes.as_bytes(), &framed_body].concat();
            let ends_with_connection = framed == Framed::UntilEnd;
            return Response { status, body, bytes, ends_with_connection };
        }
        if status == 204 {
            bytes = format!("{interim}HTTP/1.1 204 Sim\r\nServer: sim\r\n\r\n");
        }
        Response { status, body, bytes: bytes.into_bytes(), ends_with_connection: false }
    }
}

fn draw_body(most: usize, chance: &mut fastrand::Rng) -> Vec<u8> {
    let length = match chance.u8(..4) {
        0 => 0,
        1 => chance.usize(..=most.min(20)),
        _ => chance.usize(..=most),
    };
    let mut body = vec![0; length];
    chance.fill(&mut body);
    body
}

/// The head with its end, and the body in its framing.
fn framed_as(
    mut head: String,
    body: &[u8],
    framed: Framed,
    chance: &mut fastrand::Rng,
) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    match framed {
        Framed::Not => {}
        Framed::UntilEnd => bytes.extend(body),
        Framed::Length => {
            head += &format!("Content-Length: {}\r\n", body.len());
            bytes.extend(body);
        }
        Framed::Chunked => {
            head += "Transfer-Encoding: chunked\r\n";
            let mut rest = body;
            while !rest.is_empty() {
                let (chunk, behind) = rest.split_at(chance.usize(1..=rest.len()));
                let zeros = "0".repeat(chance.usize(..4));
                bytes.extend(format!("{zeros}{:X}\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
                rest = behind;
            }
            bytes.extend(if chance.bool() { &b"0\r\n\r\n"[..] } else { b"0\r\nX: y\r\n\r\n" });
        }
    }
    (head + "\r\n", bytes)
}

/// Reads what the gateway has sent, which is well formed; interim responses are skipped. `None`:
/// not even the head is complete.
///
/// # Errors
/// What is malformed.
pub fn read(bytes: &[u8], has_body: bool) -> Result<Option<Received>, String> {
    let mut start = 0;
    let (head, mut at) = loop {
        let Some(length) = super::peers::head_length(&bytes[start..]) else { return Ok(None) };
        let head = String::from_utf8(bytes[start..start + length].to_vec())
            .map_err(|error| format!("a head that is no text: {error}"))?;
        start += length;
        if !head.starts_with("HTTP/1.1 1") {
            break (head, start);
        }
    };
    let mut received = Received { head, ..Received::default() };
    let line = |name: &str| {
        let lines: Vec<_> =
            received.head.lines().filter_map(|line| line.strip_prefix(name)).collect();
        if lines.len() > 1 {
            Err(format!("{name} twice: {:?}", received.head))
        } else {
            Ok(lines.first().copied())
        }
    };
    let (length, coding) = (line("Content-Length: ")?, line("Transfer-Encoding: ")?);
    let is_response = received.head.starts_with("HTTP/");
    let status = received.head.get(9..12).filter(|_| is_response).unwrap_or_default();
    if !has_body || matches!(status, "204" | "304") {
        received.length = Some(at);
        return Ok(Some(received));
    }
    match (length, coding) {
        (Some(_), Some(_)) => return Err("a length and a coding".into()),
        (Some(length), None) => {
            let length: usize = length.parse().map_err(|_| format!("a length {length:?}"))?;
            let end = bytes.len().min(at + length);
            received.content = bytes[at..end].to_vec();
            received.length = (bytes.len() >= at + length).then_some(at + length);
        }
        (None, Some("chunked")) => loop {
            let rest = &bytes[at..];
            let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else { break };
            let digits = String::from_utf8_lossy(&rest[..line]).into_owned();
            let size = usize::from_str_radix(&digits, 16)
                .map_err(|_| format!("a chunk size {digits:?}"))?;
            let (from, to) = (line + 2, line + 2 + size);
            received.content.extend(&rest[from.min(rest.len())..to.min(rest.len())]);
            let Some(end) = rest.get(to..to + 2) else { break };
            if end != b"\r\n" {
                return Err(format!("a chunk that ends with {end:?}"));
            }
            at += to + 2;
            if size == 0 {
                received.length = Some(at);
                break;
            }
        },
        (None, Some(coding)) => return Err(format!("a coding {coding:?}")),
        (None, None) if is_response => {
            received.content = bytes[at..].to_vec();
            received.ends_with_connection = true;
        }
        (None, None) => received.length = Some(at),
    }
    Ok(Some(received))
}
