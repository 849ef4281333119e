//! A stderr that nobody reads: a pager that waits, a terminal that is paused.

mod support;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use support::{Broker, IPC_SERVER_MAIN, code, command, stderr, wait_until};

/// A pipe that takes little, and is not read.
fn unread() -> (OwnedFd, OwnedFd) {
    let (unread, full) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&full, 4096).unwrap();
    (unread, full)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command, stderr: OwnedFd) -> Running {
    Running(command.stdout(std::process::Stdio::null()).stderr(stderr).spawn().unwrap())
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipc.sock");
    let (_unread, full) = unread();
    let mut broker = command(IPC_SERVER_MAIN);
    broker.arg("--socket").arg(&socket).env("RUST_BACKTRACE", "1");
    let mut broker = start(broker, full);
    let builder = || lapce_ipc::client::Client::builder().socket(&socket);
    wait_until("the broker", || builder().connect().is_ok());
    let connect = || builder().connect().unwrap();
    let first = connect();
    // Each is two lines of some 80 bytes.
    for _ in 0..60 {
        assert_eq!(connect().request("echo", "x").unwrap(), b"x");
    }
    assert_eq!(first.request("echo", "x").unwrap(), b"x");
    support::signal(broker.0.id(), "TERM");
    wait_until("the end", || broker.0.try_wait().unwrap().is_some());
    assert_eq!(broker.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn programs_whose_stderr_nobody_reads_answer() {
    let broker = Broker::start();
    let (_unread, full) = unread();
    let reply = broker.command(&["reply", "loud", "--exec", "head -c 300000 /dev/zero >&2; echo said"]);
    let _reply = start(reply, full);
    wait_until("the service", || code(&broker.run(&["request", "loud", "x"])) != 69);
    for _ in 0..20 {
        let replied = broker.run(&["request", "loud", "x"]);
        assert_eq!((code(&replied), &replied.stdout[..]), (0, &b"said\n\n"[..]), "{}", stderr(&replied));
    }
}
