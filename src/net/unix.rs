//! Unix sockets: listening at a path in the file system, and the transport over them.
//!
//! A listener's file is its own: a file that is there already is replaced only if it is a socket
//! that nothing listens on, as a process leaves it that was killed. The file gets its group and its
//! mode before anything can connect, and it is removed with the listener.

#![expect(
    clippy::disallowed_methods,
    reason = "files are looked at when listening begins and ends"
)]
#![expect(clippy::disallowed_types, reason = "sockets and files live here")]

use super::stream_socket::{SocketKind, StreamSocket};
use super::{Socket, Source};
use mio::event::Source as _;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, SockRef, Type};
use std::fmt;
use std::fs::{Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted.
pub(super) const BACKLOG: i32 = 4096;

/// Sockets are registered once, for both directions. `Conn` remembers readiness, so `epoll_ctl` is
/// never called again.
pub(super) const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Who may connect by default: the user and the group of the gateway.
const DEFAULT_MODE: u32 = 0o660;

/// `sun_path` without its final zero (`unix(7)`).
const PATH_BYTES_MAX: usize = 107;

/// Where to listen, and who may connect: `unix:/path?mode=0660&group=NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixPath {
    path: PathBuf,
    mode: u32,
    /// The name or the number of the file's group, if it is not the process's own.
    group: Option<Box<str>>,
}

impl UnixPath {
    /// Reads what follows `unix:`.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn parse(text: &str) -> Result<UnixPath, String> {
        let expected = "expected \"unix:/path/to.sock\" or \
                        \"unix:/path/to.sock?mode=0660&group=NAME\"";
        let (path, options) = text.split_once('?').unwrap_or((text, ""));
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(format!("{path:?} is not an absolute path of a socket; {expected}"));
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(format!("{path:?} is longer than {PATH_BYTES_MAX} bytes"));
        }
        let mut at = UnixPath { path: path.into(), mode: DEFAULT_MODE, group: None };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("mode", digits)) => {
                    let mode = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
                    at.mode = mode.ok_or_else(|| {
                        format!("the mode {digits:?} is not octal and at most 0777; {expected}")
                    })?;
                }
                Some(("group", name)) if !name.is_empty() => at.group = Some(name.into()),
                _ => return Err(format!("{option:?} is not known here; {expected}")),
            }
        }
        Ok(at)
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// As in the configuration.
impl fmt::Display for UnixPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.path.display())?;
        let mut sign = '?';
        if self.mode != DEFAULT_MODE {
            write!(f, "{sign}mode={:04o}", self.mode)?;
            sign = '&';
        }
        match &self.group {
            Some(group) => write!(f, "{sign}group={group}"),
            None => Ok(()),
        }
    }
}

/// A listening socket and its file, which is removed with it.
pub struct UnixListenSocket {
    socket: UnixListener,
    path: PathBuf,
    /// What the file was when it was made.
    file: Option<Metadata>,
}

/// Listens at a path.
///
/// # Errors
/// `AddrInUse`: another program listens there. Anything else: the file, its group or its mode
/// cannot be what they should be.
pub fn listen(at: &UnixPath) -> io::Result<UnixListenSocket> {
    if let SocketFileState::Stale = find(&at.path)? {
        std::fs::remove_file(&at.path)?;
    }
    let socket =
        socket2::Socket::new_raw(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(&at.path)?)?;
    let socket = UnixListener::from_std(socket.into());
    let file = std::fs::symlink_metadata(&at.path).ok();
    let listener = UnixListenSocket { socket, path: at.path.clone(), file };
    if let Some(group) = &at.group {
        let group = group_id(group)?;
        std::os::unix::fs::chown(&at.path, None, Some(group))?;
    }
    std::fs::set_permissions(&at.path, Permissions::from_mode(at.mode))?;
    // Only from here on anything can connect.
    SockRef::from(&listener.socket).listen(BACKLOG)?;
    Ok(listener)
}

/// Whether it would be possible to listen at a path, as far as that can be seen.
///
/// # Errors
/// As of [`listen`].
pub fn look(at: &UnixPath) -> io::Result<()> {
    find(&at.path)?;
    let folder = at.path.parent().unwrap_or(&at.path);
    Ok(rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)?)
}

/// What is at the path where a socket is wanted.
enum SocketFileState {
    Nothing,
    /// A socket that nothing listens on.
    Stale,
}

fn find(path: &Path) -> io::Result<SocketFileState> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(SocketFileState::Nothing),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::other("there is a file of this name that is no socket"));
        }
        Ok(_) => {}
    }
    let probe = socket2::Socket::new_raw(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(SocketFileState::Stale),
        // A full queue is one that something listens on.
        Ok(()) => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::AddrInUse.into()),
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => {
            Err(io::Error::other("there is a socket of another kind"))
        }
        Err(error) => Err(error),
    }
}

/// The number of a group: it is one, or `/etc/group` has it.
fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let groups = std::fs::read_to_string("/etc/group")?;
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    });
    id.ok_or_else(|| io::Error::other(format!("there is no group {name:?}")))
}

impl UnixListenSocket {
    /// Takes a connection from the queue.
    ///
    /// # Errors
    /// `WouldBlock`: there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }

    /// Registers it for events of connections that wait.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn register(&mut self, registry: &Registry, source: Source) -> io::Result<()> {
        self.socket.register(registry, source.into(), Interest::READABLE)
    }
}

impl Drop for UnixListenSocket {
    fn drop(&mut self) {
        // Another process may have made one of its own there meanwhile.
        let now = std::fs::symlink_metadata(&self.path).ok();
        let id = |file: &Metadata| (file.dev(), file.ino());
        if now.is_some() && now.as_ref().map(id) == self.file.as_ref().map(id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl SocketKind for UnixStream {
    fn limit_buffers(&self, bytes_max: usize) -> io::Result<()> {
        SockRef::from(self).set_send_buffer_size(bytes_max)
    }
}

/// Begins to connect to the socket at `path`.
pub(super) fn connect(path: &Path, source: Source, registry: &Registry) -> io::Result<Socket> {
    let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        // TCP would try again by itself. Nothing is short on this machine, and waiting for room
        // would take a timer.
        ErrorKind::WouldBlock => ErrorKind::ResourceBusy.into(),
        _ => error,
    })?;
    accepted(stream, source, registry)
}

/// Registers an accepted socket.
///
/// # Errors
/// What the kernel says.
pub fn accepted(mut stream: UnixStream, source: Source, registry: &Registry) -> io::Result<Socket> {
    registry.register(&mut stream, source.into(), BOTH)?;
    Ok(Socket::Other(Box::new(StreamSocket(stream))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use std::os::unix::net::{UnixDatagram, UnixListener as StdListener};

    /// Where to listen, in a folder.
    fn at(folder: &TestFolder) -> UnixPath {
        UnixPath::parse(folder.join("s").to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_full_queue_of_connections_is_no_shortage_of_this_machine() {
        let folder = TestFolder::make();
        let path = folder.join("s");
        let listener = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let poll = mio::Poll::new().unwrap();
        let mut connected = Vec::new();
        let error = loop {
            match connect(&path, Source::Waker, poll.registry()) {
                Ok(socket) => connected.push(socket),
                Err(error) => break error,
            }
            assert!(connected.len() < 10, "there is room for one");
        };
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert_eq!(error.raw_os_error(), None);
    }

    #[test]
    fn paths_are_read_and_shown() {
        for text in [
            "unix:/run/a.sock",
            "unix:/a?mode=0600",
            "unix:/a?group=www-data",
            "unix:/a?mode=0666&group=33",
        ] {
            let path = UnixPath::parse(text.strip_prefix("unix:").unwrap()).unwrap();
            assert_eq!(path.to_string(), text);
        }
        assert_eq!(UnixPath::parse("/a?mode=660").unwrap().to_string(), "unix:/a");
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        for text in [
            "",
            "a",
            "/",
            "/a/",
            "/a\0",
            "/a?mode=8",
            "/a?mode=1777",
            "/a?user=x",
            "/a?group=",
            &long,
        ] {
            assert!(UnixPath::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let folder = TestFolder::make();
        let at = at(&folder);
        drop(StdListener::bind(at.path()).unwrap());
        let listener = listen(&at).unwrap();
        let why = listen(&at).err().unwrap();
        assert_eq!(why.kind(), ErrorKind::AddrInUse);
        drop(listener);
        assert!(!at.path().exists(), "its file goes with it");
        std::fs::write(at.path(), "x").unwrap();
        assert!(listen(&at).err().unwrap().to_string().contains("no socket"));
        assert_eq!(std::fs::read(at.path()).unwrap(), b"x");
        std::fs::remove_file(at.path()).unwrap();
        let _datagram = UnixDatagram::bind(at.path()).unwrap();
        assert!(listen(&at).err().unwrap().to_string().contains("another kind"));
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let folder = TestFolder::make();
        let at = at(&folder);
        let first = listen(&at).unwrap();
        std::fs::remove_file(at.path()).unwrap();
        let _second = listen(&at).unwrap();
        drop(first);
        assert!(at.path().exists());
    }

    #[test]
    fn the_file_has_the_mode_and_the_group_that_were_given() {
        let folder = TestFolder::make();
        let path = at(&folder).path().display().to_string();
        let group = rustix::process::getgid().as_raw();
        for (options, mode) in
            [("".to_owned(), 0o660), (format!("?mode=0602&group={group}"), 0o602)]
        {
            let listener = listen(&UnixPath::parse(&format!("{path}{options}")).unwrap()).unwrap();
            let file = std::fs::metadata(&path).unwrap();
            assert_eq!((file.permissions().mode() & 0o777, file.gid()), (mode, group));
            drop(listener);
        }
        let unknown = UnixPath::parse(&format!("{path}?group=no-such-group")).unwrap();
        assert!(listen(&unknown).err().unwrap().to_string().contains("no group"));
        assert!(!Path::new(&path).exists(), "what failed leaves nothing behind");
        assert_eq!(group_id("root").unwrap(), 0);
    }
}
