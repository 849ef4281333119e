//! Orders of stops and starts, and a world of random ends in which the rules must hold at every step.

use super::*;
use Action::{Escalate, Retired, Start, Stop};
use proptest::prelude::{any, prop};
use proptest::{prop_assert_eq, proptest};

const LIMITS: Limits =
    Limits { initial_delay: 100, max_delay: 400, jitter: 0.0, max_restarts: 3, period: 10_000, stable: 1_000 };

/// Children that do what they are told at once, and a list of what that was.
struct World {
    group: Group,
    running: Vec<bool>,
    now: u64,
    done: Vec<Action>,
}

impl World {
    fn new(policies: &[Restart]) -> World {
        let mut group = Group::new();
        policies.iter().for_each(|restart| {
            group.add(*restart, LIMITS, 0);
        });
        let mut world = World { group, running: vec![false; policies.len()], now: 0, done: Vec::new() };
        world.settle();
        world.done.clear();
        world
    }

    fn settle(&mut self) {
        while let Some(action) = self.group.next(self.now) {
            self.done.push(action);
            match action {
                Start(child) => {
                    assert!(!std::mem::replace(&mut self.running[child], true), "{child} runs already");
                    let before = (0..child).all(|i| self.running[i] || self.group.members[i].state == State::Done);
                    assert!(before, "{child} started before one that comes before it");
                }
                Stop(child) => {
                    assert!(std::mem::replace(&mut self.running[child], false), "{child} does not run");
                    assert_eq!(self.group.next(self.now), None, "nothing else while one stops");
                    assert_eq!(self.group.ended(child, false, self.now, 0.5), None);
                }
                Retired => {}
                Escalate(_) => assert!(!self.running.contains(&true), "escalated while some run"),
            }
        }
    }

    fn fails(&mut self, child: usize) -> Option<Decision> {
        self.ends(child, true)
    }

    fn ends(&mut self, child: usize, failed: bool) -> Option<Decision> {
        self.running[child] = false;
        let decision = self.group.ended(child, failed, self.now, 0.5);
        self.settle();
        decision
    }

    fn passes(&mut self, time: u64) {
        self.now += time;
        while self.group.became_stable(self.now).is_some() {}
        self.settle();
    }

    fn takes(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }
}

#[test]
fn rest_for_one_stops_the_later_ones_in_reverse_and_starts_them_in_order() {
    let mut world = World::new(&[Restart::Permanent; 4]);
    assert_eq!(world.fails(1), Some(Decision::Restart { attempt: 1, limit: 3, delay: 100 }));
    assert_eq!(world.takes(), [Stop(3), Stop(2)]);
    assert!(!world.group.is_whole());
    assert_eq!(world.group.wake_at(), Some(100));
    world.passes(99);
    assert_eq!(world.takes(), []);
    world.passes(1);
    assert_eq!(world.takes(), [Start(1), Start(2), Start(3)]);
    assert!(world.group.is_whole());
}

#[test]
fn a_failure_before_one_that_waits_holds_that_one_back() {
    let mut world = World::new(&[Restart::Permanent; 3]);
    world.fails(1);
    world.passes(50);
    world.fails(0);
    world.takes();
    world.passes(50);
    assert_eq!(world.takes(), [], "1 is due, but 0 does not run");
    world.passes(50);
    assert_eq!(world.takes(), [Start(0), Start(1), Start(2)]);
}

#[test]
fn a_stop_takes_its_time_and_the_next_waits_for_it() {
    let mut group = Group::new();
    (0..3).for_each(|_| {
        group.add(Restart::Permanent, LIMITS, 0);
    });
    while group.next(0).is_some() {}
    group.ended(0, true, 0, 0.5);
    assert_eq!(group.next(0), Some(Stop(2)));
    assert_eq!(group.next(500), None, "0 is due, but 2 still stops");
    assert_eq!(group.wake_at(), None);
    // 1 ends by itself before it was told to: it was to be stopped anyway, so that is no failure of its own.
    assert_eq!(group.ended(1, true, 500, 0.5), None);
    assert_eq!(group.ended(2, true, 500, 0.5), None);
    assert_eq!(group.next(500), Some(Start(0)));
    assert_eq!(group.next(500), Some(Start(1)));
}

#[test]
fn who_need_not_come_back_does_not_and_holds_nobody_up() {
    let policies = [Restart::Transient, Restart::Permanent, Restart::Transient];
    let mut world = World::new(&policies);
    assert_eq!(world.ends(0, false), Some(Decision::Done));
    assert_eq!(world.ends(2, false), Some(Decision::Done));
    assert!(world.group.is_whole());
    world.fails(1);
    world.passes(100);
    assert_eq!(world.takes(), [Start(1)]);
}

#[test]
fn a_limit_that_is_exceeded_stops_all_in_reverse_and_escalates_once() {
    let mut world = World::new(&[Restart::Permanent; 3]);
    for _ in 0..3 {
        world.fails(1);
        world.passes(400);
    }
    world.takes();
    assert_eq!(world.fails(1), Some(Decision::GiveUp { restarts: 3 }));
    assert_eq!(world.takes(), [Stop(2), Stop(0), Escalate(1)]);
    assert!(!world.group.is_whole());
    world.passes(100_000);
    assert_eq!(world.takes(), []);
    assert_eq!(world.group.wake_at(), None);
}

#[test]
fn the_retired_are_stopped_in_reverse_and_the_others_are_still_supervised() {
    let mut world = World::new(&[Restart::Permanent; 3]);
    world.group.retire(2);
    world.settle();
    assert_eq!(world.takes(), [Stop(2), Retired]);
    assert!(world.group.is_whole());
    world.fails(0);
    world.passes(100);
    assert_eq!(world.takes(), [Stop(1), Start(0), Start(1)]);
    world.fails(0);
    world.group.retire(0);
    world.settle();
    assert_eq!(world.takes(), [Stop(1), Retired], "0 waits for its restart, and needs no stop");
    world.passes(100_000);
    assert_eq!(world.takes(), []);
}

#[test]
fn a_restart_that_holds_is_told_with_its_attempts() {
    let mut world = World::new(&[Restart::Permanent; 2]);
    world.fails(1);
    world.passes(100);
    world.fails(1);
    world.passes(200);
    assert_eq!(world.group.wake_at(), Some(world.now + 1_000));
    assert_eq!(world.group.became_stable(world.now + 1_000), Some((1, 2)));
    assert_eq!(world.group.became_stable(world.now + 1_000), None);
}

const POLICIES: &[Restart] = &[Restart::Permanent, Restart::Transient];

proptest! {
    /// `World` checks each order; here, that every child comes back unless it is done, retired or given up.
    #[test]
    fn after_any_ends_all_who_should_run_do(
        policies in prop::collection::vec(prop::sample::select(POLICIES), 1..6),
        ends in prop::collection::vec((0..6_usize, any::<bool>(), 0..700_u64), 0..40),
        retired in prop::option::of((0..40_usize, 0..6_usize)),
    ) {
        let mut world = World::new(&policies);
        let (mut done, mut given_up) = (vec![false; policies.len()], false);
        let mut retired_from = policies.len();
        for (step, (child, failed, time)) in ends.into_iter().enumerate() {
            if let Some((_, first)) = retired.filter(|(at, _)| *at == step) {
                retired_from = first.min(policies.len());
                world.group.retire(first);
                world.settle();
                prop_assert_eq!(world.done.last(), Some(&Retired));
            }
            let child = child % policies.len();
            if world.running[child] {
                let decision = world.ends(child, failed);
                let wanted = match policies[child] {
                    Restart::Permanent => true,
                    Restart::Transient => failed,
                };
                prop_assert_eq!(decision == Some(Decision::Done), !wanted);
                done[child] |= !wanted;
                given_up |= matches!(decision, Some(Decision::GiveUp { .. }));
            }
            world.passes(time);
        }
        world.passes(1_000);
        for (child, (runs, done)) in world.running.iter().zip(done).enumerate() {
            let should_run = !done && !given_up && child < retired_from;
            prop_assert_eq!(*runs, should_run, "{} of {:?}", child, world.done);
        }
        prop_assert_eq!(world.group.is_whole(), !given_up);
    }
}
