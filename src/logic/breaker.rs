//! The circuit breaker of one service. A pure state machine: time is an argument.
//!
//! ```text
//!                  failure_threshold failures in a row
//!      ┌────────┐ ─────────────────────────────────────► ┌────────┐ ◄──────────────────────┐
//!      │ closed │                                        │ open   │                        │
//!      └────────┘ ◄───────────────┐                      └───┬────┘                        │
//!        all pass                 │                          │ its time is over            │
//!                                 │                      ┌───▼───────┐                     │
//!                                 └───────────────────── │ half-open │ ────────────────────┘
//!                     success_threshold probes succeed   └───────────┘  a probe fails: twice the time, up to a limit
//! ```
//!
//! Each admitted request gets a [`Permit`], and returns it with its [`BreakerOutcome`]. Each change of state begins a
//! new *generation* and voids the permits of earlier ones, so a late outcome changes nothing and no request counts
//! twice. A half-open breaker admits exactly `half_open_max_requests` probes; a probe with an ignored outcome makes
//! room for another. The probes always decide, because the required successes do not exceed their number.
//!
//! An operator may force a breaker open or closed, for a time or until the next order. Meanwhile outcomes are ignored;
//! afterwards the breaker starts closed.
//!
//! The state is in a [`Gate`], which the router and `BreakerActor` share without a lock. `machine` is a plain version
//! for one owner, with which the tests compare it.

mod gate;
#[cfg(all(test, lapce_ipc_loom))]
mod loom_tests;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod machine;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod tests;

pub(crate) use gate::Gate;

use std::collections::HashMap;

/// The retry delay of a request that is rejected while the probes are outstanding.
const TRIAL_RETRY_AFTER: u64 = 1_000_000_000;

/// When a breaker opens and closes. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Failures in a row that open it.
    pub(crate) failure_threshold: u32,
    /// Successful probes that close it.
    pub(crate) success_threshold: u32,
    /// Probes that a half-open breaker admits.
    pub(crate) half_open_max_requests: u32,
    /// The first open time.
    pub(crate) timeout: u64,
    /// The longest open time.
    pub(crate) max_timeout: u64,
}

impl Rules {
    /// The open time after a number of failed trials in a row: doubled by each.
    fn open_time(&self, failed_trials: u32) -> u64 {
        let doubled = 1u64.checked_shl(failed_trials).and_then(|factor| self.timeout.checked_mul(factor));
        doubled.unwrap_or(u64::MAX).min(self.max_timeout)
    }

    /// The required successes: at most the number of probes.
    fn successes_wanted(&self) -> u32 {
        self.success_threshold.min(self.half_open_max_requests)
    }
}

/// The rules of all services: general ones, and those of single services.
#[derive(Clone, Debug)]
pub(crate) struct RuleBook {
    pub(crate) general: Rules,
    pub(crate) of_services: HashMap<String, Rules>,
}

impl RuleBook {
    pub(crate) fn of(&self, service: &str) -> Rules {
        self.of_services.get(service).copied().unwrap_or(self.general)
    }
}

/// The state of a gate, without its counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    Closed,
    Open,
    HalfOpen,
    ForcedOpen,
    ForcedClosed,
}

impl GateState {
    /// All states, in the order of their numbers.
    pub(crate) const ALL: [GateState; 5] =
        [GateState::Closed, GateState::Open, GateState::HalfOpen, GateState::ForcedOpen, GateState::ForcedClosed];
}

/// The permit of one admitted request, of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the outcome of an admitted request must be recorded"]
pub(crate) struct Permit {
    generation: u32,
    is_probe: bool,
}

impl Permit {
    /// Whether the request is a probe of a half-open breaker.
    #[inline]
    pub(crate) fn is_probe(self) -> bool {
        self.is_probe
    }
}

/// A request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// The time until a retry makes sense, in nanoseconds, if known.
    pub(crate) retry_after: Option<u64>,
}

/// What becomes of a request, and the change of state that it has caused.
pub(crate) type Admission = (Result<Permit, Rejected>, Option<Transition>);

/// The outcome of an admitted request as its breaker counts it. `wire::record::Outcome` is what the requester gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerOutcome {
    /// The responder replied.
    Success,
    /// The responder failed.
    Failure(Failure),
    /// No evidence about the responder: the requester cancelled or disconnected, or there was no responder.
    Ignored,
}

/// The kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Deadline,
    ResponderLost,
    /// An error reply that is marked as a failure.
    Reply,
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The last failure of those that opened it.
    Failed(Failure),
    /// The open time, or the time for which it was forced, is over.
    TimeOver,
    /// The probes succeeded.
    Recovered,
    /// A manual order.
    Manual,
}

impl Reason {
    /// The name in logs and events.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::Failed(Failure::Deadline) => "deadline_exceeded",
            Reason::Failed(Failure::ResponderLost) => "responder_lost",
            Reason::Failed(Failure::Reply) => "error_reply",
            Reason::TimeOver => "time_over",
            Reason::Recovered => "recovered",
            Reason::Manual => "manual",
        }
    }
}

/// A change of state, as it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: GateState,
    pub(crate) to: GateState,
    pub(crate) reason: Reason,
    /// Consecutive failures that caused it.
    pub(crate) failures: u32,
    /// The duration of the new state in nanoseconds, if it is limited.
    pub(crate) lasts: Option<u64>,
    /// The generation that begins with it.
    pub(crate) generation: u32,
}
