//! One HTTP request to a backend and the head of its answer, over a connection that may still be in
//! the making.
//!
//! The request is written as soon as the connection exists: where it is established at once, as on
//! loopback, that saves a turn. The first byte that can be written shows that it is established.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::connector::Connector;
use super::transcript::{Event, Subject, note_step};
use super::{Context, Identity};
use crate::base::quoted::Quoted;
use crate::net::{Conn, Io, Ready, Security, tls};
use crate::proto::http::{RequestHead, ResponseHead, empty_slots};
use crate::proto::upgrade::{self, Forwarding};
use crate::service::attempt::AttemptError;
use log::warn;
use std::io;

/// Interim answers (1xx) before the real one.
const INTERIM_HEADS_MAX: u8 = 16;

/// What a request is, with its `X-Request-Id`, for the log.
pub enum Asking {
    /// For a WebSocket.
    Upgrade(String),
    /// Of a client, in plain HTTP.
    Request(String),
    /// Of the gateway itself, to find out whether the backend is well.
    Probe,
}

/// A request on its way, or the answer to it.
pub struct Exchange {
    conn: Conn,
    /// The head, and a part of the body if that is to leave with it.
    request: Vec<u8>,
    head_length: usize,
    sent: usize,
    /// Bytes of the body that were sent since this was last asked.
    body_sent: usize,
    asking: Asking,
    received: Vec<u8>,
    interim_heads: u8,
    /// One of the interim answers asks for the body (RFC 9110 §15.2.1).
    wants_body: bool,
}

/// The client's `X-Request-Id`, or a new one.
pub(super) fn request_id(head: &RequestHead<'_, '_>, cx: &mut Context) -> String {
    match upgrade::request_id(head) {
        Some(id) => id.to_owned(),
        None => {
            let id = uuid::Builder::from_random_bytes(cx.chance.u128(..).to_be_bytes());
            id.into_uuid().to_string()
        }
    }
}

/// What a client's request to a backend has besides the client's own headers.
pub(super) fn forwarding<'a>(
    host: Option<&'a str>,
    request_id: &'a str,
    who: &Identity,
    cx: &Context,
) -> Forwarding<'a> {
    Forwarding {
        host,
        client: who.peer().ip(),
        is_proxied: who.is_forwarded(&cx.trust),
        scheme: if who.security() == Security::Tls { "https" } else { "http" },
        request_id,
    }
}

impl Exchange {
    /// Sends `request` over `conn`, which a [`Connector`] has begun.
    pub fn new(conn: Conn, request: Vec<u8>, asking: Asking) -> Exchange {
        Exchange {
            conn,
            head_length: request.len(),
            request,
            sent: 0,
            body_sent: 0,
            asking,
            received: Vec::new(),
            interim_heads: 0,
            wants_body: false,
        }
    }

    /// Bytes of its buffers.
    pub fn held_bytes(&self) -> usize {
        self.request.capacity() + self.received.capacity()
    }

    /// The connection, to send a body behind the head.
    pub fn conn_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }

    /// The same, with `body` behind the head: together they are one packet.
    pub fn with_body(mut self, body: &[u8]) -> Exchange {
        self.request.extend_from_slice(body);
        self
    }

    /// Whether the whole head has been sent, so that an answer may come.
    pub fn is_head_sent(&self) -> bool {
        self.request.is_empty() || self.sent >= self.head_length
    }

    /// Bytes of the body that were sent since this was last asked.
    pub fn take_body_sent(&mut self) -> usize {
        std::mem::take(&mut self.body_sent)
    }

    /// Whether the backend has asked for the body since this was asked last.
    pub fn take_wants_body(&mut self) -> bool {
        std::mem::take(&mut self.wants_body)
    }

    /// The connection, once the answer has been read.
    pub fn into_conn(self) -> Conn {
        self.conn
    }

    /// Something happened at the backend's socket.
    pub fn handle_ready(&mut self, ready: Ready) {
        self.conn.handle_ready(ready);
    }

    /// Does all that can be done now. `Ok(None)`: waits for an event, or `connector`'s deadline.
    ///
    /// `read` gets the head of the final answer, and what has arrived behind it.
    ///
    /// # Errors
    /// Why the attempt has failed; [`Connector::fail`] is the caller's.
    pub fn poll<T>(
        &mut self,
        connector: &mut Connector,
        who: Subject<'_>,
        cx: &mut Context,
        read: impl FnOnce(&ResponseHead<'_, '_>, &[u8]) -> T,
    ) -> Result<Option<T>, AttemptError> {
        if self.send(connector, who, cx)?
            && let Some(answer) = self.read_answer(who, cx, read)?
        {
            return Ok(Some(answer));
        }
        connector.timed_out(cx.now).map_or(Ok(None), Err)
    }

    /// Reads the answer, as [`Exchange::poll`] does. `Ok(None)`: waits for an event.
    ///
    /// # Errors
    /// As of [`Exchange::poll`].
    pub fn read_answer<T>(
        &mut self,
        who: Subject<'_>,
        cx: &mut Context,
        read: impl FnOnce(&ResponseHead<'_, '_>, &[u8]) -> T,
    ) -> Result<Option<T>, AttemptError> {
        loop {
            let mut slots = empty_slots();
            match ResponseHead::parse_within(&self.received, cx.settings.max_head, &mut slots) {
                Ok(Some((head, length))) => {
                    note_step(who, cx.now, || Event::BackendAnswer {
                        status: head.status,
                        reason: head.reason,
                    });
                    if !head.is_interim() {
                        return Ok(Some(read(&head, &self.received[length..])));
                    }
                    self.interim_heads += 1;
                    self.wants_body |= head.status == 100;
                    if self.interim_heads > INTERIM_HEADS_MAX {
                        return Err(AttemptError::Malformed("too many interim answers"));
                    }
                    // The next head may have arrived already: no further event would report it.
                    self.received.drain(..length);
                    continue;
                }
                Ok(None) => {}
                Err(bad) => {
                    warn!(target: "dial", "{who} = bad answer from the backend why=\"{bad}\"{}", who.task_field());
                    return Err(AttemptError::Malformed(bad.why));
                }
            }
            match self.receive(cx) {
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return Ok(None),
                Ok(Io::Ended) | Err(_) => return Err(AttemptError::Unanswered),
            }
        }
    }

    /// Writes the request as far as there is room. True: all of it is out.
    ///
    /// # Errors
    /// As of [`Exchange::poll`].
    pub fn send(
        &mut self,
        connector: &mut Connector,
        who: Subject<'_>,
        cx: &mut Context,
    ) -> Result<bool, AttemptError> {
        while self.sent < self.request.len() {
            match self.conn.write(&self.request[self.sent..]) {
                Ok(Io::Moved(n)) => {
                    self.sent += n;
                    self.body_sent += n.min(self.sent.saturating_sub(self.head_length));
                    connector.connected(who, cx);
                }
                Ok(_) => return Ok(false),
                Err(error) => return Err(failed(&error, who)),
            }
        }
        if !self.request.is_empty() {
            note_step(who, cx.now, || match &self.asking {
                Asking::Upgrade(request_id) => Event::UpgradeRequest { request_id },
                Asking::Request(request_id) => Event::ForwardedRequest { request_id },
                Asking::Probe => Event::ProbeRequest,
            });
            self.request = Vec::new();
            self.sent = 0;
        }
        Ok(true)
    }

    fn receive(&mut self, cx: &mut Context) -> io::Result<Io> {
        // After a reload, more may have come than the limit is now.
        let room = cx.settings.max_head.saturating_sub(self.received.len()).max(1);
        cx.with_scratch(|scratch, _| {
            let read = self.conn.read(&mut scratch[..room])?;
            if let Io::Moved(n) = read {
                self.received.extend_from_slice(&scratch[..n]);
            }
            Ok(read)
        })
    }
}

/// What the first write, which takes the TLS handshake along, failed of.
fn failed(error: &io::Error, who: Subject<'_>) -> AttemptError {
    let failure = match tls::is_untrusted(error) {
        true => AttemptError::Untrusted,
        false => AttemptError::of_connecting(error),
    };
    if matches!(failure, AttemptError::Untrusted | AttemptError::TlsFailed) {
        warn!(target: "dial", "{who} = no TLS with the backend why={}{}", Quoted(&error.to_string()), who.task_field());
    }
    failure
}
