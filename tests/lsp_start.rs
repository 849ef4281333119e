//! `lapce-ipc lsp --start`: bridges that start the broker themselves.

#[path = "support/lsp_client.rs"]
mod lsp_client;
mod support;

use lapce_ipc::client::Client;
use lsp_client::Lsp;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{signal, wait_until};

const INVOKED: u32 = 1;

/// A user's folders, and the brokers that are started in them: killed when this is dropped.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        Home { folder: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn socket(&self) -> PathBuf {
        self.path().join("lapce-ipc.sock")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Lsp::command(args);
        command.env("XDG_RUNTIME_DIR", self.path()).env("XDG_STATE_HOME", self.path().join("state"));
        command
    }

    /// The processes of brokers at the socket.
    fn brokers(&self) -> Vec<u32> {
        let socket = self.socket();
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        let is_broker = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&&b"serve-session"[..]) && words.contains(&socket.as_os_str().as_encoded_bytes())
        };
        pids.filter(is_broker).collect()
    }

    fn log(&self) -> PathBuf {
        self.path().join("state/lapce-ipc/broker.log")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for broker in self.brokers() {
            let _ = Command::new("kill").args(["-KILL", &broker.to_string()]).status();
        }
    }
}

/// Waits until the bridge says that there is a broker, but no engine.
#[track_caller]
fn wait_for_broker(lsp: &mut Lsp) {
    lsp.open("abc");
    wait_until("a broker", || {
        let id = lsp.complete(INVOKED);
        let reply = lsp.reply(id);
        reply["error"]["message"].as_str().is_some_and(|message| message.contains("no engine serves"))
    });
}

/// The session of a process.
fn session(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its state");
    let fields = stat.rsplit(") ").next().expect("its fields");
    fields.split(' ').nth(3).expect("its session").parse().expect("a number")
}

#[test]
fn bridges_that_come_at_once_start_one_broker_in_a_session_of_its_own() {
    let home = Home::new();
    let mut bridges: Vec<Lsp> = (0..4).map(|_| Lsp::spawn(home.command(&["--start"]))).collect();
    for bridge in &mut bridges {
        bridge.initialize();
        wait_for_broker(bridge);
        assert!(bridge.shown().iter().all(|text| text.contains("no engine serves")), "{:?}", bridge.shown());
    }
    let brokers = home.brokers();
    assert_eq!(brokers.len(), 1);
    assert_eq!(session(brokers[0]), brokers[0]);
    let log = fs::metadata(home.log()).expect("its log");
    assert_eq!(log.permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(home.log()).expect("its log").contains("listens"));
    for bridge in bridges {
        signal(bridge.pid(), "KILL");
    }
    let client = Client::builder().socket(home.socket()).no_reconnect().connect().expect("it outlives the bridges");
    assert_eq!(home.brokers(), brokers);
    drop(client);
    signal(brokers[0], "TERM");
    wait_until("the broker to end", || home.brokers().is_empty());
    assert!(!home.socket().exists());
}

#[test]
fn a_broker_that_is_killed_is_started_again() {
    let home = Home::new();
    let mut bridge = Lsp::spawn(home.command(&["--start"]));
    bridge.initialize();
    wait_for_broker(&mut bridge);
    let first = home.brokers();
    signal(first[0], "KILL");
    wait_until("another broker", || home.brokers().len() == 1 && home.brokers() != first);
    wait_for_broker(&mut bridge);
}

#[test]
fn a_broker_that_runs_is_used() {
    let broker = support::Broker::start();
    let home = Home::new();
    let mut command = home.command(&["--start"]);
    command.env("LAPCE_IPC_SOCKET", broker.socket());
    let mut bridge = Lsp::spawn(command);
    bridge.initialize();
    wait_for_broker(&mut bridge);
    assert!(home.brokers().is_empty() && !home.log().exists());
}

#[test]
fn a_broker_that_cannot_start_is_reported() {
    let home = Home::new();
    let mut command = home.command(&["--start"]);
    // A folder where the socket should be.
    fs::create_dir(home.socket()).expect("a folder");
    command.arg("--socket").arg(home.socket());
    let mut bridge = Lsp::spawn(command);
    bridge.initialize();
    bridge.open("abc");
    let id = bridge.complete(INVOKED);
    let reply = bridge.reply(id);
    assert_eq!(reply["error"]["code"], -32803);
    let shown = bridge.shown();
    assert!(shown.len() == 1 && shown[0].contains("not a socket"), "{shown:?}");
    // Its folder is not there.
    let mut command = home.command(&["--start"]);
    command.arg("--socket").arg(home.path().join("nowhere/ipc.sock"));
    let mut bridge = Lsp::spawn(command);
    bridge.initialize();
    bridge.open("abc");
    let id = bridge.complete(INVOKED);
    let reply = bridge.reply(id);
    let message = reply["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("cannot start a broker"), "{message}");
}

#[test]
fn a_lock_file_that_is_a_link_is_not_followed() {
    let home = Home::new();
    let victim = home.path().join("victim");
    std::os::unix::fs::symlink(&victim, home.path().join("lapce-ipc.sock.start")).expect("a link");
    let mut bridge = Lsp::spawn(home.command(&["--start"]));
    bridge.initialize();
    bridge.open("abc");
    let id = bridge.complete(INVOKED);
    let reply = bridge.reply(id);
    let message = reply["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(message.contains("lapce-ipc.sock.start"), "{message}");
    assert!(!victim.exists() && home.brokers().is_empty());
}
