//! What is kept in Redis: the queue of results to store, and the commands that store and read them.
//!
//! `docs/kept-results.md` explains how results are told apart and kept in order; `keep.lua` does it.

#![expect(
    clippy::indexing_slicing,
    reason = "roles index a pair, and lengths come from the buffer itself"
)]

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;

use redis::Value;
use uuid::Uuid;

use super::LookUpAnswer;
use super::connection::Connection;
use super::pending::{PendingReply, StoreReply, StoreRequest};
use crate::base::moment::Moment;
use crate::proto::resp;
use crate::service::tasks::{self, KeptResult, Occurrence, Subscription};

/// Results that Redis keeps of one task.
pub const KEPT_MAX: usize = 1024;
/// Results, or forgotten tasks, in one command.
pub const BATCH_MAX: usize = 64;
/// Bytes of payload in one command, the last result not counted.
pub(super) const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Unsent bytes up to which more commands are packed.
pub(super) const OUTPUT_MAX: usize = 512 * 1024;
/// Commands that wait to be packed.
pub(super) const JOBS_MAX: usize = 65_536;

const SCRIPT: &str = include_str!("keep.lua");

pub(super) struct Keeper {
    channel_prefix: String,
    /// What the keys of kept results begin with.
    pub(super) kept_prefix: String,
    retention: tasks::Settings,
    script: Script,
    pub(super) jobs: VecDeque<Job>,
    /// Bytes of payload in `jobs`.
    pub(super) job_bytes: usize,
    dropped: u64,
}

pub(super) enum Job {
    Store(StoreRequest),
    LookUp { task: Uuid, spellings: Vec<Box<str>> },
    Forget(Uuid),
}

/// What a reply on the store connection means to the link.
pub(super) enum StoreOutcome {
    Nothing,
    /// A person should know this.
    Problem(String),
    /// Results of a look-up for the reply that follows.
    Kept(Vec<KeptResult>),
    LookedUp(LookUpAnswer, Option<String>),
}

/// The script that stores results, on the connection at hand.
#[derive(PartialEq)]
enum Script {
    Unknown,
    Loading,
    /// Loaded, under this name.
    Loaded(Vec<u8>),
    /// Redis does not accept it. Nothing is kept there until the next connection.
    Refused,
}

/// An error that Redis replied with.
pub(super) struct ErrorReply {
    pub(super) code: String,
    details: String,
}

impl ErrorReply {
    pub(super) fn of(reply: &Value) -> Option<ErrorReply> {
        let Value::ServerError(error) = reply else { return None };
        let details = error.details().unwrap_or_default().to_owned();
        Some(ErrorReply { code: error.code().to_owned(), details })
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.details)
    }
}

impl Keeper {
    pub(super) fn new(channel_prefix: &str, retention: tasks::Settings) -> Keeper {
        let name = channel_prefix.strip_suffix(':').unwrap_or(channel_prefix);
        Keeper {
            channel_prefix: channel_prefix.to_owned(),
            kept_prefix: format!("{name}_kept:"),
            retention,
            script: Script::Unknown,
            jobs: VecDeque::new(),
            job_bytes: 0,
            dropped: 0,
        }
    }

    /// Other limits, from the next command on.
    pub(super) fn reload(&mut self, retention: tasks::Settings) {
        self.retention = retention;
        if retention.retain.is_none() {
            self.drop_stores();
        }
        self.bound_jobs();
    }

    pub(super) fn retention(&self) -> tasks::Settings {
        self.retention
    }

    /// Results that were not stored, since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn look_up(&mut self, task: Uuid, spellings: &[Box<str>]) {
        self.jobs.push_back(Job::LookUp { task, spellings: spellings.to_vec() });
    }

    pub(super) fn forget(&mut self, task: Uuid) {
        if self.retention.retain.is_some() {
            self.jobs.push_back(Job::Forget(task));
        }
    }

    pub(super) fn store(
        &mut self,
        task: Uuid,
        subscription: Subscription,
        occurrence: Occurrence,
        payload: Rc<[u8]>,
    ) {
        if self.retention.retain.is_none() {
            return;
        }
        if self.script == Script::Refused || payload.len() > self.retention.max_retained {
            self.dropped += 1;
            return;
        }
        self.job_bytes += payload.len();
        let since = subscription.since;
        self.jobs.push_back(Job::Store(StoreRequest { task, since, occurrence, payload }));
        self.bound_jobs();
    }

    /// The store connection is lost. What Redis has not confirmed is stored again on the next one:
    /// the script finds what is there already.
    pub(super) fn reset(&mut self, pending: VecDeque<PendingReply>) {
        self.script = Script::Unknown;
        // Look-ups are asked again once the link is up.
        self.jobs.retain(|job| !matches!(job, Job::LookUp { .. }));
        for pending in pending.into_iter().rev() {
            if let PendingReply::Store(StoreReply::Stored(requests)) = pending {
                self.store_again(requests);
            }
        }
    }

    pub(super) fn handle_reply(&mut self, about: StoreReply, reply: Value) -> StoreOutcome {
        let error = ErrorReply::of(&reply);
        match (about, error) {
            (StoreReply::ScriptLoaded, None) => {
                self.script = resp::bytes(Some(reply)).map_or(Script::Refused, Script::Loaded);
                StoreOutcome::Nothing
            }
            (StoreReply::ScriptLoaded, Some(error)) => {
                self.script = Script::Refused;
                self.drop_stores();
                StoreOutcome::Problem(format!(
                    "results are not kept in Redis, it does not take the script: {error}"
                ))
            }
            (StoreReply::Stored(requests), Some(error)) if error.code == "NOSCRIPT" => {
                self.store_again(requests);
                // Commands behind this one get the same answer. The first asks for the script to be
                // loaded, and a second request would be wrong while that one is under way.
                if matches!(self.script, Script::Loaded(_)) {
                    self.script = Script::Unknown;
                }
                StoreOutcome::Nothing
            }
            (StoreReply::Stored(requests), Some(error)) => {
                self.dropped += requests.len() as u64;
                StoreOutcome::Problem(format!("results are not kept in Redis: {error}"))
            }
            (StoreReply::Stored(_), None) => match reply {
                Value::Int(refused @ 1..) => {
                    self.dropped += refused as u64;
                    let why = "some results are not kept in Redis: their task has too many or too \
                               large ones";
                    StoreOutcome::Problem(why.into())
                }
                _ => StoreOutcome::Nothing,
            },
            (StoreReply::Kept, None) => StoreOutcome::Kept(kept(reply)),
            (StoreReply::Kept, Some(error)) => {
                StoreOutcome::Problem(format!("kept results cannot be read from Redis: {error}"))
            }
            (StoreReply::Set(task, kept), error) => {
                let set = match reply {
                    Value::Array(items) => {
                        items.into_iter().filter_map(|item| resp::bytes(Some(item))).collect()
                    }
                    _ => Vec::new(),
                };
                let problem = error.map(|error| {
                    format!("results that workers set cannot be read from Redis: {error}")
                });
                StoreOutcome::LookedUp(LookUpAnswer { task, kept, set }, problem)
            }
            (StoreReply::Forgotten, _) => StoreOutcome::Nothing,
        }
    }

    /// Turns jobs into commands, in their order, as long as Redis keeps up.
    pub(super) fn pack(&mut self, connection: &mut Connection, now: Moment) {
        while connection.output().len() < OUTPUT_MAX {
            match self.jobs.front() {
                None => {
                    self.jobs.shrink_to(1024);
                    return;
                }
                Some(Job::Store(_)) => {
                    let sha = match &self.script {
                        Script::Loaded(sha) => sha.clone(),
                        Script::Refused => {
                            self.drop_stores();
                            continue;
                        }
                        Script::Unknown => {
                            self.script = Script::Loading;
                            let pending = PendingReply::Store(StoreReply::ScriptLoaded);
                            let command = [&b"SCRIPT"[..], b"LOAD", SCRIPT.as_bytes()];
                            return connection.send(now, pending, &command);
                        }
                        Script::Loading => return,
                    };
                    self.pack_stores(connection, now, &sha);
                }
                Some(Job::LookUp { .. }) => {
                    if let Some(Job::LookUp { task, spellings }) = self.jobs.pop_front() {
                        self.pack_look_up(connection, now, task, &spellings);
                    }
                }
                Some(Job::Forget(_)) => self.pack_forgets(connection, now),
            }
        }
    }

    fn pack_stores(&mut self, connection: &mut Connection, now: Moment, sha: &[u8]) {
        let mut requests: Vec<StoreRequest> = Vec::new();
        let mut bytes = 0;
        while requests.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && let Some(Job::Store(_)) = self.jobs.front()
            && let Some(Job::Store(request)) = self.jobs.pop_front()
        {
            bytes += request.payload.len();
            requests.push(request);
        }
        self.job_bytes -= bytes;
        let mut command = redis::Cmd::new();
        command.arg("EVALSHA").arg(sha).arg(requests.len());
        for request in &requests {
            command.arg(format!("{}{}", self.kept_prefix, request.task));
        }
        let retain = self.retention.retain.unwrap_or_default().as_millis().max(1);
        command.arg(retain as u64).arg(self.retention.max_retained).arg(KEPT_MAX);
        for StoreRequest { since, occurrence, payload, .. } in &requests {
            command.arg(format!("{since:016}"));
            command.arg(format!("{:016x}", occurrence.hash)).arg(occurrence.nth);
            match occurrence.before {
                Some((hash, nth)) => command.arg(format!("{hash:016x}")).arg(nth),
                None => command.arg("").arg(0),
            };
            command.arg(&payload[..]);
        }
        let pending = PendingReply::Store(StoreReply::Stored(requests));
        connection.send_packed(now, pending, &command);
    }

    fn pack_look_up(
        &mut self,
        connection: &mut Connection,
        now: Moment,
        task: Uuid,
        spellings: &[Box<str>],
    ) {
        if self.retention.retain.is_some() {
            let key = format!("{}{task}", self.kept_prefix);
            let pending = PendingReply::Store(StoreReply::Kept);
            connection.send(now, pending, &[b"HGETALL", key.as_bytes()]);
        }
        let mut keys = vec![format!("{}{task}", self.channel_prefix)];
        keys.extend(spellings.iter().map(|spelling| format!("{}{spelling}", self.channel_prefix)));
        let mut command = vec![&b"MGET"[..]];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        let pending = PendingReply::Store(StoreReply::Set(task, Vec::new()));
        connection.send(now, pending, &command);
    }

    fn pack_forgets(&mut self, connection: &mut Connection, now: Moment) {
        let mut keys = Vec::new();
        while let Some(Job::Forget(task)) = self.jobs.front()
            && keys.len() < BATCH_MAX
        {
            keys.push(format!("{}{task}", self.kept_prefix));
            self.jobs.pop_front();
        }
        let mut command = vec![&b"UNLINK"[..]];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        connection.send(now, PendingReply::Store(StoreReply::Forgotten), &command);
    }

    fn store_again(&mut self, requests: Vec<StoreRequest>) {
        for request in requests.into_iter().rev() {
            self.job_bytes += request.payload.len();
            self.jobs.push_front(Job::Store(request));
        }
        self.bound_jobs();
    }

    fn drop_stores(&mut self) {
        let before = self.jobs.len();
        self.jobs.retain(|job| !matches!(job, Job::Store(_)));
        self.dropped += (before - self.jobs.len()) as u64;
        self.job_bytes = 0;
    }

    /// Drops the oldest results while too much waits for Redis.
    fn bound_jobs(&mut self) {
        while self.jobs.len() > JOBS_MAX || self.job_bytes > self.retention.max_retained {
            let oldest = self.jobs.iter().position(|job| matches!(job, Job::Store(_)));
            let Some(Job::Store(request)) = oldest.and_then(|at| self.jobs.remove(at)) else {
                return;
            };
            self.job_bytes -= request.payload.len();
            self.dropped += 1;
        }
    }
}

/// The results in a task's hash, in the order of its index. What the script cannot have written is
/// left out.
pub(super) fn kept(reply: Value) -> Vec<KeptResult> {
    let pairs: Vec<(Value, Value)> = match reply {
        Value::Map(pairs) => pairs,
        Value::Array(items) => {
            let mut items = items.into_iter();
            std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
        }
        _ => return Vec::new(),
    };
    let mut fields: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    for (name, value) in pairs {
        if let (Some(name), Some(value)) = (resp::bytes(Some(name)), resp::bytes(Some(value))) {
            fields.insert(name, value);
        }
    }
    let index = fields.remove(&b"index"[..]).unwrap_or_default();
    let entries = index.get(12..).unwrap_or_default().chunks_exact(36);
    let kept = entries.filter_map(|entry| {
        let at = str::from_utf8(&entry[16..32]).ok()?.parse().ok()?;
        Some(KeptResult { at, payload: fields.remove(&entry[32..36])? })
    });
    kept.collect()
}
