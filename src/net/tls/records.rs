//! TLS between a socket and its user: `rustls` behind [`Transport`].
//!
//! ```text
//!            read ◄── held plaintext ◄──┐                  ┌── input: part of a record ◄── socket
//!                                       ├── rustls session ┤
//!           write ──► one to four records ┘                └── output: what did not fit ──► socket
//! ```
//!
//! `rustls` is used without its own buffers: a session is keys and a state, and whole records are
//! opened where they were read to. So an idle connection holds a few kilobytes, and a stream is
//! read and written with large calls. Three rules keep the buffers small:
//!
//! - `input` never holds a whole record: everything that was read is processed at once. Only what
//!   came before TLS was put on the socket waits there until the first read.
//! - While `output` holds something, nothing more is encrypted.
//! - Plaintext is `held` only where the caller's buffer was too small for it.
//!
//! What the peer sent last is authentic only with its `close_notify`, but the programs of this
//! field often leave without one. WebSockets have Close frames and HTTP has lengths, so FIN without
//! `close_notify` is an ordinary end here.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use crate::net::{OpenFile, Ready, Security, Socket, Transport};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, ServerConfig};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

/// Plaintext in one record at most (RFC 8446 §5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Plaintext that is encrypted for one call of the socket.
const WRITE_BYTES_MAX: usize = 4 * RECORD_BYTES_MAX;

/// The same where a client is slow and what it has not got must be small: see
/// [`Transport::limit_unsent`].
const WRITE_BYTES_MIN: usize = 4 * 1024;

/// What a record adds to its plaintext, at most (TLS 1.2 with an explicit nonce).
const RECORD_OVERHEAD_BYTES: usize = 32;

/// Read at once where the caller's buffer has no room for the records. Also the longest handshake
/// message, which is processed whole: a chain of certificates.
const READ_BYTES: usize = 34 * 1024;

/// Output in answer to what the peer sends. Beyond it nothing more is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Capacity that is kept from one message to the next.
const KEPT_BYTES: usize = 256;

/// The type of the record that a TLS connection begins with (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

/// What a session takes on the heap besides its own size: keys, and the state of `rustls`.
const SESSION_HEAP_BYTES: usize = 2048;

/// A socket with TLS on it.
pub struct Tls {
    socket: Socket,
    stage: Stage,
    /// The beginning of a record.
    input: Vec<u8>,
    /// Plaintext that the caller had no room for, and how much of it was taken.
    held: Vec<u8>,
    taken: usize,
    /// Records, and how much of them the socket has taken.
    output: Vec<u8>,
    sent: usize,
    write_bytes_max: usize,
    input_end: InputEnd,
    /// The socket may have something to read.
    is_readable: bool,
    /// The peer's FIN was announced, so that a short read does not show an empty socket.
    is_read_closed: bool,
    is_established: bool,
    /// `close_notify` was sent, or is not to be sent.
    is_close_settled: bool,
    /// Why a flush failed. The socket says so only once, and the next call is to report it.
    flush_error: Option<io::Error>,
}

enum Stage {
    /// A client that has sent nothing yet: it may turn out not to speak TLS.
    Undecided(Arc<ServerConfig>),
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
    /// A client that does not speak TLS. Bytes pass as they are.
    Plain,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InputEnd {
    Open,
    /// FIN or `close_notify`.
    Ended,
    /// The peer broke the protocol, or its certificate is not accepted.
    Failed,
}

/// What a session is to send besides its own records.
#[derive(Clone, Copy)]
enum Put<'a> {
    Nothing,
    Plaintext(&'a [u8]),
    CloseNotify,
}

/// What one step of a session did.
enum Stepped {
    /// Something; there may be more.
    Progress,
    /// The bytes are in the output.
    Put,
    /// It needs more input, or has nothing to do.
    Waits,
    PeerClosed,
    Failed(rustls::Error),
}

impl Tls {
    /// The server's side of an accepted connection, of which `early` has been read already.
    pub(super) fn accepted(socket: Socket, config: Arc<ServerConfig>, early: Vec<u8>) -> Tls {
        debug_assert!(early.len() < READ_BYTES);
        let mut tls = Tls::new(socket, Stage::Undecided(config));
        tls.input = early;
        tls
    }

    /// The client's side of a dialed connection to `name`.
    pub(super) fn dialed(
        socket: Socket,
        config: Arc<ClientConfig>,
        name: rustls::pki_types::ServerName<'static>,
    ) -> io::Result<Tls> {
        let session = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut tls = Tls::new(socket, Stage::Client(Box::new(session)));
        tls.process(&mut [], &mut [])?;
        Ok(tls)
    }

    fn new(socket: Socket, stage: Stage) -> Tls {
        Tls {
            socket,
            stage,
            input: Vec::new(),
            held: Vec::new(),
            taken: 0,
            output: Vec::new(),
            sent: 0,
            write_bytes_max: WRITE_BYTES_MAX,
            input_end: InputEnd::Open,
            is_readable: true,
            is_read_closed: false,
            is_established: false,
            is_close_settled: false,
            flush_error: None,
        }
    }

    fn socket(&mut self) -> &mut dyn Transport {
        match &mut self.socket {
            Socket::Tcp(tcp) => tcp,
            Socket::Other(transport) => &mut **transport,
        }
    }

    fn socket_ref(&self) -> &dyn Transport {
        match &self.socket {
            Socket::Tcp(tcp) => tcp,
            Socket::Other(transport) => &**transport,
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self.stage, Stage::Plain)
    }

    /// Reads from the socket once, into `stage`, and processes everything. Returns how many bytes
    /// of plaintext are in `out`; what did not fit there is held.
    fn receive(&mut self, stage: &mut [u8], out: &mut [u8]) -> io::Result<usize> {
        if !self.is_readable || self.output.len() - self.sent > ANSWER_BYTES_MAX {
            return Err(ErrorKind::WouldBlock.into());
        }
        let begun = self.input.len();
        let Some(room) = stage.get_mut(begun..).filter(|room| !room.is_empty()) else {
            return Err(io::Error::new(ErrorKind::InvalidData, "a TLS message is too long"));
        };
        if begun > 0 && matches!(self.stage, Stage::Undecided(_)) {
            // What was read before TLS was here: it may be all that comes.
            stage[..begun].copy_from_slice(&self.input);
            return self.begin(&mut stage[..begun], out);
        }
        let room_bytes = room.len();
        let read = self.socket().read(room);
        match &read {
            Ok(n) if *n < room_bytes && *n > 0 && !self.is_read_closed => self.is_readable = false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                (self.is_readable, self.is_read_closed) = (false, false);
            }
            _ => {}
        }
        let n = read?;
        if n == 0 {
            self.input_end = InputEnd::Ended;
            return match self.is_established || matches!(self.stage, Stage::Undecided(_)) {
                true => Ok(0),
                false => Err(ErrorKind::UnexpectedEof.into()),
            };
        }
        stage[..begun].copy_from_slice(&self.input);
        self.begin(&mut stage[..begun + n], out)
    }

    /// Processes what was received. The first byte of all decides whether it is TLS.
    fn begin(&mut self, received: &mut [u8], out: &mut [u8]) -> io::Result<usize> {
        if let Stage::Undecided(config) = &self.stage {
            if received[0] != HANDSHAKE_RECORD {
                self.stage = Stage::Plain;
                self.is_established = true;
                self.input = Vec::new();
                self.held.extend_from_slice(received);
                return Ok(0);
            }
            let session = UnbufferedServerConnection::new(Arc::clone(config));
            self.stage = Stage::Server(Box::new(session.map_err(io::Error::other)?));
        }
        self.process(received, out)
    }

    /// Processes all records in `received`, and keeps the beginning of one that is not complete.
    fn process(&mut self, received: &mut [u8], out: &mut [u8]) -> io::Result<usize> {
        let (mut at, mut got) = (0, 0);
        let failure = loop {
            let rest = &mut received[at..];
            let held = &mut self.held;
            let mut take = |plaintext: &[u8]| {
                let fits = plaintext.len().min(out.len() - got);
                out[got..got + fits].copy_from_slice(&plaintext[..fits]);
                got += fits;
                held.extend_from_slice(&plaintext[fits..]);
            };
            let (discard, stepped) =
                self.stage.step(rest, &mut self.output, Put::Nothing, &mut take);
            at += discard;
            match stepped {
                Stepped::Progress | Stepped::Put => {}
                Stepped::PeerClosed => self.input_end = InputEnd::Ended,
                Stepped::Waits => break None,
                Stepped::Failed(why) => break Some(why),
            }
        };
        self.is_established = !self.stage.is_handshaking();
        if let Some(why) = failure {
            self.fail(&mut received[at..]);
            return Err(io::Error::new(ErrorKind::InvalidData, why));
        }
        self.input = match self.input_end {
            InputEnd::Open => received[at..].to_vec(),
            InputEnd::Ended | InputEnd::Failed => Vec::new(),
        };
        Ok(got)
    }

    /// The session has failed: sends the alert that says why. Not a step more, since the session
    /// would fail by the same record of `rest` again.
    #[cold]
    fn fail(&mut self, rest: &mut [u8]) {
        while self.stage.wants_write()
            && let (_, Stepped::Progress) =
                self.stage.step(rest, &mut self.output, Put::Nothing, &mut |_| {})
        {}
        self.input_end = InputEnd::Failed;
        self.is_close_settled = true;
        let _ = self.send(false);
    }

    /// Encrypts into the output.
    fn seal(&mut self, put: Put<'_>) -> io::Result<()> {
        loop {
            let held = &mut self.held;
            let mut take = |plaintext: &[u8]| held.extend_from_slice(plaintext);
            let (discard, stepped) =
                self.stage.step(&mut self.input, &mut self.output, put, &mut take);
            self.input.drain(..discard);
            match stepped {
                Stepped::Put => return Ok(()),
                Stepped::Progress => {}
                Stepped::PeerClosed => self.input_end = InputEnd::Ended,
                Stepped::Waits => return Err(ErrorKind::BrokenPipe.into()),
                Stepped::Failed(why) => {
                    let mut rest = std::mem::take(&mut self.input);
                    self.fail(&mut rest);
                    return Err(io::Error::new(ErrorKind::BrokenPipe, why));
                }
            }
        }
    }

    /// Sends the output. `WouldBlock`: the socket has no room for all of it.
    fn send(&mut self, has_more: bool) -> io::Result<()> {
        while self.sent < self.output.len() {
            let (socket, bytes) = (&mut self.socket, &self.output[self.sent..]);
            let socket: &mut dyn Transport = match socket {
                Socket::Tcp(tcp) => tcp,
                Socket::Other(transport) => &mut **transport,
            };
            let sent = if has_more { socket.write_more(bytes) } else { socket.write(bytes) };
            match sent {
                Ok(0) => return Err(ErrorKind::WouldBlock.into()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    self.drop_output();
                    return Err(error);
                }
            }
        }
        self.drop_output();
        Ok(())
    }

    fn drop_output(&mut self) {
        self.sent = 0;
        match self.output.capacity() > KEPT_BYTES {
            true => self.output = Vec::new(),
            false => self.output.clear(),
        }
    }

    fn take_held(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.held.len() - self.taken);
        buf[..n].copy_from_slice(&self.held[self.taken..self.taken + n]);
        self.taken += n;
        if self.taken == self.held.len() {
            (self.held, self.taken) = (Vec::new(), 0);
        }
        n
    }

    /// Goes on with the handshake as far as it goes.
    fn establish(&mut self) -> io::Result<()> {
        while !self.is_established {
            match self.send(false) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            match self.input_end {
                InputEnd::Open => self.receive_few(&mut []).map(drop)?,
                InputEnd::Ended => return Err(ErrorKind::UnexpectedEof.into()),
                InputEnd::Failed => return Err(ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(())
    }

    /// Receives for a caller whose buffer has no room for records.
    #[inline(never)] // its buffer need not be cleared for others
    fn receive_few(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.receive(&mut [0; READ_BYTES], out)
    }

    fn put(&mut self, bytes: &[u8], has_more: bool) -> io::Result<usize> {
        if self.input_end == InputEnd::Failed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.flush_error.take().map_or(Ok(()), Err)?;
        self.send(false)?;
        self.establish()?;
        if self.is_plain() {
            return self.socket().write(bytes);
        }
        self.send(false)?;
        let bytes = &bytes[..bytes.len().min(self.write_bytes_max)];
        self.seal(Put::Plaintext(bytes))?;
        match self.send(has_more) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(bytes.len()),
        }
    }
}

impl Stage {
    fn step(
        &mut self,
        input: &mut [u8],
        output: &mut Vec<u8>,
        put: Put<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> (usize, Stepped) {
        match self {
            Stage::Server(session) => step(session.process_tls_records(input), output, put, take),
            Stage::Client(session) => step(session.process_tls_records(input), output, put, take),
            Stage::Undecided(_) | Stage::Plain => (0, Stepped::Waits),
        }
    }

    /// Whether the session has records to send that are not in the output.
    fn wants_write(&self) -> bool {
        match self {
            Stage::Server(session) => session.wants_write(),
            Stage::Client(session) => session.wants_write(),
            Stage::Undecided(_) | Stage::Plain => false,
        }
    }

    fn is_handshaking(&self) -> bool {
        match self {
            Stage::Server(session) => session.is_handshaking(),
            Stage::Client(session) => session.is_handshaking(),
            Stage::Undecided(_) => true,
            Stage::Plain => false,
        }
    }
}

/// Acts on one state that a session has reached. Returns how much of its input is done with.
fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    output: &mut Vec<u8>,
    put: Put<'_>,
    take: &mut dyn FnMut(&[u8]),
) -> (usize, Stepped) {
    let UnbufferedStatus { mut discard, state } = status;
    let stepped = match state {
        Err(why) => Stepped::Failed(why),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Stepped::Progress,
                Some(Ok(record)) => {
                    discard += record.discard;
                    take(record.payload);
                }
                Some(Err(why)) => break Stepped::Failed(why),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let encoded = append(output, 1024, |room| match data.encode(room) {
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size)),
                Err(EncodeError::AlreadyEncoded) => Err(None),
                Ok(n) => Ok(n),
            });
            encoded.map_or_else(Stepped::Failed, |()| Stepped::Progress)
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Stepped::Progress
        }
        Ok(ConnectionState::PeerClosed) => Stepped::PeerClosed,
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            let error = |error| match error {
                EncryptError::InsufficientSize(size) => Some(size),
                EncryptError::EncryptExhausted => None,
            };
            let sealed = match put {
                Put::Nothing => return (discard, Stepped::Waits),
                Put::Plaintext(bytes) => {
                    let records = bytes.len() / RECORD_BYTES_MAX + 1;
                    let room = bytes.len() + records * RECORD_OVERHEAD_BYTES;
                    append(output, room, |room| traffic.encrypt(bytes, room).map_err(error))
                }
                Put::CloseNotify => {
                    append(output, 64, |room| traffic.queue_close_notify(room).map_err(error))
                }
            };
            sealed.map_or_else(Stepped::Failed, |()| Stepped::Put)
        }
        // Early data is not taken, so that state is not reached.
        Ok(_) => Stepped::Waits,
    };
    (discard, stepped)
}

/// Appends what `write` puts into room for `expected` bytes, or for as many as it asks for.
fn append(
    output: &mut Vec<u8>,
    expected: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<InsufficientSizeError>>,
) -> Result<(), rustls::Error> {
    let begin = output.len();
    let mut room = expected;
    loop {
        output.resize(begin + room, 0);
        let written = write(&mut output[begin..]);
        output.truncate(begin + *written.as_ref().unwrap_or(&0));
        match written {
            Ok(_) => return Ok(()),
            Err(Some(InsufficientSizeError { required_size })) if required_size > room => {
                room = required_size;
            }
            Err(_) => return Err(rustls::Error::General("the keys are used up".into())),
        }
    }
}

impl Read for Tls {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.taken < self.held.len() {
                return Ok(self.take_held(buf));
            }
            if self.is_plain() {
                return self.socket().read(buf);
            }
            match self.input_end {
                InputEnd::Open => {}
                InputEnd::Ended => return Ok(0),
                InputEnd::Failed => return Err(ErrorKind::ConnectionAborted.into()),
            }
            let got = match buf.len() / 2 {
                // Plaintext is shorter than its records, so that nothing has to be held.
                half if half >= READ_BYTES => {
                    let (out, stage) = buf.split_at_mut(half);
                    self.receive(stage, out)
                }
                _ => self.receive_few(buf),
            };
            // Answers of the session. If they cannot leave, a later event sends them.
            let _ = self.send(false);
            match got? {
                0 => {}
                n => return Ok(n),
            }
        }
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes, false)
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.send(false);
        if let Err(error) = &sent
            && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        {
            let kind = error.kind();
            self.flush_error = sent.err();
            return Err(kind.into());
        }
        sent
    }
}

impl Transport for Tls {
    fn handshake(&mut self) -> io::Result<Security> {
        self.flush_error.take().map_or(Ok(()), Err)?;
        self.establish()?;
        Ok(if self.is_plain() { Security::PlainOnTls } else { Security::Tls })
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        if self.is_established && !self.is_plain() && !self.is_close_settled {
            self.is_close_settled = true;
            let _ = self.seal(Put::CloseNotify);
        }
        self.send(false)?;
        self.socket().shutdown_write()
    }

    fn omit_close(&mut self) {
        self.is_close_settled = true;
    }

    fn note_ready(&mut self, ready: Ready) {
        self.is_readable |= ready.readable | ready.read_closed;
        self.is_read_closed |= ready.read_closed;
    }

    fn is_buffering(&self) -> bool {
        true
    }

    fn is_read_pending(&self) -> bool {
        self.taken < self.held.len() || self.input_end != InputEnd::Open
    }

    fn is_write_pending(&self) -> bool {
        self.is_established && self.output.is_empty() && !self.is_plain()
    }

    fn is_output_held(&self) -> bool {
        !self.output.is_empty()
    }

    fn unacknowledged(&self) -> Option<usize> {
        let held = self.output.len() - self.sent;
        self.socket_ref().unacknowledged().map(|bytes| bytes + held)
    }

    fn kernel_bytes(&self) -> usize {
        let session = match &self.stage {
            Stage::Server(session) => size_of_val(&**session) + SESSION_HEAP_BYTES,
            Stage::Client(session) => size_of_val(&**session) + SESSION_HEAP_BYTES,
            Stage::Undecided(_) | Stage::Plain => 0,
        };
        let buffers = self.input.capacity() + self.held.capacity() + self.output.capacity();
        self.socket_ref().kernel_bytes() + size_of::<Tls>() + session + buffers
    }

    fn limit_buffers(&mut self, bytes_max: usize) -> io::Result<()> {
        self.socket().limit_buffers(bytes_max)
    }

    /// Records that wait here count as well: half of the limit is for one write.
    fn limit_unsent(&mut self, bytes: usize) -> io::Result<()> {
        self.write_bytes_max = (bytes / 2).clamp(WRITE_BYTES_MIN, WRITE_BYTES_MAX);
        let left = bytes.saturating_sub(self.write_bytes_max).max(WRITE_BYTES_MIN);
        self.socket().limit_unsent(left)
    }

    fn discard_on_close(&mut self) -> io::Result<()> {
        self.drop_output();
        self.socket().discard_on_close()
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        self.flush_error.take().map_or(Ok(()), Err)?;
        self.socket().connect_outcome()
    }

    fn write_more(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes, true)
    }

    fn set_corked(&mut self, is_corked: bool) -> io::Result<()> {
        self.socket().set_corked(is_corked)
    }

    fn send_file(&mut self, file: &OpenFile, offset: u64, count: usize) -> io::Result<usize> {
        // Before anything is read for it.
        self.send(false)?;
        let mut bytes = vec![0; count.min(self.write_bytes_max)];
        match file.read_at(&mut bytes, offset)? {
            0 => Ok(0),
            n => self.put(&bytes[..n], false),
        }
    }
}
