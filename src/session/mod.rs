//! One accepted connection, from the first byte to the last, phase by phase.
//!
//! ```text
//!                       ┌────────────────────── keep-alive ──────────────────────┐
//!                       ▼                                                        │
//!   accepted ──────► Request ──── an endpoint, an error ───────────────────► Reply ──► Linger ──► Closed
//!                       │  └───── refused over WebSocket (Origin, …) ──────────────────────▲       ▲
//!                       ├───────► Output ── delivered, timeout, … ─────────────────────────┤       │
//!                       └───────► Dial ── no backend ──────────────────────────────────────┘       │
//!                                   └──── 101 ──► Relay ───────────────────────────────────────────┤
//!   accepted by the inbox ──────► Inbox ───────────────────────────────────────────────────────────┘
//!
//!   Request: read a head, choose what the connection becomes    Output: wait for a task's results, deliver them
//!   Reply:   write an HTTP answer                               Inbox:  take results from a worker
//!   Dial:    connect to a backend, ask it to upgrade            Linger: the last bytes and FIN are out, wait briefly
//!   Relay:   two flows until both have ended                    Closed: the slot is freed at the end of the turn
//! ```
//!
//! Each phase is a type in a file of its own. Its `step` consumes it and says what follows; a phase that only waits hands
//! itself back. No session knows another: all that is shared is lent to a step as [`Context`].

pub mod alive;
pub mod dial;
pub mod flow;
pub mod inbox;
pub mod jobs;
pub mod linger;
pub mod outbox;
pub mod output;
pub mod relay;
pub mod reply;
pub mod request;

mod close;

pub use close::CloseReason;

use crate::base::moment::{Moment, Seconds};
use crate::net::{Conn, Network, Pipes, Ready, Side};
use crate::proto::http;
use crate::proto::message::TaskResult;
use crate::service::limits::Limits;
use crate::service::results::Results;
use crate::service::route::{Route, Routes};
use crate::service::stats::{BothWays, Stats};
use crate::service::upstreams::{UpstreamId, Upstreams};
use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// Bytes that one read can take: a 64 KiB payload and its frame head pass in one. One buffer serves the whole process.
pub const SCRATCH_BYTES: usize = 68 * 1024;

/// How a session behaves; the timeouts are off when `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A whole request head must be here by then.
    pub header_timeout: Option<Duration>,
    /// How long an idle HTTP connection is kept.
    pub keep_alive: Option<Duration>,
    /// All attempts to connect to a backend, together.
    pub connect_timeout: Option<Duration>,
    /// From the connection until the backend's 101.
    pub handshake_timeout: Option<Duration>,
    /// A side that has been silent so long is sent a ping.
    pub ping_interval: Option<Duration>,
    /// A side that says nothing at all for so long after that ping is gone.
    pub ping_timeout: Option<Duration>,
    /// No message either way.
    pub idle_timeout: Option<Duration>,
    /// Payload bytes of the largest message that is relayed.
    pub max_message: Option<u64>,
    pub on_backend_failure: OnBackendFailure,
    /// How results are delivered.
    pub output: output::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            header_timeout: Some(Duration::from_secs(10)),
            keep_alive: Some(Duration::from_secs(30)),
            connect_timeout: Some(Duration::from_secs(5)),
            handshake_timeout: Some(Duration::from_secs(10)),
            ping_interval: Some(Duration::from_secs(20)),
            ping_timeout: Some(Duration::from_secs(20)),
            idle_timeout: None,
            max_message: None,
            on_backend_failure: OnBackendFailure::Close,
            output: output::Settings::default(),
        }
    }
}

/// What a client is told when no backend takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBackendFailure {
    /// Its upgrade is completed and then closed with a code and a reason, which a page in a browser can read.
    Close,
    /// The backend's own HTTP answer, or 502 or 504.
    Http,
}

/// Everything that sessions share, lent to one of them at a time.
pub struct Context {
    /// The moment of this turn.
    pub now: Moment,
    pub settings: Settings,
    /// Results, and which session waits for which.
    pub results: Results<u32>,
    /// What a task's channel begins with.
    pub channel_prefix: String,
    pub network: Box<dyn Network>,
    pub routes: Routes,
    pub upstreams: Upstreams,
    pub limits: Limits,
    pub stats: Stats,
    pub chance: fastrand::Rng,
    /// What makes the payloads of our pings our own.
    pub ping_key: u64,
    /// No new work is begun.
    pub is_draining: bool,
    /// Work for the background threads, taken at the end of the turn.
    pub jobs: VecDeque<jobs::Job>,
    /// Pipes for streams.
    pub pipes: Pipes,
    scratch: Box<[u8]>,
}

impl Context {
    pub fn new(
        now: Moment,
        settings: Settings,
        network: Box<dyn Network>,
        limits: Limits,
        results: Results<u32>,
        mut chance: fastrand::Rng,
    ) -> Self {
        let ping_key = chance.u64(..);
        Context {
            now,
            settings,
            results,
            channel_prefix: String::new(),
            network,
            routes: Routes::new(Vec::new(), &mut Upstreams::default()),
            upstreams: Upstreams::default(),
            limits,
            stats: Stats::default(),
            chance,
            ping_key,
            is_draining: false,
            jobs: VecDeque::new(),
            pipes: Pipes::default(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        }
    }

    /// Lends the scratch buffer, [`SCRATCH_BYTES`] long, together with everything else.
    pub fn with_scratch<T>(&mut self, work: impl FnOnce(&mut [u8], &mut Context) -> T) -> T {
        let mut scratch = std::mem::take(&mut self.scratch);
        let done = work(&mut scratch, self);
        self.scratch = scratch;
        done
    }

    /// The moment `timeout` from now, if it is switched on.
    pub fn after(&self, timeout: Option<Duration>) -> Option<Moment> {
        timeout.map(|timeout| self.now + timeout)
    }
}

/// Who a session is: what stays the same, or is said in every line about it.
pub struct Identity {
    /// Counted from 1 since the start.
    pub serial: u64,
    pub opened: Moment,
    /// Once it is a WebSocket. A reload of the configuration leaves it with the route it came by.
    pub route: Option<Rc<Route>>,
    /// The task in the path of a relayed one, as the client wrote it. Behind two pointers, for most have none.
    pub task_id: Option<Box<Box<str>>>,
    /// The slot it lives in, which its events carry.
    pub key: u32,
    pub ip: IpAddr,
    pub port: u16,
    pub admission: Admission,
}

/// On what account a session is here; it is taken off that account when it is reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A client, counted by [`Limits`].
    Client,
    /// A client too many.
    Refused,
    /// A worker.
    Inbox,
}

impl Identity {
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// How long it has been here.
    pub fn age(&self, now: Moment) -> Seconds {
        Seconds(now - self.opened)
    }

    /// The route's name, or what it is called while it has none.
    pub fn route_name(&self) -> &str {
        match (&self.route, self.admission) {
            (Some(route), _) => &route.name,
            (None, Admission::Client | Admission::Refused) => "http",
            (None, Admission::Inbox) => "inbox",
        }
    }
}

impl fmt::Display for Identity {
    /// The connection id: `input_1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.route_name(), self.serial)
    }
}

/// What a session is at the moment.
pub enum Phase {
    Request(Box<request::Request>),
    Reply(Box<reply::Reply>),
    Dial(Box<dial::Dial>),
    Relay(Box<relay::Relay>),
    Output(Box<output::Output>),
    Inbox(Box<inbox::Inbox>),
    Linger(Box<linger::Linger>),
    Closed(CloseReason),
}

/// What follows a step.
pub enum Step {
    /// Nothing to do until an event, the phase's deadline, or news that the gateway brings.
    Wait(Phase),
    /// Go on at once with this phase.
    Next(Phase),
    /// More could be done, but it is the others' turn first.
    Yield(Phase),
    /// Only the gateway can answer this, since the answer is about more than one session: it calls [`Session::answer`].
    Ask(Box<reply::Question>),
}

/// What a session wants after it was driven.
pub enum Driven {
    Wait,
    Yield,
    Ask(Box<reply::Question>),
    Closed,
}

/// One accepted connection.
pub struct Session {
    who: Identity,
    downstream: Conn,
    phase: Phase,
    /// It stands in the list of those that have more to do.
    pub is_yielded: bool,
}

impl Session {
    /// A connection that was just accepted, and counted by [`Limits`].
    pub fn accepted(who: Identity, downstream: Conn, cx: &Context) -> Session {
        let phase = request::Request::first(cx);
        Session { who, downstream, phase, is_yielded: false }
    }

    /// A worker's connection to the embedded inbox.
    pub fn inbox(who: Identity, downstream: Conn) -> Session {
        let phase = inbox::Inbox::phase();
        Session { who, downstream, phase, is_yielded: false }
    }

    /// A result for the task that it waits for. It is acted on by the next [`Session::drive`].
    pub fn handle_result(&mut self, result: Rc<TaskResult>) {
        if let Phase::Output(output) = &mut self.phase {
            output.handle_result(result);
        }
    }

    /// Redis has been away for longer than its grace. Acted on by the next [`Session::drive`].
    pub fn handle_redis_lost(&mut self, cx: &mut Context) {
        if let Phase::Output(output) = &mut self.phase {
            output.handle_redis_lost(&self.who, cx);
        }
    }

    /// A connection that is told why it is not wanted, and closed.
    pub fn refused(
        who: Identity,
        downstream: Conn,
        reply: &http::Reply,
        cx: &mut Context,
    ) -> Session {
        let phase = reply::Reply::last(reply, CloseReason::Refused, cx);
        Session { who, downstream, phase, is_yielded: false }
    }

    pub fn who(&self) -> &Identity {
        &self.who
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed(_))
    }

    /// The task in its path, as the client wrote it.
    pub fn task_id(&self) -> Option<String> {
        match &self.phase {
            Phase::Output(output) => Some(output.task().to_string()),
            _ => self.who.task_id.as_ref().map(|task_id| task_id.to_string()),
        }
    }

    /// Frames and bytes so far; `None` while it is no WebSocket.
    pub fn traffic(&self) -> Option<BothWays> {
        match &self.phase {
            Phase::Dial(_) => Some(BothWays::default()),
            Phase::Relay(relay) => Some(relay.traffic()),
            Phase::Output(output) => Some(output.traffic()),
            _ => None,
        }
    }

    /// The word for `/connections`.
    pub fn state(&self) -> &'static str {
        match &self.phase {
            Phase::Request(_) | Phase::Reply(_) => "http",
            Phase::Dial(_) => "connecting",
            Phase::Relay(relay) => relay.state(),
            Phase::Output(output) => output.state(),
            Phase::Inbox(_) => "inbox",
            Phase::Linger(_) | Phase::Closed(_) => "closing",
        }
    }

    /// The backend that it has, or is dialing.
    pub fn backend(&self) -> Option<UpstreamId> {
        match &self.phase {
            Phase::Dial(dial) => dial.backend(),
            Phase::Relay(relay) => Some(relay.backend()),
            _ => None,
        }
    }

    /// When it last had something to do with a message.
    pub fn active_at(&self) -> Moment {
        match &self.phase {
            Phase::Relay(relay) => relay.message_at(),
            Phase::Output(output) => output.active_at(),
            _ => self.who.opened,
        }
    }

    /// An event of one of its sockets. It is acted on by the next [`Session::drive`].
    pub fn handle_ready(&mut self, side: Side, ready: Ready) {
        match side {
            Side::Downstream => self.downstream.handle_ready(ready),
            Side::Upstream => match &mut self.phase {
                Phase::Dial(dial) => dial.handle_ready(ready),
                Phase::Relay(relay) => relay.handle_ready(ready),
                // An event of a connection that was dropped earlier in this turn.
                _ => {}
            },
        }
    }

    /// Does all that can be done now. Called by `Gateway::drive` alone.
    pub fn drive(&mut self, cx: &mut Context) -> Driven {
        loop {
            let phase = std::mem::replace(&mut self.phase, Phase::Closed(CloseReason::Done));
            let step = match phase {
                Phase::Request(request) => request.step(&mut self.downstream, &mut self.who, cx),
                Phase::Reply(reply) => reply.step(&mut self.downstream, cx),
                Phase::Dial(dial) => dial.step(&mut self.downstream, &self.who, cx),
                Phase::Relay(relay) => relay.step(&mut self.downstream, &self.who, cx),
                Phase::Output(output) => output.step(&mut self.downstream, &self.who, cx),
                Phase::Inbox(inbox) => inbox.step(&mut self.downstream, &self.who, cx),
                Phase::Linger(linger) => linger.step(&mut self.downstream, cx),
                Phase::Closed(reason) => {
                    self.phase = Phase::Closed(reason);
                    return Driven::Closed;
                }
            };
            match step {
                Step::Next(phase) => self.phase = phase,
                Step::Wait(phase) => {
                    self.phase = phase;
                    return Driven::Wait;
                }
                Step::Yield(phase) => {
                    self.phase = phase;
                    return Driven::Yield;
                }
                Step::Ask(question) => return Driven::Ask(question),
            }
        }
    }

    /// The answer to what [`Driven::Ask`] asked; the session is to be driven again.
    pub fn answer(&mut self, asked: reply::Asked, reply: http::Reply, cx: &mut Context) {
        self.phase = reply::Reply::answer(asked, reply, &self.who, cx);
    }

    /// Other settings are in force. They are acted on by the next [`Session::drive`].
    pub fn handle_settings(&mut self, now: Moment) {
        if let Phase::Relay(relay) = &mut self.phase {
            relay.handle_settings(now);
        }
    }

    /// When it must be driven even if nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Request(request) => request.deadline(),
            Phase::Reply(reply) => reply.deadline(),
            Phase::Dial(dial) => dial.deadline(),
            Phase::Relay(relay) => relay.deadline(),
            Phase::Output(output) => output.deadline(),
            Phase::Inbox(inbox) => inbox.deadline(),
            Phase::Linger(linger) => linger.deadline(),
            Phase::Closed(_) => None,
        }
    }

    /// The gateway is about to stop: finish what is in flight and leave. `is_last_call`: leave now.
    pub fn drain(&mut self, is_last_call: bool, cx: &mut Context) {
        match &mut self.phase {
            Phase::Request(request) => request.drain(),
            Phase::Reply(reply) => reply.drain(),
            Phase::Dial(dial) => dial.drain(),
            Phase::Relay(relay) => relay.drain(is_last_call),
            Phase::Output(output) => output.drain(is_last_call, &self.who, cx),
            // Workers may publish until all who wait are served.
            Phase::Inbox(_) | Phase::Linger(_) | Phase::Closed(_) => {}
        }
    }

    /// Gives back what it shares with others, before its slot is freed.
    pub fn release(&mut self, cx: &mut Context) {
        if self.who.admission == Admission::Client {
            cx.limits.release(self.who.ip);
        }
        match std::mem::replace(&mut self.phase, Phase::Closed(CloseReason::Stopped)) {
            Phase::Dial(dial) => dial.release(cx),
            Phase::Relay(relay) => {
                relay.close(CloseReason::Stopped, &self.who, cx);
            }
            Phase::Output(output) => output.close(CloseReason::Stopped, None, None, &self.who, cx),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mio` keeps a word more in each socket of a debug build.
    const DEBUG: usize = if cfg!(debug_assertions) { 8 } else { 0 };

    /// What an idle connection is made of. A relayed pair is a [`Session`] and a [`relay::Relay`], eight bytes that the allocator
    /// adds to that, and nine of timers: under 400 bytes, with what the process takes once shared among 5,000.
    #[test]
    fn an_idle_connection_is_small() {
        assert_eq!(size_of::<Session>(), 96 + DEBUG);
        assert_eq!(size_of::<relay::Relay>(), 216 + DEBUG);
        assert_eq!(size_of::<flow::Flow>(), 80);
        assert_eq!(size_of::<output::Output>(), 104);
    }
}
