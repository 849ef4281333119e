//! Requests: each has exactly one outcome.

mod support;

use lapce_ipc::client::{Client, Error, RequestOptions};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use support::calls::{serve, text, within};
use support::probe::{counter, pattern, served};
use support::role::{Child, role, tell};
use support::{Broker, DEADLINE, wait_until};

#[test]
fn a_handlers_reply_error_panic_and_silence_are_all_answers() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    serve(&other, "svc", |request| match text(request).as_str() {
        "error" => Err("no \"luck\"".to_owned()),
        "panic" => panic!("oh dear"),
        other => Ok(other.to_uppercase()),
    });
    for _ in 0..3 {
        assert_eq!(client.request("svc", "hi").unwrap(), b"HI");
        assert_eq!(client.request("svc", "").unwrap(), b"");
        let error = client.request("svc", "error").unwrap_err();
        assert!(error.is_error_reply() && error.to_string().contains("luck"), "{error}");
        let error = client.request("svc", "panic").unwrap_err();
        assert!(error.is_error_reply() && error.to_string().contains("panicked: oh dear"), "{error}");
    }
    let mut silent = other.serve("silent").unwrap();
    std::thread::spawn(move || {
        while let Some(Ok(request)) = silent.next() {
            drop(request)
        }
    });
    let error = client.request("silent", "hi").unwrap_err();
    assert!(error.is_error_reply() && error.to_string().contains("without a reply"), "{error}");
}

#[test]
fn a_service_that_nobody_offers_fails_at_once() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    assert!(client.request("svc", "x").unwrap_err().is_no_responders());
    // Also if the body is still being sent when the outcome comes.
    assert!(client.request("svc", pattern(1 << 20, 1)).unwrap_err().is_no_responders());
    let service = other.serve("svc").unwrap();
    drop(service);
    other.status().unwrap(); // behind it on the same socket
    assert!(client.request("svc", "x").unwrap_err().is_no_responders());
    assert_eq!(client.request("echo", "x").unwrap(), b"x");
}

#[test]
fn requests_that_wait_in_a_dropped_service_are_answered() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let service = other.serve("svc").unwrap();
    let stream = client.request_stream("svc", "x").unwrap();
    // Behind the request in the other's ring.
    wait_until("the request", || served(&other.status().unwrap(), "svc").outstanding == 1);
    other.request("echo", "").unwrap();
    drop(service);
    let error = stream.last().unwrap().unwrap_err();
    assert!(error.is_error_reply(), "{error}");
}

#[test]
fn the_broker_keeps_the_deadline_and_a_late_reply_reaches_nobody() {
    let broker = Broker::start_with(&[("limits.default_request_timeout_ms", "150")]);
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    for (options, least) in [(RequestOptions::default(), 150), (within(100), 100)] {
        let started = Instant::now();
        let error = client.request_with("svc", "one", options).unwrap_err();
        assert!(error.is_deadline_exceeded(), "{error}");
        assert!(started.elapsed() >= Duration::from_millis(least));
    }
    std::thread::scope(|scope| {
        let (late, replied) = sync_channel::<Error>(1);
        let (asked, is_over) = sync_channel(1);
        scope.spawn(move || {
            let request = loop {
                let request = service.next_timeout(DEADLINE).unwrap().expect("a request");
                // Those before were over before they were looked at.
                if text(&request) == "two" {
                    break request;
                }
            };
            assert!(request.deadline().is_some());
            is_over.recv().unwrap();
            late.send(request.reply("two is late").unwrap_err()).unwrap();
            let request = service.next_timeout(DEADLINE).unwrap().expect("a request");
            let reply = format!("re {}", text(&request));
            request.reply(reply).unwrap();
        });
        let error = client.request_with("svc", "two", within(100)).unwrap_err();
        assert!(error.is_deadline_exceeded(), "{error}");
        asked.send(()).unwrap();
        let error = replied.recv_timeout(DEADLINE).unwrap();
        assert!(error.is_deadline_exceeded(), "{error}");
        assert_eq!(client.request_with("svc", "three", within(20_000)).unwrap(), b"re three");
    });
    let status = client.status().unwrap();
    assert_eq!(counter(&status, "failed_deadline_exceeded"), 3);
    assert_eq!((counter(&status, "requests"), counter(&status, "replies")), (4, 1));
}

/// Replies that race with the deadline: each ends as one of the two, at both ends and in the broker's books.
#[test]
fn a_reply_at_the_deadline_counts_once() {
    const REQUESTS: u64 = 600;
    // So many deadlines would open the breaker.
    let broker = Broker::start_with(&[("circuit_breaker.failure_threshold", "1000000")]);
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let responding = std::thread::spawn(move || {
        let mut sent = 0;
        while let Some(Ok(request)) = service.next() {
            let at = request.deadline().unwrap();
            while Instant::now() < at {
                std::hint::spin_loop();
            }
            sent += u64::from(request.reply("at last").is_ok());
        }
        sent
    });
    let mut replies = 0;
    for _ in 0..REQUESTS {
        match client.request_with("svc", "", within(1)) {
            Ok(reply) => {
                assert_eq!(reply, b"at last");
                replies += 1;
            }
            Err(error) => assert!(error.is_deadline_exceeded(), "{error}"),
        }
    }
    // The responder is done with the last of them when it has taken a further one.
    let last = client.request_with("svc", "", within(100)).is_ok();
    replies += u64::from(last);
    wait_until("the last reply", || served(&client.status().unwrap(), "svc").outstanding == 0);
    let status = client.status().unwrap();
    assert_eq!(counter(&status, "replies"), replies);
    assert_eq!(counter(&status, "failed_deadline_exceeded"), REQUESTS + 1 - replies);
    drop(broker);
    // What the responder sent was either a reply or late.
    let sent = responding.join().unwrap();
    let late = counter(&status, "late");
    assert!(sent == replies + late || sent == replies + late + 1, "{sent} sent, {replies} replies, {late} late");
}

#[test]
fn a_responder_that_dies_is_told_at_once() {
    let broker = Broker::start();
    let client = broker.client();
    let mut child = Child::ready(&broker, "take-and-wait");
    let started = std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.request("svc", "x").unwrap_err());
        child.hears("took");
        let started = Instant::now();
        child.kill();
        let error = asking.join().unwrap();
        assert!(error.is_responder_lost(), "{error}");
        started
    });
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(client.request("svc", "x").unwrap_err().is_no_responders());
}

/// What the dead one has published may wait for a slow subscriber; its requesters need not.
#[test]
fn a_dead_responders_requesters_do_not_wait_for_its_publishes() {
    let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", "60000")]);
    let (client, slow) = (broker.client(), broker.client());
    let unread = slow.subscribe("t").unwrap();
    let mut child = Child::ready(&broker, "take-publish-and-wait");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| client.request_with("svc", "x", within(15_000)).unwrap_err());
        child.hears("took");
        let watch = broker.client();
        wait_until("its publish to wait", || counter(&watch.status().unwrap(), "parked") > 0);
        child.kill();
        let error = asking.join().unwrap();
        assert!(error.is_responder_lost(), "{error}");
    });
    drop(unread);
}

#[test]
fn a_requester_that_dies_does_not_end_its_responder() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let (took, taken) = sync_channel(1);
    let (go, gone) = sync_channel::<()>(1);
    serve(&other, "svc", move |request| {
        if text(request) == "first" {
            took.send(()).unwrap();
            gone.recv().unwrap();
        }
        Ok("answered")
    });
    let mut child = Child::ready(&broker, "ask-first");
    taken.recv_timeout(DEADLINE).unwrap();
    child.kill();
    wait_until("the requester to be gone", || client.status().unwrap().connections.len() == 2);
    go.send(()).unwrap();
    assert_eq!(client.request("svc", "second").unwrap(), b"answered");
}

#[test]
fn a_responder_with_as_much_as_it_takes_is_overloaded() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve_up_to("svc", 1).unwrap();
    let mut first = client.request_stream("svc", "first").unwrap();
    let request = service.next_timeout(DEADLINE).unwrap().expect("a request");
    for _ in 0..3 {
        assert!(client.request("svc", "second").unwrap_err().is_overloaded());
    }
    request.reply("done").unwrap();
    assert_eq!(first.next().unwrap().unwrap(), b"done");
    std::thread::spawn(move || service.run(|_| Ok::<_, String>("again")));
    assert_eq!(client.request("svc", "third").unwrap(), b"again");
    assert_eq!(counter(&client.status().unwrap(), "failed_overloaded"), 3);
}

#[test]
fn a_client_has_a_bounded_number_of_requests() {
    let broker = Broker::start_with(&[("limits.max_requests_per_connection", "8")]);
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let streams: Vec<_> = (0..8).map(|_| client.request_stream("svc", "x").unwrap()).collect();
    assert!(client.request("svc", "x").unwrap_err().is_overloaded());
    assert_eq!(other.request("echo", "x").unwrap(), b"x");
    for _ in &streams {
        service.next_timeout(DEADLINE).unwrap().expect("a request").reply("y").unwrap();
    }
    assert!(streams.into_iter().all(|mut stream| stream.next().unwrap().unwrap() == b"y"));
    assert_eq!(client.request("echo", "x").unwrap(), b"x");
}

#[test]
fn a_message_too_large_is_an_error_at_its_sender() {
    let broker = Broker::start_with(&[("ipc.max_message_size", "100000")]);
    let (client, other) = (broker.client(), broker.client());
    assert_eq!(client.request("echo", pattern(100_000, 1)).unwrap(), pattern(100_000, 1));
    assert!(client.request("echo", vec![0; 100_001]).unwrap_err().is_too_large());
    assert_eq!(counter(&client.status().unwrap(), "requests"), 1, "nothing was sent");
    serve(&other, "svc", |request| Ok(vec![7; text(request).parse().unwrap()]));
    assert_eq!(client.request("svc", "100000").unwrap(), vec![7; 100_000]);
    // The requester is told now, not at its deadline.
    let error = client.request_with("svc", "100001", within(15_000)).unwrap_err();
    assert!(error.is_error_reply() && error.to_string().contains("100001 bytes"), "{error}");
    assert_eq!(client.request("svc", "1").unwrap(), [7]);
}

#[test]
fn a_handler_may_ask_services_of_its_own_client() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    serve(&other, "inner", |request| Ok(format!("inner {}", text(request))));
    let within_handler = other.clone();
    serve(&other, "outer", move |request| {
        let reply = within_handler.request("inner", request.payload()).map_err(|error| error.to_string())?;
        within_handler.publish("t", &reply).map_err(|error| error.to_string())?;
        Ok(format!("outer {}", String::from_utf8_lossy(&reply)))
    });
    let mut published = client.subscribe("t").unwrap();
    for number in 0..500 {
        assert_eq!(client.request("outer", number.to_string()).unwrap(), format!("outer inner {number}").as_bytes());
        let message = published.next_timeout(DEADLINE).unwrap().expect("a message");
        assert_eq!(message.payload(), format!("inner {number}").as_bytes());
    }
}

/// Its own thread is the only one that could answer: an outcome, not a hang.
#[test]
fn a_handler_that_asks_itself_meets_its_deadline() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let within_handler = other.clone();
    serve(&other, "svc", move |request| match text(request).as_str() {
        "itself" => within_handler.request_with("svc", "x", within(100)).map_err(|error| {
            assert!(error.is_deadline_exceeded(), "{error}");
            "as expected".to_owned()
        }),
        other => Ok(other.into()),
    });
    let error = client.request("svc", "itself").unwrap_err();
    assert_eq!(error.to_string(), "as expected");
    assert_eq!(client.request("svc", "later").unwrap(), b"later");
}

#[test]
fn two_responders_share_the_requests_and_none_is_lost() {
    let broker = Broker::start();
    let client = broker.client();
    let mut children = [Child::ready(&broker, "upper"), Child::ready(&broker, "upper")];
    let counts = children.each_ref().map(|_| AtomicU64::new(0));
    let pids = children.each_ref().map(Child::pid);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (client, counts) = (&client, &counts);
            scope.spawn(move || {
                for number in 0..250 {
                    let reply = client.request("upper", format!("request {thread} {number}")).unwrap();
                    let reply = String::from_utf8(reply).unwrap();
                    let (pid, text) = reply.split_once(':').unwrap();
                    assert_eq!(text, format!("REQUEST {thread} {number}"));
                    let at = pids.iter().position(|known| known.to_string() == pid).unwrap();
                    counts[at].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let counts = counts.map(AtomicU64::into_inner);
    assert_eq!(counts[0] + counts[1], 1_000);
    assert!(counts[0].min(counts[1]) >= 250, "{counts:?}");
    let status = client.status().unwrap();
    let service = served(&status, "upper");
    assert_eq!((service.responders, service.requests, service.failures, service.outstanding), (2, 1_000, 0, 0));
    for child in &mut children {
        child.kill();
    }
}

/// Least outstanding, not round robin: who holds a request gets no second one while another is free.
#[test]
fn the_least_busy_responder_is_asked() {
    let broker = Broker::start();
    let client = broker.client();
    let mut held = broker.client().serve("svc").unwrap();
    let mut first = client.request_stream("svc", "hold").unwrap();
    let holding = held.next_timeout(DEADLINE).unwrap().expect("a request");
    serve(&broker.client(), "svc", |_| Ok("free"));
    for _ in 0..100 {
        assert_eq!(client.request("svc", "x").unwrap(), b"free");
    }
    holding.reply("held").unwrap();
    assert_eq!(first.next().unwrap().unwrap(), b"held");
}

#[test]
fn threads_of_one_client_ask_side_by_side() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    serve(&other, "svc", |request| Ok(request.payload().to_vec()));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let client = &client;
            scope.spawn(move || {
                for number in 0..1_000_u64 {
                    let body = pattern((number as usize * 61) % 3_000, thread << 32 | number);
                    let service = if (number + thread) % 2 == 0 { "svc" } else { "echo" };
                    assert!(client.request(service, &body).unwrap() == body, "{thread} {number}");
                }
            });
        }
    });
}

#[test]
fn large_requests_and_replies_pass_both_ways() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    serve(&other, "twice", |request| Ok([request.payload(), request.payload()].concat()));
    let max = client.limits().max_message_size as usize;
    for size in [0, 1, 63, 64, 65, 960, 1023, 1024, 1025, 4096, 65_535, 65_536, 65_537, 1 << 20, 5 << 20] {
        let body = pattern(size, size as u64);
        assert!(client.request("echo", &body).unwrap() == body, "{size} bytes by the echo");
        let reply = client.request("twice", &body).unwrap();
        assert!(reply == [&body[..], &body[..]].concat(), "{size} bytes");
    }
    assert!(client.request("echo", pattern(max, 1)).unwrap() == pattern(max, 1));
    // Both directions at once, from two threads.
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let client = &client;
            scope.spawn(move || {
                let body = pattern(5 << 20, seed);
                assert!(client.request("twice", &body).unwrap().chunks(5 << 20).all(|half| half == body));
            });
        }
    });
}

#[test]
fn the_status_agrees_with_a_ledger() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    serve(&other, "svc", |request| match text(request).as_str() {
        "error" => Err("no".to_owned()),
        _ => Ok("yes"),
    });
    let _held = broker.client().serve("held").unwrap();
    for _ in 0..7 {
        client.request("svc", "x").unwrap();
    }
    for _ in 0..5 {
        client.request("svc", "error").unwrap_err();
    }
    for _ in 0..3 {
        client.request("nobody", "x").unwrap_err();
    }
    for _ in 0..2 {
        client.request_with("held", "x", within(20)).unwrap_err();
    }
    client.request("echo", "x").unwrap();
    for _ in 0..4 {
        drop(client.request_stream("held", "x").unwrap());
    }
    let outstanding = client.request_stream("held", "x").unwrap();
    wait_until("the cancels", || counter(&client.status().unwrap(), "cancels") == 4);
    let status = client.status().unwrap();
    let expected = [
        ("requests", 23),
        ("replies", 13),
        ("failed_no_responders", 3),
        ("failed_deadline_exceeded", 2),
        ("failed_cancelled", 4),
        ("failed_responder_lost", 0),
        ("late", 0),
        ("violations", 0),
    ];
    for (name, value) in expected {
        assert_eq!(counter(&status, name), value, "{name}");
    }

    assert_eq!((served(&status, "svc").requests, served(&status, "svc").failures), (12, 5));
    assert_eq!((served(&status, "held").requests, served(&status, "held").outstanding), (7, 1));
    let connection = status.connections.iter().find(|connection| connection.id == client.id()).unwrap();
    assert_eq!(connection.requests_outstanding, 1);
    drop(outstanding);
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let client = Client::connect().unwrap();
    match role.as_str() {
        "take-and-wait" | "take-publish-and-wait" => {
            let mut service = client.serve("svc").unwrap();
            tell("ready");
            let request = service.next().unwrap().unwrap();
            tell("took");
            if role == "take-publish-and-wait" {
                for _ in 0..10_000 {
                    client.publish("t", [0; 1024]).unwrap();
                }
            }
            support::role::heard();
            drop(request);
        }
        "ask-first" => {
            tell("ready");
            let _ = client.request("svc", "first");
        }
        "upper" => {
            let mut service = client.serve("upper").unwrap();
            tell("ready");
            let pid = std::process::id();
            // Each answer takes a millisecond in which the CPU is free, as an engine's does: otherwise the shares of
            // two responders tell which of them was given the CPU.
            let (_never, comes) = sync_channel::<()>(0);
            let ended = service.run(|request| {
                let _ = comes.recv_timeout(Duration::from_millis(1));
                Ok::<_, String>(format!("{pid}:{}", text(request).to_uppercase()))
            });
            tell(&format!("ended {ended:?}"));
        }
        role => tell(&format!("no role {role}")),
    }
}
