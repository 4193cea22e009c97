//! Reads what a client sends on a WebSocket that the gateway serves itself.
//!
//! `tungstenite` gets the bytes that have come, and a queue for its answers (pongs, the echo of a
//! Close). The order of that queue is the order on the wire, so an answer never lands inside
//! another frame. What the gateway itself sends does not pass through here. A [`WsReader`] is not
//! kept for long: a client that waits sends next to nothing, and between two of its messages there
//! is nothing to remember; see [`WsReader::is_idle`].

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

use super::control;
use super::ws::{FrameHead, FrameScanner, Opcode};
use std::io::{self, ErrorKind, Read, Write};
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message};

/// The largest message of a client, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// Bytes that `tungstenite` reads at a time, at least.
const READ_BYTES: usize = 1024;

/// The same, at most. Each read clears as many bytes before.
const READ_BYTES_MAX: usize = 16 * 1024;

/// The server side of one client's messages.
pub struct WsReader {
    context: WebSocketContext,
    frames: FrameScanner,
    frames_seen: u64,
    is_in_message: bool,
    asks_stop: bool,
    message_bytes_max: usize,
}

/// A message of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum WsMessage<'m> {
    Text(&'m str),
    Binary(&'m [u8]),
}

/// What the bytes of a client amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Nothing that matters; pings have been answered.
    Nothing,
    /// A Close frame, with its code. The answer is in the queue, and nothing may follow that.
    Close(Option<u16>),
    /// The client broke the protocol; a Close frame is to say so.
    Fault(WsFault),
}

/// How a client broke the protocol, with its close code (RFC 6455 §7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WsFault {
    /// 1002
    Protocol,
    /// 1007
    Utf8,
    /// 1009
    TooBig,
    /// 1002: a Close frame with a code that must not be sent. Nothing follows it.
    CloseCode,
}

impl WsReader {
    /// For a client whose messages matter little, behind the handshake.
    pub fn new() -> WsReader {
        WsReader::with_limit(MESSAGE_BYTES_MAX, READ_BYTES)
    }

    /// For messages of at most `message_bytes_max`, of which about `read_bytes` come at a time.
    pub fn with_limit(message_bytes_max: usize, read_bytes: usize) -> WsReader {
        let config = WebSocketConfig::default()
            .read_buffer_size(read_bytes.clamp(READ_BYTES, READ_BYTES_MAX))
            .write_buffer_size(0)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        WsReader {
            context: WebSocketContext::new(Role::Server, Some(config)),
            frames: FrameScanner::new(),
            frames_seen: 0,
            is_in_message: false,
            asks_stop: false,
            message_bytes_max,
        }
    }

    /// Takes what the client sent, in pieces of any size. Answers, each a whole frame, are appended
    /// to `answers`. Of its messages, only a request to stop is noted. `on_frame` gets the head of
    /// each frame that begins.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        answers: &mut Vec<u8>,
        on_frame: &mut dyn FnMut(&FrameHead),
    ) -> Received {
        let mut asks_stop = false;
        let received = self.handle_messages(bytes, answers, on_frame, |message| {
            asks_stop |= matches!(message, WsMessage::Text(text) if control::is_clients_stop(text));
        });
        self.asks_stop |= asks_stop;
        received
    }

    /// The same, with every whole message given to `take`.
    pub fn handle_messages(
        &mut self,
        bytes: &[u8],
        answers: &mut Vec<u8>,
        on_frame: &mut dyn FnMut(&FrameHead),
        mut take: impl FnMut(WsMessage<'_>),
    ) -> Received {
        self.follow(bytes, on_frame);
        let mut between = Between { bytes, answers };
        loop {
            let error = match self.context.read(&mut between) {
                Ok(Message::Close(frame)) => {
                    // `tungstenite` writes the echo only when it is flushed. This cannot fail, as
                    // the queue takes everything.
                    let _ = self.context.flush(&mut between);
                    if frame.as_ref().is_some_and(is_in_place_of_illegal_code) {
                        return Received::Fault(WsFault::CloseCode);
                    }
                    return Received::Close(frame.map(|frame| frame.code.into()));
                }
                Ok(Message::Text(text)) => {
                    take(WsMessage::Text(text.as_str()));
                    continue;
                }
                Ok(Message::Binary(bytes)) => {
                    take(WsMessage::Binary(&bytes));
                    continue;
                }
                Ok(_) => continue,
                Err(error) => error,
            };
            return match error {
                Error::Io(error) if error.kind() == ErrorKind::WouldBlock => Received::Nothing,
                Error::Utf8(_) => Received::Fault(WsFault::Utf8),
                Error::Capacity(_) => Received::Fault(WsFault::TooBig),
                _ => Received::Fault(WsFault::Protocol),
            };
        }
    }

    /// Whether the client has asked to stop its task, since the last call. A Close frame may have
    /// come behind that, in the same bytes.
    pub fn take_stop(&mut self) -> bool {
        std::mem::take(&mut self.asks_stop)
    }

    /// Bytes of memory that it may take: a message as long as any.
    pub fn held_bytes(&self) -> usize {
        size_of::<WsReader>() + self.message_bytes_max
    }

    /// Frames that have begun.
    pub fn frames_seen(&self) -> u64 {
        self.frames_seen
    }

    /// Whether a frame is here in part, its head whole.
    pub fn is_in_payload(&self) -> bool {
        self.frames.payload_left() > 0
    }

    /// Whether no frame and no message has begun, so that a new reader could continue.
    pub fn is_idle(&self) -> bool {
        self.frames.at_boundary() && !self.is_in_message
    }

    fn follow(&mut self, mut bytes: &[u8], on_frame: &mut dyn FnMut(&FrameHead)) {
        while !bytes.is_empty() {
            let (used, head) = self.frames.advance(bytes);
            bytes = &bytes[used..];
            let Some(head) = head else { continue };
            self.frames_seen += 1;
            on_frame(&head);
            if matches!(head.opcode, Opcode::Text | Opcode::Binary | Opcode::Continuation) {
                self.is_in_message = !head.fin;
            }
        }
    }
}

impl Default for WsReader {
    fn default() -> Self {
        WsReader::new()
    }
}

/// `tungstenite` reports this frame, and answers with it, where the client's code must not be sent.
fn is_in_place_of_illegal_code(frame: &CloseFrame) -> bool {
    frame.code == CloseCode::Protocol && frame.reason.as_str() == "Protocol violation"
}

/// The stream that `tungstenite` reads from and writes to.
struct Between<'b> {
    bytes: &'b [u8],
    answers: &'b mut Vec<u8>,
}

impl Read for Between<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.bytes.read(buf)
    }
}

impl Write for Between<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answers.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ws::{apply_mask, close_frame, ping_frame, pong_frame};

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        FrameHead { fin, rsv: 0, opcode, mask: Some(MASK), payload: payload.len() as u64 }
            .write(&mut out);
        let at = out.len();
        out.extend_from_slice(payload);
        apply_mask(&mut out[at..], MASK, 0);
        out
    }

    fn all(bytes: &[u8]) -> (Received, Vec<u8>) {
        let mut answers = Vec::new();
        (WsReader::new().handle_bytes(bytes, &mut answers, &mut |_| {}), answers)
    }

    #[test]
    fn pings_are_answered_and_messages_ignored_wherever_the_bytes_are_cut() {
        let mut bytes = frame(Opcode::Text, false, "häl".as_bytes());
        bytes.extend(ping_frame(b"one", Some(MASK)));
        bytes.extend(frame(Opcode::Continuation, true, b"lo"));
        bytes.extend(frame(Opcode::Binary, true, &[0xff; 4096]));
        bytes.extend(ping_frame(b"two", Some(MASK)));
        let expected = [pong_frame(b"one", None), pong_frame(b"two", None)].concat();
        assert_eq!(all(&bytes), (Received::Nothing, expected.clone()));
        for cut in (0..bytes.len()).step_by(7) {
            let (mut reader, mut answers) = (WsReader::new(), Vec::new());
            for piece in [&bytes[..cut], &bytes[cut..]] {
                assert_eq!(
                    reader.handle_bytes(piece, &mut answers, &mut |_| {}),
                    Received::Nothing,
                    "cut at {cut}"
                );
            }
            assert_eq!(answers, expected, "cut at {cut}");
            assert!(reader.is_idle());
        }
    }

    #[test]
    fn idle_only_between_messages() {
        let bytes =
            [frame(Opcode::Text, false, b"a"), frame(Opcode::Continuation, true, b"b")].concat();
        let mut reader = WsReader::new();
        for (at, byte) in bytes.iter().enumerate() {
            reader.handle_bytes(&[*byte], &mut Vec::new(), &mut |_| {});
            assert_eq!(reader.is_idle(), at + 1 == bytes.len());
        }
    }

    #[test]
    fn close_is_echoed_and_nothing_is_read_after_it() {
        let bytes =
            [close_frame(4321, "bye", Some(MASK)), ping_frame(b"late", Some(MASK))].concat();
        assert_eq!(all(&bytes), (Received::Close(Some(4321)), close_frame(4321, "bye", None)));
        let (received, answers) = all(&frame(Opcode::Close, true, b""));
        assert_eq!((received, answers), (Received::Close(None), vec![0x88, 0]));
    }

    /// RFC 6455, section 7.4.
    #[test]
    fn close_with_a_code_that_must_not_be_sent_is_a_fault() {
        for code in [0, 999, 1005, 1006, 1015, 1016, 2999, 5000] {
            let bytes = close_frame(code, "", Some(MASK));
            assert_eq!(all(&bytes).0, Received::Fault(WsFault::CloseCode), "{code}");
        }
        for code in [1000, 1001, 1002, 1011, 3000, 4999] {
            let bytes = close_frame(code, "", Some(MASK));
            assert_eq!(all(&bytes).0, Received::Close(Some(code)), "{code}");
        }
    }

    #[test]
    fn a_stop_counts_whatever_follows_it() {
        let stop = frame(Opcode::Text, true, br#"{"type":"control","action":"STOP"}"#);
        let unmasked = ping_frame(b"", None);
        for (behind, received) in [
            (vec![], Received::Nothing),
            (close_frame(1000, "", Some(MASK)), Received::Close(Some(1000))),
            (unmasked, Received::Fault(WsFault::Protocol)),
        ] {
            let mut reader = WsReader::new();
            let bytes = [stop.clone(), behind].concat();
            assert_eq!(reader.handle_bytes(&bytes, &mut Vec::new(), &mut |_| {}), received);
            assert_eq!((reader.take_stop(), reader.take_stop()), (true, false), "{received:?}");
        }
    }

    #[test]
    fn faults_are_classified() {
        let unmasked = ping_frame(b"", None);
        assert_eq!(all(&unmasked).0, Received::Fault(WsFault::Protocol));
        assert_eq!(all(&frame(Opcode::Reserved3, true, b"")).0, Received::Fault(WsFault::Protocol));
        assert_eq!(
            all(&frame(Opcode::Continuation, true, b"")).0,
            Received::Fault(WsFault::Protocol)
        );
        assert_eq!(all(&frame(Opcode::Text, true, &[0xff])).0, Received::Fault(WsFault::Utf8));
        assert_eq!(
            all(&frame(Opcode::Binary, true, &[0; MESSAGE_BYTES_MAX + 1])).0,
            Received::Fault(WsFault::TooBig)
        );
        let fragments =
            [frame(Opcode::Binary, false, &[0; 4000]), frame(Opcode::Continuation, true, &[0; 97])]
                .concat();
        assert_eq!(all(&fragments).0, Received::Fault(WsFault::TooBig));
    }
}
