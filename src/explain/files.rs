//! A log with its rotated predecessors: `LOG`, `LOG.1`, `LOG.2.gz`, …

#![expect(clippy::disallowed_types, reason = "a command of its own, which may wait")]

use flate2::read::MultiGzDecoder;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// The longest line that is looked at, in bytes; the rest of one is passed over.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// One log, oldest part first.
pub struct Log(Vec<LogPart>);

enum LogPart {
    File(PathBuf),
    /// Standard input, which can be read once.
    Memory(Vec<u8>),
}

/// A file of a log cannot be read.
#[derive(Debug)]
pub struct LogError {
    path: PathBuf,
    why: io::Error,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read {}: {}", self.path.display(), self.why)
    }
}

impl Log {
    /// Finds the files of a log: those that have its name and a number are older. `-` is standard
    /// input, which is read into memory.
    pub fn find(path: &Path) -> Result<Log, LogError> {
        let failed = |why| LogError { path: path.to_owned(), why };
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).map_err(failed)?;
            return Ok(Log(vec![LogPart::Memory(bytes)]));
        }
        fs::metadata(path).map_err(failed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut older = Vec::new();
        for entry in fs::read_dir(folder.unwrap_or(Path::new("."))).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let number = path.file_name().and_then(|name| number_of(&entry.file_name(), name));
            older.extend(number.map(|number| (number, entry.path())));
        }
        older.sort_by(|(one, _), (other, _)| other.cmp(one));
        let files = older.into_iter().map(|(_, path)| path).chain([path.to_owned()]);
        Ok(Log(files.map(LogPart::File).collect()))
    }

    /// Calls `handle` with each line, oldest first. Returns what could not be read, or not to its
    /// end: a file that is damaged does not hide the others.
    pub fn each_line(&self, mut handle: impl FnMut(&str)) -> Vec<LogError> {
        let mut errors = Vec::new();
        for part in &self.0 {
            let (path, read) = match part {
                LogPart::File(path) => {
                    let file = File::open(path).map(BufReader::new);
                    (path.clone(), file.and_then(|file| read_lines(file, &mut handle)))
                }
                LogPart::Memory(bytes) => ("-".into(), read_lines(bytes.as_slice(), &mut handle)),
            };
            errors.extend(read.err().map(|why| LogError { path, why }));
        }
        errors
    }
}

/// The number behind the log's name: 2 for `LOG.2` and `LOG.2.gz`.
fn number_of(file: &OsStr, log: &OsStr) -> Option<u32> {
    let (file, log) = (file.to_str()?, log.to_str()?);
    let number = file.strip_prefix(log)?.strip_prefix('.')?;
    number.strip_suffix(".gz").unwrap_or(number).parse().ok()
}

fn read_lines(mut file: impl BufRead, handle: &mut impl FnMut(&str)) -> io::Result<()> {
    // By its first bytes, since a file may be called anything.
    if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return read_all(BufReader::new(MultiGzDecoder::new(file)), handle);
    }
    read_all(file, handle)
}

fn read_all(mut file: impl BufRead, handle: &mut impl FnMut(&str)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if !line.ends_with(b"\n") {
            file.skip_until(b'\n')?;
        }
        handle(&String::from_utf8_lossy(&line));
    }
}
