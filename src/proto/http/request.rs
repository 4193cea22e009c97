//! Request heads.

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

use std::fmt;

use memchr::memchr;

use super::{BadHead, HEAD_BYTES_MAX, HeadLines, Headers, LineFault, Slots, bad, is_token};

/// The head of a request.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct RequestHead<'h, 'b> {
    pub method: &'b str,
    /// The target as the client wrote it: `/path?query`, `http://host/path?query`, or `*`. Visible
    /// ASCII.
    pub target: &'b str,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor_version: u8,
    pub headers: Headers<'h, 'b>,
    parts: TargetParts<'b>,
    host: Option<&'b str>,
    body_bytes: u64,
}

#[derive(Clone, Copy)]
struct TargetParts<'b> {
    authority: Option<&'b str>,
    path: &'b str,
    query: Option<&'b str>,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// The head at the start of `bytes`, and the number of bytes it takes. `Ok(None)`: it is not
    /// complete; call again with the same bytes and more. Empty lines (CRLF) before it are skipped,
    /// and counted (RFC 9112 §2.2).
    ///
    /// # Errors
    /// 400 for what is malformed or ambiguous, 405 for CONNECT, 414 when the target is over half of
    /// [`HEAD_BYTES_MAX`], 431 when the head is over it or `HEADERS_MAX`, 505 for other versions of
    /// HTTP.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(RequestHead<'h, 'b>, usize)>, BadHead> {
        RequestHead::parse_within(bytes, HEAD_BYTES_MAX, slots)
    }

    /// The same, with another limit than [`HEAD_BYTES_MAX`].
    ///
    /// # Errors
    /// As of [`RequestHead::parse`].
    pub fn parse_within(
        bytes: &'b [u8],
        head_bytes_max: usize,
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(RequestHead<'h, 'b>, usize)>, BadHead> {
        let window = &bytes[..bytes.len().min(head_bytes_max)];
        let skipped = leading_empty_lines(window);
        let lines = HeadLines::walk(&window[skipped..]);
        let too_long = is_target_too_long(lines.sound, head_bytes_max / 2);

        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(lines.sound, slots);
        if too_long {
            return Err(BadHead { status: 414, why: "request target is too long" });
        }
        let length = match parsed {
            Err(fault) => return Err(request_fault(fault, window, lines.sound)),
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                return match lines.fault {
                    Some(LineFault::BareLf) => {
                        Err(BadHead { status: 400, why: "line ends with a bare LF" })
                    }
                    Some(LineFault::TooMany) => {
                        Err(BadHead { status: 431, why: "too many headers" })
                    }
                    None if bytes.len() < head_bytes_max => Ok(None),
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
        let headers = Headers::new(request.headers);
        let parts = split_target(method, target)?;
        let body_bytes = check_length(method, minor_version, headers)?;
        let host = parts.authority.or(check_host(minor_version, headers)?);
        headers.only("sec-websocket-key", "several Sec-WebSocket-Key headers").map_err(bad)?;
        // One might be checked here, and the other one believed by a backend.
        headers.only("origin", "several Origin headers").map_err(bad)?;
        let head = RequestHead { method, target, minor_version, headers, parts, host, body_bytes };
        Ok(Some((head, skipped + length)))
    }

    /// The path, not decoded. It begins with `/`, or is `*` (OPTIONS only).
    pub fn path(&self) -> &'b str {
        self.parts.path
    }

    /// What follows the first `?`, if there is one.
    pub fn query(&self) -> Option<&'b str> {
        self.parts.query
    }

    /// The host and port that the request is for: those in the target if it is a whole URL (RFC
    /// 9112 §3.2.2), else `Host`, which may be empty. `None` only for HTTP/1.0.
    pub fn host(&self) -> Option<&'b str> {
        self.host
    }

    /// Whether the connection may take another request after this one (RFC 9112 §9.3).
    pub fn is_keep_alive(&self) -> bool {
        let close = self.headers.has_token("connection", "close");
        !close && (self.minor_version > 0 || self.headers.has_token("connection", "keep-alive"))
    }

    /// Length of the body that follows the head, in bytes; [`u64::MAX`] where it is chunked, so
    /// that its length is only known at its end.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether the method is HEAD, whose response has no body.
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

impl fmt::Debug for RequestHead<'_, '_> {
    /// Without the query and the values of headers, which must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = (self.method, self.path(), self.minor_version, &self.headers);
        f.debug_tuple("RequestHead").field(&shown).finish()
    }
}

fn leading_empty_lines(bytes: &[u8]) -> usize {
    bytes.chunks_exact(2).take_while(|pair| pair == b"\r\n").count() * 2
}

/// Whether the target exceeds its limit, even if its end has not arrived. False after a malformed
/// method, which is the earlier fault.
fn is_target_too_long(bytes: &[u8], target_bytes_max: usize) -> bool {
    if bytes.len() <= target_bytes_max {
        return false;
    }
    let Some(space) = memchr(b' ', bytes) else { return false };
    let target = &bytes[space + 1..];
    is_token(&bytes[..space])
        && target.len() > target_bytes_max
        && target[..=target_bytes_max]
            .iter()
            .all(|&byte| byte.is_ascii_graphic() || !byte.is_ascii())
}

/// Why a head is refused. `window` begins with the first byte of the connection, or of what
/// followed the last request.
fn request_fault(fault: httparse::Error, window: &[u8], bytes: &[u8]) -> BadHead {
    if let Some(why) = other_protocol(window, bytes) {
        return bad(why);
    }
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

/// What speaks another protocol here, as far as its first bytes tell. For a fault that was found
/// already, so that nothing that is HTTP can be mistaken.
fn other_protocol(window: &[u8], bytes: &[u8]) -> Option<&'static str> {
    // RFC 8446 §5.1: the type of a handshake record.
    const TLS_HANDSHAKE: u8 = 0x16;
    // The PROXY protocol, versions 1 and 2.
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        Some("a TLS handshake on a port without TLS")
    } else if bytes.starts_with(b"PROXY ") || window.starts_with(b"\r\n\r\n\0") {
        Some("a PROXY protocol header, which this port does not expect")
    } else {
        None
    }
}

/// Whether the request line ends with some version of HTTP. Called once `httparse` has found that
/// it is neither 1.0 nor 1.1. The line may be incomplete, so only the bytes that led to that
/// verdict are examined.
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

/// Splits a target into authority, path and query (RFC 9112 §3.2).
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

/// Authority and rest of an absolute URL. The rest is empty, or begins with `/` or `?`.
fn split_absolute(target: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return None;
    }
    Some(rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
}

/// Whether `bytes` can be a host and port (RFC 3986 §3.2, without user names, which RFC 9110 §4.2.4
/// forbids). Only the bytes are checked, not whether such a host exists.
fn is_authority(bytes: &[u8]) -> bool {
    let is_mark = |byte: u8| {
        matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'%'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'['
                | b']'
        )
    };
    bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || is_mark(byte))
}

/// The length of the body in bytes, [`u64::MAX`] for a chunked one. Refuses what two readers could
/// understand differently.
fn check_length(method: &str, minor_version: u8, headers: Headers<'_, '_>) -> Result<u64, BadHead> {
    let length = headers.content_length().map_err(bad)?;
    let coding =
        headers.only("transfer-encoding", "several Transfer-Encoding headers").map_err(bad)?;
    let is_chunked = coding.is_some();
    if let Some(coding) = coding {
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(bad("Transfer-Encoding other than chunked"));
        }
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
    Ok(match (is_chunked, length) {
        (true, _) => u64::MAX,
        (false, length) => length.unwrap_or(0),
    })
}

/// The value of `Host`, which only HTTP/1.0 may lack.
fn check_host<'b>(minor_version: u8, headers: Headers<'_, 'b>) -> Result<Option<&'b str>, BadHead> {
    match headers.only("host", "several Host headers").map_err(bad)? {
        Some(host) => match std::str::from_utf8(host) {
            Ok(host) if is_authority(host.as_bytes()) => Ok(Some(host)),
            Ok(_) | Err(_) => Err(bad("malformed Host")),
        },
        None if minor_version > 0 => Err(bad("missing Host")),
        None => Ok(None),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::cuts;
    use super::super::{HEADERS_MAX, empty_slots};

    const TARGET_BYTES_MAX: usize = HEAD_BYTES_MAX / 2;

    use super::*;

    /// Everything in a request head, owned, so that two parses can be compared.
    #[derive(Debug, PartialEq)]
    pub struct ParsedHead {
        line: String,
        version: u8,
        path: String,
        query: Option<String>,
        host: Option<String>,
        keep_alive: bool,
        headers: Vec<(String, Vec<u8>)>,
        length: usize,
    }

    pub fn read(bytes: &[u8]) -> Result<Option<ParsedHead>, BadHead> {
        let mut slots = empty_slots();
        let Some((head, length)) = RequestHead::parse(bytes, &mut slots)? else { return Ok(None) };
        Ok(Some(ParsedHead {
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

    fn parsed(bytes: &[u8]) -> ParsedHead {
        read(bytes).expect("a valid head").expect("a complete head")
    }

    /// Asserts that `head` is refused with `status`, and that no prefix of it gets another verdict.
    fn refused(head: impl AsRef<[u8]>, status: u16) -> &'static str {
        let head = head.as_ref();
        let shown = String::from_utf8_lossy(&head[..head.len().min(200)]);
        let why = match read(head) {
            Err(fault) => {
                assert_eq!(fault.status, status, "{shown:?}: {}", fault.why);
                fault.why
            }
            other => panic!("{shown:?} was accepted: {other:?}"),
        };
        let mut refused = false;
        for cut in cuts(head.len()) {
            match read(&head[..cut]) {
                Ok(None) => assert!(!refused, "{shown:?} was refused, then not, at {cut}"),
                Ok(Some(head)) => panic!("{shown:?} was accepted at {cut}: {head:?}"),
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

    pub const REQUESTS: [&str; 5] = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /health HTTP/1.0\r\n\r\n",
        "\r\n\r\nGET /ws/input?a=1&b=%20?c HTTP/1.1\r\nhost:localhost:8000 \r\nX: \r\nCookie:\t a=b; c=d\t \r\nX:2\r\n\r\n",
        "GET http://example.org:81?q HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 0\r\n\r\n",
    ];

    #[test]
    fn requests_cut_at_each_offset_parse_the_same() {
        for request in REQUESTS.map(str::as_bytes) {
            for cut in 0..request.len() {
                assert_eq!(read(&request[..cut]), Ok(None), "cut at {cut}");
            }
            let whole = parsed(request);
            assert_eq!(whole.length, request.len());
            for behind in [&b"\n"[..], b"GET / HTTP/2", b"\x81\x05hello", b"\0\0"] {
                assert_eq!(parsed(&[request, behind].concat()), whole);
            }
        }
    }

    #[test]
    fn headers_keep_order_and_spelling() {
        let whole = parsed(REQUESTS[2].as_bytes());
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
    fn header_lookups_ignore_case_and_split_lists() {
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
    fn keep_alive_depends_on_version_and_connection_header() {
        assert!(parsed(get("").as_bytes()).keep_alive);
        assert!(!parsed(get("Connection: x, CLOSE\r\n").as_bytes()).keep_alive);
        assert!(!parsed(b"GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(parsed(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(!parsed(b"GET / HTTP/1.0\r\nConnection: Keep-Alive, close\r\n\r\n").keep_alive);
    }

    #[test]
    fn host_in_an_absolute_target_replaces_the_header() {
        let parts = |target: &str| {
            let whole = parsed(format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n").as_bytes());
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
    fn versions_other_than_http_1_are_refused() {
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
        assert_eq!(parsed(b"GET / HTTP/1.1\r\nHost:\r\n\r\n").host.as_deref(), Some(""));
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        assert!(read(get(key).as_bytes()).is_ok());
        assert_eq!(refused(get(&key.repeat(2)), 400), "several Sec-WebSocket-Key headers");
    }

    #[test]
    fn several_origins_are_refused() {
        let origin = "Origin: https://a.example\r\n";
        assert!(read(get(origin).as_bytes()).is_ok());
        assert_eq!(refused(get(&origin.repeat(2)), 400), "several Origin headers");
    }

    #[test]
    fn other_protocols_are_named() {
        let tls = "a TLS handshake on a port without TLS";
        assert_eq!(refused(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400), tls);
        let proxy = "a PROXY protocol header, which this port does not expect";
        let line = "PROXY TCP4 192.0.2.7 192.0.2.1 5000 8000\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(refused(line, 400), proxy);
        assert_eq!(refused(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 400), proxy);
        assert_eq!(refused("PROXY / FTP/1.1\r\n\r\n", 400), proxy);
        assert_eq!(refused("G@T / HTTP/1.1\r\n\r\n", 400), "malformed request line");
    }

    #[test]
    fn body_length_is_read_and_ambiguous_ones_are_refused() {
        let post = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let body_bytes = |head: &str| {
            let mut slots = empty_slots();
            RequestHead::parse(head.as_bytes(), &mut slots).unwrap().unwrap().0.body_bytes()
        };
        for none in ["", "Content-Length: 0\r\n", "Content-Length: 000\r\n"] {
            assert_eq!(body_bytes(&post(none)), 0, "{none}");
        }
        assert_eq!(body_bytes(&post("Content-Length: 1\r\n")), 1);
        assert_eq!(body_bytes(&get("Content-Length: 9223372036854775807\r\n")), u64::MAX / 2);
        assert_eq!(body_bytes(&post("Transfer-Encoding: chunked\r\n")), u64::MAX);
        for method in ["GET", "HEAD"] {
            refused(
                format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
                400,
            );
        }
        refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
        for coding in ["", "gzip", "gzip, chunked", "chunked, chunked", "xchunked", "identity"] {
            refused(post(&format!("Transfer-Encoding: {coding}\r\n")), 400);
        }
        refused(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400);
        refused(post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"), 400);
        refused(post("Content-Length: 1\r\nContent-Length: 2\r\n"), 400);
        refused(post("Content-Length: 0\r\nContent-Length: 0\r\n"), 400);
        for length in ["", "-1", "+1", "0x1", "1, 1", "1 1", "9223372036854775808"] {
            refused(post(&format!("Content-Length: {length}\r\n")), 400);
        }
    }

    #[test]
    fn limits_are_exact_to_the_byte() {
        let with_target =
            |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(length - 1));
        assert!(read(with_target(TARGET_BYTES_MAX).as_bytes()).unwrap().is_some());
        refused(with_target(TARGET_BYTES_MAX + 1), 414);
        refused("M".repeat(HEAD_BYTES_MAX + 1), 414);

        let with_size = |size: usize| {
            let empty = get("A: \r\n").len();
            get(&format!("A: {}\r\n", "v".repeat(size - empty)))
        };
        assert_eq!(parsed(with_size(HEAD_BYTES_MAX).as_bytes()).length, HEAD_BYTES_MAX);
        refused(with_size(HEAD_BYTES_MAX + 1), 431);
        assert_eq!(read("\r\n".repeat(HEAD_BYTES_MAX / 2).as_bytes()).unwrap_err().status, 414);

        // `get` adds `Host`.
        assert_eq!(
            parsed(get(&"A: b\r\n".repeat(HEADERS_MAX - 1)).as_bytes()).headers.len(),
            HEADERS_MAX
        );
        refused(get(&"A: b\r\n".repeat(HEADERS_MAX)), 431);
    }

    #[test]
    fn first_fault_decides_the_status() {
        let long = "t".repeat(TARGET_BYTES_MAX);
        refused(format!("GET /{long} HTTP/2\n"), 414);
        refused(format!("GET / HTTP/2\nA: {}", "v".repeat(HEAD_BYTES_MAX)), 505);
        refused(get(&format!("A: b\n{}", "A: b\r\n".repeat(HEADERS_MAX))), 400);
        refused(get(&format!("{}A: b\n", "A: b\r\n".repeat(HEADERS_MAX))), 431);
        refused(format!("G\0T /{long} HTTP/1.1\r\n\r\n"), 400);
    }

    #[test]
    fn the_limit_of_a_head_can_be_another_one() {
        let within = |bytes: &str, max| {
            let mut slots = empty_slots();
            let parsed = RequestHead::parse_within(bytes.as_bytes(), max, &mut slots);
            parsed.map(|whole| whole.is_some()).map_err(|bad| bad.status)
        };
        for max in [1024, 64 * 1024] {
            let with_target =
                |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(n - 1));
            assert_eq!(within(&with_target(max / 2), max), Ok(true));
            assert_eq!(within(&with_target(max / 2 + 1), max), Err(414));
            let head = "GET / HTTP/1.1\r\nHost: a\r\nA: ";
            let with_size = |n: usize| format!("{head}{}\r\n\r\n", "v".repeat(n - head.len() - 4));
            assert_eq!(within(&with_size(max), max), Ok(true));
            assert_eq!(within(&with_size(max + 1), max), Err(431));
            assert_eq!(within(&with_size(max)[..max - 1], max), Ok(false));
        }
    }
}
