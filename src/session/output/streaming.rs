//! Audio that may still grow, on its way to a client.
//!
//! Which chunks there are, and whether more are to come, is known to the stream, which all clients
//! of the task share ([`crate::service::streams`]). Here is what one client has of it. A client
//! that has everything waits in the stream, and is driven when there is more.

use super::progress::{FileChunk, Start};
use super::reading::ChunkRead;
use super::{Audio, CloseReason, Order, Output, OutputFault};
use crate::net::OpenFile;
use crate::net::files::FileBytes;
use crate::proto::control;
use crate::proto::media;
use crate::proto::message::{self, AudioPresence, SharedResult, TaskResult};
use crate::service::streams::{
    Cursor, NewStream, Piece, Stream, StreamFailure, StreamId, StreamSource, StreamState,
    StreamVerdict,
};
use crate::service::tasks::TaskEnd;
use crate::session::jobs::{FileJob, Job};
use crate::session::{Context, Identity};
use log::info;
use std::io;
use std::path::{Path, PathBuf};

/// A stream between two of its chunks.
pub(super) struct Streaming {
    stream: StreamId,
    file: OpenFile,
    cursor: Cursor,
    order: Order,
    /// The client counts bytes, so it gets the offset of every chunk.
    counts_bytes: bool,
    /// The number of chunks that the client was given, if it was given one.
    announced: Option<u64>,
    /// The stream could still grow when this client came to it.
    is_live: bool,
    /// Another chunk is known behind the one that is being sent.
    has_more: bool,
    read: ChunkRead<Piece>,
    /// What [`crate::service::streams::Streams::wait`] returned.
    waits_since: Option<u32>,
    /// The client has everything, and its `timeout` counts.
    is_waiting: bool,
    /// The look at the file that was asked for when the client had everything.
    last_look: Option<u32>,
}

/// What comes next of a stream.
enum NextStep {
    Chunk(FileChunk, Piece),
    /// A background thread has to read it first.
    Read(Piece),
    Wait,
    Complete,
    Failed(StreamFailure),
}

impl Streaming {
    pub(super) fn file(&self) -> &OpenFile {
        &self.file
    }

    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    pub(super) fn stream(&self) -> StreamId {
        self.stream
    }

    /// Whether the client has all that there is, and waits for more.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// The name of its file, for the log.
    pub(super) fn name(&self, cx: &Context) -> PathBuf {
        let stream = cx.streams.stream(self.stream);
        stream.map(|stream| stream.name().to_path_buf()).unwrap_or_default()
    }

    /// Bytes of its own memory, those that a background thread is reading included.
    pub(super) fn own_bytes(&self) -> usize {
        size_of::<Streaming>() + self.read.bytes(|piece| piece.length)
    }

    pub(super) fn handle_read(&mut self, read: io::Result<FileBytes>) {
        self.read.handle(read);
    }

    /// The piece is on its way.
    fn pass(&mut self, piece: Piece) {
        self.is_waiting = false;
        self.cursor.pass(piece);
        // What the file is behind this piece has to be found out anew.
        self.last_look = None;
    }

    fn is_changed(&self, cx: &Context) -> bool {
        let stream = cx.streams.stream(self.stream);
        stream.is_some_and(|it| it.state() == StreamState::Failed(StreamFailure::Changed))
    }

    /// What comes next.
    fn next(&mut self, who: &Identity, cx: &mut Context) -> NextStep {
        let rules = cx.stream_rules();
        let source = cx.streams.stream(self.stream).map(|stream| stream.source());
        // One that was rewritten is noticed between two chunks.
        let state = match source {
            Some(StreamSource::YoungFile) => self.file.state_now(),
            _ => None,
        };
        if let Some(state) = state {
            cx.note_stream_file(self.stream, state);
        }
        if self.is_changed(cx) {
            return NextStep::Failed(StreamFailure::Changed);
        }
        // Its task was stopped, of which the client is notified in a moment.
        let Some(stream) = cx.streams.stream(self.stream) else { return NextStep::Wait };
        if let Some(piece) = stream.chunks().peek(&mut self.cursor) {
            let is_last = piece.number + 1 == stream.chunks().count();
            self.has_more = !is_last;
            // What was just written is in memory.
            let is_fresh = is_last && stream.has_grown() && stream.state() == StreamState::Open;
            if !is_fresh && !self.file.is_cached(piece.offset, piece.length as usize) {
                return NextStep::Read(piece);
            }
            return NextStep::Chunk(self.chunk(piece, cx), piece);
        }
        let verdict = stream.verdict(cx.now, &rules);
        let is_known = source != Some(StreamSource::YoungFile)
            || state.is_some()
            || self.last_look.is_some_and(|look| stream.has_looked(look));
        match verdict {
            StreamVerdict::Wait => {}
            StreamVerdict::Complete if is_known => return NextStep::Complete,
            // What it is now has to be asked for.
            StreamVerdict::Complete => {
                self.last_look.get_or_insert_with(|| cx.streams.ask_look(self.stream));
            }
            StreamVerdict::Failed(failure) => return NextStep::Failed(failure),
        }
        let since = self.waits_since;
        self.waits_since = cx.streams.wait(cx.now, self.stream, who.id(), since, &rules);
        NextStep::Wait
    }

    /// The chunk as its message to the client describes it.
    fn chunk(&mut self, piece: Piece, cx: &Context) -> FileChunk {
        let Piece { number, offset, length } = piece;
        let rules = cx.stream_rules();
        let stream = cx.streams.stream(self.stream);
        let total = stream.and_then(|stream| stream.total_chunks(cx.now, &rules));
        // One number is never followed by another.
        let total = total.filter(|total| self.announced.is_none_or(|before| before == *total));
        self.announced = self.announced.or(total);
        let is_young = stream.is_some_and(|it| it.source() == StreamSource::YoungFile);
        let shows_offset = !is_young || self.counts_bytes || total.is_none();
        FileChunk { number, offset, length, total, shows_offset }
    }
}

impl Output {
    /// The file of a result is open, and may still grow: sends the text, and then what there is of
    /// it, and what will be.
    pub(super) fn begin_file_stream(
        &mut self,
        result: &SharedResult,
        mut file: OpenFile,
        opened: &Path,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let (task, result_id) = (self.task.uuid(), result.id().unwrap_or_default());
        let is_growing = result.is_growing();
        if is_growing && let Some(stream) = cx.streams.find(task, result_id) {
            // Another client has opened it meanwhile.
            return self.begin_stream(result, stream, who, cx);
        }
        if is_growing {
            // Only a loss of bytes shows that it is another one.
            file.forget_tail();
        }
        if is_growing && let Start::Chunk(_) = self.underway().resume.start {
            // What the chunks of another process were is not known.
            self.underway().resume.start = Start::default();
        }
        let audio_type =
            media::by_name(opened).or_else(|| media::by_first_bytes(file.first_bytes()));
        let state = file.state();
        let new = NewStream {
            task,
            result_id,
            source: if is_growing { StreamSource::GrowingFile } else { StreamSource::YoungFile },
            file,
            // Workers say by the name that they gave it when it is complete.
            name: result.audio_file().filter(|_| is_growing).unwrap_or(opened),
            audio_type,
            is_second: !is_growing && cx.audio.marks.is_several(task, opened),
        };
        let stream = cx.begin_stream(new, state);
        self.begin_stream(result, stream, who, cx)
    }

    /// Sends the text of a result, and then its stream from where the client wants it.
    pub(super) fn begin_stream(
        &mut self,
        result: &SharedResult,
        id: StreamId,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let start = std::mem::take(&mut self.underway().resume.start);
        let Some(stream) = cx.streams.stream(id) else { return false };
        let mut cursor = match start {
            Start::Chunk(first) => Cursor::from_chunk(first),
            Start::Byte(first) => Cursor::from_byte(first),
        };
        stream.chunks().peek(&mut cursor);
        let (length, chunks) = (stream.chunks().length(), stream.chunks().count());
        let is_live = stream.state() == StreamState::Open;
        let growing = if stream.source() != StreamSource::YoungFile && is_live {
            " growing=true"
        } else {
            ""
        };
        let (file, audio_type) = (stream.file().clone(), stream.audio_type());
        if !result.is_speech() {
            self.push_result(result, AudioPresence::Follows(audio_type), who, cx);
        }
        cx.stats.results_delivered += 1;
        info!(
            target: "output",
            "{who} delivers task={} audio={length}B chunks={chunks} from={}{growing}",
            self.task,
            cursor.chunk(),
        );
        cx.streams.enter(id);
        self.keep(Audio::Streaming(Box::new(Streaming {
            stream: id,
            file,
            cursor,
            order: Order::of(result),
            counts_bytes: matches!(start, Start::Byte(_)),
            announced: None,
            is_live,
            has_more: true,
            read: ChunkRead::Idle,
            waits_since: None,
            is_waiting: false,
            last_look: None,
        })));
        true
    }

    /// Sends speech that the gateway received. It has no text of its own.
    pub(super) fn begin_speech(
        &mut self,
        result: &SharedResult,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let id = result.id().unwrap_or_default();
        match cx.streams.find(self.task.uuid(), id) {
            Some(stream) => self.begin_stream(result, stream, who, cx),
            None => {
                // It was evicted after it had been queued for this client.
                let missing = TaskResult::missing().numbered(result.id()).shared(&cx.budget);
                self.push_result(&missing, AudioPresence::Absent, who, cx);
                self.end_result(Order::MoreFollow, TaskEnd::Failed, who, cx);
                true
            }
        }
    }

    /// Everything of a stream has been sent. What follows its result, which for speech is known
    /// only now.
    fn push_speech_end(
        &mut self,
        streaming: &Streaming,
        who: &Identity,
        cx: &mut Context,
    ) -> Order {
        let stream = cx.streams.stream(streaming.stream);
        let is_final = stream.is_some_and(Stream::is_final_speech);
        if stream.is_some_and(|stream| stream.source() == StreamSource::Speech) {
            self.push_text(&control::speech_end(&self.task), who, cx);
        }
        cx.streams.leave(streaming.stream);
        if is_final { Order::Last } else { streaming.order }
    }

    /// Makes the next message of a stream, once the outbox is empty. False: there is none for now.
    pub(super) fn send_stream(
        &mut self,
        mut streaming: Box<Streaming>,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        match std::mem::replace(&mut streaming.read, ChunkRead::Idle) {
            ChunkRead::Idle => {}
            ChunkRead::UnderWay(piece) => {
                streaming.read = ChunkRead::UnderWay(piece);
                return self.keep(Audio::Streaming(streaming));
            }
            ChunkRead::Done(piece, read) => {
                let (failure, error) = match *read {
                    Ok(read) if read.bytes.len() == piece.length as usize => {
                        return self.send_read(streaming, piece, &read, who, cx);
                    }
                    Ok(_) => (StreamFailure::Changed, None),
                    Err(error) => (StreamFailure::Unreadable, Some(error)),
                };
                return self.fail_stream(&streaming, failure, error, who, cx);
            }
        }
        match streaming.next(who, cx) {
            NextStep::Chunk(chunk, piece) => {
                self.announce_chunk_of(streaming.stream, chunk, who, cx);
                self.underway().outbox.push_chunk(piece.offset, piece.length);
                streaming.pass(piece);
                self.keep(Audio::Streaming(streaming));
                true
            }
            NextStep::Read(piece) => {
                let request = streaming.file.read_request(piece.offset, piece.length as usize);
                cx.jobs.push_back(Job::File(FileJob::Read { request, owner: who.id() }));
                streaming.read = ChunkRead::UnderWay(piece);
                streaming.is_waiting = false;
                self.keep(Audio::Streaming(streaming))
            }
            NextStep::Wait => {
                if !std::mem::replace(&mut streaming.is_waiting, true) {
                    self.due_at = cx.after(cx.settings.output.timeout);
                }
                self.keep(Audio::Streaming(streaming))
            }
            NextStep::Complete => {
                let order = self.push_speech_end(&streaming, who, cx);
                self.push_text(&message::audio_complete(&self.task), who, cx);
                self.end_result(order, TaskEnd::Completed, who, cx);
                true
            }
            NextStep::Failed(failure @ (StreamFailure::Changed | StreamFailure::Unreadable)) => {
                self.fail_stream(&streaming, failure, None, who, cx)
            }
            NextStep::Failed(failure @ (StreamFailure::Stalled | StreamFailure::TooLarge)) => {
                self.end_early(&streaming, failure, who, cx);
                true
            }
        }
    }

    /// A background thread has read a piece.
    fn send_read(
        &mut self,
        mut streaming: Box<Streaming>,
        piece: Piece,
        read: &FileBytes,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        cx.note_stream_read(streaming.stream, read.state);
        if streaming.is_changed(cx) {
            return self.fail_stream(&streaming, StreamFailure::Changed, None, who, cx);
        }
        let chunk = streaming.chunk(piece, cx);
        self.announce_chunk_of(streaming.stream, chunk, who, cx);
        self.underway().outbox.push_binary(&read.bytes);
        streaming.pass(piece);
        self.keep(Audio::Streaming(streaming));
        true
    }

    /// The message that goes before the bytes of a chunk, with what its worker said about it.
    fn announce_chunk_of(
        &mut self,
        stream: StreamId,
        chunk: FileChunk,
        who: &Identity,
        cx: &mut Context,
    ) {
        let fields = cx.streams.stream(stream).map_or("", |it| it.chunks().fields(chunk.number));
        let text = message::audio_chunk(
            &self.task,
            chunk.number,
            chunk.total,
            chunk.shows_offset.then_some(chunk.offset),
            fields,
        );
        self.announce(&text, chunk, who, cx);
    }

    /// What came of the stream has been sent, and it should have been more. What follows the result
    /// follows; if nothing does, a client that was there is closed with an error. One that came for
    /// the rest later has got all there is.
    fn end_early(
        &mut self,
        streaming: &Streaming,
        failure: StreamFailure,
        who: &Identity,
        cx: &mut Context,
    ) {
        cx.streams.leave(streaming.stream);
        self.push_text(&message::error_message(failure.words(), Some(&self.task)), who, cx);
        self.note_fault(OutputFault::Audio(failure.words()));
        let reason = match failure {
            _ if !streaming.is_live => CloseReason::Delivered,
            StreamFailure::TooLarge => CloseReason::AudioTooLarge,
            _ => CloseReason::AudioStalled,
        };
        self.end_result_with(streaming.order, TaskEnd::Failed, reason, who, cx);
    }

    fn fail_stream(
        &mut self,
        streaming: &Streaming,
        failure: StreamFailure,
        cause: Option<io::Error>,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let name = streaming.name(cx);
        cx.streams.leave(streaming.stream);
        self.fail_audio(&name, failure.words(), cause, who, cx);
        true
    }
}
