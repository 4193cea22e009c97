//! A worker that publishes to the embedded inbox, in the Redis protocol, or listens to its control
//! channels.
//!
//! Each command is answered in its place. A worker that does not read its replies is not read from,
//! and one that takes none of what waits for it within `write_timeout`, or has too many messages of
//! its channels waiting, is disconnected.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

mod dialogue;

use super::stall::Stall;
use super::transcript::{Event, note, note_step};
use super::{
    Awaited, CloseReason, Context, Detail, Drain, Ended, Identity, Last, Limit, Phase, Session,
    State, Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::resp::{CommandReader, RespReply};
use crate::service::link::Password;
use crate::service::results::StoppedBy;
pub use dialogue::ChannelMessage;
use dialogue::{Dialogue, Published, Rules};
use log::warn;
use std::time::Duration;

/// The largest command, in bytes, and so the largest result.
const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same before a worker has given the password.
const LOGIN_BYTES_MAX: usize = 16 * 1024;
/// Bytes of replies that wait for the worker. While there are more, it is not read from.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of replies and messages that wait for a subscriber. One with more is disconnected.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Bytes read in one step, which may hold some 90 small results; then other sessions have their
/// turn.
const STEP_BYTES_MAX: usize = 8 * 1024;
/// Work that a byte of commands causes, in bytes written: see [`Context::work`].
const WORK_PER_BYTE: usize = 64;
/// A worker is disconnected when no byte moved for this long. Its library connects again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The same in the middle of a command or of a transaction, or before the password.
const UNFINISHED_TIMEOUT: Duration = Duration::from_secs(300);

impl Session {
    /// A message on a control channel that it is subscribed to. Acted on by the next
    /// [`Session::drive`].
    pub fn handle_publication(&mut self, message: ChannelMessage<'_>, now: Moment) {
        if let Phase::Inbox(inbox) = &mut self.phase {
            inbox.handle_publication(message, now);
        }
    }

    /// A worker's connection to the embedded inbox.
    pub fn inbox(who: Identity, downstream: Conn, cx: &Context) -> Session {
        let phase = Inbox::phase(cx);
        Session { who, downstream, phase, is_yielded: false, own_bytes: 0, kernel_pages: 0 }
    }

    /// A worker for which there is no room.
    pub fn refused_worker(who: Identity, downstream: Conn, cx: &Context) -> Session {
        let ended = Ended::new(CloseReason::Refused, Detail::Refused(Limit::Workers));
        let phase =
            super::linger::Linger::phase(ended.with_last(Last::Answer(Inbox::refusal())), cx);
        Session { who, downstream, phase, is_yielded: false, own_bytes: 0, kernel_pages: 0 }
    }
}

/// A worker's connection.
pub struct Inbox {
    reader: CommandReader,
    dialogue: Dialogue,
    /// Bytes of `dialogue.replies` that have been sent.
    sent: usize,
    /// Results that it has published, for its closing line. STOPs are not counted.
    published: u64,
    /// When a byte last moved, either way.
    active_at: Moment,
    /// Timeout for the next one.
    timeout: Duration,
    /// Bytes that the worker had not acknowledged when that was last over.
    unacknowledged: Option<usize>,
    /// Set while replies or messages wait for room in its socket.
    stall: Option<Stall>,
    /// When that has to be looked at again.
    stalled_at: Option<Moment>,
    /// The worker takes no replies any more. What it has sent still counts.
    is_deaf: bool,
    /// More messages wait for it than may.
    is_overrun: bool,
}

impl Inbox {
    /// The phase of a worker that has just connected.
    pub fn phase(cx: &Context) -> Phase {
        Phase::Inbox(Box::new(Inbox {
            reader: CommandReader::new(COMMAND_BYTES_MAX),
            dialogue: Dialogue::default(),
            sent: 0,
            published: 0,
            active_at: cx.now,
            timeout: UNFINISHED_TIMEOUT,
            unacknowledged: None,
            stall: None,
            stalled_at: None,
            is_deaf: false,
            is_overrun: false,
        }))
    }

    /// The reply to a worker for which there is no room.
    pub fn refusal() -> Vec<u8> {
        let mut reply = Vec::new();
        RespReply::Error("ERR max number of clients reached").write(Default::default(), &mut reply);
        reply
    }

    /// A message on a channel that it listens to.
    pub fn handle_publication(&mut self, message: ChannelMessage<'_>, now: Moment) {
        if self.is_deaf || self.is_overrun || self.dialogue.is_over {
            return;
        }
        if self.dialogue.replies.is_empty() {
            // The time that it has to take something begins now.
            self.active_at = now;
        }
        self.dialogue.handle_message(message);
        self.is_overrun = self.held_bytes() > MESSAGE_BYTES_MAX;
    }

    fn ended(&self, reason: CloseReason) -> Box<Ended> {
        let mut ended = Ended::new(reason, Detail::Inbox { published: self.published });
        ended.activity.is_unfinished = self.is_unfinished();
        ended
    }

    /// Whether a command or a transaction has begun and not ended.
    fn is_unfinished(&self) -> bool {
        !self.reader.is_idle() || self.dialogue.is_in_transaction()
    }

    /// Sends replies. True: the worker may be read from.
    fn flush(&mut self, downstream: &mut Conn, now: Moment) -> bool {
        let replies = &mut self.dialogue.replies;
        while self.sent < replies.len() && !self.is_deaf {
            match downstream.write(&replies[self.sent..]) {
                Ok(Io::Moved(n)) => {
                    self.sent += n;
                    self.stall = None;
                    // A worker that reads slowly is not idle.
                    self.active_at = now;
                }
                Ok(_) => {
                    self.stall.get_or_insert_with(|| Stall::new(now));
                    // What is sent is removed at once. A worker that always leaves a few replies
                    // unread would make this grow forever.
                    replies.drain(..std::mem::take(&mut self.sent));
                    return replies.len() < REPLY_BYTES_MAX && !self.dialogue.is_over;
                }
                // A worker that publishes and closes without reading the replies resets the
                // connection. What it had sent before is still here to be read.
                Err(_) => self.is_deaf = true,
            }
        }
        (*replies, self.sent, self.stall) = (Vec::new(), 0, None);
        true
    }

    fn handle_bytes(&mut self, bytes: &[u8], who: &Identity, cx: &mut Context) {
        who.begin_recent(cx);
        let password = cx.inbox_password.clone();
        let mut input = bytes;
        while !self.dialogue.is_over {
            let rules = Rules {
                channel_prefix: &cx.channel_prefix,
                control_prefix: &cx.control_prefix,
                password: password.as_ref().map(Password::text),
                connection: who.serial,
                id: who.id(),
            };
            self.reader.set_size_max(match self.dialogue.may_enter(rules) {
                true => COMMAND_BYTES_MAX,
                false => LOGIN_BYTES_MAX,
            });
            match self.reader.decode(&mut input) {
                Ok(Some(command)) => {
                    let name = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
                    let arguments = command.len() - 1;
                    match &*name {
                        // What follows from it is remembered.
                        "PUBLISH" => note(who, || Event::Command { name: &name, arguments }),
                        _ => note_step(who, cx.now, || Event::Command { name: &name, arguments }),
                    }
                    let bytes = command.iter().map(Vec::len).sum();
                    if name == "PUBLISH" && cx.budget.refuses(bytes) {
                        warn!(target: "inbox", "{who} = refused a result of {bytes} bytes: out of memory budget");
                        self.dialogue.refuse("ERR out of memory budget");
                    } else {
                        self.dialogue.handle_command(command, rules, &mut cx.channels);
                    }
                    if std::mem::take(&mut self.dialogue.has_failed_login) {
                        let client = who.client();
                        warn!(target: "inbox", "{who} = wrong password client={client}");
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    warn!(target: "inbox", "{who} = protocol error: {error}");
                    self.dialogue.fail(&error.to_string());
                }
            }
            for _ in 0..std::mem::take(&mut self.dialogue.not_tasks) {
                note_step(who, cx.now, || Event::NotATask);
            }
            for published in self.dialogue.published.drain(..) {
                match published {
                    Published::Result(task, payload) => {
                        let bytes = payload.len();
                        note_step(who, cx.now, || Event::Published { task, bytes });
                        self.published += 1;
                        cx.results.publish(cx.now, task, &payload);
                    }
                    Published::Stop(task) => cx.results.stop(cx.now, task, StoppedBy::Channel),
                }
            }
        }
        let is_locked = password.is_some() && !self.dialogue.is_authenticated;
        self.active_at = cx.now;
        self.timeout = match is_locked || self.is_unfinished() {
            true => UNFINISHED_TIMEOUT,
            false => IDLE_TIMEOUT,
        };
    }
}

impl State for Inbox {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let mut bytes_read = 0;
        loop {
            if self.is_overrun {
                return Step::End(self.ended(CloseReason::ClientTooSlow));
            }
            if !self.flush(downstream, cx.now) {
                return self.wait(downstream, who, cx);
            }
            if self.dialogue.is_over {
                // It may still be sending, and must be able to read what was wrong.
                let ended = self.ended(CloseReason::Done);
                return Step::End(ended.with_last(Last::Fin(Awaited::Fin)));
            }
            // Deliveries go first, and so do others after a full read.
            if cx.results.is_full() || cx.channels.is_full() || bytes_read >= STEP_BYTES_MAX {
                return Step::Yield(Phase::Inbox(self));
            }
            let read = cx.with_scratch(|scratch, cx| {
                let read = downstream.read(&mut scratch[..STEP_BYTES_MAX - bytes_read]);
                if let Ok(Io::Moved(n)) = read {
                    cx.work += WORK_PER_BYTE * n;
                    self.handle_bytes(&scratch[..n], who, cx);
                }
                read
            });
            match read {
                Ok(Io::Moved(n)) => bytes_read += n,
                Ok(Io::Blocked) => return self.wait(downstream, who, cx),
                Ok(Io::Ended) if !self.is_deaf && !self.is_unfinished() => {
                    return Step::End(self.ended(CloseReason::Done));
                }
                Ok(Io::Ended) | Err(_) => {
                    return Step::End(self.ended(CloseReason::ClientVanished));
                }
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        Moment::earliest([self.idle_at(), self.stalled_at])
    }

    /// Workers may publish until all waiting clients have their results.
    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {}

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "inbox"
    }

    fn held_bytes(&self) -> usize {
        self.dialogue.replies.len() - self.sent
    }

    fn own_bytes(&self) -> usize {
        self.reader.held_bytes() + self.dialogue.held_bytes()
    }

    fn farewell(&self, reason: CloseReason) -> Option<Vec<u8>> {
        let mut last = Vec::new();
        RespReply::Error(&format!("ERR {}", reason.phrase())).write(Default::default(), &mut last);
        self.dialogue.replies.is_empty().then_some(last)
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        self.ended(CloseReason::Stopped)
    }
}

impl Inbox {
    /// When it counts as idle. A subscriber that has taken everything may listen for as long as it
    /// is there, which keep-alive probes of TCP find out.
    fn idle_at(&self) -> Option<Moment> {
        let is_listening = self.dialogue.is_subscribed()
            && self.timeout == IDLE_TIMEOUT
            && self.dialogue.replies.is_empty();
        (!is_listening).then(|| self.active_at + self.timeout)
    }

    /// Waits for the worker. Its time is up only if nothing was left to read, and if it does not
    /// take what it was sent: the kernel, or a transport that buffers, may hold replies that it
    /// reads slowly.
    fn wait(mut self: Box<Self>, downstream: &Conn, who: &mut Identity, cx: &mut Context) -> Step {
        let write_timeout = cx.settings.write_timeout;
        if let Some(stall) = &mut self.stall
            && stall.check_timeout(downstream, write_timeout, cx.now)
        {
            return Step::End(self.ended(CloseReason::ClientStalled).with_last(Last::Dropped));
        }
        self.stalled_at = self.stall.and_then(|stall| stall.deadline(write_timeout));
        if self.idle_at().is_some_and(|at| at <= cx.now) {
            let left = downstream.unacknowledged();
            // Once a worker is gone, the number no longer changes.
            let is_taking = left.is_some_and(|left| left > 0) && left != self.unacknowledged;
            if !is_taking {
                return Step::End(self.ended(CloseReason::IdleTimeout));
            }
            (self.unacknowledged, self.active_at) = (left, cx.now);
        }
        if !self.is_unfinished() && self.dialogue.replies.is_empty() {
            // What it did last is of no interest any more.
            who.forget_recent(cx);
        }
        Step::Wait(Phase::Inbox(self))
    }
}

#[cfg(test)]
mod tests;
