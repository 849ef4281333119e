//! The health endpoints of a real broker, in each of its states, and what becomes of bad input.

mod support;

use lapce_ipc::client::{BreakerOrder, Client};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;
use support::http::{Answer, address_in, connect, read, talk};
use support::{Broker, DEADLINE, IPC_SERVER_MAIN, Process, command, output, stderr, wait_until};

const PATHS: [&str; 5] = ["/live", "/ready", "/health", "/api/status", "/metrics"];

/// Waits until a path answers with this code.
#[track_caller]
fn answers(broker: &mut Broker, path: &str, code: u16) -> Answer {
    let mut answer = broker.get(path);
    wait_until(&format!("{code} from {path}"), || {
        answer = broker.get(path);
        answer.code == code
    });
    answer
}

/// A broker that is up: it answers ready.
fn ready(keys: &[(&str, &str)]) -> Broker {
    let mut broker = Broker::start_with(keys);
    answers(&mut broker, "/ready", 200);
    broker
}

// --------------------------------------------------------------------------------------------------------- the states

#[test]
fn a_running_broker_is_live_ready_and_healthy() {
    let mut broker = ready(&[]);
    let client = broker.client();
    assert_eq!(broker.get("/live").json(), serde_json::json!({ "live": true }));
    assert_eq!(broker.get("/ready").json(), serde_json::json!({ "ready": true, "reasons": [] }));
    let health = broker.get("/health");
    assert_eq!(health.code, 200);
    let health = health.json();
    assert_eq!((&health["status"], &health["ready"]), (&"healthy".into(), &true.into()), "{health}");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime_ms"].as_u64().is_some(), "{health}");
    let components = health["components"].as_object().unwrap();
    let names: Vec<_> = components.keys().map(String::as_str).collect();
    assert_eq!(names, ["acceptor", "actors", "breakers", "connections", "router", "slots", "threads"]);
    assert_eq!((&components["connections"]["now"], &components["connections"]["limit"]), (&1.into(), &1000.into()));
    assert!(components["router"]["heartbeat_age_ms"].as_u64().unwrap() < 60_000, "{health}");
    drop(client);
}

#[test]
fn api_status_is_what_the_command_line_prints() {
    let mut broker = ready(&[]);
    let client = broker.client_named("watched");
    let _service = client.serve("a.b").unwrap();
    let printed = broker.run(&["status", "--json"]);
    let mut printed: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    let mut body = broker.get("/api/status").json();
    wait_until("the command's own connection to be gone", || {
        body = broker.get("/api/status").json();
        body["connections"].as_array().unwrap().len() == 1
    });
    // The same members throughout; of the values those that do not move.
    let members = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&body), members(&printed));
    let connection = printed["connections"].as_array().unwrap().iter().find(|c| c["name"] == "watched").unwrap();
    assert_eq!(members(&body["connections"][0]), members(connection));
    for member in ["version", "pid", "socket", "config_file", "draining", "services", "slots_total", "actors"] {
        assert_eq!(body[member].take(), printed[member].take(), "{member}");
    }
    assert_eq!(body["connections"][0]["name"], "watched");
}

#[test]
fn a_breaker_that_is_open_degrades_the_health_and_nothing_else() {
    let mut broker = ready(&[]);
    let client = broker.client();
    let _service = client.serve("fragile").unwrap();
    client.set_breaker("fragile", BreakerOrder::Open, None).unwrap();
    let mut health = serde_json::Value::Null;
    wait_until("the breaker to be seen", || {
        health = broker.get("/health").json();
        health["status"] == "degraded"
    });
    assert_eq!(health["components"]["breakers"]["not_closed"]["fragile"], "forced_open");
    for path in ["/health", "/live", "/ready"] {
        assert_eq!(broker.get(path).code, 200, "{path}");
    }
    let metrics = broker.get("/metrics");
    assert_eq!(metrics.sample(r#"lapce_ipc_breaker_state{service="fragile",state="forced_open"}"#), 1.0);
    assert_eq!(metrics.sample(r#"lapce_ipc_breaker_state{service="fragile",state="closed"}"#), 0.0);
    client.set_breaker("fragile", BreakerOrder::Auto, None).unwrap();
    wait_until("the health to be good again", || broker.get("/health").json()["status"] == "healthy");
}

#[test]
fn a_broker_that_drains_is_live_and_not_ready() {
    let mut broker = ready(&[("ipc.drain_timeout_ms", "600000")]);
    let (asking, answering) = (broker.client(), broker.client());
    let mut service = answering.serve("slow").unwrap();
    let request = std::thread::spawn(move || asking.request("slow", "hi"));
    let request_under_way = service.next().unwrap().unwrap();
    broker.process().signal("TERM");
    let answer = answers(&mut broker, "/ready", 503);
    assert_eq!(answer.json()["reasons"], serde_json::json!(["the broker is shutting down"]));
    assert_eq!(broker.get("/live").code, 200);
    let health = broker.get("/health");
    assert_eq!((health.code, &health.json()["status"]), (200, &"degraded".into()));
    assert_eq!(broker.get("/api/status").json()["draining"], true);
    assert_eq!(broker.get("/metrics").sample("lapce_ipc_ready"), 0.0);
    request_under_way.reply("ho").unwrap();
    assert_eq!(request.join().unwrap().unwrap(), b"ho");
    assert_eq!(broker.process().code(), 0);
}

// -------------------------------------------------------------------------------------------------------- the address

#[test]
fn a_port_that_is_taken_is_one_warning_and_is_tried_again() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut broker = Broker::start_with(&[
        ("health_server.port", &port),
        ("restart.initial_delay_ms", "1"),
        ("restart.max_delay_ms", "1"),
    ]);
    let client = broker.client();
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    let failures = |client: &Client| {
        let actors = client.status().unwrap().actors;
        actors.iter().find(|actor| actor.name == "health").unwrap().failures
    };
    wait_until("further attempts", || failures(&client) >= 3);
    let warnings = |log: &str| log.lines().filter(|line| line.contains(" WARN ")).count();
    let log = broker.process().stderr();
    assert_eq!(log.matches("cannot bind health endpoint, will retry address=").count(), 1, "{log}");
    assert_eq!(warnings(&log), 1, "{log}");
    drop(taken);
    assert_eq!(answers(&mut broker, "/ready", 200).json()["ready"], true);
    assert_eq!(warnings(&broker.process().stderr()), 1);
    drop(client);
}

#[test]
fn endpoints_that_are_required_end_the_broker_when_the_port_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut server = command(IPC_SERVER_MAIN);
    server.arg("--socket").arg(folder.path().join("ipc.sock"));
    server.arg("--health-addr").arg(taken.local_addr().unwrap().to_string());
    server.env("LAPCE_IPC__HEALTH_SERVER__REQUIRED", "true");
    let output = output(server, b"");
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains("health_server.required"), "{}", stderr(&output));
    assert!(!folder.path().join("ipc.sock").exists());
}

#[test]
fn the_command_line_says_where_to_listen_and_an_open_port_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = command(IPC_SERVER_MAIN);
    server.arg("--socket").arg(folder.path().join("ipc.sock")).args(["--health-addr", "0.0.0.0:0"]);
    let mut server = Process::start(server);
    server.wait_for("hint:");
    let log = server.stderr();
    let address = address_in(&log).unwrap();
    assert!(address.ip().is_unspecified() && address.port() != 0, "{address}");
    assert!(log.contains(" WARN ") && log.contains("health endpoint reachable without a token"), "{log}");
    let mut to = address;
    to.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    let answer = talk(to, b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    assert_eq!(Answer::parse(&answer).unwrap().code, 200);
}

// -------------------------------------------------------------------------------------------------------- who may read

#[test]
fn only_our_hosts_are_answered() {
    let mut broker = ready(&[("health_server.allowed_hosts", "broker.example,other")]);
    for path in PATHS.into_iter().chain(["/nothing"]) {
        let code = if path == "/nothing" { 404 } else { 200 };
        for host in ["localhost", "127.0.0.1:9", "[::1]:80", "10.9.8.7", "Broker.Example:9090", "other"] {
            assert_eq!(broker.ask("GET", path, &format!("Host: {host}\r\n")).code, code, "{path} {host}");
        }
        for host in ["evil.example", "evil.example:9090", "localhost.evil.example", "\u{e9}"] {
            let answer = broker.ask("GET", path, &format!("Host: {host}\r\n"));
            assert_eq!(answer.code, 421, "{path} {host}: {answer:?}");
            assert!(!answer.body.contains(host), "{answer:?}");
        }
        assert_eq!(broker.ask("GET", path, "").code, 400, "{path}");
        let two = broker.ask("GET", path, "Host: localhost\r\nHost: evil.example\r\n");
        assert!([400, 421].contains(&two.code), "{path} {two:?}");
    }
    // The target may name a host, too.
    assert_eq!(broker.ask("GET", "http://evil.example/live", "Host: localhost\r\n").code, 421);
    assert_eq!(broker.ask("GET", "http://localhost/live", "Host: localhost\r\n").code, 200);
}

#[test]
fn a_token_opens_all_but_what_probes_ask() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "correct-horse\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut broker = ready(&[("health_server.token_file", file.to_str().unwrap())]);
    let with = |token: &str| format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n");
    for path in ["/health", "/api/status", "/metrics", "/nothing"] {
        let good = if path == "/nothing" { 404 } else { 200 };
        assert_eq!(broker.ask("GET", path, &with("correct-horse")).code, good, "{path}");
        for wrong in ["correct-hors", "correct-horse2", "incorrect-horse"] {
            let answer = broker.ask("GET", path, &with(wrong));
            assert_eq!((answer.code, answer.header("www-authenticate")), (401, Some("Bearer")), "{path} {wrong}");
        }
        assert_eq!(broker.get(path).code, 401, "{path}");
    }
    for path in ["/live", "/ready"] {
        assert_eq!(broker.get(path).code, 200, "{path}");
    }
    let log = broker.process().stderr();
    assert!(!log.contains("correct-horse"), "{log}");
}

#[test]
fn a_token_file_that_has_none_ends_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "\n").unwrap();
    for file in [file.as_path(), &folder.path().join("none")] {
        let mut server = command(IPC_SERVER_MAIN);
        server.arg("--socket").arg(folder.path().join("ipc.sock")).args(["--health-addr", "127.0.0.1:0"]);
        server.env("LAPCE_IPC__HEALTH_SERVER__TOKEN_FILE", file);
        let output = output(server, b"");
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains("health_server.token_file"), "{}", stderr(&output));
    }
}

// ------------------------------------------------------------------------------------------------------ the protocol

#[test]
fn types_methods_and_what_pages_may_do_are_right() {
    let mut broker = ready(&[]);
    for path in PATHS {
        let answer = broker.get(path);
        let kind = if path == "/metrics" { "text/plain; version=0.0.4; charset=utf-8" } else { "application/json" };
        assert_eq!((answer.code, answer.header("content-type")), (200, Some(kind)), "{path}");
        let head = broker.ask("HEAD", path, "Host: localhost\r\n");
        assert_eq!((head.code, head.header("content-type"), head.body.as_str()), (200, Some(kind), ""), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let answer = broker.ask(method, path, "Host: localhost\r\nContent-Length: 0\r\n");
            assert_eq!((answer.code, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
    let live = broker.get("/live");
    let head = broker.ask("HEAD", "/live", "Host: localhost\r\n");
    assert_eq!(head.header("content-length"), live.header("content-length"));
    for path in ["/nothing", "/live/", "/LIVE", "/live%20", "/api", "/api/status/1", "/../etc/passwd", "//live"] {
        assert_eq!(broker.get(path).code, 404, "{path}");
    }
    assert_eq!(broker.get("/live?verbose=1").code, 200);
    for answer in [live, broker.get("/nothing"), broker.ask("GET", "/live", "Host: evil.example\r\n")] {
        assert_eq!(answer.header("content-security-policy"), Some("default-src 'none'"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(!answer.headers.iter().any(|(name, _)| name.starts_with("access-control-")), "{answer:?}");
    }
    let preflight = "Host: localhost\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: GET\r\n";
    let answer = broker.ask("OPTIONS", "/health", preflight);
    assert!(!answer.headers.iter().any(|(name, _)| name.starts_with("access-control-")), "{answer:?}");
}

#[test]
fn bad_input_is_refused_and_the_next_is_answered() {
    let mut broker = ready(&[]);
    let address = broker.health();
    let head = "GET /live HTTP/1.1\r\nHost: localhost\r\n";
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    for (what, bytes) in [
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("no version", b"GET /live\r\n\r\n".to_vec()),
        ("a header without a name", format!("{head}: x\r\n\r\n").into_bytes()),
        ("a zero byte", format!("{head}X: \0\r\n\r\n").into_bytes()),
        ("too many headers", format!("{head}{many}\r\n").into_bytes()),
        ("a huge header", format!("{head}X: {}\r\n\r\n", "y".repeat(300_000)).into_bytes()),
        ("a huge target", format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "y".repeat(300_000)).into_bytes()),
        ("two lengths", format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n").into_bytes()),
        ("a length and chunks", format!("{head}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()),
        ("a negative length", format!("{head}Content-Length: -1\r\n\r\n").into_bytes()),
        ("a body that does not come", format!("{head}Content-Length: 1000000000\r\n\r\n").into_bytes()),
        ("a body without end", format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes()),
    ] {
        let answer = talk(address, &bytes);
        let code = Answer::parse(&answer).map(|answer| answer.code);
        assert!(code.is_none_or(|code| (400..500).contains(&code)), "{what}: {}", String::from_utf8_lossy(&answer));
        assert_eq!(broker.get("/live").code, 200, "{what}");
    }
    let log = broker.process().stderr();
    assert!(!log.contains("panicked") && !log.contains(" ERROR "), "{log}");
}

#[test]
fn who_sends_slowly_is_cut_off_and_holds_up_nobody() {
    let mut broker = ready(&[]);
    let address = broker.health();
    let began = Instant::now();
    let mut slow: Vec<_> = (0..20).map(|_| connect(address)).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: loc").unwrap();
    }
    assert_eq!(broker.get("/live").code, 200);
    for stream in &mut slow {
        let answer = read(stream);
        let code = Answer::parse(&answer).map(|answer| answer.code);
        assert!(code.is_none_or(|code| code == 408), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
}

#[test]
fn who_does_not_read_is_cut_off() {
    let mut broker = ready(&[]);
    let mut stream = connect(broker.health());
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    // Until all buffers are full, and then until the other side has had enough.
    let error = loop {
        if let Err(error) = stream.write_all(ask.as_bytes()) {
            break error;
        }
    };
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it waits for ever: {error}");
    assert_eq!(broker.get("/live").code, 200);
}

#[test]
fn one_connection_may_ask_many_times_and_is_closed_when_it_is_idle() {
    let mut broker = ready(&[]);
    let mut stream = connect(broker.health());
    stream.write_all("GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3).as_bytes()).unwrap();
    let answers = String::from_utf8(read(&mut stream)).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
}

// -------------------------------------------------------------------------------------------------------- the metrics

/// A counter of the status, and the metric that shows it.
const NAMES: [(&str, &str); 22] = [
    ("connections", "connections"),
    ("records", "records"),
    ("fragments", "fragments"),
    ("bytes", "bytes"),
    ("published", "messages_published"),
    ("delivered", "messages_delivered"),
    ("unmatched", "messages_unmatched"),
    ("dropped", "messages_dropped"),
    ("aborted", "messages_aborted"),
    ("evicted", "subscriptions_evicted"),
    ("requests", "requests"),
    ("replies", "replies"),
    ("chunks", "chunks"),
    ("cancels", "cancels"),
    ("late", "replies_late"),
    ("parked", "publishers_parked"),
    ("violations", "connections_violated"),
    ("poison_messages", "poison_messages"),
    ("rings", "doorbells_rung"),
    ("looks", "doorbell_looks"),
    ("sleeps", "router_sleeps"),
    ("leases_refused", "leases_refused"),
];

#[test]
fn status_metrics_and_what_was_sent_agree() {
    let mut broker = ready(&[]);
    let (client, other) = (broker.client(), broker.client());
    let mut subscription = other.subscribe("a.>").unwrap();
    for n in 0..50_u8 {
        client.publish("a.b", [n; 10]).unwrap();
    }
    for n in 0..50_u8 {
        assert_eq!(subscription.next().unwrap().unwrap().payload(), [n; 10]);
    }
    for _ in 0..7 {
        client.request("echo", "hi").unwrap();
    }
    assert!(client.request("nobody", "hi").unwrap_err().is_no_responders());
    let mut metrics = broker.get("/metrics");
    wait_until("the counters to be in the metrics", || {
        metrics = broker.get("/metrics");
        metrics.sample("lapce_ipc_requests_total") == 8.0
    });
    for (name, value) in [
        ("lapce_ipc_messages_published_total", 50.0),
        ("lapce_ipc_messages_delivered_total", 50.0),
        ("lapce_ipc_replies_total", 7.0),
        (r#"lapce_ipc_requests_failed_total{outcome="no_responders"}"#, 1.0),
        ("lapce_ipc_connections", 2.0),
        ("lapce_ipc_connections_limit", 1000.0),
        // One user may lease a tenth of them.
        ("lapce_ipc_slots_limit", 10_240.0),
        ("lapce_ipc_ready", 1.0),
        ("lapce_ipc_threads_late", 0.0),
        (r#"lapce_ipc_actor_up{actor="router"}"#, 1.0),
    ] {
        assert_eq!(metrics.sample(name), value, "{name}");
    }
    assert!(metrics.sample("process_resident_memory_bytes") > 1e6);
    let resident = r#"lapce_ipc_memory_bytes{part="resident"}"#;
    assert_eq!(metrics.sample("process_resident_memory_bytes"), metrics.sample(resident), "there is one truth");
    // Each broker has a service that needs no responder, and nobody is to be told that one is missing.
    assert!(!metrics.body.contains(r#"lapce_ipc_service_responders{service="echo"}"#), "{}", metrics.body);
    assert!(metrics.sample("process_open_fds") > 10.0);
    // No counter is left out: in the status and in the metrics are the same numbers, but for those that a look moves.
    let status = broker.get("/api/status").json();
    let metrics = broker.get("/metrics");
    for counter in status["counters"].as_array().unwrap() {
        let (name, value) = (counter[0].as_str().unwrap(), counter[1].as_f64().unwrap());
        let metric = match name.strip_prefix("failed_") {
            Some(outcome) => format!("lapce_ipc_requests_failed_total{{outcome=\"{outcome}\"}}"),
            None => {
                let known = NAMES.iter().find(|(known, _)| *known == name);
                format!("lapce_ipc_{}_total", known.unwrap_or_else(|| panic!("{name} is in no metric")).1)
            }
        };
        // Those that are told apart by a label are added up.
        let lines = metrics.body.lines().filter(|line| line.split(['{', ' ']).next() == Some(&metric));
        let sum = match name {
            "dropped" => lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum(),
            _ => metrics.sample(&metric),
        };
        assert!(sum == value || ["looks", "sleeps", "rings"].contains(&name), "{name} {value}, but {metric} {sum}");
    }
    let families = metrics.body.matches("# TYPE ").count();
    assert_eq!(metrics.body.matches("# HELP ").count(), families);
    assert!(families > 40, "{}", metrics.body);
}

#[test]
fn metrics_can_be_turned_off() {
    let mut broker = ready(&[("metrics.enable", "false"), ("metrics.export_interval_secs", "1")]);
    assert_eq!(broker.get("/metrics").code, 404);
    assert_eq!(broker.get("/health").code, 200);
}

#[test]
fn a_summary_goes_to_the_log_when_something_has_happened() {
    let mut broker = ready(&[("metrics.export_interval_secs", "1")]);
    let client = broker.client();
    client.request("echo", "hi").unwrap();
    let summaries = |broker: &mut Broker| {
        let log = broker.process().stderr();
        log.lines().filter(|line| line.contains("metrics connections=")).map(str::to_owned).collect::<Vec<_>>()
    };
    wait_until("a summary with the request", || {
        summaries(&mut broker).iter().any(|line| line.contains("requests=1 replies=1"))
    });
    // Another one comes only after something new; the next that comes has it.
    let before = summaries(&mut broker).len();
    client.request("echo", "hi").unwrap();
    wait_until("a summary more", || summaries(&mut broker).len() > before);
    assert!(summaries(&mut broker)[before].contains("requests=2 replies=2"));
}
