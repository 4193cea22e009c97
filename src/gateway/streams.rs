//! Streams in the course of a turn: their files are looked at when they were written to or it is
//! time, and clients that wait for more go on.

use super::Gateway;
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::proto::message::TaskId;
use crate::service::audio_names;
use crate::service::streams::{FinishedStream, StreamFailure, StreamId, StreamSource, StreamState};
use crate::service::tasks::{Renumbered, SpeechKey};
use crate::session::jobs::{FileJob, Job};
use log::{info, warn};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// How often streams are forgotten whose results have gone.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

impl Gateway {
    /// Looks at the files that are due, and drives the clients that wait for them: at most this
    /// many, the others have their turn later.
    pub(super) fn settle_streams(&mut self) {
        if std::mem::take(&mut self.has_written_files) {
            while let Some(number) = self.cx.network.poll_written() {
                self.cx.streams.handle_report(number);
            }
        }
        if self.cx.speech.open_again_at().is_some_and(|at| at <= self.cx.now) {
            self.cx.open_speech_again();
        }
        while let Some(id) = self.cx.streams.poll_due(self.cx.now) {
            self.look_at(id);
        }
        for _ in 0..self.turn.deliveries {
            let Some(client) = self.cx.streams.poll_woken() else { break };
            if self.session(client).is_some() {
                self.drive(client.key as usize);
            }
        }
        while let Some(finished) = self.cx.streams.poll_finished() {
            self.finish_stream(finished);
        }
        if self.forget_streams_at <= self.cx.now && self.cx.streams.has_idle() {
            self.forget_streams_at = self.cx.now + FORGET_INTERVAL;
            let tasks = self.cx.results.tasks();
            self.cx.streams.forget_unless(|task, result_id| tasks.is_kept(task, result_id));
        }
    }

    /// When streams have to be settled even if nothing happens.
    #[inline]
    pub(super) fn streams_due_at(&self) -> Option<Moment> {
        // Asked twice a turn, and most turns relay a message.
        let is_idle = self.cx.streams.is_empty() && self.cx.speech.open_again_at().is_none();
        if is_idle { None } else { self.next_look_at_streams() }
    }

    #[inline(never)]
    fn next_look_at_streams(&self) -> Option<Moment> {
        if self.has_written_files || self.cx.streams.has_news() {
            return Some(self.cx.now);
        }
        let forget_at = self.cx.streams.has_idle().then_some(self.forget_streams_at);
        let open_at = self.cx.speech.open_again_at();
        Moment::earliest([self.cx.streams.deadline(), forget_at, open_at])
    }

    /// A worker has said that a growing file of a task is complete.
    pub(super) fn handle_audio_end(&mut self, task: Uuid, name: &Path) {
        let path_map = &self.cx.settings.output.path_map;
        let of_task = self.cx.streams.of_task(task);
        let ended = of_task.filter(|stream| {
            stream.source() == StreamSource::GrowingFile
                && audio_names::is_same(stream.name(), name, path_map)
        });
        let ended: Vec<StreamId> = ended.map(|stream| stream.id()).collect();
        ended.into_iter().for_each(|id| self.cx.streams.complete(id));
    }

    fn look_at(&mut self, id: StreamId) {
        let Some(stream) = self.cx.streams.stream(id) else { return };
        if stream.source() == StreamSource::Speech {
            return self.cx.judge_speech(id);
        }
        match stream.file().state_now() {
            Some(state) => self.cx.handle_stream_file(id, Some(state)),
            None => {
                let request = stream.file().state_request();
                self.cx.jobs.push_back(Job::File(FileJob::Look { request, owner: id }));
                self.cx.streams.begin_look(id);
            }
        }
    }

    fn finish_stream(&mut self, finished: FinishedStream) {
        let FinishedStream { id, task, result_id, source, state, chunks, bytes, .. } = finished;
        let name = &finished.name;
        self.cx.network.unwatch(id.number());
        if source == StreamSource::YoungFile {
            return;
        }
        if source == StreamSource::Speech {
            return self.finish_speech(&finished);
        }
        self.cx.results.release(self.cx.now, task, result_id);
        let task = TaskId::from(task);
        match state {
            StreamState::Open => {}
            StreamState::Ended => {
                info!(target: "output", "stream complete result={result_id} audio={bytes}B chunks={chunks} task={task}");
            }
            StreamState::Failed(failure) => {
                self.cx.stats.count_audio_failed(failure.label());
                warn!(
                    target: "output",
                    "stream lost why={} file={} root={} result={result_id} audio={bytes}B task={task}",
                    Quoted(failure.words()),
                    Quoted(name.display()),
                    Quoted(self.cx.settings.output.audio_root.display()),
                );
            }
        }
    }

    /// Streams: audio that grows, or has grown and is kept open for clients that return.
    pub fn stream_count(&self) -> usize {
        self.cx.streams.count()
    }

    /// Redis knew of results in front of speech.
    pub(super) fn renumber_speech(&mut self, Renumbered { key, id }: Renumbered) {
        if let Some(stream) = self.cx.speech.stream(key) {
            self.cx.streams.renumber(stream, id);
        }
    }

    /// Speech is not kept any more.
    pub(super) fn forget_speech(&mut self, key: SpeechKey) {
        if let Some(stream) = self.cx.speech.take_stream(key) {
            self.cx.streams.forget(stream);
        }
    }

    fn finish_speech(&mut self, finished: &FinishedStream) {
        let FinishedStream { id, task, result_id, state, chunks, bytes, .. } = *finished;
        let has_stalled = state == StreamState::Failed(StreamFailure::Stalled);
        self.cx.handle_speech_finished(task, id, has_stalled);
        let task = TaskId::from(task);
        match state {
            StreamState::Open => {}
            StreamState::Ended => {
                info!(target: "ingest", "speech complete result={result_id} audio={bytes}B chunks={chunks} task={task}");
            }
            StreamState::Failed(failure) => {
                self.cx.stats.count_audio_failed(failure.label());
                warn!(
                    target: "ingest",
                    "speech lost why={} result={result_id} audio={bytes}B chunks={chunks} task={task}",
                    Quoted(failure.words()),
                );
            }
        }
    }
}
