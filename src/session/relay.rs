//! Two flows between a client and a backend, until both have ended.
//!
//! A [`Flow`] knows one direction; what takes both is decided here: who is pinged, when a side is given up, how long an
//! ending may take. None of it is on the path of a message: as long as neither flow has news, a step is two pumps and one
//! look at a deadline that is already known. That deadline may be early, never late, so it is only worked out again when it
//! has passed or an ending begins.

use super::alive::{Alive, Verdict};
use super::flow::{Flow, Pumped};
use super::transcript::{Event, note};
use super::{CloseReason, Context, Detail, Drain, Ended, Identity, Last, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Ready, Side};
use crate::service::stats::BothWays;
use crate::service::upstreams::UpstreamId;
use std::time::Duration;

/// Once a side is gone, or a Close frame of ours is out, silence for so long ends the session.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);

/// Once one side has sent a Close frame, the other may take so long to answer it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A relayed WebSocket.
pub struct Relay {
    upstream: Conn,
    backend: UpstreamId,
    up: Flow,
    down: Flow,
    /// When the last message, or a part of one, was relayed.
    message_at: Moment,
    /// It is to end, once no message is in flight.
    is_draining: bool,
    /// What began the end.
    ending: Option<Ending>,
    wake_at: Option<Moment>,
}

#[derive(Clone, Copy)]
struct Ending {
    reason: CloseReason,
    began_at: Moment,
    /// A Close frame of one side is out, and the other's answer is waited for.
    awaits_close: bool,
}

/// What came along with the handshake.
pub struct Early<'b> {
    /// The backend's answer, as the client is to get it.
    pub reply: &'b [u8],
    /// What the client sent behind its request.
    pub from_client: &'b [u8],
    /// What the backend sent behind its answer.
    pub from_backend: &'b [u8],
}

impl Relay {
    /// A relay over `upstream`, whose handshake is done.
    pub fn phase(
        mut upstream: Conn,
        backend: UpstreamId,
        early: Early<'_>,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Phase {
        let mut up = Flow::new(Side::Upstream, &[], cx);
        let mut down = Flow::new(Side::Downstream, early.reply, cx);
        let mut pumped = Pumped::default();
        up.handle_bytes(early.from_client, &mut upstream, who, cx, &mut pumped);
        down.handle_bytes(early.from_backend, downstream, who, cx, &mut pumped);
        let mut relay = Box::new(Relay {
            upstream,
            backend,
            up,
            down,
            message_at: cx.now,
            is_draining: false,
            ending: None,
            wake_at: None,
        });
        if let Some(reason) = pumped.ending {
            relay.begin_ending(reason, cx);
        }
        relay.wake_at = relay.next_deadline(cx);
        Phase::Relay(relay)
    }

    /// Gives back what it shared. Returns how it ended; `unended` is the reason where nothing had begun the end.
    fn end(self: Box<Self>, unended: CloseReason, cx: &mut Context) -> Box<Ended> {
        cx.upstreams.left(self.backend);
        let reason = self.ending.map_or(unended, |ending| ending.reason);
        let traffic = BothWays { from_client: self.up.traffic(), to_client: self.down.traffic() };
        let code = match reason {
            CloseReason::ClientClosed => self.up.close_code(),
            CloseReason::BackendClosed => self.down.close_code(),
            CloseReason::ClientVanished | CloseReason::ClientSilent => None,
            reason => Some(reason.close_code(Side::Downstream)),
        };
        Box::new(Ended { reason, code, traffic, detail: Detail::Relay, last: Last::Nothing })
    }

    /// Sends 1012 behind the frames that have begun, to both sides at once: a backend that reads a Close frame does not finish
    /// what it is sending.
    fn say_goodbye(&mut self, reason: CloseReason) {
        self.up.say_goodbye(reason);
        self.down.say_goodbye(reason);
    }

    fn handle_news(&mut self, pumped: Pumped, to: Side, cx: &mut Context) {
        let (other, flow) = self.flows_of(to);
        if pumped.sink_alive {
            other.note_alive(cx.now);
            if !flow.is_blocked() {
                // From here on the source is listened to again, and only from here on its silence counts.
                flow.note_alive(cx.now);
            }
        }
        if pumped.pinged {
            other.note_pinged(cx.now);
        }
        if let Some(reason) = pumped.ending {
            self.begin_ending(reason, cx);
        }
    }

    /// The first reason is the one that is told; each further one may only shorten the wait.
    fn begin_ending(&mut self, reason: CloseReason, cx: &mut Context) {
        let awaits_close = matches!(reason, CloseReason::ClientClosed | CloseReason::BackendClosed);
        if matches!(reason, CloseReason::ClientMessageTooBig | CloseReason::BackendMessageTooBig) {
            self.say_goodbye(reason);
        }
        match &mut self.ending {
            None => self.ending = Some(Ending { reason, began_at: cx.now, awaits_close }),
            Some(ending) => ending.awaits_close &= awaits_close,
        }
    }

    fn handle_deadline(&mut self, who: &Identity, cx: &mut Context) {
        if self.ending.is_some() {
            return;
        }
        for side in [Side::Downstream, Side::Upstream] {
            self.check_alive(side, who, cx);
            if self.ending.is_some() {
                return;
            }
        }
        if cx.settings.idle_timeout.is_some_and(|timeout| self.message_at + timeout <= cx.now) {
            self.say_goodbye(CloseReason::IdleTimeout);
            self.begin_ending(CloseReason::IdleTimeout, cx);
        }
    }

    /// Pings a side that has been silent, gives up one that is dead to everything.
    fn check_alive(&mut self, side: Side, who: &Identity, cx: &mut Context) {
        let Some(alive) = self.alive(side) else { return };
        let (from, to) = self.flows_of(side);
        if !from.is_source_talking() {
            return;
        }
        match alive.verdict(cx) {
            Verdict::Fine => {}
            Verdict::Ping => to.ask_ping(),
            Verdict::Gone => {
                let reason = match side {
                    Side::Downstream => CloseReason::ClientSilent,
                    Side::Upstream => CloseReason::BackendSilent,
                };
                note(who, || Event::Silent { side, silence: cx.now - alive.heard_at });
                to.lose_sink();
                from.end_source(reason, &mut Pumped::default());
                self.begin_ending(reason, cx);
            }
        }
    }

    /// What is known of a side. `None`: its silence says nothing, because what it says waits for the other side.
    fn alive(&self, side: Side) -> Option<Alive> {
        let (from, to) = match side {
            Side::Downstream => (&self.up, &self.down),
            Side::Upstream => (&self.down, &self.up),
        };
        let (heard_at, is_pinged) = match (from.is_blocked(), to.is_blocked()) {
            (true, false) => return None,
            // Two that wait for each other are alive as long as one of them moves.
            (true, true) if to.heard_at() > from.heard_at() => (to.heard_at(), false),
            _ => (from.heard_at(), from.is_pinged()),
        };
        // Where neither has finished its frame, there may never be a place for a ping.
        let is_blocked = to.is_blocked() || !to.is_at_boundary() && !from.is_at_boundary();
        Some(Alive { heard_at, is_pinged, is_blocked })
    }

    /// The flow from `side` and the one to it.
    fn flows_of(&mut self, side: Side) -> (&mut Flow, &mut Flow) {
        match side {
            Side::Downstream => (&mut self.up, &mut self.down),
            Side::Upstream => (&mut self.down, &mut self.up),
        }
    }

    fn has_lingered(&self, cx: &Context) -> bool {
        self.linger_deadline().is_some_and(|at| at <= cx.now)
    }

    /// Bytes that are still relayed put it off; bytes that are thrown away do not.
    fn linger_deadline(&self) -> Option<Moment> {
        let ending = self.ending?;
        let timeout = if ending.awaits_close { CLOSE_TIMEOUT } else { LINGER_TIMEOUT };
        Some(ending.began_at.max(self.up.heard_at()).max(self.down.heard_at()) + timeout)
    }

    fn next_deadline(&self, cx: &Context) -> Option<Moment> {
        if self.ending.is_some() {
            return self.linger_deadline();
        }
        [
            self.alive(Side::Downstream).and_then(|alive| alive.deadline(cx)),
            self.alive(Side::Upstream).and_then(|alive| alive.deadline(cx)),
            cx.settings.idle_timeout.map(|timeout| self.message_at + timeout),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl State for Relay {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.wake_at.is_some_and(|at| at <= cx.now) {
            self.handle_deadline(who, cx);
            if self.has_lingered(cx) {
                return Step::End(self.end(CloseReason::Done, cx));
            }
            self.wake_at = self.next_deadline(cx);
        }
        let mut up = Pumped::default();
        let mut down = Pumped::default();
        if !self.up.is_quiet(downstream) {
            up = self.up.pump(downstream, &mut self.upstream, who, cx);
        }
        if !self.down.is_quiet(&self.upstream) {
            down = self.down.pump(&mut self.upstream, downstream, who, cx);
        }
        if up.message || down.message {
            self.message_at = cx.now;
        }
        let has_news = up.has_news() || down.has_news();
        if has_news {
            self.handle_news(up, Side::Upstream, cx);
            self.handle_news(down, Side::Downstream, cx);
        }
        if self.ending.is_some() && self.up.is_finished() && self.down.is_finished() {
            return Step::End(self.end(CloseReason::Done, cx));
        }
        if has_news {
            self.wake_at = self.next_deadline(cx);
        }
        let is_told = has_news && (self.up.is_goodbye_due() || self.down.is_goodbye_due());
        let is_drained = self.is_draining
            && self.ending.is_none()
            && self.up.is_between_messages()
            && self.down.is_between_messages();
        if is_drained {
            self.is_draining = false;
            self.say_goodbye(CloseReason::Draining);
        }
        if is_told || is_drained {
            // What one flow found out, the other has to say: no event will come to remind it.
            return Step::Next(Phase::Relay(self));
        }
        if up.more || down.more {
            Step::Yield(Phase::Relay(self))
        } else {
            Step::Wait(Phase::Relay(self))
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    /// 1012 as soon as no message is in flight either way, or, when the time is over, behind the frames.
    fn drain(&mut self, drain: Drain, _: &Identity, _: &mut Context) {
        match drain {
            Drain::Finish => self.is_draining = true,
            Drain::Leave => {
                self.is_draining = false;
                self.say_goodbye(CloseReason::Draining);
            }
        }
    }

    /// The timeouts may have changed: the next step looks at all of them.
    fn reload(&mut self, now: Moment) {
        self.wake_at = Some(now);
    }

    fn word(&self) -> &'static str {
        if self.ending.is_some() { "closing" } else { "open" }
    }

    fn held_bytes(&self) -> usize {
        self.up.backlog_bytes() + self.down.backlog_bytes()
    }

    fn release(self: Box<Self>, _: &Identity, cx: &mut Context) -> Box<Ended> {
        self.end(CloseReason::Stopped, cx)
    }

    fn traffic(&self) -> Option<BothWays> {
        Some(BothWays { from_client: self.up.traffic(), to_client: self.down.traffic() })
    }

    fn backend(&self) -> Option<UpstreamId> {
        Some(self.backend)
    }

    fn active_at(&self) -> Option<Moment> {
        Some(self.message_at)
    }

    fn handle_ready(&mut self, ready: Ready) {
        self.upstream.handle_ready(ready);
    }
}

impl Pumped {
    fn has_news(&self) -> bool {
        self.sink_alive || self.pinged || self.ending.is_some()
    }
}
