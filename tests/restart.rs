//! A broker that is killed, or stopped, and started again: what was published arrives, once; requests end once; clients
//! subscribe and serve again.

mod support;

use lapce_ipc::client::{Client, ConnectionState, RequestOptions};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::ledger::{END, Ends, PATIENT, numbered, publish, whole};
use support::{Broker, DEADLINE, wait_until};

fn connect(broker: &Broker) -> Client {
    broker.builder().connect().expect("the broker takes us")
}

fn long() -> RequestOptions {
    RequestOptions { timeout: Some(Duration::from_secs(300)), ..RequestOptions::default() }
}

#[test]
fn killing_the_broker_loses_no_publish_and_doubles_none() {
    no_publish_is_lost_or_doubled("KILL");
}

/// The publishers go on while the broker drains, so that it is never quiescent.
#[test]
fn stopping_the_broker_loses_no_publish_and_doubles_none() {
    no_publish_is_lost_or_doubled("TERM");
}

fn no_publish_is_lost_or_doubled(signal: &str) {
    let mut broker = Broker::start_with(&[&PATIENT[..], &[("ipc.drain_timeout_ms", "100")]].concat());
    let (small, large, there) = (connect(&broker), connect(&broker), connect(&broker));
    let mut smalls = there.subscribe("ledger.small").unwrap();
    let mut larges = there.subscribe("ledger.large").unwrap();
    let (done, progress) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    std::thread::scope(|scope| {
        let sent_small = scope.spawn(|| publish(&small, "ledger.small", &[8, 64, 1024], &done));
        let sent_large = scope.spawn(|| publish(&large, "ledger.large", &[8, 5_000, 300_000, 1025], &done));
        let got_small = scope.spawn(|| whole(&mut smalls, &progress[0]));
        let got_large = scope.spawn(|| whole(&mut larges, &progress[1]));
        let ends = Ends(&done);
        for _ in 0..8 {
            let before = progress.each_ref().map(|progress| progress.load(Ordering::SeqCst));
            wait_until("both ledgers to go on", || {
                let now = progress.each_ref().map(|progress| progress.load(Ordering::SeqCst));
                now[0] > before[0] + 1000 && now[1] > before[1] + 20
            });
            broker.end(signal);
            broker.start_again();
        }
        drop(ends);
        assert_eq!(got_small.join().unwrap(), sent_small.join().unwrap());
        assert_eq!(got_large.join().unwrap(), sent_large.join().unwrap());
    });
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn what_is_published_while_there_is_no_broker_arrives_at_the_next() {
    let mut broker = Broker::start();
    let (here, there) = (connect(&broker), connect(&broker));
    let mut messages = there.subscribe("while.away").unwrap();
    let publisher = here.publisher("while.away").unwrap();
    publisher.publish(numbered(0, 8)).unwrap();
    here.flush().unwrap();
    let (here_id, there_id) = (here.id(), there.id());
    broker.end("KILL");
    (1..5).for_each(|number| publisher.publish(numbered(number, 8)).unwrap());
    broker.start_again();
    publisher.publish(END.to_le_bytes()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| here.flush().unwrap());
        assert_eq!(whole(&mut messages, &AtomicU64::new(0)), 5);
    });
    assert_eq!((here.id(), there.id()), (here_id, there_id), "known by the same number");
    assert_eq!(messages.dropped(), 0);
}

#[test]
fn each_request_under_way_ends_once_and_one_that_may_is_asked_again() {
    let mut broker = Broker::start();
    let (asks, serves) = (connect(&broker), connect(&broker));
    let mut service = serves.serve("work").unwrap();
    std::thread::scope(|scope| {
        let asks = &asks;
        let plain: Vec<_> = (0..20).map(|_| scope.spawn(|| asks.request_with("work", "plain", long()))).collect();
        let stream = scope.spawn(|| {
            let mut stream = asks.request_stream_with("work", "stream", long()).unwrap();
            assert_eq!(stream.next().unwrap().unwrap(), b"chunk");
            let rest: Vec<_> = stream.collect();
            assert!(rest.len() == 1 && rest[0].as_ref().unwrap_err().is_disconnected(), "{rest:?}");
        });
        let again = scope.spawn(|| asks.request_with("work", "again", RequestOptions { idempotent: true, ..long() }));
        let mut taken = Vec::new();
        while taken.len() < 22 {
            let mut request = service.next_timeout(DEADLINE).unwrap().expect("a request in time");
            if request.wants_stream() {
                request.chunk("chunk").unwrap();
            }
            taken.push(request);
        }
        wait_until("the chunk to be on its way", || broker.counter("chunks") == 1);
        broker.end("KILL");
        broker.start_again();
        let request = service.next_timeout(DEADLINE).unwrap().expect("the one that may be asked again");
        assert_eq!(request.payload(), b"again");
        // Nobody waits for the others, at this broker or another.
        for request in taken {
            assert!(request.is_cancelled());
            request.reply("late").unwrap_err();
        }
        request.reply("done").unwrap();
        for outcome in plain {
            let error = outcome.join().unwrap().unwrap_err();
            assert!(error.is_disconnected(), "{error}");
        }
        stream.join().unwrap();
        assert_eq!(again.join().unwrap().unwrap(), b"done");
    });
    // Their places are free, and the numbers of services are what they were.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..50 {
                let request = service.next_timeout(DEADLINE).unwrap().expect("a request in time");
                let reply = request.payload().to_vec();
                request.reply(reply).unwrap();
            }
        });
        for number in 0..50u32 {
            assert_eq!(asks.request("work", number.to_le_bytes()).unwrap(), number.to_le_bytes());
        }
    });
    assert_eq!(broker.counter("violations"), 0);
    assert_eq!(broker.counter("late"), 0);
}

#[test]
fn a_request_does_not_wait_for_a_broker_that_does_not_come() {
    let mut broker = Broker::start();
    let (asks, serves) = (connect(&broker), connect(&broker));
    let mut service = serves.serve("work").unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| asks.request_with("work", "x", long()));
        let _request = service.next_timeout(DEADLINE).unwrap().expect("a request in time");
        broker.end("KILL");
        let error = asked.join().unwrap().unwrap_err();
        assert!(error.is_disconnected(), "{error}");
        assert!(!asks.state().is_closed(), "it goes on looking for one");
    });
    // Into a ring that nobody reads, until the next look at the socket.
    assert!(asks.request_with("work", "y", long()).unwrap_err().is_disconnected());
    broker.start_again();
    assert_eq!(asks.request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn topics_services_subscriptions_and_offers_are_what_they_were() {
    let mut broker = Broker::start();
    let (here, there) = (connect(&broker), connect(&broker));
    let topics: Vec<_> = (0..100).map(|n| here.publisher(&format!("many.t{n}")).unwrap()).collect();
    let mut subscriptions: Vec<_> = (0..100).map(|n| there.subscribe(&format!("many.t{n}")).unwrap()).collect();
    let services: Vec<_> = (0..20).map(|n| there.serve(&format!("s{n}")).unwrap()).collect();
    drop(subscriptions.split_off(60));
    broker.end("KILL");
    // Gone before the next broker knows of it.
    drop(subscriptions.split_off(50));
    drop(services);
    broker.start_again();
    std::thread::scope(|scope| {
        // Whoever waits brings its connection back.
        scope.spawn(|| {
            for (n, topic) in topics.iter().enumerate() {
                topic.publish(numbered(n as u64, 8)).unwrap();
            }
            here.flush().unwrap();
        });
        for (n, subscription) in subscriptions.iter_mut().enumerate() {
            let message = subscription.next_timeout(DEADLINE).unwrap().expect("a message in time");
            assert_eq!((message.payload(), message.topic()), (&numbered(n as u64, 8)[..], &*format!("many.t{n}")));
        }
    });
    let status = there.status().unwrap();
    assert_eq!(status.subscriptions, 50);
    assert!(status.services.iter().all(|service| service.responders == 0));
}

#[test]
fn a_broker_that_ends_in_order_is_followed_by_the_next() {
    let mut broker = Broker::start();
    let client = connect(&broker);
    let mut messages = client.subscribe("t").unwrap();
    let events = client.events();
    broker.end("TERM");
    broker.start_again();
    client.publish("t", "again").unwrap();
    assert_eq!(messages.next_timeout(DEADLINE).unwrap().expect("a message in time").payload(), b"again");
    assert!(events.take(2).any(|state| matches!(state, ConnectionState::Reconnecting { .. })));
    assert!(client.state().is_connected());
}

#[test]
fn a_session_whose_window_is_over_begins_anew() {
    let broker = Broker::start_with(&[("restart.resume_window_ms", "50")]);
    let (client, watch) = (connect(&broker), broker.client());
    let mut messages = client.subscribe("t").unwrap();
    // Nobody waits, so nobody notices, until it is too late.
    assert!(support::cut::cut_own(&broker.socket()) >= 1);
    drop(watch);
    let watch = broker.client();
    wait_until("the session to end", || watch.status().unwrap().connections.len() == 1);
    client.publish("t", "lost to nobody").unwrap();
    assert_eq!(messages.next_timeout(DEADLINE).unwrap().expect("a message in time").payload(), b"lost to nobody");
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn the_command_line_outlives_its_broker() {
    let mut broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "news", "--count", "2"]);
    sub.wait_for("subscribed");
    let mut reply = broker.spawn(&["reply", "mirror", "--echo"]);
    reply.wait_for("serving");
    assert!(broker.run(&["pub", "news", "one"]).status.success());
    wait_until("the first message to be printed", || sub.stdout() == b"one\n");
    broker.end("KILL");
    for process in [&mut sub, &mut reply] {
        process.wait_for("connection lost; reconnecting");
    }
    assert_eq!(support::code(&broker.run(&["request", "mirror", "hi"])), 69, "who asks once does not wait");
    broker.start_again();
    for process in [&mut sub, &mut reply] {
        process.wait_for("reconnected");
    }
    assert_eq!(broker.run(&["request", "mirror", "hi"]).stdout, b"hi\n");
    assert!(broker.run(&["pub", "news", "two"]).status.success());
    assert_eq!((sub.code(), sub.stdout()), (0, b"one\ntwo\n".to_vec()));
    broker.end("TERM");
    assert!(!reply.has_ended());
    reply.signal("INT");
    assert_eq!(reply.code(), 130);
}
