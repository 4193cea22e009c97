//! What is wrong with a configuration: sentences with a place, for people.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Everything that is wrong with a configuration, at least one problem. Displayed one line each.
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
    /// Where: `config.toml:12`, `--listen` or `REDIS_URL`.
    pub place: String,
    /// The key with its section, such as `server.listen`, where the problem is about one.
    pub key: Option<String>,
    /// What is wrong and what is expected.
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

/// A value that cannot be used, and where in the text of the file it is.
pub(super) struct BadValue {
    pub(super) span: Range<usize>,
    pub(super) why: String,
}

/// An entry of a list that cannot be used.
#[derive(Debug)]
pub(super) struct BadItem {
    /// Its index in the list; 0 where the list as a whole is wrong.
    pub(super) index: usize,
    pub(super) why: String,
}

impl BadItem {
    pub(super) fn new(index: usize, why: impl Into<String>) -> Self {
        Self { index, why: why.into() }
    }
}

/// Collects what is wrong with one file while it is being read.
#[derive(Default)]
pub(super) struct FileProblems(Vec<(Range<usize>, Option<String>, String)>);

impl FileProblems {
    /// Adds a problem at byte range `span` of the file, with `key` such as `server.listen`.
    pub(super) fn add(&mut self, span: Range<usize>, key: Option<&str>, why: impl Into<String>) {
        self.0.push((span, key.map(Into::into), why.into()));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The problems in the order of the file `path`, whose content is `text`.
    pub(super) fn located(mut self, path: &Path, text: &str) -> impl Iterator<Item = Problem> {
        // TOML tables are walked in the order of their names.
        self.0.sort_by_key(|(span, ..)| span.start);
        self.0.into_iter().map(move |(span, key, why)| {
            let place = format!("{}:{}", path.display(), line_at(text.as_bytes(), span.start));
            Problem { place, key, why }
        })
    }
}

/// The line of byte `at`, counted from 1.
pub(super) fn line_at(text: &[u8], at: usize) -> usize {
    1 + text.iter().take(at).filter(|&&byte| byte == b'\n').count()
}
