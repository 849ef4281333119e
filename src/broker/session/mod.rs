//! Sessions: the state of a client in the broker, which outlives a lost socket.
//!
//! | file | idea |
//! |---|---|
//! | `stream` | frames over a Unix stream |
//! | `roster` | the file beside the socket that lists sessions for the next broker |
//! | `publishers` | the file beside the socket with the secret of the publishers' keys |
//! | `private_file` | files beside the socket that only the broker's user can read and write |
//! | `permits` | how many connections each user has, and how long a socket waits for its turn |
//! | `upstream` | configured upstreams, and the services that they may offer |
//! | `table` | session tokens, and the address of each session's actor |
//! | `state` | the session, and what outlives an incarnation of its actor |
//! | `status` | requests for pages of the status |
//! | `control_time` | requests wait for the account of their user |
//! | `handshake` | a Hello is answered: a new session, or a socket for one that awaits it |
//! | `connection` | `ConnectionActor`: serves a session while its socket lasts |
//! | `dialler` | `UpstreamActor`: dials a process of `upstream`, and serves its session |

pub(in crate::broker) mod connection;
pub(in crate::broker) mod control_time;
pub(in crate::broker) mod dialler;
pub(in crate::broker) mod handshake;
pub(in crate::broker) mod permits;
mod private_file;
pub(in crate::broker) mod publishers;
pub(in crate::broker) mod roster;
pub(in crate::broker) mod state;
mod status;
pub(in crate::broker) mod stream;
pub(in crate::broker) mod table;
pub(in crate::broker) mod upstream;
