//! What users hold of what they share, and may hold: in the status, on the command line, in the metrics.

mod support;

use lapce_ipc::client::Client;
use support::{Broker, wait_until};

/// The user of this process.
fn uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").expect("a process").uid()
}

/// What this user holds of a resource, its limit and the key of that.
fn held(client: &Client, resource: &str) -> Option<(u64, u64, Option<String>)> {
    let holdings = client.status().expect("a status").holdings;
    let found = holdings.into_iter().find(|holding| holding.uid == uid() && holding.resource == resource)?;
    Some((found.held, found.limit, found.key))
}

#[test]
fn the_status_and_the_metrics_tell_what_a_user_holds_of_what() {
    let mut broker = Broker::start_with(&[
        ("limits.max_topics", "50"),
        ("limits.max_topics_per_connection", "50"),
        ("ipc.max_connections", "20"),
    ]);
    let (watch, client) = (broker.client(), broker.client());
    let of_key = |held, limit, key: &str| Some((held, limit, Some(key.to_owned())));
    assert_eq!(held(&watch, "connections"), of_key(2, 20, "ipc.max_connections"));
    assert_eq!(held(&watch, "topics"), None, "it holds none");
    let before = held(&watch, "subscriptions").map_or(0, |(held, ..)| held);
    let subscriptions: Vec<_> = (0..3).map(|_| client.subscribe("holdings.>").expect("one")).collect();
    for number in 0..7 {
        client.publish(&format!("holdings.{number}"), b"x").expect("published");
    }
    client.flush().expect("flushed");
    let service = client.serve("holdings.service").expect("a service");
    assert_eq!(held(&watch, "topics"), of_key(7, 50, "limits.max_topics"));
    assert_eq!(held(&watch, "subscriptions").map(|(held, ..)| held), Some(before + 3));
    assert_eq!(held(&watch, "routes").map(|(held, ..)| held), Some(21));
    assert_eq!(held(&watch, "services").map(|(held, ..)| held), Some(1));
    let call = client.request_stream("holdings.service", b"wait").expect("begun");
    wait_until("the call", || held(&watch, "calls").is_some_and(|(held, ..)| held == 1));

    let text = String::from_utf8(broker.run(&["status"]).stdout).expect("text");
    let line = |resource: &str| {
        let uid = uid().to_string();
        let mut words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.find(|words| words.starts_with(&[uid.as_str(), resource])).expect(&text)[2..].join(" ")
    };
    assert_eq!(line("topics"), "7 50 limits.max_topics");
    assert_eq!(line("connections"), "3 20 ipc.max_connections", "with that of the command");
    let labels = |resource: &str| format!("{{uid=\"{}\",resource=\"{resource}\"}}", uid());
    let name = |family: &str, resource: &str| family.to_owned() + &labels(resource);
    wait_until("the metrics of the router", || broker.get("/metrics").body.contains(&labels("topics")));
    let held_topics = name("lapce_ipc_user_held", "topics");
    wait_until("its last metrics", || broker.get("/metrics").sample(&held_topics) == 7.0);
    let metrics = broker.get("/metrics");
    assert_eq!(metrics.sample(&name("lapce_ipc_user_limit", "topics")), 50.0);
    assert_eq!(metrics.sample(&name("lapce_ipc_user_held", "connections")), 2.0);
    assert_eq!(metrics.sample(&name("lapce_ipc_user_limit", "connections")), 20.0);

    drop((call, service, subscriptions));
    client.close();
    wait_until("nothing to be held", || ["topics", "routes", "calls"].iter().all(|what| held(&watch, what).is_none()));
    wait_until("the connection to be given back", || held(&watch, "connections").is_some_and(|(held, ..)| held == 1));
}
