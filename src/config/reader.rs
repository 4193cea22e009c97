//! Reads one file: what it says over the defaults, and everything that is wrong with it.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::keys::{SECTIONS, Section};
use super::nearest::did_you_mean;
use super::problems::{FileProblems, Problem};
use super::routes::read_routes;
use super::settings::Config;

/// What the file says over what is the default, as far as it can be read.
pub(super) fn read_file(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Config {
    let mut found = FileProblems::default();
    let mut config = Config::default();
    match DeTable::parse(text) {
        Ok(table) => read_top(&mut found, &mut config, table.get_ref()),
        Err(error) => found.refuse(
            error.span().unwrap_or(0..0),
            None,
            format!("not TOML: {}", error.message()),
        ),
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
                _ => problems.refuse(
                    value.span(),
                    Some(name),
                    format!("a table is needed: write `[{name}]`"),
                ),
            }
        } else {
            let tables = SECTIONS.iter().map(|section| section.name).chain(["route"]);
            let hint = home_of(name).unwrap_or_else(|| did_you_mean(name, tables));
            problems.refuse(span, Some(name), format!("unknown key{hint}"));
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
                if let Err((span, why)) = key.kind.read(config, value) {
                    problems.refuse(span, Some(&path), why);
                }
            }
            None => {
                let hint = match did_you_mean(name, section.keys.iter().map(|key| key.name)) {
                    hint if hint.is_empty() => home_of(name).unwrap_or_default(),
                    hint => hint,
                };
                problems.refuse(span, Some(&path), format!("unknown key{hint}"));
            }
        }
    }
}

/// Where a key that stands in the wrong table belongs.
fn home_of(name: &str) -> Option<String> {
    let section =
        SECTIONS.iter().find(|section| section.keys.iter().any(|key| key.name == name))?;
    Some(format!(", it belongs in `[{}]`", section.name))
}
