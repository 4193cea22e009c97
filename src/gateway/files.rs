//! The gateway's part in serving files: outcomes of background jobs, the folder of audio files, the
//! time of day that the times of files are compared with.

use super::Gateway;
use crate::base::moment::WallClock;
use crate::net::files::RootRequest;
use crate::service::route::RouteTarget;
use crate::session::Context;
use crate::session::jobs::{FileAnswer, FileJob, Job};
use std::time::SystemTime;

impl Gateway {
    /// The time of day. Called now and then, since the system's clock may be set.
    pub fn set_wall_clock(&mut self, time: SystemTime) {
        self.cx.wall = WallClock::new(self.cx.now, time);
        self.moving.note(self.cx.now, self.cx.stats.times());
        self.cx.black_box.stories.report(self.cx.now);
    }

    pub(super) fn handle_file(&mut self, answer: FileAnswer) {
        let owner = match answer {
            FileAnswer::AudioRootChecked(found) => return self.cx.handle_audio_root(found),
            FileAnswer::Looked { owner, looked } => {
                return self.cx.handle_stream_file(owner, looked.ok());
            }
            FileAnswer::SpoolOpened { task, serial, opened } => {
                return self.cx.handle_spool_opened(task, serial, opened);
            }
            FileAnswer::SpoolWritten(written) => return self.cx.handle_spool_written(written),
            FileAnswer::Opened { owner, .. }
            | FileAnswer::Found { owner, .. }
            | FileAnswer::Read { owner, .. } => owner,
        };
        // It may have ended meanwhile.
        if let Some(session) = self.session_mut(owner) {
            session.handle_file(answer);
            self.drive(owner.key as usize);
        }
    }
}

/// Has the folder of audio files checked, if results are served from it.
pub(super) fn check_audio_root(cx: &mut Context) {
    if cx.routes.iter().any(|route| matches!(route.target, RouteTarget::Output)) {
        let request = RootRequest::new(&cx.settings.output.audio_root);
        cx.jobs.push_back(Job::File(FileJob::CheckAudioRoot(request)));
    }
}
