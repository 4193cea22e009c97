//! Reads a whole small file, and nothing that could block forever or have no end.

#![expect(
    clippy::disallowed_types,
    reason = "finds out which addresses are local, at start and on a background thread"
)]

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The largest file that is read.
pub(super) const BYTES_MAX: u64 = 1024 * 1024;

/// Reads the regular file at `path`, of at most [`BYTES_MAX`] bytes.
///
/// A pipe, which would keep the reader waiting for a writer, a device and a folder
/// are refused without waiting. Links are followed, as mounted configurations need.
///
/// # Errors
/// A phrase that follows the name of the file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    // Opening a pipe for reading waits for a writer, unless this is set; for files it has no
    // effect.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err("cannot be read: it is not a regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err("cannot be read: it is larger than 1 MiB".into());
    }
    Ok(bytes)
}

fn unreadable(error: io::Error) -> String {
    format!("cannot be read: {error}")
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "configuration is read at start and by a background thread"
)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let folder = TestFolder::make();
        let path = |name: &str| folder.join(name);
        std::fs::write(path("whole"), vec![b'x'; BYTES_MAX as usize]).unwrap();
        assert_eq!(read(&path("whole")).unwrap().len() as u64, BYTES_MAX);
        std::os::unix::fs::symlink("whole", path("link")).unwrap();
        assert_eq!(read(&path("link")).unwrap().len() as u64, BYTES_MAX);
        std::fs::write(path("larger"), vec![b'x'; BYTES_MAX as usize + 1]).unwrap();
        assert!(read(&path("larger")).unwrap_err().contains("larger than 1 MiB"));

        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), kind, mode, 0).unwrap();
        for name in [path("pipe"), "/dev/zero".into(), "/".into()] {
            let why = read(&name).unwrap_err();
            assert!(why.contains("not a regular file"), "{}: {why}", name.display());
        }
        assert!(read(&path("none")).unwrap_err().contains("No such file"));
    }
}
