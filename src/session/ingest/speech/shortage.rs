//! Streams whose files cannot be opened for want of descriptors or memory: their chunks wait, and
//! opening is tried again.

use super::{IncomingSpeeches, SpeechPart};
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::net::files::spool::{SpoolFile, SpoolRequest};
use crate::session::Context;
use crate::session::jobs::{FileJob, Job};
use log::warn;
use rustix::io::Errno;
use std::time::Duration;

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
