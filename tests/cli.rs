//! The command line, as its users and their scripts see it: real processes, real sockets, exit codes and streams.

mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use support::{Broker, IPC_SERVER_MAIN, LAPCE_IPC, Process, code, command, output, signal, stderr, wait_until};

/// Bytes that do not repeat soon, and are no text.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(next());
    }
    bytes.truncate(len);
    bytes
}

#[track_caller]
fn fails_with(output: &std::process::Output, expected: i32, says: &str) {
    let stderr = stderr(output);
    assert_eq!(code(output), expected, "{stderr}");
    assert!(stderr.contains(says), "no {says:?} in: {stderr}");
    assert!(output.stdout.is_empty(), "stdout is data: {:?}", String::from_utf8_lossy(&output.stdout));
}

// ------------------------------------------------------------------------------------------------ publish, subscribe

#[test]
fn what_is_published_is_printed_a_line_each() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "lapce.>", "--count", "3"]);
    sub.wait_for("subscribed\n");
    let published = broker.run(&["pub", "lapce.ai.completion", "hello"]);
    assert_eq!((code(&published), published.stdout, published.stderr), (0, vec![], vec![]));
    assert_eq!(code(&broker.run(&["pub", "other.topic", "not for us"])), 0);
    assert_eq!(code(&broker.run(&["pub", "lapce.empty"])), 0);
    let from_stdin = output(broker.command(&["pub", "lapce.x", "-"]), b"from stdin");
    assert_eq!(code(&from_stdin), 0);
    assert_eq!(sub.code(), 0);
    assert_eq!(sub.stdout(), b"hello\n\nfrom stdin\n");
}

#[test]
fn a_file_of_five_mebibytes_arrives_byte_for_byte() {
    let broker = Broker::start();
    let file = broker.folder().join("file");
    let bytes = noise(5 << 20);
    fs::write(&file, &bytes).unwrap();
    let mut sub = broker.spawn(&["sub", "lapce.>", "--count", "2", "--raw"]);
    sub.wait_for("subscribed\n");
    assert_eq!(code(&broker.run(&["pub", "lapce.word", "hello"])), 0);
    assert_eq!(code(&broker.run(&["pub", "lapce.file", &format!("@{}", file.display())])), 0);
    assert_eq!(sub.code(), 0);
    assert!(sub.stdout() == [b"hello", &bytes[..]].concat(), "sent and received differ");
}

#[test]
fn json_lines_tell_text_from_bytes() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "lapce.*", "--count", "3", "--json"]);
    sub.wait_for("subscribed\n");
    assert_eq!(code(&broker.run(&["pub", "lapce.text", "a \"b\"\n", "--count", "2"])), 0);
    assert_eq!(code(&output(broker.command(&["pub", "lapce.bytes", "-"]), &[0xff, 0x00])), 0);
    assert_eq!(sub.code(), 0);
    let stdout = sub.stdout();
    let lines: Vec<serde_json::Value> = stdout
        .split(|byte| *byte == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[0]["topic"], &lines[0]["data"]), (&"lapce.text".into(), &"a \"b\"\n".into()));
    assert_eq!(lines[1]["sequence"].as_u64().unwrap(), lines[0]["sequence"].as_u64().unwrap() + 1);
    assert_eq!(lines[1]["publisher"], lines[0]["publisher"]);
    assert_ne!(lines[2]["publisher"], lines[0]["publisher"]);
    assert_eq!(lines[2]["data_base64"], "/wA=");
    assert!(lines[2].get("data").is_none() && lines[0].get("data_base64").is_none());
}

#[test]
fn topics_are_printed_before_their_messages() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "lapce.>", "--topics", "--count", "2"]);
    sub.wait_for("subscribed\n");
    assert_eq!(code(&broker.run(&["pub", "lapce.a", "one"])), 0);
    assert_eq!(code(&broker.run(&["pub", "lapce.b.c"])), 0);
    assert_eq!(sub.code(), 0);
    assert_eq!(sub.stdout(), b"lapce.a one\nlapce.b.c \n");
    fails_with(&broker.run(&["sub", "a", "-t", "--json"]), 64, "--json");
}

#[test]
fn an_event_of_the_broker_is_printed_with_its_topic() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "$sys.connection.>", "--count", "1"]);
    sub.wait_for("subscribed\n");
    assert_eq!(code(&broker.run(&["request", "echo", "hi"])), 0);
    assert_eq!(sub.code(), 0);
    let stdout = String::from_utf8(sub.stdout()).unwrap();
    assert!(stdout.starts_with("$sys.connection.") && stdout.contains(" {"), "{stdout}");
}

#[test]
fn a_reader_that_has_enough_ends_the_subscription_in_silence() {
    let broker = Broker::start();
    let mut child = broker.command(&["sub", "lapce.>"]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert_eq!(line, "subscribed\n");
    assert_eq!(code(&broker.run(&["pub", "lapce.x", "one"])), 0);
    line.clear();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    // As `head -1` does. No further message is needed for it to be noticed.
    drop(stdout);
    let mut status = None;
    wait_until("sub to end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    let mut rest = String::new();
    errors.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_subscriber_that_cannot_print_drops_the_oldest_and_says_so() {
    let broker = Broker::start_with(&[("delivery.subscription_credit_bytes", "65536")]);
    // Nobody reads its stdout yet.
    let mut child = broker.command(&["sub", "lapce.>", "--json", "--policy", "drop-oldest"]).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert_eq!(line, "subscribed\n");
    let client = broker.client();
    let publisher = client.publisher("lapce.x").unwrap();
    let mut published = 5_000u64;
    for _ in 0..published {
        publisher.publish([b'x'; 500]).unwrap();
    }
    client.flush().unwrap();
    // Its ring may be full for a moment, and then the broker drops what comes: until one has found room.
    wait_until("the last message to find room", || {
        let before = broker.counter("delivered");
        publisher.publish("the last").unwrap();
        client.flush().unwrap();
        published += 1;
        broker.counter("delivered") > before
    });
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (mut printed, mut sequence) = (0u64, 0);
    loop {
        let mut line = String::new();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0);
        let message: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(message["sequence"].as_u64().unwrap() > sequence, "in order");
        (printed, sequence) = (printed + 1, message["sequence"].as_u64().unwrap());
        if message["data"] == "the last" {
            break;
        }
    }
    // What was dropped is told when there is nothing else to do.
    let mut dropped = 0;
    while printed + dropped < published {
        line.clear();
        assert_ne!(errors.read_line(&mut line).unwrap(), 0, "{printed} printed and {dropped} dropped of {published}");
        let number = line.strip_prefix("dropped ").and_then(|rest| rest.split(' ').next()).expect("dropped N messages");
        dropped += number.parse::<u64>().unwrap();
    }
    assert_eq!(printed + dropped, published);
    assert!(dropped > 0, "the test publishes more than fits");
    signal(child.id(), "TERM");
    child.wait().unwrap();
}

#[test]
fn names_and_options_that_make_no_sense_are_usage_errors() {
    let broker = Broker::start();
    fails_with(&broker.run(&["pub", "a..b", "x"]), 64, "error: ");
    fails_with(&broker.run(&["pub", "$sys.forged", "x"]), 64, "error: ");
    fails_with(&broker.run(&["pub", "a\u{1b}[2J", "x"]), 64, "error: ");
    fails_with(&broker.run(&["sub", "a.>.b"]), 64, "error: ");
    fails_with(&broker.run(&["request", "a b", "x"]), 64, "error: ");
    fails_with(&broker.run(&["pub", "a", "@/nonexistent/file"]), 64, "cannot read /nonexistent/file");
    fails_with(&broker.run(&["sub", "a", "--json", "--raw"]), 64, "--raw");
    fails_with(&broker.run(&["sub", "a", "--count", "0"]), 64, "--count");
    fails_with(&broker.run(&["request", "a", "--timeout", "2"]), 64, "500ms");
    fails_with(&broker.run(&["reply", "a"]), 64, "--echo");
    fails_with(&broker.run(&["reply", "a", "--echo", "--listen", "/nonexistent/x"]), 69, "cannot listen");
    fails_with(&broker.run(&["frobnicate"]), 64, "frobnicate");
    fails_with(&output(command(IPC_SERVER_MAIN).arg_in("--health-addr").arg_in("nonsense"), b""), 64, "HOST:PORT");
}

/// `Command::arg` by value.
trait ArgIn {
    fn arg_in(self, arg: &str) -> Self;
}

impl ArgIn for std::process::Command {
    fn arg_in(mut self, arg: &str) -> Self {
        self.arg(arg);
        self
    }
}

#[test]
fn help_and_version_are_data_and_no_error() {
    for program in [LAPCE_IPC, IPC_SERVER_MAIN] {
        for option in ["--help", "--version"] {
            let output = output(command(program).arg_in(option), b"");
            assert_eq!(code(&output), 0);
            assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{program} {option}");
        }
    }
    for name in ["serve", "pub", "sub", "request", "reply", "status", "breaker", "bench"] {
        for columns in [80, 100] {
            let mut help = command(LAPCE_IPC);
            help.args([name, "--help"]).env("COLUMNS", columns.to_string());
            let text = String::from_utf8_lossy(&output(help, b"").stdout).into_owned();
            assert!(text.contains("Examples:") || name == "serve", "{name}: {text}");
            let global = text.split("Global options:").nth(1).unwrap_or_else(|| panic!("{name}: {text}"));
            assert!(global.contains("--socket") && global.contains("--config"), "{name}: {text}");
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.windows(2) {
                assert!(pair[0].chars().count() <= columns, "{name}: {text}");
                // A line that ends early, though the next one's first word fits, is one that was broken by hand.
                let is_prose = |line: &str| !line.is_empty() && !line.starts_with([' ', '-']) && !line.ends_with(':');
                let next = pair[1].split_whitespace().next().unwrap_or_default().chars().count();
                let fits = pair[0].chars().count() + 1 + next <= columns;
                assert!(!(is_prose(pair[0]) && is_prose(pair[1]) && fits), "{name} at {columns}: {text}");
            }
        }
    }
}

#[test]
fn a_message_that_is_too_large_is_refused_before_it_is_sent() {
    let broker = Broker::start_with(&[("ipc.max_message_size", "1000")]);
    let file = broker.folder().join("file");
    fs::write(&file, noise(1001)).unwrap();
    let large = "x".repeat(1001);
    fails_with(&broker.run(&["pub", "a", &large]), 65, "1000 bytes");
    fails_with(&broker.run(&["pub", "a", &format!("@{}", file.display())]), 65, "1000 bytes");
    fails_with(&output(broker.command(&["request", "echo", "-"]), large.as_bytes()), 65, "1000 bytes");
    assert_eq!(broker.run(&["request", "echo", &large[1..], "--raw"]).stdout.len(), 1000);
}

// -------------------------------------------------------------------------------------------------- request and reply

#[test]
fn a_request_is_answered() {
    let broker = Broker::start();
    assert_eq!(broker.run(&["request", "echo", "hi"]).stdout, b"hi\n");
    assert_eq!(broker.run(&["request", "echo", "hi", "--raw"]).stdout, b"hi");
    assert_eq!(broker.run(&["request", "echo", "hi", "--stream"]).stdout, b"hi\n");
    assert_eq!(broker.run(&["request", "echo"]).stdout, b"\n");
    let bytes = noise(3 << 20);
    let echoed = output(broker.command(&["request", "echo", "-", "--raw", "--wait", "block"]), &bytes);
    assert!(echoed.stdout == bytes, "{} bytes came back: {}", echoed.stdout.len(), stderr(&echoed));
}

#[test]
fn how_a_request_ends_is_in_the_exit_code() {
    let broker = Broker::start();
    fails_with(&broker.run(&["request", "nobody", "hi"]), 69, "no responders");
    let mut slow = broker.spawn(&["reply", "slow", "--exec", "exec sleep 60"]);
    slow.wait_for("serving\n");
    fails_with(&broker.run(&["request", "slow", "hi", "--timeout", "50ms"]), 75, "deadline");

    let mut asking = broker.spawn(&["request", "slow", "hi"]);
    wait_until("the request to be under way", || {
        broker.client().status().unwrap().services.iter().any(|s| s.name.as_str() == "slow" && s.outstanding > 0)
    });
    slow.signal("KILL");
    assert_eq!(asking.code(), 75, "{}", asking.stderr());
    assert!(asking.stderr().contains("error: responder lost"), "{}", asking.stderr());

    let nowhere = output(command(LAPCE_IPC).arg_in("--socket").arg_in("/nonexistent/s").arg_in("status"), b"");
    fails_with(&nowhere, 69, "hint: start a broker: lapce-ipc serve --socket /nonexistent/s");
}

#[test]
fn a_command_answers_with_what_it_prints() {
    let broker = Broker::start();
    let mut reply = broker.spawn(&["reply", "upper", "--", "tr", "a-z", "A-Z"]);
    reply.wait_for("serving\n");
    assert_eq!(broker.run(&["request", "upper", "hi there", "--raw"]).stdout, b"HI THERE");
    assert_eq!(broker.run(&["request", "upper"]).stdout, b"\n");
    // Larger than all pipes and credits, in both directions at once.
    let bytes = noise(3 << 20);
    let upper: Vec<u8> = bytes.iter().map(u8::to_ascii_uppercase).collect();
    for how in [&["request", "upper", "-", "--raw"][..], &["request", "upper", "-", "--raw", "--stream"]] {
        let answer = output(broker.command(how), &bytes);
        assert!(answer.stdout == upper, "{how:?}: {} bytes: {}", answer.stdout.len(), stderr(&answer));
    }
    reply.signal("TERM");
    assert_eq!(reply.code(), 143);
    fails_with(&broker.run(&["request", "upper", "hi"]), 69, "no responders");
}

#[test]
fn a_shell_line_answers_and_its_failure_is_an_error_reply() {
    let broker = Broker::start();
    let line = r#"read word; echo "got $word"; echo first >&2; echo "bad $word" >&2; test "$word" != bad"#;
    let mut reply = broker.spawn(&["reply", "shell", "--exec", line]);
    reply.wait_for("serving\n");
    assert_eq!(output(broker.command(&["request", "shell", "-", "--raw"]), b"good\n").stdout, b"got good\n");
    fails_with(&output(broker.command(&["request", "shell", "-"]), b"bad\n"), 1, "error: bad bad\n");
    let mut silent = broker.spawn(&["reply", "silent", "--exec", "exit 3"]);
    silent.wait_for("serving\n");
    fails_with(&broker.run(&["request", "silent"]), 1, "error: sh exited with 3\n");
    // It was there when we began.
    let program = broker.folder().join("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let mut missing = broker.spawn(&["reply", "missing", "--", program.to_str().unwrap()]);
    missing.wait_for("serving\n");
    fs::remove_file(&program).unwrap();
    fails_with(&broker.run(&["request", "missing"]), 1, &format!("cannot run {}", program.display()));
}

#[test]
fn chunks_are_printed_as_they_come() {
    let broker = Broker::start();
    let go = broker.folder().join("go");
    let line = format!("echo one; while ! test -e {}; do sleep 0.01; done; echo two", go.display());
    let mut reply = broker.spawn(&["reply", "tokens", "--exec", &line]);
    reply.wait_for("serving\n");
    let mut asking = broker.spawn(&["request", "tokens", "--stream"]);
    wait_until("the first chunk", || asking.stdout() == b"one\n");
    fs::write(&go, "").unwrap();
    assert_eq!(asking.code(), 0);
    assert_eq!(asking.stdout(), b"one\ntwo\n\n");
}

/// A responder whose command writes its process number to a file and sleeps; its grandchild's number, that is.
fn sleeper(broker: &Broker) -> (Process, impl Fn() -> u32) {
    let pids = broker.folder().join("pids");
    let line = format!("sleep 600 & echo $! >>{}; wait", pids.display());
    let mut reply = broker.spawn(&["reply", "sleep", "--exec", &line]);
    reply.wait_for("serving\n");
    let pid = move || {
        let text = || fs::read_to_string(&pids).unwrap_or_default();
        wait_until("the command to run", || text().ends_with('\n'));
        text().trim().parse().unwrap()
    };
    (reply, pid)
}

fn is_alive(pid: u32) -> bool {
    // The state follows the name, which is in brackets; a zombie has ended.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn an_interrupted_request_exits_130_and_its_command_is_killed() {
    let broker = Broker::start();
    let (mut reply, pid) = sleeper(&broker);
    let mut asking = broker.spawn(&["request", "sleep"]);
    let pid = pid();
    assert!(is_alive(pid));
    asking.signal("INT");
    assert_eq!(asking.code(), 130);
    wait_until("the command to be killed", || !is_alive(pid));
    assert!(!reply.has_ended());
}

#[test]
fn a_command_does_not_outlive_its_responder() {
    let broker = Broker::start();
    let (mut reply, pid) = sleeper(&broker);
    let _asking = broker.spawn(&["request", "sleep"]);
    let pid = pid();
    reply.signal("INT");
    assert_eq!(reply.code(), 130);
    wait_until("the command to be killed", || !is_alive(pid));
}

#[test]
fn two_responders_share_the_requests() {
    let broker = Broker::start();
    let line = |name: &str| format!("cat >/dev/null; echo x >>{}/{name}; echo {name}", broker.folder().display());
    let mut one = broker.spawn(&["reply", "shared", "--exec", &line("one")]);
    let mut two = broker.spawn(&["reply", "shared", "--exec", &line("two")]);
    one.wait_for("serving\n");
    two.wait_for("serving\n");
    let client = broker.client();
    let answers: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let ask = || (0..50).map(|_| client.request("shared", "x").unwrap()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let of = |name: &str| answers.iter().filter(|answer| **answer == format!("{name}\n").as_bytes()).count();
    assert_eq!(of("one") + of("two"), 200);
    assert!(of("one") >= 40 && of("two") >= 40, "{} and {}", of("one"), of("two"));
    let ran = |name: &str| fs::read_to_string(broker.folder().join(name)).unwrap().lines().count();
    assert_eq!((ran("one"), ran("two")), (of("one"), of("two")), "each request runs once");
}

#[test]
fn echo_answers_and_waits_for_the_next_broker() {
    let mut broker = Broker::start();
    let mut reply = broker.spawn(&["reply", "mirror", "--echo"]);
    reply.wait_for("serving\n");
    assert_eq!(broker.run(&["request", "mirror", "hi"]).stdout, b"hi\n");
    broker.process().signal("TERM");
    reply.wait_for("connection lost; reconnecting");
    assert_eq!(broker.process().code(), 0);
    assert!(!reply.has_ended());
    reply.signal("INT");
    assert_eq!(reply.code(), 130, "{}", reply.stderr());
}

// ------------------------------------------------------------------------------------------------- status and signals

#[test]
fn status_is_told_to_people_and_programs() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "lapce.>"]);
    sub.wait_for("subscribed\n");
    assert_eq!(broker.run(&["request", "echo", "hi"]).stdout, b"hi\n");
    let output = broker.run(&["status"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let echo = text.lines().find(|line| line.trim_start().starts_with("echo ")).unwrap();
    assert_eq!(echo.split_whitespace().nth(1), Some("-"), "nobody is missing: {text}");
    for expected in ["broker ", "lapce-ipc-sub", "services (", "counters (", &broker.socket().display().to_string()] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    let output = broker.run(&["status", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["subscriptions"], 1);
    let names: Vec<_> = report["connections"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"lapce-ipc-sub") && names.contains(&"lapce-ipc-status"), "{names:?}");
    assert_eq!(report["pid"].as_u64().unwrap(), u64::from({ broker }.process().pid()));
}

#[test]
fn a_subscriber_that_is_interrupted_exits_130() {
    let broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "lapce.>"]);
    sub.wait_for("subscribed\n");
    sub.signal("INT");
    assert_eq!((sub.code(), sub.stderr().as_str()), (130, "subscribed\n"));
}

#[test]
fn a_command_that_ends_says_goodbye() {
    let mut broker = Broker::start_with(&[("logging.short_connection_ms", "0")]);
    let watch = broker.client();
    let gone = || watch.status().unwrap().connections.len() == 1;
    let mut sub = broker.spawn(&["sub", "a", "--count", "1"]);
    sub.wait_for("subscribed\n");
    watch.publish("a", "").unwrap();
    assert_eq!(sub.code(), 0);
    wait_until("the subscriber to be gone", gone);
    for (command, says) in [(&["sub", "a"][..], "subscribed\n"), (&["reply", "a", "--echo"], "serving\n")] {
        let mut process = broker.spawn(command);
        process.wait_for(says);
        process.signal("TERM");
        assert_eq!((process.code(), process.stderr().as_str()), (143, says));
        wait_until("it to be gone", gone);
    }
    let mut log = String::new();
    wait_until("three lines", || {
        log = broker.process().stderr();
        log.matches("connection closed").count() >= 3
    });
    assert!(!log.contains("connection lost"), "{log}");
    assert_eq!(log.matches("connection closed").count(), 3, "{log}");
}

// --------------------------------------------------------------------------------------------------------- the broker

#[test]
fn check_config_shows_each_value_and_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, "[ipc]\nmax_connections = 7\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let check = |program: std::process::Command| {
        let mut command = program;
        command.arg("--config").arg(&file).args([
            "--check-config",
            "--health-addr",
            "[::1]:9191",
            "--socket",
            "/tmp/x.sock",
        ]);
        output(command, b"")
    };
    for program in [command(IPC_SERVER_MAIN), command(LAPCE_IPC).arg_in("serve")] {
        let output = check(program);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
        for expected in [
            &format!("ipc.max_connections = 7   # {}:2", file.display()),
            "ipc.socket_path = \"/tmp/x.sock\"   # command line",
            "health_server.host = \"::1\"   # command line",
            "health_server.port = 9191   # command line",
            "shared_memory.slot_size = 1024   # default",
        ] {
            assert!(text.contains(expected), "no {expected:?} in {text}");
        }
    }
    fs::write(&file, "[ipc]\nmax_conections = 7\nmax_message_size = 0\n").unwrap();
    let checked = check(command(IPC_SERVER_MAIN));
    fails_with(&checked, 78, &format!("error: {}:2:1: ipc.max_conections: unknown key", file.display()));
    fails_with(&checked, 78, &format!("error: {}:3:", file.display()));
    // The configuration also tells a client where the broker is.
    let mut client = command(LAPCE_IPC);
    client.arg("--config").arg(&file).arg("status");
    fails_with(&output(client, b""), 78, "unknown key");
}

#[test]
fn the_socket_is_found_by_option_then_variable_then_named_configuration_then_runtime_folder() {
    let broker = Broker::start();
    let file = broker.folder().join("config.toml");
    let socket = broker.socket();
    let with_socket = |socket: &str| {
        fs::write(&file, format!("[ipc]\nsocket_path = \"{socket}\"\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let ask = |option: Option<&str>, variable: Option<&str>, config: bool| {
        let mut command = command(LAPCE_IPC);
        command.args(["request", "echo", "hi"]);
        option.map(|path| command.args(["--socket", path]));
        variable.map(|path| command.env("LAPCE_IPC_SOCKET", path));
        if config {
            command.arg("--config").arg(&file);
        }
        command.env("XDG_RUNTIME_DIR", broker.folder());
        code(&output(command, b""))
    };
    let here = socket.to_str().unwrap();
    with_socket("/nonexistent/s");
    assert_eq!(ask(Some(here), Some("/nonexistent/s"), true), 0);
    assert_eq!(ask(None, Some(here), true), 0);
    assert_eq!(ask(None, None, true), 69);
    with_socket(here);
    assert_eq!(ask(None, None, true), 0);
    assert_eq!(ask(None, Some("/nonexistent/s"), true), 69);
    std::os::unix::fs::symlink(here, broker.folder().join("lapce-ipc.sock")).unwrap();
    assert_eq!(ask(None, None, false), 0);
}

#[test]
fn an_error_names_what_chose_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, "[ipc]\nsocket_path = \"/nonexistent/configured\"\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("lapce-ipc.sock")).unwrap());
    let ask = |args: &[&str], variables: &[(&str, &str)], says: &str| {
        let mut command = command(LAPCE_IPC);
        command.args(args).args(["request", "echo", "hi"]).envs(variables.iter().copied());
        fails_with(&output(command, b""), 69, says);
    };
    ask(
        &["--socket", "/nonexistent/s"],
        &[],
        "(chosen by --socket)\nhint: start a broker: lapce-ipc serve --socket /nonexist",
    );
    ask(&[], &[("LAPCE_IPC_SOCKET", "/nonexistent/s")], "(chosen by LAPCE_IPC_SOCKET)");
    ask(&["--config", file.to_str().unwrap()], &[], "no broker at /nonexistent/configured: the socket does not exist");
    ask(&["--config", file.to_str().unwrap()], &[], "(chosen by --config)");
    ask(&[], &[("XDG_RUNTIME_DIR", folder.path().to_str().unwrap())], "(chosen by XDG_RUNTIME_DIR)");
}

/// The library and the command line find the same socket: a configuration that only the broker reads misleads neither.
#[test]
fn an_installed_configuration_does_not_mislead_clients() {
    let broker = Broker::start();
    let home = broker.folder().join("home/lapce-ipc");
    fs::create_dir_all(&home).unwrap();
    let installed = home.join("config.toml");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml"), &installed).unwrap();
    std::os::unix::fs::symlink(broker.socket(), broker.folder().join("lapce-ipc.sock")).unwrap();
    let ask = || {
        let mut command = command(LAPCE_IPC);
        command.env("XDG_CONFIG_HOME", home.parent().unwrap()).env("XDG_RUNTIME_DIR", broker.folder());
        command.args(["request", "echo", "hi"]);
        output(command, b"").stdout
    };
    assert_eq!(ask(), b"hi\n");
    fs::write(&installed, "[ipc]\nsocket_path = \"/nonexistent/s\"\n").unwrap();
    assert_eq!(ask(), b"hi\n");
}

#[test]
fn the_broker_says_what_it_is_and_what_to_try() {
    let mut broker = Broker::start_with(&[("ipc.max_connections", "17")]);
    let log = broker.process().stderr();
    let socket = broker.socket();
    for expected in [
        format!("socket={}", socket.display()),
        "config=\"built-in defaults\"".to_owned(),
        "max_connections=17".to_owned(),
        concat!("lapce-ipc ", env!("CARGO_PKG_VERSION")).to_owned(),
        format!("lapce-ipc --socket {} request echo hi", socket.display()),
    ] {
        assert!(log.contains(&expected), "no {expected:?} in {log}");
    }
    assert!(broker.process().stdout().is_empty());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_broker_is_refused_and_a_dead_ones_socket_is_replaced() {
    let mut broker = Broker::start();
    let serve = || {
        let mut command = command(LAPCE_IPC);
        command.arg("serve").arg("--socket").arg(broker.socket());
        command
    };
    fails_with(&output(serve(), b""), 69, "another broker is listening");
    assert_eq!(broker.run(&["request", "echo", "hi"]).stdout, b"hi\n");
    let second = serve();
    broker.process().signal("KILL");
    assert_eq!(broker.process().code(), -9);
    assert!(broker.socket().exists(), "a killed broker leaves its socket");
    fails_with(&broker.run(&["request", "echo", "hi"]), 69, "no process listens");
    let mut second = Process::start(second);
    second.wait_for("hint:");
    assert_eq!(broker.run(&["request", "echo", "hi"]).stdout, b"hi\n");
    second.signal("INT");
    assert_eq!(second.code(), 0);
    assert!(!broker.socket().exists());
}

#[test]
fn a_path_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, "data").unwrap();
    let mut serve = command(IPC_SERVER_MAIN);
    serve.arg("--socket").arg(&path);
    fails_with(&output(serve, b""), 78, "not a socket");
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn sigterm_ends_the_broker_in_order() {
    let mut broker = Broker::start();
    let mut sub = broker.spawn(&["sub", "lapce.>"]);
    sub.wait_for("subscribed\n");
    assert_eq!(code(&broker.run(&["pub", "lapce.x", "delivered", "--count", "100"])), 0);
    broker.process().signal("TERM");
    assert_eq!(broker.process().code(), 0, "{}", broker.process().stderr());
    assert!(!broker.socket().exists());
    // The lock is gone, too. What the next broker reads is that `sub` comes back, and by what to know a publisher.
    let left = fs::read_dir(broker.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(BTreeSet::from_iter(left), ["ipc.sock.publishers", "ipc.sock.sessions"].map(OsString::from).into());
    sub.wait_for("connection lost; reconnecting");
    wait_until("what was delivered to be printed", || sub.stdout() == "delivered\n".repeat(100).as_bytes());
    sub.signal("INT");
    assert_eq!(sub.code(), 130, "{}", sub.stderr());
}

// -------------------------------------------------------------------------------------------------------------- bench

#[test]
fn bench_measures_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |args: &[&str]| {
        let mut command = command(LAPCE_IPC);
        command.arg("bench").args(args).args(["--seconds", "1"]).env("TMPDIR", folder.path());
        output(command, b"")
    };
    for (mode, key, processes) in [
        ("latency", "p50_ns", 2),
        ("routed", "p999_ns", 3),
        ("paced", "p50_ns", 2),
        ("requests", "msgs_per_s", 2),
        ("pubsub", "msgs_per_s", 3),
    ] {
        let output = bench(&[mode, "--json", "--size", "100"]);
        assert_eq!(code(&output), 0, "{mode}: {}", stderr(&output));
        let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(figures[key].as_u64().unwrap() > 0, "{key} in {figures}");
        assert!(figures["floor_ns"].as_u64().unwrap() > 0, "{figures}");
        assert_eq!((&figures["mode"], &figures["wait"]), (&mode.into(), &"adaptive".into()));
        assert_eq!((&figures["size"], &figures["processes"]), (&100.into(), &processes.into()));
    }
    let output = bench(&["connections", "--count", "20", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| figures[key].as_u64().unwrap_or_else(|| panic!("no {key} in {figures}"));
    assert_eq!((number("connections"), number("idle_seconds"), number("processes")), (20, 1, 2));
    // A page of its own at least, shared with its client.
    assert!(number("rss_bytes_per_connection") >= 4096, "{figures}");
    assert!(number("bytes_per_connection") >= number("rss_bytes_per_connection"), "{figures}");
    assert!(number("floor_ns") > 0 && figures["wait"] == "adaptive", "{figures}");
    assert!(figures["page_table_bytes_per_connection"].is_u64() && figures["idle_cpu_ticks"].is_u64(), "{figures}");
    let output = bench(&["latency", "--wait", "block"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\np99.9 "), "{}", stderr(&output));
    let output = bench(&["paced", "--size", "7"]);
    assert_eq!((code(&output), output.stdout.len()), (64, 0), "{}", stderr(&output));
    assert!(stderr(&output).contains("--size of 8 bytes or more"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn bench_has_many_publishers_subscribers_topics_and_idle_connections() {
    let bench = |args: &[&str]| {
        let mut command = command(LAPCE_IPC);
        command.arg("bench").args(args).args(["--seconds", "1", "--json"]);
        let output = output(command, b"");
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let figures = bench(&["fanout", "--subscribers", "20"]);
    assert_eq!((&figures["subscribers"], &figures["processes"]), (&20.into(), &10.into()));
    assert!(figures["samples"].as_u64().is_some_and(|samples| samples > 0 && samples % 20 == 0), "{figures}");
    let figures = bench(&["pubsub", "--publishers", "3", "--topics", "9000", "--idle", "100"]);
    assert!(figures["msgs_per_s"].as_u64().unwrap() > 0, "{figures}");
    let figures = bench(&["pubsub", "--batch", "64"]);
    assert!(figures["msgs_per_s"].as_u64().unwrap() > 0, "{figures}");
}

#[test]
fn bench_measures_several_times_in_turn_with_another_build() {
    let bench = |args: &[&str]| {
        let mut command = command(LAPCE_IPC);
        command.args(["bench", "latency", "--seconds", "1", "--runs", "2"]).args(args);
        output(command, b"")
    };
    let output = bench(&["--json", "--against", LAPCE_IPC]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&figures["runs"], &figures["mode"]), (&2.into(), &"latency".into()));
    for build in ["this", "against"] {
        assert!(figures[build]["p50_ns"]["median"].as_f64().unwrap() > 0.0, "{figures}");
    }
    assert!(figures["ratio"]["p50_ns"]["median"].as_f64().unwrap() > 0.0, "{figures}");
    let output = bench(&[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("\np50_ns "), "{}", stderr(&output));
    let output = bench(&["--against", "/nowhere"]);
    assert_eq!((code(&output), output.stdout.len()), (69, 0), "{}", stderr(&output));
    assert!(stderr(&output).contains("bench --runs: /nowhere: "), "{}", stderr(&output));
}

#[test]
fn bench_opens_more_connections_than_a_broker_takes_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(LAPCE_IPC);
    command.args(["bench", "connections", "--count", "1010", "--seconds", "1"]).env("TMPDIR", folder.path());
    let output = output(command, b"");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    for line in ["\nconnections  1010\n", "\nresident ", "\npage tables ", "\ntogether ", "\nidle CPU "] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn bench_says_the_same_to_a_broker_with_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    // Too few connections, and no endpoints: what is said on the command line counts.
    fs::write(&file, "[ipc]\nmax_connections = 3\n").unwrap();
    let bench = |mode: &str| {
        let mut command = command(LAPCE_IPC);
        command.args(["bench", mode, "--count", "10", "--seconds", "1", "--json", "--config"]).arg(&file);
        let output = output(command, b"");
        assert_eq!(code(&output), 0, "{mode}: {}", stderr(&output));
        let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(figures["connections"], 10, "{figures}");
    };
    bench("connections");
    bench("scrape");
}

#[test]
fn bench_connections_is_for_a_broker_of_its_own_and_counts_for_no_other_mode() {
    let broker = Broker::start();
    let output = broker.run(&["bench", "connections", "--count", "2", "--seconds", "1"]);
    assert_eq!((code(&output), output.stdout.len()), (64, 0), "{}", stderr(&output));
    assert!(stderr(&output).contains("needs its own broker"), "{}", stderr(&output));
    let output = broker.run(&["bench", "latency", "--count", "2"]);
    assert_eq!((code(&output), output.stdout.len()), (64, 0), "{}", stderr(&output));
    assert!(stderr(&output).contains("--count is for bench connections"), "{}", stderr(&output));
}

#[test]
fn an_interrupted_bench_takes_its_processes_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(LAPCE_IPC);
    command.args(["bench", "routed", "--seconds", "600"]).env("TMPDIR", folder.path());
    let mut bench = Process::start(command);
    let children = |parent: u32| {
        let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
    };
    wait_until("the broker and the responder", || children(bench.pid()).len() == 2);
    let started = children(bench.pid());
    bench.signal("INT");
    assert_eq!(bench.code(), 130, "{}", bench.stderr());
    wait_until("its processes to end", || started.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    // Also if it had no time to say so.
    let mut command = support::command(LAPCE_IPC);
    command.args(["bench", "routed", "--seconds", "600"]).env("TMPDIR", folder.path()).stdout(Stdio::null());
    let mut bench = Process::start(command);
    wait_until("the broker and the responder", || children(bench.pid()).len() == 2);
    let started = children(bench.pid());
    bench.signal("KILL");
    assert_eq!(bench.code(), -9);
    wait_until("its processes to end", || started.iter().all(|pid| !is_alive(*pid)));
}
