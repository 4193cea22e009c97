//! The token that a route asks its clients for.

use data_encoding::BASE64;
use std::fmt;
use std::sync::Arc;

/// A token, which must not appear in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// A phrase that follows the name of where it was found.
    pub fn parse(text: &str) -> Result<Token, &'static str> {
        match () {
            () if text.is_empty() => Err("is empty"),
            // In a header nothing else arrives unchanged.
            () if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err("may hold visible ASCII characters alone, and no spaces")
            }
            () => Ok(Token(text.into())),
        }
    }

    /// Whether a request with this `Authorization` has it: as `Bearer`, or as the password of
    /// `Basic`, whose user may have any name (RFC 6750, section 2.1; RFC 7617, section 2).
    pub fn is_given(&self, authorization: Option<&[u8]>) -> bool {
        let Some(value) = authorization else { return false };
        let mut parts = value.splitn(2, |byte| *byte == b' ');
        let (scheme, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let given = rest.trim_ascii();
        if scheme.eq_ignore_ascii_case(b"bearer") {
            return is_equal(given, self.0.as_bytes());
        }
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return false;
        }
        let Ok(pair) = BASE64.decode(given) else { return false };
        let Some(colon) = memchr::memchr(b':', &pair) else { return false };
        pair.get(colon + 1..).is_some_and(|password| is_equal(password, self.0.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Compares in a time that depends on the lengths alone, so that it does not tell how much of a
/// guess is right.
pub fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_and_the_password_of_basic_are_taken() {
        let token = Token::parse("s3cret:/+").unwrap();
        let basic = |pair: &str| format!("Basic {}", BASE64.encode(pair.as_bytes()));
        for (authorization, expected) in [
            ("Bearer s3cret:/+".to_owned(), true),
            ("bearer   s3cret:/+ ".to_owned(), true),
            (basic("x:s3cret:/+"), true),
            (basic(":s3cret:/+"), true),
            (basic("x:s3cret:/+").replace("Basic", "BASIC"), true),
            (basic("s3cret:/+:x"), false),
            (basic("s3cret"), false),
            ("Bearer s3cret:/".to_owned(), false),
            ("Bearer s3cret:/+x".to_owned(), false),
            ("Bearer".to_owned(), false),
            ("Basic s3cret:/+".to_owned(), false),
            ("Basic !".to_owned(), false),
            ("Token s3cret:/+".to_owned(), false),
            ("s3cret:/+".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(token.is_given(Some(authorization.as_bytes())), expected, "{authorization}");
        }
        assert!(!token.is_given(None));
        assert_eq!(format!("{token:?}"), "***");
    }

    #[test]
    fn a_token_is_something_that_a_header_can_carry() {
        assert!(Token::parse("~!abc").is_ok());
        for bad in ["", " ", "a b", "a\n", "é", "a\u{7f}"] {
            assert!(Token::parse(bad).is_err(), "{bad:?}");
        }
    }
}
