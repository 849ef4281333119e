//! Names of clients and services, and topics.
//!
//! One grammar serves all of them: tokens of `[A-Za-z0-9_-]{1,64}` joined by dots, at most [`TOKENS_MAX`] tokens and
//! [`NAME_BYTES_MAX`] bytes. Names reach logs, pages and metric labels, so no character that would need escaping in any
//! of these is accepted. One leading `$` marks the broker's own topics (`$sys.connections.opened`); all clients may
//! subscribe to those, only the broker publishes them.
//!
//! | type | grammar | checked by |
//! |---|---|---|
//! | [`Name`] | plain | [`Name::parse`] |
//! | [`Topic`] of an application | plain | [`Topic::parse`] |
//! | [`Topic`] of the broker | plain, or one leading `$` | [`Topic::parse_system`] |
//!
//! A value of these types is always valid, also one that was decoded: serde goes through the same check. A decoded
//! topic may be one of the broker's own, since the broker sends those too; a receiver of a client's topic checks
//! [`Topic::is_system`].

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The largest name, topic or pattern, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The largest token, in bytes. A leading `$` is not counted.
pub const TOKEN_BYTES_MAX: usize = 64;

/// The most tokens that a name, topic or pattern may have.
pub const TOKENS_MAX: usize = 16;

/// The number of characters that an error shows of a refused value.
const SHOWN_CHARS_MAX: usize = 40;

/// Why a text is no valid name, topic or pattern, and at which byte.
///
/// ```
/// use lapce_ipc::wire::Topic;
///
/// let error = Topic::parse("a..b").unwrap_err();
/// assert_eq!(error.to_string(), r#"invalid topic "a..b": empty token at byte 2"#);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid {what} \"{shown}\": {problem} at byte {offset}")]
pub struct NameError {
    what: &'static str,
    /// Escaped and truncated, so it is safe to print.
    shown: Box<str>,
    problem: NameProblem,
    offset: usize,
}

impl NameError {
    /// The error.
    #[must_use]
    pub fn problem(&self) -> NameProblem {
        self.problem
    }

    /// The offset in bytes of the first byte that is wrong.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// The violations of the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameProblem {
    /// An empty text, or no character before, after or between dots.
    #[error("empty token")]
    EmptyToken,
    /// A character outside of `[A-Za-z0-9_-]`.
    #[error("character {0:?} is not allowed")]
    Character(char),
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("more than {NAME_BYTES_MAX} bytes")]
    TooLong,
    /// A token of more than [`TOKEN_BYTES_MAX`] bytes.
    #[error("token of more than {TOKEN_BYTES_MAX} bytes")]
    TokenTooLong,
    /// More than [`TOKENS_MAX`] tokens.
    #[error("more than {TOKENS_MAX} tokens")]
    TooManyTokens,
    /// A leading `$` in a topic that does not come from the broker.
    #[error("a leading '$' is reserved for the broker's topics")]
    Reserved,
    /// A wildcard in a pattern that is not a token by itself.
    #[error("wildcard {0:?} must be a token by itself")]
    PartialWildcard(char),
    /// A `>` in a pattern that is not the last token.
    #[error("'>' must be the last token")]
    EarlyRest,
}

/// Whether a text may begin with `$`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dollar {
    /// A `$` is an invalid character.
    Never,
    /// A leading `$` marks a topic of the broker, which the caller must not use.
    Reserved,
    /// A leading `$` is allowed.
    Allowed,
}

/// The grammar for [`check`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Grammar {
    /// The name of the kind of text, for errors.
    pub(super) what: &'static str,
    pub(super) dollar: Dollar,
    pub(super) wildcards: bool,
}

/// Checks a text against a grammar from left to right. Returns the first problem.
pub(super) fn check(text: &str, grammar: Grammar) -> Result<(), NameError> {
    let fail = |problem, offset| Err(NameError { what: grammar.what, shown: shown(text).into(), problem, offset });
    if text.len() > NAME_BYTES_MAX {
        return fail(NameProblem::TooLong, NAME_BYTES_MAX);
    }
    let mut start = 0;
    for (index, token) in text.split('.').enumerate() {
        let end = start + token.len();
        if index == TOKENS_MAX {
            return fail(NameProblem::TooManyTokens, start);
        }
        let mut plain = token;
        if index == 0
            && let Some(rest) = token.strip_prefix('$')
        {
            match grammar.dollar {
                Dollar::Never => return fail(NameProblem::Character('$'), 0),
                Dollar::Reserved => return fail(NameProblem::Reserved, 0),
                Dollar::Allowed => plain = rest,
            }
        }
        let plain_start = end - plain.len();
        if plain.is_empty() {
            return fail(NameProblem::EmptyToken, plain_start);
        }
        let wildcard = grammar.wildcards && matches!(token, "*" | ">");
        if wildcard && token == ">" && end != text.len() {
            return fail(NameProblem::EarlyRest, start);
        }
        if !wildcard {
            for (offset, character) in plain.char_indices() {
                let offset = plain_start + offset;
                match character {
                    'A'..='Z' | 'a'..='z' | '0'..='9' | '_' | '-' => {}
                    '*' | '>' if grammar.wildcards => {
                        return fail(NameProblem::PartialWildcard(character), offset);
                    }
                    _ => return fail(NameProblem::Character(character), offset),
                }
            }
        }
        if plain.len() > TOKEN_BYTES_MAX {
            return fail(NameProblem::TokenTooLong, plain_start + TOKEN_BYTES_MAX);
        }
        start = end + 1;
    }
    Ok(())
}

/// Untrusted text in a form that is safe to show: ASCII, no control characters, and short.
pub(super) fn shown(text: &str) -> String {
    let mut characters = text.chars();
    let mut shown: String = characters.by_ref().take(SHOWN_CHARS_MAX).flat_map(char::escape_default).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// The common part of the text types. `$parse` is for input of users, `$decode` for input of peers.
macro_rules! text_type {
    ($type:ident, $parse:ident, $decode:ident) => {
        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The tokens, from left to right; there is at least one.
            pub fn tokens(&self) -> impl Iterator<Item = &str> {
                self.0.split('.')
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        /// Equality, order and hash are those of the text, so a map can be searched for a `&str`.
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::wire::name::NameError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::$parse(text)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = $crate::wire::name::NameError;

            fn try_from(text: &str) -> Result<Self, Self::Error> {
                Self::$parse(text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                Self::from(value.as_str())
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::$decode(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use text_type;

/// The name of a client or of a service. Cheap to clone.
///
/// ```
/// use lapce_ipc::wire::Name;
///
/// let name = Name::parse("ai.completion")?;
/// assert_eq!(name.as_str(), "ai.completion");
/// assert!(Name::parse("<script>").is_err());
/// # Ok::<(), lapce_ipc::wire::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

text_type!(Name, parse, parse);

impl Name {
    /// Validates a name.
    ///
    /// # Errors
    /// If `text` violates the grammar in the [module's description](self), with the offset.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text, Grammar { what: "name", dollar: Dollar::Never, wildcards: false })?;
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({})", self.0)
    }
}

/// A topic that is not one of the broker's own can serve as a name.
impl TryFrom<&Topic> for Name {
    type Error = NameError;

    fn try_from(topic: &Topic) -> Result<Self, NameError> {
        check(topic.as_str(), Grammar { what: "name", dollar: Dollar::Never, wildcards: false })?;
        Ok(Self(Arc::clone(&topic.0)))
    }
}

/// A topic, to which publishers publish: without wildcards. Cheap to clone.
///
/// ```
/// use lapce_ipc::wire::Topic;
///
/// let topic = Topic::parse("lapce.ai.completion")?;
/// assert_eq!(topic.tokens().count(), 3);
/// assert!(Topic::parse("$sys.restarts").is_err());
/// assert!(Topic::parse_system("$sys.restarts")?.is_system());
/// # Ok::<(), lapce_ipc::wire::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

text_type!(Topic, parse, parse_system);

impl Topic {
    /// Validates a topic of an application.
    ///
    /// # Errors
    /// If `text` violates the grammar in the [module's description](self), with the offset; also for a leading `$`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        Self::parse_with(text, Dollar::Reserved)
    }

    /// Validates a topic of an application or of the broker.
    ///
    /// # Errors
    /// If `text` violates the grammar in the [module's description](self), with the offset.
    pub fn parse_system(text: &str) -> Result<Self, NameError> {
        Self::parse_with(text, Dollar::Allowed)
    }

    /// Whether this is one of the broker's own topics, on which only the broker publishes.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.0.starts_with('$')
    }

    fn parse_with(text: &str, dollar: Dollar) -> Result<Self, NameError> {
        check(text, Grammar { what: "topic", dollar, wildcards: false })?;
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({})", self.0)
    }
}

/// Every name can serve as a topic.
impl From<&Name> for Topic {
    fn from(name: &Name) -> Self {
        Self(Arc::clone(&name.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic_error(text: &str) -> String {
        Topic::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn each_problem_names_the_value_and_the_byte() {
        assert_eq!(topic_error(""), r#"invalid topic "": empty token at byte 0"#);
        assert_eq!(topic_error(".a"), r#"invalid topic ".a": empty token at byte 0"#);
        assert_eq!(topic_error("a."), r#"invalid topic "a.": empty token at byte 2"#);
        assert_eq!(topic_error("a..b"), r#"invalid topic "a..b": empty token at byte 2"#);
        assert_eq!(topic_error("ab.c\nd"), r#"invalid topic "ab.c\nd": character '\n' is not allowed at byte 4"#);
        assert_eq!(topic_error("é"), r#"invalid topic "\u{e9}": character 'é' is not allowed at byte 0"#);
        assert_eq!(topic_error("a.*"), r#"invalid topic "a.*": character '*' is not allowed at byte 2"#);
        assert_eq!(topic_error("a.$b"), r#"invalid topic "a.$b": character '$' is not allowed at byte 2"#);
        assert_eq!(
            topic_error("$sys.a"),
            r#"invalid topic "$sys.a": a leading '$' is reserved for the broker's topics at byte 0"#
        );
    }

    #[test]
    fn limits_are_exact() {
        let token = "t".repeat(TOKEN_BYTES_MAX);
        assert!(Topic::parse(&token).is_ok());
        assert!(Topic::parse_system(&format!("${token}")).is_ok());
        let error = Topic::parse(&format!("a.{token}t")).unwrap_err();
        assert_eq!((error.problem(), error.offset()), (NameProblem::TokenTooLong, 66));

        let tokens = vec!["a"; TOKENS_MAX].join(".");
        assert!(Topic::parse(&tokens).is_ok());
        let error = Topic::parse(&format!("{tokens}.a")).unwrap_err();
        assert_eq!((error.problem(), error.offset()), (NameProblem::TooManyTokens, 32));

        let longest = format!("{token}.{token}.{token}.{}", "t".repeat(60));
        assert_eq!(longest.len(), NAME_BYTES_MAX);
        assert!(Topic::parse(&longest).is_ok());
        let error = Topic::parse(&format!("{longest}t")).unwrap_err();
        assert_eq!((error.problem(), error.offset()), (NameProblem::TooLong, NAME_BYTES_MAX));
    }

    #[test]
    fn errors_stay_short_and_printable() {
        let error = Topic::parse(&"\u{1b}[31m\u{202e}".repeat(10_000)).unwrap_err().to_string();
        assert!(error.chars().all(|c| c == '…' || (' '..='~').contains(&c)), "{error}");
        assert!(error.len() < 600, "{error}");
    }

    #[test]
    fn dollar_marks_the_brokers_topics_only() {
        assert!(Topic::parse_system("$sys.a").unwrap().is_system());
        assert!(!Topic::parse_system("sys.a").unwrap().is_system());
        let bare = Topic::parse_system("$").unwrap_err();
        assert_eq!((bare.problem(), bare.offset()), (NameProblem::EmptyToken, 1));
        let twice = Topic::parse_system("$$a").unwrap_err();
        assert_eq!((twice.problem(), twice.offset()), (NameProblem::Character('$'), 1));
        let name = Name::parse("$a").unwrap_err();
        assert_eq!(name.to_string(), r#"invalid name "$a": character '$' is not allowed at byte 0"#);
        assert!(Name::try_from(&Topic::parse_system("$a").unwrap()).is_err());
        assert_eq!(Name::try_from(&Topic::parse("a").unwrap()).unwrap().as_str(), "a");
    }

    #[test]
    fn serde_lets_nothing_else_in() {
        fn decoded<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, serde::de::value::Error> {
            T::deserialize(serde::de::value::StrDeserializer::new(text))
        }
        assert_eq!(decoded::<Name>("a.b").unwrap().as_str(), "a.b");
        assert_eq!(decoded::<Topic>("$sys.a").unwrap().as_str(), "$sys.a");
        let error = decoded::<Name>("a b").unwrap_err().to_string();
        assert_eq!(error, r#"invalid name "a b": character ' ' is not allowed at byte 1"#);
        assert!(decoded::<Name>("$sys.a").is_err());
        assert!(decoded::<Topic>("<script>").is_err());
    }

    /// The grammar once more, in its simplest form.
    fn naive(text: &str) -> bool {
        let tokens: Vec<&str> = text.split('.').collect();
        text.len() <= 255
            && tokens.len() <= 16
            && tokens.iter().all(|token| {
                (1..=64).contains(&token.len())
                    && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            })
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_grammar(
            text in prop_oneof!["[ab.$*>_-]{0,12}", "[a.]{0,60}", "a{50,70}(\\.a{50,70}){0,4}", ".*"],
        ) {
            prop_assert_eq!(Name::parse(&text).is_ok(), naive(&text));
            prop_assert_eq!(Topic::parse(&text).is_ok(), naive(&text));
            if let Err(error) = Topic::parse_system(&text) {
                prop_assert!(error.offset() <= text.len());
                prop_assert!(text.is_char_boundary(error.offset()) || error.problem() == NameProblem::TooLong);
            }
        }
    }
}
