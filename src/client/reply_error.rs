//! How a responder says that it has no reply.

use std::fmt::Display;

/// An error in place of a reply: either the request is wrong, or the service has failed.
///
/// The difference matters to the service's other requesters: failures count at its breaker, and several in a row open
/// it; rejections do not count, however many there are. Any error that can be displayed becomes a rejection by `?` or
/// `into()`, so wrong requests do not close a service. The handler marks the service's own failures with
/// [`ReplyError::failed`]; a panic is one, too.
///
/// ```
/// use lapce_ipc::client::ReplyError;
///
/// fn parse(payload: &[u8]) -> Result<u32, ReplyError> {
///     Ok(std::str::from_utf8(payload)?.parse()?) // a wrong request: rejected
/// }
/// fn look_up(id: u32) -> Result<String, ReplyError> {
///     std::fs::read_to_string(format!("/nonexistent/{id}")).map_err(ReplyError::failed)
/// }
/// assert!(!parse(b"x").unwrap_err().is_failure());
/// assert!(look_up(7).unwrap_err().is_failure());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyError {
    text: String,
    is_failure: bool,
}

impl ReplyError {
    /// The request is wrong. It does not count at the breaker.
    pub fn rejected(text: impl Display) -> ReplyError {
        ReplyError { text: text.to_string(), is_failure: false }
    }

    /// The service has failed. It counts at the breaker.
    pub fn failed(text: impl Display) -> ReplyError {
        ReplyError { text: text.to_string(), is_failure: true }
    }

    /// The text that the requester gets.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it counts at the breaker.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.is_failure
    }
}

// It does not implement `Display` itself, or this would be its conversion into itself, too.
impl<E: Display> From<E> for ReplyError {
    fn from(error: E) -> ReplyError {
        ReplyError::rejected(error)
    }
}
