//! Every way in which a session ends, as one table: the word for log, ledger and metrics, the close
//! code, the phrase in the Close frame, who ended it, whether that is a failure, and a sentence.

use crate::net::Side;
use std::fmt;

macro_rules! close_reasons {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $word:literal, $code:literal, $phrase:literal, $by:ident, $verdict:ident,
            $sentence:literal;
    )+) => {
        /// Why a session ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl CloseReason {
            /// Every reason, in the order of the table.
            pub const ALL: &[CloseReason] = &[$(CloseReason::$name),+];

            fn row(self) -> ReasonRow {
                match self {
                    $(CloseReason::$name => ReasonRow {
                        word: $word,
                        code: $code,
                        phrase: $phrase,
                        by: Party::$by,
                        verdict: EndVerdict::$verdict,
                        sentence: $sentence,
                    },)+
                }
            }
        }
    };
}

/// What the table says about a reason.
struct ReasonRow {
    word: &'static str,
    /// For a client.
    code: u16,
    phrase: &'static str,
    by: Party,
    verdict: EndVerdict,
    /// The beginning of the sentence that explains the end; see `sentence.rs`.
    sentence: &'static str,
}

/// The party whose act or silence began an end. A side that broke a rule ended the connection, even
/// if the gateway closed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Party {
    Client,
    Backend,
    /// Whoever publishes results.
    Worker,
    Redis,
    /// Its own timeouts and shortages.
    Gateway,
    /// A signal.
    Operator,
}

impl Party {
    /// The word in `/connections/closed`.
    pub fn word(self) -> &'static str {
        match self {
            Party::Client => "client",
            Party::Backend => "backend",
            Party::Worker => "worker",
            Party::Redis => "redis",
            Party::Gateway => "gateway",
            Party::Operator => "operator",
        }
    }
}

/// Whether an end is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndVerdict {
    /// It is how connections are meant to end.
    Good,
    /// Something went wrong.
    Bad,
    /// It depends on the close code: 1000, 1001 and none are good.
    ByCode,
    /// Bad in the middle of a message, or with bytes that wait for a side.
    IfUnfinished,
}

close_reasons! {
    /// An HTTP connection that has had its answers, or a worker that has published its results.
    Done: "done", 1000, "done", Client, Good,
        "The client closed the connection after everything it had asked for was answered";
    /// A request head that gets no answer but an error.
    BadRequest: "bad_request", 1002, "bad request", Client, Bad,
        "The request was not understood";
    /// The request head did not arrive in time.
    HeaderTimeout: "header_timeout", 1002, "request head timed out", Client, Bad,
        "The client did not send a whole request head in time";
    /// The TLS handshake with the client failed, or was given up.
    TlsFailed: "tls_failed", 1002, "TLS handshake failed", Client, Bad,
        "The TLS handshake with the client failed";
    /// A trusted proxy sent no PROXY header, or none that is understood; or another peer sent one.
    BadProxyHeader: "bad_proxy_header", 1002, "bad PROXY header", Client, Bad,
        "The PROXY header in front of the connection is missing, not understood or not expected";
    /// Not admitted: too many connections.
    Refused: "refused", 1013, "too many connections", Gateway, Bad,
        "The gateway refused the connection";
    /// The request's `Origin` is not in `allowed_origins`.
    OriginNotAllowed: "origin_not_allowed", 1008, "Origin not allowed", Client, Bad,
        "The page that connected is not in allowed_origins";
    /// No backend could be reached, or none answered with 101.
    BackendUnavailable: "backend_unavailable", 1011, "backend unavailable", Backend, Bad,
        "No backend took the connection";
    /// The backend answered 503 or 429.
    BackendOverloaded: "backend_overloaded", 1013, "backend overloaded", Backend, Bad,
        "The backend has no room for the connection";
    /// This machine has no descriptors, ports or memory left for a connection to a backend.
    OutOfResources: "out_of_resources", 1013, "gateway out of resources", Gateway, Bad,
        "The gateway ran out of descriptors, ports or memory";
    /// The client sent a Close frame.
    ClientClosed: "client_closed", 1001, "client closed", Client, ByCode,
        "The client closed the connection {code}";
    /// The backend sent a Close frame.
    BackendClosed: "backend_closed", 1011, "backend closed", Backend, ByCode,
        "The backend closed the connection {code}";
    /// The client left before it had the whole response of a route for plain HTTP.
    ClientLeft: "client_left", 1001, "client left", Client, IfUnfinished,
        "The client closed the connection before it had the whole response";
    /// The backend's response ended too early, or could not be understood to its end.
    ResponseCut: "response_cut", 1011, "response cut", Backend, Bad,
        "The backend's response was not complete";
    /// FIN or RST from the client, and no Close frame before it.
    ClientVanished: "client_vanished", 1001, "client connection lost", Client, IfUnfinished,
        "The client closed the TCP connection without a close frame";
    /// FIN or RST from the backend, and no Close frame before it.
    BackendVanished: "backend_vanished", 1011, "backend connection lost", Backend, Bad,
        "The backend closed the TCP connection without a close frame";
    /// The client did not answer a ping.
    ClientSilent: "client_silent", 1001, "client not responding", Client, Bad,
        "The client did not answer a ping within ping_timeout";
    /// The backend did not answer a ping.
    BackendSilent: "backend_silent", 1011, "backend connection lost", Backend, Bad,
        "The backend did not answer a ping within ping_timeout";
    /// A message of the client is larger than `max_message`, or than a served route takes.
    ClientMessageTooBig: "client_message_too_big", 1009, "message too big", Client, Bad,
        "The client sent a message that is larger than allowed";
    /// A message of the backend is larger than `max_message`.
    BackendMessageTooBig: "backend_message_too_big", 1009, "message too big", Backend, Bad,
        "The backend sent a message that is larger than max_message";
    /// No message either way within `idle_timeout`.
    IdleTimeout: "idle_timeout", 1000, "idle timeout", Gateway, Good,
        "No message came from either side within the idle timeout";
    /// The client reads its results too slowly, so too much waits for it.
    ClientTooSlow: "client_too_slow", 1013, "client too slow", Client, Bad,
        "The client read too slowly, and too much waited for it";
    /// The client took no byte within `write_timeout`, though some were held for it.
    ClientStalled: "client_stalled", 1001, "client not reading", Client, Bad,
        "The client took no byte of what waited for it within write_timeout";
    /// The backend took no byte within `write_timeout`, though some were held for it.
    BackendStalled: "backend_stalled", 1011, "backend connection lost", Backend, Bad,
        "The backend took no byte of what waited for it within write_timeout";
    /// The final result has been delivered: the client has acknowledged everything and closed.
    Delivered: "delivered", 1000, "done", Worker, Good,
        "The final result was delivered";
    /// The final result was delivered, and it is an error that the worker reported.
    WorkerFailed: "worker_failed", 1000, "done", Worker, Bad,
        "The worker reported that the task failed, and the client got its error message";
    /// A result was no JSON object, and the client got an error message instead.
    MalformedResult: "malformed_result", 1000, "done", Worker, Bad,
        "The worker published a result that could not be read";
    /// The final result was delivered; the audio of a result was not.
    AudioMissing: "audio_missing", 1000, "done", Worker, Bad,
        "The result was delivered without its audio";
    /// The task was stopped: what had not been sent was dropped.
    TaskStopped: "task_stopped", 1000, "stopped", Client, Good,
        "The task was stopped";
    /// The task id is not a UUID, or a number in the query is none.
    BadTaskId: "bad_task_id", 4004, "bad task id", Client, Bad,
        "The client asked for something that is no task, or no part of one";
    /// No result came in time.
    TaskTimeout: "task_timeout", 4008, "processing timeout", Worker, Bad,
        "No result was published for the task within output.timeout";
    /// Memory was short, and this session held the most.
    OverBudget: "over_budget", 1013, "out of memory budget", Gateway, Bad,
        "Memory was short, and this connection held the most of it";
    /// Redis has been away for longer than its grace.
    RedisAway: "redis_away", 1013, "Redis connection not available", Redis, Bad,
        "Redis was out of reach for longer than redis.grace";
    /// The audio file was changed while it was sent, or between two connections.
    AudioLost: "audio_lost", 1011, "audio file changed", Worker, Bad,
        "The audio file changed while it was sent, or could not be read any further";
    /// A growing file did not grow for `audio_stall`, and nothing follows it.
    AudioStalled: "audio_stalled", 1011, "audio stalled", Worker, Bad,
        "The audio stopped growing before its end, for as long as output.audio_stall";
    /// Audio that grew became larger than `max_audio`, and nothing follows it.
    AudioTooLarge: "audio_too_large", 1011, "audio too large", Worker, Bad,
        "The audio grew beyond output.max_audio";
    /// A frame of the client breaks RFC 6455.
    ProtocolFault: "protocol_fault", 1002, "protocol error", Client, Bad,
        "The client sent a frame that breaks the WebSocket protocol";
    /// A text message of the client is not UTF-8.
    NotUtf8: "not_utf8", 1007, "text is not UTF-8", Client, Bad,
        "The client sent a text message that is not UTF-8";
    /// The gateway is about to stop.
    Draining: "draining", 1012, "gateway restarting", Operator, Good,
        "The gateway is shutting down and asked the client to connect again";
    /// The gateway stopped before this session had ended.
    Stopped: "stopped", 1012, "gateway restarting", Operator, Bad,
        "The gateway stopped before the connection had ended";
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

    /// Who ended the session, as far as the reason tells.
    pub fn ended_by(self) -> Party {
        self.row().by
    }

    /// Whether it is a failure.
    pub fn verdict(self) -> EndVerdict {
        self.row().verdict
    }

    /// How the sentence that explains the end begins. `{code}` is where the close code belongs.
    pub(super) fn sentence(self) -> &'static str {
        self.row().sentence
    }

    /// Everything that the task had was delivered, whatever it was.
    pub fn is_delivery(self) -> bool {
        matches!(
            self,
            CloseReason::Delivered
                | CloseReason::WorkerFailed
                | CloseReason::MalformedResult
                | CloseReason::AudioMissing
        )
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The Close frame that passed between the gateway and one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Closing {
    /// None did.
    #[default]
    None,
    /// That side sent one first, with this code.
    Sent(Option<u16>),
    /// It was sent one first, with this code.
    Received(Option<u16>),
}

impl Closing {
    /// The code; `None` where no Close frame passed, or it had none.
    pub fn code(self) -> Option<u16> {
        match self {
            Closing::None => None,
            Closing::Sent(code) | Closing::Received(code) => code,
        }
    }

    /// The same, where what was to be sent to that side was not.
    pub fn unseen(self) -> Closing {
        match self {
            Closing::Received(_) => Closing::None,
            Closing::None | Closing::Sent(_) => self,
        }
    }

    /// The word in `/connections/closed`.
    pub fn word(self) -> &'static str {
        match self {
            Closing::None => "none",
            Closing::Sent(_) => "sent",
            Closing::Received(_) => "received",
        }
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

    /// The log escapes nothing in it, and it is followed by what the detail adds.
    #[test]
    fn every_sentence_begins_like_one() {
        for &reason in CloseReason::ALL {
            let sentence = reason.sentence();
            assert!(sentence.starts_with(char::is_uppercase), "{reason}");
            assert!(!sentence.ends_with('.') && !sentence.contains('"'), "{reason}");
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
