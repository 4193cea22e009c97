//! The state of each task, and its results while they are kept for a client that is not there yet.

use std::time::Duration;

/// How long and how much is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a result waits for its client; `None`: results are not kept.
    pub retain: Option<Duration>,
    /// Bytes of all kept results together; the oldest goes first.
    pub max_retained: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { retain: Some(Duration::from_secs(300)), max_retained: 16 * 1024 * 1024 }
    }
}
