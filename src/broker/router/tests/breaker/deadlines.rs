//! Which deadlines count: those that gave the service as long as it usually takes.

use super::*;

impl Scene {
    /// Sends a request with a deadline of its own, which passes without a reply.
    fn ask_in_vain(&mut self, flags: Flags, ms: u64) {
        self.sent += 1;
        let (id2, arg, nanos) = (self.sent, self.service, ms * 1_000_000);
        let request = Header { flags, id2, arg, nanos, total: 1, ..Header::new(Kind::Request) };
        assert!(self.requester.push(true, request, b"?"));
        self.router.run();
        self.responder.take_all(&mut self.router);
        self.router.pass(ms + 1);
        let failed = self.requester.take_all(&mut self.router);
        assert_eq!(failed[0].0.code, Outcome::DeadlineExceeded as u16);
    }
}

#[test]
fn a_deadline_shorter_than_the_usual_time_of_the_service_counts_for_nothing() {
    let mut scene = Scene::new();
    for _ in 0..5 {
        scene.ask_in_vain(Flags::WHOLE, 1);
    }
    assert_eq!(scene.breaker().failures, 0, "it has not replied yet");
    for _ in 0..3 {
        scene.ask(0);
        let call = scene.call().unwrap();
        scene.router.pass(20);
        scene.answer(call, END);
        scene.requester.take_all(&mut scene.router);
    }
    for flags in [Flags::WHOLE, Flags::WHOLE.with(Flags::STREAM)] {
        for _ in 0..5 {
            scene.ask_in_vain(flags, 1);
        }
    }
    assert_eq!((scene.breaker().failures, scene.breaker().state), (0, BreakerState::Closed));
    // It hangs: what it was given would have done before.
    for _ in 0..5 {
        scene.ask_in_vain(Flags::WHOLE, 20);
    }
    assert_eq!(scene.changes(), [(BreakerState::Closed, BreakerState::Open, "deadline_exceeded")]);
}

#[test]
fn a_deadline_is_measured_from_when_the_request_is_whole() {
    let mut scene = Scene::with(|config| config.circuit_breaker.failure_threshold = 1);
    let part = |flags, len: usize| {
        let header = Header { flags, id2: 1, arg: 0, total: 2000, nanos: 1_000_000_000, ..Header::new(Kind::Request) };
        (header, vec![1; len])
    };
    let (mut first, body) = part(Flags::FIRST, 1000);
    first.arg = scene.service;
    assert!(scene.requester.push(true, first, &body));
    scene.router.run();
    scene.router.pass(999);
    let (last, body) = part(Flags::LAST, 1000);
    assert!(scene.requester.push(true, last, &body));
    scene.router.run();
    scene.router.pass(2);
    assert_eq!(scene.router.state.counters.failed[Outcome::DeadlineExceeded as usize - 1], 1);
    assert_eq!(scene.changes(), [], "a millisecond was left for the reply");
}

#[test]
fn a_total_that_passes_while_chunks_come_is_no_failure_of_the_stream() {
    let mut scene = Scene::with(|config| config.circuit_breaker.failure_threshold = 1);
    scene.sent += 1;
    let (flags, id2, arg) = (Flags::WHOLE.with(Flags::STREAM), scene.sent, scene.service);
    let request = Header { flags, id2, arg, nanos: 100_000_000, total: 1, ..Header::new(Kind::Request) };
    assert!(scene.requester.push(true, request, b"?"));
    scene.router.run();
    let call = scene.call().unwrap();
    for _ in 0..9 {
        scene.router.pass(11);
        scene.answer(call, flags);
    }
    scene.router.pass(2);
    assert_eq!(scene.router.state.counters.failed[Outcome::DeadlineExceeded as usize - 1], 1);
    assert_eq!(scene.changes(), []);
}
