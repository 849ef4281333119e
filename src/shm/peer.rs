//! Who is at the other end of a socket, and where we run.

use std::io;
use std::os::fd::BorrowedFd;

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
}
