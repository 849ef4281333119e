//! A client that is inherited through `fork`: the child is refused, the parent goes on.

mod support;

use fork::{Fork, fork};
use lapce_ipc::client::{Client, ConnectionState, ErrorKind};
use rustix::process::{Pid, WaitOptions, waitpid};
use support::Broker;
use support::role::{Child, heard, role, tell};

/// What a child does with all that it inherited; the number of the first thing that is not as it should be, or 0.
fn use_inherited(parts: Inherited) -> i32 {
    let Inherited { client, mut subscription, mut service, publisher, requester } = parts;
    let is_refused = |error: Option<lapce_ipc::client::Error>| error.is_some_and(|e| e.kind() == ErrorKind::Forked);
    let checks = [
        is_refused(publisher.publish("from the child").err()),
        is_refused(client.publish("fork.new", "from the child").err()),
        is_refused(client.flush().err()),
        is_refused(client.request("echo", "hi").err()),
        is_refused(requester.call("hi").err()),
        is_refused(requester.call_batch(&["hi"], |_, _| ()).err()),
        is_refused(client.subscribe("fork.>").err()),
        is_refused(client.serve("other").err()),
        is_refused(client.status().err()),
        is_refused(subscription.try_next().err()),
        is_refused(service.next_timeout(std::time::Duration::ZERO).err()),
        matches!(client.state(), ConnectionState::Closed { .. }),
    ];
    client.close();
    drop((publisher, subscription, service, requester, client));
    // The socket is in the environment: a connection of the child's own is like any other.
    let own = Client::connect().and_then(|client| client.request("echo", "own"));
    let own_works = own.is_ok_and(|reply| reply == b"own");
    checks.iter().chain([&own_works]).position(|holds| !holds).map_or(0, |at| at as i32 + 1)
}

struct Inherited {
    client: Client,
    subscription: lapce_ipc::client::Subscription,
    service: lapce_ipc::client::Service,
    publisher: lapce_ipc::client::Publisher,
    requester: lapce_ipc::client::Requester,
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the forked child must not go on with the tests of its parent")]
fn child() {
    if role().as_deref() != Some("parent") {
        return;
    }
    let client = Client::connect().expect("the broker takes us");
    let parts = Inherited {
        subscription: client.subscribe("fork.>").expect("a subscription"),
        service: client.serve("forked").expect("a service"),
        publisher: client.publisher("fork.topic").expect("a publisher"),
        requester: client.requester("echo").expect("a service"),
        client,
    };
    let pid = match fork().expect("a child") {
        Fork::Child => std::process::exit(use_inherited(parts)),
        Fork::Parent(pid) => pid,
    };
    let ended = waitpid(Some(Pid::from_raw(pid).expect("a pid")), WaitOptions::empty()).expect("it ends");
    let status = ended.expect("it has ended").1.exit_status();
    assert_eq!(status, Some(0), "the child's first check that failed");
    // All of the parent's is in force.
    let Inherited { client, mut subscription, mut service, publisher, requester } = parts;
    assert_eq!(requester.call("hi").expect("a reply"), b"hi");
    publisher.publish("from the parent").expect("published");
    let message = subscription.next().expect("it waits").expect("a message");
    assert_eq!((message.payload(), message.sequence()), (&b"from the parent"[..], 1));
    assert_eq!(client.request("echo", "hi").expect("a reply"), b"hi");
    tell("asks");
    let request = service.next().expect("it waits").expect("a request");
    assert_eq!(request.payload(), b"who");
    request.reply("the parent").expect("replied");
    heard();
}

#[test]
fn a_forked_child_is_refused_and_its_parent_goes_on() {
    let broker = Broker::start();
    let mut parent = Child::spawn(&broker, "parent");
    parent.hears("asks");
    assert_eq!(broker.client().request("forked", "who").expect("a reply"), b"the parent");
    let status = broker.client().status().expect("a status");
    assert!(status.connections.iter().any(|connection| connection.subscriptions == 1), "the subscription is in force");
    parent.say("end");
    assert!(parent.ended().success());
    assert_eq!(broker.counter("violations"), 0);
}
