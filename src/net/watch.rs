//! Which open files are written to, as the kernel reports it (`inotify(7)`).
//!
//! A watch is on the file itself, not on its name: it goes on when the file is renamed or removed,
//! and reports writing through every other name. Only writing on this machine is reported.

#![expect(clippy::disallowed_types, reason = "sockets and files live here")]
#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::{OpenFile, Source};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Bytes of reports that are read at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes of a report about a file (`struct inotify_event`).
const REPORT_BYTES: usize = 16;

/// Where a report has what happened, and the value for reports that were lost.
const MASK_AT: usize = 4;
const LENGTH_AT: usize = 12;
const OVERFLOW: u32 = 0x4000;

/// The files that are watched.
#[derive(Default)]
pub struct Watches {
    /// Opened with the first watch.
    reports: Option<Reports>,
    /// A file has one watch, whoever wants to know.
    owners: HashMap<i32, SmallVec<[u64; 1]>>,
    watches: HashMap<u64, i32>,
    written: VecDeque<u64>,
}

struct Reports {
    fd: OwnedFd,
    buffer: Box<[u8]>,
}

impl Watches {
    /// Watches a file for `owner`.
    ///
    /// # Errors
    /// When the kernel has no room for another watch, or there is no `/proc`.
    pub fn add(&mut self, file: &OpenFile, owner: u64, registry: &Registry) -> io::Result<()> {
        let reports = match &mut self.reports {
            Some(reports) => reports,
            none => none.insert(Reports::open(registry)?),
        };
        // The file that is open, whatever has become of its name.
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let watch = inotify::add_watch(&reports.fd, path, WatchFlags::MODIFY)?;
        self.owners.entry(watch).or_default().push(owner);
        self.watches.insert(owner, watch);
        Ok(())
    }

    /// Ends the watch for `owner`.
    pub fn remove(&mut self, owner: u64) {
        let Some(watch) = self.watches.remove(&owner) else { return };
        let Some(owners) = self.owners.get_mut(&watch) else { return };
        owners.retain(|other| *other != owner);
        if owners.is_empty() {
            self.owners.remove(&watch);
            if let Some(reports) = &self.reports {
                // It fails if the file is gone, and the watch with it.
                let _ = inotify::remove_watch(&reports.fd, watch);
            }
        }
    }

    /// The next owner whose file was written to.
    pub fn poll(&mut self) -> Option<u64> {
        while self.written.is_empty() {
            self.read()?;
        }
        self.written.pop_front()
    }

    /// Reads reports. `None`: there are none.
    fn read(&mut self) -> Option<()> {
        let Watches { reports, owners, written, .. } = self;
        let Reports { fd, buffer } = reports.as_mut()?;
        let length = rustix::io::read(fd, &mut **buffer).ok()?;
        let number = |at: usize| {
            let bytes = buffer[at..at + 4].try_into().unwrap_or_default();
            u32::from_ne_bytes(bytes)
        };
        let mut at = 0;
        while at + REPORT_BYTES <= length {
            if number(at + MASK_AT) & OVERFLOW != 0 {
                written.extend(owners.values().flatten());
            } else if let Some(owners) = owners.get(&(number(at) as i32)) {
                written.extend(owners);
            }
            // A file has no name in its reports, only a folder.
            at += REPORT_BYTES + number(at + LENGTH_AT) as usize;
        }
        Some(())
    }
}

impl Reports {
    fn open(registry: &Registry) -> io::Result<Reports> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let raw = fd.as_raw_fd();
        registry.register(&mut SourceFd(&raw), Source::Files.into(), Interest::READABLE)?;
        Ok(Reports { fd, buffer: vec![0; BUFFER_BYTES].into() })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "files are made here")]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use crate::net::files::Root;
    use std::fs;
    use std::io::Write;

    #[test]
    fn writing_is_reported_to_every_owner_whatever_the_name() {
        let folder = TestFolder::make();
        let append = |name: &str| {
            let mut file = fs::OpenOptions::new().append(true).open(folder.join(name)).unwrap();
            file.write_all(b"more").unwrap();
        };
        folder.write("a", "a");
        fs::hard_link(folder.join("a"), folder.join("link")).unwrap();
        let file = Root::new(&folder, 100).request("a".as_ref()).run().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let mut watches = Watches::default();
        watches.add(&file, 1, poll.registry()).unwrap();
        watches.add(&file, 2, poll.registry()).unwrap();
        assert_eq!(watches.poll(), None);
        fs::remove_file(folder.join("a")).unwrap();
        append("link");
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, None).unwrap();
        assert!(events.iter().any(|event| Source::from(event.token()) == Source::Files));
        assert_eq!([watches.poll(), watches.poll(), watches.poll()], [Some(1), Some(2), None]);
        watches.remove(1);
        append("link");
        assert_eq!([watches.poll(), watches.poll()], [Some(2), None]);
        watches.remove(2);
        watches.remove(2);
        append("link");
        assert_eq!(watches.poll(), None);
        assert!(watches.owners.is_empty() && watches.watches.is_empty());
    }

    /// The kernel puts equal reports in a row together, so two files are written to in turn.
    #[test]
    fn all_files_are_reported_once_the_kernel_has_dropped_reports() {
        let folder = TestFolder::make();
        let registry = mio::Poll::new().unwrap();
        let mut watches = Watches::default();
        let mut add = |name: &str, owner: u64| {
            folder.write(name, "");
            let file = Root::new(&folder, 100).request(name.as_ref()).run().unwrap();
            watches.add(&file, owner, registry.registry()).unwrap();
            fs::OpenOptions::new().append(true).open(folder.join(name)).unwrap()
        };
        let (mut one, mut other, mut late) = (add("one", 1), add("other", 2), add("late", 3));
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for _ in 0..=limit.trim().parse::<usize>().unwrap() / 2 {
            one.write_all(b".").unwrap();
            other.write_all(b".").unwrap();
        }
        late.write_all(b".").unwrap();
        let reported: Vec<u64> = std::iter::from_fn(|| watches.poll()).collect();
        assert!(reported.contains(&3), "its own report was dropped");
        let mut last = reported[reported.len() - 3..].to_vec();
        last.sort_unstable();
        assert_eq!(last, [1, 2, 3], "what was lost is behind all other reports");
        late.write_all(b".").unwrap();
        assert_eq!([watches.poll(), watches.poll()], [Some(3), None]);
    }
}
