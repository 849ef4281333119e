//! What arrives one after the other is a [`Stream`]: subscriptions, replies, requests to a service, connection states.
//!
//! `next` of each is the same as its `poll_next`, for programs that need no combinators.

use super::wait::poll_until;
use crate::client::connection::shared::Connection;
use crate::client::error::{Kind, Result};
use futures_core::Stream;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::time::{Sleep, sleep_until};

/// The time at which a stream that gets nothing gives up. The timer is made at the first wait and reset from then on.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Waits until `ready` returns something, at most until `deadline`.
    pub(crate) fn poll_within<T>(
        &mut self,
        connection: &Connection,
        context: &mut Context<'_>,
        deadline: Option<Instant>,
        ready: impl FnMut() -> Option<T>,
    ) -> Poll<Result<T>> {
        if let Poll::Ready(found) = poll_until(connection, context, ready) {
            return Poll::Ready(found);
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        self.poll_at(context, deadline).map(|()| Err(Kind::Timeout.into()))
    }

    pub(crate) fn poll_at(&mut self, context: &mut Context<'_>, time: Instant) -> Poll<()> {
        let deadline = tokio::time::Instant::from_std(time);
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(context)
    }
}

/// `next` of a stream.
pub(crate) async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}
