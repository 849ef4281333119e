//! Circuit breakers over the control socket: their status, and orders.
//!
//! Part of the wire format: the order of variants and fields is theirs on the wire, too. Serialised as JSON the names
//! are those of `breaker list --json`.

use serde::{Deserialize, Serialize};

use crate::wire::name::Name;

/// An order to a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerOrder {
    /// Let no request through.
    Open,
    /// Let every request through, whatever comes of it.
    Close,
    /// Return to automatic mode, starting closed.
    Auto,
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests pass; failures in a row are counted.
    Closed,
    /// No request passes, until its time is over.
    Open,
    /// Some requests pass on trial.
    HalfOpen,
    /// Opened by an order.
    ForcedOpen,
    /// Closed by an order.
    ForcedClosed,
}

impl BreakerState {
    /// Its name in logs, events and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
            BreakerState::ForcedOpen => "forced_open",
            BreakerState::ForcedClosed => "forced_closed",
        }
    }
}

/// The breaker of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerStatus {
    /// The service.
    pub service: Name,
    /// Its state.
    pub state: BreakerState,
    /// Failures in a row so far, while it is closed.
    pub failures: u32,
    /// Trials in a row that failed; each has doubled the time for which it opens.
    pub failed_trials: u32,
    /// Requests that the present trial has let through.
    pub probes: u32,
    /// Those of them that have succeeded.
    pub successes: u32,
    /// After how many milliseconds the state ends by itself, if it does.
    pub ends_in_ms: Option<u64>,
    /// The number of times that it has opened.
    pub opened: u64,
    /// Requests that it has not let through.
    pub rejected: u64,
    /// Failures in a row that open it.
    pub failure_threshold: u32,
    /// Successes of a trial that close it.
    pub success_threshold: u32,
    /// Requests that a trial lets through.
    pub half_open_max_requests: u32,
}
