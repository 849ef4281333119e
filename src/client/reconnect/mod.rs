//! A lost socket: attempts to reach the broker again, and the session restored at another broker.
//!
//! | file | idea |
//! |---|---|
//! | `attempts` | the states of the socket: lost, attempted, found |
//! | `restore` | the session at another broker |

pub(crate) mod attempts;
pub(crate) mod restore;
