//! Lines between the threads that log and what writes them.
//!
//! A thread that logs only appends to a buffer under a lock that is never held for longer than it
//! takes to copy a line or to swap two buffers. There are two ways from there to the [`Sink`]:
//!
//! - **A file** may be on a disk that hangs. The writer thread takes the whole buffer at once and
//!   writes it with the lock released, so the disk holds up this thread and nothing else.
//! - **Standard error**, if it is a terminal, a pipe or a socket, tells beforehand whether a write
//!   would wait. The loop writes it itself, at the end of a turn ([`Queue::turn`]): that saves
//!   waking a thread. The writer thread helps out where the reader is slow.

#![expect(clippy::disallowed_methods, reason = "the log has a file and a wall clock of its own")]

use super::Settings;
use super::sink::{BUFFER_BYTES, Sink};
use crate::base::moment::Moment;
use crate::reactor::LogState;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of lines that may wait to be written. Lines beyond that are dropped and counted.
pub const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// From this size on, lines are written without waiting for more.
const GATHER_BYTES: usize = 16 * 1024;

/// How long lines are gathered after a write, so that a busy log is written in large pieces.
const GATHER: Duration = Duration::from_millis(20);

/// How soon to write again what the file or the terminal did not take.
const RETRY: Duration = Duration::from_millis(100);

/// What the threads that log share with the writer.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    /// Held while lines are written.
    sink: Mutex<Sink>,
    /// The sink never waits, so the loop may write to it.
    never_waits: AtomicBool,
    /// There is something to do for the writer.
    has_work: Condvar,
    /// The writer has answered a flush.
    has_flushed: Condvar,
    lines_lost: AtomicU64,
    /// Of the file, see [`Sink::error_code`].
    error_code: AtomicI32,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: Vec<u8>,
    /// Bytes that the writer has taken and not yet written.
    taken_bytes: usize,
    /// Lines dropped since the writer last took some.
    dropped: u64,
    request: Option<WriterRequest>,
    /// Flushes asked for so far, and how many of them are done.
    flushes_asked: u64,
    flushes_done: u64,
    writer: Writer,
    /// When the loop may write next.
    turn_at: Option<Moment>,
}

/// What the writer does beside writing lines. What was logged before still goes to the old file.
#[derive(Debug)]
pub(super) enum WriterRequest {
    /// Open the file again by its name.
    Reopen,
    Apply(Settings),
}

/// Which news wakes the writer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    /// It is writing, and looks for news by itself.
    #[default]
    Busy,
    /// It waits for a line.
    Idle,
    /// It gathers lines, or waits to write again what was not taken.
    Pausing,
}

impl Queue {
    pub(super) fn new(sink: Sink) -> Queue {
        Queue {
            state: Mutex::default(),
            never_waits: AtomicBool::new(sink.never_waits()),
            sink: Mutex::new(sink),
            has_work: Condvar::new(),
            has_flushed: Condvar::new(),
            lines_lost: AtomicU64::new(0),
            error_code: AtomicI32::new(0),
        }
    }

    /// Appends a line with its newline, or drops and counts it.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.lines.len() + state.taken_bytes + line.len() > WAITING_BYTES_MAX {
            state.dropped += 1;
            self.lines_lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if state.lines.capacity() == 0 {
            state.lines.reserve_exact(BUFFER_BYTES);
        }
        state.lines.extend_from_slice(line);
        let is_urgent = match state.writer {
            Writer::Busy => false,
            // Where the loop writes, the end of its turn comes soon.
            Writer::Idle => !self.never_waits(),
            // Only once: the writer is busy from then on.
            Writer::Pausing => state.taken_bytes == 0 && state.lines.len() >= GATHER_BYTES,
        };
        if is_urgent {
            state.writer = Writer::Busy;
            drop(state);
            self.has_work.notify_one();
        }
    }

    /// Has the writer do something beside writing lines. Of two requests that it has not seen yet,
    /// the later one counts; new settings open the file anew too.
    pub(super) fn ask(&self, request: WriterRequest) {
        let mut state = self.lock();
        if !(matches!(request, WriterRequest::Reopen)
            && matches!(state.request, Some(WriterRequest::Apply(_))))
        {
            state.request = Some(request);
        }
        state.writer = Writer::Busy;
        drop(state);
        self.has_work.notify_one();
    }

    /// Writes what is due, if that cannot wait. Called once a turn of the loop. Returns when the
    /// lines that were not written are due.
    pub(super) fn turn(&self, now: Moment) -> LogState {
        LogState {
            due_at: self.write_if_due(now),
            lines_lost: self.lines_lost(),
            error_code: self.error_code.load(Ordering::Relaxed),
        }
    }

    fn write_if_due(&self, now: Moment) -> Option<Moment> {
        if !self.never_waits() {
            return None;
        }
        let state = self.lock();
        let has_lines = state.taken_bytes > 0 || !state.lines.is_empty() || state.dropped > 0;
        if !has_lines {
            return None;
        }
        if let Some(at) = state.turn_at
            && at > now
            && state.lines.len() < GATHER_BYTES
        {
            return Some(at);
        }
        drop(state);
        // The writer has it for a moment only: it does not wait in this mode either.
        if let Ok(mut sink) = self.sink.try_lock() {
            self.write_once(&mut sink);
        }
        let mut state = self.lock();
        let is_behind = state.taken_bytes > 0 || !state.lines.is_empty();
        let at = now + if is_behind { RETRY } else { GATHER };
        state.turn_at = Some(at);
        is_behind.then_some(at)
    }

    /// Waits until everything logged so far is written, or cannot be, but no longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let mut state = self.lock();
        state.flushes_asked += 1;
        let ticket = state.flushes_asked;
        if self.never_waits() {
            drop(state);
            if let Ok(mut sink) = self.sink.try_lock() {
                self.write_once(&mut sink);
            }
            state = self.lock();
        }
        if state.flushes_done < ticket {
            state.writer = Writer::Busy;
            self.has_work.notify_one();
        }
        drop(
            self.has_flushed
                .wait_timeout_while(state, limit, |state| state.flushes_done < ticket)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Lines that were never written, since the start.
    pub(super) fn lines_lost(&self) -> u64 {
        self.lines_lost.load(Ordering::Relaxed)
    }

    /// The writer thread: writes what is logged until the process ends.
    pub(super) fn write_all(&self) {
        loop {
            self.write_once(&mut self.sink.lock().unwrap_or_else(PoisonError::into_inner));
            self.pause();
        }
    }

    /// Takes what there is and writes it.
    fn write_once(&self, sink: &mut Sink) {
        let mut state = self.lock();
        sink.take_lines(&mut state.lines);
        sink.note_dropped(std::mem::take(&mut state.dropped));
        state.taken_bytes = sink.waiting_bytes();
        let flushes = state.flushes_asked;
        let request = state.request.take();
        drop(state);

        sink.flush();
        match request {
            Some(WriterRequest::Reopen) => sink.reopen(),
            Some(WriterRequest::Apply(settings)) => sink.apply(settings),
            None => {}
        }
        self.never_waits.store(sink.never_waits(), Ordering::Relaxed);
        self.lines_lost.fetch_add(sink.take_lost(), Ordering::Relaxed);
        self.error_code.store(sink.error_code(), Ordering::Relaxed);

        let mut state = self.lock();
        state.taken_bytes = sink.waiting_bytes();
        // A full disk does not improve by waiting for it, a slow reader of standard error may.
        if state.taken_bytes == 0 || sink.is_failing() {
            state.flushes_done = flushes;
            drop(state);
            self.has_flushed.notify_all();
        }
    }

    /// Waits until there is something for the writer thread: for a while after a write, then for as
    /// long as it takes.
    fn pause(&self) {
        let mut state = self.lock();
        let is_retry = state.taken_bytes > 0;
        let until = Instant::now() + if is_retry { RETRY } else { GATHER };
        loop {
            let is_full = state.lines.len() >= GATHER_BYTES;
            let is_flush = state.flushes_done < state.flushes_asked;
            if state.request.is_some() || !is_retry && (is_full || is_flush) {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                state.writer = Writer::Pausing;
                let waited = self.has_work.wait_timeout(state, left);
                (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if is_retry || !state.lines.is_empty() || state.dropped > 0 {
                break;
            }
            state.writer = Writer::Idle;
            state = self.has_work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.writer = Writer::Busy;
    }

    fn never_waits(&self) -> bool {
        self.never_waits.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use crate::logging::tests::sink;
    use std::fs;
    use std::sync::{Arc, mpsc};

    fn queue(sink: Sink, lines: &[&str]) -> Queue {
        let queue = Queue::new(sink);
        for line in lines {
            queue.push(line.as_bytes());
        }
        queue
    }

    fn write(queue: &Queue) {
        queue.write_once(&mut queue.sink.lock().unwrap());
    }

    fn waiting(queue: &Queue) -> usize {
        queue.lock().lines.len()
    }

    #[test]
    fn lines_are_taken_at_once_and_written_in_order() {
        let folder = TestFolder::make();
        let queue = queue(sink(folder.join("log")), &["one\n", "two\n"]);
        assert_eq!(waiting(&queue), 8);
        write(&queue);
        assert_eq!(waiting(&queue), 0);
        queue.push(b"three\n");
        write(&queue);
        assert_eq!(folder.read("log"), "one\ntwo\nthree\n");
    }

    #[test]
    fn a_line_wakes_an_idle_writer_only() {
        let folder = TestFolder::make();
        let queue = queue(sink(folder.join("log")), &[]);
        queue.lock().writer = Writer::Idle;
        queue.push(b"first\n");
        assert_eq!(queue.lock().writer, Writer::Busy);

        queue.lock().writer = Writer::Pausing;
        queue.push(b"gathered\n");
        assert_eq!(queue.lock().writer, Writer::Pausing);
        queue.push(&b"x\n".repeat(GATHER_BYTES));
        assert_eq!(queue.lock().writer, Writer::Busy, "much is not gathered");
    }

    #[test]
    fn lines_beyond_the_limit_are_dropped_and_counted() {
        let folder = TestFolder::make();
        std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
        let queue = queue(sink(folder.join("log")), &[]);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let fitting = WAITING_BYTES_MAX / 1024;
        for number in 0..fitting + 7 {
            if number == fitting / 2 {
                // What the writer has taken and could not write counts too.
                write(&queue);
            }
            queue.push(&line);
        }
        assert_eq!(queue.lines_lost(), 7);

        fs::remove_file(folder.join("log")).unwrap();
        queue.ask(WriterRequest::Reopen);
        write(&queue);
        write(&queue);
        let text = folder.read("log");
        assert_eq!(text.lines().count(), fitting + 1);
        let last = text.lines().last().unwrap();
        assert!(last.contains("WARN  logging lines lost=7:"), "{last}");
        queue.push(b"after\n");
        write(&queue);
        assert!(folder.read("log").ends_with("\nafter\n"), "the loss is reported once");
        assert_eq!(queue.lines_lost(), 7);
    }

    #[test]
    fn lines_before_a_reopening_are_in_the_old_file() {
        let folder = TestFolder::make();
        let queue = queue(sink(folder.join("log")), &["old\n"]);
        fs::rename(folder.join("log"), folder.join("log.old")).unwrap();
        queue.ask(WriterRequest::Reopen);
        write(&queue);
        queue.push(b"new\n");
        write(&queue);
        assert_eq!(folder.read("log.old"), "old\n");
        assert_eq!(folder.read("log"), "new\n");
    }

    #[test]
    fn new_settings_are_not_forgotten_over_a_reopening() {
        let folder = TestFolder::make();
        let queue = queue(sink(folder.join("log")), &["old\n"]);
        let settings = Settings { file: Some(folder.join("other")), ..Settings::default() };
        queue.ask(WriterRequest::Apply(settings));
        queue.ask(WriterRequest::Reopen);
        write(&queue);
        queue.push(b"new\n");
        write(&queue);
        assert_eq!((folder.read("log"), folder.read("other")), ("old\n".into(), "new\n".into()));
    }

    #[test]
    fn a_flush_waits_for_the_lines_before_it() {
        let folder = TestFolder::make();
        let queue = Arc::new(queue(sink(folder.join("log")), &["first\n"]));
        let writer = Arc::clone(&queue);
        std::thread::spawn(move || writer.write_all());
        let limit = Duration::from_secs(30);
        queue.flush(limit);
        assert_eq!(folder.read("log"), "first\n");
        // While the writer gathers, too.
        queue.push(b"second\n");
        queue.flush(limit);
        assert_eq!(folder.read("log"), "first\nsecond\n");
    }

    #[test]
    fn a_writer_that_is_held_up_holds_up_no_line() {
        static GATE: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>> = Mutex::new(None);
        let (entered, has_entered) = mpsc::channel();
        let (release, is_released) = mpsc::channel();
        *GATE.lock().unwrap() = Some((entered, is_released));
        let folder = TestFolder::make();
        std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
        let settings = Settings { file: Some(folder.join("log")), ..Settings::default() };
        // A report takes as long as a disk that hangs.
        let sink = Sink::open_reporting(settings, |_| {
            if let Some((entered, is_released)) = GATE.lock().unwrap().take() {
                entered.send(()).unwrap();
                is_released.recv().unwrap();
            }
        });
        let queue = Arc::new(queue(sink, &["first\n"]));
        let writer = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || write(&queue)
        });
        has_entered.recv().unwrap();
        let (logged, has_logged) = mpsc::channel();
        std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || {
                queue.push(b"second\n");
                queue.ask(WriterRequest::Reopen);
                assert_eq!(queue.turn(Moment::START).due_at, None);
                logged.send(queue.lines_lost()).unwrap();
            }
        });
        assert_eq!(has_logged.recv_timeout(Duration::from_secs(30)), Ok(0));
        release.send(()).unwrap();
        writer.join().unwrap();
    }

    #[test]
    fn a_flush_does_not_wait_for_a_full_disk() {
        let folder = TestFolder::make();
        std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
        let queue = queue(sink(folder.join("log")), &["line\n"]);
        queue.lock().flushes_asked = 1;
        write(&queue);
        assert_eq!(queue.lock().flushes_done, 1);
        assert_eq!(queue.lock().taken_bytes, 5);
    }

    #[test]
    fn the_loop_writes_where_nothing_waits() {
        let folder = TestFolder::make();
        let queue = queue(sink(folder.join("log")), &[]);
        queue.never_waits.store(true, Ordering::Relaxed);
        queue.sink.lock().unwrap().pretend_never_to_wait();
        queue.lock().writer = Writer::Idle;
        let start = Moment::START;
        assert_eq!(queue.turn(start).due_at, None, "no line");
        queue.push(b"first\n");
        assert_eq!(queue.lock().writer, Writer::Idle, "the writer is not woken");
        assert_eq!(queue.turn(start).due_at, None);
        assert_eq!(folder.read("log"), "first\n", "at once");
        queue.push(b"second\n");
        assert_eq!(queue.turn(start + GATHER / 2).due_at, Some(start + GATHER));
        assert_eq!(folder.read("log"), "first\n");
        queue.push(b"third\n");
        assert_eq!(queue.turn(start + GATHER).due_at, None);
        assert_eq!(folder.read("log"), "first\nsecond\nthird\n");
        queue.push(&b"x\n".repeat(GATHER_BYTES));
        queue.turn(start + GATHER);
        assert_eq!(waiting(&queue), 0, "much is not gathered");

        let held = queue.sink.lock().unwrap();
        queue.push(b"fourth\n");
        let at = start + GATHER * 3;
        assert_eq!(queue.turn(at).due_at, Some(at + RETRY), "never waits for the writer");
        drop(held);
        assert_eq!(queue.turn(at + RETRY).due_at, None);
        assert!(folder.read("log").ends_with("fourth\n"));
        queue.push(b"fifth\n");
        queue.flush(Duration::from_secs(30));
        assert!(folder.read("log").ends_with("fifth\n"), "without the writer");
    }

    #[test]
    fn lines_that_were_not_taken_are_due_again() {
        let folder = TestFolder::make();
        std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
        let queue = queue(sink(folder.join("log")), &["line\n"]);
        queue.never_waits.store(true, Ordering::Relaxed);
        queue.sink.lock().unwrap().pretend_never_to_wait();
        assert_eq!(queue.turn(Moment::START).due_at, Some(Moment::START + RETRY));
    }
}
