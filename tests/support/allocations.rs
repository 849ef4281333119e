//! How often the client allocates on its hot path: a counting allocator in this process, which is not the broker's.
//! (A test program that names this file counts its allocations; others do not, so it is no module of `support`.)

#![allow(dead_code, reason = "each test program uses its part")]

use allocation_counter::{AllocationInfo, measure};
use lapce_ipc::client::Client;
use serde_json::{Value, json};

/// One way to use the client.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) pattern: &'static str,
    pub(crate) messages: u64,
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    /// What the API itself promises: the vectors that it hands out, for each message.
    pub(crate) promised: f64,
    /// What holds today, for each message. It may only fall.
    pub(crate) allowed: f64,
}

impl Counted {
    pub(crate) fn each(&self) -> f64 {
        self.allocations as f64 / self.messages as f64
    }

    pub(crate) fn json(&self) -> Value {
        let each = (self.each() * 1e4).round() / 1e4;
        json!({"pattern": self.pattern, "messages": self.messages, "allocations": self.allocations, "each": each,
            "bytes": self.bytes, "promised_each": self.promised})
    }
}

/// Messages between two changes of side: so many fit into a ring without a lease.
const BURST: u64 = 8;

/// Each pattern over so many messages, after a tenth of them as a warm-up. `extra` is done for each message.
pub(crate) fn count(connect: impl Fn() -> Client, messages: u64, extra: impl Fn()) -> Vec<Counted> {
    let (client, other) = (connect(), connect());
    let (publisher, payload) = (client.publisher("allocations").expect("a topic"), [7; 64]);
    let mut subscription = other.subscribe("allocations").expect("a subscription");
    let mut service = other.serve("allocations").expect("a service");
    let rounds = |messages: u64| messages / BURST;
    let mut found = Vec::new();

    // Both sides in turn, each counted by itself: messages that are there when they are read, and others that the
    // reader waits for.
    let (mut publish, mut there, mut awaited): (AllocationInfo, AllocationInfo, AllocationInfo) = Default::default();
    for round in 0..2 * (rounds(messages) + rounds(messages / 10)) {
        if round == 2 * rounds(messages / 10) {
            (publish, there, awaited) = Default::default();
        }
        publish += measure(|| {
            for _ in 0..BURST {
                publisher.publish(payload).expect("it is published");
                extra();
            }
        });
        let receive = if round % 2 == 0 { &mut there } else { &mut awaited };
        if round % 2 == 0 {
            client.flush().expect("all is routed");
        }
        *receive += measure(|| {
            for _ in 0..BURST {
                let len = subscription.read_next(|view| view.len()).expect("a message");
                assert_eq!(len, payload.len());
            }
        });
    }
    found.push(("publish", publish, 0.0, PUBLISH));
    found.push(("receive (read_next)", there, 0.0, READ_NEXT));
    found.push(("receive (read_next, awaited)", awaited, 0.0, READ_NEXT_AWAITED));

    // With a copy that is handed out.
    let mut receive = AllocationInfo::default();
    for _ in 0..rounds(messages) {
        for _ in 0..BURST {
            publisher.publish(payload).expect("it is published");
        }
        receive += measure(|| {
            for _ in 0..BURST {
                let message = subscription.next().expect("a message").expect("no error");
                assert_eq!(message.payload(), payload);
            }
        });
    }
    found.push(("receive (next, a copy)", receive, 1.0, NEXT));

    // A whole round trip, its reply handed out.
    let mut request = AllocationInfo::default();
    for round in 0..messages + messages / 10 {
        if round == messages / 10 {
            request = AllocationInfo::default();
        }
        request += measure(|| {
            let reply = client.request("echo", payload).expect("a reply");
            assert_eq!(reply, payload);
        });
    }
    found.push(("request", request, 1.0, REQUEST));

    // The same by a handle, into memory of the caller.
    let (requester, mut reply) = (client.requester("echo").expect("a service"), Vec::new());
    let mut call = AllocationInfo::default();
    for round in 0..messages + messages / 10 {
        if round == messages / 10 {
            call = AllocationInfo::default();
        }
        call += measure(|| {
            requester.call_into(payload, &mut reply).expect("a reply");
            assert_eq!(reply, payload);
        });
    }
    found.push(("request (call_into)", call, 0.0, CALL_INTO));

    // The responder's side of it.
    let mut serve = AllocationInfo::default();
    for round in 0..(messages + messages / 10) / 10 {
        if round == messages / 100 {
            serve = AllocationInfo::default();
        }
        let mut stream = client.request_stream("allocations", payload).expect("it is sent");
        serve += measure(|| {
            let mut call = service.next().expect("a call").expect("no error");
            let payload = call.take_payload();
            call.reply(&payload).expect("it is sent");
        });
        let reply = stream.next().expect("a reply").expect("no error");
        assert_eq!(reply, payload);
    }
    found.push(("serve (take_payload)", serve, 1.0, SERVE));

    let of = |pattern, info: AllocationInfo, promised, allowed| {
        let messages = match pattern {
            "serve (take_payload)" => messages / 10,
            "publish" => 2 * (messages / BURST * BURST),
            "request" | "request (call_into)" => messages,
            _ => messages / BURST * BURST,
        };
        let (allocations, bytes) = (info.count_total, info.bytes_total);
        Counted { pattern, messages, allocations, bytes, promised, allowed }
    };
    found.into_iter().map(|(pattern, info, promised, allowed)| of(pattern, info, promised, allowed)).collect()
}

const PUBLISH: f64 = 0.0;
const READ_NEXT: f64 = 0.0;
/// On a busy machine some of those that the reader had to wait for are copied: 0 to 3 in 100 were seen.
const READ_NEXT_AWAITED: f64 = 1.0;
const NEXT: f64 = 1.0;
const REQUEST: f64 = 1.0;
const CALL_INTO: f64 = 0.0;
const SERVE: f64 = 1.0;
