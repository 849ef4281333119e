//! What can go wrong for a client: one opaque error, with predicates.

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

/// The result of what a client does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Connect { path: PathBuf, is_there: bool, reason: String },
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
    Timeout,
}

impl Error {
    fn is_outcome(&self, wanted: Outcome) -> bool {
        matches!(&*self.0, Kind::Outcome { outcome, .. } if *outcome == wanted)
    }

    /// No broker listens at the socket: nothing is there, or nobody answers.
    #[must_use]
    pub fn is_no_broker(&self) -> bool {
        matches!(&*self.0, Kind::Connect { is_there: false, .. })
    }

    /// The socket cannot be reached: nobody listens ([`Error::is_no_broker`]), or the system does not let us, or the
    /// broker takes nobody in at present.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(&*self.0, Kind::Connect { .. })
    }

    /// The socket cannot be listened at, or no longer.
    #[must_use]
    pub fn is_listen(&self) -> bool {
        matches!(&*self.0, Kind::Listen { .. })
    }

    /// The connection has ended: the broker has closed it, or is gone.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(&*self.0, Kind::Disconnected(_) | Kind::Closed { .. }) || self.is_outcome(Outcome::Disconnected)
    }

    /// Nobody serves the service.
    #[must_use]
    pub fn is_no_responders(&self) -> bool {
        self.is_outcome(Outcome::NoResponders)
    }

    /// The service's breaker is open; see [`Error::retry_after`].
    #[must_use]
    pub fn is_breaker_open(&self) -> bool {
        self.is_outcome(Outcome::BreakerOpen)
    }

    /// The request's time limit passed.
    #[must_use]
    pub fn is_deadline_exceeded(&self) -> bool {
        self.is_outcome(Outcome::DeadlineExceeded)
    }

    /// The responder ended before it answered; the request may have been carried out.
    #[must_use]
    pub fn is_responder_lost(&self) -> bool {
        self.is_outcome(Outcome::ResponderLost)
    }

    /// The request was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.is_outcome(Outcome::Cancelled)
    }

    /// All responders have as much as they take, or a limit of the broker is reached.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.is_outcome(Outcome::Overloaded)
    }

    /// The message is larger than `max_message_size`; nothing was sent.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(&*self.0, Kind::TooLarge { .. }) || self.is_outcome(Outcome::TooLarge)
    }

    /// The responder answered with an error; its text is the error's text.
    #[must_use]
    pub fn is_error_reply(&self) -> bool {
        matches!(&*self.0, Kind::ErrorReply(_))
    }

    /// The subscription did not take its messages in time and was ended.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        matches!(&*self.0, Kind::Evicted { .. })
    }

    /// The name or pattern is not a valid one.
    #[must_use]
    pub fn is_invalid_name(&self) -> bool {
        matches!(&*self.0, Kind::Name(_))
    }

    /// The broker did not take the connection in, whatever the reason; [`Error::refused_code`] tells which.
    ///
    /// ```no_run
    /// use lapce_ipc::client::{Client, RefusedCode};
    ///
    /// match Client::connect() {
    ///     Err(error) if error.refused_code() == Some(RefusedCode::TooManyConnections) => println!("full"),
    ///     Err(error) if error.is_refused() => println!("not for us: {error}"),
    ///     Err(error) if error.is_protocol() => println!("whatever listens there is no broker: {error}"),
    ///     Err(error) => println!("{error}"),
    ///     Ok(client) => println!("connection {}", client.id()),
    /// }
    /// ```
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(&*self.0, Kind::Refused { .. } | Kind::Version { .. })
    }

    /// Why the broker did not take the connection in, if it did not.
    #[must_use]
    pub fn refused_code(&self) -> Option<RefusedCode> {
        match &*self.0 {
            Kind::Refused { code, .. } => Some(*code),
            Kind::Version { .. } => Some(RefusedCode::Version),
            _ => None,
        }
    }

    /// The other side does not keep to the protocol: it is no broker, or broken.
    #[must_use]
    pub fn is_protocol(&self) -> bool {
        matches!(&*self.0, Kind::Protocol(_))
    }

    /// The broker does not do what was asked for, and says why; [`Error::failed_code`] tells the kind.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        matches!(&*self.0, Kind::Failed { .. })
    }

    /// Why the broker does not do what was asked for, if it said so.
    #[must_use]
    pub fn failed_code(&self) -> Option<FailedCode> {
        match &*self.0 {
            Kind::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Client and broker speak different versions of the protocol.
    #[must_use]
    pub fn is_version_mismatch(&self) -> bool {
        matches!(&*self.0, Kind::Version { .. } | Kind::Refused { code: RefusedCode::Version, .. })
    }

    /// One side's user is not one that the other accepts.
    #[must_use]
    pub fn is_not_allowed(&self) -> bool {
        matches!(
            &*self.0,
            Kind::UntrustedBroker { .. }
                | Kind::Refused { code: RefusedCode::NotAllowed, .. }
                | Kind::Failed { code: FailedCode::NotAllowed, .. }
        )
    }

    /// The broker does not know what was named.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(&*self.0, Kind::Failed { code: FailedCode::Unknown, .. })
    }

    /// This thread holds a loan, and would wait for itself.
    #[must_use]
    pub fn is_loan_outstanding(&self) -> bool {
        matches!(&*self.0, Kind::LoanOutstanding)
    }

    /// This thread looks at a message in place, and would wait for itself; see
    /// [`Subscription::read_next`](super::Subscription::read_next).
    #[must_use]
    pub fn is_view_outstanding(&self) -> bool {
        matches!(&*self.0, Kind::ViewOutstanding)
    }

    /// An option with which a client was to be built makes no sense: its text names it, and the value.
    #[must_use]
    pub fn is_invalid_option(&self) -> bool {
        matches!(&*self.0, Kind::InvalidOption(_))
    }

    /// Nothing came within the time that the caller was ready to wait.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(&*self.0, Kind::Timeout)
    }

    /// Why the broker closed the connection, if it said so.
    #[must_use]
    pub fn closing_code(&self) -> Option<ClosingCode> {
        match &*self.0 {
            Kind::Closed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// When to try again, if the breaker said so.
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
            Kind::Connect { path, is_there: false, reason } => write!(f, "no broker at {}: {reason}", path.display()),
            Kind::Connect { path, reason, .. } => write!(f, "cannot reach the broker at {}: {reason}", path.display()),
            Kind::Listen { path, reason } => write!(f, "cannot listen at {}: {reason}", path.display()),
            Kind::UntrustedBroker { path, uid } => {
                write!(
                    f,
                    "the broker at {} runs as user {uid}, which is neither ours, nor root, nor trusted",
                    path.display()
                )
            }
            Kind::Version { ours, theirs } => {
                write!(f, "the broker speaks version {theirs} of the protocol, this client {ours}")
            }
            Kind::Refused { message, .. } => write!(f, "the broker refused the connection: {message}"),
            Kind::Protocol(what) => write!(f, "the broker broke the protocol: {what}"),
            Kind::Closed { message, .. } => write!(f, "the broker closed the connection: {message}"),
            Kind::Disconnected(reason) => write!(f, "disconnected: {reason}"),
            Kind::Outcome { outcome, retry_after } => {
                f.write_str(match outcome {
                    Outcome::NoResponders => "no responders: nobody serves it",
                    Outcome::BreakerOpen => "breaker open: the service has failed too often",
                    Outcome::DeadlineExceeded => "deadline exceeded",
                    Outcome::ResponderLost => "responder lost: it ended before it answered",
                    Outcome::Cancelled => "cancelled",
                    Outcome::TooLarge => "message too large",
                    Outcome::Overloaded => "overloaded: all responders have as much as they take",
                    Outcome::Disconnected => "disconnected",
                })?;
                match retry_after {
                    Some(after) => write!(f, "; try again in {} ms", after.as_millis()),
                    None => Ok(()),
                }
            }
            Kind::ErrorReply(text) => write!(f, "{}", text.escape_debug()),
            Kind::TooLarge { len, max } => {
                write!(f, "message of {len} bytes is larger than max_message_size, {max} bytes")
            }
            Kind::Name(error) => error.fmt(f),
            Kind::Failed { message, .. } => f.write_str(message),
            Kind::Evicted { dropped } => {
                write!(f, "subscription ended: its messages were not taken in time ({dropped} dropped)")
            }
            Kind::InvalidOption(what) => write!(f, "invalid option: {what}"),
            Kind::LoanOutstanding => f.write_str("this thread holds a loan; publish or drop it first"),
            Kind::ViewOutstanding => {
                f.write_str("this thread looks at a message in place; what waits comes after that")
            }
            Kind::Timeout => f.write_str("nothing came in time"),
        }
    }
}
