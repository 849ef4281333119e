//! Failures of commands, and their exit codes.
//!
//! The codes are those of `sysexits.h` where it has one; scripts rely on them. An error of the library has its code
//! here, in one place.

use crate::broker::{BrokerError, HealthError, SocketError};
use crate::client::{self, ErrorDetail as ErrorKind, Unreached};
use crate::config::ConfigError;
use crate::wire::control::{FailedCode, RefusedCode};
use crate::wire::record::Outcome;
use std::fmt;

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Success, or the reader of stdout has closed it.
    Done = 0,
    /// The reply was an error, or the broker rejected the request.
    ErrorReply = 1,
    /// Usage error.
    Usage = 64,
    /// The message is too large.
    TooLarge = 65,
    /// No broker, no responders, disconnected; or the broker cannot start.
    Unavailable = 69,
    /// Output cannot be written.
    Output = 74,
    /// A temporary failure.
    TryAgain = 75,
    /// Another protocol version, or not a broker.
    Protocol = 76,
    /// Untrusted user, or no access to the socket.
    NotAllowed = 77,
    /// Invalid configuration.
    Config = 78,
    /// SIGINT.
    Interrupted = 130,
    /// SIGTERM, of commands with children or files to clean up.
    Terminated = 143,
}

impl Code {
    /// All of them, in order.
    pub(super) const ALL: [Code; 12] = [
        Code::Done,
        Code::ErrorReply,
        Code::Usage,
        Code::TooLarge,
        Code::Unavailable,
        Code::Output,
        Code::TryAgain,
        Code::Protocol,
        Code::NotAllowed,
        Code::Config,
        Code::Interrupted,
        Code::Terminated,
    ];

    /// The meaning, in the README and in `--help`.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Code::Done => "done",
            Code::ErrorReply => {
                "the service replied with an error, or the broker rejected the request (unknown name or not permitted)"
            }
            Code::Usage => "usage error",
            Code::TooLarge => "the message is too large",
            Code::Unavailable => "no broker, no responders, disconnected; the broker cannot start",
            Code::Output => "cannot write to stdout",
            Code::TryAgain => "temporary: breaker open, deadline, responder lost, overloaded, too many connections",
            Code::Protocol => "protocol error: another protocol version, or not a broker",
            Code::NotAllowed => "permission denied: untrusted user, or no access to the socket",
            Code::Config => "invalid configuration",
            Code::Interrupted => "interrupted (SIGINT); a broker ends with 0",
            Code::Terminated => "terminated (SIGTERM); a broker ends with 0",
        }
    }
}

/// The failure of a command.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hint: None }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn into_message(self) -> String {
        self.message
    }

    /// Appends context in parentheses.
    #[must_use]
    pub(super) fn about(mut self, what: fmt::Arguments<'_>) -> Failure {
        self.message = format!("{} ({what})", self.message);
        self
    }

    /// The failure of an administrative order.
    pub(super) fn of_order(error: client::Error) -> Failure {
        let is_refused = error.is_not_allowed();
        let mut failure = Failure::from(error);
        if is_refused {
            failure.code = Code::NotAllowed;
        }
        failure
    }

    /// The reader of stdout has closed it.
    pub(super) fn silent() -> Failure {
        Failure::new(Code::Done, "")
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Failure {
        let failure = Failure::new(code_of(error.detail()), error.to_string());
        match error.detail() {
            ErrorKind::Connect { why: Unreached::NoListener, .. } => failure.hint("start a broker: lapce-ipc serve"),
            ErrorKind::UntrustedBroker { uid, .. } => failure.hint(format!("to trust this user: --trust-uid {uid}")),
            ErrorKind::Failed { code: FailedCode::Unknown, .. } => {
                failure.hint("lapce-ipc breaker list shows all breakers")
            }
            ErrorKind::Outcome { outcome: Outcome::NoResponders, .. } => {
                failure.hint("lapce-ipc status lists all services")
            }
            _ => failure,
        }
    }
}

fn code_of(kind: &ErrorKind) -> Code {
    match kind {
        ErrorKind::ErrorReply(_) => Code::ErrorReply,
        ErrorKind::Name(_) | ErrorKind::InvalidOption(_) => Code::Usage,
        ErrorKind::TooLarge { .. } => Code::TooLarge,
        ErrorKind::Connect { why: Unreached::Denied, .. } | ErrorKind::UntrustedBroker { .. } => Code::NotAllowed,
        ErrorKind::Connect { .. }
        | ErrorKind::Listen { .. }
        | ErrorKind::Closed { .. }
        | ErrorKind::Disconnected(_) => Code::Unavailable,
        ErrorKind::Version { .. } | ErrorKind::Protocol(_) => Code::Protocol,
        ErrorKind::Refused { code, .. } => match code {
            RefusedCode::Version | RefusedCode::Malformed => Code::Protocol,
            RefusedCode::NotAllowed => Code::NotAllowed,
            RefusedCode::TooManyConnections => Code::TryAgain,
            RefusedCode::Draining | RefusedCode::BadToken | RefusedCode::ResumeFailed | RefusedCode::GivenUp => {
                Code::Unavailable
            }
        },
        ErrorKind::Outcome { outcome, .. } => match outcome {
            Outcome::NoResponders | Outcome::Disconnected => Code::Unavailable,
            Outcome::TooLarge => Code::TooLarge,
            Outcome::BreakerOpen
            | Outcome::DeadlineExceeded
            | Outcome::ResponderLost
            | Outcome::Cancelled
            | Outcome::Overloaded => Code::TryAgain,
        },
        ErrorKind::Failed { code, .. } => match code {
            FailedCode::Unknown | FailedCode::NotAllowed => Code::ErrorReply,
            FailedCode::Invalid => Code::Usage,
            FailedCode::Limit => Code::TryAgain,
            FailedCode::Configuration => Code::Config,
        },
        ErrorKind::Evicted { .. } | ErrorKind::Timeout => Code::TryAgain,
        // From within a loan or a view, which no command does.
        ErrorKind::LoanOutstanding | ErrorKind::ViewOutstanding | ErrorKind::Forked => Code::TryAgain,
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(Code::Config, error.to_string())
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Failure {
        let message = error.to_string();
        match error {
            BrokerError::Socket(SocketError::InUse(_) | SocketError::Taken(_)) => {
                Failure::new(Code::Unavailable, message)
                    .hint("use that broker, stop it, or choose another path with --socket")
            }
            // What does not get better by itself: no service manager should try again.
            BrokerError::Socket(
                SocketError::NotASocket(_)
                | SocketError::ForeignLock(_)
                | SocketError::TooLong { .. }
                | SocketError::Inherited { .. }
                | SocketError::Listen(_),
            )
            | BrokerError::Geometry(_)
            | BrokerError::Health(HealthError::Token(_)) => Failure::new(Code::Config, message),
            BrokerError::Health(HealthError::Listen { .. }) => {
                Failure::new(Code::Unavailable, message).hint("choose another address with --health-addr")
            }
            BrokerError::Health(HealthError::TokenFile { .. }) => Failure::new(Code::Unavailable, message),
            BrokerError::AtOnce("SIGINT") => Failure::new(Code::Interrupted, message),
            BrokerError::AtOnce(_) => Failure::new(Code::Terminated, message),
            // A disk that is full, a folder that is not there yet: another time it may work.
            BrokerError::Socket(SocketError::Io { .. } | SocketError::Removed(_))
            | BrokerError::Faults(_)
            | BrokerError::Io(_)
            | BrokerError::Refused(_)
            | BrokerError::GaveUp(_) => Failure::new(Code::Unavailable, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_each_code_with_its_meaning() {
        let readme = include_str!("../../README.md");
        let table = readme.lines().skip_while(|line| !line.starts_with("| exit code |")).skip(2);
        let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).collect();
        let expected: Vec<_> =
            Code::ALL.iter().map(|code| format!("| {} | {} |", *code as i32, code.meaning())).collect();
        assert_eq!(rows, expected);
    }
}
