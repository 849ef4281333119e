//! Reasons of refusals, failed requests and disconnects. New codes are only ever appended.

use serde::{Deserialize, Serialize};

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// The broker speaks another version.
    Version,
    /// The peer's user may not connect.
    NotAllowed,
    /// The connection limit is reached.
    TooManyConnections,
    /// The first frame was not a valid Hello.
    Malformed,
    /// The broker is shutting down.
    Draining,
    /// The session of this token is in use by another connection.
    BadToken,
    /// No session has this token: it was never issued, was replaced, or its session has ended.
    ResumeFailed,
    /// The session of this token was given up: its connection reached the restart limit.
    GivenUp,
}

/// Why a control request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedCode {
    /// A limit is reached.
    Limit,
    /// The request is invalid.
    Invalid,
    /// The number or name is unknown.
    Unknown,
    /// The client is not allowed to do that.
    NotAllowed,
    /// The configuration is invalid.
    Configuration,
}

/// Why the broker closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClosingCode {
    /// The broker is shutting down.
    Shutdown,
    /// The client violated the protocol.
    ProtocolViolation,
    /// The client does not read.
    SlowConsumer,
    /// The client uses more of its segment than it has leased, or rings too often.
    Overuse,
    /// Another connection has resumed this session.
    Replaced,
}
