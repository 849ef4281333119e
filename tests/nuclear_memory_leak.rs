//! 120 cycles of 100–500 connections that come, work and go.
//!
//!     cargo test --release --test nuclear_memory_leak -- --nocapture
//!
//! A broker with the shipped configuration, and its clients in another process that opens and closes all connections
//! of a cycle. Each connection publishes to another one, and sends a request. After each cycle the broker must have as
//! many descriptors and mapped segments as before the first one. Its memory is a series of one value for each cycle;
//! the criterion is the slope of that series with its 95 % confidence interval. The clients' process is measured, too.

mod support;

use serde_json::json;
use std::time::Duration;
use support::criteria::{MEASURES, Report, injected, scaled};
use support::load::{Load, watch};
use support::memory::{mappings, private};
use support::role::{Child, heard, role, tell};
use support::trend::Trend;
use support::{Broker, wait_until, work_for};

/// Members between two reads, and messages of each.
const BATCH: usize = 32;
const BURST: u64 = 8;
/// Messages and requests of each connection in a cycle.
const EACH: u64 = 24;
/// Cycles of the largest size before the first that is measured: tables and the heap reach their size in so many.
const WARM_UP: usize = if MEASURES { 20 } else { 4 };
/// Samples of the memory after a cycle.
const SAMPLES: u32 = if MEASURES { 5 } else { 1 };
/// Growth in bytes per connection that is none: the heap gives no less than 16 bytes. A heap that is in use grows by
/// single pages at times, as it is cut differently; these are some ten bytes per cycle.
const UNSEEN: f64 = 1.0;

fn play(fault: &str) {
    watch();
    tell("ready");
    loop {
        let said = heard();
        let Ok(count) = said.parse() else { return };
        let (mut load, mut round_trips) = (Load::open(count, fault), Vec::with_capacity(count));
        load.run(BATCH, BURST, EACH);
        load.ask(0..count, "echo", &mut round_trips);
        let delivered = load.delivered();
        drop(load);
        tell(&format!("cycle {delivered} {}", round_trips.len()));
    }
}

/// The lowest of some samples: pages go back to the system a little after the last connection is gone.
fn lowest(mut sample: impl FnMut() -> u64) -> f64 {
    let samples = (0..SAMPLES).map(|at| {
        work_for(if at == 0 { Duration::ZERO } else { Duration::from_millis(20) });
        sample()
    });
    samples.min().expect("there are some") as f64
}

/// Sizes of the cycles: the largest, then sizes that a fixed sequence of random numbers selects.
fn sizes(cycles: usize, least: u64, most: u64) -> Vec<u64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..WARM_UP + cycles).map(|n| if n < WARM_UP { most } else { least + random() % (most - least + 1) }).collect()
}

/// The cycles after which a series has another value than before, with the difference in KiB.
fn steps(series: &[f64]) -> serde_json::Value {
    let steps = series.windows(2).enumerate().filter(|(_, pair)| pair[0] != pair[1]);
    steps.map(|(cycle, pair)| json!([cycle + 1, (pair[1] - pair[0]) / 1024.0])).collect()
}

#[test]
fn nuclear_memory_leak() {
    if let Some(role) = role() {
        return play(&role);
    }
    let (cycles, least, most) = (scaled(120, 14), scaled(100, 20), scaled(500, 60));
    let mut broker = Broker::start();
    broker.without_limit();
    // The first session has the broker open the file with the publishers' secret, for good.
    drop(broker.client());
    let descriptors = broker.descriptors_at_rest();
    let pid = broker.process().pid();
    let segments = mappings(pid);
    let idle = broker.memory();
    let mut child = Child::spawn_in(&broker, "nuclear_memory_leak", &injected());
    child.hears("ready");
    let (mut total, mut heap, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    let (mut connections, mut messages) = (0, 0);
    for (cycle, size) in sizes(cycles, least, most).into_iter().enumerate() {
        child.say(&size.to_string());
        let done = child.hears_within("cycle", Duration::from_secs(60));
        assert_eq!(done, format!("{} {size}", size * EACH), "cycle {cycle}: deliveries and replies");
        // It closes the sockets at once and removes the sessions a little later.
        let mut now = (0, 0);
        let is_back = support::comes_true(|| {
            now = (broker.descriptors(), mappings(pid));
            now == (descriptors, segments)
        });
        let before = (descriptors, segments);
        assert!(is_back, "cycle {cycle} of {size} connections: {now:?} descriptors and segments, {before:?} before");
        (connections, messages) = (connections + size, messages + size * EACH);
        if cycle >= WARM_UP {
            total.push(lowest(|| broker.memory().total()));
            heap.push(lowest(|| private(pid)));
            clients.push(private(child.pid()) as f64);
        }
    }
    wait_until("the status to show no connection of the load", || {
        broker.client().status().expect("a status").connections.len() == 1
    });
    let mut report = Report::new("nuclear_memory_leak");
    report.figure("cycles", cycles);
    report.figure("connections", connections);
    report.figure("messages", messages);
    report.figure("memory_mb_after_the_first_cycle", (total[0] - idle.total() as f64) / 1e6);
    report.figure("memory_mb_after_the_last_cycle", (total[total.len() - 1] - idle.total() as f64) / 1e6);
    report.figure("private pages: changes of at least a page", steps(&heap));
    let per_cycle = (least + most) as f64 / 2.0;
    for (name, series) in [("memory", &total), ("private pages", &heap), ("clients' pages", &clients)] {
        let trend = Trend::of(series);
        let Trend { slope, low, high } = trend;
        report.figure(
            &format!("{name}: growth"),
            json!({"bytes_per_cycle": slope.round(), "confidence_95": [low.round(), high.round()],
                "bytes_per_connection": (slope / per_cycle * 10.0).round() / 10.0}),
        );
        let actual = format!("{slope:.0} bytes per cycle ({low:.0} to {high:.0})");
        report.criterion(name, "no growth", actual, trend.is_flat(UNSEEN * per_cycle));
    }
    report.finish();
}
