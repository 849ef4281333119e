//! A reply of a service as the body of an HTTP response. Dropping it cancels the request.

use super::error::ApiError;
use super::output::{DONE, Part, Style, event};
use crate::client::asynchronous::AsyncReplyStream;
use actix_web::web::Bytes;
use futures_core::Stream;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A reply that arrives.
#[derive(Debug)]
pub(super) struct Reply {
    stream: AsyncReplyStream,
    service: String,
}

impl Reply {
    pub(super) fn new(stream: AsyncReplyStream, service: &str) -> Reply {
        Reply { stream, service: service.to_owned() }
    }

    /// The next part. A reply that ends before its last part is an error.
    ///
    /// # Errors
    ///
    /// The outcome, if it is not a part.
    pub(super) async fn next(&mut self) -> Result<Part, ApiError> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Part, ApiError>> {
        Poll::Ready(match ready!(Pin::new(&mut self.stream).poll_next(context)) {
            Some(Ok(payload)) => Part::read(&payload),
            Some(Err(error)) => Err(ApiError::of_outcome(&error, &self.service)),
            None => Err(ApiError::new(502, "the engine ended its reply early")),
        })
    }
}

/// The body of a streamed response.
#[derive(Debug)]
pub(super) struct Body {
    reply: Reply,
    style: Style,
    /// The part that was waited for before the response began.
    first: Option<Part>,
    has_ended: bool,
}

impl Body {
    pub(super) fn new(first: Part, reply: Reply, style: Style) -> Body {
        Body { reply, style, first: Some(first), has_ended: false }
    }

    /// The events of a part, and the end after the last.
    fn write(&mut self, part: &Part, is_first: bool) -> Bytes {
        let mut text: String =
            self.style.events(part, is_first).iter().map(|value| event(&value.to_string())).collect();
        if part.is_last() {
            self.has_ended = true;
            text += &event(DONE);
        }
        text.into()
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(this.write(&first, true))));
        }
        if this.has_ended {
            return Poll::Ready(None);
        }
        let bytes = match ready!(this.reply.poll(context)) {
            Ok(part) => this.write(&part, false),
            Err(error) => {
                // Without `[DONE]`: what came so far is not whole.
                this.has_ended = true;
                event(&error.json().to_string()).into()
            }
        };
        Poll::Ready(Some(Ok(bytes)))
    }
}
