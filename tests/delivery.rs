//! Flow control: what happens to a publish for which a subscription has no room, and whom it concerns.

mod support;

use lapce_ipc::client::{Client, DeliveryPolicy, Message, SubscribeOptions, Subscription};
use std::time::{Duration, Instant};
use support::probe::{counter, pattern};
use support::{Broker, DEADLINE, wait_until};

/// A broker that evicts after 200 ms.
fn impatient() -> Broker {
    Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "200")])
}

/// Room for 32 messages of up to 64 bytes.
fn small(policy: DeliveryPolicy) -> SubscribeOptions {
    SubscribeOptions { policy, capacity_bytes: 32 * 128 }
}

fn next(subscription: &mut Subscription) -> Message {
    subscription.next_timeout(DEADLINE).unwrap().expect("a message in time")
}

fn all(subscription: &mut Subscription) -> Vec<Message> {
    std::iter::from_fn(|| subscription.next_timeout(Duration::ZERO).unwrap()).collect()
}

#[test]
fn block_makes_the_publisher_wait_and_loses_nothing() {
    let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "60000")]);
    let (client, other, watch) = (broker.client(), broker.client(), broker.client());
    let mut subscription = client.subscribe_with("t", small(DeliveryPolicy::Block)).unwrap();
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for number in 0..500_u32 {
                other.publish("t", number.to_le_bytes()).unwrap();
            }
            other.flush().unwrap();
        });
        wait_until("the publisher to wait", || counter(&watch.status().unwrap(), "parked") > 0);
        assert_eq!(counter(&watch.status().unwrap(), "published"), 32);
        assert!(!publishing.is_finished());
        for number in 0..500_u32 {
            assert_eq!(next(&mut subscription).payload(), number.to_le_bytes());
        }
    });
    assert_eq!(subscription.dropped(), 0);
}

#[test]
fn an_unread_subscription_is_evicted_and_nobody_else_notices() {
    let broker = impatient();
    let (client, other, watch) = (broker.client(), broker.client(), broker.client());
    let mut events = watch.subscribe("$sys.subscription.*").unwrap();
    let mut unread = client.subscribe_with("t", small(DeliveryPolicy::Block)).unwrap();
    let mut sibling = client.subscribe("t").unwrap();
    let mut stranger = broker.client().subscribe("t").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..1_000_u32 {
                other.publish("t", number.to_le_bytes()).unwrap();
            }
        });
        for subscription in [&mut sibling, &mut stranger] {
            scope.spawn(|| {
                for number in 0..1_000_u32 {
                    assert_eq!(next(subscription).payload(), number.to_le_bytes());
                }
            });
        }
    });
    // What it had room for, then the notice.
    for number in 0..32_u32 {
        assert_eq!(next(&mut unread).payload(), number.to_le_bytes());
    }
    let error = unread.next_timeout(DEADLINE).unwrap_err();
    assert!(error.is_evicted(), "{error}");
    let event = next(&mut events);
    assert_eq!(event.topic(), "$sys.subscription.evicted");
    let text = String::from_utf8_lossy(event.payload()).into_owned();
    assert!(text.contains(&format!("\"connection\":{}", client.id())) && text.contains("\"pattern\":\"t\""), "{text}");
    assert_eq!(counter(&watch.status().unwrap(), "evicted"), 1);
    // It may subscribe again.
    let mut again = client.subscribe("t").unwrap();
    other.publish("t", "again").unwrap();
    assert_eq!(next(&mut again).payload(), b"again");
}

/// Credit for one subscription is no reason to be patient with another of the same client.
#[test]
fn a_sibling_that_is_read_does_not_put_the_eviction_off() {
    let broker = impatient();
    let (client, slow, busy) = (broker.client(), broker.client(), broker.client());
    let unread = client.subscribe_with("slow", small(DeliveryPolicy::Block)).unwrap();
    let mut sibling = client.subscribe_with("busy", small(DeliveryPolicy::Block)).unwrap();
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for _ in 0..100 {
                slow.publish("slow", "").unwrap();
            }
            slow.flush().unwrap();
        });
        let started = Instant::now();
        while !publishing.is_finished() {
            assert!(started.elapsed() < Duration::from_secs(5), "a publish waits for longer than 200 ms");
            busy.publish("busy", "").unwrap();
            next(&mut sibling);
        }
    });
    drop(unread);
}

#[test]
fn drop_newest_drops_at_the_router_and_shows_the_gap() {
    let broker = impatient();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe_with("t", small(DeliveryPolicy::DropNewest)).unwrap();
    for _ in 0..1_000 {
        other.publish("t", "").unwrap();
    }
    // Nobody reads, and yet nobody waits.
    other.flush().unwrap();
    let got = all(&mut subscription);
    assert!(got.iter().map(Message::sequence).eq(1..=32), "the oldest are kept");
    // Behind the credit for them.
    client.request("echo", "").unwrap();
    other.publish("t", "").unwrap();
    assert_eq!(next(&mut subscription).sequence(), 1_001, "the gap is visible");
    assert_eq!(subscription.dropped(), 1_000 - 32);
    let status = other.status().unwrap();
    assert_eq!((counter(&status, "dropped"), counter(&status, "delivered")), (1_000 - 32, 33));
    assert_eq!(counter(&status, "evicted"), 0);
}

#[test]
fn drop_oldest_keeps_the_newest() {
    let broker = impatient();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe_with("t", small(DeliveryPolicy::DropOldest)).unwrap();
    for _ in 0..50 {
        for _ in 0..20 {
            other.publish("t", "").unwrap();
        }
        other.flush().unwrap();
        // The client takes what has come out of its ring on the way to the reply.
        client.request("echo", "").unwrap();
    }
    let got = all(&mut subscription);
    assert!(got.iter().map(Message::sequence).eq(1_000 - 32 + 1..=1_000), "{} messages", got.len());
    assert_eq!(subscription.dropped(), 1_000 - 32);
}

/// Nobody in the client waits for anything, so that its ring is full, too.
#[test]
fn drop_oldest_delays_a_publisher_for_the_grace_only_and_counts_every_loss() {
    const SENT: u64 = 50_000;
    let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "60000")]);
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe_with("t", small(DeliveryPolicy::DropOldest)).unwrap();
    let publisher = other.publisher("t").unwrap();
    for _ in 0..SENT {
        publisher.publish("").unwrap();
    }
    other.flush().unwrap();
    assert!(counter(&other.status().unwrap(), "parked") <= 1, "it waits once for who does not read");
    let mut got = all(&mut subscription).len() as u64;
    publisher.publish("").unwrap();
    assert_eq!(next(&mut subscription).sequence(), SENT + 1);
    got += 1;
    assert_eq!(got + subscription.dropped(), SENT + 1);
}

#[test]
fn two_clients_that_publish_to_each_other_and_do_not_read_go_on() {
    let broker = impatient();
    let (left, right) = (broker.client(), broker.client());
    let mut to_left = left.subscribe("to.left").unwrap();
    let mut to_right = right.subscribe("to.right").unwrap();
    let publish = |client: &Client, topic: &str| {
        for _ in 0..5_000 {
            client.publish(topic, [0; 1024]).unwrap();
        }
        client.flush().unwrap();
        assert_eq!(client.request("echo", "on").unwrap(), b"on");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| publish(&left, "to.right"));
        scope.spawn(|| publish(&right, "to.left"));
    });
    for subscription in [&mut to_left, &mut to_right] {
        let error = subscription.find_map(Result::err).expect("an end");
        assert!(error.is_evicted(), "{error}");
    }
}

#[test]
fn a_message_larger_than_the_subscriptions_room_passes() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe_with("t", small(DeliveryPolicy::Block)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..4 {
                other.publish("t", pattern(3 << 20, number)).unwrap();
                other.publish("t", "between").unwrap();
            }
        });
        for number in 0..4 {
            assert!(next(&mut subscription).payload() == pattern(3 << 20, number));
            assert_eq!(next(&mut subscription).payload(), b"between");
        }
    });
}
