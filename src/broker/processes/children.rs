//! Processes, folders and sockets that must not outlive this process.
//!
//! Each is removed when its owner is dropped. A signal drops nothing, so all are listed here as well, and [`clean_up`]
//! removes the listed ones. In case of SIGKILL the guard process removes them. Children lead a
//! process group of their own, so that what a shell started ends with the shell.

use super::guard::Guard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Poll interval for a child without a pidfd.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

struct Listed {
    /// Nothing is started any more.
    closed: bool,
    groups: Vec<Pid>,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    /// Started with the first child or folder.
    guard: Option<Guard>,
}

impl Listed {
    fn guard(&mut self) -> &mut Guard {
        self.guard.get_or_insert_with(Guard::start)
    }
}

static LISTED: Mutex<Listed> =
    Mutex::new(Listed { closed: false, groups: Vec::new(), folders: Vec::new(), files: Vec::new(), guard: None });

fn listed() -> MutexGuard<'static, Listed> {
    LISTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The locked list of [`clean_up`]: no child is removed from it, so none is reported as ended.
pub(crate) struct CleanedUp(#[allow(dead_code, reason = "held")] MutexGuard<'static, Listed>);

/// Kills every running child and removes every folder; from now on no child can be started.
pub(crate) fn clean_up() -> CleanedUp {
    let mut listed = listed();
    listed.closed = true;
    for group in listed.groups.drain(..) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    for folder in listed.folders.drain(..) {
        let _ = std::fs::remove_dir_all(folder);
    }
    for file in listed.files.drain(..) {
        let _ = std::fs::remove_file(file);
    }
    CleanedUp(listed)
}

/// Returns at once, unless a signal ends the process: then never.
pub(crate) fn block_if_exiting() {
    drop(listed());
}

/// A file that must be removed when a signal ends the process.
pub(crate) fn remove_at_exit(file: &Path) {
    listed().files.push(file.to_owned());
}

/// A child process. Dropping it kills its process group and reaps it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    pid: Pid,
    /// `None`: a seccomp profile denies pidfds; the child is polled instead.
    exit: Option<OwnedFd>,
    is_reaped: bool,
}

impl Running {
    /// Starts a program.
    ///
    /// # Errors
    ///
    /// If it cannot be started, or the process is about to exit.
    pub(crate) fn start(command: &mut Command) -> io::Result<Running> {
        // Held over the start, so that `clean_up` does not come in between.
        let mut listed = listed();
        if listed.closed {
            return Err(io::Error::other("interrupted"));
        }
        listed.guard();
        let child = command.process_group(0).spawn()?;
        let pid = Pid::from_child(&child);
        let exit = pidfd_open(pid, PidfdFlags::empty()).ok();
        listed.groups.push(pid);
        listed.guard().group_begins(pid);
        Ok(Running { child, pid, exit, is_reaped: false })
    }

    /// Is readable when the child has ended. `None`: only [`Running::has_ended`] tells.
    pub(crate) fn exit(&self) -> Option<BorrowedFd<'_>> {
        self.exit.as_ref().map(AsFd::as_fd)
    }

    /// Whether the child has ended. It is not reaped.
    pub(crate) fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), look), Ok(None))
    }

    /// The process number.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the child and to what it started, as far as that stayed in its process group.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// The exit status of the child; waits for it.
    ///
    /// # Errors
    ///
    /// If the system does not say.
    pub(crate) fn finish(mut self) -> io::Result<ExitStatus> {
        self.await_exit(None);
        self.unlist();
        self.is_reaped = true;
        self.child.wait()
    }

    /// Waits until the child has ended, at most for `patience`.
    pub(crate) fn await_exit(&self, patience: Option<Duration>) {
        let Some(exit) = &self.exit else {
            let until = patience.map(|patience| Instant::now() + patience);
            while !self.has_ended() && until.is_none_or(|until| Instant::now() < until) {
                std::thread::sleep(POLL_INTERVAL);
            }
            return;
        };
        let patience = patience.map(|patience| Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        });
        while poll(&mut [PollFd::new(exit, PollFlags::IN)], patience.as_ref()) == Err(rustix::io::Errno::INTR) {}
    }

    /// Before the child is reaped: afterwards its number may be reused.
    fn unlist(&self) {
        let mut listed = listed();
        listed.groups.retain(|group| *group != self.pid);
        listed.guard().group_ended(self.pid);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.unlist();
            let _ = self.child.wait();
        }
    }
}

/// A new folder for this user only. Dropping it removes it with its contents.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes one where temporary files go.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    pub(crate) fn new() -> io::Result<Folder> {
        let mut random = [0; 8];
        crate::shm::segment::fill_random(&mut random)?;
        let path = std::env::temp_dir().join(format!("lapce-ipc-{:016x}", u64::from_le_bytes(random)));
        let mut listed = listed();
        DirBuilder::new().mode(0o700).create(&path)?;
        listed.guard().folder_made(&path);
        listed.folders.push(path.clone());
        Ok(Folder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        let mut listed = listed();
        listed.folders.retain(|folder| *folder != self.0);
        listed.guard().folder_removed(&self.0);
    }
}
