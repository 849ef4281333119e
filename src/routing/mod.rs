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

pub(crate) mod arena;
pub(crate) mod breaker;
pub(crate) mod budget;
pub(crate) mod grace;
pub(crate) mod group;
pub(crate) mod histogram;
pub(crate) mod numbers;
pub(crate) mod restart;
pub(crate) mod schedule;
pub(crate) mod services;
pub(crate) mod topics;
pub(crate) mod watch;
pub(crate) mod wheel;
