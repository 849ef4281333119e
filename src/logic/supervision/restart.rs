//! When an ended actor is restarted: restart policies as in Erlang/OTP, with exponential backoff and jitter.
//!
//! ```text
//!            ended, and the policy wants it back                  has run for `stable`
//!   runs ───────────────────────────────────────► waits ─► runs ─────────────────────► begins again with the
//!    │                                              │                                  first delay
//!    │ ended, and it need not come back             │ more than `max_restarts` within `period`
//!    ▼                                              ▼
//!   done                                          given up
//! ```
//!
//! Two counts, with different purposes: *attempts* since the actor was last stable choose the delay, and restarts
//! within the sliding `period` decide when to give up. Times are nanoseconds; `random` is uniform in `0.0..1.0`.

use crate::logic::backoff::Backoff;
use std::collections::VecDeque;
use std::time::Duration;

/// The restart policy: after which ends an actor is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// After each.
    Permanent,
    /// After a failure: an error or a panic.
    Transient,
}

/// No restart limit.
pub(crate) const NEVER: u32 = u32::MAX;

/// For [`Limits::stable`]: the actor itself reports that it is stable.
pub(crate) const UNTIL_TOLD: u64 = u64::MAX;

/// Backoff and restart limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Before the first restart; each further attempt doubles it.
    pub(crate) initial_delay: u64,
    /// The longest delay, jitter included.
    pub(crate) max_delay: u64,
    /// Random jitter, as a fraction of the delay.
    pub(crate) jitter: f64,
    /// The most restarts within `period`; [`NEVER`]: it is never given up.
    pub(crate) max_restarts: u32,
    pub(crate) period: u64,
    /// The runtime after which the backoff is reset; or [`UNTIL_TOLD`].
    pub(crate) stable: u64,
}

impl Limits {
    /// The delay before attempt `attempt`, which counts from 1.
    fn delay(&self, attempt: u32, random: f64) -> u64 {
        let (first, max) = (Duration::from_nanos(self.initial_delay), Duration::from_nanos(self.max_delay));
        let delay = Backoff { first, max, jitter: self.jitter }.delay(attempt.saturating_sub(1), random);
        u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The decision after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is not restarted.
    Done,
    /// It is restarted after a delay.
    Restart {
        /// Attempts since the actor was last stable, this one included.
        attempt: u32,
        /// The most restarts within the period.
        limit: u32,
        delay: u64,
    },
    /// It has reached its restart limit.
    GiveUp {
        /// Restarts within the period.
        restarts: u32,
    },
}

/// The restarts of one actor.
#[derive(Debug)]
pub(crate) struct Restarts {
    restart: Restart,
    limits: Limits,
    /// The times of restarts within the last period.
    recent: VecDeque<u64>,
    attempt: u32,
    /// The start of the running incarnation.
    since: Option<u64>,
}

impl Restarts {
    pub(crate) fn new(restart: Restart, limits: Limits) -> Restarts {
        Restarts { restart, limits, recent: VecDeque::new(), attempt: 0, since: None }
    }

    /// The actor was started.
    pub(crate) fn started(&mut self, now: u64) {
        self.since = Some(now);
    }

    /// The actor has ended by itself. The restart counts from now, not from the end of its delay.
    pub(crate) fn ended(&mut self, failed: bool, now: u64, random: f64) -> Decision {
        let _ = self.became_stable(now);
        self.since = None;
        let comes_back = match self.restart {
            Restart::Permanent => true,
            Restart::Transient => failed,
        };
        if !comes_back {
            return Decision::Done;
        }
        while self.recent.front().is_some_and(|at| now.saturating_sub(*at) >= self.limits.period) {
            self.recent.pop_front();
        }
        let restarts = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if restarts >= self.limits.max_restarts {
            return Decision::GiveUp { restarts };
        }
        if self.limits.max_restarts != NEVER {
            self.recent.push_back(now);
        }
        self.attempt = self.attempt.saturating_add(1);
        let delay = self.limits.delay(self.attempt, random);
        Decision::Restart { attempt: self.attempt, limit: self.limits.max_restarts, delay }
    }

    /// The cause may be gone: the backoff is reset.
    pub(crate) fn begin_again(&mut self) {
        self.attempt = 0;
    }

    /// The actor was stopped by its supervisor: neither a failure nor a success.
    pub(crate) fn stopped(&mut self) {
        self.since = None;
    }

    /// The time at which the restarted actor becomes stable; `None` also if the actor itself reports that.
    pub(crate) fn stable_at(&self) -> Option<u64> {
        let since = self.since.filter(|_| self.attempt > 0 && self.limits.stable != UNTIL_TOLD);
        since.map(|since| since.saturating_add(self.limits.stable))
    }

    /// The actor reports that it is stable. Returns the number of attempts that it took, after a restart.
    pub(crate) fn mark_stable(&mut self) -> Option<u32> {
        Some(std::mem::take(&mut self.attempt)).filter(|attempt| *attempt > 0)
    }

    /// The number of attempts after which the actor became stable; `Some` once per restart.
    pub(crate) fn became_stable(&mut self, now: u64) -> Option<u32> {
        self.stable_at().filter(|at| *at <= now).map(|_| std::mem::take(&mut self.attempt))
    }

    /// The period in which restarts are counted.
    pub(crate) fn period(&self) -> u64 {
        self.limits.period
    }
}

/// The restarts of an actor within the period of its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecentRestarts {
    pub(crate) name: String,
    pub(crate) supervisor: String,
    pub(crate) times: usize,
    /// The restart limit; `None`: none, or each of many actors has its own.
    pub(crate) limit: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;
    const LIMITS: Limits = Limits {
        initial_delay: 100 * MS,
        max_delay: 5 * S,
        jitter: 0.2,
        max_restarts: 10,
        period: 60 * S,
        stable: 30 * S,
    };

    fn delay(decision: Decision) -> u64 {
        match decision {
            Decision::Restart { delay, .. } => delay,
            other => panic!("no restart but {other:?}"),
        }
    }

    #[test]
    fn delays_double_up_to_the_longest_and_then_it_is_given_up() {
        let mut restarts = Restarts::new(Restart::Permanent, LIMITS);
        let mut now = 0;
        let mut delays = Vec::new();
        for attempt in 1..=10 {
            restarts.started(now);
            let decision = restarts.ended(true, now, 0.5);
            delays.push(delay(decision) / MS);
            assert_eq!(decision, Decision::Restart { attempt, limit: 10, delay: delay(decision) });
            now += delay(decision);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000]);
        restarts.started(now);
        assert_eq!(restarts.ended(true, now, 0.5), Decision::GiveUp { restarts: 10 });
    }

    #[test]
    fn an_actor_without_a_limit_is_never_given_up_and_keeps_nothing_of_its_restarts() {
        let mut restarts = Restarts::new(Restart::Permanent, Limits { max_restarts: NEVER, ..LIMITS });
        for now in 0..10_000 {
            restarts.started(now);
            assert!(delay(restarts.ended(true, now, 0.5)) <= 5 * S);
        }
        assert_eq!(restarts.recent.len(), 0);
        restarts.begin_again();
        assert_eq!(delay(restarts.ended(true, 10_000, 0.5)), 100 * MS);
    }

    #[test]
    fn each_policy_restarts_after_its_ends_only() {
        for (restart, normal, failed) in [(Restart::Permanent, true, true), (Restart::Transient, false, true)] {
            let comes_back = |failed| Restarts::new(restart, LIMITS).ended(failed, 0, 0.5) != Decision::Done;
            assert_eq!((comes_back(false), comes_back(true)), (normal, failed), "{restart:?}");
        }
    }

    #[test]
    fn who_has_held_begins_again_with_the_first_delay_and_is_told_once() {
        let mut restarts = Restarts::new(Restart::Permanent, LIMITS);
        restarts.started(0);
        assert_eq!(restarts.stable_at(), None, "it never failed");
        restarts.ended(true, 0, 0.5);
        assert_eq!(restarts.stable_at(), None, "it does not run");
        restarts.ended(true, 0, 0.5);
        restarts.started(S);
        assert_eq!(restarts.stable_at(), Some(31 * S));
        assert_eq!(restarts.became_stable(31 * S - 1), None);
        assert_eq!(restarts.became_stable(31 * S), Some(2));
        assert_eq!(restarts.became_stable(31 * S), None);
        assert_eq!(delay(restarts.ended(true, 32 * S, 0.5)), 100 * MS);
    }

    #[test]
    fn a_restart_holds_when_its_actor_says_so_and_is_counted_in_the_period_all_the_same() {
        let limits = Limits { stable: UNTIL_TOLD, max_restarts: 2, ..LIMITS };
        let mut restarts = Restarts::new(Restart::Transient, limits);
        for _ in 0..2 {
            restarts.started(S);
            assert_eq!(restarts.mark_stable(), None, "it was not started again");
            assert!(matches!(restarts.ended(true, S, 0.5), Decision::Restart { attempt: 1, limit: 2, .. }));
            restarts.started(S);
            assert_eq!((restarts.stable_at(), restarts.became_stable(u64::MAX)), (None, None));
            assert_eq!(restarts.mark_stable(), Some(1));
        }
        assert_eq!(restarts.ended(true, S, 0.5), Decision::GiveUp { restarts: 2 });
    }

    #[test]
    fn zeros_in_the_configuration_mean_what_they_say() {
        let at_once = Limits { initial_delay: 0, ..LIMITS };
        assert_eq!(delay(Restarts::new(Restart::Permanent, at_once).ended(true, 0, 1.0)), 0);
        let never = Limits { max_restarts: 0, ..LIMITS };
        let decision = Restarts::new(Restart::Permanent, never).ended(true, 0, 0.5);
        assert_eq!(decision, Decision::GiveUp { restarts: 0 });
        let mut steady = Restarts::new(Restart::Permanent, Limits { stable: 0, ..LIMITS });
        for now in 0..5 {
            steady.started(now);
            assert_eq!(delay(steady.ended(true, now, 0.5)), 100 * MS, "a restart holds at once");
        }
    }

    /// The policy without its optimizations: it remembers every restart.
    #[derive(Default)]
    struct Model {
        restarts: Vec<u64>,
        attempt: u32,
        since: Option<u64>,
    }

    impl Model {
        /// The delay without chance, or how many restarts were too many.
        fn ended(&mut self, limits: &Limits, now: u64) -> Result<u64, usize> {
            if self.since.take().is_some_and(|since| now - since >= limits.stable) {
                self.attempt = 0;
            }
            let within = self.restarts.iter().filter(|at| now - **at < limits.period).count();
            if within >= limits.max_restarts as usize {
                return Err(within);
            }
            self.restarts.push(now);
            self.attempt += 1;
            let mut delay = limits.initial_delay;
            for _ in 1..self.attempt {
                delay = (delay * 2).min(limits.max_delay);
            }
            Ok(delay.min(limits.max_delay))
        }
    }

    proptest! {
        #[test]
        fn restarts_are_those_of_a_naive_model(
            (initial_delay, max_delay) in (0..500_u64, 0..2_000_u64),
            jitter in 0.0..=1.0_f64,
            max_restarts in 0..8_u32,
            (period, stable) in (1..5_000_u64, 0..3_000_u64),
            ends in prop::collection::vec((0..2_000_u64, 0.0..1.0_f64), 0..60),
        ) {
            let limits = Limits { initial_delay, max_delay, jitter, max_restarts, period, stable };
            let (mut restarts, mut model) = (Restarts::new(Restart::Permanent, limits), Model::default());
            let (mut now, mut last) = (0, None::<(u32, u64)>);
            for (runs, random) in ends {
                restarts.started(now);
                model.since = Some(now);
                now += runs;
                match (restarts.ended(true, now, random), model.ended(&limits, now)) {
                    (Decision::Restart { attempt, limit, delay }, Ok(plain)) => {
                        prop_assert_eq!((attempt, limit), (model.attempt, max_restarts));
                        let (low, high) = (plain as f64 * (1.0 - jitter), plain as f64 * (1.0 + jitter));
                        // To the nearest nanosecond.
                        prop_assert!(delay as f64 >= low - 1.0 && delay as f64 <= high + 1.0, "{} of {}", delay, plain);
                        prop_assert!(delay <= max_delay);
                        if let Some((before, shorter)) = last.filter(|(before, _)| before + 1 == attempt) {
                            prop_assert!(before > 0 && (plain == shorter * 2 || plain == max_delay));
                        }
                        last = Some((attempt, plain));
                        now += delay;
                    }
                    (Decision::GiveUp { restarts }, Err(within)) => {
                        prop_assert_eq!(restarts as usize, within);
                        // It is not restarted; a later end belongs to a quieter period.
                        now += period / 2;
                    }
                    (ours, naive) => prop_assert!(false, "{:?}, but the model says {:?}", ours, naive),
                }
            }
        }
    }
}
