//! Descriptors over a Unix socket (`SCM_RIGHTS`). Only the broker sends them, and only with Welcome. The kernel drops
//! those that a client sends, because the broker reads without a control buffer.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The descriptors of Welcome: the segment, the bell to ring, the descriptor to wait on.
pub(crate) const WELCOME_DESCRIPTORS: usize = 3;

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

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert_eq!(send(a.as_fd(), b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
