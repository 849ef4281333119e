//! The bytes of every frame and typed message, as they were in version 1 and as other languages write them.
//!
//! A test that fails here says that a layout has changed: existing programs could no longer talk to this one. Take the
//! change back, or raise `PROTOCOL_VERSION` or `TYPED_VERSION` and write down the new bytes.

use lapce_ipc::wire::control::*;
use lapce_ipc::wire::typed::*;
use lapce_ipc::wire::{Name, Pattern, Topic};

/// Bytes as spaced hexadecimal digits.
fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    assert_eq!(digits.len() % 2, 0, "odd number of digits in {text}");
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect(text)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// The number on the wire. No wildcard arm: a new variant must be numbered, and given its golden bytes, here.
fn client_variant(frame: &ClientFrame) -> u32 {
    match frame {
        ClientFrame::Hello { .. } => 0,
        ClientFrame::Intern { .. } => 1,
        ClientFrame::Subscribe { .. } => 2,
        ClientFrame::Unsubscribe { .. } => 3,
        ClientFrame::Serve { .. } => 4,
        ClientFrame::Unserve { .. } => 5,
        ClientFrame::Status { .. } => 6,
        ClientFrame::Bye => 7,
        ClientFrame::Breakers { .. } => 8,
        ClientFrame::SetBreaker { .. } => 9,
        ClientFrame::Resumed => 10,
        ClientFrame::Upstreams { .. } => 11,
        ClientFrame::DialUpstream { .. } => 12,
        ClientFrame::Reload { .. } => 13,
        ClientFrame::Restored => 14,
        ClientFrame::NextPage { .. } => 15,
    }
}
const CLIENT_VARIANTS: u32 = 16;

fn broker_variant(frame: &BrokerFrame) -> u32 {
    match frame {
        BrokerFrame::Welcome { .. } => 0,
        BrokerFrame::Refused { .. } => 1,
        BrokerFrame::Interned { .. } => 2,
        BrokerFrame::Subscribed { .. } => 3,
        BrokerFrame::Serving { .. } => 4,
        BrokerFrame::Done { .. } => 5,
        BrokerFrame::Failed { .. } => 6,
        BrokerFrame::Status { .. } => 7,
        BrokerFrame::Draining { .. } => 8,
        BrokerFrame::Closing { .. } => 9,
        BrokerFrame::Breakers { .. } => 10,
        BrokerFrame::Upstreams { .. } => 11,
        BrokerFrame::Reloaded { .. } => 12,
    }
}
const BROKER_VARIANTS: u32 = 13;

fn typed_variant(message: &Message) -> u32 {
    match message {
        Message::CompletionRequest(_) => 0,
        Message::CompletionChunk(_) => 1,
        Message::ChatRequest(_) => 2,
        Message::ChatChunk(_) => 3,
        Message::ChatResponse(_) => 4,
        Message::ToolCall(_) => 5,
        Message::ToolResult(_) => 6,
        Message::Cancel(_) => 7,
        Message::Heartbeat(_) => 8,
        Message::Error(_) => 9,
    }
}
const TYPED_VARIANTS: u32 = 10;

fn set_breaker(order: BreakerOrder, for_ms: u64) -> ClientFrame {
    ClientFrame::SetBreaker { serial: 9, service: name("s"), order, for_ms }
}

fn breaker(state: BreakerState, ends_in_ms: Option<u64>) -> BreakerStatus {
    BreakerStatus {
        service: name("s"),
        state,
        failures: 1,
        failed_trials: 2,
        probes: 3,
        successes: 4,
        ends_in_ms,
        opened: 6,
        rejected: 7,
        failure_threshold: 8,
        success_threshold: 9,
        half_open_max_requests: 10,
    }
}

fn client_frames() -> Vec<(ClientFrame, &'static str)> {
    vec![
        (
            ClientFrame::hello(name("editor"), 0x0123_4567_89ab_cdef, None),
            "29000000 00000000 4c41504345495043 0100 0600000000000000 656469746f72 efcdab8967452301 00000000 \
             00",
        ),
        (
            ClientFrame::Hello {
                magic: MAGIC,
                version: 0x0201,
                name: name("a"),
                nonce: 1,
                flags: 0x0403_0201,
                resume: Some(Token::from_bytes(*b"0123456789abcdef")),
            },
            "34000000 00000000 4c41504345495043 0102 0100000000000000 61 0100000000000000 01020304 01 \
             30313233343536373839616263646566",
        ),
        (
            ClientFrame::Intern { serial: 1, kind: InternKind::Topic, name: Topic::parse("a.b").unwrap() },
            "17000000 01000000 01000000 00000000 0300000000000000 612e62",
        ),
        (
            ClientFrame::Intern { serial: 2, kind: InternKind::Service, name: Topic::parse("echo").unwrap() },
            "18000000 01000000 02000000 01000000 0400000000000000 6563686f",
        ),
        (
            ClientFrame::Subscribe {
                serial: 3,
                pattern: Pattern::parse("a.*.>").unwrap(),
                policy: DeliveryPolicy::Block,
                credit: 256,
            },
            "1d000000 02000000 03000000 0500000000000000 612e2a2e3e 00000000 00010000",
        ),
        (
            ClientFrame::Subscribe {
                serial: 3,
                pattern: Pattern::parse(">").unwrap(),
                policy: DeliveryPolicy::DropNewest,
                credit: 1,
            },
            "19000000 02000000 03000000 0100000000000000 3e 01000000 01000000",
        ),
        (
            ClientFrame::Subscribe {
                serial: 3,
                pattern: Pattern::parse("$sys.>").unwrap(),
                policy: DeliveryPolicy::DropOldest,
                credit: 1,
            },
            "1e000000 02000000 03000000 0600000000000000 247379732e3e 02000000 01000000",
        ),
        (ClientFrame::Unsubscribe { serial: 4, subscription: 9 }, "0c000000 03000000 04000000 09000000"),
        (
            ClientFrame::Serve { serial: 5, service: name("echo"), max_in_flight: 64 },
            "18000000 04000000 05000000 0400000000000000 6563686f 40000000",
        ),
        (ClientFrame::Unserve { serial: 6, service: 9 }, "0c000000 05000000 06000000 09000000"),
        (ClientFrame::Status { serial: 7 }, "08000000 06000000 07000000"),
        (ClientFrame::Bye, "04000000 07000000"),
        (ClientFrame::Breakers { serial: 8 }, "08000000 08000000 08000000"),
        (
            set_breaker(BreakerOrder::Open, 256),
            "1d000000 09000000 09000000 0100000000000000 73 00000000 0001000000000000",
        ),
        (
            set_breaker(BreakerOrder::Close, 0),
            "1d000000 09000000 09000000 0100000000000000 73 01000000 0000000000000000",
        ),
        (
            set_breaker(BreakerOrder::Auto, 0),
            "1d000000 09000000 09000000 0100000000000000 73 02000000 0000000000000000",
        ),
        (ClientFrame::Resumed, "04000000 0a000000"),
        (ClientFrame::Upstreams { serial: 10 }, "08000000 0b000000 0a000000"),
        (ClientFrame::DialUpstream { serial: 11, name: name("u") }, "11000000 0c000000 0b000000 0100000000000000 75"),
        (ClientFrame::Reload { serial: 12 }, "08000000 0d000000 0c000000"),
        (ClientFrame::Restored, "04000000 0e000000"),
        (
            ClientFrame::NextPage { serial: 13, token: PageToken { snapshot: 258, page: 3 } },
            "14000000 0f000000 0d000000 0201000000000000 03000000",
        ),
    ]
}

fn actor(state: ActorState) -> ActorStatus {
    ActorStatus { name: String::new(), supervisor: String::new(), state, restarts: 0, failures: 0, last_reason: None }
}

fn quantiles(n: u64) -> QuantileStatus {
    QuantileStatus { count: n, p50_ns: n + 1, p95_ns: n + 2, p99_ns: n + 3 }
}

fn report() -> StatusReport {
    StatusReport {
        uptime_ms: 1,
        version: "v".into(),
        pid: 2,
        socket: "/s".into(),
        config_file: Some("c".into()),
        draining: true,
        connections: vec![ConnectionStatus {
            id: 3,
            name: name("n"),
            pid: 4,
            uid: 5,
            quota: Some("q".into()),
            age_ms: 6,
            subscriptions: 7,
            services: vec![name("s")],
            services_offered: 41,
            messages_in: 8,
            messages_out: 9,
            bytes_in: 10,
            bytes_out: 11,
            dropped: 12,
            backlog_bytes: 13,
            requests_outstanding: 14,
            state: SessionState::AwaitingPeer,
            credit_used_bytes: 30,
            credit_bytes: 31,
        }],
        services: vec![ServiceStatus {
            name: name("s"),
            responders: 15,
            outstanding: 16,
            pending: 17,
            requests: 18,
            failures: 19,
        }],
        counters: vec![("k".into(), 20)],
        slots_used: 21,
        slots_total: 22,
        topics: 23,
        subscriptions: 24,
        actors: vec![
            ActorStatus {
                name: "a".into(),
                supervisor: "r".into(),
                state: ActorState::Restarting { next_in_ms: 25 },
                restarts: 26,
                failures: 27,
                last_reason: Some("w".into()),
            },
            actor(ActorState::Running),
            actor(ActorState::GaveUp),
            actor(ActorState::Stopped),
        ],
        latency: Box::new(LatencyStatus {
            in_broker: quantiles(28),
            round_trip: quantiles(32),
            first_chunk: quantiles(36),
        }),
        health: Box::new(HealthStatus {
            address: Some("h".into()),
            socket: None,
            reason: Some("x".into()),
            token_file: Some("t".into()),
        }),
        socket_lost: Some("l".into()),
        awaited_sessions: 40,
        holdings: vec![HoldingStatus {
            uid: 42,
            quota: Some("p".into()),
            resource: "h".into(),
            held: 43,
            limit: 44,
            key: Some("l".into()),
        }],
    }
}

fn broker_frames() -> Vec<(BrokerFrame, &'static str)> {
    let refused = |code| BrokerFrame::Refused { code, message: "m".into(), version: 1 };
    let failed = |code| BrokerFrame::Failed { serial: 5, code, message: "m".into() };
    let closing = |code| BrokerFrame::Closing { code, message: "m".into() };
    vec![
        (
            BrokerFrame::Welcome {
                version: 1,
                connection: 2,
                token: Token::from_bytes(*b"0123456789abcdef"),
                broker: "b".into(),
                limits: Limits {
                    max_message_size: 1,
                    slot_size: 2,
                    stream_credit_cells: 3,
                    subscription_credit_cells: 4,
                    default_request_timeout_ms: 5,
                    max_request_timeout_ms: 6,
                    max_requests: 7,
                    stream_first_chunk_ms: 14,
                    stream_idle_ms: 15,
                },
                geometry: Geometry {
                    segment_bytes: 8,
                    nonce_egress: 9,
                    nonce_bulk: 10,
                    nonce_express: 11,
                    slot_size: 12,
                    extension_cells: 13,
                },
            },
            "6f000000 00000000 0100 02000000 30313233343536373839616263646566 0100000000000000 62 01000000 \
             02000000 03000000 04000000 05000000 06000000 07000000 0e000000 0f000000 0800000000000000 0900000000000000 \
             0a00000000000000 0b00000000000000 0c000000 0d000000",
        ),
        (refused(RefusedCode::Version), "13000000 01000000 00000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::NotAllowed), "13000000 01000000 01000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::TooManyConnections), "13000000 01000000 02000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::Malformed), "13000000 01000000 03000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::Draining), "13000000 01000000 04000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::BadToken), "13000000 01000000 05000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::ResumeFailed), "13000000 01000000 06000000 0100000000000000 6d 0100"),
        (refused(RefusedCode::GivenUp), "13000000 01000000 07000000 0100000000000000 6d 0100"),
        (BrokerFrame::Interned { serial: 1, id: 2 }, "0c000000 02000000 01000000 02000000"),
        (BrokerFrame::Subscribed { serial: 2, subscription: 3 }, "0c000000 03000000 02000000 03000000"),
        (BrokerFrame::Serving { serial: 3, service: 4 }, "0c000000 04000000 03000000 04000000"),
        (BrokerFrame::Done { serial: 4 }, "08000000 05000000 04000000"),
        (failed(FailedCode::Limit), "15000000 06000000 05000000 00000000 0100000000000000 6d"),
        (failed(FailedCode::Invalid), "15000000 06000000 05000000 01000000 0100000000000000 6d"),
        (failed(FailedCode::Unknown), "15000000 06000000 05000000 02000000 0100000000000000 6d"),
        (failed(FailedCode::NotAllowed), "15000000 06000000 05000000 03000000 0100000000000000 6d"),
        (failed(FailedCode::Configuration), "15000000 06000000 05000000 04000000 0100000000000000 6d"),
        (
            BrokerFrame::Status { serial: 6, report: report(), next: None },
            "92020000 07000000 06000000 0100000000000000 0100000000000000 76 02000000 0200000000000000 2f73 \
             01 0100000000000000 63 01 0100000000000000 03000000 0100000000000000 6e 04000000 05000000 \
             01 0100000000000000 71 \
             0600000000000000 07000000 0100000000000000 0100000000000000 73 29000000 0800000000000000 0900000000000000 \
             0a00000000000000 0b00000000000000 0c00000000000000 0d00000000000000 0e00000000000000 \
             02000000 1e00000000000000 1f00000000000000 \
             0100000000000000 0100000000000000 73 0f000000 10000000 11000000 1200000000000000 \
             1300000000000000 0100000000000000 0100000000000000 6b 1400000000000000 15000000 16000000 \
             17000000 18000000 0400000000000000 0100000000000000 61 0100000000000000 72 01000000 1900000000000000 \
             1a00000000000000 1b00000000000000 01 0100000000000000 77 \
             0000000000000000 0000000000000000 00000000 0000000000000000 0000000000000000 00 \
             0000000000000000 0000000000000000 02000000 0000000000000000 0000000000000000 00 \
             0000000000000000 0000000000000000 03000000 0000000000000000 0000000000000000 00 \
             1c00000000000000 1d00000000000000 1e00000000000000 1f00000000000000 \
             2000000000000000 2100000000000000 2200000000000000 2300000000000000 \
             2400000000000000 2500000000000000 2600000000000000 2700000000000000 \
             01 0100000000000000 68 00 01 0100000000000000 78 01 0100000000000000 74 01 0100000000000000 6c \
             28000000 0100000000000000 2a000000 01 0100000000000000 70 \
             0100000000000000 68 2b00000000000000 2c00000000000000 01 0100000000000000 6c 00",
        ),
        (BrokerFrame::Draining { deadline_ms: 5000 }, "08000000 08000000 88130000"),
        (closing(ClosingCode::Shutdown), "11000000 09000000 00000000 0100000000000000 6d"),
        (closing(ClosingCode::ProtocolViolation), "11000000 09000000 01000000 0100000000000000 6d"),
        (closing(ClosingCode::SlowConsumer), "11000000 09000000 02000000 0100000000000000 6d"),
        (closing(ClosingCode::Overuse), "11000000 09000000 03000000 0100000000000000 6d"),
        (closing(ClosingCode::Replaced), "11000000 09000000 04000000 0100000000000000 6d"),
        (
            BrokerFrame::Breakers { serial: 7, breakers: vec![breaker(BreakerState::Closed, None)], next: None },
            "4b000000 0a000000 07000000 0100000000000000 0100000000000000 73 00000000 01000000 02000000 03000000 \
             04000000 00 0600000000000000 0700000000000000 08000000 09000000 0a000000 00",
        ),
        (
            BrokerFrame::Breakers {
                serial: 7,
                breakers: vec![
                    breaker(BreakerState::Open, Some(5)),
                    breaker(BreakerState::HalfOpen, Some(5)),
                    breaker(BreakerState::ForcedOpen, Some(5)),
                    breaker(BreakerState::ForcedClosed, Some(5)),
                ],
                next: Some(PageToken { snapshot: 258, page: 3 }),
            },
            "25010000 0a000000 07000000 0400000000000000 \
             0100000000000000 73 01000000 01000000 02000000 03000000 04000000 01 0500000000000000 \
             0600000000000000 0700000000000000 08000000 09000000 0a000000 \
             0100000000000000 73 02000000 01000000 02000000 03000000 04000000 01 0500000000000000 \
             0600000000000000 0700000000000000 08000000 09000000 0a000000 \
             0100000000000000 73 03000000 01000000 02000000 03000000 04000000 01 0500000000000000 \
             0600000000000000 0700000000000000 08000000 09000000 0a000000 \
             0100000000000000 73 04000000 01000000 02000000 03000000 04000000 01 0500000000000000 \
             0600000000000000 0700000000000000 08000000 09000000 0a000000 01 0201000000000000 03000000",
        ),
        (
            BrokerFrame::Upstreams {
                serial: 8,
                upstreams: vec![UpstreamStatus {
                    name: name("u"),
                    socket: "/s".into(),
                    services: vec![name("v")],
                    connection: Some(9),
                    state: ActorState::Running,
                    restarts: 10,
                    last_reason: Some("w".into()),
                }],
            },
            "4f000000 0b000000 08000000 0100000000000000 0100000000000000 75 0200000000000000 2f73 \
             0100000000000000 0100000000000000 76 01 09000000 00000000 0a00000000000000 01 0100000000000000 77",
        ),
        (
            BrokerFrame::Reloaded {
                serial: 9,
                report: ReloadReport { changed: vec!["a".into()], needs_restart: vec!["b".into()] },
            },
            "2a000000 0c000000 09000000 0100000000000000 0100000000000000 61 0100000000000000 0100000000000000 62",
        ),
    ]
}

fn typed_messages() -> Vec<(Message, &'static str)> {
    let call = || ToolCall { id: "i".into(), name: "n".into(), arguments: "{}".into() };
    vec![
        (
            Message::CompletionRequest(CompletionRequest {
                id: 1,
                document: "d".into(),
                language: "l".into(),
                prefix: "p".into(),
                suffix: "s".into(),
                cursor: Position { line: 2, column: 3 },
                max_tokens: 4,
                temperature: Some(0.5),
                stop: vec!["x".into()],
            }),
            "0100 00000000 0100000000000000 0100000000000000 64 0100000000000000 6c 0100000000000000 70 \
             0100000000000000 73 02000000 03000000 04000000 01 0000003f 0100000000000000 0100000000000000 78",
        ),
        (
            Message::CompletionChunk(CompletionChunk {
                id: 1,
                index: 2,
                text: "t".into(),
                finish: Some(FinishReason::Filtered),
            }),
            "0100 01000000 0100000000000000 02000000 0100000000000000 74 01 04000000",
        ),
        (
            Message::ChatRequest(ChatRequest {
                id: 1,
                messages: vec![ChatMessage {
                    role: Role::Tool,
                    content: "c".into(),
                    tool_calls: vec![call()],
                    answers: Some("i".into()),
                }],
                model: "m".into(),
                temperature: Some(1.0),
                max_tokens: Some(2),
                tools: vec![ToolDefinition { name: "n".into(), description: "d".into(), parameters: "{}".into() }],
                system_prompt: Some("s".into()),
                stream: true,
            }),
            "0100 02000000 0100000000000000 0100000000000000 03000000 0100000000000000 63 0100000000000000 \
             0100000000000000 69 0100000000000000 6e 0200000000000000 7b7d 01 0100000000000000 69 \
             0100000000000000 6d 01 0000803f 01 02000000 0100000000000000 0100000000000000 6e \
             0100000000000000 64 0200000000000000 7b7d 01 0100000000000000 73 01",
        ),
        (
            Message::ChatChunk(ChatChunk {
                id: 1,
                index: 2,
                delta: "d".into(),
                tool_calls: vec![call()],
                finish: Some(FinishReason::Stop),
                usage: Some(Usage { prompt_tokens: 3, completion_tokens: 4 }),
            }),
            "0100 03000000 0100000000000000 02000000 0100000000000000 64 0100000000000000 0100000000000000 69 \
             0100000000000000 6e 0200000000000000 7b7d 01 00000000 01 03000000 04000000",
        ),
        (
            Message::ChatResponse(ChatResponse {
                id: 1,
                message: ChatMessage::new(Role::Assistant, "c"),
                finish: FinishReason::Length,
                usage: None,
            }),
            "0100 04000000 0100000000000000 02000000 0100000000000000 63 0000000000000000 00 01000000 00",
        ),
        (Message::ToolCall(call()), "0100 05000000 0100000000000000 69 0100000000000000 6e 0200000000000000 7b7d"),
        (
            Message::ToolResult(ToolResult { call: "i".into(), content: "c".into(), is_error: true }),
            "0100 06000000 0100000000000000 69 0100000000000000 63 01",
        ),
        (
            Message::Cancel(Cancel { id: 1, reason: Some("r".into()) }),
            "0100 07000000 0100000000000000 01 0100000000000000 72",
        ),
        (
            Message::Heartbeat(Heartbeat { sequence: 7, sent_ms: 256 }),
            "0100 08000000 0700000000000000 0001000000000000",
        ),
        (
            Message::Error(ErrorMessage {
                id: Some(1),
                code: ErrorCode::Unavailable,
                message: "m".into(),
                retry_after_ms: Some(2),
            }),
            "0100 09000000 01 0100000000000000 06000000 0100000000000000 6d 01 02000000",
        ),
    ]
}

/// Holds all golden bytes of one kind against what is encoded and decoded, and sees that no variant is missing.
fn hold<T: std::fmt::Debug + PartialEq>(
    golden: Vec<(T, &'static str)>,
    variants: u32,
    variant: fn(&T) -> u32,
    encode: fn(&T) -> Vec<u8>,
    decode: fn(&[u8]) -> T,
    tag_at: usize,
) {
    let mut seen = vec![false; usize::try_from(variants).unwrap()];
    for (value, text) in golden {
        let bytes = encode(&value);
        assert_eq!(hex(&bytes), hex(&unhex(text)), "the bytes of {value:?} have changed");
        assert_eq!(decode(&unhex(text)), value);
        let tag = u32::from_le_bytes(bytes[tag_at..tag_at + 4].try_into().unwrap());
        assert_eq!(tag, variant(&value), "{value:?}");
        seen[usize::try_from(tag).unwrap()] = true;
    }
    assert!(seen.iter().all(|seen| *seen), "variants without golden bytes: {seen:?}");
}

/// Strips the length prefix, which must be right.
fn body(frame: &[u8]) -> &[u8] {
    let (prefix, body) = frame.split_at(4);
    assert_eq!(u32::from_le_bytes(prefix.try_into().unwrap()), u32::try_from(body.len()).unwrap());
    body
}

#[test]
fn versions_and_magic_are_those_of_the_golden_bytes() {
    assert_eq!((PROTOCOL_VERSION, &MAGIC, TYPED_VERSION), (1, b"LAPCEIPC", 1));
}

#[test]
fn client_frames_keep_their_bytes() {
    let decode = |bytes: &[u8]| ClientFrame::decode(body(bytes)).unwrap();
    hold(client_frames(), CLIENT_VARIANTS, client_variant, |frame| frame.encode().unwrap(), decode, 4);
}

#[test]
fn broker_frames_keep_their_bytes() {
    let decode = |bytes: &[u8]| BrokerFrame::decode(body(bytes)).unwrap();
    hold(broker_frames(), BROKER_VARIANTS, broker_variant, |frame| frame.encode().unwrap(), decode, 4);
}

#[test]
fn typed_messages_keep_their_bytes() {
    let decode = |bytes: &[u8]| Message::decode(bytes).unwrap();
    hold(typed_messages(), TYPED_VARIANTS, typed_variant, |message| message.encode().unwrap(), decode, 2);
}

/// `status --json` prints the report with these names.
#[test]
fn a_status_report_is_plain_json() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["connections"][0]["name"], "n");
    assert_eq!(json["connections"][0]["services"][0], "s");
    assert_eq!(json["services"][0]["requests"], 18);
    assert_eq!(json["counters"][0][1], 20);
    assert_eq!(json["actors"][0]["state"]["restarting"]["next_in_ms"], 25);
    assert_eq!(json["actors"][2]["state"], "gave_up");
    for state in [SessionState::Connected, SessionState::Waiting, SessionState::AwaitingPeer, SessionState::Ending] {
        assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
    }
    assert_eq!(serde_json::from_value::<StatusReport>(json).unwrap(), report());
    assert_eq!(serde_json::to_string(&DeliveryPolicy::DropOldest).unwrap(), r#""drop_oldest""#);
}

/// The example in the documentation of `wire::control` is the first golden frame.
#[test]
fn the_documented_example_is_true() {
    let source = include_str!("../src/wire/control.rs");
    let example = source.split("//! ```text\n").nth(1).and_then(|rest| rest.split("//! ```\n").next()).unwrap();
    let digits = |line: &str| -> String {
        let line = line.trim_start_matches("//! ");
        line.split("   ").next().unwrap_or_default().into()
    };
    let bytes = unhex(&example.lines().map(digits).collect::<String>());
    assert_eq!(hex(&bytes), hex(&unhex(client_frames()[0].1)));
    assert_eq!(bytes.len(), 45, "as the text before the example says");
}
