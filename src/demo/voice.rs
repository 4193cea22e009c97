//! The sound of an answer: a tune made of its words.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

const SAMPLES_PER_SECOND: u32 = 24_000;
pub const NOTES: usize = 12;
pub const NOTE_SECONDS: f64 = SAMPLES_PER_NOTE as f64 / SAMPLES_PER_SECOND as f64;
const SAMPLES_PER_NOTE: usize = SAMPLES_PER_SECOND as usize * 2 / 5;

/// Five notes of one octave that sound well in any order, in semitones.
const SCALE: [i32; 5] = [0, 2, 4, 7, 9];

/// A tune made of a text, as a WAV file that is made note by note: 16 bits, mono, [`NOTES`] notes
/// of [`NOTE_SECONDS`], about 225 KiB.
pub struct Tune {
    notes: [i32; NOTES],
}

impl Tune {
    pub fn new(text: &str) -> Tune {
        Tune { notes: tune(text) }
    }

    /// The head of the file, for all notes.
    pub fn head(&self) -> Vec<u8> {
        const BYTES_PER_SAMPLE: u32 = 2;
        let data_bytes = (NOTES * SAMPLES_PER_NOTE) as u32 * BYTES_PER_SAMPLE;
        let mut wav = Vec::with_capacity(44);
        wav.extend_from_slice(b"RIFF");
        wav.extend_from_slice(&(36 + data_bytes).to_le_bytes());
        wav.extend_from_slice(b"WAVEfmt ");
        wav.extend_from_slice(&16u32.to_le_bytes());
        wav.extend_from_slice(&1u16.to_le_bytes()); // PCM
        wav.extend_from_slice(&1u16.to_le_bytes()); // one channel
        wav.extend_from_slice(&SAMPLES_PER_SECOND.to_le_bytes());
        wav.extend_from_slice(&(SAMPLES_PER_SECOND * BYTES_PER_SAMPLE).to_le_bytes());
        wav.extend_from_slice(&(BYTES_PER_SAMPLE as u16).to_le_bytes());
        wav.extend_from_slice(&16u16.to_le_bytes()); // bits
        wav.extend_from_slice(b"data");
        wav.extend_from_slice(&data_bytes.to_le_bytes());
        wav
    }

    /// The samples of each note, in order.
    pub fn notes(&self) -> impl Iterator<Item = Vec<u8>> {
        self.notes.iter().map(|&semitones| note(semitones))
    }
}

fn note(semitones: i32) -> Vec<u8> {
    let hertz = 261.63 * (semitones as f32 / 12.0).exp2();
    let samples = (0..SAMPLES_PER_NOTE).flat_map(|index| {
        let seconds = index as f32 / SAMPLES_PER_SECOND as f32;
        // Rises within 10 ms and fades out, so that no note begins or ends with a click.
        let left = 1.0 - index as f32 / SAMPLES_PER_NOTE as f32;
        let loudness = (seconds / 0.01).min(1.0) * left * left;
        let phase = std::f32::consts::TAU * hertz * seconds;
        let sample = loudness * (0.5 * phase.sin() + 0.15 * (2.0 * phase).sin());
        ((sample * f32::from(i16::MAX)) as i16).to_le_bytes()
    });
    samples.collect()
}

/// Semitones above middle C. Each part of the text chooses one note.
fn tune(text: &str) -> [i32; NOTES] {
    let chars: Vec<u32> = text.chars().map(u32::from).collect();
    std::array::from_fn(|note| {
        let part = chars.iter().skip(note * chars.len() / NOTES).take(chars.len() / NOTES + 1);
        let sum = part.fold(note as u32, |sum, char| sum.wrapping_mul(31).wrapping_add(*char));
        let step = (sum % (2 * SCALE.len() as u32)) as usize;
        SCALE[step % SCALE.len()] + 12 * (step / SCALE.len()) as i32
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The whole file.
    pub fn wav(text: &str) -> Vec<u8> {
        let tune = Tune::new(text);
        [tune.head()].into_iter().chain(tune.notes()).flatten().collect()
    }

    #[test]
    fn a_tune_is_a_valid_wav_of_at_least_three_chunks() {
        for text in ["", "a", "Hello", "こんにちは、世界", &"long ".repeat(10_000)] {
            let wav = wav(text);
            let word = |at: usize| u32::from_le_bytes(wav[at..at + 4].try_into().unwrap()) as usize;
            assert_eq!(
                (&wav[..4], &wav[8..16], &wav[36..40]),
                (&b"RIFF"[..], &b"WAVEfmt "[..], &b"data"[..])
            );
            assert_eq!(
                (word(4), word(24), word(28), word(40)),
                (wav.len() - 8, 24_000, 48_000, wav.len() - 44)
            );
            assert!(wav.len() > 2 * 65_536, "{} bytes", wav.len());
            let samples = wav[44..]
                .chunks_exact(2)
                .map(|pair| i16::from_le_bytes([pair[0], pair[1]]).unsigned_abs());
            let loudest = samples.max().unwrap();
            assert!((5_000..32_000).contains(&loudest), "{loudest}");
        }
        assert_eq!(wav("same"), wav("same"));
        assert_ne!(tune("Hello"), tune("World"));
    }
}
