//! Media types of audio: by a file's name, else by its first bytes.

use std::path::Path;

/// How many first bytes of a file are enough to recognise it.
pub const FIRST_BYTES: usize = 12;

/// The media type of an audio file, by its extension; `None` if the extension is not known.
pub fn by_name(name: &Path) -> Option<&'static str> {
    const EXTENSIONS: [(&str, &str); 9] = [
        ("wav", "audio/wav"),
        ("mp3", "audio/mpeg"),
        ("ogg", "audio/ogg"),
        ("opus", "audio/ogg"),
        ("webm", "audio/webm"),
        ("m4a", "audio/mp4"),
        ("aac", "audio/aac"),
        ("flac", "audio/flac"),
        ("pcm", "audio/pcm"),
    ];
    let extension = name.extension()?.to_str()?;
    let known = EXTENSIONS.iter().find(|(known, _)| extension.eq_ignore_ascii_case(known))?;
    Some(known.1)
}

/// The media type of audio that begins like this; `None` if it is not recognised.
pub fn by_first_bytes(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [b'R', b'I', b'F', b'F' | b'X', _, _, _, _, b'W', b'A', b'V', b'E', ..] => {
            Some("audio/wav")
        }
        [b'O', b'g', b'g', b'S', ..] => Some("audio/ogg"),
        [b'f', b'L', b'a', b'C', ..] => Some("audio/flac"),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some("audio/webm"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some("audio/mp4"),
        [b'I', b'D', b'3', ..] => Some("audio/mpeg"),
        // A frame of MPEG audio: 11 bits of 1, then version and layer. AAC has layer 0 (ADTS).
        [0xff, second, ..] if second & 0xf6 == 0xf0 => Some("audio/aac"),
        [0xff, second, ..] if second & 0xe0 == 0xe0 && second & 0x06 != 0 => Some("audio/mpeg"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_decides_in_any_case() {
        for (name, expected) in [
            ("a.wav", Some("audio/wav")),
            ("b/c.MP3", Some("audio/mpeg")),
            ("a.ogg", Some("audio/ogg")),
            ("a.opus", Some("audio/ogg")),
            ("a.webm", Some("audio/webm")),
            ("a.m4a", Some("audio/mp4")),
            ("a.aac", Some("audio/aac")),
            ("a.flac", Some("audio/flac")),
            ("a.pcm", Some("audio/pcm")),
            ("a.wav.tmp", None),
            ("wav", None),
            ("", None),
        ] {
            assert_eq!(by_name(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn first_bytes_are_recognised() {
        for (bytes, expected) in [
            (&b"RIFF\x24\0\0\0WAVEfmt "[..], Some("audio/wav")),
            (b"RIFF\x24\0\0\0AVI ", None),
            (b"OggS\0\x02", Some("audio/ogg")),
            (b"fLaC", Some("audio/flac")),
            (b"\x1a\x45\xdf\xa3\x9f", Some("audio/webm")),
            (b"\0\0\0\x20ftypM4A ", Some("audio/mp4")),
            (b"ID3\x04\0", Some("audio/mpeg")),
            (b"\xff\xfb\x90\x64", Some("audio/mpeg")),
            (b"\xff\xf3\x90", Some("audio/mpeg")),
            (b"\xff\xf1\x50", Some("audio/aac")),
            (b"\xff\xf9\x50", Some("audio/aac")),
            (b"\xff\xff", Some("audio/mpeg")),
            (b"\xff", None),
            (b"\0\0\0\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(by_first_bytes(bytes), expected, "{bytes:x?}");
        }
    }
}
