//! The limits of the health endpoints: what slow, idle and silent clients may take, and that a probe is answered all
//! the same.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use support::http::{Answer, connect, read, talk};
use support::{Broker, wait_until};

const HEAD: &str = "GET /live HTTP/1.1\r\nHost: localhost\r\n";

/// Keys that leave nothing to time.
const PATIENT: [(&str, &str); 3] = [
    ("health_server.request_timeout_ms", "600000"),
    ("health_server.idle_timeout_secs", "3600"),
    ("health_server.unread_timeout_secs", "3600"),
];

fn patient(more: &[(&str, &str)]) -> Broker {
    let mut broker = Broker::start_with(&[&PATIENT, more].concat());
    wait_until("the broker to be ready", || broker.get("/ready").code == 200);
    broker
}

/// Whether the other side has closed, now.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let closed = match stream.read(&mut [0; 1024]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).unwrap();
    closed
}

/// One answer, of a connection that stays.
fn answered(stream: &mut TcpStream) -> bool {
    stream.write_all(format!("{HEAD}\r\n").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"}") {
        let mut some = [0; 1024];
        match stream.read(&mut some).unwrap() {
            0 => return false,
            read => bytes.extend_from_slice(&some[..read]),
        }
    }
    Answer::parse(&bytes).unwrap().code == 200
}

#[test]
fn live_is_answered_though_all_connections_are_taken() {
    let mut broker = patient(&[]);
    let address = broker.health();
    let mut slow: Vec<_> = (0..128).map(|_| connect(address)).collect();
    for stream in &mut slow {
        stream.write_all(&HEAD.as_bytes()[..HEAD.len() - 5]).unwrap();
    }
    let began = Instant::now();
    assert_eq!(broker.get("/live").code, 200);
    let elapsed = began.elapsed();
    support::probe::note(&format!("/live beside 128 slow clients: {elapsed:?}"));
    // Nobody's time was over: the one who was quiet longest gave way, and no other.
    wait_until("the first to be closed", || is_closed(&mut slow[0]));
    assert_eq!(slow.iter_mut().skip(1).filter_map(|stream| is_closed(stream).then_some(())).count(), 0);
    // A whole wave of them more than there is room for.
    let wave: Vec<_> = (0..300).map(|_| connect(address)).collect();
    assert_eq!(broker.get("/live").code, 200);
    drop(wave);
}

#[test]
fn who_is_quiet_longest_gives_way() {
    let mut broker = patient(&[("health_server.max_connections", "4")]);
    let address = broker.health();
    let mut kept: Vec<_> = (0..4).map(|_| connect(address)).collect();
    for stream in &mut kept {
        assert!(answered(stream));
    }
    // The first is heard of again, so it is the second's turn, and then the third's.
    assert!(answered(&mut kept[0]));
    for gone in [1, 2] {
        let mut next = connect(address);
        assert!(answered(&mut next));
        wait_until("one to be closed", || is_closed(&mut kept[gone]));
        assert!(!is_closed(&mut kept[0]) && !is_closed(&mut kept[3]), "{gone}");
        kept.push(next);
    }
    assert!(answered(&mut kept[0]));
}

#[test]
fn who_does_not_read_its_answers_gives_way_too() {
    let mut broker = patient(&[("health_server.max_connections", "4")]);
    // More than there is room for while some are being put away.
    let silent = silent(broker.health(), 24);
    for _ in 0..8 {
        assert_eq!(broker.get("/live").code, 200);
    }
    drop(silent);
}

/// Clients that send requests and read nothing, until no more is taken from them.
fn silent(address: SocketAddr, number: usize) -> Vec<TcpStream> {
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(50);
    let silent = |_| {
        let mut stream = connect(address);
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while stream.write_all(ask.as_bytes()).is_ok() {}
        stream
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..number).map(|number| scope.spawn(move || silent(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn responses_that_are_not_read_take_no_memory() {
    let mut broker = patient(&[]);
    let address = broker.health();
    let before = broker.memory().rss;
    let silent = silent(address, 40);
    assert_eq!(broker.get("/live").code, 200);
    assert_eq!(broker.get("/metrics").code, 200);
    let grown = broker.memory().rss.saturating_sub(before);
    support::probe::note(&format!("40 clients that read nothing: {grown} bytes"));
    assert!(grown < 16 << 20, "{grown} bytes");
    drop(silent);
}

#[test]
fn unread_responses_beyond_their_limit_give_way() {
    let mut broker = patient(&[("health_server.max_unread_bytes", "65536")]);
    let mut silent = silent(broker.health(), 20);
    // A response has more than 8 KiB, so that 8 connections stay at most.
    assert!(broker.get("/metrics").body.len() > 8192);
    wait_until("the others to be closed", || {
        assert_eq!(broker.get("/metrics").code, 200);
        silent.retain(|stream| !is_reset(stream));
        silent.len() <= 8
    });
}

/// Whether the other side has closed; what it has sent is left unread.
fn is_reset(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.write(b"G").is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
}

#[test]
fn pipelined_requests_are_answered_one_after_the_other() {
    let mut broker = patient(&[]);
    let mut asks = String::new();
    for number in 0..300 {
        asks += match number % 3 {
            0 => "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n",
            1 => "HEAD /live HTTP/1.1\r\nHost: localhost\r\n\r\n",
            _ => "\r\nGET /style.css HTTP/1.1\nHost: localhost\n\n",
        };
    }
    asks += "GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    asks += &"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(10);
    let answers = String::from_utf8(talk(broker.health(), asks.as_bytes())).unwrap();
    let codes: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(codes.len(), 301, "none after the one that closes");
    assert!(codes[..300].iter().all(|code| *code == "200") && codes[300] == "404", "{codes:?}");
    assert!(answers.ends_with("not found\n"), "{answers}");
}

#[test]
fn a_head_that_does_not_come_is_waited_for_as_long_as_is_said() {
    let keys = [("health_server.request_timeout_ms", "100")];
    let mut broker = Broker::start_with(&[&PATIENT[1..], &keys].concat());
    let mut slow = connect(broker.health());
    slow.write_all(HEAD.as_bytes()).unwrap();
    let answer = read(&mut slow);
    assert_eq!(Answer::parse(&answer).unwrap().code, 408, "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn an_idle_connection_is_kept_as_long_as_is_said() {
    let keys = [PATIENT[0], PATIENT[2], ("health_server.idle_timeout_secs", "1")];
    let mut broker = Broker::start_with(&keys);
    let answer = talk(broker.health(), format!("{HEAD}\r\n").as_bytes());
    assert_eq!(Answer::parse(&answer).unwrap().code, 200);
}

/// Sends requests without end, and reads nothing, until it is disconnected.
fn never_reads(mut stream: impl Write) {
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let error = loop {
        if let Err(error) = stream.write_all(ask.as_bytes()) {
            break error;
        }
    };
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it waits for ever: {error}");
}

#[test]
fn an_answer_is_left_unread_as_long_as_is_said() {
    let keys = [PATIENT[0], PATIENT[1], ("health_server.unread_timeout_secs", "1")];
    let mut broker = Broker::start_with(&keys);
    never_reads(connect(broker.health()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("health");
    let at_path = [&keys[..], &[("health_server.socket_path", path.to_str().unwrap())]].concat();
    let _broker = Broker::start_with(&at_path);
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_write_timeout(Some(support::DEADLINE)).unwrap();
    never_reads(stream);
}
