//! Descriptors over a Unix socket (`SCM_RIGHTS`). Only the broker sends them, and only with Welcome.
//!
//! A descriptor that a client sends is harmful even if the broker never looks at it: the last close of a file can wait
//! (a TCP socket with SO_LINGER and unsent data, a file whose file system does not respond), and the thread that reads
//! or closes the socket is the one that waits. So the kernel is told to refuse them ([`refuse`]); one before Linux 6.16
//! drops them as they are read, because the broker reads without a control buffer.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
#[cfg(feature = "broker")]
use std::os::fd::AsRawFd;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The descriptors of Welcome: the segment, the bell to ring, the descriptor to wait on.
pub(crate) const WELCOME_DESCRIPTORS: usize = 3;

/// `SO_PASSRIGHTS` of `asm-generic/socket.h`; the crate libc does not have it for each architecture.
#[cfg(all(feature = "broker", not(any(target_arch = "sparc", target_arch = "sparc64"))))]
const SO_PASSRIGHTS: libc::c_int = 83;
#[cfg(all(feature = "broker", any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_PASSRIGHTS: libc::c_int = 0x5c;

/// Makes the kernel refuse descriptors that peers send to this socket, with EPERM at the sender. Of a listening socket:
/// those of all connections that are made from now on, also before they are accepted. Returns whether the kernel can:
/// from Linux 6.16 on.
///
/// # Errors
///
/// As `setsockopt`, but for an unknown option.
#[cfg(feature = "broker")]
pub(crate) fn refuse(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let none: libc::c_int = 0;
    let len = size_of_val(&none) as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads `len` bytes at the pointer,
    // which is to a local variable of that size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const none).cast(), len) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        error => Err(error),
    }
}

/// Sends as much of `bytes` as the socket takes now, and the descriptors with the first byte. Returns the number of
/// bytes.
///
/// # Errors
///
/// As `sendmsg`; never blocks and never raises SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WELCOME_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}

/// Receives the available bytes, and adds the descriptors that come with them (close-on-exec) to `descriptors`. Never
/// blocks.
///
/// # Errors
///
/// As `recvmsg`; `InvalidData` for more descriptors than a Welcome has, `EMFILE` if this process has reached its limit.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WELCOME_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) && descriptors.len() < WELCOME_DESCRIPTORS {
        // The control buffer was large enough, so this process has reached its limit of descriptors.
        return Err(rustix::io::Errno::MFILE.into());
    }
    if got.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > WELCOME_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than Welcome carries"));
    }
    Ok(got.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_with_the_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(send(a.as_fd(), b"hello", &[file.as_fd(), file.as_fd()]).unwrap(), 5);
        let (mut bytes, mut got) = ([0; 16], Vec::new());
        assert_eq!(receive(b.as_fd(), &mut bytes, &mut got).unwrap(), 5);
        assert_eq!((&bytes[..5], got.len()), (&b"hello"[..], 2));
        assert!(got.iter().all(|fd| rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)));
    }

    #[test]
    fn too_many_are_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let three = [a.as_fd(), a.as_fd(), a.as_fd()];
        send(a.as_fd(), b"x", &three).unwrap();
        send(a.as_fd(), b"y", &three[..1]).unwrap();
        let (mut bytes, mut got) = ([0; 1], Vec::new());
        receive(b.as_fd(), &mut bytes, &mut got).unwrap();
        let error = receive(b.as_fd(), &mut bytes, &mut got).unwrap_err();
        assert_eq!(error.to_string(), "more descriptors than Welcome carries");
    }

    #[cfg(feature = "broker")]
    #[test]
    fn a_socket_that_refuses_descriptors_takes_bytes_and_sends_both() {
        let (a, b) = UnixStream::pair().unwrap();
        if !refuse(b.as_fd()).unwrap() {
            // Before Linux 6.16.
            return;
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(send(a.as_fd(), b"x", &[file.as_fd()]).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(send(a.as_fd(), b"hi", &[]).unwrap(), 2);
        let (mut bytes, mut got) = ([0; 16], Vec::new());
        assert_eq!((receive(b.as_fd(), &mut bytes, &mut got).unwrap(), got.len()), (2, 0));
        assert_eq!(send(b.as_fd(), b"hello", &[file.as_fd()]).unwrap(), 5);
        assert_eq!((receive(a.as_fd(), &mut bytes, &mut got).unwrap(), got.len()), (5, 1));
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert_eq!(send(a.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
