//! What can be set is documented: flags, commands and environment in the README, keys in `config.toml` with their defaults and in
//! `docs/operations.md`, endpoints in the README and `docs/protocol.md`, and so is what is measured.
//!
//! The tables that the parsers themselves read are compared with the files that people read, so neither can fall behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aivtuber_gateway::cli::{COMMANDS, FLAGS};
use aivtuber_gateway::config::{self, Config, ENVIRONMENT, ROUTE_KEYS, SECTIONS};
use aivtuber_gateway::proto::http::Content;
use aivtuber_gateway::service::endpoints::{ENDPOINTS, Endpoint};
use aivtuber_gateway::service::report::{self, Lifecycle, Snapshot};
use aivtuber_gateway::service::stats::Stats;

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
            assert!(
                readme.contains(&format!("`-{short}`, {written}")),
                "README.md lacks `-{short}` before {written}"
            );
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
        assert!(
            readme.contains(&format!("`{}`", variable.name)),
            "README.md lacks `{}`",
            variable.name
        );
    }
}

#[test]
fn config_toml_is_the_defaults() {
    let path = root("config.toml");
    let config =
        config::parse(&path, &read("config.toml")).unwrap_or_else(|problems| panic!("{problems}"));
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
            let (before, value) = rest
                .split_once(&format!("\n{} = ", key.name))
                .unwrap_or_else(|| panic!("no {name}"));
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
            let name = key.name;
            let Some((comment, value)) = rest.split_once(&format!("\n{name} = ")) else {
                panic!("config.toml lacks {}.{name}", section.name);
            };
            let is_marked = comment.contains("(restart)");
            assert_eq!(is_marked, key.needs_restart(), "{}.{name} is marked wrongly", section.name);
            rest = value;
        }
    }
}

#[test]
fn every_key_is_in_the_reference() {
    let reference = read("docs/operations.md");
    let mut rest = after(&reference, "\n## Configuration\n", "docs/operations.md");
    for section in SECTIONS {
        rest = after(rest, &format!("\n| `[{}]`", section.name), "docs/operations.md");
        let table = rest.split("\n\n").next().unwrap_or_default();
        for key in section.keys {
            let name = format!("{}.{}", section.name, key.name);
            let mark = if key.needs_restart() { " ↻" } else { "" };
            let row = format!("\n| `{}`{mark} | ", key.name);
            assert!(table.contains(&row), "docs/operations.md lacks {name}, or its mark is wrong");
        }
    }
    for key in ROUTE_KEYS {
        assert!(
            reference.contains(&format!("\n| `{key}` | ")),
            "docs/operations.md lacks route.{key}"
        );
    }
}

#[test]
fn every_metric_is_in_the_reference() {
    let stats = Stats::new();
    let mut snapshot = Snapshot::new("0", Duration::ZERO, Lifecycle::Serving, &stats);
    snapshot.results_wanted = true;
    let Content::Bytes(metrics) = report::metrics(&snapshot).content else {
        panic!("metrics are made for one client");
    };
    let metrics = String::from_utf8(metrics).expect("metrics are text");
    let reference = read("docs/operations.md");
    let table = after(&reference, "\n## Metrics\n", "docs/operations.md");
    let names = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE aivtuber_gateway_")?.split(' ').next());
    let mut count = 0;
    for name in names {
        assert!(table.contains(&format!("`{name}`")), "docs/operations.md lacks the metric {name}");
        count += 1;
    }
    assert!(count > 10, "only {count} metrics were found");
}

#[test]
fn every_endpoint_is_in_the_readme_and_the_protocol() {
    let (readme, protocol) = (read("README.md"), read("docs/protocol.md"));
    let section = after(&protocol, "\n## 3. HTTP on the same port\n", "docs/protocol.md");
    let table = section.split("\n\n").next().unwrap_or_default();
    for Endpoint { path, methods, .. } in ENDPOINTS {
        assert!(readme.contains(&format!("\n| `{path}` | ")), "README.md lacks {path}");
        for method in methods.iter().filter(|method| **method != "HEAD") {
            let row = format!("\n| `{method} {path}` | ");
            assert!(table.contains(&row), "docs/protocol.md lacks {method} {path}");
        }
    }
    let documented = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for request in documented {
        let is_known = ENDPOINTS.iter().any(|endpoint| {
            endpoint.methods.iter().any(|method| request == format!("{method} {}", endpoint.path))
        });
        assert!(is_known, "docs/protocol.md has {request}, which is no endpoint");
    }
}

#[test]
fn the_client_in_the_protocol_is_the_one_of_the_status_page() {
    let shown = format!("```js\n{}```\n", read("assets/client.js"));
    assert!(
        read("docs/protocol.md").contains(&shown),
        "docs/protocol.md shows another client than assets/client.js"
    );
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
