//! The errors of a client: one opaque type, with predicates.

pub(crate) mod kind;

use crate::wire::control::{ClosingCode, FailedCode, RefusedCode};
use crate::wire::name::NameError;
use crate::wire::record::Outcome;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the client.
///
/// ```
/// use lapce_ipc::client::Client;
///
/// let error = Client::builder().socket("/nonexistent/lapce.sock").connect().unwrap_err();
/// assert!(error.is_no_broker());
/// ```
#[derive(Clone)]
pub struct Error(Box<Kind>);

/// The result of a client operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The result of a wait with a time limit: `None` if it timed out.
pub(crate) fn in_time<T>(received: Result<T>) -> Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(error) if error.is_timeout() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The reason why a socket cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreached {
    /// No process listens.
    NoListener,
    /// No permission to open it.
    Denied,
    /// The error does not say whether a process listens.
    Other,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Connect { path: PathBuf, why: Unreached, reason: String },
    Listen { path: PathBuf, reason: String },
    UntrustedBroker { path: PathBuf, uid: u32 },
    Version { ours: u16, theirs: u16 },
    Refused { code: RefusedCode, message: String },
    Protocol(String),
    Closed { code: ClosingCode, message: String },
    Disconnected(String),
    Outcome { outcome: Outcome, retry_after: Option<Duration> },
    ErrorReply(String),
    TooLarge { len: usize, max: u32 },
    Name(NameError),
    Failed { code: FailedCode, message: String },
    Evicted { dropped: u64 },
    InvalidOption(String),
    LoanOutstanding,
    ViewOutstanding,
    Forked,
    Timeout,
}

impl Error {
    pub(crate) fn detail(&self) -> &Kind {
        &self.0
    }

    fn is_outcome(&self, wanted: Outcome) -> bool {
        matches!(&*self.0, Kind::Outcome { outcome, .. } if *outcome == wanted)
    }

    /// No broker listens at the socket: it does not exist, or no process listens.
    #[must_use]
    pub fn is_no_broker(&self) -> bool {
        matches!(&*self.0, Kind::Connect { why: Unreached::NoListener, .. })
    }

    /// The socket cannot be reached: no process listens ([`Error::is_no_broker`]), permission is denied, or the
    /// listen backlog is full.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(&*self.0, Kind::Connect { .. })
    }

    /// The listener cannot listen at its socket, or no longer.
    #[must_use]
    pub fn is_listen(&self) -> bool {
        matches!(&*self.0, Kind::Listen { .. })
    }

    /// The connection has ended: the broker closed it or exited.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(&*self.0, Kind::Disconnected(_) | Kind::Closed { .. }) || self.is_outcome(Outcome::Disconnected)
    }

    /// The service has no responder.
    #[must_use]
    pub fn is_no_responders(&self) -> bool {
        self.is_outcome(Outcome::NoResponders)
    }

    /// The service's breaker is open; see [`Error::retry_after`].
    #[must_use]
    pub fn is_breaker_open(&self) -> bool {
        self.is_outcome(Outcome::BreakerOpen)
    }

    /// The deadline of the request passed.
    #[must_use]
    pub fn is_deadline_exceeded(&self) -> bool {
        self.is_outcome(Outcome::DeadlineExceeded)
    }

    /// The responder ended before it replied; the request may have been executed.
    #[must_use]
    pub fn is_responder_lost(&self) -> bool {
        self.is_outcome(Outcome::ResponderLost)
    }

    /// The request was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.is_outcome(Outcome::Cancelled)
    }

    /// All responders are at capacity, or a limit of the broker is reached.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.is_outcome(Outcome::Overloaded)
    }

    /// The message is larger than `max_message_size`; nothing was sent.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(&*self.0, Kind::TooLarge { .. }) || self.is_outcome(Outcome::TooLarge)
    }

    /// The responder replied with an error; see [`Error::reply_text`].
    #[must_use]
    pub fn is_error_reply(&self) -> bool {
        matches!(&*self.0, Kind::ErrorReply(_))
    }

    /// The text of an error reply, unchanged. (`Display` escapes its control characters.)
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// if let Err(error) = client.request("format", "fn main() {")
    ///     && let Some(text) = error.reply_text()
    /// {
    ///     println!("{} lines of complaints", text.lines().count());
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    #[must_use]
    pub fn reply_text(&self) -> Option<&str> {
        match &*self.0 {
            Kind::ErrorReply(text) => Some(text),
            _ => None,
        }
    }

    /// The subscription was evicted as a slow consumer.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        matches!(&*self.0, Kind::Evicted { .. })
    }

    /// The name or pattern is invalid.
    #[must_use]
    pub fn is_invalid_name(&self) -> bool {
        matches!(&*self.0, Kind::Name(_))
    }

    /// The broker refused the connection; [`Error::refused_code`] returns the reason.
    ///
    /// ```no_run
    /// use lapce_ipc::client::{Client, RefusedCode};
    ///
    /// match Client::connect() {
    ///     Err(error) if error.refused_code() == Some(RefusedCode::TooManyConnections) => println!("full"),
    ///     Err(error) if error.is_refused() => println!("refused: {error}"),
    ///     Err(error) if error.is_protocol() => println!("not a broker: {error}"),
    ///     Err(error) => println!("{error}"),
    ///     Ok(client) => println!("connection {}", client.id()),
    /// }
    /// ```
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(&*self.0, Kind::Refused { .. } | Kind::Version { .. })
    }

    /// The reason why the broker refused the connection.
    #[must_use]
    pub fn refused_code(&self) -> Option<RefusedCode> {
        match &*self.0 {
            Kind::Refused { code, .. } => Some(*code),
            Kind::Version { .. } => Some(RefusedCode::Version),
            _ => None,
        }
    }

    /// The other side violated the protocol: it is not a broker, or faulty.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        matches!(&*self.0, Kind::Protocol(_))
    }

    /// The broker rejected the operation; [`Error::failed_code`] returns the kind.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        matches!(&*self.0, Kind::Failed { .. })
    }

    /// The reason why the broker rejected the operation.
    #[must_use]
    pub fn failed_code(&self) -> Option<FailedCode> {
        match &*self.0 {
            Kind::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Client and broker have different protocol versions.
    #[must_use]
    pub fn is_version_mismatch(&self) -> bool {
        matches!(&*self.0, Kind::Version { .. } | Kind::Refused { code: RefusedCode::Version, .. })
    }

    /// Permission denied: one side's user is not trusted by the other, or may not perform the operation.
    #[must_use]
    pub fn is_not_allowed(&self) -> bool {
        matches!(
            &*self.0,
            Kind::UntrustedBroker { .. }
                | Kind::Refused { code: RefusedCode::NotAllowed, .. }
                | Kind::Failed { code: FailedCode::NotAllowed, .. }
        )
    }

    /// The broker does not know the name.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(&*self.0, Kind::Failed { code: FailedCode::Unknown, .. })
    }

    /// This thread holds a loan: the call would deadlock.
    #[must_use]
    pub fn is_loan_outstanding(&self) -> bool {
        matches!(&*self.0, Kind::LoanOutstanding)
    }

    /// This thread reads a message in place: the call would deadlock; see
    /// [`Subscription::read_next`](crate::client::Subscription::read_next).
    #[must_use]
    pub fn is_view_outstanding(&self) -> bool {
        matches!(&*self.0, Kind::ViewOutstanding)
    }

    /// This process is a forked child of the process that connected; it must connect itself, see
    /// [`Client`](crate::client::Client).
    #[must_use]
    pub fn is_forked(&self) -> bool {
        matches!(&*self.0, Kind::Forked)
    }

    /// An option is invalid; the text names the option and its value.
    #[must_use]
    pub fn is_invalid_option(&self) -> bool {
        matches!(&*self.0, Kind::InvalidOption(_))
    }

    /// The caller's timeout has passed.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(&*self.0, Kind::Timeout)
    }

    /// The reason that the broker gave for closing the connection.
    #[must_use]
    pub fn closing_code(&self) -> Option<ClosingCode> {
        match &*self.0 {
            Kind::Closed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The time until a retry makes sense, if the breaker is open.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match &*self.0 {
            Kind::Outcome { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Error {
        Error(Box::new(kind))
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Error {
        Kind::Name(error).into()
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Kind::Connect { path, why: Unreached::NoListener, reason } => {
                write!(f, "no broker at {}: {reason}", path.display())
            }
            Kind::Connect { path, why: Unreached::Denied, reason } => {
                write!(f, "cannot open the socket {}: {reason}", path.display())
            }
            Kind::Connect { path, reason, .. } => write!(f, "cannot reach the broker at {}: {reason}", path.display()),
            Kind::Listen { path, reason } => write!(f, "cannot listen at {}: {reason}", path.display()),
            Kind::UntrustedBroker { path, uid } => {
                write!(f, "the broker at {} runs as user {uid}, which is not trusted", path.display())
            }
            Kind::Version { ours, theirs } => {
                write!(f, "protocol version mismatch: broker {theirs}, client {ours}")
            }
            Kind::Refused { message, .. } => write!(f, "the broker refused the connection: {message}"),
            Kind::Protocol(what) => write!(f, "protocol violation by the broker: {what}"),
            Kind::Closed { message, .. } => write!(f, "the broker closed the connection: {message}"),
            Kind::Disconnected(reason) => write!(f, "disconnected: {reason}"),
            Kind::Outcome { outcome, retry_after } => {
                f.write_str(match outcome {
                    Outcome::NoResponders => "no responders: the service is not offered",
                    Outcome::BreakerOpen => "breaker open: requests to the service are rejected",
                    Outcome::DeadlineExceeded => "deadline exceeded",
                    Outcome::ResponderLost => "responder lost: it ended before it replied",
                    Outcome::Cancelled => "cancelled",
                    Outcome::TooLarge => "message too large",
                    Outcome::Overloaded => "overloaded: all responders are at capacity",
                    Outcome::Disconnected => "disconnected",
                })?;
                match retry_after {
                    Some(after) => {
                        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                        write!(f, "; try again in {}", age(ms))
                    }
                    None => Ok(()),
                }
            }
            Kind::ErrorReply(text) => text.chars().try_for_each(|c| match c.is_control() {
                true => write!(f, "{}", c.escape_default()),
                false => write!(f, "{c}"),
            }),
            Kind::TooLarge { len, max } => {
                write!(f, "message of {len} bytes is larger than max_message_size, {max} bytes")
            }
            Kind::Name(error) => error.fmt(f),
            Kind::Failed { message, .. } => f.write_str(message),
            Kind::Evicted { dropped } => {
                write!(f, "subscription evicted: slow consumer ({dropped} messages dropped)")
            }
            Kind::InvalidOption(what) => write!(f, "invalid option: {what}"),
            Kind::LoanOutstanding => f.write_str("this thread holds a loan; publish or drop it first"),
            Kind::ViewOutstanding => f.write_str("cannot block while reading a message in place"),
            Kind::Forked => f.write_str("the client was created before fork(); the child must connect itself"),
            Kind::Timeout => f.write_str("timed out"),
        }
    }
}

/// A duration in its two largest units.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        for (ms, text) in [
            (999, "999 ms"),
            (59_999, "59 s"),
            (61_000, "1 min 1 s"),
            (3_660_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn an_error_reply_is_shown_as_it_is_but_for_control_characters() {
        let text = "l'été: \"fn\" at C:\\x, `a`\nand \u{1b}[2J\u{9b}1m";
        let error = Error::from(Kind::ErrorReply(text.to_owned()));
        assert_eq!(error.reply_text(), Some(text));
        assert_eq!(error.to_string(), "l'été: \"fn\" at C:\\x, `a`\\nand \\u{1b}[2J\\u{9b}1m");
        assert_eq!(Error::from(Kind::Timeout).reply_text(), None);
    }

    #[test]
    fn an_open_breaker_blames_nobody_and_says_when_in_words() {
        let open = |ms| Kind::Outcome { outcome: Outcome::BreakerOpen, retry_after: Some(Duration::from_millis(ms)) };
        let result = Error::from(open(35_996_399_977)).to_string();
        assert_eq!(result, "breaker open: requests to the service are rejected; try again in 416 d 14 h");
        assert!(Error::from(open(250)).to_string().ends_with("; try again in 250 ms"));
    }
}
