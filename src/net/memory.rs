//! How much memory this process may use: that of the machine, or of the cgroup that it runs in.

#![expect(
    clippy::disallowed_methods,
    reason = "files of the system's own, which never wait for a disk"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that the machine has or that a cgroup of this process grants, whichever is less.
/// `None` where neither can be read.
pub fn available() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups, Path::new("/sys/fs/cgroup"));
    let limits =
        limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    limits.chain(machine).min()
}

/// The total of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Files that may hold a limit, given `/proc/self/cgroup`: of the process's group and all groups
/// above it, for both versions of cgroups. Inside a container the path in there may be the host's,
/// so the top of the hierarchy is among them in any case.
fn limit_files(groups: &str, root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (top, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| top.join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_the_machine_is_read_in_bytes() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24683632 kB\n"), Some(24_683_632 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn limits_are_looked_for_in_all_groups_above() {
        let files = |groups| {
            let files = limit_files(groups, Path::new("/g"));
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(files("0::/a/b\n"), ["/g/a/b/memory.max", "/g/a/memory.max", "/g/memory.max"]);
        assert_eq!(
            files("4:memory:/a\n3:cpu,cpuacct:/x\n"),
            ["/g/memory/a/memory.limit_in_bytes", "/g/memory/memory.limit_in_bytes"]
        );
        assert_eq!(files("0::/\n"), ["/g/memory.max"]);
        assert_eq!(files("nonsense"), [""; 0]);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
