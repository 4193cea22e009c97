//! Workers that connect to the embedded inbox.

use super::Gateway;
use crate::net::{Conn, Socket};
use crate::service::channels::Publication;
use crate::service::trust::Peer;
use crate::session::inbox::ChannelMessage;
use crate::session::{Admission, Session};
use log::info;

/// Workers that may be connected to the embedded inbox at once.
pub(super) const WORKERS_MAX: usize = 1000;

/// Work of a message to one subscriber besides its payload: see [`Context::work`].
///
/// [`Context::work`]: crate::session::Context::work
const WORK_OF_A_MESSAGE: usize = 4096;

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
    pub fn admit_worker(&mut self, socket: Socket, client: impl Into<Peer>) {
        let client = client.into();
        let downstream = Conn::accepted(socket);
        let session = if self.workers < WORKERS_MAX {
            let who = self.identity(client, Admission::Inbox);
            info!(target: "inbox", "{who} opened client={client}");
            self.workers += 1;
            Session::inbox(who, downstream, &self.cx)
        } else {
            let who = self.identity(client, Admission::RefusedWorker);
            self.refused_workers += 1;
            Session::refused_worker(who, downstream, &self.cx)
        };
        self.insert(session);
    }

    /// Tells workers that send speech what has become of their tasks, and reads those again for
    /// which there was no room.
    #[inline]
    pub(super) fn go_on_with_speech(&mut self) {
        if self.cx.feeds.has_notices() || self.cx.speech.has_paused() {
            self.hand_out_notices();
        }
    }

    #[inline(never)]
    fn hand_out_notices(&mut self) {
        while let Some(pending) = self.cx.feeds.poll_notice() {
            let now = self.cx.now;
            if let Some(session) = self.session_mut(pending.worker) {
                session.handle_notice(&pending, now);
                self.drive(pending.worker.key as usize);
            }
        }
        while let Some(worker) = self.cx.speech.poll_resumed() {
            if self.session(worker).is_some() {
                self.drive(worker.key as usize);
            }
        }
    }

    /// Hands workers what was published on control channels they listen to: at least one message a
    /// turn, however much else there was to do, and what fits.
    pub(super) fn hand_out_publications(&mut self) {
        for _ in 0..self.cx.channels.queued() {
            let Some(publication) = self.cx.channels.poll_publication() else { return };
            let Publication { channel, payload, receivers } = publication;
            for (id, pattern) in &receivers {
                let pattern = pattern.as_deref();
                if !self.cx.channels.is_subscribed(*id, &channel, pattern) {
                    continue;
                }
                let (now, message) =
                    (self.cx.now, ChannelMessage { pattern, channel: &channel, payload: &payload });
                if let Some(session) = self.session_mut(*id) {
                    session.handle_publication(message, now);
                    self.cx.work += WORK_OF_A_MESSAGE + payload.len();
                    self.drive(id.key as usize);
                }
            }
            if self.cx.work >= self.turn.work {
                return;
            }
        }
    }
}
