//! One accepted connection, from the first byte to the last, phase by phase.
//!
//! ```text
//!                    ┌───────────────────── keep-alive ───────────────────┐
//!                    ▼                                                    │
//! PROXY, TLS: Accept ┤
//!                    ▼
//! accepted ─────► Request ─── an endpoint, an error ──────────────► Respond ──► Linger ──► Closed
//!                    │  └──── refused over WebSocket (Origin, …) ──────────────────▲       ▲
//!                    ├──────► Output ── delivered, timeout, … ─────────────────────┤       │
//!                    ├──────► Ingest ── closed, idle, … ───────────────────────────┤       │
//!                    └──────► Dial ── no backend ──────────────────────────────────┘       │
//!                    │          └──── 101 ──► Relay ───────────────────────────────────────┤
//!                    └──────► Forward ── no backend ─► Respond;  complete ─► keep-alive, or ┤
//! accepted by the inbox ────► Inbox ───────────────────────────────────────────────────────┘
//!
//! Accept:  the PROXY header, and the TLS handshake
//! Request: read a head, choose what the connection becomes
//! Body:    read the body of a request, between Request and Respond
//! Files:   wait for a file to be opened, between Request and Respond; Download: the same for audio
//! Respond: write an HTTP answer
//! Dial:    connect to a backend, ask it to upgrade
//! Forward: pass a request of plain HTTP on, and its response back
//! Relay:   two flows until both have ended
//! Output:  wait for a task's results, deliver them
//! Ingest:  take speech from a worker
//! Inbox:   take results from a worker
//! Linger:  send the last bytes and FIN, wait until the client has them
//! Closed:  the slot is freed at the end of the turn
//! ```
//!
//! Each phase is a type in a file of its own that implements `State`. Its `step` consumes it and
//! returns what follows; a phase that only waits returns itself. A phase that ends returns an
//! [`Ended`], which [`Session`] alone logs and counts. No session knows another: all that is shared
//! is lent to a step as [`Context`].

pub mod accept;
pub mod alive;
pub mod body;
pub mod connector;
mod content;
pub mod dial;
pub mod download;
mod ended;
mod event_body;
pub mod exchange;
pub mod file_body;
pub mod files;
pub mod flow;
pub mod forward;
pub mod inbox;
pub mod ingest;
pub mod jobs;
pub mod linger;
pub mod outbox;
pub mod output;
pub mod probe;
pub mod recent;
pub mod relay;
pub mod request;
pub mod respond;
pub mod stall;
mod story;
pub mod stream_body;
pub mod transcript;

mod close;
mod deliveries;
mod identity;
mod memory;
mod modes;
mod streams;
pub mod tap;
#[cfg(test)]
mod testing;
mod visitor;

pub use close::{CloseReason, Closing, EndVerdict, Party};
pub use ended::{
    Activity, Answered, Awaited, Detail, Ended, Last, LastFrames, Limit, refuse_unanswered,
};
pub use identity::{Admission, Identity, Proxied, Rare, SessionId};
pub use memory::MemoryLimit;
pub use modes::{Drain, Failures, OnBackendFailure};
pub use request::RedirectHttp;

use crate::base::budget::Budget;
use crate::base::moment::{Moment, WallClock};
use crate::base::touched::Touched;
use crate::net::files::LocalDevices;
use crate::net::files::assets::OpenFolder;
use crate::net::{Conn, Network, OpenFile, Pipes, Ready, Security, Side, tls};
use crate::proto::http;
use crate::proto::message::TaskId;
use crate::service::channels::Channels;
use crate::service::feeds::Feeds;
use crate::service::ledger::Ledger;
use crate::service::limits::Limits;
use crate::service::link::Password;
use crate::service::results::Results;
use crate::service::route::Routes;
use crate::service::stats::{BothWays, Stats};
use crate::service::streams::Streams;
use crate::service::taps::Taps;
use crate::service::trust;
use crate::service::upstreams::{UpstreamId, Upstreams};
use crate::service::watch::Watch;
use forward::kept::KeptBackend;
use relay::Advanced;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// Bytes of one read: enough for a payload of 64 KiB and its frame head. The whole process shares
/// one such buffer.
pub const SCRATCH_BYTES: usize = 68 * 1024;

/// How a session behaves. A timeout of `None` is switched off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Settings {
    /// Timeout for a whole request head.
    pub header_timeout: Option<Duration>,
    /// Timeout for a peer to take a byte of those that wait for it.
    pub write_timeout: Option<Duration>,
    /// Bytes of the largest head of a request, and of a backend's answer.
    pub max_head: usize,
    /// Timeout for the next request on an idle HTTP connection.
    pub keep_alive: Option<Duration>,
    /// Timeout for connecting to a backend, looking up its name included, all attempts together.
    pub connect_timeout: Option<Duration>,
    /// Timeout for one attempt to connect, while something else is left to try.
    pub attempt_timeout: Option<Duration>,
    /// Timeout for the backend's 101 once connected, all attempts together.
    pub handshake_timeout: Option<Duration>,
    /// Silence after which a side is pinged.
    pub ping_interval: Option<Duration>,
    /// Timeout for any byte from a side, from that ping on.
    pub ping_timeout: Option<Duration>,
    /// Timeout for a message, from either side.
    pub idle_timeout: Option<Duration>,
    /// Payload bytes of the largest message that is relayed.
    pub max_message: Option<u64>,
    pub on_backend_failure: OnBackendFailure,
    /// Timeout for the head of a backend's response to plain HTTP.
    pub response_timeout: Option<Duration>,
    /// Bytes of the largest body of a request that is passed on.
    pub max_body: Option<u64>,
    /// Whether requests that come without TLS are sent on to where it is.
    pub redirect_http: RedirectHttp,
    /// The port of the first listener with TLS, if there is one.
    pub tls_port: Option<u16>,
    /// Memory for all that sessions, results and responses hold.
    pub memory_limit: MemoryLimit,
    /// What the log gets of connections that end badly.
    pub failures: Failures,
    /// Whether admins may see payloads of live frames.
    pub allow_tap_payload: bool,
    /// How results are delivered.
    pub output: output::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            header_timeout: Some(Duration::from_secs(10)),
            write_timeout: Some(Duration::from_secs(30)),
            max_head: http::HEAD_BYTES_MAX,
            keep_alive: Some(Duration::from_secs(30)),
            connect_timeout: Some(Duration::from_secs(5)),
            attempt_timeout: Some(Duration::from_secs(1)),
            handshake_timeout: Some(Duration::from_secs(10)),
            ping_interval: Some(Duration::from_secs(20)),
            ping_timeout: Some(Duration::from_secs(20)),
            idle_timeout: None,
            max_message: None,
            on_backend_failure: OnBackendFailure::Close,
            response_timeout: Some(Duration::from_secs(60)),
            max_body: None,
            redirect_http: RedirectHttp::No,
            tls_port: None,
            memory_limit: MemoryLimit::Unlimited,
            failures: Failures::Everything,
            allow_tap_payload: false,
            output: output::Settings::default(),
        }
    }
}

/// Everything that sessions share, lent to one of them at a time.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Context {
    /// The moment of this turn.
    pub now: Moment,
    pub settings: Settings,
    /// Results, and which session waits for which task.
    pub results: Touched<Results<SessionId>>,
    /// What a task's channel begins with.
    pub channel_prefix: String,
    /// What a task's control channel begins with.
    pub control_prefix: String,
    /// Which workers listen to control channels of the inbox.
    pub channels: Channels<SessionId>,
    /// Speech that workers are sending.
    pub speech: ingest::IncomingSpeeches,
    /// Which of them speaks for which task.
    pub feeds: Feeds<SessionId>,
    /// What workers have to know to use the inbox, if anything.
    pub inbox_password: Option<Password>,
    pub network: Box<dyn Network>,
    pub routes: Routes,
    pub upstreams: Upstreams,
    pub limits: Limits,
    pub trust: trust::Settings,
    pub tls: tls::Layer,
    pub stats: Stats,
    /// What sessions remember of what happened last.
    pub black_box: story::BlackBox,
    /// The last connections that ended.
    pub ledger: Ledger,
    pub chance: fastrand::Rng,
    /// Makes the payloads of this process's pings recognisable.
    pub ping_key: u64,
    /// Work that sessions did in this turn, in bytes written or what takes as long. Relayed
    /// messages do not count; what can last longer does, so that the gateway can put the rest off.
    pub work: usize,
    /// The gateway drains: no new work begins.
    pub is_draining: bool,
    /// What publishers have sent has not been read to its end in this turn.
    pub has_unread_results: bool,
    /// The time of day, for comparison with the times of files.
    pub wall: WallClock,
    /// The file systems on which the loop may open files.
    pub local_devices: LocalDevices,
    /// The folder of the last request for a file of a route, in this turn.
    pub asset_folder: OpenFolder,
    /// What is known about audio files.
    pub audio: output::AudioFiles,
    /// Who watches the gateway.
    pub watch: Watch<SessionId>,
    /// Who follows live frames.
    pub taps: Taps<SessionId>,
    /// Audio that grows, or has grown.
    pub streams: Streams<SessionId, OpenFile>,
    /// Work for the background threads, taken at the end of the turn.
    pub jobs: VecDeque<jobs::Job>,
    /// Pipes for streams.
    pub pipes: Pipes,
    /// What sessions, results and answers hold in memory.
    pub budget: Budget,
    /// What one socket buffer may take, if less than usual.
    pub socket_buffers: Option<usize>,
    scratch: Box<[u8]>,
}

impl Context {
    /// Without routes, which the gateway adds.
    pub fn new(
        now: Moment,
        settings: Settings,
        network: Box<dyn Network>,
        limits: Limits,
        mut results: Results<SessionId>,
        mut chance: fastrand::Rng,
    ) -> Self {
        let ping_key = chance.u64(..);
        let budget = Budget::new(settings.memory_limit.bytes());
        results.charge_to(&budget);
        Context {
            now,
            settings,
            results: Touched::new(results),
            channel_prefix: String::new(),
            control_prefix: String::new(),
            channels: Channels::default(),
            speech: ingest::IncomingSpeeches::new(&budget),
            feeds: Feeds::default(),
            inbox_password: None,
            network,
            routes: Routes::new(Vec::new(), &mut Upstreams::default()),
            upstreams: Upstreams::default(),
            limits,
            trust: trust::Settings::default(),
            tls: tls::Layer::default(),
            stats: Stats::default(),
            black_box: story::BlackBox::new(&budget),
            ledger: Ledger::new(&budget),
            chance,
            ping_key,
            work: 0,
            is_draining: false,
            has_unread_results: false,
            wall: WallClock::new(now, SystemTime::UNIX_EPOCH),
            local_devices: LocalDevices::default(),
            asset_folder: OpenFolder::default(),
            audio: output::AudioFiles::default(),
            watch: Watch::new(),
            taps: Taps::new(&budget),
            streams: Streams::new(&budget),
            jobs: VecDeque::new(),
            pipes: Pipes::default(),
            budget,
            socket_buffers: None,
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

    /// Keeps the buffers of a new connection small while memory is.
    pub fn limit_buffers(&self, conn: &mut Conn) {
        if let Some(bytes_max) = self.socket_buffers {
            conn.limit_buffers(bytes_max);
        }
    }

    /// Whether payloads of frames are kept for somebody who follows them.
    pub fn shows_payload(&self) -> bool {
        self.settings.allow_tap_payload && self.taps.show_payload()
    }

    /// The moment `timeout` from now, if it is switched on.
    pub fn after(&self, timeout: Option<Duration>) -> Option<Moment> {
        timeout.map(|timeout| self.now + timeout)
    }
}

/// What a session is at the moment.
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Phase {
    Accept(Box<accept::Accept>),
    Request(Box<request::Request>),
    Body(Box<body::RequestBody>),
    Download(Box<download::Download>),
    Files(Box<files::Files>),
    Respond(Box<respond::Respond>),
    Dial(Box<dial::Dial>),
    Forward(Box<forward::Forward>),
    Relay(Box<relay::Relay>),
    Output(Box<output::Output>),
    Inbox(Box<inbox::Inbox>),
    Ingest(Box<ingest::Ingest>),
    Linger(Box<linger::Linger>),
    /// Nothing is left but the slot.
    Closed,
}

/// What every phase can do.
trait State {
    /// Does all that can be done now.
    fn step(self: Box<Self>, downstream: &mut Conn, who: &mut Identity, cx: &mut Context) -> Step;

    /// When the next step is due even if nothing happens. It may be early, never late.
    fn deadline(&self) -> Option<Moment>;

    /// The gateway is about to stop. Acted on by the next step.
    fn drain(&mut self, drain: Drain, who: &Identity, cx: &mut Context);

    /// The settings have changed. Acted on by the next step.
    fn reload(&mut self, now: Moment);

    /// Another connection needs the place of this one: a request or a handshake that is waited for
    /// is given up by the next step. By default there is neither.
    fn evict(&mut self) {}

    /// The word for `/connections`.
    fn word(&self) -> &'static str;

    /// Bytes in memory that wait for a peer to take them.
    fn held_bytes(&self) -> usize;

    /// Bytes of the phase's own buffers that do not charge themselves to the budget. The session
    /// charges them after each step.
    fn own_bytes(&self) -> usize;

    /// Bytes of buffers that others may share, its part of them, or that charge themselves.
    /// Together with [`State::own_bytes`] that is what ending the session would free.
    fn charged_bytes(&self) -> usize {
        0
    }

    /// Its socket to the backend.
    fn upstream(&mut self) -> Option<&mut Conn> {
        None
    }

    /// The last bytes that can be sent to the client when the session ends now: none within a
    /// frame.
    fn farewell(&self, _: CloseReason) -> Option<Vec<u8>> {
        None
    }

    /// The session ends now: closes its connection to the backend, with a Close frame if one can be
    /// sent at once.
    fn leave_backend(&mut self, _: CloseReason, _: &mut Context) {}

    /// The gateway stops: gives back what is shared with other sessions. Returns how the session
    /// ended.
    fn release(self: Box<Self>, who: &Identity, cx: &mut Context) -> Box<Ended>;

    /// Frames and bytes so far; `None` while it is not a WebSocket.
    fn traffic(&self) -> Option<BothWays> {
        None
    }

    /// The task whose results it serves.
    fn task(&self) -> Option<&TaskId> {
        None
    }

    /// The backend that it has, or is dialing.
    fn backend(&self) -> Option<UpstreamId> {
        None
    }

    /// Whether it waits for the name of that backend to be looked up.
    fn is_looking_up(&self) -> bool {
        false
    }

    /// When a message was last handled; `None` where there are no messages.
    fn active_at(&self) -> Option<Moment> {
        None
    }

    /// An event of the socket to the backend. Acted on by the next step. The default is for a phase
    /// without one: the event then belongs to a connection that was dropped earlier in this turn.
    fn handle_ready(&mut self, _: Ready) {}
}

/// What follows a step.
pub enum Step {
    /// Nothing to do until an event, the phase's deadline, or news that the gateway brings.
    Wait(Phase),
    /// Go on at once with this phase.
    Next(Phase),
    /// More could be done, but other sessions have their turn first.
    Yield(Phase),
    /// A response has gone out: the connection waits for its next request, of which these bytes are
    /// here. A connection to a backend may be kept for it.
    NextRequest(Vec<u8>, Option<Box<KeptBackend>>),
    /// Only the gateway can answer this, since the answer is about more than one session: it calls
    /// [`Session::answer`].
    Ask(Box<respond::Question>),
    /// The session has ended, apart from the last bytes to the client.
    End(Box<Ended>),
    /// The last bytes to the client have arrived, or are given up.
    Over(Box<Ended>),
}

/// What a session wants after it was driven.
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Driven {
    Wait,
    Yield,
    Ask(Box<respond::Question>),
    Closed,
}

/// One accepted connection.
pub struct Session {
    who: Identity,
    downstream: Conn,
    phase: Phase,
    /// It is in the gateway's list of sessions that have more to do.
    pub is_yielded: bool,
    /// What is charged for it: bytes of its phase's own buffers, and pages of its sockets' buffers.
    own_bytes: u32,
    kernel_pages: u16,
}

impl Session {
    /// A connection that was just accepted, and counted by [`Limits`].
    pub fn accepted(who: Identity, mut downstream: Conn, cx: &Context) -> Session {
        cx.limit_buffers(&mut downstream);
        let phase = match who.security() {
            _ if who.sends_header(&cx.trust) => accept::Accept::with_header(cx),
            Security::Plain | Security::PlainOnTls => request::Request::first(cx),
            Security::Tls => accept::Accept::phase(cx),
        };
        Session { who, downstream, phase, is_yielded: false, own_bytes: 0, kernel_pages: 0 }
    }

    /// A connection beyond a limit, which is refused once its request head is here, unless it asks
    /// for an endpoint that is answered all the same.
    pub fn refused(who: Identity, downstream: Conn, cx: &Context) -> Session {
        let phase = match who.security() {
            _ if who.sends_header(&cx.trust) => accept::Accept::with_header(cx),
            Security::Plain | Security::PlainOnTls => request::Request::refused(cx),
            Security::Tls => accept::Accept::phase(cx),
        };
        Session { who, downstream, phase, is_yielded: false, own_bytes: 0, kernel_pages: 0 }
    }

    /// Whether it is a refused connection whose request head has not come.
    pub fn is_refused_waiting(&self) -> bool {
        matches!(self.who.admission, Admission::Refused(_))
            && matches!(self.phase, Phase::Accept(_) | Phase::Request(_))
    }

    /// Whether its PROXY header or TLS handshake is not complete.
    pub fn is_accepting(&self) -> bool {
        matches!(self.phase, Phase::Accept(_))
    }

    /// Makes room for another connection: a request that it waits for is waited for no longer.
    /// Acted on by the next [`Session::drive`].
    pub fn evict(&mut self) {
        in_phase!(&mut self.phase, it => it.evict(), closed => ())
    }

    /// What stays the same while phases change.
    pub fn who(&self) -> &Identity {
        &self.who
    }

    /// The current phase.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Whether it has ended and waits to be removed.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// The task in its path, as the client wrote it.
    pub fn task_id(&self) -> Option<String> {
        match in_phase!(&self.phase, it => it.task(), closed => None) {
            Some(task) => Some(task.to_string()),
            None => self.who.task_id().map(str::to_owned),
        }
    }

    /// Frames and bytes so far; `None` while it is not a WebSocket.
    pub fn traffic(&self) -> Option<BothWays> {
        in_phase!(&self.phase, it => it.traffic(), closed => None)
    }

    /// The task whose results it waits for.
    pub fn awaited_task(&self) -> Option<uuid::Uuid> {
        in_phase!(&self.phase, it => it.task(), closed => None).map(TaskId::uuid)
    }

    /// The word for `/connections`.
    pub fn state(&self) -> &'static str {
        in_phase!(&self.phase, it => it.word(), closed => "closing")
    }

    /// The backend that it has, or is dialing.
    pub fn backend(&self) -> Option<UpstreamId> {
        in_phase!(&self.phase, it => it.backend(), closed => None)
    }

    /// Whether it waits for the name of that backend to be looked up.
    pub fn is_looking_up(&self) -> bool {
        in_phase!(&self.phase, it => it.is_looking_up(), closed => false)
    }

    /// When it last handled a message, or was opened.
    pub fn active_at(&self) -> Moment {
        in_phase!(&self.phase, it => it.active_at(), closed => None).unwrap_or(self.who.opened)
    }

    /// Bytes in memory that wait for a peer to take them.
    pub fn held_bytes(&self) -> usize {
        in_phase!(&self.phase, it => it.held_bytes(), closed => 0)
    }

    /// An event of one of its sockets. It is acted on by the next [`Session::drive`].
    pub fn handle_ready(&mut self, side: Side, ready: Ready) {
        match side {
            Side::Downstream => self.downstream.handle_ready(ready),
            Side::Upstream => {
                in_phase!(&mut self.phase, it => it.handle_ready(ready), closed => ())
            }
        }
    }

    /// Does all that can be done now. Called by `Gateway::drive` alone.
    pub fn drive(&mut self, cx: &mut Context) -> Driven {
        let driven = self.step(cx);
        // The flows of a relay charge what they hold themselves, so that a relayed message costs
        // nothing here.
        if self.own_bytes > 0 || !matches!(self.phase, Phase::Relay(_)) {
            self.recharge(cx);
        }
        driven
    }

    fn step(&mut self, cx: &mut Context) -> Driven {
        loop {
            if let Phase::Relay(relay) = &mut self.phase {
                match relay.advance(&mut self.downstream, &mut self.who, cx) {
                    Advanced::Wait => return Driven::Wait,
                    Advanced::Yield => return Driven::Yield,
                    Advanced::Again => continue,
                    Advanced::Over => {}
                }
            }
            let phase = std::mem::replace(&mut self.phase, Phase::Closed);
            let step = in_phase!(
                phase,
                it => it.step(&mut self.downstream, &mut self.who, cx),
                closed => return Driven::Closed
            );
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
                Step::NextRequest(held, kept) => {
                    // The next request may be for another route, or for none.
                    self.who.route = None;
                    let is_here = !held.is_empty() || self.downstream.is_readable();
                    self.phase = request::Request::following(held, kept, cx);
                    if is_here {
                        // One response a turn, however many requests are pipelined.
                        return Driven::Yield;
                    }
                }
                Step::Ask(question) => return Driven::Ask(question),
                Step::End(ended) => self.end(ended, cx),
                Step::Over(ended) => {
                    self.record(&ended, cx);
                    self.phase = Phase::Closed;
                }
            }
        }
    }

    /// The one place where a session ends: first the last bytes to the client, then its closing
    /// line and its count.
    fn end(&mut self, ended: Box<Ended>, cx: &mut Context) {
        ended.count_not_open(&self.who, cx);
        self.phase = match ended.last {
            // A transport that buffers may still hold the last bytes of an earlier answer.
            Last::Nothing if self.downstream.is_output_held() => linger::Linger::phase(ended, cx),
            Last::Nothing | Last::Dropped => {
                self.record(&ended, cx);
                Phase::Closed
            }
            Last::Frames(_) | Last::Answer(_) | Last::Fin(_) => linger::Linger::phase(ended, cx),
        };
    }

    fn record(&mut self, ended: &Ended, cx: &mut Context) {
        ended.record(&self.who, cx);
        story::log(ended, &self.who, cx);
        self.who.forget_recent(cx);
    }

    /// Remembers nothing of what happened so far: the log has it, or is to have it from now on.
    pub fn forget_recent(&mut self, cx: &mut Context) {
        self.who.forget_recent(cx);
    }

    /// The answer to what [`Driven::Ask`] asked comes later.
    pub fn await_answer(&mut self, cx: &Context) {
        self.phase = respond::Respond::awaiting(cx);
    }

    /// Whether the answer is still to come.
    pub fn is_awaiting_answer(&self) -> bool {
        matches!(&self.phase, Phase::Respond(respond) if respond.is_awaiting())
    }

    /// The answer to what [`Driven::Ask`] asked; the session has to be driven again.
    pub fn answer(&mut self, asked: respond::Asked, response: http::Response, cx: &mut Context) {
        self.phase = respond::Respond::answer(asked, response, &self.who, cx);
    }

    /// The settings have changed. Acted on by the next [`Session::drive`].
    pub fn reload(&mut self, now: Moment) {
        in_phase!(&mut self.phase, it => it.reload(now), closed => ());
    }

    /// When it must be driven even if nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        in_phase!(&self.phase, it => it.deadline(), closed => None)
    }

    /// The gateway is about to stop. Acted on by the next [`Session::drive`].
    pub fn drain(&mut self, drain: Drain, cx: &mut Context) {
        in_phase!(&mut self.phase, it => it.drain(drain, &self.who, cx), closed => ());
    }

    /// Gives back what it shares with others, before its slot is freed.
    pub fn release(&mut self, cx: &mut Context) {
        if self.who.admission == Admission::Client {
            cx.limits.release(self.who.counted());
        }
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        self.recharge(cx);
        self.set_kernel_pages(0, cx);
        let was_lingering = matches!(phase, Phase::Linger(_));
        let ended = in_phase!(phase, it => it.release(&self.who, cx), closed => return);
        if !was_lingering {
            ended.count_not_open(&self.who, cx);
        }
        self.record(&ended, cx);
    }
}

/// Evaluates an expression with `$it` as the [`State`] inside a [`Phase`], or another one where it
/// is closed.
macro_rules! in_phase {
    ($phase:expr, $it:ident => $of_state:expr, closed => $of_closed:expr) => {
        match $phase {
            Phase::Accept($it) => $of_state,
            Phase::Request($it) => $of_state,
            Phase::Body($it) => $of_state,
            Phase::Download($it) => $of_state,
            Phase::Files($it) => $of_state,
            Phase::Respond($it) => $of_state,
            Phase::Dial($it) => $of_state,
            Phase::Forward($it) => $of_state,
            Phase::Relay($it) => $of_state,
            Phase::Output($it) => $of_state,
            Phase::Inbox($it) => $of_state,
            Phase::Ingest($it) => $of_state,
            Phase::Linger($it) => $of_state,
            Phase::Closed => $of_closed,
        }
    };
}
use in_phase;

#[cfg(test)]
mod tests {
    use super::*;

    /// `mio` adds a word to each socket in a debug build.
    const DEBUG: usize = if cfg!(debug_assertions) { 8 } else { 0 };

    /// An idle relayed pair is a [`Session`] and a [`relay::Relay`], eight bytes that the allocator
    /// adds, and nine of timers: under 400 bytes, with a share in what the process takes once.
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Session>() <= 104 + DEBUG);
        assert!(size_of::<relay::Relay>() <= 216 + DEBUG);
        assert!(size_of::<flow::Flow>() <= 80);
        assert!(size_of::<output::Output>() <= 104);
    }
}
