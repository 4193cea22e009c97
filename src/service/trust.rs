//! Whose request is it: the address of the client behind trusted proxies, and whether it is an
//! admin.
//!
//! Admins see what names a task, an address or a backend. Two kinds of strangers must not pass for
//! them:
//!
//! - Clients behind a proxy, whose connection comes from an address that admins have. A request
//!   that says that it came through a proxy (`X-Forwarded-For`, `Forwarded`) is an admin's only if
//!   the proxy is trusted, and then by the address that it names. A trusted proxy that names none
//!   hides its client. A proxy that does not speak HTTP names it in a PROXY header, in front of the
//!   connection.
//! - Pages in an admin's browser that make their own host name resolve to the gateway (DNS
//!   rebinding). Their requests carry that name in `Host`, so `Host` must be an address,
//!   `localhost` or one of `server_names`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::proto::http::RequestHead;

/// Which addresses are admins and trusted proxies, and by which names admins call the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where admins' requests come from.
    pub admin_from: Vec<PeerRule>,
    /// Host names by which admins may call the gateway, in lower case.
    pub server_names: Vec<String>,
    /// Proxies whose `X-Forwarded-For`, `-Proto` and `-Host` are believed.
    pub trusted_proxies: Vec<PeerRule>,
    /// Connections of trusted proxies begin with a PROXY header.
    pub proxy_protocol: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let rule = |text| PeerRule::parse(text).ok();
        Self {
            admin_from: ["127.0.0.0/8", "::1", "unix"].into_iter().filter_map(rule).collect(),
            server_names: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
        }
    }
}

impl Settings {
    /// Whether a connection from `peer` begins with a PROXY header. Those on Unix sockets never do.
    pub fn expects_header(&self, peer: Peer) -> bool {
        self.proxy_protocol && matches!(peer, Peer::Ip(_)) && self.is_trusted_proxy(peer)
    }

    /// Whether a connection from `peer` comes from a proxy that is believed.
    pub fn is_trusted_proxy(&self, peer: Peer) -> bool {
        matches_peer(&self.trusted_proxies, peer)
    }

    /// The client of a request whose connection comes from `peer`.
    pub fn client(&self, head: &RequestHead<'_, '_>, peer: Peer) -> Client {
        match self.is_trusted_proxy(peer) {
            true => self.client_behind_proxy(head, peer),
            false => Client::Peer(peer),
        }
    }

    /// Whether a request of `client` is an admin's. Its connection comes from `peer` and was
    /// accepted at `accepted_on`.
    pub fn is_admin(
        &self,
        head: &RequestHead<'_, '_>,
        client: Client,
        peer: Peer,
        accepted_on: AcceptedOn,
    ) -> bool {
        let is_proxy = self.is_trusted_proxy(peer);
        let is_admins_address = match client {
            _ if accepted_on == AcceptedOn::Admins => true,
            Client::Unknown => false,
            // A proxy that is not trusted.
            Client::Peer(_) if names_a_proxy(head) => false,
            // A trusted proxy that hides its client.
            Client::Peer(Peer::Ip(_) | Peer::Unix) if is_proxy => false,
            Client::Peer(peer) => matches_peer(&self.admin_from, peer),
            Client::Forwarded(ip) => matches_any(&self.admin_from, ip),
        };
        is_admins_address && self.is_own_name(self.host(head, is_proxy))
    }

    /// The host that the client asked for: `X-Forwarded-Host` of a trusted proxy, else `Host`.
    fn host<'b>(&self, head: &RequestHead<'_, 'b>, is_proxy: bool) -> Option<&'b str> {
        let forwarded = is_proxy.then(|| only_text(head, "x-forwarded-host")).flatten();
        forwarded.or_else(|| head.host())
    }

    /// The host whose pages are the gateway's own. With `server_names`, it must be one of these, an
    /// address or `localhost`, so that a page cannot make any name it likes the gateway's.
    pub fn own_host<'b>(&self, head: &RequestHead<'_, 'b>, is_proxy: bool) -> Option<&'b str> {
        let host = self.host(head, is_proxy)?;
        (self.server_names.is_empty() || self.is_own_name(Some(host))).then_some(host)
    }

    /// Whether a trusted proxy says that the client came to it by TLS.
    pub fn came_by_https(&self, head: &RequestHead<'_, '_>, is_proxy: bool) -> bool {
        is_proxy && only_text(head, "x-forwarded-proto") == Some("https")
    }

    /// Whether a page at this `Host` can only be one of the gateway's own: it is an address,
    /// `localhost` or one of `server_names`.
    fn is_own_name(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return false };
        let name = without_port(host);
        name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.server_names.iter().any(|known| name.eq_ignore_ascii_case(known))
    }

    /// Reads `X-Forwarded-For` from the right, where the nearest proxies wrote, up to the first
    /// address that is not a trusted proxy's. What is left of it is hearsay.
    fn client_behind_proxy(&self, head: &RequestHead<'_, '_>, peer: Peer) -> Client {
        let elements: Vec<&[u8]> = head.headers.elements("x-forwarded-for").collect();
        let mut client = Client::Peer(peer);
        for element in elements.iter().rev() {
            let Some(ip) = std::str::from_utf8(element).ok().and_then(read_address) else {
                return Client::Unknown;
            };
            // No other machine connects from a loopback address: a claim to pass for an admin.
            if ip.is_loopback() {
                return Client::Unknown;
            }
            client = Client::Forwarded(ip);
            if !matches_any(&self.trusted_proxies, ip) {
                break;
            }
        }
        client
    }
}

/// Where a connection was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedOn {
    /// On an address of `listen`.
    Clients,
    /// On an address of `admin_listen`: the address of the client is not asked.
    Admins,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// At this address.
    Ip(SocketAddr),
    /// On a Unix socket: a program of this machine.
    Unix,
    /// At this address, as the PROXY header of a trusted proxy says.
    Named(SocketAddr),
    /// Behind a trusted proxy whose PROXY header names no address, or one that cannot be.
    Unnamed,
}

impl Peer {
    /// The peer that a PROXY header names.
    pub fn named(address: SocketAddr) -> Peer {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        // No other machine connects from a loopback address: a claim to pass for an admin.
        if address.ip().is_loopback() { Peer::Unnamed } else { Peer::Named(address) }
    }

    /// The address, if it has one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Peer::Ip(address) | Peer::Named(address) => Some(address.ip()),
            Peer::Unix | Peer::Unnamed => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer::Ip(address)
    }
}

/// As in logs and reports.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Ip(address) | Peer::Named(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
            Peer::Unnamed => f.write_str("unknown"),
        }
    }
}

/// What is known about the client of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// The other end of the connection.
    Peer(Peer),
    /// The address that a trusted proxy named.
    Forwarded(IpAddr),
    /// A trusted proxy named something that cannot be an address of a client.
    Unknown,
}

impl Client {
    /// The address, if it is known.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Client::Peer(peer) => peer.ip(),
            Client::Forwarded(ip) => Some(ip),
            Client::Unknown => None,
        }
    }
}

/// As in logs and reports: with the port, where that is known.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Peer(peer) => peer.fmt(f),
            Client::Forwarded(ip) => ip.fmt(f),
            Client::Unknown => f.write_str("unknown"),
        }
    }
}

/// One entry of `admin_from` or `trusted_proxies`: an address, a network such as `10.0.0.0/8`, or
/// `unix` for the peers of Unix sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRule {
    text: Box<str>,
    /// Address and number of leading bits; `None` for `unix`.
    network: Option<(IpAddr, u32)>,
}

impl PeerRule {
    /// Reads a rule.
    ///
    /// # Errors
    /// A sentence that names the rule and says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            let shown = text.escape_debug();
            format!(
                "`{shown}` is not an address; expected one such as `192.0.2.7` or `::1`, a network \
                 such as `10.0.0.0/8`, or `unix`"
            )
        };
        if text == "unix" {
            return Ok(Self { text: text.into(), network: None });
        }
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| bad())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= bits_max).ok_or_else(bad)?,
            None => bits_max,
        };
        Ok(Self { text: text.into(), network: Some((address, bits)) })
    }

    fn matches(&self, ip: IpAddr) -> bool {
        match (self.network, ip.to_canonical()) {
            (Some((IpAddr::V4(network), bits)), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            (Some((IpAddr::V6(network), bits)), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                network.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }
}

/// The rule as the configuration has it.
impl fmt::Display for PeerRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads one entry of `server_names`: a host name, in lower case.
///
/// # Errors
/// A sentence that names it and says what is expected.
pub fn parse_server_name(text: &str) -> Result<String, String> {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.is_empty() || !text.bytes().all(is_sound) {
        let shown = text.escape_debug();
        return Err(format!(
            "`{shown}` is not a host name; expected one such as `gateway.example`"
        ));
    }
    Ok(text.to_ascii_lowercase())
}

fn matches_any(rules: &[PeerRule], ip: IpAddr) -> bool {
    rules.iter().any(|rule| rule.matches(ip))
}

fn matches_peer(rules: &[PeerRule], peer: Peer) -> bool {
    match peer {
        Peer::Ip(address) | Peer::Named(address) => matches_any(rules, address.ip()),
        Peer::Unix => rules.iter().any(|rule| rule.network.is_none()),
        Peer::Unnamed => false,
    }
}

/// Whether the request says that it came through a proxy.
fn names_a_proxy(head: &RequestHead<'_, '_>) -> bool {
    ["x-forwarded-for", "forwarded"].iter().any(|name| head.headers.first(name).is_some())
}

/// The value of the only header of this name.
fn only_text<'b>(head: &RequestHead<'_, 'b>, name: &str) -> Option<&'b str> {
    let mut values = head.headers.all(name);
    let text = std::str::from_utf8(values.next()?).ok()?;
    values.next().is_none().then_some(text)
}

/// An element of `X-Forwarded-For`: an address, with or without a port.
fn read_address(text: &str) -> Option<IpAddr> {
    let in_brackets = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let ip = text
        .parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| in_brackets(text).map(IpAddr::V6))?;
    Some(ip.to_canonical())
}

/// The host in a `Host` header.
fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::empty_slots;

    fn settings(admin_from: &[&str], trusted_proxies: &[&str]) -> Settings {
        let rules =
            |texts: &[&str]| texts.iter().map(|text| PeerRule::parse(text).unwrap()).collect();
        Settings {
            admin_from: rules(admin_from),
            server_names: vec!["gateway.example".into()],
            trusted_proxies: rules(trusted_proxies),
            proxy_protocol: true,
        }
    }

    /// The client as logs name it, and whether it is an admin, for a request with these header
    /// lines.
    fn judged(settings: &Settings, peer: &str, lines: &str) -> (String, bool) {
        judged_at(AcceptedOn::Clients, settings, peer, &format!("Host: 192.0.2.1:8000\r\n{lines}"))
    }

    fn judged_at(
        accepted_on: AcceptedOn,
        settings: &Settings,
        peer: &str,
        lines: &str,
    ) -> (String, bool) {
        let bytes = format!("GET / HTTP/1.1\r\n{lines}\r\n");
        let mut slots = empty_slots();
        let (head, _) = RequestHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
        let peer = match peer {
            "unix" => Peer::Unix,
            "named nothing" => Peer::Unnamed,
            peer if peer.starts_with("named ") => {
                Peer::named(SocketAddr::new(peer[6..].parse().unwrap(), 5000))
            }
            peer => SocketAddr::new(peer.parse().unwrap(), 5000).into(),
        };
        let client = settings.client(&head, peer);
        (client.to_string(), settings.is_admin(&head, client, peer, accepted_on))
    }

    fn client(text: &str, is_admin: bool) -> (String, bool) {
        (text.to_owned(), is_admin)
    }

    #[test]
    fn admins_come_from_their_addresses_and_through_no_proxy() {
        let settings = Settings::default();
        for (peer, lines, is_admin) in [
            ("127.0.0.1", "", true),
            ("127.9.9.9", "", true),
            ("::1", "", true),
            ("::ffff:127.0.0.1", "", true),
            ("192.0.2.7", "", false),
            ("127.0.0.1", "X-Forwarded-For: 127.0.0.1\r\n", false),
            ("127.0.0.1", "X-Forwarded-For:\r\n", false),
            ("127.0.0.1", "Forwarded: for=127.0.0.1\r\n", false),
            ("127.0.0.1", "X-Forwarded-Proto: https\r\n", true),
        ] {
            assert_eq!(judged(&settings, peer, lines).1, is_admin, "{peer} {lines}");
        }
        let (text, _) = judged(&settings, "127.0.0.1", "X-Forwarded-For: 192.0.2.7\r\n");
        assert_eq!(
            text, "127.0.0.1:5000",
            "a header of a proxy that is not trusted is not believed"
        );
    }

    #[test]
    fn admins_call_the_gateway_by_an_address_localhost_or_its_name() {
        let settings = settings(&["127.0.0.1"], &[]);
        for (host, is_admin) in [
            ("127.0.0.1:8000", true),
            ("[::1]:8000", true),
            ("[::1]", true),
            ("localhost", true),
            ("LOCALHOST:8000", true),
            ("Gateway.Example:443", true),
            ("rebound.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:8000", false),
            ("", false),
        ] {
            for accepted_on in [AcceptedOn::Clients, AcceptedOn::Admins] {
                let lines = format!("Host: {host}\r\n");
                let (_, judged) = judged_at(accepted_on, &settings, "127.0.0.1", &lines);
                assert_eq!(judged, is_admin, "{host} at {accepted_on:?}");
            }
        }
    }

    /// The address of a PROXY header takes the place of the socket's: it is judged as that of any
    /// peer is, and if it is trusted, `X-Forwarded-For` goes on from there.
    #[test]
    fn client_in_a_proxy_header_is_judged_by_its_address() {
        let settings = settings(&["127.0.0.0/8", "203.0.113.9", "10.0.0.5"], &["10.0.0.0/8"]);
        for (peer, lines, (text, is_admin)) in [
            ("named 203.0.113.9", "", client("203.0.113.9:5000", true)),
            ("named ::ffff:203.0.113.9", "", client("203.0.113.9:5000", true)),
            ("named 192.0.2.7", "", client("192.0.2.7:5000", false)),
            // It is not trusted, so what it says of others is not believed.
            (
                "named 203.0.113.9",
                "X-Forwarded-For: 10.0.0.5\r\n",
                client("203.0.113.9:5000", false),
            ),
            ("named 203.0.113.9", "Forwarded: for=10.0.0.5\r\n", client("203.0.113.9:5000", false)),
            // A trusted address that was named is the client, unless it names another one.
            ("named 10.0.0.5", "", client("10.0.0.5:5000", true)),
            ("named 10.0.0.6", "", client("10.0.0.6:5000", false)),
            ("named 10.0.0.5", "X-Forwarded-For:\r\n", client("10.0.0.5:5000", false)),
            ("named 10.0.0.6", "X-Forwarded-For: 203.0.113.9\r\n", client("203.0.113.9", true)),
            ("named 10.0.0.5", "X-Forwarded-For: 192.0.2.7\r\n", client("192.0.2.7", false)),
            // Claims, and nothing: never an admin.
            ("named 127.0.0.1", "", client("unknown", false)),
            ("named ::1", "", client("unknown", false)),
            ("named nothing", "", client("unknown", false)),
            ("named nothing", "X-Forwarded-For: 203.0.113.9\r\n", client("unknown", false)),
            // The header said that the connection is the proxy's own.
            ("10.0.0.5", "", client("10.0.0.5:5000", false)),
        ] {
            assert_eq!(judged(&settings, peer, lines), client(&text, is_admin), "{peer} {lines}");
        }
    }

    #[test]
    fn headers_are_expected_of_trusted_proxies_on_tcp() {
        let mut settings = settings(&[], &["10.0.0.0/8", "unix"]);
        let peer = |ip: &str| Peer::from(SocketAddr::new(ip.parse().unwrap(), 1));
        assert!(settings.expects_header(peer("10.1.2.3")));
        assert!(settings.expects_header(peer("::ffff:10.1.2.3")));
        assert!(
            !settings.expects_header(peer("192.0.2.7")) && !settings.expects_header(Peer::Unix)
        );
        settings.proxy_protocol = false;
        assert!(!settings.expects_header(peer("10.1.2.3")));
    }

    #[test]
    fn at_the_address_for_admins_the_client_is_not_asked() {
        let settings = settings(&[], &["10.0.0.9"]);
        for (peer, lines) in
            [("192.0.2.7", ""), ("10.0.0.9", ""), ("192.0.2.7", "X-Forwarded-For: 192.0.2.8\r\n")]
        {
            let lines = format!("Host: localhost\r\n{lines}");
            assert!(judged_at(AcceptedOn::Admins, &settings, peer, &lines).1, "{peer} {lines}");
        }
    }

    #[test]
    fn trusted_proxies_name_the_client() {
        let settings = settings(&["192.0.2.0/24"], &["10.0.0.0/8", "2001:db8::/32"]);
        for (peer, forwarded, expected) in [
            ("10.0.0.9", "192.0.2.7", client("192.0.2.7", true)),
            ("10.0.0.9", "198.51.100.1", client("198.51.100.1", false)),
            ("10.0.0.9", "192.0.2.7, 10.1.2.3", client("192.0.2.7", true)),
            ("10.0.0.9", "192.0.2.7, 198.51.100.1", client("198.51.100.1", false)),
            ("10.0.0.9", "192.0.2.7\r\nX-Forwarded-For: 10.1.2.3", client("192.0.2.7", true)),
            ("10.0.0.9", "192.0.2.7:4711", client("192.0.2.7", true)),
            ("10.0.0.9", "::ffff:192.0.2.7", client("192.0.2.7", true)),
            ("2001:db8::9", "[2001:db9::7]:4711", client("2001:db9::7", false)),
            ("10.0.0.9", "10.1.2.3", client("10.1.2.3", false)),
            ("10.0.0.9", "127.0.0.1", client("unknown", false)),
            ("10.0.0.9", "192.0.2.7, ::1", client("unknown", false)),
            ("10.0.0.9", "127.0.0.1, 192.0.2.7", client("192.0.2.7", true)),
            ("10.0.0.9", "unknown", client("unknown", false)),
            ("10.0.0.9", "192.0.2.7, _hidden", client("unknown", false)),
            ("10.0.0.9", "\u{e4}", client("unknown", false)),
            ("192.0.2.9", "192.0.2.7", client("192.0.2.9:5000", false)),
        ] {
            let lines = format!("X-Forwarded-For: {forwarded}\r\n");
            assert_eq!(judged(&settings, peer, &lines), expected, "{peer} {forwarded}");
        }
        // A proxy that hides its client.
        let hidden = settings.admin_from.clone();
        let settings = Settings { trusted_proxies: hidden, ..settings };
        assert_eq!(judged(&settings, "192.0.2.9", ""), client("192.0.2.9:5000", false));
        let lines = "Forwarded: for=192.0.2.7\r\n";
        assert_eq!(judged(&settings, "192.0.2.9", lines), client("192.0.2.9:5000", false));
    }

    #[test]
    fn the_host_that_a_trusted_proxy_was_asked_for_counts() {
        let settings = settings(&["192.0.2.0/24"], &["10.0.0.9"]);
        let asked_for = |host: &str| {
            let lines = format!("X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Host: {host}\r\n");
            judged(&settings, "10.0.0.9", &lines).1
        };
        assert!(asked_for("gateway.example"));
        assert!(!asked_for("rebound.example"));
    }

    #[test]
    fn rules_are_read_and_match() {
        for (rule, yes, no) in [
            ("192.0.2.7", &["192.0.2.7", "::ffff:192.0.2.7"][..], &["192.0.2.8", "::1"][..]),
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255"], &["11.0.0.0", "9.255.255.255"]),
            ("10.1.2.3/8", &["10.9.9.9"], &["11.1.2.3"]),
            ("0.0.0.0/0", &["192.0.2.7"], &["2001:db8::1"]),
            ("::/0", &["2001:db8::1"], &["192.0.2.7"]),
            ("fe80::/10", &["fe80::1", "febf::1"], &["fec0::1"]),
            ("unix", &[], &["127.0.0.1"]),
        ] {
            let read = PeerRule::parse(rule).unwrap();
            assert_eq!(read.to_string(), rule);
            for ip in yes {
                assert!(read.matches(ip.parse().unwrap()), "{rule} should match {ip}");
            }
            for ip in no {
                assert!(!read.matches(ip.parse().unwrap()), "{rule} should not match {ip}");
            }
        }
        for bad in
            ["", "localhost", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1"]
        {
            let why = PeerRule::parse(bad).unwrap_err();
            assert!(why.contains("is not an address"), "{bad}: {why}");
        }
        assert_eq!(parse_server_name("Gateway.Example"), Ok("gateway.example".to_owned()));
        for bad in ["", "https://gateway.example", "gateway.example:8000", "*.example", "a b"] {
            assert!(parse_server_name(bad).is_err(), "{bad}");
        }
    }
}
