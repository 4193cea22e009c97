//! A part of a file that a background thread reads for one client.

use crate::net::files::FileBytes;
use std::io;

/// What a file that is being sent waits for.
pub(super) enum Read<T> {
    /// Nothing, or the outbox.
    Idle,
    /// A background thread is reading.
    UnderWay(T),
    Done(T, io::Result<FileBytes>),
}

impl<T: Copy> Read<T> {
    /// Bytes that are read, or are being read; `length` has how many that are.
    pub(super) fn bytes(&self, length: impl Fn(T) -> u32) -> usize {
        match self {
            Read::UnderWay(what) => length(*what) as usize,
            Read::Done(_, Ok(read)) => read.bytes.capacity(),
            Read::Idle | Read::Done(_, Err(_)) => 0,
        }
    }

    /// A background thread has read.
    pub(super) fn handle(&mut self, read: io::Result<FileBytes>) {
        if let Read::UnderWay(what) = self {
            *self = Read::Done(*what, read);
        }
    }
}
