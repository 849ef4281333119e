//! The router dies at each of its crash points, each time that it comes there, and is built anew; what everybody gets
//! must be what they get when it does not die.

use super::*;
use std::collections::BTreeMap;

/// Sequence, length, sum of bytes.
type Got = (u64, usize, u32);

/// What came out: by receiver and sender the messages in order, by request its outcomes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ledger {
    delivered: BTreeMap<(&'static str, u32), Vec<Got>>,
    outcomes: BTreeMap<u32, Vec<String>>,
    counters: Vec<(&'static str, u64)>,
    quiescent: bool,
}

struct Subscriber {
    name: &'static str,
    peer: Peer,
    /// Cells to give back for each message; 0: it drops, and owes nothing.
    subscriptions: Vec<u32>,
    partial: BTreeMap<(u32, u32), Vec<u8>>,
}

impl Subscriber {
    fn read(&mut self, router: &mut Router, ledger: &mut Ledger) {
        let sleeps = self.peer.segment.data_signal(RingName::Egress);
        assert!(!sleeps.is_armed() || self.peer.egress.peek().unwrap().is_none(), "{} was not woken", self.name);
        for (header, payload) in self.peer.take_all(router) {
            let place = (header.id, header.origin);
            match header.kind {
                Kind::Deliver => {
                    if header.flags.has(Flags::FIRST) {
                        assert_eq!(self.partial.insert(place, Vec::new()), None, "a message within another");
                    }
                    let so_far = self.partial.get_mut(&place).expect("a message that has begun");
                    so_far.extend(payload);
                    if header.flags.has(Flags::LAST) {
                        let message = self.partial.remove(&place).unwrap();
                        assert_eq!(message.len(), header.total as usize);
                        let sum = message.iter().map(|byte| u32::from(*byte)).sum();
                        // Two subscriptions of one connection are two receivers.
                        let at = self.subscriptions.iter().position(|s| *s == header.id).unwrap() as u32;
                        let entry = ledger.delivered.entry((self.name, at << 16 | header.origin)).or_default();
                        entry.push((header.seq, message.len(), sum));
                        let cells = crate::shm::layout::message_cells(header.total, 1024);
                        let credit = Header { id: header.id, arg: cells, ..Header::new(Kind::Credit) };
                        self.peer.push(true, credit, b"");
                    }
                }
                Kind::Aborted => assert!(self.partial.remove(&place).is_some(), "nothing to abort"),
                _ => {}
            }
        }
        router.run();
        // All is read, or read next time.
        sleeps.arm();
        if self.peer.egress.peek().unwrap().is_some() {
            sleeps.disarm();
        }
    }
}

/// The points at which a router can die within a run.
pub(super) const RUN_POINTS: [&str; 6] = ["found", "decided", "target", "delivered", "committed", "advanced"];

/// Publishes; `full` is called when there is no space.
pub(super) fn publish(
    router: &mut Router,
    peer: &mut Peer,
    topic: u32,
    payload: &[u8],
    most_parts: usize,
    mut full: impl FnMut(&mut Router),
) {
    let parts: Vec<_> = if payload.is_empty() { vec![payload] } else { payload.chunks(1024).collect() };
    for (at, part) in parts.iter().enumerate().take(most_parts) {
        peer.sequence += u64::from(at == 0);
        let mut tries = 0;
        while !peer.fragment(topic, Flags::fragment(at, 1, parts.len()), payload.len(), part) {
            // It waits for space, so its lane grows.
            peer.segment.space_signal(RingName::Bulk).arm();
            router.run();
            full(router);
            tries += 1;
            assert!(tries < 100, "no space");
        }
    }
}

fn read_answers(router: &mut Router, requester: &mut Peer, ledger: &mut Ledger) {
    for (header, payload) in requester.take_all(router) {
        let text = match header.kind {
            Kind::RoutedResponse if header.flags.has(Flags::END) => format!("end {}", payload.len()),
            Kind::RoutedResponse => format!("part {}", payload.len()),
            Kind::Failed => format!("{:?}", Outcome::from_u16(header.code)),
            _ => continue,
        };
        ledger.outcomes.entry(header.id).or_default().push(text);
    }
}

/// Everything that a router does, once. No time passes but where it says so.
fn scenario() -> (Ledger, u32) {
    let mut ledger = Ledger::default();
    let mut router = Router::new(|config| {
        config.limits.default_request_timeout_ms = 100;
        config.router.batch_records = 4;
    });
    let mut subscribers = Vec::new();
    for (name, patterns, policy, credit) in [
        ("plain", &["a.>"][..], DeliveryPolicy::Block, 0),
        ("twice", &["a.>", "a.b"], DeliveryPolicy::Block, 0),
        ("narrow", &["a.b"], DeliveryPolicy::Block, 12),
        ("oldest", &["a.>"], DeliveryPolicy::DropOldest, 0),
        ("more", &["a.*", "*.b"], DeliveryPolicy::Block, 200),
        ("other", &["a.c"], DeliveryPolicy::Block, 0),
    ] {
        let peer = router.connect();
        let subscriptions = patterns.iter().map(|pattern| router.subscribe(&peer, pattern, policy, credit)).collect();
        subscribers.push(Subscriber { name, peer, subscriptions, partial: BTreeMap::new() });
    }
    let (mut publisher, mut leaver) = (router.connect(), router.connect());
    let topic = router.topic(&publisher, "a.b");
    let leavers = router.topic(&leaver, "a.c");
    for n in 0..24u8 {
        let len = [0, 64, 700, 2500][n as usize % 4];
        publish(&mut router, &mut publisher, topic, &vec![n; len], usize::MAX, |router| {
            subscribers.iter_mut().for_each(|subscriber| subscriber.read(router, &mut ledger));
        });
        if n % 3 == 0 {
            router.run();
        }
        if n % 5 == 4 {
            subscribers.iter_mut().for_each(|subscriber| subscriber.read(&mut router, &mut ledger));
        }
    }
    // One that leaves in mid-message.
    publish(&mut router, &mut leaver, leavers, &[1; 100], usize::MAX, Router::run);
    publish(&mut router, &mut leaver, leavers, &[2; 3000], 2, Router::run);
    let (key, id) = (leaver.key, leaver.id);
    router.survive(|state| state.client_ended(key, id));
    for _ in 0..24 {
        router.run();
        subscribers.iter_mut().for_each(|subscriber| subscriber.read(&mut router, &mut ledger));
    }
    assert!(router.state.is_quiescent(), "everything is read");

    let (mut requester, mut responder) = (router.connect(), router.connect());
    router.serve(&responder, "s", 8);
    let (service, echo) = (router.service(&requester, "s"), router.service(&requester, "echo"));
    let nobody = router.service(&requester, "nobody");
    let asked: [(u32, &[u8]); 6] = [
        (service, b"one answer"),
        (echo, &[5; 300]),
        (nobody, b""),
        (service, b"a stream"),
        (service, b"cancelled"),
        (service, b"never answered"),
    ];
    for (slot, (service, payload)) in asked.into_iter().enumerate() {
        assert!(requester.request(slot as u32, 1, service, payload));
        router.run();
    }
    let body = |flags, id2| Header { flags, id: 6, id2, arg: service, total: 1500, ..Header::new(Kind::Request) };
    assert!(requester.push(true, body(Flags::FIRST, 1), &[6; 1024]));
    router.run();
    assert!(requester.push(true, body(Flags::LAST, 1), &[6; 476]));
    router.run();
    let mut calls = BTreeMap::new();
    for (header, payload) in responder.take_all(&mut router) {
        if header.kind == Kind::RoutedRequest {
            calls.entry(header.seq).or_insert_with(Vec::new).extend(payload);
        }
    }
    for (call, body) in &calls {
        let whole = |flags: Flags, total| Header {
            flags: Flags::WHOLE.with(flags),
            seq: *call,
            total,
            ..Header::new(Kind::Response)
        };
        match &body[..] {
            b"one answer" => drop(responder.push(true, whole(Flags::END, 3), b"one")),
            b"a stream" => {
                for _ in 0..3 {
                    responder.push(true, whole(Flags::STREAM, 4), b"part");
                    router.run();
                }
                let grant = Header { seq: *call, arg: 1, ..Header::new(Kind::BodyCredit) };
                responder.push(true, grant, b"");
                responder.push(true, whole(Flags::END, 0), b"");
            }
            [6, ..] => {
                assert_eq!(body.len(), 1500);
                responder.push(true, whole(Flags::END, 2), b"ok");
            }
            _ => {}
        }
        router.run();
    }
    read_answers(&mut router, &mut requester, &mut ledger);
    requester.push(true, Header { id: 4, id2: 1, ..Header::new(Kind::Cancel) }, b"");
    router.run();
    router.pass(101);
    read_answers(&mut router, &mut requester, &mut ledger);
    // The responder goes with a call that it has taken.
    requester.request(7, 1, service, b"lost");
    router.run();
    let (key, id) = (responder.key, responder.id);
    router.survive(|state| state.client_ended(key, id));
    router.run();
    read_answers(&mut router, &mut requester, &mut ledger);

    router.pass(600);
    let c = &router.state.ports.counters;
    ledger.counters = vec![
        ("published", c.published),
        ("delivered", c.delivered),
        ("dropped", c.dropped.iter().sum()),
        ("aborted", c.aborted),
        ("poison_messages", c.poisoned),
        ("late", c.late),
    ];
    ledger.quiescent = router.state.is_quiescent() && router.state.calls.outstanding() == 0;
    (ledger, router.deaths)
}

/// Lets a router die at each of its `points`, once for each time that `scenario` comes there, `least` times at least.
/// `scenario` returns what came of it, which must be what comes of a sound router, and the number of deaths.
pub(super) fn die_at_each<T: PartialEq + std::fmt::Debug>(
    points: &[&str],
    least: u32,
    sound: &T,
    scenario: impl Fn() -> (T, u32),
) {
    for name in points {
        let point = fault::POINTS.iter().map(|(p, _)| *p).find(|p| p.strip_prefix("router.") == Some(name)).unwrap();
        for n in 1.. {
            fault::armed::arm(point, n);
            let (found, deaths) = scenario();
            if fault::armed::disarm() {
                assert_eq!(deaths, 0);
                assert!(n > least, "{point} was reached {} times", n - 1);
                break;
            }
            assert_eq!(deaths, 1);
            assert_eq!(&found, sound, "died at {point}, the {n}. time there");
        }
    }
}

#[test]
fn a_router_that_dies_at_any_point_loses_and_doubles_nothing() {
    let (sound, deaths) = scenario();
    assert_eq!(deaths, 0);
    assert!(sound.quiescent);
    assert_eq!(sound.delivered[&("plain", 7)].len(), 24);
    assert_eq!(sound.outcomes.values().map(|o| o.iter().filter(|o| !o.starts_with("part")).count()).max(), Some(1));
    assert_eq!(sound.outcomes.len(), 8);
    let points = ["found", "decided", "target", "delivered", "committed", "advanced", "flush", "ring", "park"];
    die_at_each(&points, 2, &sound, scenario);
    die_at_each(&["bell", "timer", "timed", "answering", "ending"], 2, &sound, scenario);
}

#[test]
fn a_call_that_was_half_begun_has_one_outcome() {
    let (sound, _) = scenario();
    for n in 1.. {
        fault::armed::arm("router.express", n);
        let (ledger, _) = scenario();
        if fault::armed::disarm() {
            assert!(n > 3);
            break;
        }
        assert_eq!(ledger.delivered, sound.delivered);
        for (request, outcomes) in &ledger.outcomes {
            let ends = outcomes.iter().filter(|outcome| !outcome.starts_with("part")).count();
            assert_eq!(ends, 1, "request {request}: {outcomes:?}");
        }
        assert!(ledger.quiescent);
        assert_eq!(ledger.outcomes.len(), 8);
    }
}

/// Three who have subscribed to what a fourth publishes: the router, the three, the fourth, its number of the topic.
fn three_subscribers() -> (Router, Vec<Peer>, Peer, u32) {
    let mut router = Router::new(|_| {});
    let subscribers: Vec<_> = (0..3).map(|_| router.connect()).collect();
    for subscriber in &subscribers {
        router.subscribe(subscriber, "a.b", DeliveryPolicy::Block, 0);
    }
    let publisher = router.connect();
    let topic = router.topic(&publisher, "a.b");
    (router, subscribers, publisher, topic)
}

/// Arms a fault that kills the router twice, the first time at the `n`th time that it comes there, then at once again.
fn kill_twice(router: &mut Router, point: &'static str, n: u32) {
    fault::armed::arm(point, n);
    router.again = Some((point, 1));
}

pub(super) fn spent(router: &Router) -> bool {
    !fault::armed::disarm() && router.again.is_none()
}

#[test]
fn a_message_that_kills_two_routers_is_quarantined_and_its_sender_told() {
    let (mut router, mut subscribers, mut publisher, topic) = three_subscribers();
    for (n, len, parts) in [(0, 10, 1), (1, 3000, 3), (2, 10, 1)] {
        // Twice in its own first record, when one subscriber has it; the last message is as before.
        if n < 2 {
            kill_twice(&mut router, "router.target", 2);
        }
        publish(&mut router, &mut publisher, topic, &vec![n; len], parts, Router::run);
        router.run();
        assert!(spent(&router));
    }
    assert_eq!((router.deaths, router.state.ports.counters.poisoned), (4, 2));
    let got: Vec<_> = subscribers
        .iter_mut()
        .map(|subscriber| {
            let taken = subscriber.take_all(&mut router);
            taken
                .iter()
                .filter(|(h, _)| h.kind != Kind::TopicName)
                .map(|(h, _)| (h.kind, h.seq, h.dropped))
                .collect::<Vec<_>>()
        })
        .collect();
    let first: Vec<(Kind, u64, u32)> =
        vec![(Kind::Deliver, 1, 0), (Kind::Deliver, 2, 0), (Kind::Aborted, 0, 1), (Kind::Deliver, 3, 1)];
    assert_eq!(got[0], first, "it had what the routers died of");
    for others in &got[1..] {
        assert_eq!(*others, [(Kind::Deliver, 3, 2)], "two messages are missing, and that is seen");
    }
    let received = publisher.take_all(&mut router);
    assert_eq!(kinds(&received), [Kind::Quarantined; 2]);
    assert!(router.state.is_quiescent());

    router.serve(&subscribers[0], "s", 8);
    let service = router.service(&publisher, "s");
    kill_twice(&mut router, "router.found", 1);
    publisher.request(0, 1, service, b"poison");
    router.run();
    let failed = publisher.take_all(&mut router);
    assert_eq!((failed.len(), failed[0].0.code), (1, Outcome::ResponderLost as u16));
    assert_eq!(subscribers[0].take(), None, "it never saw the request");
    assert!(router.state.is_quiescent());
}

#[test]
fn a_receiver_of_a_quarantined_message_keeps_it() {
    let (mut router, mut subscribers, mut publisher, topic) = three_subscribers();
    // Killed behind the push to the second and then to the third: so all have it.
    kill_twice(&mut router, "router.delivered", 2);
    publish(&mut router, &mut publisher, topic, b"whole", 1, Router::run);
    router.run();
    assert!(spent(&router));
    // Killed before and in the last record of a long one: the first has all of it, the second, too, the third does not.
    publish(&mut router, &mut publisher, topic, &[1; 1500], 1, Router::run);
    router.run();
    fault::armed::arm("router.target", 2);
    router.again = Some(("router.delivered", 1));
    let seq = publisher.sequence;
    let last = Header { flags: Flags::LAST, id: topic, total: 1500, seq, ..Header::new(Kind::Publish) };
    assert!(publisher.push(false, last, &[1; 476]));
    router.run();
    assert!(spent(&router));
    // Not of the message before.
    kill_twice(&mut router, "router.decided", 1);
    publish(&mut router, &mut publisher, topic, &[2; 1500], 2, Router::run);
    router.run();
    assert!(spent(&router));
    publish(&mut router, &mut publisher, topic, b"last", 1, Router::run);
    router.run();
    let whole = [(Kind::Deliver, 1), (Kind::Deliver, 2), (Kind::Deliver, 2), (Kind::Deliver, 4)];
    let cut = [(Kind::Deliver, 1), (Kind::Deliver, 2), (Kind::Aborted, 0), (Kind::Deliver, 4)];
    for (at, subscriber) in subscribers.iter_mut().enumerate() {
        let taken = subscriber.take_all(&mut router);
        let taken: Vec<_> =
            taken.iter().filter(|(h, _)| h.kind != Kind::TopicName).map(|(h, _)| (h.kind, h.seq)).collect();
        assert_eq!(taken, if at < 2 { whole } else { cut }, "subscriber {at}");
    }
    assert_eq!(kinds(&publisher.take_all(&mut router)), [Kind::Quarantined; 3]);

    kill_twice(&mut router, "router.decided", 1);
    assert!(publisher.push(false, Header { seq: 77, ..Header::new(Kind::Flush) }, b""));
    router.run();
    assert!(spent(&router));
    let flushed = publisher.take_all(&mut router);
    assert_eq!((kinds(&flushed), flushed[0].0.seq), (vec![Kind::Flushed], 77), "nothing of a flush can be lost");
}

#[test]
fn a_timer_that_kills_two_routers_leaves_nobody_waiting() {
    let mut router = Router::new(|config| config.limits.default_request_timeout_ms = 100);
    let (mut requester, responder) = (router.connect(), router.connect());
    router.serve(&responder, "s", 8);
    let service = router.service(&requester, "s");
    for slot in 0..2 {
        assert!(requester.request(slot, 1, service, b""));
        router.run();
    }
    kill_twice(&mut router, "router.timer", 1);
    router.pass(101);
    assert!(spent(&router));
    let failed = requester.take_all(&mut router);
    let outcomes: Vec<_> = failed.iter().map(|(header, _)| Outcome::from_u16(header.code).unwrap()).collect();
    assert_eq!(outcomes, [Outcome::ResponderLost, Outcome::DeadlineExceeded]);
    // One death, long after, in another timer is not the second of these.
    for slot in 0..2 {
        fault::armed::arm("router.timer", 1);
        assert!(requester.request(slot, 2 + slot, service, b""));
        router.run();
        router.pass(101);
        assert!(spent(&router));
        let failed = requester.take_all(&mut router);
        assert_eq!((failed.len(), failed[0].0.code), (1, Outcome::DeadlineExceeded as u16));
    }
    assert!(router.state.is_quiescent());
}

#[test]
fn a_reply_that_lies_in_its_lane_is_in_time_however_long_there_was_no_router() {
    let mut router = Router::new(|config| config.limits.default_request_timeout_ms = 100);
    let (mut requester, mut responder) = (router.connect(), router.connect());
    router.serve(&responder, "s", 8);
    let service = router.service(&requester, "s");
    assert!(requester.request(0, 1, service, b""));
    router.run();
    let call = responder.take().unwrap().0.seq;
    let flags = Flags::WHOLE.with(Flags::END);
    assert!(responder.push(true, Header { flags, seq: call, total: 2, ..Header::new(Kind::Response) }, b"ok"));
    fault::armed::arm("router.timer", 1);
    router.pass(5_000);
    assert!(spent(&router));
    let answers = requester.take_all(&mut router);
    assert_eq!(kinds(&answers), [Kind::RoutedResponse]);
    router.pass(5_000);
    assert!(router.state.is_quiescent());
}
