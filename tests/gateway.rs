//! `lapce-ipc gateway`: an OpenAI-compatible API in front of broker, adapter and a fake endpoint.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use support::engine::Engine;
use support::fake_engine::TOKENS;
use support::http::{Answer, connect, talk};
use support::{Broker, Process, code, stderr, wait_until};

/// A gateway in front of an engine.
struct Gateway {
    process: Process,
    address: SocketAddr,
    token: String,
    engine: Engine,
}

/// Starts a gateway at a broker; what its log says of `url` and `token_file`.
#[track_caller]
fn start(broker: &Broker, args: &[&str]) -> (Process, String, String) {
    let mut command = broker.command(&[&["gateway"], args].concat());
    command.env("XDG_RUNTIME_DIR", broker.folder());
    let mut process = Process::start(command);
    process.wait_for("gateway listening url=");
    wait_until("a whole line", || process.stderr().contains("token_file="));
    let log = process.stderr();
    let after = |name: &str| {
        let rest = log.split(name).nth(1).unwrap_or_default();
        rest.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let (url, file) = (after(" url="), after(" token_file="));
    (process, url, file)
}

impl Gateway {
    #[track_caller]
    fn start(mode: &str, keys: &[(&str, &str)]) -> Gateway {
        // Longer than a test: what ends a request earlier is a cancel.
        let engine = Engine::start_with(mode, &["--first-token-timeout", "100s"], keys);
        let (process, url, file) = start(&engine.broker, &["--listen", "127.0.0.1:0", "--max-body", "10000"]);
        let address = url.trim_start_matches("http://").trim_end_matches("/v1").parse().unwrap();
        let token = std::fs::read_to_string(file).unwrap().trim().to_owned();
        Gateway { process, address, token, engine }
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\
             \r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.token,
            body.len()
        )
    }

    /// What is replied to a request.
    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let reply = talk(self.address, self.request(method, path, body).as_bytes());
        Answer::parse(&reply).unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&reply)))
    }
}

/// The JSON of the events of a stream, and whether it ended with `[DONE]`.
fn events(answer: &Answer) -> (Vec<serde_json::Value>, bool) {
    let data: Vec<&str> = answer.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let events = data.iter().filter(|data| **data != "[DONE]");
    let events = events.map(|data| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")));
    (events.collect(), data.last() == Some(&"[DONE]"))
}

const PROMPT: &str = r#"{"model":"any","prompt":"fn main() {","suffix":"}","max_tokens":50}"#;
const PROMPT_STREAMED: &str = r#"{"model":"any","prompt":"fn main() {","suffix":"}","stream":true}"#;
const QUESTION: &str = r#"{"model":"any","messages":[{"role":"user","content":"why?"}]}"#;
const QUESTION_STREAMED: &str = r#"{"model":"any","messages":[{"role":"user","content":"why?"}],"stream":true,
    "stream_options":{"include_usage":true}}"#;

#[test]
fn completions_chats_and_models_are_served_whole_and_streamed() {
    let gateway = Gateway::start("ok", &[]);
    let answer = gateway.ask("POST", "/v1/completions", PROMPT);
    assert_eq!((answer.code, answer.header("content-type")), (200, Some("application/json")));
    let json = answer.json();
    assert_eq!((&json["object"], &json["model"]), (&"text_completion".into(), &"any".into()));
    assert_eq!(json["choices"][0]["text"], TOKENS.concat());
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    let (_, body) = gateway.engine.fake.seen().remove(0);
    assert!(body.contains(r#""suffix":"}""#) && body.contains(r#""max_tokens":50"#), "{body}");

    let answer = gateway.ask("POST", "/v1/completions", PROMPT_STREAMED);
    assert_eq!((answer.code, answer.header("content-type")), (200, Some("text/event-stream")));
    let (chunks, is_done) = events(&answer);
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!((text, chunks.len(), is_done), (TOKENS.concat(), TOKENS.len() + 1, true));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");

    let json = gateway.ask("POST", "/v1/chat/completions", QUESTION).json();
    assert_eq!(json["choices"][0]["message"]["content"], TOKENS.concat());
    assert_eq!(json["usage"]["total_tokens"], 12);
    let (chunks, is_done) = events(&gateway.ask("POST", "/v1/chat/completions", QUESTION_STREAMED));
    let delta = |chunk: &serde_json::Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    assert_eq!((chunks.iter().filter_map(delta).collect::<String>(), is_done), (TOKENS.concat(), true));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], 12);

    let json = gateway.ask("GET", "/v1/models", "").json();
    assert_eq!(json["data"][0]["id"], "qwen-fake");
}

#[test]
fn what_is_not_allowed_or_invalid_gets_an_error_that_clients_read() {
    let gateway = Gateway::start("ok", &[]);
    let ask = |head: &str, body: &str| {
        let request = format!("{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        Answer::parse(&talk(gateway.address, request.as_bytes())).expect("an answer")
    };
    let bearer = format!("Authorization: Bearer {}\r\n", gateway.token);
    let post = "POST /v1/completions HTTP/1.1\r\n";
    let (host, json) = ("Host: 127.0.0.1\r\n", "Content-Type: application/json\r\n");
    let large = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(10_000));
    for (head, body, status, why) in [
        (format!("{post}{host}{json}"), PROMPT, 401, "missing or wrong token"),
        (format!("{post}{host}{json}Authorization: Bearer wrong\r\n"), PROMPT, 401, "missing or wrong token"),
        (format!("{post}Host: evil.example\r\n{json}{bearer}"), PROMPT, 403, "names another host"),
        (format!("{post}{host}Content-Type: text/plain\r\n{bearer}"), PROMPT, 415, "must be application/json"),
        (format!("{post}{host}{json}{bearer}"), &large, 413, "larger than 10000 bytes"),
        (format!("{post}{host}{json}{bearer}"), "{", 400, "invalid request"),
        (format!("{post}{host}{json}{bearer}"), r#"{"prompt":"a","max_tokens":0}"#, 400, "max_tokens is 0"),
        (format!("{post}{host}{json}{bearer}"), r#"{"prompt":"a","temperature":9}"#, 400, "temperature is 9"),
        (format!("GET /v1/completions HTTP/1.1\r\n{host}{bearer}"), "", 405, "method GET is not allowed"),
        (format!("GET /v2 HTTP/1.1\r\n{host}{bearer}"), "", 404, "no such path: /v2"),
    ] {
        let answer = ask(&head, body);
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.code == status && message.contains(why), "{head}: {answer:?}");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
    }
    assert_eq!(gateway.engine.fake.counts().requests.load(SeqCst), 0);
    assert_eq!(gateway.ask("POST", "/v1/completions", PROMPT).code, 200);
}

#[test]
fn dropping_the_connection_cancels_at_the_engine() {
    let gateway = Gateway::start("ok", &[]);
    let fake = &gateway.engine.fake;
    fake.set_pace(Duration::from_millis(20));
    fake.set_tokens(&["token "; 500]);
    let mut times = Vec::new();
    let mut tokens_after = 0;
    for round in 0..20 {
        let mut stream = connect(gateway.address);
        stream.write_all(gateway.request("POST", "/v1/completions", PROMPT_STREAMED).as_bytes()).unwrap();
        let mut seen = String::new();
        while seen.matches("data: ").count() < 2 {
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "{seen}");
            seen += &String::from_utf8_lossy(&bytes[..read]);
        }
        let (dropped, tokens) = (Instant::now(), fake.counts().tokens.load(SeqCst));
        drop(stream);
        wait_until("the HTTP request to be closed", || fake.closed_at().len() > round);
        gateway.engine.is_quiet();
        times.push(fake.closed_at()[round].saturating_duration_since(dropped));
        tokens_after = tokens_after.max(fake.counts().tokens.load(SeqCst) - tokens);
    }
    times.sort();
    support::probe::note(&format!(
        "a dropped connection closes the engine's: median of 20 {:?}, worst {:?}; tokens after it: {tokens_after}",
        times[10], times[19]
    ));
    assert!(times[10] < Duration::from_millis(50) && tokens_after <= 2, "{times:?}, {tokens_after} tokens");
}

#[test]
fn dropping_the_connection_before_the_first_token_cancels_too() {
    let gateway = Gateway::start("hang", &[]);
    for body in [PROMPT, PROMPT_STREAMED] {
        let mut stream = connect(gateway.address);
        stream.write_all(gateway.request("POST", "/v1/completions", body).as_bytes()).unwrap();
        wait_until("a request at the engine", || gateway.engine.fake.counts().running.load(SeqCst) == 1);
        stream.shutdown(Shutdown::Both).unwrap();
        gateway.engine.is_quiet();
    }
}

#[test]
fn failures_of_the_engine_have_a_status_before_the_first_token_and_an_event_after_it() {
    let gateway = Gateway::start("500", &[("circuit_breaker.failure_threshold", "3")]);
    let answer = gateway.ask("POST", "/v1/completions", PROMPT_STREAMED);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(answer.code == 502 && message.contains("500 Internal Server Error: out of memory"), "{answer:?}");
    gateway.engine.fake.set_mode("cut");
    let answer = gateway.ask("POST", "/v1/completions", PROMPT_STREAMED);
    let (chunks, is_done) = events(&answer);
    assert!(answer.code == 200 && !is_done, "{answer:?}");
    let message = chunks.last().unwrap()["error"]["message"].as_str().unwrap();
    assert!(message.contains("stream failed"), "{message}");
    // Whole: no status but that of the failure.
    assert_eq!(gateway.ask("POST", "/v1/completions", PROMPT).code, 502);
    let begun = Instant::now();
    let answer = gateway.ask("POST", "/v1/completions", PROMPT);
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(answer.code == 503 && message.contains("breaker is open"), "{answer:?}");
    assert!(answer.header("retry-after").is_some() && begun.elapsed() < Duration::from_secs(1), "{answer:?}");
}

#[test]
fn without_an_engine_the_status_is_503_and_it_is_found_when_it_comes() {
    let broker = Broker::start();
    let (_process, url, file) = start(&broker, &["--listen", "127.0.0.1:0"]);
    let address: SocketAddr = url.trim_start_matches("http://").trim_end_matches("/v1").parse().unwrap();
    let token = std::fs::read_to_string(file).unwrap();
    let ask = || {
        let head = format!("Host: localhost\r\nAuthorization: Bearer {}\r\n", token.trim());
        let head = format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n", PROMPT.len());
        let request = format!("POST /v1/completions HTTP/1.1\r\n{head}Connection: close\r\n\r\n{PROMPT}");
        Answer::parse(&talk(address, request.as_bytes())).expect("an answer")
    };
    let answer = ask();
    assert_eq!(answer.code, 503);
    assert_eq!(answer.json()["error"]["message"], "no engine offers the service ai.inline-completion");
    let fake = support::fake_engine::FakeEngine::start("ok", 0);
    let _engine = Engine::adapter(&broker, &fake.url(), &[]);
    assert_eq!(ask().code, 200);
}

#[test]
fn the_token_is_private_new_at_each_start_and_goes_with_the_gateway() {
    let broker = Broker::start();
    let (mut process, url, file) = start(&broker, &["--listen", "127.0.0.1:0"]);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(!process.stderr().contains(token.trim()), "the token is not in the log");
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    assert!(!std::path::Path::new(&file).exists());
    let port = url.rsplit(':').next().unwrap().trim_end_matches("/v1");
    let (_process, _, file) = start(&broker, &["--listen", &format!("127.0.0.1:{port}")]);
    assert_ne!(std::fs::read_to_string(&file).unwrap(), token);
    // One that the user names stays.
    let kept = broker.folder().join("kept");
    let kept = kept.to_str().unwrap();
    let (mut process, _, _) = start(&broker, &["--listen", "127.0.0.1:0", "--token-file", kept]);
    process.signal("INT");
    assert_eq!(process.code(), 0);
    let token = std::fs::read_to_string(kept).unwrap();
    let (_process, _, file) = start(&broker, &["--listen", "127.0.0.1:0", "--token-file", kept]);
    assert_eq!((file.as_str(), std::fs::read_to_string(kept).unwrap()), (kept, token));
}

#[test]
fn it_listens_on_a_unix_socket_too() {
    let engine = Engine::start("ok", &[]);
    let path = engine.broker.folder().join("gateway.sock");
    let listen = format!("unix:{}", path.display());
    let (mut process, _, _) = start(&engine.broker, &["--listen", &listen, "--no-token"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    let head = "Host: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
    write!(stream, "POST /v1/completions HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{PROMPT}", PROMPT.len()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert_eq!(Answer::parse(&reply).unwrap().code, 200);
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    assert!(!path.exists());
}

#[test]
fn sigterm_finishes_an_outstanding_stream() {
    let mut gateway = Gateway::start("ok", &[]);
    gateway.engine.fake.set_pace(Duration::from_millis(100));
    let mut stream = connect(gateway.address);
    stream.write_all(gateway.request("POST", "/v1/completions", PROMPT_STREAMED).as_bytes()).unwrap();
    wait_until("a token", || gateway.engine.fake.counts().tokens.load(SeqCst) > 0);
    gateway.process.signal("TERM");
    gateway.process.wait_for("draining");
    let answer = Answer::parse(&support::http::read(&mut stream)).unwrap();
    assert!(events(&answer).1, "{answer:?}");
    assert_eq!(gateway.process.code(), 0);
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out_for_ever() {
    let engine = Engine::start("ok", &[]);
    let (_process, url, file) = start(&engine.broker, &["--listen", "127.0.0.1:0", "--max-connections", "2"]);
    let address: SocketAddr = url.trim_start_matches("http://").trim_end_matches("/v1").parse().unwrap();
    let token = std::fs::read_to_string(file).unwrap();
    let _silent: Vec<TcpStream> = (0..4).map(|_| connect(address)).collect();
    let head = format!("Host: localhost\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n", token.trim());
    let answer = Answer::parse(&talk(address, format!("GET /v1/models HTTP/1.1\r\n{head}").as_bytes()));
    assert_eq!(answer.expect("an answer").code, 200);
}

#[test]
fn wrong_options_are_errors() {
    let broker = Broker::start();
    for (args, exit, why) in [
        (&["--listen", "0.0.0.0:80"][..], 64, "not a loopback address"),
        (&["--listen", "unix:"], 64, "expected unix:PATH"),
        (&["--service", "a b"], 64, "a b"),
        (&["--listen", "127.0.0.1:0"], 78, "XDG_RUNTIME_DIR is not set"),
        (&["--listen", "127.0.0.1:0", "--token-file", "/nonexistent/token"], 69, "cannot create /nonexistent/token"),
    ] {
        let ended = broker.run(&[&["gateway"], args].concat());
        assert_eq!((code(&ended), stderr(&ended).contains(why)), (exit, true), "{args:?}: {}", stderr(&ended));
    }
}
