//! Audio files on their way out: opened beneath one folder and nowhere else, sent from the page cache without passing through us.
//!
//! The surprising thing: the path comes from whoever may publish a result, so it is an adversary's. The kernel resolves it
//! (`openat2`) beneath the folder, following no link at all, not even one that stays inside; where the kernel is too old for
//! that, or a container's rules keep it away, each component is opened by itself with `O_NOFOLLOW`, which comes to the same.
//! What was opened is then asked what it is, so that a device, a pipe or a folder is never read.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Bytes that the kernel is asked to read ahead of the one that is sent.
const AHEAD_MAX: u64 = 1024 * 1024;
/// How often a path is looked up again when a folder on it was renamed meanwhile.
const RACES_MAX: usize = 8;

/// The one folder whose files may be sent, and how large they may be.
#[derive(Clone, Copy, Debug)]
pub struct AudioRoot<'f> {
    folder: &'f Path,
    bytes_max: u64,
}

/// An open file, and its length when it was opened.
#[derive(Debug)]
pub struct AudioFile {
    file: File,
    length: u64,
}

impl AudioFile {
    /// Bytes when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// It has fewer bytes by now.
    pub fn has_shrunk(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.len() < self.length)
    }

    /// Asks the kernel to have the bytes from `offset` on at hand soon. A wish: failures are of no interest.
    pub fn read_ahead(&self, offset: u64) {
        read_ahead(&self.file, offset, self.length.saturating_sub(offset));
    }

    /// Reads from `offset` on; 0 at the end.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }

    /// Sends up to `count` bytes from `offset` on straight from the page cache; 0 where the file ends.
    pub fn send_to(&self, socket: impl AsFd, offset: u64, count: usize) -> io::Result<usize> {
        send_file(socket, &self.file, offset, count)
    }
}

/// Why a file is not sent. [`AudioFault::words`] is what the client is told; the path stays with us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AudioFault {
    /// Nothing is there under that name.
    NotFound,
    /// Outside the folder, by way of a link or `..`, or no regular file.
    NotAllowed,
    /// Larger than allowed.
    TooLarge,
    /// There, but it cannot be read: permissions, a broken disk, no descriptor left.
    Unreadable,
}

impl AudioFault {
    /// The error of the message to the client.
    pub fn words(self) -> &'static str {
        match self {
            AudioFault::NotFound => "Audio file not found",
            AudioFault::NotAllowed => "Audio file not allowed",
            AudioFault::TooLarge => "Audio file too large",
            AudioFault::Unreadable => "Audio file not readable",
        }
    }
}

impl AudioRoot<'_> {
    /// Files in `folder`, each of at most `bytes_max` bytes. The folder need not exist yet, and may be replaced at any time: it is
    /// opened for each file anew.
    pub fn new(folder: &Path, bytes_max: u64) -> AudioRoot<'_> {
        AudioRoot { folder, bytes_max }
    }

    /// Opens a file as a worker named it: relative to the folder, or absolute and within it. Never blocks on a pipe or a device.
    pub fn open(&self, name: &Path) -> Result<AudioFile, AudioFault> {
        let relative = self.relative(name)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, self.folder, flags, Mode::empty()).map_err(fault)?;
        let (file, length) = open_beneath(root.as_fd(), &relative)?;
        if length > self.bytes_max {
            return Err(AudioFault::TooLarge);
        }
        Ok(AudioFile { file, length })
    }

    /// The name beneath the folder. An absolute one may begin with the folder as it was configured or as it really is.
    fn relative(&self, name: &Path) -> Result<PathBuf, AudioFault> {
        if !name.is_absolute() {
            return Ok(name.to_path_buf());
        }
        if let Ok(relative) = name.strip_prefix(self.folder) {
            return Ok(relative.to_path_buf());
        }
        let real = self.folder.canonicalize().ok();
        let relative = real.as_deref().and_then(|real| name.strip_prefix(real).ok());
        relative.map(Path::to_path_buf).ok_or(AudioFault::NotAllowed)
    }
}

/// Opens a regular file beneath `root` for reading and answers it with its length. `..`, links and absolute paths are
/// [`AudioFault::NotAllowed`], wherever they would lead.
pub fn open_beneath(root: BorrowedFd<'_>, relative: &Path) -> Result<(File, u64), AudioFault> {
    let steps = steps(relative)?;
    let plain: PathBuf = steps.iter().collect();
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut races = 0;
    let opened = loop {
        match rustix::fs::openat2(root, &plain, READ, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if races < RACES_MAX => races += 1,
            // Old kernels do not have the call, and some containers forbid what they do not know.
            Err(Errno::NOSYS | Errno::PERM) => break open_step_by_step(root, &steps),
            opened => break opened,
        }
    };
    regular(opened.map_err(fault)?)
}

/// Asks the kernel to have the bytes from `offset` on at hand soon. A wish: failures are of no interest.
fn read_ahead(file: &File, offset: u64, bytes: u64) {
    if let Some(bytes) = NonZeroU64::new(bytes.min(AHEAD_MAX)) {
        let _ = rustix::fs::fadvise(file, offset, Some(bytes), Advice::WillNeed);
    }
}

/// Sends up to `count` bytes of `file` from `offset` on straight from the page cache. Answers how many went; 0 means that the file
/// ends there (it shrank). `WouldBlock`: the socket is full.
fn send_file(socket: impl AsFd, file: &File, offset: u64, count: usize) -> io::Result<usize> {
    let mut offset = offset;
    loop {
        match rustix::fs::sendfile(&socket, file, Some(&mut offset), count) {
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// Opening a pipe or a device must not wait for its other end, nor make it our terminal.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The components of a relative path that only goes down.
fn steps(relative: &Path) -> Result<Vec<&Path>, AudioFault> {
    let mut steps = Vec::new();
    for component in relative.components() {
        match component {
            Component::Normal(name) => steps.push(Path::new(name)),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(AudioFault::NotAllowed);
            }
        }
    }
    if steps.is_empty() {
        return Err(AudioFault::NotAllowed);
    }
    // No file has such a name; what the C string conversion says of it would differ from kernel to kernel.
    if relative.as_os_str().as_bytes().contains(&0) {
        return Err(AudioFault::NotFound);
    }
    Ok(steps)
}

fn open_step_by_step(root: BorrowedFd<'_>, steps: &[&Path]) -> Result<OwnedFd, Errno> {
    let (file, folders) = steps.split_last().ok_or(Errno::ISDIR)?;
    let mut folder: Option<OwnedFd> = None;
    for step in folders {
        let within = folder.as_ref().map_or(root, |folder| folder.as_fd());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(within, *step, flags, Mode::empty())?;
        // With O_PATH a link itself is opened; O_DIRECTORY would call it "not a directory" and hide what it is.
        match FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode) {
            FileType::Directory => folder = Some(next),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NOTDIR),
        }
    }
    let within = folder.as_ref().map_or(root, |folder| folder.as_fd());
    rustix::fs::openat(within, *file, READ | OFlags::NOFOLLOW, Mode::empty())
}

fn regular(opened: OwnedFd) -> Result<(File, u64), AudioFault> {
    let stat = rustix::fs::fstat(&opened).map_err(fault)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(AudioFault::NotAllowed);
    }
    Ok((File::from(opened), stat.st_size as u64))
}

fn fault(errno: Errno) -> AudioFault {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL => AudioFault::NotFound,
        // A link, a way out, and a socket or a device that nobody serves.
        Errno::LOOP | Errno::XDEV | Errno::ISDIR | Errno::NXIO | Errno::NODEV => {
            AudioFault::NotAllowed
        }
        Errno::FBIG | Errno::OVERFLOW => AudioFault::TooLarge,
        _ => AudioFault::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    use AudioFault::*;

    /// A folder of its own for each test, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder =
                std::env::temp_dir().join(format!("aivtuber-audio-{}-{name}", std::process::id()));
            fs::create_dir_all(folder.join("root/sub")).unwrap();
            Folder(folder)
        }

        fn root(&self) -> PathBuf {
            self.0.join("root")
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            fs::write(self.0.join(name), bytes).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Both ways of opening, which have to agree.
    fn both(folder: &Folder, name: &str) -> Result<Vec<u8>, AudioFault> {
        let content = |opened: Result<(File, u64), AudioFault>| {
            opened.map(|(mut file, length)| {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len() as u64, length);
                bytes
            })
        };
        let root = File::open(folder.root()).unwrap();
        let by_kernel = content(open_beneath(root.as_fd(), Path::new(name)));
        let by_steps = steps(Path::new(name))
            .and_then(|steps| open_step_by_step(root.as_fd(), &steps).map_err(fault))
            .and_then(regular);
        assert_eq!(by_kernel, content(by_steps), "{name}");
        by_kernel
    }

    #[test]
    fn regular_files_beneath_the_root_are_opened() {
        let folder = Folder::new("regular");
        folder.write("root/a.wav", b"one");
        folder.write("root/sub/\u{3042} b.wav", b"two");
        folder.write("root/empty", b"");
        folder.write("root/...", b"dots");
        assert_eq!(both(&folder, "a.wav"), Ok(b"one".to_vec()));
        assert_eq!(both(&folder, "./sub//./\u{3042} b.wav"), Ok(b"two".to_vec()));
        assert_eq!(both(&folder, "empty"), Ok(Vec::new()));
        assert_eq!(both(&folder, "..."), Ok(b"dots".to_vec()));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let folder = Folder::new("missing");
        folder.write("root/a.wav", b"one");
        for name in
            ["b.wav", "no/a.wav", "a.wav/b", "sub/a.wav", &"x".repeat(300), "nul\0", "a.wav\0"]
        {
            assert_eq!(both(&folder, name), Err(NotFound), "{name:?}");
        }
    }

    #[test]
    fn no_way_leads_out() {
        let folder = Folder::new("out");
        folder.write("secret", b"secret");
        folder.write("root/a.wav", b"one");
        symlink("../secret", folder.root().join("out")).unwrap();
        symlink(folder.0.join("secret"), folder.root().join("absolute")).unwrap();
        symlink("a.wav", folder.root().join("inside")).unwrap();
        symlink("..", folder.root().join("up")).unwrap();
        symlink("sub", folder.root().join("down")).unwrap();
        symlink("nowhere", folder.root().join("dangling")).unwrap();
        symlink("/proc/self/environ", folder.root().join("environ")).unwrap();
        symlink("/proc/self/root", folder.root().join("magic")).unwrap();
        folder.write("root/sub/b.wav", b"two");
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
            "",
            ".",
            "./",
        ] {
            assert_eq!(both(&folder, name), Err(NotAllowed), "{name:?}");
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let folder = Folder::new("kinds");
        let root = File::open(folder.root()).unwrap();
        rustix::fs::mknodat(&root, "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _listener = UnixListener::bind(folder.root().join("socket")).unwrap();
        for name in ["pipe", "socket", "sub", "sub/"] {
            assert_eq!(both(&folder, name), Err(NotAllowed), "{name}");
        }
    }

    #[test]
    fn kernel_answers_become_the_right_words() {
        for (errno, expected) in [
            (Errno::NOENT, "Audio file not found"),
            (Errno::XDEV, "Audio file not allowed"),
            (Errno::LOOP, "Audio file not allowed"),
            (Errno::FBIG, "Audio file too large"),
            (Errno::ACCESS, "Audio file not readable"),
            (Errno::IO, "Audio file not readable"),
            (Errno::MFILE, "Audio file not readable"),
            (Errno::AGAIN, "Audio file not readable"),
        ] {
            assert_eq!(fault(errno).words(), expected, "{errno}");
        }
    }

    #[test]
    fn absolute_names_within_the_root_will_do() {
        let folder = Folder::new("absolute");
        folder.write("root/sub/a.wav", b"one");
        folder.write("secret", b"secret");
        let linked = folder.0.join("linked");
        symlink(folder.root(), &linked).unwrap();
        let root = AudioRoot::new(&linked, 100);
        for name in [
            PathBuf::from("sub/a.wav"),
            linked.join("sub/a.wav"),
            folder.root().canonicalize().unwrap().join("sub/a.wav"),
        ] {
            assert_eq!(root.open(&name).map(|file| file.length()), Ok(3), "{}", name.display());
        }
        for name in ["secret", "linked/../secret", "rooted", "linkedx/sub/a.wav"] {
            assert_eq!(root.open(&folder.0.join(name)).err(), Some(NotAllowed), "{name}");
        }
        assert_eq!(root.open(&linked).err(), Some(NotAllowed));
        assert_eq!(root.open(Path::new("/proc/self/environ")).err(), Some(NotAllowed));
        assert_eq!(root.open(&linked.join("../secret")).err(), Some(NotAllowed));
        assert_eq!(
            root.open(Path::new(OsStr::from_bytes(b"\xff\xed\xa0\x80"))).err(),
            Some(NotFound)
        );
    }

    #[test]
    fn the_root_may_come_late_and_change() {
        let folder = Folder::new("late");
        let later = folder.0.join("later");
        let root = AudioRoot::new(&later, 100);
        assert_eq!(root.open(Path::new("a.wav")).err(), Some(NotFound));
        for content in ["one", "other"] {
            fs::create_dir(folder.0.join("later")).unwrap();
            folder.write("later/a.wav", content.as_bytes());
            assert_eq!(
                root.open(Path::new("a.wav")).map(|file| file.length()),
                Ok(content.len() as u64)
            );
            fs::remove_dir_all(folder.0.join("later")).unwrap();
        }
    }

    #[test]
    fn size_is_limited() {
        let folder = Folder::new("size");
        folder.write("root/a.wav", &[0; 100]);
        folder.write("root/b.wav", &[0; 101]);
        let path = folder.root();
        let root = AudioRoot::new(&path, 100);
        assert!(root.open(Path::new("a.wav")).is_ok());
        assert_eq!(root.open(Path::new("b.wav")).err(), Some(TooLarge));
    }

    #[test]
    fn files_are_sent_piece_by_piece_and_a_shrunken_one_says_so() {
        let folder = Folder::new("send");
        let bytes: Vec<u8> = (0..1_000_003u32).map(|i| ((i * 31) >> 3) as u8).collect();
        folder.write("root/a.wav", &bytes);
        let AudioFile { file, length } =
            AudioRoot::new(&folder.root(), u64::MAX).open(Path::new("a.wav")).unwrap();
        read_ahead(&file, 0, length);
        read_ahead(&file, length, 0);
        let (socket, mut peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        let (mut offset, mut was_full) = (0, false);
        while received.len() < bytes.len() {
            match send_file(&socket, &file, offset, 65_537) {
                Ok(sent) => offset += sent as u64,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    was_full = true;
                    let mut piece = [0; 10_000];
                    let n = peer.read(&mut piece).unwrap();
                    received.extend_from_slice(&piece[..n]);
                    continue;
                }
            }
            if offset == length {
                let mut piece = [0; 65_536];
                while let Ok(n @ 1..) = peer.read(&mut piece) {
                    received.extend_from_slice(&piece[..n]);
                }
            }
        }
        assert!(received == bytes && was_full);
        fs::OpenOptions::new()
            .write(true)
            .open(folder.root().join("a.wav"))
            .unwrap()
            .set_len(10)
            .unwrap();
        assert_eq!(send_file(&socket, &file, 10, 100).unwrap(), 0);
        // A file that vanishes stays readable for whoever has it open.
        fs::OpenOptions::new()
            .append(true)
            .open(folder.root().join("a.wav"))
            .unwrap()
            .write_all(b"more")
            .unwrap();
        fs::remove_file(folder.root().join("a.wav")).unwrap();
        assert_eq!(send_file(&socket, &file, 10, 100).unwrap(), 4);
    }
}
