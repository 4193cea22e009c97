//! The files of a route that serves a folder: which name a path asks for, of what type it is, and
//! for how long a browser may keep it.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;

/// What `mime_guess` knows, written by `build.rs`: `ext type` a line, in the order of the
/// extensions.
const MEDIA_TYPES: &str = include_str!(concat!(env!("OUT_DIR"), "/media_types.txt"));

/// The longest extension that is looked up; none in the table is longer.
const EXTENSION_BYTES_MAX: usize = 32;

/// The media type of files that are not recognised.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// For a file whose name changes with its content: a year, without asking again.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// For every other file: kept, and asked for again each time.
pub const REVALIDATE: &str = "no-cache";

/// The characters of a hash in a file's name; fewer are no hash.
const HASH_CHARS_MIN: usize = 8;

/// The folder that begins with a dot and is served all the same (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// What a route serves files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The folder. It need not exist.
    pub folder: Arc<Path>,
    /// The page in place of one that is not there, relative to the folder.
    pub fallback: Option<Arc<str>>,
}

impl Files {
    /// Checks that files can be served.
    ///
    /// # Errors
    /// A sentence that can follow "route `app`: ".
    pub fn check(&self) -> Result<(), String> {
        if self.folder.as_os_str().is_empty() {
            return Err("`files` must name a folder".into());
        }
        match &self.fallback {
            // A name as it is in the folder, so that nothing in it is decoded.
            Some(name)
                if name.contains('%') || file_name(name).is_none_or(|name| is_folder(&name)) =>
            {
                Err(format!(
                    "`fallback = {name:?}` must be a file in the folder, such as `index.html`"
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a name is that of a folder.
fn is_folder(name: &str) -> bool {
    name.is_empty() || name.ends_with('/')
}

/// The name of the file, relative to the folder, that the rest of a path asks for; `None` if no
/// such file is served. It is empty, or ends with a slash, where a folder is asked for.
///
/// Percent-encoding is decoded once. A name that is not UTF-8, that has an empty segment, or an
/// encoded slash or NUL, names nothing, and neither does one with a segment that begins with a dot,
/// apart from `.well-known` at the beginning. So no name leads out of the folder.
pub fn file_name(rest: &str) -> Option<Box<str>> {
    let mut name = String::with_capacity(rest.len());
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() {
            return segments.peek().is_none().then(|| name.into());
        }
        let is_first = name.is_empty();
        let begin = name.len();
        push_decoded(&mut name, segment)?;
        let decoded = name.get(begin..)?;
        let is_hidden = decoded.starts_with('.') && !(is_first && decoded == WELL_KNOWN);
        if is_hidden || decoded.contains(['/', '\0']) {
            return None;
        }
        if segments.peek().is_some() {
            name.push('/');
        }
    }
    Some(name.into())
}

fn push_decoded(name: &mut String, segment: &str) -> Option<()> {
    if !segment.contains('%') {
        name.push_str(segment);
        return Some(());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, behind @ ..] = rest else { return None };
        bytes.push(hex(*high)? << 4 | hex(*low)?);
        rest = behind;
    }
    name.push_str(std::str::from_utf8(&bytes).ok()?);
    Some(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

/// The value of `Content-Type` for a file of this name.
pub fn content_type(name: &str) -> &'static str {
    let extension = last_segment(name).rsplit_once('.').map_or("", |(_, extension)| extension);
    match media_type(extension).unwrap_or(UNKNOWN_TYPE) {
        "text/html" => "text/html; charset=utf-8",
        "text/css" => "text/css; charset=utf-8",
        // RFC 9239 has one type for all scripts.
        "text/javascript" | "application/javascript" => "text/javascript; charset=utf-8",
        "text/plain" => "text/plain; charset=utf-8",
        "text/markdown" => "text/markdown; charset=utf-8",
        "text/csv" => "text/csv; charset=utf-8",
        other => other,
    }
}

/// The media type of files with this extension, in letters of either case.
fn media_type(extension: &str) -> Option<&'static str> {
    let mut buffer = [0; EXTENSION_BYTES_MAX];
    let wanted = buffer.get_mut(..extension.len())?;
    wanted.copy_from_slice(extension.as_bytes());
    wanted.make_ascii_lowercase();
    let mut left = MEDIA_TYPES;
    // Whole lines are left, and halved at the beginning of one.
    while !left.is_empty() {
        let middle = left.as_bytes().get(..left.len() / 2)?;
        let start = memchr::memrchr(b'\n', middle).map_or(0, |end| end + 1);
        let (before, from) = left.split_at_checked(start)?;
        let (line, behind) = from.split_once('\n')?;
        let (found, media_type) = line.split_once(' ')?;
        match found.as_bytes().cmp(wanted) {
            Ordering::Equal => return Some(media_type),
            Ordering::Greater => left = before,
            Ordering::Less => left = behind,
        }
    }
    None
}

/// The value of `Cache-Control` for a file of this name.
pub fn cache_control(name: &str) -> &'static str {
    if has_hash(last_segment(name)) { IMMUTABLE } else { REVALIDATE }
}

/// Whether a name has a part that looks like the hash of its content, as build tools write it: 8 or
/// more letters, digits, `_` and `-`, with a digit or a capital, behind a `-` or between two dots:
/// `index-DiwrgTda.js`, `app.3f2a91bc.css`.
fn has_hash(name: &str) -> bool {
    let mut parts = name.split('.').peekable();
    let mut is_first = true;
    while let Some(part) = parts.next() {
        let is_between = !std::mem::replace(&mut is_first, false) && parts.peek().is_some();
        if is_between && is_hash(part) {
            return true;
        }
        if part.match_indices('-').any(|(at, _)| part.get(at + 1..).is_some_and(is_hash)) {
            return true;
        }
    }
    false
}

fn is_hash(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    text.len() >= HASH_CHARS_MIN
        && text.bytes().all(is_allowed)
        && text.bytes().any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

fn last_segment(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_once() {
        for (rest, name) in [
            ("", ""),
            ("a.js", "a.js"),
            ("sub/", "sub/"),
            ("sub/a.js", "sub/a.js"),
            ("a%20b+c.js", "a b+c.js"),
            ("%E3%81%82/%c3%bc.png", "あ/ü.png"),
            ("あ", "あ"),
            ("a%2520b", "a%20b"),
            ("a%25", "a%"),
            ("a;b=c", "a;b=c"),
            ("a%5Cb", "a\\b"),
            ("a..b/c.", "a..b/c."),
            (".well-known/acme-challenge/x", ".well-known/acme-challenge/x"),
            ("%2ewell-known/x", ".well-known/x"),
        ] {
            assert_eq!(file_name(rest).as_deref(), Some(name), "{rest}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_or_are_hidden_are_none() {
        for rest in [
            "/",
            "/etc/passwd",
            "a//b",
            "a//",
            "..",
            "../a",
            "a/..",
            "a/../b",
            ".",
            "a/./b",
            "%2e%2e/a",
            "a/%2e%2e",
            "..%2fa",
            "a%2fb",
            "a%2F..%2Fb",
            "..%5ca",
            ".env",
            ".git/config",
            "a/.htaccess",
            "%2eenv",
            ".well-known/.env",
            "a/.well-known/x",
            ".well-knownx/a",
            "a%00.js",
            "%00",
            "%ff.js",
            "%c0%ae%c0%ae/a",
            "a%",
            "a%2",
            "a%zz",
            "a%+1",
            "%u002e",
        ] {
            assert_eq!(file_name(rest), None, "{rest}");
        }
    }

    #[test]
    fn types_are_those_of_extensions() {
        for (name, expected) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/b.c.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("A.CSS", "text/css; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.wasm", "application/wasm"),
            ("a.svg", "image/svg+xml"),
            ("a.webp", "image/webp"),
            ("a.woff2", "font/woff2"),
            ("a.glb", "model/gltf-binary"),
            ("site.webmanifest", "application/manifest+json"),
            ("a.wav", "audio/wav"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.vrm", UNKNOWN_TYPE),
            ("a", UNKNOWN_TYPE),
            ("a.js/b", UNKNOWN_TYPE),
            ("a.", UNKNOWN_TYPE),
        ] {
            assert_eq!(content_type(name), expected, "{name}");
        }
    }

    #[test]
    fn every_media_type_is_found() {
        let mut count = 0;
        for line in MEDIA_TYPES.lines() {
            let (extension, expected) = line.split_once(' ').unwrap();
            assert_eq!(media_type(extension), Some(expected), "{extension}");
            assert_eq!(media_type(&extension.to_uppercase()), Some(expected), "{extension}");
            count += 1;
        }
        assert!(count > 1000, "{count}");
        for unknown in ["", "!", "a.b", "jsx1", "zzzz", "html ", &"x".repeat(33)] {
            assert_eq!(media_type(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn names_with_a_hash_never_change() {
        for name in [
            "index-DiwrgTda.js",
            "assets/index-B1_x-9fk.css",
            "vendor-3f2a91bc.js",
            "app.3f2a91bc.js",
            "app.3f2a91bc.chunk.js",
            "a.DEADBEEF.js",
            "logo-ABCDEFGH",
            "a-b-c-12345678.js",
            "a-b_-_-_-1.js",
        ] {
            assert_eq!(cache_control(name), IMMUTABLE, "{name}");
        }
        for name in [
            "index.html",
            "index.js",
            "my-component.js",
            "some-long-component.js",
            "a-1234567.js",
            "app.3f2a91b.js",
            "3f2a91bc.js",
            "a.3f2a91bc",
            "jquery-3.7.1.min.js",
            "index-DiwrgTda/app.js",
            "a.longword.js",
            "a-long word1.js",
        ] {
            assert_eq!(cache_control(name), REVALIDATE, "{name}");
        }
    }
}
