//! Redis servers, as the configured URLs name them.

use std::fmt;
use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion};

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Address {
    /// A host name or IP address, and a port.
    Tcp { host: String, port: u16 },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// One server, and how to log in there.
#[derive(Clone, Debug)]
pub struct Server {
    pub(super) address: Address,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    pub(super) uses_resp3: bool,
}

impl Server {
    /// Reads a `redis://` or `unix://` URL.
    ///
    /// # Errors
    /// A sentence that quotes no part of the URL, since it may hold a password.
    pub fn parse(url: &str) -> Result<Server, String> {
        const ALLOWED: &str = "allowed are redis://[user:password@]host[:port][/db] and \
                               unix:///path[?db=…&user=…&pass=…]";
        if ["rediss:", "valkeys:"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(format!("TLS to Redis is not supported; {ALLOWED}"));
        }
        let connection =
            url.into_connection_info().map_err(|_| format!("not a Redis URL; {ALLOWED}"))?;
        let address = match connection.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp { host: host.clone(), port: *port },
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(format!("not a Redis URL; {ALLOWED}")),
        };
        let settings = connection.redis_settings();
        Ok(Server {
            address,
            user: settings.username().map(String::from),
            password: settings.password().map(String::from),
            database: settings.db(),
            uses_resp3: settings.protocol() == ProtocolVersion::RESP3,
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}
