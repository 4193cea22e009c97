//! The rules of the code that no lint can hold: layers, circles of imports, unused public items,
//! names, lengths.
//!
//! What a lint can hold is in `Cargo.toml`, `clippy.toml` and `src/lib.rs`. The sources are read as
//! text, with comments, literals and test modules blanked out. Each rule is a function that returns
//! what is wrong, and beside the test that applies it to the project there is one that shows it a
//! made-up source and expects a complaint: a rule that finds nothing is worse than none.

#[path = "tidy/reader.rs"]
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use reader::{code_of, is_word, paths, tokens, use_tree, without_literals, words};

/// One file.
struct Source {
    /// From the root of the crate: `src/session/flow.rs`.
    path: String,
    text: String,
    /// The text without comments, literals and test modules, with the same number of lines.
    code: String,
}

/// What is wrong, as `path:line: sentence`.
type Faults = Vec<String>;

/// The layers, lowest first. Modules in one row do not know each other.
const LAYERS: [&[&str]; 9] = [
    &["base"],
    &["proto"],
    &["service", "net"],
    &["session"],
    &["gateway"],
    &["reactor"],
    &["logging", "healthcheck"],
    // It knows the settings of the parts below; no part knows it.
    &["config"],
    &["cert", "cli", "demo", "doctor", "explain", "tap"],
];

const COLUMNS_MAX: usize = 100;
/// Lines of a source file, without its tests.
const LINES_MAX: usize = 700;
/// Lines of a function, its signature included.
const FUNCTION_LINES_MAX: usize = 80;

/// Words that say nothing in a name.
const EMPTY_WORDS: [&str; 7] = ["manager", "handler", "helper", "util", "utils", "info", "get"];

// ---- the rules, applied to the project

#[test]
fn a_layer_imports_only_from_layers_below_it() {
    expect_none(library().iter().flat_map(layers).collect());
}

#[test]
fn imports_make_no_circles() {
    expect_none(circles(&library()));
}

#[test]
fn public_items_are_used_outside_their_file() {
    expect_none(unused_items(&library(), &read(&["src/main.rs", "tests", "benches"])));
}

#[test]
fn names_say_something() {
    expect_none(library().iter().flat_map(empty_words).collect());
}

#[test]
fn nothing_is_left_for_later() {
    expect_none(project().iter().flat_map(left_for_later).collect());
}

#[test]
fn lines_functions_and_files_have_a_limited_length() {
    expect_none(project().iter().flat_map(long_lines).collect());
    expect_none(read(&["src", "tests"]).iter().flat_map(long_functions).collect());
    expect_none(library().iter().flat_map(long_file).collect());
}

fn expect_none(faults: Faults) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

// ---- the rules

/// Imports from a layer that is not below, as in `LAYERS`.
fn layers(source: &Source) -> Faults {
    let Some(module) = top_module(&source.path) else {
        return vec![format!("{}: this module is in no layer", source.path)];
    };
    let mut faults = Vec::new();
    for (line, path) in paths(&source.code) {
        let Some(absolute) = absolute(&path, &source.path) else { continue };
        let Some(other) = absolute.split("::").next() else { continue };
        let (Some(own), Some(imported)) = (layer(&module), layer(other)) else {
            // A name that lib.rs itself defines.
            if other.starts_with(|first: char| first.is_ascii_lowercase()) {
                faults.push(format!("{}:{line}: `{path}` is in no layer", source.path));
            }
            continue;
        };
        if other != module && imported >= own {
            faults.push(format!("{}:{line}: `{path}` is not below {module}", source.path));
        }
    }
    faults
}

fn layer(module: &str) -> Option<usize> {
    match module {
        "lib" | "main" => Some(LAYERS.len()),
        _ => LAYERS.iter().position(|modules| modules.contains(&module)),
    }
}

/// Files that import each other, directly or through others.
///
/// What `a/mod.rs` defines is for the files in `a/` to use, so an import from an enclosing module
/// does not count. A name that a `mod.rs` re-exports counts as imported from where it is defined.
fn circles(sources: &[Source]) -> Faults {
    let files = Files::new(sources);
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        let own = module_of(&source.path);
        let imported = imports.entry(&source.path).or_default();
        for (_, path) in paths(&source.code) {
            if let Some(file) = files.resolve(&path, &source.path)
                && file != source.path
                && !is_within(&own, &module_of(file))
            {
                imported.insert(file);
            }
        }
    }
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for &next in imports.get(file).into_iter().flatten() {
                if next == to {
                    return true;
                }
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        false
    };
    let mut faults = Vec::new();
    for (from, imported) in &imports {
        for to in imported.iter().filter(|to| *to > from && reaches(to, from)) {
            faults.push(format!("{from} and {to} import each other"));
        }
        // A longer circle is reported at its first import.
        for to in imported.iter().filter(|to| *to < from && reaches(to, from)) {
            let is_direct = imports.get(to).is_some_and(|back| back.contains(from));
            if !is_direct {
                faults.push(format!("{from} imports {to}, which leads back to it"));
            }
        }
    }
    faults
}

/// Whether `module` is `outer` or inside of it.
fn is_within(module: &str, outer: &str) -> bool {
    module == outer || module.strip_prefix(outer).is_some_and(|rest| rest.starts_with("::"))
}

/// Public items of the library that no other file names.
///
/// A type is exempt while its own file has it in the signature of a public item: it is used by its
/// values then, without being named.
fn unused_items(library: &[Source], others: &[Source]) -> Faults {
    let words_of = |code: &str| -> BTreeSet<String> {
        tokens(code).iter().map(|token| token.text.to_owned()).collect()
    };
    // With their tests: what only a test needs must be public for it, too.
    let used: Vec<(&str, BTreeSet<String>)> = library
        .iter()
        .chain(others)
        .map(|source| (source.path.as_str(), words_of(&without_literals(&source.text))))
        .collect();
    let mut faults = Vec::new();
    for source in library {
        let surface = public_surface(&source.code);
        for (line, kind, name) in public_items(&source.code) {
            let is_type = matches!(kind, "struct" | "enum" | "trait" | "type");
            let is_used =
                used.iter().any(|(path, words)| *path != source.path && words.contains(&name));
            let is_exempt = is_type && surface.contains(&name);
            if !is_used && !is_exempt {
                faults.push(format!("{}:{line}: no other file uses `{name}`", source.path));
            }
        }
    }
    faults
}

/// Line, kind and name of each item that is public without restriction.
fn public_items(code: &str) -> Vec<(usize, &str, String)> {
    const KINDS: [&str; 7] = ["fn", "struct", "enum", "trait", "type", "const", "static"];
    let tokens = tokens(code);
    let mut items = Vec::new();
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.text == "pub") {
        let mut rest = tokens[at + 1..].iter().map(|token| token.text).peekable();
        let mut kind = rest.next().unwrap_or_default();
        while matches!(kind, "const" | "unsafe" | "async")
            && rest.peek().is_some_and(|next| matches!(*next, "fn" | "unsafe" | "trait"))
        {
            kind = rest.next().unwrap_or_default();
        }
        if KINDS.contains(&kind)
            && let Some(name) = rest.next()
        {
            items.push((token.line, kind, name.to_owned()));
        }
    }
    items
}

/// The words in the signatures and fields of public items.
fn public_surface(code: &str) -> BTreeSet<String> {
    let tokens = tokens(code);
    let mut surface = BTreeSet::new();
    for at in (0..tokens.len()).filter(|&at| tokens[at].text == "pub") {
        let is_body_public =
            tokens.get(at + 1).is_some_and(|kind| matches!(kind.text, "enum" | "trait"));
        // The name of the item itself says nothing about its use.
        let mut depth = 0;
        for token in tokens[at + 1..].iter().skip(2) {
            match token.text {
                "{" | "}" | ";" if depth == 0 && !is_body_public => break,
                ";" if depth == 0 => break,
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                // The next field.
                "pub" => break,
                word if is_word(word) => {
                    surface.insert(word.to_owned());
                }
                _ => {}
            }
        }
    }
    surface
}

/// Names with a word of `EMPTY_WORDS`.
fn empty_words(source: &Source) -> Faults {
    const BEFORE_NAMES: [&str; 9] =
        ["fn", "struct", "enum", "trait", "mod", "type", "const", "static", "union"];
    let mut names: Vec<(usize, String)> =
        source.path.split('/').map(|part| (1, part.trim_end_matches(".rs").to_owned())).collect();
    for pair in tokens(&source.code).windows(2) {
        if BEFORE_NAMES.contains(&pair[0].text) {
            names.push((pair[1].line, pair[1].text.to_owned()));
        }
    }
    let mut faults = Vec::new();
    for (line, name) in names {
        if let Some(word) = words(&name).iter().find(|word| EMPTY_WORDS.contains(&word.as_str())) {
            faults.push(format!("{}:{line}: `{name}`: `{word}` says nothing", source.path));
        }
    }
    faults
}

/// Marks of unfinished work.
fn left_for_later(source: &Source) -> Faults {
    if source.path == "tests/tidy.rs" {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let mut words = line.split(|sign: char| !sign.is_ascii_alphanumeric());
        if let Some(word) = words.find(|word| ["TODO", "FIXME", "XXX", "HACK"].contains(word)) {
            faults.push(format!("{}:{}: {word}: do it, or remove it", source.path, index + 1));
        }
    }
    faults
}

/// Lines that `rustfmt` does not wrap: comments.
fn long_lines(source: &Source) -> Faults {
    let mut faults = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        let is_comment =
            line.trim_start().starts_with("//") || (line.contains(" // ") && !line.contains('"'));
        if columns > COLUMNS_MAX && is_comment {
            let line = index + 1;
            faults.push(format!("{}:{line}: {columns} columns, not {COLUMNS_MAX}", source.path));
        }
    }
    faults
}

/// Functions that do more than one thing. Relies on `rustfmt`: a body ends at the next line that
/// has a brace at the column of the function's first line.
fn long_functions(source: &Source) -> Faults {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut faults = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let mut words = code.split_whitespace().skip_while(|word| {
            word.starts_with("pub") || matches!(*word, "const" | "async" | "unsafe")
        });
        if words.next() != Some("fn") || code.ends_with(['}', ';']) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[at..].iter().position(|line| *line == end).map_or(0, |last| last + 1);
        if length > FUNCTION_LINES_MAX {
            let (path, line) = (&source.path, at + 1);
            faults.push(format!("{path}:{line}: {length} lines, not {FUNCTION_LINES_MAX}: {code}"));
        }
    }
    faults
}

/// Files that should become folders.
fn long_file(source: &Source) -> Faults {
    let lines = match source.text.find("\n#[cfg(test)]\nmod ") {
        Some(end) => source.text[..end].lines().count(),
        None => source.text.lines().count(),
    };
    match lines > LINES_MAX {
        true => vec![format!("{}: {lines} lines without tests, not {LINES_MAX}", source.path)],
        false => Vec::new(),
    }
}

// ---- each rule finds what it is for

#[test]
fn the_layer_rule_finds_imports_from_above() {
    let found = |path: &str, text: &str| layers(&source(path, text)).len();
    for (path, text) in [
        ("src/proto/ws.rs", "use crate::service::stats::Stats;"),
        ("src/service/bus.rs", "use crate::net::Conn;"),
        ("src/net/conn.rs", "use crate::{base::buf, service::route};"),
        ("src/net/conn.rs", "fn f() -> crate::gateway::Gateway {}"),
        ("src/session/flow/stream.rs", "use super::super::super::gateway::Gateway;"),
        ("src/gateway/mod.rs", "use super::reactor::Reactor;"),
        ("src/gateway/mod.rs", "use crate::config::Config;"),
        ("src/logging/mod.rs", "use crate::config::Config;"),
        ("src/base/buf.rs", "use aivtuber_gateway::config::Config;"),
        ("src/base/buf.rs", "#[cfg(test)] mod tests {}\nuse crate::gateway::Gateway;"),
        ("src/base/buf.rs", "use crate::attic::A;"),
        ("src/attic.rs", ""),
    ] {
        assert_eq!(found(path, text), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("src/proto/ws.rs", "use crate::base::buf::Buf;"),
        ("src/session/flow.rs", "use super::relay::Relay; use super::super::proto::ws;"),
        ("src/config/mod.rs", "use crate::logging; use crate::gateway::Settings;"),
        ("src/main.rs", "use aivtuber_gateway::config::Config;"),
        ("src/base/buf.rs", "// use crate::gateway::Gateway;\nconst A: &str = \"crate::gateway\";"),
        ("src/base/buf.rs", "#[cfg(test)]\nmod tests { use crate::gateway::Gateway; }"),
    ] {
        assert_eq!(found(path, text), 0, "{path}: {text}");
    }
}

#[test]
fn the_circle_rule_finds_circles() {
    let found = |files: &[(&str, &str)]| {
        circles(&files.iter().map(|(path, text)| source(path, text)).collect::<Vec<_>>()).len()
    };
    let direct = [("src/a/b.rs", "use super::c::C;"), ("src/a/c.rs", "use crate::a::b;")];
    assert_eq!(found(&direct), 1);
    let long = [
        ("src/a/b.rs", "use super::c::C;"),
        ("src/a/c.rs", "fn f() { super::d::g() }"),
        ("src/a/d.rs", "use super::b::B;"),
    ];
    assert!(found(&long) > 0);
    let reexported = [
        ("src/a/mod.rs", "pub use b::B;"),
        ("src/a/b.rs", "use super::c::C;"),
        ("src/a/c.rs", "use super::B;"),
    ];
    assert_eq!(found(&reexported), 1, "a re-export hides no circle");
    let parent = [("src/a/mod.rs", "mod b; use b::B;"), ("src/a/b.rs", "use super::Shared;")];
    assert_eq!(found(&parent), 0, "a folder's mod.rs is for its files to use");
    let tests = [
        ("src/a/b.rs", "use super::c::C;"),
        ("src/a/c.rs", "#[cfg(test)]\nmod tests { use crate::a::b::B; }"),
    ];
    assert_eq!(found(&tests), 0);
}

#[test]
fn the_rule_on_public_items_finds_unused_ones() {
    let found = |text: &str, other: &str| {
        unused_items(&[source("src/a.rs", text)], &[source("tests/a.rs", other)]).len()
    };
    for text in [
        "pub fn f() {}",
        "impl A { pub const fn f(&self) {} }",
        "pub struct F;",
        "pub const F: u8 = 1;",
        "pub enum F { A }",
    ] {
        assert_eq!(found(text, "fn main() {}"), 1, "{text}");
        assert_eq!(found(text, "fn main() { f(F) }"), 0, "{text}");
    }
    assert_eq!(found("pub(crate) fn f() {}", ""), 0, "the compiler finds these");
    assert_eq!(found("pub fn f() {}", "// f"), 1, "a comment is no use");
    assert_eq!(found("pub struct F; pub fn g() -> F { F }", "g()"), 0);
    assert_eq!(found("pub struct F; pub struct G { pub f: F }", "G"), 0);
    assert_eq!(found("pub struct F; pub enum G { A(F) }", "G"), 0);
    assert_eq!(found("pub struct F; fn g() -> F { F }", "g()"), 1);
}

#[test]
fn the_rule_on_names_finds_empty_words() {
    for text in [
        "struct SessionManager;",
        "fn get_name() {}",
        "fn request_info() {}",
        "mod utils {}",
        "enum HTTPHandler {}",
        "trait Helper {}",
        "const UTIL_MAX: u8 = 1;",
    ] {
        assert_eq!(empty_words(&source("src/gateway/mod.rs", text)).len(), 1, "{text}");
    }
    for text in
        ["fn handle_ready() {}", "fn gets() {}", "fn f() { info!(\"a\"); }", "fn forget() {}"]
    {
        assert_eq!(empty_words(&source("src/gateway/mod.rs", text)).len(), 0, "{text}");
    }
    assert_eq!(empty_words(&source("src/session/helper.rs", "")).len(), 1);
    assert_eq!(empty_words(&source("src/util/mod.rs", "")).len(), 1);
}

#[test]
fn the_rules_on_text_find_marks_and_lengths() {
    let marks = "// TODO: more\n/* FIXME */\nfn f() {}";
    assert_eq!(left_for_later(&source("src/a.rs", marks)).len(), 2);
    assert_eq!(left_for_later(&source("src/a.rs", "fn todo_list() {}")).len(), 0);
    assert_eq!(
        long_lines(&source("src/a.rs", &format!("// {}", "x".repeat(COLUMNS_MAX - 2)))).len(),
        1
    );
    assert_eq!(
        long_lines(&source("src/a.rs", &format!("// {}", "é".repeat(COLUMNS_MAX - 3)))).len(),
        0
    );
    let lines = "fn f() {}\n".repeat(701);
    assert_eq!(long_file(&source("src/a.rs", &lines)).len(), 1);
    let tests = format!("\n#[cfg(test)]\nmod tests {{}}\n{lines}");
    assert_eq!(long_file(&source("src/a.rs", &tests)).len(), 0);
    let function =
        |lines: usize| format!("    pub fn f(\n    ) {{\n{}    }}\n", "\n".repeat(lines - 3));
    assert_eq!(long_functions(&source("src/a.rs", &function(FUNCTION_LINES_MAX))).len(), 0);
    assert_eq!(long_functions(&source("src/a.rs", &function(FUNCTION_LINES_MAX + 1))).len(), 1);
}

// ---- files and modules

/// The files of the library, by module and by what their `mod.rs` re-export.
struct Files<'a> {
    /// `session::flow` to `src/session/flow.rs`.
    by_module: BTreeMap<String, &'a str>,
    /// `session::CloseReason` to `session::close::CloseReason`.
    reexports: BTreeMap<String, String>,
}

impl<'a> Files<'a> {
    fn new(sources: &'a [Source]) -> Self {
        let by_module: BTreeMap<String, &str> =
            sources.iter().map(|source| (module_of(&source.path), source.path.as_str())).collect();
        let mut reexports = BTreeMap::new();
        for source in sources {
            let own = module_of(&source.path);
            let tokens = tokens(&source.code);
            for at in (1..tokens.len()).filter(|&at| tokens[at].text == "use") {
                if tokens[at - 1].text != "pub" {
                    continue;
                }
                use_tree(&tokens, at + 1, "", &mut |_, path, name| {
                    // `pub use close::CloseReason` is relative to its own module.
                    let target = absolute(&path, &source.path).unwrap_or(format!("{own}::{path}"));
                    reexports.insert(format!("{own}::{name}"), target);
                });
            }
        }
        Self { by_module, reexports }
    }

    /// The file that defines what `path`, written in the file `from`, names; `None` outside the
    /// library.
    fn resolve(&self, path: &str, from: &str) -> Option<&'a str> {
        let mut path = match absolute(path, from) {
            Some(path) => path,
            // A child module, named without `self`.
            None => {
                let child = format!("{}::{path}", module_of(from));
                let (first, _) = path.split_once("::")?;
                self.by_module.get(&format!("{}::{first}", module_of(from)))?;
                child
            }
        };
        for _ in 0..4 {
            match self.reexports.iter().find(|(name, _)| is_within(&path, name)) {
                Some((name, target)) => path = format!("{target}{}", &path[name.len()..]),
                None => break,
            }
        }
        let mut module = path.as_str();
        loop {
            if let Some(file) = self.by_module.get(module) {
                return Some(file);
            }
            module = module.rsplit_once("::")?.0;
        }
    }
}

/// The module of a file: `session::flow` for `src/session/flow.rs`, `session` for
/// `src/session/mod.rs`.
fn module_of(path: &str) -> String {
    let inside = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    inside.trim_end_matches("/mod").replace('/', "::")
}

/// The module of a file at the top of the library; `None` if it is in no layer.
fn top_module(path: &str) -> Option<String> {
    let module = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
    layer(module).map(|_| module.to_owned())
}

/// `path`, written in the file `from`, as seen from the root of the library; `None` if it does not
/// begin with `crate`, `super` or `self`.
fn absolute(path: &str, from: &str) -> Option<String> {
    let (first, rest) = path.split_once("::").unwrap_or((path, ""));
    let mut module = match first {
        "crate" | "aivtuber_gateway" => return (!rest.is_empty()).then(|| rest.to_owned()),
        "super" => module_of(from),
        _ => return None,
    };
    let mut path = path;
    while let Some(rest) = path.strip_prefix("super") {
        module = module.rsplit_once("::").map_or(String::new(), |(outer, _)| outer.to_owned());
        path = rest.trim_start_matches("::");
    }
    match (module.is_empty(), path.is_empty()) {
        (true, true) => None,
        (true, false) => Some(path.to_owned()),
        (false, true) => Some(module),
        (false, false) => Some(format!("{module}::{path}")),
    }
}

// ---- reading the sources

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
}

/// The library and the binary, without files of tests.
fn library() -> Vec<Source> {
    let mut sources = read(&["src"]);
    sources.retain(|source| !source.path.ends_with("/tests.rs"));
    assert!(sources.len() > 30, "only {} files were found", sources.len());
    sources
}

/// Everything that people write.
fn project() -> Vec<Source> {
    read(&["src", "tests", "benches"])
}

fn read(paths: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for path in paths {
        read_path(root, &root.join(path), &mut sources);
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn read_path(root: &Path, path: &Path, sources: &mut Vec<Source>) {
    if path.is_dir() {
        if path.ends_with("node_modules") || path.ends_with("target") {
            return;
        }
        let entries =
            fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for entry in entries {
            read_path(root, &entry.expect("an entry can be read").path(), sources);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text =
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let path = path.strip_prefix(root).expect("it is inside").to_string_lossy();
        sources.push(source(&path, &text));
    }
}
