//! As much of the Redis protocol (RESP2) as a publisher and a subscriber need.
//!
//! Values are read in place, without copying them out of the receive buffer.

use crate::Fault;

/// One value at the start of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Integer(i64),
    /// A simple string or a bulk string; a null bulk string is empty.
    Bytes(&'a [u8]),
    Error(&'a [u8]),
    Array(Vec<Value<'a>>),
}

/// Appends a command.
pub fn push_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The value at the start of `bytes` and its length; `Ok(None)` while it is incomplete.
pub fn parse(bytes: &[u8]) -> Result<Option<(Value<'_>, usize)>, Fault> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let (line, after) = (&bytes[1..end], end + 2);
    let number = || -> Result<i64, Fault> {
        let text = std::str::from_utf8(line).unwrap_or_default();
        text.parse().map_err(|_| format!("not a number in RESP: {text:?}"))
    };
    Ok(match bytes[0] {
        b'+' => Some((Value::Bytes(line), after)),
        b'-' => Some((Value::Error(line), after)),
        b':' => Some((Value::Integer(number()?), after)),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Some((Value::Bytes(b""), after)),
            Ok(length) if bytes.len() < after + length + 2 => None,
            Ok(length) => Some((Value::Bytes(&bytes[after..after + length]), after + length + 2)),
        },
        b'*' => {
            let (mut values, mut at) = (Vec::new(), after);
            for _ in 0..number()? {
                match parse(&bytes[at..])? {
                    Some((value, length)) => {
                        values.push(value);
                        at += length;
                    }
                    None => return Ok(None),
                }
            }
            Some((Value::Array(values), at))
        }
        other => return Err(format!("not RESP: a value begins with {:?}", other as char)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_parse_whole_and_wait_at_every_cut() {
        let wire = b"*4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$2\r\nab\r\n$4\r\n\r\n{}\r\n";
        for cut in 0..wire.len() {
            assert_eq!(parse(&wire[..cut]), Ok(None), "cut at {cut}");
        }
        let words: Vec<Value> =
            [&b"pmessage"[..], b"a*", b"ab", b"\r\n{}"].map(Value::Bytes).to_vec();
        let mut longer = wire.to_vec();
        longer.push(b'+');
        assert_eq!(parse(&longer), Ok(Some((Value::Array(words), wire.len()))));
    }

    #[test]
    fn every_kind_of_value() {
        assert_eq!(parse(b":-3\r\n"), Ok(Some((Value::Integer(-3), 5))));
        assert_eq!(parse(b"$-1\r\n"), Ok(Some((Value::Bytes(b""), 5))));
        assert_eq!(parse(b"+OK\r\n:1\r\n"), Ok(Some((Value::Bytes(b"OK"), 5))));
        assert_eq!(parse(b"-ERR no\r\n"), Ok(Some((Value::Error(b"ERR no"), 9))));
        assert!(parse(b"!3\r\n").is_err());
        assert!(parse(b":x\r\n").is_err());
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut wire = Vec::new();
        push_command(&mut wire, &[b"PUBLISH", b"c", b""]);
        assert_eq!(wire, b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$0\r\n\r\n");
    }
}
