//! The broker: actors, thin shells over the state machines of `routing`. Layer 3; the only place that knows actix.
//!
//! | file | idea |
//! |---|---|
//! | `root` | starts the actors in order, waits for a signal, stops them in reverse |
//! | `socket` | the socket's path: ownership, binding, removal |
//! | `acceptor` | lets connections in: whose, and how many |
//! | `connection/` | one actor for each control socket: the greeting, questions, the end |
//! | `breaker` | the breakers: their rules, times and news, and orders given to them by hand |
//! | `sessions` | the registry of sessions and their tokens; pure |
//! | `events` | what the router has to say to people, without ever waiting for them |
//! | `fault` | faults on purpose, for tests |
//! | `health/` | the HTTP endpoints: how the broker is, outside the tree that they tell of |
//! | `inherited` | sockets inherited from the service manager |
//! | `limits` | the limits of the process |
//! | `listening` | makes the socket anew when its file is gone |
//! | `log_limit` | bounds how often lines are logged that peers cause |
//! | `notify` | what the service manager is told |
//! | `path_watch` | a watch over a path, by inotify |
//! | `reload` | takes a changed configuration up |
//! | `report` | the status, as the control socket and the endpoints tell it |
//! | `roster` | the sessions that come back to the next broker, in a file beside the socket |
//! | `stderr` | what is written to stderr, by a thread of its own |
//! | `stream` | frames over a Unix stream |
//! | `supervisor/` | sees each actor's end, starts it again by its policy, publishes its address |
//! | `counters` | the counters kept outside the router |
//! | `appearance` | notices that a socket appears at a path |
//! | `terminal` | whether a SIGHUP is the end of a terminal |
//! | `threads` | threads of actors, which may not be to be had |
//! | `upstream` | one actor for each process that the broker dials |
//! | `watchdog` | ends the process when a thread hangs |
//! | `router/` | the actor that owns every ring |
//!
//! ```text
//!                 ┌──────────────┐ phase (watch)
//!   signals ────► │ root (main)  ├───────────────────────────────────┐
//!                 └──┬────────┬──┘                                   │
//!             starts │        │ starts (BreakerActor first)          ▼
//!          ┌─────────▼──┐  ┌──▼────────┐  starts one each  ┌───────────────────┐
//!          │ ShmRouter  │  │ Acceptor  ├──────────────────►│ ConnectionActor   │
//!          │ (own       │  │ (main)    │                   │ (workers)         │
//!          │  arbiter)  │◄─┼───────────┼───────────────────┤ Attach, Ask, Gone │
//!          └─────┬──────┘  └───────────┘                   └────────▲──────────┘
//!                └───────────── how it ended (watch) ───────────────┘
//! ```

mod acceptor;
mod appearance;
mod breaker;
mod connection;
mod counters;
mod events;
mod fault;
mod health;
mod inherited;
pub(crate) mod limits;
mod listening;
mod log_limit;
mod notify;
mod path_watch;
mod reload;
mod report;
mod root;
mod roster;
mod router;
mod sessions;
mod socket;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command line starts it"))]
pub(crate) mod stderr;
mod stream;
mod supervisor;
mod terminal;
pub(crate) mod threads;
mod upstream;
mod watchdog;

pub use health::HealthError;
#[cfg(feature = "cli")]
pub(crate) use report::status_json;
pub use root::{BrokerError, run};
#[cfg(feature = "cli")]
pub(crate) use router::ECHO;
pub use socket::SocketError;
pub use supervisor::GaveUp;
#[cfg(feature = "cli")]
pub(crate) use terminal::ignores_hang_up;
pub use threads::Refused;
