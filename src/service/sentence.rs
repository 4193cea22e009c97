//! One plain sentence that says why a connection ended, for the log and `/connections/closed`.
//!
//! Here are the words. What is known of the end is noted as values, because hardly any sentence is
//! ever read: writing each one would cost a connection more than all its counters.

use crate::proto::ws::cut_at_char;
use std::fmt;
use std::time::Duration;

/// The longest text from outside in a sentence, in bytes.
const WHAT_BYTES_MAX: usize = 200;

/// The sentence.
#[derive(Debug, Clone)]
pub struct Sentence {
    /// How it begins. `{code}` is where the close code belongs.
    pub beginning: &'static str,
    /// The close code.
    pub code: Option<u16>,
    /// What went wrong, in words that came with it.
    pub what: Option<Box<str>>,
    /// What the sides were doing.
    pub circumstances: Circumstances,
}

/// What the sides were doing when the end began.
#[derive(Debug, Clone)]
pub enum Circumstances {
    /// Nothing that tells something.
    None,
    /// These words.
    Words(&'static str),
    /// A side ended a relay.
    Relay {
        /// The time since its last message; `None` if it had sent none.
        silence: Option<Duration>,
        /// It was in the middle of a message.
        is_unfinished: bool,
        /// The other side, if that was idle.
        idle_side: Option<&'static str>,
    },
}

impl Sentence {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.what.as_ref().map_or(0, |what| what.len())
    }
}

impl fmt::Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.beginning.split_once("{code}"), self.code) {
            (None, _) => f.write_str(self.beginning)?,
            (Some((before, after)), Some(code)) => write!(f, "{before}with code {code}{after}")?,
            (Some((before, after)), None) => write!(f, "{before}without a code{after}")?,
        }
        if let Some(what) = &self.what {
            // What comes from outside is cut.
            let cut = cut_at_char(what, WHAT_BYTES_MAX);
            write!(f, ": {cut}{}", if cut.len() < what.len() { "…" } else { "" })?;
        }
        self.circumstances.fmt(f)?;
        f.write_str(".")
    }
}

impl fmt::Display for Circumstances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Circumstances::None => Ok(()),
            Circumstances::Words(words) => write!(f, ", {words}"),
            Circumstances::Relay { silence, is_unfinished, idle_side } => {
                match silence {
                    Some(silence) => write!(f, ", {} after its last message", Time(silence))?,
                    None => f.write_str(", before it had sent anything")?,
                }
                if is_unfinished {
                    f.write_str(", in the middle of a message")?;
                }
                idle_side.map_or(Ok(()), |side| write!(f, ", while the {side} was idle"))
            }
        }
    }
}

/// A time for people: `0.3 s`, `31 s`, `12 min`, `5 h`.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..10 => write!(f, "{}.{} s", seconds, self.0.subsec_millis() / 100),
            10..120 => write!(f, "{seconds} s"),
            120..7200 => write!(f, "{} min", seconds / 60),
            _ => write!(f, "{} h", seconds / 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (milliseconds, text) in [
            (0, "0.0 s"),
            (9_990, "9.9 s"),
            (31_900, "31 s"),
            (150_000, "2 min"),
            (7_200_000, "2 h"),
        ] {
            assert_eq!(Time(Duration::from_millis(milliseconds)).to_string(), text);
        }
    }

    #[test]
    fn what_comes_from_outside_is_cut() {
        let sentence = |what: &str| Sentence {
            beginning: "It failed",
            code: None,
            what: Some(what.into()),
            circumstances: Circumstances::Words("once"),
        };
        assert_eq!(sentence("why").to_string(), "It failed: why, once.");
        let long = sentence(&"声".repeat(100)).to_string();
        assert!(long.ends_with("声…, once.") && long.len() < WHAT_BYTES_MAX + 40, "{long}");
    }
}
