//! The CA: a certificate and a key in the user's data folder, and what it signs.
//!
//! The CA's name is made from its key, so that its certificate need not be taken apart to sign with
//! it. That a signed certificate leads to the certificate in the folder is checked each time.

#![expect(
    clippy::disallowed_methods,
    reason = "a command of its own, which may wait and read the clock"
)]

use super::subject::CertSubject;
use super::{CA_KEY, Certified, PRIVATE, PUBLIC, ca_file, lock, make_folder, write_file};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Browsers accept no more of a server's certificate (and Apple's at most 825 days, whoever
/// signed).
const SERVER_VALIDITY: Duration = Duration::from_secs(397 * DAY.as_secs());

const CA_VALIDITY: Duration = Duration::from_secs(3650 * DAY.as_secs());

/// Certificates are valid from so long before they were made, for devices whose clock is late.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60 * 60);

/// Signs certificates.
pub struct Authority {
    file: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The CA in the folder `data`, which is made at the first time.
    pub fn open(data: &Path) -> Result<Authority, String> {
        make_folder(data, 0o700)?;
        let _lock = lock(data)?;
        let (file, key_file) = (ca_file(data), data.join(CA_KEY));
        match (read(&file)?, read(&key_file)?) {
            (Some(certificate), Some(key)) => Authority::load(file, &key_file, &certificate, &key),
            (None, None) => Authority::create(file, &key_file),
            (None, Some(_)) => Err(incomplete(&file, &key_file)),
            (Some(_), None) => Err(incomplete(&key_file, &file)),
        }
    }

    fn load(file: PathBuf, key_file: &Path, pem: &str, key: &str) -> Result<Authority, String> {
        let key = KeyPair::from_pem(key)
            .map_err(|error| format!("{} holds no key: {error}", key_file.display()))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| format!("{} holds no certificate in PEM", file.display()))?;
        let issuer = Issuer::new(ca_params(&key, now()), key);
        Ok(Authority { file, certificate, issuer })
    }

    fn create(file: PathBuf, key_file: &Path) -> Result<Authority, String> {
        let key = new_key()?;
        let params = ca_params(&key, now());
        let made = params.self_signed(&key).map_err(failed)?;
        write_file(key_file, &key.serialize_pem(), PRIVATE)?;
        write_file(&file, &made.pem(), PUBLIC)?;
        let certificate = made.der().clone();
        Ok(Authority { file, certificate, issuer: Issuer::new(params, key) })
    }

    /// A new certificate for all of `subjects`, with a key of its own.
    pub fn certify(&self, subjects: &[CertSubject]) -> Result<Certified, String> {
        let key = new_key()?;
        let now = now();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(first) = subjects.first() {
            params.distinguished_name.push(DnType::CommonName, first.to_string());
        }
        params.subject_alt_names = subjects.iter().map(alt_name).collect::<Result<_, _>>()?;
        (params.not_before, params.not_after) = validity(now, SERVER_VALIDITY);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let made = params.signed_by(&key, &self.issuer).map_err(failed)?;
        self.verify(made.der(), subjects, now)?;
        Ok(Certified {
            chain: made.pem(),
            key: key.serialize_pem(),
            last_day: params.not_after.date().to_string(),
        })
    }

    /// Whether clients that trust the file of the CA will accept what it signed. They do not when
    /// the file holds the certificate of another CA, or one that has expired.
    fn verify(
        &self,
        made: &CertificateDer<'_>,
        subjects: &[CertSubject],
        now: Duration,
    ) -> Result<(), String> {
        let bad = |why: String| {
            let file = self.file.display();
            format!(
                "the CA in {file} cannot be used: {why}. Move it and {CA_KEY} beside it away, and \
                 a new one is made"
            )
        };
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(|error| bad(error.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| bad(error.to_string()))?;
        for subject in subjects {
            let name = subject.to_string().replace('*', "any");
            let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
            verifier
                .verify_server_cert(made, &[], &name, &[], UnixTime::since_unix_epoch(now))
                .map_err(|error| bad(error.to_string()))?;
        }
        Ok(())
    }
}

fn ca_params(key: &KeyPair, now: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let id = params.key_identifier(key);
    let id: String = id.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("aivtuber-gateway local CA {id}"));
    (params.not_before, params.not_after) = validity(now, CA_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn new_key() -> Result<KeyPair, String> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)
}

fn alt_name(subject: &CertSubject) -> Result<SanType, String> {
    Ok(match subject {
        CertSubject::Name(name) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
        CertSubject::Address(address) => SanType::IpAddress(*address),
    })
}

fn validity(now: Duration, lasts: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let begin = OffsetDateTime::UNIX_EPOCH + now.saturating_sub(CLOCK_DIFFERENCE);
    (begin, begin + lasts)
}

/// Since 1970. A clock before that is as wrong as one that is in it.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(now.as_secs())
}

fn failed(error: rcgen::Error) -> String {
    format!("cannot make a certificate: {error}")
}

fn incomplete(missing: &Path, there: &Path) -> String {
    format!(
        "{} is there without {}: put that back, or move the other away, and a new CA is made",
        there.display(),
        missing.display()
    )
}

fn read(path: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}
