//! The log: one line an event, made by the thread that logs it and written without holding it up.
//!
//! ```text
//! info!(…) ─► Logger: level, target, one escaped line ─► simplelog ─► LineWriter ─► Queue
//!
//!   Queue ─► Sink: file (by the writer thread) or standard error (by the loop)
//! ```
//!
//! Text lines are `2026-11-22T10:00:00.123Z INFO  relay input_1 opened client=127.0.0.1:52010`: UTC
//! time, level, target and a message with `key=value` pairs. JSON lines have the same message, and
//! what it says as typed fields (`fields.rs`). Control characters are escaped in both, so that no
//! client can forge a line. The target of the gateway's own lines is the last part of the module's
//! path (`aivtuber_gateway::session::relay` is `relay`).
//!
//! What to know before changing it:
//!
//! - **Logging never waits.** A thread that logs appends to a buffer in memory. Only a thread of
//!   its own, the writer, touches the disk, so a slow or full one holds up nothing. Standard error
//!   that is a terminal, a pipe or a socket is written by the loop, as far as it takes bytes at
//!   once.
//! - **Gathered.** The first line after a pause is written at once; lines that follow within 20 ms
//!   are written together.
//! - **Whole lines.** What was written of a line before a failure is continued, or ended with a
//!   newline, but never run into the next line.
//! - **Bounded.** At most [`WAITING_BYTES_MAX`] wait. Lines beyond that are dropped and counted,
//!   and the count is logged when there is room again.
//! - **Reported once.** A file that cannot be written is reported on standard error once, and once
//!   more when it works again. While it cannot be opened, lines go to standard error; while the
//!   disk is full, they wait in memory.
//! - **Nothing is lost at the end.** A panic and [`Logging::finish`] wait for the writer, for a
//!   second at most.

#![expect(clippy::disallowed_methods, reason = "the log has a file and a wall clock of its own")]

pub(crate) mod fields;
pub(crate) mod file;
mod line;
mod queue;
mod sink;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::moment::Moment;
use crate::reactor::LogState;
use line::write_line;
use log::{Level, LevelFilter, Log, Metadata, Record};
pub use queue::WAITING_BYTES_MAX;
use queue::{Queue, WriterRequest};
use simplelog::{ConfigBuilder, WriteLogger};
use sink::Sink;
use time::OffsetDateTime;

/// The largest line whose buffer is kept for the next line.
const LINE_BYTES_KEPT: usize = 1024;

/// How long a panic and [`Logging::finish`] wait for the writer.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The stack of the writer thread.
const STACK_BYTES: usize = 128 * 1024;

/// Modules of other crates that are logged from `warn` up: below it they print payloads
/// (tungstenite) or every event (mio). The `::` keeps the bare names free: the gateway's own lines
/// about Redis have the target `redis`.
const QUIET: [&str; 3] = ["tungstenite::", "mio::", "redis::"];

/// The level that is written, as a number: [`LevelFilter::Off`] is 0.
static LEVEL: AtomicUsize = AtomicUsize::new(0);

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
    /// How many rotated files are kept (`file.1` is the newest); with 0 the full file is deleted.
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

/// Makes the log the process's log, and the panic message part of it, and starts the writer thread.
/// Can succeed once in a process.
///
/// A file that cannot be opened is no error: it is reported on standard error, where the lines then
/// go.
///
/// # Errors
/// When the system allows no more threads, or there is a logger already.
pub fn start(settings: Settings) -> io::Result<Logging> {
    let level = settings.level;
    let shared = Arc::new(SharedLog::new(settings.clone(), Sink::open(settings)));
    let logger = Logger::new(Arc::clone(&shared));
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    let writer = Arc::clone(&shared);
    std::thread::Builder::new()
        .name("log".into())
        .stack_size(STACK_BYTES)
        .spawn(move || writer.queue.write_all())?;
    set_level(level);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!(target: "panic", "{panic}");
        log::logger().flush();
        print(panic);
    }));
    Ok(Logging { shared })
}

/// A hold on the running log, for signals and for the end.
#[derive(Clone, Debug)]
pub struct Logging {
    shared: Arc<SharedLog>,
}

/// What the threads that log, the writer and [`Logging`] share.
#[derive(Debug)]
struct SharedLog {
    queue: Queue,
    settings: Mutex<Settings>,
    /// The format of the settings, for the threads that log.
    is_json: AtomicBool,
}

impl Logging {
    /// Has the file opened again by its name (logrotate's `create` mode). Lines logged before go to
    /// the old one. Does not wait for it.
    pub fn reopen(&self) {
        self.shared.queue.ask(WriterRequest::Reopen);
    }

    /// Takes all of the new settings into use and has the file opened again. Does not wait for it.
    pub fn apply(&self, settings: Settings) {
        set_level(settings.level);
        self.shared.apply(settings.clone());
        self.shared.queue.ask(WriterRequest::Apply(settings));
    }

    /// The settings in effect.
    pub fn settings(&self) -> Settings {
        lock(&self.shared.settings).clone()
    }

    /// Writes the lines that are due, if that cannot wait for anything; others are left to the
    /// writer. Called once a turn of the loop.
    pub fn turn(&self, now: Moment) -> LogState {
        self.shared.queue.turn(now)
    }

    /// Waits until all lines are written, for a second at most. The last call before the process
    /// exits.
    pub fn finish(&self) {
        self.shared.queue.flush(FLUSH_TIMEOUT);
    }
}

impl SharedLog {
    fn new(settings: Settings, sink: Sink) -> SharedLog {
        let shared = SharedLog {
            queue: Queue::new(sink),
            settings: Mutex::default(),
            is_json: AtomicBool::new(false),
        };
        shared.apply(settings);
        shared
    }

    fn format(&self) -> Format {
        if self.is_json.load(Ordering::Relaxed) { Format::Json } else { Format::Text }
    }

    fn apply(&self, settings: Settings) {
        self.is_json.store(settings.format == Format::Json, Ordering::Relaxed);
        *lock(&self.settings) = settings;
    }
}

/// The process's logger: decides, makes the line, hands it to simplelog.
struct Logger {
    inner: Box<WriteLogger<LineWriter>>,
    shared: Arc<SharedLog>,
    /// The buffer in which lines are made, kept from one line to the next.
    line: Mutex<String>,
}

impl Logger {
    fn new(shared: Arc<SharedLog>) -> Self {
        // Everything but the message is switched off: the line is complete before simplelog gets
        // it.
        let bare = ConfigBuilder::new()
            .set_time_level(LevelFilter::Off)
            .set_max_level(LevelFilter::Off)
            .set_thread_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .build();
        let lines = LineWriter { line: Vec::new(), shared: Arc::clone(&shared) };
        Logger {
            inner: WriteLogger::new(LevelFilter::Trace, bare, lines),
            shared,
            line: Mutex::default(),
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= level() && !is_quiet(metadata.target(), metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The line is made while no lock is held, so a message whose `Display` itself logs or
        // panics does no harm. A thread that logs at the same time finds an empty buffer and uses
        // that.
        let mut line = std::mem::take(&mut *lock(&self.line));
        write_line(
            &mut line,
            self.shared.format(),
            OffsetDateTime::now_utc(),
            record.level(),
            record.target(),
            *record.args(),
        );
        self.inner
            .log(&Record::builder().level(record.level()).args(format_args!("{line}")).build());
        if line.capacity() <= LINE_BYTES_KEPT {
            line.clear();
            *lock(&self.line) = line;
        }
    }

    /// Waits for the writer, for a second at most.
    fn flush(&self) {
        self.shared.queue.flush(FLUSH_TIMEOUT);
    }
}

/// Sets the level of the log. While live frames are followed (`session/tap.rs`), more events are
/// made than are written.
fn set_level(level: LevelFilter) {
    LEVEL.store(level as usize, Ordering::Relaxed);
    log::set_max_level(level);
}

fn level() -> LevelFilter {
    let number = LEVEL.load(Ordering::Relaxed);
    LevelFilter::iter().nth(number).unwrap_or(LevelFilter::Trace)
}

/// Whether a line of another crate is left out: it is noise, or could show payloads.
fn is_quiet(target: &str, level: Level) -> bool {
    level > Level::Warn && QUIET.iter().any(|path| target.starts_with(path))
}

/// What simplelog writes to: puts its pieces together and hands over whole lines.
struct LineWriter {
    line: Vec<u8>,
    shared: Arc<SharedLog>,
}

impl Write for LineWriter {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(piece);
        if self.line.ends_with(b"\n") {
            self.shared.queue.push(&self.line);
            self.line.clear();
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lock, even after a thread panicked with it: nothing is half done under one.
fn lock<T>(one: &Mutex<T>) -> MutexGuard<'_, T> {
    one.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the log has a file and a wall clock of its own")]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;

    pub(super) fn sink(file: PathBuf) -> Sink {
        Sink::open_reporting(Settings { file: Some(file), ..Settings::default() }, |_| {})
    }

    #[test]
    fn other_crates_are_quiet_below_warn() {
        assert!(is_quiet("tungstenite::protocol", Level::Trace));
        assert!(is_quiet("mio::poll", Level::Info));
        assert!(is_quiet("redis::parser", Level::Debug));
        assert!(!is_quiet("tungstenite::protocol", Level::Warn));
        assert!(!is_quiet("redis", Level::Info), "the gateway's own target");
        assert!(!is_quiet("aivtuber_gateway::reactor::redis", Level::Trace));
        assert!(!is_quiet("miobridge::poll", Level::Trace));
    }

    #[test]
    fn lines_pass_through_simplelog_whole() {
        let folder = TestFolder::make();
        let sink = sink(folder.join("log"));
        let shared = Arc::new(SharedLog::new(Settings::default(), sink));
        let logger = Logger::new(Arc::clone(&shared));
        // `Logger::log` asks the global level, which other tests leave alone.
        set_level(LevelFilter::Info);
        for (level, text) in
            [(Level::Info, "one"), (Level::Debug, "never"), (Level::Error, "two\nparts")]
        {
            logger.log(
                &Record::builder().level(level).target("t").args(format_args!("{text}")).build(),
            );
        }
        assert_eq!(folder.read("log"), "");
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.queue.write_all()
        });
        logger.flush();
        let text = folder.read("log");
        let lines: Vec<_> = text.lines().map(|line| &line[25..]).collect();
        assert_eq!(lines, ["INFO  t one", "ERROR t two\\nparts"]);
    }
}
