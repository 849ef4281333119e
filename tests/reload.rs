//! A configuration that is read again while the broker runs: what it changes, what needs a restart, what is wrong with
//! it, which users may order it, and a SIGHUP that means the end instead.

mod support;

use lapce_ipc::client::BreakerOrder;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;
use support::probe::lines;
use support::{Broker, DEADLINE, IPC_SERVER_MAIN, LAPCE_IPC, Process, code, stderr, wait_until};

const BEFORE: &str = "[limits]\nmax_subscriptions_per_connection = 2\n[circuit_breaker]\nfailure_threshold = 9\n";

fn broker() -> Broker {
    Broker::start_configured(|_| BEFORE.to_owned(), "", &[])
}

fn write(broker: &Broker, text: &str) {
    fs::write(broker.folder().join("config.toml"), text).unwrap();
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_reload_takes_up_what_needs_no_restart_and_names_what_does() {
    let mut broker = broker();
    let client = broker.client();
    let _service = client.serve("svc").unwrap();
    let _one = client.subscribe("a").unwrap();
    let threshold = || client.breakers().unwrap()[0].failure_threshold;
    assert_eq!(threshold(), 9);
    let output = broker.run(&["reload"]);
    assert_eq!((code(&output), stdout(&output)), (0, String::new()), "nothing has changed: {}", stderr(&output));

    write(
        &broker,
        "[limits]\nmax_subscriptions_per_connection = 1\n[circuit_breaker]\nfailure_threshold = 8\n\
         [circuit_breaker.services.svc]\nfailure_threshold = 7\n[ipc]\nworker_threads = 2\n",
    );
    let output = broker.run(&["reload"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let expected = "changed limits.max_subscriptions_per_connection\nchanged circuit_breaker.failure_threshold\n\
                    changed circuit_breaker.services\nneeds a restart ipc.worker_threads\n";
    assert_eq!(stdout(&output), expected);
    assert_eq!(threshold(), 7, "a breaker that is there has the new rules");
    let error = client.subscribe("b").unwrap_err().to_string();
    assert!(error.contains("this connection has reached its limit of 1 subscriptions"), "{error}");
    assert_eq!(lines(&mut broker, &["WARN", "configuration key needs a restart key=ipc.worker_threads"]).len(), 1);

    // By the signal, and by the other name of the command.
    write(&broker, "[limits]\nmax_subscriptions_per_connection = 3\n");
    broker.process().signal("HUP");
    broker.process().wait_for("configuration reloaded by=SIGHUP");
    client.subscribe("b").map(std::mem::forget).unwrap();
    let mut command = support::command(IPC_SERVER_MAIN);
    command.arg("--socket").arg(broker.socket()).arg("--reload");
    assert_eq!(code(&support::output(command, b"")), 0);
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi", "nobody was disconnected");
}

#[test]
fn a_wrong_configuration_changes_nothing_and_is_told_with_its_line() {
    let mut broker = broker();
    write(&broker, "[limits]\nmax_subscriptions_per_connection = 1\nmax_topic = 5\n");
    let output = broker.run(&["reload"]);
    assert_eq!(code(&output), 78, "{}", stderr(&output));
    assert!(stderr(&output).contains("config.toml:3:1: limits.max_topic: unknown key"), "{}", stderr(&output));
    broker.process().signal("HUP");
    broker.process().wait_for("configuration reload failed by=SIGHUP");
    assert_eq!(lines(&mut broker, &["ERROR", "config.toml:3:1: limits.max_topic"]).len(), 2);
    let client = broker.client();
    let _subscriptions = [client.subscribe("a").unwrap(), client.subscribe("b").unwrap()];
}

#[test]
fn a_reload_reads_the_token_again() {
    let file = |folder: &Path| {
        let token = folder.join("token");
        fs::write(&token, "first-token\n").unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        format!("[health_server]\ntoken_file = {token:?}\n")
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    fn with(broker: &mut Broker, token: &str) -> u16 {
        broker.ask("GET", "/health", &format!("Host: localhost\r\nAuthorization: Bearer {token}\r\n")).code
    }
    wait_until("the first token to open", || with(&mut broker, "first-token") == 200);
    fs::write(broker.folder().join("token"), "second-token\n").unwrap();
    assert_eq!(with(&mut broker, "second-token"), 401);
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!((with(&mut broker, "first-token"), with(&mut broker, "second-token")), (401, 200));
}

#[test]
fn orders_are_for_the_own_user_root_and_operators() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return support::probe::note("skipped: only root can become another user");
    }
    let file = |folder: &Path| {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        format!("[ipc]\nallowed_uids = [{NOBODY}]\n[shared_memory]\npermissions = 0o666\n")
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    let client = broker.client();
    let _service = client.serve("svc").unwrap();
    let program = broker.folder().join("program");
    support::copy_program(LAPCE_IPC, &program);
    let by_nobody = |broker: &Broker, args: &[&str]| {
        let mut command = support::command(program.to_str().unwrap());
        command.uid(NOBODY).gid(NOBODY).current_dir("/").arg("--socket").arg(broker.socket()).args(args);
        support::output(command, b"")
    };
    assert_eq!(code(&by_nobody(&broker, &["status"])), 0, "it may connect");
    let orders: [(&[&str], &str); 3] = [
        (&["breaker", "open", "svc"], "user 65534 may not set breakers (ipc.operator_uids)"),
        (&["reload"], "user 65534 may not reload the configuration (ipc.operator_uids)"),
        (&["upstream", "dial", "x"], "user 65534 may not dial upstreams (ipc.operator_uids)"),
    ];
    for (order, error) in orders {
        let output = by_nobody(&broker, order);
        assert_eq!(code(&output), 77, "{order:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(error), "{}", stderr(&output));
    }
    assert_eq!(client.breakers().unwrap()[0].state.as_str(), "closed");
    assert_eq!(lines(&mut broker, &["WARN", "operation denied", "uid=65534"]).len(), 3);
    let more =
        format!("[ipc]\nallowed_uids = [{NOBODY}]\noperator_uids = [{NOBODY}]\n[shared_memory]\npermissions = 0o666\n");
    write(&broker, &more);
    assert_eq!(code(&broker.run(&["reload"])), 0);
    assert_eq!(code(&by_nobody(&broker, &["breaker", "open", "svc"])), 0);
    client.set_breaker("svc", BreakerOrder::Auto, None).unwrap();
}

#[test]
fn root_may_connect_to_the_broker_of_another_user() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return support::probe::note("skipped: only root can become another user");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = folder.path().join("program");
    support::copy_program(IPC_SERVER_MAIN, &program);
    let socket = folder.path().join("ipc.sock");
    let mut serve = support::command(program.to_str().unwrap());
    serve.uid(NOBODY).gid(NOBODY).current_dir("/").arg("--socket").arg(&socket).args(["--health-addr", "127.0.0.1:0"]);
    let mut broker = Process::start(serve);
    broker.wait_for("hint:");
    let by_root = |args: &[&str]| {
        let mut command = support::command(LAPCE_IPC);
        command.arg("--socket").arg(&socket).args(args);
        support::output(command, b"")
    };
    let output = by_root(&["status"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let output = by_root(&["--trust-uid", "65534", "request", "echo", "hi"]);
    assert_eq!(output.stdout, b"hi\n", "{}", stderr(&output));
}

#[test]
fn a_broker_whose_terminal_is_closed_ends_in_order() {
    // `script` gives it a terminal of its own, and closes that when it ends.
    let Ok(_) = std::process::Command::new("script").arg("--version").output() else {
        return support::probe::note("skipped: there is no script(1)");
    };
    let folder = tempfile::tempdir().unwrap();
    let (socket, pid) = (folder.path().join("ipc.sock"), folder.path().join("pid"));
    // These tests may run under `nohup`, which the broker would heed.
    let line = format!(
        "echo $$ >{}; exec env --default-signal=HUP {IPC_SERVER_MAIN} --socket {} --health-addr 127.0.0.1:0",
        pid.display(),
        socket.display()
    );
    let mut terminal = support::command("script");
    terminal.args(["-qec", &line, "/dev/null"]).stdin(std::process::Stdio::piped());
    let mut terminal = Process::start(terminal);
    wait_until("the broker", || lapce_ipc::client::Client::builder().socket(&socket).connect().is_ok());
    let pid = fs::read_to_string(&pid).unwrap().trim().to_owned();
    // A reload, while the terminal is there.
    support::signal(pid.parse().unwrap(), "HUP");
    let client = lapce_ipc::client::Client::builder().socket(&socket).no_reconnect().connect().unwrap();
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    terminal.signal("KILL");
    let error = client.closed(Some(DEADLINE)).unwrap_err();
    assert_eq!(error.closing_code(), Some(lapce_ipc::client::ClosingCode::Shutdown), "it says goodbye: {error}");
    wait_until("it to end", || !Path::new("/proc").join(&pid).exists());
    assert!(!socket.exists(), "its socket is removed");
    terminal.code();
}
