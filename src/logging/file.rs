//! The log file on disk: opened for appending, rotated by its size.

#![expect(clippy::disallowed_methods, reason = "the log has a file and a wall clock of its own")]
#![expect(clippy::indexing_slicing, reason = "positions come from the same buffer")]
#![expect(clippy::disallowed_types, reason = "the log has a file of its own")]

use rustix::fs::{Access, AtFlags, CWD, OFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why the log could not do its work with a file.
#[derive(Debug)]
pub enum FileProblem {
    /// It cannot be opened or made.
    Write(io::Error),
    /// It can be written, but not renamed once it is full.
    Rotate(io::Error),
}

/// Finds out whether the log can use the file at `path`, without writing or making anything. The
/// disk may still be full.
///
/// # Errors
/// What opening it, or rotating it if there is a `max_size`, would fail with.
pub fn check(path: &Path, max_size: Option<u64>) -> Result<(), FileProblem> {
    match append().open(path) {
        Ok(file) => {
            let is_rotated = max_size.is_some() && file.metadata().is_ok_and(|it| it.is_file());
            let folder = nearest_folder(path).filter(|_| is_rotated);
            folder.map_or(Ok(()), may_change).map_err(FileProblem::Rotate)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            nearest_folder(path).map_or(Err(error), may_change).map_err(FileProblem::Write)
        }
        Err(error) => Err(FileProblem::Write(error)),
    }
}

/// The folder of the file, or the nearest above it that exists: missing ones are made.
pub fn nearest_folder(path: &Path) -> Option<&Path> {
    let folders = path.ancestors().skip(1);
    folders.map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder }).find(
        // Any other error shows when the folder is used.
        |folder| !fs::metadata(folder).is_err_and(|error| error.kind() == ErrorKind::NotFound),
    )
}

/// Whether files can be made in the folder and renamed.
fn may_change(folder: &Path) -> io::Result<()> {
    rustix::fs::accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(Into::into)
}

/// How a log file is opened. Never waits: a named pipe without a reader is an error.
fn append() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(OFlags::NONBLOCK.bits() as i32);
    options
}

/// How many bytes of `lines` may be written to a file of `size` bytes before it has to be rotated:
/// whole lines, and into an empty file at least one.
pub(super) fn room(size: u64, max_size: Option<u64>, lines: &[u8]) -> usize {
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

pub(super) fn shift(path: &Path, keep: u32) -> io::Result<()> {
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

pub(super) struct Opened {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) ends_in_half_line: bool,
}

/// Opens for appending, folder and file made where they are missing.
pub(super) fn open(path: &Path) -> io::Result<Opened> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("its folder cannot be made: {error}"))
        })?;
    }
    let file = append().create(true).open(path)?;
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

/// True for failures that end by themselves once there is room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;

    fn problem(path: &Path) -> String {
        match check(path, None) {
            Err(FileProblem::Write(error)) => error.to_string(),
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    #[test]
    fn a_check_finds_what_opening_would_and_makes_nothing() {
        let folder = TestFolder::make();
        folder.write("plain", "");
        for usable in ["plain", "new", "made/for/it"] {
            assert!(check(&folder.join(usable), Some(1)).is_ok(), "{usable}");
        }
        assert!(check(Path::new("/dev/null"), Some(1)).is_ok());
        for (unusable, why) in [("plain/x.log", "Not a directory"), ("", "Is a directory")] {
            let path = folder.join(unusable);
            assert!(problem(&path).starts_with(why), "{}", problem(&path));
        }
        let names = fs::read_dir(&*folder).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["plain"]);
    }
}
