//! Requests of HTTP routes as a backend gets them, and its responses as the client gets them.
//!
//! Every head is written anew from what was parsed: the end-to-end headers in their order and
//! spelling, without those that are for one connection only (RFC 9110 §7.6.1), without the framing
//! of the other side, and with the framing of this one. What describes the client is as in
//! [`super::upgrade`].

use super::http::framing::BodyFraming;
use super::http::{Form, RequestHead, ResponseHead, is_named, push_header, push_number};
use super::upgrade::{
    Forwarding, HopByHop, write_about_client, write_end_to_end, write_status_line, write_via,
};

/// How the content of a response is framed for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// There is no content. The backend's `Content-Length` stays where it says how long the content
    /// of a GET would be.
    Empty,
    /// By this length in bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

impl ResponseFraming {
    /// The framing for a client whose request has this form: HTTP/1.0 knows no chunks.
    pub fn of(framing: BodyFraming, form: Form) -> ResponseFraming {
        match framing {
            BodyFraming::Empty => ResponseFraming::Empty,
            BodyFraming::Length(length) => ResponseFraming::Length(length),
            BodyFraming::Chunked | BodyFraming::UntilClose if form.minor_version == 0 => {
                ResponseFraming::UntilClose
            }
            BodyFraming::Chunked | BodyFraming::UntilClose => ResponseFraming::Chunked,
        }
    }
}

/// Appends the first line of the request to a backend. `target` is path and query, beginning with
/// `/`.
pub fn write_request_line(method: &str, target: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Appends the headers behind that line, the same for every backend. `Expect` stays only as
/// `100-continue`, the one expectation that there is, and with a body. The backend is asked to keep
/// the connection where the client keeps its own, as its `form` says.
pub fn write_request_headers(
    head: &RequestHead<'_, '_>,
    forwarding: &Forwarding<'_>,
    form: Form,
    out: &mut Vec<u8>,
) {
    let is_dropped = |name: &str| {
        let is = |known: &str| is_named(name.as_bytes(), known);
        match name.len() {
            6 => is("expect"),
            14 => is("content-length") || is("http2-settings"),
            _ => false,
        }
    };
    write_end_to_end(head, forwarding, is_dropped, out);
    match BodyFraming::of_request(head) {
        BodyFraming::Length(length) => push_length(length, out),
        BodyFraming::Chunked => push_header(out, "Transfer-Encoding", b"chunked"),
        BodyFraming::Empty | BodyFraming::UntilClose => {}
    }
    if expects_continue(head) {
        push_header(out, "Expect", b"100-continue");
    }
    if !form.keep_alive {
        push_header(out, "Connection", b"close");
    }
    write_about_client(head, forwarding, out);
}

/// Whether the client waits for an interim response before it sends the body (RFC 9110 §10.1.1). An
/// expectation in HTTP/1.0, or without a body, means nothing.
pub fn expects_continue(head: &RequestHead<'_, '_>) -> bool {
    head.minor_version > 0
        && head.body_bytes() > 0
        && head.headers.has_token("expect", "100-continue")
}

/// Appends the head of a backend's response for the client.
pub fn write_response_head(
    head: &ResponseHead<'_, '_>,
    framing: ResponseFraming,
    form: Form,
    out: &mut Vec<u8>,
) {
    write_status_line(head, out);
    let hop_by_hop = HopByHop::new(head.headers);
    // RFC 9110 §8.6 forbids a length in these.
    let keeps_length = framing == ResponseFraming::Empty && !matches!(head.status, 100..=199 | 204);
    for (name, value) in head.headers.iter() {
        let is_length = is_named(name.as_bytes(), "content-length");
        if !hop_by_hop.contains(name) && (!is_length || keeps_length) {
            push_header(out, name, value);
        }
    }
    match framing {
        ResponseFraming::Length(length) => push_length(length, out),
        ResponseFraming::Chunked => push_header(out, "Transfer-Encoding", b"chunked"),
        ResponseFraming::Empty | ResponseFraming::UntilClose => {}
    }
    match (form.keep_alive, form.minor_version) {
        (true, 0) => push_header(out, "Connection", b"keep-alive"),
        (true, _) => {}
        (false, _) => push_header(out, "Connection", b"close"),
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole request of the gateway's own to a backend, which `authority` names. It is a
/// HEAD, which is safe to send at any time.
pub fn write_probe_request(target: &str, authority: &str, out: &mut Vec<u8>) {
    write_request_line("HEAD", target, out);
    push_header(out, "Host", authority.as_bytes());
    push_header(
        out,
        "User-Agent",
        concat!("aivtuber-gateway/", env!("CARGO_PKG_VERSION"), " (probe)").as_bytes(),
    );
    push_header(out, "Connection", b"close");
    write_via(out);
    out.extend_from_slice(b"\r\n");
}

fn push_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"Content-Length: ");
    push_number(out, length);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::super::http::empty_slots;
    use super::*;

    const FORWARDING: Forwarding = Forwarding {
        host: None,
        client: Some(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7))),
        is_proxied: false,
        scheme: "http",
        request_id: "r",
    };

    const ABOUT_CLIENT: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
         X-Forwarded-Host: a\r\nX-Request-Id: r\r\nVia: 1.1 aivtuber-gateway\r\n\r\n";

    fn request(bytes: &str) -> String {
        let mut slots = empty_slots();
        let (head, _) = RequestHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
        let mut out = Vec::new();
        write_request_line(head.method, "/to?q", &mut out);
        let form = Form { keep_alive: head.is_keep_alive(), ..KEPT };
        write_request_headers(&head, &FORWARDING, form, &mut out);
        let mut slots = empty_slots();
        let (again, length) = RequestHead::parse(&out, &mut slots).unwrap().unwrap();
        assert_eq!((again.method, length), (head.method, out.len()), "it is read as it was meant");
        String::from_utf8(out).unwrap()
    }

    fn response(bytes: &str, method: &str, form: Form) -> String {
        let mut slots = empty_slots();
        let (head, _) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
        let framing = BodyFraming::of_response(&head, method).unwrap();
        let mut out = Vec::new();
        write_response_head(&head, ResponseFraming::of(framing, form), form, &mut out);
        String::from_utf8(out).unwrap()
    }

    const KEPT: Form = Form { minor_version: 1, head_only: false, keep_alive: true };

    #[test]
    fn a_request_keeps_its_own_headers_and_gets_new_framing() {
        let lines = "Host: a\r\nX-A:  b \r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
             Keep-Alive: 5\r\nTE: trailers\r\nTrailer: X\r\nProxy-Authorization: x\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\ncontent-LENGTH: 0005\r\n\
             Cookie: c=d\r\n";
        assert_eq!(
            request(&format!("POST /from HTTP/1.1\r\n{lines}\r\n")),
            format!(
                "POST /to?q HTTP/1.1\r\nHost: a\r\nX-A: b\r\nCookie: c=d\r\nContent-Length: 5\r\n\
                 {ABOUT_CLIENT}"
            )
        );
        assert_eq!(
            request("PURGE /from HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n"),
            format!(
                "PURGE /to?q HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
                 {ABOUT_CLIENT}"
            )
        );
        assert_eq!(
            request("GET /from HTTP/1.0\r\nHost: a\r\n\r\n"),
            format!("GET /to?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{ABOUT_CLIENT}")
        );
    }

    #[test]
    fn only_a_body_can_be_waited_for() {
        let is_kept = |first: &str, lines: &str| {
            request(&format!("{first}\r\nHost: a\r\n{lines}\r\n"))
                .contains("\r\nExpect: 100-continue\r\n")
        };
        const EXPECTS: &str = "Content-Length: 5\r\nExpect: 100-Continue\r\n";
        assert!(is_kept("PUT / HTTP/1.1", EXPECTS));
        assert!(!is_kept("PUT / HTTP/1.0", EXPECTS));
        assert!(!is_kept("PUT / HTTP/1.1", "Expect: 100-continue\r\n"));
        assert!(!is_kept("PUT / HTTP/1.1", "Content-Length: 5\r\nExpect: wonders\r\n"));
    }

    #[test]
    fn a_response_keeps_its_own_headers_and_gets_new_framing() {
        let bytes = "HTTP/1.0 200 Fine\r\nServer: s\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
             Set-Cookie: a\r\nSet-Cookie: b\r\n\r\n";
        let own = "HTTP/1.1 200 Fine\r\nServer: s\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n";
        assert_eq!(
            response(bytes, "GET", KEPT),
            format!("{own}Transfer-Encoding: chunked\r\n\r\n")
        );
        let old = Form { minor_version: 0, keep_alive: false, ..KEPT };
        assert_eq!(response(bytes, "GET", old), format!("{own}Connection: close\r\n\r\n"));
        assert_eq!(response(bytes, "HEAD", KEPT), format!("{own}\r\n"));
        assert_eq!(
            response("HTTP/1.1 200 OK\r\nContent-Length: 07\r\n\r\n", "GET", KEPT),
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
        );
        let old = Form { minor_version: 0, ..KEPT };
        assert_eq!(
            response("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "GET", old),
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n"
        );
    }

    #[test]
    fn a_length_stays_where_it_says_how_long_content_would_be() {
        let length = "Content-Length: 7\r\n";
        let of = |status: u16, method: &str| {
            response(&format!("HTTP/1.1 {status} x\r\n{length}\r\n"), method, KEPT).contains(length)
        };
        assert!(of(200, "GET") && of(200, "HEAD") && of(304, "GET"));
        assert!(!of(204, "GET"));
    }
}
