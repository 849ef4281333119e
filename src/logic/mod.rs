//! Pure state machines and their data structures: no I/O, no clock, no actors. Time and chance are arguments.
//!
//! A client-only build has `backoff` and `spin` alone.
//!
//! | file | idea |
//! |---|---|
//! | `routing/` | data structures of the router: order of service, timers, topics, memory budget, dropping |
//! | `session/` | permits and states of connections, session tokens, the roster for the next broker |
//! | `supervision/` | restart policies, the order of siblings, stuck threads |
//! | `services` | services, their responders, and the choice of a responder for a call |
//! | `breaker` | circuit breakers: requests to failing services are rejected |
//! | `histogram` | observation counts per bucket |
//! | `backoff` | exponential backoff with jitter, for the client and the supervisors |
//! | `spin` | how long a side that waits spins before it sleeps |
//! | `lines` | lines of bounded length out of a stream of bytes |
//! | `line_shares` | log lines that users can cause, each within its share |
//! | `readiness` | liveness, readiness and health, from a snapshot |
//! | `shares` | what counts as one user; shares of something finite among users |
//! | `quotas` | groups of a uid's clients that count as users of their own, by their names |
//! | `work` | shares of the router's time among users |
//! | `control_time` | the router's time that control requests of a user take |
//! | `snapshots` | snapshots of the broker that readers share, and read page by page |
//! | `patience` | how long publishers wait for the subscriptions of a user, and of a process |
//! | `halvings` | a time that events halve and quiet periods restore |
//! | `pace` | the usual reply time of a service, against which deadlines are judged |

#[cfg(not(lapce_ipc_loom))]
pub(crate) mod backoff;
#[cfg(any(feature = "broker", lapce_ipc_loom))]
pub(crate) mod breaker;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod control_time;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod halvings;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod histogram;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod line_shares;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod lines;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod pace;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod patience;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod quotas;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod readiness;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod routing;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod services;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod session;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod shares;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod snapshots;
#[cfg(not(lapce_ipc_loom))]
pub(crate) mod spin;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod supervision;
#[cfg(all(feature = "broker", not(lapce_ipc_loom)))]
pub(crate) mod work;
