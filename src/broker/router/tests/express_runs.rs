//! Runs of requests to the echo, which are replied to with one decision, and a router that dies within one.

use super::crashes::{RUN_POINTS, die_at_each};
use super::*;

/// What the requester got: kind, slot, generation, first byte, length, outcome.
type Got = (Kind, u32, u32, Option<u8>, usize, u16);

/// Requests of a run.
const COUNT: u32 = 8;

struct Stage {
    router: Router,
    peer: Peer,
    echo: u32,
    generation: u32,
}

impl Stage {
    fn new(change: impl FnOnce(&mut Config)) -> Stage {
        // Lanes that hold all requests of a test before the router looks.
        let mut router = Router::new(|config| {
            config.shared_memory.slot_size = 8192;
            change(config);
        });
        let mut peer = router.connect();
        let echo = router.service(&peer, "echo");
        // The first request of a slot makes it, and is no part of a run.
        (0..2 * COUNT).rev().for_each(|slot| assert!(peer.request(slot, 0, echo, b"")));
        router.run();
        peer.take_all(&mut router);
        Stage { router, peer, echo, generation: 0 }
    }

    /// Places a request with a new generation; the router does not look yet.
    fn ask(&mut self, slot: u32, len: usize) {
        self.generation += 1;
        assert!(self.peer.request(slot, self.generation, self.echo, &vec![slot as u8; len]));
    }

    fn got(&mut self) -> Vec<Got> {
        let taken = self.peer.take_all(&mut self.router);
        let of = |(h, bytes): &(Header, Vec<u8>)| (h.kind, h.id, h.id2, bytes.first().copied(), bytes.len(), h.code);
        taken.iter().map(of).collect()
    }

    /// The position of the lane at which the last run began.
    fn begins_at(&self) -> u64 {
        self.router.state.ports.journal.echoes.begins_at
    }

    fn consumed(&mut self) -> u64 {
        self.router.state.ports.ingress_mut(self.peer.key).unwrap().express.consumed()
    }

    fn counted(&self) -> [u64; 9] {
        let (ports, calls) = (&self.router.state.ports, &self.router.state.calls);
        let (c, ingress) = (&ports.counters, ports.ingress(self.peer.key).unwrap());
        let echo = calls.services().iter().find(|service| service.name.as_str() == "echo").unwrap();
        let egress = ports.egresses.get(self.peer.key).unwrap();
        let broker = [c.requests, c.replies, c.records, c.bytes, echo.requests];
        let peer = [ingress.messages, ingress.bytes, egress.messages, egress.bytes];
        std::array::from_fn(|at| if at < 5 { broker[at] } else { peer[at - 5] })
    }
}

/// The reply to a request with this generation.
fn reply(slot: u32, generation: u32, len: usize) -> Got {
    (Kind::RoutedResponse, slot, generation, (len > 0).then_some(slot as u8), len, 0)
}

/// Requests of several shapes, and cancels between them, all in the lane before the router looks.
fn scenario() -> ((Vec<Got>, [u64; 9]), u32) {
    let mut stage = Stage::new(|_| {});
    for (slot, len) in [64, 64, 64, 64, 100, 100, 100, 0, 0, 64, 64].into_iter().enumerate() {
        stage.ask(slot as u32, len);
        if slot % 4 == 2 {
            let cancel = Header { id: slot as u32, id2: stage.generation, ..Header::new(Kind::Cancel) };
            assert!(stage.peer.push(true, cancel, b""));
        }
    }
    stage.router.run();
    assert_eq!(stage.router.state.ports.counters.cancels, 3);
    let got = stage.got();
    assert!(stage.router.state.is_quiescent());
    ((got, stage.counted()), stage.router.deaths)
}

#[test]
fn a_router_that_dies_within_a_run_replies_once_to_each_request() {
    let ((sound, counted), deaths) = scenario();
    let lens = [64, 64, 64, 64, 100, 100, 100, 0, 0, 64, 64];
    let expected: Vec<_> = (0..).zip(lens).map(|(slot, len)| reply(slot, slot + 1, len)).collect();
    assert_eq!((&sound, deaths), (&expected, 0));
    let (requests, bytes) = (16 + 11, 6 * 64 + 3 * 100);
    // The three cancels are records, and no messages.
    assert_eq!(counted, [requests, requests, requests + 3, bytes, requests, requests, bytes, requests, bytes]);
    die_at_each(&RUN_POINTS, 11, &(sound, counted), scenario);
}

#[test]
fn requests_of_one_shape_are_one_run_and_a_batch_ends_it() {
    let mut stage = Stage::new(|config| config.router.batch_records = 1);
    (0..COUNT).for_each(|slot| stage.ask(slot, 64));
    let before = stage.consumed();
    stage.router.state.look();
    assert!(stage.router.state.step());
    assert_eq!((stage.begins_at(), stage.consumed()), (before, before + 4), "decided once, at the first");
    assert!(stage.router.state.step());
    assert_eq!((stage.begins_at(), stage.consumed()), (before + 4, before + 8));
    assert_eq!(stage.got(), (0..COUNT).map(|slot| reply(slot, slot + 1, 64)).collect::<Vec<_>>());
    let slots = &stage.router.state.ports.ingress(stage.peer.key).unwrap().requests;
    let generations: Vec<_> = slots.iter().take(COUNT as usize).map(|slot| slot.generation).collect();
    assert_eq!(generations, (1..=COUNT).collect::<Vec<_>>());
}

#[test]
fn a_poison_request_in_the_middle_of_a_run_is_set_aside_alone() {
    // At each request of the run: found, before its decision, and before its reply is placed.
    for point in ["router.found", "router.decided", "router.target"] {
        for n in 1..=COUNT {
            let mut stage = Stage::new(|_| {});
            (0..COUNT).for_each(|slot| stage.ask(slot, 64));
            fault::armed::arm(point, n);
            // By itself it has no target.
            stage.router.again = Some((if point == "router.target" { "router.decided" } else { point }, 1));
            stage.router.run();
            assert!(crashes::spent(&stage.router), "{point} {n}");
            assert_eq!((stage.router.deaths, stage.router.state.ports.counters.poisoned), (2, 1));
            let lost = |slot| (Kind::Failed, slot, slot + 1, None, 0, Outcome::ResponderLost as u16);
            let outcome = |slot| if slot + 1 == n { lost(slot) } else { reply(slot, slot + 1, 64) };
            assert_eq!(stage.got(), (0..COUNT).map(outcome).collect::<Vec<_>>(), "{point} {n}");
            assert!(stage.router.state.is_quiescent());
            // And then there are runs again.
            let before = stage.consumed();
            (0..COUNT).for_each(|slot| stage.ask(slot, 64));
            stage.router.run();
            assert_eq!((stage.begins_at(), stage.got().len()), (before, COUNT as usize));
        }
    }
}

#[test]
fn a_request_of_which_a_router_may_have_died_is_routed_by_itself() {
    let mut stage = Stage::new(|_| {});
    (0..COUNT).for_each(|slot| stage.ask(slot, 64));
    let before = stage.consumed();
    fault::armed::arm("router.decided", 3);
    stage.router.run();
    assert_eq!((stage.router.deaths, stage.begins_at(), stage.got().len()), (1, before + 3, COUNT as usize));
}

#[test]
fn a_request_with_a_reply_at_which_two_routers_died_has_no_second_outcome() {
    for first in ["router.found", "router.decided", "router.target"] {
        let mut stage = Stage::new(|_| {});
        (0..3).for_each(|slot| stage.ask(slot, 64));
        fault::armed::arm(first, 2);
        stage.router.again = Some(("router.committed", 1));
        stage.router.run();
        assert!(crashes::spent(&stage.router));
        assert_eq!(stage.router.state.ports.counters.poisoned, 1);
        assert_eq!(stage.got(), (0..3).map(|slot| reply(slot, slot + 1, 64)).collect::<Vec<_>>(), "{first}");
    }
}

#[test]
fn a_full_ring_in_the_middle_of_a_run_loses_and_doubles_nothing() {
    // The first window of a ring holds one record of the largest size and a bit, and nothing is leased.
    let narrow = |config: &mut Config| (config.shared_memory.num_slots, config.shared_memory.max_window_slots) = (1, 1);
    for point in ["router.decided", "router.target", "router.delivered", "router.committed", "router.advanced"] {
        for n in [u32::MAX, 1, 2, 40, 60, 70, 90, 100] {
            let mut stage = Stage::new(narrow);
            let (mut expected, mut full) = (Vec::new(), false);
            fault::armed::arm(point, n);
            for _ in 0..12 {
                for slot in 0..2 * COUNT {
                    stage.ask(slot, 64);
                    expected.push(reply(slot, stage.generation, 64));
                }
                stage.router.run();
                full |= stage.router.state.ports.egresses.get(stage.peer.key).unwrap().has_backlog();
            }
            fault::armed::disarm();
            assert!(full, "the ring was full");
            assert_eq!(stage.got(), expected, "{point} {n}");
            let counted = stage.counted();
            assert_eq!((counted[0], counted[1], counted[7]), (16 + 192, 16 + 192, 16 + 192), "{point} {n}");
            assert!(stage.router.state.is_quiescent());
        }
    }
}

#[test]
fn an_invalid_request_in_the_middle_of_a_run_ends_the_connection_and_the_ones_before_have_their_reply() {
    let header = |id, total| Header { flags: Flags::WHOLE, id, id2: 9, total, ..Header::new(Kind::Request) };
    for (header, text) in [
        (header(100_000, 64), "request slot 100000 is not below"),
        (header(3, 65), "first record of a request of 65 bytes has 64 bytes"),
        (Header { arg: 77, ..header(3, 64) }, "request to unknown service number 77"),
        // A slot with a call whose responder has not replied.
        (header(15, 64), "request slot 15 is in use"),
    ] {
        let mut stage = Stage::new(|_| {});
        let responder = stage.router.connect();
        stage.router.serve(&responder, "s", 8);
        let service = stage.router.service(&stage.peer, "s");
        assert!(stage.peer.request(15, 1, service, b"held"));
        (0..3).for_each(|slot| stage.ask(slot, 64));
        let arg = if header.arg == 0 { stage.echo } else { header.arg };
        assert!(stage.peer.push(true, Header { arg, ..header }, &[9; 64]));
        stage.ask(4, 64);
        stage.router.run();
        let taken = stage.peer.take_all(&mut stage.router);
        assert_eq!(taken.iter().map(|(header, _)| header.id).collect::<Vec<_>>(), [0, 1, 2], "{text}");
        let (info, close) = stage.router.state.ended.pop().expect("it has ended");
        assert_eq!((info.id, close.code), (stage.peer.id, ClosingCode::ProtocolViolation));
        assert!(close.reason.contains(text), "{}", close.reason);
    }
}

#[test]
fn a_request_that_is_too_large_and_one_in_several_records_are_left_out_of_a_run() {
    let mut stage = Stage::new(|config| config.ipc.max_message_size = 4096);
    stage.ask(0, 64);
    stage.ask(1, 5000);
    let part = |flags, id2| Header { flags, id: 2, id2, arg: 0, total: 128, ..Header::new(Kind::Request) };
    let part = |flags, stage: &Stage| Header { arg: stage.echo, ..part(flags, 77) };
    let (first, last) = (part(Flags::FIRST, &stage), part(Flags::LAST, &stage));
    assert!(stage.peer.push(true, first, &[2; 64]) && stage.peer.push(true, last, &[2; 64]));
    stage.ask(3, 64);
    stage.router.run();
    let too_large = (Kind::Failed, 1, 2, None, 0, Outcome::TooLarge as u16);
    let halves = (Kind::RoutedResponse, 2, 77, Some(2), 64, 0);
    assert_eq!(stage.got(), [reply(0, 1, 64), too_large, halves, halves, reply(3, 3, 64)]);
    assert!(stage.router.state.is_quiescent());
}
