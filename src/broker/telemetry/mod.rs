//! Telemetry: log, events, counters and status. The broker never waits for their readers.
//!
//! | file | idea |
//! |---|---|
//! | `stderr` | writes to stderr, on a thread of its own |
//! | `log_limit` | limits the rate of log lines that peers can cause |
//! | `counters` | the counters kept outside the router |
//! | `events` | the event bus, and the router's events, which never block it |
//! | `report` | the status, for the control socket and the endpoints |
//! | `pages` | a snapshot of the status, cut into the frames that clients read it by |
//! | `snapshots` | the snapshots that clients share, one at a time |
//! | `holdings` | what users hold of what they share, as entries of the status |
//! | `notify` | reports to the service manager |

pub(in crate::broker) mod counters;
pub(in crate::broker) mod events;
pub(in crate::broker) mod holdings;
pub(in crate::broker) mod log_limit;
pub(in crate::broker) mod notify;
pub(in crate::broker) mod pages;
pub(in crate::broker) mod report;
pub(in crate::broker) mod snapshots;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "the command line starts it"))]
pub(crate) mod stderr;
