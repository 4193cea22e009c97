//! Opens the audio file of a result: which names are tried, how often, and what is reported if none
//! leads to a file.

#![expect(clippy::indexing_slicing, reason = "the name that is tried is one of the names")]

use super::progress::is_young;
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::net::OpenFile;
use crate::net::files::{OpenError, Root};
use crate::proto::media;
use crate::proto::message::{TaskId, TaskResult};
use crate::service::audio_names::candidates;
use crate::session::jobs::{FileJob, Job};
use crate::session::{Context, Identity};
use log::warn;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often a file that is not there is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How often opening is tried again while descriptors or memory have run out.
const SHORTAGE_INTERVAL: Duration = Duration::from_millis(100);

/// How long it is tried again. Then the client is refused and may come back.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The error message for a file that could be opened and then not be read.
pub(in crate::session) const NOT_READABLE: &str = "Audio file not readable";

/// The error for a file that could not be opened for want of descriptors or memory.
const SHORTAGE: &str = "Out of file descriptors or memory";

/// A file that is being opened.
pub(in crate::session) struct Opener {
    /// Names to try, and the one that is tried.
    names: Vec<PathBuf>,
    tried: usize,
    attempt: Attempt,
    /// When the last attempt began. What it found out was so then or later.
    asked_at: Moment,
    since: Moment,
    has_reported_shortage: bool,
}

enum Attempt {
    Due,
    At(Moment),
    /// A background thread is opening it.
    UnderWay,
    Done(Result<OpenFile, OpenError>),
}

impl Opener {
    /// For the audio of `result`; `None` if it has none.
    pub(in crate::session) fn new(result: &TaskResult, cx: &Context) -> Option<Opener> {
        Some(Opener {
            names: candidates(result.audio_file()?, &cx.settings.output.path_map),
            tried: 0,
            attempt: Attempt::Due,
            asked_at: cx.now,
            since: cx.now,
            has_reported_shortage: false,
        })
    }

    /// The name that is tried.
    pub(in crate::session) fn name(&self) -> &Path {
        // There is at least one candidate, and `tried` counts below their number.
        &self.names[self.tried]
    }

    /// Bytes of its own memory, those of the struct apart.
    pub(in crate::session) fn own_bytes(&self) -> usize {
        self.names.iter().map(|name| name.as_os_str().len()).sum()
    }

    /// When it has to be polled even if nothing happens.
    pub(in crate::session) fn deadline(&self) -> Option<Moment> {
        match self.attempt {
            Attempt::At(at) => Some(at),
            Attempt::Due | Attempt::UnderWay | Attempt::Done(_) => None,
        }
    }

    /// A background thread has tried to open the file. Acted on by the next [`Opener::poll`].
    pub(in crate::session) fn handle_opened(&mut self, opened: Result<OpenFile, OpenError>) {
        self.attempt = Attempt::Done(opened);
    }

    /// The open file, or why there is none; `None` while that is not known.
    pub(in crate::session) fn poll(
        &mut self,
        task: &TaskId,
        who: &Identity,
        cx: &mut Context,
    ) -> Option<Result<OpenFile, OpenError>> {
        loop {
            match std::mem::replace(&mut self.attempt, Attempt::Due) {
                Attempt::UnderWay => {
                    self.attempt = Attempt::UnderWay;
                    return None;
                }
                Attempt::At(at) if at > cx.now => {
                    self.attempt = Attempt::At(at);
                    return None;
                }
                Attempt::Due | Attempt::At(_) => self.attempt = self.begin(who, cx),
                Attempt::Done(outcome) => {
                    let root = outcome.as_ref().map(OpenFile::root).map_err(|error| *error);
                    cx.handle_audio_root(root);
                    let Err(error) = outcome else { return Some(outcome) };
                    let Some(at) = self.retry_at(error, cx) else { return Some(outcome) };
                    self.report_shortage(error, task, who);
                    self.attempt = Attempt::At(at);
                }
            }
        }
    }

    fn begin(&mut self, who: &Identity, cx: &mut Context) -> Attempt {
        self.asked_at = cx.now;
        let settings = &cx.settings.output;
        let mut root = Root::new(&settings.audio_root, settings.max_audio);
        if let Some(wait) = settings.audio_wait {
            root = root.with_young_since(cx.wall.at(cx.now) - wait);
        }
        if media::by_name(self.name()).is_none() {
            root = root.with_first_bytes(media::FIRST_BYTES);
        }
        match root.open_cached(self.name(), &cx.local_devices) {
            Err(OpenError::WouldWait) => {
                let (request, owner) = (root.request(self.name()), who.id());
                cx.jobs.push_back(Job::File(FileJob::Open { request, owner }));
                Attempt::UnderWay
            }
            opened => Attempt::Done(opened),
        }
    }

    /// When to try again after `error`; `None`: never.
    fn retry_at(&mut self, error: OpenError, cx: &Context) -> Option<Moment> {
        let (interval, limit) = match error {
            OpenError::NotFound | OpenError::NoRoot(_) if self.tried + 1 < self.names.len() => {
                self.tried += 1;
                return Some(cx.now);
            }
            OpenError::NotFound | OpenError::NoRoot(_) => {
                self.tried = 0;
                (LOOK_INTERVAL, cx.settings.output.audio_wait?)
            }
            OpenError::Shortage(_) => (SHORTAGE_INTERVAL, SHORTAGE_TIMEOUT),
            OpenError::Forbidden
            | OpenError::NotRegular
            | OpenError::TooLarge
            | OpenError::WouldWait
            | OpenError::Unreadable(_) => return None,
        };
        // A slow answer says nothing about the time after it was asked for.
        let until = self.since + limit;
        (self.asked_at < until).then(|| until.min(cx.now + interval))
    }

    fn report_shortage(&mut self, error: OpenError, task: &TaskId, who: &Identity) {
        if let OpenError::Shortage(errno) = error
            && !std::mem::replace(&mut self.has_reported_shortage, true)
        {
            let name = self.name().display();
            warn!(target: "output", "{who} = audio delayed why={} file={} task={task}", Quoted(errno), Quoted(name));
        }
    }

    /// The time of day when the file was asked for. A slow answer must not make a young file look
    /// finished: it may have been written to since it was opened.
    pub(in crate::session) fn asked_at(&self, cx: &Context) -> SystemTime {
        cx.wall.at(self.asked_at)
    }

    /// Whether a file may still have been written to when it was opened.
    pub(in crate::session) fn is_young(&self, file: &OpenFile, cx: &Context) -> bool {
        is_young(file.state(), self.asked_at(cx), cx.settings.output.audio_wait)
    }

    /// Logs and counts that there is no file. Returns the error for the client; the path stays in
    /// the log.
    pub(in crate::session) fn report_failure(
        &self,
        error: OpenError,
        task: &TaskId,
        who: &Identity,
        cx: &mut Context,
    ) -> &'static str {
        let (words, label) = describe(error);
        let detail = errno(error);
        warn!(
            target: "output",
            "{who} = no audio why={}{detail} file={} root={} task={task}",
            Quoted(words),
            Quoted(self.name().display()),
            Quoted(cx.settings.output.audio_root.display()),
        );
        cx.stats.count_audio_failed(label);
        words
    }
}

/// The error to the client for a file that could not be opened, and the label of its metric.
fn describe(error: OpenError) -> (&'static str, &'static str) {
    match error {
        OpenError::NotFound => ("Audio file not found", "not_found"),
        OpenError::NoRoot(_) => ("Audio file not found", "no_root"),
        OpenError::Forbidden | OpenError::NotRegular => ("Audio file not allowed", "not_allowed"),
        OpenError::TooLarge => ("Audio file too large", "too_large"),
        OpenError::Shortage(_) => (SHORTAGE, "shortage"),
        OpenError::WouldWait | OpenError::Unreadable(_) => (NOT_READABLE, "unreadable"),
    }
}

/// The system's reason, as a field for the log.
fn errno(error: OpenError) -> String {
    match error {
        OpenError::NoRoot(errno) | OpenError::Shortage(errno) | OpenError::Unreadable(errno) => {
            format!(" error={}", Quoted(errno))
        }
        OpenError::NotFound
        | OpenError::Forbidden
        | OpenError::NotRegular
        | OpenError::TooLarge
        | OpenError::WouldWait => String::new(),
    }
}
