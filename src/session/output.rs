//! The WebSocket of a client that waits for a task's results, and gets them.
//!
//! ```text
//! Waiting ── a result ─► Sending: text ─► chunk, chunk, … ─► audio_complete ─► Waiting, or
//!    │                      │                                 │                 the next result
//!    │                      └── the file was changed ─────┐   └── it was the final one ─┐
//!    └── timeout, Redis away, drain, closed by the client ┴─────────────────────────────┴► Leaving
//! ```
//!
//! *Wire order is queue order*: everything is sent through the [`Outbox`], which holds little more
//! than the head of one chunk; the next message is made when it is empty. The bytes of a chunk are
//! never here: they go from the page cache to the socket. While nothing is being sent or half
//! received, a session owns no buffer, no reader and no file. What becomes of an audio file is in
//! `audio.rs`.

mod admission;
mod audio;
mod joining;
mod leaving;
mod opener;
mod pace;
mod progress;
mod reading;
mod receive;
mod streaming;
mod underway;

pub use audio::AudioFiles;
pub(in crate::session) use opener::{NOT_READABLE, Opener};

use super::alive::{Alive, Pings, Verdict};
use super::close::CloseReason;
use super::outbox::{FlushError, Flushed, Outbox};
use super::stall::Stall;
use super::transcript::{Event, Subject, note};
use super::visitor::Visitor;
use super::{Context, Drain, Ended, Identity, Last, Phase, State, Step, tap};
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::net::{Conn, Side};
use crate::proto::control;
use crate::proto::http::RequestHead;
use crate::proto::message::{self, AudioPresence, SharedResult, TaskId, TaskResult};
use crate::proto::upgrade::{self, Handshake};
use crate::proto::ws::{self, FrameHead, Opcode};
use crate::proto::ws_reader::WsReader;
use crate::service::audio_names::Mapping;
use crate::service::results::StoppedBy;
use crate::service::stats::BothWays;
use crate::service::streams::Stream;
use crate::service::tasks::{self, ClientState, TaskEnd};
use admission::{Rejected, Resume, refuse};
use audio::Audio;
use leaving::{OutputEnding, OutputFault};
use log::{info, warn};
use pace::Pace;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;
use underway::Order;

/// Reads from the client, and messages made for it, in one step.
const BUDGET: usize = 16;

/// Bytes of results that may wait for one client, beyond those that may have been retained for it.
/// A client that is further behind is closed; what is retained is there when it returns.
const RESULTS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much longer than its timeout a client waits while published results are still unread,
/// because a publisher sends faster than the gateway reads.
const UNREAD_RESULTS_TIMEOUT: Duration = Duration::from_secs(1);

/// How results are delivered: the `[output]` section, retention apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Timeout for a result, from the upgrade and again from each result; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Bytes of audio in one binary message. The last one may be shorter.
    pub chunk_size: usize,
    /// The folder that holds the audio files. Nothing outside of it is sent.
    pub audio_root: PathBuf,
    /// Prefixes in workers' paths, and what they are called on this machine.
    pub path_map: Vec<Mapping>,
    /// The folder for speech that workers send; empty: memory.
    pub spool: PathBuf,
    /// The largest audio file that is sent, and the longest speech that is taken, in bytes.
    pub max_audio: u64,
    /// How long a file may come after its result, and how long it must not have been written to
    /// before it counts as finished; `None`: no wait, and every file is finished.
    pub audio_wait: Option<Duration>,
    /// How long a growing file may be still; `None`: forever.
    pub audio_stall: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            timeout: Some(Duration::from_secs(300)),
            chunk_size: 64 * 1024,
            audio_root: PathBuf::from("/tmp/aivtuber_tasks"),
            path_map: Vec::new(),
            spool: PathBuf::new(),
            max_audio: 256 * 1024 * 1024,
            audio_wait: Some(Duration::from_secs(1)),
            audio_stall: Some(Duration::from_secs(10)),
        }
    }
}

/// A client that waits for the results of a task.
pub struct Output {
    task: TaskId,
    stage: ClientState,
    /// `None` while nothing is on its way.
    underway: Option<Box<Underway>>,
    /// When the wait for a result times out.
    due_at: Option<Moment>,
    /// When the client last proved alive (see [`super::alive`]), or was pinged, whichever came
    /// later.
    heard_at: Moment,
    pings: Pings,
    active_at: Moment,
    wake_at: Option<Moment>,
    /// What has been received, and what has been given to the outbox or, for bytes, has left it.
    traffic: BothWays,
}

/// What is on its way to the client or from it.
#[derive(Default)]
struct Underway {
    /// Results that are still to be sent, oldest first.
    results: VecDeque<SharedResult>,
    /// Bytes that they take in memory.
    result_bytes: usize,
    /// Further results are queued for this client.
    more_queued: bool,
    /// How the task ended with its final result. Results that came with it are still delivered.
    final_end: Option<TaskEnd>,
    /// What was wrong with a result that was delivered, the worst of it.
    fault: Option<OutputFault>,
    /// The audio of the result that is being sent.
    audio: Option<Audio>,
    /// What the client has already.
    resume: Resume,
    outbox: Outbox,
    leaving: Option<OutputEnding>,
    /// Bytes of the answer to the upgrade that have not been sent.
    answer_left: u16,
    /// Set while the socket is full.
    stall: Option<Box<Stall>>,
    pace: Pace,
    /// The reader of the client's frames, only while it is in the middle of a message.
    reader: Option<Box<WsReader>>,
}

impl Output {
    /// Completes the upgrade. `segment` is the task id as the path has it, `early` what followed
    /// the request.
    pub fn begin(
        handshake: &Handshake,
        segment: &str,
        head: &RequestHead<'_, '_>,
        early: &[u8],
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let mut accept = Vec::new();
        upgrade::write_accept(handshake, &mut accept);
        cx.stats.count_upgrade(who.route_name());
        cx.stats.count_http(101);
        let (task, resume) = (TaskId::read(segment), Resume::read(head.query()));
        let (reason, error) = match (&task, resume) {
            (None, _) => (CloseReason::BadTaskId, message::BAD_TASK_ID),
            (Some(_), Err(error)) => (CloseReason::BadTaskId, error),
            _ => (CloseReason::RedisAway, message::REDIS_AWAY),
        };
        let (Some(task), Ok(resume), false) = (task.clone(), resume, cx.results.is_redis_lost())
        else {
            return refuse(Rejected { accept, error, reason, task, early }, who, cx);
        };
        info!(target: "output", "{who} opened client={} task={task}{}", who.client(), Visitor::of(&head.headers));
        cx.stats.count_open(who.route_name());
        cx.results.join(cx.now, &task, who.id(), resume.seen());
        let mut output = Box::new(Output {
            task,
            stage: ClientState::Waiting,
            underway: Some(Box::new(Underway { resume, ..Underway::default() })),
            due_at: cx.after(cx.settings.output.timeout),
            heard_at: cx.now,
            pings: Pings::default(),
            active_at: cx.now,
            wake_at: None,
            traffic: BothWays::default(),
        });
        output.underway().outbox.push(&accept);
        output.underway().answer_left = accept.len() as u16;
        output.handle_bytes(early, who, cx);
        output.wake_at = output.next_deadline(cx);
        Step::Next(Phase::Output(output))
    }

    /// A result for its task, behind which it `has_more`. Acted on by the next step.
    pub fn handle_result(&mut self, result: SharedResult, has_more: bool) {
        if self.leaving().is_none() {
            let underway = self.underway();
            underway.more_queued = has_more;
            underway.result_bytes += result.bytes();
            underway.results.push_back(result);
        }
    }

    /// Its task was stopped: drops what has not been sent. Acted on by the next step.
    pub fn handle_stop(&mut self, by: StoppedBy, who: &Identity, cx: &mut Context) {
        if self.leaving().is_some() {
            return;
        }
        let underway = self.underway();
        underway.drop_results();
        let unsent = underway.outbox.unsent_frames();
        underway.outbox.drop_unsent();
        let dropped = unsent - underway.outbox.unsent_frames();
        self.traffic.to_client.frames -= dropped;
        let underway = self.underway();
        if !underway.outbox.has_chunk() {
            let audio = underway.audio.take();
            Output::release_audio(audio, cx);
        }
        self.push_text(&control::stop_ack(&self.task), who, cx);
        self.leave(CloseReason::TaskStopped, None, who, cx);
        if let Some(leaving) = &mut self.underway().leaving {
            leaving.by_worker = by == StoppedBy::Channel;
        }
    }

    /// Redis has been away for longer than its grace. Acted on by the next step.
    pub fn handle_redis_lost(&mut self, who: &Identity, cx: &mut Context) {
        if self.has_no_result() {
            self.leave_with_error(message::REDIS_AWAY, CloseReason::RedisAway, None, who, cx);
        }
    }

    /// How it is about to end, if it is.
    fn leaving(&self) -> Option<OutputEnding> {
        self.underway.as_ref()?.leaving
    }

    /// It waits for a result: none is being sent, and it is not about to end.
    pub fn is_waiting(&self) -> bool {
        self.leaving().is_none() && self.stage == ClientState::Waiting
    }

    /// The audio is not sent any further.
    fn release_audio(audio: Option<Audio>, cx: &mut Context) {
        if let Some(Audio::Streaming(streaming)) = audio {
            cx.streams.leave(streaming.stream());
        }
    }

    /// Makes the next messages, once the outbox is empty. False: there are none for now.
    fn produce(&mut self, who: &Identity, cx: &mut Context) -> bool {
        if let Some(audio) = self.underway().audio.take() {
            return self.continue_audio(audio, who, cx);
        }
        let Some(result) = self.underway().pop_result() else { return self.wait_again(who, cx) };
        let resume = &mut self.underway().resume;
        if let Some(id) = result.id() {
            if resume.has(id) {
                return self.skip_result(&result, who, cx);
            }
            resume.begin_with(id);
        }
        self.active_at = cx.now;
        if self.stage == ClientState::Waiting {
            cx.results.change_state(
                cx.now,
                self.task.uuid(),
                ClientState::Waiting,
                ClientState::Sending,
            );
            self.stage = ClientState::Sending;
        }
        if result.fault().is_some() && self.underway().has_more() {
            // A malformed result cannot say that others follow it.
            return self.begin_result(result.continued().shared(&cx.budget), who, cx);
        }
        self.begin_result(result, who, cx)
    }

    /// Leaves out a result that the client has. True: there may be more to do.
    fn skip_result(&mut self, result: &TaskResult, who: &Identity, cx: &mut Context) -> bool {
        let is_final = match result.id().filter(|_| result.is_speech()) {
            Some(id) => {
                let stream = cx.streams.find(self.task.uuid(), id);
                let stream = stream.and_then(|stream| cx.streams.stream(stream));
                stream.is_some_and(Stream::is_final_speech)
            }
            None => result.is_final(),
        };
        let is_last = is_final && !(result.fault().is_some() && self.underway().has_more());
        let order = if is_last { Order::Last } else { Order::MoreFollow };
        let end = if result.is_failure() { TaskEnd::Failed } else { TaskEnd::Completed };
        self.end_result(order, end, who, cx);
        true
    }

    /// Begins to deliver a result. False: it has to wait for its file.
    fn begin_result(&mut self, result: SharedResult, who: &Identity, cx: &mut Context) -> bool {
        if let Some(fault) = result.fault() {
            self.note_fault(OutputFault::Malformed(fault));
            warn!(target: "output", "{who} = the worker's result is malformed why={} task={}", Quoted(fault), self.task);
        }
        if result.is_speech() {
            return self.begin_speech(&result, who, cx);
        }
        if let Some(opener) = Opener::new(&result, cx) {
            return self.begin_audio(result, opener, who, cx);
        }
        self.push_result(&result, AudioPresence::Absent, who, cx);
        cx.stats.results_delivered += 1;
        info!(target: "output", "{who} delivers task={} audio=none failure={}", self.task, result.is_failure());
        let end = if result.is_failure() { TaskEnd::Failed } else { TaskEnd::Completed };
        if result.is_failure() && result.is_final() {
            self.note_fault(OutputFault::Worker);
        }
        self.end_result(Order::of(&result), end, who, cx);
        true
    }

    /// The last message of a result is in the outbox.
    fn end_result(&mut self, order: Order, end: TaskEnd, who: &Identity, cx: &mut Context) {
        self.end_result_with(order, end, CloseReason::Delivered, who, cx);
    }

    /// The same. If nothing follows, the client is closed for this reason.
    fn end_result_with(
        &mut self,
        order: Order,
        end: TaskEnd,
        reason: CloseReason,
        who: &Identity,
        cx: &mut Context,
    ) {
        let underway = self.underway();
        if order == Order::Last {
            underway.final_end = Some(end);
        }
        if !underway.has_more() && underway.final_end.is_some() {
            let end = underway.final_end;
            let reason = match (reason, underway.fault) {
                (CloseReason::Delivered, Some(fault)) => fault.reason(),
                _ => reason,
            };
            self.leave(reason, end, who, cx);
        }
    }

    /// Frees what a client that only waits does not need.
    fn free_what_is_over(&mut self, who: &mut Identity, cx: &mut Context) {
        if self.underway.as_ref().is_some_and(|underway| underway.is_over()) {
            self.underway = None;
            who.forget_recent(cx);
        }
    }

    /// Everything has been sent: waits for the next result, or leaves where none can come. True: it
    /// leaves.
    fn wait_again(&mut self, who: &Identity, cx: &mut Context) -> bool {
        if self.stage == ClientState::Waiting {
            return false;
        }
        cx.results.change_state(
            cx.now,
            self.task.uuid(),
            ClientState::Sending,
            ClientState::Waiting,
        );
        self.stage = ClientState::Waiting;
        self.due_at = cx.after(cx.settings.output.timeout);
        if cx.is_draining {
            self.leave(CloseReason::Draining, None, who, cx);
        } else if cx.results.is_redis_lost() {
            self.leave_with_error(message::REDIS_AWAY, CloseReason::RedisAway, None, who, cx);
        }
        self.leaving().is_some()
    }

    /// The text message of a result.
    fn push_result(
        &mut self,
        result: &SharedResult,
        audio: AudioPresence,
        who: &Identity,
        cx: &mut Context,
    ) {
        let underway = self.underway.get_or_insert_default();
        let length = underway.outbox.push_result(result, &self.task, audio);
        let text = tap::shows_payload().then(|| result.message(&self.task, audio));
        self.traffic.to_client.frames += 1;
        let head = FrameHead::of_message(Opcode::Text, length as u64);
        who.count_frame(Side::Downstream, &head, cx);
        let text = text.as_deref();
        note(Subject::Task(who, &self.task), || Event::Text { length, text });
        self.note_sent(tasks::TaskEvent::TextSent, cx);
    }

    /// Something of the task was given to this client.
    fn note_sent(&self, event: tasks::TaskEvent, cx: &mut Context) {
        let milestones = cx.results.note_sent(cx.now, self.task.uuid(), event);
        cx.stats.observe_task(milestones);
    }

    fn push_text(&mut self, text: &str, who: &Identity, cx: &mut Context) {
        self.underway().outbox.push_text(text);
        self.traffic.to_client.frames += 1;
        let head = FrameHead::of_message(Opcode::Text, text.len() as u64);
        who.count_frame(Side::Downstream, &head, cx);
        let (length, text) = (text.len(), Some(text));
        note(Subject::Task(who, &self.task), || Event::Text { length, text });
    }

    /// Pings, gives up waiting, or, returning false, gives up the client.
    fn handle_deadline(&mut self, who: &Identity, cx: &mut Context) -> bool {
        match self.alive().verdict(&cx.settings, cx.now) {
            Verdict::Fine => {}
            Verdict::Ping if self.leaving().is_none() => {
                self.push_frames(&ws::ping_frame(b"", None), who, cx);
                self.pings.note_sent(Subject::Task(who, &self.task), cx);
                self.heard_at = cx.now;
            }
            Verdict::Ping => {}
            Verdict::Gone => return false,
        }
        // A result that was published in time may be among what is still to be read.
        let grace = if cx.has_unread_results { UNREAD_RESULTS_TIMEOUT } else { Duration::ZERO };
        if self.is_timed() && self.due_at.is_some_and(|at| at + grace <= cx.now) {
            let audio = self.underway.as_mut().and_then(|underway| underway.audio.take());
            Output::release_audio(audio, cx);
            self.leave_with_error(
                message::TIMED_OUT,
                CloseReason::TaskTimeout,
                Some(TaskEnd::TimedOut),
                who,
                cx,
            );
        }
        true
    }

    /// Whether the timeout counts: nothing has come for the client, or nothing more of audio that
    /// is still being made.
    fn is_timed(&self) -> bool {
        let waits_for_audio = |underway: &Underway| match &underway.audio {
            Some(Audio::Streaming(streaming)) => {
                streaming.is_waiting() && underway.outbox.is_empty()
            }
            _ => false,
        };
        self.has_no_result() || self.underway.as_deref().is_some_and(waits_for_audio)
    }

    /// Nothing has come for the client. A result that has come may still
    /// wait for the client to take what was sent before.
    fn has_no_result(&self) -> bool {
        self.stage == ClientState::Waiting
            && self.underway.as_ref().is_none_or(|underway| underway.results.is_empty())
    }

    /// Sends what is queued.
    fn flush(&mut self, downstream: &mut Conn, cx: &mut Context) -> Result<Flushed, FlushError> {
        pace::begin_to_limit(downstream);
        let Underway { outbox, audio, .. } = self.underway();
        // A chunk and its announcement are a little more than a large packet. Without this, every
        // second packet would be tiny. The text before the first chunk does not wait for the disk.
        if outbox.has_chunk() && audio.as_ref().is_some_and(Audio::is_bulk) {
            downstream.set_corked(true);
        }
        let flushed = outbox.flush(downstream, audio.as_ref().and_then(Audio::file))?;
        let answer_left = &mut self.underway().answer_left;
        let answer = flushed.moved.min((*answer_left).into());
        *answer_left -= answer as u16;
        self.traffic.to_client.bytes += (flushed.moved - answer) as u64;
        let sent = self.traffic.to_client.bytes;
        if flushed.is_blocked
            && let Some(taken) = self.underway().pace.handle_full(cx.now, sent)
        {
            pace::follow(taken, cx.socket_buffers, downstream);
        }
        // A full socket that takes bytes proves that the client is alive. One that has room again
        // can be pinged again, and its silence counts from now on.
        let is_alive = match flushed.is_blocked {
            true => flushed.moved > 0,
            false => self.underway().stall.take().is_some(),
        };
        if is_alive {
            self.note_alive(cx.now);
        }
        Ok(flushed)
    }

    /// The socket took `moved` bytes and is full. Returns whether it has taken none for too long.
    fn check_stall(&mut self, moved: usize, downstream: &Conn, cx: &Context) -> bool {
        let stall = self.underway().stall.get_or_insert_with(|| Box::new(Stall::new(cx.now)));
        if moved > 0 {
            stall.note_progress(cx.now);
        }
        stall.check_timeout(downstream, cx.settings.write_timeout, cx.now)
    }

    /// Ends at once, with nothing more to the client. What had ended it before stays the reason,
    /// unless the rest of its results is lost.
    fn lose(self, reason: CloseReason, who: &Identity, cx: &mut Context) -> Step {
        let decided = self.leaving().filter(|leaving| !leaving.reason.is_delivery());
        let leaving = decided.map_or(OutputEnding::abrupt(reason), OutputEnding::unseen);
        Step::End(self.end(leaving, Last::Dropped, who, cx))
    }

    fn underway(&mut self) -> &mut Underway {
        self.underway.get_or_insert_default()
    }

    fn note_alive(&mut self, now: Moment) {
        (self.heard_at, self.pings.is_unanswered) = (now, false);
    }

    fn alive(&self) -> Alive {
        let is_blocked = self.underway.as_ref().is_some_and(|underway| !underway.outbox.is_empty());
        Alive { heard_at: self.heard_at, is_pinged: self.pings.is_unanswered, is_blocked }
    }

    fn next_deadline(&self, cx: &Context) -> Option<Moment> {
        let due_at = self.due_at.filter(|_| self.is_timed() && self.leaving().is_none());
        let underway = self.underway.as_ref();
        let stall = underway.and_then(|underway| underway.stall.as_ref());
        let stalled_at = stall.and_then(|stall| stall.deadline(cx.settings.write_timeout));
        let audio_at = underway.and_then(|underway| underway.audio.as_ref()?.deadline());
        let alive_at = self.alive().deadline(&cx.settings, cx.now);
        Moment::earliest([alive_at, due_at, stalled_at, audio_at])
    }
}

impl State for Output {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.read(downstream, who, cx).is_err() {
            return self.lose(CloseReason::ClientVanished, who, cx);
        }
        let bytes_max = cx.results.tasks().settings().max_retained + RESULTS_BYTES_MAX;
        if self
            .underway
            .as_ref()
            .is_some_and(|it| it.result_bytes > bytes_max && it.results.len() > 1)
        {
            self.underway().drop_results();
            self.leave(CloseReason::ClientTooSlow, None, who, cx);
        }
        self.check_audio(who, cx);
        let mut has_more = false;
        let mut is_full = false;
        for budget in (0..BUDGET).rev() {
            match self.flush(downstream, cx) {
                Ok(Flushed { is_blocked: true, moved }) => {
                    if self.check_stall(moved, downstream, cx) {
                        return self.lose(CloseReason::ClientStalled, who, cx);
                    }
                    is_full = true;
                    break;
                }
                Ok(Flushed { is_blocked: false, .. }) => {}
                Err(FlushError::Client) => return self.lose(CloseReason::ClientVanished, who, cx),
                Err(FlushError::File) => {
                    // In the middle of a frame no error can be sent, and wrong bytes must not be.
                    let leaving = self.cut_off(who, cx);
                    return Step::End(self.end(leaving, Last::Nothing, who, cx));
                }
            }
            if self.underway().audio.is_none() || self.leaving().is_some() {
                downstream.set_corked(false);
            }
            if let Some(leaving) = self.leaving() {
                let last = Last::Fin(self.awaited(leaving.reason));
                return Step::End(self.end(leaving, last, who, cx));
            }
            if !self.produce(who, cx) {
                // What comes next may take a while.
                self.underway().pace.pause();
                downstream.set_corked(false);
                break;
            }
            has_more = budget == 0;
        }
        // Judged last: what the client had sent, and the results that had come, have been taken.
        if self.wake_at.is_some_and(|at| at <= cx.now) {
            if !self.handle_deadline(who, cx) {
                return self.lose(CloseReason::ClientSilent, who, cx);
            }
            if !is_full && !self.underway().outbox.is_empty() {
                self.wake_at = self.next_deadline(cx);
                return Step::Next(Phase::Output(self));
            }
        }
        self.free_what_is_over(who, cx);
        self.wake_at = self.next_deadline(cx);
        // Bytes that were not read because too much was held cause no further event.
        has_more |= self.can_read(downstream);
        if has_more { Step::Yield(Phase::Output(self)) } else { Step::Wait(Phase::Output(self)) }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    /// A result that is on its way still arrives. A client that only waits is closed, to reconnect.
    fn drain(&mut self, drain: Drain, who: &Identity, cx: &mut Context) {
        if drain == Drain::Leave || self.has_no_result() {
            self.leave(CloseReason::Draining, None, who, cx);
        }
    }

    /// The next step works out its deadline anew.
    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        match (self.leaving(), self.stage) {
            (Some(_), _) => "closing",
            (None, ClientState::Waiting) => "waiting",
            (None, ClientState::Sending) => "sending",
        }
    }

    fn held_bytes(&self) -> usize {
        self.underway.as_ref().map_or(0, |underway| underway.outbox.held_bytes())
    }

    fn own_bytes(&self) -> usize {
        self.underway.as_ref().map_or(0, |underway| underway.own_bytes())
    }

    fn charged_bytes(&self) -> usize {
        self.underway.as_ref().map_or(0, |underway| underway.shared_bytes())
    }

    fn farewell(&self, reason: CloseReason) -> Option<Vec<u8>> {
        let is_at_boundary = self.leaving().is_none()
            && self.underway.as_ref().is_none_or(|underway| underway.outbox.is_at_boundary());
        let code = reason.close_code(Side::Downstream);
        is_at_boundary.then(|| ws::close_frame(code, reason.phrase(), None))
    }

    fn release(self: Box<Self>, who: &Identity, cx: &mut Context) -> Box<Ended> {
        self.end(OutputEnding::abrupt(CloseReason::Stopped), Last::Nothing, who, cx)
    }

    fn traffic(&self) -> Option<BothWays> {
        Some(self.counted())
    }

    fn task(&self) -> Option<&TaskId> {
        Some(&self.task)
    }

    fn active_at(&self) -> Option<Moment> {
        Some(self.active_at)
    }
}
