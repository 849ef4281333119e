//! When a client that sleeps is woken.

use super::*;
use crate::broker::router::egress::Flush;

struct Stage {
    router: Router,
    publisher: Peer,
    subscriber: Peer,
    topic: u32,
}

impl Stage {
    /// A batch has four messages, and a ring 65 cells.
    fn new() -> Stage {
        Stage::with(1, 8192)
    }

    fn with(batch_records: u32, slot_size: u32) -> Stage {
        let mut router = Router::new(|config| {
            config.router.batch_records = batch_records;
            config.shared_memory.slot_size = slot_size;
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
        self.sleeps()
    }

    fn sleeps(&self) -> bool {
        self.subscriber.segment.data_signal(RingName::Egress).is_armed()
    }

    /// The subscriber sleeps, and the publisher has so many messages for it.
    fn publish(&mut self, messages: u32) {
        self.subscriber.segment.data_signal(RingName::Egress).arm();
        (0..messages).for_each(|_| assert!(self.publisher.publish(self.topic, b"")));
        self.router.state.look();
    }

    /// So much time passes, and the next turn begins.
    fn pass(&mut self, ns: u64) {
        let now = self.router.state.ports.now + ns;
        self.router.state.advance(now);
    }

    fn rung(&self) -> u64 {
        self.router.state.ports.egresses.rung
    }
}

#[test]
fn a_subscriber_sleeps_on_while_more_comes_and_less_than_a_quarter_of_its_ring_is_full() {
    let mut stage = Stage::new();
    for (messages, steps) in [(1, 1), (6, 2), (15, 4), (30, 4)] {
        let rung = stage.rung();
        stage.publish(messages);
        (1..steps).for_each(|step| assert!(stage.step(), "woken in batch {step} of {messages} messages"));
        assert_eq!(stage.rung(), rung);
        assert!(!stage.step(), "not woken in batch {steps} of {messages} messages");
        assert_eq!(stage.rung(), rung + 1);
        stage.router.run();
        stage.subscriber.take_all(&mut stage.router);
    }
}

#[test]
fn a_subscriber_for_which_more_comes_is_woken_after_20_microseconds() {
    let mut stage = Stage::new();
    stage.publish(20);
    assert!(stage.step());
    stage.pass(15_000);
    assert!(stage.sleeps() && stage.step());
    stage.pass(5_000);
    assert!(stage.sleeps(), "counted from the first");
    stage.pass(1);
    assert!(!stage.sleeps());
}

#[test]
fn many_messages_in_a_batch_mean_that_more_comes_and_few_do_not() {
    for (messages, sleeps) in [(1, false), (15, false), (16, true), (60, true), (200, false)] {
        // A quarter of the ring is 128 cells.
        let mut stage = Stage::with(64, 65_536);
        stage.publish(messages);
        assert_eq!(stage.step(), sleeps, "{messages} messages, and no more");
        stage.router.state.ports.egresses.flush(Flush::All);
        assert!(!stage.sleeps(), "all are woken before the router sleeps");
    }
}

#[test]
fn one_message_for_a_subscriber_that_sleeps_on_wakes_it() {
    let mut stage = Stage::with(64, 65_536);
    stage.publish(20);
    assert!(stage.step());
    assert!(stage.publisher.publish(stage.topic, b""));
    stage.router.state.look();
    assert!(!stage.step());
}

#[test]
fn a_subscriber_sleeps_on_within_a_large_message_and_its_last_fragment_wakes_it() {
    for (fragments, sleeps) in [(3, false), (15, false), (16, true), (60, true)] {
        let mut stage = Stage::with(64, 65_536);
        let Stage { router, publisher, subscriber, topic } = &mut stage;
        publisher.sequence += 1;
        let topic = *topic;
        let place = |publisher: &mut Peer, flags, len: usize| {
            assert!(publisher.fragment(topic, flags, 100, &vec![7; len]));
        };
        place(publisher, Flags::FIRST, 1);
        router.run();
        subscriber.take_all(router);
        subscriber.segment.data_signal(RingName::Egress).arm();
        (0..fragments).for_each(|_| place(publisher, Flags::default(), 1));
        router.state.look();
        assert_eq!(stage.step(), sleeps, "{fragments} fragments, and no more");
        place(&mut stage.publisher, Flags::LAST, 99 - fragments);
        stage.router.state.look();
        assert!(!stage.step(), "the last one wakes it");
    }
}

#[test]
fn a_client_that_waits_for_space_is_not_left_asleep() {
    let mut stage = Stage::new();
    let Stage { router, subscriber, .. } = &mut stage;
    let own = ["a.b", "a.c"].map(|name| router.topic(subscriber, name));
    subscriber.segment.data_signal(RingName::Egress).arm();
    subscriber.segment.space_signal(RingName::Bulk).arm();
    // A batch comes back to it; the messages behind that have no subscriber.
    (0..40).for_each(|n| assert!(subscriber.publish(own[usize::from(n >= 4)], b"")));
    router.state.look();
    assert!(!stage.step());
    assert!(!stage.subscriber.segment.space_signal(RingName::Bulk).is_armed());
}

#[test]
fn a_subscriber_without_credit_for_more_is_woken_at_once() {
    let mut stage = Stage::with(64, 8192);
    // Its ring grows while it does not read, so that a quarter is more than the credit below.
    let window = |stage: &Stage| stage.router.state.ports.egresses.egress_window(stage.subscriber.key);
    while window(&stage) <= 4 * 65 {
        stage.publish(60);
        stage.router.run();
    }
    stage.subscriber.take_all(&mut stage.router);
    stage.router.subscribe(&stage.subscriber, "a.c", DeliveryPolicy::Block, 65);
    stage.topic = stage.router.topic(&stage.publisher, "a.c");
    stage.publish(1);
    stage.router.run();
    stage.subscriber.take_all(&mut stage.router);
    stage.publish(65);
    assert!(!stage.step(), "its credit is what the publisher waits for");
}

#[test]
fn replies_to_a_client_that_sleeps_wake_it_at_once() {
    let mut stage = Stage::with(64, 65_536);
    let echo = stage.router.service(&stage.subscriber, "echo");
    stage.subscriber.segment.data_signal(RingName::Egress).arm();
    (0..40).for_each(|slot| assert!(stage.subscriber.request(slot, 1, echo, b"")));
    stage.router.state.look();
    assert!(!stage.step());
}
