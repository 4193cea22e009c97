//! HTTP/1 heads in, replies out (RFC 9110, RFC 9112). `httparse` reads the grammar; what must be refused around it is here.
//!
//! The surprising thing: what a head deserves does not depend on how its bytes were cut. `httparse` alone would take bare
//! LFs, and a limit that is checked after parsing would answer differently for a head that trickles and one that comes
//! whole. So the lines are walked first, at most [`HEAD_BYTES_MAX`] of them are looked at, and the first fault in the order
//! of the bytes decides.
//!
//! Refused, because two programs in a row that read such a head differently can be played off against each other (RFC 9112
//! §11.2): bare CR and bare LF, a space before the colon, folded lines, NUL and other control bytes, repeated or malformed
//! `Content-Length`, `Transfer-Encoding` where no body belongs, several `Host` or none, several `Sec-WebSocket-Key`.

mod outgoing;
mod request;
mod response;

pub use outgoing::{Content, Form, JSON, Response, Shared, Wire, reason_phrase};
pub use request::RequestHead;
pub use response::{Body, ResponseHead};

use std::fmt;

use httparse::{EMPTY_HEADER, Header};
use memchr::memchr_iter;

/// The longest head, from its first byte to the empty line and including it.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The most header lines in a head.
pub const HEADERS_MAX: usize = 100;

/// The longest request target.
pub const TARGET_BYTES_MAX: usize = 8 * 1024;

/// Room for the headers of one head, on the caller's stack (3,200 bytes); see [`empty_slots`].
pub type Slots<'b> = [Header<'b>; HEADERS_MAX];

/// Room for one head's headers, as the parsers want it.
pub const fn empty_slots<'b>() -> Slots<'b> {
    [EMPTY_HEADER; HEADERS_MAX]
}

/// A head that is refused, with the status to answer (for a backend's head: 502) and a phrase that says why.
///
/// After one that a parser returned, nothing is known about where the next head would begin: answer and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHead {
    pub status: u16,
    pub why: &'static str,
}

impl BadHead {
    /// The answer: an error as JSON, with the headers that its status demands. 405 says what is allowed (RFC 9110
    /// §15.5.6), 426 what to upgrade to and which version of it (RFC 9110 §15.5.22, RFC 6455 §4.4).
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

/// The header lines of one head, in their order and spelling. Names are compared without regard to case.
#[derive(Clone, Copy)]
pub struct Headers<'h, 'b>(&'h [Header<'b>]);

impl<'h, 'b> Headers<'h, 'b> {
    /// The value of the first line called `name`, without the white space around it.
    pub fn first(&self, name: &str) -> Option<&'b [u8]> {
        self.all(name).next()
    }

    /// Like [`first`](Self::first), where the value is UTF-8.
    pub fn text(&self, name: &str) -> Option<&'b str> {
        std::str::from_utf8(self.first(name)?).ok()
    }

    /// The values of all lines called `name`.
    pub fn all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        self.iter()
            .filter(move |(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The elements of a comma-separated list that may be spread over several lines (RFC 9110 §5.6.1); empty ones are
    /// left out. Quoted strings are not known here: the lists that this is for have none.
    pub fn elements<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        self.all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|element| !element.is_empty())
    }

    /// Whether `token` is an element of the list `name`, in any case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.elements(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Every line as name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'h, 'b> {
        self.0.iter().map(|header| (header.name, header.value))
    }

    /// The value of the one line called `name`; the phrase if there are several.
    fn only(&self, name: &str, several: &'static str) -> Result<Option<&'b [u8]>, &'static str> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(several) } else { Ok(first) }
    }

    /// What `Content-Length` says. Several are refused even when they agree: no client sends that by itself.
    fn content_length(&self) -> Result<Option<u64>, &'static str> {
        let Some(value) = self.only("content-length", "several Content-Length headers")? else {
            return Ok(None);
        };
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err("Content-Length is not a number");
        }
        // All digits, so the only thing that can be wrong is that it is too long.
        let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
        length.ok_or("Content-Length is too large").map(Some)
    }
}

impl fmt::Debug for Headers<'_, '_> {
    /// Names only: values hold cookies and tokens, which no log may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|header| header.name)).finish()
    }
}

/// Appends one header line. Control bytes in `value` become spaces (a tab stays).
pub(super) fn push_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    push_value(out, value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a part of a header's value under the rule of [`push_header`].
pub(super) fn push_value(out: &mut Vec<u8>, value: &[u8]) {
    out.extend(
        value
            .iter()
            .map(|&byte| if byte.is_ascii_control() && byte != b'\t' { b' ' } else { byte }),
    );
}

/// Appends a number, an address, ….
pub(super) fn push_display(out: &mut Vec<u8>, value: impl fmt::Display) {
    use std::io::Write;
    write!(out, "{value}").expect("a Vec takes every byte");
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
struct Lines<'b> {
    /// What stands before the first fault, or up to the end of the head.
    sound: &'b [u8],
    fault: Option<LineFault>,
    /// Whether not even the first line is complete.
    first_is_open: bool,
}

enum LineFault {
    BareLf,
    TooMany,
}

impl<'b> Lines<'b> {
    fn walk(bytes: &'b [u8]) -> Lines<'b> {
        let (mut line_start, mut lines) = (0, 0);
        for lf in memchr_iter(b'\n', bytes) {
            let first_is_open = lines == 0;
            if lf == line_start || bytes[lf - 1] != b'\r' {
                return Lines {
                    sound: &bytes[..lf],
                    fault: Some(LineFault::BareLf),
                    first_is_open,
                };
            }
            if lf == line_start + 1 {
                return Lines { sound: &bytes[..=lf], fault: None, first_is_open };
            }
            lines += 1;
            if lines > 1 + HEADERS_MAX {
                return Lines {
                    sound: &bytes[..line_start],
                    fault: Some(LineFault::TooMany),
                    first_is_open,
                };
            }
            line_start = lf + 1;
        }
        Lines { sound: bytes, fault: None, first_is_open: lines == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::request::tests::{REQUESTS, read};
    use super::response::tests::{RESPONSES, read_response};

    /// Bytes that look like heads often enough to get far, from `seed`.
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
    fn no_bytes_make_a_parser_panic_or_change_its_mind() {
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
