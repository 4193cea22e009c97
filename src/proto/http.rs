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
//! Request bodies are not taken at all: 413.

use std::fmt;

use httparse::{EMPTY_HEADER, Header};
use memchr::{memchr, memchr_iter};

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
    pub fn into_reply(self) -> Reply {
        let reply = Reply::error(self.status, self.why);
        match self.status {
            405 => reply.with("Allow", "GET, HEAD"),
            426 => reply.with("Upgrade", "websocket").with("Sec-WebSocket-Version", "13"),
            _ => reply,
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

/// The head of a request.
#[derive(Clone, Copy)]
pub struct RequestHead<'h, 'b> {
    pub method: &'b str,
    /// The target as it came: `/path?query`, `http://host/path?query`, or `*`. Visible ASCII.
    pub target: &'b str,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor_version: u8,
    pub headers: Headers<'h, 'b>,
    parts: TargetParts<'b>,
}

#[derive(Clone, Copy)]
struct TargetParts<'b> {
    authority: Option<&'b str>,
    path: &'b str,
    query: Option<&'b str>,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// The head at the start of `bytes`, and its length there. `Ok(None)`: not yet; show it again with more behind. Empty
    /// lines (CRLF) before it are skipped and counted in (RFC 9112 §2.2).
    ///
    /// # Errors
    /// 400 for what is malformed or ambiguous, 405 for CONNECT, 413 when it announces a body, 414 when the target is over
    /// [`TARGET_BYTES_MAX`], 431 when the head is over [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`], 505 for other versions of HTTP.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(RequestHead<'h, 'b>, usize)>, BadHead> {
        let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        let skipped = leading_empty_lines(window);
        let lines = Lines::walk(&window[skipped..]);
        let too_long = is_target_too_long(lines.sound);

        let mut request = httparse::Request::new(slots);
        let parsed = request.parse(lines.sound);
        if too_long {
            return Err(BadHead { status: 414, why: "request target is too long" });
        }
        let length = match parsed {
            Err(fault) => return Err(request_fault(fault, lines.sound)),
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                return match lines.fault {
                    Some(LineFault::BareLf) => {
                        Err(BadHead { status: 400, why: "line ends with a bare LF" })
                    }
                    Some(LineFault::TooMany) => {
                        Err(BadHead { status: 431, why: "too many headers" })
                    }
                    None if bytes.len() < HEAD_BYTES_MAX => Ok(None),
                    None if lines.first_is_open => {
                        Err(BadHead { status: 414, why: "request line is too long" })
                    }
                    None => Err(BadHead { status: 431, why: "request head is too large" }),
                };
            }
        };
        let (Some(method), Some(target), Some(minor_version)) =
            (request.method, request.path, request.version)
        else {
            return Err(bad("malformed request line"));
        };
        let headers = Headers(request.headers);
        let parts = split_target(method, target)?;
        check_request_headers(method, minor_version, headers)?;
        Ok(Some((RequestHead { method, target, minor_version, headers, parts }, skipped + length)))
    }

    /// The path: begins with `/`, or is `*` (OPTIONS only). Nothing in it is decoded.
    pub fn path(&self) -> &'b str {
        self.parts.path
    }

    /// What stands behind the first `?`, if there is one.
    pub fn query(&self) -> Option<&'b str> {
        self.parts.query
    }

    /// Whom the request is for: the target's own authority if it has one (RFC 9112 §3.2.2), else `Host`, which may be
    /// empty. `None` only for HTTP/1.0.
    pub fn host(&self) -> Option<&'b str> {
        self.parts.authority.or_else(|| self.headers.text("host"))
    }

    /// Whether the connection may take another request after this one (RFC 9112 §9.3).
    pub fn is_keep_alive(&self) -> bool {
        let close = self.headers.has_token("connection", "close");
        !close && (self.minor_version > 0 || self.headers.has_token("connection", "keep-alive"))
    }

    /// Whether the answer's body is left out: HEAD.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

impl fmt::Debug for RequestHead<'_, '_> {
    /// Without the query and the values of headers, which no log may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = (self.method, self.path(), self.minor_version, &self.headers);
        f.debug_tuple("RequestHead").field(&shown).finish()
    }
}

/// The head of a backend's response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'h, 'b> {
    /// 100 to 999.
    pub status: u16,
    /// May be empty, and is when it was not ASCII.
    pub reason: &'b str,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor_version: u8,
    pub headers: Headers<'h, 'b>,
    body: Body,
}

/// Where the body of a response to a GET ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none; for 101 the other protocol begins.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// After the last chunk and its trailers: [`BodyScanner`](super::body::BodyScanner) finds it.
    Chunked,
    /// Where the connection ends.
    UntilClose,
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// The head at the start of `bytes`, and its length there. `Ok(None)`: not yet; show it again with more behind.
    ///
    /// # Errors
    /// 502 for what is malformed or over [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`]: the answer that the client deserves.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(ResponseHead<'h, 'b>, usize)>, BadHead> {
        let fault = |why| BadHead { status: 502, why };
        let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        if let [b'\r' | b'\n', ..] = window {
            return Err(fault("response begins with an empty line"));
        }
        let lines = Lines::walk(window);
        let mut response = httparse::Response::new(slots);
        let length = match response.parse(lines.sound) {
            Err(httparse::Error::Version) => return Err(fault("response is not HTTP/1")),
            Err(httparse::Error::Status) => return Err(fault("malformed status line in response")),
            Err(httparse::Error::HeaderName) => {
                return Err(fault("malformed header name in response"));
            }
            Err(_) => return Err(fault("malformed header in response")),
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                return match lines.fault {
                    Some(LineFault::BareLf) => Err(fault("line of response ends with a bare LF")),
                    Some(LineFault::TooMany) => Err(fault("too many headers in response")),
                    None if bytes.len() < HEAD_BYTES_MAX => Ok(None),
                    None => Err(fault("response head is too large")),
                };
            }
        };
        let (Some(status), Some(minor_version)) = (response.code, response.version) else {
            return Err(fault("malformed status line in response"));
        };
        if status < 100 {
            return Err(fault("malformed status line in response"));
        }
        let headers = Headers(response.headers);
        let body = response_body(status, headers).map_err(fault)?;
        let reason = response.reason.unwrap_or_default();
        Ok(Some((ResponseHead { status, reason, minor_version, headers, body }, length)))
    }

    /// Whether this only says that the answer is still to come (1xx but 101, RFC 9110 §15.2): another head follows.
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100..=199) && self.status != 101
    }

    /// Length of the body in bytes, where the head says it: 0 for a status that has none.
    pub fn content_length(&self) -> Option<u64> {
        match self.body {
            Body::Empty => Some(0),
            Body::Length(length) => Some(length),
            Body::Chunked | Body::UntilClose => None,
        }
    }

    /// Where the body ends.
    pub fn body(&self) -> Body {
        self.body
    }
}

/// The media type of what programs read.
pub const JSON: &str = "application/json";

/// An answer of our own: a whole body of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    /// What goes out besides `Content-Type`, `Content-Length`, `Connection` and `Cache-Control: no-store`, which
    /// [`write`](Self::write) says itself; a `Cache-Control` here replaces that one.
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// `body` is JSON already.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(status, JSON, body.into())
    }

    /// `{"status":"error","error":why}`.
    pub fn error(status: u16, why: &str) -> Reply {
        Reply::json(status, serde_json::json!({"status": "error", "error": why}).to_string())
    }

    pub fn html(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(status, "text/html; charset=utf-8", body.into())
    }

    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(status, "text/plain; charset=utf-8", body.into())
    }

    fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Reply {
        Reply { status, content_type, headers: Vec::new(), body }
    }

    /// The same with one more header. Control bytes in `value` go out as spaces: no value can end its line.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// Appends the whole answer to `out`. `minor_version` is the request's (1 where no request could be read);
    /// `head_only` leaves the body out but says its length, as HEAD wants (RFC 9110 §9.3.2); `keep_alive` says whether
    /// the connection goes on. There is no `Date`, which only a server with a clock owes (RFC 9110 §6.6.1).
    pub fn write(&self, out: &mut Vec<u8>, minor_version: u8, head_only: bool, keep_alive: bool) {
        let has_content = self.status >= 200 && self.status != 204 && self.status != 304;
        out.reserve(256 + self.body.len());
        // Always our own version, not the client's (RFC 9110 §2.5).
        out.extend_from_slice(b"HTTP/1.1 ");
        push_display(out, self.status);
        out.push(b' ');
        out.extend_from_slice(reason_phrase(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        if has_content {
            push_header(out, "Content-Type", self.content_type.as_bytes());
            out.extend_from_slice(b"Content-Length: ");
            push_display(out, self.body.len());
            out.extend_from_slice(b"\r\n");
        }
        if !self.has("cache-control") {
            push_header(out, "Cache-Control", b"no-store");
        }
        for (name, value) in &self.headers {
            push_header(out, name, value.as_bytes());
        }
        // Who sends Upgrade names it in Connection, too (RFC 9110 §7.8).
        let fate = match (keep_alive, minor_version) {
            (false, _) => Some("close"),
            (true, 0) => Some("keep-alive"),
            (true, _) => None,
        };
        match (self.has("upgrade"), fate) {
            (true, Some(fate)) => {
                push_header(out, "Connection", format!("Upgrade, {fate}").as_bytes())
            }
            (true, None) => push_header(out, "Connection", b"Upgrade"),
            (false, Some(fate)) => push_header(out, "Connection", fate.as_bytes()),
            (false, None) => {}
        }
        out.extend_from_slice(b"\r\n");
        if has_content && !head_only {
            out.extend_from_slice(&self.body);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(found, _)| found.eq_ignore_ascii_case(name))
    }
}

/// The usual phrase for a status (RFC 9110 §15); empty for one that is not in the list, which is allowed on the wire.
pub const fn reason_phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
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

fn leading_empty_lines(bytes: &[u8]) -> usize {
    bytes.chunks_exact(2).take_while(|pair| pair == b"\r\n").count() * 2
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

/// Whether the target goes past its limit, whether or not its end is here. A method that is none is not this fault.
fn is_target_too_long(bytes: &[u8]) -> bool {
    if bytes.len() <= TARGET_BYTES_MAX {
        return false;
    }
    let Some(space) = memchr(b' ', bytes) else { return false };
    let target = &bytes[space + 1..];
    is_token(&bytes[..space])
        && target.len() > TARGET_BYTES_MAX
        && target[..=TARGET_BYTES_MAX]
            .iter()
            .all(|&byte| byte.is_ascii_graphic() || !byte.is_ascii())
}

fn request_fault(fault: httparse::Error, bytes: &[u8]) -> BadHead {
    match fault {
        httparse::Error::Version if is_other_version(bytes) => {
            BadHead { status: 505, why: "only HTTP/1.0 and HTTP/1.1 are spoken here" }
        }
        httparse::Error::HeaderName => {
            bad("malformed header name, or a space before its colon, or a folded line")
        }
        httparse::Error::HeaderValue => bad("bare CR or another control byte in a header"),
        httparse::Error::TooManyHeaders => BadHead { status: 431, why: "too many headers" },
        httparse::Error::NewLine => bad("malformed line end"),
        httparse::Error::Token | httparse::Error::Version | httparse::Error::Status => {
            bad("malformed request line")
        }
    }
}

/// Whether the request line ends in a version of HTTP, whichever. Called where `httparse` has found that it is not 1.0 or
/// 1.1; of a line that is cut, only what led to that is looked at.
fn is_other_version(bytes: &[u8]) -> bool {
    let version = bytes
        .splitn(3, |&byte| byte == b' ')
        .nth(2)
        .and_then(|version| version.strip_prefix(b"HTTP/"));
    match version {
        Some([b'1', b'.', minor, ..]) => minor.is_ascii_digit(),
        Some([b'1', ..]) => false,
        Some([major, ..]) => major.is_ascii_digit(),
        Some([]) | None => false,
    }
}

/// Takes a target apart (RFC 9112 §3.2).
fn split_target<'b>(method: &str, target: &'b str) -> Result<TargetParts<'b>, BadHead> {
    if method == "CONNECT" {
        return Err(BadHead { status: 405, why: "CONNECT is not served here" });
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(bad("request target has bytes that must be percent-encoded"));
    }
    if target.contains('#') {
        return Err(bad("request target has a fragment"));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(TargetParts { authority: None, path: target, query: None });
    }
    let (authority, local) = if target.starts_with('/') {
        (None, target)
    } else {
        let (authority, local) =
            split_absolute(target).ok_or(bad("request target is neither a path nor a URL"))?;
        if authority.is_empty() || !is_authority(authority.as_bytes()) {
            return Err(bad("request target has no valid host"));
        }
        (Some(authority), local)
    };
    let (path, query) = match local.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (local, None),
    };
    Ok(TargetParts { authority, path: if path.is_empty() { "/" } else { path }, query })
}

/// Authority and rest of an absolute URL, the rest being empty or beginning with `/` or `?`.
fn split_absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return None;
    }
    Some(rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
}

/// Whether `bytes` can be a host and port (RFC 3986 §3.2, without user names, which RFC 9110 §4.2.4 rules out). A check of
/// bytes, not of names: whether a host exists is for others to say.
fn is_authority(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

fn check_request_headers(
    method: &str,
    minor_version: u8,
    headers: Headers<'_, '_>,
) -> Result<(), BadHead> {
    let length = headers.content_length().map_err(bad)?;
    let is_chunked = headers.first("transfer-encoding").is_some();
    if is_chunked {
        if method == "GET" || method == "HEAD" {
            return Err(bad("Transfer-Encoding on a request without a body"));
        }
        if length.is_some() {
            return Err(bad("Transfer-Encoding and Content-Length together"));
        }
        if minor_version == 0 {
            return Err(bad("Transfer-Encoding in HTTP/1.0"));
        }
    }
    match headers.only("host", "several Host headers").map_err(bad)? {
        Some(host) if !is_authority(host) => return Err(bad("malformed Host")),
        None if minor_version > 0 => return Err(bad("missing Host")),
        Some(_) | None => {}
    }
    headers.only("sec-websocket-key", "several Sec-WebSocket-Key headers").map_err(bad)?;
    if is_chunked || length.is_some_and(|length| length > 0) {
        return Err(BadHead { status: 413, why: "request bodies are not taken" });
    }
    Ok(())
}

fn response_body(status: u16, headers: Headers<'_, '_>) -> Result<Body, &'static str> {
    let length =
        headers.content_length().map_err(|_| "malformed or repeated Content-Length in response")?;
    if matches!(status, 100..=199 | 204 | 304) {
        return Ok(Body::Empty);
    }
    if let Some(last) = headers.elements("transfer-encoding").last() {
        return Ok(if last.eq_ignore_ascii_case(b"chunked") {
            Body::Chunked
        } else {
            Body::UntilClose
        });
    }
    Ok(length.map_or(Body::UntilClose, Body::Length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a request head says, owned, so that two readings can be compared.
    #[derive(Debug, PartialEq)]
    struct Said {
        line: String,
        version: u8,
        path: String,
        query: Option<String>,
        host: Option<String>,
        keep_alive: bool,
        headers: Vec<(String, Vec<u8>)>,
        length: usize,
    }

    fn read(bytes: &[u8]) -> Result<Option<Said>, BadHead> {
        let mut slots = empty_slots();
        let Some((head, length)) = RequestHead::parse(bytes, &mut slots)? else { return Ok(None) };
        Ok(Some(Said {
            line: format!("{} {}", head.method, head.target),
            version: head.minor_version,
            path: head.path().into(),
            query: head.query().map(Into::into),
            host: head.host().map(Into::into),
            keep_alive: head.is_keep_alive(),
            headers: head.headers.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            length,
        }))
    }

    fn said(bytes: &[u8]) -> Said {
        read(bytes).expect("a sound head").expect("a whole head")
    }

    /// Expects `head` to be refused with `status`, and no part of it to be answered otherwise.
    fn refused(head: impl AsRef<[u8]>, status: u16) -> &'static str {
        let head = head.as_ref();
        let shown = String::from_utf8_lossy(&head[..head.len().min(200)]);
        let why = match read(head) {
            Err(fault) => {
                assert_eq!(fault.status, status, "{shown:?}: {}", fault.why);
                fault.why
            }
            other => panic!("{shown:?} was taken: {other:?}"),
        };
        let mut refused = false;
        for cut in 0..head.len() {
            match read(&head[..cut]) {
                Ok(None) => assert!(!refused, "{shown:?} was forgiven at {cut}"),
                Ok(Some(said)) => panic!("{shown:?} was taken at {cut}: {said:?}"),
                Err(fault) => {
                    assert_eq!(fault.status, status, "{shown:?} cut at {cut}: {}", fault.why);
                    refused = true;
                }
            }
        }
        why
    }

    fn get(headers: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
    }

    const REQUESTS: [&str; 5] = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /health HTTP/1.0\r\n\r\n",
        "\r\n\r\nGET /ws/input?a=1&b=%20?c HTTP/1.1\r\nhost:localhost:8000 \r\nX: \r\nCookie:\t a=b; c=d\t \r\nX:2\r\n\r\n",
        "GET http://example.org:81?q HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 0\r\n\r\n",
    ];

    #[test]
    fn requests_cut_at_each_offset_say_the_same() {
        for request in REQUESTS.map(str::as_bytes) {
            for cut in 0..request.len() {
                assert_eq!(read(&request[..cut]), Ok(None), "cut at {cut}");
            }
            let whole = said(request);
            assert_eq!(whole.length, request.len());
            for behind in [&b"\n"[..], b"GET / HTTP/2", b"\x81\x05hello", b"\0\0"] {
                assert_eq!(said(&[request, behind].concat()), whole);
            }
        }
    }

    #[test]
    fn headers_keep_order_and_spelling() {
        let whole = said(REQUESTS[2].as_bytes());
        let lines: Vec<_> =
            whole.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let expected: [(&str, &[u8]); 4] =
            [("host", b"localhost:8000"), ("X", b""), ("Cookie", b"a=b; c=d"), ("X", b"2")];
        assert_eq!(lines, expected);
        assert_eq!(
            (whole.path.as_str(), whole.query.as_deref()),
            ("/ws/input", Some("a=1&b=%20?c"))
        );
    }

    #[test]
    fn headers_are_found_in_any_case_and_as_lists() {
        let bytes =
            get("Connection: keep-alive, , Upgrade\r\nCONNECTION: x ,y\r\nOrigin: https://a\r\n");
        let mut slots = empty_slots();
        let (head, _) = RequestHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
        assert_eq!(head.headers.first("ORIGIN"), Some(&b"https://a"[..]));
        assert_eq!(head.headers.text("origin"), Some("https://a"));
        assert_eq!(head.headers.first("none"), None);
        assert_eq!(head.headers.all("connection").count(), 2);
        assert_eq!(
            head.headers.elements("connection").collect::<Vec<_>>(),
            [&b"keep-alive"[..], b"Upgrade", b"x", b"y"]
        );
        assert!(
            head.headers.has_token("connection", "upgrade")
                && head.headers.has_token("Connection", "Y")
        );
        assert!(
            !head.headers.has_token("connection", "keep")
                && !head.headers.has_token("connection", "")
        );
        assert_eq!(
            format!("{:?}", head.headers),
            r#"["Host", "Connection", "CONNECTION", "Origin"]"#
        );
        assert!(!format!("{head:?}").contains("https"));
    }

    #[test]
    fn keep_alive_follows_the_version() {
        assert!(said(get("").as_bytes()).keep_alive);
        assert!(!said(get("Connection: x, CLOSE\r\n").as_bytes()).keep_alive);
        assert!(!said(b"GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(said(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(!said(b"GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n").keep_alive);
    }

    #[test]
    fn absolute_targets_bring_their_own_host() {
        let parts = |target: &str| {
            let whole = said(format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n").as_bytes());
            (whole.host.unwrap(), whole.path, whole.query)
        };
        assert_eq!(
            parts("http://a.example/b/c?d"),
            ("a.example".into(), "/b/c".into(), Some("d".into()))
        );
        assert_eq!(parts("HTTPS://a:8443"), ("a:8443".into(), "/".into(), None));
        assert_eq!(
            parts("ws://[::1]:80?d=/e"),
            ("[::1]:80".into(), "/".into(), Some("d=/e".into()))
        );
        assert_eq!(parts("//a/b"), ("other".into(), "//a/b".into(), None));
        assert_eq!(
            parts("/http://a/?"),
            ("other".into(), "/http://a/".into(), Some(String::new()))
        );
    }

    #[test]
    fn bad_targets_are_refused() {
        for target in [
            "*",
            "a/b",
            "ftp://a/",
            "http:///a",
            "http://user@a/",
            "http:/a",
            "/a#b",
            "/ä",
            "a:80",
            "://a",
        ] {
            refused(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        }
        refused(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400);
        refused("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405);
    }

    #[test]
    fn malformed_heads_are_refused() {
        for head in [
            "GET\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\rHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / FTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/one\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.x\r\nHost: a\r\n\r\n",
            "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n",
        ] {
            refused(head, 400);
        }
        for lines in [
            "A : b\r\n",
            "A\t: b\r\n",
            "A\r\n",
            ": b\r\n",
            "A(: b\r\n",
            "A: b\r\n folded\r\n",
            "A: b\r\n\tfolded\r\n",
            "A: b\rc\r\n",
            "A: b\r\r\n",
            "A: b\0c\r\n",
            "A: \x7f\r\n",
            "A\0: b\r\n",
            "A: b\nC: d\r\n",
        ] {
            refused(get(lines), 400);
        }
        refused("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400);
    }

    #[test]
    fn only_http_1_is_spoken() {
        for version in ["2.0", "2", "1.2", "1.9", "0.9", "3.0", "9.9"] {
            refused(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"), 505);
        }
        refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    }

    #[test]
    fn ambiguous_hosts_and_keys_are_refused() {
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n", 400), "missing Host");
        assert_eq!(refused("GET http://a/ HTTP/1.1\r\nAccept: b\r\n\r\n", 400), "missing Host");
        assert_eq!(refused(get("host: a\r\n"), 400), "several Host headers");
        assert_eq!(
            refused("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            "several Host headers"
        );
        for host in ["a b", "a/b", "user@a", "a\u{e4}", "a\\b", "<a>"] {
            assert_eq!(
                refused(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400),
                "malformed Host"
            );
        }
        assert_eq!(said(b"GET / HTTP/1.1\r\nHost:\r\n\r\n").host.as_deref(), Some(""));
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        assert!(read(get(key).as_bytes()).is_ok());
        assert_eq!(refused(get(&key.repeat(2)), 400), "several Sec-WebSocket-Key headers");
    }

    #[test]
    fn bodies_are_not_taken() {
        let post = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        assert!(read(post("").as_bytes()).is_ok());
        assert!(read(post("Content-Length: 0\r\n").as_bytes()).is_ok());
        assert!(read(post("Content-Length: 000\r\n").as_bytes()).is_ok());
        refused(post("Content-Length: 1\r\n"), 413);
        refused(get("Content-Length: 18446744073709551615\r\n"), 413);
        refused(post("Transfer-Encoding: chunked\r\n"), 413);
        for method in ["GET", "HEAD"] {
            refused(
                format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
                400,
            );
        }
        refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
        refused(post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), 400);
        refused(post("Content-Length: 1\r\nContent-Length: 2\r\n"), 400);
        refused(post("Content-Length: 0\r\nContent-Length: 0\r\n"), 400);
        for length in ["", "-1", "+1", "0x1", "1, 1", "1 1", "18446744073709551616"] {
            refused(post(&format!("Content-Length: {length}\r\n")), 400);
        }
    }

    #[test]
    fn limits_are_held_to_the_byte() {
        let with_target =
            |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(length - 1));
        assert!(read(with_target(TARGET_BYTES_MAX).as_bytes()).unwrap().is_some());
        refused(with_target(TARGET_BYTES_MAX + 1), 414);
        refused("M".repeat(HEAD_BYTES_MAX + 1), 414);

        let with_size = |size: usize| {
            let empty = get("A: \r\n").len();
            get(&format!("A: {}\r\n", "v".repeat(size - empty)))
        };
        assert_eq!(said(with_size(HEAD_BYTES_MAX).as_bytes()).length, HEAD_BYTES_MAX);
        refused(with_size(HEAD_BYTES_MAX + 1), 431);
        assert_eq!(read("\r\n".repeat(HEAD_BYTES_MAX / 2).as_bytes()).unwrap_err().status, 414);

        // `get` says one header itself.
        assert_eq!(
            said(get(&"A: b\r\n".repeat(HEADERS_MAX - 1)).as_bytes()).headers.len(),
            HEADERS_MAX
        );
        refused(get(&"A: b\r\n".repeat(HEADERS_MAX)), 431);
    }

    #[test]
    fn the_first_fault_decides() {
        let long = "t".repeat(TARGET_BYTES_MAX);
        refused(format!("GET /{long} HTTP/2\n"), 414);
        refused(format!("GET / HTTP/2\nA: {}", "v".repeat(HEAD_BYTES_MAX)), 505);
        refused(get(&format!("A: b\n{}", "A: b\r\n".repeat(HEADERS_MAX))), 400);
        refused(get(&format!("{}A: b\n", "A: b\r\n".repeat(HEADERS_MAX))), 431);
        refused(format!("G\0T /{long} HTTP/1.1\r\n\r\n"), 400);
    }

    const RESPONSES: [&str; 4] = [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nX:\r\n\r\n",
        "HTTP/1.1 503\r\nContent-Length: 12\r\n\r\n",
        "HTTP/1.0 404 \r\n\r\n",
        "HTTP/1.1 200 OK then\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n",
    ];

    /// Status, reason, body, number of headers, length.
    type Answered = (u16, String, Body, usize, usize);

    fn read_response(bytes: &[u8]) -> Result<Option<Answered>, BadHead> {
        let mut slots = empty_slots();
        let Some((head, length)) = ResponseHead::parse(bytes, &mut slots)? else { return Ok(None) };
        Ok(Some((
            head.status,
            head.reason.into(),
            head.body(),
            head.headers.iter().count(),
            length,
        )))
    }

    #[test]
    fn responses_cut_at_each_offset_say_the_same() {
        for response in RESPONSES.map(str::as_bytes) {
            for cut in 0..response.len() {
                assert_eq!(read_response(&response[..cut]), Ok(None), "cut at {cut}");
            }
            let whole = read_response(response).unwrap().unwrap();
            assert_eq!(whole.4, response.len());
            assert_eq!(read_response(&[response, b"\x81\x05hello\n"].concat()), Ok(Some(whole)));
        }
        let said = RESPONSES.map(|response| read_response(response.as_bytes()).unwrap().unwrap());
        assert_eq!(
            (said[0].0, said[0].1.as_str(), said[0].2, said[0].3),
            (101, "Switching Protocols", Body::Empty, 2)
        );
        assert_eq!((said[1].0, said[1].1.as_str(), said[1].2), (503, "", Body::Length(12)));
        assert_eq!((said[2].0, said[2].2), (404, Body::UntilClose));
        assert_eq!((said[3].1.as_str(), said[3].2), ("OK then", Body::Chunked));
    }

    #[test]
    fn bodies_of_responses_end_where_they_say() {
        let body = |status: u16, lines: &str| {
            let bytes = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
            let mut slots = empty_slots();
            let (head, _) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
            (head.body(), head.content_length(), head.is_interim())
        };
        assert_eq!(body(200, "Content-Length: 7\r\n"), (Body::Length(7), Some(7), false));
        assert_eq!(body(304, "Content-Length: 7\r\n"), (Body::Empty, Some(0), false));
        assert_eq!(body(204, ""), (Body::Empty, Some(0), false));
        assert_eq!(body(103, "Link: a\r\n"), (Body::Empty, Some(0), true));
        assert_eq!(body(101, ""), (Body::Empty, Some(0), false));
        assert_eq!(
            body(200, "Transfer-Encoding: chunked, gzip\r\n"),
            (Body::UntilClose, None, false)
        );
        assert_eq!(
            body(500, "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n"),
            (Body::Chunked, None, false)
        );
    }

    #[test]
    fn bad_responses_are_bad_gateways() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "v".repeat(HEAD_BYTES_MAX));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        for response in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 OK\nA: b\n\n",
            "HTTP/1.1 200 O\rK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            &long,
            &many,
        ] {
            assert_eq!(
                read_response(response.as_bytes()).unwrap_err().status,
                502,
                "{response:.80}"
            );
            for cut in 0..response.len() {
                let status =
                    read_response(&response.as_bytes()[..cut]).map_err(|fault| fault.status);
                assert!(
                    matches!(status, Ok(None) | Err(502)),
                    "{response:.80} cut at {cut}: {status:?}"
                );
            }
        }
    }

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

    fn wire(reply: &Reply, minor_version: u8, head_only: bool, keep_alive: bool) -> String {
        let mut out = Vec::new();
        reply.write(&mut out, minor_version, head_only, keep_alive);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn replies_say_length_and_fate() {
        let reply = Reply::json(200, "{}").with("X-A", "b");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nCache-Control: no-store\r\n";
        assert_eq!(wire(&reply, 1, false, true), format!("{head}X-A: b\r\n\r\n{{}}"));
        assert_eq!(wire(&reply, 1, true, true), format!("{head}X-A: b\r\n\r\n"));
        assert_eq!(
            wire(&reply, 1, false, false),
            format!("{head}X-A: b\r\nConnection: close\r\n\r\n{{}}")
        );
        assert_eq!(
            wire(&reply, 0, false, true),
            format!("{head}X-A: b\r\nConnection: keep-alive\r\n\r\n{{}}")
        );
        assert_eq!(
            wire(&reply, 0, false, false),
            format!("{head}X-A: b\r\nConnection: close\r\n\r\n{{}}")
        );
    }

    #[test]
    fn replies_are_heads_that_are_read_back() {
        let reply = Reply::html(404, "<p>é</p>")
            .with("Cache-Control", "max-age=5")
            .with("X-A", "b\r\nEvil: c\0");
        let bytes = wire(&reply, 1, false, true);
        let mut slots = empty_slots();
        let (head, length) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
        assert_eq!((head.status, head.reason, head.body()), (404, "Not Found", Body::Length(9)));
        assert_eq!(head.headers.all("cache-control").collect::<Vec<_>>(), [b"max-age=5"]);
        assert_eq!(head.headers.text("x-a"), Some("b  Evil: c"));
        assert_eq!(&bytes[length..], "<p>é</p>");
        assert_eq!(
            wire(&Reply::text(204, ""), 1, false, true),
            "HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\n\r\n"
        );
        assert_eq!(Reply::error(400, "a \"b\"").body, br#"{"status":"error","error":"a \"b\""}"#);
    }

    #[test]
    fn refusals_bring_the_headers_that_their_status_demands() {
        let reply = BadHead { status: 426, why: "why" }.into_reply();
        let bytes = wire(&reply, 1, false, true);
        assert!(bytes.contains(
            "\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade\r\n\r\n"
        ));
        assert!(wire(&reply, 1, false, false).contains("\r\nConnection: Upgrade, close\r\n\r\n"));
        assert!(
            wire(&BadHead { status: 405, why: "why" }.into_reply(), 1, false, true)
                .contains("\r\nAllow: GET, HEAD\r\n")
        );
        assert_eq!(BadHead { status: 431, why: "why" }.into_reply(), Reply::error(431, "why"));
    }
}
