//! Files that clients ask for by name: those of a built web page, say.
//!
//! As for audio, names come from outside, and the kernel resolves them beneath the folder
//! (`openat2`). Unlike there, links are followed as long as they stay inside: build tools and
//! deployments use them. A relative link is resolved by the kernel, which refuses any way out, at
//! whatever moment a link is replaced. For an absolute link, a background thread finds out what it
//! leads to, and the kernel resolves that name beneath the folder.
//!
//! Where the kernel has no `openat2`, or a container forbids it, no links are followed.

use super::{
    Device, DeviceKind, LocalDevices, OpenError, OpenFile, READ, RENAME_RETRIES_MAX, ROOT,
    cached_error, device_kind, device_number, io_error, open_error, open_root, open_step_by_step,
    root_error, steps,
};
use crate::proto::http::negotiation::Coding;
use rustix::fs::{CWD, Mode, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file that answers for a folder.
pub const INDEX: &str = "index.html";

/// The largest file whose bytes are read as soon as it is open, where a background thread opens it.
pub const SMALL_BYTES: u64 = 16 * 1024;

/// No way out of the folder.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// What a client asks for. Opened by the loop with [`AssetRequest::open_cached`], or by a thread
/// that may wait with [`AssetRequest::run`].
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct AssetRequest {
    pub folder: Arc<Path>,
    /// Relative to the folder, without `.` and `..`. If it is empty or ends with a slash, the
    /// `index.html` of that folder is meant.
    pub name: Box<str>,
    /// The codings in which the client prefers the file, best first: siblings of the file
    /// (`app.js.br` beside `app.js`) have it so compressed.
    pub codings: &'static [Coding],
    /// The file, relative to the folder, that is wanted where there is none of this name.
    pub fallback: Option<Arc<str>>,
}

/// The folder of the last request, open until the end of the turn: many requests of one turn open
/// it once. No longer, because a deployment may replace it at any time.
#[derive(Debug, Default)]
pub struct OpenFolder(Option<(Arc<Path>, OwnedFd, Device)>);

/// What there is of a name.
#[derive(Debug)]
pub enum FoundAsset {
    /// A file, or a sibling of it.
    File(Asset),
    /// A folder, though the name does not end with a slash.
    Folder,
}

/// An open file for a client.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Asset {
    pub file: OpenFile,
    /// `None`: it is the file itself.
    pub coding: Option<Coding>,
    pub role: AssetRole,
}

/// Why it is this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssetRole {
    /// It has the name that was asked for.
    Named,
    /// It is the index of the folder that was asked for.
    Index,
    /// It is the fallback: there is no file of the name that was asked for.
    Fallback,
}

/// What was opened.
enum Opened {
    File(OpenFile),
    Folder,
}

impl AssetRequest {
    /// Opens the file without waiting.
    ///
    /// # Errors
    /// [`OpenError::WouldWait`] if that takes more than what is in memory.
    pub fn open_cached(
        &self,
        local: &LocalDevices,
        folder: &mut OpenFolder,
    ) -> Result<FoundAsset, OpenError> {
        let (root, device) = folder.open(&self.folder, local)?;
        let resolve = BENEATH | ResolveFlags::CACHED | ResolveFlags::NO_XDEV;
        self.find(|name| {
            let file = rustix::fs::openat2(root, name, READ, Mode::empty(), resolve);
            check(file.map_err(cached_error)?, |_| device.kind, device)
        })
    }

    /// Opens the file. May block for as long as the file system does.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be opened.
    pub fn run(&self) -> Result<FoundAsset, OpenError> {
        let (root, device) = open_root(&self.folder)?;
        let found = self.find(|name| {
            let file = open_beneath(root.as_fd(), &self.folder, name).map_err(open_error)?;
            check(file, device_kind, device)
        })?;
        Ok(match found {
            FoundAsset::File(mut asset) if asset.file.state.length <= SMALL_BYTES => {
                asset.file.read_first_bytes(SMALL_BYTES as usize)?;
                FoundAsset::File(asset)
            }
            found => found,
        })
    }

    /// The file, its index or the fallback, in the best coding there is.
    fn find(
        &self,
        open: impl Fn(&str) -> Result<Opened, OpenError>,
    ) -> Result<FoundAsset, OpenError> {
        let is_folder = self.name.is_empty() || self.name.ends_with('/');
        let index = is_folder.then(|| format!("{}{INDEX}", self.name));
        let name = index.as_deref().unwrap_or(&self.name);
        let found = match open(name) {
            Ok(Opened::Folder) if !is_folder => return Ok(FoundAsset::Folder),
            Ok(Opened::Folder) => Err(OpenError::NotFound),
            Ok(Opened::File(file)) => Ok(file),
            Err(error) => Err(error),
        };
        let (file, name, role) = match (found, &self.fallback) {
            (Ok(file), _) if is_folder => (file, name, AssetRole::Index),
            (Ok(file), _) => (file, name, AssetRole::Named),
            (Err(OpenError::NotFound), Some(fallback)) => match open(fallback)? {
                Opened::File(file) => (file, &**fallback, AssetRole::Fallback),
                Opened::Folder => return Err(OpenError::NotFound),
            },
            (Err(error), _) => return Err(error),
        };
        for coding in self.codings {
            match open(&format!("{name}{}", extension(*coding))) {
                Ok(Opened::File(file)) => {
                    let coding = Some(*coding);
                    return Ok(FoundAsset::File(Asset { file, coding, role }));
                }
                Err(OpenError::WouldWait) => return Err(OpenError::WouldWait),
                // A sibling that cannot be used is as good as none.
                Ok(Opened::Folder) | Err(_) => {}
            }
        }
        Ok(FoundAsset::File(Asset { file, coding: None, role }))
    }
}

impl OpenFolder {
    /// Opens `folder` without waiting, unless it is open.
    fn open(
        &mut self,
        folder: &Arc<Path>,
        local: &LocalDevices,
    ) -> Result<(&OwnedFd, Device), OpenError> {
        let is_open = self.0.as_ref().is_some_and(|(open, ..)| Arc::ptr_eq(open, folder));
        if !is_open {
            let root =
                rustix::fs::openat2(CWD, &**folder, ROOT, Mode::empty(), ResolveFlags::CACHED)
                    .map_err(|errno| match cached_error(errno) {
                        OpenError::WouldWait => OpenError::WouldWait,
                        _ => root_error(errno),
                    })?;
            let number = device_number(&root).map_err(open_error)?;
            let device = local.find(number).ok_or(OpenError::WouldWait)?;
            self.0 = Some((Arc::clone(folder), root, device));
        }
        let Some((_, root, device)) = &self.0 else { unreachable!("it was opened just now") };
        Ok((root, *device))
    }

    /// The turn ends.
    pub fn close(&mut self) {
        self.0 = None;
    }
}

impl OpenFile {
    /// A part of it that can be read without waiting, if the file is as it was when it was opened.
    /// Of the whole file only the length is compared: no client puts it together with an earlier
    /// part, and one that has the new content with the old entity tag gets it again.
    pub fn read_cached(&self, range: &Range<u64>) -> Option<Vec<u8>> {
        let (begin, end) = (range.start as usize, range.end as usize);
        if let Some(bytes) = self.first_bytes().get(begin..end)
            && !bytes.is_empty()
        {
            return Some(bytes.to_vec());
        }
        let flags = match self.shared.kind {
            DeviceKind::Memory => ReadWriteFlags::empty(),
            DeviceKind::Local => ReadWriteFlags::NOWAIT,
            DeviceKind::Other => return range.is_empty().then(Vec::new),
        };
        let mut bytes = vec![0; end - begin];
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let read = rustix::io::preadv2(self, &mut buffers, range.start, flags).ok()?;
        let is_whole = *range == (0..self.state.length);
        let is_same = is_whole || self.state_now() == Some(self.state);
        (read == bytes.len() && is_same).then_some(bytes)
    }
}

/// What the names of siblings end with.
fn extension(coding: Coding) -> &'static str {
    match coding {
        Coding::Brotli => ".br",
        Coding::Gzip => ".gz",
    }
}

fn check(
    opened: OwnedFd,
    kind: impl FnOnce(&OwnedFd) -> DeviceKind,
    root: Device,
) -> Result<Opened, OpenError> {
    let kind = kind(&opened);
    let file = File::from(opened);
    let metadata = file.metadata().map_err(|error| io_error(&error))?;
    if metadata.is_dir() {
        return Ok(Opened::Folder);
    }
    if !metadata.is_file() {
        return Err(OpenError::NotRegular);
    }
    Ok(Opened::File(OpenFile::new(file, &metadata, kind, root)))
}

/// Opens a file for reading beneath `root`, which is `folder`. May wait.
fn open_beneath(root: BorrowedFd<'_>, folder: &Path, name: &str) -> Result<OwnedFd, Errno> {
    match resolve_beneath(root, Path::new(name)) {
        // An absolute link, or one that leads out.
        Err(Errno::XDEV) => {
            let inside = real_name(folder, name).ok_or(Errno::XDEV)?;
            resolve_beneath(root, &inside)
        }
        // Old kernels do not have the call, and some containers forbid calls that they do not know.
        Err(Errno::NOSYS | Errno::PERM) => {
            let steps = steps(Path::new(name)).map_err(|_| Errno::NOENT)?;
            open_step_by_step(root, &steps)
        }
        opened => opened,
    }
}

fn resolve_beneath(root: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd, Errno> {
    let mut retries = 0;
    loop {
        match rustix::fs::openat2(root, name, READ, Mode::empty(), BENEATH) {
            Err(Errno::AGAIN) if retries < RENAME_RETRIES_MAX => retries += 1,
            opened => return opened,
        }
    }
}

/// What a name in `folder` leads to, all links resolved, relative to the folder; `None` if it leads
/// out. Only a name: what it is by now is resolved beneath the folder again.
fn real_name(folder: &Path, name: &str) -> Option<PathBuf> {
    let real = folder.join(name).canonicalize().ok()?;
    Some(real.strip_prefix(folder.canonicalize().ok()?).ok()?.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use crate::net::files::Root;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    /// A folder with `root` in it, whose files are asked for.
    struct Site(TestFolder);

    impl Site {
        fn new() -> Site {
            let folder = TestFolder::make();
            fs::create_dir_all(folder.join("root/sub")).unwrap();
            Site(folder)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn write(&self, names: &[&str]) {
            for name in names {
                fs::write(self.path(name), name).unwrap();
            }
        }

        fn request(&self, name: &str) -> AssetRequest {
            let folder = self.path("root").into();
            AssetRequest { folder, name: name.into(), codings: &[], fallback: None }
        }

        /// Opens in both ways, which have to agree, and reads the file.
        fn open(&self, request: &AssetRequest) -> Result<Opening, OpenError> {
            let content = |found: Result<FoundAsset, OpenError>| {
                found.map(|found| match found {
                    FoundAsset::Folder => Opening::Folder,
                    FoundAsset::File(Asset { file, coding, role }) => {
                        let bytes = file.read_cached(&(0..file.state().length)).unwrap();
                        Opening::File(String::from_utf8(bytes).unwrap(), coding, role)
                    }
                })
            };
            let waited = content(request.run());
            let mut local = LocalDevices::default();
            let probe = self.path("root/probe");
            fs::write(&probe, "").unwrap();
            let opened = Root::new(&self.path("root"), 1).request(Path::new("probe")).run();
            local.note(opened.unwrap().root());
            fs::remove_file(probe).unwrap();
            // The loop may leave it to a background thread to find out.
            match request.open_cached(&local, &mut OpenFolder::default()) {
                Err(OpenError::WouldWait) => {}
                cached => assert_eq!(content(cached), waited, "{}", request.name),
            }
            waited
        }

        fn named(&self, name: &str) -> Result<Opening, OpenError> {
            self.open(&self.request(name))
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Opening {
        File(String, Option<Coding>, AssetRole),
        Folder,
    }

    fn file(content: &str) -> Result<Opening, OpenError> {
        Ok(Opening::File(content.into(), None, AssetRole::Named))
    }

    #[test]
    fn files_and_the_indexes_of_folders_are_found() {
        let site = Site::new();
        site.write(&["root/a.js", "root/index.html", "root/sub/index.html", "root/sub/あ b"]);
        fs::create_dir_all(site.path("root/bare/index.html")).unwrap();
        let index = |name: &str| Ok(Opening::File(name.into(), None, AssetRole::Index));
        assert_eq!(site.named("a.js"), file("root/a.js"));
        assert_eq!(site.named("sub/あ b"), file("root/sub/あ b"));
        assert_eq!(site.named(""), index("root/index.html"));
        assert_eq!(site.named("sub/"), index("root/sub/index.html"));
        assert_eq!(site.named("sub"), Ok(Opening::Folder));
        let long = "x".repeat(300);
        let deep = "sub/".repeat(2000);
        for name in ["b", "sub/b", "a.js/", "a.js/b", "bare/", "none/", &long, &deep] {
            assert_eq!(site.named(name), Err(OpenError::NotFound), "{name}");
        }
    }

    #[test]
    fn links_are_followed_and_none_leads_out() {
        let site = Site::new();
        site.write(&["root/a.js", "root/sub/b.js", "secret"]);
        let link = |to: &Path, name: &str| symlink(to, site.path("root").join(name)).unwrap();
        link(Path::new("a.js"), "file");
        link(Path::new("sub"), "folder");
        link(Path::new("../a.js"), "sub/up");
        link(Path::new("file"), "twice");
        link(&site.path("root/a.js"), "absolute");
        link(&site.path("root/sub"), "absolute-folder");
        for name in ["file", "sub/up", "twice", "absolute", "folder/up"] {
            assert_eq!(site.named(name), file("root/a.js"), "{name}");
        }
        assert_eq!(site.named("folder/b.js"), file("root/sub/b.js"));
        assert_eq!(site.named("absolute-folder/b.js"), file("root/sub/b.js"));
        assert_eq!(site.named("folder"), Ok(Opening::Folder));

        link(Path::new("../secret"), "out");
        link(&site.path("secret"), "absolute-out");
        link(Path::new("../root/a.js"), "out-and-in");
        link(Path::new("/etc/passwd"), "passwd");
        link(Path::new("/"), "slash");
        link(Path::new(".."), "parent");
        link(Path::new("/proc/self/root"), "proc");
        link(Path::new("round"), "round");
        for name in ["out", "absolute-out", "passwd", "slash/etc/passwd", "parent/secret"] {
            assert_eq!(site.named(name), Err(OpenError::Forbidden), "{name}");
        }
        for name in ["slash", "parent", "proc", "proc/etc/passwd", "round"] {
            assert!(site.named(name).is_err(), "{name}");
        }
        // What is sent is inside, whichever way a link takes.
        assert_eq!(site.named("parent/root/a.js"), file("root/a.js"));
        link(Path::new("nowhere"), "dangling");
        assert_eq!(site.named("dangling"), Err(OpenError::NotFound));
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let site = Site::new();
        rustix::fs::mkfifoat(CWD, site.path("root/fifo"), Mode::RUSR).unwrap();
        let _socket = UnixListener::bind(site.path("root/socket")).unwrap();
        for name in ["fifo", "socket"] {
            assert_eq!(site.named(name), Err(OpenError::NotRegular), "{name}");
        }
        let mut request = site.request("a");
        request.folder = site.path("none").into();
        assert!(matches!(request.run(), Err(OpenError::NoRoot(Errno::NOENT))));
    }

    #[test]
    fn the_best_sibling_that_there_is_is_taken() {
        let site = Site::new();
        site.write(&["root/a.js", "root/a.js.br", "root/a.js.gz", "root/b.js", "root/b.js.gz"]);
        site.write(&["root/c.js.br", "root/index.html", "root/index.html.gz"]);
        fs::create_dir_all(site.path("root/b.js.br")).unwrap();
        let taken = |name: &str, codings| match site
            .open(&AssetRequest { codings, ..site.request(name) })
        {
            Ok(Opening::File(content, coding, _)) => Ok((content, coding)),
            Ok(Opening::Folder) => panic!("a file"),
            Err(error) => Err(error),
        };
        use Coding::{Brotli, Gzip};
        for (name, codings, expected, coding) in [
            ("a.js", &[Brotli, Gzip][..], "root/a.js.br", Some(Brotli)),
            ("a.js", &[Gzip, Brotli], "root/a.js.gz", Some(Gzip)),
            ("a.js", &[], "root/a.js", None),
            ("b.js", &[Brotli, Gzip], "root/b.js.gz", Some(Gzip)),
            ("b.js", &[Brotli], "root/b.js", None),
            ("", &[Brotli, Gzip], "root/index.html.gz", Some(Gzip)),
        ] {
            assert_eq!(taken(name, codings), Ok((expected.into(), coding)), "{name} {codings:?}");
        }
        assert_eq!(taken("c.js", &[Brotli]), Err(OpenError::NotFound), "a sibling of nothing");
    }

    #[test]
    fn the_fallback_is_for_what_is_not_there() {
        let site = Site::new();
        site.write(&["root/index.html", "root/index.html.br", "root/a.js", "secret"]);
        symlink(site.path("secret"), site.path("root/out")).unwrap();
        let opened = |name: &str, codings| {
            let fallback = Some("index.html".into());
            site.open(&AssetRequest { codings, fallback, ..site.request(name) })
        };
        let page = |name: &str, coding| Ok(Opening::File(name.into(), coding, AssetRole::Fallback));
        assert_eq!(opened("talk/7", &[]), page("root/index.html", None));
        assert_eq!(opened("sub/", &[]), page("root/index.html", None));
        let brotli = page("root/index.html.br", Some(Coding::Brotli));
        assert_eq!(opened("talk", &[Coding::Brotli]), brotli);
        assert_eq!(opened("a.js", &[]), file("root/a.js"));
        assert_eq!(opened("out", &[]), Err(OpenError::Forbidden));
        fs::remove_file(site.path("root/index.html")).unwrap();
        assert_eq!(opened("talk", &[]), Err(OpenError::NotFound));
    }

    #[test]
    fn a_changed_file_is_not_read() {
        let site = Site::new();
        site.write(&["root/a.js"]);
        let Ok(FoundAsset::File(asset)) = site.request("a.js").run() else { panic!("a file") };
        let whole = 0..asset.file.state().length;
        assert_eq!(asset.file.read_cached(&(5..9)), Some(b"a.js".to_vec()));
        // A background thread has read it when it was opened.
        fs::write(site.path("root/a.js"), "").unwrap();
        assert_eq!(asset.file.read_cached(&whole), Some(b"root/a.js".to_vec()));
        let mut file = asset.file;
        Arc::get_mut(&mut file.shared).unwrap().first_bytes = Box::default();
        assert_eq!(file.read_cached(&whole), None);
    }
}
