//! The broker: actors, thin shells over the state machines of `logic`. Layer 4; the only place that knows actix.
//!
//! | file | idea |
//! |---|---|
//! | `root` | starts the actors in order, waits for a signal, stops them in reverse |
//! | `signals` | which signal ends the broker, and which reloads its configuration |
//! | `reload` | takes a changed configuration up |
//! | `context` | what all actors share, and the phase of the broker's life |
//! | `listener/` | the socket, and the connections that come by it |
//! | `session/` | one actor for each connection, and one for each process that the broker dials |
//! | `router/` | the actor that owns every ring |
//! | `breaker/` | the breakers: their rules, times and events, and manual orders |
//! | `supervision/` | restarts, the watchdog, the resources of the process, injected faults |
//! | `telemetry/` | events, counters, the status, lines on stderr |
//! | `health/` | the HTTP endpoints: the state of the broker, from outside the tree that they report |
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

mod breaker;
mod context;
mod health;
mod listener;
mod reload;
mod root;
mod router;
mod session;
mod signals;
pub(crate) mod supervision;
pub(crate) mod telemetry;

pub use health::HealthError;
pub use listener::socket::SocketError;
pub use root::{BrokerError, run};
#[cfg(feature = "cli")]
pub(crate) use router::ECHO;
#[cfg(feature = "cli")]
pub(crate) use signals::ignores_hang_up;
pub use supervision::resources::Refused;
pub use supervision::supervisor::GaveUp;
#[cfg(feature = "cli")]
pub(crate) use telemetry::report::status_json;
