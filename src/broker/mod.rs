//! The broker: actors, thin shells over the state machines of `logic`. Only this layer uses actix.
//!
//! | file | idea |
//! |---|---|
//! | `root` | starts the actors in order, waits for a signal, stops them in reverse |
//! | `signals` | signals that stop the broker or reload its configuration |
//! | `reload` | applies a changed configuration |
//! | `context` | the context of all actors, and the phase of the broker's life |
//! | `clock` | the time, in nanoseconds since an instant |
//! | `listener/` | the listening socket, and accepting connections |
//! | `session/` | one actor per connection and per upstream |
//! | `router/` | the actor that owns every ring |
//! | `breaker/` | circuit breakers: rules, timers, events, manual orders |
//! | `supervision/` | restarts, the watchdog, the resources of the process, injected faults |
//! | `telemetry/` | events, counters, the status, lines on stderr |
//! | `engines/` | the programs that the broker runs beside itself (`[[engine]]`) |
//! | `processes/` | child processes, and the guard that ends them when this process is killed |
//! | `fuzzing` | the targets of `fuzz/`, which are tests, too |
//! | `health/` | the HTTP endpoints, outside the supervision tree that they report |
//!
//! ```text
//!                 ┌──────────────┐ phase (watch)
//!   signals ────► │ root (main)  ├───────────────────────────────────┐
//!                 └──┬────────┬──┘                                   │
//!             starts │        │ starts (BreakerActor first)          ▼
//!          ┌─────────▼──┐  ┌──▼────────┐  starts one each  ┌───────────────────┐
//!          │ ShmRouter  │  │ Acceptor  ├──────────────────►│ ConnectionActor   │
//!          │ (own       │  │ (main)    │                   │ (workers)         │
//!          │  arbiter)  │◄─┼───────────┼───────────────────┤ Attach, …         │
//!          └─────┬──────┘  └───────────┘                   └────────▲──────────┘
//!                └───────────── is closed (oneshot) ────────────────┘
//! ```

mod breaker;
mod clock;
mod context;
mod engines;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod listener;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the commands use the guard and folders"))]
pub(crate) mod processes;
mod reload;
mod root;
mod router;
mod session;
mod signals;
pub(crate) mod supervision;
pub(crate) mod telemetry;

pub use health::HealthError;
#[cfg(feature = "editor")]
pub(crate) use health::{Access, Refusal, TokenFile};
pub use listener::socket::SocketError;
#[cfg(feature = "editor")]
pub(crate) use listener::socket::{Bound, bind};
pub use root::{BrokerError, run};
#[cfg(feature = "cli")]
pub(crate) use router::ECHO;
#[cfg(feature = "cli")]
pub(crate) use router::stepped;
#[cfg(feature = "cli")]
pub(crate) use signals::ignores_hang_up;
pub use supervision::resources::Refused;
pub use supervision::supervisor::GaveUp;
#[cfg(feature = "cli")]
pub(crate) use telemetry::report::status_json;
