//! The circuit breaker as people meet it: a broker, responders and requesters as processes, the command line, the log.

mod support;

use lapce_ipc::client::{BreakerState, Client, ErrorKind, ReplyError, RequestOptions, Service};
use std::collections::BTreeSet;
use std::time::Duration;
use support::role::{Child, heard, role, tell};
use support::{Broker, DEADLINE, code, command, output, stderr, wait_until, work_for};

/// A broker whose breakers open for two seconds at first, and for eight at most.
fn broker() -> Broker {
    Broker::start_with(&[("circuit_breaker.timeout_secs", "2"), ("circuit_breaker.max_timeout_secs", "8")])
}

/// A responder in this process that answers as it is told, and knows how many requests it has seen.
struct Responder {
    service: Service,
    seen: u32,
    _client: Client,
}

impl Responder {
    fn new(broker: &Broker, name: &str) -> Responder {
        let client = broker.client();
        Responder { service: client.serve(name).unwrap(), seen: 0, _client: client }
    }

    /// The next request; it must come.
    #[track_caller]
    fn take(&mut self) -> lapce_ipc::client::Request {
        self.seen += 1;
        self.service.next_timeout(DEADLINE).unwrap().expect("a request in time")
    }

    /// Nothing has come. Whatever was sent before is routed: its requester has its outcome.
    #[track_caller]
    fn has_seen(&mut self, requests: u32) {
        assert!(self.service.next_timeout(Duration::ZERO).unwrap().is_none(), "one more than {}", self.seen);
        assert_eq!(self.seen, requests);
    }
}

/// `request SERVICE` of the command line, which the responder answers.
#[track_caller]
fn ask(broker: &Broker, responder: &mut Responder, answer: impl FnOnce(lapce_ipc::client::Request)) -> i32 {
    let mut request = broker.spawn(&["request", "fragile", "?"]);
    answer(responder.take());
    request.code()
}

fn fails(request: lapce_ipc::client::Request) {
    request.fail("no luck").unwrap();
}

fn succeeds(request: lapce_ipc::client::Request) {
    request.reply("good").unwrap();
}

/// What `breaker list --json` says of `fragile`.
#[track_caller]
fn listed(broker: &Broker) -> serde_json::Value {
    let output = broker.run(&["breaker", "list", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let all: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    all.into_iter().find(|breaker| breaker["service"] == "fragile").expect("its breaker")
}

#[track_caller]
fn wait_for_state(broker: &Broker, state: &str) {
    wait_until(state, || listed(broker)["state"] == state);
}

/// The log's lines of breakers, from `service=` on.
fn log(broker: &mut Broker) -> Vec<String> {
    let log = broker.process().stderr();
    let lines = log.lines().filter_map(|line| line.split_once(" breaker service=")).map(|(_, rest)| rest.to_owned());
    lines.collect()
}

#[track_caller]
fn rejected(broker: &Broker) {
    let output = broker.run(&["request", "fragile", "?"]);
    assert_eq!(code(&output), 75, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("breaker open") && stderr(&output).contains("try again in"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn five_failures_open_it_probes_are_counted_a_failed_one_doubles_the_wait_and_two_successes_close_it() {
    let mut broker = broker();
    let mut responder = Responder::new(&broker, "fragile");
    let mut events = broker.client().subscribe("$sys.breaker.>").unwrap();
    for failures in 1..=4 {
        assert_eq!(ask(&broker, &mut responder, fails), 1);
        assert_eq!((&listed(&broker)["failures"], &listed(&broker)["opened"]), (&failures.into(), &0.into()));
    }
    // From within, so that it is done long before the breaker's time is over.
    let client = broker.client();
    std::thread::scope(|scope| {
        let fifth = scope.spawn(|| client.request("fragile", "?").unwrap_err());
        fails(responder.take());
        assert!(fifth.join().unwrap().is_error_reply());
    });
    let error = client.request("fragile", "?").unwrap_err();
    let after = error.retry_after().expect("when to try again");
    assert!(error.is_breaker_open() && after <= Duration::from_secs(2), "{error}");
    responder.has_seen(5);
    assert_eq!((&listed(&broker)["opened"], &listed(&broker)["rejected"]), (&1.into(), &1.into()));

    // Its time is over: exactly three pass, whatever comes besides.
    wait_for_state(&broker, "half_open");
    let mut requests: Vec<_> = (0..3).map(|_| broker.spawn(&["request", "fragile", "?"])).collect();
    let mut probes: Vec<_> = (0..3).map(|_| responder.take()).collect();
    assert_eq!((&listed(&broker)["probes"], &listed(&broker)["successes"]), (&3.into(), &0.into()));
    for _ in 0..3 {
        rejected(&broker);
    }
    responder.has_seen(8);

    // One of them fails, and the wait is twice as long. What the others bring is too late to count.
    fails(probes.remove(0));
    wait_until("it to open again", || listed(&broker)["opened"] == 2);
    probes.into_iter().for_each(succeeds);
    let codes: Vec<i32> = requests.iter_mut().map(|request| request.code()).collect();
    assert_eq!((codes.iter().sum::<i32>(), listed(&broker)["failed_trials"].as_u64()), (1, Some(1)));

    // Two successes close it.
    wait_for_state(&broker, "half_open");
    assert_eq!(ask(&broker, &mut responder, succeeds), 0);
    assert_eq!((&listed(&broker)["state"], &listed(&broker)["successes"]), (&"half_open".into(), &1.into()));
    assert_eq!(ask(&broker, &mut responder, succeeds), 0);
    assert_eq!(listed(&broker)["state"], "closed");
    responder.has_seen(10);

    let expected = [
        "fragile from=closed to=open reason=error_reply failures=5 retry_after_ms=2000",
        "fragile from=open to=half_open reason=time_over",
        "fragile from=half_open to=open reason=error_reply failures=1 retry_after_ms=4000",
        "fragile from=open to=half_open reason=time_over",
        "fragile from=half_open to=closed reason=recovered",
    ];
    wait_until("the log's last line", || log(&mut broker).len() >= expected.len());
    assert_eq!(log(&mut broker), expected);
    let received: Vec<_> = expected.iter().map(|_| events.next_timeout(DEADLINE).unwrap().expect("an event")).collect();
    assert!(received.iter().all(|event| event.topic() == "$sys.breaker.fragile"));
    let first: serde_json::Value = serde_json::from_slice(received[0].payload()).unwrap();
    assert_eq!((&first["from"], &first["to"], &first["failures"]), (&"closed".into(), &"open".into(), &5.into()));
    let last: serde_json::Value = serde_json::from_slice(received[4].payload()).unwrap();
    assert_eq!((&last["to"], &last["reason"]), (&"closed".into(), &"recovered".into()));
}

#[test]
fn a_program_that_fails_is_spared_from_the_sixth_request_on() {
    let broker = broker();
    let seen = broker.folder().join("seen");
    let line = format!("echo x >> {}; echo broken >&2; exit 3", seen.display());
    let mut reply = broker.spawn(&["reply", "fragile", "--exec", &line]);
    reply.wait_for("serving\n");
    for _ in 0..5 {
        let output = broker.run(&["request", "fragile", "?"]);
        assert_eq!((code(&output), stderr(&output).as_str()), (1, "error: broken\n"));
    }
    rejected(&broker);
    assert_eq!(std::fs::read_to_string(seen).unwrap().lines().count(), 5);
    let status = broker.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["services"][0]["breaker"], "open", "{status}");
    let status = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    assert!(status.lines().any(|line| line.contains("fragile") && line.ends_with(" open")), "{status}");
}

#[test]
fn wrong_requests_close_a_service_for_nobody_and_failures_do() {
    let broker = broker();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("upper").unwrap();
    std::thread::spawn(move || {
        service.run(|request| {
            let text = std::str::from_utf8(request.payload())?;
            if text == "fail" { Err(ReplyError::failed("broken")) } else { Ok(text.to_uppercase()) }
        })
    });
    for _ in 0..20 {
        let error = client.request("upper", [0xff]).unwrap_err();
        assert!(error.reply_text().is_some_and(|text| text.contains("utf-8")), "{error}");
    }
    assert_eq!(client.request("upper", "hi").unwrap(), b"HI");
    assert_eq!(
        (client.breakers().unwrap()[0].state, client.breakers().unwrap()[0].failures),
        (BreakerState::Closed, 0)
    );
    for _ in 0..5 {
        assert_eq!(client.request("upper", "fail").unwrap_err().reply_text(), Some("broken"));
    }
    assert_eq!(client.request("upper", "hi").unwrap_err().kind(), ErrorKind::BreakerOpen);
}

#[test]
fn a_program_rejects_a_wrong_request_with_exit_code_65() {
    let broker = broker();
    let mut reply = broker.spawn(&["reply", "fragile", "--exec", "echo wrong >&2; exit 65"]);
    reply.wait_for("serving\n");
    for _ in 0..7 {
        let output = broker.run(&["request", "fragile", "?"]);
        assert_eq!((code(&output), stderr(&output).as_str()), (1, "error: wrong\n"));
    }
    assert_eq!(broker.client().breakers().unwrap()[0].failures, 0);
}

#[test]
fn a_responder_that_dies_of_each_request_comes_back_to_an_open_breaker() {
    let mut broker = Broker::start_with(&[("circuit_breaker.timeout_secs", "60")]);
    for _ in 0..5 {
        let mut child = Child::ready(&broker, "dies");
        assert_eq!(code(&broker.run(&["request", "fragile", "?"])), 75);
        child.ended();
        wait_until("it to be gone", || broker.client().status().unwrap().connections.len() == 1);
    }
    wait_until("the log's line", || log(&mut broker).len() == 1);
    let expected = "fragile from=closed to=open reason=responder_lost failures=5 retry_after_ms=60000";
    assert_eq!(log(&mut broker), [expected]);
    let mut healthy = Responder::new(&broker, "fragile");
    rejected(&broker);
    healthy.has_seen(0);
    assert_eq!(code(&broker.run(&["breaker", "close", "fragile"])), 0);
    assert_eq!(ask(&broker, &mut healthy, succeeds), 0);
}

#[test]
fn a_result_after_the_deadline_changes_nothing() {
    let broker = Broker::start_with(&[("circuit_breaker.failure_threshold", "1000")]);
    let mut responder = Responder::new(&broker, "fragile");
    let client = broker.client();
    // The responder may be too slow to see it in time; then it is asked again, and given more time.
    let mut failures = 0;
    let late = loop {
        failures += 1;
        let (asking, timeout) = (client.clone(), Duration::from_millis(100 * failures));
        let asked = std::thread::spawn(move || {
            asking
                .request_with("fragile", "?", RequestOptions { timeout: Some(timeout), ..RequestOptions::default() })
                .unwrap_err()
        });
        let taken = responder.service.next_timeout(timeout).unwrap();
        let error = asked.join().unwrap();
        assert!(error.is_deadline_exceeded(), "{error}");
        if let Some(request) = taken {
            break request;
        }
    };
    assert_eq!(listed(&broker)["failures"], failures);
    // A success would begin the count anew. The client itself holds back what it knows to be late, so it is told to
    // the broker in the tests of the router, too.
    let _ = late.reply("too late");
    client.flush().unwrap();
    assert_eq!((&listed(&broker)["failures"], &listed(&broker)["state"]), (&failures.into(), &"closed".into()));
}

#[test]
fn people_open_it_and_close_it_and_give_it_back() {
    let mut broker = broker();
    let mut responder = Responder::new(&broker, "fragile");
    let output = broker.run(&["breaker", "open", "fragile", "--json"]);
    let set: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&set["service"], &set["state"]), (&"fragile".into(), &"forced_open".into()));
    let output = broker.run(&["request", "fragile", "?"]);
    assert_eq!((code(&output), stderr(&output).contains("breaker open")), (75, true));
    responder.has_seen(0);
    let error = broker.client().request("fragile", "?").unwrap_err();
    assert_eq!((error.is_breaker_open(), error.retry_after()), (true, None), "nobody knows when");

    let output = broker.run(&["breaker", "close", "fragile", "--for", "90m"]);
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("fragile  forced_closed") && output.contains(" 1 h "), "{output}");
    for _ in 0..6 {
        assert_eq!(ask(&broker, &mut responder, fails), 1);
    }
    assert_eq!(code(&broker.run(&["breaker", "auto", "fragile"])), 0);
    assert_eq!((&listed(&broker)["state"], &listed(&broker)["failures"]), (&"closed".into(), &0.into()));
    assert_eq!(code(&broker.run(&["breaker", "auto", "fragile"])), 0, "there is nothing left to give back");

    // It ends by itself, with nobody asking.
    assert_eq!(code(&broker.run(&["breaker", "open", "fragile", "--for", "200ms"])), 0);
    wait_until("the log's last line", || log(&mut broker).len() >= 5);
    let log: Vec<String> =
        log(&mut broker).iter().map(|line| line.split(" connection=").next().unwrap().into()).collect();
    assert_eq!(
        log,
        [
            "fragile from=closed to=forced_open reason=manual",
            "fragile from=forced_open to=forced_closed reason=manual for_ms=5400000",
            "fragile from=forced_closed to=closed reason=manual",
            "fragile from=closed to=forced_open reason=manual retry_after_ms=200",
            "fragile from=forced_open to=closed reason=time_over",
        ]
    );
    assert_eq!(ask(&broker, &mut responder, succeeds), 0);
}

#[test]
fn what_makes_no_sense_is_told_clearly() {
    let broker = broker();
    for order in ["open", "close", "auto"] {
        let output = broker.run(&["breaker", order, "nobody"]);
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).starts_with("error: unknown service: nobody"), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    let refused = broker.run(&["breaker", "open", "echo"]);
    assert_eq!((code(&refused), stderr(&refused).contains("has no breaker")), (1, true));
    for wrong in [&["open"][..], &["open", "a b"], &["open", "x", "--for", "5"], &["auto", "x", "--for", "5m"], &[]] {
        assert_eq!(code(&broker.run(&[&["breaker"], wrong].concat())), 64, "{wrong:?}");
    }
    let listed = broker.run(&["breaker", "list"]);
    assert_eq!((code(&listed), listed.stdout.as_slice()), (0, &b"breakers (0)\n"[..]));
    let nowhere = output(
        {
            let mut nowhere = command(support::LAPCE_IPC);
            nowhere.args(["--socket", "/nonexistent/s", "breaker", "list"]);
            nowhere
        },
        b"",
    );
    assert_eq!(code(&nowhere), 69);
}

#[test]
fn each_service_has_the_settings_of_its_own_table() {
    let folder = tempfile::tempdir().unwrap();
    let (file, socket) = (folder.path().join("config.toml"), folder.path().join("ipc.sock"));
    let text = "[circuit_breaker]\nfailure_threshold = 7\n\
                [circuit_breaker.services.fragile]\nfailure_threshold = 1\ntimeout_secs = 9\n";
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut server = command(support::IPC_SERVER_MAIN);
    server.arg("--config").arg(&file).arg("--socket").arg(&socket);
    let mut server = support::Process::start(server);
    server.wait_for("hint:");
    let client = Client::builder().socket(&socket).connect().unwrap();
    let services = ["fragile", "other"].map(|name| client.serve(name).unwrap());
    for (service, name) in services.into_iter().zip(["fragile", "other"]) {
        let asking = client.clone();
        let asked = std::thread::spawn(move || asking.request(name, "?").unwrap_err());
        let mut service = service;
        fails(service.next_timeout(DEADLINE).unwrap().expect("a request"));
        assert!(asked.join().unwrap().is_error_reply());
        let breaker = client.breakers().unwrap().into_iter().find(|b| b.service.as_str() == name).unwrap();
        let expected = if name == "fragile" { (0, 1, 1) } else { (1, 0, 7) };
        assert_eq!((breaker.failures, breaker.opened, breaker.failure_threshold), expected);
        assert_eq!(breaker.ends_in_ms.is_some_and(|ms| (2000..=9000).contains(&ms)), name == "fragile");
    }
}

#[test]
fn one_of_three_responders_killed_with_five_calls_is_one_failure_and_the_others_serve_on() {
    let broker = broker();
    let client = broker.client();
    let mut first = Child::ready(&broker, "holds");
    let asked: Vec<_> = (0..5).map(|_| client.request_stream("fragile", "?").unwrap()).collect();
    first.hears("five");
    let _others = [Child::ready(&broker, "serves"), Child::ready(&broker, "serves")];
    first.kill();
    for mut call in asked {
        let error = call.next().unwrap().unwrap_err();
        assert!(error.is_responder_lost(), "{error}");
    }
    let breaker = client.breakers().unwrap().remove(0);
    assert_eq!((breaker.state, breaker.failures, breaker.opened), (BreakerState::Closed, 1, 0));
    let served: BTreeSet<_> = (0..10).map(|_| client.request("fragile", "?").unwrap()).collect();
    assert_eq!(served.len(), 2, "both have replied");
    assert_eq!(client.breakers().unwrap()[0].failures, 0);
}

#[test]
fn deadlines_that_a_service_could_never_meet_close_it_for_nobody() {
    let broker = broker();
    let (client, other) = (broker.client(), broker.client());
    let mut service = other.serve("fragile").unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Some(Ok(request)) = service.next() {
            if request.payload() == b"hang" {
                held.push(request);
                continue;
            }
            work_for(Duration::from_millis(20));
            let _ = request.reply("done");
        }
    });
    let within = |ms| RequestOptions { timeout: Some(Duration::from_millis(ms)), ..RequestOptions::default() };
    for _ in 0..2 {
        for _ in 0..5 {
            let error = client.request_with("fragile", "?", within(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        }
        let breaker = client.breakers().unwrap().remove(0);
        assert_eq!((breaker.state, breaker.failures), (BreakerState::Closed, 0));
        assert_eq!(client.request("fragile", "?").unwrap(), b"done");
    }
    // Deadlines that it has met so far count.
    let asked: Vec<_> = (0..5).map(|_| client.request_stream_with("fragile", "hang", within(3000)).unwrap()).collect();
    asked.into_iter().for_each(|mut call| assert!(call.next().unwrap().unwrap_err().is_deadline_exceeded()));
    wait_until("it to open", || client.breakers().unwrap()[0].opened == 1);
}

/// The part of a child process.
#[test]
fn child() {
    let Some(role) = role() else { return };
    let client = Client::connect().unwrap();
    match role.as_str() {
        "dies" => {
            let mut service = client.serve("fragile").unwrap();
            tell("ready");
            let _request = service.next_timeout(DEADLINE).unwrap().expect("a request");
            support::role::die();
        }
        "holds" => {
            let mut service = client.serve("fragile").unwrap();
            tell("ready");
            let _calls: Vec<_> = (0..5).map(|_| service.next().unwrap().unwrap()).collect();
            tell("five");
            heard();
        }
        "serves" => {
            let mut service = client.serve("fragile").unwrap();
            tell("ready");
            while let Some(Ok(request)) = service.next() {
                let _ = request.reply(std::process::id().to_le_bytes());
            }
        }
        other => {
            tell(other);
            heard();
        }
    }
}
