//! The outline of a JSON object, some of whose values may be no JSON.

/// The members of a JSON object as pieces of its text, names with their quotes. What the pieces
/// hold is not looked at, so a value may be anything between a colon and the comma or brace that
/// ends it. `None`: the outline is not that of an object.
pub fn members(object: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let object = object.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}")?;
    let mut members = Vec::new();
    let mut rest = object.trim_ascii();
    while !rest.is_empty() {
        let (name, behind) = rest.split_at_checked(string_length(rest)?)?;
        let behind = behind.trim_ascii_start().strip_prefix(b":")?;
        let length = value_length(behind)?;
        let (value, behind) = behind.split_at_checked(length)?;
        let value = value.trim_ascii();
        if !is_one_value(value) {
            return None;
        }
        members.push((name, value));
        rest = match behind {
            [] => break,
            [_comma, more @ ..] if !more.trim_ascii().is_empty() => more.trim_ascii(),
            _ => return None,
        };
    }
    Some(members)
}

/// Whether a text looks like one value. Where a comma is missing it looks like two, and the second
/// member must not vanish in the first.
fn is_one_value(text: &[u8]) -> bool {
    match text {
        [] => false,
        [b'"', ..] => string_length(text) == Some(text.len()),
        [b'[', .., b']'] | [b'{', .., b'}'] => true,
        _ => !text.iter().any(|byte| byte.is_ascii_whitespace() || b"\"[]{}:".contains(byte)),
    }
}

/// Bytes of the string at the front, with its quotes.
fn string_length(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Bytes up to the comma that ends the value at the front, or to the end of the text.
fn value_length(text: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0usize);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at += string_length(text.get(at..)?)?;
                continue;
            }
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => break,
            _ => {}
        }
        at += 1;
    }
    (depth == 0).then_some(at)
}
