//! `aivtuber-gateway explain LOG [NAME]`: the story of one connection or task, from a log.
//!
//! A log is a file with its rotated predecessors, gzipped or not, in text or JSON, also with
//! something in front of each line, as journald and Docker write it. It is read twice: first to
//! find the connections that are meant, then for their lines. So a log of any size needs little
//! memory.
//!
//! Ids begin anew with each start of the gateway, so a connection is known by its id and by the
//! number of starts before it.

#![expect(clippy::disallowed_methods, reason = "a command of its own, which may wait")]

mod files;
mod line;

use crate::session::{CloseReason, EndVerdict};
use files::{Log, LogError};
use line::LogLine;
use serde_json::json;
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::path::Path;

/// Connections that one story is about, at most; the last ones, and of a client with more of them
/// those that ended badly.
const CONNECTIONS_MAX: usize = 20;

/// How many bad endings are shown when no name is given.
const ENDINGS_MAX: usize = 10;

/// Lines of one story, at most, and their bytes; the last ones.
const LINES_MAX: usize = 20_000;
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// The longest id that others are aligned with.
const ID_WIDTH_MAX: usize = 24;

/// A connection: starts of the gateway before it, and its id.
type ConnectionKey = (u32, String);

/// What a log says about a connection, a task or a client, or about the last bad endings.
#[derive(Debug)]
pub struct Story {
    /// In order.
    lines: Vec<(u32, LogLine)>,
    /// Lines or connections were left out, being too many.
    is_cut: bool,
    /// Files that could not be read, or not to their end, as sentences.
    unread: Vec<String>,
}

/// What is searched for.
enum Wanted<'n> {
    /// A connection's id, a task, a client's address or a request's id.
    Name(&'n str),
    /// Connections that ended badly.
    Failures,
}

/// Tells the story of `name`, or of the last connections that ended badly. `None`: the log has
/// nothing about it.
///
/// # Errors
/// A sentence: the log cannot be read, or a part of it, and nothing is found in the rest.
pub fn explain(log: &Path, name: Option<&str>) -> Result<Option<Story>, String> {
    let log = Log::find(log).map_err(|error: LogError| error.to_string())?;
    let wanted = name.map_or(Wanted::Failures, Wanted::Name);
    let mut found = Matches::default();
    each_line(&log, |run, line| found.look_at(&wanted, run, &line));
    let mut story = Story { lines: Vec::new(), is_cut: found.is_cut, unread: Vec::new() };
    let (mut lines, mut bytes) = (VecDeque::new(), 0);
    let errors = each_line(&log, |run, line| {
        if !found.wants(&wanted, run, &line) {
            return;
        }
        bytes += line.bytes();
        lines.push_back((run, line));
        while lines.len() > LINES_MAX || bytes > BYTES_MAX {
            bytes -= lines.pop_front().map_or(bytes, |(_, line)| line.bytes());
            story.is_cut = true;
        }
    });
    story.lines.extend(lines);
    // The steps of a story are logged behind the end, and shown where they happened.
    story.lines.sort_by_key(|(run, line)| (*run, line.happened_at(), line.is("closed")));
    story.unread.extend(errors.iter().map(ToString::to_string));
    match (story.lines.is_empty(), story.unread.is_empty()) {
        (false, _) => Ok(Some(story)),
        (true, true) => Ok(None),
        // It may be about that.
        (true, false) => Err(story.unread.join("; ")),
    }
}

/// Calls `handle` with each line that is one of the gateway's, and the starts before it. Returns
/// what could not be read.
fn each_line(log: &Log, mut handle: impl FnMut(u32, LogLine)) -> Vec<LogError> {
    let mut run = 0;
    log.each_line(|text| {
        if let Some(line) = LogLine::read(text) {
            run += u32::from(line.is("starting"));
            handle(run, line);
        }
    })
}

/// The connections that are meant.
#[derive(Default)]
struct Matches {
    /// In the order of the log.
    connections: VecDeque<ConnectionKey>,
    known: BTreeSet<ConnectionKey>,
    /// Those that ended well.
    ended_well: BTreeSet<ConnectionKey>,
    /// Their tasks: lines about them that have no id belong to the story.
    tasks: BTreeSet<(u32, String)>,
    is_cut: bool,
}

impl Matches {
    fn look_at(&mut self, wanted: &Wanted<'_>, run: u32, line: &LogLine) {
        let Some(id) = &line.id else { return };
        let is_meant = match wanted {
            Wanted::Name(name) if id == name => {
                // Of several starts the last one is meant.
                if self.connections.back().is_some_and(|(known, _)| *known < run) {
                    *self = Matches::default();
                }
                true
            }
            // Only such a line says whose the connection is. Others are about one of many tasks of
            // a worker.
            Wanted::Name(name) => line.is_about_connection() && line.names(name),
            Wanted::Failures => line.is("failed") || has_failed(line),
        };
        let connection = (run, id.clone());
        if is_meant && !self.known.contains(&connection) {
            self.connections.push_back(connection.clone());
            self.known.insert(connection.clone());
            let max = match wanted {
                Wanted::Name(_) => CONNECTIONS_MAX,
                Wanted::Failures => ENDINGS_MAX,
            };
            if self.connections.len() > max {
                let ended_well = |known| self.ended_well.contains(known);
                let least = self.connections.iter().position(ended_well).unwrap_or_default();
                if let Some(least) = self.connections.remove(least) {
                    self.known.remove(&least);
                    self.ended_well.remove(&least);
                }
                self.is_cut = matches!(wanted, Wanted::Name(_));
            }
        }
        if line.is("closed") && !has_failed(line) && self.known.contains(&connection) {
            self.ended_well.insert(connection.clone());
        }
        if let Some(task) = &line.task
            && line.is_about_connection()
            && self.known.contains(&connection)
        {
            self.tasks.insert((run, task.clone()));
        }
    }

    fn wants(&self, wanted: &Wanted<'_>, run: u32, line: &LogLine) -> bool {
        match &line.id {
            Some(id) if self.known.contains(&(run, id.clone())) => true,
            Some(_) => matches!(wanted, Wanted::Name(name) if line.is_of_task(name)),
            None => line.task.as_ref().is_some_and(|task| {
                self.tasks.contains(&(run, task.clone()))
                    || matches!(wanted, Wanted::Name(name) if line.is_of_task(name))
            }),
        }
    }
}

/// Whether a closing line is that of a connection that ended badly, as far as its reason tells.
fn has_failed(line: &LogLine) -> bool {
    let reason = line.reason.as_deref().filter(|_| line.is("closed"));
    let reason = CloseReason::ALL.iter().find(|known| Some(known.word()) == reason);
    match reason.map(|reason| reason.verdict()) {
        Some(EndVerdict::Bad) => true,
        Some(EndVerdict::ByCode) => !matches!(line.code, None | Some(1000 | 1001)),
        Some(EndVerdict::Good | EndVerdict::IfUnfinished) | None => false,
    }
}

impl Story {
    /// For people: a line for each thing that happened, then why the connections ended.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for problem in &self.unread {
            let _ = writeln!(text, "… {problem}; its lines are missing here");
        }
        if self.is_cut {
            text.push_str("… more came before; name a connection for its whole story\n");
        }
        let width = self.lines.iter().filter_map(|(_, line)| Some(line.id.as_ref()?.len())).max();
        let width = width.unwrap_or_default().min(ID_WIDTH_MAX);
        let mut began_at = None;
        for (_, line) in self.lines.iter().filter(|(_, line)| !line.is("failed")) {
            let at = line.happened_at();
            let since = at - *began_at.get_or_insert(at);
            let (id, level) = (line.id.as_deref().unwrap_or_default(), line.mark());
            let _ = writeln!(
                text,
                "{}  {:>+9}.{:03} s  {:width$}  {level}{}",
                line::time_of_day(at),
                since / 1000,
                since.abs() % 1000,
                one_line(id),
                one_line(line.told()),
            );
        }
        let endings: Vec<_> =
            self.lines.iter().filter(|(_, line)| line.is("closed")).map(|(_, line)| line).collect();
        text.push('\n');
        for line in &endings {
            let id = line.id.as_deref().unwrap_or_default();
            let sentence = line.sentence.as_deref().unwrap_or("It ended.");
            let _ = writeln!(text, "{}: {}", one_line(id), one_line(sentence));
        }
        if endings.is_empty() {
            text.push_str("The log does not say that it has ended.\n");
        }
        text
    }

    /// For programs: the lines, then how each connection ended.
    pub fn to_json(&self) -> String {
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|(run, line)| {
                json!({
                    "time": line::rfc3339(line.happened_at()), "run": run, "id": line.id,
                    "level": line.level, "target": line.target, "event": line.event,
                    "task": line.task, "message": line.told(),
                })
            })
            .collect();
        let ended = self.lines.iter().filter(|(_, line)| line.is("closed"));
        let ended: Vec<_> = ended
            .map(|(run, line)| {
                json!({
                    "run": run, "id": line.id, "reason": line.reason, "code": line.code,
                    "sentence": line.sentence,
                })
            })
            .collect();
        format!(
            "{}\n",
            json!({ "events": lines, "ended": ended, "is_cut": self.is_cut, "unread": self.unread })
        )
    }
}

/// A log may hold anything, also lines of other programs; nothing of it may move the cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect()
}

#[cfg(test)]
mod tests;
