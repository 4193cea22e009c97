//! Both ends of TLS over a wire that cuts records anywhere and takes as little as it likes.

#![expect(clippy::disallowed_types, reason = "both ends share a wire")]

use super::records::Tls;
use super::{Layer, Settings, Uses, Verify, load};
use crate::base::testing::TestFolder;
use crate::net::{Conn, Io, Ready, Security, Socket, Transport};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::rc::Rc;

/// Bytes on their way to one end.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// Bytes that were ever written.
    total: usize,
    is_ended: bool,
    /// The last write stopped short: room is an event.
    is_awaited: bool,
}

const WAY_BYTES_MAX: usize = 30_000;

struct TlsWire {
    ways: [Way; 2],
    chance: fastrand::Rng,
}

/// One end of the wire, without TLS.
struct End(Rc<RefCell<TlsWire>>, usize);

impl Read for End {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let TlsWire { ways, chance } = &mut *self.0.borrow_mut();
        let way = &mut ways[self.1];
        if way.bytes.is_empty() {
            return if way.is_ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        if chance.u8(..16) == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        // As a socket does: all that is there and fits.
        let n = buf.len().min(way.bytes.len());
        buf.iter_mut().zip(way.bytes.drain(..n)).for_each(|(to, from)| *to = from);
        Ok(n)
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let TlsWire { ways, chance } = &mut *self.0.borrow_mut();
        let way = &mut ways[1 - self.1];
        let room = WAY_BYTES_MAX - way.bytes.len();
        let n = bytes.len().min(room).min(chance.usize(1..=40_000));
        way.is_awaited = n < bytes.len();
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        way.bytes.extend(&bytes[..n]);
        way.total += n;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for End {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.borrow_mut().ways[1 - self.1].is_ended = true;
        Ok(())
    }
}

/// What one end has still to send, and what it has got.
struct TlsPeer {
    conn: Conn,
    to_send: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
    is_ended: bool,
    is_shut: bool,
}

impl TlsPeer {
    fn new(socket: Socket, to_send: Vec<u8>) -> TlsPeer {
        let conn = Conn::accepted(socket);
        TlsPeer { conn, to_send, sent: 0, got: Vec::new(), is_ended: false, is_shut: false }
    }

    /// Does something that `Conn` says is possible. False: nothing is.
    fn act(&mut self, chance: &mut fastrand::Rng) -> io::Result<bool> {
        let before = (self.got.len(), self.sent, self.is_ended, self.is_shut);
        if self.conn.is_readable() && !self.is_ended {
            let mut buf = vec![0; [1, 100, 5_000, 69_632][chance.usize(..4)]];
            match self.conn.read(&mut buf)? {
                Io::Moved(n) => self.got.extend_from_slice(&buf[..n]),
                Io::Ended => self.is_ended = true,
                Io::Blocked => {}
            }
        }
        if self.conn.is_writable() && self.sent < self.to_send.len() {
            let left = &self.to_send[self.sent..];
            let most = [1, 64, 20_000, 200_000][chance.usize(..4)];
            if let Io::Moved(n) = self.conn.write(&left[..left.len().min(most)])? {
                self.sent += n;
            }
        }
        if self.sent == self.to_send.len() && !self.is_shut {
            self.is_shut = self.conn.shutdown_write();
        }
        Ok(before != (self.got.len(), self.sent, self.is_ended, self.is_shut))
    }
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

fn write(folder: &TestFolder, name: &str, content: &str) -> String {
    text(folder.write(name, content))
}

/// A certificate for `name`, and a layer for it and one that trusts it.
fn certified(name: &str) -> (TestFolder, Layer) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let dir = TestFolder::make();
    let (pem, key) = (
        write(&dir, "a.pem", &made.cert.pem()),
        write(&dir, "a.key", &made.signing_key.serialize_pem()),
    );
    let mut settings =
        Settings { certificate: vec![pem.clone()], key: vec![key], ca: pem, ..Settings::default() };
    load(&mut settings, Uses { listeners: true, dialed: true }).unwrap();
    (dir, Layer::new(settings).unwrap())
}

/// Both ends of a connection that the client calls `name`.
fn pair(
    layer: &Layer,
    name: &str,
    verify: Verify,
    seed: u64,
) -> (Rc<RefCell<TlsWire>>, Socket, Socket) {
    let wire = TlsWire { ways: Default::default(), chance: fastrand::Rng::with_seed(seed) };
    let wire = Rc::new(RefCell::new(wire));
    let end = |index| Socket::Other(Box::new(End(Rc::clone(&wire), index)));
    let server = layer.accept(end(0)).unwrap();
    let client = layer.dial(end(1), name, verify).unwrap();
    (wire, server, client)
}

/// Lets both peers act until nothing happens. Edges are reported once, as `epoll` does.
fn run(
    wire: &Rc<RefCell<TlsWire>>,
    peers: &mut [TlsPeer; 2],
    chance: &mut fastrand::Rng,
) -> io::Result<()> {
    let mut seen = [(0, false); 2];
    let mut idle = 0;
    while idle < 4 {
        let index = chance.usize(..2);
        let (readable, writable, read_closed) = {
            let wire = wire.borrow();
            let (way, out) = (&wire.ways[index], &wire.ways[1 - index]);
            let state = (way.total, way.is_ended);
            let has_news = state != seen[index];
            seen[index] = state;
            (
                has_news,
                out.is_awaited && out.bytes.len() < WAY_BYTES_MAX / 2,
                way.is_ended && has_news,
            )
        };
        if readable || writable {
            peers[index].conn.handle_ready(Ready { readable, writable, read_closed });
            wire.borrow_mut().ways[1 - index].is_awaited &= !writable;
        }
        let moved = peers[index].act(chance)?;
        let is_quiet = !moved && !readable && !writable;
        // Twice, each of them in turn.
        idle = if is_quiet { idle + usize::from(idle % 2 == index) } else { 0 };
    }
    Ok(())
}

#[test]
fn all_bytes_arrive_whatever_the_cuts() {
    let (_dir, layer) = certified("a.example");
    for seed in 0..60 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let (wire, server, client) = pair(&layer, "a.example", Verify::Yes, seed);
        let mut bytes =
            || (0..chance.usize(..200_000)).map(|at| at as u8 ^ 0x5a).collect::<Vec<u8>>();
        let mut peers = [TlsPeer::new(server, bytes()), TlsPeer::new(client, bytes())];
        run(&wire, &mut peers, &mut chance).unwrap();
        let [server, client] = peers;
        assert!(
            server.got == client.to_send,
            "{seed}: {} of {}",
            server.got.len(),
            client.to_send.len()
        );
        assert!(
            client.got == server.to_send,
            "{seed}: {} of {}",
            client.got.len(),
            server.to_send.len()
        );
        assert!(server.is_ended && client.is_ended && !server.conn.is_output_held(), "{seed}");
    }
}

#[test]
fn a_client_that_does_not_know_the_root_or_the_name_leaves_with_an_alert() {
    let (_dir, layer) = certified("a.example");
    let (_other_dir, other) = certified("b.example");
    for (name, dialing) in [("b.example", &layer), ("a.example", &other)] {
        let (wire, server, _) = pair(&layer, "a.example", Verify::Yes, 1);
        let end = Socket::Other(Box::new(End(Rc::clone(&wire), 1)));
        wire.borrow_mut().ways = Default::default();
        let client = dialing.dial(end, name, Verify::Yes).unwrap();
        let (mut server, mut client) = (Conn::accepted(server), Conn::accepted(client));
        let both = Ready { readable: true, writable: true, read_closed: false };
        let (mut refused, mut seen) = (None, None);
        for _ in 0..8 {
            client.handle_ready(both);
            refused = refused.or(client.write(b"x").err());
            server.handle_ready(both);
            seen = seen.or(server.handshake().err());
        }
        let refused = refused.unwrap().to_string();
        assert!(refused.contains("certificate"), "{name}: {refused}");
        let seen = seen.unwrap().to_string();
        assert!(seen.contains("alert"), "{name}: {seen}");
        // A route that says so accepts it.
        let (wire, server, client) = pair(&layer, name, Verify::No, 2);
        let mut peers =
            [TlsPeer::new(server, b"hello".to_vec()), TlsPeer::new(client, b"x".to_vec())];
        run(&wire, &mut peers, &mut fastrand::Rng::with_seed(3)).unwrap();
        assert_eq!(peers[1].got, b"hello");
    }
}

#[test]
fn only_a_complete_stream_ends_with_close_notify() {
    let (_dir, layer) = certified("a.example");
    let bytes_to_client = |is_cut: bool| {
        let (wire, server, client) = pair(&layer, "a.example", Verify::Yes, 4);
        let mut peers =
            [TlsPeer::new(server, b"a frame".to_vec()), TlsPeer::new(client, b"x".to_vec())];
        if is_cut {
            peers[0].conn.omit_close();
        }
        run(&wire, &mut peers, &mut fastrand::Rng::with_seed(5)).unwrap();
        assert!(peers[1].got == b"a frame" && peers[1].is_ended);
        wire.borrow().ways[1].total
    };
    // The first session is resumed by the others, whose handshakes have no certificate and no
    // signature, whose length varies.
    bytes_to_client(false);
    // A record with an alert of two bytes, its type and a tag (RFC 8446 §5.2).
    assert_eq!(bytes_to_client(false), bytes_to_client(true) + 5 + 2 + 1 + 16);
}

#[test]
fn a_client_without_tls_is_recognised_and_answered_as_it_speaks() {
    let (_dir, layer) = certified("a.example");
    let wire = TlsWire { ways: Default::default(), chance: fastrand::Rng::with_seed(6) };
    let wire = Rc::new(RefCell::new(wire));
    let mut conn =
        Conn::accepted(layer.accept(Socket::Other(Box::new(End(Rc::clone(&wire), 0)))).unwrap());
    conn.handle_ready(Ready { readable: true, ..Ready::default() });
    assert_eq!(conn.handshake().unwrap(), None);
    wire.borrow_mut().ways[0].bytes.extend(b"GET / HTTP/1.1\r\n\r\n");
    conn.handle_ready(Ready { readable: true, ..Ready::default() });
    assert_eq!(conn.handshake().unwrap(), Some(Security::PlainOnTls));
    let mut buf = [0; 100];
    assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(18));
    assert_eq!(conn.write(b"HTTP/1.1 400").unwrap(), Io::Moved(12));
    assert!(wire.borrow().ways[1].bytes.iter().eq(b"HTTP/1.1 400"));
}

#[test]
fn a_hello_that_is_none_is_refused_with_one_alert_at_most() {
    let (_dir, layer) = certified("a.example");
    let record = |payload: &[u8]| {
        let length = (payload.len() as u16).to_be_bytes();
        [&[0x16, 3, 1][..], &length, payload].concat()
    };
    let too_long = [&[1, 0xff, 0xff, 0xff][..], &[0; 16_380]].concat();
    let cases = [
        record(&too_long),
        [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat(),
        record(&[1, 0, 0, 4, 3, 3, 0, 0]),
        record(&[11, 0, 0, 0]),
        [record(&[1, 0, 0, 4, 3, 3, 0, 0]), record(&[1, 0, 0, 4, 3, 3, 0, 0])].concat(),
        record(&[0xff; 200]),
    ];
    let mut alerts = 0;
    for hello in cases {
        let wire = TlsWire { ways: Default::default(), chance: fastrand::Rng::with_seed(6) };
        let wire = Rc::new(RefCell::new(wire));
        let end = Socket::Other(Box::new(End(Rc::clone(&wire), 0)));
        let mut conn = Conn::accepted(layer.accept(end).unwrap());
        wire.borrow_mut().ways[0].bytes.extend(&hello);
        conn.handle_ready(Ready { readable: true, ..Ready::default() });
        let mut tries = 0;
        while conn.handshake().is_ok() {
            conn.handle_ready(Ready { readable: true, writable: true, ..Ready::default() });
            tries += 1;
            assert!(tries < 10, "{:02x?} is not refused", &hello[..9]);
        }
        let sent: Vec<u8> = wire.borrow().ways[1].bytes.iter().copied().collect();
        alerts += usize::from(!sent.is_empty());
        let is_one_alert = sent.len() == 7 && sent[0] == 0x15;
        assert!(sent.is_empty() || is_one_alert, "{:02x?}: {sent:02x?}", &hello[..9]);
    }
    assert!(alerts > 0);
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    let (_dir, layer) = certified("a.example");
    let (wire, server, client) = pair(&layer, "a.example", Verify::Yes, 7);
    let mut peers =
        [TlsPeer::new(server, vec![7; 150_000]), TlsPeer::new(client, vec![7; 150_000])];
    peers.iter_mut().for_each(|peer| peer.is_shut = true);
    run(&wire, &mut peers, &mut fastrand::Rng::with_seed(8)).unwrap();
    for TlsPeer { conn, got, .. } in &peers {
        assert_eq!(got.len(), 150_000);
        assert!(conn.kernel_bytes() < 6 * 1024, "{} bytes", conn.kernel_bytes());
    }
    assert!(size_of::<Tls>() < 256, "{}", size_of::<Tls>());
}

#[test]
fn certificates_are_chosen_by_name_and_the_first_serves_unknown_ones() {
    let dir = TestFolder::make();
    let mut settings = Settings::default();
    for name in ["first.example", "*.second.example"] {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let file = name.trim_start_matches("*.");
        settings.certificate.push(write(&dir, &format!("{file}.pem"), &made.cert.pem()));
        settings.key.push(write(&dir, &format!("{file}.key"), &made.signing_key.serialize_pem()));
    }
    let serves = |name: &str, root: &str| {
        let mut settings = settings.clone();
        settings.ca = root.to_owned();
        load(&mut settings, Uses { listeners: true, dialed: true }).unwrap();
        let layer = Layer::new(settings).unwrap();
        let (wire, server, client) = pair(&layer, name, Verify::Yes, 9);
        let mut peers = [TlsPeer::new(server, b"hi".to_vec()), TlsPeer::new(client, b"x".to_vec())];
        run(&wire, &mut peers, &mut fastrand::Rng::with_seed(1)).is_ok()
    };
    let [first, second] = [settings.certificate[0].clone(), settings.certificate[1].clone()];
    assert!(serves("first.example", &first) && serves("a.second.example", &second));
    assert!(!serves("a.second.example", &first), "the certificate is the other one");
    // With a name that no certificate has, the client gets the first one and does not accept it.
    assert!(!serves("third.example", &first) && !serves("third.example", &second));
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    let (dir, _) = certified("a.example");
    let (_other, layer) = certified("b.example");
    let (pem, key) = (text(dir.join("a.pem")), text(dir.join("a.key")));
    let empty = write(&dir, "empty.pem", "nothing");
    let other_key = layer.settings().key[0].clone();
    let wrong = |certificate: &[&str], key: &[&str]| {
        let texts = |paths: &[&str]| paths.iter().map(ToString::to_string).collect();
        let mut settings =
            Settings { certificate: texts(certificate), key: texts(key), ..Settings::default() };
        let error = load(&mut settings, Uses { listeners: true, dialed: false }).unwrap_err();
        assert_eq!(settings.loaded, Default::default());
        format!("{}: {}", error.key, error.why)
    };
    assert!(wrong(&[], &[]).starts_with("certificate: a tls:// address is listened on"));
    assert!(wrong(&[&pem, &pem], &[&key]).starts_with("key: 1 keys for 2 certificates"));
    assert!(wrong(&["/no/where"], &[&key]).starts_with("certificate: /no/where cannot be read: "));
    assert_eq!(
        wrong(&[&empty], &[&key]),
        format!("certificate: {empty} holds no certificate in PEM")
    );
    assert_eq!(wrong(&[&pem], &[&empty]), format!("key: {empty}: it holds no private key in PEM"));
    assert_eq!(
        wrong(&[&pem], &[&other_key]),
        format!("key: {other_key} is not the key to the certificate in {pem}")
    );
}
