//! The bytes of both protocols, as the load generator speaks them: RFC 6455 frames and the HTTP/1.1
//! upgrade.
//!
//! Deliberately independent of the gateway's own framing: a shared mistake would go unnoticed.

use crate::Fault;
use data_encoding::BASE64;
use sha1::{Digest, Sha1};

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// A request or answer head larger than this many bytes is a fault of the target.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// RFC 6455 section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A frame head (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// FIN, RSV bits and opcode as they are on the wire.
    pub first: u8,
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload.
    pub payload: u64,
    /// Bytes of the head itself: 2 to 14.
    pub size: usize,
}

/// Reads a frame head at the start of `bytes`; `None` while it is incomplete.
pub fn parse_frame_head(bytes: &[u8]) -> Option<FrameHead> {
    let (&first, rest) = bytes.split_first()?;
    let (&second, rest) = rest.split_first()?;
    let (payload, extended) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), 2),
        127 => (u64::from_be_bytes(rest.get(..8)?.try_into().ok()?), 8),
        short => (u64::from(short), 0),
    };
    let (mask, masked) = match second & 0x80 {
        0 => (None, 0),
        _ => (Some(rest.get(extended..extended + 4)?.try_into().ok()?), 4),
    };
    Some(FrameHead { first, mask, payload, size: 2 + extended + masked })
}

/// Appends a frame head; `first` carries FIN and opcode, `mask` is the client's key.
pub fn push_frame_head(out: &mut Vec<u8>, first: u8, payload: usize, mask: Option<[u8; 4]>) {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    out.push(first);
    match payload {
        0..=125 => out.push(bit | payload as u8),
        126..=0xffff => {
            out.push(bit | 126);
            out.extend_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            out.push(bit | 127);
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
}

/// Appends a whole frame, masked when there is a key.
pub fn push_frame(out: &mut Vec<u8>, first: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    push_frame_head(out, first, payload.len(), mask);
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = mask {
        apply_mask(&mut out[start..], key);
    }
}

/// XORs `payload` with the key, from its first byte; applying it twice restores the payload.
pub fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// A fresh `Sec-WebSocket-Key`: 16 random bytes in base64.
pub fn fresh_key() -> String {
    BASE64.encode(&fastrand::u128(..).to_ne_bytes())
}

/// The `Sec-WebSocket-Accept` that answers a key.
pub fn accept_for(key: &str) -> String {
    BASE64.encode(&Sha1::new().chain_update(key.as_bytes()).chain_update(ACCEPT_SUFFIX).finalize())
}

/// What a browser sends to open a WebSocket, with the headers one usually has.
pub fn upgrade_request(target: &str, host: &str, key: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) bench\r\nUpgrade: websocket\r\nOrigin: http://{host}\r\n\
         Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n"
    )
    .into_bytes()
}

/// What a backend answers.
pub fn upgrade_answer(key: &str) -> Vec<u8> {
    let accept = accept_for(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

/// A request head that asks for a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The request target: path and query.
    pub target: String,
    pub key: String,
    /// Bytes of the head.
    pub size: usize,
}

/// Reads an upgrade request; `Ok(None)` while it is incomplete.
pub fn parse_request(bytes: &[u8]) -> Result<Option<Request>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let size = match head
        .parse(bytes)
        .map_err(|error| format!("the backend was sent a broken head: {error}"))?
    {
        httparse::Status::Complete(size) => size,
        httparse::Status::Partial => return within_limit(bytes),
    };
    let upgrade = header(head.headers, "upgrade").unwrap_or_default();
    let key = header(head.headers, "sec-websocket-key").unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("websocket") || key.is_empty() {
        return Err(format!(
            "the backend was sent no upgrade: {}",
            String::from_utf8_lossy(&bytes[..size])
        ));
    }
    Ok(Some(Request {
        target: head.path.unwrap_or_default().to_owned(),
        key: key.to_owned(),
        size,
    }))
}

/// The head of a request in plain HTTP.
#[derive(Debug, PartialEq, Eq)]
pub struct PlainRequest {
    pub method: String,
    /// The request target: path and query.
    pub target: String,
    pub content_length: Option<u64>,
    /// Bytes of the head.
    pub size: usize,
}

/// Reads the head of a request; `Ok(None)` while it is incomplete.
pub fn parse_plain_request(bytes: &[u8]) -> Result<Option<PlainRequest>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let size = match head
        .parse(bytes)
        .map_err(|error| format!("the backend was sent a broken head: {error}"))?
    {
        httparse::Status::Complete(size) => size,
        httparse::Status::Partial => return within_limit(bytes),
    };
    Ok(Some(PlainRequest {
        method: head.method.unwrap_or_default().to_owned(),
        target: head.path.unwrap_or_default().to_owned(),
        content_length: header(head.headers, "content-length").and_then(|value| value.parse().ok()),
        size,
    }))
}

/// An answer head.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// `Sec-WebSocket-Accept`, empty where there is none.
    pub accept: String,
    pub content_length: Option<u64>,
    /// Bytes of the head.
    pub size: usize,
}

/// Reads an answer head; `Ok(None)` while it is incomplete.
pub fn parse_answer(bytes: &[u8]) -> Result<Option<Answer>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let size = match head
        .parse(bytes)
        .map_err(|error| format!("the client was sent a broken head: {error}"))?
    {
        httparse::Status::Complete(size) => size,
        httparse::Status::Partial => return within_limit(bytes),
    };
    Ok(Some(Answer {
        status: head.code.unwrap_or_default(),
        accept: header(head.headers, "sec-websocket-accept").unwrap_or_default().to_owned(),
        content_length: header(head.headers, "content-length").and_then(|value| value.parse().ok()),
        size,
    }))
}

fn within_limit<T>(bytes: &[u8]) -> Result<Option<T>, Fault> {
    if bytes.len() >= HEAD_BYTES_MAX {
        Err(format!("a head of over {HEAD_BYTES_MAX} bytes"))
    } else {
        Ok(None)
    }
}

fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(found.value).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_heads_survive_the_trip_at_every_length_class_and_every_cut() {
        for payload in [0usize, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut wire = Vec::new();
                push_frame_head(&mut wire, BINARY, payload, mask);
                for cut in 0..wire.len() {
                    assert_eq!(
                        parse_frame_head(&wire[..cut]),
                        None,
                        "payload {payload}, cut at {cut}"
                    );
                }
                let expected =
                    FrameHead { first: BINARY, mask, payload: payload as u64, size: wire.len() };
                assert_eq!(parse_frame_head(&wire), Some(expected));
                wire.push(0xff);
                assert_eq!(parse_frame_head(&wire), Some(expected));
            }
        }
    }

    #[test]
    fn frame_heads_are_those_of_the_rfc() {
        let mut wire = Vec::new();
        push_frame(&mut wire, TEXT, b"Hello", None);
        assert_eq!(wire, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        wire.clear();
        push_frame(&mut wire, TEXT, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]));
        assert_eq!(wire, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        wire.clear();
        push_frame_head(&mut wire, BINARY, 65_536, None);
        assert_eq!(wire, [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn masking_is_its_own_inverse_and_per_byte() {
        let key = [0xa5, 0x01, 0xfe, 0x7c];
        for length in 0..40usize {
            let plain: Vec<u8> = (0..length as u8).collect();
            let slow: Vec<u8> =
                plain.iter().enumerate().map(|(at, byte)| byte ^ key[at % 4]).collect();
            let mut fast = plain.clone();
            apply_mask(&mut fast, key);
            assert_eq!(fast, slow);
            apply_mask(&mut fast, key);
            assert_eq!(fast, plain);
        }
    }

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(accept_for("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn both_heads_parse_whole_and_wait_at_every_cut() {
        let key = fresh_key();
        let request = upgrade_request("/ws/input?n=7", "127.0.0.1:1", &key);
        let answer = upgrade_answer(&key);
        for cut in 0..request.len() {
            assert_eq!(parse_request(&request[..cut]), Ok(None));
        }
        for cut in 0..answer.len() {
            assert_eq!(parse_answer(&answer[..cut]), Ok(None));
        }
        let parsed = parse_request(&request).unwrap().unwrap();
        assert_eq!(
            parsed,
            Request { target: "/ws/input?n=7".into(), key: key.clone(), size: request.len() }
        );
        let parsed = parse_answer(&answer).unwrap().unwrap();
        assert_eq!(
            (parsed.status, parsed.accept, parsed.size),
            (101, accept_for(&key), answer.len())
        );
    }

    #[test]
    fn a_plain_request_or_an_endless_head_is_a_fault() {
        assert!(parse_request(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_err());
        let mut endless = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        endless.resize(HEAD_BYTES_MAX, b'a');
        assert!(parse_answer(&endless).is_err());
    }
}
