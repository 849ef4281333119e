//! The socket's path. A lock file beside it decides which broker owns the path. A socket file that a dead broker left
//! is replaced; one with a listener is not, be it another program: an upstream, a socket unit.

use crate::shm::descriptors;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Why the broker cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another broker holds the lock.
    #[error("{}: another broker is listening", .0.display())]
    InUse(PathBuf),
    /// Another program is listening there.
    #[error("{}: another program is listening", .0.display())]
    Taken(PathBuf),
    /// The inherited socket was removed; only its service manager can recreate it.
    #[error("{}: the inherited socket was removed; restart its socket unit", .0.display())]
    Removed(PathBuf),
    /// The path is not a socket.
    #[error("{}: not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The lock file belongs to another user, or is not a regular file.
    #[error("{}: not a regular file of the broker's user, so it cannot be the lock file", .0.display())]
    ForeignLock(PathBuf),
    /// The path is longer than a socket's address can be.
    #[error("{}: longer than {max} bytes, the limit for a socket path", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The most bytes.
        max: usize,
    },
    /// An inherited descriptor is not usable.
    #[error("inherited descriptor {fd} ({name}): {why}")]
    Inherited {
        /// The descriptor's number.
        fd: i32,
        /// Its name, escaped.
        name: String,
        /// Why it is not usable.
        why: String,
    },
    /// The variables by which descriptors are inherited make no sense.
    #[error("LISTEN_FDS: {0}")]
    Listen(io::Error),
    /// The system refused.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why it was not.
        error: io::Error,
    },
}

/// The listen backlog.
const BACKLOG: i32 = 1024;
/// Bytes in the address of a Unix socket, without the final 0.
const MAX_PATH: usize = 107;

/// The identity of a file: device and inode.
type Identity = (u64, u64);

/// The path of a listening socket, with its lock. Both go when this is dropped, if they are still ours; an inherited
/// socket's path stays: it is not ours to remove.
#[derive(Debug)]
pub(crate) struct Bound {
    path: PathBuf,
    socket: Identity,
    /// The mode of the socket, unless it is inherited.
    permissions: Option<u32>,
    lock: Lock,
}

/// The lock of a path. The lock goes with the descriptor.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: OwnedFd,
    identity: Identity,
    /// Not so where the system refuses locks.
    is_locked: bool,
}

/// Binds `path` with the mode `permissions`; the socket never has a wider one.
///
/// # Errors
///
/// If another broker is listening, something else stands there, or the system refuses.
pub(crate) fn bind(path: &Path, permissions: u32) -> Result<(Bound, UnixListener), SocketError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(SocketError::TooLong { path: path.to_owned(), max: MAX_PATH });
    }
    let lock = lock(&lock_path(path), path)?;
    let listener = take(path, permissions)?;
    let socket = identity(path).map_err(io_at(path))?;
    Ok((Bound { path: path.to_owned(), socket, permissions: Some(permissions), lock }, listener))
}

/// Locks the path of an inherited socket, so that no other broker uses it. The owner of the listening socket is not
/// checked: a socket unit listens while no broker runs.
///
/// # Errors
///
/// If another broker is listening, or the system refuses.
pub(in crate::broker) fn adopt(path: &Path, listener: &UnixListener) -> Result<Bound, SocketError> {
    let lock = lock(&lock_path(path), path)?;
    listener.set_nonblocking(true).map_err(io_at(path))?;
    // If it is gone already, the first look at it finds that.
    let socket = identity(path).unwrap_or_default();
    Ok(Bound { path: path.to_owned(), socket, permissions: None, lock })
}

impl Bound {
    pub(in crate::broker) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the socket is still at its path. If the system does not say, it is.
    pub(in crate::broker) fn is_there(&self) -> bool {
        match identity(&self.path) {
            Ok(found) => found == self.socket,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// Binds the path once more, after the socket was removed; by the same rules as the first time.
    ///
    /// # Errors
    ///
    /// As [`bind`], or if the socket was inherited.
    pub(in crate::broker) fn bind_again(&mut self) -> Result<UnixListener, SocketError> {
        let Some(permissions) = self.permissions else { return Err(SocketError::Removed(self.path.clone())) };
        if identity(&self.lock.path).ok() != Some(self.lock.identity) {
            self.lock = lock(&self.lock.path, &self.path)?;
        }
        let listener = take(&self.path, permissions)?;
        self.socket = identity(&self.path).map_err(io_at(&self.path))?;
        Ok(listener)
    }
}

/// Listens at a path, of which we hold the lock.
fn take(path: &Path, permissions: u32) -> Result<UnixListener, SocketError> {
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
    listen(path, permissions).map_err(io_at(path))
}

/// The process's umask stays as it is, because there may be other threads: a new socket file has the mode of its
/// descriptor, less the umask. What the umask took away comes back before a client can connect.
fn listen(path: &Path, permissions: u32) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mode = Mode::from_raw_mode(permissions);
    rustix::fs::fchmod(&socket, mode)?;
    descriptors::refuse(socket.as_fd())?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    if Mode::from_raw_mode(rustix::fs::lstat(path)?.st_mode) != mode {
        rustix::fs::chmod(path, mode)?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Whether the socket at `path` has no listener. Does not block.
fn is_dead(path: &Path) -> Result<bool, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(true),
        // Its backlog is full, or it is of another type.
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

fn lock(lock_path: &Path, path: &Path) -> Result<Lock, SocketError> {
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
        let is_locked = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            // A profile of seccomp, a file system without locks. Then a listener at the path decides.
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK)) => {
                log::warn!("cannot lock the socket path={:?} reason={error:?}", lock_path.display().to_string());
                false
            }
            Err(Errno::WOULDBLOCK) => return Err(SocketError::InUse(path.to_owned())),
            Err(error) => return Err(io_at(error)),
        };
        // A broker that ended between our open and our lock has removed the file that we hold: start again.
        match rustix::fs::lstat(lock_path) {
            Ok(there) if there.st_ino == opened.st_ino && there.st_dev == opened.st_dev => {
                let (path, identity) = (lock_path.to_owned(), (opened.st_dev, opened.st_ino));
                return Ok(Lock { path, _file: file, identity, is_locked });
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(io_at(error)),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Bound {
    /// Removes socket and lock; they are not recreated after that.
    pub(in crate::broker) fn remove(&mut self) {
        // Under the lock, and only what is still ours: after a removal another broker may have its own there.
        if self.permissions.take().is_some() && identity(&self.path).ok() == Some(self.socket) {
            let _ = std::fs::remove_file(&self.path);
        }
        self.lock.remove();
    }
}

/// A start that fails leaves no file either.
impl Drop for Lock {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Lock {
    fn remove(&self) {
        if self.is_locked && identity(&self.path).ok() == Some(self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
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
        // As a killed broker leaves it: the file stays, the lock goes, and there is no listener.
        rustix::fs::flock(&bound.lock._file, FlockOperation::Unlock).unwrap();
        drop(listener);
        let (second, _listener) = bind(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(second);
        assert!(!path.exists() && !lock_path(&path).exists());
    }

    #[test]
    fn a_start_that_fails_leaves_what_is_there_and_no_lock() {
        let (_folder, path) = folder();
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(bind(&path, 0o600), Err(SocketError::NotASocket(_))));
        assert!(path.exists() && !lock_path(&path).exists());
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
        assert_eq!(error.to_string(), format!("{}: another program is listening", path.display()));
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
    fn a_removed_socket_is_bound_again_and_only_what_is_ours_is_removed() {
        let (_folder, path) = folder();
        let (mut first, _listener) = bind(&path, 0o666).unwrap();
        assert!(first.is_there());
        std::fs::remove_file(&path).unwrap();
        assert!(!first.is_there());
        let _again = first.bind_again().unwrap();
        assert!(first.is_there());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        // With the lock, another broker may come first.
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(lock_path(&path)).unwrap();
        let (second, _second) = bind(&path, 0o600).unwrap();
        assert!(matches!(first.bind_again(), Err(SocketError::InUse(_))));
        drop(first);
        assert!(second.is_there() && lock_path(&path).exists());
        drop(second);
        assert!(!path.exists() && !lock_path(&path).exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let (_folder, path) = folder();
        std::fs::write(&path, "precious").unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: not a socket", path.display()));
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
            bind(&path, 0o600).unwrap_err().to_string().ends_with("longer than 107 bytes, the limit for a socket path")
        );
    }
}
