//! Text from outside between quotes, in a log line.

use std::fmt::{self, Display, Write};

/// Displays `"…"` with `"` and `\` escaped by a backslash, so that a value cannot end its quotes
/// and forge another field.
///
/// Control characters are left to the log, which escapes them in the whole line.
///
/// ```
/// use aivtuber_gateway::base::quoted::Quoted;
///
/// let origin = r#"https://a" reason="done"#;
/// assert_eq!(
///     format!("origin={}", Quoted(origin)),
///     r#"origin="https://a\" reason=\"done""#
/// );
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Quoted<T>(pub T);

impl<T: Display> Display for Quoted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        write!(Escaping(f), "{}", self.0)?;
        f.write_char('"')
    }
}

/// Escapes what is written to it.
struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((plain, special)) = rest.find(['"', '\\']).map(|at| rest.split_at(at)) {
            self.0.write_str(plain)?;
            self.0.write_char('\\')?;
            let (sign, after) = special.split_at(1);
            self.0.write_str(sign)?;
            rest = after;
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_are_escaped_in_every_piece() {
        for (value, quoted) in [
            ("", r#""""#),
            ("plain", r#""plain""#),
            (r#"a"b"#, r#""a\"b""#),
            (r"a\", r#""a\\""#),
            (r#"\""#, r#""\\\"""#),
            ("声\"", "\"声\\\"\""),
        ] {
            assert_eq!(Quoted(value).to_string(), quoted);
        }
        assert_eq!(Quoted(format_args!("{}{}", "a\"", "\"b")).to_string(), r#""a\"\"b""#);
    }
}
