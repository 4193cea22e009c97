//! A connection of the load generator, with or without TLS on it.

use crate::net::{self, Io};
use crate::tls::Client;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustls::{ClientConnection, HandshakeKind};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A nonblocking socket. Reads and writes are those of the plain text.
pub struct Socket {
    fd: OwnedFd,
    tls: Option<Box<ClientConnection>>,
}

/// The records on the wire.
struct Raw<'a>(&'a OwnedFd);

impl Socket {
    pub fn plain(fd: OwnedFd) -> Socket {
        Socket { fd, tls: None }
    }

    /// A client whose handshake begins with the first write.
    pub fn tls(fd: OwnedFd, client: &Client) -> io::Result<Socket> {
        let mut tls = client.connection().map_err(io::Error::other)?;
        tls.set_buffer_limit(None);
        Ok(Socket { fd, tls: Some(Box::new(tls)) })
    }

    /// What is decrypted already is not announced by any event: read on until `Blocked`.
    pub fn is_buffering(&self) -> bool {
        self.tls.is_some()
    }

    pub fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Io> {
        let Some(tls) = &mut self.tls else { return net::recv(&self.fd, buffer) };
        loop {
            match tls.reader().read(buffer) {
                Ok(0) => return Ok(Io::Ended),
                Ok(count) => return Ok(Io::Moved(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Not every target says goodbye.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Io::Ended),
                Err(error) => return Err(error),
            }
            match tls.read_tls(&mut Raw(&self.fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Io::Blocked),
                Err(error) => return Err(error),
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            flush(tls, &self.fd)?;
        }
    }

    /// Reads into the room behind the bytes of `held`.
    pub fn recv_behind(&mut self, held: &mut Vec<u8>) -> io::Result<Io> {
        if self.tls.is_none() {
            return match rustix::net::recv(&self.fd, spare_capacity(held), RecvFlags::empty()) {
                Ok((0, _)) => Ok(Io::Ended),
                Ok((count, _)) => Ok(Io::Moved(count)),
                Err(Errno::AGAIN | Errno::INTR) => Ok(Io::Blocked),
                Err(error) => Err(error.into()),
            };
        }
        let length = held.len();
        held.resize(held.capacity(), 0);
        let received = self.recv(&mut held[length..]);
        held.truncate(length + if let Ok(Io::Moved(count)) = received { count } else { 0 });
        received
    }

    /// With TLS, everything is taken. What the socket has no room for waits for [`Socket::flush`].
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<Io> {
        let Some(tls) = &mut self.tls else { return net::send(&self.fd, bytes) };
        tls.writer().write_all(bytes)?;
        flush(tls, &self.fd)?;
        Ok(Io::Moved(bytes.len()))
    }

    /// Whether something waits for [`Socket::flush`].
    pub fn is_output_held(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| flush(tls, &self.fd))
    }

    /// Whether its handshake resumed a session.
    pub fn is_resumed(&self) -> bool {
        let kind = self.tls.as_ref().and_then(|tls| tls.handshake_kind());
        kind == Some(HandshakeKind::Resumed)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn flush(tls: &mut ClientConnection, fd: &OwnedFd) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut Raw(fd)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        moved(net::recv(self.0, buffer))
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        moved(net::send(self.0, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn moved(outcome: io::Result<Io>) -> io::Result<usize> {
    match outcome? {
        Io::Moved(count) => Ok(count),
        Io::Ended => Ok(0),
        Io::Blocked => Err(ErrorKind::WouldBlock.into()),
    }
}
