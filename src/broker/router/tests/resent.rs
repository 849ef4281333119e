//! What is sent again after a broker's death, and by what it is known.

use super::*;

impl Peer {
    fn resend(&mut self, topic: u32, seq: u64) -> bool {
        let flags = Flags::WHOLE.with(Flags::RESENT);
        self.push(false, Header { flags, id: topic, total: 4, seq, ..Header::new(Kind::Publish) }, b"back")
    }
}

#[test]
fn a_message_that_is_sent_again_waits_for_a_subscriber_within_the_grace_only() {
    let mut router = Router::new(|config| config.restart.restart_grace_ms = 2000);
    let (mut a, mut b) = (router.connect(), router.connect());
    let topic = router.topic(&a, "t");
    assert!(a.resend(topic, 7));
    router.run();
    assert_eq!((router.state.counters.published, router.state.counters.parked), (0, 1));
    router.subscribe(&b, "other", DeliveryPolicy::Block, 0);
    assert_eq!(router.state.counters.published, 0, "of no use to it");
    router.pass(1999);
    let id = router.subscribe(&b, "t", DeliveryPolicy::Block, 0);
    let deliver = loop {
        let (header, _) = b.take().expect("the message");
        if header.kind == Kind::Deliver {
            break header;
        }
    };
    assert_eq!((deliver.id, deliver.seq, deliver.flags), (id, 7, Flags::WHOLE.with(Flags::RESENT)));
    // Without a subscriber its time ends, and nobody is evicted for it.
    let lonely = router.topic(&a, "lonely");
    assert!(a.resend(lonely, 1));
    router.run();
    assert_eq!(router.state.counters.unmatched, 0);
    router.pass(1);
    assert_eq!((router.state.counters.unmatched, router.state.counters.evicted), (1, 0));
    assert!(a.resend(lonely, 2));
    router.run();
    assert_eq!(router.state.counters.unmatched, 2, "the grace is over");
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
    assert_eq!(router.state.counters.published, 4);
    assert!(a.resend(two, 2));
    router.run();
    let (_, doom) = router.state.ended.pop().expect("it is ended");
    assert_eq!(doom.reason, "publish has the number 2, where 2 came last");
}

#[test]
fn a_client_has_the_same_id_at_every_broker_but_not_twice_at_one() {
    let ids = |router: &mut Router, nonce: u64| {
        let geometry = router.state.settings.geometry;
        let segment = Segment::create(geometry, Nonces::random().unwrap(), 0o600).unwrap();
        let (bells, _) = BrokerBells::new().unwrap();
        let peer = Credentials { pid: std::process::id(), uid: own_uid() };
        router.state.attach("peer".parse().unwrap(), nonce, peer, segment.into(), bells.into()).unwrap()
    };
    let (mut one, mut two) = (Router::new(|_| {}), Router::new(|_| {}));
    let (key, id) = ids(&mut one, 0x1234_5678_9abc_def0);
    assert_eq!(ids(&mut two, 0x1234_5678_9abc_def0).1, id);
    assert_eq!(ids(&mut one, 0x1234_5678_9abc_def0).1, id + 1, "the next that is free");
    one.state.client_gone(key, id);
    one.run();
    assert_eq!(ids(&mut one, 0x1234_5678_9abc_def0).1, id + 2, "not so soon again");
    assert_eq!(ids(&mut one, 0).1, 1, "0 is the broker");
    assert!(ids(&mut one, 0xffff_ffff).1 <= 0x7fff_ffff);
}
