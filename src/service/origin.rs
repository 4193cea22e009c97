//! Origins of web pages (RFC 6454), and the rules of `allowed_origins`.

use std::fmt;

/// Whether one of `rules` matches an `Origin` header: then the origin as text, as the client wrote
/// it.
pub fn matching<'o>(rules: &[OriginRule], origin: &'o [u8]) -> Option<&'o str> {
    let text = std::str::from_utf8(origin)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))?;
    let parsed = Origin::parse(text).ok();
    rules.iter().any(|rule| rule.is_match(text, parsed.as_ref())).then_some(text)
}

/// Whether an `Origin` header names a page of `host`, as `Host` has it: the gateway's own.
pub fn is_same_host(origin: &[u8], host: &str) -> bool {
    let origin = std::str::from_utf8(origin).ok().and_then(|text| Origin::parse(text).ok());
    origin.is_some_and(|origin| {
        Origin::parse(&format!("{}://{host}", origin.scheme)).is_ok_and(|own| own == origin)
    })
}

/// One entry of `allowed_origins`.
///
/// | rule | matches |
/// | --- | --- |
/// | `https://app.example` | this scheme, host and port; without a port, the scheme's default |
/// | `*.example` | every host below `example` (not itself), any scheme, any port |
/// | `*.example:8443` | the same, on this port only |
/// | `http://localhost:*` | this scheme and host, any port |
/// | `https://*.example` | the same, with this scheme and its default port |
/// | `null`, `file://` | exactly this, which browsers send for sandboxed frames and local files |
/// | `*` | every origin |
///
/// ```
/// use aivtuber_gateway::service::origin::OriginRule;
///
/// let rule = OriginRule::parse("*.example:8443").unwrap();
/// assert_eq!(rule.to_string(), "*.example:8443");
/// assert!(OriginRule::parse("app.example").is_err());
/// ```
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
    /// The port of the origin does not matter.
    AnyPort(Origin),
    /// `suffix` begins with its dot. `None` for scheme or port: any.
    Below {
        scheme: Option<String>,
        suffix: String,
        port: Option<u16>,
    },
}

impl OriginRule {
    /// Reads a rule.
    ///
    /// # Errors
    /// A sentence that names the rule and says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let kind = match text {
            "*" => RuleKind::Any,
            "null" | "file://" => RuleKind::Literal,
            _ => parse_kind(text)
                .map_err(|why| format!("`{}` is not an origin: {why}", text.escape_debug()))?,
        };
        Ok(Self { text: text.into(), kind })
    }

    fn is_match(&self, text: &str, origin: Option<&Origin>) -> bool {
        match &self.kind {
            RuleKind::Any => true,
            RuleKind::Literal => text == &*self.text,
            RuleKind::Exact(exact) => origin == Some(exact),
            RuleKind::AnyPort(exact) => origin
                .is_some_and(|origin| origin.scheme == exact.scheme && origin.host == exact.host),
            RuleKind::Below { scheme, suffix, port } => origin.is_some_and(|origin| {
                origin.host.len() > suffix.len()
                    && origin.host.ends_with(suffix)
                    && scheme.as_ref().is_none_or(|scheme| *scheme == origin.scheme)
                    && port.is_none_or(|port| Some(port) == origin.port)
            }),
        }
    }
}

/// The rule as the configuration has it.
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
            // With `x` in place of the star, the rest is checked as an origin is.
            let origin = Origin::parse(&format!("{}://x{rest}", scheme.unwrap_or("any")))?;
            let suffix = origin.host[1..].to_owned();
            if !suffix.starts_with('.') || suffix.len() < 2 {
                return Err("`*` replaces whole labels, as in `*.example`".into());
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
        (Some(_), None) => match text.strip_suffix(":*") {
            Some(text) => Ok(RuleKind::AnyPort(Origin::parse(text)?)),
            None => Ok(RuleKind::Exact(Origin::parse(text)?)),
        },
    }
}

/// Scheme, host and port of a web page, in lower case. Without a port, it is the default port of
/// the scheme, if that has one.
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
            return Err(format!("`{}` is not a scheme", scheme.escape_debug()));
        }
        if let Some(sign) = rest.chars().find(|sign| matches!(sign, '/' | '?' | '#')) {
            return Err(format!("nothing may follow host and port, not even `{sign}`"));
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

    fn matches(rule: &str, origin: &[u8]) -> bool {
        matching(&[OriginRule::parse(rule).unwrap()], origin).is_some()
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
                "http://localhost:*",
                &["http://localhost", "http://localhost:3000", "http://LOCALHOST:80"],
                &["https://localhost:3000", "http://localhost.evil:3000", "http://a.localhost"],
            ),
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
            for origin in yes {
                assert!(matches(rule, origin.as_bytes()), "{rule} should match {origin}");
            }
            for origin in no.iter().filter(|origin| !(rule == "*" && origin.is_empty())) {
                assert!(!matches(rule, origin.as_bytes()), "{rule} should not match {origin}");
            }
        }
    }

    #[test]
    fn a_bad_rule_is_refused_with_the_reason() {
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
            ("1http://a", "is not a scheme"),
            ("https://[::g]", "is not one"),
        ] {
            let error = OriginRule::parse(rule).unwrap_err();
            assert!(error.contains(why), "{rule}: {error}");
        }
    }
}
