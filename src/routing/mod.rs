//! What the router knows, as pure state machines: no actor, no shared memory, no clock of their own. Layer 2.
//!
//! | file | idea |
//! |---|---|
//! | `arena` | values under keys that never come twice |
//! | `wheel` | timers: set, cancelled and fired in constant time, without allocation |
//! | `schedule` | which connection is served next: fair by deficit, the quiet ones first |
//! | `topics` | topics, subscriptions, and which goes to which |
//! | `services` | services, their responders, and which of them gets the next call |
//! | `budget` | who may use how much of the memory for extensions |
//! | `breaker` | which requests a service is spared, because it fails |
//! | `histogram` | how often what was observed |
//! | `restart` | whether and when an actor that has ended is started again |
//! | `group` | which children of a supervisor are stopped and started with it |
//! | `watch` | whether a thread still turns |
//! | `grace` | how long a publish waits for a subscription that drops |
//! | `newest` | the newest messages of a subscription that drops the oldest, while its client does not read |

pub(crate) mod arena;
pub(crate) mod breaker;
pub(crate) mod budget;
pub(crate) mod grace;
pub(crate) mod group;
pub(crate) mod histogram;
pub(crate) mod newest;
pub(crate) mod restart;
pub(crate) mod schedule;
pub(crate) mod services;
pub(crate) mod topics;
pub(crate) mod watch;
pub(crate) mod wheel;
