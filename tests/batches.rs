//! `publish_batch` and `read_batch`: the same messages, in the same order, as one by one.

mod support;

use lapce_ipc::client::{Client, Publisher, Subscription};
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::Broker;

/// The number that a message begins with, and its length.
fn payloads(count: u64, size: impl Fn(u64) -> usize) -> Vec<Vec<u8>> {
    let payload = |number: u64| {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.resize(size(number).max(8), 0);
        bytes
    };
    (0..count).map(payload).collect()
}

/// Reads batches until `count` messages are there, and checks each against its place. Returns the sizes of the batches.
fn read(subscription: &mut Subscription, expected: &[Vec<u8>]) -> Vec<usize> {
    let (mut at, mut sizes) = (0, Vec::new());
    while at < expected.len() {
        let before = at;
        let count = subscription
            .read_batch(|view| {
                assert_eq!(view.to_vec(), expected[at], "message {at}");
                at += 1;
            })
            .unwrap();
        assert_eq!(count, at - before);
        sizes.push(count);
    }
    sizes
}

/// A broker, and a client that publishes what it subscribes to.
fn with_one_client() -> (Broker, Client, Subscription, Publisher) {
    let broker = Broker::start();
    let client = broker.client();
    let (subscription, publisher) = (client.subscribe("numbers").unwrap(), client.publisher("numbers").unwrap());
    (broker, client, subscription, publisher)
}

#[test]
fn batches_bring_every_message_once_and_in_order() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = other.subscribe("numbers").unwrap();
    let publisher = client.publisher("numbers").unwrap();
    let slot = client.limits().slot_size as usize;
    // One in a hundred is of several records.
    let sent = payloads(20_000, |number| if number % 100 == 99 { 2 * slot + 1 } else { (number % 200) as usize });
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            for part in sent.chunks(777) {
                publisher.publish_batch(part).unwrap();
            }
        });
        let sizes = read(&mut subscription, &sent);
        assert!(sizes.iter().all(|size| (1..=256).contains(size)), "{sizes:?}");
        publishing.join().unwrap();
    });
    // All are there before the first is read: then they come together.
    publisher.publish_batch(&sent[..50]).unwrap();
    client.flush().unwrap();
    let sizes = read(&mut subscription, &sent[..50]);
    assert!(sizes.len() < 10, "{sizes:?}");
    assert_eq!(subscription.dropped(), 0);
}

#[test]
fn batches_and_single_calls_mix() {
    let (_broker, _client, mut subscription, publisher) = with_one_client();
    let sent = payloads(3_000, |number| (number % 40) as usize);
    for round in sent.chunks(30) {
        publisher.publish_batch(&round[..10]).unwrap();
        round[10..20].iter().for_each(|payload| publisher.publish(payload).unwrap());
        publisher.publish_batch(&[[0u8; 8]; 0]).unwrap();
        publisher.publish_batch(&round[20..]).unwrap();
        assert_eq!(subscription.next().unwrap().unwrap().payload(), round[0]);
        assert_eq!(subscription.read_next(|view| view.to_vec()).unwrap(), round[1]);
        read(&mut subscription, &round[2..]);
    }
}

#[test]
fn a_batch_with_a_message_that_is_too_large_is_not_published() {
    let (_broker, client, mut subscription, publisher) = with_one_client();
    let too_large = vec![0; client.limits().max_message_size as usize + 1];
    let error = publisher.publish_batch(&[&b"one"[..], &too_large]).unwrap_err();
    assert!(error.to_string().contains("larger than max_message_size"), "{error}");
    publisher.publish("two").unwrap();
    assert_eq!(subscription.next().unwrap().unwrap().payload(), b"two");
}

#[test]
fn a_panic_in_the_middle_of_a_batch_consumes_one_message() {
    let (_broker, client, mut subscription, publisher) = with_one_client();
    let sent = payloads(20, |_| 8);
    publisher.publish_batch(&sent).unwrap();
    client.flush().unwrap();
    let mut seen = 0;
    let result = catch_unwind(AssertUnwindSafe(|| {
        while seen < 20 {
            let _ = subscription.read_batch(|_| {
                seen += 1;
                assert!(seen < 5, "the fifth");
            });
        }
    }));
    assert!(result.is_err());
    read(&mut subscription, &sent[5..]);
}

/// Threads of one client, each with a subscription: whoever reads finds the messages of the others, too.
#[test]
fn readers_of_one_client_do_not_keep_messages_from_each_other() {
    let broker = Broker::start();
    let (client, other): (Client, Client) = (broker.client(), broker.client());
    let topics = ["a", "b", "c"];
    let sent = payloads(5_000, |number| (number % 64) as usize);
    std::thread::scope(|scope| {
        for topic in topics {
            let mut subscription = client.subscribe(topic).unwrap();
            let sent = &sent;
            scope.spawn(move || read(&mut subscription, sent));
        }
        for topic in topics {
            let publisher = other.publisher(topic).unwrap();
            let sent = &sent;
            scope.spawn(move || sent.chunks(100).for_each(|part| publisher.publish_batch(part).unwrap()));
        }
    });
}
