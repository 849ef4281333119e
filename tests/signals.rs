//! Signals that end a command: nothing that it started outlives it, whatever the signal.

mod support;

use std::path::Path;
use support::{Broker, Process, wait_until};

/// Whether a process runs: it exists and is no zombie.
fn runs(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.lines().any(|line| line.starts_with("State:\tZ"))
}

/// The pid that a shell has written to a file.
fn pid_in(file: &Path) -> String {
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    wait_until("the pid of the grandchild", || read().ends_with('\n'));
    read().trim().to_owned()
}

#[test]
fn programs_of_reply_end_with_it_whatever_signal_ends_it() {
    let broker = Broker::start();
    for signal in ["INT", "TERM", "HUP", "QUIT", "KILL"] {
        let file = broker.folder().join(format!("pid-{signal}"));
        // A shell with a child of its own, which is a grandchild of `reply`.
        let line = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let service = format!("svc-{signal}");
        let mut reply: Process = broker.spawn(&["reply", &service, "--exec", &line]);
        reply.wait_for("serving");
        let mut request = broker.spawn(&["request", &service, "hi", "--timeout", "1m"]);
        let grandchild = pid_in(&file);
        assert!(runs(&grandchild), "{signal}");
        reply.signal(signal);
        reply.code();
        wait_until("the grandchild to end", || !runs(&grandchild));
        assert_eq!(request.code(), 75, "its responder is lost: {signal}");
    }
}

#[test]
fn folders_and_processes_of_bench_end_with_it_whatever_signal_ends_it() {
    for signal in ["TERM", "HUP", "QUIT", "KILL"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = support::command(support::LAPCE_IPC);
        command.args(["bench", "routed", "--seconds", "1000"]).env("TMPDIR", folder.path());
        let mut bench = Process::start(command);
        let entries = || std::fs::read_dir(folder.path()).unwrap().filter_map(Result::ok).count();
        let mark = folder.path().to_str().unwrap().to_owned();
        // Its processes have the folder in their command lines: the socket is there.
        let processes = || {
            let of = |pid: &std::fs::DirEntry| std::fs::read(pid.path().join("cmdline")).unwrap_or_default();
            let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
            all.filter(|pid| String::from_utf8_lossy(&of(pid)).contains(&mark)).count()
        };
        wait_until("the broker and a client of it", || entries() == 1 && processes() >= 2);
        bench.signal(signal);
        bench.code();
        wait_until("all to be put away", || entries() == 0 && processes() == 0);
    }
}

#[test]
fn a_command_started_by_nohup_does_not_end_with_the_terminal() {
    let broker = Broker::start();
    let mut command = support::command("nohup");
    command.args([support::LAPCE_IPC, "--socket", broker.socket().to_str().unwrap(), "reply", "svc", "--echo"]);
    let mut reply = Process::start(command);
    reply.wait_for("serving");
    reply.signal("HUP");
    assert_eq!(broker.run(&["request", "svc", "hi"]).stdout, b"hi\n");
    reply.signal("TERM");
    assert_eq!(reply.code(), 143);
}
