//! Sockets inherited from the service manager (socket activation): `LISTEN_PID`, `LISTEN_FDS` and
//! `LISTEN_FDNAMES`, as `sd_listen_fds(3)` describes them. One may be the control socket, named `ipc`, and one that of
//! the health endpoints, named `health`; one with another name is classified by its type.
//!
//! The variables stay set (changing them is unsafe with threads); the descriptors are marked close-on-exec, and
//! `LISTEN_PID` limits them to this process.

use super::socket::SocketError;
use crate::broker::health::Listener;
use crate::shm::descriptors;
use listenfd::ListenFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// The name of the control socket.
const IPC: &str = "ipc";
/// The name of the health endpoints' socket.
const HEALTH: &str = "health";

/// The inherited sockets.
#[derive(Debug, Default)]
pub(in crate::broker) struct Inherited {
    /// The control socket, and its path.
    pub(in crate::broker) ipc: Option<(UnixListener, PathBuf)>,
    /// The socket of the health endpoints.
    pub(in crate::broker) health: Option<Listener>,
}

impl Inherited {
    /// Takes the inherited sockets. Call once, before other threads start.
    ///
    /// # Errors
    ///
    /// If a descriptor is not a listening socket, is a second one of its kind, or does not match its name.
    pub(in crate::broker) fn take() -> Result<Inherited, SocketError> {
        let named: Vec<_> = sd_notify::listen_fds_with_names().map_err(SocketError::Listen)?.collect();
        let mut inherited = Inherited::default();
        if named.is_empty() {
            return Ok(inherited);
        }
        let mut descriptors = ListenFd::from_env();
        for (index, (fd, name)) in named.into_iter().enumerate() {
            inherited.put(&mut descriptors, index, fd, &name).map_err(|why| SocketError::Inherited {
                fd,
                name: name.escape_default().to_string(),
                why,
            })?;
        }
        Ok(inherited)
    }

    fn put(&mut self, descriptors: &mut ListenFd, index: usize, fd: i32, name: &str) -> Result<(), String> {
        // What is of the wrong kind is left in its place.
        if let Ok(Some(listener)) = descriptors.take_unix_listener(index) {
            check(listener.as_fd(), fd)?;
            descriptors::refuse(listener.as_fd()).map_err(|error| error.to_string())?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            let path = address.as_pathname().ok_or("has no path, so clients cannot find it")?;
            if !path.is_absolute() {
                return Err(format!("has the relative path {:?}", path.display().to_string()));
            }
            if name == HEALTH {
                return self.put_health(Listener::Unix(listener));
            }
            if self.ipc.replace((listener, path.to_owned())).is_some() {
                return Err("is a second control socket".to_owned());
            }
            return Ok(());
        }
        if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
            if name == IPC {
                return Err("is a TCP socket; the control socket must be a Unix socket".to_owned());
            }
            check(listener.as_fd(), fd)?;
            return self.put_health(Listener::Tcp(listener));
        }
        Err("is neither a Unix nor a TCP stream socket".to_owned())
    }

    fn put_health(&mut self, listener: Listener) -> Result<(), String> {
        match self.health.replace(listener) {
            Some(_) => Err("is a second health socket".to_owned()),
            None => Ok(()),
        }
    }
}

fn check(socket: BorrowedFd<'_>, fd: i32) -> Result<(), String> {
    if socket.as_raw_fd() != fd {
        return Err(format!("was inherited as descriptor {}", socket.as_raw_fd()));
    }
    match rustix::net::sockopt::socket_acceptconn(socket) {
        Ok(true) => Ok(()),
        Ok(false) => Err("is a stream socket that is not listening".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
