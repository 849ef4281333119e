//! The socket's file is removed under a broker that runs: by a cleaner of temporary folders, or by hand.

mod support;

use lapce_ipc::client::Client;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use support::{Broker, wait_until};

fn connects(broker: &Broker) -> bool {
    Client::builder().socket(broker.socket()).connect().is_ok_and(|client| client.request("echo", "x").is_ok())
}

#[test]
fn a_removed_socket_is_made_anew() {
    let mut broker = Broker::start();
    let client = broker.client();
    for _ in 0..2 {
        fs::remove_file(broker.socket()).unwrap();
        wait_until("the socket", || connects(&broker));
        assert_eq!(fs::metadata(broker.socket()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(client.request("echo", "x").unwrap(), b"x");
    }
    broker.process().wait_for("socket recreated");
    broker.end("TERM");
    assert!(!broker.socket().exists());
    assert!(!broker.folder().join("ipc.sock.lock").exists());
}

#[test]
fn a_broker_whose_path_another_program_took_is_not_ready_and_leaves_it_alone() {
    let mut broker = Broker::start();
    let client = broker.client();
    let lost = || client.status().unwrap().socket_lost;
    assert_eq!(lost(), None);
    fs::remove_file(broker.socket()).unwrap();
    let other = UnixListener::bind(broker.socket()).unwrap();
    wait_until("the broker to say so", || {
        let ready = broker.get("/ready");
        ready.code == 503 && ready.json().to_string().contains("another program is listening")
    });
    assert!(lost().is_some_and(|reason| reason.contains("another program is listening")), "{:?}", lost());
    drop(other);
    fs::remove_file(broker.socket()).unwrap();
    wait_until("the socket", || connects(&broker));
    wait_until("the broker to be ready", || broker.get("/ready").code == 200);
    assert_eq!(lost(), None);
    fs::remove_file(broker.socket()).unwrap();
    fs::remove_file(broker.folder().join("ipc.sock.lock")).unwrap();
    let _second = UnixListener::bind(broker.socket()).unwrap();
    let second = fs::metadata(broker.socket()).unwrap().ino();
    broker.end("TERM");
    assert_eq!(fs::metadata(broker.socket()).unwrap().ino(), second);
}
