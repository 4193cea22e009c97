//! The content of one message from one side to the other, taken out of its framing and framed anew.
//!
//! *Not reading is the backpressure*: while the sink has not taken what was read before, the source
//! is not read. So a pump never holds more than one read.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::http::framing::{
    BodyFraming, BodyReader, CHUNK_BACK, CHUNK_FRONT, ContentFound, LAST_CHUNK, frame_chunk,
};
use crate::session::Context;
use crate::session::stall::Stall;
use std::time::Duration;

/// Reads in one step; then it is other sessions' turn.
const READS_PER_STEP: usize = 16;

/// One direction of a forwarded request.
pub struct Pump {
    reader: BodyReader,
    framing: PumpFraming,
    /// What is to be sent next, and how many bytes of it have been.
    backlog: (Vec<u8>, usize),
    /// Bytes behind the end of the message.
    surplus: Vec<u8>,
    /// Bytes of content so far, and at most.
    content_bytes: u64,
    content_max: Option<u64>,
    beyond: Beyond,
    /// Exists while the sink is full.
    stall: Option<Stall>,
}

/// What becomes of bytes behind the end of the message, where its length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beyond {
    /// They stay in the socket.
    Stays,
    /// They are read too: a read that brings fewer bytes than it could proves that there are none.
    IsRead,
}

/// How content is framed for the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PumpFraming {
    /// The sink knows its length, or ends with the connection.
    Plain,
    Chunked,
}

/// How far a pump got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pumped {
    /// Everything has been sent.
    Done,
    /// Nothing is to be sent until more comes.
    Starved,
    /// The sink is full.
    Blocked,
    /// More could be done, but other sessions have their turn first.
    Busy,
}

/// Why a pump cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PumpError {
    /// The source ended, or was lost, before the message was complete.
    Cut,
    /// Two parsers could read the source differently.
    Malformed(&'static str),
    /// There is more content than is allowed.
    TooLarge,
    /// The sink is lost.
    Sink,
}

impl Pump {
    /// A pump that first sends `front`, and then the content of a body of which `early` is here.
    ///
    /// # Errors
    /// As of [`Pump::pump`].
    pub fn new(
        front: Vec<u8>,
        source: BodyFraming,
        framing: PumpFraming,
        content_max: Option<u64>,
        early: &[u8],
    ) -> Result<Pump, PumpError> {
        let mut pump = Pump {
            reader: BodyReader::new(source),
            framing,
            backlog: (front, 0),
            surplus: Vec::new(),
            content_bytes: 0,
            content_max,
            beyond: Beyond::Stays,
            stall: None,
        };
        if !early.is_empty() {
            let mut buffer = vec![0; CHUNK_FRONT + early.len() + CHUNK_BACK];
            buffer[CHUNK_FRONT..CHUNK_FRONT + early.len()].copy_from_slice(early);
            let framed = pump.frame(&mut buffer, early.len())?;
            pump.backlog.0.extend_from_slice(&buffer[framed]);
        }
        Ok(pump)
    }

    /// The same, which may read what follows the message.
    pub fn reading_beyond(self) -> Pump {
        Pump { beyond: Beyond::IsRead, ..self }
    }

    /// Whether the whole message has been read.
    pub fn is_read(&self) -> bool {
        self.reader.is_done()
    }

    /// Whether everything has been sent.
    pub fn is_done(&self) -> bool {
        self.is_read() && self.waiting_bytes() == 0
    }

    /// Bytes of content so far.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Bytes that wait for the sink.
    pub fn waiting_bytes(&self) -> usize {
        self.backlog.0.len() - self.backlog.1
    }

    /// What waits for the sink.
    pub fn waiting(&self) -> &[u8] {
        &self.backlog.0[self.backlog.1..]
    }

    /// The first `n` bytes of what waits have been sent some other way.
    pub fn skip(&mut self, n: usize) {
        self.backlog.1 += n;
    }

    /// Bytes of its buffers.
    pub fn held_bytes(&self) -> usize {
        self.backlog.0.capacity() + self.surplus.capacity()
    }

    /// What came behind the end of the message.
    pub fn take_surplus(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.surplus)
    }

    /// Asks the socket, if it is time to. Returns whether the sink has taken no byte for `timeout`.
    pub fn check_stall(&mut self, sink: &Conn, timeout: Option<Duration>, now: Moment) -> bool {
        self.stall.as_mut().is_some_and(|stall| stall.check_timeout(sink, timeout, now))
    }

    /// When [`Pump::is_stalled`] is to be asked again.
    pub fn deadline(&self, timeout: Option<Duration>) -> Option<Moment> {
        self.stall?.deadline(timeout)
    }

    /// Moves what can be moved now.
    ///
    /// # Errors
    /// Nothing more can be moved.
    pub fn pump(
        &mut self,
        source: &mut Conn,
        sink: &mut Conn,
        cx: &mut Context,
    ) -> Result<Pumped, PumpError> {
        for _ in 0..READS_PER_STEP {
            if !self.flush(sink, cx)? {
                self.stall.get_or_insert(Stall::new(cx.now));
                return Ok(Pumped::Blocked);
            }
            if self.is_read() {
                return Ok(Pumped::Done);
            }
            match cx.with_scratch(|scratch, cx| self.move_once(scratch, source, sink, cx))? {
                Io::Moved(_) => {}
                Io::Blocked => return Ok(Pumped::Starved),
                Io::Ended if self.reader.may_end() => self.end(),
                Io::Ended => return Err(PumpError::Cut),
            }
        }
        Ok(Pumped::Busy)
    }

    /// Reads once, and writes what was read; what the sink does not take is held.
    fn move_once(
        &mut self,
        scratch: &mut [u8],
        source: &mut Conn,
        sink: &mut Conn,
        cx: &mut Context,
    ) -> Result<Io, PumpError> {
        let room = scratch.len() - CHUNK_FRONT - CHUNK_BACK;
        let left = self.reader.bytes_left().filter(|_| self.beyond == Beyond::Stays);
        let left = left.and_then(|left| usize::try_from(left).ok());
        let most = left.map_or(room, |left| left.min(room));
        let read = source.read(&mut scratch[CHUNK_FRONT..CHUNK_FRONT + most]);
        let Ok(read) = read else { return Err(PumpError::Cut) };
        if let Io::Moved(n) = read {
            cx.work += n;
            let framed = self.frame(scratch, n)?;
            self.send(&scratch[framed], sink)?;
        }
        Ok(read)
    }

    /// Frames the content in the `n` bytes behind the first [`CHUNK_FRONT`] of `buffer`, in place.
    fn frame(&mut self, buffer: &mut [u8], n: usize) -> Result<std::ops::Range<usize>, PumpError> {
        let bytes = &mut buffer[CHUNK_FRONT..CHUNK_FRONT + n];
        let ContentFound { content, used } =
            self.reader.read(bytes).map_err(PumpError::Malformed)?;
        self.surplus.extend_from_slice(&bytes[used..]);
        self.content_bytes += content.len() as u64;
        if self.content_max.is_some_and(|most| self.content_bytes > most) {
            return Err(PumpError::TooLarge);
        }
        let content = CHUNK_FRONT + content.start..CHUNK_FRONT + content.end;
        Ok(match self.framing {
            PumpFraming::Plain => content,
            PumpFraming::Chunked => frame_chunk(buffer, content, self.reader.is_done()),
        })
    }

    fn send(&mut self, bytes: &[u8], sink: &mut Conn) -> Result<(), PumpError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let taken = match sink.write(bytes) {
            Ok(Io::Moved(n)) => n,
            Ok(_) => 0,
            Err(_) => return Err(PumpError::Sink),
        };
        if taken < bytes.len() {
            self.backlog = (bytes[taken..].to_vec(), 0);
        }
        Ok(())
    }

    /// Sends what is held. False: the sink is full.
    fn flush(&mut self, sink: &mut Conn, cx: &Context) -> Result<bool, PumpError> {
        while self.waiting_bytes() > 0 {
            match sink.write(&self.backlog.0[self.backlog.1..]) {
                Ok(Io::Moved(n)) => {
                    self.backlog.1 += n;
                    if let Some(stall) = &mut self.stall {
                        stall.note_progress(cx.now);
                    }
                }
                Ok(_) => return Ok(false),
                Err(_) => return Err(PumpError::Sink),
            }
        }
        (self.backlog, self.stall) = ((Vec::new(), 0), None);
        Ok(true)
    }

    /// The source has ended where the message may.
    fn end(&mut self) {
        self.reader = BodyReader::new(BodyFraming::Empty);
        if self.framing == PumpFraming::Chunked {
            self.backlog = (LAST_CHUNK.to_vec(), 0);
        }
    }
}
