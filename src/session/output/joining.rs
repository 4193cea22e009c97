//! A client that comes from the beginning to a young file of which another client has begun a
//! stream.
//!
//! The file may have been rewritten, or replaced under its name, since it was last looked at. The
//! client must not be given what is not the file any more, and not an error for something that
//! happened before it came. So it opens the file by its name, and takes the stream only if that is
//! of the same file and nothing but growth has happened to it.

use crate::net::OpenFile;
use crate::proto::message::SharedResult;
use crate::service::streams::{Stream, StreamFailure, StreamId, StreamSource, StreamState};
use crate::session::{Context, Identity};
use uuid::Uuid;

/// A file that was opened, and a stream of it that is looked at.
pub(super) struct Joining {
    pub(super) file: OpenFile,
    stream: StreamId,
    /// The look at the stream's file that was asked for.
    look: Option<u32>,
    /// What [`crate::service::streams::Streams::wait`] returned.
    waits_since: Option<u32>,
}

/// What has come of it.
pub(super) enum Joined {
    /// The stream is being looked at.
    Wait,
    /// The client gets this stream.
    Stream(StreamId),
    /// It gets the file that it has opened.
    File,
}

impl Joining {
    /// For the file of a result that was opened; `None` where it is not that of a stream.
    pub(super) fn new(
        task: Uuid,
        result: &SharedResult,
        file: &OpenFile,
        cx: &Context,
    ) -> Option<Joining> {
        let id = cx.streams.find(task, result.id()?)?;
        let stream = cx.streams.stream(id)?;
        let is_of_file =
            stream.source() == StreamSource::YoungFile && stream.file().is_same_file(file);
        is_of_file.then(|| Joining {
            file: file.clone(),
            stream: id,
            look: None,
            waits_since: None,
        })
    }

    /// What has come of it by now.
    pub(super) fn poll(&mut self, who: &Identity, cx: &mut Context) -> Joined {
        let id = self.stream;
        let state = cx.streams.stream(id).and_then(|stream| stream.file().state_now());
        if let Some(state) = state {
            cx.note_stream_file(id, state);
        }
        let Some(stream) = cx.streams.stream(id).filter(|it| !has_changed(it)) else {
            return Joined::File;
        };
        if state.is_some()
            || cx.is_stream_as(id, self.file.state())
            || self.look.is_some_and(|look| stream.has_looked(look))
        {
            return Joined::Stream(id);
        }
        self.look.get_or_insert_with(|| cx.streams.ask_look(id));
        let rules = cx.stream_rules();
        self.waits_since = cx.streams.wait(cx.now, id, who.id(), self.waits_since, &rules);
        Joined::Wait
    }
}

fn has_changed<K, F>(stream: &Stream<K, F>) -> bool {
    stream.state() == StreamState::Failed(StreamFailure::Changed)
}
