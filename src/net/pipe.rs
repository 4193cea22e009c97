//! Kernel pipes: a stream passes through one from socket to socket without entering this process.
//!
//! Creating a pipe costs as much as relaying many messages, so empty ones are pooled. A flow takes
//! one when it streams and puts it back as soon as it is empty.

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes that a pipe should hold. The kernel may grant less to a user that has many.
pub const PIPE_BYTES: usize = 1024 * 1024;

/// Empty pipes kept for the next stream.
const IDLE_PIPES_MAX: usize = 16;

/// One pipe and how much it holds.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: u32,
}

impl Pipe {
    fn open() -> io::Result<Pipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // With the default size it works too, at the cost of more calls.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Pipe { read, write, held: 0 })
    }

    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held as usize
    }

    /// Takes at most `most` bytes from `source`; 0 at its end.
    ///
    /// # Errors
    /// `WouldBlock`: `source` has none, or the pipe is full. Anything else: `source` is broken.
    pub fn fill_from(&mut self, source: impl AsFd, most: usize) -> io::Result<usize> {
        let n = splice(
            source,
            None,
            &self.write,
            None,
            most,
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        )?;
        self.held += n as u32;
        Ok(n)
    }

    /// Moves as much into `sink` as it takes.
    ///
    /// # Errors
    /// `WouldBlock`: `sink` is full. Anything else: `sink` is broken.
    pub fn drain_into(&mut self, sink: impl AsFd) -> io::Result<usize> {
        let n = splice(
            &self.read,
            None,
            sink,
            None,
            self.held(),
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        )?;
        self.held -= n as u32;
        Ok(n)
    }
}

/// A pool of empty pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    idle: Vec<Pipe>,
}

impl Pipes {
    /// An empty pipe; `None` when none can be created.
    pub fn take(&mut self) -> Option<Pipe> {
        self.idle.pop().or_else(|| Pipe::open().ok())
    }

    /// Puts a pipe back. One that still holds bytes is closed, and they are lost.
    pub fn put_back(&mut self, pipe: Pipe) {
        if pipe.held == 0 && self.idle.len() < IDLE_PIPES_MAX {
            self.idle.push(pipe);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "sockets and files live here")]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_emptied_pipe_is_pooled() {
        let mut pipes = Pipes::default();
        let mut pipe = pipes.take().unwrap();
        let (mut source, source_end) = UnixStream::pair().unwrap();
        let (sink, mut sink_end) = UnixStream::pair().unwrap();
        source_end.set_nonblocking(true).unwrap();
        source.write_all(&[7; 1000]).unwrap();
        assert_eq!(pipe.fill_from(&source_end, 600).unwrap(), 600);
        assert_eq!(pipe.fill_from(&source_end, 600).unwrap(), 400);
        assert_eq!(pipe.fill_from(&source_end, 600).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(pipe.drain_into(&sink).unwrap(), 1000);
        let mut got = [0; 1000];
        sink_end.read_exact(&mut got).unwrap();
        assert_eq!(got, [7; 1000]);
        drop(source);
        assert_eq!(pipe.fill_from(&source_end, 600).unwrap(), 0);
        pipes.put_back(pipe);
        assert_eq!(pipes.idle.len(), 1);
    }

    #[test]
    fn a_pipe_that_holds_bytes_is_closed() {
        let mut pipes = Pipes::default();
        let mut pipe = pipes.take().unwrap();
        let (mut source, source_end) = UnixStream::pair().unwrap();
        source.write_all(b"x").unwrap();
        pipe.fill_from(&source_end, 1).unwrap();
        pipes.put_back(pipe);
        assert!(pipes.idle.is_empty());
    }
}
