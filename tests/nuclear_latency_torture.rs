//! 999 connections in the background at full rate, and one whose round trips are measured.
//!
//!     cargo test --release --test nuclear_latency_torture -- --nocapture
//!
//! A broker with the shipped configuration, and one process with all connections, driven by one thread: it publishes a
//! bounded batch on some members, sends one request of the measured connection to the broker's echo and waits for the
//! reply, then reads the batch. So each round trip shares the router with the batch before it. It is measured with
//! batches of several sizes: what a batch adds is the router's work in front of the request, since a router is one
//! thread and serves the connections in turn.
//!
//! | figure | says |
//! |---|---|
//! | alone | the same round trip with the background idle: the floor of this run |
//! | a batch of n | n members × `BURST` messages in front of the request |
//!
//! The criterion is the p99 with the batch that keeps the background at full rate. Where it is missed, the table shows
//! by how much, and which batch would meet it. More cores do not route one broker's records faster; they keep the
//! client's thread, the router and the rest of the machine from taking turns on a core, which shows in the p99 alone.

mod support;

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::Broker;
use support::criteria::{Report, injected, quantile, scaled};
use support::load::{Load, connect, numbered, progressed, watch};
use support::role::{Child, heard, role, tell};

const NAME: &str = "nuclear_latency_torture";
/// Messages of a member in a batch.
const BURST: u64 = 8;
/// Members of a batch: none, few, and as many as keep the background at full rate.
const BATCHES: [usize; 5] = [0, 1, 4, 16, 32];

fn play(role: &str) {
    let words: Vec<&str> = role.split(' ').collect();
    let (count, samples) = (words[0].parse().expect("a number"), words[1].parse::<u64>().expect("a number"));
    watch();
    let mut load = Load::open(count, words[2]);
    let measured = connect();
    let mut serial = 0u64;
    let mut rows = Vec::new();
    for batch in BATCHES {
        // Without space in its ring a member publishes less, so the number of messages is counted, not computed.
        let (mut round_trips, before) = (Vec::with_capacity(samples as usize), load.delivered());
        let (warm_up, mut started) = (samples / 10, Instant::now());
        for round in 0..warm_up + samples {
            if round == warm_up {
                (round_trips, started) = (Vec::with_capacity(samples as usize), Instant::now());
            }
            if batch > 0 {
                load.step(batch, BURST, u64::MAX);
            }
            let payload = numbered(count, serial);
            let from = Instant::now();
            let reply = measured.request("echo", payload).expect("a reply");
            round_trips.push(from.elapsed().as_nanos() as u64);
            assert!(reply == payload, "not the reply of request {serial}");
            serial += 1;
            progressed();
        }
        let seconds = started.elapsed().as_secs_f64();
        load.settle();
        let messages = load.delivered() - before;
        rows.push(json!({
            "members": batch,
            "p50_ns": quantile(&mut round_trips, 0.5),
            "p99_ns": quantile(&mut round_trips, 0.99),
            "p999_ns": quantile(&mut round_trips, 0.999),
            "messages": messages,
            "messages_per_second": (messages as f64 / seconds * samples as f64 / (samples + warm_up) as f64).round(),
        }));
    }
    let connected = load.client(0).status().expect("a status").connections.len();
    tell(&format!("result {}", json!({"rows": rows, "connected": connected, "round_trips": serial})));
    heard();
}

#[test]
fn nuclear_latency_torture() {
    if let Some(role) = role() {
        return play(&role);
    }
    let (background, samples) = (scaled(999, 150), scaled(20_000, 200));
    let mut broker = Broker::start();
    broker.without_limit();
    broker.descriptors_at_rest();
    let mut load = Child::spawn_in(&broker, NAME, &format!("{background} {samples} {}", injected()));
    let result: Value = serde_json::from_str(&load.hears_within("result", Duration::from_secs(300))).expect("JSON");
    load.say("end");
    assert_eq!(result["connected"], background + 1);
    assert_eq!(result["round_trips"], (samples + samples / 10) * BATCHES.len() as u64, "one reply for each request");

    let rows = result["rows"].as_array().expect("rows");
    let micros = |row: &Value, name: &str| row[name].as_f64().expect("a number") / 1e3;
    let mut report = Report::new(NAME);
    report.figure("connections", background + 1);
    report.figure("round_trips_of_each_row", samples);
    report.figure("cores", std::thread::available_parallelism().map_or(0, usize::from));
    for row in rows {
        let members = row["members"].as_u64().unwrap_or_default();
        report.figure(&format!("with a batch of {members:02} members"), row.clone());
    }
    let (alone, full) = (&rows[0], &rows[rows.len() - 1]);
    let met: Vec<&Value> = rows.iter().filter(|row| micros(row, "p99_ns") < 10.0).collect();
    let most = met.last().map_or("no batch".to_owned(), |row| format!("a batch of {} members", row["members"]));
    report.figure("p99_under_10_us_up_to", most);
    let messages = full["members"].as_f64().expect("a number") * BURST as f64;
    let added = micros(full, "p50_ns") - micros(alone, "p50_ns");
    report.figure("router_ns_for_each_message_in_front", added * 1e3 / messages);
    let actual = format!(
        "p50 {:.1}, p99 {:.1} µs (alone {:.1}, {:.1})",
        micros(full, "p50_ns"),
        micros(full, "p99_ns"),
        micros(alone, "p50_ns"),
        micros(alone, "p99_ns")
    );
    report.criterion("latency under load", "p99 < 10 µs", actual, micros(full, "p99_ns") < 10.0);
    report.finish();
}
