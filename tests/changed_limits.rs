//! A broker that is killed and started again with other limits: its clients adopt them and go on.

mod support;

use lapce_ipc::client::{Client, RequestOptions, SubscribeOptions, Subscription};
use lapce_ipc::wire::control::DeliveryPolicy;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::{Broker, DEADLINE, wait_until};

const END: u64 = u64::MAX;

/// Keys that change what a Welcome says. Every value is another than the default.
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

fn connect(broker: &Broker) -> Client {
    broker.builder().connect().expect("the broker takes us")
}

fn numbered(number: u64) -> Vec<u8> {
    let mut bytes = vec![number as u8; [8, 64, 1024, 3000, 60_000][number as usize % 5]];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Checks a ledger to its end: every number once and in order. Returns how many there were.
#[track_caller]
fn whole(messages: &mut Subscription, progress: &AtomicU64) -> u64 {
    for expected in 0.. {
        let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
        let number = u64::from_le_bytes(message.payload()[..8].try_into().unwrap());
        if number == END {
            return expected;
        }
        assert_eq!((number, message.sequence()), (expected, expected + 1));
        assert_eq!(message.payload(), numbered(number), "message {number} is whole");
        progress.store(number, Ordering::SeqCst);
    }
    unreachable!("numbers end")
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_broker_with_other_limits_takes_over_its_clients_and_no_message_is_lost() {
    let mut broker = Broker::start();
    let (here, there, asks, serves) = (connect(&broker), connect(&broker), connect(&broker), connect(&broker));
    let mut messages = there.subscribe("ledger").unwrap();
    let mut service = serves.serve("work").unwrap();
    let (done, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let (publisher, mut number) = (here.publisher("ledger").unwrap(), 0);
            while !done.load(Ordering::SeqCst) {
                publisher.publish(numbered(number)).unwrap();
                number += 1;
            }
            here.flush().unwrap();
            publisher.publish(END.to_le_bytes()).unwrap();
            here.flush().unwrap();
            number
        });
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
        for (key, value) in CHANGES {
            broker.end("KILL");
            broker.set_only(key, value);
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
fn a_message_that_the_next_broker_does_not_take_is_left_out_and_counted() {
    let mut broker = Broker::start();
    let (here, there) = (connect(&broker), connect(&broker));
    let mut messages = there.subscribe("big").unwrap();
    let publisher = here.publisher("big").unwrap();
    publisher.publish(b"first").unwrap();
    here.flush().unwrap();
    broker.process().signal("STOP");
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
