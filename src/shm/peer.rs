//! Credentials of the peer of a socket, and the CPUs of this thread.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The credentials of the process that connected, by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its process id when it connected; 0: unknown, because our PID namespace does not contain it.
    pub(crate) pid: u32,
    /// Its effective user id.
    pub(crate) uid: u32,
}

/// The credentials of the peer of a socket (`SO_PEERCRED`).
///
/// # Errors
///
/// If `socket` is no Unix socket.
pub(crate) fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // Not by `rustix`: its process ids are `NonZero`, but the kernel reports 0 for a process outside of our PID
    // namespace.
    //
    // SAFETY: `found` and `len` live through the call and are borrowed by nothing else. `len` is the size of `found`,
    // so the kernel writes at most that much, and every bit pattern is a `ucred`. `socket` is borrowed, thus open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast::<libc::c_void>(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if len as usize != size_of::<libc::ucred>() || found.uid == u32::MAX {
        // The kernel knows no process at the other end: `socket` was never connected.
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(Credentials { pid: u32::try_from(found.pid).unwrap_or(0), uid: found.uid })
}

/// A watch for the end of a peer's process.
#[derive(Debug)]
pub(crate) enum Process {
    /// The descriptor becomes readable when the process ends.
    Watched(OwnedFd),
    /// The end cannot be watched: the id is unknown, a filter forbids `pidfd_open`, or no descriptor is left.
    Unknown,
    /// The process has ended.
    Ended,
}

/// Watches for the end of the process `pid` (0: unknown).
#[must_use]
pub(crate) fn watch_process(pid: u32) -> Process {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Process::Unknown };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(watch) => Process::Watched(watch),
        Err(rustix::io::Errno::SRCH) => Process::Ended,
        Err(_) => Process::Unknown,
    }
}

/// The state of a process, and when it started, in clock ticks since the boot. `None`: the kernel writes another
/// format.
///
/// # Errors
///
/// If the process has ended, or is hidden from this one.
pub(crate) fn stat(pid: u32) -> io::Result<Option<(char, u64)>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses that may have anything in it; the start is the 22nd.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
    Ok(fields.and_then(|mut fields| Some((fields.next()?.chars().next()?, fields.nth(18)?.parse().ok()?))))
}

/// When the process `pid` started, in clock ticks since the boot; 0: unknown, because it has ended or is hidden.
///
/// # Errors
///
/// If this process lacks a resource: later the same process would have another start.
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    match stat(pid) {
        Ok(found) => Ok(found.map_or(0, |(_, start)| start)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Ok(0),
            _ if error.raw_os_error() == Some(libc::ESRCH) => Ok(0),
            _ => Err(error),
        },
    }
}

/// Whether the other end of `socket` is closed; unread bytes may be left. Never waits.
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

/// Whether this thread, and those that it starts, may use one CPU only. Then spinning can keep the peer from running.
#[must_use]
pub(crate) fn has_one_cpu() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|cpus| cpus.count() == 1)
}

/// Yields this CPU to a waiting thread.
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
        let Process::Watched(watch) = watch_process(child.id()) else { panic!("its end is not watched") };
        let ended = |wait: i64| {
            let wait = Timespec { tv_sec: wait, tv_nsec: 0 };
            poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&wait)).unwrap() > 0
        };
        assert!(!ended(0));
        child.kill().unwrap();
        assert!(ended(30));
        child.wait().unwrap();
        assert!(matches!(watch_process(child.id()), Process::Ended));
    }

    #[test]
    fn a_process_of_another_namespace_is_unknown_and_not_ended() {
        assert!(matches!(watch_process(0), Process::Unknown));
        assert!(matches!(watch_process(u32::MAX), Process::Unknown));
    }

    #[test]
    fn a_socket_without_a_peer_has_no_credentials() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(credentials(file.as_fd()).is_err());
    }
}
