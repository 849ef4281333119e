//! `/events` of a real broker: what is told to those who follow, how many may, and how it ends.

mod support;

use lapce_ipc::client::BreakerOrder;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::thread::JoinHandle;
use support::follow::Follower;
use support::{Broker, wait_until};

/// Follows on a thread and answers how many snapshots came until the end, and what was the last event.
fn counts_snapshots(mut follower: Follower) -> JoinHandle<(usize, String)> {
    std::thread::spawn(move || {
        let (mut snapshots, mut last) = (0, String::new());
        while let Some((name, _)) = follower.next() {
            snapshots += usize::from(name == "snapshot");
            last = name;
        }
        (snapshots, last)
    })
}

#[test]
fn a_follower_hears_of_everybody_who_comes_and_goes_and_what_is_done() {
    let mut broker = Broker::start();
    let mut follower = Follower::of(&mut broker);
    let header = |name| follower.head.header(name).map(str::to_owned);
    assert_eq!(header("content-type").as_deref(), Some("text/event-stream"));
    assert_eq!(header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(header("content-length"), None);
    follower.snapshot();
    let client = broker.builder().name("guest").unwrap().no_reconnect().connect().unwrap();
    let opened = follower.event("$sys.connection.opened", |data| data["name"] == "guest");
    assert_eq!((&opened["pid"], &opened["connection"]), (&std::process::id().into(), &client.id().into()));
    let _service = client.serve("a.b").unwrap();
    client.set_breaker("a.b", BreakerOrder::Open, None).unwrap();
    let changed = follower.event("$sys.breaker.a.b", |_| true);
    assert_eq!((&changed["from"], &changed["to"]), (&"closed".into(), &"forced_open".into()));
    drop((_service, client));
    let closed = follower.event("$sys.connection.closed", |data| data["name"] == "guest");
    assert_eq!(closed["connection"], opened["connection"]);
}

#[test]
fn a_snapshot_has_what_the_other_paths_say_and_the_next_one_goes_on() {
    let mut broker = Broker::start();
    let client = broker.builder().name("watched").unwrap().no_reconnect().connect().unwrap();
    let other = broker.client();
    let subscription = other.subscribe("a.>").unwrap();
    let mut follower = Follower::of(&mut broker);
    let first = follower.snapshot();
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&first["status"]), members(&broker.get("/api/status").json()));
    assert_eq!(members(&first["health"]), members(&broker.get("/health").json()));
    assert_eq!((&first["router_responds"], &first["threads_late"]), (&true.into(), &0.into()));
    assert_eq!(first["streams"], serde_json::json!({ "now": 1, "limit": 16 }));
    assert!(first["process"]["memory_bytes"].as_f64().unwrap() > 100_000.0, "{}", first["process"]);
    for _ in 0..5 {
        client.publish("a.b", [7; 100]).unwrap();
    }
    client.flush().unwrap();
    let published = |snapshot: &Value| {
        let counters = snapshot["status"]["counters"].as_array().unwrap();
        counters.iter().find(|counter| counter[0] == "published").unwrap()[1].as_u64().unwrap()
    };
    let later = follower.until("snapshot", |snapshot| published(snapshot) == published(&first) + 5);
    assert!(later["counted_at_ms"].as_u64() > first["counted_at_ms"].as_u64());
    // What a connection is told of: its own numbers, and how much of its credit is used by what it has not read.
    let connection = |id: u32| {
        let connections = later["status"]["connections"].as_array().unwrap();
        connections.iter().find(|connection| connection["id"] == id).unwrap().clone()
    };
    let (sends, reads) = (connection(client.id()), connection(other.id()));
    assert_eq!((&sends["messages_in"], &sends["bytes_in"]), (&5.into(), &500.into()), "{sends}");
    assert_eq!((&sends["state"], &sends["credit_bytes"]), (&"connected".into(), &0.into()), "{sends}");
    // The name of the topic is told, too.
    assert_eq!((&reads["messages_out"], &reads["bytes_out"]), (&5.into(), &503.into()), "{reads}");
    assert!(reads["credit_used_bytes"].as_u64().unwrap() >= 500, "{reads}");
    assert!(reads["credit_bytes"].as_u64() > reads["credit_used_bytes"].as_u64(), "{reads}");
    drop(subscription);
}

#[test]
fn one_snapshot_is_taken_for_all_and_none_for_nobody() {
    let mut broker = Broker::start();
    // All have the same ones, to the last figure.
    let (mut one, mut other) = (Follower::of(&mut broker), Follower::of(&mut broker));
    let first = other.snapshot();
    let mut same = one.snapshot();
    while same != first {
        same = one.snapshot();
    }
    for _ in 0..2 {
        assert_eq!(one.snapshot(), other.snapshot());
    }
    one.leave();
    other.leave();
    // Who comes after a time without followers gets one that is taken for it, and not what was true before.
    let uptime = |broker: &mut Broker| broker.get("/health").json()["uptime_ms"].as_u64().unwrap();
    let then = uptime(&mut broker);
    wait_until("those who were there to be forgotten", || uptime(&mut broker) > then + 4000);
    let now = uptime(&mut broker);
    let taken = Follower::of(&mut broker).snapshot()["health"]["uptime_ms"].as_u64().unwrap();
    assert!(taken >= now, "taken at {taken}, asked for at {now}");
}

#[test]
fn a_slow_reader_loses_events_and_is_told_how_many_and_disturbs_nobody() {
    let mut broker = Broker::start_with(&[("health_server.unread_timeout_secs", "60")]);
    let (mut slow, mut quick) = (Follower::of(&mut broker), Follower::of(&mut broker));
    slow.snapshot();
    quick.snapshot();
    // Meanwhile nobody reads the slow one's socket. The kernel's buffers take up to 10 MB, so it is more than that.
    const CHANGES: u64 = 30_000;
    let name = ["x".repeat(60), "y".repeat(60), "z".repeat(60)].join(".");
    let topic = format!("$sys.breaker.{name}");
    let same = topic.clone();
    let client = broker.client();
    let _service = client.serve(&name).unwrap();
    let reads = std::thread::spawn(move || {
        let (mut heard, mut lost) = (0, 0);
        while heard + lost < CHANGES {
            let (name, data) = quick.next().expect("it goes on");
            match name.as_str() {
                "event" if data["topic"] == same => heard += 1,
                "lost" => lost += data["count"].as_u64().unwrap(),
                _ => {}
            }
        }
        (heard, lost)
    });
    for change in 0..CHANGES {
        let order = if change % 2 == 0 { BreakerOrder::Open } else { BreakerOrder::Close };
        client.set_breaker(&name, order, None).unwrap();
    }
    let (heard, lost) = reads.join().unwrap();
    // On a busy machine it may have been slow, too; in any case it knows.
    assert!(heard > 0 && heard + lost == CHANGES, "{heard} heard, {lost} lost");
    let (mut heard, mut lost) = (0, 0);
    while heard + lost < CHANGES {
        let (name, data) = slow.next().expect("it goes on");
        match name.as_str() {
            "event" if data["topic"] == topic => heard += 1,
            "lost" => lost += data["count"].as_u64().unwrap(),
            _ => {}
        }
    }
    support::probe::note(&format!("slow reader: {heard} heard, {lost} lost"));
    assert!(lost > 0, "{heard} of {CHANGES} heard");
    assert_eq!(heard + lost, CHANGES, "each was heard, or counted as lost");
}

#[test]
fn streams_are_limited_and_leave_the_server_to_the_probes() {
    let mut broker = Broker::start_with(&[("health_server.max_streams", "3")]);
    let mut followers: Vec<_> = (0..3).map(|_| Follower::of(&mut broker)).collect();
    for follower in &mut followers {
        follower.snapshot();
    }
    let refused = broker.get("/events");
    assert_eq!((refused.code, refused.header("content-type")), (503, Some("text/plain; charset=utf-8")));
    assert!(refused.body.contains("health_server.max_streams"), "{refused:?}");
    for path in ["/live", "/ready", "/health", "/api/status", "/metrics", "/"] {
        assert_eq!(broker.get(path).code, 200, "{path}");
    }
    assert_eq!(broker.ask("HEAD", "/events", "Host: localhost\r\n").code, 200, "who looks at the head takes no place");
    // A place is free again when somebody goes.
    drop(followers.pop());
    let mut next = None;
    wait_until("a free place", || {
        let follower = Follower::asks(&mut broker, "Host: localhost\r\n");
        let is_in = follower.head.code == 200;
        next = is_in.then_some(follower);
        is_in
    });
    next.unwrap().snapshot();
    let mut none = Broker::start_with(&[("health_server.max_streams", "0")]);
    assert_eq!(none.get("/events").code, 503);
}

#[test]
fn who_may_not_read_the_rest_may_not_follow() {
    let file = |folder: &std::path::Path| {
        let token = folder.join("token");
        std::fs::write(&token, "correct-horse").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!("[health_server]\ntoken_file = {token:?}\n")
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    for headers in ["", "Authorization: Bearer incorrect-horse\r\n"] {
        let refused = broker.ask("GET", "/events", &format!("Host: localhost\r\n{headers}"));
        assert_eq!((refused.code, refused.header("www-authenticate")), (401, Some("Bearer")), "{headers}");
    }
    let foreign = broker.ask("GET", "/events", "Host: evil.example\r\nAuthorization: Bearer correct-horse\r\n");
    assert_eq!(foreign.code, 421);
    let headers = "Host: localhost\r\nAuthorization: Bearer correct-horse\r\n";
    Follower::asks(&mut broker, headers).snapshot();
    let head = broker.ask("HEAD", "/events", headers);
    assert_eq!((head.code, head.header("content-type"), head.body.as_str()), (200, Some("text/event-stream"), ""));
    // The page itself is the same for everybody, and has no secret.
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/script.js", "text/javascript; charset=utf-8"),
    ] {
        let page = broker.get(path);
        assert_eq!((page.code, page.header("content-type")), (200, Some(kind)), "{path}");
        assert!(!page.body.contains("horse"), "{path}");
        let policy = page.header("content-security-policy").unwrap();
        let parts = ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"];
        assert!(parts.iter().all(|part| policy.contains(part)) && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(broker.ask("GET", path, "Host: evil.example\r\n").code, 421, "{path}");
        assert_eq!(broker.ask("POST", path, "Host: localhost\r\nContent-Length: 0\r\n").code, 405, "{path}");
    }
}

#[test]
fn streams_end_with_a_last_word_and_hold_nobody_up() {
    let mut broker = Broker::start_with(&[("ipc.drain_timeout_ms", "600000")]);
    let (asking, answering) = (broker.client(), broker.client());
    let mut service = answering.serve("slow").unwrap();
    let request = std::thread::spawn(move || asking.request("slow", "hi"));
    let under_way = service.next().unwrap().unwrap();
    let follower = Follower::of(&mut broker);
    let counts = counts_snapshots(follower);
    // One that does not read, too.
    let deaf = Follower::of(&mut broker);
    broker.process().signal("TERM");
    let (_, last) = counts.join().unwrap();
    assert_eq!(last, "end");
    let refused = broker.get("/events");
    assert_eq!((refused.code, refused.body.as_str()), (503, "the broker is shutting down\n"));
    under_way.reply("ho").unwrap();
    assert_eq!(request.join().unwrap().unwrap(), b"ho");
    assert_eq!(broker.process().code(), 0);
    drop(deaf);
    // Also when nothing is under way: the last word is sent before the process ends.
    let mut broker = Broker::start();
    let mut follower = Follower::of(&mut broker);
    follower.snapshot();
    broker.process().signal("TERM");
    let end = follower.until("end", |_| true);
    assert_eq!(end["reason"], "the broker is shutting down");
    assert_eq!(follower.next(), None);
    assert_eq!(broker.process().code(), 0);
}
