//! Sessions that outlive their socket, with the library: nothing is lost, nothing is doubled, and the application sees
//! events instead of errors.

mod support;

use lapce_ipc::client::{Client, ConnectionState, Events, ReconnectOptions, RequestOptions};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use support::cut::{cut, cut_own};
use support::role::{Child, role, tell};
use support::{Broker, DEADLINE, wait_until};

/// Attempts that only the path's reappearance brings about within a test's time.
fn patient() -> ReconnectOptions {
    let hour = Duration::from_secs(3600);
    ReconnectOptions { first_delay: hour, max_delay: hour, ..ReconnectOptions::default() }
}

fn connect(broker: &Broker) -> Client {
    broker.builder().connect().expect("the broker takes us")
}

#[track_caller]
fn next(events: &mut Events) -> ConnectionState {
    events.next_timeout(DEADLINE).expect("no end").expect("a state in time")
}

/// Tells the others that it is over, also when something went wrong.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until the connection that was cut stands again.
#[track_caller]
fn resumed(events: &mut Events) {
    wait_until("the connection to be lost", || !next(events).is_connected());
    wait_until("the connection to stand again", || next(events).is_connected());
}

#[test]
fn cutting_the_socket_loses_nothing_and_doubles_nothing() {
    let broker = Broker::start();
    let (here, there, third) = (connect(&broker), connect(&broker), connect(&broker));
    let (done, ready) = (AtomicBool::new(false), AtomicU32::new(0));
    let under_way = |work: &mut dyn FnMut()| {
        work();
        ready.fetch_add(1, Ordering::SeqCst);
        while !done.load(Ordering::SeqCst) {
            work();
        }
    };
    let mut messages = there.subscribe("ledger").unwrap();
    let mut service = there.serve("double").unwrap();
    std::thread::scope(|scope| {
        let (here, there, third, under_way) = (&here, &there, &third, &under_way);
        let published = scope.spawn(move || {
            let (publisher, mut number) = (here.publisher("ledger").unwrap(), 0u64);
            under_way(&mut || {
                publisher.publish(number.to_le_bytes()).unwrap();
                number += 1;
            });
            here.flush().unwrap();
            publisher.publish(u64::MAX.to_le_bytes()).unwrap();
            number
        });
        let received = scope.spawn(move || {
            for number in 0.. {
                let message = messages.next_timeout(DEADLINE).unwrap().expect("a message in time");
                if message.payload() == u64::MAX.to_le_bytes() {
                    return number;
                }
                assert_eq!((message.payload(), message.sequence()), (&u64::to_le_bytes(number)[..], number + 1));
            }
            unreachable!("numbers end")
        });
        let answers = scope.spawn(move || {
            let mut answered = 0u64;
            while let Some(request) = service.next_timeout(DEADLINE).unwrap() {
                if request.payload() == b"enough" {
                    request.reply("").unwrap();
                    return answered;
                }
                answered += 1;
                let twice = request.payload().repeat(2);
                request.reply(twice).unwrap();
            }
            panic!("no request in time")
        });
        let asks = scope.spawn(move || {
            let mut asked = 0u64;
            under_way(&mut || {
                assert_eq!(here.request("double", asked.to_le_bytes()).unwrap(), asked.to_le_bytes().repeat(2));
                asked += 1;
            });
            here.request("double", "enough").unwrap();
            asked
        });
        scope.spawn(move || {
            under_way(&mut || {
                let body = vec![7; 200_000];
                let chunks: Vec<u8> = here.request_stream("echo", &body).unwrap().flat_map(Result::unwrap).collect();
                assert!(chunks == body, "a stream of {} bytes", chunks.len());
            });
        });
        // Questions over the very socket that is cut: each is carried out once.
        scope.spawn(move || {
            let (mut number, mut served) = (0, 0);
            under_way(&mut || {
                let topic = format!("asked.{number}");
                let mut heard = third.subscribe(&topic).unwrap();
                if number < 100 && served < 500 {
                    // A connection may offer 1024 services in its life.
                    served += 1;
                    third.serve(&format!("asked-{number}")).unwrap();
                }
                third.publish(&topic, topic.as_bytes()).unwrap();
                let message = heard.next_timeout(DEADLINE).unwrap().expect("a message in time");
                assert_eq!(message.payload(), topic.as_bytes());
                number = (number + 1) % 200;
            });
        });
        wait_until("everybody to be at work", || ready.load(Ordering::SeqCst) == 4);
        let mut events = [here.events(), there.events(), third.events()];
        let ends = Ends(&done);
        assert!(events.iter_mut().all(|events| next(events).is_connected()));
        for _ in 0..30 {
            assert_eq!(cut_own(&broker.socket()), 3);
            events.iter_mut().for_each(resumed);
        }
        drop(ends);
        assert_eq!(received.join().unwrap(), published.join().unwrap());
        assert_eq!(answers.join().unwrap(), asks.join().unwrap());
    });
    // Nothing that was asked for twice was made twice.
    let watch = broker.client();
    wait_until("what was given back to be gone", || watch.status().unwrap().subscriptions == 0);
    let status = watch.status().unwrap();
    assert!(status.services.iter().all(|service| service.responders == 0 && service.outstanding == 0));
    assert_eq!(status.connections.len(), 4);
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn the_application_sees_events_and_no_errors() {
    let mut broker = Broker::start();
    let client = broker.builder().reconnect(patient()).connect().unwrap();
    let mut events = client.events();
    assert!(next(&mut events).is_connected());
    cut_own(&broker.socket());
    let lost = next(&mut events);
    let ConnectionState::Reconnecting { attempt: 1, next_in } = lost else { panic!("{lost:?}") };
    assert_eq!(next_in, Duration::ZERO, "at once");
    assert!(matches!(next(&mut events), ConnectionState::Connecting));
    assert!(next(&mut events).is_connected());
    assert!(client.state().is_connected());
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    broker.process().wait_for("session resumed");
    assert_eq!(events.next_timeout(Duration::ZERO).unwrap().map(|state| format!("{state:?}")), None);
}

#[test]
fn a_path_that_reappears_is_noticed_at_once() {
    let broker = Broker::start();
    let client = broker.builder().reconnect(patient()).connect().unwrap();
    let mut events = client.events();
    assert!(next(&mut events).is_connected());
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    let away = broker.folder().join("away");
    std::fs::rename(broker.socket(), &away).unwrap();
    cut_own(&broker.socket());
    wait_until("the first attempt to fail", || {
        matches!(next(&mut events), ConnectionState::Reconnecting { attempt: 2, .. })
    });
    // It goes on through shared memory meanwhile, and what it asks is asked when it can be.
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| client.subscribe("asked.meanwhile").map(|_| ()));
        std::fs::rename(&away, broker.socket()).unwrap();
        asks.join().unwrap().unwrap();
    });
    wait_until("the connection to stand again", || next(&mut events).is_connected());
}

#[test]
fn a_client_gives_up_when_it_was_told_to() {
    let broker = Broker::start();
    let options = ReconnectOptions {
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(1),
        max_attempts: Some(5),
        ..ReconnectOptions::default()
    };
    let client = broker.builder().reconnect(options).connect().unwrap();
    std::fs::rename(broker.socket(), broker.folder().join("away")).unwrap();
    let events = client.events();
    cut_own(&broker.socket());
    let states: Vec<_> = events.collect();
    let attempt = |state: &ConnectionState| match state {
        ConnectionState::Reconnecting { attempt, .. } => Some(*attempt),
        _ => None,
    };
    assert_eq!(states.iter().filter_map(attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let Some(ConnectionState::Closed { reason }) = states.last() else { panic!("{states:?}") };
    assert!(reason.is_disconnected() && reason.to_string().contains("gave up reconnecting: no broker at"), "{reason}");
    assert!(client.request("echo", "hi").unwrap_err().is_disconnected());
    assert!(client.subscribe("x").unwrap_err().is_disconnected());
}

#[test]
fn without_reconnecting_a_lost_socket_is_the_end() {
    let broker = Broker::start();
    let client = broker.builder().no_reconnect().connect().unwrap();
    cut_own(&broker.socket());
    assert!(client.closed(Some(DEADLINE)).unwrap_err().is_disconnected());
    assert!(client.state().is_closed());
}

#[test]
fn a_session_ends_with_its_process_at_once() {
    // Were it the window that ended it, nobody would wait for that.
    let broker = Broker::start_with(&[("restart.resume_window_ms", "600000")]);
    let client = broker.client();
    let mut child = Child::ready(&broker, "serve-and-keep");
    std::thread::scope(|scope| {
        let options = RequestOptions { timeout: Some(Duration::from_secs(300)), ..RequestOptions::default() };
        let asked = scope.spawn({
            let client = &client;
            move || client.request_with("kept", "x", options)
        });
        child.hears("asked");
        child.kill();
        assert!(asked.join().unwrap().unwrap_err().is_responder_lost());
    });
    wait_until("its session to end", || client.status().unwrap().connections.len() == 1);
}

#[test]
fn two_hundred_cycles_bring_the_broker_back_to_where_it_was() {
    let mut broker = Broker::start();
    let client = connect(&broker);
    let mut events = client.events();
    assert!(next(&mut events).is_connected());
    let socket = broker.socket();
    let mut cycles = |count: usize| {
        for _ in 0..count {
            assert_eq!(cut_own(&socket), 1);
            resumed(&mut events);
            client.status().unwrap();
        }
    };
    cycles(10);
    let pid = broker.process().pid();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let mappings = || std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count();
    let before = (count("fd"), count("task"), mappings(), broker.memory_kib());
    cycles(200);
    wait_until("descriptors to be closed", || count("fd") == before.0);
    assert_eq!(count("task"), before.1);
    assert!(mappings() <= before.2 + 2, "{} mappings, {} before", mappings(), before.2);
    let grown = broker.memory_kib().saturating_sub(before.3);
    assert!(grown < 1024, "grown by {grown} KiB");
    assert_eq!(client.status().unwrap().connections.len(), 1);
    assert_eq!(client.status().unwrap().connections[0].id, client.id());
}

#[test]
fn the_command_line_comes_back_and_says_so() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "news", "--count", "2"]);
    sub.wait_for("subscribed");
    let mut reply = broker.spawn(&["reply", "mirror", "--echo"]);
    reply.wait_for("serving");
    assert_eq!(cut(sub.pid(), &broker.socket()) + cut(reply.pid(), &broker.socket()), 2);
    // While nobody is connected, too, the rings take what comes.
    assert!(broker.run(&["pub", "news", "one"]).status.success());
    for process in [&mut sub, &mut reply] {
        process.wait_for("connection lost; reconnecting");
        process.wait_for("reconnected");
    }
    assert!(broker.run(&["pub", "news", "two"]).status.success());
    assert_eq!(sub.code(), 0);
    assert_eq!(sub.stdout(), b"one\ntwo\n");
    assert_eq!(broker.run(&["request", "mirror", "hi"]).stdout, b"hi\n");
}

#[test]
fn child() {
    match role().as_deref() {
        Some("serve-and-keep") => {
            let client = Client::connect().unwrap();
            let mut service = client.serve("kept").unwrap();
            tell("ready");
            let _request = service.next();
            tell("asked");
            client.closed(None).unwrap_err();
        }
        Some(role) => tell(&format!("no role {role}")),
        None => {}
    }
}
