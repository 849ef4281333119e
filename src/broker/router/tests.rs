//! The router without actors, processes or a clock: clients are the client's ends of real segments, in one thread.

mod bodies;
mod breaker;
mod call_timers;
mod crashes;
mod express_runs;
mod fragments;
mod given_up;
mod memory;
mod newest;
mod polling;
mod requests;
mod resent;
mod runs;
mod streams;
mod timings;
mod user_memory;
mod users;
mod waiting;
mod wakes;

use super::in_process::{ClientEnds, work};
use super::settings::Settings;
use super::state::RouterState;
use crate::broker::supervision::fault;
use crate::broker::telemetry::events::Events;
use crate::config::Config;
use crate::logic::shares::{Principal, uid};
use crate::shm::doorbell::{BrokerBells, ClientBells};
use crate::shm::layout::RingName;
use crate::shm::peer::{Credentials, own_uid};
use crate::shm::ring::{Consumer, Payload, Producer};
use crate::shm::segment::{Nonces, Segment};
use crate::wire::control::{BrokerFrame, ClientFrame, ClosingCode, DeliveryPolicy, InternKind};
use crate::wire::record::{Flags, Header, Kind, Outcome};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Another user than that of the test.
const OTHER: u32 = 4_000_000;

struct Router {
    state: RouterState,
    questions: u64,
    /// How often it died by an armed fault.
    deaths: u32,
    /// The fault to arm when it dies next.
    again: Option<(&'static str, u32)>,
}

struct Peer {
    key: u32,
    id: u32,
    bulk: Producer,
    express: Producer,
    egress: Consumer,
    sequence: u64,
    bells: ClientBells,
    segment: Segment,
    _socket: (UnixStream, UnixStream),
}

impl Router {
    fn new(change: impl FnOnce(&mut Config)) -> Router {
        let mut config = Config::default();
        // Peers here ring whenever they have done anything, and no time passes.
        config.limits.max_rings_without_progress = 1_000_000;
        change(&mut config);
        let state = RouterState::new(Settings::new(&config).unwrap(), Events::new(), 0).unwrap();
        Router { state, questions: 0, deaths: 0, again: None }
    }

    fn connect(&mut self) -> Peer {
        self.connect_as(own_uid())
    }

    fn connect_as(&mut self, uid: u32) -> Peer {
        self.connect_of(Principal::of_uid(uid))
    }

    fn connect_of(&mut self, user: Principal) -> Peer {
        let ends = ClientEnds::attach_as(&mut self.state, user).unwrap();
        let ClientEnds { key, id, bulk, express, egress, bells, segment, socket } = ends;
        Peer { key, id, bulk, express, egress, sequence: 0, bells, segment, _socket: socket }
    }

    fn handle_request(&mut self, peer: &Peer, frame: ClientFrame) -> BrokerFrame {
        self.questions += 1;
        let number = self.questions;
        let answer = self.survive(|state| {
            let answer = state.handle_request(peer.key, peer.id, number, frame.clone());
            fault::point("router.answering", 0);
            answer
        });
        let answer = answer.expect("the connection exists");
        self.run();
        answer
    }

    fn topic(&mut self, peer: &Peer, name: &str) -> u32 {
        let frame = ClientFrame::Intern { serial: 1, kind: InternKind::Topic, name: name.parse().unwrap() };
        match self.handle_request(peer, frame) {
            BrokerFrame::Interned { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    fn service(&mut self, peer: &Peer, name: &str) -> u32 {
        let frame = ClientFrame::Intern { serial: 1, kind: InternKind::Service, name: name.parse().unwrap() };
        match self.handle_request(peer, frame) {
            BrokerFrame::Interned { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    fn subscribe(&mut self, peer: &Peer, pattern: &str, policy: DeliveryPolicy, credit: u32) -> u32 {
        let frame = ClientFrame::Subscribe { serial: 1, pattern: pattern.parse().unwrap(), policy, credit };
        match self.handle_request(peer, frame) {
            BrokerFrame::Subscribed { subscription, .. } => subscription,
            other => panic!("{other:?}"),
        }
    }

    fn serve(&mut self, peer: &Peer, name: &str, max_in_flight: u32) {
        let frame = ClientFrame::Serve { serial: 1, service: name.parse().unwrap(), max_in_flight };
        assert!(matches!(self.handle_request(peer, frame), BrokerFrame::Serving { .. }));
    }

    /// Works until there is nothing to do.
    fn run(&mut self) {
        self.survive(work);
    }

    /// Works as a supervised router does: one that dies by an armed fault is followed by another, over the same state.
    fn survive<T>(&mut self, mut work: impl FnMut(&mut RouterState) -> T) -> T {
        loop {
            match catch_unwind(AssertUnwindSafe(|| work(&mut self.state))) {
                Ok(result) => return result,
                Err(reason) => self.died(reason),
            }
            while let Err(reason) = catch_unwind(AssertUnwindSafe(|| self.state.recover())) {
                self.died(reason);
            }
        }
    }

    fn died(&mut self, reason: Box<dyn std::any::Any + Send>) {
        if reason.downcast_ref() != Some(&fault::armed::INJECTED) {
            resume_unwind(reason);
        }
        self.deaths += 1;
        if let Some((point, n)) = self.again.take() {
            fault::armed::arm(point, n);
        }
    }

    fn pass(&mut self, ms: u64) {
        let now = self.state.ports.now + ms * 1_000_000;
        self.survive(|state| state.advance(now));
        self.run();
    }
}

impl Peer {
    fn publish(&mut self, topic: u32, payload: &[u8]) -> bool {
        let total = payload.len() as u32;
        self.sequence += 1;
        let (flags, seq) = (Flags::WHOLE, self.sequence);
        self.push(false, Header { flags, id: topic, total, seq, ..Header::new(Kind::Publish) }, payload)
    }

    /// Places a fragment of a message of `total` bytes, with the present sequence number.
    fn fragment(&mut self, topic: u32, flags: Flags, total: usize, payload: &[u8]) -> bool {
        let (total, seq) = (total as u32, self.sequence);
        self.push(false, Header { flags, id: topic, total, seq, ..Header::new(Kind::Publish) }, payload)
    }

    fn request(&mut self, slot: u32, generation: u32, service: u32, payload: &[u8]) -> bool {
        let total = payload.len() as u32;
        let header = Header {
            flags: Flags::WHOLE,
            id: slot,
            id2: generation,
            arg: service,
            total,
            ..Header::new(Kind::Request)
        };
        self.push(true, header, payload)
    }

    fn push(&mut self, express: bool, header: Header, payload: &[u8]) -> bool {
        let lane = if express { &mut self.express } else { &mut self.bulk };
        lane.enter();
        let pushed = lane.push(&header.to_words(), Payload::Bytes(payload)).unwrap();
        lane.leave();
        self.bells.ring();
        pushed
    }

    /// The next record, consumed.
    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let record = self.egress.peek().unwrap()?;
        let mut payload = Vec::new();
        self.egress.append_payload(&record, &mut payload);
        self.egress.advance(&record);
        self.egress.publish_consumed();
        self.bells.ring();
        Some((Header::from_words(&record.header).unwrap(), payload))
    }

    fn take_all(&mut self, router: &mut Router) -> Vec<(Header, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(taken) = self.take() {
            all.push(taken);
            router.run();
        }
        all
    }
}

fn kinds(taken: &[(Header, Vec<u8>)]) -> Vec<Kind> {
    taken.iter().map(|(header, _)| header.kind).collect()
}

#[test]
fn steady_routing_allocates_nothing() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut requester, mut responder) = (router.connect(), router.connect(), router.connect());
    let mut subscribers: Vec<_> = (0..3).map(|_| router.connect()).collect();
    for subscriber in &subscribers {
        router.subscribe(subscriber, "a.>", DeliveryPolicy::DropOldest, 0);
    }
    let topic = router.topic(&publisher, "a.b");
    router.serve(&responder, "s", 0);
    let service = router.service(&requester, "s");
    let echo = router.service(&requester, "echo");
    let mut round = |router: &mut Router, n: u32| {
        assert!(publisher.publish(topic, &[7; 64]));
        assert!(requester.request(0, n, service, &[8; 100]));
        assert!(requester.request(1, n, echo, &[9; 600]));
        router.run();
        for subscriber in &mut subscribers {
            while let Some(record) = subscriber.egress.peek().unwrap() {
                subscriber.egress.advance(&record);
            }
            subscriber.egress.publish_consumed();
        }
        let call = responder.egress.peek().unwrap().expect("a call");
        responder.egress.advance(&call);
        responder.egress.publish_consumed();
        let header = Header::from_words(&call.header).unwrap();
        let flags = Flags::WHOLE.with(Flags::END);
        let answer = Header { flags, seq: header.seq, total: 5, ..Header::new(Kind::Response) };
        assert!(responder.push(true, answer, b"reply"));
        router.run();
        let mut answers = 0;
        while let Some(record) = requester.egress.peek().unwrap() {
            requester.egress.advance(&record);
            answers += 1;
        }
        requester.egress.publish_consumed();
        assert_eq!(answers, 2);
        router.state.advance(u64::from(n) * 10_000);
    };
    for n in 0..2000 {
        round(&mut router, n);
    }
    let before = router.state.ports.counters.records;
    let counted = allocation_counter::measure(|| {
        for n in 2000..4000 {
            round(&mut router, n);
        }
    });
    assert_eq!(router.state.ports.counters.records - before, 2000 * 4);
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

#[test]
fn a_publish_goes_to_all_or_waits_and_nothing_is_doubled() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut quick, slow) = (router.connect(), router.connect(), router.connect());
    router.subscribe(&quick, "t", DeliveryPolicy::Block, 0);
    router.subscribe(&slow, "t", DeliveryPolicy::Block, 9);
    let topic = router.topic(&publisher, "t");
    for n in 0..15u8 {
        assert!(publisher.publish(topic, &[n]));
        router.run();
    }
    // Nine cells of credit less what may be owed: the slow one stops the publisher.
    let before = quick.take_all(&mut router).len();
    assert!((5..15).contains(&before), "{before}");
    assert_eq!(router.state.ports.counters.parked, 1);
    router.pass(999);
    assert_eq!(router.state.ports.counters.evicted, 0);
    router.pass(2);
    assert_eq!(router.state.ports.counters.evicted, 1);
    let after = quick.take_all(&mut router);
    let numbers: Vec<u64> = after.iter().map(|(header, _)| header.seq).collect();
    assert_eq!(before - 1 + after.len(), 15, "the first record named the topic");
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
}

#[test]
fn each_request_has_one_outcome() {
    let mut router = Router::new(|config| config.limits.default_request_timeout_ms = 100);
    let (mut requester, mut responder) = (router.connect(), router.connect());
    let service = router.service(&requester, "s");
    requester.request(0, 1, service, b"x");
    router.run();
    let failed = requester.take_all(&mut router);
    assert_eq!(kinds(&failed), [Kind::Failed]);
    assert_eq!(failed[0].0.code, Outcome::NoResponders as u16);

    router.serve(&responder, "s", 1);
    requester.request(0, 2, service, b"x");
    requester.request(1, 2, service, b"y");
    router.run();
    let failed = requester.take_all(&mut router);
    assert_eq!((failed[0].0.code, failed[0].0.id), (Outcome::Overloaded as u16, 1));

    router.pass(101);
    let failed = requester.take_all(&mut router);
    assert_eq!((failed.len(), failed[0].0.code), (1, Outcome::DeadlineExceeded as u16));
    let calls = responder.take_all(&mut router);
    assert_eq!(kinds(&calls), [Kind::RoutedRequest, Kind::CallEnded]);

    let flags = Flags::WHOLE.with(Flags::END);
    let late = Header { flags, seq: calls[0].0.seq, total: 1, ..Header::new(Kind::Response) };
    responder.push(true, late, b"z");
    router.run();
    assert_eq!((router.state.ports.counters.late, requester.take()), (1, None));
    assert!(router.state.is_quiescent());
}

#[test]
fn a_responder_that_goes_and_a_requester_that_goes_leave_nothing() {
    let mut router = Router::new(|_| {});
    let (mut requester, responder, other) = (router.connect(), router.connect(), router.connect());
    let service = router.service(&requester, "s");
    router.serve(&responder, "s", 0);
    for slot in 0..10 {
        requester.request(slot, 1, service, b"x");
        router.run();
    }
    router.state.client_ended(responder.key, responder.id);
    router.run();
    let failed = requester.take_all(&mut router);
    assert_eq!(failed.len(), 10);
    assert!(failed.iter().all(|(header, _)| header.code == Outcome::ResponderLost as u16));

    router.serve(&other, "s", 0);
    for slot in 0..10 {
        requester.request(slot, 2, service, b"x");
        router.run();
    }
    assert_eq!(router.state.calls.outstanding(), 10);
    router.state.client_ended(requester.key, requester.id);
    router.run();
    assert_eq!(router.state.calls.outstanding(), 0);
    assert!(router.state.is_quiescent());
}

#[test]
fn a_client_that_goes_has_its_lanes_drained_first() {
    let mut router = Router::new(|_| {});
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    router.subscribe(&subscriber, "t", DeliveryPolicy::Block, 0);
    let topic = router.topic(&publisher, "t");
    for n in 0..9u8 {
        assert!(publisher.publish(topic, &[n]));
    }
    router.state.client_ended(publisher.key, publisher.id);
    router.run();
    let taken = subscriber.take_all(&mut router);
    assert_eq!(taken.iter().filter(|(header, _)| header.kind == Kind::Deliver).count(), 9);
    assert!(router.state.ports.ingress(publisher.key).is_none());
    assert_eq!(router.state.pubsub.topics().len(), 0);
    assert_eq!(kinds(&taken).last(), Some(&Kind::TopicGone));
}

#[test]
fn what_a_client_does_not_read_is_bounded_and_costs_only_itself() {
    let mut router = Router::new(|config| config.limits.max_backlog_bytes = 65_536);
    let (mut silent, mut other) = (router.connect(), router.connect());
    let echo = router.service(&silent, "echo");
    let others = router.service(&other, "echo");
    let mut generation = 0;
    while router.state.ports.ingress(silent.key).is_some() {
        generation += 1;
        assert!(generation < 2000, "never ended");
        silent.request(0, generation, echo, &[1; 1000]);
        other.request(0, generation, others, b"hi");
        router.run();
        assert_eq!(kinds(&other.take_all(&mut router)), [Kind::RoutedResponse]);
    }
    let (info, close) = router.state.ended.pop().unwrap();
    assert_eq!((info.id, close.code), (silent.id, ClosingCode::SlowConsumer));
}

#[test]
fn answers_that_are_not_read_cost_their_calls_and_not_the_connection() {
    let mut router = Router::new(|config| {
        config.limits.max_backlog_bytes = 65_536;
        (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (64, 64);
    });
    let (mut requester, mut responder) = (router.connect(), router.connect());
    let service = router.service(&requester, "s");
    router.serve(&responder, "s", 0);
    let flags = Flags::WHOLE.with(Flags::END);
    for slot in 0..500 {
        assert!(requester.request(slot, 1, service, b"x"));
        router.run();
        let came = responder.take_all(&mut router);
        let (call, _) = came.iter().find(|(header, _)| header.kind == Kind::RoutedRequest).expect("the call");
        let answer = Header { flags, seq: call.seq, total: 700, ..Header::new(Kind::Response) };
        assert!(responder.push(true, answer, &[7; 700]));
        router.run();
    }
    let got = requester.take_all(&mut router);
    let overloaded = |header: &Header| header.kind == Kind::Failed && header.code == Outcome::Overloaded as u16;
    let (failed, answered): (Vec<_>, Vec<_>) = got.iter().partition(|(header, _)| overloaded(header));
    assert!(answered.iter().all(|(header, _)| header.kind == Kind::RoutedResponse), "one outcome each");
    assert!(!failed.is_empty() && failed.len() + answered.len() == 500, "{} and {}", failed.len(), answered.len());
    assert!(router.state.ports.ingress(requester.key).is_some());
}

#[test]
fn a_publisher_of_many_topics_that_leaves_harms_no_subscriber() {
    let mut router = Router::new(|config| config.limits.max_backlog_bytes = 65_536);
    let (mut publisher, mut subscriber) = (router.connect(), router.connect());
    router.subscribe(&subscriber, ">", DeliveryPolicy::DropOldest, 0);
    for n in 0..3000 {
        let topic = router.topic(&publisher, &format!("t.{n}"));
        publisher.publish(topic, b"x");
        router.run();
        subscriber.take_all(&mut router);
    }
    router.state.client_ended(publisher.key, publisher.id);
    router.run();
    assert!(router.state.ports.ingress(publisher.key).is_none(), "it has ended");
    assert!(router.state.ports.ingress(subscriber.key).is_some(), "{:?}", router.state.ended);
    let gone = subscriber.take_all(&mut router);
    assert!(gone.iter().filter(|(header, _)| header.kind == Kind::TopicGone).count() > 500);
}

#[test]
fn a_reader_that_sleeps_is_woken_for_records_and_not_because_its_lane_was_emptied() {
    let mut router = Router::new(|_| {});
    let mut peer = router.connect();
    let topic = router.topic(&peer, "a.b");
    let sleeps = peer.segment.data_signal(RingName::Egress);
    sleeps.arm();
    let rung = router.state.ports.egresses.rung;
    assert!(peer.publish(topic, b"nobody hears it"));
    router.run();
    assert_eq!((router.state.ports.counters.published, router.state.ports.egresses.rung - rung), (1, 0));
    assert!(sleeps.is_armed());
    router.subscribe(&peer, "a.b", DeliveryPolicy::Block, 100);
    assert!(peer.publish(topic, b"it hears it itself"));
    router.run();
    assert_eq!(router.state.ports.egresses.rung - rung, 1);
    assert!(!sleeps.is_armed());
}

#[test]
fn a_producer_that_waits_is_told_of_space_by_the_quarter_or_when_its_lane_is_dry() {
    let mut router = Router::new(|config| config.router.batch_records = 1);
    let mut peer = router.connect();
    let topic = router.topic(&peer, "a.b");
    let space = peer.segment.space_signal(RingName::Bulk);
    let key = peer.key;
    let lane = |router: &Router| {
        let bulk = &router.state.ports.ingress(key).unwrap().bulk;
        (bulk.consumed(), bulk.window())
    };
    // Waits in vain make the window grow.
    let mut grown = 0;
    while lane(&router).1 > grown || grown == 0 {
        grown = lane(&router).1;
        while peer.publish(topic, b"") {}
        space.arm();
        router.run();
        assert!(!space.is_armed(), "told when it was dry");
    }
    let mut placed = 0;
    while peer.publish(topic, b"") {
        placed += 1;
    }
    space.arm();
    router.state.look();
    let (before, window) = lane(&router);
    while space.is_armed() {
        assert!(router.state.step());
    }
    let taken = (lane(&router).0 - before) as u32;
    assert!(placed >= window && (placed / 4..placed / 2).contains(&taken), "told after {taken} of {placed}");
}
