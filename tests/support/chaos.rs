//! The clients of `nuclear_chaos`, each a process of its own with its own ledger.
//!
//! | role | work | ledger |
//! |---|---|---|
//! | `publish TOPIC FILE FAULT` | messages of all sizes, flushed every 64 | writes the flushed number to FILE |
//! | `subscribe` | all topics, from the first message | every number once and in order |
//! | `late` | all topics, from some message on | the same from the first that it sees |
//! | `slow` | all topics, `drop_newest`, with stalls | ascending; gaps are allowed |
//! | `serve FILE` | one of two responders | appends each request's number to FILE |
//! | `ask FAULT` | requests of all sizes, streams | one outcome each, of those that are promised |
//! | `press TOPIC` | messages of 256 KiB to itself, to use up the slots | each is whole |

use super::support::ledger::numbered;
use super::support::role::{end_with_any_thread, heard, tell};
use super::support::{DEADLINE, work_for};
use lapce_ipc::client::{Client, DeliveryPolicy, Error, SubscribeOptions};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The topic of the last message.
pub(crate) const OVER: &str = "chaos.over";
/// Messages between two flushes.
const FLUSH: u64 = 64;
/// Chunks of a streamed reply, before its last part.
const CHUNKS: u64 = 10;
const LARGE: usize = 256 * 1024;
/// The message that an injected fault is at.
const FAULTY: u64 = 21;

pub(crate) fn play(role: &str) {
    end_with_any_thread();
    let words: Vec<&str> = role.split(' ').collect();
    let client = Client::builder().connect().expect("the broker takes us");
    match words[0] {
        "publish" => publish(&client, words[1], words[2], words[3]),
        "subscribe" | "late" | "slow" => subscribe(&client, words[0]),
        "serve" => serve(&client, words[1]),
        "ask" => ask(&client, words[1]),
        _ => press(&client, words[1]),
    }
}

/// Bytes of the message of this number. Some are empty, some take hundreds of records.
fn size(number: u64) -> usize {
    match number % 8 {
        0 => 0,
        1 => 8,
        2 => 64,
        3 => 1000,
        4 => 4000,
        5 if number % 400 == 5 => 200_000,
        5 => 100,
        _ => 960,
    }
}

fn message(number: u64) -> Vec<u8> {
    if size(number) == 0 { Vec::new() } else { numbered(number, size(number)) }
}

/// Becomes true when the parent says something.
fn told() -> &'static AtomicBool {
    static TOLD: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        heard();
        TOLD.store(true, Ordering::SeqCst);
    });
    &TOLD
}

fn publish(client: &Client, topic: &str, file: &str, fault: &str) {
    let publisher = client.publisher(topic).expect("a topic");
    let flushed = OpenOptions::new().create(true).append(false).write(true).truncate(false).open(file).expect("a file");
    let too_large = client.limits().max_message_size as usize + 1;
    tell("ready");
    let (is_over, mut number, mut refused) = (told(), 0, 0);
    while !is_over.load(Ordering::SeqCst) {
        for _ in 0..FLUSH {
            if number != FAULTY || fault != "lost" {
                publisher.publish(message(number)).expect("it is published");
            }
            if number == FAULTY && fault == "doubled" {
                publisher.publish(message(number)).expect("it is published");
            }
            number += 1;
        }
        if number % (FLUSH * 64) == 0 {
            let error = publisher.publish(vec![0; too_large]).expect_err("it is too large");
            assert!(error.is_too_large(), "{error}");
            refused += 1;
        }
        client.flush().expect("all is routed");
        flushed.write_all_at(&number.to_le_bytes(), 0).expect("the file takes it");
        // Leaves the machine to others.
        work_for(Duration::from_millis(2));
    }
    tell(&format!("published {}", json!({"messages": number, "too_large": refused})));
    heard();
}

fn subscribe(client: &Client, role: &str) {
    let policy = if role == "slow" { DeliveryPolicy::DropNewest } else { DeliveryPolicy::Block };
    let options = SubscribeOptions { policy, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe_with("chaos.>", options).expect("a subscription");
    tell("ready");
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let (mut came, mut gaps) = (0u64, 0);
    loop {
        let message = subscription.next_timeout(DEADLINE).expect("it is in force").expect("a message in time");
        if message.topic() == OVER {
            break;
        }
        came += 1;
        let (topic, sequence) = (message.topic(), message.sequence());
        let expected = match last.get(topic) {
            Some(last) => last + 1,
            None if role == "subscribe" => 1,
            None => sequence,
        };
        if role == "slow" {
            assert!(sequence >= expected, "{topic}: message {sequence} came where {expected} is next: doubled");
            gaps += sequence - expected;
        }
        let what = if sequence > expected { "lost" } else { "doubled" };
        let is_next = sequence == expected || role == "slow";
        assert!(is_next, "{topic}: message {sequence} came where {expected} is next: {what}");
        // The sequence numbers are the library's, the number in the message is the publisher's.
        let number = message.payload().first_chunk().map_or(sequence - 1, |bytes| u64::from_le_bytes(*bytes));
        let what = if number >= sequence { "lost" } else { "doubled" };
        assert_eq!(
            number,
            sequence - 1,
            "{topic}: message {number} came as the one after {} others: {what}",
            sequence - 1
        );
        let is_whole = message.payload() == self::message(sequence - 1);
        assert!(is_whole, "{topic}: message {sequence} of {} bytes is not what was published", message.payload().len());
        last.insert(topic.to_owned(), sequence);
        if role == "slow" && came.is_multiple_of(2000) {
            // A stall.
            work_for(Duration::from_millis(100));
        }
    }
    let dropped = subscription.dropped();
    tell(&format!("received {}", json!({"last": last, "messages": came, "gaps": gaps, "dropped": dropped})));
    heard();
}

fn serve(client: &Client, file: &str) {
    let mut served = OpenOptions::new().create(true).append(true).open(file).expect("a file");
    let mut service = client.serve("chaos-work").expect("a service");
    tell("ready");
    loop {
        let Some(mut request) = service.next_timeout(DEADLINE).expect("the offer is in force") else { continue };
        let payload = request.take_payload();
        served.write_all(&payload[..8]).expect("the file takes it");
        // Its requester may be gone, or the broker.
        let number = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
        if !request.wants_stream() || (0..CHUNKS).all(|n| request.chunk((number + n).to_le_bytes()).is_ok()) {
            let _ = request.reply(&payload);
        }
    }
}

/// An outcome of a request by the table of promises.
fn outcome(error: &Error) -> &'static str {
    match error {
        error if error.is_responder_lost() => "responder lost",
        error if error.is_disconnected() => "disconnected",
        error if error.is_no_responders() => "no responders",
        error if error.is_breaker_open() => "breaker open",
        error if error.is_overloaded() => "overloaded",
        error if error.is_deadline_exceeded() => "deadline exceeded",
        error => panic!("an outcome that is not promised: {error}"),
    }
}

fn ask(client: &Client, fault: &str) {
    tell("ready");
    let (is_over, mut number) = (told(), 0u64);
    let (mut outcomes, mut failed) = (BTreeMap::<&str, u64>::new(), Vec::new());
    while !is_over.load(Ordering::SeqCst) {
        let payload = numbered(number, if number % 10 == 1 { 100_000 } else { 64 });
        let result = if number.is_multiple_of(10) {
            streamed(client, number, &payload)
        } else {
            client.request("chaos-work", &payload).map(|reply| assert!(reply == payload, "the reply of {number}"))
        };
        if fault == "doubled" && number == FAULTY {
            let _ = client.request("chaos-work", &payload);
        }
        match result {
            Ok(()) => *outcomes.entry("replied").or_default() += 1,
            Err(error) => {
                *outcomes.entry(outcome(&error)).or_default() += 1;
                failed.push(number);
                work_for(Duration::from_millis(5));
            }
        }
        number += 1;
        if number.is_multiple_of(16) {
            work_for(Duration::from_millis(2));
        }
    }
    tell(&format!("asked {}", json!({"requests": number, "outcomes": outcomes, "failed": failed})));
    heard();
}

/// A streamed reply: its chunks in order, then its last part, then the end.
fn streamed(client: &Client, number: u64, payload: &[u8]) -> Result<(), Error> {
    let mut stream = client.request_stream("chaos-work", payload)?;
    for n in 0..CHUNKS {
        let chunk = stream.next().expect("a chunk or an error")?;
        assert_eq!(chunk, (number + n).to_le_bytes(), "chunk {n} of request {number}");
    }
    let last = stream.next().expect("the last part or an error")?;
    assert!(last == payload && stream.next().is_none(), "request {number}: its last part, and its end");
    Ok(())
}

fn press(client: &Client, topic: &str) {
    let mut subscription = client.subscribe(topic).expect("a subscription");
    let publisher = client.publisher(topic).expect("a topic");
    tell("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                publisher.publish(numbered(number, LARGE)).expect("it is published");
                work_for(Duration::from_millis(5));
            }
        });
        for number in 0.. {
            let message = subscription.next_timeout(DEADLINE).expect("it is in force").expect("a message in time");
            assert!(message.payload() == numbered(number, LARGE), "{topic}: message {number}");
        }
    });
}
