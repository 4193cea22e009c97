//! When another server of the list is connected to, and when not.
//!
//! A server may be a replica: after a failover, or by a mistake in the list of URLs. It forwards
//! publications and refuses to store anything. So the store connection asks for the server's role
//! when it logs in, and again with each `PING`: without that, a gateway without results would
//! report that all is well until the first one is refused. With several URLs the next server is
//! connected to. If all of them are replicas, the gateway stays with one, hears results there and
//! reports that it cannot keep them.

use super::pending::PendingReply;
use super::{DIAL_TIMEOUT, Link, REDIS_ROLES, RedisRole};
use crate::base::moment::Moment;
use redis::Value;
use std::time::Duration;

/// The pause before the next server when the second one is a replica as well; it doubles.
const REPLICA_PAUSE: Duration = Duration::from_millis(100);

/// What `ROLE` says of a server that takes no writes.
const REPLICA: &[u8] = b"slave";
/// What it says of one that does.
const MASTER: &[u8] = b"master";

impl Link {
    /// No connection could be begun, because this machine lacks descriptors, ports or memory.
    /// Another server would be no better, so the same one is dialled again after the usual pause.
    pub fn handle_shortage(&mut self, role: RedisRole, why: &str, now: Moment) {
        if !self.connection(role).is_down() {
            self.lose(role, &format!("not dialled, for want of resources here: {why}"), now);
        }
    }

    /// What [`Link::is_idle`] waits for: results to store, and replies to come.
    pub fn unfinished(&self) -> usize {
        self.keeper.jobs.len() + self.subscriber.pending.len() + self.store.pending.len()
    }

    /// Asks the store connection's server whether it is a replica.
    pub(super) fn ask_role(&mut self, now: Moment) {
        self.store.send(now, PendingReply::Role, &[b"ROLE"]);
    }

    pub(super) fn handle_server_role(&mut self, reply: &Value, now: Moment) {
        let Value::Array(parts) = reply else { return };
        match parts.first() {
            Some(Value::BulkString(role)) if role == REPLICA => {
                let why = self.keeper.note_replica("ROLE says slave");
                // All of them in a row, so none is better.
                if self.replicas_met as usize >= self.servers.len() {
                    return self.report(why);
                }
                self.leave_replica(why, now);
            }
            Some(Value::BulkString(role)) if role == MASTER => {
                self.replicas_met = 0;
                self.keeper.note_master();
            }
            _ => {}
        }
    }

    /// The server takes no writes: goes on to the next one, if there is one. Results that it
    /// refused are stored there.
    pub(super) fn leave_replica(&mut self, why: String, now: Moment) {
        if self.servers.len() == 1 {
            return self.report(why);
        }
        let was_up = self.is_up();
        let server = self.store.server;
        let pause = REPLICA_PAUSE * 2u32.pow(self.replicas_met.min(6));
        // The first time round at once; later the failover may still be under way everywhere.
        let pause = if self.replicas_met == 0 { Duration::ZERO } else { pause.min(DIAL_TIMEOUT) };
        self.replicas_met += 1;
        REDIS_ROLES.into_iter().for_each(|role| self.reset(role, now + pause));
        self.current = (server + 1) % self.servers.len();
        self.go_down(format!("{}: {why}", self.servers[server].address), was_up, now);
    }
}
