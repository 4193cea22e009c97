//! Writes lines to the log file or to standard error. A write to a file may wait for its disk, see
//! [`Sink::never_waits`].

#![expect(clippy::indexing_slicing, reason = "positions come from the same buffer")]
#![expect(clippy::disallowed_methods, reason = "the log has a file and a wall clock of its own")]
#![expect(clippy::disallowed_types, reason = "the log has a file of its own")]

use super::Settings;
use super::file;
use super::line::write_line;
use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

/// What a writable pipe takes in one write without blocking (`PIPE_BUF`).
const PIPE_BYTES: usize = 4096;

/// How long to wait before trying again to open a file that could not be opened.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// The first capacity of a buffer of lines. An allocation of this size gets a mapping of its own,
/// so untouched pages of it are not resident. A buffer that had to grow is given back once it is
/// empty.
pub(super) const BUFFER_BYTES: usize = 128 * 1024;

/// The file or standard error, and the lines that are on their way there.
#[derive(Debug)]
pub(super) struct Sink {
    settings: Settings,
    out: Out,
    /// Lines to be written. The first may have been written in part, see `is_mid_line`.
    buffer: Vec<u8>,
    is_mid_line: bool,
    /// Lines that got lost in here since [`Sink::take_lost`] was last called.
    lost: u64,
    /// Lost lines that no line in the log reports yet.
    lost_unreported: u64,
    /// From the report that the file cannot be written until the report that it is written again.
    is_failing: bool,
    /// The system's number of the last error of the file.
    error_code: i32,
    /// Standard error is a file on a disk.
    is_stderr_a_file: bool,
    #[cfg(test)]
    pretends_never_to_wait: bool,
    /// Where reports about the log itself go: standard error, and a list in tests.
    report: fn(&str),
}

/// Where the lines go at present.
#[derive(Debug)]
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
    /// Opens what the settings name. Problems are reported on standard error.
    pub(super) fn open(settings: Settings) -> Sink {
        Sink::open_reporting(settings, report_on_stderr)
    }

    pub(super) fn open_reporting(settings: Settings, report: fn(&str)) -> Sink {
        let mut sink = Sink {
            settings,
            out: Out::Stderr { retry_at: SystemTime::UNIX_EPOCH },
            buffer: Vec::new(),
            is_mid_line: false,
            lost: 0,
            lost_unreported: 0,
            is_failing: false,
            error_code: 0,
            is_stderr_a_file: is_file(io::stderr().as_fd()),
            #[cfg(test)]
            pretends_never_to_wait: false,
            report,
        };
        sink.open_file();
        sink
    }

    /// Takes whole lines out of `lines`, which is empty afterwards.
    pub(super) fn take_lines(&mut self, lines: &mut Vec<u8>) {
        if self.buffer.is_empty() {
            // The buffers change places, so neither is allocated anew.
            std::mem::swap(&mut self.buffer, lines);
        } else {
            self.buffer.append(lines);
        }
    }

    /// Notes lines that were dropped before they came here, to be reported in the log.
    pub(super) fn note_dropped(&mut self, lines: u64) {
        self.lost_unreported += lines;
    }

    /// Lines that got lost in here since the last call.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Bytes that are not written yet.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether writing waits for nothing: to standard error that is a terminal, a pipe or a socket,
    /// which can be asked first. Not while it replaces a file that is opened again now and then.
    pub(super) fn never_waits(&self) -> bool {
        #[cfg(test)]
        if self.pretends_never_to_wait {
            return true;
        }
        self.settings.file.is_none() && !self.is_stderr_a_file
    }

    #[cfg(test)]
    pub(super) fn pretend_never_to_wait(&mut self) {
        self.pretends_never_to_wait = true;
    }

    /// Whether the file cannot be written at present.
    pub(super) fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// The system's number of the error for which the file cannot be written at present, or 0.
    pub(super) fn error_code(&self) -> i32 {
        if self.is_failing { self.error_code } else { 0 }
    }

    /// Writes what the file takes, or what standard error takes without waiting for its reader.
    pub(super) fn flush(&mut self) {
        if self.buffer.is_empty() && self.lost_unreported == 0 {
            return;
        }
        if let Out::Stderr { retry_at } = self.out
            && self.settings.file.is_some()
            && is_past(retry_at)
        {
            self.open_file();
        }
        let lost = self.lost;
        self.write_buffer();
        if self.buffer.is_empty() && self.lost_unreported > 0 && self.lost == lost {
            self.report_lost();
        }
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BYTES {
            self.buffer = Vec::new();
        }
    }

    /// Writes what waits, then opens the file again by its name.
    pub(super) fn reopen(&mut self) {
        self.flush();
        self.open_file();
    }

    /// Writes what waits as it was to be written, then takes the new settings into use and opens
    /// the file again.
    pub(super) fn apply(&mut self, settings: Settings) {
        self.flush();
        self.settings = settings;
        self.open_file();
    }

    /// Writes how many lines were lost. Where that is lost too, it is written later.
    fn report_lost(&mut self) {
        let unreported = std::mem::take(&mut self.lost_unreported);
        let message = format_args!(
            "lines lost={unreported}: they could not be written, or came faster than they could be"
        );
        let (format, now) = (self.settings.format, OffsetDateTime::now_utc());
        let mut line = String::new();
        write_line(&mut line, format, now, Level::Warn, "logging", message);
        line.push('\n');
        self.buffer.extend_from_slice(line.as_bytes());
        let lost = self.lost;
        self.write_buffer();
        if self.lost > lost {
            (self.lost, self.lost_unreported) = (lost, unreported);
        }
    }

    /// Opens what the settings name; standard error takes its place where that fails.
    fn open_file(&mut self) {
        let Some(path) = self.settings.file.clone() else {
            self.go_to(Out::Stderr { retry_at: SystemTime::UNIX_EPOCH });
            self.is_failing = false;
            return;
        };
        match file::open(&path) {
            Ok(opened) => {
                self.go_to(Out::File { file: opened.file, size: opened.size });
                if opened.ends_in_half_line {
                    self.buffer.insert(0, b'\n');
                }
                // `is_failing` is cleared by the first line that is really written: a full disk can
                // open files.
            }
            Err(error) => {
                self.go_to(Out::Stderr { retry_at: SystemTime::now() + REOPEN_AFTER });
                self.report_failure(&error, "lines go to standard error until it can be");
            }
        }
    }

    /// Changes the place. A line of which the old place has the beginning is dropped: its rest
    /// would be a false line.
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
            self.lost_unreported += 1;
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
        match &mut self.out {
            Out::File { size, .. } => {
                *size += bytes as u64;
                if std::mem::take(&mut self.is_failing) {
                    (self.report)(&format!("the log file {} is written again", self.path()));
                }
            }
            // In place of a file, it says nothing about that.
            Out::Stderr { .. } => self.is_failing &= self.settings.file.is_some(),
        }
    }

    fn handle_failure(&mut self, error: &io::Error) {
        match self.out {
            // A file on a disk that is full. There is nowhere else to report it.
            Out::Stderr { .. } if file::is_full(error) => {
                self.error_code = error.raw_os_error().unwrap_or(0);
                self.is_failing = true;
            }
            Out::Stderr { .. } => {
                let lines = self.buffer.iter().filter(|&&b| b == b'\n').count() as u64;
                self.buffer.clear();
                self.is_mid_line = false;
                self.lost += lines;
                self.lost_unreported += lines;
            }
            Out::File { .. } if file::is_full(error) => {
                self.report_failure(error, "lines wait in memory until it can be, up to 1 MiB");
            }
            // A disk that was removed comes back as another file; the old descriptor would fail for
            // ever.
            Out::File { .. } => {
                self.go_to(Out::Stderr { retry_at: SystemTime::now() + REOPEN_AFTER });
                self.report_failure(error, "lines go to standard error until it can be");
            }
        }
    }

    fn report_failure(&mut self, error: &io::Error, meanwhile: &str) {
        self.error_code = error.raw_os_error().unwrap_or(0);
        if !std::mem::replace(&mut self.is_failing, true) {
            (self.report)(&format!(
                "the log file {} cannot be written: {error}; {meanwhile}",
                self.path()
            ));
        }
    }

    /// Renames `file` to `file.1`, that one to `file.2` and so on, and begins a new one. Where that
    /// fails, the file grows on, and the next try comes when it has grown by its limit again.
    fn rotate(&mut self) {
        let Out::File { file, size } = &mut self.out else { return };
        // Another program may have truncated the file (logrotate's `copytruncate`).
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

/// Whether `at` is over, or the clock was set back so far that it might never be.
fn is_past(at: SystemTime) -> bool {
    match at.duration_since(SystemTime::now()) {
        Ok(left) => left > REOPEN_AFTER,
        Err(_) => true,
    }
}

/// Writes a part to standard error without waiting for its reader. The descriptor is shared with
/// the program that started the gateway, so it is not made nonblocking; a pipe that is writable
/// takes [`PIPE_BYTES`] at once.
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

/// Whether writing to it may wait for a disk.
fn is_file(descriptor: BorrowedFd<'_>) -> bool {
    let kind = rustix::fs::fstat(descriptor).map(|stat| FileType::from_raw_mode(stat.st_mode));
    !matches!(kind, Ok(FileType::Fifo | FileType::Socket | FileType::CharacterDevice))
}

fn report_on_stderr(text: &str) {
    let _ = write_stderr(format!("aivtuber-gateway: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use crate::logging::tests::sink;
    use std::fs;
    use std::sync::Mutex;

    fn push(sink: &mut Sink, lines: &[u8]) {
        sink.take_lines(&mut lines.to_vec());
    }

    #[test]
    fn a_full_disk_keeps_the_lines_until_there_is_room() {
        static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let folder = TestFolder::make();
        let link = folder.join("log");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let settings = Settings { file: Some(link.clone()), ..Settings::default() };
        let mut sink =
            Sink::open_reporting(settings, |text| REPORTS.lock().unwrap().push(text.into()));
        for text in ["one\n", "two\n"] {
            push(&mut sink, text.as_bytes());
            sink.flush();
        }
        sink.reopen();
        assert_eq!(sink.buffer, b"one\ntwo\n");
        assert_eq!(REPORTS.lock().unwrap().len(), 1, "reported once");
        fs::remove_file(&link).unwrap();
        sink.reopen();
        push(&mut sink, b"three\n");
        sink.flush();
        assert_eq!(folder.read("log"), "one\ntwo\nthree\n");
        let reports = REPORTS.lock().unwrap();
        assert_eq!(reports.len(), 2);
        assert!(reports[0].contains("cannot be written: No space left"), "{}", reports[0]);
        assert!(reports[1].ends_with("is written again"), "{}", reports[1]);
    }

    #[test]
    fn a_half_written_line_is_continued_in_the_same_file() {
        let folder = TestFolder::make();
        let mut sink = sink(folder.join("log"));
        push(&mut sink, b"first line\nsecond line\n");
        // As a disk that had room for 14 bytes leaves it.
        let Out::File { file, .. } = &mut sink.out else { panic!("no file") };
        file.write_all(b"first line\nsec").unwrap();
        sink.consume(14);
        sink.flush();
        assert_eq!(folder.read("log"), "first line\nsecond line\n");
    }

    #[test]
    fn a_half_written_line_is_dropped_when_the_file_changes() {
        let folder = TestFolder::make();
        let mut sink = sink(folder.join("log"));
        push(&mut sink, b"first line\nsecond line\nthird line\n");
        let Out::File { file, .. } = &mut sink.out else { panic!("no file") };
        file.write_all(b"first line\nsec").unwrap();
        sink.consume(14);
        sink.open_file();
        sink.lost_unreported = 0;
        sink.flush();
        assert_eq!(folder.read("log"), "first line\nsec\nthird line\n");
        assert_eq!(sink.lost, 1);
    }

    #[test]
    fn a_half_line_of_an_earlier_run_gets_its_newline() {
        let folder = TestFolder::make();
        fs::write(folder.join("log"), "cut o").unwrap();
        let mut sink = sink(folder.join("log"));
        push(&mut sink, b"new\n");
        sink.flush();
        assert_eq!(folder.read("log"), "cut o\nnew\n");
    }

    #[test]
    fn reopen_follows_a_rename() {
        let folder = TestFolder::make();
        let mut sink = sink(folder.join("log"));
        push(&mut sink, b"old\n");
        fs::rename(folder.join("log"), folder.join("log.old")).unwrap();
        sink.reopen();
        push(&mut sink, b"new\n");
        sink.flush();
        assert_eq!(folder.read("log.old"), "old\n");
        assert_eq!(folder.read("log"), "new\n");
    }

    #[test]
    fn missing_folders_are_created_and_impossible_ones_survived() {
        let folder = TestFolder::make();
        let mut deep = sink(folder.join("a/b/log"));
        push(&mut deep, b"x\n");
        deep.flush();
        assert_eq!(folder.read("a/b/log"), "x\n");

        fs::write(folder.join("plain"), "").unwrap();
        let mut impossible = sink(folder.join("plain/log"));
        assert!(impossible.is_failing && matches!(impossible.out, Out::Stderr { .. }));
        fs::remove_file(folder.join("plain")).unwrap();
        impossible.reopen();
        push(&mut impossible, b"y\n");
        impossible.flush();
        assert_eq!(folder.read("plain/log"), "y\n");
        assert!(!impossible.is_failing);
    }

    #[test]
    fn rotation_keeps_whole_lines_and_the_configured_number_of_files() {
        let folder = TestFolder::make();
        let settings = Settings {
            file: Some(folder.join("log")),
            max_size: Some(20),
            keep: 2,
            ..Settings::default()
        };
        let mut sink = Sink::open_reporting(settings, |_| {});
        for number in 0..7 {
            push(&mut sink, format!("line {number}\n").as_bytes());
        }
        push(&mut sink, b"one line that is longer than a whole file\n");
        push(&mut sink, b"last\n");
        sink.flush();
        assert_eq!(folder.read("log"), "last\n");
        assert_eq!(folder.read("log.1"), "one line that is longer than a whole file\n");
        assert_eq!(folder.read("log.2"), "line 6\n");
        assert!(!folder.join("log.3").exists());
    }

    #[test]
    fn rotation_without_old_files() {
        let folder = TestFolder::make();
        let settings = Settings {
            file: Some(folder.join("log")),
            max_size: Some(4),
            keep: 0,
            ..Settings::default()
        };
        let mut sink = Sink::open_reporting(settings, |_| {});
        for line in ["one\n", "two\n"] {
            push(&mut sink, line.as_bytes());
            sink.flush();
        }
        assert_eq!(folder.read("log"), "two\n");
        assert_eq!(fs::read_dir(&*folder).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_rotation_is_reported_and_the_file_grows_on() {
        static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let folder = TestFolder::make();
        fs::create_dir_all(folder.join("log.1/in-the-way")).unwrap();
        let settings = Settings {
            file: Some(folder.join("log")),
            max_size: Some(4),
            keep: 1,
            ..Settings::default()
        };
        let mut sink =
            Sink::open_reporting(settings, |text| REPORTS.lock().unwrap().push(text.into()));
        for line in ["one\n", "two\n"] {
            push(&mut sink, line.as_bytes());
            sink.flush();
        }
        assert_eq!(folder.read("log"), "one\ntwo\n");
        assert!(REPORTS.lock().unwrap()[0].contains("cannot be rotated"));
    }

    #[test]
    fn a_file_truncated_by_another_program_is_not_rotated() {
        let folder = TestFolder::make();
        let settings = Settings {
            file: Some(folder.join("log")),
            max_size: Some(8),
            keep: 3,
            ..Settings::default()
        };
        let mut sink = Sink::open_reporting(settings, |_| {});
        push(&mut sink, b"1234567\n");
        sink.flush();
        fs::write(folder.join("log"), "").unwrap();
        push(&mut sink, b"new\n");
        sink.flush();
        assert_eq!(folder.read("log"), "new\n");
        assert!(!folder.join("log.1").exists());
    }
}
