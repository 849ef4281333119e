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

use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::OnceLock;

/// The program that is running, also when its file has been replaced.
const SELF: &str = "/proc/self/exe";
/// The hidden command of the process that starts the guard, and of the guard.
pub(crate) const START: &str = "guard-start";
pub(crate) const GUARD: &str = "guard";

/// Set where this program has the commands [`START`] and [`GUARD`].
static AVAILABLE: OnceLock<()> = OnceLock::new();

/// This program has the commands [`START`] and [`GUARD`].
pub(crate) fn is_available() {
    let _ = AVAILABLE.set(());
}

/// Our end of the pipe.
#[derive(Debug)]
pub(crate) struct Guard(Option<ChildStdin>);

impl Guard {
    /// Starts one. It may fail, and then does nothing.
    pub(crate) fn start() -> Guard {
        let pipe = || -> io::Result<Option<ChildStdin>> {
            let mut starter = Command::new(SELF);
            starter
                .arg0("lapce-ipc")
                .arg(START)
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let mut starter = starter.process_group(0).spawn()?;
            let pipe = starter.stdin.take();
            let started = starter.wait()?.success();
            if let Some(pipe) = &pipe {
                // A guard that does not read is not waited for.
                rustix::io::ioctl_fionbio(pipe.as_fd(), true)?;
            }
            Ok(pipe.filter(|_| started))
        };
        // A program that embeds the broker has no such command.
        Guard(AVAILABLE.get().and_then(|()| pipe().unwrap_or_default()))
    }

    pub(crate) fn group_begins(&mut self, group: Pid) {
        self.send(format_args!("+{}\n", group.as_raw_nonzero()));
    }

    pub(crate) fn group_ended(&mut self, group: Pid) {
        self.send(format_args!("-{}\n", group.as_raw_nonzero()));
    }

    pub(crate) fn folder_made(&mut self, folder: &Path) {
        self.folder('f', folder);
    }

    pub(crate) fn folder_removed(&mut self, folder: &Path) {
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
pub(crate) fn start() -> io::Result<()> {
    let mut guard = Command::new(SELF);
    guard
        .arg0("lapce-ipc")
        .arg(GUARD)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    guard.spawn().map(drop)
}

/// The guard: reads to the end of stdin, then kills the listed groups and removes the listed folders.
pub(crate) fn run() {
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
