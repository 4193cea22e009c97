//! Results and a real Redis: what is kept there, in which order, and how often, with several
//! gateways, absences and restarts.
//!
//! A [`Process`] is a whole gateway, turned by the test; its Redis sockets go to a `redis-server`
//! that each test starts for itself, on a Unix socket in a folder of its own. Only the clients are
//! in memory.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::net::{Network, PeerAddress, Ready, Side, Socket, Source, Transport};
use aivtuber_gateway::reactor::clock::Clock;
use aivtuber_gateway::service::limits;
use aivtuber_gateway::service::link::{self, REDIS_ROLES, RedisRole, Subscribe};
use aivtuber_gateway::service::route::{RouteSettings, TargetSettings};
use aivtuber_gateway::service::tasks::{self, Status};
use aivtuber_gateway::service::url::Template;
use aivtuber_gateway::session;
use aivtuber_gateway::session::jobs::Job;
use log::{LevelFilter, Log, Metadata, Record};
use redis::Commands;
use uuid::Uuid;

/// Timeout for whatever a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server` of the test's own, stopped with it.
struct Server {
    folder: PathBuf,
    process: Child,
}

impl Server {
    fn start() -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "aivtuber-kept-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let process = Server::spawn(&folder);
        let server = Server { folder, process };
        server.await_ready();
        server
    }

    fn spawn(folder: &std::path::Path) -> Child {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
        command.arg("--unixsocket").arg(folder.join("socket"));
        command.stdout(Stdio::null()).spawn().expect("redis-server is installed")
    }

    fn await_ready(&self) {
        let since = Instant::now();
        while self.try_client().is_none() {
            assert!(since.elapsed() < PATIENCE, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills it and starts an empty one in its place.
    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Server::spawn(&self.folder);
        self.await_ready();
    }

    fn url(&self) -> String {
        format!("unix://{}", self.folder.join("socket").display())
    }

    fn try_client(&self) -> Option<redis::Connection> {
        let mut client = redis::Client::open(self.url()).ok()?.get_connection().ok()?;
        redis::cmd("PING").query::<String>(&mut client).ok()?;
        Some(client)
    }

    fn client(&self) -> redis::Connection {
        self.try_client().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// One gateway process: the gateway itself, with clients in memory and its Redis sockets to a real
/// server.
struct Process {
    clock: Clock,
    gateway: Gateway,
    redis: Rc<RefCell<RedisStreams>>,
    clients: HashMap<ClientId, Client>,
    last_client: ClientId,
}

type ClientId = u32;

/// The streams of the two Redis connections, in the order of `REDIS_ROLES`. `None`: not connected,
/// or cut.
type RedisStreams = [Option<UnixStream>; 2];

struct Client {
    /// The slot of its session.
    key: usize,
    wire: Rc<RefCell<ClientWire>>,
}

/// What is on the way between a client and its session.
#[derive(Default)]
struct ClientWire {
    to_gateway: VecDeque<u8>,
    from_gateway: Vec<u8>,
    has_left: bool,
}

/// An event that announces everything; the call then finds out what is there.
const READY: Ready = Ready { readable: true, writable: true, read_closed: false };

impl Process {
    /// Not connected yet: that takes [`Process::step`].
    fn new(url: &str, subscribe: Subscribe) -> Process {
        Process::with(url, subscribe, tasks::Settings::default())
    }

    fn with(url: &str, subscribe: Subscribe, tasks: tasks::Settings) -> Process {
        let urls = vec![url.into()];
        let link = link::Settings { urls, subscribe, ..Default::default() };
        Process::create(link, tasks, session::Settings::default())
    }

    /// One that sends audio of this folder.
    fn with_audio(server: &Server, audio_root: &Path, subscribe: Subscribe) -> Process {
        let link = link::Settings { urls: vec![server.url()], subscribe, ..Default::default() };
        let mut session = session::Settings::default();
        session.output.audio_root = audio_root.into();
        Process::create(link, tasks::Settings::default(), session)
    }

    fn with_urls(urls: &[String]) -> Process {
        let link = link::Settings { urls: urls.to_vec(), ..Default::default() };
        Process::create(link, tasks::Settings::default(), session::Settings::default())
    }

    fn create(link: link::Settings, tasks: tasks::Settings, session: session::Settings) -> Process {
        start_log();
        let redis = Rc::default();
        let settings = gateway::Settings {
            trust: Default::default(),
            session,
            limits: limits::Settings {
                max_connections: 1000,
                max_connections_per_ip: 0,
                allowed_origins: Vec::new(),
            },
            routes: vec![RouteSettings {
                name: "output".into(),
                path: Template::parse("/ws/output/{task_id}").unwrap(),
                target: TargetSettings::Output,
            }],
            drain_timeout: None,
            tasks,
            link,
            upstreams: Default::default(),
            tls: Default::default(),
        };
        let clock = Clock::start();
        let network = Box::new(RedisNetwork(Rc::clone(&redis)));
        let chance = fastrand::Rng::new();
        let gateway = Gateway::new(settings, network, chance, clock.now(), SystemTime::now());
        Process { clock, gateway: gateway.unwrap(), redis, clients: HashMap::new(), last_client: 0 }
    }

    /// One that is connected.
    fn start(server: &Server) -> Process {
        let mut process = Process::new(&server.url(), Subscribe::Pattern);
        await_all(&mut [&mut process], |processes| processes[0].is_up());
        process
    }

    /// A turn in which Redis may have sent something.
    fn step(&mut self) {
        self.turn(&[Source::Link(0), Source::Link(1)], None);
    }

    fn turn(&mut self, events: &[Source], arrives: Option<(Socket, SocketAddr)>) {
        self.gateway.begin_turn(self.clock.now());
        for source in events {
            self.gateway.ready(*source, READY);
        }
        self.gateway.settle();
        if let Some((socket, address)) = arrives {
            self.gateway.admit(socket, address);
        }
        self.gateway.finish_turn();
        while let Some(job) = self.gateway.poll_job() {
            if let Job::File(job) = job {
                let answer = job.run();
                self.gateway.begin_turn(self.clock.now());
                self.gateway.handle_answer(answer);
                self.gateway.settle();
                self.gateway.finish_turn();
            }
        }
    }

    /// Cuts its connection of this role, which it notices when it next reads.
    fn cut(&mut self, role: RedisRole) {
        self.redis.borrow_mut()[role as usize] = None;
    }

    /// Adds a client that waits for this task. Nothing is read from Redis meanwhile.
    fn join(&mut self, task: Uuid) -> ClientId {
        self.join_as(&task.to_string())
    }

    /// Adds a client that asks for what follows this in the query.
    fn join_with(&mut self, task: Uuid, query: &str) -> ClientId {
        self.join_as(&format!("{task}?{query}"))
    }

    fn join_as(&mut self, task: &str) -> ClientId {
        self.request(&format!(
            "GET /ws/output/{task} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
    }

    /// Adds a client that sends this.
    fn request(&mut self, request: &str) -> ClientId {
        self.last_client += 1;
        let key = self.gateway.next_key();
        let wire = Rc::new(RefCell::new(ClientWire::default()));
        wire.borrow_mut().to_gateway.extend(request.bytes());
        let socket = Socket::Other(Box::new(ClientSocket(Rc::clone(&wire))));
        self.turn(&[], Some((socket, ([192, 0, 2, 1], 1).into())));
        self.turn(&[Source::Session(key, Side::Downstream)], None);
        self.clients.insert(self.last_client, Client { key, wire });
        self.last_client
    }

    fn leave(&mut self, client: ClientId) {
        let Client { key, wire } = &self.clients[&client];
        wire.borrow_mut().has_left = true;
        self.turn(&[Source::Session(*key, Side::Downstream)], None);
    }

    /// The texts of the results that a client got, in order.
    fn got(&self, client: ClientId) -> Vec<String> {
        let wire = self.clients[&client].wire.borrow();
        let bytes = &wire.from_gateway;
        let head =
            bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        frames(&bytes[head..]).iter().map(|frame| content(frame)).collect()
    }

    /// The same, each after its `result_id`.
    fn got_numbered(&self, client: ClientId) -> Vec<String> {
        let wire = self.clients[&client].wire.borrow();
        let bytes = &wire.from_gateway;
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a 101") + 4;
        let numbered = |frame: &&[u8]| {
            let message = serde_json::from_slice::<serde_json::Value>(frame).expect("JSON");
            format!("{}{}", message["result_id"], content(frame))
        };
        frames(&bytes[head..]).iter().map(numbered).collect()
    }

    /// The response to a request for audio, its head and its content.
    fn download(&mut self, method: &str, path: &str) -> (String, String) {
        let request = format!("{method} /audio/{path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let client = self.request(&request);
        let wire = Rc::clone(&self.clients[&client].wire);
        await_all(&mut [self], |_| !wire.borrow().from_gateway.is_empty());
        self.leave(client);
        let response = String::from_utf8(wire.borrow().from_gateway.clone()).unwrap();
        let (head, content) = response.split_once("\r\n\r\n").expect("a whole head");
        (head.into(), content.into())
    }

    fn status(&mut self, task: Uuid) -> (Status, bool) {
        self.gateway.results().status(task)
    }

    fn is_up(&mut self) -> bool {
        self.gateway.results().is_up()
    }

    /// Everything that was asked of Redis has been answered, and clients have had what it said.
    fn is_answered(&mut self) -> bool {
        let results = self.gateway.results();
        let link = results.link().unwrap();
        let is_idle = link.is_up() && link.is_idle() && !results.has_deliveries();
        is_idle && !results.has_postponed_look_ups() && !results.has_more_work()
    }
}

/// The payloads of a server's frames, which are whole and not masked.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let [_, length, rest @ ..] = bytes {
        let (length, rest) = match length {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (usize::from_str_radix(&hex(&rest[..8]), 16).unwrap(), &rest[8..]),
            length => (usize::from(*length), rest),
        };
        let (frame, rest) = rest.split_at(length);
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content(frame: &[u8]) -> String {
    let Ok(message) = serde_json::from_slice::<serde_json::Value>(frame) else {
        return format!("close {}", u16::from_be_bytes([frame[0], frame[1]]));
    };
    let text = message["content"].as_str().or(message["error"].as_str());
    text.unwrap_or_else(|| panic!("{message} has no content")).into()
}

/// Connects to Redis, and keeps the streams where the test can cut them.
struct RedisNetwork(Rc<RefCell<RedisStreams>>);

impl Network for RedisNetwork {
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket> {
        let (PeerAddress::Unix(path), Source::Link(role)) = (to, source) else {
            panic!("{to:?} is dialed for {source:?}")
        };
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        self.0.borrow_mut()[role] = Some(stream);
        Ok(Socket::Other(Box::new(RedisSocket(Rc::clone(&self.0), role))))
    }
}

struct RedisSocket(Rc<RefCell<RedisStreams>>, usize);

impl Read for RedisSocket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut()[self.1].as_mut().map_or(Ok(0), |stream| stream.read(bytes))
    }
}

impl Write for RedisSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = Err(ErrorKind::BrokenPipe.into());
        self.0.borrow_mut()[self.1].as_mut().map_or(gone, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for RedisSocket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ClientSocket(Rc<RefCell<ClientWire>>);

impl Read for ClientSocket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        match wire.to_gateway.read(bytes)? {
            0 if !wire.has_left => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for ClientSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().from_gateway.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for ClientSocket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ---- the log

thread_local! {
    /// What this thread's gateways have logged about Redis.
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct RedisLog;

impl Log for RedisLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target() == "redis"
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            LOGGED.with(|lines| lines.borrow_mut().push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

fn start_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&RedisLog).expect("no other logger");
        log::set_max_level(LevelFilter::Info);
    });
}

/// What this thread's gateways have logged about Redis since the last call.
fn take_log() -> Vec<String> {
    LOGGED.with(|lines| std::mem::take(&mut *lines.borrow_mut()))
}

fn await_all(
    gateways: &mut [&mut Process],
    mut is_reached: impl FnMut(&mut [&mut Process]) -> bool,
) {
    let since = Instant::now();
    loop {
        gateways.iter_mut().for_each(|gateway| gateway.step());
        if is_reached(gateways) {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "the awaited state is never reached");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The results that a new client gets, once Redis has answered what it keeps.
fn results_of_a_new_client(gateway: &mut Process, task: Uuid) -> Vec<String> {
    let key = gateway.join(task);
    await_all(&mut [gateway], |gateways| {
        gateways[0].is_answered() && gateways[0].status(task) == (Status::Waiting, true)
    });
    let got = gateway.got(key);
    gateway.leave(key);
    got
}

/// The same with the `result_id` before each; `query`: what the client asks for.
fn numbered_results(gateway: &mut Process, query: &str) -> Vec<String> {
    let key = gateway.join_with(TASK, query);
    await_all(&mut [gateway], |gateways| {
        gateways[0].is_answered() && gateways[0].status(TASK) == (Status::Waiting, true)
    });
    let got = gateway.got_numbered(key);
    gateway.leave(key);
    got
}

fn publish(client: &mut redis::Connection, task: Uuid, text: &str) -> u32 {
    client.publish(format!("task_response:{task}"), payload(text)).unwrap()
}

fn payload(text: &str) -> String {
    format!(r#"{{"text":"{text}","final":false}}"#)
}

const TASK: Uuid = Uuid::from_u128(0x0f8fad5b_d9cb_469f_a165_70867728950e);

/// Waits until every gateway has received everything and Redis has confirmed all of it.
fn settle(gateways: &mut [&mut Process], server: &Server) {
    // A subscription keeps the order, so what was published before this marker arrives before it.
    let marker = Uuid::from_u128(fastrand::u128(..));
    publish(&mut server.client(), marker, "marker");
    await_all(gateways, |gateways| {
        gateways
            .iter_mut()
            .all(|gateway| gateway.status(marker).0 == Status::Ready && gateway.is_answered())
    });
}

#[test]
fn results_survive_a_restart_of_the_gateway() {
    let server = Server::start();
    let mut gateway = Process::start(&server);
    let mut worker = server.client();
    for text in ["a", "b", "a", "c"] {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut gateway], &server);
    assert_eq!(results_of_a_new_client(&mut gateway, TASK), ["a", "b", "a", "c"]);
    drop(gateway);
    let mut gateway = Process::start(&server);
    for _ in 0..2 {
        assert_eq!(results_of_a_new_client(&mut gateway, TASK), ["a", "b", "a", "c"]);
    }
    let ttl: i64 = worker.pttl(format!("task_response_kept:{TASK}")).unwrap();
    assert!(ttl > 200_000 && ttl <= 300_000, "{ttl}");
}

#[test]
fn numbers_are_the_same_on_every_gateway_and_after_a_restart() {
    let server = Server::start();
    let (mut one, mut other) = (Process::start(&server), Process::start(&server));
    let mut worker = server.client();
    for text in ["a", "b", "a"] {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut one, &mut other], &server);
    drop(other);
    publish(&mut worker, TASK, "c");
    settle(&mut [&mut one], &server);
    let expected = ["0a", "1b", "2a", "3c"];
    assert_eq!(numbered_results(&mut one, ""), expected);
    drop(one);
    // It hears the fifth one before it has asked Redis for the others.
    let mut fresh = Process::start(&server);
    publish(&mut worker, TASK, "d");
    settle(&mut [&mut fresh], &server);
    for mut gateway in [fresh, Process::start(&server)] {
        assert_eq!(numbered_results(&mut gateway, ""), ["0a", "1b", "2a", "3c", "4d"]);
        assert_eq!(numbered_results(&mut gateway, "from_result=3"), ["3c", "4d"]);
        assert_eq!(numbered_results(&mut gateway, "from_result=5"), [""; 0]);
    }
}

#[test]
fn numbers_follow_the_order_of_whoever_heard_all() {
    let server = Server::start();
    let mut steady = Process::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    publish(&mut worker, TASK, "b");
    let mut late = Process::start(&server);
    publish(&mut worker, TASK, "c");
    settle(&mut [&mut late], &server);
    assert_eq!(numbered_results(&mut Process::start(&server), ""), ["0c"]);
    settle(&mut [&mut steady], &server);
    for mut gateway in [steady, late, Process::start(&server)] {
        assert_eq!(numbered_results(&mut gateway, ""), ["0a", "1b", "2c"]);
    }
}

#[test]
fn numbers_go_on_when_redis_has_lost_what_it_kept() {
    let mut server = Server::start();
    let mut gateway = Process::start(&server);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    publish(&mut server.client(), TASK, "a");
    publish(&mut server.client(), TASK, "b");
    settle(&mut [&mut gateway], &server);
    server.restart();
    await_all(&mut [&mut gateway], |gateways| !gateways[0].is_up());
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    let mut other = Process::start(&server);
    publish(&mut server.client(), TASK, "c");
    settle(&mut [&mut other], &server);
    settle(&mut [&mut gateway], &server);
    publish(&mut server.client(), TASK, "d");
    settle(&mut [&mut gateway, &mut other], &server);
    assert_eq!(gateway.got_numbered(key), ["0a", "1b", "2c", "3d"]);
    for mut gateway in [other, Process::start(&server)] {
        assert_eq!(numbered_results(&mut gateway, ""), ["2c", "3d"]);
    }
}

#[test]
fn number_of_a_result_that_redis_refuses_is_not_given_again() {
    let server = Server::start();
    let retention = tasks::Settings { max_retained: 4096, ..tasks::Settings::default() };
    let start = || {
        let mut gateway = Process::with(&server.url(), Subscribe::Pattern, retention);
        await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
        gateway
    };
    let (mut one, mut other) = (start(), start());
    let key = one.join(TASK);
    await_all(&mut [&mut one], |gateways| gateways[0].is_answered());
    let mut worker = server.client();
    for text in ["a", "b", "c"] {
        publish(&mut worker, TASK, &text.repeat(580));
    }
    settle(&mut [&mut one, &mut other], &server);
    let first =
        |texts: Vec<String>| texts.iter().map(|text| text[..2].into()).collect::<Vec<String>>();
    assert_eq!(first(one.got_numbered(key)), ["0a", "1b", "2c"]);
    publish(&mut worker, TASK, "d");
    settle(&mut [&mut one, &mut other], &server);
    assert_eq!(first(one.got_numbered(key)), ["0a", "1b", "2c", "3d"]);
    for mut gateway in [other, start()] {
        let key = gateway.join_with(TASK, "from_result=0");
        await_all(&mut [&mut gateway], |gateways| gateways[0].got(key).len() == 4);
        // The error for what is gone has no number.
        assert_eq!(first(gateway.got_numbered(key)), ["nu", "0a", "1b", "3d"]);
    }
}

#[test]
fn result_heard_by_several_gateways_is_kept_once() {
    let server = Server::start();
    let mut gateways: Vec<Process> = (0..4).map(|_| Process::start(&server)).collect();
    let mut worker = server.client();
    let texts = ["a", "a", "b", "a", "b", "b"];
    for text in texts {
        assert_eq!(publish(&mut worker, TASK, text), 4);
    }
    settle(&mut gateways.iter_mut().collect::<Vec<_>>(), &server);
    gateways.push(Process::start(&server));
    for gateway in &mut gateways {
        assert_eq!(results_of_a_new_client(gateway, TASK), texts);
    }
}

#[test]
fn gateway_that_missed_one_of_two_equal_results_changes_nothing() {
    let server = Server::start();
    let mut steady = Process::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut steady], &server);
    let mut late = Process::start(&server);
    for text in ["a", "b", "a"] {
        publish(&mut worker, TASK, text);
    }
    // The late one stores first.
    settle(&mut [&mut late], &server);
    settle(&mut [&mut steady], &server);
    let mut third = Process::start(&server);
    for gateway in [&mut steady, &mut late, &mut third] {
        assert_eq!(results_of_a_new_client(gateway, TASK), ["a", "a", "b", "a"]);
    }
}

#[test]
fn gateway_that_heard_half_does_not_decide_the_order() {
    let server = Server::start();
    let mut steady = Process::start(&server);
    let mut worker = server.client();
    // The steady one receives everything, but is slow to store.
    publish(&mut worker, TASK, "a");
    publish(&mut worker, TASK, "b");
    let mut late = Process::start(&server);
    for text in ["c", "a", "d"] {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut late], &server);
    assert_eq!(results_of_a_new_client(&mut Process::start(&server), TASK), ["c", "a", "d"]);
    settle(&mut [&mut steady], &server);
    assert_eq!(
        results_of_a_new_client(&mut Process::start(&server), TASK),
        ["a", "b", "c", "a", "d"]
    );
    assert_eq!(results_of_a_new_client(&mut steady, TASK), ["a", "b", "c", "a", "d"]);
}

#[test]
fn gateway_without_subscription_does_not_deliver_from_the_middle() {
    let server = Server::start();
    let mut steady = Process::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut steady], &server);
    let mut late = Process::start(&server);
    publish(&mut worker, TASK, "b");
    settle(&mut [&mut late], &server);
    // It has received the second one only, and loses its subscription before a client asks for the
    // first.
    late.cut(RedisRole::Subscriber);
    late.step();
    let key = late.join(TASK);
    assert_eq!(late.got(key), [""; 0]);
    await_all(&mut [&mut late], |gateways| gateways[0].got(key).len() == 2);
    assert_eq!(late.got(key), ["a", "b"]);
}

#[test]
fn set_result_is_found_and_delivered_once() {
    let server = Server::start();
    let mut worker = server.client();
    let channel = format!("task_response:{TASK}");
    let _: () = worker.set_ex(&channel, payload("a"), 300).unwrap();
    let mut gateway = Process::start(&server);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].got(key) == ["a"]);
    publish(&mut worker, TASK, "a");
    let _: () = worker.set_ex(&channel, payload("b"), 300).unwrap();
    publish(&mut worker, TASK, "b");
    publish(&mut worker, TASK, "b");
    settle(&mut [&mut gateway], &server);
    assert_eq!(gateway.got(key), ["a", "b", "b"]);
    assert_eq!(results_of_a_new_client(&mut gateway, TASK), ["a", "b", "b"]);
    assert_eq!(results_of_a_new_client(&mut Process::start(&server), TASK), ["a", "b", "b"]);
}

#[test]
fn end_of_a_growing_file_is_kept_for_whoever_comes_later() {
    let server = Server::start();
    let audio = audio_folder(&server, &[]);
    std::fs::write(audio.join("a.wav"), "ten bytes.").unwrap();
    let mut heard_both = audio_process(&server, &audio, Subscribe::Pattern);
    let mut worker = server.client();
    for message in
        [r#"{"text":"one","audio_file":"a.wav","audio_growing":true}"#, r#"{"audio_end":"a.wav"}"#]
    {
        let _: u32 = worker.publish(format!("task_response:{TASK}"), message).unwrap();
    }
    settle(&mut [&mut heard_both], &server);
    drop(heard_both);
    let mut downloading = audio_process(&server, &audio, Subscribe::Pattern);
    let (head, content) = downloading.download("GET", &TASK.to_string());
    assert!(head.contains("Content-Length: 10") && content == "ten bytes.", "{head}");
    let mut fresh = Process::with_audio(&server, &audio, Subscribe::Pattern);
    let client = fresh.join(TASK);
    let ends_with = |process: &Process, end: &[u8]| {
        process.clients[&client].wire.borrow().from_gateway.ends_with(end)
    };
    await_all(&mut [&mut fresh], |processes| ends_with(processes[0], b"\x88\x06\x03\xe8done"));
    let wire = fresh.clients[&client].wire.borrow();
    let said = String::from_utf8_lossy(&wire.from_gateway);
    assert!(said.contains("ten bytes.") && said.contains(r#"{"type":"audio_complete""#), "{said}");
}

/// A folder for the audio of a test with this server, with one file for each text.
fn audio_folder(server: &Server, texts: &[&str]) -> PathBuf {
    let folder = server.folder.join("audio");
    std::fs::create_dir(&folder).unwrap();
    for text in texts {
        std::fs::write(folder.join(format!("{text}.wav")), text).unwrap();
    }
    folder
}

fn publish_audio(client: &mut redis::Connection, task: Uuid, text: &str) {
    let payload = format!(r#"{{"text":"{text}","audio_file":"{text}.wav","final":false}}"#);
    let _: u32 = client.publish(format!("task_response:{task}"), payload).unwrap();
}

fn audio_process(server: &Server, folder: &Path, subscribe: Subscribe) -> Process {
    let mut process = Process::with_audio(server, folder, subscribe);
    await_all(&mut [&mut process], |processes| processes[0].is_up());
    process
}

#[test]
fn audio_is_there_after_a_restart_and_on_every_gateway_though_no_client_has_connected() {
    let server = Server::start();
    let folder = audio_folder(&server, &["one", "two"]);
    let mut worker = server.client();
    let mut heard = audio_process(&server, &folder, Subscribe::Pattern);
    publish(&mut worker, TASK, "no audio");
    publish_audio(&mut worker, TASK, "one");
    publish_audio(&mut worker, TASK, "two");
    settle(&mut [&mut heard], &server);
    for subscribe in [Subscribe::Pattern, Subscribe::Task] {
        let mut fresh = audio_process(&server, &folder, subscribe);
        for (path, content) in [("", "one"), ("/1", "one"), ("/2", "two")] {
            let path = format!("{TASK}{path}");
            let (head, got) = fresh.download("GET", &path);
            assert!(head.starts_with("HTTP/1.1 200 "), "{path} {head}");
            assert_eq!(got, content, "{path}");
        }
        let (head, content) = fresh.download("HEAD", &TASK.to_string());
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Content-Length: 3"), "{head}");
        assert_eq!(content, "");
        for path in [format!("{TASK}/0"), format!("{TASK}/3"), Uuid::nil().to_string()] {
            let (head, content) = fresh.download("GET", &path);
            assert!(head.starts_with("HTTP/1.1 404 "), "{path} {head}");
            assert!(content.contains("No audio is kept for this task"), "{content}");
        }
        // A client that comes later gets each result once.
        let client = fresh.join(TASK);
        let said = |process: &Process| {
            let wire = process.clients[&client].wire.borrow();
            String::from_utf8_lossy(&wire.from_gateway).into_owned()
        };
        await_all(&mut [&mut fresh], |processes| {
            processes[0].is_answered() && said(processes[0]).matches("audio_complete").count() == 2
        });
        let said = said(&fresh);
        let numbers =
            said.match_indices(r#""result_id":"#).map(|(at, name)| &said[at + name.len()..][..1]);
        assert_eq!(numbers.collect::<Vec<_>>(), ["0", "1", "2"]);
    }
}

#[test]
fn first_audio_of_a_task_is_the_same_where_only_the_second_was_heard() {
    let server = Server::start();
    let folder = audio_folder(&server, &["one", "two"]);
    let mut worker = server.client();
    let mut steady = audio_process(&server, &folder, Subscribe::Pattern);
    publish_audio(&mut worker, TASK, "one");
    settle(&mut [&mut steady], &server);
    let mut late = audio_process(&server, &folder, Subscribe::Pattern);
    publish_audio(&mut worker, TASK, "two");
    settle(&mut [&mut steady, &mut late], &server);
    for (path, content) in [("", "one"), ("/0", "one"), ("/1", "two")] {
        assert_eq!(late.download("GET", &format!("{TASK}{path}")).1, content, "{path}");
    }
}

#[test]
fn audio_of_a_result_that_a_worker_has_set_is_found_under_the_spelling_of_the_request() {
    let server = Server::start();
    let folder = audio_folder(&server, &["one"]);
    let name = TASK.to_string().to_uppercase();
    let payload = r#"{"text":"one","audio_file":"one.wav"}"#;
    let _: () = server.client().set(format!("task_response:{name}"), payload).unwrap();
    for subscribe in [Subscribe::Pattern, Subscribe::Task] {
        let mut gateway = audio_process(&server, &folder, subscribe);
        assert_eq!(gateway.download("GET", &name).1, "one");
    }
}

#[test]
fn audio_is_503_while_redis_is_away_unless_the_gateway_keeps_it() {
    let mut server = Server::start();
    let folder = audio_folder(&server, &["one"]);
    let mut gateway = audio_process(&server, &folder, Subscribe::Pattern);
    publish_audio(&mut server.client(), TASK, "one");
    settle(&mut [&mut gateway], &server);
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let (head, content) = gateway.download("GET", &TASK.to_string());
    assert!(head.starts_with("HTTP/1.1 200 ") && content == "one", "{head}");
    for method in ["GET", "HEAD"] {
        let (head, _) = gateway.download(method, &Uuid::nil().to_string());
        assert!(head.starts_with("HTTP/1.1 503 "), "{method} {head}");
    }
}

#[test]
fn audio_of_a_stopped_task_is_404_on_every_gateway() {
    let server = Server::start();
    let folder = audio_folder(&server, &["one"]);
    let mut gateway = audio_process(&server, &folder, Subscribe::Pattern);
    let mut worker = server.client();
    publish_audio(&mut worker, TASK, "one");
    settle(&mut [&mut gateway], &server);
    let stop = r#"{"action":"STOP"}"#;
    let _: u32 = worker.publish(format!("task_control:{TASK}"), stop).unwrap();
    await_all(&mut [&mut gateway], |processes| {
        processes[0].status(TASK).0 == Status::Stopped && processes[0].is_answered()
    });
    for mut gateway in [gateway, audio_process(&server, &folder, Subscribe::Pattern)] {
        let (head, _) = gateway.download("GET", &TASK.to_string());
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    }
}

#[test]
fn result_set_during_an_absence_is_found_after_the_reconnect() {
    let mut server = Server::start();
    let mut gateway = Process::start(&server);
    let key = gateway.join(TASK);
    let in_capitals = gateway.join_as(&TASK.to_string().to_uppercase());
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    server.restart();
    let name = format!("task_response:{}", TASK.to_string().to_uppercase());
    let _: () = server.client().set(name, payload("a")).unwrap();
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].got(key) == ["a"] && gateways[0].got(in_capitals) == ["a"]
    });
    let logged = take_log();
    let words: Vec<&str> = logged.iter().filter_map(|line| line.split(' ').next()).collect();
    assert!(matches!(words[..], ["connected", "lost", .., "connected"]), "{logged:?}");
}

#[test]
fn redis_that_returns_empty_removes_nothing_from_memory() {
    let mut server = Server::start();
    let mut gateway = Process::start(&server);
    publish(&mut server.client(), TASK, "a");
    settle(&mut [&mut gateway], &server);
    server.restart();
    await_all(&mut [&mut gateway], |gateways| !gateways[0].is_up());
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    publish(&mut server.client(), TASK, "b");
    settle(&mut [&mut gateway], &server);
    assert_eq!(results_of_a_new_client(&mut gateway, TASK), ["a", "b"]);
}

#[test]
fn results_heard_by_others_during_an_absence_are_delivered_after_it() {
    let server = Server::start();
    let (mut absent, mut steady) = (Process::start(&server), Process::start(&server));
    let mut worker = server.client();
    let key = absent.join(TASK);
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut absent, &mut steady], &server);
    // Both of its connections are cut; it notices only in its next turn.
    REDIS_ROLES.into_iter().for_each(|role| absent.cut(role));
    for text in ["b", "a"] {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut steady], &server);
    await_all(&mut [&mut absent], |gateways| gateways[0].got(key).len() == 3);
    publish(&mut worker, TASK, "c");
    settle(&mut [&mut absent, &mut steady], &server);
    assert_eq!(absent.got(key), ["a", "b", "a", "c"]);
}

#[test]
fn losing_the_store_connection_does_not_interrupt_the_subscription() {
    let server = Server::start();
    let mut gateway = Process::start(&server);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    for round in 1..=20 {
        gateway.cut(RedisRole::Store);
        publish(&mut server.client(), TASK, "a");
        await_all(&mut [&mut gateway], |gateways| gateways[0].got(key).len() == round);
    }
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    assert_eq!(gateway.got(key).len(), 20);
    drop(gateway);
    assert_eq!(results_of_a_new_client(&mut Process::start(&server), TASK).len(), 20);
}

#[test]
fn tasks_can_be_subscribed_to_one_by_one() {
    let server = Server::start();
    let mut gateway = Process::new(&server.url(), Subscribe::Task);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].status(TASK).0 == Status::Waiting);
    let mut worker = server.client();
    assert_eq!(publish(&mut worker, Uuid::from_u128(2), "x"), 0);
    assert_eq!(publish(&mut worker, TASK, "a"), 1);
    await_all(&mut [&mut gateway], |gateways| gateways[0].got(key) == ["a"]);
    gateway.leave(key);
    await_all(&mut [&mut gateway], |_| publish(&mut worker, TASK, "nobody") == 0);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].status(TASK).0 == Status::Waiting);
    assert_eq!(publish(&mut worker, TASK, "a"), 1);
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].got(key).len() >= 2 && gateways[0].is_answered()
    });
    let got = gateway.got(key);
    assert_eq!((got.first().unwrap().as_str(), got.last().unwrap().as_str()), ("a", "a"));
    assert_eq!(got.iter().filter(|text| *text == "a").count(), 2);
}

#[test]
fn flushed_script_is_loaded_again_and_foreign_keys_do_no_harm() {
    let server = Server::start();
    let mut gateway = Process::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut gateway], &server);
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut worker).unwrap();
    publish(&mut worker, TASK, "b");
    settle(&mut [&mut gateway], &server);
    // A key of another type, made by another program, does not keep the rest of its batch from
    // being stored.
    let (strange, other) = (Uuid::from_u128(3), Uuid::from_u128(4));
    let _: () = worker.set(format!("task_response_kept:{strange}"), "strange").unwrap();
    publish(&mut worker, strange, "c");
    publish(&mut worker, other, "d");
    settle(&mut [&mut gateway], &server);
    assert_eq!(results_of_a_new_client(&mut gateway, strange), ["c"]);
    let mut fresh = Process::start(&server);
    assert_eq!(results_of_a_new_client(&mut fresh, other), ["d"]);
    assert_eq!(results_of_a_new_client(&mut fresh, TASK), ["a", "b"]);
}

#[test]
fn thousands_of_results_arrive_in_order_also_after_a_restart() {
    let server = Server::start();
    let mut gateway = Process::start(&server);
    let mut worker = server.client();
    let texts: Vec<String> = (0..6000).map(|nth| nth.to_string()).collect();
    for some in texts.chunks(500) {
        let mut pipe = redis::pipe();
        for text in some {
            pipe.publish(format!("task_response:{TASK}"), payload(text)).ignore();
        }
        let _: () = pipe.query(&mut worker).unwrap();
        gateway.step();
    }
    settle(&mut [&mut gateway], &server);
    assert_eq!(results_of_a_new_client(&mut gateway, TASK), texts);
    drop(gateway);
    let mut gateway = Process::start(&server);
    assert_eq!(results_of_a_new_client(&mut gateway, TASK), texts);
    assert_eq!(gateway.gateway.results().link().unwrap().dropped(), 0);
}

#[test]
fn names_of_payloads_go_on_after_9999() {
    let server = Server::start();
    let mut worker = server.client();
    let key = format!("task_response_kept:{TASK}");
    // As after ten thousand results, whose payloads are gone.
    let entries = format!("{:016x}{:016}----", 1, 2).repeat(9999);
    let _: () = worker.hset(&key, "index", format!("{:012}{entries}", 0)).unwrap();
    let mut gateway = Process::start(&server);
    let texts = ["a", "b", "c"];
    for text in texts {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut gateway], &server);
    let payloads: Vec<String> = worker.hmget(&key, &["9999", "a000", "a001"]).unwrap();
    assert_eq!(payloads, texts.map(payload));
    assert_eq!(results_of_a_new_client(&mut Process::start(&server), TASK), texts);
}

#[test]
fn payloads_that_are_too_old_make_room_for_new_ones() {
    let server = Server::start();
    let mut worker = server.client();
    let limits = tasks::Settings { max_retained: 20_000, ..tasks::Settings::default() };
    let key = format!("task_response_kept:{TASK}");
    let old = "x".repeat(9_000);
    let index = format!("{:012}{:016x}{:016}0000", 9_256, 7, 1);
    let _: () = worker.hset_multiple(&key, &[("index", &index), ("0000", &old)]).unwrap();
    let mut gateway = Process::with(&server.url(), Subscribe::Pattern, limits);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    publish(&mut worker, TASK, &"y".repeat(2_000));
    settle(&mut [&mut gateway], &server);
    assert!(!worker.hexists::<_, _, bool>(&key, "0000").unwrap());
    let index: String = worker.hget(&key, "index").unwrap();
    assert!(index[12..48].ends_with("----") && index.len() == 12 + 2 * 36, "{index}");
    assert_eq!(gateway.gateway.results().link().unwrap().dropped(), 0);
}

#[test]
fn task_that_is_full_in_redis_says_so_to_later_clients() {
    let server = Server::start();
    let limits = tasks::Settings { max_retained: 20_000, ..tasks::Settings::default() };
    let mut gateway = Process::with(&server.url(), Subscribe::Pattern, limits);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    let mut worker = server.client();
    let other = Uuid::from_u128(4);
    publish(&mut worker, other, "other");
    for nth in 0..50 {
        publish(&mut worker, TASK, &nth.to_string());
    }
    publish(&mut worker, TASK, &"x".repeat(50_000));
    settle(&mut [&mut gateway], &server);
    let mut fresh = Process::with(&server.url(), Subscribe::Pattern, limits);
    await_all(&mut [&mut fresh], |gateways| gateways[0].is_up());
    for gateway in [&mut gateway, &mut fresh] {
        let got = results_of_a_new_client(gateway, TASK);
        assert_eq!(got[0], "Some results are no longer available");
        let kept: Vec<String> = (0..got.len() - 1).map(|nth| nth.to_string()).collect();
        assert_eq!(got[1..], kept, "what there was room for, in order");
        assert!((20..50).contains(&kept.len()), "{}", kept.len());
        assert_eq!(results_of_a_new_client(gateway, other), ["other"], "it is not evicted");
    }
}

#[test]
fn results_behind_a_final_one_are_delivered_before_the_close() {
    let server = Server::start();
    let mut gateway = Process::start(&server);
    let mut worker = server.client();
    let channel = format!("task_response:{TASK}");
    for payload in
        [r#"{"text":"a"}"#, "malformed", r#"{"text":"b"}"#, r#"{"text":"c","final":false}"#]
    {
        let _: u32 = worker.publish(&channel, payload).unwrap();
    }
    settle(&mut [&mut gateway], &server);
    for mut gateway in [gateway, Process::start(&server)] {
        let client = gateway.join(TASK);
        await_all(&mut [&mut gateway], |gateways| gateways[0].got(client).len() == 5);
        assert_eq!(gateway.got(client), ["a", "Invalid response format", "b", "c", "close 1000"]);
    }
}

#[test]
fn progress_messages_are_passed_on_and_not_kept() {
    let server = Server::start();
    let mut gateway = Process::start(&server);
    let mut worker = server.client();
    let client = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    let channel = format!("task_response:{TASK}");
    let _: u32 = worker.publish(&channel, r#"{"status":"processing","text":"half"}"#).unwrap();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut gateway], &server);
    assert_eq!(gateway.got(client), ["half", "a"]);
    assert_eq!(results_of_a_new_client(&mut gateway, TASK), ["a"]);
    assert_eq!(results_of_a_new_client(&mut Process::start(&server), TASK), ["a"]);
}

#[test]
fn redis_that_cannot_save_still_delivers_and_keeps_later() {
    let server = Server::start();
    let mut admin = server.client();
    let mut config = |name: &str, value: &str| {
        let _: () = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query(&mut admin).unwrap();
    };
    // Saving fails where a folder has the name of the file.
    config("save", "1 1");
    std::fs::create_dir(server.folder.join("dump.rdb")).unwrap();
    let mut worker = server.client();
    let since = Instant::now();
    loop {
        let _: Result<(), _> = worker.set("key", 1);
        let _: Result<(), _> = redis::cmd("BGSAVE").query(&mut worker);
        match redis::cmd("PING").query::<String>(&mut worker) {
            Err(error) if error.code() == Some("MISCONF") => break,
            _ => assert!(since.elapsed() < PATIENCE, "it can save"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut gateway = Process::start(&server);
    let client = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].status(TASK).0 == Status::Waiting);
    publish(&mut worker, TASK, "a");
    await_all(&mut [&mut gateway], |gateways| gateways[0].got(client) == ["a"]);
    let state = gateway.gateway.results().redis_state().unwrap().0;
    assert!(
        matches!(&state, link::RedisState::NotKeeping { why } if why.contains("MISCONF")),
        "{state:?}"
    );
    config("stop-writes-on-bgsave-error", "no");
    settle(&mut [&mut gateway], &server);
    assert_eq!(results_of_a_new_client(&mut Process::start(&server), TASK), ["a"]);
}

#[test]
fn after_a_failover_the_new_master_gets_what_the_old_one_refused() {
    let (old, new) = (Server::start(), Server::start());
    let urls = [old.url(), new.url()];
    let mut gateway = Process::with_urls(&urls);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    let mut admin = old.client();
    let address = ["127.0.0.1", "1"];
    let _: () = redis::cmd("REPLICAOF").arg(&address).query(&mut admin).unwrap();
    // What is published on a replica is heard.
    publish(&mut admin, TASK, "a");
    await_all(&mut [&mut gateway], |gateways| {
        let results = gateways[0].gateway.results();
        let at_new = results.redis_state().unwrap().1.to_string() == address_of(&new);
        at_new && gateways[0].is_answered()
    });
    let kept: bool = new.client().exists(format!("task_response_kept:{TASK}")).unwrap();
    assert!(kept);
}

#[test]
fn a_replica_in_the_list_is_passed_over() {
    let (replica, master) = (Server::start(), Server::start());
    let mut admin = replica.client();
    let _: () = redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).query(&mut admin).unwrap();
    let mut gateway = Process::with_urls(&[replica.url(), master.url()]);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    let state = gateway.gateway.results().redis_state().map(|(state, at)| (state, at.to_string()));
    assert_eq!(state, Some((link::RedisState::Up, address_of(&master))));
}

fn address_of(server: &Server) -> String {
    server.folder.join("socket").display().to_string()
}

#[test]
fn password_and_database_are_used() {
    let server = Server::start();
    let mut admin = server.client();
    let mut acl = |rules: &[&str]| {
        let _: () = redis::cmd("ACL").arg("SETUSER").arg(rules).query(&mut admin).unwrap();
    };
    acl(&["gate", "on", ">s3 cret", "~*", "&*", "+@all"]);
    acl(&["unscripted", "on", ">s3 cret", "~*", "&*", "+@all", "-@scripting"]);
    acl(&["default", ">other"]);
    let mut gateway = Process::new(
        &format!("{}?user=gate&pass=s3%20cret&db=5", server.url()),
        Subscribe::Pattern,
    );
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_up());
    let mut worker = redis::Client::open(format!("{}?pass=other", server.url()))
        .unwrap()
        .get_connection()
        .unwrap();
    publish(&mut worker, TASK, "a");
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].status(TASK).0 == Status::Ready && gateways[0].is_answered()
    });
    let _: () = redis::cmd("SELECT").arg(5).query(&mut worker).unwrap();
    assert!(worker.exists::<_, bool>(format!("task_response_kept:{TASK}")).unwrap());

    take_log();
    let mut unscripted = Process::new(
        &format!("{}?user=unscripted&pass=s3%20cret", server.url()),
        Subscribe::Pattern,
    );
    await_all(&mut [&mut unscripted], |gateways| gateways[0].is_up());
    publish(&mut worker, TASK, "b");
    await_all(&mut [&mut unscripted], |gateways| {
        gateways[0].status(TASK).0 == Status::Ready && gateways[0].is_answered()
    });
    let logged = take_log();
    assert!(matches!(&logged[..], [_, line] if line.contains("NOPERM")), "{logged:?}");
    assert_eq!(results_of_a_new_client(&mut unscripted, TASK), ["b"]);

    let mut wrong =
        Process::new(&format!("{}?user=gate&pass=wrong", server.url()), Subscribe::Pattern);
    for _ in 0..300 {
        wrong.step();
        std::thread::sleep(Duration::from_millis(1));
    }
    let logged = take_log();
    assert!(matches!(&logged[..], [line] if line.contains("WRONGPASS")), "{logged:?}");
    acl(&["gate", ">wrong"]);
    await_all(&mut [&mut wrong], |gateways| gateways[0].is_up());
}

/// Gateways are started, killed and cut off at random while results are published; the first one
/// receives everything, but late. At the end each of them, and a new one, must deliver every task's
/// results in order and once, and every client that stayed must have got them so.
///
/// With few different `contents` most results are equal. A gateway that missed some of them can
/// then only promise the right number of each.
fn random_faults(seed: u64, contents: usize) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let server = Server::start();
    let mut worker = server.client();
    let mut gateways: Vec<Process> = (0..3).map(|_| Process::start(&server)).collect();
    let tasks: Vec<Uuid> = (1..=12).map(Uuid::from_u128).collect();
    let mut published: HashMap<Uuid, Vec<String>> = HashMap::new();
    let mut stayed = Vec::new();
    for turn in 0..1500 {
        let task = *chance.choice(&tasks).unwrap();
        match chance.u32(..100) {
            0..45 => {
                let text = (published.values().flatten().count() % contents).to_string();
                publish(&mut worker, task, &text);
                published.entry(task).or_default().push(text);
            }
            45..47 => gateways[1 + chance.usize(..2)] = Process::start(&server),
            47..49 => {
                let role = *chance.choice(&REDIS_ROLES).unwrap();
                gateways[1 + chance.usize(..2)].cut(role);
            }
            // The one that receives everything may lose its store connection, not its subscription.
            49..50 => {
                gateways[0].cut(RedisRole::Store);
            }
            50..53 if turn < 1000 => stayed.push((gateways[0].join(task), task)),
            _ => gateways[chance.usize(..3)].step(),
        }
    }
    let told = |task: &Uuid| published.get(task).cloned().unwrap_or_default();
    await_all(&mut gateways.iter_mut().collect::<Vec<_>>(), |gateways| {
        gateways.iter_mut().all(|gateway| gateway.is_up())
    });
    settle(&mut gateways.iter_mut().collect::<Vec<_>>(), &server);
    for (key, task) in stayed {
        // A client gets a bounded number of results a turn.
        await_all(&mut [&mut gateways[0]], |gateways| {
            gateways[0].status(task).0 != Status::Sending
        });
        assert_eq!(gateways[0].got(key), told(&task), "seed {seed}, client {key}");
    }
    gateways.push(Process::start(&server));
    for (i, gateway) in gateways.iter_mut().enumerate() {
        for task in &tasks {
            let (mut got, mut expected) = (results_of_a_new_client(gateway, *task), told(task));
            if i > 0 && contents < 1000 {
                got.sort();
                expected.sort();
            }
            assert_eq!(got, expected, "seed {seed}, gateway {i}");
        }
    }
}

#[test]
fn random_faults_keep_order_and_lose_nothing() {
    (0..6).for_each(|seed| random_faults(seed, usize::MAX));
}

#[test]
fn random_faults_neither_lose_nor_double_equal_results() {
    (0..6).for_each(|seed| random_faults(seed, 3));
}
