//! Accepted connections become sessions, or are refused because they are beyond a limit.

use super::Gateway;
use crate::net::{Conn, Security, Socket};
use crate::service::limits::Refusal;
use crate::service::trust::{Client, Peer};
use crate::session::{self, Admission, Identity, Proxied, Rare, Session};

/// Connections to the addresses for admins at once.
const ADMINS_MAX: usize = 100;

impl Gateway {
    /// Whether one more connection can be accepted, if only to be rejected with 503.
    pub fn can_admit(&self) -> bool {
        !self.cx.is_draining
            && (!self.cx.limits.is_full() || self.refusals.has_room(&self.sessions))
    }

    /// Takes a connection that was accepted from `client` and registered for [`Gateway::next_key`].
    pub fn admit(&mut self, socket: Socket, client: impl Into<Peer>) {
        self.admit_as(Security::Plain, socket, client.into());
    }

    /// The same, where a connection is expected to be like this.
    pub(super) fn admit_as(&mut self, security: Security, socket: Socket, client: Peer) {
        let expects_header = self.cx.trust.expects_header(client);
        if security == Security::Tls || expects_header {
            self.limit_handshakes();
        }
        // Behind a proxy, the client is known once its request has come.
        let counted = client.ip().filter(|_| !self.cx.trust.is_trusted_proxy(client));
        if let Err(refusal) = self.cx.limits.admit(counted) {
            return self.refuse_as(security, socket, client, refusal);
        }
        self.cx.stats.connections_accepted += 1;
        let mut who = self.identity(client, Admission::Client);
        who.note_security(security);
        let id = who.id();
        self.insert(Session::accepted(who, Conn::accepted(socket), &self.cx));
        if security == Security::Tls || expects_header {
            self.handshakes.add(id);
        }
    }

    /// Takes a connection that is beyond a limit: it is answered 503, unless it asks for an
    /// endpoint that is answered even then.
    pub fn refuse(&mut self, socket: Socket, client: impl Into<Peer>, refusal: Refusal) {
        self.refuse_as(Security::Plain, socket, client.into(), refusal);
    }

    pub(super) fn refuse_as(
        &mut self,
        security: Security,
        socket: Socket,
        client: Peer,
        refusal: Refusal,
    ) {
        if !self.refusals.is_full() || self.evict_refused() {
            let mut who = self.identity(client, Admission::Refused(refusal));
            who.note_security(security);
            self.refusals.add(who.key as usize, who.serial, &self.sessions);
            self.insert(Session::refused(who, Conn::accepted(socket), &self.cx));
        } else {
            // It gets no answer: what is refused must not hold more than it may.
            let who = self.identity(client, Admission::Refused(refusal));
            session::refuse_unanswered(&who, refusal, &mut self.cx);
        }
    }

    /// Ends the oldest refused connection that has not sent its request yet. False: there is none.
    fn evict_refused(&mut self) -> bool {
        let Some(key) = self.refusals.pop_waiting(&self.sessions) else { return false };
        self.sessions[key].evict();
        self.drive(key);
        true
    }

    pub(super) fn insert(&mut self, session: Session) {
        let key = self.sessions.insert(session);
        self.drive(key);
    }

    /// One more connection to an address for admins can be accepted, also during a drain.
    pub fn can_admit_admin(&self) -> bool {
        self.admins < ADMINS_MAX
    }

    /// Takes a connection to an address for admins, registered for [`Gateway::next_key`].
    pub fn admit_admin(&mut self, socket: Socket, client: impl Into<Peer>) {
        let who = self.identity(client.into(), Admission::Admin);
        self.admins += 1;
        let session = Session::accepted(who, Conn::accepted(socket), &self.cx);
        let key = self.sessions.insert(session);
        self.drive(key);
    }

    pub(super) fn identity(&mut self, client: Peer, admission: Admission) -> Identity {
        self.serials += 1;
        let is_proxy = admission == Admission::Client && self.cx.trust.is_trusted_proxy(client);
        let rare = is_proxy.then(|| {
            let proxied = Proxied { client: Client::Peer(client), counted: None };
            Box::new(Rare { proxied: Some(proxied), ..Rare::default() })
        });
        Identity {
            serial: self.serials,
            opened: self.cx.now,
            route: None,
            key: self.sessions.vacant_key() as u32,
            ip: client.ip(),
            port: match client {
                Peer::Ip(address) => address.port(),
                Peer::Unix | Peer::Named(_) | Peer::Unnamed => 0,
            },
            admission,
            rare,
            recent: std::cell::OnceCell::new(),
        }
    }
}
