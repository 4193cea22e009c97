//! The CA and what it signs, in folders of the tests.

use super::*;
use crate::base::testing::TestFolder;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

fn data(folder: &TestFolder) -> PathBuf {
    folder.join("data/aivtuber-gateway")
}

fn mode(folder: &TestFolder, name: &str) -> u32 {
    std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777
}

fn names(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// Whether a client that trusts `ca` accepts the certificate for `name`, this many days from now.
fn accepts(ca: &str, chain: &str, name: &str, days: u64) -> bool {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der(ca)).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let at = UnixTime::now().as_secs() + days * 24 * 60 * 60;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    verifier.build().unwrap().verify_server_cert(&der(chain), &[], &name, &[], at).is_ok()
}

#[test]
fn a_certificate_is_for_the_names_that_were_given() {
    let folder = TestFolder::make();
    let out = folder.join("new/certs");
    let asked = names(&["App.example", "*.app.example", "192.0.2.7", "2001:db8::7"]);
    let text = write(&out, &asked, &data(&folder)).unwrap();
    assert!(
        text.starts_with("A certificate for app.example, *.app.example, 192.0.2.7, "),
        "{text}"
    );
    let ca = folder.read("data/aivtuber-gateway/ca.pem");
    let chain = folder.read("new/certs/App.example.pem");
    for name in ["app.example", "x.app.example", "192.0.2.7", "2001:db8::7"] {
        assert!(accepts(&ca, &chain, name, 0), "{name}");
        assert!(accepts(&ca, &chain, name, 396) && !accepts(&ca, &chain, name, 397), "{name}");
    }
    for name in ["localhost", "x.y.app.example", "192.0.2.8"] {
        assert!(!accepts(&ca, &chain, name, 0), "{name}");
    }
    assert_eq!(mode(&folder, "new/certs/App.example.key"), 0o600);
    assert_eq!(mode(&folder, "data/aivtuber-gateway/ca.key"), 0o600);
    assert_eq!(mode(&folder, "data/aivtuber-gateway"), 0o700);
    let left = std::fs::read_dir(&out).unwrap().count();
    assert_eq!(left, 2, "nothing but the certificate and its key");
}

#[test]
fn the_printed_configuration_can_be_used() {
    let folder = TestFolder::make();
    let text = write(&folder.join("a \"b\""), &names(&["*.x.example"]), &data(&folder)).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let config = crate::config::parse(Path::new("x"), &lines.collect::<Vec<_>>().join("\n"));
    let mut tls = config.unwrap().gateway.tls;
    let uses = crate::net::tls::Uses { listeners: true, dialed: false };
    assert_eq!(crate::net::tls::load(&mut tls, uses), Ok(()), "{text}");
    assert!(tls.certificate[0].ends_with("/_wildcard.x.example.pem"), "{text}");
}

#[test]
fn the_ca_is_made_once_and_shared() {
    let folder = TestFolder::make();
    let data = data(&folder);
    let made = |name: &str| {
        write(&folder, &names(&[name]), &data).unwrap();
        (folder.read("data/aivtuber-gateway/ca.pem"), folder.read(&format!("{name}.pem")))
    };
    let (ca, one) = made("one");
    let (same_ca, other) = made("other");
    assert_eq!(ca, same_ca);
    assert!(accepts(&ca, &one, "one", 0) && accepts(&ca, &other, "other", 0));
    let (_, renewed) = made("one");
    assert_ne!(one, renewed);
    let both = std::fs::read_to_string(write_for_demo(&data).unwrap()).unwrap();
    assert!(accepts(&ca, &both, "localhost", 0) && both.contains("PRIVATE KEY"));
    assert_eq!(mode(&folder, "data/aivtuber-gateway/demo.pem"), 0o600);
}

#[test]
fn two_that_start_at_once_make_one_ca() {
    let folder = TestFolder::make();
    let data = data(&folder);
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (out, data) = (&folder, &data);
            scope.spawn(move || write(out, &names(&[name]), data).unwrap());
        }
    });
    let ca = folder.read("data/aivtuber-gateway/ca.pem");
    for name in ["a", "b", "c", "d"] {
        assert!(accepts(&ca, &folder.read(&format!("{name}.pem")), name, 0), "{name}");
    }
}

#[test]
fn a_ca_that_is_not_whole_is_reported() {
    let (folder, other) = (TestFolder::make(), TestFolder::make());
    let certify = |folder: &TestFolder| write(folder, &names(&["a"]), &data(folder));
    certify(&folder).unwrap();
    certify(&other).unwrap();
    let (ca, key) = (ca_file(&data(&folder)), data(&folder).join("ca.key"));
    std::fs::copy(ca_file(&data(&other)), &ca).unwrap();
    let why = certify(&folder).unwrap_err();
    assert!(why.contains("ca.pem cannot be used: ") && why.contains("a new one is made"), "{why}");
    std::fs::write(&ca, "?").unwrap();
    assert!(certify(&folder).unwrap_err().ends_with("ca.pem holds no certificate in PEM"));
    std::fs::remove_file(&ca).unwrap();
    let why = certify(&folder).unwrap_err();
    assert!(why.contains("ca.key is there without ") && why.contains("/ca.pem: "), "{why}");
    std::fs::remove_file(&key).unwrap();
    certify(&folder).unwrap();
    std::fs::write(&key, "?").unwrap();
    assert!(certify(&folder).unwrap_err().contains("ca.key holds no key"));
}

#[test]
fn what_cannot_be_written_is_reported() {
    let folder = TestFolder::make();
    std::fs::write(folder.join("file"), "").unwrap();
    let why = write(&folder.join("file/certs"), &names(&["a"]), &data(&folder)).unwrap_err();
    assert!(why.starts_with("cannot make the folder "), "{why}");
    let why = write(&folder, &names(&["a b"]), &data(&folder)).unwrap_err();
    assert!(why.starts_with("\"a b\" is neither a name nor an address"), "{why}");
}

#[test]
fn the_data_folder_comes_from_the_environment() {
    let folder = |data: &'static str, home: &'static str| {
        data_folder(|name| match name {
            "XDG_DATA_HOME" => Some(data.into()),
            "HOME" => Some(home.into()),
            _ => None,
        })
    };
    assert_eq!(folder("/data", "/home/a"), Ok("/data/aivtuber-gateway".into()));
    for ignored in ["", "relative"] {
        let expected = "/home/a/.local/share/aivtuber-gateway";
        assert_eq!(folder(ignored, "/home/a"), Ok(expected.into()));
    }
    assert!(data_folder(|_| None).unwrap_err().contains("XDG_DATA_HOME"));
}
