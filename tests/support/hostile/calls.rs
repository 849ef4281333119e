//! Attacks by requests.

use super::attack::{Scene, many};
use super::members::{BIG, ECHO, FAILS, SLOW, WANTS_MUCH};
use crate::raw::{Lane, Raw, words};
use crate::support::load::connect;
use lapce_ipc::client::RequestOptions;
use lapce_ipc::wire::control::InternKind;
use lapce_ipc::wire::record::{Flags, Header, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame, Topic};
use rustix::process::{Signal, getpid, kill_process};
use std::time::Duration;

/// As long as a deadline may be.
const LONG: u64 = 600_000_000_000;

/// The places of a requester in turn, each time with a new generation.
pub(crate) struct Places {
    next: u64,
    count: u64,
}

impl Places {
    pub(crate) fn new(count: u32) -> Places {
        Places { next: 0, count: count.into() }
    }

    /// The header of the next request, of `total` bytes, without flags.
    pub(crate) fn request(&mut self, service: u32, total: usize) -> Header {
        let (id, id2) = ((self.next % self.count) as u32, (self.next / self.count) as u32 + 1);
        self.next += 1;
        Header { id, id2, arg: service, total: total as u32, nanos: LONG, ..Header::new(Kind::Request) }
    }
}

/// A connection, and its number of a service.
fn requester(scene: &Scene, name: &str, service: &str) -> (Raw, u32) {
    let (mut raw, name) = (scene.raw(name), Topic::parse(service).expect("a name"));
    let answer = raw.ask(|serial| ClientFrame::Intern { serial, kind: InternKind::Service, name });
    let BrokerFrame::Interned { id, .. } = answer else { panic!("{answer:?}") };
    (raw, id)
}

/// Sends so many requests, and as many again as have failed.
fn keep_outstanding(scene: &Scene, name: &str, count: usize, flags: Flags, total: usize, payload: &[u8]) {
    let (mut raw, service) = requester(scene, name, ECHO);
    let (mut places, mut missing) = (Places::new(raw.limits.max_requests), count);
    let mut send = |raw: &mut Raw, times: usize| {
        for _ in 0..times {
            let header = Header { flags, ..places.request(service, total) };
            assert!(raw.place(Lane::Express, &words(&header, payload.len()), payload), "put out");
        }
    };
    send(&mut raw, missing);
    scene.again(Duration::from_millis(1), || {
        missing = 0;
        while let Some((header, _)) = raw.try_receive() {
            missing += usize::from(header.kind == Kind::Failed);
        }
        send(&mut raw, missing);
        assert!(!raw.has_word(), "put out");
    });
}

/// Requests whose bodies never come: as many as one responder may have outstanding.
pub(crate) fn half_requests(scene: &Scene) {
    keep_outstanding(scene, "half-requests", many(1_024), Flags::FIRST, 2_000, &[0; 1_000]);
}

/// The service has failed; when its breaker tries it again, the probes are requests whose bodies never come.
pub(crate) fn half_probes(scene: &Scene) {
    let client = connect();
    while !client.request(ECHO, FAILS).expect_err("it fails").is_breaker_open() {}
    keep_outstanding(scene, "half-probes", 3, Flags::FIRST, 2_000, &[0; 1_000]);
}

/// Requests of a long reply, for which no credit comes.
pub(crate) fn no_credit(scene: &Scene) {
    keep_outstanding(scene, "no-credit", 8, Flags::WHOLE, WANTS_MUCH.len(), WANTS_MUCH);
}

/// A client of the library that stops (SIGSTOP) while a long reply comes.
pub(crate) fn stopped_requester(scene: &Scene) {
    let client = connect();
    let options = RequestOptions { timeout: Some(Duration::from_secs(600)), ..RequestOptions::default() };
    let mut reply = client.request_stream_with(ECHO, WANTS_MUCH, options).expect("it is sent");
    scene.in_force();
    kill_process(getpid(), Signal::STOP).expect("our own process");
    assert_eq!(reply.next().map(|chunk| chunk.map(|chunk| chunk.len()).ok()), Some(Some(BIG)));
}

/// Deadlines of 1 ms, at a service that takes 20 ms.
pub(crate) fn tiny_deadlines(scene: &Scene) {
    let client = connect();
    let options = RequestOptions { timeout: Some(Duration::from_millis(1)), ..RequestOptions::default() };
    for _ in 0..5 {
        let _ = client.request_with(SLOW, "hi", options);
    }
    scene.again(Duration::from_millis(1), || drop(client.request_with(SLOW, "hi", options)));
}

/// Connections that ask the echo, and read nothing: each has a backlog of almost 4 MiB.
pub(crate) fn echo_unread(scene: &Scene) {
    let mut raws = Vec::new();
    for _ in 0..many(100) {
        let (mut raw, echo) = requester(scene, "echo-unread", "echo");
        let mut places = Places::new(raw.limits.max_requests);
        for _ in 0..3_600 {
            let header = Header { flags: Flags::WHOLE, ..places.request(echo, 1_000) };
            if !raw.place(Lane::Express, &words(&header, 1_000), &[0; 1_000]) {
                break;
            }
        }
        raws.push(raw);
    }
    scene.hold(&raws);
}
