//! Supervision: which actor is restarted when, and which thread is stuck.
//!
//! | file | idea |
//! |---|---|
//! | `restart` | restart policies: whether and when an ended actor is restarted |
//! | `group` | rest-for-one: the siblings that stop and restart with a failed child |
//! | `program` | the life of a program: start, SIGTERM, SIGKILL, end |
//! | `watch` | heartbeats: whether a thread is stuck |

pub(crate) mod group;
pub(crate) mod program;
pub(crate) mod restart;
pub(crate) mod watch;
