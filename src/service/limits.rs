//! Which connections are accepted: how many in all, how many per address, and pages of which
//! origins.
//!
//! With a list of origins, a request without an `Origin` is still accepted. The list protects
//! people whose browser is made to connect by a foreign page, and every browser names that page
//! (RFC 6455 section 10.2). A request without an `Origin` comes from a program, which could claim
//! any origin. The `websockets` library does the same with `origins=[…, None]`.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::service::origin::{OriginRule, is_same_host, matching};

/// The limits of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Open client sockets, at least 1.
    pub max_connections: usize,
    /// Open client sockets of one address; 0 is no limit.
    pub max_connections_per_ip: usize,
    /// Origins that may open WebSockets and read JSON answers. Empty: any may open WebSockets, and
    /// there are no CORS headers.
    pub allowed_origins: Vec<OriginRule>,
}

/// Which web pages may read an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Those of `allowed_origins`, and any page where that is empty.
    Any,
    /// Those of `allowed_origins` only.
    Allowed,
    /// Any page, whatever `allowed_origins` says: it is public code.
    Everywhere,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `max_connections` is reached.
    Full,
    /// `max_connections_per_ip` is reached for its address.
    PerAddress,
    /// The process has only its reserve of file descriptors left.
    Descriptors,
}

impl Refusal {
    /// A phrase for the log and for the answer.
    pub fn why(self) -> &'static str {
        match self {
            Refusal::Full => "too many connections",
            Refusal::PerAddress => "too many connections from this address",
            Refusal::Descriptors => "out of file descriptors",
        }
    }

    /// One word for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Refusal::Full => "full",
            Refusal::PerAddress => "per_address",
            Refusal::Descriptors => "descriptors",
        }
    }
}

/// Counts open connections against the limits.
///
/// ```
/// use aivtuber_gateway::service::limits::{Limits, Refusal, Settings};
///
/// let mut limits = Limits::new(Settings {
///     max_connections: 10,
///     max_connections_per_ip: 1,
///     allowed_origins: Vec::new(),
/// });
/// let ip = "192.0.2.7".parse().ok();
/// assert_eq!(limits.admit(ip), Ok(()));
/// assert_eq!(limits.admit(ip), Err(Refusal::PerAddress));
/// limits.release(ip);
/// assert_eq!(limits.admit(ip), Ok(()));
/// ```
#[derive(Debug)]
pub struct Limits {
    settings: Settings,
    open: usize,
    /// Exists only while there is a limit per address, so that it costs nothing without one.
    per_address: Option<HashMap<IpAddr, usize>>,
}

impl Limits {
    /// With no connection open.
    pub fn new(settings: Settings) -> Self {
        let per_address = (settings.max_connections_per_ip > 0).then(HashMap::new);
        Self { settings, open: 0, per_address }
    }

    /// The settings in effect.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Counts a connection, from `ip` if its client is known already. It must be
    /// [released](Limits::release) with the same address.
    ///
    /// # Errors
    /// The limit that is reached; then nothing is counted.
    pub fn admit(&mut self, ip: Option<IpAddr>) -> Result<(), Refusal> {
        if self.is_full() {
            return Err(Refusal::Full);
        }
        self.count(ip)?;
        self.open += 1;
        Ok(())
    }

    /// Counts an admitted connection for the client `to` instead of `from`: a proxy's connection
    /// carries the requests of one client after the other.
    ///
    /// # Errors
    /// The limit of `to` is reached; then the connection is still counted for `from`.
    pub fn recount(&mut self, from: Option<IpAddr>, to: Option<IpAddr>) -> Result<(), Refusal> {
        if from != to {
            self.count(to)?;
            self.uncount(from);
        }
        Ok(())
    }

    /// An admitted connection that is counted for `ip` has ended.
    pub fn release(&mut self, ip: Option<IpAddr>) {
        debug_assert!(self.open > 0, "released more connections than were admitted");
        self.open = self.open.saturating_sub(1);
        self.uncount(ip);
    }

    fn count(&mut self, ip: Option<IpAddr>) -> Result<(), Refusal> {
        if let (Some(per_address), Some(ip)) = (&mut self.per_address, ip) {
            let count = per_address.entry(ip.to_canonical()).or_default();
            if *count >= self.settings.max_connections_per_ip {
                return Err(Refusal::PerAddress);
            }
            *count += 1;
        }
        Ok(())
    }

    fn uncount(&mut self, ip: Option<IpAddr>) {
        let (Some(per_address), Some(ip)) = (&mut self.per_address, ip) else { return };
        let ip = ip.to_canonical();
        if let Some(count) = per_address.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&ip);
            }
        }
    }

    /// Whether `max_connections` is reached.
    pub fn is_full(&self) -> bool {
        self.open >= self.settings.max_connections
    }

    /// Open connections.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Takes other settings. `open` yields the addresses of all open connections, to count them if
    /// no count per address was kept so far. Connections beyond the new limits stay open.
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

    /// Whether a request with this `Origin` header may open a WebSocket. Without rules any may, and
    /// so may a request without an `Origin`, see the top of this file. A page of `own_host`, the
    /// host that was asked for, is the gateway's own and needs no rule; `null` (a sandboxed frame,
    /// a local file) needs a rule of its own.
    pub fn is_allowed(&self, origin: Option<&[u8]>, own_host: Option<&str>) -> bool {
        let rules = &self.settings.allowed_origins;
        match origin {
            Some(origin) if !rules.is_empty() => {
                matching(rules, origin).is_some()
                    || own_host.is_some_and(|host| is_same_host(origin, host))
            }
            _ => true,
        }
    }

    /// The value of `Access-Control-Allow-Origin`: the origin as the client wrote it; none without
    /// rules.
    fn allow_origin<'o>(&self, origin: Option<&'o [u8]>) -> Option<&'o str> {
        matching(&self.settings.allowed_origins, origin?)
    }

    /// The CORS headers of a JSON answer to a request with this `Origin`. Without rules, an answer
    /// that is for everyone may be read by any page, as any page may open a WebSocket then. With
    /// rules, there is always a `Vary`, so that a cache does not give the answer for one page to
    /// another.
    pub fn cors_headers(&self, origin: Option<&[u8]>, pages: Pages) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        match (self.settings.allowed_origins.is_empty(), pages) {
            (true, Pages::Any) | (_, Pages::Everywhere) => {
                return vec![("Access-Control-Allow-Origin", "*".to_owned())];
            }
            (true, Pages::Allowed) => return headers,
            (false, _) => headers.push(("Vary", "Origin".to_owned())),
        }
        if let Some(origin) = self.allow_origin(origin) {
            headers.push(("Access-Control-Allow-Origin", origin.to_owned()));
        }
        headers
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
    fn max_connections_is_the_limit() {
        let mut limits = Limits::new(settings(2, 0));
        limits.admit(Some(ip("10.0.0.1"))).unwrap();
        assert!(!limits.is_full());
        limits.admit(Some(ip("10.0.0.1"))).unwrap();
        assert!(limits.is_full());
        assert_eq!(limits.admit(Some(ip("10.0.0.2"))), Err(Refusal::Full));
        limits.release(Some(ip("10.0.0.1")));
        limits.admit(Some(ip("10.0.0.2"))).unwrap();
        assert_eq!(limits.open(), 2);
        assert!(limits.per_address.is_none());
    }

    #[test]
    fn max_connections_per_ip_is_the_limit_of_an_address() {
        let mut limits = Limits::new(settings(100, 2));
        limits.admit(Some(ip("10.0.0.1"))).unwrap();
        limits.admit(Some(ip("::ffff:10.0.0.1"))).unwrap();
        assert_eq!(limits.admit(Some(ip("10.0.0.1"))), Err(Refusal::PerAddress));
        assert_eq!(limits.admit(Some(ip("::ffff:10.0.0.1"))), Err(Refusal::PerAddress));
        limits.admit(Some(ip("::1"))).unwrap();
        assert_eq!(limits.open(), 3, "a refused one is not counted");
        limits.release(Some(ip("10.0.0.1")));
        limits.admit(Some(ip("::ffff:10.0.0.1"))).unwrap();
        for address in ["10.0.0.1", "10.0.0.1", "::1"] {
            limits.release(Some(ip(address)));
        }
        assert!(limits.per_address.unwrap().is_empty(), "closed connections leave nothing behind");
        assert_eq!(limits.open, 0);
    }

    #[test]
    fn a_reload_counts_open_connections() {
        let mut limits = Limits::new(settings(100, 0));
        let inside = [ip("10.0.0.1"), ip("::ffff:10.0.0.1"), ip("10.0.0.2")];
        for address in inside {
            limits.admit(Some(address)).unwrap();
        }
        limits.reload(settings(100, 2), inside.into_iter());
        assert_eq!(limits.admit(Some(ip("10.0.0.1"))), Err(Refusal::PerAddress));
        limits.admit(Some(ip("10.0.0.2"))).unwrap();

        limits.reload(settings(100, 3), inside.into_iter().chain([ip("10.0.0.2")]));
        limits.admit(Some(ip("10.0.0.1"))).unwrap();
        assert_eq!(limits.admit(Some(ip("10.0.0.1"))), Err(Refusal::PerAddress));

        limits.reload(settings(4, 0), std::iter::empty());
        assert!(limits.is_full(), "five are open, four are allowed");
        limits.release(Some(ip("10.0.0.1")));
        limits.release(Some(ip("10.0.0.1")));
        assert_eq!(limits.open(), 3);
        limits.admit(Some(ip("10.0.0.1"))).unwrap();
    }

    #[test]
    fn without_rules_every_origin_is_allowed_without_cors_headers() {
        let limits = with_origins(&[]);
        for origin in [None, Some(&b"https://a.example"[..]), Some(b"null"), Some(b"\xff")] {
            assert!(limits.is_allowed(origin, None));
            assert!(limits.cors_headers(origin, Pages::Allowed).is_empty());
        }
    }

    #[test]
    fn a_program_without_an_origin_is_accepted() {
        let limits = with_origins(&["https://app.example"]);
        assert!(limits.is_allowed(None, None));
        assert_eq!(limits.allow_origin(None), None);
        assert!(!limits.is_allowed(Some(b""), None));
        assert!(!limits.is_allowed(Some(b"https://app.example, https://b.example"), None));
        assert!(!limits.is_allowed(Some(b"https://\xff"), None));
    }

    #[test]
    fn cors_names_the_origin_and_varies() {
        let limits = with_origins(&["https://b.example", "*.example"]);
        let vary = ("Vary", "Origin".to_owned());
        assert_eq!(
            limits.cors_headers(Some(b"https://app.example"), Pages::Any),
            [vary.clone(), ("Access-Control-Allow-Origin", "https://app.example".to_owned())]
        );
        assert_eq!(
            limits.cors_headers(Some(b"https://evil"), Pages::Any),
            std::slice::from_ref(&vary)
        );
        assert_eq!(limits.cors_headers(None, Pages::Any), [vary]);
    }

    #[test]
    fn without_rules_any_page_may_read_what_is_for_everyone() {
        let limits = with_origins(&[]);
        for origin in [None, Some(&b"https://a.example"[..])] {
            let any = [("Access-Control-Allow-Origin", "*".to_owned())];
            assert_eq!(limits.cors_headers(origin, Pages::Any), any);
        }
    }

    #[test]
    fn the_gateways_own_page_needs_no_rule() {
        let limits = with_origins(&["https://app.example"]);
        for (origin, host, is_allowed) in [
            ("http://gateway:8000", "gateway:8000", true),
            ("https://Gateway.Example", "gateway.example", true),
            ("https://gateway.example", "gateway.example:443", true),
            ("http://gateway.example", "gateway.example:80", true),
            ("http://gateway.example", "gateway.example:443", false),
            ("http://gateway:8001", "gateway:8000", false),
            ("http://evil.example", "gateway", false),
            ("null", "null", false),
        ] {
            let judged = limits.is_allowed(Some(origin.as_bytes()), Some(host));
            assert_eq!(judged, is_allowed, "{origin} at {host}");
        }
        assert!(!limits.is_allowed(Some(b"http://gateway"), None));
    }

    #[test]
    fn a_connection_is_counted_for_its_present_client() {
        let mut limits = Limits::new(settings(100, 1));
        let (one, other) = (Some(ip("192.0.2.1")), Some(ip("192.0.2.2")));
        limits.admit(None).unwrap();
        limits.admit(None).unwrap();
        limits.recount(None, one).unwrap();
        assert_eq!(limits.recount(None, one), Err(Refusal::PerAddress));
        limits.recount(one, one).unwrap();
        limits.recount(one, other).unwrap();
        limits.recount(None, one).unwrap();
        limits.release(one);
        limits.release(other);
        assert!(limits.per_address.unwrap().is_empty(), "closed connections leave nothing behind");
        assert_eq!(limits.open, 0);
    }
}
