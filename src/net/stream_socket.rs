//! TCP and Unix sockets as a [`Transport`]: nearly all calls are the same for both.

use super::{OpenFile, Pipe, Transport, sys};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// A registered socket.
pub struct StreamSocket<S>(pub(super) S);

/// The calls that differ: `Transport` says what they do.
pub trait SocketKind: AsFd {
    /// As [`Transport::limit_buffers`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn limit_buffers(&self, bytes_max: usize) -> io::Result<()>;

    /// As [`Transport::limit_unsent`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn limit_unsent(&self, _bytes: usize) -> io::Result<()> {
        Ok(())
    }

    /// As [`Transport::set_corked`].
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_corked(&self, _is_corked: bool) -> io::Result<()> {
        Ok(())
    }
}

// The C library makes each `recv` and `send` of a process with threads a cancellation point, which
// costs a relayed frame as much as the rest of the two calls in user space. So the kernel is called
// directly; and by `recv`, as `read` goes through the layer for files first.
impl<S: SocketKind> Read for StreamSocket<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (length, _) = rustix::net::recv(&self.0, buf, RecvFlags::empty())?;
        Ok(length)
    }
}

impl<S: SocketKind> Write for StreamSocket<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: SocketKind> Transport for StreamSocket<S> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, Shutdown::Write)?)
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        Ok(rustix::net::sockopt::socket_error(&self.0)??)
    }

    /// For a Unix socket: what the peer has not read, with what the kernel needs around it.
    fn unacknowledged(&self) -> Option<usize> {
        sys::unacknowledged(&self.0)
    }

    /// A Unix socket ignores that more follows.
    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::MORE | SendFlags::NOSIGNAL)?)
    }

    fn set_corked(&mut self, is_corked: bool) -> io::Result<()> {
        self.0.set_corked(is_corked)
    }

    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
        file.send_to(&self.0, offset, count)
    }

    fn kernel_bytes(&self) -> usize {
        sys::socket_memory(&self.0)
    }

    fn limit_buffers(&mut self, bytes_max: usize) -> io::Result<()> {
        self.0.limit_buffers(bytes_max)
    }

    fn limit_unsent(&mut self, bytes: usize) -> io::Result<()> {
        self.0.limit_unsent(bytes)
    }

    /// A Unix socket discards nothing: what was written is in the peer's queue already.
    fn discard_on_close(&mut self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO))?)
    }

    fn can_splice(&self) -> bool {
        true
    }

    fn peek(&mut self, offset: u32, buf: &mut [u8]) -> io::Result<usize> {
        if !sys::set_peek_offset(&self.0, offset) && offset > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let (_, length) = rustix::net::recv(&self.0, buf, RecvFlags::PEEK)?;
        Ok(length)
    }

    fn splice_into(&mut self, pipe: &mut Pipe, most: usize) -> io::Result<usize> {
        pipe.fill_from(&self.0, most)
    }

    fn splice_from(&mut self, pipe: &mut Pipe) -> io::Result<usize> {
        pipe.drain_into(&self.0)
    }
}
