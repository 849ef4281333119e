//! Circuit breakers over the control socket: their status, and orders.
//!
//! Part of the wire format: the order of variants and fields is that on the wire. Their names are those of
//! `breaker list --json`.

use serde::{Deserialize, Serialize};

use crate::wire::name::Name;

/// An order to a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerOrder {
    /// Reject all requests.
    Open,
    /// Admit all requests, whatever their outcomes.
    Close,
    /// Return to automatic mode, starting closed.
    Auto,
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Admits requests, and counts consecutive failures.
    Closed,
    /// Rejects requests until the open time is over.
    Open,
    /// Admits a limited number of probes.
    HalfOpen,
    /// Opened by a manual order.
    ForcedOpen,
    /// Closed by a manual order.
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
    /// Consecutive failures so far, while it is closed.
    pub failures: u32,
    /// Failed trials in a row; each has doubled the open time.
    pub failed_trials: u32,
    /// Probes that were admitted in the half-open state.
    pub probes: u32,
    /// Probes that succeeded.
    pub successes: u32,
    /// The time left of a limited state, in milliseconds.
    pub ends_in_ms: Option<u64>,
    /// Times that it opened.
    pub opened: u64,
    /// Rejected requests.
    pub rejected: u64,
    /// Consecutive failures that open it.
    pub failure_threshold: u32,
    /// Successful probes that close it.
    pub success_threshold: u32,
    /// Probes that are admitted in the half-open state.
    pub half_open_max_requests: u32,
}
