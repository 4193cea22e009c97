//! Reads one file: its values over the defaults, and everything that is wrong with it.
//!
//! Reading goes on after a problem, so that one run of `--check` shows all of them.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::{SECTIONS, Section};
use super::nearest::did_you_mean;
use super::problems::{BadValue, FileProblems, Problem};
use super::routes::read_routes;
use super::settings::Config;

/// Reads `text`, the content of `path`. What cannot be used is left at its default and added to
/// `problems`.
pub(super) fn read_file(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Config {
    let mut found = FileProblems::default();
    let mut config = Config::default();
    match DeTable::parse(text) {
        Ok(table) => read_top(&mut found, &mut config, table.get_ref()),
        Err(error) => {
            let why = format!("not TOML: {}", error.message());
            found.add(error.span().unwrap_or(0..0), None, why);
        }
    }
    problems.extend(found.located(path, text));
    config
}

fn read_top(problems: &mut FileProblems, config: &mut Config, top: &DeTable<'_>) {
    for (name, value) in top {
        let (span, name) = (name.span(), name.get_ref().as_ref());
        if name == "route" {
            config.gateway.routes = read_routes(problems, value);
        } else if let Some(section) = SECTIONS.iter().find(|section| section.name == name) {
            match value.get_ref() {
                DeValue::Table(table) => read_section(problems, config, section, table),
                _ => {
                    let why = format!("must be a table: write `[{name}]`");
                    problems.add(value.span(), Some(name), why);
                }
            }
        } else {
            let tables = SECTIONS.iter().map(|section| section.name).chain(["route"]);
            let hint = home_of(name).unwrap_or_else(|| did_you_mean(name, tables));
            problems.add(span, Some(name), format!("unknown key{hint}"));
        }
    }
}

fn read_section(
    problems: &mut FileProblems,
    config: &mut Config,
    section: &Section,
    table: &DeTable<'_>,
) {
    for (name, value) in table {
        let (span, name) = (name.span(), name.get_ref().as_ref());
        let path = format!("{}.{name}", section.name);
        match section.keys.iter().find(|key| key.name == name) {
            Some(key) => {
                if let Err(BadValue { span, why }) = key.kind.read(config, value) {
                    problems.add(span, Some(&path), why);
                }
            }
            None => {
                let hint = match did_you_mean(name, section.keys.iter().map(|key| key.name)) {
                    hint if hint.is_empty() => home_of(name).unwrap_or_default(),
                    hint => hint,
                };
                problems.add(span, Some(&path), format!("unknown key{hint}"));
            }
        }
    }
}

/// A hint for a key that is in the wrong table.
fn home_of(name: &str) -> Option<String> {
    let section =
        SECTIONS.iter().find(|section| section.keys.iter().any(|key| key.name == name))?;
    Some(format!(", it belongs in `[{}]`", section.name))
}
