//! What a client accepts (RFC 9110 §12.5): content codings, and pages.

use super::{Headers, is_named};

/// A weight of 1, in thousandths.
const WHOLE: u16 = 1000;

/// How content is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Coding {
    Brotli,
    Gzip,
}

impl Coding {
    /// The word in `Content-Encoding` and `Accept-Encoding`.
    pub fn word(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// The codings that a client prefers to none, the best one first. Of equal ones it is Brotli,
    /// which is smaller.
    ///
    /// ```text
    /// Accept-Encoding: gzip, deflate, br     Brotli, Gzip
    /// Accept-Encoding: br;q=0.5, gzip        Gzip, Brotli
    /// Accept-Encoding: identity, gzip;q=0.5  nothing
    /// ```
    pub fn accepted(headers: &Headers<'_, '_>) -> &'static [Coding] {
        let (mut brotli, mut gzip, mut identity, mut others) = (None, None, None, 0);
        for (coding, weight) in headers.elements("accept-encoding").filter_map(weighted) {
            match coding {
                b"*" => others = weight,
                _ if is_named(coding, "br") => brotli = Some(weight),
                _ if is_named(coding, "gzip") || is_named(coding, "x-gzip") => gzip = Some(weight),
                _ if is_named(coding, "identity") => identity = Some(weight),
                _ => {}
            }
        }
        let least = identity.unwrap_or(0).max(1);
        let [brotli, gzip] = [brotli, gzip].map(|weight| weight.unwrap_or(others));
        match (brotli >= least, gzip >= least) {
            (true, true) if gzip > brotli => &[Coding::Gzip, Coding::Brotli],
            (true, true) => &[Coding::Brotli, Coding::Gzip],
            (true, false) => &[Coding::Brotli],
            (false, true) => &[Coding::Gzip],
            (false, false) => &[],
        }
    }
}

/// Whether a client asks for pages by name, as browsers do for what people see. `*/*` does not
/// count: scripts, images and `fetch` send it, and are better off with an error than with a page.
pub fn accepts_html(headers: &Headers<'_, '_>) -> bool {
    let ranges = headers.elements("accept").filter_map(weighted);
    let mut pages = ranges.filter(|(range, _)| is_named(range, "text/html"));
    pages.any(|(_, weight)| weight > 0)
}

/// An element of a list and its weight in thousandths; `None` if the weight cannot be read.
fn weighted(element: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let value = parts.next()?;
    let weight = parts.find_map(|part| match part {
        [b'q' | b'Q', b'=', weight @ ..] => Some(weight),
        _ => None,
    });
    Some((value, weight.map_or(Some(WHOLE), thousandths)?))
}

/// `0`, `0.` or `1.` with up to three digits (RFC 9110 §12.4.2).
fn thousandths(weight: &[u8]) -> Option<u16> {
    let (whole, digits) = match weight {
        [whole @ (b'0' | b'1')] => (whole, &b""[..]),
        [whole @ (b'0' | b'1'), b'.', digits @ ..] if digits.len() <= 3 => (whole, digits),
        _ => return None,
    };
    let mut value = u16::from(whole - b'0');
    for place in 0..3 {
        let digit = *digits.get(place).unwrap_or(&b'0');
        value = value * 10 + u16::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    (value <= WHOLE).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::super::{RequestHead, empty_slots};
    use super::*;

    fn with_headers<T>(lines: &str, read: impl FnOnce(&Headers<'_, '_>) -> T) -> T {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut slots = empty_slots();
        let head = RequestHead::parse(request.as_bytes(), &mut slots).unwrap().unwrap().0;
        read(&head.headers)
    }

    #[test]
    fn codings_are_chosen_by_weight() {
        use Coding::{Brotli, Gzip};
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", &[Brotli, Gzip][..]),
            ("gzip", &[Gzip]),
            ("x-gzip", &[Gzip]),
            ("BR", &[Brotli]),
            ("br;q=0.5, gzip", &[Gzip, Brotli]),
            ("br ; q=0.501 , gzip; Q=0.5", &[Brotli, Gzip]),
            ("br;q=0, gzip", &[Gzip]),
            ("br;q=0.000, gzip;q=0", &[]),
            ("*", &[Brotli, Gzip]),
            ("*;q=0", &[]),
            ("gzip, *;q=0", &[Gzip]),
            ("gzip;q=0, *", &[Brotli]),
            ("identity, gzip;q=0.5", &[]),
            ("identity;q=0.5, gzip;q=0.5", &[Brotli, Gzip][1..]),
            ("identity;q=0, gzip;q=0.1", &[Gzip]),
            ("deflate", &[]),
            ("", &[]),
            ("gzip;q=2, br;q=x", &[]),
            ("gzip;q=0.1234", &[]),
            ("gzip;q=1.001", &[]),
            ("gzip;q=0.-1", &[]),
            ("gzip;level=9;q=0.4", &[Gzip]),
            ("brotli, gzipped", &[]),
        ] {
            let found = with_headers(&format!("Accept-Encoding: {accepted}\r\n"), Coding::accepted);
            assert_eq!(found, expected, "{accepted:?}");
        }
        assert_eq!(with_headers("", Coding::accepted), [], "no header");
        let two = "Accept-Encoding: gzip\r\nAccept-Encoding: br;q=0.1\r\n";
        assert_eq!(with_headers(two, Coding::accepted), [Gzip, Brotli]);
    }

    #[test]
    fn pages_are_asked_for_by_name() {
        for (accepted, expected) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("Text/HTML", true),
            ("application/json, text/html;q=0.1", true),
            ("text/html;level=1", true),
            ("text/html;q=0", false),
            ("*/*", false),
            ("text/*", false),
            ("application/json", false),
            ("text/htmlx", false),
            ("", false),
        ] {
            let found = with_headers(&format!("Accept: {accepted}\r\n"), accepts_html);
            assert_eq!(found, expected, "{accepted:?}");
        }
        assert!(!with_headers("", accepts_html), "no header");
    }
}
