//! Shares: what one user has taken is not what another one finds.

mod support;

use lapce_ipc::client::{Client, Error, Publisher, Service};
use std::os::unix::fs::PermissionsExt;
use support::role::{Child, heard, role, tell};
use support::users::{OTHER_USER, are_root, open_folder};
use support::{Broker, wait_until};

/// As many as there are, by their numbers, and the error at the end.
fn all<T>(mut take: impl FnMut(usize) -> Result<T, Error>) -> (Vec<T>, Error) {
    let mut held = Vec::new();
    loop {
        match take(held.len()) {
            Ok(one) => held.push(one),
            Err(error) => return (held, error),
        }
    }
}

fn all_services(client: &Client, prefix: &str) -> (Vec<Service>, Error) {
    all(|number| client.serve(&format!("{prefix}{number}")))
}

fn all_topics(client: &Client, prefix: &str) -> (Vec<Publisher>, Error) {
    all(|number| client.publisher(&format!("{prefix}{number}")))
}

#[test]
fn what_a_user_takes_leaves_topics_and_services_to_others() {
    if !are_root() {
        return;
    }
    let keys = [
        ("shared_memory.permissions", "0o666"),
        ("ipc.allowed_uids", "65534"),
        ("limits.max_services", "50"),
        ("limits.max_topics", "200"),
        ("limits.max_topics_per_connection", "200"),
        ("limits.user_share_percent", "80"),
    ];
    let broker = Broker::start_with(&keys);
    std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (_folder, copy) = open_folder(std::env::current_exe().unwrap().to_str().unwrap());
    let mut guest = Child::ready_as_other_user(&broker, &copy, "takes-all");
    assert_eq!(guest.hears("services"), "50");
    assert_eq!(guest.hears("topics"), "200");
    for (what, most, key) in [("services", 50, "limits.max_services"), ("topics", 200, "limits.max_topics")] {
        let expected =
            format!("user {OTHER_USER} has reached its share of {most} {what} ({key}, limits.user_share_percent)");
        let said = guest.hears("error");
        assert!(said.contains(&expected), "{said}");
    }
    let client = broker.client();
    let (services, error) = all_services(&client, "mine");
    assert_eq!(services.len(), 11, "four fifths of the 13 that are left: {error}");
    assert!(error.to_string().contains("user 0 has reached its share of 11 services"), "{error}");
    let (topics, error) = all_topics(&client, "mine");
    assert_eq!(topics.len(), 40, "{error}");
    // The names of others cost nothing.
    client.publish("guest.0", "").unwrap();
    client.flush().unwrap();
    guest.kill();
    wait_until("what the guest held", || client.serve("more").is_ok());
    drop((services, topics));
    let client = broker.client();
    wait_until("all that one user may hold", || all_services(&client, "all").0.len() == 50);
}

#[test]
fn child() {
    if role().as_deref() == Some("takes-all") {
        let client = Client::connect().unwrap();
        let (services, no_service) = all_services(&client, "guest");
        let (topics, no_topic) = all_topics(&client, "guest.");
        tell("ready");
        tell(&format!("services {}", services.len()));
        tell(&format!("topics {}", topics.len()));
        tell(&format!("error {no_service}"));
        tell(&format!("error {no_topic}"));
        heard();
    }
}
