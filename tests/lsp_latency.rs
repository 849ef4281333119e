//! What bridge and broker add to a completion, beside asking the engine directly: `cargo test --release --test
//! lsp_latency -- --ignored --nocapture`.
//!
//! The engine is a thread of this process that streams eight tokens, at once or 5 ms apart. Directly it is asked over a
//! Unix socket, a line of JSON each way per message. Through the bridge it is a service, and the time is from the
//! client's request to its reply, both with their framing and JSON. The second test asks the fake endpoint over HTTP,
//! and through bridge, broker and `lapce-ipc engine openai`. Direct and through take turns in one run.

#[path = "support/lsp_client.rs"]
mod lsp_client;
mod support;

use lapce_ipc::client::{Client, Request};
use lapce_ipc::wire::typed::{CompletionChunk, CompletionRequest, FinishReason, Form, Message};
use lsp_client::Lsp;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use support::engine::Engine;
use support::{Broker, fake_engine, work_for};

const TOKENS: usize = 8;
const ROUNDS: usize = 2000;
const INVOKED: u32 = 1;
const AUTOMATIC: u32 = 2;

/// The chunks of a reply, each after its pause.
fn chunks(id: u64, pace: Duration) -> impl Iterator<Item = Vec<u8>> {
    (0..=TOKENS).map(move |index| {
        if !pace.is_zero() && index > 0 {
            work_for(pace);
        }
        let finish = (index == TOKENS).then_some(FinishReason::Stop);
        let text = if finish.is_some() { String::new() } else { format!("token{index} ") };
        let chunk = CompletionChunk { id, index: index as u32, text, finish };
        Message::CompletionChunk(chunk).encode_as(Form::Json).expect("JSON")
    })
}

fn id(payload: &[u8]) -> u64 {
    match Message::decode_any(payload).expect("a message").0 {
        Message::CompletionRequest(request) => request.id,
        other => panic!("{other:?}"),
    }
}

/// The engine behind a socket.
fn listen(listener: &UnixListener, pace: Duration) {
    let (stream, _) = listener.accept().expect("a client");
    let mut output = stream.try_clone().expect("a descriptor");
    for line in BufReader::new(stream).lines() {
        for chunk in chunks(id(line.expect("a line").as_bytes()), pace) {
            output.write_all(&[&chunk[..], b"\n"].concat()).expect("written");
        }
    }
}

/// The engine as a service.
fn serve(client: &Client, pace: Duration) {
    let mut service = client.serve("ai.inline-completion").expect("a service");
    while let Some(Ok(mut request)) = service.next() {
        let send = |request: &mut Request, chunk: Vec<u8>| request.chunk(chunk).expect("sent");
        for chunk in chunks(id(request.payload()), pace) {
            send(&mut request, chunk);
        }
        request.finish().expect("finished");
    }
}

fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    (at(0.5), at(0.99))
}

fn measure(pace: Duration, rounds: usize) -> ((f64, f64), (f64, f64)) {
    let broker = Broker::start();
    let path = broker.folder().join("engine.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let client = broker.builder().connect().expect("the broker takes us");
    std::thread::scope(|scope| {
        scope.spawn(|| listen(&listener, pace));
        scope.spawn(|| serve(&client, pace));
        let mut socket = UnixStream::connect(&path).expect("the engine listens");
        let mut lines = BufReader::new(socket.try_clone().expect("a descriptor"));
        let mut lsp = Lsp::start(&broker, &[]);
        let text = "fn main() { ".repeat(100);
        lsp.open(&text);
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for round in 0..rounds + rounds / 10 {
            let begun = Instant::now();
            let request = CompletionRequest {
                id: round as u64,
                document: lsp_client::URI.to_owned(),
                language: "rust".to_owned(),
                prefix: text.clone(),
                suffix: String::new(),
                cursor: lapce_ipc::wire::typed::Position { line: 0, column: 7 },
                max_tokens: 128,
                temperature: None,
                stop: Vec::new(),
            };
            let payload = Message::CompletionRequest(request).encode_as(Form::Json).expect("JSON");
            socket.write_all(&[&payload[..], b"\n"].concat()).expect("written");
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).expect("a line");
                match Message::decode_any(line.as_bytes()).expect("a message").0 {
                    Message::CompletionChunk(chunk) if chunk.finish.is_some() => break,
                    _ => {}
                }
            }
            let asked_directly = begun.elapsed();
            // Another key than the suggested one.
            lsp.type_text("x");
            let begun = Instant::now();
            let id = lsp.complete(INVOKED);
            let suggested = lsp.text_of(id);
            let asked_through = begun.elapsed();
            assert!(suggested.starts_with("token0 "), "{suggested}");
            // The first rounds warm up.
            if round >= rounds / 10 {
                direct.push(asked_directly);
                through.push(asked_through);
            }
        }
        client.close();
        drop(lsp);
        drop(lines);
        socket.shutdown(std::net::Shutdown::Both).expect("shut down");
        (quantiles(direct), quantiles(through))
    })
}

fn report(name: &str, direct: (f64, f64), through: (f64, f64)) {
    for (quantile, direct, through) in [("p50", direct.0, through.0), ("p99", direct.1, through.1)] {
        let (ratio, added) = (through / direct, through - direct);
        support::probe::note(&format!(
            "{name}, {quantile}: direct {direct:.0} us, through the bridge {through:.0} us, {ratio:.2} times, \
             {added:.0} us more"
        ));
    }
}

#[test]
#[ignore = "a measurement"]
fn what_bridge_and_broker_add() {
    for (name, pace, rounds) in [("at once", Duration::ZERO, ROUNDS), ("5 ms a token", Duration::from_millis(5), 100)] {
        let (direct, through) = measure(pace, rounds);
        report(&format!("service, {TOKENS} tokens {name}"), direct, through);
    }
}

/// Pauses between keys, in ms, as a fast typist makes them.
const KEYS_MS: [u64; 10] = [90, 130, 70, 160, 110, 85, 240, 95, 140, 100];

/// Of 50 keys: how many requests a debounce keeps from an engine that takes 300 ms, and what it costs after the last.
#[test]
#[ignore = "a measurement"]
fn what_the_debounce_saves() {
    for debounce in ["0", "50ms", "75ms", "100ms", "150ms", "250ms"] {
        let engine = Engine::start("ok", &[]);
        engine.fake.set_tokens(&["token "; 10]);
        engine.fake.set_pace(Duration::from_millis(30));
        let mut lsp = Lsp::start(&engine.broker, &["--debounce", debounce]);
        lsp.open("");
        let mut last = (0, Instant::now());
        for key in 0..50 {
            lsp.type_text("x");
            last = (lsp.complete(AUTOMATIC), Instant::now());
            if key < 49 {
                work_for(Duration::from_millis(KEYS_MS[key % KEYS_MS.len()]));
            }
        }
        lsp.text_of(last.0);
        let (requests, waited) = (engine.fake.seen().len(), last.1.elapsed().as_millis());
        let line =
            format!("debounce {debounce}: {requests} requests for 50 keys, a completion {waited} ms after the last");
        support::probe::note(&line);
    }
}

/// A completion over HTTP, to its last event.
fn ask_http(engine: &Engine) -> Duration {
    let begun = Instant::now();
    let body = r#"{"model": "qwen-fake", "prompt": "fn main() {", "suffix": "}", "max_tokens": 128, "stream": true}"#;
    let mut stream = TcpStream::connect(engine.fake.address()).expect("it listens");
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("written");
    let lines = BufReader::new(stream).lines();
    let last = lines.map(|line| line.expect("a line")).find(|line| line.contains("[DONE]"));
    assert!(last.is_some(), "the stream is whole");
    begun.elapsed()
}

#[test]
#[ignore = "a measurement"]
fn what_bridge_broker_and_adapter_add() {
    let engine = Engine::start("ok", &[]);
    let mut lsp = Lsp::start(&engine.broker, &[]);
    lsp.open("");
    for (name, pace, rounds) in [("at once", Duration::ZERO, 500), ("5 ms a token", Duration::from_millis(5), 100)] {
        engine.fake.set_pace(pace);
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            direct.push(ask_http(&engine));
            lsp.type_text("x");
            let begun = Instant::now();
            let id = lsp.complete(INVOKED);
            assert_eq!(lsp.text_of(id), fake_engine::TOKENS.concat());
            through.push(begun.elapsed());
        }
        let name = format!("HTTP, {} tokens {name}", fake_engine::TOKENS.len());
        report(&name, quantiles(direct), quantiles(through));
    }
}
