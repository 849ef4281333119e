//! An OpenAI-compatible HTTP server for tests of editors and scripts: it streams tokens, counts, and misbehaves on
//! purpose. The modes are listed at the top of `tests/support/fake_engine.rs`.
//!
//! ```sh
//! cargo run --example fake_engine -- --port 0 --mode ok --pace-ms 20
//! ```
//!
//! It prints `listening http://127.0.0.1:PORT`; `GET /counts` returns its figures, `GET /mode/NAME` changes the mode.

#![allow(clippy::print_stdout, reason = "scripts read where it listens")]

#[path = "../tests/support/fake_engine.rs"]
mod fake_engine;

use fake_engine::FakeEngine;
use std::io::Write;
use std::time::Duration;

/// Runs the server until it is killed.
///
/// # Panics
///
/// If an option is wrong, or the port is taken.
pub fn main() {
    let (mut port, mut mode, mut pace, mut tokens) = (0, "ok".to_owned(), 10, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if name == "--help" {
            println!("options: --port PORT, --mode NAME, --pace-ms MILLISECONDS, --token TEXT (may be repeated)");
            return;
        }
        let value = args.next().unwrap_or_else(|| panic!("{name} needs a value"));
        match name.as_str() {
            "--port" => port = value.parse().expect("a port"),
            "--mode" => mode = value,
            "--pace-ms" => pace = value.parse().expect("milliseconds"),
            "--token" => tokens.push(value),
            _ => panic!("unknown option {name}: --port, --mode, --pace-ms, --token"),
        }
    }
    let engine = FakeEngine::start(&mode, port);
    engine.set_pace(Duration::from_millis(pace));
    if !tokens.is_empty() {
        engine.set_tokens(&tokens.iter().map(String::as_str).collect::<Vec<_>>());
    }
    println!("listening {}", engine.url());
    let _ = std::io::stdout().flush();
    loop {
        std::thread::park();
    }
}
