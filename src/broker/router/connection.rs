//! The identity of a connection, the results of its control requests, and close reasons.

use crate::logic::quotas::Quotas;
use crate::logic::shares::{Principal, ShareReached};
use crate::shm::peer::Credentials;
use crate::shm::ring::Violation;
use crate::sync::Mutex;
use crate::wire::control::{BrokerFrame, ClosingCode, FailedCode};
use crate::wire::name::Name;
use std::sync::{Arc, PoisonError};
use tokio::sync::oneshot;

/// The identity of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    /// The connection's id. Unlike its key it is not reused.
    pub(crate) id: u32,
    /// The key of its publisher: the same at the next broker.
    pub(crate) publisher: u64,
    pub(crate) name: Name,
    pub(crate) peer: Credentials,
    /// The user that it is charged to.
    pub(crate) principal: Principal,
}

/// Why a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CloseReason {
    pub(crate) code: ClosingCode,
    pub(crate) reason: String,
}

impl CloseReason {
    pub(super) fn violation(reason: impl ToString) -> CloseReason {
        CloseReason { code: ClosingCode::ProtocolViolation, reason: reason.to_string() }
    }
}

impl From<Violation> for CloseReason {
    fn from(violation: Violation) -> CloseReason {
        CloseReason::violation(violation)
    }
}

/// Where the router reports once that it has closed a connection. Clones share the report: a message with one may be
/// sent again to the next router.
#[derive(Clone, Debug)]
pub(crate) struct CloseSender(Arc<Mutex<Option<oneshot::Sender<CloseReason>>>>);

/// Receives the report of a [`CloseSender`].
#[derive(Debug)]
pub(crate) struct CloseReceiver(Option<oneshot::Receiver<CloseReason>>);

/// The two ends of a report.
pub(crate) fn close_report() -> (CloseSender, CloseReceiver) {
    let (sender, receiver) = oneshot::channel();
    (CloseSender(Arc::new(Mutex::new(Some(sender)))), CloseReceiver(Some(receiver)))
}

impl CloseSender {
    pub(super) fn send(&self, close: CloseReason) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The session may have ended meanwhile.
        let _ = sender.map(|sender| sender.send(close));
    }
}

impl CloseReceiver {
    /// Waits until the router has closed the connection, and returns the reason. Cancelling the wait loses nothing.
    pub(crate) async fn closed(&mut self) -> CloseReason {
        let received = match &mut self.0 {
            Some(receiver) => receiver.await.ok(),
            None => None,
        };
        self.0 = None;
        // Otherwise neither the connection nor the router exists any more.
        received.unwrap_or_else(|| CloseReason {
            code: ClosingCode::Shutdown,
            reason: "the connection has ended".to_owned(),
        })
    }
}

/// The result of a control request.
pub(super) type ControlReply = Result<BrokerFrame, (FailedCode, String)>;

/// The reply to a connection that has ended.
pub(super) fn gone() -> (FailedCode, String) {
    (FailedCode::Unknown, "the connection has ended".to_owned())
}

/// The reply to a connection whose user holds its share of `what`, which `key` of the configuration limits.
pub(super) fn share_reached(
    quotas: &Quotas,
    ShareReached { user, most }: ShareReached,
    what: &str,
    key: &str,
) -> (FailedCode, String) {
    let user = quotas.subject(user);
    let message = format!("{user} has reached its share of {most} {what} ({key}, limits.user_share_percent)");
    (FailedCode::Limit, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::System;

    fn slow(reason: &str) -> CloseReason {
        CloseReason { code: ClosingCode::SlowConsumer, reason: reason.to_owned() }
    }

    #[test]
    fn the_first_report_of_all_clones_arrives() {
        System::new().block_on(async {
            let (sender, mut receiver) = close_report();
            let again = sender.clone();
            drop(sender);
            again.send(slow("first"));
            again.send(slow("second"));
            assert_eq!(receiver.closed().await, slow("first"));
        });
    }

    #[test]
    fn without_a_sender_or_after_the_report_the_connection_has_ended() {
        System::new().block_on(async {
            let (sender, mut receiver) = close_report();
            drop(sender);
            for _ in 0..2 {
                let closed = receiver.closed().await;
                assert_eq!((closed.code, closed.reason.as_str()), (ClosingCode::Shutdown, "the connection has ended"));
            }
        });
    }
}
