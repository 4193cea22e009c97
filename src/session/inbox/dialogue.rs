//! What a worker and the inbox say to each other, without their connection.
//!
//! The inbox takes results and is not a Redis: `PUBLISH` does what it does there, `SUBSCRIBE` and
//! its like too on control channels, what client libraries send on connecting gets the reply that
//! they expect, and every other command gets a clear error.
//!
//! In a transaction (`MULTI` … `EXEC`) nothing happens before `EXEC`, and nothing at all if one of
//! its commands was refused. Without that, the commands behind a refused `MULTI` would run, and a
//! worker that tries again would publish twice.

use crate::proto::control::ControlAction;
use crate::proto::resp::{Protocol, RespReply};
use crate::service::channels::{self, SubscriptionKind};
use crate::service::token::is_equal;
use crate::session::SessionId;
use std::fmt;
use uuid::Uuid;

type Channels = channels::Channels<SessionId>;

/// Bytes that the commands of one transaction may take.
const TRANSACTION_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a message on a control channel. It is copied for each of its subscribers.
const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// The cost of a queued command besides its arguments.
const COMMAND_COST: usize = 128;

/// The reply to `INFO`: client libraries look for `loading` before they send anything.
const SERVER: &str = concat!(
    "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\n",
    "server_name:aivtuber-gateway\r\ngateway_version:",
    env!("CARGO_PKG_VERSION"),
    "\r\n# Persistence\r\nloading:0\r\n"
);

/// The commands, and the fewest and the most arguments of each.
const COMMANDS: [(&str, usize, usize); 17] = [
    ("PUBLISH", 2, 2),
    ("SUBSCRIBE", 1, usize::MAX),
    ("PSUBSCRIBE", 1, usize::MAX),
    ("UNSUBSCRIBE", 0, usize::MAX),
    ("PUNSUBSCRIBE", 0, usize::MAX),
    ("PING", 0, 1),
    ("ECHO", 1, 1),
    ("AUTH", 1, 2),
    ("HELLO", 0, usize::MAX),
    ("SELECT", 1, 1),
    ("CLIENT", 1, usize::MAX),
    ("INFO", 0, usize::MAX),
    ("MULTI", 0, 0),
    ("EXEC", 0, 0),
    ("DISCARD", 0, 0),
    ("QUIT", 0, usize::MAX),
    ("RESET", 0, 0),
];

/// A command: its name and its arguments.
pub type RedisCommand = Vec<Vec<u8>>;

/// What the gateway prescribes to all workers, and what identifies this one.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// What a task's channel begins with.
    pub channel_prefix: &'a str,
    /// What a task's control channel begins with.
    pub control_prefix: &'a str,
    /// The password that a worker must know, if there is one.
    pub password: Option<&'a str>,
    /// The number of the connection.
    pub connection: u64,
    /// Identifies it among the subscribers.
    pub id: SessionId,
}

/// What a worker published for the gateway.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// A result of this task.
    Result(Uuid, Vec<u8>),
    /// Stop this task.
    Stop(Uuid),
}

/// A message on a channel that the worker listens to.
#[derive(Clone, Copy)]
pub struct ChannelMessage<'a> {
    /// The pattern that the worker is subscribed to; `None` if it is subscribed to the channel.
    pub pattern: Option<&'a [u8]>,
    /// Where it was published.
    pub channel: &'a [u8],
    /// What was published.
    pub payload: &'a [u8],
}

/// One worker's side of the conversation.
#[derive(Default)]
pub struct Dialogue {
    protocol: Protocol,
    /// The worker has given the password.
    pub is_authenticated: bool,
    transaction: Option<Transaction>,
    /// Replies for the worker.
    pub replies: Vec<u8>,
    /// Results and requests to stop, in the order in which they came.
    pub published: Vec<Published>,
    /// Its subscriptions: how many, and their bytes.
    subscriptions: usize,
    subscription_bytes: usize,
    /// Publications to channels that are no task's.
    pub not_tasks: usize,
    /// The worker has said goodbye, or broke the protocol. The replies are still for it.
    pub is_over: bool,
    /// The worker gave a wrong password since this was last cleared.
    pub has_failed_login: bool,
}

#[derive(Default)]
struct Transaction {
    commands: Vec<RedisCommand>,
    bytes: usize,
    /// A command was refused, so `EXEC` will be.
    is_broken: bool,
}

impl Dialogue {
    /// Whether commands are taken from this worker.
    pub fn may_enter(&self, rules: Rules<'_>) -> bool {
        self.is_authenticated || rules.password.is_none()
    }

    /// Whether a transaction has begun and not ended.
    pub fn is_in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether it listens to any channel.
    pub fn is_subscribed(&self) -> bool {
        self.subscriptions > 0
    }

    /// A message for the worker.
    pub fn handle_message(&mut self, message: ChannelMessage<'_>) {
        let ChannelMessage { pattern, channel, payload } = message;
        let (channel, payload) = (RespReply::Bulk(channel), RespReply::Bulk(payload));
        self.reply(&RespReply::Push(match pattern {
            None => vec![RespReply::Bulk(b"message"), channel, payload],
            Some(pattern) => {
                vec![RespReply::Bulk(b"pmessage"), RespReply::Bulk(pattern), channel, payload]
            }
        }));
    }

    /// The worker broke the protocol.
    pub fn fail(&mut self, error: &str) {
        self.reply(&RespReply::Error(&format!("ERR Protocol error: {error}")));
        self.is_over = true;
    }

    /// Takes the next command, which has a name.
    pub fn handle_command(
        &mut self,
        command: RedisCommand,
        rules: Rules<'_>,
        channels: &mut Channels,
    ) {
        let Some((name, arguments)) = command.split_first() else { return };
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        if let Err(error) = check(&name, arguments.len()) {
            return self.refuse(&error.to_string());
        }
        if !self.may_enter(rules) && !matches!(name.as_str(), "AUTH" | "HELLO" | "QUIT" | "RESET") {
            return self.refuse("NOAUTH Authentication required.");
        }
        // In RESP2 only these have replies that cannot be taken for a message.
        let is_for_subscribers =
            name.ends_with("SUBSCRIBE") || matches!(&*name, "PING" | "QUIT" | "RESET");
        if self.is_subscribed() && self.protocol == Protocol::Resp2 && !is_for_subscribers {
            let error = format!(
                "ERR Can't execute '{}': only (P)SUBSCRIBE / (P)UNSUBSCRIBE / PING / QUIT / RESET \
                 are allowed in this context",
                name.to_ascii_lowercase()
            );
            return self.refuse(&error.to_string());
        }
        match (name.as_str(), &mut self.transaction) {
            ("MULTI", Some(_)) => {
                self.reply(&RespReply::Error("ERR MULTI calls can not be nested"));
            }
            ("MULTI", None) => {
                self.transaction = Some(Transaction::default());
                self.reply(&RespReply::Simple("OK"));
            }
            ("EXEC" | "DISCARD", None) => {
                self.reply(&RespReply::Error(&format!("ERR {name} without MULTI")));
            }
            ("EXEC", Some(_)) => self.execute(rules, channels),
            ("DISCARD", Some(_)) => {
                self.transaction = None;
                self.reply(&RespReply::Simple("OK"));
            }
            ("QUIT", _) => {
                self.reply(&RespReply::Simple("OK"));
                self.is_over = true;
            }
            ("RESET", _) => self.reset(rules, channels),
            (_, Some(_)) if name.ends_with("SUBSCRIBE") => {
                self.refuse(&format!("ERR {name} is not allowed in transactions"));
            }
            (_, Some(transaction)) => {
                let bytes: usize = command.iter().map(|argument| argument.len() + 24).sum();
                transaction.bytes += bytes + COMMAND_COST;
                if transaction.bytes > TRANSACTION_BYTES_MAX {
                    transaction.commands = Vec::new();
                    return self.refuse("ERR the transaction is too large");
                }
                transaction.commands.push(command);
                self.reply(&RespReply::Simple("QUEUED"));
            }
            ("SUBSCRIBE", None) => {
                self.subscribe(SubscriptionKind::Channel, arguments, rules, channels)
            }
            ("PSUBSCRIBE", None) => {
                self.subscribe(SubscriptionKind::Pattern, arguments, rules, channels)
            }
            ("UNSUBSCRIBE", None) => {
                self.unsubscribe(SubscriptionKind::Channel, arguments, rules, channels)
            }
            ("PUNSUBSCRIBE", None) => {
                self.unsubscribe(SubscriptionKind::Pattern, arguments, rules, channels)
            }
            (_, None) => self.run(&name, arguments, rules, channels),
        }
    }

    /// Bytes of its own memory.
    pub fn held_bytes(&self) -> usize {
        let transaction = self.transaction.as_ref().map_or(0, |transaction| transaction.bytes);
        self.replies.capacity() + transaction + self.subscription_bytes
    }

    /// Refuses a command, and with it the transaction that it belongs to.
    pub fn refuse(&mut self, error: &str) {
        if let Some(transaction) = &mut self.transaction {
            transaction.is_broken = true;
        }
        self.reply(&RespReply::Error(error));
    }

    fn execute(&mut self, rules: Rules<'_>, channels: &mut Channels) {
        let Transaction { commands, is_broken, .. } = self.transaction.take().unwrap_or_default();
        if is_broken {
            let error = "EXECABORT Transaction discarded because of previous errors.";
            return self.reply(&RespReply::Error(error));
        }
        self.replies.extend_from_slice(format!("*{}\r\n", commands.len()).as_bytes());
        for command in commands {
            if let Some((name, arguments)) = command.split_first() {
                let name = String::from_utf8_lossy(name).to_ascii_uppercase();
                self.run(&name, arguments, rules, channels);
            }
        }
    }

    /// Runs a command of a known name with the right number of arguments.
    fn run(
        &mut self,
        name: &str,
        arguments: &[Vec<u8>],
        rules: Rules<'_>,
        channels: &mut Channels,
    ) {
        match (name, arguments) {
            ("PUBLISH", [channel, payload]) => self.publish(channel, payload, rules, channels),
            ("PING", _) if self.is_subscribed() && self.protocol == Protocol::Resp2 => {
                let text = arguments.first().map_or(&b""[..], Vec::as_slice);
                let pong = [RespReply::Bulk(b"pong"), RespReply::Bulk(text)];
                self.reply(&RespReply::Array(pong.into()));
            }
            ("PING", [text]) | ("ECHO", [text]) => self.reply(&RespReply::Bulk(text)),
            ("PING", _) => self.reply(&RespReply::Simple("PONG")),
            ("AUTH", [password]) => self.authenticate(b"default", password, rules),
            ("AUTH", [user, password]) => self.authenticate(user, password, rules),
            ("HELLO", _) => self.hello(arguments, rules),
            ("CLIENT", [subcommand, ..]) => match subcommand.to_ascii_uppercase().as_slice() {
                b"ID" => self.reply(&RespReply::Integer(rules.connection as i64)),
                b"GETNAME" => self.reply(&RespReply::Null),
                _ => self.reply(&RespReply::Simple("OK")),
            },
            ("INFO", _) => self.reply(&RespReply::Bulk(SERVER.as_bytes())),
            _ => self.reply(&RespReply::Simple("OK")),
        }
    }

    /// Replies with the number of its receivers. The gateway is one if the channel is a task's.
    fn publish(
        &mut self,
        channel: &[u8],
        payload: &[u8],
        rules: Rules<'_>,
        channels: &mut Channels,
    ) {
        if let Some(task) = task_of(channel, rules.channel_prefix) {
            self.published.push(Published::Result(task, payload.to_vec()));
            return self.reply(&RespReply::Integer(1));
        }
        if !channel.starts_with(rules.control_prefix.as_bytes()) {
            self.not_tasks += 1;
            return self.reply(&RespReply::Integer(0));
        }
        if payload.len() > CONTROL_BYTES_MAX {
            let error = "ERR a message on a control channel may have at most 64 KiB";
            return self.reply(&RespReply::Error(error));
        }
        let task = task_of(channel, rules.control_prefix);
        if let Some(task) =
            task.filter(|_| ControlAction::read(payload) == Some(ControlAction::Stop))
        {
            self.published.push(Published::Stop(task));
        }
        let subscribers = channels.publish(channel, payload) + usize::from(task.is_some());
        self.reply(&RespReply::Integer(subscribers as i64));
    }

    /// Subscribes to all of `names`, or to none.
    fn subscribe(
        &mut self,
        kind: SubscriptionKind,
        names: &[Vec<u8>],
        rules: Rules<'_>,
        channels: &mut Channels,
    ) {
        let prefix = rules.control_prefix;
        if !names.iter().all(|name| name.starts_with(prefix.as_bytes())) {
            let error = format!(
                "ERR only channels and patterns that begin with {prefix} can be subscribed to"
            );
            return self.reply(&RespReply::Error(&error));
        }
        if !channels.has_room(rules.id, kind, names) {
            return self.reply(&RespReply::Error("ERR too many subscriptions"));
        }
        let word: &[u8] = match kind {
            SubscriptionKind::Channel => b"subscribe",
            SubscriptionKind::Pattern => b"psubscribe",
        };
        for name in names {
            self.subscriptions = channels.subscribe(rules.id, kind, name);
            self.confirm(word, RespReply::Bulk(name));
        }
        self.subscription_bytes = channels.held_bytes(rules.id);
    }

    /// Ends the subscriptions to `names`; to everything of this kind if there are none.
    fn unsubscribe(
        &mut self,
        kind: SubscriptionKind,
        names: &[Vec<u8>],
        rules: Rules<'_>,
        channels: &mut Channels,
    ) {
        let word: &[u8] = match kind {
            SubscriptionKind::Channel => b"unsubscribe",
            SubscriptionKind::Pattern => b"punsubscribe",
        };
        let own = match names {
            [] => channels.names(rules.id, kind),
            _ => Vec::new(),
        };
        if names.is_empty() && own.is_empty() {
            self.confirm(word, RespReply::Null);
        }
        for name in names.iter().map(Vec::as_slice).chain(own.iter().map(|name| &**name)) {
            self.subscriptions = channels.unsubscribe(rules.id, kind, name);
            self.confirm(word, RespReply::Bulk(name));
        }
        self.subscription_bytes = channels.held_bytes(rules.id);
    }

    fn confirm(&mut self, word: &[u8], name: RespReply<'_>) {
        let count = RespReply::Integer(self.subscriptions as i64);
        self.reply(&RespReply::Push(vec![RespReply::Bulk(word), name, count]));
    }

    /// The connection is as it was when it began.
    fn reset(&mut self, rules: Rules<'_>, channels: &mut Channels) {
        channels.leave(rules.id);
        (self.subscriptions, self.subscription_bytes) = (0, 0);
        (self.transaction, self.protocol) = (None, Protocol::Resp2);
        self.is_authenticated = false;
        self.reply(&RespReply::Simple("RESET"));
    }

    fn authenticate(&mut self, user: &[u8], password: &[u8], rules: Rules<'_>) {
        match self.log_in(user, password, rules) {
            Ok(()) => self.reply(&RespReply::Simple("OK")),
            Err(error) => self.reply(&RespReply::Error(error)),
        }
    }

    fn log_in(
        &mut self,
        user: &[u8],
        password: &[u8],
        rules: Rules<'_>,
    ) -> Result<(), &'static str> {
        // Without a password any will do: workers keep the one that their Redis had.
        let Some(expected) = rules.password else { return Ok(()) };
        if user != b"default" || !is_equal(password, expected.as_bytes()) {
            self.has_failed_login = true;
            return Err("WRONGPASS invalid username-password pair or user is disabled.");
        }
        self.is_authenticated = true;
        Ok(())
    }

    /// `HELLO [version [AUTH user password] [SETNAME name]]`.
    fn hello(&mut self, arguments: &[Vec<u8>], rules: Rules<'_>) {
        let protocol = match arguments.first().map(Vec::as_slice) {
            None => self.protocol,
            Some(b"2") => Protocol::Resp2,
            Some(b"3") => Protocol::Resp3,
            Some(_) => {
                return self.reply(&RespReply::Error("NOPROTO unsupported protocol version"));
            }
        };
        let mut options = arguments.get(1..).unwrap_or_default();
        while let [option, rest @ ..] = options {
            match (option.to_ascii_uppercase().as_slice(), rest) {
                (b"AUTH", [user, password, rest @ ..]) => {
                    if let Err(error) = self.log_in(user, password, rules) {
                        return self.reply(&RespReply::Error(error));
                    }
                    options = rest;
                }
                (b"SETNAME", [_, rest @ ..]) => options = rest,
                _ => return self.reply(&RespReply::Error("ERR syntax error in HELLO option")),
            }
        }
        if !self.may_enter(rules) {
            let error = "NOAUTH HELLO must be called with the client already authenticated, \
                         otherwise the HELLO <proto> AUTH <user> <pass> option can be used";
            return self.reply(&RespReply::Error(error));
        }
        self.protocol = protocol;
        let version = if protocol == Protocol::Resp3 { 3 } else { 2 };
        self.reply(&RespReply::Map(vec![
            (RespReply::Bulk(b"server"), RespReply::Bulk(b"aivtuber-gateway")),
            (RespReply::Bulk(b"version"), RespReply::Bulk(b"7.0.0")),
            (RespReply::Bulk(b"proto"), RespReply::Integer(version)),
            (RespReply::Bulk(b"id"), RespReply::Integer(rules.connection as i64)),
            (RespReply::Bulk(b"mode"), RespReply::Bulk(b"standalone")),
            (RespReply::Bulk(b"role"), RespReply::Bulk(b"master")),
            (RespReply::Bulk(b"modules"), RespReply::Array(Vec::new())),
        ]));
    }

    fn reply(&mut self, reply: &RespReply<'_>) {
        reply.write(self.protocol, &mut self.replies);
    }
}

/// Why a command cannot be run, whatever the values of its arguments. Displayed as its reply.
enum CommandFault<'n> {
    /// The inbox has no command of this name.
    Unknown(&'n str),
    /// Too few arguments for this command, or too many.
    ArgumentCount(&'n str),
}

impl fmt::Display for CommandFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandFault::Unknown(name) => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                write!(
                    f,
                    "ERR unknown command '{name}': this is the result inbox of aivtuber-gateway, \
                     which takes PUBLISH, and SUBSCRIBE on control channels"
                )
            }
            CommandFault::ArgumentCount(name) => {
                let name = name.to_ascii_lowercase();
                write!(f, "ERR wrong number of arguments for '{name}' command")
            }
        }
    }
}

/// Whether there is a command of this name that takes this many arguments.
fn check(name: &str, arguments: usize) -> Result<(), CommandFault<'_>> {
    match COMMANDS.iter().find(|(known, ..)| *known == name) {
        Some((_, fewest, most)) if (*fewest..=*most).contains(&arguments) => Ok(()),
        Some(_) => Err(CommandFault::ArgumentCount(name)),
        None => Err(CommandFault::Unknown(name)),
    }
}

/// The task that `channel` belongs to, if it begins with `prefix`.
fn task_of(channel: &[u8], prefix: &str) -> Option<Uuid> {
    Uuid::try_parse_ascii(channel.strip_prefix(prefix.as_bytes())?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
    const OPEN: Rules<'static> = Rules {
        channel_prefix: "task_response:",
        control_prefix: "task_control:",
        password: None,
        connection: 7,
        id: SessionId::in_slot(0),
    };
    const LOCKED: Rules<'static> = Rules { password: Some("s3 cret"), ..OPEN };

    /// What is replied to commands, each given as words; `TASK` is the channel of the task.
    fn replies(dialogue: &mut Dialogue, rules: Rules<'_>, commands: &[&[&str]]) -> String {
        heard(dialogue, rules, &mut Channels::default(), commands)
    }

    /// The same, with the subscriptions that there are.
    fn heard(
        dialogue: &mut Dialogue,
        rules: Rules<'_>,
        channels: &mut Channels,
        commands: &[&[&str]],
    ) -> String {
        for command in commands {
            let word = |word: &&str| word.replace("TASK", &format!("task_response:{TASK}"));
            let command = command.iter().map(|it| word(it).into_bytes()).collect();
            dialogue.handle_command(command, rules, channels);
        }
        String::from_utf8(std::mem::take(&mut dialogue.replies)).unwrap()
    }

    fn payloads(dialogue: &mut Dialogue) -> Vec<String> {
        let published = std::mem::take(&mut dialogue.published);
        let payload = |it| match it {
            Published::Result(_, payload) => String::from_utf8(payload).unwrap(),
            Published::Stop(_) => "STOP".to_owned(),
        };
        published.into_iter().map(payload).collect()
    }

    #[test]
    fn channel_is_the_prefix_and_a_uuid_in_any_form() {
        for form in [
            TASK.hyphenated().to_string(),
            TASK.simple().to_string(),
            TASK.to_string().to_uppercase(),
        ] {
            let channel = format!("task_response:{form}");
            assert_eq!(task_of(channel.as_bytes(), "task_response:"), Some(TASK));
        }
        assert_eq!(task_of(b"task_response:1", "task_response:"), None);
        assert_eq!(task_of(b"other:12345678-9abc-def0-1234-56789abcdef0", "task_response:"), None);
    }

    #[test]
    fn publish_is_answered_with_the_number_of_subscribers() {
        let mut dialogue = Dialogue::default();
        let commands: [&[&str]; 2] = [&["publish", "TASK", "{}"], &["PUBLISH", "other", "{}"]];
        assert_eq!(replies(&mut dialogue, OPEN, &commands), ":1\r\n:0\r\n");
        assert_eq!(dialogue.published, [Published::Result(TASK, b"{}".to_vec())]);
    }

    #[test]
    fn transaction_publishes_at_exec_and_not_before() {
        let mut dialogue = Dialogue::default();
        let begin: [&[&str]; 3] = [&["MULTI"], &["PUBLISH", "TASK", "a"], &["PING"]];
        assert_eq!(replies(&mut dialogue, OPEN, &begin), "+OK\r\n+QUEUED\r\n+QUEUED\r\n");
        assert_eq!(payloads(&mut dialogue), [""; 0]);
        assert_eq!(replies(&mut dialogue, OPEN, &[&["EXEC"]]), "*2\r\n:1\r\n+PONG\r\n");
        assert_eq!(payloads(&mut dialogue), ["a"]);
        assert_eq!(replies(&mut dialogue, OPEN, &[&["MULTI"], &["EXEC"]]), "+OK\r\n*0\r\n");
    }

    #[test]
    fn discarded_transaction_publishes_nothing() {
        let mut dialogue = Dialogue::default();
        let all: [&[&str]; 4] =
            [&["MULTI"], &["PUBLISH", "TASK", "a"], &["DISCARD"], &["PUBLISH", "TASK", "b"]];
        assert_eq!(replies(&mut dialogue, OPEN, &all), "+OK\r\n+QUEUED\r\n+OK\r\n:1\r\n");
        assert_eq!(payloads(&mut dialogue), ["b"]);
    }

    #[test]
    fn transaction_with_a_refused_command_is_refused_as_a_whole() {
        let too_much = "x".repeat(TRANSACTION_BYTES_MAX);
        for refused in [&["SET", "k", "v"][..], &["PUBLISH", "TASK"], &["ECHO", &too_much]] {
            let mut dialogue = Dialogue::default();
            let all: [&[&str]; 4] =
                [&["MULTI"], &["PUBLISH", "TASK", "a"], refused, &["PUBLISH", "TASK", "b"]];
            let replies_ = replies(&mut dialogue, OPEN, &all);
            assert!(replies_.starts_with("+OK\r\n+QUEUED\r\n-ERR "), "{replies_}");
            let end = replies(&mut dialogue, OPEN, &[&["EXEC"], &["EXEC"]]);
            assert!(end.starts_with("-EXECABORT ") && end.ends_with("-ERR EXEC without MULTI\r\n"));
            assert_eq!(payloads(&mut dialogue), [""; 0]);
        }
    }

    #[test]
    fn commands_of_a_transaction_out_of_place_are_refused() {
        let mut dialogue = Dialogue::default();
        assert_eq!(
            replies(&mut dialogue, OPEN, &[&["DISCARD"], &["MULTI"], &["MULTI"], &["EXEC"]]),
            "-ERR DISCARD without MULTI\r\n+OK\r\n-ERR MULTI calls can not be nested\r\n*0\r\n"
        );
    }

    #[test]
    fn hello_has_all_fields_in_both_protocols() {
        let mut dialogue = Dialogue::default();
        let reply = replies(&mut dialogue, OPEN, &[&["HELLO", "3", "SETNAME", "worker"]]);
        assert!(reply.starts_with("%7\r\n") && reply.contains("$2\r\nid\r\n:7\r\n"), "{reply}");
        let reply = replies(&mut dialogue, OPEN, &[&["HELLO", "2"]]);
        assert!(reply.starts_with("*14\r\n"), "{reply}");
        for bad in [&["HELLO", "4"][..], &["HELLO", "3", "AUTH", "x"], &["HELLO", "3", "LIST"]] {
            assert!(replies(&mut dialogue, OPEN, &[bad]).starts_with('-'), "{bad:?}");
        }
    }

    #[test]
    fn without_the_password_nothing_is_taken() {
        let mut dialogue = Dialogue::default();
        for command in [&["PUBLISH", "TASK", "a"][..], &["PING"], &["MULTI"], &["HELLO", "3"]] {
            let reply = replies(&mut dialogue, LOCKED, &[command]);
            assert!(reply.starts_with("-NOAUTH "), "{reply}");
        }
        for wrong in [
            &["AUTH", "s3"][..],
            &["AUTH", "s3 cret?"],
            &["AUTH", "admin", "s3 cret"],
            &["HELLO", "3", "AUTH", "default", "x"],
        ] {
            let reply = replies(&mut dialogue, LOCKED, &[wrong]);
            assert!(reply.starts_with("-WRONGPASS "), "{reply}");
            assert!(std::mem::take(&mut dialogue.has_failed_login));
        }
        assert!(!dialogue.may_enter(LOCKED) && payloads(&mut dialogue).is_empty());
    }

    #[test]
    fn the_password_opens_the_inbox() {
        for login in [
            &["AUTH", "s3 cret"][..],
            &["AUTH", "default", "s3 cret"],
            &["HELLO", "3", "AUTH", "default", "s3 cret"],
        ] {
            let mut dialogue = Dialogue::default();
            let reply = replies(&mut dialogue, LOCKED, &[login, &["PUBLISH", "TASK", "a"]]);
            assert!(reply.ends_with(":1\r\n"), "{reply}");
            assert_eq!(payloads(&mut dialogue), ["a"]);
        }
        // A password that the inbox does not have is no reason to refuse a worker.
        let reply = replies(&mut Dialogue::default(), OPEN, &[&["AUTH", "any"]]);
        assert_eq!(reply, "+OK\r\n");
    }

    /// A reply in short: `>` marks a push, line ends are blanks.
    fn short(reply: &str) -> String {
        reply.replace("\r\n", " ").trim_end().to_owned()
    }

    #[test]
    fn subscriptions_are_confirmed_and_counted_in_both_protocols() {
        for (protocol, mark, null) in [("2", "*", "$-1"), ("3", ">", "_")] {
            let (mut dialogue, mut channels) = (Dialogue::default(), Channels::default());
            replies(&mut dialogue, OPEN, &[&["HELLO", protocol]]);
            let confirmed = |kind: &str, name: &str, count: usize| {
                let name = match name {
                    "" => null.to_owned(),
                    name => format!("${} {name}", name.len()),
                };
                format!("{mark}3 ${} {kind} {name} :{count}", kind.len())
            };
            let (a, b) = ("task_control:a", "task_control:b");
            for (command, confirmations) in [
                (&["unsubscribe"][..], &[("unsubscribe", "", 0)][..]),
                (&["PUNSUBSCRIBE"], &[("punsubscribe", "", 0)]),
                (&["SUBSCRIBE", a, b], &[("subscribe", a, 1), ("subscribe", b, 2)]),
                (&["SUBSCRIBE", a], &[("subscribe", a, 2)]),
                (&["PSUBSCRIBE", "task_control:*"], &[("psubscribe", "task_control:*", 3)]),
                (&["UNSUBSCRIBE", b], &[("unsubscribe", b, 2)]),
                (&["UNSUBSCRIBE", "other"], &[("unsubscribe", "other", 2)]),
                (&["UNSUBSCRIBE"], &[("unsubscribe", a, 1)]),
                (&["UNSUBSCRIBE"], &[("unsubscribe", "", 1)]),
                (&["PUNSUBSCRIBE"], &[("punsubscribe", "task_control:*", 0)]),
            ] {
                let expected: Vec<_> =
                    confirmations.iter().map(|&(kind, name, n)| confirmed(kind, name, n)).collect();
                let reply = heard(&mut dialogue, OPEN, &mut channels, &[command]);
                assert_eq!(short(&reply), expected.join(" "), "{command:?}, RESP{protocol}");
            }
            assert!(!dialogue.is_subscribed());
            assert_eq!(dialogue.subscription_bytes, 0);
        }
    }

    #[test]
    fn messages_are_arrays_in_resp2_and_pushes_in_resp3() {
        let (channel, payload) = (&b"c:1"[..], &b"x"[..]);
        for (protocol, mark) in [("2", '*'), ("3", '>')] {
            let mut dialogue = Dialogue::default();
            replies(&mut dialogue, OPEN, &[&["HELLO", protocol]]);
            dialogue.handle_message(ChannelMessage { pattern: None, channel, payload });
            dialogue.handle_message(ChannelMessage { pattern: Some(b"c:*"), channel, payload });
            let received = String::from_utf8(std::mem::take(&mut dialogue.replies)).unwrap();
            let expected =
                format!("{mark}3 $7 message $3 c:1 $1 x {mark}4 $8 pmessage $3 c:* $3 c:1 $1 x");
            assert_eq!(short(&received), expected);
        }
    }

    #[test]
    fn only_control_channels_can_be_subscribed_to_and_all_of_a_command_or_none() {
        let (mut dialogue, mut channels) = (Dialogue::default(), Channels::default());
        for command in [
            &["SUBSCRIBE", "task_control:a", "task_response:a"][..],
            &["SUBSCRIBE", "other"],
            &["PSUBSCRIBE", "*"],
            &["PSUBSCRIBE", "task_contro?:*"],
        ] {
            let reply = heard(&mut dialogue, OPEN, &mut channels, &[command]);
            let expected = "-ERR only channels and patterns that begin with task_control: can";
            assert!(reply.starts_with(expected), "{command:?}: {reply}");
        }
        let many: Vec<_> = (0..=channels::SUBSCRIPTIONS_MAX)
            .map(|number| format!("task_control:{number}"))
            .collect();
        let many: Vec<_> =
            std::iter::once("SUBSCRIBE").chain(many.iter().map(String::as_str)).collect();
        let reply = heard(&mut dialogue, OPEN, &mut channels, &[&many]);
        assert_eq!(reply, "-ERR too many subscriptions\r\n");
        let reply = heard(&mut dialogue, OPEN, &mut channels, &[&["SUBSCRIBE"], &["PSUBSCRIBE"]]);
        assert_eq!(reply.matches("-ERR wrong number of arguments").count(), 2, "{reply}");
        assert!(!dialogue.is_subscribed());
        let locked =
            heard(&mut dialogue, LOCKED, &mut channels, &[&["SUBSCRIBE", "task_control:a"]]);
        assert!(locked.starts_with("-NOAUTH "), "{locked}");
    }

    #[test]
    fn subscriber_may_do_little_else_in_resp2_and_everything_in_resp3() {
        let commands: [&[&str]; 5] =
            [&["PING"], &["PING", "a"], &["ECHO", "a"], &["PUBLISH", "TASK", "a"], &["MULTI"]];
        for (protocol, expected) in [
            ("2", &["*2 $4 pong $0 ", "*2 $4 pong $1 a", "-ERR", "-ERR", "-ERR"]),
            ("3", &["+PONG", "$1 a", "$1 a", ":1", "+OK"]),
        ] {
            let (mut dialogue, mut channels) = (Dialogue::default(), Channels::default());
            let begin: [&[&str]; 2] = [&["HELLO", protocol], &["SUBSCRIBE", "task_control:a"]];
            heard(&mut dialogue, OPEN, &mut channels, &begin);
            for (command, expected) in commands.iter().zip(expected) {
                let reply = heard(&mut dialogue, OPEN, &mut channels, &[command]);
                let reply = reply.replace("\r\n", " ");
                assert!(reply.starts_with(expected), "{command:?}, RESP{protocol}: {reply}");
            }
            let reply = heard(&mut dialogue, OPEN, &mut channels, &[&["RESET"], &["ECHO", "a"]]);
            assert_eq!(short(&reply), "+RESET $1 a");
            assert_eq!(channels.publish(b"task_control:a", b"x"), 0);
        }
    }

    #[test]
    fn transaction_with_a_subscription_is_refused() {
        let mut dialogue = Dialogue::default();
        let all: [&[&str]; 3] = [&["MULTI"], &["SUBSCRIBE", "task_control:a"], &["EXEC"]];
        let reply = short(&replies(&mut dialogue, OPEN, &all));
        let expected = "+OK -ERR SUBSCRIBE is not allowed in transactions -EXECABORT";
        assert!(reply.starts_with(expected), "{reply}");
    }

    #[test]
    fn publications_on_control_channels_reach_subscribers_and_stop_is_heard_by_the_gateway() {
        let (mut dialogue, mut channels) = (Dialogue::default(), Channels::default());
        let of_task = format!("task_control:{TASK}");
        channels.subscribe(SessionId::in_slot(1), SubscriptionKind::Pattern, b"task_control:*");
        let too_large = "x".repeat(CONTROL_BYTES_MAX + 1);
        for (channel, payload, reply, expected) in [
            (&*of_task, r#"{"action":"STOP"}"#, ":2", Some(Published::Stop(TASK))),
            (&*of_task, "hello", ":2", None),
            ("task_control:general", r#"{"action":"STOP"}"#, ":1", None),
            (
                &*of_task,
                &*too_large,
                "-ERR a message on a control channel may have at most 64 KiB",
                None,
            ),
            ("task_contro", "x", ":0", None),
        ] {
            let command: [&[&str]; 1] = [&["PUBLISH", channel, payload]];
            assert_eq!(short(&heard(&mut dialogue, OPEN, &mut channels, &command)), reply);
            assert_eq!(dialogue.published.pop(), expected, "{channel}");
            let is_passed_on = reply == ":2" || reply == ":1";
            assert_eq!(channels.poll_publication().is_some(), is_passed_on, "{channel}");
        }
    }
}
