//! Addresses to listen on, and where Redis is.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

use redis::IntoConnectionInfo;

use super::settings::Config;
use super::values::each;

pub(super) fn set_listen(config: &mut Config, texts: &[String]) -> Result<(), (usize, String)> {
    if texts.is_empty() {
        return Err((0, "at least one address is needed, such as \"0.0.0.0:8000\"".into()));
    }
    let mut listen: Vec<SocketAddr> = Vec::new();
    for (index, addresses) in each(texts, resolve_listen)?.into_iter().enumerate() {
        for address in addresses {
            // Port 0 is a port of the kernel's choice: another one each time.
            if address.port() != 0 && listen.contains(&address) {
                return Err((index, format!("{address} is listed twice")));
            }
            listen.push(address);
        }
    }
    config.reactor.listen = listen;
    Ok(())
}

/// `0.0.0.0:8000`, `[::]:8000`, `localhost:8000`, or `:8000` for every IPv4 address.
fn resolve_listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let text = text.trim();
    if let Ok(address) = SocketAddr::from_str(text) {
        return Ok(vec![address]);
    }
    let allowed =
        "what is allowed is \"0.0.0.0:8000\", \"[::]:8000\", \"localhost:8000\" or \":8000\"";
    let parts =
        text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = parts else {
        return Err(format!("{text:?} is no address with a port; {allowed}"));
    };
    if host.is_empty() {
        return Ok(vec![SocketAddr::from(([0, 0, 0, 0], port))]);
    }
    if host.contains([':', '/', '[', ']']) {
        return Err(format!("{text:?} is no address with a port; {allowed}"));
    }
    let mut all: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("{host:?} has no address: {error}"))?
        .collect();
    all.sort();
    all.dedup();
    // `localhost` is `::1` too in /etc/hosts, also on machines without IPv6.
    let ours: Vec<_> =
        all.iter().copied().filter(|address| UdpSocket::bind((address.ip(), 0)).is_ok()).collect();
    match (ours.is_empty(), all.is_empty()) {
        (false, _) => Ok(ours),
        (true, false) => {
            Err(format!("{host:?} is {}, which is no address of this machine", all[0].ip()))
        }
        (true, true) => Err(format!("{host:?} has no address")),
    }
}

pub(super) fn set_redis(config: &mut Config, urls: &[String]) -> Result<(), (usize, String)> {
    if urls.is_empty() {
        return Err((0, "at least one URL is needed".into()));
    }
    each(urls, check_redis)?;
    if let Some(index) = urls.iter().position(|url| url.starts_with("embedded://"))
        && urls.len() > 1
    {
        return Err((
            index,
            "an embedded:// URL stands alone: the gateway itself is the inbox then".into(),
        ));
    }
    config.gateway.link.urls = urls.to_vec();
    config.reactor.inbox = match urls[0].strip_prefix("embedded://") {
        Some(address) => resolve_listen(address.trim_end_matches('/')).map_err(|why| (0, why))?,
        None => Vec::new(),
    };
    Ok(())
}

/// The sentence names the URL without its password.
fn check_redis(url: &str) -> Result<(), String> {
    let shown = without_password(url);
    let allowed = "what is allowed is redis://user:password@host:port/db, unix:///path or embedded://127.0.0.1:6379";
    match url.split_once("://") {
        Some(("embedded", address)) => match resolve_listen(address.trim_end_matches('/')) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("`{shown}`: {why}")),
        },
        Some(("rediss", _)) => Err(format!("`{shown}`: TLS to Redis is not supported; {allowed}")),
        Some(("redis" | "unix", _)) => match url.into_connection_info() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!(
                "`{shown}` cannot be read: {}; {allowed}",
                error.detail().unwrap_or("not a Redis URL")
            )),
        },
        _ => Err(format!("`{shown}` is no Redis URL; {allowed}")),
    }
}

pub(super) fn check_prefix(prefix: &str) -> Result<String, String> {
    let allowed = "1 to 200 characters, none of them a control character or one of `*?[]^\\`, which Redis reads as a pattern";
    let is_good = |c: char| !c.is_control() && !matches!(c, '*' | '?' | '[' | ']' | '^' | '\\');
    if prefix.is_empty() || prefix.len() > 200 || !prefix.chars().all(is_good) {
        return Err(format!("{prefix:?} cannot be used; what is allowed is {allowed}"));
    }
    Ok(prefix.into())
}

/// The URL as it may be shown: a password in it is `***`.
pub fn without_password(url: &str) -> String {
    let mut shown = url.to_owned();
    if let Some(scheme) = url.find("://") {
        let begin = scheme + 3;
        // The last `@`, because people forget to encode those in a password.
        if let Some(at) = url[begin..].rfind('@').map(|at| begin + at)
            && let Some(colon) = url[begin..at].find(':').map(|colon| begin + colon)
        {
            shown.replace_range(colon + 1..at, "***");
        }
    }
    // `unix:///path?pass=…`
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
    use crate::config::tests::said;

    #[test]
    fn addresses_to_listen_on() {
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
            "an address is taken as it is"
        );
    }

    #[test]
    fn redis_urls() {
        for url in [
            "redis://localhost",
            "redis://user:pass@host:1/2",
            "redis://:pass@[::1]:6379",
            "unix:///run/redis.sock",
            "embedded://127.0.0.1:6379",
            "embedded://:6379",
        ] {
            assert_eq!(check_redis(url), Ok(()), "{url}");
        }
        for url in [
            "",
            "localhost:6379",
            "rediss://host",
            "http://host",
            "redis://host:port",
            "embedded://host",
            "embedded://",
            "redis://u:secret@h/notadb",
        ] {
            let why = check_redis(url).expect_err(url);
            assert!(!why.contains("secret"), "{why}");
        }
        assert!(said("[redis]\nurl = [\"redis://a\", \"embedded://:1\"]").contains("stands alone"));
    }
}
