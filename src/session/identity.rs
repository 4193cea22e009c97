//! Which connection a session is: what stays the same, and what every log line about it has.

use super::Context;
use super::recent::Recent;
use crate::base::moment::{Moment, Seconds};
use crate::net::{Security, Side};
use crate::proto::ws::{FrameHead, FrameScanner, Opcode};
use crate::service::limits::{Limits, Refusal};
use crate::service::route::Route;
use crate::service::trust::{self, AcceptedOn, Client, Peer};
use std::cell::OnceCell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// What identifies a session: what stays the same, and what every log line about it has.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Identity {
    /// Counted from 1 since the start.
    pub serial: u64,
    pub opened: Moment,
    /// Its route, once it is a WebSocket. A reload of the configuration does not change it.
    pub route: Option<Rc<Route>>,
    /// Its slot, which its events carry.
    pub key: u32,
    /// Of the other end; `None` on a Unix socket.
    pub ip: Option<IpAddr>,
    pub port: u16,
    pub admission: Admission,
    /// What few sessions have, so that the others do not pay for it.
    pub rare: Option<Box<Rare>>,
    /// What happened last, while it is busy.
    pub recent: OnceCell<Box<Recent>>,
}

/// What few sessions have.
#[derive(Debug, Default)]
pub struct Rare {
    /// The task in the path of a relayed session, as the client wrote it.
    pub task_id: Option<Box<str>>,
    /// Exists while the peer is a trusted proxy, whose requests come from others.
    pub proxied: Option<Proxied>,
    /// The peer that its PROXY header named, in place of the proxy.
    pub named: Option<Peer>,
    /// Of the connection to the client. During a handshake: what is expected.
    pub security: Security,
}

/// The client behind a trusted proxy.
#[derive(Debug)]
pub struct Proxied {
    /// As the last request said.
    pub client: Client,
    /// The address that the connection is counted for by [`Limits`].
    pub counted: Option<IpAddr>,
}

/// What a session is counted as, until its slot is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A client, counted by [`Limits`].
    Client,
    /// A client beyond a limit. It is refused unless it asks for an endpoint that is answered all
    /// the same.
    Refused(Refusal),
    /// An operator, on an address for admins.
    Admin,
    /// A worker.
    Inbox,
    /// A worker beyond the limit.
    RefusedWorker,
}

/// Identifies a session among all that there have ever been; sorts them by age.
///
/// A slot alone does not: it is used again. Together with the low half of the serial number it is
/// unique as long as nothing refers to a session that ended 2³² connections ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    serial: u32,
    /// Its slot.
    pub key: u32,
}

#[cfg(test)]
impl SessionId {
    /// The first session in a slot.
    pub const fn in_slot(key: u32) -> SessionId {
        SessionId { serial: 1, key }
    }
}

impl Identity {
    /// Identifies the session, also after its slot was used again.
    pub fn id(&self) -> SessionId {
        SessionId { serial: self.serial as u32, key: self.key }
    }

    /// The client: the one that a PROXY header names, else the other end of the connection, which
    /// may be a proxy.
    pub fn peer(&self) -> Peer {
        self.rare.as_ref().and_then(|rare| rare.named).unwrap_or_else(|| self.socket_peer())
    }

    /// The other end of the connection. A PROXY header is ignored.
    pub fn socket_peer(&self) -> Peer {
        self.ip.map_or(Peer::Unix, |ip| Peer::Ip(SocketAddr::new(ip, self.port)))
    }

    /// Whether the connection, of which nothing has been read, begins with a PROXY header.
    pub fn sends_header(&self, trust: &trust::Settings) -> bool {
        matches!(self.admission, Admission::Client | Admission::Refused(_))
            && trust.expects_header(self.socket_peer())
    }

    /// Notes what a PROXY header says of the other end.
    pub fn note_named(&mut self, peer: Peer) {
        let rare = self.rare.get_or_insert_default();
        rare.named = Some(peer);
        if let Some(proxied) = &mut rare.proxied {
            proxied.client = Client::Peer(peer);
        }
    }

    /// Whether it comes from a trusted proxy whose `X-Forwarded-Proto` and `-Host` are believed.
    pub fn is_forwarded(&self, trust: &trust::Settings) -> bool {
        self.proxied().is_some() && trust.is_trusted_proxy(self.peer())
    }

    /// How the connection to the client is protected. During a handshake: what is expected.
    pub fn security(&self) -> Security {
        self.rare.as_ref().map_or(Security::Plain, |rare| rare.security)
    }

    /// Notes how the connection is protected.
    pub fn note_security(&mut self, security: Security) {
        if security != self.security() {
            self.rare.get_or_insert_default().security = security;
        }
    }

    /// The client, for logs and reports.
    pub fn client(&self) -> Client {
        self.proxied().map_or(Client::Peer(self.peer()), |proxied| proxied.client)
    }

    /// What is known of the client, if the peer is a trusted proxy.
    pub fn proxied(&self) -> Option<&Proxied> {
        self.rare.as_ref()?.proxied.as_ref()
    }

    /// Notes the task in the path, as the client wrote it.
    pub fn note_task_id(&mut self, task_id: Option<&str>) {
        if let Some(task_id) = task_id {
            self.rare.get_or_insert_default().task_id = Some(task_id.into());
        }
    }

    /// What happened last, if that is remembered.
    #[inline]
    pub fn recent(&self) -> Option<&Recent> {
        self.recent.get().map(|recent| &**recent)
    }

    /// Remembers what happens from now on, if there is room for it and the log does not have it
    /// anyway.
    pub fn begin_recent(&self, cx: &mut Context) {
        if self.recent().is_none()
            && log::max_level() < log::Level::Debug
            && let Some(recent) = cx.black_box.recents.take()
            && let Err(recent) = self.recent.set(recent)
        {
            cx.black_box.recents.give(recent);
        }
    }

    /// Remembers nothing any more, after what has been counted has gone to the route.
    pub fn forget_recent(&mut self, cx: &mut Context) {
        self.count_recent();
        if let Some(recent) = self.recent.take() {
            cx.black_box.recents.give(recent);
        }
    }

    /// The route takes what has been counted.
    pub fn count_recent(&self) {
        if let (Some(recent), Some(route)) = (self.recent(), &self.route) {
            recent.count_for(&route.frames);
        }
    }

    /// Counts and remembers a frame that goes to this side. A control frame is no reason to begin
    /// with it: a connection that only answers pings is idle.
    pub fn count_frame(&self, to: Side, head: &FrameHead, cx: &mut Context) {
        if !head.is_control() && !self.is_learning() {
            self.begin_recent(cx);
        }
        match self.recent() {
            Some(recent) => recent.note_frame(to, head, cx.now),
            None => self.count_only(to, head.opcode),
        }
    }

    /// Counts a frame that goes to this side, and remembers it if anything is remembered.
    pub fn count_noted(&self, to: Side, head: &FrameHead, now: Moment) {
        match self.recent() {
            Some(recent) => recent.note_frame(to, head, now),
            None => self.count_only(to, head.opcode),
        }
    }

    /// Counts a frame that goes to this side.
    fn count_only(&self, to: Side, opcode: Opcode) {
        if let Some(route) = &self.route {
            match to {
                Side::Upstream => route.frames.count_from_client(opcode, 1),
                Side::Downstream => route.frames.count_to_client(opcode, 1),
            }
        }
    }

    /// Counts and remembers whole frames that go to this side. Returns how many there are.
    pub fn count_frames(&self, to: Side, frames: &[u8], cx: &mut Context) -> u64 {
        let mut count = 0;
        FrameScanner::each_head(frames, |head| {
            self.count_frame(to, head, cx);
            count += 1;
        });
        count
    }

    /// Whether its task has to be read from its backend's messages, and is not known yet.
    pub fn is_learning(&self) -> bool {
        let learns = self.route.as_ref().is_some_and(|route| route.learn_task().is_some());
        learns && self.task_id().is_none()
    }

    /// The noted task.
    pub fn task_id(&self) -> Option<&str> {
        self.rare.as_ref()?.task_id.as_deref()
    }

    /// Takes the noted task: its phase keeps it from here on.
    pub fn take_task_id(&mut self) -> Option<Box<str>> {
        let task_id = self.rare.as_mut()?.task_id.take();
        self.rare.take_if(|rare| {
            rare.proxied.is_none() && rare.named.is_none() && rare.security == Security::Plain
        });
        task_id
    }

    /// The address that the connection is counted for.
    pub fn counted(&self) -> Option<IpAddr> {
        self.proxied().map_or(self.ip, |proxied| proxied.counted)
    }

    /// Where it was accepted.
    pub fn accepted_on(&self) -> AcceptedOn {
        match self.admission {
            Admission::Admin => AcceptedOn::Admins,
            Admission::Client
            | Admission::Refused(_)
            | Admission::Inbox
            | Admission::RefusedWorker => AcceptedOn::Clients,
        }
    }

    /// Notes whose the request is that has come through a proxy, and counts the connection for it.
    ///
    /// # Errors
    /// The limit that the client has reached.
    pub fn note_client(&mut self, client: Client, limits: &mut Limits) -> Result<(), Refusal> {
        let proxied = self.rare.as_mut().and_then(|rare| rare.proxied.as_mut());
        if let Some(proxied) = proxied {
            proxied.client = client;
            let counted = match client {
                Client::Forwarded(ip) => Some(ip),
                Client::Peer(Peer::Named(address)) => Some(address.ip()),
                // A request of the proxy itself, or of a client whose address is unknown.
                Client::Peer(_) | Client::Unknown => None,
            };
            limits.recount(proxied.counted, counted)?;
            proxied.counted = counted;
        }
        Ok(())
    }

    /// The time since it was accepted.
    pub fn age(&self, now: Moment) -> Seconds {
        Seconds(now - self.opened)
    }

    /// The same as [`Identity::route_name`], to be kept after the session.
    pub fn shared_route_name(&self) -> Rc<str> {
        match &self.route {
            Some(route) => Rc::clone(&route.name),
            None => self.route_name().into(),
        }
    }

    /// The name of its route, or `http` or `inbox` where it has none.
    pub fn route_name(&self) -> &str {
        match (&self.route, self.admission) {
            (Some(route), _) => &route.name,
            (None, Admission::Client | Admission::Refused(_) | Admission::Admin) => "http",
            (None, Admission::Inbox | Admission::RefusedWorker) => "inbox",
        }
    }
}

#[cfg(test)]
impl Identity {
    /// A client's session, for tests of phases.
    pub fn of_client() -> Identity {
        Identity {
            serial: 1,
            opened: Moment::START,
            route: None,
            rare: None,
            recent: OnceCell::new(),
            key: 0,
            ip: Some(std::net::Ipv4Addr::LOCALHOST.into()),
            port: 5000,
            admission: Admission::Client,
        }
    }
}

impl fmt::Display for Identity {
    /// The connection id: `input_1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.route_name(), self.serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_task_leaves_nothing_behind() {
        let mut who = Identity::of_client();
        who.note_task_id(Some("a task"));
        assert_eq!(who.take_task_id().as_deref(), Some("a task"));
        assert!(who.rare.is_none(), "a client that waits would hold the empty box");
        who.note_security(Security::Tls);
        who.note_task_id(Some("a task"));
        who.take_task_id();
        assert_eq!(who.security(), Security::Tls);
    }
}
