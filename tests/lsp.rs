//! `lapce-ipc lsp`: the real server between a raw client and an engine that is a service of this process.

#[path = "support/lsp_client.rs"]
mod lsp_client;
mod support;

use lapce_ipc::client::{Client, Request};
use lapce_ipc::wire::typed::{CompletionChunk, CompletionRequest, FinishReason, Form, Message};
use lsp_client::{Lsp, URI};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::{Broker, DEADLINE, signal, wait_until, work_for};

const SERVICE: &str = "ai.inline-completion";
const AUTOMATIC: u32 = 2;
const INVOKED: u32 = 1;

/// What the engine does with a request.
#[derive(Clone, Copy)]
enum Mode {
    /// Replies with `<` the last four characters of the prefix `>` at once.
    Echo,
    /// The same in tokens, for so long.
    Slow(u64),
    /// Takes it, and sends nothing.
    Silent,
    Fail,
    /// A chunk, and then the end of the stream without a finish.
    HalfStream,
    Garbage,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    cancelled: AtomicU64,
    finished: AtomicU64,
    /// Chunks that were sent although the request was cancelled.
    late: AtomicU64,
}

/// An engine: a service with a thread per request.
struct Engine {
    client: Client,
    thread: Option<JoinHandle<()>>,
    mode: Arc<Mutex<Mode>>,
    counts: Arc<Counts>,
    requests: Arc<Mutex<Vec<CompletionRequest>>>,
    /// When [`Mode::Silent`] noticed cancels.
    cancels: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
}

fn chunk(id: u64, text: &str, finish: Option<FinishReason>) -> Vec<u8> {
    let chunk = CompletionChunk { id, index: 0, text: text.to_owned(), finish };
    Message::CompletionChunk(chunk).encode_as(Form::Json).expect("JSON")
}

/// What [`Mode::Echo`] replies for a text before the cursor.
fn echoed(prefix: &str) -> String {
    let last: Vec<char> = prefix.chars().rev().take(4).collect();
    format!("<{}>", last.into_iter().rev().collect::<String>())
}

fn serve(
    mut request: Request,
    mode: Mode,
    counts: &Counts,
    stop: &AtomicBool,
    seen: &Mutex<Vec<CompletionRequest>>,
    cancels: &Mutex<Vec<Instant>>,
) {
    let (message, form) = Message::decode_any(request.payload()).expect("a typed message");
    assert_eq!(form, Form::Json);
    let Message::CompletionRequest(asked) = message else { panic!("another message") };
    counts.requests.fetch_add(1, Ordering::Relaxed);
    seen.lock().unwrap().push(asked.clone());
    let text = echoed(&asked.prefix);
    let is_cancelled = |request: &Request| request.is_cancelled() || stop.load(Ordering::Relaxed);
    match mode {
        Mode::Echo => {
            let _ = request.chunk(chunk(asked.id, &text, None));
            counts.finished.fetch_add(1, Ordering::Relaxed);
            let _ = request.chunk(chunk(asked.id, "", Some(FinishReason::Stop)));
            let _ = request.finish();
        }
        Mode::Slow(ms) => {
            let until = Instant::now() + Duration::from_millis(ms);
            while Instant::now() < until {
                work_for(Duration::from_millis(5));
                if is_cancelled(&request) {
                    counts.cancelled.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
            for c in text.chars() {
                counts.late.fetch_add(u64::from(request.is_cancelled()), Ordering::Relaxed);
                let _ = request.chunk(chunk(asked.id, &c.to_string(), None));
            }
            counts.finished.fetch_add(1, Ordering::Relaxed);
            let _ = request.chunk(chunk(asked.id, "", Some(FinishReason::Stop)));
            let _ = request.finish();
        }
        Mode::Silent => {
            while !is_cancelled(&request) {
                work_for(Duration::from_millis(1));
            }
            cancels.lock().unwrap().push(Instant::now());
            counts.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        Mode::Fail => {
            let _ = request.fail("out of memory");
        }
        Mode::HalfStream => {
            let _ = request.chunk(chunk(asked.id, "half", None));
            let _ = request.finish();
        }
        Mode::Garbage => {
            let _ = request.chunk(b"\x07garbage");
            let _ = request.finish();
        }
    }
}

impl Engine {
    fn start(broker: &Broker, mode: Mode) -> Engine {
        let client = broker.builder().connect().expect("the broker takes us");
        let mut service = client.serve_up_to(SERVICE, 64).expect("a service");
        let mode = Arc::new(Mutex::new(mode));
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let cancels = Arc::new(Mutex::new(Vec::new()));
        let (here, counted, stopped, seen) = (mode.clone(), counts.clone(), stop.clone(), requests.clone());
        let noticed = cancels.clone();
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                while let Some(Ok(request)) = service.next() {
                    let (mode, counts, stop, seen) = (*here.lock().unwrap(), &counted, &stopped, &seen);
                    let cancels = &noticed;
                    scope.spawn(move || serve(request, mode, counts, stop, seen, cancels));
                }
            });
        });
        Engine { client, thread: Some(thread), mode, counts, requests, cancels, stop }
    }

    fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn count(&self, of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        of(&self.counts).load(Ordering::Relaxed)
    }

    fn asked(&self) -> u64 {
        self.count(|counts| &counts.requests)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.client.close();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn a_completion_goes_through_bridge_broker_and_engine() {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("let größe😀 = ");
    let id = lsp.complete(INVOKED);
    let reply = lsp.reply(id);
    let at = json!({ "line": 0, "character": 14 });
    let items = json!([{ "insertText": "<😀 = >", "range": { "start": at, "end": at } }]);
    assert_eq!(reply["result"]["items"], items, "{reply}");
    let asked = engine.requests.lock().unwrap()[0].clone();
    assert_eq!((asked.document.as_str(), asked.language.as_str()), (URI, "rust"));
    assert_eq!((asked.prefix.as_str(), asked.cursor.column), ("let größe😀 = ", 18));
}

#[test]
fn a_newer_request_cancels_the_one_before_at_the_engine() {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Silent);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    let first = lsp.complete(INVOKED);
    wait_until("the engine to work", || engine.asked() == 1);
    engine.set(Mode::Echo);
    let second = lsp.complete(INVOKED);
    assert_eq!(lsp.code_of(first), -32801);
    assert_eq!(lsp.text_of(second), "<abc>");
    wait_until("the cancel to reach the engine", || engine.count(|counts| &counts.cancelled) == 1);
}

#[test]
fn a_superseded_request_is_cancelled_at_the_engine_within_50_ms() {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Silent);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    lsp.complete(INVOKED);
    let mut times = Vec::new();
    for n in 0..20 {
        wait_until("the engine to work", || engine.asked() == n + 1);
        let sent = Instant::now();
        lsp.complete(INVOKED);
        wait_until("the cancel to reach the engine", || engine.cancels.lock().unwrap().len() as u64 == n + 1);
        times.push(engine.cancels.lock().unwrap()[n as usize].saturating_duration_since(sent));
    }
    times.sort();
    assert!(times[10] < Duration::from_millis(50), "{times:?}");
}

#[test]
fn a_document_without_a_uri_is_an_error() {
    let broker = Broker::start();
    let _engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open_as("", "abc");
    let id = lsp.complete_at("", 3, INVOKED);
    assert_eq!(lsp.code_of(id), -32803);
}

#[test]
fn a_cancel_of_the_client_and_a_change_reach_the_engine() {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Silent);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    let id = lsp.complete(INVOKED);
    wait_until("the engine to work", || engine.asked() == 1);
    lsp.notify("$/cancelRequest", &json!({ "id": id }));
    assert_eq!(lsp.code_of(id), -32800);
    wait_until("the cancel to reach the engine", || engine.count(|counts| &counts.cancelled) == 1);
    let id = lsp.complete(INVOKED);
    wait_until("the engine to work", || engine.asked() == 2);
    lsp.type_text("d");
    assert_eq!(lsp.code_of(id), -32801);
    wait_until("the cancel to reach the engine", || engine.count(|counts| &counts.cancelled) == 2);
}

#[test]
fn typing_through_a_suggestion_needs_no_engine() {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abcd");
    let id = lsp.complete(AUTOMATIC);
    assert_eq!(lsp.text_of(id), "<abcd>");
    engine.set(Mode::Silent);
    for (typed, rest) in [("<", "abcd>"), ("ab", "cd>"), ("cd", ">")] {
        lsp.type_text(typed);
        let id = lsp.complete(AUTOMATIC);
        assert_eq!(lsp.text_of(id), rest);
    }
    assert_eq!(engine.asked(), 1);
}

/// 200 keys at 20 ms against an engine that takes 300 ms. Each reply is checked against the text at that time.
fn type_fast(debounce: &str) -> (u64, u64, u64, u64) {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Slow(300));
    let mut lsp = Lsp::start(&broker, &["--debounce", debounce]);
    lsp.open("");
    let mut ids = Vec::new();
    let mut replies: Vec<(Value, String)> = Vec::new();
    for n in 0..200u32 {
        let due = Instant::now() + Duration::from_millis(20);
        lsp.type_text(&char::from(b'a' + (n % 26) as u8).to_string());
        ids.push(lsp.complete(AUTOMATIC));
        while let Some(message) = lsp.next_within(due.saturating_duration_since(Instant::now())) {
            replies.push((message, lsp.text.clone()));
        }
    }
    while replies.len() < 200 {
        let message = lsp.next_within(DEADLINE).unwrap_or_else(|| panic!("{} replies", replies.len()));
        replies.push((message, lsp.text.clone()));
    }
    let last = *ids.last().expect("ids");
    let mut answered = 0;
    for (reply, text) in &replies {
        match reply["result"]["items"][0]["insertText"].as_str() {
            Some(suggestion) => {
                answered += 1;
                assert_eq!(suggestion, echoed(text), "a stale reply: {reply} for {text:?}");
            }
            None => assert_eq!(reply["error"]["code"], -32801, "{reply}"),
        }
    }
    assert!(replies.iter().any(|(reply, _)| reply["id"] == last && reply["error"].is_null()), "the last is answered");
    assert_eq!(ids.len(), replies.len());
    wait_until("all cancels to reach the engine", || {
        engine.count(|counts| &counts.cancelled) + engine.count(|counts| &counts.finished) == engine.asked()
    });
    let late = engine.count(|counts| &counts.late);
    (engine.asked(), engine.count(|counts| &counts.cancelled), answered, late)
}

#[test]
fn fast_typing_cancels_all_but_the_last_and_nothing_stale_is_answered() {
    let (asked, cancelled, answered, late) = type_fast("0");
    // On a machine that stops this test for 300 ms an earlier one may be answered, and rightly.
    assert!(answered <= 1 + asked / 20, "{answered} of {asked} answered");
    assert!(asked >= 190, "{asked} requests reached the engine");
    assert_eq!(cancelled + answered, asked);
    assert!(late <= answered, "{late} tokens after a cancel");
}

#[test]
fn the_debounce_keeps_fast_typing_from_the_engine() {
    let (asked, _, answered, late) = type_fast("75ms");
    assert!(asked <= 20, "{asked} requests reached the engine");
    assert!(answered >= 1 && late == 0);
}

#[test]
fn requests_wait_for_initialize_and_unknown_ones_are_errors() {
    let broker = Broker::start();
    let _engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::spawn(broker.command(&["lsp"]));
    let early = lsp.complete_at(URI, 0, INVOKED);
    assert_eq!(lsp.code_of(early), -32002);
    assert_eq!(lsp.initialize()["inlineCompletionProvider"], true);
    let unknown = lsp.request("workspace/nonsense", &json!({}));
    assert_eq!(lsp.code_of(unknown), -32601);
    lsp.notify("nonsense", &json!({}));
    lsp.open("a");
    let outside = lsp.request(
        "textDocument/inlineCompletion",
        &json!({ "textDocument": { "uri": URI }, "position": { "line": 9, "character": 0 } }),
    );
    assert_eq!(lsp.code_of(outside), -32602);
    lsp.open("😀");
    let inside = lsp.complete_at(URI, 1, INVOKED);
    assert_eq!(lsp.code_of(inside), -32602);
    let id = lsp.complete(INVOKED);
    assert_eq!(lsp.text_of(id), "<😀>");
}

#[test]
fn the_end_of_input_ends_it_and_so_does_exit() {
    let broker = Broker::start();
    let mut first = Lsp::start(&broker, &[]);
    first.end_input();
    assert_eq!(first.ended().code(), Some(0));
    let mut second = Lsp::start(&broker, &[]);
    let id = second.request("shutdown", &Value::Null);
    assert_eq!(second.reply(id)["result"], Value::Null);
    second.notify("exit", &Value::Null);
    assert_eq!(second.ended().code(), Some(0));
    let mut third = Lsp::start(&broker, &[]);
    third.notify("exit", &Value::Null);
    assert_eq!(third.ended().code(), Some(1));
}

#[test]
fn broken_framing_ends_it_and_broken_json_does_not() {
    let broker = Broker::start();
    let _engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::start(&broker, &[]);
    for text in ["garbage", "[]", "{\"id\": 1"] {
        lsp.send_text(text);
        let reply = lsp.wait_for("an error", |message| message["id"].is_null() && !message["error"].is_null());
        assert_eq!(reply["error"]["code"], -32700);
    }
    lsp.open("abc");
    let id = lsp.complete(INVOKED);
    assert_eq!(lsp.text_of(id), "<abc>");
    lsp.write(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(lsp.ended().code(), Some(76));
}

#[test]
fn a_document_of_100_mb_is_an_error_and_the_others_go_on() {
    let broker = Broker::start();
    let _engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    lsp.open_as("file:///big", &"x\n".repeat(50 * 1024 * 1024));
    let id = lsp.complete_at("file:///big", 0, INVOKED);
    let reply = lsp.reply(id);
    assert_eq!(reply["error"]["code"], -32803);
    assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains("104857600 bytes")), "{reply}");
    // A message beyond what is read at all, which might have been a change of any document.
    let length = 257 * 1024 * 1024;
    lsp.write(format!("Content-Length: {length}\r\n\r\n").as_bytes());
    let part = vec![b' '; 1024 * 1024];
    (0..257).for_each(|_| lsp.write(&part));
    let reply = lsp.wait_for("an error", |message| message["id"].is_null() && !message["error"].is_null());
    assert_eq!(reply["error"]["code"], -32700);
    let id = lsp.complete(INVOKED);
    assert_eq!(lsp.code_of(id), -32803);
    lsp.open("abc");
    let id = lsp.complete(INVOKED);
    assert_eq!(lsp.text_of(id), "<abc>");
}

#[test]
fn faults_of_the_engine_are_errors_and_the_user_is_told_once() {
    let broker = Broker::start_with(&[("circuit_breaker.failure_threshold", "1000")]);
    let engine = Engine::start(&broker, Mode::Fail);
    let mut lsp = Lsp::start(&broker, &["--timeout", "1s"]);
    lsp.open("abc");
    for (mode, named) in [
        (Mode::Fail, "out of memory"),
        (Mode::HalfStream, "ended before its last chunk"),
        (Mode::Garbage, "invalid reply of the engine"),
        (Mode::Silent, "deadline"),
    ] {
        engine.set(mode);
        let id = lsp.complete(INVOKED);
        let reply = lsp.reply(id);
        assert_eq!(reply["error"]["code"], -32803);
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(named), "{message:?} names {named:?}");
    }
    assert_eq!(lsp.shown().len(), 1, "{:?}", lsp.shown());
    engine.set(Mode::Echo);
    let id = lsp.complete(INVOKED);
    assert_eq!(lsp.text_of(id), "<abc>");
}

#[test]
fn an_open_breaker_is_an_error_at_once_and_closes_again() {
    let keys = [("circuit_breaker.failure_threshold", "5"), ("circuit_breaker.timeout_secs", "1")];
    let broker = Broker::start_with(&keys);
    let engine = Engine::start(&broker, Mode::Fail);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    for _ in 0..5 {
        let id = lsp.complete(INVOKED);
        assert_eq!(lsp.code_of(id), -32803);
    }
    engine.set(Mode::Echo);
    let id = lsp.complete(INVOKED);
    let reply = lsp.reply(id);
    assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains("failed repeatedly")), "{reply}");
    assert!(reply["error"]["data"]["retryAfterMs"].as_u64().is_some(), "{reply}");
    assert_eq!(engine.asked(), 5);
    let status = broker.run(&["breaker", "list"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("open"), "{status:?}");
    wait_until("the breaker to close", || {
        let id = lsp.complete(INVOKED);
        lsp.reply(id)["error"].is_null()
    });
    let shown = lsp.shown();
    assert_eq!(shown.len(), 2, "one for the failures, one for the breaker: {shown:?}");
}

#[test]
fn without_a_broker_requests_are_errors_and_with_one_they_work() {
    let mut broker = Broker::start();
    broker.kill();
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    let codes = [INVOKED, AUTOMATIC].map(|kind| {
        let id = lsp.complete(kind);
        lsp.code_of(id)
    });
    assert_eq!(codes, [-32803; 2]);
    let shown = lsp.shown();
    assert!(shown.len() == 1 && shown[0].contains("lapce-ipc serve"), "{shown:?}");
    broker.start_again();
    let _engine = Engine::start(&broker, Mode::Echo);
    wait_until("a completion", || {
        let id = lsp.complete(INVOKED);
        lsp.reply(id)["error"].is_null()
    });
    assert_eq!(lsp.shown().len(), 1, "still once");
}

#[test]
fn a_broker_that_is_killed_ends_the_request_and_the_next_one_is_found() {
    let mut broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Silent);
    let mut lsp = Lsp::start(&broker, &[]);
    lsp.open("abc");
    let id = lsp.complete(INVOKED);
    wait_until("the engine to work", || engine.asked() == 1);
    broker.kill();
    assert_eq!(lsp.code_of(id), -32803);
    let meanwhile = lsp.complete(INVOKED);
    assert_eq!(lsp.code_of(meanwhile), -32803);
    engine.set(Mode::Echo);
    broker.start_again();
    wait_until("a completion", || {
        let id = lsp.complete(INVOKED);
        lsp.reply(id)["error"].is_null()
    });
}

#[test]
fn two_bridges_share_an_engine_and_one_that_is_killed_is_reclaimed_at_once() {
    let broker = Broker::start();
    let engine = Engine::start(&broker, Mode::Silent);
    let (mut first, mut second) = (Lsp::start(&broker, &[]), Lsp::start(&broker, &[]));
    first.open("abc");
    second.open("xyz");
    first.complete(INVOKED);
    wait_until("the engine to work", || engine.asked() == 1);
    let killed = Instant::now();
    signal(first.pid(), "KILL");
    wait_until("the engine to be told", || engine.count(|counts| &counts.cancelled) == 1);
    let client = broker.client();
    wait_until("the connection to be gone", || {
        let connections = client.status().expect("a status").connections;
        connections.iter().filter(|connection| connection.name.as_str() == "lapce-ipc-lsp").count() == 1
    });
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    engine.set(Mode::Echo);
    let id = second.complete(INVOKED);
    assert_eq!(second.text_of(id), "<xyz>");
    assert_eq!(engine.asked(), 2);
}

#[test]
fn the_listed_completion_is_served_on_demand() {
    let broker = Broker::start();
    let _engine = Engine::start(&broker, Mode::Echo);
    let mut lsp = Lsp::spawn(broker.command(&["lsp", "--completion"]));
    assert!(lsp.initialize()["completionProvider"].is_object());
    lsp.open("abc");
    let params = json!({ "textDocument": { "uri": URI }, "position": { "line": 0, "character": 3 } });
    let id = lsp.request("textDocument/completion", &params);
    let reply = lsp.reply(id);
    assert_eq!(reply["result"]["items"][0]["textEdit"]["newText"], "<abc>", "{reply}");
}
