//! The gate of one service: the state of its breaker in a few atomic words, without a lock.
//!
//! Two sides share it. The *router* asks it before each request and records how requests ended; it is the only one that
//! counts, and that opens or closes it for what it counted. The *actor* of the breakers sets the rules, forces and
//! releases, and ends states whose time is over.
//!
//! | word | written by | holds |
//! |---|---|---|
//! | `turn` | both, by compare-and-swap | generation, failed trials, where it stands |
//! | `failures`, `probes`, `successes` | router | a count, with the generation that it belongs to |
//! | `open_until` | router, before it opens the breaker | when the open time is over |
//! | `forced_until` | actor, before it forces the breaker | when the forced time is over |
//! | `rejected`, `served` | router | |
//! | `rules` | actor (the router only in a gate that it has just made) | |
//! | `transitions` | both, by addition | |
//!
//! A change of state is one compare-and-swap of `turn`, which begins a new generation; so of two changes at the same
//! time one finds the other's, and each is told once. A count of an earlier generation is 0, so a change resets all
//! counts without touching them. Nothing else is decided by more than one word: a time is written before the turn that
//! it belongs to (`GateChange`), and read after it (`GateLook`). A time may be newer than the turn that was read; then
//! that turn is over, or is about to be by an order, and at worst the order is obeyed a moment early.
//!
//! A request that is let through by a closed gate costs one load; a success costs two. No locked operation.

use super::{Permit, Reason, Rejected, Rules, Stand, TRIAL_RETRY_AFTER, Transition, Verdict};
use crate::sync::{AtomicU64, Ordering, Site, acquire, release};

/// The time of a state that does not end by itself.
const WITHOUT_END: u64 = u64::MAX;
/// Failed trials that are counted; the open time has reached its limit long before.
const MOST_FAILED_TRIALS: u32 = (1 << 24) - 1;

/// What one word says of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    generation: u32,
    /// Trials that failed since it was last closed.
    failed_trials: u32,
    stand: Stand,
    /// Its service is forgotten: nothing changes any more.
    is_retired: bool,
}

impl Turn {
    const FIRST: Turn = Turn { generation: 0, failed_trials: 0, stand: Stand::Closed, is_retired: false };

    fn from_word(word: u64) -> Turn {
        let stand = Stand::ALL[(word & 0x7) as usize % Stand::ALL.len()];
        let is_retired = word & 0x80 != 0;
        let failed_trials = (word >> 8) as u32 & MOST_FAILED_TRIALS;
        Turn { generation: (word >> 32) as u32, failed_trials, stand, is_retired }
    }

    /// Trials that will have failed when it stands `next`.
    fn failed_trials_at(self, next: Stand) -> u32 {
        match (self.stand, next) {
            (Stand::HalfOpen, Stand::Open) => (self.failed_trials + 1).min(MOST_FAILED_TRIALS),
            (_, Stand::Open | Stand::HalfOpen) => self.failed_trials,
            _ => 0,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.generation) << 32
            | u64::from(self.failed_trials) << 8
            | u64::from(self.is_retired) << 7
            | self.stand as u64
    }
}

/// The gate of one service.
#[derive(Debug)]
pub(crate) struct Gate {
    turn: AtomicU64,
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
    /// In the order of [`Stand::ALL`].
    transitions: [AtomicU64; Stand::ALL.len()],
}

/// What both sides may read, for people.
impl Gate {
    /// A closed one.
    pub(crate) fn new(rules: Rules) -> Gate {
        let zero = || AtomicU64::new(0);
        let gate = Gate {
            turn: AtomicU64::new(Turn::FIRST.word()),
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

    pub(crate) fn stand(&self) -> Stand {
        self.look().stand
    }

    /// Trials that failed since it was last closed.
    pub(crate) fn failed_trials(&self) -> u32 {
        self.look().failed_trials
    }

    /// Failures in a row so far, while it is closed.
    pub(crate) fn failures(&self) -> u32 {
        let turn = self.look();
        if turn.stand == Stand::Closed { count(&self.failures, turn) } else { 0 }
    }

    /// Probes that are out or have succeeded, and those that have succeeded.
    pub(crate) fn trial(&self) -> (u32, u32) {
        let turn = self.look();
        if turn.stand == Stand::HalfOpen { (count(&self.probes, turn), count(&self.successes, turn)) } else { (0, 0) }
    }

    /// After how many nanoseconds the state ends by itself, if it does: never 0, so that a timer ends in it.
    pub(crate) fn lasts(&self, now: u64) -> Option<u64> {
        self.until(self.look()).map(|until| until.saturating_sub(now).max(1))
    }

    /// How often it has opened, by itself or by hand.
    pub(crate) fn opened(&self) -> u64 {
        let transitions = self.transitions();
        transitions[Stand::Open as usize] + transitions[Stand::ForcedOpen as usize]
    }

    /// Requests that were not let through.
    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// How often it has come to stand where, in the order of [`Stand::ALL`].
    pub(crate) fn transitions(&self) -> [u64; Stand::ALL.len()] {
        std::array::from_fn(|stand| self.transitions[stand].load(Ordering::Relaxed))
    }

    /// Whether its service has or had a responder.
    pub(crate) fn was_served(&self) -> bool {
        self.served.load(Ordering::Relaxed) != 0
    }

    /// Whether its service is forgotten.
    pub(crate) fn is_retired(&self) -> bool {
        self.look().is_retired
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
    fn look(&self) -> Turn {
        Turn::from_word(self.turn.load(acquire(Site::GateLook)))
    }

    /// When the state of a turn ends by itself, if it does.
    fn until(&self, turn: Turn) -> Option<u64> {
        let until = match turn.stand {
            Stand::Open => self.open_until.load(Ordering::Relaxed),
            Stand::ForcedOpen | Stand::ForcedClosed => self.forced_until.load(Ordering::Relaxed),
            Stand::Closed | Stand::HalfOpen => WITHOUT_END,
        };
        (until != WITHOUT_END).then_some(until)
    }

    /// One change of state. `None`: the other side was first.
    fn change(&self, from: Turn, to: Stand, reason: Reason, failures: u32, now: u64) -> Option<Transition> {
        let generation = from.generation.wrapping_add(1);
        let next = Turn { generation, failed_trials: from.failed_trials_at(to), stand: to, is_retired: false };
        if !self.swap_turn(from, next) {
            return None;
        }
        self.transitions[to as usize].fetch_add(1, Ordering::Relaxed);
        let lasts = self.until(next).map(|until| until.saturating_sub(now).max(1));
        Some(Transition { from: from.stand, to, reason, failures, lasts, generation })
    }

    /// `false`: it is another turn by now.
    fn swap_turn(&self, from: Turn, next: Turn) -> bool {
        #[cfg(lapce_ipc_loom)]
        if crate::sync::mutant::is(Site::GateSwap) {
            let is_from = self.turn.load(Ordering::Acquire) == from.word();
            if is_from {
                self.turn.store(next.word(), Ordering::Release);
            }
            return is_from;
        }
        let (order, next) = (release(Site::GateChange), next.word());
        self.turn.compare_exchange(from.word(), next, order, Ordering::Relaxed).is_ok()
    }

    /// Ends the state of a turn if its time is over. Returns the turn that holds then.
    fn lapse(&self, turn: Turn, now: u64) -> (Turn, Option<Transition>) {
        if turn.is_retired || self.until(turn).is_none_or(|until| until > now) {
            return (turn, None);
        }
        let next = if turn.stand == Stand::Open { Stand::HalfOpen } else { Stand::Closed };
        let transition = self.change(turn, next, Reason::TimeOver, 0, now);
        (self.look(), transition)
    }

    /// Notices that the state's time is over, if it is. Either side may: the actor when its timer fires, the router
    /// when a request comes before that.
    pub(crate) fn tick(&self, now: u64) -> Option<Transition> {
        self.lapse(self.look(), now).1
    }
}

/// The router's side: one thread.
impl Gate {
    /// Whether a request may pass. A time that is over is noticed here too, so that no request waits for a timer.
    #[inline]
    pub(crate) fn admit(&self, now: u64) -> (Result<Permit, Rejected>, Option<Transition>) {
        let turn = self.look();
        if turn.stand == Stand::Closed {
            return (Ok(Permit { generation: turn.generation }), None);
        }
        self.admit_unless_closed(turn, now)
    }

    #[cold]
    fn admit_unless_closed(&self, turn: Turn, now: u64) -> (Result<Permit, Rejected>, Option<Transition>) {
        let (turn, transition) = self.lapse(turn, now);
        let passes = match turn.stand {
            Stand::Closed | Stand::ForcedClosed => Ok(()),
            Stand::HalfOpen => {
                let (probes, rules) = (count(&self.probes, turn), self.rules());
                if probes < rules.half_open_max_requests {
                    set_count(&self.probes, turn, probes + 1);
                    Ok(())
                } else {
                    Err(Some(TRIAL_RETRY_AFTER.min(rules.timeout)))
                }
            }
            Stand::Open | Stand::ForcedOpen => Err(self.until(turn).map(|until| until.saturating_sub(now).max(1))),
        };
        if passes.is_err() {
            self.rejected.store(self.rejected() + 1, Ordering::Relaxed);
        }
        let generation = turn.generation;
        (passes.map(|()| Permit { generation }).map_err(|retry_after| Rejected { retry_after }), transition)
    }

    /// Whether a verdict with this permit still counts.
    pub(crate) fn is_current(&self, permit: Permit) -> bool {
        permit.generation == self.look().generation
    }

    /// A request that was let through has ended.
    #[inline]
    pub(crate) fn record(&self, permit: Permit, verdict: Verdict, now: u64) -> Option<Transition> {
        let turn = self.look();
        if permit.generation != turn.generation {
            return None;
        }
        match (turn.stand, verdict) {
            (Stand::Closed, Verdict::Success) => {
                if count(&self.failures, turn) > 0 {
                    set_count(&self.failures, turn, 0);
                }
            }
            (Stand::Closed, Verdict::Failure(failure)) => {
                let (failures, rules) = (count(&self.failures, turn).saturating_add(1), self.rules());
                set_count(&self.failures, turn, failures);
                if failures >= rules.failure_threshold {
                    return self.open(turn, &rules, Reason::Failed(failure), failures, now);
                }
            }
            (Stand::HalfOpen, Verdict::Success) => {
                let successes = count(&self.successes, turn) + 1;
                set_count(&self.successes, turn, successes);
                if successes >= self.rules().successes_wanted() {
                    return self.change(turn, Stand::Closed, Reason::Recovered, 0, now);
                }
            }
            (Stand::HalfOpen, Verdict::Failure(failure)) => {
                return self.open(turn, &self.rules(), Reason::Failed(failure), 1, now);
            }
            // Its place is free for another probe.
            (Stand::HalfOpen, Verdict::Neither) => {
                set_count(&self.probes, turn, count(&self.probes, turn).saturating_sub(1));
            }
            (Stand::Closed, Verdict::Neither) | (Stand::Open | Stand::ForcedOpen | Stand::ForcedClosed, _) => {}
        }
        None
    }

    fn open(&self, turn: Turn, rules: &Rules, reason: Reason, failures: u32, now: u64) -> Option<Transition> {
        let until = now.saturating_add(rules.open_time(turn.failed_trials_at(Stand::Open)));
        let until = until.min(WITHOUT_END - 1);
        self.open_until.store(until, Ordering::Relaxed);
        self.change(turn, Stand::Open, reason, failures, now)
    }

    /// Its service has a responder.
    pub(crate) fn serve(&self) {
        self.served.store(1, Ordering::Relaxed);
    }

    /// Whether it is as a new one: nothing is lost when it is forgotten.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        is_at_rest(self.look(), &self.failures)
    }

    /// Its service is forgotten: from now on no order changes it. `false`, if an order came first, or if it `must_rest`
    /// and does not.
    pub(crate) fn retire(&self, must_rest: bool) -> bool {
        let turn = self.look();
        if must_rest && !is_at_rest(turn, &self.failures) {
            return false;
        }
        !turn.is_retired && self.swap_turn(turn, Turn { is_retired: true, ..turn })
    }
}

/// The actor's side: one at a time.
impl Gate {
    /// Other rules from now on. A time that has begun stays as it was.
    pub(crate) fn set_rules(&self, rules: Rules) {
        let Rules { failure_threshold, success_threshold, half_open_max_requests, timeout, max_timeout } = rules;
        let counts = [failure_threshold, success_threshold, half_open_max_requests].map(u64::from);
        for (word, rule) in self.rules.iter().zip(counts.into_iter().chain([timeout, max_timeout])) {
            word.store(rule, Ordering::Relaxed);
        }
    }

    /// Forces it open or closed, for so many nanoseconds or without end. `None`: its service is forgotten.
    pub(crate) fn force(&self, open: bool, time: Option<u64>, now: u64) -> Option<Transition> {
        let until = time.map_or(WITHOUT_END, |time| now.saturating_add(time).min(WITHOUT_END - 1));
        let stand = if open { Stand::ForcedOpen } else { Stand::ForcedClosed };
        loop {
            let turn = self.look();
            if turn.is_retired {
                return None;
            }
            self.forced_until.store(until, Ordering::Relaxed);
            if let Some(transition) = self.change(turn, stand, Reason::Manual, 0, now) {
                return Some(transition);
            }
        }
    }

    /// Ends a forced state, if there is one.
    pub(crate) fn release(&self, now: u64) -> Option<Transition> {
        loop {
            let turn = self.look();
            if turn.is_retired || !matches!(turn.stand, Stand::ForcedOpen | Stand::ForcedClosed) {
                return None;
            }
            if let Some(transition) = self.change(turn, Stand::Closed, Reason::Manual, 0, now) {
                return Some(transition);
            }
        }
    }
}

fn is_at_rest(turn: Turn, failures: &AtomicU64) -> bool {
    turn.stand == Stand::Closed && count(failures, turn) == 0
}

/// A count of this turn's generation; 0 if the word has that of an earlier one.
#[inline]
fn count(word: &AtomicU64, turn: Turn) -> u32 {
    let word = word.load(Ordering::Relaxed);
    if (word >> 32) as u32 == turn.generation { word as u32 } else { 0 }
}

fn set_count(word: &AtomicU64, turn: Turn, count: u32) {
    word.store(u64::from(turn.generation) << 32 | u64::from(count), Ordering::Relaxed);
}
