//! The log file on disk: opened for appending, rotated by its size.

#![expect(clippy::disallowed_methods, reason = "the log has a file and a wall clock of its own")]
#![expect(clippy::indexing_slicing, reason = "positions come from the same buffer")]
#![expect(clippy::disallowed_types, reason = "the log has a file of its own")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

/// Opens for appending, folder and file made where they are missing. Never waits: a named pipe
/// without a reader is an error.
pub(super) fn open(path: &Path) -> io::Result<Opened> {
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

/// True for failures that end by themselves once there is room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}
