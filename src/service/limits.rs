//! Who is let in: connections in all, connections per address, and the origins of web pages.
//!
//! The surprising thing: with a list of origins, a request WITHOUT an `Origin` is let in. The rule guards people whose browser
//! is made to connect by a stranger's page, and every browser names that page (RFC 6455 section 10.2). What has no `Origin` is
//! a program, and a program could write any. It is what the `websockets` library does with `origins=[…, None]`.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

/// The limits as the configuration has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Client sockets at a time, at least 1.
    pub max_connections: usize,
    /// Client sockets of one address at a time; 0 is no limit.
    pub max_connections_per_ip: usize,
    /// Empty: any origin, and no CORS headers.
    pub allowed_origins: Vec<OriginRule>,
}

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `max_connections` are open.
    Full,
    /// `max_connections_per_ip` of this address are open.
    PerAddress,
}

impl Refusal {
    /// A phrase for the log and for the answer.
    pub fn why(self) -> &'static str {
        match self {
            Refusal::Full => "too many connections",
            Refusal::PerAddress => "too many connections from this address",
        }
    }

    /// One word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Refusal::Full => "full",
            Refusal::PerAddress => "per_address",
        }
    }
}

/// Counts who is in.
#[derive(Debug)]
pub struct Limits {
    settings: Settings,
    open: usize,
    /// Exists only while there is a limit per address, so that the many without one pay nothing.
    per_address: Option<HashMap<IpAddr, usize>>,
}

impl Limits {
    pub fn new(settings: Settings) -> Self {
        let per_address = (settings.max_connections_per_ip > 0).then(HashMap::new);
        Self { settings, open: 0, per_address }
    }

    /// Counts a connection in, or says why not. Who was admitted must be [released](Limits::release) with the same address.
    pub fn admit(&mut self, ip: IpAddr) -> Result<(), Refusal> {
        if self.is_full() {
            return Err(Refusal::Full);
        }
        if let Some(per_address) = &mut self.per_address {
            let count = per_address.entry(ip.to_canonical()).or_default();
            if *count >= self.settings.max_connections_per_ip {
                return Err(Refusal::PerAddress);
            }
            *count += 1;
        }
        self.open += 1;
        Ok(())
    }

    /// An admitted connection has ended.
    pub fn release(&mut self, ip: IpAddr) {
        debug_assert!(self.open > 0, "released more than was admitted");
        self.open = self.open.saturating_sub(1);
        let Some(per_address) = &mut self.per_address else { return };
        let ip = ip.to_canonical();
        if let Some(count) = per_address.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&ip);
            }
        }
    }

    /// Whether the next one would be refused, whoever it is.
    pub fn is_full(&self) -> bool {
        self.open >= self.settings.max_connections
    }

    /// How many are in.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Takes other settings. `open` are the addresses of all who are in: they are counted from there where no count per address
    /// was kept so far. Nobody is put out, also where there are more than the new limits allow.
    pub fn reload(&mut self, settings: Settings, open: impl Iterator<Item = IpAddr>) {
        if settings.max_connections_per_ip == 0 {
            self.per_address = None;
        } else if self.per_address.is_none() {
            let mut per_address = HashMap::new();
            for ip in open {
                *per_address.entry(ip.to_canonical()).or_default() += 1;
            }
            self.per_address = Some(per_address);
        }
        self.settings = settings;
    }

    /// Whether a WebSocket may be opened with this `Origin` header. No rules: any may. No header: it may, see the top of this
    /// file. `null` (a sandboxed frame, a local file) only by its own rule.
    pub fn is_allowed(&self, origin: Option<&[u8]>) -> bool {
        let rules = &self.settings.allowed_origins;
        match origin {
            Some(origin) if !rules.is_empty() => is_matched(rules, origin).is_some(),
            _ => true,
        }
    }

    /// The origin to name in `Access-Control-Allow-Origin`, as the client wrote it; none without rules.
    pub fn allow_origin<'o>(&self, origin: Option<&'o [u8]>) -> Option<&'o str> {
        is_matched(&self.settings.allowed_origins, origin?)
    }

    /// The CORS headers of a JSON answer to a request with this `Origin`. With rules there is always a `Vary`, lest a cache hand
    /// one page's answer to another.
    pub fn cors_headers(&self, origin: Option<&[u8]>) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        if !self.settings.allowed_origins.is_empty() {
            headers.push(("Vary", "Origin".to_owned()));
        }
        if let Some(origin) = self.allow_origin(origin) {
            headers.push(("Access-Control-Allow-Origin", origin.to_owned()));
        }
        headers
    }
}

fn is_matched<'o>(rules: &[OriginRule], origin: &'o [u8]) -> Option<&'o str> {
    let text = std::str::from_utf8(origin)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))?;
    let parsed = Origin::parse(text).ok();
    rules.iter().any(|rule| rule.is_match(text, parsed.as_ref())).then_some(text)
}

/// One entry of `allowed_origins`.
///
/// | written | matches |
/// | --- | --- |
/// | `https://app.example` | this scheme, host and port; the port where none is written is the scheme's own |
/// | `*.example` | every host below `example` (not itself), any scheme, any port |
/// | `*.example:8443` | the same, on this port only |
/// | `https://*.example` | the same, with this scheme and the scheme's own port |
/// | `null`, `file://` | exactly this, as browsers send it for sandboxed frames and local files |
/// | `*` | every origin |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRule {
    text: Box<str>,
    kind: RuleKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RuleKind {
    Any,
    Literal,
    Exact(Origin),
    /// `suffix` begins with its dot. `None` for scheme or port: any.
    Below {
        scheme: Option<String>,
        suffix: String,
        port: Option<u16>,
    },
}

impl OriginRule {
    /// Reads a rule. The error is a sentence that names it and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let kind = match text {
            "*" => RuleKind::Any,
            "null" | "file://" => RuleKind::Literal,
            _ => parse_kind(text)
                .map_err(|why| format!("`{}` is no origin: {why}", text.escape_debug()))?,
        };
        Ok(Self { text: text.into(), kind })
    }

    fn is_match(&self, text: &str, origin: Option<&Origin>) -> bool {
        match &self.kind {
            RuleKind::Any => true,
            RuleKind::Literal => text == &*self.text,
            RuleKind::Exact(exact) => origin == Some(exact),
            RuleKind::Below { scheme, suffix, port } => origin.is_some_and(|origin| {
                origin.host.len() > suffix.len()
                    && origin.host.ends_with(suffix)
                    && scheme.as_ref().is_none_or(|scheme| *scheme == origin.scheme)
                    && port.is_none_or(|port| Some(port) == origin.port)
            }),
        }
    }
}

/// The text as it was written.
impl fmt::Display for OriginRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_kind(text: &str) -> Result<RuleKind, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, text),
    };
    match (scheme, rest.strip_prefix('*')) {
        (scheme, Some(rest)) => {
            // `x` stands in for the star, so that the rest is checked as an origin is.
            let origin = Origin::parse(&format!("{}://x{rest}", scheme.unwrap_or("any")))?;
            let suffix = origin.host[1..].to_owned();
            if !suffix.starts_with('.') || suffix.len() < 2 {
                return Err("`*` stands for whole labels, as in `*.example`".into());
            }
            Ok(RuleKind::Below {
                scheme: scheme.is_some().then_some(origin.scheme),
                suffix,
                port: origin.port,
            })
        }
        (None, None) => Err(format!(
            "a scheme is missing: write `https://{text}`, or `*.{text}` for every host below it"
        )),
        (Some(_), None) => Ok(RuleKind::Exact(Origin::parse(text)?)),
    }
}

/// Scheme, host and port of a web page (RFC 6454), in lower case. `port` is the scheme's own where none was written, if it has
/// one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or("a scheme is missing")?;
        let scheme = scheme.to_ascii_lowercase();
        let is_scheme =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if !scheme.starts_with(|first: char| first.is_ascii_lowercase())
            || !scheme.bytes().all(is_scheme)
        {
            return Err(format!("`{}` is no scheme", scheme.escape_debug()));
        }
        if let Some(sign) = rest.chars().find(|sign| matches!(sign, '/' | '?' | '#')) {
            return Err(format!("nothing stands behind host and port, not even `{sign}`"));
        }
        let (host, port) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains(']') => {
                let digits = &rest[at + 1..];
                let port = digits
                    .bytes()
                    .all(|byte| byte.is_ascii_digit())
                    .then(|| digits.parse().ok())
                    .flatten();
                (
                    &rest[..at],
                    Some(port.ok_or_else(|| format!("its port `{digits}` must be 0 to 65535"))?),
                )
            }
            _ => (rest, None),
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let is_bracketed = host.starts_with('[')
            && host.ends_with(']')
            && host[1..host.len() - 1].parse::<std::net::Ipv6Addr>().is_ok();
        if host.is_empty() {
            return Err("its host is missing".into());
        }
        if !is_bracketed && !host.bytes().all(is_host) {
            return Err(format!("its host `{}` is not one", host.escape_debug()));
        }
        let port = port.or(match scheme.as_str() {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        });
        Ok(Self { scheme, host: host.to_ascii_lowercase(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(max_connections: usize, max_connections_per_ip: usize) -> Settings {
        Settings { max_connections, max_connections_per_ip, allowed_origins: vec![] }
    }

    fn with_origins(rules: &[&str]) -> Limits {
        let allowed_origins = rules.iter().map(|rule| OriginRule::parse(rule).unwrap()).collect();
        Limits::new(Settings { max_connections: 1, max_connections_per_ip: 0, allowed_origins })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn so_many_and_no_more() {
        let mut limits = Limits::new(settings(2, 0));
        limits.admit(ip("10.0.0.1")).unwrap();
        assert!(!limits.is_full());
        limits.admit(ip("10.0.0.1")).unwrap();
        assert!(limits.is_full());
        assert_eq!(limits.admit(ip("10.0.0.2")), Err(Refusal::Full));
        limits.release(ip("10.0.0.1"));
        limits.admit(ip("10.0.0.2")).unwrap();
        assert_eq!(limits.open(), 2);
        assert!(limits.per_address.is_none());
    }

    #[test]
    fn so_many_of_one_address() {
        let mut limits = Limits::new(settings(100, 2));
        limits.admit(ip("10.0.0.1")).unwrap();
        limits.admit(ip("::ffff:10.0.0.1")).unwrap();
        assert_eq!(limits.admit(ip("10.0.0.1")), Err(Refusal::PerAddress));
        assert_eq!(limits.admit(ip("::ffff:10.0.0.1")), Err(Refusal::PerAddress));
        limits.admit(ip("::1")).unwrap();
        assert_eq!(limits.open(), 3, "a refused one is not counted");
        limits.release(ip("10.0.0.1"));
        limits.admit(ip("::ffff:10.0.0.1")).unwrap();
        for address in ["10.0.0.1", "10.0.0.1", "::1"] {
            limits.release(ip(address));
        }
        assert!(limits.per_address.unwrap().is_empty(), "nothing is kept of those who left");
        assert_eq!(limits.open, 0);
    }

    #[test]
    fn other_settings_count_those_who_are_in() {
        let mut limits = Limits::new(settings(100, 0));
        let inside = [ip("10.0.0.1"), ip("::ffff:10.0.0.1"), ip("10.0.0.2")];
        for address in inside {
            limits.admit(address).unwrap();
        }
        limits.reload(settings(100, 2), inside.into_iter());
        assert_eq!(limits.admit(ip("10.0.0.1")), Err(Refusal::PerAddress));
        limits.admit(ip("10.0.0.2")).unwrap();

        limits.reload(settings(100, 3), inside.into_iter().chain([ip("10.0.0.2")]));
        limits.admit(ip("10.0.0.1")).unwrap();
        assert_eq!(limits.admit(ip("10.0.0.1")), Err(Refusal::PerAddress));

        limits.reload(settings(4, 0), std::iter::empty());
        assert!(limits.is_full(), "there are five, and four are allowed");
        limits.release(ip("10.0.0.1"));
        limits.release(ip("10.0.0.1"));
        assert_eq!(limits.open(), 3);
        limits.admit(ip("10.0.0.1")).unwrap();
    }

    #[test]
    fn without_rules_every_origin_is_fine_and_no_cors_is_said() {
        let limits = with_origins(&[]);
        for origin in [None, Some(&b"https://a.example"[..]), Some(b"null"), Some(b"\xff")] {
            assert!(limits.is_allowed(origin));
            assert!(limits.cors_headers(origin).is_empty());
        }
    }

    #[test]
    fn rules_match_as_documented() {
        for (rule, yes, no) in [
            (
                "https://app.example",
                &["https://app.example", "https://app.example:443", "HTTPS://App.Example"][..],
                &[
                    "http://app.example",
                    "https://app.example:8443",
                    "https://x.app.example",
                    "https://app.example.evil",
                    "null",
                ][..],
            ),
            ("https://app.example:443", &["https://app.example"], &["https://app.example:80"]),
            (
                "http://localhost:3000",
                &["http://localhost:3000"],
                &["http://localhost", "http://localhost:30000"],
            ),
            ("http://[::1]:3000", &["http://[::1]:3000"], &["http://[::1]"]),
            (
                "*.example",
                &[
                    "https://a.example",
                    "http://a.b.example:8080",
                    "wss://A.EXAMPLE",
                    "app://a.example",
                ],
                &[
                    "https://example",
                    "https://evilexample",
                    "https://.example",
                    "https://a.example.evil",
                    "https://a.example/x",
                    "null",
                ],
            ),
            (
                "*.example:8443",
                &["https://a.example:8443", "http://a.example:8443"],
                &["https://a.example", "https://a.example:84433"],
            ),
            (
                "https://*.example",
                &["https://a.example", "https://a.b.example:443"],
                &["http://a.example", "https://a.example:8443"],
            ),
            ("app://localhost", &["app://localhost"], &["app://localhost:80", "http://localhost"]),
            ("null", &["null"], &["https://null", "NULL"]),
            ("file://", &["file://"], &["file:///x", "null"]),
            ("*", &["https://a.example", "null", "file://", "anything"], &["\u{fc}", "a b", ""]),
        ] {
            let limits = with_origins(&[rule]);
            for origin in yes {
                assert!(limits.is_allowed(Some(origin.as_bytes())), "{rule} should match {origin}");
                assert_eq!(limits.allow_origin(Some(origin.as_bytes())), Some(*origin));
            }
            for origin in no.iter().filter(|origin| !(rule == "*" && origin.is_empty())) {
                assert!(
                    !limits.is_allowed(Some(origin.as_bytes())),
                    "{rule} should not match {origin}"
                );
                assert_eq!(limits.allow_origin(Some(origin.as_bytes())), None);
            }
        }
    }

    #[test]
    fn a_program_without_an_origin_is_let_in() {
        let limits = with_origins(&["https://app.example"]);
        assert!(limits.is_allowed(None));
        assert_eq!(limits.allow_origin(None), None);
        assert!(!limits.is_allowed(Some(b"")));
        assert!(!limits.is_allowed(Some(b"https://app.example, https://b.example")));
        assert!(!limits.is_allowed(Some(b"https://\xff")));
    }

    #[test]
    fn cors_names_the_origin_and_varies() {
        let limits = with_origins(&["https://b.example", "*.example"]);
        let vary = ("Vary", "Origin".to_owned());
        assert_eq!(
            limits.cors_headers(Some(b"https://app.example")),
            [vary.clone(), ("Access-Control-Allow-Origin", "https://app.example".to_owned())]
        );
        assert_eq!(limits.cors_headers(Some(b"https://evil")), std::slice::from_ref(&vary));
        assert_eq!(limits.cors_headers(None), [vary]);
    }

    #[test]
    fn a_bad_rule_says_why() {
        for (rule, why) in [
            ("", "scheme is missing"),
            ("app.example", "write `https://app.example`, or `*.app.example`"),
            ("https://", "host is missing"),
            ("https://app.example/", "not even `/`"),
            ("https://app.example/x", "not even `/`"),
            ("https://app.example:x", "must be 0 to 65535"),
            ("https://app.example:", "must be 0 to 65535"),
            ("https://a b", "is not one"),
            ("https://a.*.example", "is not one"),
            ("*example", "whole labels"),
            ("*.", "whole labels"),
            ("**", "is not one"),
            ("1http://a", "is no scheme"),
            ("https://[::g]", "is not one"),
        ] {
            let error = OriginRule::parse(rule).unwrap_err();
            assert!(error.contains(why), "{rule}: {error}");
        }
    }
}
