//! Publish and subscribe: who gets what, in which order, of which size, and what a returned call promises.

mod support;

use lapce_ipc::client::{Client, Message, Subscription};
use std::collections::HashMap;
use std::time::Duration;
use support::probe::{counter, pattern};
use support::role::{Child, die, role, tell};
use support::{Broker, DEADLINE, wait_until};

fn next(subscription: &mut Subscription) -> Message {
    subscription.next_timeout(DEADLINE).unwrap().expect("a message in time")
}

/// What has arrived by now: all that was routed before is in the ring, so there is nothing to wait for.
fn all(subscription: &mut Subscription) -> Vec<Message> {
    std::iter::from_fn(|| subscription.next_timeout(Duration::ZERO).unwrap()).collect()
}

fn topics(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(Message::topic).collect()
}

#[test]
fn each_publishers_messages_arrive_in_order_and_numbered() {
    const EACH: u64 = 5_000;
    let broker = Broker::start();
    let mut subscription = broker.client().subscribe("lapce.>").unwrap();
    let publishers: Vec<Client> = (0..3).map(|_| broker.client()).collect();
    let mut seen: HashMap<u32, u64> = publishers.iter().map(|client| (client.id(), 0)).collect();
    std::thread::scope(|scope| {
        for client in &publishers {
            scope.spawn(move || {
                let publisher = client.publisher("lapce.count").unwrap();
                for number in 1..=EACH {
                    publisher.publish(number.to_le_bytes()).unwrap();
                }
            });
        }
        for _ in 0..EACH * 3 {
            let message = next(&mut subscription);
            let last = seen.get_mut(&message.publisher()).expect("one of the publishers");
            *last += 1;
            assert_eq!(message.sequence(), *last);
            assert_eq!(message.payload(), last.to_le_bytes());
        }
    });
    assert!(seen.values().all(|last| *last == EACH));
    assert_eq!(subscription.dropped(), 0);
}

#[test]
fn sequence_numbers_count_by_topic() {
    let broker = Broker::start();
    let client = broker.client();
    let mut subscription = broker.client().subscribe(">").unwrap();
    for topic in ["a", "b", "a", "a", "b"] {
        client.publish(topic, "").unwrap();
    }
    client.flush().unwrap();
    let got: Vec<_> = all(&mut subscription).iter().map(|m| (m.topic().to_owned(), m.sequence())).collect();
    let expected = [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)].map(|(t, n)| (t.to_owned(), n));
    assert_eq!(got, expected);
}

#[test]
fn wildcards_choose_topics_and_a_first_one_never_the_brokers() {
    let broker = Broker::start();
    let client = broker.client();
    let mut subscriptions =
        ["a.b", "a.*", "a.>", "*.b", ">", "$sys.>"].map(|pattern| client.subscribe(pattern).unwrap());
    let other = broker.client();
    for topic in ["a.b", "a", "a.b.c", "c.b", "a.c"] {
        other.publish(topic, "").unwrap();
    }
    other.flush().unwrap();
    let got = subscriptions.each_mut().map(all);
    assert_eq!(topics(&got[0]), ["a.b"]);
    assert_eq!(topics(&got[1]), ["a.b", "a.c"]);
    assert_eq!(topics(&got[2]), ["a.b", "a.b.c", "a.c"]);
    assert_eq!(topics(&got[3]), ["a.b", "c.b"]);
    assert_eq!(topics(&got[4]), ["a.b", "a", "a.b.c", "c.b", "a.c"]);
    assert_eq!(topics(&got[5]), ["$sys.connection.opened"]);
    assert_eq!(got[5][0].publisher(), 0, "the broker");
    let id = other.id();
    assert!(String::from_utf8_lossy(got[5][0].payload()).contains(&format!("\"connection\":{id}")));
    drop(other);
    assert_eq!(next(&mut subscriptions[5]).topic(), "$sys.connection.closed");
    assert_eq!(topics(&all(&mut subscriptions[4])), [""; 0]);
}

#[test]
fn every_subscription_of_a_client_gets_its_own_copy() {
    let broker = Broker::start();
    let client = broker.client();
    let mut subscriptions = ["t", "t", "*"].map(|pattern| client.subscribe(pattern).unwrap());
    // A client gets what it publishes itself, too.
    for number in 0..100_u64 {
        client.publish("t", pattern(1500, number)).unwrap();
    }
    client.flush().unwrap();
    for subscription in &mut subscriptions {
        let got = all(subscription);
        assert_eq!(got.len(), 100);
        assert!(got.iter().zip(0..).all(|(message, number)| message.payload() == pattern(1500, number)));
    }
}

#[test]
fn every_size_arrives_and_one_byte_too_many_is_an_error_before_anything_is_sent() {
    let broker = Broker::start();
    let client = broker.client();
    let max = client.limits().max_message_size as usize;
    let mut subscription = broker.client().subscribe("t").unwrap();
    let sizes = [0, 1, 63, 64, 65, 127, 128, 129, 960, 1023, 1024, 1025, 2048, 2049, 4096, 1 << 20, max];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (size, seed) in sizes.iter().zip(0..) {
                client.publish("t", pattern(*size, seed)).unwrap();
            }
            let error = client.publish("t", vec![0; max + 1]).unwrap_err();
            assert!(error.is_too_large(), "{error}");
            client.publish("t", "next").unwrap();
        });
        for (size, seed) in sizes.iter().zip(0..) {
            let message = next(&mut subscription);
            assert_eq!(message.payload().len(), *size);
            assert!(message.payload() == pattern(*size, seed), "the {size} bytes differ");
        }
        let message = next(&mut subscription);
        assert_eq!((message.payload(), message.sequence()), (&b"next"[..], sizes.len() as u64 + 1));
    });
}

#[test]
fn what_was_flushed_is_with_its_subscribers() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = other.subscribe("t").unwrap();
    for round in 0..50 {
        for _ in 0..20 {
            client.publish("t", "x").unwrap();
        }
        client.flush().unwrap();
        assert_eq!(all(&mut subscription).len(), 20, "round {round}");
    }
}

#[test]
fn a_subscription_is_in_force_when_subscribe_returns() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let publisher = other.publisher("t").unwrap();
    for _ in 0..300 {
        let mut subscription = client.subscribe("t").unwrap();
        publisher.publish("now").unwrap();
        assert_eq!(next(&mut subscription).payload(), b"now");
    }
}

#[test]
fn a_dropped_subscription_is_gone_at_the_broker() {
    let broker = Broker::start();
    let client = broker.client();
    let subscriptions: Vec<_> = (0..10).map(|_| client.subscribe("t").unwrap()).collect();
    assert_eq!(client.status().unwrap().subscriptions, 10);
    drop(subscriptions);
    assert_eq!(client.status().unwrap().subscriptions, 0);
}

#[test]
fn who_publishes_and_ends_at_once_loses_nothing() {
    let broker = Broker::start();
    let mut subscription = broker.client().subscribe("t").unwrap();
    for role in ["publish-and-return", "publish-and-die"] {
        let mut child = Child::spawn(&broker, role);
        for number in 0..10_000_u32 {
            assert_eq!(next(&mut subscription).payload(), number.to_le_bytes(), "{role}");
        }
        child.ended();
    }
    assert_eq!(all(&mut subscription).len(), 0);
}

#[test]
fn an_unread_subscription_does_not_delay_a_request_of_its_client() {
    let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "60000")]);
    let (client, other, watch) = (broker.client(), broker.client(), broker.client());
    let unread = client.subscribe("t").unwrap();
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for _ in 0..5_000 {
                other.publish("t", [0; 1024]).unwrap();
            }
        });
        wait_until("the publisher to wait", || {
            assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
            counter(&watch.status().unwrap(), "parked") > 0
        });
        for number in 0..1_000_u32 {
            assert_eq!(client.request("echo", number.to_le_bytes()).unwrap(), number.to_le_bytes());
        }
        // What publishes waits behind nobody either, in the other lane.
        assert_eq!(other.request("echo", "hi").unwrap(), b"hi");
        assert!(!publishing.is_finished());
        drop(unread);
        publishing.join().unwrap();
    });
}

#[test]
fn topics_are_bounded_per_connection_and_in_all() {
    let broker = Broker::start_with(&[("limits.max_topics_per_connection", "4"), ("limits.max_topics", "6")]);
    let (client, other) = (broker.client(), broker.client());
    let held = ["a", "b", "c", "d"].map(|topic| client.publisher(topic).unwrap());
    let error = client.publish("e", "").unwrap_err();
    assert!(error.to_string().contains("4 topics"), "{error}");
    // A topic that another client has named costs nothing more.
    let _held_by_other = ["a", "e", "f"].map(|topic| other.publisher(topic).unwrap());
    let error = other.publish("g", "").unwrap_err();
    assert!(
        error.to_string().contains("has reached its share of 6 topics (limits.max_topics, limits.user_share_percent)"),
        "{error}"
    );
    client.publish("a", "").unwrap();
    client.flush().unwrap();
    drop((client, held));
    // Topics go with the last who knows them.
    wait_until("a place for another topic", || broker.client().publish("h", "").is_ok());
}

#[test]
fn child() {
    match role().as_deref() {
        Some(role @ ("publish-and-return" | "publish-and-die")) => {
            let client = Client::connect().unwrap();
            let publisher = client.publisher("t").unwrap();
            for number in 0..10_000_u32 {
                publisher.publish(number.to_le_bytes()).unwrap();
            }
            if role == "publish-and-die" {
                die();
            }
        }
        Some(role) => tell(&format!("no role {role}")),
        None => {}
    }
}
