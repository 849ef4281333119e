//! Further client processes: the test binary runs itself again, with a role in its environment.
//!
//! ```text
//! test process                          child process: the same binary, `--exact child --nocapture`
//!   Child::ready(&broker, "publisher") ──► #[test] fn child() finds the role and plays it
//!   child.say("go")        ── stdin ──►    heard()           blocks for the next line
//!   child.hears("done")   ◄── stderr ──    tell("done")      lines that begin with '@'
//! ```
//!
//! A child ends with its parent: it kills itself when its standard input does.

use super::probe::note;
use super::users::{as_other_user, as_user};
use super::{Broker, DEADLINE, command, wait_for_stop, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

const ROLE: &str = "LAPCE_IPC_TEST_ROLE";

/// A process that plays a role; killed and reaped when it goes out of scope.
pub struct Child {
    process: process::Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Child {
    /// Starts this test binary again in `role`, with the broker's socket in its environment.
    pub fn spawn(broker: &Broker, role: &str) -> Child {
        Child::spawn_in(broker, "child", role)
    }

    /// The same, where `test` looks for the role itself: for a test program with one test.
    pub fn spawn_in(broker: &Broker, test: &str, role: &str) -> Child {
        Child::run(command(std::env::current_exe().unwrap().to_str().unwrap()), broker, test, role)
    }

    /// The same as another user, by a copy of this test binary, when it is ready.
    pub fn ready_as_other_user(broker: &Broker, copy: &Path, role: &str) -> Child {
        let mut program = command(copy.to_str().unwrap());
        as_other_user(&mut program);
        let mut child = Child::run(program, broker, "child", role);
        child.hears("ready");
        child
    }

    /// The same by a copy of this test binary, as the user `uid`.
    pub fn spawn_as(broker: &Broker, copy: &Path, uid: u32, test: &str, role: &str) -> Child {
        let mut program = command(copy.to_str().unwrap());
        as_user(&mut program, uid);
        Child::run(program, broker, test, role)
    }

    fn run(mut program: Command, broker: &Broker, test: &str, role: &str) -> Child {
        let mut process = program
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env("LAPCE_IPC_SOCKET", broker.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, lines) = sync_channel(1024);
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        let stdin = process.stdin.take();
        Child { process, stdin, lines, heard: Vec::new() }
    }

    /// Starts it and waits until it says that it is ready.
    pub fn ready(broker: &Broker, role: &str) -> Child {
        let mut child = Child::spawn(broker, role);
        child.hears("ready");
        child
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Says something to it.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Says something to it, if it is still there.
    pub fn may_say(&mut self, line: &str) {
        let _ = writeln!(self.stdin.as_mut().unwrap(), "{line}");
    }

    /// Waits until it says something that begins with `word`; answers the rest.
    pub fn hears(&mut self, word: &str) -> String {
        self.hears_within(word, DEADLINE)
    }

    /// The same for work that takes longer.
    pub fn hears_within(&mut self, word: &str, limit: Duration) -> String {
        self.may_hear(word, limit).unwrap_or_else(|| panic!("waited for {word:?}; heard {:#?}", self.heard))
    }

    /// The same, or `None` if it says no such thing in time, or has ended.
    pub fn may_hear(&mut self, word: &str, limit: Duration) -> Option<String> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).ok()?;
            if let Some(rest) = line.strip_prefix('@').and_then(|said| said.strip_prefix(word)) {
                return Some(rest.trim().to_owned());
            }
            self.heard.push(line);
        }
    }

    /// The last thing that it said and that began with `word`, of all that was passed over.
    pub fn said(&mut self, word: &str) -> Option<String> {
        self.heard.extend(self.lines.try_iter());
        let mut said = self.heard.iter().filter_map(|line| line.strip_prefix('@')?.strip_prefix(word));
        said.next_back().map(|rest| rest.trim().to_owned())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Stops it where it is (SIGSTOP), and waits until it has stopped.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        wait_for_stop(self.process.id());
    }

    /// Lets it go on (SIGCONT).
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it (SIGKILL) and reaps it.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the child to end", || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let heard = self.heard.drain(..).chain(self.lines.try_iter());
            for line in heard.filter(|line| !line.is_empty()) {
                note(&format!("child {}: {line}", self.process.id()));
            }
        }
    }
}

static HEARD: OnceLock<Mutex<Receiver<String>>> = OnceLock::new();

/// The role that this process is to play, if it is a child.
pub fn role() -> Option<String> {
    let role = std::env::var(ROLE).ok()?;
    let (to, lines) = sync_channel(1024);
    let _ = HEARD.set(Mutex::new(lines));
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = to.send(line);
        }
        die();
    });
    Some(role)
}

/// In a child: says something to the parent.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "@{line}");
}

/// In a child: the next line from the parent.
pub fn heard() -> String {
    HEARD.get().unwrap().lock().unwrap().recv().unwrap()
}

/// In a child: a panic of any thread ends the process, so that the parent fails at once instead of waiting.
pub fn end_with_any_thread() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        die();
    }));
}

/// In a child: ends at once, as by kill -9, with no destructor run.
pub fn die() -> ! {
    let _ = kill_process(rustix::process::getpid(), Signal::KILL);
    process::abort()
}
