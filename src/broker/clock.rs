//! The time as actors read it: nanoseconds since an instant, in which the state machines of `logic` count.

use std::time::Instant;

/// Nanoseconds since `epoch`.
pub(in crate::broker) fn elapsed(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
