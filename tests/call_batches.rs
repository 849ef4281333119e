//! `call_batch`: the same replies as by single calls, and one outcome for each payload, whatever happens meanwhile.

mod support;

use lapce_ipc::client::{Client, Error, RequestOptions, Requester, WaitStrategy};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use support::calls::{beside_messages, serve, text, within};
use support::probe::{counter, pattern, served};
use support::{Broker, DEADLINE, wait_until};

const STRATEGIES: [WaitStrategy; 3] = [WaitStrategy::Adaptive, WaitStrategy::Block, WaitStrategy::Busy];

type Outcome = Result<Vec<u8>, Error>;

/// The outcome of each payload: exactly one.
fn outcomes(requester: &Requester, payloads: &[Vec<u8>], options: RequestOptions) -> Vec<Outcome> {
    let mut found: Vec<Option<Outcome>> = payloads.iter().map(|_| None).collect();
    requester
        .call_batch_with(payloads, options, |index, outcome| {
            let before = found[index].replace(outcome.map(<[u8]>::to_vec));
            assert!(before.is_none(), "{index} has a second outcome");
        })
        .unwrap();
    found.into_iter().enumerate().map(|(index, one)| one.unwrap_or_else(|| panic!("{index} has none"))).collect()
}

/// All replies are those of an echo.
fn check_echo(requester: &Requester, payloads: &[Vec<u8>]) {
    let replies = outcomes(requester, payloads, RequestOptions::default());
    for (index, (reply, payload)) in replies.iter().zip(payloads).enumerate() {
        assert!(reply.as_ref().unwrap() == payload, "{index}, {} bytes", payload.len());
    }
}

fn payloads(count: usize, size: impl Fn(usize) -> usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| pattern(size(number), number as u64)).collect()
}

fn outstanding(client: &Client) -> u64 {
    let status = client.status().unwrap();
    status.connections.iter().find(|connection| connection.id == client.id()).unwrap().requests_outstanding
}

#[test]
fn each_payload_has_its_own_reply() {
    let broker = Broker::start();
    let other = broker.client();
    serve(&other, "twice", |request| Ok([request.payload(), request.payload()].concat()));
    let slot = other.limits().slot_size as usize;
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let (echo, twice) = (client.requester("echo").unwrap(), client.requester("twice").unwrap());
        check_echo(&echo, &[]);
        check_echo(&echo, &payloads(1, |_| 0));
        check_echo(&echo, &payloads(5_000, |number| number * 61 % (slot + 1)));
        // Some of several records, and some only of their replies.
        let sizes = [0, 1, 63, 64, 65, slot / 2, slot / 2 + 1, slot - 1, slot, slot + 1, 2 * slot, 65_537, 3];
        check_echo(&echo, &payloads(500, |number| sizes[number % sizes.len()]));
        let sent = payloads(500, |number| sizes[number * 7 % sizes.len()]);
        for (reply, payload) in outcomes(&twice, &sent, RequestOptions::default()).iter().zip(&sent) {
            assert!(*reply.as_ref().unwrap() == [&payload[..], payload].concat(), "{} bytes", payload.len());
        }
        check_echo(&echo, &payloads(3, |number| number << 21));
        assert_eq!(outstanding(&client), 0);
    }
    assert_eq!(counter(&other.status().unwrap(), "violations"), 0);
}

#[test]
fn an_error_is_the_outcome_of_its_payload_only() {
    let broker = Broker::start();
    let other = broker.client();
    serve(&other, "svc", |request| match text(request).as_str() {
        "error" => Err("no luck".to_owned()),
        other => Ok(other.to_uppercase()),
    });
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let sent: Vec<_> = (0..999).map(|n| if n % 3 == 1 { &b"error"[..] } else { b"fine" }.to_vec()).collect();
        let svc = client.requester("svc").unwrap();
        for (index, outcome) in outcomes(&svc, &sent, RequestOptions::default()).into_iter().enumerate() {
            match outcome {
                Err(error) => assert!(index % 3 == 1 && error.is_error_reply(), "{index}: {error}"),
                Ok(reply) => assert!(index % 3 != 1 && reply == b"FINE", "{index}"),
            }
        }
        let missing = outcomes(&client.requester("missing").unwrap(), &sent, RequestOptions::default());
        assert!(missing.iter().all(|outcome| outcome.as_ref().is_err_and(Error::is_no_responders)));
        let large = [vec![], vec![0; client.limits().max_message_size as usize + 1]];
        let error = svc.call_batch(&large, |_, _| unreachable!("nothing is sent")).unwrap_err();
        assert!(error.to_string().contains("larger than max_message_size"), "{error}");
        client.close();
        let closed = outcomes(&svc, &sent, RequestOptions::default());
        assert!(closed.iter().all(|outcome| outcome.as_ref().is_err_and(Error::is_disconnected)));
    }
    let service = other.status().unwrap();
    assert_eq!((served(&service, "svc").requests, served(&service, "svc").outstanding), (3 * 999, 0));
}

#[test]
fn replies_in_several_chunks_are_each_one_reply() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    std::thread::spawn(move || {
        while let Some(Ok(mut request)) = service.next() {
            let payload = request.take_payload();
            let _ = match payload.len() % 3 {
                0 => request.reply(&payload),
                1 => request.chunk(&payload[..1]).and_then(|()| request.reply(&payload[1..])),
                _ => request.chunk(&payload).and_then(|()| request.finish()),
            };
        }
    });
    check_echo(&client.requester("svc").unwrap(), &payloads(2_000, |number| number % 500));
}

#[test]
fn a_batch_may_be_larger_than_what_may_be_outstanding() {
    for most in ["1", "2", "7", "300"] {
        let broker = Broker::start_with(&[("limits.max_requests_per_connection", most)]);
        let (client, other) = (broker.client(), broker.client());
        serve(&other, "svc", |request| Ok(request.payload().to_vec()));
        for service in ["echo", "svc"] {
            let requester = client.requester(service).unwrap();
            check_echo(&requester, &payloads(1_000, |number| number * 13 % 3_000));
            assert!(requester.call("after").unwrap() == b"after");
        }
        assert_eq!(counter(&other.status().unwrap(), "violations"), 0, "{most}");
    }
}

#[test]
fn other_threads_call_and_receive_meanwhile() {
    let broker = Broker::start();
    let other = broker.client();
    serve(&other, "svc", |request| Ok(request.payload().to_vec()));
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let batches = |service: &str| {
            let requester = client.requester(service).unwrap();
            (0..5).for_each(|round| check_echo(&requester, &payloads(1_000, |n| (n * 61 + round) % 2_000)));
        };
        let calls = || {
            let (requester, mut reply) = (client.requester("svc").unwrap(), Vec::new());
            for body in payloads(1_000, |number| number % 2_000) {
                requester.call_into(&body, &mut reply).unwrap();
                assert!(reply == body);
            }
        };
        beside_messages(&client, &other, &[&|| batches("svc"), &|| batches("echo"), &calls]);
        assert_eq!(outstanding(&client), 0);
    }
    assert_eq!(counter(&other.status().unwrap(), "violations"), 0);
}

/// Another thread leads for as long as it waits for a message that does not come.
#[test]
fn a_batch_needs_no_reader_role() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || subscription.next().unwrap().unwrap());
        let requester = client.requester("echo").unwrap();
        (0..20).for_each(|_| check_echo(&requester, &payloads(500, |number| number * 61 % 2_000)));
        other.publish("t", "end").unwrap();
        assert_eq!(waiting.join().unwrap().payload(), b"end");
    });
    assert_eq!(outstanding(&client), 0);
}

#[test]
fn what_has_no_reply_by_the_deadline_ends_and_the_rest_is_not_sent() {
    let broker = Broker::start();
    let other = broker.client();
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        // Its breaker is its own: the deadlines open it.
        let name = format!("svc{wait:?}").to_lowercase();
        let mut service = other.serve(&name).unwrap();
        let sent = payloads(1_000, |_| 20);
        std::thread::scope(|scope| {
            let (ended, is_over) = sync_channel::<()>(0);
            scope.spawn(move || {
                let mut kept = Vec::new();
                for _ in 0..200 {
                    let mut request = service.next_timeout(DEADLINE).unwrap().expect("a request");
                    let payload = request.take_payload();
                    if kept.len() < 100 { kept.push(request) } else { request.reply(payload).unwrap() }
                }
                let _ = is_over.recv();
                // The broker passes none of these on.
                kept.into_iter().for_each(|late| drop(late.reply("late")));
            });
            let found = outcomes(&client.requester(&name).unwrap(), &sent, within(500));
            let replies = found.iter().zip(&sent).filter(|(found, sent)| found.as_ref().is_ok_and(|it| it == *sent));
            assert_eq!(replies.count(), 100);
            let late = found.iter().filter(|outcome| outcome.as_ref().is_err_and(Error::is_deadline_exceeded));
            assert_eq!(late.count(), 900);
            drop(ended);
        });
        assert_eq!(outstanding(&client), 0);
        check_echo(&client.requester("echo").unwrap(), &sent);
    }
}

#[test]
fn a_broker_that_is_stopped_does_not_hold_a_batch() {
    let mut broker = Broker::start();
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let requester = client.requester("echo").unwrap();
        let sent = payloads(1_000, |_| 20);
        check_echo(&requester, &sent);
        let pid = broker.process().pid();
        broker.process().signal("STOP");
        support::wait_for_stop(pid);
        let found = outcomes(&requester, &sent, within(50));
        broker.process().signal("CONT");
        assert!(found.iter().all(|outcome| outcome.as_ref().is_err_and(Error::is_deadline_exceeded)));
        // The late replies lie in the ring before these.
        check_echo(&requester, &sent);
        assert_eq!(outstanding(&client), 0);
    }
}

#[test]
fn a_broker_that_is_killed_ends_each_request_once() {
    let mut broker = Broker::start();
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let requester = client.requester("echo").unwrap();
        let sent = payloads(2_000, |number| number % 1_500);
        for idempotent in [false, true] {
            let options = RequestOptions { idempotent, ..within(30_000) };
            let (seen, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let calling = scope.spawn(|| {
                    let mut lost = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let found = outcomes(&requester, &sent, options);
                        for (outcome, sent) in found.iter().zip(&sent) {
                            match outcome {
                                Ok(reply) => assert!(reply == sent),
                                Err(error) => assert!(!idempotent && error.is_disconnected(), "{error}"),
                            }
                        }
                        lost += found.iter().filter(|outcome| outcome.is_err()).count();
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                    lost
                });
                for round in 0..3 {
                    wait_until("batches to succeed", || seen.load(Ordering::Relaxed) > 3 * round);
                    broker.kill();
                    broker.start_again();
                }
                is_over.store(true, Ordering::Relaxed);
                let lost = calling.join().unwrap();
                assert!(idempotent || lost > 0, "each kill was between two batches");
            });
        }
        check_echo(&requester, &sent);
        assert_eq!(outstanding(&client), 0);
    }
}

#[test]
fn a_panic_leaves_no_request_outstanding() {
    let broker = Broker::start();
    let other = broker.client();
    let mut service = other.serve("silent").unwrap();
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let requester = client.requester("echo").unwrap();
        for size in [10, 5_000] {
            let (sent, mut seen) = (payloads(100, |_| size), 0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                let _ = requester.call_batch(&sent, |_, _| {
                    seen += 1;
                    assert!(seen < 10, "the tenth");
                });
            }));
            assert!(result.is_err() && seen == 10);
            wait_until("all to be cancelled", || outstanding(&client) == 0);
            check_echo(&requester, &sent);
        }
        // Of requests that have no outcome, none stays, either: not even until its deadline.
        let long = RequestOptions { timeout: Some(20 * DEADLINE), ..RequestOptions::default() };
        let mixed = client.requester("silent").unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| service.next_timeout(DEADLINE).unwrap().expect("a request").reply("one").unwrap());
                let _ = mixed.call_batch_with(&payloads(50, |_| 10), long, |_, outcome| panic!("{outcome:?}"));
            });
        }));
        assert!(result.is_err());
        wait_until("all to be cancelled", || outstanding(&client) == 0);
        while service.next_timeout(std::time::Duration::from_millis(50)).unwrap().is_some() {}
    }
}

#[test]
fn a_call_within_a_batch_is_an_error_instead_of_a_deadlock() {
    let broker = Broker::start();
    for wait in STRATEGIES {
        let client = broker.builder().wait(wait).connect().unwrap();
        let (requester, publisher) = (client.requester("echo").unwrap(), client.publisher("t").unwrap());
        let (mut refused, mut calls, mut refused_publishes) = (0, 0, 0);
        requester
            .call_batch(&payloads(500, |_| 10), |_, outcome| {
                outcome.unwrap();
                // While there is space; the first finds some.
                refused_publishes += usize::from(!publisher.try_publish("x").unwrap());
                let called = requester.call_batch(&["y"], |_, outcome| {
                    outcome.unwrap();
                    calls += 1;
                });
                refused += usize::from(called.is_err_and(|error| error.is_view_outstanding()));
            })
            .unwrap();
        assert!(refused > 0 && refused + calls == 500 && refused_publishes < 500, "{refused} {calls}");
        assert_eq!(requester.call("z").unwrap(), b"z");
        assert_eq!(outstanding(&client), 0);
    }
}
