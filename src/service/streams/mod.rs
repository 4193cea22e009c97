//! Audio that is still being made, shared by all clients of its task.
//!
//! ```text
//! begin ─► Open ── grows ─► Open ── its end is known ─► Ended
//!            └── no growth, rewritten, too large ─────► Failed
//! ```
//!
//! A *stream* is the audio of one result while it grows: the file that it is in, the boundaries of
//! its chunks, and how it stands. Its source is a file that a worker appends to, or a file of the
//! gateway's own that takes what a worker pushes; for the clients there is no difference. A client
//! that is there while the stream grows, one that comes late and one that returns all read the same
//! file, chunk by chunk, from wherever they are. One that has everything waits in the stream and is
//! woken when that grows or ends.
//!
//! The file that was opened is the one that is delivered, whatever becomes of its name. So a stream
//! keeps it open, also after its end, for clients that return. Of streams that have ended and that
//! no client reads, `IDLE_MAX` are kept.
//!
//! `K` identifies a client, `F` is an open file. Nothing here reads a file or a clock: whoever does
//! says what it saw, by [`Streams::handle_file`].

mod chunks;
mod speech;
mod state;

pub use chunks::{Chunks, Cursor, Piece};
pub use state::{
    FinishedStream, NewStream, SeenFile, StreamFailure, StreamRules, StreamSource, StreamState,
    StreamVerdict,
};

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;
use uuid::Uuid;

use crate::base::budget::{Budget, Charge};
use crate::base::moment::Moment;
use crate::base::timers::Timers;

/// Streams that have ended, that no client reads, and whose files are still open. The one that was
/// read the longest time ago is forgotten first: a client that returns for it then opens the file
/// anew.
const IDLE_MAX: usize = 1024;

/// How often a file is looked at while a client waits for it to grow and nothing else reports that.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// How often it is looked at otherwise, in case a report was lost.
const SLOW_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// All streams.
#[derive(Debug)]
pub struct Streams<K, F> {
    streams: Slab<Stream<K, F>>,
    /// Slots, by their tasks: in a `HashMap`, an entry would take ten times as much.
    by_task: HashTable<u32>,
    /// Randomly keyed, because the UUIDs come from outside.
    hashes: RandomState,
    /// When streams have to be looked at, by their slots.
    timers: Timers,
    /// Slots of streams that have to be looked at now, each once.
    due: VecDeque<StreamId>,
    /// Clients for which there is news.
    woken: VecDeque<K>,
    /// Streams that grow no longer, to be reported.
    finished: VecDeque<FinishedStream>,
    /// Streams that have ended and that no client reads, the longest time ago first. Some are in
    /// use again, or gone.
    idle: VecDeque<StreamId>,
    last_serial: u32,
    budget: Budget,
}

/// Identifies a stream: no other one ever has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId {
    slot: u32,
    serial: u32,
}

impl StreamId {
    /// The same as one number.
    pub fn number(self) -> u64 {
        u64::from(self.serial) << 32 | u64::from(self.slot)
    }
}

/// One stream.
#[derive(Debug)]
pub struct Stream<K, F> {
    id: StreamId,
    task: Uuid,
    result_id: u32,
    source: StreamSource,
    state: StreamState,
    file: F,
    /// As the worker wrote it.
    name: Box<Path>,
    audio_type: Option<&'static str>,
    /// For speech that the gateway receives.
    speech: Option<Box<speech::SpeechDetails>>,
    chunks: Chunks,
    /// When the file last changed, by its own clock.
    modified: SystemTime,
    /// When it began, or last grew.
    grown_at: Moment,
    has_grown: bool,
    /// The numbers of the last look at the file that was begun, and of the last that is done.
    look_begun: u32,
    look_done: u32,
    look: Look,
    /// The worker has marked the file as complete. The next look finds the rest of its bytes.
    is_complete: bool,
    /// It was reported that the file had been written to: reports can be relied on.
    is_reported: bool,
    is_due: bool,
    /// Clients that read it.
    readers: u32,
    /// Clients may have chunks of this result that are not of this stream.
    is_second: bool,
    /// Clients that have everything, and may have left.
    waiting: SmallVec<[K; 1]>,
    /// Times that those were woken.
    wakes: u32,
    charge: Charge,
}

/// Whether a background thread looks at the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Idle,
    UnderWay,
    /// And it has to be looked at again, because something has happened since.
    UnderWayAndAgain,
}

impl<K, F> Stream<K, F> {
    /// What identifies it.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// Whose audio it is.
    pub fn task(&self) -> Uuid {
        self.task
    }

    /// The result that it is the audio of.
    pub fn result_id(&self) -> u32 {
        self.result_id
    }

    /// Where its bytes come from.
    pub fn source(&self) -> StreamSource {
        self.source
    }

    /// How it stands.
    pub fn state(&self) -> StreamState {
        self.state
    }

    /// What its bytes are in.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// The name of the file as the worker wrote it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Its media type, where that is known.
    pub fn audio_type(&self) -> Option<&'static str> {
        self.audio_type
    }

    /// What has come of it.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// The file as it was last seen.
    pub fn seen(&self) -> SeenFile {
        SeenFile { length: self.chunks.length(), modified: self.modified }
    }

    /// Its chunks in all, where that is known.
    pub fn total_chunks(&self, now: Moment, rules: &StreamRules) -> Option<u64> {
        let is_known = match (self.state, self.source) {
            (StreamState::Ended, _) => true,
            (StreamState::Open, StreamSource::YoungFile) => {
                !self.has_grown || self.is_still(now, rules)
            }
            (StreamState::Open | StreamState::Failed(_), _) => false,
        };
        is_known.then_some(self.chunks.count())
    }

    /// Whether it has grown since it began.
    pub fn has_grown(&self) -> bool {
        self.has_grown
    }

    /// Whether the look that [`Streams::ask_look`] gave this number is done, or a later one.
    pub fn has_looked(&self, number: u32) -> bool {
        self.look_done >= number
    }

    /// The file is as it was last seen.
    pub fn is_as(&self, seen: SeenFile) -> bool {
        seen.length == self.chunks.length() && seen.modified == self.modified
    }

    /// Whether clients may have chunks of this result that are not of this stream: their numbers
    /// say nothing about it.
    pub fn is_second(&self) -> bool {
        self.is_second
    }

    /// A young file that has changed: what its name leads to now is another recording.
    fn is_spoiled(&self) -> bool {
        self.source == StreamSource::YoungFile && matches!(self.state, StreamState::Failed(_))
    }

    /// What a client that has everything is to do.
    pub fn verdict(&self, now: Moment, rules: &StreamRules) -> StreamVerdict {
        match (self.state, self.source) {
            (StreamState::Ended, _) => StreamVerdict::Complete,
            (StreamState::Failed(failure), _) => StreamVerdict::Failed(failure),
            (StreamState::Open, StreamSource::YoungFile)
                if !self.has_grown || self.is_still(now, rules) =>
            {
                StreamVerdict::Complete
            }
            (StreamState::Open, _) => StreamVerdict::Wait,
        }
    }

    fn is_still(&self, now: Moment, rules: &StreamRules) -> bool {
        self.grown_at + rules.wait <= now
    }

    /// When it is stalled unless it grows.
    fn stalls_at(&self, rules: &StreamRules) -> Option<Moment> {
        match self.source {
            StreamSource::YoungFile => None,
            StreamSource::GrowingFile | StreamSource::Speech => {
                rules.stall.map(|stall| self.grown_at + stall)
            }
        }
    }

    /// When it has to be looked at even if nothing is reported.
    fn look_at(&self, now: Moment, rules: &StreamRules) -> Option<Moment> {
        if self.state != StreamState::Open || self.look != Look::Idle {
            return None;
        }
        let is_awaited = !self.waiting.is_empty();
        let interval = match self.source {
            StreamSource::YoungFile if !is_awaited => return None,
            StreamSource::Speech => return self.stalls_at(rules),
            _ if is_awaited && !self.is_reported => LOOK_INTERVAL,
            _ => SLOW_LOOK_INTERVAL,
        };
        let still_at = match self.source {
            StreamSource::YoungFile => Some(self.grown_at + rules.wait),
            StreamSource::GrowingFile | StreamSource::Speech => None,
        };
        Moment::earliest([Some(now + interval), self.stalls_at(rules), still_at])
    }
}

impl<K: Copy, F> Streams<K, F> {
    /// No stream yet. What they hold is charged to `budget`.
    pub fn new(budget: &Budget) -> Streams<K, F> {
        Streams {
            streams: Slab::new(),
            by_task: HashTable::new(),
            hashes: RandomState::new(),
            timers: Timers::new(),
            due: VecDeque::new(),
            woken: VecDeque::new(),
            finished: VecDeque::new(),
            idle: VecDeque::new(),
            last_serial: 0,
            budget: budget.clone(),
        }
    }

    /// Begins a stream whose file has been `seen` like this.
    pub fn begin(
        &mut self,
        now: Moment,
        new: NewStream<'_, F>,
        seen: SeenFile,
        rules: &StreamRules,
    ) -> StreamId {
        let NewStream { task, result_id, source, file, name, audio_type, is_second } = new;
        self.last_serial = self.last_serial.wrapping_add(1);
        let id = StreamId { slot: self.streams.vacant_key() as u32, serial: self.last_serial };
        let mut chunks = Chunks::default();
        chunks.push_bytes(seen.length, rules.chunk_size);
        let own_bytes = size_of::<Stream<K, F>>() + name.as_os_str().len();
        self.streams.insert(Stream {
            id,
            task,
            result_id,
            source,
            state: StreamState::Open,
            file,
            name: name.into(),
            audio_type,
            speech: None,
            charge: self.budget.charge(own_bytes + chunks.bytes()),
            chunks,
            modified: seen.modified,
            grown_at: now,
            has_grown: false,
            look_begun: 0,
            look_done: 0,
            look: Look::Idle,
            is_complete: false,
            is_reported: false,
            is_due: false,
            readers: 0,
            is_second,
            waiting: SmallVec::new(),
            wakes: 0,
        });
        let Streams { streams, by_task, hashes, .. } = self;
        by_task.insert_unique(hashes.hash_one(task), id.slot, |slot| {
            hashes.hash_one(streams[*slot as usize].task)
        });
        self.arm(now, id, rules);
        id
    }

    /// The number of streams.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// The stream of a result: the latest, as a young file may have become another one. One whose
    /// file has changed is of no use to further clients.
    pub fn find(&self, task: Uuid, result_id: u32) -> Option<StreamId> {
        let is_of_use =
            |stream: &&Stream<K, F>| stream.result_id == result_id && !stream.is_spoiled();
        let newest = self.of_task(task).filter(is_of_use).max_by_key(|stream| stream.id.serial);
        newest.map(Stream::id)
    }

    /// The streams of a task.
    pub fn of_task(&self, task: Uuid) -> impl Iterator<Item = &Stream<K, F>> {
        let slots = self.by_task.iter_hash(self.hashes.hash_one(task));
        let streams = slots.filter_map(|slot| self.streams.get(*slot as usize));
        streams.filter(move |stream| stream.task == task)
    }

    /// Whether the worker of a task is still making audio. A file that was published too early does
    /// not say so: it is probably finished.
    pub fn is_speaking(&self, task: Uuid) -> bool {
        let is_open = |it: &Stream<K, F>| {
            it.state == StreamState::Open && it.source != StreamSource::YoungFile
        };
        self.of_task(task).any(is_open)
    }

    /// A stream, unless it is gone.
    pub fn stream(&self, id: StreamId) -> Option<&Stream<K, F>> {
        self.streams.get(id.slot as usize).filter(|stream| stream.id == id)
    }

    fn stream_mut(&mut self, id: StreamId) -> Option<&mut Stream<K, F>> {
        self.streams.get_mut(id.slot as usize).filter(|stream| stream.id == id)
    }

    /// A client reads it from now on, until [`Streams::leave`].
    pub fn enter(&mut self, id: StreamId) {
        if let Some(stream) = self.stream_mut(id) {
            stream.readers += 1;
        }
    }

    /// A client that read it does so no longer.
    pub fn leave(&mut self, id: StreamId) {
        let Some(stream) = self.stream_mut(id) else { return };
        stream.readers -= 1;
        if stream.readers > 0 {
            return;
        }
        if stream.is_gone_speech() {
            return self.remove(id);
        }
        match (stream.source, stream.state) {
            // Whoever comes later finds the same chunks in a file that is finished.
            (StreamSource::YoungFile, _) if !stream.has_grown => self.remove(id),
            _ if stream.is_spoiled() => self.remove(id),
            (StreamSource::GrowingFile, StreamState::Open) => {}
            _ => self.rest(id),
        }
    }

    /// It has ended and is not read. Forgets the one that has been so for the longest time, if
    /// there are too many.
    fn rest(&mut self, id: StreamId) {
        if self.stream(id).is_some_and(Stream::is_speech) {
            return;
        }
        self.idle.retain(|other| *other != id);
        self.idle.push_back(id);
        if self.idle.len() > IDLE_MAX
            && let Some(oldest) = self.idle.pop_front()
            && self.stream(oldest).is_some_and(|stream| stream.readers == 0)
        {
            self.remove(oldest);
        }
    }

    /// A client has everything: it is woken when there is news. `since` is what this returned to
    /// the same client before, or `None`.
    pub fn wait(
        &mut self,
        now: Moment,
        id: StreamId,
        client: K,
        since: Option<u32>,
        rules: &StreamRules,
    ) -> Option<u32> {
        let stream = self.stream_mut(id)?;
        let wakes = stream.wakes;
        if since != Some(wakes) {
            let is_first = stream.waiting.is_empty();
            stream.waiting.push(client);
            if is_first {
                self.arm(now, id, rules);
            }
        }
        Some(wakes)
    }

    /// The next client for which there is news. It may have left.
    pub fn poll_woken(&mut self) -> Option<K> {
        self.woken.pop_front()
    }

    /// The next stream that grows no longer.
    pub fn poll_finished(&mut self) -> Option<FinishedStream> {
        self.finished.pop_front()
    }

    /// Whether one of the `poll_` functions has something, other than by time.
    pub fn has_news(&self) -> bool {
        !self.woken.is_empty() || !self.due.is_empty() || !self.finished.is_empty()
    }

    /// The file of the stream with this [`StreamId::number`] was reported to have been written to.
    pub fn handle_report(&mut self, number: u64) {
        let slot = number as u32 as usize;
        if let Some(stream) = self.streams.get_mut(slot)
            && stream.id.number() == number
        {
            stream.is_reported = true;
            self.look_soon(slot);
        }
    }

    /// Whether there is no stream, and nothing to be reported of one.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.finished.is_empty() && self.woken.is_empty()
    }

    /// Forgets streams that have ended, that no client reads, and whose results are not kept.
    pub fn forget_unless(&mut self, is_kept: impl Fn(Uuid, u32) -> bool) {
        let idle = std::mem::take(&mut self.idle);
        for id in idle {
            match self.stream(id) {
                Some(stream) if stream.readers > 0 => {}
                Some(stream) if is_kept(stream.task, stream.result_id) => self.idle.push_back(id),
                Some(_) => self.remove(id),
                None => {}
            }
        }
    }

    /// Whether [`Streams::forget_unless`] has something to look at.
    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// The worker has said that the file is complete.
    pub fn complete(&mut self, id: StreamId) {
        if let Some(stream) = self.stream_mut(id) {
            stream.is_complete = true;
            self.look_soon(id.slot as usize);
        }
    }

    /// Has the file looked at in this turn, or once the look that is under way is done. Returns the
    /// number of that look.
    pub fn ask_look(&mut self, id: StreamId) -> u32 {
        let Some(stream) = self.stream(id) else { return 0 };
        let number = stream.look_begun.saturating_add(1);
        self.look_soon(id.slot as usize);
        number
    }

    fn look_soon(&mut self, slot: usize) {
        if let Some(stream) = self.streams.get_mut(slot)
            && !std::mem::replace(&mut stream.is_due, true)
        {
            self.due.push_back(stream.id);
        }
    }

    /// When [`Streams::poll_due`] has something at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// The next stream whose file has to be looked at; call [`Streams::handle_file`] with what was
    /// seen, or [`Streams::begin_look`] if that takes time.
    pub fn poll_due(&mut self, now: Moment) -> Option<StreamId> {
        while let Some(slot) = self.timers.pop_due(now) {
            self.look_soon(slot);
        }
        loop {
            let id = self.due.pop_front()?;
            // It may have been forgotten meanwhile.
            let Some(stream) = self.stream_mut(id) else { continue };
            stream.is_due = false;
            match (stream.state, stream.look) {
                (StreamState::Ended | StreamState::Failed(_), _) => {}
                (StreamState::Open, Look::Idle) => return Some(stream.id),
                (StreamState::Open, Look::UnderWay | Look::UnderWayAndAgain) => {
                    stream.look = Look::UnderWayAndAgain;
                }
            }
        }
    }

    /// A background thread looks at the file.
    pub fn begin_look(&mut self, id: StreamId) {
        if let Some(stream) = self.stream_mut(id) {
            stream.look = Look::UnderWay;
            stream.look_begun = stream.look_begun.saturating_add(1);
        }
    }

    /// The file was seen like this; `None`: it cannot be read.
    pub fn handle_file(
        &mut self,
        now: Moment,
        id: StreamId,
        seen: Option<SeenFile>,
        rules: &StreamRules,
    ) {
        let Some(stream) = self.stream_mut(id).filter(|it| it.state == StreamState::Open) else {
            return;
        };
        let look = std::mem::replace(&mut stream.look, Look::Idle);
        if look == Look::Idle {
            stream.look_begun = stream.look_begun.saturating_add(1);
        }
        stream.look_done = stream.look_begun;
        let length = stream.chunks.length();
        let has_grown = match seen {
            None => return self.end(id, StreamState::Failed(StreamFailure::Unreadable)),
            Some(seen) if seen.length < length => {
                return self.end(id, StreamState::Failed(StreamFailure::Changed));
            }
            Some(seen) if seen.length > rules.bytes_max => {
                return self.end(id, StreamState::Failed(StreamFailure::TooLarge));
            }
            Some(seen) if seen.length == length => {
                let is_rewritten = seen.modified != stream.modified;
                if is_rewritten && stream.source == StreamSource::YoungFile {
                    return self.end(id, StreamState::Failed(StreamFailure::Changed));
                }
                stream.modified = seen.modified;
                false
            }
            Some(seen) => {
                let before = stream.chunks.bytes();
                stream.chunks.push_bytes(seen.length - length, rules.chunk_size);
                let after = stream.chunks.bytes();
                if after != before {
                    stream.charge.set(stream.charge.bytes() + after - before);
                }
                (stream.modified, stream.grown_at, stream.has_grown) = (seen.modified, now, true);
                true
            }
        };
        // What was seen before the end was known may be less than the whole.
        let is_current = look != Look::UnderWayAndAgain;
        if stream.is_complete && is_current {
            return self.end(id, StreamState::Ended);
        }
        if !has_grown && is_current && stream.stalls_at(rules).is_some_and(|at| at <= now) {
            return self.end(id, StreamState::Failed(StreamFailure::Stalled));
        }
        if has_grown || stream.source == StreamSource::YoungFile {
            self.wake(id);
        }
        if !is_current {
            self.look_soon(id.slot as usize);
        }
        self.arm(now, id, rules);
    }

    /// A client has read of the file of a stream, which was like this then. That may be longer ago
    /// than it was last seen.
    pub fn handle_read(&mut self, id: StreamId, seen: SeenFile) {
        if let Some(stream) = self.stream(id)
            && stream.state == StreamState::Open
            && stream.source == StreamSource::YoungFile
            && seen.modified > stream.modified
            && seen.length <= stream.chunks.length()
        {
            self.end(id, StreamState::Failed(StreamFailure::Changed));
        }
    }

    /// It does not grow any more.
    fn end(&mut self, id: StreamId, state: StreamState) {
        let Some(stream) = self.stream_mut(id) else { return };
        stream.state = state;
        let is_read = stream.readers > 0;
        let finished = stream.finished();
        self.finished.push_back(finished);
        self.wake(id);
        self.timers.disarm(id.slot as usize);
        if is_read {
            return;
        }
        if self.stream(id).is_some_and(Stream::is_spoiled) {
            self.remove(id);
        } else {
            self.rest(id);
        }
    }

    fn wake(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id.slot as usize) else { return };
        if !stream.waiting.is_empty() {
            stream.wakes = stream.wakes.wrapping_add(1);
            self.woken.extend(stream.waiting.drain(..));
        }
    }

    /// Forgets the streams of a task, and wakes the clients that wait for them.
    pub fn remove_task(&mut self, task: Uuid) {
        let ids: Vec<StreamId> = self.of_task(task).map(Stream::id).collect();
        ids.into_iter().for_each(|id| self.remove(id));
    }

    /// Forgets a stream, and wakes the clients that wait for it.
    pub fn remove(&mut self, id: StreamId) {
        if self.stream(id).is_none() {
            return;
        }
        self.wake(id);
        self.timers.disarm(id.slot as usize);
        let stream = self.streams.remove(id.slot as usize);
        if stream.state == StreamState::Open {
            self.finished.push_back(stream.finished());
        }
        let hash = self.hashes.hash_one(stream.task);
        if let Ok(entry) = self.by_task.find_entry(hash, |slot| *slot == id.slot) {
            entry.remove();
        }
        if self.streams.is_empty() {
            self.streams.shrink_to_fit();
            self.by_task = HashTable::new();
        }
    }

    fn arm(&mut self, now: Moment, id: StreamId, rules: &StreamRules) {
        let at = self.stream(id).and_then(|stream| stream.look_at(now, rules));
        if let Some(at) = at {
            self.timers.arm(id.slot as usize, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Uuid = Uuid::from_u128(7);
    const NOW: Moment = Moment::START;
    const MS: Duration = Duration::from_millis(1);
    const RULES: StreamRules = StreamRules {
        chunk_size: 10,
        bytes_max: 1000,
        stall: Some(Duration::from_secs(10)),
        wait: Duration::from_secs(1),
    };

    fn seen(length: u64) -> SeenFile {
        SeenFile { length, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(length) }
    }

    /// A stream of this many bytes; clients are numbers, and files do not matter.
    fn begun(source: StreamSource, length: u64) -> (Streams<u32, ()>, StreamId) {
        let mut streams = Streams::new(&Budget::default());
        let id = begin(&mut streams, 0, source, length);
        (streams, id)
    }

    fn begin(
        streams: &mut Streams<u32, ()>,
        result_id: u32,
        source: StreamSource,
        length: u64,
    ) -> StreamId {
        let name = Path::new("a.wav");
        let new = NewStream {
            task: TASK,
            result_id,
            source,
            file: (),
            name,
            audio_type: None,
            is_second: false,
        };
        streams.begin(NOW, new, seen(length), &RULES)
    }

    fn woken(streams: &mut Streams<u32, ()>) -> Vec<u32> {
        std::iter::from_fn(|| streams.poll_woken()).collect()
    }

    fn state(streams: &Streams<u32, ()>, id: StreamId) -> StreamState {
        streams.stream(id).unwrap().state()
    }

    #[test]
    fn clients_that_wait_are_woken_once_by_growth_and_by_the_end() {
        let (mut streams, id) = begun(StreamSource::GrowingFile, 25);
        assert_eq!(streams.stream(id).unwrap().chunks().count(), 3);
        assert_eq!(streams.find(TASK, 0), Some(id));
        streams.enter(id);
        let since = streams.wait(NOW, id, 1, None, &RULES);
        assert_eq!(streams.wait(NOW, id, 1, since, &RULES), since, "it waits already");
        streams.wait(NOW, id, 2, None, &RULES);
        streams.handle_file(NOW, id, Some(seen(25)), &RULES);
        assert_eq!(woken(&mut streams), [0; 0], "nothing has come");
        streams.handle_file(NOW, id, Some(seen(30)), &RULES);
        assert_eq!(woken(&mut streams), [1, 2]);
        assert_ne!(streams.wait(NOW, id, 1, since, &RULES), since);
        streams.complete(id);
        assert_eq!(streams.poll_due(NOW), Some(id));
        streams.handle_file(NOW, id, Some(seen(31)), &RULES);
        assert_eq!((woken(&mut streams), state(&streams, id)), (vec![1], StreamState::Ended));
        let finished = streams.poll_finished().unwrap();
        assert_eq!((finished.id, finished.chunks, finished.bytes), (id, 5, 31));
        let stream = streams.stream(id).unwrap();
        assert_eq!(stream.total_chunks(NOW, &RULES), Some(5));
        assert_eq!(stream.verdict(NOW, &RULES), StreamVerdict::Complete);
        assert_eq!(streams.deadline(), None);
    }

    #[test]
    fn end_counts_only_with_what_was_seen_after_it_was_known() {
        let (mut streams, id) = begun(StreamSource::GrowingFile, 5);
        streams.ask_look(id);
        assert_eq!(streams.poll_due(NOW), Some(id));
        streams.begin_look(id);
        streams.complete(id);
        assert_eq!(streams.poll_due(NOW), None, "a look is under way");
        streams.handle_file(NOW, id, Some(seen(6)), &RULES);
        assert_eq!(state(&streams, id), StreamState::Open);
        assert_eq!(streams.poll_due(NOW), Some(id), "it is looked at again");
        streams.handle_file(NOW, id, Some(seen(9)), &RULES);
        assert_eq!(state(&streams, id), StreamState::Ended);
        assert_eq!(streams.stream(id).unwrap().chunks().length(), 9);
    }

    #[test]
    fn growing_file_fails_when_it_shrinks_stalls_or_is_too_large() {
        let stall = RULES.stall.unwrap();
        for (elapsed, last, failure) in [
            (MS, Some(seen(4)), StreamFailure::Changed),
            (MS, Some(seen(1001)), StreamFailure::TooLarge),
            (MS, None, StreamFailure::Unreadable),
            (stall, Some(seen(5)), StreamFailure::Stalled),
            // Written to, and not longer: that is no growth.
            (stall, Some(SeenFile { length: 5, ..seen(6) }), StreamFailure::Stalled),
        ] {
            let (mut streams, id) = begun(StreamSource::GrowingFile, 5);
            streams.wait(NOW, id, 1, None, &RULES);
            streams.handle_file(NOW + elapsed, id, last, &RULES);
            assert_eq!(state(&streams, id), StreamState::Failed(failure));
            let verdict = streams.stream(id).unwrap().verdict(NOW, &RULES);
            assert_eq!((woken(&mut streams), verdict), (vec![1], StreamVerdict::Failed(failure)));
        }
        let (mut streams, id) = begun(StreamSource::GrowingFile, 5);
        streams.handle_file(NOW + stall, id, Some(seen(6)), &RULES);
        assert_eq!(state(&streams, id), StreamState::Open, "it has grown at the last moment");
        streams.handle_file(NOW + stall + (stall - MS), id, Some(seen(6)), &RULES);
        assert_eq!(state(&streams, id), StreamState::Open);
    }

    #[test]
    fn file_is_looked_at_often_only_while_a_client_waits_and_nothing_is_reported() {
        let (mut streams, id) = begun(StreamSource::GrowingFile, 5);
        assert_eq!(streams.deadline(), Some(NOW + SLOW_LOOK_INTERVAL));
        streams.wait(NOW, id, 1, None, &RULES);
        assert_eq!(streams.deadline(), Some(NOW + LOOK_INTERVAL));
        let at = NOW + LOOK_INTERVAL;
        assert_eq!((streams.poll_due(at), streams.poll_due(at)), (Some(id), None));
        streams.handle_report(id.number());
        streams.handle_report(id.number());
        assert_eq!((streams.poll_due(at), streams.poll_due(at)), (Some(id), None));
        streams.handle_file(at, id, Some(seen(5)), &RULES);
        assert_eq!(streams.deadline(), Some(at + SLOW_LOOK_INTERVAL), "reports come");
        let late = NOW + (RULES.stall.unwrap() - MS);
        assert_eq!(streams.poll_due(late), Some(id));
        streams.handle_file(late, id, Some(seen(5)), &RULES);
        assert_eq!(streams.deadline(), Some(late + MS), "it may stall");
    }

    #[test]
    fn young_file_is_complete_unless_it_grows_and_then_once_it_is_still() {
        let (mut streams, id) = begun(StreamSource::YoungFile, 25);
        let verdict = |streams: &Streams<u32, ()>, at| {
            let stream = streams.stream(id).unwrap();
            (stream.verdict(at, &RULES), stream.total_chunks(at, &RULES))
        };
        assert_eq!(verdict(&streams, NOW), (StreamVerdict::Complete, Some(3)));
        streams.handle_file(NOW, id, Some(seen(32)), &RULES);
        assert_eq!(verdict(&streams, NOW), (StreamVerdict::Wait, None));
        streams.wait(NOW, id, 1, None, &RULES);
        assert_eq!(streams.deadline(), Some(NOW + LOOK_INTERVAL));
        let still_at = NOW + RULES.wait;
        assert_eq!(verdict(&streams, NOW + (RULES.wait - MS)), (StreamVerdict::Wait, None));
        assert_eq!(verdict(&streams, still_at), (StreamVerdict::Complete, Some(4)));
        streams.handle_file(still_at, id, Some(seen(32)), &RULES);
        assert_eq!(woken(&mut streams), [1]);
        let (mut streams, id) = begun(StreamSource::YoungFile, 25);
        streams.enter(id);
        streams.handle_file(NOW, id, Some(SeenFile { length: 25, ..seen(26) }), &RULES);
        assert_eq!(state(&streams, id), StreamState::Failed(StreamFailure::Changed), "rewritten");
    }

    #[test]
    fn young_file_that_has_changed_is_of_use_to_nobody_else() {
        let (mut streams, id) = begun(StreamSource::YoungFile, 25);
        streams.enter(id);
        assert_eq!(streams.find(TASK, 0), Some(id));
        streams.handle_read(id, seen(20));
        assert_eq!(state(&streams, id), StreamState::Open, "read before it was last seen");
        streams.handle_read(id, SeenFile { length: 25, ..seen(26) });
        assert_eq!(state(&streams, id), StreamState::Failed(StreamFailure::Changed));
        assert_eq!(streams.find(TASK, 0), None);
        let next = begin(&mut streams, 0, StreamSource::YoungFile, 7);
        assert_eq!(streams.find(TASK, 0), Some(next));
        streams.leave(id);
        assert!(streams.stream(id).is_none());
        streams.handle_file(NOW, next, Some(seen(3)), &RULES);
        assert!(streams.stream(next).is_none(), "no client reads it");
        let (mut streams, id) = begun(StreamSource::GrowingFile, 25);
        streams.handle_read(id, SeenFile { length: 25, ..seen(26) });
        assert_eq!(state(&streams, id), StreamState::Open, "it may be written to anywhere");
    }

    #[test]
    fn look_that_was_under_way_says_nothing_about_what_was_asked_later() {
        let (mut streams, id) = begun(StreamSource::YoungFile, 25);
        streams.enter(id);
        let first = streams.ask_look(id);
        assert_eq!(streams.poll_due(NOW), Some(id));
        streams.begin_look(id);
        let second = streams.ask_look(id);
        assert_eq!(streams.poll_due(NOW), None, "one is under way");
        let has_looked =
            |streams: &Streams<u32, ()>, number| streams.stream(id).unwrap().has_looked(number);
        assert!(!has_looked(&streams, first));
        streams.handle_file(NOW, id, Some(seen(25)), &RULES);
        assert!(has_looked(&streams, first) && !has_looked(&streams, second));
        assert_eq!(streams.poll_due(NOW), Some(id));
        streams.begin_look(id);
        streams.handle_file(NOW, id, Some(seen(25)), &RULES);
        assert!(has_looked(&streams, second));
        // One that is answered at once.
        let third = streams.ask_look(id);
        assert!(!has_looked(&streams, third));
        streams.handle_file(NOW, id, Some(seen(25)), &RULES);
        assert!(has_looked(&streams, third));
    }

    #[test]
    fn file_stays_open_for_clients_that_return_while_there_is_room() {
        let (mut streams, young) = begun(StreamSource::YoungFile, 5);
        streams.enter(young);
        streams.leave(young);
        assert!(streams.stream(young).is_none(), "it is finished, and can be opened again");
        let mut ended = Vec::new();
        for result_id in 0..IDLE_MAX as u32 + 2 {
            let id = begin(&mut streams, result_id, StreamSource::GrowingFile, 5);
            streams.enter(id);
            streams.complete(id);
            streams.handle_file(NOW, id, Some(seen(5)), &RULES);
            if result_id > 0 {
                streams.leave(id);
            }
            ended.push(id);
        }
        assert!(streams.stream(ended[0]).is_some(), "a client reads it");
        assert!(streams.stream(ended[1]).is_none(), "it ended first");
        assert!(streams.stream(ended[2]).is_some());
        streams.leave(ended[0]);
        streams.forget_unless(|_, result_id| result_id == 0);
        assert_eq!(streams.of_task(TASK).count(), 1);
        streams.remove_task(TASK);
        assert!(streams.streams.is_empty() && streams.by_task.is_empty());
    }

    #[test]
    fn open_stream_that_is_removed_wakes_its_clients() {
        let (mut streams, id) = begun(StreamSource::GrowingFile, 5);
        streams.wait(NOW, id, 1, None, &RULES);
        streams.ask_look(id);
        streams.remove_task(TASK);
        assert_eq!((woken(&mut streams), streams.poll_due(NOW)), (vec![1], None));
        assert_eq!(streams.poll_finished().map(|it| it.state), Some(StreamState::Open));
        assert_eq!((streams.deadline(), streams.has_news()), (None, false));
        let other = begin(&mut streams, 0, StreamSource::GrowingFile, 5);
        assert!(streams.stream(id).is_none() && streams.stream(other).is_some(), "the same slot");
    }

    #[test]
    fn what_streams_hold_is_charged() {
        let budget = Budget::default();
        let mut streams: Streams<u32, ()> = Streams::new(&budget);
        let id = begin(&mut streams, 0, StreamSource::GrowingFile, 5);
        let before = budget.held();
        assert!(before > 0 && before < 1024, "{before} bytes");
        (6..200).for_each(|n| streams.handle_file(NOW, id, Some(seen(n * n)), &RULES));
        assert!(budget.held() > before);
        streams.remove(id);
        assert_eq!(budget.held(), 0);
    }
}
