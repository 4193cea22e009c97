//! What is wrong with a configuration, as sentences with a place.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// All that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `config.toml:12`, `--listen` or `REDIS_URL`.
    pub place: String,
    /// `server.listen`.
    pub key: Option<String>,
    /// What is wrong and what is allowed.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.why)
    }
}

/// What is wrong with one file, while it is being read.
#[derive(Default)]
pub(super) struct FileProblems(Vec<(Range<usize>, Option<String>, String)>);

impl FileProblems {
    /// `span` is where in the text, `key` such as `server.listen`.
    pub(super) fn refuse(&mut self, span: Range<usize>, key: Option<&str>, why: String) {
        self.0.push((span, key.map(Into::into), why));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// In the order of the file, whatever the order in which its tables were walked.
    pub(super) fn located(mut self, path: &Path, text: &str) -> impl Iterator<Item = Problem> {
        self.0.sort_by_key(|(span, ..)| span.start);
        self.0.into_iter().map(move |(span, key, why)| {
            let place = format!("{}:{}", path.display(), line_at(text.as_bytes(), span.start));
            Problem { place, key, why }
        })
    }
}

/// The line that byte `at` is on, from 1.
pub(super) fn line_at(text: &[u8], at: usize) -> usize {
    1 + text[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}
