//! What a worker's name for an audio file may mean on this machine.
//!
//! A worker may run in another container or on Windows, so its path is not always the gateway's.
//! `file://` URLs are read as paths, prefixes are replaced by `path_map`, and a name with
//! backslashes is also tried with slashes. The result is only a name: what it may open is decided
//! where files are opened.

use std::path::{Component, Path, PathBuf};

/// A prefix of workers' paths, and what replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// A prefix as workers write it.
    pub from: String,
    /// The folder that it is on this machine.
    pub to: String,
}

/// The names to try, in this order. There is at least one.
pub fn candidates(name: &Path, map: &[Mapping]) -> Vec<PathBuf> {
    // Mappings and URLs are text.
    let Some(text) = name.to_str() else { return vec![name.to_path_buf()] };
    let text = path_of_url(text).unwrap_or_else(|| text.to_owned());
    let slashed = text.replace('\\', "/");
    if let Some(mapped) = map_prefix(&slashed, map) {
        return vec![mapped];
    }
    let mut candidates = vec![PathBuf::from(&text)];
    if slashed != text {
        candidates.push(slashed.into());
    }
    candidates
}

/// Whether two names of workers mean the same file.
pub fn is_same(one: &Path, other: &Path, map: &[Mapping]) -> bool {
    one == other || {
        let others = candidates(other, map);
        candidates(one, map).iter().any(|name| others.iter().any(|other| is_equal(name, other)))
    }
}

/// Whether two paths are the same but for `.` in them.
fn is_equal(one: &Path, other: &Path) -> bool {
    parts(one).eq(parts(other))
}

fn parts(path: &Path) -> impl Iterator<Item = Component<'_>> {
    path.components().filter(|part| *part != Component::CurDir)
}

/// The path with the longest prefix of the map replaced. A prefix ends where a component does.
fn map_prefix(text: &str, map: &[Mapping]) -> Option<PathBuf> {
    let matches = map.iter().filter_map(|mapping| {
        let from = mapping.from.replace('\\', "/");
        let rest = text.strip_prefix(&from)?;
        let is_whole = rest.is_empty() || rest.starts_with('/') || from.ends_with('/');
        is_whole.then_some((from.len(), &mapping.to, rest.to_owned()))
    });
    let (_, to, rest) = matches.max_by_key(|(length, ..)| *length)?;
    Some(Path::new(to).join(rest.trim_start_matches('/')))
}

/// The path in a `file:` URL on this machine (RFC 8089); `None` for anything else.
fn path_of_url(text: &str) -> Option<String> {
    let scheme = text.get(..5)?;
    if !scheme.eq_ignore_ascii_case("file:") {
        return None;
    }
    let rest = &text[5..];
    let path = match rest.strip_prefix("//") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/')?);
            let is_local = host.is_empty() || host.eq_ignore_ascii_case("localhost");
            is_local.then_some(path)?
        }
        None => rest,
    };
    let path = decode(path)?;
    // `file:///C:/a.wav` names `C:/a.wav`.
    let has_drive =
        matches!(path.as_bytes(), [b'/', letter, b':', ..] if letter.is_ascii_alphabetic());
    Some(if has_drive { path[1..].to_owned() } else { path })
}

/// Replaces `%20` and the like. `None` if that leaves no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (b'%', [high, low, tail @ ..]) = (*first, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            bytes.push(high << 4 | low);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn candidates_of(name: &str) -> Vec<String> {
        let map: Vec<Mapping> = [
            ("/app/output", "/srv/audio"),
            ("/app/output/late", "/srv/late"),
            ("C:\\out", "/srv/audio/windows"),
            ("//nas/voices/", "/mnt/voices/"),
        ]
        .map(|(from, to)| Mapping { from: from.into(), to: to.into() })
        .into();
        let candidates = candidates(Path::new(name), &map);
        candidates.iter().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_plain_name_is_itself() {
        for name in ["a.wav", "sub/a b.wav", "/tmp/a.wav", "", "a%20b.wav", "https://x/a.wav"] {
            assert_eq!(candidates_of(name), [name]);
        }
        let bytes = Path::new(OsStr::from_bytes(b"\xff\\a.wav"));
        assert_eq!(candidates(bytes, &[]), [bytes]);
    }

    #[test]
    fn names_of_one_file_are_the_same() {
        let map = [Mapping { from: "C:\\out".into(), to: "/srv".into() }];
        for (one, other, expected) in [
            ("a.wav", "a.wav", true),
            ("voice\\a.wav", "voice/a.wav", true),
            ("C:\\out\\a.wav", "/srv/a.wav", true),
            ("file:///tmp/a%20b.wav", "/tmp/a b.wav", true),
            ("a.wav", "b.wav", false),
            ("a.wav", "sub/a.wav", false),
        ] {
            assert_eq!(is_same(Path::new(one), Path::new(other), &map), expected, "{one} {other}");
        }
    }

    #[test]
    fn backslashes_are_also_tried_as_slashes() {
        assert_eq!(candidates_of("voice\\a.wav"), ["voice\\a.wav", "voice/a.wav"]);
    }

    #[test]
    fn a_file_url_is_a_path() {
        for (url, path) in [
            ("file:///tmp/a%20b%2Bc.wav", "/tmp/a b+c.wav"),
            ("FILE://localhost/tmp/a.wav", "/tmp/a.wav"),
            ("file:/tmp/a.wav", "/tmp/a.wav"),
            ("file:///tmp/100%.wav", "/tmp/100%.wav"),
            ("file:///D:/x/a.wav", "D:/x/a.wav"),
            ("file:///app/output/a.wav", "/srv/audio/a.wav"),
            ("file:///C:/out/a.wav", "/srv/audio/windows/a.wav"),
            // Not of this machine, or no text: left as it is, and not found.
            ("file://other/tmp/a.wav", "file://other/tmp/a.wav"),
            ("file:///tmp/%ff.wav", "file:///tmp/%ff.wav"),
        ] {
            assert_eq!(candidates_of(url), [path], "{url}");
        }
    }

    #[test]
    fn the_longest_prefix_is_replaced_where_a_component_ends() {
        for (name, path) in [
            ("/app/output/a.wav", "/srv/audio/a.wav"),
            ("/app/output/sub/a.wav", "/srv/audio/sub/a.wav"),
            ("/app/output//a.wav", "/srv/audio/a.wav"),
            ("/app/output", "/srv/audio/"),
            ("/app/output/late/a.wav", "/srv/late/a.wav"),
            ("/app/output/later/a.wav", "/srv/audio/later/a.wav"),
            ("/app/outputs/a.wav", "/app/outputs/a.wav"),
            ("C:\\out\\sub\\a.wav", "/srv/audio/windows/sub/a.wav"),
            ("C:/out/a.wav", "/srv/audio/windows/a.wav"),
            ("//nas/voices/a.wav", "/mnt/voices/a.wav"),
            ("/app/output/../../etc/passwd", "/srv/audio/../../etc/passwd"),
        ] {
            assert_eq!(candidates_of(name), [path], "{name}");
        }
    }
}
