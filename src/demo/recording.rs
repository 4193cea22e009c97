//! What a recording is: its kind by its first bytes, and how long it lasts.
//!
//! Only heads and time stamps are read; nothing is decoded. A length that only decoding would show
//! is left out. Recordings are not trusted: every read is bounds-checked, and every loop takes at
//! least one byte.

use std::fmt;

/// What is known of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Such as `WebM`; `an unknown format` if the first bytes say nothing.
    pub kind: &'static str,
    pub seconds: Option<f64>,
    pub bytes: usize,
}

impl Recording {
    pub fn new(recording: &[u8]) -> Recording {
        let (kind, seconds) = match recording {
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', ..] => {
                ("WAV", wav_seconds(recording))
            }
            [0x1a, 0x45, 0xdf, 0xa3, ..] => ("WebM", webm_seconds(recording)),
            [b'O', b'g', b'g', b'S', ..] => ("Ogg", ogg_seconds(recording)),
            [b'f', b'L', b'a', b'C', ..] => ("FLAC", flac_seconds(recording)),
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => ("MP4", mp4_seconds(recording)),
            [b'I', b'D', b'3', ..] => ("MP3", mp3_seconds(recording)),
            [0xff, second, ..] if second & 0xf6 == 0xf0 => ("AAC", aac_seconds(recording)),
            [0xff, second, ..] if second & 0xe0 == 0xe0 => ("MP3", mp3_seconds(recording)),
            _ => ("an unknown format", None),
        };
        let seconds = seconds.filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        Recording { kind, seconds, bytes: recording.len() }
    }
}

impl fmt::Display for Recording {
    /// Such as `2.4 seconds of WebM, 38.0 kilobytes`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.seconds {
            Some(seconds) => write!(f, "{seconds:.1} seconds of {}", self.kind)?,
            None => write!(f, "a recording in {}", self.kind)?,
        }
        write!(f, ", {:.1} kilobytes", self.bytes as f64 / 1000.0)
    }
}

fn be(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn le(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// RIFF: the bytes of `data` divided by the byte rate of `fmt `.
fn wav_seconds(wav: &[u8]) -> Option<f64> {
    let mut at = 12;
    let mut bytes_per_second = 0;
    loop {
        let length = le(wav, at + 4, 4)? as usize;
        match wav.get(at..at + 4)? {
            b"fmt " => bytes_per_second = le(wav, at + 16, 4)?,
            // A recorder that cannot go back writes a length that is too large.
            b"data" => {
                return ratio(length.min(wav.len() - at - 8) as u64, bytes_per_second);
            }
            _ => {}
        }
        at = at.checked_add(8 + length + length % 2)?;
    }
}

/// Matroska: the `Duration` of the file, else the time of its last block.
fn webm_seconds(webm: &[u8]) -> Option<f64> {
    let (mut at, mut scale, mut cluster, mut last) = (0, 1_000_000, 0, None);
    while let Some((id, id_bytes)) = vint(webm, at, Vint::Id) {
        let Some((length, length_bytes)) = vint(webm, at + id_bytes, Vint::Length) else { break };
        let content = at + id_bytes + length_bytes;
        let number = || be(webm, content, length.min(8) as usize);
        match id {
            // Segment, Info, Cluster, BlockGroup: their content comes next, whatever the length.
            0x1853_8067 | 0x1549_a966 | 0x1f43_b675 | 0xa0 => {
                at = content;
                continue;
            }
            0x2a_d7b1 => scale = number().unwrap_or(scale),
            0x4489 => {
                let duration = match length {
                    4 => number().map(|bits| f64::from(f32::from_bits(bits as u32))),
                    _ => number().map(f64::from_bits),
                };
                if let Some(duration) = duration.filter(|duration| *duration > 0.0) {
                    return Some(duration * scale as f64 / 1e9);
                }
            }
            0xe7 => cluster = number().unwrap_or(cluster),
            // SimpleBlock, Block: the track, then the time since the beginning of the cluster.
            0xa3 | 0xa1 => {
                if let Some((_, track_bytes)) = vint(webm, content, Vint::Length)
                    && let Some(offset) = be(webm, content + track_bytes, 2)
                {
                    let time = cluster as f64 + f64::from(offset as u16 as i16);
                    last = Some(time.max(last.unwrap_or(0.0)));
                }
            }
            _ => {}
        }
        let Some(next) = content.checked_add(length as usize) else { break };
        at = next;
    }
    last.map(|last| last * scale as f64 / 1e9)
}

#[derive(Clone, Copy, PartialEq)]
enum Vint {
    /// With the bit that marks its length.
    Id,
    /// Without it; all ones: unknown, which is read as a very large number.
    Length,
}

/// A number of 1 to 8 bytes whose first bits say how many, and that count (RFC 8794 §4).
fn vint(bytes: &[u8], at: usize, kind: Vint) -> Option<(u64, usize)> {
    let first = *bytes.get(at)?;
    let length = first.leading_zeros() as usize + 1;
    let value = (length <= 8).then(|| be(bytes, at, length)).flatten()?;
    let mark = 1_u64 << (7 * length);
    Some((if kind == Vint::Id { value } else { value & (mark - 1) }, length))
}

/// Ogg: the position of the last page, in samples (RFC 3533 §6, RFC 7845 §4).
fn ogg_seconds(ogg: &[u8]) -> Option<f64> {
    let first = ogg.get(28..)?;
    let (rate, skipped) = if first.starts_with(b"OpusHead") {
        (48_000, le(first, 10, 2)?)
    } else if first.starts_with(b"\x01vorbis") {
        (le(first, 12, 4)?, 0)
    } else {
        return None;
    };
    let last = ogg.windows(4).rposition(|window| window == b"OggS")?;
    ratio(le(ogg, last + 6, 8)?.saturating_sub(skipped), rate)
}

/// FLAC: what STREAMINFO says (RFC 9639 §8.2).
fn flac_seconds(flac: &[u8]) -> Option<f64> {
    let numbers = be(flac, 18, 8)?;
    let samples = numbers & 0xf_ffff_ffff;
    if samples == 0 { None } else { ratio(samples, numbers >> 44) }
}

/// MP4: the duration in `moov/mvhd`; a fragmented file has none there.
fn mp4_seconds(mp4: &[u8]) -> Option<f64> {
    let mut at = 0;
    loop {
        let length = be(mp4, at, 4)? as usize;
        match mp4.get(at + 4..at + 8)? {
            b"moov" => at += 8,
            b"mvhd" => {
                let (rate, duration) = match mp4.get(at + 8)? {
                    0 => (be(mp4, at + 20, 4)?, be(mp4, at + 24, 4)?),
                    _ => (be(mp4, at + 28, 4)?, be(mp4, at + 32, 8)?),
                };
                return ratio(duration, rate).filter(|seconds| *seconds > 0.0);
            }
            _ if length < 8 => return None,
            _ => at = at.checked_add(length)?,
        }
    }
}

/// MP3: the lengths of its frames, added up.
fn mp3_seconds(mp3: &[u8]) -> Option<f64> {
    const KBITS_1: [u64; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
    const KBITS_2: [u64; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
    const RATES: [u64; 3] = [44_100, 48_000, 32_000];
    let mut at = 0;
    if mp3.starts_with(b"ID3") {
        let length = mp3.get(6..10)?.iter().fold(0, |sum, byte| sum << 7 | usize::from(byte & 127));
        at = 10 + length;
    }
    let mut seconds = 0.0;
    while let Some(head) = be(mp3, at, 4) {
        let (version, layer) = (head >> 19 & 3, head >> 17 & 3);
        if head >> 21 != 0x7ff || version == 1 || layer != 1 {
            at += 1;
            continue;
        }
        let kbits = if version == 3 { KBITS_1 } else { KBITS_2 };
        let rate_shift = [2, 0, 1, 0].get(version as usize).copied().unwrap_or(0);
        let (Some(kbits), Some(rate)) =
            (kbits.get((head >> 12 & 15) as usize), RATES.get((head >> 10 & 3) as usize))
        else {
            at += 1;
            continue;
        };
        let (rate, samples) = (rate >> rate_shift, if version == 3 { 1152 } else { 576 });
        let length = samples / 8 * kbits * 1000 / rate + (head >> 9 & 1);
        seconds += samples as f64 / rate as f64;
        at += (length as usize).max(1);
    }
    (seconds > 0.0).then_some(seconds)
}

/// AAC in ADTS frames of 1,024 samples.
fn aac_seconds(aac: &[u8]) -> Option<f64> {
    const RATES: [u64; 13] = [
        96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025,
        8_000, 7_350,
    ];
    let (mut at, mut seconds) = (0, 0.0);
    while let Some(head) = be(aac, at, 7) {
        let Some(rate) = RATES.get((head >> 34 & 15) as usize) else { break };
        seconds += 1024.0 / *rate as f64;
        at += ((head >> 13 & 0x1fff) as usize).max(1);
    }
    (seconds > 0.0).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::super::voice::tests::wav;
    use super::*;

    fn heard(recording: &[u8]) -> String {
        // No prefix of a recording may make it panic or loop.
        for end in 0..recording.len().min(400) {
            let _ = Recording::new(&recording[..end]);
        }
        Recording::new(recording).to_string()
    }

    #[test]
    fn wav_has_its_length_in_its_head() {
        let mut wav = wav("Hello");
        assert_eq!(heard(&wav), "4.8 seconds of WAV, 230.4 kilobytes");
        wav[40..44].fill(0xff);
        assert_eq!(
            Recording::new(&wav).seconds,
            Some(4.8),
            "the length was not known to the recorder"
        );
    }

    #[test]
    fn webm_ends_with_its_last_block() {
        let element =
            |id: &[u8], content: &[u8]| [id, &[0x40, content.len() as u8], content].concat();
        let unknown = [0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let head = element(&[0x1a, 0x45, 0xdf, 0xa3], b"webm");
        let segment = [&[0x18, 0x53, 0x80, 0x67], &unknown[..]].concat();
        let scale = element(&[0x2a, 0xd7, 0xb1], &1_000_000_u32.to_be_bytes());
        let cluster = |time: u16, block: i16| {
            let time = element(&[0xe7], &time.to_be_bytes());
            let offset = block.to_be_bytes();
            let block = element(&[0xa3], &[0x81, offset[0], offset[1], 0x80, 1, 2, 3]);
            [&[0x1f, 0x43, 0xb6, 0x75], &unknown[..], &time, &block].concat()
        };
        let live = [&head[..], &segment, &scale, &cluster(0, 980), &cluster(1000, 1420)].concat();
        assert_eq!(Recording::new(&live).seconds, Some(2.42));
        assert!(heard(&live).starts_with("2.4 seconds of WebM, "));
        let duration = element(&[0x44, 0x89], &1500_f64.to_be_bytes());
        let info = element(&[0x15, 0x49, 0xa9, 0x66], &[&scale[..], &duration].concat());
        let whole = [&head[..], &segment, &info, &cluster(0, 980)].concat();
        assert_eq!(Recording::new(&whole).seconds, Some(1.5));
    }

    #[test]
    fn other_containers_are_known() {
        let page = |position: u64, content: &[u8]| {
            [b"OggS\0\0", &position.to_le_bytes()[..], &[0; 14], content].concat()
        };
        let mut opus = b"OpusHead\x01\x01".to_vec();
        opus.extend(312_u16.to_le_bytes());
        let ogg = [page(0, &opus), page(48_312, b"sound")].concat();
        assert!(heard(&ogg).starts_with("1.0 seconds of Ogg, "));

        let mut flac = b"fLaC\0\0\0\x22\x10\0\x10\0\0\0\0\0\0\0".to_vec();
        flac.extend((44_100_u64 << 44 | 66_150).to_be_bytes());
        assert!(heard(&flac).starts_with("1.5 seconds of FLAC, "));

        let mut mp4 = b"\0\0\0\x10ftypM4A \0\0\0\0\0\0\0\x24moov\0\0\0\x1cmvhd".to_vec();
        mp4.extend([0; 12]);
        mp4.extend(1000_u32.to_be_bytes());
        mp4.extend(2500_u32.to_be_bytes());
        assert!(heard(&mp4).starts_with("2.5 seconds of MP4, "));

        let mut frame = vec![0; 417];
        frame[..4].copy_from_slice(&[0xff, 0xfb, 0x90, 0x00]); // 128 kbit/s, 44.1 kHz
        let mp3 = [b"ID3\x04\0\0\0\0\0\x05", &[0; 5][..], &frame.repeat(100)].concat();
        assert!(heard(&mp3).starts_with("2.6 seconds of MP3, "));

        let mut frame = [0; 200];
        frame[..7].copy_from_slice(&[0xff, 0xf1, 0x4c, 0x80, 0x19, 0x1f, 0xfc]); // 48 kHz
        assert!(heard(&frame.repeat(94)).starts_with("2.0 seconds of AAC, "));

        assert_eq!(heard(b"who knows"), "a recording in an unknown format, 0.0 kilobytes");
    }
}
