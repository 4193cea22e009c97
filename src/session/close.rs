//! Every way in which a session ends, as one table: the word for log and metrics, the close code,
//! the phrase in the Close frame.

use crate::net::Side;
use std::fmt;

macro_rules! close_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident: $word:literal, $code:literal, $phrase:literal;)+) => {
        /// Why a session ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl CloseReason {
            /// Every reason, in the order of the table.
            pub const ALL: &[CloseReason] = &[$(CloseReason::$name),+];

            fn row(self) -> Row {
                match self {
                    $(CloseReason::$name => Row { word: $word, code: $code, phrase: $phrase },)+
                }
            }
        }
    };
}

/// What the table says about a reason.
struct Row {
    word: &'static str,
    /// For a client.
    code: u16,
    phrase: &'static str,
}

close_reasons! {
    /// An HTTP connection that has had its answers.
    Done: "done", 1000, "done";
    /// A request head that gets no answer but an error.
    BadRequest: "bad_request", 1002, "bad request";
    /// The request head did not arrive in time.
    HeaderTimeout: "header_timeout", 1002, "request head timed out";
    /// The TLS handshake with the client failed, or was given up.
    TlsFailed: "tls_failed", 1002, "TLS handshake failed";
    /// Not admitted: too many connections.
    Refused: "refused", 1013, "too many connections";
    /// The request's `Origin` is not in `allowed_origins`.
    OriginNotAllowed: "origin_not_allowed", 1008, "Origin not allowed";
    /// No backend could be reached, or none answered with 101.
    BackendUnavailable: "backend_unavailable", 1011, "backend unavailable";
    /// The backend answered 503 or 429.
    BackendOverloaded: "backend_overloaded", 1013, "backend overloaded";
    /// This machine has no descriptors, ports or memory left for a connection to a backend.
    OutOfResources: "out_of_resources", 1013, "gateway out of resources";
    /// The client sent a Close frame.
    ClientClosed: "client_closed", 1001, "client closed";
    /// The backend sent a Close frame.
    BackendClosed: "backend_closed", 1011, "backend closed";
    /// FIN or RST from the client, and no Close frame before it.
    ClientVanished: "client_vanished", 1001, "client connection lost";
    /// FIN or RST from the backend, and no Close frame before it.
    BackendVanished: "backend_vanished", 1011, "backend connection lost";
    /// The client did not answer a ping.
    ClientSilent: "client_silent", 1001, "client not responding";
    /// The backend did not answer a ping.
    BackendSilent: "backend_silent", 1011, "backend connection lost";
    /// A message of the client is larger than `max_message`, or than a served route takes.
    ClientMessageTooBig: "client_message_too_big", 1009, "message too big";
    /// A message of the backend is larger than `max_message`.
    BackendMessageTooBig: "backend_message_too_big", 1009, "message too big";
    /// No message either way within `idle_timeout`.
    IdleTimeout: "idle_timeout", 1000, "idle timeout";
    /// The client reads its results too slowly, so too much waits for it.
    ClientTooSlow: "client_too_slow", 1013, "client too slow";
    /// The client took no byte within `write_timeout`, though some were held for it.
    ClientStalled: "client_stalled", 1001, "client not reading";
    /// The backend took no byte within `write_timeout`, though some were held for it.
    BackendStalled: "backend_stalled", 1011, "backend connection lost";
    /// The final result has been delivered: the client has acknowledged everything and closed.
    Delivered: "delivered", 1000, "done";
    /// The task was stopped: what had not been sent was dropped.
    TaskStopped: "task_stopped", 1000, "stopped";
    /// The task id is not a UUID, or a number in the query is none.
    BadTaskId: "bad_task_id", 4004, "bad task id";
    /// No result came in time.
    TaskTimeout: "task_timeout", 4008, "processing timeout";
    /// Memory was short, and this session held the most.
    OverBudget: "over_budget", 1013, "out of memory budget";
    /// Redis has been away for longer than its grace.
    RedisAway: "redis_away", 1013, "Redis connection not available";
    /// The audio file was changed while it was sent, or between two connections.
    AudioLost: "audio_lost", 1011, "audio file changed";
    /// A growing file did not grow for `audio_stall`, and nothing follows it.
    AudioStalled: "audio_stalled", 1011, "audio stalled";
    /// Audio that grew became larger than `max_audio`, and nothing follows it.
    AudioTooLarge: "audio_too_large", 1011, "audio too large";
    /// A frame of the client breaks RFC 6455.
    ProtocolFault: "protocol_fault", 1002, "protocol error";
    /// A text message of the client is not UTF-8.
    NotUtf8: "not_utf8", 1007, "text is not UTF-8";
    /// The gateway is about to stop.
    Draining: "draining", 1012, "gateway restarting";
    /// The gateway stopped before this session had ended.
    Stopped: "stopped", 1012, "gateway restarting";
}

impl CloseReason {
    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        self.row().word
    }

    /// The code of the Close frame that carries this reason to `side` (RFC 6455, section 7.4).
    ///
    /// A backend only learns that its peer left (1001), unless it is the one that broke the rule.
    pub fn close_code(self, side: Side) -> u16 {
        match (self, side) {
            (CloseReason::BackendMessageTooBig, _) | (_, Side::Downstream) => self.row().code,
            (_, Side::Upstream) => 1001,
        }
    }

    /// The text of that Close frame: a short English phrase.
    pub fn phrase(self) -> &'static str {
        self.row().phrase
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A close code in the log: `none` where there was none.
pub struct CodeText(pub Option<u16>);

impl fmt::Display for CodeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(code) => code.fmt(f),
            None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_word_names_one_reason() {
        let words: BTreeSet<_> = CloseReason::ALL.iter().map(|reason| reason.word()).collect();
        assert_eq!(words.len(), CloseReason::ALL.len());
    }

    /// RFC 6455, section 7.4.1: 1005, 1006 and 1015 are never sent. Section 5.5: a control frame
    /// holds 125 bytes, two of them the code.
    #[test]
    fn every_reason_fits_a_close_frame() {
        for &reason in CloseReason::ALL {
            for side in [Side::Downstream, Side::Upstream] {
                let code = reason.close_code(side);
                assert!((1000..=1013).contains(&code) || (4000..5000).contains(&code), "{reason}");
                assert!(![1004, 1005, 1006].contains(&code), "{reason}: {code}");
            }
            assert!(reason.phrase().len() <= 123, "{reason}");
        }
    }

    #[test]
    fn backend_learns_only_what_it_did_itself() {
        for &reason in CloseReason::ALL {
            let code = if reason == CloseReason::BackendMessageTooBig { 1009 } else { 1001 };
            assert_eq!(reason.close_code(Side::Upstream), code, "{reason}");
        }
    }
}
