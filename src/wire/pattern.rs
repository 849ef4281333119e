//! Subscription patterns, as in NATS.
//!
//! A pattern is a topic in which a token may be a wildcard:
//!
//! | token | matches | where |
//! |---|---|---|
//! | `*` | exactly one token | anywhere |
//! | `>` | one or more tokens, to the end | last only |
//!
//! A wildcard is a whole token: `ab*` is an error, not a prefix match. A wildcard in the first place does not match the
//! broker's own topics, so `>` means all topics of applications; `$sys.>` means the broker's.

use std::fmt;
use std::sync::Arc;

use super::name::{Dollar, Grammar, NameError, Topic, check, text_type};

/// The pattern of a subscription. Cheap to clone.
///
/// ```
/// use lapce_ipc::wire::{Pattern, Topic};
///
/// let pattern = Pattern::parse("lapce.*.opened")?;
/// assert!(pattern.matches(&Topic::parse("lapce.file.opened")?));
/// assert!(!pattern.matches(&Topic::parse("lapce.file.closed")?));
/// assert!(Pattern::parse("lapce.>")?.matches(&Topic::parse("lapce.ai.completion")?));
/// # Ok::<(), lapce_ipc::wire::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

text_type!(Pattern, parse, parse);

impl Pattern {
    /// Validates a pattern.
    ///
    /// # Errors
    /// If `text` violates the grammar of [names](super::name) with the wildcards of the [module's description](self),
    /// with the offset.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text, Grammar { what: "pattern", dollar: Dollar::Allowed, wildcards: true })?;
        Ok(Self(text.into()))
    }

    /// Whether a topic matches. Does not allocate.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        if topic.is_system() && !self.0.starts_with('$') {
            return false;
        }
        let mut wanted = self.0.split('.');
        let mut found = topic.as_str().split('.');
        loop {
            match (wanted.next(), found.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(wanted), Some(found)) if wanted == found => {}
                _ => return false,
            }
        }
    }

    /// Whether the pattern has no wildcard, so that it matches one topic only.
    ///
    /// ```
    /// # use lapce_ipc::wire::Pattern;
    /// assert!(Pattern::parse("a.b")?.is_literal());
    /// assert!(!Pattern::parse("a.*")?.is_literal());
    /// # Ok::<(), lapce_ipc::wire::NameError>(())
    /// ```
    #[must_use]
    pub fn is_literal(&self) -> bool {
        !self.0.contains(['*', '>'])
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", self.0)
    }
}

/// The pattern that matches this topic and no other.
impl From<&Topic> for Pattern {
    fn from(topic: &Topic) -> Self {
        Self(topic.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, topic: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Topic::parse_system(topic).unwrap())
    }

    #[test]
    fn wildcards_match_as_in_nats() {
        for (pattern, topic) in [
            ("a", "a"),
            ("a.b", "a.b"),
            ("*", "a"),
            ("a.*.c", "a.b.c"),
            (">", "a"),
            (">", "a.b"),
            ("a.>", "a.b.c"),
            ("*.>", "a.b"),
        ] {
            assert!(matches(pattern, topic), "{pattern} should match {topic}");
        }
        for (pattern, topic) in [
            ("a", "b"),
            ("a", "a.b"),
            ("a.b", "a"),
            ("*", "a.b"),
            ("a.*", "a"),
            ("a.>", "a"),
            ("*.>", "a"),
            ("a", "ab"),
            ("ab", "a"),
        ] {
            assert!(!matches(pattern, topic), "{pattern} should not match {topic}");
        }
    }

    #[test]
    fn a_first_wildcard_does_not_reach_the_brokers_topics() {
        for pattern in [">", "*", "*.a", "*.>", "sys.>"] {
            assert!(!matches(pattern, "$sys.a") && !matches(pattern, "$sys"), "{pattern}");
        }
        for pattern in ["$sys.>", "$sys.*", "$sys.a"] {
            assert!(matches(pattern, "$sys.a"), "{pattern}");
        }
        assert!(!matches("$sys.>", "$other.a"));
        assert!(!matches("$sys.>", "sys.a"));
    }

    #[test]
    fn each_problem_names_the_byte() {
        for (pattern, error) in [
            ("a.b*", r#"invalid pattern "a.b*": wildcard '*' must be a token by itself at byte 3"#),
            ("a.>b", r#"invalid pattern "a.>b": wildcard '>' must be a token by itself at byte 2"#),
            ("**", r#"invalid pattern "**": wildcard '*' must be a token by itself at byte 0"#),
            ("$>", r#"invalid pattern "$>": wildcard '>' must be a token by itself at byte 1"#),
            ("a.>.b", r#"invalid pattern "a.>.b": '>' must be the last token at byte 2"#),
            (">.", r#"invalid pattern ">.": '>' must be the last token at byte 0"#),
            ("a.*.", r#"invalid pattern "a.*.": empty token at byte 4"#),
            ("a.%", r#"invalid pattern "a.%": character '%' is not allowed at byte 2"#),
        ] {
            assert_eq!(Pattern::parse(pattern).expect_err(pattern).to_string(), error);
        }
    }

    /// The meaning of a pattern, in the simplest form.
    fn naive(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => naive(pattern, topic),
            ([wanted, pattern @ ..], [found, topic @ ..]) => wanted == found && naive(pattern, topic),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn agrees_with_the_naive_matcher(
            pattern in "(\\$?[ab]|\\*|>)(\\.([ab]|\\*)){0,3}(\\.>)?",
            topic in "\\$?[ab](\\.[ab]){0,4}",
        ) {
            let Ok(parsed) = Pattern::parse(&pattern) else {
                prop_assert!(pattern.starts_with(">."), "{}", pattern);
                return Ok(());
            };
            let wanted: Vec<&str> = pattern.split('.').collect();
            let found: Vec<&str> = topic.split('.').collect();
            let hidden = topic.starts_with('$') && matches!(wanted[0], "*" | ">");
            let topic = Topic::parse_system(&topic).unwrap();
            prop_assert_eq!(parsed.matches(&topic), !hidden && naive(&wanted, &found));
            prop_assert!(Pattern::from(&topic).matches(&topic));
        }
    }
}
