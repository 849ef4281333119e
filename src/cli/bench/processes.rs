//! The processes of one measurement.

use crate::broker::processes::children::{Folder, Running};
use crate::cli::failure::{Code, Failure};
use crate::cli::options::Wait;
use crate::cli::target::BrokerTarget;
use crate::client::Client;
use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// How long a process may take to exit when asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a process may take to start, or to reply at the end.
const REPLY: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The task of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Runs a broker.
    Broker,
    /// Replies with the request.
    Responder,
    /// Counts messages of all its connections and prints how many there were.
    Subscriber,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Role::Broker => "broker",
            Role::Responder => "responder",
            Role::Subscriber => "subscriber",
        }
    }
}

/// Settings of the benchmark's broker, besides the defaults or its file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BrokerOptions {
    /// `ipc.max_connections`.
    pub(super) connections: Option<u32>,
    /// The port of its health endpoints.
    pub(super) health_port: Option<u16>,
    /// Topics of a connection.
    pub(super) topics: Option<u32>,
}

/// A child process. It exits when its stdin is closed, so also when this process is killed. Dropping it waits for its
/// end.
pub(super) struct Process {
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    running: Running,
}

impl Process {
    fn start(role: Role, target: &BrokerTarget, wait: Wait, options: &[(&str, u32)]) -> Result<Process, Failure> {
        let failed =
            |error: io::Error| Failure::new(Code::Unavailable, format!("cannot start the {}: {error}", role.as_str()));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("bench-part").arg(role.as_str()).args(["--wait", wait.as_str()]);
        target.pass_on(&mut command);
        for (option, number) in options {
            command.args([option, number.to_string().as_str()]);
        }
        let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).map_err(failed)?;
        let pipes = (running.child.stdin.take(), running.child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else { return Err(failed(io::Error::other("no pipes"))) };
        let mut member = Process { stdin: Some(stdin), lines: BufReader::new(stdout), running };
        match member.line() {
            Ok(_ready) => Ok(member),
            Err(error) => Err(failed(error)),
        }
    }

    /// The next line that the process prints.
    ///
    /// # Errors
    ///
    /// If it exits or does not reply in time.
    pub(super) fn line(&mut self) -> io::Result<String> {
        // Lines are short and come whole: what the buffer does not have, the pipe has.
        if self.lines.buffer().is_empty()
            && poll(&mut [PollFd::new(self.lines.get_ref(), PollFlags::IN)], Some(&REPLY)) == Ok(0)
        {
            return Err(io::Error::other("no reply"));
        }
        let mut line = String::new();
        match self.lines.read_line(&mut line)? {
            0 => Err(io::Error::other("exited at once; see above")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stdin = None;
        self.running.await_exit(Some(PATIENCE));
    }
}

/// The processes of a measurement.
pub(super) struct Processes {
    target: BrokerTarget,
    wait: Wait,
    /// They end in this order: clients, the broker, its folder.
    pub(super) clients: Vec<Process>,
    broker: Option<Process>,
    _folder: Option<Folder>,
}

impl Processes {
    /// Starts a broker, unless a socket names one.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub(super) fn new(target: &BrokerTarget, wait: Wait, limits: BrokerOptions) -> Result<Processes, Failure> {
        let clients = Vec::new();
        if target.socket.is_some() {
            return Ok(Processes { target: target.clone(), wait, clients, broker: None, _folder: None });
        }
        let no_folder =
            |error| Failure::new(Code::Unavailable, format!("cannot create a folder for the socket: {error}"));
        let folder = Folder::new().map_err(no_folder)?;
        let socket: PathBuf = folder.path().join("ipc.sock");
        let target = BrokerTarget { socket: Some(socket), ..target.clone() };
        let BrokerOptions { connections, health_port, topics } = limits;
        let options =
            [("--max-connections", connections), ("--health-port", health_port.map(u32::from)), ("--topics", topics)];
        let options: Vec<_> = options.into_iter().filter_map(|(name, number)| Some((name, number?))).collect();
        let broker = Process::start(Role::Broker, &target, wait, &options)?;
        let target = BrokerTarget { config: None, ..target };
        Ok(Processes { target, wait, clients, broker: Some(broker), _folder: Some(folder) })
    }

    /// Starts another process, with options of `bench-part`.
    ///
    /// # Errors
    ///
    /// If it does not start.
    pub(super) fn start(&mut self, role: Role, options: &[(&str, u32)]) -> Result<(), Failure> {
        self.clients.push(Process::start(role, &self.target, self.wait, options)?);
        Ok(())
    }

    /// Connects this process.
    ///
    /// # Errors
    ///
    /// If the broker refuses the connection.
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        self.target.connect("bench", self.wait)
    }

    /// The process id of the benchmark's broker.
    pub(super) fn broker(&self) -> Option<u32> {
        self.broker.as_ref().map(|broker| broker.running.child.id())
    }

    /// The number of processes: this one, the broker, the others.
    pub(super) fn count(&self) -> usize {
        2 + self.clients.len()
    }
}
