//! Redis servers, as the configured URLs name them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion};

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Address {
    /// A host name or IP address, and a port.
    Tcp { host: String, port: u16 },
    /// The same, where TLS is spoken. Its certificate must be for this name or address.
    Tls { host: String, port: u16 },
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } | Address::Tls { host, port } if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            Address::Tcp { host, port } | Address::Tls { host, port } => {
                write!(f, "{host}:{port}")
            }
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A password. It never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Arc<str>);

impl Password {
    /// The password itself.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Password {
    fn from(text: &str) -> Password {
        Password(text.into())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What an `embedded://[:password@]address` URL says: the address, and the password that workers
/// need; of `embedded+unix:///path` it is `unix:///path`. `None`: another kind of URL.
pub fn embedded(url: &str) -> Option<(&str, Option<Password>)> {
    if let Some(socket) = url.strip_prefix("embedded+")
        && socket.starts_with("unix://")
    {
        return Some((socket, None));
    }
    let rest = url.strip_prefix("embedded://")?.trim_end_matches('/');
    let Some((user, address)) = rest.rsplit_once('@') else { return Some((rest, None)) };
    let password = user.split_once(':').map_or(user, |(_, password)| password);
    Some((address, Some(percent_decoded(password).as_str().into())))
}

/// `%xx` decoded. An escape that is broken stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let escape = behind.get(..2).filter(|_| *first == b'%');
        let escape = escape.and_then(|digits| str::from_utf8(digits).ok());
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const TLS_SCHEME: &str = "rediss://";

/// Whether TLS is spoken with the server that this URL names.
pub fn has_tls(url: &str) -> bool {
    url.starts_with(TLS_SCHEME)
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
    /// Reads a `redis://`, `rediss://` or `unix://` URL.
    ///
    /// # Errors
    /// A sentence that quotes no part of the URL, since it may hold a password.
    pub fn parse(url: &str) -> Result<Server, String> {
        const ALLOWED: &str = "allowed are redis://[user:password@]host[:port][/db], the same \
                               with rediss:// for TLS, and unix:///path[?db=…&user=…&pass=…]";
        let with_tls = url.strip_prefix(TLS_SCHEME);
        if with_tls.is_some_and(|rest| rest.contains('#')) {
            return Err("`#insecure` and the like are not supported: the certificate is always \
                        verified, also by the roots in the file `ca` of [tls]"
                .into());
        }
        let connection = match with_tls {
            Some(rest) => format!("redis://{rest}").into_connection_info(),
            None => url.into_connection_info(),
        };
        let connection = connection.map_err(|error| {
            let why = error.detail().map_or(String::new(), |why| format!(": {why}"));
            format!("not a Redis URL{why}; {ALLOWED}")
        })?;
        let address = match connection.addr() {
            ConnectionAddr::Tcp(host, port) if with_tls.is_some() => {
                Address::Tls { host: host.clone(), port: *port }
            }
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

    /// User and password. `password`, if there is one, takes the place of the URL's.
    pub fn credentials<'s>(
        &'s self,
        password: Option<&'s Password>,
    ) -> (Option<&'s str>, Option<&'s str>) {
        let password = password.map(Password::text).or(self.password.as_deref());
        (self.user.as_deref(), password)
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }
}
