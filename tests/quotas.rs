//! Shares: what one user has taken is not what another one finds.

#[path = "support/raw.rs"]
mod raw;
mod support;

use lapce_ipc::client::DeliveryPolicy;
use lapce_ipc::client::{Client, Error, Publisher, Service};
use lapce_ipc::wire::record::{Header, Kind};
use lapce_ipc::wire::{BrokerFrame, ClientFrame};
use raw::{Control, Lane, Raw, hello};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use support::cut::cut;
use support::role::{Child, heard, role, tell};
use support::users::{OTHER_USER, are_root, open_folder};
use support::{Broker, wait_until, work_for};

/// A broker that takes the other user, too.
fn open_broker(keys: &[(&str, &str)]) -> Broker {
    let open = [("shared_memory.permissions", "0o666"), ("ipc.allowed_uids", "65534")];
    let broker = Broker::start_with(&[&open, keys].concat());
    std::fs::set_permissions(broker.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    broker
}

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
    let broker = open_broker(&[
        ("limits.max_services", "50"),
        ("limits.max_topics", "200"),
        ("limits.max_topics_per_connection", "150"),
        ("limits.user_share_percent", "80"),
    ]);
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
    client.publish("guest.a0", "").unwrap();
    client.flush().unwrap();
    guest.kill();
    wait_until("what the guest held", || client.serve("more").is_ok());
    drop((services, topics));
    let client = broker.client();
    wait_until("all that one user may hold", || all_services(&client, "all").0.len() == 50);
}

fn all_connections(connect: impl Fn() -> Result<Client, Error>) -> (Vec<Client>, Error) {
    all(|_| connect())
}

#[test]
fn what_a_user_takes_leaves_connections_to_others_and_its_sessions_resume() {
    if !are_root() {
        return;
    }
    let mut broker = open_broker(&[("ipc.max_connections", "20"), ("limits.user_share_percent", "80")]);
    let (_folder, copy) = open_folder(std::env::current_exe().unwrap().to_str().unwrap());
    let mut guest = Child::ready_as_other_user(&broker, &copy, "takes-connections");
    assert_eq!(guest.hears("connections"), "20");
    let keys = "(ipc.max_connections, limits.user_share_percent)";
    let said = guest.hears("error");
    assert!(said.contains(&format!("user {OTHER_USER} has reached its share of 20 connections {keys}")), "{said}");
    let connect = || broker.builder().no_reconnect().connect();
    let (clients, error) = all_connections(connect);
    assert_eq!(clients.len(), 4, "four fifths of the 5 that are left: {error}");
    assert!(error.to_string().contains(&format!("user 0 has reached its share of 4 connections {keys}")), "{error}");
    assert!(error.is_refused(), "{error}");
    // Each session of the guest is resumed, although no connection is left to it.
    assert_eq!(cut(guest.pid(), &broker.socket()), 20);
    guest.say("goes on?");
    guest.hears("goes on");
    let metrics = broker.get("/metrics");
    assert_eq!(metrics.sample("lapce_ipc_sessions_resumed_total"), 20.0);
    let held = ["lapce_ipc_connections", "lapce_ipc_connections_limit"].map(|name| metrics.sample(name));
    assert_eq!(held, [24.0, 20.0]);
    guest.kill();
    drop(clients);
    let connect = || broker.builder().no_reconnect().connect();
    wait_until("all that one user may hold", || all_connections(connect).0.len() == 20);
}

/// A broker with the quota `plugins` and such further lines.
fn with_plugins(more: &str) -> Broker {
    let file = "[[quota]]\nname = \"plugins\"\nclients = [\"plugin-*\"]\n".to_owned() + more;
    Broker::start_configured(|_| file, "", &[])
}

fn named(broker: &Broker, name: &str) -> Client {
    broker.builder().name(name).unwrap().connect().unwrap()
}

#[test]
fn credit_without_space_does_not_make_others_wait_longer() {
    // Only the limit for others can end the wait.
    let mut broker = with_plugins("[delivery]\nuser_wait_ms = 50\nslow_consumer_timeout_ms = 600000\n");
    let mut plugin = Raw::connect(&broker.socket(), "plugin-a");
    let (pattern, policy) = ("t".parse().unwrap(), DeliveryPolicy::Block);
    let reply = plugin.ask(|serial| ClientFrame::Subscribe { serial, pattern, policy, credit: 0 });
    let BrokerFrame::Subscribed { subscription: id, .. } = reply else { panic!("{reply:?}") };
    let client = broker.client();
    let (publisher, is_over) = (client.publisher("t").unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It never reads; each grant rings, and lets the router look whether there is space now.
            while !is_over.load(Relaxed) {
                plugin.try_place(Lane::Express, &Header { id, arg: 8192, ..Header::new(Kind::Credit) }.to_words(), &[]);
                plugin.ring();
                work_for(Duration::from_millis(1));
            }
        });
        // More than all rings hold.
        for _ in 0..40_000 {
            publisher.publish([0; 64]).unwrap();
        }
        client.flush().unwrap();
        is_over.store(true, Relaxed);
    });
    let metrics = broker.get("/metrics");
    assert_eq!(metrics.sample("lapce_ipc_subscriptions_evicted_total"), 1.0);
    // A wait, and a further one for each grant within 50 ms. It was ten seconds once, and ten thousand waits.
    let parked = metrics.sample("lapce_ipc_publishers_parked_total");
    assert!(parked < 1_000.0, "{parked} waits");
}

#[test]
fn what_a_users_clients_take_leaves_some_to_those_in_a_quota() {
    let broker = with_plugins(
        "[limits]\nmax_services = 50\nmax_topics = 60\nmax_topics_per_connection = 50\nuser_share_percent = 80\n",
    );
    let (outside, plugin, other) = (broker.client(), named(&broker, "plugin-a"), named(&broker, "plugin-b"));
    let (services, no_service) = all_services(&outside, "o");
    // One connection may have fewer topics than the user.
    let second = broker.client();
    let ((topics, _), (more, no_topic)) = (all_topics(&outside, "o"), all_topics(&second, "r"));
    assert_eq!((services.len(), topics.len() + more.len()), (50, 60), "{no_service} {no_topic}");
    for (error, share) in [(no_service, "share of 50 services"), (no_topic, "share of 60 topics")] {
        assert!(error.to_string().contains(share) && !error.to_string().contains("quota"), "{error}");
    }
    let (in_quota, error) = all_services(&plugin, "p");
    assert_eq!(in_quota.len(), 11, "four fifths of the 13 that are left: {error}");
    let said = ", quota \"plugins\", has reached its share of 11 services (limits.max_services";
    assert!(error.to_string().contains(said), "{error}");
    assert!(all_services(&other, "q").0.is_empty(), "the clients of a quota share");
    let (in_quota, error) = all_topics(&plugin, "p");
    assert_eq!(in_quota.len(), 12, "four fifths of the 15 that are left: {error}");
    assert!(error.to_string().contains(", quota \"plugins\", has reached its share of 12 topics"), "{error}");
}

#[test]
fn what_a_users_clients_subscribe_to_leaves_some_to_those_in_a_quota() {
    let broker = with_plugins(
        "[limits]\nuser_share_percent = 1\nuser_control_percent = 100\n\
         max_subscriptions_per_connection = 100000\n",
    );
    let (outside, plugin) = (broker.client(), named(&broker, "plugin-a"));
    let all_subscriptions = |client: &Client| all(|_| client.subscribe("a"));
    let (subscriptions, _) = all_subscriptions(&outside);
    let (in_quota, error) = all_subscriptions(&plugin);
    assert!(in_quota.len() > subscriptions.len() * 9 / 10, "{} {}", subscriptions.len(), in_quota.len());
    assert!(error.to_string().contains(", quota \"plugins\", has reached its share of "), "{error}");
}

#[test]
fn a_reload_changes_the_quotas_of_clients_that_come_later() {
    let mut broker = with_plugins("");
    let before = named(&broker, "plugin-a");
    let _publisher = before.publisher("a").unwrap();
    let file = "[[quota]]\nname = \"tools\"\nclients = [\"plugin-*\"]\n";
    std::fs::write(broker.folder().join("config.toml"), file).unwrap();
    broker.process().signal("HUP");
    broker.process().wait_for("configuration reloaded by=SIGHUP changed=quota");
    let after = named(&broker, "plugin-b");
    let _other = after.publisher("b").unwrap();
    let status = after.status().unwrap();
    let quota_of =
        |name: &str| status.connections.iter().find(|found| found.name.as_str() == name).unwrap().quota.clone();
    assert_eq!((quota_of("plugin-a").as_deref(), quota_of("plugin-b").as_deref()), (Some("plugins"), Some("tools")));
    let holds_a_topic = |quota: &str| {
        let mut holdings = status.holdings.iter();
        holdings
            .any(|held| held.quota.as_deref() == Some(quota) && (held.resource.as_str(), held.held) == ("topics", 1))
    };
    assert!(holds_a_topic("plugins") && holds_a_topic("tools"), "{:?}", status.holdings);
    before.close();
    wait_until("what it held", || {
        after.status().unwrap().holdings.iter().all(|held| held.quota.as_deref() != Some("plugins"))
    });
}

#[test]
fn a_user_that_connects_too_often_waits_and_others_do_not() {
    if !are_root() {
        return;
    }
    // After 250 connections at once, 50 in a second.
    let broker = open_broker(&[("limits.user_work_percent", "1")]);
    let client = broker.client();
    let (_folder, copy) = open_folder(std::env::current_exe().unwrap().to_str().unwrap());
    let mut guest = Child::ready_as_other_user(&broker, &copy, "connects-often");
    for _ in 0..5 {
        assert_eq!(broker.client().request("echo", "hi").unwrap(), b"hi");
    }
    assert_eq!(guest.may_hear("welcome", Duration::ZERO), None, "the last of 650 waits for eight seconds");
    let connections = client.status().unwrap().connections;
    assert!((250..600).contains(&connections.len()), "{}", connections.len());
    // Its turn comes.
    guest.hears_within("welcome", Duration::from_secs(60));
    guest.kill();
    wait_until("the guest's connections to end", || client.status().unwrap().connections.len() == 1);
}

#[test]
fn child() {
    let role = role();
    if role.as_deref() == Some("takes-connections") {
        let (clients, error) = all_connections(Client::connect);
        tell("ready");
        tell(&format!("connections {}", clients.len()));
        tell(&format!("error {error}"));
        heard();
        clients.iter().for_each(|client| assert_eq!(client.request("echo", "hi").unwrap(), b"hi"));
        tell("goes on");
        heard();
    }
    if role.as_deref() == Some("connects-often") {
        let socket = std::env::var_os("LAPCE_IPC_SOCKET").unwrap();
        let connect = |_| {
            let mut control = Control::connect(socket.as_ref());
            control.say(&hello("often"));
            control
        };
        let mut controls: Vec<Control> = (0..650).map(connect).collect();
        tell("ready");
        let mut last = controls.pop().unwrap().socket;
        last.set_read_timeout(None).unwrap();
        // Whatever comes first is the Welcome.
        last.read_exact(&mut [0]).unwrap();
        tell("welcome");
        heard();
    }
    if role.as_deref() == Some("takes-all") {
        let client = Client::connect().unwrap();
        let (services, no_service) = all_services(&client, "guest");
        // One connection may have fewer than the user.
        let other = Client::connect().unwrap();
        let (mut topics, _) = all_topics(&client, "guest.a");
        let (rest, no_topic) = all_topics(&other, "guest.b");
        topics.extend(rest);
        tell("ready");
        tell(&format!("services {}", services.len()));
        tell(&format!("topics {}", topics.len()));
        tell(&format!("error {no_service}"));
        tell(&format!("error {no_topic}"));
        heard();
    }
}
