//! What the broker's log has, by the keys of `[logging]`.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use support::role::{Child, role, tell};
use support::users::{OTHER_USER, are_root, open_folder};
use support::{Broker, code, wait_until};

const OPENED: &str = "connection opened";
const CLOSED: &str = "connection closed";

#[test]
fn commands_leave_no_line_at_info_and_are_counted() {
    let mut broker = Broker::start_with(&[("logging.short_connection_ms", "3600000")]);
    for _ in 0..5 {
        assert_eq!(code(&broker.run(&["request", "echo", "hi"])), 0);
    }
    let log = broker.process().stderr();
    assert!(!log.contains(OPENED) && !log.contains(CLOSED), "{log}");
    let metrics = broker.get("/metrics");
    assert!(metrics.sample("lapce_ipc_connections_total") >= 5.0, "{metrics:?}");
}

#[test]
fn commands_are_logged_at_debug() {
    let mut broker = Broker::start_with(&[("logging.level", "debug"), ("logging.short_connection_ms", "3600000")]);
    assert_eq!(code(&broker.run(&["request", "echo", "hi"])), 0);
    broker.process().wait_for(CLOSED);
    let log = broker.process().stderr();
    let of_connections: Vec<_> = log.lines().filter(|line| line.contains(OPENED) || line.contains(CLOSED)).collect();
    assert_eq!(of_connections.len(), 2, "{log}");
    assert!(of_connections.iter().all(|line| line.contains(" DEBUG ")), "{log}");
}

#[test]
fn a_connection_that_lasts_is_logged_when_it_has_and_at_its_end() {
    let mut broker = Broker::start_with(&[("logging.short_connection_ms", "1")]);
    let client = broker.client();
    broker.process().wait_for(OPENED);
    assert!(!broker.process().stderr().contains(CLOSED));
    drop(client);
    broker.process().wait_for(CLOSED);
    let log = broker.process().stderr();
    assert_eq!((log.matches(OPENED).count(), log.matches(CLOSED).count()), (1, 1), "{log}");
}

#[test]
fn the_levels_change_with_a_reload() {
    let mut broker = Broker::start_configured(|_| "[logging]\nlevel = \"error\"\n".to_owned(), "", &[]);
    assert!(!broker.process().stderr().contains(" INFO "), "{}", broker.process().stderr());
    let config = broker.folder().join("config.toml");
    let reload = |broker: &Broker, level: &str| {
        fs::write(&config, format!("[logging]\nlevel = \"{level}\"\n")).unwrap();
        assert_eq!(code(&broker.run(&["reload"])), 0);
    };
    reload(&broker, "error,lapce_ipc::broker::reload=info");
    broker.process().wait_for("configuration reloaded");
    reload(&broker, "error");
    reload(&broker, "error");
    fs::write(&config, "[logging]\nlevel = \"loud\"\n").unwrap();
    broker.process().signal("HUP");
    broker.process().wait_for("which is neither a level nor MODULE=LEVEL");
    let log = broker.process().stderr();
    assert_eq!(log.matches("configuration reloaded").count(), 1, "{log}");
}

#[test]
fn lines_that_clients_cause_are_as_many_as_is_configured() {
    let mut broker = Broker::start_with(&[("logging.max_lines_per_second", "2"), ("ipc.max_connections", "1")]);
    let _client = broker.client();
    for _ in 0..20 {
        broker.builder().no_reconnect().connect().unwrap_err();
    }
    broker.process().wait_for("log lines suppressed kind=refused uid=");
    let log = broker.process().stderr();
    assert!(log.matches("connection refused").count() < 20, "{log}");
    wait_until("the count to be complete", || {
        let log = broker.process().stderr();
        suppressed(&log, rustix::process::geteuid().as_raw()) + log.matches("connection refused").count() == 20
    });
}

/// The number of lines about refused connections that were suppressed for a user.
fn suppressed(log: &str, uid: u32) -> usize {
    let counts = format!("suppressed kind=refused uid={uid} count=");
    log.lines().filter_map(|line| line.split_once(&counts)?.1.parse::<usize>().ok()).sum()
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    assert_eq!(role, "floods");
    let socket = std::env::var("LAPCE_IPC_SOCKET").unwrap();
    tell("ready");
    loop {
        let _ = UnixStream::connect(&socket);
    }
}

#[test]
fn a_user_that_floods_the_log_hides_no_line_of_another() {
    if !are_root() {
        return;
    }
    let keys = [("shared_memory.permissions", "0o666"), ("ipc.max_connections", "1")];
    let mut broker = Broker::start_with(&keys);
    fs::set_permissions(broker.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let _client = broker.client();
    let (_folder, copy) = open_folder(std::env::current_exe().unwrap().to_str().unwrap());
    let mut flood = Child::ready_as_other_user(&broker, &copy, "floods");
    wait_until("the flood to be counted", || suppressed(&broker.process().stderr(), OTHER_USER) > 1000);
    // Each of ours is there, at whatever moment of the flood's second.
    for number in 1..=5 {
        broker.builder().no_reconnect().connect().unwrap_err();
        let line = "user 0 has reached its share of 1 connections";
        wait_until("the line", || broker.process().stderr().matches(line).count() == number);
    }
    flood.kill();
    let log = broker.process().stderr();
    let refused = log.matches("user 65534 may not connect").count();
    assert!(refused < suppressed(&log, OTHER_USER) / 10, "{refused}");
    assert_eq!(suppressed(&log, 0), 0, "{log}");
}
