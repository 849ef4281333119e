//! What the broker's log has, by the keys of `[logging]`.

mod support;

use std::fs;
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
    broker.process().wait_for("log lines suppressed kind=refused count=");
    let log = broker.process().stderr();
    assert!(log.matches("connection refused").count() < 20, "{log}");
    wait_until("the count to be complete", || {
        let log = broker.process().stderr();
        let left_out =
            log.lines().filter_map(|line| line.split_once("suppressed kind=refused count=")?.1.parse::<usize>().ok());
        left_out.sum::<usize>() + log.matches("connection refused").count() == 20
    });
}
