//! The socket's path. A lock file beside it decides which broker owns the path. A socket file that a dead broker left
//! is replaced; one at which anybody listens is not, be it no broker at all: a program that is dialled, a socket unit.

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Why the broker cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another broker holds the lock.
    #[error("{}: another broker listens there", .0.display())]
    InUse(PathBuf),
    /// Some other program listens there: it takes connections, or would.
    #[error("{}: another program listens there", .0.display())]
    Taken(PathBuf),
    /// Something else stands at the path.
    #[error("{}: exists and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The lock file is not one of ours.
    #[error("{}: is no plain file of our own, so it cannot be the lock", .0.display())]
    ForeignLock(PathBuf),
    /// The path is longer than a socket's address can be.
    #[error("{}: longer than the {max} bytes that a socket's path may have", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The most bytes.
        max: usize,
    },
    /// Whoever started us left something that is not as it should be.
    #[error("inherited descriptor {fd} ({name}): {why}")]
    Inherited {
        /// The descriptor's number.
        fd: i32,
        /// What it was called, escaped.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The variables by which descriptors are inherited make no sense.
    #[error("LISTEN_FDS: {0}")]
    Listen(io::Error),
    /// The system refused.
    #[error("{}: {error}", .path.display())]
    Io {
        /// What was to be used.
        path: PathBuf,
        /// Why it was not.
        error: io::Error,
    },
}

/// Bytes in the address of a Unix socket, without the final 0.
const MAX_PATH: usize = 107;

/// The path of a listening socket, with its lock. Both go when this is dropped; an inherited socket's path stays: it is
/// not ours to remove.
#[derive(Debug)]
pub(super) struct Bound {
    path: PathBuf,
    /// The socket's file, if it is ours.
    inode: Option<u64>,
    lock_path: PathBuf,
    _lock: OwnedFd,
}

/// Binds `path` with the mode `permissions`. Call it before there are other threads: it sets the process's umask for a
/// moment, so that the socket never has another mode.
///
/// # Errors
///
/// If another broker listens there, something else stands there, or the system refuses.
pub(super) fn bind(path: &Path, permissions: u32) -> Result<(Bound, UnixListener), SocketError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(SocketError::TooLong { path: path.to_owned(), max: MAX_PATH });
    }
    let lock_path = lock_path(path);
    let lock = lock(&lock_path, path)?;
    // No broker owns the path while we hold the lock.
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match is_dead(path) {
            Ok(true) => std::fs::remove_file(path).map_err(io_at(path))?,
            Ok(false) => return Err(SocketError::Taken(path.to_owned())),
            Err(error) => return Err(io_at(path)(error.into())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_at(path)(error)),
    }
    let umask = rustix::process::umask(Mode::from_raw_mode(0o777 & !permissions));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = listener.map_err(io_at(path))?;
    listener.set_nonblocking(true).map_err(io_at(path))?;
    let inode = Some(std::fs::symlink_metadata(path).map_err(io_at(path))?.ino());
    Ok((Bound { path: path.to_owned(), inode, lock_path, _lock: lock }, listener))
}

/// Takes the lock of the path of a socket that somebody else has bound, so that no other broker takes its place. Who
/// holds the listening socket is not asked: a socket unit listens while no broker runs.
///
/// # Errors
///
/// If another broker listens there, or the system refuses.
pub(super) fn adopt(path: &Path, listener: &UnixListener) -> Result<Bound, SocketError> {
    let lock_path = lock_path(path);
    let lock = lock(&lock_path, path)?;
    listener.set_nonblocking(true).map_err(io_at(path))?;
    Ok(Bound { path: path.to_owned(), inode: None, lock_path, _lock: lock })
}

/// Whether nobody listens at the socket that stands at `path`. Asks without waiting for anybody.
fn is_dead(path: &Path) -> Result<bool, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(true),
        // It has as many callers as it takes at a time; it is of another kind.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(false),
        Err(error) => Err(error),
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |error| SocketError::Io { path, error }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = OsString::from(path);
    lock.push(".lock");
    lock.into()
}

fn lock(lock_path: &Path, path: &Path) -> Result<OwnedFd, SocketError> {
    let io_at = |error: Errno| SocketError::Io { path: lock_path.to_owned(), error: error.into() };
    loop {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(lock_path, flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => file,
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => {
                return Err(SocketError::ForeignLock(lock_path.to_owned()));
            }
            Err(error) => return Err(io_at(error)),
        };
        let opened = rustix::fs::fstat(&file).map_err(io_at)?;
        let is_plain = rustix::fs::FileType::from_raw_mode(opened.st_mode).is_file();
        if !is_plain || opened.st_uid != crate::shm::peer::own_uid() {
            return Err(SocketError::ForeignLock(lock_path.to_owned()));
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(SocketError::InUse(path.to_owned())),
            Err(error) => return Err(io_at(error)),
        }
        // A broker that ended between our open and our lock has removed the file that we hold: start again.
        match rustix::fs::lstat(lock_path) {
            Ok(there) if there.st_ino == opened.st_ino && there.st_dev == opened.st_dev => return Ok(file),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(io_at(error)),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Under the lock, and only if it is still ours.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| Some(found.ino()) == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipc.sock");
        (folder, path)
    }

    #[test]
    fn a_second_broker_is_refused_and_a_dead_ones_socket_is_replaced() {
        let (_folder, path) = folder();
        let (bound, listener) = bind(&path, 0o600).unwrap();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::InUse(p)) if p == path));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // As a killed broker leaves it: the file stays, the lock goes, and nobody listens.
        let Bound { _lock, .. } = &bound;
        rustix::fs::flock(_lock, FlockOperation::Unlock).unwrap();
        drop(listener);
        let (second, _listener) = bind(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(second);
        assert!(!path.exists() && !lock_path(&path).exists());
    }

    #[test]
    fn an_inherited_socket_is_locked_and_stays() {
        let (_folder, path) = folder();
        let listener = UnixListener::bind(&path).unwrap();
        let bound = adopt(&path, &listener).unwrap();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::InUse(p)) if p == path));
        assert!(matches!(adopt(&path, &listener), Err(SocketError::InUse(p)) if p == path));
        drop(bound);
        assert!(path.exists() && !lock_path(&path).exists());
        drop(adopt(&path, &listener).unwrap());
    }

    #[test]
    fn a_socket_at_which_somebody_listens_is_left_alone() {
        let (_folder, path) = folder();
        let listener = UnixListener::bind(&path).unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: another program listens there", path.display()));
        // Nor if it is too busy to take another caller (the one of a moment ago was not accepted), or of another kind.
        rustix::net::listen(&listener, 0).unwrap();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::Taken(_))));
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::Taken(_))));
        drop(datagrams);
        bind(&path, 0o600).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let (_folder, path) = folder();
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: exists and is no socket", path.display()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let (folder, path) = folder();
        let target = folder.path().join("target");
        std::os::unix::fs::symlink(&target, lock_path(&path)).unwrap();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::ForeignLock(_))));
        assert!(!target.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_named() {
        let path = PathBuf::from("/tmp/".to_owned() + &"x".repeat(110));
        assert!(
            bind(&path, 0o600)
                .unwrap_err()
                .to_string()
                .ends_with("longer than the 107 bytes that a socket's path may have")
        );
    }
}
