//! One plain sentence that says why a connection ended, for the log and `/connections/closed`.
//!
//! It begins as the table in `close.rs` has it. What follows depends on what is known: what went
//! wrong, how long the side that ended it had said nothing, and what the other side was doing.

use super::{Activity, Detail, Ended};
use crate::net::Side;
use crate::proto::ws::cut_at_char;
use crate::service::stats::{BothWays, Traffic};
use crate::service::tasks::ClientState;
use crate::session::close::{CloseReason, Closing};
use std::fmt;
use std::time::Duration;

/// From this silence on, the side that did not end the connection is called idle.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// The longest text from outside in a sentence, in bytes.
const WHAT_BYTES_MAX: usize = 200;

/// The sentence.
pub struct Sentence<'e>(pub &'e Ended);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sentence(ended) = self;
        let (before, after) =
            ended.reason.sentence().split_once("{code}").unwrap_or((ended.reason.sentence(), ""));
        f.write_str(before)?;
        if let CloseReason::ClientClosed | CloseReason::BackendClosed = ended.reason {
            let closing = match ended.reason {
                CloseReason::ClientClosed => ended.client_close,
                _ => ended.backend_close,
            };
            write!(f, "{}{after}", WithCode(closing))?;
        }
        if let Some(what) = what(&ended.detail) {
            // What comes from outside is cut.
            let cut = cut_at_char(what, WHAT_BYTES_MAX);
            write!(f, ": {cut}{}", if cut.len() < what.len() { "…" } else { "" })?;
        }
        match &ended.detail {
            Detail::Relay => write_relay(f, ended)?,
            Detail::Output { state, .. } => write_output(f, ended, *state)?,
            Detail::Ingest { .. } => write_ingest(f, ended)?,
            Detail::LeftWhileDialing => f.write_str(", before a backend had answered")?,
            _ => {}
        }
        f.write_str(".")
    }
}

struct WithCode(Closing);

impl fmt::Display for WithCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.code() {
            Some(code) => write!(f, "with code {code}"),
            None => f.write_str("without a code"),
        }
    }
}

/// What went wrong, in words that came with it.
fn what(detail: &Detail) -> Option<&str> {
    match detail {
        Detail::BadRequest { why, .. } => Some(why),
        Detail::Handshake { why } => Some(why),
        Detail::OriginNotAllowed { origin } => Some(origin),
        Detail::Refused(limit) => Some(limit.why()),
        Detail::NoBackend { what, .. } => Some(what),
        Detail::CannotSubscribe { error, .. } => Some(error),
        Detail::Output { fault, .. } => fault.as_deref(),
        Detail::Http
        | Detail::LeftWhileDialing
        | Detail::Relay
        | Detail::Inbox { .. }
        | Detail::Ingest { .. } => None,
    }
}

/// The side that ended a relay, where what it was doing tells something.
fn side_of(reason: CloseReason) -> Option<Side> {
    match reason {
        CloseReason::ClientClosed
        | CloseReason::ClientVanished
        | CloseReason::ClientSilent
        | CloseReason::ClientStalled => Some(Side::Downstream),
        CloseReason::BackendClosed
        | CloseReason::BackendVanished
        | CloseReason::BackendSilent
        | CloseReason::BackendStalled => Some(Side::Upstream),
        _ => None,
    }
}

fn write_relay(f: &mut fmt::Formatter<'_>, ended: &Ended) -> fmt::Result {
    let Some(side) = side_of(ended.reason) else { return Ok(()) };
    let (own, other) = match side {
        Side::Downstream => (ended.activity.client_idle, ended.activity.backend_idle),
        Side::Upstream => (ended.activity.backend_idle, ended.activity.client_idle),
    };
    let BothWays { from_client, to_client } = ended.traffic;
    let Traffic { frames, .. } = if side == Side::Downstream { from_client } else { to_client };
    // A Close frame is no message, but it is counted.
    let closes = u64::from(is_by_close(ended.reason));
    match own {
        Some(idle) if frames > closes => write!(f, ", {} after its last message", Time(idle))?,
        _ => f.write_str(", before it had sent anything")?,
    }
    if ended.activity.is_unfinished && !is_by_close(ended.reason) {
        f.write_str(", in the middle of a message")?;
    }
    match other {
        Some(idle) if idle >= IDLE_MIN => {
            write!(f, ", while the {} was idle", side.other().word())
        }
        _ => Ok(()),
    }
}

fn write_output(f: &mut fmt::Formatter<'_>, ended: &Ended, state: ClientState) -> fmt::Result {
    let Activity { is_unfinished, .. } = ended.activity;
    match (side_of(ended.reason), state) {
        (None, _) => Ok(()),
        (Some(_), ClientState::Waiting) if !is_unfinished => {
            f.write_str(", while it waited for a result")
        }
        (Some(_), _) => f.write_str(", while a result was being sent to it"),
    }
}

fn write_ingest(f: &mut fmt::Formatter<'_>, ended: &Ended) -> fmt::Result {
    match side_of(ended.reason) {
        Some(_) if ended.activity.is_unfinished => f.write_str(", before its speech was complete"),
        _ => Ok(()),
    }
}

fn is_by_close(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::ClientClosed | CloseReason::BackendClosed)
}

/// A time for people: `0.3 s`, `31 s`, `12 min`, `5 h`.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..10 => write!(f, "{}.{} s", seconds, self.0.subsec_millis() / 100),
            10..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            _ => write!(f, "{} h", seconds / 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Answered, Limit};
    use super::*;
    use crate::proto::message::TaskId;
    use crate::service::limits::Refusal;

    fn relay(reason: CloseReason, change: impl FnOnce(&mut Ended)) -> String {
        let mut ended = Ended::new(reason, Detail::Relay);
        ended.activity.client_idle = Some(Duration::from_millis(250));
        ended.activity.backend_idle = Some(Duration::from_secs(31));
        ended.traffic.from_client.frames = 5;
        ended.traffic.to_client.frames = 5;
        change(&mut ended);
        Sentence(&ended).to_string()
    }

    #[test]
    fn a_relay_ends_with_what_both_sides_were_doing() {
        assert_eq!(
            relay(CloseReason::BackendVanished, |ended| {
                ended.activity.client_idle = Some(Duration::from_secs(150));
            }),
            "The backend closed the TCP connection without a close frame, 31 s after its last \
             message, while the client was idle."
        );
        assert_eq!(
            relay(CloseReason::ClientClosed, |ended| {
                ended.client_close = Closing::Sent(Some(1000));
            }),
            "The client closed the connection with code 1000, 0.2 s after its last message, while \
             the backend was idle."
        );
        assert_eq!(
            relay(CloseReason::BackendClosed, |ended| {
                ended.backend_close = Closing::Sent(None);
                ended.traffic.to_client.frames = 1;
            }),
            "The backend closed the connection without a code, before it had sent anything."
        );
        assert_eq!(
            relay(CloseReason::ClientVanished, |ended| {
                ended.activity.is_unfinished = true;
                ended.activity.backend_idle = Some(Duration::ZERO);
            }),
            "The client closed the TCP connection without a close frame, 0.2 s after its last \
             message, in the middle of a message."
        );
        assert_eq!(
            relay(CloseReason::IdleTimeout, |_| {}),
            "No message came from either side within the idle timeout."
        );
    }

    #[test]
    fn other_ends_say_what_went_wrong() {
        let task = || TaskId::read("7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111").expect("it is a UUID");
        let output = |state, fault: Option<&str>| {
            let fault = fault.map(str::to_owned);
            Detail::Output { task: task(), state, end: None, fault }
        };
        let (what, answered) = ("connection refused".to_owned(), Answered::WebSocket);
        let cases = [
            (
                CloseReason::BackendUnavailable,
                Detail::NoBackend { what, answered },
                "No backend took the connection: connection refused.",
            ),
            (
                CloseReason::ClientVanished,
                Detail::LeftWhileDialing,
                "The client closed the TCP connection without a close frame, before a backend had \
                 answered.",
            ),
            (
                CloseReason::Refused,
                Detail::Refused(Limit::Clients(Refusal::Full)),
                "The gateway refused the connection: too many connections.",
            ),
            (
                CloseReason::AudioMissing,
                output(ClientState::Sending, Some("Audio file not found")),
                "The result was delivered without its audio: Audio file not found.",
            ),
            (
                CloseReason::ClientVanished,
                output(ClientState::Waiting, None),
                "The client closed the TCP connection without a close frame, while it waited for \
                 a result.",
            ),
            (
                CloseReason::ClientStalled,
                output(ClientState::Sending, None),
                "The client took no byte of what waited for it within write_timeout, while a \
                 result was being sent to it.",
            ),
            (
                CloseReason::ClientVanished,
                Detail::Ingest { chunks: 1, errors: 0 },
                "The client closed the TCP connection without a close frame.",
            ),
        ];
        for (reason, detail, sentence) in cases {
            assert_eq!(Sentence(&Ended::new(reason, detail)).to_string(), sentence);
        }
    }

    #[test]
    fn a_worker_may_leave_in_the_middle_of_its_speech() {
        let detail = Detail::Ingest { chunks: 1, errors: 0 };
        let mut ended = Ended::new(CloseReason::ClientSilent, detail);
        ended.activity.is_unfinished = true;
        assert_eq!(
            Sentence(&ended).to_string(),
            "The client did not answer a ping within ping_timeout, before its speech was complete."
        );
    }

    #[test]
    fn times_are_short() {
        for (milliseconds, text) in [
            (0, "0.0 s"),
            (9_990, "9.9 s"),
            (31_900, "31 s"),
            (150_000, "2 min"),
            (7_200_000, "2 h"),
        ] {
            assert_eq!(Time(Duration::from_millis(milliseconds)).to_string(), text);
        }
    }
}
