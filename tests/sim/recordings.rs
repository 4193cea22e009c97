//! Audio files of the simulated world that change while they are delivered.
//!
//! They are real files with simulated times. Each recording has bytes of its own at every offset,
//! so that a mixture of two is noticed wherever it begins.

use crate::answers::folder;
use aivtuber_gateway::base::moment::Moment;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It appears, or replaces the one of its name, whole.
    Put(usize),
    /// It becomes longer.
    Append(usize),
    /// It loses its end.
    Cut(usize),
    /// It is truncated, and another recording is written into it.
    Rewrite(usize),
    /// Some bytes are replaced, and its length stays.
    Patch,
    /// Its name is removed.
    Remove,
}

/// A name in the folder, and what has been found under it.
pub struct Recording {
    name: String,
    path: PathBuf,
    /// Every state of every file that had the name, oldest first.
    pub versions: Vec<Version>,
    is_there: bool,
    /// When the name led to a file, and when it began not to.
    pub presence: Vec<(Moment, bool)>,
    voice: u8,
}

/// A state of a file.
pub struct Version {
    /// Files that had the name are numbered.
    pub file: usize,
    pub at: Moment,
    pub content: Vec<u8>,
    /// How long ago it seemed to have been written.
    pub age: Duration,
    /// How it came about.
    pub change: Change,
}

impl Recording {
    pub fn new(seed: u64, number: usize) -> Recording {
        let name = format!("recording-{seed}-{number}.wav");
        let path = folder().join(&name);
        Recording {
            name,
            path,
            versions: Vec::new(),
            is_there: false,
            presence: Vec::new(),
            voice: number as u8,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes the file. Nothing happens if there is none that could be changed so.
    pub fn apply(&mut self, change: Change, now: Moment, age: Duration) {
        let old = self.versions.last().filter(|_| self.is_there);
        let (file, mut content) = match old {
            Some(old) => (old.file, old.content.clone()),
            None => (self.versions.len(), Vec::new()),
        };
        let file = match (change, old) {
            (Change::Put(length), _) => {
                content = self.speak(length);
                self.versions.len()
            }
            (_, None) => return,
            (Change::Append(count), Some(_)) => {
                let more = voice(self.voice, content.len(), count);
                content.extend(more);
                file
            }
            (Change::Cut(length), Some(_)) => {
                content.truncate(length);
                file
            }
            (Change::Rewrite(length), Some(_)) => {
                content = self.speak(length);
                file
            }
            (Change::Patch, Some(_)) => {
                let end = content.len().min(7);
                content[..end].iter_mut().for_each(|byte| *byte ^= 0x55);
                file
            }
            (Change::Remove, Some(_)) => {
                fs::remove_file(&self.path).expect("the file is there");
                self.is_there = false;
                self.presence.push((now, false));
                return;
            }
        };
        self.write(change, &content, now - Moment::START, age);
        if !std::mem::replace(&mut self.is_there, true) {
            self.presence.push((now, true));
        }
        self.versions.push(Version { file, at: now, content, age, change });
    }

    /// The file has had this content since `age` before `after_start`.
    fn write(&self, change: Change, content: &[u8], after_start: Duration, age: Duration) {
        let part = self.path.with_extension("part");
        let path = if matches!(change, Change::Put(_)) { &part } else { &self.path };
        let mut file = OpenOptions::new();
        let mut file =
            file.write(true).create(true).truncate(true).open(path).expect("a file to write to");
        file.write_all(content).expect("room on the disk");
        file.set_modified(UNIX_EPOCH + after_start - age).expect("a time");
        if path == &part {
            fs::rename(&part, &self.path).expect("a name for it");
        }
    }

    /// The first bytes of a new recording.
    fn speak(&mut self, length: usize) -> Vec<u8> {
        self.voice = self.voice.wrapping_add(50);
        voice(self.voice, 0, length)
    }

    /// When a version was followed by another one of the same file.
    pub fn end_of(&self, index: usize) -> Option<Moment> {
        let file = self.versions[index].file;
        let next = self.versions.iter().skip(index + 1).find(|next| next.file == file);
        next.map(|next| next.at)
    }

    /// Whether the name led to no file at some moment of this span.
    pub fn was_absent(&self, from: Moment, to: Moment) -> bool {
        let before = self.presence.iter().rfind(|(at, _)| *at <= from);
        !before.is_some_and(|(_, is_there)| *is_there)
            || self.presence.iter().any(|(at, is_there)| from < *at && *at <= to && !is_there)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Bytes of a recording from `at` on. Two recordings differ at every offset.
fn voice(number: u8, at: usize, count: usize) -> Vec<u8> {
    (at..at + count).map(|at| (at * 31 + at / 251) as u8 ^ number.wrapping_mul(37)).collect()
}
