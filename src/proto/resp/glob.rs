//! Patterns of channels, as Redis reads them: `*`, `?`, `[a-z]`, `[^a]` and `\` before a literal.

/// Whether `text` matches the whole of `pattern`. Takes at most the product of their lengths.
pub fn matches_glob(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // What is behind the last `*`, and the text that it was last compared with.
    let mut last_star = None;
    loop {
        if let Some(behind) = pattern.strip_prefix(b"*") {
            (pattern, last_star) = (behind, Some((behind, text)));
            continue;
        }
        let Some((&byte, behind)) = text.split_first() else {
            // With more text for the `*` there would be even less for what follows it.
            return pattern.is_empty();
        };
        if let Some(rest) = match_byte(pattern, byte) {
            (pattern, text) = (rest, behind);
            continue;
        }
        let Some((behind_star, [_, from @ ..])) = last_star else { return false };
        (pattern, text, last_star) = (behind_star, from, Some((behind_star, from)));
    }
}

/// The rest of a pattern whose first element, which is not `*`, matches `byte`.
fn match_byte(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [] => None,
        [b'?', rest @ ..] => Some(rest),
        [b'[', class @ ..] => match_class(class, byte),
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (*literal == byte).then_some(rest),
    }
}

/// The same for what follows a `[`. One that is not closed ends with the pattern.
fn match_class(class: &[u8], byte: u8) -> Option<&[u8]> {
    let (is_negated, mut class) = match class {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let mut is_in = false;
    loop {
        let (low, high, rest) = match class {
            [] => return (is_in != is_negated).then_some(class),
            [b']', rest @ ..] => return (is_in != is_negated).then_some(rest),
            [b'\\', literal, rest @ ..] => (literal, literal, rest),
            [low, b'-', high, rest @ ..] => (low.min(high), low.max(high), rest),
            [literal, rest @ ..] => (literal, literal, rest),
        };
        is_in |= (low..=high).contains(&&byte);
        class = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, matching, others) in [
            ("", &[""][..], &["a"][..]),
            ("a", &["a"], &["", "b", "aa"]),
            ("a:*", &["a:", "a:b", "a:*"], &["a", "b:a:"]),
            ("a:*b", &["a:b", "a:bb", "a:bcb"], &["a:", "a:bc", "b"]),
            ("a*b*c", &["abc", "aabbcc", "abcbc"], &["acb", "ab", "abcd"]),
            ("**", &["", "a"], &[]),
            ("a?", &["ab", "a?"], &["a", "abc"]),
            (r"a\*", &["a*"], &["a", "ab", r"a\*"]),
            (r"a\?\\", &[r"a?\"], &[r"ab\"]),
            (r"a\", &[r"a\"], &["a"]),
            ("[ab]c", &["ac", "bc"], &["cc", "c", "[ab]c"]),
            ("[^ab]", &["c", "^"], &["a", "b", ""]),
            ("[a-c]", &["a", "b", "c"], &["d", "-"]),
            ("[c-a]", &["b"], &["d"]),
            (r"[\]-]", &["]", "-"], &[r"\", "a"]),
            ("[a", &["a"], &["b", "[a"]),
        ] {
            for text in matching {
                assert!(matches_glob(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
            for text in others {
                assert!(!matches_glob(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn many_stars_do_not_take_exponential_time() {
        let pattern = [&b"*a".repeat(200)[..], b"b"].concat();
        assert!(!matches_glob(&pattern, &b"a".repeat(400)));
    }
}
