//! The reply to a request, and what stops the work for it.

use super::fault::Fault;
use crate::client::asynchronous::AsyncRequest;
use crate::wire::typed::{Form, Message};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Why a reply ends early.
#[derive(Debug)]
pub(super) enum Stop {
    Fault(Fault),
    /// The requester no longer waits.
    Cancelled,
    /// There is a newer request for the document.
    Superseded,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Fault(fault)
    }
}

/// A request whose reply is being made.
#[derive(Debug)]
pub(super) struct Outgoing {
    request: AsyncRequest,
    form: Form,
    /// Notified once, by the newer request.
    superseded: Arc<Notify>,
    /// How long the requester may take no chunk.
    patience: Duration,
    has_begun: bool,
}

impl Outgoing {
    pub(super) fn new(request: AsyncRequest, form: Form, superseded: Arc<Notify>, patience: Duration) -> Outgoing {
        Outgoing { request, form, superseded, patience, has_begun: false }
    }

    /// Whether the requester wants chunks.
    pub(super) fn wants_stream(&self) -> bool {
        self.request.wants_stream()
    }

    /// Whether a chunk was sent.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Does the work, unless the request is cancelled or superseded; then its future is dropped.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            () = self.request.cancelled() => Err(Stop::Cancelled),
            () = self.superseded.notified() => Err(Stop::Superseded),
            done = work => Ok(done),
        }
    }

    /// Sends a chunk.
    ///
    /// # Errors
    ///
    /// If the requester no longer waits, or takes no chunk.
    pub(super) async fn send(&mut self, message: &Message) -> Result<(), Stop> {
        let chunk = encode(message, self.form)?;
        self.has_begun = true;
        tokio::select! {
            biased;
            sent = tokio::time::timeout(self.patience, self.request.chunk(chunk)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(Stop::Cancelled),
                Err(_) => Err(Fault::request("the requester takes no chunks").into()),
            },
            () = self.superseded.notified() => Err(Stop::Superseded),
        }
    }

    /// Sends the last or only message.
    ///
    /// # Errors
    ///
    /// As [`Outgoing::send`].
    pub(super) async fn finish(self, message: &Message) -> Result<(), Stop> {
        let payload = encode(message, self.form)?;
        let sent = tokio::time::timeout(self.patience, self.request.reply(payload)).await;
        sent.map_or(Err(Stop::Cancelled), |sent| sent.map_err(|_| Stop::Cancelled))
    }

    /// Replies with an error that counts at the breaker.
    pub(super) async fn fail(self, text: &str) {
        // An error: the requester no longer waits.
        let _ = tokio::time::timeout(self.patience, self.request.fail(text)).await;
    }

    /// Replies with an error that does not count.
    pub(super) async fn refuse(self, text: &str) {
        let _ = tokio::time::timeout(self.patience, self.request.refuse(text)).await;
    }
}

fn encode(message: &Message, form: Form) -> Result<Vec<u8>, Fault> {
    message.encode_as(form).map_err(|error| Fault::engine(format!("the reply is invalid: {error}")))
}
