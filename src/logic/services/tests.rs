mod sharing;

use super::*;
use crate::logic::breaker::{BreakerOutcome, Failure, Rules};
use crate::logic::shares::uid;

fn name(name: &str) -> Name {
    name.parse().unwrap()
}

fn services(most: usize) -> Services {
    let general =
        Rules { failure_threshold: 2, success_threshold: 1, half_open_max_requests: 1, timeout: 100, max_timeout: 100 };
    let rules = Arc::new(RuleBook { general, of_services: HashMap::new() });
    let (shares, users) = (Shares::new(ShareLimits::of_all(most, 100)), Users::new(ShareLimits::of_one(1000, 90)));
    Services::new(shares, users, rules)
}

/// The user of requesters where it does not matter which.
const USER: Principal = uid(7);

/// The connection that is chosen for a call of a user.
fn choose(services: &mut Services, id: ServiceId, now: u64, able: impl FnMut(u32) -> bool) -> Result<u32, NoResponder> {
    let offer = services.choose(id, USER, now, able)?;
    Ok(services.offer(offer).unwrap().connection)
}

fn fail(services: &mut Services, id: ServiceId) {
    let gate = &services.get(id).unwrap().gate;
    let permit = gate.admit(0).0.unwrap();
    gate.record(permit, BreakerOutcome::Failure(Failure::ResponderLost), 0);
}

#[test]
fn the_least_busy_responder_is_chosen_and_equals_take_turns() {
    let mut services = services(10);
    let id = services.intern(&name("chat"), Some(uid(7))).unwrap();
    assert_eq!(choose(&mut services, id, 0, |_| true), Err(NoResponder::None));
    for connection in 0..3 {
        assert!(services.serve(id, connection, 0, 2));
        assert!(!services.serve(id, connection, 0, 2), "twice");
    }
    let (mut seen, mut offers) = ([0; 3], Vec::new());
    for _ in 0..6 {
        let offer = services.choose(id, USER, 0, |_| true).unwrap();
        services.begin(offer, USER);
        seen[services.offer(offer).unwrap().connection as usize] += 1;
        offers.push(offer);
    }
    assert_eq!(seen, [2, 2, 2]);
    assert_eq!(choose(&mut services, id, 0, |_| true), Err(NoResponder::AllBusy));
    let of_1 = offers.into_iter().find(|offer| services.offer(*offer).unwrap().connection == 1).unwrap();
    services.end(of_1, USER);
    assert_eq!(choose(&mut services, id, 0, |_| true), Ok(1));
    assert_eq!(choose(&mut services, id, 0, |c| c != 1), Err(NoResponder::AllBusy));
}

#[test]
fn a_responder_that_misses_deadlines_gets_a_probe_after_each_backoff() {
    const SUSPECT_MIN: u64 = 5;
    const SUSPECT_MAX: u64 = 1000;
    let mut services = services(10);
    services.set_probe_delays(ProbeDelays { first: SUSPECT_MIN, max: SUSPECT_MAX });
    let id = services.intern(&name("chat"), Some(uid(7))).unwrap();
    for connection in [7, 8] {
        services.serve(id, connection, 0, 2);
    }
    let offer = services.choose(id, USER, 0, |connection| connection == 7).unwrap();
    let chosen = |services: &mut Services, now: u64| -> Vec<u32> {
        (0..6).map(|_| choose(services, id, now, |_| true).unwrap()).collect()
    };
    services.missed(offer, 0);
    assert_eq!(chosen(&mut services, SUSPECT_MIN - 1), [8; 6]);
    let probed = chosen(&mut services, SUSPECT_MIN);
    assert_eq!(probed.iter().filter(|connection| **connection == 7).count(), 1, "{probed:?}");
    services.missed(offer, SUSPECT_MIN);
    assert_eq!(chosen(&mut services, 3 * SUSPECT_MIN - 1), [8; 6], "twice the backoff");
    // Without another responder that can take the call, it is chosen all the same.
    assert_eq!(choose(&mut services, id, SUSPECT_MIN, |connection| connection != 8), Ok(7));
    services.replied(offer);
    assert_eq!(chosen(&mut services, SUSPECT_MIN).iter().filter(|connection| **connection == 7).count(), 3);
    for _ in 0..100 {
        services.missed(offer, 0);
    }
    assert!(chosen(&mut services, SUSPECT_MAX).contains(&7), "the backoff has a limit");
}

#[test]
fn who_stops_serving_finishes_what_it_has() {
    let mut services = services(10);
    let id = services.intern(&name("chat"), Some(uid(7))).unwrap();
    services.serve(id, 7, 0, 2);
    let offer = services.choose(id, USER, 0, |_| true).unwrap();
    services.begin(offer, USER);
    assert!(services.unserve(id, 7));
    assert_eq!(choose(&mut services, id, 0, |_| true), Err(NoResponder::None));
    assert_eq!(services.get(id).unwrap().responders(), 1);
    services.end(offer, USER);
    assert_eq!(services.get(id).unwrap().responders(), 0);
    assert!(services.offer(offer).is_none());
}

#[test]
fn names_are_bounded_and_freed_with_their_last_user() {
    let mut services = services(1);
    let id = services.intern(&name("a"), Some(uid(7))).unwrap();
    assert_eq!(services.intern(&name("a"), Some(uid(7))), Ok(id));
    assert!(services.intern(&name("b"), Some(uid(7))).is_err());
    services.release(id);
    assert!(services.intern(&name("b"), Some(uid(7))).is_err());
    services.release(id);
    assert!(services.intern(&name("b"), Some(uid(7))).is_ok());
}

#[test]
fn a_breaker_that_is_not_at_rest_outlives_the_users_of_its_service() {
    let mut services = services(10);
    let id = services.intern(&name("a"), Some(uid(7))).unwrap();
    for _ in 0..2 {
        fail(&mut services, id);
        services.release(id);
        assert_eq!(services.intern(&name("a"), Some(uid(7))), Ok(id), "still known");
    }
    assert_eq!(services.get(id).unwrap().gate.state(), GateState::Open);
    services.release(id);
    let gate = services.get(id).unwrap().gate.clone();
    gate.force(false, None, 0);
    gate.release(0);
    assert_eq!(services.gates().len(), 0, "whoever asks for the gates has those at rest forgotten");
    assert_eq!(services.find(&name("a")), None);
    assert!(gate.is_retired());
    assert_eq!(gate.force(true, None, 0), None, "no order changes what is forgotten");
}

#[test]
fn services_without_users_make_room_and_those_with_users_do_not() {
    let mut services = services(3);
    let ids: Vec<_> =
        ["open", "failed", "used"].iter().map(|n| services.intern(&name(n), Some(uid(7))).unwrap()).collect();
    fail(&mut services, ids[0]);
    for id in &ids {
        fail(&mut services, *id);
    }
    services.release(ids[0]);
    services.release(ids[1]);
    assert!(services.intern(&name("new"), Some(uid(7))).is_ok());
    assert_eq!((services.find(&name("failed")), services.find(&name("open"))), (None, Some(ids[0])));
    assert!(services.intern(&name("newer"), Some(uid(7))).is_ok());
    assert_eq!((services.find(&name("open")), services.find(&name("used"))), (None, Some(ids[2])));
    assert!(services.intern(&name("newest"), Some(uid(7))).is_err());
}
