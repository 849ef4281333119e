//! Bursts of honest clients: nothing is lost to a subscriber that reads, and no client is disconnected for its memory.

mod support;

use lapce_ipc::client::{Client, DeliveryPolicy, SubscribeOptions};
use std::time::{Duration, Instant};
use support::{Broker, DEADLINE, wait_until};

/// How often something is done. An environment variable asks for longer runs, which the fixture does not limit.
fn rounds(broker: &mut Broker, variable: &str, usual: u32) -> u32 {
    let asked = std::env::var(variable).ok().map(|text| text.parse().expect("a number"));
    if asked.is_some() {
        broker.without_limit();
    }
    asked.unwrap_or(usual)
}

/// `LAPCE_IPC_AUDIT_ROUNDS=600 cargo test --test bursts honest` runs for five minutes.
#[test]
fn honest_clients_in_bursts_pass_audits_every_ten_milliseconds() {
    let mut broker = Broker::start_with(&[("shared_memory.audit_interval_ms", "10")]);
    let rounds = rounds(&mut broker, "LAPCE_IPC_AUDIT_ROUNDS", 4);
    let clients: Vec<Client> = (0..100).map(|_| broker.client()).collect();
    for _ in 0..rounds {
        std::thread::scope(|scope| {
            for clients in clients.chunks(25) {
                scope.spawn(move || {
                    for client in clients {
                        for _ in 0..400 {
                            client.publish("burst", [7; 64]).expect("the broker takes it");
                        }
                        client.flush().expect("the broker takes all");
                    }
                });
            }
        });
        // The memory of an idle connection is taken back after half a second.
        wait_until("the memory to be taken back", || slots_used(&broker) == 0);
    }
    for client in &clients {
        client.flush().expect("it is connected");
    }
    assert_eq!(broker.counter("violations"), 0);
}

fn slots_used(broker: &Broker) -> u32 {
    broker.client().status().expect("a status").slots_used
}

const BURST: u32 = 10_000;

fn with(policy: DeliveryPolicy) -> SubscribeOptions {
    SubscribeOptions { policy, ..SubscribeOptions::default() }
}

/// Bursts of small messages to a subscriber that waits for them.
fn bursts_are_whole(policy: DeliveryPolicy) {
    let mut broker = Broker::start();
    let rounds = rounds(&mut broker, "LAPCE_IPC_BURSTS", 10);
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe_with("t", with(policy)).expect("a subscription");
    let publisher = other.publisher("t").expect("a publisher");
    for round in 0..rounds {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                for number in 0..BURST {
                    let message = subscription.next_timeout(DEADLINE).expect("no end");
                    let dropped = subscription.dropped();
                    let message = message.unwrap_or_else(|| panic!("round {round}: {number} came, {dropped} dropped"));
                    assert_eq!(message.payload()[..4], number.to_le_bytes(), "round {round}, {dropped} dropped");
                }
            });
            for number in 0..BURST {
                let [a, b, c, d] = number.to_le_bytes();
                publisher.publish([a, b, c, d, 0]).expect("the broker takes it");
            }
            reading.join().expect("it read all");
        });
        assert_eq!(subscription.dropped(), 0, "round {round}");
    }
}

/// `LAPCE_IPC_BURSTS=200 cargo test --test bursts bursts_are_whole`
#[test]
fn bursts_are_whole_for_drop_oldest() {
    bursts_are_whole(DeliveryPolicy::DropOldest);
}

#[test]
fn bursts_are_whole_for_drop_newest() {
    bursts_are_whole(DeliveryPolicy::DropNewest);
}

#[test]
fn sub_prints_each_message_of_a_burst_into_a_file() {
    const COUNT: &str = "50000";
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "q.x", "--count", COUNT]);
    sub.wait_for("subscribed");
    assert!(broker.run(&["pub", "q.x", "hello", "--count", COUNT]).status.success());
    assert_eq!(sub.code(), 0);
    assert_eq!(sub.stdout().len(), 50_000 * "hello\n".len());
    assert_eq!(sub.stderr(), "subscribed\n");
}

#[test]
fn sub_prints_each_message_of_small_bursts_with_each_policy() {
    let mut broker = Broker::start();
    let rounds = rounds(&mut broker, "LAPCE_IPC_BURSTS", 5);
    for policy in ["block", "drop-oldest", "drop-newest"] {
        for _ in 0..rounds {
            let mut sub = broker.spawn(&["sub", "q.x", "--count", "500", "--policy", policy]);
            sub.wait_for("subscribed");
            assert!(broker.run(&["pub", "q.x", "hello", "--count", "500"]).status.success());
            assert_eq!(sub.code(), 0, "{policy}");
            assert_eq!(sub.stderr(), "subscribed\n", "{policy}");
        }
    }
}

#[test]
fn a_stopped_sub_is_evicted_and_ends_with_75() {
    let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "200")]);
    let mut sub = broker.spawn(&["sub", "q.x", "--capacity", "4096"]);
    sub.wait_for("subscribed");
    sub.stop();
    assert!(broker.run(&["pub", "q.x", "hello", "--count", "5000"]).status.success());
    sub.signal("CONT");
    assert_eq!(sub.code(), 75);
    assert!(sub.stderr().contains("slow consumer"), "{}", sub.stderr());
    assert_eq!(sub.stdout().len(), 32 * "hello\n".len());
}

/// Messages that were dropped are told when none follows.
#[test]
fn drops_are_told_within_a_tenth_of_a_second_without_another_message() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let options = SubscribeOptions { policy: DeliveryPolicy::DropNewest, capacity_bytes: 4096 };
    let mut subscription = client.subscribe_with("t", options).expect("a subscription");
    for _ in 0..1_000 {
        other.publish("t", "").expect("the broker takes it");
    }
    other.flush().expect("the broker takes all");
    let flushed = Instant::now();
    // It takes nothing, so nothing but a record of its own can tell.
    while subscription.dropped() == 0 {
        client.request("echo", "").expect("an answer");
        assert!(flushed.elapsed() < DEADLINE, "the drops are not told");
    }
    let took = flushed.elapsed();
    assert_eq!(subscription.dropped(), 1_000 - 32);
    assert!(took < Duration::from_millis(100), "told after {took:?}");
    assert_eq!(subscription.try_next().expect("no end").map(|message| message.sequence()), Some(1));
}

/// A client that is stopped makes a publisher wait for one grace.
#[test]
fn a_stopped_dropper_delays_a_publisher_once() {
    for policy in ["drop-oldest", "drop-newest"] {
        let broker = Broker::start_with(&[("delivery.drop_grace_ms", "100")]);
        let sub = broker.spawn(&["sub", "q.x", "--policy", policy]);
        wait_until("a subscription", || sub.stderr().contains("subscribed"));
        sub.stop();
        let client = broker.client();
        let started = Instant::now();
        for _ in 0..50_000 {
            client.publish("q.x", "hello").expect("the broker takes it");
        }
        client.flush().expect("the broker takes all");
        assert!(broker.counter("dropped") > 0);
        assert_eq!(broker.counter("parked"), 1, "{policy}: {:?}", started.elapsed());
        sub.signal("CONT");
    }
}

#[test]
fn a_subscriber_that_reads_all_has_nothing_unread() {
    let broker = Broker::start();
    for policy in [DeliveryPolicy::Block, DeliveryPolicy::DropOldest, DeliveryPolicy::DropNewest] {
        let (client, other) = (broker.client_named("reads"), broker.client());
        let mut subscription = client.subscribe_with("t", with(policy)).expect("a subscription");
        for _ in 0..10 {
            for _ in 0..1_000 {
                other.publish("t", "").expect("the broker takes it");
            }
            for _ in 0..1_000 {
                subscription.next_timeout(DEADLINE).expect("no end").expect("a message");
            }
        }
        wait_until("all to be paid", || {
            let status = other.status().expect("a status");
            let reads = status.connections.iter().find(|connection| connection.name.as_str() == "reads");
            reads.is_some_and(|reads| reads.credit_used_bytes < reads.credit_bytes / 2)
        });
        client.close();
    }
}
