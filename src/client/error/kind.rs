//! The kinds of errors, for a `match`.

use super::{Error, Kind, Unreached};
use crate::wire::control::{FailedCode, RefusedCode};
use crate::wire::record::Outcome;

/// The kind of an [`Error`], as [`Error::kind`] returns it.
///
/// Each error has exactly one kind. Some predicates of [`Error`] cover several kinds: [`Error::is_disconnected`] is
/// true for `Disconnected` and for `Closed`.
///
/// ```
/// use lapce_ipc::client::{Client, ErrorKind};
///
/// let error = Client::builder().socket("/nonexistent/lapce.sock").connect().unwrap_err();
/// match error.kind() {
///     ErrorKind::NoBroker => println!("start the broker"),
///     ErrorKind::BreakerOpen | ErrorKind::Overloaded => println!("try again later"),
///     _ => println!("{error}"),
/// }
/// # assert_eq!(error.kind(), ErrorKind::NoBroker);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No broker listens at the socket.
    NoBroker,
    /// The socket exists and cannot be reached: no permission, a full listen backlog, or a path that is too long.
    Unreachable,
    /// A [`Listener`](crate::client::Listener) cannot listen at its socket.
    Listen,
    /// Permission denied: one side's user is not trusted by the other, or may not perform the operation.
    NotAllowed,
    /// Client and broker have different protocol versions.
    VersionMismatch,
    /// The broker refused the connection; [`Error::refused_code`] returns the reason.
    Refused,
    /// The other side violated the protocol.
    Protocol,
    /// The broker closed the connection; [`Error::closing_code`] returns the reason.
    Closed,
    /// The connection was lost, or ended before the outcome of a request was known.
    Disconnected,
    /// The service has no responder.
    NoResponders,
    /// The breaker of the service is open; [`Error::retry_after`] returns when to try again.
    BreakerOpen,
    /// The deadline of the request passed.
    DeadlineExceeded,
    /// The responder ended before it replied. The request may have been executed.
    ResponderLost,
    /// The request was cancelled.
    Cancelled,
    /// All responders are at capacity, or a limit of the broker is reached.
    Overloaded,
    /// The message is larger than `max_message_size`.
    TooLarge,
    /// The responder replied with an error; [`Error::reply_text`] returns its text.
    ErrorReply,
    /// A name or pattern is invalid.
    InvalidName,
    /// An option is invalid.
    InvalidOption,
    /// The broker does not know the name.
    Unknown,
    /// The broker rejected the operation; [`Error::failed_code`] returns the reason.
    Failed,
    /// The subscription was evicted as a slow consumer.
    Evicted,
    /// This thread holds a loan: the call would deadlock.
    LoanOutstanding,
    /// This thread reads a message in place: the call would deadlock.
    ViewOutstanding,
    /// This process is a forked child of the process that connected.
    Forked,
    /// The caller's timeout has passed.
    Timeout,
}

impl Error {
    /// The kind of this error, for a `match`.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.detail() {
            Kind::Connect { why: Unreached::NoListener, .. } => ErrorKind::NoBroker,
            Kind::Connect { .. } => ErrorKind::Unreachable,
            Kind::Listen { .. } => ErrorKind::Listen,
            Kind::UntrustedBroker { .. }
            | Kind::Refused { code: RefusedCode::NotAllowed, .. }
            | Kind::Failed { code: FailedCode::NotAllowed, .. } => ErrorKind::NotAllowed,
            Kind::Version { .. } | Kind::Refused { code: RefusedCode::Version, .. } => ErrorKind::VersionMismatch,
            Kind::Refused { .. } => ErrorKind::Refused,
            Kind::Protocol(_) => ErrorKind::Protocol,
            Kind::Closed { .. } => ErrorKind::Closed,
            Kind::Disconnected(_) => ErrorKind::Disconnected,
            Kind::Outcome { outcome, .. } => match outcome {
                Outcome::NoResponders => ErrorKind::NoResponders,
                Outcome::BreakerOpen => ErrorKind::BreakerOpen,
                Outcome::DeadlineExceeded => ErrorKind::DeadlineExceeded,
                Outcome::ResponderLost => ErrorKind::ResponderLost,
                Outcome::Cancelled => ErrorKind::Cancelled,
                Outcome::TooLarge => ErrorKind::TooLarge,
                Outcome::Overloaded => ErrorKind::Overloaded,
                Outcome::Disconnected => ErrorKind::Disconnected,
            },
            Kind::ErrorReply(_) => ErrorKind::ErrorReply,
            Kind::TooLarge { .. } => ErrorKind::TooLarge,
            Kind::Name(_) => ErrorKind::InvalidName,
            Kind::Failed { code: FailedCode::Unknown, .. } => ErrorKind::Unknown,
            Kind::Failed { .. } => ErrorKind::Failed,
            Kind::Evicted { .. } => ErrorKind::Evicted,
            Kind::InvalidOption(_) => ErrorKind::InvalidOption,
            Kind::LoanOutstanding => ErrorKind::LoanOutstanding,
            Kind::ViewOutstanding => ErrorKind::ViewOutstanding,
            Kind::Forked => ErrorKind::Forked,
            Kind::Timeout => ErrorKind::Timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::ClosingCode;

    #[test]
    fn kinds_agree_with_the_predicates() {
        let text = String::new;
        let outcome = |outcome| Error::from(Kind::Outcome { outcome, retry_after: None });
        let refused = |code| Error::from(Kind::Refused { code, message: text() });
        let failed = |code| Error::from(Kind::Failed { code, message: text() });
        type Case = (Error, ErrorKind, fn(&Error) -> bool);
        let cases: [Case; 13] = [
            (outcome(Outcome::BreakerOpen), ErrorKind::BreakerOpen, Error::is_breaker_open),
            (outcome(Outcome::Disconnected), ErrorKind::Disconnected, Error::is_disconnected),
            (outcome(Outcome::TooLarge), ErrorKind::TooLarge, Error::is_too_large),
            (Kind::TooLarge { len: 2, max: 1 }.into(), ErrorKind::TooLarge, Error::is_too_large),
            (Kind::Disconnected(text()).into(), ErrorKind::Disconnected, Error::is_disconnected),
            (
                Kind::Closed { code: ClosingCode::Shutdown, message: text() }.into(),
                ErrorKind::Closed,
                Error::is_disconnected,
            ),
            (refused(RefusedCode::NotAllowed), ErrorKind::NotAllowed, Error::is_not_allowed),
            (refused(RefusedCode::Version), ErrorKind::VersionMismatch, Error::is_version_mismatch),
            (refused(RefusedCode::Draining), ErrorKind::Refused, Error::is_refused),
            (failed(FailedCode::Unknown), ErrorKind::Unknown, Error::is_unknown),
            (failed(FailedCode::NotAllowed), ErrorKind::NotAllowed, Error::is_not_allowed),
            (Kind::ErrorReply(text()).into(), ErrorKind::ErrorReply, Error::is_error_reply),
            (Kind::Timeout.into(), ErrorKind::Timeout, Error::is_timeout),
        ];
        for (error, kind, holds) in cases {
            assert_eq!(error.kind(), kind);
            assert!(holds(&error), "{kind:?}");
        }
    }
}
