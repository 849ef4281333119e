//! Streamed replies: order, cancel, and a responder that is held back by who reads.

mod support;

use lapce_ipc::client::{Client, RequestOptions};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use support::probe::{counter, pattern, served};
use support::role::{Child, role, tell};
use support::{Broker, DEADLINE, wait_until};

fn within(ms: u64) -> RequestOptions {
    RequestOptions { timeout: Some(Duration::from_millis(ms)), ..RequestOptions::default() }
}

#[test]
fn ten_thousand_chunks_arrive_in_order() {
    let broker = Broker::start();
    let client = broker.client();
    let mut child = Child::ready(&broker, "count");
    let mut stream = client.request_stream("count", "10000").unwrap();
    for number in 0..10_000 {
        assert_eq!(stream.next().unwrap().unwrap(), number.to_string().as_bytes());
    }
    assert!(stream.next().is_none());
    assert!(stream.next().is_none(), "and so it stays");
    // A plain request gets them joined.
    assert_eq!(client.request("count", "12").unwrap(), b"01234567891011");
    assert_eq!(counter(&client.status().unwrap(), "chunks"), 10_012);
    child.kill();
}

#[test]
fn chunks_of_every_size_arrive_whole() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let sizes: Vec<usize> = (0..300).map(|n| if n % 7 == 0 { n * 341 } else { n * 11 % 2_100 }).collect();
    let mut service = other.serve("svc").unwrap();
    let to_send = sizes.clone();
    std::thread::spawn(move || {
        service.run(|request| {
            for (size, seed) in to_send.iter().zip(0..) {
                request.chunk(pattern(*size, seed))?;
            }
            Ok::<_, lapce_ipc::client::Error>("last")
        })
    });
    let mut stream = client.request_stream("svc", "").unwrap();
    for (size, seed) in sizes.iter().zip(0..) {
        let chunk = stream.next().unwrap().unwrap();
        assert!(chunk == pattern(*size, seed), "chunk {seed} of {size} bytes, got {}", chunk.len());
    }
    assert_eq!(stream.next().unwrap().unwrap(), b"last");
    assert!(stream.next().is_none());
}

/// `LAPCE_IPC_STREAM_SECONDS=120`: a chunk a second for so long, with the limits as they are by default.
#[test]
fn a_stream_outlasts_every_time_limit_as_long_as_its_chunks_come() {
    let seconds = std::env::var("LAPCE_IPC_STREAM_SECONDS").ok().map(|text| text.parse::<u32>().expect("seconds"));
    let (broker, chunks, interval) = match seconds {
        Some(seconds) => {
            let mut broker = Broker::start();
            broker.without_limit();
            (broker, seconds, Duration::from_secs(1))
        }
        None => {
            let limits = [
                ("limits.default_request_timeout_ms", "1500"),
                ("limits.max_request_timeout_ms", "1500"),
                ("limits.stream_first_chunk_ms", "1500"),
                ("limits.stream_idle_ms", "1500"),
            ];
            (Broker::start_with(&limits), 9, Duration::from_millis(300))
        }
    };
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("slow").unwrap();
    std::thread::spawn(move || {
        service.run(|request| {
            assert_eq!(request.deadline(), None);
            for number in 0..chunks {
                // The pace of a model: it waits for what never comes.
                assert!(other.closed(Some(interval)).unwrap_err().is_timeout());
                request.chunk(number.to_string())?;
            }
            Ok::<_, lapce_ipc::client::Error>("end")
        })
    });
    let got: Vec<_> = client.request_stream("slow", "").unwrap().map(|chunk| chunk.unwrap()).collect();
    let expected: Vec<_> = (0..chunks).map(|n| n.to_string().into_bytes()).chain([b"end".to_vec()]).collect();
    assert_eq!(got, expected);
    let breaker = &client.breakers().unwrap()[0];
    assert_eq!((breaker.state, breaker.failures), (lapce_ipc::client::BreakerState::Closed, 0));
}

/// How long a stream whose responder sends so many chunks and then stalls has lasted, and how it ended.
fn stalled(broker: &Broker, chunks: u32, options: RequestOptions) -> Duration {
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("stalls").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut request = service.next_timeout(DEADLINE).unwrap().expect("a request");
            (0..chunks).for_each(|_| request.chunk("x").unwrap());
            wait_until("the end of the stream", || {
                let _ = service.next_timeout(Duration::from_millis(20));
                request.is_cancelled()
            });
        });
        let began = Instant::now();
        let mut stream = client.request_stream_with("stalls", "", options).unwrap();
        (0..chunks).for_each(|_| assert_eq!(stream.next().unwrap().unwrap(), b"x"));
        assert!(stream.next().unwrap().unwrap_err().is_deadline_exceeded());
        began.elapsed()
    })
}

#[test]
fn the_time_to_the_first_chunk_and_the_time_between_chunks_are_each_a_key_and_an_option() {
    let ms = Duration::from_millis;
    let keys =
        |first, idle| Broker::start_with(&[("limits.stream_first_chunk_ms", first), ("limits.stream_idle_ms", idle)]);
    let default = RequestOptions::default;
    let short_first = keys("200", "86400000");
    assert!((ms(200)..ms(20_000)).contains(&stalled(&short_first, 0, default())));
    let options = RequestOptions { idle: Some(ms(300)), ..default() };
    assert!((ms(300)..ms(20_000)).contains(&stalled(&short_first, 2, options)));
    let short_idle = keys("86400000", "200");
    assert!((ms(200)..ms(20_000)).contains(&stalled(&short_idle, 2, default())));
    let options = RequestOptions { first_chunk: Some(ms(300)), ..default() };
    assert!((ms(300)..ms(20_000)).contains(&stalled(&short_idle, 0, options)));
    let _reply = short_idle.spawn(&["reply", "slow", "--exec", "sleep 60"]);
    wait_until("the service", || {
        let services = short_idle.client().status().unwrap().services;
        services.iter().any(|service| service.name.as_str() == "slow" && service.responders > 0)
    });
    let output = short_idle.run(&["request", "slow", "x", "--stream", "--first-chunk", "300ms", "--idle", "300ms"]);
    assert_eq!(support::code(&output), 75, "{}", support::stderr(&output));
    assert_eq!(support::code(&short_idle.run(&["request", "slow", "x", "--idle", "300ms"])), 64, "without --stream");
}

#[test]
fn a_cancel_reaches_the_responder() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let responding = std::thread::spawn(move || {
        let mut request = service.next().unwrap().unwrap();
        assert!(request.wants_stream());
        let mut sent = 0_u64;
        let error = loop {
            match request.chunk(sent.to_le_bytes()) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(request.is_cancelled());
        // The same service takes the next.
        drop(request);
        service.next().unwrap().unwrap().reply("next").unwrap();
        (sent, error)
    });
    let mut stream = client.request_stream("svc", "").unwrap();
    for number in 0..10_u64 {
        assert_eq!(stream.next().unwrap().unwrap(), number.to_le_bytes());
    }
    drop(stream);
    assert_eq!(client.request("svc", "").unwrap(), b"next");
    let (sent, error) = responding.join().unwrap();
    assert!(error.is_cancelled(), "{error}");
    // No further than the credit that it had.
    assert!((10..=10 + 2 * 512).contains(&sent), "{sent}");
    let status = client.status().unwrap();
    assert_eq!((counter(&status, "cancels"), counter(&status, "failed_cancelled")), (1, 1));
    assert_eq!(served(&status, "svc").outstanding, 0);
}

#[test]
fn a_slow_requester_holds_its_responder_back_and_nobody_else() {
    const CREDIT: u64 = 32; // cells, one for each chunk
    let broker = Broker::start_with(&[("delivery.stream_credit_bytes", "4096")]);
    let (client, other, third) = (broker.client(), broker.client(), broker.client());
    let (mut slow, mut quick) = (other.serve("slow").unwrap(), other.serve("quick").unwrap());
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sent = &sent;
        scope.spawn(move || {
            let mut request = slow.next().unwrap().unwrap();
            for _ in 0..1_000 {
                request.chunk([0; 64]).unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
            }
            request.finish().unwrap();
        });
        scope.spawn(move || {
            for _ in 0..1_000 {
                quick.next().unwrap().unwrap().reply("quick").unwrap();
            }
        });
        let stream = client.request_stream("slow", "").unwrap();
        wait_until("the credit to be used", || sent.load(Ordering::SeqCst) == CREDIT);
        for _ in 0..500 {
            assert_eq!(third.request("quick", "").unwrap(), b"quick");
            // Also what the slow requester itself asks besides.
            assert_eq!(client.request("quick", "").unwrap(), b"quick");
        }
        assert_eq!(sent.load(Ordering::SeqCst), CREDIT);
        assert_eq!(stream.map(Result::unwrap).filter(|chunk| chunk == &[0; 64]).count(), 1_000);
    });
}

#[test]
fn an_error_ends_a_stream_behind_its_chunks() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    std::thread::spawn(move || {
        service.run(|request| {
            for number in 0..100_u32 {
                request.chunk(number.to_le_bytes()).map_err(|error| error.to_string())?;
            }
            Err::<&str, _>("the model is tired".to_owned())
        })
    });
    let mut stream = client.request_stream("svc", "").unwrap();
    for number in 0..100_u32 {
        assert_eq!(stream.next().unwrap().unwrap(), number.to_le_bytes());
    }
    let error = stream.next().unwrap().unwrap_err();
    assert!(error.is_error_reply() && error.to_string() == "the model is tired", "{error}");
    assert!(stream.next().is_none());
}

#[test]
fn a_streams_deadline_ends_it_at_both_ends() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let responding = std::thread::spawn(move || {
        let mut request = service.next().unwrap().unwrap();
        loop {
            if let Err(error) = request.chunk("more") {
                return error;
            }
        }
    });
    let mut stream = client.request_stream_with("svc", "", within(200)).unwrap();
    let error = loop {
        match stream.next().expect("an end with an error") {
            Ok(chunk) => assert_eq!(chunk, b"more"),
            Err(error) => break error,
        }
    };
    assert!(error.is_deadline_exceeded(), "{error}");
    let error = responding.join().unwrap();
    assert!(error.is_deadline_exceeded(), "{error}");
    assert!(stream.next().is_none());
}

#[test]
fn waiting_for_a_chunk_in_vain_does_not_end_the_stream() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let mut stream = client.request_stream("svc", "").unwrap();
    assert!(stream.next_timeout(Duration::from_millis(20)).unwrap_err().is_timeout());
    let mut request = service.next_timeout(DEADLINE).unwrap().expect("a request");
    request.chunk("late but there").unwrap();
    assert_eq!(stream.next_timeout(DEADLINE).unwrap().unwrap(), b"late but there");
    request.finish().unwrap();
    assert!(stream.next_timeout(DEADLINE).unwrap().is_none());
}

#[test]
fn a_requester_that_dies_ends_its_streams() {
    let broker = Broker::start();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("svc").unwrap();
    let (begun, streams) = sync_channel(3);
    let responding = std::thread::spawn(move || {
        let mut requests: Vec<_> = (0..3).map(|_| service.next().unwrap().unwrap()).collect();
        let mut errors = Vec::new();
        begun.send(()).unwrap();
        while !requests.is_empty() {
            requests.retain_mut(|request| match request.chunk("x") {
                Ok(()) => true,
                Err(error) => {
                    errors.push(error);
                    false
                }
            });
        }
        service.next().unwrap().unwrap().reply("still here").unwrap();
        errors
    });
    let mut child = Child::ready(&broker, "read-three");
    streams.recv_timeout(DEADLINE).unwrap();
    child.hears("reading");
    child.kill();
    assert_eq!(client.request("svc", "").unwrap(), b"still here");
    let errors = responding.join().unwrap();
    assert_eq!(errors.len(), 3);
    assert_eq!(served(&client.status().unwrap(), "svc").outstanding, 0);
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let client = Client::connect().unwrap();
    match role.as_str() {
        "count" => {
            let mut service = client.serve("count").unwrap();
            tell("ready");
            for request in &mut service {
                let mut request = request.unwrap();
                let most: u32 = std::str::from_utf8(request.payload()).unwrap().parse().unwrap();
                for number in 0..most {
                    request.chunk(number.to_string()).unwrap();
                }
                request.finish().unwrap();
            }
        }
        "read-three" => {
            tell("ready");
            let mut streams: Vec<_> = (0..3).map(|_| client.request_stream("svc", "").unwrap()).collect();
            for number in 0.. {
                for stream in &mut streams {
                    stream.next().unwrap().unwrap();
                }
                if number == 100 {
                    tell("reading");
                }
            }
        }
        role => tell(&format!("no role {role}")),
    }
}
