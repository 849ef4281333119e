//! Cuts the control sockets of a process from outside, as a kernel or a proxy in between could: the process lives.

use super::probe::process;
use rustix::fs::fstat;
use rustix::net::{SendFlags, Shutdown, SocketAddrUnix, getpeername, send, shutdown};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Cuts every connection of the process `pid` to the broker at `socket`. Answers how many there were.
pub fn cut(pid: u32, socket: &Path) -> usize {
    with_each(pid, socket, |descriptor| shutdown(descriptor, Shutdown::Both).is_ok())
}

/// Fills the connections of this process to the broker at `socket`, which must not read: whoever writes next waits.
pub fn fill_own(socket: &Path) {
    let filled = with_each(std::process::id(), socket, |descriptor| {
        for len in [4096, 1] {
            while send(descriptor, &[0; 4096][..len], SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok() {}
        }
        true
    });
    assert!(filled > 0, "no connection to {}", socket.display());
}

/// Does something with each descriptor of the process `pid` that is connected to the broker at `socket`. Answers with
/// how many it succeeded.
fn with_each(pid: u32, socket: &Path, act: impl Fn(&OwnedFd) -> bool) -> usize {
    // It holds further descriptors of the same sockets for a moment, which another of us would find, too.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let owner = pidfd_open(process(pid), PidfdFlags::empty()).expect("it runs");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let numbers: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // All are found before the first is touched: whoever notices connects again at once, perhaps under a number that is
    // still to be looked at. By their inodes, for our own descriptors of them may be in this process, too.
    let mut found = BTreeMap::new();
    for number in numbers {
        // It may have closed it meanwhile, or it is no socket.
        let Ok(descriptor) = pidfd_getfd(&owner, number, PidfdGetfdFlags::empty()) else { continue };
        let Some(peer) = getpeername(&descriptor).ok().flatten() else { continue };
        let Ok(peer) = SocketAddrUnix::try_from(peer) else { continue };
        if peer.path_bytes() == Some(socket.as_os_str().as_bytes()) {
            found.insert(fstat(&descriptor).expect("an open descriptor").st_ino, descriptor);
        }
    }
    found.values().filter(|descriptor| act(descriptor)).count()
}

/// Cuts the connections of this process.
pub fn cut_own(socket: &Path) -> usize {
    cut(std::process::id(), socket)
}
