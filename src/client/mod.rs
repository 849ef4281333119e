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
//! A [`Client`] is a handle: clone it, send it to other threads, share it. There is no helper thread: a thread that
//! waits also sorts what arrives for the others, so a wait on one thing serves all.
//!
//! | to | call |
//! |---|---|
//! | connect | [`Client::connect`], or [`Client::builder`] with options; [`Listener`] to be dialled by brokers |
//! | publish and subscribe | [`Client::publish`], [`Client::publisher`], [`Client::subscribe`] |
//! | request and stream | [`Client::request`], [`Client::request_stream`]; dropping a [`ReplyStream`] cancels |
//! | serve | [`Client::serve`] |
//! | copy less | [`Publisher::loan`] to write in place, [`Subscription::read_next`] to read in place |
//! | watch | [`Client::events`], [`Client::state`], [`Client::status`] |
//!
//! The feature `tokio` adds the same for async programs in `client::asynchronous`.

// The files:
//
// | file | idea |
// |---|---|
// | `connect`, `locate` | finding the broker, greeting it |
// | `listen` | being found by brokers that dial |
// | `inner` | what all handles of a connection share |
// | `waiting`, `roles` | how anybody waits |
// | `link`, `outgoing`, `asked`, `frames` | the control socket: found again, asked over, answered or not waited for |
// | `retry`, `state` | when to try again; what the user sees of it |
// | `lane`, `loan`, `posted` | placing records in the two lanes, writing in place, placing without waiting |
// | `session`, `unsent`, `seen`, `again` | going on at another broker: restored, sent again, left out, asked again |
// | `reader` | the reader role: sorting what arrives, spinning, sleeping |
// | `pending` | a call under way |
// | `call_time`, `cancels` | calls that this side ends by itself |
// | `queue` | messages that wait for their subscription's owner |
// | `publish`, `subscription`, `request`, `serve`, `answer`, `report` | what the user does |
// | `view` | looking at a message where it lies |
// | `asynchronous` | the same for async, behind the feature `tokio` |
// | `error`, `error_kind` | what can go wrong; its kind, for a `match` |

mod again;
mod answer;
mod asked;
#[cfg(feature = "tokio")]
pub mod asynchronous;
mod behind;
mod call_time;
mod cancels;
mod connect;
mod error;
mod error_kind;
mod frames;
mod hold;
mod initial;
mod inner;
mod lane;
mod limits;
mod link;
mod listen;
mod loan;
mod locate;
mod names;
mod operations;
mod outgoing;
mod pending;
mod posted;
mod publish;
mod queue;
mod reader;
mod reply_error;
mod report;
mod request;
mod retry;
mod roles;
mod seen;
mod serve;
mod session;
mod state;
mod subscription;
mod unsent;
mod view;
mod waiting;

pub use crate::wire::control::{ActorState, ActorStatus, BreakerOrder, BreakerState, BreakerStatus};
pub use crate::wire::control::{ClosingCode, ConnectionStatus, DeliveryPolicy, LatencyStatus, Limits};
pub use crate::wire::control::{FailedCode, QuantileStatus, RefusedCode, ServiceStatus, SessionState, StatusReport};
pub use crate::wire::control::{HealthStatus, ReloadReport, UpstreamStatus};
pub use crate::wire::name::{Name, NameError, Topic};
pub use crate::wire::pattern::Pattern;
pub use answer::{Reply, Request};
pub use connect::{Builder, DEFAULT_SOCKET};
pub use error::{Error, Result};
#[cfg(feature = "cli")]
pub(crate) use error::{Kind as ErrorDetail, Unreached, age};
pub use error_kind::ErrorKind;
pub use listen::Listener;
pub use loan::Loan;
pub use publish::Publisher;
pub use reply_error::ReplyError;
pub use request::{ReplyStream, RequestOptions};
pub use retry::ReconnectOptions;
pub use serve::Service;
pub use state::{ConnectionState, Events};
pub use subscription::{Message, SubscribeOptions, Subscription};
pub use view::View;

use inner::Inner;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How a thread waits for the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Spins while the router is awake on another CPU, for a bounded time that tunes itself; then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps: the shortest latency, for a whole CPU.
    Busy,
    /// Sleeps at once.
    Block,
}

/// A connection to the broker. Clones are handles of the same connection, which ends with the last of them.
///
/// A connection belongs to the process that made it. In a child made by `fork`, every call on an inherited client
/// returns [`Error::is_forked`], dropping it tells the broker nothing, and the parent's connection goes on; the child
/// connects by
/// itself. (A child that executes another program at once, as `std::process::Command` starts it, inherits nothing: all
/// descriptors are closed on exec.)
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

impl Client {
    /// Connects to the broker where it usually listens; see [`Builder::socket`].
    ///
    /// # Errors
    ///
    /// As [`Builder::connect`].
    ///
    /// ```no_run
    /// let client = lapce_ipc::client::Client::connect()?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn connect() -> Result<Client> {
        Client::builder().connect()
    }

    /// Connects with more say in it.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The connection's id, as it stands in the broker's log and status, and with each message that we publish.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.inner.connection()
    }

    /// The broker's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.inner.endpoint.path
    }

    /// The limits that the present broker sets for this connection. After a restart of the broker they may be others.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits.all()
    }

    /// Waits until the broker ends the connection, at most for `timeout` (`None`: no limit). Meanwhile everything that
    /// arrives is sorted into its queues.
    ///
    /// # Errors
    ///
    /// Always: the reason why the connection ended, or [`Error::is_timeout`].
    pub fn closed(&self, timeout: Option<Duration>) -> Result<std::convert::Infallible> {
        self.inner.wait_until(inner::deadline(timeout), || None)
    }

    /// Says goodbye to the broker and ends the connection, for all clones and for what was made of them. What was
    /// published is routed; who waits, and whoever calls afterwards, gets an error
    /// ([`Error::is_disconnected`]).
    ///
    /// Dropping the last of all these does the same. This is for a program in which some still wait:
    ///
    /// ```no_run
    /// # let client = lapce_ipc::client::Client::connect()?;
    /// let events = client.events();
    /// let watcher = std::thread::spawn(move || events.for_each(|state| println!("{state:?}")));
    /// // ...
    /// client.close();
    /// watcher.join().expect("it ends with the connection");
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn close(&self) {
        self.inner.close_here();
    }
}

/// The one descriptor on which a client waits, for event loops of its own: when it is readable, something may have
/// arrived, and the calls that do not block will find it.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.nest.as_fd()
    }
}
