//! The finished audio file of a result on its way to a client: which bytes come next, and whether
//! the file is still the one that was opened.
//!
//! A file that had not been written to for `audio_wait` when it was opened was finished. It is sent
//! from one open descriptor: any change of its length or its modification time means that the rest
//! belongs to another recording. A younger file may still grow, and is a stream (`streaming.rs`).
//!
//! A client that returns with `from_chunk` or `from_byte` has the first chunks of the file as it
//! was then. [`Marks`] remembers what that was.
//!
//! Pure: the file's state is an argument.

use crate::net::files::FileState;
use hashbrown::HashTable;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::{Duration, SystemTime};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Files that [`Marks`] remembers; the oldest is forgotten first.
const MARKS_MAX: usize = 4096;

/// How far a file has been sent.
#[derive(Debug)]
pub struct Progress {
    chunk_size: u64,
    next_chunk: u64,
    /// Bytes before what is sent next.
    offset: u64,
    /// Bytes of the next chunk that the client has: it asked for what follows a byte.
    had: u64,
    /// The client counts bytes, so it gets the offset of every chunk.
    counts_bytes: bool,
    /// The file as it was opened.
    known: FileState,
}

/// What a client wants of the first audio that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Everything from this chunk on.
    Chunk(u64),
    /// Everything from this byte on.
    Byte(u64),
}

impl Default for Start {
    fn default() -> Self {
        Start::Chunk(0)
    }
}

impl Start {
    /// Bytes that the client has by its own account, which may be more than the file has.
    pub fn bytes(self, chunk_size: usize) -> u64 {
        match self {
            Start::Chunk(first) => first.saturating_mul(chunk_size as u64),
            Start::Byte(first) => first,
        }
    }

    /// It has nothing of it.
    pub fn is_beginning(self) -> bool {
        matches!(self, Start::Chunk(0) | Start::Byte(0))
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Chunk(FileChunk),
    /// All bytes have been sent: look at the file, and call [`Progress::is_same`].
    Check,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileChunk {
    pub number: u64,
    /// Bytes before it.
    pub offset: u64,
    pub length: u32,
    /// Chunks of the whole audio; `None` while it grows.
    pub total: Option<u64>,
    /// Whether the client is to know the offset.
    pub shows_offset: bool,
}

/// Whether a file in `state` may still be being written to. `wall` is the time of day, and `wait`
/// how long a file must have been still to be finished; `None`: every file is.
pub fn is_young(state: FileState, wall: SystemTime, wait: Option<Duration>) -> bool {
    wait.is_some_and(|wait| match wall.duration_since(state.modified) {
        Ok(age) => age < wait,
        // In the future, by a clock that differs a little.
        Err(_) => true,
    })
}

impl Progress {
    /// A file that was opened in `state`, from `start` on.
    pub fn new(state: FileState, chunk_size: usize, start: Start) -> Progress {
        let chunk_size = chunk_size as u64;
        let chunks = state.length.div_ceil(chunk_size);
        let (next_chunk, offset) = match start {
            Start::Chunk(first) if first < chunks => (first, first * chunk_size),
            Start::Byte(first) if first < state.length => (first / chunk_size, first),
            Start::Chunk(_) | Start::Byte(_) => (chunks, state.length),
        };
        Progress {
            chunk_size,
            next_chunk,
            offset,
            had: if offset < state.length { offset - next_chunk * chunk_size } else { 0 },
            counts_bytes: matches!(start, Start::Byte(_)),
            known: state,
        }
    }

    /// The number of the next chunk.
    pub fn next_chunk(&self) -> u64 {
        self.next_chunk
    }

    /// Chunks of the file.
    pub fn total_chunks(&self) -> u64 {
        self.known.length.div_ceil(self.chunk_size)
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.known.length
    }

    /// What to do next. A chunk counts as sent once [`Progress::advance`] is called.
    pub fn next(&self) -> Next {
        if self.offset >= self.known.length {
            return Next::Check;
        }
        Next::Chunk(FileChunk {
            number: self.next_chunk,
            offset: self.offset,
            length: (self.chunk_size - self.had).min(self.known.length - self.offset) as u32,
            total: Some(self.total_chunks()),
            shows_offset: self.counts_bytes,
        })
    }

    /// The chunk is on its way.
    pub fn advance(&mut self, chunk: FileChunk) {
        self.next_chunk = chunk.number + 1;
        self.offset = chunk.offset + u64::from(chunk.length);
        self.had = 0;
    }

    /// Whether a file in this state is the one that was opened.
    pub fn is_same(&self, state: FileState) -> bool {
        state == self.known
    }
}

/// The files that clients have been sent parts of, by task and name.
///
/// There may be one for each task that is known, so they lie close together: a `HashMap` would take
/// three times as much.
#[derive(Debug, Default)]
pub struct Marks {
    /// Oldest first.
    files: VecDeque<MarkedFile>,
    /// The number of the first of them. They are numbered in the order in which they came.
    first: u32,
    /// Their numbers, by their keys, which are hashes.
    numbers: HashTable<u32>,
    /// Bytes of those that may grow, by their keys: few are so young.
    lengths: HashMap<u64, u64>,
}

/// A file as a client was sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub state: FileState,
    pub may_grow: bool,
}

#[derive(Debug)]
struct MarkedFile {
    /// Hash of its task and its name.
    key: u64,
    /// Hash of its state; the lowest bits are a [`MarkKind`].
    state: u64,
}

/// Bits of a [`MarkKind`].
const KIND_BITS: u64 = 3;

impl MarkedFile {
    fn new(key: u64, state: FileState, kind: MarkKind) -> MarkedFile {
        MarkedFile { key, state: hash(state) | kind as u64 }
    }

    fn is_in(&self, state: FileState) -> bool {
        self.state & !KIND_BITS == hash(state)
    }

    fn kind(&self) -> MarkKind {
        match self.state & KIND_BITS {
            0 => MarkKind::Finished,
            1 => MarkKind::MayGrow,
            _ => MarkKind::Several,
        }
    }

    fn set_kind(&mut self, kind: MarkKind) {
        self.state = self.state & !KIND_BITS | kind as u64;
    }
}

/// A hash of a state, without the bits of a [`MarkKind`].
fn hash(state: FileState) -> u64 {
    let since = state.modified.duration_since(SystemTime::UNIX_EPOCH);
    let modified = since.unwrap_or_else(|before| before.duration());
    let parts = [state.length, modified.as_secs(), modified.subsec_nanos().into()];
    xxh3_64(&parts.map(u64::to_ne_bytes).concat()) & !KIND_BITS
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MarkKind {
    Finished,
    MayGrow,
    /// There were several, and it is unknown which of them a returning client has.
    Several,
}

impl Marks {
    /// Notes that `task` is sent the file `name` as it is now. Returns false if the client already
    /// has `sent` bytes of it, and these may be of another recording.
    pub fn note(&mut self, task: Uuid, name: &Path, mark: Mark, sent: u64) -> bool {
        let Mark { state, may_grow } = mark;
        let kind = if may_grow { MarkKind::MayGrow } else { MarkKind::Finished };
        let key = key(task, name);
        let length = match may_grow {
            true => self.lengths.insert(key, state.length),
            false => self.lengths.remove(&key),
        };
        let Some(file) = self.file_mut(key) else {
            self.insert(MarkedFile::new(key, state, kind));
            return true;
        };
        let has_grown = length.is_some_and(|old| state.length > old && sent <= old);
        let is_same = match file.kind() {
            MarkKind::Several => false,
            MarkKind::Finished => file.is_in(state),
            MarkKind::MayGrow => file.is_in(state) || has_grown,
        };
        *file = MarkedFile::new(key, state, if is_same { kind } else { MarkKind::Several });
        is_same || sent == 0
    }

    /// Whether clients may have been sent other chunks under this name than they would be now.
    pub fn is_several(&self, task: Uuid, name: &Path) -> bool {
        self.file(key(task, name)).is_some_and(|file| file.kind() == MarkKind::Several)
    }

    /// Notes that the file has grown while it was sent: chunks end elsewhere than in one that is
    /// finished.
    pub fn note_grown(&mut self, task: Uuid, name: &Path) {
        if let Some(file) = self.file_mut(key(task, name)) {
            file.set_kind(MarkKind::Several);
        }
    }

    fn file(&self, key: u64) -> Option<&MarkedFile> {
        self.files.get(self.place(key)?)
    }

    fn file_mut(&mut self, key: u64) -> Option<&mut MarkedFile> {
        let place = self.place(key)?;
        self.files.get_mut(place)
    }

    /// Where the file is among the others.
    fn place(&self, key: u64) -> Option<usize> {
        let place = |number: &u32| number.wrapping_sub(self.first) as usize;
        let is_it = |number: &u32| self.files.get(place(number)).is_some_and(|it| it.key == key);
        self.numbers.find(key, is_it).map(place)
    }

    fn insert(&mut self, file: MarkedFile) {
        let Marks { files, first, numbers, lengths } = self;
        if files.len() >= MARKS_MAX
            && let Some(oldest) = files.pop_front()
        {
            if let Ok(entry) = numbers.find_entry(oldest.key, |number| number == first) {
                entry.remove();
            }
            lengths.remove(&oldest.key);
            *first = first.wrapping_add(1);
        }
        let number = first.wrapping_add(files.len() as u32);
        let key = file.key;
        files.push_back(file);
        numbers.insert_unique(key, number, |number| {
            files.get(number.wrapping_sub(*first) as usize).map_or(0, |file| file.key)
        });
    }
}

fn key(task: Uuid, name: &Path) -> u64 {
    xxh3_64_with_seed(name.as_os_str().as_encoded_bytes(), xxh3_64(task.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this length that was written this long before the wall clock's time.
    fn state(length: u64, age: Duration) -> FileState {
        FileState { length, modified: wall() - age }
    }

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn finished(length: u64) -> (Progress, FileState) {
        let state = state(length, Duration::from_secs(1));
        (Progress::new(state, 10, Start::default()), state)
    }

    /// Sends all bytes. Returns number, offset, length and total of each chunk.
    fn send(progress: &mut Progress) -> Vec<(u64, u64, u32, Option<u64>)> {
        let mut chunks = Vec::new();
        while let Next::Chunk(chunk) = progress.next() {
            progress.advance(chunk);
            chunks.push((chunk.number, chunk.offset, chunk.length, chunk.total));
        }
        chunks
    }

    #[test]
    fn a_finished_file_is_sent_in_chunks_and_completed() {
        for (length, chunks) in [
            (0, vec![]),
            (1, vec![(0, 0, 1, Some(1))]),
            (10, vec![(0, 0, 10, Some(1))]),
            (21, vec![(0, 0, 10, Some(3)), (1, 10, 10, Some(3)), (2, 20, 1, Some(3))]),
        ] {
            let (mut progress, state) = finished(length);
            assert_eq!(send(&mut progress), chunks);
            assert!(progress.is_same(state));
        }
    }

    #[test]
    fn from_chunk_leaves_out_the_first_chunks() {
        let state = state(21, Duration::from_secs(1));
        for (first, chunks) in
            [(1, vec![(1, 10, 10, Some(3)), (2, 20, 1, Some(3))]), (3, vec![]), (9, vec![])]
        {
            let mut progress = Progress::new(state, 10, Start::Chunk(first));
            assert_eq!(send(&mut progress), chunks, "{first}");
        }
    }

    #[test]
    fn from_byte_begins_inside_a_chunk() {
        let state = state(21, Duration::from_secs(1));
        for (first, chunks) in [
            (0, vec![(0, 0, 10, Some(3)), (1, 10, 10, Some(3)), (2, 20, 1, Some(3))]),
            (9, vec![(0, 9, 1, Some(3)), (1, 10, 10, Some(3)), (2, 20, 1, Some(3))]),
            (10, vec![(1, 10, 10, Some(3)), (2, 20, 1, Some(3))]),
            (13, vec![(1, 13, 7, Some(3)), (2, 20, 1, Some(3))]),
            (20, vec![(2, 20, 1, Some(3))]),
            (21, vec![]),
            (u64::MAX, vec![]),
        ] {
            let mut progress = Progress::new(state, 10, Start::Byte(first));
            if let Next::Chunk(chunk) = progress.next() {
                assert!(chunk.shows_offset, "it counts bytes");
            }
            assert_eq!(send(&mut progress), chunks, "{first}");
        }
    }

    #[test]
    fn a_finished_file_may_not_change() {
        let hour = Duration::from_secs(3600);
        for other in [state(22, hour), state(20, hour), state(21, Duration::ZERO)] {
            let (progress, _) = finished(21);
            assert!(!progress.is_same(other), "{other:?}");
        }
    }

    #[test]
    fn age_is_measured_against_the_clock_and_can_be_switched_off() {
        let wait = Duration::from_secs(1);
        for (age, expected) in
            [(Duration::ZERO, true), (wait - Duration::from_millis(1), true), (wait, false)]
        {
            assert_eq!(is_young(state(5, age), wall(), Some(wait)), expected, "{age:?}");
        }
        let ahead = FileState { length: 5, modified: wall() + Duration::from_secs(60) };
        assert!(is_young(ahead, wall(), Some(wait)));
        assert!(!is_young(ahead, wall(), None));
    }

    #[test]
    fn a_returning_client_gets_the_rest_of_the_same_file_only() {
        let (task, name) = (Uuid::from_u128(1), Path::new("a.wav"));
        let mark = |length, may_grow| Mark { state: state(length, Duration::ZERO), may_grow };
        let mut marks = Marks::default();
        assert!(marks.note(task, name, mark(25, false), 0));
        assert!(marks.note(task, name, mark(25, false), 20), "the same file");
        assert!(marks.note(Uuid::from_u128(2), name, mark(7, false), 20), "another task");
        assert!(marks.note(task, Path::new("b.wav"), mark(7, false), 20), "another file");
        assert!(!marks.note(task, name, mark(26, false), 20));
        assert!(!marks.note(task, name, mark(26, false), 20), "which of the two has the client?");
        assert!(marks.note(task, name, mark(26, false), 0), "from the beginning");
    }

    #[test]
    fn a_returning_client_gets_the_rest_of_a_file_that_has_grown() {
        let (task, name) = (Uuid::from_u128(1), Path::new("a.wav"));
        let mark = |length, may_grow| Mark { state: state(length, Duration::ZERO), may_grow };
        let mut marks = Marks::default();
        assert!(marks.note(task, name, mark(25, true), 0));
        assert!(marks.note(task, name, mark(38, true), 20), "whole chunks of the shorter file");
        assert!(marks.note(task, name, mark(38, true), 30));
        let mut marks = Marks::default();
        assert!(marks.note(task, name, mark(25, true), 0));
        assert!(!marks.note(task, name, mark(38, true), 30), "a chunk that ended at byte 25");
        let mut marks = Marks::default();
        assert!(marks.note(task, name, mark(25, true), 0));
        marks.note_grown(task, name);
        assert!(!marks.note(task, name, mark(38, false), 20));
    }

    #[test]
    fn the_oldest_mark_is_forgotten() {
        let mark = Mark { state: state(5, Duration::ZERO), may_grow: false };
        let mut marks = Marks::default();
        for task in 0..MARKS_MAX as u128 + 3 {
            marks.note(Uuid::from_u128(task), Path::new("a"), mark, 0);
        }
        assert_eq!((marks.numbers.len(), marks.files.len()), (MARKS_MAX, MARKS_MAX));
    }
}
