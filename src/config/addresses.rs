//! Addresses: where the gateway listens, and where Redis is.

#![expect(
    clippy::disallowed_methods,
    reason = "configuration is read at start and by a background thread"
)]
#![expect(
    clippy::disallowed_types,
    reason = "finds out which addresses are local, at start and on a background thread"
)]

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::str::FromStr;

use super::problems::BadItem;
use super::settings::Config;
use super::values::each;
use crate::net::unix::UnixPath;
use crate::reactor::listeners::ListenOn;
use crate::service::link::{self, Server};

/// What addresses with TLS begin with.
const TLS: &str = "tls://";

/// Sets `server.listen`.
pub(super) fn set_listen(config: &mut Config, texts: &[String]) -> Result<(), BadItem> {
    if texts.is_empty() {
        return Err(BadItem::new(0, "at least one address is needed, such as \"0.0.0.0:8000\""));
    }
    config.reactor.listen = resolve_all(texts, ListenOn::Tls)?;
    Ok(())
}

/// Sets `server.admin_listen`.
pub(super) fn set_admin_listen(config: &mut Config, texts: &[String]) -> Result<(), BadItem> {
    if let Some(index) = texts.iter().position(|text| text.trim().starts_with(TLS)) {
        return Err(BadItem::new(index, "TLS is not spoken on addresses for admins"));
    }
    config.reactor.admin = resolve_all(texts, ListenOn::Tls)?;
    Ok(())
}

/// Reads places to listen on. Those that begin with `tls://` become `with_tls`.
fn resolve_all(
    texts: &[String],
    with_tls: fn(SocketAddr) -> ListenOn,
) -> Result<Vec<ListenOn>, BadItem> {
    let mut all: Vec<ListenOn> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let text = text.trim();
        let found = match (text.strip_prefix(TLS), text.strip_prefix("unix:")) {
            (Some(at), _) => resolve_listen(at).map(|all| all.into_iter().map(with_tls).collect()),
            (_, Some(path)) => UnixPath::parse(path).map(|path| vec![ListenOn::Unix(path)]),
            _ => resolve_listen(text).map(|all| all.into_iter().map(ListenOn::Tcp).collect()),
        };
        for on in found.map_err(|why| BadItem::new(index, why))? {
            if let Some(same) = all.iter().find(|other| is_same_place(other, &on)) {
                let shown = same.address().map_or(same.to_string(), |address| address.to_string());
                return Err(BadItem::new(index, format!("{shown} is listed twice")));
            }
            all.push(on);
        }
    }
    Ok(all)
}

fn is_same_place(one: &ListenOn, other: &ListenOn) -> bool {
    match (one, other) {
        (ListenOn::Unix(one), ListenOn::Unix(other)) => one.path() == other.path(),
        // Port 0 lets the kernel choose a port, another one each time.
        _ => one.address().is_some_and(|at| at.port() != 0) && one.address() == other.address(),
    }
}

/// Reads `0.0.0.0:8000`, `[::]:8000`, `localhost:8000`, or `:8000` for every IPv4 address. A name
/// is looked up here and may give several addresses.
fn resolve_listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let text = text.trim();
    if let Ok(address) = SocketAddr::from_str(text) {
        return Ok(vec![address]);
    }
    let expected = "expected \"0.0.0.0:8000\", \"[::]:8000\", \"localhost:8000\" or \":8000\"";
    let parts =
        text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts else {
        return Err(format!("{text:?} is not an address with a port; {expected}"));
    };
    if host.is_empty() {
        return Ok(vec![SocketAddr::from(([0, 0, 0, 0], port))]);
    }
    if host.contains([':', '/', '[', ']']) {
        return Err(format!("{text:?} is not an address with a port; {expected}"));
    }
    let mut all: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("{host:?} has no address: {error}"))?
        .collect();
    all.sort();
    all.dedup();
    // /etc/hosts often gives `localhost` the address `::1` even where IPv6 is off: take only what
    // can be bound here.
    let local: Vec<_> =
        all.iter().copied().filter(|address| UdpSocket::bind((address.ip(), 0)).is_ok()).collect();
    match all.first() {
        _ if !local.is_empty() => Ok(local),
        Some(address) => {
            Err(format!("{host:?} is {}, which is not an address of this machine", address.ip()))
        }
        None => Err(format!("{host:?} has no address")),
    }
}

/// Sets `redis.url`, and with it where the embedded inbox listens, if it is one.
pub(super) fn set_redis(config: &mut Config, urls: &[String]) -> Result<(), BadItem> {
    each(urls, check_redis)?;
    let embedded = |url: &String| link::embedded(url).map(|(address, _)| address.to_owned());
    let inbox = match urls {
        [] => return Err(BadItem::new(0, "at least one URL is needed")),
        [url] => embedded(url),
        _ => match urls.iter().position(|url| embedded(url).is_some()) {
            Some(index) => {
                let why = "an embedded:// URL must be the only one: the gateway is the inbox then";
                return Err(BadItem::new(index, why));
            }
            None => None,
        },
    };
    config.reactor.inbox = match inbox {
        Some(address) => resolve_inbox(&address).map_err(|why| BadItem::new(0, why))?,
        None => Vec::new(),
    };
    config.gateway.link.urls = urls.to_vec();
    Ok(())
}

/// Where the embedded inbox listens: what follows `embedded://`, or a path of a Unix socket.
fn resolve_inbox(address: &str) -> Result<Vec<ListenOn>, String> {
    if let Some(path) = address.strip_prefix("unix://") {
        return Ok(vec![ListenOn::Unix(UnixPath::parse(path)?)]);
    }
    let found = resolve_listen(address.trim_end_matches('/'))?;
    Ok(found.into_iter().map(ListenOn::Tcp).collect())
}

/// Whether `url` can be used. The error names it without its password.
fn check_redis(url: &str) -> Result<(), String> {
    let shown = without_password(url);
    let expected = "expected redis://user:password@host:port/db, rediss:// for TLS, unix:///path \
                    or embedded://127.0.0.1:6379";
    if let Some((address, password)) = link::embedded(url) {
        if password.is_some_and(|password| password.text().is_empty()) {
            return Err(format!("`{shown}`: the password is empty"));
        }
        return resolve_inbox(address).map(drop).map_err(|why| format!("`{shown}`: {why}"));
    }
    match url.split_once("://") {
        Some(("redis" | "rediss" | "unix", _)) => {
            Server::parse(url).map(drop).map_err(|why| format!("`{shown}` cannot be read: {why}"))
        }
        _ => Err(format!("`{shown}` is not a Redis URL; {expected}")),
    }
}

/// Sets `redis.password_file`, and the password that is the first line of that file.
pub(super) fn set_password_file(config: &mut Config, path: &str) -> Result<(), String> {
    let password = match path {
        "" => None,
        path => {
            let bytes =
                super::file::read(Path::new(path)).map_err(|why| format!("{path} {why}"))?;
            let text = String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8"))?;
            match text.lines().next() {
                None | Some("") => return Err(format!("the first line of {path} is empty")),
                Some(password) => Some(link::Password::from(password)),
            }
        }
    };
    config.gateway.link.password_file = path.to_owned();
    config.gateway.link.password = password;
    Ok(())
}

/// Whether `prefix` can begin the names of channels: as it is, not as a pattern.
pub(super) fn check_prefix(prefix: &str) -> Result<String, String> {
    let expected = "1 to 200 characters, none of them a control character or one of `*?[]^\\`, which Redis reads as a pattern";
    let is_good = |c: char| !c.is_control() && !matches!(c, '*' | '?' | '[' | ']' | '^' | '\\');
    if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(is_good) {
        return Err(format!("{prefix:?} cannot be used; expected {expected}"));
    }
    Ok(prefix.into())
}

/// The URL with `***` in place of its password, for logs and messages.
pub fn without_password(url: &str) -> String {
    let mut shown = url.to_owned();
    if let Some(scheme) = url.find("://") {
        let begin = scheme + 3;
        // The last `@` ends it: one in the password may not be encoded.
        if let Some(at) = url[begin..].rfind('@').map(|at| begin + at)
            && let Some(colon) = url[begin..at].find(':').map(|colon| begin + colon)
        {
            shown.replace_range(colon + 1..at, "***");
        }
    }
    // A Unix socket's URL has it in its query: `unix:///path?pass=…`.
    for name in ["?pass=", "&pass="] {
        if let Some(begin) = shown.find(name).map(|at| at + name.len()) {
            let end = shown[begin..].find('&').map_or(shown.len(), |end| begin + end);
            shown.replace_range(begin..end, "***");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::problems_of;

    #[test]
    fn addresses_to_listen_on_are_read() {
        let listen = |text: &str| {
            resolve_listen(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(listen("0.0.0.0:8000"), Ok(vec!["0.0.0.0:8000".into()]));
        assert_eq!(listen("[::]:8000"), Ok(vec!["[::]:8000".into()]));
        assert_eq!(listen(":8000"), Ok(vec!["0.0.0.0:8000".into()]));
        assert!(listen("localhost:8000").unwrap().contains(&"127.0.0.1:8000".to_string()));
        for text in ["", "8000", "localhost", "::1:80:x", "host:70000", "http://a:80", "[::1]"] {
            assert!(listen(text).is_err(), "{text}");
        }
        assert_eq!(
            listen("192.0.2.1:80"),
            Ok(vec!["192.0.2.1:80".into()]),
            "whether an address is local is for `bind` to say"
        );
    }

    #[test]
    fn redis_urls_are_checked_without_showing_passwords() {
        for url in [
            "redis://localhost",
            "redis://user:pass@host:1/2",
            "redis://:pass@[::1]:6379",
            "rediss://user:pass@host:1/2",
            "unix:///run/redis.sock",
            "embedded://127.0.0.1:6379",
            "embedded://:6379",
            "embedded+unix:///run/inbox.sock?mode=0666",
        ] {
            assert_eq!(check_redis(url), Ok(()), "{url}");
        }
        for url in [
            "",
            "localhost:6379",
            "rediss://host#insecure",
            "http://host",
            "redis://host:port",
            "embedded://host",
            "embedded://",
            "redis://u:secret@h/notadb",
        ] {
            let why = check_redis(url).expect_err(url);
            assert!(!why.contains("secret"), "{why}");
        }
        assert!(
            problems_of("[redis]\nurl = [\"redis://a\", \"embedded://:1\"]")
                .contains("must be the only one")
        );
    }
}
