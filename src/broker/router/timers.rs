//! The kinds of the router's timers.

use crate::routing::arena::Key;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The deadline of a call.
    Call(Key),
    /// The bulk lane of a connection has waited long enough.
    Parked(u32),
    /// A connection, named by key and id, may have become idle.
    Idle(u32, u32),
    /// Compare every segment with its leases.
    Audit,
    /// Tell a connection, named by key and id, of messages that it did not get.
    Drops(u32, u32),
}
