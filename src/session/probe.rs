//! Finds out whether a failed backend is well again, so that no client has to.
//!
//! A probe asks for what clients ask for: a WebSocket on the path of the backend's URL. When the
//! backend agrees, the probe closes it with 1000 `probe`. Less would prove less: a backend that
//! hangs, or answers 503, still accepts connections, and may still answer a plain `GET`. It would
//! then count as well, be preferred for having few connections, and cost the next client its time.
//! A probe costs the backend no more than the client that would otherwise find out, and it is made
//! only while the backend is failed, when a rest is over.
//!
//! A backend of plain HTTP is asked for the head of the same path, which is safe to ask for at any
//! time. There any answer shows that it is well, as statuses do not make it rest either.
//!
//! Names in the URL's path become the nil UUID: what is there does not matter, because any answer
//! other than 429, 502, 503 and 504 shows a backend that can serve clients.

use super::Context;
use super::connector::{Connector, Polled};
use super::dial::is_failure;
use super::exchange::{Asking, Exchange};
use super::transcript::Subject;
use crate::base::moment::Moment;
use crate::net::{Conn, Io, Ready, Source};
use crate::proto::forward;
use crate::proto::http::ResponseHead;
use crate::proto::upgrade;
use crate::proto::ws;
use crate::service::attempt::AttemptError;
use crate::service::upstreams::{Purpose, UpstreamId};
use crate::service::url::{BackendProtocol, probe_target};
use std::time::Duration;

/// How long the backend may take to close its side, once the probe has closed the WebSocket.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads of what the backend still sends in one step.
const READS_PER_STEP: usize = 16;

/// One attempt to reach a failed backend.
pub struct Probe {
    number: u64,
    connector: Connector,
    /// `Sec-WebSocket-Key`.
    key: String,
    /// What the backend is asked for.
    protocol: BackendProtocol,
    stage: ProbeStage,
}

enum ProbeStage {
    /// The connector is to begin a connection, or waits for a name to be looked up.
    Connect,
    /// The request is being sent, or its answer awaited.
    Ask(Exchange),
    /// The backend has agreed, and the WebSocket is being closed.
    Close(ProbeClosing),
    Over,
}

/// A WebSocket that is being closed. To close the socket at once could destroy the Close frame on
/// the way: what the backend has sent meanwhile would be unread, and the kernel would answer that
/// with a reset.
struct ProbeClosing {
    conn: Conn,
    /// What is left of the Close frame.
    frame: Vec<u8>,
    is_shut: bool,
    until: Moment,
}

/// What the backend answered.
enum ProbeAnswer {
    Upgraded,
    Failed(AttemptError),
    /// It does not take this client, which says that it is well.
    Declined,
}

impl Probe {
    /// The `number`-th probe, of `backend`, whose connections are registered as `source`.
    pub fn new(backend: UpstreamId, number: u64, source: Source, cx: &mut Context) -> Probe {
        Probe {
            number,
            connector: Connector::new(&[backend], source, Purpose::Probe, cx),
            key: random_key(&mut cx.chance),
            protocol: cx.upstreams.url(backend).protocol(),
            stage: ProbeStage::Connect,
        }
    }

    /// An event of its socket. Acted on by the next [`Probe::step`].
    pub fn handle_ready(&mut self, ready: Ready) {
        match &mut self.stage {
            ProbeStage::Ask(exchange) => exchange.handle_ready(ready),
            ProbeStage::Close(closing) => closing.conn.handle_ready(ready),
            ProbeStage::Connect | ProbeStage::Over => {}
        }
    }

    /// Whether it waits for a name to be looked up.
    pub fn is_looking_up(&self) -> bool {
        self.connector.is_looking_up()
    }

    /// When the next step is due even if nothing happens.
    pub fn deadline(&self) -> Option<Moment> {
        match &self.stage {
            ProbeStage::Connect | ProbeStage::Ask(_) => self.connector.deadline(),
            ProbeStage::Close(closing) => Some(closing.until),
            ProbeStage::Over => None,
        }
    }

    /// The backend, until it has answered or failed.
    pub fn backend(&self) -> Option<UpstreamId> {
        self.connector.backend()
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, ProbeStage::Over)
    }

    /// Gives up, which says nothing about the backend.
    pub fn abandon(&mut self, cx: &mut Context) {
        self.connector.abandon(cx);
        self.stage = ProbeStage::Over;
    }

    /// Does all that can be done now.
    pub fn step(&mut self, cx: &mut Context) {
        let who = Subject::Probe(self.number);
        loop {
            match std::mem::replace(&mut self.stage, ProbeStage::Over) {
                ProbeStage::Over => return,
                ProbeStage::Connect => match self.connector.poll(who, cx) {
                    Polled::Wait => {
                        self.stage = ProbeStage::Connect;
                        return;
                    }
                    Polled::Begun(conn, backend) => {
                        let url = cx.upstreams.url(backend);
                        let (target, authority) = (probe_target(url), url.authority());
                        let mut request = Vec::new();
                        match self.protocol {
                            BackendProtocol::WebSocket => {
                                let key = &self.key;
                                upgrade::write_probe_request(&target, &authority, key, &mut request)
                            }
                            BackendProtocol::Http => {
                                forward::write_probe_request(&target, &authority, &mut request)
                            }
                        }
                        self.stage = ProbeStage::Ask(Exchange::new(conn, request, Asking::Probe));
                    }
                    Polled::Exhausted(_) => return,
                },
                ProbeStage::Ask(mut exchange) => {
                    let judge = |head: &ResponseHead, _: &[u8]| match self.protocol {
                        BackendProtocol::WebSocket => judge(head, &self.key),
                        // Statuses of plain HTTP make no backend rest.
                        BackendProtocol::Http => ProbeAnswer::Declined,
                    };
                    match exchange.poll(&mut self.connector, who, cx, judge) {
                        Ok(None) => {
                            self.stage = ProbeStage::Ask(exchange);
                            return;
                        }
                        Ok(Some(ProbeAnswer::Upgraded)) => {
                            self.connector.succeed(cx);
                            self.stage =
                                ProbeStage::Close(ProbeClosing::new(exchange.into_conn(), cx));
                        }
                        Ok(Some(ProbeAnswer::Declined)) => {
                            self.connector.answered(cx);
                            return;
                        }
                        Ok(Some(ProbeAnswer::Failed(error))) | Err(error) => {
                            self.connector.fail(error, who, cx);
                            self.stage = ProbeStage::Connect;
                        }
                    }
                }
                ProbeStage::Close(mut closing) => {
                    if closing.step(cx) {
                        self.stage = ProbeStage::Close(closing);
                    }
                    return;
                }
            }
        }
    }
}

fn judge(head: &ResponseHead, key: &str) -> ProbeAnswer {
    match head.status {
        101 => match upgrade::check_response(head, key) {
            Ok(()) => ProbeAnswer::Upgraded,
            Err(why) => ProbeAnswer::Failed(AttemptError::NotUpgraded(why)),
        },
        status if is_failure(status) => ProbeAnswer::Failed(AttemptError::Status(status)),
        _ => ProbeAnswer::Declined,
    }
}

impl ProbeClosing {
    fn new(conn: Conn, cx: &mut Context) -> ProbeClosing {
        let mask = cx.chance.u32(..).to_be_bytes();
        let frame = ws::close_frame(1000, "probe", Some(mask));
        ProbeClosing { conn, frame, is_shut: false, until: cx.now + CLOSE_TIMEOUT }
    }

    /// Sends the Close frame and FIN, and discards what the backend still sends. False: done.
    fn step(&mut self, cx: &mut Context) -> bool {
        while !self.frame.is_empty() {
            match self.conn.write(&self.frame) {
                Ok(Io::Moved(n)) => drop(self.frame.drain(..n)),
                Ok(_) => break,
                Err(_) => return false,
            }
        }
        if self.frame.is_empty() && !self.is_shut {
            self.is_shut = self.conn.shutdown_write();
        }
        if cx.now >= self.until {
            return false;
        }
        for _ in 0..READS_PER_STEP {
            match cx.with_scratch(|scratch, _| self.conn.read(scratch)) {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return true,
                Ok(Io::Ended) | Err(_) => return false,
            }
        }
        // A backend that streams on is cut off.
        false
    }
}

/// 16 random bytes in base64: 21 characters, one of those that leave no bit over, and two of
/// padding.
fn random_key(chance: &mut fastrand::Rng) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut key: String =
        (0..21).filter_map(|_| chance.choice(DIGITS.as_bytes())).copied().map(char::from).collect();
    key.extend(chance.choice(['A', 'Q', 'g', 'w']));
    key + "=="
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::http::{RequestHead, empty_slots};

    #[test]
    fn a_probe_sends_a_correct_upgrade_request() {
        let mut chance = fastrand::Rng::with_seed(1);
        for _ in 0..100 {
            let key = random_key(&mut chance);
            let mut request = Vec::new();
            upgrade::write_probe_request("/x", "backend:8001", &key, &mut request);
            let mut slots = empty_slots();
            let (head, length) = RequestHead::parse(&request, &mut slots).unwrap().unwrap();
            assert_eq!(length, request.len());
            assert_eq!(upgrade::check_request(&head).unwrap().key, key);
        }
    }
}
