//! The members of a JSON object as pieces of its text: read by `serde_json`, or, where some of them
//! are no JSON, by the outline of the object alone.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// What takes the members of an object in their order.
pub trait Members<'a>: Default {
    /// One member. `name` and `value` are JSON text.
    fn insert(&mut self, name: &'a str, value: &'a str);
}

/// Reads an object.
///
/// # Errors
/// The text is no JSON, or no object.
pub fn read_members<'a, T: Members<'a>>(text: &'a str) -> serde_json::Result<T> {
    serde_json::from_str::<Object<T>>(text).map(|Object(members)| members)
}

struct Object<T>(T);

impl<'de, T: Members<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Members<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
        let mut members = T::default();
        // Names are taken as JSON text too: one with half a surrogate pair is not a Rust string and
        // is passed on nevertheless.
        while let Some(name) = map.next_key::<&RawValue>()? {
            members.insert(name.get(), map.next_value::<&RawValue>()?.get());
        }
        Ok(Object(members))
    }
}

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
