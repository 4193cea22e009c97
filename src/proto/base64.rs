//! Base64 (RFC 4648, section 4), decoded sixteen characters at a time.
//!
//! Speech that is pushed as base64 spends more time here than anywhere else. The end of a text,
//! with its padding and the bits that must be zero, is left to `data_encoding`.

#![expect(clippy::indexing_slicing, reason = "a byte is always a place in a table of 256")]

use data_encoding::{BASE64, BASE64_NOPAD};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Set in the entry of a byte that is not in the alphabet; the decoded bits are below.
const INVALID: u32 = 1 << 24;

/// What a character contributes to the three bytes of its group, by its place in the group. The
/// first byte is the lowest.
const TABLES: [[u32; 256]; 4] = tables();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which checks it")]
const fn tables() -> [[u32; 256]; 4] {
    let mut tables = [[INVALID; 256]; 4];
    let mut value = 0;
    while value < 64 {
        let (bits, at) = (value as u32, ALPHABET[value] as usize);
        tables[0][at] = bits << 2;
        tables[1][at] = bits >> 4 | (bits & 0xf) << 12;
        tables[2][at] = bits >> 2 << 8 | (bits & 3) << 22;
        tables[3][at] = bits << 16;
        value += 1;
    }
    tables
}

/// Decodes `text`, with or without padding, into the front of `buffer`, which is made longer if it
/// is too short. Returns the number of decoded bytes; `None`: it is not base64.
pub fn decode(text: &[u8], buffer: &mut Vec<u8>) -> Option<usize> {
    // At least one character is left, so that padding is never here.
    let (groups, _) = text.get(..text.len().saturating_sub(1))?.as_chunks::<16>();
    let end = text.get(groups.len() * 16..)?;
    // Padding may be left out, as RFC 4648 allows where the length is known.
    let encoding = if text.len().is_multiple_of(4) { &BASE64 } else { &BASE64_NOPAD };
    let (start, room) = (groups.len() * 12, encoding.decode_len(end.len()).ok()?);
    if buffer.len() < start + room {
        buffer.resize(start + room, 0);
    }
    let (front, back) = buffer.split_at_mut_checked(start)?;
    let mut seen = 0;
    for (characters, bytes) in groups.iter().zip(front.as_chunks_mut::<12>().0) {
        let &[a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = characters;
        let (a, b) = (group(a0, a1, a2, a3), group(b0, b1, b2, b3));
        let (c, d) = (group(c0, c1, c2, c3), group(d0, d1, d2, d3));
        seen |= a | b | c | d;
        let low = u64::from(a) | u64::from(b) << 24 | u64::from(c) << 48;
        let high = c >> 16 | d << 8;
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
    }
    let rest = encoding.decode_mut(end, back.get_mut(..room)?).ok()?;
    (seen & INVALID == 0).then_some(start + rest)
}

/// The three bytes of four characters. Takes single bytes: of a slice each would be checked.
#[inline(always)]
fn group(first: u8, second: u8, third: u8, fourth: u8) -> u32 {
    TABLES[0][usize::from(first)]
        | TABLES[1][usize::from(second)]
        | TABLES[2][usize::from(third)]
        | TABLES[3][usize::from(fourth)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = vec![0xee; 7];
        let length = decode(text, &mut buffer)?;
        Some(buffer[..length].to_vec())
    }

    #[test]
    fn every_length_decodes_to_what_was_encoded() {
        let bytes: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        for length in 0..bytes.len() {
            let bytes = &bytes[bytes.len() - length..];
            for encoding in [&BASE64, &BASE64_NOPAD] {
                let text = encoding.encode(bytes);
                assert_eq!(decoded(text.as_bytes()).as_deref(), Some(bytes), "{text}");
            }
        }
    }

    #[test]
    fn a_byte_outside_the_alphabet_is_found_wherever_it_is() {
        let text = BASE64.encode(&[0x5a; 49]).into_bytes();
        for at in 0..text.len() {
            for byte in 0..=255 {
                let mut text = text.clone();
                text[at] = byte;
                assert_eq!(decoded(&text), BASE64.decode(&text).ok(), "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn padding_and_unused_bits_are_as_they_must_be() {
        for (text, is_base64) in [
            ("", true),
            ("A", false),
            ("AA", true),
            ("AB", false),
            ("AA==", true),
            ("AA=", false),
            ("AAAA====", false),
            ("=AAA", false),
            ("AAAAAAAAAAAAAAAAAAA=", true),
            ("AAAAAAAAAAAAAAAAAAB=", false),
            ("AAAAAAAAAAAAAA==AAAAAAAA", false),
        ] {
            assert_eq!(decoded(text.as_bytes()).is_some(), is_base64, "{text}");
        }
    }
}
