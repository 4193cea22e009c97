//! The log: one line an event, collected in memory, written at most once a turn of the loop.
//!
//! ```text
//! info!(..) ─► Front (level, target, one escaped line) ─► simplelog ─► Pen ─► Sink: buffer ─flush()─► file or standard error
//! ```
//!
//! Text lines are `2026-11-22T10:00:00.123Z INFO  relay input_1 opened client=127.0.0.1:52010`: UTC time, level, target,
//! message with `key=value` pairs. JSON lines have the members `time`, `level`, `target` and `message`; the pairs stay inside the
//! message, because taking them out of it again could only guess. Control characters are escaped in both, so that no client can
//! forge a line. The target of a line of ours is the last part of its module's path (`aivtuber_gateway::session::relay` is `relay`).
//!
//! Surprising: nothing reaches the disk before [`Logging::turn`] or `log::logger().flush()`. The reactor calls the one once a turn: the
//! first line after a while is written at once, those that follow it closely go together. A thread of its own calls the other after its
//! lines; a panic and [`Logging::finish`] do too. Nothing in here blocks on a full pipe, waits for a disk to have room or
//! panics over one:
//!
//! - **Whole lines.** What was written of a line before a failure is continued, or ended with a newline, never run into the next one.
//! - **Bounded.** At most [`BUFFER_BYTES_MAX`] wait; further lines are dropped, counted, and the count is logged when there is room again.
//! - **Said once.** A file that cannot be written is reported on standard error once, and once more when it works again. Where it
//!   cannot even be opened, lines go to standard error in the meantime; a full disk only makes them wait.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::base::moment::Moment;
use crate::reactor::LogState;
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec};
use simplelog::{ConfigBuilder, WriteLogger};
use time::OffsetDateTime;

/// Bytes of lines that may wait to be written; what comes on top is dropped and counted.
pub const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// So many bytes are written without gathering more.
const GATHER_BYTES: usize = 16 * 1024;

/// The buffer's first room. The allocator maps a piece so large by itself, so that of it only what was once written to is there;
/// one that had to grow is given back once it is empty.
const BUFFER_BYTES_KEPT: usize = 128 * 1024;

/// Room for one line that is kept for the next; a longer one takes its room with it.
const LINE_BYTES_KEPT: usize = 1024;

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

/// Modules whose lines are held at `warn`: below it they print payloads (tungstenite) or every event (mio). The `::` leaves the
/// bare names to us: `redis` is what our own lines about Redis may be called.
const QUIET: [&str; 3] = ["tungstenite::", "mio::", "redis::"];

/// The `[log]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The least important level that is written.
    pub level: LevelFilter,
    /// Where lines go; `None` is standard error.
    pub file: Option<PathBuf>,
    /// How a line looks.
    pub format: Format,
    /// The file is rotated before it grows beyond this many bytes; `None`: never.
    pub max_size: Option<u64>,
    /// How many rotated files stay (`file.1` is the youngest); with 0 the full file is deleted.
    pub keep: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            level: LevelFilter::Info,
            file: None,
            format: Format::Text,
            max_size: None,
            keep: 5,
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, target, message.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Makes the log the process's log, and the panic message part of it. Can succeed once in a process.
///
/// A file that cannot be opened is no error: it is reported on standard error, where the lines then go.
pub fn start(settings: Settings) -> Result<Logging, log::SetLoggerError> {
    let level = settings.level;
    let sink = Arc::new(Mutex::new(Sink::open(settings)));
    log::set_boxed_logger(Box::new(Front::new(Arc::clone(&sink))))?;
    log::set_max_level(level);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!(target: "panic", "{panic}");
        log::logger().flush();
        print(panic);
    }));
    Ok(Logging { sink })
}

/// A hold on the running log, for signals and for the end.
#[derive(Clone)]
pub struct Logging {
    sink: Arc<Mutex<Sink>>,
}

impl Logging {
    /// Opens the file again by its name, after what waits was written to the old one (logrotate's `create` mode).
    pub fn reopen(&self) {
        lock(&self.sink).reopen();
    }

    /// From now on this level, whatever the settings said.
    pub fn set_level(&self, level: LevelFilter) {
        log::set_max_level(level);
    }

    /// Takes new settings into use, all of them, and opens the file again.
    pub fn apply(&self, settings: Settings) {
        log::set_max_level(settings.level);
        let mut sink = lock(&self.sink);
        sink.flush();
        sink.settings = settings;
        sink.reopen();
    }

    /// Writes the lines that wait, without waiting for anything, unless the last ones were written a moment ago or did not go out.
    /// Called once a turn of the loop, and at the moment that it answers.
    pub fn turn(&self, now: Moment) -> LogState {
        let mut sink = lock(&self.sink);
        LogState { due_at: sink.turn(now), lines_lost: sink.lost }
    }

    /// Writes what is left, waiting a moment for a slow reader. The last call before the process exits.
    pub fn finish(&self) {
        log::logger().flush();
        lock(&self.sink).finish();
    }
}

/// The process's logger: decides, makes the line, hands it to simplelog.
struct Front {
    inner: Box<WriteLogger<Pen>>,
    sink: Arc<Mutex<Sink>>,
    /// Where lines are made, so that room is not asked for and given back for each.
    room: Mutex<String>,
}

impl Front {
    fn new(sink: Arc<Mutex<Sink>>) -> Self {
        // Everything but the message is switched off: the line is finished before it gets there.
        let bare = ConfigBuilder::new()
            .set_time_level(LevelFilter::Off)
            .set_max_level(LevelFilter::Off)
            .set_thread_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .build();
        let pen = Pen { line: Vec::new(), sink: Arc::clone(&sink) };
        Front {
            inner: WriteLogger::new(LevelFilter::Trace, bare, pen),
            sink,
            room: Mutex::default(),
        }
    }
}

impl Log for Front {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level() && !is_hushed(metadata.target(), metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Made while no lock is held: a message whose `Display` logs or panics then does no harm here. What logs meanwhile finds
        // other room.
        let format = lock(&self.sink).settings.format;
        let mut line = std::mem::take(&mut *lock(&self.room));
        write_line(
            &mut line,
            format,
            OffsetDateTime::now_utc(),
            record.level(),
            record.target(),
            *record.args(),
        );
        self.inner
            .log(&Record::builder().level(record.level()).args(format_args!("{line}")).build());
        if line.capacity() <= LINE_BYTES_KEPT {
            line.clear();
            *lock(&self.room) = line;
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// True for a line of another crate that would be noise, or show payloads.
fn is_hushed(target: &str, level: Level) -> bool {
    level > Level::Warn && QUIET.iter().any(|path| target.starts_with(path))
}

/// Appends one line, without its newline and without any other control character.
fn write_line(
    line: &mut String,
    format: Format,
    at: OffsetDateTime,
    level: Level,
    target: &str,
    message: fmt::Arguments<'_>,
) {
    let target = match target.strip_prefix("aivtuber_gateway::") {
        Some(path) => path.rsplit("::").next().unwrap_or(path),
        None => target,
    };
    match format {
        Format::Text => {
            push_time(line, at);
            line.push(' ');
            line.push_str(level.as_str());
            line.push_str(&"      "[level.as_str().len()..]);
            let start = line.len();
            line.push_str(target);
            line.push(' ');
            let _ = line.write_fmt(message);
            // Looked at as a whole: a message comes in dozens of pieces.
            if !is_plain(&line[start..]) {
                let raw = line.split_off(start);
                escape_into(line, &raw);
            }
        }
        Format::Json => {
            let (target, message) =
                (serde_json::Value::from(target), serde_json::Value::from(message.to_string()));
            line.push_str(r#"{"time":""#);
            push_time(line, at);
            let _ = write!(line, r#"","level":"{level}","target":{target},"message":{message}}}"#);
        }
    }
}

/// `2026-11-22T10:00:00.123Z`. By hand, because padded numbers through `write!` cost as much as the rest of a line.
fn push_time(line: &mut String, at: OffsetDateTime) {
    let (hour, minute, second, milli) = at.to_hms_milli();
    push_digits::<4>(line, at.year().unsigned_abs());
    let pairs =
        [('-', u8::from(at.month())), ('-', at.day()), ('T', hour), (':', minute), (':', second)];
    for (before, number) in pairs {
        line.push(before);
        push_digits::<2>(line, number.into());
    }
    line.push('.');
    push_digits::<3>(line, milli.into());
    line.push('Z');
}

/// The last `N` decimal digits of `number`.
fn push_digits<const N: usize>(line: &mut String, mut number: u32) {
    let mut digits = [0; N];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line.extend(digits.map(char::from));
}

/// Nearly all text is. Without an early end the compiler looks at many bytes at once.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'))
}

fn escape_into(line: &mut String, text: &str) {
    for c in text.chars() {
        // The last two are line ends to some readers, though not control characters.
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// What simplelog writes to: puts its pieces together and hands over whole lines.
struct Pen {
    line: Vec<u8>,
    sink: Arc<Mutex<Sink>>,
}

impl Write for Pen {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(piece);
        if self.line.ends_with(b"\n") {
            lock(&self.sink).push(&self.line);
            self.line.clear();
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.sink).flush();
        Ok(())
    }
}

/// The lock, also after a thread panicked while it had it: whatever is done under one leaves things in order.
fn lock<T>(one: &Mutex<T>) -> MutexGuard<'_, T> {
    one.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lines on their way out.
struct Sink {
    settings: Settings,
    out: Out,
    /// Lines that wait; the first may have been written in part, see `is_mid_line`.
    buffer: Vec<u8>,
    is_mid_line: bool,
    /// Nothing is written by turns before this moment.
    not_before: Option<Moment>,
    /// Lines dropped since the start, and those of them that no line in the log tells of yet.
    lost: u64,
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
    fn open(settings: Settings) -> Sink {
        Sink::open_reporting(settings, report_on_stderr)
    }

    fn open_reporting(settings: Settings, report: fn(&str)) -> Sink {
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
    fn push(&mut self, line: &[u8]) {
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
    fn turn(&mut self, now: Moment) -> Option<Moment> {
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
    fn flush(&mut self) {
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

    fn finish(&mut self) {
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

    fn reopen(&mut self) {
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
        match open_log(&path) {
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
                Out::File { file, size } => match room(*size, self.settings.max_size, &self.buffer)
                {
                    0 => {
                        self.rotate();
                        continue;
                    }
                    bytes => file.write(&self.buffer[..bytes]),
                },
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
            Out::File { .. } if is_full(error) => {
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
        match shift(&path, self.settings.keep) {
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

/// How many bytes of `lines` may be written to a file of `size` bytes before it has to be rotated: whole lines, and into an empty
/// file at least one.
fn room(size: u64, max_size: Option<u64>, lines: &[u8]) -> usize {
    let Some(max_size) = max_size else { return lines.len() };
    let left = max_size.saturating_sub(size);
    if lines.len() as u64 <= left {
        return lines.len();
    }
    let fitting = &lines[..left as usize];
    match memchr::memrchr(b'\n', fitting) {
        Some(end) => end + 1,
        None if size == 0 => memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1),
        None => 0,
    }
}

fn shift(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..keep).rev() {
        match fs::rename(numbered(number), numbered(number + 1)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, numbered(1))
}

struct Opened {
    file: File,
    size: u64,
    ends_in_half_line: bool,
}

/// Opens for appending, folder and file made where they are missing. Never waits: a named pipe without a reader is an error.
fn open_log(path: &Path) -> io::Result<Opened> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("its folder cannot be made: {error}"))
        })?;
    }
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().append(true).create(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    let size = if metadata.is_file() { metadata.len() } else { 0 };
    Ok(Opened {
        file,
        size,
        ends_in_half_line: size > 0 && last_byte(path).is_ok_and(|byte| byte != b'\n'),
    })
}

fn last_byte(path: &Path) -> io::Result<u8> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::End(-1))?;
    let mut byte = [0];
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// True for failures that end by themselves once somebody makes room.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
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

    fn at() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(1_795_341_600_123_456_789).unwrap()
    }

    fn line(
        format: Format,
        at: OffsetDateTime,
        level: Level,
        target: &str,
        message: &str,
    ) -> String {
        let mut line = String::new();
        write_line(&mut line, format, at, level, target, format_args!("{message}"));
        line
    }

    #[test]
    fn text_line() {
        let line = line(
            Format::Text,
            at(),
            Level::Info,
            "aivtuber_gateway::session::relay",
            "input_1 opened code=1000",
        );
        assert_eq!(line, "2026-11-22T10:00:00.123Z INFO  relay input_1 opened code=1000");
    }

    #[test]
    fn json_line() {
        let line = line(Format::Json, at(), Level::Error, "demo", "say \"hi\"\n\u{1b}[1m");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(value["time"], "2026-11-22T10:00:00.123Z");
        assert_eq!(value["level"], "ERROR");
        assert_eq!(value["target"], "demo");
        assert_eq!(value["message"], "say \"hi\"\n\u{1b}[1m");
        assert_eq!(value.as_object().unwrap().len(), 4);
    }

    #[test]
    fn control_characters_are_escaped() {
        let line = line(
            Format::Text,
            at(),
            Level::Warn,
            "x",
            "a\r\n2026 INFO forged\u{1b}[31m\u{85}\u{2028}é\\",
        );
        assert!(
            line.ends_with("x a\\r\\n2026 INFO forged\\u{1b}[31m\\u{85}\\u{2028}é\\"),
            "{line}"
        );
    }

    #[test]
    fn other_crates_are_hushed_below_warn() {
        assert!(is_hushed("tungstenite::protocol", Level::Trace));
        assert!(is_hushed("mio::poll", Level::Info));
        assert!(is_hushed("redis::parser", Level::Debug));
        assert!(!is_hushed("tungstenite::protocol", Level::Warn));
        assert!(!is_hushed("redis", Level::Info), "a target of ours");
        assert!(!is_hushed("aivtuber_gateway::reactor::redis", Level::Trace));
        assert!(!is_hushed("miobridge::poll", Level::Trace));
    }

    #[test]
    fn lines_wait_for_the_flush_and_pass_through_simplelog_whole() {
        let folder = Folder::new("front");
        let shared = Arc::new(Mutex::new(sink(folder.file("log"))));
        let front = Front::new(Arc::clone(&shared));
        // `Front::log` asks the global level, which other tests leave alone.
        log::set_max_level(LevelFilter::Info);
        for (level, text) in
            [(Level::Info, "one"), (Level::Debug, "never"), (Level::Error, "two\nparts")]
        {
            front.log(
                &Record::builder().level(level).target("t").args(format_args!("{text}")).build(),
            );
        }
        assert_eq!(folder.read("log"), "");
        front.flush();
        let text = folder.read("log");
        let lines: Vec<_> = text.lines().map(|line| &line[25..]).collect();
        assert_eq!(lines, ["INFO  t one", "ERROR t two\\nparts"]);
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
