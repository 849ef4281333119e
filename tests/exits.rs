//! How commands fail: the exit code that scripts and service managers rely on, and a message that names what was asked
//! of whom.

mod support;

use lapce_ipc::client::BreakerOrder;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;
use support::{Broker, IPC_SERVER_MAIN, LAPCE_IPC, Process, code, command, output, stderr};

/// Runs a program to its end, with variables.
#[track_caller]
fn run(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = command(program);
    command.args(args).envs(variables.iter().copied());
    output(command, b"")
}

#[track_caller]
fn fails_with(output: &Output, expected: i32, says: &[&str]) {
    let stderr = stderr(output);
    assert_eq!(code(output), expected, "{stderr}");
    for text in says {
        assert!(stderr.contains(text), "no {text:?} in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "stdout is data: {:?}", String::from_utf8_lossy(&output.stdout));
}

/// A file that only we can read and write.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

const NOBODY: u32 = 65_534;

/// A copy of a program that other users can run too, in a folder that they can write; `None` if we cannot be another.
fn for_all(program: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        support::probe::note("skipped: only root can become another user");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = folder.path().join("program");
    support::copy_program(program, &copy);
    Some((folder, copy))
}

// --------------------------------------------------------------------------------------------------------- the broker

#[test]
fn what_may_pass_by_itself_does_not_keep_the_service_manager_from_trying_again() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent/ipc.sock");
    let absent = absent.to_str().unwrap();
    fails_with(&run(IPC_SERVER_MAIN, &["--socket", absent], &[]), 69, &[absent]);
    // What does not pass: as packaging's `RestartPreventExitStatus` has it.
    let long = format!("/tmp/{}", "x".repeat(120));
    fails_with(&run(IPC_SERVER_MAIN, &["--socket", &long], &[]), 78, &["107 bytes"]);
    let precious = file(folder.path(), "precious", "data");
    fails_with(&run(IPC_SERVER_MAIN, &["--socket", &precious], &[]), 78, &["not a socket"]);
}

#[test]
fn check_config_refuses_what_the_broker_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    let config = file(folder.path(), "config.toml", &format!("[health_server]\nport = 0\ntoken_file = {token:?}\n"));
    let socket = folder.path().join("ipc.sock");
    let run = |more: &[&str]| {
        run(IPC_SERVER_MAIN, &[&["--config", &config, "--socket", socket.to_str().unwrap()], more].concat(), &[])
    };
    let refused = |why: &str| {
        let expected = format!("error: {config}:3:14: health_server.token_file: {token:?}: {why}");
        fails_with(&run(&["--check-config"]), 78, &[&expected]);
        fails_with(&run(&[]), 78, &[&expected]);
    };
    refused("no such file");
    file(folder.path(), "token", "short\n");
    refused("invalid token in the first line");
    file(folder.path(), "token", "correct-horse\n");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o604)).unwrap();
    refused("mode 0604 is readable by others");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o622)).unwrap();
    refused("mode 0622 is writable by group or others");
    // Nobody ever writes into this one.
    fs::remove_file(&token).unwrap();
    assert!(std::process::Command::new("mkfifo").arg("-m600").arg(&token).status().unwrap().success());
    refused("is not a regular file");
    fs::remove_file(&token).unwrap();
    file(folder.path(), "token", "correct-horse\n");
    let output = run(&["--check-config"]);
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("correct-horse"));
}

// --------------------------------------------------------------------------------------------------------- its clients

#[test]
fn who_is_no_broker_is_told_from_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // It may have gone already.
            let _ = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let output = run(LAPCE_IPC, &["--socket", path.to_str().unwrap(), "request", "echo", "hi"], &[]);
    fails_with(&output, 76, &["protocol violation by the broker"]);
}

#[test]
fn a_socket_that_we_may_not_open_is_no_absent_broker() {
    let Some((folder, lapce_ipc)) = for_all(LAPCE_IPC) else { return };
    let path = folder.path().join("ipc.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut ask = command(lapce_ipc.to_str().unwrap());
    ask.uid(NOBODY).gid(NOBODY).current_dir("/").arg("--socket").arg(&path).args(["request", "echo", "hi"]);
    let output = output(ask, b"");
    fails_with(&output, 77, &[&format!("error: cannot open the socket {}: permission denied", path.display())]);
    assert!(!stderr(&output).contains("start a broker"), "{}", stderr(&output));
}

#[test]
fn a_broker_of_another_user_is_trusted_when_that_is_said() {
    let Some((folder, program)) = for_all(IPC_SERVER_MAIN) else { return };
    let socket = folder.path().join("ipc.sock");
    let mut serve = command(program.to_str().unwrap());
    serve.uid(NOBODY).gid(NOBODY).current_dir("/").arg("--socket").arg(&socket);
    let mut broker = Process::start({
        serve.env("LAPCE_IPC__IPC__ALLOWED_UIDS", "0");
        serve
    });
    broker.wait_for("hint:");
    let socket = socket.to_str().unwrap();
    let ask = |options: &[&str], variables: &[(&str, &str)]| {
        run(LAPCE_IPC, &[options, &["--socket", socket, "request", "echo", "hi"]].concat(), variables)
    };
    const VARIABLE: &str = "LAPCE_IPC_TRUSTED_UIDS";
    let output = ask(&[], &[]);
    fails_with(&output, 77, &["runs as user 65534", "hint: to trust this user: --trust-uid 65534"]);
    assert_eq!(ask(&["--trust-uid", "4242", "--trust-uid", "65534"], &[]).stdout, b"hi\n");
    assert_eq!(ask(&[], &[(VARIABLE, "4242, 65534")]).stdout, b"hi\n");
    fails_with(&ask(&["--trust-uid", "4242"], &[(VARIABLE, "4243")]), 77, &["65534"]);
    fails_with(&ask(&[], &[(VARIABLE, "65534,nobody")]), 78, &["LAPCE_IPC_TRUSTED_UIDS: invalid user id \"nobody\""]);
    fails_with(&run(LAPCE_IPC, &["--trust-uid", "1", "serve"], &[]), 64, &["ipc.allowed_uids"]);
}

#[test]
fn what_the_broker_keeps_for_itself_is_no_question_of_users() {
    let broker = Broker::start();
    fails_with(&broker.run(&["reply", "echo", "--echo"]), 1, &["service echo is reserved for the broker"]);
}

#[test]
fn when_all_connections_are_taken_another_time_may_do() {
    let broker = Broker::start_with(&[("ipc.max_connections", "1")]);
    let _only = broker.client();
    fails_with(&broker.run(&["status"]), 75, &["has reached its share of 1 connections"]);
}

#[test]
fn how_a_request_ended_is_told_with_what_it_was() {
    let broker =
        Broker::start_with(&[("limits.default_request_timeout_ms", "150"), ("limits.stream_first_chunk_ms", "150")]);
    let socket = broker.socket();
    let about = |service: &str, timeout: &str| {
        format!(" (service {service}, timeout {timeout}, socket {})\n", socket.display())
    };
    let output = broker.run(&["request", "nobody", "hi", "--timeout", "20s"]);
    let text = stderr(&output);
    let after =
        text.strip_prefix("error: no responders: the service is not offered (service nobody, timeout 20s, socket ");
    assert!(after.is_some_and(|rest| rest.starts_with(socket.to_str().unwrap())), "{text}");
    let client = broker.client();
    let _slow = client.serve("slow").unwrap();
    fails_with(&broker.run(&["request", "slow", "hi"]), 75, &["deadline exceeded", &about("slow", "150ms")]);
    let output = broker.run(&["request", "slow", "hi", "--stream"]);
    fails_with(&output, 75, &["deadline exceeded", &about("slow", "150ms")]);
    client.set_breaker("slow", BreakerOrder::Open, Some(Duration::from_secs(36_000_000))).unwrap();
    let output = broker.run(&["request", "slow", "hi"]);
    fails_with(&output, 75, &["breaker open: requests to the service are rejected; try again in 416 d 1", "slow"]);
    fails_with(&broker.run(&["request", "a b", "hi"]), 64, &["error: invalid name \"a b\""]);
}

#[test]
fn a_file_without_a_name_and_a_variable_that_names_none_are_named() {
    let broker = Broker::start();
    fails_with(&broker.run(&["pub", "a.b", "@"]), 64, &["error: `@` without a file name"]);
    let output = run(IPC_SERVER_MAIN, &["--check-config"], &[("LAPCE_IPC_CONFIG", "/nonexistent/c.toml")]);
    fails_with(&output, 78, &["error: /nonexistent/c.toml: no such file, which LAPCE_IPC_CONFIG names"]);
}

#[test]
fn a_configuration_that_is_named_is_read_though_the_socket_is_too() {
    let broker = Broker::start();
    let wrong = file(broker.folder(), "wrong.toml", "[ipc]\nmax_conections = 1\n");
    let ask = |config: &str| broker.run(&["--config", config, "request", "echo", "hi"]);
    fails_with(&ask(&wrong), 78, &["wrong.toml:2:1: ipc.max_conections: unknown key"]);
    let mut by_variable = command(LAPCE_IPC);
    by_variable.env("LAPCE_IPC_SOCKET", broker.socket()).args(["--config", &wrong, "request", "echo", "hi"]);
    fails_with(&output(by_variable, b""), 78, &["unknown key"]);
    // It need not say where the broker is, and if it does, the option counts.
    let sound = file(broker.folder(), "sound.toml", "[ipc]\nsocket_path = \"/nonexistent/s\"\n");
    assert_eq!(ask(&sound).stdout, b"hi\n");
}

#[test]
fn a_timeout_is_kept_or_refused() {
    let broker = Broker::start_with(&[("limits.max_request_timeout_ms", "40000")]);
    let output = broker.run(&["request", "echo", "hi", "--timeout", "9999999h"]);
    fails_with(&output, 64, &["--timeout 35999996400s is longer than limits.max_request_timeout_ms, 40s"]);
    assert_eq!(broker.run(&["request", "echo", "hi", "--timeout", "40s"]).stdout, b"hi\n");
    // Connecting is a part of it.
    broker.stop();
    let output = broker.run(&["request", "echo", "hi", "--timeout", "100ms"]);
    broker.go_on();
    fails_with(&output, 75, &["deadline exceeded: not connected within 100ms"]);
}

#[test]
fn an_error_reply_is_shown_as_it_came_but_for_control_characters() {
    let broker = Broker::start();
    let client = broker.client();
    let mut service = client.serve("picky").unwrap();
    let answers = std::thread::spawn(move || {
        let request = service.next().unwrap().unwrap();
        request.fail("it's \"é\" in C:\\x\u{1b}[2J").unwrap();
    });
    fails_with(&broker.run(&["request", "picky"]), 1, &["error: it's \"é\" in C:\\x\\u{1b}[2J\n"]);
    answers.join().unwrap();
}

#[test]
fn a_program_that_is_not_there_is_missed_at_the_start() {
    let broker = Broker::start();
    for missing in ["/nonexistent/program", "lapce-ipc-no-such-program"] {
        let output = broker.run(&["reply", "x", "--", missing]);
        fails_with(&output, 64, &[&format!("error: cannot run {missing}: no such program")]);
    }
}

#[test]
fn text_that_looks_like_a_source_and_a_count_of_nothing() {
    let broker = Broker::start();
    for text in ["-", "@x", "-5", ""] {
        assert_eq!(broker.run(&["request", "echo", "--data", text, "--raw"]).stdout, text.as_bytes());
    }
    fails_with(&broker.run(&["pub", "a", "b", "--data", "c"]), 64, &["--data"]);
    for command in ["pub", "sub"] {
        fails_with(&broker.run(&[command, "a", "--count", "0"]), 64, &["--count", "expected a number from 1 to"]);
    }
}

// ------------------------------------------------------------------------------------------------ standard descriptors

/// Runs the command line at a broker by a shell, with a redirection.
#[track_caller]
fn redirected(broker: &Broker, redirection: &str, args: &[&str]) -> Output {
    let mut shell = command("/bin/sh");
    shell.arg("-c").arg(format!("exec \"$0\" \"$@\" {redirection}")).arg(LAPCE_IPC);
    shell.arg("--socket").arg(broker.socket()).args(args);
    output(shell, b"")
}

#[test]
fn a_closed_stdout_is_an_output_error() {
    let broker = Broker::start();
    for args in [&["request", "echo", "hi"][..], &["status"], &["breaker", "list"], &["sub", "a", "--count", "1"]] {
        fails_with(&redirected(&broker, ">&-", args), 74, &["error: cannot write to stdout: it is closed"]);
    }
    // An output that is to be ignored is not a closed one, in whatever mode it was opened.
    for ignored in [">/dev/null", "1<>/dev/null"] {
        assert_eq!(code(&redirected(&broker, ignored, &["request", "echo", "hi"])), 0, "{ignored}");
    }
    // Without output there is no error.
    assert_eq!(code(&redirected(&broker, ">&-", &["pub", "a.b", "c"])), 0);
}

#[test]
fn a_full_disk_is_an_output_error_also_of_help_and_version() {
    let broker = Broker::start();
    for args in [&["--help"][..], &["help"], &["pub", "--help"], &["--version"], &["status"]] {
        fails_with(&redirected(&broker, ">/dev/full", args), 74, &["error: cannot write to stdout: No space left"]);
    }
    let mut shell = command("/bin/sh");
    shell.arg("-c").arg("exec \"$0\" --help >/dev/full").arg(IPC_SERVER_MAIN);
    fails_with(&output(shell, b""), 74, &["cannot write to stdout"]);
}

#[test]
fn a_closed_stdin_is_not_an_empty_message() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "a.>", "--count", "1"]);
    sub.wait_for("subscribed\n");
    for args in [&["pub", "a.b", "-"][..], &["pub", "a.b"], &["request", "echo"]] {
        fails_with(&redirected(&broker, "<&-", args), 64, &["error: cannot read stdin: it is closed", "--data"]);
    }
    assert_eq!(code(&redirected(&broker, "<&-", &["pub", "a.c", "given"])), 0);
    assert_eq!(sub.code(), 0);
    assert_eq!(sub.stdout(), b"given\n");
}

#[test]
fn stdin_is_the_message_when_none_is_given() {
    let broker = Broker::start();
    assert_eq!(output(broker.command(&["request", "echo"]), b"piped").stdout, b"piped\n");
    assert_eq!(output(broker.command(&["request", "echo", "given"]), b"piped").stdout, b"given\n");
    assert_eq!(output(broker.command(&["request", "echo", "--data", ""]), b"piped").stdout, b"\n");
    let mut sub = broker.spawn(&["sub", "a.>", "--count", "1"]);
    sub.wait_for("subscribed\n");
    assert_eq!(code(&output(broker.command(&["pub", "a.b"]), b"piped")), 0);
    assert_eq!(sub.code(), 0);
    assert_eq!(sub.stdout(), b"piped\n");
}

// -------------------------------------------------------------------------------------------------- the socket's path

#[test]
fn a_socket_path_that_is_too_long_is_named_with_its_length() {
    let path = |bytes: usize| format!("/tmp/{}", "x".repeat(bytes - "/tmp/".len()));
    for bytes in [108, 109, 300] {
        let output = run(LAPCE_IPC, &["--socket", &path(bytes), "request", "echo", "hi"], &[]);
        fails_with(&output, 64, &[&format!("socket path of {bytes} bytes is longer than 107")]);
    }
    fails_with(&run(LAPCE_IPC, &["--socket", &path(107), "request", "echo", "hi"], &[]), 69, &["no broker at"]);
}

#[test]
fn a_relative_socket_path_works_where_the_absolute_one_is_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let mut serve = command(IPC_SERVER_MAIN);
    serve.current_dir(&deep).args(["--socket", "rel.sock"]);
    let mut broker = Process::start(serve);
    broker.wait_for("hint:");
    let mut ask = command(LAPCE_IPC);
    ask.current_dir(&deep).args(["--socket", "rel.sock", "request", "echo", "hi"]);
    assert_eq!(output(ask, b"").stdout, b"hi\n");
}
