//! Paths that a backend might read as other paths than they seem to be.
//!
//! The gateway compares paths as they are written and passes them on unchanged. A backend, or
//! something in front of it, may decode them, even twice, cut them at a `;` or a NUL, or tidy them.
//! A path that then leads out of its folder would reach what no route is meant for.

/// How often a path is decoded to find out what it may mean. One that still changes then was
/// written by an attacker.
const DECODINGS_MAX: usize = 8;

/// Whether a backend might read `path` as leading upwards, or to somewhere else: whether one of its
/// segments is `.` or `..`, or it holds a NUL, as it is or however it is encoded.
///
/// ```
/// use aivtuber_gateway::proto::path::is_misleading;
///
/// assert!(is_misleading("/ws/output/..%2fadmin"));
/// assert!(is_misleading("/ws/output/%252e%252e;x"));
/// assert!(!is_misleading("/ws/output/a%2Fb..c"));
/// ```
pub fn is_misleading(path: &str) -> bool {
    if memchr::memchr2(b'.', b'%', path.as_bytes()).is_none() {
        return false;
    }
    if has_dot_segment(path.as_bytes()) {
        return true;
    }
    if !path.contains('%') {
        return false;
    }
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..DECODINGS_MAX {
        let decoded = fold(&decode(&bytes));
        if decoded.contains(&0) || has_dot_segment(&decoded) {
            return true;
        }
        if decoded == bytes {
            return false;
        }
        bytes = decoded;
    }
    true
}

/// Whether a segment is `.` or `..` to one that also separates at `\`, cuts at the characters that
/// begin parameters, a query or a fragment, or drops white space.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let segment = segment.split(|byte| matches!(byte, b';' | b'?' | b'#')).next();
        let mut seen = segment.unwrap_or_default().iter().filter(|byte| **byte > b' ');
        matches!((seen.next(), seen.next(), seen.next()), (Some(b'.'), None | Some(b'.'), None))
    })
}

/// Decodes `%xx`, and `%uxxxx` as IIS reads it, once.
fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        if first != b'%' {
            decoded.push(first);
            continue;
        }
        if let Some((digits, behind)) = behind.split_first_chunk::<2>()
            && let Some(code) = hexadecimal(digits)
        {
            decoded.push(code as u8);
            rest = behind;
        } else if let Some((&[b'u' | b'U', ref digits @ ..], behind)) =
            behind.split_first_chunk::<5>()
            && let Some(code) = hexadecimal(digits).and_then(char::from_u32)
        {
            decoded.extend_from_slice(code.encode_utf8(&mut [0; 4]).as_bytes());
            rest = behind;
        } else {
            decoded.push(first);
        }
    }
    decoded
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?))
}

/// Writes as ASCII what is ASCII to a careless reader: characters in more bytes than they need
/// (`%c0%ae` is a dot, RFC 3629 section 10), and full-width ones.
fn fold(bytes: &[u8]) -> Vec<u8> {
    let mut folded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, behind)) = rest.split_first() {
        let (sign, behind) = match *rest {
            [high @ (0xc0 | 0xc1), low @ 0x80..0xc0, ref behind @ ..]
            | [0xe0, high @ (0x80 | 0x81), low @ 0x80..0xc0, ref behind @ ..]
            | [0xf0, 0x80, high @ (0x80 | 0x81), low @ 0x80..0xc0, ref behind @ ..]
            | [0xf8, 0x80, 0x80, high @ (0x80 | 0x81), low @ 0x80..0xc0, ref behind @ ..] => {
                ((high & 1) << 6 | (low & 0x3f), behind)
            }
            // U+FF01 to U+FF5E.
            [0xef, 0xbc, low @ 0x81..0xc0, ref behind @ ..] => ((low & 0x3f) + 0x20, behind),
            [0xef, 0xbd, low @ 0x80..0x9f, ref behind @ ..] => ((low & 0x3f) + 0x60, behind),
            _ => (first, behind),
        };
        folded.push(sign);
        rest = behind;
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way in which a character may be written.
    fn spellings(sign: char) -> Vec<String> {
        let code = sign as u32;
        let bytes = |bytes: &[u32]| bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
        let mut spellings = vec![
            sign.to_string(),
            format!("%{code:02x}"),
            format!("%{code:02X}"),
            format!("%25{code:02x}"),
            format!("%2525{code:02x}"),
            format!("%%{:02x}{:x}", u32::from(b'0') + (code >> 4), code & 15),
            format!("%u00{code:02x}"),
            format!("%U00{code:02X}"),
            bytes(&[0xc0 | code >> 6, 0x80 | code & 0x3f]),
            bytes(&[0xe0, 0x80 | code >> 6, 0x80 | code & 0x3f]),
            bytes(&[0xf0, 0x80, 0x80 | code >> 6, 0x80 | code & 0x3f]),
        ];
        if code > 0x20 {
            let wide = char::from_u32(code + 0xfee0).unwrap();
            spellings.push(format!("%u{:04x}", wide as u32));
            spellings.push(bytes(&wide.to_string().bytes().map(u32::from).collect::<Vec<_>>()));
        }
        spellings
    }

    #[test]
    fn no_way_to_write_dots_hides_them() {
        for (one, other) in spellings('.').iter().zip(spellings('.').iter().rev()) {
            for segment in [one.clone(), format!("{one}{other}"), format!("{other}{one}")] {
                for path in [format!("/a/{segment}"), format!("/{segment}/a"), segment.clone()] {
                    assert!(is_misleading(&path), "{path}");
                }
            }
        }
    }

    #[test]
    fn no_way_to_write_what_ends_a_segment_hides_dots() {
        for sign in ['/', '\\', ';', '?', '#', ' ', '\t', '\r', '\n'] {
            for written in spellings(sign).iter().skip(usize::from(!sign.is_ascii_graphic())) {
                for path in [format!("/a/..{written}"), format!("/a/%2e{written}")] {
                    assert!(is_misleading(&path), "{path}");
                }
                if sign.is_ascii_graphic() {
                    assert!(is_misleading(&format!("/a/..{written}x")), "..{written}x");
                }
            }
        }
        for path in ["/a%2f../b", "/a%5c%2e", "/.%09./a", "/a/..%20;x", "/a/%0a.."] {
            assert!(is_misleading(path), "{path}");
        }
    }

    #[test]
    fn no_path_holds_a_nul() {
        for written in spellings('\0').iter().skip(1) {
            for path in
                [format!("/a/{written}"), format!("/a/..{written}x"), format!("/{written}a")]
            {
                assert!(is_misleading(&path), "{path}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_dots_is_fine() {
        for path in [
            "/",
            "",
            "/ws/output/7",
            "/a.b/c..d/...",
            "/.a/a./..a/a..",
            "/.well-known/x",
            "/a%2Fb",
            "/a%5Cb%3Bc",
            "/100%25",
            "/100%",
            "/%zz/%2",
            "/%E3%81%82.%E3%80%82",
            "/%u3042",
            "/a%20.b",
            "/;a=..b",
            "/%2e2e",
            "/a;..",
        ] {
            assert!(!is_misleading(path), "{path}");
        }
    }

    #[test]
    fn a_path_that_is_encoded_without_end_is_refused() {
        assert!(!is_misleading(&format!("/%{}41", "25".repeat(6))));
        assert!(is_misleading(&format!("/%{}41", "25".repeat(4000))));
    }
}
