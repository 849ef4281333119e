//! What is counted of how long things take, with a clock that the test sets.

use super::*;

const US: u64 = 1_000;

/// A publisher, one that gets all of it, a requester and who answers it.
struct Scene {
    router: Router,
    publisher: Peer,
    subscriber: Peer,
    topic: u32,
}

fn scene() -> Scene {
    let mut router = Router::new(|_| {});
    let (publisher, subscriber) = (router.connect(), router.connect());
    let topic = router.topic(&publisher, "t");
    router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 0);
    Scene { router, publisher, subscriber, topic }
}

impl Scene {
    /// A visit that brings so many messages, before which the loop reads the clock if it is asked to, and which takes
    /// so long.
    fn visit(&mut self, messages: u32, took: u64) -> bool {
        (0..messages).for_each(|_| assert!(self.publisher.publish(self.topic, b"x")));
        let state = &mut self.router.state;
        let is_timed = state.timings.wants_clock();
        if is_timed {
            state.set_now(state.ports.now + 5_000 * US);
            state.timings.begins();
        }
        self.router.run();
        let state = &mut self.router.state;
        state.set_now(state.ports.now + took);
        self.subscriber.take_all(&mut self.router);
        is_timed
    }
}

#[test]
fn each_sixteenth_visit_is_timed_and_counts_for_all_its_messages() {
    let mut scene = scene();
    let timed: Vec<bool> = (0..33).map(|_| scene.visit(3, 2 * US)).collect();
    assert_eq!(timed.iter().filter(|timed| **timed).count(), 3, "{timed:?}");
    let metrics = scene.router.state.metrics();
    assert_eq!((metrics.in_broker.count(), metrics.in_broker.sum()), (9, 9 * 2 * US));
    assert_eq!((metrics.batches.count(), metrics.batches.sum()), (3, 9));
    assert_eq!(metrics.batches.counts()[2], 3, "three are more than two and not more than four");
    let latency = scene.router.state.latency().in_broker;
    assert_eq!(latency.count, 9);
    assert!((1_600..=3_200).contains(&latency.p50_ns) && latency.p99_ns <= 3_200, "{latency:?}");
}

#[test]
fn a_visit_that_killed_its_router_is_not_timed() {
    let mut scene = scene();
    scene.router.state.timings.begins();
    fault::armed::arm("router.found", 1);
    assert!(scene.publisher.publish(scene.topic, b"x"));
    scene.router.run();
    assert_eq!(scene.router.deaths, 1);
    scene.router.pass(1_000);
    assert_eq!(scene.subscriber.take_all(&mut scene.router).len(), 2, "the name, and the message");
    assert_eq!(scene.router.state.metrics().in_broker.count(), 0);
}

#[test]
fn calls_are_timed_by_service_to_their_first_chunk_and_to_their_end() {
    let mut router = Router::new(|_| {});
    let (mut requester, mut responder) = (router.connect(), router.connect());
    router.serve(&responder, "s", 0);
    let (service, echo) = (router.service(&requester, "s"), router.service(&requester, "echo"));
    let answer = |responder: &mut Peer, seq, flags, payload: &[u8]| {
        let header = Header { flags, seq, total: payload.len() as u32, ..Header::new(Kind::Response) };
        assert!(responder.push(true, header, payload));
    };
    let call = |responder: &mut Peer, router: &mut Router| {
        let came = responder.take_all(router);
        came.iter().find(|(header, _)| header.kind == Kind::RoutedRequest).expect("the call").0.seq
    };
    // A stream: chunks after 3 and 5 ms, its end after 9.
    let ask = Header { flags: Flags::WHOLE.with(Flags::STREAM), total: 1, arg: service, ..Header::new(Kind::Request) };
    assert!(requester.push(true, Header { id2: 1, ..ask }, b"?"));
    router.run();
    let seq = call(&mut responder, &mut router);
    for (after, flags) in [(3, Flags::WHOLE), (2, Flags::WHOLE), (4, Flags::WHOLE.with(Flags::END))] {
        router.pass(after);
        answer(&mut responder, seq, flags, b"!");
        router.run();
    }
    // A plain reply after 1 ms, one that is no stream; and a stream that is over with its first record.
    for (id2, flags) in [(2, Flags::WHOLE), (3, Flags::WHOLE.with(Flags::STREAM))] {
        assert!(requester.push(true, Header { id2, flags, ..ask }, b"?"));
        router.run();
        let seq = call(&mut responder, &mut router);
        router.pass(1);
        answer(&mut responder, seq, Flags::WHOLE.with(Flags::END), b"!");
        router.run();
    }
    // What ends otherwise is no reply, and the broker's own echo is no service of anybody's.
    requester.request(0, 4, service, b"?");
    requester.request(1, 5, echo, b"?");
    router.run();
    assert!(requester.push(true, Header { id2: 4, ..Header::new(Kind::Cancel) }, b""));
    router.run();
    let (key, id) = (responder.key, responder.id);
    router.survive(|state| state.client_ended(key, id));
    router.run();
    assert_eq!(router.state.ports.counters.failed.iter().sum::<u64>(), 1);

    let metrics = router.state.metrics();
    assert_eq!(metrics.services.len(), 1);
    let times = &metrics.services[0].times;
    assert_eq!((times.round_trip.count(), times.round_trip.sum()), (3, 11_000 * US));
    assert_eq!((times.first_chunk.count(), times.first_chunk.sum()), (1, 3_000 * US));
    // What is known of it outlasts the service.
    let (key, id) = (requester.key, requester.id);
    router.survive(|state| state.client_ended(key, id));
    router.run();
    let metrics = router.state.metrics();
    assert_eq!((metrics.services.len(), metrics.forgotten.round_trip.count()), (0, 3));
    assert_eq!(router.state.latency().round_trip.count, 3);
}

#[test]
fn fragments_and_drops_are_counted_for_what_they_are() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    let topic = router.topic(&publisher, "t");
    router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 0);
    router.subscribe(&subscriber, "t", DeliveryPolicy::DropNewest, 9);
    let part = |publisher: &mut Peer, flags, len: usize| {
        let header = Header { flags, id: topic, total: 1500, seq: 1, ..Header::new(Kind::Publish) };
        assert!(publisher.push(false, header, &vec![7; len]));
    };
    part(&mut publisher, Flags::FIRST, 1024);
    router.run();
    subscriber.take_all(&mut router);
    part(&mut publisher, Flags::LAST, 476);
    router.run();
    publisher.sequence = 1;
    subscriber.take_all(&mut router);
    // Nobody gives credit back: the second subscription has had all of its own.
    assert!(publisher.publish(topic, b"whole"));
    router.run();
    router.pass(101);
    let counters = &router.state.ports.counters;
    assert_eq!((counters.records, counters.fragments, counters.published), (3, 2, 2));
    assert_eq!((counters.dropped, counters.delivered), ([0, 1, 0], 3));
}
