//! Faults that are injected into the real binary under traffic: feature `fault-injection`, see
//! `src/broker/supervision/fault.rs`.
//! After each, the ledger is whole: everything that was published came once and in order to everybody, and each request
//! had one outcome.

mod support;

use lapce_ipc::client::{BreakerOrder, Client, Error};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::follow::Follower;
use support::http::{Answer, talk};
use support::manager::Manager;
use support::probe::{counter, pattern};
use support::{Broker, Process, wait_until};

const SUBSCRIBERS: usize = 8;
/// How often each fault is to happen.
const TIMES: usize = 100;
/// Restarts follow at once and are not limited, so that a hundred of them are soon over.
const KEYS: &[(&str, &str)] = &[
    ("restart.initial_delay_ms", "0"),
    ("restart.max_delay_ms", "0"),
    ("restart.max_restarts", "1000000"),
    ("delivery.slow_consumer_timeout_ms", "20000"),
];

fn restarts(broker: &mut Broker, actor: &str) -> usize {
    broker.process().stderr().matches(&format!("restarting actor actor={actor} ")).count()
}

/// Connects, again if the acceptor has died with our socket in its hands.
fn connect(broker: &Broker) -> Client {
    let mut client = None;
    wait_until("a connection", || {
        client = Client::builder().socket(broker.socket()).connect().ok();
        client.is_some()
    });
    client.unwrap()
}

/// The message with this number: of one to four records.
fn message(number: u64) -> Vec<u8> {
    let mut message = number.to_le_bytes().to_vec();
    message.extend(pattern([0, 56, 700, 3100][number as usize % 4], number));
    message
}

/// Publishes, asks and streams until `enough`, then holds everybody's ledger against what was sent.
fn keep_ledger(broker: &mut Broker, what: &str, may_lose_responder: bool, mut enough: impl FnMut(&mut Broker) -> bool) {
    let clients: Vec<_> = (0..SUBSCRIBERS).map(|_| connect(broker)).collect();
    let subscriptions: Vec<_> = clients.iter().map(|client| client.subscribe("ledger.>").unwrap()).collect();
    let (publishing, asking, answering) = (connect(broker), connect(broker), connect(broker));
    let mut service = answering.serve("ledger").unwrap();
    let is_over = AtomicBool::new(false);
    let (asked, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    let published = std::thread::scope(|scope| {
        let (is_over, asked, lost) = (&is_over, &asked, &lost);
        let readers: Vec<_> = subscriptions
            .into_iter()
            .map(|mut subscription| {
                scope.spawn(move || {
                    let mut next = 0u64;
                    loop {
                        let got = subscription.next().unwrap().unwrap();
                        if got.topic() == "ledger.end" {
                            return (next, subscription.dropped());
                        }
                        assert!(got.payload() == message(next), "{what}: message {next}");
                        next += 1;
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            while let Ok(Some(mut request)) = service.next().transpose() {
                let number = u64::from_le_bytes(request.payload().try_into().unwrap());
                if number == u64::MAX {
                    return drop(request.reply("over"));
                }
                // Whatever becomes of it, its requester hears.
                let chunks = if request.wants_stream() { 20 } else { 0 };
                if (0..chunks).all(|n: u64| request.chunk((number + n).to_le_bytes()).is_ok()) {
                    let _ = request.reply((number + chunks).to_le_bytes());
                }
            }
        });
        let requester = scope.spawn(move || {
            let mut number = 0u64;
            let note = |result: Result<(), Error>| match result {
                Ok(()) => {}
                Err(error) if may_lose_responder && error.is_responder_lost() => {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("{what}: a request: {error}"),
            };
            while !is_over.load(Ordering::Relaxed) {
                number += 1;
                asked.fetch_add(1, Ordering::Relaxed);
                if !number.is_multiple_of(5) {
                    let reply = asking.request("ledger", number.to_le_bytes());
                    note(reply.map(|reply| assert_eq!(reply, number.to_le_bytes(), "{what}")));
                    continue;
                }
                let mut expected = number..=number + 20;
                let chunks = asking.request_stream("ledger", number.to_le_bytes()).unwrap();
                for chunk in chunks {
                    note(chunk.map(|chunk| {
                        assert_eq!(chunk, expected.next().expect("no chunk more").to_le_bytes(), "{what}");
                    }));
                }
            }
            while asking.request("ledger", u64::MAX.to_le_bytes()).is_err() {}
        });
        let publisher = publishing.publisher("ledger.numbers").unwrap();
        let (mut number, started) = (0, Instant::now());
        while !enough(broker) {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}: not enough after {number} messages");
            for _ in 0..20 {
                publisher.publish(message(number)).unwrap();
                number += 1;
            }
        }
        publishing.publish("ledger.end", "").unwrap();
        publishing.flush().unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), (number, 0), "{what}");
        }
        is_over.store(true, Ordering::Relaxed);
        requester.join().unwrap();
        number
    });
    let status = connect(broker).status().unwrap();
    assert_eq!(counter(&status, "published"), published + 1, "{what}");
    assert_eq!(counter(&status, "poison_messages"), 0, "{what}");
    support::probe::note(&format!("{what}: {published} messages, {} requests", asked.load(Ordering::Relaxed)));
    drop(clients);
}

/// Lets an actor die `TIMES` times at a point, each `every`th time that it comes there.
fn dies(actor: &str, point: &str, every: u32, may_lose_responder: bool) {
    let mut broker = Broker::start_faulty(&format!("{point}=panic#{every}*{TIMES}"), KEYS);
    keep_ledger(&mut broker, point, may_lose_responder, |broker| restarts(broker, actor) >= TIMES);
    let log = broker.process().stderr();
    let (name, _) = point.split_once('@').unwrap_or((point, ""));
    let line = log.lines().find(|line| line.contains("restarting actor")).unwrap();
    for part in [&format!("actor={actor} "), "reason=", &format!("injected at {name}"), "attempt=", "delay_ms="] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
}

#[test]
fn the_router_dies_before_during_and_after_a_record() {
    for (point, every) in
        [("router.found", 97), ("router.decided", 97), ("router.committed", 97), ("router.advanced", 97)]
    {
        dies("router", point, every, false);
    }
}

#[test]
fn the_router_dies_between_any_two_subscribers() {
    for k in 0..SUBSCRIBERS {
        dies("router", &format!("router.target@{k}"), 13, false);
        dies("router", &format!("router.delivered@{k}"), 13, false);
    }
}

#[test]
fn the_router_dies_in_half_a_call() {
    dies("router", "router.express", 11, true);
}

#[test]
fn the_router_dies_where_it_wakes_and_waits() {
    for (point, every) in [("router.flush", 97), ("router.ring", 29)] {
        dies("router", point, every, false);
    }
}

#[test]
fn a_message_that_always_kills_is_quarantined_and_the_others_pass() {
    let mut broker = Broker::start_faulty("router.found@666=panic", KEYS);
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = other.subscribe("a.>").unwrap();
    for n in 0..10u8 {
        client.publish("a.b", vec![n; if n == 5 { 666 } else { 10 }]).unwrap();
    }
    client.flush().unwrap();
    assert_eq!((client.quarantined(), other.quarantined()), (1, 0), "its sender is told");
    for n in (0..10u8).filter(|n| *n != 5) {
        assert_eq!(subscription.next().unwrap().unwrap().payload(), [n; 10]);
    }
    let error = client.request("echo", vec![1; 666]).unwrap_err();
    assert!(error.is_responder_lost(), "{error}");
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    assert_eq!(broker.counter("poison_messages"), 2);
    wait_until("both are in the log", || {
        broker.process().stderr().matches("poison message quarantined connection=").count() == 2
    });
}

#[test]
fn the_acceptor_dies_and_all_others_go_on() {
    let mut broker = Broker::start_faulty("acceptor.started=panic#2*20;acceptor.accepted=panic#5*20", KEYS);
    keep_ledger(&mut broker, "acceptor", false, |broker| {
        // A socket that it had just accepted is closed with it.
        let _ = Client::builder().socket(broker.socket()).connect();
        restarts(broker, "acceptor") >= 20
    });
}

#[test]
fn the_breakers_actor_dies_and_takes_along_who_depends_on_it() {
    let mut broker = Broker::start_faulty("breaker.started=panic#3*10;breaker.event=panic#2*20", KEYS);
    let (other, control) = (broker.client(), broker.client());
    let _service = other.serve("other").unwrap();
    let mut opens = false;
    keep_ledger(&mut broker, "breaker", false, |broker| {
        opens = !opens;
        let order = if opens { BreakerOrder::Open } else { BreakerOrder::Close };
        let _ = control.set_breaker("other", order, None);
        restarts(broker, "breaker") >= 20
    });
    assert_eq!(restarts(&mut broker, "router"), 0, "it was stopped and started, and did not fail");
}

#[test]
fn a_router_that_hangs_is_told_of_and_then_the_process_aborts() {
    let mut broker = Broker::start_faulty("router.found@777=stall:60000", &[("restart.watchdog_abort_ms", "600")]);
    let client = broker.client();
    client.publish("a.b", [0; 777]).unwrap();
    assert_eq!(broker.process().code(), -6, "SIGABRT");
    let log = broker.process().stderr();
    let (late, hangs) = (log.find("thread stuck thread=router"), log.find("thread stuck, aborting thread=router"));
    assert!(late.is_some() && late < hangs, "{log}");
}

#[test]
fn the_endpoints_tell_of_a_router_that_hangs_and_do_not_hang_with_it() {
    let mut broker = Broker::start_faulty("router.found@777=stall:60000", &[("restart.watchdog_abort_ms", "600000")]);
    wait_until("the broker to be ready", || broker.get("/ready").code == 200);
    assert_eq!(broker.get("/live").code, 200);
    let client = broker.client();
    client.publish("a.b", [0; 777]).unwrap();
    wait_until("the broker not to live", || broker.get("/live").code == 503);
    // The endpoints look at the router's heartbeat too, which may be old before the watchdog has looked.
    broker.process().wait_for("thread stuck thread=router late_ms=");
    let ready = broker.get("/ready");
    assert_eq!(ready.code, 503);
    assert_eq!(ready.json()["reasons"], serde_json::json!(["1 thread is stuck", "the router does not respond"]));
    let health = broker.get("/health");
    assert_eq!((health.code, &health.json()["status"]), (503, &"unhealthy".into()));
    assert_eq!(health.json()["components"]["router"]["status"], "unhealthy");
    assert_eq!(broker.get("/api/status").code, 503);
    let metrics = broker.get("/metrics");
    assert_eq!(metrics.sample("lapce_ipc_threads_late"), 1.0);
    assert_eq!(metrics.sample("lapce_ipc_messages_published_total"), 0.0, "what was known is told still");
}

#[test]
fn followers_are_told_of_a_router_that_hangs_with_its_last_figures() {
    let mut broker = Broker::start_faulty("router.found@777=stall:60000", &[("restart.watchdog_abort_ms", "600000")]);
    let client = broker.client();
    let mut follower = Follower::of(&mut broker);
    let first = follower.until("snapshot", |data| data["status"]["connections"][0]["id"] == client.id());
    assert_eq!(first["router_responds"], true);
    client.publish("a.b", [0; 777]).unwrap();
    let hangs = follower.until("snapshot", |data| data["router_responds"] == false && data["threads_late"] == 1);
    assert_eq!(hangs["health"]["status"], "unhealthy");
    assert_eq!(hangs["status"]["connections"][0]["id"], client.id(), "what was known is told still");
    let later = follower.snapshot();
    // The age is rounded down, so the time is right to a millisecond.
    let counted = |data: &serde_json::Value| data["counted_at_ms"].as_u64().unwrap();
    assert!(counted(&later).abs_diff(counted(&hangs)) <= 1, "{later}");
    assert!(later["router_heartbeat_age_ms"].as_u64() > hangs["router_heartbeat_age_ms"].as_u64(), "{later}");
}

#[test]
fn restarts_are_told_to_subscribers_and_followers() {
    let mut broker = Broker::start_faulty("router.found@777=panic*1", KEYS);
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = other.subscribe("$sys.actor.>").unwrap();
    let mut follower = Follower::of(&mut broker);
    client.publish("a.b", [0; 777]).unwrap();
    let message = subscription.next().unwrap().unwrap();
    assert_eq!(message.topic(), "$sys.actor.restarted");
    let data: serde_json::Value = serde_json::from_slice(message.payload()).unwrap();
    assert_eq!((&data["actor"], &data["attempt"]), (&"router".into(), &1.into()), "{data}");
    assert!(data["reason"].as_str().unwrap().contains("injected at router.found"), "{data}");
    assert_eq!(follower.event("$sys.actor.restarted", |_| true), data);
}

#[test]
fn the_endpoints_tell_of_a_router_that_waits_for_its_restart() {
    let keys = [("restart.initial_delay_ms", "600000"), ("restart.max_delay_ms", "600000")];
    let mut broker = Broker::start_faulty("router.found@777=panic", &keys);
    wait_until("the broker to be ready", || broker.get("/ready").code == 200);
    broker.client().publish("a.b", [0; 777]).unwrap();
    wait_until("the broker not to be ready", || broker.get("/ready").code == 503);
    assert_eq!(broker.get("/live").code, 200, "to start the process anew would help nobody");
    let reasons = broker.get("/ready").json()["reasons"].to_string();
    assert!(reasons.contains("router is not running"), "{reasons}");
    let health = broker.get("/health").json();
    assert_eq!(health["status"], "unhealthy", "{health}");
    assert!(health["components"]["actors"]["not_running"]["router"].to_string().contains("panicked"), "{health}");
    assert_eq!(broker.get("/metrics").sample(r#"lapce_ipc_actor_up{actor="router"}"#), 0.0);
}

#[test]
fn a_restart_limit_that_is_near_is_told_before_it_is_reached() {
    let keys = [("restart.initial_delay_ms", "0"), ("restart.max_delay_ms", "0"), ("restart.period_secs", "3600")];
    let mut broker = Broker::start_faulty("acceptor.accepted=panic*8", &keys);
    for n in 1..=8 {
        wait_until("the broker to be ready", || broker.get("/ready").code == 200);
        let _ = Client::builder().socket(broker.socket()).connect();
        wait_until("a restart", || restarts(&mut broker, "acceptor") == n);
    }
    wait_until("the broker not to be ready", || broker.get("/ready").code == 503);
    let ready = broker.get("/ready").json();
    assert_eq!(ready["reasons"], serde_json::json!(["acceptor is near its restart limit"]));
    assert_eq!(
        broker.get("/metrics").sample(r#"lapce_ipc_actor_restarts_total{actor="acceptor",reason="panic"}"#),
        8.0
    );
    // It still works.
    assert_eq!(broker.client().request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn the_health_actor_dies_and_its_socket_stays() {
    let mut broker = Broker::start_faulty("health.started=panic*3", &[("restart.initial_delay_ms", "1")]);
    let address = broker.health();
    wait_until("the broker to be ready", || broker.get("/ready").code == 200);
    assert_eq!(restarts(&mut broker, "health"), 3);
    assert_eq!(broker.health(), address);
    assert_eq!(broker.process().stderr().matches("health endpoint listening").count(), 1);
    assert_eq!(broker.get("/metrics").sample(r#"lapce_ipc_actor_restarts_total{actor="health",reason="panic"}"#), 3.0);
    assert_eq!(restarts(&mut broker, "router"), 0);
}

#[test]
fn an_actor_that_never_runs_is_given_up_with_growing_delays_and_the_process_ends() {
    let keys = [
        ("restart.initial_delay_ms", "20"),
        ("restart.max_delay_ms", "100"),
        ("restart.max_restarts", "4"),
        ("restart.jitter", "0"),
    ];
    let mut broker = Broker::start_faulty("router.started=panic", &keys);
    assert_eq!(broker.process().code(), 69);
    let log = broker.process().stderr();
    let restarts: Vec<_> = log.lines().filter(|line| line.contains("restarting actor actor=router id=-")).collect();
    assert_eq!(restarts.len(), 4, "{log}");
    for (attempt, (line, delay)) in restarts.iter().zip([20, 40, 80, 100]).enumerate() {
        assert!(line.contains(&format!("attempt={} limit=4 delay_ms={delay}", attempt + 1)), "{line}");
    }
    assert!(log.contains("giving up on actor actor=router"), "{log}");
    assert!(!broker.socket().exists(), "its socket goes with it");
}

#[test]
fn a_manager_hears_that_the_broker_is_ready_when_the_router_answers() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let mut broker = support::command(support::IPC_SERVER_MAIN);
    broker.arg("--socket").arg(folder.path().join("ipc.sock")).env("NOTIFY_SOCKET", manager.path());
    broker.env("LAPCE_IPC_FAULTS", "router.started=stall:4000*1");
    let mut broker = Process::start(broker);
    broker.wait_for("health endpoint listening");
    broker.wait_for("hint:");
    assert_eq!(manager.rest(), Vec::<Vec<String>>::new(), "it listens, and the router does not respond yet");
    assert_eq!(manager.next()[0], "READY=1");
}

#[test]
fn a_managers_watchdog_hears_nothing_of_a_router_that_hangs() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let socket = folder.path().join("ipc.sock");
    let mut broker = support::command(support::IPC_SERVER_MAIN);
    broker.arg("--socket").arg(&socket).env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "100000");
    broker.env("LAPCE_IPC__RESTART__WATCHDOG_ABORT_MS", "5000").env("LAPCE_IPC_FAULTS", "router.found@777=stall:60000");
    let mut broker = Process::start(broker);
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    Client::builder().socket(&socket).connect().unwrap().publish("a.b", [0; 777]).unwrap();
    let data = manager.until("STATUS=1 thread is stuck");
    assert!(data.iter().flatten().any(|line| line == "WATCHDOG=1"), "{data:?}");
    // Its own watchdog ends it; until then, three seconds and more, no sign of life.
    assert_eq!(broker.code(), -6, "SIGABRT");
    let rest = manager.rest();
    assert!(!rest.iter().flatten().any(|line| line == "WATCHDOG=1"), "{rest:?}");
}

#[test]
fn endpoints_that_hang_are_told_of_and_the_broker_goes_on() {
    let manager = Manager::new();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipc.sock");
    let mut broker = support::command(support::IPC_SERVER_MAIN);
    broker.arg("--socket").arg(&socket).env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "100000");
    broker.env("LAPCE_IPC__RESTART__WATCHDOG_ABORT_MS", "2000").env("LAPCE_IPC_FAULTS", "health.asked=stall:5000*1");
    let mut broker = Process::start(broker);
    broker.wait_for("hint:");
    let address = support::http::address_in(&broker.stderr()).unwrap();
    let ask = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        Answer::parse(&talk(address, request.as_bytes())).unwrap()
    };
    let hangs = std::thread::spawn({
        let request = "GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        move || talk(address, request.as_bytes())
    });
    broker.wait_for("thread stuck thread=http");
    manager.until("STATUS=the health endpoints are stuck");
    let client = Client::builder().socket(&socket).connect().unwrap();
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    manager.until("WATCHDOG=1");
    broker.wait_for("thread recovered thread=http");
    assert_eq!(Answer::parse(&hangs.join().unwrap()).unwrap().code, 200);
    assert_eq!(ask("/health").json()["components"]["threads"]["late"], 0);
    assert!(!broker.has_ended() && !broker.stderr().contains("aborting"), "{}", broker.stderr());
}
