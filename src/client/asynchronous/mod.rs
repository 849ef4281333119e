//! The client for async programs, on tokio. Behind the feature `tokio`.
//!
//! ```no_run
//! use lapce_ipc::client::asynchronous::AsyncClient;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), lapce_ipc::client::Error> {
//! let client = AsyncClient::connect().await?;
//! assert_eq!(client.request("echo", "hi").await?, b"hi");
//! let mut completions = client.subscribe("lapce.ai.*").await?;
//! while let Some(message) = completions.next().await {
//!     println!("{}", message?.topic());
//! }
//! # Ok(()) }
//! ```
//!
//! Subscriptions, replies, services and events implement [`futures_core::Stream`], so the combinators of `futures-util`
//! and `tokio-stream` apply to them; each also has a method `next`.
//!
//! A task of its own waits on the connection's one descriptor and sorts what arrives; tasks that await something are
//! woken and look. Calls are cancel-safe, and a drop never waits. A future that is dropped
//! - has published its message whole or not at all;
//! - has sent its chunk whole or not at all, but for one of several records that had begun: its rest goes out with what
//!   is sent next, or, if that is an error or the request is dropped, never;
//! - leaves no subscription and no service at the broker;
//! - has cancelled its request; or, of a reply, has dropped the request that it was to reply to.

mod client;
mod events;
mod operations;
mod publish;
mod request;
mod serve;
mod stream;
mod subscription;
mod wait;

pub use client::AsyncClient;
pub use events::AsyncEvents;
pub use publish::AsyncPublisher;
pub use request::AsyncReplyStream;
pub use serve::{AsyncRequest, AsyncService};
pub use subscription::AsyncSubscription;
