//! The breaker as a plain state machine for one owner: what the gate, which two sides share, is compared with.

use super::{
    Admission, BreakerOutcome, Failure, GateState, Permit, Reason, Rejected, Rules, TRIAL_RETRY_AFTER, Transition,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Admits all; with the consecutive failures so far.
    Closed { failures: u32 },
    /// Rejects all until `until`.
    Open { until: u64 },
    /// The probes that are outstanding or succeeded, and those that succeeded.
    HalfOpen { probes: u32, successes: u32 },
    /// By hand, `until` a time if there is one.
    Forced { open: bool, until: Option<u64> },
}

/// The breaker of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breaker {
    rules: Rules,
    state: State,
    generation: u32,
    /// Failed trials since it was last closed.
    failed_trials: u32,
    /// Times that it opened, automatically or by an order.
    pub(crate) opened: u64,
    /// Rejected requests.
    pub(crate) rejected: u64,
    /// Transitions into each state, in the order of [`GateState::ALL`].
    pub(crate) transitions: [u64; GateState::ALL.len()],
}

impl Breaker {
    /// A closed one.
    pub(crate) fn new(rules: Rules) -> Breaker {
        let state = State::Closed { failures: 0 };
        Breaker { rules, state, generation: 0, failed_trials: 0, opened: 0, rejected: 0, transitions: [0; 5] }
    }

    /// Admits or rejects a request. Ends an expired state first, so that no timer has to be exact.
    #[inline]
    pub(crate) fn admit(&mut self, now: u64) -> Admission {
        if let State::Closed { .. } = self.state {
            return (Ok(Permit { generation: self.generation, is_probe: false }), None);
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
        let permit = Permit { generation: self.generation, is_probe: self.state() == GateState::HalfOpen };
        (passes.map(|()| permit).map_err(|retry_after| Rejected { retry_after }), transition)
    }

    /// Records the outcome of an admitted request.
    #[inline]
    pub(crate) fn record(&mut self, permit: Permit, outcome: BreakerOutcome, now: u64) -> Option<Transition> {
        if permit.generation != self.generation {
            return None;
        }
        match (&mut self.state, outcome) {
            (State::Closed { failures }, BreakerOutcome::Success) => *failures = 0,
            (State::Closed { failures }, BreakerOutcome::Failure(failure)) => {
                *failures += 1;
                let failures = *failures;
                if failures >= self.rules.failure_threshold {
                    return Some(self.open(now, failure, failures));
                }
            }
            (State::HalfOpen { successes, .. }, BreakerOutcome::Success) => {
                *successes += 1;
                if *successes >= self.rules.successes_wanted() {
                    return Some(self.change(State::Closed { failures: 0 }, Reason::Recovered, 0, now));
                }
            }
            (State::HalfOpen { .. }, BreakerOutcome::Failure(failure)) => {
                self.failed_trials += 1;
                return Some(self.open(now, failure, 1));
            }
            // Another probe may follow.
            (State::HalfOpen { probes, .. }, BreakerOutcome::Ignored) => *probes = probes.saturating_sub(1),
            (State::Closed { .. }, BreakerOutcome::Ignored) | (State::Open { .. } | State::Forced { .. }, _) => {}
        }
        None
    }

    /// Ends an expired state.
    pub(crate) fn tick(&mut self, now: u64) -> Option<Transition> {
        let next = match self.state {
            State::Open { until } if until <= now => State::HalfOpen { probes: 0, successes: 0 },
            State::Forced { until: Some(until), .. } if until <= now => State::Closed { failures: 0 },
            _ => return None,
        };
        Some(self.change(next, Reason::TimeOver, 0, now))
    }

    /// Forces it open or closed, for `time` nanoseconds or without end.
    pub(crate) fn force(&mut self, open: bool, time: Option<u64>, now: u64) -> Transition {
        let until = time.map(|time| now.saturating_add(time).min(u64::MAX - 1));
        self.change(State::Forced { open, until }, Reason::Manual, 0, now)
    }

    /// Ends a forced state, if there is one.
    pub(crate) fn release(&mut self, now: u64) -> Option<Transition> {
        let is_forced = matches!(self.state, State::Forced { .. });
        is_forced.then(|| self.change(State::Closed { failures: 0 }, Reason::Manual, 0, now))
    }

    fn open(&mut self, now: u64, failure: Failure, failures: u32) -> Transition {
        let until = now.saturating_add(self.rules.open_time(self.failed_trials)).min(u64::MAX - 1);
        self.change(State::Open { until }, Reason::Failed(failure), failures, now)
    }

    fn change(&mut self, state: State, reason: Reason, failures: u32, now: u64) -> Transition {
        let from = self.state();
        (self.state, self.generation) = (state, self.generation.wrapping_add(1));
        let to = self.state();
        self.transitions[to as usize] += 1;
        self.opened += u64::from(matches!(to, GateState::Open | GateState::ForcedOpen));
        if !matches!(to, GateState::Open | GateState::HalfOpen) {
            self.failed_trials = 0;
        }
        Transition { from, to, reason, failures, lasts: self.lasts(now), generation: self.generation }
    }

    /// The state.
    pub(crate) fn state(&self) -> GateState {
        match self.state {
            State::Closed { .. } => GateState::Closed,
            State::Open { .. } => GateState::Open,
            State::HalfOpen { .. } => GateState::HalfOpen,
            State::Forced { open: true, .. } => GateState::ForcedOpen,
            State::Forced { open: false, .. } => GateState::ForcedClosed,
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

    /// Failed trials since it was last closed.
    pub(crate) fn failed_trials(&self) -> u32 {
        self.failed_trials
    }

    /// Probes that are out or have succeeded, and those that have succeeded.
    pub(crate) fn trial(&self) -> (u32, u32) {
        if let State::HalfOpen { probes, successes } = self.state { (probes, successes) } else { (0, 0) }
    }
}
