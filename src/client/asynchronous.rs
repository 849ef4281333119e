//! The client for async programs, on tokio. Behind the feature `tokio`.
//!
//! ```no_run
//! use lapce_ipc::client::asynchronous::AsyncClient;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), lapce_ipc::client::Error> {
//! let client = AsyncClient::connect().await?;
//! assert_eq!(client.request("echo", "hi").await?, b"hi");
//! let mut completions = client.subscribe("lapce.ai.*").await?;
//! while let Some(message) = completions.next().await {
//!     println!("{}", message?.topic());
//! }
//! # Ok(()) }
//! ```
//!
//! Subscriptions, replies, services and events implement [`futures_core::Stream`], so the combinators of `futures-util`
//! and `tokio-stream` apply to them; each also has a method `next`.
//!
//! A task of its own waits on the connection's one descriptor and sorts what arrives; whoever awaits something is
//! woken and looks. Calls are cancel-safe, and a drop never waits. A future that is dropped
//! - has published its message whole or not at all;
//! - has sent its chunk whole or not at all, but for one of several records that had begun: its rest goes out with what
//!   is sent next, or, if that is an error or the request is dropped, never;
//! - leaves no subscription and no service at the broker;
//! - has cancelled its request; or, of a reply, has dropped the request that it was to answer.

mod events;
mod publish;
mod report;
mod serve;
mod stream;

pub use events::AsyncEvents;
pub use publish::AsyncPublisher;
pub use serve::{AsyncRequest, AsyncService};

use super::again::Again;
use super::call_time::late;
use super::error::Result;
use super::hold::{Hold, LOOK, LOOKS};
use super::inner::{Inner, lock};
use super::link::Step;
use super::request::{Body, ReplyStream, RequestOptions};
use super::serve as blocking;
use super::subscription::{self, Message, SubscribeOptions, Subscription};
use super::{Builder, Client, Limits};
use crate::wire::control::{BrokerFrame, ClientFrame, InternKind};
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits until `ready` gives something, or the connection ends.
async fn until<T>(inner: &Inner, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    poll_fn(|context| poll_until(inner, context, &mut ready)).await
}

fn poll_until<T>(inner: &Inner, context: &Context<'_>, mut ready: impl FnMut() -> Option<T>) -> Poll<Result<T>> {
    inner.sort_now();
    if let Some(found) = ready() {
        return Poll::Ready(Ok(found));
    }
    {
        let mut table = lock(&inner.table);
        if let Some(closed) = table.closed.clone() {
            // What arrived before the end was sorted before the end was told: it may be ours.
            drop(table);
            return Poll::Ready(ready().ok_or(closed));
        }
        if !table.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            table.wakers.push(context.waker().clone());
        }
    }
    // Registered first, then once more: what came in between is not missed.
    ready().map_or(Poll::Pending, |found| Poll::Ready(Ok(found)))
}

/// The same, at most until `deadline`.
async fn within<T>(inner: &Inner, deadline: Option<Instant>, ready: impl FnMut() -> Option<T>) -> Result<T> {
    let Some(deadline) = deadline else { return until(inner, ready).await };
    let found = tokio::time::timeout_at(deadline.into(), until(inner, ready)).await;
    found.unwrap_or_else(|_| Err(super::error::Kind::Timeout.into()))
}

/// Sorts what arrives for as long as anybody holds the connection.
async fn drive(inner: Weak<Inner>, descriptor: AsyncFd<OwnedFd>) {
    loop {
        let due = {
            let Some(inner) = inner.upgrade() else { return };
            let step = inner.drive();
            if inner.closed().is_some() {
                return;
            }
            match step {
                Step::Rest => None,
                Step::At(time) => Some(time),
                Step::Changed => {
                    drop(inner);
                    tokio::task::yield_now().await;
                    continue;
                }
            }
        };
        let readable = descriptor.readable();
        let ready = match due {
            None => readable.await,
            Some(due) => match tokio::time::timeout_at(due.into(), readable).await {
                Ok(ready) => ready,
                // Time for the next attempt to reconnect.
                Err(_) => continue,
            },
        };
        match ready {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

/// A connection to the broker for async programs. Clones are handles of the same connection.
#[derive(Clone, Debug)]
pub struct AsyncClient {
    inner: Arc<Inner>,
    /// Held while the parts of one message are placed, so that no other message comes in between.
    bulk: Arc<tokio::sync::Mutex<()>>,
    _driver: Arc<Driver>,
}

#[derive(Debug)]
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AsyncClient {
    /// Connects to the broker where it usually listens.
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    pub async fn connect() -> Result<AsyncClient> {
        AsyncClient::connect_with(Client::builder()).await
    }

    /// Connects as `builder` says. The greeting itself is carried out on a thread for blocking work.
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one without time (`enable_time`), which calls need for their deadlines.
    pub async fn connect_with(builder: Builder) -> Result<AsyncClient> {
        let lost = |error: &dyn std::fmt::Display| super::error::Kind::Disconnected(error.to_string());
        let connected = tokio::task::spawn_blocking(move || builder.connect()).await;
        let client = connected.map_err(|error| lost(&error))??;
        let inner = client.inner.clone();
        let descriptor = inner.nest.as_fd().try_clone_to_owned().map_err(|error| lost(&error))?;
        // The deprecation warns of types that close their descriptor behind tokio's back; an `OwnedFd` cannot.
        #[allow(deprecated)]
        let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE).map_err(|error| lost(&error))?;
        let driver = Driver(tokio::spawn(drive(Arc::downgrade(&inner), descriptor)));
        Ok(AsyncClient { inner, bulk: Arc::default(), _driver: Arc::new(driver) })
    }

    /// As [`Client::id`].
    #[must_use]
    pub fn id(&self) -> u32 {
        self.inner.connection()
    }

    /// As [`Client::limits`].
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits.all()
    }

    async fn ask(&self, deadline: Option<Instant>, question: impl FnOnce(u32) -> ClientFrame) -> Result<BrokerFrame> {
        let asked = self.inner.start_ask(question)?;
        within(&self.inner, deadline, || asked.answer()).await
    }

    /// A use of a name.
    async fn hold(
        &self,
        kind: InternKind,
        name: &str,
        keep: bool,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<Hold> {
        let inner = &self.inner;
        if let Some(held) = inner.held(kind, name, keep)? {
            return Ok(held);
        }
        let (deadline, mut is_last) = (deadline(), false);
        loop {
            let answer = self.ask(deadline, inner.to_hold(kind, name)?).await?;
            if !inner.took_hold(kind, &answer, is_last)? {
                is_last = true;
                for _ in 0..LOOKS {
                    if inner.has_heard(kind) {
                        break;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            } else if let Some(held) = inner.held(kind, name, keep)? {
                return Ok(held);
            }
        }
    }

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
        let (asked, subscription) = subscription::start(&self.inner, pattern, options)?;
        let answer = until(&self.inner, || asked.answer()).await?;
        let subscription = subscription::finish(subscription, &answer)?;
        Ok(AsyncSubscription { client: self.clone(), subscription, timer: stream::Timer::default(), failed: false })
    }

    /// As [`Client::request`].
    ///
    /// # Errors
    ///
    /// As [`Client::request`].
    pub async fn request(&self, service: &str, payload: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        self.request_with(service, payload, RequestOptions::default()).await
    }

    /// As [`Client::request_with`]. A future that is dropped cancels the call.
    ///
    /// # Errors
    ///
    /// As [`Client::request`].
    pub async fn request_with(
        &self,
        service: &str,
        payload: impl AsRef<[u8]>,
        options: RequestOptions,
    ) -> Result<Vec<u8>> {
        let mut again = Again::new(options);
        loop {
            let outcome = self.ask_once(service, payload.as_ref(), again.options()).await;
            match again.pause(&self.inner, &outcome) {
                None => return outcome,
                Some(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn ask_once(&self, service: &str, payload: &[u8], options: RequestOptions) -> Result<Vec<u8>> {
        let mut stream = self.start(service, payload, options, false).await?;
        let mut reply = stream.next().await.transpose()?.unwrap_or_default();
        while let Some(more) = stream.next().await.transpose()? {
            reply.extend_from_slice(&more);
        }
        Ok(reply)
    }

    /// As [`Client::request_stream`].
    ///
    /// # Errors
    ///
    /// As [`Client::request_stream`].
    pub async fn request_stream(&self, service: &str, payload: impl AsRef<[u8]>) -> Result<AsyncReplyStream> {
        self.request_stream_with(service, payload, RequestOptions::default()).await
    }

    /// As [`Client::request_stream_with`].
    ///
    /// # Errors
    ///
    /// As [`Client::request_stream`].
    pub async fn request_stream_with(
        &self,
        service: &str,
        payload: impl AsRef<[u8]>,
        options: RequestOptions,
    ) -> Result<AsyncReplyStream> {
        self.start(service, payload.as_ref(), options, true).await
    }

    async fn start(
        &self,
        service: &str,
        payload: &[u8],
        options: RequestOptions,
        stream: bool,
    ) -> Result<AsyncReplyStream> {
        let inner = &self.inner;
        inner.check_size(payload.len())?;
        let mut time = inner.call_time(options, stream);
        let (mut stream, mut body) = loop {
            let service = self.hold(InternKind::Service, service, true, || time.until()).await.map_err(late)?;
            if let Some(begun) = Body::new(inner, service, payload.len(), options, stream, time)? {
                break begun;
            }
        };
        while let Some((at, end)) = body.next_part() {
            let part = &payload[at..end];
            if !body.try_send(&mut stream, part)? {
                within(inner, stream.until(), || body.step(&mut stream, part)).await.map_err(late)??;
            }
        }
        Ok(AsyncReplyStream { client: self.clone(), stream, timer: stream::Timer::default() })
    }

    /// As [`Client::serve`].
    ///
    /// # Errors
    ///
    /// As [`Client::serve`].
    pub async fn serve(&self, service: &str) -> Result<AsyncService> {
        self.serve_up_to(service, 0).await
    }

    /// As [`Client::serve_up_to`].
    ///
    /// # Errors
    ///
    /// As [`Client::serve`].
    pub async fn serve_up_to(&self, service: &str, max_in_flight: u32) -> Result<AsyncService> {
        let (asked, service) = blocking::start(&self.inner, service, max_in_flight)?;
        let answer = until(&self.inner, || asked.answer()).await?;
        Ok(AsyncService { client: self.clone(), service: blocking::finish(service, &answer)?, failed: false })
    }
}

/// As [`Subscription`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncSubscription {
    client: AsyncClient,
    subscription: Subscription,
    timer: stream::Timer,
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

/// As [`ReplyStream`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncReplyStream {
    client: AsyncClient,
    stream: ReplyStream,
    timer: stream::Timer,
}

impl AsyncReplyStream {
    /// The next chunk; `None` after the last, and after an error.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>>> {
        stream::next(self).await
    }
}
