//! The data structures of the router.
//!
//! | file | idea |
//! |---|---|
//! | `arena` | values under keys that never come twice |
//! | `wheel` | timers: set, cancelled and fired in constant time, without allocation |
//! | `schedule` | the order in which connections are served: deficit round robin, quiet ones first |
//! | `topics` | topics, subscriptions, and the routes between them |
//! | `patterns` | which subscriptions match a topic |
//! | `bits` | sets of small numbers |
//! | `numbers` | numbers for interned names on a connection |
//! | `budget` | the shared memory budget and its leases, by user |
//! | `packed` | a queue of records in few large buffers |
//! | `grace` | how long a publish waits for a subscription that drops |
//! | `drop_oldest` | the queue of a `drop_oldest` subscription whose client does not read |

pub(crate) mod arena;
pub(crate) mod bits;
pub(crate) mod budget;
pub(crate) mod drop_oldest;
pub(crate) mod grace;
pub(crate) mod numbers;
pub(crate) mod packed;
pub(crate) mod patterns;
pub(crate) mod schedule;
pub(crate) mod topics;
pub(crate) mod wheel;
