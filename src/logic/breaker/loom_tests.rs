//! The gate under the model checker: router and actor at the same time, by the production code.
//!
//! Checked: the changes of both sides form one chain without a gap, a time is seen only together with the state that it
//! belongs to, and a gate is either retired or obeys an order. The mutants switch a [`Site`] off and expect a model to
//! fail.
//!
//! `RUSTFLAGS="--cfg lapce_ipc_loom" cargo test --release --no-default-features --lib loom`

use super::*;
use crate::sync::{Site, mutant};
use loom::thread;
use std::sync::Arc;

const RULES: Rules =
    Rules { failure_threshold: 2, success_threshold: 1, half_open_max_requests: 1, timeout: 10, max_timeout: 10 };
const FAILED: BreakerOutcome = BreakerOutcome::Failure(Failure::Reply);

fn explore(model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(model);
}

/// Two failures open it at time 0. Returns the changes.
fn fail_twice(gate: &Gate) -> Vec<Transition> {
    let mut changes = Vec::new();
    for _ in 0..2 {
        let (Ok(permit), change) = gate.admit(0) else { continue };
        changes.extend(change);
        let opens = gate.record(permit, FAILED, 0);
        changes.extend(opens);
        if opens.is_some() {
            // The next request comes after it: only an order lets it through.
            let (next, _) = gate.admit(0);
            assert!(next.is_err() || gate.state() != GateState::Open, "let through by an open gate");
        }
    }
    changes
}

fn changes_are_one_chain() {
    let gate = Arc::new(Gate::new(RULES));
    let actor = {
        let gate = gate.clone();
        thread::spawn(move || [gate.force(false, None, 0), gate.release(0)])
    };
    let mut changes = fail_twice(&gate);
    changes.extend(actor.join().unwrap().into_iter().flatten());
    changes.sort_by_key(|change| change.generation);
    let (mut state, mut generation) = (GateState::Closed, 0);
    for change in changes {
        assert_eq!((change.from, change.generation), (state, generation + 1), "not one chain");
        (state, generation) = (change.to, change.generation);
    }
    assert_eq!(gate.state(), state, "not one chain");
    assert_eq!(gate.transitions().iter().sum::<u64>(), u64::from(generation));
}

fn an_open_time_comes_with_its_state() {
    let gate = Arc::new(Gate::new(RULES));
    let actor = {
        let gate = gate.clone();
        thread::spawn(move || assert_eq!(gate.tick(5), None, "over too early"))
    };
    fail_twice(&gate);
    actor.join().unwrap();
    assert_eq!(gate.state(), GateState::Open);
    assert_eq!(gate.tick(10).unwrap().to, GateState::HalfOpen);
}

fn a_forced_time_comes_with_its_state() {
    let gate = Arc::new(Gate::new(RULES));
    let router = {
        let gate = gate.clone();
        thread::spawn(move || {
            let (passes, change) = gate.admit(5);
            assert_eq!(change, None, "over too early");
            assert!(passes.is_ok() || passes == Err(Rejected { retry_after: Some(5) }));
        })
    };
    gate.force(true, Some(10), 0).unwrap();
    router.join().unwrap();
}

fn a_time_is_over_once() {
    let gate = Arc::new(Gate::new(RULES));
    fail_twice(&gate);
    let actor = {
        let gate = gate.clone();
        thread::spawn(move || gate.tick(10))
    };
    let (passes, by_router) = gate.admit(10);
    assert!(passes.is_ok(), "the first probe");
    let by_actor = actor.join().unwrap();
    assert!(by_router.is_some() != by_actor.is_some(), "not told once");
    assert_eq!((gate.state(), gate.trial()), (GateState::HalfOpen, (1, 0)));
}

fn retired_or_obeyed() {
    let gate = Arc::new(Gate::new(RULES));
    let actor = {
        let gate = gate.clone();
        thread::spawn(move || gate.force(true, None, 0).is_some())
    };
    let is_retired = gate.retire(true);
    let is_obeyed = actor.join().unwrap();
    assert!(is_retired != is_obeyed, "retired and obeyed");
}

#[test]
fn loom_changes_of_both_sides_are_one_chain() {
    explore(changes_are_one_chain);
}

#[test]
fn loom_an_open_time_comes_with_its_state() {
    explore(an_open_time_comes_with_its_state);
}

#[test]
fn loom_a_forced_time_comes_with_its_state() {
    explore(a_forced_time_comes_with_its_state);
}

#[test]
fn loom_a_time_is_over_once() {
    explore(a_time_is_over_once);
}

#[test]
fn loom_a_gate_is_retired_or_obeys() {
    explore(retired_or_obeyed);
}

/// Expects `model` to fail without `site`, for this reason. On a thread of its own: the switch is thread-local.
fn fails_without(site: Site, model: fn(), reason: &str) {
    let run = std::thread::spawn(move || mutant::without(site, || explore(model)));
    let panic = run.join().expect_err("the model passes without the site");
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("?");
    assert!(text.contains(reason), "{site:?}: fails for another reason: {text}");
}

#[test]
fn loom_mutant_gate_swap() {
    fails_without(Site::GateSwap, changes_are_one_chain, "not one chain");
    fails_without(Site::GateSwap, a_time_is_over_once, "not told once");
    fails_without(Site::GateSwap, retired_or_obeyed, "retired and obeyed");
}

#[test]
fn loom_mutant_gate_change() {
    fails_without(Site::GateChange, an_open_time_comes_with_its_state, "over too early");
    fails_without(Site::GateChange, a_forced_time_comes_with_its_state, "over too early");
}

#[test]
fn loom_mutant_gate_look() {
    fails_without(Site::GateLook, an_open_time_comes_with_its_state, "over too early");
    fails_without(Site::GateLook, a_forced_time_comes_with_its_state, "over too early");
}
