//! What the sentence about an end says: it begins as the table in `close.rs` has it. What follows
//! depends on what is known: what went wrong, how long the side that ended it had said nothing, and
//! what the other side was doing.

use super::{Activity, Detail, Ended};
use crate::net::Side;
use crate::service::sentence::{Circumstances, Sentence};
use crate::service::stats::{BothWays, Traffic};
use crate::service::tasks::ClientState;
use crate::session::close::CloseReason;
use std::time::Duration;

/// From this silence on, the side that did not end the connection is called idle.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// The sentence about an end.
pub(super) fn sentence(ended: &Ended) -> Sentence {
    let closing = match ended.reason {
        CloseReason::BackendClosed => ended.backend_close,
        _ => ended.client_close,
    };
    Sentence {
        beginning: ended.reason.sentence(),
        code: closing.code(),
        what: what(&ended.detail).map(Into::into),
        circumstances: circumstances(ended),
    }
}

fn circumstances(ended: &Ended) -> Circumstances {
    let (side, is_unfinished) = (side_of(ended.reason), ended.activity.is_unfinished);
    let words = match (&ended.detail, side) {
        (Detail::Relay, Some(side)) => return of_relay(ended, side),
        (Detail::Output { state: ClientState::Waiting, .. }, Some(_)) if !is_unfinished => {
            "while it waited for a result"
        }
        (Detail::Output { .. }, Some(_)) => "while a result was being sent to it",
        (Detail::Ingest { .. }, Some(_)) if is_unfinished => "before its speech was complete",
        (Detail::Inbox { .. }, Some(_)) if is_unfinished => "in the middle of a command",
        (Detail::LeftWhileDialing, _) => "before a backend had answered",
        _ => return Circumstances::None,
    };
    Circumstances::Words(words)
}

fn of_relay(ended: &Ended, side: Side) -> Circumstances {
    let Activity { client_idle, backend_idle, is_unfinished, .. } = ended.activity;
    let (own, other) = match side {
        Side::Downstream => (client_idle, backend_idle),
        Side::Upstream => (backend_idle, client_idle),
    };
    let BothWays { from_client, to_client } = ended.traffic;
    let Traffic { frames, .. } = if side == Side::Downstream { from_client } else { to_client };
    let is_by_close =
        matches!(ended.reason, CloseReason::ClientClosed | CloseReason::BackendClosed);
    // A Close frame is no message, but it is counted.
    let has_sent = frames > u64::from(is_by_close);
    Circumstances::Relay {
        silence: own.filter(|_| has_sent),
        is_unfinished: is_unfinished && !is_by_close,
        idle_side: other.filter(|idle| *idle >= IDLE_MIN).map(|_| side.other().word()),
    }
}

/// What went wrong, in words that came with it.
fn what(detail: &Detail) -> Option<&str> {
    match detail {
        Detail::BadRequest { why, .. } => Some(why),
        Detail::Handshake { why } | Detail::ProxyHeader { why } => Some(why),
        Detail::OriginNotAllowed { origin } => Some(origin),
        Detail::Refused(limit) => Some(limit.why()),
        Detail::NoBackend { what, .. } => Some(what),
        Detail::CannotSubscribe { error, .. } => Some(error),
        Detail::Output { fault, .. } => fault.as_deref(),
        Detail::Forward { what, .. } => *what,
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

#[cfg(test)]
mod tests {
    use super::super::{Answered, Limit};
    use super::*;
    use crate::proto::message::TaskId;
    use crate::service::limits::Refusal;
    use crate::session::close::Closing;

    fn relay(reason: CloseReason, change: impl FnOnce(&mut Ended)) -> String {
        let mut ended = Ended::new(reason, Detail::Relay);
        ended.activity.client_idle = Some(Duration::from_millis(250));
        ended.activity.backend_idle = Some(Duration::from_secs(31));
        ended.traffic.from_client.frames = 5;
        ended.traffic.to_client.frames = 5;
        change(&mut ended);
        sentence(&ended).to_string()
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
        for (reason, detail, text) in cases {
            assert_eq!(sentence(&Ended::new(reason, detail)).to_string(), text);
        }
    }

    #[test]
    fn a_worker_may_leave_in_the_middle_of_its_speech() {
        let detail = Detail::Ingest { chunks: 1, errors: 0 };
        let mut ended = Ended::new(CloseReason::ClientSilent, detail);
        ended.activity.is_unfinished = true;
        assert_eq!(
            sentence(&ended).to_string(),
            "The client did not answer a ping within ping_timeout, before its speech was complete."
        );
    }
}
