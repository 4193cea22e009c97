//! TLS on top of the simulated sockets: the gateway's own layer (`net::tls`) on its end, `rustls`
//! on the peers'. Records are cut anywhere on the wire, sockets take as little as they like, and
//! peers change their keys at any time.
//!
//! Unlike everything else here, what passes differs from run to run: keys are random. Lengths are
//! the same, but for a byte or two of a signature.

use super::Near;
use aivtuber_gateway::net::tls::{self, Settings, Uses, Verify};
use aivtuber_gateway::net::{OpenFile, Ready, Security, Socket, Transport};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, Connection, RootCertStore, ServerConfig};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, OnceLock};

/// The name of all servers.
const NAME: &str = "sim.example";

/// What both ends need, made once.
struct Keys {
    gateway: Settings,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).expect("a key");
        let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let folder = std::env::temp_dir();
        let file = folder.join(format!("simulated-tls-{}.pem", std::process::id()));
        std::fs::write(&file, format!("{pem}{key}")).expect("a file");
        let name = file.display().to_string();
        let mut gateway = Settings {
            certificate: vec![name.clone()],
            key: vec![name.clone()],
            ca: name,
            ..Settings::default()
        };
        let loaded = tls::load(&mut gateway, Uses { listeners: true, dialed: true });
        let _ = std::fs::remove_file(&file);
        loaded.expect("keys");

        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a root");
        let provider = Arc::new(ring::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a key that fits");
        Keys { gateway, client: Arc::new(client), server: Arc::new(server) }
    })
}

/// Settings with which a gateway puts TLS on its sockets itself.
pub fn settings() -> Settings {
    keys().gateway.clone()
}

/// The gateway's end of a link with records, without the layer.
pub fn bare_socket(kernel: &super::Shared, link: super::LinkId) -> Socket {
    Socket::Other(Box::new(Below(Near { kernel: std::rc::Rc::clone(kernel), link })))
}

/// The peer's end, and whether it has sealed anything.
pub struct Far(Connection, bool);

impl Far {
    /// The server of a connection that the gateway has dialed, else the client.
    pub fn new(is_dialed: bool) -> Far {
        let mut connection: Connection = match is_dialed {
            true => rustls::ServerConnection::new(Arc::clone(&keys().server)).expect("TLS").into(),
            false => {
                let name = ServerName::try_from(NAME).expect("a name");
                let config = Arc::clone(&keys().client);
                rustls::ClientConnection::new(config, name).expect("TLS").into()
            }
        };
        connection.set_buffer_limit(None);
        Far(connection, false)
    }

    /// Whether plaintext waits for the end of the handshake.
    pub fn keeps_back(&self) -> bool {
        self.0.is_handshaking() && self.1
    }

    /// What the peer sends with `bytes` in it. Before the end of the handshake they are kept.
    pub fn seal(&mut self, mut bytes: &[u8], chance: &mut fastrand::Rng) -> Vec<u8> {
        self.1 |= !bytes.is_empty();
        while !bytes.is_empty() {
            if !self.0.is_handshaking() && chance.u8(..16) == 0 {
                self.0.refresh_traffic_keys().expect("TLS 1.3");
            }
            let most = if chance.bool() { bytes.len() } else { bytes.len().min(100) };
            let n = chance.usize(1..=most);
            self.0.writer().write_all(&bytes[..n]).expect("no limit");
            bytes = &bytes[n..];
        }
        self.poll_output()
    }

    /// The plaintext in what the peer has received.
    pub fn open(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut plaintext = Vec::new();
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes).expect("a slice");
            self.0.process_new_packets().expect("what the gateway sends is TLS");
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = self.0.reader().read(&mut piece) {
                plaintext.extend(&piece[..n]);
            }
        }
        plaintext
    }

    /// Records that have to be sent.
    pub fn poll_output(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut records).expect("a vector");
        }
        records
    }
}

impl fmt::Debug for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Far").finish_non_exhaustive()
    }
}

/// The gateway's end of a socket below TLS. What passes there is no plaintext.
struct Below(Near);

impl Read for Below {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Below {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.kernel.borrow_mut().write_unseen(self.0.link, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Below {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.shutdown_write()
    }

    fn unacknowledged(&self) -> Option<usize> {
        self.0.unacknowledged()
    }

    fn limit_unsent(&mut self, bytes: usize) -> io::Result<()> {
        self.0.limit_unsent(bytes)
    }

    fn limit_buffers(&mut self, bytes: usize) -> io::Result<()> {
        self.0.limit_buffers(bytes)
    }

    fn kernel_bytes(&self) -> usize {
        self.0.kernel_bytes()
    }

    fn discard_on_close(&mut self) -> io::Result<()> {
        self.0.discard_on_close()
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        self.0.connect_outcome()
    }
}

/// The gateway's end, with a report to the kernel after each call.
pub struct Secured {
    tls: Box<dyn Transport>,
    /// The same socket; closing it is the other's business.
    kernel: super::Shared,
    link: super::LinkId,
    is_established: bool,
    is_end_met: bool,
}

impl Secured {
    pub fn new(near: Near, is_dialed: bool) -> Secured {
        let (kernel, link) = (std::rc::Rc::clone(&near.kernel), near.link);
        let layer = tls::Layer::new(keys().gateway.clone()).expect("random numbers");
        let below = Socket::Other(Box::new(Below(near)));
        let secured = match is_dialed {
            true => layer.dial(below, NAME, Verify::Yes).expect("a name"),
            false => layer.accept(below).expect("a certificate"),
        };
        let Socket::Other(tls) = secured else { panic!("TLS on a socket of the kernel") };
        Secured { tls, kernel, link, is_established: false, is_end_met: false }
    }

    fn note_read(&mut self, done: &io::Result<usize>) {
        match done {
            Ok(0) => self.is_end_met = true,
            Ok(n) => {
                let kernel = &mut *self.kernel.borrow_mut();
                kernel.note_taken(self.link, *n);
                // Progress without a call to the kernel, if the plaintext was held.
                kernel.moves += 1;
            }
            Err(error) => self.is_end_met |= !is_transient(error),
        }
        self.report();
    }

    fn note_write(&mut self, done: &io::Result<usize>) {
        if let Ok(n) = done {
            self.kernel.borrow_mut().links[self.link].wrote(*n, false);
        }
        self.report();
    }

    /// Shows the kernel what is held here.
    fn report(&mut self) {
        self.is_established |= self.tls.is_write_pending();
        let kernel = &mut *self.kernel.borrow_mut();
        let layer = kernel.links[self.link].layer.as_mut().expect("a link with records");
        layer.is_established = self.is_established;
        layer.is_input_held = self.tls.is_read_pending() && !self.is_end_met;
        layer.held_output = usize::from(self.tls.is_output_held());
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Read for Secured {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let done = self.tls.read(buf);
        self.note_read(&done);
        done
    }
}

impl Write for Secured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.tls.write(bytes);
        self.note_write(&done);
        done
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.tls.flush();
        self.report();
        done
    }
}

impl Transport for Secured {
    fn handshake(&mut self) -> io::Result<Security> {
        let done = self.tls.handshake();
        self.report();
        done
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        let done = self.tls.shutdown_write();
        self.report();
        done
    }

    fn omit_close(&mut self) {
        self.tls.omit_close();
    }

    fn note_ready(&mut self, ready: Ready) {
        self.tls.note_ready(ready);
    }

    fn is_buffering(&self) -> bool {
        self.tls.is_buffering()
    }

    fn is_read_pending(&self) -> bool {
        self.tls.is_read_pending()
    }

    fn is_write_pending(&self) -> bool {
        self.tls.is_write_pending()
    }

    fn is_output_held(&self) -> bool {
        self.tls.is_output_held()
    }

    fn unacknowledged(&self) -> Option<usize> {
        self.tls.unacknowledged()
    }

    fn kernel_bytes(&self) -> usize {
        self.tls.kernel_bytes()
    }

    fn limit_buffers(&mut self, bytes_max: usize) -> io::Result<()> {
        self.tls.limit_buffers(bytes_max)
    }

    fn limit_unsent(&mut self, bytes: usize) -> io::Result<()> {
        self.tls.limit_unsent(bytes)
    }

    fn discard_on_close(&mut self) -> io::Result<()> {
        let done = self.tls.discard_on_close();
        self.report();
        done
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        self.tls.connect_outcome()
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.tls.write_more(bytes);
        self.note_write(&done);
        done
    }

    fn set_corked(&mut self, is_corked: bool) -> io::Result<()> {
        self.tls.set_corked(is_corked)
    }

    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
        self.kernel.borrow_mut().links[self.link].note_file_read();
        let done = self.tls.send_file(file, offset, count);
        self.note_write(&done);
        done
    }
}
