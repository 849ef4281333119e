//! `lapce-ipc engine openai`: completions and chats through broker, adapter and a fake endpoint.

mod support;

use lapce_ipc::wire::typed::{FinishReason, Usage};
use lapce_ipc::wire::typed::{Form, Message, ToolDefinition};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use support::engine::{CHAT, Engine, SERVICE, patient, question, request};
use support::fake_engine::TOKENS;
use support::{Broker, code, output, wait_until};

#[test]
fn a_completion_streams_through_broker_and_engine() {
    let engine = Engine::start("ok", &[]);
    let client = engine.client();
    assert_eq!(engine.complete(&client, &request("a")).unwrap(), (TOKENS.concat(), FinishReason::Stop));
    let (path, body) = engine.fake.seen().remove(0);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(path, "/v1/completions");
    assert_eq!(body["prompt"], "fn main() {");
    assert_eq!(body["suffix"], "}");
    assert_eq!((&body["stream"], &body["max_tokens"]), (&true.into(), &64.into()));
    assert_eq!((&body["model"], &body["temperature"]), (&"qwen-fake".into(), &0.2.into()));
    // A requester that wants no stream gets one chunk.
    let payload = Message::CompletionRequest(request("a")).encode().unwrap();
    let reply = client.request_with(SERVICE, payload, patient()).unwrap();
    let Ok(Message::CompletionChunk(chunk)) = Message::decode(&reply) else { panic!("{reply:?}") };
    assert_eq!((chunk.id, chunk.index, chunk.text, chunk.finish), (7, 0, TOKENS.concat(), Some(FinishReason::Stop)));
}

#[test]
fn a_request_in_json_gets_its_reply_in_json_from_the_command_line_too() {
    let engine = Engine::start("ok", &[]);
    let json = r#"{"completion_request":{"id":3,"document":"a","prefix":"x","max_tokens":9}}"#;
    let reply = output(engine.broker.command(&["request", SERVICE, json, "--stream"]), b"");
    let text = String::from_utf8(reply.stdout).unwrap();
    assert_eq!(text.matches("completion_chunk").count(), 6, "{text}");
    assert!(text.contains("grüße ✓") && text.contains(r#""finish":"stop""#), "{text}");
    assert!(text.starts_with(r#"{"completion_chunk":{"id":3,"index":0,"text":"println!""#), "{text}");
    // A request without a suffix says nothing about ways, and has none.
    assert!(!engine.fake.seen()[0].1.contains("suffix"));
}

#[test]
fn what_is_no_request_is_refused_and_does_not_count() {
    let engine = Engine::start_with("ok", &[], &[("circuit_breaker.failure_threshold", "1")]);
    let client = engine.client();
    for (payload, why) in [
        (&b"hello"[..], "typed message has version"),
        (br#"{"completion_request":{"id":1}}"#, "missing field"),
        (br#"{"completion_request":{"id":1,"document":"","prefix":"","max_tokens":1}}"#, "document must not be empty"),
        (br#"{"heartbeat":{"sequence":1,"sent_ms":1}}"#, "expected a completion_request"),
        (b"", "cut off"),
    ] {
        let error = client.request(SERVICE, payload).unwrap_err();
        let text = error.reply_text().unwrap_or_else(|| panic!("{error}"));
        assert!(text.contains(why), "{text}");
    }
    let error = client.request(CHAT, br#"{"heartbeat":{"sequence":1,"sent_ms":1}}"#).unwrap_err();
    assert!(error.reply_text().unwrap().contains("expected a chat_request"));
    assert!(engine.complete(&client, &request("a")).is_ok(), "the breaker is closed");
}

#[test]
fn stop_texts_of_the_request_end_the_completion() {
    let engine = Engine::start("ok", &[]);
    let client = engine.client();
    engine.fake.set_tokens(&["let a", " = 1;", "\n", "\nlet ", "b"]);
    let mut wanted = request("a");
    wanted.stop = ["", "\n\n", "1", "2", "3", "4", "5"].map(str::to_owned).into();
    assert_eq!(engine.complete(&client, &wanted).unwrap(), ("let a = ".to_owned(), FinishReason::Stop));
    wanted.stop = vec!["\n\n".to_owned()];
    assert_eq!(engine.complete(&client, &wanted).unwrap(), ("let a = 1;".to_owned(), FinishReason::Stop));
    engine.is_quiet();
}

#[test]
fn of_a_large_document_the_engine_gets_what_is_around_the_cursor() {
    let engine = Engine::start("ok", &["--max-prefix", "1000", "--max-suffix", "101"]);
    let mut wanted = request("a");
    wanted.prefix = "ä".repeat(1_000_000) + "here";
    wanted.suffix = "there".to_owned() + &"ö".repeat(1_000_000);
    assert!(engine.complete(&engine.client(), &wanted).is_ok());
    let body: serde_json::Value = serde_json::from_str(&engine.fake.seen()[0].1).unwrap();
    assert_eq!(body["prompt"], "ä".repeat(498) + "here");
    assert_eq!(body["suffix"], "there".to_owned() + &"ö".repeat(48));
}

#[test]
fn fim_markers_never_leak_also_when_they_are_split() {
    let engine = Engine::start("markers", &[]);
    let client = engine.client();
    assert_eq!(engine.complete(&client, &request("a")).unwrap(), ("fn a() {}".to_owned(), FinishReason::Stop));
}

#[test]
fn a_chat_streams_and_counts_and_calls_tools() {
    let engine = Engine::start("ok", &[]);
    let client = engine.client();
    let usage = Some(Usage { prompt_tokens: 7, completion_tokens: 5 });
    let response = engine.chat(&client, &question(false)).unwrap();
    assert_eq!((response.id, response.message.content.as_str()), (9, TOKENS.concat().as_str()));
    assert_eq!((response.finish, response.usage), (FinishReason::Stop, usage));
    // Streamed.
    let payload = Message::ChatRequest(question(true)).encode_as(Form::Json).unwrap();
    let chunks = client.request_stream_with(CHAT, payload, patient()).unwrap();
    let chunks: Vec<_> = chunks
        .map(|chunk| match Message::decode_any(&chunk.unwrap()) {
            Ok((Message::ChatChunk(chunk), Form::Json)) => chunk,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(chunks.iter().map(|chunk| chunk.delta.as_str()).collect::<String>(), TOKENS.concat());
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!((last.finish, last.usage), (Some(FinishReason::Stop), usage));
    assert!(before.len() == TOKENS.len() && before.iter().all(|chunk| chunk.finish.is_none()));
    // A call of a tool.
    engine.fake.set_mode("tools");
    let mut wanted = question(false);
    wanted.tools = vec![ToolDefinition {
        name: "read".to_owned(),
        description: "reads".to_owned(),
        parameters: r#"{"type":"object"}"#.to_owned(),
    }];
    let response = engine.chat(&client, &wanted).unwrap();
    let call = &response.message.tool_calls[0];
    assert_eq!(
        (call.id.as_str(), call.name.as_str(), call.arguments.as_str()),
        ("call_1", "read", r#"{"path":"a.rs"}"#)
    );
    assert_eq!(response.finish, FinishReason::ToolCalls);
    let (path, body) = engine.fake.seen().pop().unwrap();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(path, "/v1/chat/completions");
    assert_eq!(body["messages"][0], serde_json::json!({ "role": "system", "content": "be brief" }));
    assert_eq!(body["tools"][0]["function"]["parameters"]["type"], "object");
    wanted.tools[0].parameters = "{".to_owned();
    let error = engine.chat(&client, &wanted).unwrap_err();
    assert!(error.reply_text().unwrap().starts_with("tool read: parameters are not JSON"), "{error}");
}

#[test]
fn a_cancel_closes_the_http_request_at_once() {
    let engine = Engine::start("ok", &[]);
    let client = engine.client();
    engine.fake.set_pace(Duration::from_millis(20));
    engine.fake.set_tokens(&["token "; 500]);
    let counts = engine.fake.counts();
    let mut times = Vec::new();
    let mut tokens_after = 0;
    for round in 0..20 {
        let payload = Message::CompletionRequest(request(&format!("{round}"))).encode().unwrap();
        let mut stream = client.request_stream_with(SERVICE, payload, patient()).unwrap();
        stream.next().unwrap().unwrap();
        stream.next().unwrap().unwrap();
        let (cancelled, tokens) = (Instant::now(), counts.tokens.load(SeqCst));
        drop(stream);
        wait_until("the HTTP request to be closed", || engine.fake.closed_at().len() > round);
        engine.is_quiet();
        times.push(engine.fake.closed_at()[round].saturating_duration_since(cancelled));
        tokens_after = tokens_after.max(counts.tokens.load(SeqCst) - tokens);
    }
    times.sort();
    let (median, worst) = (times[10], times[19]);
    support::probe::note(&format!(
        "a cancel closes the HTTP request: median of 20 {median:?}, worst {worst:?}; tokens after it: {tokens_after}"
    ));
    assert!(median < Duration::from_millis(50), "{times:?}");
    assert!(tokens_after <= 2, "{tokens_after} tokens after a cancel");
    assert_eq!(counts.tokens_after_disconnect.load(SeqCst), 0);
}

#[test]
fn a_cancel_before_the_first_token_and_in_the_queue_reaches_the_engine_too() {
    let engine = Engine::start("hang", &["--first-token-timeout", "100s"]);
    let client = engine.client();
    let start = |document: &str| {
        let payload = Message::CompletionRequest(request(document)).encode().unwrap();
        client.request_stream_with(SERVICE, payload, patient()).unwrap()
    };
    let counts = engine.fake.counts();
    let first = start("a");
    wait_until("a request at the engine", || counts.running.load(SeqCst) == 1);
    let queued = start("b");
    wait_until("a request in the queue", || engine.status(&client)["queued"] == 1);
    drop(queued);
    wait_until("no request in the queue", || engine.status(&client)["queued"] == 0);
    drop(first);
    engine.is_quiet();
    wait_until("no request in flight", || engine.status(&client)["in_flight"] == 0);
    assert_eq!(counts.requests.load(SeqCst), 1);
}

#[test]
fn a_newer_request_of_a_document_supersedes_the_older_before_it_is_sent() {
    let engine = Engine::start("hang", &[]);
    let client = engine.client();
    let start = |document: &str, id| {
        let mut wanted = request(document);
        wanted.id = id;
        let payload = Message::CompletionRequest(wanted).encode().unwrap();
        client.request_stream_with(SERVICE, payload, patient()).unwrap()
    };
    let counts = engine.fake.counts();
    // Another document has the slot.
    let other = start("other", 0);
    wait_until("a request at the engine", || counts.running.load(SeqCst) == 1);
    let mut streams: Vec<_> = (1..=30).map(|id| start("a", id)).collect();
    let newest = streams.pop().unwrap();
    for mut stream in streams {
        let error = stream.next().unwrap().unwrap_err();
        assert_eq!(error.reply_text(), Some("superseded by a newer request for the document"));
    }
    engine.fake.set_mode("ok");
    drop(other);
    assert!(newest.collect::<Result<Vec<_>, _>>().unwrap().len() > 1);
    assert_eq!(counts.requests.load(SeqCst), 2);
    // One that the engine has is cancelled there.
    engine.fake.set_mode("hang");
    let mut old = start("a", 31);
    wait_until("a request at the engine", || counts.running.load(SeqCst) == 1);
    engine.fake.set_mode("ok");
    let new = start("a", 32);
    assert!(old.next().unwrap().unwrap_err().is_error_reply());
    assert!(new.collect::<Result<Vec<_>, _>>().unwrap().len() > 1);
}

#[test]
fn the_engine_has_at_most_its_slots() {
    for (slots, args) in [(1, &[][..]), (2, &["--slots", "2"])] {
        let engine = Engine::start("ok", args);
        let client = engine.client();
        std::thread::scope(|scope| {
            for document in 0..12 {
                let (engine, client) = (&engine, client.clone());
                scope.spawn(move || engine.complete(&client, &request(&format!("{document}"))).unwrap());
            }
        });
        assert_eq!(engine.fake.counts().running_max.load(SeqCst), slots);
        assert_eq!(engine.fake.counts().requests.load(SeqCst), 12);
    }
}

#[test]
fn sigterm_finishes_outstanding_requests_and_takes_no_new_one() {
    let mut engine = Engine::start("ok", &[]);
    let client = engine.client();
    engine.fake.set_pace(Duration::from_millis(100));
    let payload = Message::CompletionRequest(request("a")).encode().unwrap();
    let mut stream = client.request_stream_with(SERVICE, payload, patient()).unwrap();
    stream.next().unwrap().unwrap();
    engine.process.signal("TERM");
    engine.process.wait_for("draining requests=1");
    wait_until("no responder", || client.request(SERVICE, b"x").is_err_and(|error| error.is_no_responders()));
    let chunks: Vec<_> = stream.map(|chunk| chunk.unwrap()).collect();
    let Ok(Message::CompletionChunk(last)) = Message::decode(chunks.last().unwrap()) else { panic!("{chunks:?}") };
    assert_eq!(last.finish, Some(FinishReason::Stop));
    assert_eq!(engine.process.code(), 0);
}

#[test]
fn a_drain_that_takes_too_long_ends() {
    let mut engine = Engine::start("hang", &["--drain-timeout", "100ms"]);
    let client = engine.client();
    let payload = Message::CompletionRequest(request("a")).encode().unwrap();
    let mut stream = client.request_stream_with(SERVICE, payload, patient()).unwrap();
    wait_until("a request at the engine", || engine.fake.counts().running.load(SeqCst) == 1);
    engine.process.signal("INT");
    assert_eq!(engine.process.code(), 0);
    assert!(stream.next().unwrap().is_err());
    engine.is_quiet();
}

#[test]
fn the_engine_comes_back_after_a_restart_of_the_broker() {
    let mut engine = Engine::start("ok", &[]);
    assert!(engine.complete(&engine.client(), &request("a")).is_ok());
    engine.broker.kill();
    engine.process.wait_for("connection lost; reconnecting");
    engine.broker.start_again();
    engine.process.wait_for("reconnected");
    let client = engine.client();
    wait_until("the next completion", || engine.complete(&client, &request("a")).is_ok());
}

#[test]
fn wrong_options_and_a_missing_broker_are_errors() {
    let broker = Broker::start();
    let base = ["engine", "openai", "--model", "m", "--base-url"];
    for (more, exit, why) in [
        (&["ftp://a"][..], 64, "must begin with http:// or https://"),
        (&["localhost:8080"], 64, "\"localhost:8080\" must begin with http://"),
        (&["http://127.0.0.1:"], 64, "\"127.0.0.1:\" has no port"),
        (&["http://user:word@a"], 64, "not allowed"),
        (&["http://a", "--api-key-env", "LAPCE_NO_SUCH_KEY"], 78, "variable LAPCE_NO_SUCH_KEY is not set"),
        (&["http://a", "--api-key-file", "/nonexistent"], 78, "/nonexistent: no such file"),
        (&["http://a", "--service", "a b"], 64, "a b"),
        (&["http://a", "--way", "markers"], 64, "no markers known for model m"),
    ] {
        let ended = broker.run(&[&base, more].concat());
        assert_eq!((code(&ended), support::stderr(&ended).contains(why)), (exit, true), "{}", support::stderr(&ended));
    }
    let mut command = support::command(support::LAPCE_IPC);
    command.args(["--socket", "/nonexistent/ipc.sock"]).args(base).arg("http://a");
    assert_eq!(code(&output(command, b"")), 69);
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_known_before_the_first_completion() {
    let mut engine = Engine::start("ok", &[]);
    let client = engine.client();
    assert_eq!(engine.status(&client)["unreachable"], serde_json::Value::Null);
    engine.process.signal("TERM");
    assert_eq!(engine.process.code(), 0);
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    engine.process = Engine::adapter(&engine.broker, &format!("http://{nowhere}"), &[]);
    let status = engine.status(&client);
    assert!(status["unreachable"].as_str().is_some_and(|text| text.contains("cannot connect")), "{status}");
    let doctor = engine.broker.run(&["doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout);
    assert!(code(&doctor) == 69 && text.contains("correct --base-url"), "{text}");
}
