//! How commands fail: the exit code that scripts and service managers rely on, and a message that names what was asked
//! of whom.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;
use support::{IPC_SERVER_MAIN, code, command, output, stderr};

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

/// A file that only we can write.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
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
    fails_with(&run(IPC_SERVER_MAIN, &["--socket", &precious], &[]), 78, &["is no socket"]);
}
