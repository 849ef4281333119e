//! The guard: a process that outlives this one briefly, and cleans up if this one was killed.
//!
//! A process that is killed by SIGKILL, or by a signal that it does not catch, cannot clean up. So it also reports its
//! children and folders to a guard, through a pipe of which only our process has the writing end. When our process
//! ends, however that is, the guard reads the end of the pipe, kills the process groups and removes the folders that
//! are still listed, and ends. Unlike a parent-death signal this reaches what a shell started, too, and does not
//! depend on the thread that started a child.
//!
//! | line | meaning |
//! |---|---|
//! | `+PID`, `-PID` | a process group begins, has ended |
//! | `f PATH`, `F PATH` | a folder was made, was removed |
//!
//! It is not a child of this process (a process that ends at once starts it), and has its own process group: signals of
//! the terminal do not reach it. Without it, as where no process may be started, the rest works as before.

use super::failure::{Code, Failure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

/// The program that is running, also when its file has been replaced.
const SELF: &str = "/proc/self/exe";
/// The hidden command of the process that starts the guard, and of the guard.
const START: &str = "guard-start";
const GUARD: &str = "guard";

/// Our end of the pipe.
#[derive(Debug)]
pub(super) struct Guard(Option<ChildStdin>);

impl Guard {
    /// Starts one. It may fail, and then does nothing.
    pub(super) fn start() -> Guard {
        let pipe = || -> io::Result<Option<ChildStdin>> {
            let mut starter = Command::new(SELF);
            starter.arg0("lapce-ipc").arg(START).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut starter = starter.process_group(0).spawn()?;
            let pipe = starter.stdin.take();
            let started = starter.wait()?.success();
            if let Some(pipe) = &pipe {
                // A guard that does not read is not waited for.
                rustix::io::ioctl_fionbio(pipe.as_fd(), true)?;
            }
            Ok(pipe.filter(|_| started))
        };
        // A test's program has no such command.
        Guard(if cfg!(test) { None } else { pipe().unwrap_or_default() })
    }

    pub(super) fn group_begins(&mut self, group: Pid) {
        self.send(format_args!("+{}\n", group.as_raw_nonzero()));
    }

    pub(super) fn group_ended(&mut self, group: Pid) {
        self.send(format_args!("-{}\n", group.as_raw_nonzero()));
    }

    pub(super) fn folder_made(&mut self, folder: &Path) {
        self.folder('f', folder);
    }

    pub(super) fn folder_removed(&mut self, folder: &Path) {
        self.folder('F', folder);
    }

    fn folder(&mut self, sign: char, folder: &Path) {
        if let Some(folder) = folder.to_str().filter(|folder| !folder.contains('\n')) {
            self.send(format_args!("{sign} {folder}\n"));
        }
    }

    fn send(&mut self, line: std::fmt::Arguments<'_>) {
        if let Some(pipe) = &mut self.0 {
            // In one write, so that no line is cut.
            let _ = pipe.write_all(line.to_string().as_bytes());
        }
    }
}

/// The process in between: starts the guard and ends, so that no waiting process is the guard's parent.
///
/// # Errors
///
/// If it cannot be started.
pub(super) fn start() -> Result<(), Failure> {
    let mut guard = Command::new(SELF);
    guard
        .arg0("lapce-ipc")
        .arg(GUARD)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    guard.spawn().map(drop).map_err(|error| Failure::new(Code::Unavailable, error.to_string()))
}

/// The guard: reads to the end of stdin, then kills the listed groups and removes the listed folders.
pub(super) fn run() {
    let (mut groups, mut folders) = (HashSet::new(), HashSet::new());
    for line in BufReader::new(io::stdin()).lines().map_while(Result::ok) {
        let line = line.as_str();
        let group = |text: &str| text.parse().ok().and_then(Pid::from_raw);
        if let Some(group) = line.strip_prefix('+').and_then(group) {
            groups.insert(group);
        } else if let Some(group) = line.strip_prefix('-').and_then(group) {
            groups.remove(&group);
        } else if let Some(folder) = line.strip_prefix("f ") {
            folders.insert(folder.to_owned());
        } else if let Some(folder) = line.strip_prefix("F ") {
            folders.remove(folder);
        }
    }
    for group in groups {
        let _ = kill_process_group(group, Signal::KILL);
    }
    for folder in folders {
        let _ = std::fs::remove_dir_all(folder);
    }
}
