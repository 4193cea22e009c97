//! Base64 (RFC 4648, section 4) of audio, by way of the crate `base64-simd`.
//!
//! Speech that is pushed as base64 is much of the text that a gateway reads, so it is decoded with
//! the vector instructions of the processor, where it has any.

use base64_simd::{AsOut, STANDARD, STANDARD_NO_PAD};

/// Decodes `text`, with or without padding, into the front of `buffer`, which is made longer if it
/// is too short. Returns the number of decoded bytes; `None`: it is not base64.
pub fn decode(text: &[u8], buffer: &mut Vec<u8>) -> Option<usize> {
    // Padding may be left out, as RFC 4648 allows where the length is known.
    let base64 = if text.len().is_multiple_of(4) { STANDARD } else { STANDARD_NO_PAD };
    let length = base64.decoded_length(text).ok()?;
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let decoded = base64.decode(text, buffer.get_mut(..length)?.as_out()).ok()?;
    Some(decoded.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::{BASE64, BASE64_NOPAD};

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
