//! What is kept for a client that does not read: the newest, whatever happens meanwhile, and for a time with an end.

use super::crashes::die_at_each;
use super::crashes::{publish, spent};
use super::*;
use std::collections::BTreeMap;

/// A router whose rings have only their base windows, and in which nothing waits for who drops.
fn narrow(change: impl FnOnce(&mut Config)) -> Router {
    Router::new(|config| {
        (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (1, 1);
        config.delivery.drop_grace_ms = 0;
        change(config);
    })
}

fn kept_bytes(router: &Router, peer: &Peer) -> usize {
    router.state.ports.egresses.get(peer.key).unwrap().overflow.bytes
}

fn is_marked(peer: &Peer) -> bool {
    !peer.segment.newer().get().is_multiple_of(2)
}

/// What came: whole messages by subscription, as publisher, topic, number and length; and the last count of drops.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    messages: BTreeMap<u32, Vec<(u32, String, u64, usize)>>,
    dropped: BTreeMap<u32, u32>,
}

impl Got {
    fn numbers(&self, subscription: u32) -> Vec<u64> {
        self.messages.get(&subscription).into_iter().flatten().map(|message| message.2).collect()
    }
}

/// Reads until nothing more comes, as a client does that goes on.
fn read_all(router: &mut Router, peer: &mut Peer) -> Got {
    let (mut got, mut names, mut partial) = (Got::default(), BTreeMap::new(), BTreeMap::new());
    router.run();
    for (header, payload) in peer.take_all(router) {
        match header.kind {
            Kind::TopicName => drop(names.insert(header.id, String::from_utf8(payload).unwrap())),
            Kind::TopicGone => drop(names.remove(&header.id).expect("it was named")),
            Kind::Deliver => {
                let so_far: &mut Vec<u8> = partial.entry((header.id, header.origin)).or_default();
                assert_eq!(header.flags.has(Flags::FIRST), so_far.is_empty(), "{header:?}");
                so_far.extend(payload);
                // Empty ones begin and end at once.
                if header.flags.has(Flags::LAST) {
                    let message = partial.remove(&(header.id, header.origin)).unwrap();
                    assert_eq!(message.len(), header.total as usize);
                    let name = names.get(&header.id2).expect("a topic that was named").clone();
                    let entry = (header.origin, name, header.seq, message.len());
                    got.messages.entry(header.id).or_default().push(entry);
                }
                got.dropped.insert(header.id, header.dropped);
            }
            Kind::Dropped => drop(got.dropped.insert(header.id, header.dropped)),
            Kind::Aborted => panic!("it has not begun: {header:?}"),
            _ => {}
        }
    }
    assert!(partial.is_empty());
    got
}

#[test]
fn fragments_of_a_message_whose_first_is_queued_are_queued_although_the_ring_has_space() {
    let mut router = narrow(|_| {});
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    let oldest = router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 32);
    let topic = router.topic(&publisher, "t");
    while kept_bytes(&router, &subscriber) == 0 {
        assert!(publisher.publish(topic, b"full"));
        router.run();
    }
    publisher.sequence += 1;
    let seq = publisher.sequence;
    for at in 0..8 {
        assert!(publisher.fragment(topic, Flags::fragment(at.into(), 1, 8), 80, &[at; 10]));
        if at == 0 {
            router.run();
            assert_eq!(subscriber.take_all(&mut router).last().map(|(header, _)| header.seq), Some(seq - 1));
        }
    }
    router.run();
    let got = subscriber.take_all(&mut router).into_iter();
    let got: Vec<_> = got.map(|(header, bytes)| (header.id, header.seq, header.flags, bytes)).collect();
    let whole = (0..8).flat_map(|at| [at; 10]).collect();
    assert_eq!(got, [(oldest, seq, Flags::WHOLE, whole)], "the queue puts it together");
}

#[test]
fn a_client_that_does_not_read_has_the_newest_that_fit_when_it_does() {
    let mut router = narrow(|_| {});
    let (mut publisher, mut subscriber, mut other) = (router.connect(), router.connect(), router.connect());
    let oldest = router.subscribe(&subscriber, "t.*", DeliveryPolicy::DropOldest, 32);
    router.subscribe(&other, ">", DeliveryPolicy::Block, 0);
    let topics = [router.topic(&publisher, "t.a"), router.topic(&publisher, "t.b")];
    let mut others = 0;
    for n in 0..300u32 {
        assert!(publisher.publish(topics[n as usize % 2], &n.to_le_bytes()));
        router.run();
        others += other.take_all(&mut router).iter().filter(|(header, _)| header.kind == Kind::Deliver).count();
    }
    assert_eq!((others, router.state.ports.counters.parked), (300, 0), "nobody waits for it");
    assert!(is_marked(&subscriber) && kept_bytes(&router, &subscriber) > 0 && !router.state.is_quiescent());
    let got = read_all(&mut router, &mut subscriber);
    let numbers = got.numbers(oldest);
    let kept: Vec<u64> = (300 - 32 + 1..=300).collect();
    assert!(numbers.ends_with(&kept), "{numbers:?}");
    // Before those it has what its ring had.
    assert!(numbers[..numbers.len() - 32].iter().copied().eq(1..=numbers.len() as u64 - 32), "{numbers:?}");
    assert!((1..=9).contains(&(numbers.len() - 32)));
    assert_eq!(got.dropped[&oldest] as usize + numbers.len(), 300);
    assert!(!is_marked(&subscriber) && router.state.is_quiescent());
    assert_eq!(kept_bytes(&router, &subscriber), 0);
    let subscription = router.state.pubsub.topics().subscriptions.find(oldest).unwrap();
    assert!(
        router.state.pubsub.topics().subscriptions.get(subscription).unwrap().overflow.is_none(),
        "its memory is given back"
    );
}

/// Two subscriptions of a client that does not read; topics, long and short messages, one that is given up.
fn scenario() -> (Got, Vec<u64>, u32, bool) {
    let mut router = narrow(|config| config.router.batch_records = 4);
    let (mut publisher, mut leaver, mut subscriber) = (router.connect(), router.connect(), router.connect());
    router.subscribe(&subscriber, "a.*", DeliveryPolicy::DropOldest, 120);
    router.subscribe(&subscriber, "a.b", DeliveryPolicy::DropOldest, 20);
    let topics = [router.topic(&publisher, "a.b"), router.topic(&publisher, "a.c")];
    let leavers = router.topic(&leaver, "a.d");
    // Fills the ring to its last cell.
    for _ in 0..4 {
        publish(&mut router, &mut publisher, topics[0], b"", 1, Router::run);
    }
    router.run();
    for n in 0..24u8 {
        let len = [0, 64, 700, 2500][n as usize % 4];
        let topic = topics[usize::from(n % 3 == 2)];
        publish(&mut router, &mut publisher, topic, &vec![n; len], usize::MAX, Router::run);
        if n % 3 == 0 {
            router.run();
        }
        if n == 12 {
            publish(&mut router, &mut leaver, leavers, &[1; 100], usize::MAX, Router::run);
            publish(&mut router, &mut leaver, leavers, &[2; 3000], 2, Router::run);
            router.run();
        }
    }
    router.run();
    let (key, id) = (leaver.key, leaver.id);
    router.survive(|state| state.client_ended(key, id));
    router.run();
    let got = read_all(&mut router, &mut subscriber);
    let c = &router.state.ports.counters;
    let counters = vec![c.published, c.delivered, c.dropped.iter().sum(), c.aborted, c.poisoned];
    assert_eq!(kept_bytes(&router, &subscriber), 0);
    assert!(!is_marked(&subscriber));
    (got, counters, router.deaths, router.state.is_quiescent())
}

#[test]
fn a_router_that_dies_at_any_point_keeps_each_message_once() {
    let scenario = || {
        let (got, counters, deaths, quiescent) = scenario();
        ((got, counters, quiescent), deaths)
    };
    let (sound, deaths) = scenario();
    assert_eq!((deaths, sound.2), (0, true));
    let total: usize = sound.0.messages.values().map(Vec::len).sum();
    assert!(total > 10, "{sound:?}");
    let points = ["found", "decided", "target", "queued", "delivered", "committed", "advanced", "pumped"];
    die_at_each(&points, 2, &sound, scenario);
    die_at_each(&["bell", "ending"], 2, &sound, scenario);
}

#[test]
fn a_message_that_is_quarantined_when_it_was_kept_comes_all_the_same() {
    let mut router = narrow(|_| {});
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    let oldest = router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    let topic = router.topic(&publisher, "t");
    for n in 0..20u8 {
        publish(&mut router, &mut publisher, topic, &[n], 1, Router::run);
    }
    router.run();
    fault::armed::arm("router.queued", 1);
    router.again = Some(("router.target", 1));
    publish(&mut router, &mut publisher, topic, b"kept", 1, Router::run);
    router.run();
    assert!(spent(&router));
    assert_eq!(kinds(&publisher.take_all(&mut router)), [Kind::Quarantined]);
    let got = read_all(&mut router, &mut subscriber);
    assert!(got.numbers(oldest).into_iter().eq(1..=21));
}

#[test]
fn what_is_kept_goes_with_its_subscription_or_its_client() {
    let mut router = narrow(|_| {});
    let (mut publisher, mut subscriber, leaver) = (router.connect(), router.connect(), router.connect());
    let first = router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    let second = router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    router.subscribe(&leaver, "t", DeliveryPolicy::DropOldest, 0);
    let topic = router.topic(&publisher, "t");
    let known = router.state.pubsub.topics().len();
    for n in 0..100u8 {
        publish(&mut router, &mut publisher, topic, &[n; 500], usize::MAX, Router::run);
    }
    router.run();
    let both = kept_bytes(&router, &subscriber);
    for (subscription, most) in [(first, both / 2 + 4096), (second, 0)] {
        let done = router.handle_request(&subscriber, ClientFrame::Unsubscribe { serial: 1, subscription });
        assert!(matches!(done, BrokerFrame::Done { .. }));
        assert!(kept_bytes(&router, &subscriber) <= most);
    }
    assert!(!is_marked(&subscriber));
    assert!(read_all(&mut router, &mut subscriber).numbers(second).len() < 20, "what was in the ring");
    for peer in [&leaver, &publisher] {
        router.survive(|state| state.client_ended(peer.key, peer.id));
        router.run();
    }
    assert_eq!(router.state.pubsub.topics().len(), known - 1, "no message uses it any more");
    assert!(router.state.is_quiescent());
}

#[test]
fn a_topic_keeps_its_number_while_a_message_of_it_is_kept() {
    let mut router = narrow(|_| {});
    let mut subscriber = router.connect();
    let oldest = router.subscribe(&subscriber, ">", DeliveryPolicy::DropOldest, 0);
    for n in 0..10 {
        let mut publisher = router.connect();
        let topic = router.topic(&publisher, &format!("t.{n}"));
        for _ in 0..3 {
            publish(&mut router, &mut publisher, topic, &[n; 100], 1, Router::run);
        }
        router.run();
        let (key, id) = (publisher.key, publisher.id);
        router.survive(|state| state.client_ended(key, id));
        router.run();
    }
    let got = read_all(&mut router, &mut subscriber);
    let names: Vec<&str> = got.messages[&oldest].iter().map(|message| &message.1[..]).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| name.starts_with("t.")).collect();
    let expected: Vec<String> = (0..30).map(|n| format!("t.{}", n / 3)).collect();
    assert_eq!(names, expected);
    assert_eq!(router.state.pubsub.topics().len(), 0);
}

#[test]
fn a_publisher_that_stops_in_mid_message_delays_no_message_that_is_kept() {
    let mut router = narrow(|_| {});
    let (mut publisher, mut halting, mut subscriber) = (router.connect(), router.connect(), router.connect());
    let oldest = router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    let topic = router.topic(&publisher, "t");
    let other = router.topic(&halting, "t");
    for n in 0..20u8 {
        publish(&mut router, &mut publisher, topic, &[n], 1, Router::run);
    }
    router.run();
    publish(&mut router, &mut halting, other, &[1; 3000], 2, Router::run);
    router.run();
    publish(&mut router, &mut publisher, topic, &[20], 1, Router::run);
    router.run();
    let got = read_all(&mut router, &mut subscriber);
    assert!(got.numbers(oldest).into_iter().eq(1..=21));
    assert!(!is_marked(&subscriber), "nothing waits that is whole");
    publish(&mut router, &mut publisher, topic, &[21], 1, Router::run);
    router.run();
    assert_eq!(subscriber.take().map(|(header, _)| header.seq), Some(22));
}

#[test]
fn what_is_kept_for_one_connection_is_bounded_and_shared() {
    const BACKLOG_BYTES: usize = 65_536;
    let mut router = narrow(|config| config.limits.max_backlog_bytes = BACKLOG_BYTES as u32);
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    let subscriptions: Vec<u32> =
        (0..4).map(|n| router.subscribe(&subscriber, ["t", "u"][n / 2], DeliveryPolicy::DropOldest, 0)).collect();
    let (early, late) = (router.topic(&publisher, "t"), router.topic(&publisher, "u"));
    for topic in [early, late] {
        for n in 0..200u8 {
            publish(&mut router, &mut publisher, topic, &[n; 700], 1, Router::run);
            router.run();
            assert!(kept_bytes(&router, &subscriber) <= 2 * BACKLOG_BYTES);
        }
    }
    // Larger than all that may be kept.
    publish(&mut router, &mut publisher, late, &[0; 70_000], usize::MAX, Router::run);
    router.run();
    let got = read_all(&mut router, &mut subscriber);
    for (n, subscription) in subscriptions.iter().enumerate() {
        let numbers = got.numbers(*subscription);
        let last = if n < 2 { 200 } else { 400 };
        let newest: Vec<u64> = (last - BACKLOG_BYTES as u64 / 4 / 764 + 1..=last).collect();
        assert!(numbers.ends_with(&newest), "{subscription}: {numbers:?}");
        assert_eq!(numbers.len() + got.dropped[subscription] as usize, if n < 2 { 200 } else { 201 });
    }
}

#[test]
fn keeping_the_newest_allocates_nothing() {
    let mut router = narrow(|_| {});
    let (mut publisher, subscriber) = (router.connect(), router.connect());
    router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 32);
    let topic = router.topic(&publisher, "t");
    let mut round = |router: &mut Router| {
        assert!(publisher.publish(topic, &[7; 64]));
        router.run();
    };
    (0..500).for_each(|_| round(&mut router));
    let before = router.state.ports.counters.dropped[DeliveryPolicy::DropOldest as usize];
    let counted = allocation_counter::measure(|| (0..500).for_each(|_| round(&mut router)));
    assert_eq!(router.state.ports.counters.dropped[DeliveryPolicy::DropOldest as usize] - before, 500);
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

/// A subscription that waits is not kept waiting by what is kept for its sibling.
#[test]
fn publishers_that_wait_for_a_client_get_a_part_of_its_ring() {
    let mut router = Router::new(|config| config.delivery.drop_grace_ms = 0);
    let (mut publisher, mut other, mut subscriber) = (router.connect(), router.connect(), router.connect());
    router.subscribe(&subscriber, "t", DeliveryPolicy::DropOldest, 0);
    let block = router.subscribe(&subscriber, "u", DeliveryPolicy::Block, 0);
    let (flood, topic) = (router.topic(&publisher, "t"), router.topic(&other, "u"));
    for _ in 0..8_000 {
        publish(&mut router, &mut publisher, flood, &[7; 64], 1, Router::run);
    }
    publish(&mut router, &mut other, topic, &[8; 64], 1, Router::run);
    router.run();
    assert_eq!(router.state.ports.counters.parked, 1);
    let mut before = 0;
    loop {
        let (header, _) = subscriber.take().expect("more");
        router.run();
        if header.kind == Kind::Deliver && header.id == block {
            break;
        }
        before += 1;
    }
    assert!(before < 4_200, "after {before}");
}
