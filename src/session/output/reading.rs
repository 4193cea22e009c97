//! A part of a file that a background thread reads for one client.

use crate::net::files::FileBytes;
use std::io;

/// What a file that is being sent waits for.
pub(super) enum ChunkRead<T> {
    /// Nothing, or the outbox.
    Idle,
    /// A background thread is reading.
    UnderWay(T),
    /// In a box, because few files need one.
    Done(T, Box<io::Result<FileBytes>>),
}

impl<T: Copy> ChunkRead<T> {
    /// Bytes that are read, or are being read; `length` has how many that are.
    pub(super) fn bytes(&self, length: impl Fn(T) -> u32) -> usize {
        match self {
            ChunkRead::UnderWay(what) => length(*what) as usize,
            ChunkRead::Done(_, read) => read.as_ref().as_ref().map_or(0, |it| it.bytes.capacity()),
            ChunkRead::Idle => 0,
        }
    }

    /// A background thread has read.
    pub(super) fn handle(&mut self, read: io::Result<FileBytes>) {
        if let ChunkRead::UnderWay(what) = self {
            *self = ChunkRead::Done(*what, Box::new(read));
        }
    }
}
