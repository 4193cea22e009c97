//! The audio of a result, from its name to the last chunk.
//!
//! ```text
//!   Opening ── open ──► text ──► Sending: chunk, chunk, … ──► audio_complete
//!      │                            └── another recording by now ──► error, close
//!      ├── open, and it may grow ──► Streaming (`streaming.rs`)
//!      ├── open, and another client has begun to get it while it may grow ──► `joining.rs`
//!      ├── not there ──► look again for `audio_wait`, then text and error
//!      └── no descriptors, no memory ──► try again for 10 s, then close: the result stays kept
//! ```
//!
//! Nothing here waits for a disk. What is not in memory is opened and read by a background thread
//! (see [`crate::net::files`]), and the session goes on with the answer.

use super::joining::{Joined, Joining};
use super::opener::{NOT_READABLE, Opener};
use super::progress::{FileChunk, Mark, Marks, Next, Progress, Start};
use super::reading::ChunkRead;
use super::streaming::Streaming;
use super::{Order, Output, OutputEnding, OutputFault};
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::net::files::{FileBytes, FileState, FoundRoot, OpenError};
use crate::net::{OpenFile, Side};
use crate::proto::media;
use crate::proto::message::{self, AudioPresence, SharedResult};
use crate::proto::ws::{FrameHead, Opcode};
use crate::service::streams::StreamSource;
use crate::service::tasks::{self, TaskEnd};
use crate::session::close::CloseReason;
use crate::session::jobs::{FileAnswer, FileJob, Job};
use crate::session::transcript::{Event, Subject, note};
use crate::session::{Context, Identity};
use log::{info, warn};
use std::io;
use std::path::{Path, PathBuf};

/// The error message for a file that was written to while it was sent, or between two connections.
const CHANGED: &str = "Audio file changed";

/// What all sessions know about audio files.
#[derive(Debug, Default)]
pub struct AudioFiles {
    pub(in crate::session) marks: Marks,
    root_error: Option<OpenError>,
}

impl AudioFiles {
    /// Why `root`, the folder of audio files, cannot be opened, as it was last tried; `None` if it
    /// can.
    pub fn root_problem(&self, root: &Path) -> Option<String> {
        match self.root_error {
            Some(OpenError::NoRoot(errno)) => Some(format!("{}: {errno}", root.display())),
            _ => None,
        }
    }
}

impl Context {
    /// Notes what opening `audio_root` led to.
    pub fn handle_audio_root(&mut self, found: Result<FoundRoot, OpenError>) {
        match found {
            Ok(root) => {
                self.local_devices.note(root);
                self.audio.root_error = None;
            }
            Err(error @ OpenError::NoRoot(_)) => self.audio.root_error = Some(error),
            // It says nothing about the folder.
            Err(_) => {}
        }
    }
}

/// The audio of the result that is being delivered.
pub(super) enum Audio {
    Opening(Box<Opening>),
    Sending(Box<Sending>),
    Streaming(Box<Streaming>),
}

/// A file that is not open yet. The text of its result waits for it.
pub(super) struct Opening {
    result: SharedResult,
    opener: Opener,
    joining: Option<Joining>,
}

/// An open, finished file between two of its chunks.
pub(super) struct Sending {
    pub(super) file: OpenFile,
    name: PathBuf,
    progress: Progress,
    order: Order,
    read: ChunkRead<Next>,
}

impl Audio {
    /// The file that an outbox reads chunks from.
    pub(super) fn file(&self) -> Option<&OpenFile> {
        match self {
            Audio::Opening(_) => None,
            Audio::Sending(sending) => Some(&sending.file),
            Audio::Streaming(streaming) => Some(streaming.file()),
        }
    }

    /// Whether another chunk follows at once, so that packets can be filled.
    pub(super) fn is_bulk(&self) -> bool {
        match self {
            Audio::Opening(_) | Audio::Sending(_) => true,
            Audio::Streaming(streaming) => streaming.has_more(),
        }
    }

    /// Bytes of its own memory, those that a background thread is reading included.
    pub(super) fn own_bytes(&self) -> usize {
        match self {
            Audio::Opening(opening) => size_of::<Opening>() + opening.opener.own_bytes(),
            Audio::Sending(sending) => size_of::<Sending>() + sending.read.bytes(chunk_length),
            Audio::Streaming(streaming) => streaming.own_bytes(),
        }
    }

    /// When it has to be looked at even if nothing happens.
    pub(super) fn deadline(&self) -> Option<Moment> {
        match self {
            Audio::Opening(opening) => opening.opener.deadline(),
            Audio::Sending(_) | Audio::Streaming(_) => None,
        }
    }
}

fn chunk_length(next: Next) -> u32 {
    match next {
        Next::Chunk(chunk) => chunk.length,
        Next::Check => 0,
    }
}

impl Output {
    /// Begins the delivery of a result with audio. False: its file has to be waited for.
    pub(super) fn begin_audio(
        &mut self,
        result: SharedResult,
        opener: Opener,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let stream = result.id().and_then(|id| cx.streams.find(self.task.uuid(), id));
        if let Some(stream) = stream.and_then(|id| cx.streams.stream(id)) {
            let is_young = stream.source() == StreamSource::YoungFile;
            let has_part = !self.underway().resume.start.is_beginning();
            if is_young && has_part && stream.is_second() {
                self.fail_audio(opener.name(), CHANGED, None, who, cx);
                return true;
            }
            if !is_young || has_part {
                // The file that was opened is the one that every client gets.
                return self.begin_stream(&result, stream.id(), who, cx);
            }
        }
        let opening = Box::new(Opening { result, opener, joining: None });
        self.continue_audio(Audio::Opening(opening), who, cx)
    }

    /// Makes the next message, once the outbox is empty. False: nothing can be sent for now.
    pub(super) fn continue_audio(
        &mut self,
        audio: Audio,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        match audio {
            Audio::Opening(opening) => self.open(opening, who, cx),
            Audio::Sending(sending) => self.send(sending, who, cx),
            Audio::Streaming(streaming) => self.send_stream(streaming, who, cx),
        }
    }

    /// A background thread is done with the file. Acted on by the next step.
    pub(in crate::session) fn handle_file(&mut self, answer: FileAnswer) {
        match (answer, self.audio()) {
            (FileAnswer::Opened { opened, .. }, Some(Audio::Opening(opening))) => {
                opening.opener.handle_opened(opened);
            }
            (FileAnswer::Read { read, .. }, Some(Audio::Sending(sending))) => {
                sending.read.handle(read);
            }
            (FileAnswer::Read { read, .. }, Some(Audio::Streaming(streaming))) => {
                streaming.handle_read(read);
            }
            // It goes on without it.
            _ => {}
        }
    }

    /// Gives up a file that has changed. Called once a step, between two chunks, where an error
    /// message can still be sent.
    pub(super) fn check_audio(&mut self, who: &Identity, cx: &mut Context) {
        if self.leaving().is_some() {
            return;
        }
        let Some(Audio::Sending(sending)) = self.audio() else { return };
        let Some(state) = sending.file.state_now() else { return };
        if !sending.progress.is_same(state) {
            let name = sending.name.clone();
            self.fail_audio(&name, CHANGED, None, who, cx);
        }
    }

    pub(super) fn audio(&mut self) -> Option<&mut Audio> {
        self.underway.as_mut().and_then(|underway| underway.audio.as_mut())
    }

    fn open(&mut self, mut opening: Box<Opening>, who: &Identity, cx: &mut Context) -> bool {
        if let Some(joining) = opening.joining.take() {
            return self.join(opening, joining, who, cx);
        }
        match opening.opener.poll(&self.task, who, cx) {
            None => self.keep(Audio::Opening(opening)),
            Some(Ok(file)) => match Joining::new(self.task.uuid(), &opening.result, &file, cx) {
                Some(joining) if self.underway().resume.start.is_beginning() => {
                    self.join(opening, joining, who, cx)
                }
                _ => self.begin_file(&opening, file, who, cx),
            },
            Some(Err(error)) => self.go_without_audio(&opening, error, who, cx),
        }
    }

    /// The file is open, and it is that of a stream.
    fn join(
        &mut self,
        mut opening: Box<Opening>,
        mut joining: Joining,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        match joining.poll(who, cx) {
            Joined::Stream(stream) => self.begin_stream(&opening.result, stream, who, cx),
            Joined::File => self.begin_file(&opening, joining.file, who, cx),
            Joined::Wait => {
                opening.joining = Some(joining);
                self.keep(Audio::Opening(opening))
            }
        }
    }

    /// The file is open: sends the text, and then the file from the chunk that the client wants.
    fn begin_file(
        &mut self,
        opening: &Opening,
        file: OpenFile,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let result = &opening.result;
        let (task, name) = (self.task.uuid(), opening.opener.name().to_path_buf());
        let start = self.underway().resume.start;
        let progress = Progress::new(file.state(), cx.settings.output.chunk_size, start);
        let is_young = opening.opener.is_young(&file, cx);
        let mark = Mark { state: file.state(), may_grow: is_young };
        // A growing file may be another one than before a restart, and its chunks are new anyway.
        let had = start.bytes(cx.settings.output.chunk_size);
        if !result.is_growing() && !cx.audio.marks.note(task, &name, mark, had) {
            self.fail_audio(&name, CHANGED, None, who, cx);
            return true;
        }
        if result.is_growing() || is_young {
            return self.begin_file_stream(result, file, &name, who, cx);
        }
        self.underway().resume.start = Start::default();
        let media_type =
            media::by_name(&name).or_else(|| media::by_first_bytes(file.first_bytes()));
        self.push_result(result, AudioPresence::Follows(media_type), who, cx);
        cx.stats.results_delivered += 1;
        info!(
            target: "output",
            "{who} delivers task={} audio={}B chunks={} from={}",
            self.task,
            progress.length(),
            progress.total_chunks(),
            progress.next_chunk(),
        );
        let order = Order::of(result);
        let sending = Sending { file, name, progress, order, read: ChunkRead::Idle };
        self.keep(Audio::Sending(Box::new(sending)));
        true
    }

    /// The file cannot be opened: sends the text and the reason. Or, where nothing is wrong with
    /// the file, closes the client and leaves the result to be delivered another time.
    fn go_without_audio(
        &mut self,
        opening: &Opening,
        error: OpenError,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let words = opening.opener.report_failure(error, &self.task, who, cx);
        if matches!(error, OpenError::Shortage(_)) {
            self.leave(CloseReason::OutOfResources, None, who, cx);
            return true;
        }
        self.underway().resume.go_without_audio();
        let result = &opening.result;
        self.push_result(result, AudioPresence::Absent, who, cx);
        cx.stats.results_delivered += 1;
        self.push_text(&message::error_message(words, Some(&self.task)), who, cx);
        self.note_fault(OutputFault::Audio(words));
        cx.stats.results_without_audio += 1;
        info!(target: "output", "{who} delivers task={} audio=none failure=false", self.task);
        self.end_result(Order::of(result), TaskEnd::Completed, who, cx);
        true
    }

    fn send(&mut self, mut sending: Box<Sending>, who: &Identity, cx: &mut Context) -> bool {
        match std::mem::replace(&mut sending.read, ChunkRead::Idle) {
            ChunkRead::Idle => {}
            ChunkRead::Done(next, read) => match *read {
                Ok(read) => return self.handle_read(sending, next, read, who, cx),
                Err(error) => {
                    self.fail_audio(&sending.name, NOT_READABLE, Some(error), who, cx);
                    return true;
                }
            },
            ChunkRead::UnderWay(next) => {
                sending.read = ChunkRead::UnderWay(next);
                return self.keep(Audio::Sending(sending));
            }
        }
        let next = sending.progress.next();
        let (offset, length) = match next {
            Next::Chunk(chunk) if sending.file.is_cached(chunk.offset, chunk.length as usize) => {
                self.announce_chunk(chunk, who, cx);
                self.underway().outbox.push_chunk(chunk.offset, chunk.length);
                sending.progress.advance(chunk);
                self.keep(Audio::Sending(sending));
                return true;
            }
            Next::Chunk(chunk) => (chunk.offset, chunk.length as usize),
            Next::Check => match sending.file.state_now() {
                Some(state) => return self.finish_file(&sending, state, who, cx),
                None => (sending.progress.length(), 1),
            },
        };
        let request = sending.file.read_request(offset, length);
        cx.jobs.push_back(Job::File(FileJob::Read { request, owner: who.id() }));
        sending.read = ChunkRead::UnderWay(next);
        self.keep(Audio::Sending(sending))
    }

    /// A background thread has read a chunk, or only looked at the end of the file.
    fn handle_read(
        &mut self,
        mut sending: Box<Sending>,
        next: Next,
        read: FileBytes,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        let FileBytes { bytes, state } = read;
        let chunk = match next {
            Next::Check => return self.finish_file(&sending, state, who, cx),
            Next::Chunk(chunk) => chunk,
        };
        if !sending.progress.is_same(state) || bytes.len() < chunk.length as usize {
            self.fail_audio(&sending.name, CHANGED, None, who, cx);
            return true;
        }
        self.announce_chunk(chunk, who, cx);
        self.underway().outbox.push_binary(&bytes);
        sending.progress.advance(chunk);
        self.keep(Audio::Sending(sending));
        true
    }

    /// The last byte has been sent, and the file is in `state`.
    fn finish_file(
        &mut self,
        sending: &Sending,
        state: FileState,
        who: &Identity,
        cx: &mut Context,
    ) -> bool {
        if sending.progress.is_same(state) {
            self.push_text(&message::audio_complete(&self.task), who, cx);
            self.end_result(sending.order, TaskEnd::Completed, who, cx);
        } else {
            self.fail_audio(&sending.name, CHANGED, None, who, cx);
        }
        true
    }

    /// The rest of the file cannot be sent: an error message, and a Close frame.
    pub(super) fn fail_audio(
        &mut self,
        name: &Path,
        error: &'static str,
        cause: Option<io::Error>,
        who: &Identity,
        cx: &mut Context,
    ) {
        let file = name.display().to_string();
        let root = cx.settings.output.audio_root.display().to_string();
        let detail = cause.map(|cause| format!(" error={}", Quoted(cause))).unwrap_or_default();
        warn!(
            target: "output",
            "{who} = audio lost why={}{detail} file={} root={} task={}",
            Quoted(error),
            Quoted(file),
            Quoted(root),
            self.task,
        );
        cx.stats.count_audio_failed(if error == CHANGED { "changed" } else { "unreadable" });
        self.leave_with_error(error, CloseReason::AudioLost, Some(TaskEnd::Failed), who, cx);
    }

    /// The message that goes before the bytes of a chunk.
    pub(super) fn announce_chunk(&mut self, chunk: FileChunk, who: &Identity, cx: &mut Context) {
        let offset = chunk.shows_offset.then_some(chunk.offset);
        let text = message::audio_chunk(&self.task, chunk.number, chunk.total, offset, "");
        self.announce(&text, chunk, who, cx);
    }

    pub(super) fn announce(
        &mut self,
        text: &str,
        chunk: FileChunk,
        who: &Identity,
        cx: &mut Context,
    ) {
        let FileChunk { number, length, total, .. } = chunk;
        self.active_at = cx.now;
        self.push_text(text, who, cx);
        self.traffic.to_client.frames += 1;
        cx.stats.audio_bytes += u64::from(length);
        let head = FrameHead::of_message(Opcode::Binary, length.into());
        who.count_frame(Side::Downstream, &head, cx);
        self.note_sent(tasks::TaskEvent::FirstAudio, cx);
        self.note_sent(tasks::TaskEvent::LastAudio, cx);
        note(Subject::Task(who, &self.task), || Event::Chunk {
            length: length.into(),
            number,
            total,
        });
    }

    /// Puts the audio back. False: nothing was sent.
    pub(super) fn keep(&mut self, audio: Audio) -> bool {
        self.underway().audio = Some(audio);
        false
    }

    /// The file ended inside a chunk, where no error message can be sent.
    pub(super) fn cut_off(&mut self, who: &Identity, cx: &mut Context) -> OutputEnding {
        let name = match self.audio() {
            Some(Audio::Sending(sending)) => sending.name.display().to_string(),
            Some(Audio::Streaming(streaming)) => streaming.name(cx).display().to_string(),
            Some(Audio::Opening(_)) | None => String::new(),
        };
        let root = cx.settings.output.audio_root.display().to_string();
        warn!(target: "output", "{who} = audio file shrank inside a chunk file={} root={} task={}", Quoted(name), Quoted(root), self.task);
        cx.stats.count_audio_failed("changed");
        OutputEnding { end: Some(TaskEnd::Failed), ..OutputEnding::abrupt(CloseReason::AudioLost) }
    }
}
