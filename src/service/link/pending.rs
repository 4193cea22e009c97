//! What the replies to come from Redis are about.

use std::rc::Rc;

use uuid::Uuid;

use super::LookUpAnswer;
use crate::proto::control::ControlAction;
use crate::service::tasks::Occurrence;

/// What the next reply will be about.
pub(super) enum PendingReply {
    /// A command of the login; an error ends the connection.
    Login,
    /// A command whose reply changes nothing.
    Ignored,
    /// A `PING` at an interval.
    Ping,
    /// `TIME`, sent before the subscriptions are.
    Clock,
    /// `ROLE`: whether the server is a replica.
    Role,
    /// The last command of the greeting.
    Ready,
    /// A command that keeps or looks up results.
    Store(StoreReply),
    /// The subscription to control channels.
    Control,
    /// A `PING` on the subscriber connection: everything published before it has been received.
    Barrier(Box<LookUpAnswer>),
}

/// Something to store, a result with what tells it from equal ones.
pub(super) struct StoreRequest {
    pub(super) task: Uuid,
    pub(super) since: u64,
    pub(super) what: StoreWhat,
    pub(super) payload: Rc<[u8]>,
}

/// What a payload to store is.
pub(super) enum StoreWhat {
    Result(Occurrence),
    /// It says that an audio file is complete.
    AudioEnd,
}

/// What a reply on the store connection is about.
pub(super) enum StoreReply {
    ScriptLoaded,
    Stored(Vec<StoreRequest>),
    /// The index of kept results and the first of them, for the look-up of this number.
    Index(u64),
    /// Further kept results.
    Page(u64),
    /// What workers have set.
    Set(u64),
    Forgotten,
    /// A publication on the control channel of this task.
    Published(Uuid, ControlAction),
    /// Whether there is anything of this task.
    Known(Uuid),
}

impl PendingReply {
    /// Results of this task are not to be stored again if Redis has not done it.
    pub(super) fn drop_stores_of(&mut self, task: Uuid) {
        if let PendingReply::Store(StoreReply::Stored(requests)) = self {
            requests.retain(|request| request.task != task);
        }
    }
}
