//! Calls that wait: what they wait for, for how long, and that none waits for itself or keeps others waiting.

mod support;

use lapce_ipc::client::SubscribeOptions;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::sync_channel;
use std::thread;
use support::{Broker, DEADLINE, wait_until};

/// Does something that could hang, and fails if it does.
#[track_caller]
fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = sync_channel(1);
    let worker = thread::spawn(move || done.send(work()).unwrap());
    let result = is_done.recv_timeout(DEADLINE);
    assert!(result.is_ok() || worker.is_finished(), "{what} has not come to its end after {DEADLINE:?}");
    worker.join().unwrap_or_else(|panic| resume_unwind(panic));
    result.unwrap()
}

/// Whether a thread of this process sleeps.
fn sleeps(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
}

#[test]
fn client_calls_while_a_message_is_read_hang_nobody() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    ends("reading", move || {
        let mut subscription = client.subscribe("t").unwrap();
        let mut echoed = client.subscribe("echoed").unwrap();
        let publisher = client.publisher("echoed").unwrap();
        other.publish("t", "queued").unwrap();
        other.flush().unwrap();
        // Behind the name of its topic a message goes through its queue: nothing is held then.
        let (reply, payload) = subscription.read_next(|view| (client.request("echo", "hi"), view.to_vec())).unwrap();
        assert_eq!((reply.unwrap(), payload), (b"hi".to_vec(), b"queued".to_vec()));
        other.publish("t", "in place").unwrap();
        other.flush().unwrap();
        let payload = subscription.read_next(|view| {
            assert!(client.request("echo", "hi").unwrap_err().is_view_outstanding());
            assert!(client.subscribe("x").unwrap_err().is_view_outstanding());
            assert!(client.closed(None).unwrap_err().is_view_outstanding());
            assert!(publisher.publish(vec![0; 1 << 20]).unwrap_err().is_view_outstanding(), "it would have to wait");
            assert!(echoed.try_next().unwrap().is_none(), "this does not wait");
            publisher.publish("published").unwrap();
            view.to_vec()
        });
        assert_eq!(payload.unwrap(), b"in place");
        assert_eq!(echoed.next().unwrap().unwrap().payload(), b"published");
        assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    });
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn a_queued_message_that_is_read_slowly_keeps_nobody_waiting() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    ends("reading", move || {
        let mut subscription = client.subscribe("t").unwrap();
        other.publish("t", "queued").unwrap();
        let echoed = subscription.read_next(|_| {
            let client = client.clone();
            ends("a request", move || client.request("echo", "hi"))
        });
        assert_eq!(echoed.unwrap().unwrap(), b"hi");
    });
}

#[test]
fn a_panic_while_a_message_is_read_takes_nothing_from_anybody() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let waiting = client.clone();
    let (say, heard) = sync_channel(1);
    let mut subscription = client.subscribe("t").unwrap();
    let mut theirs = waiting.subscribe("theirs").unwrap();
    other.publish("t", "queued").unwrap();
    subscription.read_next(|_| ()).unwrap();
    other.publish("t", "in place").unwrap();
    other.flush().unwrap();
    let mut follower = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        subscription.read_next(|_| {
            let thread = thread::spawn(move || {
                say.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                theirs.next_timeout(DEADLINE).unwrap().map(|message| message.into_payload())
            });
            let number = heard.recv().unwrap();
            wait_until("the other thread to wait", || sleeps(number));
            follower = Some(thread);
            other.publish("theirs", "for the other").unwrap();
            other.flush().unwrap();
            resume_unwind(Box::new("a panic of the user's"));
        })
    }));
    assert!(panicked.is_err());
    let follower = follower.unwrap();
    let got = ends("the other thread", move || follower.join().unwrap());
    assert_eq!(got.as_deref(), Some(&b"for the other"[..]), "the one who waited has become the reader");
}

#[test]
fn messages_whose_reading_panics_are_taken_and_their_room_is_given_back() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let options = SubscribeOptions { capacity_bytes: 2048, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe_with("t", options).unwrap();
    let publishes = thread::spawn(move || {
        for number in 0..500_u32 {
            other.publish("t", number.to_le_bytes()).unwrap();
        }
        other.flush().unwrap();
    });
    for number in 0..500_u32 {
        let mut seen = Vec::new();
        let read = catch_unwind(AssertUnwindSafe(|| {
            subscription.read_next(|view| {
                seen = view.to_vec();
                resume_unwind(Box::new(()));
            })
        }));
        assert!(read.is_err(), "evicted: its room was not given back");
        assert_eq!(seen, number.to_le_bytes());
    }
    publishes.join().unwrap();
    assert_eq!(subscription.dropped(), 0);
}
