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
//! A [`Client`] is a handle: clone it, send it to other threads, share it. Whoever waits for anything takes the *reader
//! role* and sorts what arrives for everybody, so there is no helper thread, and a wait on one thing serves all.
//!
//! | file | idea |
//! |---|---|
//! | `connect` | finding the broker, greeting it |
//! | `listen` | being found by brokers that dial |
//! | `inner` | what all handles of a connection share; how anybody waits |
//! | `link`, `outgoing`, `frames` | the control socket: found again, asked over, answered |
//! | `retry`, `state` | when to try again; what the user sees of it |
//! | `lane`, `loan` | placing records in the two lanes, and writing in place |
//! | `session`, `unsent`, `seen`, `again` | going on at another broker: restored, sent again, left out, asked again |
//! | `reader` | the reader role: sorting what arrives, spinning, sleeping |
//! | `publish`, `subscription`, `request`, `serve` | what the user does |
//! | `view` | looking at a message where it lies |
//! | `asynchronous` | the same for async, behind the feature `tokio` |
//! | `error` | what can go wrong |

mod again;
#[cfg(feature = "tokio")]
pub mod asynchronous;
mod connect;
mod error;
mod frames;
mod inner;
mod lane;
mod link;
mod listen;
mod loan;
mod outgoing;
mod publish;
mod reader;
mod request;
mod retry;
mod seen;
mod serve;
mod session;
mod state;
mod subscription;
mod unsent;
mod view;

pub use crate::wire::control::{ActorState, ActorStatus, BreakerOrder, BreakerState, BreakerStatus};
pub use crate::wire::control::{ClosingCode, ConnectionStatus, DeliveryPolicy, LatencyStatus, Limits};
pub use crate::wire::control::{QuantileStatus, ServiceStatus, SessionState, StatusReport};
pub use crate::wire::name::{Name, NameError, Topic};
pub use crate::wire::pattern::Pattern;
pub use connect::{Builder, DEFAULT_SOCKET};
pub use error::{Error, Result};
#[cfg(feature = "cli")]
pub(crate) use error::{Kind as ErrorKind, age};
pub use listen::Listener;
pub use loan::Loan;
pub use publish::Publisher;
pub use request::{ReplyStream, RequestOptions};
pub use retry::ReconnectOptions;
pub use serve::{Reply, Request, Service};
pub use state::{ConnectionState, Events};
pub use subscription::{Message, SubscribeOptions, Subscription};
pub use view::View;

use crate::wire::control::{BrokerFrame, ClientFrame};
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

    /// The limits that the broker set for this connection.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// What the broker says of itself and its connections.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn status(&self) -> Result<StatusReport> {
        match self.inner.ask(|serial| ClientFrame::Status { serial })? {
            BrokerFrame::Status { report, .. } => Ok(report),
            other => Err(inner::unexpected(&other)),
        }
    }

    /// How the breakers of all services stand that have or had a responder.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub fn breakers(&self) -> Result<Vec<BreakerStatus>> {
        match self.inner.ask(|serial| ClientFrame::Breakers { serial })? {
            BrokerFrame::Breakers { breakers, .. } => Ok(breakers),
            other => Err(inner::unexpected(&other)),
        }
    }

    /// Sets the breaker of a service by hand, for a time or until it is set again. Answers how it stands now.
    ///
    /// # Errors
    ///
    /// [`Error::is_unknown`] if nobody serves the service, nor has; if a time is given with [`BreakerOrder::Auto`]; if
    /// the connection has ended.
    ///
    /// ```no_run
    /// # use lapce_ipc::client::{BreakerOrder, Client};
    /// # use std::time::Duration;
    /// # let client = Client::connect()?;
    /// client.set_breaker("chat", BreakerOrder::Open, Some(Duration::from_secs(300)))?;
    /// # Ok::<(), lapce_ipc::client::Error>(())
    /// ```
    pub fn set_breaker(&self, service: &str, order: BreakerOrder, time: Option<Duration>) -> Result<BreakerStatus> {
        let service = Name::parse(service)?;
        // At least a millisecond, for 0 is without end.
        let for_ms = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
        match self.inner.ask(|serial| ClientFrame::SetBreaker { serial, service, order, for_ms })? {
            BrokerFrame::Breakers { mut breakers, .. } if breakers.len() == 1 => Ok(breakers.remove(0)),
            other => Err(inner::unexpected(&other)),
        }
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
}

/// The one descriptor on which a client waits, for event loops of its own: when it is readable, something may have
/// arrived, and the calls that do not block will find it.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.nest.as_fd()
    }
}
