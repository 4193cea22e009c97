//! WebSocket frames as bytes (RFC 6455 §5): heads in and out, the scanner that follows frames
//! through a relayed stream, and the few whole frames that the gateway sends itself.
//!
//! Nothing here refuses anything. A relay passes on what its two ends agreed on, and that may be an
//! extension that this file does not know. So reserved opcodes, RSV bits, lengths that are not in
//! their shortest form and unmasked client frames are all just frames. The rules are enforced only
//! where the gateway is an end itself, which is not here.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]
#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

use std::fmt;
use std::ops::Deref;

/// The longest payload that a control frame may carry (RFC 6455 §5.5).
const CONTROL_PAYLOAD_MAX: usize = 125;

/// The longest reason that a close frame may carry, in bytes of UTF-8: a control payload less the
/// code.
const REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_MAX - 2;

/// The kind of a frame: its four bits on the wire (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Reserved3 = 0x3,
    Reserved4 = 0x4,
    Reserved5 = 0x5,
    Reserved6 = 0x6,
    Reserved7 = 0x7,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
    ReservedB = 0xb,
    ReservedC = 0xc,
    ReservedD = 0xd,
    ReservedE = 0xe,
    ReservedF = 0xf,
}

impl Opcode {
    /// The opcode in the low four bits of `byte`; the others are ignored.
    #[inline]
    pub const fn from_bits(byte: u8) -> Opcode {
        // Compiled to nothing but the mask.
        match byte & 0x0f {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x3 => Opcode::Reserved3,
            0x4 => Opcode::Reserved4,
            0x5 => Opcode::Reserved5,
            0x6 => Opcode::Reserved6,
            0x7 => Opcode::Reserved7,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            0xb => Opcode::ReservedB,
            0xc => Opcode::ReservedC,
            0xd => Opcode::ReservedD,
            0xe => Opcode::ReservedE,
            _ => Opcode::ReservedF,
        }
    }

    /// Its four bits.
    #[inline]
    pub const fn bits(self) -> u8 {
        self as u8
    }

    /// A number below 7, with all reserved opcodes as one.
    pub const fn class(self) -> u8 {
        match self {
            Opcode::Continuation => 0,
            Opcode::Text => 1,
            Opcode::Binary => 2,
            Opcode::Close => 3,
            Opcode::Ping => 4,
            Opcode::Pong => 5,
            Opcode::Reserved3
            | Opcode::Reserved4
            | Opcode::Reserved5
            | Opcode::Reserved6
            | Opcode::Reserved7
            | Opcode::ReservedB
            | Opcode::ReservedC
            | Opcode::ReservedD
            | Opcode::ReservedE
            | Opcode::ReservedF => 6,
        }
    }

    /// Whether frames of this kind may come between the fragments of a message (RFC 6455 §5.5). The
    /// top bit says so, for reserved ones too.
    #[inline]
    pub const fn is_control(self) -> bool {
        self.bits() & 0x8 != 0
    }
}

impl fmt::Display for Opcode {
    /// One short word, for logs and counters; reserved ones with their number: `reserved-3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Opcode::Continuation => "continuation",
            Opcode::Text => "text",
            Opcode::Binary => "binary",
            Opcode::Close => "close",
            Opcode::Ping => "ping",
            Opcode::Pong => "pong",
            reserved => return write!(f, "reserved-{}", reserved.bits()),
        };
        f.pad(word)
    }
}

/// The head of one frame (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct FrameHead {
    /// Whether this is the last fragment of its message.
    pub fin: bool,
    /// The three RSV bits as a number. RSV1, the bit that permessage-deflate sets, is 4.
    pub rsv: u8,
    pub opcode: Opcode,
    /// The key that the payload is masked with. Frames from a client have one.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload. All 64 bits are taken as they are, also the top one, which RFC 6455 wants
    /// to be 0.
    pub payload: u64,
}

impl FrameHead {
    /// The longest head: two bytes, eight of length, four of mask.
    pub const BYTES_MAX: usize = 14;

    /// The head of a whole message that the gateway sends: no fragment, not masked.
    pub fn of_message(opcode: Opcode, payload: u64) -> FrameHead {
        FrameHead { fin: true, rsv: 0, opcode, mask: None, payload }
    }

    /// The frame head at the start of `bytes`, and its length there; `None` while it is not
    /// complete. Never fails.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<(FrameHead, usize)> {
        let &[first, second, ref rest @ ..] = bytes else { return None };
        let (payload, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let (mask, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        };
        let head = FrameHead {
            fin: first & 0x80 != 0,
            rsv: first >> 4 & 0x7,
            opcode: Opcode::from_bits(first),
            mask,
            payload,
        };
        Some((head, bytes.len() - rest.len()))
    }

    /// Appends the head to `out`, with the length in the shortest form as RFC 6455 §5.2 demands.
    pub fn write(&self, out: &mut Vec<u8>) {
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        out.push(u8::from(self.fin) << 7 | (self.rsv & 0x7) << 4 | self.opcode.bits());
        match self.payload {
            length @ 0..126 => out.push(masked | length as u8),
            length @ 126..=0xffff => {
                out.push(masked | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                out.push(masked | 127);
                out.extend_from_slice(&length.to_be_bytes());
            }
        }
        if let Some(mask) = self.mask {
            out.extend_from_slice(&mask);
        }
    }

    /// See [`Opcode::is_control`].
    #[inline]
    pub const fn is_control(&self) -> bool {
        self.opcode.is_control()
    }
}

/// Follows the frames in one direction of a byte stream that is cut anywhere, looking at nothing
/// but their heads.
///
/// Bytes are shown to it with [`advance`](Self::advance), or, when they moved inside the kernel,
/// counted with [`skip`](Self::skip). A head that is cut in two is held here (a copy of at most 13
/// bytes; the bytes themselves may be passed on at once), so nothing has to be shown twice.
///
/// ```
/// # use aivtuber_gateway::proto::ws::*;
/// let mut scanner = FrameScanner::new();
/// let chunk = b"\x81\x05hello\x89\x00";
/// let (used, head) = scanner.advance(chunk);
/// assert_eq!((used, head.unwrap().opcode), (2, Opcode::Text));
/// let (used, head) = scanner.advance(&chunk[2..]);
/// assert_eq!((used, head.unwrap().opcode), (7, Opcode::Ping));
/// assert!(scanner.at_boundary());
/// ```
#[derive(Clone, Debug, Default)]
pub struct FrameScanner {
    payload_left: u64,
    /// A head that has begun and is not complete. Rare, so behind a pointer.
    held: Option<Box<HeldHead>>,
}

/// The first bytes of a head, 0 to 13 of them, as they came: a head that is written anew might have
/// another length.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldHead {
    bytes: [u8; FrameHead::BYTES_MAX],
    length: u8,
}

impl Deref for HeldHead {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }
}

impl FrameScanner {
    /// A scanner at the start of a stream, which is a frame boundary.
    pub const fn new() -> FrameScanner {
        FrameScanner { payload_left: 0, held: None }
    }

    /// The head of each frame that begins in `bytes`, which are at a frame boundary.
    pub fn each_head(bytes: &[u8], mut handle: impl FnMut(&FrameHead)) {
        let (mut scanner, mut rest) = (FrameScanner::new(), bytes);
        while !rest.is_empty() {
            let (used, head) = scanner.advance(rest);
            rest = &rest[used..];
            head.iter().for_each(&mut handle);
        }
    }

    /// Passes what is left of the current frame's payload, then reads the next head. Returns the
    /// number of bytes used: up to the end of that head if it is complete, else all of them. Call
    /// it again with the rest while there is one. A frame without payload gives its head and is
    /// over.
    #[inline]
    pub fn advance(&mut self, bytes: &[u8]) -> (usize, Option<FrameHead>) {
        if self.payload_left >= bytes.len() as u64 {
            self.payload_left -= bytes.len() as u64;
            return (bytes.len(), None);
        }
        // Below the length of a slice, so it fits.
        let passed = self.payload_left as usize;
        if self.held.is_none()
            && let Some((head, length)) = FrameHead::parse(&bytes[passed..])
        {
            self.payload_left = head.payload;
            return (passed + length, Some(head));
        }
        self.payload_left = 0;
        let (used, head) = self.advance_in_head(&bytes[passed..]);
        (passed + used, head)
    }

    /// Counts `n` bytes of the current payload that moved without being shown.
    ///
    /// # Panics
    /// If the current frame has fewer than `n` bytes left: the boundary would be lost, and with it
    /// everything after.
    #[inline]
    pub fn skip(&mut self, n: u64) {
        assert!(
            n <= self.payload_left,
            "skipped {n} bytes of a payload that has {} left",
            self.payload_left
        );
        self.payload_left -= n;
    }

    /// Adds a whole frame to what is left of the current one: both will move without being shown.
    pub const fn pass_frame(&mut self, head: &FrameHead, head_bytes: usize) {
        self.payload_left =
            self.payload_left.saturating_add(head_bytes as u64).saturating_add(head.payload);
    }

    /// Bytes of the current frame's payload that are still to come. 0 between frames and in a head.
    #[inline]
    pub const fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Whether no frame has begun, so that another frame may be inserted here.
    #[inline]
    pub const fn at_boundary(&self) -> bool {
        self.payload_left == 0 && self.held.is_none()
    }

    /// The head that has begun and is not complete.
    #[inline]
    pub fn held_head(&self) -> HeldHead {
        self.held.as_deref().copied().unwrap_or_default()
    }

    /// The rare case of a head that is cut: its first part is here, or held from before.
    #[cold]
    fn advance_in_head(&mut self, bytes: &[u8]) -> (usize, Option<FrameHead>) {
        let mut held = self.held.take().unwrap_or_default();
        for (index, &byte) in bytes.iter().enumerate() {
            held.bytes[held.length as usize] = byte;
            held.length += 1;
            if let Some((head, _)) = FrameHead::parse(&held) {
                self.payload_left = head.payload;
                return (index + 1, Some(head));
            }
        }
        self.held = Some(held);
        (bytes.len(), None)
    }
}

/// A whole close frame (RFC 6455 §5.5.1). The reason is cut to `REASON_BYTES_MAX` at the end of a
/// character. `mask` is for frames to a backend, where the gateway is the client.
pub fn close_frame(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let reason = cut_at_char(reason, REASON_BYTES_MAX);
    let mut payload = [0; CONTROL_PAYLOAD_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason.as_bytes());
    control_frame(Opcode::Close, &payload[..2 + reason.len()], mask)
}

/// A whole ping frame; a payload over `CONTROL_PAYLOAD_MAX` is cut.
pub fn ping_frame(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    control_frame(Opcode::Ping, payload, mask)
}

/// A whole pong frame; a payload over `CONTROL_PAYLOAD_MAX` is cut.
pub fn pong_frame(payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    control_frame(Opcode::Pong, payload, mask)
}

/// Masks or unmasks, which is the same (RFC 6455 §5.3). `offset` is the place of `bytes[0]` within
/// its payload, so that a payload can be treated in pieces.
pub fn apply_mask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut turned = mask;
    turned.rotate_left(offset % 4);
    let word = u64::from(u32::from_ne_bytes(turned)) * 0x1_0000_0001;
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in &mut words {
        let chunk: &mut [u8; 8] = chunk.try_into().expect("a chunk of eight has eight bytes");
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

fn control_frame(opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_MAX)];
    let mut frame = Vec::with_capacity(6 + payload.len());
    FrameHead { mask, ..FrameHead::of_message(opcode, payload.len() as u64) }.write(&mut frame);
    let head_length = frame.len();
    frame.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut frame[head_length..], mask, 0);
    }
    frame
}

/// The beginning of `text`, whole characters of at most `bytes_max` bytes.
pub fn cut_at_char(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn head(opcode: Opcode, payload: u64) -> FrameHead {
        FrameHead::of_message(opcode, payload)
    }

    fn written(head: &FrameHead) -> Vec<u8> {
        let mut out = Vec::new();
        head.write(&mut out);
        out
    }

    /// Frames of every length form, masked and not, with fragments, reserved opcodes and RSV bits,
    /// and their heads.
    fn stream() -> (Vec<u8>, Vec<FrameHead>) {
        let heads = vec![
            FrameHead { mask: Some(MASK), ..head(Opcode::Text, 5) },
            head(Opcode::Ping, 0),
            FrameHead { fin: false, rsv: 4, ..head(Opcode::Binary, 126) },
            FrameHead { mask: Some([0; 4]), ..head(Opcode::Pong, 125) },
            FrameHead { fin: false, ..head(Opcode::Continuation, 0) },
            FrameHead { rsv: 7, mask: Some(MASK), ..head(Opcode::Reserved3, 300) },
            FrameHead { mask: Some(MASK), ..head(Opcode::Continuation, 65_536) },
            head(Opcode::ReservedF, 1),
            FrameHead { mask: Some(MASK), ..head(Opcode::Close, 2) },
        ];
        let mut bytes = Vec::new();
        for head in &heads {
            head.write(&mut bytes);
            // 0x81 would read as a head if the scanner took payload for one.
            bytes.resize(bytes.len() + head.payload as usize, 0x81);
        }
        (bytes, heads)
    }

    /// Shows `bytes` to the scanner as one chunk, and adds the heads in it to `heads`.
    fn feed(scanner: &mut FrameScanner, mut bytes: &[u8], heads: &mut Vec<FrameHead>) {
        while !bytes.is_empty() {
            let (used, head) = scanner.advance(bytes);
            assert!(head.is_some() || used == bytes.len(), "stopped early without a head");
            assert!(used > 0, "made no progress");
            heads.extend(head);
            bytes = &bytes[used..];
        }
    }

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 6455 §5.7
        assert_eq!(FrameHead::parse(b"\x81\x05Hello"), Some((head(Opcode::Text, 5), 2)));
        let masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(
            FrameHead::parse(masked),
            Some((FrameHead { mask: Some(MASK), ..head(Opcode::Text, 5) }, 6))
        );
        let mut payload = masked[6..].to_vec();
        apply_mask(&mut payload, MASK, 0);
        assert_eq!(payload, b"Hello");
        assert_eq!(
            FrameHead::parse(b"\x01\x03Hel"),
            Some((FrameHead { fin: false, ..head(Opcode::Text, 3) }, 2))
        );
        assert_eq!(FrameHead::parse(b"\x82\x7e\x01\x00"), Some((head(Opcode::Binary, 256), 4)));
        assert_eq!(
            FrameHead::parse(b"\x82\x7f\0\0\0\0\0\x01\0\0"),
            Some((head(Opcode::Binary, 65_536), 10))
        );
        assert_eq!(
            pong_frame(b"Hello", Some(MASK)),
            b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
        );
        assert_eq!(ping_frame(b"Hello", None), b"\x89\x05Hello");
    }

    #[test]
    fn heads_survive_writing_and_cutting() {
        for payload in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, u64::from(u32::MAX) + 1, u64::MAX] {
            for bits in 0..=0xff {
                let whole = FrameHead {
                    fin: bits & 0x80 != 0,
                    rsv: bits >> 4 & 7,
                    opcode: Opcode::from_bits(bits),
                    mask: (bits % 3 == 0).then_some([bits; 4]),
                    payload,
                };
                let bytes = written(&whole);
                assert!(bytes.len() <= FrameHead::BYTES_MAX);
                for cut in 0..bytes.len() {
                    assert_eq!(FrameHead::parse(&bytes[..cut]), None, "{whole:?} cut at {cut}");
                }
                assert_eq!(FrameHead::parse(&bytes), Some((whole, bytes.len())));
                assert_eq!(
                    FrameHead::parse(&[&bytes[..], b"more"].concat()),
                    Some((whole, bytes.len()))
                );
            }
        }
    }

    #[test]
    fn lengths_are_written_in_the_shortest_form_and_read_in_any() {
        assert_eq!(written(&head(Opcode::Text, 125)).len(), 2);
        assert_eq!(written(&head(Opcode::Text, 126)).len(), 4);
        assert_eq!(written(&head(Opcode::Text, 0xffff)).len(), 4);
        assert_eq!(written(&head(Opcode::Text, 0x1_0000)).len(), 10);
        assert_eq!(FrameHead::parse(b"\x82\x7e\x00\x05"), Some((head(Opcode::Binary, 5), 4)));
        assert_eq!(
            FrameHead::parse(b"\x82\x7f\0\0\0\0\0\0\0\x05"),
            Some((head(Opcode::Binary, 5), 10))
        );
    }

    #[test]
    fn opcodes_keep_their_bits_and_say_a_word() {
        for bits in 0..16 {
            assert_eq!(Opcode::from_bits(bits).bits(), bits);
            assert_eq!(Opcode::from_bits(bits | 0xf0), Opcode::from_bits(bits));
            assert_eq!(Opcode::from_bits(bits).is_control(), bits >= 8);
        }
        let words: Vec<String> = (0..16).map(|bits| Opcode::from_bits(bits).to_string()).collect();
        assert_eq!(words[..4], ["continuation", "text", "binary", "reserved-3"]);
        assert_eq!(words[8..12], ["close", "ping", "pong", "reserved-11"]);
    }

    #[test]
    fn the_scanner_is_small() {
        assert!(size_of::<FrameScanner>() <= 16);
    }

    #[test]
    fn the_scanner_finds_the_same_heads_cut_at_each_offset() {
        let (bytes, heads) = stream();
        for cut in 0..=bytes.len() {
            let (mut scanner, mut found) = (FrameScanner::new(), Vec::new());
            feed(&mut scanner, &bytes[..cut], &mut found);
            feed(&mut scanner, &bytes[cut..], &mut found);
            assert_eq!(found, heads, "cut at {cut}");
            assert!(scanner.at_boundary());
        }
    }

    #[test]
    fn the_scanner_finds_the_same_heads_byte_by_byte_and_in_any_pieces() {
        let (bytes, heads) = stream();
        for seed in 0..200 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let piece_max = [1, 2, 7, 20, 700, 70_000][seed as usize % 6];
            let (mut scanner, mut found, mut rest) = (FrameScanner::new(), Vec::new(), &bytes[..]);
            while !rest.is_empty() {
                // Now and then the payload goes past unseen, in part or to its end.
                let left = scanner.payload_left().min(rest.len() as u64);
                if left > 0 && chance.bool() {
                    let skipped = chance.u64(1..=left);
                    scanner.skip(skipped);
                    rest = &rest[skipped as usize..];
                    continue;
                }
                let (piece, behind) = rest.split_at(chance.usize(1..=piece_max.min(rest.len())));
                feed(&mut scanner, piece, &mut found);
                rest = behind;
            }
            assert_eq!(found, heads, "seed {seed}");
            assert!(scanner.at_boundary());
        }
    }

    #[test]
    fn a_boundary_is_only_where_nothing_is_begun() {
        let mut scanner = FrameScanner::new();
        assert!(scanner.at_boundary());
        assert_eq!(scanner.advance(b""), (0, None));
        assert_eq!(scanner.advance(b"\x82"), (1, None));
        assert!(!scanner.at_boundary());
        assert_eq!(scanner.held_head().len(), 1);
        assert_eq!(scanner.advance(b"\xfe\x01\x00\x01\x02\x03"), (6, None));
        assert_eq!(scanner.held_head().len(), 7);
        let masked = FrameHead { mask: Some([1, 2, 3, 4]), ..head(Opcode::Binary, 256) };
        assert_eq!(scanner.advance(b"\x04payload"), (1, Some(masked)));
        assert_eq!((scanner.held_head().len(), scanner.payload_left()), (0, 256));
        assert!(!scanner.at_boundary());
        scanner.skip(255);
        assert_eq!(scanner.advance(b"!"), (1, None));
        assert!(scanner.at_boundary());
    }

    #[test]
    fn the_longest_payload_does_not_overflow() {
        let mut scanner = FrameScanner::new();
        let longest = head(Opcode::Binary, u64::MAX);
        assert_eq!(scanner.advance(&written(&longest)), (10, Some(longest)));
        scanner.skip(u64::MAX - 3);
        assert_eq!(scanner.advance(b"abc\x89\x00"), (5, Some(head(Opcode::Ping, 0))));
    }

    #[test]
    #[should_panic(expected = "skipped 6 bytes of a payload that has 5 left")]
    fn skipping_over_a_boundary_is_a_fault_of_ours() {
        let mut scanner = FrameScanner::new();
        scanner.advance(b"\x81\x05");
        scanner.skip(6);
    }

    #[test]
    fn any_bytes_are_frames() {
        for seed in 0..500 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..chance.usize(0..400)).map(|_| chance.u8(..)).collect();
            let (mut whole, mut heads) = (FrameScanner::new(), Vec::new());
            feed(&mut whole, &bytes, &mut heads);
            let (mut trickled, mut same) = (FrameScanner::new(), Vec::new());
            bytes.iter().for_each(|byte| feed(&mut trickled, &[*byte], &mut same));
            assert_eq!(heads, same, "seed {seed}");
            assert_eq!(whole.payload_left(), trickled.payload_left());
            assert_eq!(whole.held_head().len(), trickled.held_head().len());
        }
    }

    #[test]
    fn close_frames_carry_code_and_reason() {
        assert_eq!(close_frame(1000, "", None), b"\x88\x02\x03\xe8");
        assert_eq!(close_frame(1001, "away", None), b"\x88\x06\x03\xe9away");
        let masked = close_frame(1011, "lost", Some(MASK));
        let (head, length) = FrameHead::parse(&masked).unwrap();
        assert_eq!(
            (head.opcode, head.mask, head.payload, length),
            (Opcode::Close, Some(MASK), 6, 6)
        );
        let mut payload = masked[length..].to_vec();
        apply_mask(&mut payload, MASK, 0);
        assert_eq!(parse_close(&payload), Some((1011, "lost")));
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        // 123 is three times 41, so that whole characters of three bytes fill it, and a shift by
        // one byte does not.
        let reason = "声".repeat(60);
        let frame = close_frame(1011, &reason, None);
        assert_eq!(frame.len(), 2 + 125);
        assert_eq!(parse_close(&frame[2..]), Some((1011, &reason[..123])));
        let shifted = format!("x{reason}");
        let frame = close_frame(1011, &shifted, None);
        assert_eq!(parse_close(&frame[2..]), Some((1011, &shifted[..121])));
        assert_eq!(ping_frame(&[7; 200], None).len(), 2 + 125);
    }

    fn parse_close(payload: &[u8]) -> Option<(u16, &str)> {
        let (code, reason) = payload.split_first_chunk()?;
        Some((u16::from_be_bytes(*code), std::str::from_utf8(reason).ok()?))
    }

    #[test]
    fn masking_is_the_same_in_pieces_and_undoes_itself() {
        let plain: Vec<u8> = (0..100).collect();
        let slow: Vec<u8> = plain.iter().enumerate().map(|(i, byte)| byte ^ MASK[i % 4]).collect();
        for cut in 0..=plain.len() {
            let mut bytes = plain.clone();
            let (left, right) = bytes.split_at_mut(cut);
            apply_mask(left, MASK, 0);
            apply_mask(right, MASK, cut);
            assert_eq!(bytes, slow, "cut at {cut}");
            apply_mask(&mut bytes, MASK, 0);
            assert_eq!(bytes, plain);
        }
    }
}
