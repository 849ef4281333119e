//! What requests of one user take from those of another: places of a responder, probes of a breaker.

use super::*;
use crate::wire::control::BreakerState;

const MS: u64 = 1_000_000;
const TEN_MINUTES: u64 = 600_000_000_000;

/// A responder, a requester of its user, and one of another user.
struct Scene {
    router: Router,
    responder: Peer,
    own: Peer,
    other: Peer,
    /// The service, by the number of each requester.
    services: [u32; 2],
    sent: u32,
}

impl Scene {
    fn new(places: u32, change: impl FnOnce(&mut Config)) -> Scene {
        let mut router = Router::new(|config| {
            config.circuit_breaker.failure_threshold = 1;
            config.circuit_breaker.timeout_secs = 1;
            change(config);
        });
        let (responder, own, other) = (router.connect(), router.connect(), router.connect_as(OTHER));
        router.serve(&responder, "s", places);
        let services = [router.service(&own, "s"), router.service(&other, "s")];
        Scene { router, responder, own, other, services, sent: 0 }
    }

    /// A request of the other user, or its first part of two.
    fn other_asks(&mut self, slot: u32, is_whole: bool) {
        self.sent += 1;
        let total = if is_whole { 1000 } else { 2000 };
        let (arg, nanos, flags) = (self.services[1], TEN_MINUTES, Flags::FIRST.with_if(Flags::LAST, is_whole));
        let part = Header { flags, id: slot, id2: self.sent, arg, nanos, total, ..Header::new(Kind::Request) };
        assert!(self.other.push(true, part, &[1; 1000]));
        self.router.run();
    }

    /// A whole request of the responder's own user: how it failed, or `None` if it has reached the responder.
    fn own_asks(&mut self, slot: u32) -> Option<Outcome> {
        self.sent += 1;
        assert!(self.own.request(slot, self.sent, self.services[0], b"?"));
        self.router.run();
        failures(&self.own.take_all(&mut self.router)).pop()
    }

    /// The calls that have come to the responder since it was last asked.
    fn calls(&mut self) -> Vec<u64> {
        let came = self.responder.take_all(&mut self.router);
        came.iter().filter(|(h, _)| h.kind == Kind::RoutedRequest).map(|(h, _)| h.seq).collect()
    }

    fn answer(&mut self, call: u64, flags: Flags) {
        let flags = Flags::WHOLE.with(Flags::END).with(flags);
        assert!(self.responder.push(true, Header { flags, seq: call, total: 1, ..Header::new(Kind::Response) }, b"!"));
        self.router.run();
    }

    fn other_failed(&mut self) -> Vec<Outcome> {
        failures(&self.other.take_all(&mut self.router))
    }

    fn state(&self) -> BreakerState {
        self.router.state.breakers()[0].state
    }

    /// The breaker has failed, and its time is over.
    fn open(&mut self) {
        assert_eq!(self.own_asks(0), None);
        let call = self.calls()[0];
        self.answer(call, Flags::ERROR.with(Flags::FAILURE));
        assert_eq!(self.state(), BreakerState::Open);
        self.own.take_all(&mut self.router);
        self.router.pass(1000);
    }
}

fn failures(taken: &[(Header, Vec<u8>)]) -> Vec<Outcome> {
    let codes = taken.iter().filter(|(header, _)| header.kind == Kind::Failed).map(|(header, _)| header.code);
    codes.map(|code| Outcome::from_u16(code).expect("an outcome")).collect()
}

#[test]
fn a_user_leaves_the_other_its_part_of_the_places() {
    let mut scene = Scene::new(20, |_| {});
    (0..20).for_each(|slot| scene.other_asks(slot, true));
    assert_eq!(scene.other_failed(), [Outcome::Overloaded; 2]);
    assert_eq!([scene.own_asks(0), scene.own_asks(1)], [None; 2]);
    assert_eq!(scene.own_asks(2), Some(Outcome::Overloaded), "its part of the two is two");
    let held = scene.router.state.calls.services().users.calls();
    let held: Vec<_> = held.map(|holding| (holding.user.uid(), holding.held)).collect();
    assert_eq!(held, [(own_uid(), 2), (OTHER, 18)]);
}

#[test]
fn a_user_that_is_alone_takes_all_places_and_keeps_its_incomplete_requests() {
    let mut scene = Scene::new(2, |_| {});
    let uid = scene.router.state.ports.ingress(scene.own.key).unwrap().info.peer.uid;
    let (other, service) = (scene.router.connect(), scene.services[1]);
    let gone = std::mem::replace(&mut scene.other, other);
    scene.router.state.client_ended(gone.key, gone.id);
    scene.router.run();
    assert_eq!(scene.router.service(&scene.other, "s"), service);
    assert_eq!(scene.router.state.ports.ingress(scene.other.key).unwrap().info.peer.uid, uid);
    (0..2).for_each(|slot| scene.other_asks(slot, false));
    scene.router.pass(5000);
    assert_eq!(scene.own_asks(0), Some(Outcome::Overloaded));
    assert_eq!(scene.other_failed(), []);
}

#[test]
fn a_late_request_yields_the_only_place_and_one_that_is_begun_anew_does_at_once() {
    let mut scene = Scene::new(1, |_| {});
    // What is left of its time, each time that it fails by its body.
    let mut waited = Vec::new();
    for slot in 0..8 {
        scene.other_asks(slot, false);
        let begun = scene.router.state.ports.now;
        while scene.own_asks(0) == Some(Outcome::Overloaded) {
            assert_eq!(scene.other_failed(), []);
            scene.router.pass(1);
        }
        waited.push((scene.router.state.ports.now - begun) / MS);
        assert_eq!(scene.other_failed(), [Outcome::Overloaded]);
        let calls = scene.calls();
        scene.answer(*calls.last().unwrap(), Flags::default());
        scene.own.take_all(&mut scene.router);
    }
    assert_eq!(waited, [100, 50, 25, 13, 7, 4, 2, 0]);
    // A request that is whole keeps its place.
    scene.other_asks(9, true);
    scene.router.pass(5000);
    assert_eq!(scene.own_asks(0), Some(Outcome::Overloaded));
    assert_eq!(scene.router.state.breakers()[0].failures, 0, "none of it counts at the breaker");
}

#[test]
fn a_client_that_cancels_before_it_is_late_holds_no_place_either() {
    let mut scene = Scene::new(1, |_| {});
    for slot in 0..7 {
        scene.other_asks(slot, false);
        let cancel = Header { id: slot, id2: scene.sent, ..Header::new(Kind::Cancel) };
        assert!(scene.other.push(true, cancel, b""));
        scene.router.run();
    }
    scene.other_asks(7, false);
    assert_eq!(scene.own_asks(0), None);
}

#[test]
fn a_body_that_trickles_is_late_and_one_that_comes_in_time_is_not() {
    for (part, is_late) in [(1, true), (20, false)] {
        let mut scene = Scene::new(1, |_| {});
        let total = 1_000_000;
        let (arg, nanos) = (scene.services[1], TEN_MINUTES);
        let mut header = Header { flags: Flags::FIRST, id2: 1, arg, nanos, total, ..Header::new(Kind::Request) };
        let mut calls = Vec::new();
        for _ in 0..4 {
            for _ in 0..part {
                assert!(scene.other.push(true, header, &[1; 1000]));
                header.flags = Flags::default();
                scene.router.run();
            }
            calls.extend(scene.calls());
            // What the responder takes, it grants again.
            let arg = part * crate::shm::layout::cells_for(1000);
            let credit = Header { seq: calls[0], arg, ..Header::new(Kind::BodyCredit) };
            assert!(scene.responder.push(true, credit, b""));
            scene.router.run();
            scene.router.pass(90);
        }
        assert_eq!(scene.own_asks(0).is_none(), is_late, "{part} KB in 90 ms");
    }
}

#[test]
fn probes_whose_bodies_do_not_come_keep_no_breaker_half_open() {
    for probes in [1, 3] {
        let mut scene = Scene::new(0, |config| {
            config.circuit_breaker.half_open_max_requests = probes;
            config.circuit_breaker.success_threshold = 1;
        });
        scene.open();
        (0..3).for_each(|slot| scene.other_asks(slot, false));
        assert_eq!(scene.state(), BreakerState::HalfOpen);
        if probes == 1 {
            assert_eq!(scene.own_asks(0), Some(Outcome::BreakerOpen));
            scene.router.pass(100);
        }
        scene.calls();
        assert_eq!(scene.own_asks(0), None, "{probes}");
        let call = *scene.calls().last().unwrap();
        scene.answer(call, Flags::default());
        assert_eq!(scene.state(), BreakerState::Closed);
        // The half requests of those that were probes are outstanding yet.
        assert_eq!(scene.router.state.calls.outstanding(), probes.min(2) as usize);
    }
}

#[test]
fn a_probe_whose_requester_takes_no_reply_is_given_back_without_an_outcome() {
    let mut scene = Scene::new(0, |config| config.circuit_breaker.half_open_max_requests = 1);
    scene.open();
    scene.other_asks(0, true);
    let call = *scene.calls().last().unwrap();
    let header = |flags| Header { flags, seq: call, total: 100_000, ..Header::new(Kind::Response) };
    let (mut flags, mut sent) = (Flags::FIRST.with(Flags::END), 0);
    while scene.router.state.calls.outstanding_calls().any(|(_, call)| call.may_be_answered(9)) {
        assert!(scene.responder.push(true, header(flags), &[1; 1000]));
        scene.router.run();
        (flags, sent) = (Flags::END, sent + 1);
    }
    assert!(sent > 10);
    assert_eq!(scene.own_asks(0), Some(Outcome::BreakerOpen));
    scene.router.pass(100);
    assert_eq!(scene.own_asks(0), None);
    let cancel = Header { id: 0, id2: 2, ..Header::new(Kind::Cancel) };
    assert!(scene.other.push(true, cancel, b""));
    scene.router.run();
    assert_eq!((scene.state(), scene.router.state.breakers()[0].probes), (BreakerState::HalfOpen, 1));
}

#[test]
fn a_responder_that_serves_again_is_called_by_the_number_of_its_last_offer() {
    let mut scene = Scene::new(1, |_| {});
    scene.other_asks(0, true);
    let before = scene.calls();
    // The first offer has the number 0; the second one begins before its last call has ended.
    let responder = &scene.responder;
    scene.router.handle_request(responder, ClientFrame::Unserve { serial: 1, service: 0 });
    scene.router.serve(responder, "s", 2);
    assert_eq!(scene.own_asks(0), None);
    let came = scene.responder.take_all(&mut scene.router);
    let (header, _) = came.iter().find(|(header, _)| header.kind == Kind::RoutedRequest).expect("a call");
    assert_eq!(header.id, 1);
    scene.answer(before[0], Flags::default());
    assert_eq!(kinds(&scene.other.take_all(&mut scene.router)), [Kind::RoutedResponse]);
}
