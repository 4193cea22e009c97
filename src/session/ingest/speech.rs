//! Speech on its way from a worker's messages into streams.
//!
//! ```text
//! chunk ─► queue of its task ─► file ─► stream: clients get it
//!             │                  └── written at once, or by a background thread
//!             └── the first waits for its file, later streams for the ones before them
//! ```
//!
//! A task has one stream at a time. With a spool folder, files are opened and often written in the
//! background; chunks that come meanwhile wait here, and so does the next stream, because results
//! are numbered in the order in which they begin. In memory nothing waits: the queue of a task is
//! its open stream.
//!
//! One job writes what waits for all files (`writing.rs`). While it is under way, more comes
//! together for the next one, so a slow disk costs memory, up to [`WAITING_BYTES_MAX`], and then
//! workers are not read. A file that cannot be opened for want of descriptors is waited for, too
//! (`opening.rs`).

mod opening;
mod writing;

use crate::base::budget::{Budget, Charge};
use crate::base::moment::Moment;
use crate::base::quoted::Quoted;
use crate::base::table::Table;
use crate::net::files::OpenError;
use crate::net::files::spool::{SpoolFile, SpoolRequest};
use crate::proto::media;
use crate::proto::message::TaskId;
use crate::service::feeds::WorkerNotice;
use crate::service::streams::{StreamFailure, StreamId};
use crate::service::tasks::{SpeechKey, SpeechStore};
use crate::session::jobs::{FileJob, Job};
use crate::session::{Context, SessionId};
use log::warn;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use uuid::Uuid;
use writing::Writing;

/// Bytes of memory that what waits for a disk may take. While it takes more, workers are not read.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Once this much waits, the memory is worth giving back when most of it has been written.
const DRAINED_FROM: usize = WAITING_BYTES_MAX / 2;

/// Bytes of fields of one chunk.
const FIELDS_BYTES_MAX: usize = 64 * 1024;

/// Streams of one task that wait for the one before them.
const QUEUE_MAX: usize = 16;

/// The media type of a stream whose worker names none.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// A chunk as it came.
pub(super) struct ReceivedChunk<'b> {
    pub(super) task: TaskId,
    pub(super) seq: Option<u64>,
    pub(super) audio_type: Option<Box<str>>,
    pub(super) fields: Box<str>,
    pub(super) bytes: &'b [u8],
}

/// Why a chunk or an end is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpeechRefusal {
    /// A chunk is missing before it.
    Gap { seq: u64, next: u64 },
    /// More fields than may be.
    FieldsTooLong,
    /// The stream is as large as it may be.
    TooLarge,
    /// There is no room for what was received.
    NoRoom,
    /// The gateway has no memory or no descriptor left.
    Shortage,
    /// No stream is open.
    NothingToEnd,
}

impl fmt::Display for SpeechRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SpeechRefusal::Gap { seq, next } => {
                return write!(f, "seq {seq} leaves a gap, the next one is {next}");
            }
            SpeechRefusal::FieldsTooLong => "The further fields of the chunk are too long",
            SpeechRefusal::TooLarge => "Audio too large",
            SpeechRefusal::NoRoom => "No room for the audio",
            SpeechRefusal::Shortage => "Gateway out of resources",
            SpeechRefusal::NothingToEnd => "The task has no audio to end",
        })
    }
}

/// All streams that workers are sending.
pub struct IncomingSpeeches {
    by_task: Table<VecDeque<IncomingSpeech>>,
    /// The streams of those that are kept.
    streams: HashMap<SpeechKey, StreamId>,
    writing: Writing,
    /// The memory that what waits takes.
    waiting: Charge,
    /// The most that it took since memory was last given back.
    waiting_peak: usize,
    /// Streams whose files could not be opened for want of descriptors or memory, and when that is
    /// tried again.
    short: VecDeque<(Moment, SpeechPart)>,
    /// Workers that are not read because too much waits.
    paused: BTreeSet<SessionId>,
    last_serial: u64,
    /// The bytes of the chunk that is being decoded.
    pub(super) decoded: Vec<u8>,
}

/// A stream, or a part of one.
#[derive(Clone, Copy)]
struct SpeechPart {
    task: Uuid,
    serial: u64,
}

/// One stream, from its first chunk to its end.
struct IncomingSpeech {
    serial: u64,
    /// When its first chunk came.
    since: Moment,
    /// Its file could not be opened at once for a shortage.
    is_delayed: bool,
    file: SpeechFile,
    begun: Option<Begun>,
    next_seq: u64,
    /// Bytes that came.
    received: u64,
    /// Bytes that are in the file, or on their way there.
    placed: u64,
    audio_type: Option<Box<str>>,
    /// What came before clients got the stream.
    waiting: Option<Box<WaitingAudio>>,
    /// Chunks that a background thread has to write, or is writing.
    unwritten: u32,
    end: Option<bool>,
}

/// Where the audio of a stream is.
enum SpeechFile {
    /// A background thread is opening the file, or it is opened again in a moment.
    Opening,
    Open(SpoolFile),
    /// What comes is dropped until the stream ends: it could not be kept.
    Nowhere,
}

/// A stream that clients get.
#[derive(Clone, Copy)]
struct Begun {
    key: SpeechKey,
    id: StreamId,
}

/// Audio that waits for its file, or for the streams before it.
#[derive(Default)]
struct WaitingAudio {
    bytes: Vec<u8>,
    /// Lengths and further fields.
    chunks: Vec<(u32, Box<str>)>,
    /// What the chunks take besides their audio.
    chunk_bytes: usize,
}

impl IncomingSpeeches {
    /// No stream yet. What waits for a disk is charged to `budget`.
    pub fn new(budget: &Budget) -> IncomingSpeeches {
        IncomingSpeeches {
            by_task: Table::default(),
            streams: HashMap::new(),
            writing: Writing::default(),
            waiting: budget.charge(0),
            waiting_peak: 0,
            short: VecDeque::new(),
            paused: BTreeSet::new(),
            last_serial: 0,
            decoded: Vec::new(),
        }
    }

    /// Whether a stream of the task is open.
    pub fn is_open(&self, task: Uuid) -> bool {
        self.by_task.entry(task).is_some_and(|queue| queue.iter().any(|it| it.end.is_none()))
    }

    /// Whether chunks of a stream wait for a background thread.
    fn is_unwritten(&self, task: Uuid, id: StreamId) -> bool {
        let is_meant = |speech: &&IncomingSpeech| speech.begun.is_some_and(|begun| begun.id == id);
        let speeches = self.by_task.entry(task).into_iter().flatten();
        speeches.filter(is_meant).any(|speech| speech.unwritten > 0)
    }

    /// Whether so much waits for a disk that workers are not to be read.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.bytes() > WAITING_BYTES_MAX
    }

    /// Has the worker driven again once fewer bytes wait.
    pub(super) fn pause(&mut self, worker: SessionId) {
        self.paused.insert(worker);
    }

    /// Whether workers are not read because too much waits.
    #[inline]
    pub fn has_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    /// The next worker that can be read again.
    pub fn poll_resumed(&mut self) -> Option<SessionId> {
        if self.is_full() { None } else { self.paused.pop_first() }
    }

    /// A worker is gone: forgets what it sent too much of.
    pub(in crate::session) fn forget_dropped(&mut self, task: Uuid) {
        if let Some(queue) = self.by_task.entry_mut(task) {
            queue.retain(|speech| !matches!(speech.file, SpeechFile::Nowhere));
            self.forget_if_empty(task);
        }
    }

    /// The task was stopped: what is not delivered is dropped.
    pub fn stop(&mut self, task: Uuid) {
        if let Some(slot) = self.by_task.find(task) {
            let queue = self.by_task.remove(slot);
            self.release(queue.iter().map(IncomingSpeech::waiting_bytes).sum());
        }
    }

    /// The stream of a result that is not kept any more.
    pub fn take_stream(&mut self, key: SpeechKey) -> Option<StreamId> {
        self.streams.remove(&key)
    }

    /// The stream of a result.
    pub fn stream(&self, key: SpeechKey) -> Option<StreamId> {
        self.streams.get(&key).copied()
    }

    /// This much more waits for a disk.
    fn hold(&mut self, bytes: usize) {
        self.waiting.set(self.waiting.bytes() + bytes);
        self.waiting_peak = self.waiting_peak.max(self.waiting.bytes());
    }

    /// This much less waits for a disk.
    fn release(&mut self, bytes: usize) {
        self.waiting.set(self.waiting.bytes() - bytes);
    }

    /// Whether nearly all of very much has been written since the last time. What it took lies
    /// between streams that have begun meanwhile, so the allocator cannot give it back by itself.
    fn take_drained(&mut self) -> bool {
        let is_drained =
            self.waiting_peak >= DRAINED_FROM && self.waiting.bytes() <= self.waiting_peak / 8;
        if is_drained {
            self.waiting_peak = self.waiting.bytes();
        }
        is_drained
    }

    fn forget_if_empty(&mut self, task: Uuid) {
        if let Some(slot) = self.by_task.find(task)
            && self.by_task[slot].is_empty()
        {
            self.by_task.remove(slot);
        }
    }

    fn speech(&mut self, part: SpeechPart) -> Option<&mut IncomingSpeech> {
        find(&mut self.by_task, part)
    }
}

fn find(
    by_task: &mut Table<VecDeque<IncomingSpeech>>,
    part: SpeechPart,
) -> Option<&mut IncomingSpeech> {
    let queue = by_task.entry_mut(part.task)?;
    queue.iter_mut().find(|speech| speech.serial == part.serial)
}

impl IncomingSpeech {
    /// The memory that what waits for it takes.
    fn waiting_bytes(&self) -> usize {
        let waiting = self.waiting.as_ref();
        waiting.map_or(0, |waiting| waiting.bytes.len() + waiting.chunk_bytes)
    }

    /// A chunk waits. Returns the memory that it takes.
    fn push_waiting(&mut self, chunk: ReceivedChunk<'_>) -> usize {
        let waiting = self.waiting.get_or_insert_default();
        let chunk_bytes = size_of::<(u32, Box<str>)>() + chunk.fields.len();
        waiting.bytes.extend_from_slice(chunk.bytes);
        waiting.chunks.push((chunk.bytes.len() as u32, chunk.fields));
        waiting.chunk_bytes += chunk_bytes;
        chunk.bytes.len() + chunk_bytes
    }
}

impl Context {
    /// A chunk has come. A repeated one, and one for a task that was stopped, is dropped.
    pub(super) fn receive(
        &mut self,
        worker: SessionId,
        chunk: ReceivedChunk<'_>,
    ) -> Result<(), SpeechRefusal> {
        let task = chunk.task.uuid();
        if self.results.tasks().is_stopped(task) {
            self.results.note_dropped();
            return Ok(());
        }
        self.feeds.note(worker, &chunk.task);
        if chunk.fields.len() > FIELDS_BYTES_MAX {
            return Err(SpeechRefusal::FieldsTooLong);
        }
        if chunk.seq == Some(0) {
            self.speech.forget_dropped(task);
        }
        let queue = self.speech.by_task.entry_mut(task);
        let current = queue.and_then(|queue| queue.back()).filter(|last| last.end.is_none());
        let (next, received) = match current {
            Some(IncomingSpeech { file: SpeechFile::Nowhere, .. }) => return Ok(()),
            Some(current) => (current.next_seq, current.received),
            None => (0, 0),
        };
        match chunk.seq.unwrap_or(next) {
            seq if seq > next => return Err(SpeechRefusal::Gap { seq, next }),
            seq if seq < next => return Ok(()),
            _ => {}
        }
        if current.is_none() {
            self.open_speech(&chunk)?;
        }
        if received + chunk.bytes.len() as u64 > self.settings.output.max_audio {
            return Err(self.drop_speech(task, SpeechRefusal::TooLarge));
        }
        if self.budget.refuses(chunk.bytes.len() + chunk.fields.len()) {
            return Err(self.drop_speech(task, SpeechRefusal::Shortage));
        }
        self.stats.speech_chunks += 1;
        self.stats.speech_bytes += chunk.bytes.len() as u64;
        self.push_chunk(chunk)
    }

    /// The worker has sent everything of the stream.
    pub(super) fn end_speech(
        &mut self,
        worker: SessionId,
        task: &TaskId,
        is_final: bool,
    ) -> Result<(), SpeechRefusal> {
        let uuid = task.uuid();
        if self.results.tasks().is_stopped(uuid) {
            self.results.note_dropped();
            return Ok(());
        }
        self.feeds.note(worker, task);
        let last = self.speech.by_task.entry_mut(uuid).and_then(VecDeque::back_mut);
        match last.filter(|last| last.end.is_none()) {
            None => Err(SpeechRefusal::NothingToEnd),
            Some(IncomingSpeech { file: SpeechFile::Nowhere, .. }) => {
                self.speech.forget_dropped(uuid);
                Ok(())
            }
            Some(last) => {
                last.end = Some(is_final);
                if is_final {
                    self.feeds.forget(uuid);
                }
                self.advance(uuid)
            }
        }
    }

    /// It is time to see whether a stream has stalled. What waits here for a disk, or is not read
    /// because too much does, is no silence of a worker.
    pub fn judge_speech(&mut self, id: StreamId) {
        let Some(task) = self.streams.stream(id).map(|stream| stream.task()) else { return };
        if self.speech.is_full() || self.speech.is_unwritten(task, id) {
            self.streams.put_off_stall(self.now, id);
        }
        let rules = self.stream_rules();
        self.streams.judge_speech(self.now, id, &rules);
    }

    /// A stream grows no longer, for whatever reason.
    pub fn handle_speech_finished(&mut self, task: Uuid, id: StreamId, has_stalled: bool) {
        let Some(queue) = self.speech.by_task.entry_mut(task) else { return };
        let is_meant = |speech: &IncomingSpeech| speech.begun.is_some_and(|begun| begun.id == id);
        if let Some(place) = queue.iter().position(is_meant)
            && let Some(speech) = queue.remove(place)
        {
            self.speech.release(speech.waiting_bytes());
            self.speech.forget_if_empty(task);
            if let Some(begun) = speech.begun {
                self.results.end_speech(self.now, begun.key);
            }
            if has_stalled {
                self.feeds.notify(task, WorkerNotice::Error(StreamFailure::Stalled.words()));
            }
        }
        // The next one of the task may begin.
        if let Err(refusal) = self.advance(task) {
            self.tell(task, refusal);
        }
    }

    fn tell(&mut self, task: Uuid, refusal: SpeechRefusal) {
        let words = match refusal {
            SpeechRefusal::NoRoom => "No room for the audio",
            SpeechRefusal::TooLarge => "Audio too large",
            _ => "Gateway out of resources",
        };
        self.feeds.notify(task, WorkerNotice::Error(words));
    }

    /// The first chunk of a stream has come.
    fn open_speech(&mut self, chunk: &ReceivedChunk<'_>) -> Result<(), SpeechRefusal> {
        let task = chunk.task.uuid();
        self.speech.last_serial += 1;
        let serial = self.speech.last_serial;
        let slot = self.speech.by_task.find_or_insert_with(task, || VecDeque::with_capacity(1));
        let queue = &mut self.speech.by_task[slot];
        let spool = &self.settings.output.spool;
        let mut shortage = None;
        let file = match () {
            () if queue.len() >= QUEUE_MAX => return Err(SpeechRefusal::Shortage),
            () if spool.as_os_str().is_empty() => match SpoolFile::in_memory() {
                Ok(file) => SpeechFile::Open(file),
                Err(OpenError::Shortage(errno)) => {
                    shortage = Some(errno);
                    SpeechFile::Opening
                }
                Err(error) => {
                    warn!(target: "ingest", "no memory for speech why={error:?} task={task}");
                    self.speech.forget_if_empty(task);
                    return Err(SpeechRefusal::Shortage);
                }
            },
            () => {
                let request = SpoolRequest::new(spool);
                self.jobs.push_back(Job::File(FileJob::OpenSpool { request, task, serial }));
                SpeechFile::Opening
            }
        };
        queue.push_back(IncomingSpeech {
            serial,
            since: self.now,
            is_delayed: false,
            file,
            begun: None,
            next_seq: 0,
            received: 0,
            placed: 0,
            audio_type: chunk.audio_type.clone(),
            waiting: None,
            unwritten: 0,
            end: None,
        });
        if let Some(errno) = shortage {
            self.delay_speech(SpeechPart { task, serial }, errno);
        }
        Ok(())
    }

    /// Adds a chunk to the last stream of its task.
    fn push_chunk(&mut self, chunk: ReceivedChunk<'_>) -> Result<(), SpeechRefusal> {
        let task = chunk.task.uuid();
        let length = chunk.bytes.len();
        let Some(queue) = self.speech.by_task.entry_mut(task) else { return Ok(()) };
        let is_first = queue.len() == 1;
        let Some(speech) = queue.back_mut() else { return Ok(()) };
        speech.next_seq += 1;
        speech.received += length as u64;
        let part = SpeechPart { task, serial: speech.serial };
        match speech.begun.filter(|_| is_first) {
            // The usual case: clients get the stream.
            Some(begun) => {
                if !self.results.grow_speech(self.now, begun.key, (length, chunk.fields.len())) {
                    return Err(self.drop_speech(task, SpeechRefusal::NoRoom));
                }
                self.write_chunk(part, chunk.bytes, chunk.fields)
            }
            None => {
                let held = speech.push_waiting(chunk);
                self.speech.hold(held);
                self.advance(task)
            }
        }
    }

    /// Goes on with the streams of a task, in their order, as far as nothing has to be waited for.
    fn advance(&mut self, task: Uuid) -> Result<(), SpeechRefusal> {
        // It was stopped in this turn, and what waits is about to be dropped: nothing of it begins.
        if self.results.tasks().is_stopped(task) {
            return Ok(());
        }
        loop {
            let Some(queue) = self.speech.by_task.entry_mut(task) else { return Ok(()) };
            let Some(first) = queue.front_mut() else {
                self.speech.forget_if_empty(task);
                return Ok(());
            };
            match first.file {
                SpeechFile::Opening => return Ok(()),
                SpeechFile::Nowhere if first.end.is_none() => return Ok(()),
                SpeechFile::Nowhere => {
                    queue.pop_front();
                    continue;
                }
                SpeechFile::Open(_) => {}
            }
            let serial = first.serial;
            if first.begun.is_none() {
                self.begin_speech(SpeechPart { task, serial })?;
                continue;
            }
            if first.waiting.is_some() {
                self.write_waiting(SpeechPart { task, serial })?;
                continue;
            }
            if first.unwritten > 0 {
                return Ok(());
            }
            let (Some(is_final), Some(begun)) = (first.end, first.begun) else { return Ok(()) };
            queue.pop_front();
            self.speech.forget_if_empty(task);
            if is_final {
                self.results.note_final_speech(task);
            }
            self.streams.complete_speech(begun.id, is_final);
            self.results.end_speech(self.now, begun.key);
        }
    }

    /// The stream gets its number among the results of its task, and its clients.
    fn begin_speech(&mut self, part: SpeechPart) -> Result<(), SpeechRefusal> {
        let Some(speech) = self.speech.speech(part) else { return Ok(()) };
        let SpeechFile::Open(file) = &speech.file else { return Ok(()) };
        let named = speech.audio_type.take();
        let nothing = WaitingAudio::default();
        let waiting = speech.waiting.as_deref().unwrap_or(&nothing);
        let found = media::by_first_bytes(&waiting.bytes).filter(|it| *it == "audio/wav");
        let audio_type = named.unwrap_or_else(|| found.unwrap_or(UNKNOWN_TYPE).into());
        let file = file.file().clone();
        let fields = waiting.chunks.iter().map(|(_, fields)| fields.len()).sum();
        let audio = waiting.bytes.len();
        let is_in_memory = self.settings.output.spool.as_os_str().is_empty();
        let store = if is_in_memory { SpeechStore::Memory } else { SpeechStore::Spool };
        let Some((key, result_id)) = self.results.begin_speech(self.now, part.task, store) else {
            return Err(self.drop_serial(part, SpeechRefusal::NoRoom));
        };
        let rules = self.stream_rules();
        let result = (part.task, result_id);
        let id = self.streams.begin_speech(self.now, result, file, audio_type, &rules);
        self.speech.streams.insert(key, id);
        if let Some(speech) = self.speech.speech(part) {
            speech.begun = Some(Begun { key, id });
        }
        self.results.announce_speech(self.now, part.task);
        match self.results.grow_speech(self.now, key, (audio, fields)) {
            true => Ok(()),
            false => Err(self.drop_serial(part, SpeechRefusal::NoRoom)),
        }
    }

    /// Nothing more of the last stream of a task is taken, for this reason.
    fn drop_speech(&mut self, task: Uuid, refusal: SpeechRefusal) -> SpeechRefusal {
        let last = self.speech.by_task.entry(task).and_then(VecDeque::back);
        match last.map(|speech| speech.serial) {
            Some(serial) => self.drop_serial(SpeechPart { task, serial }, refusal),
            None => refusal,
        }
    }

    fn drop_for_error(&mut self, part: SpeechPart, error: &io::Error) -> SpeechRefusal {
        let folder = self.settings.output.spool.display();
        warn!(target: "ingest", "cannot write speech folder={folder} why={} task={}", Quoted(error), part.task);
        self.drop_serial(part, SpeechRefusal::NoRoom)
    }

    /// Nothing more of a stream is taken, and what comes until its end is dropped. Clients get what
    /// was received, and the reason.
    fn drop_serial(&mut self, part: SpeechPart, refusal: SpeechRefusal) -> SpeechRefusal {
        let Some(speech) = self.speech.speech(part) else { return refusal };
        let waiting_bytes = speech.waiting_bytes();
        let begun = speech.begun.take();
        // What a background thread has yet to write stays in memory until it has.
        (speech.waiting, speech.unwritten) = (None, 0);
        speech.file = SpeechFile::Nowhere;
        self.speech.release(waiting_bytes);
        warn!(target: "ingest", "speech dropped why=\"{refusal}\" task={}", part.task);
        if let Some(begun) = begun {
            self.streams.fail_speech(begun.id, StreamFailure::TooLarge);
            self.results.end_speech(self.now, begun.key);
        }
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::streams::StreamState;
    use crate::session::{self, Identity, testing};
    use rustix::io::Errno;
    use std::path::PathBuf;

    fn worker() -> SessionId {
        Identity { key: 1, ..Identity::of_client() }.id()
    }

    fn task() -> TaskId {
        TaskId::from(Uuid::from_u128(7))
    }

    fn context() -> Context {
        let output = session::output::Settings {
            spool: PathBuf::from("/nowhere"),
            ..session::output::Settings::default()
        };
        testing::context(session::Settings { output, ..session::Settings::default() })
    }

    fn receive(cx: &mut Context, fields: &str, bytes: &[u8]) -> Result<(), SpeechRefusal> {
        let (task, fields) = (task(), fields.into());
        cx.receive(worker(), ReceivedChunk { task, seq: None, audio_type: None, fields, bytes })
    }

    #[test]
    fn speech_waits_for_its_file_while_descriptors_have_run_out() {
        let mut cx = context();
        let began = cx.now;
        assert_eq!(receive(&mut cx, "", b"first"), Ok(()));
        let mut asked = 0;
        while cx.jobs.pop_front().is_some() {
            asked += 1;
            let shortage = Err(OpenError::Shortage(Errno::MFILE));
            cx.handle_spool_opened(task().uuid(), 1, shortage);
            assert_eq!(receive(&mut cx, "", b"more"), Ok(()), "no gap");
            if let Some(at) = cx.speech.open_again_at() {
                assert!(!cx.feeds.has_notices(), "it may still succeed");
                cx.now = at;
                cx.open_speech_again();
            }
        }
        assert_eq!((asked, cx.now), (101, began + opening::TIMEOUT));
        let notice = cx.feeds.poll_notice().map(|pending| pending.notice);
        assert_eq!(notice, Some(WorkerNotice::Error("Gateway out of resources")));
        assert_eq!(cx.speech.waiting.bytes(), 0);
    }

    /// The disk is slow: the file of the stream is not open yet.
    #[test]
    fn workers_are_not_read_while_the_fields_of_their_chunks_wait_for_a_disk() {
        let mut cx = context();
        let fields = "f".repeat(60_000);
        let before = cx.budget.held();
        let mut sent = 0;
        while !cx.speech.is_full() {
            assert_eq!(receive(&mut cx, &fields, b""), Ok(()));
            sent += fields.len();
            assert!(sent <= WAITING_BYTES_MAX + fields.len(), "{sent} bytes of fields wait");
        }
        assert!(cx.budget.held() - before >= sent, "they are counted");
        cx.speech.stop(task().uuid());
        assert_eq!((cx.budget.held(), cx.speech.is_full()), (before, false));
    }

    /// The file takes two chunks and a part of the third one.
    #[test]
    fn clients_get_the_chunks_that_fit_a_full_disk() {
        for in_background in [false, true] {
            let mut cx = context();
            for _ in 0..4 {
                receive(&mut cx, "", &[7; 3000]).unwrap();
            }
            let file = SpoolFile::with_room(8192).unwrap();
            let file = if in_background { file.in_background() } else { file };
            cx.handle_spool_opened(task().uuid(), 1, Ok(file));
            let id = *cx.speech.streams.values().next().unwrap();
            let chunks = |cx: &Context| cx.streams.stream(id).unwrap().chunks().count();
            let at_once = if in_background { 0 } else { 2 };
            assert_eq!(chunks(&cx), at_once, "they do not wait for the rest");
            let Some(FileJob::WriteSpool(writes)) = cx.speech.begin_write() else {
                panic!("no job")
            };
            cx.handle_spool_written(writes.run());
            assert_eq!(chunks(&cx), 2);
            let is_open = cx.speech.is_open(task().uuid());
            assert_eq!((cx.speech.waiting.bytes(), is_open), (0, true));
            assert_eq!(receive(&mut cx, "", &[7; 3000]), Ok(()), "the rest is dropped");
        }
    }

    #[test]
    fn a_slow_disk_is_no_silence_of_the_worker() {
        let mut cx = context();
        receive(&mut cx, "", &[7; 3000]).unwrap();
        let file = SpoolFile::with_room(8192).unwrap().in_background();
        cx.handle_spool_opened(task().uuid(), 1, Ok(file));
        let id = *cx.speech.streams.values().next().unwrap();
        let Some(FileJob::WriteSpool(writes)) = cx.speech.begin_write() else { panic!("no job") };
        let stall = cx.settings.output.audio_stall.unwrap();
        let state = |cx: &Context| cx.streams.stream(id).unwrap().state();
        for _ in 0..3 {
            cx.now += stall;
            cx.judge_speech(id);
            assert_eq!(state(&cx), StreamState::Open, "the chunk is not written yet");
        }
        cx.handle_spool_written(writes.run());
        assert_eq!(cx.streams.stream(id).unwrap().chunks().count(), 1);
        cx.now += stall;
        cx.judge_speech(id);
        assert_eq!(state(&cx), StreamState::Failed(StreamFailure::Stalled), "now it is one");
    }

    #[test]
    fn memory_is_given_back_once_after_much_has_waited() {
        let speech = &mut context().speech;
        speech.hold(DRAINED_FROM - 1);
        speech.release(DRAINED_FROM - 1);
        assert!(!speech.take_drained(), "it was little");
        speech.hold(DRAINED_FROM);
        assert!(!speech.take_drained(), "all of it still waits");
        speech.release(DRAINED_FROM / 8 * 7);
        assert_eq!((speech.take_drained(), speech.take_drained()), (true, false));
    }

    #[test]
    fn chunks_without_anything_in_them_wait_in_a_bounded_number() {
        let mut cx = context();
        let mut sent = 0;
        while !cx.speech.is_full() {
            assert_eq!(receive(&mut cx, "", b""), Ok(()));
            sent += 1;
            assert!(sent <= WAITING_BYTES_MAX / size_of::<(u32, Box<str>)>() + 1);
        }
        let refusal = cx.drop_speech(task().uuid(), SpeechRefusal::NoRoom);
        assert_eq!(refusal, SpeechRefusal::NoRoom);
        assert_eq!(cx.speech.waiting.bytes(), 0);
    }
}
