//! What the replies to come from Redis are about.

use std::rc::Rc;

use uuid::Uuid;

use super::LookUpAnswer;
use crate::service::tasks::{KeptResult, Occurrence};

/// What the next reply will be about.
pub(super) enum PendingReply {
    /// A command of the login; an error ends the connection.
    Login,
    /// A command whose reply changes nothing.
    Ignored,
    /// `TIME`, sent before the subscriptions are.
    Clock,
    /// The last command of the greeting.
    Ready,
    /// A command that keeps or looks up results.
    Store(StoreReply),
    /// A `PING` on the subscriber connection: everything published before it has been received.
    Barrier(Box<LookUpAnswer>),
}

/// A result to store, with what tells it from equal ones.
pub(super) struct StoreRequest {
    pub(super) task: Uuid,
    pub(super) since: u64,
    pub(super) occurrence: Occurrence,
    pub(super) payload: Rc<[u8]>,
}

/// What a reply on the store connection is about.
pub(super) enum StoreReply {
    ScriptLoaded,
    Stored(Vec<StoreRequest>),
    /// The results that are kept of a task. The reply to `Set` follows.
    Kept,
    /// What workers have set for a task, and what the reply before this one said is kept.
    Set(Uuid, Vec<KeptResult>),
    Forgotten,
}
