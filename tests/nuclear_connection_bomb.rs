//! 1,000 connections × 5,000 messages.
//!
//!     cargo test --release --test nuclear_connection_bomb -- --nocapture
//!
//! A broker with the shipped configuration, and one process with all connections that it takes. Each connection
//! publishes its messages to another one, as fast as one thread can drive all of them. The rate is also taken of every
//! tenth, so that a burst does not hide a stall.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::criteria::{Report, injected, scaled};
use support::load::{Load, watch};
use support::memory::{Memory, megabytes, peak};
use support::role::{Child, heard, role, tell};
use support::{Broker, wait_until};

/// Members between two reads, and messages of each.
const BATCH: usize = 32;
const BURST: u64 = 8;
const TENTHS: u64 = 10;
/// Members whose rings lease slots for messages of several records: more than there are slots.
const SWOLLEN: usize = 100;
/// Bytes that the segment of an idle connection may keep: the page of its control words and the three base windows.
const KEPT: u64 = 4096;

fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    let (count, each) = (words[0].parse().unwrap(), words[1].parse::<u64>().unwrap());
    watch();
    let opened = Instant::now();
    let mut load = Load::open(count, words[2]);
    let opened = opened.elapsed();
    load.run(BATCH, BURST, BURST);
    tell("ready");
    heard();
    let (mut rates, started) = (Vec::new(), Instant::now());
    for tenth in 1..=TENTHS {
        let (before, from) = (load.delivered(), Instant::now());
        load.run(BATCH, BURST, BURST + each * tenth / TENTHS);
        rates.push((load.delivered() - before) as f64 / from.elapsed().as_secs_f64());
    }
    let elapsed = started.elapsed().as_secs_f64();
    rates.sort_by(f64::total_cmp);
    let connected = load.client(0).status().unwrap().connections.len();
    tell(&format!(
        "result {}",
        json!({"delivered": load.delivered(), "seconds": elapsed, "slowest": rates[0], "opened_ms": opened.as_millis()
            as u64, "connected": connected})
    ));
    heard();
    load.swell(0..SWOLLEN, 4096);
    tell("swollen");
    heard();
}

#[test]
fn nuclear_connection_bomb() {
    if let Some(role) = role() {
        return play(&role);
    }
    let (connections, each) = (scaled(1_000, 200), scaled(5_000, 100));
    let mut broker = Broker::start();
    broker.without_limit();
    broker.descriptors_at_rest();
    let idle = broker.memory();
    let mut load = Child::spawn_in(&broker, "nuclear_connection_bomb", &format!("{connections} {each} {}", injected()));
    load.hears_within("ready", Duration::from_secs(60));
    load.say("go");
    let result: Value = serde_json::from_str(&load.hears_within("result", Duration::from_secs(300))).unwrap();
    let busy = broker.memory();
    // All are idle now: what their rings had leased goes back, and its pages with it.
    let kept = |memory: Memory| memory.segments / connections;
    load.say("swell");
    let (_, swollen) = peak(broker.process().pid(), || load.hears("swollen"));
    wait_until("idle connections to give their pages back", || kept(broker.memory()) <= KEPT);
    let rested = broker.memory();
    load.say("end");
    let messages = connections * each;
    // What came before the measurement, too.
    assert_eq!(result["delivered"], messages + connections * BURST, "each message is delivered once");
    assert_eq!(result["connected"], connections);
    let rate = messages as f64 / result["seconds"].as_f64().unwrap();
    let mut report = Report::new("nuclear_connection_bomb");
    report.figure("connections", connections);
    report.figure("messages", messages);
    report.figure("messages_per_second", rate);
    report.figure("messages_per_second_slowest_tenth", result["slowest"].clone());
    report.figure("seconds", result["seconds"].clone());
    report.figure("connect_all_ms", result["opened_ms"].clone());
    report.figure("memory_mb_under_load", megabytes(busy.total(), idle.total()));
    report.figure("memory_mb_idle_again", megabytes(rested.total(), idle.total()));
    report.figure("segment_bytes_with_large_messages", swollen.segments);
    report.figure("segment_bytes_idle_again", rested.segments);
    report.criterion("throughput", "at least 1 M msg/s", format!("{:.3} M msg/s", rate / 1e6), rate >= 1e6);
    let is_met = connections >= 1_000;
    report.criterion("connections", "1,000", format!("{connections} at once, none refused"), is_met);
    let gave_back = swollen.segments.saturating_sub(rested.segments) as f64 / 1e6;
    let actual = format!("{gave_back:.3} MB of leases, {} bytes each are left", kept(rested));
    report.criterion("idle gives back", "all but the base windows", actual, gave_back > 0.5);
    report.finish();
}
