//! Publishing.

use super::client::Client;
use super::loan::Loan;
use crate::client::connection::interning::InternedName;
use crate::client::connection::shared::Connection;
use crate::client::data::lock::{deadline, lock};
use crate::client::engine::{names, publish};
use crate::client::error::Result;
use std::sync::Arc;
use std::time::Duration;

impl Client {
    /// Publishes `payload` on `topic`. It returns when the message is on its way; see [`Client::flush`].
    ///
    /// # Errors
    ///
    /// If the topic's name is invalid, the message too large, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.publish("lapce.ai.completion", b"fn main() {}")?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) -> Result<()> {
        let topic = names::topic(&self.connection, topic, true)?;
        publish::publish(&self.connection, &topic.name, payload.as_ref())
    }

    /// For many messages on one topic: its name is looked up once.
    ///
    /// # Errors
    ///
    /// If the name is invalid, or this connection or the broker has as many topics as it may.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let tokens = client.publisher("lapce.ai.tokens")?;
    /// for token in ["fn", " main", "()"] {
    ///     tokens.publish(token)?;
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn publisher(&self, topic: &str) -> Result<Publisher> {
        Ok(Publisher {
            topic: names::topic(&self.connection, topic, false)?.into(),
            connection: self.connection.clone(),
        })
    }

    /// Waits until everything that was published before has been routed to its subscribers' rings.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.publish("lapce.saved", "main.rs")?;
    /// client.flush()?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn flush(&self) -> Result<()> {
        publish::flush(&self.connection, None)
    }

    /// The same, at most for `timeout`. What was published stays published if it is over before all is routed.
    ///
    /// # Errors
    ///
    /// [`Error::is_timeout`](crate::client::Error::is_timeout), or if the connection has ended.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.publish("lapce.saved", "main.rs")?;
    /// client.flush_timeout(Duration::from_secs(1))?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn flush_timeout(&self, timeout: Duration) -> Result<()> {
        publish::flush(&self.connection, deadline(Some(timeout)))
    }
}

impl Client {
    /// Messages of this client that the broker quarantined, because they had killed its router twice; see
    /// [`Client::flush`], after which all of what was published before is counted. A subscriber that had not received
    /// such a message by then sees a gap.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.publish("lapce.saved", "main.rs")?;
    /// client.flush()?;
    /// assert_eq!(client.quarantined(), 0);
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    #[must_use]
    pub fn quarantined(&self) -> u64 {
        lock(&self.connection.table).quarantined
    }
}

/// Publishes on one topic. A handle, like [`Client`]. When the last clone is dropped the topic is released: it does not
/// count any more among those that this connection and the broker may have.
#[derive(Clone, Debug)]
pub struct Publisher {
    topic: Arc<InternedName>,
    connection: Arc<Connection>,
}

impl Publisher {
    /// Publishes `payload`.
    ///
    /// # Errors
    ///
    /// If the message is too large or the connection has ended.
    pub fn publish(&self, payload: impl AsRef<[u8]>) -> Result<()> {
        publish::publish(&self.connection, &self.topic.name, payload.as_ref())
    }

    /// Publishes `payload`, at most [`Limits::slot_size`](crate::client::Limits::slot_size) bytes, if there is space at
    /// once. `Ok(false)`: there is none, and nothing was published.
    ///
    /// # Errors
    ///
    /// If the message is too large or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let cursor = client.publisher("lapce.cursor")?;
    /// if !cursor.try_publish("17:4")? {
    ///     // The next position will do.
    /// }
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn try_publish(&self, payload: impl AsRef<[u8]>) -> Result<bool> {
        publish::try_publish(&self.connection, &self.topic.name, payload.as_ref())
    }

    /// Lends space for a message of `len` bytes, at most [`Limits::slot_size`](crate::client::Limits::slot_size), to be
    /// written in place.
    ///
    /// # Errors
    ///
    /// If `len` is too large, this thread holds a loan already, or the connection has ended.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let publisher = client.publisher("lapce.cursor")?;
    /// let mut loan = publisher.loan(8)?;
    /// loan.write_at(0, &17u32.to_le_bytes());
    /// loan.write_at(4, &4u32.to_le_bytes());
    /// loan.publish()?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn loan(&self, len: usize) -> Result<Loan<'_>> {
        Loan::new(&self.connection, self.topic.name, len)
    }
}
