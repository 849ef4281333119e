//! Replies that their requesters do not take are kept: the service goes on, and each call has its outcome.

#[path = "support/raw.rs"]
mod raw;
#[path = "support/scene.rs"]
mod scene;
mod support;

use lapce_ipc::client::asynchronous::AsyncClient;
use lapce_ipc::client::{BreakerState, Client, KeepOptions, RequestOptions, Service};
use lapce_ipc::wire::control::InternKind;
use lapce_ipc::wire::record::{Flags, Header, Kind, Outcome};
use raw::{Lane, Raw, cells, request};
use scene::intern;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use support::probe::pattern;
use support::role::{Child, heard, role, tell};
use support::{Broker, DEADLINE, signal, wait_for_stop, wait_until};

/// A reply that is many times as long as its credit.
const LARGE: usize = 1 << 20;

/// One failure of the service opens its breaker.
fn broker() -> Broker {
    Broker::start_with(&[("circuit_breaker.failure_threshold", "1")])
}

fn within(seconds: u64) -> RequestOptions {
    RequestOptions { timeout: Some(Duration::from_secs(seconds)), ..RequestOptions::default() }
}

/// Replies to `large` with a large reply, and to others with themselves.
fn reply_to(payload: &[u8]) -> Vec<u8> {
    if payload == b"large" { pattern(LARGE, 1) } else { payload.to_vec() }
}

fn run(mut service: Service) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let ended = service.run(|request| Ok::<_, String>(reply_to(request.payload())));
        assert!(ended.unwrap_err().is_disconnected());
    })
}

/// Five other callers are served, and the service has had no failure.
#[track_caller]
fn others_are_served(broker: &Broker) {
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..5u8)
            .map(|n| {
                scope.spawn(move || {
                    let client = broker.client();
                    for _ in 0..3 {
                        assert_eq!(client.request_with("svc", [n], within(10)).unwrap(), [n]);
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    });
    has_no_failure(broker);
}

#[track_caller]
fn has_no_failure(broker: &Broker) {
    let breakers = broker.client().breakers().unwrap();
    let breaker = breakers.iter().find(|breaker| breaker.service.as_str() == "svc").unwrap();
    assert_eq!((breaker.state, breaker.failures), (BreakerState::Closed, 0));
}

/// A requester that grants credit when it is told to.
struct Requester {
    raw: Raw,
    /// Cells that it has taken, and not granted again.
    taken: u32,
    reply: Vec<u8>,
}

impl Requester {
    /// Asks for a large reply, within a time; zero: the default.
    fn asks(broker: &Broker, time: Duration) -> Requester {
        let mut raw = Raw::connect(&broker.socket(), "requester");
        let service = intern(&mut raw, InternKind::Service, "svc");
        let nanos = u64::try_from(time.as_nanos()).unwrap();
        raw.push(Lane::Express, &Header { nanos, ..request(0, service, 5, Flags::WHOLE) }, b"large");
        Requester { raw, taken: 0, reply: Vec::new() }
    }

    /// Takes as much of the reply as its credit allows.
    fn begun(broker: &Broker, time: Duration) -> Requester {
        let mut requester = Requester::asks(broker, time);
        requester.exhausts();
        requester
    }

    fn take(&mut self) -> Header {
        let (header, payload) = self.raw.receive();
        self.taken += u32::try_from(cells(payload.len())).unwrap();
        if header.flags.has(Flags::FIRST) {
            self.reply.clear();
        }
        self.reply.extend(payload);
        header
    }

    fn push(&mut self, kind: Kind, arg: u32) {
        self.raw.push(Lane::Express, &Header { id: 0, id2: 1, arg, ..Header::new(kind) }, &[]);
    }

    /// Grants what it has taken.
    fn grant(&mut self) {
        if self.taken > 0 {
            self.push(Kind::ResponseCredit, self.taken);
            self.taken = 0;
        }
    }

    /// Takes all that the credit allows.
    fn exhausts(&mut self) {
        let record = u32::try_from(cells(self.raw.geometry.slot_size as usize)).unwrap();
        while self.taken + record <= self.raw.limits.stream_credit_cells {
            assert_eq!(self.take().kind, Kind::RoutedResponse);
        }
    }

    /// Grants credit until it has the whole reply.
    fn takes_all(mut self) {
        loop {
            self.grant();
            if self.take().flags.has(Flags::LAST) {
                break;
            }
        }
        assert!(self.reply == pattern(LARGE, 1));
    }

    /// Grants nothing, and takes what comes until the call ends.
    fn end(&mut self) -> Header {
        loop {
            let header = self.take();
            if header.kind == Kind::Failed || header.flags.has(Flags::END.with(Flags::ERROR)) {
                return header;
            }
        }
    }

    #[track_caller]
    fn ends_untaken(mut self) {
        self.end();
        assert!(self.reply == b"the requester did not take the reply in time", "{} bytes", self.reply.len());
    }
}

#[test]
fn a_requester_that_is_stopped_within_its_reply_delays_no_other_and_gets_it_when_it_goes_on() {
    let broker = broker();
    let mut requester = Child::ready(&broker, "ask");
    let pid = requester.pid();
    let client = broker.client();
    let mut service = client.serve("svc").unwrap();
    let (stops, stopped) = sync_channel(1);
    let serves = std::thread::spawn(move || {
        let ended = service.run(|request| {
            if request.payload() == b"large" {
                // Before the reply: the requester takes nothing of it.
                signal(pid, "STOP");
                wait_for_stop(pid);
                stops.send(()).unwrap();
            }
            Ok::<_, String>(reply_to(request.payload()))
        });
        assert!(ended.unwrap_err().is_disconnected());
    });
    requester.say("go");
    stopped.recv_timeout(DEADLINE).unwrap();
    others_are_served(&broker);
    requester.go_on();
    requester.hears("got");
    others_are_served(&broker);
    client.close();
    serves.join().unwrap();
}

#[test]
fn requesters_that_grant_no_credit_delay_no_other_and_have_their_deadline() {
    let broker = broker();
    let client = broker.client();
    let serves = run(client.serve("svc").unwrap());
    let mut late = Requester::begun(&broker, Duration::from_secs(2));
    let patient = Requester::begun(&broker, DEADLINE);
    others_are_served(&broker);
    let end = late.end();
    assert_eq!((end.kind, end.code), (Kind::Failed, Outcome::DeadlineExceeded as u16));
    patient.takes_all();
    others_are_served(&broker);
    client.close();
    serves.join().unwrap();
}

#[test]
fn beyond_the_bound_the_oldest_call_ends_and_the_breaker_stays_closed() {
    let broker = broker();
    for (max_replies, max_bytes) in [(2, usize::MAX), (usize::MAX, 2 * LARGE)] {
        let client = broker.client();
        let options = KeepOptions { max_replies, max_bytes, patience: Duration::ZERO, ..KeepOptions::default() };
        let serves = run(client.serve("svc").unwrap().keep(options));
        let [first, second, third] = [(); 3].map(|()| Requester::begun(&broker, DEADLINE));
        first.ends_untaken();
        others_are_served(&broker);
        second.takes_all();
        third.takes_all();
        client.close();
        serves.join().unwrap();
    }
}

#[test]
fn kept_replies_leave_a_place_of_a_service_with_two() {
    let broker = broker();
    let client = broker.client();
    let serves = run(client.serve_up_to("svc", 2).unwrap());
    let first = Requester::begun(&broker, DEADLINE);
    let second = Requester::begun(&broker, DEADLINE);
    // After the patience.
    first.ends_untaken();
    wait_until("a place", || broker.client().request("svc", "x").is_ok());
    second.takes_all();
    client.close();
    serves.join().unwrap();
}

/// Keeps the reply to a requester.
fn keep(broker: &Broker, service: &mut Service, time: Duration) -> Requester {
    let requester = Requester::asks(broker, time);
    let request = service.next_timeout(DEADLINE).unwrap().unwrap();
    let reply = reply_to(request.payload());
    service.reply(request, Ok::<_, String>(reply)).unwrap();
    assert_eq!(service.kept_bytes(), LARGE);
    requester
}

#[track_caller]
fn releases(service: &mut Service) {
    wait_until("the reply to be released", || {
        assert!(service.next_timeout(Duration::from_millis(10)).unwrap().is_none());
        service.kept_bytes() == 0
    });
}

#[test]
fn a_kept_reply_is_released_when_its_call_ends() {
    let mut broker = broker();
    let client = broker.builder().connect().unwrap();
    let mut service = client.serve("svc").unwrap();

    let mut cancels = keep(&broker, &mut service, DEADLINE);
    cancels.push(Kind::Cancel, 0);
    releases(&mut service);

    let late = keep(&broker, &mut service, Duration::from_millis(200));
    releases(&mut service);

    drop(keep(&broker, &mut service, DEADLINE));
    releases(&mut service);

    let takes = keep(&broker, &mut service, DEADLINE);
    let taking = std::thread::spawn(move || takes.takes_all());
    releases(&mut service);
    taking.join().unwrap();

    let lost = keep(&broker, &mut service, DEADLINE);
    broker.kill();
    broker.start_again();
    releases(&mut service);
    drop((late, lost));

    let mut dropped = keep(&broker, &mut service, DEADLINE);
    let exhausting = std::thread::spawn(move || {
        dropped.exhausts();
        dropped
    });
    while !exhausting.is_finished() {
        assert!(service.next_timeout(Duration::from_millis(10)).unwrap().is_none());
    }
    let mut dropped = exhausting.join().unwrap();
    // The broker has credit that the responder has not: what is no failure of the service is none here, either.
    dropped.grant();
    dropped.raw.flush(1);
    drop(service);
    dropped.ends_untaken();
    has_no_failure(&broker);

    let mut service = client.serve("svc").unwrap();
    let _closed = keep(&broker, &mut service, DEADLINE);
    let closes = std::thread::spawn(move || {
        broker.client().status().unwrap();
        client.close();
        broker
    });
    assert!(service.next_timeout(DEADLINE).unwrap_err().is_disconnected());
    assert_eq!(service.kept_bytes(), 0);
    closes.join().unwrap();
}

#[tokio::test]
async fn an_async_service_keeps_replies_too() {
    let broker = broker();
    let client = AsyncClient::connect_with(broker.builder()).await.unwrap();
    let mut service = client.serve("svc").await.unwrap();
    let (first, second, other) = tokio::task::spawn_blocking(move || {
        let requesters = (Requester::asks(&broker, DEADLINE), Requester::asks(&broker, DEADLINE));
        (requesters.0, requesters.1, broker)
    })
    .await
    .unwrap();
    for kept in 1..=2 {
        let request = service.next().await.unwrap().unwrap();
        let reply = reply_to(request.payload());
        service.reply(request, Ok::<_, String>(reply)).unwrap();
        assert_eq!(service.kept_bytes(), kept * LARGE);
    }
    let callers = std::thread::spawn(move || {
        others_are_served(&other);
        first.takes_all();
        other
    });
    while service.kept_bytes() > LARGE {
        let Ok(request) = tokio::time::timeout(Duration::from_millis(10), service.next()).await else { continue };
        let request = request.unwrap().unwrap();
        let reply = reply_to(request.payload());
        service.reply(request, Ok::<_, String>(reply)).unwrap();
    }
    let _broker = callers.join().unwrap();
    drop(service);
    tokio::task::spawn_blocking(|| second.ends_untaken()).await.unwrap();
}

#[test]
fn child() {
    if role().is_none() {
        return;
    }
    let client = Client::connect().unwrap();
    tell("ready");
    heard();
    assert!(client.request_with("svc", "large", within(60)).unwrap() == pattern(LARGE, 1));
    tell("got");
    heard();
}
