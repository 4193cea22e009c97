//! Connections beyond a limit, until each has had its answer.
//!
//! Such a connection is kept until its request head is here, because an orchestrator that asks for
//! `/health` must be answered also by a full gateway. Clients that connect and send nothing must
//! not take that place from it: when all places are taken, the oldest connection that has sent no
//! request goes.

use crate::session::Session;
use slab::Slab;
use std::collections::VecDeque;

/// Refused connections at a time.
const REFUSALS_MAX: usize = 100;

/// The refused connections.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    open: usize,
    /// Slot and number of those that may still wait for their request, oldest first.
    waiting: VecDeque<(usize, u64)>,
}

impl Refusals {
    /// Whether all places are taken.
    pub fn is_full(&self) -> bool {
        self.open >= REFUSALS_MAX
    }

    /// Whether there is a place, or can be one.
    pub fn has_room(&self, sessions: &Slab<Session>) -> bool {
        !self.is_full() || self.waiting.iter().any(|entry| is_waiting(*entry, sessions))
    }

    /// Counts a connection. It must be [removed](Refusals::remove).
    pub fn add(&mut self, key: usize, serial: u64, sessions: &Slab<Session>) {
        self.open += 1;
        if self.waiting.len() >= 2 * REFUSALS_MAX {
            self.waiting.retain(|entry| is_waiting(*entry, sessions));
        }
        self.waiting.push_back((key, serial));
    }

    /// A counted connection has been freed.
    pub fn remove(&mut self) {
        self.open -= 1;
        if self.open == 0 {
            self.waiting = VecDeque::new();
        }
    }

    /// Takes the oldest connection that has sent no request off the list.
    pub fn pop_waiting(&mut self, sessions: &Slab<Session>) -> Option<usize> {
        loop {
            let entry = self.waiting.pop_front()?;
            if is_waiting(entry, sessions) {
                return Some(entry.0);
            }
        }
    }
}

fn is_waiting((key, serial): (usize, u64), sessions: &Slab<Session>) -> bool {
    let session = sessions.get(key).filter(|session| session.who().serial == serial);
    session.is_some_and(Session::is_refused_waiting)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::disallowed_types,
        reason = "the test looks at a client that the gateway owns"
    )]

    use super::*;
    use crate::base::moment::Moment;
    use crate::gateway::{Gateway, Settings};
    use crate::net::testing::NoNetwork;
    use crate::net::{Ready, Side, Socket, Source, Transport};
    use crate::service::limits;
    use std::cell::RefCell;
    use std::io::{self, ErrorKind, Read, Write};
    use std::net::SocketAddr;
    use std::rc::Rc;
    use std::time::SystemTime;

    /// A client: what it has sent, and what it got. It closes once it got something.
    #[derive(Clone, Default)]
    struct RefusedClient(Rc<RefCell<(Vec<u8>, Vec<u8>)>>);

    impl RefusedClient {
        fn got(&self) -> String {
            String::from_utf8(self.0.borrow().1.clone()).unwrap()
        }
    }

    impl Read for RefusedClient {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let (sent, got) = &mut *self.0.borrow_mut();
            if sent.is_empty() && got.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = sent.len().min(bytes.len());
            bytes[..count].copy_from_slice(&sent[..count]);
            sent.drain(..count);
            Ok(count)
        }
    }

    impl Write for RefusedClient {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().1.extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for RefusedClient {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const NEWS: Ready = Ready { readable: true, writable: true, read_closed: false };

    /// A gateway with room for no client.
    fn full_gateway() -> Gateway {
        let settings = Settings {
            trust: Default::default(),
            session: Default::default(),
            limits: limits::Settings {
                max_connections: 0,
                max_connections_per_ip: 0,
                allowed_origins: Vec::new(),
            },
            routes: Vec::new(),
            upstreams: Default::default(),
            tls: Default::default(),
            drain_timeout: None,
            tasks: Default::default(),
            link: Default::default(),
        };
        let chance = fastrand::Rng::with_seed(1);
        let (network, now) = (Box::new(NoNetwork), Moment::START);
        Gateway::new(settings, network, chance, now, SystemTime::UNIX_EPOCH).unwrap()
    }

    fn connect(gateway: &mut Gateway) -> (usize, RefusedClient) {
        assert!(gateway.can_admit());
        let (key, client) = (gateway.next_key(), RefusedClient::default());
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        gateway.admit(Socket::Other(Box::new(client.clone())), address);
        (key, client)
    }

    #[test]
    fn clients_that_send_nothing_do_not_keep_an_orchestrator_out() {
        let mut gateway = full_gateway();
        let silent: Vec<RefusedClient> =
            (0..REFUSALS_MAX).map(|_| connect(&mut gateway).1).collect();
        assert!(silent.iter().all(|client| client.got().is_empty()));

        let (key, orchestrator) = connect(&mut gateway);
        assert!(silent[0].got().starts_with("HTTP/1.1 503 "), "{}", silent[0].got());
        assert!(silent[1..].iter().all(|client| client.got().is_empty()));

        gateway.finish_turn();
        gateway.begin_turn(Moment::START);
        let request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
        orchestrator.0.borrow_mut().0.extend(request);
        gateway.ready(Source::Session(key, Side::Downstream), NEWS);
        gateway.ready(Source::Session(key, Side::Downstream), NEWS); // its FIN
        gateway.settle();
        gateway.finish_turn();
        assert!(orchestrator.got().starts_with("HTTP/1.1 200 "), "{}", orchestrator.got());
        assert_eq!(gateway.session_count(), REFUSALS_MAX - 1);
    }

    #[test]
    fn accepting_pauses_while_all_places_are_taken_by_answers() {
        let mut gateway = full_gateway();
        let mut sources = Vec::new();
        for _ in 0..REFUSALS_MAX {
            let (key, client) = connect(&mut gateway);
            client.0.borrow_mut().0.extend(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            sources.push(Source::Session(key, Side::Downstream));
            gateway.ready(sources[sources.len() - 1], NEWS);
            assert!(client.got().starts_with("HTTP/1.1 503 "));
        }
        gateway.finish_turn();
        assert!(!gateway.can_admit(), "none of them has closed");
        gateway.ready(sources[0], NEWS);
        gateway.finish_turn();
        assert!(gateway.can_admit());
        sources.into_iter().for_each(|source| gateway.ready(source, NEWS));
        gateway.finish_turn();
        assert!(gateway.can_admit());
        assert_eq!((gateway.refusals.open, gateway.stats().connections_accepted), (0, 0));
    }
}
