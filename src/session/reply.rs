//! An HTTP answer on its way out, and what the connection does afterwards.

use super::linger::Linger;
use super::request::Request;
use super::{CloseReason, Context, Drain, Ended, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::http;
use crate::service::endpoints::Endpoint;
use log::debug;
use std::time::Duration;

/// A client that takes none of its answer for so long is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How the request was made, which decides how the answer is written.
#[derive(Debug, Clone)]
pub struct Asked {
    pub minor_version: u8,
    pub head_only: bool,
    pub keep_alive: bool,
    /// `Origin`, for CORS headers on the JSON endpoints.
    pub origin: Option<Vec<u8>>,
    /// Bytes that came behind the request: the beginning of the next one.
    pub rest: Vec<u8>,
}

/// A request for one of the gateway's endpoints.
pub struct Question {
    pub endpoint: &'static Endpoint,
    /// The segment that the `{name}` in the endpoint's path matched, as the client wrote it.
    pub value: Box<str>,
    pub asked: Asked,
}

/// Bytes of an answer that wait for the client to take them.
pub struct Reply {
    bytes: Vec<u8>,
    sent: usize,
    then: Then,
    deadline: Moment,
}

enum Then {
    NextRequest { rest: Vec<u8> },
    Close,
}

impl Reply {
    /// The answer to a good request.
    pub fn answer(asked: Asked, reply: http::Reply, who: &Identity, cx: &mut Context) -> Phase {
        debug!(target: "http", "{who} gateway>client {} {}", reply.status, http::reason_phrase(reply.status));
        cx.stats.count_http(reply.status);
        let reply = match reply.content_type {
            http::JSON => {
                cx.limits.cors_headers(asked.origin.as_deref()).into_iter().fold(reply, with_header)
            }
            _ => reply,
        };
        let keep_alive = asked.keep_alive && !cx.is_draining;
        let mut bytes = Vec::new();
        reply.write(&mut bytes, asked.minor_version, asked.head_only, keep_alive);
        let then = if keep_alive { Then::NextRequest { rest: asked.rest } } else { Then::Close };
        Phase::Reply(Box::new(Reply { bytes, sent: 0, then, deadline: cx.now + SEND_TIMEOUT }))
    }

    /// The bytes of an answer after which nothing more is read.
    pub fn last(reply: &http::Reply, cx: &mut Context) -> Vec<u8> {
        cx.stats.count_http(reply.status);
        let mut bytes = Vec::new();
        reply.write(&mut bytes, 1, false, false);
        bytes
    }

    /// Sends an answer after which nothing more is read.
    pub fn raw(bytes: Vec<u8>, cx: &Context) -> Phase {
        let deadline = cx.now + SEND_TIMEOUT;
        Phase::Reply(Box::new(Reply { bytes, sent: 0, then: Then::Close, deadline }))
    }
}

impl State for Reply {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        while self.sent < self.bytes.len() {
            match downstream.write(&self.bytes[self.sent..]) {
                Ok(Io::Moved(n)) => {
                    self.sent += n;
                    self.deadline = cx.now + SEND_TIMEOUT;
                }
                Ok(_) if cx.now >= self.deadline => {
                    return Step::End(Ended::http(CloseReason::ClientSilent));
                }
                Ok(_) => return Step::Wait(Phase::Reply(self)),
                Err(_) => return Step::End(Ended::http(CloseReason::ClientVanished)),
            }
        }
        match self.then {
            // One answer a turn, however many questions stand in a row.
            Then::NextRequest { rest } if !rest.is_empty() || downstream.is_readable() => {
                Step::Yield(Request::following(rest, cx))
            }
            Then::NextRequest { rest } => Step::Next(Request::following(rest, cx)),
            Then::Close => Step::Next(Linger::phase(Vec::new(), cx)),
        }
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.deadline)
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        self.then = Then::Close;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    fn held_bytes(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}

fn with_header(reply: http::Reply, (name, value): (&'static str, String)) -> http::Reply {
    reply.with(name, value)
}
