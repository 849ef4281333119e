//! 100 connections that mix 4 KiB and 1 MiB messages as fast as they can.
//!
//!     cargo test --release --test nuclear_memory_destruction -- --nocapture
//!
//! A broker with the shipped configuration, and one process with all connections, each with a thread that publishes and
//! one that reads. Connection n publishes to connection n + 1. The budget of slots is at its limit while
//! `lapce_ipc_slots_used` is at least nine tenths of what one user may lease (`shared_memory.num_slots`) at each look,
//! every 100 ms. The test goes on until that was so for 10 s in all, and until each connection has received messages of
//! both sizes.

mod support;

use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::criteria::{MEASURES, Report, injected, scaled};
use support::ledger::PATIENT;
use support::load::{connect, progressed, raise_descriptor_limit, watch};
use support::memory::{megabytes, peak};
use support::role::{Child, heard, role, tell};
use support::{Broker, DEADLINE, wait_until, work_for};

const NAME: &str = "nuclear_memory_destruction";
const SMALL: usize = 4 * 1024;
const LARGE: usize = 1024 * 1024;
/// The part of a user's slots that is leased when its budget is at its limit. Rings return and lease slots all along.
const FULL: f64 = 0.9;
/// What one user may lease of all slots.
const SHARE: f64 = 0.25;
/// Time between two looks at the metrics.
const LOOK: Duration = Duration::from_millis(100);
/// Messages that each connection must receive: one of them is large.
const LEAST: u64 = 4;
/// The connection that an injected fault is at, and the message.
const FAULTY: (usize, u64) = (3, 2);

/// Every fourth message is large.
fn size(number: u64) -> usize {
    if number % 4 == 3 { LARGE } else { SMALL }
}

/// Fills the message of this number. Its bytes tell it from those before.
fn fill(bytes: &mut [u8], number: u64) {
    bytes.fill(number as u8);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
}

/// What one connection received.
#[derive(Default)]
struct Received {
    messages: AtomicU64,
    /// The longest time between two messages, in ns.
    longest: AtomicU64,
    is_evicted: AtomicBool,
}

fn play(role: &str) {
    let (count, fault) = role.split_once(' ').expect("two words");
    let count: usize = count.parse().expect("a number");
    raise_descriptor_limit();
    watch();
    let clients: Vec<_> = (0..count).map(|_| connect()).collect();
    let topic = |number: usize| format!("destruction.{}", number % count);
    let subscriptions: Vec<_> =
        clients.iter().enumerate().map(|(n, client)| client.subscribe(&topic(n + count - 1)).unwrap()).collect();
    let received: Vec<Received> = (0..count).map(|_| Received::default()).collect();
    let (is_over, started) = (AtomicBool::new(false), Instant::now());
    let published: Vec<u64> = std::thread::scope(|scope| {
        for (index, (mut subscription, received)) in subscriptions.into_iter().zip(&received).enumerate() {
            let from = (index + count - 1) % count;
            scope.spawn(move || {
                let (mut expected, mut last) = (vec![0; LARGE], Instant::now());
                for number in 0.. {
                    if fault == "stall" && (from, number) == FAULTY {
                        loop {
                            std::thread::park();
                        }
                    }
                    let message = match subscription.next().expect("a message") {
                        Ok(message) => message,
                        // Allowed of a subscriber that does not keep up; it is counted.
                        Err(error) => {
                            assert!(error.is_evicted(), "topic {from}: {error}");
                            return received.is_evicted.store(true, Ordering::Relaxed);
                        }
                    };
                    if message.payload().is_empty() {
                        break;
                    }
                    let found = u64::from_le_bytes(message.payload()[..8].try_into().unwrap());
                    let what = if found > number { "lost" } else { "doubled" };
                    assert_eq!(found, number, "topic {from}: message {found} came where {number} is next: {what}");
                    fill(&mut expected[..size(number)], number);
                    assert!(message.payload() == &expected[..size(number)], "topic {from}: message {number} is whole");
                    let waited = last.elapsed().as_nanos() as u64;
                    last = Instant::now();
                    received.longest.fetch_max(waited, Ordering::Relaxed);
                    received.messages.store(number + 1, Ordering::Relaxed);
                    progressed();
                }
                assert_eq!(subscription.dropped(), 0, "topic {from}");
            });
        }
        let publishers: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(index, client)| {
                let (publisher, is_over) = (client.publisher(&topic(index)).unwrap(), &is_over);
                scope.spawn(move || {
                    let (mut bytes, mut number) = (vec![0; LARGE], 0);
                    while !is_over.load(Ordering::Relaxed) {
                        let bytes = &mut bytes[..size(number)];
                        fill(bytes, number);
                        if fault != "lost" || (index, number) != FAULTY {
                            publisher.publish(&bytes).expect("it is published");
                        }
                        if fault == "doubled" && (index, number) == FAULTY {
                            publisher.publish(&bytes).expect("it is published");
                        }
                        number += 1;
                    }
                    publisher.publish("").expect("it is published");
                    number
                })
            })
            .collect();
        wait_until("each connection to receive both sizes", || {
            let is_enough = |one: &Received| one.messages.load(Ordering::Relaxed) >= LEAST;
            received.iter().all(|one| is_enough(one) || one.is_evicted.load(Ordering::Relaxed))
        });
        tell("all");
        heard();
        is_over.store(true, Ordering::Relaxed);
        publishers.into_iter().map(|publisher| publisher.join().expect("a publisher")).collect()
    });
    let counts: Vec<u64> = received.iter().map(|one| one.messages.load(Ordering::Relaxed)).collect();
    // The next connection receives what one publishes.
    let mut evicted = 0;
    for (index, published) in published.iter().enumerate() {
        let next = (index + 1) % count;
        if received[next].is_evicted.load(Ordering::Relaxed) {
            evicted += 1;
        } else {
            assert_eq!(*published, counts[next], "topic {index}: messages published, and delivered");
        }
    }
    let longest = received.iter().map(|one| one.longest.load(Ordering::Relaxed)).max().unwrap_or_default();
    tell(&format!(
        "result {}",
        json!({"evicted": evicted, "received": counts, "longest_ns": longest,
        "seconds": started.elapsed().as_secs_f64()})
    ));
    heard();
}

/// How long the budget was at its limit, until that was so for `enough`, or for `limit` at most. And the largest number
/// of slots that were leased, of how many.
fn at_the_limit(broker: &mut Broker, enough: Duration, limit: Duration) -> (Duration, f64, f64) {
    let (mut at_limit, started) = (Duration::ZERO, Instant::now());
    let (mut was_full, mut last, mut most, mut of) = (false, started, 0.0, 1.0);
    while at_limit < enough && started.elapsed() < limit {
        let metrics = broker.get("/metrics");
        let used = metrics.sample("lapce_ipc_slots_used");
        of = SHARE * metrics.sample("lapce_ipc_slots_limit");
        let is_full = used >= FULL * of;
        if is_full && was_full {
            at_limit += last.elapsed();
        }
        (was_full, last, most) = (is_full, Instant::now(), f64::max(most, used));
        work_for(LOOK);
    }
    (at_limit, most, of)
}

#[test]
fn nuclear_memory_destruction() {
    if let Some(role) = role() {
        return play(&role);
    }
    let (connections, enough) = (scaled(100, 12), Duration::from_secs(scaled(10, 1)));
    // In a debug build the readers are slow enough to be evicted.
    let mut broker = if MEASURES { Broker::start() } else { Broker::start_with(&PATIENT) };
    broker.without_limit();
    broker.descriptors_at_rest();
    let idle = broker.memory();
    let mut load = Child::spawn_in(&broker, NAME, &format!("{connections} {}", injected()));
    let pid = broker.process().pid();
    let limit = scaled(6, 2) * enough;
    let ((at_limit, most_slots, of_slots), most) = peak(pid, || {
        load.hears("all");
        at_the_limit(&mut broker, enough, limit)
    });
    load.say("end");
    let result: Value = serde_json::from_str(&load.hears_within("result", 2 * DEADLINE)).expect("JSON");
    load.say("end");
    let received: Vec<u64> = serde_json::from_value(result["received"].clone()).expect("numbers");
    let (least, messages) = (*received.iter().min().expect("one"), received.iter().sum::<u64>());
    let mean = messages as f64 / connections as f64;
    let bytes: u64 = received.iter().map(|count| (0..*count).map(|n| size(n) as u64).sum::<u64>()).sum();
    let metrics = broker.get("/metrics");

    let mut report = Report::new(NAME);
    report.figure("connections", connections);
    report.figure("messages", messages);
    report.figure("megabytes_per_second", bytes as f64 / 1e6 / result["seconds"].as_f64().expect("a number"));
    report.figure("messages_of_the_slowest_connection", least);
    report.figure("messages_of_a_connection_in_the_mean", mean);
    report.figure("longest_time_between_two_messages_ms", result["longest_ns"].as_u64().expect("ns") as f64 / 1e6);
    report.figure("slots_used_most", most_slots);
    report.figure("leases_refused", metrics.sample("lapce_ipc_leases_refused_total"));
    report.figure("memory_mb_as_bench_connections", megabytes(most.as_bench(), idle.as_bench()));
    let actual = format!("{:.1} s, at most {most_slots} of {of_slots} slots", at_limit.as_secs_f64());
    report.criterion("budget at its limit", "at least 10 s", actual, at_limit >= enough);
    let evicted = result["evicted"].as_u64().expect("a number");
    let actual = format!("the slowest {least} messages, the mean {mean:.0}; {evicted} evicted");
    let is_fair = evicted == 0 && least as f64 >= mean / 10.0;
    report.criterion("no connection starved", "a tenth of the mean", actual, is_fair);
    let memory = megabytes(most.total(), idle.total());
    report.criterion("memory", "< 3 MB over idle", format!("{memory:.2} MB at its peak"), memory < 3.0);
    report.finish();
}
