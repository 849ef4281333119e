//! What engines do wrong, and what a requester, the breaker and the log see of it: one test per kind of fault.

mod support;

use lapce_ipc::client::{BreakerState, ErrorKind};
use lapce_ipc::wire::typed::FinishReason;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use support::engine::{Engine, SERVICE, question, request};
use support::fake_engine::TOKENS;
use support::{Broker, wait_until};

#[test]
fn every_legal_stream_gives_the_whole_text() {
    let engine = Engine::start("ok", &[]);
    let client = engine.client();
    for mode in ["ok", "crlf", "split", "comments", "usage", "done-only", "finish-open", "whole", "llama"] {
        engine.fake.set_mode(mode);
        let completed = engine.complete(&client, &request(mode)).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_eq!(completed, (TOKENS.concat(), FinishReason::Stop), "{mode}");
        let chat = engine.chat(&client, &question(false)).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert_eq!(chat.message.content, TOKENS.concat(), "{mode}");
    }
}

#[test]
fn a_stream_that_is_not_whole_is_an_error_and_counts() {
    let engine = Engine::start("ok", &[]);
    let client = engine.client();
    let counted = |client: &lapce_ipc::client::Client| {
        let breakers = client.breakers().unwrap();
        breakers.iter().find(|breaker| breaker.service.as_str() == SERVICE).map_or(0, |breaker| breaker.failures)
    };
    for (mode, why) in [
        ("no-finish", "stream ended early: neither finish_reason nor [DONE]"),
        ("cut", "stream failed"),
        ("error-open", "error: slot unavailable"),
        ("error-200", "error: no slot available"),
        ("error-event", "error: out of memory"),
        ("garbage", "no reply"),
        ("garbage-event", "reply: invalid event"),
        ("not-utf8", "invalid event: utf8"),
        ("endless-line", "stream failed: longer than"),
    ] {
        engine.fake.set_mode(mode);
        let before = counted(&client);
        let text = engine.failure(&client, mode);
        assert!(text.contains(why) && text.contains("/v1/completions: "), "{mode}: {text}");
        assert_eq!(counted(&client), before + 1, "{mode}");
        assert_eq!(engine.status(&client)["last_error"], text.as_str());
        // Nothing stays open.
        engine.is_quiet();
    }
}

#[test]
fn error_statuses_name_endpoint_and_status_and_count_if_they_are_the_engines() {
    // A way is given, so that no refusal is taken for one of the way.
    let engine = Engine::start_with("ok", &["--way", "suffix"], &[("circuit_breaker.failure_threshold", "1000")]);
    let client = engine.client();
    let counted = || {
        let breakers = client.breakers().unwrap();
        breakers.iter().find(|breaker| breaker.service.as_str() == SERVICE).map_or(0, |breaker| breaker.failures)
    };
    for (mode, why, counts) in [
        ("400", "400 Bad Request: prompt is too long", false),
        ("401", "401 Unauthorized: wrong key", true),
        ("403", "403 Forbidden: not for you", true),
        ("404", "404 Not Found: model not found", true),
        ("500", "500 Internal Server Error: out of memory", true),
        ("429", "429 Too Many Requests: slow down", true),
    ] {
        engine.fake.set_mode(mode);
        let before = counted();
        let text = engine.failure(&client, mode);
        assert_eq!(text.split_once("/v1/completions: ").map(|(_, rest)| rest.starts_with(why)), Some(true), "{text}");
        assert_eq!(counted() - before, u32::from(counts), "{mode}");
    }
    // The last one asked for two minutes: nothing is sent until then.
    let (requests, before) = (engine.fake.counts().requests.load(SeqCst), counted());
    let text = engine.failure(&client, "paused");
    assert!(text.contains("busy, no request is sent for 1"), "{text}");
    assert_eq!((engine.fake.counts().requests.load(SeqCst), counted()), (requests, before + 1));
}

#[test]
fn the_key_reaches_the_endpoint_and_nothing_else() {
    let mut engine = Engine::start("401", &["--api-key-env", "LAPCE_TEST_KEY"]);
    let client = engine.client();
    let text = engine.failure(&client, "a");
    assert!(text.contains("wrong key: Bearer ***"), "{text}");
    let status = engine.status(&client).to_string();
    engine.process.wait_for("request failed");
    assert!(![text, status, engine.process.stderr()].iter().any(|text| text.contains("secret")));
}

#[test]
fn a_generator_that_hangs_is_found_by_the_time_to_the_first_token() {
    let limits = ["--first-token-timeout", "300ms", "--token-timeout", "200ms", "--way", "suffix"];
    let engine = Engine::start("ok", &limits);
    let client = engine.client();
    for (mode, why) in [
        ("hang", "timeout: no first token within 300ms"),
        ("hang-open", "timeout: no first token within 300ms"),
        ("pings", "timeout: no first token within 300ms"),
        ("stall", "timeout: no token within 200ms"),
    ] {
        engine.fake.set_mode(mode);
        let text = engine.failure(&client, mode);
        assert!(text.ends_with(why), "{mode}: {text}");
        engine.is_quiet();
    }
}

#[test]
fn an_endpoint_that_does_not_accept_connections_is_found_by_the_connect_timeout() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with};
    // A full queue of connections: the next handshake gets no reply.
    let listener = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &std::net::SocketAddrV4::new([127, 0, 0, 1].into(), 0)).unwrap();
    listen(&listener, 0).unwrap();
    let address: std::net::SocketAddr = getsockname(&listener).unwrap().try_into().unwrap();
    let mut fill = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        fill.push(stream);
    }
    let broker = Broker::start();
    let args = ["--connect-timeout", "300ms", "--way", "prefix"];
    let process = Engine::adapter(&broker, &format!("http://{address}"), &args);
    let engine = Engine { process, fake: support::fake_engine::FakeEngine::start("ok", 0), broker };
    let client = engine.client();
    let text = engine.failure(&client, "a");
    assert!(text.contains("cannot connect: no connection within 300ms"), "{text}");
    drop((listener, fill));
    let text = engine.failure(&client, "a");
    assert!(text.contains("cannot connect: ") && text.contains("refused"), "{text}");
}

#[test]
fn a_refused_suffix_is_tried_once_and_the_way_that_works_is_remembered() {
    let mut engine = Engine::start("no-suffix", &[]);
    let client = engine.client();
    assert_eq!(engine.complete(&client, &request("a")).unwrap().0, TOKENS.concat());
    let seen = engine.fake.seen();
    assert_eq!(
        seen.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
        [
            "/v1/completions", // suffix
            "/infill",
            "/v1/completions", // markers
        ]
    );
    assert!(seen[2].1.contains("<|fim_prefix|>fn main() {<|fim_suffix|>}<|fim_middle|>"), "{}", seen[2].1);
    assert!(engine.complete(&client, &request("a")).is_ok());
    assert_eq!(engine.fake.seen().len(), 4, "the way is known");
    assert_eq!(engine.status(&client)["way"], "markers");
    engine.process.wait_for("fill-in-the-middle way found way=markers");
}

#[test]
fn a_refusal_of_the_request_is_not_taken_for_one_of_the_way() {
    let engine = Engine::start("400", &[]);
    let client = engine.client();
    for _ in 0..3 {
        assert!(engine.failure(&client, "a").contains("400 Bad Request: prompt is too long"));
    }
    // A wrong address refuses each request, so it is told: in the status, and once in the log.
    assert!(engine.status(&client)["last_error"].as_str().is_some_and(|text| text.contains("prompt is too long")));
    wait_until("a line", || engine.process.stderr().contains("WARN"));
    assert_eq!(engine.process.stderr().matches(" request refused reason=").count(), 1, "{}", engine.process.stderr());
    engine.fake.set_mode("ok");
    assert!(engine.complete(&client, &request("a")).is_ok());
    assert_eq!(engine.status(&client)["way"], "suffix");
    let requests = engine.fake.seen().len();
    engine.fake.set_mode("400");
    assert!(engine.failure(&client, "a").contains("400 Bad Request"));
    assert_eq!(engine.fake.seen().len(), requests + 1, "no other way is tried");
}

#[test]
fn llama_cpp_gets_infill_and_without_fim_tokens_another_way() {
    let engine = Engine::start("llama", &[]);
    let client = engine.client();
    assert_eq!(engine.complete(&client, &request("a")).unwrap().0, TOKENS.concat());
    let (path, body) = engine.fake.seen().remove(0);
    assert_eq!(path, "/infill");
    assert!(body.contains(r#""input_prefix":"fn main() {""#) && body.contains(r#""input_suffix":"}""#), "{body}");
    assert_eq!(engine.status(&client)["way"], "infill");
    engine.fake.set_mode("infill-501");
    assert_eq!(engine.complete(&client, &request("a")).unwrap().0, TOKENS.concat());
    assert_eq!(engine.status(&client)["way"], "markers");
}

#[test]
fn a_server_that_loads_its_model_is_waited_for_and_gets_the_way_that_it_has_then() {
    let engine = Engine::start("loading", &[]);
    let client = engine.client();
    std::thread::scope(|scope| {
        let completion = scope.spawn(|| engine.complete(&engine.client(), &request("a")));
        wait_until("a pause", || engine.status(&client)["pause_ms"] != 0);
        engine.fake.set_mode("llama");
        assert_eq!(completion.join().unwrap().unwrap().0, TOKENS.concat());
    });
    assert_eq!(engine.status(&client)["way"], "infill");
}

#[test]
fn a_server_that_is_restarted_with_another_model_gets_the_way_of_that_one() {
    let mut engine = Engine::start("ok", &[]);
    let client = engine.client();
    assert!(engine.complete(&client, &request("a")).is_ok());
    assert_eq!(engine.status(&client)["way"], "suffix");
    let port = engine.fake.address().port();
    engine.fake.stop();
    wait_until("the endpoint to be gone", || std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(engine.failure(&client, "gone").contains("cannot connect"));
    assert!(engine.status(&client)["last_error"].is_string());
    engine.fake = support::fake_engine::FakeEngine::start("llama", port);
    assert!(engine.complete(&client, &request("a")).is_ok());
    let status = engine.status(&client);
    assert_eq!((&status["way"], &status["last_error"]), (&"infill".into(), &serde_json::Value::Null));
}

#[test]
fn a_busy_engine_is_asked_again_after_pauses_not_in_a_loop() {
    let mut engine = Engine::start("busy", &[]);
    let client = engine.client();
    let begun = Instant::now();
    assert_eq!(engine.complete(&client, &request("a")).unwrap().0, TOKENS.concat());
    assert!(begun.elapsed() >= Duration::from_millis(1200), "500ms and 1s, with jitter: {:?}", begun.elapsed());
    assert_eq!(engine.fake.counts().requests.load(SeqCst), 3);
    engine.process.wait_for("engine busy pause_ms=");
    engine.fake.set_mode("retry-after");
    let begun = Instant::now();
    assert!(engine.complete(&client, &request("a")).is_ok());
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn an_engine_that_stays_full_fails_the_request_in_time_and_is_asked_seldom() {
    let engine = Engine::start("full", &["--first-token-timeout", "3s"]);
    let client = engine.client();
    let text = engine.failure(&client, "a");
    assert!(text.contains("503 Service Unavailable: server busy, maximum pending requests"), "{text}");
    let requests = engine.fake.counts().requests.load(SeqCst);
    assert!((2..=4).contains(&requests), "{requests}");
}

#[test]
fn an_engine_that_goes_on_after_a_disconnect_gets_no_further_request_of_the_document_at_a_time() {
    let engine = Engine::start("deaf", &[]);
    let client = engine.client();
    engine.fake.set_pace(Duration::from_millis(10));
    engine.fake.set_tokens(&["x"; 100]);
    for _ in 0..3 {
        let payload = lapce_ipc::wire::typed::Message::CompletionRequest(request("a")).encode().unwrap();
        let mut stream = client.request_stream_with(SERVICE, payload, support::engine::patient()).unwrap();
        stream.next().unwrap().unwrap();
    }
    wait_until("the disconnects", || engine.fake.counts().disconnects.load(SeqCst) == 3);
    engine.is_quiet();
    assert!(engine.fake.counts().tokens_after_disconnect.load(SeqCst) > 0, "the mode is what it says");
    assert_eq!(engine.status(&client)["in_flight"], 0);
}

#[test]
fn five_failures_open_the_breaker_which_rejects_at_once_and_recovers() {
    let engine = Engine::start_with("500", &[], &[("circuit_breaker.timeout_secs", "1")]);
    let client = engine.client();
    for _ in 0..5 {
        assert!(engine.failure(&client, "a").contains("500 Internal Server Error"));
    }
    let requests = engine.fake.counts().requests.load(SeqCst);
    let begun = Instant::now();
    let error = engine.complete(&client, &request("a")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BreakerOpen);
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(engine.fake.counts().requests.load(SeqCst), requests);
    let state = |client: &lapce_ipc::client::Client| {
        let breakers = client.breakers().unwrap();
        breakers.into_iter().find(|breaker| breaker.service.as_str() == SERVICE).unwrap().state
    };
    assert!(matches!(state(&client), BreakerState::Open), "{:?}", state(&client));
    engine.fake.set_mode("ok");
    wait_until("the breaker to close", || {
        let completed = engine.complete(&client, &request("a")).is_ok();
        completed && matches!(state(&client), BreakerState::Closed)
    });
}
