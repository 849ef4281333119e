//! Subscriptions, for async programs.

use super::client::AsyncClient;
use super::stream::{self, Timer};
use super::wait::{poll_until, until};
#[cfg(doc)]
use crate::client::Client;
use crate::client::api::subscription::{self, SubscribeOptions, Subscription};
use crate::client::data::message::Message;
use crate::client::error::Result;
use futures_core::Stream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

impl AsyncClient {
    /// As [`Client::subscribe`].
    ///
    /// # Errors
    ///
    /// As [`Client::subscribe`].
    pub async fn subscribe(&self, pattern: &str) -> Result<AsyncSubscription> {
        self.subscribe_with(pattern, SubscribeOptions::default()).await
    }

    /// As [`Client::subscribe_with`].
    ///
    /// # Errors
    ///
    /// As [`Client::subscribe`].
    pub async fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<AsyncSubscription> {
        let (request, subscription) = subscription::start(&self.connection, pattern, options)?;
        let reply = until(&self.connection, || request.reply()).await?;
        let subscription = subscription::finish(subscription, &reply)?;
        Ok(AsyncSubscription { client: self.clone(), subscription, timer: Timer::default(), failed: false })
    }
}

/// As [`Subscription`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncSubscription {
    client: AsyncClient,
    subscription: Subscription,
    timer: Timer,
    failed: bool,
}

impl AsyncSubscription {
    /// The next message. After an error comes `None`.
    pub async fn next(&mut self) -> Option<Result<Message>> {
        stream::next(self).await
    }

    /// As [`Subscription::dropped`].
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.subscription.dropped()
    }
}

impl Stream for AsyncSubscription {
    type Item = Result<Message>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        let subscription = &mut this.subscription;
        let next = loop {
            if let Poll::Ready(next) = poll_until(&this.client.connection, context, || subscription.poll()) {
                break next.and_then(|next| next);
            }
            let Some(until) = subscription.catch_up_deadline() else { return Poll::Pending };
            ready!(this.timer.poll_at(context, until));
        };
        this.failed = next.is_err();
        Poll::Ready(Some(next))
    }
}
