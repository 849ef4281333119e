//! Publishing.

use super::client::Client;
use super::loan::Loan;
use crate::client::connection::interning::Interned;
use crate::client::connection::shared::Connection;
use crate::client::data::lock::{deadline, lock};
use crate::client::engine::{names, publish};
use crate::client::error::Result;
use std::sync::Arc;
use std::time::Duration;

impl Client {
    /// Publishes `payload` on `topic`. Returns when the message is in the lane to the broker; see [`Client::flush`].
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

    /// A handle for many messages on one topic: the name is looked up once.
    ///
    /// # Errors
    ///
    /// If the name is invalid, or a limit of topics is reached.
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

    /// Waits until all messages published before are routed to the rings of their subscribers.
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

    /// As [`Client::flush`], at most for `timeout`. Messages stay published when the timeout passes.
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
    /// The number of poison messages of this client: the broker quarantined them because each killed its router twice.
    /// After [`Client::flush`] the number includes all messages published before. A subscriber that had not received
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

/// Publishes on one topic. A handle, like [`Client`]. Dropping the last clone releases the topic: it no longer counts
/// towards the limits of topics.
#[derive(Clone, Debug)]
pub struct Publisher {
    topic: Arc<Interned>,
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

    /// Publishes all of `payloads` in order, and waits for space where there is none. What a call of
    /// [`publish`](Publisher::publish) does besides the copy is done once for as many as there is space for.
    ///
    /// # Errors
    ///
    /// If a message is too large, then none is published; or if the connection has ended, which may be after some.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let tokens = client.publisher("lapce.ai.tokens")?;
    /// tokens.publish_batch(&["fn", " main", "()"])?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn publish_batch(&self, payloads: &[impl AsRef<[u8]>]) -> Result<()> {
        publish::publish_batch(&self.connection, &self.topic.name, payloads)
    }

    /// Publishes `payload`, at most [`Limits::slot_size`](crate::client::Limits::slot_size) bytes, without waiting for
    /// space. Returns `Ok(false)` if there is none; nothing was published then.
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

    /// Reserves space for a message of `len` bytes, at most [`Limits::slot_size`](crate::client::Limits::slot_size), to
    /// be written in place.
    ///
    /// # Errors
    ///
    /// If `len` is too large, this thread already holds a loan, or the connection has ended.
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
