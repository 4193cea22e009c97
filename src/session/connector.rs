//! Connects to one of several backends: chooses one, looks up its name, tries its addresses, and
//! judges what came of each attempt.
//!
//! ```text
//!   Choose ──► LookUp ──► Connecting ──► Answering ──► succeeded, or answered otherwise
//!     ▲          │            │              │
//!     └──────────┴────────────┴──────────────┴── failed: the next address, then the next backend;
//!                                                none left: exhausted, with the last error
//! ```
//!
//! The connector moves no bytes and knows no protocol. It hands out a connection that has been
//! begun; the layer above writes its request and reads the answer, and reports what it saw:
//!
//! - [`Connector::connected`] once the first byte could be written,
//! - [`Connector::fail`] when the attempt came to nothing; [`Connector::poll`] then goes on with
//!   the next,
//! - [`Connector::succeed`] or [`Connector::answered`] when the backend has answered.
//!
//! *An attempt has succeeded when the backend has answered*, not when it has accepted a connection.
//! Until then nothing is committed, so the next backend can be tried within the same wait.
//!
//! Two budgets hold for all attempts together: the time to connect, and the time to wait for
//! answers. While something else is left to try, an attempt may use half of what is left of either,
//! and at most `attempt_timeout` to connect, so that a backend that swallows packets does not use
//! up the wait.

use super::Context;
use super::jobs::{Job, NameOwner};
use super::transcript::{Event, Subject, note_step, remember};
use crate::base::moment::Moment;
use crate::net::tls::Verify;
use crate::net::{Conn, PeerAddress, Source};
use crate::service::attempt::{AttemptError, AttemptFault};
use crate::service::upstreams::{Addresses, AttemptOutcome, Purpose, UpstreamId};
use crate::service::url::BackendSecurity;
use log::warn;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How long a client waits for a name to be looked up again before the old addresses are used.
const LOOKUP_PATIENCE: Duration = Duration::from_millis(250);

/// What follows when an attempt fails once a connection is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Another attempt, for which half of the time to wait for answers is left: nothing has been
    /// asked for but a handshake.
    Handshake,
    /// Another attempt, within the same time: the request may be repeated.
    Request,
    /// Nothing: the backend may have acted on the request.
    Never,
}

/// On the way to a backend.
pub struct Connector {
    /// What events of the connections are registered as.
    source: Source,
    purpose: Purpose,
    retry: Retry,
    stage: ConnectStage,
    current: Option<Current>,
    untried: Vec<UpstreamId>,
    /// What is left of the time to connect, and of the time to wait for answers. `None`: no limit.
    connect_left: Option<Duration>,
    answer_left: Option<Duration>,
    /// Why the last backend failed.
    error: AttemptError,
    /// The backend that was tried last.
    last: Option<UpstreamId>,
}

/// The backend that is being tried.
struct Current {
    backend: UpstreamId,
    addresses: Rc<[SocketAddr]>,
    /// Index of the address to try next.
    next: usize,
    /// The addresses that had failed when the name was looked up again.
    failed: Option<Rc<[SocketAddr]>>,
    /// The most telling failure so far.
    error: Option<AttemptError>,
}

#[derive(Clone, Copy)]
enum ConnectStage {
    /// The next address or backend has to be chosen.
    Choose,
    /// The backend's name is being looked up.
    LookUp { timer: Timer },
    /// A connection has been begun.
    Connecting { address: SocketAddr, timer: Timer },
    /// The connection is established, the answer is awaited.
    Answering { address: SocketAddr, timer: Timer },
}

/// How long a stage may last.
#[derive(Clone, Copy)]
struct Timer {
    began_at: Moment,
    give_up_at: Option<Moment>,
}

/// What to do next.
pub enum Polled {
    /// Wait for an event, the answer to a lookup, or the deadline.
    Wait,
    /// A connection to this backend has been begun. It need not be established yet.
    Begun(Conn, UpstreamId),
    /// All that could be tried has failed, the last backend with this error.
    Exhausted(AttemptError),
}

/// What is left to try besides the current address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Addresses,
    Backends,
}

impl Connector {
    /// A connector to one of `candidates`, whose connections are registered as `source`.
    pub fn new(
        candidates: &[UpstreamId],
        source: Source,
        purpose: Purpose,
        cx: &Context,
    ) -> Connector {
        Connector {
            source,
            purpose,
            retry: Retry::Handshake,
            stage: ConnectStage::Choose,
            current: None,
            untried: candidates.to_vec(),
            connect_left: cx.settings.connect_timeout,
            answer_left: cx.settings.handshake_timeout,
            error: AttemptError::NoBackend,
            last: None,
        }
    }

    /// A connector for a request of a client, which waits for the answer for at most
    /// `answer_timeout`.
    pub fn for_request(
        candidates: &[UpstreamId],
        source: Source,
        retry: Retry,
        answer_timeout: Option<Duration>,
        cx: &Context,
    ) -> Connector {
        let connector = Connector::new(candidates, source, Purpose::Client, cx);
        Connector { retry, answer_left: answer_timeout, ..connector }
    }

    /// Asks a backend over a connection that is established already.
    pub fn resume(&mut self, backend: UpstreamId, address: SocketAddr, cx: &mut Context) {
        cx.upstreams.connecting(backend, self.purpose);
        self.current = Some(Current::new(backend));
        let timer = Timer { began_at: cx.now, give_up_at: cx.after(self.answer_left) };
        self.stage = ConnectStage::Answering { address, timer };
    }

    /// Goes on with the next attempt, unless one is under way. `who` begins each line in the log.
    pub fn poll(&mut self, who: Subject<'_>, cx: &mut Context) -> Polled {
        loop {
            match self.stage {
                ConnectStage::Connecting { .. } | ConnectStage::Answering { .. } => {
                    return Polled::Wait;
                }
                ConnectStage::LookUp { timer } => match self.looked_up(timer, cx) {
                    None => return Polled::Wait,
                    Some(Ok(addresses)) => self.set_addresses(addresses, cx.now),
                    Some(Err(error)) => self.fail(error, who, cx),
                },
                ConnectStage::Choose => {
                    if let Some(address) = self.next_address() {
                        if let Some((conn, backend)) = self.begin(address, who, cx) {
                            return Polled::Begun(conn, backend);
                        }
                    } else if !self.look_up_again(cx) {
                        self.give_up_backend(who, cx);
                        if !self.choose_backend(cx) {
                            return Polled::Exhausted(self.error);
                        }
                    }
                }
            }
        }
    }

    /// The backend that is being tried.
    pub fn backend(&self) -> Option<UpstreamId> {
        self.current.as_ref().map(|current| current.backend)
    }

    /// The backend that is being tried, or was tried last.
    pub fn last_backend(&self) -> Option<UpstreamId> {
        self.backend().or(self.last)
    }

    /// The address that is being tried.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.stage {
            ConnectStage::Connecting { address, .. } | ConnectStage::Answering { address, .. } => {
                Some(address)
            }
            ConnectStage::Choose | ConnectStage::LookUp { .. } => None,
        }
    }

    /// Whether it waits for a name to be looked up.
    pub fn is_looking_up(&self) -> bool {
        matches!(self.stage, ConnectStage::LookUp { .. })
    }

    /// When the current stage times out.
    pub fn deadline(&self) -> Option<Moment> {
        match self.stage {
            ConnectStage::Choose => None,
            ConnectStage::LookUp { timer }
            | ConnectStage::Connecting { timer, .. }
            | ConnectStage::Answering { timer, .. } => timer.give_up_at,
        }
    }

    /// The error of the attempt under way if its time is over. To be asked when its connection has
    /// nothing new: what has arrived in time counts, however late it is read.
    pub fn timed_out(&self, now: Moment) -> Option<AttemptError> {
        match self.stage {
            ConnectStage::Connecting { timer, .. } if timer.is_over(now) => {
                Some(AttemptError::ConnectTimedOut)
            }
            ConnectStage::Answering { timer, .. } if timer.is_over(now) => Some(match self.retry {
                Retry::Handshake => AttemptError::AnswerTimedOut,
                Retry::Request | Retry::Never => AttemptError::ResponseTimedOut,
            }),
            _ => None,
        }
    }

    /// The request is still being sent: the time to wait for the answer begins anew.
    pub fn note_progress(&mut self, cx: &Context) {
        if let ConnectStage::Answering { timer, .. } = &mut self.stage {
            *timer = Timer { began_at: cx.now, give_up_at: cx.after(self.answer_left) };
        }
    }

    /// Whether another attempt follows if this one fails.
    pub fn has_more(&self) -> bool {
        self.left() != Left::Nothing
    }

    /// The connection is established. Does nothing when that is known already.
    pub fn connected(&mut self, who: Subject<'_>, cx: &mut Context) {
        let ConnectStage::Connecting { address, timer } = self.stage else { return };
        self.spend(cx.now);
        cx.stats.time().dial.observe(cx.now - timer.began_at);
        if self.retry == Retry::Never {
            self.untried.clear();
            if let Some(current) = &mut self.current {
                current.next = current.addresses.len();
            }
            self.connect_left = Some(Duration::ZERO);
        }
        let may_take = match (self.left(), self.retry) {
            (Left::Backends | Left::Addresses, Retry::Handshake) => {
                self.answer_left.map(|left| left / 2)
            }
            _ => self.answer_left,
        };
        let timer = Timer { began_at: cx.now, give_up_at: cx.after(may_take) };
        self.stage = ConnectStage::Answering { address, timer };
        note_step(who, cx.now, || Event::Connected);
    }

    /// The attempt failed. The next [`Connector::poll`] tries something else.
    pub fn fail(&mut self, error: AttemptError, who: Subject<'_>, cx: &mut Context) {
        self.spend(cx.now);
        self.stage = ConnectStage::Choose;
        let Some(current) = &mut self.current else { return };
        note_step(who, cx.now, || Event::AttemptFailed { what: &error });
        current.note_failure(error);
        if self.purpose == Purpose::Client && error.fault() != AttemptFault::Local {
            cx.stats.count_dial(cx.upstreams.url(current.backend).public_text(), false);
        }
    }

    /// The attempt failed, and no other is to follow it.
    pub fn fail_for_good(&mut self, error: AttemptError, who: Subject<'_>, cx: &mut Context) {
        self.fail(error, who, cx);
        self.give_up_backend(who, cx);
    }

    /// The backend takes the client: its connection counts until `Upstreams::left`. `None` when no
    /// attempt is under way.
    pub fn succeed(&mut self, cx: &mut Context) -> Option<UpstreamId> {
        let (ConnectStage::Connecting { address, .. } | ConnectStage::Answering { address, .. }) =
            self.stage
        else {
            return None;
        };
        let backend = self.backend()?;
        if let (ConnectStage::Answering { timer, .. }, Retry::Handshake) = (self.stage, self.retry)
        {
            cx.stats.time().handshake.observe(cx.now - timer.began_at);
        }
        self.end(AttemptOutcome::Succeeded(address), cx);
        if self.purpose == Purpose::Client {
            cx.stats.count_dial(cx.upstreams.url(backend).public_text(), true);
        }
        Some(backend)
    }

    /// The backend answered, but does not take the client.
    pub fn answered(&mut self, cx: &mut Context) {
        self.end(AttemptOutcome::Answered, cx);
    }

    /// Gives up for a reason on this side, which says nothing about the backend.
    pub fn abandon(&mut self, cx: &mut Context) {
        self.end(AttemptOutcome::Abandoned, cx);
    }

    fn end(&mut self, outcome: AttemptOutcome, cx: &mut Context) {
        self.stage = ConnectStage::Choose;
        if let Some(current) = self.current.take() {
            self.last = Some(current.backend);
            cx.upstreams.ended(current.backend, self.purpose, outcome, cx.now);
        }
    }

    /// Chooses the next backend. False: none is left, or no time.
    fn choose_backend(&mut self, cx: &mut Context) -> bool {
        if self.is_out_of_time() {
            return false;
        }
        let Some(backend) = cx.upstreams.choose(&self.untried, cx.now) else { return false };
        self.untried.retain(|id| *id != backend);
        cx.upstreams.connecting(backend, self.purpose);
        begin_lookup(backend, cx);
        let mut current = Current::new(backend);
        let mut timer = self.connect_timer(cx);
        match cx.upstreams.addresses(backend, cx.now) {
            Addresses::Fresh(addresses) => current.addresses = addresses,
            Addresses::Stale(_) => {
                let patience = Some(cx.now + LOOKUP_PATIENCE);
                timer.give_up_at = earlier(timer.give_up_at, patience);
                self.stage = ConnectStage::LookUp { timer };
            }
            Addresses::Unknown => self.stage = ConnectStage::LookUp { timer },
        }
        self.current = Some(current);
        true
    }

    /// What the lookup gave; `None`: nothing yet, and there is time to wait.
    fn looked_up(
        &self,
        timer: Timer,
        cx: &Context,
    ) -> Option<Result<Rc<[SocketAddr]>, AttemptError>> {
        let current = self.current.as_ref()?;
        let is_under_way = cx.upstreams.is_looking_up(current.backend);
        let is_over = !is_under_way || timer.is_over(cx.now);
        match cx.upstreams.addresses(current.backend, cx.now) {
            Addresses::Fresh(addresses) if current.failed.is_none() => Some(Ok(addresses)),
            Addresses::Fresh(addresses) | Addresses::Stale(addresses) => {
                is_over.then_some(Ok(addresses))
            }
            Addresses::Unknown if !is_under_way => {
                let error = match cx.upstreams.lookup_shortage(current.backend) {
                    Some(errno) => AttemptError::Local { errno },
                    None => AttemptError::NameNotFound,
                };
                Some(Err(error))
            }
            Addresses::Unknown => is_over.then_some(Err(AttemptError::LookupTimedOut)),
        }
    }

    fn set_addresses(&mut self, addresses: Rc<[SocketAddr]>, now: Moment) {
        self.spend(now);
        self.stage = ConnectStage::Choose;
        let Some(current) = &mut self.current else { return };
        current.next = 0;
        current.addresses = match &current.failed {
            Some(failed) => {
                addresses.iter().filter(|address| !failed.contains(address)).copied().collect()
            }
            None => addresses,
        };
    }

    /// The last backend has failed at every address. If its name leads to addresses that were known
    /// before, it may have moved meanwhile: then the client waits for the name to be looked up,
    /// once.
    fn look_up_again(&mut self, cx: &mut Context) -> bool {
        if self.is_out_of_time() || self.left() != Left::Nothing {
            return false;
        }
        let mut timer = self.connect_timer(cx);
        timer.give_up_at = earlier(timer.give_up_at, cx.after(cx.settings.attempt_timeout));
        let Some(current) = &mut self.current else { return false };
        let has_failed_everywhere = !current.addresses.is_empty() && current.failed.is_none();
        if !has_failed_everywhere || !cx.upstreams.doubt_addresses(current.backend, cx.now) {
            return false;
        }
        begin_lookup(current.backend, cx);
        current.failed = Some(Rc::clone(&current.addresses));
        self.stage = ConnectStage::LookUp { timer };
        true
    }

    fn next_address(&mut self) -> Option<SocketAddr> {
        if self.is_out_of_time() {
            return None;
        }
        let current = self.current.as_mut()?;
        let address = current.addresses.get(current.next).copied()?;
        current.next += 1;
        Some(address)
    }

    fn begin(
        &mut self,
        address: SocketAddr,
        who: Subject<'_>,
        cx: &mut Context,
    ) -> Option<(Conn, UpstreamId)> {
        let backend = self.backend()?;
        let url = cx.upstreams.url(backend).public_text();
        let socket = cx.upstreams.url(backend).unix_path().map(Path::to_owned);
        let shown = socket.is_none().then_some(address);
        note_step(who, cx.now, || Event::Connecting { backend: url, address: shown });
        self.stage = ConnectStage::Connecting { address, timer: self.connect_timer(cx) };
        let url = cx.upstreams.url(backend);
        let verify = match url.security() {
            BackendSecurity::Plain => None,
            BackendSecurity::Tls => Some(Verify::Yes),
            BackendSecurity::UnverifiedTls => Some(Verify::No),
        };
        let to = socket.map_or(PeerAddress::Tcp(address), PeerAddress::Unix);
        let connected = cx.network.connect(&to, self.source);
        let connected = connected.and_then(|socket| match verify {
            None => Ok(socket),
            Some(verify) => cx.tls.dial(socket, url.host(), verify),
        });
        match connected {
            Ok(socket) => Some((Conn::dialed(socket), backend)),
            Err(error) => {
                self.fail(AttemptError::of_connecting(&error), who, cx);
                None
            }
        }
    }

    /// The current backend has failed at every address.
    fn give_up_backend(&mut self, who: Subject<'_>, cx: &mut Context) {
        let Some(current) = &self.current else { return };
        self.error = current.error.unwrap_or(AttemptError::ConnectTimedOut);
        let url = cx.upstreams.url(current.backend).public_text();
        let error = self.error;
        let failed = Event::BackendFailed { backend: url, error };
        match self.purpose {
            Purpose::Client => {
                remember(who, cx.now, &failed);
                warn!(target: "dial", "{who} {failed}{}", who.task_field());
            }
            Purpose::Probe => note_step(who, cx.now, || failed),
        }
        match error.fault() {
            AttemptFault::Local => self.end(AttemptOutcome::Abandoned, cx),
            AttemptFault::Lookup | AttemptFault::Backend => {
                self.end(AttemptOutcome::Failed(error), cx)
            }
        }
    }

    fn left(&self) -> Left {
        let has_address = |current: &Current| current.next < current.addresses.len();
        if !self.untried.is_empty() {
            Left::Backends
        } else if self.current.as_ref().is_some_and(has_address) {
            Left::Addresses
        } else {
            Left::Nothing
        }
    }

    fn is_out_of_time(&self) -> bool {
        self.connect_left == Some(Duration::ZERO)
    }

    /// The time that a lookup or a connection may take from now on.
    fn connect_timer(&self, cx: &Context) -> Timer {
        let may_take = match self.left() {
            Left::Nothing => self.connect_left,
            Left::Addresses | Left::Backends => {
                earlier(self.connect_left.map(|left| left / 2), cx.settings.attempt_timeout)
            }
        };
        Timer { began_at: cx.now, give_up_at: cx.after(may_take) }
    }

    /// Takes the time of the current stage off its budget.
    fn spend(&mut self, now: Moment) {
        let (budget, timer) = match self.stage {
            ConnectStage::Choose => return,
            ConnectStage::LookUp { timer } | ConnectStage::Connecting { timer, .. } => {
                (&mut self.connect_left, timer)
            }
            ConnectStage::Answering { timer, .. } => (&mut self.answer_left, timer),
        };
        *budget = budget.map(|left| left.saturating_sub(now - timer.began_at));
    }
}

impl Current {
    fn new(backend: UpstreamId) -> Current {
        Current { backend, addresses: Rc::new([]), next: 0, failed: None, error: None }
    }

    /// Keeps the failure that says most about the backend: one after the connection was established
    /// more than one before, and either more than a shortage on this machine.
    fn note_failure(&mut self, error: AttemptError) {
        let rank = |error: AttemptError| match error.fault() {
            AttemptFault::Local => 0,
            AttemptFault::Lookup | AttemptFault::Backend => {
                1 + u8::from(error.is_after_connecting())
            }
        };
        if self.error.is_none_or(|known| rank(error) >= rank(known)) {
            self.error = Some(error);
        }
    }
}

impl Timer {
    fn is_over(self, now: Moment) -> bool {
        self.give_up_at.is_some_and(|at| at <= now)
    }
}

/// Has the backend's name looked up if that is due.
pub fn begin_lookup(backend: UpstreamId, cx: &mut Context) {
    if cx.upstreams.begin_lookup(backend, cx.now) {
        let name = cx.upstreams.url(backend).name();
        cx.jobs.push_back(Job::LookUp { name, owner: NameOwner::Backend(backend) });
    }
}

/// The earlier of two deadlines, or the shorter of two times, where `None` is never.
fn earlier<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}
