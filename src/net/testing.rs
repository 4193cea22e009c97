//! What the unit tests of several modules need.

use super::{Network, PeerAddress, Socket, Source};
use std::io::{self, ErrorKind};

/// No connection can be made.
pub struct NoNetwork;

impl Network for NoNetwork {
    fn connect(&mut self, _: &PeerAddress, _: Source) -> io::Result<Socket> {
        Err(ErrorKind::ConnectionRefused.into())
    }
}
