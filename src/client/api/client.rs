//! The handle of a connection.

use crate::client::connection::shared::Connection;
use crate::client::data::lock::deadline;
use crate::client::engine::wait;
use crate::client::error::Result;
use crate::wire::control::Limits;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A connection to the broker. Clones are handles of the same connection, which ends with the last of them.
///
/// A connection belongs to the process that made it. In a child made by `fork`, every call on an inherited client
/// returns [`Error::is_forked`](crate::client::Error::is_forked), dropping it tells the broker nothing, and the
/// parent's connection goes on; the child connects by itself. (A child that executes another program at once, as
/// `std::process::Command` starts it, inherits nothing: all descriptors are closed on exec.)
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) connection: Arc<Connection>,
}

impl Client {
    /// The connection's id, as it stands in the broker's log and status, and with each message that we publish.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.connection.id()
    }

    /// The broker's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.connection.endpoint.path
    }

    /// The limits that the present broker sets for this connection. After a restart of the broker they may be others.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.connection.limits.all()
    }

    /// Waits until the broker ends the connection, at most for `timeout` (`None`: no limit). Meanwhile everything that
    /// arrives is sorted into its queues.
    ///
    /// # Errors
    ///
    /// Always: the reason why the connection ended, or [`Error::is_timeout`](crate::client::Error::is_timeout).
    pub fn closed(&self, timeout: Option<Duration>) -> Result<std::convert::Infallible> {
        wait::for_record(&self.connection, deadline(timeout), || None)
    }

    /// Says goodbye to the broker and ends the connection, for all clones and for what was made of them. What was
    /// published is routed; calls that wait, and calls afterwards, return an error
    /// ([`Error::is_disconnected`](crate::client::Error::is_disconnected)).
    ///
    /// Dropping the last of all these does the same. This is for a program in which some still wait:
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let events = client.events();
    /// let watcher = std::thread::spawn(move || events.for_each(|state| println!("{state:?}")));
    /// // ...
    /// client.close();
    /// watcher.join().expect("it ends with the connection");
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn close(&self) {
        self.connection.close_by_user();
    }
}

/// The one descriptor on which a client waits, for event loops of its own: when it is readable, something may have
/// arrived, and the calls that do not block will find it.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.epoll.as_fd()
    }
}
