//! Work that may block, as values: the loop hands it to background threads and goes on.
//!
//! A part that needs such work pushes a [`Job`] to [`Context::jobs`](super::Context). At the end of
//! the turn the reactor passes the jobs to its threads, and each outcome comes back as one
//! [`Answer`], through `Gateway::handle_answer`, in a later turn. Nothing below the reactor knows a
//! thread; a simulation answers the jobs itself.
//!
//! A session has at most one job under way, and a name is looked up once at a time, so the queues
//! are bounded by the number of sessions and of names.

use crate::service::link::RedisRole;
use crate::service::name::{LookUpError, Name};
use crate::service::upstreams::UpstreamId;
use std::net::SocketAddr;

/// Something to do on a background thread.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Job {
    /// Look up the addresses of a name. Answered by [`Answer::LookedUp`].
    LookUp { name: Name, owner: NameOwner },
}

/// The outcome of a [`Job`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Answer {
    /// Addresses in the order in which to try them, or why none are known.
    LookedUp { owner: NameOwner, found: Result<Vec<SocketAddr>, LookUpError> },
}

/// Who asked for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum NameOwner {
    Backend(UpstreamId),
    Redis(RedisRole),
}
