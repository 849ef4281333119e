//! Serving, for async programs.

use super::client::AsyncClient;
use super::stream;
use super::wait::{poll_until, until};
#[cfg(doc)]
use crate::client::Client;
use crate::client::api::reply::{ReplyParts, Request};
use crate::client::api::serve::{self as blocking, ReplyError, Service};
use crate::client::data::kept_replies::KeepOptions;
use crate::client::error::Result;
use futures_core::Stream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::time::Sleep;

impl AsyncClient {
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
        let (request, service) = blocking::start(&self.connection, service, max_in_flight)?;
        let reply = until(&self.connection, || request.reply()).await?;
        let service = blocking::finish(service, &reply)?;
        Ok(AsyncService { client: self.clone(), service, held: None, failed: false })
    }
}

/// As [`Service`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncService {
    pub(crate) client: AsyncClient,
    pub(crate) service: Service,
    /// Wakes the task when kept replies no longer hold requests up.
    held: Option<Pin<Box<Sleep>>>,
    pub(crate) failed: bool,
}

impl AsyncService {
    /// The next request. After an error comes `None`.
    pub async fn next(&mut self) -> Option<Result<AsyncRequest>> {
        stream::next(self).await
    }

    /// As [`Service::keep`].
    #[must_use]
    pub fn keep(self, options: KeepOptions) -> AsyncService {
        AsyncService { service: self.service.keep(options), ..self }
    }

    /// As [`Service::kept_bytes`].
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.service.kept_bytes()
    }

    /// As [`Service::reply`]: what the requester does not take now is kept, and goes while a task waits for the next
    /// request. A chunk whose future was dropped half way goes first.
    ///
    /// # Errors
    ///
    /// As [`Service::reply`].
    pub fn reply<R: AsRef<[u8]>, E: Into<ReplyError>>(
        &mut self,
        request: AsyncRequest,
        reply: std::result::Result<R, E>,
    ) -> Result<()> {
        let AsyncRequest { request, rest, .. } = request;
        self.service.send_or_keep(request, rest.filter(ReplyParts::is_begun), reply.map_err(Into::into))
    }
}

/// As [`Request`].
#[derive(Debug)]
pub struct AsyncRequest {
    client: AsyncClient,
    request: Request,
    /// A chunk of several records that is being sent, or whose future was dropped half way.
    rest: Option<ReplyParts<'static>>,
}

impl AsyncRequest {
    pub(crate) fn new(client: AsyncClient, request: Request) -> AsyncRequest {
        AsyncRequest { client, request, rest: None }
    }

    /// As [`Request::payload`].
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.request.payload()
    }

    /// As [`Request::take_payload`].
    #[must_use]
    pub fn take_payload(&mut self) -> Vec<u8> {
        self.request.take_payload()
    }

    /// As [`Request::requester`].
    #[must_use]
    pub fn requester(&self) -> u32 {
        self.request.requester()
    }

    /// As [`Request::wants_stream`].
    #[must_use]
    pub fn wants_stream(&self) -> bool {
        self.request.wants_stream()
    }

    /// As [`Request::is_cancelled`].
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.request.is_cancelled()
    }

    /// Waits until the requester no longer waits, or the connection ends. Together with the work in a `select!` it
    /// stops the work at once, also while nothing is sent.
    pub async fn cancelled(&self) {
        let _ = until(&self.client.connection, || self.is_cancelled().then_some(())).await;
    }

    /// As [`Request::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.request.deadline()
    }

    /// What ends the call, also while a part of its reply is being sent, with an error that does not count against the
    /// service: its requester does not take the reply.
    #[cfg(feature = "cli")]
    pub(crate) fn end_untaken(&self) -> impl FnOnce() + Send + use<> {
        self.request.end_untaken()
    }

    /// As [`Request::chunk`]. A future that is dropped has sent its chunk whole or not at all, but for one of several
    /// records that had begun: the rest of it is sent with whatever is sent next.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn chunk(&mut self, payload: impl AsRef<[u8]>) -> Result<()> {
        let mut chunk = ReplyParts::chunk(&self.client.connection, payload.as_ref())?;
        self.send_rest().await?;
        let connection = &self.client.connection;
        if chunk.is_one_record(connection) {
            return until(connection, || chunk.step(&mut self.request)).await?;
        }
        // Kept by the request, not by this future: dropped half way, nothing could follow.
        self.rest = Some(chunk.into_owned());
        self.finish_chunk().await
    }

    /// As [`Request::finish`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn finish(mut self) -> Result<()> {
        self.send_rest().await?;
        self.end(ReplyParts::finish()).await
    }

    /// As [`Request::reply`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn reply(mut self, payload: impl AsRef<[u8]>) -> Result<()> {
        self.send_rest().await?;
        let reply = ReplyParts::reply(&self.client.connection, payload.as_ref());
        self.end(reply).await
    }

    /// As [`Request::refuse`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn refuse(mut self, text: &str) -> Result<()> {
        let refusal = ReplyParts::refuse(&self.client.connection, text);
        self.end(refusal).await
    }

    /// As [`Request::fail`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn fail(mut self, text: &str) -> Result<()> {
        let failure = ReplyParts::fail(&self.client.connection, text);
        self.end(failure).await
    }

    /// Sends the rest of a chunk whose future was dropped half way. One that had not begun is not sent at all.
    async fn send_rest(&mut self) -> Result<()> {
        self.rest.take_if(|rest| !rest.is_begun());
        self.finish_chunk().await
    }

    async fn finish_chunk(&mut self) -> Result<()> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let sent = until(&self.client.connection, || rest.step(&mut self.request)).await?;
        self.rest = None;
        sent
    }

    /// Sends the last message. An error aborts the chunk that is being sent, if there is one.
    async fn end(&mut self, mut last: ReplyParts<'_>) -> Result<()> {
        until(&self.client.connection, || last.step(&mut self.request)).await?
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
        loop {
            let polled = poll_until(&this.client.connection, context, || service.poll());
            if let Poll::Ready(next) = polled {
                let next = next.and_then(|next| next);
                this.failed = next.is_err();
                if this.failed {
                    service.release_kept();
                }
                return Poll::Ready(Some(next.map(|request| AsyncRequest::new(this.client.clone(), request))));
            }
            this.held = service.held_until().map(|until| Box::pin(tokio::time::sleep_until(until.into())));
            match &mut this.held {
                Some(held) => ready!(held.as_mut().poll(context)),
                None => return Poll::Pending,
            }
        }
    }
}
