//! Certificates, keys and roots: read from files, and made into what sessions need.

#![expect(clippy::disallowed_methods, reason = "files are read at start and in the background")]

use super::records::Tls;
use super::validity::{self, Validity};
use super::{ByteStream, LoadError, Settings, TlsFiles, Uses, Verify};
use crate::net::Socket;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use std::fmt;
use std::io;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// The protocol that is spoken above TLS (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// The certificates of the listeners, the first one for clients that ask for no known name.
pub struct ServerKeys(Vec<Arc<CertifiedKey>>);

/// The roots that backends' certificates must lead to.
pub struct Roots(Arc<RootCertStore>);

/// Reads the files of `settings` as far as they are used. May block for as long as the file systems
/// do.
///
/// # Errors
/// The first file that cannot be used.
pub fn load(settings: &mut Settings, uses: Uses) -> Result<(), LoadError> {
    let mut hash = Xxh3::new();
    let mut loaded = TlsFiles::default();
    if uses.listeners {
        loaded.server = Some(Arc::new(load_keys(settings, &mut hash)?));
    }
    if uses.dialed {
        loaded.roots = Some(Arc::new(load_roots(&settings.ca, &mut hash)?));
    }
    loaded.fingerprint = hash.digest128();
    settings.loaded = loaded;
    Ok(())
}

fn load_keys(settings: &Settings, hash: &mut Xxh3) -> Result<ServerKeys, LoadError> {
    if settings.certificate.is_empty() {
        let why = "a tls:// address is listened on, which needs a certificate and its key".into();
        return Err(LoadError { key: "certificate", why });
    }
    if settings.key.len() != settings.certificate.len() {
        let (keys, certificates) = (settings.key.len(), settings.certificate.len());
        let why = format!("{keys} keys for {certificates} certificates: each needs its own");
        return Err(LoadError { key: "key", why });
    }
    let pairs = settings.certificate.iter().zip(&settings.key);
    let keys = pairs.map(|(certificate, key)| load_pair(certificate, key, hash).map(Arc::new));
    Ok(ServerKeys(keys.collect::<Result<_, _>>()?))
}

fn load_pair(certificate: &str, key: &str, hash: &mut Xxh3) -> Result<CertifiedKey, LoadError> {
    let bad = |key, why: String| LoadError { key, why };
    let chain = read_chain(certificate, hash).map_err(|why| bad("certificate", why))?;
    let bytes = read(key, hash).map_err(|why| bad("key", why))?;
    let private = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| bad("key", format!("{key}: {}", pem_error(&error, "private key"))))?;
    CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| match error {
        Error::InconsistentKeys(_) => {
            bad("key", format!("{key} is not the key to the certificate in {certificate}"))
        }
        Error::InvalidCertificate(_) => bad("certificate", format!("{certificate}: {error}")),
        error => bad("key", format!("{key}: {error}")),
    })
}

fn load_roots(ca: &str, hash: &mut Xxh3) -> Result<Roots, LoadError> {
    let mut roots = RootCertStore::empty();
    // A file of the system that is broken costs its roots and nothing else.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    hash.update(&roots.len().to_be_bytes());
    if !ca.is_empty() {
        let bad = |why| LoadError { key: "ca", why };
        for certificate in read_chain(ca, hash).map_err(bad)? {
            roots.add(certificate).map_err(|error| bad(format!("{ca}: {error}")))?;
        }
    }
    Ok(Roots(Arc::new(roots)))
}

fn read_chain(path: &str, hash: &mut Xxh3) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path, hash)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(format!("{path} holds no certificate in PEM")),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("{path}: {}", pem_error(&error, "certificate"))),
    }
}

fn read(path: &str, hash: &mut Xxh3) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{path} cannot be read: {error}"))?;
    hash.update(&bytes);
    Ok(bytes)
}

fn pem_error(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("it holds no {wanted} in PEM"),
        _ => "it is not PEM".into(),
    }
}

/// Puts TLS on sockets.
#[derive(Default)]
pub struct Layer {
    settings: Settings,
    /// Kept over reloads, so that tickets stay good.
    tickets: Option<Arc<dyn ProducesTickets>>,
    server: Option<Arc<ServerConfig>>,
    verified: Option<Arc<ClientConfig>>,
    unverified: Option<Arc<ClientConfig>>,
    /// For servers that speak something else than HTTP.
    redis: Option<Arc<ClientConfig>>,
}

impl Layer {
    /// With what was loaded for `settings`.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn new(settings: Settings) -> Result<Layer, String> {
        let mut layer = Layer::default();
        layer.reload(settings)?;
        Ok(layer)
    }

    /// Takes other settings into use: connections that are open keep theirs. What was not loaded,
    /// because it is not in use any more, stays as it is for listeners that need a restart.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn reload(&mut self, settings: Settings) -> Result<(), String> {
        if settings == self.settings {
            return Ok(());
        }
        let provider = Arc::new(ring::default_provider());
        if let Some(keys) = &settings.loaded.server {
            self.server = Some(Arc::new(self.server_config(keys, &provider)?));
        }
        if let Some(roots) = &settings.loaded.roots {
            let verified = client_config(&provider)?.with_root_certificates(Arc::clone(&roots.0));
            let verified = verified.with_no_client_auth();
            self.redis = Some(Arc::new(verified.clone()));
            self.verified = Some(Arc::new(speaking_http(verified)));
            let any = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
            let unverified =
                client_config(&provider)?.dangerous().with_custom_certificate_verifier(any);
            self.unverified = Some(Arc::new(speaking_http(unverified.with_no_client_auth())));
        }
        self.settings = settings;
        Ok(())
    }

    fn server_config(
        &mut self,
        keys: &Arc<ServerKeys>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<ServerConfig, String> {
        let text = |error: Error| format!("TLS cannot be set up: {error}");
        if self.tickets.is_none() {
            self.tickets = Some(ring::Ticketer::new().map_err(text)?);
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(text)?;
        let mut config =
            builder.with_no_client_auth().with_cert_resolver(Arc::new(ByName(Arc::clone(keys))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Auditors ask for it, and all suites are good ones.
        config.ignore_client_order = true;
        // Sessions are resumed by tickets alone, so that nothing is kept for clients that are gone.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        if let Some(tickets) = &self.tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Ok(config)
    }

    /// The settings in use.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Puts the server's side on an accepted socket. `None`: no certificate is there.
    pub fn accept(&self, socket: Socket) -> Option<Socket> {
        self.accept_after(socket, Vec::new())
    }

    /// The same, where `early` bytes of TLS have been read already.
    pub fn accept_after(&self, socket: Socket, early: Vec<u8>) -> Option<Socket> {
        let config = Arc::clone(self.server.as_ref()?);
        Some(Socket::Other(Box::new(Tls::accepted(socket, config, early))))
    }

    /// Puts the client's side on a dialed socket, which leads to `host`: a name or an IP address.
    ///
    /// # Errors
    /// If it is neither.
    pub fn dial(&self, socket: Socket, host: &str, verify: Verify) -> io::Result<Socket> {
        let config = match verify {
            Verify::Yes => &self.verified,
            Verify::No => &self.unverified,
        };
        dialed(socket, host, config.as_ref())
    }

    /// Speaks TLS over a stream that blocks and leads to `host`: for the gateway's own commands.
    ///
    /// # Errors
    /// If `host` is neither a name nor an IP address, or no roots were loaded.
    pub fn connect<'s>(
        &self,
        stream: impl ByteStream + 's,
        host: &str,
        verify: Verify,
    ) -> io::Result<Box<dyn ByteStream + 's>> {
        let config = match verify {
            Verify::Yes => &self.verified,
            Verify::No => &self.unverified,
        };
        blocking(stream, host, config.as_ref())
    }

    /// The same with the Redis server `host`, which is verified.
    ///
    /// # Errors
    /// As above.
    pub fn connect_redis<'s>(
        &self,
        stream: impl ByteStream + 's,
        host: &str,
    ) -> io::Result<Box<dyn ByteStream + 's>> {
        blocking(stream, host, self.redis.as_ref())
    }

    /// Puts the client's side on a socket that leads to the Redis server `host`, which is verified.
    ///
    /// # Errors
    /// If `host` is neither a name nor an IP address.
    pub fn dial_redis(&self, socket: Socket, host: &str) -> io::Result<Socket> {
        dialed(socket, host, self.redis.as_ref())
    }
}

fn dialed(socket: Socket, host: &str, config: Option<&Arc<ClientConfig>>) -> io::Result<Socket> {
    let config = Arc::clone(config.ok_or(io::ErrorKind::Unsupported)?);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Socket::Other(Box::new(Tls::dialed(socket, config, name)?)))
}

fn blocking<'s>(
    stream: impl ByteStream + 's,
    host: &str,
    config: Option<&Arc<ClientConfig>>,
) -> io::Result<Box<dyn ByteStream + 's>> {
    let config = Arc::clone(config.ok_or(io::ErrorKind::Unsupported)?);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
    Ok(Box::new(rustls::StreamOwned::new(session, stream)))
}

/// How long the certificate in the file `path` is valid; `None` if there is none that can be read.
pub fn validity(path: &str) -> Option<Validity> {
    let chain = read_chain(path, &mut Xxh3::new()).ok()?;
    validity::of_certificate(chain.first()?)
}

/// Speaks TLS over a stream that blocks, with any certificate: for the gateway's own commands.
///
/// # Errors
/// If `host` is neither a name nor an address.
pub fn unverified<'s>(
    stream: impl ByteStream + 's,
    host: &str,
) -> io::Result<Box<dyn ByteStream + 's>> {
    let provider = Arc::new(ring::default_provider());
    let any = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
    let config = client_config(&provider).map_err(io::Error::other)?;
    let config = config.dangerous().with_custom_certificate_verifier(any).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session = rustls::ClientConnection::new(Arc::new(config), name);
    Ok(Box::new(rustls::StreamOwned::new(session.map_err(io::Error::other)?, stream)))
}

/// Whether `error` of a transport says that a certificate was not accepted.
pub fn is_untrusted(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    matches!(inner, Some(Error::InvalidCertificate(_)))
}

type NeedsVerifier = rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>;

fn client_config(provider: &Arc<CryptoProvider>) -> Result<NeedsVerifier, String> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))
}

fn speaking_http(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// Chooses a certificate by the name that the client asks for (RFC 6066 §3).
struct ByName(Arc<ServerKeys>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ServerKeys(keys) = &*self.0;
        let asked_for = hello.server_name().filter(|_| keys.len() > 1);
        let name = asked_for.and_then(|name| ServerName::try_from(name).ok());
        let by_name = name.and_then(|name| keys.iter().find(|key| has_name(key, &name)));
        by_name.or(keys.first()).cloned()
    }
}

fn has_name(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = key.cert.first().and_then(|der| ParsedCertificate::try_from(der).ok());
    certificate.is_some_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
}

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.0.0.len())
    }
}

/// Accepts any certificate, for routes that say `insecure`. That the server has the key to it is
/// still checked.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
