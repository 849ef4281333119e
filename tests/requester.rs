//! A `Requester`: as requests by `Client::request`, also where the calling thread takes the reply out of the ring.

mod support;

use lapce_ipc::client::{RequestOptions, Requester, WaitStrategy};
use std::sync::mpsc::sync_channel;
use support::calls::{beside_messages, serve, text, within};
use support::cut::cut;
use support::probe::{counter, pattern, served};
use support::{Broker, DEADLINE, wait_for_stop, wait_until};

const STRATEGIES: [WaitStrategy; 3] = [WaitStrategy::Adaptive, WaitStrategy::Block, WaitStrategy::Busy];

/// Calls with bodies that differ in content and length.
fn calls(requester: &Requester, thread: u64, count: u64) {
    let mut reply = Vec::new();
    for number in 0..count {
        let body = pattern((number as usize * 61) % 3_000, thread << 32 | number);
        requester.call_into(&body, &mut reply).unwrap();
        assert!(reply == body, "{thread} {number}");
    }
}

#[test]
fn a_call_has_the_reply_or_the_error_reply() {
    let broker = Broker::start();
    let other = broker.client();
    serve(&other, "svc", |request| match text(request).as_str() {
        "error" => Err("no luck".to_owned()),
        other => Ok(other.to_uppercase()),
    });
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let (requester, mut reply) = (client.requester("svc").unwrap(), b"of the call before".to_vec());
        for _ in 0..100 {
            requester.call_into("hello", &mut reply).unwrap();
            assert_eq!(reply, b"HELLO");
            requester.call_into("", &mut reply).unwrap();
            assert_eq!(reply, b"");
            assert_eq!(requester.call("hi").unwrap(), b"HI");
            reply.push(1);
            let error = requester.call_into("error", &mut reply).unwrap_err();
            assert!(error.is_error_reply() && error.to_string().contains("luck") && reply.is_empty(), "{error}");
        }
        let requester = client.requester("missing").unwrap();
        assert!(requester.call("x").unwrap_err().is_no_responders());
        assert!(client.requester("not a name").is_err());
    }
    let status = other.status().unwrap();
    assert_eq!((served(&status, "svc").requests, served(&status, "svc").outstanding), (1_200, 0));
}

#[test]
fn a_reply_in_several_chunks_is_one_reply() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    std::thread::spawn(move || {
        for turn in 0.. {
            let Some(Ok(mut request)) = service.next() else { break };
            let _ = request.chunk("one ").and_then(|()| request.chunk("two "));
            // The last chunk alone could pass for a whole reply.
            let _ = if turn % 2 == 0 { request.reply("three") } else { request.finish() };
        }
    });
    let (requester, mut reply) = (client.requester("svc").unwrap(), Vec::new());
    for turn in 0..200 {
        requester.call_into("x", &mut reply).unwrap();
        assert_eq!(reply, if turn % 2 == 0 { &b"one two three"[..] } else { b"one two " }, "{turn}");
    }
}

#[test]
fn a_late_reply_is_not_taken_for_the_next() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    std::thread::scope(|scope| {
        let (given_up, is_over) = sync_channel(1);
        scope.spawn(move || {
            for _ in 0..5 {
                let late = service.next_timeout(DEADLINE).unwrap().expect("a request");
                is_over.recv().unwrap();
                assert!(late.reply("late").unwrap_err().is_deadline_exceeded());
                let next = service.next_timeout(DEADLINE).unwrap().expect("a request");
                next.reply("in time").unwrap();
            }
        });
        let requester = client.requester("svc").unwrap();
        for _ in 0..5 {
            let error = requester.call_with("first", within(100)).unwrap_err();
            assert!(error.is_deadline_exceeded(), "{error}");
            given_up.send(()).unwrap();
            assert_eq!(requester.call("second").unwrap(), b"in time");
        }
    });
}

/// The client itself ends the first call. The broker, when it goes on, replies to it, and that reply lies in the ring
/// before the second.
#[test]
fn the_reply_of_a_broker_that_was_stopped_is_not_taken_for_the_next() {
    let mut broker = Broker::start();
    let client = broker.client();
    let (requester, mut reply) = (client.requester("echo").unwrap(), Vec::new());
    assert_eq!(requester.call("warm").unwrap(), b"warm");
    for round in 0..3 {
        let pid = broker.process().pid();
        broker.process().signal("STOP");
        wait_for_stop(pid);
        let error = requester.call_into_with("first", &mut reply, within(50)).unwrap_err();
        assert!(error.is_deadline_exceeded() && reply.is_empty(), "{error}");
        broker.process().signal("CONT");
        for number in 0..100 {
            let body = format!("second {round} {number}");
            requester.call_into(&body, &mut reply).unwrap();
            assert_eq!(reply, body.as_bytes());
        }
    }
}

#[test]
fn bodies_and_replies_may_be_large() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    serve(&other, "twice", |request| Ok([request.payload(), request.payload()].concat()));
    let (twice, mut reply) = (client.requester("twice").unwrap(), Vec::new());
    for size in [0, 1, 63, 64, 65, 512, 513, 1023, 1024, 1025, 65_535, 65_537, 1 << 20, 5 << 20, 3] {
        let body = pattern(size, size as u64);
        twice.call_into(&body, &mut reply).unwrap();
        assert!(reply == [&body[..], &body[..]].concat(), "{size} bytes");
    }
    let max = client.limits().max_message_size as usize;
    assert!(twice.call(vec![0; max + 1]).is_err());
    assert!(client.requester("echo").unwrap().call(pattern(max, 1)).unwrap() == pattern(max, 1));
}

#[test]
fn threads_of_one_client_call_while_another_receives() {
    let broker = Broker::start();
    let other = broker.client();
    serve(&other, "svc", |request| Ok(request.payload().to_vec()));
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let (requester, echo) = (client.requester("svc").unwrap(), client.requester("echo").unwrap());
        let callers: [&(dyn Fn() + Sync); 3] =
            [&|| calls(&requester, 0, 1_000), &|| calls(&requester, 1, 1_000), &|| calls(&echo, 2, 1_000)];
        beside_messages(&client, &other, &callers);
        let status = client.status().unwrap();
        let connection = status.connections.iter().find(|connection| connection.id == client.id()).unwrap();
        assert_eq!(connection.requests_outstanding, 0);
    }
    assert_eq!(counter(&other.status().unwrap(), "violations"), 0);
}

#[test]
fn a_requester_follows_its_client_to_the_next_broker() {
    let mut broker = Broker::start();
    let connect = || broker.builder().connect().unwrap();
    let (client, other) = (connect(), connect());
    serve(&other, "svc", |request| Ok(format!("re {}", text(request))));
    let mut held = other.serve("held").unwrap();
    // It has the first number; at the next broker another service has.
    assert!(client.request("first", "x").unwrap_err().is_no_responders());
    let (svc, holding) = (client.requester("svc").unwrap(), client.requester("held").unwrap());
    let again = RequestOptions { idempotent: true, ..within(30_000) };
    for round in 0..3 {
        assert_eq!(svc.call_with("before", again).unwrap(), b"re before");
        std::thread::scope(|scope| {
            let calling = scope.spawn(|| holding.call_with("x", within(30_000)).unwrap_err());
            let request = held.next_timeout(DEADLINE).unwrap().expect("a request");
            broker.kill();
            broker.start_again();
            let error = calling.join().unwrap();
            assert!(error.is_disconnected(), "{error}");
            drop(request);
        });
        wait_until("its responders to be back", || svc.call("x").is_ok());
        for number in 0..50 {
            assert_eq!(svc.call(format!("{round} {number}")).unwrap(), format!("re {round} {number}").as_bytes());
        }
    }
    // A clone of it, and one that is made at this broker.
    assert_eq!(svc.clone().call("clone").unwrap(), b"re clone");
    drop(svc);
    assert_eq!(client.requester("svc").unwrap().call("anew").unwrap(), b"re anew");
    client.close();
    assert!(holding.call("x").unwrap_err().is_disconnected());
}

/// No other thread looks at the socket.
#[test]
fn a_thread_that_only_calls_notices_a_lost_socket() {
    let (mut broker, mut resumed) = (Broker::start(), 0.0);
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let requester = client.requester("echo").unwrap();
        calls(&requester, 0, 1_000);
        assert_eq!(cut(std::process::id(), &broker.socket()), 1);
        resumed += 1.0;
        wait_until("the session to be resumed", || {
            calls(&requester, 1, 300);
            broker.get("/metrics").sample("lapce_ipc_sessions_resumed_total") >= resumed
        });
        calls(&requester, 2, 1_000);
    }
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn a_call_within_a_view_is_an_error_instead_of_a_deadlock() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let requester = client.requester("echo").unwrap();
    let mut subscription = client.subscribe("t").unwrap();
    let mut is_seen = false;
    while !is_seen {
        other.publish("t", "x").unwrap();
        other.flush().unwrap();
        let outcome = subscription.read_next(|_| requester.call("y")).unwrap();
        is_seen = outcome.is_err_and(|error| error.is_view_outstanding());
    }
    assert_eq!(requester.call("z").unwrap(), b"z");
}
