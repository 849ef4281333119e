//! Pure state machines and their data structures: no I/O, no clock, no actors. Time and chance are arguments.
//!
//! A client-only build has `backoff` alone.
//!
//! | file | idea |
//! |---|---|
//! | `arena` | values under keys that never come twice |
//! | `wheel` | timers: set, cancelled and fired in constant time, without allocation |
//! | `schedule` | the order in which connections are served: deficit round robin, quiet ones first |
//! | `topics` | topics, subscriptions, and the routes between them |
//! | `numbers` | numbers for interned names on a connection |
//! | `services` | services, their responders, and the choice of a responder for a call |
//! | `budget` | the shared memory budget and its leases |
//! | `breaker` | circuit breakers: requests to failing services are rejected |
//! | `histogram` | observation counts per bucket |
//! | `backoff` | exponential backoff with jitter, for the client and the supervisors |
//! | `restart` | restart policies: whether and when an ended actor is restarted |
//! | `group` | rest-for-one: the siblings that stop and restart with a failed child |
//! | `readiness` | liveness, readiness and health, from a snapshot |
//! | `watch` | heartbeats: whether a thread is stuck |
//! | `grace` | how long a publish waits for a subscription that drops |
//! | `lifecycle` | the states of a connection |
//! | `sessions` | session tokens, and the claims that are refused |
//! | `roster` | the session roster for the next broker, as a table and as text |
//! | `restart_grace` | how long a restarted broker holds publishes back for subscribers of the last one |
//! | `drop_oldest` | the queue of a `drop_oldest` subscription whose client does not read |
//! | `pace` | the usual reply time of a service, against which deadlines are judged |

#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod arena;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod backoff;
#[cfg(any(feature = "broker", lapce_ipc_loom))]
pub(crate) mod breaker;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod budget;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod drop_oldest;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod grace;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod group;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod histogram;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod lifecycle;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod numbers;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod pace;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod readiness;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod restart;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod restart_grace;
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
