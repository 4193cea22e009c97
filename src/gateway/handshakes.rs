//! Connections whose PROXY header or TLS handshake is not complete. Their number is limited, so
//! that peers that never finish one cannot take the memory and the slots of clients. Beyond the
//! limit, the oldest is closed.

use super::Gateway;
use crate::net::{Security, Socket};
use crate::service::limits::Refusal;
use crate::service::trust::Peer;
use crate::session::{Session, SessionId};
use log::warn;
use std::collections::VecDeque;

/// Unfinished handshakes at a time.
const UNFINISHED_MAX: usize = 1024;

/// The connections that may still be in their handshake, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<SessionId>);

impl Handshakes {
    /// Adds the newest one.
    pub fn add(&mut self, id: SessionId) {
        self.0.push_back(id);
    }
}

impl Gateway {
    /// Takes a connection that was accepted where TLS is expected, as [`Gateway::admit`] does.
    pub fn admit_tls(&mut self, socket: Socket, client: impl Into<Peer>) {
        let client = client.into();
        match self.with_tls(socket, client) {
            Some(socket) => self.admit_as(Security::Tls, socket, client),
            None => warn!(target: "tls", "no certificate for client={client}"),
        }
    }

    /// The same for a connection that is beyond a limit, as [`Gateway::refuse`] does.
    pub fn refuse_tls(&mut self, socket: Socket, client: impl Into<Peer>, refusal: Refusal) {
        let client = client.into();
        if let Some(socket) = self.with_tls(socket, client) {
            self.refuse_as(Security::Tls, socket, client, refusal);
        }
    }

    /// Puts TLS on a socket, unless a PROXY header comes before it.
    fn with_tls(&self, socket: Socket, client: Peer) -> Option<Socket> {
        match self.cx.trust.expects_header(client) {
            true => Some(socket),
            false => self.cx.tls.accept(socket),
        }
    }

    /// Makes room for one more handshake.
    pub(super) fn limit_handshakes(&mut self) {
        if self.handshakes.0.len() < UNFINISHED_MAX {
            return;
        }
        // Nearly all are complete, as a rule, so this is done once for many connections.
        let mut waiting = std::mem::take(&mut self.handshakes.0);
        waiting.retain(|id| self.session(*id).is_some_and(Session::is_accepting));
        if waiting.len() >= UNFINISHED_MAX
            && let Some(oldest) = waiting.pop_front()
            && let Some(session) = self.session_mut(oldest)
        {
            session.evict();
            self.drive(oldest.key as usize);
        }
        self.handshakes.0 = waiting;
    }
}
