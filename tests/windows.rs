//! Two windows of an editor, one engine: two language servers, the broker, an `[[engine]]` that it supervises, and a
//! fake endpoint over HTTP. One process after the other is killed in the middle of a completion; the next completion
//! works.

#[path = "support/lsp_client.rs"]
mod lsp_client;
mod support;

use lsp_client::Lsp;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::engine::SERVICE;
use support::fake_engine::{FakeEngine, TOKENS};
use support::probe::{engine_pid, is_alive, lines};
use support::{Broker, LAPCE_IPC, signal, wait_until};

const INVOKED: u32 = 1;
const URIS: [&str; 2] = ["file:///one.rs", "file:///two.rs"];

struct Windows {
    lsps: [Lsp; 2],
    broker: Broker,
    fake: FakeEngine,
}

impl Windows {
    #[track_caller]
    fn open(mode: &str, keys: &[(&str, &str)]) -> Windows {
        let fake = FakeEngine::start(mode, 0);
        let args = ["engine", "openai", "--base-url", &fake.url(), "--model", "qwen-fake", "--slots", "2"];
        let table = format!(
            "[[engine]]\nname = \"fake\"\ncommand = {LAPCE_IPC:?}\nargs = {args:?}\n\
             initial_delay_ms = 5\nmax_delay_ms = 20\n"
        );
        let broker = Broker::start_configured(|_| table, "", keys);
        let lsps = URIS.map(|uri| {
            let mut lsp = Lsp::start(&broker, &[]);
            lsp.open_as(uri, "x");
            lsp
        });
        Windows { lsps, broker, fake }
    }

    fn complete(&mut self, window: usize) -> i64 {
        self.lsps[window].complete_at(URIS[window], 1, INVOKED)
    }

    /// Requests a completion until one comes.
    #[track_caller]
    fn completes(&mut self, window: usize) {
        wait_until("a completion", || {
            let id = self.complete(window);
            self.lsps[window].reply(id)["result"]["items"][0]["insertText"] == TOKENS.concat()
        });
    }

    fn running(&self) -> u64 {
        self.fake.counts().running.load(Ordering::SeqCst)
    }

    /// A completion in each window that takes ten seconds, when the endpoint generates both.
    #[track_caller]
    fn generate_in_both(&mut self) -> [i64; 2] {
        // What is suggested already needs no engine, and another text has no suggestion.
        for (lsp, uri) in self.lsps.iter_mut().zip(URIS) {
            lsp.open_as(uri, "y");
        }
        self.fake.set_tokens(&["a"; 1000]);
        self.fake.set_pace(Duration::from_millis(10));
        let ids = [0, 1].map(|window| self.complete(window));
        wait_until("the endpoint to generate", || self.running() == 2);
        self.fake.set_tokens(&TOKENS);
        self.fake.set_pace(Duration::ZERO);
        ids
    }
}

#[test]
fn an_engine_that_is_killed_is_an_error_in_both_windows_and_one_line_in_the_log() {
    let mut windows = Windows::open("ok", &[]);
    for round in 1..=3 {
        (0..2).for_each(|window| windows.completes(window));
        let ids = windows.generate_in_both();
        signal(engine_pid(&mut windows.broker, "fake"), "KILL");
        for (lsp, id) in windows.lsps.iter_mut().zip(ids) {
            assert_eq!(lsp.code_of(id), -32803);
        }
        (0..2).for_each(|window| windows.completes(window));
        let restarts = lines(&mut windows.broker, &["restarting actor actor=engine id=fake"]);
        assert_eq!(restarts.len(), round, "{restarts:#?}");
        assert!(restarts[round - 1].contains("reason=\"killed by signal 9\""), "{restarts:#?}");
        assert_eq!(lines(&mut windows.broker, &["engine started engine=fake "]).len(), round + 1);
    }
}

#[test]
fn a_broker_that_is_killed_leaves_no_engine_and_both_windows_recover_by_themselves() {
    let mut windows = Windows::open("ok", &[]);
    (0..2).for_each(|window| windows.completes(window));
    let ids = windows.generate_in_both();
    let engine = engine_pid(&mut windows.broker, "fake");
    windows.broker.kill();
    for (lsp, id) in windows.lsps.iter_mut().zip(ids) {
        assert_eq!(lsp.code_of(id), -32803);
    }
    wait_until("the engine to end", || !is_alive(engine));
    wait_until("the endpoint to be quiet", || windows.running() == 0);
    windows.broker.start_again();
    (0..2).for_each(|window| windows.completes(window));
    assert_ne!(engine_pid(&mut windows.broker, "fake"), engine);
}

#[test]
fn a_window_that_is_killed_is_reclaimed_at_once_and_the_other_one_goes_on() {
    let mut windows = Windows::open("ok", &[]);
    (0..2).for_each(|window| windows.completes(window));
    let client = windows.broker.client();
    let of_windows = || {
        let connections = client.status().expect("a status").connections;
        let pids = connections.into_iter().map(|connection| connection.pid);
        pids.collect::<Vec<_>>()
    };
    let killed = windows.lsps[0].pid();
    assert!(of_windows().contains(&killed), "{:?}", of_windows());
    windows.generate_in_both();
    signal(killed, "KILL");
    wait_until("its request to be closed", || windows.running() == 1);
    wait_until("its connection to be gone", || !of_windows().contains(&killed));
    assert!(of_windows().contains(&windows.lsps[1].pid()), "{:?}", of_windows());
    windows.completes(1);
    assert_eq!(lines(&mut windows.broker, &["restarting actor actor=engine"]), [""; 0]);
}

#[test]
fn an_engine_that_fails_five_times_is_not_asked_until_it_recovers() {
    let mut windows = Windows::open("500", &[("circuit_breaker.timeout_secs", "1")]);
    let state = |windows: &Windows| {
        let status = windows.broker.run(&["status"]);
        let status = String::from_utf8(status.stdout).expect("text");
        let row = status.lines().find(|line| line.split_whitespace().next() == Some(SERVICE)).map(str::to_owned);
        row.unwrap_or_else(|| panic!("no {SERVICE} in {status}"))
    };
    wait_until("five failures", || {
        let id = windows.complete(0);
        assert_eq!(windows.lsps[0].code_of(id), -32803);
        windows.fake.counts().requests.load(Ordering::SeqCst) == 5
    });
    assert!(state(&windows).contains("open"), "{}", state(&windows));
    // The other window has asked nothing yet, and is rejected all the same.
    let id = windows.complete(1);
    let reply = windows.lsps[1].reply(id);
    assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains("failed repeatedly")), "{reply}");
    assert_eq!(windows.fake.counts().requests.load(Ordering::SeqCst), 5);
    windows.fake.set_mode("ok");
    (0..2).for_each(|window| windows.completes(window));
    wait_until("the breaker to close", || state(&windows).contains("closed"));
}
