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

/// A socket that brokers dial. Dropping the listener removes the socket; its connections stay open.
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
    /// Listens at `path`; only the owner may connect. A socket left by a listener that has exited is replaced.
    ///
    /// # Errors
    ///
    /// If another process listens at `path`, or the socket cannot be created.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Listener> {
        Client::builder().listen(path)
    }

    pub(crate) fn new(builder: Builder, path: PathBuf) -> Result<Listener> {
        match bind(&path) {
            Ok((socket, inode)) => Ok(Listener { builder, socket, path, inode }),
            Err(error) => Err(Kind::Listen { path, reason: error.to_string() }.into()),
        }
    }

    /// Waits for a broker to dial, and performs the handshake.
    ///
    /// # Errors
    ///
    /// If the process that dialled runs as an untrusted user, is not a broker, or refuses the connection: call `accept`
    /// again. If the listener cannot accept any more: [`Error::is_listen`](crate::client::Error::is_listen).
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
    /// Listens at `path` for brokers to dial (an upstream), for a program that starts before its broker, or that
    /// several brokers use. The clients of a listener do not reconnect: the broker redials.
    ///
    /// # Errors
    ///
    /// If another process listens at `path`, or the socket cannot be created.
    pub fn listen(self, path: impl Into<PathBuf>) -> Result<Listener> {
        Listener::new(self, path.into())
    }
}

/// Creates the socket under a temporary name and renames it when its mode is set, so that no other user can connect in
/// between. The umask would have the same effect, but applies to the whole process.
fn bind(path: &Path) -> io::Result<(UnixListener, u64)> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(io::Error::other("path exists and is not a socket")),
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
