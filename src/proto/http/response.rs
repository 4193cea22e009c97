//! The head of a backend's response.

use super::{BadHead, HEAD_BYTES_MAX, Headers, LineFault, Lines, Slots};

/// The head of a backend's response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'h, 'b> {
    /// 100 to 999.
    pub status: u16,
    /// May be empty, and is when it was not ASCII.
    pub reason: &'b str,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor_version: u8,
    pub headers: Headers<'h, 'b>,
    body: Body,
}

/// Where the body of a response to a GET ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none; for 101 the other protocol begins.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// After the last chunk and its trailers: [`BodyScanner`](super::body::BodyScanner) finds it.
    Chunked,
    /// Where the connection ends.
    UntilClose,
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// The head at the start of `bytes`, and its length there. `Ok(None)`: not yet; show it again with more behind.
    ///
    /// # Errors
    /// 502 for what is malformed or over [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`]: the answer that the client deserves.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(ResponseHead<'h, 'b>, usize)>, BadHead> {
        let fault = |why| BadHead { status: 502, why };
        let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        if let [b'\r' | b'\n', ..] = window {
            return Err(fault("response begins with an empty line"));
        }
        let lines = Lines::walk(window);
        let mut response = httparse::Response::new(slots);
        let length = match response.parse(lines.sound) {
            Err(httparse::Error::Version) => return Err(fault("response is not HTTP/1")),
            Err(httparse::Error::Status) => return Err(fault("malformed status line in response")),
            Err(httparse::Error::HeaderName) => {
                return Err(fault("malformed header name in response"));
            }
            Err(_) => return Err(fault("malformed header in response")),
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                return match lines.fault {
                    Some(LineFault::BareLf) => Err(fault("line of response ends with a bare LF")),
                    Some(LineFault::TooMany) => Err(fault("too many headers in response")),
                    None if bytes.len() < HEAD_BYTES_MAX => Ok(None),
                    None => Err(fault("response head is too large")),
                };
            }
        };
        let (Some(status), Some(minor_version)) = (response.code, response.version) else {
            return Err(fault("malformed status line in response"));
        };
        if status < 100 {
            return Err(fault("malformed status line in response"));
        }
        let headers = Headers(response.headers);
        let body = response_body(status, headers).map_err(fault)?;
        let reason = response.reason.unwrap_or_default();
        Ok(Some((ResponseHead { status, reason, minor_version, headers, body }, length)))
    }

    /// Whether this only says that the answer is still to come (1xx but 101, RFC 9110 §15.2): another head follows.
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100..=199) && self.status != 101
    }

    /// Length of the body in bytes, where the head says it: 0 for a status that has none.
    pub fn content_length(&self) -> Option<u64> {
        match self.body {
            Body::Empty => Some(0),
            Body::Length(length) => Some(length),
            Body::Chunked | Body::UntilClose => None,
        }
    }

    /// Where the body ends.
    pub fn body(&self) -> Body {
        self.body
    }
}

fn response_body(status: u16, headers: Headers<'_, '_>) -> Result<Body, &'static str> {
    let length =
        headers.content_length().map_err(|_| "malformed or repeated Content-Length in response")?;
    if matches!(status, 100..=199 | 204 | 304) {
        return Ok(Body::Empty);
    }
    if let Some(last) = headers.elements("transfer-encoding").last() {
        return Ok(if last.eq_ignore_ascii_case(b"chunked") {
            Body::Chunked
        } else {
            Body::UntilClose
        });
    }
    Ok(length.map_or(Body::UntilClose, Body::Length))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::cuts;
    use super::super::{HEADERS_MAX, empty_slots};
    use super::*;

    pub const RESPONSES: [&str; 4] = [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nX:\r\n\r\n",
        "HTTP/1.1 503\r\nContent-Length: 12\r\n\r\n",
        "HTTP/1.0 404 \r\n\r\n",
        "HTTP/1.1 200 OK then\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n",
    ];

    /// Status, reason, body, number of headers, length.
    pub type Answered = (u16, String, Body, usize, usize);

    pub fn read_response(bytes: &[u8]) -> Result<Option<Answered>, BadHead> {
        let mut slots = empty_slots();
        let Some((head, length)) = ResponseHead::parse(bytes, &mut slots)? else { return Ok(None) };
        Ok(Some((
            head.status,
            head.reason.into(),
            head.body(),
            head.headers.iter().count(),
            length,
        )))
    }

    #[test]
    fn responses_cut_at_each_offset_parse_the_same() {
        for response in RESPONSES.map(str::as_bytes) {
            for cut in 0..response.len() {
                assert_eq!(read_response(&response[..cut]), Ok(None), "cut at {cut}");
            }
            let whole = read_response(response).unwrap().unwrap();
            assert_eq!(whole.4, response.len());
            assert_eq!(read_response(&[response, b"\x81\x05hello\n"].concat()), Ok(Some(whole)));
        }
        let said = RESPONSES.map(|response| read_response(response.as_bytes()).unwrap().unwrap());
        assert_eq!(
            (said[0].0, said[0].1.as_str(), said[0].2, said[0].3),
            (101, "Switching Protocols", Body::Empty, 2)
        );
        assert_eq!((said[1].0, said[1].1.as_str(), said[1].2), (503, "", Body::Length(12)));
        assert_eq!((said[2].0, said[2].2), (404, Body::UntilClose));
        assert_eq!((said[3].1.as_str(), said[3].2), ("OK then", Body::Chunked));
    }

    #[test]
    fn bodies_of_responses_end_where_they_say() {
        let body = |status: u16, lines: &str| {
            let bytes = format!("HTTP/1.1 {status} x\r\n{lines}\r\n");
            let mut slots = empty_slots();
            let (head, _) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
            (head.body(), head.content_length(), head.is_interim())
        };
        assert_eq!(body(200, "Content-Length: 7\r\n"), (Body::Length(7), Some(7), false));
        assert_eq!(body(304, "Content-Length: 7\r\n"), (Body::Empty, Some(0), false));
        assert_eq!(body(204, ""), (Body::Empty, Some(0), false));
        assert_eq!(body(103, "Link: a\r\n"), (Body::Empty, Some(0), true));
        assert_eq!(body(101, ""), (Body::Empty, Some(0), false));
        assert_eq!(
            body(200, "Transfer-Encoding: chunked, gzip\r\n"),
            (Body::UntilClose, None, false)
        );
        assert_eq!(
            body(500, "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n"),
            (Body::Chunked, None, false)
        );
    }

    #[test]
    fn bad_responses_are_bad_gateways() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "v".repeat(HEAD_BYTES_MAX));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        for response in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 OK\nA: b\n\n",
            "HTTP/1.1 200 O\rK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            &long,
            &many,
        ] {
            assert_eq!(
                read_response(response.as_bytes()).unwrap_err().status,
                502,
                "{response:.80}"
            );
            for cut in cuts(response.len()) {
                let status =
                    read_response(&response.as_bytes()[..cut]).map_err(|fault| fault.status);
                assert!(
                    matches!(status, Ok(None) | Err(502)),
                    "{response:.80} cut at {cut}: {status:?}"
                );
            }
        }
    }
}
