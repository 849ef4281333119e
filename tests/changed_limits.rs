//! A broker that is killed and started again with other limits: its clients adopt them and go on.

mod support;

use lapce_ipc::client::{Client, RequestOptions, SubscribeOptions};
use lapce_ipc::wire::control::DeliveryPolicy;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::cut::{cut_own, fill_own};
use support::ledger::{Ends, PATIENT, publish, whole};
use support::{Broker, DEADLINE, code, comes_true, wait_until};

/// Keys that change what a Welcome says, or how much a client may have. Every value is another than the default.
const CHANGES: [(&str, &str); 16] = [
    ("ipc.max_message_size", "70000"),
    ("shared_memory.slot_size", "512"),
    ("shared_memory.slot_size", "4096"),
    ("shared_memory.num_slots", "2048"),
    ("shared_memory.max_window_slots", "64"),
    ("delivery.subscription_credit_bytes", "16384"),
    ("delivery.subscription_credit_bytes", "4194304"),
    ("delivery.stream_credit_bytes", "8192"),
    ("limits.default_request_timeout_ms", "20000"),
    ("limits.max_request_timeout_ms", "300000"),
    ("limits.max_requests_per_connection", "2"),
    ("limits.max_subscriptions_per_connection", "8"),
    ("limits.max_topics_per_connection", "1"),
    ("limits.max_services", "4"),
    ("limits.stream_first_chunk_ms", "20000"),
    ("limits.stream_idle_ms", "20000"),
];

/// Keys of which a client is told nothing: changed all at once. Every value is another than the default.
const TOGETHER: [(&str, &str); 58] = [
    ("ipc.max_connections", "100"),
    ("ipc.allowed_uids", "1,2"),
    ("ipc.handshake_timeout_ms", "30000"),
    ("ipc.drain_timeout_ms", "1000"),
    ("ipc.worker_threads", "2"),
    ("ipc.operator_uids", "1,2"),
    ("shared_memory.permissions", "0o640"),
    ("shared_memory.audit_interval_ms", "1000"),
    ("shared_memory.allow_dumps", "true"),
    ("delivery.slow_consumer_timeout_ms", "60000"),
    ("delivery.drop_grace_ms", "50"),
    ("delivery.user_wait_ms", "200"),
    ("limits.max_topics", "30000"),
    ("limits.max_routes", "100000"),
    ("limits.max_subscriptions", "30000"),
    ("limits.user_share_percent", "50"),
    ("limits.user_work_percent", "10"),
    ("limits.user_control_percent", "10"),
    ("limits.max_requests_per_responder", "100"),
    ("limits.request_body_idle_ms", "20000"),
    ("limits.max_backlog_bytes", "2097152"),
    ("limits.max_user_backlog_bytes", "16777216"),
    ("limits.max_rings_without_progress", "2000"),
    ("limits.probe_delay_ms", "500"),
    ("limits.max_probe_delay_ms", "30000"),
    ("router.wait", "block"),
    ("router.spin_max_us", "20"),
    ("router.batch_records", "32"),
    ("router.turn_max_us", "100"),
    ("restart.initial_delay_ms", "50"),
    ("restart.max_delay_ms", "2000"),
    ("restart.jitter", "0.1"),
    ("restart.max_restarts", "20"),
    ("restart.connection_max_restarts", "500"),
    ("restart.connection_period_secs", "30"),
    ("restart.period_secs", "30"),
    ("restart.stable_secs", "20"),
    ("restart.resume_window_ms", "4000"),
    ("restart.restart_grace_ms", "60000"),
    ("restart.watchdog_abort_ms", "60000"),
    ("circuit_breaker.failure_threshold", "6"),
    ("circuit_breaker.success_threshold", "3"),
    ("circuit_breaker.timeout_secs", "50"),
    ("circuit_breaker.max_timeout_secs", "500"),
    ("circuit_breaker.half_open_max_requests", "4"),
    ("health_server.required", "true"),
    ("health_server.allowed_hosts", "broker.example"),
    ("health_server.max_connections", "64"),
    ("health_server.request_timeout_ms", "2000"),
    ("health_server.idle_timeout_secs", "10"),
    ("health_server.unread_timeout_secs", "5"),
    ("health_server.max_unread_bytes", "1048576"),
    ("health_server.max_streams", "8"),
    ("metrics.enable", "false"),
    ("metrics.export_interval_secs", "20"),
    ("logging.level", "debug"),
    ("logging.short_connection_ms", "1000"),
    ("logging.max_lines_per_second", "100"),
];

/// Keys that are not changed here, and why.
const LEFT: [(&str, &str); 6] = [
    ("ipc.socket_path", "its clients look for the broker where it was"),
    ("health_server.port", "tests run side by side: the system chooses it"),
    ("health_server.host", "nothing of it reaches a client"),
    ("health_server.socket_path", "nothing of it reaches a client"),
    ("health_server.token_file", "nothing of it reaches a client"),
    ("health_server.require_token", "needs a token file"),
];

#[test]
fn each_key_is_changed_or_left_for_a_reason() {
    let text = include_str!("../config.toml");
    let (mut section, mut keys) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(name) = line.trim_start_matches('#').strip_prefix('[') {
            // One service's or one upstream's: examples.
            section = if line.starts_with('[') { name.trim_end_matches(']').to_owned() } else { String::new() };
        } else if let Some((key, _)) = line.strip_prefix('#').and_then(|line| line.split_once(" = "))
            && !section.is_empty()
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            keys.insert(format!("{section}.{key}"));
        }
    }
    assert!(keys.len() > 60, "{keys:?}");
    let listed: BTreeSet<_> =
        [&CHANGES[..], &TOGETHER, &LEFT].concat().iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(keys, listed);
}

fn connect(broker: &Broker) -> Client {
    broker.builder().connect().expect("the broker takes us")
}

#[test]
fn a_broker_with_other_limits_takes_over_its_clients_and_no_message_is_lost() {
    let mut broker = Broker::start_with(&PATIENT);
    let (here, there, asks, serves) = (connect(&broker), connect(&broker), connect(&broker), connect(&broker));
    let mut messages = there.subscribe("ledger").unwrap();
    let mut service = serves.serve("work").unwrap();
    let (done, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| publish(&here, "ledger", &[8, 64, 1024, 3000, 60_000], &done));
        let got = scope.spawn(|| whole(&mut messages, &progress));
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                if let Some(request) = service.next_timeout(Duration::from_millis(20)).unwrap() {
                    let reply = request.payload().to_vec();
                    let _ = request.reply(reply);
                }
            }
        });
        let ends = Ends(&done);
        for (key, value) in CHANGES.into_iter().chain([("all others", "")]) {
            broker.end("KILL");
            broker.set_only("logging.level", "info");
            let changes = if value.is_empty() { &TOGETHER[..] } else { &[(key, value)] };
            [&PATIENT, changes].concat().into_iter().for_each(|(key, value)| broker.set_also(key, value));
            broker.start_again();
            let before = progress.load(Ordering::SeqCst);
            wait_until(key, || progress.load(Ordering::SeqCst) > before + 100);
            let options = || RequestOptions { idempotent: true, ..RequestOptions::default() };
            assert_eq!(asks.request_with("work", [7; 3000], options()).unwrap(), [7; 3000], "{key} = {value}");
            assert!(![&here, &there, &asks, &serves].iter().any(|client| client.state().is_closed()), "{key}");
        }
        // The last one that is adopted is the last broker's.
        assert_eq!(asks.limits(), broker.client().limits());
        drop(ends);
        assert_eq!(got.join().unwrap(), sent.join().unwrap());
    });
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn a_resume_takes_up_the_limits_that_a_reload_has_changed() {
    let limits = |ms: u32| {
        format!(
            "[limits]\ndefault_request_timeout_ms = {ms}\nmax_request_timeout_ms = {}\nstream_first_chunk_ms = {}\n\
             stream_idle_ms = {}\n",
            ms + 1,
            ms + 2,
            ms + 3
        )
    };
    let broker = Broker::start_configured(|_| limits(11_000), "", &[]);
    let client = connect(&broker);
    let id = client.id();
    std::fs::write(broker.folder().join("config.toml"), limits(22_000)).unwrap();
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!(client.limits().default_request_timeout_ms, 11_000, "a client is told when it is greeted");
    assert_eq!(cut_own(&broker.socket()), 1);
    wait_until("the limits to be taken up", || {
        client.request("echo", "hi").unwrap();
        client.limits().default_request_timeout_ms == 22_000
    });
    assert_eq!((client.limits(), client.id()), (broker.client().limits(), id), "resumed");
}

#[test]
fn a_message_that_the_next_broker_does_not_take_is_left_out_and_counted() {
    let mut broker = Broker::start();
    let (here, there) = (connect(&broker), connect(&broker));
    let mut messages = there.subscribe("big").unwrap();
    let publisher = here.publisher("big").unwrap();
    publisher.publish(b"first").unwrap();
    here.flush().unwrap();
    broker.process().stop();
    // The whole base window: it is not consumed, so it is to be sent again.
    publisher.publish([1; 1000]).unwrap();
    broker.end("KILL");
    broker.set_only("ipc.max_message_size", "100");
    broker.start_again();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            publisher.publish(b"last").unwrap();
            here.flush().unwrap();
        });
        for expected in [b"first".as_slice(), b"last"] {
            let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
            assert_eq!(message.payload(), expected);
        }
    });
    assert_eq!(here.quarantined(), 1);
    assert!(publisher.publish([1; 101]).unwrap_err().is_too_large());
}

#[test]
fn a_subscription_beyond_the_next_brokers_limit_ends_and_the_others_go_on() {
    let mut broker = Broker::start();
    let (here, there) = (connect(&broker), connect(&broker));
    let options = || SubscribeOptions { policy: DeliveryPolicy::Block, capacity_bytes: 0 };
    let mut all: Vec<_> = (0..3).map(|_| there.subscribe_with("t", options()).unwrap()).collect();
    broker.end("KILL");
    broker.set_only("limits.max_subscriptions_per_connection", "2");
    broker.start_again();
    std::thread::scope(|scope| {
        // Whoever waits brings the client back.
        scope.spawn(|| there.flush().unwrap());
        here.flush().unwrap();
    });
    here.publish("t", b"x").unwrap();
    here.flush().unwrap();
    let got = all.iter_mut().map(|one| one.next_timeout(DEADLINE));
    let (got, ended): (Vec<_>, Vec<_>) = got.partition(Result::is_ok);
    assert_eq!((got.len(), ended.len()), (2, 1));
    assert!(!there.state().is_closed());
}

#[test]
fn topics_and_offers_beyond_the_next_brokers_limits_are_refused_and_the_rest_goes_on() {
    let mut broker = Broker::start();
    let (here, there, serves) = (connect(&broker), connect(&broker), connect(&broker));
    let mut messages = there.subscribe("t.>").unwrap();
    let publishers: Vec<_> = (0..3).map(|number| here.publisher(&format!("t.{number}")).unwrap()).collect();
    publishers.iter().for_each(|publisher| publisher.publish("before").unwrap());
    here.flush().unwrap();
    let mut services: Vec<_> = (0..4).map(|number| serves.serve(&format!("s{number}")).unwrap()).collect();
    broker.end("KILL");
    broker.set_only("limits.max_topics_per_connection", "2");
    broker.set_also("limits.max_services", "3");
    broker.start_again();
    std::thread::scope(|scope| {
        scope.spawn(|| there.flush().unwrap());
        scope.spawn(|| serves.flush().unwrap());
        here.flush().unwrap();
    });
    let (taken, refused): (Vec<_>, Vec<_>) =
        publishers.iter().map(|publisher| publisher.publish("after")).partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len()), (2, 1));
    let error = refused.into_iter().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("2 topics"), "{error}");
    here.flush().unwrap();
    for (expected, count) in [("before", 3), ("after", 2)] {
        for _ in 0..count {
            let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
            assert_eq!(message.payload(), expected.as_bytes());
        }
    }
    let ended = services.iter_mut().filter_map(|service| service.next_timeout(Duration::from_millis(20)).err());
    let ended: Vec<_> = ended.map(|error| error.to_string()).collect();
    assert!((1..=2).contains(&ended.len()), "{ended:?}");
    assert!(![&here, &there, &serves].iter().any(|client| client.state().is_closed()));
    // There is room again.
    drop(publishers);
    here.publisher("t.2").unwrap().publish("room").unwrap();
    assert_eq!(messages.next_timeout(DEADLINE).unwrap().expect("a message in time").payload(), b"room");
}

#[test]
fn a_client_that_is_closed_here_is_closed_before_its_goodbye_is_sent() {
    let mut broker = Broker::start();
    let client = connect(&broker);
    broker.process().stop();
    fill_own(&broker.socket());
    let is_closed = std::thread::scope(|scope| {
        scope.spawn(|| client.close());
        let is_closed = comes_true(|| client.state().is_closed());
        // The goodbye waits for space until the broker is gone.
        broker.end("KILL");
        is_closed
    });
    assert!(is_closed);
}

#[test]
fn a_client_that_is_closed_here_does_not_look_for_the_broker() {
    let broker = Broker::start();
    for _ in 0..300 {
        let client = connect(&broker);
        let events = client.events();
        std::thread::scope(|scope| {
            // It has the reader role, and sees the end of the socket.
            let seen = scope.spawn(|| events.collect::<Vec<_>>());
            client.close();
            let seen = seen.join().unwrap();
            assert!(seen.iter().all(|state| state.is_connected() || state.is_closed()), "{seen:?}");
        });
    }
}
