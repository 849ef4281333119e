//! Resuming, byte by byte: tokens that are forged, stale, replayed or held, and what a client hears of it. Nobody else
//! notices.

#[path = "support/raw.rs"]
mod raw;
mod support;

use lapce_ipc::client::{Client, SubscribeOptions, Subscription};
use lapce_ipc::wire::control::{DeliveryPolicy, InternKind, RefusedCode, Token};
use lapce_ipc::wire::record::{Flags, Header};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Name, Topic};
use raw::{Control, Lane, Raw, publish, resume};
use std::time::{Duration, Instant};
use support::cut::cut_own;
use support::probe::{actor, lines};
use support::{Broker, DEADLINE, wait_until};

/// A window that no test waits for.
const LONG: (&str, &str) = ("restart.resume_window_ms", "600000");

/// What the broker says to a token.
#[track_caller]
fn refusal(broker: &Broker, token: Token) -> (RefusedCode, String) {
    let mut control = Control::connect(&broker.socket());
    control.say(&resume(token));
    control.refused()
}

#[track_caller]
fn sessions(watch: &Client) -> usize {
    watch.status().unwrap().connections.len() - 1
}

fn status(raw: &mut Raw) {
    assert!(matches!(raw.ask(|serial| ClientFrame::Status { serial }), BrokerFrame::Status { .. }));
}

#[test]
fn a_forged_token_resumes_nothing_and_the_log_is_not_flooded() {
    let mut broker = Broker::start_with(&[LONG]);
    let mut raw = Raw::connect(&broker.socket(), "victim");
    for guess in 0..60u8 {
        let (code, message) = refusal(&broker, Token::from_bytes([guess; 16]));
        assert_eq!((code, &*message), (RefusedCode::ResumeFailed, "unknown or expired session token"));
    }
    status(&mut raw);
    raw.flush(1);
    let log = broker.process().stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("session not resumed")).collect();
    assert!(lines[0].contains("reason=\"unknown session token"), "{}", lines[0]);
    assert!(lines.len() < 60, "every guess has its line");
}

#[test]
fn a_live_holder_refuses_a_second_claimant_and_a_token_is_good_once() {
    let mut broker = Broker::start_with(&[LONG]);
    let mut raw = Raw::connect(&broker.socket(), "holder");
    let first = raw.token;
    assert_eq!(refusal(&broker, first).0, RefusedCode::BadToken, "held");
    raw.flush(1);
    raw.cut();
    raw.resume(&broker.socket());
    assert_eq!(refusal(&broker, first).0, RefusedCode::BadToken, "two claimants: the second one");
    // It shows that it has the new token: the old one is void.
    status(&mut raw);
    assert_eq!(refusal(&broker, first).0, RefusedCode::ResumeFailed, "replayed");
    raw.cut();
    assert_eq!(refusal(&broker, first).0, RefusedCode::ResumeFailed, "stale");
    raw.resume(&broker.socket());
    raw.flush(2);
    // No token is ever written, in whatever form.
    let log = broker.process().stderr();
    for token in [first, raw.token] {
        let hex: String = token.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!log.contains(&hex) && !log.contains(&format!("{:?}", token.as_bytes())));
    }
    assert!(log.contains("waiting for client to reconnect") && log.contains("session resumed"), "{log}");
}

#[test]
fn a_token_that_got_lost_on_its_way_leaves_the_one_before_good() {
    let broker = Broker::start_with(&[LONG]);
    let mut raw = Raw::connect(&broker.socket(), "unlucky");
    let token = raw.token;
    raw.cut();
    for _ in 0..5 {
        raw.resume(&broker.socket());
        raw.cut();
        raw.token = token;
    }
    raw.resume(&broker.socket());
    raw.control.say(&ClientFrame::Resumed);
    raw.flush(1);
    status(&mut raw);
    assert_eq!(refusal(&broker, token).0, RefusedCode::ResumeFailed);
}

#[test]
fn a_lost_socket_is_a_restart_of_its_connection_and_a_resume_is_one_that_holds() {
    let mut broker = Broker::start_with(&[LONG]);
    let watch = broker.client();
    let mut raw = Raw::connect(&broker.socket(), "lost");
    let id = raw.connection;
    for lost in 1..=2 {
        raw.cut();
        let restart = format!("restarting actor actor=connection id={id} reason=\"socket lost: ");
        wait_until("the restart", || lines(&mut broker, &["WARN", &restart]).len() == lost);
        let line = lines(&mut broker, &[&restart]).pop().unwrap();
        assert!(line.ends_with("attempt=1 limit=1000 delay_ms=0"), "{line}");
        raw.resume(&broker.socket());
        let holds = format!("actor stable actor=connection id={id} attempt=1");
        wait_until("it to hold", || lines(&mut broker, &["INFO", &holds]).len() == lost);
    }
    raw.flush(1);
    let connections = actor(&watch, "connection");
    assert_eq!((connections.restarts, connections.failures), (2, 2));
    let status = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    let line = status.lines().find(|line| line.trim_start().starts_with("connection ")).expect("its line");
    assert!(line.contains('2') && line.contains("socket lost"), "{status}");
    // Who leaves in order is no restart, and has no line of one.
    raw.control.say(&ClientFrame::Bye);
    wait_until("the session to end", || sessions(&watch) == 0);
    assert_eq!(actor(&watch, "connection").restarts, 2);
}

#[test]
fn a_connection_that_flaps_is_given_up_and_its_client_is_told() {
    let keys = [LONG, ("restart.connection_max_restarts", "3"), ("restart.connection_period_secs", "3600")];
    let mut broker = Broker::start_with(&keys);
    let watch = broker.client();
    let mut raw = Raw::connect(&broker.socket(), "flaps");
    for _ in 0..3 {
        raw.cut();
        raw.resume(&broker.socket());
    }
    raw.cut();
    wait_until("the session to end", || sessions(&watch) == 0);
    let line = format!("giving up on actor actor=connection id={} reason=\"socket lost: ", raw.connection);
    assert_eq!(lines(&mut broker, &["ERROR", &line, "restarts=3 period_secs=3600"]).len(), 1);
    let (code, message) = refusal(&broker, raw.token);
    assert_eq!(code, RefusedCode::GivenUp);
    assert!(message.contains("restart.connection_max_restarts"), "{message}");

    // A client of the library: it ends with the reason instead of flapping on.
    drop(watch);
    let client = broker.builder().connect().unwrap();
    let mut cuts = 0;
    let error = loop {
        cuts += cut_own(&broker.socket());
        let error = client.closed(Some(Duration::from_millis(300))).unwrap_err();
        if !error.is_timeout() {
            break error;
        }
        assert!(cuts < 20, "it flaps on");
    };
    assert_eq!(error.refused_code(), Some(RefusedCode::GivenUp), "{error} after {cuts} cuts");
}

#[test]
fn restarts_of_a_connection_are_counted_within_the_period_only() {
    let keys = [LONG, ("restart.connection_max_restarts", "1"), ("restart.connection_period_secs", "1")];
    let broker = Broker::start_with(&keys);
    let mut raw = Raw::connect(&broker.socket(), "now-and-then");
    let mut last = None::<Instant>;
    for _ in 0..3 {
        wait_until("the period to pass", || last.is_none_or(|last| last.elapsed().as_millis() > 1100));
        raw.cut();
        last = Some(Instant::now());
        raw.resume(&broker.socket());
    }
    raw.flush(1);
}

#[test]
fn a_session_is_another_users_and_another_instances_business() {
    let broker = Broker::start_with(&[LONG]);
    let mut raw = Raw::connect(&broker.socket(), "mine");
    raw.cut();
    let mut other = Control::connect(&broker.socket());
    other.say(&ClientFrame::hello(Name::parse("mine").unwrap(), 1, Some(raw.token)));
    assert_eq!(other.refused().0, RefusedCode::ResumeFailed);
    raw.resume(&broker.socket());
    raw.flush(1);
}

#[test]
fn the_window_ends_a_session_whose_peer_does_not_come_back() {
    let mut broker = Broker::start_with(&[("restart.resume_window_ms", "200")]);
    let watch = broker.client();
    let mut subscription = watch.subscribe("last.words").unwrap();
    let mut raw = Raw::connect(&broker.socket(), "late");
    let topic = Topic::parse("last.words").unwrap();
    let answer = raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Topic, name: topic });
    assert!(matches!(answer, BrokerFrame::Interned { id: 0, .. }), "{answer:?}");
    raw.push(Lane::Bulk, &publish(0, 3, Flags::WHOLE), b"bye");
    raw.cut();
    assert_eq!(subscription.next().unwrap().unwrap().payload(), b"bye");
    wait_until("the session to end", || sessions(&watch) == 0);
    assert_eq!(refusal(&broker, raw.token).0, RefusedCode::ResumeFailed);
    broker.process().wait_for("reason=\"resume window expired\"");
    assert_eq!(watch.request("echo", "still here").unwrap(), b"still here");
}

#[test]
fn a_goodbye_is_heard_behind_questions_whose_answers_nobody_waits_for() {
    let mut broker = Broker::start_with(&[LONG]);
    let watch = broker.client();
    for n in 0..20 {
        let mut raw = Raw::connect(&broker.socket(), &format!("leaves-{n}"));
        let mut words: Vec<_> = (0..50).flat_map(|serial| ClientFrame::Status { serial }.encode().unwrap()).collect();
        words.extend(ClientFrame::Bye.encode().unwrap());
        raw.control.send(&words);
        raw.cut();
    }
    wait_until("the sessions to end", || sessions(&watch) == 0);
    assert!(!broker.process().stderr().contains("connection lost"));
}

#[test]
fn without_a_window_a_session_ends_with_its_socket() {
    let broker = Broker::start_with(&[("restart.resume_window_ms", "0")]);
    let watch = broker.client();
    let raw = Raw::connect(&broker.socket(), "brief");
    assert_eq!(sessions(&watch), 1);
    raw.cut();
    wait_until("the session to end", || sessions(&watch) == 0);
    assert_eq!(refusal(&broker, raw.token).0, RefusedCode::ResumeFailed);
}

#[test]
fn a_session_that_waits_counts_and_can_be_resumed_when_all_are_taken() {
    let broker = Broker::start_with(&[LONG, ("ipc.max_connections", "2")]);
    let watch = broker.client();
    let mut raw = Raw::connect(&broker.socket(), "waits");
    raw.cut();
    wait_until("the socket's end to be noticed", || {
        let error = broker.builder().connect().unwrap_err();
        error.to_string().contains("has reached its share of 2 connections (ipc.max_connections")
    });
    raw.resume(&broker.socket());
    raw.flush(1);
    assert_eq!(sessions(&watch), 1);
    raw.control.say(&ClientFrame::Bye);
    wait_until("room for another", || broker.builder().connect().is_ok());
}

#[test]
fn a_question_that_comes_again_is_answered_as_it_was() {
    let broker = Broker::start_with(&[LONG]);
    let watch = broker.client();
    let mut raw = Raw::connect(&broker.socket(), "asks-again");
    let name = |text: &str| Topic::parse(text).unwrap();
    let questions: Vec<_> = (0..20u32)
        .flat_map(|n| {
            let (pattern, policy) = (format!("t.{n}").parse().unwrap(), DeliveryPolicy::DropNewest);
            [
                ClientFrame::Subscribe { serial: 10 * n, pattern, policy, credit: 0 },
                ClientFrame::Intern { serial: 10 * n + 1, kind: InternKind::Topic, name: name(&format!("t.{n}")) },
                ClientFrame::Serve { serial: 10 * n + 2, service: Name::parse("twice").unwrap(), max_in_flight: 0 },
            ]
        })
        .collect();
    let ask_all = |raw: &mut Raw| {
        questions.iter().for_each(|question| raw.control.say(question));
        questions.iter().map(|_| raw.control.frame().expect("an answer")).collect::<Vec<_>>()
    };
    let first = ask_all(&mut raw);
    assert!(matches!(first[2], BrokerFrame::Serving { service: 0, .. }), "{:?}", first[2]);
    assert!(matches!(first[5], BrokerFrame::Failed { .. }), "it serves it already: {:?}", first[5]);
    for _ in 0..3 {
        raw.cut();
        raw.resume(&broker.socket());
        assert_eq!(ask_all(&mut raw), first);
    }
    let status = watch.status().unwrap();
    assert_eq!((status.subscriptions, status.topics), (20, 20));
}

#[test]
fn what_comes_again_at_another_broker_is_seen_once_and_costs_no_room() {
    const LARGE: usize = 3000;
    let mut broker = Broker::start();
    let client = broker.builder().connect().unwrap();
    let options = SubscribeOptions { capacity_bytes: 8192, ..SubscribeOptions::default() };
    let mut messages = client.subscribe_with("ledger", options).unwrap();
    let mut others = client.subscribe("other").unwrap();
    // The library's subscriber, and a publisher whose broker had routed more than it had consumed.
    let publish_from = |broker: &Broker, numbers: std::ops::RangeInclusive<u64>, resent: Flags| {
        let mut raw = Raw::connect(&broker.socket(), "publisher");
        for name in ["ledger", "other"] {
            let name = Topic::parse(name).unwrap();
            raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Topic, name });
        }
        for seq in numbers {
            let len = if seq % 3 == 0 { LARGE } else { 8 };
            let payload = vec![seq as u8; len];
            for (at, part) in payload.chunks(1024).enumerate() {
                let flags = resent.with_if(Flags::FIRST, at == 0).with_if(Flags::LAST, at * 1024 + part.len() == len);
                raw.push(Lane::Bulk, &Header { seq, ..publish(0, len as u32, flags) }, part);
            }
        }
        raw.push(Lane::Bulk, &Header { seq: 1, ..publish(1, 1, Flags::WHOLE.with(resent)) }, b"x");
        raw
    };
    // Returns their publisher.
    let received = |messages: &mut Subscription, numbers: std::ops::RangeInclusive<u64>| {
        let mut publishers = Vec::new();
        for seq in numbers {
            let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
            assert_eq!(message.sequence(), seq);
            publishers.push(message.publisher());
            let len = if seq % 3 == 0 { LARGE } else { 8 };
            assert!(message.payload() == vec![seq as u8; len], "message {seq} is whole");
        }
        publishers.dedup();
        assert_eq!(publishers.len(), 1);
        publishers[0]
    };
    let id = std::thread::scope(|scope| {
        let raw = scope.spawn(|| publish_from(&broker, 1..=100, Flags::default()));
        let publisher = received(&mut messages, 1..=100);
        assert_eq!(raw.join().unwrap().connection, publisher);
        publisher
    });
    assert_eq!(others.next_timeout(DEADLINE).unwrap().expect("a message in time").sequence(), 1);
    broker.end("KILL");
    broker.start_again();
    std::thread::scope(|scope| {
        // Far more than the subscription has room for, if what is left out were to keep any.
        let raw = scope.spawn(|| publish_from(&broker, 2..=120, Flags::RESENT));
        assert_eq!(received(&mut messages, 101..=120), id);
        let mut raw = raw.join().unwrap();
        assert_eq!(raw.connection, id, "the same at every broker");
        raw.flush(1);
    });
    assert!(messages.try_next().unwrap().is_none() && others.try_next().unwrap().is_none());
    assert_eq!((messages.dropped(), broker.counter("evicted"), broker.counter("violations")), (0, 0, 0));
}
