//! Where the health endpoints are, and who can read them: two brokers on one machine, a Unix socket, a token that the
//! broker makes.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use support::http::Answer;
use support::{Broker, DEADLINE, IPC_SERVER_MAIN, code, command, output, stderr, wait_until};

/// The member `health` of `status --json`.
#[track_caller]
fn located(broker: &Broker) -> serde_json::Value {
    let output = broker.run(&["status", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["health"].take()
}

/// The line `health` of `status`.
#[track_caller]
fn line(broker: &Broker) -> String {
    let output = String::from_utf8(broker.run(&["status"]).stdout).unwrap();
    let line = output.lines().find_map(|line| line.strip_prefix("health "));
    line.unwrap_or_else(|| panic!("no health in {output}")).trim().to_owned()
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[track_caller]
fn ask(path: &Path, target: &str, headers: &str) -> Answer {
    let mut stream = connect(path);
    stream.write_all(format!("GET {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes).unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&bytes)))
}

const LOCAL: &str = "Host: localhost\r\n";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A broker whose endpoints are at `http.sock` in its folder.
fn at_a_socket(more: &str) -> (Broker, PathBuf) {
    let file = |folder: &Path| {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        format!("[health_server]\nsocket_path = \"{}\"\n{more}", folder.join("http.sock").display())
    };
    let broker = Broker::start_configured(file, "", &[]);
    let path = broker.folder().join("http.sock");
    (broker, path)
}

#[test]
fn of_two_brokers_each_says_where_its_endpoint_is_or_why_there_is_none() {
    let mut first = Broker::start();
    let address = first.health();
    assert_eq!(located(&first)["address"], address.to_string());
    assert_eq!(line(&first), format!("http://{address}"));
    assert!(first.process().stderr().contains(&format!(" health={address}\n")), "{}", first.process().stderr());

    let keys = [("restart.initial_delay_ms", "1"), ("restart.max_delay_ms", "1")];
    let port = address.port().to_string();
    let mut second = Broker::start_with(&[("health_server.port", &port), keys[0], keys[1]]);
    let started = second.process().stderr();
    assert!(started.contains(" health=none health_reason=\"cannot listen on 127.0.0.1:"), "{started}");
    let health = located(&second);
    assert_eq!((&health["address"], &health["socket"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    let reason = health["reason"].as_str().unwrap();
    assert!(reason.contains(&address.to_string()) && reason.contains("in use"), "{reason}");
    assert!(line(&second).starts_with("none: cannot listen on"), "{}", line(&second));

    first.end("TERM");
    wait_until("the second to have the port", || located(&second)["address"] == address.to_string());
    assert_eq!(located(&second)["reason"], serde_json::Value::Null);
}

#[test]
fn endpoints_at_a_unix_socket_are_private_and_there_are_no_others() {
    let (mut broker, path) = at_a_socket("");
    assert_eq!((mode(&path), mode(&broker.socket())), (0o600, 0o600));
    wait_until("the endpoints to be ready", || ask(&path, "/ready", LOCAL).code == 200);
    let health = located(&broker);
    assert_eq!((&health["socket"], &health["address"]), (&path.to_str().unwrap().into(), &serde_json::Value::Null));
    assert_eq!(line(&broker), format!("unix {}", path.display()));
    let log = broker.process().stderr();
    assert!(
        !log.contains("health endpoint listening address=") && log.contains(&format!(" health={}\n", path.display())),
        "{log}"
    );
    for target in ["/live", "/health", "/api/status", "/metrics", "/"] {
        assert_eq!(ask(&path, target, LOCAL).code, 200, "{target}");
        assert_eq!(ask(&path, target, "Host: evil.example\r\n").code, 421, "{target}");
    }
    assert_eq!(ask(&path, "/live", "").code, 400);
    // What happens is streamed there, too.
    let mut stream = connect(&path);
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("event: ") {
        let mut bytes = [0; 1024];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..read]);
    }
    let seen = String::from_utf8_lossy(&seen).to_lowercase();
    assert!(seen.starts_with("http/1.1 200") && seen.contains("text/event-stream"), "{seen}");
    broker.end("TERM");
    assert!(!path.exists() && !path.with_extension("sock.lock").exists());
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_left() {
    let (mut broker, path) = at_a_socket("required = true\n");
    broker.kill();
    assert!(path.exists());
    broker.start_again();
    wait_until("the endpoints to be live", || ask(&path, "/live", LOCAL).code == 200);
    // Another program takes the path: it keeps it.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    broker.end("TERM");
    assert!(path.exists(), "it is not the broker's");
    let mut server = command(IPC_SERVER_MAIN);
    server.arg("--socket").arg(broker.socket()).arg("--config").arg(broker.folder().join("config.toml"));
    let output = output(server, b"");
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    let error = format!("{}: another program is listening", path.display());
    assert!(stderr(&output).contains(&error), "{}", stderr(&output));
    drop(other);
}

#[test]
fn an_address_on_the_command_line_outranks_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = command(IPC_SERVER_MAIN);
    server.arg("--socket").arg(folder.path().join("ipc.sock")).args(["--health-addr", "127.0.0.1:0"]);
    server.env("LAPCE_IPC__HEALTH_SERVER__SOCKET_PATH", folder.path().join("http.sock"));
    let mut server = support::Process::start(server);
    server.wait_for("hint:");
    assert!(server.stderr().contains("health endpoint listening address=127.0.0.1:"), "{}", server.stderr());
    assert!(!folder.path().join("http.sock").exists());
}

#[test]
fn at_a_socket_that_all_can_open_only_users_who_may_connect_are_answered() {
    const NOBODY: u32 = 65_534;
    let curl = command("curl").arg("-V").output().is_ok_and(|output| output.status.success());
    if !rustix::process::geteuid().is_root() || !curl {
        return support::probe::note("skipped: only root can become another user, and there must be curl");
    }
    let (broker, path) = at_a_socket("[shared_memory]\npermissions = 0o666\n");
    assert_eq!(mode(&path), 0o666);
    let by_nobody = || {
        let mut curl = command("curl");
        curl.uid(NOBODY).gid(NOBODY).current_dir("/").args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]);
        curl.arg("--unix-socket").arg(&path).arg("http://localhost/live");
        String::from_utf8(output(curl, b"").stdout).unwrap()
    };
    assert_eq!(ask(&path, "/live", LOCAL).code, 200);
    assert_eq!(by_nobody(), "403");
    let config = fs::read_to_string(broker.folder().join("config.toml")).unwrap();
    fs::write(broker.folder().join("config.toml"), format!("{config}[ipc]\nallowed_uids = [{NOBODY}]\n")).unwrap();
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!(by_nobody(), "200");
}

#[test]
fn a_token_is_made_where_one_is_required_and_none_is_named() {
    let mut broker = Broker::start_with(&[("health_server.require_token", "true")]);
    let file = broker.folder().join("ipc.sock.token");
    assert_eq!(mode(&file), 0o600);
    assert_eq!(located(&broker)["token_file"], file.to_str().unwrap());
    assert!(line(&broker).ends_with(&format!(", token in {}", file.display())), "{}", line(&broker));
    let token = fs::read_to_string(&file).unwrap();
    let with = format!("{LOCAL}Authorization: Bearer {}\r\n", token.trim());
    for target in ["/health", "/api/status", "/metrics", "/nothing"] {
        let good = if target == "/nothing" { 404 } else { 200 };
        assert_eq!((broker.get(target).code, broker.ask("GET", target, &with).code), (401, good), "{target}");
    }
    assert_eq!(broker.get("/events").code, 401);
    assert_eq!(broker.get("/live").code, 200);
    assert!(!broker.process().stderr().contains(token.trim()), "{}", broker.process().stderr());
    // A broker that is killed leaves the file; the next has a token of its own.
    broker.kill();
    broker.start_again();
    let next = fs::read_to_string(&file).unwrap();
    assert_ne!(token, next);
    assert_eq!(broker.ask("GET", "/health", &with).code, 401, "the token of the broker before");
    broker.end("TERM");
    assert!(!file.exists());
}

#[test]
fn a_reload_begins_and_ends_asking_for_the_token() {
    let mut broker = Broker::start_configured(|_| "[health_server]\n".to_owned(), "", &[]);
    let (config, file) = (broker.folder().join("config.toml"), broker.folder().join("ipc.sock.token"));
    assert_eq!(broker.get("/health").code, 200);
    assert!(!file.exists());
    fs::write(&config, "[health_server]\nrequire_token = true\n").unwrap();
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!((broker.get("/health").code, file.exists()), (401, true));
    let token = fs::read_to_string(&file).unwrap();
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!(token, fs::read_to_string(&file).unwrap(), "a reload that changes nothing keeps it");
    fs::write(&config, "").unwrap();
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!((broker.get("/health").code, file.exists()), (200, false));
    assert_eq!(located(&broker)["token_file"], serde_json::Value::Null);
}

#[test]
fn a_token_that_cannot_be_made_ends_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("ipc.sock.token")).unwrap();
    let mut server = command(IPC_SERVER_MAIN);
    server.arg("--socket").arg(folder.path().join("ipc.sock"));
    server.env("LAPCE_IPC__HEALTH_SERVER__REQUIRE_TOKEN", "true");
    let output = output(server, b"");
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    assert!(stderr(&output).contains("ipc.sock.token: cannot create the token file: exists"), "{}", stderr(&output));
}

#[test]
fn a_port_that_another_program_has_is_told_with_what_the_system_says() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let broker = Broker::start_with(&[("health_server.port", &port)]);
    assert!(line(&broker).contains("in use"), "{}", line(&broker));
}
