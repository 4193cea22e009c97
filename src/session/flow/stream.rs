//! The part of a flow whose bytes do not enter this process: while a direction streams, they go
//! through a pipe.
//!
//! A read that fills the scratch buffer shows that a stream is on. From then on the payload of each
//! frame is spliced from socket to socket, and only the heads are looked at, with `MSG_PEEK`. They
//! go through the pipe too, so that nothing has to be written twice, and all frames in a pipe leave
//! in one call.
//!
//! A stream ends at the boundary before any frame that needs more than a look at its head (a
//! control frame, a small message, one over the limit), where a frame of the gateway is due, and
//! when the source brings less than a read would: then the copy is cheaper than the calls.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::{Flow, Pumped, SinkState};
use crate::base::budget::Charge;
use crate::net::pipe::PIPE_BYTES;
use crate::net::{Conn, Io, Pipe};
use crate::proto::ws::FrameHead;
use crate::session::{Context, Identity, tap};
use std::io;

/// A splice that brings less, though the frame has more, costs more than a read and a write.
const SPLICE_BYTES_MIN: usize = 16 * 1024;

/// A frame with a smaller payload ends the stream.
const PAYLOAD_BYTES_MIN: u64 = 16 * 1024;

/// How much goes into the pipe before it is emptied: the more, the cheaper the byte. It grows only
/// while the sink takes all of it, so that a sink that stalls leaves little in the pipe.
const FILL_BYTES_MIN: u32 = 128 * 1024;
const FILL_BYTES_MAX: u32 = PIPE_BYTES as u32;

/// Bytes in one step; then other sessions have their turn.
const BYTES_PER_STEP: usize = 1024 * 1024;

/// The state of a direction that streams.
pub(super) struct SpliceState {
    /// How much goes into the pipe at once.
    fill_bytes: u32,
    /// Bytes for which the sink had no room.
    parked: Option<Parked>,
}

/// A pipe that holds bytes, and what they cost.
struct Parked {
    pipe: Pipe,
    _charge: Charge,
}

/// Why filling the pipe stopped.
enum Filled {
    /// The pipe holds enough, or is full.
    Enough,
    /// The source has nothing more now.
    Dry,
    /// The stream is over; what follows is read.
    Over,
    /// The source's FIN or RST.
    Ended,
}

/// What follows the bytes that are known to belong to the stream.
enum Peeked {
    /// More of it.
    Enough,
    /// Nothing has arrived yet.
    Nothing,
    /// A frame that does not belong to the stream, or a head that is cut.
    Other,
}

/// How a step of the stream ended.
pub(super) enum Streamed {
    /// Nothing can be moved now.
    Waits,
    /// It goes on, but other sessions have their turn first.
    Yields,
    /// The stream is over: go on reading.
    Over,
}

impl SpliceState {
    /// Bytes for which the sink had no room.
    pub(super) fn held(&self) -> usize {
        self.parked.as_ref().map_or(0, |parked| parked.pipe.held())
    }
}

impl Flow {
    /// A read filled the whole buffer: stream from now on, if both ends can.
    pub(super) fn begin_stream(&mut self, source: &Conn, sink: &Conn) {
        // A cut head, a Close frame and a pong that is held back have to be read to their ends.
        let is_plain = self.frames.held_head().is_empty() && self.watched.is_none();
        let can_stream = self.sink == SinkState::Open
            && self.backlog.is_empty()
            && is_plain
            && source.can_splice()
            && sink.can_splice();
        self.stream =
            can_stream.then(|| Box::new(SpliceState { fill_bytes: FILL_BYTES_MIN, parked: None }));
    }

    /// Moves what can be moved through a pipe.
    pub(super) fn pump_stream(
        &mut self,
        source: &mut Conn,
        sink: &mut Conn,
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) -> Streamed {
        let Some(mut stream) = self.stream.take() else { return Streamed::Over };
        let was_blocked = stream.parked.is_some();
        let parked = stream.parked.take().map(|parked| parked.pipe);
        let Some(mut pipe) = parked.or_else(|| cx.pipes.take()) else {
            return Streamed::Over;
        };
        let mut moved = 0;
        let streamed = loop {
            let before = pipe.held();
            let filled = self.fill(&mut pipe, stream.fill_bytes as usize, source, who, cx, pumped);
            moved += pipe.held() - before;
            while pipe.held() > 0 {
                match sink.splice_from(&mut pipe) {
                    Ok(Io::Moved(_)) => pumped.sink_alive |= was_blocked,
                    Ok(_) => {
                        // The sink has kept up until now, so its time to take a byte begins now.
                        pumped.sink_alive |= !was_blocked;
                        stream.fill_bytes = (stream.fill_bytes / 2).max(FILL_BYTES_MIN);
                        let _charge = cx.budget.charge(pipe.held());
                        stream.parked = Some(Parked { pipe, _charge });
                        self.stream = Some(stream);
                        if let Filled::Ended = filled {
                            self.end_source(self.vanished(), pumped);
                        }
                        return Streamed::Waits;
                    }
                    Err(_) => {
                        self.lose_sink();
                        return Streamed::Over;
                    }
                }
            }
            stream.fill_bytes = (2 * stream.fill_bytes).min(FILL_BYTES_MAX);
            match filled {
                Filled::Enough if moved < BYTES_PER_STEP => {}
                Filled::Enough => break Streamed::Yields,
                Filled::Dry => break Streamed::Waits,
                Filled::Over => break Streamed::Over,
                Filled::Ended => {
                    self.end_source(self.vanished(), pumped);
                    break Streamed::Over;
                }
            }
        };
        cx.pipes.put_back(pipe);
        if !matches!(streamed, Streamed::Over) {
            self.stream = Some(stream);
        }
        streamed
    }

    /// Fills the pipe with the rest of the current frame and the frames behind it.
    ///
    /// Each round first makes sure that the bytes to splice belong to the stream, and only then
    /// moves them: a spliced byte cannot be looked at any more.
    fn fill(
        &mut self,
        pipe: &mut Pipe,
        fill_bytes: usize,
        source: &mut Conn,
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) -> Filled {
        while pipe.held() < fill_bytes {
            let room = (fill_bytes - pipe.held()) as u64;
            let seen = match self.look_ahead(room, source, who, cx, pumped) {
                Ok(seen) => seen,
                Err(_) => return Filled::Ended,
            };
            let most = self.frames.payload_left().min(room) as usize;
            if most == 0 {
                // At a boundary, and the next frame is not of the stream, or not here.
                return match seen {
                    Peeked::Other => Filled::Over,
                    Peeked::Enough | Peeked::Nothing => Filled::Dry,
                };
            }
            let was_empty = pipe.held() == 0;
            match source.splice_into(pipe, most) {
                Ok(Io::Moved(n)) => {
                    self.frames.skip(n as u64);
                    self.traffic.bytes += n as u64;
                    self.note_alive(cx.now);
                    pumped.message |= self.is_data;
                    // The source is slower than a stream. What it sends next is read, and a read
                    // that fills the buffer begins the next stream.
                    if n < most && n < SPLICE_BYTES_MIN {
                        return Filled::Over;
                    }
                }
                // With bytes in the pipe, `Blocked` may mean that the pipe is full: it holds a
                // number of packets, not of bytes. Taking that for a dry source would wait for an
                // event that has already been reported, that is forever.
                Ok(Io::Blocked) if was_empty => return Filled::Dry,
                Ok(Io::Blocked) => return Filled::Enough,
                Ok(Io::Ended) | Err(_) => return Filled::Ended,
            }
        }
        Filled::Enough
    }

    /// Looks at the heads among the next `room` bytes, which stay in the socket.
    ///
    /// A frame of the stream is counted here, before it has arrived whole: from then on its head
    /// and payload are one run of bytes for the scanner, and `payload_left` covers both.
    fn look_ahead(
        &mut self,
        room: u64,
        source: &mut Conn,
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) -> io::Result<Peeked> {
        while self.frames.payload_left() < room {
            let mut bytes = [0; FrameHead::BYTES_MAX];
            let offset = self.frames.payload_left() as u32;
            let Io::Moved(n) = source.peek(offset, &mut bytes)? else { return Ok(Peeked::Nothing) };
            let Some((head, length)) = FrameHead::parse(&bytes[..n]) else {
                // A cut head at the very front has to be read, or this would peek at it forever
                // without an event. Behind other bytes it is looked at again once those have moved.
                return Ok(if offset == 0 { Peeked::Other } else { Peeked::Nothing });
            };
            if head.is_control()
                || head.payload < PAYLOAD_BYTES_MIN
                || self.has_own()
                // Payloads have to enter the process.
                || tap::shows_payload()
                || self.too_big(&head, cx).is_some()
            {
                return Ok(Peeked::Other);
            }
            self.frames.pass_frame(&head, length);
            self.begin_frame(&head, who, cx, pumped);
        }
        Ok(Peeked::Enough)
    }
}
