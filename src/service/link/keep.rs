//! What is kept in Redis: the queue of results to store, and the commands that store and read them.

use std::collections::HashMap;
use std::rc::Rc;

use redis::Value;
use uuid::Uuid;

use super::connection::PendingReply;
use super::{JOBS_MAX, KEPT_MAX, Link, OUTPUT_MAX};
use crate::base::moment::Moment;
use crate::proto::resp;
use crate::service::tasks::{KeptResult, Occurrence, Subscription};

/// Results in one command.
pub const BATCH_MAX: usize = 64;
/// Bytes of payload in one command, but for the last result.
pub(super) const BATCH_BYTES_MAX: usize = 128 * 1024;

const SCRIPT: &str = include_str!("keep.lua");

pub(super) enum Job {
    Store(StoreRequest),
    LookUp { task: Uuid, spellings: Vec<Box<str>> },
    Forget(Uuid),
}

pub(super) struct StoreRequest {
    pub(super) task: Uuid,
    pub(super) since: u64,
    pub(super) occurrence: Occurrence,
    pub(super) payload: Rc<[u8]>,
}

#[derive(PartialEq)]
pub(super) enum Script {
    /// Not asked for on this connection.
    Unknown,
    Loading,
    Loaded(Vec<u8>),
    /// Redis will not have it; nothing is kept there until the next connection.
    Refused,
}

impl Link {
    /// Asks what is kept of a task and what the worker has set; the answer is [`Event::LookedUp`]. None comes when the link is not
    /// up or goes down: [`Event::Up`] is the sign to ask again.
    pub fn look_up(&mut self, task: Uuid, spellings: &[Box<str>]) {
        if self.store.is_up() {
            self.jobs.push_back(Job::LookUp { task, spellings: spellings.to_vec() });
        }
    }

    /// Keeps a result in Redis, as soon as that is possible. When too much waits for it, the oldest is dropped and counted.
    pub fn keep(
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
        self.jobs.push_back(Job::Store(StoreRequest {
            task,
            since: subscription.since,
            occurrence,
            payload,
        }));
        self.bound_jobs();
    }

    /// Lets Redis forget what it keeps of a task.
    pub fn forget(&mut self, task: Uuid) {
        if self.retention.retain.is_some() && self.store.is_up() {
            self.jobs.push_back(Job::Forget(task));
        }
    }

    pub(super) fn store_again(&mut self, stores: Vec<StoreRequest>) {
        for store in stores.into_iter().rev() {
            self.job_bytes += store.payload.len();
            self.jobs.push_front(Job::Store(store));
        }
        self.bound_jobs();
    }

    pub(super) fn drop_stores(&mut self) {
        let before = self.jobs.len();
        self.jobs.retain(|job| !matches!(job, Job::Store(_)));
        self.dropped += (before - self.jobs.len()) as u64;
        self.job_bytes = 0;
    }

    pub(super) fn bound_jobs(&mut self) {
        while self.jobs.len() > JOBS_MAX || self.job_bytes > self.retention.max_retained {
            let oldest = self.jobs.iter().position(|job| matches!(job, Job::Store(_)));
            let Some(Job::Store(store)) = oldest.and_then(|at| self.jobs.remove(at)) else {
                return;
            };
            self.job_bytes -= store.payload.len();
            self.dropped += 1;
        }
    }

    /// Turns jobs into commands, in their order, as long as Redis keeps up.
    pub(super) fn pack_jobs(&mut self, now: Moment) {
        while self.store.output.len() - self.store.written < OUTPUT_MAX {
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
                            return self.store.ask(
                                now,
                                PendingReply::Script,
                                &[b"SCRIPT", b"LOAD", SCRIPT.as_bytes()],
                            );
                        }
                        Script::Loading => return,
                    };
                    self.pack_stores(now, &sha);
                }
                Some(Job::LookUp { .. }) => {
                    if let Some(Job::LookUp { task, spellings }) = self.jobs.pop_front() {
                        self.pack_look_up(now, task, &spellings);
                    }
                }
                Some(Job::Forget(_)) => {
                    let mut keys = Vec::new();
                    while let Some(Job::Forget(task)) = self.jobs.front()
                        && keys.len() < BATCH_MAX
                    {
                        keys.push(format!("{}{task}", self.kept_prefix));
                        self.jobs.pop_front();
                    }
                    let mut command = vec![&b"UNLINK"[..]];
                    command.extend(keys.iter().map(|key| key.as_bytes()));
                    self.store.ask(now, PendingReply::Forgotten, &command);
                }
            }
        }
    }

    pub(super) fn pack_stores(&mut self, now: Moment, sha: &[u8]) {
        let mut stores: Vec<StoreRequest> = Vec::new();
        let mut bytes = 0;
        while stores.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && let Some(Job::Store(_)) = self.jobs.front()
            && let Some(Job::Store(store)) = self.jobs.pop_front()
        {
            bytes += store.payload.len();
            stores.push(store);
        }
        self.job_bytes -= bytes;
        let mut command = redis::Cmd::new();
        command.arg("EVALSHA").arg(sha).arg(stores.len());
        for store in &stores {
            command.arg(format!("{}{}", self.kept_prefix, store.task));
        }
        let retain = self.retention.retain.unwrap_or_default().as_millis().max(1);
        command.arg(retain as u64).arg(self.retention.max_retained).arg(KEPT_MAX);
        for StoreRequest { since, occurrence, payload, .. } in &stores {
            command
                .arg(format!("{since:016}"))
                .arg(format!("{:016x}", occurrence.hash))
                .arg(occurrence.nth);
            match occurrence.before {
                Some((hash, nth)) => command.arg(format!("{hash:016x}")).arg(nth),
                None => command.arg("").arg(0),
            };
            command.arg(&payload[..]);
        }
        command.write_packed_command(&mut self.store.output);
        self.store.expect(now, PendingReply::Stored(stores));
    }

    pub(super) fn pack_look_up(&mut self, now: Moment, task: Uuid, spellings: &[Box<str>]) {
        if self.retention.retain.is_some() {
            let key = format!("{}{task}", self.kept_prefix);
            self.store.ask(now, PendingReply::Kept, &[b"HGETALL", key.as_bytes()]);
        }
        let mut keys = vec![format!("{}{task}", self.prefix)];
        keys.extend(spellings.iter().map(|spelling| format!("{}{spelling}", self.prefix)));
        let mut command = vec![&b"MGET"[..]];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        self.store.ask(now, PendingReply::Set(task, Vec::new()), &command);
    }
}

/// A task's hash, in the order of its index. Whatever does not look as the script writes it is left out.
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
