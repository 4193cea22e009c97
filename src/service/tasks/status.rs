//! The state of a task, as clients see it.

/// The state of a task, over all its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Status {
    NotFound,
    /// A client is connected, but its results cannot be heard yet; see `Results::status`.
    Connected,
    Waiting,
    Sending,
    Completed,
    Ready,
    Failed,
    TimedOut,
    Stopped,
}

impl Status {
    /// The word of `/status/{task_id}`.
    pub fn word(self) -> &'static str {
        match self {
            Status::NotFound => "not_found",
            Status::Connected => "connected",
            Status::Waiting => "waiting",
            Status::Sending => "sending",
            Status::Completed => "completed",
            Status::Ready => "ready",
            Status::Failed => "failed",
            Status::TimedOut => "timeout",
            Status::Stopped => "stopped",
        }
    }
}
