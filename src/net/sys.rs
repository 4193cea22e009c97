//! Calls of the kernel and the C library for which no crate has a safe name.
//!
//! The only home of `unsafe` in this program.

use std::os::fd::{AsFd, AsRawFd};

/// Says from where on `MSG_PEEK` looks into a socket's unread bytes. False: this kernel cannot (TCP before Linux 6.9), and
/// looks from the first one on.
pub fn set_peek_offset(socket: impl AsFd, offset: u32) -> bool {
    let offset = offset as libc::c_int;
    // SAFETY: the descriptor is open as long as it is borrowed; the option is one `int`, whose address and size are given.
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

/// Gives the memory that is free in this process back to the system. Worth its while only after much was freed.
///
/// The allocator gives back no more than the top of its heap, and where one small block stands there that was made while a
/// crowd was in (a counter that was new that day), nothing at all: 5,000 relays that are gone cost as much as if they were
/// there. Other C libraries than glibc have no such call, and a heap of another kind.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time; what is in use does not move.
    unsafe {
        libc::malloc_trim(0);
    }
}
