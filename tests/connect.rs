//! `lapce-ipc connect`: programs of any language over JSON lines.

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use support::{Broker, DEADLINE, LAPCE_IPC, code, command, output, stderr, wait_until};

/// A process that reads and writes lines.
struct Lines {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Lines {
    fn spawn(mut command: Command) -> Lines {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().expect("the program starts");
        let stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Lines { stdin: process.stdin.take(), process, lines }
    }

    /// `lapce-ipc connect`.
    fn start(broker: &Broker, args: &[&str]) -> Lines {
        let mut lines = Lines::spawn(broker.command(&[&["connect"], args].concat()));
        assert_eq!(lines.next(), json!({"event": "connected"}));
        lines
    }

    fn write(&mut self, text: &str) {
        self.stdin.as_mut().expect("it is open").write_all(text.as_bytes()).expect("it reads");
    }

    fn say(&mut self, operation: &Value) {
        self.write(&format!("{operation}\n"));
    }

    #[track_caller]
    fn line(&mut self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line")
    }

    /// The next event.
    #[track_caller]
    fn next(&mut self) -> Value {
        serde_json::from_str(&self.line()).expect("a line is JSON")
    }

    /// Ends its input, and waits for its exit code.
    #[track_caller]
    fn end(&mut self) -> Option<i32> {
        self.stdin = None;
        let mut status = None;
        wait_until("the process to end", || {
            status = self.process.try_wait().expect("its status");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

fn without(mut event: Value, members: &[&str]) -> Value {
    for member in members {
        assert!(event.as_object_mut().unwrap().remove(*member).is_some(), "no {member} in {event}");
    }
    event
}

#[test]
fn publishes_subscriptions_and_requests_go_over_one_connection() {
    let broker = Broker::start();
    let mut lines = Lines::start(&broker, &[]);
    lines.say(&json!({"op": "sub", "id": "s", "pattern": "a.>"}));
    assert_eq!(lines.next(), json!({"event": "ready", "id": "s"}));
    lines.say(&json!({"op": "pub", "topic": "a.b", "data": "hi"}));
    lines.say(&json!({"op": "pub", "topic": "a.c", "data_base64": "/wA=", "id": 1}));
    let message = without(lines.next(), &["publisher"]);
    assert_eq!(message, json!({"event": "message", "id": "s", "topic": "a.b", "sequence": 1, "data": "hi"}));
    let mut rest = [lines.next(), lines.next()];
    rest.sort_by_key(|event| event["event"].to_string());
    assert_eq!(rest[0], json!({"event": "done", "id": 1}));
    assert_eq!((&rest[1]["topic"], &rest[1]["data_base64"]), (&json!("a.c"), &json!("/wA=")));
    lines.say(&json!({"op": "request", "id": 2, "service": "echo", "json": {"a": 1}}));
    assert_eq!(lines.next(), json!({"event": "reply", "id": 2, "data": "{\"a\":1}"}));
    lines.say(&json!({"op": "request", "id": 3, "service": "absent"}));
    let error = lines.next();
    assert_eq!((&error["event"], &error["id"], &error["code"]), (&json!("error"), &json!(3), &json!("no_responders")));
    lines.say(&json!({"op": "cancel", "id": "s"}));
    assert_eq!(lines.next(), json!({"event": "end", "id": "s"}));
    wait_until("the subscription to be gone", || broker.client().status().unwrap().subscriptions == 0);
    assert_eq!(lines.end(), Some(0));
}

#[test]
fn a_service_replies_streams_fails_and_learns_of_cancels() {
    let broker = Broker::start();
    let (mut server, mut asker) = (Lines::start(&broker, &[]), Lines::start(&broker, &[]));
    server.say(&json!({"op": "serve", "id": 1, "service": "s", "max_in_flight": 8}));
    assert_eq!(server.next(), json!({"event": "ready", "id": 1}));
    let called = |server: &mut Lines, asker: &mut Lines, id: u64, stream: bool| {
        asker.say(&json!({"op": "request", "id": id, "service": "s", "data": "x", "stream": stream}));
        let event = without(server.next(), &["requester"]);
        let call = event["call"].as_u64().unwrap();
        assert_eq!(event, json!({"event": "request", "id": 1, "call": call, "data": "x", "stream": stream}));
        call
    };
    let call = called(&mut server, &mut asker, 1, false);
    server.say(&json!({"op": "reply", "call": call, "data": "X"}));
    assert_eq!(asker.next(), json!({"event": "reply", "id": 1, "data": "X"}));
    let call = called(&mut server, &mut asker, 2, true);
    server.say(&json!({"op": "chunk", "call": call, "data": "1"}));
    assert_eq!(asker.next(), json!({"event": "chunk", "id": 2, "data": "1"}));
    server.say(&json!({"op": "reply", "call": call}));
    assert_eq!(asker.next(), json!({"event": "end", "id": 2}));
    // A refusal is no failure of the service.
    for (id, op, failures) in [(3, "fail", 1), (4, "refuse", 0)] {
        let call = called(&mut server, &mut asker, id, false);
        server.say(&json!({"op": op, "call": call, "message": "why"}));
        let error = json!({"event": "error", "id": id, "code": "error_reply", "message": "why"});
        assert_eq!(asker.next(), error);
        assert_eq!(broker.client().breakers().unwrap()[0].failures, failures);
    }
    let call = called(&mut server, &mut asker, 5, true);
    asker.say(&json!({"op": "cancel", "id": 5}));
    assert_eq!(asker.next()["code"], "cancelled");
    assert_eq!(server.next(), json!({"event": "cancelled", "id": 1, "call": call}));
    server.say(&json!({"op": "reply", "call": call}));
    assert_eq!(server.next()["code"], "unknown");
    // The end of its input ends the service, and what it had not replied to fails.
    called(&mut server, &mut asker, 6, false);
    assert_eq!(server.end(), Some(0));
    assert_eq!(asker.next()["event"], "error");
}

#[test]
fn a_requester_that_takes_no_chunks_delays_the_other_calls_for_the_patience_only() {
    let broker = Broker::start();
    let mut server = Lines::start(&broker, &["--call-patience-ms", "50"]);
    server.say(&json!({"op": "serve", "id": 1, "service": "s"}));
    assert_eq!(server.next(), json!({"event": "ready", "id": 1}));
    let client = broker.client();
    // No thread reads the stream, so the client grants no credit.
    let mut stream = client.request_stream("s", "x").unwrap();
    let call = server.next()["call"].clone();
    for _ in 0..100 {
        server.say(&json!({"op": "chunk", "call": call, "data": "x".repeat(16 << 10)}));
    }
    let error = without(server.next(), &["message"]);
    assert_eq!(error, json!({"event": "error", "call": call, "code": "overloaded"}));
    let asker = broker.client();
    let asking = std::thread::spawn(move || asker.request("s", "y").unwrap());
    let request = loop {
        let event = server.next();
        if event["event"] == "request" {
            break event;
        }
        assert_eq!(event["code"], "unknown", "{event}");
    };
    server.say(&json!({"op": "reply", "call": request["call"], "data": "z"}));
    assert_eq!(asking.join().unwrap(), b"z");
    let error = stream.find_map(Result::err).unwrap();
    assert_eq!(error.reply_text(), Some("the requester did not take the reply in time"));
    assert_eq!(broker.client().breakers().unwrap()[0].failures, 0);
}

#[test]
fn the_end_of_the_input_waits_for_requests() {
    let broker = Broker::start();
    let input = br#"{"op":"pub","topic":"t","data":"x"}
{"op":"request","id":1,"service":"echo","data":"hi"}"#;
    let done = output(broker.command(&["connect"]), input);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    let expected = "{\"event\":\"connected\"}\n{\"event\":\"reply\",\"id\":1,\"data\":\"hi\"}\n";
    assert_eq!(String::from_utf8_lossy(&done.stdout), expected);
}

#[test]
fn a_wrong_line_is_named_and_the_next_one_is_carried_out() {
    let broker = Broker::start();
    let mut lines = Lines::start(&broker, &["--max-line-bytes", "200", "--max-operations", "1"]);
    lines.write("no JSON\n\n");
    let event = without(lines.next(), &["message"]);
    assert_eq!(event, json!({"event": "error", "code": "invalid", "line": 1}));
    lines.write(&format!("{}\n", "x".repeat(201)));
    let message = "longer than --max-line-bytes, 200 bytes";
    assert_eq!(lines.next(), json!({"event": "error", "code": "invalid", "line": 3, "message": message}));
    lines.say(&json!({"op": "sub", "id": 7}));
    let event = json!({"event": "error", "id": 7, "code": "invalid", "line": 4, "message": "sub needs pattern"});
    assert_eq!(lines.next(), event);
    lines.say(&json!({"op": "sub", "id": 7, "pattern": "a..b"}));
    assert_eq!(lines.next()["code"], "invalid_name");
    lines.say(&json!({"op": "sub", "id": 7, "pattern": "a"}));
    assert_eq!(lines.next()["event"], "ready");
    lines.say(&json!({"op": "sub", "id": 7, "pattern": "a"}));
    assert_eq!(lines.next()["message"], "id 7 is in use");
    lines.say(&json!({"op": "sub", "id": 8, "pattern": "a"}));
    assert_eq!(lines.next()["code"], "limit_reached");
    lines.say(&json!({"op": "cancel", "id": 8}));
    assert_eq!(lines.next()["code"], "unknown");
}

#[test]
fn a_restarted_broker_is_connected_again() {
    let mut broker = Broker::start();
    let mut lines = Lines::start(&broker, &[]);
    lines.say(&json!({"op": "sub", "id": 1, "pattern": "t"}));
    lines.next();
    broker.end("KILL");
    assert_eq!(lines.next(), json!({"event": "disconnected"}));
    broker.start_again();
    assert_eq!(lines.next(), json!({"event": "connected"}));
    assert_eq!(code(&broker.run(&["pub", "t", "after"])), 0);
    assert_eq!(lines.next()["data"], "after");
}

#[test]
fn without_its_reader_it_ends_also_while_the_broker_is_away() {
    let mut broker = Broker::start();
    let mut lines = Lines::start(&broker, &[]);
    lines.say(&json!({"op": "sub", "id": 1, "pattern": "t"}));
    lines.next();
    broker.end("KILL");
    lines.next();
    assert_eq!(lines.end(), Some(0), "its input has ended, and nothing is left to do");
}

#[test]
fn without_a_broker_it_ends_as_any_command_does() {
    let broker = Broker::start();
    let mut command = command(LAPCE_IPC);
    command.args(["--socket", &broker.folder().join("absent").display().to_string(), "connect"]);
    let done = output(command, b"");
    assert_eq!(code(&done), 69, "{}", stderr(&done));
}

/// The documented programs, with the built binary on PATH.
#[test]
fn a_python_service_replies_to_a_node_requester() {
    let broker = Broker::start();
    let binaries = std::path::Path::new(LAPCE_IPC).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
    let example = |name: &str| format!("{}/examples/connect/{name}", env!("CARGO_MANIFEST_DIR"));
    let program = |interpreter: &str, name: &str| {
        let mut program = command(interpreter);
        program.arg(example(name)).env("PATH", &path).env("LAPCE_IPC_SOCKET", broker.socket());
        program
    };
    let mut service = Lines::spawn(program("python3", "upper.py"));
    assert_eq!(service.line(), "serving");
    let mut asker = program("node", "ask.mjs");
    asker.stdin(Stdio::null());
    let done = output(asker, b"");
    let mut printed: Vec<_> = std::str::from_utf8(&done.stdout).unwrap().lines().collect();
    printed.sort_by_key(|line| line.as_bytes()[0]);
    assert_eq!(printed, ["1 reply ONE REPLY", "2 chunk MANY", "2 chunk SMALL", "2 chunk CHUNKS", "2 end "]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
}
