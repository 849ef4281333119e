//! The client library: publish and subscribe, requests, streams and services over one connection to the broker.
//!
//! ```no_run
//! use lapce_ipc::client::Client;
//!
//! let client = Client::connect()?;
//! for message in client.subscribe("lapce.>")? {
//!     let message = message?;
//!     println!("{}: {} bytes", message.topic(), message.payload().len());
//! }
//! # Ok::<(), lapce_ipc::client::Error>(())
//! ```
//!
//! A [`Client`] is a handle: clone it, send it to other threads, share it. There is no helper thread: a waiting
//! thread also receives for the others.
//!
//! | to | call |
//! |---|---|
//! | connect | [`Client::connect`], or [`Client::builder`] with options; [`Listener`] for brokers that dial |
//! | publish and subscribe | [`Client::publish`], [`Client::publisher`], [`Client::subscribe`] |
//! | request and stream | [`Client::request`], [`Client::request_stream`]; dropping a [`ReplyStream`] cancels |
//! | request often | [`Client::requester`]; [`Requester::call_batch`] for many at a time |
//! | serve | [`Client::serve`] |
//! | copy less | [`Publisher::loan`] to write in place, [`Subscription::read_next`] to read in place |
//! | watch | [`Client::events`], [`Client::state`], [`Client::status`] |
//!
//! The feature `tokio` adds the same for async programs in `client::asynchronous`.

// The rooms, from the bottom up; each uses only those above it in this table (held by tests/tidy):
//
// | room | idea |
// |---|---|
// | `error` | what can go wrong; its kind, for a `match` |
// | `data` | the state of one thing each: a call, an inbox, a queue, a lane, names, sequence numbers |
// | `connect` | locating, dialling and greeting the broker; backoff |
// | `connection` | what all handles share, and the operations on it that never wait |
// | `reconnect` | a lost socket: attempts, and the session restored at another broker |
// | `engine` | blocking waits (leader and followers), and the operations that wait |
// | `api` | what users call |
// | `asynchronous` | the same for async programs, behind the feature `tokio` |

mod api;
#[cfg(feature = "tokio")]
pub mod asynchronous;
mod connect;
mod connection;
mod data;
mod engine;
mod error;
mod reconnect;

pub use crate::wire::control::{ActorState, ActorStatus, BreakerOrder, BreakerState, BreakerStatus};
pub use crate::wire::control::{ClosingCode, ConnectionStatus, DeliveryPolicy, LatencyStatus, Limits};
pub use crate::wire::control::{FailedCode, QuantileStatus, RefusedCode, ServiceStatus, SessionState, StatusReport};
pub use crate::wire::control::{HealthStatus, HoldingStatus, ReloadReport, UpstreamStatus};
pub use crate::wire::name::{Name, NameError, Topic};
pub use crate::wire::pattern::Pattern;
pub use api::builder::Builder;
pub use api::client::Client;
pub use api::events::Events;
pub use api::listener::Listener;
pub use api::loan::Loan;
pub use api::publish::Publisher;
pub use api::reply::{Reply, Request};
pub use api::request::ReplyStream;
pub use api::requester::Requester;
pub use api::serve::{ReplyError, Service};
pub use api::subscription::{SubscribeOptions, Subscription};
pub use connect::locate::DEFAULT_SOCKET;
pub use connect::retry::ReconnectOptions;
pub use connection::shared::WaitStrategy;
pub use data::call_options::RequestOptions;
pub use data::connection_state::ConnectionState;
pub use data::kept_replies::KeepOptions;
pub use data::message::{Message, View};
pub use error::kind::ErrorKind;
pub use error::{Error, Result};
#[cfg(feature = "cli")]
pub(crate) use error::{Kind as ErrorDetail, Unreached, age};
