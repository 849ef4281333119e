//! The overflow of a connection: counts of the messages in the queues of its `drop_oldest` subscriptions, and pending
//! work at the end of a batch. `pubsub::overflow` moves the messages.

use crate::logic::routing::topics::TopicId;
use crate::shm::segment::Newer;

/// The overflow of one connection.
#[derive(Debug)]
pub(crate) struct OverflowState {
    /// Subscriptions with whole messages in their queues.
    subscriptions: u32,
    pub(crate) bytes: usize,
    /// Records ever queued.
    pub(crate) ever: u64,
    /// The index of the next subscription to serve.
    pub(crate) turn: usize,
    /// Tells the client whether messages are queued; and the number of changes.
    newer: Newer,
    changes: u64,
}

impl OverflowState {
    pub(crate) fn new(newer: Newer) -> OverflowState {
        OverflowState { subscriptions: 0, bytes: 0, ever: 0, turn: 0, newer, changes: 0 }
    }

    /// Whether whole messages are queued.
    #[inline]
    pub(crate) fn has_messages(&self) -> bool {
        self.subscriptions > 0
    }

    /// A subscription's queue has its first whole message, or has lost the last one.
    pub(crate) fn settle(&mut self, has_messages: bool) {
        let had_messages = self.has_messages();
        if has_messages {
            self.subscriptions += 1
        } else {
            self.subscriptions -= 1
        }
        if self.has_messages() != had_messages {
            self.changes += 1;
            self.newer.set(self.changes);
        }
    }
}

/// Pending work for the end of a batch.
#[derive(Debug, Default)]
pub(crate) struct OverflowWork {
    /// Connections whose first message was queued: their rings may have space again.
    pub(crate) begun: Vec<u32>,
    /// Topics to release, once each.
    pub(crate) unused: Vec<TopicId>,
}
