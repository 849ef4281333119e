//! `lapce-ipc doctor`, and what packages are made from: completions and man pages.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use support::{Broker, LAPCE_IPC, code, command, output, stderr};

/// The findings of `doctor` with the built programs on PATH, and its exit code.
#[track_caller]
fn doctor(broker: &Broker, home: &Path, args: &[&str]) -> (Vec<Value>, i32) {
    let binaries = Path::new(LAPCE_IPC).parent().unwrap();
    let mut command = broker.command(&[&["doctor", "--json"], args].concat());
    command.env("PATH", binaries).env("HOME", home);
    let done = output(command, b"");
    let findings = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{}", stderr(&done)));
    (findings, code(&done))
}

fn found<'a>(findings: &'a [Value], subject: &str) -> (&'a str, &'a str) {
    let finding = findings.iter().find(|finding| finding["subject"] == subject);
    let finding = finding.unwrap_or_else(|| panic!("no {subject} in {findings:#?}"));
    (finding["grade"].as_str().unwrap(), finding["found"].as_str().unwrap())
}

#[test]
fn an_installation_that_works_has_no_fault() {
    let broker = Broker::start();
    let home = broker.folder().join("home");
    let plugins = home.join(".local/share/lapce-stable/plugins");
    fs::create_dir_all(&plugins).unwrap();
    let (findings, exit) = doctor(&broker, &home, &[]);
    assert_eq!(exit, 0, "{findings:#?}");
    for subject in ["program", "configuration", "broker", "round trip", "descriptors"] {
        assert_eq!(found(&findings, subject).0, "ok", "{subject}");
    }
    assert_eq!(found(&findings, "engine"), ("note", "no engine serves ai.inline-completion"));
    assert_eq!(found(&findings, "Lapce").0, "note");
    // With engine and plugin in place.
    let mut service = broker.spawn(&["reply", "ai.inline-completion", "--echo"]);
    service.wait_for("serving\n");
    let plugin = plugins.join("mine");
    fs::create_dir(&plugin).unwrap();
    for file in ["volt.toml", "lapce-ipc.wat"] {
        fs::copy(format!("{}/editors/lapce/{file}", env!("CARGO_MANIFEST_DIR")), plugin.join(file)).unwrap();
    }
    let (findings, exit) = doctor(&broker, &home, &[]);
    assert_eq!(exit, 0);
    assert_eq!(found(&findings, "engine"), ("ok", "ai.inline-completion: 1 responder"));
    assert_eq!(found(&findings, "Lapce").0, "ok");
}

#[test]
fn what_the_engine_says_of_itself_is_shown() {
    let broker = Broker::start();
    let mut service = broker.spawn(&["reply", "ai", "--echo"]);
    service.wait_for("serving\n");
    let status = json!({"base_url": "http://x", "model": "m", "way": "suffix", "last_error": "HTTP 500"}).to_string();
    let mut status = broker.spawn(&["reply", "ai.status", "--", "printf", "%s", &status]);
    status.wait_for("serving\n");
    let (findings, exit) = doctor(&broker, broker.folder(), &["--service", "ai"]);
    assert_eq!(exit, 0);
    let expected = "ai: m at http://x, fill-in-the-middle by suffix; last error: HTTP 500";
    assert_eq!(found(&findings, "engine"), ("note", expected));
}

#[test]
fn without_a_broker_and_with_a_wrong_configuration_there_are_faults() {
    let mut broker = Broker::start();
    broker.kill();
    let config = broker.folder().join("wrong.toml");
    fs::write(&config, "[ipc]\nmax_connections = \"many\"\n").unwrap();
    let (findings, exit) = doctor(&broker, broker.folder(), &[]);
    assert_eq!((exit, found(&findings, "broker").0), (69, "fault"));
    let (findings, exit) = doctor(&broker, broker.folder(), &["--config", config.to_str().unwrap()]);
    assert_eq!(exit, 69);
    // That there is no broker may be for the same reason.
    assert!(!findings.iter().any(|finding| finding["subject"] == "broker"), "{findings:#?}");
    let (grade, text) = found(&findings, "configuration");
    assert_eq!(grade, "fault");
    assert!(text.contains("max_connections"), "{text}");
    assert!(findings.iter().all(|finding| finding["grade"] == "ok" || finding["advice"].is_string()));
}

#[test]
fn completions_and_man_pages_have_every_command_that_is_not_hidden() {
    let run = |args: &[&str]| {
        let mut command = command(LAPCE_IPC);
        command.args(args);
        output(command, b"")
    };
    for shell in ["bash", "zsh", "fish"] {
        let done = run(&["completions", shell]);
        let text = String::from_utf8_lossy(&done.stdout);
        assert_eq!(code(&done), 0);
        assert!(text.contains("doctor") && text.contains("trust-uid"), "{shell}: {text}");
        assert!(!text.contains("bench-part"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(code(&run(&["man", folder.path().to_str().unwrap()])), 0);
    let pages: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    for page in ["ipc_server_main.1", "lapce-ipc.1", "lapce-ipc-sub.1", "lapce-ipc-doctor.1"] {
        assert!(pages.iter().any(|name| name == page), "no {page} in {pages:?}");
    }
    assert!(!pages.iter().any(|name| name == "lapce-ipc-guard.1"));
    let page = fs::read_to_string(folder.path().join("lapce-ipc-sub.1")).unwrap();
    assert!(page.starts_with(".ie") || page.contains(".TH lapce-ipc-sub 1"), "{page}");
}
