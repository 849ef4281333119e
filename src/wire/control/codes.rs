//! The codes with which the broker says no. New ones are only ever appended.

use serde::{Deserialize, Serialize};

/// Why there will be no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// The broker speaks another version.
    Version,
    /// The peer's user may not connect.
    NotAllowed,
    /// All connections are taken.
    TooManyConnections,
    /// The first frame was no valid Hello.
    Malformed,
    /// The broker is going to end.
    Draining,
    /// The session of this token is held by another connection, which lives.
    BadToken,
    /// The token resumes nothing: it was never given, was used before, or its session has ended.
    ResumeFailed,
    /// The session of this token was given up: its connection failed too often.
    GivenUp,
}

/// Why a question could not be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedCode {
    /// A limit is reached.
    Limit,
    /// The question makes no sense.
    Invalid,
    /// The number or name stands for nothing.
    Unknown,
    /// The client may not do that.
    NotAllowed,
    /// The broker's configuration is wrong.
    Configuration,
}

/// Why the broker closes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClosingCode {
    /// The broker ends.
    Shutdown,
    /// The client broke the protocol.
    ProtocolViolation,
    /// The client does not read.
    SlowConsumer,
    /// The client uses more of its segment than it was lent.
    Overuse,
    /// Another connection has taken up this session.
    Replaced,
}
