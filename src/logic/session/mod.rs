//! Sessions: permits of connections, their states and tokens, and the roster for the next broker.
//!
//! | file | idea |
//! |---|---|
//! | `permits` | how many connections each user holds, and how fast it opens them |
//! | `sessions` | session tokens, and the claims that are refused |
//! | `lifecycle` | the states of a connection |
//! | `roster` | the session roster for the next broker, as a table and as text |
//! | `publisher` | the keys of publishers, by which subscribers recognise a message that is sent again |
//! | `restart_grace` | how long a restarted broker holds publishes back for subscribers of the last one |

pub(crate) mod lifecycle;
pub(crate) mod permits;
pub(crate) mod publisher;
pub(crate) mod restart_grace;
pub(crate) mod roster;
pub(crate) mod sessions;
