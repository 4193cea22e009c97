//! TLS for the rows that have it: a certificate for all targets, and clients that accept it.
//!
//! Clients offer one suite and one curve, so that every target does the same work: TLS 1.3,
//! AES-128-GCM, X25519, and an ECDSA key on P-256.

use crate::Fault;
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, NamedGroup, RootCertStore};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The name in the certificate.
const NAME: &str = "localhost";
/// Tickets that wait for a connection.
const TICKETS_MAX: usize = 4096;

/// A certificate and its key, in files.
pub struct Certificate {
    pub chain: PathBuf,
    pub key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub both: PathBuf,
    der: CertificateDer<'static>,
}

/// Makes connections to the targets.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Whether connections begin with a full handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Full,
    /// By a ticket, where there is one.
    Resumed,
}

impl Certificate {
    /// A new one, in `folder`.
    pub fn write(folder: &Path) -> Result<Certificate, Fault> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])
            .map_err(|error| format!("cannot make a certificate: {error}"))?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let write = |name: &str, text: &str| -> Result<PathBuf, Fault> {
            let path = folder.join(name);
            fs::write(&path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            Ok(path)
        };
        Ok(Certificate {
            chain: write("bench.crt", &chain)?,
            key: write("bench.key", &key)?,
            both: write("bench.pem", &format!("{chain}{key}"))?,
            der: made.cert.der().clone(),
        })
    }

    /// Clients that accept this certificate and no other.
    pub fn client(&self, handshake: Handshake) -> Result<Client, Fault> {
        let text = |error: rustls::Error| format!("TLS cannot be set up: {error}");
        let mut provider = ring::default_provider();
        provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = vec![ring::kx_group::X25519];
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).map_err(text)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(text)?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = match handshake {
            Handshake::Full => Resumption::disabled(),
            Handshake::Resumed => Resumption::store(Arc::new(Tickets::default())),
        };
        let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
        Ok(Client { config: Arc::new(config), name })
    }
}

impl Client {
    pub fn connection(&self) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone())
    }
}

/// The tickets of one target. The store of `rustls` keeps eight, too few for connections that come
/// all at once.
#[derive(Default)]
struct Tickets(Mutex<Vec<Tls13ClientSessionValue>>);

impl Tickets {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Tls13ClientSessionValue>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tickets", self.lock().len())
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.lock();
        if tickets.len() < TICKETS_MAX {
            tickets.push(ticket);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'_>) -> Option<Tls13ClientSessionValue> {
        self.lock().pop()
    }
}
