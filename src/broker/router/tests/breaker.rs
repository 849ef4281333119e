//! Breakers in the router: who is asked, when, and what counts.

mod deadlines;

use super::*;
use crate::broker::breaker::{Breakers, Order};
use crate::broker::telemetry::events::{BreakerChange, BreakerEvent, Queue};
use crate::wire::control::{BreakerOrder, BreakerState, BreakerStatus};
use std::time::Duration;

const END: Flags = Flags::WHOLE.with(Flags::END);
const ERROR: Flags = END.with(Flags::ERROR);
const FAILURE: Flags = ERROR.with(Flags::FAILURE);

/// A requester and a responder of the service `s`, whose breaker opens for a second at first.
struct Scene {
    router: Router,
    /// What the actor of the breakers hears.
    events: Queue<BreakerEvent>,
    /// And what it knows.
    breakers: Breakers,
    changed: Vec<BreakerChange>,
    requester: Peer,
    responder: Peer,
    service: u32,
    /// Counts generations of the requester's places.
    sent: u32,
}

impl Scene {
    fn new() -> Scene {
        Scene::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Scene {
        let mut router = Router::new(|config| {
            config.circuit_breaker.timeout_secs = 1;
            config.limits.default_request_timeout_ms = 100;
            change(config);
        });
        let (requester, responder) = (router.connect(), router.connect());
        router.serve(&responder, "s", 0);
        let service = router.service(&requester, "s");
        let (events, rules) = (router.state.ports.events.breakers(), router.state.ports.settings.breakers.clone());
        let (breakers, changed) = (Breakers::new(rules), Vec::new());
        Scene { router, events, breakers, changed, requester, responder, service, sent: 0 }
    }

    /// Sends a request in the place `slot`.
    fn ask(&mut self, slot: u32) {
        self.sent += 1;
        assert!(self.requester.request(slot, self.sent, self.service, b"?"));
        self.router.run();
    }

    /// The number of the call that has reached the responder, if one has.
    fn call(&mut self) -> Option<u64> {
        let came = self.responder.take_all(&mut self.router);
        let calls: Vec<u64> = came.iter().filter(|(h, _)| h.kind == Kind::RoutedRequest).map(|(h, _)| h.seq).collect();
        assert!(calls.len() <= 1, "{calls:?}");
        calls.first().copied()
    }

    fn answer(&mut self, call: u64, flags: Flags) {
        let answer = Header { flags, seq: call, total: 1, ..Header::new(Kind::Response) };
        assert!(self.responder.push(true, answer, b"!"));
        self.router.run();
    }

    /// A request that is answered so.
    fn round(&mut self, flags: Flags) {
        self.ask(0);
        let call = self.call().expect("it reaches the responder");
        self.answer(call, flags);
        assert_eq!(kinds(&self.requester.take_all(&mut self.router)), [Kind::RoutedResponse]);
    }

    fn open(&mut self) {
        for _ in 0..5 {
            self.round(FAILURE);
        }
        assert_eq!(self.breaker().state, BreakerState::Open);
    }

    /// A request that the breaker rejects: what its requester is told.
    fn rejected(&mut self, slot: u32) -> Header {
        self.ask(slot);
        assert_eq!(self.call(), None, "it costs the responder nothing");
        let failed = self.requester.take_all(&mut self.router);
        assert_eq!(kinds(&failed), [Kind::Failed]);
        assert_eq!(failed[0].0.code, Outcome::BreakerOpen as u16);
        failed[0].0
    }

    fn breaker(&self) -> BreakerStatus {
        self.router.state.breakers().remove(0)
    }

    /// Does what the actor of the breakers does when the router has told it something.
    fn take_up(&mut self) {
        while let Some(events) = self.events.pop() {
            match events {
                BreakerEvent::Gate(service, gate) => self.breakers.insert(service, gate),
                BreakerEvent::Changed(change) => self.changed.push(change),
            }
        }
    }

    fn set(&mut self, service: &str, order: BreakerOrder, time: Option<Duration>) -> Option<BreakerStatus> {
        self.take_up();
        let order = Order { service: &service.parse().unwrap(), order, time, by: 9 };
        let (status, changes) = self.breakers.execute(&order, self.router.state.ports.now)?;
        self.changed.extend(changes);
        Some(status)
    }

    /// The timer of the actor fires. Answers when it is to fire again.
    fn tick(&mut self) -> Option<Duration> {
        self.take_up();
        let (changes, next) = self.breakers.tick(self.router.state.ports.now);
        self.changed.extend(changes);
        next
    }

    /// Changes since this was last asked.
    fn changes(&mut self) -> Vec<(BreakerState, BreakerState, &'static str)> {
        self.take_up();
        let state = crate::broker::router::breaker_state;
        let as_text =
            |c: BreakerChange| (state(c.transition.from), state(c.transition.to), c.transition.reason.as_str());
        self.changed.drain(..).map(as_text).collect()
    }
}

#[test]
fn the_fifth_failure_opens_and_the_sixth_request_costs_the_responder_nothing() {
    let mut scene = Scene::new();
    for failures in 1..=4 {
        scene.round(FAILURE);
        assert_eq!((scene.breaker().failures, scene.breaker().state), (failures, BreakerState::Closed));
    }
    assert_eq!(scene.changes(), []);
    scene.round(FAILURE);
    assert_eq!(scene.changes(), [(BreakerState::Closed, BreakerState::Open, "error_reply")]);
    assert_eq!(scene.rejected(0).nanos, 1_000_000_000);
    scene.router.pass(400);
    assert_eq!(scene.rejected(0).nanos, 600_000_000);
    let breaker = scene.breaker();
    assert_eq!((breaker.opened, breaker.rejected, breaker.ends_in_ms), (1, 2, Some(600)));
}

#[test]
fn a_trial_lets_three_through_and_a_failed_one_doubles_the_wait() {
    let mut scene = Scene::new();
    scene.open();
    scene.router.pass(1000);
    let mut probes = Vec::new();
    for slot in 0..3 {
        scene.ask(slot);
        probes.push(scene.call().expect("a probe"));
    }
    scene.rejected(3);
    scene.answer(probes[0], FAILURE);
    assert_eq!(scene.breaker().ends_in_ms, Some(2000));
    // The rest of that trial comes late, and twice.
    for call in [probes[1], probes[1], probes[2], probes[0]] {
        scene.answer(call, END);
    }
    scene.requester.take_all(&mut scene.router);
    assert_eq!(scene.router.state.ports.counters.late, 2);
    assert_eq!(scene.breaker().state, BreakerState::Open);

    scene.router.pass(1999);
    scene.rejected(0);
    scene.router.pass(1);
    scene.round(END);
    assert_eq!((scene.breaker().probes, scene.breaker().successes), (1, 1));
    scene.round(END);
    let all: Vec<_> = scene.changes().into_iter().map(|(_, to, reason)| (to, reason)).collect();
    assert_eq!(
        all,
        [
            (BreakerState::Open, "error_reply"),
            (BreakerState::HalfOpen, "time_over"),
            (BreakerState::Open, "error_reply"),
            (BreakerState::HalfOpen, "time_over"),
            (BreakerState::Closed, "recovered"),
        ]
    );
}

#[test]
fn deadlines_and_lost_responders_count_and_error_replies_that_are_no_failure_do_not() {
    let mut scene = Scene::new();
    for _ in 0..4 {
        scene.ask(0);
        scene.router.pass(101);
    }
    let late = scene.responder.take_all(&mut scene.router)[0].0.seq;
    assert_eq!(scene.breaker().failures, 4);
    scene.answer(late, END);
    assert_eq!(
        (scene.breaker().failures, scene.router.state.ports.counters.late),
        (4, 1),
        "a late answer is no success"
    );
    scene.requester.take_all(&mut scene.router);
    scene.round(ERROR);
    assert_eq!(scene.breaker().failures, 0);
    for slot in 0..5 {
        scene.ask(slot);
    }
    scene.router.state.client_ended(scene.responder.key, scene.responder.id);
    scene.router.run();
    assert_eq!((scene.breaker().failures, scene.breaker().state), (1, BreakerState::Closed));
    assert_eq!(scene.changes(), []);
}

#[test]
fn the_loss_of_one_of_three_responders_is_one_failure_and_the_other_two_serve_on() {
    let mut scene = Scene::new();
    let (mut second, third) = (scene.router.connect(), scene.router.connect());
    for slot in 0..5 {
        scene.ask(slot);
    }
    scene.router.serve(&second, "s", 0);
    scene.router.serve(&third, "s", 0);
    scene.router.state.client_ended(scene.responder.key, scene.responder.id);
    scene.router.run();
    let lost = scene.requester.take_all(&mut scene.router);
    assert_eq!(lost.iter().filter(|(h, _)| h.code == Outcome::ResponderLost as u16).count(), 5);
    assert_eq!((scene.breaker().failures, scene.breaker().state), (1, BreakerState::Closed));
    scene.responder = third;
    scene.ask(0);
    scene.ask(1);
    let calls = second.take_all(&mut scene.router);
    assert_eq!(kinds(&calls), [Kind::RoutedRequest]);
    let answer = Header { flags: END, seq: calls[0].0.seq, total: 1, ..Header::new(Kind::Response) };
    assert!(second.push(true, answer, b"!"));
    let call = scene.call().expect("the third has the other call");
    scene.answer(call, END);
    assert_eq!(kinds(&scene.requester.take_all(&mut scene.router)), [Kind::RoutedResponse, Kind::RoutedResponse]);
    assert_eq!(scene.breaker().failures, 0);
}

#[test]
fn a_responder_that_dies_of_each_request_opens_the_breaker_after_as_many_deaths_as_the_threshold() {
    let mut scene = Scene::new();
    for deaths in 1..=5 {
        assert_eq!(scene.breaker().state, BreakerState::Closed);
        scene.ask(0);
        scene.ask(1);
        scene.router.state.client_ended(scene.responder.key, scene.responder.id);
        scene.router.run();
        scene.requester.take_all(&mut scene.router);
        assert_eq!(scene.breaker().failures, if deaths < 5 { deaths } else { 0 });
        scene.responder = scene.router.connect();
        scene.router.serve(&scene.responder, "s", 0);
    }
    assert_eq!(scene.changes(), [(BreakerState::Closed, BreakerState::Open, "responder_lost")]);
}

#[test]
fn the_first_chunk_of_a_stream_is_the_success_of_a_probe() {
    let mut scene = Scene::with(|config| config.circuit_breaker.success_threshold = 1);
    scene.open();
    scene.router.pass(1000);
    scene.sent += 1;
    let flags = Flags::WHOLE.with(Flags::STREAM);
    let request = Header { flags, id2: scene.sent, arg: scene.service, total: 1, ..Header::new(Kind::Request) };
    assert!(scene.requester.push(true, request, b"?"));
    scene.router.run();
    let call = scene.call().expect("a probe");
    assert_eq!(scene.breaker().state, BreakerState::HalfOpen);
    scene.answer(call, Flags::WHOLE.with(Flags::STREAM));
    assert_eq!(scene.breaker().state, BreakerState::Closed, "the stream is under way still");
    scene.answer(call, FAILURE);
    assert_eq!((scene.breaker().state, scene.breaker().failures), (BreakerState::Closed, 0));
}

#[test]
fn what_the_requester_brings_about_itself_does_not_count() {
    let mut scene = Scene::with(|config| config.circuit_breaker.failure_threshold = 1);
    // It cancels.
    scene.ask(0);
    let cancel = Header { id: 0, id2: scene.sent, ..Header::new(Kind::Cancel) };
    assert!(scene.requester.push(true, cancel, b""));
    scene.router.run();
    // It stops in mid-request.
    let begun =
        Header { flags: Flags::FIRST, id: 1, id2: 1, arg: scene.service, total: 5000, ..Header::new(Kind::Request) };
    assert!(scene.requester.push(true, begun, &[1; 1000]));
    scene.router.run();
    scene.router.pass(101);
    assert_eq!(scene.router.state.ports.counters.failed[Outcome::Cancelled as usize - 1], 1);
    assert_eq!(scene.router.state.ports.counters.failed[Outcome::DeadlineExceeded as usize - 1], 1);
    // It takes nothing of its answer, so that the responder may send no more.
    scene.responder.take_all(&mut scene.router);
    scene.ask(2);
    let call = scene.call().unwrap();
    while scene.router.state.calls.outstanding_calls().any(|(_, call)| call.may_be_answered(9)) {
        let chunk = Header { flags: Flags::WHOLE, seq: call, total: 1000, ..Header::new(Kind::Response) };
        assert!(scene.responder.push(true, chunk, &[7; 1000]));
        scene.router.run();
        scene.requester.take_all(&mut scene.router);
    }
    scene.router.pass(101);
    assert_eq!(scene.router.state.ports.counters.failed[Outcome::DeadlineExceeded as usize - 1], 2);
    // It leaves.
    scene.ask(3);
    scene.router.state.client_ended(scene.requester.key, scene.requester.id);
    scene.router.run();
    assert_eq!((scene.breaker().failures, scene.changes()), (0, vec![]));
}

#[test]
fn a_stream_under_way_finishes_when_the_breaker_opens() {
    let mut scene = Scene::new();
    scene.ask(7);
    let stream = scene.call().unwrap();
    scene.open();
    scene.answer(stream, Flags::WHOLE);
    scene.answer(stream, END);
    let got = scene.requester.take_all(&mut scene.router);
    assert_eq!(kinds(&got), [Kind::RoutedResponse, Kind::RoutedResponse]);
    assert_eq!(scene.breaker().state, BreakerState::Open, "its success is of an earlier generation");
}

#[test]
fn a_probe_that_finds_nobody_makes_room_for_another() {
    let mut scene = Scene::new();
    scene.open();
    scene.router.state.client_ended(scene.responder.key, scene.responder.id);
    scene.router.pass(1000);
    for _ in 0..5 {
        scene.ask(0);
        let failed = scene.requester.take_all(&mut scene.router);
        assert_eq!(failed[0].0.code, Outcome::NoResponders as u16);
    }
    assert_eq!((scene.breaker().state, scene.breaker().probes), (BreakerState::HalfOpen, 0));
}

#[test]
fn a_service_that_everybody_has_left_comes_back_with_its_breaker() {
    let mut scene = Scene::new();
    scene.open();
    for peer in [&scene.responder, &scene.requester] {
        scene.router.state.client_ended(peer.key, peer.id);
    }
    scene.router.run();
    assert_eq!(scene.breaker().state, BreakerState::Open);
    (scene.requester, scene.responder) = (scene.router.connect(), scene.router.connect());
    scene.router.serve(&scene.responder, "s", 0);
    scene.service = scene.router.service(&scene.requester, "s");
    scene.rejected(0);
}

#[test]
fn services_have_their_own_settings() {
    let mut scene = Scene::with(|config| {
        let text = "[circuit_breaker.services.s]\nfailure_threshold = 2\nhalf_open_max_requests = 1\n\
                    success_threshold = 1\ntimeout_secs = 7\nmax_timeout_secs = 7\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let options = crate::config::Options { file: Some(file), ..Default::default() };
        *config = crate::config::load(&options, &crate::config::Env::default()).unwrap().config;
        config.limits.max_rings_without_progress = 1_000_000;
    });
    scene.round(FAILURE);
    scene.round(FAILURE);
    assert_eq!(scene.breaker().ends_in_ms, Some(7000));
    scene.router.pass(7000);
    scene.round(FAILURE);
    assert_eq!(scene.breaker().ends_in_ms, Some(7000), "no longer than max_timeout_secs");
    scene.router.pass(7000);
    scene.ask(0);
    let probe = scene.call().unwrap();
    scene.rejected(1);
    scene.answer(probe, END);
    assert_eq!(scene.breaker().state, BreakerState::Closed);
    let other = scene.router.connect();
    scene.router.serve(&other, "t", 0);
    let general = scene.router.state.breakers().into_iter().find(|b| b.service.as_str() == "t").unwrap();
    assert_eq!((general.failure_threshold, general.success_threshold, general.half_open_max_requests), (5, 2, 3));
}

#[test]
fn orders_are_obeyed_for_their_time_and_the_unknown_is_named() {
    let mut scene = Scene::new();
    let set = scene.set("s", BreakerOrder::Open, Some(Duration::from_millis(300))).unwrap();
    assert_eq!((set.state, set.ends_in_ms), (BreakerState::ForcedOpen, Some(300)));
    assert_eq!(scene.rejected(0).nanos, 300_000_000);
    scene.router.pass(100);
    assert_eq!(scene.tick(), Some(Duration::from_millis(200)));
    scene.router.pass(200);
    assert_eq!(scene.tick(), None);
    assert_eq!(
        scene.changes(),
        [
            (BreakerState::Closed, BreakerState::ForcedOpen, "manual"),
            (BreakerState::ForcedOpen, BreakerState::Closed, "time_over")
        ]
    );
    scene.set("s", BreakerOrder::Open, None).unwrap();
    assert_eq!(scene.rejected(0).nanos, 0, "nobody knows for how long");
    scene.set("s", BreakerOrder::Close, None).unwrap();
    for _ in 0..10 {
        scene.round(FAILURE);
    }
    assert_eq!(scene.set("s", BreakerOrder::Auto, None).unwrap().state, BreakerState::Closed);
    scene.open();

    assert_eq!(scene.set("t", BreakerOrder::Open, None), None, "no such service");
    scene.router.service(&scene.requester, "t");
    assert_eq!(scene.set("t", BreakerOrder::Open, None), None, "somebody asks for it, nobody serves it");
    assert!(scene.router.state.breakers().iter().all(|b| b.service.as_str() == "s"));
}

#[test]
fn a_service_that_is_forgotten_takes_no_order_and_one_with_an_order_is_not_forgotten() {
    let mut scene = Scene::new();
    let rules = scene.router.state.ports.settings.breakers.clone();
    scene.set("s", BreakerOrder::Open, None).unwrap();
    for peer in [&scene.responder, &scene.requester] {
        scene.router.state.client_ended(peer.key, peer.id);
    }
    scene.router.run();
    let named =
        |scene: &mut Scene| scene.router.state.calls.gates(rules.clone()).iter().any(|(name, _)| name.as_str() == "s");
    assert!(named(&mut scene), "somebody wanted it so");
    scene.set("s", BreakerOrder::Auto, None).unwrap();
    assert!(!named(&mut scene));
    assert_eq!(scene.set("s", BreakerOrder::Open, None), None);
}

#[test]
fn a_gate_has_the_rules_that_the_actor_has_before_its_first_request() {
    let mut scene = Scene::new();
    let mut book = (*scene.router.state.ports.settings.breakers).clone();
    book.general.failure_threshold = 1;
    scene.router.state.calls.gates(book.into());
    let responder = scene.router.connect();
    scene.router.serve(&responder, "later", 0);
    let of = |name: &str, scene: &Scene| {
        scene.router.state.breakers().into_iter().find(|b| b.service.as_str() == name).unwrap().failure_threshold
    };
    assert_eq!((of("later", &scene), of("s", &scene)), (1, 5));
}
