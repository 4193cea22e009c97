//! The gateway's own answers.

use super::{push_display, push_header};

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

#[cfg(test)]
mod tests {
    use super::super::{BadHead, Body, ResponseHead, empty_slots};
    use super::*;

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
