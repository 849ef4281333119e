//! Requests, for async programs.

use super::client::AsyncClient;
use super::stream::{self, Timer};
use super::wait::within;
#[cfg(doc)]
use crate::client::Client;
use crate::client::api::request::{ReplyStream, RequestBody};
use crate::client::data::call_options::{CallDeadline, IdempotentRetry, RequestOptions, timeout_as_deadline};
use crate::client::data::names::Callee;
use crate::client::error::Result;
use crate::wire::control::InternKind;
use futures_core::Stream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

impl AsyncClient {
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
        self.call(Callee { name: service, held: None }, payload.as_ref(), options).await
    }

    pub(super) async fn call(&self, callee: Callee<'_>, payload: &[u8], options: RequestOptions) -> Result<Vec<u8>> {
        let mut again = IdempotentRetry::new(options);
        loop {
            let outcome = self.call_once(callee, payload, again.options()).await;
            match again.pause(&outcome, || self.connection.closed().is_some()) {
                None => return outcome,
                Some(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn call_once(&self, callee: Callee<'_>, payload: &[u8], options: RequestOptions) -> Result<Vec<u8>> {
        let mut stream = self.start(callee, payload, options, false).await?;
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
        self.start(Callee { name: service, held: None }, payload.as_ref(), options, true).await
    }

    async fn start(
        &self,
        callee: Callee<'_>,
        payload: &[u8],
        options: RequestOptions,
        stream: bool,
    ) -> Result<AsyncReplyStream> {
        let connection = &self.connection;
        connection.check_size(payload.len())?;
        let mut time = CallDeadline::new(&connection.limits, options, stream);
        let (mut stream, mut body) = loop {
            if let Some(begun) = RequestBody::new(connection, callee, payload.len(), options, stream, time)? {
                break begun;
            }
            let number = self.request_number(InternKind::Service, callee.name, time.until());
            number.await.map_err(timeout_as_deadline)?;
        };
        while let Some((at, end)) = body.next_part() {
            let part = &payload[at..end];
            if !body.try_send(&mut stream, part)? {
                within(connection, stream.until(), || body.step(&mut stream, part))
                    .await
                    .map_err(timeout_as_deadline)??;
            }
        }
        Ok(AsyncReplyStream { client: self.clone(), stream, timer: Timer::default() })
    }
}

/// As [`ReplyStream`], and a [`Stream`](futures_core::Stream).
#[derive(Debug)]
pub struct AsyncReplyStream {
    client: AsyncClient,
    stream: ReplyStream,
    timer: Timer,
}

impl AsyncReplyStream {
    /// The next chunk; `None` after the last, and after an error.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>>> {
        stream::next(self).await
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
                ready!(this.timer.poll_within(&this.client.connection, context, until, || stream.poll()))
                    .and_then(|found| found)
            }
        };
        Poll::Ready(this.stream.took(found).transpose())
    }
}
