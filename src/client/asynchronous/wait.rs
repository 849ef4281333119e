//! Waits of async programs: the task is woken when something has arrived.

use crate::client::connection::shared::Connection;
use crate::client::data::lock::lock;
use crate::client::engine::wait;
use crate::client::error::{Kind, Result};
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

/// Waits until `ready` gives something, or the connection ends.
pub(crate) async fn until<T>(connection: &Connection, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    poll_fn(|context| poll_until(connection, context, &mut ready)).await
}

pub(crate) fn poll_until<T>(
    connection: &Connection,
    context: &Context<'_>,
    mut ready: impl FnMut() -> Option<T>,
) -> Poll<Result<T>> {
    wait::sort_pending(connection);
    if let Some(found) = ready() {
        return Poll::Ready(Ok(found));
    }
    {
        let mut table = lock(&connection.table);
        if let Some(closed) = table.closed.clone() {
            // What arrived before the end was sorted before the end was noted: it may be what this task waits for.
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
pub(crate) async fn within<T>(
    connection: &Connection,
    deadline: Option<Instant>,
    ready: impl FnMut() -> Option<T>,
) -> Result<T> {
    let Some(deadline) = deadline else { return until(connection, ready).await };
    let found = tokio::time::timeout_at(deadline.into(), until(connection, ready)).await;
    found.unwrap_or_else(|_| Err(Kind::Timeout.into()))
}
