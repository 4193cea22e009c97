//! What is kept in Redis: the queue of results to store, and the commands that store and read them.
//!
//! `docs/kept-results.md` explains how results are distinguished and ordered; `keep.lua` does it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use redis::Value;
use uuid::Uuid;

use super::connection::Connection;
use super::jobs::{JobQueue, NextJob, StoreJob};
use super::look_up::LookUp;
use super::pending::{PendingReply, StoreReply, StoreRequest, StoreWhat};
use super::{LookUpAnswer, Settings};
use crate::base::moment::Moment;
use crate::proto::control::ControlAction;
use crate::proto::resp;
use crate::service::tasks::{self, Occurrence, RESULT_COST, Subscription};

/// Results, or forgotten tasks, in one command.
pub const BATCH_MAX: usize = 64;
/// Bytes of payload in one command, the last result not counted.
pub(super) const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Unsent bytes up to which more commands are packed.
pub(super) const OUTPUT_MAX: usize = 512 * 1024;
/// Commands that wait to be packed.
pub(super) const JOBS_MAX: usize = 65_536;

/// Kept results that the first command of a look-up asks for. Most tasks have fewer.
pub(super) const FIRST_PAGE: usize = 16;
/// Kept results that each further command asks for.
pub(super) const PAGE: usize = 64;
/// Look-ups for which there is room while there are none.
const LOOK_UPS_KEPT: usize = 64;
/// How long storing pauses after Redis refused to write for the time being.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_secs(1);

const SCRIPT: &str = include_str!("keep.lua");

pub(super) struct Keeper {
    pub(super) channel_prefix: String,
    pub(super) control_prefix: String,
    /// What the keys of kept results begin with.
    pub(super) kept_prefix: String,
    retention: tasks::Settings,
    script: ScriptState,
    pub(super) jobs: JobQueue,
    dropped: u64,
    /// Look-ups under way, by their number.
    look_ups: HashMap<u64, LookUp>,
    last_look_up: u64,
    /// Redis does not write for the time being; results are stored again then.
    paused_until: Option<Moment>,
    /// Why results are not kept at the moment.
    trouble: Option<Trouble>,
}

/// Why results are not kept, though the link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    kind: ErrorKind,
    why: String,
}

/// What an error of Redis means for keeping results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    /// The script is not loaded (any more).
    NoScript,
    /// A node of a Redis Cluster, which keeps only some of the keys.
    Cluster,
    /// A replica: it forwards publications and takes no writes.
    Replica,
    /// Writes are refused for the time being: the disk is full, the data is being loaded.
    Temporary,
    /// The login is not valid (any more).
    Login,
    Other,
}

/// What a reply on the store connection means to the link.
pub(super) enum StoreOutcome {
    Nothing,
    /// A person should know this.
    Problem(String),
    /// A look-up is complete, with a problem that a person should know.
    LookedUp(LookUpAnswer, Option<String>),
    /// The server is a replica: another one should be connected to.
    Replica(String),
    /// Redis did not publish on the control channel of this task.
    NotPublished(Uuid, ControlAction, ErrorReply),
    /// Whether Redis has anything of this task.
    Known(Uuid, bool),
}

/// The script that stores results, on the connection at hand.
#[derive(PartialEq)]
enum ScriptState {
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

    pub(super) fn kind(&self) -> ErrorKind {
        match self.code.as_str() {
            "NOSCRIPT" => ErrorKind::NoScript,
            "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" | "TRYAGAIN" => ErrorKind::Cluster,
            "READONLY" => ErrorKind::Replica,
            "MISCONF" | "LOADING" | "MASTERDOWN" | "NOREPLICAS" | "BUSY" => ErrorKind::Temporary,
            "NOAUTH" | "WRONGPASS" => ErrorKind::Login,
            _ => ErrorKind::Other,
        }
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.details)
    }
}

impl Keeper {
    pub(super) fn new(settings: &Settings, retention: tasks::Settings) -> Keeper {
        let prefix = &settings.channel_prefix;
        let name = prefix.strip_suffix(':').unwrap_or(prefix);
        Keeper {
            channel_prefix: prefix.clone(),
            control_prefix: settings.control_prefix.clone(),
            kept_prefix: format!("{name}_kept:"),
            retention,
            script: ScriptState::Unknown,
            jobs: JobQueue::default(),
            dropped: 0,
            look_ups: HashMap::new(),
            last_look_up: 0,
            paused_until: None,
            trouble: None,
        }
    }

    /// Why results are not kept although the link is up.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| trouble.why.as_str())
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
        self.jobs.is_empty() && self.look_ups.is_empty()
    }

    /// When storing the results that Redis refused is tried again.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.paused_until
    }

    /// Ends the pause, if it is time.
    pub(super) fn handle_time(&mut self, now: Moment) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
    }

    /// The server answered a `PING` of the store connection, perhaps with an error.
    pub(super) fn handle_ping(&mut self, error: Option<&ErrorReply>) -> StoreOutcome {
        match error {
            Some(error) if error.kind() == ErrorKind::Temporary => {
                self.note_trouble(error.kind(), format!("Redis cannot keep results now: {error}"))
            }
            Some(_) => StoreOutcome::Nothing,
            None => {
                // A server that cannot save refuses PING as well, so it can save again.
                if self.trouble.as_ref().is_some_and(|it| it.kind == ErrorKind::Temporary) {
                    self.trouble = None;
                }
                StoreOutcome::Nothing
            }
        }
    }

    pub(super) fn look_up(
        &mut self,
        task: Uuid,
        subscription: Option<Subscription>,
        spellings: &[Box<str>],
    ) {
        let spellings = spellings.to_vec();
        self.jobs.push(StoreJob::LookUp { task, subscription, spellings });
    }

    pub(super) fn forget(&mut self, task: Uuid) {
        if self.retention.retain.is_some() {
            self.jobs.push(StoreJob::Forget(task));
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
        if self.script == ScriptState::Refused
            || RESULT_COST + payload.len() > self.retention.task_bytes_max()
        {
            self.dropped += 1;
            return;
        }
        let since = subscription.since;
        self.push_store(StoreRequest { task, since, what: StoreWhat::Result(occurrence), payload });
    }

    /// Keeps that an audio file of a task is complete: JSON text, and the end of the line.
    pub(super) fn store_end(&mut self, task: Uuid, payload: Rc<[u8]>) {
        if self.retention.retain.is_some() && self.script != ScriptState::Refused {
            self.push_store(StoreRequest { task, since: 0, what: StoreWhat::AudioEnd, payload });
        }
    }

    fn push_store(&mut self, request: StoreRequest) {
        self.jobs.push_store(request);
        self.bound_jobs();
    }

    /// The store connection is lost. What Redis has not confirmed is stored again on the next one:
    /// the script finds what is there already.
    pub(super) fn reset(&mut self, pending: VecDeque<PendingReply>) {
        self.script = ScriptState::Unknown;
        self.trouble = None;
        self.paused_until = None;
        // Look-ups are asked again once the link is up.
        self.look_ups.clear();
        self.jobs.retain_others(|job| {
            !matches!(job, StoreJob::LookUp { .. } | StoreJob::Page(_) | StoreJob::AskKnown(_))
        });
        for pending in pending.into_iter().rev() {
            if let PendingReply::Store(reply) = pending {
                self.do_again(reply);
            }
        }
    }

    /// Takes the reply to a command of the store connection.
    pub(super) fn handle_reply(
        &mut self,
        about: StoreReply,
        reply: Value,
        now: Moment,
    ) -> StoreOutcome {
        let error = ErrorReply::of(&reply);
        match about {
            StoreReply::ScriptLoaded => match error {
                None => {
                    self.script =
                        resp::bytes(Some(reply)).map_or(ScriptState::Refused, ScriptState::Loaded);
                    StoreOutcome::Nothing
                }
                Some(error) if error.kind() == ErrorKind::Temporary => {
                    self.script = ScriptState::Unknown;
                    self.paused_until = Some(now + REFUSED_PAUSE);
                    let why = format!("Redis cannot keep results now: {error}");
                    self.note_trouble(error.kind(), why)
                }
                Some(error) => {
                    self.script = ScriptState::Refused;
                    self.drop_stores();
                    let why = "results are not kept in Redis, it does not take the script";
                    self.note_trouble(error.kind(), format!("{why}: {error}"))
                }
            },
            StoreReply::Stored(requests) => match error {
                None => self.handle_stored(&reply),
                Some(error) => self.handle_refused(requests, &error, now),
            },
            StoreReply::Index(number) => {
                let problem = error.map(|error| read_problem("kept results", &error));
                if let Some(look_up) = self.look_ups.get_mut(&number) {
                    look_up.take_index(reply);
                }
                self.continue_look_up(number, problem)
            }
            StoreReply::Page(number) => {
                let problem = error.map(|error| read_problem("kept results", &error));
                if let Some(look_up) = self.look_ups.get_mut(&number) {
                    look_up.take_page(reply);
                }
                self.continue_look_up(number, problem)
            }
            StoreReply::Set(number) => {
                let problem = error.map(|error| read_problem("results that workers set", &error));
                if let Some(look_up) = self.look_ups.get_mut(&number) {
                    look_up.take_set(reply);
                }
                self.continue_look_up(number, problem)
            }
            StoreReply::Forgotten => StoreOutcome::Nothing,
            StoreReply::Published(task, action) => match error {
                Some(error) => StoreOutcome::NotPublished(task, action, error),
                None => StoreOutcome::Nothing,
            },
            StoreReply::Known(task) => {
                StoreOutcome::Known(task, matches!(reply, Value::Int(count) if count > 0))
            }
        }
    }

    fn handle_stored(&mut self, reply: &Value) -> StoreOutcome {
        self.trouble = None;
        match reply {
            Value::Int(refused @ 1..) => {
                self.dropped += *refused as u64;
                let why = "some results are not kept in Redis: their task holds half of \
                           max_retained, or its key belongs to another program";
                StoreOutcome::Problem(why.into())
            }
            _ => StoreOutcome::Nothing,
        }
    }

    /// Redis refused to store results.
    fn handle_refused(
        &mut self,
        requests: Vec<StoreRequest>,
        error: &ErrorReply,
        now: Moment,
    ) -> StoreOutcome {
        let kind = error.kind();
        match kind {
            ErrorKind::NoScript => {
                self.store_again(requests);
                // Commands behind this one get the same answer. The first asks for the script to be
                // loaded, and a second request would be wrong while that one is under way.
                if matches!(self.script, ScriptState::Loaded(_)) {
                    self.script = ScriptState::Unknown;
                }
                StoreOutcome::Nothing
            }
            ErrorKind::Temporary => {
                self.store_again(requests);
                self.paused_until = Some(now + REFUSED_PAUSE);
                self.note_trouble(kind, format!("Redis cannot keep results now: {error}"))
            }
            ErrorKind::Replica => {
                self.store_again(requests);
                self.paused_until = Some(now + REFUSED_PAUSE);
                StoreOutcome::Replica(self.note_replica(error))
            }
            ErrorKind::Cluster => {
                self.dropped += requests.len() as u64;
                self.note_trouble(kind, CLUSTER.into())
            }
            ErrorKind::Login | ErrorKind::Other => {
                self.dropped += requests.len() as u64;
                self.note_trouble(kind, format!("results are not kept in Redis: {error}"))
            }
        }
    }

    /// The server is a replica. Returns that as a sentence.
    pub(super) fn note_replica(&mut self, evidence: impl fmt::Display) -> String {
        let why = format!("results are not kept, this server is a replica: {evidence}");
        self.note_trouble(ErrorKind::Replica, why.clone());
        why
    }

    /// The server is none (any more).
    pub(super) fn note_master(&mut self) {
        if self.trouble.as_ref().is_some_and(|it| it.kind == ErrorKind::Replica) {
            (self.trouble, self.paused_until) = (None, None);
        }
    }

    fn note_trouble(&mut self, kind: ErrorKind, why: String) -> StoreOutcome {
        self.trouble = Some(Trouble { kind, why: why.clone() });
        StoreOutcome::Problem(why)
    }

    /// A reply of a look-up has come: asks for more, or answers.
    fn continue_look_up(&mut self, number: u64, problem: Option<String>) -> StoreOutcome {
        let Some(look_up) = self.look_ups.get_mut(&number) else {
            return problem.map_or(StoreOutcome::Nothing, StoreOutcome::Problem);
        };
        look_up.awaited -= 1;
        // The index comes first, so what is awaited now is the set results or nothing.
        let is_paging = look_up.awaited == 0 && look_up.payloads.len() < look_up.entries.len();
        if is_paging {
            look_up.awaited = 1;
            // In front of the queue: a client waits for it.
            self.jobs.push_front(StoreJob::Page(number));
        } else if look_up.awaited == 0
            && let Some(look_up) = self.look_ups.remove(&number)
        {
            if self.look_ups.is_empty() {
                // After a reconnect there may have been one for each task.
                self.look_ups.shrink_to(LOOK_UPS_KEPT);
            }
            return StoreOutcome::LookedUp(look_up.answer(), problem);
        }
        problem.map_or(StoreOutcome::Nothing, StoreOutcome::Problem)
    }

    /// Turns jobs into commands, in their order, as long as Redis keeps up.
    pub(super) fn pack(&mut self, connection: &mut Connection, now: Moment) {
        while connection.output().len() < OUTPUT_MAX {
            match self.next_job() {
                None => return,
                Some(NextJob::Store) => {
                    let sha = match &self.script {
                        ScriptState::Loaded(sha) => sha.clone(),
                        ScriptState::Refused => {
                            self.drop_stores();
                            continue;
                        }
                        ScriptState::Unknown => {
                            self.script = ScriptState::Loading;
                            let pending = PendingReply::Store(StoreReply::ScriptLoaded);
                            let command = [&b"SCRIPT"[..], b"LOAD", SCRIPT.as_bytes()];
                            return connection.send(now, pending, &command);
                        }
                        ScriptState::Loading => return,
                    };
                    self.pack_stores(connection, now, &sha);
                }
                Some(NextJob::Forget) => self.pack_forgets(connection, now),
                Some(NextJob::Other) => match self.jobs.take_other() {
                    Some(StoreJob::LookUp { task, subscription, spellings }) => {
                        let look_up = LookUp::new(task, subscription);
                        self.pack_look_up(connection, now, look_up, &spellings);
                    }
                    Some(StoreJob::Page(number)) => self.pack_page(connection, now, number),
                    Some(job) => self.pack_control(connection, now, job),
                    None => return,
                },
            }
        }
    }

    fn next_job(&self) -> Option<NextJob> {
        match self.paused_until {
            // Look-ups do not wait for what cannot be stored.
            Some(_) => self.jobs.next_other(),
            None => self.jobs.next(),
        }
    }

    fn pack_stores(&mut self, connection: &mut Connection, now: Moment, sha: &[u8]) {
        let mut requests: Vec<StoreRequest> = Vec::new();
        let mut bytes = 0;
        while requests.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && self.jobs.next() == Some(NextJob::Store)
            && let Some(request) = self.jobs.take_store()
        {
            bytes += request.payload.len();
            requests.push(request);
        }
        let mut command = redis::Cmd::new();
        command.arg("EVALSHA").arg(sha).arg(requests.len());
        for request in &requests {
            command.arg(format!("{}{}", self.kept_prefix, request.task));
        }
        let retain = self.retention.retain.unwrap_or_default().as_millis().max(1);
        command.arg(retain as u64).arg(self.retention.task_bytes_max()).arg(RESULT_COST);
        for StoreRequest { since, what, payload, .. } in &requests {
            command.arg(format!("{since:016}"));
            match what {
                StoreWhat::Result(Occurrence { hash, nth, before, id }) => {
                    command.arg(format!("{hash:016x}")).arg(nth).arg(id);
                    match before {
                        Some((hash, nth)) => command.arg(format!("{hash:016x}")).arg(nth),
                        None => command.arg("").arg(0),
                    };
                }
                StoreWhat::AudioEnd => {
                    command.arg("").arg(-1).arg(0).arg("").arg(0);
                }
            }
            command.arg(&payload[..]);
        }
        let pending = PendingReply::Store(StoreReply::Stored(requests));
        connection.send_packed(now, pending, &command);
    }

    fn pack_look_up(
        &mut self,
        connection: &mut Connection,
        now: Moment,
        mut look_up: LookUp,
        spellings: &[Box<str>],
    ) {
        self.last_look_up += 1;
        let (number, task) = (self.last_look_up, look_up.task);
        if self.retention.retain.is_some() {
            let mut command = redis::Cmd::new();
            command
                .arg("HMGET")
                .arg(format!("{}{task}", self.kept_prefix))
                .arg("index")
                .arg("lost")
                .arg("numbers")
                .arg("ends");
            for nth in 0..FIRST_PAGE {
                command.arg(format!("{nth:04}"));
            }
            let pending = PendingReply::Store(StoreReply::Index(number));
            connection.send_packed(now, pending, &command);
            look_up.awaited += 1;
        }
        let mut keys = vec![format!("{}{task}", self.channel_prefix)];
        keys.extend(spellings.iter().map(|spelling| format!("{}{spelling}", self.channel_prefix)));
        let mut command = vec![&b"MGET"[..]];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        connection.send(now, PendingReply::Store(StoreReply::Set(number)), &command);
        look_up.awaited += 1;
        self.look_ups.insert(number, look_up);
    }

    /// Asks for the next kept results of a look-up.
    fn pack_page(&mut self, connection: &mut Connection, now: Moment, number: u64) {
        let Some(look_up) = self.look_ups.get(&number) else { return };
        let mut command = redis::Cmd::new();
        command.arg("HMGET").arg(format!("{}{}", self.kept_prefix, look_up.task));
        for entry in look_up.entries.iter().skip(look_up.payloads.len()).take(PAGE) {
            command.arg(&entry.field);
        }
        connection.send_packed(now, PendingReply::Store(StoreReply::Page(number)), &command);
    }

    fn pack_forgets(&mut self, connection: &mut Connection, now: Moment) {
        let mut keys = Vec::new();
        while keys.len() < BATCH_MAX
            && self.next_job() == Some(NextJob::Forget)
            && let Some(StoreJob::Forget(task)) = self.jobs.take_other()
        {
            keys.push(format!("{}{task}", self.kept_prefix));
        }
        let mut command = vec![&b"UNLINK"[..]];
        command.extend(keys.iter().map(|key| key.as_bytes()));
        connection.send(now, PendingReply::Store(StoreReply::Forgotten), &command);
    }

    pub(super) fn store_again(&mut self, requests: Vec<StoreRequest>) {
        for request in requests.into_iter().rev() {
            self.jobs.push_store_front(request);
        }
        self.bound_jobs();
    }

    fn drop_stores(&mut self) {
        self.dropped += self.jobs.drop_stores() as u64;
    }

    /// Drops the oldest results while too much waits for Redis.
    fn bound_jobs(&mut self) {
        while (self.jobs.len() > JOBS_MAX || self.jobs.bytes() > self.retention.max_retained)
            && self.jobs.take_store().is_some()
        {
            self.dropped += 1;
        }
    }
}

const CLUSTER: &str = "this is a node of a Redis Cluster, which is not supported: published results are \
                       delivered, but not kept, and results that workers SET are not found";

fn read_problem(what: &str, error: &ErrorReply) -> String {
    match error.kind() {
        ErrorKind::Cluster => CLUSTER.into(),
        _ => format!("{what} cannot be read from Redis: {error}"),
    }
}
