//! Writing and reading in place.

mod support;

use std::io::Read;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use support::probe::pattern;
use support::{Broker, DEADLINE};

#[test]
fn what_is_written_in_place_is_read_in_place() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe("lapce.cursor").unwrap();
    let publisher = other.publisher("lapce.cursor").unwrap();
    for number in 0..2_000_u64 {
        let len = 16 + (number as usize * 37) % 1009;
        let bytes = pattern(len, number);
        let mut loan = publisher.loan(len).unwrap();
        assert_eq!(loan.len(), len);
        // In two parts and from behind.
        loan.write_at(7, &bytes[7..]);
        loan.write_at(0, &bytes[..7]);
        loan.publish().unwrap();
        let seen = subscription
            .read_next(|view| {
                let (mut part, mut whole) = ([0; 5], Vec::new());
                view.copy_to(3, &mut part);
                view.reader().read_to_end(&mut whole).unwrap();
                assert_eq!(part, bytes[3..8]);
                assert_eq!(whole, view.to_vec());
                assert_eq!((view.topic(), view.publisher(), view.len()), ("lapce.cursor", other.id(), len));
                (view.sequence(), whole)
            })
            .unwrap();
        assert_eq!(seen, (number + 1, bytes));
    }
}

#[test]
fn a_view_also_sees_what_came_in_several_records_or_before() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    other.publish("t", "queued").unwrap();
    other.flush().unwrap();
    client.request("echo", "").unwrap();
    assert_eq!(subscription.read_next(|view| view.to_vec()).unwrap(), b"queued");
    other.publish("t", pattern(100_000, 1)).unwrap();
    assert!(subscription.read_next(|view| view.to_vec()).unwrap() == pattern(100_000, 1));
}

#[test]
fn a_dropped_loan_leaves_no_trace() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    let publisher = other.publisher("t").unwrap();
    for _ in 0..500 {
        let mut loan = publisher.loan(1000).unwrap();
        loan.write_at(0, &[0xee; 1000]);
        drop(loan);
        publisher.publish("real").unwrap();
    }
    other.flush().unwrap();
    for number in 1..=500 {
        let message = subscription.next_timeout(DEADLINE).unwrap().expect("a message in time");
        assert_eq!((message.payload(), message.sequence()), (&b"real"[..], number));
    }
    assert!(subscription.next_timeout(Duration::ZERO).unwrap().is_none());
}

#[test]
fn a_thread_that_holds_a_loan_gets_an_error_not_a_deadlock() {
    let broker = Broker::start();
    let client = broker.client();
    let publisher = client.publisher("t").unwrap();
    let loan = publisher.loan(8).unwrap();
    let errors = [publisher.loan(8).map(drop), publisher.publish("x"), client.publish("t", "x"), client.flush()];
    for result in errors {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("holds a loan"), "{error}");
    }
    // The express lane is another.
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    drop(loan);
    publisher.publish("x").unwrap();
    assert!(publisher.loan(client.limits().slot_size as usize + 1).unwrap_err().is_too_large());
    client.flush().unwrap();
}

#[test]
fn another_thread_waits_for_the_loan() {
    let broker = Broker::start();
    let client = broker.client();
    let mut subscription = broker.client().subscribe("t").unwrap();
    let publisher = client.publisher("t").unwrap();
    std::thread::scope(|scope| {
        let (done, is_done) = sync_channel(1);
        let mut loan = publisher.loan(5).unwrap();
        let publisher = &publisher;
        scope.spawn(move || {
            publisher.publish("second").unwrap();
            done.send(()).unwrap();
        });
        assert_eq!(is_done.recv_timeout(Duration::from_millis(50)), Err(RecvTimeoutError::Timeout));
        loan.write_at(0, b"first");
        loan.publish().unwrap();
        is_done.recv_timeout(DEADLINE).unwrap();
    });
    for expected in ["first", "second"] {
        let message = subscription.next_timeout(DEADLINE).unwrap().expect("a message in time");
        assert_eq!(message.payload(), expected.as_bytes());
    }
}
