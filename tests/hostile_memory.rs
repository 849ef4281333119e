//! Hostile peers in the memory that they share with the broker, at its bells, and with anything at random. See
//! `support/scene.rs` for what holds in each test.

#[path = "support/mutant.rs"]
mod mutant;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/scene.rs"]
mod scene;
mod support;

use lapce_ipc::client::DeliveryPolicy;
use lapce_ipc::wire::control::{ClosingCode, InternKind};
use lapce_ipc::wire::record::{Flags, Kind};
use mutant::{Random, mutate};
use raw::{Lane, Raw, request, word, words};
use scene::{Scene, intern, serve, subscribe};
use std::os::unix::fs::{FileExt, PermissionsExt};
use support::wait_until;

const WHOLE: Flags = Flags::WHOLE;

// ------------------------------------------------------------------------------------------------------------- memory

#[test]
fn the_size_of_a_segment_is_nobodys_to_change() {
    let scene = Scene::new(&[]);
    let mut raw = scene.raw("resizer");
    let size = raw.segment.metadata().expect("a file").len();
    assert_eq!(size, raw.geometry.segment_bytes);
    for wanted in [0, 4096, size - 1, size + 1, 1 << 40] {
        let error = raw.segment.set_len(wanted).expect_err("it is sealed");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{wanted}");
    }
    assert!(raw.segment.write_all_at(&[1], size).is_err(), "nothing grows by writing");
    for seal in [rustix::fs::SealFlags::WRITE, rustix::fs::SealFlags::FUTURE_WRITE] {
        assert_eq!(rustix::fs::fcntl_add_seals(&raw.segment, seal), Err(rustix::io::Errno::PERM));
    }
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&raw.segment, keep, size, 4096), Err(rustix::io::Errno::PERM));
    assert_eq!(raw.segment.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    raw.flush(1);
    drop(raw);
    scene.finish();
}

#[test]
fn who_uses_more_of_its_segment_than_lent_loses_its_connection() {
    let mut scene = Scene::new(&[("shared_memory.audit_interval_ms", "100")]);
    // One writes it full, another only reserves the memory.
    let mut writer = scene.raw("writes-it-full");
    let page = [0xaa; 4096];
    for offset in (writer.extension(0)..writer.geometry.segment_bytes).step_by(page.len()) {
        writer.segment.write_all_at(&page, offset).expect("the file takes it");
    }
    scene.ended(&mut writer.control, "writes-it-full", ClosingCode::Overuse, "resident pages, 4 are allowed");
    let mut reserver = scene.raw("reserves");
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&reserver.segment, keep, reserver.extension(2), 16 * 4096).expect("the file takes it");
    scene.ended(
        &mut reserver.control,
        "reserves",
        ClosingCode::Overuse,
        "segment has 17 resident pages, 4 are allowed",
    );
    assert_eq!(scene.broker.counter("violations"), 2);
    scene.finish();
}

#[test]
fn holes_punched_into_a_segment_harm_only_its_client() {
    let mut scene = Scene::new(&[]);
    let feeder = scene.broker.client();
    let punch = |raw: &Raw| {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        rustix::fs::fallocate(&raw.segment, flags, 0, raw.geometry.segment_bytes).expect("a hole");
    };
    // What the broker knows of it is gone from under it: the count runs back.
    let mut raw = scene.raw("puncher");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    for _ in 0..20 {
        feeder.publish("feed.x", [7; 900]).expect("it is taken");
        while raw.receive().0.kind != Kind::Deliver {}
    }
    punch(&raw);
    wait_until("the broker to look", || {
        feeder.publish("feed.x", [7; 900]).expect("it is taken");
        feeder.flush().expect("it is routed");
        raw.has_word()
    });
    scene.ended(&mut raw.control, "puncher", ClosingCode::ProtocolViolation, "consumed count 0 is not within");

    // At any time, under traffic both ways.
    for round in 0..50 {
        let mut raw = scene.raw("puncher-at-work");
        let service = intern(&mut raw, InternKind::Service, "echo");
        subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
        for step in 0..10 {
            raw.try_place(Lane::Express, &words(&request(step, service, 900, WHOLE), 900), &[1; 900]);
            feeder.publish("feed.x", [7; 900]).expect("it is taken");
            if step == round % 10 {
                punch(&raw);
            }
        }
        feeder.flush().expect("it is routed");
    }
    scene.good.goes_on();
    drop(feeder);
    scene.finish();
}

#[test]
fn who_does_not_read_its_answers_loses_its_connection() {
    let mut scene = Scene::new(&[
        ("limits.max_backlog_bytes", "65536"),
        ("shared_memory.num_slots", "64"),
        ("shared_memory.max_window_slots", "8"),
    ]);
    let mut raw = scene.raw("never-reads");
    let service = intern(&mut raw, InternKind::Service, "echo");
    let asked = words(&request(0, service, 1000, WHOLE), 1000);
    for number in 0.. {
        assert!(number < 1000, "a bounded backlog");
        if !raw.place(Lane::Express, &asked, &[number as u8; 1000]) || raw.has_word() {
            break;
        }
    }
    scene.ended(
        &mut raw.control,
        "never-reads",
        ClosingCode::SlowConsumer,
        "bytes in the backlog of a client that does not read",
    );
    scene.finish();
}

#[test]
fn a_consumed_count_that_runs_ahead_or_back_ends_its_connection() {
    let mut scene = Scene::new(&[]);
    let feeder = scene.broker.client();
    // The broker looks at the count when the ring is full.
    let feed_until = |condition: &dyn Fn() -> bool| {
        wait_until("the broker to look at the count", || {
            feeder.publish("feed.x", [7; 1000]).expect("it is taken");
            feeder.flush().expect("it is routed");
            condition()
        });
    };
    for (name, count) in [("runs-ahead", 1000), ("far-ahead", u64::MAX)] {
        let mut raw = scene.raw(name);
        subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
        raw.set_word(word::EGRESS_CONSUMED, count);
        feed_until(&|| raw.has_word());
        let text = format!("consumed count {count} is not within 0..=");
        scene.ended(&mut raw.control, name, ClosingCode::ProtocolViolation, &text);
    }
    let mut raw = scene.raw("runs-back");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    feeder.publish("feed.x", "small").expect("it is taken");
    while raw.receive().0.kind != Kind::Deliver {}
    feed_until(&|| raw.word(word::EGRESS_WINDOW) > 0);
    raw.set_word(word::EGRESS_CONSUMED, 1);
    feed_until(&|| raw.has_word());
    let text = "consumed count 1 is not within 2..=";
    scene.ended(&mut raw.control, "runs-back", ClosingCode::ProtocolViolation, text);
    assert_eq!(scene.broker.counter("violations"), 3);
    assert!(feeder.request("echo", "still").is_ok());
    drop(feeder);
    scene.finish();
}

// -------------------------------------------------------------------------------------------------------------- bells

#[test]
fn a_bell_that_is_full_and_blocks_hangs_nobody() {
    let scene = Scene::new(&[]);
    let feeder = scene.broker.client();
    let mut raw = scene.raw("jams-its-bells");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    raw.flush(1);
    // As much as goes in, the largest numbers first; then whoever writes to it blocks.
    for bit in (0..64).rev() {
        while rustix::io::write(&raw.bell, &(1u64 << bit).to_ne_bytes()).is_ok() {}
    }
    for bell in [&raw.bell, &raw.wait] {
        rustix::fs::fcntl_setfl(bell, rustix::fs::OFlags::empty()).expect("the flags are the client's, too");
    }
    let mut full = [rustix::event::PollFd::new(&raw.bell, rustix::event::PollFlags::OUT)];
    assert_eq!(rustix::event::poll(&mut full, Some(&rustix::event::Timespec::default())), Ok(0), "it is full");
    for number in 0..200 {
        // The reader sleeps: each message makes the broker ring.
        raw.set_word(24, 1);
        feeder.publish("feed.x", [number; 10]).expect("it is taken");
        feeder.flush().expect("it is routed");
    }
    scene.good.goes_on();
    assert_eq!(feeder.request("echo", "hi").expect("the echo"), b"hi");
    drop((raw, feeder));
    scene.finish();
}

#[test]
fn who_rings_without_end_loses_its_connection() {
    let mut scene = Scene::new(&[("limits.max_rings_without_progress", "50")]);
    let mut raw = scene.raw("rings-and-rings");
    wait_until("the broker to have enough of it", || {
        (0..1000).for_each(|_| raw.ring());
        raw.has_word()
    });
    scene.ended(
        &mut raw.control,
        "rings-and-rings",
        ClosingCode::Overuse,
        "51 doorbell rings in a second without a record",
    );
    assert_eq!(scene.broker.counter("violations"), 1);
    scene.finish();
}

#[test]
fn who_rings_without_end_while_its_ring_is_full_loses_its_connection() {
    let mut scene = Scene::new(&[
        ("limits.max_rings_without_progress", "50"),
        ("shared_memory.num_slots", "64"),
        ("shared_memory.max_window_slots", "8"),
    ]);
    let mut raw = scene.raw("rings-when-full");
    let service = intern(&mut raw, InternKind::Service, "echo");
    let asked = words(&request(0, service, 1000, WHOLE), 1000);
    while raw.word(word::EGRESS_SPACE) == 0 {
        assert!(raw.place(Lane::Express, &asked, &[0; 1000]));
    }
    wait_until("the broker to have enough of it", || {
        (0..1000).for_each(|_| raw.ring());
        raw.has_word()
    });
    scene.ended(
        &mut raw.control,
        "rings-when-full",
        ClosingCode::Overuse,
        "51 doorbell rings in a second without a record",
    );
    scene.finish();
}

// -------------------------------------------------------------------------------------------------------- mutations

#[test]
fn two_thousand_mutations_disturb_nobody() {
    // On a busy machine many of them meet a connection that is about to be ended: then it takes more.
    const MUTATIONS: usize = 2000;
    const CONNECTIONS: u64 = 150;
    let scene = Scene::new(&[("shared_memory.audit_interval_ms", "100")]);
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut peers: Vec<Option<Raw>> = (0..8).map(|_| None).collect();
    let (mut mutations, mut connections) = (0, 0);
    while mutations < MUTATIONS || connections < CONNECTIONS {
        assert!(mutations < 50 * MUTATIONS, "the mutations do not bite: {connections} connections");
        mutations += 1;
        let place = random.below(8) as usize;
        if peers[place].as_ref().is_some_and(Raw::has_ended) {
            peers[place] = None;
        }
        let raw = peers[place].get_or_insert_with(|| {
            connections += 1;
            let mut raw = scene.raw("mutant");
            intern(&mut raw, InternKind::Topic, "bad.mutant");
            intern(&mut raw, InternKind::Service, "echo");
            subscribe(&mut raw, "bad.>", DeliveryPolicy::DropNewest);
            serve(&mut raw, "mutant");
            raw
        });
        mutate(raw, &mut random);
    }
    let client = scene.broker.client();
    let counters = client.status().expect("a status").counters;
    let violations = counters.iter().find(|(name, _)| name == "violations").expect("a counter").1;
    assert!(violations > 100, "{violations} violations of {connections} connections");
    drop((peers, client));
    scene.finish();
}
