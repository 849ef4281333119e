//! Names of services, upstreams and clients, and suggestions for misspelt keys.

use crate::wire::name::Name;

/// Why `text` is not a name by the grammar of [`Name`]; `None` if it is one.
pub(super) fn fault(text: &str) -> Option<String> {
    let error = Name::parse(text).err()?;
    Some(format!("is not a name: {} at byte {}", error.problem(), error.offset()))
}

/// Why `text` is neither a name nor the beginning of names with a `*` behind it; `None` if it is one.
pub(super) fn pattern_fault(text: &str) -> Option<String> {
    let Some(beginning) = text.strip_suffix('*') else { return fault(text) };
    // A beginning is what some name continues, or is.
    let longer = Name::parse(&format!("{beginning}a")).err()?;
    let error = Name::parse(beginning).err().map(|_| longer)?;
    Some(format!("is not the beginning of a name: {} at byte {}", error.problem(), error.offset()))
}

/// The most similar of `candidates`, for a suggestion: at most a third of `text` differs.
pub(super) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // No key is that long, and the cost is the product of the lengths.
    if text.len() > 128 {
        return None;
    }
    let allowed = (text.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::levenshtein(text, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_an_error_that_says_where() {
        assert_eq!(fault("ai.complete"), None);
        assert_eq!(fault("a..b").unwrap(), "is not a name: empty token at byte 2");
        assert_eq!(fault("$sys").unwrap(), "is not a name: character '$' is not allowed at byte 0");
        assert_eq!(fault(&"x".repeat(65)).unwrap(), "is not a name: token of more than 64 bytes at byte 64");
    }

    #[test]
    fn a_pattern_is_a_name_or_its_beginning() {
        for pattern in ["ai.complete", "*", "a*", "a.*", "lsp-*"] {
            assert_eq!(pattern_fault(pattern), None, "{pattern}");
        }
        assert_eq!(pattern_fault(&format!("{}*", "x".repeat(64))), None, "a name that none continues");
        assert_eq!(pattern_fault("").unwrap(), fault("").unwrap());
        assert_eq!(pattern_fault("a*b").unwrap(), "is not a name: character '*' is not allowed at byte 1");
        assert_eq!(pattern_fault("a..*").unwrap(), "is not the beginning of a name: empty token at byte 2");
        assert_eq!(
            pattern_fault("**").unwrap(),
            "is not the beginning of a name: character '*' is not allowed at byte 0"
        );
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
}
