//! What arrives one after the other is a [`Stream`]: subscriptions, replies, requests to a service, connection states.
//!
//! `next` of each is the same as its `poll_next`, for programs that need no combinators.

use super::super::error::{Kind, Result};
use super::super::inner::Inner;
use super::super::{ConnectionState, Message};
use super::{AsyncEvents, AsyncReplyStream, AsyncRequest, AsyncService, AsyncSubscription, poll_until};
use futures_core::Stream;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::time::{Sleep, sleep_until};

/// The time at which a stream that gets nothing gives up. The timer is made at the first wait and reset from then on.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Waits until `ready` returns something, at most until `deadline`.
    fn poll_within<T>(
        &mut self,
        inner: &Inner,
        context: &mut Context<'_>,
        deadline: Option<Instant>,
        ready: impl FnMut() -> Option<T>,
    ) -> Poll<Result<T>> {
        if let Poll::Ready(found) = poll_until(inner, context, ready) {
            return Poll::Ready(found);
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        self.poll_at(context, deadline).map(|()| Err(Kind::Timeout.into()))
    }

    fn poll_at(&mut self, context: &mut Context<'_>, time: Instant) -> Poll<()> {
        let deadline = tokio::time::Instant::from_std(time);
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(context)
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
            if let Poll::Ready(next) = poll_until(&this.client.inner, context, || subscription.poll()) {
                break next.and_then(|next| next);
            }
            let Some(until) = subscription.behind_until() else { return Poll::Pending };
            ready!(this.timer.poll_at(context, until));
        };
        this.failed = next.is_err();
        Poll::Ready(Some(next))
    }
}

impl Stream for AsyncReplyStream {
    type Item = Result<Vec<u8>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.stream.is_done() {
            return Poll::Ready(None);
        }
        let found = match this.stream.poll() {
            Some(found) => found,
            None => {
                let until = this.stream.until();
                let stream = &this.stream;
                ready!(this.timer.poll_within(&this.client.inner, context, until, || stream.poll()))
                    .and_then(|found| found)
            }
        };
        Poll::Ready(this.stream.took(found).transpose())
    }
}

impl Stream for AsyncService {
    type Item = Result<AsyncRequest>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        let service = &mut this.service;
        let next = ready!(poll_until(&this.client.inner, context, || service.poll())).and_then(|next| next);
        this.failed = next.is_err();
        Poll::Ready(Some(next.map(|request| AsyncRequest::new(this.client.clone(), request))))
    }
}

impl Stream for AsyncEvents {
    type Item = ConnectionState;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(events) = this.events.as_mut() else { return Poll::Ready(None) };
        let state = ready!(poll_until(&this.client.inner, context, || events.poll())).ok();
        if state.as_ref().is_none_or(ConnectionState::is_closed) {
            this.events = None;
        }
        Poll::Ready(state)
    }
}

/// `next` of a stream.
pub(super) async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}
