//! What users call.
//!
//! | file | idea |
//! |---|---|
//! | `builder`, `client` | connecting; the handle of a connection |
//! | `publish`, `loan` | publishing, also from messages that are written in place |
//! | `subscription` | subscriptions |
//! | `request`, `requester` | requests and streams; a handle for many requests to one service |
//! | `call_batch` | many requests at a time |
//! | `serve`, `reply` | serving; a request as its responder sees it |
//! | `events` | the state of the connection |
//! | `operations` | operating the broker |
//! | `listener` | programs that brokers dial |

pub(crate) mod builder;
pub(crate) mod call_batch;
pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod listener;
pub(crate) mod loan;
pub(crate) mod operations;
pub(crate) mod publish;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod requester;
pub(crate) mod serve;
pub(crate) mod subscription;
