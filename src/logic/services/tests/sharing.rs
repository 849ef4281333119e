//! What users take from each other: places of responders, probes of a breaker.

use super::*;
use crate::logic::breaker::Permit;
use crate::logic::services::places::Places;
use crate::logic::services::users::Sharing;
use crate::logic::shares::uid;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const PERCENT: u32 = 90;

fn among(users: usize) -> Sharing {
    Sharing { users, percent: PERCENT }
}

fn takes_all(places: &mut Places, user: Principal, users: usize, now: u64) -> usize {
    (0..)
        .take_while(|_| {
            let has_place = places.has_place(user, among(users), now);
            has_place.then(|| places.take(user)).is_some()
        })
        .count()
}

#[test]
fn a_user_that_is_alone_takes_all_places_and_another_one_leaves_each_its_part() {
    for most in [1, 2, 3, 9, 10, 11, 1024] {
        assert_eq!(takes_all(&mut Places::new(most), uid(7), 1, 0), most as usize);
        let part = (most as usize * PERCENT as usize).div_ceil(100);
        let mut places = Places::new(most);
        assert_eq!(takes_all(&mut places, uid(7), 2, 0), part);
        assert_eq!(takes_all(&mut places, uid(8), 2, 0), ((most as usize - part) * 90).div_ceil(100));
    }
    let unlimited = Sharing { users: 2, percent: 100 };
    let mut places = Places::new(10);
    (0..10).for_each(|_| places.take(uid(7)));
    places.give_back(uid(7));
    places.refuse(uid(8), unlimited, 0);
    assert!(places.has_place(uid(7), unlimited, 0), "100 %: one user may take all");
}

#[test]
fn a_user_that_holds_none_claims_one_of_few_places() {
    let mut places = Places::new(3);
    assert_eq!(takes_all(&mut places, uid(7), 3, 0), 3);
    places.refuse(uid(8), among(3), 0);
    places.refuse(uid(9), among(3), 1);
    places.give_back(uid(7));
    assert!(!places.has_place(uid(7), among(3), 999 * MS));
    assert!(!places.has_place(uid(9), among(3), 999 * MS), "it was refused second");
    assert!(places.has_place(uid(7), among(3), 1000 * MS), "a claim ends");
    assert!(places.has_place(uid(8), among(3), 999 * MS));
    places.take(uid(8));
    places.give_back(uid(7));
    assert!(places.has_place(uid(7), among(3), 0), "it has what it claimed");
    places.take(uid(7));
    places.refuse(uid(8), among(3), 0);
    places.give_back(uid(7));
    assert!(places.has_place(uid(7), among(3), 0), "it holds one, so it claims none");
    let mut one = Places::new(1);
    one.take(uid(7));
    one.refuse(uid(8), among(2), 0);
    one.give_back(uid(7));
    assert!(one.has_place(uid(7), among(2), 0), "the only place is not claimed");
}

/// Calls by their number, and how their bodies are.
fn keys(count: u64) -> Vec<Key> {
    (0..count).map(Key::from_u64).collect()
}

#[test]
fn a_late_request_of_another_user_yields_until_one_has_its_share() {
    let (mut places, calls) = (Places::new(2), keys(4));
    let yields = |places: &mut Places, user, users, body: Body| places.yields(user, among(users), &mut 16, |_, _| body);
    for call in &calls[..2] {
        places.take(uid(7));
        places.note_incomplete(uid(7), *call, |_| true);
    }
    assert_eq!(yields(&mut places, uid(7), 2, Body::Late), None, "its own");
    assert_eq!(yields(&mut places, uid(8), 1, Body::Late), None, "8 has left");
    assert_eq!(yields(&mut places, uid(8), 2, Body::Coming), None);
    assert_eq!(yields(&mut places, uid(8), 2, Body::Late), Some(calls[0]));
    assert_eq!(yields(&mut places, uid(8), 2, Body::Whole), None);
    assert_eq!(yields(&mut places, uid(8), 2, Body::Late), None, "none is left");

    let mut places = Places::new(20);
    for call in keys(20) {
        places.take(uid(7));
        places.note_incomplete(uid(7), call, |_| true);
    }
    assert_eq!(yields(&mut places, uid(8), 2, Body::Coming), None);
    let mut yielded = 0;
    while yields(&mut places, uid(8), 2, Body::Late).is_some() {
        places.give_back(uid(7));
        places.take(uid(8));
        yielded += 1;
    }
    assert_eq!(yielded, 9, "a tenth would be more than 90 % of the ten that 7 leaves then");
    let mut looks = 3;
    assert_eq!(places.yields(uid(9), among(3), &mut looks, |_, _| Body::Coming), None);
    assert_eq!(looks, 0, "it does not look at all");
}

#[test]
fn requests_that_are_whole_are_forgotten() {
    let mut places = Places::new(2);
    places.take(uid(7));
    let mut most = 0;
    for call in keys(1000) {
        places.note_incomplete(uid(7), call, |_| false);
        let mut looked = 0;
        let mut looks = u32::MAX;
        places.yields(uid(8), among(2), &mut looks, |_, _| {
            looked += 1;
            Body::Coming
        });
        most = most.max(looked);
    }
    assert!(most <= 20, "{most}");
}

/// A half-open breaker of so many probes, which `users` users are connected to.
struct Trial {
    services: Services,
    id: ServiceId,
    now: u64,
    /// Outstanding: the call, its user, the permit, and since when its requester owes something.
    probes: Vec<(Key, Principal, Permit, Option<u64>)>,
    next: u64,
}

impl Trial {
    fn new(most: u32, users: u32) -> Trial {
        let general = Rules {
            failure_threshold: 1,
            success_threshold: most,
            half_open_max_requests: most,
            timeout: 100,
            max_timeout: 100,
        };
        let mut services = services(10);
        services.set_rules(Arc::new(RuleBook { general, of_services: HashMap::new() }));
        let id = services.intern(&name("s"), Some(uid(7))).unwrap();
        for user in 0..users {
            services.users.connect(uid(7 + user), 0);
        }
        fail(&mut services, id);
        let gate = services.get(id).unwrap().gate.clone();
        assert!(gate.tick(100).is_some());
        assert_eq!(gate.state(), GateState::HalfOpen);
        Trial { services, id, now: 100, probes: Vec::new(), next: 0 }
    }

    /// A request of `user`, which owes a part of its body or does not. Returns whether it became a probe.
    fn ask(&mut self, user: Principal, is_whole: bool) -> bool {
        let Trial { services, id, now, probes, .. } = self;
        let out = |probe: &Probe| probes.iter().any(|(call, ..)| *call == probe.call);
        let late = |probe: &Probe, time| {
            let since = probes.iter().find(|(call, ..)| *call == probe.call).and_then(|probe| probe.3);
            since.is_some_and(|since| *now - since >= time)
        };
        let ((permit, _), given_back) = services.admit_probe(*id, user, *now, out, late);
        self.probes.retain(|(call, ..)| Some(*call) != given_back);
        let Ok(permit) = permit else { return false };
        assert!(permit.is_probe());
        let call = Key::from_u64(self.next);
        self.next += 1;
        self.services.begin_probe(self.id, Probe { call, user, permit });
        self.probes.push((call, user, permit, (!is_whole).then_some(self.now)));
        true
    }

    fn end(&mut self, at: usize, outcome: BreakerOutcome) {
        let (_, _, permit, _) = self.probes.remove(at);
        self.services.get(self.id).unwrap().gate.record(permit, outcome, self.now);
    }

    fn asks(&mut self, user: Principal, times: usize, is_whole: bool) -> usize {
        (0..times).filter(|_| self.ask(user, is_whole)).count()
    }
}

#[test]
fn a_user_leaves_one_probe_for_others_and_takes_all_while_it_is_alone() {
    assert_eq!(Trial::new(3, 1).asks(uid(7), 5, true), 3);
    let mut trial = Trial::new(3, 2);
    assert_eq!((trial.asks(uid(7), 5, true), trial.asks(uid(8), 5, true)), (2, 1));
    trial.end(0, BreakerOutcome::Success);
    assert_eq!(trial.asks(uid(7), 5, true), 0, "one succeeded, one is 8's, and one is its own");
    trial.end(0, BreakerOutcome::Ignored);
    assert!(trial.ask(uid(7), true));
}

#[test]
fn the_only_probe_is_claimed_by_the_user_that_was_rejected() {
    let mut trial = Trial::new(1, 2);
    assert!(trial.ask(uid(7), true) && !trial.ask(uid(8), true));
    trial.end(0, BreakerOutcome::Ignored);
    assert!(!trial.ask(uid(7), true) && trial.ask(uid(8), true));
    trial.end(0, BreakerOutcome::Ignored);
    assert!(trial.ask(uid(7), true), "8 has had its turn");
    assert!(!trial.ask(uid(8), true));
    trial.end(0, BreakerOutcome::Ignored);
    trial.now += 1000 * MS;
    assert!(trial.ask(uid(7), true), "the claim has ended");
}

#[test]
fn a_probe_whose_body_does_not_come_is_given_back() {
    for users in [1, 2] {
        let mut trial = Trial::new(1, users);
        assert!(trial.ask(uid(7), false));
        trial.now += 99 * MS;
        assert!(!trial.ask(uid(7), true) && (users == 1 || !trial.ask(uid(8), true)));
        trial.now += MS;
        assert!(trial.ask(uid(6 + users), true), "{users}");
        assert_eq!((trial.probes.len(), trial.services.get(trial.id).unwrap().gate.trial()), (1, (1, 0)));
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(Principal),
    Disconnect(Principal),
    Begin(Principal, bool),
    End(usize),
    /// The body of the request at this index is whole.
    Completes(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let user = (0u32..4).prop_map(uid);
    prop_oneof![
        1 => user.clone().prop_map(Step::Connect),
        1 => user.clone().prop_map(Step::Disconnect),
        8 => (user, any::<bool>()).prop_map(|(user, is_whole)| Step::Begin(user, is_whole)),
        4 => (0usize..64).prop_map(Step::End),
        1 => (0usize..64).prop_map(Step::Completes),
        1 => (0..150 * MS).prop_map(Step::Pass),
    ]
}

/// An outstanding call of the model.
#[derive(Clone, Copy, Debug)]
struct Known {
    key: Key,
    user: Principal,
    offer: OfferId,
    /// Since when its body is missing.
    owes_since: Option<u64>,
}

#[derive(Default)]
struct Model {
    calls: Vec<Known>,
    connections: [Vec<UserIndex>; 4],
    now: u64,
    next: u64,
}

impl Model {
    fn held(&self, user: Principal) -> usize {
        self.calls.iter().filter(|call| call.user == user).count()
    }

    fn connected(&self) -> usize {
        self.connections.iter().filter(|connections| !connections.is_empty()).count()
    }

    fn end(&mut self, services: &mut Services, at: usize) -> Known {
        let call = self.calls.swap_remove(at);
        services.end(call.offer, call.user);
        services.users.end_call(self.connections[call.user.uid() as usize][0]);
        call
    }

    /// A request of `user`: its place, and whether another call yielded it.
    fn begin(
        &mut self,
        services: &mut Services,
        id: ServiceId,
        user: Principal,
        is_whole: bool,
    ) -> Option<Option<Known>> {
        let now = self.now;
        let (offer, yielded) = match services.choose(id, user, now, |_| true) {
            Ok(offer) => (offer, None),
            Err(_) => {
                let body = |key, time| match self.calls.iter().find(|call| call.key == key).map(|call| call.owes_since)
                {
                    None | Some(None) => Body::Whole,
                    Some(Some(since)) if now - since < time => Body::Coming,
                    Some(Some(_)) => Body::Late,
                };
                let Some((offer, call)) = services.yields(id, user, now, |_| true, body) else {
                    services.refuse(id, user, now);
                    return None;
                };
                let at = self.calls.iter().position(|known| known.key == call).expect("it is outstanding");
                (offer, Some(self.end(services, at)))
            }
        };
        let key = Key::from_u64(self.next);
        self.next += 1;
        services.users.begin_call(self.connections[user.uid() as usize][0]).expect("there are few");
        services.begin(offer, user);
        let owes_since = (!is_whole).then_some(now);
        if !is_whole {
            services.note_incomplete(offer, user, key, |key| self.calls.iter().any(|call| call.key == key));
        }
        self.calls.push(Known { key, user, offer, owes_since });
        Some(yielded)
    }
}

proptest! {
    /// Whatever the users do: no user beyond its share gets a place, one below its share is refused only if none is
    /// free or claimed, a sole user gets all places, and the books are balanced at the end.
    #[test]
    fn places_are_shared(most in 1u32..30, percent in 50u32..=99, steps in prop::collection::vec(step(), 0..400)) {
        let mut services = services(10);
        services.adopt(ShareLimits::of_all(10, 100), ShareLimits::of_one(1000, percent));
        let id = services.intern(&name("s"), Some(uid(7))).unwrap();
        services.serve(id, 1, 0, most);
        let (mut model, most) = (Model::default(), most as usize);
        for step in steps {
            match step {
                Step::Connect(user) => {
                    let index = services.users.connect(user, model.now);
                    model.connections[user.uid() as usize].push(index);
                }
                Step::Disconnect(user) if model.connections[user.uid() as usize].len() == 1 => {
                    while let Some(at) = model.calls.iter().position(|call| call.user == user) {
                        model.end(&mut services, at);
                    }
                    services.users.disconnect(model.connections[user.uid() as usize].pop().unwrap());
                }
                Step::Begin(user, is_whole) if !model.connections[user.uid() as usize].is_empty() => {
                    let (held, all) = (model.held(user), model.calls.len());
                    let is_sole = model.connected() == 1;
                    let share = ((most - (all - held)) * percent as usize).div_ceil(100);
                    // Its share if another user's place becomes free.
                    let next = ((most - (all - held).saturating_sub(1)) * percent as usize).div_ceil(100);
                    let others: Vec<Known> = model.calls.iter().copied().filter(|call| call.user != user).collect();
                    match model.begin(&mut services, id, user, is_whole) {
                        Some(None) => prop_assert!(all < most && (is_sole || held < share)),
                        Some(Some(yielded)) => {
                            prop_assert!(!is_sole && yielded.user != user && held < next, "{yielded:?}");
                            prop_assert!(yielded.owes_since.is_some_and(|at| model.now - at >= 100 * MS));
                        }
                        None if is_sole => prop_assert_eq!(all, most),
                        // Few calls are looked at; with these, all are.
                        None if held < next && others.len() <= 16 => {
                            let is_late = |call: &Known| call.owes_since.is_some_and(|at| model.now - at >= 100 * MS);
                            prop_assert!(!others.iter().any(is_late));
                            prop_assert!(all == most || most > 1 && all + 1 == most || held >= share);
                        }
                        None => {}
                    }
                    prop_assert!(model.calls.len() <= most);
                }
                Step::End(at) if !model.calls.is_empty() => {
                    let at = at % model.calls.len();
                    model.end(&mut services, at);
                }
                Step::Completes(at) if !model.calls.is_empty() => {
                    let at = at % model.calls.len();
                    model.calls[at].owes_since = None;
                }
                Step::Pass(time) => model.now += time,
                _ => {}
            }
            let users: usize = services.users.calls().map(|user| user.held).sum();
            prop_assert_eq!(users, model.calls.len());
            prop_assert_eq!(services.outstanding(services.get(id).unwrap()) as usize, model.calls.len());
            prop_assert_eq!(services.users.sharing().users, model.connected());
        }
        while !model.calls.is_empty() {
            model.end(&mut services, 0);
        }
        for index in model.connections.into_iter().flatten() {
            services.users.disconnect(index);
        }
        prop_assert_eq!((services.users.calls().count(), services.users.sharing().users), (0, 0));
        services.unserve(id, 1);
        prop_assert_eq!(services.get(id).unwrap().responders(), 0);
    }
}
