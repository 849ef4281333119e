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

#[cfg(test)]
mod tests;

use std::collections::HashMap;

/// What is said to somebody who comes while the probes are out: their results are a matter of moments.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All pass; so many failures in a row so far.
    Closed { failures: u32 },
    /// None passes before `until`.
    Open { until: u64 },
    /// So many probes are out or have succeeded, and so many of them have succeeded.
    HalfOpen { probes: u32, successes: u32 },
    /// By hand, `until` a time if there is one.
    Forced { open: bool, until: Option<u64> },
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
    /// It says nothing of the responder: the requester cancelled, or left, or nobody could be asked.
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
    /// Somebody said so.
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
}

/// The breaker of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breaker {
    rules: Rules,
    state: State,
    generation: u32,
    /// Trials that failed since it was last closed.
    failed_trials: u32,
    /// How often it has opened, by itself or by hand.
    pub(crate) opened: u64,
    /// Requests that were not let through.
    pub(crate) rejected: u64,
    /// How often it has come to stand where, in the order of [`Stand::ALL`].
    pub(crate) transitions: [u64; Stand::ALL.len()],
}

impl Breaker {
    /// Other rules from now on. A time that has begun stays as it was.
    pub(crate) fn adopt(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// A closed one.
    pub(crate) fn new(rules: Rules) -> Breaker {
        let state = State::Closed { failures: 0 };
        Breaker { rules, state, generation: 0, failed_trials: 0, opened: 0, rejected: 0, transitions: [0; 5] }
    }

    /// Whether a request may pass. A time that is over is noticed here too, so that no timer has to be exact.
    #[inline]
    pub(crate) fn admit(&mut self, now: u64) -> (Result<Permit, Rejected>, Option<Transition>) {
        if let State::Closed { .. } = self.state {
            return (Ok(Permit { generation: self.generation }), None);
        }
        let transition = self.tick(now);
        let passes = match &mut self.state {
            State::Closed { .. } | State::Forced { open: false, .. } => Ok(()),
            State::HalfOpen { probes, .. } if *probes < self.rules.half_open_max_requests => {
                *probes += 1;
                Ok(())
            }
            State::HalfOpen { .. } => Err(Some(TRIAL_RETRY_AFTER.min(self.rules.timeout))),
            State::Open { until } => Err(Some(*until - now)),
            State::Forced { open: true, until } => Err(until.map(|until| until - now)),
        };
        self.rejected += u64::from(passes.is_err());
        let generation = self.generation;
        (passes.map(|()| Permit { generation }).map_err(|retry_after| Rejected { retry_after }), transition)
    }

    /// Whether a verdict with this permit still counts.
    pub(crate) fn is_current(&self, permit: Permit) -> bool {
        permit.generation == self.generation
    }

    /// A request that was let through has ended.
    #[inline]
    pub(crate) fn record(&mut self, permit: Permit, verdict: Verdict, now: u64) -> Option<Transition> {
        if permit.generation != self.generation {
            return None;
        }
        match (&mut self.state, verdict) {
            (State::Closed { failures }, Verdict::Success) => *failures = 0,
            (State::Closed { failures }, Verdict::Failure(failure)) => {
                *failures += 1;
                let failures = *failures;
                if failures >= self.rules.failure_threshold {
                    return Some(self.open(now, failure, failures));
                }
            }
            (State::HalfOpen { successes, .. }, Verdict::Success) => {
                *successes += 1;
                if *successes >= self.rules.successes_wanted() {
                    return Some(self.change(State::Closed { failures: 0 }, Reason::Recovered, 0, now));
                }
            }
            (State::HalfOpen { .. }, Verdict::Failure(failure)) => {
                self.failed_trials += 1;
                return Some(self.open(now, failure, 1));
            }
            // Its place is free for another probe.
            (State::HalfOpen { probes, .. }, Verdict::Neither) => *probes = probes.saturating_sub(1),
            (State::Closed { .. }, Verdict::Neither) | (State::Open { .. } | State::Forced { .. }, _) => {}
        }
        None
    }

    /// Notices that the state's time is over, if it is.
    pub(crate) fn tick(&mut self, now: u64) -> Option<Transition> {
        let next = match self.state {
            State::Open { until } if until <= now => State::HalfOpen { probes: 0, successes: 0 },
            State::Forced { until: Some(until), .. } if until <= now => State::Closed { failures: 0 },
            _ => return None,
        };
        Some(self.change(next, Reason::TimeOver, 0, now))
    }

    /// Somebody forces it open or closed, for so many nanoseconds or without end.
    pub(crate) fn force(&mut self, open: bool, time: Option<u64>, now: u64) -> Transition {
        let until = time.map(|time| now.saturating_add(time));
        self.change(State::Forced { open, until }, Reason::Manual, 0, now)
    }

    /// Somebody takes the force away, if there is one.
    pub(crate) fn release(&mut self, now: u64) -> Option<Transition> {
        let is_forced = matches!(self.state, State::Forced { .. });
        is_forced.then(|| self.change(State::Closed { failures: 0 }, Reason::Manual, 0, now))
    }

    fn open(&mut self, now: u64, failure: Failure, failures: u32) -> Transition {
        let until = now.saturating_add(self.rules.open_time(self.failed_trials));
        self.change(State::Open { until }, Reason::Failed(failure), failures, now)
    }

    fn change(&mut self, state: State, reason: Reason, failures: u32, now: u64) -> Transition {
        let from = self.stand();
        (self.state, self.generation) = (state, self.generation.wrapping_add(1));
        let to = self.stand();
        self.transitions[to as usize] += 1;
        self.opened += u64::from(matches!(to, Stand::Open | Stand::ForcedOpen));
        if !matches!(to, Stand::Open | Stand::HalfOpen) {
            self.failed_trials = 0;
        }
        Transition { from, to, reason, failures, lasts: self.lasts(now) }
    }

    /// Where it stands.
    pub(crate) fn stand(&self) -> Stand {
        match self.state {
            State::Closed { .. } => Stand::Closed,
            State::Open { .. } => Stand::Open,
            State::HalfOpen { .. } => Stand::HalfOpen,
            State::Forced { open: true, .. } => Stand::ForcedOpen,
            State::Forced { open: false, .. } => Stand::ForcedClosed,
        }
    }

    /// After how many nanoseconds the state ends by itself, if it does: never 0, so that a timer ends in it.
    pub(crate) fn lasts(&self, now: u64) -> Option<u64> {
        match self.state {
            State::Open { until } | State::Forced { until: Some(until), .. } => Some(until.saturating_sub(now).max(1)),
            _ => None,
        }
    }

    /// Whether it is as a new one: nothing is lost when it is forgotten.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.state == State::Closed { failures: 0 }
    }

    /// Failures in a row so far, while it is closed.
    pub(crate) fn failures(&self) -> u32 {
        if let State::Closed { failures } = self.state { failures } else { 0 }
    }

    /// Trials that failed since it was last closed.
    pub(crate) fn failed_trials(&self) -> u32 {
        self.failed_trials
    }

    /// Probes that are out or have succeeded, and those that have succeeded.
    pub(crate) fn trial(&self) -> (u32, u32) {
        if let State::HalfOpen { probes, successes } = self.state { (probes, successes) } else { (0, 0) }
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }
}
