//! What the system may have no more of: descriptors, threads. A clear error, and never a panic.

mod support;

use std::os::unix::fs::PermissionsExt;
use support::{Broker, IPC_SERVER_MAIN, LAPCE_IPC, Process, code, command, output, stderr, wait_until};

#[test]
fn commands_without_descriptors_end_with_an_error() {
    let broker = Broker::start();
    for limit in 4..16 {
        let mut echo = command("sh");
        echo.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh", LAPCE_IPC, "--socket"]);
        let replied = output(
            {
                echo.arg(broker.socket()).args(["request", "echo", "hi"]);
                echo
            },
            b"",
        );
        let said = stderr(&replied);
        assert!([0, 69, 75].contains(&code(&replied)) && !said.contains("panicked"), "{limit}: {said}");
    }
}

/// The loader fails with 127 or a signal before there is a program.
#[test]
fn commands_without_address_space_name_memory_and_do_not_blame_the_broker() {
    let broker = Broker::start();
    let mut lacked = 0;
    // In KiB; a segment is larger than a step.
    for limit in (8_000..80_000).step_by(250) {
        let mut echo = command("sh");
        echo.args(["-c", &format!("ulimit -v {limit}; exec \"$@\""), "sh", LAPCE_IPC, "--socket"]);
        echo.arg(broker.socket()).args(["request", "echo", "hi"]);
        let mut echo = Process::start(echo);
        let (code, said) = (echo.code(), echo.stderr());
        assert!(code != 76 && !said.contains("protocol violation"), "{limit}: {said}");
        if said.contains("segment of ") {
            assert!([69, 75].contains(&code) && said.contains("out of memory"), "{limit}: {code}: {said}");
            lacked += 1;
        }
        if code == 0 {
            break;
        }
    }
    assert!(lacked > 0, "no limit lay between the program's size and its segment's");
}

/// Listens, or ends with 69 and an error.
fn starts_or_says_why(wrapper: &[&str], program: &str, socket: &std::path::Path) {
    let mut broker = command(wrapper[0]);
    broker.args(&wrapper[1..]).arg(program).arg("--socket").arg(socket);
    let mut broker = Process::start(broker);
    wait_until("the broker to listen or to end", || broker.has_ended() || broker.stderr().contains("hint:"));
    if broker.has_ended() {
        assert_eq!(broker.code(), 69, "{wrapper:?}: {}", broker.stderr());
        assert!(broker.stderr().contains("error: "), "{wrapper:?}: {}", broker.stderr());
    }
    assert!(!broker.stderr().contains("panicked"), "{wrapper:?}: {}", broker.stderr());
}

#[test]
fn a_broker_without_descriptors_or_threads_listens_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipc.sock");
    for limit in (4..60).step_by(4) {
        let line = format!("ulimit -n {limit}; exec \"$@\"");
        starts_or_says_why(&["sh", "-c", &line, "sh"], IPC_SERVER_MAIN, &socket);
    }
    if !rustix::process::geteuid().is_root() {
        support::probe::note("skipped: the threads of root have no limit, and only root can become another user");
        return;
    }
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = folder.path().join("program");
    support::copy_program(IPC_SERVER_MAIN, &copy);
    let user = ["setpriv", "--reuid", "65533", "--regid", "65533", "--clear-groups", "prlimit"];
    for limit in 1..9 {
        let limit = format!("--nproc={limit}");
        let wrapper = [&user[..], &[&limit, "--"]].concat();
        let socket = folder.path().join("nproc.sock");
        starts_or_says_why(&wrapper, copy.to_str().unwrap(), &socket);
        let _ = std::fs::remove_file(&socket);
        let _ = std::fs::remove_file(folder.path().join("nproc.sock.lock"));
    }
}
