//! The circuit breaker of one service, as a state machine that is told the time.
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
//! Every request that is let through gets a [`Permit`], and brings it back with its [`Verdict`]. Each change of state
//! begins a new *generation*, and a permit of an earlier one is worth nothing: so a late result changes nothing, and
//! no request counts twice. A trial lets exactly `half_open_max_requests` probes through; one that ends without a
//! verdict makes room for another. All of them together always decide, because no more successes are wanted than there
//! are probes.
//!
//! A person may force a breaker open or closed, for a time or until told otherwise. Then results count for nothing;
//! when it is over, the breaker begins anew, closed.
//!
//! The state lives in a [`Gate`], which the router and the actor of the breakers share without a lock. `machine` is the
//! same for one owner, in the plainest way: the tests compare the two.

mod gate;
#[cfg(all(test, lapce_ipc_loom))]
mod loom_tests;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod machine;
#[cfg(all(test, not(lapce_ipc_loom)))]
mod tests;

pub(crate) use gate::Gate;

use std::collections::HashMap;

/// The retry delay of a request that is rejected while the probes are outstanding: their results are near.
const TRIAL_RETRY_AFTER: u64 = 1_000_000_000;

/// When a breaker opens and closes. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Failures in a row that open it.
    pub(crate) failure_threshold: u32,
    /// Successes of a trial that close it.
    pub(crate) success_threshold: u32,
    /// Probes that a trial lets through.
    pub(crate) half_open_max_requests: u32,
    /// How long it stays open at first.
    pub(crate) timeout: u64,
    /// The longest that it stays open.
    pub(crate) max_timeout: u64,
}

impl Rules {
    /// How long it stays open after so many failed trials in a row: twice as long for each.
    fn open_time(&self, failed_trials: u32) -> u64 {
        let doubled = 1u64.checked_shl(failed_trials).and_then(|factor| self.timeout.checked_mul(factor));
        doubled.unwrap_or(u64::MAX).min(self.max_timeout)
    }

    /// More successes than probes would never come.
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

/// Where a breaker stands, apart from its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    Closed,
    Open,
    HalfOpen,
    ForcedOpen,
    ForcedClosed,
}

impl Stand {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Stand; 5] =
        [Stand::Closed, Stand::Open, Stand::HalfOpen, Stand::ForcedOpen, Stand::ForcedClosed];
}

/// Leave for one request, of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "whoever was let through says how it ended"]
pub(crate) struct Permit {
    generation: u32,
}

/// A request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// After how many nanoseconds to try again, where that is known.
    pub(crate) retry_after: Option<u64>,
}

/// How a request that was let through ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The responder did its work.
    Success,
    /// It did not.
    Failure(Failure),
    /// It says nothing of the responder: the requester cancelled or left, or there was no responder.
    Neither,
}

/// What kind of failure.
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
    /// By an order.
    Manual,
}

impl Reason {
    /// As it stands in logs and events.
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

/// A change of state, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: Stand,
    pub(crate) to: Stand,
    pub(crate) reason: Reason,
    /// Failures in a row that led to it.
    pub(crate) failures: u32,
    /// After how many nanoseconds the new state ends by itself, if it does.
    pub(crate) lasts: Option<u64>,
    /// The generation that it begins.
    pub(crate) generation: u32,
}
