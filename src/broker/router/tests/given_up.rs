//! Calls that their responder gives up: by an error that needs no credit, and may break off a message under way.

use super::*;
use crate::wire::control::{BreakerState, BreakerStatus};

const ERROR: Flags = Flags::END.with(Flags::ERROR).with(Flags::FAILURE);

struct Scene {
    router: Router,
    requester: Peer,
    responder: Peer,
    service: u32,
    credit: u32,
}

impl Scene {
    fn new() -> Scene {
        let mut router = Router::new(|config| config.delivery.stream_credit_bytes = 8192);
        let (requester, responder) = (router.connect(), router.connect());
        router.serve(&responder, "s", 0);
        let service = router.service(&requester, "s");
        let credit = router.state.ports.settings.stream_credit;
        Scene { router, requester, responder, service, credit }
    }

    /// Asks, and answers the number of the call.
    fn call(&mut self, slot: u32) -> u64 {
        assert!(self.requester.request(slot, slot + 1, self.service, b"?"));
        self.router.run();
        let came = self.responder.take_all(&mut self.router);
        came.iter().find(|(header, _)| header.kind == Kind::RoutedRequest).expect("the call").0.seq
    }

    fn answer(&mut self, call: u64, total: u32, flags: Flags, payload: &[u8]) {
        let answer = Header { flags, seq: call, total, ..Header::new(Kind::Response) };
        assert!(self.responder.push(true, answer, payload));
        self.router.run();
    }

    /// What the requester got: flags and payloads.
    fn got(&mut self) -> Vec<(Flags, Vec<u8>)> {
        let got = self.requester.take_all(&mut self.router);
        got.into_iter().map(|(header, payload)| (header.flags, payload)).collect()
    }

    fn breaker(&self) -> BreakerStatus {
        self.router.state.breakers().into_iter().next().expect("the one service")
    }

    /// The responder has harmed nobody, and nothing is left.
    #[track_caller]
    fn at_rest(&mut self) {
        assert!(self.router.state.ports.ingress(self.responder.key).is_some(), "it keeps its connection");
        assert_eq!((self.router.state.calls.outstanding(), self.router.state.ports.counters.late), (0, 0));
        assert!(self.router.state.is_quiescent());
    }
}

#[test]
fn an_error_that_ends_the_call_breaks_off_the_message_under_way() {
    let mut scene = Scene::new();
    let call = scene.call(0);
    scene.answer(call, 3, Flags::WHOLE, b"abc");
    scene.answer(call, 2000, Flags::FIRST, &[1; 1000]);
    scene.answer(call, 5, Flags::WHOLE.with(ERROR), b"no go");
    let shown = Flags::END.with(Flags::ERROR).with(Flags::WHOLE);
    let expected = [(Flags::WHOLE, b"abc".to_vec()), (Flags::FIRST, vec![1; 1000]), (shown, b"no go".to_vec())];
    assert_eq!(scene.got(), expected);
    scene.at_rest();
    // One of several records, too; and one error another.
    let call = scene.call(1);
    scene.answer(call, 2000, Flags::FIRST, &[1; 1000]);
    scene.answer(call, 1001, Flags::FIRST.with(ERROR), &[2; 1000]);
    scene.answer(call, 1030, Flags::FIRST.with(ERROR), &[3; 1000]);
    scene.answer(call, 1030, Flags::LAST.with(ERROR), &[4; 30]);
    assert_eq!(scene.got().last().map(|(_, payload)| payload.len()), Some(30));
    scene.at_rest();
}

#[test]
fn a_message_that_is_no_such_error_breaks_nothing_off() {
    for flags in [Flags::default(), Flags::END, Flags::ERROR, Flags::END.with(Flags::STREAM)] {
        let mut scene = Scene::new();
        let call = scene.call(0);
        scene.answer(call, 2000, Flags::FIRST, &[1; 1000]);
        scene.answer(call, 5, Flags::WHOLE.with(flags), b"no go");
        assert!(scene.router.state.ports.ingress(scene.responder.key).is_none(), "{flags:?}");
    }
}

#[test]
fn an_error_of_one_cell_needs_no_credit_and_then_says_nothing_of_the_responder() {
    let mut scene = Scene::new();
    for slot in 0..10 {
        let call = scene.call(slot);
        for _ in 0..scene.credit {
            scene.answer(call, 0, Flags::WHOLE, &[]);
        }
        scene.answer(call, 64, Flags::WHOLE.with(ERROR), &[b'x'; 64]);
        assert_eq!(scene.got().len(), scene.credit as usize + 1);
        scene.at_rest();
        // A requester that takes nothing must not open the breaker for others.
        assert_eq!((scene.breaker().state, scene.breaker().failures), (BreakerState::Closed, 0));
    }
    let call = scene.call(10);
    scene.answer(call, 64, Flags::WHOLE.with(ERROR), &[b'x'; 64]);
    assert_eq!(scene.breaker().failures, 1);
    // No more than one cell, or everybody would send his answers so.
    let call = scene.call(11);
    for _ in 0..scene.credit {
        scene.answer(call, 0, Flags::WHOLE, &[]);
    }
    scene.answer(call, 65, Flags::WHOLE.with(ERROR), &[b'x'; 65]);
    assert!(scene.router.state.ports.ingress(scene.responder.key).is_none());
}
