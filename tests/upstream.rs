//! Processes that listen and that the broker dials: served while they are there, dialled again when they are lost, and
//! nobody else's trouble whatever they do.

mod support;

use lapce_ipc::client::{ActorState, ClosingCode, Listener};
use lapce_ipc::wire::control::ClientFrame;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use support::probe::{actor, lines};
use support::{Broker, DEADLINE, Process, code, stderr, wait_until};

/// The table of an upstream `name`, at a socket of its name.
fn upstream(folder: &Path, name: &str, services: &[&str], more: &str) -> String {
    let socket = folder.join(name);
    format!("[[upstream]]\nname = \"{name}\"\nsocket_path = {socket:?}\nservices = {services:?}\n{more}\n")
}

/// Restarts that follow fast and for long.
const EAGER: &str = "initial_delay_ms = 5\nmax_delay_ms = 20\nmax_restarts = 1000000";

/// The number behind `key=` in a line.
fn number(line: &str, key: &str) -> u64 {
    let at = line.find(&format!(" {key}=")).unwrap_or_else(|| panic!("no {key} in {line}"));
    let digits: String = line[at + key.len() + 2..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number {key} in {line}"))
}

/// Somebody at `path` who does `what` with whoever dials, until the test ends.
fn peer(path: &Path, what: impl Fn(UnixStream) + Send + 'static) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|stream| what(stream.unwrap())))
}

fn serves(broker: &Broker, service: &str) -> bool {
    let services = broker.client().status().unwrap().services;
    services.iter().any(|known| known.name.as_str() == service && known.responders > 0)
}

#[test]
fn a_process_that_listens_is_dialled_and_dialled_again_when_it_is_lost() {
    let file = |folder: &Path| upstream(folder, "tools", &["upper"], EAGER);
    let mut broker = Broker::start_configured(file, "", &[]);
    // It is dialled before it is there, and found once it is.
    broker.process().wait_for("restarting actor actor=upstream id=tools reason=\"cannot connect");
    let path = broker.folder().join("tools");
    for round in 1..=3 {
        let listen = path.to_str().unwrap();
        let mut reply: Process = broker.spawn(&["reply", "upper", "--listen", listen, "--", "tr", "a-z", "A-Z"]);
        reply.wait_for("serving");
        let output = broker.run(&["request", "upper", "hi"]);
        assert_eq!((code(&output), &output.stdout[..]), (0, &b"HI\n"[..]), "round {round}: {}", stderr(&output));
        assert_eq!(actor(&broker.client(), "upstream tools").state, ActorState::Running);
        reply.signal(if round == 2 { "TERM" } else { "KILL" });
        reply.code();
        assert_eq!(path.exists(), round != 2, "only who is killed leaves its socket");
        wait_until("it to be missed", || !serves(&broker, "upper"));
        wait_until("the line", || {
            let mut lost = lines(&mut broker, &["restarting actor", "id=tools"]);
            lost.retain(|line| {
                line.contains("reason=\"closed by peer\"") || line.contains("reason=\"connection closed by peer\"")
            });
            lost.len() == round
        });
    }
    assert_eq!(lines(&mut broker, &["upstream connected upstream=tools"]).len(), 3);
    assert!(lines(&mut broker, &["upstream lacks configured services"]).is_empty());
}

#[test]
fn a_flapping_upstream_is_dialled_ever_more_slowly_and_given_up_at_the_limit() {
    let own = "initial_delay_ms = 20\nmax_delay_ms = 160\njitter = 0.2\nmax_restarts = 6\nperiod_secs = 3600";
    let file = |folder: &Path| {
        let config = upstream(folder, "flap", &["svc"], own);
        let path = folder.join("flap");
        peer(&path, drop);
        config
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    let watch = broker.client();
    broker.process().wait_for("giving up on actor");
    let restarts =
        lines(&mut broker, &["WARN", "restarting actor actor=upstream id=flap reason=\"closed by peer", "limit=6"]);
    let plain = [20, 40, 80, 160, 160, 160];
    assert_eq!(restarts.len(), plain.len(), "{restarts:#?}");
    for (attempt, (line, plain)) in restarts.iter().zip(plain).enumerate() {
        assert_eq!(number(line, "attempt"), attempt as u64 + 1);
        let delay = number(line, "delay_ms");
        assert!((plain * 8 / 10 - 1..=(plain * 12 / 10).min(160)).contains(&delay), "{line}");
    }
    let given_up =
        lines(&mut broker, &["ERROR", "giving up on actor actor=upstream id=flap", "restarts=6 period_secs=3600"]);
    assert_eq!(given_up.len(), 1);
    let status = actor(&watch, "upstream flap");
    assert_eq!((status.state, status.restarts, status.failures), (ActorState::GaveUp, 6, 7));
    let output = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    let row = output.lines().find(|line| line.contains("upstream flap")).unwrap();
    assert!(row.contains("gave up") && row.contains("closed by peer"), "{row}");
    let json = String::from_utf8(broker.run(&["status", "--json"]).stdout).unwrap();
    assert!(json.contains(r#""state": "gave_up""#), "{json}");
    // Whoever has nothing to do with it has noticed nothing.
    assert_eq!(watch.request("echo", "hi").unwrap(), b"hi");
    assert_eq!(actor(&watch, "router").restarts, 0);
}

#[test]
fn an_upstream_that_is_absent_degrades_the_health_and_nothing_else() {
    let file = |folder: &Path| {
        upstream(folder, "away", &["svc"], EAGER) + &upstream(folder, "gone", &["svc"], "max_restarts = 1")
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    // More often than the root's actors may be, and far below its own limit.
    wait_until("many attempts", || lines(&mut broker, &["restarting actor", "id=away"]).len() > 20);
    broker.process().wait_for("giving up on actor actor=upstream id=gone");
    let mut ready = broker.get("/ready");
    wait_until("it to be ready", || {
        ready = broker.get("/ready");
        ready.code == 200 || !ready.body.contains("starting")
    });
    assert_eq!((ready.code, ready.json()), (200, serde_json::json!({ "ready": true, "reasons": [] })));
    let health = broker.get("/health");
    let body = health.json();
    assert_eq!((health.code, &body["status"]), (200, &"degraded".into()), "{body}");
    let actors = &body["components"]["actors"];
    assert_eq!(actors["status"], "degraded", "{body}");
    let reason = actors["not_running"]["upstream gone"].as_str().unwrap_or_else(|| panic!("it is not named: {body}"));
    assert!(reason.contains("cannot connect to "), "{reason}");
    assert_eq!(actors["near_restart_limit"], serde_json::json!(["upstream gone"]), "it alone has a low limit: {body}");
    let upstreams = &body["components"]["upstreams"];
    assert_eq!((&upstreams["status"], &upstreams["configured"]), (&"degraded".into(), &2.into()), "{body}");
    for name in ["away", "gone"] {
        assert!(upstreams["absent"][name].as_str().is_some_and(|why| why.contains("cannot connect to ")), "{body}");
    }
    let metrics = broker.get("/metrics").body;
    assert!(metrics.contains("lapce_ipc_upstream_connected{upstream=\"away\"} 0\n"), "{metrics}");
}

/// Delays that no test would wait for.
const PATIENT: &str = "initial_delay_ms = 600000\nmax_delay_ms = 600000\njitter = 0";

#[test]
fn an_upstream_that_comes_later_is_dialled_as_soon_as_its_socket_appears() {
    // More failed attempts than the limit of [restart] lets an actor have, in a folder that comes later, too.
    let file = |folder: &Path| {
        "[restart]\nmax_restarts = 3\n".to_owned()
            + &upstream(folder, "engine", &["svc"], PATIENT)
            + &upstream(&folder.join("later"), "deep", &[], PATIENT)
            + &upstream(folder, "limitless", &[], "initial_delay_ms = 1\nmax_delay_ms = 1")
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    let attempts = |broker: &Broker, name| actor(&broker.client(), &format!("upstream {name}")).restarts;
    wait_until("the first attempts", || attempts(&broker, "engine") == 1 && attempts(&broker, "deep") == 1);
    wait_until("many attempts", || attempts(&broker, "limitless") > 100);
    assert!(lines(&mut broker, &["giving up on actor"]).is_empty(), "{}", broker.process().stderr());
    let logged = lines(&mut broker, &["restarting actor", "id=limitless", "limit=none"]);
    assert!(logged.len() <= 16 + 32, "the log has ever fewer of them: {}", logged.len());
    // Other files in the folder are no reason.
    std::fs::write(broker.folder().join("other"), "").unwrap();
    let listener = Listener::bind(broker.folder().join("engine")).unwrap();
    let client = listener.accept().unwrap();
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    wait_until("it to be connected", || {
        broker.client().upstreams().unwrap().iter().any(|one| one.name.as_str() == "engine" && one.connection.is_some())
    });
    std::fs::create_dir(broker.folder().join("later")).unwrap();
    let deep = Listener::bind(broker.folder().join("later").join("deep")).unwrap();
    assert_eq!(deep.accept().unwrap().request("echo", "ho").unwrap(), b"ho");
}

#[test]
fn an_upstream_is_dialled_at_once_by_hand_also_when_it_was_given_up() {
    let given_up = format!("{PATIENT}\nmax_restarts = 1");
    let file = |folder: &Path| {
        upstream(folder, "waits", &["svc"], PATIENT)
            + &upstream(folder, "ended", &[], &given_up.replace("initial_delay_ms = 600000", "initial_delay_ms = 1"))
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    broker.process().wait_for("restarting actor actor=upstream id=waits");
    broker.process().wait_for("giving up on actor actor=upstream id=ended");
    let output = broker.run(&["upstream", "dial", "waits"]);
    assert_eq!(code(&output), 69, "nothing is there: {}", stderr(&output));
    assert!(stderr(&output).contains("upstream waits is not connected: cannot connect to "), "{}", stderr(&output));
    let unknown = broker.run(&["upstream", "dial", "nope"]);
    assert_eq!(code(&unknown), 1, "{}", stderr(&unknown));
    assert!(stderr(&unknown).contains("unknown upstream: nope"), "{}", stderr(&unknown));
    // The path of one that was given up is not watched any more.
    let elsewhere = broker.folder().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let listener = Listener::bind(elsewhere.join("ended")).unwrap();
    let accepts = std::thread::spawn(move || listener.accept());
    std::os::unix::fs::symlink(elsewhere.join("ended"), broker.folder().join("ended")).unwrap();
    assert_eq!(actor(&broker.client(), "upstream ended").state, ActorState::GaveUp, "its limit holds");
    let output = broker.run(&["upstream", "dial", "ended"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let _ended = accepts.join().unwrap().unwrap();
    let listed = String::from_utf8(broker.run(&["upstream", "list"]).stdout).unwrap();
    assert!(listed.lines().any(|line| line.contains("ended") && line.contains("connected")), "{listed}");
    assert!(listed.lines().any(|line| line.contains("waits") && line.contains("redial in ")), "{listed}");
    let json: serde_json::Value = serde_json::from_slice(&broker.run(&["upstream", "list", "--json"]).stdout).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["connection"]), (&"waits".into(), &serde_json::Value::Null));
}

#[test]
fn a_restart_that_holds_is_told_and_the_next_begins_with_the_first_delay() {
    // The delays are shorter than the gap after which a socket that appears begins the backoff anew.
    let own = "initial_delay_ms = 5\nmax_delay_ms = 10\njitter = 0\nstable_secs = 1";
    let mut broker = Broker::start_configured(|folder| upstream(folder, "x", &[], own), "", &[]);
    wait_until("two attempts", || lines(&mut broker, &["restarting actor", "id=x"]).len() >= 2);
    let listener = Listener::bind(broker.folder().join("x")).unwrap();
    let client = listener.accept().unwrap();
    broker.process().wait_for("actor stable actor=upstream id=x attempt=");
    let before = lines(&mut broker, &["restarting actor", "id=x"]).len();
    assert_eq!(number(&lines(&mut broker, &["INFO", "actor stable"])[0], "attempt"), before as u64);
    drop(client);
    wait_until("the next", || lines(&mut broker, &["restarting actor", "id=x"]).len() > before);
    let next = lines(&mut broker, &["restarting actor", "id=x"]).remove(before);
    assert_eq!((number(&next, "attempt"), number(&next, "delay_ms")), (1, 5), "{next}");
    let again = listener.accept().unwrap();
    assert_eq!(again.request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn peers_that_are_no_clients_cost_their_own_lines_only() {
    let once = "initial_delay_ms = 5\nmax_restarts = 1";
    let file = |folder: &Path| {
        let http = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec();
        let mut old = ClientFrame::hello("old".parse().unwrap(), 7, None).encode().unwrap();
        // The version follows the length, the variant and the magic word.
        let version = old.windows(2).rposition(|two| two == 1_u16.to_le_bytes()).unwrap();
        assert!(version >= 8, "not the length nor the variant");
        old[version] = 99;
        let huge = [0xff; 64].to_vec();
        for (name, says) in [("silent", Vec::new()), ("http", http), ("old", old), ("huge", huge)] {
            peer(&folder.join(name), move |mut stream| {
                // It may have gone already.
                let _ = stream.write_all(&says);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
        let names = ["silent", "http", "old", "huge"].map(|name| upstream(folder, name, &["svc"], once));
        names.concat() + &upstream(folder, "good", &["svc"], EAGER)
    };
    let mut broker = Broker::start_configured(file, "", &[("ipc.handshake_timeout_ms", "200")]);
    let watch = broker.client();
    let listener = Listener::bind(broker.folder().join("good")).unwrap();
    let good = listener.accept().unwrap();
    let mut service = good.serve("svc").unwrap();
    std::thread::spawn(move || service.run(|request| Ok::<_, String>(request.payload().to_vec())));
    for (name, reason) in
        [("silent", "no hello within 200 ms"), ("http", ""), ("old", "protocol version mismatch"), ("huge", "")]
    {
        broker.process().wait_for(&format!("giving up on actor actor=upstream id={name} "));
        let logged = lines(&mut broker, &["giving up on actor", &format!("id={name} "), reason]);
        assert_eq!(logged.len(), 1, "{name}: {}", broker.process().stderr());
        assert_eq!(actor(&watch, &format!("upstream {name}")).failures, 2);
    }
    assert_eq!(watch.request("svc", "hi").unwrap(), b"hi");
    assert_eq!(watch.status().unwrap().connections.len(), 2, "the good one and we");
    assert!(lines(&mut broker, &["giving up on actor actor=upstream id=good"]).is_empty());
}

#[test]
fn an_upstream_serves_what_it_is_configured_for() {
    let file = |folder: &Path| upstream(folder, "x", &["wanted.one", "wanted.two"], EAGER);
    let mut broker = Broker::start_configured(file, "", &[("ipc.handshake_timeout_ms", "100")]);
    let listener = Listener::bind(broker.folder().join("x")).unwrap();
    let client = listener.accept().unwrap();
    let error = client.serve("other").unwrap_err();
    assert!(error.is_not_allowed(), "{error}");
    assert!(error.to_string().contains("upstream x is not configured to offer other"), "{error}");
    let _one = client.serve("wanted.one").unwrap();
    broker.process().wait_for("upstream lacks configured services upstream=x");
    assert_eq!(
        lines(&mut broker, &["WARN", "upstream lacks configured services", "missing=wanted.two waited_ms=100"]).len(),
        1
    );
    assert_eq!(lines(&mut broker, &["WARN", "upstream service refused upstream=x service=other"]).len(), 1);
    // Late is not too late.
    let mut two = client.serve("wanted.two").unwrap();
    let asking = broker.client();
    let asked = asking.request_stream("wanted.two", "hi").unwrap();
    two.next_timeout(DEADLINE).unwrap().expect("a request").reply("ho").unwrap();
    assert_eq!(asked.last().unwrap().unwrap(), b"ho");
    // A client of the ordinary kind may serve what it likes, as before.
    let _other = asking.serve("other").unwrap();
}

#[test]
fn a_broker_that_ends_tells_its_upstreams_and_does_not_dial_again() {
    let file = |folder: &Path| upstream(folder, "x", &[], EAGER) + &upstream(folder, "nobody", &[], "");
    let mut broker = Broker::start_configured(file, "", &[]);
    let listener = Listener::bind(broker.folder().join("x")).unwrap();
    let client = listener.accept().unwrap();
    broker.process().signal("TERM");
    let error = client.closed(Some(DEADLINE)).unwrap_err();
    assert_eq!(error.closing_code(), Some(ClosingCode::Shutdown), "{error}");
    assert_eq!(broker.process().code(), 0, "{}", broker.process().stderr());
    assert!(lines(&mut broker, &["restarting actor", "id=x reason=\"closed by peer"]).is_empty());
}

#[test]
fn two_hundred_lost_upstreams_leave_nothing() {
    let file = |folder: &Path| upstream(folder, "x", &["svc"], "initial_delay_ms = 0\nmax_restarts = 1000000");
    let broker = Broker::start_configured(file, "", &[("ipc.max_connections", "4")]);
    let watch = broker.client();
    let listener = Listener::bind(broker.folder().join("x")).unwrap();
    let serve = || {
        let client = listener.accept().unwrap();
        let service = client.serve("svc").unwrap();
        (client, service)
    };
    let first = serve();
    let descriptors = broker.descriptors_at_rest();
    drop(first);
    for _ in 0..200 {
        serve();
    }
    let _last = serve();
    wait_until("the lost ones to go", || watch.status().unwrap().connections.len() == 2);
    wait_until("descriptors to go", || broker.descriptors() == descriptors);
}
