//! Every frame, with any content, survives the way over the wire; nothing else gets through.

use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::wire::codec::FrameDecoder;

fn name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9_-]{1,9}(\\.[A-Za-z0-9_-]{1,9}){0,3}".prop_map(|text| Name::parse(&text).unwrap())
}

fn topic() -> impl Strategy<Value = Topic> {
    "\\$?[a-z]{1,9}(\\.[a-z]{1,9}){0,3}".prop_map(|text| Topic::parse_system(&text).unwrap())
}

fn pattern() -> impl Strategy<Value = Pattern> {
    "(\\$?[a-z]{1,9}|\\*)(\\.([a-z]{1,9}|\\*)){0,3}(\\.>)?".prop_map(|text| Pattern::parse(&text).unwrap())
}

fn token() -> impl Strategy<Value = Token> {
    any::<[u8; 16]>().prop_map(Token::from_bytes)
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    use BreakerOrder as B;
    let kind = prop::sample::select(vec![InternKind::Topic, InternKind::Service]);
    let policy =
        prop::sample::select(vec![DeliveryPolicy::Block, DeliveryPolicy::DropNewest, DeliveryPolicy::DropOldest]);
    prop_oneof![
        (any::<(u16, u64, u32)>(), name(), option::of(token())).prop_map(|((version, nonce, flags), name, resume)| {
            ClientFrame::Hello { magic: MAGIC, version, name, nonce, flags, resume }
        }),
        (any::<u32>(), kind, topic()).prop_map(|(serial, kind, name)| ClientFrame::Intern { serial, kind, name }),
        (any::<(u32, u32)>(), pattern(), policy).prop_map(|((serial, credit), pattern, policy)| {
            ClientFrame::Subscribe { serial, pattern, policy, credit }
        }),
        any::<(u32, u32)>().prop_map(|(serial, subscription)| ClientFrame::Unsubscribe { serial, subscription }),
        (any::<(u32, u32)>(), name())
            .prop_map(|((serial, max_in_flight), service)| { ClientFrame::Serve { serial, service, max_in_flight } }),
        any::<(u32, u32)>().prop_map(|(serial, service)| ClientFrame::Unserve { serial, service }),
        any::<u32>().prop_map(|serial| ClientFrame::Status { serial }),
        Just(ClientFrame::Bye),
        any::<u32>().prop_map(|serial| ClientFrame::Breakers { serial }),
        (any::<(u32, u64)>(), name(), prop::sample::select(vec![B::Open, B::Close, B::Auto]))
            .prop_map(|((serial, for_ms), service, order)| ClientFrame::SetBreaker { serial, service, order, for_ms }),
        any::<u32>().prop_map(|serial| ClientFrame::Upstreams { serial }),
        (any::<u32>(), name()).prop_map(|(serial, name)| ClientFrame::DialUpstream { serial, name }),
        any::<u32>().prop_map(|serial| ClientFrame::Reload { serial }),
        (any::<u32>(), page_token()).prop_map(|(serial, token)| ClientFrame::NextPage { serial, token }),
    ]
}

fn page_token() -> impl Strategy<Value = PageToken> {
    any::<(u64, u32)>().prop_map(|(snapshot, page)| PageToken { snapshot, page })
}

fn session_state() -> impl Strategy<Value = SessionState> {
    use SessionState::{AwaitingPeer, Connected, Ending, Waiting};
    prop::sample::select(vec![Connected, Waiting, AwaitingPeer, Ending])
}

fn connection() -> impl Strategy<Value = ConnectionStatus> {
    (name(), prop::collection::vec(name(), 0..3), any::<[u32; 5]>(), any::<[u64; 10]>(), session_state()).prop_map(
        |(name, services, [id, pid, uid, subscriptions, services_offered], n, state)| ConnectionStatus {
            id,
            quota: (uid % 2 == 1).then(|| name.to_string()),
            name,
            pid,
            uid,
            age_ms: n[0],
            subscriptions,
            services,
            services_offered,
            messages_in: n[1],
            messages_out: n[2],
            bytes_in: n[3],
            bytes_out: n[4],
            dropped: n[5],
            backlog_bytes: n[6],
            requests_outstanding: n[7],
            state,
            credit_used_bytes: n[8],
            credit_bytes: n[9],
        },
    )
}

fn upstream() -> impl Strategy<Value = UpstreamStatus> {
    let services = prop::collection::vec(name(), 0..3);
    (actor(), name(), services, option::of(any::<u32>())).prop_map(|(actor, name, services, connection)| {
        let ActorStatus { name: socket, state, restarts, last_reason, .. } = actor;
        UpstreamStatus { name, socket, services, connection, state, restarts, last_reason }
    })
}

fn service() -> impl Strategy<Value = ServiceStatus> {
    (name(), any::<[u32; 3]>(), any::<[u64; 2]>()).prop_map(
        |(name, [responders, outstanding, pending], [requests, failures])| ServiceStatus {
            name,
            responders,
            outstanding,
            pending,
            requests,
            failures,
        },
    )
}

fn actor() -> impl Strategy<Value = ActorStatus> {
    let state = prop_oneof![
        Just(ActorState::Running),
        any::<u64>().prop_map(|next_in_ms| ActorState::Restarting { next_in_ms }),
        Just(ActorState::GaveUp),
        Just(ActorState::Stopped),
    ];
    (".{0,9}", ".{0,9}", state, any::<[u64; 2]>(), option::of(".{0,9}")).prop_map(
        |(name, supervisor, state, [restarts, failures], last_reason)| ActorStatus {
            name,
            supervisor,
            state,
            restarts,
            failures,
            last_reason,
        },
    )
}

fn quantiles() -> impl Strategy<Value = QuantileStatus> {
    any::<[u64; 4]>().prop_map(|[count, p50_ns, p95_ns, p99_ns]| QuantileStatus { count, p50_ns, p95_ns, p99_ns })
}

fn health() -> impl Strategy<Value = HealthStatus> {
    [option::of(".{0,9}"), option::of(".{0,9}"), option::of(".{0,9}"), option::of(".{0,9}")]
        .prop_map(|[address, socket, reason, token_file]| HealthStatus { address, socket, reason, token_file })
}

fn report() -> impl Strategy<Value = StatusReport> {
    let parts = (
        prop::collection::vec(connection(), 0..3),
        prop::collection::vec(service(), 0..3),
        prop::collection::vec(actor(), 0..3),
    );
    let texts = (".{0,9}", ".{0,9}", option::of(".{0,9}"), prop::collection::vec((".{0,9}", any::<u64>()), 0..3));
    let more = (health(), option::of(".{0,9}"));
    (parts, texts, any::<(u64, u32, bool)>(), any::<[u32; 4]>(), [quantiles(), quantiles(), quantiles()], more)
        .prop_map(
            |(
                (connections, services, actors),
                (version, socket, config_file, counters),
                (uptime_ms, pid, draining),
                [slots_used, slots_total, topics, subscriptions],
                [in_broker, round_trip, first_chunk],
                (health, socket_lost),
            )| StatusReport {
                uptime_ms,
                version,
                pid,
                socket,
                config_file,
                draining,
                connections,
                services,
                counters,
                slots_used,
                slots_total,
                topics,
                subscriptions,
                actors,
                latency: Box::new(LatencyStatus { in_broker, round_trip, first_chunk }),
                health: Box::new(health),
                holdings: vec![
                    HoldingStatus {
                        uid: topics,
                        quota: socket_lost.clone(),
                        resource: "r".into(),
                        held: 1,
                        limit: uptime_ms,
                        key: None
                    };
                    slots_used as usize % 3
                ],
                socket_lost,
                awaited_sessions: subscriptions.rotate_left(7),
            },
        )
}

fn breaker() -> impl Strategy<Value = BreakerStatus> {
    use BreakerState as S;
    let state = prop::sample::select(vec![S::Closed, S::Open, S::HalfOpen, S::ForcedOpen, S::ForcedClosed]);
    (name(), state, any::<[u32; 9]>(), any::<[u64; 2]>(), any::<Option<u64>>()).prop_map(
        |(service, state, n, [opened, rejected], ends_in_ms)| BreakerStatus {
            service,
            state,
            failures: n[0],
            failed_trials: n[1],
            probes: n[2],
            successes: n[3],
            ends_in_ms,
            opened,
            rejected,
            failure_threshold: n[4],
            success_threshold: n[5],
            half_open_max_requests: n[6],
        },
    )
}

fn broker_frame() -> impl Strategy<Value = BrokerFrame> {
    use {ClosingCode as C, FailedCode as F, RefusedCode as R};
    let refused =
        [R::Version, R::NotAllowed, R::TooManyConnections, R::Malformed, R::Draining, R::BadToken, R::ResumeFailed]
            .into_iter()
            .chain([R::GivenUp])
            .collect::<Vec<_>>();
    let failed = vec![F::Limit, F::Invalid, F::Unknown, F::NotAllowed];
    let closing = vec![C::Shutdown, C::ProtocolViolation, C::SlowConsumer, C::Overuse, C::Replaced];
    let limits = any::<[u32; 9]>().prop_map(|n| Limits {
        max_message_size: n[0],
        slot_size: n[1],
        stream_credit_cells: n[2],
        subscription_credit_cells: n[3],
        default_request_timeout_ms: n[4],
        max_request_timeout_ms: n[5],
        max_requests: n[6],
        stream_first_chunk_ms: n[7],
        stream_idle_ms: n[8],
    });
    let geometry = any::<([u64; 4], u32, u32)>().prop_map(|(n, slot_size, extension_cells)| Geometry {
        segment_bytes: n[0],
        nonce_egress: n[1],
        nonce_bulk: n[2],
        nonce_express: n[3],
        slot_size,
        extension_cells,
    });
    prop_oneof![
        (any::<(u16, u32)>(), token(), ".{0,20}", limits, geometry).prop_map(
            |((version, connection), token, broker, limits, geometry)| BrokerFrame::Welcome {
                version,
                connection,
                token,
                broker,
                limits,
                geometry
            }
        ),
        (prop::sample::select(refused), ".{0,20}", any::<u16>())
            .prop_map(|(code, message, version)| BrokerFrame::Refused { code, message, version }),
        any::<(u32, u32)>().prop_map(|(serial, id)| BrokerFrame::Interned { serial, id }),
        any::<(u32, u32)>().prop_map(|(serial, subscription)| BrokerFrame::Subscribed { serial, subscription }),
        any::<(u32, u32)>().prop_map(|(serial, service)| BrokerFrame::Serving { serial, service }),
        any::<u32>().prop_map(|serial| BrokerFrame::Done { serial }),
        (any::<u32>(), prop::sample::select(failed), ".{0,20}")
            .prop_map(|(serial, code, message)| BrokerFrame::Failed { serial, code, message }),
        (any::<u32>(), report(), option::of(page_token())).prop_map(|(serial, report, next)| BrokerFrame::Status {
            serial,
            report,
            next
        }),
        any::<u32>().prop_map(|deadline_ms| BrokerFrame::Draining { deadline_ms }),
        (prop::sample::select(closing), ".{0,20}").prop_map(|(code, message)| BrokerFrame::Closing { code, message }),
        (any::<u32>(), prop::collection::vec(breaker(), 0..3), option::of(page_token()))
            .prop_map(|(serial, breakers, next)| BrokerFrame::Breakers { serial, breakers, next }),
        (any::<u32>(), prop::collection::vec(upstream(), 0..3))
            .prop_map(|(serial, upstreams)| BrokerFrame::Upstreams { serial, upstreams }),
    ]
}

fn body(frame: &[u8]) -> &[u8] {
    &frame[codec::FRAME_PREFIX_BYTES..]
}

proptest! {
    #[test]
    fn client_frames_survive(frames in prop::collection::vec(client_frame(), 1..5)) {
        let mut decoder = FrameDecoder::new(CLIENT_FRAME_BYTES_MAX);
        let mut decoded = Vec::new();
        for byte in frames.iter().flat_map(|frame| frame.encode().unwrap()) {
            decoder.push(&[byte]);
            if let Some(body) = decoder.next_frame().unwrap() {
                decoded.push(ClientFrame::decode(body).unwrap());
            }
        }
        prop_assert_eq!(decoded, frames);
        prop_assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn broker_frames_survive(frames in prop::collection::vec(broker_frame(), 1..5)) {
        let mut decoder = FrameDecoder::new(BROKER_FRAME_BYTES_MAX);
        for frame in &frames {
            decoder.push(&frame.encode().unwrap());
        }
        for frame in &frames {
            let body = decoder.next_frame().unwrap().unwrap();
            prop_assert_eq!(&BrokerFrame::decode(body).unwrap(), frame);
        }
        prop_assert_eq!(decoder.next_frame(), Ok(None));
    }

    /// Whatever a stranger changes, the result is an error or a frame whose one encoding this is.
    #[test]
    fn tampered_frames_are_errors_or_other_frames(
        client in client_frame(),
        broker in broker_frame(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let tamper = |frame: Vec<u8>| {
            let mut bytes = body(&frame).to_vec();
            for (index, value) in &changes {
                let index = index.index(bytes.len());
                bytes[index] = *value;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            bytes
        };
        let bytes = tamper(client.encode().unwrap());
        let _ = peek_hello(&bytes);
        if let Ok(frame) = ClientFrame::decode(&bytes) {
            let again = frame.encode().unwrap();
            prop_assert_eq!(body(&again), &bytes[..]);
        }
        let bytes = tamper(broker.encode().unwrap());
        if let Ok(frame) = BrokerFrame::decode(&bytes) {
            let again = frame.encode().unwrap();
            prop_assert_eq!(body(&again), &bytes[..]);
        }
    }

    #[test]
    fn any_bytes_are_survived(variant in 0u8..12, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for bytes in [bytes.clone(), [&[variant, 0, 0, 0], &bytes[..]].concat()] {
            let _ = peek_hello(&bytes);
            let _ = ClientFrame::decode(&bytes);
            let _ = BrokerFrame::decode(&bytes);
        }
    }
}

#[test]
fn the_largest_client_frame_fits() {
    let longest = vec!["t".repeat(63); 4].join(".");
    assert_eq!(longest.len(), crate::wire::name::NAME_BYTES_MAX);
    let name = Name::parse(&longest).unwrap();
    let hello = ClientFrame::hello(name, u64::MAX, Some(Token::from_bytes([0xff; 16])));
    assert!(hello.encode().unwrap().len() < CLIENT_FRAME_BYTES_MAX / 4);
}

#[test]
fn a_hello_of_another_version_can_be_peeked_but_not_decoded() {
    let mut bytes = 0u32.to_le_bytes().to_vec();
    bytes.extend(MAGIC);
    bytes.extend([0x2a, 0x01]);
    bytes.extend(b"whatever version 298 has to say");
    assert_eq!(peek_hello(&bytes), Ok(298));
    assert!(ClientFrame::decode(&bytes).is_err());

    for cut in 0..14 {
        assert_eq!(peek_hello(&bytes[..cut]), Err(HelloError::Short { found: cut }));
    }
    assert_eq!(peek_hello(&bytes[..14]), Ok(298));
    bytes[4] = b'l';
    assert_eq!(peek_hello(&bytes), Err(HelloError::Magic));
    bytes[0] = 7;
    assert_eq!(peek_hello(&bytes), Err(HelloError::NotHello { variant: 7 }));
    assert_eq!(
        peek_hello(b"GET / HTTP/1.1\r\n").unwrap_err().to_string(),
        "first frame is variant 542393671, expected a hello"
    );
}

#[test]
fn decoding_checks_magic_names_and_variants() {
    let hello = ClientFrame::hello(Name::parse("editor").unwrap(), 1, None).encode().unwrap();
    let changed = |at: usize, value: u8| {
        let mut bytes = body(&hello).to_vec();
        bytes[at] = value;
        ClientFrame::decode(&bytes).unwrap_err().to_string()
    };
    assert_eq!(changed(4, b'l'), "malformed value: hello has the wrong magic");
    assert_eq!(
        changed(22, b'\n'),
        r#"malformed value: invalid name "\nditor": character '\n' is not allowed at byte 0"#
    );
    assert_eq!(changed(40, 9), "malformed value: option tag is 9, expected 0 or 1");
    assert!(changed(0, 99).contains("99"), "{}", changed(0, 99));
    assert_eq!(changed(14, 200), "value is cut off after 41 bytes");
    let error = ClientFrame::decode(&[0; CLIENT_FRAME_BYTES_MAX + 1]).unwrap_err();
    assert_eq!(error.to_string(), "4097 bytes exceed the limit of 4096");
}

#[test]
fn a_forged_system_topic_decodes_and_is_visible_as_such() {
    let frame =
        ClientFrame::Intern { serial: 1, kind: InternKind::Topic, name: Topic::parse_system("$sys.restarts").unwrap() };
    let bytes = frame.encode().unwrap();
    let Ok(ClientFrame::Intern { name, .. }) = ClientFrame::decode(body(&bytes)) else { panic!("no intern") };
    assert!(name.is_system());
}

#[test]
fn tokens_compare_whole_and_stay_hidden() {
    let token = Token::from_bytes([0xab; 16]);
    assert_eq!(token, Token::from_bytes([0xab; 16]));
    for index in 0..16 {
        let mut other = [0xab; 16];
        other[index] ^= 1 << (index % 8);
        assert_ne!(token, Token::from_bytes(other), "byte {index}");
    }
    let hello = ClientFrame::hello(Name::parse("a").unwrap(), 1, Some(token));
    let shown = format!("{hello:?}");
    assert!(shown.contains("Token(..)") && !shown.contains("171") && !shown.to_lowercase().contains("ab,"), "{shown}");
}
