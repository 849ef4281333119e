//! The models without one ordering each.

use super::fixture::explore;
use super::{data_wakes, one_cell, space_wakes, trim_once};
use crate::sync::{Site, mutant};

/// Expects `model` to fail without `site`, for one of the `reasons`. On a thread of its own: the switch is
/// thread-local, and a failed model's leftovers are not to be met by the next.
fn fails_without(site: Site, preemptions: usize, model: fn(), reasons: &[&str]) {
    let run = std::thread::spawn(move || mutant::without(site, || explore("mutant", preemptions, model)));
    let panic = run.join().expect_err("the model passes without the site");
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("?");
    assert!(reasons.iter().any(|reason| text.contains(reason)), "{site:?}: fails for another reason: {text}");
}

const RACE: &str = "Causality violation";
const OTHER_HEADER: &str = "of another record";
const LOST: &str = "left == right";
const ASLEEP: &str = "deadlock";

#[test]
fn loom_mutant_publish() {
    fails_without(Site::Publish, 3, one_cell, &[RACE, OTHER_HEADER]);
}

#[test]
fn loom_mutant_take() {
    fails_without(Site::Take, 3, one_cell, &[RACE, OTHER_HEADER]);
}

#[test]
fn loom_mutant_consume() {
    fails_without(Site::Consume, 3, one_cell, &[RACE]);
}

#[test]
fn loom_mutant_reclaim() {
    fails_without(Site::Reclaim, 3, one_cell, &[RACE]);
}

#[test]
fn loom_mutant_sleep() {
    fails_without(Site::Sleep, 3, data_wakes, &[ASLEEP]);
    fails_without(Site::Sleep, 3, space_wakes, &[ASLEEP]);
}

#[test]
fn loom_mutant_wake() {
    fails_without(Site::Wake, 3, data_wakes, &[ASLEEP]);
    fails_without(Site::Wake, 3, space_wakes, &[ASLEEP]);
}

#[test]
fn loom_mutant_enter() {
    fails_without(Site::Enter, 3, trim_once, &[RACE, LOST]);
}

#[test]
fn loom_mutant_trim() {
    fails_without(Site::Trim, 3, trim_once, &[RACE, LOST]);
}

#[test]
fn loom_mutant_leave() {
    fails_without(Site::Leave, 3, trim_once, &[RACE, LOST]);
}
