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

/// A connection to the broker. Clones are handles of the same connection, which is closed when the last one is dropped.
///
/// A connection belongs to the process that created it. In a child created by `fork`, every call on an inherited client
/// returns [`Error::is_forked`](crate::client::Error::is_forked), dropping it sends nothing to the broker, and the
/// parent's connection keeps working; the child must connect itself. (A child that calls `exec` at once, as
/// `std::process::Command` does, inherits nothing: all descriptors are closed on exec.)
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) connection: Arc<Connection>,
}

impl Client {
    /// The connection's id, as in the broker's log and status, and in each message that this client publishes.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.connection.id()
    }

    /// The broker's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.connection.endpoint.path
    }

    /// The limits that the current broker sets for this connection. A restart of the broker may change them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.connection.limits.all()
    }

    /// Waits until the broker closes the connection, at most for `timeout` (`None`: no limit). Meanwhile arriving
    /// records are sorted into their queues.
    ///
    /// # Errors
    ///
    /// Always: the reason why the connection ended, or [`Error::is_timeout`](crate::client::Error::is_timeout).
    pub fn closed(&self, timeout: Option<Duration>) -> Result<std::convert::Infallible> {
        wait::for_record(&self.connection, deadline(timeout), || None)
    }

    /// Closes the connection in order, for all clones and all objects created from them. Published messages are routed;
    /// blocked calls and later calls return an error
    /// ([`Error::is_disconnected`](crate::client::Error::is_disconnected)).
    ///
    /// Dropping the last of these does the same. `close` is for a program in which some threads still wait:
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

/// The descriptor of this connection for an event loop: when it is readable, records may have arrived, and the calls
/// that do not block return them. The loop calls them until they return nothing, and only then sleeps on the
/// descriptor; after a call of this client that has waited, as a publish does for space, it does so again. Watch the
/// descriptor level-triggered.
///
/// ```no_run
/// # use lapce_ipc::client::Client;
/// # fn poll(_: &Client) {}
/// let client = Client::connect()?;
/// let mut ticks = client.subscribe("lapce.tick")?;
/// loop {
///     while let Some(tick) = ticks.try_next()? {
///         println!("{} bytes", tick.payload().len());
///     }
///     // poll(2) on the descriptor, among others.
///     poll(&client);
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), lapce_ipc::client::Error>(())
/// ```
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.epoll.as_fd()
    }
}
