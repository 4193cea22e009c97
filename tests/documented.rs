//! The documents and the tests name what the program has: flags, commands and variables, keys,
//! endpoints, close reasons and codes, and metrics.
//!
//! The tables that the program itself uses are compared with the files that people read, in both
//! directions, so neither can fall behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aivtuber_gateway::cli::{COMMANDS, FLAGS};
use aivtuber_gateway::config::{self, Config, ENVIRONMENT, ROUTE_KEYS, SECTIONS};
use aivtuber_gateway::net::Side;
use aivtuber_gateway::proto::http::Content;
use aivtuber_gateway::service::endpoints::{ENDPOINTS, Endpoint};
use aivtuber_gateway::service::report::{self, Lifecycle, Snapshot};
use aivtuber_gateway::service::stats::Stats;
use aivtuber_gateway::session::CloseReason;

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
    // Other programs' flags are in blocks of commands; a table row that begins with a flag is
    // about the gateway's.
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
            assert!(!before.contains("\n["), "{name} is in another section");
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

/// With `SCHEMA_REWRITE=1` in the environment, the file is written anew.
#[test]
fn the_schema_is_that_of_the_table() {
    let path = root("contrib/config.schema.json");
    if std::env::var_os("SCHEMA_REWRITE").is_some() {
        std::fs::write(&path, config::schema()).unwrap();
    }
    let is_current = read("contrib/config.schema.json") == config::schema();
    assert!(is_current, "write it anew: SCHEMA_REWRITE=1 cargo test --test documented schema");
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
    let reference = read("docs/operations.md");
    let table = after(&reference, "\n## Metrics\n", "docs/operations.md");
    let names = metric_names();
    for name in &names {
        assert!(table.contains(&format!("`{name}`")), "docs/operations.md lacks the metric {name}");
    }
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for name in rows.map(|name| name.split('{').next().unwrap()) {
        assert!(names.iter().any(|known| known == name), "docs/operations.md has {name}");
    }
    assert!(names.len() > 10, "only {} metrics were found", names.len());
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
fn every_endpoint_is_in_the_tests_of_methods_and_heads() {
    let tests = read("tests/interop/test_http.py");
    let list = after(&tests, "\nENDPOINTS = [", "test_http.py").split(']').next().unwrap();
    for Endpoint { path, .. } in ENDPOINTS {
        let path = path.split('{').next().unwrap();
        assert!(list.contains(&format!("\"{path}")), "ENDPOINTS in test_http.py lacks {path}");
    }
}

#[test]
fn every_endpoint_is_asked_in_a_test_of_its_own() {
    let mut tests = String::new();
    for entry in std::fs::read_dir(root("tests/interop")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "py") && !path.ends_with("test_http.py") {
            tests.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    for Endpoint { path, .. } in ENDPOINTS {
        let path = path.split('{').next().unwrap();
        assert!(tests.contains(&format!("\"{path}")), "no test but test_http.py asks for {path}");
    }
}

#[test]
fn every_metric_is_in_a_test() {
    let tests = all_tests();
    let metrics = metric_names();
    let lacking: Vec<_> = metrics.iter().filter(|name| !tests.contains(*name)).collect();
    assert!(lacking.is_empty(), "no test reads the metrics {lacking:?}");
}

#[test]
fn every_counter_is_counted() {
    let fields = read("src/service/stats.rs");
    let fields = after(&fields, "\npub struct Stats {\n", "stats.rs").split("\n}").next().unwrap();
    let code = program();
    let names: Vec<&str> = fields.lines().filter_map(public_field).collect();
    for name in &names {
        let is_counted =
            [" += ", " = "].iter().any(|sign| code.contains(&format!(".{name}{sign}")));
        assert!(is_counted, "nothing counts `Stats::{name}`");
    }
    assert!(names.len() > 10, "only {} counters were found", names.len());
}

#[test]
fn every_key_is_in_a_test_and_used() {
    let tests = all_tests();
    for section in SECTIONS {
        for key in section.keys {
            let name = format!("{}.{}", section.name, key.name);
            assert!(has_word(&tests, key.name), "no test has {name}");
        }
    }
    // A key is a field of the settings of its part. One that only `config` names does nothing.
    let code = program();
    for field in session_settings() {
        let is_used = code.contains(&format!(".{field}")) || code.contains(&format!(" {field},"));
        assert!(is_used, "no code uses `session::Settings::{field}`");
    }
}

#[test]
fn every_close_reason_is_in_a_test() {
    // `tests/memory.rs` ends workers for it.
    const OTHERWISE: [CloseReason; 1] = [CloseReason::OverBudget];
    let tests = all_tests();
    for reason in CloseReason::ALL.iter().filter(|reason| !OTHERWISE.contains(reason)) {
        let written = format!("reason={}", reason.word());
        // `tests/interop/test_ledger.py` compares the ending in log, ledger and metrics.
        let is_in_ledger = tests.contains(&format!("stage.ended(\"{}\"", reason.word()));
        let is_tested = is_in_ledger || has_word(&tests, &written);
        assert!(is_tested, "no test ends a connection with {written}");
    }
}

#[test]
fn every_step_of_the_transcript_is_noted_and_in_its_test() {
    let text = read("src/session/transcript.rs");
    let variants = after(&text, "\npub enum Event<'e> {\n", "transcript.rs");
    let variants = variants.split("\n}").next().unwrap().lines();
    let names: Vec<&str> = variants
        .filter_map(|line| {
            line.strip_prefix("    ").filter(|rest| rest.starts_with(char::is_uppercase))
        })
        .map(|line| line.split(|sign: char| !sign.is_alphanumeric()).next().unwrap())
        .collect();
    let tests = after(&text, "\nmod tests {\n", "transcript.rs");
    let code = program();
    for name in &names {
        let written = format!("Event::{name}");
        assert!(has_word(tests, &written), "the test in transcript.rs has no line of {written}");
        assert!(has_word(&code, &written), "nothing notes {written}");
    }
    assert!(names.len() > 20, "only {} events were found", names.len());
}

#[test]
fn every_source_file_is_in_the_table_of_the_architecture() {
    // A folder in the table covers its files. The files here need no row.
    const OTHERS: [&str; 4] = ["mod.rs", "lib.rs", "tests.rs", "testing.rs"];
    let text = read("docs/architecture.md");
    let table = after(&text, "\n### Files\n", "docs/architecture.md");
    let table = table.split("\n## ").next().unwrap();
    let (mut folders, mut count) = (vec![root("src")], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let inside = path.strip_prefix(root("src")).unwrap().display().to_string();
            if path.is_dir() {
                let is_summed_up = table.contains(&format!("{name}/`"));
                folders.extend((!is_summed_up).then_some(path));
            } else if !OTHERS.contains(&name.as_str()) && name.ends_with(".rs") {
                let is_there =
                    table.contains(&format!("`{name}`")) || table.contains(&format!("/{name}`"));
                assert!(is_there, "docs/architecture.md has no row for src/{inside}");
                count += 1;
            }
        }
    }
    assert!(count > 40, "only {count} files were found");
}

#[test]
fn every_close_reason_is_in_the_reference() {
    let reference = read("docs/operations.md");
    let section = after(&reference, "\n### Why a connection ended\n", "docs/operations.md");
    let section = section.split("\n### ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let documented: Vec<&str> =
        rows.flat_map(|cell| cell.split(", ")).map(|word| word.trim_matches('`')).collect();
    for reason in CloseReason::ALL {
        let word = reason.word();
        assert!(documented.contains(&word), "docs/operations.md lacks the reason `{word}`");
    }
    for word in documented {
        let is_known = CloseReason::ALL.iter().any(|reason| reason.word() == word);
        assert!(is_known, "docs/operations.md has `{word}`, which is no reason");
    }
}

#[test]
fn every_close_code_is_in_the_protocol_with_its_phrase() {
    // Connections that were no WebSocket, codes that are the other end's own, and one whose phrase
    // is followed by what the backend answered.
    const NOT_SENT: [CloseReason; 10] = [
        CloseReason::TlsFailed,
        CloseReason::ClientLeft,
        CloseReason::ResponseCut,
        CloseReason::BadProxyHeader,
        CloseReason::BadRequest,
        CloseReason::HeaderTimeout,
        CloseReason::Refused,
        CloseReason::ClientClosed,
        CloseReason::BackendClosed,
        CloseReason::BackendOverloaded,
    ];
    let protocol = read("docs/protocol.md");
    let section = after(&protocol, "\n## 4. Close codes\n", "docs/protocol.md");
    let section = section.split("\n## ").next().unwrap();
    for reason in CloseReason::ALL.iter().filter(|reason| !NOT_SENT.contains(reason)) {
        let (code, phrase) = (reason.close_code(Side::Downstream).to_string(), reason.phrase());
        let mut rows = section.lines().filter(|line| line.starts_with("| "));
        let is_there = rows.any(|row| {
            row.split(" | ").next().is_some_and(|cell| cell.contains(&code)) && row.contains(phrase)
        });
        assert!(is_there, "docs/protocol.md lacks a row with {code} and `{phrase}`");
    }
}

/// The names of all metrics, without their common beginning.
fn metric_names() -> Vec<String> {
    let stats = Stats::new();
    let mut snapshot = Snapshot::new("0", Duration::ZERO, Lifecycle::Serving, &stats);
    snapshot.results_wanted = true;
    let Content::Bytes(metrics) = report::metrics(&snapshot).content else {
        panic!("metrics are made for one client");
    };
    let metrics = String::from_utf8(metrics).expect("metrics are text");
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE aivtuber_gateway_"));
    types.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// Whether `word` is in `text`, and not as a part of a longer word.
fn has_word(text: &str, word: &str) -> bool {
    let is_part =
        |sign: Option<char>| sign.is_some_and(|sign| sign.is_alphanumeric() || sign == '_');
    text.match_indices(word).any(|(at, _)| {
        !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next())
    })
}

/// The name of a field, in a line that declares it.
fn public_field(line: &str) -> Option<&str> {
    Some(line.trim().strip_prefix("pub ")?.split_once(':')?.0)
}

/// The settings of sessions and of how they deliver results.
fn session_settings() -> Vec<String> {
    let mut names = Vec::new();
    for file in ["src/session/mod.rs", "src/session/output.rs"] {
        let text = read(file);
        let fields = after(&text, "\npub struct Settings {\n", file).split("\n}").next().unwrap();
        names.extend(fields.lines().filter_map(public_field).map(str::to_owned));
    }
    assert!(names.len() > 15, "only {} settings were found", names.len());
    names
}

/// All tests but these.
fn all_tests() -> String {
    let mut tests = String::new();
    read_tests(&root("tests"), &mut tests);
    read_tests(&root("src"), &mut tests);
    tests
}

/// The code of the program without tests, and without what only declares or reports what it has:
/// configuration, the table of reasons, the transcript, counters and reports.
fn program() -> String {
    const DECLARES: [&str; 5] = ["config", "report", "stats.rs", "close.rs", "transcript.rs"];
    let mut code = String::new();
    let mut folders = vec![root("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if DECLARES.iter().any(|name| path.ends_with(name)) || path.ends_with("tests.rs") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                code.push_str(text.split("#[cfg(test)]\nmod ").next().unwrap_or_default());
            }
        }
    }
    code
}

/// Appends the tests in a folder: whole files in `tests`, and test modules in `src`.
fn read_tests(folder: &Path, tests: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("node_modules") {
            read_tests(&path, tests);
        } else if ["rs", "py", "txt"].iter().any(|known| path.extension() == Some(known.as_ref()))
            && !path.ends_with("documented.rs")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            let is_source = path.starts_with(root("src")) && !path.ends_with("tests.rs");
            let start = if is_source { text.find("#[cfg(test)]\nmod ") } else { Some(0) };
            tests.push_str(start.map_or("", |start| &text[start..]));
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
