//! Requests whose bodies do not come: they give their places back, and no breaker opens for it.

use super::*;

const TOTAL: u32 = 1_000_000;
const PART: u32 = 1000;

/// A request of [`TOTAL`] bytes and ten minutes, of which only the first part is sent, to a responder that takes one
/// call at a time.
struct Scene {
    router: Router,
    requester: Peer,
    responder: Peer,
    service: u32,
    call: u64,
}

impl Scene {
    fn begun() -> Scene {
        let mut router = Router::new(|config| {
            config.limits.request_body_idle_ms = 1000;
            config.circuit_breaker.failure_threshold = 1;
        });
        let (requester, responder) = (router.connect(), router.connect());
        router.serve(&responder, "s", 1);
        let service = router.service(&requester, "s");
        let mut scene = Scene { router, requester, responder, service, call: 0 };
        scene.part(Flags::FIRST);
        let came = scene.responder.take_all(&mut scene.router);
        scene.call = came.iter().find(|(header, _)| header.kind == Kind::RoutedRequest).expect("a call").0.seq;
        scene
    }

    fn part(&mut self, flags: Flags) {
        let (arg, nanos) = (self.service, 600_000_000_000);
        let part = Header { flags, id2: 1, arg, nanos, total: TOTAL, ..Header::new(Kind::Request) };
        assert!(self.requester.push(true, part, &[1; PART as usize]));
        self.router.run();
    }

    fn outstanding(&self) -> usize {
        self.router.state.calls.outstanding()
    }

    /// The request has failed, and that does not count at the breaker.
    fn is_over(&mut self) {
        let failed = self.requester.take_all(&mut self.router);
        let failed = failed.iter().find(|(header, _)| header.kind == Kind::Failed).expect("an outcome");
        assert_eq!(failed.0.code, Outcome::DeadlineExceeded as u16);
        assert_eq!(self.outstanding(), 0);
        assert_eq!(self.router.state.breakers()[0].failures, 0);
    }
}

#[test]
fn a_body_that_stops_coming_gives_its_place_back() {
    let mut scene = Scene::begun();
    let mut other = scene.router.connect();
    let service = scene.router.service(&other, "s");
    assert!(other.request(0, 1, service, b"?"));
    scene.router.run();
    assert_eq!(other.take_all(&mut scene.router)[0].0.code, Outcome::Overloaded as u16);
    scene.router.pass(999);
    assert_eq!(scene.outstanding(), 1);
    scene.router.pass(2);
    scene.is_over();
    assert!(other.request(0, 2, service, b"?"));
    scene.router.run();
    let came = kinds(&scene.responder.take_all(&mut scene.router));
    assert!(came.contains(&Kind::CallEnded) && came.contains(&Kind::RoutedRequest), "{came:?}");
    // Its late parts are ignored.
    scene.part(Flags::default());
    assert_eq!(scene.router.state.ports.counters.late, 1);
}

#[test]
fn a_body_that_comes_slowly_is_waited_for() {
    let mut scene = Scene::begun();
    for _ in 0..20 {
        scene.router.pass(900);
        scene.part(Flags::default());
        assert_eq!(scene.outstanding(), 1);
    }
    scene.router.pass(1001);
    scene.is_over();
}

#[test]
fn a_requester_without_credit_for_its_body_is_not_late() {
    let mut scene = Scene::begun();
    let cells = scene.router.state.ports.settings.geometry.base_cells();
    while scene.router.state.calls.outstanding_calls().any(|(_, call)| call.owes_body(cells)) {
        scene.part(Flags::default());
    }
    scene.router.pass(30_000);
    assert_eq!(scene.outstanding(), 1);
    scene.router.pass(500);
    let credit = Header { seq: scene.call, arg: cells, ..Header::new(Kind::BodyCredit) };
    assert!(scene.responder.push(true, credit, b""));
    scene.router.run();
    scene.router.pass(999);
    assert_eq!(scene.outstanding(), 1, "its time begins with the credit");
    scene.router.pass(2);
    scene.is_over();
}
