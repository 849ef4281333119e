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
//! A driver task waits on the connection's descriptor, receives for all tasks and wakes them. Calls are cancel-safe,
//! and a drop never blocks. A dropped future
//! - has published its message completely or not at all;
//! - has sent its chunk completely or not at all, except for a chunk of several records that had begun: its rest is
//!   sent with the next chunk, or discarded if the next is an error or the request is dropped;
//! - leaves no subscription and no service at the broker;
//! - has cancelled its request; the future of a reply has dropped its request.

mod client;
mod events;
mod operations;
mod publish;
mod request;
mod requester;
mod serve;
mod stream;
mod subscription;
mod wait;

pub use client::AsyncClient;
pub use events::AsyncEvents;
pub use publish::AsyncPublisher;
pub use request::AsyncReplyStream;
pub use requester::AsyncRequester;
pub use serve::{AsyncRequest, AsyncService};
pub use subscription::AsyncSubscription;
