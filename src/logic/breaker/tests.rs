//! The gate by examples; and gate and machine, side by side, against a model that keeps the whole history and works
//! everything out anew from it. Two sides at a time are for loom.

use super::machine::Breaker;
use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;
const RULES: Rules = Rules {
    failure_threshold: 5,
    success_threshold: 2,
    half_open_max_requests: 3,
    timeout: 60 * S,
    max_timeout: 600 * S,
};
const FAILED: BreakerOutcome = BreakerOutcome::Failure(Failure::Reply);

/// Admits, or says after how long to come again.
fn admit(breaker: &Gate, now: u64) -> Result<Permit, Option<u64>> {
    breaker.admit(now).0.map_err(|rejected| rejected.retry_after)
}

fn fail(breaker: &Gate, now: u64) -> Option<Transition> {
    let permit = admit(breaker, now).expect("it passes");
    breaker.record(permit, FAILED, now)
}

/// Opened by five failures at `now`.
fn opened(now: u64) -> Gate {
    let breaker = Gate::new(RULES);
    for _ in 0..5 {
        fail(&breaker, now);
    }
    assert_eq!(breaker.state(), GateState::Open);
    breaker
}

#[test]
fn the_fifth_failure_in_a_row_opens_it_and_a_success_between_starts_the_count_again() {
    let breaker = Gate::new(RULES);
    for _ in 0..4 {
        assert_eq!(fail(&breaker, 7), None);
    }
    let permit = admit(&breaker, 7).unwrap();
    assert_eq!(breaker.record(permit, BreakerOutcome::Success, 7), None);
    for _ in 0..4 {
        assert_eq!(fail(&breaker, 7), None);
    }
    let permit = admit(&breaker, 7).unwrap();
    assert_eq!(breaker.record(permit, BreakerOutcome::Ignored, 7), None, "a cancel counts for nothing");
    let opens = Transition {
        from: GateState::Closed,
        to: GateState::Open,
        reason: Reason::Failed(Failure::Reply),
        failures: 5,
        lasts: Some(60 * S),
        generation: 1,
    };
    assert_eq!(fail(&breaker, 7), Some(opens));
    assert_eq!(admit(&breaker, 7 + 20 * S), Err(Some(40 * S)));
    assert_eq!((breaker.opened(), breaker.rejected()), (1, 1));
}

#[test]
fn after_its_time_exactly_three_probes_pass_and_two_successes_close_it() {
    let breaker = opened(0);
    assert_eq!(admit(&breaker, 60 * S - 1), Err(Some(1)));
    let (first, transition) = breaker.admit(60 * S);
    assert_eq!(transition.unwrap().to, GateState::HalfOpen);
    let probes = [first.unwrap(), admit(&breaker, 60 * S).unwrap(), admit(&breaker, 61 * S).unwrap()];
    for _ in 0..3 {
        assert_eq!(admit(&breaker, 61 * S), Err(Some(S)), "a fourth");
    }
    assert_eq!(breaker.record(probes[0], BreakerOutcome::Success, 62 * S), None);
    assert_eq!(admit(&breaker, 62 * S), Err(Some(S)), "a success makes no room");
    let closes = breaker.record(probes[1], BreakerOutcome::Success, 62 * S).unwrap();
    assert_eq!((closes.from, closes.to, closes.reason), (GateState::HalfOpen, GateState::Closed, Reason::Recovered));
    assert_eq!(breaker.record(probes[2], FAILED, 63 * S), None, "it is of an earlier generation");
    assert!(breaker.is_at_rest());
}

#[test]
fn each_failed_trial_doubles_the_wait_up_to_the_limit_and_closing_forgets_that() {
    let (breaker, mut now) = (opened(0), 0);
    for wait in [60, 120, 240, 480, 600, 600] {
        assert_eq!(breaker.lasts(now), Some(wait * S));
        now += wait * S;
        assert_eq!(breaker.tick(now - 1), None);
        assert_eq!(breaker.tick(now).unwrap().to, GateState::HalfOpen);
        let transition = fail(&breaker, now).unwrap();
        assert_eq!((transition.from, transition.to, transition.failures), (GateState::HalfOpen, GateState::Open, 1));
    }
    breaker.tick(now + 600 * S);
    for _ in 0..2 {
        let permit = admit(&breaker, now).unwrap();
        breaker.record(permit, BreakerOutcome::Success, now);
    }
    for _ in 0..5 {
        fail(&breaker, now);
    }
    assert_eq!(breaker.lasts(now), Some(60 * S));
}

#[test]
fn a_probe_that_is_cancelled_makes_room_for_one_more() {
    let breaker = opened(0);
    let first = admit(&breaker, 60 * S).unwrap();
    let _rest = [admit(&breaker, 60 * S).unwrap(), admit(&breaker, 60 * S).unwrap()];
    assert_eq!(breaker.record(first, BreakerOutcome::Ignored, 60 * S), None);
    assert!(admit(&breaker, 60 * S).is_ok());
    assert!(admit(&breaker, 60 * S).is_err());
}

#[test]
fn late_results_of_requests_from_before_change_nothing() {
    let breaker = Gate::new(RULES);
    let late: Vec<Permit> = (0..20).map(|_| admit(&breaker, 0).unwrap()).collect();
    for permit in &late[..5] {
        breaker.record(*permit, FAILED, 0);
    }
    breaker.tick(60 * S);
    let shown = || (breaker.state(), breaker.trial(), breaker.failures(), breaker.transitions(), breaker.rejected());
    let before = shown();
    for (permit, outcome) in
        late[5..].iter().zip([BreakerOutcome::Success, FAILED, BreakerOutcome::Ignored].into_iter().cycle())
    {
        assert_eq!(breaker.record(*permit, outcome, 60 * S), None);
    }
    assert_eq!(shown(), before);
}

#[test]
fn forced_it_heeds_no_result_and_afterwards_begins_anew() {
    let breaker = opened(0);
    assert_eq!(breaker.force(false, None, S).unwrap().to, GateState::ForcedClosed);
    for _ in 0..10 {
        assert_eq!(fail(&breaker, S), None);
    }
    assert_eq!(breaker.release(S).unwrap().to, GateState::Closed);
    assert!(breaker.is_at_rest());
    assert_eq!(breaker.release(S), None, "there is nothing to take away");

    breaker.force(true, Some(5 * S), S);
    assert_eq!(admit(&breaker, 2 * S), Err(Some(4 * S)));
    assert!(!breaker.is_at_rest());
    let (permit, transition) = breaker.admit(6 * S);
    assert!(permit.is_ok());
    assert_eq!((transition.unwrap().to, transition.unwrap().reason), (GateState::Closed, Reason::TimeOver));
    breaker.force(true, None, 7 * S);
    assert_eq!(admit(&breaker, u64::MAX), Err(None), "nobody knows for how long");
}

#[test]
fn times_at_the_end_of_time_do_not_overflow() {
    let rules = Rules { timeout: u64::MAX, max_timeout: u64::MAX, failure_threshold: 1, ..RULES };
    let breaker = Gate::new(rules);
    assert_eq!(fail(&breaker, 5).unwrap().lasts, Some(u64::MAX - 1 - 5));
    assert_eq!(rules.open_time(u32::MAX), u64::MAX);
    assert_eq!(breaker.force(true, Some(u64::MAX), 9).unwrap().lasts, Some(u64::MAX - 1 - 9));
}

// ------------------------------------------------------------------------------------------------------- the model

/// What happened, in order. The number of an `Admitted` is its place here.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fact {
    /// A request came and was let through.
    Admitted,
    /// The request admitted at that place ended.
    Ended(usize, BreakerOutcome),
    /// Forced open or closed, until when.
    Forced(bool, Option<u64>),
    Released,
}

/// The whole history, with times. Nothing else is kept.
struct Model {
    rules: Rules,
    facts: Vec<(u64, Fact)>,
}

/// What the history amounts to at some time: a list of periods is walked through from the beginning of the world.
struct Period {
    state: GateState,
    /// The fact after which it began; facts up to there belong to earlier periods.
    from: usize,
    until: Option<u64>,
    /// How long the next open period is, if this one's trial fails.
    next_wait: u64,
}

impl Model {
    fn period(&self, now: u64) -> Period {
        let fresh = |from| Period { state: GateState::Closed, from, until: None, next_wait: self.rules.timeout };
        let mut period = fresh(0);
        for (at, (time, fact)) in self.facts.iter().enumerate() {
            period = self.lapse(period, at, *time);
            let of_this_period = &self.facts[period.from..=at];
            let wait = period.next_wait;
            period = match (fact, period.state) {
                (Fact::Forced(open, until), _) => {
                    let state = if *open { GateState::ForcedOpen } else { GateState::ForcedClosed };
                    Period { state, from: at + 1, until: *until, next_wait: self.rules.timeout }
                }
                (Fact::Released, GateState::ForcedOpen | GateState::ForcedClosed) => fresh(at + 1),
                (Fact::Ended(..), GateState::Closed)
                    if trailing_failures(of_this_period, period.from) >= self.rules.failure_threshold as usize =>
                {
                    self.open(at, *time, wait)
                }
                (Fact::Ended(admitted, FAILED), GateState::HalfOpen) if *admitted >= period.from => {
                    self.open(at, *time, wait)
                }
                (Fact::Ended(..), GateState::HalfOpen)
                    if count(of_this_period, period.from, BreakerOutcome::Success)
                        >= self.rules.success_threshold as usize =>
                {
                    fresh(at + 1)
                }
                _ => period,
            };
        }
        self.lapse(period, self.facts.len(), now)
    }

    fn open(&self, at: usize, time: u64, wait: u64) -> Period {
        let next_wait = (wait * 2).min(self.rules.max_timeout);
        Period { state: GateState::Open, from: at + 1, until: Some(time + wait), next_wait }
    }

    /// The period that holds at `now`, before the fact `at`.
    fn lapse(&self, period: Period, at: usize, now: u64) -> Period {
        match (period.state, period.until) {
            (GateState::Open, Some(until)) if until <= now => {
                Period { state: GateState::HalfOpen, from: at, until: None, next_wait: period.next_wait }
            }
            (GateState::ForcedOpen | GateState::ForcedClosed, Some(until)) if until <= now => {
                Period { state: GateState::Closed, from: at, until: None, next_wait: self.rules.timeout }
            }
            _ => period,
        }
    }

    fn admits(&self, now: u64) -> bool {
        let period = self.period(now);
        let facts = &self.facts[period.from..];
        match period.state {
            GateState::Closed | GateState::ForcedClosed => true,
            GateState::Open | GateState::ForcedOpen => false,
            GateState::HalfOpen => {
                let admitted = facts.iter().filter(|(_, fact)| *fact == Fact::Admitted).count();
                let given_up = count(facts, period.from, BreakerOutcome::Ignored);
                admitted - given_up < self.rules.half_open_max_requests as usize
            }
        }
    }
}

/// Verdicts on requests that were admitted at `from` or later.
fn outcomes(facts: &[(u64, Fact)], from: usize) -> impl DoubleEndedIterator<Item = BreakerOutcome> {
    facts.iter().filter_map(move |(_, fact)| match fact {
        Fact::Ended(admitted, outcome) if *admitted >= from => Some(*outcome),
        _ => None,
    })
}

fn count(facts: &[(u64, Fact)], from: usize, wanted: BreakerOutcome) -> usize {
    outcomes(facts, from).filter(|outcome| *outcome == wanted).count()
}

fn trailing_failures(facts: &[(u64, Fact)], from: usize) -> usize {
    outcomes(facts, from).rev().filter(|v| *v != BreakerOutcome::Ignored).take_while(|v| *v == FAILED).count()
}

#[test]
fn a_gate_that_is_retired_takes_no_order_and_one_with_an_order_is_not_retired_at_rest() {
    let gate = Gate::new(RULES);
    gate.force(true, None, 0).unwrap();
    assert!(!gate.retire(true) && !gate.is_retired(), "it is not at rest");
    gate.release(0).unwrap();
    assert!(gate.retire(true) && gate.is_retired());
    assert_eq!((gate.force(true, None, 0), gate.release(0), gate.tick(u64::MAX)), (None, None, None));
    assert!(!gate.retire(false), "once");
}

#[test]
fn other_rules_count_from_the_next_outcome() {
    let gate = Gate::new(RULES);
    fail(&gate, 0);
    gate.set_rules(Rules { failure_threshold: 2, ..RULES });
    assert_eq!(gate.rules().failure_threshold, 2);
    assert_eq!(fail(&gate, 0).unwrap().failures, 2);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Request,
    /// One of those under way ends.
    End(usize, BreakerOutcome),
    Pass(u64),
    Tick,
    Force(bool, Option<u64>),
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome =
        prop_oneof![3 => Just(FAILED), 2 => Just(BreakerOutcome::Success), 1 => Just(BreakerOutcome::Ignored)];
    let step = prop_oneof![
        8 => Just(Step::Request),
        8 => (0usize..100, outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        4 => (1u64..9).prop_map(Step::Pass),
        2 => Just(Step::Tick),
        1 => (any::<bool>(), prop::option::of(1u64..9)).prop_map(|(open, time)| Step::Force(open, time)),
        1 => Just(Step::Release),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn it_does_what_the_model_says(
        steps in steps(),
        (failure_threshold, half_open_max_requests, success_threshold) in (1u32..5, 1u32..4, 1u32..4),
        (timeout, max_timeout) in (1u64..6, 6u64..30),
    ) {
        let success_threshold = success_threshold.min(half_open_max_requests);
        let rules = Rules { failure_threshold, success_threshold, half_open_max_requests, timeout, max_timeout };
        let (mut breaker, gate) = (Breaker::new(rules), Gate::new(rules));
        let mut model = Model { rules, facts: Vec::new() };
        let (mut now, mut under_way) = (0, Vec::<(Permit, usize)>::new());
        let (mut state, mut rejected) = (GateState::Closed, 0);
        for step in steps {
            let mut transitions = Vec::new();
            match step {
                Step::Request => {
                    let expected = model.admits(now);
                    let (permit, transition) = breaker.admit(now);
                    prop_assert_eq!(gate.admit(now), (permit, transition));
                    transitions.extend(transition);
                    prop_assert_eq!(permit.is_ok(), expected, "at {}", now);
                    match permit {
                        Ok(permit) => {
                            under_way.push((permit, model.facts.len()));
                            model.facts.push((now, Fact::Admitted));
                        }
                        Err(Rejected { retry_after }) => {
                            rejected += 1;
                            let until = model.period(now).until;
                            if state != GateState::HalfOpen && transitions.is_empty() {
                                prop_assert_eq!(retry_after, until.map(|until| until - now));
                            }
                        }
                    }
                }
                Step::End(_, _) if under_way.is_empty() => {}
                Step::End(which, outcome) => {
                    let (permit, admitted) = under_way.swap_remove(which % under_way.len());
                    let transition = breaker.record(permit, outcome, now);
                    prop_assert_eq!(gate.record(permit, outcome, now), transition);
                    transitions.extend(transition);
                    model.facts.push((now, Fact::Ended(admitted, outcome)));
                }
                Step::Pass(time) => now += time,
                Step::Tick => {
                    transitions.extend(breaker.tick(now));
                    prop_assert_eq!(gate.tick(now), transitions.first().copied());
                }
                Step::Force(open, time) => {
                    transitions.push(breaker.force(open, time, now));
                    prop_assert_eq!(gate.force(open, time, now), transitions.first().copied());
                    model.facts.push((now, Fact::Forced(open, time.map(|time| now + time))));
                }
                Step::Release => {
                    transitions.extend(breaker.tick(now));
                    transitions.extend(breaker.release(now));
                    let of_gate: Vec<_> = [gate.tick(now), gate.release(now)].into_iter().flatten().collect();
                    prop_assert_eq!(&of_gate, &transitions);
                    model.facts.push((now, Fact::Released));
                }
            }
            // Each change is told, and in a row without a gap.
            for transition in transitions {
                prop_assert_eq!(transition.from, state);
                state = transition.to;
            }
            prop_assert_eq!(breaker.state(), state);
            let mut looked = breaker.clone();
            looked.tick(now);
            prop_assert_eq!(looked.state(), model.period(now).state, "at {} after {:?}", now, step);
            prop_assert_eq!(breaker.rejected, rejected);
            // The gate shows what the machine does.
            let of_gate = (gate.state(), gate.failures(), gate.failed_trials(), gate.trial(), gate.lasts(now));
            let counts = (breaker.failed_trials(), breaker.trial(), breaker.lasts(now));
            prop_assert_eq!(of_gate, (breaker.state(), breaker.failures(), counts.0, counts.1, counts.2));
            let counts = (gate.opened(), gate.rejected(), gate.transitions(), gate.is_at_rest());
            prop_assert_eq!(counts, (breaker.opened, breaker.rejected, breaker.transitions, breaker.is_at_rest()));
        }
    }
}
