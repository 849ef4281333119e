//! A program with an event loop of its own sleeps on the descriptor of its client.

mod support;

use lapce_ipc::client::{Client, Subscription};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::Broker;

/// Sleeps until the descriptor of the client is readable. Returns whether it is, within ten seconds.
fn is_readable(client: &Client) -> bool {
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&patience)).expect("a poll") > 0
}

/// Takes all messages that are there, then sleeps, until so many messages have come.
fn take(client: &Client, messages: &mut Subscription, count: u32) -> u32 {
    let mut taken = 0;
    while taken < count {
        while messages.try_next().expect("connected").is_some() {
            taken += 1;
        }
        if taken < count && !is_readable(client) {
            break;
        }
    }
    taken
}

#[test]
fn each_message_makes_the_descriptor_readable() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut messages = client.subscribe("to.loop").expect("a subscription");
    for number in 0..200 {
        std::thread::scope(|scope| {
            scope.spawn(|| other.publish("to.loop", b"one").expect("published"));
            assert_eq!(take(&client, &mut messages, 1), 1, "message {number}");
        });
    }
}

#[test]
fn a_program_that_publishes_without_waiting_misses_no_ring() {
    let broker = Broker::start();
    let client = broker.client();
    let (publisher, mut back) = (client.publisher("loop").expect("a topic"), client.subscribe("loop").expect("one"));
    for round in 0..500 {
        assert!(back.try_next().expect("connected").is_none());
        // A publish looks at the link when it has rung, and each 64th time: the ring of the broker stays.
        let count = 1 + round % 70;
        for _ in 0..count {
            while !publisher.try_publish(b"one").expect("connected") {
                std::thread::yield_now();
            }
        }
        assert!(is_readable(&client), "round {round}");
        assert_eq!(take(&client, &mut back, count), count, "round {round}");
    }
}
