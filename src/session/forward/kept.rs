//! A connection to a backend that waits for its client's next request.
//!
//! It belongs to the client's connection, and no other client gets it. It is kept briefly: a
//! backend may close an idle connection at any time, and a request that is on its way at that
//! moment is lost. Backends wait for a few seconds, so within one that hardly ever happens.

use crate::base::moment::Moment;
use crate::net::{Conn, Ready};
use crate::service::upstreams::UpstreamId;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a connection is kept.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// An idle connection to a backend.
pub struct KeptBackend {
    pub(super) conn: Conn,
    pub(super) backend: UpstreamId,
    pub(super) address: SocketAddr,
    until: Moment,
}

impl KeptBackend {
    /// Keeps `conn`, whose last response has been read.
    pub(super) fn new(
        conn: Conn,
        backend: UpstreamId,
        address: SocketAddr,
        now: Moment,
    ) -> KeptBackend {
        KeptBackend { conn, backend, address, until: now + KEPT_FOR }
    }

    /// An event of its socket.
    pub fn handle_ready(&mut self, ready: Ready) {
        self.conn.handle_ready(ready);
    }

    /// Whether it is of no use any more: its time is over, or the backend has closed it, or has
    /// sent what nobody has asked for.
    pub fn is_over(&self, now: Moment) -> bool {
        self.until <= now || self.conn.is_readable()
    }

    /// When its time is over.
    pub fn until(&self) -> Moment {
        self.until
    }

    /// Its socket.
    pub fn conn_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}
