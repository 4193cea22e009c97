//! A socket and what is known of its readiness.
//!
//! Events are edge-triggered: `epoll` reports each once, so it is remembered here until a call
//! proves it stale. What counts as proof is written down at [`Transport`]. For TCP a read that did
//! not fill its buffer has drained the socket, and a write that stopped short has filled it. That
//! saves the call that would only return `EAGAIN`. Once the peer's FIN has been announced, a short
//! read proves nothing, because data and FIN may share one event: reads then go on until they meet
//! the end.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

mod layer;

use super::{OpenFile, Pipe, Security, Socket, Transport, tcp::Tcp};
use std::io::{self, ErrorKind};

/// What an event reported about one socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The peer will send nothing more (FIN, RST or an error). Reading on meets the end.
    pub read_closed: bool,
}

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// This many bytes, never 0.
    Moved(usize),
    /// Nothing now; an event will follow.
    Blocked,
    /// The peer's FIN.
    Ended,
}

/// One registered socket and its remembered readiness.
pub struct Conn(Inner);

/// TCP is kept inline because nearly all sockets are. Any other transport is behind one more
/// pointer, so that its fat pointer does not make every `Conn` larger.
enum Inner {
    Tcp(Tcp, ConnState),
    Other(Box<Box<dyn Transport>>, ConnState),
}

/// Edges that no call has proved stale, and options that were set.
#[derive(Debug, Clone, Copy)]
struct ConnState {
    readable: bool,
    writable: bool,
    read_closed: bool,
    is_corked: bool,
    /// The limit of unsent bytes as a power of two. 0: none was set.
    unsent_log2: u8,
}

impl Conn {
    /// A connection that was just accepted. It has room to write; an event will announce what there
    /// is to read.
    pub fn accepted(socket: Socket) -> Conn {
        Conn::new(socket, true)
    }

    /// A connection that is being established. A write may be tried at once and says `Blocked`
    /// until the connection is there.
    pub fn dialed(socket: Socket) -> Conn {
        Conn::accepted(socket)
    }

    /// A connection that is being established and must not be used before an event has reported the
    /// outcome.
    pub fn connecting(socket: Socket) -> Conn {
        Conn::new(socket, false)
    }

    fn new(socket: Socket, writable: bool) -> Conn {
        let state = ConnState {
            readable: false,
            writable,
            read_closed: false,
            is_corked: false,
            unsent_log2: 0,
        };
        Conn(match socket {
            Socket::Tcp(tcp) => Inner::Tcp(tcp, state),
            Socket::Other(transport) => Inner::Other(Box::new(transport), state),
        })
    }

    /// After the first event: whether the connection was established.
    ///
    /// # Errors
    /// Why it was not.
    pub fn connect_outcome(&mut self) -> io::Result<()> {
        self.transport().connect_outcome()
    }

    /// Whether an RST has come behind the peer's FIN. Reads do not report that: once they have met
    /// the FIN, Linux answers all of them with the end.
    pub fn is_reset(&mut self) -> bool {
        self.transport().connect_outcome().is_err()
    }

    /// Remembers what an event reported.
    #[inline]
    pub fn handle_ready(&mut self, ready: Ready) {
        let state = self.state_mut();
        state.readable |= ready.readable | ready.read_closed;
        state.writable |= ready.writable;
        state.read_closed |= ready.read_closed;
        if let Inner::Other(transport, state) = &mut self.0
            && transport.is_buffering()
        {
            transport.note_ready(ready);
            state.handle_any(&mut ***transport);
        }
    }

    /// Goes on with the handshake of an accepted connection. `None`: waits for an event.
    ///
    /// # Errors
    /// There will be no connection.
    pub fn handshake(&mut self) -> io::Result<Option<Security>> {
        let Inner::Other(transport, state) = &mut self.0 else {
            return Ok(Some(Security::Plain));
        };
        loop {
            let agreed = transport.handshake();
            state.add_pending(&***transport);
            return match agreed {
                Ok(security) => Ok(Some(security)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    state.readable = false;
                    Ok(None)
                }
                Err(error) => Err(error),
            };
        }
    }

    /// The end that [`Conn::shutdown_write`] will send is in the middle of a frame.
    pub fn omit_close(&mut self) {
        self.transport().omit_close();
    }

    /// A read may bring something.
    #[inline]
    pub fn is_readable(&self) -> bool {
        self.state().readable
    }

    /// A write may take something.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.state().writable
    }

    /// Reads into `buf`, which is not empty. Makes no call while there can be nothing to read.
    ///
    /// # Errors
    /// The connection is broken, and nothing more can be read.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Io> {
        debug_assert!(!buf.is_empty());
        let read = self.when_readable(|transport| transport.read(buf), true)?;
        if let Io::Moved(n) = read
            && n < buf.len()
            && !self.state().read_closed
            && !self.is_buffering()
        {
            self.state_mut().readable = false;
        }
        Ok(read)
    }

    /// Writes from `bytes`, which is not empty. Makes no call while there can be no room.
    ///
    /// # Errors
    /// The peer is gone. Reading on meets what it still sent.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Io> {
        debug_assert!(!bytes.is_empty());
        let written = self.when_writable(|transport| transport.write(bytes))?;
        if let Io::Moved(n) = written
            && n < bytes.len()
        {
            if self.is_buffering() {
                return Ok(Io::Moved(n + self.write_on(&bytes[n..])));
            }
            self.state_mut().writable = false;
        }
        Ok(written)
    }

    /// Writes the rest of what a buffering transport took a record of. So after a short write there
    /// is no room, whatever the transport. Returns how much was taken.
    #[cold]
    fn write_on(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.when_writable(|transport| transport.write(&bytes[taken..])) {
                Ok(Io::Moved(n)) => taken += n,
                // The next write meets an error again.
                Ok(_) | Err(_) => break,
            }
        }
        taken
    }

    /// The same, for bytes that more will follow at once.
    ///
    /// # Errors
    /// As for [`Conn::write`].
    pub fn write_more(&mut self, bytes: &[u8]) -> io::Result<Io> {
        self.when_writable(|transport| transport.write_more(bytes))
    }

    /// Switches corking on or off, for a run of writes that together are one message: while it is
    /// on, a partial packet waits for more. Makes no call unless that changes something. Errors are
    /// ignored, because they only cost packets.
    pub fn set_corked(&mut self, is_corked: bool) {
        if self.state().is_corked != is_corked {
            self.state_mut().is_corked = is_corked;
            let _ = self.transport().set_corked(is_corked);
        }
    }

    /// Writes at most `count` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof`: the file ends before `offset`. Anything else: the peer is gone.
    pub fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<Io> {
        self.when_writable(|transport| match transport.send_file(file, offset, count)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            n => Ok(n),
        })
    }

    /// Whether a stream from or to this socket may pass through a pipe.
    pub fn can_splice(&self) -> bool {
        match &self.0 {
            Inner::Tcp(tcp, _) => tcp.can_splice(),
            Inner::Other(transport, _) => transport.can_splice(),
        }
    }

    /// Reads into `buf` from `offset` on and leaves the bytes unread. Fewer bytes than fit prove
    /// nothing, and neither does `Blocked` at an offset: the bytes before it are still unread.
    ///
    /// # Errors
    /// As for [`Conn::read`].
    pub fn peek(&mut self, offset: u32, buf: &mut [u8]) -> io::Result<Io> {
        self.when_readable(|transport| transport.peek(offset, buf), offset == 0)
    }

    /// Moves at most `most` bytes into `pipe`. `Blocked` while the pipe holds bytes may also mean
    /// that it is full.
    ///
    /// # Errors
    /// As for [`Conn::read`].
    pub fn splice_into(&mut self, pipe: &mut Pipe, most: usize) -> io::Result<Io> {
        let is_proof = pipe.held() == 0;
        self.when_readable(|transport| transport.splice_into(pipe, most), is_proof)
    }

    /// Writes what `pipe` holds, which is not empty.
    ///
    /// # Errors
    /// As for [`Conn::write`].
    pub fn splice_from(&mut self, pipe: &mut Pipe) -> io::Result<Io> {
        self.when_writable(|transport| transport.splice_from(pipe))
    }

    /// Bytes of memory in its buffers, both ways: the kernel's and those of a record layer.
    pub fn kernel_bytes(&self) -> usize {
        match &self.0 {
            Inner::Tcp(tcp, _) => tcp.kernel_bytes(),
            Inner::Other(transport, _) => transport.kernel_bytes(),
        }
    }

    /// Keeps each of its buffers from growing beyond about `bytes_max`, as far as the kernel
    /// allows.
    pub fn limit_buffers(&mut self, bytes_max: usize) {
        let _ = self.transport().limit_buffers(bytes_max);
    }

    /// Is full once this many bytes wait unsent, rounded down to a power of two, as far as the
    /// kernel allows. A new limit causes an event as if there were room; the one in effect causes
    /// none, so it may be set again in each step.
    pub fn limit_unsent(&mut self, bytes: usize) {
        let log2 = bytes.max(1).ilog2() as u8;
        if self.state().unsent_log2 != log2 {
            self.state_mut().unsent_log2 = log2;
            let _ = self.transport().limit_unsent(1 << log2);
        }
    }

    /// The limit of unsent bytes that was set last.
    pub fn unsent_limit(&self) -> Option<usize> {
        let log2 = self.state().unsent_log2;
        (log2 > 0).then(|| 1 << log2)
    }

    /// When it is dropped, unsent bytes are discarded, and the peer gets RST.
    pub fn discard_on_close(&mut self) {
        let _ = self.transport().discard_on_close();
    }

    /// Output that was taken is still in this process. Dropping the connection would lose it.
    pub fn is_output_held(&self) -> bool {
        match &self.0 {
            Inner::Tcp(..) => false,
            Inner::Other(transport, _) => transport.is_buffering() && transport.is_output_held(),
        }
    }

    /// Bytes, a FIN among them, that were written and that the peer has not acknowledged, those
    /// that the transport still holds included; `None` where that is unknown.
    pub fn unacknowledged(&self) -> Option<usize> {
        match &self.0 {
            Inner::Tcp(tcp, _) => tcp.unacknowledged(),
            Inner::Other(transport, _) => transport.unacknowledged(),
        }
    }

    /// Sends FIN. True once it is on its way, or the peer is gone, which reading finds out too.
    /// False: the transport still holds output; call again after the next event.
    #[must_use]
    pub fn shutdown_write(&mut self) -> bool {
        let outcome = self.transport().shutdown_write();
        outcome.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |()| true)
    }

    /// One call that takes from the socket, if there may be something. `is_proof`: `WouldBlock`
    /// shows that nothing is there.
    #[inline]
    fn when_readable(
        &mut self,
        call: impl FnMut(&mut dyn Transport) -> io::Result<usize>,
        is_proof: bool,
    ) -> io::Result<Io> {
        match &mut self.0 {
            Inner::Tcp(tcp, state) => state.when_readable(tcp, call, is_proof),
            Inner::Other(transport, state) => {
                let transport = &mut ***transport;
                let done = state.when_readable(transport, call, is_proof);
                state.add_pending(transport);
                done
            }
        }
    }

    /// One call that gives to the socket, if there may be room.
    #[inline]
    fn when_writable(
        &mut self,
        call: impl FnMut(&mut dyn Transport) -> io::Result<usize>,
    ) -> io::Result<Io> {
        match &mut self.0 {
            Inner::Tcp(tcp, state) => state.when_writable(tcp, call),
            Inner::Other(transport, state) => {
                let transport = &mut ***transport;
                let done = state.when_writable(transport, call);
                state.add_pending(transport);
                done
            }
        }
    }

    fn transport(&mut self) -> &mut dyn Transport {
        match &mut self.0 {
            Inner::Tcp(tcp, _) => tcp,
            Inner::Other(transport, _) => &mut ***transport,
        }
    }

    #[inline]
    fn is_buffering(&self) -> bool {
        match &self.0 {
            Inner::Tcp(..) => false,
            Inner::Other(transport, _) => transport.is_buffering(),
        }
    }

    #[inline]
    fn state(&self) -> &ConnState {
        match &self.0 {
            Inner::Tcp(_, state) | Inner::Other(_, state) => state,
        }
    }

    #[inline]
    fn state_mut(&mut self) -> &mut ConnState {
        match &mut self.0 {
            Inner::Tcp(_, state) | Inner::Other(_, state) => state,
        }
    }
}

impl ConnState {
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
                    // The peer is gone. Reading on meets what it still sent, then the end.
                    self.readable = true;
                    self.read_closed = true;
                    return Err(e);
                }
            }
        }
        Ok(Io::Blocked)
    }

    /// An event of a buffering transport: it may serve either direction, and held output first of
    /// all.
    fn handle_any(&mut self, transport: &mut dyn Transport) {
        self.readable = true;
        self.writable = true;
        while let Err(error) = transport.flush() {
            match error.kind() {
                ErrorKind::Interrupted => continue,
                ErrorKind::WouldBlock => {}
                _ => self.read_closed = true,
            }
            return;
        }
    }

    /// Notes what the last call made possible in the other direction: no event will report it.
    fn add_pending(&mut self, transport: &dyn Transport) {
        if transport.is_buffering() {
            self.readable |= transport.is_read_pending();
            self.writable |= transport.is_write_pending();
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "sockets and files live here")]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io::{Read, Write};
    use std::rc::Rc;

    /// Plays back what a transport would answer.
    #[derive(Default)]
    struct Script {
        reads: VecDeque<io::Result<usize>>,
        writes: VecDeque<io::Result<usize>>,
        flushes: VecDeque<io::Result<()>>,
        shutdowns: VecDeque<io::Result<()>>,
        is_buffering: bool,
        is_read_pending: bool,
        is_write_pending: bool,
    }

    /// Shared with the test, which changes it between calls.
    struct Scripted(Rc<RefCell<Script>>);

    impl Read for Scripted {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.borrow_mut().reads.pop_front().expect("an unexpected read")
        }
    }

    impl Write for Scripted {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().writes.pop_front().expect("an unexpected write")
        }
        fn flush(&mut self) -> io::Result<()> {
            self.0.borrow_mut().flushes.pop_front().expect("an unexpected flush")
        }
    }

    impl Transport for Scripted {
        fn shutdown_write(&mut self) -> io::Result<()> {
            self.0.borrow_mut().shutdowns.pop_front().expect("an unexpected shutdown")
        }
        fn is_buffering(&self) -> bool {
            self.0.borrow().is_buffering
        }
        fn is_read_pending(&self) -> bool {
            self.0.borrow().is_read_pending
        }
        fn is_write_pending(&self) -> bool {
            self.0.borrow().is_write_pending
        }
    }

    fn scripted(script: Script) -> (Conn, Rc<RefCell<Script>>) {
        let script = Rc::new(RefCell::new(script));
        (Conn::accepted(Socket::Other(Box::new(Scripted(Rc::clone(&script))))), script)
    }

    fn plain(
        reads: impl IntoIterator<Item = io::Result<usize>>,
        writes: impl IntoIterator<Item = io::Result<usize>>,
    ) -> Conn {
        let (reads, writes) = (reads.into_iter().collect(), writes.into_iter().collect());
        scripted(Script { reads, writes, ..Script::default() }).0
    }

    fn blocked<T>() -> io::Result<T> {
        Err(ErrorKind::WouldBlock.into())
    }

    const READABLE: Ready = Ready { readable: true, writable: false, read_closed: false };
    const WRITABLE: Ready = Ready { readable: false, writable: true, read_closed: false };
    const HANGUP: Ready = Ready { readable: true, writable: false, read_closed: true };

    #[test]
    fn a_tcp_conn_is_two_words() {
        // `mio` adds a word in debug builds.
        assert!(size_of::<Conn>() <= if cfg!(debug_assertions) { 24 } else { 16 });
    }

    #[test]
    fn no_read_before_an_event() {
        assert_eq!(plain([], []).read(&mut [0; 8]).unwrap(), Io::Blocked);
    }

    #[test]
    fn a_short_read_has_drained_a_plain_socket() {
        let mut conn = plain([Ok(8), Ok(3)], []);
        conn.handle_ready(READABLE);
        let mut buf = [0; 8];
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(8));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(3));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Blocked);
    }

    #[test]
    fn data_and_fin_in_one_event_are_read_to_the_end() {
        let mut conn = plain([Ok(3), Ok(0)], []);
        conn.handle_ready(HANGUP);
        let mut buf = [0; 8];
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(3));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Ended);
    }

    #[test]
    fn a_short_write_has_filled_a_plain_socket() {
        let mut conn = plain([], [Ok(3), Ok(5)]);
        assert_eq!(conn.write(b"12345678").unwrap(), Io::Moved(3));
        assert_eq!(conn.write(b"45678").unwrap(), Io::Blocked);
        conn.handle_ready(WRITABLE);
        assert_eq!(conn.write(b"45678").unwrap(), Io::Moved(5));
    }

    #[test]
    fn after_a_failed_write_reading_meets_the_end() {
        let mut conn = plain([Ok(0)], [Err(ErrorKind::BrokenPipe.into())]);
        assert!(conn.write(b"x").is_err());
        assert_eq!(conn.read(&mut [0; 8]).unwrap(), Io::Ended);
    }

    #[test]
    fn buffered_plaintext_is_read_until_the_transport_blocks() {
        let (mut conn, script) = scripted(Script { is_buffering: true, ..Script::default() });
        script.borrow_mut().reads.extend([Ok(3), Ok(8), blocked()]);
        script.borrow_mut().flushes.push_back(Ok(()));
        conn.handle_ready(READABLE);
        let mut buf = [0; 8];
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(3));
        assert!(conn.is_readable(), "a short read proves nothing here");
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Moved(8));
        assert_eq!(conn.read(&mut buf).unwrap(), Io::Blocked);
        assert!(!conn.is_readable());
    }

    #[test]
    fn a_long_write_goes_on_record_by_record_until_there_is_no_room() {
        let (mut conn, script) = scripted(Script { is_buffering: true, ..Script::default() });
        script.borrow_mut().writes.extend([Ok(4), Ok(3), blocked()]);
        assert_eq!(conn.write(b"12345678").unwrap(), Io::Moved(7));
        assert!(!conn.is_writable());
        script.borrow_mut().flushes.push_back(Ok(()));
        conn.handle_ready(WRITABLE);
        script.borrow_mut().writes.extend([Ok(1), Ok(4), Ok(4)]);
        assert_eq!(conn.write(b"8").unwrap(), Io::Moved(1));
        assert_eq!(conn.write(b"12345678").unwrap(), Io::Moved(8));
        assert!(conn.is_writable());
    }

    #[test]
    fn an_event_of_a_buffering_transport_serves_both_directions() {
        for ready in [READABLE, WRITABLE] {
            let (mut conn, script) = scripted(Script { is_buffering: true, ..Script::default() });
            script.borrow_mut().writes.push_back(blocked());
            assert_eq!(conn.write(b"x").unwrap(), Io::Blocked);
            assert!(!conn.is_readable() && !conn.is_writable());
            // Held output leaves by itself, whether or not the session has anything to write.
            script.borrow_mut().flushes.push_back(blocked());
            conn.handle_ready(ready);
            assert!(conn.is_readable() && conn.is_writable());
            assert!(script.borrow().flushes.is_empty(), "flushed at {ready:?}");
        }
    }

    #[test]
    fn what_a_call_made_possible_in_the_other_direction_needs_no_event() {
        let (mut conn, script) = scripted(Script { is_buffering: true, ..Script::default() });
        script.borrow_mut().writes.push_back(blocked());
        script.borrow_mut().is_read_pending = true;
        assert_eq!(conn.write(b"x").unwrap(), Io::Blocked);
        assert!(conn.is_readable(), "the write has taken a record out of the socket");
        script.borrow_mut().reads.push_back(Ok(1));
        script.borrow_mut().is_read_pending = false;
        script.borrow_mut().is_write_pending = true;
        assert_eq!(conn.read(&mut [0; 8]).unwrap(), Io::Moved(1));
        assert!(conn.is_writable(), "the read has completed the handshake");
    }

    #[test]
    fn a_failed_flush_is_found_out_by_reading() {
        let (mut conn, script) = scripted(Script { is_buffering: true, ..Script::default() });
        script
            .borrow_mut()
            .flushes
            .extend([Err(ErrorKind::Interrupted.into()), Err(ErrorKind::BrokenPipe.into())]);
        script.borrow_mut().reads.push_back(Ok(0));
        conn.handle_ready(WRITABLE);
        assert_eq!(conn.read(&mut [0; 8]).unwrap(), Io::Ended);
    }

    #[test]
    fn fin_waits_for_held_output() {
        let (mut conn, script) = scripted(Script { is_buffering: true, ..Script::default() });
        script.borrow_mut().shutdowns.extend([
            blocked(),
            Ok(()),
            Err(ErrorKind::NotConnected.into()),
        ]);
        assert!(!conn.shutdown_write());
        assert!(conn.shutdown_write());
        assert!(conn.shutdown_write(), "a peer that is gone needs no FIN");
    }
}
