//! Where the body of a message ends, and how it is framed anew (RFC 9112 §6, §7.1).
//!
//! A message on an HTTP route is never passed on byte for byte: [`BodyReader`] takes its content
//! out of the framing that it came in, and [`frame_chunk`] or a `Content-Length` frames that
//! content for the other side. What two parsers could read differently is refused, so that the two
//! sides cannot disagree on where a message ends (RFC 9112 §11.2):
//!
//! - `Transfer-Encoding` that is anything but the one word `chunked`, or beside `Content-Length`,
//! - chunk sizes with a sign, a prefix, white space, extensions, or more than 16 digits,
//! - lines that end with a bare CR or LF,
//! - trailers that are malformed, larger than `TRAILER_BYTES_MAX`, or that frame or route a
//!   message. Sound ones are dropped, as RFC 9110 §6.5.1 allows.
//!
//! ```
//! use aivtuber_gateway::proto::http::framing::{BodyReader, BodyFraming};
//!
//! let mut reader = BodyReader::new(BodyFraming::Chunked);
//! let mut bytes = *b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\nnext";
//! let found = reader.read(&mut bytes).unwrap();
//! assert_eq!(&bytes[found.content], b"hello, world");
//! assert_eq!(&bytes[found.used..], b"next");
//! assert!(reader.is_done());
//! ```

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from the same bytes, and are checked against their length before"
)]

use super::{LENGTH_MAX, RequestHead, ResponseHead};
use std::ops::Range;

/// Bytes of all trailers of one message.
const TRAILER_BYTES_MAX: u32 = 16 * 1024;

/// Bytes in front of content that [`frame_chunk`] needs: 16 digits and CRLF.
pub const CHUNK_FRONT: usize = 18;

/// Bytes behind content that [`frame_chunk`] needs: CRLF and the last chunk.
pub const CHUNK_BACK: usize = 2 + LAST_CHUNK.len();

/// The last chunk, without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Names that a trailer may not have: they say where a message ends, or whom it is for.
const NOT_IN_TRAILERS: [&[u8]; 4] =
    [b"content-length", b"transfer-encoding", b"host", b"connection"];

/// Bytes of the longest of these names, and one more.
const NAME_BYTES: usize = 18;

/// Where the body of a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// Where the connection ends. Only responses may.
    UntilClose,
}

impl BodyFraming {
    /// What a request's head says, whose framing was checked when it was parsed.
    pub fn of_request(head: &RequestHead<'_, '_>) -> BodyFraming {
        match head.headers.content_length() {
            _ if head.headers.first("transfer-encoding").is_some() => BodyFraming::Chunked,
            Ok(Some(length)) => BodyFraming::Length(length),
            Ok(None) | Err(_) => BodyFraming::Empty,
        }
    }

    /// What the head of a final response says, to a request with this method (RFC 9112 §6.3).
    ///
    /// # Errors
    /// A phrase, when two parsers could find two different ends.
    pub fn of_response(
        head: &ResponseHead<'_, '_>,
        method: &str,
    ) -> Result<BodyFraming, &'static str> {
        let length = head
            .headers
            .content_length()
            .map_err(|_| "malformed or repeated Content-Length in response")?;
        let mut codings = head.headers.all("transfer-encoding");
        let is_chunked = match (codings.next(), codings.next()) {
            (None, _) => false,
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => true,
            (Some(_), _) => return Err("Transfer-Encoding other than chunked in response"),
        };
        if is_chunked && length.is_some() {
            return Err("Transfer-Encoding and Content-Length together in response");
        }
        if is_chunked && head.minor_version == 0 {
            return Err("Transfer-Encoding in a response of HTTP/1.0");
        }
        Ok(match length {
            _ if method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304) => {
                BodyFraming::Empty
            }
            _ if is_chunked => BodyFraming::Chunked,
            Some(length) => BodyFraming::Length(length),
            None => BodyFraming::UntilClose,
        })
    }
}

/// Takes the content of one body out of a byte stream that is cut anywhere.
#[derive(Clone, Debug)]
pub struct BodyReader(BodyState);

/// What the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyState {
    /// One of the bytes left of a body that is not chunked.
    Left(u64),
    UntilClose,
    Done,
    /// A digit of a chunk's size, or CR behind the last one.
    Size {
        size: u64,
        digits: u8,
    },
    SizeLf {
        size: u64,
    },
    Chunk {
        left: u64,
    },
    ChunkCr,
    ChunkLf,
    /// The first byte of a trailer line, or of the empty line that ends the body.
    Trailer(Trailers),
    TrailerName(Trailers, TrailerName),
    TrailerValue(Trailers),
    TrailerLf(Trailers),
    LastLf,
}

/// Bytes of trailers so far.
type Trailers = u32;

/// The beginning of a trailer's name, in lower case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TrailerName {
    start: [u8; NAME_BYTES],
    length: u8,
}

/// What [`BodyReader::read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentFound {
    /// Where in the bytes the content is now: pieces of several chunks have been moved together.
    pub content: Range<usize>,
    /// How many of the bytes belong to the body: all, or those up to its end.
    pub used: usize,
}

impl BodyReader {
    /// A reader at the start of a body.
    pub fn new(framing: BodyFraming) -> BodyReader {
        BodyReader(match framing {
            BodyFraming::Empty | BodyFraming::Length(0) => BodyState::Done,
            BodyFraming::Length(length) => BodyState::Left(length),
            BodyFraming::Chunked => BodyState::Size { size: 0, digits: 0 },
            BodyFraming::UntilClose => BodyState::UntilClose,
        })
    }

    /// Whether the body is complete. One that ends with its connection is never complete before
    /// that.
    pub fn is_done(&self) -> bool {
        self.0 == BodyState::Done
    }

    /// Whether the body is complete if the connection ends here.
    pub fn may_end(&self) -> bool {
        matches!(self.0, BodyState::Done | BodyState::UntilClose)
    }

    /// How many bytes may be read from the connection without reading beyond the body; `None`: that
    /// is not known.
    pub fn bytes_left(&self) -> Option<u64> {
        match self.0 {
            BodyState::Left(left) => Some(left),
            BodyState::Done => Some(0),
            _ => None,
        }
    }

    /// Reads the next `bytes` of the connection, and moves the content in them together.
    ///
    /// # Errors
    /// A phrase that says what is malformed. Where the body ends is unknown then.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<ContentFound, &'static str> {
        let (mut used, mut content) = (0, 0..0);
        while let Some(&byte) = bytes.get(used) {
            let here = bytes.len() - used;
            let taken = match &mut self.0 {
                BodyState::Done => break,
                BodyState::UntilClose => here,
                BodyState::Left(left) | BodyState::Chunk { left } => {
                    let taken = usize::try_from(*left).map_or(here, |left| left.min(here));
                    *left -= taken as u64;
                    taken
                }
                next => {
                    *next = after(*next, byte)?;
                    used += 1;
                    continue;
                }
            };
            if content.is_empty() {
                content = used..used;
            }
            if content.end < used {
                bytes.copy_within(used..used + taken, content.end);
            }
            content.end += taken;
            used += taken;
            match self.0 {
                BodyState::Left(0) => self.0 = BodyState::Done,
                BodyState::Chunk { left: 0 } => self.0 = BodyState::ChunkCr,
                _ => {}
            }
        }
        Ok(ContentFound { content, used })
    }
}

/// What comes behind `byte`, which belongs to the framing of a chunk.
fn after(next: BodyState, byte: u8) -> Result<BodyState, &'static str> {
    Ok(match (next, byte) {
        (
            BodyState::Size { size, digits: digits @ 0..16 },
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F',
        ) => {
            let digit = char::from(byte).to_digit(16).unwrap_or_default();
            BodyState::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
        }
        (BodyState::Size { size: size @ 0..=LENGTH_MAX, digits: 1.. }, b'\r') => {
            BodyState::SizeLf { size }
        }
        (BodyState::Size { digits: 1.., .. }, b';') => return Err("chunk with an extension"),
        (BodyState::Size { .. }, _) => return Err("malformed chunk size"),
        (BodyState::SizeLf { size: 0 }, b'\n') => BodyState::Trailer(0),
        (BodyState::SizeLf { size }, b'\n') => BodyState::Chunk { left: size },
        (BodyState::ChunkCr, b'\r') => BodyState::ChunkLf,
        (BodyState::ChunkLf, b'\n') => BodyState::Size { size: 0, digits: 0 },
        (BodyState::LastLf, b'\n') => BodyState::Done,
        (BodyState::Trailer(_), b'\r') => BodyState::LastLf,
        (
            BodyState::Trailer(count)
            | BodyState::TrailerName(count, _)
            | BodyState::TrailerValue(count)
            | BodyState::TrailerLf(count),
            _,
        ) => return after_trailer(next, count + 1, byte),
        _ => return Err("malformed line end in a chunked body"),
    })
}

/// The same within trailers, of which there are `count` bytes now.
fn after_trailer(next: BodyState, count: Trailers, byte: u8) -> Result<BodyState, &'static str> {
    if count > TRAILER_BYTES_MAX {
        return Err("trailers are too large");
    }
    Ok(match (next, byte) {
        (BodyState::Trailer(_), _) if is_name_byte(byte) => {
            BodyState::TrailerName(count, TrailerName::default().with(byte))
        }
        (BodyState::TrailerName(_, name), b':') if name.is_forbidden() => {
            return Err("a trailer that frames or routes a message");
        }
        (BodyState::TrailerName(..), b':') => BodyState::TrailerValue(count),
        (BodyState::TrailerName(_, name), _) if is_name_byte(byte) => {
            BodyState::TrailerName(count, name.with(byte))
        }
        (BodyState::TrailerValue(_), b'\r') => BodyState::TrailerLf(count),
        (BodyState::TrailerValue(_), b'\t' | b' '..=b'~' | 0x80..) => {
            BodyState::TrailerValue(count)
        }
        (BodyState::TrailerLf(_), b'\n') => BodyState::Trailer(count),
        _ => return Err("malformed trailer"),
    })
}

fn is_name_byte(byte: u8) -> bool {
    super::is_token(&[byte])
}

impl TrailerName {
    fn with(mut self, byte: u8) -> TrailerName {
        if let Some(place) = self.start.get_mut(usize::from(self.length)) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
        self
    }

    fn is_forbidden(&self) -> bool {
        let name = &self.start[..usize::from(self.length)];
        NOT_IN_TRAILERS.contains(&name)
    }
}

/// Makes one chunk of the content at `content` in `buffer`, in place: [`CHUNK_FRONT`] bytes before
/// it and [`CHUNK_BACK`] behind it are free. Returns where the chunk is. Without content there is
/// none; with `is_last` the last chunk follows.
pub fn frame_chunk(buffer: &mut [u8], content: Range<usize>, is_last: bool) -> Range<usize> {
    let mut framed = content.clone();
    if !content.is_empty() {
        let (mut size, mut digits) = (content.len(), [0; 16]);
        let mut first = digits.len();
        while size > 0 {
            first -= 1;
            digits[first] = b"0123456789abcdef"[size % 16];
            size /= 16;
        }
        let digits = &digits[first..];
        framed.start = content.start - digits.len() - 2;
        buffer[framed.start..content.start - 2].copy_from_slice(digits);
        buffer[content.start - 2..content.start].copy_from_slice(b"\r\n");
        framed.end = content.end + 2;
        buffer[content.end..framed.end].copy_from_slice(b"\r\n");
    }
    if is_last {
        let end = framed.end + LAST_CHUNK.len();
        buffer[framed.end..end].copy_from_slice(LAST_CHUNK);
        framed.end = end;
    }
    framed
}

#[cfg(test)]
mod tests {
    use super::super::empty_slots;
    use super::*;

    /// Bodies in chunks, and their content.
    const CHUNKED: [(&str, &str); 5] = [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        (
            "00A\r\n0\r\n\r\n0\r\n\r\n\r\n1\r\nx\r\n000\r\nTrailer: a\r\nB: c\r\n\r\n",
            "0\r\n\r\n0\r\n\r\nx",
        ),
        (
            "1f\r\n0123456789012345678901234567890\r\n0\r\nA:\r\n\r\n",
            "0123456789012345678901234567890",
        ),
        ("1\r\na\r\n1\r\nb\r\n2\r\ncd\r\n0\r\ncontent-lengths: 5\r\nX:\u{e9}\t \r\n\r\n", "abcd"),
    ];

    /// The content of a body that comes in these pieces, and how many bytes it took.
    fn read(
        framing: BodyFraming,
        pieces: &[&[u8]],
    ) -> Result<(Vec<u8>, usize, bool), &'static str> {
        let mut reader = BodyReader::new(framing);
        let (mut content, mut used) = (Vec::new(), 0);
        for piece in pieces {
            let mut bytes = piece.to_vec();
            let found = reader.read(&mut bytes)?;
            content.extend_from_slice(&bytes[found.content]);
            used += found.used;
            if found.used < piece.len() {
                assert!(reader.is_done(), "only the end of the body leaves bytes over");
                break;
            }
        }
        Ok((content, used, reader.is_done()))
    }

    #[test]
    fn content_is_the_same_wherever_a_chunked_body_is_cut() {
        for (body, content) in CHUNKED {
            let (bytes, content) = (body.as_bytes(), content.as_bytes());
            let whole = Ok((content.to_vec(), bytes.len(), true));
            for cut in 0..bytes.len() {
                let behind = [&bytes[cut..], b"5\r\nmore"].concat();
                assert_eq!(read(BodyFraming::Chunked, &[&bytes[..cut], &behind]), whole, "{cut}");
                let (_, used, is_done) = read(BodyFraming::Chunked, &[&bytes[..cut]]).unwrap();
                assert_eq!((used, is_done), (cut, false));
                for next in cut..bytes.len() {
                    let pieces = [&bytes[..cut], &bytes[cut..next], &bytes[next..]];
                    assert_eq!(read(BodyFraming::Chunked, &pieces), whole, "{cut}, {next}");
                }
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(read(BodyFraming::Chunked, &single), whole);
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused_wherever_it_is_cut() {
        for body in [
            "\r\n",
            "x\r\n",
            ";a\r\n",
            "-1\r\n",
            "+5\r\nhello",
            "0x5\r\nhello",
            " 5\r\nhello",
            "5 \r\nhello",
            "5\t\r\nhello",
            "5;a\r\nhello",
            "5;a=\"\n\"\r\nhello",
            "5_0\r\n",
            "5\nhello",
            "5\rhello",
            "5\r\r\nhello",
            "5\r\nhello!",
            "5\r\nhello\n",
            "5\r\nhello\r\r",
            "5\r\nhello0\r\n\r\n",
            "0\r\n\n",
            "0\n\r\n",
            "0\r\nA: b\n",
            "0\r\nA: b\rc",
            "0\r\nA b\r\n",
            "0\r\nA : b\r\n",
            "0\r\n A: b\r\n",
            "0\r\n: b\r\n",
            "0\r\nA: b\0\r\n",
            "0\r\nA: b\x7f\r\n",
            "0\r\nA\r\n",
            "0\r\nA: b\r\n c\r\n",
            "0\r\nContent-Length: 5\r\n",
            "0\r\nTransfer-encoding: chunked\r\n",
            "0\r\nX: y\r\nhost: a\r\n",
            "0\r\nConnection: close\r\n",
            "00000000000000001\r\n",
            "8000000000000000\r\n",
            "ffffffffffffffff\r\n",
        ] {
            assert!(read(BodyFraming::Chunked, &[body.as_bytes()]).is_err(), "{body:?}");
            let single: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
            assert!(read(BodyFraming::Chunked, &single).is_err(), "{body:?} byte by byte");
        }
        let mut large = BodyReader::new(BodyFraming::Chunked);
        let mut bytes = *b"7fffffffffffffff\r\nabc";
        assert_eq!(large.read(&mut bytes), Ok(ContentFound { content: 18..21, used: 21 }));
    }

    #[test]
    fn trailers_are_limited_together() {
        let line = format!("A: {}\r\n", "x".repeat(1000));
        let trailers = |count: usize| format!("0\r\n{}\r\n", line.repeat(count));
        let most = TRAILER_BYTES_MAX as usize / line.len();
        assert!(read(BodyFraming::Chunked, &[trailers(most).as_bytes()]).unwrap().2);
        let error = Err("trailers are too large");
        assert_eq!(read(BodyFraming::Chunked, &[trailers(most + 1).as_bytes()]), error);
        assert_eq!(read(BodyFraming::Chunked, &[trailers(100_000).as_bytes()]), error);
    }

    #[test]
    fn other_bodies_end_where_the_head_says() {
        assert_eq!(read(BodyFraming::Empty, &[b"x"]), Ok((Vec::new(), 0, true)));
        assert_eq!(read(BodyFraming::Length(0), &[b"x"]), Ok((Vec::new(), 0, true)));
        assert_eq!(
            read(BodyFraming::Length(5), &[b"abc", b"defg"]),
            Ok((b"abcde".into(), 5, true))
        );
        assert_eq!(read(BodyFraming::UntilClose, &[b"abc", b"d"]), Ok((b"abcd".into(), 4, false)));
        let mut length = BodyReader::new(BodyFraming::Length(5));
        assert_eq!((length.bytes_left(), length.may_end()), (Some(5), false));
        length.read(&mut [0; 3]).unwrap();
        assert_eq!(length.bytes_left(), Some(2));
        assert!(BodyReader::new(BodyFraming::UntilClose).may_end());
        assert_eq!(BodyReader::new(BodyFraming::Chunked).bytes_left(), None);
        assert!(!BodyReader::new(BodyFraming::Chunked).may_end());
    }

    #[test]
    fn a_response_says_where_its_body_ends_or_is_refused() {
        let framing = |method: &str, status: u16, version: u8, lines: &str| {
            let bytes = format!("HTTP/1.{version} {status} x\r\n{lines}\r\n");
            let mut slots = empty_slots();
            let (head, _) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
            BodyFraming::of_response(&head, method)
        };
        let of = |status, lines| framing("GET", status, 1, lines);
        const CHUNKED: &str = "Transfer-Encoding: Chunked\r\n";
        assert_eq!(of(200, "Content-Length: 7\r\n"), Ok(BodyFraming::Length(7)));
        assert_eq!(of(200, CHUNKED), Ok(BodyFraming::Chunked));
        assert_eq!(of(200, ""), Ok(BodyFraming::UntilClose));
        assert_eq!(framing("HEAD", 200, 1, "Content-Length: 7\r\n"), Ok(BodyFraming::Empty));
        assert_eq!(framing("HEAD", 200, 1, CHUNKED), Ok(BodyFraming::Empty));
        for status in [204, 304] {
            assert_eq!(of(status, "Content-Length: 7\r\n"), Ok(BodyFraming::Empty), "{status}");
        }
        for lines in [
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n",
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: 9223372036854775808\r\n",
            "Content-Length:\r\n",
        ] {
            assert!(of(200, lines).is_err(), "{lines:?}");
            assert!(of(304, lines).is_err(), "{lines:?} without a body");
        }
        assert!(framing("GET", 200, 0, CHUNKED).is_err(), "HTTP/1.0");
    }

    #[test]
    fn content_is_framed_in_place() {
        for length in [0, 1, 9, 10, 15, 16, 255, 256, 65_535, 65_536] {
            for is_last in [false, true] {
                let mut buffer = vec![b'_'; CHUNK_FRONT + length + CHUNK_BACK];
                let content = CHUNK_FRONT..CHUNK_FRONT + length;
                buffer[content.clone()].fill(b'x');
                let framed = frame_chunk(&mut buffer, content, is_last);
                let mut expected = match length {
                    0 => String::new(),
                    _ => format!("{length:x}\r\n{}\r\n", "x".repeat(length)),
                };
                expected += if is_last { "0\r\n\r\n" } else { "" };
                assert_eq!(buffer[framed], *expected.as_bytes());
            }
        }
    }

    #[test]
    fn random_bytes_neither_panic_nor_depend_on_how_they_are_cut() {
        let mut ended = 0;
        for seed in 0..4000 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let mut bytes = CHUNKED[chance.usize(..5)].0.as_bytes().to_vec();
            for _ in 0..chance.usize(0..3) {
                let at = chance.usize(..bytes.len());
                bytes[at] = b"\r\n0123;:fF\0\xff"[chance.usize(..12)];
            }
            let whole = read(BodyFraming::Chunked, &[&bytes]);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(whole, read(BodyFraming::Chunked, &single), "seed {seed}");
            ended += u32::from(whole.is_ok_and(|(_, _, is_done)| is_done));
        }
        assert!(ended > 500, "only {ended} bodies ended");
    }
}
