//! `drop_oldest` keeps exactly the newest messages while its client is stopped, and tells at once what it dropped.

mod support;

use lapce_ipc::client::{Client, DeliveryPolicy, SubscribeOptions, Subscription};
use std::time::{Duration, Instant};
use support::role::{Child, heard, role, tell};
use support::{Broker, DEADLINE};

/// Messages that a stopped client does not read: more than its ring and all that is kept for it.
const SENT: u64 = 30_000;
/// Of messages of one cell, with what the broker gives by default.
const WINDOW: u64 = 8_192;

fn subscribe(client: &Client, pattern: &str, capacity_bytes: u32) -> Subscription {
    let options = SubscribeOptions { policy: DeliveryPolicy::DropOldest, capacity_bytes };
    client.subscribe_with(pattern, options).expect("a subscription")
}

/// Reads up to the message that says so, and tells: how many, the first number, the drops that were known with the
/// first and in the end, and whether all was in order.
fn report(subscription: &mut Subscription) {
    let (mut count, mut first, mut known, mut in_order) = (0u64, 0, 0, true);
    loop {
        let message = subscription.next_timeout(DEADLINE).expect("no end").expect("a message");
        let text = String::from_utf8_lossy(&message.payload()[..message.payload().len().min(40)]).into_owned();
        let (topic, number) = text.trim_end().split_once(' ').expect("topic and number");
        let number: u64 = number.trim_start_matches('0').parse().unwrap_or(0);
        if count == 0 {
            (first, known) = (number, subscription.dropped());
        }
        in_order &= message.topic() == topic && number == first + count;
        count += 1;
        if number == SENT {
            break;
        }
    }
    tell(&format!("got {count} {first} {known} {} {in_order}", subscription.dropped()));
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let client = Client::connect().expect("a broker");
    let (how, capacity) = role.split_once(' ').expect("how and how much");
    let mut subscription = subscribe(&client, "a.>", capacity.parse().expect("a number"));
    let mut second = (how == "two").then(|| subscribe(&client, "a.*", 4096));
    if how == "busy" {
        tell("ready");
        heard();
        let message = subscription.next_timeout(DEADLINE).expect("no end");
        assert!(message.is_some());
        tell("one");
        heard();
    } else {
        tell("ready");
    }
    report(&mut subscription);
    if let Some(second) = &mut second {
        report(second);
    }
    heard();
}

struct Report {
    count: u64,
    first: u64,
    /// Drops that were known with the first message.
    known: u64,
    dropped: u64,
}

fn hear(child: &mut Child) -> Report {
    let said = child.hears("got");
    let words: Vec<&str> = said.split(' ').collect();
    let [count, first, known, dropped, in_order] = words[..] else { panic!("{said}") };
    assert_eq!(in_order, "true", "{said}");
    let number = |word: &str| word.parse().expect("a number");
    Report { count: number(count), first: number(first), known: number(known), dropped: number(dropped) }
}

/// Publishes numbers `from` to `SENT`, each with its topic, to several topics in turn; from a client of its own.
fn publish(broker: &Broker, from: u64, topics: &[&str], len: usize) -> Duration {
    let client = broker.client();
    let publishers: Vec<_> = topics.iter().map(|topic| client.publisher(topic).expect("a publisher")).collect();
    let started = Instant::now();
    for number in from..=SENT {
        let at = number as usize % topics.len();
        publishers[at].publish(format!("{} {number:0len$}", topics[at])).expect("the broker takes it");
    }
    client.flush().expect("the broker takes all");
    started.elapsed()
}

fn assert_newest(report: &Report, window: u64, from: u64) {
    let Report { count, first, known, dropped } = *report;
    assert_eq!((count, first), (window, SENT - window + 1), "{dropped} dropped");
    assert_eq!((known, dropped), (SENT - from + 1 - window, SENT - from + 1 - window), "known with the first message");
}

#[test]
fn a_stopped_client_gets_exactly_the_newest_that_fit_and_knows_of_the_others() {
    let broker = Broker::start();
    for (capacity, window) in [(0, WINDOW), (4096, 32)] {
        let mut child = Child::ready(&broker, &format!("waits {capacity}"));
        child.stop();
        let before = broker.counter("parked");
        // One that reads gets all of it meanwhile.
        let other = broker.client();
        let mut reads = other.subscribe("a.b").expect("a subscription");
        std::thread::scope(|scope| {
            scope.spawn(|| publish(&broker, 1, &["a.b"], 8));
            for number in 1..=SENT {
                let message = reads.next_timeout(DEADLINE).expect("no end").expect("a message");
                assert_eq!(message.payload(), format!("a.b {number:08}").as_bytes());
            }
        });
        drop(reads);
        let parked = broker.counter("parked") - before;
        child.go_on();
        assert_newest(&hear(&mut child), window, 1);
        assert!(parked < SENT / 10, "publishes waited {parked} times");
    }
}

#[test]
fn a_stopped_client_delays_its_publishers_for_the_grace_only() {
    let broker = Broker::start_with(&[("delivery.drop_grace_ms", "50")]);
    let mut child = Child::ready(&broker, "waits 0");
    child.stop();
    publish(&broker, 1, &["a.b"], 8);
    assert_eq!(broker.counter("parked"), 1);
    child.go_on();
    assert_newest(&hear(&mut child), WINDOW, 1);
}

/// Messages that it had queued, and not taken, when it stopped, are older than those that came meanwhile.
#[test]
fn what_a_stopped_client_had_queued_goes_first() {
    let broker = Broker::start();
    let mut child = Child::ready(&broker, "busy 4096");
    let client = broker.client();
    client.publish("a.b", "a.b 00000001").expect("the broker takes it");
    for number in 2..=20 {
        client.publish("a.b", format!("a.b {number:08}")).expect("the broker takes it");
    }
    client.flush().expect("the broker takes all");
    child.say("take one");
    child.hears("one");
    child.stop();
    publish(&broker, 21, &["a.b"], 8);
    child.go_on();
    child.say("go");
    let report = hear(&mut child);
    assert_newest(&report, 32, 2);
}

#[test]
fn the_newest_are_those_of_all_topics_of_a_pattern_also_when_their_publishers_are_gone() {
    let broker = Broker::start();
    let mut child = Child::ready(&broker, "waits 65536");
    child.stop();
    publish(&broker, 1, &["a.b", "a.c", "a.d.e"], 8);
    // Their numbers are free for others, but for what is kept.
    let client = broker.client();
    let publishers: Vec<_> = (0..8).map(|n| client.publisher(&format!("b.{n}")).expect("a publisher")).collect();
    for publisher in &publishers {
        publisher.publish("other").expect("the broker takes it");
    }
    client.flush().expect("the broker takes all");
    child.go_on();
    assert_newest(&hear(&mut child), 512, 1);
}

#[test]
fn two_subscriptions_of_a_stopped_client_get_the_newest_each() {
    let broker = Broker::start();
    let mut child = Child::ready(&broker, "two 0");
    child.stop();
    publish(&broker, 1, &["a.b"], 8);
    child.go_on();
    assert_newest(&hear(&mut child), WINDOW, 1);
    assert_newest(&hear(&mut child), 32, 1);
}

#[test]
fn the_newest_messages_of_several_records_are_whole() {
    const LEN: usize = 3000;
    let broker = Broker::start();
    let mut child = Child::ready(&broker, "long 65536");
    child.stop();
    let client = broker.client();
    let publisher = client.publisher("a.b").expect("a publisher");
    let from = SENT - 2_000;
    for number in from..=SENT {
        let mut text = format!("a.b {number:08}").into_bytes();
        text.resize(LEN, b' ');
        publisher.publish(text).expect("the broker takes it");
    }
    client.flush().expect("the broker takes all");
    child.go_on();
    // Each takes 26 of 512 cells.
    assert_newest(&hear(&mut child), 512 / 26, from);
}

/// The shortest of a few times, for the machine may be busy.
#[test]
fn drops_are_told_within_a_tenth_of_a_second_after_a_stop_without_another_message() {
    let broker = Broker::start();
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let mut child = Child::ready(&broker, "waits 4096");
        child.stop();
        publish(&broker, 1, &["a.b"], 8);
        let continued = Instant::now();
        child.go_on();
        assert_newest(&hear(&mut child), 32, 1);
        shortest = shortest.min(continued.elapsed());
        if shortest < Duration::from_millis(100) {
            return;
        }
    }
    panic!("told after {shortest:?} at best");
}

/// It is awake, and takes nothing.
#[test]
fn drops_of_a_slow_client_are_told_within_a_tenth_of_a_second_without_another_message() {
    let broker = Broker::start();
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let client = broker.client();
        let mut subscription = subscribe(&client, "a.>", 4096);
        publish(&broker, 1, &["a.b"], 8);
        let published = Instant::now();
        while subscription.dropped() < SENT - 32 {
            client.request("echo", "").expect("an answer");
            assert!(published.elapsed() < DEADLINE, "{} are told", subscription.dropped());
        }
        shortest = shortest.min(published.elapsed());
        let message = subscription.try_next().expect("no end").expect("a message");
        assert_eq!(message.payload(), format!("a.b {:08}", SENT - 31).as_bytes());
        assert_eq!(subscription.dropped(), SENT - 32);
        if shortest < Duration::from_millis(100) {
            return;
        }
    }
    panic!("told after {shortest:?} at best");
}
