//! What sessions and the gateway do with streams: begin them, and note how their files are.

use super::Context;
use crate::net::OpenFile;
use crate::net::files::FileState;
use crate::service::streams::{NewStream, SeenFile, StreamId, StreamRules, StreamSource};
use std::time::Duration;

impl Context {
    /// What streams have to keep to.
    pub fn stream_rules(&self) -> StreamRules {
        let settings = &self.settings.output;
        StreamRules {
            chunk_size: u32::try_from(settings.chunk_size).unwrap_or(u32::MAX),
            bytes_max: settings.max_audio,
            stall: settings.audio_stall,
            wait: settings.audio_wait.unwrap_or(Duration::ZERO),
        }
    }

    /// Begins a stream whose file was opened in this state. Its result is not evicted until it
    /// ends.
    pub(super) fn begin_stream(
        &mut self,
        new: NewStream<'_, OpenFile>,
        state: FileState,
    ) -> StreamId {
        let (task, result_id, source) = (new.task, new.result_id, new.source);
        let is_ended = source == StreamSource::GrowingFile
            && self.results.tasks().is_audio_ended(task, result_id, new.name);
        let rules = self.stream_rules();
        let file = new.file.clone();
        let id = self.streams.begin(self.now, new, seen(state), &rules);
        if source == StreamSource::GrowingFile {
            self.results.hold(task, result_id);
        }
        // Where nothing is reported, the file is looked at now and then.
        let _ = self.network.watch(&file, id.number());
        if is_ended {
            self.streams.complete(id);
            // Not as it was opened: that may be longer ago.
            if let Some(state) = file.state_now() {
                self.handle_stream_file(id, Some(state));
            }
        } else {
            // What was written before the watch is not reported.
            self.streams.ask_look(id);
        }
        id
    }

    /// A client has seen the file of its stream in this state. If that is nothing new, the others
    /// are not woken: they would look and wake each other in turn.
    pub fn note_stream_file(&mut self, id: StreamId, state: FileState) {
        if self.streams.stream(id).is_some_and(|stream| !stream.is_as(seen(state))) {
            self.handle_stream_file(id, Some(state));
        }
    }

    /// A client has read of the file of its stream, which was in this state then.
    pub(super) fn note_stream_read(&mut self, id: StreamId, state: FileState) {
        self.streams.handle_read(id, seen(state));
    }

    /// Whether the stream was last seen in this state.
    pub(super) fn is_stream_as(&self, id: StreamId, state: FileState) -> bool {
        self.streams.stream(id).is_some_and(|stream| stream.is_as(seen(state)))
    }

    /// The file of a stream is in this state; `None`: it cannot be read.
    pub fn handle_stream_file(&mut self, id: StreamId, state: Option<FileState>) {
        let rules = self.stream_rules();
        let length = |cx: &Context| cx.streams.stream(id).map(|stream| stream.chunks().length());
        let before = length(self);
        self.streams.handle_file(self.now, id, state.map(seen), &rules);
        if before != length(self)
            && let Some(stream) = self.streams.stream(id)
            && stream.source() == StreamSource::YoungFile
        {
            self.audio.marks.note_grown(stream.task(), stream.name());
        }
    }
}

fn seen(FileState { length, modified }: FileState) -> SeenFile {
    SeenFile { length, modified }
}
