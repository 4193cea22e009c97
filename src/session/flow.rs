//! Bytes ONE way, from a source to a sink, frame by frame; written once for both directions.
//!
//! ```text
//!   source: Talking ── FIN, RST, given up ──► Ended
//!   sink:   Open ── a Close frame was passed ──► Closed ── the source ended ──► Finishing ── FIN ──► Finished
//!             ├──── a Close frame of ours (goodbye), or the source ended ────────────▲                  ▲
//!             └──── a write failed ─────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The rules that make it a relay, each signed where it is obeyed:
//!
//! - *Not reading is the backpressure*: while the backlog holds bytes, the source is not read.
//! - *Boundary*: a frame of ours goes out only where no other frame has been begun.
//! - *Close is last*: no frame follows a Close frame; what the source says after it is read and thrown away.
//!
//! A head that is cut by the end of a chunk is kept back until the rest of it has come. The sink could do nothing with a
//! piece of a head; so its side of the stream is at a boundary more often, and no decision about a frame comes too late.

mod stream;

use super::transcript::{Event, note};
use super::{CloseReason, Context, Identity, SCRATCH_BYTES};
use crate::base::buf::Buf;
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Side};
use crate::proto::http::HEAD_BYTES_MAX;
use crate::proto::ws::{self, FrameHead, FrameScanner, Opcode};
use crate::service::stats::Traffic;
use stream::{Stream, Streamed};

/// Reads in one step; then the others have their turn.
const READS_PER_STEP: usize = 16;

/// One read, and what a handshake may bring on top of it: a head and early frames, each way.
const BACKLOG_BYTES_MAX: usize = SCRATCH_BYTES + 4 * HEAD_BYTES_MAX;

/// One direction of a relay. What is not needed by a flow that is idle stands behind a pointer.
pub struct Flow {
    to: Side,
    source: Source,
    sink: Sink,
    /// Why a Close frame of ours waits for a boundary.
    goodbye: Option<CloseReason>,
    is_ping_due: bool,
    pinged: Pinged,
    /// Between the fragments of a message.
    is_in_message: bool,
    /// The payload that is passing is of a message.
    is_data: bool,
    /// The frame that is passing, or the Close frame that has passed, if it is one that is looked into.
    watched: Option<Box<Watched>>,
    /// The bytes take the way through a pipe.
    stream: Option<Box<Stream>>,
    backlog: Buf<BACKLOG_BYTES_MAX>,
    frames: FrameScanner,
    /// Payload bytes of the current message so far.
    message_bytes: u64,
    traffic: Traffic,
    /// When the source's side last gave a byte, or, being slow, took one; or when it was pinged, if that was later.
    heard_at: Moment,
}

/// What a pump did that the relay, which knows both flows, has to act on.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pumped {
    /// The budget ran out before the source did.
    pub more: bool,
    /// A message came from the source, or a part of one.
    pub message: bool,
    /// The sink is slow, and took bytes: its side is alive.
    pub sink_alive: bool,
    /// A ping of ours went to the sink.
    pub pinged: bool,
    /// The flow is on its way to its end.
    pub ending: Option<CloseReason>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Talking,
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sink {
    Open,
    Closed,
    Finishing,
    Finished,
}

/// Pings of ours that went to the source's side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pinged {
    Never,
    /// The last one, at `heard_at`: nothing was heard since.
    Unanswered,
    /// A pong may be ours all the same: it may be late.
    Before,
}

/// A frame that is looked into.
enum Watched {
    /// Its code is noted for the log.
    Close(CloseSeen),
    /// It may be the pong to a ping of ours, so it is kept back until that is known.
    Pong(HeldPong),
}

struct CloseSeen {
    mask: [u8; 4],
    code: [u8; 2],
    seen: u8,
}

struct HeldPong {
    bytes: Vec<u8>,
    payload_at: usize,
    mask: [u8; 4],
}

impl Flow {
    /// A flow that begins now, with `first` (a handshake's answer, no frames) to be sent before all else.
    pub fn new(to: Side, first: &[u8], cx: &Context) -> Flow {
        let mut backlog = Buf::new();
        backlog.push(first, &cx.budget).expect("a handshake's answer fits");
        Flow {
            to,
            source: Source::Talking,
            sink: Sink::Open,
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

    /// Moves what can be moved now: what was held back, frames of ours, then what the source has.
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
                    Streamed::Waits if self.is_blocked() => return pumped, // Not reading is the backpressure
                    Streamed::Waits | Streamed::Over => {}
                }
            }
            if self.has_own() && self.is_at_boundary() {
                self.send_own(sink, who, cx, &mut pumped);
            }
            if self.sink == Sink::Finishing && self.backlog.is_empty() && sink.shutdown_write() {
                self.sink = Sink::Finished;
            }
            if self.source == Source::Ended || !source.is_readable() || !self.backlog.is_empty() {
                return pumped;
            }
            cx.with_scratch(|scratch, cx| match source.read(scratch) {
                Ok(Io::Moved(n)) => {
                    let bytes = &scratch[..n];
                    if self.sink == Sink::Open {
                        self.handle_bytes(bytes, sink, who, cx, &mut pumped);
                        if n == SCRATCH_BYTES {
                            self.begin_stream(source, sink);
                        }
                    }
                }
                Ok(Io::Blocked) => {}
                Ok(Io::Ended) | Err(_) => self.end_source(self.vanished(), &mut pumped),
            });
        }
        // Whatever the last read brought, a frame of ours or a FIN that it made due has not gone out.
        pumped.more = true;
        pumped
    }

    /// A pump would do nothing: nothing is held or due, and the source has nothing.
    #[inline]
    pub fn is_quiet(&self, source: &Conn) -> bool {
        let can_read = source.is_readable() && self.source == Source::Talking;
        let has_more = self.is_blocked() || self.has_own() || self.sink == Sink::Finishing;
        !can_read && !has_more
    }

    /// Takes what the source said and passes it on. Called from outside for what came along with a handshake.
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
        while at < bytes.len() && self.sink == Sink::Open {
            let payload_left = self.frames.payload_left();
            if payload_left > 0 {
                let piece = at..at + payload_left.min((bytes.len() - at) as u64) as usize;
                at = piece.end;
                self.frames.skip(piece.len() as u64);
                pumped.message |= self.is_data;
                match self.watched.as_deref_mut() {
                    None => {}
                    Some(Watched::Close(seen)) => seen.handle_payload(&bytes[piece.clone()]),
                    Some(Watched::Pong(held)) => {
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
                if self.has_own() {
                    self.forward(&bytes[pass], sink, cx, pumped);
                    pass = at..at;
                    self.send_own(sink, who, cx, pumped);
                    if self.sink != Sink::Open {
                        return; // Close is last
                    }
                }
                let carried = self.frames.held_head();
                let (used, head) = self.frames.advance(&bytes[at..]);
                let piece = at..at + used;
                at = piece.end;
                let Some(head) = head else { break };
                self.begin_frame(&head, who, cx, pumped);
                if self.goodbye.is_some() {
                    // The message is too big. Nothing of this frame has gone out, and nothing will.
                    cx.stats.messages_too_big += 1;
                    self.forward(&bytes[pass], sink, cx, pumped);
                    self.frames = FrameScanner::new();
                    self.send_own(sink, who, cx, pumped);
                    return;
                }
                if let Some(Watched::Pong(held)) = self.watched.as_deref_mut() {
                    held.bytes.extend_from_slice(&carried);
                    held.bytes.extend_from_slice(&bytes[piece]);
                    held.payload_at = held.bytes.len();
                    self.forward(&bytes[pass], sink, cx, pumped);
                    pass = at..at;
                    continue;
                }
                if !carried.is_empty() {
                    self.forward(&carried, sink, cx, pumped);
                }
                pass = if pass.is_empty() { piece } else { pass.start..at };
            }
            if self.frames.payload_left() == 0
                && matches!(self.watched.as_deref(), Some(Watched::Close(_)))
            {
                self.forward(&bytes[pass], sink, cx, pumped);
                self.end_close(who, pumped);
                return; // Close is last
            }
        }
        self.forward(&bytes[pass], sink, cx, pumped);
    }

    /// The source has no more to say: it sent FIN, was reset, or was given up for `reason`.
    pub fn end_source(&mut self, reason: CloseReason, pumped: &mut Pumped) {
        if self.source == Source::Ended {
            return;
        }
        self.source = Source::Ended;
        if matches!(self.sink, Sink::Open | Sink::Finished) {
            // Also where the sink is lost: with both sinks lost, nobody else would tell that this is the end.
            pumped.ending = pumped.ending.or(Some(reason));
        }
        if self.sink == Sink::Open && self.is_at_boundary() {
            self.goodbye = Some(reason);
            self.is_ping_due = false;
            return;
        }
        // After a Close frame nothing is left to be said; in the middle of a frame nothing can be.
        self.goodbye = None;
        self.is_ping_due = false;
        if self.sink != Sink::Finished {
            self.sink = Sink::Finishing;
        }
    }

    /// Nothing reaches the sink any more.
    pub fn lose_sink(&mut self) {
        self.backlog.clear();
        self.stream = None;
        self.goodbye = None;
        self.is_ping_due = false;
        self.sink = Sink::Finished;
    }

    /// Asks for a Close frame of ours behind the current frame.
    pub fn say_goodbye(&mut self, reason: CloseReason) {
        if self.sink == Sink::Open && self.goodbye.is_none() {
            self.goodbye = Some(reason);
        }
    }

    /// Asks for a ping to the sink's side, at the next boundary.
    pub fn ask_ping(&mut self) {
        self.is_ping_due = self.sink == Sink::Open && self.goodbye.is_none();
    }

    /// The source's side has been pinged: its pong is ours alone.
    pub fn note_pinged(&mut self, now: Moment) {
        self.heard_at = now;
        self.pinged = Pinged::Unanswered;
    }

    /// The source's side is alive: it gave a byte, or took one, which the other flow found out.
    #[inline]
    pub fn note_alive(&mut self, now: Moment) {
        self.heard_at = now;
        if self.pinged == Pinged::Unanswered {
            self.pinged = Pinged::Before;
        }
    }

    /// When the source's side last gave a byte, or, being slow, took one; or when it was pinged, if that was later.
    pub fn heard_at(&self) -> Moment {
        self.heard_at
    }

    /// Nothing has been heard of the source's side since it was last pinged.
    pub fn is_pinged(&self) -> bool {
        self.pinged == Pinged::Unanswered
    }

    /// Both ends are done.
    pub fn is_finished(&self) -> bool {
        self.source == Source::Ended && self.sink == Sink::Finished
    }

    /// The source still talks.
    pub fn is_source_talking(&self) -> bool {
        self.source == Source::Talking
    }

    /// Bytes wait for the sink.
    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty() || self.stream.as_ref().is_some_and(|stream| stream.held() > 0)
    }

    /// Frames may still be passed to the sink.
    pub fn is_open(&self) -> bool {
        self.sink == Sink::Open
    }

    /// No message has begun that is not over. (A frame of ours may stand within one, but a good end does not.)
    pub fn is_between_messages(&self) -> bool {
        !self.is_in_message && self.is_at_boundary()
    }

    /// A Close frame of ours is still to be sent.
    pub fn is_goodbye_due(&self) -> bool {
        self.goodbye.is_some()
    }

    /// The code in the Close frame that was passed; `None` where there was none.
    pub fn close_code(&self) -> Option<u16> {
        match self.watched.as_deref() {
            Some(Watched::Close(seen)) => seen.code(),
            _ => None,
        }
    }

    /// Frames and bytes from the source.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Bytes held back, and what they stand in.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog.len() + self.stream.as_ref().map_or(0, |stream| stream.held())
    }

    /// The source ended without a Close frame.
    fn vanished(&self) -> CloseReason {
        match self.to {
            Side::Upstream => CloseReason::ClientVanished,
            Side::Downstream => CloseReason::BackendVanished,
        }
    }

    /// Counts a frame and decides what becomes of it.
    fn begin_frame(&mut self, head: &FrameHead, who: &Identity, cx: &Context, pumped: &mut Pumped) {
        self.traffic.frames += 1;
        note(who, || Event::Frame { to: self.to, head });
        let too_big = self.too_big(head, cx);
        let mask = head.mask.unwrap_or_default();
        self.is_data = !head.is_control();
        self.watched = match head.opcode {
            Opcode::Close => {
                Some(Box::new(Watched::Close(CloseSeen { mask, code: [0; 2], seen: 0 })))
            }
            Opcode::Pong if self.pinged != Pinged::Never && head.payload == PING_BYTES as u64 => {
                let bytes = Vec::with_capacity(FrameHead::BYTES_MAX + PING_BYTES);
                Some(Box::new(Watched::Pong(HeldPong { bytes, payload_at: 0, mask })))
            }
            _ => None,
        };
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

    /// Payload bytes of the message so far, with a data frame that begins.
    fn message_bytes_with(&self, head: &FrameHead) -> u64 {
        let before = if head.opcode == Opcode::Continuation { self.message_bytes } else { 0 };
        before.saturating_add(head.payload)
    }

    /// The data frame that begins takes its message over the limit.
    fn too_big(&self, head: &FrameHead, cx: &Context) -> Option<CloseReason> {
        let max = cx.settings.max_message?;
        (!head.is_control() && self.message_bytes_with(head) > max).then_some(match self.to {
            Side::Upstream => CloseReason::ClientMessageTooBig,
            Side::Downstream => CloseReason::BackendMessageTooBig,
        })
    }

    /// The whole Close frame has been passed.
    fn end_close(&mut self, who: &Identity, pumped: &mut Pumped) {
        self.sink = Sink::Closed;
        self.goodbye = None;
        self.is_ping_due = false;
        let reason = match self.to {
            Side::Upstream => CloseReason::ClientClosed,
            Side::Downstream => CloseReason::BackendClosed,
        };
        note(who, || Event::ClosePassed { to: self.to, code: self.close_code() });
        pumped.ending = pumped.ending.or(Some(reason));
    }

    /// A pong that may be ours has come whole: swallow it or pass it on.
    fn end_pong(&mut self, sink: &mut Conn, who: &Identity, cx: &mut Context, pumped: &mut Pumped) {
        let Some(Watched::Pong(held)) = self.watched.take().map(|watched| *watched) else { return };
        let mut payload: [u8; PING_BYTES] =
            held.bytes[held.payload_at..].try_into().expect("its head said so");
        ws::apply_mask(&mut payload, held.mask, 0);
        if payload == ping_payload(who, cx) {
            cx.stats.pongs_swallowed += 1;
            note(who, || Event::PongReceived { from: self.to.other() });
        } else {
            self.forward(&held.bytes, sink, cx, pumped);
        }
    }

    fn has_own(&self) -> bool {
        self.is_ping_due || self.goodbye.is_some()
    }

    /// Nothing of a frame has gone out that has not gone out whole (given that the backlog is empty). A head that was cut
    /// and a pong that may be ours are here, not there.
    pub fn is_at_boundary(&self) -> bool {
        self.frames.payload_left() == 0 || matches!(self.watched.as_deref(), Some(Watched::Pong(_)))
    }

    /// Sends the frame of ours that is due. *Boundary*: only called at one.
    fn send_own(&mut self, sink: &mut Conn, who: &Identity, cx: &mut Context, pumped: &mut Pumped) {
        if self.sink != Sink::Open {
            return; // What stood before this frame has found the sink lost
        }
        let mask = match self.to {
            Side::Upstream => Some(cx.chance.u32(..).to_ne_bytes()),
            Side::Downstream => None,
        };
        self.is_ping_due = false;
        let Some(reason) = self.goodbye.take() else {
            self.forward(&ws::ping_frame(&ping_payload(who, cx), mask), sink, cx, pumped);
            note(who, || Event::PingSent { to: self.to });
            cx.stats.pings_sent += 1;
            pumped.pinged = true;
            return;
        };
        let code = reason.close_code(self.to);
        self.stream = None; // Close is last
        self.forward(&ws::close_frame(code, reason.phrase(), mask), sink, cx, pumped);
        note(who, || Event::CloseSent { to: self.to, code, reason });
        if self.sink == Sink::Open {
            self.sink = Sink::Finishing;
        }
        pumped.ending = pumped.ending.or(Some(reason));
    }

    /// Writes `bytes`, or what of them the sink does not take now goes to the backlog.
    fn forward(&mut self, bytes: &[u8], sink: &mut Conn, cx: &Context, pumped: &mut Pumped) {
        if bytes.is_empty() || self.sink == Sink::Finished {
            return;
        }
        let mut written = 0;
        if self.backlog.is_empty() {
            match sink.write(bytes) {
                Ok(Io::Moved(n)) => written = n,
                Ok(_) => {}
                Err(_) => return self.lose_sink(),
            }
            // The stall begins now, whatever was heard before: until here the sink has kept up.
            pumped.sink_alive |= written < bytes.len();
        }
        if written < bytes.len() {
            self.backlog
                .push(&bytes[written..], &cx.budget)
                .expect("one chunk and our own frames fit an empty backlog");
        }
    }

    /// Writes what was held back.
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

impl CloseSeen {
    fn handle_payload(&mut self, piece: &[u8]) {
        for &byte in piece.iter().take(2 - self.seen as usize) {
            self.code[self.seen as usize] = byte ^ self.mask[self.seen as usize];
            self.seen += 1;
        }
    }

    fn code(&self) -> Option<u16> {
        (self.seen == 2).then(|| u16::from_be_bytes(self.code))
    }
}

/// Payload of a ping of ours.
const PING_BYTES: usize = 8;

/// The payload that tells this session's pongs from others: gateways in a row must not swallow each other's.
fn ping_payload(who: &Identity, cx: &Context) -> [u8; PING_BYTES] {
    (cx.ping_key ^ who.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()
}
