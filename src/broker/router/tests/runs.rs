//! Runs: messages that are routed with one decision, and a router that dies within one.

use super::crashes::{RUN_POINTS, die_at_each};
use super::*;
use crate::logic::shares::Principal;

/// What a subscriber got, besides names of topics: kind, sequence number, first byte, length, messages dropped.
type Got = (Kind, u64, Option<u8>, usize, u32);

pub(super) struct Stage {
    pub(super) router: Router,
    pub(super) subscribers: Vec<Peer>,
    pub(super) publisher: Peer,
    pub(super) topics: [u32; 2],
}

impl Stage {
    /// Subscriptions of three connections, each with a policy and credit.
    pub(super) fn new(subscriptions: [(DeliveryPolicy, u32); 3]) -> Stage {
        Stage::of_users(subscriptions, [own_uid(); 3])
    }

    /// The same, of connections of these users.
    fn of_users(subscriptions: [(DeliveryPolicy, u32); 3], users: [u32; 3]) -> Stage {
        // Lanes that hold all messages of a test before the router looks.
        let mut router = Router::new(|config| {
            config.shared_memory.slot_size = 8192;
            config.limits.user_work_percent = 1;
        });
        let subscribers: Vec<_> = users.into_iter().map(|user| router.connect_as(user)).collect();
        for (subscriber, (policy, credit)) in subscribers.iter().zip(subscriptions) {
            router.subscribe(subscriber, "a.*", policy, credit);
        }
        let publisher = router.connect();
        let topics = ["a.b", "a.c"].map(|topic| router.topic(&publisher, topic));
        let mut stage = Stage { router, subscribers, publisher, topics };
        // Each name is announced with the first message of its topic.
        for at in [0, 1] {
            stage.publish(at, 0, 1);
            stage.router.run();
        }
        stage.got();
        stage
    }

    /// Places a message; the router does not look yet.
    pub(super) fn publish(&mut self, topic: usize, first: u8, len: usize) {
        assert!(self.publisher.publish(self.topics[topic], &vec![first; len]));
    }

    /// So many further subscriptions of the last subscriber use up what its user may cost, so that it is passed over.
    /// Returns what the broker has dropped for it when all is counted.
    fn overdraw(&mut self, subscriptions: u64) -> u64 {
        for _ in 0..subscriptions {
            self.router.subscribe(&self.subscribers[2], "a.*", DeliveryPolicy::DropNewest, 0);
        }
        for n in 0.. {
            if self.router.state.pubsub.topics().next_count().is_some() {
                break;
            }
            assert!(n < 10_000, "the user pays nothing");
            self.publish(0, 0, 64);
            self.router.run();
            while self.router.state.ports.ingress(self.publisher.key).unwrap().parked.is_some() {
                self.router.pass(1);
            }
            self.got();
        }
        let (topics, counters) = (self.router.state.pubsub.topics(), &self.router.state.ports.counters);
        counters.dropped.iter().sum::<u64>() + topics.missed() * (subscriptions + 1)
    }

    fn got(&mut self) -> Vec<Vec<Got>> {
        let of = |subscriber: &mut Peer| {
            let taken = subscriber.take_all(&mut self.router);
            let told = taken.iter().filter(|(header, _)| header.kind != Kind::TopicName);
            told.map(|(header, bytes)| (header.kind, header.seq, bytes.first().copied(), bytes.len(), header.dropped))
                .collect()
        };
        self.subscribers.iter_mut().map(of).collect()
    }
}

pub(super) const ALL: [(DeliveryPolicy, u32); 3] =
    [(DeliveryPolicy::Block, 0), (DeliveryPolicy::DropOldest, 0), (DeliveryPolicy::DropNewest, 0)];

/// Messages of several shapes and topics, all in the lane before the router looks.
fn scenario() -> ((Vec<Vec<Got>>, [u64; 5]), u32) {
    let mut stage = Stage::new(ALL);
    let shapes = [(0, 64), (0, 64), (0, 64), (0, 64), (1, 64), (1, 64), (0, 100), (0, 100), (0, 100), (0, 0), (0, 0)];
    for (at, (topic, len)) in shapes.into_iter().enumerate() {
        stage.publish(topic, at as u8, len);
    }
    stage.router.run();
    let got = stage.got();
    let counters = &stage.router.state.ports.counters;
    let messages = stage.router.state.ports.ingress(stage.publisher.key).map_or(0, |ingress| ingress.messages);
    let counted = [counters.published, counters.delivered, counters.records, counters.bytes, messages];
    assert!(stage.router.state.is_quiescent());
    ((got, counted), stage.router.deaths)
}

#[test]
fn a_router_that_dies_within_a_run_loses_and_doubles_nothing() {
    let ((sound, counted), deaths) = scenario();
    assert_eq!((sound[0].len(), deaths), (11, 0));
    assert!(sound.iter().all(|got| *got == sound[0]), "{sound:?}");
    assert_eq!(counted, [13, 39, 13, 6 * 64 + 3 * 100 + 2, 13]);
    die_at_each(&RUN_POINTS, 11, &(sound, counted), scenario);
}

#[test]
fn messages_of_one_shape_are_one_run() {
    let mut stage = Stage::new(ALL);
    let decided = |stage: &Stage| stage.router.state.ports.journal.run.begins_at;
    (0..20).for_each(|n| stage.publish(0, n, 64));
    let before = stage.router.state.ports.ingress_mut(stage.publisher.key).unwrap().bulk.consumed();
    stage.router.run();
    assert_eq!(decided(&stage), before, "decided once, at the first");
    assert_eq!(stage.router.state.ports.journal.run.sent, stage.publisher.sequence);
    assert_eq!(stage.got().iter().map(Vec::len).collect::<Vec<_>>(), [20; 3]);
}

#[test]
fn a_run_has_the_subscriptions_of_other_users_which_pay_for_it() {
    let mut stage = Stage::of_users(ALL, [own_uid(), OTHER, OTHER + 1]);
    for _ in 0..3 {
        (0..20).for_each(|n| stage.publish(0, n, 64));
        let before = stage.router.state.ports.ingress_mut(stage.publisher.key).unwrap().bulk.consumed();
        stage.router.run();
        let run = &stage.router.state.ports.journal.run;
        assert_eq!((run.begins_at, run.sent, run.receivers.len()), (before, stage.publisher.sequence, 3));
        assert_eq!(stage.got().iter().map(Vec::len).collect::<Vec<_>>(), [20; 3]);
    }
    // What a user may cost is used up by messages in runs, too: 20 ms, at 24 ns for each.
    let of_other = |stage: &Stage| stage.router.state.pubsub.topics().work_left(Principal::of_uid(OTHER));
    let before = of_other(&stage);
    (0..20).for_each(|n| stage.publish(0, n, 64));
    stage.router.run();
    assert_eq!((before - of_other(&stage), of_other(&stage) < 20_000_000), (20 * 24, true));
}

#[test]
fn a_run_passes_over_a_user_that_cannot_pay_and_counts_what_it_misses() {
    for point in ["router.decided", "router.target", "router.delivered", "router.committed", "router.advanced"] {
        for n in [1, 2, 7, 17] {
            let mut stage = Stage::of_users(ALL, [own_uid(), own_uid(), OTHER]);
            let before = stage.overdraw(499);
            (0..8).for_each(|number| stage.publish(0, number, 64));
            fault::armed::arm(point, n);
            stage.router.run();
            let died = !fault::armed::disarm();
            assert_eq!(stage.got().iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 0], "{point} {n}");
            let run = &stage.router.state.ports.journal.run;
            assert_eq!((run.passed_over.len(), run.receivers.len(), stage.router.deaths), (1, 2, u32::from(died)));
            stage.router.pass(60_000);
            assert!(stage.router.state.pubsub.topics().next_count().is_none());
            let dropped = stage.router.state.ports.counters.dropped.iter().sum::<u64>();
            assert_eq!(dropped - before, 8 * 500, "{point} {n}");
        }
    }
}

#[test]
fn messages_without_subscriptions_are_a_run() {
    let mut router = Router::new(|config| config.shared_memory.slot_size = 8192);
    let mut publisher = router.connect();
    let topic = router.topic(&publisher, "t");
    (0..20).for_each(|n| assert!(publisher.publish(topic, &[n; 64])));
    router.run();
    let RouterState { ports, .. } = &router.state;
    assert_eq!((ports.counters.published, ports.counters.unmatched, ports.journal.run.sent), (20, 20, 20));
}

#[test]
fn a_poison_message_in_the_middle_of_a_run_is_set_aside_alone() {
    // At each message of the run, before it is decided, and when no, one or two subscribers have it.
    let before = (1..=8).map(|n| ("router.decided", n, 0));
    let within = (1..=24).map(|n| ("router.target", n, (n - 1) % 3));
    for (point, n, having) in before.chain(within) {
        let mut stage = Stage::new(ALL);
        (0..8).for_each(|number| stage.publish(0, number, 64));
        fault::armed::arm(point, n);
        stage.router.again = Some((point, 1));
        stage.router.run();
        assert!(crashes::spent(&stage.router), "{point} {n}");
        assert_eq!((stage.router.deaths, stage.router.state.ports.counters.poisoned), (2, 1));
        let poison = if point == "router.decided" { n - 1 } else { (n - 1) / 3 } as u8;
        for (at, got) in stage.got().into_iter().enumerate() {
            let expected: Vec<u8> = (0..8).filter(|number| *number != poison || (at as u32) < having).collect();
            let numbers: Vec<u8> = got.iter().filter_map(|one| one.2).collect();
            assert_eq!(numbers, expected, "{point} {n}, subscriber {at}");
        }
        assert_eq!(kinds(&stage.publisher.take_all(&mut stage.router)), [Kind::Quarantined]);
        assert!(stage.router.state.is_quiescent());
        // And then there are runs again.
        (0..8).for_each(|number| stage.publish(0, number, 64));
        stage.router.run();
        assert_eq!(stage.router.state.ports.journal.run.sent, stage.publisher.sequence);
    }
}

#[test]
fn one_that_lacks_credit_in_the_middle_of_a_run_stops_it_or_is_passed_over() {
    let ample = (DeliveryPolicy::Block, 0);
    let counts = |stage: &mut Stage| stage.got().iter().map(Vec::len).collect::<Vec<_>>();

    let mut stage = Stage::new([ample, (DeliveryPolicy::DropNewest, 1), ample]);
    // More cells than the least credit has, in parts that fit into the lane.
    for _ in 0..3 {
        (0..30).for_each(|n| stage.publish(0, n, 64));
        stage.router.run();
    }
    // Until its grace is over, the publisher waits for it.
    stage.router.pass(1_000);
    let got = counts(&mut stage);
    assert_eq!((got[0], got[2]), (90, 90));
    let dropped = stage.router.state.ports.counters.dropped.iter().sum::<u64>();
    assert!(dropped > 0 && got[1] as u64 >= 90 - dropped, "{got:?}, {dropped} dropped");

    let mut stage = Stage::new([ample, (DeliveryPolicy::Block, 1), ample]);
    // They read at once, so that there is always space, and return no credit: 129 cells, of which the names' messages
    // took one each, are 63 messages of two cells.
    let mut got = [0; 3];
    for _ in 0..3 {
        (0..30).for_each(|n| stage.publish(0, n, 64));
        stage.router.run();
        for (total, more) in got.iter_mut().zip(counts(&mut stage)) {
            *total += more;
        }
    }
    assert_eq!(got, [63; 3], "all or none");
    assert!(stage.router.state.ports.counters.parked > 0);
    stage.router.pass(2_000);
    let rest = counts(&mut stage);
    assert_eq!((got[0] + rest[0], got[2] + rest[2]), (90, 90), "it is evicted, and harms the others no more");
}

#[test]
fn a_record_that_breaks_the_rules_ends_a_run_and_its_connection() {
    let mut stage = Stage::new(ALL);
    (0..3).for_each(|n| stage.publish(0, n, 64));
    // The same sequence number again.
    stage.publisher.sequence -= 1;
    stage.publish(0, 3, 64);
    stage.router.run();
    let got = stage.got();
    assert!(got.iter().all(|got| got.iter().filter(|one| one.0 == Kind::Deliver).count() == 3), "{got:?}");
    assert_eq!(stage.router.state.ports.counters.violations, 1);
}

#[test]
fn a_batch_counts_the_deliveries_of_a_run() {
    for (subscribers, messages) in [(1, 8), (2, 4), (3, 2), (8, 2), (20, 1)] {
        let mut router = Router::new(|config| config.router.batch_records = 2);
        let mut peers: Vec<_> = (0..subscribers).map(|_| router.connect()).collect();
        for peer in &peers {
            router.subscribe(peer, "a.b", DeliveryPolicy::Block, 0);
        }
        let mut publisher = router.connect();
        let topic = router.topic(&publisher, "a.b");
        // Its name is announced with the first.
        assert!(publisher.publish(topic, b""));
        router.run();
        peers.iter_mut().for_each(|peer| drop(peer.take_all(&mut router)));
        (0..9).for_each(|_| assert!(publisher.publish(topic, b"")));
        let consumed = |router: &Router| router.state.ports.ingress(publisher.key).unwrap().bulk.consumed();
        let before = consumed(&router);
        router.state.look();
        assert!(router.state.step());
        assert_eq!(consumed(&router) - before, messages, "{subscribers} subscribers");
    }
}
