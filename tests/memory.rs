//! The memory budget: what is shared is held once, everything is counted and given back, new work
//! is refused when little is left, and the largest holder goes when the limit is exceeded.

#[path = "sim/kernel.rs"]
#[expect(dead_code, reason = "only a part of the simulation is needed here")]
mod kernel;
#[path = "sim/process.rs"]
#[expect(dead_code, reason = "only a part of the simulation is needed here")]
mod process;

use aivtuber_gateway::gateway;
use aivtuber_gateway::service::assets::Files;
use aivtuber_gateway::service::route::{Access, RouteSettings, TargetSettings};
use aivtuber_gateway::service::trust::{self, PeerRule};
use aivtuber_gateway::service::url::{BackendUrl, Template};
use aivtuber_gateway::service::{limits, link, tasks};
use aivtuber_gateway::session::{self, MemoryLimit};
use kernel::{Action, Host, Kernel, LinkId, Nature, Records, Shared};
use process::{Arrival, Process};
use std::path::Path;
use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const TASK: &str = "7d3e1c4a-0000-4000-8000-000000000001";

/// A gateway with the embedded inbox and one backend, in a world where nothing takes time.
struct Scene {
    kernel: Shared,
    process: Process,
}

impl Scene {
    fn new(memory_limit: MemoryLimit) -> Scene {
        let nature = Nature {
            receive_max: 64 * MIB,
            send_max: 64 * KIB,
            latency: Duration::ZERO,
            cuts: false,
            has_quirks: false,
            splices: false,
            peeks_ahead: true,
            records: Records::None,
        };
        let kernel = Kernel::new(1, nature);
        let backend = "10.0.0.1:80".parse().expect("an address");
        kernel.borrow_mut().hosts.insert(backend, Host::Up(Duration::ZERO));
        let url = BackendUrl::parse("ws://10.0.0.1/").expect("a URL");
        let route = |name: &str, path: &str, target| RouteSettings {
            name: name.into(),
            path: Template::parse(path).expect("a path"),
            target,
        };
        let settings = gateway::Settings {
            session: session::Settings { memory_limit, ..session::Settings::default() },
            limits: limits::Settings {
                max_connections: 1000,
                max_connections_per_ip: 0,
                allowed_origins: Vec::new(),
            },
            routes: vec![
                route(
                    "input",
                    "/ws/input",
                    TargetSettings::Backend { urls: vec![url], host: None, learn_task: None },
                ),
                route("output", "/ws/output/{task_id}", TargetSettings::Output),
                route("ingest", "/ws/ingest", TargetSettings::Ingest(Access::default())),
                route(
                    "app",
                    "/app/{file...}",
                    TargetSettings::Files(Files {
                        folder: Path::new(env!("CARGO_MANIFEST_DIR")).into(),
                        fallback: None,
                    }),
                ),
            ],
            drain_timeout: None,
            trust: trust::Settings {
                admin_from: vec![PeerRule::parse("192.0.2.0/24").expect("a network")],
                ..trust::Settings::default()
            },
            upstreams: Default::default(),
            tls: Default::default(),
            tasks: tasks::Settings { max_retained: 12 * MIB, ..tasks::Settings::default() },
            link: link::Settings {
                urls: vec!["embedded://127.0.0.1:0".into()],
                ..link::Settings::default()
            },
        };
        Scene { process: Process::new(&kernel, settings, 1), kernel }
    }

    /// Everything happens that can.
    fn settle(&mut self) {
        loop {
            let action = self.kernel.borrow_mut().poll_action();
            let now = self.kernel.borrow().now;
            match action {
                Some(Action::Deliver(link)) => self.kernel.borrow_mut().deliver(link),
                Some(Action::Edge(link)) => self.kernel.borrow_mut().late_edge(link),
                Some(Action::Dialed(link, outcome)) => {
                    self.kernel.borrow_mut().dialed(link, outcome);
                }
                Some(Action::Peer(_) | Action::Plan(_)) => {}
                None if self.kernel.borrow().has_edges() || self.process.is_due(now) => {
                    let events = self.kernel.borrow_mut().take_events();
                    self.process.turn(events).expect("a turn that does something");
                }
                None => return,
            }
        }
    }

    /// A client connects and sends `bytes`; it reads nothing by itself.
    fn client(&mut self, bytes: &str) -> LinkId {
        let link = self.kernel.borrow_mut().open();
        self.process.arrivals.push_back(Arrival::Client(link));
        self.send(link, bytes.as_bytes());
        link
    }

    fn waiting_client(&mut self) -> LinkId {
        self.client(&upgrade(&format!("/ws/output/{TASK}")))
    }

    /// A worker connects to the inbox and sends `bytes`.
    fn worker(&mut self, bytes: &[u8]) -> LinkId {
        let link = self.kernel.borrow_mut().open();
        self.process.arrivals.push_back(Arrival::Worker(link));
        self.send(link, bytes);
        link
    }

    fn send(&mut self, link: LinkId, bytes: &[u8]) {
        self.kernel.borrow_mut().send(link, bytes);
        self.settle();
    }

    /// What the peer at the far end gets until nothing more comes.
    fn read(&mut self, link: LinkId) -> String {
        let mut all = Vec::new();
        loop {
            let bytes = self.kernel.borrow_mut().receive(link, usize::MAX);
            if bytes.is_empty() {
                return String::from_utf8_lossy(&all).into_owned();
            }
            all.extend(bytes);
            self.settle();
        }
    }

    fn is_closed(&self, link: LinkId) -> bool {
        self.kernel.borrow().links[link].is_dropped
    }

    fn held(&self) -> usize {
        let gateway = &self.process.gateway;
        gateway.memory().0 - gateway.ledger_bytes()
    }

    fn close(&mut self, links: &[LinkId]) {
        for &link in links {
            self.kernel.borrow_mut().close(link);
        }
        self.settle();
    }
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A WebSocket frame of a worker: a chunk of speech, with this much in a field of its own.
fn speech_chunk(field_bytes: usize) -> Vec<u8> {
    let field = "x".repeat(field_bytes);
    let text = format!(
        r#"{{"type":"SPEECH_CHUNK","sessionId":"{TASK}","pcm":"AAAA","viseme":"{field}"}}"#
    );
    let mut frame = vec![0x81, 0xff];
    frame.extend((text.len() as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.bytes());
    frame
}

fn publish(text_bytes: usize) -> Vec<u8> {
    let payload = format!(r#"{{"text":"{}","final":false}}"#, "x".repeat(text_bytes));
    let channel = format!("task_response:{TASK}");
    format!(
        "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n",
        channel.len(),
        payload.len()
    )
    .into_bytes()
}

#[test]
fn clients_of_a_task_share_a_long_result() {
    for connects_first in [true, false] {
        let mut scene = Scene::new(MemoryLimit::Unlimited);
        let mut clients = Vec::new();
        if connects_first {
            clients = (0..50).map(|_| scene.waiting_client()).collect();
        }
        let worker = scene.worker(&publish(2 * MIB));
        if !connects_first {
            clients = (0..50).map(|_| scene.waiting_client()).collect();
        }
        let held = scene.held();
        assert!(held > 4 * MIB, "kept, and parsed for those that wait: {held}");
        assert!(held < 6 * MIB, "not a copy for each of 50 clients: {held}");
        let got = scene.read(clients[7]);
        assert!(got.contains(&"x".repeat(2 * MIB)), "it arrives whole");
        assert!(
            got.ends_with(r#"","audio_present":false,"result_id":0,"final":false}"#),
            "and so does its end"
        );
        clients.push(worker);
        scene.close(&clients);
        let held = scene.held();
        assert!(held < 2 * MIB + 64 * KIB, "only what is kept is left: {held}");
    }
}

#[test]
fn everything_is_counted_and_given_back() {
    let mut scene = Scene::new(MemoryLimit::Unlimited);
    assert_eq!(scene.held(), 0);
    let worker = scene.worker(&publish(MIB)[..MIB / 2]);
    assert!(scene.held() >= MIB / 2, "half a command: {}", scene.held());
    let head = scene.client(&upgrade("/ws/input")[..40]);
    let asking = scene.client(&"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(60));
    let relayed = scene.client(&upgrade("/ws/input"));
    let before = scene.held();
    scene.send(relayed, &[0x82, 0x05, 1, 2, 3, 4, 5]);
    assert!(scene.held() > before, "what comes before the backend has answered is kept");
    scene.close(&[worker, head, asking, relayed]);
    assert_eq!(scene.held(), 0);
}

#[test]
fn the_largest_holder_goes_when_the_limit_is_exceeded() {
    let mut scene = Scene::new(MemoryLimit::Bytes(8 * MIB as u64));
    let small: Vec<LinkId> = (0..20).map(|_| scene.worker(&publish(MIB)[..60_000])).collect();
    let large = scene.worker(&publish(12 * MIB)[..3 * MIB]);
    assert!(!scene.is_closed(large), "there is room: {}", scene.held());
    scene.send(large, &vec![b'x'; 4 * MIB]);
    assert!(scene.read(large).contains("-ERR out of memory budget"));
    scene.close(&[large]);
    assert!(scene.is_closed(large));
    assert!(small.iter().all(|&link| !scene.is_closed(link)), "the others stay");
    assert!(scene.held() < 8 * MIB);
}

#[test]
fn workers_with_half_a_chunk_of_speech_are_counted_and_closed_with_1013() {
    let mut scene = Scene::new(MemoryLimit::Bytes(4 * MIB as u64));
    // An admin's request: an address as host, and no origin.
    let request = upgrade("/ws/ingest").replace("Host: a", "Host: 127.0.0.1");
    let mut workers = Vec::new();
    let refusal = loop {
        let worker = scene.client(&request);
        let answer = scene.read(worker);
        if !answer.starts_with("HTTP/1.1 101 ") {
            break answer;
        }
        let (held, half) = (scene.held(), if workers.is_empty() { 5000 } else { 90_000 });
        scene.send(worker, &speech_chunk(100_000)[..half]);
        assert!(scene.held() >= held + half, "half a message is counted");
        workers.push(worker);
        assert!(workers.len() < 60, "{} bytes are held", scene.held());
    };
    assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal}");
    let is_told = |scene: &mut Scene, worker| scene.read(worker).contains("out of memory budget");
    assert!(!is_told(&mut scene, workers[0]), "it holds little");
    let told: Vec<LinkId> =
        workers.iter().copied().filter(|worker| is_told(&mut scene, *worker)).collect();
    assert_eq!(told.len(), 1, "one holder was enough");
    scene.close(&told);
    let closed = "GET /connections/closed HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let closed = scene.client(closed);
    let closed = scene.read(closed);
    let one = closed
        .split(r#""reason":"over_budget","failure":true,"#)
        .nth(1)
        .expect("it is in the ledger");
    assert!(one.starts_with(r#""client_code":1013,"#), "{one}");
    assert!(one.contains(r#""client_close":"received""#), "{one}");
}

#[test]
fn new_work_is_refused_while_little_is_left_until_the_largest_holder_has_made_room() {
    let mut scene = Scene::new(MemoryLimit::Bytes(8 * MIB as u64));
    let mut filler = Vec::new();
    while scene.held() < 7 * MIB + 600 * KIB {
        filler.push(scene.worker(&publish(MIB)[..200_000]));
    }
    assert!(filler.iter().all(|&link| !scene.is_closed(link)), "{}", scene.held());
    let ended = |scene: &mut Scene| {
        filler.iter().filter(|&&link| scene.read(link).starts_with("-ERR out of memory")).count()
    };
    let metrics = scene.client("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let metrics = scene.read(metrics);
    assert!(metrics.contains("aivtuber_gateway_memory_limit_bytes 8388608\n"), "{metrics}");
    let held = metrics.split("\naivtuber_gateway_memory_held_bytes ").nth(1).expect("a gauge");
    let held: usize = held.lines().next().and_then(|line| line.parse().ok()).expect("a number");
    assert!(held > 7 * MIB + 512 * KIB && held <= 8 * MIB, "{held}");
    assert!(metrics.contains("aivtuber_gateway_sessions_shed_total 0\n"), "{metrics}");
    let client = scene.waiting_client();
    assert!(scene.read(client).starts_with("HTTP/1.1 503 "), "an upgrade");
    assert_eq!(ended(&mut scene), 1, "one holder was enough");
    let worker = scene.worker(&publish(100));
    assert!(scene.read(worker).starts_with(":1"), "now there is room");
    scene.send(worker, &publish(200 * KIB));
    assert!(scene.read(worker).starts_with("-ERR out of memory budget"), "a long result");
    scene.send(worker, &publish(200 * KIB));
    assert!(scene.read(worker).starts_with(":1"));
    let client = scene.waiting_client();
    assert!(scene.read(client).starts_with("HTTP/1.1 "), "operators and clients are answered");
}

#[test]
fn downloads_and_files_are_refused_while_little_is_left() {
    for path in [format!("/audio/{TASK}"), "/app/Cargo.toml".to_owned()] {
        let mut scene = Scene::new(MemoryLimit::Bytes(8 * MIB as u64));
        while scene.held() < 7 * MIB + 600 * KIB {
            scene.worker(&publish(MIB)[..200_000]);
        }
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let client = scene.client(&request);
        let answer = scene.read(client);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{path}: {answer}");
        assert!(answer.ends_with(r#""error":"Out of memory budget"}"#), "{path}: {answer}");
        assert_eq!(scene.process.gateway.stats().sessions_shed, 1, "that made room");
        scene.send(client, request.as_bytes());
        let answer = scene.read(client);
        assert!(!answer.starts_with("HTTP/1.1 503 "), "{path}: {answer}");
    }
}

#[test]
fn kept_results_make_room_before_a_connection_that_holds_less() {
    let mut scene = Scene::new(MemoryLimit::Bytes(8 * MIB as u64));
    let worker = scene.worker(&publish(MIB));
    for _ in 0..4 {
        scene.send(worker, &publish(MIB));
    }
    assert!(scene.held() > 5 * MIB, "{}", scene.held());
    let other = scene.worker(&publish(12 * MIB)[..3 * MIB + MIB / 2]);
    assert!(!scene.is_closed(other) && !scene.is_closed(worker), "{}", scene.held());
    assert!(scene.held() <= 8 * MIB);
    scene.process.check_quiet().expect("what follows from it is done at once");
    assert!(scene.process.gateway.stats().results_evicted > 0);
}

/// The client's and the backend's end of a relay.
fn relay(scene: &mut Scene) -> (LinkId, LinkId) {
    let client = scene.client(&upgrade("/ws/input"));
    let backend = scene.kernel.borrow_mut().established.pop_front().expect("it was dialed");
    scene.settle();
    let asked = scene.read(backend);
    assert!(asked.starts_with("GET / HTTP/1.1"), "{asked}");
    // The answer to the key of `upgrade`.
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    scene.send(backend, accepted.as_bytes());
    assert!(scene.read(client).starts_with("HTTP/1.1 101 "));
    (client, backend)
}

/// Workers come that hold a little each, until a session is ended for it. Returns the workers.
fn fill(scene: &mut Scene) -> Vec<LinkId> {
    let mut workers = Vec::new();
    while scene.process.gateway.stats().sessions_shed == 0 {
        workers.push(scene.worker(&publish(MIB)[..5000]));
        assert!(workers.len() < 800, "{} bytes are held", scene.held());
    }
    workers
}

fn binary_frame(length: u16, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut frame = vec![0x82, 126 | if mask.is_some() { 0x80 } else { 0 }];
    frame.extend(length.to_be_bytes());
    frame.extend(mask.into_iter().flatten());
    frame.resize(frame.len() + usize::from(length), b'x');
    frame
}

#[test]
fn the_client_of_the_largest_relay_gets_1013_between_two_frames() {
    let mut scene = Scene::new(MemoryLimit::Bytes(2 * MIB as u64));
    let (client, _backend) = relay(&mut scene);
    // The backend reads nothing: its socket is nearly full, so the second frame is held.
    scene.send(client, &binary_frame(60_000, Some([0; 4])));
    scene.send(client, &binary_frame(60_000, Some([0; 4])));
    let workers = fill(&mut scene);
    let close = [&[0x88, 22, 0x03, 0xf5][..], b"out of memory budget"].concat();
    assert_eq!(scene.read(client), String::from_utf8_lossy(&close));
    assert!(workers.iter().all(|worker| !scene.is_closed(*worker)), "they hold less");
}

#[test]
fn a_relay_that_ends_for_memory_within_a_frame_has_nothing_else_in_it() {
    let mut scene = Scene::new(MemoryLimit::Bytes(2 * MIB as u64));
    let (client, backend) = relay(&mut scene);
    // The client reads nothing, so it gets a part of the second frame.
    scene.send(backend, &binary_frame(60_000, None));
    scene.send(backend, &binary_frame(60_000, None));
    fill(&mut scene);
    let got = scene.read(client);
    let frames = String::from_utf8_lossy(&binary_frame(60_000, None)).repeat(2);
    assert!(frames.starts_with(&got) && got.len() < frames.len(), "{} bytes", got.len());
    assert!(scene.is_closed(client));
    // Nothing is under way to the backend.
    let close = [&[0x03, 0xe9][..], b"out of memory budget"].concat();
    let frame = scene.kernel.borrow_mut().receive(backend, usize::MAX);
    assert_eq!(frame[..2], [0x88, 0x80 | close.len() as u8], "a Close frame");
    let mask = frame[2..6].iter().cycle();
    let unmasked = frame[6..].iter().zip(mask).map(|(byte, mask)| byte ^ mask);
    assert!(unmasked.eq(close), "{frame:x?}");
}

#[test]
fn the_largest_client_of_results_gets_1013_between_two_messages() {
    let mut scene = Scene::new(MemoryLimit::Bytes(2 * MIB as u64));
    let client = scene.waiting_client();
    assert!(scene.read(client).starts_with("HTTP/1.1 101 "));
    let worker = scene.worker(b"");
    // Eight messages fill its socket to the last byte. Progress is not kept: the others are held
    // for this client alone.
    let message = |text: &str| {
        format!(
            r#"{{"status":"progress","task_id":"{TASK}","content":"{text}","audio_present":false,"final":false}}"#
        )
    };
    let text = "x".repeat(64 * KIB / 8 - 4 - message("").len());
    let payload = format!(r#"{{"status":"processing","text":"{text}"}}"#);
    let channel = format!("task_response:{TASK}");
    for _ in 0..40 {
        let command = format!(
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n",
            channel.len(),
            payload.len()
        );
        scene.send(worker, command.as_bytes());
    }
    let workers = fill(&mut scene);
    let got = scene.read(client);
    assert_eq!(got.matches(&message(&text)).count(), 8);
    assert!(got.ends_with("out of memory budget"), "{}", &got[got.len() - 100..]);
    assert!(workers.iter().all(|worker| !scene.is_closed(*worker)), "they hold less");
    scene.close(&[client]);
    let closed = scene.client("GET /connections/closed HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let closed = scene.read(closed);
    assert!(
        closed.contains(r#""reason":"over_budget","failure":true,"client_code":1013,"#),
        "{closed}"
    );
}
