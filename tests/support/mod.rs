//! The fixture of the tests that run real processes: a broker on a socket in a folder of its own.
//!
//! ```ignore
//! mod support;
//! use support::Broker;
//!
//! let broker = Broker::start();
//! let client = broker.client();
//! let output = broker.run(&["request", "echo", "hi"]);
//! assert_eq!(output.stdout, b"hi\n");
//! ```
//!
//! Nothing here waits for a time: it waits for a condition, at most [`DEADLINE`]. Whatever is started is killed when
//! its guard is dropped. Nothing of the user's own set-up takes part: processes get an environment without our
//! variables.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "pub is what a test may use")]

pub mod calls;
pub mod criteria;
pub mod cut;
#[cfg(feature = "editor")]
pub mod engine;
pub mod fake_engine;
pub mod follow;
pub mod http;
pub mod ledger;
pub mod linger;
pub mod load;
pub mod manager;
pub mod memory;
pub mod node;
pub mod probe;
pub mod role;
pub mod trend;
pub mod users;

use lapce_ipc::client::{Builder, Client};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take. On a busy machine a process may not run for seconds.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The command line.
pub const LAPCE_IPC: &str = env!("CARGO_BIN_EXE_lapce-ipc");
/// The broker.
pub const IPC_SERVER_MAIN: &str = env!("CARGO_BIN_EXE_ipc_server_main");

/// Waits until `condition` holds.
///
/// # Panics
///
/// If it does not hold within [`DEADLINE`].
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes_true(condition), "waited {DEADLINE:?} for {what}");
}

/// Waits until `condition` holds, or [`DEADLINE`] is over. Answers whether it holds.
pub fn comes_true(mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Takes so long, as the work of a service does.
pub fn work_for(time: Duration) {
    std::thread::sleep(time);
}

/// A command in an environment in which nothing points to another broker or configuration.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let ours = |name: &str| {
        ["LAPCE_IPC", "XDG_", "RUST_LOG", "RUST_BACKTRACE", "JOURNAL_STREAM", "CARGO", "NOTIFY_SOCKET", "LISTEN_"]
            .iter()
            .chain(&["WATCHDOG_"])
            .any(|p| name.starts_with(p))
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_none_or(ours) {
            command.env_remove(name);
        }
    }
    // Where no configuration is.
    command.env("HOME", "/nonexistent").env("XDG_CONFIG_HOME", "/nonexistent");
    // Brokers run side by side here: each takes the port that the system gives it.
    command.env("LAPCE_IPC__HEALTH_SERVER__PORT", "0");
    // Tests look at a broker's descriptors and memory. Only root can do so without this.
    if !rustix::process::geteuid().is_root() {
        command.env("LAPCE_IPC__SHARED_MEMORY__ALLOW_DUMPS", "true");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process with its output in files: nobody has to read it for the process to go on.
#[derive(Debug)]
pub struct Process {
    child: Child,
    folder: tempfile::TempDir,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts it.
    #[track_caller]
    pub fn start(command: Command) -> Process {
        Process::start_with(command, None)
    }

    /// Starts it with something else as its stdout.
    #[track_caller]
    pub fn start_with(mut command: Command, stdout: Option<Stdio>) -> Process {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| fs::File::create(folder.path().join(name)).expect("a file");
        command.stdout(stdout.unwrap_or_else(|| file("stdout").into())).stderr(file("stderr"));
        let child = command.spawn().expect("the program starts");
        // The command would keep what it passes on.
        drop(command);
        Process { child, folder, status: None }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("stdout")).expect("its stdout")
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        let bytes = fs::read(self.folder.path().join("stderr")).expect("its stderr");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until stderr has `text`.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        wait_until(text, || self.stderr().contains(text) || self.has_ended());
        assert!(self.stderr().contains(text), "it ended ({:?}) without {text:?}: {}", self.status, self.stderr());
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("its status");
        }
        self.status.is_some()
    }

    /// Waits for its end; answers its exit code, or minus the signal that killed it.
    #[track_caller]
    pub fn code(&mut self) -> i32 {
        wait_until("a process to end", || self.has_ended());
        let status = self.status.expect("it has ended");
        status.code().unwrap_or_else(|| -status.signal().unwrap_or_default())
    }

    /// Stops it where it is (SIGSTOP), and waits until all of its threads have stopped.
    #[track_caller]
    pub fn stop(&self) {
        self.signal("STOP");
        wait_for_stop(self.pid());
    }

    /// Sends it a signal, by name: `INT`, `TERM`, `KILL`, `STOP`, `CONT`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            probe::note(&format!("process {}:\n{}", self.pid(), self.stderr()));
        }
    }
}

/// Waits until all threads of a process have stopped, which its SIGSTOP has only asked for.
#[track_caller]
pub fn wait_for_stop(pid: u32) {
    let has_stopped = |stat: &str| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
    wait_until("a process to stop", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        threads.flatten().all(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|s| has_stopped(&s)))
    });
}

/// Sends a signal to a process.
#[track_caller]
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().expect("a shell");
    assert!(sent.success(), "kill -{name} {pid}");
}

/// A broker, with a folder for its socket and whatever else a test needs.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
    watchdog: Option<probe::Watchdog>,
}

/// A broker's process, when it listens.
#[track_caller]
fn listening(folder: &Path, variables: &[(String, String)]) -> Process {
    let mut command = command(IPC_SERVER_MAIN);
    command.arg("--socket").arg(folder.join("ipc.sock")).envs(variables.iter().map(|(name, value)| (name, value)));
    let config = folder.join("config.toml");
    if config.exists() {
        command.arg("--config").arg(config);
    }
    let mut process = Process::start(command);
    process.wait_for("hint:");
    process
}

impl Broker {
    /// Starts one with the built-in defaults.
    #[track_caller]
    pub fn start() -> Broker {
        Broker::start_with(&[])
    }

    /// Starts one with keys set: `[("ipc.max_message_size", "1000")]`.
    #[track_caller]
    pub fn start_with(keys: &[(&str, &str)]) -> Broker {
        Broker::start_faulty("", keys)
    }

    /// The same, with faults as `src/broker/supervision/fault.rs` explains them: none are the only ones that a build
    /// without the feature takes.
    #[track_caller]
    pub fn start_faulty(faults: &str, keys: &[(&str, &str)]) -> Broker {
        Broker::start_in(tempfile::tempdir().expect("a folder"), faults, keys)
    }

    /// The same, with a configuration file that is made out of the path of the broker's folder.
    #[track_caller]
    pub fn start_configured(file: impl FnOnce(&Path) -> String, faults: &str, keys: &[(&str, &str)]) -> Broker {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config.toml"), file(folder.path())).expect("a file");
        Broker::start_in(folder, faults, keys)
    }

    #[track_caller]
    fn start_in(folder: tempfile::TempDir, faults: &str, keys: &[(&str, &str)]) -> Broker {
        let mut variables = vec![("LAPCE_IPC_FAULTS".to_owned(), faults.to_owned())];
        for (key, value) in keys {
            variables.push((format!("LAPCE_IPC__{}", key.replace('.', "__").to_uppercase()), (*value).to_owned()));
        }
        let process = listening(folder.path(), &variables);
        let watchdog = probe::Watchdog::over(process.pid());
        Broker { process, folder, variables, watchdog: Some(watchdog) }
    }

    /// Ends it by a signal and waits for its end.
    #[track_caller]
    pub fn end(&mut self, signal: &str) {
        self.process.signal(signal);
        self.process.code();
    }

    /// Kills it; nothing is removed.
    #[track_caller]
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    /// Starts it again where it was, after its end. It listens when this returns.
    #[track_caller]
    pub fn start_again(&mut self) {
        self.process = listening(self.folder.path(), &self.variables);
        self.watchdog = Some(probe::Watchdog::over(self.process.pid()));
    }

    /// Lets it live for longer than a test may take.
    pub fn without_limit(&mut self) {
        self.watchdog = None;
    }

    /// The next time that it starts, this key has this value, and those that were set before are the defaults again.
    pub fn set_only(&mut self, key: &str, value: &str) {
        self.variables.retain(|(name, _)| !name.starts_with("LAPCE_IPC__"));
        self.variables.push((format!("LAPCE_IPC__{}", key.replace('.', "__").to_uppercase()), value.to_owned()));
    }

    /// The next time that it starts, this key has this value, too.
    pub fn set_also(&mut self, key: &str, value: &str) {
        self.variables.push((format!("LAPCE_IPC__{}", key.replace('.', "__").to_uppercase()), value.to_owned()));
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("ipc.sock")
    }

    /// How this process connects.
    pub fn builder(&self) -> Builder {
        Client::builder().socket(self.socket())
    }

    /// Connects this process, for tests that are about the connection's end: it does not come back.
    #[track_caller]
    pub fn client(&self) -> Client {
        self.builder().no_reconnect().connect().expect("the broker takes us")
    }

    /// A command of `lapce-ipc` that talks to this broker.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = command(LAPCE_IPC);
        command.arg("--socket").arg(self.socket()).args(args);
        command
    }

    /// Starts such a command.
    #[track_caller]
    pub fn spawn(&self, args: &[&str]) -> Process {
        Process::start(self.command(args))
    }

    /// Runs such a command to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        output(self.command(args), b"")
    }

    /// A counter out of the status.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.client().status().expect("a status").counters;
        counters.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name} in {counters:?}")).1
    }
}

/// Runs a command to its end, with `stdin`.
///
/// # Panics
///
/// If it does not end within [`DEADLINE`].
#[track_caller]
pub fn output(mut command: Command, stdin: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    let (mut out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let read = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("its output");
        bytes
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It need not read it.
            let _ = input.write_all(stdin);
        });
        let stdout = scope.spawn(move || read(&mut out));
        let stderr = scope.spawn(move || read(&mut err));
        let until = Instant::now() + DEADLINE;
        let status = loop {
            match child.try_wait().expect("its status") {
                Some(status) => break status,
                None if Instant::now() >= until => {
                    let _ = child.kill();
                    break child.wait().expect("its status");
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let (stdout, stderr) = (stdout.join().expect("stdout"), stderr.join().expect("stderr"));
        let text = String::from_utf8_lossy(&stderr);
        assert!(status.code().is_some(), "{command:?}: {status} after at most {DEADLINE:?}: {text}");
        Output { status, stdout, stderr }
    })
}

/// Copies a program, by another process: a child that another test forks here would hold the copy open for writing, and
/// then nobody can run it.
#[track_caller]
pub fn copy_program(from: impl AsRef<Path>, to: &Path) {
    assert!(Command::new("cp").arg(from.as_ref()).arg(to).status().expect("cp").success());
}

/// The exit code of a program that was not killed.
#[track_caller]
pub fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code")
}

/// stderr as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
