//! HTTP/1 heads (RFC 9110, RFC 9112): request heads, response heads of backends, and the gateway's
//! own responses.
//!
//! `httparse` reads the grammar; the checks around it are made here. The verdict on a head must not
//! depend on how its bytes were cut into reads. `httparse` alone accepts bare LFs, and a limit that
//! is checked after parsing would judge a head that trickles in differently from one that arrives
//! whole. So the lines are walked before parsing, no further than the limit, and the first
//! fault in byte order decides.
//!
//! Two programs in a row that read one message differently can be attacked through the difference
//! (request smuggling, RFC 9112 §11.2). These are therefore refused: bare CR and bare LF, a space
//! before the colon, folded lines, NUL and other control bytes, repeated or malformed
//! `Content-Length`, `Transfer-Encoding` where no body is allowed, a missing or repeated `Host`,
//! and a repeated `Sec-WebSocket-Key`.

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

pub mod conditional;
pub mod framing;
pub mod negotiation;
mod outgoing;
mod request;
mod response;

pub use outgoing::{Content, Form, JSON, Response, Shared, Wire, reason_phrase};
pub use request::RequestHead;
pub use response::ResponseHead;

use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use httparse::Header;
use memchr::memchr_iter;

/// Largest head in bytes, the empty line at its end included, unless another limit is given.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The largest limit that may be given.
pub const HEAD_BYTES_LIMIT: usize = 64 * 1024;

/// Largest number of header lines in a head.
pub const HEADERS_MAX: usize = 100;

/// The largest chunk and the largest body, in bytes: what fits a signed number too, which other
/// programs may use.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// The interim response that asks for a body (RFC 9110 §15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Memory for the headers of one head, 3,200 bytes on the caller's stack; see [`empty_slots`].
pub type Slots<'b> = [MaybeUninit<Header<'b>>; HEADERS_MAX];

/// Unused memory for one head's headers, for [`RequestHead::parse`] and [`ResponseHead::parse`].
/// Only the slots that a head needs are written.
pub const fn empty_slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; HEADERS_MAX]
}

/// Why a head is refused: the status to answer with (502 for a backend's head) and a phrase.
///
/// After one that a parser returned, the start of the next message is unknown: respond, then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct BadHead {
    pub status: u16,
    pub why: &'static str,
}

impl BadHead {
    /// An error as JSON, with the headers that its status requires: `Allow` with 405 (RFC 9110
    /// §15.5.6), `Upgrade` and `Sec-WebSocket-Version` with 426 (RFC 9110 §15.5.22, RFC 6455 §4.4).
    pub fn into_response(self) -> Response {
        let response = Response::error(self.status, self.why);
        match self.status {
            405 => response.with("Allow", "GET, HEAD"),
            426 => response.with("Upgrade", "websocket").with("Sec-WebSocket-Version", "13"),
            _ => response,
        }
    }
}

impl fmt::Display for BadHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why)
    }
}

impl std::error::Error for BadHead {}

/// The header lines of one head, in order and as they were spelled. Look-ups ignore the case of
/// names.
#[derive(Clone, Copy)]
pub struct Headers<'h, 'b> {
    lines: &'h [Header<'b>],
    /// The lengths of all names. Most names that are looked up are in no line, and few lines have a
    /// name of the same length.
    name_lengths: Lengths,
}

/// A set of lengths; those from 63 bytes on are one.
#[derive(Clone, Copy)]
struct Lengths(u64);

impl Lengths {
    fn of(lines: &[Header<'_>]) -> Lengths {
        Lengths(lines.iter().fold(0, |bits, line| bits | Lengths::bit(line.name)))
    }

    fn has(self, name: &str) -> bool {
        self.0 & Lengths::bit(name) != 0
    }

    fn bit(name: &str) -> u64 {
        1 << name.len().min(63)
    }
}

impl<'h, 'b> Headers<'h, 'b> {
    fn new(lines: &'h [Header<'b>]) -> Headers<'h, 'b> {
        Headers { lines, name_lengths: Lengths::of(lines) }
    }

    /// The value of the first line called `name`, without surrounding white space.
    pub fn first(&self, name: &str) -> Option<&'b [u8]> {
        self.all(name).next()
    }

    /// Like [`first`](Self::first); `None` also where the value is not UTF-8.
    pub fn text(&self, name: &str) -> Option<&'b str> {
        std::str::from_utf8(self.first(name)?).ok()
    }

    /// The values of all lines called `name`.
    pub fn all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        let lines = if self.name_lengths.has(name) { self.lines } else { &[] };
        lines.iter().filter(move |line| is_named(line.name.as_bytes(), name)).map(|line| line.value)
    }

    /// The elements of a comma-separated list, which may span several lines (RFC 9110 §5.6.1).
    /// Empty elements are skipped. Quoted strings are not understood: the lists that are read with
    /// this have none.
    pub fn elements<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        self.all(name).flat_map(elements_of)
    }

    /// Whether `token` is an element of the list `name`; case is ignored.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            // Most lists have one element: looked at whole, it is found sooner.
            !value.is_empty() && is_named(value, token)
                || elements_of(value).any(|element| is_named(element, token))
        })
    }

    /// Bytes of all lines as [`push_header`] writes them.
    pub(super) fn written_bytes(&self) -> usize {
        self.lines.iter().map(|line| line.name.len() + line.value.len() + 4).sum()
    }

    /// Every line as name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'h, 'b> {
        self.lines.iter().map(|line| (line.name, line.value))
    }

    /// The value of the only line called `name`; `several` is the error if there is another one.
    fn only(&self, name: &str, several: &'static str) -> Result<Option<&'b [u8]>, &'static str> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(several) } else { Ok(first) }
    }

    /// The value of `Content-Length`. Repeated ones are refused even when they agree: no client
    /// sends that on its own.
    pub(in crate::proto) fn content_length(&self) -> Result<Option<u64>, &'static str> {
        let Some(value) = self.only("content-length", "several Content-Length headers")? else {
            return Ok(None);
        };
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err("Content-Length is not a number");
        }
        // It is all digits, so parsing can only fail because the number is too large.
        let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
        let length = length.filter(|length| *length <= LENGTH_MAX);
        length.ok_or("Content-Length is too large").map(Some)
    }
}

/// Whether a name or a token in a head is `name`, whatever its case.
///
/// Nearly always `name` is a constant in lower case. Then setting one bit of each byte is enough,
/// which takes a quarter of the time: it makes letters lower, and turns only control bytes, which
/// no head has, into a hyphen or a digit.
#[inline]
pub(super) fn is_named(bytes: &[u8], name: &str) -> bool {
    let name = name.as_bytes();
    let is_lower = || bytes.iter().zip(name).all(|(byte, lower)| byte | 0x20 == *lower);
    bytes.len() == name.len() && (is_lower() || bytes.eq_ignore_ascii_case(name))
}

/// The elements in one line of a list: see [`Headers::elements`].
pub(super) fn elements_of(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

impl fmt::Debug for Headers<'_, '_> {
    /// Names only: values hold cookies and tokens, which must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lines.iter().map(|line| line.name)).finish()
    }
}

/// Appends a header line. Its value is known to have no control bytes other than tab: it comes from
/// a head that was parsed, from the configuration, or from this program.
pub(super) fn push_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    debug_assert!(value.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\t'));
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal. `fmt` would take several times as long.
pub(super) fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [b'0'; 20];
    let mut rest = number;
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] += (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// Appends an address as text.
pub(super) fn push_address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            let [first, others @ ..] = ip.octets();
            push_number(out, first.into());
            for octet in others {
                out.push(b'.');
                push_number(out, octet.into());
            }
        }
        IpAddr::V6(ip) => out.extend_from_slice(ip.to_string().as_bytes()),
    }
}

/// Whether `bytes` is a token (RFC 9110 §5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    let is_token_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_token_byte)
}

const fn bad(why: &'static str) -> BadHead {
    BadHead { status: 400, why }
}

/// The lines of a head, walked once before `httparse` sees them.
struct HeadLines<'b> {
    /// The bytes before the first fault, or up to the end of the head.
    sound: &'b [u8],
    fault: Option<LineFault>,
    /// The first line is not complete yet.
    first_is_open: bool,
}

enum LineFault {
    BareLf,
    TooMany,
}

impl<'b> HeadLines<'b> {
    fn walk(bytes: &'b [u8]) -> HeadLines<'b> {
        let (mut line_start, mut lines) = (0, 0);
        for lf in memchr_iter(b'\n', bytes) {
            let first_is_open = lines == 0;
            if lf == line_start || bytes[lf - 1] != b'\r' {
                return HeadLines {
                    sound: &bytes[..lf],
                    fault: Some(LineFault::BareLf),
                    first_is_open,
                };
            }
            if lf == line_start + 1 {
                return HeadLines { sound: &bytes[..=lf], fault: None, first_is_open };
            }
            lines += 1;
            if lines > 1 + HEADERS_MAX {
                return HeadLines {
                    sound: &bytes[..line_start],
                    fault: Some(LineFault::TooMany),
                    first_is_open,
                };
            }
            line_start = lf + 1;
        }
        HeadLines { sound: bytes, fault: None, first_is_open: lines == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::request::tests::{REQUESTS, read};
    use super::response::tests::{RESPONSES, read_response};
    use super::*;

    /// Offsets at which a head of `length` bytes is cut: all of a short one; of a long one about
    /// 500, and those at its end.
    pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
        (0..length).filter(move |cut| cut % (1 + length / 500) == 0 || length - cut < 8)
    }

    /// Random bytes that often resemble heads, so that they get deep into the parsers.
    fn noise(seed: u64) -> Vec<u8> {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut bytes = Vec::new();
        if chance.bool() {
            let heads = [
                REQUESTS[chance.usize(..REQUESTS.len())],
                RESPONSES[chance.usize(..RESPONSES.len())],
            ];
            bytes.extend_from_slice(heads[chance.usize(..2)].as_bytes());
            for _ in 0..chance.usize(1..5) {
                let at = chance.usize(..bytes.len());
                match chance.u8(..3) {
                    0 => bytes[at] = chance.u8(..),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"\r\n :,\0\xff/?#"[chance.usize(..10)]),
                }
            }
        } else {
            bytes.extend((0..chance.usize(..300)).map(|_| chance.u8(..)));
        }
        bytes
    }

    #[test]
    fn numbers_and_addresses_are_written_as_text() {
        for number in [0, 7, 10, 101, u64::from(u16::MAX), u64::MAX] {
            let mut out = b"=".to_vec();
            push_number(&mut out, number);
            assert_eq!(out, format!("={number}").into_bytes());
        }
        for text in ["0.0.0.0", "192.0.2.7", "255.255.255.255", "::1", "2001:db8::7"] {
            let mut out = Vec::new();
            push_address(&mut out, text.parse().unwrap());
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn headers_are_found_whatever_the_length_of_their_names() {
        let names: Vec<String> = (1..=130).step_by(2).map(|length| "n".repeat(length)).collect();
        let lines: Vec<Header> =
            names.iter().map(|name| Header { name, value: name.as_bytes() }).collect();
        let headers = Headers::new(&lines);
        for length in 1..=130 {
            let name = "N".repeat(length);
            let expected = (length % 2 == 1).then(|| name.to_lowercase());
            assert_eq!(headers.first(&name), expected.as_ref().map(|name| name.as_bytes()));
        }
    }

    #[test]
    fn verdict_on_random_bytes_does_not_depend_on_cuts() {
        for seed in 0..1500 {
            let bytes = noise(seed);
            let (request, response) = (read(&bytes), read_response(&bytes));
            for cut in 0..bytes.len() {
                match read(&bytes[..cut]) {
                    Ok(None) => {}
                    Ok(Some(early)) => {
                        assert_eq!(Ok(Some(early)), request, "seed {seed} cut at {cut}")
                    }
                    Err(early) => {
                        assert_eq!(
                            Some(early.status),
                            request.as_ref().err().map(|fault| fault.status),
                            "seed {seed} cut at {cut}"
                        );
                    }
                }
                match read_response(&bytes[..cut]) {
                    Ok(None) => {}
                    Ok(early) => assert_eq!(Ok(early), response, "seed {seed} cut at {cut}"),
                    Err(_) => assert!(response.is_err(), "seed {seed} cut at {cut}"),
                }
            }
        }
    }
}
