//! A client that names ever new topics and services goes on within its limits: numbers that are not used any more are
//! given back.

mod support;

use lapce_ipc::client::{Client, Subscription};
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{Broker, DEADLINE, wait_until};

/// More than a connection may have at a time.
const MANY: u64 = 20_000;

fn connect(broker: &Broker) -> Client {
    broker.builder().connect().expect("the broker takes us")
}

/// Takes one message on each of the topics, with its number in it.
fn each_once(messages: &mut Subscription, prefix: &str, progress: &AtomicU64) {
    let mut seen = HashSet::new();
    while (seen.len() as u64) < MANY {
        let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
        let Some(number) = message.topic().strip_prefix(prefix) else { continue };
        assert_eq!(message.payload(), number.as_bytes());
        assert!(seen.insert(number.to_owned()), "{number} came twice");
        progress.store(seen.len() as u64, Ordering::SeqCst);
    }
    assert_eq!(messages.dropped(), 0);
}

#[track_caller]
fn ever_new_topics(prefix: &str, publish: impl Fn(&Client, &str, &str) + Sync) {
    let mut broker = Broker::start();
    let (here, there) = (connect(&broker), connect(&broker));
    let mut messages = there.subscribe(">").unwrap();
    let progress = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| each_once(&mut messages, prefix, &progress));
        scope.spawn(|| {
            for number in 0..MANY {
                publish(&here, &format!("{prefix}{number}"), &number.to_string());
            }
            here.flush().unwrap();
        });
        for part in 1..3 {
            wait_until("a part of the messages", || progress.load(Ordering::SeqCst) > part * MANY / 3);
            broker.end("KILL");
            broker.start_again();
        }
    });
    assert_eq!(broker.counter("violations"), 0);
    let topics = here.status().unwrap().topics;
    assert!(topics < 1000, "the broker knows {topics} topics");
}

#[test]
fn dropped_publishers_give_their_topics_back() {
    ever_new_topics("dropped.n", |client, topic, payload| client.publisher(topic).unwrap().publish(payload).unwrap());
}

#[test]
fn a_client_that_publishes_on_ever_new_topics_goes_on() {
    ever_new_topics("named.n", |client, topic, payload| client.publish(topic, payload).unwrap());
}

#[test]
fn publishers_of_one_topic_share_its_number_until_the_last_is_dropped() {
    let broker = Broker::start_with(&[("limits.max_topics_per_connection", "2")]);
    let (here, there) = (connect(&broker), connect(&broker));
    let mut messages = there.subscribe("t").unwrap();
    let (one, two, other) =
        (here.publisher("t").unwrap(), here.publisher("t").unwrap(), here.publisher("other").unwrap());
    let full = here.publisher("third").unwrap_err();
    assert!(full.to_string().contains("2 topics"), "{full}");
    drop(one);
    two.clone().publish("x").unwrap();
    assert!(here.publisher("third").is_err());
    here.publish("t", "y").unwrap();
    drop(two);
    let third = here.publisher("third").unwrap();
    // Opened again, the topic goes on with its sequence numbers.
    drop((other, third));
    here.publisher("t").unwrap().publish("z").unwrap();
    let got: Vec<_> = (0..3).map(|_| messages.next_timeout(DEADLINE).unwrap().expect("a message")).collect();
    let got: Vec<_> = got.iter().map(|message| (message.payload(), message.sequence())).collect();
    assert_eq!(got, [(&b"x"[..], 1), (b"y", 2), (b"z", 3)]);
    drop(here);
    wait_until("the topics to be forgotten", || there.status().unwrap().topics == 0);
}

#[test]
fn a_small_limit_is_enough_for_names_that_are_used_one_after_the_other() {
    let limits = [("limits.max_topics_per_connection", "20"), ("limits.max_services", "30")];
    let broker = Broker::start_with(&limits);
    let (here, there) = (connect(&broker), connect(&broker));
    let mut messages = there.subscribe("n.>").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..600 {
                let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
                assert_eq!(message.payload().len(), number * 20);
            }
        });
        for number in 0..300 {
            here.publish(&format!("n.{number}"), vec![7; number * 20]).unwrap();
            assert!(here.request(&format!("s{number}"), b"").unwrap_err().is_no_responders());
        }
        for number in 300..600 {
            here.publisher(&format!("n.{number}")).unwrap().publish(vec![7; number * 20]).unwrap();
        }
        here.flush().unwrap();
    });
    assert_eq!(here.request("echo", b"hi").unwrap(), b"hi");
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn a_client_that_requests_ever_new_services_goes_on() {
    let broker = Broker::start();
    let client = connect(&broker);
    for number in 0..MANY / 2 {
        assert!(client.request(&format!("s{number}"), b"").unwrap_err().is_no_responders());
    }
    // Nor are these taken from others.
    let mut service = broker.client().serve("new").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| service.next_timeout(DEADLINE).unwrap().expect("a request").reply(b"yes").unwrap());
        assert_eq!(client.request("new", b"").unwrap(), b"yes");
    });
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn a_client_may_offer_services_one_after_the_other_for_ever() {
    let broker = Broker::start_with(&[("limits.max_subscriptions_per_connection", "1")]);
    let client = connect(&broker);
    for number in 0..1100 {
        drop(client.serve(&format!("s{number}")).unwrap());
    }
    assert!(client.serve("a").is_ok_and(|_a| client.serve("b").is_err()));
}
