//! Where the body of a backend's response ends (RFC 9112 §6, §7.1), for a response that is passed
//! on byte for byte.
//!
//! A chunked body is not decoded. The client gets the chunks as the backend framed them; only their
//! sizes are read, because a backend that keeps its connection alive marks the end in no other way.

use super::http::ResponseHead;

/// Where the body of a response to a GET ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is no body. Behind a 101 the other protocol begins.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and its trailers; [`BodyScanner`] finds it.
    Chunked,
    /// Where the connection ends.
    UntilClose,
}

impl Body {
    /// What `head` says about its body.
    ///
    /// # Errors
    /// A phrase, when `Content-Length` is malformed or repeated: two readers could find two
    /// different ends.
    pub fn of_response(head: &ResponseHead<'_, '_>) -> Result<Body, &'static str> {
        let length = head
            .headers
            .content_length()
            .map_err(|_| "malformed or repeated Content-Length in response")?;
        if matches!(head.status, 100..=199 | 204 | 304) {
            return Ok(Body::Empty);
        }
        if let Some(last) = head.headers.elements("transfer-encoding").last() {
            return Ok(match last.eq_ignore_ascii_case(b"chunked") {
                true => Body::Chunked,
                false => Body::UntilClose,
            });
        }
        Ok(length.map_or(Body::UntilClose, Body::Length))
    }
}

/// Finds the end of one body in a byte stream that is cut anywhere.
///
/// ```
/// use aivtuber_gateway::proto::body::{Body, BodyScanner};
///
/// let mut scanner = BodyScanner::new(Body::Chunked);
/// assert_eq!(scanner.advance(b"5\r\nhel"), Ok(6));
/// assert!(!scanner.is_done());
/// assert_eq!(scanner.advance(b"lo\r\n0\r\n\r\nnext"), Ok(9));
/// assert!(scanner.is_done());
/// ```
#[derive(Clone, Debug)]
pub struct BodyScanner(NextByte);

/// What the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextByte {
    /// One of the bytes left of a body that is not chunked.
    Left(u64),
    UntilClose,
    Done,
    /// A digit of a chunk's size.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind the size, before the end of its line.
    Extension {
        size: u64,
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
    TrailerStart,
    Trailer,
    TrailerLf,
    LastLf,
}

impl BodyScanner {
    /// A scanner at the start of `body`.
    pub fn new(body: Body) -> BodyScanner {
        BodyScanner(match body {
            Body::Empty | Body::Length(0) => NextByte::Done,
            Body::Length(length) => NextByte::Left(length),
            Body::Chunked => NextByte::Size { size: 0, digits: 0 },
            Body::UntilClose => NextByte::UntilClose,
        })
    }

    /// Whether the body is complete. One that ends with its connection is never complete before
    /// that.
    pub fn is_done(&self) -> bool {
        self.0 == NextByte::Done
    }

    /// Whether the body is complete if the connection ends here.
    pub fn may_end(&self) -> bool {
        matches!(self.0, NextByte::Done | NextByte::UntilClose)
    }

    /// Returns how many of `bytes` belong to the body: all of them, or those up to its end.
    ///
    /// # Errors
    /// A phrase, when a chunk is malformed. The end of the body cannot be found any more.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut used = 0;
        while let Some(&byte) = bytes.get(used) {
            let here = (bytes.len() - used) as u64;
            match &mut self.0 {
                NextByte::Done => break,
                NextByte::UntilClose => return Ok(bytes.len()),
                NextByte::Left(left) | NextByte::Chunk { left } => {
                    let passed = here.min(*left);
                    *left -= passed;
                    used += passed as usize;
                    match self.0 {
                        NextByte::Left(0) => self.0 = NextByte::Done,
                        NextByte::Chunk { left: 0 } => self.0 = NextByte::ChunkCr,
                        _ => {}
                    }
                }
                _ => {
                    self.0 = after(self.0, byte)?;
                    used += 1;
                }
            }
        }
        Ok(used)
    }
}

/// What comes behind `byte`, which belongs to the framing of a chunk.
fn after(next: NextByte, byte: u8) -> Result<NextByte, &'static str> {
    Ok(match (next, byte) {
        (
            NextByte::Size { size, digits: digits @ 0..16 },
            b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F',
        ) => {
            let digit = char::from(byte).to_digit(16).unwrap_or_default();
            NextByte::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
        }
        (NextByte::Size { size, digits: 1.. } | NextByte::Extension { size }, b'\r') => {
            NextByte::SizeLf { size }
        }
        (NextByte::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => NextByte::Extension { size },
        (NextByte::Size { .. }, _) => return Err("malformed chunk size"),
        (NextByte::SizeLf { size: 0 }, b'\n') => NextByte::TrailerStart,
        (NextByte::SizeLf { size }, b'\n') => NextByte::Chunk { left: size },
        (NextByte::ChunkCr, b'\r') => NextByte::ChunkLf,
        (NextByte::ChunkLf, b'\n') => NextByte::Size { size: 0, digits: 0 },
        (NextByte::TrailerStart, b'\r') => NextByte::LastLf,
        (NextByte::Trailer, b'\r') => NextByte::TrailerLf,
        (NextByte::TrailerLf, b'\n') => NextByte::TrailerStart,
        (NextByte::LastLf, b'\n') => NextByte::Done,
        (NextByte::Extension { .. } | NextByte::TrailerStart | NextByte::Trailer, b'\n') => {
            return Err("bare LF in a chunked body");
        }
        (NextByte::Extension { size }, _) => NextByte::Extension { size },
        (NextByte::TrailerStart | NextByte::Trailer, _) => NextByte::Trailer,
        _ => return Err("malformed line end in a chunked body"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::http::empty_slots;
    use super::*;

    const CHUNKED: [&str; 4] = [
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "00A;name=\"value\"\r\n0\r\n\r\n0\r\n\r\n\r\n1 \r\nx\r\n000;x\r\nTrailer: a\r\nB: c\r\n\r\n",
        "1f\r\n0123456789012345678901234567890\r\n0\r\nA:\r\n\r\n",
    ];

    #[test]
    fn chunked_bodies_end_at_the_same_byte_however_they_are_cut() {
        for body in CHUNKED.map(str::as_bytes) {
            for cut in 0..body.len() {
                let mut scanner = BodyScanner::new(Body::Chunked);
                assert_eq!(scanner.advance(&body[..cut]), Ok(cut));
                assert!(!scanner.is_done() && !scanner.may_end(), "cut at {cut}");
                assert_eq!(
                    scanner.advance(&[&body[cut..], b"5\r\nmore"].concat()),
                    Ok(body.len() - cut)
                );
                assert!(scanner.is_done() && scanner.may_end());
                assert_eq!(scanner.advance(b"more"), Ok(0));
            }
        }
    }

    #[test]
    fn malformed_chunks_are_rejected_however_they_are_cut() {
        for body in [
            "\r\n",
            "x\r\n",
            ";a\r\n",
            "-1\r\n",
            "0x1\r\n",
            "5\nhello",
            "5;a\nhello",
            "5\r\nhello!",
            "5\r\nhello\n",
            "5\r\nhello\r\r",
            "0\r\n\n",
            "0\r\nA: b\n",
            "0\r\nA: b\rc",
            "10000000000000000\r\n",
        ] {
            assert!(BodyScanner::new(Body::Chunked).advance(body.as_bytes()).is_err(), "{body:?}");
            let mut scanner = BodyScanner::new(Body::Chunked);
            assert!(body.bytes().any(|byte| scanner.advance(&[byte]).is_err()), "{body:?}");
        }
        let mut scanner = BodyScanner::new(Body::Chunked);
        assert_eq!(scanner.advance(b"ffffffffffffffff\r\nabc"), Ok(21));
    }

    #[test]
    fn the_head_says_where_the_body_ends() {
        let body = |status: u16, lines: &str| {
            let bytes = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
            let mut slots = empty_slots();
            let (head, _) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
            Body::of_response(&head)
        };
        assert_eq!(body(200, "Content-Length: 7\r\n"), Ok(Body::Length(7)));
        assert_eq!(body(200, ""), Ok(Body::UntilClose));
        for status in [101, 103, 204, 304] {
            assert_eq!(body(status, "Content-Length: 7\r\n"), Ok(Body::Empty), "{status}");
        }
        let encoded = "Transfer-Encoding: gzip, Chunked\r\n";
        assert_eq!(body(200, encoded), Ok(Body::Chunked));
        assert_eq!(body(500, &format!("Content-Length: 7\r\n{encoded}")), Ok(Body::Chunked));
        assert_eq!(body(200, "Transfer-Encoding: chunked, gzip\r\n"), Ok(Body::UntilClose));
        for length in ["x", "-1", "", "1\r\nContent-Length: 1"] {
            assert!(body(200, &format!("Content-Length: {length}\r\n")).is_err(), "{length:?}");
        }
    }

    #[test]
    fn other_bodies_end_where_the_head_says() {
        assert!(BodyScanner::new(Body::Empty).is_done());
        assert!(BodyScanner::new(Body::Length(0)).is_done());
        let mut length = BodyScanner::new(Body::Length(5));
        assert_eq!(length.advance(b"abc"), Ok(3));
        assert!(!length.may_end());
        assert_eq!(length.advance(b"defg"), Ok(2));
        assert!(length.is_done());
        let mut open = BodyScanner::new(Body::UntilClose);
        assert_eq!(open.advance(b"abc"), Ok(3));
        assert!(!open.is_done() && open.may_end());
    }

    #[test]
    fn random_bytes_neither_panic_nor_depend_on_how_they_are_cut() {
        let mut ended = 0;
        for seed in 0..4000 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let mut bytes = CHUNKED[chance.usize(..4)].as_bytes().to_vec();
            for _ in 0..chance.usize(0..3) {
                let at = chance.usize(..bytes.len());
                bytes[at] = b"\r\n0123;:fF\0\xff"[chance.usize(..12)];
            }
            let mut whole = BodyScanner::new(Body::Chunked);
            let used = whole.advance(&bytes);
            let mut trickled = BodyScanner::new(Body::Chunked);
            let same = bytes
                .iter()
                .try_fold(0, |sum, byte| trickled.advance(&[*byte]).map(|one| sum + one));
            assert_eq!(used, same, "seed {seed}");
            assert_eq!(whole.is_done(), trickled.is_done(), "seed {seed}");
            ended += u32::from(whole.is_done());
        }
        assert!(ended > 500, "only {ended} bodies ended");
    }
}
