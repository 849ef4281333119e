//! Serving, for async programs.

use super::super::answer::{Answer, Request};
use super::super::error::Result;
use super::super::serve::Service;
use super::{AsyncClient, stream, until};
use std::time::Instant;

/// As [`Service`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncService {
    pub(super) client: AsyncClient,
    pub(super) service: Service,
    pub(super) failed: bool,
}

impl AsyncService {
    /// The next request. After an error comes `None`.
    pub async fn next(&mut self) -> Option<Result<AsyncRequest>> {
        stream::next(self).await
    }
}

/// As [`Request`].
#[derive(Debug)]
pub struct AsyncRequest {
    client: AsyncClient,
    request: Request,
    /// A chunk of several records whose sending is under way, or was dropped half way.
    rest: Option<Answer<'static>>,
}

impl AsyncRequest {
    pub(super) fn new(client: AsyncClient, request: Request) -> AsyncRequest {
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

    /// As [`Request::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.request.deadline()
    }

    /// As [`Request::chunk`]. A future that is dropped has sent its chunk whole or not at all, but for one of several
    /// records that had begun: the rest of it is sent with whatever is sent next.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn chunk(&mut self, payload: impl AsRef<[u8]>) -> Result<()> {
        let mut chunk = Answer::chunk(&self.client.inner, payload.as_ref())?;
        self.send_rest().await?;
        let inner = &self.client.inner;
        if chunk.is_one_record(inner) {
            return until(inner, || chunk.step(&mut self.request)).await?;
        }
        // Kept by the request, not by this future: dropped half way, nothing could follow.
        self.rest = Some(chunk.into_owned());
        self.go_on().await
    }

    /// As [`Request::finish`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn finish(mut self) -> Result<()> {
        self.send_rest().await?;
        self.end(Answer::finish()).await
    }

    /// As [`Request::reply`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn reply(mut self, payload: impl AsRef<[u8]>) -> Result<()> {
        self.send_rest().await?;
        let reply = Answer::reply(&self.client.inner, payload.as_ref());
        self.end(reply).await
    }

    /// As [`Request::refuse`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn refuse(mut self, text: &str) -> Result<()> {
        let refusal = Answer::refuse(&self.client.inner, text);
        self.end(refusal).await
    }

    /// As [`Request::fail`]. A future that is dropped before it is done drops the request.
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn fail(mut self, text: &str) -> Result<()> {
        let failure = Answer::fail(&self.client.inner, text);
        self.end(failure).await
    }

    /// Sends the rest of a chunk whose future was dropped half way. One that had not begun is not sent at all.
    async fn send_rest(&mut self) -> Result<()> {
        self.rest.take_if(|rest| !rest.is_begun());
        self.go_on().await
    }

    async fn go_on(&mut self) -> Result<()> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let sent = until(&self.client.inner, || rest.step(&mut self.request)).await?;
        self.rest = None;
        sent
    }

    /// Sends the last message. An error breaks off the chunk under way, if there is one.
    async fn end(&mut self, mut last: Answer<'_>) -> Result<()> {
        until(&self.client.inner, || last.step(&mut self.request)).await?
    }
}
