//! The house checks itself: which floor may know which, where certain words may stand, what no file may hold.
//!
//! The sources are read as text, with comments, literals and test modules blanked out: no compiler is asked. Each rule is a
//! function from one source to what is wrong with it, so that next to the test that holds it over the whole house there is one
//! that shows it a made-up source and sees it complain. A rule that catches nothing is worse than none.

use std::fs;
use std::path::Path;

/// One file.
struct Source {
    /// From the root of the crate: `src/session/flow.rs`.
    path: String,
    text: String,
    /// The text without comments, literals and test modules; as many lines as the text has.
    code: String,
}

/// What is wrong, as `path:line: sentence`.
type Faults = Vec<String>;

/// Lines that people write may be a little longer than what `rustfmt` makes of code.
const COLUMNS_MAX: usize = 120;
const PROSE_COLUMNS_MAX: usize = 140;

/// Words that say nothing: another name is always better.
const LEFT_OUT: [&str; 7] = ["manager", "handler", "helper", "util", "utils", "info", "get"];

/// What no code may hold, and what to do instead.
const BANNED: [(&str, &str); 8] = [
    ("Rc<RefCell", "sharing is lending: `&mut Context`"),
    ("thread_local!", "sharing is lending: `&mut Context`"),
    ("static mut", "sharing is lending: `&mut Context`"),
    ("todo!", "finish it"),
    ("unimplemented!", "finish it"),
    ("dbg!", "log at debug level"),
    ("println!", "the log, or the front door's `say`"),
    ("#[allow(", "follow the lint, or `#[expect(…, reason = …)]`"),
];

/// Words with a home: only these modules may hold them, whether a module is a file or a folder.
const HOMES: [(&str, &[&str]); 6] = [
    ("std::time::Instant", &["reactor", "main", "demo", "healthcheck", "logging"]),
    ("std::time::SystemTime::now", &["reactor", "main", "demo", "healthcheck", "logging"]),
    ("mio", &["net", "reactor"]),
    ("std::fs", &["net", "main", "cli", "config", "logging", "demo"]),
    ("std::net::TcpStream", &["net", "reactor", "healthcheck", "demo"]),
    ("std::thread", &["reactor", "main", "demo", "healthcheck", "logging"]),
];

// ---- the rules over the whole house

#[test]
fn a_floor_imports_only_from_floors_below_it() {
    hold(&house(), floors);
}

#[test]
fn words_stay_in_their_homes() {
    hold(&house(), homes);
}

#[test]
fn unsafe_stands_only_in_sys() {
    hold(&house(), unsafe_home);
}

#[test]
fn nothing_banned_is_held() {
    hold(&house(), banned);
}

#[test]
fn names_say_something() {
    hold(&house(), left_out_words);
}

#[test]
fn every_file_opens_with_what_it_is_for() {
    hold(&all(), opens_with_doc);
}

#[test]
fn nothing_is_left_for_later() {
    hold(&all(), left_for_later);
}

#[test]
fn lines_fit() {
    hold(&all(), long_lines);
}

fn hold(sources: &[Source], rule: fn(&Source) -> Faults) {
    let faults: Faults = sources.iter().flat_map(rule).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

// ---- the rules

/// A floor imports only from floors below it; the rooms of one floor do not know each other.
fn floors(source: &Source) -> Faults {
    let Some(room) = room_of(&source.path) else {
        return vec![format!("{}: this room has no floor", source.path)];
    };
    let mut faults = Vec::new();
    for (line, path) in paths(&source.code) {
        let Some(there) = crate_room(&path, &source.path) else { continue };
        let (Some(ours), Some(theirs)) = (floor(&room), floor(&there)) else {
            faults.push(format!(
                "{}:{line}: `{path}`: no floor is known for one of the two",
                source.path
            ));
            continue;
        };
        if there != room && theirs >= ours {
            faults.push(format!("{}:{line}: `{path}` is not below {room}", source.path));
        }
    }
    faults
}

/// The floors, lowest first. Rooms that share a number do not know each other.
fn floor(room: &str) -> Option<usize> {
    const FLOORS: [&[&str]; 9] = [
        &["base"],
        &["proto"],
        &["service", "net"],
        &["session"],
        &["gateway"],
        &["reactor"],
        // The front door. `config` knows the parts' settings; of the others only `cli` and what stands above know it.
        &["logging", "healthcheck"],
        &["config"],
        &["cli", "demo"],
    ];
    if matches!(room, "lib" | "main") {
        return Some(FLOORS.len());
    }
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn homes(source: &Source) -> Faults {
    let mut faults = Vec::new();
    let full = full_paths(&source.code);
    let room = room_of(&source.path).unwrap_or_default();
    for (word, homes) in HOMES.iter().filter(|(_, homes)| !homes.contains(&room.as_str())) {
        for (line, path) in &full {
            let is_there =
                path == word || path.strip_prefix(word).is_some_and(|rest| rest.starts_with("::"));
            if is_there {
                faults.push(format!(
                    "{}:{line}: `{word}` is only for {}",
                    source.path,
                    homes.join(", ")
                ));
            }
        }
    }
    faults
}

fn unsafe_home(source: &Source) -> Faults {
    if source.path == "src/net/sys.rs" {
        return Vec::new();
    }
    let tokens = tokens(&source.code);
    let found = tokens.iter().filter(|token| token.text == "unsafe");
    found
        .map(|token| {
            format!("{}:{}: `unsafe` stands only in src/net/sys.rs", source.path, token.line)
        })
        .collect()
}

fn banned(source: &Source) -> Faults {
    let mut faults = Vec::new();
    for (index, line) in source.code.lines().enumerate() {
        let squeezed: String = line.split_whitespace().collect::<Vec<_>>().join(" ");
        for (word, instead) in BANNED {
            // `eprintln!` ends with a banned word, and is one.
            if squeezed.contains(word) {
                faults.push(format!("{}:{}: `{word}`: {instead}", source.path, index + 1));
            }
        }
    }
    faults
}

fn left_out_words(source: &Source) -> Faults {
    const BEFORE_NAMES: [&str; 9] =
        ["fn", "struct", "enum", "trait", "mod", "type", "const", "static", "union"];
    let mut names: Vec<(usize, String)> =
        source.path.split('/').map(|part| (1, part.trim_end_matches(".rs").to_owned())).collect();
    let tokens = tokens(&source.code);
    for pair in tokens.windows(2) {
        if BEFORE_NAMES.contains(&pair[0].text) {
            names.push((pair[1].line, pair[1].text.to_owned()));
        }
    }
    let mut faults = Vec::new();
    for (line, name) in names {
        if let Some(word) = words(&name).iter().find(|word| LEFT_OUT.contains(&word.as_str())) {
            faults.push(format!("{}:{line}: `{name}`: `{word}` says nothing", source.path));
        }
    }
    faults
}

fn opens_with_doc(source: &Source) -> Faults {
    let first = source.text.lines().next().unwrap_or_default();
    match first.strip_prefix("//! ") {
        Some(doc) if doc.len() > 10 => Vec::new(),
        _ => vec![format!("{}:1: a file opens with `//!` and what it is for", source.path)],
    }
}

fn left_for_later(source: &Source) -> Faults {
    if source.path == "tests/tidy.rs" {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let mut words = line.split(|sign: char| !sign.is_ascii_alphanumeric());
        if let Some(word) = words.find(|word| ["TODO", "FIXME", "XXX", "HACK"].contains(word)) {
            faults.push(format!("{}:{}: {word}: do it, or take it out", source.path, index + 1));
        }
    }
    faults
}

fn long_lines(source: &Source) -> Faults {
    let mut faults = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        // Literals are not wrapped by `rustfmt`, nor are they here.
        let is_literal = line.contains('"') || line.trim_end().ends_with('\\');
        let is_prose = line.trim_start().starts_with("//");
        let max = if is_prose { PROSE_COLUMNS_MAX } else { COLUMNS_MAX };
        let columns = line.chars().count();
        if columns > max && (is_prose || !is_literal) {
            faults.push(format!(
                "{}:{}: {columns} columns, {max} are enough",
                source.path,
                index + 1
            ));
        }
    }
    faults
}

// ---- each rule is seen to catch

#[test]
fn the_floor_rule_catches() {
    let catches = |path: &str, text: &str| floors(&source(path, text)).len();
    assert_eq!(catches("src/proto/ws.rs", "use crate::service::stats::Stats;"), 1);
    assert_eq!(catches("src/proto/ws.rs", "use crate::base::buf::Buf;"), 0);
    assert_eq!(
        catches("src/service/bus.rs", "use crate::net::Conn;"),
        1,
        "service and net do not know each other"
    );
    assert_eq!(catches("src/net/conn.rs", "use crate::{base::buf, service::route};"), 1);
    assert_eq!(catches("src/net/conn.rs", "fn f() -> crate::gateway::Gateway {}"), 1);
    assert_eq!(
        catches("src/session/flow/stream.rs", "use super::super::super::gateway::Gateway;"),
        1
    );
    assert_eq!(
        catches("src/session/flow.rs", "use super::relay::Relay; use super::super::proto::ws;"),
        0
    );
    assert_eq!(catches("src/gateway.rs", "use super::reactor::Reactor;"), 1);
    assert_eq!(
        catches("src/gateway.rs", "use crate::config::Config;"),
        1,
        "no part imports the configuration"
    );
    assert_eq!(catches("src/logging.rs", "use crate::config::Config;"), 1);
    assert_eq!(
        catches("src/config/mod.rs", "use crate::logging; use crate::gateway::Settings;"),
        0
    );
    assert_eq!(catches("src/main.rs", "use aivtuber_gateway::config::Config;"), 0);
    assert_eq!(catches("src/base/buf.rs", "use aivtuber_gateway::config::Config;"), 1);
    assert_eq!(
        catches(
            "src/base/buf.rs",
            "// use crate::gateway::Gateway;\nconst A: &str = \"crate::gateway\";"
        ),
        0
    );
    assert_eq!(
        catches("src/base/buf.rs", "#[cfg(test)]\nmod tests { use crate::gateway::Gateway; }"),
        0
    );
    assert_eq!(
        catches("src/base/buf.rs", "#[cfg(test)] mod tests {}\nuse crate::gateway::Gateway;"),
        1
    );
    assert_eq!(catches("src/attic.rs", ""), 1, "a new room needs a floor");
}

#[test]
fn the_home_rule_catches() {
    let catches = |path: &str, text: &str| homes(&source(path, text)).len();
    assert_eq!(catches("src/gateway.rs", "use std::time::Instant; fn f() {}"), 1);
    assert_eq!(catches("src/gateway.rs", "use std::time; fn f() { time::Instant::now(); }"), 1);
    assert_eq!(catches("src/gateway.rs", "fn f() { std::time::SystemTime::now(); }"), 1);
    assert_eq!(
        catches("src/gateway.rs", "use std::time::{Duration, Instant as Moment}; fn f() {}"),
        1
    );
    assert_eq!(
        catches("src/gateway.rs", "use crate::base::moment::Moment; fn f(now: Moment) {}"),
        0
    );
    assert_eq!(
        catches("src/reactor/mod.rs", "use std::time::Instant; fn f() { Instant::now(); }"),
        0
    );
    assert_eq!(catches("src/session/mod.rs", "use mio::Token;"), 1);
    assert_eq!(catches("src/session/mod.rs", "use mio;"), 1);
    assert_eq!(catches("src/net/tcp.rs", "use mio::Token;"), 0);
    assert_eq!(catches("src/service/route.rs", "use std::{fmt, fs};"), 1);
    assert_eq!(catches("src/service/route.rs", "use std::fs::File;"), 1);
    assert_eq!(catches("src/service/route.rs", "use std::fmt;"), 0);
    assert_eq!(catches("src/session/dial.rs", "use std::net::{SocketAddr, TcpStream};"), 1);
    assert_eq!(catches("src/session/dial.rs", "fn f() { std::thread::sleep(d); }"), 1);
    assert_eq!(catches("src/session/dial.rs", "use std::net::SocketAddr; // std::thread"), 0);
}

#[test]
fn the_unsafe_rule_catches() {
    assert_eq!(unsafe_home(&source("src/net/tcp.rs", "fn f() { unsafe { g() } }")).len(), 1);
    assert_eq!(
        unsafe_home(&source("src/net/tcp.rs", "// unsafe\nfn unsafe_looking() { \"unsafe\"; }"))
            .len(),
        0
    );
    assert_eq!(unsafe_home(&source("src/net/sys.rs", "unsafe { g() }")).len(), 0);
}

#[test]
fn the_banned_rule_catches() {
    for text in [
        "struct A { b: Rc<RefCell<u8>> }",
        "thread_local! { static A: u8 = 1; }",
        "static mut A: u8 = 1;",
        "static  mut A: u8 = 1;",
        "fn f() { todo!() }",
        "fn f() { unimplemented!() }",
        "fn f() { dbg!(1); }",
        "fn f() { println!(); }",
        "fn f() { eprintln!(); }",
        "#[allow(dead_code)] fn f() {}",
    ] {
        assert_eq!(banned(&source("src/gateway.rs", text)).len(), 1, "{text}");
    }
    assert_eq!(
        banned(&source("src/gateway.rs", "//! thread_local! todo!\nlet a = \"dbg!\";")).len(),
        0
    );
}

#[test]
fn the_name_rule_catches() {
    for text in [
        "struct SessionManager;",
        "fn get_name() {}",
        "fn request_info() {}",
        "mod utils {}",
        "enum HTTPHandler {}",
        "trait Helper {}",
        "const UTIL_MAX: u8 = 1;",
    ] {
        assert_eq!(left_out_words(&source("src/gateway.rs", text)).len(), 1, "{text}");
    }
    for text in [
        "fn handle_ready() {}",
        "fn gets() {}",
        "struct Target;",
        "fn f() { info!(\"a\"); }",
        "fn forget() {}",
    ] {
        assert_eq!(left_out_words(&source("src/gateway.rs", text)).len(), 0, "{text}");
    }
    assert_eq!(left_out_words(&source("src/session/helper.rs", "")).len(), 1);
    assert_eq!(left_out_words(&source("src/util/mod.rs", "")).len(), 1);
}

#[test]
fn the_rules_about_text_catch() {
    assert_eq!(opens_with_doc(&source("src/a.rs", "use std::fmt;")).len(), 1);
    assert_eq!(opens_with_doc(&source("src/a.rs", "//!\n//! Late.")).len(), 1);
    assert_eq!(opens_with_doc(&source("src/a.rs", "//! What this is for.")).len(), 0);
    assert_eq!(
        left_for_later(&source("src/a.rs", "// TODO: more\n/* FIXME */\nfn f() {}")).len(),
        2
    );
    assert_eq!(left_for_later(&source("src/a.rs", "fn todo_list() {}")).len(), 0);
    assert_eq!(long_lines(&source("src/a.rs", &"x".repeat(121))).len(), 1);
    assert_eq!(long_lines(&source("src/a.rs", &format!("// {}", "x".repeat(138)))).len(), 1);
    assert_eq!(
        long_lines(&source("src/a.rs", &format!("// {}\n{}", "x".repeat(137), "é".repeat(120))))
            .len(),
        0
    );
}

#[test]
fn what_is_no_code_is_blanked() {
    let text =
        "a /* b /* c */ d */ e // f\n\"g \\\" h\" i 'j' 'k r#\"l \" m\"# n b'o' br\"p\" '\\'' q";
    let code = code_of(text);
    let left: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(left, ["a", "e", "i", "'k", "n", "q"]);
    assert_eq!(code.lines().count(), text.lines().count());
    let tests = "a\n#[cfg(test)]\nmod tests {\n  fn b() { \"}\"; }\n}\nc\n#[cfg(test)]\nuse d;\ne";
    assert_eq!(code_of(tests).split_whitespace().collect::<Vec<_>>(), ["a", "c", "e"]);
    assert_eq!(code_of(tests).lines().count(), tests.lines().count());
}

#[test]
fn use_trees_are_taken_apart() {
    let text = "use a::{self, b::{c, d as e}, f::*}; pub(crate) use ::g::h;\nfn i(j: k::l) -> m { n::<o>::p(); }";
    let found: Vec<String> = paths(text).into_iter().map(|(_, path)| path).collect();
    for path in ["a", "a::b::c", "a::b::d", "a::f", "g::h", "k::l"] {
        assert!(found.iter().any(|one| one == path), "{path} in {found:?}");
    }
}

// ---- reading the sources

/// What the house is built of.
fn house() -> Vec<Source> {
    let sources = read(&["src"]);
    assert!(sources.len() > 30, "only {} files were found", sources.len());
    sources
}

/// The house and what checks it.
fn all() -> Vec<Source> {
    read(&["src", "tests"])
}

fn read(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in folders {
        read_folder(root, &root.join(folder), &mut sources);
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn read_folder(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
    for entry in
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
    {
        let path = entry.expect("a folder's entry").path();
        if path.is_dir() {
            if !path.ends_with("node_modules") {
                read_folder(root, &path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let path = path.strip_prefix(root).expect("it was found below the root");
            sources.push(source(&path.to_string_lossy(), &text));
        }
    }
}

fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
}

/// The room that a file belongs to: `session` for `src/session/flow.rs`, `gateway` for `src/gateway.rs`. `None` where there is
/// no such floor.
fn room_of(path: &str) -> Option<String> {
    let room = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
    floor(room).map(|_| room.to_owned())
}

/// The room that `path`, written in `file`, leads to: `crate::room::…`, or `super` as often as it takes to get there.
fn crate_room(path: &str, file: &str) -> Option<String> {
    let mut parts = path.split("::").peekable();
    match parts.peek()? {
        &"crate" | &"aivtuber_gateway" => {
            parts.next();
        }
        &"super" => {
            let inside =
                file.strip_prefix("src/")?.trim_end_matches(".rs").trim_end_matches("/mod");
            let mut depth = inside.split('/').count();
            while parts.peek() == Some(&"super") {
                parts.next();
                depth = depth.checked_sub(1)?;
            }
            if depth > 0 {
                return None; // still within its own room
            }
        }
        _ => return None,
    }
    let room = parts.next()?;
    // A name at the top of the library that is no room: a macro, or a name made there.
    room.starts_with(|first: char| first.is_ascii_lowercase()).then(|| room.to_owned())
}

// ---- a reader of Rust that knows just enough

/// `text` with comments and literals made blank, and what `#[cfg(test)]` stands before. Line ends stay.
fn code_of(text: &str) -> String {
    without_tests(&without_literals(text))
}

fn without_literals(text: &str) -> String {
    let signs: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < signs.len() {
        let end = match (signs[at], signs.get(at + 1)) {
            ('/', Some('/')) => line_end(&signs, at),
            ('/', Some('*')) => comment_end(&signs, at),
            ('"', _) => string_end(&signs, at),
            ('\'', _) => match char_end(&signs, at) {
                Some(end) => end,
                None => {
                    out.push('\''); // a lifetime
                    at += 1;
                    continue;
                }
            },
            (first, _) if first.is_alphabetic() || first == '_' => {
                let end =
                    (at..signs.len()).find(|&i| !signs[i].is_alphanumeric() && signs[i] != '_');
                let end = end.unwrap_or(signs.len());
                let word: String = signs[at..end].iter().collect();
                match (word.as_str(), signs.get(end)) {
                    ("r" | "br" | "cr", Some('"' | '#')) if raw_end(&signs, end).is_some() => {
                        raw_end(&signs, end).unwrap_or(end)
                    }
                    ("b" | "c", Some('"')) => string_end(&signs, end),
                    ("b", Some('\'')) => char_end(&signs, end).unwrap_or(end),
                    _ => {
                        out.push_str(&word);
                        at = end;
                        continue;
                    }
                }
            }
            (sign, _) => {
                out.push(sign);
                at += 1;
                continue;
            }
        };
        out.extend(signs[at..end].iter().map(|&sign| if sign == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

fn line_end(signs: &[char], at: usize) -> usize {
    (at..signs.len()).find(|&i| signs[i] == '\n').unwrap_or(signs.len())
}

fn comment_end(signs: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at + 1 < signs.len() {
        match (signs[at], signs[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    signs.len()
}

fn string_end(signs: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < signs.len() && signs[i] != '"' {
        i += if signs[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(signs.len())
}

fn raw_end(signs: &[char], at: usize) -> Option<usize> {
    let hashes = signs[at..].iter().take_while(|&&sign| sign == '#').count();
    if signs.get(at + hashes) != Some(&'"') {
        return None; // a raw name: r#type
    }
    let mut i = at + hashes + 1;
    while i < signs.len() {
        if signs[i] == '"'
            && signs[i + 1..].iter().take(hashes).filter(|&&sign| sign == '#').count() == hashes
        {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(signs.len())
}

/// The end of the character literal that begins at `at`; `None` if a lifetime does.
fn char_end(signs: &[char], at: usize) -> Option<usize> {
    match signs.get(at + 1)? {
        '\\' => (at + 3..signs.len()).find(|&i| signs[i] == '\'').map(|i| i + 1),
        _ => (signs.get(at + 2) == Some(&'\'')).then_some(at + 3),
    }
}

fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let (mut depth, mut end) = (0, rest.len());
        for (i, sign) in rest[at + MARK.len()..].char_indices() {
            match sign {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(sign, '}' | ';') {
                end = at + MARK.len() + i + 1;
                break;
            }
        }
        out.extend(rest[at..end].chars().filter(|&sign| sign == '\n'));
        rest = &rest[end..];
    }
    out + rest
}

#[derive(Clone, Copy)]
struct Token<'c> {
    line: usize,
    text: &'c str,
}

/// Words, `::`, and single signs.
fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (index, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match rest.find(|sign: char| !sign.is_alphanumeric() && sign != '_') {
                _ if rest.starts_with("::") => 2,
                Some(0) => first.len_utf8(),
                Some(length) => length,
                None => rest.len(),
            };
            tokens.push(Token { line: index + 1, text: &rest[..length] });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// Every path in `code` with its line: those that `use` brings in, taken apart, and those that stand in the code.
fn paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].text == "use" {
            at = use_tree(&tokens, at + 1, "", &mut |line, path, _| paths.push((line, path)));
        } else if is_word(tokens[at].text) {
            let line = tokens[at].line;
            let (path, end) = path_at(&tokens, at);
            paths.push((line, path));
            at = end;
        } else {
            at += 1;
        }
    }
    paths
}

/// Like [`paths`], with names that a `use` brought in replaced by what they stand for.
fn full_paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut known = Vec::new();
    for at in (0..tokens.len()).filter(|&at| tokens[at].text == "use") {
        use_tree(&tokens, at + 1, "", &mut |_, path, name| known.push((name, path)));
    }
    let resolve = |path: String| {
        let (first, rest) =
            path.split_once("::").map_or((path.as_str(), ""), |(first, rest)| (first, rest));
        match known.iter().find(|(name, _)| name == first) {
            Some((_, full)) if rest.is_empty() => full.clone(),
            Some((_, full)) => format!("{full}::{rest}"),
            None => path,
        }
    };
    let mut full = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].text == "use" {
            at = use_tree(&tokens, at + 1, "", &mut |line, path, _| full.push((line, path)));
        } else if is_word(tokens[at].text) {
            let (path, end) = path_at(&tokens, at);
            // A word alone may be anything: a field, a variable.
            if path.contains("::") {
                full.push((tokens[at].line, resolve(path)));
            }
            at = end;
        } else {
            at += 1;
        }
    }
    full
}

/// Takes the tree behind `use` apart; `found` gets line, path and the name it is known by. Gives where the tree ends.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    before: &str,
    found: &mut dyn FnMut(usize, String, String),
) -> usize {
    let mut path = before.to_owned();
    let mut line = tokens.get(at).map_or(0, |token| token.line);
    let mut name = None;
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => {}
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(tokens, at, &path, found);
                    if tokens.get(at).is_some_and(|token| token.text == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "as" => {
                at += 1;
                name = tokens.get(at).map(|token| token.text.to_owned());
            }
            "self" | "*" => line = token.line,
            word if is_word(word) => {
                line = token.line;
                path = if path.is_empty() { word.to_owned() } else { format!("{path}::{word}") };
            }
            _ => break,
        }
        at += 1;
    }
    let last = path.rsplit("::").next().unwrap_or_default().to_owned();
    found(line, path, name.unwrap_or(last));
    at
}

fn path_at(tokens: &[Token], mut at: usize) -> (String, usize) {
    let mut path = tokens[at].text.to_owned();
    at += 1;
    while at + 1 < tokens.len() && tokens[at].text == "::" && is_word(tokens[at + 1].text) {
        path = format!("{path}::{}", tokens[at + 1].text);
        at += 2;
    }
    (path, at)
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// `HTTPHandler`, `http_handler` and `HTTP_HANDLER` are all `http` and `handler`.
fn words(name: &str) -> Vec<String> {
    let signs: Vec<char> = name.chars().collect();
    let mut words = vec![String::new()];
    for (i, &sign) in signs.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| signs[i]);
        let starts_word = sign.is_uppercase()
            && (before.is_some_and(char::is_lowercase)
                || before.is_some_and(char::is_uppercase)
                    && signs.get(i + 1).is_some_and(|next| next.is_lowercase()));
        if sign == '_' || starts_word {
            words.push(String::new());
        }
        if sign != '_'
            && let Some(word) = words.last_mut()
        {
            word.extend(sign.to_lowercase());
        }
    }
    words
}
