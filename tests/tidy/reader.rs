//! Reads Rust just well enough for the rules of `tests/tidy.rs`: no compiler is asked.

/// `text` with spaces in place of comments, literals and what follows `#[cfg(test)]`. It has as
/// many lines.
pub fn code_of(text: &str) -> String {
    without_tests(&without_literals(text))
}

/// `text` with spaces in place of comments and literals.
pub fn without_literals(text: &str) -> String {
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

/// The end of the raw string whose hashes begin at `at`; `None` if none does.
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

/// A word or sign, and its line, counted from 1.
#[derive(Clone, Copy)]
pub struct Token<'c> {
    pub line: usize,
    pub text: &'c str,
}

/// The code as words, `::`, and single signs.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
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

/// Every path in `code` with its line: each one that a `use` imports, and those in the code itself.
pub fn paths(code: &str) -> Vec<(usize, String)> {
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

/// Reads the tree behind `use` at `at`: `found` gets line, path and local name of each import.
/// Returns the index of the token behind the tree.
pub fn use_tree(
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

pub fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The words of a name: `http` and `handler` for `HTTPHandler`, `http_handler` and `HTTP_HANDLER`.
pub fn words(name: &str) -> Vec<String> {
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

#[test]
fn comments_literals_and_tests_are_blanked() {
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
fn use_trees_are_read() {
    let text = "use a::{self, b::{c, d as e}, f::*}; pub(crate) use ::g::h;\nfn i(j: k::l) -> m { n::<o>::p(); }";
    let found: Vec<String> = paths(text).into_iter().map(|(_, path)| path).collect();
    for path in ["a", "a::b::c", "a::b::d", "a::f", "g::h", "k::l"] {
        assert!(found.iter().any(|one| one == path), "{path} in {found:?}");
    }
}
