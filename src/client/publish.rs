//! Publishing.

use super::Client;
use super::error::{Kind, Result};
use super::hold::Hold;
use super::inner::{Inner, deadline, lock};
use super::loan::Loan;
use super::names::Place;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let topic = self.inner.topic(topic, true)?;
        self.inner.publish(&topic.place, payload.as_ref())
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
        Ok(Publisher { topic: self.inner.topic(topic, false)?.into(), inner: self.inner.clone() })
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
        self.inner.flush(None)
    }

    /// The same, at most for `timeout`. What was published stays published if it is over before all is routed.
    ///
    /// # Errors
    ///
    /// [`Error::is_timeout`](super::Error::is_timeout), or if the connection has ended.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.publish("lapce.saved", "main.rs")?;
    /// client.flush_timeout(Duration::from_secs(1))?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn flush_timeout(&self, timeout: Duration) -> Result<()> {
        self.inner.flush(deadline(Some(timeout)))
    }
}

impl Client {
    /// Messages of this client that the broker took out, because they had killed its router twice; see
    /// [`Client::flush`], after which all of what was published before is counted. Who had not got such a message by
    /// then sees a gap.
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// client.publish("lapce.saved", "main.rs")?;
    /// client.flush()?;
    /// assert_eq!(client.set_aside(), 0);
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    #[must_use]
    pub fn set_aside(&self) -> u64 {
        lock(&self.inner.table).set_aside
    }
}

/// Publishes on one topic. A handle, like [`Client`]. When the last clone is dropped the topic is released: it does not
/// count any more among those that this connection and the broker may have.
#[derive(Clone, Debug)]
pub struct Publisher {
    topic: Arc<Hold>,
    inner: Arc<Inner>,
}

impl Publisher {
    /// Publishes `payload`.
    ///
    /// # Errors
    ///
    /// If the message is too large or the connection has ended.
    pub fn publish(&self, payload: impl AsRef<[u8]>) -> Result<()> {
        self.inner.publish(&self.topic.place, payload.as_ref())
    }

    /// Publishes `payload`, at most [`Limits::slot_size`](super::Limits::slot_size) bytes, if there is space at once.
    /// `Ok(false)`: there is none, and nothing was published.
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
        self.inner.try_publish(&self.topic.place, payload.as_ref())
    }

    /// Lends space for a message of `len` bytes, at most [`Limits::slot_size`](super::Limits::slot_size), to be written
    /// in place.
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
        Loan::new(&self.inner, self.topic.place, len)
    }
}

impl Inner {
    #[inline]
    pub(super) fn publish(&self, topic: &Place, payload: &[u8]) -> Result<()> {
        let total = self.check_size(payload.len())?;
        let is_away = self.look_up()?;
        if total <= self.limits.slot_size() {
            let mut lane = self.bulk().claim()?;
            if lane.is_one_record(payload.len()) && lane.try_publish(topic, total, payload)? {
                if lane.should_look() || is_away {
                    drop(lane);
                    self.look_after_link();
                }
                return Ok(());
            }
        }
        self.publish_waiting(topic, total, payload)
    }

    fn try_publish(&self, topic: &Place, payload: &[u8]) -> Result<bool> {
        let (len, max) = (payload.len(), self.limits.slot_size());
        let total = u32::try_from(len).ok().filter(|len| *len <= max).ok_or(Kind::TooLarge { len, max })?;
        let is_away = self.look_up()?;
        let mut lane = self.bulk().claim_within()?;
        if !lane.is_one_record(len) {
            return Err(Kind::TooLarge { len, max: self.limits.slot_size() }.into());
        }
        let is_published = lane.is_free() && lane.try_publish(topic, total, payload)?;
        // Nobody else may look after the connection: this one never waits.
        let should_look = !is_published || lane.should_look() || is_away;
        drop(lane);
        if should_look {
            self.look_after_link();
        }
        Ok(is_published)
    }

    fn flush(&self, deadline: Option<Instant>) -> Result<()> {
        let number = self.start_flush(deadline)?;
        self.wait_until(deadline, || self.is_flushed(number).then_some(()))
    }

    fn start_flush(&self, deadline: Option<Instant>) -> Result<u64> {
        self.look_up()?;
        loop {
            // Numbers follow the order in the lane, so that one answer also answers all flushes before it.
            let placed = self.try_flush(&mut *self.bulk().claim_until(deadline)?);
            if let Some(number) = placed {
                return number;
            }
            let placed = self.wait_for_bell_until(deadline, || match self.bulk().claim_within() {
                Ok(mut lane) if lane.is_free() => self.try_flush(&mut lane).map(|placed| placed.map(Some)),
                // Within another's message: wait for its end, not for space.
                Ok(_) => Some(Ok(None)),
                Err(error) => Some(Err(error)),
            })??;
            if let Some(number) = placed {
                return Ok(number);
            }
        }
    }

    pub(super) fn is_flushed(&self, number: u64) -> bool {
        lock(&self.table).flushed >= number
    }
}
