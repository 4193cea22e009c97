//! A worker that publishes to the embedded inbox, in the Redis protocol.
//!
//! It is a result inbox and not a Redis: `PUBLISH` does what it does there, what client libraries say on connecting is
//! answered so that they are content, and every other command is told clearly that it is not known. Each command is answered
//! in its place; a worker that does not read its answers is not read from.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::transcript::{Event, note};
use super::{
    Awaited, CloseReason, Context, Detail, Drain, Ended, Identity, Last, Phase, State, Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::resp::{CommandReader, Protocol, RespReply};
use log::warn;
use uuid::Uuid;

/// The largest command, and so the largest result.
const COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Answers that wait for the worker to read them. While there are more, it is not read from.
const ANSWERS_BYTES_MAX: usize = 64 * 1024;

/// Bytes read in one step, which may hold some 90 small results; then it is other sessions' turn.
const STEP_BYTES_MAX: usize = 8 * 1024;

/// Work that a byte of commands causes, in bytes written: see [`Context::work`].
const WORK_PER_BYTE: usize = 64;

/// What `INFO` says: client libraries look for `loading` before they send anything.
const SERVER: &str = concat!(
    "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\nserver_name:aivtuber-gateway\r\ngateway_version:",
    env!("CARGO_PKG_VERSION"),
    "\r\n# Persistence\r\nloading:0\r\n"
);

/// A worker's connection.
pub struct Inbox {
    requests: CommandReader,
    protocol: Protocol,
    answers: Vec<u8>,
    sent: usize,
    published: u64,
    is_quitting: bool,
}

impl Inbox {
    /// The phase of a worker that has just connected.
    pub fn phase() -> Phase {
        Phase::Inbox(Box::new(Inbox {
            requests: CommandReader::new(COMMAND_BYTES_MAX),
            protocol: Protocol::Resp2,
            answers: Vec::new(),
            sent: 0,
            published: 0,
            is_quitting: false,
        }))
    }

    fn ended(&self, reason: CloseReason) -> Box<Ended> {
        Ended::new(reason, Detail::Inbox { published: self.published })
    }

    /// True: all answers are out.
    fn flush(&mut self, downstream: &mut Conn) -> Result<bool, ()> {
        while self.sent < self.answers.len() {
            match downstream.write(&self.answers[self.sent..]) {
                Ok(Io::Moved(n)) => self.sent += n,
                Ok(_) => {
                    // What is out goes at once, or a worker that always leaves a few answers unread would make this grow for ever.
                    self.answers.drain(..std::mem::take(&mut self.sent));
                    return Ok(self.answers.len() < ANSWERS_BYTES_MAX && !self.is_quitting);
                }
                Err(_) => return Err(()),
            }
        }
        (self.answers, self.sent) = (Vec::new(), 0);
        Ok(true)
    }

    fn handle_bytes(&mut self, bytes: &[u8], who: &Identity, cx: &mut Context) {
        let mut input = bytes;
        while !self.is_quitting {
            match self.requests.decode(&mut input) {
                Ok(Some(command)) => self.handle_command(&command, who, cx),
                Ok(None) => return,
                Err(error) => {
                    warn!(target: "inbox", "{who} = protocol error: {error}");
                    self.answer(&RespReply::Error(&format!("ERR Protocol error: {error}")));
                    self.is_quitting = true;
                }
            }
        }
    }

    fn handle_command(&mut self, command: &[Vec<u8>], who: &Identity, cx: &mut Context) {
        let name = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
        note(who, || Event::Command { name: &name, arguments: command.len() - 1 });
        match (name.as_str(), &command[1..]) {
            ("PUBLISH", [channel, payload]) => {
                let heard = self.publish(channel, payload, who, cx);
                self.answer(&RespReply::Integer(heard));
            }
            ("PING", []) => self.answer(&RespReply::Simple("PONG")),
            ("PING" | "ECHO", [text]) => self.answer(&RespReply::Bulk(text)),
            ("AUTH", [_] | [_, _]) | ("SELECT", [_]) => self.answer(&RespReply::Simple("OK")),
            ("HELLO", arguments) => self.hello(arguments),
            ("CLIENT", [subcommand, ..]) => self.client(subcommand, who),
            ("INFO", _) => self.answer(&RespReply::Bulk(SERVER.as_bytes())),
            ("QUIT", _) => {
                self.answer(&RespReply::Simple("OK"));
                self.is_quitting = true;
            }
            ("PUBLISH" | "PING" | "ECHO" | "AUTH" | "SELECT" | "CLIENT", _) => {
                let name = name.to_ascii_lowercase();
                self.answer(&RespReply::Error(&format!(
                    "ERR wrong number of arguments for '{name}' command"
                )));
            }
            _ => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                self.answer(&RespReply::Error(&format!(
                    "ERR unknown command '{name}': this is the result inbox of aivtuber-gateway, which takes PUBLISH"
                )));
            }
        }
    }

    /// How many heard it: the gateway itself, or nobody.
    fn publish(&mut self, channel: &[u8], payload: &[u8], who: &Identity, cx: &mut Context) -> i64 {
        let Some(task) = task_of(channel, &cx.channel_prefix) else {
            note(who, || Event::NotATask);
            return 0;
        };
        self.published += 1;
        cx.results.publish(cx.now, task, payload);
        1
    }

    fn hello(&mut self, arguments: &[Vec<u8>]) {
        match arguments.first().map(Vec::as_slice) {
            Some(b"2") => self.protocol = Protocol::Resp2,
            Some(b"3") => self.protocol = Protocol::Resp3,
            None => {}
            Some(_) => {
                return self.answer(&RespReply::Error("NOPROTO unsupported protocol version"));
            }
        }
        let version = if self.protocol == Protocol::Resp3 { 3 } else { 2 };
        self.answer(&RespReply::Map(vec![
            (RespReply::Bulk(b"server"), RespReply::Bulk(b"aivtuber-gateway")),
            (RespReply::Bulk(b"version"), RespReply::Bulk(b"7.0.0")),
            (RespReply::Bulk(b"proto"), RespReply::Integer(version)),
            (RespReply::Bulk(b"mode"), RespReply::Bulk(b"standalone")),
            (RespReply::Bulk(b"role"), RespReply::Bulk(b"master")),
            (RespReply::Bulk(b"modules"), RespReply::Array(Vec::new())),
        ]));
    }

    fn client(&mut self, subcommand: &[u8], who: &Identity) {
        match subcommand.to_ascii_uppercase().as_slice() {
            b"ID" => self.answer(&RespReply::Integer(who.serial as i64)),
            b"GETNAME" => self.answer(&RespReply::Null),
            _ => self.answer(&RespReply::Simple("OK")),
        }
    }

    fn answer(&mut self, answer: &RespReply) {
        answer.write(self.protocol, &mut self.answers);
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
            match self.flush(downstream) {
                Ok(true) if self.is_quitting => {
                    // It may be sending still, and must be able to read what was wrong.
                    let ended = self.ended(CloseReason::Done);
                    return Step::End(ended.with_last(Last::Fin(Awaited::Fin)));
                }
                Ok(true) => {}
                Ok(false) => return Step::Wait(Phase::Inbox(self)),
                Err(()) => return Step::End(self.ended(CloseReason::ClientVanished)),
            }
            // Deliveries go first, and so do others after a full read.
            if cx.results.is_full() || bytes_read >= STEP_BYTES_MAX {
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
                Ok(Io::Blocked) => return Step::Wait(Phase::Inbox(self)),
                Ok(Io::Ended) => return Step::End(self.ended(CloseReason::Done)),
                Err(_) => return Step::End(self.ended(CloseReason::ClientVanished)),
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }

    /// Workers may publish until all waiting clients have their results.
    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {}

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "inbox"
    }

    fn held_bytes(&self) -> usize {
        self.answers.len() - self.sent
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        self.ended(CloseReason::Stopped)
    }
}

/// The task whose results are published on `channel`.
fn task_of(channel: &[u8], prefix: &str) -> Option<Uuid> {
    Uuid::try_parse_ascii(channel.strip_prefix(prefix.as_bytes())?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_a_prefix_and_a_uuid_in_any_form() {
        let task = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
        for form in [
            task.hyphenated().to_string(),
            task.simple().to_string(),
            task.to_string().to_uppercase(),
        ] {
            assert_eq!(
                task_of(format!("task_response:{form}").as_bytes(), "task_response:"),
                Some(task)
            );
        }
        assert_eq!(task_of(b"task_response:1", "task_response:"), None);
        assert_eq!(task_of(b"other:12345678-9abc-def0-1234-56789abcdef0", "task_response:"), None);
    }
}
