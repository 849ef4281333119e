//! What a service manager does with a broker, as systemd does it: sockets that are passed on, and messages that come.

use super::{DEADLINE, IPC_SERVER_MAIN, Process, command};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a broker tells how it is.
#[derive(Debug)]
pub struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    /// One that listens, for a broker of whatever user.
    #[track_caller]
    pub fn new() -> Manager {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
        Manager { folder, socket }
    }

    /// `NOTIFY_SOCKET`.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    /// The next message; its lines.
    #[track_caller]
    pub fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("a message within the deadline");
        lines(&bytes[..length])
    }

    /// All messages up to the first that has a line that begins so, with that.
    #[track_caller]
    pub fn until(&self, begin: &str) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        loop {
            all.push(self.next());
            if all.last().is_some_and(|lines| lines.iter().any(|line| line.starts_with(begin))) {
                return all;
            }
        }
    }

    /// All messages that have come and were not taken.
    pub fn rest(&self) -> Vec<Vec<String>> {
        self.socket.set_nonblocking(true).expect("a socket");
        let mut bytes = [0; 4096];
        let mut all = Vec::new();
        while let Ok(length) = self.socket.recv(&mut bytes) {
            all.push(lines(&bytes[..length]));
        }
        self.socket.set_nonblocking(false).expect("a socket");
        all
    }
}

fn lines(message: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(message).lines().map(str::to_owned).collect()
}

/// A broker that a shell starts, which first does what is in `script`.
pub fn scripted(script: &str, program: &Path) -> Command {
    let mut shell = command("sh");
    shell.args(["-c", &format!("{script} exec \"$0\" \"$@\"")]).arg(program);
    shell
}

/// A broker that inherits one or two descriptors, by these names.
#[track_caller]
pub fn inheriting(program: &Path, names: &str, first: OwnedFd, second: Option<OwnedFd>) -> Passing {
    let mut pass = "exec 3<&0 0</dev/null; LISTEN_FDS=1;".to_owned();
    if second.is_some() {
        pass = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; LISTEN_FDS=2;".to_owned();
    }
    let mut command = scripted(&format!("{pass} LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID;"), program);
    command.env("LISTEN_FDNAMES", names).stdin(Stdio::from(first));
    Passing { command, stdout: second.map(Stdio::from) }
}

/// Such a broker, before it is started.
#[derive(Debug)]
pub struct Passing {
    /// What may be added to.
    pub command: Command,
    stdout: Option<Stdio>,
}

impl Passing {
    /// Starts it.
    #[track_caller]
    pub fn start(self) -> Process {
        Process::start_with(self.command, self.stdout)
    }
}

/// The broker's program.
pub fn program() -> &'static Path {
    Path::new(IPC_SERVER_MAIN)
}
