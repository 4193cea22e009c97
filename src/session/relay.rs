//! Two flows between a client and a backend, until both have ended.
//!
//! A [`Flow`] knows one direction. What takes both is decided here: whom to ping, when to give a
//! side up, how long an ending may take. None of it is on the path of a message: while neither flow
//! has news, a step is two pumps and one comparison with a deadline that is already known. That
//! deadline may be early, never late, so it is computed again only when it has passed or an ending
//! begins.

use super::alive::{Alive, Verdict};
use super::flow::{Flow, Pumped};
use super::linger::linger_timeout;
use super::recent::QUIET_MIN;
use super::stall::Stall;
use super::transcript::{Event, note_step};
use super::{
    Activity, CloseReason, Closing, Context, Detail, Drain, Ended, Identity, Phase, State, Step,
};
use crate::base::moment::{CoarseMoment, Moment};
use crate::base::quoted::Quoted;
use crate::net::{Conn, Ready, Side};
use crate::proto::ws;
use crate::service::stats::BothWays;
use crate::service::upstreams::UpstreamId;
use log::info;
use std::time::Duration;

/// Once a side is gone, or the gateway has sent a Close frame: silence for this long ends the
/// session.
const QUIET_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for the answer of one side to the other's Close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A relayed WebSocket.
pub struct Relay {
    upstream: Conn,
    backend: UpstreamId,
    up: Flow,
    down: Flow,
    /// When the last message, or a part of one, was relayed, and whose it was.
    message_at: Moment,
    message_from: Side,
    /// The last message of the other side.
    other_message_at: CoarseMoment,
    pings_sent: u16,
    pongs_received: u16,
    /// To end as soon as no message is half sent.
    is_draining: bool,
    /// `None` in an idle relay, and in one whose sides keep up.
    rare: Option<Box<RareState>>,
    wake_at: Option<Moment>,
}

/// What a relay needs only while a side is slow, or while it ends.
#[derive(Default)]
struct RareState {
    /// What began the end.
    ending: Option<Ending>,
    /// Bytes wait for the backend, or for the client.
    to_backend: Option<Stall>,
    to_client: Option<Stall>,
}

#[derive(Clone, Copy)]
struct Ending {
    reason: CloseReason,
    began_at: Moment,
    activity: Activity,
    /// One side's Close frame was passed on; the other side's is still to come.
    awaits_close: bool,
    /// When to look again at sides that still have bytes to take.
    look_at: Option<Moment>,
}

/// What came along with the handshake.
pub struct Early<'b> {
    /// The backend's answer, as it goes to the client.
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
        cx.limit_buffers(&mut upstream);
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
            message_from: Side::Downstream,
            other_message_at: cx.now.coarse(),
            pings_sent: 0,
            pongs_received: 0,
            is_draining: false,
            rare: None,
            wake_at: None,
        });
        if let Some(reason) = pumped.ending {
            relay.begin_ending(reason, cx);
        }
        for side in [Side::Upstream, Side::Downstream] {
            // What came with the handshake has to be taken in time like everything that follows.
            if relay.flows_of(side).1.is_blocked() {
                relay.set_stall(side, Some(Stall::new(cx.now)));
            }
        }
        relay.wake_at = relay.next_deadline(cx);
        if cx.black_box.learned.is_some() {
            relay.wake_at = Some(cx.now);
        }
        Phase::Relay(relay)
    }

    /// Gives back what it shared. Returns how it ended, with `unended` as the reason where nothing
    /// had begun the end.
    fn end(self: Box<Self>, unended: CloseReason, cx: &mut Context) -> Box<Ended> {
        cx.upstreams.left(self.backend);
        let reason = self.ending().map_or(unended, |ending| ending.reason);
        let activity = self.ending().map_or(self.activity(cx.now), |ending| ending.activity);
        let mut ended = Ended::new(reason, Detail::Relay);
        ended.traffic = BothWays { from_client: self.up.traffic(), to_client: self.down.traffic() };
        ended.backend = Some(self.backend);
        ended.activity = Activity {
            pings_sent: self.pings_sent,
            pongs_received: self.pongs_received,
            ..activity
        };
        let closings = |from: &Flow, to: &Flow, is_first| match (to.sent_close(), is_first) {
            (Some(code), false) => Closing::Received(code),
            _ => from.passed_close().map_or(Closing::None, Closing::Sent),
        };
        // A side that is gone has seen nothing of what was sent to it since.
        ended.client_close = match reason {
            CloseReason::ClientVanished
            | CloseReason::ClientSilent
            | CloseReason::ClientStalled => Closing::None,
            _ => closings(&self.up, &self.down, reason == CloseReason::ClientClosed),
        };
        ended.backend_close = match reason {
            CloseReason::BackendVanished
            | CloseReason::BackendSilent
            | CloseReason::BackendStalled => Closing::None,
            _ => closings(&self.down, &self.up, reason == CloseReason::BackendClosed),
        };
        ended
    }

    /// What the sides are doing at the moment.
    fn activity(&self, now: Moment) -> Activity {
        let (last, other) = (now - self.message_at, self.other_message_at.age(now));
        let (client_idle, backend_idle) = match self.message_from {
            Side::Downstream => (Some(last), Some(other)),
            Side::Upstream => (Some(other), Some(last)),
        };
        let flows = [&self.up, &self.down];
        let is_unfinished =
            flows.iter().any(|flow| !flow.is_between_messages() || flow.is_blocked());
        Activity { client_idle, backend_idle, is_unfinished, ..Activity::default() }
    }

    /// Messages, or parts of them, came from one side or both.
    #[inline]
    fn note_messages(&mut self, up: &Pumped, down: &Pumped, now: Moment) {
        if up.message || down.message {
            let from = if up.message { Side::Downstream } else { Side::Upstream };
            if from != self.message_from {
                self.other_message_at = self.message_at.coarse();
            }
            if up.message && down.message {
                self.other_message_at = now.coarse();
            }
            (self.message_at, self.message_from) = (now, from);
        }
    }

    /// Both Close frames have been passed, so nothing follows: the gateway ends its side towards
    /// the client, as a server does (RFC 6455, section 7.1.1). True: it has just begun to.
    fn finish_after_closes(&mut self) -> bool {
        if !self.has_both_closes() {
            return false;
        }
        let rare = self.rare.get_or_insert_default();
        match &mut rare.ending {
            Some(ending) if ending.awaits_close => ending.awaits_close = false,
            _ => return false,
        }
        self.down.finish_after_close();
        true
    }

    fn has_both_closes(&self) -> bool {
        self.up.passed_close().is_some() && self.down.passed_close().is_some()
    }

    /// Nothing is left to be done: both sides have ended, or, after both Close frames, the backend
    /// has and the client has been sent FIN. A client need not end its side of the TCP connection.
    fn is_finished(&self) -> bool {
        let is_closed = || {
            self.has_both_closes()
                && self.down.has_sent_fin()
                && self.down.is_source_over()
                && !self.up.is_blocked()
        };
        self.up.is_finished() && self.down.is_finished() || is_closed()
    }

    /// Sends a Close frame to both sides, behind the frames that have begun. Both at once, since a
    /// backend that reads one does not finish what it is sending.
    fn say_goodbye(&mut self, reason: CloseReason) {
        self.up.say_goodbye(reason);
        self.down.say_goodbye(reason);
    }

    fn handle_news(&mut self, pumped: Pumped, to: Side, cx: &mut Context) {
        if pumped.pinged {
            self.flows_of(to).0.note_pinged(cx.now);
            self.pings_sent = self.pings_sent.saturating_add(1);
        }
        if pumped.ponged {
            self.pongs_received = self.pongs_received.saturating_add(1);
        }
        let (other, flow) = self.flows_of(to);
        if pumped.sink_alive {
            other.note_alive(cx.now);
            let is_blocked = flow.is_blocked();
            if !is_blocked {
                // The source is read again from now on, so its silence counts from now on.
                flow.note_alive(cx.now);
            }
            // The side has just taken a byte, or has kept up until now.
            self.set_stall(to, is_blocked.then(|| Stall::new(cx.now)));
        }
        if let Some(reason) = pumped.ending {
            self.begin_ending(reason, cx);
        }
    }

    /// The first reason is the one that is reported. A further one can only shorten the wait.
    fn begin_ending(&mut self, reason: CloseReason, cx: &mut Context) {
        let awaits_close = matches!(reason, CloseReason::ClientClosed | CloseReason::BackendClosed);
        let activity = self.activity(cx.now);
        if matches!(reason, CloseReason::ClientMessageTooBig | CloseReason::BackendMessageTooBig) {
            self.say_goodbye(reason);
        }
        match &mut self.rare.get_or_insert_default().ending {
            Some(ending) => ending.awaits_close &= awaits_close,
            none => {
                let began_at = cx.now;
                *none = Some(Ending { reason, began_at, activity, awaits_close, look_at: None });
            }
        }
    }

    /// What began the end, if something has.
    #[inline]
    fn ending(&self) -> Option<&Ending> {
        self.rare.as_ref()?.ending.as_ref()
    }

    fn stall(&mut self, to: Side) -> &mut Option<Stall> {
        let rare = self.rare.get_or_insert_default();
        match to {
            Side::Upstream => &mut rare.to_backend,
            Side::Downstream => &mut rare.to_client,
        }
    }

    fn set_stall(&mut self, to: Side, stall: Option<Stall>) {
        if stall.is_none() && self.rare.is_none() {
            return;
        }
        *self.stall(to) = stall;
        self.rare.take_if(|rare| {
            rare.ending.is_none() && rare.to_backend.is_none() && rare.to_client.is_none()
        });
    }

    fn handle_deadline(&mut self, downstream: &Conn, who: &Identity, cx: &mut Context) {
        for side in [Side::Downstream, Side::Upstream] {
            self.check_stalled(side, downstream, who, cx);
        }
        if self.ending().is_some() {
            return;
        }
        for side in [Side::Downstream, Side::Upstream] {
            self.check_alive(side, who, cx);
            if self.ending().is_some() {
                return;
            }
        }
        if cx.settings.idle_timeout.is_some_and(|timeout| self.message_at + timeout <= cx.now) {
            self.say_goodbye(CloseReason::IdleTimeout);
            self.begin_ending(CloseReason::IdleTimeout, cx);
        }
    }

    /// Gives up a side that takes no byte, even if it still sends some.
    fn check_stalled(&mut self, side: Side, downstream: &Conn, who: &Identity, cx: &mut Context) {
        if !self.flows_of(side).1.is_blocked() || !self.check_stall(side, downstream, cx) {
            return;
        }
        let reason = match side {
            Side::Downstream => CloseReason::ClientStalled,
            Side::Upstream => CloseReason::BackendStalled,
        };
        note_step(who, cx.now, || Event::Stalled { side });
        self.give_up(side, reason, cx);
    }

    /// Asks the socket, if it is time to. Returns whether a side has taken no byte for too long.
    fn check_stall(&mut self, side: Side, downstream: &Conn, cx: &Context) -> bool {
        let mut stall = self.stall(side).unwrap_or(Stall::new(cx.now));
        let conn = if side == Side::Upstream { &self.upstream } else { downstream };
        let is_over = stall.check_timeout(conn, cx.settings.write_timeout, cx.now);
        *self.stall(side) = Some(stall);
        is_over
    }

    /// Nothing more is sent to a side or expected from it.
    fn give_up(&mut self, side: Side, reason: CloseReason, cx: &mut Context) {
        let (from, to) = self.flows_of(side);
        to.lose_sink();
        from.end_source(reason, &mut Pumped::default());
        self.set_stall(side, None);
        self.begin_ending(reason, cx);
    }

    /// Pings a side that has been silent, gives up one that does not answer.
    fn check_alive(&mut self, side: Side, who: &Identity, cx: &mut Context) {
        let Some(alive) = self.alive(side) else { return };
        let (from, to) = self.flows_of(side);
        if !from.is_source_open() {
            return;
        }
        match alive.verdict(&cx.settings, cx.now) {
            Verdict::Fine => {}
            Verdict::Ping => to.ask_ping(),
            Verdict::Gone => {
                let reason = match side {
                    Side::Downstream => CloseReason::ClientSilent,
                    Side::Upstream => CloseReason::BackendSilent,
                };
                note_step(who, cx.now, || Event::Silent { side, silence: cx.now - alive.heard_at });
                self.give_up(side, reason, cx);
            }
        }
    }

    /// What is known of a side; `None` while its silence proves nothing.
    ///
    /// `from` is the flow whose source the side is, `to` the one whose sink it is. A flow that is
    /// blocked does not read its source (*Not reading is the backpressure*), so bytes from a side
    /// prove it alive only while `from` is not blocked.
    fn alive(&self, side: Side) -> Option<Alive> {
        let (from, to) = match side {
            Side::Downstream => (&self.up, &self.down),
            Side::Upstream => (&self.down, &self.up),
        };
        let (heard_at, is_pinged) = match (from.is_blocked(), to.is_blocked()) {
            // The gateway does not read it because the OTHER side is slow. Judging this one would
            // close a healthy client because of a stuck backend; the stuck one is judged by its own
            // flow.
            (true, false) => return None,
            // Both are full: each side waits for the other to read, and the gateway reads neither.
            // They are alive as long as one of them takes bytes, or a large exchange in both
            // directions would end after `ping_interval + ping_timeout` although it makes progress.
            (true, true) if to.heard_at() > from.heard_at() => (to.heard_at(), false),
            _ => (from.heard_at(), from.is_pinged()),
        };
        // A ping to this side needs a boundary in `to`. Where both frames are unfinished, each side
        // may be waiting for the other's rest and the boundary may never come, so the side counts
        // as one that cannot be pinged, and the timeout runs without a ping. Otherwise two sides
        // that both stopped in the middle of a frame would be kept forever.
        let is_blocked = to.is_blocked() || (!to.is_at_boundary() && !from.is_at_boundary());
        Some(Alive { heard_at, is_pinged, is_blocked })
    }

    /// The flow from `side` and the one to it.
    fn flows_of(&mut self, side: Side) -> (&mut Flow, &mut Flow) {
        match side {
            Side::Downstream => (&mut self.up, &mut self.down),
            Side::Upstream => (&mut self.down, &mut self.up),
        }
    }

    /// Looks whether the sides still take what they were sent. Returns whether the relay has waited
    /// long enough for its end. It waits for a side that takes bytes however long that lasts:
    /// closing its socket could destroy the rest.
    fn check_ending(&mut self, downstream: &mut Conn, cx: &Context) -> bool {
        let is_quiet = self.ending_deadline().is_some_and(|at| at <= cx.now);
        let mut look_at = None;
        if is_quiet {
            for side in [Side::Downstream, Side::Upstream] {
                if self.check_taking(side, downstream, cx) {
                    look_at = self.stall(side).and_then(|stall| stall.deadline(linger_timeout(cx)));
                }
            }
        }
        if let Some(ending) = self.rare.as_mut().and_then(|rare| rare.ending.as_mut()) {
            ending.look_at = look_at;
        }
        is_quiet && look_at.is_none()
    }

    /// Returns whether a side has bytes to take, and has taken some lately. Gives up one that was
    /// reset.
    fn check_taking(&mut self, side: Side, downstream: &mut Conn, cx: &Context) -> bool {
        let (_, to) = self.flows_of(side);
        let (is_blocked, is_settling) = (to.is_blocked(), to.is_sink_settling());
        let conn = if side == Side::Upstream { &mut self.upstream } else { &mut *downstream };
        let is_owed = is_blocked || is_settling && conn.unacknowledged().is_some_and(|n| n > 0);
        // With an RST behind its FIN the kernel dropped what the side has not acknowledged, and
        // counts it as unacknowledged forever.
        if is_owed && conn.is_reset() {
            self.flows_of(side).1.lose_sink();
            return false;
        }
        let mut stall = self.stall(side).unwrap_or(Stall::new(cx.now));
        let conn = if side == Side::Upstream { &self.upstream } else { downstream };
        let is_taking = is_owed && !stall.check_timeout(conn, linger_timeout(cx), cx.now);
        *self.stall(side) = Some(stall);
        is_taking
    }

    /// When the end is no longer waited for, unless a side still takes what it was sent. Bytes that
    /// are relayed or taken put it off; bytes that are discarded do not.
    fn ending_deadline(&self) -> Option<Moment> {
        let rare = self.rare.as_ref()?;
        let ending = rare.ending.as_ref()?;
        let timeout = if ending.awaits_close { CLOSE_TIMEOUT } else { QUIET_TIMEOUT };
        let stalls = [rare.to_backend, rare.to_client];
        let progress_at = stalls.into_iter().flatten().filter_map(|stall| stall.progress_at());
        let heard_at = self.up.heard_at().max(self.down.heard_at()).max(ending.began_at);
        Some(progress_at.fold(heard_at, Moment::max) + timeout)
    }

    fn next_deadline(&self, cx: &Context) -> Option<Moment> {
        let stalled_at = self.rare.as_ref().and_then(|rare| {
            let to_client = rare.to_client.filter(|_| self.down.is_blocked());
            let to_backend = rare.to_backend.filter(|_| self.up.is_blocked());
            let stalls = [to_client, to_backend].into_iter().flatten();
            stalls.filter_map(|stall| stall.deadline(cx.settings.write_timeout)).min()
        });
        if let Some(ending) = self.ending() {
            let ending_at = ending.look_at.or_else(|| self.ending_deadline());
            return ending_at.into_iter().chain(stalled_at).min();
        }
        let deadline = |alive: Alive| alive.deadline(&cx.settings, cx.now);
        [
            self.alive(Side::Downstream).and_then(deadline),
            self.alive(Side::Upstream).and_then(deadline),
            cx.settings.idle_timeout.map(|timeout| self.message_at + timeout),
            stalled_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The task's id has been read from a message of the backend.
#[cold]
fn note_learned(who: &mut Identity, cx: &mut Context) {
    if let Some(task) = cx.black_box.learned.take() {
        who.note_task_id(Some(&task));
        info!(target: "relay", "{who} = task learned task={}", Quoted(task));
    }
}

/// What follows [`Relay::advance`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advanced {
    /// Nothing to do until an event or the deadline.
    Wait,
    /// More could be done, but other sessions have their turn first.
    Yield,
    /// To be called again at once.
    Again,
    /// It is over: [`State::step`] ends it.
    Over,
}

impl Relay {
    /// Does all that can be done now. In place, because moving the phase out of the session and
    /// back costs more than a message needs otherwise.
    pub(super) fn advance(
        &mut self,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Advanced {
        let mut up = Pumped::default();
        let mut down = Pumped::default();
        if !self.up.is_quiet(downstream) {
            up = self.up.pump(downstream, &mut self.upstream, who, cx);
        }
        if !self.down.is_quiet(&self.upstream) {
            down = self.down.pump(&mut self.upstream, downstream, who, cx);
        }
        self.note_messages(&up, &down, cx.now);
        let has_news = up.has_news() || down.has_news();
        if has_news {
            self.handle_news(up, Side::Upstream, cx);
            self.handle_news(down, Side::Downstream, cx);
        }
        // Judged after reading: what a side sent in time may have waited in its socket.
        let is_due = self.wake_at.is_some_and(|at| at <= cx.now);
        if is_due {
            note_learned(who, cx);
            who.count_recent();
            if self.ending().is_none() && self.message_at + QUIET_MIN <= cx.now {
                who.forget_recent(cx);
            }
            self.handle_deadline(downstream, who, cx);
        }
        let mut is_fin_due = false;
        if self.ending().is_some() {
            is_fin_due = self.finish_after_closes();
            if self.is_finished() || (is_due && self.check_ending(downstream, cx)) {
                note_learned(who, cx);
                return Advanced::Over;
            }
        }
        if has_news || is_due {
            self.wake_at = self.next_deadline(cx);
        }
        let has_more = has_news && (self.up.has_own() || self.down.has_own())
            || is_due && !(self.up.is_quiet(downstream) && self.down.is_quiet(&self.upstream));
        let is_drained = self.is_draining
            && self.ending().is_none()
            && self.up.is_between_messages()
            && self.down.is_between_messages();
        if is_drained {
            self.is_draining = false;
            self.say_goodbye(CloseReason::Draining);
        }
        if has_more || is_drained || is_fin_due {
            // A Close frame, a ping or a FIN became due in a flow that was pumped before, and no
            // event will come for it.
            return Advanced::Again;
        }
        if up.more || down.more {
            note_learned(who, cx);
            Advanced::Yield
        } else {
            Advanced::Wait
        }
    }
}

impl State for Relay {
    /// Only its end: everything before is [`Relay::advance`].
    fn step(self: Box<Self>, _: &mut Conn, _: &mut Identity, cx: &mut Context) -> Step {
        Step::End(self.end(CloseReason::Done, cx))
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    /// 1012 as soon as no message is in flight either way, or, when the time is over, behind the
    /// frames.
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
        if self.ending().is_some() { "closing" } else { "open" }
    }

    fn held_bytes(&self) -> usize {
        self.up.backlog_bytes() + self.down.backlog_bytes()
    }

    /// The flows charge what they hold.
    fn own_bytes(&self) -> usize {
        0
    }

    fn charged_bytes(&self) -> usize {
        self.up.charged_bytes() + self.down.charged_bytes()
    }

    fn upstream(&mut self) -> Option<&mut Conn> {
        Some(&mut self.upstream)
    }

    fn farewell(&self, reason: CloseReason) -> Option<Vec<u8>> {
        let can_close =
            self.down.is_open() && self.down.is_at_boundary() && !self.down.is_blocked();
        let code = reason.close_code(Side::Downstream);
        can_close.then(|| ws::close_frame(code, reason.phrase(), None))
    }

    fn leave_backend(&mut self, reason: CloseReason, cx: &mut Context) {
        if self.up.is_open() && self.up.is_at_boundary() && !self.up.is_blocked() {
            let mask = Some(cx.chance.u32(..).to_ne_bytes());
            let code = reason.close_code(Side::Upstream);
            // The connection ends in any case.
            let _ = self.upstream.write(&ws::close_frame(code, reason.phrase(), mask));
        }
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
        self.sink_alive | self.pinged | self.ponged | self.ending.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ready, Socket, Transport};
    use crate::service::url::BackendUrl;
    use crate::session::Settings;
    use crate::session::testing::context;
    use std::io::{self, ErrorKind, Read, Write};
    use std::time::Duration;

    /// A peer that sends nothing and takes this many bytes.
    struct SilentPeer(usize);

    impl Read for SilentPeer {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
    }

    impl Write for SilentPeer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.0) {
                0 => Err(ErrorKind::WouldBlock.into()),
                taken => {
                    self.0 -= taken;
                    Ok(taken)
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for SilentPeer {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn conn(room: usize) -> Conn {
        Conn::accepted(Socket::Other(Box::new(SilentPeer(room))))
    }

    /// A peer that has not acknowledged everything. It may have sent an RST behind its FIN.
    struct Owing {
        is_reset: bool,
    }

    impl Read for Owing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    impl Write for Owing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for Owing {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn unacknowledged(&self) -> Option<usize> {
            Some(1000)
        }
        fn connect_outcome(&mut self) -> io::Result<()> {
            if self.is_reset { Err(ErrorKind::ConnectionReset.into()) } else { Ok(()) }
        }
    }

    #[test]
    fn side_that_was_reset_behind_its_fin_is_not_waited_for() {
        let mut cx = context(Settings { ping_interval: None, ..Settings::default() });
        for (is_reset, waits_for_acknowledgements) in [(false, true), (true, false)] {
            let (mut who, began_at) = (Identity::of_client(), cx.now);
            let backend = cx.upstreams.intern(&BackendUrl::parse("ws://192.0.2.1:1/").unwrap());
            cx.upstreams.connecting(backend, crate::service::upstreams::Purpose::Client);
            let mut client = Conn::accepted(Socket::Other(Box::new(Owing { is_reset })));
            // The backend has sent its Close frame, and never ends its side.
            let reply = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
            let early = Early { reply, from_client: b"", from_backend: b"\x88\0" };
            let phase = Relay::phase(conn(1000), backend, early, &mut client, &who, &mut cx);
            let Phase::Relay(mut relay) = phase else { panic!("another phase") };
            loop {
                client.handle_ready(Ready {
                    readable: true,
                    read_closed: true,
                    ..Ready::default()
                });
                if relay.advance(&mut client, &mut who, &mut cx) == Advanced::Over {
                    break;
                }
                cx.now = cx.now.max(relay.deadline().expect("it has a deadline"));
            }
            let waited = cx.now - began_at;
            assert_eq!(waited > CLOSE_TIMEOUT, waits_for_acknowledgements, "{waited:?}");
        }
    }

    #[test]
    fn what_came_with_the_handshake_has_to_be_taken_in_time() {
        const WRITE_TIMEOUT: Duration = Duration::from_secs(16);
        let settings = Settings {
            write_timeout: Some(WRITE_TIMEOUT),
            ping_interval: None,
            ..Settings::default()
        };
        let mut cx = context(settings);
        let url = BackendUrl::parse("ws://192.0.2.1:1/").unwrap();
        let backend = cx.upstreams.intern(&url);
        // Of the reply, of what follows it, of what goes to the backend: nothing, and a part.
        for (to_client, to_backend) in [(0, 1000), (30, 1000), (1000, 0), (1000, 5)] {
            let mut who = Identity::of_client();
            cx.now = Moment::START;
            cx.upstreams.connecting(backend, crate::service::upstreams::Purpose::Client);
            let early = Early {
                reply: b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
                from_client: b"\x81\x85\0\0\0\0early",
                from_backend: b"\x81\x05early",
            };
            let mut client = conn(to_client);
            let phase = Relay::phase(conn(to_backend), backend, early, &mut client, &who, &mut cx);
            let Phase::Relay(mut relay) = phase else { panic!("another phase") };
            // The sockets were full from the beginning: no event comes, only time passes.
            let is_over = (0..100).any(|_| {
                let is_over = relay.advance(&mut client, &mut who, &mut cx) == Advanced::Over;
                if !is_over {
                    cx.now = cx.now.max(relay.deadline().expect("it has a deadline"));
                }
                is_over
            });
            assert!(is_over, "{to_client} {to_backend}");
            assert!(cx.now <= Moment::START + 2 * WRITE_TIMEOUT, "{:?}", cx.now);
        }
    }
}
