//! Broken and hostile peers against a real broker. In each test the offender gets a clear error, the log has a line,
//! and a client that behaves, and works all the while, notices nothing.

#[path = "support/raw.rs"]
mod raw;
mod support;

use lapce_ipc::client::{Client, DeliveryPolicy, WaitStrategy};
use lapce_ipc::wire::control::{ClosingCode, FailedCode, InternKind, RefusedCode};
use lapce_ipc::wire::record::{Flags, HEADER_WORDS, Header, Kind, Outcome};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Name, Pattern, Topic};
use raw::{Control, Lane, Raw, hello, publish, request, response, word, words};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;
use support::{Broker, DEADLINE, IPC_SERVER_MAIN, LAPCE_IPC, Process, command, wait_until};

const WHOLE: Flags = Flags::WHOLE;
const FIRST: Flags = Flags::FIRST;
const LAST: Flags = Flags::LAST;
const MIDDLE: Flags = Flags(0);

// ------------------------------------------------------------------------------------------------ the good neighbour

/// Two clients that behave: one publishes, subscribes and requests, the other serves. They count, and every message,
/// answer and number is checked.
struct Good {
    rounds: Arc<AtomicU64>,
    stop: [mpsc::SyncSender<()>; 2],
    asks: JoinHandle<u64>,
    serves: JoinHandle<u64>,
}

impl Good {
    fn start(socket: &Path) -> Good {
        let connect = |name: &str| {
            let builder = Client::builder().socket(socket).wait(WaitStrategy::Block).name(name).expect("a name");
            builder.connect().expect("the broker takes us")
        };
        let rounds = Arc::new(AtomicU64::new(0));
        let (stop_asking, stopped_asking) = mpsc::sync_channel(1);
        let (stop_serving, stopped_serving) = mpsc::sync_channel(1);
        let responder = connect("good-responder");
        let mut service = responder.serve("reverse").expect("a service");
        let serves = std::thread::spawn(move || {
            let mut served = 0;
            while stopped_serving.try_recv() == Err(TryRecvError::Empty) {
                let asked = service.next_timeout(Duration::from_millis(50)).expect("the responder is left in peace");
                if let Some(request) = asked {
                    let reversed: Vec<u8> = request.payload().iter().rev().copied().collect();
                    request.reply(reversed).expect("the reply is taken");
                    served += 1;
                }
            }
            served
        });
        let (client, counted) = (connect("good"), rounds.clone());
        let asks = std::thread::spawn(move || {
            let mut news = client.subscribe("good.>").expect("a subscription");
            let mut round = 0u64;
            // A breath between two rounds leaves the machine to the others.
            while stopped_asking.recv_timeout(Duration::from_millis(1)) == Err(RecvTimeoutError::Timeout) {
                let mut payload = round.to_le_bytes().to_vec();
                payload.resize(if round % 8 == 7 { 5000 } else { 8 + round as usize % 200 }, round as u8);
                client.publish("good.news", &payload).expect("the publish is taken");
                let message = news.next_timeout(DEADLINE).expect("the subscription stands").expect("the message comes");
                assert_eq!((message.sequence(), message.publisher()), (round + 1, client.id()));
                assert_eq!(message.payload(), payload);
                assert_eq!(client.request("echo", &payload).expect("the echo"), payload);
                let mut reversed = client.request("reverse", &payload).expect("the other's reply");
                reversed.reverse();
                assert_eq!(reversed, payload);
                round += 1;
                counted.store(round, Ordering::Relaxed);
            }
            client.flush().expect("the flush");
            assert!(news.try_next().expect("the subscription stands").is_none(), "nothing came twice");
            assert_eq!(news.dropped(), 0);
            round
        });
        Good { rounds, stop: [stop_asking, stop_serving], asks, serves }
    }

    /// Waits until the neighbour has done two whole rounds from now on.
    #[track_caller]
    fn goes_on(&self) {
        let now = self.rounds.load(Ordering::Relaxed);
        wait_until("two rounds of the good client", || {
            let has_failed = self.asks.is_finished() || self.serves.is_finished();
            assert!(!has_failed, "the good client has failed, see above");
            self.rounds.load(Ordering::Relaxed) >= now + 2
        });
    }

    /// Ends it, and checks what it has counted.
    #[track_caller]
    fn finish(self) {
        self.goes_on();
        let Good { stop: [asking, serving], asks, serves, .. } = self;
        asking.send(()).expect("it still asks");
        let asked = asks.join().expect("the good client noticed nothing");
        serving.send(()).expect("it still serves");
        assert_eq!(serves.join().expect("the good responder noticed nothing"), asked);
    }
}

/// A broker, with its good neighbour at work.
struct Scene {
    broker: Broker,
    good: Good,
}

impl Scene {
    fn new(keys: &[(&str, &str)]) -> Scene {
        // The offenders are threads of this process, which lives: without this their sessions would wait for them.
        let broker = Broker::start_with(&[keys, &[("restart.resume_window_ms", "0")]].concat());
        let good = Good::start(&broker.socket());
        Scene { broker, good }
    }

    fn raw(&self, name: &str) -> Raw {
        Raw::connect(&self.broker.socket(), name)
    }

    fn control(&self) -> Control {
        Control::connect(&self.broker.socket())
    }

    /// Waits for a line of the log that has all of these texts.
    #[track_caller]
    fn logged(&mut self, texts: &[&str]) {
        let process = self.broker.process();
        wait_until(&format!("a log line with {texts:?}"), || {
            assert!(!process.has_ended(), "the broker has ended: {}", process.stderr());
            process.stderr().lines().any(|line| texts.iter().all(|text| line.contains(text)))
        });
    }

    /// The offender `name` is told `text`, so is the log, the violation is counted, and the neighbour goes on.
    #[track_caller]
    fn ended(&mut self, offender: &mut Control, name: &str, code: ClosingCode, text: &str) {
        let (told, message) = offender.closing();
        assert_eq!((told, message.contains(text)), (code, true), "{name}: {message:?} should say {text:?}");
        let (name, code, reason) = (format!("name={name} "), format!("code={code:?}"), format!("reason={message:?}"));
        self.logged(&["WARN", "connection ended", &name, &code, &reason]);
        self.good.goes_on();
    }

    /// The offender is refused with `text`, so is the log, and the neighbour goes on.
    #[track_caller]
    fn refused(&mut self, offender: &mut Control, code: RefusedCode, text: &str) {
        let (told, message) = offender.refused();
        assert_eq!((told, message.contains(text)), (code, true), "{message:?} should say {text:?}");
        self.logged(&["WARN", "connection refused", &format!("reason={message:?}")]);
        self.good.goes_on();
    }

    /// Nobody else's traffic, and no connection, is left.
    #[track_caller]
    fn finish(mut self) {
        self.good.finish();
        let client = self.broker.client();
        wait_until("all offenders to be gone", || client.status().expect("a status").connections.len() == 1);
        drop(client);
        let log = self.broker.process().stderr();
        assert!(!log.contains("panicked") && !log.contains("Z ERROR "), "{log}");
        self.broker.process().signal("TERM");
        assert_eq!(self.broker.process().code(), 0, "{log}");
    }
}

#[track_caller]
fn intern(raw: &mut Raw, kind: InternKind, name: &str) -> u32 {
    let name = Topic::parse(name).expect("a name");
    match raw.ask(|serial| ClientFrame::Intern { serial, kind, name }) {
        BrokerFrame::Interned { id, .. } => id,
        other => panic!("not interned but {other:?}"),
    }
}

#[track_caller]
fn subscribe(raw: &mut Raw, pattern: &str, policy: DeliveryPolicy) -> u32 {
    let pattern = Pattern::parse(pattern).expect("a pattern");
    match raw.ask(|serial| ClientFrame::Subscribe { serial, pattern, policy, credit: 0 }) {
        BrokerFrame::Subscribed { subscription, .. } => subscription,
        other => panic!("not subscribed but {other:?}"),
    }
}

#[track_caller]
fn serve(raw: &mut Raw, service: &str) {
    let service = Name::parse(service).expect("a name");
    let answer = raw.ask(|serial| ClientFrame::Serve { serial, service, max_in_flight: 0 });
    assert!(matches!(answer, BrokerFrame::Serving { .. }), "{answer:?}");
}

// ----------------------------------------------------------------------------------------------------------- records

/// A record with anything in its header.
fn forged(kind: u8, len: u32) -> [u64; HEADER_WORDS] {
    let mut words = Header { flags: WHOLE, ..Header::new(Kind::Publish) }.to_words();
    words[0] = words[0] & !0xff_ffff_ffff | u64::from(kind) << 32 | u64::from(len);
    words
}

#[test]
fn a_record_that_breaks_the_rules_ends_its_connection() {
    use Lane::{Bulk, Express};
    type Attack = fn(&mut Raw);
    let attacks: &[(&str, &str, Attack)] = &[
        ("longer-than-a-slot", "record of 1025 bytes where at most 1024 are allowed", |raw| {
            raw.place(Bulk, &forged(1, 1025), &[]);
        }),
        ("longest-length", "record of 4294967295 bytes where at most 1024 are allowed", |raw| {
            raw.place(Express, &forged(8, u32::MAX), &[]);
        }),
        ("behind-the-window", "record of 9 cells at cell 8 reaches behind the window of 9 cells", |raw| {
            for _ in 0..8 {
                raw.push(Express, &Header { id: u32::MAX, ..Header::new(Kind::Credit) }, &[]);
            }
            raw.place(Express, &forged(8, 1000), &[]);
        }),
        ("unknown-kind", "unknown record kind 200", |raw| {
            raw.place(Bulk, &forged(200, 0), &[]);
        }),
        ("kind-zero", "unknown record kind 0", |raw| {
            raw.place(Express, &forged(0, 0), &[]);
        }),
        ("request-in-bulk", "record of kind Request in the bulk lane", |raw| {
            raw.push(Bulk, &request(0, 0, 0, WHOLE), &[]);
        }),
        ("publish-in-express", "record of kind Publish in the express lane", |raw| {
            raw.push(Express, &publish(0, 0, WHOLE), &[]);
        }),
        ("deliver-in-bulk", "record of kind Deliver in the bulk lane", |raw| {
            raw.push(Bulk, &Header::new(Kind::Deliver), &[]);
        }),
        ("evicted-in-express", "record of kind Evicted in the express lane", |raw| {
            raw.push(Express, &Header::new(Kind::Evicted), &[]);
        }),
        ("topic-never-given", "publish to topic number 7, which was never given", |raw| {
            raw.push(Bulk, &publish(7, 2, WHOLE), b"hi");
        }),
        ("topic-of-another", "publish to topic number 4294967295, which was never given", |raw| {
            intern(raw, InternKind::Topic, "bad.own");
            raw.push(Bulk, &publish(u32::MAX, 2, WHOLE), b"hi");
        }),
        ("first-within", "a publish began within another", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 2000, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 2000, FIRST), &[0; 1000]);
        }),
        ("never-began", "a publish goes on that never began", |raw| {
            raw.push(Bulk, &publish(0, 10, LAST), &[0; 10]);
        }),
        ("first-too-long", "publish of 5 bytes begins with a record of 10", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 5, WHOLE), &[0; 10]);
        }),
        ("whole-and-short", "publish of 100 bytes begins with a record of 10", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 100, WHOLE), &[0; 10]);
        }),
        ("complete-without-last", "publish of 10 bytes begins with a record of 10", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 10, FIRST), &[0; 10]);
        }),
        ("too-large", "publish of 10485761 bytes begins with a record of 1000", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 10_485_761, FIRST), &[0; 1000]);
        }),
        ("further-too-long", "publish with 500 bytes to come goes on with a record of 501", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, LAST), &[0; 501]);
        }),
        ("further-empty", "publish with 500 bytes to come goes on with a record of 0", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, MIDDLE), &[]);
        }),
        ("last-too-early", "publish with 500 bytes to come goes on with a record of 499", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, LAST), &[0; 499]);
        }),
        ("no-last", "publish with 500 bytes to come goes on with a record of 500", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(topic, 1500, MIDDLE), &[0; 500]);
        }),
        ("further-of-another-topic", "publish with 500 bytes to come goes on with a record of 500", |raw| {
            let topic = intern(raw, InternKind::Topic, "bad.news");
            let other = intern(raw, InternKind::Topic, "bad.other");
            raw.push(Bulk, &publish(topic, 1500, FIRST), &[0; 1000]);
            raw.push(Bulk, &publish(other, 1500, LAST), &[0; 500]);
        }),
        ("place-out-of-range", "request in place 4096 of 4096", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(4096, service, 0, WHOLE), &[]);
        }),
        ("place-in-use", "request in place 3, which is in use", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(3, service, 0, WHOLE), &[]);
            raw.push(Express, &request(3, service, 0, WHOLE), &[]);
        }),
        ("service-never-given", "request to service number 1, never given", |raw| {
            intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, 1, 0, WHOLE), &[]);
        }),
        ("request-too-long", "request of 5 bytes begins with a record of 10", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, service, 5, WHOLE), &[0; 10]);
        }),
        ("body-too-long", "request with 10 bytes to come goes on with a record of 11", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, service, 20, FIRST), &[0; 10]);
            raw.push(Express, &request(0, service, 20, LAST), &[0; 11]);
        }),
        ("body-beyond-credit", "a request's body was sent beyond its credit", |raw| {
            let service = intern(raw, InternKind::Service, "hold");
            raw.push(Express, &request(0, service, 1000, FIRST), &[0; 1]);
            for _ in 0..raw.limits.stream_credit_cells {
                raw.push(Express, &request(0, service, 1000, MIDDLE), &[0; 1]);
            }
        }),
        ("answer-too-long", "answer with 5 bytes to come has a record of 10 (message of 5)", |raw| {
            let call = called(raw, "own-too-long");
            raw.push(Express, &response(call, 5, WHOLE), &[0; 10]);
        }),
        ("answer-first-within", "answer with 20 bytes to come has a record of 10 (message of 20)", |raw| {
            let call = called(raw, "own-first-within");
            raw.push(Express, &response(call, 20, FIRST), &[0; 10]);
            raw.push(Express, &response(call, 20, FIRST), &[0; 10]);
        }),
        ("answer-never-began", "answer with 0 bytes to come has a record of 10 (message of 20)", |raw| {
            let call = called(raw, "own-never-began");
            raw.push(Express, &response(call, 20, LAST), &[0; 10]);
        }),
        ("answer-last-missing", "answer with 10 bytes to come has a record of 10 (message of 10)", |raw| {
            let call = called(raw, "own-last-missing");
            raw.push(Express, &response(call, 10, FIRST), &[0; 10]);
        }),
        ("answer-too-large", "answer with 10485761 bytes to come has a record of 10 (message of 10485761)", |raw| {
            let call = called(raw, "own-too-large");
            raw.push(Express, &response(call, 10_485_761, FIRST), &[0; 10]);
        }),
        ("answer-beyond-credit", "an answer was sent beyond its credit", |raw| {
            let call = called(raw, "own-beyond-credit");
            for _ in 0..=raw.limits.stream_credit_cells {
                raw.push(Express, &response(call, 0, WHOLE), &[]);
                if raw.take().is_some() {
                    // Its own answers; nobody need read them.
                }
            }
        }),
    ];
    // Little credit, so that it is used up soon.
    let mut scene = Scene::new(&[("delivery.stream_credit_bytes", "8192")]);
    let mut holder = scene.raw("holder");
    serve(&mut holder, "hold");
    for (name, text, attack) in attacks {
        let mut raw = scene.raw(name);
        attack(&mut raw);
        scene.ended(&mut raw.control, name, ClosingCode::ProtocolViolation, text);
    }
    assert_eq!(scene.broker.counter("violations"), attacks.len() as u64);
    assert!(!holder.has_word(), "whose service was asked stays");
    drop(holder);
    scene.finish();
}

/// Serves `service`, asks it a question, and answers the call's number: requester and responder at once.
#[track_caller]
fn called(raw: &mut Raw, service: &str) -> u64 {
    serve(raw, service);
    let number = intern(raw, InternKind::Service, service);
    raw.push(Lane::Express, &request(0, number, 0, WHOLE), &[]);
    let (header, _) = raw.receive();
    assert_eq!(header.kind, Kind::Call);
    header.seq
}

#[test]
fn what_comes_late_or_names_what_is_not_ones_own_is_ignored() {
    let scene = Scene::new(&[]);
    let (mut raw, mut other) = (scene.raw("late"), scene.raw("other"));
    let feed = subscribe(&mut other, "feed.>", DeliveryPolicy::DropNewest);
    let call = called(&mut other, "theirs");

    // Responses to calls that never were, or are another's; credit for what is another's, or nobody's.
    for seq in [0, u64::MAX, call ^ 1 << 32, call] {
        raw.push(Lane::Express, &response(seq, 3, WHOLE.with(Flags::END)), b"no!");
        raw.push(Lane::Express, &Header { seq, arg: u32::MAX, ..Header::new(Kind::BodyCredit) }, &[]);
    }
    for id in [feed, 0, u32::MAX] {
        raw.push(Lane::Express, &Header { id, arg: u32::MAX, ..Header::new(Kind::Credit) }, &[]);
        raw.push(Lane::Express, &Header { id, id2: 1, ..Header::new(Kind::Cancel) }, &[]);
        raw.push(Lane::Express, &Header { id, id2: 1, arg: 9, ..Header::new(Kind::ResponseCredit) }, &[]);
        raw.push(Lane::Express, &request(id, 0, 10, LAST), &[0; 5]);
    }
    // A record where no window is lent: nobody looks there.
    let tag = raw.geometry.nonce_bulk;
    raw.write_record(raw.extension(0), tag, &forged(200, 0), &[]);
    raw.ring();
    // A record whose tag is not the next: as if it were not there.
    for wrong in [0, tag.wrapping_sub(1), tag.wrapping_add(1), u64::MAX] {
        raw.write_record(5 * raw::CELL, wrong, &forged(200, 0), &[]);
        raw.ring();
    }
    raw.flush(1);
    assert_eq!(scene.broker.counter("late"), 4 + 3, "responses and bodies");

    // Its owner has the call still, and answers it.
    other.push(Lane::Express, &response(call, 3, WHOLE.with(Flags::END)), b"yes");
    let (header, payload) = other.receive();
    assert_eq!((header.kind, &payload[..]), (Kind::Answer, &b"yes"[..]));
    other.flush(2);
    assert_eq!(scene.broker.counter("violations"), 0);
    scene.good.goes_on();
    drop((raw, other));
    scene.finish();
}

#[test]
fn a_consumed_count_that_runs_ahead_or_back_ends_its_connection() {
    let mut scene = Scene::new(&[]);
    let feeder = scene.broker.client();
    // The broker looks at the count when the ring is full.
    let feed_until = |condition: &dyn Fn() -> bool| {
        wait_until("the broker to look at the count", || {
            feeder.publish("feed.x", [7; 1000]).expect("it is taken");
            feeder.flush().expect("it is routed");
            condition()
        });
    };
    for (name, count) in [("runs-ahead", 1000), ("far-ahead", u64::MAX)] {
        let mut raw = scene.raw(name);
        subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
        raw.set_word(word::EGRESS_CONSUMED, count);
        feed_until(&|| raw.has_word());
        let text = format!("consumed count {count} is not within 0..=");
        scene.ended(&mut raw.control, name, ClosingCode::ProtocolViolation, &text);
    }
    let mut raw = scene.raw("runs-back");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    feeder.publish("feed.x", "small").expect("it is taken");
    while raw.receive().0.kind != Kind::Deliver {}
    feed_until(&|| raw.word(word::EGRESS_WINDOW) > 0);
    raw.set_word(word::EGRESS_CONSUMED, 1);
    feed_until(&|| raw.has_word());
    let text = "consumed count 1 is not within 2..=";
    scene.ended(&mut raw.control, "runs-back", ClosingCode::ProtocolViolation, text);
    assert_eq!(scene.broker.counter("violations"), 3);
    assert!(feeder.request("echo", "still").is_ok());
    drop(feeder);
    scene.finish();
}

// ------------------------------------------------------------------------------------------------- the control socket

/// A frame with this body, whatever its length says.
fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).expect("a length").to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes of a frame in which a name of the same length is replaced by what no library would send.
fn renamed(frame: &ClientFrame, name: &str, by: &str) -> Vec<u8> {
    assert_eq!(name.len(), by.len());
    let mut bytes = frame.encode().expect("a frame");
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).expect("the name is in the frame");
    bytes[at..at + name.len()].copy_from_slice(by.as_bytes());
    bytes
}

/// Bytes that are no frame of a client, with what is said about them.
fn malformed() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    vec![
        (
            "http",
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            "frame announces 542393671 bytes, allowed are 65536",
        ),
        ("oversized", 65_537u32.to_le_bytes().to_vec(), "frame announces 65537 bytes, allowed are 65536"),
        ("longest", vec![0xff; 4], "frame announces 4294967295 bytes, allowed are 65536"),
        ("zero", vec![0; 4], "frame of length zero"),
    ]
}

#[test]
fn bytes_that_are_no_hello_are_refused() {
    let mut scene = Scene::new(&[("ipc.handshake_timeout_ms", "5000")]);
    let mut cases = malformed();
    let good = hello("x").encode().expect("a frame");
    let mut trailing = good[4..].to_vec();
    trailing.extend([1, 2, 3]);
    let mut magic = good.clone();
    magic[8] = b'X';
    cases.extend([
        ("short", framed(&[0, 0, 0, 0, b'L']), "hello is cut off after 5 bytes"),
        ("truncated", framed(&good[4..good.len() - 1]), "value is cut off after 35 bytes"),
        ("trailing", framed(&trailing), "3 bytes too many after the value"),
        ("another magic", magic, "hello has not the magic of this protocol"),
        (
            "no hello",
            ClientFrame::Status { serial: 1 }.encode().expect("a frame"),
            "first frame is variant 6, not a hello",
        ),
        ("bye", ClientFrame::Bye.encode().expect("a frame"), "first frame is variant 7, not a hello"),
        ("no variant", framed(&[0xff; 40]), "first frame is variant 4294967295, not a hello"),
        ("larger than any", framed(&[&good[4..], &[0; 5000]].concat()), "bytes are more than the allowed 4096"),
    ]);
    for (name, bytes, text) in cases {
        let mut offender = scene.control();
        offender.send(&bytes);
        let (code, message) = offender.refused();
        assert_eq!(code, RefusedCode::Malformed, "{name}");
        assert!(message.contains(text), "{name}: {message}");
        scene.logged(&["WARN", "connection refused", &format!("reason={message:?}")]);
    }
    // Half of a hello, and then no more of it.
    let mut offender = scene.control();
    offender.send(&good[..10]);
    offender.socket.shutdown(Shutdown::Write).expect("a shutdown");
    scene.refused(&mut offender, RefusedCode::Malformed, "stream ended 10 bytes into a frame");
    scene.finish();
}

#[test]
fn bytes_that_are_no_question_end_the_connection() {
    let mut scene = Scene::new(&[]);
    let mut cases = malformed();
    let status = ClientFrame::Status { serial: 1 }.encode().expect("a frame");
    let mut trailing = status[4..].to_vec();
    trailing.push(0);
    let unsubscribed = ClientFrame::Subscribe {
        serial: 1,
        pattern: Pattern::parse("a").expect("a pattern"),
        policy: DeliveryPolicy::Block,
        credit: 0,
    };
    let mut policy = unsubscribed.encode().expect("a frame");
    let at = policy.len() - 8;
    policy[at] = 9;
    let mut huge = unsubscribed.encode().expect("a frame");
    huge[12..20].copy_from_slice(&u64::MAX.to_le_bytes());
    cases.extend([
        ("truncated", framed(&status[4..7]), "value is cut off after 3 bytes"),
        ("trailing", framed(&trailing), "1 bytes too many after the value"),
        ("no-variant", framed(&[9, 0, 0, 0, 1, 0, 0, 0]), "malformed value: invalid value: integer `9`"),
        ("no-policy", policy, "malformed value: invalid value: integer `9`"),
        ("huge-text", huge, "value is cut off after"),
        ("second-hello", hello("again").encode().expect("a frame"), "a second hello"),
    ]);
    for (name, bytes, text) in &cases {
        let mut raw = scene.raw(name);
        raw.control.send(bytes);
        scene.ended(&mut raw.control, name, ClosingCode::ProtocolViolation, text);
    }
    let mut raw = scene.raw("half-a-frame");
    raw.control.send(&status[..6]);
    raw.control.socket.shutdown(Shutdown::Write).expect("a shutdown");
    scene.ended(&mut raw.control, "half-a-frame", ClosingCode::ProtocolViolation, "stream ended 6 bytes into a frame");
    assert_eq!(scene.broker.counter("violations"), cases.len() as u64 + 1);
    scene.finish();
}

#[test]
fn another_version_is_a_clear_error_on_both_sides() {
    let mut scene = Scene::new(&[]);
    // A hello of the future: only its beginning is the same.
    let mut bytes = hello("future").encode().expect("a frame")[4..18].to_vec();
    bytes[12..14].copy_from_slice(&99u16.to_le_bytes());
    bytes.extend([0xee; 100]);
    let mut offender = scene.control();
    offender.send(&framed(&bytes));
    scene.refused(&mut offender, RefusedCode::Version, "the client speaks version 99, the broker 1");
    scene.finish();

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("future.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let refused = BrokerFrame::Refused { code: RefusedCode::Version, message: "too old".into(), version: 99 };
    let broker = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(&refused.encode().expect("a frame")).expect("it is taken");
        // Open until the client has gone.
        std::io::copy(&mut stream, &mut std::io::sink()).expect("its hello");
    });
    let error = Client::builder().socket(&path).connect().expect_err("a version that we do not speak");
    assert!(error.is_version_mismatch(), "{error:?}");
    assert_eq!(error.to_string(), "the broker speaks version 99 of the protocol, this client 1");
    broker.join().expect("the broker of the future");
}

#[test]
fn a_peer_that_is_slow_to_say_hello_is_refused_and_one_that_is_only_odd_is_not() {
    let mut scene = Scene::new(&[("ipc.handshake_timeout_ms", "300")]);
    let mut silent = scene.control();
    scene.refused(&mut silent, RefusedCode::Malformed, "no hello within 300 ms");
    // Always something, never a hello.
    let mut slow = scene.control();
    slow.send(&hello("slow").encode().expect("a frame")[..9]);
    scene.refused(&mut slow, RefusedCode::Malformed, "no hello within 300 ms");

    let mut bytewise = scene.control();
    for byte in hello("bytewise").encode().expect("a frame") {
        bytewise.send(&[byte]);
    }
    let mut bytewise = Raw::welcomed(bytewise);
    bytewise.flush(1);
    for byte in (ClientFrame::Status { serial: 5 }).encode().expect("a frame") {
        bytewise.control.send(&[byte]);
    }
    assert!(matches!(bytewise.control.frame(), Some(BrokerFrame::Status { serial: 5, .. })));

    // Many frames at once, in one write: each is answered.
    let questions: Vec<u8> =
        (0..50).flat_map(|serial| ClientFrame::Unserve { serial, service: 9 }.encode().expect("a frame")).collect();
    bytewise.control.send(&questions);
    for expected in 0..50 {
        let answer = bytewise.control.frame();
        let Some(BrokerFrame::Failed { serial, code, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!((serial, code), (expected, FailedCode::Unknown));
    }

    // Half-closed: it says no more, or hears no more. Either way it has left, and what it published is routed.
    let mut listener = scene.raw("listener");
    subscribe(&mut listener, "half.>", DeliveryPolicy::Block);
    for (name, how) in [("says-no-more", Shutdown::Write), ("hears-no-more", Shutdown::Read)] {
        let mut half = scene.raw(name);
        let topic = intern(&mut half, InternKind::Topic, "half.closed");
        half.push(Lane::Bulk, &publish(topic, 4, WHOLE), b"last");
        half.control.socket.shutdown(how).expect("a shutdown");
        while listener.receive().0.kind != Kind::Deliver {}
        if how == Shutdown::Read {
            half.control.say(&ClientFrame::Status { serial: 1 });
        } else {
            assert_eq!(half.control.frame(), None, "the broker closes its half, too");
        }
        scene.logged(&["connection lost", &format!("name={name}")]);
    }
    drop((bytewise, listener));
    scene.finish();
}

#[test]
fn a_name_cannot_forge_a_log_line() {
    let mut scene = Scene::new(&[]);
    let place = "placeholder.placeholder";
    let evil =
        ["a\n[2026 ERROR] forged", "\x1b[2J\x1b]0;owned\x07", "<script>alert(1)</scr", "a\r\nb", "a\0b", "a\u{9b}31m"];
    let topic = Topic::parse(place).expect("a topic");
    let subscribed = |serial| ClientFrame::Subscribe {
        serial,
        pattern: Pattern::parse(place).expect("a pattern"),
        policy: DeliveryPolicy::Block,
        credit: 0,
    };
    let mut count = 0;
    for evil in evil {
        let evil = evil.to_owned() + &"x".repeat(place.len() - evil.len());
        let mut offender = scene.control();
        offender.send(&renamed(&hello(place), place, &evil));
        scene.refused(&mut offender, RefusedCode::Malformed, "is not allowed at byte");
        let questions = [
            renamed(&ClientFrame::Intern { serial: 1, kind: InternKind::Topic, name: topic.clone() }, place, &evil),
            renamed(&subscribed(1), place, &evil),
            renamed(
                &ClientFrame::Serve { serial: 1, service: Name::parse(place).expect("a name"), max_in_flight: 0 },
                place,
                &evil,
            ),
        ];
        for question in questions {
            count += 1;
            let name = format!("evil-{count}");
            let mut raw = scene.raw(&name);
            raw.control.send(&question);
            scene.ended(&mut raw.control, &name, ClosingCode::ProtocolViolation, "is not allowed at byte");
        }
    }
    let log = scene.broker.process().stderr();
    let raw_controls: Vec<char> = log.chars().filter(|c| c.is_control() && *c != '\n').collect();
    assert!(raw_controls.is_empty(), "{raw_controls:?} in {log}");
    assert!(
        log.lines().all(|line| line.starts_with('[') && !line.starts_with("[2026 ERROR]") || line.starts_with("hint:")),
        "{log}"
    );
    assert_eq!(scene.broker.counter("violations"), count);
    scene.finish();
}

#[test]
fn nobody_publishes_where_only_the_broker_may() {
    let scene = Scene::new(&[]);
    let mut raw = scene.raw("forger");
    let name = Topic::parse_system("$sys.connection.opened").expect("a topic");
    let forged = name.clone();
    let answer = raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Topic, name: forged });
    let BrokerFrame::Failed { code: FailedCode::NotAllowed, message, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(message, "only the broker publishes on $sys.connection.opened");
    // Nor is it a service, and the echo is the broker's.
    let answer = raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Service, name });
    assert!(matches!(answer, BrokerFrame::Failed { code: FailedCode::Invalid, .. }), "{answer:?}");
    let echo = Name::parse("echo").expect("a name");
    let answer = raw.ask(|serial| ClientFrame::Serve { serial, service: echo, max_in_flight: 1 });
    assert!(matches!(answer, BrokerFrame::Failed { code: FailedCode::NotAllowed, .. }), "{answer:?}");
    // The connection goes on.
    raw.flush(1);
    let topic = intern(&mut raw, InternKind::Topic, "fine");
    raw.push(Lane::Bulk, &publish(topic, 2, WHOLE), b"ok");
    raw.flush(2);
    assert_eq!(scene.broker.counter("violations"), 0);
    let error =
        scene.broker.client().publish("$sys.connection.opened", "forged").expect_err("the library refuses, too");
    assert!(error.is_invalid_name(), "{error:?}");
    drop(raw);
    scene.finish();
}

#[test]
fn who_asks_and_never_reads_the_answers_costs_the_broker_nothing() {
    let scene = Scene::new(&[]);
    let raw = scene.raw("deaf");
    let before = resident(&scene.broker);
    raw.control.socket.set_nonblocking(true).expect("a mode");
    let question = ClientFrame::Status { serial: 1 }.encode().expect("a frame").repeat(100);
    let mut stuck = 0;
    wait_until("the socket to be full", || {
        while let Ok(sent) = rustix::net::send(&raw.control.socket, &question, rustix::net::SendFlags::NOSIGNAL) {
            assert!(sent > 0);
            stuck = 0;
        }
        stuck += 1;
        stuck > 20
    });
    scene.good.goes_on();
    let grown = resident(&scene.broker).saturating_sub(before);
    assert!(grown < 4 << 20, "the broker has grown by {grown} bytes");
    drop(raw);
    scene.finish();
}

/// Resident memory of the broker, in bytes.
#[track_caller]
fn resident(broker: &Broker) -> u64 {
    let pid = broker.client().status().expect("a status").pid;
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("a process");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

// -------------------------------------------------------------------------------------------------------- descriptors

/// How many descriptors a process has open.
#[track_caller]
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}

#[test]
fn descriptors_that_nobody_asked_for_are_dropped() {
    let mut scene = Scene::new(&[("ipc.handshake_timeout_ms", "10000")]);
    let pid = scene.broker.process().pid();
    let mut raw = scene.raw("flooder");
    raw.flush(1);
    let before = descriptors(pid);
    let file = tempfile::tempfile().expect("a file");
    let sixty = [file.as_fd(); 60];
    // Beside whole frames, beside single bytes of frames, before hello and after.
    let question = ClientFrame::Unserve { serial: 1, service: 0 }.encode().expect("a frame");
    for _ in 0..100 {
        raw.control.send_descriptors(&question, &sixty).expect("it is sent");
        let answer = raw.control.frame();
        assert!(matches!(answer, Some(BrokerFrame::Failed { code: FailedCode::Unknown, .. })), "{answer:?}");
    }
    for byte in question.iter().cycle().take(question.len() * 10) {
        raw.control.send_descriptors(&[*byte], &sixty).expect("it is sent");
    }
    for _ in 0..10 {
        assert!(matches!(raw.control.frame(), Some(BrokerFrame::Failed { .. })));
    }
    assert!(descriptors(pid) <= before, "{} descriptors, {before} before", descriptors(pid));

    let mut early = scene.control();
    early.send_descriptors(&hello("early").encode().expect("a frame"), &sixty).expect("it is sent");
    let mut early = Raw::welcomed(early);
    early.flush(1);
    assert!(descriptors(pid) <= before + 6, "{} descriptors, {before} before", descriptors(pid));
    drop(early);
    wait_until("its descriptors to be closed", || descriptors(pid) <= before);
    drop(raw);
    scene.finish();
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let mut scene = Scene::new(&[]);
    let pid = scene.broker.process().pid();
    scene.good.goes_on();
    let before = descriptors(pid);
    for number in 0..300 {
        let mut control = scene.control();
        match number % 4 {
            0 => {}
            1 => control.send(&hello("half").encode().expect("a frame")[..7]),
            2 => control.say(&hello("gone-before-welcome")),
            _ => drop(Raw::connect(&scene.broker.socket(), "gone-after-welcome")),
        }
    }
    scene.good.goes_on();
    wait_until("their descriptors to be closed", || descriptors(pid) <= before);
    scene.finish();
}

#[test]
fn a_broker_out_of_descriptors_says_so_and_recovers() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ipc.sock");
    let mut shell = command("sh");
    shell.args(["-c", "ulimit -n 64; exec \"$0\" --socket \"$1\"", IPC_SERVER_MAIN]).arg(&socket);
    let mut broker = Process::start(shell);
    broker.wait_for("hint:");
    assert!(broker.stderr().contains("descriptor limit is low limit=64"), "{}", broker.stderr());
    let good = Good::start(&socket);
    good.goes_on();
    // As many as there are descriptors for; the next are told why not, or wait until there is room.
    let mut held = Vec::new();
    let (code, message) = loop {
        assert!(held.len() < 64);
        let mut control = Control::connect(&socket);
        control.say(&hello("crowd"));
        match control.frame() {
            Some(BrokerFrame::Welcome { .. }) => held.push(control),
            Some(BrokerFrame::Refused { code, message, .. }) => break (code, message),
            other => panic!("neither welcome nor refusal but {other:?}"),
        }
    };
    assert_eq!(code, RefusedCode::TooManyConnections);
    assert!(message.contains("no memory or descriptors for another connection"), "{message}");
    assert!(message.contains("Too many open files"), "{message}");
    broker.wait_for("connection refused");
    good.goes_on();
    // Silent ones take the rest; then the broker cannot even accept.
    let silent: Vec<_> = (0..20).map(|_| Control::connect(&socket)).collect();
    broker.wait_for("connection not accepted");
    good.goes_on();
    drop((held, silent));
    wait_until("room for another", || {
        let mut control = Control::connect(&socket);
        control.say(&hello("afterwards"));
        matches!(control.frame(), Some(BrokerFrame::Welcome { .. }))
    });
    good.finish();
    assert!(!broker.has_ended() && !broker.stderr().contains("panicked"), "{}", broker.stderr());
}

#[test]
fn the_connection_after_the_last_is_refused_with_a_reason() {
    let mut scene = Scene::new(&[("ipc.max_connections", "4")]);
    // The good neighbour has two.
    let held = [scene.raw("third"), scene.raw("fourth")];
    let mut next = scene.control();
    scene.refused(&mut next, RefusedCode::TooManyConnections, "all 4 connections are taken (ipc.max_connections)");
    drop(held);
    let socket = scene.broker.socket();
    wait_until("room for another", || Client::builder().socket(&socket).connect().is_ok());
    scene.finish();
}

// ------------------------------------------------------------------------------------------------------------- memory

#[test]
fn the_size_of_a_segment_is_nobodys_to_change() {
    let scene = Scene::new(&[]);
    let mut raw = scene.raw("resizer");
    let size = raw.segment.metadata().expect("a file").len();
    assert_eq!(size, raw.geometry.segment_bytes);
    for wanted in [0, 4096, size - 1, size + 1, 1 << 40] {
        let error = raw.segment.set_len(wanted).expect_err("it is sealed");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{wanted}");
    }
    assert!(raw.segment.write_all_at(&[1], size).is_err(), "nothing grows by writing");
    for seal in [rustix::fs::SealFlags::WRITE, rustix::fs::SealFlags::FUTURE_WRITE] {
        assert_eq!(rustix::fs::fcntl_add_seals(&raw.segment, seal), Err(rustix::io::Errno::PERM));
    }
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&raw.segment, keep, size, 4096), Err(rustix::io::Errno::PERM));
    assert_eq!(raw.segment.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    raw.flush(1);
    drop(raw);
    scene.finish();
}

#[test]
fn who_uses_more_of_its_segment_than_lent_loses_its_connection() {
    let mut scene = Scene::new(&[("shared_memory.audit_interval_ms", "100")]);
    // One writes it full, another only reserves the memory.
    let mut writer = scene.raw("writes-it-full");
    let page = [0xaa; 4096];
    for offset in (writer.extension(0)..writer.geometry.segment_bytes).step_by(page.len()) {
        writer.segment.write_all_at(&page, offset).expect("the file takes it");
    }
    scene.ended(&mut writer.control, "writes-it-full", ClosingCode::Overuse, "pages where 4 are allowed");
    let mut reserver = scene.raw("reserves");
    let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&reserver.segment, keep, reserver.extension(2), 16 * 4096).expect("the file takes it");
    scene.ended(
        &mut reserver.control,
        "reserves",
        ClosingCode::Overuse,
        "its segment holds 17 pages where 4 are allowed",
    );
    assert_eq!(scene.broker.counter("violations"), 2);
    scene.finish();
}

#[test]
fn holes_punched_into_a_segment_harm_only_its_client() {
    let mut scene = Scene::new(&[]);
    let feeder = scene.broker.client();
    let punch = |raw: &Raw| {
        use rustix::fs::FallocateFlags;
        let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        rustix::fs::fallocate(&raw.segment, flags, 0, raw.geometry.segment_bytes).expect("a hole");
    };
    // What the broker knows of it is gone from under it: the count runs back.
    let mut raw = scene.raw("puncher");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    for _ in 0..20 {
        feeder.publish("feed.x", [7; 900]).expect("it is taken");
        while raw.receive().0.kind != Kind::Deliver {}
    }
    punch(&raw);
    wait_until("the broker to look", || {
        feeder.publish("feed.x", [7; 900]).expect("it is taken");
        feeder.flush().expect("it is routed");
        raw.has_word()
    });
    scene.ended(&mut raw.control, "puncher", ClosingCode::ProtocolViolation, "consumed count 0 is not within");

    // At any time, under traffic both ways.
    for round in 0..50 {
        let mut raw = scene.raw("puncher-at-work");
        let service = intern(&mut raw, InternKind::Service, "echo");
        subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
        for step in 0..10 {
            raw.try_place(Lane::Express, &words(&request(step, service, 900, WHOLE), 900), &[1; 900]);
            feeder.publish("feed.x", [7; 900]).expect("it is taken");
            if step == round % 10 {
                punch(&raw);
            }
        }
        feeder.flush().expect("it is routed");
    }
    scene.good.goes_on();
    drop(feeder);
    scene.finish();
}

#[test]
fn who_does_not_read_its_answers_loses_its_connection() {
    let mut scene = Scene::new(&[
        ("limits.max_backlog_bytes", "65536"),
        ("shared_memory.num_slots", "64"),
        ("shared_memory.max_window_slots", "8"),
    ]);
    let mut raw = scene.raw("never-reads");
    let service = intern(&mut raw, InternKind::Service, "echo");
    let asked = words(&request(0, service, 1000, WHOLE), 1000);
    for number in 0.. {
        assert!(number < 1000, "a bounded backlog");
        if !raw.place(Lane::Express, &asked, &[number as u8; 1000]) || raw.has_word() {
            break;
        }
    }
    scene.ended(&mut raw.control, "never-reads", ClosingCode::SlowConsumer, "bytes wait for it and it does not read");
    scene.finish();
}

// -------------------------------------------------------------------------------------------------------------- bells

#[test]
fn a_bell_that_is_full_and_blocks_hangs_nobody() {
    let scene = Scene::new(&[]);
    let feeder = scene.broker.client();
    let mut raw = scene.raw("jams-its-bells");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    raw.flush(1);
    // As much as goes in, the largest numbers first; then whoever writes to it blocks.
    for bit in (0..64).rev() {
        while rustix::io::write(&raw.bell, &(1u64 << bit).to_ne_bytes()).is_ok() {}
    }
    for bell in [&raw.bell, &raw.wait] {
        rustix::fs::fcntl_setfl(bell, rustix::fs::OFlags::empty()).expect("the flags are the client's, too");
    }
    let mut full = [rustix::event::PollFd::new(&raw.bell, rustix::event::PollFlags::OUT)];
    assert_eq!(rustix::event::poll(&mut full, Some(&rustix::event::Timespec::default())), Ok(0), "it is full");
    for number in 0..200 {
        // The reader sleeps: each message makes the broker ring.
        raw.set_word(24, 1);
        feeder.publish("feed.x", [number; 10]).expect("it is taken");
        feeder.flush().expect("it is routed");
    }
    scene.good.goes_on();
    assert_eq!(feeder.request("echo", "hi").expect("the echo"), b"hi");
    drop((raw, feeder));
    scene.finish();
}

#[test]
fn who_rings_without_end_loses_its_connection() {
    let mut scene = Scene::new(&[("limits.max_rings_without_progress", "50")]);
    let mut raw = scene.raw("rings-and-rings");
    wait_until("the broker to have enough of it", || {
        (0..1000).for_each(|_| raw.ring());
        raw.has_word()
    });
    scene.ended(
        &mut raw.control,
        "rings-and-rings",
        ClosingCode::Overuse,
        "it rang 51 times in a second without sending anything",
    );
    assert_eq!(scene.broker.counter("violations"), 1);
    scene.finish();
}

#[test]
fn who_rings_without_end_while_its_ring_is_full_loses_its_connection() {
    let mut scene = Scene::new(&[
        ("limits.max_rings_without_progress", "50"),
        ("shared_memory.num_slots", "64"),
        ("shared_memory.max_window_slots", "8"),
    ]);
    let mut raw = scene.raw("rings-when-full");
    let service = intern(&mut raw, InternKind::Service, "echo");
    let asked = words(&request(0, service, 1000, WHOLE), 1000);
    while raw.word(word::EGRESS_SPACE) == 0 {
        assert!(raw.place(Lane::Express, &asked, &[0; 1000]));
    }
    wait_until("the broker to have enough of it", || {
        (0..1000).for_each(|_| raw.ring());
        raw.has_word()
    });
    scene.ended(
        &mut raw.control,
        "rings-when-full",
        ClosingCode::Overuse,
        "it rang 51 times in a second without sending anything",
    );
    scene.finish();
}

// ---------------------------------------------------------------------------------- what one can do to another's ring

#[test]
fn a_subscriber_with_little_space_for_a_new_topic_stops_nobody() {
    // No ring is lent more than its base window of 9 cells.
    let scene = Scene::new(&[("shared_memory.num_slots", "1"), ("shared_memory.max_window_slots", "1")]);
    let feeder = scene.broker.client();
    let mut raw = scene.raw("tight");
    subscribe(&mut raw, "feed.>", DeliveryPolicy::DropNewest);
    // A name and six messages, of one cell each: seven of nine; of them one is free again.
    for number in 0..6 {
        feeder.publish("feed.a", [number]).expect("it is taken");
    }
    feeder.flush().expect("it is routed");
    raw.set_word(word::EGRESS_CONSUMED, 1);
    // Two cells at the end, one at the start: the name and this message fit in one order and not in the other.
    feeder.publish("feed.b", [7; 100]).expect("it is taken");
    feeder.flush().expect("it is routed");
    scene.good.goes_on();
    drop((raw, feeder));
    scene.finish();
}

#[test]
fn the_longest_topic_fits_into_the_smallest_slot() {
    let scene = Scene::new(&[("shared_memory.slot_size", "256")]);
    let topic = ["a".repeat(64), "b".repeat(64), "c".repeat(64), "d".repeat(60)].join(".");
    assert_eq!(topic.len(), 255);
    let client = scene.broker.client();
    let mut messages = client.subscribe("*.*.*.*").expect("a subscription");
    client.publish(&topic, "hi").expect("it is taken");
    let message = messages.next_timeout(DEADLINE).expect("it stands").expect("it comes");
    assert_eq!((message.topic(), message.payload()), (&topic[..], &b"hi"[..]));
    drop((messages, client));
    scene.finish();
}

#[test]
fn credit_without_measure_does_not_drown_the_other_side() {
    let mut scene = Scene::new(&[
        ("limits.max_backlog_bytes", "65536"),
        ("shared_memory.num_slots", "64"),
        ("shared_memory.max_window_slots", "8"),
    ]);
    let victim = scene.broker.client();
    let mut service = victim.serve("busy").expect("a service");
    let text = "cells of credit were given back, where";
    // Credit that was never taken, and none: the first record of it ends the connection, and nobody else hears of it.
    for (index, arg) in [0, 1, u32::MAX].into_iter().enumerate() {
        // A requester floods a responder that is busy with its request.
        let name = format!("floods-responder-{index}");
        let mut raw = scene.raw(&name);
        let number = intern(&mut raw, InternKind::Service, "busy");
        raw.push(Lane::Express, &request(0, number, 0, WHOLE), &[]);
        let asked = service.next_timeout(DEADLINE).expect("the service stands").expect("the request comes");
        let credit = Header { id: 0, id2: 1, arg, ..Header::new(Kind::ResponseCredit) };
        for _ in 0..2000 {
            if !raw.push(Lane::Express, &credit, &[]) {
                break;
            }
        }
        scene.ended(&mut raw.control, &name, ClosingCode::ProtocolViolation, text);
        // Nobody waits for the reply any more.
        let _ = asked.reply("late");
        assert!(service.next_timeout(Duration::ZERO).expect("the service stands").is_none());

        // A responder floods a requester that does not read just now. (It took one cell, and gives back more.)
        let name = format!("floods-requester-{index}");
        let mut raw = scene.raw(&name);
        serve(&mut raw, &name);
        let mut answers = victim.request_stream(&name, "hi").expect("a stream");
        let call = loop {
            let (header, _) = raw.receive();
            if header.kind == Kind::Call {
                break header.seq;
            }
        };
        let credit = Header { seq: call, arg, ..Header::new(Kind::BodyCredit) };
        for _ in 0..2000 {
            if !raw.push(Lane::Express, &credit, &[]) {
                break;
            }
        }
        scene.ended(&mut raw.control, &name, ClosingCode::ProtocolViolation, text);
        let error = answers.next_timeout(DEADLINE).expect_err("its responder is gone");
        assert!(error.is_responder_lost(), "{error:?}");
    }
    assert_eq!(victim.request("echo", "hi").expect("the echo"), b"hi");
    assert_eq!(scene.broker.counter("violations"), 6);
    drop((service, victim));
    scene.finish();
}

#[test]
fn many_bodies_do_not_drown_a_busy_responder() {
    const REQUESTS: u32 = 100;
    const PARTS: u32 = 50;
    let scene = Scene::new(&[]);
    let victim = scene.broker.client();
    let mut service = victim.serve("busy").expect("a service");
    let mut raw = scene.raw("floods-bodies");
    let number = intern(&mut raw, InternKind::Service, "busy");
    // Each is within its credit; together they are more than is held for one connection, and nobody reads just now.
    let total = 1 + PARTS * 1000;
    for place in 0..REQUESTS {
        assert!(raw.push(Lane::Express, &request(place, number, total, FIRST), &[0; 1]));
    }
    for place in 0..REQUESTS {
        for part in 1..=PARTS {
            let flags = if part == PARTS { LAST } else { MIDDLE };
            assert!(raw.push(Lane::Express, &request(place, number, total, flags), &[0; 1000]));
        }
    }
    // Those that it was spared have failed; it takes the others, and each request has one outcome.
    let mut taken = 0;
    while let Some(request) = service.next_timeout(Duration::from_millis(200)).expect("the service stands") {
        assert_eq!(request.payload().len(), total as usize);
        request.reply("ok").expect("the reply is taken");
        taken += 1;
    }
    let (mut answered, mut overloaded) = (0, 0);
    let mut over = vec![false; REQUESTS as usize];
    while answered + overloaded < REQUESTS {
        let (header, payload) = raw.receive();
        match header.kind {
            Kind::RequestCredit => continue,
            Kind::Answer => {
                assert_eq!(payload, b"ok");
                answered += 1;
            }
            Kind::Failed => {
                assert_eq!(Outcome::from_u16(header.code), Some(Outcome::Overloaded));
                overloaded += 1;
            }
            kind => panic!("{kind:?}"),
        }
        assert!(!std::mem::replace(&mut over[header.id as usize], true), "two outcomes");
    }
    assert_eq!(answered, taken);
    assert!(answered > 0 && overloaded > 0, "{answered} answered, {overloaded} overloaded");
    assert_eq!(victim.request("echo", "hi").expect("the echo"), b"hi");
    drop((raw, service, victim));
    scene.finish();
}

// -------------------------------------------------------------------------------------------------- paths and users

#[test]
fn what_is_no_socket_is_told_apart_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("precious");
    std::fs::write(&path, "precious").expect("a file");
    let error = Client::builder().socket(&path).connect().expect_err("a file");
    assert!(error.is_no_broker() && error.to_string().ends_with("it is no socket"), "{error}");
    let error = Client::builder().socket(folder.path().join("nothing")).connect().expect_err("nothing");
    assert!(error.is_no_broker() && error.to_string().contains("nothing is there"), "{error}");

    for place in [&path, folder.path()] {
        let mut serve = command(IPC_SERVER_MAIN);
        serve.arg("--socket").arg(place);
        let mut broker = Process::start(serve);
        assert_ne!(broker.code(), 0);
        let (log, lock) = (broker.stderr(), format!("{}.lock", place.display()));
        assert!(log.contains(&format!("{}: exists and is no socket", place.display())), "{log}");
        assert!(std::fs::read(&lock).is_ok_and(|bytes| bytes.is_empty()) || !Path::new(&lock).exists());
    }
    assert_eq!(std::fs::read(&path).expect("the file"), b"precious");
}

#[test]
fn a_dead_brokers_socket_is_replaced_and_a_living_ones_is_not() {
    let mut scene = Scene::new(&[]);
    let start = || {
        let mut serve = command(IPC_SERVER_MAIN);
        serve.arg("--socket").arg(scene.broker.socket());
        Process::start(serve)
    };
    let mut second = start();
    assert_eq!(second.code(), 69, "{}", second.stderr());
    let complaint = format!("{}: another broker listens there", scene.broker.socket().display());
    assert!(second.stderr().contains(&complaint), "{}", second.stderr());
    scene.good.goes_on();
    assert_eq!(scene.broker.client().request("echo", "first").expect("the first broker"), b"first");

    // Killed, it leaves its socket; the next takes the place over.
    let Good { stop, asks, serves, .. } = scene.good;
    drop(stop);
    let _ = (asks.join(), serves.join());
    scene.broker.process().signal("KILL");
    assert_eq!(scene.broker.process().code(), -9);
    assert!(scene.broker.socket().exists(), "nobody has put it away");
    let error = Client::builder().socket(scene.broker.socket()).connect().expect_err("it is dead");
    assert!(error.is_no_broker() && error.to_string().contains("nobody listens"), "{error}");
    let mut serve = command(IPC_SERVER_MAIN);
    serve.arg("--socket").arg(scene.broker.socket());
    let mut third = Process::start(serve);
    third.wait_for("hint:");
    assert_eq!(scene.broker.client().request("echo", "third").expect("the third broker"), b"third");
    third.signal("TERM");
    assert_eq!(third.code(), 0);
    assert!(!scene.broker.socket().exists());
}

/// A user who is not us, and owns nothing.
const NOBODY: u32 = 65_534;

/// A folder that everybody may use, with a program that everybody may run.
fn open_folder(program: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("our folder");
    let copy = folder.path().join("program");
    std::fs::copy(program, &copy).expect("a copy");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("our file");
    (folder, copy)
}

fn as_nobody(command: &mut Command) {
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
}

fn are_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        support::probe::note("skipped: only root can become another user");
    }
    root
}

#[test]
fn another_user_is_refused_unless_allowed() {
    if !are_root() {
        return;
    }
    let (programs, lapce_ipc) = open_folder(LAPCE_IPC);
    let request = |broker: &Broker| {
        let mut request = command(lapce_ipc.to_str().expect("a path"));
        request.arg("--socket").arg(broker.socket()).args(["request", "echo", "hi"]);
        as_nobody(&mut request);
        Process::start(request)
    };
    let open = |broker: &Broker| {
        std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
    };
    // The mode of the socket keeps it out; and where that lets it in, the broker does.
    let closed = Scene::new(&[]);
    open(&closed.broker);
    let mut stranger = request(&closed.broker);
    assert_eq!(stranger.code(), 69);
    assert!(stranger.stderr().contains("Permission denied"), "{}", stranger.stderr());
    closed.finish();

    let mut scene = Scene::new(&[("shared_memory.permissions", "0o666")]);
    open(&scene.broker);
    let mut stranger = request(&scene.broker);
    assert_eq!(stranger.code(), 77, "{}", stranger.stderr());
    assert!(stranger.stderr().contains("user 65534 may not connect"), "{}", stranger.stderr());
    scene.logged(&["WARN", "connection refused", "user 65534 may not connect"]);
    scene.good.goes_on();
    scene.finish();

    let scene = Scene::new(&[("shared_memory.permissions", "0o666"), ("ipc.allowed_uids", "65534")]);
    open(&scene.broker);
    let mut guest = request(&scene.broker);
    assert_eq!((guest.code(), &guest.stdout()[..]), (0, &b"hi\n"[..]), "{}", guest.stderr());
    scene.finish();
    drop(programs);
}

#[test]
fn a_broker_of_another_user_is_not_trusted_unless_told_to() {
    if !are_root() {
        return;
    }
    let (folder, program) = open_folder(IPC_SERVER_MAIN);
    let socket = folder.path().join("ipc.sock");
    let mut serve = command(program.to_str().expect("a path"));
    serve.arg("--socket").arg(&socket).env("LAPCE_IPC__IPC__ALLOWED_UIDS", "0");
    as_nobody(&mut serve);
    let mut broker = Process::start(serve);
    broker.wait_for("hint:");
    let error = Client::builder().socket(&socket).connect().expect_err("another's broker");
    assert!(error.is_not_allowed(), "{error:?}");
    assert!(error.to_string().ends_with("runs as user 65534, which is neither ours, nor root, nor trusted"), "{error}");
    let client = Client::builder().socket(&socket).trusted_uids([NOBODY]).connect().expect("we were told to");
    assert_eq!(client.request("echo", "hi").expect("the echo"), b"hi");
    // Nothing was said to it before: it knows of one connection only.
    assert_eq!(broker.stderr().matches("connection opened").count(), 1, "{}", broker.stderr());
}

// -------------------------------------------------------------------------------------------------------- mutations

/// A generator whose numbers are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 11) % most
    }

    /// A number of the kind that is at an edge somewhere.
    fn edge(&mut self) -> u64 {
        const EDGES: [u64; 12] =
            [0, 1, 2, 8, 9, 1024, 4096, 10_485_760, u32::MAX as u64, u32::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
        match self.below(4) {
            0 => self.next(),
            _ => EDGES[self.below(EDGES.len() as u64) as usize],
        }
    }
}

#[test]
fn two_thousand_mutations_disturb_nobody() {
    const MUTATIONS: usize = 2000;
    const KINDS: [u8; 12] = [1, 1, 2, 8, 8, 9, 10, 11, 12, 13, 34, 43];
    let scene = Scene::new(&[("shared_memory.audit_interval_ms", "100")]);
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut peers: Vec<Option<Raw>> = (0..8).map(|_| None).collect();
    let mut connections = 0;
    for _ in 0..MUTATIONS {
        let place = random.below(8) as usize;
        if peers[place].as_ref().is_some_and(Raw::has_ended) {
            peers[place] = None;
        }
        let raw = peers[place].get_or_insert_with(|| {
            connections += 1;
            let mut raw = scene.raw("mutant");
            intern(&mut raw, InternKind::Topic, "bad.mutant");
            intern(&mut raw, InternKind::Service, "echo");
            subscribe(&mut raw, "bad.>", DeliveryPolicy::DropNewest);
            serve(&mut raw, "mutant");
            raw
        });
        let lane = if random.below(2) == 0 { Lane::Bulk } else { Lane::Express };
        match random.below(8) {
            // A record that is nearly right: of a kind of its lane, with small numbers.
            0..=2 => {
                let kind = KINDS[random.below(KINDS.len() as u64) as usize];
                let lane = if kind < 8 { Lane::Bulk } else { Lane::Express };
                let len = random.below(300);
                let flags = random.below(32);
                let mut header = [0; HEADER_WORDS];
                header[0] = len | u64::from(kind) << 32 | flags << 40;
                header[1] = random.below(3) | random.below(2) << 32;
                header[2] = if random.below(2) == 0 { len } else { random.below(600) } | random.below(2) << 32;
                header[3] = random.below(4) | random.below(2) << 32;
                let hit = random.below(10) as usize;
                if let Some(word) = header.get_mut(hit) {
                    *word ^= 1 << random.below(64);
                }
                raw.try_place(lane, &header, &vec![0x5a; len as usize]);
            }
            // Anything.
            3 => {
                let header = std::array::from_fn(|_| random.edge());
                raw.try_place(lane, &header, &[]);
            }
            // A tag that is not, or not yet, the next, anywhere.
            4 => {
                let nonce = if lane == Lane::Bulk { raw.geometry.nonce_bulk } else { raw.geometry.nonce_express };
                let tag = nonce.wrapping_add(random.below(64)).wrapping_sub(random.below(4));
                let at = random.below(raw.geometry.segment_bytes / raw::CELL / 64) * raw::CELL;
                raw.write_record(at, tag, &forged(random.below(45) as u8, random.edge() as u32), &[]);
                raw.ring();
            }
            // Any of the words that both sides use.
            5 => {
                let (at, value) = (random.below(word::END), random.edge());
                raw.set_word(at, value);
                raw.ring();
            }
            // A frame with a bit of it turned round.
            6 => {
                let pattern = Pattern::parse("bad.*").expect("a pattern");
                let frames = [
                    ClientFrame::Status { serial: 1 },
                    ClientFrame::Unserve { serial: 2, service: 0 },
                    ClientFrame::Subscribe { serial: 3, pattern, policy: DeliveryPolicy::DropOldest, credit: 1 },
                    ClientFrame::Unsubscribe { serial: 4, subscription: 1 },
                ];
                let mut bytes = frames[random.below(4) as usize].encode().expect("a frame");
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
                raw.control.send(&bytes);
            }
            // Noise over everything that is there.
            _ => {
                let noise: Vec<u8> = (0..64).flat_map(|_| random.next().to_le_bytes()).collect();
                raw.segment.write_all_at(&noise, random.below(3584)).expect("the segment");
                raw.ring();
            }
        }
    }
    assert!(connections > 100, "the mutations bite: {connections} connections");
    let client = scene.broker.client();
    let counters = client.status().expect("a status").counters;
    let violations = counters.iter().find(|(name, _)| name == "violations").expect("a counter").1;
    assert!(violations > 100, "{violations} violations of {connections} connections");
    drop((peers, client));
    scene.finish();
}
