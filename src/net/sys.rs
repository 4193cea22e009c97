//! Calls of the kernel for which no crate has a safe name.
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
