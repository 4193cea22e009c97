//! Accepting: at most 64 connections per listener and turn, and none while there is no room.
//!
//! A listener's event comes once, so it is remembered until `accept` finds the queue empty. While
//! all connections or descriptors are in use accepting pauses: clients wait in the kernel's queue,
//! and the loop does not spin.

#![expect(
    clippy::disallowed_types,
    reason = "the reactor owns the poll and what is registered with it"
)]

use super::StartError;
use crate::base::moment::Moment;
use crate::gateway::Gateway;
use crate::net::Source;
use crate::net::tcp;
use log::warn;
use mio::net::TcpListener;
use mio::{Interest, Registry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

/// Connections accepted from one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Pause after running out of descriptors. Other processes of the system may have closed some by
/// then, of which no event tells.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(200);

/// All listeners, and whether accepting pauses.
pub struct Listeners {
    listeners: Vec<Listener>,
    addresses: Vec<(Door, SocketAddr)>,
    /// Set while out of descriptors.
    paused_until: Option<Moment>,
    is_full: bool,
    is_closed: bool,
}

struct Listener {
    /// The number that its events carry.
    index: usize,
    socket: TcpListener,
    door: Door,
    is_ready: bool,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Browsers and other clients.
    Clients,
    /// Workers that publish to the embedded inbox.
    Inbox,
}

impl Listeners {
    /// Listens on all of `addresses`.
    ///
    /// # Errors
    /// The first address that cannot be listened on; the others are closed again.
    pub fn open(
        addresses: impl Iterator<Item = (Door, SocketAddr)>,
        reuse_port: bool,
        registry: &Registry,
    ) -> Result<Listeners, StartError> {
        let mut listeners = Vec::new();
        let mut opened = Vec::new();
        for (index, (door, address)) in addresses.enumerate() {
            let open = || {
                let mut socket = tcp::listen(address, reuse_port && door == Door::Clients)?;
                registry.register(
                    &mut socket,
                    Source::Listener(index).into(),
                    Interest::READABLE,
                )?;
                io::Result::Ok((socket.local_addr()?, socket))
            };
            let (local, socket) = open().map_err(|error| StartError::Listen(address, error))?;
            opened.push((door, local));
            listeners.push(Listener { index, socket, door, is_ready: false });
        }
        Ok(Listeners {
            listeners,
            addresses: opened,
            paused_until: None,
            is_full: false,
            is_closed: false,
        })
    }

    /// The addresses, with the ports that the kernel chose for port 0.
    pub fn addresses(&self, door: Door) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().filter(move |(at, _)| *at == door).map(|&(_, address)| address)
    }

    /// An event: connections wait in a listener's queue.
    pub fn handle_ready(&mut self, index: usize) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.index == index) {
            listener.is_ready = true;
        }
    }

    /// Accepts what waits, as long as there is room.
    pub fn accept(&mut self, gateway: &mut Gateway, registry: &Registry, now: Moment) {
        for listener in &mut self.listeners {
            for _ in 0..ACCEPTS_PER_TURN {
                if !listener.is_ready {
                    break;
                }
                if listener.door == Door::Inbox && !gateway.can_admit_worker() {
                    break;
                }
                if listener.door == Door::Clients {
                    let was_full = std::mem::replace(&mut self.is_full, !gateway.can_admit());
                    if self.is_full && !was_full {
                        gateway.stats().accept_pauses += 1;
                        warn!(target: "gateway", "accepting pauses why=\"too many connections\"");
                    }
                    if self.is_full {
                        break; // workers have a limit of their own
                    }
                }
                match listener.socket.accept() {
                    Ok((stream, client)) => {
                        self.paused_until = None;
                        let source =
                            Source::Session(gateway.next_key(), crate::net::Side::Downstream);
                        match tcp::accepted(stream, source, registry) {
                            Ok(socket) if listener.door == Door::Inbox => {
                                gateway.admit_worker(socket, client)
                            }
                            Ok(socket) => gateway.admit(socket, client),
                            Err(error) => {
                                warn!(target: "gateway", "cannot register {client}: {error}")
                            }
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        listener.is_ready = false
                    }
                    Err(error) if is_out_of_descriptors(&error) => {
                        if self.paused_until.is_none() {
                            gateway.stats().accept_pauses += 1;
                            warn!(target: "gateway", "accepting pauses why=\"{error}\"");
                        }
                        self.paused_until = Some(now + DESCRIPTOR_PAUSE);
                        return;
                    }
                    // The client is gone already, or the kernel passes a network error on
                    // (`accept(2)`): neither concerns the next one.
                    Err(_) => {}
                }
            }
        }
    }

    /// When a turn is due for accepting although no event comes; a moment in the past: at once.
    pub fn next_turn(&self, gateway: &Gateway) -> Option<Moment> {
        let can_accept = |listener: &Listener| match listener.door {
            Door::Clients => gateway.can_admit(),
            Door::Inbox => gateway.can_admit_worker(),
        };
        if !self.listeners.iter().any(|listener| listener.is_ready && can_accept(listener)) {
            return None;
        }
        Some(self.paused_until.unwrap_or(Moment::START))
    }

    /// Stops listening for clients. Workers may still publish results that clients wait for.
    pub fn close(&mut self) {
        self.listeners.retain(|listener| listener.door == Door::Inbox);
        self.is_closed = true;
    }

    /// Whether clients are listened for no longer.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }
}

/// Lets this process open as many descriptors as the system allows: a relayed connection takes two.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!(target: "gateway", "cannot raise the limit of open files: {error}");
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|errno| errno.raw_os_error() == code))
}
