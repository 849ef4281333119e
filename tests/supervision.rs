//! Actors that fail in the real binary, by faults that are injected (feature `fault-injection`, see
//! `src/broker/supervision/fault.rs`): who is started again, what the log and the status say of it, and how the process
//! ends when nothing else helps.

mod support;

use lapce_ipc::client::{ActorState, BreakerOrder, BreakerState, Client};
use support::probe::{actor, lines};
use support::{Broker, DEADLINE, wait_until};

/// Connects, however often it takes.
fn connect(broker: &Broker) -> Client {
    let mut client = None;
    wait_until("a connection", || {
        client = Client::builder().socket(broker.socket()).no_reconnect().connect().ok();
        client.is_some()
    });
    client.unwrap()
}

#[test]
fn an_acceptor_that_panics_is_started_again_over_the_same_socket() {
    let keys = [("restart.initial_delay_ms", "10"), ("restart.max_delay_ms", "20"), ("restart.jitter", "0")];
    let mut broker = Broker::start_faulty("acceptor.accepted=panic#2*3", &keys);
    let first = broker.client();
    let mut clients = Vec::new();
    while lines(&mut broker, &["restarting actor"]).len() < 3 {
        clients.push(connect(&broker));
        assert_eq!(first.request("echo", "hi").unwrap(), b"hi", "who is connected notices nothing");
    }
    for (attempt, delay) in [(1, 10), (2, 20), (3, 20)] {
        let line = "restarting actor actor=acceptor id=- \
                    reason=\"panicked: injected at acceptor.accepted@0 at src/broker/supervision/fault.rs:";
        let end = format!("attempt={attempt} limit=10 delay_ms={delay}");
        assert_eq!(lines(&mut broker, &["WARN", line, &end]).len(), 1, "{end}: {}", broker.process().stderr());
    }
    assert_eq!(connect(&broker).request("echo", "hi").unwrap(), b"hi");
    let status = actor(&first, "acceptor");
    assert_eq!((status.state, status.restarts, status.failures), (ActorState::Running, 3, 3));
    assert_eq!((actor(&first, "router").restarts, actor(&first, "breaker").restarts), (0, 0));
    // One line for each, and nothing of the thread that panicked.
    assert!(!broker.process().stderr().contains("thread '"), "{}", broker.process().stderr());
}

#[test]
fn a_breaker_that_panics_is_started_again_and_the_router_works_on() {
    let keys = [("restart.initial_delay_ms", "10")];
    let mut broker = Broker::start_faulty("breaker.started=panic*2", &keys);
    let client = connect(&broker);
    wait_until("all to run", || {
        let actors = client.status().unwrap().actors;
        actors.iter().all(|actor| actor.state == ActorState::Running)
    });
    let restarts = ["breaker", "router", "acceptor"].map(|name| actor(&client, name).restarts);
    assert_eq!(restarts, [2, 0, 0], "those behind it have not failed themselves");
    assert_eq!(lines(&mut broker, &["restarting actor"]).len(), 2);
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
}

/// The actor of the breakers dies of every second change that it is to tell, of every second look at the time, and of
/// an order. What passes and what does not is as if it had lived, and each change is logged once.
#[test]
fn breakers_count_exactly_while_their_actor_dies_in_every_state() {
    let keys = [
        ("circuit_breaker.timeout_secs", "1"),
        ("restart.initial_delay_ms", "10"),
        ("restart.max_delay_ms", "10"),
        ("restart.max_restarts", "1000"),
    ];
    let faults = "breaker.event=panic#2*9;breaker.timer=panic#2*9;breaker.ordered@1=panic*1";
    let mut broker = Broker::start_faulty(faults, &keys);
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("fragile").unwrap();
    let (mut seen, mut rejected) = (0, 0);
    let breaker = || client.breakers().unwrap().remove(0);
    // Sends a request that is answered so.
    let mut round = |fails: bool| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| client.request("fragile", "?"));
            let request = service.next_timeout(DEADLINE).unwrap().expect("it passes");
            if fails {
                request.fail("no luck").unwrap()
            } else {
                request.reply("good").unwrap()
            }
            assert_eq!(asked.join().unwrap().is_err(), fails);
        });
        seen += 1;
    };
    let mut is_rejected = || {
        assert!(client.request("fragile", "?").unwrap_err().is_breaker_open());
        rejected += 1;
    };

    for failures in 1..=4 {
        round(true);
        assert_eq!((breaker().state, breaker().failures), (BreakerState::Closed, failures));
    }
    round(true);
    is_rejected();
    assert_eq!(breaker().state, BreakerState::Open);
    wait_until("the first trial", || breaker().state == BreakerState::HalfOpen);
    round(true);
    is_rejected();
    assert_eq!((breaker().state, breaker().failed_trials), (BreakerState::Open, 1));
    wait_until("the second trial", || breaker().state == BreakerState::HalfOpen);
    round(false);
    assert_eq!((breaker().state, breaker().successes), (BreakerState::HalfOpen, 1));
    round(false);
    assert_eq!(breaker().state, BreakerState::Closed);

    // An order of which the actor dies once it is obeyed: its sender does not know, and says it again.
    wait_until("an actor", || client.set_breaker("fragile", BreakerOrder::Open, None).is_ok());
    is_rejected();
    wait_until("an actor", || client.set_breaker("fragile", BreakerOrder::Auto, None).is_ok());
    round(false);
    assert!(service.next_timeout(std::time::Duration::ZERO).unwrap().is_none(), "one more than {seen}");
    assert_eq!((seen, breaker().rejected, breaker().failures), (9, rejected, 0));

    let expected = [
        "from=closed to=open reason=error_reply failures=5 retry_after_ms=1000",
        "from=open to=half_open reason=time_over",
        "from=half_open to=open reason=error_reply failures=1 retry_after_ms=2000",
        "from=open to=half_open reason=time_over",
        "from=half_open to=closed reason=recovered",
        "from=closed to=forced_open reason=manual connection=",
        "from=forced_open to=forced_open reason=manual connection=",
        "from=forced_open to=closed reason=manual connection=",
    ];
    // However often the order was said.
    let mut logged = Vec::new();
    wait_until("the last line", || {
        logged = lines(&mut broker, &[" breaker service=fragile "]);
        logged.dedup_by_key(|line| line.split_once("service=").expect("a service").1.to_owned());
        logged.len() >= expected.len()
    });
    assert_eq!(logged.len(), expected.len(), "{logged:#?}");
    for (line, expected) in logged.iter().zip(expected) {
        assert!(line.contains(expected), "{line} is not {expected}");
    }
    for point in ["breaker.event", "breaker.timer", "breaker.ordered"] {
        let deaths = lines(&mut broker, &["restarting actor actor=breaker", &format!("injected at {point}")]).len();
        assert!(deaths > 0, "{point}");
    }
    assert_eq!(actor(&client, "router").restarts, 0);
}

#[test]
fn a_router_that_panics_is_started_again_and_its_clients_stay() {
    let keys = [("restart.initial_delay_ms", "10"), ("restart.stable_secs", "1")];
    let mut broker = Broker::start_faulty("router.message=panic#5*1", &keys);
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = other.subscribe("t").unwrap();
    while lines(&mut broker, &["restarting actor actor=router id=-"]).is_empty() {
        client.status().unwrap();
    }
    client.publish("t", "after").unwrap();
    let message = subscription.next_timeout(DEADLINE).unwrap().expect("a message");
    assert_eq!(message.payload(), b"after");
    broker.process().wait_for("actor stable actor=router attempt=1");
    assert_eq!(lines(&mut broker, &["INFO", "actor stable"]).len(), 1);
    assert_eq!(actor(&client, "router").restarts, 1);
    assert_eq!(connect(&broker).request("echo", "hi").unwrap(), b"hi", "the acceptor came back with it");
}

#[test]
fn an_actor_that_fails_too_often_ends_the_process_and_clients_are_told() {
    let keys = [("restart.initial_delay_ms", "1"), ("restart.max_restarts", "3")];
    let mut broker = Broker::start_faulty("acceptor.accepted=panic#2", &keys);
    let client = broker.client();
    wait_until("the end", || {
        drop(Client::builder().socket(broker.socket()).no_reconnect().connect());
        broker.process().has_ended()
    });
    assert_eq!(broker.process().code(), 69);
    assert!(client.closed(Some(DEADLINE)).unwrap_err().is_disconnected());
    let log = broker.process().stderr();
    assert_eq!(lines(&mut broker, &["restarting actor actor=acceptor"]).len(), 3, "{log}");
    let words = ["ERROR", "giving up on actor actor=acceptor", "restarts=3 period_secs=60"];
    assert_eq!(lines(&mut broker, &words).len(), 1);
    assert!(log.contains("error: acceptor failed 4 times within 60 s"), "{log}");
    assert!(!broker.socket().exists());
}

#[test]
fn two_hundred_connections_whose_actors_panic_leave_nothing() {
    // Every second one. Nobody comes back for a session, so none is kept.
    let keys = [("ipc.max_connections", "4"), ("restart.resume_window_ms", "0")];
    let mut broker = Broker::start_faulty("connection.welcomed=panic#2*200", &keys);
    let watch = broker.client();
    let mut subscription = watch.subscribe("t").unwrap();
    let descriptors = broker.descriptors_at_rest();
    while actor(&watch, "connection").failures < 200 {
        let client = connect(&broker);
        if let Err(error) = client.publish("t", "x").and_then(|()| client.flush()) {
            assert!(error.is_disconnected(), "{error}");
        }
        while subscription.next_timeout(std::time::Duration::ZERO).unwrap().is_some() {}
    }
    wait_until("connections to go", || watch.status().unwrap().connections.len() == 1);
    wait_until("descriptors to go", || broker.descriptors() == descriptors);
    let logged =
        lines(&mut broker, &["WARN", "restarting actor actor=connection", "panicked: injected at connection.welcomed"]);
    assert_eq!(logged.len(), 200);
    assert!(logged.iter().all(|line| line.contains("attempt=1 limit=1000 delay_ms=0")), "{}", logged[0]);
    let status = actor(&watch, "connection");
    assert_eq!((status.state, status.restarts), (ActorState::Running, 200));
    assert_eq!(watch.status().unwrap().subscriptions, 1);
}

/// Each panic is a restart; the session, its subscriptions and what was not read are there afterwards.
#[test]
fn a_connection_that_panics_goes_on_with_its_session() {
    let mut broker = Broker::start_faulty("connection.received=panic#3*4;connection.awaits=panic*1", &[]);
    let client = broker.builder().connect().unwrap();
    let mut subscription = client.subscribe("t").unwrap();
    let id = client.id();
    while lines(&mut broker, &["restarting actor actor=connection", "injected at connection.received"]).len() < 4 {
        client.publish("t", "x").unwrap();
        client.status().unwrap();
        assert_eq!(subscription.next_timeout(DEADLINE).unwrap().expect("a message").payload(), b"x");
    }
    assert_eq!(client.status().unwrap().subscriptions, 1);
    assert_eq!(client.id(), id, "the same session");
    // The one that panicked while it awaited its peer was followed by another, which waited further.
    let restarts =
        lines(&mut broker, &["WARN", &format!("restarting actor actor=connection id={id} reason=\"panicked: ")]);
    assert_eq!(
        restarts.iter().filter(|line| line.contains("attempt=2 limit=1000 delay_ms=0")).count(),
        1,
        "{restarts:#?}"
    );
    assert_eq!(restarts.len(), 5, "{restarts:#?}");
    wait_until("the last to hold", || lines(&mut broker, &["INFO", "actor stable actor=connection"]).len() == 4);
    assert_eq!(actor(&client, "connection").restarts, 5);
}

/// A connection that panics in `started`, before the router knows of it.
#[test]
fn a_connection_that_never_came_to_be_gives_its_permit_back() {
    let mut broker = Broker::start_faulty("connection.started=panic*20", &[("ipc.max_connections", "1")]);
    let client = connect(&broker);
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    assert_eq!(lines(&mut broker, &["actor failed actor=connection id=-"]).len(), 20);
}

#[test]
fn an_upstream_that_panics_is_dialled_again() {
    let file = |folder: &std::path::Path| {
        let socket = folder.join("x");
        format!("[[upstream]]\nname = \"x\"\nsocket_path = {socket:?}\ninitial_delay_ms = 1\nmax_restarts = 100000\n")
    };
    let mut broker = Broker::start_configured(file, "connection.welcomed=panic*3;upstream.dialled=panic*2", &[]);
    let listener = lapce_ipc::client::Listener::bind(broker.folder().join("x")).unwrap();
    let mut client = None;
    wait_until("it to stay", || {
        client = listener.accept().ok().filter(|client| client.request("echo", "hi").is_ok());
        client.is_some()
    });
    assert_eq!(lines(&mut broker, &["restarting actor actor=upstream id=x", "injected at upstream.dialled"]).len(), 2);
    assert_eq!(
        lines(&mut broker, &["restarting actor actor=upstream id=x", "injected at connection.welcomed"]).len(),
        3
    );
    // Those that died are forgotten by the router, too.
    let watch = broker.client();
    wait_until("the others to go", || watch.status().unwrap().connections.len() == 2);
}

#[test]
fn a_thread_that_hangs_is_told_and_then_the_process_aborts() {
    for (thread, fault) in [
        ("worker-0", "connection.received=stall:600000*1"),
        ("router", "router.message=stall:600000*1"),
        ("main", "acceptor.accepted=stall:600000*1"),
    ] {
        let mut broker = Broker::start_faulty(fault, &[("restart.watchdog_abort_ms", "1000")]);
        let socket = broker.socket();
        let client = std::thread::spawn(move || {
            Client::builder().socket(socket).no_reconnect().connect().and_then(|client| client.subscribe("t").map(drop))
        });
        assert_eq!(broker.process().code(), -6, "SIGABRT: {}", broker.process().stderr());
        let log = broker.process().stderr();
        assert!(log.contains(&format!("thread stuck thread={thread} late_ms=")), "{log}");
        assert!(log.contains(&format!("thread stuck, aborting thread={thread} late_ms=")), "{log}");
        assert!(client.join().unwrap().is_err());
    }
}

#[test]
fn a_thread_that_is_late_and_turns_again_is_told_and_forgiven() {
    let mut broker = Broker::start_faulty("router.message=stall:2500*1", &[]);
    let client = broker.client();
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    broker.process().wait_for("thread recovered thread=router");
    assert_eq!(lines(&mut broker, &["ERROR", "thread stuck thread=router late_ms="]).len(), 1);
    assert_eq!(actor(&client, "router").restarts, 0);
}
