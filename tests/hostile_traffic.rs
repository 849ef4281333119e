//! Hostile peers in the rings: records that break the rules, and what one can do to another's ring. See
//! `support/scene.rs` for what holds in each test.

#[path = "support/raw.rs"]
mod raw;
#[path = "support/scene.rs"]
mod scene;
mod support;

use lapce_ipc::client::DeliveryPolicy;
use lapce_ipc::wire::ClientFrame;
use lapce_ipc::wire::control::{ClosingCode, InternKind};
use lapce_ipc::wire::record::{Flags, Header, Kind, Outcome};
use raw::{Lane, Raw, forged, publish, request, response, word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use scene::{Scene, intern, serve, subscribe};
use std::time::Duration;
use support::DEADLINE;

const WHOLE: Flags = Flags::WHOLE;
const FIRST: Flags = Flags::FIRST;
const LAST: Flags = Flags::LAST;
const MIDDLE: Flags = Flags(0);

// ----------------------------------------------------------------------------------------------------------- records

#[test]
fn a_record_that_breaks_the_rules_ends_its_connection() {
    use Lane::{Bulk, Express};
    type Attack = fn(&mut Raw);
    let attacks: &[(&str, &str, Attack)] = &[
        ("longer-than-a-slot", "record of 1025 bytes exceeds the limit of 1024", |raw| {
            raw.place(Bulk, &forged(1, 1025), &[]);
        }),
        ("longest-length", "record of 4294967295 bytes exceeds the limit of 1024", |raw| {
            raw.place(Express, &forged(8, u32::MAX), &[]);
        }),
        ("behind-the-window", "record of 9 cells at cell 8 exceeds the window of 9 cells", |raw| {
            for _ in 0..8 {
                raw.push(Express, &Header { id: u32::MAX, ..Header::new(Kind::Credit) }, &[]);
            }
            raw.place(Express, &forged(8, 1000), &[]);
        }),
        ("unknown-kind", "unknown record kind 200", |raw| {
            raw.place(Bulk, &forged(200, 0), &[]);
        }),
        ("kind-zero", "unknown record kind 0", |raw| {
            raw.place(Express, &forged(0, 0), &[]);
        }),
        ("request-in-bulk", "record of kind Request in the bulk lane", |raw| {
            raw.push(Bulk, &request(0, 0, 0, WHOLE), &[]);
        }),
        ("publish-in-express", "record of kind Publish in the express lane", |raw| {
            raw.push(Express, &publish(0, 0, WHOLE), &[]);
        }),
        ("deliver-in-bulk", "record of kind Deliver in the bulk lane", |raw| {
            raw.push(Bulk, &Header::new(Kind::Deliver), &[]);
        }),
        ("evicted-in-express", "record of kind Evicted in the express lane", |raw| {
            raw.push(Express, &Header::new(Kind::Evicted), &[]);
        }),
        ("topic-never-given", "publish to unknown topic number 7", |raw| {
            raw.push(Bulk, &publish(7, 2, WHOLE), b"hi");
        }),
        ("topic-of-another", "publish to unknown topic number 4294967295", |raw| {
            intern(raw, InternKind::Topic, "bad.own");
            raw.push(Bulk, &publish(u32::MAX, 2, WHOLE), b"hi");
        }),
        ("first-within", "publish started before the previous one was complete", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 2000, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 2000, FIRST), &[0; 1000]);
        }),
        ("never-began", "continuation record without a started publish", |raw| {
            raw.push(Bulk, &publish(0, 10, LAST), &[0; 10]);
        }),
        ("first-too-long", "first record of a publish of 5 bytes has 10 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 5, WHOLE), &[0; 10]);
        }),
        ("whole-and-short", "first record of a publish of 100 bytes has 10 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 100, WHOLE), &[0; 10]);
        }),
        ("complete-without-last", "first record of a publish of 10 bytes has 10 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 10, FIRST), &[0; 10]);
        }),
        ("too-large", "first record of a publish of 10485761 bytes has 1000 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 10_485_761, FIRST), &[0; 1000]);
        }),
        ("further-too-long", "publish with 500 bytes left has a record of 501 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, LAST), &[0; 501]);
        }),
        ("further-empty", "publish with 500 bytes left has a record of 0 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, MIDDLE), &[]);
        }),
        ("last-too-early", "publish with 500 bytes left has a record of 499 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, LAST), &[0; 499]);
        }),
        ("no-last", "publish with 500 bytes left has a record of 500 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, MIDDLE), &[0; 500]);
        }),
        ("further-of-another-topic", "publish with 500 bytes left has a record of 500 bytes", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            let other = intern(raw, InternKind::Topic, "bad.other");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(other, 1500, LAST), &[0; 500]);
        }),
        ("place-out-of-range", "request slot 4096 is not below 4096", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(4096, service, 0, WHOLE), &[]);
        }),
        ("place-in-use", "request slot 3 is in use", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(3, service, 0, WHOLE), &[]);
            raw.push(Express, &request(3, service, 0, WHOLE), &[]);
        }),
        ("service-never-given", "request to unknown service number 1", |raw| {
            intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, 1, 0, WHOLE), &[]);
        }),
        ("request-too-long", "first record of a request of 5 bytes has 10 bytes", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, service, 5, WHOLE), &[0; 10]);
        }),
        ("body-too-long", "request with 10 bytes left has a record of 11 bytes", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, service, 20, FIRST), &[0; 10]);
            raw.push(Express, &request(0, service, 20, LAST), &[0; 11]);
        }),
        ("body-beyond-credit", "request body exceeds its credit", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, service, 1000, FIRST), &[0; 1]);
            for _ in 0..raw.limits.stream_credit_cells {
                raw.push(Express, &request(0, service, 1000, MIDDLE), &[0; 1]);
            }
        }),
        ("answer-too-long", "reply with 5 bytes left has a record of 10 bytes (message of 5)", |raw| {
            let call = called(raw, "own-too-long");
            raw.push(Express, &response(call, 5, WHOLE), &[0; 10]);
        }),
        ("answer-first-within", "reply with 20 bytes left has a record of 10 bytes (message of 20)", |raw| {
            let call = called(raw, "own-first-within");
            raw.push(Express, &response(call, 20, FIRST), &[0; 10]);
            raw.push(Express, &response(call, 20, FIRST), &[0; 10]);
        }),
        ("answer-never-began", "reply with 0 bytes left has a record of 10 bytes (message of 20)", |raw| {
            let call = called(raw, "own-never-began");
            raw.push(Express, &response(call, 20, LAST), &[0; 10]);
        }),
        ("answer-last-missing", "reply with 10 bytes left has a record of 10 bytes (message of 10)", |raw| {
            let call = called(raw, "own-last-missing");
            raw.push(Express, &response(call, 10, FIRST), &[0; 10]);
        }),
        ("answer-too-large", "reply with 10485761 bytes left has a record of 10 bytes (message of 10485761)", |raw| {
            let call = called(raw, "own-too-large");
            raw.push(Express, &response(call, 10_485_761, FIRST), &[0; 10]);
        }),
        ("answer-beyond-credit", "a reply was sent beyond its credit", |raw| {
            let call = called(raw, "own-beyond-credit");
            for _ in 0..=raw.limits.stream_credit_cells {
                raw.push(Express, &response(call, 0, WHOLE), &[]);
                if raw.take().is_some() {
                    // Its own answers; nobody need read them.
                }
            }
        }),
    ];
    // Little credit, so that it is used up soon.
    let mut scene = Scene::new(&[("delivery.stream_credit_bytes", "8192"), ("logging.max_lines_per_second", "1000")]);
    let mut holder = scene.raw("holder");
    serve(&mut holder, "hold");
    for (name, text, attack) in attacks {
        let mut raw = scene.raw(name);
        attack(&mut raw);
        scene.ended(&mut raw.control, name, ClosingCode::ProtocolViolation, text);
    }
    assert_eq!(scene.broker.counter("violations"), attacks.len() as u64);
    assert!(!holder.has_word(), "whose service was asked stays");
    drop(holder);
    scene.finish();
}

/// Serves `service`, asks it a question, and answers the call's number: requester and responder at once.
#[track_caller]
fn called(raw: &mut Raw, service: &str) -> u64 {
    serve(raw, service);
    let number = intern(raw, InternKind::Service, service);
    raw.push(Lane::Express, &request(0, number, 0, WHOLE), &[]);
    let (header, _) = raw.receive();
    assert_eq!(header.kind, Kind::RoutedRequest);
    header.seq
}

#[test]
fn what_comes_late_or_names_what_is_not_ones_own_is_ignored() {
    let scene = Scene::new(&[]);
    let (mut raw, mut other) = (scene.raw("late"), scene.raw("other"));
    let feed = subscribe(&mut other, "feed.>", DeliveryPolicy::DropNewest);
    let call = called(&mut other, "theirs");

    // Responses to calls that never were, or are another's; credit for what is another's, or nobody's.
    for seq in [0, u64::MAX, call ^ 1 << 32, call] {
        raw.push(Lane::Express, &response(seq, 3, WHOLE.with(Flags::END)), b"no!");
        raw.push(Lane::Express, &Header { seq, arg: u32::MAX, ..Header::new(Kind::BodyCredit) }, &[]);
    }
    for id in [feed, 0, u32::MAX] {
        raw.push(Lane::Express, &Header { id, arg: u32::MAX, ..Header::new(Kind::Credit) }, &[]);
        raw.push(Lane::Express, &Header { id, id2: 1, ..Header::new(Kind::Cancel) }, &[]);
        raw.push(Lane::Express, &Header { id, id2: 1, arg: 9, ..Header::new(Kind::ResponseCredit) }, &[]);
        raw.push(Lane::Express, &request(id, 0, 10, LAST), &[0; 5]);
    }
    // A record where no window is lent: nobody looks there.
    let tag = raw.geometry.nonce_bulk;
    raw.write_record(raw.extension(0), tag, &forged(200, 0), &[]);
    raw.ring();
    // A record whose tag is not the next: as if it were not there.
    for wrong in [0, tag.wrapping_sub(1), tag.wrapping_add(1), u64::MAX] {
        raw.write_record(5 * raw::CELL, wrong, &forged(200, 0), &[]);
        raw.ring();
    }
    raw.flush(1);
    assert_eq!(scene.broker.counter("late"), 4 + 3, "responses and bodies");

    // Its owner has the call still, and answers it.
    other.push(Lane::Express, &response(call, 3, WHOLE.with(Flags::END)), b"yes");
    let (header, payload) = other.receive();
    assert_eq!((header.kind, &payload[..]), (Kind::RoutedResponse, &b"yes"[..]));
    other.flush(2);
    assert_eq!(scene.broker.counter("violations"), 0);
    scene.good.goes_on();
    drop((raw, other));
    scene.finish();
}

// ---------------------------------------------------------------------------------- what one can do to another's ring

#[test]
fn a_subscriber_with_little_space_for_a_new_topic_stops_nobody() {
    // No ring is lent more than its base window of 9 cells.
    let scene = Scene::new(&[("shared_memory.num_slots", "1"), ("shared_memory.max_window_slots", "1")]);
    let feeder = scene.broker.client();
    let mut raw = scene.raw("tight");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    // A name and six messages, of one cell each: seven of nine; of them one is free again.
    for number in 0..6 {
        feeder.publish("feed.a", [number]).expect("it is taken");
    }
    feeder.flush().expect("it is routed");
    raw.set_word(word::EGRESS_CONSUMED, 1);
    // Two cells at the end, one at the start: the name and this message fit in one order and not in the other.
    feeder.publish("feed.b", [7; 100]).expect("it is taken");
    feeder.flush().expect("it is routed");
    scene.good.goes_on();
    drop((raw, feeder));
    scene.finish();
}

#[test]
fn the_longest_topic_fits_into_the_smallest_slot() {
    let scene = Scene::new(&[("shared_memory.slot_size", "256")]);
    let topic = ["a".repeat(64), "b".repeat(64), "c".repeat(64), "d".repeat(60)].join(".");
    assert_eq!(topic.len(), 255);
    let client = scene.broker.client();
    let mut messages = client.subscribe("*.*.*.*").expect("a subscription");
    client.publish(&topic, "hi").expect("it is taken");
    let message = messages.next_timeout(DEADLINE).expect("it stands").expect("it comes");
    assert_eq!((message.topic(), message.payload()), (&topic[..], &b"hi"[..]));
    drop((messages, client));
    scene.finish();
}

#[test]
fn credit_without_measure_does_not_drown_the_other_side() {
    let mut scene = Scene::new(&[
        ("limits.max_backlog_bytes", "65536"),
        ("shared_memory.num_slots", "64"),
        ("shared_memory.max_window_slots", "8"),
    ]);
    let victim = scene.broker.client();
    let mut service = victim.serve("busy").expect("a service");
    let text = "cells of credit returned,";
    // Credit that was never taken, and none: the first record of it ends the connection, and nobody else hears of it.
    for (index, arg) in [0, 1, u32::MAX].into_iter().enumerate() {
        // A requester floods a responder that is busy with its request.
        let name = format!("floods-responder-{index}");
        let mut raw = scene.raw(&name);
        let number = intern(&mut raw, InternKind::Service, "busy");
        raw.push(Lane::Express, &request(0, number, 0, WHOLE), &[]);
        let asked = service.next_timeout(DEADLINE).expect("the service stands").expect("the request comes");
        let credit = Header { id: 0, id2: 1, arg, ..Header::new(Kind::ResponseCredit) };
        for _ in 0..2000 {
            if !raw.push(Lane::Express, &credit, &[]) {
                break;
            }
        }
        scene.ended(&mut raw.control, &name, ClosingCode::ProtocolViolation, text);
        // Nobody waits for the reply any more.
        let _ = asked.reply("late");
        assert!(service.next_timeout(Duration::ZERO).expect("the service stands").is_none());

        // A responder floods a requester that does not read just now. (It took one cell, and gives back more.)
        let name = format!("floods-requester-{index}");
        let mut raw = scene.raw(&name);
        serve(&mut raw, &name);
        let mut answers = victim.request_stream(&name, "hi").expect("a stream");
        let call = loop {
            let (header, _) = raw.receive();
            if header.kind == Kind::RoutedRequest {
                break header.seq;
            }
        };
        let credit = Header { seq: call, arg, ..Header::new(Kind::BodyCredit) };
        for _ in 0..2000 {
            if !raw.push(Lane::Express, &credit, &[]) {
                break;
            }
        }
        scene.ended(&mut raw.control, &name, ClosingCode::ProtocolViolation, text);
        let error = answers.next_timeout(DEADLINE).expect_err("its responder is gone");
        assert!(error.is_responder_lost(), "{error:?}");
    }
    assert_eq!(victim.request("echo", "hi").expect("the echo"), b"hi");
    assert_eq!(scene.broker.counter("violations"), 6);
    drop((service, victim));
    scene.finish();
}

#[test]
fn who_reads_no_answers_is_ended_all_the_same() {
    let mut scene = Scene::new(&[]);
    let mut raw = scene.raw("reads-nothing");
    let question = ClientFrame::Status { serial: 1 }.encode().unwrap();
    // Until the broker's answers fill the socket, so that it takes no more questions, and those fill the other way.
    let patience = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    while poll(&mut [PollFd::new(&raw.control.socket, PollFlags::OUT)], Some(&patience)) != Ok(0) {
        let _ = rustix::net::send(&raw.control.socket, &question, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
    raw.place(Lane::Bulk, &forged(200, 0), &[]);
    let connection = format!("connection={}", raw.connection);
    scene.logged(&["connection ended", &connection, "unknown record kind 200"]);
}

#[test]
fn many_bodies_do_not_drown_a_busy_responder() {
    const REQUESTS: u32 = 100;
    const PARTS: u32 = 50;
    let scene = Scene::new(&[]);
    let victim = scene.broker.client();
    let mut service = victim.serve("busy").expect("a service");
    let mut raw = scene.raw("floods-bodies");
    let number = intern(&mut raw, InternKind::Service, "busy");
    // Each is within its credit; together they are more than is held for one connection, and nobody reads just now.
    let total = 1 + PARTS * 1000;
    for place in 0..REQUESTS {
        assert!(raw.push(Lane::Express, &request(place, number, total, FIRST), &[0; 1]));
    }
    for place in 0..REQUESTS {
        for part in 1..=PARTS {
            let flags = if part == PARTS { LAST } else { MIDDLE };
            assert!(raw.push(Lane::Express, &request(place, number, total, flags), &[0; 1000]));
        }
    }
    // Those that it was spared have failed; it takes the others, and each request has one outcome.
    let mut taken = 0;
    while let Some(request) = service.next_timeout(Duration::from_millis(200)).expect("the service stands") {
        assert_eq!(request.payload().len(), total as usize);
        request.reply("ok").expect("the reply is taken");
        taken += 1;
    }
    let (mut answered, mut overloaded) = (0, 0);
    let mut over = vec![false; REQUESTS as usize];
    while answered + overloaded < REQUESTS {
        let (header, payload) = raw.receive();
        match header.kind {
            Kind::RoutedBodyCredit => continue,
            Kind::RoutedResponse => {
                assert_eq!(payload, b"ok");
                answered += 1;
            }
            Kind::Failed => {
                assert_eq!(Outcome::from_u16(header.code), Some(Outcome::Overloaded));
                overloaded += 1;
            }
            kind => panic!("{kind:?}"),
        }
        assert!(!std::mem::replace(&mut over[header.id as usize], true), "two outcomes");
    }
    assert_eq!(answered, taken);
    assert!(answered > 0 && overloaded > 0, "{answered} answered, {overloaded} overloaded");
    assert_eq!(victim.request("echo", "hi").expect("the echo"), b"hi");
    drop((raw, service, victim));
    scene.finish();
}
