//! Files of the gateway's own, for speech that it receives: in memory, or without a name in a
//! folder. Each goes with its last descriptor, however the process ends.
//!
//! The loop must not wait for a disk, and a plain write may: for blocks to be allocated, or because
//! too much is still to be written back. So [`SpoolFile::write`] writes only what needs no wait:
//!
//! - In memory (memfd, tmpfs) that is everything.
//! - Where the file system takes `RWF_NOWAIT` for buffered writes (XFS, Btrfs), what the kernel has
//!   room for at once.
//! - Elsewhere (ext4, overlayfs) nothing: the bytes go to a background thread as [`SpoolWrites`],
//!   those of all files together, so that a wake-up of the thread serves many chunks.
//!
//! A background thread opens the file, finds out which of these holds, and writes nothing else.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{
    Device, DeviceKind, OpenError, OpenFile, SharedFile, device_kind, device_number, io_error,
    open_error,
};

/// How often another name is tried where a file needs one for a moment.
const NAMES_MAX: usize = 16;

/// Bytes of a new block. An allocator maps one of this size on its own, so that only the pages that
/// were written to are resident, and returns it to the system as soon as it is freed.
const BLOCK_BYTES: usize = 256 * 1024;

/// A block that has held more than this, or more writes, is not used again: it would take the
/// memory for as long as the gateway runs.
const KEPT_BLOCK_BYTES: usize = 32 * 1024;
const KEPT_WRITES: usize = 256;

/// Only the gateway itself reads it.
const OWNER: Mode = Mode::RUSR.union(Mode::WUSR);

/// A file to write speech to, and to send it from.
#[derive(Clone, Debug)]
pub struct SpoolFile {
    file: OpenFile,
    writes: Writes,
}

/// What a write without a wait takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    Everything,
    WhatThereIsRoomFor,
    Nothing,
}

/// A file to be opened in a folder by a thread that may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolRequest {
    folder: PathBuf,
}

/// Bytes to be written by a thread that may wait: those of all files in one block, because many
/// small ones would leave holes between what stays in memory for longer.
#[derive(Clone, Debug, Default)]
pub struct SpoolWrites {
    bytes: Vec<u8>,
    writes: Vec<SpoolWrite>,
}

#[derive(Clone, Debug)]
struct SpoolWrite {
    to: Arc<SharedFile>,
    offset: u64,
    /// Where its bytes end in the block.
    end: usize,
}

/// What has become of [`SpoolWrites`].
#[derive(Debug)]
pub struct SpoolWritten {
    /// The outcome of each write, in the order in which they were added.
    pub outcomes: Vec<io::Result<()>>,
    /// The block, empty.
    pub block: SpoolWrites,
}

impl SpoolFile {
    /// A file in memory.
    ///
    /// # Errors
    /// The system has no descriptor or no memory for it.
    pub fn in_memory() -> Result<SpoolFile, OpenError> {
        let opened = rustix::fs::memfd_create("speech", MemfdFlags::CLOEXEC).map_err(open_error)?;
        let file = OpenFile::of_own(opened, DeviceKind::Memory)?;
        Ok(SpoolFile { file, writes: Writes::Everything })
    }

    /// A file in memory that takes this many bytes, a number of whole pages, and no more.
    #[cfg(test)]
    pub fn with_room(bytes: u64) -> io::Result<SpoolFile> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let opened = rustix::fs::memfd_create("speech", flags)?;
        rustix::fs::ftruncate(&opened, bytes)?;
        rustix::fs::fcntl_add_seals(&opened, rustix::fs::SealFlags::GROW)?;
        let file = OpenFile::of_own(opened, DeviceKind::Memory).map_err(|_| Errno::IO)?;
        Ok(SpoolFile { file, writes: Writes::Everything })
    }

    /// The same file, on a file system that takes no write without a wait.
    #[cfg(test)]
    pub fn in_background(self) -> SpoolFile {
        SpoolFile { writes: Writes::Nothing, ..self }
    }

    /// The file, to be sent from.
    pub fn file(&self) -> &OpenFile {
        &self.file
    }

    /// Writes at `offset` what needs no wait. Returns the number of bytes; the rest is for
    /// [`SpoolWrites`].
    ///
    /// # Errors
    /// What the file system reports, such as a full disk.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let at = offset + written as u64;
            match self.write_once(rest, at) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                // What was written counts; the next call reports the error.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(written)
    }

    fn write_once(&self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        match self.writes {
            Writes::Everything => rustix::io::pwrite(&self.file, bytes, offset),
            Writes::WhatThereIsRoomFor => {
                let buffers = [IoSlice::new(bytes)];
                rustix::io::pwritev2(&self.file, &buffers, offset, ReadWriteFlags::NOWAIT)
            }
            Writes::Nothing => Ok(0),
        }
    }
}

impl SpoolWrites {
    /// Adds bytes for a file.
    pub fn push(&mut self, spool: &SpoolFile, offset: u64, bytes: &[u8]) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(BLOCK_BYTES);
        }
        self.bytes.extend_from_slice(bytes);
        let (to, end) = (Arc::clone(&spool.file.shared), self.bytes.len());
        self.writes.push(SpoolWrite { to, offset, end });
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Writes everything. May block for as long as the file system does.
    pub fn run(mut self) -> SpoolWritten {
        let mut start = 0;
        let write = |one: SpoolWrite| {
            let bytes = self.bytes.get(start..one.end).unwrap_or_default();
            start = one.end;
            one.to.file.write_all_at(bytes, one.offset)
        };
        let outcomes = self.writes.drain(..).map(write).collect();
        if self.bytes.len() > KEPT_BLOCK_BYTES || self.writes.capacity() > KEPT_WRITES {
            self = SpoolWrites::default();
        }
        self.bytes.clear();
        SpoolWritten { outcomes, block: self }
    }
}

impl SpoolRequest {
    /// A file in `folder`.
    pub fn new(folder: &Path) -> SpoolRequest {
        SpoolRequest { folder: folder.to_path_buf() }
    }

    /// Opens a file without a name. May block for as long as the file system does.
    pub fn run(&self) -> Result<SpoolFile, OpenError> {
        let opened = open_without_name(&self.folder).map_err(|errno| match open_error(errno) {
            shortage @ OpenError::Shortage(_) => shortage,
            _ => OpenError::NoRoot(errno),
        })?;
        let kind = device_kind(&opened);
        let file = OpenFile::of_own(opened, kind)?;
        let writes = if kind == DeviceKind::Memory { Writes::Everything } else { probe(&file) };
        Ok(SpoolFile { file, writes })
    }
}

/// What the file system says about writes that must not wait. Leaves the file empty.
fn probe(file: &OpenFile) -> Writes {
    let buffers = [IoSlice::new(b"\0")];
    let probed = rustix::io::pwritev2(file, &buffers, 0, ReadWriteFlags::NOWAIT);
    match probed {
        Ok(_) | Err(Errno::AGAIN) => Writes::WhatThereIsRoomFor,
        Err(_) => Writes::Nothing,
    }
}

fn open_without_name(folder: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, folder, flags | OFlags::TMPFILE, OWNER) {
        // File systems without it, and kernels that take it for an attempt to open the folder.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        opened => return opened,
    }
    for _ in 0..NAMES_MAX {
        let name = folder.join(format!(".speech-{:016x}", fastrand::u64(..)));
        match rustix::fs::openat(CWD, &name, flags | OFlags::CREATE | OFlags::EXCL, OWNER) {
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
            Ok(opened) => {
                rustix::fs::unlinkat(CWD, &name, AtFlags::empty())?;
                return Ok(opened);
            }
        }
    }
    Err(Errno::EXIST)
}

impl OpenFile {
    /// A file that the gateway itself writes to.
    fn of_own(opened: OwnedFd, kind: DeviceKind) -> Result<OpenFile, OpenError> {
        let root = Device { number: device_number(&opened).map_err(open_error)?, kind };
        let file = File::from(opened);
        let metadata = file.metadata().map_err(|error| io_error(&error))?;
        Ok(OpenFile::new(file, &metadata, kind, root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;

    fn read(spool: &SpoolFile, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length + 1];
        let n = spool.file().read_at(&mut bytes, 0).unwrap();
        bytes.truncate(n);
        bytes
    }

    #[test]
    fn a_file_in_memory_takes_everything_at_once() {
        let spool = SpoolFile::in_memory().unwrap();
        assert_eq!(spool.write(b"hello", 0).unwrap(), 5);
        assert_eq!(spool.write(&[b'x'; 100_000], 5).unwrap(), 100_000);
        assert_eq!(spool.write(b"", 7).unwrap(), 0);
        assert_eq!(read(&spool, 100_005), [b"hello".to_vec(), vec![b'x'; 100_000]].concat());
        assert!(spool.file().is_cached(0, 100_005));
    }

    #[test]
    fn what_fits_a_full_disk_is_written_before_the_error() {
        let spool = SpoolFile::with_room(8192).unwrap();
        assert_eq!(spool.write(&[b'x'; 10_000], 0).unwrap(), 8192);
        assert!(spool.write(b"x", 8192).is_err());
    }

    #[test]
    fn each_file_gets_its_own_bytes_of_a_block() {
        let files: Vec<SpoolFile> = (0..3).map(|_| SpoolFile::in_memory().unwrap()).collect();
        let mut block = SpoolWrites::default();
        for round in 0..3u8 {
            for (number, file) in (0..).zip(&files) {
                let bytes = vec![number; usize::from(number) * 20_000 + 1];
                block.push(file, u64::from(round) * bytes.len() as u64, &bytes);
            }
            let written = block.run();
            assert!(written.outcomes.len() == 3 && written.outcomes.iter().all(Result::is_ok));
            block = written.block;
            assert!(block.is_empty() && block.bytes.is_empty(), "it can be used again");
            assert_eq!(block.bytes.capacity(), 0, "but for a large one");
        }
        for (number, file) in (0..).zip(&files) {
            let length = 3 * (usize::from(number) * 20_000 + 1);
            assert_eq!(read(file, length), vec![number; length]);
        }
        block.push(&files[0], 0, b"small");
        assert!(block.run().block.bytes.capacity() > 0);
    }

    #[test]
    fn a_write_that_fails_stops_no_other() {
        let (full, other) = (SpoolFile::with_room(4096).unwrap(), SpoolFile::in_memory().unwrap());
        let mut block = SpoolWrites::default();
        block.push(&full, 4096, b"too much");
        block.push(&other, 0, b"hello");
        let outcomes = block.run().outcomes;
        assert_eq!(outcomes.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
        assert_eq!(read(&other, 5), b"hello");
    }

    #[test]
    fn a_file_in_a_folder_has_no_name_and_takes_bytes_at_once_or_in_the_background() {
        let folder = TestFolder::make();
        let spool = SpoolRequest::new(&folder).run().unwrap();
        assert_eq!(std::fs::read_dir(&*folder).unwrap().count(), 0);
        let written = spool.write(b"hello", 0).unwrap();
        let mut writes = SpoolWrites::default();
        assert!(writes.is_empty());
        writes.push(&spool, written as u64, &b"hello"[written..]);
        writes.push(&spool, 5, b" world");
        assert!(!writes.is_empty());
        let written = writes.run();
        assert!(written.outcomes.len() == 2 && written.outcomes.iter().all(Result::is_ok));
        assert_eq!(read(&spool, 11), b"hello world");
        std::fs::remove_dir(&*folder).unwrap();
        assert_eq!(read(&spool, 11), b"hello world", "the folder may go");
        let gone = SpoolRequest::new(&folder).run().map(drop);
        assert_eq!(gone, Err(OpenError::NoRoot(Errno::NOENT)));
    }
}
