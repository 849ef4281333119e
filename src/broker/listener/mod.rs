//! The listener: the socket at its path, and accepting connections.
//!
//! | file | idea |
//! |---|---|
//! | `socket` | the socket's path: ownership, binding, removal |
//! | `inherited` | sockets inherited from the service manager |
//! | `path_watch` | a watch over a path, and the files that appear there, by inotify |
//! | `listening` | recreates the socket when its file was removed |
//! | `acceptor` | `Acceptor`: accepts connections within the limits, and starts an actor for each |

pub(in crate::broker) mod acceptor;
pub(in crate::broker) mod inherited;
pub(in crate::broker) mod listening;
pub(in crate::broker) mod path_watch;
pub(in crate::broker) mod socket;
