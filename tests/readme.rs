//! The README's five minutes, as they stand there: each command in its order, at a broker of our own.

mod support;

use std::process::Command;
use support::{Broker, LAPCE_IPC, Process, code, command, output, stderr, wait_until};

/// The code blocks of a section.
fn blocks(section: &str) -> Vec<Vec<&'static str>> {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## ").find(|text| text.starts_with(section)).expect("the section");
    let block = |text: &'static str| text.split("```").next().unwrap_or_default().lines().collect();
    section.split("```sh\n").skip(1).map(block).collect()
}

/// A line of shell, with the programs that were built for the tests.
fn shell(broker: &Broker, line: &str) -> Command {
    let folder = std::path::Path::new(LAPCE_IPC).parent().unwrap().to_str().unwrap();
    let mut shell = command("/bin/sh");
    shell.current_dir(env!("CARGO_MANIFEST_DIR")).env("LAPCE_IPC_SOCKET", broker.socket());
    shell.env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap()));
    // In place of the shell, so that a signal reaches the program.
    shell.arg("-c").arg(line.replace("target/release/", "exec "));
    shell
}

#[test]
fn the_five_minutes_run_as_they_stand() {
    let mut broker = Broker::start();
    broker.health();
    let blocks = blocks("Five minutes");
    let [serve, subscribe, offer, rest] = &blocks[..] else { panic!("four terminals: {blocks:?}") };
    assert_eq!(serve[..], ["cargo build --release", "target/release/ipc_server_main"]);
    let stays = |lines: &[&str], says: &str| {
        assert_eq!(lines.len(), 1, "{lines:?}");
        let mut process = Process::start(shell(&broker, lines[0]));
        process.wait_for(says);
        process
    };
    let subscriber = stays(subscribe, "subscribed");
    let _service = stays(offer, "serving");
    assert_eq!(rest[0], "export PATH=\"$PWD/target/release:$PATH\"");
    for line in &rest[1..] {
        let is_there =
            |program: &str| Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success());
        if line.starts_with("curl ") && !["curl", "jq"].into_iter().all(is_there) {
            support::probe::note("skipped: there is no curl or jq");
            continue;
        }
        let output = output(shell(&broker, line), b"");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(code(&output), 0, "{line}: {stdout}{}", stderr(&output));
        if let Some((_, comment)) = line.split_once("# ").filter(|_| line.contains("request")) {
            assert_eq!(stdout.trim(), comment.split(':').next().unwrap(), "{line}");
        }
        if line.starts_with("curl ") {
            assert!(stdout.contains("healthy"), "{stdout}");
        }
    }
    wait_until("what was published", || {
        let printed = subscriber.stdout();
        printed.starts_with(b"fn main() {}\n# lapce-ipc")
    });
}
