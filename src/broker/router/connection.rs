//! The identity of a connection, the results of its control requests, and close reasons.

use crate::shm::peer::Credentials;
use crate::shm::ring::Violation;
use crate::wire::control::{BrokerFrame, ClosingCode, FailedCode};
use crate::wire::name::Name;

/// The identity of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    /// The connection's id. Unlike its key it is not reused.
    pub(crate) id: u32,
    pub(crate) name: Name,
    pub(crate) peer: Credentials,
}

/// Why a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseReason {
    pub(crate) code: ClosingCode,
    pub(crate) reason: String,
}

impl CloseReason {
    pub(super) fn violation(reason: impl ToString) -> CloseReason {
        CloseReason { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
    }
}

impl From<Violation> for CloseReason {
    fn from(violation: Violation) -> CloseReason {
        CloseReason::violation(violation)
    }
}

/// The result of a control request.
pub(super) type ControlReply = Result<BrokerFrame, (FailedCode, String)>;

/// The reply to a connection that has ended.
pub(super) fn gone() -> (FailedCode, String) {
    (FailedCode::Unknown, "the connection has ended".to_owned())
}
