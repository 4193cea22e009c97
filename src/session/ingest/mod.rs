//! The WebSocket of a worker that sends speech.
//!
//! One connection may carry any number of tasks, and a stream may go on on another connection. So a
//! session knows nothing of streams: each message goes to `speech.rs`. A message that cannot be
//! used is answered with an error and costs nothing else. A worker that does not read its answers
//! is not read from, and neither is any worker while too much waits for a disk.
//!
//! While nothing is half received, a session owns no buffer and no reader.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

mod speech;

pub use speech::IncomingSpeeches;

use super::alive::{Alive, Pings, Verdict};
use super::close::{CloseReason, Closing};
use super::outbox::{Flushed, Outbox};
use super::stall::Stall;
use super::transcript::{Event, note, note_step};
use super::visitor::Visitor;
use super::{
    Activity, Awaited, Context, Detail, Drain, Ended, Identity, Last, Phase, Session, SessionId,
    State, Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Side};
use crate::proto::http::RequestHead;
use crate::proto::message::TaskId;
use crate::proto::speech::{self as messages, ChunkAudio, Message};
use crate::proto::upgrade::{self, Handshake};
use crate::proto::ws::{self, FrameScanner, Opcode};
use crate::proto::ws_reader::{Received, WsFault, WsMessage, WsReader};
use crate::service::feeds::{PendingNotice, WorkerNotice};
use crate::service::stats::BothWays;
use log::info;
use speech::ReceivedChunk;
use std::time::Duration;

/// Reads in one step; then other sessions have their turn.
const BUDGET: usize = 16;

/// Bytes of answers that wait for the worker. While there are more, it is not read from.
const ANSWERS_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a message besides its audio.
const OTHER_BYTES_MAX: usize = 128 * 1024;

/// How often a session that waits for the end of its streams looks whether it may leave.
const DRAIN_INTERVAL: Duration = Duration::from_millis(250);

/// Error: a chunk was announced, and its binary message did not follow.
const NO_BYTES: &str = "The bytes of the chunk before did not come";
/// Error: a binary message that no chunk announced.
const NOT_ANNOUNCED: &str = "A binary message without a SPEECH_CHUNK before it";
/// Error: a binary message whose length differs from `bytes`.
const OTHER_LENGTH: &str = "The binary message is not as long as bytes says";
/// Error: a chunk longer than `chunk_size`.
const CHUNK_TOO_LONG: &str = "The chunk is longer than chunk_size";

impl Session {
    /// Something about a task that it speaks for. Acted on by the next [`Session::drive`].
    pub fn handle_notice(&mut self, pending: &PendingNotice<SessionId>, now: Moment) {
        if let Phase::Ingest(ingest) = &mut self.phase {
            ingest.handle_notice(pending, &self.who, now);
        }
    }
}

/// A worker that sends speech.
pub struct Ingest {
    /// The reader of the worker's frames, only while it is in the middle of a message.
    reader: Option<Box<WsReader>>,
    /// A chunk whose bytes come in the next message.
    announced: Option<Box<Announced>>,
    outbox: Outbox,
    stall: Option<Box<Stall>>,
    leaving: Option<IngestEnding>,
    /// When the worker last proved alive (see [`super::alive`]), or was pinged, whichever came
    /// later.
    heard_at: Moment,
    pings: Pings,
    /// Bytes of the answer to the upgrade that have not been sent. They are no frames.
    answer_left: u16,
    /// When a message last came.
    active_at: Moment,
    /// The gateway drains: leave once no stream is open.
    is_draining: bool,
    wake_at: Option<Moment>,
    traffic: BothWays,
    chunks: u64,
    errors: u64,
}

/// A chunk whose bytes are to come.
struct Announced {
    bytes: u64,
    task: TaskId,
    seq: Option<u64>,
    audio_type: Option<Box<str>>,
    fields: Box<str>,
    /// Its bytes are discarded. The worker has been sent the reason.
    is_refused: bool,
}

#[derive(Clone, Copy)]
struct IngestEnding {
    reason: CloseReason,
    closing: Closing,
}

impl Ingest {
    /// Completes the upgrade. `early` is what followed the request.
    pub fn begin(
        handshake: &Handshake,
        head: &RequestHead<'_, '_>,
        early: &[u8],
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let mut accept = Vec::new();
        upgrade::write_accept(handshake, &mut accept);
        cx.stats.count_upgrade(who.route_name());
        cx.stats.count_http(101);
        cx.stats.count_open(who.route_name());
        info!(target: "ingest", "{who} opened client={}{}", who.client(), Visitor::of(&head.headers));
        let mut ingest = Box::new(Ingest {
            reader: None,
            announced: None,
            outbox: Outbox::default(),
            stall: None,
            leaving: None,
            heard_at: cx.now,
            pings: Pings::default(),
            answer_left: accept.len() as u16,
            active_at: cx.now,
            is_draining: false,
            wake_at: None,
            traffic: BothWays::default(),
            chunks: 0,
            errors: 0,
        });
        ingest.outbox.push(&accept);
        ingest.handle_bytes(early, who, cx);
        ingest.wake_at = ingest.next_deadline(cx);
        Step::Next(Phase::Ingest(ingest))
    }

    /// Something for the worker to know. Acted on by the next step.
    fn handle_notice(&mut self, pending: &PendingNotice<SessionId>, who: &Identity, now: Moment) {
        if self.leaving.is_some() {
            return;
        }
        match pending.notice {
            WorkerNotice::Control(action) => {
                note_step(who, now, || Event::SentToWorker {
                    action: action.word(),
                    task: pending.task.uuid(),
                });
                self.push_text(&messages::control_message(action, &pending.task), who, now);
            }
            WorkerNotice::Error(error) => {
                self.push_error(error, Some(&pending.task), who, now);
            }
        }
    }

    fn handle_bytes(&mut self, bytes: &[u8], who: &Identity, cx: &mut Context) {
        if bytes.is_empty() {
            return;
        }
        self.note_alive(cx.now);
        who.begin_recent(cx);
        self.traffic.from_client.bytes += bytes.len() as u64;
        let mut answers = Vec::new();
        let mut reader = self.reader.take().unwrap_or_else(|| {
            // Base64 takes 4 bytes for 3. One that is a little too long is answered with an error.
            let audio = cx.settings.output.chunk_size * 2;
            Box::new(WsReader::with_limit(audio + OTHER_BYTES_MAX, bytes.len()))
        });
        let frames = reader.frames_seen();
        let (now, mut pongs) = (cx.now, 0);
        let on_frame = &mut |head: &ws::FrameHead| {
            who.count_noted(Side::Upstream, head, now);
            pongs += u16::from(head.opcode == Opcode::Pong);
        };
        let received = reader.handle_messages(bytes, &mut answers, on_frame, |message| {
            self.active_at = cx.now;
            match message {
                WsMessage::Text(text) => self.handle_text(text, who, cx),
                WsMessage::Binary(bytes) => self.handle_binary(bytes, who, cx),
            }
        });
        if pongs > 0 {
            self.pings.note_pongs();
        }
        self.traffic.from_client.frames += reader.frames_seen() - frames;
        if !reader.is_idle() {
            self.reader = Some(reader);
        }
        match received {
            Received::Nothing => self.push_frames(&answers, who, now),
            Received::Close(code) => {
                note_step(who, now, || Event::ClientClose { code });
                self.push_frames(&answers, who, now);
                let closing = Closing::Sent(code);
                self.leaving = Some(IngestEnding { reason: CloseReason::ClientClosed, closing });
            }
            Received::Fault(fault) => self.leave(
                match fault {
                    WsFault::Protocol | WsFault::CloseCode => CloseReason::ProtocolFault,
                    WsFault::Utf8 => CloseReason::NotUtf8,
                    WsFault::TooBig => CloseReason::ClientMessageTooBig,
                },
                who,
                now,
            ),
        }
    }

    fn handle_text(&mut self, text: &str, who: &Identity, cx: &mut Context) {
        if let Some(announced) = self.announced.take().filter(|it| !it.is_refused) {
            self.refuse(NO_BYTES, Some(&announced.task), who, cx);
        }
        let chunk = match Message::read(text) {
            Ok(Message::Chunk(chunk)) => chunk,
            Ok(Message::End { task, is_final }) => {
                note_step(who, cx.now, || Event::SpeechEnd { task: task.uuid(), is_final });
                if let Err(refusal) = cx.end_speech(who.id(), &task, is_final) {
                    self.refuse(&refusal.to_string(), Some(&task), who, cx);
                }
                return;
            }
            Ok(Message::Acknowledgement) => return,
            Err(bad) => {
                return self.refuse(&bad.fault.to_string(), bad.task.as_ref(), who, cx);
            }
        };
        let chunk_size = cx.settings.output.chunk_size;
        let (task, seq, audio_type, fields) =
            (chunk.task, chunk.seq, chunk.audio_type, chunk.fields);
        match chunk.audio {
            ChunkAudio::Follows(bytes) => {
                let is_refused = bytes > chunk_size as u64;
                if is_refused {
                    self.refuse(CHUNK_TOO_LONG, Some(&task), who, cx);
                }
                let announced = Announced { bytes, task, seq, audio_type, fields, is_refused };
                self.announced = Some(Box::new(announced));
            }
            ChunkAudio::Inline(base64) if base64.decoded_bytes() > chunk_size => {
                self.refuse(CHUNK_TOO_LONG, Some(&task), who, cx);
            }
            ChunkAudio::Inline(base64) => {
                let mut decoded = std::mem::take(&mut cx.speech.decoded);
                match base64.decode(&mut decoded) {
                    Ok(length) => {
                        let bytes = &decoded[..length];
                        let chunk = ReceivedChunk { task, seq, audio_type, fields, bytes };
                        self.handle_chunk(chunk, who, cx);
                    }
                    Err(fault) => self.refuse(&fault.to_string(), Some(&task), who, cx),
                }
                cx.speech.decoded = decoded;
            }
        }
    }

    fn handle_binary(&mut self, bytes: &[u8], who: &Identity, cx: &mut Context) {
        let Some(announced) = self.announced.take() else {
            return self.refuse(NOT_ANNOUNCED, None, who, cx);
        };
        let Announced { bytes: length, task, seq, audio_type, fields, is_refused } = *announced;
        if is_refused {
            return;
        }
        if bytes.len() as u64 != length {
            return self.refuse(OTHER_LENGTH, Some(&task), who, cx);
        }
        self.handle_chunk(ReceivedChunk { task, seq, audio_type, fields, bytes }, who, cx);
    }

    fn handle_chunk(&mut self, chunk: ReceivedChunk<'_>, who: &Identity, cx: &mut Context) {
        let (task, length) = (chunk.task.clone(), chunk.bytes.len());
        note(who, || Event::SpeechChunk { task: task.uuid(), seq: chunk.seq, length });
        self.chunks += 1;
        if let Err(refusal) = cx.receive(who.id(), chunk) {
            self.refuse(&refusal.to_string(), Some(&task), who, cx);
        }
    }

    /// Answers a message that cannot be used.
    fn refuse(&mut self, error: &str, task: Option<&TaskId>, who: &Identity, cx: &mut Context) {
        cx.stats.speech_errors += 1;
        self.push_error(error, task, who, cx.now);
    }

    fn push_error(&mut self, error: &str, task: Option<&TaskId>, who: &Identity, now: Moment) {
        self.errors += 1;
        note_step(who, now, || Event::SpeechError { error });
        self.push_text(&messages::error_message(error, task), who, now);
    }

    fn push_text(&mut self, text: &str, who: &Identity, now: Moment) {
        self.outbox.push_text(text);
        self.traffic.to_client.frames += 1;
        let head = ws::FrameHead::of_message(Opcode::Text, text.len() as u64);
        who.count_noted(Side::Downstream, &head, now);
    }

    /// Control frames to the worker: answers to its frames, pings, a Close frame.
    fn push_frames(&mut self, frames: &[u8], who: &Identity, now: Moment) {
        self.outbox.push(frames);
        FrameScanner::each_head(frames, |head| {
            self.traffic.to_client.frames += 1;
            who.count_noted(Side::Downstream, head, now);
        });
    }

    /// Reads what the worker sends, within the budget. `Err`: it is gone.
    fn read(&mut self, downstream: &mut Conn, who: &Identity, cx: &mut Context) -> Result<(), ()> {
        for _ in 0..BUDGET {
            if !self.can_read(downstream, who, cx) {
                break;
            }
            cx.with_scratch(|scratch, cx| match downstream.read(scratch) {
                Ok(Io::Moved(n)) => {
                    cx.work += n;
                    self.handle_bytes(&scratch[..n], who, cx);
                    Ok(())
                }
                Ok(Io::Blocked) => Ok(()),
                Ok(Io::Ended) | Err(_) => Err(()),
            })?;
        }
        Ok(())
    }

    /// The worker may have sent something, and there is room for it and for the answers.
    fn can_read(&self, downstream: &Conn, who: &Identity, cx: &mut Context) -> bool {
        if !downstream.is_readable() || self.leaving.is_some() {
            return false;
        }
        if cx.speech.is_full() {
            cx.speech.pause(who.id());
            return false;
        }
        self.outbox.held_bytes() <= ANSWERS_BYTES_MAX
    }

    /// Sends a Close frame behind what is in the outbox.
    fn leave(&mut self, reason: CloseReason, who: &Identity, now: Moment) {
        if self.leaving.is_some() {
            return;
        }
        let code = reason.close_code(Side::Downstream);
        note_step(who, now, || Event::Close { code, phrase: reason.phrase() });
        self.push_frames(&ws::close_frame(code, reason.phrase(), None), who, now);
        self.leaving = Some(IngestEnding { reason, closing: Closing::Received(Some(code)) });
    }

    fn ended(&self, leaving: IngestEnding, last: Last, who: &Identity, cx: &Context) -> Box<Ended> {
        let detail = Detail::Ingest { chunks: self.chunks, errors: self.errors };
        let IngestEnding { reason, closing } = leaving;
        let mut ended = Ended::new(reason, detail).with_last(last);
        (ended.client_close, ended.traffic) = (closing, self.counted());
        let (pings_sent, pongs_received) = self.pings.counts();
        ended.activity = Activity {
            client_idle: Some(cx.now - self.active_at),
            backend_idle: None,
            is_unfinished: self.reader.is_some() || Self::has_open_stream(who, cx),
            pings_sent,
            pongs_received,
        };
        ended
    }

    /// Ends at once, with nothing more to the worker. What had ended it before stays the reason.
    fn lose(&self, reason: CloseReason, who: &Identity, cx: &Context) -> Step {
        let closing = self.leaving.map_or(Closing::None, |leaving| leaving.closing.unseen());
        let reason = self.leaving.map_or(reason, |leaving| leaving.reason);
        Step::End(self.ended(IngestEnding { reason, closing }, Last::Dropped, who, cx))
    }

    /// What has been received and sent whole.
    fn counted(&self) -> BothWays {
        let mut traffic = self.traffic;
        traffic.to_client.frames -= self.outbox.unsent_frames();
        let is_half = self.reader.as_ref().is_some_and(|reader| reader.is_in_payload());
        traffic.from_client.frames -= u64::from(is_half);
        traffic
    }

    /// Bytes have been written.
    fn note_moved(&mut self, moved: usize) {
        let answer = moved.min(self.answer_left.into());
        self.answer_left -= answer as u16;
        self.traffic.to_client.bytes += (moved - answer) as u64;
    }

    /// Everything up to the Close frame has been written: what shows that the worker has it.
    fn awaited(&mut self, reason: CloseReason) -> Awaited {
        match reason {
            CloseReason::ClientClosed => Awaited::Nothing,
            CloseReason::ProtocolFault
            | CloseReason::NotUtf8
            | CloseReason::ClientMessageTooBig => Awaited::Fin,
            _ => Awaited::Close(self.reader.take().unwrap_or_default()),
        }
    }

    /// Pings, or closes a connection that is idle. False: the worker is gone.
    fn handle_deadline(&mut self, who: &Identity, cx: &mut Context) -> bool {
        match self.alive().verdict(&cx.settings, cx.now) {
            Verdict::Fine => {}
            Verdict::Ping if self.leaving.is_none() => {
                self.push_frames(&ws::ping_frame(b"", None), who, cx.now);
                self.pings.note_sent(who.into(), cx);
                self.heard_at = cx.now;
            }
            Verdict::Ping => {}
            Verdict::Gone => return false,
        }
        if self.idle_at(cx).is_some_and(|at| at <= cx.now) {
            self.leave(CloseReason::IdleTimeout, who, cx.now);
        }
        true
    }

    /// Whether a stream is open that the worker sends.
    fn has_open_stream(who: &Identity, cx: &Context) -> bool {
        cx.feeds.tasks_of(who.id()).any(|task| cx.speech.is_open(task))
    }

    fn note_alive(&mut self, now: Moment) {
        (self.heard_at, self.pings.is_unanswered) = (now, false);
    }

    fn alive(&self) -> Alive {
        let is_blocked = !self.outbox.is_empty();
        Alive { heard_at: self.heard_at, is_pinged: self.pings.is_unanswered, is_blocked }
    }

    fn idle_at(&self, cx: &Context) -> Option<Moment> {
        Some(self.active_at + cx.settings.idle_timeout?)
    }

    fn next_deadline(&self, cx: &Context) -> Option<Moment> {
        let stalled_at =
            self.stall.as_ref().and_then(|stall| stall.deadline(cx.settings.write_timeout));
        let alive_at = self.alive().deadline(&cx.settings, cx.now);
        let drain_at = self.is_draining.then(|| cx.now + DRAIN_INTERVAL);
        Moment::earliest([alive_at, self.idle_at(cx), stalled_at, drain_at])
    }
}

impl State for Ingest {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.read(downstream, who, cx).is_err() {
            return self.lose(CloseReason::ClientVanished, who, cx);
        }
        if self.is_draining && !Self::has_open_stream(who, cx) {
            self.leave(CloseReason::Draining, who, cx.now);
        }
        if self.wake_at.is_some_and(|at| at <= cx.now) && !self.handle_deadline(who, cx) {
            return self.lose(CloseReason::ClientSilent, who, cx);
        }
        match self.outbox.flush(downstream, None) {
            Ok(Flushed { is_blocked: true, moved }) => {
                self.note_moved(moved);
                let stall = self.stall.get_or_insert_with(|| Box::new(Stall::new(cx.now)));
                if moved > 0 {
                    stall.note_progress(cx.now);
                    self.note_alive(cx.now);
                }
                let stall = self.stall.get_or_insert_with(|| Box::new(Stall::new(cx.now)));
                if stall.check_timeout(downstream, cx.settings.write_timeout, cx.now) {
                    return self.lose(CloseReason::ClientStalled, who, cx);
                }
            }
            Ok(Flushed { is_blocked: false, moved }) => {
                self.note_moved(moved);
                if self.stall.take().is_some() {
                    self.note_alive(cx.now);
                }
                if let Some(leaving) = self.leaving {
                    let last = Last::Fin(self.awaited(leaving.reason));
                    return Step::End(self.ended(leaving, last, who, cx));
                }
            }
            Err(_) => return self.lose(CloseReason::ClientVanished, who, cx),
        }
        self.wake_at = self.next_deadline(cx);
        if self.reader.is_none() && self.outbox.is_empty() && !Self::has_open_stream(who, cx) {
            // It waits. What it did last is of no interest any more.
            who.forget_recent(cx);
        }
        // Bytes that were not read because the budget was used up cause no further event.
        match self.can_read(downstream, who, cx) {
            true => Step::Yield(Phase::Ingest(self)),
            false => Step::Wait(Phase::Ingest(self)),
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    /// Streams that are open may be sent to their end.
    fn drain(&mut self, drain: Drain, who: &Identity, cx: &mut Context) {
        self.is_draining = true;
        if drain == Drain::Leave {
            self.leave(CloseReason::Draining, who, cx.now);
        }
    }

    /// The next step works out its deadline anew.
    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        if self.leaving.is_some() { "closing" } else { "ingest" }
    }

    fn held_bytes(&self) -> usize {
        self.outbox.held_bytes()
    }

    fn own_bytes(&self) -> usize {
        let announced =
            self.announced.as_ref().map_or(0, |it| size_of::<Announced>() + it.fields.len());
        let reader = self.reader.as_ref().map_or(0, |reader| reader.held_bytes());
        size_of::<Ingest>() + self.outbox.own_bytes() + announced + reader
    }

    fn farewell(&self, reason: CloseReason) -> Option<Vec<u8>> {
        let is_at_boundary = self.leaving.is_none() && self.outbox.is_at_boundary();
        let code = reason.close_code(Side::Downstream);
        is_at_boundary.then(|| ws::close_frame(code, reason.phrase(), None))
    }

    fn release(self: Box<Self>, who: &Identity, cx: &mut Context) -> Box<Ended> {
        let leaving = IngestEnding { reason: CloseReason::Stopped, closing: Closing::None };
        self.ended(leaving, Last::Nothing, who, cx)
    }

    fn traffic(&self) -> Option<BothWays> {
        Some(self.counted())
    }

    fn active_at(&self) -> Option<Moment> {
        Some(self.active_at)
    }
}
