//! Lines on their way to the file or to standard error.

use super::Settings;
use super::file;
use super::line::write_line;
use crate::base::moment::Moment;
use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

/// Bytes of lines that may wait to be written; what comes on top is dropped and counted.
pub const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// So many bytes are written without gathering more.
const GATHER_BYTES: usize = 16 * 1024;

/// The buffer's first room. The allocator maps a piece so large by itself, so that of it only what was once written to is there;
/// one that had to grow is given back once it is empty.
const BUFFER_BYTES_KEPT: usize = 128 * 1024;

/// What one write to a pipe that said "writable" takes without blocking (`PIPE_BUF`).
const PIPE_BYTES: usize = 4096;

/// Lines that come so soon after a write are written together. A write to a sleeping core's cold caches costs more than the line.
const GATHER: Duration = Duration::from_millis(20);

/// How soon to write again what the file or the terminal did not take.
const RETRY: Duration = Duration::from_millis(100);

/// How long a file that could not be opened is left alone before the next try.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// How long [`Logging::finish`] waits for a reader that does not read, in all.
const FINISH_WITHIN: Duration = Duration::from_secs(1);

/// Lines on their way out.
pub(super) struct Sink {
    pub(super) settings: Settings,
    out: Out,
    /// Lines that wait; the first may have been written in part, see `is_mid_line`.
    buffer: Vec<u8>,
    is_mid_line: bool,
    /// Nothing is written by turns before this moment.
    not_before: Option<Moment>,
    /// Lines dropped since the start, and those of them that no line in the log tells of yet.
    pub(super) lost: u64,
    lost_untold: u64,
    /// Set while the file cannot be written, from the report until the all-clear.
    in_trouble: bool,
    /// Where reports about the log itself go: standard error, and a list in tests.
    report: fn(&str),
}

/// Where the lines go at present.
enum Out {
    File {
        file: File,
        /// Bytes in it, as far as rotation is concerned.
        size: u64,
    },
    /// Because the settings say so, or in place of a file that cannot be opened before `retry_at`.
    Stderr { retry_at: SystemTime },
}

impl Sink {
    pub(super) fn open(settings: Settings) -> Sink {
        Sink::open_reporting(settings, report_on_stderr)
    }

    pub(super) fn open_reporting(settings: Settings, report: fn(&str)) -> Sink {
        let mut sink = Sink {
            settings,
            out: Out::Stderr { retry_at: SystemTime::UNIX_EPOCH },
            buffer: Vec::new(),
            is_mid_line: false,
            not_before: None,
            lost: 0,
            lost_untold: 0,
            in_trouble: false,
            report,
        };
        sink.open_file();
        sink
    }

    /// Takes a line, with its newline, or drops and counts it.
    pub(super) fn push(&mut self, line: &[u8]) {
        if self.buffer.len() + line.len() > BUFFER_BYTES_MAX {
            self.lost += 1;
            self.lost_untold += 1;
            return;
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER_BYTES_KEPT);
        }
        self.buffer.extend_from_slice(line);
    }

    /// Writes, unless it is too early for that. Answers when the lines that still wait are due.
    pub(super) fn turn(&mut self, now: Moment) -> Option<Moment> {
        if self.buffer.is_empty() && self.lost_untold == 0 {
            return None;
        }
        if let Some(at) = self.not_before
            && at > now
            && self.buffer.len() < GATHER_BYTES
        {
            return Some(at);
        }
        self.flush();
        let is_behind = !self.buffer.is_empty();
        let at = now + if is_behind { RETRY } else { GATHER };
        self.not_before = Some(at);
        is_behind.then_some(at)
    }

    /// Writes what can be written without waiting.
    pub(super) fn flush(&mut self) {
        if self.buffer.is_empty() && self.lost_untold == 0 {
            return;
        }
        if let Out::Stderr { retry_at } = self.out
            && self.settings.file.is_some()
            && is_past(retry_at)
        {
            self.open_file();
        }
        self.write_buffer();
        if self.buffer.is_empty() && self.lost_untold > 0 {
            let lost = std::mem::take(&mut self.lost_untold);
            let message = format_args!(
                "lines lost={lost}: they could not be written, or came faster than they could be"
            );
            let mut line = String::new();
            write_line(
                &mut line,
                self.settings.format,
                OffsetDateTime::now_utc(),
                Level::Warn,
                "logging",
                message,
            );
            line.push('\n');
            self.push(line.as_bytes());
            self.write_buffer();
        }
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
    }

    pub(super) fn finish(&mut self) {
        let step = Duration::from_millis(50);
        for _ in 0..FINISH_WITHIN.as_millis() / step.as_millis() {
            self.flush();
            // A full disk will not get better by waiting for it; a reader may.
            if self.buffer.is_empty() || self.in_trouble {
                return;
            }
            std::thread::sleep(step);
        }
    }

    pub(super) fn reopen(&mut self) {
        self.flush();
        self.open_file();
    }

    /// Opens what the settings name. Standard error stands in where that fails.
    fn open_file(&mut self) {
        let Some(path) = self.settings.file.clone() else {
            self.go_to(Out::Stderr { retry_at: SystemTime::UNIX_EPOCH });
            self.in_trouble = false;
            return;
        };
        match file::open(&path) {
            Ok(opened) => {
                self.go_to(Out::File { file: opened.file, size: opened.size });
                if opened.ends_in_half_line {
                    self.buffer.insert(0, b'\n');
                }
                // The all-clear waits for a line that was really written: a full disk opens files, too.
            }
            Err(error) => {
                self.go_to(Out::Stderr { retry_at: SystemTime::now() + REOPEN_AFTER });
                self.trouble(&error, "lines go to standard error until it can be");
            }
        }
    }

    /// Changes the place, and leaves the rest of a line behind of which the old place has the beginning.
    fn go_to(&mut self, out: Out) {
        self.out = out;
        if std::mem::take(&mut self.is_mid_line) {
            let rest = self
                .buffer
                .iter()
                .position(|&b| b == b'\n')
                .map_or(self.buffer.len(), |end| end + 1);
            self.buffer.drain(..rest);
            self.lost += 1;
            self.lost_untold += 1;
        }
    }

    fn write_buffer(&mut self) {
        while !self.buffer.is_empty() {
            let written = match &mut self.out {
                Out::Stderr { .. } => write_stderr(&self.buffer),
                Out::File { file, size } => {
                    match file::room(*size, self.settings.max_size, &self.buffer) {
                        0 => {
                            self.rotate();
                            continue;
                        }
                        bytes => file.write(&self.buffer[..bytes]),
                    }
                }
            };
            match written {
                Ok(0) => return,
                Ok(bytes) => self.consume(bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.handle_failure(&error),
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.is_mid_line = self.buffer[bytes - 1] != b'\n';
        self.buffer.drain(..bytes);
        if let Out::File { size, .. } = &mut self.out {
            *size += bytes as u64;
            if std::mem::take(&mut self.in_trouble) {
                (self.report)(&format!("the log file {} is written again", self.path()));
            }
        }
    }

    fn handle_failure(&mut self, error: &io::Error) {
        match self.out {
            // Nobody is left who could be told.
            Out::Stderr { .. } => {
                let lines = self.buffer.iter().filter(|&&b| b == b'\n').count() as u64;
                self.buffer.clear();
                self.is_mid_line = false;
                self.lost += lines;
            }
            Out::File { .. } if file::is_full(error) => {
                self.trouble(error, "lines wait in memory until it can be, up to 1 MiB");
            }
            // A disk that went away comes back as another file: the old descriptor would fail for ever.
            Out::File { .. } => {
                self.go_to(Out::Stderr { retry_at: SystemTime::now() + REOPEN_AFTER });
                self.trouble(error, "lines go to standard error until it can be");
            }
        }
    }

    fn trouble(&mut self, error: &io::Error, meanwhile: &str) {
        if !std::mem::replace(&mut self.in_trouble, true) {
            (self.report)(&format!(
                "the log file {} cannot be written: {error}; {meanwhile}",
                self.path()
            ));
        }
    }

    /// Moves `file` to `file.1`, that one to `file.2` and so on, and begins anew. Where that fails, the file grows on and the next
    /// try comes when it has grown by its limit again.
    fn rotate(&mut self) {
        let Out::File { file, size } = &mut self.out else { return };
        // Somebody else may have cut the file (logrotate's `copytruncate`).
        let real = file.metadata().map_or(*size, |metadata| metadata.len());
        if real < *size {
            *size = real;
            return;
        }
        *size = 0;
        let Some(path) = self.settings.file.clone() else { return };
        match file::shift(&path, self.settings.keep) {
            Ok(()) => self.open_file(),
            Err(error) => {
                (self.report)(&format!("the log file {} cannot be rotated: {error}", self.path()))
            }
        }
    }

    fn path(&self) -> String {
        self.settings.file.as_deref().unwrap_or(Path::new("standard error")).display().to_string()
    }
}

/// True once `at` is over, and when the clock was set back so far that it might never be.
fn is_past(at: SystemTime) -> bool {
    match at.duration_since(SystemTime::now()) {
        Ok(left) => left > REOPEN_AFTER,
        Err(_) => true,
    }
}

/// Writes a part to standard error without waiting for its reader. The descriptor is shared with whoever started us, so it is not
/// made nonblocking; one that says it is writable takes [`PIPE_BYTES`] at once.
fn write_stderr(bytes: &[u8]) -> io::Result<usize> {
    let stderr = io::stderr();
    let mut poll = [PollFd::new(&stderr, PollFlags::OUT)];
    let no_time = Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut poll, Some(&no_time))? == 0 {
        return Err(ErrorKind::WouldBlock.into());
    }
    // Not through `io::Stderr`, which reports a closed descriptor as success.
    Ok(rustix::io::write(stderr.as_fd(), &bytes[..bytes.len().min(PIPE_BYTES)])?)
}

fn report_on_stderr(text: &str) {
    let _ = write_stderr(format!("aivtuber-gateway: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Mutex;

    /// A folder of its own for each test, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path =
                std::env::temp_dir().join(format!("gateway-log-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.file(name)).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sink(file: PathBuf) -> Sink {
        Sink::open_reporting(Settings { file: Some(file), ..Settings::default() }, |_| {})
    }

    #[test]
    fn lines_that_follow_closely_are_written_together() {
        let folder = Folder::new("gather");
        let mut sink = sink(folder.file("log"));
        let start = Moment::START;
        assert_eq!(sink.turn(start), None, "nothing waits");
        sink.push(b"first\n");
        assert_eq!((sink.turn(start), folder.read("log").as_str()), (None, "first\n"), "at once");
        sink.push(b"second\n");
        assert_eq!(
            (sink.turn(start + GATHER / 2), folder.read("log").as_str()),
            (Some(start + GATHER), "first\n")
        );
        sink.push(b"third\n");
        assert_eq!(
            (sink.turn(start + GATHER), folder.read("log").as_str()),
            (None, "first\nsecond\nthird\n")
        );
        sink.push(&b"x\n".repeat(GATHER_BYTES));
        sink.turn(start + GATHER);
        assert!(sink.buffer.is_empty(), "much is not gathered");
    }

    #[test]
    fn what_did_not_go_out_is_tried_again() {
        let folder = Folder::new("retry");
        std::os::unix::fs::symlink("/dev/full", folder.file("log")).unwrap();
        let mut sink = sink(folder.file("log"));
        sink.push(b"line\n");
        assert_eq!(sink.turn(Moment::START), Some(Moment::START + RETRY));
        fs::remove_file(folder.file("log")).unwrap();
        sink.open_file();
        assert_eq!(
            (sink.turn(Moment::START + RETRY), folder.read("log").as_str()),
            (None, "line\n")
        );
    }

    #[test]
    fn too_many_lines_are_dropped_counted_and_told() {
        let folder = Folder::new("full-buffer");
        let mut sink = sink(folder.file("log"));
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        for _ in 0..BUFFER_BYTES_MAX / 1024 + 7 {
            sink.push(&line);
        }
        assert_eq!(sink.lost, 7);
        sink.flush();
        let text = folder.read("log");
        assert_eq!(text.lines().count(), 1025);
        assert!(
            text.lines().last().unwrap().contains("WARN  logging lines lost=7:"),
            "{}",
            text.lines().last().unwrap()
        );
        assert_eq!(sink.buffer.capacity(), 0);
        sink.push(b"after\n");
        sink.flush();
        assert!(folder.read("log").ends_with("\nafter\n"), "told once");
    }

    #[test]
    fn a_full_disk_keeps_the_lines_until_there_is_room() {
        static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let folder = Folder::new("full-disk");
        let link = folder.file("log");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let settings = Settings { file: Some(link.clone()), ..Settings::default() };
        let mut sink =
            Sink::open_reporting(settings, |text| REPORTS.lock().unwrap().push(text.into()));
        for text in ["one\n", "two\n"] {
            sink.push(text.as_bytes());
            sink.flush();
        }
        sink.reopen();
        assert_eq!(sink.buffer, b"one\ntwo\n");
        assert_eq!(REPORTS.lock().unwrap().len(), 1, "said once");
        fs::remove_file(&link).unwrap();
        sink.reopen();
        sink.push(b"three\n");
        sink.flush();
        assert_eq!(folder.read("log"), "one\ntwo\nthree\n");
        let reports = REPORTS.lock().unwrap();
        assert_eq!(reports.len(), 2);
        assert!(reports[0].contains("cannot be written: No space left"), "{}", reports[0]);
        assert!(reports[1].ends_with("is written again"), "{}", reports[1]);
    }

    #[test]
    fn half_a_line_is_continued_in_the_same_file() {
        let folder = Folder::new("half");
        let mut sink = sink(folder.file("log"));
        sink.push(b"first line\nsecond line\n");
        // As a disk that had room for 14 bytes leaves it.
        let Out::File { file, .. } = &mut sink.out else { panic!("no file") };
        file.write_all(b"first line\nsec").unwrap();
        sink.consume(14);
        sink.flush();
        assert_eq!(folder.read("log"), "first line\nsecond line\n");
    }

    #[test]
    fn half_a_line_is_ended_where_the_file_changes() {
        let folder = Folder::new("moved");
        let mut sink = sink(folder.file("log"));
        sink.push(b"first line\nsecond line\nthird line\n");
        let Out::File { file, .. } = &mut sink.out else { panic!("no file") };
        file.write_all(b"first line\nsec").unwrap();
        sink.consume(14);
        sink.open_file();
        sink.lost_untold = 0;
        sink.flush();
        assert_eq!(folder.read("log"), "first line\nsec\nthird line\n");
        assert_eq!(sink.lost, 1);
    }

    #[test]
    fn a_half_line_of_an_earlier_run_is_ended() {
        let folder = Folder::new("earlier");
        fs::write(folder.file("log"), "cut o").unwrap();
        let mut sink = sink(folder.file("log"));
        sink.push(b"new\n");
        sink.flush();
        assert_eq!(folder.read("log"), "cut o\nnew\n");
    }

    #[test]
    fn reopen_follows_a_rename() {
        let folder = Folder::new("reopen");
        let mut sink = sink(folder.file("log"));
        sink.push(b"old\n");
        fs::rename(folder.file("log"), folder.file("log.old")).unwrap();
        sink.reopen();
        sink.push(b"new\n");
        sink.flush();
        assert_eq!(folder.read("log.old"), "old\n");
        assert_eq!(folder.read("log"), "new\n");
    }

    #[test]
    fn missing_folders_are_made_and_impossible_ones_survived() {
        let folder = Folder::new("folders");
        let mut deep = sink(folder.file("a/b/log"));
        deep.push(b"x\n");
        deep.flush();
        assert_eq!(folder.read("a/b/log"), "x\n");

        fs::write(folder.file("plain"), "").unwrap();
        let mut impossible = sink(folder.file("plain/log"));
        assert!(impossible.in_trouble && matches!(impossible.out, Out::Stderr { .. }));
        fs::remove_file(folder.file("plain")).unwrap();
        impossible.reopen();
        impossible.push(b"y\n");
        impossible.flush();
        assert_eq!(folder.read("plain/log"), "y\n");
        assert!(!impossible.in_trouble);
    }

    #[test]
    fn rotation_keeps_whole_lines_and_so_many_files() {
        let folder = Folder::new("rotation");
        let settings = Settings {
            file: Some(folder.file("log")),
            max_size: Some(20),
            keep: 2,
            ..Settings::default()
        };
        let mut sink = Sink::open_reporting(settings, |_| {});
        for number in 0..7 {
            sink.push(format!("line {number}\n").as_bytes());
        }
        sink.push(b"one line that is longer than a whole file\n");
        sink.push(b"last\n");
        sink.flush();
        assert_eq!(folder.read("log"), "last\n");
        assert_eq!(folder.read("log.1"), "one line that is longer than a whole file\n");
        assert_eq!(folder.read("log.2"), "line 6\n");
        assert!(!folder.file("log.3").exists());
    }

    #[test]
    fn rotation_without_old_files() {
        let folder = Folder::new("rotation-none");
        let settings = Settings {
            file: Some(folder.file("log")),
            max_size: Some(4),
            keep: 0,
            ..Settings::default()
        };
        let mut sink = Sink::open_reporting(settings, |_| {});
        for line in ["one\n", "two\n"] {
            sink.push(line.as_bytes());
            sink.flush();
        }
        assert_eq!(folder.read("log"), "two\n");
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    }

    #[test]
    fn rotation_that_fails_is_said_and_the_file_grows_on() {
        static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let folder = Folder::new("rotation-fails");
        fs::create_dir_all(folder.file("log.1/in-the-way")).unwrap();
        let settings = Settings {
            file: Some(folder.file("log")),
            max_size: Some(4),
            keep: 1,
            ..Settings::default()
        };
        let mut sink =
            Sink::open_reporting(settings, |text| REPORTS.lock().unwrap().push(text.into()));
        for line in ["one\n", "two\n"] {
            sink.push(line.as_bytes());
            sink.flush();
        }
        assert_eq!(folder.read("log"), "one\ntwo\n");
        assert!(REPORTS.lock().unwrap()[0].contains("cannot be rotated"));
    }

    #[test]
    fn a_file_that_somebody_cut_is_not_rotated() {
        let folder = Folder::new("cut");
        let settings = Settings {
            file: Some(folder.file("log")),
            max_size: Some(8),
            keep: 3,
            ..Settings::default()
        };
        let mut sink = Sink::open_reporting(settings, |_| {});
        sink.push(b"1234567\n");
        sink.flush();
        fs::write(folder.file("log"), "").unwrap();
        sink.push(b"new\n");
        sink.flush();
        assert_eq!(folder.read("log"), "new\n");
        assert!(!folder.file("log.1").exists());
    }
}
