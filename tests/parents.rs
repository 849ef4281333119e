//! What a careless parent leaves its child, and signals that come again: limits, ignored and blocked signals.

mod support;

use std::path::PathBuf;
use support::{Broker, DEADLINE, IPC_SERVER_MAIN, LAPCE_IPC, Process, code, command, output, stderr, wait_until};

/// A broker that `wrapper` starts, and its socket.
fn broker_of(wrapper: &[&str]) -> (tempfile::TempDir, PathBuf, Process) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipc.sock");
    let mut broker = command(wrapper[0]);
    broker.args(&wrapper[1..]).arg(IPC_SERVER_MAIN).arg("--socket").arg(&socket);
    let mut process = Process::start(broker);
    process.wait_for("hint:");
    (folder, socket, process)
}

fn echo(socket: &std::path::Path) -> std::process::Output {
    let mut echo = command(LAPCE_IPC);
    echo.arg("--socket").arg(socket).args(["request", "echo", "hi"]);
    output(echo, b"")
}

#[test]
fn a_limit_of_file_sizes_refuses_clients_and_does_not_kill_the_broker() {
    let (_folder, socket, mut broker) = broker_of(&["sh", "-c", "ulimit -f 16; exec \"$@\"", "sh"]);
    for _ in 0..2 {
        let refused = echo(&socket);
        assert_eq!(code(&refused), 75, "{}", stderr(&refused));
        assert!(stderr(&refused).contains("RLIMIT_FSIZE"), "{}", stderr(&refused));
    }
    broker.signal("TERM");
    assert_eq!(broker.code(), 0);
}

#[test]
fn a_soft_limit_of_file_sizes_is_raised() {
    let (_folder, socket, _broker) = broker_of(&["sh", "-c", "ulimit -S -f 16; exec \"$@\"", "sh"]);
    let replied = echo(&socket);
    assert_eq!((code(&replied), &replied.stdout[..]), (0, &b"hi\n"[..]), "{}", stderr(&replied));
}

#[test]
fn a_blocked_sigterm_ends_the_broker_all_the_same() {
    let (_folder, socket, mut broker) = broker_of(&["env", "--block-signal=TERM"]);
    broker.signal("TERM");
    assert_eq!(broker.code(), 0);
    assert!(!socket.exists());
}

#[test]
fn programs_of_reply_have_their_exit_status_and_clean_signals_whatever_the_parent_ignores() {
    let broker = Broker::start();
    let mut reply = command("env");
    reply.args(["--ignore-signal=CHLD", "--block-signal=USR1", LAPCE_IPC, "--socket"]).arg(broker.socket());
    reply.args(["reply", "signals", "--", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]);
    let mut reply = Process::start(reply);
    reply.wait_for("serving");
    let replied = broker.run(&["request", "signals", "x"]);
    let signals = String::from_utf8_lossy(&replied.stdout);
    let mask = |name: &str| {
        let line = signals.lines().find_map(|line| line.strip_prefix(name)).expect("a mask");
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    };
    assert_eq!(code(&replied), 0, "{}", stderr(&replied));
    assert_eq!((mask("SigBlk"), mask("SigIgn") >> (17 - 1) & 1), (0, 0), "{signals}");
}

#[test]
fn a_second_signal_ends_a_broker_that_drains() {
    for (name, ends_with) in [("TERM", 143), ("INT", 130)] {
        let mut broker = Broker::start_with(&[("ipc.drain_timeout_ms", "600000")]);
        let (client, other) = (broker.client(), broker.client());
        let mut service = other.serve("svc").unwrap();
        let _stream = client.request_stream("svc", "x").unwrap();
        let _request = service.next_timeout(DEADLINE).unwrap().expect("a request");
        broker.process().signal("TERM");
        wait_until("the broker to drain", || other.status().unwrap().draining);
        broker.process().signal(name);
        assert_eq!(broker.process().code(), ends_with);
        assert!(!broker.socket().exists());
    }
}
