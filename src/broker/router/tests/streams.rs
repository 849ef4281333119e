//! The time of a stream: to its first chunk and between chunks, unless its requester asks for a total.

use super::*;

const STREAM: Flags = Flags::WHOLE.with(Flags::STREAM);

/// A stream under way, with the default time limit of 100 ms.
struct Scene {
    router: Router,
    requester: Peer,
    responder: Peer,
    call: u64,
}

impl Scene {
    /// `nanos`: the total that the requester asks for, or 0.
    fn asked(nanos: u64) -> Scene {
        let mut router = Router::new(|config| {
            config.limits.stream_first_chunk_ms = 100;
            config.limits.stream_idle_ms = 100;
        });
        let (mut requester, mut responder) = (router.connect(), router.connect());
        router.serve(&responder, "s", 0);
        let arg = router.service(&requester, "s");
        let request = Header { flags: STREAM, id2: 1, arg, nanos, total: 1, ..Header::new(Kind::Request) };
        assert!(requester.push(true, request, b"?"));
        router.run();
        let came = responder.take_all(&mut router);
        let (header, _) = came.iter().find(|(header, _)| header.kind == Kind::RoutedRequest).expect("a call");
        assert_eq!(header.nanos, nanos, "the time of the whole call, if there is one");
        Scene { call: header.seq, router, requester, responder }
    }

    fn chunk(&mut self, flags: Flags) {
        let chunk = Header { flags, seq: self.call, total: 1, ..Header::new(Kind::Response) };
        assert!(self.responder.push(true, chunk, b"!"));
        self.router.run();
    }

    /// What the requester has got since this was last asked.
    fn got(&mut self) -> Vec<Kind> {
        kinds(&self.requester.take_all(&mut self.router))
    }

    fn failures(&self) -> u32 {
        self.router.state.breakers()[0].failures
    }
}

#[test]
fn a_stream_goes_on_for_as_long_as_its_chunks_come_in_time() {
    let mut scene = Scene::asked(0);
    for _ in 0..50 {
        scene.router.pass(90);
        scene.chunk(Flags::WHOLE);
        assert_eq!(scene.got(), [Kind::RoutedResponse]);
    }
    scene.router.pass(90);
    scene.chunk(Flags::WHOLE.with(Flags::END));
    assert_eq!((scene.got(), scene.failures()), (vec![Kind::RoutedResponse], 0));
}

#[test]
fn a_stream_that_stalls_ends_after_the_idle_time_and_is_a_failure() {
    for chunks in [0, 3] {
        let mut scene = Scene::asked(0);
        for _ in 0..chunks {
            scene.router.pass(90);
            scene.chunk(Flags::WHOLE);
            assert_eq!(scene.got(), [Kind::RoutedResponse]);
        }
        scene.router.pass(99);
        assert_eq!(scene.got(), [], "after {chunks} chunks");
        scene.router.pass(2);
        assert_eq!((scene.got(), scene.failures()), (vec![Kind::Failed], 1), "after {chunks} chunks");
    }
}

#[test]
fn a_total_that_was_asked_for_ends_a_stream_whose_chunks_come() {
    let mut scene = Scene::asked(250_000_000);
    for _ in 0..2 {
        scene.router.pass(90);
        scene.chunk(Flags::WHOLE);
        assert_eq!(scene.got(), [Kind::RoutedResponse]);
    }
    scene.router.pass(71);
    assert_eq!(scene.got(), [Kind::Failed]);
}
