//! Calls that wait: what they wait for, for how long, and that none waits for itself or keeps others waiting.

mod support;

use lapce_ipc::client::{
    Client, ConnectionState, ReconnectOptions, RefusedCode, RequestOptions, SubscribeOptions, WaitStrategy,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;
use support::cut::cut_own;
use support::probe::counter;
use support::{Broker, DEADLINE, wait_until};

/// Does something that could hang, and fails if it does.
#[track_caller]
fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = sync_channel(1);
    let worker = thread::spawn(move || done.send(work()).unwrap());
    let result = is_done.recv_timeout(DEADLINE);
    assert!(result.is_ok() || worker.is_finished(), "{what} has not come to its end after {DEADLINE:?}");
    worker.join().unwrap_or_else(|panic| resume_unwind(panic));
    result.unwrap()
}

/// Whether a thread of this process sleeps.
fn sleeps(thread: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
}

#[test]
fn client_calls_while_a_message_is_read_hang_nobody() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    ends("reading", move || {
        let mut subscription = client.subscribe("t").unwrap();
        let mut echoed = client.subscribe("echoed").unwrap();
        let publisher = client.publisher("echoed").unwrap();
        other.publish("t", "queued").unwrap();
        other.flush().unwrap();
        // Behind the name of its topic a message goes through its queue: nothing is held then.
        let (reply, payload) = subscription.read_next(|view| (client.request("echo", "hi"), view.to_vec())).unwrap();
        assert_eq!((reply.unwrap(), payload), (b"hi".to_vec(), b"queued".to_vec()));
        other.publish("t", "in place").unwrap();
        other.flush().unwrap();
        let payload = subscription.read_next(|view| {
            assert!(client.request("echo", "hi").unwrap_err().is_view_outstanding());
            assert!(client.subscribe("x").unwrap_err().is_view_outstanding());
            assert!(client.closed(None).unwrap_err().is_view_outstanding());
            assert!(publisher.publish(vec![0; 1 << 20]).unwrap_err().is_view_outstanding(), "it would have to wait");
            assert!(echoed.try_next().unwrap().is_none(), "this does not wait");
            publisher.publish("published").unwrap();
            view.to_vec()
        });
        assert_eq!(payload.unwrap(), b"in place");
        assert_eq!(echoed.next().unwrap().unwrap().payload(), b"published");
        assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    });
    assert_eq!(broker.counter("violations"), 0);
}

#[test]
fn a_queued_message_that_is_read_slowly_keeps_nobody_waiting() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    ends("reading", move || {
        let mut subscription = client.subscribe("t").unwrap();
        other.publish("t", "queued").unwrap();
        let echoed = subscription.read_next(|_| {
            let client = client.clone();
            ends("a request", move || client.request("echo", "hi"))
        });
        assert_eq!(echoed.unwrap().unwrap(), b"hi");
    });
}

#[test]
fn a_panic_while_a_message_is_read_takes_nothing_from_anybody() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let waiting = client.clone();
    let (say, heard) = sync_channel(1);
    let mut subscription = client.subscribe("t").unwrap();
    let mut theirs = waiting.subscribe("theirs").unwrap();
    other.publish("t", "queued").unwrap();
    subscription.read_next(|_| ()).unwrap();
    other.publish("t", "in place").unwrap();
    other.flush().unwrap();
    let mut follower = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        subscription.read_next(|_| {
            let thread = thread::spawn(move || {
                say.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                theirs.next_timeout(DEADLINE).unwrap().map(|message| message.into_payload())
            });
            let number = heard.recv().unwrap();
            wait_until("the other thread to wait", || sleeps(number));
            follower = Some(thread);
            other.publish("theirs", "for the other").unwrap();
            other.flush().unwrap();
            resume_unwind(Box::new("a panic of the user's"));
        })
    }));
    assert!(panicked.is_err());
    let follower = follower.unwrap();
    let got = ends("the other thread", move || follower.join().unwrap());
    assert_eq!(got.as_deref(), Some(&b"for the other"[..]), "the one who waited has become the reader");
}

#[test]
fn messages_whose_reading_panics_are_taken_and_their_room_is_given_back() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let options = SubscribeOptions { capacity_bytes: 2048, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe_with("t", options).unwrap();
    let publishes = thread::spawn(move || {
        for number in 0..500_u32 {
            other.publish("t", number.to_le_bytes()).unwrap();
        }
        other.flush().unwrap();
    });
    for number in 0..500_u32 {
        let mut seen = Vec::new();
        let read = catch_unwind(AssertUnwindSafe(|| {
            subscription.read_next(|view| {
                seen = view.to_vec();
                resume_unwind(Box::new(()));
            })
        }));
        assert!(read.is_err(), "evicted: its room was not given back");
        assert_eq!(seen, number.to_le_bytes());
    }
    publishes.join().unwrap();
    assert_eq!(subscription.dropped(), 0);
}

/// A client that comes back.
fn stays(broker: &Broker) -> Client {
    broker.builder().connect().unwrap()
}

/// Fills the queue at the broker's door, so that nobody can connect.
fn besiege(broker: &Broker) -> Vec<OwnedFd> {
    let address = SocketAddrUnix::new(broker.socket()).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let mut waiting = Vec::new();
    loop {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&socket, &address) {
            Ok(()) => waiting.push(socket),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                return waiting;
            }
        }
    }
}

/// More than a lane has space for that has not grown.
const REQUESTS: u64 = 40;

#[test]
fn all_requests_under_way_end_when_nobody_listens() {
    let mut broker = Broker::start();
    let (client, other) = (stays(&broker), stays(&broker));
    let _service = other.serve("slow").unwrap();
    let streams: Vec<_> = (0..REQUESTS).map(|_| client.request_stream("slow", "").unwrap()).collect();
    client.request("echo", "behind them").unwrap();
    broker.kill();
    for mut stream in streams {
        let error = stream.next_timeout(DEADLINE).unwrap_err();
        assert!(error.is_disconnected(), "{error}");
    }
}

#[test]
fn requests_that_ended_because_nobody_listens_are_cancelled_at_a_broker_that_lives() {
    let mut broker = Broker::start();
    let (client, other, watch) = (stays(&broker), stays(&broker), stays(&broker));
    let mut service = other.serve("slow").unwrap();
    let streams: Vec<_> = (0..REQUESTS).map(|_| client.request_stream("slow", "").unwrap()).collect();
    let requests: Vec<_> = (0..REQUESTS).map(|_| service.next().unwrap().unwrap()).collect();
    let mut events = client.events();
    assert!(events.next().unwrap().is_connected());
    let away = broker.folder().join("away");
    std::fs::rename(broker.socket(), &away).unwrap();
    broker.process().stop();
    // Until the lane is full: no cancel has space then.
    let (asks, is_full) = (client.clone(), Arc::new(AtomicBool::new(false)));
    let (say, heard) = sync_channel(1);
    let fills = thread::spawn({
        let is_full = is_full.clone();
        move || {
            say.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let mut fillers = Vec::new();
            while !is_full.load(Ordering::SeqCst) {
                fillers.push(asks.request_stream("slow", "").unwrap());
            }
            fillers
        }
    });
    let number = heard.recv().unwrap();
    wait_until("the lane to be full", || sleeps(number));
    is_full.store(true, Ordering::SeqCst);
    assert_eq!(cut_own(&broker.socket()), 3);
    for mut stream in streams {
        let error = stream.next_timeout(DEADLINE).unwrap_err();
        assert!(error.is_disconnected(), "{error}");
    }
    drop(fills.join().unwrap());
    std::fs::rename(&away, broker.socket()).unwrap();
    broker.process().signal("CONT");
    wait_until("the connection to stand again", || events.next().unwrap().is_connected());
    wait_until("the calls to be cancelled", || {
        client.request("echo", "").unwrap();
        other.request("echo", "").unwrap();
        requests.iter().all(|request| request.is_cancelled())
    });
    let status = watch.status().unwrap();
    assert!(status.services.iter().all(|service| service.outstanding == 0));
    assert_eq!(counter(&status, "violations"), 0);
    // Their places are free.
    let more: Vec<_> = (0..REQUESTS).map(|_| client.request_stream("slow", "").unwrap()).collect();
    let answers =
        thread::spawn(move || (0..REQUESTS).for_each(|_| service.next().unwrap().unwrap().reply("").unwrap()));
    for mut stream in more {
        assert_eq!(stream.next().unwrap().unwrap(), b"");
    }
    answers.join().unwrap();
}

#[test]
fn a_broker_that_takes_nobody_in_at_present_is_there() {
    let mut broker = Broker::start();
    let (client, other) = (stays(&broker), stays(&broker));
    let mut service = other.serve("slow").unwrap();
    let mut stream = client.request_stream("slow", "").unwrap();
    let request = service.next().unwrap().unwrap();
    let mut events = client.events();
    broker.process().stop();
    let waiting = besiege(&broker);
    cut_own(&broker.socket());
    wait_until("an attempt to fail", || {
        matches!(events.next(), Some(ConnectionState::Reconnecting { attempt: 3, .. }))
    });
    assert!(stream.next_timeout(Duration::ZERO).unwrap_err().is_timeout(), "it is under way");
    drop(waiting);
    broker.process().signal("CONT");
    request.reply("at last").unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), b"at last");
}

#[test]
fn nothing_is_published_after_the_end() {
    let mut broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let publisher = client.publisher("t").unwrap();
    let mut service = client.serve("late").unwrap();
    let _stream = other.request_stream("late", "").unwrap();
    let request = service.next().unwrap().unwrap();
    let loan = publisher.loan(4).unwrap();
    broker.kill();
    assert!(client.closed(Some(DEADLINE)).unwrap_err().is_disconnected());
    assert!(loan.publish().unwrap_err().is_disconnected());
    for _ in 0..200 {
        assert!(publisher.publish("x").unwrap_err().is_disconnected());
        assert!(client.publish("t", "x").unwrap_err().is_disconnected());
    }
    assert!(publisher.publish(vec![0; 2_000]).unwrap_err().is_disconnected());
    assert!(publisher.loan(4).unwrap_err().is_disconnected());
    assert!(client.flush().unwrap_err().is_disconnected());
    assert!(request.reply("x").unwrap_err().is_disconnected());
}

#[test]
fn messages_that_are_there_are_taken_while_the_broker_takes_nothing() {
    let mut broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let options = SubscribeOptions { capacity_bytes: 8192, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe_with("t", options).unwrap();
    // From here on nobody needs the socket.
    client.request("echo", "").unwrap();
    for number in 0..60_u32 {
        other.publish("t", number.to_le_bytes()).unwrap();
    }
    other.flush().unwrap();
    let asks = client.clone();
    broker.process().stop();
    let (say, heard) = sync_channel(1);
    let fills = thread::spawn(move || {
        say.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        let streams: Vec<_> = (0..1_000).map(|_| asks.request_stream("echo", "x").unwrap()).collect();
        streams.into_iter().for_each(|mut stream| assert_eq!(stream.next().unwrap().unwrap(), b"x"));
    });
    let number = heard.recv().unwrap();
    wait_until("the lane to be full", || sleeps(number));
    let mut subscription = ends("taking", move || {
        for number in 0..60_u32 {
            assert_eq!(subscription.next().unwrap().unwrap().payload(), number.to_le_bytes());
        }
        assert!(subscription.try_next().unwrap().is_none());
        subscription
    });
    broker.process().signal("CONT");
    // What was owed meanwhile is given back: more than its capacity passes.
    let publishes =
        thread::spawn(move || (0..500_u32).for_each(|number| other.publish("t", number.to_le_bytes()).unwrap()));
    for number in 0..500_u32 {
        assert_eq!(subscription.next().unwrap().unwrap().payload(), number.to_le_bytes());
    }
    publishes.join().unwrap();
    fills.join().unwrap();
}

#[test]
fn a_stopped_broker_does_not_keep_a_call_beyond_its_time() {
    let mut broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("slow").unwrap();
    let publisher = client.publisher("t").unwrap();
    let under_way = client.request_stream("slow", "").unwrap();
    let request = service.next().unwrap().unwrap();
    broker.process().stop();
    let asks = client.clone();
    ends("every call", move || {
        let timeout = Duration::from_millis(50);
        for idempotent in [false, true] {
            let options = RequestOptions { timeout: Some(timeout), idempotent, ..RequestOptions::default() };
            for (service, body) in [("slow", vec![]), ("slow", vec![0; 1 << 20]), ("unknown", vec![1])] {
                assert!(asks.request_with(service, &body, options).unwrap_err().is_deadline_exceeded(), "{service}");
            }
            let mut stream = asks.request_stream_with("slow", "", options).unwrap();
            assert!(stream.next_timeout(Duration::ZERO).unwrap_err().is_timeout(), "its time is not over");
            assert!(stream.next().unwrap().unwrap_err().is_deadline_exceeded());
            assert!(stream.next().is_none());
        }
        // Dropped, a call does not wait for space either.
        drop(under_way);
        assert!(asks.flush_timeout(timeout).unwrap_err().is_timeout());
        assert!((0..100_000).any(|_| !publisher.try_publish("x").unwrap()), "the lane is full");
        assert!(publisher.try_publish(vec![0; 2_000]).unwrap_err().is_too_large());
        assert!(asks.flush_timeout(timeout).unwrap_err().is_timeout());
    });
    broker.process().signal("CONT");
    client.flush().unwrap();
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    wait_until("the calls to be cancelled", || {
        let status = client.status().unwrap();
        assert_eq!(counter(&status, "violations"), 0);
        status.services.iter().all(|service| service.outstanding == 0)
    });
    other.request("echo", "").unwrap();
    assert!(request.is_cancelled());
}

#[test]
fn connecting_takes_no_longer_than_it_may() {
    let mut broker = Broker::start();
    broker.process().stop();
    let builder = broker.builder().timeout(Duration::from_millis(50));
    let error = ends("connecting", {
        let builder = builder.clone();
        move || builder.connect()
    })
    .unwrap_err();
    assert!(error.is_disconnected() && error.to_string().contains("does not respond"), "{error}");
    let waiting = besiege(&broker);
    let error = ends("connecting", move || builder.connect()).unwrap_err();
    assert!(error.is_unreachable() && !error.is_no_broker(), "{error}");
    assert!(error.to_string().contains("listen backlog is full"), "{error}");
    drop(waiting);
    broker.process().signal("CONT");
    let mut client = None;
    wait_until("those at the door to be gone", || {
        client = broker.builder().timeout(Duration::MAX).connect().ok();
        client.is_some()
    });
    let client = client.unwrap();
    let mut events = client.events();
    cut_own(&broker.socket());
    wait_until("the connection to be lost", || !events.next().unwrap().is_connected());
    wait_until("the connection to stand again", || events.next().unwrap().is_connected());
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn options_that_make_no_sense_are_errors_that_name_them() {
    let builder = || Client::builder().socket("/nonexistent/lapce.sock");
    let error = builder().timeout(Duration::ZERO).connect().unwrap_err();
    assert!(error.is_invalid_option() && error.to_string().contains("timeout must be greater than zero"), "{error}");
    let options = ReconnectOptions { jitter: f64::NAN, ..ReconnectOptions::default() };
    let error = builder().reconnect(options).connect().unwrap_err();
    assert!(error.is_invalid_option() && error.to_string().contains("jitter NaN"), "{error}");
    assert!(builder().connect().unwrap_err().is_no_broker());
}

#[test]
fn a_busy_client_notices_the_end_of_its_broker() {
    let mut broker = Broker::start();
    let builder = broker.builder().no_reconnect().wait(WaitStrategy::Busy);
    let (_client, mut subscription) = ends("a busy subscription", move || {
        let client = builder.connect().unwrap();
        assert_eq!(client.request("echo", "x").unwrap(), b"x");
        let mut subscription = client.subscribe("t").unwrap();
        client.publish("t", "y").unwrap();
        assert_eq!(subscription.read_next(|view| view.len()).unwrap(), 1);
        (client, subscription)
    });
    let receives = thread::spawn(move || subscription.read_next(|_| ()).unwrap_err());
    broker.kill();
    let error = ends("a busy receive", || receives.join().unwrap());
    assert!(error.is_disconnected(), "{error}");
}

#[test]
fn no_state_yet_and_no_state_any_more_are_told_apart() {
    let mut broker = Broker::start();
    let client = broker.client();
    let mut events = client.events();
    assert!(events.next_timeout(DEADLINE).unwrap().unwrap().is_connected());
    assert!(events.next_timeout(Duration::ZERO).unwrap().is_none());
    broker.kill();
    assert!(events.next_timeout(DEADLINE).unwrap().unwrap().is_closed());
    for _ in 0..2 {
        assert!(events.next_timeout(DEADLINE).unwrap_err().is_disconnected());
    }
}

#[test]
fn it_is_told_why_a_connection_was_refused() {
    let broker = Broker::start_with(&[("ipc.max_connections", "1")]);
    let client = broker.client();
    let error = broker.builder().connect().unwrap_err();
    assert_eq!((error.is_refused(), error.refused_code()), (true, Some(RefusedCode::TooManyConnections)), "{error}");
    assert!(!error.is_protocol() && !error.is_unreachable() && !error.is_version_mismatch());
    let error = client.set_breaker("nobody", lapce_ipc::client::BreakerOrder::Open, None).unwrap_err();
    assert!(error.is_failed() && error.failed_code() == Some(lapce_ipc::client::FailedCode::Unknown), "{error}");
    // Somebody else listens there.
    let path = broker.folder().join("other.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let listens = thread::spawn(move || listener.accept().unwrap().0.write_all(&[0xff; 64]).unwrap());
    let error = Client::builder().socket(path).connect().unwrap_err();
    assert!(error.is_protocol() && !error.is_refused(), "{error}");
    listens.join().unwrap();
}
