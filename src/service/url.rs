//! Path templates such as `/ws/{name}`, and backend URLs such as
//! `ws://host:port/path/{name}?query`.
//!
//! Nothing is percent-decoded. A segment goes to the backend exactly as the client wrote it, so the
//! gateway and the backend cannot read one path in two ways. For the same reason a name never
//! matches `.` or `..`, however it is encoded ([`crate::proto::path`]): a backend that normalizes
//! paths would leave the folder that its route is meant for.

#![expect(clippy::indexing_slicing, reason = "positions come from a search in the same text")]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use super::name::Name;
use crate::proto::path::is_misleading;

/// A path with names in it, such as `/ws/output/{task_id}`. `{name}` matches one whole segment that
/// is not empty; `{name...}`, which is always last, matches the rest of the path, slashes included,
/// even if it is empty.
///
/// ```
/// use aivtuber_gateway::service::url::Template;
///
/// let template = Template::parse("/ws/output/{task_id}").unwrap();
/// assert!(template.match_path("/ws/output/7").is_some());
/// assert!(template.match_path("/ws/output/").is_none());
/// assert!(Template::parse("/ws/output/task-{id}").is_err());
/// let api = Template::parse("/api/{rest...}").unwrap();
/// assert_eq!(api.match_path("/api/v1/items").unwrap().value("rest"), Some("v1/items"));
/// assert!(api.match_path("/api").is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    pieces: Box<[TemplatePiece]>,
    names: Arc<[Box<str>]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePiece {
    Text(Box<str>),
    /// An index into `Template::names`.
    Name(usize),
    /// The same, for a name that matches everything to the end of the path.
    Rest(usize),
}

impl Template {
    /// Parses a route's path.
    ///
    /// # Errors
    /// A sentence about `text` that can follow "route `input`: ".
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("the path `{text}` must begin with `/`"));
        }
        if let Some(sign) = text.chars().find(|sign| matches!(sign, '?' | '#')) {
            return Err(format!(
                "the path `{text}` must not hold `{sign}`: a route is chosen by its path alone"
            ));
        }
        let template = Self::parse_loosely("path", text)?;
        let last_at = text.rfind('/').unwrap_or_default() + 1;
        if let Some(name) = template.rest_name()
            && text[last_at..] != format!("{{{name}...}}")
        {
            return Err(format!(
                "in the path `{text}`, `{{{name}...}}` must be the last segment, and all of it"
            ));
        }
        for segment in text[1..].split('/') {
            if segment.contains(['{', '}'])
                && (!segment.starts_with('{') || segment.find('}') != Some(segment.len() - 1))
            {
                return Err(format!(
                    "in the path `{text}`, `{segment}` mixes a name and text: a name is a whole segment"
                ));
            }
            if is_misleading(segment) {
                return Err(format!(
                    "the path `{text}` holds the segment `{segment}`, which no client sends"
                ));
            }
        }
        if text.contains("//") {
            return Err(format!("the path `{text}` holds `//`: a segment is missing"));
        }
        Ok(template)
    }

    /// Returns the values of the names if `path`, without its query, matches. Values are not
    /// decoded.
    pub fn match_path<'p>(&self, path: &'p str) -> Option<Params<'p>> {
        let mut values = Vec::new();
        let mut rest = path;
        for piece in &self.pieces {
            match piece {
                TemplatePiece::Text(text) => rest = rest.strip_prefix(&**text)?,
                TemplatePiece::Name(_) => {
                    let (value, after) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                    if value.is_empty() || is_misleading(value) {
                        return None;
                    }
                    values.push(value);
                    rest = after;
                }
                TemplatePiece::Rest(_) => {
                    if is_misleading(rest) {
                        return None;
                    }
                    values.push(rest);
                    rest = "";
                }
            }
        }
        rest.is_empty().then(|| Params { names: Arc::clone(&self.names), values })
    }

    /// The text with each name replaced by its value. A name that `params` lacks is replaced by
    /// nothing; [`route::check`](super::route::check) makes sure that there is none.
    pub fn fill(&self, params: &Params) -> String {
        let mut filled = String::with_capacity(self.text.len() + 32);
        self.fill_into(&mut filled, params, |filled, value| filled.push_str(value));
        filled
    }

    /// The names in it, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// The name that matches the rest of the path, if there is one.
    pub fn rest_name(&self) -> Option<&str> {
        self.pieces.iter().find_map(|piece| match piece {
            TemplatePiece::Rest(index) => Some(&*self.names[*index]),
            TemplatePiece::Text(_) | TemplatePiece::Name(_) => None,
        })
    }

    /// Whether this template matches every path that `other` matches.
    pub(super) fn covers(&self, other: &Template) -> bool {
        let (mut ours, mut theirs) = (self.text.split('/'), other.text.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(ours), Some(_)) if is_rest(ours) => return true,
                (Some(_), Some(theirs)) if is_rest(theirs) => return false,
                (Some(ours), Some(theirs)) if is_name(ours) && !theirs.is_empty() => {}
                (Some(ours), Some(theirs)) if ours == theirs => {}
                _ => return false,
            }
        }
    }

    /// Whether a segment holds a name and something else.
    fn has_mixed_segments(&self) -> bool {
        let is_whole = |segment: &str| {
            segment.starts_with('{') && segment.find('}') == Some(segment.len() - 1)
        };
        self.text.split('/').any(|segment| segment.contains('{') && !is_whole(segment))
    }

    /// Parses the path or the query of a backend URL, where a name may be a part of a segment:
    /// these are filled and never matched.
    fn parse_filled(what: &str, text: &str) -> Result<Self, String> {
        let template = Self::parse_loosely(what, text)?;
        match template.rest_name() {
            Some(name) => Err(format!(
                "the {what} `{text}` has `{{{name}...}}`: in a backend URL, write `{{{name}}}`"
            )),
            None => Ok(template),
        }
    }

    fn parse_loosely(what: &str, text: &str) -> Result<Self, String> {
        if let Some(sign) = text.chars().find(|sign| !sign.is_ascii_graphic()) {
            return Err(format!(
                "the {what} `{}` holds {sign:?}: only visible ASCII is allowed, anything else must be percent-encoded",
                text.escape_debug()
            ));
        }
        let mut pieces = Vec::new();
        let mut names: Vec<Box<str>> = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            if rest.as_bytes()[at] == b'}' {
                return Err(format!("the {what} `{text}` has a `}}` without a `{{` before it"));
            }
            let (before, after) = (&rest[..at], &rest[at + 1..]);
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!("the {what} `{text}` has a `{{` that is not closed"));
            };
            let (name, is_rest) = match name.strip_suffix("...") {
                Some(name) => (name, true),
                None => (name, false),
            };
            if name.is_empty() {
                return Err(format!("the {what} `{text}` has an empty name `{{}}`"));
            }
            if let Some(sign) =
                name.chars().find(|sign| !sign.is_ascii_alphanumeric() && *sign != '_')
            {
                return Err(format!(
                    "the name `{{{name}}}` in the {what} `{text}` holds `{sign}`: letters, digits and `_` are allowed"
                ));
            }
            if names.iter().any(|known| **known == *name) {
                return Err(format!("the {what} `{text}` has the name `{{{name}}}` twice"));
            }
            if !before.is_empty() {
                pieces.push(TemplatePiece::Text(before.into()));
            }
            pieces.push(match is_rest {
                true => TemplatePiece::Rest(names.len()),
                false => TemplatePiece::Name(names.len()),
            });
            names.push(name.into());
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(TemplatePiece::Text(rest.into()));
        }
        Ok(Self { text: text.into(), pieces: pieces.into(), names: names.into() })
    }

    fn fill_into(
        &self,
        filled: &mut String,
        params: &Params,
        write_value: impl Fn(&mut String, &str),
    ) {
        for piece in &self.pieces {
            match piece {
                TemplatePiece::Text(text) => filled.push_str(text),
                TemplatePiece::Name(index) | TemplatePiece::Rest(index) => {
                    write_value(filled, params.value(&self.names[*index]).unwrap_or_default())
                }
            }
        }
    }
}

/// The text as it is in the configuration.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn is_name(segment: &str) -> bool {
    segment.starts_with('{')
}

fn is_rest(segment: &str) -> bool {
    segment.ends_with("...}")
}

/// The values of a template's names in one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params<'p> {
    names: Arc<[Box<str>]>,
    values: Vec<&'p str>,
}

impl<'p> Params<'p> {
    /// What `name` matched, not decoded.
    pub fn value(&self, name: &str) -> Option<&'p str> {
        let index = self.names.iter().position(|known| **known == *name)?;
        self.values.get(index).copied()
    }

    /// What the name for the rest of the path matched. Only for templates that have one.
    pub fn rest(&self) -> &'p str {
        self.values.last().copied().unwrap_or_default()
    }
}

/// Where a backend listens: `ws://host:port/path/{name}?query`, or `wss://` with TLS, or on a Unix
/// socket `ws+unix:///run/a.sock:/path`. For plain HTTP: `http://`, `https://`, `http+unix://`.
///
/// The default port is 80, with TLS 443, the default path `/`. Names may be anywhere in path and
/// query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUrl {
    text: Box<str>,
    /// Not an `Rc`, because a background thread reads the configuration.
    public_text: Arc<str>,
    protocol: BackendProtocol,
    security: BackendSecurity,
    /// The path of a Unix socket; host and port are then those of the default.
    socket: Option<Box<Path>>,
    host: Box<str>,
    port: u16,
    path: Template,
    query: Option<Template>,
}

/// What a backend is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendProtocol {
    /// A WebSocket: `ws://`, `wss://`, `ws+unix://`.
    WebSocket,
    /// Plain HTTP: `http://`, `https://`, `http+unix://`.
    Http,
}

/// How the connection to a backend is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendSecurity {
    /// Not at all: `ws://`, `http://`.
    Plain,
    /// By TLS, with a certificate that is verified: `wss://`, `https://`.
    Tls,
    /// The same, with any certificate, on a route with `insecure = true`.
    UnverifiedTls,
}

/// What a backend URL may begin with.
const SCHEMES: &str = "`ws://`, `wss://`, `ws+unix://`, `http://`, `https://` or `http+unix://`";

impl BackendUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// A sentence that names the URL and what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("`{text}` must begin with {SCHEMES}"));
        };
        use BackendProtocol::{Http, WebSocket};
        let (protocol, security, is_unix) = match scheme.to_ascii_lowercase().as_str() {
            "ws" => (WebSocket, BackendSecurity::Plain, false),
            "wss" => (WebSocket, BackendSecurity::Tls, false),
            "ws+unix" => (WebSocket, BackendSecurity::Plain, true),
            "http" => (Http, BackendSecurity::Plain, false),
            "https" => (Http, BackendSecurity::Tls, false),
            "http+unix" => (Http, BackendSecurity::Plain, true),
            _ => {
                return Err(format!("`{text}` begins with `{scheme}://`, and not with {SCHEMES}"));
            }
        };
        if rest.contains('#') {
            return Err(format!(
                "`{text}` has a fragment (`#…`), which is never sent to a backend"
            ));
        }
        let (socket, (authority, target)) = match is_unix {
            true => {
                let (socket, target) = rest.split_once(':').unwrap_or((rest, ""));
                check_socket(socket).map_err(|why| format!("`{text}`: {why}"))?;
                (Some(Path::new(socket).into()), ("localhost", target))
            }
            false => (None, rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()))),
        };
        if let Some((_, place)) = authority.rsplit_once('@') {
            // The text is not repeated: it may hold a password.
            return Err(format!(
                "the URL of the backend at `{place}` has a user or password in it, which is not supported"
            ));
        }
        let (host, port) = split_authority(authority).map_err(|why| format!("`{text}`: {why}"))?;
        let port = port.unwrap_or(security.default_port());
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(Template::parse_filled("query", query)?)),
            None => (target, None),
        };
        let path = Template::parse_filled("path", if path.is_empty() { "/" } else { path })?;
        let public_text = match text.split_once('?') {
            Some((before, _)) => format!("{before}?…").into(),
            None => text.into(),
        };
        let (text, host) = (text.into(), host.into());
        Ok(Self { text, public_text, protocol, security, socket, host, port, path, query })
    }

    /// The same, with any certificate. Changes nothing without TLS.
    #[must_use]
    pub fn without_verification(mut self) -> Self {
        if self.security == BackendSecurity::Tls {
            self.security = BackendSecurity::UnverifiedTls;
        }
        self
    }

    /// What the backend is asked for.
    pub fn protocol(&self) -> BackendProtocol {
        self.protocol
    }

    /// How the connection is protected.
    pub fn security(&self) -> BackendSecurity {
        self.security
    }

    /// The path of the Unix socket, if it is one.
    pub fn unix_path(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host, if it is an IP address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Host and port, for a lookup.
    pub fn name(&self) -> Name {
        Name { host: self.host.clone().into(), port: self.port }
    }

    /// Host and port in the form of a `Host` header: brackets around an IPv6 address, no port that
    /// is the default.
    pub fn authority(&self) -> String {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        match self.port {
            port if port == self.security.default_port() => {
                format!("{open}{}{close}", self.host)
            }
            port => format!("{open}{}{close}:{port}", self.host),
        }
    }

    /// The text for logs and reports: the query is replaced by `…`, because it may hold a token.
    pub fn public_text(&self) -> &str {
        &self.public_text
    }

    /// Whether the backend might read its path as another one once these values are in it: none of
    /// them is misleading by itself, but a value may be so together with what is beside it.
    pub fn is_misled_by(&self, params: &Params<'_>) -> bool {
        self.path.has_mixed_segments()
            && is_misleading(&self.path.fill(params))
            && !is_misleading(&self.path.text)
    }

    /// The same as [`BackendUrl::public_text`], to be kept.
    pub fn shared_text(&self) -> Arc<str> {
        Arc::clone(&self.public_text)
    }

    /// The names in path and query.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.path.names().chain(self.query.iter().flat_map(Template::names))
    }
}

impl BackendSecurity {
    fn default_port(self) -> u16 {
        if self == BackendSecurity::Plain { 80 } else { 443 }
    }
}

/// The text as it is in the configuration, query included: for `--print-config`, and to tell
/// backends apart. See [`BackendUrl::public_text`].
impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The path of a Unix socket in a URL.
fn check_socket(path: &str) -> Result<(), String> {
    if !path.starts_with('/') || path.ends_with('/') || path.contains('?') {
        return Err("an absolute path of a socket is expected, then `:` and the path of the \
                    request: `ws+unix:///run/input.sock:/ws/input`"
            .into());
    }
    Ok(())
}

/// Host and port of an authority; `None` where no port is written.
pub(super) fn split_authority(authority: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("the `[` of its host is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| format!("`[{host}]` is not an IPv6 address"))?;
        match after.strip_prefix(':') {
            None if !after.is_empty() => {
                return Err(format!("`{after}` stands between its host and its path"));
            }
            port => (host, port),
        }
    } else {
        match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(format!("an IPv6 address is written in brackets: `[{authority}]`"));
            }
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("its host is missing".into());
    }
    if !authority.starts_with('[') {
        check_host_name(host)?;
    }
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            match digits.parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err(format!("its port `{digits}` must be 1 to 65535")),
            }
        }
        Some(other) => return Err(format!("its port `{other}` must be 1 to 65535")),
    };
    Ok((host, port))
}

fn check_host_name(host: &str) -> Result<(), String> {
    if let Some(sign) =
        host.chars().find(|sign| !sign.is_ascii_alphanumeric() && !matches!(sign, '.' | '-' | '_'))
    {
        return Err(format!(
            "its host `{}` holds {sign:?}: letters, digits, `.`, `-` and `_` are allowed",
            host.escape_debug()
        ));
    }
    // A name whose last label is a number is an IPv4 address (WHATWG URL, "ends in a number").
    // Without this check the system's resolver would guess which.
    let last = host.strip_suffix('.').unwrap_or(host).rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) && host.parse::<Ipv4Addr>().is_err() {
        return Err(format!("its host `{host}` is not an IPv4 address"));
    }
    Ok(())
}

/// The request target for a backend: the path of its URL with the names filled in, then the query
/// of its URL, then the client's.
///
/// `query` is what follows the client's `?`; an empty one keeps its `?`. In the URL's own query, a
/// value is escaped where it would otherwise begin another parameter.
pub fn upstream_target(url: &BackendUrl, params: &Params, query: Option<&str>) -> String {
    let mut target = url.path.fill(params);
    if let Some(own) = &url.query {
        target.push('?');
        own.fill_into(&mut target, params, push_query_value);
    }
    if let Some(query) = query {
        target.push(if url.query.is_some() { '&' } else { '?' });
        target.push_str(query);
    }
    target
}

/// The request target for a probe of the backend: as for a client, with the nil UUID for every
/// name.
pub fn probe_target(url: &BackendUrl) -> String {
    let names: Arc<[Box<str>]> = url.names().map(Into::into).collect();
    let values = vec!["00000000-0000-0000-0000-000000000000"; names.len()];
    upstream_target(url, &Params { names, values }, None)
}

fn push_query_value(target: &mut String, value: &str) {
    for sign in value.chars() {
        match sign {
            '&' => target.push_str("%26"),
            ';' => target.push_str("%3B"),
            '=' => target.push_str("%3D"),
            '+' => target.push_str("%2B"),
            _ => target.push(sign),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::parse(text).unwrap()
    }

    #[test]
    fn a_name_matches_one_whole_segment() {
        let output = template("/ws/output/{task_id}");
        assert_eq!(output.match_path("/ws/output/7").unwrap().value("task_id"), Some("7"));
        assert_eq!(output.match_path("/ws/output/a%2Fb").unwrap().value("task_id"), Some("a%2Fb"));
        for path in [
            "/ws/output/",
            "/ws/output",
            "/ws/output/7/",
            "/ws/output/7/8",
            "/ws/outputs/7",
            "ws/output/7",
            "/",
            "",
        ] {
            assert_eq!(output.match_path(path), None, "{path}");
        }
        let two = template("/a/{x}/b/{y_2}/");
        let params = two.match_path("/a/1/b/2/").unwrap();
        assert_eq!(
            (params.value("x"), params.value("y_2"), params.value("z")),
            (Some("1"), Some("2"), None)
        );
        assert_eq!(two.match_path("/a//b/2/"), None);
        assert_eq!(two.names().collect::<Vec<_>>(), ["x", "y_2"]);
        assert!(template("/").match_path("/").is_some());
        assert_eq!(two.to_string(), "/a/{x}/b/{y_2}/");
    }

    #[test]
    fn a_name_never_matches_dots() {
        let output = template("/ws/output/{task_id}");
        for dots in [".", "..", "%2e", "%2E.", ".%2e", "%2e%2E", "..%2f", "..%3bx", "%00"] {
            assert_eq!(output.match_path(&format!("/ws/output/{dots}")), None, "{dots}");
        }
        for fine in ["...", ".a", "%2f", "2e"] {
            assert!(output.match_path(&format!("/ws/output/{fine}")).is_some(), "{fine}");
        }
    }

    #[test]
    fn a_rest_matches_all_that_follows_its_slash() {
        let api = template("/api/{version}/{rest...}");
        for (path, rest) in [
            ("/api/1/", ""),
            ("/api/1/a", "a"),
            ("/api/1/a/b/", "a/b/"),
            ("/api/1//a", "/a"),
            ("/api/1/a%2Fb;c", "a%2Fb;c"),
        ] {
            assert_eq!(api.match_path(path).unwrap().value("rest"), Some(rest), "{path}");
        }
        for path in ["/api/1", "/api//a", "/api/", "/apis/1/a", "/api/1/a/../b", "/api/1/%2e%2E%2f"]
        {
            assert_eq!(api.match_path(path), None, "{path}");
        }
        let all = template("/{file...}");
        for (path, rest) in [("/", ""), ("/a", "a"), ("//a", "/a")] {
            assert_eq!(all.match_path(path).unwrap().value("file"), Some(rest), "{path}");
        }
        assert_eq!((all.rest_name(), template("/{a}").rest_name()), (Some("file"), None));
        assert_eq!(all.to_string(), "/{file...}");
    }

    #[test]
    fn a_template_covers_what_matches_nothing_else() {
        for (one, other, expected) in [
            ("/a", "/a", true),
            ("/{x}", "/a", true),
            ("/{x}", "/{y}", true),
            ("/{x}", "/", false),
            ("/a", "/{x}", false),
            ("/a/{x...}", "/a/", true),
            ("/a/{x...}", "/a/b", true),
            ("/a/{x...}", "/a/{y}/{z...}", true),
            ("/a/{x...}", "/a/{y...}", true),
            ("/a/{x...}", "/a", false),
            ("/{x...}", "/", true),
            ("/{x}/{y...}", "/{x...}", false),
            ("/a/{x}", "/a/{y...}", false),
            ("/{a}/{x...}", "/b/{x...}", true),
            ("/b/{x...}", "/{a}/{x...}", false),
        ] {
            assert_eq!(template(one).covers(&template(other)), expected, "{one} {other}");
        }
    }

    #[test]
    fn malformed_templates_are_refused_with_a_reason() {
        for (text, why) in [
            ("", "must begin with `/`"),
            ("ws/input", "must begin with `/`"),
            ("/ws/{id", "not closed"),
            ("/ws/id}", "without a `{`"),
            ("/ws/{}", "empty name"),
            ("/ws/{a b}", "visible ASCII"),
            ("/ws/{a-b}", "holds `-`"),
            ("/{a}/{a}", "twice"),
            ("/{{a}}", "holds `{`"),
            ("/x{a}", "whole segment"),
            ("/{a}x", "whole segment"),
            ("/{a}{b}", "whole segment"),
            ("/{...}", "empty name"),
            ("/{a..}", "holds `.`"),
            ("/{a...}/b", "must be the last segment"),
            ("/{a...}/", "must be the last segment"),
            ("/x{a...}", "must be the last segment"),
            ("/{a...}/{b...}", "must be the last segment"),
            ("/{a}/{a...}", "twice"),
            ("/ws?x=1", "must not hold `?`"),
            ("/ws#x", "must not hold `#`"),
            ("/wś", "visible ASCII"),
            ("/ws//input", "segment is missing"),
            ("/ws/../input", "no client sends"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_template_is_filled_with_values_of_another() {
        let params = template("/ws/{kind}/{id}").match_path("/ws/output/%41").unwrap();
        assert_eq!(template("/{id}/x/{kind}").fill(&params), "/%41/x/output");
        assert_eq!(template("/none").fill(&params), "/none");
    }

    #[test]
    fn backend_urls_are_parsed() {
        for (text, host, port, authority) in [
            ("ws://localhost:8001/ws/input", "localhost", 8001, "localhost:8001"),
            ("WS://Backend_1.example/", "Backend_1.example", 80, "Backend_1.example"),
            ("ws://127.0.0.1", "127.0.0.1", 80, "127.0.0.1"),
            ("ws://[::1]:9/x", "::1", 9, "[::1]:9"),
            ("ws://[fe80::2]", "fe80::2", 80, "[fe80::2]"),
            ("ws://a:80?x=1", "a", 80, "a"),
        ] {
            let url = BackendUrl::parse(text).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!((url.host(), url.port(), url.authority().as_str()), (host, port, authority));
            assert_eq!(url.to_string(), text);
        }
        assert_eq!(BackendUrl::parse("ws://[::1]").unwrap().ip(), Some("::1".parse().unwrap()));
        assert_eq!(
            BackendUrl::parse("ws://10.0.0.1:5").unwrap().ip(),
            Some("10.0.0.1".parse().unwrap())
        );
        assert_eq!(BackendUrl::parse("ws://localhost").unwrap().ip(), None);
    }

    #[test]
    fn wss_is_tls_with_a_port_of_its_own() {
        let parsed = |text| BackendUrl::parse(text).unwrap();
        let url = parsed("WSS://a.example/x");
        assert_eq!((url.security(), url.port()), (BackendSecurity::Tls, 443));
        assert_eq!(url.authority(), "a.example");
        assert_eq!(parsed("wss://a.example:80").authority(), "a.example:80");
        assert_eq!(parsed("ws://a.example:443").authority(), "a.example:443");
        let unverified = url.clone().without_verification();
        assert_eq!(unverified.security(), BackendSecurity::UnverifiedTls);
        assert_ne!(unverified, url, "they are two backends");
        assert_eq!(parsed("ws://a").without_verification(), parsed("ws://a"));
    }

    #[test]
    fn a_backend_may_be_a_unix_socket() {
        let url = BackendUrl::parse("ws+unix:///run/a.sock:/ws/{id}?k={id}").unwrap();
        assert_eq!(url.unix_path(), Some(Path::new("/run/a.sock")));
        assert_eq!(url.authority(), "localhost");
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(probe_target(&url), format!("/ws/{nil}?k={nil}"));
        assert_eq!(probe_target(&BackendUrl::parse("ws+unix:///run/a.sock").unwrap()), "/");
        assert_eq!(BackendUrl::parse("ws://a").unwrap().unix_path(), None);
    }

    #[test]
    fn malformed_backend_urls_are_refused_with_a_reason() {
        for (text, why) in [
            ("", "must begin with `ws://`, `wss://`, `ws+unix://`, `http://`,"),
            ("localhost:8001", "must begin with `ws://`"),
            ("ftp://localhost", "begins with `ftp://`, and not with `ws://`"),
            ("ws+unix://a.sock:/x", "absolute path"),
            ("ws+unix:///a/", "absolute path"),
            ("ws+unix:///a?b", "absolute path"),
            ("ws+unix:///a:/{x", "not closed"),
            ("ws://", "host is missing"),
            ("ws://:80/", "host is missing"),
            ("ws:///path", "host is missing"),
            ("ws://a:0", "1 to 65535"),
            ("ws://a:65536", "1 to 65535"),
            ("ws://a:", "1 to 65535"),
            ("ws://a:+5", "1 to 65535"),
            ("ws://::1/", "in brackets"),
            ("ws://[::1", "not closed"),
            ("ws://[::g]", "not an IPv6 address"),
            ("ws://[::1]x", "between its host"),
            ("ws://256.1.1.1", "not an IPv4 address"),
            ("ws://1", "not an IPv4 address"),
            ("ws://a b/", "are allowed"),
            ("ws://höst/", "are allowed"),
            ("ws://a/#x", "fragment"),
            ("ws://a/ x", "visible ASCII"),
            ("ws://a/{x", "not closed"),
            ("ws://a/?t={}", "empty name"),
            ("ws://a/{x...}", "in a backend URL, write `{x}`"),
            ("ws://a/?t={x...}", "in a backend URL, write `{x}`"),
        ] {
            let error = BackendUrl::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let error = BackendUrl::parse("ws://me:secret@a/").unwrap_err();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_request_target_joins_path_and_both_queries() {
        let params = template("/ws/output/{task_id}").match_path("/ws/output/a%20b&c=d").unwrap();
        for (url, query, target) in [
            ("ws://h/ws/output/{task_id}", None, "/ws/output/a%20b&c=d"),
            ("ws://h/ws/output/{task_id}", Some("from=3&x"), "/ws/output/a%20b&c=d?from=3&x"),
            ("ws://h/x", Some(""), "/x?"),
            ("ws://h", None, "/"),
            ("ws://h/t-{task_id}.ws", None, "/t-a%20b&c=d.ws"),
            ("ws://h?task={task_id}", Some("a=1"), "/?task=a%20b%26c%3Dd&a=1"),
            ("ws://h/p?k=v", None, "/p?k=v"),
        ] {
            assert_eq!(
                upstream_target(&BackendUrl::parse(url).unwrap(), &params, query),
                target,
                "{url}"
            );
        }
    }

    #[test]
    fn a_rest_is_passed_on_with_its_slashes() {
        let route = template("/api/{rest...}");
        for (url, path, target) in [
            ("ws://h/{rest}", "/api/", "/"),
            ("ws://h/{rest}", "/api/a/b%2Fc/", "/a/b%2Fc/"),
            ("ws://h/v1/{rest}", "/api//a;b=c", "/v1//a;b=c"),
            ("ws://h/v1/{rest}/x", "/api/", "/v1//x"),
            ("ws://h/?p={rest}", "/api/a/b&c=d", "/?p=a/b%26c%3Dd"),
            ("ws://h/x", "/api/a", "/x"),
        ] {
            let params = route.match_path(path).unwrap();
            let url = BackendUrl::parse(url).unwrap();
            assert_eq!(upstream_target(&url, &params, None), target);
            assert!(!url.is_misled_by(&params), "{target}");
        }
    }

    #[test]
    fn values_do_not_become_dots_beside_what_a_backend_has_around_them() {
        let route = template("/{a}/{b}");
        for (url, path, is_misled) in [
            ("ws://h/{a}{b}", "/%2/e%2e", true),
            ("ws://h/{a}{b}", "/%2/f..", true),
            ("ws://h/{a}{b}", "/x/..y", false),
            ("ws://h/{a}e/{b}", "/.%2/x", true),
            ("ws://h/..{a}/{b}", "/;x/y", true),
            ("ws://h/t-{a}.ws/{b}", "/../x", false),
            ("ws://h/../t-{a}/{b}", "/x/y", false),
            ("ws://h/{a}/{b}?x={a}", "/%2/e%2e", false),
        ] {
            let Some(params) = route.match_path(path) else {
                assert!(!is_misled, "{path} matches nothing");
                continue;
            };
            let url = BackendUrl::parse(url).unwrap();
            assert_eq!(url.is_misled_by(&params), is_misled, "{url} {path}");
        }
        let route = template("/{rest...}");
        for (url, path, is_misled) in [
            ("ws://h/.{rest}", "/", true),
            ("ws://h/.{rest}", "/./a", true),
            ("ws://h/.{rest}", "/%2", false),
            ("ws://h/{rest}e", "/a/%2", true),
            ("ws://h/{rest}.", "/a/", true),
            ("ws://h/a{rest}", "/b/c", false),
        ] {
            let Some(params) = route.match_path(path) else {
                assert!(is_misled, "{path} matches nothing");
                continue;
            };
            let url = BackendUrl::parse(url).unwrap();
            assert_eq!(url.is_misled_by(&params), is_misled, "{url} {path}");
        }
    }

    #[test]
    fn a_probe_has_a_value_for_each_name() {
        let target = |url| probe_target(&BackendUrl::parse(url).unwrap());
        let nil = "00000000-0000-0000-0000-000000000000";
        assert_eq!(target("ws://h/x?k=v"), "/x?k=v");
        assert_eq!(target("ws://h/a/{x}/{y}?z={x}"), format!("/a/{nil}/{nil}?z={nil}"));
    }

    #[test]
    fn the_query_of_a_url_is_not_shown() {
        assert_eq!(BackendUrl::parse("ws://h/p?token=s").unwrap().public_text(), "ws://h/p?…");
        assert_eq!(BackendUrl::parse("ws://h/p").unwrap().public_text(), "ws://h/p");
    }
}
