//! What is sent again after a broker's death, and by what it is known.

use super::*;

impl Peer {
    fn resend(&mut self, topic: u32, seq: u64) -> bool {
        let flags = Flags::WHOLE.with(Flags::RESENT);
        self.push(false, Header { flags, id: topic, total: 4, seq, ..Header::new(Kind::Publish) }, b"back")
    }
}

#[test]
fn closed_lanes_take_nothing_up_until_they_open() {
    let mut router = Router::new(|_| {});
    router.state.ports.close_lanes(2_000_000_000);
    let (mut a, mut b) = (router.connect(), router.connect());
    let (topic, echo) = (router.topic(&a, "t"), router.service(&a, "echo"));
    assert!(a.resend(topic, 7) && a.resend(topic, 8));
    router.pass(1999);
    assert_eq!((router.state.ports.counters.published, router.state.ports.counters.parked), (0, 1));
    // Requests and questions go on as ever.
    assert!(a.request(0, 1, echo, b"hi"));
    router.run();
    assert_eq!(kinds(&a.take_all(&mut router)), [Kind::RoutedResponse]);
    let id = router.subscribe(&b, "t", DeliveryPolicy::Block, 0);
    assert_eq!(router.state.ports.counters.published, 0, "one subscription says nothing of the others");
    router.state.ports.open_lanes();
    router.run();
    let got: Vec<_> = b.take_all(&mut router).into_iter().filter(|(header, _)| header.kind == Kind::Deliver).collect();
    let got: Vec<_> = got.iter().map(|(header, _)| (header.id, header.seq, header.flags)).collect();
    let flags = Flags::WHOLE.with(Flags::RESENT);
    assert_eq!(got, [(id, 7, flags), (id, 8, flags)]);
    // From now on a message without a subscription is like any other.
    let lonely = router.topic(&a, "lonely");
    assert!(a.resend(lonely, 1));
    router.run();
    assert_eq!((router.state.ports.counters.unmatched, router.state.ports.counters.parked), (1, 1));
}

#[test]
fn a_message_that_comes_while_its_closed_lane_is_looked_at_is_not_routed() {
    for _ in 0..200 {
        let mut router = Router::new(|_| {});
        router.state.ports.close_lanes(2_000_000_000);
        let mut a = router.connect();
        let topic = router.topic(&a, "t");
        std::thread::scope(|scope| {
            let placing = scope.spawn(move || (1..=4).all(|seq| a.resend(topic, seq)));
            while !placing.is_finished() {
                router.state.ports.schedule.wake(0);
                router.run();
            }
            assert!(placing.join().unwrap());
        });
        assert_eq!(router.state.ports.counters.published, 0);
    }
}

#[test]
fn closed_lanes_open_at_the_end_of_the_grace_without_an_order() {
    let mut router = Router::new(|_| {});
    router.state.ports.close_lanes(2_000_000_000);
    let (mut a, mut gone) = (router.connect(), router.connect());
    let topics = [router.topic(&a, "t"), router.topic(&gone, "t")];
    assert!(a.resend(topics[0], 1) && gone.resend(topics[1], 1));
    router.run();
    // What it has published is routed all the same.
    router.state.client_ended(gone.key, gone.id);
    router.pass(1999);
    assert_eq!((router.state.ports.counters.published, router.state.ports.ingress(gone.key).is_some()), (0, true));
    router.pass(1);
    assert_eq!((router.state.ports.counters.published, router.state.ports.ingress(gone.key).is_some()), (2, false));
    assert_eq!((router.state.ports.counters.evicted, router.state.ports.lanes_open_at), (0, None));
}

#[test]
fn a_router_that_dies_leaves_the_lanes_closed() {
    let mut router = Router::new(|_| {});
    router.state.ports.close_lanes(2_000_000_000);
    let mut a = router.connect();
    let topic = router.topic(&a, "t");
    assert!(a.resend(topic, 1));
    router.run();
    router.state.recover();
    router.run();
    assert_eq!((router.state.ports.counters.published, router.state.is_quiescent()), (0, false));
    router.pass(2000);
    assert_eq!((router.state.ports.counters.published, router.state.is_quiescent()), (1, true));
}

#[test]
fn numbers_of_publishes_only_rise() {
    let mut router = Router::new(|_| {});
    let mut a = router.connect();
    let (one, two) = (router.topic(&a, "one"), router.topic(&a, "two"));
    for (topic, seq) in [(one, 5), (two, 1), (one, 9), (two, 2)] {
        assert!(a.resend(topic, seq));
    }
    router.pass(3000);
    assert_eq!(router.state.ports.counters.published, 4);
    assert!(a.resend(two, 2));
    router.run();
    let (_, close) = router.state.ended.pop().expect("it is ended");
    assert_eq!(close.reason, "publish has sequence number 2, the last one was 2");
}

#[test]
fn a_client_has_the_same_id_at_every_broker_but_not_twice_at_one() {
    let ids = |router: &mut Router, publisher: u64| {
        let geometry = router.state.ports.settings.geometry;
        let segment = Segment::create(geometry, Nonces::random().unwrap(), 0o600).unwrap();
        let (bells, _) = BrokerBells::new().unwrap();
        let peer = Credentials { pid: std::process::id(), uid: own_uid() };
        router
            .state
            .attach("peer".parse().unwrap(), publisher, (peer, uid(peer.uid)), segment.into(), bells.into())
            .unwrap()
    };
    let (mut one, mut two) = (Router::new(|_| {}), Router::new(|_| {}));
    let (key, id) = ids(&mut one, 0x1234_5678_9abc_def0);
    assert_eq!(ids(&mut two, 0x1234_5678_9abc_def0).1, id);
    assert_eq!(ids(&mut one, 0x1234_5678_9abc_def0).1, id + 1, "the next that is free");
    one.state.client_ended(key, id);
    one.run();
    assert_eq!(ids(&mut one, 0x1234_5678_9abc_def0).1, id + 2, "not so soon again");
    assert_eq!(ids(&mut one, 0).1, 1, "0 is the broker");
    assert!(ids(&mut one, 0xffff_ffff).1 <= 0x7fff_ffff);
}
