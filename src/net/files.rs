//! Files beneath one folder, opened without a way out of it and sent from the page cache.
//!
//! The names come from outside: from workers, and from clients. So the kernel resolves them
//! (`openat2`) beneath the folder and follows no link, not even one that stays inside. Where the
//! kernel is too old for that call, or a container forbids it, each component is opened by itself
//! with `O_NOFOLLOW`, which has the same effect. What was opened is then checked: a device, a pipe
//! or a folder is never read.
//!
//! Opening and reading may wait for a disk or a server, which the loop must not do. So there are
//! two ways to open:
//!
//! - [`Root::open_cached`] for the loop: it answers [`OpenError::WouldWait`] unless everything it
//!   needs is in memory.
//! - [`OpenRequest::run`] for a background thread: it waits as long as it takes.
//!
//! What is in memory cannot be known on every file system: opening a file on NFS or FUSE asks a
//! server even if the name is cached. So a background thread opens the first file of each file
//! system, finds out of which kind it is, and [`LocalDevices`] remembers those that the loop may
//! use. Reading works alike: [`OpenFile::is_cached`] says whether the next bytes can be sent at
//! once, and [`ReadRequest::run`] fetches them in the background.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]
#![expect(clippy::disallowed_methods, reason = "files are opened here")]
#![expect(clippy::disallowed_types, reason = "sockets and files live here")]

pub mod assets;
mod devices;
pub mod spool;

use devices::{Device, DeviceKind, device_kind, device_number};
pub use devices::{FoundRoot, LocalDevices};

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;

use rustix::fs::{Access, Advice, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};

/// Bytes that a background read asks the kernel to read ahead of what it was asked for.
const READ_AHEAD_BYTES: u64 = 1024 * 1024;

/// Bytes of a file of which one is probed before they are sent.
const PROBED_BYTES: usize = 256 * 1024;

/// Bytes at the end of a young file by which it is recognised when it has become longer.
const TAIL_BYTES_MAX: u64 = 16 * 1024;

/// How often a path is resolved again when a folder on it was renamed meanwhile.
const RENAME_RETRIES_MAX: usize = 8;

/// Opening a pipe or a device must not wait for its other end, nor make it the controlling
/// terminal.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A folder to open files beneath. It need not be readable itself.
const ROOT: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// No `..` out of the folder, and no links at all.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A folder whose files may be opened, and how large they may be.
///
/// The folder need not exist yet and may be replaced at any time: it is opened anew for each file.
#[derive(Clone, Copy, Debug)]
pub struct Root<'f> {
    folder: &'f Path,
    bytes_max: u64,
    first_bytes: usize,
    young_since: Option<SystemTime>,
}

/// Why a file was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No file has this name.
    NotFound,
    /// The name leads out of the folder, or through a link.
    Forbidden,
    /// A folder, a pipe, a device or a socket.
    NotRegular,
    /// Larger than allowed.
    TooLarge,
    /// The folder itself cannot be opened, or no file in it.
    NoRoot(Errno),
    /// Only from [`Root::open_cached`]: the answer is not in memory. [`OpenRequest::run`] finds it
    /// out.
    WouldWait,
    /// The gateway or its machine has run out of something (`EMFILE`, `ENFILE`, `ENOMEM`,
    /// `ENOBUFS`). It says nothing about the file, and the same call may succeed later.
    Shortage(Errno),
    /// It exists but cannot be read: permissions, a broken disk.
    Unreadable(Errno),
}

impl OpenError {
    /// Whether the permissions of the file or a folder are in the way.
    pub fn is_denied(self) -> bool {
        matches!(self, OpenError::Unreadable(Errno::ACCESS))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NotFound => f.write_str("not found"),
            OpenError::Forbidden => f.write_str("it leads out of the folder"),
            OpenError::NotRegular => f.write_str("not a regular file"),
            OpenError::TooLarge => f.write_str("too large"),
            OpenError::NoRoot(errno) => write!(f, "the folder cannot be opened: {errno}"),
            OpenError::WouldWait => f.write_str("not in memory"),
            OpenError::Shortage(errno) | OpenError::Unreadable(errno) => errno.fmt(f),
        }
    }
}

/// An open file, and its state at that moment. A stream has one for itself and one for each client,
/// so clones share most of it.
#[derive(Clone, Debug)]
pub struct OpenFile {
    shared: Arc<SharedFile>,
    state: FileState,
    tail: Option<TailHash>,
}

/// What clones of an open file share, and reads in the background.
#[derive(Debug)]
struct SharedFile {
    file: File,
    kind: DeviceKind,
    /// The file system of the folder that it was opened in.
    root: Device,
    identity: FileIdentity,
    first_bytes: Box<[u8]>,
}

/// Which file it is, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileIdentity(u64, u64);

/// What shows that a file was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Bytes.
    pub length: u64,
    /// When the content last changed, by the clock of the file system.
    pub modified: SystemTime,
}

/// What the last bytes of a file were when it was opened. A longer file that has others there was
/// rewritten, not extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TailHash {
    /// Bytes of the whole file.
    end: u64,
    hash: u64,
}

/// A file to be opened by a thread that may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    folder: PathBuf,
    name: PathBuf,
    bytes_max: u64,
    first_bytes: usize,
    young_since: Option<SystemTime>,
}

/// A folder to be checked by a thread that may wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootRequest {
    folder: PathBuf,
}

/// Bytes to be read by a thread that may wait.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    shared: Arc<SharedFile>,
    tail: Option<TailHash>,
    offset: u64,
    length: usize,
}

/// A request for the state of a file, for a thread that may wait.
#[derive(Clone, Debug)]
pub struct StateRequest(Arc<SharedFile>, Option<TailHash>);

/// What a [`ReadRequest`] found.
#[derive(Clone, Debug)]
pub struct FileBytes {
    /// Fewer than asked for only where the file ends.
    pub bytes: Vec<u8>,
    /// After the read.
    pub state: FileState,
}

impl Root<'_> {
    /// The files in `folder` and its folders, each of at most `bytes_max` bytes.
    pub fn new(folder: &Path, bytes_max: u64) -> Root<'_> {
        Root { folder, bytes_max, first_bytes: 0, young_since: None }
    }

    /// The same files; what is opened also knows this many of its first bytes.
    pub fn with_first_bytes(self, first_bytes: usize) -> Self {
        Root { first_bytes, ..self }
    }

    /// The same files. One that was written to later than this may still be being written: should
    /// it become longer, its state shows whether the bytes before are still the same.
    pub fn with_young_since(self, young_since: SystemTime) -> Self {
        Root { young_since: Some(young_since), ..self }
    }

    /// Opens a file without waiting. `name` is relative to the folder, or absolute and within it.
    ///
    /// # Errors
    /// [`OpenError::WouldWait`] if that takes more than what is in memory.
    pub fn open_cached(&self, name: &Path, local: &LocalDevices) -> Result<OpenFile, OpenError> {
        let relative = self.relative(name)?.ok_or(OpenError::WouldWait)?;
        let steps = steps(relative)?;
        let root = rustix::fs::openat2(CWD, self.folder, ROOT, Mode::empty(), ResolveFlags::CACHED)
            .map_err(|errno| match cached_error(errno) {
                OpenError::WouldWait => OpenError::WouldWait,
                _ => root_error(errno),
            })?;
        let root_device =
            local.find(device_number(&root).map_err(open_error)?).ok_or(OpenError::WouldWait)?;
        let path: PathBuf = steps.iter().collect();
        // Without NO_XDEV the file might be on another file system, of which nothing is known.
        let resolve = BENEATH | ResolveFlags::CACHED | ResolveFlags::NO_XDEV;
        let file = rustix::fs::openat2(&root, &path, READ, Mode::empty(), resolve)
            .map_err(cached_error)?;
        let mut opened = self.check(file, root_device.kind, root_device)?;
        if self.first_bytes > 0 && !opened.is_cached(0, self.first_bytes) {
            return Err(OpenError::WouldWait);
        }
        opened.read_first_bytes(self.first_bytes)?;
        // Young files are in memory, as a rule.
        if opened.is_cached(opened.state.length.saturating_sub(1), 1) {
            opened.read_tail(self.young_since)?;
        }
        Ok(opened)
    }

    /// A request that opens the same file and may wait.
    pub fn request(&self, name: &Path) -> OpenRequest {
        OpenRequest {
            folder: self.folder.to_path_buf(),
            name: name.to_path_buf(),
            bytes_max: self.bytes_max,
            first_bytes: self.first_bytes,
            young_since: self.young_since,
        }
    }

    fn open(&self, name: &Path) -> Result<OpenFile, OpenError> {
        let relative = match self.relative(name)? {
            Some(relative) => relative.to_path_buf(),
            None => self.relative_to_real(name)?,
        };
        let steps = steps(&relative)?;
        let (root, root_device) = open_root(self.folder)?;
        let file = open_beneath(root.as_fd(), &steps).map_err(open_error)?;
        let kind = device_kind(&file);
        let mut opened = self.check(file, kind, root_device)?;
        opened.read_first_bytes(self.first_bytes)?;
        opened.read_tail(self.young_since)?;
        Ok(opened)
    }

    /// The name beneath the folder as it was configured; `None` for an absolute name that begins
    /// otherwise.
    fn relative<'n>(&self, name: &'n Path) -> Result<Option<&'n Path>, OpenError> {
        // No file has such a name, and not every kernel call would say so.
        if name.as_os_str().as_bytes().contains(&0) {
            return Err(OpenError::NotFound);
        }
        if !name.is_absolute() {
            return Ok(Some(name));
        }
        Ok(name.strip_prefix(self.folder).ok())
    }

    /// The name beneath the folder as it really is, links resolved.
    fn relative_to_real(&self, name: &Path) -> Result<PathBuf, OpenError> {
        let real = self.folder.canonicalize().ok();
        let relative = real.as_deref().and_then(|real| name.strip_prefix(real).ok());
        relative.map(Path::to_path_buf).ok_or(OpenError::Forbidden)
    }

    fn check(
        &self,
        opened: OwnedFd,
        kind: DeviceKind,
        root: Device,
    ) -> Result<OpenFile, OpenError> {
        let file = File::from(opened);
        let metadata = file.metadata().map_err(|error| io_error(&error))?;
        if !metadata.is_file() {
            return Err(OpenError::NotRegular);
        }
        if metadata.len() > self.bytes_max {
            return Err(OpenError::TooLarge);
        }
        Ok(OpenFile::new(file, &metadata, kind, root))
    }
}

impl OpenRequest {
    /// The file's name, as it was asked for.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Opens the file. May block for as long as the file system does.
    pub fn run(&self) -> Result<OpenFile, OpenError> {
        let root = Root::new(&self.folder, self.bytes_max).with_first_bytes(self.first_bytes);
        Root { young_since: self.young_since, ..root }.open(&self.name)
    }
}

impl RootRequest {
    /// A check of `folder`.
    pub fn new(folder: &Path) -> RootRequest {
        RootRequest { folder: folder.to_path_buf() }
    }

    /// Opens the folder, and checks that files in it could be opened. May block for as long as the
    /// file system does.
    pub fn run(&self) -> Result<FoundRoot, OpenError> {
        let (root, device) = open_root(&self.folder)?;
        rustix::fs::accessat(&root, ".", Access::EXEC_OK, AtFlags::EACCESS).map_err(root_error)?;
        Ok(FoundRoot(device))
    }
}

impl ReadRequest {
    /// Reads the bytes, and asks the kernel to have those behind them at hand soon. May block for
    /// as long as the file system does.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn run(&self) -> io::Result<FileBytes> {
        let file = &self.shared.file;
        let mut bytes = vec![0; self.length];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], self.offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        let ahead = NonZeroU64::new(READ_AHEAD_BYTES);
        // Only a hint, so failures do not matter.
        let _ = rustix::fs::fadvise(file, self.offset + filled as u64, ahead, Advice::WillNeed);
        let state = FileState::from(&file.metadata()?);
        Ok(FileBytes { bytes, state: compare_tail(file, self.tail, state) })
    }
}

impl StateRequest {
    /// Asks for the state as it is now, on a server too. May block for as long as the file system
    /// does.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn run(&self) -> io::Result<FileState> {
        // What is cached of a file on a server may be seconds old.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        let fields = StatxFlags::SIZE | StatxFlags::MTIME;
        let state = rustix::fs::statx(&self.0.file, "", flags, fields)?;
        let since =
            Duration::new(state.stx_mtime.tv_sec.try_into().unwrap_or(0), state.stx_mtime.tv_nsec);
        let state = FileState { length: state.stx_size, modified: SystemTime::UNIX_EPOCH + since };
        Ok(compare_tail(&self.0.file, self.1, state))
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.file.as_fd()
    }
}

impl OpenFile {
    fn new(file: File, metadata: &Metadata, kind: DeviceKind, root: Device) -> OpenFile {
        let (state, identity) = (FileState::from(metadata), FileIdentity::from(metadata));
        let first_bytes = Box::default();
        let shared = Arc::new(SharedFile { file, kind, root, identity, first_bytes });
        OpenFile { shared, state, tail: None }
    }

    /// From now on, this file is treated like one on a file system whose server has to be asked
    /// whenever something is to be known, wherever it really is. For simulations, and before it is
    /// shared.
    pub fn ask_server(&mut self) {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            (shared.kind, shared.root.kind) = (DeviceKind::Other, DeviceKind::Other);
        }
    }

    /// When it was opened, or as [`OpenFile::in_state`] has it.
    pub fn state(&self) -> FileState {
        self.state
    }

    /// The same file, known to be in another state by now.
    pub fn in_state(self, state: FileState) -> OpenFile {
        OpenFile { state, ..self }
    }

    /// Whether both are the same file, in whatever state.
    pub fn is_same_file(&self, other: &OpenFile) -> bool {
        self.shared.identity == other.shared.identity
    }

    /// Its first bytes when it was opened, as many as [`Root::with_first_bytes`] asked for or it
    /// had.
    pub fn first_bytes(&self) -> &[u8] {
        &self.shared.first_bytes
    }

    /// Called before it is shared.
    fn read_first_bytes(&mut self, count: usize) -> Result<(), OpenError> {
        let length = self.state.length.min(count as u64) as usize;
        if length > 0 {
            let mut bytes = vec![0; length];
            let n = self.shared.file.read_at(&mut bytes, 0).map_err(|error| io_error(&error))?;
            bytes.truncate(n);
            if let Some(shared) = Arc::get_mut(&mut self.shared) {
                shared.first_bytes = bytes.into();
            }
        }
        Ok(())
    }

    fn read_tail(&mut self, young_since: Option<SystemTime>) -> Result<(), OpenError> {
        if young_since.is_some_and(|since| self.state.modified > since) {
            let tail = TailHash::read(&self.shared.file, self.state.length);
            self.tail = tail.map_err(|error| io_error(&error))?;
        }
        Ok(())
    }

    /// From now on, only its length and its time show in its state.
    pub fn forget_tail(&mut self) {
        self.tail = None;
    }

    /// The folder that it was opened in.
    pub fn root(&self) -> FoundRoot {
        FoundRoot(self.shared.root)
    }

    /// Now; `None` if the answer may have to be waited for (then a [`ReadRequest`] brings it), or
    /// cannot be had.
    pub fn state_now(&self) -> Option<FileState> {
        if self.shared.kind == DeviceKind::Other {
            return None;
        }
        let state = FileState::from(&self.shared.file.metadata().ok()?);
        Some(compare_tail(&self.shared.file, self.tail, state))
    }

    /// Whether `length` bytes from `offset` on can be sent without waiting for a disk.
    ///
    /// One of each `PROBED_BYTES` is probed, and the last. Its neighbours were read together with
    /// it; if the kernel has dropped some of them since, sending waits for a local disk once.
    pub fn is_cached(&self, offset: u64, length: usize) -> bool {
        match self.shared.kind {
            DeviceKind::Memory => return true,
            DeviceKind::Other => return false,
            DeviceKind::Local => {}
        }
        let is_there = |at| {
            let mut byte = [0];
            let mut buffers = [IoSliceMut::new(&mut byte)];
            // A file that ends before that byte answers 0: nothing to wait for either.
            rustix::io::preadv2(self, &mut buffers, at, ReadWriteFlags::NOWAIT).is_ok()
        };
        let end = offset + (length as u64).max(1);
        (offset..end)
            .step_by(PROBED_BYTES)
            .all(|at| is_there(end.min(at + PROBED_BYTES as u64) - 1))
    }

    /// A request for the state of the file, for a thread that may wait.
    pub fn state_request(&self) -> StateRequest {
        StateRequest(Arc::clone(&self.shared), self.tail)
    }

    /// A request for `length` bytes from `offset` on, for a thread that may wait.
    pub fn read_request(&self, offset: u64, length: usize) -> ReadRequest {
        ReadRequest { shared: Arc::clone(&self.shared), tail: self.tail, offset, length }
    }

    /// Reads from `offset` on; 0 at the end.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.shared.file.read_at(bytes, offset)
    }

    /// Sends up to `count` bytes from `offset` on to `socket`, straight from the page cache.
    /// Returns how many were sent: 0 means that the file ends there.
    ///
    /// # Errors
    /// `WouldBlock`: the socket is full. Others: the peer is gone, or the file cannot be read.
    pub fn send_to(&self, socket: impl AsFd, offset: u64, count: usize) -> io::Result<usize> {
        let mut offset = offset;
        loop {
            match rustix::fs::sendfile(&socket, self, Some(&mut offset), count) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }
}

impl TailHash {
    /// `None`: the file is empty, or has become shorter.
    fn read(file: &File, end: u64) -> io::Result<Option<TailHash>> {
        let mut bytes = vec![0; end.min(TAIL_BYTES_MAX) as usize];
        let at = end - bytes.len() as u64;
        match file.read_exact_at(&mut bytes, at) {
            Ok(()) if bytes.is_empty() => Ok(None),
            Ok(()) => Ok(Some(TailHash { end, hash: xxh3_64(&bytes) })),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The state, or, of a file that is longer and was written anew, that of one that was rewritten
/// within its old length.
fn compare_tail(file: &File, tail: Option<TailHash>, state: FileState) -> FileState {
    match tail {
        Some(tail)
            if state.length > tail.end
                && !TailHash::read(file, tail.end).is_ok_and(|now| now == Some(tail)) =>
        {
            FileState { length: tail.end, ..state }
        }
        _ => state,
    }
}

impl From<&Metadata> for FileIdentity {
    fn from(metadata: &Metadata) -> FileIdentity {
        FileIdentity(metadata.dev(), metadata.ino())
    }
}

impl From<&Metadata> for FileState {
    fn from(metadata: &Metadata) -> FileState {
        FileState {
            length: metadata.len(),
            // Every Linux file system has the time.
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

/// Opens the folder for files to be opened beneath. May wait.
fn open_root(folder: &Path) -> Result<(OwnedFd, Device), OpenError> {
    let root = rustix::fs::openat(CWD, folder, ROOT, Mode::empty()).map_err(root_error)?;
    let device =
        Device { number: device_number(&root).map_err(open_error)?, kind: device_kind(&root) };
    Ok((root, device))
}

/// Opens a file for reading beneath `root`, in whatever way the kernel knows. May wait.
fn open_beneath(root: BorrowedFd<'_>, steps: &[&Path]) -> Result<OwnedFd, Errno> {
    let path: PathBuf = steps.iter().collect();
    let mut retries = 0;
    loop {
        match rustix::fs::openat2(root, &path, READ, Mode::empty(), BENEATH) {
            Err(Errno::AGAIN) if retries < RENAME_RETRIES_MAX => retries += 1,
            // Old kernels do not have the call, and some containers forbid calls that they do not
            // know.
            Err(Errno::NOSYS | Errno::PERM) => return open_step_by_step(root, steps),
            opened => return opened,
        }
    }
}

fn open_step_by_step(root: BorrowedFd<'_>, steps: &[&Path]) -> Result<OwnedFd, Errno> {
    let (file, folders) = steps.split_last().ok_or(Errno::ISDIR)?;
    let mut folder: Option<OwnedFd> = None;
    for step in folders {
        let within = folder.as_ref().map_or(root, |folder| folder.as_fd());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(within, *step, flags, Mode::empty())?;
        // O_PATH opens the link itself. O_DIRECTORY would not, but its error does not tell a link
        // from a file.
        match FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) {
            FileType::Directory => folder = Some(next),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NOTDIR),
        }
    }
    let within = folder.as_ref().map_or(root, |folder| folder.as_fd());
    rustix::fs::openat(within, *file, READ | OFlags::NOFOLLOW, Mode::empty())
}

/// The components of a relative path that only goes down.
fn steps(relative: &Path) -> Result<Vec<&Path>, OpenError> {
    let mut steps = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(name) => steps.push(Path::new(name)),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(OpenError::Forbidden);
            }
        }
    }
    if steps.is_empty() { Err(OpenError::NotRegular) } else { Ok(steps) }
}

fn open_error(errno: Errno) -> OpenError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL => OpenError::NotFound,
        Errno::LOOP | Errno::XDEV => OpenError::Forbidden,
        // A folder, and a socket or a device that no program serves.
        Errno::ISDIR | Errno::NXIO | Errno::NODEV => OpenError::NotRegular,
        Errno::FBIG | Errno::OVERFLOW => OpenError::TooLarge,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => OpenError::Shortage(errno),
        errno => OpenError::Unreadable(errno),
    }
}

fn root_error(errno: Errno) -> OpenError {
    match open_error(errno) {
        shortage @ OpenError::Shortage(_) => shortage,
        _ => OpenError::NoRoot(errno),
    }
}

/// The error of a call that was restricted to what is cached.
fn cached_error(errno: Errno) -> OpenError {
    match errno {
        // Not cached; on another file system; and kernels and containers without this way of
        // opening (openat2 came with Linux 5.6, RESOLVE_CACHED with 5.12).
        Errno::AGAIN | Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::PERM => {
            OpenError::WouldWait
        }
        errno => open_error(errno),
    }
}

fn io_error(error: &io::Error) -> OpenError {
    OpenError::Unreadable(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use std::ffi::OsStr;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    use OpenError::*;

    /// A folder with `root` in it, beneath which files are opened.
    struct Folder(TestFolder);

    impl Folder {
        fn new() -> Folder {
            let folder = TestFolder::make();
            fs::create_dir_all(folder.join("root/sub")).unwrap();
            Folder(folder)
        }

        fn root(&self) -> PathBuf {
            self.0.join("root")
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            self.0.write(name, bytes);
        }

        fn append(&self, name: &str) -> File {
            fs::OpenOptions::new().append(true).open(self.0.join(name)).unwrap()
        }
    }

    fn open(folder: &Path, name: impl AsRef<Path>) -> Result<OpenFile, OpenError> {
        Root::new(folder, u64::MAX).request(name.as_ref()).run()
    }

    /// Opens in all three ways, which have to agree, and reads the file.
    fn open_all_ways(folder: &Folder, name: &str) -> Result<Vec<u8>, OpenError> {
        let (path, name) = (folder.root(), Path::new(name));
        let content = |opened: Result<OpenFile, OpenError>| {
            opened.map(|file| {
                let mut bytes = vec![0; 100];
                let read = file.read_at(&mut bytes, 0).unwrap();
                bytes.truncate(read);
                assert_eq!(bytes.len() as u64, file.state().length);
                bytes
            })
        };
        let root = Root::new(&path, u64::MAX);
        let by_kernel = content(root.request(name).run());

        // As on a kernel without openat2.
        let by_steps = root.relative(name).and_then(|relative| match relative {
            None => Err(Forbidden),
            Some(relative) => {
                let steps = steps(relative)?;
                let within = File::open(&path).unwrap();
                let file = open_step_by_step(within.as_fd(), &steps).map_err(open_error)?;
                root.check(file, DeviceKind::Other, Device { number: 0, kind: DeviceKind::Other })
            }
        });
        assert_eq!(by_kernel, content(by_steps), "{name:?}");

        // By now the name is cached, whether it exists or not.
        match root.open_cached(name, &known(&path)) {
            // The loop may leave it to a background thread to find out what is wrong with a name.
            Err(WouldWait) if by_kernel.is_err() => {}
            cached => assert_eq!(by_kernel, content(cached), "{name:?}"),
        }
        by_kernel
    }

    /// The file system of the folder, as known after a file in it was opened.
    fn known(folder: &Path) -> LocalDevices {
        let probe = folder.join("probe");
        fs::write(&probe, "").unwrap();
        let mut local = LocalDevices::default();
        local.note(open(folder, "probe").unwrap().root());
        fs::remove_file(probe).unwrap();
        local
    }

    #[test]
    fn regular_files_beneath_the_root_are_opened() {
        let folder = Folder::new();
        folder.write("root/a.wav", b"one");
        folder.write("root/sub/\u{3042} b.wav", b"two");
        folder.write("root/empty", b"");
        folder.write("root/...", b"dots");
        assert_eq!(open_all_ways(&folder, "a.wav"), Ok(b"one".to_vec()));
        assert_eq!(open_all_ways(&folder, "./sub//./\u{3042} b.wav"), Ok(b"two".to_vec()));
        assert_eq!(open_all_ways(&folder, "empty"), Ok(Vec::new()));
        assert_eq!(open_all_ways(&folder, "..."), Ok(b"dots".to_vec()));
    }

    #[test]
    fn a_missing_file_is_not_found() {
        let folder = Folder::new();
        folder.write("root/a.wav", b"one");
        let long = "x".repeat(300);
        for name in ["b.wav", "no/a.wav", "a.wav/b", "sub/a.wav", &long, "nul\0", "a.wav\0"] {
            assert_eq!(open_all_ways(&folder, name), Err(NotFound), "{name:?}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_root() {
        let folder = Folder::new();
        folder.write("secret", b"secret");
        folder.write("root/a.wav", b"one");
        folder.write("root/sub/b.wav", b"two");
        for (target, link) in [
            ("../secret", "out"),
            (folder.0.join("secret").to_str().unwrap(), "absolute"),
            ("a.wav", "inside"),
            ("..", "up"),
            ("sub", "down"),
            ("nowhere", "dangling"),
            ("/proc/self/environ", "environ"),
            ("/proc/self/root", "magic"),
        ] {
            symlink(target, folder.root().join(link)).unwrap();
        }
        for name in [
            "../secret",
            "..",
            "sub/../a.wav",
            "sub/../../secret",
            "../root/a.wav",
            "out",
            "absolute",
            "inside",
            "up/secret",
            "down/b.wav",
            "dangling",
            "environ",
            "magic/etc/passwd",
            "/etc/passwd",
            "/proc/self/environ",
        ] {
            assert_eq!(open_all_ways(&folder, name), Err(Forbidden), "{name:?}");
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let folder = Folder::new();
        let root = File::open(folder.root()).unwrap();
        rustix::fs::mknodat(&root, "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _listener = UnixListener::bind(folder.root().join("socket")).unwrap();
        for name in ["pipe", "socket", "sub", "sub/", "", ".", "./"] {
            assert_eq!(open_all_ways(&folder, name), Err(NotRegular), "{name}");
        }
    }

    #[test]
    fn an_error_of_the_kernel_names_its_class() {
        for (errno, expected) in [
            (Errno::NOENT, NotFound),
            (Errno::XDEV, Forbidden),
            (Errno::LOOP, Forbidden),
            (Errno::NXIO, NotRegular),
            (Errno::FBIG, TooLarge),
            (Errno::MFILE, Shortage(Errno::MFILE)),
            (Errno::NFILE, Shortage(Errno::NFILE)),
            (Errno::NOMEM, Shortage(Errno::NOMEM)),
            (Errno::ACCESS, Unreadable(Errno::ACCESS)),
            (Errno::IO, Unreadable(Errno::IO)),
            (Errno::AGAIN, Unreadable(Errno::AGAIN)),
        ] {
            assert_eq!(open_error(errno), expected, "{errno}");
        }
        for errno in [Errno::AGAIN, Errno::XDEV, Errno::INVAL, Errno::NOSYS, Errno::PERM] {
            assert_eq!(cached_error(errno), WouldWait, "{errno}");
        }
        for errno in [Errno::NOENT, Errno::LOOP, Errno::MFILE] {
            assert_eq!(cached_error(errno), open_error(errno), "{errno}");
        }
    }

    #[test]
    fn absolute_names_within_the_root_are_accepted() {
        let folder = Folder::new();
        folder.write("root/sub/a.wav", b"one");
        folder.write("secret", b"secret");
        let linked = folder.0.join("linked");
        symlink(folder.root(), &linked).unwrap();
        for name in [
            PathBuf::from("sub/a.wav"),
            linked.join("sub/a.wav"),
            folder.root().canonicalize().unwrap().join("sub/a.wav"),
        ] {
            let length = open(&linked, &name).map(|file| file.state().length);
            assert_eq!(length, Ok(3), "{}", name.display());
        }
        for name in ["secret", "linked/../secret", "rooted", "linkedx/sub/a.wav"] {
            assert_eq!(open(&linked, folder.0.join(name)).err(), Some(Forbidden), "{name}");
        }
        assert_eq!(open(&linked, &linked).err(), Some(NotRegular));
        assert_eq!(open(&linked, "/proc/self/environ").err(), Some(Forbidden));
        assert_eq!(open(&linked, linked.join("../secret")).err(), Some(Forbidden));
        let not_utf8 = OsStr::from_bytes(b"\xff\xed\xa0\x80");
        assert_eq!(open(&linked, Path::new(not_utf8)).err(), Some(NotFound));
    }

    #[test]
    fn a_root_may_appear_late_and_be_replaced() {
        let folder = Folder::new();
        let later = folder.0.join("later");
        assert_eq!(open(&later, "a.wav").err(), Some(NoRoot(Errno::NOENT)));
        assert_eq!(RootRequest::new(&later).run(), Err(NoRoot(Errno::NOENT)));
        for content in ["one", "other"] {
            fs::create_dir(&later).unwrap();
            folder.write("later/a.wav", content.as_bytes());
            let length = open(&later, "a.wav").map(|file| file.state().length);
            assert_eq!(length, Ok(content.len() as u64));
            fs::remove_dir_all(&later).unwrap();
        }
    }

    #[test]
    fn a_file_over_the_limit_is_too_large() {
        let folder = Folder::new();
        folder.write("root/a.wav", &[0; 100]);
        folder.write("root/b.wav", &[0; 101]);
        let path = folder.root();
        let root = Root::new(&path, 100);
        assert!(root.request(Path::new("a.wav")).run().is_ok());
        assert_eq!(root.request(Path::new("b.wav")).run().err(), Some(TooLarge));
    }

    #[test]
    fn on_an_unknown_file_system_the_loop_opens_nothing() {
        let folder = Folder::new();
        folder.write("root/a.wav", b"one");
        let path = folder.root();
        let (root, name) = (Root::new(&path, u64::MAX), Path::new("a.wav"));
        let nothing_known = LocalDevices::default();
        assert_eq!(root.open_cached(name, &nothing_known).err(), Some(WouldWait));

        let mut local = known(&path);
        let mut file = root.open_cached(name, &local).unwrap();
        // The same number now belongs to another kind of file system.
        file.ask_server();
        local.note(file.root());
        assert_eq!(root.open_cached(name, &local).err(), Some(WouldWait));
        assert!(!file.is_cached(0, 1) && file.state_now().is_none());
    }

    #[test]
    fn a_read_in_the_background_brings_the_bytes_and_the_state() {
        let folder = Folder::new();
        folder.write("root/a.wav", b"0123456789");
        let file = open(&folder.root(), "a.wav").unwrap();
        let FileBytes { bytes, state } = file.read_request(2, 4).run().unwrap();
        assert_eq!((bytes.as_slice(), state), (&b"2345"[..], file.state()));
        assert_eq!(file.read_request(8, 4).run().unwrap().bytes, b"89");
        assert_eq!(file.read_request(10, 4).run().unwrap().bytes, b"");
        // What was read is cached now, wherever the folder is.
        assert!(file.shared.kind == DeviceKind::Other || file.is_cached(0, 10));
    }

    #[test]
    fn a_change_shows_in_the_state() {
        let folder = Folder::new();
        folder.write("root/a.wav", b"0123456789");
        let file = open(&folder.root(), "a.wav").unwrap();
        let state = || file.read_request(0, 1).run().unwrap().state;
        assert_eq!(state(), file.state());
        folder.append("root/a.wav").write_all(b"more").unwrap();
        assert_eq!(state().length, 14);
        folder.append("root/a.wav").set_len(5).unwrap();
        assert_eq!(state().length, 5);
        let before = state();
        folder.append("root/a.wav").set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(state() != before && state().length == before.length);
        // Another file of the same name changes nothing here.
        fs::remove_file(folder.root().join("a.wav")).unwrap();
        folder.write("root/a.wav", b"another");
        assert_eq!(state().length, 5);
    }

    #[test]
    fn young_file_that_is_written_anew_and_longer_looks_rewritten() {
        let folder = Folder::new();
        let path = folder.root();
        let open = |length: usize, since| {
            folder.write("root/a.wav", &vec![1; length]);
            let root = Root::new(&path, u64::MAX).with_young_since(since);
            root.request(Path::new("a.wav")).run().unwrap()
        };
        let (old, new) = (SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(3600));
        // Bytes at first, what becomes of them, and the length that shows.
        for (before, since, after, seen) in [
            (5, old, [vec![1; 5], vec![2; 4]].concat(), 9),
            (5, old, vec![2; 9], 5),
            (5, old, [vec![1; 4], vec![2; 5]].concat(), 5),
            (5, old, vec![2; 3], 3),
            (5, new, vec![2; 9], 9),
            (0, old, vec![2; 9], 9),
            (40_000, old, vec![1; 50_000], 50_000),
            (40_000, old, vec![2; 50_000], 40_000),
        ] {
            let mut file = open(before, since);
            fs::write(path.join("a.wav"), &after).unwrap();
            let looked = file.state_request().run().unwrap();
            let read = file.read_request(0, 1).run().unwrap().state;
            assert_eq!((looked.length, read.length), (seen, seen), "{before} {}", after.len());
            assert!(file.shared.kind == DeviceKind::Other || file.state_now() == Some(looked));
            file.forget_tail();
            assert_eq!(file.state_request().run().unwrap().length, after.len() as u64);
        }
    }

    #[test]
    fn files_are_sent_piece_by_piece_and_end_where_they_were_cut() {
        let folder = Folder::new();
        let bytes: Vec<u8> = (0..1_000_003u32).map(|i| ((i * 31) >> 3) as u8).collect();
        folder.write("root/a.wav", &bytes);
        let file = open(&folder.root(), "a.wav").unwrap();
        let (socket, mut peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        let (mut offset, mut was_full) = (0, false);
        let mut piece = [0; 65_536];
        while received.len() < bytes.len() {
            match file.send_to(&socket, offset, 65_537) {
                Ok(sent) => offset += sent as u64,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    was_full = true;
                    let n = peer.read(&mut piece[..10_000]).unwrap();
                    received.extend_from_slice(&piece[..n]);
                    continue;
                }
            }
            if offset == bytes.len() as u64 {
                while let Ok(n @ 1..) = peer.read(&mut piece) {
                    received.extend_from_slice(&piece[..n]);
                }
            }
        }
        assert!(received == bytes && was_full);
        folder.append("root/a.wav").set_len(10).unwrap();
        assert_eq!(file.send_to(&socket, 10, 100).unwrap(), 0);
        folder.append("root/a.wav").write_all(b"more").unwrap();
        // A file that was removed stays readable while it is open.
        fs::remove_file(folder.root().join("a.wav")).unwrap();
        assert_eq!(file.send_to(&socket, 10, 100).unwrap(), 4);
    }
}
