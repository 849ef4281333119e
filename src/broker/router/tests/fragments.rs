//! Runs within a message: fragments that are routed with one decision, and a router that dies within such a run.

use super::crashes::{RUN_POINTS, die_at_each};
use super::runs::{ALL, Stage};
use super::*;

/// Bytes of each fragment.
const FRAGMENT: usize = 64;

/// What a subscriber got, besides names of topics: kind, sequence number, flags, first byte, length.
type Got = (Kind, u64, Flags, Option<u8>, usize);

/// Places the fragments of a message from number `from` on, before number `to`, of `fragments`; each begins with its
/// number. The router does not look yet.
fn place(stage: &mut Stage, fragments: u8, (from, to): (u8, u8)) {
    for at in from..to {
        stage.publisher.sequence += u64::from(at == 0);
        let (flags, total) = (Flags::fragment(at.into(), 1, fragments.into()), usize::from(fragments) * FRAGMENT);
        assert!(stage.publisher.fragment(stage.topics[0], flags, total, &[at; FRAGMENT]));
    }
}

fn got(stage: &mut Stage) -> Vec<Vec<Got>> {
    let of = |subscriber: &mut Peer| {
        let taken = subscriber.take_all(&mut stage.router);
        let told = taken.iter().filter(|(header, _)| header.kind != Kind::TopicName);
        told.map(|(header, bytes)| (header.kind, header.seq, header.flags, bytes.first().copied(), bytes.len()))
            .collect()
    };
    stage.subscribers.iter_mut().map(of).collect()
}

fn numbers(got: &[Got]) -> Vec<u8> {
    got.iter().filter(|one| one.0 == Kind::Deliver).filter_map(|one| one.3).collect()
}

/// Counters, then of the publisher messages and bytes, then of the first subscriber messages and bytes.
fn counted(stage: &Stage) -> [u64; 9] {
    let (ports, c) = (&stage.router.state.ports, &stage.router.state.ports.counters);
    let (ingress, egress) =
        (ports.ingress(stage.publisher.key).unwrap(), ports.egresses.get(stage.subscribers[0].key).unwrap());
    let own = [ingress.messages, ingress.bytes, egress.messages, egress.bytes];
    let broker = [c.published, c.delivered, c.fragments, c.records, c.bytes];
    std::array::from_fn(|at| if at < 5 { broker[at] } else { own[at - 5] })
}

/// Two messages of several records, and one of one record between them, all in the lane before the router looks.
fn scenario() -> ((Vec<Vec<Got>>, [u64; 9]), u32) {
    let mut stage = Stage::new(ALL);
    place(&mut stage, 8, (0, 8));
    stage.publish(0, 99, 10);
    place(&mut stage, 9, (0, 9));
    stage.router.run();
    let got = got(&mut stage);
    assert!(stage.router.state.is_quiescent());
    ((got, counted(&stage)), stage.router.deaths)
}

#[test]
fn a_router_that_dies_within_a_message_loses_and_doubles_no_fragment() {
    let ((sound, counts), deaths) = scenario();
    assert_eq!(deaths, 0);
    let expected: Vec<u8> = (0..8).chain([99]).chain(0..9).collect();
    assert!(sound.iter().all(|got| numbers(got) == expected && got.len() == expected.len()), "{sound:?}");
    let bytes = 17 * 64 + 10 + 2;
    // Both names were announced.
    assert_eq!(counts, [5, 15, 17, 20, bytes, 5, bytes, 5, bytes + 2 * 3]);
    die_at_each(&RUN_POINTS, 18, &(sound, counts), scenario);
}

#[test]
fn fragments_of_a_message_are_one_run_but_for_the_first_and_the_last() {
    let mut stage = Stage::new(ALL);
    place(&mut stage, 20, (0, 19));
    let lane = |stage: &mut Stage| stage.router.state.ports.ingress_mut(stage.publisher.key).unwrap().bulk.consumed();
    let before = lane(&mut stage);
    stage.router.run();
    let run = &stage.router.state.ports.journal.run;
    assert_eq!((run.begins_at, run.is_within, run.receivers.len()), (before + 1, true, 3), "decided once");
    let left = |stage: &Stage| {
        stage.router.state.ports.ingress(stage.publisher.key).unwrap().partial.as_ref().map(|partial| partial.left)
    };
    assert_eq!(left(&stage), Some(64));
    place(&mut stage, 20, (19, 20));
    stage.router.run();
    assert_eq!(left(&stage), None);
    let got = got(&mut stage);
    assert!(got.iter().all(|got| numbers(got) == (0..20).collect::<Vec<_>>()), "{got:?}");
    let flags: Vec<_> = got[0].iter().map(|one| one.2).collect();
    assert_eq!((flags[0], flags[19]), (Flags::FIRST, Flags::LAST));
    assert!(flags[1..19].iter().all(|flags| *flags == Flags::default()));
    // Its credit was charged once, for the whole message.
    let cells = crate::shm::layout::message_cells(20 * 64, 8192);
    let topics = stage.router.state.pubsub.topics();
    let (_, of_first) = topics.subscriptions.iter().find(|(_, found)| found.owner == stage.subscribers[0].key).unwrap();
    assert_eq!(of_first.capacity - of_first.credit, cells + 2, "and two for the messages before");
}

#[test]
fn fragments_that_are_sent_again_say_so() {
    let mut stage = Stage::new(ALL);
    stage.publisher.sequence += 1;
    for at in 0..5 {
        let flags = Flags::RESENT.with(Flags::fragment(at.into(), 1, 5));
        assert!(stage.publisher.fragment(stage.topics[0], flags, 5 * FRAGMENT, &[at; FRAGMENT]));
    }
    stage.router.run();
    assert!(stage.router.state.ports.journal.run.is_within);
    let flags: Vec<_> = got(&mut stage)[0].iter().map(|one| one.2).collect();
    let (first, last) = (Flags::RESENT.with(Flags::FIRST), Flags::RESENT.with(Flags::LAST));
    assert_eq!(flags, [first, Flags::RESENT, Flags::RESENT, Flags::RESENT, last]);
}

#[test]
fn the_sequence_number_of_the_first_fragment_holds() {
    let mut stage = Stage::new(ALL);
    stage.publisher.sequence += 1;
    let seq = stage.publisher.sequence;
    for (at, its) in [seq, 99, 99, seq, seq, 99, seq].into_iter().enumerate() {
        stage.publisher.sequence = its;
        let flags = Flags::fragment(at, 1, 7);
        assert!(stage.publisher.fragment(stage.topics[0], flags, 7 * FRAGMENT, &[at as u8; FRAGMENT]));
    }
    stage.router.run();
    for got in got(&mut stage) {
        assert_eq!(got.iter().map(|one| one.1).collect::<Vec<_>>(), [seq; 7]);
    }
}

#[test]
fn a_poison_fragment_in_the_middle_of_a_run_aborts_its_message_alone() {
    let before = (2..8).map(|n| ("router.decided", n, 0));
    let within = (4..=21).map(|n| ("router.target", n, (n - 1) % 3));
    for (point, n, having) in before.chain(within) {
        let mut stage = Stage::new(ALL);
        place(&mut stage, 8, (0, 8));
        stage.publish(0, 99, 10);
        fault::armed::arm(point, n);
        stage.router.again = Some((point, 1));
        stage.router.run();
        assert!(crashes::spent(&stage.router), "{point} {n}");
        assert_eq!((stage.router.deaths, stage.router.state.ports.counters.poisoned), (2, 1));
        let poison = if point == "router.decided" { n - 1 } else { (n - 1) / 3 } as u8;
        for (at, got) in got(&mut stage).into_iter().enumerate() {
            let has_it = (at as u32) < having;
            let expected: Vec<u8> = (0..poison + u8::from(has_it)).chain([99]).collect();
            assert_eq!(numbers(&got), expected, "{point} {n}, subscriber {at}");
            let aborted = got.iter().filter(|one| one.0 == Kind::Aborted).count();
            assert_eq!(aborted, 1, "{point} {n}, subscriber {at}");
        }
        assert_eq!(kinds(&stage.publisher.take_all(&mut stage.router)), [Kind::Quarantined]);
        assert!(stage.router.state.is_quiescent());
    }
}

#[test]
fn a_receiver_without_space_stops_a_run_and_what_it_takes_extends_the_time() {
    let mut stage = Stage::new(ALL);
    let waiting = |stage: &Stage| stage.router.state.ports.ingress(stage.publisher.key).unwrap().waiting_on;
    stage.publisher.sequence += 1;
    let place = |stage: &mut Stage, flags, len: usize| {
        assert!(stage.publisher.fragment(stage.topics[0], flags, 8 << 20, &vec![7; len]));
    };
    let received = |stage: &mut Stage| got(stage).iter().map(|got| numbers(got).len()).collect::<Vec<_>>();
    // More than the rings hold, and nothing is read.
    let mut placed = 0;
    while waiting(&stage).is_none() {
        place(&mut stage, Flags::default().with_if(Flags::FIRST, placed == 0), 8000);
        stage.router.run();
        placed += 1;
        assert!(placed < 1_000, "the rings take all");
    }
    let (on, _) = waiting(&stage).unwrap();
    assert!(stage.subscribers.iter().any(|subscriber| subscriber.key == on));
    stage.router.pass(900);
    // The record that waits comes when the last of them has read.
    let (first, rest) = (received(&mut stage), received(&mut stage));
    assert!(first.iter().zip(rest).all(|(first, rest)| first + rest == placed), "{first:?} of {placed}");
    let (_, since) = waiting(&stage).expect("the wait goes on until the message is whole");
    // Each fragment of a run counts.
    (0..30).for_each(|_| place(&mut stage, Flags::default(), 64));
    stage.router.run();
    let run = &stage.router.state.ports.journal.run;
    assert_eq!((run.is_within, run.len()), (true, 64));
    let (_, later) = waiting(&stage).unwrap();
    let timeout = stage.router.state.ports.settings.slow_consumer_timeout;
    // A ring that finds no free slot must take a sixteenth of a MiB in that time.
    assert_eq!(later - since, timeout * 30 * 64 * 16 / (1 << 20));
    assert_eq!(received(&mut stage), [30; 3]);
}

#[test]
fn a_subscriber_that_leaves_within_a_message_harms_no_other() {
    let mut stage = Stage::new(ALL);
    place(&mut stage, 20, (0, 10));
    stage.router.run();
    let (key, id) = (stage.subscribers[1].key, stage.subscribers[1].id);
    stage.router.survive(|state| state.client_ended(key, id));
    stage.router.run();
    let gone = stage.subscribers.remove(1);
    place(&mut stage, 20, (10, 20));
    stage.router.run();
    drop(gone);
    let run = &stage.router.state.ports.journal.run;
    assert!(run.is_within && run.receivers.len() == 2, "the rest is a run, too");
    let got = got(&mut stage);
    assert!(got.iter().all(|got| numbers(got) == (0..20).collect::<Vec<_>>()), "{got:?}");
    assert!(stage.router.state.is_quiescent());
}

#[test]
fn a_fragment_that_breaks_the_rules_ends_a_run_and_its_connection() {
    // The last one without the flag; a fragment that is longer than what is left; one that is too short to be the last;
    // a first one.
    for (flags, len) in
        [(Flags::default(), FRAGMENT), (Flags::default(), 3 * FRAGMENT), (Flags::LAST, 1), (Flags::FIRST, FRAGMENT)]
    {
        let mut stage = Stage::new(ALL);
        place(&mut stage, 8, (0, 7));
        assert!(stage.publisher.fragment(stage.topics[0], flags, 8 * FRAGMENT, &vec![7; len]));
        stage.router.run();
        assert_eq!(stage.router.state.ports.counters.violations, 1, "{flags:?} {len}");
        for got in got(&mut stage) {
            assert_eq!(numbers(&got), (0..7).collect::<Vec<_>>(), "{flags:?} {len}");
            assert_eq!(got.iter().filter(|one| one.0 == Kind::Aborted).count(), 1);
        }
    }
}
