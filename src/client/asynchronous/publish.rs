//! Publishing, for async programs.

use super::client::AsyncClient;
use super::wait::until;
use crate::client::connection::interning::Interned;
use crate::client::data::lock::lock;
use crate::client::data::message_parts::MessageParts;
use crate::client::engine::publish::{is_flushed, try_parts};
use crate::client::error::{Kind, Result};
use crate::wire::control::InternKind;
use std::sync::Arc;

impl AsyncClient {
    /// As [`Client::publish`](crate::client::Client::publish).
    ///
    /// # Errors
    ///
    /// As [`Client::publish`](crate::client::Client::publish).
    pub async fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) -> Result<()> {
        self.connection.check_size(payload.as_ref().len())?;
        let topic = self.interned(InternKind::Topic, topic, true).await?;
        self.publish_to(topic.into(), payload.as_ref()).await
    }

    /// As [`Client::publisher`](crate::client::Client::publisher).
    ///
    /// # Errors
    ///
    /// As [`Client::publisher`](crate::client::Client::publisher).
    pub async fn publisher(&self, topic: &str) -> Result<AsyncPublisher> {
        let topic = self.interned(InternKind::Topic, topic, false).await?;
        Ok(AsyncPublisher { topic: topic.into(), client: self.clone() })
    }

    async fn publish_to(&self, topic: Arc<Interned>, payload: &[u8]) -> Result<()> {
        let connection = &self.connection;
        let total = connection.check_size(payload.len())?;
        let step = connection.limits.slot_size() as usize;
        if payload.len() > step {
            // Part after part, in a task of its own: were it dropped half way, no further message could follow.
            let (this, payload) = (self.clone(), payload.to_vec());
            let whole = tokio::spawn(async move { this.publish_parts(&topic, total, &payload).await });
            return whole.await.unwrap_or_else(|error| Err(Kind::Disconnected(error.to_string()).into()));
        }
        self.publish_parts(&topic, total, payload).await
    }

    async fn publish_parts(&self, topic: &Interned, total: u32, payload: &[u8]) -> Result<()> {
        let (connection, mut message) = (&self.connection, MessageParts::new(topic.name, total));
        let _turn = self.bulk.lock().await;
        until(connection, || try_parts(connection, &mut message, payload)).await?
    }

    /// As [`Client::flush`](crate::client::Client::flush).
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub async fn flush(&self) -> Result<()> {
        let connection = &self.connection;
        let number = {
            let _turn = self.bulk.lock().await;
            until(connection, || match connection.bulk().claim() {
                Ok(mut lane) => lane.try_flush(connection.next_number()),
                Err(error) => Some(Err(error)),
            })
            .await??
        };
        until(connection, || is_flushed(connection, number).then_some(())).await
    }

    /// As [`Client::quarantined`](crate::client::Client::quarantined).
    #[must_use]
    pub fn quarantined(&self) -> u64 {
        lock(&self.connection.table).quarantined
    }
}

/// As [`Publisher`](crate::client::Publisher).
#[derive(Clone, Debug)]
pub struct AsyncPublisher {
    topic: Arc<Interned>,
    client: AsyncClient,
}

impl AsyncPublisher {
    /// As [`Publisher::publish`](crate::client::Publisher::publish).
    ///
    /// # Errors
    ///
    /// As [`Publisher::publish`](crate::client::Publisher::publish).
    pub async fn publish(&self, payload: impl AsRef<[u8]>) -> Result<()> {
        self.client.publish_to(self.topic.clone(), payload.as_ref()).await
    }
}
