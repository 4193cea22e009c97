//! Servers out of the configured URLs.

use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion};

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A server out of the settings.
#[derive(Clone, Debug)]
pub struct Server {
    pub(super) address: Address,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    pub(super) speaks_resp3: bool,
}

impl Server {
    /// Reads a URL. The error says what is wrong, without any part of the URL (it may hold a password).
    pub fn parse(url: &str) -> Result<Server, String> {
        const ALLOWED: &str = "allowed are redis://[user:password@]host[:port][/db] and unix:///path[?db=…&user=…&pass=…]";
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
            speaks_resp3: settings.protocol() == ProtocolVersion::RESP3,
        })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}
