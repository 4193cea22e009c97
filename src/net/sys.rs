//! System and C library calls for which no crate has a safe wrapper.
//!
//! This is the only file with `unsafe` in it.

#![expect(unsafe_code, reason = "the calls that no crate has a safe wrapper for")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Sets the offset into a socket's unread bytes from which `MSG_PEEK` reads (`socket(7)`,
/// `SO_PEEK_OFF`). False: this kernel cannot (TCP before Linux 6.9) and reads from the first byte.
pub fn set_peek_offset(socket: impl AsFd, offset: u32) -> bool {
    let offset = offset as libc::c_int;
    // SAFETY: the descriptor is open while it is borrowed, and the option is one `int`, whose
    // address and size are given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    done == 0
}

/// Bytes in a socket's send queue that the peer has not acknowledged (`tcp(7)`, `SIOCOUTQ`); `None`
/// if the kernel does not say.
pub fn unacknowledged(socket: impl AsFd) -> Option<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open while it is borrowed, and this request writes one `int` to the
    // address that is given.
    let done =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ as _, &raw mut count) };
    (done == 0).then(|| usize::try_from(count).ok()).flatten()
}

/// Bytes of kernel memory that a socket's buffers take (`SO_MEMINFO`); 0 where the kernel does not
/// say.
pub fn socket_memory(socket: impl AsFd) -> usize {
    /// Places in the answer, and its length: `linux/sock_diag.h`.
    const RECEIVED: usize = 0;
    const RESERVED: usize = 4;
    const TO_SEND: usize = 5;
    const BACKLOG: usize = 7;
    const LENGTH: usize = 9;
    const SO_MEMINFO: libc::c_int = 55;
    let mut answer = [0_u32; LENGTH];
    let mut length = size_of_val(&answer) as libc::socklen_t;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes at most `length`
    // bytes.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            (&raw mut answer).cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return 0;
    }
    [RECEIVED, RESERVED, TO_SEND, BACKLOG].into_iter().map(|at| answer[at] as usize).sum()
}

/// Reads the system's monotonic clock (`clock_gettime(2)`), in nanoseconds: 584 years fit.
///
/// `Instant` reads the same clock, but what it subtracts and converts takes several times as long.
/// `rustix` has this call too, but looks for it in the process's memory, which ends a process that
/// runs under Valgrind.
#[inline]
pub fn monotonic_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec` to the address that is given. Every kernel has this
    // clock, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns free heap memory to the system. It takes milliseconds on a large heap, so call it only
/// after much was freed.
///
/// By itself glibc's allocator returns only the top of its heap, and nothing at all while one small
/// block there is in use: 5,000 relays that have ended would cost as much as if they were open.
/// Other C libraries lack the call, and their allocators do not need it.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time; blocks in use do not move.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the allocator give large blocks back to the system as soon as they are freed, and share
/// one heap among all threads. To be called at the start, before there is a second thread.
///
/// By itself glibc's allocator takes the size of a freed block, up to 32 MiB, as a sign that there
/// will be more of them, and keeps that much and twice as much for good: one large result would
/// cost its memory forever.
pub fn return_large_blocks() {
    /// A larger block is a mapping of its own. No buffer of a relay is as large.
    #[cfg(target_env = "gnu")]
    const BLOCK_BYTES_MAX: libc::c_int = 256 * 1024;
    /// Heaps. By itself the allocator gives each thread one of its own, and what a background
    /// thread leaves unused there is of no use to the loop.
    #[cfg(target_env = "gnu")]
    const HEAPS_MAX: libc::c_int = 1;
    /// Free bytes that are kept at the top of the heap.
    #[cfg(target_env = "gnu")]
    const TOP_BYTES_MAX: libc::c_int = 1024 * 1024;
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time; blocks in use stay as they are.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK_BYTES_MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TOP_BYTES_MAX);
    }
}

/// The first descriptor that a service manager passes (`sd_listen_fds(3)`).
const FIRST_PASSED: libc::c_int = 3;

/// Takes the descriptors that a service manager has passed to this process: `count` of them, from
/// the first on that is not a standard stream. Only the first call gets any.
///
/// # Errors
/// When one of them is not open. Then none is taken.
pub fn take_passed(count: u8) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let numbers = FIRST_PASSED..FIRST_PASSED + libc::c_int::from(count);
    for number in numbers.clone() {
        // SAFETY: only the flags of a number are set, and a number that is not open is an error.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: they are open, and by the protocol they belong to this process, in which nothing else
    // knows them. They are taken only once.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// The IP addresses of this machine's network interfaces that are up (`getifaddrs(3)`), in the
/// system's order.
///
/// # Errors
/// What the system says.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the list is written to the address that is given.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: each entry leads to the next one or to null, and all live until the list is freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        let is_up = entry.ifa_flags & libc::IFF_UP as libc::c_uint != 0;
        // SAFETY: null, or an address that lives as long as the list.
        if let (true, Some(address)) = (is_up, unsafe { entry.ifa_addr.as_ref() }) {
            match libc::c_int::from(address.sa_family) {
                // SAFETY: the family says that it is one.
                libc::AF_INET => found.push(unsafe {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into()
                }),
                // SAFETY: the family says that it is one.
                libc::AF_INET6 => found.push(unsafe {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    Ipv6Addr::from(address.sin6_addr.s6_addr).into()
                }),
                _ => {}
            }
        }
    }
    // SAFETY: it is the list from above, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}
