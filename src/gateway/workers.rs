//! Workers that connect to the embedded inbox.

use super::Gateway;
use crate::net::{Conn, Socket};
use crate::session::{Admission, Session};
use log::{info, warn};
use std::net::SocketAddr;

/// Workers that may be connected to the embedded inbox at once.
pub(super) const WORKERS_MAX: usize = 1000;

/// Workers that are being refused at a time.
pub(super) const REFUSED_WORKERS_MAX: usize = 100;

impl Gateway {
    /// Whether workers need a password.
    pub fn has_inbox_password(&self) -> bool {
        self.cx.inbox_password.is_some()
    }

    /// Whether one more worker can be accepted, if only to be refused.
    pub fn can_admit_worker(&self) -> bool {
        self.workers < WORKERS_MAX || self.refused_workers < REFUSED_WORKERS_MAX
    }

    /// Takes a worker's connection to the embedded inbox, registered for [`Gateway::next_key`].
    pub fn admit_worker(&mut self, socket: Socket, client: SocketAddr) {
        let downstream = Conn::accepted(socket);
        let session = if self.workers < WORKERS_MAX {
            let who = self.identity(client, Admission::Inbox);
            info!(target: "inbox", "{who} opened client={client}");
            self.workers += 1;
            Session::inbox(who, downstream, &self.cx)
        } else {
            let who = self.identity(client, Admission::RefusedWorker);
            warn!(target: "inbox", "{who} refused why=\"too many workers\" client={client}");
            self.refused_workers += 1;
            Session::refused_worker(who, downstream, &self.cx)
        };
        self.insert(session);
    }
}
