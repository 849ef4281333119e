//! Publishing, for async programs.

use super::super::error::{Kind, Result};
use super::super::hold::Hold;
use super::super::inner::lock;
use super::super::lane::Parts;
use super::{AsyncClient, until};
use crate::wire::control::InternKind;
use std::sync::Arc;

impl AsyncClient {
    /// As [`Client::publish`](crate::client::Client::publish).
    ///
    /// # Errors
    ///
    /// As [`Client::publish`](crate::client::Client::publish).
    pub async fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) -> Result<()> {
        self.inner.check_size(payload.as_ref().len())?;
        let topic = self.hold(InternKind::Topic, topic, true, || None).await?;
        self.publish_to(topic.into(), payload.as_ref()).await
    }

    /// As [`Client::publisher`](crate::client::Client::publisher).
    ///
    /// # Errors
    ///
    /// As [`Client::publisher`](crate::client::Client::publisher).
    pub async fn publisher(&self, topic: &str) -> Result<AsyncPublisher> {
        let topic = self.hold(InternKind::Topic, topic, false, || None).await?;
        Ok(AsyncPublisher { topic: topic.into(), client: self.clone() })
    }

    async fn publish_to(&self, topic: Arc<Hold>, payload: &[u8]) -> Result<()> {
        let inner = &self.inner;
        let total = inner.check_size(payload.len())?;
        let step = inner.limits.slot_size() as usize;
        if payload.len() > step {
            // Part after part, in a task of its own: were it dropped half way, no further message could follow.
            let (this, payload) = (self.clone(), payload.to_vec());
            let whole = tokio::spawn(async move { this.publish_parts(&topic, total, &payload).await });
            return whole.await.unwrap_or_else(|error| Err(Kind::Disconnected(error.to_string()).into()));
        }
        self.publish_parts(&topic, total, payload).await
    }

    async fn publish_parts(&self, topic: &Hold, total: u32, payload: &[u8]) -> Result<()> {
        let (inner, mut message) = (&self.inner, Parts::new(topic.place, total));
        let _turn = self.bulk.lock().await;
        until(inner, || inner.try_parts(&mut message, payload)).await?
    }

    /// As [`Client::flush`](crate::client::Client::flush).
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub async fn flush(&self) -> Result<()> {
        let inner = &self.inner;
        let number = {
            let _turn = self.bulk.lock().await;
            until(inner, || match inner.bulk().claim() {
                Ok(mut lane) => inner.try_flush(&mut lane),
                Err(error) => Some(Err(error)),
            })
            .await??
        };
        until(inner, || inner.is_flushed(number).then_some(())).await
    }

    /// As [`Client::set_aside`](crate::client::Client::set_aside).
    #[must_use]
    pub fn set_aside(&self) -> u64 {
        lock(&self.inner.table).set_aside
    }
}

/// As [`Publisher`](crate::client::Publisher).
#[derive(Clone, Debug)]
pub struct AsyncPublisher {
    topic: Arc<Hold>,
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
