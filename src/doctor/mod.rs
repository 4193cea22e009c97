//! `aivtuber-gateway doctor`: tries everything that the gateway depends on, for real, and says what
//! to do about each failure.
//!
//! Each check gives one or more [`CheckRow`]s. They run side by side, each on a thread of its own,
//! so that ten backends that do not answer take no longer than one; the rows keep their order. What
//! a check leaves behind is removed again, and nothing that it publishes is kept.

#![expect(clippy::disallowed_methods, reason = "a command of its own, which may wait")]

mod backends;
mod machine;
mod redis;
mod running;

use std::fmt::Write as _;
use std::thread;
use std::time::SystemTime;

use serde::Serialize;

use crate::config::{Config, Loaded};
use crate::net::tls::Layer;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// It works.
    Ok,
    /// It works, but the operator should look at it.
    Warn,
    /// It does not work.
    Fail,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckRow {
    /// What was tried, such as `backend input`.
    pub name: String,
    /// How that went.
    pub state: CheckState,
    /// What was found.
    pub detail: String,
    /// What to do; empty where nothing needs to be done.
    pub advice: String,
}

impl CheckRow {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> CheckRow {
        let advice = String::new();
        CheckRow { name: name.into(), state: CheckState::Ok, detail: detail.into(), advice }
    }

    fn warn(
        name: impl Into<String>,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> CheckRow {
        let (name, detail, advice) = (name.into(), detail.into(), advice.into());
        CheckRow { name, state: CheckState::Warn, detail, advice }
    }

    fn fail(
        name: impl Into<String>,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> CheckRow {
        CheckRow { state: CheckState::Fail, ..CheckRow::warn(name, detail, advice) }
    }
}

/// Rows, and what another clock said when they were found: its name, its time, and ours.
#[derive(Default)]
struct Findings {
    rows: Vec<CheckRow>,
    clocks: Vec<OtherClock>,
}

/// What another machine's clock said.
struct OtherClock {
    whose: String,
    theirs: SystemTime,
    ours: SystemTime,
}

impl From<Vec<CheckRow>> for Findings {
    fn from(rows: Vec<CheckRow>) -> Findings {
        Findings { rows, clocks: Vec::new() }
    }
}

/// Tries everything that this configuration needs.
pub fn examine(loaded: Loaded) -> Vec<CheckRow> {
    let source = loaded.path.as_ref().map(|path| path.display().to_string());
    let source = source.unwrap_or("no file, only defaults".into());
    let mut rows = vec![CheckRow::ok("configuration", format!("valid ({source})"))];
    let (config, layer) = load_tls(loaded, &mut rows);
    let checks: Vec<Box<dyn FnOnce() -> Findings + Send + '_>> = {
        let (config, layer) = (&config, &layer);
        let mut checks: Vec<Box<dyn FnOnce() -> Findings + Send + '_>> = Vec::new();
        checks.push(Box::new(|| running::check(config).into()));
        for backend in backends::all(config) {
            checks.push(Box::new(move || backends::check(&backend, config, layer)));
        }
        checks.push(Box::new(move || redis::check(config, layer)));
        checks.push(Box::new(|| machine::files(config).into()));
        checks.push(Box::new(|| machine::limits(config).into()));
        checks
    };
    let mut clocks = Vec::new();
    thread::scope(|scope| {
        let running: Vec<_> = checks.into_iter().map(|check| scope.spawn(check)).collect();
        for check in running {
            let found = check.join().unwrap_or_else(|_| {
                vec![CheckRow::fail("doctor", "a check has panicked", "report it as a bug")].into()
            });
            rows.extend(found.rows);
            clocks.extend(found.clocks);
        }
    });
    rows.push(machine::clock(SystemTime::now(), &clocks));
    rows
}

/// Reads certificates and keys; what is wrong with them is a row.
fn load_tls(loaded: Loaded, rows: &mut Vec<CheckRow>) -> (Config, Layer) {
    let before = loaded.config.clone();
    let config = match loaded.load_certificates() {
        Ok(Loaded { config, warnings, .. }) => {
            let advice = "see docs/operations.md, section Configuration";
            rows.extend(
                warnings.into_iter().map(|why| CheckRow::warn("configuration", why, advice)),
            );
            config
        }
        Err(problems) => {
            let advice = "the gateway does not start like this: correct the key that is named";
            let why = problems.0.into_iter().map(|problem| problem.to_string());
            rows.extend(why.map(|why| CheckRow::fail("certificates", why, advice)));
            before
        }
    };
    rows.extend(machine::certificates(&config, SystemTime::now()));
    let layer = Layer::new(config.gateway.tls.clone()).unwrap_or_else(|why| {
        rows.push(CheckRow::fail("certificates", why, "check the system's random numbers"));
        Layer::default()
    });
    (config, layer)
}

/// The worst of all rows.
pub fn worst(rows: &[CheckRow]) -> CheckState {
    rows.iter().map(|row| row.state).max().unwrap_or(CheckState::Ok)
}

/// The rows for programs, in one line.
pub fn json(rows: &[CheckRow]) -> String {
    #[derive(Serialize)]
    struct Report<'r> {
        state: CheckState,
        rows: &'r [CheckRow],
    }
    let report = Report { state: worst(rows), rows };
    serde_json::to_string(&report).unwrap_or_default() + "\n"
}

/// Whether the table is for a terminal that shows colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Colours {
    Shown,
    Absent,
}

/// The rows for people.
pub fn table(rows: &[CheckRow], colours: Colours) -> String {
    let wide = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for CheckRow { name, state, detail, advice } in rows {
        let (word, colour) = match state {
            CheckState::Ok => ("ok  ", "\x1b[32m"),
            CheckState::Warn => ("warn", "\x1b[33m"),
            CheckState::Fail => ("FAIL", "\x1b[31m"),
        };
        let (on, off) =
            if colours == Colours::Shown { (colour, "\x1b[0m") } else { Default::default() };
        let _ = writeln!(text, "{on}{word}{off}  {name:wide$}  {}", one_line(detail));
        if !advice.is_empty() {
            let _ = writeln!(text, "{:6}{:wide$}  → {}", "", "", one_line(advice));
        }
    }
    let count = |wanted| rows.iter().filter(|row| row.state == wanted).count();
    let plural = |n, what| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let summary = match (count(CheckState::Fail), count(CheckState::Warn)) {
        (0, 0) => "Everything works.".to_owned(),
        (0, warnings) => format!("Everything works, with {}.", plural(warnings, "warning")),
        (failures, 0) => format!("{}.", plural(failures, "failure")),
        (failures, warnings) => {
            format!("{}, {}.", plural(failures, "failure"), plural(warnings, "warning"))
        }
    };
    let _ = writeln!(text, "\n{summary}");
    text
}

/// A peer's words may hold anything; nothing of it may move the cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<CheckRow> {
        vec![
            CheckRow::ok("a", "fine"),
            CheckRow::warn("longer", "so so\x1b[2J", "look"),
            CheckRow::fail("b", "broken", "mend it"),
        ]
    }

    #[test]
    fn table_says_what_to_do_and_sums_up() {
        let expected = "ok    a       fine\n\
             warn  longer  so so [2J\n              → look\n\
             FAIL  b       broken\n              → mend it\n\
             \n1 failure, 1 warning.\n";
        assert_eq!(table(&rows(), Colours::Absent), expected);
        assert!(table(&rows(), Colours::Shown).starts_with("\x1b[32mok  \x1b[0m"));
        assert!(table(&rows()[..1], Colours::Absent).ends_with("\nEverything works.\n"));
        let warned = table(&rows()[..2], Colours::Absent);
        assert!(warned.ends_with("Everything works, with 1 warning.\n"));
    }

    #[test]
    fn json_has_every_field_and_the_worst_state() {
        let expected = concat!(
            r#"{"state":"fail","rows":[{"name":"a","state":"ok","detail":"fine","advice":""},"#,
            r#"{"name":"longer","state":"warn","detail":"so so\u001b[2J","advice":"look"},"#,
            r#"{"name":"b","state":"fail","detail":"broken","advice":"mend it"}]}"#,
            "\n",
        );
        assert_eq!(json(&rows()), expected);
        assert_eq!(worst(&[]), CheckState::Ok);
    }
}
