//! The gateway's own HTTP responses.

use super::conditional::lists;
use super::{push_header, push_number};
use crate::base::budget::{Budget, Charge};
use std::borrow::Cow;
use std::rc::Rc;

/// The media type of what programs read.
pub const JSON: &str = "application/json";

/// A response that the gateway makes itself. A backend's is a
/// [`ResponseHead`](super::ResponseHead).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    /// The headers besides `Content-Type`, `Content-Length`, `Connection` and `Cache-Control:
    /// no-store`, which [`Response::into_wire`] adds; a `Cache-Control` here replaces that one.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    pub content: Content,
}

/// The content of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Made for one client.
    Bytes(Vec<u8>),
    /// One copy in memory for every client that asked.
    Shared(Shared),
    /// This many bytes of a file, which are never in memory here: the session sends them behind the
    /// head.
    File(u64),
    /// Bytes that are still being made: the session sends them behind the head, in chunks where the
    /// client knows these.
    Stream,
}

/// Immutable bytes in pieces. A clone shares them.
///
/// Pieces, because a long text is made over several turns of the loop, and one buffer that grows
/// would have to be copied.
#[derive(Clone, Debug, Default)]
pub struct Shared(Option<Rc<Pieces>>);

#[derive(Debug)]
struct Pieces {
    pieces: Vec<Rc<[u8]>>,
    length: usize,
    /// Held until the last clone is dropped.
    _charge: Charge,
}

impl PartialEq for Shared {
    fn eq(&self, other: &Shared) -> bool {
        self.pieces() == other.pieces()
    }
}

impl Eq for Shared {}

/// What a request decides about how its response is written.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// 0 for HTTP/1.0, else 1; 1 where no request could be read.
    pub minor_version: u8,
    /// The response to HEAD has the length of its content, and no content (RFC 9110 §9.3.2).
    pub head_only: bool,
    /// The connection takes another request after this response.
    pub keep_alive: bool,
}

/// A response as it goes out: `first` is the head, with the content behind it if that was made for
/// one client.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Wire {
    pub first: Vec<u8>,
    pub rest: Shared,
    /// Bytes of a file that follow; `None`: as many as there will be.
    pub file_bytes: Option<u64>,
}

impl Form {
    /// For the last response of a connection, whatever was asked.
    pub const LAST: Form = Form { minor_version: 1, head_only: false, keep_alive: false };
}

impl Shared {
    /// The bytes of memory, divided by the number of those that share them.
    pub fn part_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |pieces| pieces.length / Rc::strong_count(pieces))
    }

    /// These pieces, charged once to `budget`, however many clones there are.
    pub fn new(pieces: Vec<Rc<[u8]>>, budget: &Budget) -> Shared {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        Shared(Some(Rc::new(Pieces { pieces, length, _charge: budget.charge(length) })))
    }

    /// Length of all pieces, in bytes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |pieces| pieces.length)
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content, in order.
    pub fn pieces(&self) -> &[Rc<[u8]>] {
        self.0.as_ref().map_or(&[], |pieces| &pieces.pieces)
    }
}

impl Content {
    /// Length in bytes, where that is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Content::Bytes(bytes) => Some(bytes.len() as u64),
            Content::Shared(shared) => Some(shared.len() as u64),
            Content::File(length) => Some(*length),
            Content::Stream => None,
        }
    }
}

impl Response {
    /// `body` is JSON already.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response::new(status, JSON, body.into())
    }

    /// `{"status":"error","error":why}`.
    pub fn error(status: u16, why: &str) -> Response {
        Response::json(status, serde_json::json!({"status": "error", "error": why}).to_string())
    }

    /// A page for people.
    pub fn html(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response::new(status, "text/html; charset=utf-8", body.into())
    }

    /// Plain text in UTF-8.
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response::new(status, "text/plain; charset=utf-8", body.into())
    }

    /// Content that other responses share.
    pub fn shared(content_type: &'static str, content: Shared) -> Response {
        let content = Content::Shared(content);
        Response { status: 200, content_type, headers: Vec::new(), content }
    }

    /// `length` bytes of a file, which the session that sends the response has open.
    pub fn file(status: u16, content_type: &'static str, length: u64) -> Response {
        Response { status, content_type, headers: Vec::new(), content: Content::File(length) }
    }

    /// Bytes that are still being made.
    pub fn stream(content_type: &'static str) -> Response {
        Response { status: 200, content_type, headers: Vec::new(), content: Content::Stream }
    }

    /// Whether only the end of the connection shows where the content ends, in this form.
    pub fn ends_with_connection(&self, form: Form) -> bool {
        self.content == Content::Stream && form.minor_version == 0
    }

    /// A response with status `status`, without further headers.
    pub fn new(status: u16, content_type: &'static str, bytes: Vec<u8>) -> Response {
        Response { status, content_type, headers: Vec::new(), content: Content::Bytes(bytes) }
    }

    /// The same with one more header. Control bytes in `value` go out as spaces: no value can end
    /// its line.
    pub fn with(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// 304 without content in place of a 200 whose `ETag` is listed in `if_none_match` (RFC 9110
    /// §13.1.2).
    pub fn unless_known(mut self, if_none_match: Option<&[u8]>) -> Response {
        let Some(known) = if_none_match else { return self };
        let Some((_, etag)) = self.headers.iter().find(|(name, _)| *name == "ETag") else {
            return self;
        };
        if self.status == 200 && lists(known, etag) {
            (self.status, self.content) = (304, Content::Bytes(Vec::new()));
        }
        self
    }

    /// The whole response in one piece, in the form that its request asked for. It has no bytes of
    /// a file.
    pub fn into_bytes(self, form: Form) -> Vec<u8> {
        let Wire { mut first, rest, .. } = self.into_wire(form);
        rest.pieces().iter().for_each(|piece| first.extend_from_slice(piece));
        first
    }

    /// The response in the form that its request asked for. It has no `Date`, which only a server
    /// with a clock must send (RFC 9110 §6.6.1).
    pub fn into_wire(self, form: Form) -> Wire {
        let has_content = self.status >= 200 && self.status != 204 && self.status != 304;
        let mut first = Vec::with_capacity(256);
        self.write_head(&mut first, form, has_content);
        let (mut rest, mut file_bytes) = (Shared::default(), Some(0));
        if has_content && !form.head_only {
            match self.content {
                Content::Bytes(bytes) => first.extend_from_slice(&bytes),
                Content::Shared(shared) => rest = shared,
                Content::File(length) => file_bytes = Some(length),
                Content::Stream => file_bytes = None,
            }
        }
        Wire { first, rest, file_bytes }
    }

    fn write_head(&self, out: &mut Vec<u8>, form: Form, has_content: bool) {
        // The gateway's own version, not the client's (RFC 9110 §2.5).
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, self.status.into());
        out.push(b' ');
        out.extend_from_slice(reason_phrase(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        if has_content {
            // A worker may have named another one.
            if !self.has("content-type") {
                push_header(out, "Content-Type", self.content_type.as_bytes());
            }
            // No browser is to take JSON with values from outside for something that it runs.
            push_header(out, "X-Content-Type-Options", b"nosniff");
            match self.content.length() {
                Some(length) => {
                    out.extend_from_slice(b"Content-Length: ");
                    push_number(out, length);
                    out.extend_from_slice(b"\r\n");
                }
                None if form.minor_version > 0 => {
                    push_header(out, "Transfer-Encoding", b"chunked");
                }
                None => {}
            }
        }
        if !self.has("cache-control") {
            push_header(out, "Cache-Control", b"no-store");
        }
        for (name, value) in &self.headers {
            push_cleaned(out, name, value);
        }
        let persistence = match (form.keep_alive, form.minor_version) {
            (false, _) => Some("close"),
            (true, 0) => Some("keep-alive"),
            (true, _) => None,
        };
        // A message with Upgrade names it in Connection, too (RFC 9110 §7.8).
        match (self.has("upgrade"), persistence) {
            (true, Some(word)) => {
                push_header(out, "Connection", format!("Upgrade, {word}").as_bytes())
            }
            (true, None) => push_header(out, "Connection", b"Upgrade"),
            (false, Some(word)) => push_header(out, "Connection", word.as_bytes()),
            (false, None) => {}
        }
        out.extend_from_slice(b"\r\n");
    }

    fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(found, _)| found.eq_ignore_ascii_case(name))
    }
}

/// Appends a header with a space for each control byte of its value other than tab, so that it
/// cannot end its line.
fn push_cleaned(out: &mut Vec<u8>, name: &str, value: &str) {
    let is_control = |byte: u8| byte.is_ascii_control() && byte != b'\t';
    if !value.bytes().any(is_control) {
        return push_header(out, name, value.as_bytes());
    }
    let cleaned = value.bytes().map(|byte| if is_control(byte) { b' ' } else { byte });
    push_header(out, name, &cleaned.collect::<Vec<u8>>());
}

/// The usual phrase for a status (RFC 9110 §15); empty for one that is not in the list, which is
/// allowed on the wire.
pub const fn reason_phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BadHead, ResponseHead, empty_slots};
    use super::*;

    const KEPT: Form = Form { minor_version: 1, head_only: false, keep_alive: true };

    fn wire(response: &Response, form: Form) -> String {
        let Wire { first, rest, .. } = response.clone().into_wire(form);
        String::from_utf8([&first[..], &rest.pieces().concat()].concat()).unwrap()
    }

    #[test]
    fn responses_have_length_and_persistence() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                    X-Content-Type-Options: nosniff\r\nContent-Length: 2\r\n\
                    Cache-Control: no-store\r\nX-A: b\r\n";
        let old = Form { minor_version: 0, ..KEPT };
        let budget = Budget::new(None);
        let pieces = Shared::new(vec![b"{".as_slice().into(), b"}".as_slice().into()], &budget);
        for response in [Response::json(200, "{}"), Response::shared(JSON, pieces)] {
            let response = response.with("X-A", "b");
            for (form, end) in [
                (KEPT, "\r\n{}"),
                (Form { head_only: true, ..KEPT }, "\r\n"),
                (Form::LAST, "Connection: close\r\n\r\n{}"),
                (old, "Connection: keep-alive\r\n\r\n{}"),
                (Form { keep_alive: false, ..old }, "Connection: close\r\n\r\n{}"),
            ] {
                assert_eq!(wire(&response, form), format!("{head}{end}"), "{form:?}");
            }
        }
    }

    #[test]
    fn response_that_the_client_has_is_not_sent_again() {
        let response = || Response::text(200, "x").with("ETag", "\"a\"");
        for (known, status) in [
            ("\"a\"", 304),
            ("W/\"a\"", 304),
            ("\"b\", \"a\"", 304),
            ("*", 304),
            ("\"b\"", 200),
            ("a", 200),
            ("", 200),
        ] {
            assert_eq!(response().unless_known(Some(known.as_bytes())).status, status, "{known}");
        }
        assert_eq!(response().unless_known(None).status, 200);
        assert_eq!(Response::text(200, "x").unless_known(Some(b"*")).status, 200, "it has no tag");
        let error = Response { status: 404, ..response() };
        assert_eq!(error.unless_known(Some(b"*")).status, 404);
    }

    #[test]
    fn shared_content_is_not_copied() {
        let budget = Budget::new(None);
        let content = Shared::new(vec![vec![b'a'; 1000].into(), vec![b'b'; 500].into()], &budget);
        let Wire { first, rest, .. } = Response::shared(JSON, content.clone()).into_wire(KEPT);
        assert!(first.ends_with(b"\r\n\r\n"), "the head alone is made for this client");
        assert_eq!(rest.len(), 1500);
        assert!(std::ptr::eq(rest.pieces(), content.pieces()));
        assert_eq!(budget.held(), 1500, "however many clients get it");
        drop((rest, content));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn bytes_of_a_file_follow_the_head() {
        let response = || Response::file(206, "audio/wav", 5).with("ETag", "\"a\"");
        let Wire { first, rest, file_bytes } = response().into_wire(KEPT);
        assert!(first.starts_with(b"HTTP/1.1 206 Partial Content\r\n"));
        assert!(first.ends_with(b"\r\n\r\n"), "the head alone");
        assert!(first.windows(21).any(|line| line == b"\r\nContent-Length: 5\r\n"));
        assert_eq!((rest.len(), file_bytes), (0, Some(5)));
        let head_only = Form { head_only: true, ..KEPT };
        let head = response().into_wire(head_only);
        assert_eq!((head.first, head.file_bytes), (first, Some(0)));
        let known = Response { status: 200, ..response() }.unless_known(Some(b"\"a\""));
        assert_eq!(known.into_wire(KEPT).file_bytes, Some(0), "304");
    }

    #[test]
    fn bytes_that_are_still_being_made_come_in_chunks_or_end_with_the_connection() {
        let head = |form: Form| {
            let Wire { first, file_bytes, .. } = Response::stream("audio/wav").into_wire(form);
            (String::from_utf8(first).unwrap(), file_bytes)
        };
        let (first, file_bytes) = head(KEPT);
        assert!(first.contains("\r\nTransfer-Encoding: chunked\r\n") && file_bytes.is_none());
        assert!(!first.contains("Content-Length"));
        assert_eq!(head(Form { head_only: true, ..KEPT }), (first, Some(0)));
        let old = Form { minor_version: 0, keep_alive: false, ..KEPT };
        let (first, file_bytes) = head(old);
        assert!(!first.contains("Transfer-Encoding") && !first.contains("Content-Length"));
        assert!(first.contains("\r\nConnection: close\r\n") && file_bytes.is_none());
        assert!(Response::stream("audio/wav").ends_with_connection(old));
        assert!(!Response::stream("audio/wav").ends_with_connection(KEPT));
    }

    #[test]
    fn responses_are_heads_that_are_read_back() {
        let response = Response::html(404, "<p>é</p>")
            .with("Cache-Control", "max-age=5")
            .with("X-A", "b\r\nEvil: c\0");
        let bytes = wire(&response, KEPT);
        let mut slots = empty_slots();
        let (head, length) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
        assert_eq!((head.status, head.reason), (404, "Not Found"));
        assert_eq!(head.headers.text("content-length"), Some("9"));
        assert_eq!(head.headers.all("cache-control").collect::<Vec<_>>(), [b"max-age=5"]);
        assert_eq!(head.headers.text("x-a"), Some("b  Evil: c"));
        assert_eq!(&bytes[length..], "<p>é</p>");
        assert_eq!(
            wire(&Response::text(204, ""), KEPT),
            "HTTP/1.1 204 No Content\r\nCache-Control: no-store\r\n\r\n"
        );
        assert_eq!(
            Response::error(400, "a \"b\"").content,
            Content::Bytes(br#"{"status":"error","error":"a \"b\""}"#.to_vec())
        );
    }

    #[test]
    fn refusals_have_the_headers_that_their_status_demands() {
        let response = BadHead { status: 426, why: "why" }.into_response();
        assert!(wire(&response, KEPT).contains(
            "\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: Upgrade\r\n\r\n"
        ));
        assert!(wire(&response, Form::LAST).contains("\r\nConnection: Upgrade, close\r\n\r\n"));
        assert!(
            wire(&BadHead { status: 405, why: "why" }.into_response(), KEPT)
                .contains("\r\nAllow: GET, HEAD\r\n")
        );
        assert_eq!(
            BadHead { status: 431, why: "why" }.into_response(),
            Response::error(431, "why")
        );
    }
}
