//! Hostile peers at the control socket: bytes that are no frames, descriptors, paths, other users. See
//! `support/scene.rs` for what holds in each test.

#[path = "support/raw.rs"]
mod raw;
#[path = "support/scene.rs"]
mod scene;
mod support;

use lapce_ipc::client::{Client, DeliveryPolicy};
use lapce_ipc::wire::control::{ClosingCode, FailedCode, InternKind, RefusedCode};
use lapce_ipc::wire::record::{Flags, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Name, Pattern, Topic};
use raw::{Control, Lane, Raw, hello, publish};
use scene::{Good, Scene, intern, subscribe};
use std::io::ErrorKind::PermissionDenied;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use support::linger::lingering;
use support::users::{OTHER_USER, are_root, as_other_user, open_folder};
use support::{Broker, IPC_SERVER_MAIN, LAPCE_IPC, Process, command, wait_until};

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
            "frame announces 542393671 bytes, limit is 4096",
        ),
        ("oversized", 4097u32.to_le_bytes().to_vec(), "frame announces 4097 bytes, limit is 4096"),
        ("longest", vec![0xff; 4], "frame announces 4294967295 bytes, limit is 4096"),
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
        ("trailing", framed(&trailing), "3 bytes left after the value"),
        ("another magic", magic, "hello has the wrong magic"),
        (
            "no hello",
            ClientFrame::Status { serial: 1 }.encode().expect("a frame"),
            "first frame is variant 6, expected a hello",
        ),
        ("bye", ClientFrame::Bye.encode().expect("a frame"), "first frame is variant 7, expected a hello"),
        ("no variant", framed(&[0xff; 40]), "first frame is variant 4294967295, expected a hello"),
        ("larger than any", framed(&[&good[4..], &[0; 5000]].concat()), "bytes, limit is 4096"),
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
        ("trailing", framed(&trailing), "1 bytes left after the value"),
        ("no-variant", framed(&[200, 0, 0, 0, 1, 0, 0, 0]), "malformed value: invalid value: integer `200`"),
        ("no-policy", policy, "malformed value: invalid value: integer `9`"),
        ("huge-text", huge, "value is cut off after"),
        ("second-hello", hello("again").encode().expect("a frame"), "unexpected second Hello"),
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
    scene.refused(&mut offender, RefusedCode::Version, "protocol version mismatch: client 99, broker 1");
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
    assert_eq!(error.to_string(), "protocol version mismatch: broker 99, client 1");
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
        half.push(Lane::Bulk, &publish(topic, 4, Flags::WHOLE), b"last");
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
    raw.push(Lane::Bulk, &publish(topic, 2, Flags::WHOLE), b"ok");
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

/// Whether this kernel is at least of this version.
fn is_kernel_from(version: (u32, u32)) -> bool {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("its version");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    (numbers.next().expect("a version"), numbers.next().expect("a version")) >= version
}

/// The last close of a descriptor can wait for as long as the client likes, and it would be the broker's.
#[test]
fn descriptors_are_refused_by_the_kernel_before_and_after_a_connection_is_accepted() {
    if !is_kernel_from((6, 16)) {
        support::probe::note("skipped: this kernel passes descriptors on, and drops them as they are read");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let health = folder.path().join("health.sock");
    let mut scene = Scene::new(&[("health_server.socket_path", health.to_str().expect("a path"))]);
    let (stream, _listener) = lingering();
    let files = [stream.as_fd()];
    let mut raw = scene.raw("sender");
    let question = ClientFrame::Unserve { serial: 1, service: 0 }.encode().expect("a frame");
    wait_until("the endpoints", || health.exists());
    let greeting = hello("early").encode().expect("a frame");
    // The acceptor is not running.
    scene.broker.process().stop();
    let mut waiting = scene.control();
    assert_eq!(waiting.send_descriptors(&greeting, &files).expect_err("EPERM").kind(), PermissionDenied);
    let mut to_health = Control::connect(&health);
    assert_eq!(to_health.send_descriptors(b"GET / HTTP/1.1", &files).expect_err("EPERM").kind(), PermissionDenied);
    scene.broker.process().signal("CONT");
    assert_eq!(raw.control.send_descriptors(&question, &files).expect_err("EPERM").kind(), PermissionDenied);
    // What was refused has not arrived, and the connection is as it was.
    raw.flush(1);
    rustix::net::sockopt::set_socket_linger(&stream, None).expect("its option");
    drop((stream, waiting, to_health, raw));
    scene.good.goes_on();
    scene.finish();
}

#[test]
fn descriptors_are_dropped_where_the_kernel_passes_them_on() {
    if is_kernel_from((6, 16)) {
        support::probe::note("skipped: this kernel refuses them");
        return;
    }
    let scene = Scene::new(&[("ipc.handshake_timeout_ms", "10000")]);
    let mut raw = scene.raw("flooder");
    raw.flush(1);
    let before = scene.broker.descriptors_at_rest();
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
    // Beside them the good clients come and go in the broker's own time.
    wait_until("the descriptors to be closed", || scene.broker.descriptors() <= before);

    let mut early = scene.control();
    early.send_descriptors(&hello("early").encode().expect("a frame"), &sixty).expect("it is sent");
    let mut early = Raw::welcomed(early);
    early.flush(1);
    // Its own and no more, once the broker has closed its copies of those that Welcome has brought us.
    wait_until("only its own descriptors to be left", || scene.broker.descriptors() <= before + 6);
    drop(early);
    wait_until("its descriptors to be closed", || scene.broker.descriptors() <= before);
    drop(raw);
    scene.finish();
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let scene = Scene::new(&[]);
    scene.good.goes_on();
    let before = scene.broker.descriptors_at_rest();
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
    wait_until("their descriptors to be closed", || scene.broker.descriptors() <= before);
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
    let text = "has reached its share of 4 connections (ipc.max_connections, limits.user_share_percent)";
    scene.refused(&mut next, RefusedCode::TooManyConnections, text);
    drop(held);
    let socket = scene.broker.socket();
    wait_until("room for another", || Client::builder().socket(&socket).connect().is_ok());
    scene.finish();
}

// -------------------------------------------------------------------------------------------------- paths and users

#[test]
fn what_is_no_socket_is_told_apart_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("precious");
    std::fs::write(&path, "precious").expect("a file");
    let error = Client::builder().socket(&path).connect().expect_err("a file");
    assert!(error.is_no_broker() && error.to_string().ends_with("not a socket"), "{error}");
    let error = Client::builder().socket(folder.path().join("nothing")).connect().expect_err("nothing");
    assert!(error.is_no_broker() && error.to_string().contains("does not exist"), "{error}");

    for place in [&path, folder.path()] {
        let mut serve = command(IPC_SERVER_MAIN);
        serve.arg("--socket").arg(place);
        let mut broker = Process::start(serve);
        assert_ne!(broker.code(), 0);
        let (log, lock) = (broker.stderr(), format!("{}.lock", place.display()));
        assert!(log.contains(&format!("{}: not a socket", place.display())), "{log}");
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
    let complaint = format!("{}: another broker is listening", scene.broker.socket().display());
    assert!(second.stderr().contains(&complaint), "{}", second.stderr());
    scene.good.goes_on();
    assert_eq!(scene.broker.client().request("echo", "first").expect("the first broker"), b"first");

    // Killed, it leaves its socket; the next takes the place over.
    scene.good.leave();
    scene.broker.process().signal("KILL");
    assert_eq!(scene.broker.process().code(), -9);
    assert!(scene.broker.socket().exists(), "nobody has put it away");
    let error = Client::builder().socket(scene.broker.socket()).connect().expect_err("it is dead");
    assert!(error.is_no_broker() && error.to_string().contains("no process listens"), "{error}");
    let mut serve = command(IPC_SERVER_MAIN);
    serve.arg("--socket").arg(scene.broker.socket());
    let mut third = Process::start(serve);
    third.wait_for("hint:");
    assert_eq!(scene.broker.client().request("echo", "third").expect("the third broker"), b"third");
    third.signal("TERM");
    assert_eq!(third.code(), 0);
    assert!(!scene.broker.socket().exists());
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
        as_other_user(&mut request);
        Process::start(request)
    };
    let open = |broker: &Broker| {
        std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).expect("our folder");
    };
    // The mode of the socket keeps it out; and where that lets it in, the broker does.
    let closed = Scene::new(&[]);
    open(&closed.broker);
    let mut stranger = request(&closed.broker);
    assert_eq!(stranger.code(), 77);
    assert!(stranger.stderr().contains("permission denied"), "{}", stranger.stderr());
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
    serve.env("LAPCE_IPC__LOGGING__SHORT_CONNECTION_MS", "0");
    as_other_user(&mut serve);
    let mut broker = Process::start(serve);
    broker.wait_for("hint:");
    let error = Client::builder().socket(&socket).connect().expect_err("another's broker");
    assert!(error.is_not_allowed(), "{error:?}");
    assert!(error.to_string().ends_with("runs as user 65534, which is not trusted"), "{error}");
    let client = Client::builder().socket(&socket).trusted_uids([OTHER_USER]).connect().expect("we were told to");
    assert_eq!(client.request("echo", "hi").expect("the echo"), b"hi");
    // Nothing was said to it before: it knows of one connection only.
    broker.wait_for("connection opened");
    assert_eq!(broker.stderr().matches("connection opened").count(), 1, "{}", broker.stderr());
}
