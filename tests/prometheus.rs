//! A real Prometheus over a broker under load: each query of the dashboard and each alert is put to it.
//!
//!     cargo test --features fault-injection --test prometheus -- --ignored
//!
//! The programs are those in `PROMETHEUS` and `PROMTOOL`, or what is called so in the path.

mod support;

use lapce_ipc::client::{Client, DeliveryPolicy, SubscribeOptions};
use serde_json::Value;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use support::cut::cut;
use support::http::talk;
use support::role::{Child, role, tell};
use support::{Broker, Process, command, wait_until};

const DASHBOARD: &str = include_str!("../dashboards/ipc_metrics.json");
const ALERTS: &str = include_str!("../dashboards/alerts.yml");

/// Alerts of which the set must be empty in this test: nothing of the kind happens.
const QUIET: [&str; 9] = [
    "LapceIpcDown",
    "LapceIpcHangs",
    "LapceIpcNotReady",
    "LapceIpcConnectionsNearLimit",
    "LapceIpcPoisonMessages",
    "LapceIpcProtocolViolations",
    "LapceIpcDescriptorsNearLimit",
    "LapceIpcSessionsExpired",
    "LapceIpcUpstreamAbsent",
];
/// Alerts that may hold for a moment: on a busy machine the router is late, and a router that panicked is down until it
/// is restarted.
const EITHER: [&str; 2] = ["LapceIpcSlow", "LapceIpcActorDown"];

fn program(variable: &str, name: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| name.to_owned())
}

/// Runs `promtool`, which has nothing to complain of.
#[track_caller]
fn promtool(args: &[&str], input: &str) {
    let mut tool = Command::new(program("PROMTOOL", "promtool"));
    let piped = tool.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = piped.spawn().expect("promtool starts");
    running.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = running.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {args:?}: {text}");
    if args == ["check", "metrics"] {
        assert!(text.is_empty(), "{text}");
    }
}

/// A server that scrapes one target, in a folder of its own.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    #[track_caller]
    fn start(target: SocketAddr) -> Prometheus {
        let folder = tempfile::tempdir().expect("a folder");
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/alerts.yml");
        let config = format!(
            "global: {{ scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 1s }}\n\
             rule_files: [ '{rules}' ]\n\
             scrape_configs: [ {{ job_name: lapce-ipc, static_configs: [ {{ targets: [ '{target}' ] }} ] }} ]\n"
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("a file");
        // It takes no port 0: a free one, which somebody else may take before it does.
        for _ in 0..5 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let address = free.local_addr().expect("an address");
            drop(free);
            let mut server = command(&program("PROMETHEUS", "prometheus"));
            server.arg(format!("--config.file={}", file.display()));
            server.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
            server.arg(format!("--web.listen-address={address}"));
            let mut process = Process::start(server);
            let is_up = |log: String| log.contains("Server is ready to receive web requests");
            wait_until("Prometheus", || is_up(process.stderr()) || process.has_ended());
            if !process.has_ended() {
                return Prometheus { address, _process: process, _folder: folder };
            }
            assert!(process.stderr().contains("address already in use"), "{}", process.stderr());
        }
        panic!("no port stays free");
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        // By 1.0 the answer comes in one piece.
        let answer = talk(self.address, format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes());
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {answer:?}"));
        let json: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {head} {body}"));
        assert_eq!(json["status"], "success", "{path}: {json}");
        json["data"].clone()
    }

    /// How many samples a query has that are numbers.
    #[track_caller]
    fn samples(&self, query: &str) -> usize {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(data["resultType"], "vector", "{query}");
        let samples = data["result"].as_array().expect("samples");
        samples.iter().filter(|sample| sample["value"][1] != "NaN").count()
    }
}

/// The queries of the dashboard's panels, with their titles, as Grafana puts them.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut queries = vec![("the instances".to_owned(), "lapce_ipc_build_info".to_owned())];
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert!(variables.iter().any(|variable| variable["query"] == "label_values(lapce_ipc_build_info, instance)"));
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "5s").replace("$__range", "1m");
            assert!(!query.contains('$'), "{query} has a variable that this test does not know");
            queries.push((panel["title"].to_string(), query));
        }
    }
    queries
}

#[test]
fn child() {
    let Some(role) = role() else { return };
    let client = Client::connect().expect("the broker takes us");
    match role.as_str() {
        "unread" => {
            let with = |policy| SubscribeOptions { policy, ..SubscribeOptions::default() };
            let kept = [DeliveryPolicy::DropNewest, DeliveryPolicy::Block]
                .map(|policy| client.subscribe_with("load.>", with(policy)).expect("a subscription"));
            tell("ready");
            // Nobody reads; the end of this process is its parent's to say.
            let _ = client.closed(None);
            drop(kept);
        }
        "responder" => std::thread::scope(|scope| {
            let (mut work, mut tokens, mut broken) =
                (client.serve("work").unwrap(), client.serve("tokens").unwrap(), client.serve("broken").unwrap());
            tell("ready");
            scope.spawn(move || work.run(|request| Ok::<_, String>(request.take_payload())));
            scope.spawn(move || broken.by_ref().flatten().for_each(|request| drop(request.fail("it is broken"))));
            for mut request in tokens.by_ref().flatten() {
                (0..3).for_each(|_| drop(request.chunk("token")));
                drop(request.finish());
            }
        }),
        "load" => {
            let mut subscription = client.subscribe("load.>").expect("a subscription");
            std::thread::spawn(move || subscription.by_ref().for_each(drop));
            tell("ready");
            // What fails is in the metrics; this goes on until it is killed.
            loop {
                for _ in 0..20 {
                    let _ = client.publish("load.small", [1; 64]);
                    let _ = client.request("work", [2; 64]);
                }
                let _ = client.publish("load.large", [3; 3000]);
                let _ = client.request("nobody", "");
                let _ = client.request("broken", "");
                let _ = client.request_stream("tokens", "").map(|stream| stream.for_each(drop));
            }
        }
        other => panic!("no role {other}"),
    }
}

#[test]
#[ignore = "needs Prometheus: .ci/run observe"]
fn prometheus_scrapes_a_broker_under_load_and_every_query_has_its_data() {
    let mut broker = Broker::start_faulty(
        // Often enough for the alert; the limit of restarts is far.
        "router.message=panic#20*4",
        &[
            ("circuit_breaker.timeout_secs", "1"),
            ("circuit_breaker.max_timeout_secs", "1"),
            ("delivery.slow_consumer_timeout_ms", "100"),
            ("restart.initial_delay_ms", "1"),
            ("restart.max_delay_ms", "1"),
        ],
    );
    let prometheus = Prometheus::start(broker.health());
    // Counters are to be seen before they rise.
    wait_until("a first scrape", || prometheus.samples("lapce_ipc_connections_refused_total") > 0);
    let children: Vec<_> =
        ["responder", "unread", "load"].into_iter().map(|role| Child::ready(&broker, role)).collect();
    let mut stranger = UnixStream::connect(broker.socket()).expect("it listens");
    stranger.write_all(b"\x05\0\0\0hello").expect("it reads");
    wait_until("a session that waits for its peer", || cut(children[2].pid(), &broker.socket()) > 0);

    for (panel, query) in queries() {
        wait_until(&format!("data in {panel}: {query}"), || prometheus.samples(&query) > 0);
    }

    let rules = prometheus.get("/api/v1/rules");
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    assert_eq!(rules.len(), ALERTS.matches("- alert: ").count());
    for rule in &rules {
        assert_ne!(rule["health"], "err", "{rule}");
        let (name, query) = (rule["name"].as_str().expect("a name"), rule["query"].as_str().expect("a query"));
        if QUIET.contains(&name) {
            wait_until(&format!("{name} to be quiet: {query}"), || prometheus.samples(query) == 0);
        } else if EITHER.contains(&name) {
            prometheus.samples(query);
        } else {
            wait_until(&format!("{name}: {query}"), || prometheus.samples(query) > 0);
        }
    }
    for name in QUIET.iter().chain(&EITHER) {
        assert!(rules.iter().any(|rule| rule["name"] == *name), "{name} is no alert");
    }

    promtool(&["check", "metrics"], &broker.get("/metrics").body);
    promtool(&["check", "rules", concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/alerts.yml")], "");
}
