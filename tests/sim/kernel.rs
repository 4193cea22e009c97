//! A simulated kernel: connections as two queues each, with the readiness edges that `epoll` would
//! report.
//!
//! The gateway's end of a [`Link`] is a [`Transport`]; the far end belongs to a scripted peer. It
//! is exact in these respects:
//!
//! - *Edges*: an event is reported once: when data, FIN or RST arrives, when a connection is
//!   established or fails, and when a full socket has room again. It is never repeated because a
//!   state lasts. An event shows the state at the time when it is taken, as with `epoll_wait`, and
//!   one that was taken is delivered even if the socket was closed meanwhile.
//! - *No room*: a write takes what fits. An edge follows only after a write that stopped short.
//! - *Errors*: an RST leaves what arrived before it to be read, is reported once as an error, and
//!   is an end or a broken pipe from then on. Closing with unread bytes sends an RST, and so do
//!   bytes that arrive after that; the peer loses what it has not read.
//! - *Corking*: of what is written with more to follow, or to a corked socket, only full packets
//!   leave. The rest waits for the next write, the release, the end, or a full queue. A real kernel
//!   sends it after 200 ms; this one never does, so that a missing release is noticed.
//!
//! One seed decides everything else: how bytes are cut on the way, how long that takes, and which
//! events a turn gets.

#[path = "records.rs"]
pub mod records;
#[path = "secured.rs"]
pub mod secured;

use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::net::{
    Network, OpenFile, PeerAddress, Pipe, Ready, Socket, Source, Transport,
};
use records::{Layer, Recorded};
use secured::Secured;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a full packet.
const PACKET: u64 = 1448;

/// A number of a link; never reused.
pub type LinkId = usize;

/// What happens at a set time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Bytes on the way to the gateway arrive.
    Deliver(LinkId),
    /// The peer at the far end acts.
    Peer(LinkId),
    /// A delayed edge is reported.
    Edge(LinkId),
    /// A connection that the gateway dialed is established, or refused.
    Dialed(LinkId, Result<(), ErrorKind>),
    /// The world carries out one of its plans.
    Plan(usize),
}

/// What happens to connections to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// They are established within this time; zero: at once, as on loopback.
    Up(Duration),
    /// They are refused within this time.
    Refusing(Duration),
    /// They are never answered.
    Swallowing,
    /// The call itself fails.
    Failing(ErrorKind),
}

/// How a peer ended its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Fin,
    Reset,
}

/// How this world's kernel differs from others.
#[derive(Debug, Clone)]
pub struct Nature {
    /// Bytes that fit a socket's receive queue, and its send queue.
    pub receive_max: usize,
    pub send_max: usize,
    /// The longest time that a piece is on the way.
    pub latency: Duration,
    /// Pieces are cut anywhere; otherwise they arrive whole.
    pub cuts: bool,
    /// Calls are interrupted or stop short, and spurious events occur.
    pub has_quirks: bool,
    /// Bytes can pass through pipes.
    pub splices: bool,
    /// Peeking works at any offset, as with `SO_PEEK_OFF`.
    pub peeks_ahead: bool,
    /// The record layer of the gateway's transports.
    pub records: Records,
}

/// What is between the gateway and its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// Nothing.
    None,
    /// The layer of `records.rs`.
    Simulated,
    /// TLS: the gateway's own on its side, and `rustls` on the peers'.
    Tls,
}

/// All connections, and the actions that are planned.
pub struct Kernel {
    pub now: Moment,
    pub start: Moment,
    pub chance: fastrand::Rng,
    pub nature: Nature,
    pub links: Vec<Link>,
    pub hosts: HashMap<SocketAddr, Host>,
    /// Established links that the gateway dialed and that have no peer yet.
    pub established: VecDeque<LinkId>,
    /// Calls that changed something. A turn without any is idle.
    pub moves: u64,
    pub trace: Option<Vec<String>>,
    /// Which link the gateway read from, and how far, in order. `None`: nobody wants to know.
    pub takes: Option<Vec<(LinkId, u64)>>,
    /// It says how much memory buffers of sockets take. Where it does not, they take none.
    pub counts_buffers: bool,
    /// The gateway's process stands still at times, for longer than any timeout.
    pub stands_still: bool,
    /// How long it may still stand still in all.
    pub standstills_left: Duration,
    /// When it stood still until, and for how long.
    pub standstills: Vec<(Moment, Duration)>,
    agenda: BTreeMap<(Moment, u64), Action>,
    planned: u64,
    edges: Vec<LinkId>,
    shuttle: Option<Shuttle>,
}

/// One connection. "Near" is the gateway's end.
#[derive(Debug)]
pub struct Link {
    pub source: Source,
    /// Where the gateway dialed.
    pub to: Option<SocketAddr>,
    is_up: bool,
    /// Bytes that may wait for the peer.
    send_max: usize,
    wire: VecDeque<u8>,
    wire_end: Option<End>,
    is_delivering: bool,
    received: VecDeque<u8>,
    has_fin: bool,
    pub has_reset: bool,
    error: Option<ErrorKind>,
    sent: VecDeque<u8>,
    pub near_fin: bool,
    /// A write stopped short: an edge is due when there is room.
    is_short: bool,
    /// A write stopped short although there was room: the edge is delayed.
    is_owed: bool,
    /// The gateway has met the end, by reading or by writing.
    is_end_met: bool,
    has_edge: bool,
    /// The gateway closed it.
    pub is_dropped: bool,
    /// What has not left by then is destroyed.
    discards_on_close: bool,
    /// The peer gets an RST behind what is left.
    near_reset: bool,
    /// Bytes that the gateway had written and then destroyed by its RST.
    pub lost: usize,
    /// Bytes that the gateway has written, and has read.
    pub written: u64,
    pub taken: u64,
    /// How many of the bytes written are free to leave.
    released: u64,
    is_corked: bool,
    /// `written` and `released` each time a file was read to be sent.
    file_reads: Vec<(u64, u64)>,
    /// The peer has closed: a write leads to an RST.
    pub is_far_gone: bool,
    /// When the gateway last asked what the peer has not acknowledged.
    asked_at: Option<Moment>,
    /// Bytes pass in records.
    pub layer: Option<Layer>,
    /// The peer has ended its side, but what it has sent still waits for a handshake.
    end_kept_back: Option<End>,
}

/// Real pipes, through which bytes get into and out of a [`Pipe`].
struct Shuttle {
    into: (OwnedFd, OwnedFd),
    /// With their capacity, the largest first.
    from: Vec<(usize, OwnedFd, OwnedFd)>,
}

pub type Shared = Rc<RefCell<Kernel>>;

impl Kernel {
    pub fn new(seed: u64, nature: Nature) -> Shared {
        let start = Moment::START;
        Rc::new(RefCell::new(Kernel {
            now: start,
            start,
            chance: fastrand::Rng::with_seed(seed ^ 0x5eed),
            nature,
            links: Vec::new(),
            hosts: HashMap::new(),
            established: VecDeque::new(),
            moves: 0,
            trace: None,
            takes: None,
            counts_buffers: false,
            stands_still: false,
            standstills_left: Duration::MAX,
            standstills: Vec::new(),
            agenda: BTreeMap::new(),
            planned: 0,
            edges: Vec::new(),
            shuttle: None,
        }))
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u32) -> bool {
        self.chance.u32(..n) == 0
    }

    /// A random time up to `most`.
    pub fn some(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.chance.u64(..=most.as_nanos() as u64))
    }

    /// Plans `action`, unless it is already planned for that moment.
    pub fn at(&mut self, at: Moment, action: Action) {
        let at = at.max(self.now);
        if self.agenda.range((at, 0)..=(at, u64::MAX)).any(|(_, planned)| *planned == action) {
            return;
        }
        self.planned += 1;
        self.agenda.insert((at, self.planned), action);
    }

    pub fn after(&mut self, wait: Duration, action: Action) {
        self.at(self.now + wait, action);
    }

    /// The next action that is due.
    pub fn poll_action(&mut self) -> Option<Action> {
        let (&(at, _), _) = self.agenda.first_key_value()?;
        if at > self.now {
            return None;
        }
        self.agenda.pop_first().map(|(_, action)| action)
    }

    pub fn next_action(&self) -> Option<Moment> {
        self.agenda.first_key_value().map(|(&(at, _), _)| at)
    }

    pub fn has_edges(&self) -> bool {
        !self.edges.is_empty()
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = (self.now - self.start).as_secs_f64();
            trace.push(format!("{at:11.6}   {}", line()));
        }
    }

    /// A client connects, and waits to be accepted.
    pub fn open(&mut self) -> LinkId {
        self.open_with(|_, _| Vec::new())
    }

    /// The same, where these bytes come before anything else, below any record layer.
    pub fn open_with(
        &mut self,
        first: impl FnOnce(&mut fastrand::Rng, LinkId) -> Vec<u8>,
    ) -> LinkId {
        let link = self.add_link(Source::Waker, None);
        self.links[link].is_up = true;
        let first = first(&mut self.chance, link);
        if !first.is_empty() {
            self.links[link].wire.extend(first);
            self.keep_delivering(link);
        }
        if let Some(layer) = &mut self.links[link].layer {
            let hello = layer.hello();
            self.links[link].wire.extend(hello);
            self.keep_delivering(link);
        }
        link
    }

    fn add_link(&mut self, source: Source, to: Option<SocketAddr>) -> LinkId {
        let layer = Layer::new(self.nature.records, to.is_some());
        let send_max = self.nature.send_max;
        self.links.push(Link { layer, send_max, ..Link::new(source, to) });
        self.links.len() - 1
    }

    /// The peer takes no more than `send_max` bytes before it reads, fewer than others.
    pub fn narrow(&mut self, link: LinkId, send_max: usize) {
        let link = &mut self.links[link];
        link.send_max = link.send_max.min(send_max);
    }

    /// A connection has been accepted and registered.
    pub fn register(&mut self, link: LinkId, source: Source) {
        self.links[link].source = source;
        self.edge(link);
    }

    /// Takes the events of a turn: usually all, in random order.
    pub fn take_events(&mut self) -> Vec<(LinkId, Source, Ready)> {
        let mut edges = std::mem::take(&mut self.edges);
        self.chance.shuffle(&mut edges);
        if self.nature.has_quirks && edges.len() > 1 && self.one_in(4) {
            let kept = self.chance.usize(1..edges.len());
            self.edges = edges.split_off(kept);
        }
        let mut events = Vec::new();
        for id in edges {
            self.links[id].has_edge = false;
            if let Some(ready) = self.ready(id) {
                events.push((id, self.links[id].source, ready));
            }
        }
        if self.nature.has_quirks && self.one_in(8) && !self.links.is_empty() {
            // A spurious event: the state as it is, reported once more.
            let id = self.chance.usize(..self.links.len());
            if let Some(ready) = self.ready(id) {
                events.push((id, self.links[id].source, ready));
            }
        }
        events
    }

    fn ready(&self, id: LinkId) -> Option<Ready> {
        let link = &self.links[id];
        if link.is_dropped
            || !matches!(link.source, Source::Session(..) | Source::Link(_) | Source::Probe(_))
        {
            return None;
        }
        let failed = link.error.is_some() || link.has_reset;
        let read_closed = link.has_fin || failed;
        let ready = Ready {
            readable: !link.received.is_empty() || read_closed,
            writable: failed || link.is_up && self.has_room(link),
            read_closed,
        };
        (ready != Ready::default()).then_some(ready)
    }

    /// Room enough for an event, which is more than a write needs.
    fn has_room(&self, link: &Link) -> bool {
        let room = link.send_max.saturating_sub(link.sent.len());
        room > 0 && room >= link.send_max / 3
    }

    pub fn edge(&mut self, id: LinkId) {
        if !std::mem::replace(&mut self.links[id].has_edge, true) {
            self.edges.push(id);
        }
    }

    // ---- what happens over time

    /// A piece of what is on the way arrives at the gateway.
    pub fn deliver(&mut self, id: LinkId) {
        self.links[id].is_delivering = false;
        if self.links[id].is_dropped {
            // The gateway has closed the socket.
            if !self.links[id].wire.is_empty() {
                self.links[id].wire.clear();
                self.near_resets(id);
            }
            let link = &mut self.links[id];
            link.wire_end = None;
            self.wake_peer(id);
            return;
        }
        let room =
            self.nature.receive_max - self.links[id].received.len().min(self.nature.receive_max);
        let most = room.min(self.links[id].wire.len());
        let cuts = self.nature.cuts && !self.one_in(4);
        let piece = if cuts && most > 1 { self.chance.usize(1..=most) } else { most };
        let link = &mut self.links[id];
        let arrived = take(&mut link.wire, piece);
        link.received.extend(arrived);
        if piece > 0 {
            self.edge(id);
        }
        let is_last = self.links[id].wire.is_empty();
        let comes_along = piece == 0 || self.chance.bool();
        if is_last
            && comes_along
            && let Some(end) = self.links[id].wire_end.take()
        {
            self.arrive_end(id, end);
        }
        self.keep_delivering(id);
    }

    fn arrive_end(&mut self, id: LinkId, end: End) {
        let loses = self.nature.has_quirks && self.chance.bool();
        let link = &mut self.links[id];
        match end {
            End::Fin => link.has_fin = true,
            End::Reset => {
                link.has_reset = true;
                link.error = Some(ErrorKind::ConnectionReset);
                link.sent.clear();
                if loses {
                    link.received.clear();
                }
            }
        }
        self.edge(id);
    }

    fn keep_delivering(&mut self, id: LinkId) {
        let link = &self.links[id];
        let has_room = link.received.len() < self.nature.receive_max;
        let has_more =
            !link.wire.is_empty() && has_room || link.wire.is_empty() && link.wire_end.is_some();
        if has_more && !link.is_delivering {
            self.links[id].is_delivering = true;
            let wait = self.some(self.nature.latency);
            self.after(wait, Action::Deliver(id));
        }
    }

    /// The gateway begins to connect.
    fn dial(&mut self, to: SocketAddr, source: Source) -> io::Result<LinkId> {
        self.moves += 1;
        let host = self.hosts.get(&to).copied().unwrap_or(Host::Refusing(Duration::ZERO));
        self.note(|| format!("connect {to} {host:?}"));
        if let Host::Failing(kind) = host {
            return Err(kind.into());
        }
        let link = self.add_link(source, Some(to));
        let (most, result) = match host {
            Host::Up(most) => (Some(most), Ok(())),
            Host::Refusing(most) => (Some(most), Err(ErrorKind::ConnectionRefused)),
            Host::Swallowing | Host::Failing(_) => (None, Ok(())),
        };
        match most {
            Some(Duration::ZERO) => self.dialed(link, result),
            Some(most) => {
                let wait = self.some(most);
                self.after(wait, Action::Dialed(link, result));
            }
            None => {}
        }
        self.edge(link);
        Ok(link)
    }

    pub fn dialed(&mut self, id: LinkId, result: Result<(), ErrorKind>) {
        if self.links[id].is_dropped {
            return;
        }
        match result {
            Ok(()) => {
                self.links[id].is_up = true;
                self.established.push_back(id);
            }
            Err(kind) => self.links[id].error = Some(kind),
        }
        self.edge(id);
    }

    /// Reports the edge that was delayed for lack of memory.
    pub fn late_edge(&mut self, id: LinkId) {
        self.links[id].is_owed = false;
        self.edge(id);
    }

    pub fn wake_peer(&mut self, id: LinkId) {
        let wait = self.some(self.nature.latency);
        self.after(wait, Action::Peer(id));
    }

    // ---- the far end

    /// How many bytes the peer may send now.
    pub fn window(&self, id: LinkId) -> usize {
        let link = &self.links[id];
        self.nature.receive_max.saturating_sub(link.wire.len() + link.received.len())
    }

    /// The peer sends. If the gateway has closed the socket, the answer is an RST.
    pub fn send(&mut self, id: LinkId, bytes: &[u8]) {
        let link = &mut self.links[id];
        match &mut link.layer {
            Some(layer) => link.wire.extend(layer.seal(bytes, &mut self.chance)),
            None => link.wire.extend(bytes),
        }
        self.keep_delivering(id);
    }

    /// The peer ends its side: it sends nothing more (FIN), or has closed the connection (RST).
    pub fn end(&mut self, id: LinkId, end: End) {
        if end == End::Reset {
            self.links[id].is_far_gone = true;
            if self.chance.bool() {
                self.links[id].wire.clear();
            }
        }
        let link = &mut self.links[id];
        if end == End::Fin && link.layer.as_ref().is_some_and(Layer::keeps_back) {
            link.end_kept_back = Some(end);
            return;
        }
        link.end_kept_back = None;
        link.wire_end = Some(end);
        self.keep_delivering(id);
    }

    /// The peer closes its socket, and reads nothing more. With unread bytes that sends an RST.
    pub fn close(&mut self, id: LinkId) -> Option<End> {
        let link = &mut self.links[id];
        link.is_far_gone = true;
        if !link.sent.is_empty() {
            link.sent.clear();
            self.end(id, End::Reset);
            Some(End::Reset)
        } else if !link.has_fin && link.wire_end.is_none() {
            self.end(id, End::Fin);
            Some(End::Fin)
        } else {
            None
        }
    }

    /// The listener is closed before the connection was accepted.
    pub fn refuse(&mut self, id: LinkId) {
        self.links[id].is_dropped = true;
        self.links[id].near_reset = true;
        self.wake_peer(id);
    }

    /// What the peer reads, at most `most` bytes.
    pub fn receive(&mut self, id: LinkId, most: usize) -> Vec<u8> {
        if self.links[id].layer.is_none() {
            return self.receive_unseen(id, most);
        }
        let mut received = Vec::new();
        loop {
            let link = &mut self.links[id];
            let layer = link.layer.as_mut().expect("a link with records");
            received.extend(layer.take_plaintext(most - received.len()));
            let needed = layer.needed();
            let bytes = match received.len() < most {
                true => self.receive_unseen(id, needed),
                false => Vec::new(),
            };
            if bytes.is_empty() {
                return received;
            }
            let link = &mut self.links[id];
            let layer = link.layer.as_mut().expect("a link with records");
            let answer = layer.open(&bytes, link.to.is_some());
            if !answer.is_empty() {
                link.wire.extend(answer);
                self.keep_delivering(id);
            }
            if let Some(end) = self.links[id].end_kept_back.take() {
                self.end(id, end);
            }
        }
    }

    /// The same, below any record layer.
    fn receive_unseen(&mut self, id: LinkId, most: usize) -> Vec<u8> {
        let link = &mut self.links[id];
        let most = most.min(link.sent.len() - link.corked_bytes());
        let bytes = take(&mut link.sent, most);
        if link.is_short && self.has_room(&self.links[id]) {
            self.links[id].is_short = false;
            self.edge(id);
        }
        bytes
    }

    pub fn is_to_receive(&self, id: LinkId) -> bool {
        let link = &self.links[id];
        link.sent.len() > link.corked_bytes() || link.has_far_plaintext()
    }

    /// The end that the peer meets after it has read everything.
    pub fn received_end(&self, id: LinkId) -> Option<End> {
        let link = &self.links[id];
        if !link.sent.is_empty() || link.has_far_plaintext() {
            None
        } else if link.near_reset {
            Some(End::Reset)
        } else {
            (link.near_fin || link.is_dropped).then_some(End::Fin)
        }
    }

    // ---- what the gateway has left undone

    /// Bytes or an end have arrived, and the gateway has not read them.
    pub fn is_unread(&self, id: LinkId) -> bool {
        let link = &self.links[id];
        let is_ended = (link.has_fin || link.has_reset) && !link.is_end_met;
        let (is_held, is_blocked) = link
            .layer
            .as_ref()
            .map_or((false, false), |layer| (layer.is_input_held, layer.is_read_blocked));
        !link.is_dropped && !is_blocked && (!link.received.is_empty() || is_held || is_ended)
    }

    /// The gateway has read everything that the peer has sent.
    pub fn is_all_taken(&self, id: LinkId) -> bool {
        let link = &self.links[id];
        let is_held = link.layer.as_ref().is_some_and(|layer| layer.is_input_held);
        !link.is_dropped && link.wire.is_empty() && link.received.is_empty() && !is_held
    }

    /// A write that stopped short waits for its edge.
    pub fn is_full(&self, id: LinkId) -> bool {
        let link = &self.links[id];
        let is_new = link.layer.as_ref().is_some_and(|layer| !layer.is_established);
        !link.is_dropped && (link.is_short || link.is_owed || !link.is_up || is_new)
    }

    /// A record layer has not sent its output, although the socket has room.
    pub fn is_output_forgotten(&self, id: LinkId) -> bool {
        let link = &self.links[id];
        let held = link.layer.as_ref().map_or(0, |layer| layer.held_output);
        let is_broken = link.has_reset || link.near_fin || link.error.is_some();
        !link.is_dropped && held > 0 && link.is_up && !is_broken && !(link.is_short || link.is_owed)
    }

    // ---- the near end

    fn read(&mut self, id: LinkId, buf: &mut [u8], takes: bool) -> io::Result<usize> {
        if self.nature.has_quirks && self.one_in(64) {
            return Err(ErrorKind::Interrupted.into());
        }
        let link = &mut self.links[id];
        if !link.received.is_empty() {
            let n = buf.len().min(link.received.len());
            copy(&link.received, &mut buf[..n]);
            if takes {
                link.received.drain(..n);
                if link.layer.is_none() {
                    self.note_taken(id, n);
                }
                self.note(|| format!("link {id} read {n}"));
                self.took(id);
            }
            return Ok(n);
        }
        if let Some(kind) = link.error.take() {
            link.is_end_met = true;
            self.moves += 1;
            return Err(kind.into());
        }
        if link.has_fin || link.has_reset {
            link.is_end_met = true;
            self.moves += 1;
            return Ok(0);
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// The gateway has got bytes out of a link, above any record layer.
    pub fn note_taken(&mut self, id: LinkId, n: usize) {
        let link = &mut self.links[id];
        link.taken += n as u64;
        if let Some(takes) = &mut self.takes {
            takes.push((id, link.taken));
        }
    }

    /// The gateway has read: more may arrive, sometimes at once.
    fn took(&mut self, id: LinkId) {
        self.moves += 1;
        if self.nature.has_quirks && self.one_in(8) && !self.links[id].wire.is_empty() {
            let most = self.links[id]
                .wire
                .len()
                .min(self.nature.receive_max - self.links[id].received.len());
            if most > 0 {
                let piece = self.chance.usize(1..=most);
                let arrived = take(&mut self.links[id].wire, piece);
                self.links[id].received.extend(arrived);
                self.edge(id);
            }
        }
        self.keep_delivering(id);
        self.wake_peer(id);
    }

    fn write(&mut self, id: LinkId, bytes: &[u8], has_more: bool) -> io::Result<usize> {
        let n = self.write_unseen(id, bytes)?;
        if !self.links[id].is_far_gone {
            self.links[id].wrote(n, has_more);
            if n < bytes.len() {
                self.release(id);
            }
        }
        Ok(n)
    }

    /// The same, below any record layer.
    fn write_unseen(&mut self, id: LinkId, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room(id, 1)?;
        if self.links[id].is_far_gone {
            self.far_resets(id);
            return Ok(bytes.len());
        }
        let mut n = room.min(bytes.len());
        if n > 1 && self.nature.has_quirks && self.one_in(16) {
            n = self.chance.usize(1..=n);
        }
        self.links[id].sent.extend(&bytes[..n]);
        if n < bytes.len() {
            self.fell_short(id);
        }
        self.note(|| format!("link {id} wrote {n} of {}", bytes.len()));
        self.moves += 1;
        self.wake_peer(id);
        Ok(n)
    }

    /// Room of at least `least` bytes, or the error that a write returns.
    fn room(&mut self, id: LinkId, least: usize) -> io::Result<usize> {
        if self.nature.has_quirks && self.one_in(64) {
            return Err(ErrorKind::Interrupted.into());
        }
        let link = &mut self.links[id];
        if let Some(kind) = link.error.take() {
            self.moves += 1;
            return Err(kind.into());
        }
        if link.near_fin || link.has_reset {
            self.moves += 1;
            return Err(ErrorKind::BrokenPipe.into());
        }
        if !link.is_up {
            return Err(ErrorKind::WouldBlock.into());
        }
        let room = link.send_max.saturating_sub(link.sent.len());
        if !link.is_far_gone && room < least {
            self.fell_short(id);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(room)
    }

    fn fell_short(&mut self, id: LinkId) {
        self.release(id);
        if self.has_room(&self.links[id]) {
            // As if memory were short: the edge comes a little later.
            self.links[id].is_owed = true;
            let wait = self.some(Duration::from_millis(2));
            self.after(wait, Action::Edge(id));
        } else {
            self.links[id].is_short = true;
        }
    }

    fn set_corked(&mut self, id: LinkId, is_corked: bool) {
        self.note(|| format!("link {id} {}", if is_corked { "is corked" } else { "is uncorked" }));
        self.links[id].is_corked = is_corked;
        if !is_corked {
            self.release(id);
        }
    }

    /// Lets everything leave that has been written.
    fn release(&mut self, id: LinkId) {
        if self.links[id].corked_bytes() > 0 {
            self.links[id].released = self.links[id].written;
            self.wake_peer(id);
        }
    }

    fn far_resets(&mut self, id: LinkId) {
        self.moves += 1;
        let link = &mut self.links[id];
        if !link.has_reset && link.wire_end != Some(End::Reset) {
            link.wire_end = Some(End::Reset);
            self.keep_delivering(id);
        }
    }

    fn shutdown(&mut self, id: LinkId) {
        self.note(|| format!("link {id} sent FIN"));
        self.moves += 1;
        self.release(id);
        self.links[id].near_fin = true;
        self.wake_peer(id);
    }

    /// The gateway's kernel sends an RST, and drops what it has not sent yet.
    fn near_resets(&mut self, id: LinkId) {
        let kept = self.chance.usize(..=self.links[id].sent.len());
        let link = &mut self.links[id];
        link.near_reset = true;
        link.lost += link.sent.len() - kept;
        link.sent.truncate(kept);
    }

    fn dropped(&mut self, id: LinkId) {
        let unread = self.links[id].received.len();
        self.note(|| format!("link {id} closed unread={unread}"));
        self.moves += 1;
        self.release(id);
        self.links[id].is_dropped = true;
        if unread > 0 || self.links[id].discards_on_close {
            self.near_resets(id);
        }
        let link = &mut self.links[id];
        link.received = VecDeque::new();
        self.keep_delivering(id);
        self.wake_peer(id);
    }

    fn splice_into(&mut self, id: LinkId, pipe: &mut Pipe, most: usize) -> io::Result<usize> {
        let mut bytes = vec![0; most.min(64 * 1024)];
        if self.nature.has_quirks && bytes.len() > 1 && self.one_in(8) {
            let most = self.chance.usize(1..=bytes.len());
            bytes.truncate(most);
        }
        let n = self.read(id, &mut bytes, false)?;
        if n == 0 {
            return Ok(0);
        }
        let into = &self.shuttle().into;
        rustix::io::write(&into.1, &bytes[..n])?;
        let moved = pipe.fill_from(&into.0, n);
        let mut left = n - *moved.as_ref().unwrap_or(&0);
        while left > 0 {
            left -= rustix::io::read(&into.0, &mut bytes[..left])?;
        }
        let moved = moved?;
        self.links[id].received.drain(..moved);
        self.note_taken(id, moved);
        self.note(|| format!("link {id} spliced {moved} out"));
        self.took(id);
        Ok(moved)
    }

    fn splice_from(&mut self, id: LinkId, pipe: &mut Pipe) -> io::Result<usize> {
        let room = self.room(id, 4096)?;
        let is_far_gone = self.links[id].is_far_gone;
        let shuttle = self.shuttle();
        let from = shuttle.from.iter().find(|(most, ..)| is_far_gone || *most <= room);
        let (_, read, write) = from.expect("the smallest fits");
        let moved = pipe.drain_into(write)?;
        let mut bytes = vec![0; moved];
        let mut at = 0;
        while at < moved {
            at += rustix::io::read(read, &mut bytes[at..])?;
        }
        if is_far_gone {
            self.far_resets(id);
            return Ok(moved);
        }
        self.links[id].sent.extend(bytes);
        self.links[id].wrote(moved, false);
        self.note(|| format!("link {id} spliced {moved} in"));
        self.moves += 1;
        self.wake_peer(id);
        Ok(moved)
    }

    fn shuttle(&mut self) -> &Shuttle {
        self.shuttle.get_or_insert_with(|| {
            let pipe = |bytes: usize| {
                let (read, write) =
                    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
                rustix::pipe::fcntl_setpipe_size(&write, bytes).expect("a pipe of this size");
                (read, write)
            };
            let from = [256 * 1024, 64 * 1024, 4096].map(|bytes| {
                let (read, write) = pipe(bytes);
                (bytes, read, write)
            });
            Shuttle { into: pipe(256 * 1024), from: from.into() }
        })
    }
}

impl Link {
    fn new(source: Source, to: Option<SocketAddr>) -> Link {
        Link {
            source,
            to,
            is_up: false,
            send_max: 0,
            wire: VecDeque::new(),
            wire_end: None,
            is_delivering: false,
            received: VecDeque::new(),
            has_fin: false,
            has_reset: false,
            error: None,
            sent: VecDeque::new(),
            near_fin: false,
            is_short: false,
            is_owed: false,
            is_end_met: false,
            has_edge: false,
            is_dropped: false,
            discards_on_close: false,
            near_reset: false,
            lost: 0,
            written: 0,
            taken: 0,
            released: 0,
            is_corked: false,
            file_reads: Vec::new(),
            is_far_gone: false,
            asked_at: None,
            layer: None,
            end_kept_back: None,
        }
    }
}

impl Link {
    /// Whether the byte written at `offset` was free to leave before the next file was read. Disks
    /// are slow, so it should be.
    pub fn left_before_file(&self, offset: u64) -> bool {
        let next = self.file_reads.iter().find(|(written, _)| *written > offset);
        next.is_none_or(|(_, released)| *released > offset)
    }

    /// Bytes that wait for more, or for the release.
    fn corked_bytes(&self) -> usize {
        ((self.written - self.released) as usize).min(self.sent.len())
    }

    /// The peer has taken bytes out of the socket that it has not read.
    fn has_far_plaintext(&self) -> bool {
        self.layer.as_ref().is_some_and(Layer::has_plaintext)
    }

    fn note_file_read(&mut self) {
        self.file_reads.push((self.written, self.released));
    }

    fn wrote(&mut self, n: usize, has_more: bool) {
        self.written += n as u64;
        let corked_bytes =
            if self.is_corked || has_more { (self.written - self.released) % PACKET } else { 0 };
        self.released = self.written - corked_bytes;
    }
}

/// Fills `into` with the first bytes of a queue, which are at least as many.
fn copy(queue: &VecDeque<u8>, into: &mut [u8]) {
    let (first, second) = queue.as_slices();
    let n = first.len().min(into.len());
    into[..n].copy_from_slice(&first[..n]);
    let rest = into.len() - n;
    into[n..].copy_from_slice(&second[..rest]);
}

/// Removes the first `n` bytes of a queue.
pub fn take(queue: &mut VecDeque<u8>, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    copy(queue, &mut bytes);
    queue.drain(..n);
    bytes
}

/// The gateway's end of a link.
pub struct Near {
    pub kernel: Shared,
    pub link: LinkId,
}

impl Read for Near {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().read(self.link, buf, true)
    }
}

impl Write for Near {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().write(self.link, bytes, false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Near {
    /// What the peer has read counts as acknowledged.
    fn unacknowledged(&self) -> Option<usize> {
        let mut kernel = self.kernel.borrow_mut();
        let now = kernel.now;
        if kernel.links[self.link].asked_at.replace(now) != Some(now) {
            kernel.moves += 1;
        }
        Some(kernel.links[self.link].sent.len())
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.kernel.borrow_mut().shutdown(self.link);
        Ok(())
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.kernel.borrow_mut().write(self.link, bytes, true)
    }

    fn set_corked(&mut self, is_corked: bool) -> io::Result<()> {
        self.kernel.borrow_mut().set_corked(self.link, is_corked);
        Ok(())
    }

    /// As on Linux, a new limit wakes whoever waits for room, whether or not there is more of it.
    fn limit_unsent(&mut self, _: usize) -> io::Result<()> {
        self.kernel.borrow_mut().edge(self.link);
        Ok(())
    }

    fn limit_buffers(&mut self, _: usize) -> io::Result<()> {
        self.limit_unsent(0)
    }

    fn kernel_bytes(&self) -> usize {
        let kernel = self.kernel.borrow();
        let link = &kernel.links[self.link];
        if kernel.counts_buffers { link.received.len() + link.sent.len() } else { 0 }
    }

    fn discard_on_close(&mut self) -> io::Result<()> {
        self.kernel.borrow_mut().links[self.link].discards_on_close = true;
        Ok(())
    }

    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
        self.kernel.borrow_mut().links[self.link].note_file_read();
        let mut bytes = vec![0; count.min(16 * 1024)];
        match file.read_at(&mut bytes, offset)? {
            0 => Ok(0),
            n => self.write(&bytes[..n]),
        }
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.moves += 1;
        let link = &mut kernel.links[self.link];
        let error = link.error.take();
        link.is_end_met |= error.is_some();
        error.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn can_splice(&self) -> bool {
        self.kernel.borrow().nature.splices
    }

    fn peek(&mut self, offset: u32, buf: &mut [u8]) -> io::Result<usize> {
        let kernel = &mut *self.kernel.borrow_mut();
        if offset > 0 && !kernel.nature.peeks_ahead {
            return Err(ErrorKind::WouldBlock.into());
        }
        let offset = offset as usize;
        let mut all = vec![0; offset + buf.len()];
        match kernel.read(self.link, &mut all, false)?.checked_sub(offset) {
            None | Some(0) if offset > 0 => Err(ErrorKind::WouldBlock.into()),
            None => unreachable!("nothing is less than nothing"),
            Some(n) => {
                buf[..n].copy_from_slice(&all[offset..offset + n]);
                Ok(n)
            }
        }
    }

    fn splice_into(&mut self, pipe: &mut Pipe, most: usize) -> io::Result<usize> {
        self.kernel.borrow_mut().splice_into(self.link, pipe, most)
    }

    fn splice_from(&mut self, pipe: &mut Pipe) -> io::Result<usize> {
        self.kernel.borrow_mut().splice_from(self.link, pipe)
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.kernel.borrow_mut().dropped(self.link);
    }
}

/// The gateway's end of a link, as the gateway gets it.
pub fn near_socket(kernel: &Shared, link: LinkId) -> Socket {
    let is_dialed = kernel.borrow().links[link].to.is_some();
    let records = kernel.borrow().nature.records;
    let near = Near { kernel: Rc::clone(kernel), link };
    Socket::Other(match records {
        Records::None => Box::new(near),
        Records::Simulated => Box::new(Recorded::new(near, is_dialed)),
        Records::Tls => Box::new(Secured::new(near, is_dialed)),
    })
}

/// The gateway's [`Network`].
pub struct Dialer(pub Shared);

impl Network for Dialer {
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket> {
        let &PeerAddress::Tcp(to) = to else { return Err(ErrorKind::NotFound.into()) };
        let link = self.0.borrow_mut().dial(to, source)?;
        Ok(near_socket(&self.0, link))
    }
}
