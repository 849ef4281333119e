//! The gate of one service: the state of its breaker in a few atomic words, without a lock.
//!
//! Two sides share it. The *router* admits requests and records their outcomes; only the router counts, and opens or
//! closes the gate by its counts. The *actor* sets the rules, forces and releases, and ends expired states.
//!
//! | word | written by | holds |
//! |---|---|---|
//! | `word` | both, by compare-and-swap | generation, failed trials, state |
//! | `failures`, `probes`, `successes` | router | a count, with the generation that it belongs to |
//! | `open_until` | router, before it opens the breaker | when the open time is over |
//! | `forced_until` | actor, before it forces the breaker | when the forced time is over |
//! | `rejected`, `served` | router | |
//! | `rules` | actor (the router only in a gate that it has just made) | |
//! | `transitions` | both, by addition | |
//!
//! A change of state is one compare-and-swap of `word`, which begins a new generation; so of two concurrent changes the
//! second sees the first, and each is published once. A count of an earlier generation is 0, so a change resets all
//! counts without touching them. Nothing else is decided by more than one word: a time is written before the state
//! that it belongs to (`GateChange`), and read after it (`GateLook`). A time may be newer than the state that was read;
//! then an order is replacing that state, and at worst takes effect a moment early.
//!
//! Admitting a request at a closed gate costs one load; recording a success costs two. Neither is a locked operation.

use super::{Admission, BreakerOutcome, GateState, Permit, Reason, Rejected, Rules, TRIAL_RETRY_AFTER, Transition};
use crate::sync::{AtomicU64, Ordering, Site, acquire, release};

/// The time of a state that does not end by itself.
const WITHOUT_END: u64 = u64::MAX;
/// Failed trials that are counted; the open time has reached its limit long before.
const MAX_FAILED_TRIALS: u32 = (1 << 24) - 1;

/// The state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StateWord {
    generation: u32,
    /// Failed trials since it was last closed.
    failed_trials: u32,
    state: GateState,
    /// Its service was removed: the state is final.
    is_retired: bool,
}

impl StateWord {
    const FIRST: StateWord = StateWord { generation: 0, failed_trials: 0, state: GateState::Closed, is_retired: false };

    fn from_word(word: u64) -> StateWord {
        let state = GateState::ALL[(word & 0x7) as usize % GateState::ALL.len()];
        let is_retired = word & 0x80 != 0;
        let failed_trials = (word >> 8) as u32 & MAX_FAILED_TRIALS;
        StateWord { generation: (word >> 32) as u32, failed_trials, state, is_retired }
    }

    /// The count of failed trials in the state `next`.
    fn failed_trials_at(self, next: GateState) -> u32 {
        match (self.state, next) {
            (GateState::HalfOpen, GateState::Open) => (self.failed_trials + 1).min(MAX_FAILED_TRIALS),
            (_, GateState::Open | GateState::HalfOpen) => self.failed_trials,
            _ => 0,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.generation) << 32
            | u64::from(self.failed_trials) << 8
            | u64::from(self.is_retired) << 7
            | self.state as u64
    }
}

/// The gate of one service.
#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicU64,
    failures: AtomicU64,
    probes: AtomicU64,
    successes: AtomicU64,
    open_until: AtomicU64,
    forced_until: AtomicU64,
    rejected: AtomicU64,
    /// Whether its service has or had a responder.
    served: AtomicU64,
    /// In the order of [`Gate::set_rules`].
    rules: [AtomicU64; 5],
    /// In the order of [`GateState::ALL`].
    transitions: [AtomicU64; GateState::ALL.len()],
}

/// For both sides: reads, for the status.
impl Gate {
    /// A closed one.
    pub(crate) fn new(rules: Rules) -> Gate {
        let zero = || AtomicU64::new(0);
        let gate = Gate {
            word: AtomicU64::new(StateWord::FIRST.word()),
            failures: zero(),
            probes: zero(),
            successes: zero(),
            open_until: zero(),
            forced_until: zero(),
            rejected: zero(),
            served: zero(),
            rules: std::array::from_fn(|_| zero()),
            transitions: std::array::from_fn(|_| zero()),
        };
        gate.set_rules(rules);
        gate
    }

    pub(crate) fn state(&self) -> GateState {
        self.load().state
    }

    /// Failed trials since it was last closed.
    pub(crate) fn failed_trials(&self) -> u32 {
        self.load().failed_trials
    }

    /// Failures in a row so far, while it is closed.
    pub(crate) fn failures(&self) -> u32 {
        let current = self.load();
        if current.state == GateState::Closed { count(&self.failures, current) } else { 0 }
    }

    /// Probes that are outstanding or succeeded, and those that succeeded.
    pub(crate) fn trial(&self) -> (u32, u32) {
        let current = self.load();
        if current.state == GateState::HalfOpen {
            (count(&self.probes, current), count(&self.successes, current))
        } else {
            (0, 0)
        }
    }

    /// The time left of a limited state, in nanoseconds; never 0, so that a timer for it expires later.
    pub(crate) fn lasts(&self, now: u64) -> Option<u64> {
        self.until(self.load()).map(|until| until.saturating_sub(now).max(1))
    }

    /// Times that it opened, automatically or by an order.
    pub(crate) fn opened(&self) -> u64 {
        let transitions = self.transitions();
        transitions[GateState::Open as usize] + transitions[GateState::ForcedOpen as usize]
    }

    /// Rejected requests.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Transitions into each state, in the order of [`GateState::ALL`].
    pub(crate) fn transitions(&self) -> [u64; GateState::ALL.len()] {
        std::array::from_fn(|state| self.transitions[state].load(Ordering::Relaxed))
    }

    /// Whether its service has or had a responder.
    pub(crate) fn was_served(&self) -> bool {
        self.served.load(Ordering::Relaxed) != 0
    }

    /// Whether its service was removed.
    pub(crate) fn is_retired(&self) -> bool {
        self.load().is_retired
    }

    pub(crate) fn rules(&self) -> Rules {
        let [failure_threshold, success_threshold, half_open_max_requests, timeout, max_timeout] =
            std::array::from_fn(|rule| self.rules[rule].load(Ordering::Relaxed));
        Rules {
            failure_threshold: failure_threshold as u32,
            success_threshold: success_threshold as u32,
            half_open_max_requests: half_open_max_requests as u32,
            timeout,
            max_timeout,
        }
    }

    #[inline]
    fn load(&self) -> StateWord {
        StateWord::from_word(self.word.load(acquire(Site::GateLook)))
    }

    /// The end of a limited state.
    fn until(&self, current: StateWord) -> Option<u64> {
        let until = match current.state {
            GateState::Open => self.open_until.load(Ordering::Relaxed),
            GateState::ForcedOpen | GateState::ForcedClosed => self.forced_until.load(Ordering::Relaxed),
            GateState::Closed | GateState::HalfOpen => WITHOUT_END,
        };
        (until != WITHOUT_END).then_some(until)
    }

    /// Changes the state. `None`: the other side changed it first.
    fn change(&self, from: StateWord, to: GateState, reason: Reason, failures: u32, now: u64) -> Option<Transition> {
        let generation = from.generation.wrapping_add(1);
        let next = StateWord { generation, failed_trials: from.failed_trials_at(to), state: to, is_retired: false };
        if !self.swap_state(from, next) {
            return None;
        }
        self.transitions[to as usize].fetch_add(1, Ordering::Relaxed);
        let lasts = self.until(next).map(|until| until.saturating_sub(now).max(1));
        Some(Transition { from: from.state, to, reason, failures, lasts, generation })
    }

    /// `false`: the state is another by now.
    fn swap_state(&self, from: StateWord, next: StateWord) -> bool {
        #[cfg(lapce_ipc_loom)]
        if crate::sync::mutant::is(Site::GateSwap) {
            let is_from = self.word.load(Ordering::Acquire) == from.word();
            if is_from {
                self.word.store(next.word(), Ordering::Release);
            }
            return is_from;
        }
        let (order, next) = (release(Site::GateChange), next.word());
        self.word.compare_exchange(from.word(), next, order, Ordering::Relaxed).is_ok()
    }

    /// Ends an expired state. Returns the state in force then.
    fn lapse(&self, current: StateWord, now: u64) -> (StateWord, Option<Transition>) {
        if current.is_retired || self.until(current).is_none_or(|until| until > now) {
            return (current, None);
        }
        let next = if current.state == GateState::Open { GateState::HalfOpen } else { GateState::Closed };
        let transition = self.change(current, next, Reason::TimeOver, 0, now);
        (self.load(), transition)
    }

    /// Ends an expired state. Called by the actor when its timer fires, or by the router when a request comes before
    /// that.
    pub(crate) fn tick(&self, now: u64) -> Option<Transition> {
        self.lapse(self.load(), now).1
    }
}

/// The router's side: one thread.
impl Gate {
    /// Admits a request if the gate is closed, as it usually is: then this is all.
    #[inline]
    pub(crate) fn admit_if_closed(&self) -> Option<Permit> {
        let current = self.load();
        (current.state == GateState::Closed).then_some(Permit { generation: current.generation, is_probe: false })
    }

    /// Admits or rejects a request. Ends an expired state first, so that no request waits for a timer.
    #[cold]
    pub(crate) fn admit(&self, now: u64) -> Admission {
        let (current, transition) = self.lapse(self.load(), now);
        let passes = match current.state {
            GateState::Closed | GateState::ForcedClosed => Ok(()),
            GateState::HalfOpen => {
                let (probes, rules) = (count(&self.probes, current), self.rules());
                if probes < rules.half_open_max_requests {
                    set_count(&self.probes, current, probes + 1);
                    Ok(())
                } else {
                    Err(trial_retry_after(&rules))
                }
            }
            GateState::Open | GateState::ForcedOpen => {
                Err(self.until(current).map(|until| until.saturating_sub(now).max(1)))
            }
        };
        let permit = Permit { generation: current.generation, is_probe: current.state == GateState::HalfOpen };
        (passes.map(|()| permit).map_err(|retry_after| self.reject(retry_after)), transition)
    }

    fn reject(&self, retry_after: Option<u64>) -> Rejected {
        self.rejected.store(self.rejected() + 1, Ordering::Relaxed);
        Rejected { retry_after }
    }

    /// Rejects a request for which a half-open breaker has no probe.
    pub(crate) fn reject_probe(&self) -> Rejected {
        self.reject(trial_retry_after(&self.rules()))
    }

    /// Whether an outcome with this permit would count.
    pub(crate) fn is_current(&self, permit: Permit) -> bool {
        permit.generation == self.load().generation
    }

    /// Records the outcome of an admitted request.
    #[inline]
    pub(crate) fn record(&self, permit: Permit, outcome: BreakerOutcome, now: u64) -> Option<Transition> {
        let current = self.load();
        if permit.generation != current.generation {
            return None;
        }
        match (current.state, outcome) {
            (GateState::Closed, BreakerOutcome::Success) => {
                if count(&self.failures, current) > 0 {
                    set_count(&self.failures, current, 0);
                }
            }
            (GateState::Closed, BreakerOutcome::Failure(failure)) => {
                let (failures, rules) = (count(&self.failures, current).saturating_add(1), self.rules());
                set_count(&self.failures, current, failures);
                if failures >= rules.failure_threshold {
                    return self.open(current, &rules, Reason::Failed(failure), failures, now);
                }
            }
            (GateState::HalfOpen, BreakerOutcome::Success) => {
                let successes = count(&self.successes, current) + 1;
                set_count(&self.successes, current, successes);
                if successes >= self.rules().successes_wanted() {
                    return self.change(current, GateState::Closed, Reason::Recovered, 0, now);
                }
            }
            (GateState::HalfOpen, BreakerOutcome::Failure(failure)) => {
                return self.open(current, &self.rules(), Reason::Failed(failure), 1, now);
            }
            // Another probe may follow.
            (GateState::HalfOpen, BreakerOutcome::Ignored) => {
                set_count(&self.probes, current, count(&self.probes, current).saturating_sub(1));
            }
            (GateState::Closed, BreakerOutcome::Ignored)
            | (GateState::Open | GateState::ForcedOpen | GateState::ForcedClosed, _) => {}
        }
        None
    }

    fn open(&self, current: StateWord, rules: &Rules, reason: Reason, failures: u32, now: u64) -> Option<Transition> {
        let until = now.saturating_add(rules.open_time(current.failed_trials_at(GateState::Open)));
        let until = until.min(WITHOUT_END - 1);
        self.open_until.store(until, Ordering::Relaxed);
        self.change(current, GateState::Open, reason, failures, now)
    }

    /// Its service has a responder.
    pub(crate) fn serve(&self) {
        self.served.store(1, Ordering::Relaxed);
    }

    /// Whether it is in the initial state, so that removing it loses nothing.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_at_rest(&self) -> bool {
        is_at_rest(self.load(), &self.failures)
    }

    /// Retires the gate of a removed service: the state is final. `false` if an order came first, or if it `must_rest`
    /// and does not.
    pub(crate) fn retire(&self, must_rest: bool) -> bool {
        let current = self.load();
        if must_rest && !is_at_rest(current, &self.failures) {
            return false;
        }
        !current.is_retired && self.swap_state(current, StateWord { is_retired: true, ..current })
    }
}

/// The actor's side: one at a time.
impl Gate {
    /// Sets other rules. A running open time keeps its end.
    pub(crate) fn set_rules(&self, rules: Rules) {
        let Rules { failure_threshold, success_threshold, half_open_max_requests, timeout, max_timeout } = rules;
        let counts = [failure_threshold, success_threshold, half_open_max_requests].map(u64::from);
        for (word, rule) in self.rules.iter().zip(counts.into_iter().chain([timeout, max_timeout])) {
            word.store(rule, Ordering::Relaxed);
        }
    }

    /// Forces it open or closed, for `time` nanoseconds or without end. `None`: its service was removed.
    pub(crate) fn force(&self, open: bool, time: Option<u64>, now: u64) -> Option<Transition> {
        let until = time.map_or(WITHOUT_END, |time| now.saturating_add(time).min(WITHOUT_END - 1));
        let state = if open { GateState::ForcedOpen } else { GateState::ForcedClosed };
        loop {
            let current = self.load();
            if current.is_retired {
                return None;
            }
            self.forced_until.store(until, Ordering::Relaxed);
            if let Some(transition) = self.change(current, state, Reason::Manual, 0, now) {
                return Some(transition);
            }
        }
    }

    /// Ends a forced state, if there is one.
    pub(crate) fn release(&self, now: u64) -> Option<Transition> {
        loop {
            let current = self.load();
            if current.is_retired || !matches!(current.state, GateState::ForcedOpen | GateState::ForcedClosed) {
                return None;
            }
            if let Some(transition) = self.change(current, GateState::Closed, Reason::Manual, 0, now) {
                return Some(transition);
            }
        }
    }
}

fn trial_retry_after(rules: &Rules) -> Option<u64> {
    Some(TRIAL_RETRY_AFTER.min(rules.timeout))
}

fn is_at_rest(current: StateWord, failures: &AtomicU64) -> bool {
    current.state == GateState::Closed && count(failures, current) == 0
}

/// A count of the current generation; 0 if the word belongs to an earlier one.
#[inline]
fn count(word: &AtomicU64, current: StateWord) -> u32 {
    let word = word.load(Ordering::Relaxed);
    if (word >> 32) as u32 == current.generation { word as u32 } else { 0 }
}

fn set_count(word: &AtomicU64, current: StateWord, count: u32) {
    word.store(u64::from(current.generation) << 32 | u64::from(count), Ordering::Relaxed);
}
