//! Reaching the broker: its socket is located, dialled and greeted; failed attempts are retried with backoff.
//!
//! | file | idea |
//! |---|---|
//! | `locate` | the path of the socket |
//! | `endpoint` | dialling, and the handshake |
//! | `retry` | when the next attempt is due; pure |
//! | `await_broker` | connecting to a broker that is not there yet |

pub(crate) mod await_broker;
pub(crate) mod endpoint;
pub(crate) mod locate;
pub(crate) mod retry;
