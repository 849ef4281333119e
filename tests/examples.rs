//! Every program of `examples/` runs to its end at a real broker, and prints what it shows.

#![allow(unreachable_pub, reason = "each `main` is that of a program, too")]

mod support;

use std::process::Stdio;
use support::{Broker, code, command, output, stderr};

// The examples are compiled with this test, and run in processes of their own.
#[cfg(feature = "tokio")]
#[path = "../examples/async.rs"]
mod example_async;
#[path = "../examples/pubsub.rs"]
mod pubsub;
#[path = "../examples/request.rs"]
mod request;
#[path = "../examples/service.rs"]
mod service;
#[path = "../examples/stream_with_cancel.rs"]
mod stream_with_cancel;

const EXAMPLE: &str = "LAPCE_IPC_TEST_EXAMPLE";

/// What each prints.
const PRINTED: &[(&str, &str)] = &[
    #[cfg(feature = "tokio")]
    ("async", "example.saved: src/main.rs\nlength: 5\n"),
    ("pubsub", "example.words.english: one\nexample.words.english: two\nexample.words.english: three\n"),
    ("request", "echo: hi\nexample.absent: no responders\n"),
    ("service", "one: ONE\ntwo: TWO\nthree: THREE\n"),
    ("stream_with_cancel", "0\n1\n2\n3\n4\nthe service was cancelled: true\n"),
];

/// The child process of the test below; without its variable it is no test.
#[test]
fn child() {
    let Some(example) = std::env::var_os(EXAMPLE) else { return };
    match example.to_str().unwrap() {
        #[cfg(feature = "tokio")]
        "async" => example_async::main(),
        "pubsub" => pubsub::main(),
        "request" => request::main(),
        "service" => service::main(),
        "stream_with_cancel" => stream_with_cancel::main(),
        other => panic!("no example {other}"),
    }
    .unwrap();
}

#[test]
fn every_example_runs_to_its_end() {
    let broker = Broker::start();
    for (example, printed) in PRINTED {
        let mut child = command(std::env::current_exe().unwrap().to_str().unwrap());
        child.args(["--exact", "child", "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
        child.env(EXAMPLE, example).env("LAPCE_IPC_SOCKET", broker.socket());
        let output = output(child, b"");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(code(&output), 0, "{example}: {stdout}{}", stderr(&output));
        assert!(stdout.contains(printed), "{example} prints {stdout}, not {printed}");
    }
}

#[test]
fn every_example_is_run() {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    // Programs in other languages have a folder of their own, and tests of their own.
    let programs = folder.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let mut found: Vec<String> = programs.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    found.retain(|name| cfg!(feature = "tokio") || name != "async");
    // A server for other tests, without an end.
    found.retain(|name| name != "fake_engine");
    found.sort();
    assert_eq!(found, PRINTED.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
}
