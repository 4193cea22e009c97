//! A simulated Redis: as much of one as the gateway and its workers use.
//!
//! Bytes in, bytes out. Its connections are in the simulated kernel, and the world moves them. The
//! script that keeps results (`keep.lua`) is imitated by [`Redis::keep`], written from what the
//! script promises. The points in a connection's output at which a gateway has learned something
//! are marked ([`Mark`]), so that the judge knows to the byte what a gateway knows.
//!
//! Its clock goes with the world's, and by a microsecond with each command, as a real one's does.

use crate::controls::Controls;
use crate::kernel::LinkId;
use aivtuber_gateway::base::moment::Moment;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// The wall clock when the world begins, in microseconds.
const EPOCH: u64 = 1_700_000_000_000_000;

/// The hash of the script.
const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// A gateway that has read this many bytes of its connection has learned this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub at: u64,
    pub what: Told,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A publication.
    Heard { payload: Vec<u8> },
    /// What is kept, and set, for a task. `key` is the task's id.
    LookedUp { key: String, payloads: Vec<Vec<u8>> },
}

/// How this server differs from others.
#[derive(Debug, Clone, Default)]
pub struct Nature {
    pub password: Option<&'static str>,
    /// The gateway may not run scripts.
    pub refuses_scripts: bool,
}

pub struct Redis {
    pub nature: Nature,
    pub conns: BTreeMap<LinkId, Conn>,
    /// It was started and is reading its data: most commands are refused.
    pub loads_until: Option<Moment>,
    /// Nothing is read or sent until then.
    pub frozen_until: Option<Moment>,
    /// When it was emptied, or a gateway deleted a key.
    pub lost_at: Option<Moment>,
    /// What gateways say about tasks.
    pub controls: Controls,
    keys: HashMap<String, Key>,
    has_script: bool,
    start: Moment,
    now: Moment,
    clock: u64,
}

/// One connection, seen from the server.
#[derive(Default)]
pub struct Conn {
    pub out: VecDeque<u8>,
    /// Bytes that were ever put into `out`.
    said: u64,
    pub marks: VecDeque<Mark>,
    input: Vec<u8>,
    is_known: bool,
    speaks_resp3: bool,
    channels: BTreeSet<String>,
    patterns: BTreeSet<String>,
    /// It is closed; its marks are still of interest.
    is_closed: bool,
    /// What the look-up under way has found so far.
    looked_up: Vec<Vec<u8>>,
    /// Fields that it has not asked for yet.
    awaited: Vec<String>,
}

struct Key {
    value: Value,
    expires_at: Option<Moment>,
}

enum Value {
    Text(Vec<u8>),
    Kept(Kept),
}

/// The hash that `keep.lua` writes.
#[derive(Default)]
struct Kept {
    bytes: usize,
    /// Hash, time and field of each result.
    index: Vec<(String, String, String)>,
    fields: BTreeMap<String, Vec<u8>>,
    /// A result was refused.
    has_lost: bool,
    /// Places at which the numbers do not go on by one, and the numbers there.
    numbers: BTreeMap<usize, u64>,
}

impl Kept {
    /// The number of the result at `place`.
    fn number_at(&self, place: usize) -> u64 {
        let step = |number: u64, at| number.max(self.numbers.get(&at).copied().unwrap_or(0));
        (1..=place).fold(step(0, 0), |number, at| step(number + 1, at))
    }

    fn state_number(&mut self, place: usize, number: u64) {
        if number > self.number_at(place) {
            self.numbers.insert(place, number);
        }
    }

    fn numbers_text(&self) -> String {
        self.numbers.iter().map(|(place, number)| format!("{place:010}{number:010}")).collect()
    }

    fn index_text(&self) -> String {
        let entry = |(hash, at, field): &(String, String, String)| format!("{hash}{at}{field}");
        let entries: String = self.index.iter().map(entry).collect();
        format!("{:012}{entries}", self.bytes)
    }
}

impl Redis {
    pub fn new(now: Moment, nature: Nature) -> Redis {
        Redis {
            nature,
            conns: BTreeMap::new(),
            loads_until: None,
            frozen_until: None,
            lost_at: None,
            controls: Controls::default(),
            keys: HashMap::new(),
            has_script: false,
            start: now,
            now,
            clock: EPOCH,
        }
    }

    pub fn pass(&mut self, now: Moment) {
        self.now = now;
        self.loads_until = self.loads_until.filter(|until| *until > now);
        self.frozen_until = self.frozen_until.filter(|until| *until > now);
        self.keys.retain(|_, key| key.expires_at.is_none_or(|at| at > now));
    }

    /// Whether a worker can use it.
    pub fn is_usable(&self) -> bool {
        self.loads_until.is_none() && self.frozen_until.is_none()
    }

    /// Restarts it, without its connections and perhaps without its data.
    pub fn restart(&mut self, is_empty: bool) {
        self.conns.values_mut().for_each(Conn::close);
        self.has_script = false;
        self.frozen_until = None;
        if is_empty {
            self.keys.clear();
            self.lost_at = Some(self.now);
        }
    }

    /// The open connections.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.conns.iter().filter(|(_, conn)| !conn.is_closed).map(|(link, _)| *link)
    }

    pub fn flush_scripts(&mut self) {
        self.has_script = false;
    }

    /// A worker's `SET … EX`.
    pub fn set(&mut self, key: &str, payload: &[u8], lives: Duration) {
        let key_value =
            Key { value: Value::Text(payload.into()), expires_at: Some(self.now + lives) };
        self.keys.insert(key.into(), key_value);
    }

    /// A worker's `PUBLISH`: returns the number of subscribers.
    pub fn publish(&mut self, channel: &str, payload: &[u8]) -> usize {
        let mut heard = 0;
        for conn in self.conns.values_mut().filter(|conn| !conn.is_closed) {
            for pattern in conn.patterns.clone() {
                if channel.starts_with(pattern.trim_end_matches('*')) {
                    conn.push(&[b"pmessage", pattern.as_bytes(), channel.as_bytes(), payload]);
                    if channel.starts_with("task_response:") {
                        conn.mark(Told::Heard { payload: payload.into() });
                    }
                    heard += 1;
                }
            }
            if conn.channels.contains(channel) {
                conn.push(&[b"message", channel.as_bytes(), payload]);
                conn.mark(Told::Heard { payload: payload.into() });
                heard += 1;
            }
        }
        heard
    }

    /// The results that are kept of a task, in order.
    pub fn kept(&self, key: &str) -> Vec<&Vec<u8>> {
        match self.keys.get(key).map(|key| &key.value) {
            Some(Value::Kept(kept)) => {
                kept.index.iter().map(|(.., field)| &kept.fields[field]).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Takes bytes of a connection. The error says what the gateway did wrong.
    pub fn take(&mut self, link: LinkId, bytes: &[u8]) -> Result<(), String> {
        let Some(mut conn) = self.conns.remove(&link) else { return Ok(()) };
        conn.input.extend(bytes);
        let mut taken = Ok(());
        while let Some((command, used)) = command(&conn.input) {
            conn.input.drain(..used);
            self.clock = (self.clock + 1).max(EPOCH + (self.now - self.start).as_micros() as u64);
            taken = self.answer(&mut conn, &command);
            if taken.is_err() {
                break;
            }
        }
        self.conns.insert(link, conn);
        taken
    }

    fn answer(&mut self, conn: &mut Conn, command: &[Vec<u8>]) -> Result<(), String> {
        let words: Vec<String> =
            command.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let Some(refusal) = self.refusal(conn, words[0]) {
            conn.say(refusal);
            return Ok(());
        }
        let is_listening = !(conn.channels.is_empty() && conn.patterns.is_empty());
        match words[..] {
            ["AUTH", password] | ["AUTH", _, password] => self.log_in(conn, password, "+OK\r\n"),
            ["HELLO", "3"] => {
                conn.speaks_resp3 = true;
                conn.say(b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n");
            }
            ["HELLO", "3", "AUTH", _, password] => {
                conn.speaks_resp3 = true;
                self.log_in(conn, password, "%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n");
            }
            ["CLIENT", "SETNAME", _] | ["SELECT", _] => conn.say(b"+OK\r\n"),
            ["PING"] if is_listening && !conn.speaks_resp3 => {
                conn.say(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
            }
            ["PING"] => conn.say(b"+PONG\r\n"),
            ["ROLE"] => conn.say(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"),
            ["TIME"] => {
                let (seconds, micros) =
                    ((self.clock / 1_000_000).to_string(), (self.clock % 1_000_000).to_string());
                conn.say_all(&[seconds.as_bytes(), micros.as_bytes()]);
            }
            ["PSUBSCRIBE", pattern] => {
                conn.patterns.insert(pattern.into());
                conn.confirm("psubscribe", pattern);
            }
            ["SUBSCRIBE", ref channels @ ..] => {
                for channel in channels {
                    conn.channels.insert((*channel).into());
                    conn.confirm("subscribe", channel);
                }
            }
            ["UNSUBSCRIBE", channel] => {
                conn.channels.remove(channel);
                conn.confirm("unsubscribe", channel);
            }
            ["HMGET", key, ref fields @ ..] => self.tell_kept(conn, key, fields),
            ["MGET", ref keys @ ..] => self.tell_set(conn, keys),
            ["SCRIPT", "LOAD", _] if self.nature.refuses_scripts => {
                conn.say(
                    b"-NOPERM this user has no permissions to run the 'script|load' command\r\n",
                );
            }
            ["SCRIPT", "LOAD", script] => {
                if !script.contains("PEXPIRE") {
                    return Err("it loads some other script".into());
                }
                self.has_script = true;
                conn.say(format!("${}\r\n{SHA}\r\n", SHA.len()).as_bytes());
            }
            ["EVALSHA", SHA, ..] if !self.has_script => {
                conn.say(b"-NOSCRIPT No matching script. Please use EVAL.\r\n");
            }
            ["EVALSHA", SHA, count, ..] => {
                let count: usize = count.parse().map_err(|_| "EVALSHA without a count")?;
                let refused = self.keep(&words[3..3 + count], &command[3 + count..])?;
                conn.say(format!(":{refused}\r\n").as_bytes());
            }
            ["PUBLISH", channel, payload] => {
                self.controls.hear(self.now, channel, payload.as_bytes())?;
                // The publisher has no subscriptions itself, and is put back afterwards.
                let count = self.publish(channel, payload.as_bytes());
                conn.say(format!(":{count}\r\n").as_bytes());
            }
            ["EXISTS" | "UNLINK", ref keys @ ..] => self.answer_about_keys(conn, words[0], keys),
            _ => return Err(format!("it says {:?}", &words[..words.len().min(4)])),
        }
        Ok(())
    }

    /// The error for a command that cannot be answered now.
    fn refusal(&self, conn: &Conn, command: &str) -> Option<&'static [u8]> {
        // The commands that a real one allows while loading.
        const SIMPLE: [&str; 7] =
            ["CLIENT", "TIME", "ROLE", "PSUBSCRIBE", "SUBSCRIBE", "UNSUBSCRIBE", "SELECT"];
        let is_login = matches!(command, "HELLO" | "AUTH");
        if !is_login && !conn.is_known && self.nature.password.is_some() {
            return Some(b"-NOAUTH Authentication required.\r\n");
        }
        let is_loading = self.loads_until.is_some() && !is_login && !SIMPLE.contains(&command);
        is_loading.then_some(b"-LOADING Redis is loading the dataset in memory\r\n")
    }

    /// Asked of a task that is stopped, or that a gateway has no room for.
    fn answer_about_keys(&mut self, conn: &mut Conn, command: &str, keys: &[&str]) {
        let count = match command {
            "EXISTS" => keys.iter().filter(|key| self.keys.contains_key(**key)).count(),
            _ => {
                self.lost_at = Some(self.now);
                keys.iter().filter(|key| self.keys.remove(**key).is_some()).count()
            }
        };
        conn.say(format!(":{count}\r\n").as_bytes());
    }

    fn log_in(&self, conn: &mut Conn, password: &str, welcome: &str) {
        if self.nature.password.is_none_or(|right| right == password) {
            conn.is_known = true;
            conn.say(welcome.as_bytes());
        } else {
            conn.say(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n");
        }
    }

    /// Fields of the kept results of a task. The index comes with the first of them.
    fn tell_kept(&self, conn: &mut Conn, key: &str, fields: &[&str]) {
        let kept = match self.keys.get(key).map(|key| &key.value) {
            Some(Value::Text(_)) => {
                conn.say(b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n");
                return;
            }
            Some(Value::Kept(kept)) => Some(kept),
            None => None,
        };
        conn.say(format!("*{}\r\n", fields.len()).as_bytes());
        for name in fields {
            let value = kept.and_then(|kept| match *name {
                "index" => Some(kept.index_text().into_bytes()).filter(|_| !kept.index.is_empty()),
                "lost" => kept.has_lost.then(|| b"1".to_vec()),
                "numbers" => Some(kept.numbers_text().into_bytes()).filter(|text| !text.is_empty()),
                name => kept.fields.get(name).cloned(),
            });
            match value {
                Some(value) => conn.say_bulk(&value),
                None => conn.say_nil(),
            }
        }
        let is_first = fields.first() == Some(&"index");
        if is_first {
            conn.looked_up.clear();
            let index = kept.map_or(&[][..], |kept| &kept.index);
            conn.awaited = index.iter().map(|(.., field)| field.clone()).collect();
        }
        let key = key.rsplit(':').next().unwrap_or_default();
        for field in fields {
            if let Some(at) = conn.awaited.iter().position(|awaited| awaited == field) {
                conn.awaited.remove(at);
                conn.looked_up.extend(kept.and_then(|kept| kept.fields.get(*field)).cloned());
            }
        }
        // What workers have set follows the first fields.
        if !is_first {
            conn.mark_if_complete(key);
        }
    }

    fn tell_set(&self, conn: &mut Conn, keys: &[&str]) {
        conn.say(format!("*{}\r\n", keys.len()).as_bytes());
        for key in keys {
            match self.keys.get(*key).map(|key| &key.value) {
                Some(Value::Text(payload)) => {
                    conn.say_bulk(payload);
                    conn.looked_up.push(payload.clone());
                }
                _ => conn.say_nil(),
            }
        }
        let key = keys[0].rsplit(':').next().unwrap_or_default();
        conn.mark_if_complete(key);
    }

    /// What `keep.lua` does with the end of an audio file.
    fn keep_end(&mut self, key: &str, line: &[u8], lives: Duration) -> usize {
        let fresh = Key { value: Value::Kept(Kept::default()), expires_at: None };
        let key = self.keys.entry(key.into()).or_insert(fresh);
        let Value::Kept(kept) = &mut key.value else { return 1 };
        let ends = kept.fields.entry("ends".into()).or_default();
        if !ends.windows(line.len()).any(|window| window == line) {
            ends.extend_from_slice(line);
        }
        key.expires_at = Some(self.now + lives);
        0
    }

    /// What `keep.lua` does: returns the number of refused results.
    fn keep(&mut self, keys: &[&str], arguments: &[Vec<u8>]) -> Result<usize, String> {
        let word = |i: usize| String::from_utf8_lossy(&arguments[i]).into_owned();
        let number = |i: usize| {
            word(i)
                .parse::<usize>()
                .map_err(|_| format!("argument {i} of EVALSHA is {:?}", word(i)))
        };
        if arguments.len() != 3 + 7 * keys.len() {
            return Err(format!(
                "EVALSHA has {} arguments for {} results",
                arguments.len(),
                keys.len()
            ));
        }
        let (lives, bytes_max, cost) =
            (Duration::from_millis(number(0)? as u64), number(1)?, number(2)?);
        let now = format!("{:016}", self.clock);
        let mut refused = 0;
        for (i, key) in keys.iter().enumerate() {
            let a = 3 + 7 * i;
            if word(a + 2) == "-1" {
                refused += self.keep_end(key, &arguments[a + 6], lives);
                continue;
            }
            let (since, hash, nth, before, before_nth) =
                (word(a), word(a + 1), number(a + 2)?, word(a + 4), number(a + 5)?);
            let (result_id, payload) = (number(a + 3)? as u64, &arguments[a + 6]);
            let fresh = Key { value: Value::Kept(Kept::default()), expires_at: None };
            let key = self.keys.entry((*key).into()).or_insert(fresh);
            let Value::Kept(kept) = &mut key.value else {
                refused += 1;
                continue;
            };
            let place = |index: &[(String, String, String)], hash: &str, nth: usize| {
                let mut places =
                    index.iter().enumerate().filter(|(_, one)| one.0 == hash && one.1 >= since);
                nth.checked_sub(1).and_then(|nth| places.nth(nth)).map(|(at, _)| at)
            };
            let unheard = "9999999999999999";
            let there = if nth == 0 {
                kept.index.iter().position(|one| one.0 == hash)
            } else {
                place(&kept.index, &hash, nth)
            };
            if let Some(at) = there {
                if nth > 0 && kept.index[at].1 == unheard {
                    kept.index[at].1 = now.clone();
                }
                let earlier =
                    if before.is_empty() { None } else { place(&kept.index, &before, before_nth) };
                let mut at = at;
                if let Some(earlier) = earlier.filter(|earlier| *earlier > at) {
                    let one = kept.index.remove(at);
                    kept.index.insert(earlier, one);
                    at = earlier;
                }
                kept.state_number(at, result_id);
            } else if kept.bytes + cost + payload.len() > bytes_max {
                // Nothing here lives for longer than `retain`, so there is nothing to sweep.
                refused += 1;
                kept.has_lost = true;
                kept.state_number(kept.index.len(), result_id + 1);
                key.expires_at = Some(self.now + lives);
            } else {
                let field = format!("{:04}", kept.index.len());
                kept.bytes += cost + payload.len();
                kept.index.push((
                    hash,
                    if nth == 0 { unheard.into() } else { now.clone() },
                    field.clone(),
                ));
                kept.fields.insert(field, payload.clone());
                kept.state_number(kept.index.len() - 1, result_id);
                key.expires_at = Some(self.now + lives);
            }
        }
        let is_empty = |kept: &Kept| kept.index.is_empty() && !kept.has_lost;
        self.keys.retain(|_, key| !matches!(&key.value, Value::Kept(kept) if is_empty(kept)));
        Ok(refused)
    }
}

impl Conn {
    pub fn close(&mut self) {
        self.is_closed = true;
        self.out.clear();
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn say(&mut self, bytes: &[u8]) {
        self.out.extend(bytes);
        self.said += bytes.len() as u64;
    }

    fn say_bulk(&mut self, bytes: &[u8]) {
        self.say(format!("${}\r\n", bytes.len()).as_bytes());
        self.say(bytes);
        self.say(b"\r\n");
    }

    fn say_nil(&mut self) {
        self.say(if self.speaks_resp3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    /// Marks the end of a look-up, once the gateway has everything that it asked for.
    fn mark_if_complete(&mut self, key: &str) {
        if self.awaited.is_empty() {
            let payloads = self.looked_up.clone();
            self.mark(Told::LookedUp { key: key.to_owned(), payloads });
        }
    }

    fn say_all(&mut self, words: &[&[u8]]) {
        self.say(format!("*{}\r\n", words.len()).as_bytes());
        words.iter().for_each(|word| self.say_bulk(word));
    }

    /// A message that is not a reply.
    fn push(&mut self, words: &[&[u8]]) {
        let sign = if self.speaks_resp3 { '>' } else { '*' };
        self.say(format!("{sign}{}\r\n", words.len()).as_bytes());
        words.iter().for_each(|word| self.say_bulk(word));
    }

    fn confirm(&mut self, kind: &str, name: &str) {
        let sign = if self.speaks_resp3 { '>' } else { '*' };
        self.say(format!("{sign}3\r\n").as_bytes());
        self.say_bulk(kind.as_bytes());
        self.say_bulk(name.as_bytes());
        let count = self.channels.len() + self.patterns.len();
        self.say(format!(":{count}\r\n").as_bytes());
    }

    fn mark(&mut self, what: Told) {
        self.marks.push_back(Mark { at: self.said, what });
    }
}

/// The command at the front of `bytes`, and how many of them it takes.
fn command(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let mut line = |sign: u8| -> Option<(usize, usize)> {
        let end = at + bytes[at..].windows(2).position(|two| two == b"\r\n")?;
        assert_eq!(bytes[at], sign, "commands are arrays of strings");
        let number = std::str::from_utf8(&bytes[at + 1..end]).ok()?.parse().ok()?;
        at = end + 2;
        if sign == b'$' {
            at += number + 2;
        }
        (at <= bytes.len()).then_some((number, at))
    };
    let (count, mut used) = line(b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, end) = line(b'$')?;
        words.push(bytes[end - 2 - length..end - 2].to_vec());
        used = end;
    }
    Some((words, used))
}
