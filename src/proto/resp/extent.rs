//! Where a value of the Redis protocol ends.
//!
//! The parser keeps what comes behind a value in its own buffer, which never shrinks. So it gets
//! the bytes of one value at a time, and can be replaced after a large one.

/// Follows a stream from value to value, however it is cut.
#[derive(Debug)]
pub(super) struct Extent {
    /// Values until the end of the outermost one, the current one included.
    left: u64,
    part: Part,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    /// The byte that says what kind of value comes.
    Kind,
    /// The line behind it. `number` is what the digits in it say.
    Line { kind: u8, number: i64, is_negative: bool, is_after_cr: bool },
    /// A string of this many bytes, its line end included.
    Bulk { missing: u64 },
    /// Not the Redis protocol. The parser says so.
    Unknown,
}

/// The bytes behind a string.
const LINE_END: u64 = 2;

impl Extent {
    pub(super) fn new() -> Extent {
        Extent { left: 1, part: Part::Kind }
    }

    /// How many of these bytes belong to the current value, and whether they are its last ones.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            match &mut self.part {
                Part::Kind => {
                    self.part = match byte {
                        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' | b'$' | b'!' | b'='
                        | b'*' | b'~' | b'>' | b'%' | b'|' => Part::Line {
                            kind: byte,
                            number: 0,
                            is_negative: false,
                            is_after_cr: false,
                        },
                        _ => Part::Unknown,
                    };
                    rest = behind;
                }
                Part::Line { kind, number, is_negative, is_after_cr } => {
                    rest = behind;
                    match byte {
                        b'\n' if *is_after_cr => {
                            let (kind, count) = (*kind, if *is_negative { -1 } else { *number });
                            if self.end_line(kind, count) {
                                return (bytes.len() - rest.len(), true);
                            }
                            continue;
                        }
                        b'0'..=b'9' => {
                            let digit = i64::from(byte - b'0');
                            *number = number.saturating_mul(10).saturating_add(digit);
                        }
                        b'-' => *is_negative = true,
                        _ => {}
                    }
                    *is_after_cr = byte == b'\r';
                }
                Part::Bulk { missing } => {
                    let taken = usize::try_from(*missing).unwrap_or(usize::MAX).min(rest.len());
                    *missing -= taken as u64;
                    rest = rest.get(taken..).unwrap_or_default();
                    if *missing == 0 && self.end_value() {
                        return (bytes.len() - rest.len(), true);
                    }
                }
                Part::Unknown => return (bytes.len(), false),
            }
        }
        (bytes.len(), false)
    }

    /// True: the outermost value has ended with it. A negative `count` is that of a null.
    fn end_line(&mut self, kind: u8, count: i64) -> bool {
        let items = u64::try_from(count).unwrap_or(0);
        let inner = match kind {
            b'$' | b'!' | b'=' if count >= 0 => {
                self.part = Part::Bulk { missing: items.saturating_add(LINE_END) };
                return false;
            }
            b'*' | b'~' | b'>' => items,
            b'%' => items.saturating_mul(2),
            // Behind its pairs is the value that they belong to.
            b'|' => items.saturating_mul(2).saturating_add(1),
            _ => 0,
        };
        self.left = self.left.saturating_add(inner);
        self.end_value()
    }

    fn end_value(&mut self) -> bool {
        self.part = Part::Kind;
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        self.left = 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_values_are_found_wherever_the_stream_is_cut() {
        let values: [&[u8]; 19] = [
            b"+OK\r\n",
            b"+a\nb\rc\r\n",
            b"-ERR 12\r\n",
            b":-3\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"$5\r\na\r\nbc\r\n",
            b"*-1\r\n",
            b"*0\r\n",
            b"*2\r\n$1\r\nx\r\n*2\r\n:1\r\n*0\r\n",
            b"_\r\n",
            b",1.5\r\n",
            b"#t\r\n",
            b"(12345678901234567890\r\n",
            b"!3\r\nERR\r\n",
            b"=6\r\ntxt:hi\r\n",
            b"%1\r\n+a\r\n~1\r\n:1\r\n",
            b"|1\r\n+a\r\n:1\r\n$1\r\nx\r\n",
            b">2\r\n+a\r\n:1\r\n",
        ];
        for value in values {
            let shown = String::from_utf8_lossy(value);
            let stream = [value, b"+next\r\n"].concat();
            assert_eq!(Extent::new().advance(&stream), (value.len(), true), "{shown:?}");
            let mut extent = Extent::new();
            for (at, byte) in value.iter().enumerate() {
                let is_last = at + 1 == value.len();
                assert_eq!(extent.advance(&[*byte]), (1, is_last), "{shown:?} at {at}");
            }
            assert_eq!(extent.advance(b":1\r\n:2\r\n"), (4, true), "the next one");
        }
    }

    #[test]
    fn what_is_no_value_has_no_end() {
        for nonsense in [&b"HTTP/1.1 400\r\n\r\n"[..], b"*1\r\n?x\r\n", b"$999999999999\r\nx\r\n"] {
            let mut extent = Extent::new();
            assert_eq!(extent.advance(nonsense), (nonsense.len(), false));
            assert_eq!(extent.advance(b"+OK\r\n"), (5, false));
        }
    }
}
