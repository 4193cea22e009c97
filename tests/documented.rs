//! What can be set is documented: flags, commands and environment in the README, keys in `config.toml` with their defaults.
//!
//! The tables that the parsers themselves read are compared with the files that people read, so neither can fall behind.

use std::path::{Path, PathBuf};

use aivtuber_gateway::cli::{COMMANDS, FLAGS};
use aivtuber_gateway::config::{self, Config, ENVIRONMENT, ROUTE_KEYS, SECTIONS};

#[test]
fn every_flag_is_in_the_readme() {
    let readme = read("README.md");
    for flag in FLAGS {
        let written = match flag.value() {
            Some(value) => format!("`--{} {value}`", flag.long),
            None => format!("`--{}`", flag.long),
        };
        assert!(readme.contains(&written), "README.md lacks {written}");
        if let Some(short) = flag.short {
            assert!(readme.contains(&format!("`-{short}`, {written}")), "README.md lacks `-{short}` before {written}");
        }
    }
}

#[test]
fn every_flag_in_the_readme_exists() {
    // Other programs' flags stand in blocks of commands; a table row that begins with a flag is about ours.
    for row in read("README.md").lines().filter(|line| line.starts_with("| `-")) {
        for word in row.split(['`', ' ']).filter(|word| word.starts_with("--")) {
            assert!(
                FLAGS.iter().any(|flag| format!("--{}", flag.long) == word),
                "README.md has {word}, which is no flag"
            );
        }
    }
}

#[test]
fn every_command_and_variable_is_in_the_readme() {
    let readme = read("README.md");
    for command in COMMANDS {
        let written = format!("aivtuber-gateway {}", command.name);
        assert!(readme.contains(&written), "README.md lacks `{written}`");
    }
    for variable in ENVIRONMENT {
        assert!(readme.contains(&format!("`{}`", variable.name)), "README.md lacks `{}`", variable.name);
    }
}

#[test]
fn config_toml_is_the_defaults() {
    let path = root("config.toml");
    let config = config::parse(&path, &read("config.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config, Config::default());
}

#[test]
fn config_toml_has_every_key_with_a_comment_in_the_order_of_the_table() {
    let text = read("config.toml");
    let mut rest = text.as_str();
    for section in SECTIONS {
        rest = after(rest, &format!("\n[{}]\n", section.name), "config.toml");
        for key in section.keys {
            let name = format!("{}.{}", section.name, key.name);
            let (before, value) = rest.split_once(&format!("\n{} = ", key.name)).unwrap_or_else(|| panic!("no {name}"));
            assert!(
                before.lines().last().is_some_and(|line| line.starts_with("# ")),
                "{name} has no comment before it"
            );
            assert!(!before.contains("\n["), "{name} stands in another section");
            rest = value;
        }
    }
}

#[test]
fn config_toml_explains_the_keys_of_a_route() {
    let text = read("config.toml");
    let comment = after(&text, "\n# Routes: ", "config.toml").split("\n[[route]]").next().unwrap();
    for key in ROUTE_KEYS {
        assert!(comment.contains(&format!("\n# {key} ")), "the comment on routes lacks `{key}`");
    }
}

#[test]
fn config_toml_marks_what_needs_a_restart() {
    let text = read("config.toml");
    for section in SECTIONS {
        let mut rest = after(&text, &format!("\n[{}]\n", section.name), "config.toml");
        for key in section.keys {
            let (comment, value) = rest.split_once(&format!("\n{} = ", key.name)).unwrap();
            let (is_marked, name) = (comment.contains("(restart)"), key.name);
            assert_eq!(is_marked, key.needs_restart(), "{}.{name} is marked wrongly", section.name);
            rest = value;
        }
    }
}

fn after<'a>(text: &'a str, mark: &str, file: &str) -> &'a str {
    text.split_once(mark).unwrap_or_else(|| panic!("{file} lacks {mark:?}")).1
}

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
