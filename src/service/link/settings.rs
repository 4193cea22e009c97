//! Where Redis is, and how the gateway uses it.

use std::time::Duration;

use super::server::{Password, embedded};

/// Where Redis is, and how results are subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Settings {
    /// `redis://user:password@host:port/db` or `unix:///path?db=0`, tried in turn.
    pub urls: Vec<String>,
    /// The file that `password` was read from; empty if there is none.
    pub password_file: String,
    /// In place of the URLs' passwords.
    pub password: Option<Password>,
    /// Channels are this and a task id.
    pub channel_prefix: String,
    /// Control channels are this and a task id.
    pub control_prefix: String,
    pub subscribe: Subscribe,
    /// How long Redis may be away before waiting clients are closed. `None`: without end.
    pub grace: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            urls: vec!["redis://localhost:6379".to_owned()],
            password_file: String::new(),
            password: None,
            channel_prefix: "task_response:".to_owned(),
            control_prefix: "task_control:".to_owned(),
            subscribe: Subscribe::Pattern,
            grace: Some(Duration::from_secs(10)),
        }
    }
}

impl Settings {
    /// Whether workers publish to the gateway itself, so that there is no Redis to connect to.
    pub fn is_embedded(&self) -> bool {
        self.urls.iter().any(|url| embedded(url).is_some())
    }

    /// The password that workers have to give to the embedded inbox, if any.
    pub fn inbox_password(&self) -> Option<Password> {
        let (_, in_url) = self.urls.iter().find_map(|url| embedded(url))?;
        self.password.clone().or(in_url)
    }
}

/// How results are subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscribe {
    /// One `PSUBSCRIBE` for all tasks: results are heard before a client waits for them.
    Pattern,
    /// One `SUBSCRIBE` for each task that is waited for.
    Task,
}
