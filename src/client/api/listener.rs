//! Being found: a program that listens, and brokers that dial it (`[[upstream]]` in their configuration).
//!
//! Once the socket is connected nothing is different: the program greets the broker, and serves.

use super::builder::Builder;
use super::client::Client;
use crate::client::error::{Kind, Result};
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket at which brokers dial. It is removed when the listener is dropped; the connections stay.
///
/// ```no_run
/// use lapce_ipc::client::Listener;
///
/// let listener = Listener::bind("/run/user/1000/workspace.sock")?;
/// loop {
///     let client = listener.accept()?;
///     std::thread::spawn(move || client.serve("mirror")?.run(|request| Ok::<_, String>(request.payload().to_vec())));
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), lapce_ipc::client::Error>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    builder: Builder,
    socket: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listener {
    /// Listens at `path`, for its owner only. What a listener that is gone has left there is replaced.
    ///
    /// # Errors
    ///
    /// If a process listens there already, or the system refuses.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Listener> {
        Client::builder().listen(path)
    }

    pub(crate) fn new(builder: Builder, path: PathBuf) -> Result<Listener> {
        match bind(&path) {
            Ok((socket, inode)) => Ok(Listener { builder, socket, path, inode }),
            Err(error) => Err(Kind::Listen { path, reason: error.to_string() }.into()),
        }
    }

    /// Waits for a broker that dials, and greets it.
    ///
    /// # Errors
    ///
    /// If the process that dialled is not of a trusted user, or no broker, or refuses: another one may come, so
    /// accept again. If there is nothing more to wait for: [`Error::is_listen`](crate::client::Error::is_listen).
    pub fn accept(&self) -> Result<Client> {
        let accepted = loop {
            match self.socket.accept() {
                // The other side has hung up already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                accepted => break accepted,
            }
        };
        match accepted {
            Ok((socket, _)) => self.builder.accept(socket, &self.path),
            Err(error) => Err(Kind::Listen { path: self.path.clone(), reason: error.to_string() }.into()),
        }
    }
}

impl Builder {
    /// Listens at `path` for brokers that dial: the other way round, for a program that is there before its broker, or
    /// that several brokers use. Its clients do not reconnect: it is the broker that dials again.
    ///
    /// # Errors
    ///
    /// If a process listens there already, or the system refuses.
    pub fn listen(self, path: impl Into<PathBuf>) -> Result<Listener> {
        Listener::new(self, path.into())
    }
}

/// Made beside its place and moved there once only its owner can reach it. The umask would do the same, but it is the
/// whole process's.
fn bind(path: &Path) -> io::Result<(UnixListener, u64)> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(io::Error::other("something else is there")),
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(io::ErrorKind::AddrInUse.into()),
        _ => {}
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    // A process of our number that is gone.
    let _ = std::fs::remove_file(&beside);
    let socket = UnixListener::bind(&beside)?;
    let moved = std::fs::set_permissions(&beside, Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&beside, path))
        .and_then(|()| std::fs::symlink_metadata(path));
    match moved {
        Ok(found) => Ok((socket, found.ino())),
        Err(error) => {
            let _ = std::fs::remove_file(&beside);
            Err(error)
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Another listener may have taken the path.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Readable when a broker dials, for event loops.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_owners_and_goes_with_its_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let error = Listener::bind(&path).unwrap_err();
        assert!(error.is_listen() && error.to_string().contains("in use"), "{error}");
        drop(listener);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_listener_left_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Listener::bind(&path).unwrap();
        // Its place was taken by force: the new one's socket stays.
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        std::fs::write(&path, "a file").unwrap();
        assert!(Listener::bind(&path).unwrap_err().is_listen());
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }
}
