//! The last connections that ended, and why: what `/connections/closed` shows.
//!
//! Bounded twice: by number, and what it holds is charged to the memory budget. What ended before
//! an upgrade, and workers that connect for one publication, have places of their own, so that a
//! flood of them pushes no WebSocket out.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::base::budget::{Budget, Charge};
use crate::proto::ws::cut_at_char;
use crate::service::sentence::Sentence;
use crate::service::stats::BothWays;
use crate::service::trust::Client;

/// WebSockets that are remembered.
const WEBSOCKETS_MAX: usize = 1000;

/// Connections that are remembered of each other kind.
const OTHERS_MAX: usize = 100;

/// The longest task id that is kept, in bytes. That of a relayed route is as long as its path.
const TASK_BYTES_MAX: usize = 256;

/// What one connection costs besides its texts.
const ENTRY_BYTES: usize = size_of::<(u64, ClosedConnection)>();

/// One connection that has ended.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of `/connections/closed`")]
pub struct ClosedConnection {
    pub kind: ConnectionKind,
    /// The number in its id.
    pub serial: u64,
    pub route: Rc<str>,
    pub task_id: Option<String>,
    pub client: Client,
    pub backend: Option<Arc<str>>,
    pub closed: SystemTime,
    pub duration: Duration,
    pub phase: &'static str,
    pub ended_by: &'static str,
    pub reason: &'static str,
    /// Something went wrong.
    pub is_failure: bool,
    pub client_code: Option<u16>,
    pub backend_code: Option<u16>,
    pub client_close: &'static str,
    pub backend_close: &'static str,
    pub client_idle: Option<Duration>,
    pub backend_idle: Option<Duration>,
    pub traffic: BothWays,
    pub pings_sent: u16,
    pub pongs_received: u16,
    pub sentence: Sentence,
}

/// What a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// A WebSocket, or what was to become one.
    WebSocket,
    /// It ended before that was known.
    Early,
    /// A worker of the inbox.
    Worker,
}

/// The last connections that ended.
#[derive(Debug)]
pub struct Ledger {
    /// By kind; each with its number among all.
    rings: [VecDeque<(u64, ClosedConnection)>; 3],
    total: u64,
    charge: Charge,
}

impl ClosedConnection {
    /// Its id in logs and reports: `input_1`.
    pub fn id(&self) -> String {
        format!("{}_{}", self.route, self.serial)
    }

    /// When it was accepted.
    pub fn opened(&self) -> SystemTime {
        self.closed.checked_sub(self.duration).unwrap_or(self.closed)
    }

    /// Without what it shares with its route and its backend.
    fn bytes(&self) -> usize {
        let task_id = self.task_id.as_ref().map_or(0, String::capacity);
        ENTRY_BYTES + task_id + self.sentence.heap_bytes()
    }
}

impl Ledger {
    /// An empty one, whose memory is charged to `budget`.
    pub fn new(budget: &Budget) -> Ledger {
        Ledger { rings: Default::default(), total: 0, charge: budget.charge(0) }
    }

    /// Remembers a connection, and forgets the oldest one of its kind if there are too many.
    pub fn push(&mut self, mut one: ClosedConnection) {
        self.total += 1;
        one.task_id.iter_mut().for_each(cut);
        let (ring, max) = match one.kind {
            ConnectionKind::WebSocket => (0, WEBSOCKETS_MAX),
            ConnectionKind::Early => (1, OTHERS_MAX),
            ConnectionKind::Worker => (2, OTHERS_MAX),
        };
        let mut bytes = self.charge.bytes() + one.bytes();
        if let Some(ring) = self.rings.get_mut(ring) {
            if ring.len() >= max
                && let Some((_, oldest)) = ring.pop_front()
            {
                bytes -= oldest.bytes();
            }
            ring.push_back((self.total, one));
        }
        self.charge.set(bytes);
    }

    /// Bytes that are charged for it.
    pub fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Connections that have ended since the start, forgotten ones included.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Those that are remembered, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &ClosedConnection> {
        let mut rings = self.rings.each_ref().map(|ring| ring.iter().rev().peekable());
        std::iter::from_fn(move || {
            let newest = rings.iter_mut().filter_map(|ring| Some((ring.peek()?.0, ring)));
            let (_, ring) = newest.max_by_key(|(number, _)| *number)?;
            ring.next().map(|(_, one)| one)
        })
    }
}

/// Cuts a text that is too long, and says so.
fn cut(text: &mut String) {
    if text.len() > TASK_BYTES_MAX {
        text.truncate(cut_at_char(text, TASK_BYTES_MAX).len());
        text.push('…');
        text.shrink_to_fit();
    }
}

#[cfg(test)]
pub(in crate::service) mod tests {
    use super::*;
    use crate::service::sentence::Circumstances;

    /// A WebSocket with this number.
    pub fn closed(serial: u64) -> ClosedConnection {
        ClosedConnection {
            kind: ConnectionKind::WebSocket,
            serial,
            route: "input".into(),
            task_id: None,
            client: Client::Peer(std::net::SocketAddr::from(([192, 0, 2, 7], 5000)).into()),
            backend: Some("ws://a/".into()),
            closed: SystemTime::UNIX_EPOCH + Duration::from_millis(1204),
            duration: Duration::from_millis(1204),
            phase: "relay",
            ended_by: "client",
            reason: "client_closed",
            is_failure: false,
            client_code: Some(1000),
            backend_code: Some(1000),
            client_close: "sent",
            backend_close: "received",
            client_idle: Some(Duration::from_millis(200)),
            backend_idle: None,
            traffic: BothWays::default(),
            pings_sent: 1,
            pongs_received: 1,
            sentence: Sentence {
                beginning: "The client closed the connection {code}",
                code: Some(1000),
                what: None,
                circumstances: Circumstances::None,
            },
        }
    }

    fn serials(ledger: &Ledger) -> Vec<u64> {
        ledger.newest_first().map(|one| one.serial).collect()
    }

    #[test]
    fn newest_comes_first_whatever_its_kind() {
        let budget = Budget::default();
        let mut ledger = Ledger::new(&budget);
        let kinds = [
            ConnectionKind::WebSocket,
            ConnectionKind::Early,
            ConnectionKind::WebSocket,
            ConnectionKind::Worker,
        ];
        for (serial, kind) in (1..).zip(kinds) {
            ledger.push(ClosedConnection { kind, ..closed(serial) });
        }
        assert_eq!(serials(&ledger), [4, 3, 2, 1]);
        assert_eq!(ledger.total(), 4);
    }

    #[test]
    fn a_flood_of_one_kind_pushes_no_other_out() {
        let budget = Budget::default();
        let mut ledger = Ledger::new(&budget);
        const FIRST: u64 = 7;
        ledger.push(closed(FIRST));
        let mut held_max = 0;
        for number in 0..5000 {
            let kind = if number % 2 == 0 { ConnectionKind::Early } else { ConnectionKind::Worker };
            ledger.push(ClosedConnection { kind, ..closed(1) });
            held_max = held_max.max(budget.held());
        }
        assert_eq!(serials(&ledger).len(), 2 * OTHERS_MAX + 1);
        assert!(serials(&ledger).contains(&FIRST));
        assert!(held_max < 150_000, "{held_max} bytes");
        for _ in 0..2 * WEBSOCKETS_MAX {
            ledger.push(closed(2));
        }
        assert_eq!(serials(&ledger).len(), 2 * OTHERS_MAX + WEBSOCKETS_MAX);
        assert!(!serials(&ledger).contains(&FIRST));
        assert_eq!(ledger.total(), 5001 + 2 * WEBSOCKETS_MAX as u64);
        drop(ledger);
        assert_eq!(budget.held(), 0, "what it held is given back");
    }

    #[test]
    fn a_long_task_id_is_cut_at_a_character() {
        let mut ledger = Ledger::new(&Budget::default());
        ledger.push(ClosedConnection { task_id: Some("声".repeat(1000)), ..closed(1) });
        let task = ledger.newest_first().next().and_then(|one| one.task_id.clone()).unwrap();
        assert!(task.len() < TASK_BYTES_MAX + 4 && task.ends_with("声…"), "{task}");
    }
}
