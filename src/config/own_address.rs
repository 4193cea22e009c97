//! Finds backends that are the gateway itself: a client of such a route would be passed on in
//! circles.
//!
//! Only what can be known without asking a name server: IP addresses and `localhost`. Any other
//! loop ends by `Via`.

#![expect(
    clippy::disallowed_types,
    reason = "a socket is bound to ask whether an address is local"
)]

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::settings::Config;
use crate::reactor::listeners::ListenOn;

/// Checks that no backend is an address on which the gateway listens: `listen`, or what the kernel
/// made of it.
///
/// # Errors
/// A sentence that names the route, the backend and the address.
pub(super) fn check(config: &Config, listen: &[ListenOn]) -> Result<(), String> {
    for route in &config.gateway.routes {
        for url in route.target.urls() {
            let addresses = url.name().known_addresses().unwrap_or_default();
            let is_own = |own: &&ListenOn| match (own, url.unix_path()) {
                (ListenOn::Unix(own), Some(path)) => own.path() == path,
                (ListenOn::Tcp(own) | ListenOn::Tls(own), None) => {
                    addresses.iter().any(|to| leads_to(*to, *own))
                }
                _ => false,
            };
            if let Some(own) = listen.iter().find(is_own) {
                return Err(format!(
                    "route `{}`: the backend `{}` is the gateway itself, which listens on {own}",
                    route.name,
                    url.public_text()
                ));
            }
        }
    }
    Ok(())
}

/// Whether a connection to `to` is accepted by a listener on `own`. A listener on `[::]` takes IPv6
/// only.
fn leads_to(to: SocketAddr, own: SocketAddr) -> bool {
    let takes = |ip: IpAddr| match own.ip().is_unspecified() {
        true => ip.is_ipv4() == own.is_ipv4() && is_this_machine(ip),
        // Linux takes a connection to `0.0.0.0` or `::` as one to the loopback address.
        false => ip == own.ip() || ip.is_unspecified() && own.ip().is_loopback(),
    };
    to.port() == own.port() && takes(to.ip())
}

/// Only an address of this machine can be bound.
fn is_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::parsed;
    use super::*;

    fn checked(listen: &str, backend: &str) -> Result<(), String> {
        let config = parsed(&format!(
            "[server]\nlisten = [\"{listen}\"]\n[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"{backend}\"\n"
        ));
        check(&config, &config.reactor.listen)
    }

    #[test]
    fn a_backend_that_is_the_gateway_is_refused() {
        for (listen, backend) in [
            ("127.0.0.1:8000", "ws://127.0.0.1:8000/x"),
            ("127.0.0.1:8000", "ws://localhost:8000/"),
            ("127.0.0.1:8000", "ws://0.0.0.0:8000/"),
            ("0.0.0.0:8000", "ws://127.0.0.1:8000/"),
            ("0.0.0.0:8000", "ws://127.1.2.3:8000/"),
            ("0.0.0.0:8000", "ws://LOCALHOST:8000/?token=secret"),
            ("0.0.0.0:80", "ws://localhost/"),
            ("[::]:8000", "ws://[::1]:8000/"),
            ("[::1]:8000", "ws://localhost:8000/"),
        ] {
            let why = checked(listen, backend).expect_err(backend);
            assert!(why.contains("route `a`: the backend `ws://"), "{why}");
            assert!(why.ends_with(&format!("listens on {listen}")), "{why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn other_backends_are_accepted() {
        for (listen, backend) in [
            ("127.0.0.1:8000", "ws://127.0.0.1:8001/"),
            ("127.0.0.1:8000", "ws://127.0.0.2:8000/"),
            ("127.0.0.1:8000", "ws://[::1]:8000/"),
            ("0.0.0.0:8000", "ws://[::1]:8000/"),
            ("0.0.0.0:8000", "ws://192.0.2.1:8000/"),
            ("0.0.0.0:8000", "ws://gateway.example:8000/"),
            ("127.0.0.1:0", "ws://127.0.0.1:8000/"),
        ] {
            assert_eq!(checked(listen, backend), Ok(()), "{listen} {backend}");
        }
    }
}
