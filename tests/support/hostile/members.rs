//! The members of the well-behaved pair, as processes of their own. Each keeps its part of an exact ledger, and says
//! `fault …` when its part does not add up, or the broker ends what it may do.

use super::pause;
use crate::support::DEADLINE;
use crate::support::criteria::quantile;
use crate::support::ledger::{END, numbered};
use crate::support::load::connect;
use crate::support::role::{die, end_with_any_thread, heard, tell};
use lapce_ipc::client::{Client, Error, ReplyError, RequestOptions};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// The service that the pair's requests go to.
pub(crate) const ECHO: &str = "pair.echo";
/// One that takes 20 ms.
pub(crate) const SLOW: &str = "pair.slow";
/// A request that begins with this gets a reply of [`BIG`] bytes instead of its own.
pub(crate) const WANTS_MUCH: &[u8] = b"much";
/// A request that begins with this is one at which the service fails.
pub(crate) const FAILS: &[u8] = b"fails";
/// More than the credit of a call, which is 64 KiB.
pub(crate) const BIG: usize = 200_000;
/// How long a request of the pair may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two requests, and between two steps of the paced publisher.
const PACE: Duration = Duration::from_millis(1);
/// A request of the pair begins with this.
const OURS: u64 = 0x7061_6972;

/// Ends this process with the reason.
fn fault(text: &str) -> ! {
    tell(&format!("fault {text}"));
    die();
}

fn granted<T>(what: &str, result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| fault(&format!("{what}: {error}")))
}

/// In a child: connects to the broker that the environment names.
fn member(name: &str) -> Client {
    granted("connect", Client::builder().no_reconnect().name(name).and_then(|builder| builder.connect()))
}

/// Plays a role of the pair. The words behind its name are its arguments.
pub(crate) fn play(role: &str, words: &[&str]) {
    end_with_any_thread();
    match role {
        "subscriber" => subscriber(words[0]),
        "publisher" => publisher(words[0], words[1].parse().unwrap(), words[2].parse().unwrap(), words[3]),
        "requester" => requester(),
        "responder" => responder(),
        _ => newcomer(),
    }
}

/// `mark` answers what came so far and when; the last message ends it.
fn subscriber(topic: &str) {
    let client = member("pair-subscriber");
    let mut subscription = granted("subscribe", client.subscribe(topic));
    tell("ready");
    let (came, started) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while heard() == "mark" {
                tell(&format!("mark {} {}", came.load(SeqCst), started.elapsed().as_nanos()));
            }
        });
        for expected in 0.. {
            let mut bytes = [0; 8];
            let read = subscription.read_next(|view| {
                view.copy_to(0, &mut bytes);
                view.sequence()
            });
            let sequence = match read {
                Ok(sequence) => sequence,
                Err(error) if error.is_evicted() => fault(&format!("{topic}: evicted after {expected} messages")),
                Err(error) => fault(&format!("{topic}: after {expected} messages: {error}")),
            };
            let number = u64::from_le_bytes(bytes);
            if number == END {
                tell(&format!("end {expected}"));
                return;
            }
            if (number, sequence) != (expected, expected + 1) {
                let what = if number > expected { "lost" } else { "doubled" };
                fault(&format!(
                    "{topic}: message {number} (sequence {sequence}) came where {expected} is next: {what}"
                ));
            }
            came.store(expected + 1, SeqCst);
        }
    });
}

/// `go`, `halt`, then `end`. `rate`: messages a second, 0 for as many as there is space for.
fn publisher(topic: &str, size: usize, rate: u64, injected: &str) {
    let client = member("pair-publisher");
    let publisher = granted("publisher", client.publisher(topic));
    tell("ready");
    let (goes, ends) = (AtomicBool::new(false), AtomicBool::new(false));
    let publish = || {
        let (mut number, mut due) = (0, Instant::now());
        let step = Duration::from_nanos(1_000_000_000_u64.checked_div(rate).unwrap_or(0));
        while !ends.load(SeqCst) {
            if !goes.load(SeqCst) || Instant::now() < due {
                pause(PACE);
                due = if goes.load(SeqCst) { due } else { Instant::now() };
                continue;
            }
            let message = numbered(number, size);
            let times = match (number, injected) {
                (20, "lost") => 0,
                (20, "doubled") => 2,
                _ => 1,
            };
            (0..times).for_each(|_| granted("publish", publisher.publish(&message)));
            number += 1;
            due += step;
        }
        granted("the last publish", publisher.publish(END.to_le_bytes()));
        granted("flush", client.flush_timeout(DEADLINE));
        tell(&format!("published {number}"));
    };
    std::thread::scope(|scope| {
        let work = scope.spawn(publish);
        loop {
            let line = heard();
            goes.store(line == "go", SeqCst);
            if line == "end" {
                ends.store(true, SeqCst);
                work.join().expect("the thread that publishes");
                return;
            }
        }
    });
}

/// `go`; `halt` answers the outcomes and round trips since then; `end` answers how many requests were answered in all.
fn requester() {
    let client = member("pair-requester");
    tell("ready");
    let goes = AtomicBool::new(false);
    let (mut number, mut answered) = (0u64, 0u64);
    loop {
        match heard().as_str() {
            "go" => goes.store(true, SeqCst),
            _ => {
                tell(&format!("answered {answered}"));
                return;
            }
        }
        let (mut trips, mut failed) = (Vec::new(), BTreeMap::<String, u64>::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                heard();
                goes.store(false, SeqCst);
            });
            while goes.load(SeqCst) {
                let mut payload = [0; 64];
                payload[..8].copy_from_slice(&OURS.to_le_bytes());
                payload[8..16].copy_from_slice(&number.to_le_bytes());
                number += 1;
                let options = RequestOptions { timeout: Some(PATIENCE), ..RequestOptions::default() };
                let from = Instant::now();
                match client.request_with(ECHO, payload, options) {
                    Ok(reply) if reply == payload => {
                        trips.push(u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX));
                        answered += 1;
                    }
                    Ok(_) => fault(&format!("request {number}: not its reply")),
                    Err(error) if error.is_disconnected() => fault(&format!("request {number}: {error}")),
                    Err(error) => *failed.entry(outcome(&error)).or_default() += 1,
                }
                pause(PACE.saturating_sub(from.elapsed()));
            }
        });
        let count = trips.len();
        let quantiles = [0.5, 0.99, 1.0].map(|part| quantile(&mut trips, part));
        tell(&format!("calls {}", json!({"answered": count, "quantiles_ns": quantiles, "failed": failed})));
    }
}

/// An outcome by the first words of its text.
fn outcome(error: &Error) -> String {
    let text = error.to_string();
    text.split([':', ';', '(']).next().unwrap_or_default().trim().chars().take(40).collect()
}

/// Serves [`ECHO`] in one thread, as the README shows it, and [`SLOW`] in another. `end` answers how many of the
/// pair's requests came.
fn responder() {
    let (echo, slow) = (member("pair-responder"), member("pair-slow"));
    let (mut echoes, mut takes_long) = (granted("serve", echo.serve(ECHO)), granted("serve", slow.serve(SLOW)));
    tell("ready");
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let served = &served;
        scope.spawn(move || {
            let mut next = 0;
            let ended = echoes.run(|request| {
                let payload = request.take_payload();
                if payload.starts_with(WANTS_MUCH) {
                    return Ok(vec![1; BIG]);
                }
                if payload.starts_with(FAILS) {
                    return Err(ReplyError::failed("as it was asked to"));
                }
                let word = |at: usize| payload.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()));
                if word(0) == OURS {
                    if word(8) < next {
                        fault(&format!("request {} came twice or late", word(8)));
                    }
                    next = word(8) + 1;
                    served.fetch_add(1, SeqCst);
                }
                Ok(payload)
            });
            granted(ECHO, ended);
        });
        scope.spawn(move || {
            let ended = takes_long.run(|request| {
                pause(Duration::from_millis(20));
                Ok::<_, String>(request.take_payload())
            });
            granted(SLOW, ended);
        });
        heard();
        tell(&format!("served {}", served.load(SeqCst)));
        die();
    });
}

/// A user that comes late: it connects, offers a new service, requests it, subscribes and publishes. Says how long that
/// took in all, in milliseconds.
fn newcomer() {
    let started = Instant::now();
    let client = member("newcomer");
    let name = format!("newcomer.{}", std::process::id());
    let mut service = granted("serve", client.serve(&name));
    std::thread::scope(|scope| {
        scope.spawn(move || service.run(|request| Ok::<_, String>(request.take_payload())));
        let requester = connect();
        let options = RequestOptions { timeout: Some(DEADLINE), ..RequestOptions::default() };
        granted("request", requester.request_with(&name, "hi", options));
        let mut subscription = granted("subscribe", requester.subscribe(&name));
        granted("publish", client.publish(&name, "hi"));
        if granted("receive", subscription.next_timeout(DEADLINE)).is_none() {
            fault("its own message does not come");
        }
        tell(&format!("done {}", started.elapsed().as_millis()));
        die();
    });
}
