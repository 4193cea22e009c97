//! On which file systems the loop may open files.

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// File systems that [`LocalDevices`] remembers; the oldest is forgotten first.
const LOCAL_DEVICES_MAX: usize = 8;

/// The file system that a file is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) number: u64,
    pub(super) kind: DeviceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeviceKind {
    /// All of it is in memory.
    Memory,
    /// Opening a cached file does not wait, and the kernel can say whether a read would.
    Local,
    /// A server on the network or a process is asked, or nothing is known.
    Other,
}

/// A folder that can be opened, for [`LocalDevices::note`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRoot(pub(super) Device);

/// The file systems on which [`Root::open_cached`](super::Root::open_cached) may open files.
#[derive(Clone, Debug, Default)]
pub struct LocalDevices(Vec<Device>);

impl LocalDevices {
    /// Notes the file system of a folder that was opened by a thread that may wait.
    pub fn note(&mut self, root: FoundRoot) {
        let FoundRoot(root) = root;
        self.0.retain(|device| device.number != root.number);
        if root.kind != DeviceKind::Other {
            self.0.push(root);
        }
        if self.0.len() > LOCAL_DEVICES_MAX {
            self.0.remove(0);
        }
    }

    pub(super) fn find(&self, number: u64) -> Option<Device> {
        self.0.iter().find(|device| device.number == number).copied()
    }
}

/// The number of the file system that `opened` is on, from memory.
pub(super) fn device_number(opened: &OwnedFd) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let state = rustix::fs::statx(opened, "", flags, StatxFlags::TYPE)?;
    Ok(rustix::fs::makedev(state.stx_dev_major, state.stx_dev_minor))
}

/// The kind of the file system that `opened` is on. May wait.
pub(super) fn device_kind(opened: &OwnedFd) -> DeviceKind {
    /// `statfs(2)` and linux/magic.h; only file systems on local disks whose `open` asks no server.
    const LOCAL: [u32; 9] = [
        0x0000_ef53, // ext2, ext3, ext4
        0x5846_5342, // XFS
        0x9123_683e, // Btrfs
        0xf2f5_2010, // F2FS
        0xca45_1a4e, // bcachefs
        0x2fc1_2fc1, // ZFS
        0x794c_7630, // overlayfs
        0x7371_7368, // SquashFS
        0xe0f5_e1e2, // EROFS
    ];
    const MEMORY: [u32; 2] = [
        0x0102_1994, // tmpfs
        0x8584_58f6, // ramfs
    ];
    match rustix::fs::fstatfs(opened) {
        Ok(found) if MEMORY.contains(&(found.f_type as u32)) => DeviceKind::Memory,
        Ok(found) if LOCAL.contains(&(found.f_type as u32)) => DeviceKind::Local,
        _ => DeviceKind::Other,
    }
}
