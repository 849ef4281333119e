//! The overflow of a connection: counts of the messages in the queues of its `drop_oldest` subscriptions, and pending
//! work at the end of a batch. `pubsub::overflow` moves the messages.

use crate::logic::topics::TopicId;
use crate::shm::segment::Newer;

/// The overflow of one connection.
#[derive(Debug)]
pub(in crate::broker::router) struct OverflowState {
    /// Subscriptions with whole messages in their queues.
    subscriptions: u32,
    pub(in crate::broker::router) bytes: usize,
    /// Records ever queued.
    pub(in crate::broker::router) ever: u64,
    /// The index of the next subscription to serve.
    pub(in crate::broker::router) turn: usize,
    /// Tells the client whether messages are queued; and the number of changes.
    newer: Newer,
    changes: u64,
}

impl OverflowState {
    pub(in crate::broker::router) fn new(newer: Newer) -> OverflowState {
        OverflowState { subscriptions: 0, bytes: 0, ever: 0, turn: 0, newer, changes: 0 }
    }

    /// Whether whole messages are queued.
    #[inline]
    pub(in crate::broker::router) fn has_messages(&self) -> bool {
        self.subscriptions > 0
    }

    /// A subscription's queue has its first whole message, or has lost the last one.
    pub(in crate::broker::router) fn settle(&mut self, has_messages: bool) {
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
pub(in crate::broker::router) struct OverflowWork {
    /// Connections whose first message was queued: their rings may have space again.
    pub(in crate::broker::router) begun: Vec<u32>,
    /// Topics to release, once each.
    pub(in crate::broker::router) unused: Vec<TopicId>,
}
