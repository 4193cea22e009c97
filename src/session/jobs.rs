//! Work that may block, as values: the loop hands it to background threads and goes on.
//!
//! A part that needs such work pushes a [`Job`] to [`Context::jobs`](super::Context). At the end of
//! the turn the reactor passes the jobs to its threads, and each outcome comes back as one
//! [`JobAnswer`], through `Gateway::handle_answer`, in a later turn. Nothing below the reactor
//! knows a thread; a simulation answers the jobs itself.
//!
//! A session has at most one job under way, and so has a stream, and a name is looked up once at a
//! time: the queues are bounded by the numbers of sessions, streams and names.

use super::SessionId;
use crate::net::files::assets::{AssetRequest, FoundAsset};
use crate::net::files::spool::{SpoolFile, SpoolRequest, SpoolWrites, SpoolWritten};
use crate::net::files::{
    FileBytes, FileState, FoundRoot, OpenError, OpenFile, OpenRequest, ReadRequest, RootRequest,
    StateRequest,
};
use crate::service::link::RedisRole;
use crate::service::name::{LookUpError, Name};
use crate::service::streams::StreamId;
use crate::service::upstreams::UpstreamId;
use std::io;
use std::net::SocketAddr;
use uuid::Uuid;

/// Something to do on a background thread.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Job {
    /// Look up the addresses of a name. Answered by [`JobAnswer::LookedUp`].
    LookUp { name: Name, owner: NameOwner },
    /// Do something with files that may wait for a disk or a server.
    File(FileJob),
}

/// A [`Job`] about files.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum FileJob {
    /// Answered by [`FileAnswer::Opened`].
    Open { request: OpenRequest, owner: SessionId },
    /// Look for the file that a client asks for. Answered by [`FileAnswer::Found`].
    Find { request: AssetRequest, owner: SessionId },
    /// Answered by [`FileAnswer::Read`].
    Read { request: ReadRequest, owner: SessionId },
    /// Look at the file of a stream. Answered by [`FileAnswer::Looked`].
    Look { request: StateRequest, owner: StreamId },
    /// Check the folder of audio files. Answered by
    /// [`FileAnswer::AudioRootChecked`].
    CheckAudioRoot(RootRequest),
    /// Open a file for speech. Answered by [`FileAnswer::SpoolOpened`].
    OpenSpool { request: SpoolRequest, task: Uuid, serial: u64 },
    /// Write speech. Answered by [`FileAnswer::SpoolWritten`].
    WriteSpool(SpoolWrites),
}

/// The outcome of a [`Job`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum JobAnswer {
    /// Addresses in the order in which to try them, or why none are known.
    LookedUp { owner: NameOwner, found: Result<Vec<SocketAddr>, LookUpError> },
    /// The outcome of a [`FileJob`].
    File(FileAnswer),
}

/// The outcome of a [`FileJob`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum FileAnswer {
    /// The file, or why it was not opened.
    Opened { owner: SessionId, opened: Result<OpenFile, OpenError> },
    /// What there is of the name, or why nothing was opened.
    Found { owner: SessionId, found: Result<FoundAsset, OpenError> },
    /// The bytes, or the error of the file system.
    Read { owner: SessionId, read: io::Result<FileBytes> },
    /// The file as it is now, or the error of the file system.
    Looked { owner: StreamId, looked: io::Result<FileState> },
    /// The folder of audio files, or why it cannot be opened.
    AudioRootChecked(Result<FoundRoot, OpenError>),
    /// The file for a stream, or why there is none.
    SpoolOpened { task: Uuid, serial: u64, opened: Result<SpoolFile, OpenError> },
    /// The outcome of each write.
    SpoolWritten(SpoolWritten),
}

/// Who asked for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum NameOwner {
    Backend(UpstreamId),
    Redis(RedisRole),
}

impl FileJob {
    /// Does it. May block for as long as the file system does.
    pub fn run(self) -> JobAnswer {
        JobAnswer::File(match self {
            FileJob::Open { request, owner } => FileAnswer::Opened { owner, opened: request.run() },
            FileJob::Find { request, owner } => FileAnswer::Found { owner, found: request.run() },
            FileJob::Read { request, owner } => FileAnswer::Read { owner, read: request.run() },
            FileJob::Look { request, owner } => FileAnswer::Looked { owner, looked: request.run() },
            FileJob::CheckAudioRoot(request) => FileAnswer::AudioRootChecked(request.run()),
            FileJob::OpenSpool { request, task, serial } => {
                FileAnswer::SpoolOpened { task, serial, opened: request.run() }
            }
            FileJob::WriteSpool(writes) => FileAnswer::SpoolWritten(writes.run()),
        })
    }
}
