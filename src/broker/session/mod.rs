//! Sessions: from the Hello to the end of a client, over one socket after the other.
//!
//! | file | idea |
//! |---|---|
//! | `stream` | frames over a Unix stream |
//! | `roster` | the sessions that come back to the next broker, in a file beside the socket |
//! | `upstream` | the processes that the broker dials, as configured, and what they may offer |
//! | `table` | which token leads to which session, and how its actor is reached |
//! | `kept` | what outlives an incarnation of the actor |
//! | `greeting` | a Hello is answered: a new session, or a socket for one that awaits it |
//! | `connection` | `ConnectionActor`: serves a session while its socket lasts |
//! | `dialler` | `UpstreamActor`: dials a process of `upstream`, and serves its session |

pub(in crate::broker) mod connection;
pub(in crate::broker) mod dialler;
pub(in crate::broker) mod greeting;
pub(in crate::broker) mod kept;
pub(in crate::broker) mod roster;
pub(in crate::broker) mod stream;
pub(in crate::broker) mod table;
pub(in crate::broker) mod upstream;
