//! A message broker for one machine: the isolation of a kernel socket at the speed of shared memory.
//!
//! The broker (`ipc_server_main`) runs beside an editor and carries messages between editor, AI engines, language
//! tools and plugins: publish and subscribe, requests, streamed replies. Each client shares memory with the
//! broker, and with no other process.
//!
//! ```no_run
//! use lapce_ipc::client::Client;
//!
//! let client = Client::connect()?;
//! client.publish("lapce.saved", "src/main.rs")?;
//! let reply = client.request("echo", "hi")?;
//! for token in client.request_stream("chat", "why?")? {
//!     print!("{}", String::from_utf8_lossy(&token?));
//! }
//! # Ok::<(), lapce_ipc::client::Error>(())
//! ```
//!
//! | module | holds | layer |
//! |---|---|---|
//! | `sync` | the switch between the machine's atomics and loom's | 0 |
//! | `shm` | segments, rings, doorbells; all unsafe code | 1 |
//! | [`wire`] | names, patterns, frames, record headers, typed messages: pure bytes | 1 |
//! | `config` | the configuration: load, validate, explain | 1 |
//! | `metrics` | what is counted for Prometheus: names, and how it is written | 1 |
//! | `logic` | pure state machines and their data structures: no I/O, no clock, no actors | 2 |
//! | [`client`] | the client library | 3 |
//! | `broker` | the actors | 4 |
//! | `cli` | the command line | 5 |
//!
//! `actors.md` in the repository is the architecture document: the actors, the layers, the rules of the ring. A
//! program that only talks to the broker depends on this crate with `default-features = false` and gets `client`,
//! `wire` and what they stand on; the feature `tokio` adds `client::asynchronous`. `config` and `broker` need the
//! feature `broker`, and `cli` needs `cli`; both are on by default. `examples/` has a program for each way of talking.

#[cfg(not(target_os = "linux"))]
compile_error!("lapce-ipc needs Linux: memfd seals, epoll, eventfd and SO_PEERCRED have no equivalent elsewhere");

// Under the model checker only `sync` and the parts of `shm` and `logic` that are written over it are built.
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub mod broker;
#[cfg(all(feature = "cli", not(lapce_ipc_loom)))]
pub mod cli;
#[cfg(not(lapce_ipc_loom))]
pub mod client;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub mod config;
#[cfg_attr(lapce_ipc_loom, allow(dead_code, unused_imports, reason = "models use a part"))]
mod logic;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
mod metrics;
#[cfg_attr(
    any(not(feature = "broker"), lapce_ipc_loom),
    allow(dead_code, unused_imports, reason = "a client does not use the broker's half of a ring")
)]
mod shm;
mod sync;
/// For tests and measurements only: not part of the API.
#[cfg(all(feature = "count-sync", not(lapce_ipc_loom)))]
#[doc(hidden)]
pub use sync::counted;
#[cfg(not(lapce_ipc_loom))]
pub mod wire;

/// Compiles the README's examples with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
