//! Suggests the right name for an unknown one.

/// How many edits a suggestion may be away: one for every third character of the word, at least
/// one.
const CHARACTERS_PER_EDIT: usize = 3;
/// From this length on, a word that is part of a name (`origins` of `allowed_origins`) suggests it.
const PART_MIN: usize = 4;
/// What such a part counts for among the other candidates, in edits.
const PART_DISTANCE: usize = 2;

/// The closest of the `known` words to `word`, if one is close enough to suggest.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let edits_max = (word.chars().count() / CHARACTERS_PER_EDIT).max(1);
    let distance = |candidate: &str| {
        if word.len() >= PART_MIN && (candidate.contains(&word) || word.contains(candidate)) {
            return Some(PART_DISTANCE);
        }
        // Two swapped neighbours are one typing error, so they count as one edit.
        let edits = strsim::osa_distance(&word, candidate);
        (edits <= edits_max).then_some(edits)
    };
    known
        .into_iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `, did you mean …?` to end a sentence with, or nothing.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or(String::new(), |name| format!(", did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_suggested() {
        assert_eq!(nearest("listne", ["listen", "level"]), Some("listen"));
        assert_eq!(nearest("LISTEN", ["listen", "level"]), Some("listen"));
        assert_eq!(nearest("timeout", ["level", "header_timeout"]), Some("header_timeout"));
        assert_eq!(nearest("pingtimeout", ["ping_interval", "ping_timeout"]), Some("ping_timeout"));
        assert_eq!(nearest("kepe", ["keep", "level"]), Some("keep"), "a swap is one edit");
        assert_eq!(nearest("banana", ["listen", "level"]), None);
        assert_eq!(did_you_mean("levle", ["level"]), ", did you mean `level`?");
        assert_eq!(did_you_mean("banana", ["level"]), "");
    }
}
