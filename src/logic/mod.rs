//! Pure state machines and their data structures: no I/O, no clock, no actors. Time and chance are arguments.
//!
//! A client-only build has `backoff` alone.
//!
//! | file | idea |
//! |---|---|
//! | `arena` | values under keys that never come twice |
//! | `wheel` | timers: set, cancelled and fired in constant time, without allocation |
//! | `schedule` | which connection is served next: fair by deficit, the quiet ones first |
//! | `topics` | topics, subscriptions, and which goes to which |
//! | `numbers` | the numbers that stand for names on a connection |
//! | `services` | services, their responders, and which of them gets the next call |
//! | `budget` | the shared memory budget and its leases |
//! | `breaker` | which requests a service is spared, because it fails |
//! | `histogram` | how often what was observed |
//! | `backoff` | exponential backoff with jitter, of the client and of supervisors |
//! | `restart` | whether and when an actor that has ended is started again |
//! | `group` | which children of a supervisor are stopped and started with it |
//! | `readiness` | whether the broker lives, is ready, and how healthy each part is |
//! | `watch` | whether a thread still turns |
//! | `grace` | how long a publish waits for a subscription that drops |
//! | `life` | the states of a connection |
//! | `sessions` | which token leads to which session, and which claims are refused |
//! | `roster` | the sessions that a broker leaves to the next, as a table and as text |
//! | `missing` | when a broker that follows another takes up the first publish |
//! | `newest` | the newest messages of a subscription that drops the oldest, while its client does not read |
//! | `pace` | how long a service takes to reply, by which a deadline is measured |

#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod arena;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod backoff;
#[cfg(any(feature = "broker", lapce_ipc_loom))]
pub(crate) mod breaker;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod budget;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod grace;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod group;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod histogram;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod life;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod missing;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod newest;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod numbers;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod pace;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod readiness;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod restart;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod roster;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod schedule;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod services;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod sessions;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod topics;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod watch;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod wheel;
