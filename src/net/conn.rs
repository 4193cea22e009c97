//! A socket and what is known of its readiness.
//!
//! Events are edge-triggered: each is told once, so it is remembered here until a call proves it stale. The surprising part
//! is what counts as proof: a read that did not fill its buffer has drained the socket, and a write that stopped short has
//! filled it. That saves the extra call that would only answer `EAGAIN`. Once the peer's FIN has been announced the rule
//! is off for reads, because data and FIN may share one event: then we read on until the end itself is seen.

use super::{OpenFile, Pipe, Socket, Transport, tcp::Tcp};
use std::io::{self, ErrorKind};

/// What an event said about one socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The peer will send nothing more (FIN, RST or an error): the end will be met by reading on.
    pub read_closed: bool,
}

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// So many bytes (never 0).
    Moved(usize),
    /// Nothing now; an event follows.
    Blocked,
    /// The peer's FIN.
    Ended,
}

/// One registered socket.
///
/// TCP, as nearly all are, stands here itself; any other behind one pointer more, so that it does not make all of them larger.
pub struct Conn(Placed);

enum Placed {
    Here(Tcp, Known),
    Apart(Box<Box<dyn Transport>>, Known),
}

/// What is known of its readiness, and what it was told.
#[derive(Debug, Clone, Copy)]
struct Known {
    readable: bool,
    writable: bool,
    read_closed: bool,
    is_held: bool,
}

impl Conn {
    /// A connection that was just accepted: there is room to write, and what there is to read will be announced.
    pub fn accepted(socket: Socket) -> Conn {
        Conn::new(
            socket,
            Known { readable: false, writable: true, read_closed: false, is_held: false },
        )
    }

    /// A connection that is being made. A write may be tried at once: it says `Blocked` until the connection stands.
    pub fn dialed(socket: Socket) -> Conn {
        Conn::accepted(socket)
    }

    /// A connection that is being made and is not to be touched before an event says what became of it.
    pub fn connecting(socket: Socket) -> Conn {
        Conn::new(
            socket,
            Known { readable: false, writable: false, read_closed: false, is_held: false },
        )
    }

    fn new(socket: Socket, known: Known) -> Conn {
        Conn(match socket {
            Socket::Tcp(tcp) => Placed::Here(tcp, known),
            Socket::Other(transport) => Placed::Apart(Box::new(transport), known),
        })
    }

    /// Whether the connection that was being made stands, after its first event.
    pub fn connect_outcome(&mut self) -> io::Result<()> {
        self.transport().connect_outcome()
    }

    /// Takes what an event said.
    pub fn handle_ready(&mut self, ready: Ready) {
        let known = self.known_mut();
        known.readable |= ready.readable | ready.read_closed;
        known.writable |= ready.writable;
        known.read_closed |= ready.read_closed;
    }

    /// A read may bring something.
    #[inline]
    pub fn is_readable(&self) -> bool {
        self.known().readable
    }

    /// A write may take something.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.known().writable
    }

    /// Reads into `buf` (not empty), with no call at all while nothing can be there.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Io> {
        debug_assert!(!buf.is_empty());
        let read = self.when_readable(|transport| transport.read(buf), true)?;
        if let Io::Moved(n) = read
            && n < buf.len()
            && !self.known().read_closed
        {
            self.known_mut().readable = false;
        }
        Ok(read)
    }

    /// Writes from `bytes` (not empty), with no call at all while there can be no room.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Io> {
        debug_assert!(!bytes.is_empty());
        let written = self.when_writable(|transport| transport.write(bytes))?;
        if let Io::Moved(n) = written
            && n < bytes.len()
        {
            self.known_mut().writable = false;
        }
        Ok(written)
    }

    /// The same, for bytes that more follow at once.
    pub fn write_more(&mut self, bytes: &[u8]) -> io::Result<Io> {
        self.when_writable(|transport| transport.write_more(bytes))
    }

    /// While it is held, what does not fill a packet waits for more: for a run of writes that together are one message. No call
    /// unless that changes something. Failures are of no interest: it is a wish.
    pub fn hold(&mut self, is_held: bool) {
        if self.known().is_held != is_held {
            self.known_mut().is_held = is_held;
            let _ = self.transport().hold(is_held);
        }
    }

    /// Writes at most `count` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof`: the file ends before `offset`; everything else: the peer is gone.
    pub fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<Io> {
        self.when_writable(|transport| match transport.send_file(file, offset, count)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        })
    }

    /// Whether a stream may pass through a pipe from or to here.
    pub fn can_splice(&self) -> bool {
        match &self.0 {
            Placed::Here(tcp, _) => tcp.can_splice(),
            Placed::Apart(transport, _) => transport.can_splice(),
        }
    }

    /// Reads into `buf`, from the byte at `offset` on, without taking. Fewer bytes than there is room for prove nothing, and
    /// neither does `Blocked` behind an offset: what is before it is still to be read.
    pub fn peek(&mut self, offset: u32, buf: &mut [u8]) -> io::Result<Io> {
        self.when_readable(|transport| transport.peek(offset, buf), offset == 0)
    }

    /// Moves at most `most` bytes into `pipe`. `Blocked` while the pipe holds bytes may also mean that it is full.
    pub fn splice_into(&mut self, pipe: &mut Pipe, most: usize) -> io::Result<Io> {
        let is_proof = pipe.held() == 0;
        self.when_readable(|transport| transport.splice_into(pipe, most), is_proof)
    }

    /// Writes what `pipe` holds, which is something.
    pub fn splice_from(&mut self, pipe: &mut Pipe) -> io::Result<Io> {
        self.when_writable(|transport| transport.splice_from(pipe))
    }

    /// Sends FIN. An error only says that the peer is gone already, which reading finds out too.
    pub fn shutdown_write(&mut self) {
        let _ = self.transport().shutdown_write();
    }

    /// One call that takes from the socket, if it may bring something. `is_proof`: `WouldBlock` says that nothing is there.
    #[inline]
    fn when_readable(
        &mut self,
        call: impl FnMut(&mut dyn Transport) -> io::Result<usize>,
        is_proof: bool,
    ) -> io::Result<Io> {
        match &mut self.0 {
            Placed::Here(tcp, known) => known.when_readable(tcp, call, is_proof),
            Placed::Apart(transport, known) => {
                known.when_readable(&mut ***transport, call, is_proof)
            }
        }
    }

    /// One call that gives to the socket, if it may have room.
    #[inline]
    fn when_writable(
        &mut self,
        call: impl FnMut(&mut dyn Transport) -> io::Result<usize>,
    ) -> io::Result<Io> {
        match &mut self.0 {
            Placed::Here(tcp, known) => known.when_writable(tcp, call),
            Placed::Apart(transport, known) => known.when_writable(&mut ***transport, call),
        }
    }

    fn transport(&mut self) -> &mut dyn Transport {
        match &mut self.0 {
            Placed::Here(tcp, _) => tcp,
            Placed::Apart(transport, _) => &mut ***transport,
        }
    }

    #[inline]
    fn known(&self) -> &Known {
        match &self.0 {
            Placed::Here(_, known) | Placed::Apart(_, known) => known,
        }
    }

    #[inline]
    fn known_mut(&mut self) -> &mut Known {
        match &mut self.0 {
            Placed::Here(_, known) | Placed::Apart(_, known) => known,
        }
    }
}

impl Known {
    #[inline]
    fn when_readable(
        &mut self,
        transport: &mut dyn Transport,
        mut call: impl FnMut(&mut dyn Transport) -> io::Result<usize>,
        is_proof: bool,
    ) -> io::Result<Io> {
        while self.readable {
            match call(transport) {
                Ok(0) => return Ok(Io::Ended),
                Ok(n) => return Ok(Io::Moved(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = !is_proof;
                    self.read_closed &= !is_proof;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Io::Blocked)
    }

    #[inline]
    fn when_writable(
        &mut self,
        transport: &mut dyn Transport,
        mut call: impl FnMut(&mut dyn Transport) -> io::Result<usize>,
    ) -> io::Result<Io> {
        while self.writable {
            match call(transport) {
                Ok(0) => self.writable = false,
                Ok(n) => return Ok(Io::Moved(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    // The peer is gone. What it still sent, and the end, are met by reading on.
                    self.readable = true;
                    self.read_closed = true;
                    return Err(e);
                }
            }
        }
        Ok(Io::Blocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::io::{Read, Write};

    /// Plays back what the kernel would answer.
    struct Script {
        reads: VecDeque<io::Result<usize>>,
        writes: VecDeque<io::Result<usize>>,
    }

    impl Read for Script {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.reads.pop_front().expect("a read too many")
        }
    }

    impl Write for Script {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.writes.pop_front().expect("a write too many")
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for Script {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn conn(
        reads: impl IntoIterator<Item = io::Result<usize>>,
        writes: impl IntoIterator<Item = io::Result<usize>>,
    ) -> Conn {
        let script =
            Script { reads: reads.into_iter().collect(), writes: writes.into_iter().collect() };
        Conn::accepted(Socket::Other(Box::new(script)))
    }

    const READABLE: Ready = Ready { readable: true, writable: false, read_closed: false };
    const HANGUP: Ready = Ready { readable: true, writable: false, read_closed: true };

    #[test]
    fn a_tcp_socket_and_its_readiness_are_two_words() {
        // `mio` keeps a word more in debug builds.
        assert_eq!(size_of::<Conn>(), if cfg!(debug_assertions) { 24 } else { 16 });
    }

    #[test]
    fn nothing_is_called_before_an_event() {
        assert_eq!(conn([], []).read(&mut [0; 8]).unwrap(), Io::Blocked);
    }

    #[test]
    fn a_short_read_has_drained_the_socket() {
        let mut conn = conn([Ok(8), Ok(3)], []);
        conn.handle_ready(READABLE);
        let mut buf = [0; 8];
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(8));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(3));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Blocked);
    }

    #[test]
    fn data_and_fin_in_one_event_are_read_to_the_end() {
        let mut conn = conn([Ok(3), Ok(0)], []);
        conn.handle_ready(HANGUP);
        let mut buf = [0; 8];
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(3));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Ended);
    }

    #[test]
    fn a_short_write_has_filled_the_socket() {
        let mut conn = conn([], [Ok(3), Ok(5)]);
        assert_eq!(conn.write(b"12345678").unwrap(), Io::Moved(3));
        assert_eq!(conn.write(b"45678").unwrap(), Io::Blocked);
        conn.handle_ready(Ready { writable: true, ..Ready::default() });
        assert_eq!(conn.write(b"45678").unwrap(), Io::Moved(5));
    }

    #[test]
    fn after_a_failed_write_the_end_is_read() {
        let mut conn = conn([Ok(0)], [Err(ErrorKind::BrokenPipe.into())]);
        assert!(conn.write(b"x").is_err());
        assert_eq!(conn.read(&mut [0; 8]).unwrap(), Io::Ended);
    }
}
