//! Results and a real Redis: what is kept there, in which order, and how often, with several gateways, absences and restarts.
//!
//! A [`Gateway`] here is the delivery service without its sessions: `Results` and two sockets to a `redis-server` that each test starts
//! for itself, on a socket in a folder of its own.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aivtuber_gateway::proto::message::TaskId;
use aivtuber_gateway::reactor::clock::Clock;
use aivtuber_gateway::service::link::{self, Action, Link, REDIS_ROLES, RedisRole, Subscribe};
use aivtuber_gateway::service::results::{Notice, Results};
use aivtuber_gateway::service::tasks::{self, ClientState, Status, Tasks};
use redis::Commands;
use uuid::Uuid;

/// How long anything may take before the test calls it broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server` of our own; gone with the test.
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

    /// Ends it and starts an empty one in its place.
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

struct Gateway {
    clock: Clock,
    results: Results<u32>,
    sockets: HashMap<RedisRole, UnixStream>,
    /// What each client got, in order.
    got: HashMap<u32, Vec<String>>,
    notices: Vec<Notice>,
    last_key: u32,
}

impl Gateway {
    /// Not connected yet: that takes [`Gateway::step`].
    fn new(url: &str, subscribe: Subscribe) -> Gateway {
        let settings = link::Settings {
            urls: vec![url.into()],
            channel_prefix: "task_response:".into(),
            subscribe,
            grace: Some(Duration::from_secs(10)),
        };
        let retention =
            tasks::Settings { retain: Some(Duration::from_secs(300)), max_retained: 16 << 20 };
        let clock = Clock::start();
        let link = Link::new(&settings, retention, clock.now(), fastrand::u64(..)).unwrap();
        Gateway {
            clock,
            results: Results::new(Tasks::new(retention), Some(link)),
            sockets: HashMap::new(),
            got: HashMap::new(),
            notices: Vec::new(),
            last_key: 0,
        }
    }

    /// One that is up.
    fn start(server: &Server) -> Gateway {
        let mut gateway = Gateway::new(&server.url(), Subscribe::Pattern);
        await_all(&mut [&mut gateway], |gateways| gateways[0].results.is_up());
        gateway
    }

    fn step(&mut self) {
        let now = self.clock.now();
        let link = self.results.link().unwrap();
        while let Some(action) = link.poll_action() {
            match action {
                Action::Close { role } => {
                    self.sockets.remove(&role);
                }
                Action::Dial { role, address } => match UnixStream::connect(address.to_string()) {
                    Ok(socket) => {
                        socket.set_nonblocking(true).unwrap();
                        self.sockets.insert(role, socket);
                        link.handle_connected(role, now);
                    }
                    Err(error) => link.handle_closed(role, &error.kind().to_string(), now),
                },
            }
        }
        let mut bytes = [0; 4096];
        for role in REDIS_ROLES {
            while let Some(socket) = self.sockets.get_mut(&role) {
                match socket.read(&mut bytes) {
                    Ok(n @ 1..) => link.handle_bytes(role, &bytes[..n], now),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    _ => {
                        self.sockets.remove(&role);
                        link.handle_closed(role, "closed by the server", now);
                    }
                }
            }
        }
        self.results.settle(now);
        self.write();
        while let Some((key, result)) = self.results.poll_delivery() {
            let task = TaskId::from(Uuid::nil());
            let message: serde_json::Value =
                serde_json::from_str(&result.message(&task, false)).unwrap();
            self.got.entry(key).or_default().push(message["content"].as_str().unwrap().into());
        }
        self.notices.extend(std::iter::from_fn(|| self.results.poll_notice()));
    }

    fn write(&mut self) {
        let now = self.clock.now();
        let link = self.results.link().unwrap();
        for (role, socket) in &mut self.sockets {
            loop {
                let output = link.poll_output(*role, now);
                if output.is_empty() {
                    break;
                }
                match socket.write(output) {
                    Ok(n) => link.handle_written(*role, n),
                    Err(_) => break,
                }
            }
        }
    }

    fn join(&mut self, task: Uuid) -> u32 {
        self.last_key += 1;
        self.results.join(self.clock.now(), &TaskId::from(task), self.last_key);
        self.last_key
    }

    fn leave(&mut self, task: Uuid, key: u32) {
        self.results.leave(self.clock.now(), task, key, ClientState::Waiting, None);
    }

    fn got(&self, key: u32) -> &[String] {
        self.got.get(&key).map_or(&[], |texts| texts)
    }

    /// Everything that was asked of Redis has been answered.
    fn is_answered(&mut self) -> bool {
        let link = self.results.link().unwrap();
        link.is_up() && link.is_idle()
    }
}

fn await_all(gateways: &mut [&mut Gateway], mut is_so: impl FnMut(&mut [&mut Gateway]) -> bool) {
    let since = Instant::now();
    loop {
        gateways.iter_mut().for_each(|gateway| gateway.step());
        if is_so(gateways) {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "it does not come to pass");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What a client that comes now is given, once Redis has answered what it keeps.
fn told_to_a_new_client(gateway: &mut Gateway, task: Uuid) -> Vec<String> {
    let key = gateway.join(task);
    await_all(&mut [gateway], |gateways| gateways[0].is_answered());
    assert_eq!(gateway.results.status(task), (Status::Waiting, true));
    gateway.leave(task, key);
    gateway.got.remove(&key).unwrap_or_default()
}

fn publish(client: &mut redis::Connection, task: Uuid, text: &str) -> u32 {
    client.publish(format!("task_response:{task}"), payload(text)).unwrap()
}

fn payload(text: &str) -> String {
    format!(r#"{{"text":"{text}","final":false}}"#)
}

const TASK: Uuid = Uuid::from_u128(0x0f8fad5b_d9cb_469f_a165_70867728950e);

/// Until every gateway has heard everything and Redis has confirmed all of it.
fn settle(gateways: &mut [&mut Gateway], server: &Server) {
    // What was published before this marker is heard before it.
    let marker = Uuid::from_u128(fastrand::u128(..));
    publish(&mut server.client(), marker, "marker");
    await_all(gateways, |gateways| {
        gateways.iter_mut().all(|gateway| {
            gateway.results.status(marker).0 == Status::Ready && gateway.is_answered()
        })
    });
}

#[test]
fn results_outlive_the_gateway_that_heard_them() {
    let server = Server::start();
    let mut gateway = Gateway::start(&server);
    let mut worker = server.client();
    for text in ["a", "b", "a", "c"] {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut gateway], &server);
    assert_eq!(told_to_a_new_client(&mut gateway, TASK), ["a", "b", "a", "c"]);
    drop(gateway);
    let mut gateway = Gateway::start(&server);
    for _ in 0..2 {
        assert_eq!(told_to_a_new_client(&mut gateway, TASK), ["a", "b", "a", "c"]);
    }
    let ttl: i64 = worker.pttl(format!("task_response_kept:{TASK}")).unwrap();
    assert!(ttl > 200_000 && ttl <= 300_000, "{ttl}");
}

#[test]
fn however_many_gateways_hear_a_result_it_is_kept_once() {
    let server = Server::start();
    let mut gateways: Vec<Gateway> = (0..4).map(|_| Gateway::start(&server)).collect();
    let mut worker = server.client();
    let texts = ["a", "a", "b", "a", "b", "b"];
    for text in texts {
        assert_eq!(publish(&mut worker, TASK, text), 4);
    }
    settle(&mut gateways.iter_mut().collect::<Vec<_>>(), &server);
    gateways.push(Gateway::start(&server));
    for gateway in &mut gateways {
        assert_eq!(told_to_a_new_client(gateway, TASK), texts);
    }
}

#[test]
fn a_gateway_that_was_away_for_one_of_two_equal_ones_changes_nothing() {
    let server = Server::start();
    let mut steady = Gateway::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut steady], &server);
    let mut late = Gateway::start(&server);
    for text in ["a", "b", "a"] {
        publish(&mut worker, TASK, text);
    }
    // The late one is first to store.
    settle(&mut [&mut late], &server);
    settle(&mut [&mut steady], &server);
    let mut third = Gateway::start(&server);
    for gateway in [&mut steady, &mut late, &mut third] {
        assert_eq!(told_to_a_new_client(gateway, TASK), ["a", "a", "b", "a"]);
    }
}

#[test]
fn a_gateway_that_heard_half_does_not_decide_the_order() {
    let server = Server::start();
    let mut steady = Gateway::start(&server);
    let mut worker = server.client();
    // The steady one hears all of it, but is slow to store.
    publish(&mut worker, TASK, "a");
    publish(&mut worker, TASK, "b");
    let mut late = Gateway::start(&server);
    for text in ["c", "a", "d"] {
        publish(&mut worker, TASK, text);
    }
    settle(&mut [&mut late], &server);
    assert_eq!(told_to_a_new_client(&mut Gateway::start(&server), TASK), ["c", "a", "d"]);
    settle(&mut [&mut steady], &server);
    assert_eq!(told_to_a_new_client(&mut Gateway::start(&server), TASK), ["a", "b", "c", "a", "d"]);
    assert_eq!(told_to_a_new_client(&mut steady, TASK), ["a", "b", "c", "a", "d"]);
}

#[test]
fn a_deaf_gateway_does_not_begin_in_the_middle() {
    let server = Server::start();
    let mut steady = Gateway::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut steady], &server);
    let mut late = Gateway::start(&server);
    publish(&mut worker, TASK, "b");
    settle(&mut [&mut late], &server);
    // It has heard the second one only, and loses its ear before anybody has asked for the first.
    late.sockets.remove(&RedisRole::Subscriber);
    let now = late.clock.now();
    late.results.link().unwrap().handle_closed(RedisRole::Subscriber, "lost", now);
    let key = late.join(TASK);
    assert_eq!(late.results.poll_delivery(), None);
    await_all(&mut [&mut late], |gateways| gateways[0].got(key).len() == 2);
    assert_eq!(late.got(key), ["a", "b"]);
}

#[test]
fn what_a_worker_set_is_found_and_not_delivered_twice() {
    let server = Server::start();
    let mut worker = server.client();
    let channel = format!("task_response:{TASK}");
    let _: () = worker.set_ex(&channel, payload("a"), 300).unwrap();
    let mut gateway = Gateway::start(&server);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].got(key) == ["a"]);
    publish(&mut worker, TASK, "a");
    let _: () = worker.set_ex(&channel, payload("b"), 300).unwrap();
    publish(&mut worker, TASK, "b");
    publish(&mut worker, TASK, "b");
    settle(&mut [&mut gateway], &server);
    assert_eq!(gateway.got(key), ["a", "b", "b"]);
    assert_eq!(told_to_a_new_client(&mut gateway, TASK), ["a", "b", "b"]);
    assert_eq!(told_to_a_new_client(&mut Gateway::start(&server), TASK), ["a", "b", "b"]);
}

#[test]
fn what_was_set_while_nobody_listened_is_found_after_the_reconnect() {
    let mut server = Server::start();
    let mut gateway = Gateway::start(&server);
    let key = gateway.join(TASK);
    let shouted = gateway.last_key + 1;
    gateway.results.join(
        gateway.clock.now(),
        &TaskId::read(&TASK.to_string().to_uppercase()).unwrap(),
        shouted,
    );
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    server.restart();
    let name = format!("task_response:{}", TASK.to_string().to_uppercase());
    let _: () = server.client().set(name, payload("a")).unwrap();
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].got(key) == ["a"] && gateways[0].got(shouted) == ["a"]
    });
    assert!(
        matches!(
            &gateway.notices[..],
            [Notice::Up { .. }, Notice::Down { .. }, .., Notice::Up { .. }]
        ),
        "{:?}",
        gateway.notices
    );
}

#[test]
fn a_redis_that_comes_back_empty_takes_nothing_from_memory() {
    let mut server = Server::start();
    let mut gateway = Gateway::start(&server);
    publish(&mut server.client(), TASK, "a");
    settle(&mut [&mut gateway], &server);
    server.restart();
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].notices.len() >= 2 && gateways[0].results.is_up()
    });
    publish(&mut server.client(), TASK, "b");
    settle(&mut [&mut gateway], &server);
    assert_eq!(told_to_a_new_client(&mut gateway, TASK), ["a", "b"]);
}

#[test]
fn what_others_heard_during_our_absence_is_delivered_after_it() {
    let server = Server::start();
    let (mut absent, mut steady) = (Gateway::start(&server), Gateway::start(&server));
    let mut worker = server.client();
    let key = absent.join(TASK);
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut absent, &mut steady], &server);
    // Both of its lines are cut; it notices only when it looks again.
    absent.sockets.clear();
    absent.sockets.insert(RedisRole::Subscriber, UnixStream::pair().unwrap().0);
    absent.sockets.insert(RedisRole::Store, UnixStream::pair().unwrap().0);
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
fn losing_the_hand_does_not_make_deaf() {
    let server = Server::start();
    let mut gateway = Gateway::start(&server);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    for round in 1..=20 {
        gateway.sockets.insert(RedisRole::Store, UnixStream::pair().unwrap().0);
        publish(&mut server.client(), TASK, "a");
        await_all(&mut [&mut gateway], |gateways| gateways[0].got(key).len() == round);
    }
    await_all(&mut [&mut gateway], |gateways| gateways[0].is_answered());
    assert_eq!(gateway.got(key).len(), 20);
    drop(gateway);
    assert_eq!(told_to_a_new_client(&mut Gateway::start(&server), TASK).len(), 20);
}

#[test]
fn tasks_can_be_listened_to_one_by_one() {
    let server = Server::start();
    let mut gateway = Gateway::new(&server.url(), Subscribe::Task);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].results.status(TASK).0 == Status::Waiting
    });
    let mut worker = server.client();
    assert_eq!(publish(&mut worker, Uuid::from_u128(2), "x"), 0);
    assert_eq!(publish(&mut worker, TASK, "a"), 1);
    await_all(&mut [&mut gateway], |gateways| gateways[0].got(key) == ["a"]);
    gateway.leave(TASK, key);
    await_all(&mut [&mut gateway], |_| publish(&mut worker, TASK, "nobody") == 0);
    let key = gateway.join(TASK);
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].results.status(TASK).0 == Status::Waiting
    });
    assert_eq!(publish(&mut worker, TASK, "a"), 1);
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].got(key).len() >= 2 && gateways[0].is_answered()
    });
    let got = gateway.got(key);
    assert_eq!((got.first().unwrap().as_str(), got.last().unwrap().as_str()), ("a", "a"));
    assert_eq!(got.iter().filter(|text| *text == "a").count(), 2);
}

#[test]
fn a_flushed_script_and_a_full_task_are_survived() {
    let server = Server::start();
    let mut gateway = Gateway::start(&server);
    let mut worker = server.client();
    publish(&mut worker, TASK, "a");
    settle(&mut [&mut gateway], &server);
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query(&mut worker).unwrap();
    publish(&mut worker, TASK, "b");
    settle(&mut [&mut gateway], &server);
    for i in 2..link::KEPT_MAX + 10 {
        publish(&mut worker, TASK, &i.to_string());
        gateway.step();
    }
    settle(&mut [&mut gateway], &server);
    assert_eq!(gateway.results.link().unwrap().dropped(), 10);
    // A key of somebody else's does not keep the others in its batch from being stored.
    let (strange, other) = (Uuid::from_u128(3), Uuid::from_u128(4));
    let _: () = worker.set(format!("task_response_kept:{strange}"), "strange").unwrap();
    publish(&mut worker, strange, "c");
    publish(&mut worker, other, "d");
    settle(&mut [&mut gateway], &server);
    assert_eq!(told_to_a_new_client(&mut gateway, strange), ["c"]);
    let mut fresh = Gateway::start(&server);
    assert_eq!(told_to_a_new_client(&mut fresh, other), ["d"]);
    let kept = told_to_a_new_client(&mut fresh, TASK);
    assert_eq!(
        (kept.len(), kept[0].as_str(), kept[1].as_str(), kept[1023].as_str()),
        (1024, "a", "b", "1023")
    );
}

#[test]
fn a_password_and_a_database_are_used() {
    let server = Server::start();
    let mut admin = server.client();
    let mut acl = |rules: &[&str]| {
        let _: () = redis::cmd("ACL").arg("SETUSER").arg(rules).query(&mut admin).unwrap();
    };
    acl(&["gate", "on", ">s3 cret", "~*", "&*", "+@all"]);
    acl(&["unscripted", "on", ">s3 cret", "~*", "&*", "+@all", "-@scripting"]);
    acl(&["default", ">other"]);
    let mut gateway = Gateway::new(
        &format!("{}?user=gate&pass=s3%20cret&db=5", server.url()),
        Subscribe::Pattern,
    );
    await_all(&mut [&mut gateway], |gateways| gateways[0].results.is_up());
    let mut worker = redis::Client::open(format!("{}?pass=other", server.url()))
        .unwrap()
        .get_connection()
        .unwrap();
    publish(&mut worker, TASK, "a");
    await_all(&mut [&mut gateway], |gateways| {
        gateways[0].results.status(TASK).0 == Status::Ready && gateways[0].is_answered()
    });
    let _: () = redis::cmd("SELECT").arg(5).query(&mut worker).unwrap();
    assert!(worker.exists::<_, bool>(format!("task_response_kept:{TASK}")).unwrap());

    let mut unscripted = Gateway::new(
        &format!("{}?user=unscripted&pass=s3%20cret", server.url()),
        Subscribe::Pattern,
    );
    await_all(&mut [&mut unscripted], |gateways| gateways[0].results.is_up());
    publish(&mut worker, TASK, "b");
    await_all(&mut [&mut unscripted], |gateways| {
        gateways[0].results.status(TASK).0 == Status::Ready && gateways[0].is_answered()
    });
    assert!(
        matches!(&unscripted.notices[..], [_, Notice::Problem { why }] if why.contains("NOPERM")),
        "{:?}",
        unscripted.notices
    );
    assert_eq!(told_to_a_new_client(&mut unscripted, TASK), ["b"]);

    let mut wrong =
        Gateway::new(&format!("{}?user=gate&pass=wrong", server.url()), Subscribe::Pattern);
    await_all(&mut [&mut wrong], |gateways| !gateways[0].notices.is_empty());
    for _ in 0..300 {
        wrong.step();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(
        matches!(&wrong.notices[..], [Notice::Problem { why }] if why.contains("WRONGPASS")),
        "{:?}",
        wrong.notices
    );
    acl(&["gate", ">wrong"]);
    await_all(&mut [&mut wrong], |gateways| gateways[0].results.is_up());
}

/// Gateways come, go, are cut off and killed at random while results are published; one gateway hears everything, late. In the end
/// each of them, and a new one, tells every task's results in order, each once; and so it was told to every client that stayed. Where
/// many results are equal, those who did not hear all of them promise only to tell as many.
fn random_faults(seed: u64, contents: usize) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let server = Server::start();
    let mut worker = server.client();
    let mut gateways: Vec<Gateway> = (0..3).map(|_| Gateway::start(&server)).collect();
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
            45..47 => gateways[1 + chance.usize(..2)] = Gateway::start(&server),
            47..49 => {
                let role = *chance.choice(&REDIS_ROLES).unwrap();
                gateways[1 + chance.usize(..2)].sockets.insert(role, UnixStream::pair().unwrap().0);
            }
            // The one that hears everything may lose its hand, but not its subscription.
            49..50 => {
                gateways[0].sockets.insert(RedisRole::Store, UnixStream::pair().unwrap().0);
            }
            50..53 if turn < 1000 => stayed.push((gateways[0].join(task), task)),
            _ => gateways[chance.usize(..3)].step(),
        }
    }
    let told = |task: &Uuid| published.get(task).cloned().unwrap_or_default();
    await_all(&mut gateways.iter_mut().collect::<Vec<_>>(), |gateways| {
        gateways.iter().all(|gateway| gateway.results.is_up())
    });
    settle(&mut gateways.iter_mut().collect::<Vec<_>>(), &server);
    for (key, task) in stayed {
        assert_eq!(gateways[0].got(key), told(&task), "seed {seed}, client {key}");
    }
    gateways.push(Gateway::start(&server));
    for (i, gateway) in gateways.iter_mut().enumerate() {
        for task in &tasks {
            let (mut got, mut expected) = (told_to_a_new_client(gateway, *task), told(task));
            if i > 0 && contents < 1000 {
                got.sort();
                expected.sort();
            }
            assert_eq!(got, expected, "seed {seed}, gateway {i}");
        }
    }
}

#[test]
fn under_random_faults_everything_is_told_in_order_and_once() {
    (0..6).for_each(|seed| random_faults(seed, usize::MAX));
}

#[test]
fn under_random_faults_equal_results_are_neither_lost_nor_doubled() {
    (0..6).for_each(|seed| random_faults(seed, 3));
}
