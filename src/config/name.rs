//! Names of services and peers, and names that are nearly right.

/// The most bytes of one token of a name.
const TOKEN_MAX: usize = 64;
/// The most tokens of a name.
const TOKENS_MAX: usize = 16;
/// The most bytes of a name.
const NAME_MAX: usize = 255;

/// Why this is no name (tokens of `[A-Za-z0-9_-]{1,64}`, joined by dots, at most 16 tokens and 255 bytes), or `None` if
/// it is one.
pub(super) fn fault(text: &str) -> Option<&'static str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if text.len() > NAME_MAX {
        return Some("is not a name: longer than 255 bytes");
    }
    if text.split('.').count() > TOKENS_MAX {
        return Some("is not a name: more than 16 tokens");
    }
    for token in text.split('.') {
        if token.is_empty() {
            return Some("is not a name: an empty token");
        }
        if token.len() > TOKEN_MAX {
            return Some("is not a name: a token longer than 64 bytes");
        }
        if !token.bytes().all(good) {
            return Some("is not a name: only A-Z a-z 0-9 _ - and dots between tokens are allowed");
        }
    }
    None
}

/// Of `candidates` the one that a person who wrote `text` most likely meant: at most a third of it wrong.
pub(super) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // No key is that long, and the distance costs the product of the lengths.
    if text.len() > 128 {
        return None;
    }
    let allowed = (text.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (distance(text, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: characters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "ai.complete", "A-Z_09.x", &"x".repeat(64), &["x"; 16].join(".")] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in
            ["", ".", "a.", ".a", "a..b", "a b", "$sys", "a\n", "<script>", "é", &"x".repeat(65), &["x"; 17].join(".")]
        {
            assert!(fault(bad).is_some(), "{bad}");
        }
        let long = vec!["x".repeat(63); 4].join(".");
        assert_eq!((long.len(), fault(&long)), (255, None));
        assert!(fault(&format!("{long}y")).is_some());
    }

    #[test]
    fn near_names() {
        let names = || ["slot_size", "num_slots", "permissions"].into_iter();
        assert_eq!(nearest("slotsize", names()), Some("slot_size"));
        assert_eq!(nearest("permission", names()), Some("permissions"));
        assert_eq!(nearest("colour", names()), None);
        // A third of the letters may be wrong, and no more.
        assert_eq!(nearest("abcxyf", ["abcdef"].into_iter()), Some("abcdef"));
        assert_eq!(nearest("abxyzf", ["abcdef"].into_iter()), None);
        assert_eq!(nearest("", names()), None);
    }

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }
}
