//! The session roster: a broker that follows a killed one takes no publish up before the subscriptions are in force
//! again.
//!
//!     LAPCE_IPC_KILL_SECONDS=300 cargo test --release --test roster killing -- --nocapture

mod support;

use lapce_ipc::client::{Client, Message, RequestOptions};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};
use support::probe::note;
use support::role::{Child, heard, role, tell};
use support::{Broker, DEADLINE, wait_until};

/// The number of the last message.
const END: u64 = u64::MAX;
/// Between two messages of a publisher: two publishers make 2,000 in a second.
const PACE: Duration = Duration::from_millis(1);
const TOPICS: [&str; 2] = ["ledger.a", "ledger.b"];

fn connect(broker: &Broker) -> Client {
    broker.builder().connect().expect("the broker takes us")
}

/// The time of day in nanoseconds, the same for all processes.
fn clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_nanos() as u64
}

/// Publishes numbers with the time, until the parent says that it is over.
fn publish(topic: &str) {
    let client = Client::builder().connect().expect("a broker");
    let publisher = client.publisher(topic).expect("a topic");
    let payload = |number: u64| [number.to_le_bytes(), clock().to_le_bytes()].concat();
    let (over, is_over) = mpsc::sync_channel(1);
    tell("ready");
    assert_eq!(heard(), "go");
    let (began, mut number) = (Instant::now(), 0);
    std::thread::spawn(move || {
        heard();
        let _ = over.send(());
    });
    // On time also after a pause: what a killed broker kept it from comes all at once.
    while is_over.recv_timeout((PACE * number as u32).saturating_sub(began.elapsed())) == Err(RecvTimeoutError::Timeout)
    {
        publisher.publish(payload(number)).expect("it is on its way");
        number += 1;
    }
    client.flush().expect("all is routed");
    publisher.publish(payload(END)).expect("it is on its way");
    client.flush().expect("all is routed");
    tell(&format!("sent {number}"));
    rest();
}

/// A child ends with its parent.
fn rest() -> ! {
    loop {
        std::thread::park();
    }
}

/// A pause, so that there is a rate.
fn pause(time: Duration) {
    let (_never, at_all) = mpsc::sync_channel::<()>(1);
    assert_eq!(at_all.recv_timeout(time), Err(RecvTimeoutError::Timeout));
}

/// What a subscriber has got.
#[derive(Default)]
struct Ledger {
    next: [u64; TOPICS.len()],
    ended: [bool; TOPICS.len()],
    got: u64,
    lost: u64,
    doubled: u64,
}

impl Ledger {
    fn take(&mut self, message: &Message) {
        let of = TOPICS.iter().position(|topic| *topic == message.topic()).expect("one of ours");
        match u64::from_le_bytes(message.payload()[..8].try_into().expect("a number")) {
            END => self.ended[of] = true,
            number if number < self.next[of] => self.doubled += 1,
            number => {
                self.lost += number - self.next[of];
                self.next[of] = number + 1;
                self.got += 1;
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.iter().all(|ended| *ended)
    }
}

/// Subscribes, and tells at the end what came.
fn subscribe() {
    let client = Client::builder().connect().expect("a broker");
    let mut messages = client.subscribe("ledger.*").expect("a subscription");
    tell("ready");
    let mut ledger = Ledger::default();
    while !ledger.has_ended() {
        ledger.take(&messages.next().expect("a message").expect("it goes on"));
    }
    tell(&format!("got {} {} {}", ledger.got, ledger.lost, ledger.doubled));
    rest();
}

/// Serves requests by an echo, and streams by twenty chunks.
fn serve() {
    let client = Client::builder().connect().expect("a broker");
    let mut service = client.serve("work").expect("an offer");
    tell("ready");
    while let Some(Ok(mut request)) = service.next() {
        if request.wants_stream() {
            // Whoever asked may be gone by now.
            for _ in 0..20 {
                let _ = request.chunk("chunk");
                pause(Duration::from_millis(10));
            }
            let _ = request.finish();
        } else {
            let _ = request.reply("done");
        }
    }
}

#[test]
fn child() {
    match role().as_deref() {
        None => {}
        Some("subscriber") => subscribe(),
        Some("responder") => serve(),
        Some(topic) => publish(topic),
    }
}

fn outcome(error: &lapce_ipc::client::Error) -> &'static str {
    match error {
        error if error.is_no_responders() => "no responders",
        error if error.is_disconnected() => "disconnected",
        error => panic!("{error}"),
    }
}

/// Asks until it is over. Returns how often what came of it.
fn ask(client: &Client, streams: bool, is_over: &AtomicBool) -> BTreeMap<&'static str, u64> {
    let options = || RequestOptions { timeout: Some(DEADLINE), ..RequestOptions::default() };
    let mut outcomes = BTreeMap::new();
    while !is_over.load(Ordering::Relaxed) {
        let result = if streams {
            client.request_stream_with("work", "", options()).and_then(|mut stream| {
                let ends = stream.by_ref().find_map(Result::err);
                assert!(stream.next().is_none(), "one outcome");
                ends.map_or(Ok(()), Err)
            })
        } else {
            client.request_with("work", "", options()).map(drop)
        };
        *outcomes.entry(result.as_ref().map_or_else(outcome, |()| "reply")).or_insert(0) += 1;
        pause(Duration::from_millis(1));
    }
    outcomes
}

#[test]
fn killing_the_broker_again_and_again_loses_and_doubles_nothing() {
    let seconds = std::env::var("LAPCE_IPC_KILL_SECONDS").ok().map(|text| text.parse::<u32>().expect("seconds"));
    let (kills, between) = seconds.map_or((4, Duration::from_millis(1300)), |s| (s / 5, Duration::from_secs(5)));
    // What the requests meet is no failure of the service.
    let mut broker = Broker::start_with(&[("circuit_breaker.failure_threshold", "100000")]);
    broker.without_limit();
    let mut publishers = TOPICS.map(|topic| Child::ready(&broker, topic));
    let mut subscribers = [(); 2].map(|()| Child::ready(&broker, "subscriber"));
    let _responder = Child::ready(&broker, "responder");
    let (listening, asking, streaming) = (connect(&broker), connect(&broker), connect(&broker));
    let mut messages = listening.subscribe("ledger.*").expect("a subscription");
    let (is_over, newest) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut recoveries = Vec::new();
    std::thread::scope(|scope| {
        let (is_over, newest) = (&is_over, &newest);
        let requester = scope.spawn(move || ask(&asking, false, is_over));
        let streams = scope.spawn(move || ask(&streaming, true, is_over));
        let reader = scope.spawn(move || {
            let mut ledger = Ledger::default();
            while !ledger.has_ended() {
                let message = messages.next_timeout(DEADLINE).expect("the subscription").expect("a message in time");
                ledger.take(&message);
                let sent = u64::from_le_bytes(message.payload()[8..].try_into().expect("a time"));
                newest.fetch_max(sent, Ordering::Relaxed);
            }
            ledger
        });
        publishers.iter_mut().for_each(|publisher| publisher.say("go"));
        for _ in 0..kills {
            pause(between);
            let killed = clock();
            broker.kill();
            broker.start_again();
            broker.without_limit();
            wait_until("a message of after the kill", || {
                while newest.load(Ordering::Relaxed) < killed && clock() < killed + 500_000_000 {
                    std::thread::yield_now();
                }
                newest.load(Ordering::Relaxed) >= killed
            });
            recoveries.push((clock() - killed) as f64 / 1e6);
        }
        pause(Duration::from_millis(300));
        is_over.store(true, Ordering::Relaxed);
        publishers.iter_mut().for_each(|publisher| publisher.say("over"));
        let sent: u64 = publishers.iter_mut().map(|p| p.hears("sent").parse::<u64>().expect("a number")).sum();
        let ledger = reader.join().expect("the reader");
        let mut all = vec![(ledger.got, ledger.lost, ledger.doubled)];
        for subscriber in &mut subscribers {
            let said = subscriber.hears("got");
            let n: Vec<u64> = said.split(' ').map(|n| n.parse().expect("a number")).collect();
            all.push((n[0], n[1], n[2]));
        }
        let (requests, streams) = (requester.join().expect("it ends"), streams.join().expect("it ends"));
        recoveries.sort_by(f64::total_cmp);
        let (median, longest) = (recoveries[recoveries.len() / 2], recoveries[recoveries.len() - 1]);
        note(&format!(
            "{kills} kills, {sent} publishes, (got, lost, doubled) {all:?}, requests {requests:?}, \
             streams {streams:?}, \
             recovery in ms: median {median:.1}, longest {longest:.1}"
        ));
        assert!(all.iter().all(|each| *each == (sent, 0, 0)), "{all:?} of {sent}");
        // The criterion is for a build as people run it; a debug build on a busy machine only has to come back.
        assert!(median < 100.0 || cfg!(debug_assertions), "{recoveries:?}");
    });
    assert_eq!(broker.counter("violations"), 0);
}

/// A broker that is killed with a subscriber in another process, and published to before that one is back.
fn killed(grace_ms: &str, subscriber: impl FnOnce(&Broker) -> Child) -> (Broker, Child, Client) {
    let mut broker = Broker::start_with(&[("restart.restart_grace_ms", grace_ms)]);
    let (child, client) = (subscriber(&broker), connect(&broker));
    client.publish(TOPICS[0], numbered(0)).expect("it is on its way");
    client.flush().expect("it is routed");
    broker.kill();
    (broker, child, client)
}

fn numbered(number: u64) -> Vec<u8> {
    [number.to_le_bytes(), clock().to_le_bytes()].concat()
}

/// Publishes at the next broker, and returns how long it took until that was routed.
fn routed(client: &Client, number: u64) -> Duration {
    let began = Instant::now();
    client.publish(TOPICS[0], numbered(number)).expect("it is on its way");
    client.flush().expect("it is routed");
    began.elapsed()
}

fn awaited_sessions(broker: &Broker) -> u64 {
    let status = broker.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    status["awaited_sessions"].as_u64().expect("a number")
}

#[test]
fn a_subscriber_that_comes_back_after_the_publisher_misses_nothing() {
    let (mut broker, mut late, client) = killed("30000", |broker| {
        let late = Child::ready(broker, "subscriber");
        late.stop();
        late
    });
    broker.start_again();
    let mut early = client.subscribe("ledger.*").expect("a subscription");
    std::thread::scope(|scope| {
        scope.spawn(|| routed(&client, 1));
        wait_until("the broker to wait", || awaited_sessions(&broker) == 1);
        let status = broker.run(&["status"]);
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(text.contains("publishes wait for 1 sessions of the last broker"), "{text}");
        assert!(early.try_next().expect("the subscription").is_none(), "not before the other is back");
        late.go_on();
        assert!(early.next_timeout(DEADLINE).expect("the subscription").is_some());
    });
    assert_eq!(awaited_sessions(&broker), 0);
    for topic in TOPICS {
        client.publish(topic, numbered(END)).expect("it is on its way");
    }
    client.flush().expect("all is routed");
    assert_eq!(late.hears("got"), "2 0 0");
    let log = broker.process().stderr();
    assert!(log.contains("publishing held back for sessions of the last broker sessions=1"), "{log}");
    broker.process().wait_for("publishing enabled reason=all_back");
}

#[test]
fn a_subscriber_that_is_gone_for_good_delays_no_publish() {
    let (mut broker, mut gone, client) = killed("30000", |broker| Child::ready(broker, "subscriber"));
    gone.kill();
    broker.start_again();
    routed(&client, 1);
    let log = broker.process().stderr();
    assert!(!log.contains("publishes wait"), "{log}");
}

#[test]
fn a_subscriber_that_dies_while_publishes_wait_for_it_ends_the_wait() {
    let (mut broker, mut stopped, client) = killed("30000", |broker| {
        let stopped = Child::ready(broker, "subscriber");
        stopped.stop();
        stopped
    });
    broker.start_again();
    wait_until("the broker to wait", || awaited_sessions(&broker) == 1);
    stopped.kill();
    routed(&client, 1);
    broker.process().wait_for("publishing enabled reason=all_back");
}

#[test]
fn a_stopped_subscriber_delays_the_others_by_the_grace_and_only_once() {
    let (mut broker, stopped, client) = killed("3000", |broker| {
        let stopped = Child::ready(broker, "subscriber");
        stopped.stop();
        stopped
    });
    let began = Instant::now();
    broker.start_again();
    // Requests do not wait.
    assert_eq!(client.request("echo", "hi").expect("an answer"), b"hi");
    let log = broker.process().stderr();
    assert!(!log.contains("publishing enabled"), "{log}");
    routed(&client, 1);
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    broker.process().wait_for("publishing enabled reason=grace_over missing=1");
    broker.kill();
    broker.start_again();
    routed(&client, 2);
    assert!(!broker.process().stderr().contains("publishes wait"));
    drop(stopped);
}

/// The broker waits for a subscriber that is stopped; once it goes on, it gets message 1 as well as message 0.
fn gets_all(broker: &Broker, late: &mut Child, client: &Client) {
    std::thread::scope(|scope| {
        scope.spawn(|| routed(client, 1));
        wait_until("the broker to wait", || awaited_sessions(broker) == 1);
        late.go_on();
    });
    for topic in TOPICS {
        client.publish(topic, numbered(END)).expect("it is on its way");
    }
    client.flush().expect("all is routed");
    assert_eq!(late.hears("got"), "2 0 0");
}

#[test]
fn a_broker_that_is_killed_while_it_waits_leaves_the_wait_to_the_next() {
    let (mut broker, mut late, client) = killed("30000", |broker| {
        let late = Child::ready(broker, "subscriber");
        late.stop();
        late
    });
    for _ in 0..2 {
        broker.start_again();
        wait_until("the broker to wait", || awaited_sessions(&broker) == 1);
        broker.kill();
    }
    broker.start_again();
    gets_all(&broker, &mut late, &client);
}

#[test]
fn a_restart_in_order_makes_the_same_promise() {
    let mut broker = Broker::start_with(&[("restart.restart_grace_ms", "30000")]);
    let (mut late, client) = (Child::ready(&broker, "subscriber"), connect(&broker));
    client.publish(TOPICS[0], numbered(0)).expect("it is on its way");
    client.flush().expect("it is routed");
    late.stop();
    broker.end("TERM");
    broker.start_again();
    gets_all(&broker, &mut late, &client);
    // With none to wait for, no file is left.
    let roster = broker.folder().join("ipc.sock.sessions");
    assert!(roster.exists());
    late.kill();
    wait_until("the session to end", || client.status().expect("a status").subscriptions == 0);
    drop(client);
    broker.end("TERM");
    assert!(!roster.exists());
}

#[test]
fn a_forged_roster_does_no_harm_and_a_link_is_not_followed() {
    let mut broker = Broker::start();
    let client = connect(&broker);
    let roster = broker.folder().join("ipc.sock.sessions");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let header = format!("lapce-ipc sessions 1 {boot}");
    let ours = std::process::id();
    for text in [
        "garbage".to_owned(),
        "\0".repeat(3 << 20),
        format!("{header}\u{1b}[31m\n+ x\n- 1 2 3\n"),
        // Processes that never were, and one that lives and never comes: the grace.
        header.clone() + &(0..5000).map(|n| format!("+ 0 {} 1 {n}\n", 0x7fff_0000 + n)).collect::<String>(),
        format!("{header}+ 0 {ours} 0 1\n"),
    ] {
        broker.kill();
        std::fs::write(&roster, text).expect("a file");
        std::fs::set_permissions(&roster, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
        broker.start_again();
        routed(&client, 1);
    }
    broker.kill();
    let target = broker.folder().join("precious");
    let text = format!("{header}+ 0 {ours} 0 1\n");
    std::fs::write(&target, &text).expect("a file");
    std::fs::remove_file(&roster).expect("no file");
    std::os::unix::fs::symlink(&target, &roster).expect("a link");
    broker.start_again();
    let _messages = client.subscribe("t").expect("a subscription");
    let log = broker.process().stderr();
    assert!(log.contains("cannot read the session roster") && !log.contains("publishes wait"), "{log}");
    assert_eq!(std::fs::read_to_string(&target).expect("a file"), text);
    assert!(std::fs::symlink_metadata(&roster).expect("a file").is_file(), "the link was replaced");
}
