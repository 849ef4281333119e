//! The router's knowledge as pure state machines: no actor, no shared memory, no clock of their own.
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
//! | `restart` | whether and when an actor that has ended is started again |
//! | `group` | which children of a supervisor are stopped and started with it |
//! | `watch` | whether a thread still turns |
//! | `grace` | how long a publish waits for a subscription that drops |
//! | `roster` | the sessions that a broker leaves to the next, as a table and as text |
//! | `missing` | when a broker that follows another takes up the first publish |
//! | `newest` | the newest messages of a subscription that drops the oldest, while its client does not read |
//! | `pace` | how long a service takes to reply, by which a deadline is measured |

#[cfg(not(lapce_ipc_loom))]
pub(crate) mod arena;
pub(crate) mod breaker;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod budget;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod grace;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod group;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod histogram;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod missing;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod newest;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod numbers;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod pace;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod restart;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod roster;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod schedule;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod services;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod topics;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod watch;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod wheel;
