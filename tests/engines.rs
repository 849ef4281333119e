//! Engines: programs that the broker runs beside itself. They are started, restarted, given up and stopped, they leave
//! no process behind however the broker ends, and their output is in the log.

mod support;

use lapce_ipc::client::ActorState;
use std::fs;
use std::path::Path;
use std::time::Instant;
use support::probe::{actor, engine_pid, is_alive, lines};
use support::{Broker, IPC_SERVER_MAIN, LAPCE_IPC, Process, code, command, copy_program, signal, stderr, wait_until};

/// Restarts that follow fast and for long.
const EAGER: &str = "initial_delay_ms = 5\nmax_delay_ms = 20\nmax_restarts = 1000000";

/// The table of an engine that is a shell script.
fn engine(name: &str, script: &str, more: &str) -> String {
    program(name, "sh", &["-c", script], more)
}

fn program(name: &str, command: &str, args: &[&str], more: &str) -> String {
    format!("[[engine]]\nname = {name:?}\ncommand = {command:?}\nargs = {args:?}\n{more}\n")
}

/// A script that writes its number and that of a child of its own, and ignores SIGTERM as its child does.
fn family(folder: &Path, name: &str) -> String {
    let (child, parent) = (folder.join(format!("{name}.child")), folder.join(format!("{name}.parent")));
    format!("trap '' TERM; sleep 1000 & echo $! >{child:?}; echo $$ >{parent:?}; echo ready; wait; sleep 1000")
}

/// The process that a script has written to a file.
fn written(file: &Path) -> u32 {
    let mut pid = None;
    wait_until("a process number", || {
        let text = fs::read_to_string(file).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.parse().ok());
        pid.is_some()
    });
    pid.expect("a number")
}

/// The numbers of a `family`.
fn family_of(folder: &Path, name: &str) -> [u32; 2] {
    ["parent", "child"].map(|role| written(&folder.join(format!("{name}.{role}"))))
}

#[track_caller]
fn wait_for_end(pids: &[u32]) {
    wait_until("the processes to end", || !pids.iter().any(|pid| is_alive(*pid)));
}

fn row(broker: &Broker, name: &str) -> String {
    let output = String::from_utf8(broker.run(&["status"]).stdout).expect("text");
    output.lines().find(|line| line.contains(name)).map(str::to_owned).unwrap_or_else(|| panic!("no {name}: {output}"))
}

#[test]
fn an_engine_knows_its_broker_and_inherits_neither_its_folder_nor_its_stdin() {
    let script = "echo \"socket=$LAPCE_IPC_SOCKET extra=$EXTRA home=$HOME cwd=$(pwd) mode=$1\"; \
                  read line || echo \"stdin is empty\"; exec sleep 1000";
    let args = ["-c", script, "sh", "fast mode"];
    let table = program("env", "sh", &args, "env = [\"EXTRA=a=b\", \"LAPCE_IPC_SOCKET=/nowhere\"]");
    let mut broker = Broker::start_configured(|_| table, "", &[]);
    broker.process().wait_for("stdin is empty");
    let socket = broker.socket();
    let expected = format!(
        "engine output engine=env line=\"socket={} extra=a=b home=/nonexistent cwd=/ mode=fast mode\"",
        socket.display()
    );
    assert_eq!(lines(&mut broker, &[&expected]).len(), 1, "{}", broker.process().stderr());
    let status = actor(&broker.client(), "engine env");
    assert_eq!((status.state, status.supervisor.as_str(), status.restarts), (ActorState::Running, "engines", 0));
    assert!(row(&broker, "engine env").contains("running"));
}

#[test]
fn a_killed_engine_is_one_line_in_the_log_and_serves_the_next_request() {
    let args = ["reply", "upper", "--", "tr", "a-z", "A-Z"];
    let mut broker = Broker::start_configured(|_| program("upper", LAPCE_IPC, &args, EAGER), "", &[]);
    for round in 1..=3 {
        let mut output = broker.run(&["request", "upper", "hi"]);
        wait_until("a reply", || {
            output = broker.run(&["request", "upper", "hi"]);
            code(&output) == 0
        });
        assert_eq!(output.stdout, b"HI\n", "{}", stderr(&output));
        signal(engine_pid(&mut broker, "upper"), "KILL");
        let words = ["WARN", "restarting actor actor=engine id=upper reason=\"killed by signal 9\"", "limit=1000000"];
        wait_until("the line", || lines(&mut broker, &words).len() == round);
        let attempt = format!("attempt={round} ");
        assert_eq!(lines(&mut broker, &["restarting actor", "id=upper", &attempt, "delay_ms="]).len(), 1);
        wait_until("the next one to start", || lines(&mut broker, &["engine started"]).len() == round + 1);
    }
    assert_eq!(lines(&mut broker, &["restarting actor", "id=upper"]).len(), 3);
    let status = actor(&broker.client(), "engine upper");
    assert_eq!((status.restarts, status.last_reason.as_deref()), (3, Some("killed by signal 9")));
}

#[test]
fn an_engine_that_ends_again_and_again_is_given_up_and_the_broker_goes_on() {
    let own = "initial_delay_ms = 1\nmax_delay_ms = 4\nmax_restarts = 4\nperiod_secs = 3600";
    let file = |_: &Path| engine("bad", "echo wrong model >&2; exit 3", own) + &engine("good", "exec sleep 1000", "");
    let mut broker = Broker::start_configured(file, "", &[]);
    broker.process().wait_for("giving up on actor actor=engine id=bad");
    let words = ["restarting actor actor=engine id=bad reason=\"exited with 3\"", "limit=4"];
    assert_eq!(lines(&mut broker, &words).len(), 4);
    assert_eq!(lines(&mut broker, &["ERROR", "giving up on actor", "id=bad", "restarts=4"]).len(), 1);
    // Its last words come before the line of its restart.
    let log = broker.process().stderr();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text} in {log}"));
    assert!(at("line=\"wrong model\"") < at("restarting actor"));
    let client = broker.client();
    assert_eq!(actor(&client, "engine bad").state, ActorState::GaveUp);
    assert_eq!(actor(&client, "engine good").state, ActorState::Running);
    let row = row(&broker, "engine bad");
    assert!(row.contains("gave up") && row.contains("exited with 3"), "{row}");
    assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    let health = broker.get("/health").json();
    assert_eq!(health["components"]["actors"]["not_running"]["engine bad"], "exited with 3", "{health}");
    wait_until("the broker to be ready", || broker.get("/ready").code == 200);
}

#[test]
fn nothing_of_an_engine_outlives_the_broker_however_it_ends() {
    for (server, name) in [(IPC_SERVER_MAIN, "TERM"), (IPC_SERVER_MAIN, "KILL"), (LAPCE_IPC, "KILL")] {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        fs::write(&config, engine("family", &family(folder.path(), "a"), "stop_timeout_ms = 100")).unwrap();
        let mut broker = command(server);
        broker.arg("--socket").arg(folder.path().join("ipc.sock")).arg("--config").arg(config);
        if server == LAPCE_IPC {
            broker.arg("serve");
        }
        let mut broker = Process::start(broker);
        broker.wait_for("line=\"ready\"");
        let family = family_of(folder.path(), "a");
        assert!(family.iter().all(|pid| is_alive(*pid)));
        broker.signal(name);
        broker.code();
        if name == "TERM" {
            assert!(!family.iter().any(|pid| is_alive(*pid)), "the broker waits for its engines");
            let log = broker.stderr();
            assert!(log.contains("engine killed engine=family reason=stop_timeout stop_timeout_ms=100"), "{log}");
            assert!(!log.contains("restarting actor"), "{log}");
        }
        wait_for_end(&family);
    }
}

#[test]
fn an_engine_may_finish_its_work_when_the_broker_stops() {
    let script = "trap 'echo finished; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let mut broker = Broker::start_configured(|_| engine("neat", script, ""), "", &[]);
    broker.process().wait_for("line=\"ready\"");
    broker.end("TERM");
    for text in ["line=\"finished\"", "engine stopped engine=neat reason=\"exited with 0\"", "broker stopped"] {
        assert_eq!(lines(&mut broker, &[text]).len(), 1, "{text}: {}", broker.process().stderr());
    }
    assert!(lines(&mut broker, &["restarting actor"]).is_empty());
}

#[test]
fn a_second_signal_kills_engines_that_do_not_stop() {
    let file = |folder: &Path| engine("family", &family(folder, "a"), "stop_timeout_ms = 600000");
    let mut broker = Broker::start_configured(file, "", &[]);
    broker.process().wait_for("line=\"ready\"");
    let family = family_of(broker.folder(), "a");
    broker.process().signal("TERM");
    broker.process().wait_for("draining");
    broker.process().signal("TERM");
    assert_eq!(broker.process().code(), 143);
    wait_for_end(&family);
}

#[test]
fn a_restarted_engine_meets_no_process_of_the_one_before() {
    let mut broker = Broker::start_configured(|folder| engine("family", &family(folder, "a"), EAGER), "", &[]);
    broker.process().wait_for("line=\"ready\"");
    let [parent, child] = family_of(broker.folder(), "a");
    signal(parent, "KILL");
    broker.process().wait_for("restarting actor");
    wait_for_end(&[parent, child]);
}

#[test]
fn a_chatty_engine_disturbs_nothing_and_its_lines_are_counted() {
    let script = "printf '%05000d\\n' 7; printf 'a\\377b\\n' >&2; echo ready; exec yes chatter >&2";
    let begun = Instant::now();
    let mut broker =
        Broker::start_configured(|_| engine("loud", script, ""), "", &[("logging.max_lines_per_second", "7")]);
    broker.process().wait_for("log lines suppressed kind=engine_output engine=loud count=");
    let long = lines(&mut broker, &["engine output engine=loud line=\"0000"]);
    assert!(long.len() == 1 && long[0].len() < 2300 && long[0].ends_with("0…\""), "{long:?}");
    assert_eq!(lines(&mut broker, &["line=\"a\u{fffd}b\""]).len(), 1);
    let client = broker.client();
    for _ in 0..100 {
        assert_eq!(client.request("echo", "hi").unwrap(), b"hi");
    }
    let logged = lines(&mut broker, &["engine output"]).len();
    let seconds = begun.elapsed().as_secs();
    assert!(logged as u64 <= 7 * (seconds + 2), "{logged} lines in {seconds} s");
    broker.end("TERM");
    assert_eq!(lines(&mut broker, &["broker stopped"]).len(), 1);
}

#[test]
fn a_program_that_does_not_exist_is_tried_again_until_it_does() {
    let file = |folder: &Path| {
        program("later", folder.join("later").to_str().expect("text"), &["1000"], EAGER)
            + &program("never", "no-such-engine", &[], EAGER)
    };
    let mut broker = Broker::start_configured(file, "", &[]);
    let absent = "id=never reason=\"cannot start no-such-engine: no such program on PATH\"";
    wait_until("attempts", || lines(&mut broker, &["restarting actor", absent]).len() > 2);
    let path = broker.folder().join("later");
    let absent = format!("cannot start {}: No such file or directory", path.display());
    wait_until("attempts", || lines(&mut broker, &["restarting actor", "id=later", &absent]).len() > 2);
    assert!(lines(&mut broker, &["engine started"]).is_empty());
    copy_program("/bin/sleep", &path);
    broker.process().wait_for("engine started engine=later");
}

#[test]
fn a_reload_starts_stops_and_restarts_engines() {
    let quick = "initial_delay_ms = 1\nmax_delay_ms = 1\nmax_restarts = 1";
    let wait = "echo ready; exec sleep 1000";
    let file = |_: &Path| engine("kept", wait, "") + &engine("gone", wait, "") + &engine("bad", "exit 1", quick);
    let mut broker = Broker::start_configured(file, "", &[]);
    let (kept, gone) = (engine_pid(&mut broker, "kept"), engine_pid(&mut broker, "gone"));
    broker.process().wait_for("giving up on actor actor=engine id=bad");
    let next = engine("kept", wait, "") + &engine("bad", "exit 1", quick) + &engine("new", "exec sleep 1000", "");
    fs::write(broker.folder().join("config.toml"), next.clone()).unwrap();
    assert_eq!(broker.run(&["reload"]).stdout, b"changed engine\n");
    wait_for_end(&[gone]);
    engine_pid(&mut broker, "new");
    wait_until("a new attempt", || lines(&mut broker, &["giving up on actor actor=engine id=bad"]).len() == 2);
    let client = broker.client();
    let names = || client.status().unwrap().actors.into_iter().map(|actor| actor.name).collect::<Vec<_>>();
    let mut engines = names();
    engines.retain(|name| name.starts_with("engine "));
    engines.sort();
    assert_eq!(engines, ["engine bad", "engine kept", "engine new"]);
    assert_eq!(engine_pid(&mut broker, "kept"), kept, "what has not changed runs on");
    let new = engine_pid(&mut broker, "new");
    fs::write(broker.folder().join("config.toml"), next.replace("sleep 1000", "sleep 2000")).unwrap();
    broker.process().signal("HUP");
    wait_for_end(&[kept, new]);
    wait_until("both to start again", || lines(&mut broker, &["engine started", "engine=kept "]).len() == 2);
    assert!(lines(&mut broker, &["restarting actor", "id=kept"]).is_empty());
}
