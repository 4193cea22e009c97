//! The PROXY protocol, versions 1 and 2: what a proxy sends in front of a connection, to say whose
//! it is. <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>
//!
//! `ppp` parses. It is given whole headers only: where one ends, and how long it may be, is decided
//! here, because `ppp` waits for more of some headers that can never become valid.

#![expect(clippy::indexing_slicing, reason = "what is cut has been found in the same bytes")]

use std::fmt;
use std::net::SocketAddr;

/// The longest header that is accepted: version 2 may carry any number of bytes in TLVs.
pub const HEADER_BYTES_MAX: usize = 4096;

/// The longest header of version 1, its line end included (section 2.1).
const LINE_BYTES_MAX: usize = 107;

/// What version 1 begins with.
const LINE_PREFIX: &[u8] = b"PROXY ";

/// What version 2 begins with (section 2.2), and the bytes up to the end of the length.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const PREAMBLE_BYTES: usize = 16;

/// A header of version 2 that says that the connection is the sender's own, as for health checks.
pub const LOCAL: &[u8; PREAMBLE_BYTES] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Whose connection it is, as a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderSource {
    /// The proxy's own (`LOCAL`).
    Proxy,
    /// A client's.
    Address(SocketAddr),
    /// A client's whose address is not given, or is no address of TCP.
    Unknown,
}

/// Why bytes are no header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadHeader {
    /// They begin like none.
    Missing,
    /// It is longer than allowed.
    TooLong,
    /// It breaks the protocol; what is wrong in words.
    Malformed(String),
}

/// A phrase for the log.
impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadHeader::Missing => f.write_str("it does not begin with one"),
            BadHeader::TooLong => f.write_str("it is too long"),
            BadHeader::Malformed(why) => f.write_str(why),
        }
    }
}

/// Whether bytes that may be the beginning of more begin a header, as far as they go.
fn can_begin(bytes: &[u8], beginning: &[u8]) -> bool {
    let length = bytes.len().min(beginning.len());
    bytes[..length] == beginning[..length]
}

/// Whether `bytes` begin with what a header begins with.
pub fn is_begun(bytes: &[u8]) -> bool {
    bytes.starts_with(LINE_PREFIX) || bytes.starts_with(SIGNATURE)
}

/// Reads the header that `bytes` begin with. Returns its length too; `None` while it is not whole.
///
/// # Errors
/// However the bytes go on, they are no header.
pub fn parse(bytes: &[u8]) -> Result<Option<(HeaderSource, usize)>, BadHeader> {
    if can_begin(bytes, LINE_PREFIX) {
        parse_line(bytes)
    } else if can_begin(bytes, SIGNATURE) {
        parse_binary(bytes)
    } else {
        Err(BadHeader::Missing)
    }
}

fn parse_line(bytes: &[u8]) -> Result<Option<(HeaderSource, usize)>, BadHeader> {
    use ppp::v1::{Addresses, Header};
    let first = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let length = match memchr::memchr(b'\n', first) {
        Some(at) => at + 1,
        None if bytes.len() >= LINE_BYTES_MAX => return Err(BadHeader::TooLong),
        None => return Ok(None),
    };
    let header = Header::try_from(&bytes[..length])
        .map_err(|error| BadHeader::Malformed(error.to_string()))?;
    let source = match header.addresses {
        Addresses::Tcp4(ends) => {
            HeaderSource::Address(SocketAddr::from((ends.source_address, ends.source_port)))
        }
        Addresses::Tcp6(ends) => {
            HeaderSource::Address(SocketAddr::from((ends.source_address, ends.source_port)))
        }
        Addresses::Unknown => HeaderSource::Unknown,
    };
    Ok(Some((source, length)))
}

fn parse_binary(bytes: &[u8]) -> Result<Option<(HeaderSource, usize)>, BadHeader> {
    use ppp::v2::{Addresses, Command, Header, Protocol};
    let Some(preamble) = bytes.get(..PREAMBLE_BYTES) else { return Ok(None) };
    let length = PREAMBLE_BYTES + usize::from(u16::from_be_bytes([preamble[14], preamble[15]]));
    // What is wrong in the preamble is reported before the rest has come.
    let is_whole = bytes.len() >= length;
    let known = if is_whole { &bytes[..length] } else { preamble };
    let header = match Header::try_from(known) {
        Err(ppp::v2::ParseError::Partial(..)) if !is_whole && length <= HEADER_BYTES_MAX => {
            return Ok(None);
        }
        Err(ppp::v2::ParseError::Partial(..)) => return Err(BadHeader::TooLong),
        Err(error) => return Err(BadHeader::Malformed(error.to_string())),
        Ok(_) if length > HEADER_BYTES_MAX => return Err(BadHeader::TooLong),
        Ok(header) => header,
    };
    let source = match (header.command, header.protocol, header.addresses) {
        (Command::Local, ..) => HeaderSource::Proxy,
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(ends)) => {
            HeaderSource::Address(SocketAddr::from((ends.source_address, ends.source_port)))
        }
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(ends)) => {
            HeaderSource::Address(SocketAddr::from((ends.source_address, ends.source_port)))
        }
        (Command::Proxy, ..) => HeaderSource::Unknown,
    };
    Ok(Some((source, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2 with these two bytes behind the signature, and this rest.
    fn binary(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, &[version_and_command, family], &length, rest].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 7, 192, 0, 2, 1, 0x13, 0x88, 0x1f, 0x40];

    fn ipv6() -> Vec<u8> {
        let source: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        [source.octets().as_slice(), &[0; 16], &[0x13, 0x88], &[0x1f, 0x40]].concat()
    }

    /// Every kind of header, and what it says.
    fn headers() -> Vec<(Vec<u8>, HeaderSource)> {
        let v4 = HeaderSource::Address("192.0.2.7:5000".parse().unwrap());
        let v6 = HeaderSource::Address("[2001:db8::7]:5000".parse().unwrap());
        let with_tlvs = [IPV4.as_slice(), &[0x04, 0, 3, 1, 2, 3, 0xee, 0, 0]].concat();
        let longest = [IPV4.as_slice(), &vec![0; HEADER_BYTES_MAX - 16 - 12]].concat();
        let worst = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert_eq!(worst.len(), LINE_BYTES_MAX);
        vec![
            (b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 8000\r\n".to_vec(), v4),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 8000\r\n".to_vec(), v6),
            (b"PROXY UNKNOWN\r\n".to_vec(), HeaderSource::Unknown),
            (b"PROXY UNKNOWN anything 1 2\r\n".to_vec(), HeaderSource::Unknown),
            (worst.into_bytes(), HeaderSource::Unknown),
            (binary(0x21, 0x11, &IPV4), v4),
            (binary(0x21, 0x11, &with_tlvs), v4),
            (binary(0x21, 0x11, &longest), v4),
            (binary(0x21, 0x21, &ipv6()), v6),
            (binary(0x21, 0x00, b""), HeaderSource::Unknown),
            (binary(0x21, 0x12, &IPV4), HeaderSource::Unknown),
            (binary(0x21, 0x31, &[b'/'; 216]), HeaderSource::Unknown),
            (LOCAL.to_vec(), HeaderSource::Proxy),
            (binary(0x20, 0x11, &IPV4), HeaderSource::Proxy),
        ]
    }

    /// Every header is read whole, in each of its beginnings, and with more behind it.
    #[test]
    fn every_header_is_read_at_every_split() {
        for (header, source) in headers() {
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Ok(None), "{cut} of {header:?}");
            }
            let whole = Ok(Some((source, header.len())));
            assert_eq!(parse(&header), whole, "{header:?}");
            for behind in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"\x16\x03\x01\0\r\n", &header] {
                assert_eq!(parse(&[&header, behind].concat()), whole, "{header:?}");
            }
        }
    }

    /// Nothing waits for more of what can never become a header.
    #[test]
    fn what_is_no_header_is_refused_as_soon_as_it_shows() {
        for bytes in
            [b"GET / HTTP/1.1\r\n".as_slice(), b"\x16\x03\x01", b"\r\nG", b"proxy ", b"PROXZ"]
        {
            assert_eq!(parse(bytes), Err(BadHeader::Missing), "{bytes:?}");
            let shows = (1..=bytes.len()).find(|cut| parse(&bytes[..*cut]).is_err());
            assert_eq!(parse(&bytes[..shows.unwrap() - 1]), Ok(None));
        }
        for line in [
            "PROXY \r\n",
            "PROXY\r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 192.0.2.7\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 5000\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 5000 8000\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 5000 8000 9000\r\n",
            "PROXY TCP4 192.0.2.7 192.0.2.1 65536 8000\r\n",
            "PROXY TCP4 192.0.2.07 192.0.2.1 5000 8000\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 5000 8000\r\n",
            "PROXY  TCP4 192.0.2.7 192.0.2.1 5000 8000\r\n",
            "PROXY tcp4 192.0.2.7 192.0.2.1 5000 8000\r\n",
            "PROXY TCP5 192.0.2.7 192.0.2.1 5000 8000\r\n",
            "PROXY\rTCP4 192.0.2.7 192.0.2.1 5000 8000\r\n",
            "PROXY TCP4 \r192.0.2.7 192.0.2.1 5000 8000\r\n",
            "PROXY TCP4 \u{6c49} 192.0.2.1 5000 8000\r\n",
            "PROXY UNKNOWN\r\r\n",
            "PROXY UNKNOWN\n",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?}");
        }
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        assert_eq!(parse(&endless[..LINE_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(&endless[..LINE_BYTES_MAX]), Err(BadHeader::TooLong));
        let one_more = format!("PROXY UNKNOWN {0} {0} 65535 65535 \r\n", ["ffff"; 8].join(":"));
        assert_eq!(parse(one_more.as_bytes()), Err(BadHeader::TooLong));
    }

    #[test]
    fn a_bad_binary_header_is_refused_by_its_preamble() {
        for (version_and_command, family, length) in [
            (0x11, 0x11, 12),     // version 1
            (0x31, 0x11, 12),     // version 3
            (0x22, 0x11, 12),     // no such command
            (0x21, 0x41, 12),     // no such family
            (0x21, 0x13, 12),     // no such protocol
            (0x21, 0x11, 11),     // too short for its addresses
            (0x21, 0x21, 35),     // the same
            (0x21, 0x31, 215),    // the same
            (0x21, 0x11, 0xffff), // longer than allowed
            (0x20, 0x00, (HEADER_BYTES_MAX - 15) as u16),
        ] {
            let length: [u8; 2] = u16::to_be_bytes(length);
            let preamble = [SIGNATURE, &[version_and_command, family], &length].concat();
            assert!(parse(&preamble).is_err(), "{version_and_command:x} {family:x}");
            assert_eq!(parse(&preamble[..15]), Ok(None));
            assert!(parse(&[preamble, vec![0; 70_000]].concat()).is_err());
        }
    }

    /// Whatever comes, nothing panics, and no more is waited for than the longest header.
    #[test]
    fn garbage_is_refused_or_bounded() {
        let mut chance = fastrand::Rng::with_seed(1);
        let headers = headers();
        for _ in 0..20_000 {
            let mut bytes = headers[chance.usize(..headers.len())].0.clone();
            for _ in 0..chance.usize(1..4) {
                let at = chance.usize(..bytes.len().min(120));
                bytes[at] = chance.u8(..);
            }
            bytes.extend(vec![chance.u8(..); HEADER_BYTES_MAX]);
            if let Ok(done) = parse(&bytes) {
                let (_, length) = done.expect("it is longer than any header");
                assert!(length <= HEADER_BYTES_MAX);
            }
        }
    }
}
