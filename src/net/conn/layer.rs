//! A layer that is put on a socket after bytes have been read from it: TLS behind a PROXY header.

use super::{Conn, Inner, Ready};
use crate::net::{Socket, Transport};
use std::io::{self, ErrorKind, Read, Write};

impl Conn {
    /// Puts a layer on the socket, such as TLS, in place of the bare one. False: `layer` refused,
    /// and the connection is closed.
    #[must_use]
    pub fn put_layer(&mut self, layer: impl FnOnce(Socket) -> Option<Socket>) -> bool {
        let state = *self.state_mut();
        let closed = Inner::Other(Box::new(Box::new(Closed)), state);
        let socket = match std::mem::replace(&mut self.0, closed) {
            Inner::Tcp(tcp, _) => Socket::Tcp(tcp),
            Inner::Other(transport, _) => Socket::Other(*transport),
        };
        let Some(socket) = layer(socket) else { return false };
        *self = Conn::new(socket, state.writable);
        // No further event reports what has been reported already, such as the peer's FIN.
        self.handle_ready(Ready {
            readable: state.readable,
            writable: state.writable,
            read_closed: state.read_closed,
        });
        true
    }
}

/// In place of a socket that a layer did not take.
struct Closed;

impl Read for Closed {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::NotConnected.into())
    }
}

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::NotConnected.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Closed {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Err(ErrorKind::NotConnected.into())
    }
}
