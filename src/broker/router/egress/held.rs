//! Where the records of a connection wait, and how many bytes users hold of such memory.

use crate::logic::routing::packed::{Buffer, PackedQueue};
use crate::logic::shares::{ShareLimits, Shares};
use crate::shm::private::PrivateBuffer;

/// The records of one connection that wait.
pub(super) type Backlog = PackedQueue<PrivateBuffer>;

impl Buffer for PrivateBuffer {
    fn zeroed(bytes: usize) -> PrivateBuffer {
        PrivateBuffer::zeroed(bytes)
    }
}

/// Bytes that users hold.
#[derive(Debug)]
pub(super) struct HeldBytes {
    /// In the backlogs of their connections.
    pub(super) records: Shares,
    /// In the overflow queues of their subscriptions.
    pub(super) overflow: Shares,
}

impl HeldBytes {
    /// Each kind has these limits.
    pub(super) fn new(limits: ShareLimits) -> HeldBytes {
        HeldBytes { records: Shares::new(limits), overflow: Shares::new(limits) }
    }

    pub(super) fn adopt(&mut self, limits: ShareLimits) {
        self.records.adopt(limits);
        self.overflow.adopt(limits);
    }
}
