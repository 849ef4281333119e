//! What users hold of what they share, and may hold: in the status, on the command line, in the metrics.

mod support;

use lapce_ipc::client::{Client, HoldingStatus};
use support::{Broker, wait_until};

/// The user of this process.
fn uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").expect("a process").uid()
}

/// What this user holds of a resource, its limit and the key of that.
fn held(client: &Client, resource: &str) -> Option<(u64, u64, Option<String>)> {
    let holdings = client.status().expect("a status").holdings;
    let is_it =
        |holding: &HoldingStatus| holding.uid == uid() && holding.quota.is_none() && holding.resource == resource;
    let found = holdings.into_iter().find(is_it)?;
    Some((found.held, found.limit, found.key))
}

/// What is held in a quota, by resource.
fn held_in(client: &Client, quota: &str) -> Vec<(String, u64)> {
    let holdings = client.status().expect("a status").holdings;
    let of_quota = holdings.into_iter().filter(|holding| holding.quota.as_deref() == Some(quota));
    of_quota.map(|holding| (holding.resource, holding.held)).collect()
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
        words.find(|words| words.starts_with(&[uid.as_str(), "-", resource])).expect(&text)[3..].join(" ")
    };
    assert_eq!(line("topics"), "7 50 limits.max_topics");
    assert_eq!(line("connections"), "3 20 ipc.max_connections", "with that of the command");
    let labels = |resource: &str| format!("{{uid=\"{}\",quota=\"\",resource=\"{resource}\"}}", uid());
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

#[test]
fn what_the_clients_in_a_quota_hold_is_told_by_its_name_until_they_leave() {
    let file = "[[quota]]\nname = \"plugins\"\nclients = [\"plugin-*\"]\n[limits]\nmax_topics = 50\n\
                max_topics_per_connection = 50\n";
    let mut broker = Broker::start_configured(|_| file.to_owned(), "", &[]);
    let watch = broker.client();
    let plugin = broker.builder().name("plugin-a").expect("a name").connect().expect("a connection");
    let connections = watch.status().expect("a status").connections;
    let of = |name: &str| connections.iter().find(|found| found.name.as_str() == name).expect("it is connected");
    assert_eq!(of("plugin-a").quota.as_deref(), Some("plugins"));
    assert_eq!(connections.iter().filter(|found| found.quota.is_none()).count(), 1, "the other");

    let subscription = plugin.subscribe("holdings.>").expect("one");
    let service = plugin.serve("holdings.service").expect("a service");
    for number in 0..7 {
        plugin.publish(&format!("holdings.{number}"), b"x").expect("published");
    }
    plugin.flush().expect("flushed");
    let call = plugin.request_stream("holdings.service", b"wait").expect("begun");
    let all = [("topics", 7), ("subscriptions", 1), ("routes", 7), ("services", 1), ("calls", 1)];
    let all = all.map(|(resource, held)| (resource.to_owned(), held));
    let has_all = |found: &[(String, u64)]| all.iter().all(|one| found.contains(one));
    wait_until("all to be held", || has_all(&held_in(&watch, "plugins")));
    assert_eq!(held(&watch, "topics"), None, "none is held outside");
    assert_eq!(held(&watch, "connections").map(|(held, ..)| held), Some(2), "connections are those of the uid");

    let text = String::from_utf8(broker.run(&["status"]).stdout).expect("text");
    let uid = uid().to_string();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.iter().any(|words| *words == [&uid, "plugins", "topics", "7", "50", "limits.max_topics"]), "{text}");
    let pid = std::process::id().to_string();
    let connection = ["plugin-a", &pid, &uid, "plugins"];
    assert!(lines.iter().any(|words| words.get(1..5) == Some(&connection)), "{text}");
    let series = format!("lapce_ipc_user_held{{uid=\"{uid}\",quota=\"plugins\",resource=\"topics\"}}");
    wait_until("the metrics", || broker.get("/metrics").body.contains(&format!("{series} 7")));

    drop((call, service, subscription));
    plugin.close();
    wait_until("nothing to be held", || held_in(&watch, "plugins").is_empty());
    wait_until("the connection to be given back", || held(&watch, "connections").is_some_and(|(held, ..)| held == 1));
}
