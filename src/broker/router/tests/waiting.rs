//! Publishers that wait: for whom, for how long, in which order, and what happens then.

use super::*;

/// One record, and the next of a message of three.
const PART: usize = 1000;

impl Peer {
    /// One record of a message of `total` bytes.
    fn publish_part(&mut self, topic: u32, total: usize, at: usize) -> bool {
        let mut flags = Flags::default();
        if at == 0 {
            self.sequence += 1;
            flags = flags.with(Flags::FIRST);
        }
        let len = PART.min(total - at);
        if at + len == total {
            flags = flags.with(Flags::LAST);
        }
        let header = Header { flags, id: topic, total: total as u32, seq: self.sequence, ..Header::new(Kind::Publish) };
        self.push(false, header, &vec![7; len])
    }

    fn give_credit(&mut self, subscription: u32, cells: u32) {
        assert!(self.push(true, Header { id: subscription, arg: cells, ..Header::new(Kind::Credit) }, b""));
    }
}

impl Router {
    fn counts(&self) -> (u64, u64, u64) {
        let counters = &self.state.ports.counters;
        (counters.evicted, counters.aborted, counters.dropped.iter().sum())
    }

    fn is_parked(&self, peer: &Peer) -> bool {
        self.state.ports.ingress(peer.key).is_some_and(|ingress| ingress.parked.is_some())
    }
}

/// A router whose rings have their base windows only.
fn small() -> Router {
    Router::new(|config| (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (1, 1))
}

/// A message of many records is under way to `subscriber`, whose ring is full: the publisher waits. Answers how many
/// bytes were placed.
fn stopped_within(router: &mut Router, publisher: &mut Peer, topic: u32, total: usize) -> usize {
    let mut at = 0;
    while !router.is_parked(publisher) {
        assert!(publisher.publish_part(topic, total, at));
        at += PART;
        router.run();
    }
    at
}

#[test]
fn who_drops_and_stops_within_a_message_does_without_it_and_stays() {
    for policy in [DeliveryPolicy::DropNewest, DeliveryPolicy::DropOldest] {
        let mut router = small();
        let (mut publisher, mut stopped) = (router.connect(), router.connect());
        router.subscribe(&stopped, "t", policy, 0);
        let topic = router.topic(&publisher, "t");
        let mut at = stopped_within(&mut router, &mut publisher, topic, 100 * PART);
        router.pass(999);
        assert!(router.is_parked(&publisher), "{policy:?}");
        router.pass(1);
        assert!(!router.is_parked(&publisher), "{policy:?}");
        assert_eq!(router.counts(), (0, 0, 1));
        while at < 100 * PART {
            assert!(publisher.publish_part(topic, 100 * PART, at));
            at += PART;
            router.run();
        }
        let taken = kinds(&stopped.take_all(&mut router));
        let delivered = taken.iter().filter(|kind| **kind == Kind::Deliver).count();
        assert!(delivered < 20 && taken.last() == Some(&Kind::Aborted), "{taken:?}");
        publisher.publish(topic, b"next");
        router.run();
        let next = stopped.take().unwrap();
        assert_eq!((next.0.kind, next.0.dropped, &next.1[..]), (Kind::Deliver, 1, &b"next"[..]));
    }
}

#[test]
fn who_takes_a_message_in_small_pieces_does_not_hold_it_for_ever() {
    let mut router = small();
    let (mut publisher, mut slow) = (router.connect(), router.connect());
    router.subscribe(&slow, "t", DeliveryPolicy::Block, 0);
    let topic = router.topic(&publisher, "t");
    let mut at = stopped_within(&mut router, &mut publisher, topic, 1000 * PART);
    // One record in 300 ms is 3 KB a second.
    let mut taken = 0;
    while router.counts().0 == 0 {
        router.pass(300);
        assert!(taken < 10, "it goes on for ever");
        taken += u32::from(slow.take().is_some());
        router.run();
        if publisher.publish_part(topic, 1000 * PART, at) {
            at += PART;
        }
        router.run();
    }
    assert!((2..=5).contains(&taken), "evicted after {taken} records");
}

/// Whether a receiver that reads a record of a large message every 10 ms, 100 KB a second, gets all of it.
fn is_slow_receiver_served(hog: bool) -> bool {
    let mut router = Router::new(|config| {
        (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (if hog { 64 } else { 1024 }, 64);
    });
    let (mut publisher, mut slow, other) = (router.connect(), router.connect(), router.connect());
    if hog {
        // Unread messages take all slots.
        router.subscribe(&other, "h", DeliveryPolicy::DropOldest, 0);
        let topic = router.topic(&publisher, "h");
        for _ in 0..1000 {
            publisher.publish(topic, &[7; 64]);
            router.run();
        }
    }
    assert_eq!(router.state.ports.egresses.lacks_slots(slow.key), hog);
    router.subscribe(&slow, "t", DeliveryPolicy::Block, 0);
    let topic = router.topic(&publisher, "t");
    let (total, mut at, mut taken) = (400 * PART, 0, 0);
    while taken < 400 && router.counts().0 == 0 {
        while at < total && publisher.publish_part(topic, total, at) {
            at += PART;
            router.run();
        }
        router.pass(10);
        taken += u32::from(slow.take().is_some());
        router.run();
    }
    taken == 400
}

#[test]
fn a_receiver_whose_ring_finds_no_slot_may_read_more_slowly() {
    assert!(is_slow_receiver_served(true) && !is_slow_receiver_served(false));
}

#[test]
fn who_takes_a_message_steadily_gets_it_however_long_that_takes() {
    let mut router = small();
    let (mut publisher, mut slow) = (router.connect(), router.connect());
    router.subscribe(&slow, "t", DeliveryPolicy::Block, 0);
    let topic = router.topic(&publisher, "t");
    let total = 5000 * PART;
    let mut at = stopped_within(&mut router, &mut publisher, topic, total);
    let mut got = 0;
    while got < total {
        assert_eq!(router.counts(), (0, 0, 0), "{got} bytes");
        // 5 MB in 4 seconds: four times as long as it may do nothing.
        router.pass(1);
        for _ in 0..2 {
            if let Some((header, payload)) = slow.take() {
                got += if header.kind == Kind::Deliver { payload.len() } else { 0 };
            }
            router.run();
            if at < total && publisher.publish_part(topic, total, at) {
                at += PART;
            }
            router.run();
        }
    }
}

#[test]
fn a_ring_without_a_lease_takes_the_first_message_of_a_topic_however_large() {
    for policy in [DeliveryPolicy::Block, DeliveryPolicy::DropNewest] {
        let mut router = small();
        let (mut publisher, mut reader) = (router.connect(), router.connect());
        router.subscribe(&reader, ">", policy, 0);
        for n in 0..3 {
            let topic = router.topic(&publisher, &format!("t.{n}"));
            publisher.publish(topic, &[7; 1024]);
            router.run();
            assert_eq!(kinds(&reader.take_all(&mut router)), [Kind::TopicName, Kind::Deliver], "{policy:?}");
        }
        assert_eq!(router.counts(), (0, 0, 0));
    }
}

#[test]
fn only_those_are_evicted_for_whom_somebody_has_waited_so_long() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut flood) = (router.connect(), router.connect());
    let (slow, mut busy) = (router.connect(), router.connect());
    router.subscribe(&slow, "both", DeliveryPolicy::Block, 9);
    let credit = 9;
    let all = router.subscribe(&busy, ">", DeliveryPolicy::Block, credit);
    let (both, other) = (router.topic(&publisher, "both"), router.topic(&flood, "other"));
    // The slow one has no credit left, and one message waits for it.
    for _ in 0..10 {
        publisher.publish(both, b"x");
        router.run();
        for (header, _) in busy.take_all(&mut router) {
            if header.kind == Kind::Deliver {
                busy.give_credit(all, 1);
            }
        }
        router.run();
    }
    assert!(router.is_parked(&publisher));
    router.pass(990);
    // At the end of its time the other one has none either, for another publisher's sake.
    for _ in 0..10 {
        flood.publish(other, b"x");
        router.run();
    }
    assert!(router.is_parked(&flood));
    router.pass(10);
    assert_eq!(router.counts().0, 1);
    let is_there = |peer: &Peer| router.state.ports.egresses.get(peer.key).is_some_and(|o| o.subscriptions.len() == 1);
    assert!(is_there(&busy) && !is_there(&slow));
    assert!(router.is_parked(&publisher), "now it waits for the other");
}

#[test]
fn what_a_publisher_writes_over_its_waiting_message_says_nothing_of_others() {
    let mut router = Router::new(|_| {});
    let (mut publisher, accomplice, victim) = (router.connect(), router.connect(), router.connect());
    router.subscribe(&accomplice, "a", DeliveryPolicy::Block, 9);
    router.subscribe(&victim, "b", DeliveryPolicy::Block, 9);
    let (a, b) = (router.topic(&publisher, "a"), router.topic(&publisher, "b"));
    for _ in 0..9 {
        publisher.publish(a, b"x");
        router.run();
    }
    publisher.publish(b, b"x");
    router.run();
    // The tenth waits. Its header is in the publisher's own memory.
    publisher.publish(a, b"x");
    router.run();
    assert!(router.is_parked(&publisher));
    let forged = Header { flags: Flags::WHOLE, id: b, total: u32::MAX, seq: 99, ..Header::new(Kind::Publish) };
    publisher.bulk.forge_last(&forged.to_words());
    router.pass(1_000);
    let is_there = |peer: &Peer| router.state.ports.egresses.get(peer.key).is_some_and(|o| o.subscriptions.len() == 1);
    assert!(is_there(&victim) && !is_there(&accomplice));
}

#[test]
fn of_several_that_wait_the_one_that_has_waited_longest_is_next() {
    let mut router = Router::new(|_| {});
    let (mut first, mut second, mut reader) = (router.connect(), router.connect(), router.connect());
    let subscription = router.subscribe(&reader, "t", DeliveryPolicy::Block, 9);
    let topics = [router.topic(&first, "t"), router.topic(&second, "t")];
    let mut got = [0; 2];
    for _ in 0..200 {
        first.publish(topics[0], b"x");
        second.publish(topics[1], b"x");
        router.run();
        // Room for one message at a time.
        router.pass(1);
        if let Some((header, _)) = reader.take()
            && header.kind == Kind::Deliver
        {
            got[usize::from(header.origin == second.id)] += 1;
            reader.give_credit(subscription, 1);
        }
        router.run();
    }
    assert!(got[0].min(got[1]) * 3 > got[0].max(got[1]), "{got:?}");
    assert_eq!(router.counts(), (0, 0, 0));
}

#[test]
fn a_subscription_that_is_evicted_is_waited_for_by_nobody_else() {
    let mut router = Router::new(|_| {});
    let (mut first, mut second, stopped) = (router.connect(), router.connect(), router.connect());
    router.subscribe(&stopped, "t", DeliveryPolicy::Block, 9);
    let topics = [router.topic(&first, "t"), router.topic(&second, "t")];
    for _ in 0..10 {
        first.publish(topics[0], b"x");
        router.run();
    }
    router.pass(500);
    second.publish(topics[1], b"x");
    router.run();
    assert!(router.is_parked(&first) && router.is_parked(&second));
    router.pass(500);
    assert_eq!(router.counts().0, 1);
    assert!(!router.is_parked(&first) && !router.is_parked(&second));
}

#[test]
fn who_rings_for_records_behind_one_that_waits_is_not_ended_and_who_rings_for_nothing_is() {
    let mut router = Router::new(|config| config.limits.max_rings_without_progress = 3);
    let (mut publisher, unread) = (router.connect(), router.connect());
    router.subscribe(&unread, "t", DeliveryPolicy::Block, 9);
    let topic = router.topic(&publisher, "t");
    for _ in 0..9 {
        assert!(publisher.publish(topic, b"x"));
        router.run();
    }
    // The first of these waits, and all of them ring.
    for _ in 0..9 {
        assert!(publisher.publish(topic, b"x"));
        router.run();
    }
    assert!(router.is_parked(&publisher));
    assert!(router.state.ports.ingress(publisher.key).is_some(), "{:?}", router.state.ended);
    for _ in 0..3 {
        publisher.bells.ring();
        router.run();
    }
    assert!(router.state.ports.ingress(publisher.key).is_some(), "{:?}", router.state.ended);
    publisher.bells.ring();
    router.run();
    assert!(router.state.ports.ingress(publisher.key).is_none(), "twelve rings are for cells and for nothing");
}

#[test]
fn a_record_with_many_receivers_ends_its_publishers_turn() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut other, subscriber) = (router.connect(), router.connect(), router.connect());
    for _ in 0..512 {
        router.subscribe(&subscriber, "t", DeliveryPolicy::DropNewest, 9);
    }
    let (topic, echo) = (router.topic(&publisher, "t"), router.service(&other, "echo"));
    for _ in 0..6 {
        assert!(publisher.publish(topic, b"x"));
    }
    other.request(0, 1, echo, b"hi");
    router.state.look();
    // 512 receivers are 32 records of a batch of 64.
    while other.egress.peek().unwrap().is_none() {
        assert!(router.state.step());
    }
    assert!(router.state.ports.counters.published <= 2, "{} were before it", router.state.ports.counters.published);
}
