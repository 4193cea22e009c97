//! The life of the Redis connections: dial, subscribe, wait longer after each failure.

use std::time::Duration;

/// The `[redis]` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where Redis is, tried in turn; or one `embedded://address`. They may hold passwords: never to be logged as they are.
    pub urls: Vec<String>,
    /// What stands before the task id in a channel's name.
    pub channel_prefix: String,
    pub subscribe: Subscribe,
    /// Clients are told once Redis has been away for longer; `None`: they wait on.
    pub grace: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            urls: vec!["redis://localhost:6379".into()],
            channel_prefix: "task_response:".into(),
            subscribe: Subscribe::Pattern,
            grace: Some(Duration::from_secs(10)),
        }
    }
}

/// How the channels of tasks are listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribe {
    /// One `PSUBSCRIBE` for all tasks.
    Pattern,
    /// A `SUBSCRIBE` for each task that somebody waits for.
    Task,
}
