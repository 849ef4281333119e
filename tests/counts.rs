//! What is counted: after traffic of every kind has stopped, the status, the metrics and the test's own ledger agree.

mod support;

use lapce_ipc::client::{Client, DeliveryPolicy, RequestOptions, SubscribeOptions};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use support::cut::cut;
use support::http::Answer;
use support::role::{Child, role, tell};
use support::{Broker, wait_until};

/// What has happened, under the names that counters have in the status.
#[derive(Debug, Default)]
struct Ledger {
    counts: BTreeMap<&'static str, u64>,
    /// Requests and failures by service.
    services: BTreeMap<&'static str, (u64, u64)>,
}

impl Ledger {
    fn add(&mut self, name: &'static str, times: u64) {
        *self.counts.entry(name).or_default() += times;
    }

    fn requests(&mut self, service: &'static str, times: u64, failures: u64) {
        self.add("requests", times);
        let (requests, failed) = self.services.entry(service).or_default();
        *requests += times;
        *failed += failures;
    }
}

fn client(broker: &Broker) -> Client {
    broker.client()
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    assert_eq!(role, "responder");
    let client = Client::connect().expect("the broker takes us");
    let serve = |name| client.serve(name).expect("a service");
    let (mut work, mut tokens, mut broken, mut held) = (serve("work"), serve("tokens"), serve("broken"), serve("held"));
    tell("ready");
    std::thread::scope(|scope| {
        scope.spawn(move || work.run(|request| Ok::<_, String>(request.take_payload())));
        scope.spawn(move || broken.by_ref().flatten().for_each(|request| drop(request.fail("it is broken"))));
        scope.spawn(move || {
            // A chunk to who wants a stream, and nothing more.
            let first = |mut request: lapce_ipc::client::Request| {
                if request.wants_stream() {
                    drop(request.chunk("one"));
                }
                request
            };
            let _kept: Vec<_> = held.by_ref().flatten().map(first).collect();
        });
        for mut request in tokens.by_ref().flatten() {
            (0..3).for_each(|_| drop(request.chunk("token")));
            drop(request.finish());
        }
    });
}

fn publishes(broker: &Broker, ledger: &mut Ledger) {
    let (publisher, one, two) = (client(broker), client(broker), client(broker));
    let (mut all, mut small) = (one.subscribe("c.>").unwrap(), two.subscribe("c.small").unwrap());
    let sent = broker.run(&["pub", "c.small", "from a command", "--count", "20"]);
    assert!(sent.status.success(), "{}", support::stderr(&sent));
    for n in 0..300u32 {
        publisher.publish("c.small", n.to_le_bytes()).unwrap();
    }
    for _ in 0..40 {
        publisher.publish("c.large", [7; 5000]).unwrap();
    }
    (0..360).for_each(|_| drop(all.next().unwrap().unwrap()));
    (0..320).for_each(|_| drop(small.next().unwrap().unwrap()));
    ledger.add("published", 360);
    ledger.add("delivered", 360 + 320);
    // Five records each.
    ledger.add("fragments", 40 * 5);
    (0..25).for_each(|_| publisher.publish("lonely", "").unwrap());
    ledger.add("published", 25);
    ledger.add("unmatched", 25);

    let few = SubscribeOptions { policy: DeliveryPolicy::DropNewest, capacity_bytes: 4096 };
    let mut unread = one.subscribe_with("d", few).unwrap();
    (0..500).for_each(|_| publisher.publish("d", [1; 100]).unwrap());
    publisher.flush().unwrap();
    let mut got = 0;
    while unread.next_timeout(Duration::from_millis(100)).is_ok_and(|message| message.is_some()) {
        got += 1;
    }
    assert!(got > 0 && got < 500, "{got}");
    ledger.add("published", 500);
    ledger.add("delivered", got);
    ledger.add("dropped", 500 - got);
}

fn requests(broker: &Broker, asking: &Client, ledger: &mut Ledger) {
    for _ in 0..3 {
        assert_eq!(broker.run(&["request", "work", "hi"]).stdout, b"hi\n");
    }
    (0..70).for_each(|_| assert_eq!(asking.request("work", "hi").unwrap(), b"hi"));
    ledger.requests("work", 73, 0);
    (0..11).for_each(|_| assert_eq!(asking.request("echo", "hi").unwrap(), b"hi"));
    ledger.requests("echo", 11, 0);
    for _ in 0..10 {
        assert_eq!(
            asking.request_stream("tokens", "").unwrap().map(Result::unwrap).filter(|c| !c.is_empty()).count(),
            3
        );
    }
    ledger.requests("tokens", 10, 0);
    ledger.add("chunks", 30);
    ledger.add("replies", 73 + 11 + 10);
    for _ in 0..5 {
        assert!(asking.request("nobody", "").unwrap_err().is_no_responders());
    }
    ledger.requests("nobody", 5, 5);
    ledger.add("failed_no_responders", 5);
    for _ in 0..5 {
        assert!(asking.request("broken", "").unwrap_err().is_error_reply());
    }
    ledger.add("replies", 5);
    for _ in 0..4 {
        assert!(asking.request("broken", "").unwrap_err().is_breaker_open());
    }
    ledger.requests("broken", 9, 9);
    ledger.add("failed_breaker_open", 4);
    let soon = RequestOptions { timeout: Some(Duration::from_millis(20)), ..RequestOptions::default() };
    for _ in 0..3 {
        assert!(asking.request_with("held", "", soon).unwrap_err().is_deadline_exceeded());
    }
    for _ in 0..2 {
        let mut stream = asking.request_stream("held", "").unwrap();
        assert_eq!(stream.next().unwrap().unwrap(), b"one");
    }
    ledger.requests("held", 5, 3);
    ledger.add("chunks", 2);
    ledger.add("cancels", 2);
    ledger.add("failed_deadline_exceeded", 3);
    ledger.add("failed_cancelled", 2);
}

fn status(broker: &Broker) -> Value {
    serde_json::from_slice(&broker.run(&["status", "--json"]).stdout).expect("JSON")
}

/// A counter of the status.
#[track_caller]
fn counter(status: &Value, name: &str) -> u64 {
    let counters = status["counters"].as_array().unwrap();
    counters.iter().find(|counter| counter[0] == name).unwrap_or_else(|| panic!("no {name} in {status}"))[1]
        .as_u64()
        .unwrap()
}

/// The sum of the samples of a name whose labels have all of this.
fn sum(metrics: &Answer, name: &str, labels: &str) -> u64 {
    let samples = metrics.body.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    samples.filter(|line| line.contains(labels)).map(|line| value(line) as u64).sum()
}

fn value(line: &str) -> f64 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn status_metrics_and_ledger_agree_after_traffic_of_every_kind() {
    let mut broker = Broker::start();
    let responder = Child::ready(&broker, "responder");
    let mut ledger = Ledger::default();
    publishes(&broker, &mut ledger);
    // A service that only somebody who asks for it knows is forgotten with them.
    let asking = client(&broker);
    requests(&broker, &asking, &mut ledger);
    // What was said last may be on its way.
    wait_until("the last cancels", || counter(&status(&broker), "failed_cancelled") == 2);

    let (mut reported, mut metrics) = (status(&broker), broker.get("/metrics"));
    wait_until("the last credit to have come", || {
        (reported, metrics) = (status(&broker), broker.get("/metrics"));
        counter(&reported, "records") == sum(&metrics, "lapce_ipc_records_total", "")
    });
    let outcomes = |name: &str| name.strip_prefix("failed_").map(str::to_owned);
    for counter in reported["counters"].as_array().unwrap() {
        let (name, reported) = (counter[0].as_str().unwrap(), counter[1].as_u64().unwrap());
        // The others are not for a test to know: how the router has worked, and the commands' own connections.
        let is_work = ["connections", "records", "bytes", "parked", "rings", "looks", "sleeps", "leases_refused"];
        if !is_work.contains(&name) {
            assert_eq!(reported, ledger.counts.get(name).copied().unwrap_or(0), "{name}: {ledger:?}");
        }
    }
    for (name, family) in [
        ("published", "messages_published"),
        ("delivered", "messages_delivered"),
        ("unmatched", "messages_unmatched"),
        ("dropped", "messages_dropped"),
        ("fragments", "fragments"),
        ("requests", "requests"),
        ("replies", "replies"),
        ("chunks", "chunks"),
        ("cancels", "cancels"),
        ("late", "replies_late"),
        ("evicted", "subscriptions_evicted"),
        ("aborted", "messages_aborted"),
    ] {
        let family = format!("lapce_ipc_{family}_total");
        assert_eq!(sum(&metrics, &family, ""), ledger.counts.get(name).copied().unwrap_or(0), "{family}");
    }
    assert_eq!(sum(&metrics, "lapce_ipc_messages_dropped_total", r#"policy="drop_newest""#), ledger.counts["dropped"]);
    for (outcome, times) in ledger.counts.iter().filter_map(|(name, times)| Some((outcomes(name)?, times))) {
        let label = format!("outcome=\"{outcome}\"");
        assert_eq!(sum(&metrics, "lapce_ipc_requests_failed_total", &label), *times, "{outcome}");
    }
    for (service, (requests, failures)) in &ledger.services {
        let (label, services) = (format!("service=\"{service}\""), reported["services"].as_array().unwrap());
        let shown = services.iter().find(|shown| shown["name"] == *service).expect("the service");
        assert_eq!(
            (shown["requests"].as_u64(), shown["failures"].as_u64()),
            (Some(*requests), Some(*failures)),
            "{shown}"
        );
        assert_eq!(sum(&metrics, "lapce_ipc_service_requests_total", &label), *requests, "{service}");
        assert_eq!(sum(&metrics, "lapce_ipc_service_failures_total", &label), *failures, "{service}");
        assert_eq!(shown["outstanding"], 0);
    }
    assert_eq!(sum(&metrics, "lapce_ipc_breaker_transitions_total", r#"service="broken",state="open""#), 1);

    // The histograms have seen each reply of a responder, and each stream that had a chunk; what came with a visit
    // that was timed is in both histograms of visits.
    let count = |name: &str, labels: &str| sum(&metrics, &format!("lapce_ipc_{name}_count"), labels);
    let replies = ledger.counts["replies"] - 11;
    assert_eq!(count("request_duration_seconds", ""), replies, "{}", metrics.body);
    assert_eq!(count("request_duration_seconds", r#"service="work""#), 73);
    assert_eq!(count("request_first_chunk_seconds", r#"service="tokens""#), 10);
    assert_eq!(count("request_first_chunk_seconds", r#"service="held""#), 2);
    assert_eq!(sum(&metrics, "lapce_ipc_batch_records_sum", ""), count("in_broker_seconds", ""));
    let latency = &reported["latency"];
    assert_eq!((&latency["round_trip"]["count"], &latency["first_chunk"]["count"]), (&replies.into(), &12.into()));
    assert_eq!(latency["in_broker"]["count"], count("in_broker_seconds", ""));
    for what in ["in_broker", "round_trip", "first_chunk"] {
        let [p50, p95, p99] = ["p50", "p95", "p99"].map(|share| latency[what][share].as_f64().expect("seconds"));
        assert!(0.0 < p50 && p50 <= p95 && p95 <= p99 && p99 < 30.0, "{what}: {latency}");
    }
    drop(responder);
}

/// The families as the sources declare them.
fn declared() -> BTreeSet<&'static str> {
    let families = include_str!("../src/metrics/families.rs");
    let declaration = families.split("\nfamilies! {").nth(1).expect("the declarations");
    let words = declaration.split('"').filter(|word| !word.contains(' '));
    words.filter(|word| word.starts_with("lapce_ipc_") || word.starts_with("process_")).collect()
}

#[test]
fn every_family_is_in_the_metrics_of_a_broker_under_traffic() {
    let upstream = |folder: &std::path::Path| {
        format!("[[upstream]]\nname = \"absent\"\nsocket_path = \"{}\"\n", folder.join("absent.sock").display())
    };
    let mut broker = Broker::start_configured(upstream, "", &[]);
    let _responder = Child::ready(&broker, "responder");
    let asking = client(&broker);
    asking.request("work", "").unwrap();
    asking.request_stream("tokens", "").unwrap().for_each(drop);
    let metrics = broker.get("/metrics");
    let types = metrics.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let reported: BTreeSet<_> = types.collect();
    assert!(reported.len() > 50, "{reported:?}");
    assert_eq!(reported, declared());
}

#[test]
fn refusals_and_what_became_of_sessions_are_counted_by_reason() {
    let mut broker = Broker::start_with(&[("ipc.max_connections", "2"), ("restart.resume_window_ms", "3000")]);
    let responder = Child::ready(&broker, "responder");
    let refused = |broker: &mut Broker, reason: &str| {
        let name = format!("lapce_ipc_connections_refused_total{{reason=\"{reason}\"}}");
        broker.get("/metrics").sample(&name)
    };
    let mut stranger = UnixStream::connect(broker.socket()).unwrap();
    stranger.write_all(b"\x05\0\0\0hello").unwrap();
    wait_until("a refusal", || refused(&mut broker, "malformed") == 1.0);
    drop(stranger);
    let second = client(&broker);
    broker.builder().no_reconnect().connect().expect_err("a third");
    wait_until("another", || refused(&mut broker, "too_many_connections") >= 1.0);
    assert_eq!((refused(&mut broker, "malformed"), refused(&mut broker, "version")), (1.0, 0.0));

    // A client that lives comes back; one that does not is lost, by the end of its process or of the window.
    assert!(cut(responder.pid(), &broker.socket()) > 0);
    wait_until("the session to go on", || broker.get("/metrics").sample("lapce_ipc_sessions_resumed_total") == 1.0);
    let lost = |broker: &mut Broker, reason: &str| {
        broker.get("/metrics").sample(&format!("lapce_ipc_sessions_lost_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!(lost(&mut broker, "expired"), 0.0);
    assert!(support::cut::cut_own(&broker.socket()) > 0, "it does not reconnect");
    wait_until("the window to be over", || lost(&mut broker, "expired") == 1.0);
    drop(responder);
    wait_until("the process's end", || lost(&mut broker, "process_ended") == 1.0);
    drop(second);
}
