//! When a client that sleeps is woken.

use super::*;

struct Stage {
    router: Router,
    publisher: Peer,
    subscriber: Peer,
    topic: u32,
}

impl Stage {
    /// A batch has four messages, and a ring 65 cells.
    fn new() -> Stage {
        let mut router = Router::new(|config| {
            config.router.batch_records = 1;
            config.shared_memory.slot_size = 8192;
        });
        let (mut publisher, mut subscriber) = (router.connect(), router.connect());
        router.subscribe(&subscriber, "a.b", DeliveryPolicy::Block, 0);
        let topic = router.topic(&publisher, "a.b");
        // Its name is announced with the first.
        assert!(publisher.publish(topic, b""));
        router.run();
        subscriber.take_all(&mut router);
        Stage { router, publisher, subscriber, topic }
    }

    /// Serves a lane; returns whether the subscriber sleeps on.
    fn step(&mut self) -> bool {
        assert!(self.router.state.step());
        self.subscriber.segment.data_signal(RingName::Egress).is_armed()
    }

    fn rung(&self) -> u64 {
        self.router.state.ports.egresses.rung
    }
}

#[test]
fn a_subscriber_sleeps_on_while_more_comes_and_less_than_a_quarter_of_its_ring_is_full() {
    let mut stage = Stage::new();
    let sleeps = stage.subscriber.segment.data_signal(RingName::Egress);
    for (messages, steps) in [(1, 1), (4, 2), (6, 2), (15, 4), (30, 4)] {
        sleeps.arm();
        let rung = stage.rung();
        (0..messages).for_each(|_| assert!(stage.publisher.publish(stage.topic, b"")));
        stage.router.state.look();
        (1..steps).for_each(|step| assert!(stage.step(), "woken in batch {step} of {messages} messages"));
        assert_eq!(stage.rung(), rung);
        assert!(!stage.step(), "not woken in batch {steps} of {messages} messages");
        assert_eq!(stage.rung(), rung + 1);
        stage.router.run();
        stage.subscriber.take_all(&mut stage.router);
    }
}

#[test]
fn the_end_of_a_turn_wakes_a_subscriber_for_which_more_comes() {
    let mut stage = Stage::new();
    stage.subscriber.segment.data_signal(RingName::Egress).arm();
    (0..6).for_each(|_| assert!(stage.publisher.publish(stage.topic, b"")));
    stage.router.state.look();
    assert!(stage.step());
    let now = stage.router.state.ports.now;
    stage.router.state.advance(now);
    assert!(!stage.subscriber.segment.data_signal(RingName::Egress).is_armed());
}

#[test]
fn a_client_that_waits_for_space_is_not_left_asleep() {
    let mut stage = Stage::new();
    let Stage { router, subscriber, .. } = &mut stage;
    let own = ["a.b", "a.c"].map(|name| router.topic(subscriber, name));
    subscriber.segment.data_signal(RingName::Egress).arm();
    subscriber.segment.space_signal(RingName::Bulk).arm();
    // One message comes back to it; those behind that have no subscriber.
    (0..40).for_each(|n| assert!(subscriber.publish(own[usize::from(n > 0)], b"")));
    router.state.look();
    assert!(!stage.step());
    assert!(!stage.subscriber.segment.space_signal(RingName::Bulk).is_armed());
}
