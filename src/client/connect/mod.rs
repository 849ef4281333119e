//! Reaching the broker: its socket is located, dialled and greeted; failed attempts are retried with backoff.

pub(crate) mod await_broker;
pub(crate) mod endpoint;
pub(crate) mod locate;
pub(crate) mod retry;
