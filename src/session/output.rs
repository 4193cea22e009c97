//! The WebSocket end of a task: what a client that waits for results is sent.

use std::path::PathBuf;
use std::time::Duration;

/// How results are delivered: the `[output]` section, retention apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The final result must have come by then, from the upgrade on; `None`: never too late.
    pub timeout: Option<Duration>,
    /// Bytes of audio in one binary message; the last one may be shorter.
    pub chunk_size: usize,
    /// The folder that audio files must be in.
    pub audio_root: PathBuf,
    /// Bytes of the largest audio file that is sent.
    pub max_audio: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            timeout: Some(Duration::from_secs(300)),
            chunk_size: 64 * 1024,
            audio_root: PathBuf::from("/tmp/aivtuber_tasks"),
            max_audio: 256 * 1024 * 1024,
        }
    }
}
