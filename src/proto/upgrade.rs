//! Both sides of the WebSocket handshake (RFC 6455 §4): checks the client's request, answers it or
//! writes it anew for a backend, checks the backend's answer and writes it anew for the client.
//!
//! On a relayed route the gateway negotiates nothing. Key, version, subprotocols and extensions go
//! to the backend unchanged, and its 101 comes back with its own headers, so client and backend
//! agree with each other. Only the headers that belong to one connection (RFC 9110 §7.6.1) are
//! replaced.
//!
//! Headers that describe the client to the backend:
//! - `X-Forwarded-For` is a list. The client's address is appended; only that last element is
//!   reliable.
//! - `X-Forwarded-Proto` and `X-Forwarded-Host` are single values that backends believe, so they
//!   are replaced by what this gateway sees, unless they came from a trusted proxy.
//! - `X-Request-Id` names a request across every hop. The client's is kept if there is exactly one,
//!   of 1 to `REQUEST_ID_BYTES_MAX` visible ASCII characters, and replaced otherwise.
//! - `Via` lists the proxies on the way. `1.1 aivtuber-gateway` is appended, which reveals loops.

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

use std::net::IpAddr;

use tungstenite::handshake::derive_accept_key;

use super::http::{
    BadHead, Headers, RequestHead, ResponseHead, elements_of, is_named, is_token, push_address,
    push_header, push_number,
};

/// A client without an address (RFC 7239, section 6.2, has the word for `Forwarded`).
const UNKNOWN_CLIENT: &[u8] = b"unknown";

/// The longest `X-Request-Id` from a client that is kept.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// How this gateway calls itself in `Via`.
const VIA_NAME: &[u8] = b"aivtuber-gateway";

/// Bytes to reserve for what is added to the header lines of a head that is passed on.
const ADDED_BYTES: usize = 192;

/// How many gateways like this one a request may have passed through before.
const HOPS_MAX: usize = 8;

/// The parts of a correct upgrade request that the gateway needs to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake<'b> {
    /// `Sec-WebSocket-Key`: 24 characters of base64.
    pub key: &'b str,
    /// The first subprotocol that the client offers.
    pub protocol: Option<&'b str>,
}

/// What a request to a backend has besides the client's own headers.
#[derive(Clone, Copy, Debug)]
pub struct Forwarding<'a> {
    /// Replaces the client's `Host`.
    pub host: Option<&'a str>,
    /// `None`: a program on a Unix socket.
    pub client: Option<IpAddr>,
    /// The client came through a proxy whose `X-Forwarded-Proto` and `-Host` are believed.
    pub is_proxied: bool,
    /// Of the client's connection: `http` or `https`.
    pub scheme: &'a str,
    /// The `X-Request-Id` where the client's is not kept: see [`request_id`].
    pub request_id: &'a str,
}

/// Whether a request asks for a WebSocket, correctly or not.
pub fn is_upgrade(head: &RequestHead<'_, '_>) -> bool {
    head.headers.has_token("upgrade", "websocket")
}

/// Checks the client's side of the handshake (RFC 6455 §4.2.1).
///
/// # Errors
/// 405 for methods other than GET and HEAD; 426 for a plain GET or a HEAD, and for versions other
/// than 13; 400 for an upgrade that is malformed. The head itself is well formed, so the connection
/// can be kept after the answer ([`BadHead::into_response`]).
pub fn check_request<'b>(head: &RequestHead<'_, 'b>) -> Result<Handshake<'b>, BadHead> {
    let bad = |why| Err(BadHead { status: 400, why });
    if !matches!(head.method, "GET" | "HEAD") {
        return Err(BadHead { status: 405, why: "a WebSocket is opened with GET" });
    }
    if head.is_head() || !is_upgrade(head) {
        return Err(BadHead {
            status: 426,
            why: "this path is a WebSocket: open it with GET and Upgrade: websocket",
        });
    }
    if head.minor_version == 0 {
        return bad("a WebSocket is opened with HTTP/1.1");
    }
    if !head.headers.has_token("connection", "upgrade") {
        return bad("Upgrade without Connection: Upgrade");
    }
    let mut versions = head.headers.all("sec-websocket-version");
    if versions.next() != Some(b"13") {
        return Err(BadHead { status: 426, why: "only Sec-WebSocket-Version 13 is spoken here" });
    }
    if versions.next().is_some() {
        return bad("several Sec-WebSocket-Version headers");
    }
    let Some(key) = head.headers.first("sec-websocket-key") else {
        return bad("missing Sec-WebSocket-Key");
    };
    if !is_key(key) {
        return bad("Sec-WebSocket-Key is not 16 bytes in base64");
    }
    let Ok(key) = std::str::from_utf8(key) else {
        return bad("Sec-WebSocket-Key is not 16 bytes in base64");
    };
    let protocol =
        head.headers.elements("sec-websocket-protocol").next().filter(|first| is_token(first));
    Ok(Handshake { key, protocol: protocol.and_then(|first| std::str::from_utf8(first).ok()) })
}

/// Appends a 101 of the gateway itself (RFC 6455 §4.2.2). No extension is accepted. The first
/// subprotocol on offer is accepted: a browser that offers some and gets none fails the connection,
/// and its page would never see the Close frame that follows.
pub fn write_accept(handshake: &Handshake<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    write_upgrade_pair(out);
    push_header(
        out,
        "Sec-WebSocket-Accept",
        derive_accept_key(handshake.key.as_bytes()).as_bytes(),
    );
    if let Some(protocol) = handshake.protocol {
        push_header(out, "Sec-WebSocket-Protocol", protocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// The client's `X-Request-Id`, if it is kept.
pub fn request_id<'b>(head: &RequestHead<'_, 'b>) -> Option<&'b str> {
    let mut ids = head.headers.all("x-request-id");
    let id = ids.next()?;
    let is_kept =
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    if is_kept && ids.next().is_none() { std::str::from_utf8(id).ok() } else { None }
}

/// Whether the request is in a loop: it has passed through more gateways like this one than any
/// sensible chain has. Each hop is an element `1.1 aivtuber-gateway` of `Via` (RFC 9110 §7.6.3).
pub fn is_loop(head: &RequestHead<'_, '_>) -> bool {
    let is_own_hop = |element: &&[u8]| {
        let mut words = element.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|name| name.eq_ignore_ascii_case(VIA_NAME))
    };
    head.headers.elements("via").filter(is_own_hop).count() > HOPS_MAX
}

/// Appends the first line of the request to a backend. `target` is path and query, beginning with
/// `/`.
pub fn write_request_line(target: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"GET ");
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Appends the headers behind that line, the same for every backend. End-to-end headers keep their
/// order and spelling; hop-by-hop headers are dropped, except for the upgrade pair. `Host` keeps
/// its place and becomes `forwarding.host`, or the authority of a target that is a URL (RFC 9112
/// §3.2.2). The headers about the client come last (see the top of this file).
///
/// The request must have passed [`check_request`]: a GET without a body.
pub fn write_forwarded_headers(
    head: &RequestHead<'_, '_>,
    forwarding: &Forwarding<'_>,
    out: &mut Vec<u8>,
) {
    write_end_to_end(head, forwarding, |_| false, out);
    write_upgrade_pair(out);
    write_about_client(head, forwarding, out);
}

/// Appends the client's own headers, apart from those that are hop-by-hop, about the client, or
/// `is_dropped` by the caller.
pub(super) fn write_end_to_end(
    head: &RequestHead<'_, '_>,
    forwarding: &Forwarding<'_>,
    is_dropped: impl Fn(&str) -> bool,
    out: &mut Vec<u8>,
) {
    out.reserve(head.headers.written_bytes() + ADDED_BYTES);
    let host = forwarding.host.or_else(|| head.host()).unwrap_or_default();
    if head.headers.first("host").is_none() {
        push_header(out, "Host", host.as_bytes());
    }
    let keeps_request_id = request_id(head).is_some();
    let hop_by_hop = HopByHop::new(head.headers);
    for (name, value) in head.headers.iter() {
        if name.eq_ignore_ascii_case("host") {
            push_header(out, name, host.as_bytes());
        } else if !hop_by_hop.contains(name)
            && !is_replaced(name, keeps_request_id)
            && !is_dropped(name)
        {
            push_header(out, name, value);
        }
    }
}

/// Appends the headers about the client, `Via`, and the end of the head.
pub(super) fn write_about_client(
    head: &RequestHead<'_, '_>,
    forwarding: &Forwarding<'_>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    let mut separator: &[u8] = b"";
    for address in head.headers.elements("x-forwarded-for") {
        out.extend_from_slice(separator);
        out.extend_from_slice(address);
        separator = b", ";
    }
    match forwarding.client {
        Some(client) => {
            out.extend_from_slice(separator);
            // A socket that listens on `::` shows IPv4 clients as `::ffff:…`.
            push_address(out, client.to_canonical());
        }
        // A proxy that is believed and has named its client. The proxy itself has no address.
        None if forwarding.is_proxied && !separator.is_empty() => {}
        None => {
            out.extend_from_slice(separator);
            out.extend_from_slice(UNKNOWN_CLIENT);
        }
    }
    out.extend_from_slice(b"\r\n");
    let scheme = forwarding.scheme.as_bytes();
    let believed = |name| head.headers.first(name).filter(|_| forwarding.is_proxied);
    push_header(out, "X-Forwarded-Proto", believed("x-forwarded-proto").unwrap_or(scheme));
    if let Some(host) = believed("x-forwarded-host").or(head.host().map(str::as_bytes)) {
        push_header(out, "X-Forwarded-Host", host);
    }
    if request_id(head).is_none() {
        push_header(out, "X-Request-Id", forwarding.request_id.as_bytes());
    }
    write_via(out);
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole upgrade request of the gateway's own to a backend, which `authority` names.
/// `key` is 16 random bytes in base64.
pub fn write_probe_request(target: &str, authority: &str, key: &str, out: &mut Vec<u8>) {
    write_request_line(target, out);
    push_header(out, "Host", authority.as_bytes());
    push_header(
        out,
        "User-Agent",
        concat!("aivtuber-gateway/", env!("CARGO_PKG_VERSION"), " (probe)").as_bytes(),
    );
    write_upgrade_pair(out);
    push_header(out, "Sec-WebSocket-Version", b"13");
    push_header(out, "Sec-WebSocket-Key", key.as_bytes());
    write_via(out);
    out.extend_from_slice(b"\r\n");
}

/// Checks the backend's side of the handshake (RFC 6455 §4.1) against the key that it got.
/// Subprotocol and extensions are for the client to check.
///
/// # Errors
/// A phrase that says what is wrong.
pub fn check_response(head: &ResponseHead<'_, '_>, key: &str) -> Result<(), &'static str> {
    if head.status != 101 {
        return Err("it did not upgrade");
    }
    if !head.headers.has_token("upgrade", "websocket") {
        return Err("its 101 has no Upgrade: websocket");
    }
    if !head.headers.has_token("connection", "upgrade") {
        return Err("its 101 has no Connection: Upgrade");
    }
    let mut accepts = head.headers.all("sec-websocket-accept");
    match accepts.next() {
        None => Err("its 101 has no Sec-WebSocket-Accept"),
        Some(accept) if accept != derive_accept_key(key.as_bytes()).as_bytes() => {
            Err("its Sec-WebSocket-Accept is wrong")
        }
        Some(_) if accepts.next().is_some() => Err("its 101 has several Sec-WebSocket-Accept"),
        Some(_) => Ok(()),
    }
}

/// Appends the backend's 101 for the client: its headers in their order and spelling, without
/// hop-by-hop headers, except for the upgrade pair, and without `Content-Length`, for a 101 has no
/// body (RFC 9110 §8.6).
pub fn write_forwarded_response(head: &ResponseHead<'_, '_>, out: &mut Vec<u8>) {
    write_status_line(head, out);
    write_upgrade_pair(out);
    let hop_by_hop = HopByHop::new(head.headers);
    for (name, value) in head.headers.iter() {
        if !hop_by_hop.contains(name) && !name.eq_ignore_ascii_case("content-length") {
            push_header(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of a backend's refusal for the client: its headers and `Connection: close`. The
/// body follows byte for byte, so `Transfer-Encoding` stays, and a `Content-Length` beside it is
/// dropped (RFC 9112 §6.3).
pub fn write_forwarded_refusal(head: &ResponseHead<'_, '_>, out: &mut Vec<u8>) {
    write_status_line(head, out);
    // A line that names no coding is dropped, as `Body::of_response` ignores it. A client that read
    // it in another way would look for another end of the body.
    let is_encoded = head.headers.elements("transfer-encoding").next().is_some();
    // A 426 must name a protocol (RFC 9110 §15.5.22), and one that the backend names can be asked
    // for through the gateway.
    let tells_upgrade = head.status == 426 && head.headers.first("upgrade").is_some();
    let hop_by_hop = HopByHop::new(head.headers);
    for (name, value) in head.headers.iter() {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let is_kept = if is("transfer-encoding") {
            value.iter().any(|byte| !matches!(byte, b',' | b' ' | b'\t'))
        } else if is("content-length") {
            !is_encoded
        } else if is("trailer") {
            true
        } else {
            tells_upgrade && is("upgrade") || !hop_by_hop.contains(name)
        };
        if is_kept {
            push_header(out, name, value);
        }
    }
    let fate: &[u8] = if tells_upgrade { b"Upgrade, close" } else { b"close" };
    push_header(out, "Connection", fate);
    out.extend_from_slice(b"\r\n");
}

/// Appends the status line, with room for the headers behind it.
pub(super) fn write_status_line(head: &ResponseHead<'_, '_>, out: &mut Vec<u8>) {
    out.reserve(head.reason.len() + head.headers.written_bytes() + ADDED_BYTES);
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(out, head.status.into());
    out.push(b' ');
    out.extend_from_slice(head.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_via(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Via: 1.1 ");
    out.extend_from_slice(VIA_NAME);
    out.extend_from_slice(b"\r\n");
}

fn write_upgrade_pair(out: &mut Vec<u8>) {
    out.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\n");
}

/// The headers that are for one connection only (RFC 9110 §7.6.1): by their name, or because
/// `Connection` names them. `Connection` cannot remove the headers that frame the message or make
/// up the handshake.
pub(super) struct HopByHop<'h, 'b> {
    headers: Headers<'h, 'b>,
    /// `Connection` names headers that are not hop-by-hop anyway, which is rare.
    names_more: bool,
}

impl<'h, 'b> HopByHop<'h, 'b> {
    pub(super) fn new(headers: Headers<'h, 'b>) -> HopByHop<'h, 'b> {
        let is_known = |option: &[u8]| {
            ["upgrade", "keep-alive", "close"].iter().any(|known| is_named(option, known))
        };
        // As a rule there is one option: looked at whole, it is found sooner.
        let is_usual = |value: &[u8]| is_known(value) || elements_of(value).all(is_known);
        let names_more = !headers.all("connection").all(is_usual);
        HopByHop { headers, names_more }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        let is = |known: &str| is_named(name.as_bytes(), known);
        let is_known = match name.len() {
            2 => is("te"),
            7 => is("upgrade") || is("trailer"),
            10 => is("connection") || is("keep-alive"),
            17 => is("transfer-encoding"),
            _ => false,
        };
        if is_known || starts_with(name, "proxy-") {
            return true;
        }
        let is_needed = || is("content-length") || starts_with(name, "sec-websocket-");
        self.names_more && !is_needed() && self.headers.has_token("connection", name)
    }
}

/// Whether the client's header of this name is dropped because the gateway writes its own.
fn is_replaced(name: &str, keeps_request_id: bool) -> bool {
    const NAMES: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
        || name.eq_ignore_ascii_case("x-request-id") && !keeps_request_id
}

fn starts_with(name: &str, prefix: &str) -> bool {
    let start = name.as_bytes().get(..prefix.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// Whether `key` is 16 bytes in base64: 22 characters and two of padding. The four spare bits of
/// the last character are not checked, because some clients choose random characters rather than
/// random bytes.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key[..22].iter().all(is_digit) && key.ends_with(b"==")
}

#[cfg(test)]
mod tests {
    use super::super::http::{Response, empty_slots};
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn write_forwarded_request(
        head: &RequestHead<'_, '_>,
        forwarding: &Forwarding<'_>,
        out: &mut Vec<u8>,
    ) {
        write_request_line("/backend?a=b", out);
        write_forwarded_headers(head, forwarding, out);
    }

    /// A handshake as browsers send it, with `lines` behind; a line of the same name there takes
    /// the place of one here.
    fn asking(lines: &str) -> String {
        let usual = [
            "Host: gateway:8000",
            "Connection: keep-alive, Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let mut head = String::from("GET /ws/input?a=b HTTP/1.1\r\n");
        for line in usual {
            let name = &line[..=line.find(':').unwrap()];
            if !lines.lines().any(|other| other.starts_with(name)) {
                head += &format!("{line}\r\n");
            }
        }
        head + lines + "\r\n"
    }

    fn with_request<T>(bytes: &str, then: impl FnOnce(&RequestHead<'_, '_>) -> T) -> T {
        let mut slots = empty_slots();
        let (head, length) =
            RequestHead::parse(bytes.as_bytes(), &mut slots).expect(bytes).expect(bytes);
        assert_eq!(length, bytes.len());
        then(&head)
    }

    fn with_response<T>(bytes: &str, then: impl FnOnce(&ResponseHead<'_, '_>) -> T) -> T {
        let mut slots = empty_slots();
        let (head, length) =
            ResponseHead::parse(bytes.as_bytes(), &mut slots).expect(bytes).expect(bytes);
        assert_eq!(length, bytes.len());
        then(&head)
    }

    fn checked(bytes: &str) -> Result<(String, Option<String>), u16> {
        with_request(bytes, |head| match check_request(head) {
            Ok(handshake) => Ok((handshake.key.into(), handshake.protocol.map(Into::into))),
            Err(fault) => Err(fault.status),
        })
    }

    #[test]
    fn a_correct_request_passes() {
        assert_eq!(checked(&asking("")), Ok((KEY.into(), None)));
        assert_eq!(
            checked(&asking("Upgrade: WebSocket\r\nConnection: UPGRADE\r\n")),
            Ok((KEY.into(), None))
        );
        assert_eq!(checked(&asking("Upgrade: h2c, websocket\r\n")), Ok((KEY.into(), None)));
        let protocols =
            "Sec-WebSocket-Protocol: , chat.v2, chat\r\nSec-WebSocket-Protocol: other\r\n";
        assert_eq!(checked(&asking(protocols)), Ok((KEY.into(), Some("chat.v2".into()))));
        assert_eq!(
            checked(&asking("Sec-WebSocket-Protocol: a b, chat\r\n")),
            Ok((KEY.into(), None))
        );
    }

    #[test]
    fn improper_requests_get_the_status_they_deserve() {
        assert_eq!(checked("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(426));
        assert_eq!(checked("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(426));
        assert_eq!(checked("POST / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(405));
        assert_eq!(checked(&asking("").replacen("GET", "HEAD", 1)), Err(426));
        assert_eq!(checked(&asking("").replacen("GET", "get", 1)), Err(405));
        assert_eq!(checked(&asking("").replacen("HTTP/1.1", "HTTP/1.0", 1)), Err(400));
        assert_eq!(checked(&asking("Upgrade: websockets\r\n")), Err(426));
        assert_eq!(checked(&asking("Connection: keep-alive\r\n")), Err(400));
        for version in ["8", "12", "14", "013", "13, 8", ""] {
            assert_eq!(
                checked(&asking(&format!("Sec-WebSocket-Version: {version}\r\n"))),
                Err(426),
                "{version:?}"
            );
        }
        assert_eq!(checked(&asking("").replace("Sec-WebSocket-Version: 13\r\n", "")), Err(426));
        assert_eq!(
            checked(&asking("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n")),
            Err(400)
        );
        for key in [
            "",
            "dGhl",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQAA",
            "dGhlIHNhbXBsZSBub25j*Q==",
        ] {
            assert_eq!(
                checked(&asking(&format!("Sec-WebSocket-Key: {key}\r\n"))),
                Err(400),
                "{key:?}"
            );
        }
        assert_eq!(
            checked(&asking("").replace(&format!("Sec-WebSocket-Key: {KEY}\r\n"), "")),
            Err(400)
        );
    }

    #[test]
    fn a_plain_get_is_told_what_to_ask_for() {
        let fault = with_request("GET / HTTP/1.1\r\nHost: a\r\n\r\n", |head| {
            check_request(head).unwrap_err()
        });
        let reply: Response = fault.into_response();
        let said: Vec<_> = reply.headers.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(
            (reply.status, said),
            (426, vec![("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")])
        );
    }

    #[test]
    fn our_own_101_fits_the_key_and_takes_the_first_protocol() {
        let lines = "Sec-WebSocket-Protocol: chat, other\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
        let out = with_request(&asking(lines), |head| {
            let mut out = Vec::new();
            write_accept(&check_request(head).unwrap(), &mut out);
            String::from_utf8(out).unwrap()
        });
        assert_eq!(
            out,
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
            )
        );
        with_response(&out, |head| assert_eq!(check_response(head, KEY), Ok(())));
    }

    fn forwarded(request: &str, host: Option<&str>) -> String {
        let client = Some("192.0.2.7".parse().unwrap());
        let forwarding =
            Forwarding { host, client, is_proxied: false, scheme: "http", request_id: "ours" };
        with_request(request, |head| {
            let mut out = Vec::new();
            write_forwarded_request(head, &forwarding, &mut out);
            String::from_utf8(out).unwrap()
        })
    }

    /// The values that a forwarded request has under `name`.
    fn values(request: &str, name: &str) -> Vec<String> {
        with_request(request, |head| {
            head.headers.all(name).map(|value| String::from_utf8(value.into()).unwrap()).collect()
        })
    }

    #[test]
    fn end_to_end_headers_go_through_in_order_and_spelling() {
        let request = "GET /ws/input?a=b HTTP/1.1\r\nhOST: gateway:8000\r\nConnection: Upgrade, x-hop\r\nCookie: a=b\r\n\
             pragma: no-cache\r\nUPGRADE: WebSocket\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: x\r\nTE: trailers\r\n\
             Origin: http://gateway:8000\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie:  c=d \r\nEmpty:\r\n\r\n";
        assert_eq!(
            forwarded(request, None),
            "GET /backend?a=b HTTP/1.1\r\nhOST: gateway:8000\r\nCookie: a=b\r\npragma: no-cache\r\n\
             Origin: http://gateway:8000\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: c=d\r\nEmpty: \r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: gateway:8000\r\nX-Request-Id: ours\r\nVia: 1.1 aivtuber-gateway\r\n\r\n"
        );
    }

    #[test]
    fn bytes_beyond_ascii_go_through() {
        let mut request = asking("X-Name: ").into_bytes();
        request.truncate(request.len() - 2);
        request.extend_from_slice(b"\xe5\xa3\xb0 \xff\r\n\r\n");
        let mut slots = empty_slots();
        let (head, _) = RequestHead::parse(&request, &mut slots).unwrap().unwrap();
        let client = Some("::1".parse().unwrap());
        let mut out = Vec::new();
        write_forwarded_request(
            &head,
            &Forwarding { host: None, client, is_proxied: false, scheme: "http", request_id: "a" },
            &mut out,
        );
        assert!(memchr::memmem::find(&out, b"\r\nX-Name: \xe5\xa3\xb0 \xff\r\n").is_some());
    }

    #[test]
    fn the_handshake_cannot_be_named_away() {
        let named = "Connection: Upgrade, Host, Sec-WebSocket-Key, X-Forwarded-For, X-Request-Id, Cookie\r\nCookie: a\r\n";
        let out = forwarded(&asking(named), None);
        assert_eq!(checked(&out), Ok((KEY.into(), None)));
        assert_eq!(values(&out, "host"), ["gateway:8000"]);
        assert_eq!(values(&out, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(values(&out, "cookie"), [""; 0]);
    }

    #[test]
    fn the_host_can_be_replaced() {
        let out = forwarded(&asking(""), Some("backend.example"));
        assert_eq!(values(&out, "host"), ["backend.example"]);
        assert_eq!(values(&out, "x-forwarded-host"), ["gateway:8000"]);
        let absolute = asking("").replacen("/ws/input", "http://other.example/ws/input", 1);
        let out = forwarded(&absolute, None);
        assert_eq!(values(&out, "host"), ["other.example"]);
        assert_eq!(values(&out, "x-forwarded-host"), ["other.example"]);
    }

    #[test]
    fn what_came_about_the_client_is_a_list_or_replaced() {
        let lines = "X-Forwarded-For: 203.0.113.1\r\nx-forwarded-for: 198.51.100.2 ,, unknown\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=a\r\n";
        let out = forwarded(&asking(lines), None);
        assert_eq!(
            values(&out, "x-forwarded-for"),
            ["203.0.113.1, 198.51.100.2, unknown, 192.0.2.7"]
        );
        assert_eq!(values(&out, "x-forwarded-proto"), ["http"]);
        assert_eq!(values(&out, "x-forwarded-host"), ["gateway:8000"]);
        assert_eq!(values(&out, "forwarded"), ["for=a"]);
    }

    #[test]
    fn a_client_of_a_dual_stack_socket_keeps_its_own_address() {
        for (client, said) in [("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1")] {
            let forwarding = Forwarding {
                host: None,
                client: Some(client.parse().unwrap()),
                is_proxied: false,
                scheme: "http",
                request_id: "a",
            };
            let mut out = Vec::new();
            with_request(&asking(""), |head| write_forwarded_request(head, &forwarding, &mut out));
            assert_eq!(values(&String::from_utf8(out).unwrap(), "x-forwarded-for"), [said]);
        }
    }

    #[test]
    fn a_request_id_is_kept_if_it_is_one() {
        let ids = |lines: &str| values(&forwarded(&asking(lines), None), "x-request-id");
        assert_eq!(ids(""), ["ours"]);
        assert_eq!(ids("x-request-id: 4f-ab\r\n"), ["4f-ab"]);
        assert_eq!(ids("X-Request-Id: \r\n"), ["ours"]);
        assert_eq!(ids("X-Request-Id: a b\r\n"), ["ours"]);
        assert_eq!(ids("X-Request-Id: a\r\nX-Request-Id: b\r\n"), ["ours"]);
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        assert_eq!(ids(&format!("X-Request-Id: {longest}\r\n")), [longest.as_str()]);
        assert_eq!(ids(&format!("X-Request-Id: {longest}x\r\n")), ["ours"]);
    }

    #[test]
    fn a_request_may_pass_through_eight_gateways() {
        let is_loop = |lines: &str| with_request(&asking(lines), is_loop);
        let hops = |n: usize| format!("Via: {}\r\n", ["1.1 aivtuber-gateway"; 9][..n].join(", "));
        assert!(!is_loop(""));
        assert!(!is_loop(&hops(8)));
        assert!(is_loop(&hops(9)));
        assert!(is_loop(&(hops(5) + &hops(4))), "over several lines");
        assert!(is_loop(&(hops(8) + "Via: 1.1 Aivtuber-Gateway (second floor)\r\n")));
        for other in ["1.1 proxy", "1.1 my-aivtuber-gateway", "aivtuber-gateway", "1.1", "", ","] {
            assert!(!is_loop(&format!("{}Via: {other}\r\n", hops(8))), "{other:?}");
        }
    }

    #[test]
    fn addresses_and_hops_are_all_that_grows_through_two_gateways() {
        let once = forwarded(&asking("Cookie: a=b\r\n"), None);
        let twice = forwarded(&once, None);
        assert_eq!(values(&twice, "x-forwarded-for"), ["192.0.2.7, 192.0.2.7"]);
        assert_eq!(values(&twice, "via"), ["1.1 aivtuber-gateway"; 2]);
        for name in [
            "host",
            "cookie",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-request-id",
            "connection",
            "upgrade",
        ] {
            assert_eq!(values(&twice, name), values(&once, name), "{name}");
            assert_eq!(values(&twice, name).len(), 1, "{name}");
        }
    }

    fn answered(lines: &str) -> String {
        format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n")
    }

    #[test]
    fn only_a_101_for_this_key_is_an_upgrade() {
        let check = |bytes: &str| with_response(bytes, |head| check_response(head, KEY));
        let pair = "Upgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n";
        let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
        assert_eq!(check(&answered(&format!("{pair}{accept}"))), Ok(()));
        assert!(check(&answered(pair)).is_err());
        assert!(check(&answered(&format!("Upgrade: websocket\r\n{accept}"))).is_err());
        assert!(check(&answered(&format!("Connection: Upgrade\r\n{accept}"))).is_err());
        assert!(check(&answered(&format!("{pair}{accept}{accept}"))).is_err());
        assert!(check(&answered(&format!("{pair}{}", accept.to_uppercase()))).is_err());
        assert!(check(&format!("HTTP/1.1 200 OK\r\n{pair}{accept}\r\n")).is_err());
        assert!(
            with_response(&answered(&format!("{pair}{accept}")), |head| check_response(
                head, "other"
            ))
            .is_err()
        );
    }

    #[test]
    fn the_backends_101_goes_back_with_its_own_headers() {
        let response = "HTTP/1.1 101 Go\r\nDate: now\r\nupgrade: WebSocket\r\nconnection: upgrade, X-Hop\r\nX-Hop: 1\r\n\
             sec-websocket-accept: a\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
             Set-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\nKeep-Alive: 5\r\n\r\n";
        let mut out = Vec::new();
        with_response(response, |head| write_forwarded_response(head, &mut out));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nDate: now\r\nsec-websocket-accept: a\r\n\
             Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\nSet-Cookie: a\r\n\
             Set-Cookie: b\r\n\r\n"
        );
    }

    #[test]
    fn a_refusal_goes_back_as_it_is_and_closes() {
        let refusal = |response: &str| {
            let mut out = Vec::new();
            with_response(response, |head| write_forwarded_refusal(head, &mut out));
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            refusal(
                "HTTP/1.0 401 Who\r\nWWW-Authenticate: Basic\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\
                     Proxy-Connection: x\r\nContent-Length: 3\r\n\r\n"
            ),
            "HTTP/1.1 401 Who\r\nWWW-Authenticate: Basic\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            refusal(
                "HTTP/1.1 500 \r\nTransfer-Encoding: chunked\r\nTrailer: A\r\nContent-Length: 3\r\n\r\n"
            ),
            "HTTP/1.1 500 \r\nTransfer-Encoding: chunked\r\nTrailer: A\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            refusal(
                "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
            ),
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"
        );
        for empty in ["", ",", " , ,"] {
            assert_eq!(
                refusal(&format!(
                    "HTTP/1.1 403 No\r\nTransfer-Encoding:{empty}\r\nContent-Length: 3\r\n\r\n"
                )),
                "HTTP/1.1 403 No\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
            );
        }
        assert_eq!(
            refusal("HTTP/1.1 403 No\r\nTransfer-Encoding:\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(
            refusal("HTTP/1.1 404 No\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
            "HTTP/1.1 404 No\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn no_head_makes_a_check_panic_or_a_forwarded_head_unreadable() {
        let mut let_through = 0;
        for seed in 0..3000 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let mut request =
                asking("Connection: Upgrade, a\r\nX-Forwarded-For: a,b\r\nA: b\r\n").into_bytes();
            let mut response =
                answered("Upgrade: websocket\r\nConnection: Upgrade\r\nA: b\r\n").into_bytes();
            for bytes in [&mut request, &mut response] {
                for _ in 0..chance.usize(0..4) {
                    let at = chance.usize(..bytes.len());
                    bytes[at] = b"\r\n :,a=\t\xff\0"[chance.usize(..10)];
                }
            }
            let mut slots = empty_slots();
            if let Ok(Some((head, _))) = RequestHead::parse(&request, &mut slots) {
                let _ = check_request(&head);
                let client = Some("192.0.2.7".parse().unwrap());
                let forwarding = Forwarding {
                    host: None,
                    client,
                    is_proxied: false,
                    scheme: "http",
                    request_id: "ours",
                };
                let mut out = Vec::new();
                write_forwarded_request(&head, &forwarding, &mut out);
                let mut slots = empty_slots();
                let (again, length) = RequestHead::parse(&out, &mut slots).unwrap().unwrap();
                assert_eq!(length, out.len(), "seed {seed}");
                assert!(is_upgrade(&again), "seed {seed}");
                if check_request(&head).is_ok() {
                    assert_eq!(check_request(&again), check_request(&head), "seed {seed}");
                    let_through += 1;
                }
            }
            let mut slots = empty_slots();
            if let Ok(Some((head, _))) = ResponseHead::parse(&response, &mut slots) {
                let _ = check_response(&head, KEY);
                let mut out = Vec::new();
                write_forwarded_response(&head, &mut out);
                write_forwarded_refusal(&head, &mut out);
                let mut slots = empty_slots();
                let (_, length) = ResponseHead::parse(&out, &mut slots).unwrap().unwrap();
                assert!(
                    ResponseHead::parse(&out[length..], &mut empty_slots()).unwrap().is_some(),
                    "seed {seed}"
                );
            }
        }
        assert!(let_through > 500, "only {let_through} got far enough to test anything");
    }
}
