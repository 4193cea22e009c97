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

mod file;
mod line;
mod sink;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::moment::Moment;
use crate::reactor::LogState;
use line::write_line;
use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, WriteLogger};
pub use sink::BUFFER_BYTES_MAX;
use sink::Sink;
use time::OffsetDateTime;

/// Room for one line that is kept for the next; a longer one takes its room with it.
const LINE_BYTES_KEPT: usize = 1024;

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

    /// The settings in effect.
    pub fn settings(&self) -> Settings {
        lock(&self.sink).settings.clone()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
}
