//! TLS: certificates and keys, and what puts TLS on a socket.
//!
//! Everything above knows a [`Layer`], which turns a socket into one with TLS, and the contract of
//! [`Transport`](super::Transport). A build without the feature `tls` has the same names, and a
//! layer that refuses.

#[cfg(feature = "tls")]
mod keys;
#[cfg(feature = "tls")]
mod records;
#[cfg(feature = "tls")]
#[cfg(test)]
mod tests;
mod validity;
#[cfg(not(feature = "tls"))]
mod without;

#[cfg(feature = "tls")]
pub use keys::{Layer, is_untrusted, load, unverified, validity};
#[cfg(feature = "tls")]
use keys::{Roots, ServerKeys};
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
pub use validity::Validity;
#[cfg(not(feature = "tls"))]
pub use without::{Layer, is_untrusted, load, unverified, validity};
#[cfg(not(feature = "tls"))]
use without::{Roots, ServerKeys};

/// The section `[tls]`, with what its files hold once they have been read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Settings {
    /// Files with a chain of certificates each.
    pub certificate: Vec<String>,
    /// Files with the keys to them, in the same order.
    pub key: Vec<String>,
    /// A file with further roots; none if empty.
    pub ca: String,
    pub loaded: TlsFiles,
}

/// What the files hold, as far as it is needed. Equal if the files were.
#[derive(Clone, Default)]
pub struct TlsFiles {
    server: Option<Arc<ServerKeys>>,
    roots: Option<Arc<Roots>>,
    /// A hash of what was read.
    fingerprint: u128,
}

impl PartialEq for TlsFiles {
    fn eq(&self, other: &TlsFiles) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for TlsFiles {}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.fingerprint)
    }
}

/// Bytes both ways.
pub trait ByteStream: Read + Write {}

impl<S: Read + Write> ByteStream for S {}

/// What TLS is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uses {
    /// Some listener speaks it.
    pub listeners: bool,
    /// Some backend or Redis is dialed with it.
    pub dialed: bool,
}

/// Why the files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The key of the section `[tls]` that is concerned.
    pub key: &'static str,
    /// A sentence that names the file.
    pub why: String,
}

/// Whether the certificate of a server is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// It must lead to a known root, and have the name that was dialed.
    Yes,
    /// Any certificate is accepted.
    No,
}
