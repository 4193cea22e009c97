//! What a stream is begun with, how it stands, and what that means for its clients.

use std::path::Path;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::{Stream, StreamId};

/// Where the bytes of a stream come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamSource {
    /// A file that a worker appends to until it says that the file is complete.
    GrowingFile,
    /// A file that was written to just before it was opened, and may still be. It is over for a
    /// client that has everything, unless it has grown since it was opened: then, once it has been
    /// still for some time.
    YoungFile,
    /// A file of the gateway's own, with what a worker sends it.
    Speech,
}

/// How a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamState {
    /// It may grow.
    Open,
    /// It is complete.
    Ended,
    /// It is not, and does not grow any more.
    Failed(StreamFailure),
}

/// Why a stream is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFailure {
    /// It did not grow for too long.
    Stalled,
    /// Its file was written to other than at its end.
    Changed,
    /// It would be larger than is allowed.
    TooLarge,
    /// Its file cannot be read.
    Unreadable,
}

impl StreamFailure {
    /// The error for clients.
    pub fn words(self) -> &'static str {
        match self {
            StreamFailure::Stalled => "Audio stalled",
            StreamFailure::Changed => "Audio file changed",
            StreamFailure::TooLarge => "Audio too large",
            StreamFailure::Unreadable => "Audio file not readable",
        }
    }

    /// The label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            StreamFailure::Stalled => "stalled",
            StreamFailure::Changed => "changed",
            StreamFailure::TooLarge => "too_large",
            StreamFailure::Unreadable => "unreadable",
        }
    }
}

/// What a stream is begun with.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct NewStream<'n, F> {
    pub task: Uuid,
    pub result_id: u32,
    pub source: StreamSource,
    pub file: F,
    pub name: &'n Path,
    pub audio_type: Option<&'static str>,
    /// Clients may have chunks of this result that were made before.
    pub is_second: bool,
}

/// A file as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenFile {
    /// Bytes.
    pub length: u64,
    /// When its content last changed, by its own clock.
    pub modified: SystemTime,
}

/// A stream that grows no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct FinishedStream {
    pub id: StreamId,
    pub task: Uuid,
    pub result_id: u32,
    pub source: StreamSource,
    /// `Open`: nothing is known of its end, as when its task was stopped.
    pub state: StreamState,
    pub name: Box<Path>,
    pub chunks: u64,
    pub bytes: u64,
}

impl<K, F> Stream<K, F> {
    pub(super) fn finished(&self) -> FinishedStream {
        FinishedStream {
            id: self.id,
            task: self.task,
            result_id: self.result_id,
            source: self.source,
            state: self.state,
            name: self.name.clone(),
            chunks: self.chunks.count(),
            bytes: self.chunks.length(),
        }
    }
}

/// What streams have to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRules {
    /// Bytes of the longest chunk.
    pub chunk_size: u32,
    /// Bytes of the longest stream.
    pub bytes_max: u64,
    /// How long a growing file may be still; `None`: forever.
    pub stall: Option<Duration>,
    /// How long a young file has to be still to be complete.
    pub wait: Duration,
}

/// What a client that has everything is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamVerdict {
    /// Wait for more.
    Wait,
    /// There is no more.
    Complete,
    /// There should be more.
    Failed(StreamFailure),
}
