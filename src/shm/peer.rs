//! Who is at the other end of a socket, and where we run.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What the kernel says of the process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its process id when it connected.
    pub(crate) pid: u32,
    /// Its effective user id.
    pub(crate) uid: u32,
}

/// Asks the kernel who is at the other end (`SO_PEERCRED`).
///
/// # Errors
///
/// If `socket` is no Unix socket.
pub(crate) fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let found = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Credentials { pid: found.pid.as_raw_nonzero().get().cast_unsigned(), uid: found.uid.as_raw() })
}

/// A descriptor that becomes readable when the process ends. `None`: there is no such process any more, or the system
/// does not say.
#[must_use]
pub(crate) fn watch_process(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()
}

/// Whether the other end of `socket` is closed, though something may still be there to be read. Never waits.
#[must_use]
pub(crate) fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let looked = poll(&mut polled, Some(&Timespec::default()));
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    looked.is_ok() && polled[0].revents().intersects(gone)
}

/// Our effective user id.
#[must_use]
pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The CPU on which this thread runs now.
#[must_use]
#[inline]
pub(crate) fn current_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// Whether this thread, and those that it starts, have one CPU between them: then nobody comes while somebody spins.
#[must_use]
pub(crate) fn has_one_cpu() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|cpus| cpus.count() == 1)
}

/// Lets another thread run that waits for this CPU, if there is one.
pub(crate) fn yield_cpu() {
    rustix::thread::sched_yield();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn we_are_our_own_peer() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let found = credentials(a.as_fd()).unwrap();
        assert_eq!(found, Credentials { pid: std::process::id(), uid: own_uid() });
    }

    #[test]
    fn an_end_is_seen_before_what_came_before_it_is_read() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!has_hung_up(a.as_fd()));
        io::Write::write_all(&mut &b, b"unread").unwrap();
        assert!(!has_hung_up(a.as_fd()));
        drop(b);
        assert!(has_hung_up(a.as_fd()));
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let watch = watch_process(child.id()).unwrap();
        let ended = |wait: i64| {
            let wait = Timespec { tv_sec: wait, tv_nsec: 0 };
            poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&wait)).unwrap() > 0
        };
        assert!(!ended(0));
        child.kill().unwrap();
        assert!(ended(30));
        child.wait().unwrap();
        assert!(watch_process(child.id()).is_none());
    }
}
