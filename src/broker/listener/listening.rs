//! The listening socket of a running broker: its file is watched, and recreated when it is removed.
//!
//! If the file is removed (by a cleaner of temporary folders, for example), the descriptor still listens, but no client
//! can reach it. The file is watched by inotify, and checked periodically in case its folder was removed.

use super::path_watch::PathWatch;
use super::socket::{Bound, SocketError};
use rustix::fs::inotify::WatchFlags;
use std::cell::RefCell;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

/// Interval of checks for the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long the path stays free after a removal: another broker may be about to bind it.
const SETTLE: Duration = Duration::from_secs(1);

/// The socket, shared by the root and the acceptor.
#[derive(Debug)]
pub(in crate::broker) struct Listening {
    bound: RefCell<Bound>,
    listener: RefCell<UnixListener>,
    /// Why clients cannot reach the socket, if they cannot.
    lost: watch::Sender<Option<String>>,
}

impl Listening {
    pub(in crate::broker) fn new((bound, listener): (Bound, UnixListener)) -> Rc<Listening> {
        Rc::new(Listening {
            bound: RefCell::new(bound),
            listener: RefCell::new(listener),
            lost: watch::Sender::new(None),
        })
    }

    /// Why clients cannot reach the socket, if they cannot (for `/ready`).
    pub(in crate::broker) fn lost(&self) -> watch::Receiver<Option<String>> {
        self.lost.subscribe()
    }

    /// Where it listens.
    pub(in crate::broker) fn path(&self) -> PathBuf {
        self.bound.borrow().path().to_owned()
    }

    /// The descriptor at the moment.
    pub(in crate::broker) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.borrow().try_clone()
    }

    /// Removes the file for good.
    pub(in crate::broker) fn close(&self) {
        self.bound.borrow_mut().remove();
    }

    /// Waits until the file was removed, and returns the descriptor of the recreated socket.
    ///
    /// # Errors
    ///
    /// If there is no descriptor.
    pub(in crate::broker) async fn made_anew(self: Rc<Listening>) -> io::Result<UnixListener> {
        loop {
            self.until_gone().await;
            let path = self.bound.borrow().path().display().to_string();
            log::warn!("socket file removed path={path:?}");
            tokio::time::sleep(SETTLE).await;
            loop {
                if self.bound.borrow().is_there() {
                    log::info!("socket file restored path={path:?}");
                    self.lost.send_replace(None);
                    break;
                }
                let again = self.bound.borrow_mut().bind_again();
                match again {
                    Ok(listener) => {
                        log::warn!("socket recreated path={path:?}");
                        self.listener.replace(listener);
                        self.lost.send_replace(None);
                        return self.listener();
                    }
                    Err(error) => self.tell(&error),
                }
                tokio::time::sleep(CHECK_INTERVAL).await;
            }
        }
    }

    fn tell(&self, error: &SocketError) {
        let reason = error.to_string();
        let is_new = self.lost.send_if_modified(|lost| lost.replace(reason.clone()).as_ref() != Some(&reason));
        if is_new {
            log::warn!("cannot recreate the socket reason={reason:?}");
        }
    }

    async fn until_gone(&self) {
        // Without inotify, the looks tell.
        let mut watch = self.watch().ok();
        while self.bound.borrow().is_there() {
            match &watch {
                Some(events) => {
                    if matches!(tokio::time::timeout(CHECK_INTERVAL, events.events(|_| {})).await, Ok(Err(_))) {
                        watch = None;
                    }
                }
                None => tokio::time::sleep(CHECK_INTERVAL).await,
            }
        }
    }

    /// A watch over the file alone: in its folder there may be much coming and going.
    fn watch(&self) -> io::Result<PathWatch> {
        // Of a socket that a process has open, a removal changes the number of links only.
        PathWatch::new(self.bound.borrow().path(), WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)
    }
}
