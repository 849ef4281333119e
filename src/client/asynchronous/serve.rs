//! Serving, for async programs.

use super::super::error::Result;
use super::super::serve::{Answer, FAILED, Request, Service};
use super::{AsyncClient, until};
use crate::wire::record::Flags;

/// As [`Service`].
#[derive(Debug)]
pub struct AsyncService {
    pub(super) client: AsyncClient,
    pub(super) service: Service,
    pub(super) failed: bool,
}

impl AsyncService {
    /// The next request. After an error comes `None`.
    pub async fn next(&mut self) -> Option<Result<AsyncRequest>> {
        if self.failed {
            return None;
        }
        let service = &mut self.service;
        let next = until(&self.client.inner, || service.poll()).await;
        self.failed = next.is_err();
        Some(next.map(|request| AsyncRequest { client: self.client.clone(), request }))
    }
}

/// As [`Request`].
#[derive(Debug)]
pub struct AsyncRequest {
    client: AsyncClient,
    request: Request,
}

impl AsyncRequest {
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

    /// As [`Request::chunk`].
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn chunk(&mut self, payload: impl AsRef<[u8]>) -> Result<()> {
        self.send(payload.as_ref(), Flags::default()).await
    }

    /// As [`Request::finish`].
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn finish(mut self) -> Result<()> {
        self.request.set_answered();
        self.send(&[], Flags::END.with(Flags::STREAM)).await
    }

    /// As [`Request::reply`].
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn reply(mut self, payload: impl AsRef<[u8]>) -> Result<()> {
        self.request.set_answered();
        if let Err(error) = self.client.inner.check_size(payload.as_ref().len()) {
            // As there: the requester is told now, not by its deadline.
            self.send(error.to_string().as_bytes(), FAILED).await?;
            return Err(error);
        }
        self.send(payload.as_ref(), Flags::END).await
    }

    /// As [`Request::refuse`].
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn refuse(mut self, text: &str) -> Result<()> {
        self.request.set_answered();
        self.send(text.as_bytes(), Flags::END.with(Flags::ERROR)).await
    }

    /// As [`Request::fail`].
    ///
    /// # Errors
    ///
    /// As [`Request::chunk`].
    pub async fn fail(mut self, text: &str) -> Result<()> {
        self.request.set_answered();
        self.send(text.as_bytes(), FAILED).await
    }

    async fn send(&self, payload: &[u8], flags: Flags) -> Result<()> {
        self.client.inner.check_size(payload.len())?;
        let mut answer = Answer::new(&self.request, payload.len(), flags);
        while let Some((at, end)) = answer.next_part() {
            until(&self.client.inner, || answer.step(&self.request, &payload[at..end])).await??;
        }
        Ok(())
    }
}
