//! 100 connections × 1,000 messages, and all eight success criteria.
//!
//!     cargo test --release --test laptop_performance -- --nocapture
//!
//! A broker with the shipped configuration, and its clients in another process.
//! `LAPCE_IPC_STRICT=1` fails when a criterion is missed or not measured.
//!
//! | criterion | how it is measured |
//! |---|---|
//! | memory | the most while 100 connections work, over the idle baseline: `support/memory.rs` |
//! | latency | p50 and p99 of a request to the broker's echo, one at a time; the loaded figures stand beside it |
//! | throughput | messages delivered from connection to connection, each counted once |
//! | connections | so many at once, each with a request and its reply |
//! | allocations | of the client: publish, receive in place, request (but for the reply that is handed out) |
//! | recovery | from a SIGKILL of the broker to the first message through the next one, median |
//! | coverage | from the file that the coverage command writes, if it is of this commit |
//! | Node.js | round trips per second and p50 of the same work, JSON lines over a Unix socket, in the same run |

#[path = "support/allocations.rs"]
mod allocations;
mod support;

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::criteria::{MEASURES, Report, injected, quantile, scaled};
use support::ledger::{Ends, publish, whole};
use support::load::{Load, connect, watch};
use support::memory::{megabytes, peak};
use support::role::{Child, heard, role, tell};
use support::{Broker, DEADLINE, node, wait_until};

const NAME: &str = "laptop_performance";
const CONNECTIONS: usize = 100;
/// Members between two reads, and messages of each.
const BATCH: usize = 50;
const BURST: u64 = 8;
/// Of the echo, before it is measured.
const WARM_UP: u64 = 20;

fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    let (count, each, fault) = (words[1].parse().unwrap(), words[2].parse::<u64>().unwrap(), words[3]);
    watch();
    match words[0] {
        "load" => drop(work(count, each, fault)),
        "crowd" => {
            let mut load = Load::open(count, fault);
            let mut round_trips = Vec::new();
            (0..count).step_by(100).for_each(|from| {
                load.ask(from..(from + 100).min(count), "echo", &mut round_trips);
            });
            tell(&format!("result {}", load.client(0).status().unwrap().connections.len()));
            heard();
        }
        _ => {
            let counted = allocations::count(connect, each, || {});
            let list: Vec<Value> = counted.iter().map(allocations::Counted::json).collect();
            tell(&format!("result {}", json!(list)));
        }
    }
}

/// Batches of unloaded round trips. A batch takes some 20 ms, in which this machine may be another's for a moment: the
/// figures are the medians over the batches, and the worst batch stands beside them.
const BATCHES_UNLOADED: usize = if MEASURES { 21 } else { 1 };

fn work(count: usize, each: u64, fault: &str) -> Load {
    let mut load = Load::open(count, fault);
    let (mut warm, mut unloaded, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    (0..WARM_UP).for_each(|_| load.ask(0..count, "echo", &mut warm));
    // One request at a time, and nothing else.
    (0..each * 20).for_each(|_| load.ask(0..1, "echo", &mut warm));
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES_UNLOADED {
        unloaded.clear();
        (0..each * 20).for_each(|_| load.ask(0..1, "echo", &mut unloaded));
        medians.push(quantile(&mut unloaded, 0.5));
        tails.push(quantile(&mut unloaded, 0.99));
    }
    // One request of each connection.
    let started = Instant::now();
    (0..each).for_each(|_| load.ask(0..count, "echo", &mut loaded));
    let asked = started.elapsed().as_secs_f64();
    assert_eq!(loaded.len() as u64, each * count as u64, "one reply for each request");
    // Messages from one connection to another: as many again, so often that it takes a while.
    load.run(BATCH, BURST, each);
    let (from, started) = (load.delivered(), Instant::now());
    load.run(BATCH, BURST, each * 11);
    let published = started.elapsed().as_secs_f64();
    assert_eq!(load.delivered(), each * 11 * count as u64, "one delivery for each message");
    let result = json!({
        "unloaded_p50_ns": quantile(&mut medians, 0.5),
        "unloaded_p99_ns": quantile(&mut tails, 0.5),
        "unloaded_p99_ns_worst_batch": tails.last(),
        "loaded_p50_ns": quantile(&mut loaded, 0.5),
        "loaded_p99_ns": quantile(&mut loaded, 0.99),
        "round_trips_per_second": loaded.len() as f64 / asked,
        "messages_per_second": (load.delivered() - from) as f64 / published,
    });
    tell(&format!("result {result}"));
    heard();
    load
}

/// Kills the broker and starts it again, with a publisher and a subscriber at work. Returns the milliseconds from the
/// kill to the first message that comes through the next one, and from the time at which that listened.
fn recoveries(broker: &mut Broker, times: usize) -> Vec<(f64, f64)> {
    let connect = || broker.builder().connect().expect("the broker takes us");
    let (publishing, listening) = (connect(), connect());
    let mut subscription = listening.subscribe("recovery").expect("a subscription");
    let (is_over, came) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        let (is_over, came) = (&is_over, &came);
        let ends = Ends(is_over);
        let publisher = scope.spawn(move || publish(&publishing, "recovery", &[8], is_over));
        let reader = scope.spawn(move || whole(&mut subscription, came));
        let after = |number: u64| wait_until("messages", || came.load(Ordering::SeqCst) > number);
        for _ in 0..times {
            // For longer than a second: a client whose sessions end at once waits before it connects again.
            let until = Instant::now() + Duration::from_millis(1_200);
            wait_until("a second", || Instant::now() > until);
            after(came.load(Ordering::SeqCst) + 100);
            let killed = Instant::now();
            broker.kill();
            // What the last broker had delivered has been read by now, or is read while the next one starts.
            broker.start_again();
            let (listens, last) = (Instant::now(), came.load(Ordering::SeqCst));
            while came.load(Ordering::SeqCst) == last {
                assert!(killed.elapsed() < DEADLINE, "no message comes through");
                std::thread::yield_now();
            }
            found.push((killed.elapsed().as_secs_f64() * 1e3, listens.elapsed().as_secs_f64() * 1e3));
        }
        drop(ends);
        let published = publisher.join().expect("the publisher");
        assert_eq!(reader.join().expect("the reader"), published, "each message is delivered once");
    });
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found
}

/// Covered lines in percent, from the file of the coverage command: `{"commit": "…", "lines_percent": 91.2}`.
fn coverage() -> Result<f64, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("LAPCE_IPC_COVERAGE").map(Into::into);
    let file = named.unwrap_or_else(|| root.join("target/coverage/summary.json"));
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let summary: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root).output();
    let head = head.map_err(|error| format!("git: {error}"))?;
    let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
    if summary["commit"] != head.as_str() || head.is_empty() {
        return Err(format!("it is of commit {}, this is {head}", summary["commit"]));
    }
    summary["lines_percent"].as_f64().ok_or_else(|| "no lines_percent".to_owned())
}

#[test]
fn laptop_performance() {
    if let Some(role) = role() {
        return play(&role);
    }
    let (each, crowd, kills) = (scaled(1_000, 20), scaled(1_000, 200), scaled(9, 1));
    let limit = Duration::from_secs(120);
    let mut broker = Broker::start();
    broker.without_limit();
    broker.descriptors_at_rest();
    let mut report = Report::new(NAME);
    let start = |broker: &Broker, role: &str| Child::spawn_in(broker, NAME, &format!("{role} {}", injected()));

    let idle = broker.memory();
    let mut load = start(&broker, &format!("load {CONNECTIONS} {each}"));
    let (result, most) = peak(broker.process().pid(), || load.hears_within("result", limit));
    load.say("end");
    drop(load);
    let result: Value = serde_json::from_str(&result).unwrap();
    let figure = |name: &str| result[name].as_f64().unwrap();
    result.as_object().unwrap().iter().for_each(|(name, value)| report.figure(name, value.clone()));

    let memory = megabytes(most.total(), idle.total());
    report.figure("memory_mb_as_bench_connections", megabytes(most.as_bench(), idle.as_bench()));
    let actual = format!("{memory:.2} MB with {CONNECTIONS} connections at work");
    report.criterion("memory", "< 3 MB", actual, memory < 3.0);

    let (p50, p99) = (figure("unloaded_p50_ns") / 1e3, figure("unloaded_p99_ns") / 1e3);
    let loaded = (figure("loaded_p50_ns") / 1e3, figure("loaded_p99_ns") / 1e3);
    let actual = format!("p50 {p50:.2}, p99 {p99:.2} µs (loaded {:.0}, {:.0})", loaded.0, loaded.1);
    report.criterion("latency", "< 10 µs, p50 and p99", actual, p99 < 10.0);

    let (rate, round_trips) = (figure("messages_per_second"), figure("round_trips_per_second"));
    let actual = format!("{:.2} M msg/s ({:.2} M round trips/s)", rate / 1e6, round_trips / 1e6);
    report.criterion("throughput", "> 1 M msg/s", actual, rate > 1e6);

    wait_until("the load to leave", || broker.client().status().unwrap().connections.len() == 1);
    let mut many = start(&broker, &format!("crowd {crowd} 0"));
    let connected: u64 = many.hears_within("result", limit).parse().unwrap();
    many.say("end");
    drop(many);
    assert_eq!(connected, crowd, "each is connected and got its reply");
    report.criterion("connections", "1,000+", format!("{connected} at once, each served"), connected >= 1_000);

    wait_until("the crowd to leave", || broker.builder().connect().is_ok());
    let mut counts = start(&broker, &format!("allocations 0 {}", scaled(100_000, 1_000)));
    let counted: Value = serde_json::from_str(&counts.hears_within("result", limit)).unwrap();
    let beyond = |pattern: &str| {
        let one = counted.as_array().unwrap().iter().find(|one| one["pattern"] == pattern).unwrap();
        one["each"].as_f64().unwrap() - one["promised_each"].as_f64().unwrap()
    };
    let [publish, receive, request] = ["publish", "receive (read_next)", "request"].map(beyond);
    let actual = format!("publish {publish:.3}, receive {receive:.3}, request {request:.3}");
    report.criterion("zero allocations", "0 each, client", actual, publish.max(receive).max(request) < 0.001);

    let recovered = recoveries(&mut broker, kills);
    let (median, worst) = (recovered[kills / 2].0, recovered[kills - 1].0);
    report.figure("recovery_ms_since_it_listened", recovered[kills / 2].1);
    let actual = format!("median {median:.1} ms, most {worst:.1} of {kills} kills");
    report.criterion("recovery", "< 100 ms", actual, median < 100.0);

    match coverage() {
        Ok(percent) => report.criterion("coverage", "> 90 % of lines", format!("{percent:.1} %"), percent > 90.0),
        Err(reason) => report.not_measured("coverage", "> 90 % of lines", &reason),
    }

    match node::measure(broker.folder(), CONNECTIONS as u64, each, each * 20) {
        Some(node) => {
            let theirs = |name: &str| node[name].as_f64().unwrap();
            assert_eq!(theirs("replies"), (CONNECTIONS as u64 * each) as f64);
            let latency = theirs("unloaded_p50_ns") / 1e3 / p50;
            let throughput = round_trips / (theirs("replies") / theirs("seconds"));
            report.figure("node", node);
            let actual = format!("{latency:.1} times in latency, {throughput:.1} times in throughput");
            report.criterion("Node.js", "at least 10 times", actual, latency.min(throughput) >= 10.0);
        }
        None => report.not_measured("Node.js", "at least 10 times", "no node on PATH"),
    }
    report.finish();
}
