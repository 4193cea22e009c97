//! What this process takes of the machine, as the system counts it.

#![expect(
    clippy::disallowed_methods,
    reason = "files of the system's own, which never wait for a disk"
)]

use rustix::process::{Resource, getrlimit};
use std::fs;

/// Parts of a second in which `/proc` counts processor time (`USER_HZ`, the same on every Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// What the process takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Memory that is resident, in bytes.
    pub resident_bytes: u64,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// How many there may be; `None`: no limit.
    pub max_fds: Option<u64>,
    /// Processor time, in seconds.
    pub cpu_seconds: f64,
}

/// What this process takes at the moment. What cannot be read is 0.
pub fn usage() -> Usage {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    Usage {
        resident_bytes: kilobytes(&status, "VmRSS:"),
        virtual_bytes: kilobytes(&status, "VmSize:"),
        open_fds: open_fds(),
        max_fds: getrlimit(Resource::Nofile).current,
        cpu_seconds: ticks(&stat) as f64 / TICKS_PER_SECOND,
    }
}

/// Linux has counted them in the size of this folder since 6.2; before, it has to be read.
fn open_fds() -> u64 {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).map_or(0, |folder| folder.len()) {
        0 => fs::read_dir(FOLDER).map_or(0, |entries| entries.count() as u64),
        count => count,
    }
}

/// A field of `/proc/self/status` in kB, as bytes.
fn kilobytes(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    number.map_or(0, |number| number * 1024)
}

/// User and system time in `/proc/self/stat`: the 14th and the 15th field. The second is the name
/// of the program, in which anything may be, up to the last parenthesis.
fn ticks(stat: &str) -> u64 {
    let Some((_, fields)) = stat.rsplit_once(')') else { return 0 };
    let times = fields.split_whitespace().skip(11).take(2);
    times.filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_program_is_called() {
        let status = "Name:\ta\nVmSize:\t    9 kB\nVmRSS:\t  12 kB\n";
        assert_eq!((kilobytes(status, "VmRSS:"), kilobytes(status, "VmSize:")), (12_288, 9_216));
        assert_eq!(kilobytes("", "VmRSS:"), 0);
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(ticks(stat), 300);
        assert_eq!(ticks(""), 0);
    }

    #[test]
    fn this_process_takes_something() {
        let usage = usage();
        assert!(usage.resident_bytes > 100_000 && usage.virtual_bytes > usage.resident_bytes);
        assert!(usage.open_fds >= 3, "{usage:?}");
    }
}
