//! The link against a server that the test plays by hand.

use super::connection::{FIRST_PAUSE, LONGEST_PAUSE};
use super::keep::{BATCH_BYTES_MAX, FIRST_PAGE, JOBS_MAX, OUTPUT_MAX, PAGE, REFUSED_PAUSE};
use super::*;
use crate::proto::resp::CommandReader;
use crate::service::tasks::Occurrence;

const SECOND: Duration = Duration::from_secs(1);
const TASK: Uuid = Uuid::from_u128(0x0f8fad5b_d9cb_469f_a165_70867728950e);
const SPELLED: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

/// A link, and a Redis that answers as the test says.
struct World {
    link: Link,
    now: Moment,
    /// What each role has said and the server has not looked at yet.
    said: [Vec<Vec<String>>; 2],
    readers: [CommandReader; 2],
    /// What the server answers to the subscription to control channels, without showing it.
    on_control: Option<&'static str>,
}

const CONTROL_CONFIRMED: &str = "*3\r\n$10\r\npsubscribe\r\n$14\r\ntask_control:*\r\n:2\r\n";

fn settings(urls: &[&str], subscribe: Subscribe) -> Settings {
    let urls = urls.iter().map(|url| url.to_string()).collect();
    Settings { urls, subscribe, ..Settings::default() }
}

fn retention() -> tasks::Settings {
    tasks::Settings { retain: Some(300 * SECOND), max_retained: 1 << 20, ..Default::default() }
}

impl World {
    fn new(urls: &[&str], subscribe: Subscribe) -> World {
        let now = Moment::START;
        let link = Link::new(&settings(urls, subscribe), retention(), now, 7).unwrap();
        World {
            link,
            now,
            said: Default::default(),
            readers: [CommandReader::new(1 << 20), CommandReader::new(1 << 20)],
            on_control: Some(CONTROL_CONFIRMED),
        }
    }

    /// One that is up.
    fn up(subscribe: Subscribe) -> World {
        let mut world = World::new(&["redis://one"], subscribe);
        world.connect();
        assert_eq!(world.events(), [LinkEvent::Up { address: "one:6379".into() }]);
        world
    }

    fn connect(&mut self) {
        self.link.handle_time(self.now);
        for role in self.dials() {
            self.link.handle_connected(role, self.now);
            self.greet(role);
        }
    }

    /// Answers whatever the greeting asks.
    fn greet(&mut self, role: RedisRole) {
        for command in self.commands(role) {
            let answer = match command[0].as_str() {
                "TIME" => "*2\r\n$4\r\n1000\r\n$2\r\n17\r\n".to_owned(),
                "PING" => "+PONG\r\n".to_owned(),
                "HELLO" => "%1\r\n+server\r\n+redis\r\n".to_owned(),
                name @ ("PSUBSCRIBE" | "SUBSCRIBE") => {
                    let name = name.to_lowercase();
                    let channels = &command[1..];
                    let lines = channels.iter().map(|channel| {
                        format!(
                            "*3\r\n${}\r\n{name}\r\n${}\r\n{channel}\r\n:1\r\n",
                            name.len(),
                            channel.len()
                        )
                    });
                    lines.collect()
                }
                _ => "+OK\r\n".to_owned(),
            };
            self.say(role, &answer);
        }
        self.read(role);
    }

    fn actions(&mut self) -> Vec<LinkAction> {
        std::iter::from_fn(|| self.link.poll_action()).collect()
    }

    fn dials(&mut self) -> Vec<RedisRole> {
        let dial = |action| match action {
            LinkAction::Dial { role, .. } => Some(role),
            LinkAction::Close { .. } => None,
        };
        self.actions().into_iter().filter_map(dial).collect()
    }

    fn events(&mut self) -> Vec<LinkEvent> {
        std::iter::from_fn(|| self.link.poll_event()).collect()
    }

    /// What the role has said since the last look.
    fn commands(&mut self, role: RedisRole) -> Vec<Vec<String>> {
        self.read(role);
        std::mem::take(&mut self.said[role as usize])
    }

    fn read(&mut self, role: RedisRole) {
        let i = role as usize;
        loop {
            let bytes = self.link.poll_output(role, self.now).to_vec();
            if bytes.is_empty() {
                return;
            }
            let mut input = &bytes[..];
            while let Some(command) = self.readers[i].decode(&mut input).unwrap() {
                let text = |argument: Vec<u8>| String::from_utf8(argument).unwrap();
                self.said[i].push(command.into_iter().map(text).collect());
            }
            self.link.handle_written(role, bytes.len());
            let control = self.said[i]
                .iter()
                .position(|said| said[0] == "PSUBSCRIBE" && said[1] == "task_control:*");
            if let (Some(at), Some(answer)) = (control, self.on_control) {
                self.said[i].remove(at);
                self.say(role, answer);
            }
        }
    }

    fn say(&mut self, role: RedisRole, answer: &str) {
        self.link.handle_bytes(role, answer.as_bytes(), self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.link.handle_time(self.now);
    }

    fn keep(&mut self, nth: u32, text: &str) {
        let before = (nth > 1).then_some((0xcd, 1));
        let occurrence = Occurrence { hash: 0xab, nth, before, id: nth + 6 };
        self.link.keep(
            TASK,
            Subscription { number: 1, since: 1_000_000_017 },
            occurrence,
            text.as_bytes().into(),
        );
    }

    fn load_script(&mut self) {
        assert_eq!(self.commands(RedisRole::Store)[0][..2], ["SCRIPT", "LOAD"]);
        self.say(RedisRole::Store, "$3\r\nsha\r\n");
    }
}

#[test]
fn link_is_up_once_both_connections_are_and_the_pattern_is_confirmed() {
    let mut world = World::new(&["redis://ann:s%20cret@one:7000/3"], Subscribe::Pattern);
    let address = Address::Tcp { host: "one".into(), port: 7000 };
    let dial = |role| LinkAction::Dial { role, address: address.clone() };
    assert_eq!(world.actions(), [dial(RedisRole::Subscriber), dial(RedisRole::Store)]);
    for role in REDIS_ROLES {
        world.link.handle_connected(role, world.now);
    }
    let name = ["CLIENT", "SETNAME", "aivtuber-gateway"];
    let subscription = world.commands(RedisRole::Subscriber);
    assert_eq!(
        subscription,
        [&["AUTH", "ann", "s cret"][..], &name, &["TIME"], &["PSUBSCRIBE", "task_response:*"]]
    );
    let login = [&["AUTH", "ann", "s cret"][..], &name, &["SELECT", "3"], &["ROLE"], &["PING"]];
    assert_eq!(world.commands(RedisRole::Store), login);
    world.say(RedisRole::Store, &format!("+OK\r\n+OK\r\n+OK\r\n{ROLE_MASTER}+PONG\r\n"));
    assert!(!world.link.is_up());
    let greeting = "+OK\r\n-ERR unknown subcommand\r\n*2\r\n$4\r\n1000\r\n$2\r\n17\r\n*3\r\n$10\r\npsubscribe\r\n$15\r\ntask_response:*\r\n:1\r\n";
    for (i, byte) in greeting.bytes().enumerate() {
        assert!(!world.link.is_up(), "too early at {i}");
        world.link.handle_bytes(RedisRole::Subscriber, &[byte], world.now);
    }
    assert!(world.link.is_up());
    assert_eq!(
        world.link.subscription(TASK),
        Some(Subscription { number: 1, since: 1_000_000_017 })
    );
    assert_eq!(world.events(), [LinkEvent::Up { address: "one:7000".into() }]);
}

#[test]
fn publications_are_read_in_resp2_and_resp3() {
    let subscription = Subscription { number: 1, since: 1_000_000_017 };
    let mut world = World::up(Subscribe::Pattern);
    let heard = LinkEvent::Published { task: TASK, subscription, payload: b"{}".to_vec() };
    for channel in
        [format!("task_response:{SPELLED}"), format!("task_response:{}", SPELLED.to_uppercase())]
    {
        let message = format!("${}\r\n{channel}\r\n$2\r\n{{}}\r\n", channel.len());
        world.say(
            RedisRole::Subscriber,
            &format!("*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n{message}"),
        );
        world.say(
            RedisRole::Subscriber,
            &format!(">4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n{message}"),
        );
        assert_eq!(world.events(), [heard.clone(), heard.clone()]);
    }
    world.say(
        RedisRole::Subscriber,
        "*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n$15\r\ntask_response:x\r\n$2\r\n{}\r\n",
    );
    assert_eq!(world.events(), []);
    world.link.handle_closed(RedisRole::Subscriber, "closed", world.now);
    assert_eq!(world.link.subscription(TASK), None);
}

#[test]
fn url_with_protocol_resp3_logs_in_with_hello() {
    let mut world = World::new(&["redis://:secret@one?protocol=resp3"], Subscribe::Pattern);
    for role in world.dials() {
        world.link.handle_connected(role, world.now);
        let commands = world.commands(role);
        assert_eq!(commands[0], ["HELLO", "3", "AUTH", "default", "secret"]);
        world.said[role as usize] = commands;
        world.greet(role);
    }
    assert!(world.link.is_up());
}

#[test]
fn dials_time_out_and_are_repeated_with_backoff() {
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    assert_eq!(world.dials(), REDIS_ROLES);
    assert_eq!(world.link.deadline(), Some(world.now + 5 * SECOND));
    world.pass(5 * SECOND);
    assert_eq!(
        world.events(),
        [LinkEvent::Problem { why: "one:6379: no connection within 5 s".into() }]
    );
    assert_eq!(
        world.actions(),
        [
            LinkAction::Close { role: RedisRole::Subscriber },
            LinkAction::Close { role: RedisRole::Store }
        ]
    );
    let mut pause = Duration::from_millis(200);
    for _ in 0..10 {
        let from = world.now;
        while world.dials().is_empty() {
            world.now = world.link.deadline().unwrap();
            world.link.handle_time(world.now);
        }
        world.pass(pause);
        world.dials();
        for role in REDIS_ROLES {
            world.link.handle_closed(role, "refused", world.now);
        }
        assert!(world.now - from <= 2 * pause, "{:?}", world.now - from);
        pause = (2 * pause).min(5 * SECOND);
    }
    let deadline = world.link.deadline().unwrap();
    assert!(deadline - world.now >= LONGEST_PAUSE / 2 && deadline - world.now <= LONGEST_PAUSE);
}

#[test]
fn greeting_without_reply_times_out() {
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    world.dials();
    world.link.handle_connected(RedisRole::Subscriber, world.now + SECOND);
    world.link.handle_bytes(RedisRole::Subscriber, b"+OK\r\n", world.now + 2 * SECOND);
    world.pass(6 * SECOND);
    assert!(
        world
            .events()
            .contains(&LinkEvent::Problem { why: "one:6379: no answer within 5 s".into() })
    );
    world.say(RedisRole::Subscriber, "+late\r\n");
    assert!(!world.link.is_up());
}

#[test]
fn wrong_password_is_reported_once_and_tried_again() {
    let mut world = World::new(&["redis://:wrong@one"], Subscribe::Pattern);
    let refusal = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
    let mut told = Vec::new();
    for _ in 0..3 {
        for role in world.dials() {
            world.link.handle_connected(role, world.now);
            world.say(role, &format!("{refusal}-NOAUTH Authentication required.\r\n"));
        }
        world.pass(5 * SECOND);
        told.append(&mut world.events());
    }
    let why =
        "one:6379: it refused us: WRONGPASS invalid username-password pair or user is disabled.";
    assert_eq!(told, [LinkEvent::Problem { why: why.into() }, LinkEvent::GraceOver]);
    world.connect();
    assert!(world.link.is_up());
}

#[test]
fn missing_password_is_reported() {
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    for role in world.dials() {
        world.link.handle_connected(role, world.now);
        world.say(role, &"-NOAUTH Authentication required.\r\n".repeat(4));
    }
    let why = "one:6379: it refused us: NOAUTH Authentication required.";
    assert_eq!(world.events(), [LinkEvent::Problem { why: why.into() }]);
}

#[test]
fn silent_connection_is_dialled_again_at_once() {
    let mut world = World::up(Subscribe::Pattern);
    world.pass(10 * SECOND);
    for role in REDIS_ROLES {
        assert_eq!(world.commands(role), [["PING"]]);
    }
    world.say(RedisRole::Subscriber, "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert_eq!(world.link.deadline(), Some(world.now + 5 * SECOND));
    world.pass(5 * SECOND);
    assert_eq!(world.events(), [LinkEvent::Down { why: "one:6379: silent for 5 s".into() }]);
    assert_eq!(world.actions(), [LinkAction::Close { role: RedisRole::Store }]);
    assert!(world.link.subscription(TASK).is_some(), "the ear heard on");
    world.pass(Duration::ZERO);
    world.connect();
    assert_eq!(world.events(), [LinkEvent::Up { address: "one:6379".into() }]);
}

#[test]
fn any_byte_proves_that_the_server_is_alive() {
    let mut world = World::up(Subscribe::Pattern);
    world.pass(10 * SECOND);
    world.commands(RedisRole::Subscriber);
    world.say(RedisRole::Store, "+PONG\r\n");
    world.say(RedisRole::Store, ROLE_MASTER);
    for _ in 0..9 {
        world.pass(SECOND);
        world.say(
            RedisRole::Subscriber,
            "*4\r\n$8\r\npmessage\r\n$15\r\ntask_response:*\r\n$15\r\ntask_response:x\r\n$2\r\n{}\r\n",
        );
    }
    assert!(world.link.is_up());
}

#[test]
fn connection_that_fails_at_once_is_not_dialled_in_a_loop() {
    let mut world = World::up(Subscribe::Pattern);
    world.link.handle_closed(RedisRole::Subscriber, "closed", world.now);
    world.link.handle_time(world.now);
    assert_eq!(world.dials(), []);
    assert!(world.link.deadline().unwrap() >= world.now + FIRST_PAUSE / 2);
}

#[test]
fn bytes_that_are_not_resp_end_the_connection() {
    let mut world = World::up(Subscribe::Pattern);
    world.say(RedisRole::Store, "HTTP/1.1 400\r\n");
    assert_eq!(
        world.events(),
        [LinkEvent::Down { why: "one:6379: it sent bytes that are not the Redis protocol".into() }]
    );
    assert_eq!(world.actions(), [LinkAction::Close { role: RedisRole::Store }]);
}

#[test]
fn end_of_grace_is_reported_once() {
    let mut world = World::up(Subscribe::Pattern);
    world.pass(SECOND);
    world.link.handle_closed(RedisRole::Subscriber, "closed", world.now);
    world.events();
    for _ in 0..9 {
        world.pass(SECOND);
    }
    assert!(!world.link.is_past_grace());
    world.pass(SECOND);
    assert!(world.link.is_past_grace() && world.events().contains(&LinkEvent::GraceOver));
    world.pass(20 * SECOND);
    assert!(!world.events().contains(&LinkEvent::GraceOver));
    world.pass(5 * SECOND);
    world.connect();
    assert!(!world.link.is_past_grace() && world.link.is_up());
}

#[test]
fn when_one_connection_is_up_the_other_dials_at_once() {
    let mut world = World::up(Subscribe::Pattern);
    for role in REDIS_ROLES {
        world.link.handle_closed(role, "closed", world.now);
    }
    world.link.handle_time(world.now);
    world.dials();
    world.pass(SECOND);
    world.dials();
    world.link.handle_closed(RedisRole::Store, "refused", world.now);
    world.link.handle_connected(RedisRole::Subscriber, world.now);
    world.greet(RedisRole::Subscriber);
    world.link.handle_time(world.now);
    assert_eq!(world.dials(), [RedisRole::Store]);
}

#[test]
fn both_connections_go_through_the_urls_together() {
    let mut world = World::new(
        &["redis://one", "redis://two", "unix:///run/redis.sock?pass=x"],
        Subscribe::Pattern,
    );
    let mut tried = Vec::new();
    for _ in 0..4 {
        let dials: Vec<(RedisRole, String)> = world
            .actions()
            .into_iter()
            .filter_map(|action| match action {
                LinkAction::Dial { role, address } => Some((role, address.to_string())),
                LinkAction::Close { .. } => None,
            })
            .collect();
        assert_eq!(dials[0].1, dials[1].1);
        tried.push(dials[0].1.clone());
        for (role, _) in dials {
            world.link.handle_closed(role, "refused", world.now);
        }
        world.pass(5 * SECOND);
    }
    assert_eq!(tried, ["one:6379", "two:6379", "/run/redis.sock", "one:6379"]);
}

#[test]
fn a_shortage_of_this_machine_is_not_the_servers_fault() {
    let mut world = World::new(&["redis://one", "redis://two"], Subscribe::Pattern);
    for _ in 0..4 {
        let dials: Vec<String> = world
            .actions()
            .into_iter()
            .filter_map(|action| match action {
                LinkAction::Dial { address, .. } => Some(address.to_string()),
                LinkAction::Close { .. } => None,
            })
            .collect();
        assert_eq!(dials, ["one:6379", "one:6379"]);
        for role in REDIS_ROLES {
            world.link.handle_shortage(role, "Too many open files", world.now);
        }
        assert!(world.dials().is_empty(), "not in a loop");
        world.pass(5 * SECOND);
    }
    let state = world.link.state();
    assert!(
        matches!(&state, RedisState::Away { why: Some(why) } if why.contains("Too many open files")),
        "{state:?}"
    );
}

/// Greets the store connection of a server with this role.
fn greet_store(world: &mut World, role: &str) {
    world.link.handle_connected(RedisRole::Store, world.now);
    let commands = world.commands(RedisRole::Store);
    let asked: Vec<&str> = commands.iter().map(|command| command[0].as_str()).collect();
    assert_eq!(asked, ["CLIENT", "ROLE", "PING"]);
    world.say(RedisRole::Store, &format!("+OK\r\n{role}+PONG\r\n"));
}

#[test]
fn a_replica_is_left_before_anything_is_to_be_stored() {
    let mut world = World::new(&["redis://one", "redis://two"], Subscribe::Pattern);
    world.dials();
    greet_store(&mut world, ROLE_REPLICA);
    assert!(!world.link.is_up());
    world.link.handle_time(world.now);
    assert_eq!(world.dials(), REDIS_ROLES, "at once");
    assert_eq!(world.link.address().to_string(), "two:6379");
    greet_store(&mut world, ROLE_MASTER);
    world.link.handle_connected(RedisRole::Subscriber, world.now);
    world.greet(RedisRole::Subscriber);
    assert_eq!(world.link.state(), RedisState::Up);
    // A failover is noticed also while nothing has to be stored.
    world.events();
    world.pass(connection::PING_INTERVAL);
    assert_eq!(world.commands(RedisRole::Store), [["PING"]]);
    world.say(RedisRole::Store, "+PONG\r\n");
    assert_eq!(world.commands(RedisRole::Store), [["ROLE"]]);
    world.say(RedisRole::Store, ROLE_REPLICA);
    let events = world.events();
    assert!(matches!(&events[..], [LinkEvent::Down { why }] if why.contains("replica")));
    assert_eq!(world.link.address().to_string(), "one:6379");
}

#[test]
fn where_all_servers_are_replicas_one_of_them_still_delivers() {
    let mut world = World::new(&["redis://one", "redis://two"], Subscribe::Pattern);
    for _ in 0..3 {
        world.link.handle_time(world.now);
        world.dials();
        greet_store(&mut world, ROLE_REPLICA);
        world.now += SECOND;
    }
    world.link.handle_connected(RedisRole::Subscriber, world.now);
    world.greet(RedisRole::Subscriber);
    assert!(world.link.is_up());
    assert!(
        matches!(world.link.state(), RedisState::NotKeeping { why } if why.contains("replica"))
    );
    // One of them becomes the master.
    world.pass(connection::PING_INTERVAL);
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, "+PONG\r\n");
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, ROLE_MASTER);
    assert_eq!(world.link.state(), RedisState::Up);
}

#[test]
fn a_user_who_may_not_ask_for_the_role_can_do_all_the_rest() {
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    world.dials();
    greet_store(&mut world, "-NOPERM this user has no permissions to run the 'role' command\r\n");
    world.link.handle_connected(RedisRole::Subscriber, world.now);
    world.greet(RedisRole::Subscriber);
    assert_eq!(world.link.state(), RedisState::Up);
}

#[test]
fn both_connections_end_up_on_one_server() {
    let mut world = World::new(&["redis://one", "redis://two"], Subscribe::Pattern);
    world.dials();
    world.link.handle_closed(RedisRole::Subscriber, "refused", world.now);
    world.pass(SECOND);
    assert_eq!(world.dials(), [RedisRole::Subscriber]);
    // The ear is dialling "two" when the hand gets through to "one".
    world.link.handle_connected(RedisRole::Store, world.now);
    world.greet(RedisRole::Store);
    world.link.handle_connected(RedisRole::Subscriber, world.now);
    world.greet(RedisRole::Subscriber);
    let one = Address::Tcp { host: "one".into(), port: 6379 };
    assert_eq!(
        world.actions(),
        [
            LinkAction::Close { role: RedisRole::Subscriber },
            LinkAction::Dial { role: RedisRole::Subscriber, address: one }
        ]
    );
    assert_eq!(world.link.subscription(TASK), None);
    world.link.handle_connected(RedisRole::Subscriber, world.now);
    world.greet(RedisRole::Subscriber);
    assert!(world.link.is_up());
}

#[test]
fn results_are_stored_in_batches() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    assert_eq!(
        world.commands(RedisRole::Store),
        [[
            "EVALSHA",
            "sha",
            "1",
            &format!("task_response_kept:{SPELLED}"),
            "300000",
            "524288",
            "256",
            "0000001000000017",
            "00000000000000ab",
            "1",
            "7",
            "",
            "0",
            "a"
        ]]
    );
    for nth in 2..=200 {
        world.keep(nth, "b");
    }
    let commands = world.commands(RedisRole::Store);
    assert_eq!(
        commands.iter().map(|command| command[2].as_str()).collect::<Vec<_>>(),
        ["64", "64", "64", "7"]
    );
    assert_eq!(
        commands[0][3 + 64 + 3..][..7],
        ["0000001000000017", "00000000000000ab", "2", "8", "00000000000000cd", "1", "b"]
    );
    world.say(RedisRole::Store, ":0\r\n:0\r\n:0\r\n:0\r\n:3\r\n");
    assert_eq!(world.link.dropped(), 3);
    for task in 0..70 {
        world.link.forget(Uuid::from_u128(task));
    }
    assert_eq!(world.commands(RedisRole::Store).iter().map(Vec::len).collect::<Vec<_>>(), [65, 7]);
}

#[test]
fn unconfirmed_results_are_stored_again_after_a_reconnect() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, ":0\r\n");
    for text in ["b", "c"] {
        world.keep(2, text);
        assert_eq!(world.commands(RedisRole::Store).len(), 1);
    }
    world.keep(2, "d");
    world.link.look_up(TASK, &[]);
    world.link.handle_closed(RedisRole::Store, "closed", world.now);
    world.keep(2, "e");
    world.pass(SECOND);
    world.connect();
    assert!(world.link.is_up());
    world.load_script();
    let commands = world.commands(RedisRole::Store);
    assert_eq!(commands.len(), 1, "{commands:?}");
    let payloads: Vec<&str> = (0..4).map(|i| commands[0][3 + 4 + 3 + 7 * i + 6].as_str()).collect();
    assert_eq!(payloads, ["b", "c", "d", "e"]);
}

#[test]
fn flushed_script_is_loaded_again() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    world.keep(2, "b");
    assert_eq!(world.commands(RedisRole::Store).len(), 1);
    world.keep(2, "c");
    assert_eq!(world.commands(RedisRole::Store).len(), 1);
    world.say(
        RedisRole::Store,
        "-NOSCRIPT No matching script.\r\n-NOSCRIPT No matching script.\r\n",
    );
    world.load_script();
    let commands = world.commands(RedisRole::Store);
    assert_eq!(commands.len(), 1);
    assert_eq!(commands[0][2], "3");
    assert_eq!(world.events(), []);
}

#[test]
fn redis_that_refuses_scripts_still_delivers() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.commands(RedisRole::Store);
    world.say(
        RedisRole::Store,
        "-NOPERM this user has no permissions to run the 'script|load' command\r\n",
    );
    let [LinkEvent::Problem { why }] = &world.events()[..] else { panic!() };
    assert!(why.contains("NOPERM"), "{why}");
    world.keep(2, "b");
    assert_eq!(world.commands(RedisRole::Store), Vec::<Vec<String>>::new());
    assert_eq!(world.link.dropped(), 2);
    world.link.look_up(TASK, &[]);
    assert_eq!(world.commands(RedisRole::Store).len(), 2);
    assert!(world.link.is_up());
}

#[test]
fn full_redis_is_reported_once() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    for nth in 2..5 {
        world.keep(nth, "b");
        world.commands(RedisRole::Store);
    }
    world.say(
        RedisRole::Store,
        &"-OOM command not allowed when used memory > 'maxmemory'.\r\n".repeat(3),
    );
    assert_eq!(world.events().len(), 1);
    assert!(world.link.is_up() && world.link.dropped() == 4);
}

/// Fields and their payloads as `keep.lua` writes them.
struct KeptHash {
    fields: Vec<(String, String)>,
    index: String,
}

impl KeptHash {
    fn new(texts: &[(u64, &str)]) -> KeptHash {
        let mut hash = KeptHash { fields: Vec::new(), index: "000000000000".into() };
        for (nth, (stored_at, text)) in texts.iter().enumerate() {
            let field = format!("{nth:04}");
            let content = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
            hash.index += &format!("{content:016x}{stored_at:016}{field}");
            hash.fields.push((field, text.to_string()));
        }
        hash
    }

    /// The reply to an `HMGET` command.
    fn reply(&self, command: &[String]) -> String {
        assert_eq!(command[0], "HMGET");
        let mut reply = format!("*{}\r\n", command.len() - 2);
        for name in &command[2..] {
            let value = match name.as_str() {
                "index" if self.index.len() > 12 => Some(&self.index),
                name => self.fields.iter().find(|(field, _)| field == name).map(|(_, text)| text),
            };
            match value {
                Some(value) => reply += &format!("${}\r\n{value}\r\n", value.len()),
                None => reply += "$-1\r\n",
            }
        }
        reply
    }
}

const PONG: &str = "*2\r\n$4\r\npong\r\n$0\r\n\r\n";
const ROLE_MASTER: &str = "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
const ROLE_REPLICA: &str = "*5\r\n$5\r\nslave\r\n$3\r\none\r\n:6379\r\n$9\r\nconnected\r\n:0\r\n";

fn answer(task: Uuid, kept: &[(u64, &str)], set: &[&str]) -> LinkEvent {
    let result = |((stored_at, text), id): (&(u64, &str), u32)| KeptResult {
        stored_at: *stored_at,
        id,
        payload: text.as_bytes().to_vec(),
    };
    LinkEvent::LookedUp(LookUpAnswer {
        task,
        subscription: Some(Subscription { number: 1, since: 1_000_000_017 }),
        kept: kept.iter().zip(0..).map(result).collect(),
        next_id: kept.len() as u32,
        set: set.iter().map(|text| text.as_bytes().to_vec()).collect(),
        is_incomplete: false,
    })
}

#[test]
fn look_up_returns_kept_and_set_results_together() {
    let mut world = World::up(Subscribe::Pattern);
    world.link.look_up(TASK, &[SPELLED.to_uppercase().into()]);
    world.link.look_up(Uuid::nil(), &[]);
    let commands = world.commands(RedisRole::Store);
    assert_eq!(
        commands[0][..6],
        ["HMGET", &format!("task_response_kept:{SPELLED}"), "index", "lost", "numbers", "ends"]
    );
    assert_eq!(commands[0].len(), 6 + FIRST_PAGE);
    let keys =
        [format!("task_response:{SPELLED}"), format!("task_response:{}", SPELLED.to_uppercase())];
    assert_eq!(commands[1], ["MGET", &keys[0], &keys[1]]);
    let kept = [(20, "a"), (30, "b")];
    world.say(RedisRole::Store, &KeptHash::new(&kept).reply(&commands[0]));
    world.say(RedisRole::Store, "*2\r\n$-1\r\n$1\r\ns\r\n");
    assert_eq!(world.events(), [], "the subscriber has not caught up");
    assert_eq!(world.commands(RedisRole::Subscriber), [["PING"]]);
    world.say(RedisRole::Store, &KeptHash::new(&[]).reply(&commands[2]));
    world.say(RedisRole::Store, "*1\r\n$-1\r\n");
    assert_eq!(world.events(), [answer(Uuid::nil(), &[], &[])]);
    world.say(RedisRole::Subscriber, PONG);
    assert_eq!(world.events(), [answer(TASK, &kept, &["s"])]);
    assert!(world.link.is_idle());
}

#[test]
fn kept_results_are_numbered_by_their_places_unless_redis_says_otherwise() {
    const STATED: &str = "0000000001000000000700000000030000000009";
    for (numbers, gone, ids, next_id) in [
        ("", None, &[0, 1, 2][..], 3),
        (&STATED[..20], None, &[0, 7, 8], 9),
        // The next one goes on with another number.
        (&STATED[20..], None, &[0, 1, 2], 9),
        (STATED, None, &[0, 7, 8], 9),
        ("00000000000000000004", None, &[4, 5, 6], 7),
        // What is gone has its number still.
        ("", Some(1), &[0, 2], 3),
        (STATED, Some(0), &[7, 8], 9),
        // Nobody writes this.
        ("x", None, &[0, 1, 2], 3),
        ("0000000001-000000007", None, &[0, 1, 2], 3),
        ("00000000020000000001", None, &[0, 1, 2], 3),
    ] {
        let mut world = World::up(Subscribe::Pattern);
        let mut hash = KeptHash::new(&[(20, "a"), (21, "b"), (22, "c")]);
        if let Some(gone) = gone {
            hash.index.replace_range(12 + 36 * gone + 32..12 + 36 * (gone + 1), "----");
        }
        hash.fields.push(("numbers".into(), numbers.into()));
        world.link.look_up(TASK, &[]);
        let commands = world.commands(RedisRole::Store);
        world.say(RedisRole::Store, &hash.reply(&commands[0]));
        world.say(RedisRole::Store, "*1\r\n$-1\r\n");
        world.commands(RedisRole::Subscriber);
        world.say(RedisRole::Subscriber, PONG);
        let events = world.events();
        let [LinkEvent::LookedUp(answer)] = &events[..] else { panic!("{events:?}") };
        let found: Vec<u32> = answer.kept.iter().map(|one| one.id).collect();
        assert_eq!((&found[..], answer.next_id), (ids, next_id), "{numbers} {gone:?}");
    }
}

#[test]
fn many_kept_results_are_read_in_pages() {
    let mut world = World::up(Subscribe::Pattern);
    let texts: Vec<String> = (0..500).map(|nth| format!("text {nth}")).collect();
    let kept: Vec<(u64, &str)> = texts.iter().map(|text| (20, text.as_str())).collect();
    let hash = KeptHash::new(&kept);
    world.link.look_up(TASK, &[]);
    let first = world.commands(RedisRole::Store);
    world.say(RedisRole::Store, &hash.reply(&first[0]));
    world.say(RedisRole::Store, "*1\r\n$-1\r\n");
    let mut pages = 0;
    while let Some(command) = world.commands(RedisRole::Store).pop() {
        assert!(command.len() <= 2 + PAGE && !world.link.is_idle());
        world.say(RedisRole::Store, &hash.reply(&command));
        pages += 1;
    }
    assert_eq!(pages, (500 - FIRST_PAGE).div_ceil(PAGE));
    world.commands(RedisRole::Subscriber);
    world.say(RedisRole::Subscriber, PONG);
    assert_eq!(world.events(), [answer(TASK, &kept, &[])]);
}

#[test]
fn page_that_cannot_be_read_ends_the_look_up() {
    let mut world = World::up(Subscribe::Pattern);
    let kept = [(20, "a"); FIRST_PAGE + 1];
    world.link.look_up(TASK, &[]);
    let first = world.commands(RedisRole::Store);
    world.say(RedisRole::Store, &KeptHash::new(&kept).reply(&first[0]));
    world.say(RedisRole::Store, "*1\r\n$-1\r\n");
    assert_eq!(world.commands(RedisRole::Store).len(), 1);
    world.say(RedisRole::Store, "-ERR no\r\n");
    world.commands(RedisRole::Subscriber);
    world.say(RedisRole::Subscriber, PONG);
    let events = world.events();
    assert!(matches!(&events[0], LinkEvent::Problem { why } if why.contains("ERR no")));
    let LinkEvent::LookedUp(answer) = &events[1] else { panic!("{events:?}") };
    assert!(answer.kept.len() == FIRST_PAGE && answer.is_incomplete);
    assert!(world.link.is_idle());
}

#[test]
fn keys_of_other_programs_do_no_harm() {
    const WRONG: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n";
    let mut world = World::up(Subscribe::Pattern);
    world.link.look_up(TASK, &[]);
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, &format!("{WRONG}*1\r\n$1\r\ns\r\n"));
    world.commands(RedisRole::Subscriber);
    world.say(RedisRole::Subscriber, PONG);
    let events = world.events();
    assert!(matches!(&events[0], LinkEvent::Problem { why } if why.contains("WRONGTYPE")));
    assert_eq!(events[1], answer(TASK, &[], &["s"]));
    let good = KeptHash::new(&[(20, "a")]).index;
    for index in [
        String::new(),
        "0".into(),
        "0".repeat(12),
        "000000000000short".into(),
        "x".repeat(48),
        format!("{}\u{3042}", &good[..45]),
        good.replace("0000000000000020", "00000000000000-0"),
        good.replacen(&good[12..28], "0000000000000000", 1),
        format!("{}----", &good[..44]),
    ] {
        let mut hash = KeptHash::new(&[(20, "a")]);
        hash.index = index;
        world.link.look_up(TASK, &[]);
        let commands = world.commands(RedisRole::Store);
        world.say(RedisRole::Store, &hash.reply(&commands[0]));
        world.say(RedisRole::Store, "*1\r\n$-1\r\n");
        let events = world.events();
        let [LinkEvent::LookedUp(answer)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(answer.kept, [], "{}", hash.index);
    }
}

#[test]
fn server_that_cannot_save_still_delivers() {
    const MISCONF: &str = "-MISCONF Redis is configured to save RDB snapshots\r\n";
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    world.dials();
    for role in REDIS_ROLES {
        world.link.handle_connected(role, world.now);
    }
    world.greet(RedisRole::Subscriber);
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, &format!("+OK\r\n{ROLE_MASTER}{MISCONF}"));
    assert!(world.link.is_up());
    let events = world.events();
    assert!(
        matches!(&events[..], [LinkEvent::Up { .. }, LinkEvent::Problem { why }] if why.contains("MISCONF")),
        "{events:?}"
    );
    assert!(
        matches!(world.link.state(), RedisState::NotKeeping { why } if why.contains("MISCONF"))
    );
    // What could not be stored is stored once it can be.
    world.keep(1, "a");
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, "$3\r\nsha\r\n");
    assert_eq!(world.commands(RedisRole::Store).len(), 1);
    world.say(RedisRole::Store, MISCONF);
    assert_eq!((world.commands(RedisRole::Store).len(), world.link.dropped()), (0, 0));
    world.link.look_up(TASK, &[]);
    assert_eq!(world.commands(RedisRole::Store).len(), 2, "look-ups do not wait");
    world.say(
        RedisRole::Store,
        &format!("{}*1\r\n$-1\r\n", "*18\r\n".to_owned() + &"$-1\r\n".repeat(18)),
    );
    world.pass(REFUSED_PAUSE);
    assert_eq!(world.commands(RedisRole::Store)[0][0], "EVALSHA");
    world.say(RedisRole::Store, ":0\r\n");
    assert_eq!(world.link.state(), RedisState::Up);
}

#[test]
fn replica_is_left_for_the_next_server_with_what_it_refused() {
    let mut world = World::new(&["redis://one", "redis://two"], Subscribe::Pattern);
    world.connect();
    world.events();
    world.keep(1, "a");
    world.load_script();
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, "-READONLY You can't write against a read only replica.\r\n");
    let events = world.events();
    assert!(
        matches!(&events[..], [LinkEvent::Down { why }] if why.starts_with("one:6379: ") && why.contains("READONLY")),
        "{events:?}"
    );
    assert!(
        matches!(world.link.state(), RedisState::Away { why: Some(why) } if why.contains("replica"))
    );
    world.link.handle_time(world.now);
    let dials: Vec<String> = world
        .actions()
        .into_iter()
        .filter_map(|action| match action {
            LinkAction::Dial { address, .. } => Some(address.to_string()),
            LinkAction::Close { .. } => None,
        })
        .collect();
    assert_eq!(dials, ["two:6379", "two:6379"]);
    for role in REDIS_ROLES {
        world.link.handle_connected(role, world.now);
        world.greet(role);
    }
    world.load_script();
    assert_eq!(world.commands(RedisRole::Store)[0].last().unwrap(), "a");
    // Both are replicas: the next dial waits.
    world.say(RedisRole::Store, "-READONLY You can't write against a read only replica.\r\n");
    world.link.handle_time(world.now);
    assert_eq!(world.dials(), []);
    assert!(world.link.deadline().unwrap() > world.now);
}

#[test]
fn single_replica_delivers_and_says_that_it_keeps_nothing() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    for _ in 0..3 {
        world.commands(RedisRole::Store);
        world.say(RedisRole::Store, "-READONLY You can't write against a read only replica.\r\n");
        world.pass(REFUSED_PAUSE);
    }
    assert_eq!(world.events().len(), 1, "it is reported once");
    assert!(world.link.is_up() && world.link.dropped() == 0);
    assert!(
        matches!(world.link.state(), RedisState::NotKeeping { why } if why.contains("replica"))
    );
}

#[test]
fn cluster_node_is_reported_once_with_what_does_not_work() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    world.link.look_up(TASK, &[]);
    world.commands(RedisRole::Store);
    world.say(
        RedisRole::Store,
        "-MOVED 3999 10.0.0.2:6379\r\n-MOVED 12 10.0.0.3:6379\r\n-CROSSSLOT Keys in request\r\n",
    );
    let events = world.events();
    let problems: Vec<&LinkEvent> =
        events.iter().filter(|event| matches!(event, LinkEvent::Problem { .. })).collect();
    assert_eq!(problems.len(), 1, "{events:?}");
    assert!(format!("{problems:?}").contains("Redis Cluster"));
    assert!(world.link.is_up() && matches!(world.link.state(), RedisState::NotKeeping { .. }));
}

#[test]
fn login_that_is_lost_in_the_middle_is_reported() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, "-NOAUTH Authentication required.\r\n");
    let events = world.events();
    assert!(
        matches!(&events[..], [LinkEvent::Down { why }] if why.contains("NOAUTH")),
        "{events:?}"
    );
    // The result is not lost.
    world.pass(SECOND);
    world.connect();
    world.load_script();
    assert_eq!(world.commands(RedisRole::Store)[0].last().unwrap(), "a");
    world.say(RedisRole::Store, ":0\r\n");
    // A ping shows it as well.
    world.pass(connection::PING_INTERVAL);
    assert_eq!(world.commands(RedisRole::Store), [["PING"]]);
    world.say(RedisRole::Store, "-NOAUTH Authentication required.\r\n");
    assert!(
        matches!(world.link.state(), RedisState::Away { why: Some(why) } if why.contains("NOAUTH"))
    );
}

#[test]
fn each_task_has_its_own_subscription() {
    let mut world = World::up(Subscribe::Task);
    world.link.listen(TASK, SPELLED, world.now);
    assert_eq!(world.link.subscription(TASK), None);
    world.now += SECOND;
    world.said[0] = world.commands(RedisRole::Subscriber);
    assert_eq!(world.said[0], [["SUBSCRIBE", &format!("task_response:{SPELLED}")]]);
    world.greet(RedisRole::Subscriber);
    assert_eq!(world.events(), [LinkEvent::Subscribed { task: TASK }]);
    let subscription = world.link.subscription(TASK).unwrap();
    assert_eq!(subscription.since, 1_000_000_017);
    world.link.unlisten(SPELLED);
    assert_eq!(
        world.commands(RedisRole::Subscriber),
        [["UNSUBSCRIBE", &format!("task_response:{SPELLED}")]]
    );
    assert_eq!(world.link.subscription(TASK), None);
}

#[test]
fn only_the_latest_request_for_a_channel_counts() {
    let mut world = World::up(Subscribe::Task);
    world.link.listen(TASK, SPELLED, world.now);
    world.link.unlisten(SPELLED);
    world.link.listen(TASK, SPELLED, world.now);
    assert_eq!(world.commands(RedisRole::Subscriber).len(), 3);
    let channel = format!("task_response:{SPELLED}");
    let confirm =
        |kind: &str| format!("*3\r\n${}\r\n{kind}\r\n$50\r\n{channel}\r\n:1\r\n", kind.len());
    world.say(RedisRole::Subscriber, &confirm("subscribe"));
    world.say(RedisRole::Subscriber, &confirm("unsubscribe"));
    assert_eq!((world.events(), world.link.subscription(TASK)), (vec![], None));
    world.say(RedisRole::Subscriber, &confirm("subscribe"));
    assert_eq!(world.events(), [LinkEvent::Subscribed { task: TASK }]);
}

#[test]
fn all_tasks_are_subscribed_to_again_after_a_reconnect() {
    let mut world = World::up(Subscribe::Task);
    for task in 0..2500 {
        world.link.listen(Uuid::from_u128(task), &Uuid::from_u128(task).to_string(), world.now);
    }
    world.greet(RedisRole::Subscriber);
    assert_eq!(world.events().len(), 2500);
    let first = world.link.subscription(Uuid::from_u128(7)).unwrap();
    world.pass(SECOND);
    world.link.handle_closed(RedisRole::Subscriber, "closed", world.now);
    world.events();
    assert_eq!(world.link.subscription(Uuid::from_u128(7)), None);
    world.connect();
    assert_eq!(world.events().len(), 1);
    world.said[0] = world.commands(RedisRole::Subscriber);
    assert_eq!(world.said[0].len(), 3);
    world.greet(RedisRole::Subscriber);
    assert_eq!(world.events().len(), 2500);
    assert!(world.link.subscription(Uuid::from_u128(7)).unwrap().number > first.number);
}

#[test]
fn results_that_wait_for_redis_are_bounded() {
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    for _ in 0..JOBS_MAX + 10 {
        world.keep(1, "");
    }
    assert_eq!((world.link.keeper.jobs.len(), world.link.dropped()), (JOBS_MAX, 10));
    let large = "x".repeat(1 << 18);
    for _ in 0..8 {
        world.keep(1, &large);
    }
    assert_eq!(world.link.keeper.jobs.bytes(), 1 << 20);
    world.keep(1, &"x".repeat((1 << 20) + 1));
    assert_eq!(world.link.keeper.jobs.bytes(), 1 << 20);
    // A server that takes nothing is not packed for without end.
    world.connect();
    world.load_script();
    let before = world.link.keeper.jobs.len();
    world.link.poll_output(RedisRole::Store, world.now);
    let packed = world.link.store.output().len();
    assert!(packed > OUTPUT_MAX && packed < 2 * OUTPUT_MAX + BATCH_BYTES_MAX, "{packed}");
    assert!(world.link.keeper.jobs.len() < before);
    // Nor is what it has taken held, when it never takes all.
    for _ in 0..100 {
        (0..8).for_each(|_| world.keep(1, &large[..1 << 16]));
        let waiting = world.link.poll_output(RedisRole::Store, world.now).len();
        world.link.handle_written(RedisRole::Store, waiting - 1000);
    }
    assert!(
        world.link.store.output().len() < 3 * OUTPUT_MAX,
        "{}",
        world.link.store.output().len()
    );
}

#[test]
fn bad_urls_are_refused_without_being_quoted() {
    for (url, address) in [
        ("redis://localhost:6379", "localhost:6379"),
        ("redis://user:p@one/2", "one:6379"),
        ("redis://[::1]:7000", "[::1]:7000"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
        ("redis+unix:///run/redis.sock?db=1", "/run/redis.sock"),
        ("rediss://user:p@one:7000/2", "one:7000"),
    ] {
        assert_eq!(Server::parse(url).unwrap().address().to_string(), address);
    }
    for url in [
        "",
        "one:6379",
        "http://one",
        "redis://:secret@one/x",
        "redis://:secret@",
        "embedded://127.0.0.1:1",
    ] {
        let why = Server::parse(url).unwrap_err();
        assert!(!why.contains("secret") && why.contains("redis://["), "{why}");
    }
    let why = Server::parse("rediss://:secret@one#insecure").unwrap_err();
    assert!(!why.contains("secret") && why.contains("always verified"), "{why}");
    let settings = settings(&["redis://one", "nonsense"], Subscribe::Pattern);
    let why = Link::new(&settings, retention(), Moment::START, 1).err().unwrap();
    assert!(why.starts_with("URL 2 of 2: not a Redis URL"), "{why}");
}

#[test]
fn keys_of_kept_results_follow_the_channel_prefix() {
    for (prefix, expected) in
        [("task_response:", "task_response_kept:"), ("a/", "a/_kept:"), ("", "_kept:")]
    {
        let settings = Settings {
            channel_prefix: prefix.into(),
            ..settings(&["redis://one"], Subscribe::Pattern)
        };
        assert_eq!(
            Link::new(&settings, retention(), Moment::START, 1).unwrap().keeper.kept_prefix,
            expected
        );
    }
}

#[test]
fn reload_changes_grace_and_retention_of_a_running_link() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    world.commands(RedisRole::Store);
    let new = Settings {
        grace: Some(2 * SECOND),
        ..settings(&["redis://elsewhere"], Subscribe::Pattern)
    };
    let limits =
        tasks::Settings { retain: Some(7 * SECOND), max_retained: 1000, ..Default::default() };
    world.link.reload(&new, limits);
    assert_eq!(world.link.settings().grace, Some(2 * SECOND));
    assert_eq!(world.link.settings().urls, ["redis://one"], "a URL needs a restart");
    assert_eq!(world.link.retention(), limits);
    world.keep(2, "b");
    let command = world.commands(RedisRole::Store).remove(0);
    assert_eq!(command[4..6], ["7000", "500"]);
    world.keep(3, &"x".repeat(501));
    assert_eq!((world.commands(RedisRole::Store).len(), world.link.dropped()), (0, 1));
    world.link.handle_closed(RedisRole::Subscriber, "closed", world.now);
    world.pass(SECOND);
    assert!(!world.link.is_past_grace());
    world.pass(SECOND);
    assert!(world.link.is_past_grace());
}

fn stop_message() -> String {
    format!(
        "*4\r\n$8\r\npmessage\r\n$14\r\ntask_control:*\r\n$49\r\ntask_control:{SPELLED}\r\n\
         $17\r\n{{\"action\":\"STOP\"}}\r\n"
    )
}

#[test]
fn stop_is_published_and_those_of_others_are_heard() {
    let mut world = World::up(Subscribe::Pattern);
    let heard = LinkEvent::Control { task: TASK, action: ControlAction::Stop };
    world.say(RedisRole::Subscriber, &stop_message());
    assert_eq!(world.events(), std::slice::from_ref(&heard));
    world.link.publish_control(TASK, ControlAction::Stop);
    let channel = format!("task_control:{SPELLED}");
    assert_eq!(world.commands(RedisRole::Store), [["PUBLISH", &channel, r#"{"action":"STOP"}"#]]);
    world.say(RedisRole::Store, ":2\r\n");
    world.say(RedisRole::Subscriber, &stop_message());
    assert_eq!(world.events(), [], "its own publication comes back");
    world.say(RedisRole::Subscriber, &stop_message());
    assert_eq!(world.events(), [heard]);
    assert!(world.link.is_idle());
}

#[test]
fn user_without_control_channels_is_reported_once_and_loses_nothing_else() {
    const NOPERM: &str = "-NOPERM this user has no permissions to access one of the channels\r\n";
    let mut world = World::new(&["redis://one"], Subscribe::Pattern);
    world.on_control = Some(NOPERM);
    world.connect();
    let events = world.events();
    let [LinkEvent::Problem { why }, LinkEvent::Up { .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert!(why.contains("NOPERM") && why.contains("task_control:"), "{why}");
    assert!(why.contains("+psubscribe +publish &task_control:*"), "{why}");
    world.link.publish_control(TASK, ControlAction::Stop);
    world.commands(RedisRole::Store);
    world.say(RedisRole::Store, NOPERM);
    assert_eq!(world.events(), [], "the warning has named that right, too");
    assert!(world.link.is_up() && world.link.is_idle());
}

#[test]
fn user_who_may_not_publish_on_control_channels_is_reported_once() {
    let mut world = World::up(Subscribe::Pattern);
    for action in [ControlAction::Left, ControlAction::Back] {
        world.link.publish_control(TASK, action);
        world.commands(RedisRole::Store);
        world.say(RedisRole::Store, "-NOPERM User gw has no permissions to run 'publish'\r\n");
    }
    let events = world.events();
    let [LinkEvent::Problem { why }] = &events[..] else { panic!("{events:?}") };
    assert!(why.contains("refuses PUBLISH") && why.contains("+publish"), "{why}");
    world.say(RedisRole::Subscriber, &stop_message());
    assert_eq!(world.events().len(), 1, "others are still heard");
}

#[test]
fn publication_that_was_under_way_when_the_connection_broke_is_sent_again() {
    let mut world = World::up(Subscribe::Pattern);
    world.link.publish_control(TASK, ControlAction::Stop);
    let publish = world.commands(RedisRole::Store);
    assert_eq!(publish.len(), 1);
    world.link.handle_closed(RedisRole::Store, "closed", world.now);
    world.pass(10 * SECOND);
    world.connect();
    assert!(world.commands(RedisRole::Store).contains(&publish[0]));
}

#[test]
fn stopped_task_leaves_nothing_in_redis() {
    let mut world = World::up(Subscribe::Pattern);
    world.keep(1, "a");
    world.load_script();
    assert_eq!(world.commands(RedisRole::Store).len(), 1);
    world.keep(2, "b");
    world.link.drop_task(TASK, &[SPELLED.to_uppercase().into()]);
    let upper = format!("task_response:{}", SPELLED.to_uppercase());
    let keys = [format!("task_response:{SPELLED}"), upper, format!("task_response_kept:{SPELLED}")];
    let unlink = ["UNLINK", &keys[0], &keys[1], &keys[2]];
    assert_eq!(world.commands(RedisRole::Store), [unlink]);
    // The first one was on its way: it is not stored again when the script is gone.
    world.say(RedisRole::Store, "-NOSCRIPT No matching script.\r\n:1\r\n");
    assert_eq!(world.commands(RedisRole::Store), [[""; 0]; 0]);
    world.link.drop_set(TASK, &[]);
    assert_eq!(world.commands(RedisRole::Store), [["UNLINK", &keys[0]]]);
    world.say(RedisRole::Store, ":0\r\n");
    assert!(world.link.is_idle());
}

#[test]
fn redis_is_asked_whether_it_knows_a_task() {
    let mut world = World::up(Subscribe::Pattern);
    for (reply, is_known) in [(":0\r\n", false), (":2\r\n", true), ("-ERR no\r\n", false)] {
        world.link.ask_known(TASK);
        let commands = world.commands(RedisRole::Store);
        assert_eq!(
            commands,
            [[
                "EXISTS".to_owned(),
                format!("task_response_kept:{SPELLED}"),
                format!("task_response:{SPELLED}")
            ]]
        );
        world.say(RedisRole::Store, reply);
        assert_eq!(world.events(), [LinkEvent::Known { task: TASK, is_known }]);
    }
}
