//! What a client says about itself, for the line `opened`: its `User-Agent` and `Origin`.

use crate::base::quoted::Quoted;
use crate::proto::http::Headers;
use crate::proto::ws::cut_at_char;
use std::fmt;

/// The longest value that is logged, in bytes.
const VALUE_BYTES_MAX: usize = 200;

/// What the log has of a client's request, as further fields: those of them that it has.
pub struct Visitor<'h> {
    user_agent: Option<&'h [u8]>,
    origin: Option<&'h [u8]>,
}

impl<'h> Visitor<'h> {
    /// From a request.
    pub fn of(headers: &Headers<'_, 'h>) -> Visitor<'h> {
        Visitor { user_agent: headers.first("user-agent"), origin: headers.first("origin") }
    }

    /// From headers as they are sent, a line each.
    pub fn in_lines(lines: &'h [u8]) -> Visitor<'h> {
        let mut visitor = Visitor { user_agent: None, origin: None };
        for line in lines.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = line.split_at(colon);
            let place = if name.eq_ignore_ascii_case(b"user-agent") {
                &mut visitor.user_agent
            } else if name.eq_ignore_ascii_case(b"origin") {
                &mut visitor.origin
            } else {
                continue;
            };
            place.get_or_insert(value.get(1..).unwrap_or_default().trim_ascii());
        }
        visitor
    }
}

/// ` user_agent="…" origin="…"`
impl fmt::Display for Visitor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in [("user_agent", self.user_agent), ("origin", self.origin)] {
            if let Some(value) = value {
                let text = String::from_utf8_lossy(value);
                write!(f, " {key}={}", Quoted(cut_at_char(&text, VALUE_BYTES_MAX)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_headers_are_found_whatever_their_spelling() {
        let lines = b"Host: a\r\nUSER-AGENT:  curl/8 \"x\"\r\norigin:https://a\r\nOrigin: b\r\n";
        assert_eq!(
            Visitor::in_lines(lines).to_string(),
            r#" user_agent="curl/8 \"x\"" origin="https://a""#
        );
        assert_eq!(Visitor::in_lines(b"Host: a\r\n\r\n").to_string(), "");
    }

    #[test]
    fn long_values_are_cut() {
        let lines = [b"User-Agent: ".as_slice(), &b"x".repeat(5000)].concat();
        assert_eq!(Visitor::in_lines(&lines).to_string().len(), 200 + " user_agent=".len() + 2);
    }
}
