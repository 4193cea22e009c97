//! What the gateway hands to a session that waits for it: results, files, the end of its task.

use super::{Context, Phase, Session, jobs};
use crate::proto::message::SharedResult;
use crate::service::results::{RecallOutcome, StoppedBy};

impl Session {
    /// A result for the task that it waits for, behind which it `has_more`. Acted on by the next
    /// [`Session::drive`].
    pub fn handle_result(&mut self, result: SharedResult, has_more: bool) {
        if let Phase::Output(output) = &mut self.phase {
            output.handle_result(result, has_more);
        }
    }

    /// A background thread is done with the file that it sends. Acted on by the next
    /// [`Session::drive`].
    pub fn handle_file(&mut self, answer: jobs::FileAnswer) {
        match (&mut self.phase, answer) {
            (Phase::Output(output), answer) => output.handle_file(answer),
            (Phase::Download(download), jobs::FileAnswer::Opened { opened, .. }) => {
                download.handle_opened(opened);
            }
            (Phase::Files(files), jobs::FileAnswer::Found { found, .. }) => {
                files.handle_found(found);
            }
            (Phase::Respond(respond), jobs::FileAnswer::Read { read, .. }) => {
                respond.handle_read(read);
            }
            // It goes on without it.
            _ => {}
        }
    }

    /// Its task was stopped. Acted on by the next [`Session::drive`].
    pub fn handle_stop(&mut self, by: StoppedBy, cx: &mut Context) {
        if let Phase::Output(output) = &mut self.phase {
            output.handle_stop(by, &self.who, cx);
        }
    }

    /// What came of asking Redis for a download. Acted on by the next [`Session::drive`].
    pub fn handle_recalled(&mut self, outcome: RecallOutcome) {
        if let Phase::Download(download) = &mut self.phase {
            download.handle_recalled(outcome);
        }
    }

    /// Redis has been away for longer than its grace. Acted on by the next [`Session::drive`].
    pub fn handle_redis_lost(&mut self, cx: &mut Context) {
        if let Phase::Output(output) = &mut self.phase {
            output.handle_redis_lost(&self.who, cx);
        }
    }
}
