//! The broker under a service manager: what it tells it, the sockets that it inherits, and its log. The manager is
//! this process, as systemd would do it; what needs systemd itself is at the end, and ignored by default.

mod support;

use lapce_ipc::client::Client;
use rustix::net::{AddressFamily, SocketType};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use support::http::{Answer, talk};
use support::manager::{Manager, inheriting, program, scripted};
use support::{LAPCE_IPC, Process, command, output, stderr, wait_until};

/// A folder, and a socket in it that listens.
fn listening() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ipc.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (folder, path, listener)
}

/// A broker on a socket in `folder`, with a manager.
fn managed(folder: &Path, manager: &Manager) -> Command {
    let mut broker = command(program().to_str().unwrap());
    broker.arg("--socket").arg(folder.join("ipc.sock")).env("NOTIFY_SOCKET", manager.path());
    broker
}

fn client(path: &Path) -> Client {
    Client::builder().socket(path).no_reconnect().connect().unwrap()
}

fn has(messages: &[Vec<String>], line: &str) -> usize {
    messages.iter().flatten().filter(|known| known.starts_with(line)).count()
}

/// How a command ended, and what it said.
fn ended(mut process: Process) -> (i32, String) {
    let code = process.code();
    (code, process.stderr())
}

// ---------------------------------------------------------------------------------------------- what the manager hears

#[test]
fn the_manager_hears_of_the_start_the_state_and_the_end() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let mut broker = managed(folder.path(), &manager);
    broker.env("LAPCE_IPC__IPC__DRAIN_TIMEOUT_MS", "3000");
    let mut broker = Process::start(broker);
    // Ready is the first that it says, and is true.
    let first = manager.next();
    let client = client(&folder.path().join("ipc.sock"));
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    assert_eq!(first[0], "READY=1");
    assert!(first[1].starts_with("STATUS=0 connections on /"), "{first:?}");
    let messages = manager.until("STATUS=1 connections");
    assert_eq!(messages.len(), 1, "only what changes is told: {messages:?}");
    drop(client);
    manager.until("STATUS=0 connections");
    broker.signal("TERM");
    let end = manager.next();
    assert_eq!(end[0], "STOPPING=1");
    assert_eq!(end[1], "STATUS=SIGTERM: draining, at most 3000 ms");
    assert_eq!(end[2], "EXTEND_TIMEOUT_USEC=13000000");
    assert_eq!(broker.code(), 0);
    let rest = manager.rest();
    assert!(rest.is_empty(), "nobody asked for signs of life: {rest:?}");
}

#[test]
fn the_manager_hears_when_a_reload_begins_and_when_it_is_over() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "").unwrap();
    let mut broker = managed(folder.path(), &manager);
    broker.arg("--config").arg(&config);
    let mut broker = Process::start(broker);
    manager.until("READY=1");
    // Also a wrong configuration ends the reload: the broker goes on with the one before.
    for text in ["[logging]\nlevel = \"debug\"\n", "nonsense"] {
        std::fs::write(&config, text).unwrap();
        broker.signal("HUP");
        let messages = manager.until("RELOADING=1").pop().unwrap();
        let since = messages[1].strip_prefix("MONOTONIC_USEC=").expect("a time");
        assert!(since.parse::<u64>().unwrap() > 0, "{messages:?}");
        assert_eq!(manager.until("READY=1").pop().unwrap(), ["READY=1"]);
    }
    broker.signal("TERM");
    assert_eq!(broker.code(), 0);
}

#[test]
fn an_upstream_that_is_absent_does_not_hold_the_start_back() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let (file, absent) = (folder.path().join("config.toml"), folder.path().join("absent"));
    let upstream =
        format!("[[upstream]]\nname = \"x\"\nsocket_path = {absent:?}\nservices = [\"x\"]\nmax_restarts = 1\n");
    std::fs::write(&file, upstream).unwrap();
    let mut broker = managed(folder.path(), &manager);
    broker.arg("--config").arg(file);
    let mut broker = Process::start(broker);
    broker.wait_for("giving up on actor actor=upstream id=x");
    let messages = manager.next();
    assert_eq!(messages[0], "READY=1");
    broker.signal("TERM");
    assert_eq!(broker.code(), 0);
}

#[test]
fn a_manager_with_a_watchdog_hears_twice_in_its_time_that_all_is_well() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let mut broker = managed(folder.path(), &manager);
    broker.env("WATCHDOG_USEC", "400000");
    let mut broker = Process::start(broker);
    manager.until("READY=1");
    manager.until("WATCHDOG=1");
    let since = Instant::now();
    let messages: Vec<_> = (0..11).flat_map(|_| manager.until("WATCHDOG=1")).collect();
    assert_eq!(has(&messages, "WATCHDOG=1"), 11);
    // Eleven times 200 ms, of which the first and last may have waited to be read. Later is the machine's doing.
    assert!(since.elapsed().as_millis() > 1500, "much more often than it must: {:?}", since.elapsed());
    broker.signal("TERM");
    manager.until("STOPPING=1");
    assert_eq!(broker.code(), 0);
}

#[test]
fn the_watchdog_of_another_process_is_none_of_ours() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let mut broker = managed(folder.path(), &manager);
    broker.env("WATCHDOG_USEC", "2000").env("WATCHDOG_PID", "1");
    let mut broker = Process::start(broker);
    manager.until("READY=1");
    let client = client(&folder.path().join("ipc.sock"));
    manager.until("STATUS=1 connections");
    drop(client);
    broker.signal("TERM");
    let messages = manager.until("STOPPING=1");
    assert_eq!(has(&messages, "WATCHDOG=1"), 0, "{messages:?}");
    assert_eq!(broker.code(), 0);
}

#[test]
fn a_manager_that_is_gone_is_one_warning() {
    let (folder, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let mut broker = managed(folder.path(), &manager);
    broker.env("WATCHDOG_USEC", "20000");
    drop(manager);
    let mut broker = Process::start(broker);
    broker.wait_for("cannot notify the service manager");
    let client = client(&folder.path().join("ipc.sock"));
    for _ in 0..20 {
        assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    }
    broker.signal("TERM");
    let (code, log) = ended(broker);
    assert_eq!((code, log.matches("cannot notify the service manager").count()), (0, 1), "{log}");
}

// --------------------------------------------------------------------------------------------------- inherited sockets

#[test]
fn a_socket_that_systemd_listens_on_is_used_and_left() {
    let (folder, path, listener) = listening();
    // Who comes before the broker waits in the socket.
    let mut early = command(LAPCE_IPC);
    early.arg("--socket").arg(&path).args(["request", "echo", "early"]);
    let mut early = Process::start(early);
    let mut broker = inheriting(program(), "ipc", listener.try_clone().unwrap().into(), None).start();
    broker.wait_for("hint:");
    assert_eq!((early.code(), &early.stdout()[..]), (0, &b"early\n"[..]), "{}", early.stderr());
    let client = client(&path);
    assert_eq!(client.status().unwrap().socket, path.display().to_string());
    assert!(broker.stderr().contains("socket inherited path="), "{}", broker.stderr());
    assert!(!broker.stderr().contains(" WARN "), "{}", broker.stderr());
    assert!(folder.path().join("ipc.sock.lock").exists());
    drop(client);
    broker.signal("TERM");
    assert_eq!(ended(broker).0, 0);
    assert!(path.exists(), "it is not the broker's to remove");
    assert!(!folder.path().join("ipc.sock.lock").exists());
    // The next one goes on with it.
    let mut broker = inheriting(program(), "ipc", listener.into(), None).start();
    broker.wait_for("hint:");
    assert_eq!(self::client(&path).request("echo", "hi").unwrap(), b"hi");
    broker.signal("TERM");
    assert_eq!(ended(broker).0, 0);
}

#[test]
fn a_client_outlives_a_broker_that_is_killed_and_started_again() {
    let (_folder, path, listener) = listening();
    let start = || {
        let mut broker = inheriting(program(), "ipc", listener.try_clone().unwrap().into(), None).start();
        broker.wait_for("hint:");
        broker
    };
    let mut broker = start();
    let client = Client::builder().socket(&path).connect().unwrap();
    let mut subscription = client.subscribe("a").unwrap();
    let publisher = client.publisher("a").unwrap();
    broker.signal("KILL");
    broker.code();
    // Nobody serves the socket, and yet it can be connected to.
    publisher.publish("meanwhile").unwrap();
    let _broker = start();
    assert_eq!(subscription.next().unwrap().unwrap().payload(), b"meanwhile");
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn there_is_one_broker_for_a_path_however_it_is_started() {
    let (_folder, path, listener) = listening();
    let mut broker = inheriting(program(), "ipc", listener.try_clone().unwrap().into(), None).start();
    broker.wait_for("hint:");
    let mut second = command(program().to_str().unwrap());
    second.arg("--socket").arg(&path);
    let inherits = inheriting(program(), "ipc", listener.into(), None);
    for second in [Process::start(second), inherits.start()] {
        let (code, log) = ended(second);
        assert!(code == 69 && log.contains("another broker is listening"), "{code} {log}");
    }
    assert_eq!(client(&path).request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn an_inherited_socket_is_where_it_is_whatever_is_configured() {
    let (folder, path, listener) = listening();
    let mut broker = inheriting(program(), "whatever", listener.into(), None);
    broker.command.arg("--socket").arg(folder.path().join("other.sock"));
    let mut broker = broker.start();
    broker.wait_for("hint:");
    let log = broker.stderr();
    let line = log.lines().find(|line| line.contains(" WARN ")).unwrap();
    assert!(line.contains("inherited socket differs from the configuration"), "{line}");
    assert!(line.contains(path.to_str().unwrap()) && line.contains("other.sock"), "{line}");
    assert!(!folder.path().join("other.sock").exists());
    assert_eq!(client(&path).request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn what_is_inherited_and_is_no_such_socket_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let datagram = UnixDatagram::bind(folder.path().join("datagram")).unwrap();
    let (stream, _end) = UnixStream::pair().unwrap();
    let tcp = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let unix = |name: &str| OwnedFd::from(UnixListener::bind(folder.path().join(name)).unwrap());
    let unnamed = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::listen(&unnamed, 1).unwrap_err();
    let file: OwnedFd = std::fs::File::create(folder.path().join("file")).unwrap().into();
    for (names, first, second, why) in [
        ("ipc", datagram.into(), None, "inherited descriptor 3 (ipc): is neither a Unix nor a TCP stream socket"),
        ("ipc", file, None, "inherited descriptor 3 (ipc): is neither"),
        ("ipc", stream.into(), None, "inherited descriptor 3 (ipc): is a stream socket that is not listening"),
        ("ipc", unnamed, None, "inherited descriptor 3 (ipc): is a stream socket that is not listening"),
        ("ipc", tcp(), None, "inherited descriptor 3 (ipc): is a TCP socket"),
        ("health:health", unix("a"), Some(tcp()), "inherited descriptor 4 (health): is a second health socket"),
        ("ipc:ipc", unix("b"), Some(unix("c")), "inherited descriptor 4 (ipc): is a second control socket"),
        ("x:\u{1b}y", tcp(), Some(tcp()), "inherited descriptor 4 (\\u{1b}y): is a second health socket"),
        ("ipc:health", unix("d"), None, "LISTEN_FDS: "),
    ] {
        let (code, log) = ended(inheriting(program(), names, first, second).start());
        assert!(code == 78 && log.contains(why), "{why}: {code} {log}");
    }
    // One that is not there.
    let mut none = scripted("LISTEN_PID=$$ LISTEN_FDS=7", program());
    none.arg("--socket").arg(folder.path().join("f"));
    let (code, log) = ended(Process::start(none));
    assert!(code == 78 && log.contains("LISTEN_FDS: Bad file descriptor"), "{code} {log}");
}

#[test]
fn descriptors_for_another_process_are_left_alone() {
    let (folder, path, listener) = listening();
    let mut broker = inheriting(program(), "ipc", listener.into(), None);
    broker.command = scripted("LISTEN_PID=1 LISTEN_FDS=1", program());
    broker.command.arg("--socket").arg(folder.path().join("own.sock"));
    let mut broker = broker.start();
    broker.wait_for("hint:");
    assert_eq!(client(&folder.path().join("own.sock")).request("echo", "hi").unwrap(), b"hi");
    assert!(!folder.path().join("ipc.sock.lock").exists(), "{}", path.display());
}

#[test]
fn the_endpoints_take_an_inherited_socket_too() {
    let (_folder, path, listener) = listening();
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap();
    let broker = inheriting(program(), "health:ipc", http.into(), Some(listener.into()));
    let mut broker = broker.start();
    broker.wait_for("hint:");
    let answer = talk(address, b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(Answer::parse(&answer).unwrap().code, 200);
    assert!(broker.stderr().contains(&format!("health endpoint listening address={address}")), "{}", broker.stderr());
    assert_eq!(client(&path).request("echo", "hi").unwrap(), b"hi");
}

#[test]
fn the_endpoints_take_an_inherited_unix_socket_and_leave_it() {
    let (folder, path, listener) = listening();
    let health = folder.path().join("http.sock");
    let http = UnixListener::bind(&health).unwrap();
    let mut broker = inheriting(program(), "health:ipc", http.into(), Some(listener.into())).start();
    broker.wait_for("hint:");
    let report = client(&path).status().unwrap();
    assert_eq!(report.health.socket.as_deref(), health.to_str());
    broker.signal("TERM");
    assert_eq!(broker.code(), 0);
    assert!(health.exists(), "it is the manager's");
}

const NOBODY: u32 = 65_534;

/// As the system's units do it: root listens, the broker is another user, clients are its users and no others.
#[test]
fn clients_of_allowed_users_connect_to_a_system_broker() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return support::probe::note("skipped: only root can become another user");
    }
    let (folder, path, listener) = listening();
    let programs = tempfile::tempdir().unwrap();
    let copy = |from: &Path| {
        let to = programs.path().join(from.file_name().unwrap());
        support::copy_program(from, &to);
        to
    };
    let (server, lapce_ipc) = (copy(program()), copy(Path::new(LAPCE_IPC)));
    for open in [folder.path(), programs.path()] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // `RuntimeDirectory=`, `SocketGroup=`, `SocketMode=`.
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    std::os::unix::fs::chown(&path, Some(0), Some(NOBODY)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
    let mut broker = inheriting(&server, "ipc", listener.into(), None);
    broker.command.uid(NOBODY).gid(NOBODY).current_dir("/").env("LAPCE_IPC__IPC__ALLOWED_UIDS", "4242,4244");
    let mut broker = broker.start();
    broker.wait_for("hint:");
    let ask = |uid: u32, gid: u32| {
        let mut ask = command(lapce_ipc.to_str().unwrap());
        ask.uid(uid).gid(gid).current_dir("/").arg("--socket").arg(&path).args(["request", "echo", "hi"]);
        ended(Process::start(ask))
    };
    assert_eq!(ask(NOBODY, NOBODY).0, 0, "the broker's own user");
    let (code, said) = ask(4242, NOBODY);
    assert_eq!(code, 0, "an allowed user of the group, who trusts root's socket: {said}");
    let (code, said) = ask(4243, NOBODY);
    assert!(code == 77 && said.contains("user 4243 may not connect"), "{code} {said}");
    let (code, said) = ask(4244, 4244);
    assert!(code == 77 && said.contains("permission denied"), "not of the group: {code} {said}");
    broker.signal("TERM");
    assert_eq!(ended(broker).0, 0);
}

// ------------------------------------------------------------------------------------------------------------- the log

#[test]
fn the_journal_gets_levels_and_no_times() {
    let folder = tempfile::tempdir().unwrap();
    let started = |stream: &str, name: &str, level: &str| {
        let mut broker = scripted(&format!("export JOURNAL_STREAM={stream};"), program());
        broker.arg("--socket").arg(folder.path().join(name));
        broker.env("RUST_LOG", level).env("LAPCE_IPC__HEALTH_SERVER__HOST", "0.0.0.0");
        broker.env("LAPCE_IPC__LOGGING__SHORT_CONNECTION_MS", "0");
        let mut broker = Process::start(broker);
        broker.wait_for("limits max_connections=");
        broker
    };
    let mut journal = started("$(stat -L -c %d:%i /proc/self/fd/2)", "a b", "info");
    let client = client(&folder.path().join("a b"));
    journal.wait_for("connection opened");
    drop(client);
    journal.signal("TERM");
    journal.wait_for("broker stopped");
    let log = journal.stderr();
    for line in log.lines() {
        let rest = ["<3>", "<4>", "<6>"].iter().find_map(|priority| line.strip_prefix(priority));
        assert!(rest.is_some_and(|rest| rest.starts_with("lapce_ipc::")), "{line}");
    }
    assert!(log.contains("<4>lapce_ipc::broker::health::listen health endpoint reachable without a token"), "{log}");
    assert!(log.contains("<6>lapce_ipc::cli::serve lapce-ipc "), "{log}");
    assert!(!log.contains("hint:"), "{log}");
    // Values are one word or quoted; the file that was used is named.
    let socket = format!("listens socket={:?} config=\"built-in defaults\"", folder.path().join("a b"));
    assert!(log.contains(&socket), "{socket} is not in {log}");
    for limit in ["max_connections=1000 ", "permissions=0600 ", "allowed_uids=\"\" ", "watchdog_abort_ms=10000 "] {
        assert!(log.contains(limit), "{limit} is not in {log}");
    }
    // Somebody else's stream: this one has times.
    let mut other = started("8:1", "c", "info");
    other.wait_for("hint:");
    let log = other.stderr();
    let is_timed =
        |line: &str| line.starts_with("[2") && line.contains("Z INFO  lapce_ipc::") || line.contains(" WARN ");
    assert!(log.lines().filter(|line| !line.starts_with("hint:")).all(is_timed), "{log}");
}

#[test]
fn what_is_logged_is_chosen_by_module() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipc.sock");
    for (filter, opened, banner) in [
        ("info", true, true),
        ("warn", false, false),
        ("info,lapce_ipc::broker::session=off", false, true),
        ("warn,lapce_ipc::broker::session=info", true, false),
    ] {
        let mut broker = command(program().to_str().unwrap());
        broker.arg("--socket").arg(&socket).env("RUST_LOG", filter);
        broker.env("LAPCE_IPC__LOGGING__SHORT_CONNECTION_MS", "0");
        let mut broker = Process::start(broker);
        broker.wait_for("hint:");
        let client = client(&socket);
        drop(client);
        broker.signal("TERM");
        let (code, log) = ended(broker);
        assert_eq!(code, 0);
        assert_eq!(
            (log.contains("connection opened"), log.contains("listens socket=")),
            (opened, banner),
            "{filter}: {log}"
        );
    }
}

#[test]
fn no_message_is_a_line_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ipc.sock");
    let mut broker = command(program().to_str().unwrap());
    broker.arg("--socket").arg(&socket).env("RUST_LOG", "lapce_ipc=trace");
    broker.env("LAPCE_IPC__METRICS__EXPORT_INTERVAL_SECS", "3600");
    broker.env("LAPCE_IPC__LOGGING__SHORT_CONNECTION_MS", "0");
    let mut broker = Process::start(broker);
    broker.wait_for("hint:");
    let (publishing, other) = (client(&socket), client(&socket));
    let mut subscription = other.subscribe("a.>").unwrap();
    let mut service = other.serve("b").unwrap();
    let answering = std::thread::spawn(move || {
        for _ in 0..101 {
            service.next().unwrap().unwrap().reply("ho").unwrap();
        }
        service
    });
    publishing.publish("a.b", "first").unwrap();
    subscription.next().unwrap().unwrap();
    publishing.request("b", "first").unwrap();
    wait_until("both to be in the log", || broker.stderr().matches("connection opened").count() == 2);
    let before = broker.stderr().lines().count();
    for _ in 0..10_000 {
        publishing.publish("a.b", "hi").unwrap();
    }
    for _ in 0..10_000 {
        subscription.next().unwrap().unwrap();
    }
    for _ in 0..100 {
        publishing.request("b", "hi").unwrap();
    }
    let _service = answering.join().unwrap();
    let log = broker.stderr();
    assert_eq!(log.lines().count(), before, "{log}");
}

// ----------------------------------------------------------------------------------------------------------- the units

fn unit(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)).unwrap()
}

/// The value of a setting of a unit, of the last line that has it.
fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let mut lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.next_back().unwrap_or_else(|| panic!("no {name} in {unit}"))
}

#[test]
fn the_users_socket_is_where_clients_look() {
    let folder = tempfile::tempdir().unwrap();
    let units = unit("user/lapce-ipc.socket");
    let path = setting(&units, "ListenStream").replace("%t", folder.path().to_str().unwrap());
    let listener = UnixListener::bind(&path).unwrap();
    let mut broker = inheriting(program(), setting(&units, "FileDescriptorName"), listener.into(), None).start();
    broker.wait_for("hint:");
    let mut ask = command(LAPCE_IPC);
    ask.env("XDG_RUNTIME_DIR", folder.path()).args(["request", "echo", "hi"]);
    let output = output(ask, b"");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hi\n"[..]), "{}", stderr(&output));
}

#[test]
fn the_users_unit_has_an_endpoint_that_no_other_user_reads() {
    let folder = tempfile::tempdir().unwrap();
    let service = unit("user/lapce-ipc.service");
    let (key, path) = setting(&service, "Environment").split_once('=').unwrap();
    let path = path.replace("%t", folder.path().to_str().unwrap());
    let brokers = ["a.sock", "b.sock"].map(|name| {
        let mut broker = command(program().to_str().unwrap());
        broker.env(key, path.replace("health", name)).env("LAPCE_IPC__HEALTH_SERVER__REQUIRED", "true");
        broker.arg("--socket").arg(folder.path().join(name));
        let mut broker = Process::start(broker);
        broker.wait_for("hint:");
        (broker, path.replace("health", name))
    });
    for (broker, path) in &brokers {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", broker.stderr());
    }
}

#[test]
fn the_documented_edit_of_the_configuration_finds_its_line() {
    let config = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml")).unwrap();
    let readme = unit("README.md");
    let pattern =
        readme.lines().find_map(|line| line.strip_prefix("sed -i \"s/^")?.split_once(".*/")).expect("an edit").0;
    assert_eq!(config.lines().filter(|line| line.starts_with(pattern)).count(), 1, "lines that begin with {pattern:?}");
}

#[test]
fn the_units_go_with_the_brokers_own_limits() {
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let config = lapce_ipc::config::Config::default();
    for folder in ["user", "system"] {
        let (service, socket) =
            (unit(&format!("{folder}/lapce-ipc.service")), unit(&format!("{folder}/lapce-ipc.socket")));
        assert_eq!((setting(&service, "Type"), setting(&service, "NotifyAccess")), ("notify", "main"));
        assert_eq!((setting(&service, "Restart"), setting(&socket, "FileDescriptorName")), ("always", "ipc"));
        // A service that stays failed is started by every waiting connection at once, and the socket unit fails.
        assert!(!service.contains("RestartPreventExitStatus="), "the socket would fail after a wrong configuration");
        assert_eq!((setting(&service, "RestartSec"), setting(&service, "StartLimitIntervalSec")), ("1s", "0"));
        let abort_ms = config.restart.watchdog_abort_ms;
        assert!(seconds(setting(&service, "WatchdogSec")) * 1000 > abort_ms + 5000, "its own comes first");
        let needed = u64::from(config.ipc.max_connections) * 6 + u64::from(config.health_server.max_connections) * 2;
        assert!(setting(&service, "LimitNOFILE").parse::<u64>().unwrap() > needed + 64);
        for breaks in ["PrivateUsers=", "PrivatePIDs=", "PrivateNetwork=", "DynamicUser="] {
            assert!(!service.lines().any(|line| line.starts_with(breaks)), "{breaks} hides who connects");
        }
    }
}

/// The units as they are, but for the program's place, in a folder.
fn units(kind: &str) -> (tempfile::TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for name in ["lapce-ipc.socket", "lapce-ipc.service"] {
        let text = unit(&format!("{kind}/{name}"));
        let exec = text.lines().find_map(|line| line.strip_prefix("ExecStart=")?.split(' ').next());
        let text = exec.map_or_else(|| text.clone(), |exec| text.replace(exec, program().to_str().unwrap()));
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        paths.push(path.to_str().unwrap().to_owned());
    }
    (folder, paths)
}

#[test]
#[ignore = "needs systemd: .ci/run observe"]
fn systemd_takes_the_units() {
    for (kind, options, most) in [("user", vec!["--user"], 9.9), ("system", vec![], 2.0)] {
        let (_folder, paths) = units(kind);
        let analyze = |command: &str, more: &[&str], paths: &[String]| {
            let mut analyze = support::command("systemd-analyze");
            // Its own, so that none of the machine's units takes part.
            analyze.env("XDG_RUNTIME_DIR", "/tmp").args(&options).args([command, "--no-pager"]).args(more).args(paths);
            output(analyze, b"")
        };
        let output = analyze("verify", &["--man=no"], &paths);
        assert_eq!((output.status.code(), stderr(&output).trim()), (Some(0), ""), "{kind}");
        let output = analyze("security", &["--offline=true"], &paths[1..]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.contains("Overall exposure level")).expect("a score").to_owned();
        support::probe::note(&format!("{kind}: {line}"));
        let score = line.split_whitespace().rev().find_map(|word| word.parse::<f64>().ok()).expect("a score");
        assert!(score <= most, "{text}");
    }
}

#[test]
#[ignore = "needs systemd: .ci/run observe"]
fn systemd_activates_the_broker_by_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ipc.sock");
    let mut activate = command("systemd-socket-activate");
    activate.arg("--listen").arg(&path).args(["--fdname=ipc", "--setenv=LAPCE_IPC__HEALTH_SERVER__PORT=0"]);
    activate.arg(program());
    let mut activate = Process::start(activate);
    wait_until("a socket", || path.exists());
    let mut ask = command(LAPCE_IPC);
    ask.arg("--socket").arg(&path).args(["request", "echo", "hi"]);
    let output = output(ask, b"");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hi\n"[..]), "{}", stderr(&output));
    activate.wait_for("socket inherited path=");
    activate.signal("TERM");
    assert_eq!(activate.code(), 0);
    assert!(path.exists());
}
