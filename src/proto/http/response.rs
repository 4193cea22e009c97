//! The head of a backend's response.

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

use super::{BadHead, HEAD_BYTES_MAX, HeadLines, Headers, LineFault, Slots};

/// The head of a backend's response.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct ResponseHead<'h, 'b> {
    /// 100 to 999.
    pub status: u16,
    /// Empty where the backend sent none, or one that is not ASCII.
    pub reason: &'b str,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor_version: u8,
    pub headers: Headers<'h, 'b>,
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// Parses the head at the start of `bytes`; returns it with its length. `Ok(None)`: incomplete;
    /// call again with more bytes behind.
    ///
    /// # Errors
    /// 502 when the head is malformed or over [`HEAD_BYTES_MAX`] or `HEADERS_MAX`.
    pub fn parse(
        bytes: &'b [u8],
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(ResponseHead<'h, 'b>, usize)>, BadHead> {
        ResponseHead::parse_within(bytes, HEAD_BYTES_MAX, slots)
    }

    /// The same, with another limit than [`HEAD_BYTES_MAX`].
    ///
    /// # Errors
    /// As of [`ResponseHead::parse`].
    pub fn parse_within(
        bytes: &'b [u8],
        head_bytes_max: usize,
        slots: &'h mut Slots<'b>,
    ) -> Result<Option<(ResponseHead<'h, 'b>, usize)>, BadHead> {
        let fault = |why| BadHead { status: 502, why };
        let window = &bytes[..bytes.len().min(head_bytes_max)];
        if let [b'\r' | b'\n', ..] = window {
            return Err(fault("response begins with an empty line"));
        }
        let lines = HeadLines::walk(window);
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            lines.sound,
            slots,
        );
        let length = match parsed {
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
                    None if bytes.len() < head_bytes_max => Ok(None),
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
        let headers = Headers::new(response.headers);
        let reason = response.reason.unwrap_or_default();
        Ok(Some((ResponseHead { status, reason, minor_version, headers }, length)))
    }

    /// Whether this is an interim answer, behind which another head follows (1xx except 101, RFC
    /// 9110 §15.2).
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100..=199) && self.status != 101
    }
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

    /// Status, reason, number of headers, length.
    pub type Parsed = (u16, String, usize, usize);

    pub fn read_response(bytes: &[u8]) -> Result<Option<Parsed>, BadHead> {
        let mut slots = empty_slots();
        let Some((head, length)) = ResponseHead::parse(bytes, &mut slots)? else { return Ok(None) };
        Ok(Some((head.status, head.reason.into(), head.headers.iter().count(), length)))
    }

    #[test]
    fn responses_cut_at_each_offset_parse_the_same() {
        for response in RESPONSES.map(str::as_bytes) {
            for cut in 0..response.len() {
                assert_eq!(read_response(&response[..cut]), Ok(None), "cut at {cut}");
            }
            let whole = read_response(response).unwrap().unwrap();
            assert_eq!(whole.3, response.len());
            assert_eq!(read_response(&[response, b"\x81\x05hello\n"].concat()), Ok(Some(whole)));
        }
        let parsed = RESPONSES.map(|response| read_response(response.as_bytes()).unwrap().unwrap());
        assert_eq!(
            (parsed[0].0, parsed[0].1.as_str(), parsed[0].2),
            (101, "Switching Protocols", 2)
        );
        assert_eq!((parsed[1].0, parsed[1].1.as_str()), (503, ""));
        assert_eq!(parsed[2].0, 404);
        assert_eq!(parsed[3].1, "OK then");
    }

    #[test]
    fn interim_answers_are_1xx_other_than_101() {
        for (status, is_interim) in
            [(100, true), (103, true), (199, true), (101, false), (200, false)]
        {
            let bytes = format!("HTTP/1.1 {status} x\r\n\r\n");
            let mut slots = empty_slots();
            let (head, _) = ResponseHead::parse(bytes.as_bytes(), &mut slots).unwrap().unwrap();
            assert_eq!(head.is_interim(), is_interim, "{status}");
        }
    }

    #[test]
    fn malformed_responses_are_rejected_however_they_are_cut() {
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
