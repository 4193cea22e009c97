//! The name that was probably meant, for messages about unknown ones.

/// The word among `known` that was probably meant, if one is close.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| {
            // A part of the right name (`origins`) is as good as two slips of the finger.
            let is_part =
                word.len() >= 4 && (candidate.contains(&word) || word.contains(candidate));
            (if is_part { 2 } else { distance(&word, candidate) }, is_part, candidate)
        })
        .filter(|(distance, is_part, _)| *is_part || *distance <= allowed)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., candidate)| candidate)
}

/// Single-character changes, and swaps of neighbours, from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i.max(j)
            } else {
                let changed = usize::from(from[i - 1] != to[j - 1]);
                let mut least =
                    (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[from.len()][to.len()]
}

/// ", did you mean …?" or nothing.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or(String::new(), |name| format!(", did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_names() {
        assert_eq!(nearest("listne", ["listen", "level"]), Some("listen"));
        assert_eq!(nearest("timeout", ["level", "header_timeout"]), Some("header_timeout"));
        assert_eq!(nearest("pingtimeout", ["ping_interval", "ping_timeout"]), Some("ping_timeout"));
        assert_eq!(nearest("banana", ["listen", "level"]), None);
        assert_eq!(
            (distance("ab", "ba"), distance("", "abc"), distance("kitten", "sitting")),
            (1, 3, 3)
        );
    }
}
