//! What another process of the broker's user can see of the broker through `/proc`: nothing, unless dumps are allowed.

mod support;

use lapce_ipc::client::Client;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use support::http::{Answer, address_in, talk};
use support::users::{OTHER_USER, are_root, as_other_user, open_folder};
use support::{IPC_SERVER_MAIN, LAPCE_IPC, Process, command, wait_until};

/// A broker of another user that is not root.
fn broker(program: &Path, socket: &Path, allow_dumps: &str) -> Process {
    let mut serve = command(program.to_str().expect("a path"));
    serve.arg("--socket").arg(socket).env("LAPCE_IPC__SHARED_MEMORY__ALLOW_DUMPS", allow_dumps);
    as_other_user(&mut serve);
    let mut broker = Process::start(serve);
    broker.wait_for("hint:");
    broker
}

/// Opens a file as the other user, by a shell. Answers what the shell says: nothing if it can.
fn open(redirection: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 3{redirection}")]).env("LC_ALL", "C");
    as_other_user(&mut shell);
    let output = shell.output().expect("a shell");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The descriptors of a process that are segments, as root sees them.
fn segments(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("we are root").flatten();
    let is_segment = |path: &Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:lapce-ipc"));
    let found = entries.map(|entry| entry.path()).filter(|path| is_segment(path));
    found.map(|path| path.to_string_lossy().into_owned()).collect()
}

/// Whose the files of a process in `/proc` are: root's, if it cannot be traced by its user.
fn owner(pid: u32) -> u32 {
    fs::metadata(format!("/proc/{pid}/environ")).expect("it runs").uid()
}

#[test]
fn another_process_of_the_brokers_user_cannot_open_a_segment_unless_dumps_are_allowed() {
    if !are_root() {
        return;
    }
    let (folder, program) = open_folder(IPC_SERVER_MAIN);
    let socket = folder.path().join("ipc.sock");
    for allow_dumps in [false, true] {
        let mut broker = broker(&program, &socket, &allow_dumps.to_string());
        let client = Client::builder().socket(&socket).trusted_uids([OTHER_USER]).connect().expect("root may connect");
        assert_eq!(client.request("echo", "hi").expect("the echo"), b"hi");
        let found = segments(broker.pid());
        assert!(!found.is_empty());
        for segment in &found {
            let said = open(&format!("<>{segment}"));
            assert_eq!(said.is_empty(), allow_dumps, "{segment}: {said}");
            assert!(allow_dumps || said.contains("Permission denied"), "{said}");
        }
        assert_eq!(owner(broker.pid()), if allow_dumps { OTHER_USER } else { 0 });
        if !allow_dumps {
            // As `process_vm_readv` and ptrace: one check of the kernel.
            let said = open(&format!("</proc/{}/mem", broker.pid()));
            assert!(said.contains("Permission denied"), "{said}");
        }
        sees_itself(&broker);
        drop(client);
        broker.signal("TERM");
        assert_eq!(broker.code(), 0);
    }
}

/// The broker reads its own files in `/proc` all the same.
fn sees_itself(broker: &Process) {
    let mut address = None;
    wait_until("the endpoints to listen", || {
        address = address_in(&broker.stderr());
        address.is_some()
    });
    let ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = Answer::parse(&talk(address.expect("it listens"), ask)).expect("an answer");
    for name in ["process_open_fds", "process_resident_memory_bytes", "process_threads"] {
        assert!(answer.sample(name) > 0.0, "{name}");
    }
}

#[test]
fn commands_that_hold_a_session_for_long_are_closed_too_and_short_ones_are_not() {
    if !are_root() {
        return;
    }
    let (folder, program) = open_folder(IPC_SERVER_MAIN);
    let (_other, lapce_ipc) = open_folder(LAPCE_IPC);
    let socket = folder.path().join("ipc.sock");
    let _broker = broker(&program, &socket, "false");
    let start = |arguments: &[&str]| {
        let mut run = command(lapce_ipc.to_str().expect("a path"));
        run.args(arguments).env("LAPCE_IPC_SOCKET", &socket).stdin(Stdio::piped());
        as_other_user(&mut run);
        Process::start(run)
    };
    #[cfg(feature = "editor")]
    for arguments in [
        &["lsp"][..],
        &["connect"],
        &["engine", "openai", "--base-url", "http://127.0.0.1:1", "--model", "none"],
        &["gateway", "--listen", "127.0.0.1:0"],
    ] {
        let held = start(arguments);
        wait_until("it to close itself", || owner(held.pid()) == 0);
    }
    let open = start(&["reply", "upper", "--", "cat"]);
    let client = Client::builder().socket(&socket).trusted_uids([OTHER_USER]).connect().expect("root may connect");
    wait_until("it to serve", || client.request("upper", "hi").is_ok());
    assert_eq!(owner(open.pid()), OTHER_USER);
}
