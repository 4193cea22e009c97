//! What `config.toml` says about each section and key, for the manual page and the schema.
//!
//! The comments in that file are the one description of every key: editors, the manual page and
//! people read the same words.

/// The configuration file with every key, its default and a comment.
const TEXT: &str = include_str!("../../config.toml");

/// A section or a key, with its description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Such as `server`, or `route`.
    pub section: String,
    /// Empty for the section itself.
    pub key: String,
    /// Lines of plain text; `(restart)` marks a key that needs a restart.
    pub doc: String,
    /// The default as the file has it; empty for sections and for keys of routes.
    pub default: String,
}

/// All entries in the order of the file. The keys of a route follow the entry `route`.
pub fn entries() -> Vec<Entry> {
    read(TEXT)
}

fn read(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut section = "";
    for line in text.lines() {
        if let Some(words) = line.strip_prefix('#') {
            comment.push(words.strip_prefix(' ').unwrap_or(words));
            continue;
        }
        let comment = std::mem::take(&mut comment);
        if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            if section != name {
                push_list(&mut entries, name, &comment);
            }
            section = name;
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            entries.push(entry(name, "", &comment, ""));
        } else if let Some((key, default)) = line.split_once(" = ")
            && !comment.is_empty()
        {
            let default = default.split(" # ").next().unwrap_or_default().trim_end();
            entries.push(entry(section, key, &comment, default));
        }
    }
    entries
}

/// Reads the comment before a list of tables: words about the list, an empty line, then a table
/// with a key at the beginning of each row.
fn push_list(entries: &mut Vec<Entry>, section: &str, comment: &[&str]) {
    let mut parts = comment.splitn(2, |line| line.is_empty());
    entries.push(entry(section, "", parts.next().unwrap_or_default(), ""));
    for line in parts.next().unwrap_or_default() {
        match line.split_once(' ') {
            Some((key, doc)) if !key.is_empty() => {
                entries.push(entry(section, key, &[doc.trim_start()], ""));
            }
            _ => {
                if let Some(last) = entries.last_mut() {
                    last.doc.push('\n');
                    last.doc.push_str(line.trim_start());
                }
            }
        }
    }
}

fn entry(section: &str, key: &str, comment: &[&str], default: &str) -> Entry {
    Entry {
        section: section.into(),
        key: key.into(),
        doc: comment.join("\n"),
        default: default.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ROUTE_KEYS, SECTIONS};

    #[test]
    fn every_section_and_key_has_words() {
        let entries = entries();
        let has_words = |section: &str, key: &str| {
            entries
                .iter()
                .any(|entry| entry.section == section && entry.key == key && !entry.doc.is_empty())
        };
        for section in SECTIONS {
            assert!(has_words(section.name, ""), "[{}]", section.name);
            for key in section.keys {
                assert!(has_words(section.name, key.name), "{}.{}", section.name, key.name);
            }
        }
        assert!(has_words("route", ""), "[[route]]");
        for key in ROUTE_KEYS {
            assert!(has_words("route", key), "route.{key}");
        }
    }

    #[test]
    fn comments_are_those_right_before_a_key() {
        let text = "# About the file.\n\n# The first.\n[a]\n\n# Of b,\n# two lines.\nb = 1 # words\n\
                    c = 2\n\n# A list.\n#\n# d   of d,\n#     more\n# e   of e\n[[f]]\nd = 1\n\n[[f]]\nd = 2\n";
        let shown: Vec<_> = read(text)
            .into_iter()
            .map(|entry| [entry.section, entry.key, entry.doc, entry.default].join("|"))
            .collect();
        assert_eq!(
            shown,
            [
                "a||The first.|",
                "a|b|Of b,\ntwo lines.|1",
                "f||A list.|",
                "f|d|of d,\nmore|",
                "f|e|of e|"
            ]
        );
    }
}
