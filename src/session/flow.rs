//! Bytes in one direction, from a source to a sink, frame by frame; written once for both
//! directions.
//!
//! ```text
//! source: Open ── FIN, RST, given up ──► Ended
//! sink:   Open ── Close frame passed ──► Closed ── source ended ──► Finishing ── FIN ──► Finished
//!           ├──── Close frame of the gateway, or source ended ──────────▲                    ▲
//!           └──── a write failed ────────────────────────────────────────────────────────────┘
//! ```
//!
//! Three rules make it a relay. Each has a name, which is in a comment wherever the code relies on
//! it:
//!
//! - *Not reading is the backpressure*: while the backlog holds bytes, the source is not read.
//! - *Boundary*: the gateway sends a frame of its own only between two frames of the source.
//! - *Close is last*: no frame follows a Close frame; what the source sends after it is discarded.
//!
//! A frame head that is cut by the end of a read is held back until the rest of it has arrived. The
//! sink could do nothing with a part of a head, and this way its side is at a boundary more often,
//! and every decision about a frame is made before any of it has left.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]
#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

mod close_seen;
mod learn;
mod payload;
mod stream;

use super::transcript::{Event, note_frame, note_step};
use super::{CloseReason, Context, Identity, SCRATCH_BYTES, tap};
use crate::base::buf::Buf;
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Side};
use crate::proto::http::HEAD_BYTES_LIMIT;
use crate::proto::ws::{self, FrameHead, FrameScanner, Opcode};
use crate::service::stats::Traffic;
use close_seen::CloseSeen;
use payload::Shown;
use stream::{SpliceState, Streamed};

/// Reads in one step; then other sessions have their turn.
const READS_PER_STEP: usize = 16;

/// One read, plus what a handshake may leave behind: a head and early frames, each way.
const BACKLOG_BYTES_MAX: usize = SCRATCH_BYTES + 4 * HEAD_BYTES_LIMIT;

/// One direction of a relay. What an idle flow does not need is behind a pointer.
pub struct Flow {
    to: Side,
    source: SourceState,
    sink: SinkState,
    /// A Close frame of the gateway with this reason is due at the next boundary.
    goodbye: Option<CloseReason>,
    is_ping_due: bool,
    pinged: Pinged,
    /// Between the fragments of a message.
    is_in_message: bool,
    /// The payload that is passing belongs to a message.
    is_data: bool,
    /// Set while a frame passes whose payload matters, and after a Close frame has passed.
    watched: Option<Box<Watched>>,
    /// Set while the bytes go through a pipe.
    stream: Option<Box<SpliceState>>,
    backlog: Buf<BACKLOG_BYTES_MAX>,
    frames: FrameScanner,
    /// Payload bytes of the current message so far.
    message_bytes: u64,
    traffic: Traffic,
    /// When the source's peer last proved alive (see [`super::alive`]), or was pinged, whichever
    /// came later.
    heard_at: Moment,
}

/// What the relay, which knows both flows, must know about a pump.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pumped {
    /// There may be more to do, but the budget is used up.
    pub more: bool,
    /// A message, or a part of one, came from the source.
    pub message: bool,
    /// The sink is slow and took bytes, which proves its peer alive.
    pub sink_alive: bool,
    /// The gateway pinged the sink's peer.
    pub pinged: bool,
    /// The source's peer answered a ping of the gateway.
    pub ponged: bool,
    /// Something began that leads to the end of the flow.
    pub ending: Option<CloseReason>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceState {
    Open,
    /// FIN, RST, or given up.
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SinkState {
    Open,
    /// A Close frame of the source was passed.
    Closed,
    /// FIN follows the backlog.
    Finishing,
    /// FIN was sent.
    Finished,
    /// The connection is lost.
    Lost,
}

/// Pings of the gateway to the source's peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pinged {
    Never,
    /// The last one was sent at `heard_at`, and nothing was heard since.
    Unanswered,
    /// Something was heard since the last one. Its pong may still come.
    Before,
}

/// A frame whose payload matters.
enum Watched {
    /// The code is read for the log.
    Close(CloseSeen),
    /// A Close frame of the gateway has been sent, with this code.
    OwnClose(u16),
    /// A text of the backend in which the task's id may be.
    Text(Vec<u8>),
    /// A frame whose payload somebody follows.
    Shown(Shown),
    /// Possibly the answer to the gateway's ping: held back until the payload shows whether it is.
    Pong(HeldPong),
}

struct HeldPong {
    bytes: Vec<u8>,
    payload_at: usize,
    mask: [u8; 4],
}

impl Flow {
    /// A flow that begins now. `first`, the answer to a handshake, is sent before all frames.
    pub fn new(to: Side, first: &[u8], cx: &Context) -> Flow {
        let mut backlog = Buf::new();
        backlog.push(first, &cx.budget).expect("the answer to a handshake fits");
        Flow {
            to,
            source: SourceState::Open,
            sink: SinkState::Open,
            goodbye: None,
            is_ping_due: false,
            pinged: Pinged::Never,
            is_in_message: false,
            is_data: false,
            watched: None,
            stream: None,
            backlog,
            frames: FrameScanner::new(),
            message_bytes: 0,
            traffic: Traffic::default(),
            heard_at: cx.now,
        }
    }

    /// Moves what can be moved now: the backlog, then frames of the gateway, then what the source
    /// has.
    pub fn pump(
        &mut self,
        source: &mut Conn,
        sink: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Pumped {
        let mut pumped = Pumped::default();
        for _ in 0..READS_PER_STEP {
            self.flush(sink, &mut pumped);
            if !self.backlog.is_empty() {
                return pumped; // Not reading is the backpressure
            }
            if self.stream.is_some() {
                match self.pump_stream(source, sink, who, cx, &mut pumped) {
                    Streamed::Yields => {
                        pumped.more = true;
                        return pumped;
                    }
                    // Not reading is the backpressure.
                    Streamed::Waits if self.is_blocked() => return pumped,
                    Streamed::Waits | Streamed::Over => {}
                }
            }
            if self.has_own() && self.is_at_boundary() {
                self.send_own(sink, who, cx, &mut pumped);
            }
            if self.sink == SinkState::Finishing && self.backlog.is_empty() {
                self.finish(sink);
            }
            if self.source == SourceState::Ended
                || !source.is_readable()
                || !self.backlog.is_empty()
            {
                return pumped;
            }
            cx.with_scratch(|scratch, cx| match source.read(scratch) {
                Ok(Io::Moved(n)) => {
                    let bytes = &scratch[..n];
                    if self.sink == SinkState::Open {
                        self.handle_bytes(bytes, sink, who, cx, &mut pumped);
                        if n == SCRATCH_BYTES && !tap::shows_payload() {
                            self.begin_stream(source, sink);
                        }
                    }
                }
                Ok(Io::Blocked) => {}
                Ok(Io::Ended) | Err(_) => {
                    self.end_payload(who);
                    self.end_source(self.vanished(), &mut pumped);
                }
            });
        }
        // The last read may have made a frame of the gateway or a FIN due, which has not been sent.
        pumped.more = true;
        pumped
    }

    /// Sends FIN. In the middle of a frame the stream must not look complete.
    #[cold]
    fn finish(&mut self, sink: &mut Conn) {
        if !self.is_at_boundary() {
            sink.omit_close();
        }
        if sink.shutdown_write() {
            self.sink = SinkState::Finished;
        }
    }

    /// A pump would do nothing: nothing is held or due, and the source has nothing to read.
    #[inline]
    pub fn is_quiet(&self, source: &Conn) -> bool {
        let can_read = source.is_readable() && self.source == SourceState::Open;
        let has_more = self.is_blocked() || self.has_own() || self.sink == SinkState::Finishing;
        !can_read && !has_more
    }

    /// Passes on what the source sent. Called from outside for what came along with a handshake.
    ///
    /// `pass` is the run of bytes that may leave but has not yet: it grows over payloads and heads,
    /// so that many frames leave in one write. It is forwarded early only where something must come
    /// before or after it: a frame of the gateway at a boundary, a head whose beginning came with
    /// an earlier read, the end of the flow, and a pong that is held back.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        sink: &mut Conn,
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) {
        self.note_alive(cx.now);
        self.traffic.bytes += bytes.len() as u64;
        let mut pass = 0..0;
        let mut at = 0;
        // A forward may find the sink lost: the rest is then dropped.
        while at < bytes.len() && self.sink == SinkState::Open {
            let payload_left = self.frames.payload_left();
            if payload_left > 0 {
                let piece = at..at + payload_left.min((bytes.len() - at) as u64) as usize;
                at = piece.end;
                self.frames.skip(piece.len() as u64);
                pumped.message |= self.is_data;
                match self.watched.as_deref_mut() {
                    None | Some(Watched::OwnClose(_)) => {}
                    Some(Watched::Close(seen)) => seen.handle_payload(&bytes[piece.clone()]),
                    Some(Watched::Text(_)) => self.learn(&bytes[piece.clone()], who, cx, pumped),
                    Some(Watched::Shown(_)) => self.show(&bytes[piece.clone()], who),
                    Some(Watched::Pong(held)) => {
                        // Its head did not join `pass` either, and `pass` was forwarded before it.
                        held.bytes.extend_from_slice(&bytes[piece]);
                        pass = at..at;
                        if self.frames.payload_left() == 0 {
                            self.end_pong(sink, who, cx, pumped);
                        }
                        continue;
                    }
                }
                pass.end = at;
            } else {
                // Boundary: between two frames of this read. Without this, a source that never
                // pauses would never let a ping or a Close frame through.
                if self.has_own() {
                    self.forward(&bytes[pass], sink, cx, pumped);
                    pass = at..at;
                    self.send_own(sink, who, cx, pumped);
                    if self.sink != SinkState::Open {
                        return self.discard(bytes.len() - at); // Close is last
                    }
                }
                // The beginning of a head that an earlier read ended in. `advance` forgets it.
                let carried = self.frames.held_head();
                let (used, head) = self.frames.advance(&bytes[at..]);
                let piece = at..at + used;
                at = piece.end;
                let Some(head) = head else { break };
                self.begin_frame(&head, who, cx, pumped);
                if self.goodbye.is_some() {
                    return self.end_at_large_message(&bytes[pass], sink, who, cx, pumped);
                }
                if let Some(Watched::Pong(held)) = self.watched.as_deref_mut() {
                    held.bytes.extend_from_slice(&carried);
                    held.bytes.extend_from_slice(&bytes[piece]);
                    held.payload_at = held.bytes.len();
                    self.forward(&bytes[pass], sink, cx, pumped);
                    pass = at..at;
                    continue;
                }
                // A carried head begins the read, so `pass` is empty here and the order is kept.
                if !carried.is_empty() {
                    self.forward(&carried, sink, cx, pumped);
                }
                pass = if pass.is_empty() { piece } else { pass.start..at };
            }
            if self.has_whole_frames() && matches!(self.watched.as_deref(), Some(Watched::Close(_)))
            {
                self.forward(&bytes[pass], sink, cx, pumped);
                self.end_close(who, cx, pumped);
                return self.discard(bytes.len() - at); // Close is last
            }
        }
        self.forward(&bytes[pass], sink, cx, pumped);
    }

    /// The rest of what was read follows a Close frame: it is dropped, and not counted.
    fn discard(&mut self, bytes: usize) {
        self.traffic.bytes -= bytes as u64;
    }

    /// Ends at the head of a message that is too big, behind `pass`. Nothing of this frame has
    /// left, and nothing will: the scanner starts anew, so that the Close frame is at a boundary.
    #[cold]
    fn end_at_large_message(
        &mut self,
        pass: &[u8],
        sink: &mut Conn,
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) {
        cx.stats.messages_too_big += 1;
        self.end_payload(who);
        self.forward(pass, sink, cx, pumped);
        self.frames = FrameScanner::new();
        self.traffic.frames -= 1; // it never becomes whole
        self.send_own(sink, who, cx, pumped);
    }

    /// Nothing more comes from the source: it sent FIN, was reset, or is given up for `reason`.
    pub fn end_source(&mut self, reason: CloseReason, pumped: &mut Pumped) {
        if self.source == SourceState::Ended {
            return;
        }
        self.source = SourceState::Ended;
        if matches!(self.sink, SinkState::Open | SinkState::Finished | SinkState::Lost) {
            // Also where the sink is lost: with both sinks lost, nothing else would report the end.
            pumped.ending = pumped.ending.or(Some(reason));
        }
        if self.sink == SinkState::Open && self.is_at_boundary() {
            self.goodbye = Some(reason);
            self.is_ping_due = false;
            return;
        }
        // After a Close frame nothing may be sent; in the middle of a frame nothing can be.
        self.goodbye = None;
        self.is_ping_due = false;
        if !self.is_sink_over() {
            self.sink = SinkState::Finishing;
        }
    }

    /// The sink is lost: what is held for it is dropped.
    pub fn lose_sink(&mut self) {
        self.backlog.clear();
        self.stream = None;
        self.goodbye = None;
        self.is_ping_due = false;
        self.sink = SinkState::Lost;
    }

    /// Asks for a Close frame of the gateway behind the current frame.
    pub fn say_goodbye(&mut self, reason: CloseReason) {
        if self.sink == SinkState::Open && self.goodbye.is_none() {
            self.goodbye = Some(reason);
        }
    }

    /// Asks for a ping to the sink's peer, at the next boundary.
    pub fn ask_ping(&mut self) {
        self.is_ping_due = self.sink == SinkState::Open && self.goodbye.is_none();
    }

    /// The source's peer has been pinged, so its pong is not to be relayed.
    pub fn note_pinged(&mut self, now: Moment) {
        self.heard_at = now;
        self.pinged = Pinged::Unanswered;
    }

    /// The source's peer proved alive: it sent a byte, or took one, which the other flow reports.
    #[inline]
    pub fn note_alive(&mut self, now: Moment) {
        self.heard_at = now;
        if self.pinged == Pinged::Unanswered {
            self.pinged = Pinged::Before;
        }
    }

    /// When the source's peer last proved alive, or was pinged, whichever came later.
    pub fn heard_at(&self) -> Moment {
        self.heard_at
    }

    /// The source's peer was pinged, and nothing was heard of it since.
    pub fn is_pinged(&self) -> bool {
        self.pinged == Pinged::Unanswered
    }

    /// Nothing more is sent to the sink.
    fn is_sink_over(&self) -> bool {
        matches!(self.sink, SinkState::Finished | SinkState::Lost)
    }

    /// The last frame has been written to the sink, and may still be on its way to the peer.
    pub fn is_sink_settling(&self) -> bool {
        !matches!(self.sink, SinkState::Open | SinkState::Lost)
    }

    /// Both ends are done.
    pub fn is_finished(&self) -> bool {
        self.source == SourceState::Ended && self.is_sink_over()
    }

    /// The source may still send.
    pub fn is_source_open(&self) -> bool {
        self.source == SourceState::Open
    }

    /// Bytes wait for the sink.
    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty() || self.stream.as_ref().is_some_and(|stream| stream.held() > 0)
    }

    /// Frames may still be sent to the sink.
    pub fn is_open(&self) -> bool {
        self.sink == SinkState::Open
    }

    /// No message is half sent. (A frame of the gateway may be sent within a message, but a drain
    /// waits for its end.)
    pub fn is_between_messages(&self) -> bool {
        !self.is_in_message && self.is_at_boundary()
    }

    /// The code in the Close frame of the source, which was passed whole; `None` if none was passed
    /// or it had no code.
    fn close_code(&self) -> Option<u16> {
        match self.watched.as_deref() {
            Some(Watched::Close(seen)) => seen.code(),
            _ => None,
        }
    }

    /// The source's Close frame, once it has been passed.
    pub fn passed_close(&self) -> Option<Option<u16>> {
        match self.watched.as_deref() {
            Some(Watched::Close(seen)) if self.has_whole_frames() => Some(seen.code()),
            _ => None,
        }
    }

    /// The Close frame that the sink got, the source's or the gateway's.
    pub fn sent_close(&self) -> Option<Option<u16>> {
        match self.watched.as_deref() {
            _ if self.is_blocked() || self.sink == SinkState::Lost => None,
            Some(Watched::OwnClose(code)) => Some(Some(*code)),
            _ => self.passed_close(),
        }
    }

    /// No frame of the source is here in part, but for its head.
    fn has_whole_frames(&self) -> bool {
        self.frames.payload_left() == 0
    }

    /// Whole frames, and bytes, from the source.
    pub fn traffic(&self) -> Traffic {
        let half = u64::from(!self.has_whole_frames());
        Traffic { frames: self.traffic.frames - half, ..self.traffic }
    }

    /// The source's and the gateway's last frames have been passed, and FIN behind them.
    pub fn has_sent_fin(&self) -> bool {
        self.is_sink_over()
    }

    /// Nothing more is expected from the sink: FIN follows what is held.
    pub fn finish_after_close(&mut self) {
        if self.sink == SinkState::Closed {
            self.sink = SinkState::Finishing;
        }
    }

    /// The source has ended.
    pub fn is_source_over(&self) -> bool {
        self.source == SourceState::Ended
    }

    /// Bytes that wait for the sink, in memory and in a pipe.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog.len() + self.stream.as_ref().map_or(0, |stream| stream.held())
    }

    /// Bytes charged for what is held back.
    pub fn charged_bytes(&self) -> usize {
        self.backlog.held_bytes() + self.stream.as_ref().map_or(0, |stream| stream.held())
    }

    /// The reason where the source ends without a Close frame.
    fn vanished(&self) -> CloseReason {
        match self.to {
            Side::Upstream => CloseReason::ClientVanished,
            Side::Downstream => CloseReason::BackendVanished,
        }
    }

    /// Counts a frame and decides what happens to it: passed, watched, or the end.
    fn begin_frame(
        &mut self,
        head: &FrameHead,
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) {
        self.traffic.frames += 1;
        let too_big = self.too_big(head, cx);
        let mask = head.mask.unwrap_or_default();
        self.is_data = !head.is_control();
        self.watched = match head.opcode {
            Opcode::Close => Some(Box::new(Watched::Close(CloseSeen::new(mask)))),
            Opcode::Pong if self.pinged != Pinged::Never && head.payload == PING_BYTES as u64 => {
                let bytes = Vec::with_capacity(FrameHead::BYTES_MAX + PING_BYTES);
                Some(Box::new(Watched::Pong(HeldPong { bytes, payload_at: 0, mask })))
            }
            _ => None,
        };
        if !note_frame(who, self.to, head, cx) {
            self.watch_for_task(head, who, cx);
            if tap::shows_payload() {
                self.follow_payload(head, who);
            }
        }
        if self.is_data {
            pumped.message = true;
            self.message_bytes = self.message_bytes_with(head);
            self.is_in_message = !head.fin;
            if let Some(reason) = too_big {
                self.goodbye = Some(reason);
                pumped.ending = pumped.ending.or(Some(reason));
            }
        }
    }

    /// Payload bytes of the message, the data frame that begins included.
    fn message_bytes_with(&self, head: &FrameHead) -> u64 {
        let before = if head.opcode == Opcode::Continuation { self.message_bytes } else { 0 };
        before.saturating_add(head.payload)
    }

    /// The reason to end, if the frame that begins takes its message over the limit.
    fn too_big(&self, head: &FrameHead, cx: &Context) -> Option<CloseReason> {
        let max = cx.settings.max_message?;
        (!head.is_control() && self.message_bytes_with(head) > max).then_some(match self.to {
            Side::Upstream => CloseReason::ClientMessageTooBig,
            Side::Downstream => CloseReason::BackendMessageTooBig,
        })
    }

    /// A whole Close frame has been passed. *Close is last.*
    fn end_close(&mut self, who: &Identity, cx: &Context, pumped: &mut Pumped) {
        if self.sink == SinkState::Open {
            self.sink = SinkState::Closed;
        }
        self.goodbye = None;
        self.is_ping_due = false;
        let reason = match self.to {
            Side::Upstream => CloseReason::ClientClosed,
            Side::Downstream => CloseReason::BackendClosed,
        };
        note_step(who, cx.now, || Event::ClosePassed { to: self.to, code: self.close_code() });
        pumped.ending = pumped.ending.or(Some(reason));
    }

    /// A held pong is complete: drops it if it answers the gateway's ping, else passes it on.
    fn end_pong(&mut self, sink: &mut Conn, who: &Identity, cx: &mut Context, pumped: &mut Pumped) {
        let Some(Watched::Pong(held)) = self.watched.take().map(|watched| *watched) else { return };
        let mut payload: [u8; PING_BYTES] =
            held.bytes[held.payload_at..].try_into().expect("its head has this length");
        ws::apply_mask(&mut payload, held.mask, 0);
        if payload == ping_payload(who, cx) {
            cx.stats.pongs_swallowed += 1;
            pumped.ponged = true;
            note_step(who, cx.now, || Event::PongReceived { from: self.to.other() });
        } else {
            self.forward(&held.bytes, sink, cx, pumped);
        }
    }

    /// A frame of the gateway is due.
    pub fn has_own(&self) -> bool {
        self.is_ping_due || self.goodbye.is_some()
    }

    /// The sink has whole frames only, once the backlog is sent. A cut head and a pong that is held
    /// back have not been sent at all.
    pub fn is_at_boundary(&self) -> bool {
        self.frames.payload_left() == 0 || matches!(self.watched.as_deref(), Some(Watched::Pong(_)))
    }

    /// Sends the frame of the gateway that is due. *Boundary*: called at one only.
    fn send_own(&mut self, sink: &mut Conn, who: &Identity, cx: &mut Context, pumped: &mut Pumped) {
        if self.sink != SinkState::Open {
            return; // sending what comes before this frame found the sink lost
        }
        let mask = match self.to {
            Side::Upstream => Some(cx.chance.u32(..).to_ne_bytes()),
            Side::Downstream => None,
        };
        self.is_ping_due = false;
        let Some(reason) = self.goodbye.take() else {
            self.forward(&ws::ping_frame(&ping_payload(who, cx), mask), sink, cx, pumped);
            note_step(who, cx.now, || Event::PingSent { to: self.to });
            cx.stats.pings_sent += 1;
            pumped.pinged = true;
            return;
        };
        let code = reason.close_code(self.to);
        self.stream = None; // Close is last
        self.forward(&ws::close_frame(code, reason.phrase(), mask), sink, cx, pumped);
        note_step(who, cx.now, || Event::CloseSent { to: self.to, code, reason });
        self.watched = Some(Box::new(Watched::OwnClose(code)));
        if self.sink == SinkState::Open {
            self.sink = SinkState::Finishing;
        }
        pumped.ending = pumped.ending.or(Some(reason));
    }

    /// Writes `bytes`. What the sink does not take now goes to the backlog.
    fn forward(&mut self, bytes: &[u8], sink: &mut Conn, cx: &Context, pumped: &mut Pumped) {
        if bytes.is_empty() || self.is_sink_over() {
            return;
        }
        let mut written = 0;
        if self.backlog.is_empty() {
            match sink.write(bytes) {
                Ok(Io::Moved(n)) => written = n,
                Ok(_) => {}
                Err(_) => return self.lose_sink(),
            }
            // The sink has kept up until now, so its time to take a byte begins now.
            pumped.sink_alive |= written < bytes.len();
        }
        if written < bytes.len() {
            self.backlog
                .push(&bytes[written..], &cx.budget)
                .expect("one read and the gateway's own frames fit an empty backlog");
        }
    }

    /// Writes the backlog.
    fn flush(&mut self, sink: &mut Conn, pumped: &mut Pumped) {
        while !self.backlog.is_empty() {
            match sink.write(self.backlog.as_slice()) {
                Ok(Io::Moved(n)) => {
                    self.backlog.consume(n);
                    pumped.sink_alive = true;
                }
                Ok(_) => return,
                Err(_) => self.lose_sink(),
            }
        }
    }
}

/// Payload bytes of a ping of the gateway.
const PING_BYTES: usize = 8;

/// The payload by which a pong is recognised as the answer to this session's ping. It differs from
/// process to process, so that gateways in a row do not take each other's pongs.
fn ping_payload(who: &Identity, cx: &Context) -> [u8; PING_BYTES] {
    (cx.ping_key ^ who.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()
}
