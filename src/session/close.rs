//! One word for every ending: the log line, the metric and the close code all come from here.

use crate::net::Side;
use std::fmt;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// An HTTP connection that has had its answers.
    Done,
    /// A head that no answer but an error fits.
    BadRequest,
    HeaderTimeout,
    /// Not admitted: too many connections.
    Refused,
    OriginNotAllowed,
    BackendUnavailable,
    BackendOverloaded,
    /// A Close frame of theirs was passed on.
    ClientClosed,
    BackendClosed,
    /// FIN or RST, and no Close frame before it.
    ClientVanished,
    BackendVanished,
    /// Silent, and no answer to our ping.
    ClientSilent,
    BackendSilent,
    ClientMessageTooBig,
    BackendMessageTooBig,
    IdleTimeout,
    /// Too many results wait for it to read them.
    ClientTooSlow,
    /// The final result has been delivered.
    Delivered,
    /// The task id is no UUID, or `from_chunk` no number.
    BadTaskId,
    /// No result came in time.
    TaskTimeout,
    /// Redis is out of reach.
    RedisAway,
    /// The audio file lost bytes while it was sent.
    AudioLost,
    /// A frame of the client's breaks RFC 6455.
    ProtocolFault,
    /// A text of the client's is not UTF-8.
    NotUtf8,
    /// The gateway is about to stop.
    Draining,
    /// The gateway stopped before this session had ended.
    Stopped,
}

use CloseReason::*;

impl CloseReason {
    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Done => "done",
            BadRequest => "bad_request",
            HeaderTimeout => "header_timeout",
            Refused => "refused",
            OriginNotAllowed => "origin_not_allowed",
            BackendUnavailable => "backend_unavailable",
            BackendOverloaded => "backend_overloaded",
            ClientClosed => "client_closed",
            BackendClosed => "backend_closed",
            ClientVanished => "client_vanished",
            BackendVanished => "backend_vanished",
            ClientSilent => "client_silent",
            BackendSilent => "backend_silent",
            ClientMessageTooBig => "client_message_too_big",
            BackendMessageTooBig => "backend_message_too_big",
            IdleTimeout => "idle_timeout",
            ClientTooSlow => "client_too_slow",
            Delivered => "delivered",
            BadTaskId => "bad_task_id",
            TaskTimeout => "task_timeout",
            RedisAway => "redis_away",
            AudioLost => "audio_lost",
            ProtocolFault => "protocol_fault",
            NotUtf8 => "not_utf8",
            Draining => "draining",
            Stopped => "stopped",
        }
    }

    /// The code of the Close frame that tells `side` so.
    ///
    /// A backend only learns that its peer left (1001), unless it is the one that broke the rule.
    pub fn close_code(self, side: Side) -> u16 {
        match (self, side) {
            (BackendMessageTooBig, _) | (ClientMessageTooBig, Side::Downstream) => 1009,
            (_, Side::Upstream) => 1001,
            (Done | IdleTimeout | Delivered, _) => 1000,
            (ClientVanished | ClientSilent | ClientClosed, _) => 1001,
            (BadRequest | HeaderTimeout | ProtocolFault, _) => 1002,
            (NotUtf8, _) => 1007,
            (OriginNotAllowed, _) => 1008,
            (
                BackendUnavailable | BackendVanished | BackendSilent | BackendClosed | AudioLost,
                _,
            ) => 1011,
            (Draining | Stopped, _) => 1012,
            (BackendOverloaded | Refused | RedisAway | ClientTooSlow, _) => 1013,
            (BadTaskId, _) => 4004,
            (TaskTimeout, _) => 4008,
        }
    }

    /// The reason in that Close frame.
    pub fn phrase(self) -> &'static str {
        match self {
            Done => "done",
            BadRequest => "bad request",
            HeaderTimeout => "request head timed out",
            Refused => "too many connections",
            OriginNotAllowed => "Origin not allowed",
            BackendUnavailable => "backend unavailable",
            BackendOverloaded => "backend overloaded",
            ClientClosed => "client closed",
            BackendClosed => "backend closed",
            ClientVanished => "client connection lost",
            BackendVanished | BackendSilent => "backend connection lost",
            ClientSilent => "client not responding",
            ClientMessageTooBig | BackendMessageTooBig => "message too big",
            IdleTimeout => "idle timeout",
            ClientTooSlow => "client too slow",
            Delivered => "done",
            BadTaskId => "bad task id",
            TaskTimeout => "processing timeout",
            RedisAway => "Redis connection not available",
            AudioLost => "audio file changed",
            ProtocolFault => "protocol error",
            NotUtf8 => "text is not UTF-8",
            Draining | Stopped => "gateway restarting",
        }
    }
}

/// A close code as the log has it: `none` where there was none.
pub struct CodeText(pub Option<u16>);

impl fmt::Display for CodeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(code) => code.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
