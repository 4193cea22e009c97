//! Opens the files of streams. While that fails for want of descriptors or memory, chunks wait and
//! it is tried again.

use super::{IncomingSpeeches, SpeechFile, SpeechPart, SpeechRefusal};
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::net::files::OpenError;
use crate::net::files::spool::{SpoolFile, SpoolRequest};
use crate::session::Context;
use crate::session::jobs::{FileJob, Job};
use log::warn;
use rustix::io::Errno;
use std::time::Duration;
use uuid::Uuid;

/// How often opening a file is tried again while descriptors or memory have run out.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long it is tried again. Then the stream is dropped.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

impl IncomingSpeeches {
    /// When [`Context::open_speech_again`] has something to do.
    #[inline]
    pub fn open_again_at(&self) -> Option<Moment> {
        self.short.front().map(|(at, _)| *at)
    }
}

impl Context {
    /// A background thread has opened a file for a stream, or not.
    pub fn handle_spool_opened(
        &mut self,
        task: Uuid,
        serial: u64,
        opened: Result<SpoolFile, OpenError>,
    ) {
        let part = SpeechPart { task, serial };
        let Some(speech) = self.speech.speech(part) else { return };
        match opened {
            Ok(file) => speech.file = SpeechFile::Open(file),
            Err(OpenError::Shortage(errno)) if self.now < speech.since + TIMEOUT => {
                self.delay_speech(part, errno);
                return;
            }
            Err(error) => {
                let folder = self.settings.output.spool.display();
                warn!(target: "ingest", "no file for speech folder={folder} why={error:?} task={task}");
                let refusal = self.drop_serial(part, SpeechRefusal::Shortage);
                self.tell(task, refusal);
            }
        }
        if let Err(refusal) = self.advance(task) {
            self.tell(task, refusal);
        }
    }

    /// No file for a stream for want of descriptors or memory: its chunks wait until one is opened.
    pub(super) fn delay_speech(&mut self, part: SpeechPart, errno: Errno) {
        let Some(speech) = self.speech.speech(part) else { return };
        if !std::mem::replace(&mut speech.is_delayed, true) {
            warn!(target: "ingest", "speech delayed why={} task={}", Quoted(errno), part.task);
        }
        self.speech.short.push_back((self.now + INTERVAL, part));
    }

    /// Tries again to open the files that could not be opened for a shortage, if it is time.
    pub fn open_speech_again(&mut self) {
        while let Some((at, part)) = self.speech.short.front().copied()
            && at <= self.now
        {
            self.speech.short.pop_front();
            if self.speech.speech(part).is_none() {
                continue;
            }
            let SpeechPart { task, serial } = part;
            let spool = &self.settings.output.spool;
            if spool.as_os_str().is_empty() {
                self.handle_spool_opened(task, serial, SpoolFile::in_memory());
            } else {
                let request = SpoolRequest::new(spool);
                self.jobs.push_back(Job::File(FileJob::OpenSpool { request, task, serial }));
            }
        }
    }
}
