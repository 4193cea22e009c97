//! Names of servers, and those whose addresses are known without a look-up.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why the addresses of a name are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookUpError {
    /// The resolver's reason: there is no such name, or no name server answers.
    NotFound(String),
    /// The gateway's process or machine has run out of descriptors, memory or threads. It says
    /// nothing about the name.
    Shortage {
        /// The error number of the kernel.
        errno: i32,
    },
}

impl fmt::Display for LookUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LookUpError::NotFound(why) => f.write_str(why),
            LookUpError::Shortage { errno } => {
                write!(f, "the gateway cannot ask: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// A host name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Name {
    pub host: String,
    pub port: u16,
}

impl Name {
    /// The addresses that are known without a look-up: those of an IP address and of
    /// `localhost`, which is always this machine (RFC 6761, section 6.3) whatever its hosts file
    /// says.
    pub fn known_addresses(&self) -> Option<Vec<SocketAddr>> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Some(vec![SocketAddr::new(ip, self.port)]);
        }
        let host = self.host.strip_suffix('.').unwrap_or(&self.host).to_ascii_lowercase();
        let label = host.strip_suffix(".localhost");
        let is_local = host == "localhost" || label.is_some_and(|label| !label.is_empty());
        is_local.then(|| {
            let local = [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
            local.map(|ip| SocketAddr::new(ip, self.port)).to_vec()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_and_ip_addresses_need_no_look_up() {
        let known = |host: &str| {
            let found = Name { host: host.into(), port: 1 }.known_addresses();
            found.map(|found| found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        for host in ["localhost", "LocalHost", "localhost.", "app.localhost", "a.b.LOCALHOST."] {
            assert_eq!(known(host).unwrap(), ["[::1]:1", "127.0.0.1:1"], "{host}");
        }
        assert_eq!(known("192.0.2.1").unwrap(), ["192.0.2.1:1"]);
        assert_eq!(known("2001:db8::1").unwrap(), ["[2001:db8::1]:1"]);
        for host in
            ["example.com", "notlocalhost", "localhost.example", ".localhost", "ünlocalhost"]
        {
            assert_eq!(known(host), None, "{host}");
        }
    }
}
