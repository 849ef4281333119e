//! How much is kept for a connection, and what is to be done about it. What is done is in `kept`.

use crate::logic::topics::TopicId;
use crate::shm::segment::Newer;

/// What is kept for the subscriptions of one connection.
#[derive(Debug)]
pub(super) struct Keeping {
    /// Subscriptions for which whole messages wait.
    subscriptions: u32,
    pub(super) bytes: usize,
    /// Records ever kept.
    pub(super) ever: u64,
    /// The index of the subscription that is next.
    pub(super) turn: usize,
    /// Where the client sees whether something waits, and how often that has changed.
    newer: Newer,
    changes: u64,
}

impl Keeping {
    pub(super) fn new(newer: Newer) -> Keeping {
        Keeping { subscriptions: 0, bytes: 0, ever: 0, turn: 0, newer, changes: 0 }
    }

    /// Whether whole messages wait.
    #[inline]
    pub(super) fn waits(&self) -> bool {
        self.subscriptions > 0
    }

    /// The first whole message of a subscription waits, or the last does no longer.
    pub(super) fn settle(&mut self, waits: bool) {
        let waited = self.waits();
        if waits {
            self.subscriptions += 1
        } else {
            self.subscriptions -= 1
        }
        if self.waits() != waited {
            self.changes += 1;
            self.newer.set(self.changes);
        }
    }
}

/// What is to be done at the end of a batch.
#[derive(Debug, Default)]
pub(super) struct KeptWork {
    /// Connections for which the first message waits: there may be room again.
    pub(super) begun: Vec<u32>,
    /// A use of each topic is over.
    pub(super) unused: Vec<TopicId>,
}
