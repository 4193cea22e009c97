//! What the unit tests of several modules need.

#![expect(clippy::disallowed_types, reason = "a test reads what its peer received")]

use super::{Network, PeerAddress, Socket, Source, Transport};
use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

/// No connection can be made.
pub struct NoNetwork;

impl Network for NoNetwork {
    fn connect(&mut self, _: &PeerAddress, _: Source) -> io::Result<Socket> {
        Err(ErrorKind::ConnectionRefused.into())
    }
}

/// A socket that takes `room` bytes a call. Its peer sends nothing.
pub struct SlowSocket {
    room: usize,
    taken: Rc<RefCell<Vec<u8>>>,
}

impl SlowSocket {
    /// The socket, and the bytes that it has taken.
    pub fn open(room: usize) -> (Socket, Rc<RefCell<Vec<u8>>>) {
        let taken = Rc::default();
        let socket = SlowSocket { room, taken: Rc::clone(&taken) };
        (Socket::Other(Box::new(socket)), taken)
    }
}

impl Read for SlowSocket {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }
}

impl Write for SlowSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.room);
        self.taken.borrow_mut().extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for SlowSocket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}
