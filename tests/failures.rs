//! Processes that stop or die in mid-message: the others go on, every request has its outcome, nothing is left.
//!
//! "In mid-message" is no matter of luck here: the other side takes nothing, so a message of 10 MiB is under way for as
//! long as the test likes.

mod support;

use lapce_ipc::client::{Client, Message, RequestOptions, Subscription};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use support::probe::{counter, pattern, served};
use support::role::{Child, role, tell};
use support::{Broker, DEADLINE, wait_until};

const LARGE: usize = 10 << 20;

/// A broker, a client that watches it, and what there was before the test.
struct Scene {
    broker: Broker,
    watch: Client,
    descriptors: usize,
    files: BTreeSet<OsString>,
}

impl Scene {
    fn new(slow_consumer_timeout_ms: &str) -> Scene {
        let broker = Broker::start_with(&[("delivery.slow_consumer_timeout_ms", slow_consumer_timeout_ms)]);
        let watch = broker.client_named("watch");
        watch.status().unwrap();
        // From the first subscription on the broker holds the file of its roster open.
        Child::ready(&broker, "subscribe").kill();
        wait_until("it to go", || watch.status().unwrap().connections.len() == 1);
        Scene { descriptors: broker.descriptors_at_rest(), files: shared_files(), broker, watch }
    }

    fn count(&self, counter_name: &str) -> u64 {
        counter(&self.watch.status().unwrap(), counter_name)
    }

    /// Waits until the broker has got so many bytes of the process `pid`, and gets no more.
    fn under_way(&self, child: &Child, least: u64) {
        let mut before = 0;
        wait_until("a message to be under way", || {
            let status = self.watch.status().unwrap();
            let connection = status.connections.iter().find(|c| c.pid == child.pid()).expect("the child's connection");
            assert!(connection.bytes_in < LARGE as u64, "the whole message has passed");
            let stands = connection.bytes_in >= least && connection.bytes_in == before;
            before = connection.bytes_in;
            stands
        });
    }

    /// Everybody but the watcher has left: so has everything of theirs.
    fn ends_clean(self) {
        wait_until("connections to go", || self.watch.status().unwrap().connections.len() == 1);
        wait_until("descriptors to go", || self.broker.descriptors() == self.descriptors);
        let status = self.watch.status().unwrap();
        assert_eq!(status.subscriptions, 0);
        assert_eq!(counter(&status, "violations"), 0);
        assert!(status.services.iter().all(|service| service.outstanding == 0 && service.responders == 0));
        let lent = |client: &Client| client.status().unwrap().slots_used;
        wait_until("memory to be given back", || lent(&self.watch) == 0);
        assert_eq!(shared_files(), self.files);
        assert_eq!(self.watch.request("echo", "still here").unwrap(), b"still here");
    }
}

/// Files of ours in /dev/shm.
fn shared_files() -> BTreeSet<OsString> {
    let uid = rustix::process::getuid().as_raw();
    let entries = std::fs::read_dir("/dev/shm").unwrap().filter_map(Result::ok);
    entries.filter(|entry| entry.metadata().is_ok_and(|found| found.uid() == uid)).map(|e| e.file_name()).collect()
}

fn within(ms: u64) -> RequestOptions {
    RequestOptions { timeout: Some(Duration::from_millis(ms)), ..RequestOptions::default() }
}

fn next(subscription: &mut Subscription) -> Message {
    subscription.next_timeout(DEADLINE).unwrap().expect("a message in time")
}

#[test]
fn a_publisher_that_dies_in_mid_message_leaves_no_part_of_it() {
    let scene = Scene::new("5000");
    let (client, other) = (scene.broker.client(), scene.broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    for round in 1..=3 {
        let mut child = Child::ready(&scene.broker, "publish-large");
        scene.under_way(&child, 100_000);
        child.kill();
        assert_eq!(next(&mut subscription).payload(), b"before");
        wait_until("the rest to be given up", || {
            assert!(subscription.next_timeout(Duration::ZERO).unwrap().is_none(), "a part of the large message");
            scene.count("aborted") == round
        });
        // Its room is there again, to the last cell.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..20_000_u32 {
                    other.publish("t", number.to_le_bytes()).unwrap();
                }
            });
            for number in 0..20_000_u32 {
                assert_eq!(next(&mut subscription).payload(), number.to_le_bytes());
            }
        });
        assert_eq!(subscription.dropped(), round);
    }
    drop((subscription, client, other));
    scene.ends_clean();
}

#[test]
fn a_publisher_that_stops_in_mid_message_holds_nobody_up() {
    let scene = Scene::new("60000");
    let (client, other) = (scene.broker.client(), scene.broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    let mut child = Child::ready(&scene.broker, "publish-large");
    scene.under_way(&child, 100_000);
    child.stop();
    assert_eq!(next(&mut subscription).payload(), b"before");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..1_000 {
                other.publish("t", pattern(if number == 500 { 1 << 20 } else { 1_500 }, number)).unwrap();
            }
        });
        for number in 0..1_000 {
            let message = next(&mut subscription);
            assert_eq!((message.publisher(), message.sequence()), (other.id(), number + 1));
            assert!(message.payload() == pattern(if number == 500 { 1 << 20 } else { 1_500 }, number));
        }
    });
    child.go_on();
    assert!(next(&mut subscription).payload() == pattern(LARGE, 1));
    child.hears("published");
    child.kill();
    drop((subscription, client, other));
    scene.ends_clean();
}

#[test]
fn a_subscriber_that_stops_in_mid_message_is_evicted_and_told_when_it_goes_on() {
    let scene = Scene::new("2000");
    let (client, other) = (scene.broker.client(), scene.broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    let mut child = Child::ready(&scene.broker, "subscribe");
    std::thread::scope(|scope_| {
        scope_.spawn(|| {
            for number in 0..12 {
                other.publish("t", pattern(LARGE, number)).unwrap();
            }
        });
        for number in 0..12 {
            assert!(next(&mut subscription).payload() == pattern(LARGE, number));
            if number == 1 {
                child.hears("got");
                child.stop();
            }
        }
    });
    assert_eq!(scene.count("evicted"), 1);
    child.go_on();
    child.hears("evicted");
    child.kill();
    drop((subscription, client, other));
    scene.ends_clean();
}

#[test]
fn a_subscriber_that_dies_in_mid_message_is_not_waited_for() {
    let scene = Scene::new("60000");
    let (client, other) = (scene.broker.client(), scene.broker.client());
    let mut subscription = client.subscribe("t").unwrap();
    let mut child = Child::ready(&scene.broker, "subscribe");
    std::thread::scope(|scope_| {
        scope_.spawn(|| {
            for number in 0..10 {
                other.publish("t", pattern(LARGE, number)).unwrap();
            }
        });
        for number in 0..10 {
            if number == 2 {
                child.hears("got");
                child.stop();
                // Now it is in mid-message: its ring is full, and who publishes waits for it.
                wait_until("the publisher to wait", || {
                    subscription.next_timeout(Duration::ZERO).unwrap().is_none() && scene.count("parked") > 0
                });
                child.kill();
            }
            let message = next(&mut subscription);
            assert!(message.payload() == pattern(LARGE, message.sequence() - 1));
            if message.sequence() == 10 {
                break;
            }
        }
    });
    assert_eq!(scene.count("evicted"), 0);
    drop((subscription, client, other));
    scene.ends_clean();
}

/// A service whose owner takes no body, so that a large request to it stays under way.
#[test]
fn a_requester_that_stops_in_mid_request_gets_its_outcome() {
    let scene = Scene::new("60000");
    let (client, other) = (scene.broker.client(), scene.broker.client());
    let mut unread = other.serve("svc").unwrap();
    let mut ready = other.serve("ready").unwrap();
    std::thread::spawn(move || ready.run(|request| Ok::<_, String>(request.payload().to_vec())));
    let mut child = Child::ready(&scene.broker, "ask-large");
    scene.under_way(&child, 50_000);
    child.stop();
    for number in 0..1_000_u32 {
        assert_eq!(client.request("ready", number.to_le_bytes()).unwrap(), number.to_le_bytes());
    }
    wait_until("the deadline", || scene.count("failed_deadline_exceeded") == 1);
    let asking = client.request_stream("svc", "small").unwrap();
    let request = unread.next_timeout(DEADLINE).unwrap().expect("the next request");
    assert_eq!(request.payload(), b"small");
    request.reply("done").unwrap();
    assert_eq!(asking.last().unwrap().unwrap(), b"done");
    child.go_on();
    child.hears("deadline");
    child.kill();
}

#[test]
fn a_requester_that_dies_in_mid_request_leaves_no_part_of_it() {
    let scene = Scene::new("60000");
    let (client, other) = (scene.broker.client(), scene.broker.client());
    let mut service = other.serve("svc").unwrap();
    for _ in 0..3 {
        let mut child = Child::ready(&scene.broker, "ask-large");
        scene.under_way(&child, 50_000);
        child.kill();
        wait_until("the call to end", || served(&scene.watch.status().unwrap(), "svc").outstanding == 0);
        let asking = client.request_stream("svc", "small").unwrap();
        let request = service.next_timeout(DEADLINE).unwrap().expect("the next request");
        assert_eq!(request.payload(), b"small");
        request.reply("done").unwrap();
        assert_eq!(asking.last().unwrap().unwrap(), b"done");
    }
    drop((service, client, other));
    scene.ends_clean();
}

#[test]
fn a_responder_that_stops_in_mid_reply_costs_its_requester_a_deadline_and_others_nothing() {
    let scene = Scene::new("60000");
    let client = scene.broker.client();
    let mut child = Child::ready(&scene.broker, "reply-large");
    let mut stream = client.request_stream_with("svc", "large", within(1_000)).unwrap();
    scene.under_way(&child, 50_000);
    child.stop();
    for number in 0..1_000_u32 {
        assert_eq!(scene.watch.request("echo", number.to_le_bytes()).unwrap(), number.to_le_bytes());
    }
    let error = stream.next().unwrap().unwrap_err();
    assert!(error.is_deadline_exceeded(), "{error}");
    child.go_on();
    child.hears("deadline");
    assert_eq!(client.request("svc", "small").unwrap(), b"small reply");
    child.kill();
    drop((stream, client));
    scene.ends_clean();
}

#[test]
fn a_responder_that_dies_in_mid_reply_is_lost_and_another_answers_the_next() {
    let scene = Scene::new("60000");
    let client = scene.broker.client();
    let mut first = Child::ready(&scene.broker, "reply-large");
    let mut stream = client.request_stream("svc", "large").unwrap();
    scene.under_way(&first, 50_000);
    let mut second = Child::ready(&scene.broker, "reply-large");
    first.kill();
    let error = stream.next().unwrap().unwrap_err();
    assert!(error.is_responder_lost(), "{error}");
    assert!(stream.next().is_none());
    assert_eq!(client.request("svc", "small").unwrap(), b"small reply");
    assert!(client.request("svc", "large").unwrap() == pattern(LARGE, 2));
    second.kill();
    drop((stream, client));
    scene.ends_clean();
}

#[test]
fn requests_shared_with_a_stopped_responder_have_one_outcome_each() {
    let scene = Scene::new("60000");
    let client = scene.broker.client();
    let mut children = [Child::ready(&scene.broker, "reply-large"), Child::ready(&scene.broker, "reply-large")];
    children[0].stop();
    let (mut replies, mut deadlines) = (0, 0);
    std::thread::scope(|scope| {
        let ask = || {
            let results = (0..20).map(|_| client.request_with("svc", "small", within(100)));
            let (replies, errors): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
            assert!(errors.iter().all(|error| error.as_ref().unwrap_err().is_deadline_exceeded()), "{errors:?}");
            (replies.len(), errors.len())
        };
        for asking in [scope.spawn(ask), scope.spawn(ask), scope.spawn(ask)] {
            let (some, others) = asking.join().unwrap();
            (replies, deadlines) = (replies + some, deadlines + others);
        }
    });
    assert_eq!(replies + deadlines, 60);
    assert!(replies >= 20, "{replies}");
    assert_eq!(scene.count("replies"), replies as u64);
    children[0].go_on();
    // Those that it finds are over: it answers none of them, and then goes on.
    assert_eq!(client.request("svc", "small").unwrap(), b"small reply");
    children.iter_mut().for_each(Child::kill);
    drop(client);
    scene.ends_clean();
}

#[test]
fn the_status_tells_where_a_connection_is() {
    let keys = [("delivery.slow_consumer_timeout_ms", "60000"), ("restart.resume_window_ms", "60000")];
    let mut broker = Broker::start_with(&keys);
    let reader = broker.client();
    let _unread = reader.subscribe("t").unwrap();
    let is_in = |broker: &mut Broker, pid: u32, state: &str| {
        wait_until(state, || {
            let status = broker.get("/api/status").json();
            status["connections"].as_array().unwrap().iter().any(|c| c["pid"] == pid && c["state"] == state)
        });
    };
    is_in(&mut broker, std::process::id(), "connected");
    let mut flood = Child::ready(&broker, "flood");
    is_in(&mut broker, flood.pid(), "waiting");
    // What it had published still waits for room.
    flood.kill();
    is_in(&mut broker, flood.pid(), "ending");
    assert_eq!(support::cut::cut_own(&broker.socket()), 1);
    is_in(&mut broker, std::process::id(), "awaiting_peer");
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let client = Client::connect().unwrap();
    match role.as_str() {
        "flood" => {
            tell("ready");
            while client.publish("t", [7; 1000]).is_ok() {}
        }
        "publish-large" => {
            tell("ready");
            client.publish("t", "before").unwrap();
            client.publish("t", pattern(LARGE, 1)).unwrap();
            client.flush().unwrap();
            tell("published");
            support::role::heard();
        }
        "subscribe" => {
            let mut subscription = client.subscribe("t").unwrap();
            tell("ready");
            let error = loop {
                match subscription.next().unwrap() {
                    Ok(message) => {
                        assert!(message.payload() == pattern(LARGE, message.sequence() - 1));
                        tell("got");
                    }
                    Err(error) => break error,
                }
            };
            assert!(error.is_evicted(), "{error}");
            tell("evicted");
            support::role::heard();
        }
        "ask-large" => {
            tell("ready");
            let error = client.request_with("svc", pattern(LARGE, 3), within(2_000)).unwrap_err();
            tell(if error.is_deadline_exceeded() { "deadline" } else { "other" });
            support::role::heard();
        }
        "reply-large" => {
            let mut service = client.serve("svc").unwrap();
            tell("ready");
            while let Some(Ok(request)) = service.next() {
                let replied = match request.payload() {
                    b"large" => request.reply(pattern(LARGE, 2)),
                    _ => request.reply("small reply"),
                };
                if replied.is_err_and(|error| error.is_deadline_exceeded()) {
                    tell("deadline");
                }
            }
        }
        role => tell(&format!("no role {role}")),
    }
}

#[test]
fn two_hundred_processes_that_connect_and_are_killed_leave_nothing() {
    let mut broker = Broker::start();
    let watch = broker.client();
    let cycles = |broker: &Broker, count: usize| {
        for _ in 0..count {
            Child::ready(broker, "subscribe").kill();
        }
        // Far within the time for which a session would wait for a process that lives.
        wait_until("connections to go", || watch.status().unwrap().connections.len() == 1);
    };
    cycles(&broker, 20);
    let pid = broker.process().pid();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let mappings = || std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count();
    let before = (count("fd"), count("task"), mappings(), broker.memory_kib());
    cycles(&broker, 200);
    wait_until("descriptors to be closed", || count("fd") == before.0);
    assert_eq!(count("task"), before.1);
    assert!(mappings() <= before.2 + 2, "{} mappings, {} before", mappings(), before.2);
    let grown = broker.memory_kib().saturating_sub(before.3);
    assert!(grown < 1024, "grown by {grown} KiB");
}

#[test]
fn a_responder_that_misses_a_deadline_is_probed_when_it_is_configured() {
    for (delay_ms, probed) in [("3600000", false), ("1", true)] {
        let keys = [("limits.probe_delay_ms", delay_ms), ("limits.max_probe_delay_ms", delay_ms)];
        let breakers = ("circuit_breaker.failure_threshold", "1000");
        let broker = Broker::start_with(&[keys[0], keys[1], breakers]);
        let (silent, serving, asking) = (broker.client(), broker.client(), broker.client());
        let mut service = serving.serve("svc").unwrap();
        std::thread::spawn(move || {
            while let Some(Ok(request)) = service.next() {
                let _ = request.reply("ho");
            }
        });
        let _silent = silent.serve("svc").unwrap();
        let ask = || asking.request_with("svc", "hi", within(1_000));
        wait_until("the silent one to let a deadline pass", || ask().is_err());
        if probed {
            // Twenty requests may well take less than the delay.
            wait_until("a probe that the silent one misses", || ask().is_err());
        } else {
            assert_eq!((0..20).filter(|_| ask().is_err()).count(), 0);
        }
    }
}
