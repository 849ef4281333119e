//! What the tests of the semantics look at besides a client's results: `/proc`, counters, and bytes that tell one
//! message from another.

use super::{Broker, wait_until};
use lapce_ipc::client::{ActorStatus, Client, ServiceStatus, StatusReport};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::Write;
use std::process::ExitStatus;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// How long a test may use a broker.
const TEST_LIMIT: Duration = Duration::from_secs(100);

/// Kills a broker that is used for too long, so that whoever waits for it fails instead of hanging.
#[derive(Debug)]
pub struct Watchdog {
    _ends_it: SyncSender<()>,
}

impl Watchdog {
    /// Over the child `pid`, for as long as it lives itself.
    pub fn over(pid: u32) -> Watchdog {
        // By descriptor: where many processes come and go, a number is another one's soon after its own has ended.
        let child = pidfd_open(process(pid), PidfdFlags::empty()).expect("a child");
        let (ends_it, ended) = sync_channel(0);
        std::thread::spawn(move || {
            if ended.recv_timeout(TEST_LIMIT) == Err(RecvTimeoutError::Timeout) {
                note(&format!("process {pid} killed: its test takes longer than {TEST_LIMIT:?}"));
                let _ = pidfd_send_signal(&child, Signal::KILL);
            }
        });
        Watchdog { _ends_it: ends_it }
    }
}

/// An actor of the supervision tree, by its name.
#[track_caller]
pub fn actor(client: &Client, name: &str) -> ActorStatus {
    let actors = client.status().unwrap().actors;
    actors.iter().find(|actor| actor.name == name).unwrap_or_else(|| panic!("no {name} in {actors:?}")).clone()
}

/// The lines of the broker's log that have all of these words.
pub fn lines(broker: &mut Broker, words: &[&str]) -> Vec<String> {
    let log = broker.process().stderr();
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned).collect()
}

/// Whether a process is there that has not ended.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The process of an engine, as the log names it last.
pub fn engine_pid(broker: &mut Broker, name: &str) -> u32 {
    let mut pid = None;
    wait_until("the engine to start", || {
        let started = lines(broker, &["engine started", &format!("engine={name} ")]);
        pid = started.last().and_then(|line| line.rsplit_once("pid=")).and_then(|(_, pid)| pid.trim().parse().ok());
        pid.is_some()
    });
    pid.expect("a number")
}

/// A process by its number.
pub fn process(pid: u32) -> Pid {
    pid.try_into().ok().and_then(Pid::from_raw).expect("a process number")
}

impl Broker {
    /// Connects this process by a name of its own.
    #[track_caller]
    pub fn client_named(&self, name: &str) -> Client {
        self.builder().name(name).expect("a name").no_reconnect().connect().expect("the broker takes us")
    }

    /// Stops it where it is (SIGSTOP), and waits until all of its threads have stopped.
    #[track_caller]
    pub fn stop(&self) {
        self.process.stop();
    }

    /// Lets it go on (SIGCONT).
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(process(self.process.pid()), signal).expect("it runs");
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        wait_until("the broker to end", || self.process.has_ended());
        self.process.status.expect("it has ended")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.pid())).expect("it runs").count()
    }

    /// How many it has open when it has started in every respect: its endpoints begin by themselves, after it listens.
    pub fn descriptors_at_rest(&self) -> usize {
        let (mut last, mut times) = (0, 0);
        wait_until("descriptors to stay as they are", || {
            let now = self.descriptors();
            times = if now == last { times + 1 } else { 0 };
            last = now;
            times == 40
        });
        last
    }

    /// Its resident memory in KiB, with what it shares with its clients.
    pub fn memory_kib(&self) -> u64 {
        self.memory().rss / 1024
    }
}

/// A counter by its name.
#[track_caller]
pub fn counter(status: &StatusReport, name: &str) -> u64 {
    let found = status.counters.iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", status.counters)).1
}

/// A service by its name.
#[track_caller]
pub fn served<'a>(status: &'a StatusReport, name: &str) -> &'a ServiceStatus {
    let found = status.services.iter().find(|service| service.name.as_str() == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", status.services))
}

/// Bytes that tell one message from another, and one place in it from another.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A line beside a test's result.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
